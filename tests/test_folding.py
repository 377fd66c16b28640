"""Tests of folding: outputs are equal, normalisations are removed, and the reasons are given for those kept."""

import keras
import numpy as np
import pytest

import keras_residual as kr
from keras_residual import registry
from keras_residual.folding import fold_batch_norm, folding

from .tools import distance, distinct, features, noise, randomise

ENTRIES = list(registry.entries().values())
# By default one of each family that has something to fold
FOLDABLE = [entry for entry in ENTRIES if any(value == "batch_norm" for *_, value in features(entry))]
SHOWN = {entry.config.name for entry in {entry.family: entry for entry in reversed(FOLDABLE)}.values()}
ROWS = [
    pytest.param(entry, id=entry.config.name, marks=() if entry.config.name in SHOWN else pytest.mark.slow)
    for entry in distinct(ENTRIES)
]
KINDS = keras.layers.BatchNormalization


def norms(model):
    return [layer.name for layer in model.layers if isinstance(layer, KINDS)]


def reasons(inputs, outputs):
    """Return a model's folding report after checking that the folded model has the same outputs."""
    model = randomise(keras.Model(inputs, outputs))
    x = noise((2, *inputs.shape[1:]))
    folded = fold_batch_norm(model)
    assert distance(folded(x, training=False), model(x, training=False)) < 1e-5
    report = folding(model)
    assert norms(folded) == list(report.kept)
    return report


@pytest.mark.parametrize("entry", ROWS)
def test_every_registered_model(entry):
    model = randomise(entry.build(entry.config.tiny(), classes=10, classifier_activation=None))
    x, before = noise((2, *model.input_shape[1:])), [np.asarray(v).copy() for v in model.variables]
    report, folded = folding(model), fold_batch_norm(model)
    assert distance(folded(x, training=False), model(x, training=False)) < 1e-5
    assert set(report.after) | set(report.before) | set(report.kept) == set(norms(model))
    assert norms(folded) == list(report.kept)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.variables, strict=True)), "the model was changed"


def test_post_activation_networks_keep_none():
    for name in ("ResNet18", "ResNeXt50_32x4d", "SEResNet50"):
        entry = registry.entries()[name]
        report = folding(entry.build(entry.config.tiny()))
        assert report.after
        assert not report.kept, report


def test_pre_activation_networks_keep_those_after_the_addition():
    entry = registry.entries()["ResNetV2_50"]
    report = folding(entry.build(entry.config.tiny()))
    assert all(name.endswith(("norm2", "norm3")) for name in report.after)
    assert all(name.endswith(("norm1", "norm")) for name in report.kept)
    assert any("stages.0 is a StageOutput" in why for why in report.kept.values()), report


def test_every_kind_of_layer():
    """Fold into layers of all types and ranks, before and after the normalisation."""
    kinds = [
        ((12, 16), keras.layers.Conv1D(8, 3, 2)),
        ((12, 16), kr.layers.Conv1D(8, 3, groups=4, padding="same")),
        ((12, 16), keras.layers.DepthwiseConv1D(3, depth_multiplier=2)),
        ((8, 9, 16), keras.layers.Conv2D(8, 3, dilation_rate=2, use_bias=False)),
        ((8, 9, 16), kr.layers.Conv2D(32, 3, groups=8)),
        ((8, 9, 16), kr.layers.StandardizedConv2D(32, 3, groups=2, padding="same")),
        ((8, 9, 16), kr.layers.StandardizedConv2D(32, 1, use_bias=False, epsilon=1e-3)),
        ((8, 9, 16), keras.layers.DepthwiseConv2D(3, depth_multiplier=3, use_bias=False)),
        ((4, 4, 4, 16), keras.layers.Conv3D(8, 3, padding="same")),
        ((4, 4, 4, 16), kr.layers.StandardizedConv3D(8, 1)),
        ((16,), keras.layers.Dense(8)),
        ((8, 9, 16), keras.layers.Dense(8, use_bias=False)),
        ((8, 9, 16), kr.layers.PointwiseDense(8)),
    ]
    for shape, layer in kinds:
        inputs = keras.Input(shape)
        report = reasons(inputs, kr.layers.BatchNorm()(layer(inputs)))
        assert list(report.after.values()) == [layer.name], layer
        again = type(layer).from_config({**layer.get_config(), "name": "again"})
        inputs = keras.Input(shape)
        report = reasons(inputs, again(keras.layers.BatchNormalization(scale=False)(inputs)))
        padded = getattr(layer, "padding", "valid") == "same"
        assert list(report.before.values()) == ([] if padded else ["again"]), layer
        both = type(layer).from_config({**layer.get_config(), "name": "both", "activation": "relu"})
        inputs = keras.Input(shape)
        reasons(inputs, both(keras.layers.BatchNormalization(center=False)(inputs)))


def test_one_layer_between_two_norms():
    inputs = keras.Input((6, 6, 16))
    x = keras.layers.BatchNormalization(name="first", center=False)(inputs)
    x = keras.layers.BatchNormalization(name="second", epsilon=0.1)(keras.layers.Conv2D(8, 3, name="conv")(x))
    report = reasons(inputs, x)
    assert report.before == {"first": "conv"}
    assert report.after == {"second": "conv"}


def padded(x):
    return keras.layers.ZeroPadding2D(1, name="pad")(keras.layers.Conv2D(8, 3, name="conv")(x))


def activated(x):
    return keras.layers.Conv2D(8, 3, activation="relu", name="conv")(x)


def shared(x):
    conv = keras.layers.Conv2D(16, 3, padding="same", name="conv")
    return conv(conv(x))


class Odd(keras.layers.Conv2D):
    def call(self, inputs):
        return super().call(inputs) ** 2


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (padded, "pad is a ZeroPadding2D"),
        (activated, "conv has an activation"),
        (shared, "conv is used more than once"),
        (lambda x: Odd(8, 3, name="odd")(x), "odd is a Odd"),
        (lambda x: keras.layers.ReLU(name="act")(x), "act is a ReLU"),
    ],
)
def test_what_is_refused_and_why(before, why):
    inputs = keras.Input((8, 8, 16))
    report = reasons(inputs, keras.layers.BatchNormalization(name="norm")(before(inputs)))
    assert why in report.kept["norm"]
    assert why in str(report)


def test_a_branch_beside_the_norm_is_refused():
    inputs = keras.Input((8, 8, 16))
    x = keras.layers.Conv2D(8, 3, name="conv")(inputs)
    report = reasons(inputs, [keras.layers.BatchNormalization(name="norm")(x), x][0] + x)
    assert report.kept == {"norm": "the output of conv is also used elsewhere"}
    twice = keras.layers.BatchNormalization(name="norm", axis=-1)
    inputs = keras.Input((8, 8, 16))
    x = twice(keras.layers.Conv2D(16, 1)(inputs))
    assert reasons(inputs, twice(keras.layers.Conv2D(16, 1)(x))).kept == {"norm": "it is used more than once"}


def test_an_output_of_the_model_stays_what_it_is():
    inputs = keras.Input((8, 8, 16))
    x = keras.layers.Conv2D(8, 3, name="conv")(inputs)
    model = randomise(keras.Model(inputs, {"plain": x, "norm": keras.layers.BatchNormalization(name="norm")(x)}))
    folded, x = fold_batch_norm(model), noise((2, 8, 8, 16))
    ours, theirs = folded(x, training=False), model(x, training=False)
    assert set(ours) == {"plain", "norm"}
    assert all(distance(ours[name], theirs[name]) < 1e-5 for name in ours)


def test_another_axis_is_refused():
    inputs = keras.Input((8, 8, 16))
    report = reasons(inputs, keras.layers.BatchNormalization(1, name="norm")(keras.layers.Conv2D(8, 3)(inputs)))
    assert "axis" in report.kept["norm"]


def test_strict():
    inputs = keras.Input((8, 8, 16))
    model = keras.Model(inputs, keras.layers.BatchNormalization(name="norm")(padded(inputs)))
    with pytest.raises(ValueError, match="norm is kept: pad is a ZeroPadding2D"):
        fold_batch_norm(model, strict=True)


def test_masks_and_sequential_models():
    """An explicit mask goes to the normalisation, an implicit one passes it."""
    inputs = keras.Input((5, 16))
    x = keras.layers.Masking()(inputs)
    x = keras.layers.Dense(16)(x)
    x = keras.layers.BatchNormalization()(x, mask=keras.ops.any(keras.ops.not_equal(inputs, 0), axis=-1))
    x = keras.layers.GlobalAveragePooling1D()(x)  # over what the mask leaves
    model = randomise(keras.Model(inputs, x))
    x = noise((3, 5, 16))
    x[0, 2:] = 0
    assert norms(fold_batch_norm(model)) == []
    assert distance(fold_batch_norm(model)(x), model(x, training=False)) < 1e-5

    inner = keras.Sequential([keras.Input((8, 8, 16)), keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization()])
    outer = randomise(keras.Sequential([keras.Input((8, 8, 16)), keras.layers.Rescaling(2.0), inner]))
    folded, x = fold_batch_norm(outer), noise((2, 8, 8, 16))
    assert not any(isinstance(layer, KINDS) for layer in folded._flatten_layers())
    assert distance(folded(x, training=False), outer(x, training=False)) < 1e-5
    assert len(folding(outer).after) == 1


def test_state_of_other_layers_comes_along():
    inputs = keras.Input((8, 8, 3))
    normalise = keras.layers.Normalization()
    normalise.adapt(5 + 3 * noise((20, 8, 8, 3)))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3)(normalise(inputs)))
    x = keras.layers.MultiHeadAttention(2, 4)(*[keras.layers.Reshape((36, 8))(x)] * 2)
    model = keras.Model(inputs, x)
    folded, x = fold_batch_norm(model), noise((2, 8, 8, 3))
    assert distance(folded(x, training=False), model(x, training=False)) < 1e-5


def test_half_precision():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = randomise(kr.ResNet20(input_shape=(16, 16, 3), classifier_activation=None))
    finally:
        keras.config.set_dtype_policy(policy)
    full = kr.ResNet20(input_shape=(16, 16, 3), classifier_activation=None)
    for a, b in zip(full.variables, half.variables, strict=True):
        a.assign(b)
    folded, x = fold_batch_norm(half), noise((2, 16, 16, 3))
    assert {layer.dtype_policy.name for layer in folded.layers if layer.weights} == {"mixed_bfloat16"}
    exact = full(x, training=False)
    assert distance(folded(x, training=False), exact) < 2 * distance(half(x, training=False), exact)


def test_a_compiled_model_with_a_subclassed_one_beside_it():
    class Custom(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="Functional or a built Sequential"):
        fold_batch_norm(Custom(name="mine"))
    model = kr.ResNet20(input_shape=(16, 16, 3))
    model.compile("adam", "sparse_categorical_crossentropy")
    assert not fold_batch_norm(model).compiled
