"""Tests of diagnostics against independent computations, planted faults, and healthy networks."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_residual as kr
from keras_residual import registry
from keras_residual.cli import main
from keras_residual.diagnostics import (
    attention_rollout,
    check_residual,
    grad_cam,
    gradient_flow,
    prune_blocks,
    residual_report,
)
from keras_residual.diagnostics.graph import Graph

from . import tools
from .faulty_models import FAULTS, HEALTHY

# ------------------------------------------------------------------------------------------------------- gradient flow


def small_resnet(**options):
    return tools.randomise(kr.ResNet20(input_shape=(16, 16, 3), **options))


def batch(shape=(4, 16, 16, 3), classes=10):
    return tools.noise(shape), np.arange(shape[0]) % classes


def by_hand(model, x, y, shortcut, fork, branch, add):
    """Compute the gradient at a block's input and its parts with GradientTape, on models split at the block."""
    whole = keras.Model(model.input, [t.output for t in (fork, add)] + [model.output])
    with tf.GradientTape(persistent=True) as tape:
        start, end, outputs = whole(x, training=False)
        loss = tf.reduce_mean(tf.keras.losses.sparse_categorical_crossentropy(y, outputs))
    total, above = tape.gradient(loss, start), tape.gradient(loss, end)
    parts = []
    for side in (shortcut, branch):
        if side is fork.output:
            parts.append(above)
            continue
        part = keras.Model(fork.output, side)
        with tf.GradientTape() as tape:
            tape.watch(start)
            value = part(start, training=False)
        parts.append(tape.gradient(value, start, output_gradients=above))
    return [np.asarray(t) for t in (total, *parts)]


@pytest.mark.parametrize("name", ["layer1.1", "layer2.0"])
def test_gradient_parts_equal_those_of_gradient_tape(name):
    """Parts of the gradient equal those of a tape, for a block that keeps its shape and one that does not."""
    model = small_resnet()
    x, y = batch()
    add = model.get_layer(f"{name}.add")
    shortcut, branch = add.input
    fork = model.get_layer({"layer1.1": "layer1.0.act", "layer2.0": "layer1"}[name])
    total, by_shortcut, by_branch = by_hand(model, x, y, shortcut, fork, branch, add)
    found = gradient_flow(model, x, y).gradients[name]
    assert tools.distance(found["shortcut"], by_shortcut) < 1e-5
    assert tools.distance(found["branch"], by_branch) < 1e-5
    assert tools.distance(found["input"], total) < 1e-5
    assert tools.distance(found["shortcut"] + found["branch"], total) < 1e-5


# ---------------------------------------------------------------------------------------------------------- check

ROOT = Path(__file__).parents[1]
LONG = {"activated_shortcut", "halved_shortcut"}  # whole networks of keras.applications


@pytest.mark.parametrize(
    "planted", [pytest.param(f, marks=[pytest.mark.slow] if f.__name__ in LONG else []) for f in FAULTS]
)
def test_planted_faults_are_found_and_nothing_else(planted):
    model, kind = planted()
    found = check_residual(model)
    assert not found.healthy
    assert {fault.kind for fault in found.faults} == {kind}
    names = {layer.name for layer in model._flatten_layers()}
    if "here" in names:
        assert found.faults[0].layer.rpartition("/")[2] == "here"
    for fault in found.faults:
        assert fault.layer in str(found)
        assert fault.wrong in str(found)
        assert fault.advice.endswith(".")
        assert fault.source


@pytest.mark.parametrize("build", HEALTHY)
def test_networks_that_look_alike_are_healthy(build):
    found = check_residual(build())
    assert found.healthy, str(found)


@pytest.mark.filterwarnings("ignore:.*does not support masking")
def test_models_inside_are_opened_with_a_mask_too():
    """With padding, Keras passes a mask to a nested model, which must not be treated as a second input."""
    inner = keras.Input((None, 16))
    y = keras.layers.LayerNormalization()(inner)
    encoder = keras.Model(inner, inner + keras.layers.MultiHeadAttention(2, 8)(y, y), name="encoder")
    tokens = keras.Input((None,), dtype="int32")
    x = encoder(keras.layers.Embedding(20, 16, mask_zero=True)(tokens))
    model = keras.Model(tokens, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling1D()(x)))
    (row,) = check_residual(model).rows
    assert row["block"].startswith("encoder/")
    graph, padded = Graph(model), np.array([[3, 7, 0, 0], [5, 1, 2, 9]])
    (value,) = graph.run(padded).values()
    np.testing.assert_array_equal(np.asarray(value), np.asarray(model(padded)))


def test_the_readme_counts_them():
    assert f"On {len(FAULTS)} models with planted faults" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("entry", tools.distinct(registry.entries().values()), ids=lambda e: e.config.name)
def test_the_registry_is_healthy(entry):
    found = check_residual(entry.build(entry.config.tiny(), classes=10))
    assert found.healthy, str(found)
    assert bool(found.rows) != entry.config.name.startswith("PlainNet"), found.title


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("ResNet50", 16),
        ("ResNet50V2", 16),
        ("MobileNetV2", 10),
        ("MobileNetV3Small", 6),
        ("EfficientNetB0", 9),
        ("EfficientNetV2B0", 15),
        ("ConvNeXtTiny", 18),
        ("Xception", 12),
        ("InceptionResNetV2", 40),
        ("NASNetMobile", 60),
        ("InceptionV3", 0),
        ("DenseNet121", 0),
    ],
)
def test_keras_applications_are_healthy(name, least):
    found = check_residual(getattr(keras.applications, name)(weights=None))
    assert found.healthy, str(found)
    assert len(found.rows) >= least


def test_networks_without_skips_are_told_so():
    sequential = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    inputs = keras.Input((8,))
    plain = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dense(8, "relu")(inputs)))
    for model in (sequential, plain):
        found = check_residual(model)
        assert "no skip connection" in str(found)
        assert found.healthy
        rows = gradient_flow(model, tools.noise((4, 8)), np.array([0, 1, 0, 1]), loss=_logits_loss).rows
        assert len(rows) == 2
    with pytest.raises(ValueError, match="must be a Functional or a built Sequential"):
        check_residual(keras.Sequential([keras.layers.Dense(2)]))


def _logits_loss(y, outputs):
    return keras.losses.sparse_categorical_crossentropy(y, outputs, from_logits=True)


# ------------------------------------------------------------------------------------------------- report and pruning


def test_training_mode_does_not_change_the_model():
    model = small_resnet()
    before = [np.asarray(v).copy() for v in model.weights]
    gradient_flow(model, *batch(), training=True)
    for old, variable in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, np.asarray(variable))


def test_labels_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"from 0 to 9, .* got 10, for 1 of 2"):
        gradient_flow(small_resnet(), tools.noise((2, 16, 16, 3)), np.array([0, 10]))


def linear_stream(depth=4, size=0.5):
    """Build `depth` blocks x + size * x, whose results are known. The activation is the identity on the test data."""
    inputs = keras.Input((3,))
    x = inputs
    for i in range(depth):
        y = keras.layers.Dense(3, use_bias=False, name=f"dense{i}")(keras.layers.ELU()(x))
        x = keras.layers.Add(name=f"block{i}.add")([x, y])
    model = keras.Model(inputs, x)
    for i in range(depth):
        model.get_layer(f"dense{i}").kernel.assign(size * np.eye(3))
    return model


def test_report_of_a_stream_that_can_be_computed_by_hand():
    depth, size = 4, 0.5
    x = np.abs(tools.noise((6, 3)))
    report = residual_report(linear_stream(depth, size), x)
    for row in report.rows:
        assert row["branch / stream"] == pytest.approx(size, rel=1e-5)
        assert row["output change"] == pytest.approx(1 - 1 / (1 + size), rel=1e-4)
    # A path of k branches carries size^k: the lengths are binomial with probability size / (1 + size).
    assert report.effective_depth == pytest.approx(depth * size / (1 + size), rel=1e-3)
    assert report.path_share[0] == pytest.approx((1 + size) ** -depth, rel=1e-3)


def test_pruned_models_compute_what_is_left(tmp_path):
    model, x = linear_stream(4, 0.5), np.abs(tools.noise((6, 3)))
    pruned = prune_blocks(model, ["block0", "block3"])
    np.testing.assert_allclose(np.asarray(pruned.model(x)), 1.5**2 * x, rtol=1e-5)
    assert {row["block"] for row in pruned.rows if row["block is"] == "removed"} == {"block1", "block2"}
    with pytest.raises(ValueError, match="nothing"):
        prune_blocks(model, ["nothing"])
    with pytest.raises(ValueError, match="must be given to choose"):
        prune_blocks(model, 2)


def shared_block():
    """One block, used three times."""
    inner = keras.Input((3,))
    y = keras.layers.Dense(3, use_bias=False, name="dense")(keras.layers.ELU()(inner))
    block = keras.Model(inner, keras.layers.Add(name="add")([inner, y]), name="block")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, block(block(block(inputs))))
    model.get_layer("block").get_layer("dense").kernel.assign(0.5 * np.eye(3))
    return model


def test_each_use_of_a_shared_block_has_its_own_row():
    model, x = shared_block(), np.abs(tools.noise((6, 3)))
    rows = residual_report(model, x).rows
    assert [row["block"] for row in rows] == ["block/add", "block/add:2", "block/add:3"]
    for row in rows:
        assert row["branch / stream"] == pytest.approx(0.5, rel=1e-5)
        assert row["output change"] == pytest.approx(1 - 1 / 1.5, rel=1e-4)
    assert len(gradient_flow(model, x, np.zeros(6, int), loss=_logits_loss).gradients) == 3
    assert {row["block is"] for row in prune_blocks(model, []).rows} == {"kept: it is used more than once"}


def test_labels_of_every_position():
    """For segmentation, accuracy is the fraction of correct pixels."""
    inputs = keras.Input((4, 4, 3))
    y = keras.layers.Conv2D(3, 1, use_bias=False, name="conv")(keras.layers.ELU()(inputs))
    model = keras.Model(inputs, keras.layers.Add()([inputs, y]))
    model.get_layer("conv").kernel.assign(np.zeros((1, 1, 3, 3)))
    x = tools.noise((5, 4, 4, 3))
    labels = x.argmax(-1)
    labels[0] = (labels[0] + 1) % 3
    assert residual_report(model, (x, labels)).accuracy == pytest.approx(4 / 5)
    flow = gradient_flow(model, x, labels)
    expected = keras.losses.sparse_categorical_crossentropy(labels, x, from_logits=True)
    assert flow.loss == pytest.approx(float(np.mean(expected)), rel=1e-5)
    with pytest.raises(ValueError, match="classifier"):
        grad_cam(model, x)


def test_bad_input_is_explained():
    model, images = small_resnet(), tools.noise((2, 16, 16, 3))
    with pytest.raises(ValueError, match="0 to 9 for each of the 2 images"):
        grad_cam(model, images, classes=[3, 17])
    with pytest.raises(ValueError, match=r"1 for ResNet20; got 2"):
        gradient_flow(model, [images, images], np.array([0, 1]))
    with pytest.raises(ValueError, match="at least one sample"):
        residual_report(model, images[:0])

    class Fixed(keras.layers.Layer):
        def __init__(self):
            super().__init__()

        def call(self, x):
            return x * 2

    inputs = keras.Input((3,))
    x = Fixed()(inputs)
    x = keras.layers.Add()([x, keras.layers.Dense(3)(keras.layers.ELU()(x))])
    with pytest.raises(ValueError, match="get_config"):
        prune_blocks(keras.Model(inputs, x), [])


def test_pruning_by_number_keeps_what_matters(tmp_path):
    model = linear_stream(3, 0.5)
    model.get_layer("dense1").kernel.assign(0.01 * np.eye(3))
    x = np.abs(tools.noise((6, 3)))
    pruned = prune_blocks(model, 2, (x, x.argmax(-1)))
    assert [row["block is"] for row in pruned.rows] == ["kept", "removed", "kept"]
    assert pruned.accuracy == pruned.accuracy_before == 1.0
    pruned.model.save(tmp_path / "pruned.keras")
    loaded = keras.models.load_model(tmp_path / "pruned.keras")
    np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(pruned.model(x)))


# ----------------------------------------------------------------------------------------------------------- maps


def test_grad_cam_finds_the_spot_and_draws(tmp_path):
    """In a network that sums the brightness, bright regions support the class."""
    inputs = keras.Input((16, 16, 1))
    x = keras.layers.Conv2D(2, 3, padding="same", use_bias=False, activation="relu")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(2, "softmax")(x))
    model.layers[1].kernel.assign(np.ones((3, 3, 1, 2)) / 9)
    model.layers[-1].kernel.assign([[2.0, -2.0], [0.0, 0.0]])
    images = np.zeros((2, 16, 16, 1), "float32")
    images[0, 3:6, 10:13] = images[1, 12:15, 1:4] = 1
    found = grad_cam(model, images)
    assert [row["highest at"] for row in found.rows] == ["(4, 11)", "(13, 2)"]
    assert found.maps[0][8:].max() == 0
    assert grad_cam(model, images, classes=[1, 1]).maps.max() == 0, "nothing speaks for the other class"
    assert found.plot(tmp_path / "cam.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="attention_rollout"):
        grad_cam(linear_stream(), np.zeros((1, 3)))


@pytest.mark.parametrize("name", ["ViTTiny16", "SigLIPBase16"])
def test_rollout_equals_the_product_of_attentions(name):
    """Rollout with class token or pooling head equals the product of attentions computed from the weights."""
    entry = kr.models.find(name)
    model = tools.randomise(entry.build(entry.config.tiny(), classes=5))
    images = tools.noise((2, *model.input_shape[1:]))
    found = attention_rollout(model, images)
    rolled = None
    for i in range(4):
        heads = model.get_layer(f"blocks.{i}.attn.heads")
        q, k, _ = keras.Model(model.input, heads.output)(images, training=False)
        a = np.asarray(keras.ops.softmax(keras.ops.matmul(q, keras.ops.swapaxes(k, 2, 3)) * q.shape[-1] ** -0.5)).mean(
            1
        )
        a = (a + np.eye(a.shape[-1])) / 2
        rolled = a if rolled is None else a @ rolled
    if name == "ViTTiny16":
        rows = rolled[:, 0, 1:]
    else:
        inner = model.get_layer("attn_pool.attend").input
        q, k, _ = keras.Model(model.input, inner)(images, training=False)
        a = keras.ops.softmax(keras.ops.matmul(q, keras.ops.swapaxes(k, 2, 3)) * q.shape[-1] ** -0.5)
        rows = np.einsum("nk,nkl->nl", np.asarray(a).mean(1)[:, 0], rolled)
    grid = rows.reshape(2, 4, 4)
    grid = grid / grid.max((1, 2), keepdims=True)
    expected = np.asarray(keras.ops.image.resize(grid[..., None].astype("float32"), images.shape[1:3]))[..., 0]
    np.testing.assert_allclose(found.maps, np.clip(expected, 0, 1), atol=1e-4)
    with pytest.raises(ValueError, match="grad_cam"):
        attention_rollout(small_resnet(), tools.noise((1, 16, 16, 3)))


# -------------------------------------------------------------------------------------------------------- the command


def test_inspect_prints_tables_and_writes_figures(tmp_path, capsys):
    generator = np.random.default_rng(0)
    for kind in ("a", "b"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(3):
            pixels = generator.integers(0, 255, (20, 20, 3)).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / "photos" / kind / f"{i}.png")
    model = kr.ResNet20(input_shape=(16, 16, 3), classes=2, classifier_activation=None)
    prepare = kr.weights.Preprocess((16, 16), (0.5,) * 3, (0.5,) * 3, 1.0)
    kr.Classifier(model, prepare, ("a", "b"), "ResNet20").save(tmp_path / "run")
    image = str(tmp_path / "photos" / "a" / "0.png")
    assert main(["inspect", str(tmp_path / "run"), image, "--data", str(tmp_path / "photos"), "--count", "4"]) == 0
    out = capsys.readouterr().out
    for words in ("9 skip connections", "Gradient flow", "effective depth", "Grad-CAM", "0.png"):
        assert words in out
    for name in ("skips", "gradients", "blocks", "maps"):
        assert (tmp_path / "run" / "inspect" / f"{name}.png").stat().st_size > 5000
        assert len((tmp_path / "run" / "inspect" / f"{name}.csv").read_text().splitlines()) > 1
