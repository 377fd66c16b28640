"""Vision Transformers: input sizes, tokens, feature maps, options, files."""

import dataclasses
import inspect

import keras
import numpy as np
import pytest

import keras_residual as kr
from keras_residual import blocks, layers, models, registry

from . import tools

ROWS = [e for e in registry.entries().values() if e.builder.__module__ == "keras_residual.models.vit"]


def build(name="ViTTiny16", row=None, **options):
    entry = models.find(name)
    row = dataclasses.replace(entry.config.tiny(), **(row or {}))
    return tools.randomise(entry.build(row, **{"classes": 10, "classifier_activation": None, **options}))


def run(model, batch=2):
    x = tools.noise((batch, *model.input_shape[1:]))
    return x, np.asarray(model(x, training=False))


# -------------------------------------------------------------------------------------------------------- input sizes


@pytest.mark.parametrize("shape", [(32, 96, 3), (16, 16, 1), (160, 4), (16, 32, 48, 2)])
def test_any_multiple_of_the_patch_at_any_rank(shape):
    model = build(input_shape=shape)
    assert model.get_layer("pos_embed").value.shape == (1, 1 + np.prod([s // 16 for s in shape[:-1]]), 64)
    _, y = run(model)
    assert y.shape == (2, 10)
    assert np.abs(y[0] - y[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((224, 230, 3), "multiples of the patch size, 16; got (224, 230). Resize the images to (224, 224)."),
        ((7, 100, 3), "got (7, 100). Resize the images to (16, 96)."),
        ((None, None, 3), "must not be None"),
    ],
)
def test_other_sizes_are_explained(shape, said):
    with pytest.raises(ValueError, match="ViTTiny16") as error:
        kr.ViTTiny16(input_shape=shape)
    assert said in str(error.value)


ALIASES = [(alias, size) for e in ROWS for alias, size in e.config.aliases]


@pytest.mark.parametrize(("alias", "size"), ALIASES, ids=lambda a: str(a))
def test_alias_stands_for_its_size(alias, size):
    """`create` builds the network at the alias's image size, here with one narrow block."""
    entry = models.find(alias)
    assert registry.resolve(alias) == (entry.config.name, size)
    row = dataclasses.replace(entry.config, width=16, heads=2, hidden=16, depth=1)
    model = entry.build(row, input_shape=(size, size, 3))
    assert model.get_layer("pos_embed").grid == (size // row.patch,) * 2


def test_create_by_alias():
    with keras.StatelessScope(initialize_variables=False):
        model = kr.create("vit_tiny_patch16_384")
    keras.utils.clear_session(free_memory=False)  # else the next scope would initialise these variables
    assert model.input_shape == (None, 384, 384, 3)


# ------------------------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize(("name", "prefix"), [("ViTTiny16", 1), ("DINOv2RegSmall14", 5), ("SigLIPBase16", 0)])
def test_tokens_without_top(name, prefix):
    model = build(name, include_top=False)
    row = models.find(name).config
    x, tokens = run(model)
    assert tokens.shape == (2, prefix + 16, 64)
    assert row.prefix == prefix
    for pooling, reduce in (("avg", np.mean), ("max", np.max)):
        pooled = build(name, include_top=False, pooling=pooling)
        expected = reduce(tokens[:, prefix:], axis=1)
        assert tools.distance(pooled(x, training=False), expected) < 1e-5


def test_no_classes_gives_the_pooled_features():
    model = build(classes=0)
    x, pooled = run(model)
    tokens = build(include_top=False)(x, training=False)
    np.testing.assert_array_equal(pooled, np.asarray(tokens)[:, 0])


def test_two_heads_are_averaged():
    model = build("DeiTDistilledTiny16")
    x, y = run(model)
    tokens = np.asarray(build("DeiTDistilledTiny16", include_top=False)(x, training=False))
    head, distilled = model.get_layer("head"), model.get_layer("head_dist")
    expected = (np.asarray(head(tokens[:, 0])) + np.asarray(distilled(tokens[:, 1]))) / 2
    assert tools.distance(y, expected) < 1e-5


def test_features_are_maps_of_the_patches():
    model = build("DINOv2RegSmall14", input_shape=(28, 70, 3))
    x, _ = run(model)
    maps = kr.features(model)(x, training=False)
    assert [tuple(m.shape) for m in maps] == [(2, 2, 5, 64)] * 4
    last = keras.Model(model.input, model.get_layer("blocks.3").output)(x, training=False)  # (N, 5 + 10, C)
    assert last.shape == (2, 15, 64)
    np.testing.assert_array_equal(np.asarray(maps[3])[:, 1, 2], np.asarray(last)[:, 5 + 1 * 5 + 2])


def test_levels_are_quarters_of_the_depth():
    model = build(row={"depth": 6})
    stages = {layer.level: layer.name for layer in model.layers if isinstance(layer, layers.StageOutput)}
    assert stages == {1: "blocks.0", 2: "blocks.2", 3: "blocks.3", 4: "blocks.5"}


@pytest.mark.parametrize(
    ("bias", "first", "final"), [(False, True, "tokens"), (True, False, "pooled"), (True, True, None)]
)
def test_norms_and_the_bias_of_the_patches_are_chosen_apart(bias, first, final):
    model = build(row={"patch_bias": bias, "norm_first": first, "final_norm": final})
    assert model.get_layer("patch_embed.proj").use_bias is bias
    norms = {layer.name for layer in model.layers} & {"norm_pre", "norm", "fc_norm"}
    assert norms == ({"norm_pre"} if first else set()) | {"tokens": {"norm"}, "pooled": {"fc_norm"}, None: set()}[final]


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "row",
    [
        {"qk_norm": True},
        {"qkv_bias": False, "proj_bias": False},
        {"feed_forward": blocks.swiglu, "activation": "silu"},
        {"feed_forward": blocks.split_swiglu, "activation": "silu"},
        {"norm": blocks.rms_norm, "norm_embed": True},
    ],
    ids=lambda row: "-".join(row),
)
def test_fields_of_the_row(row, tmp_path):
    model = build(row=row)
    assert shapes(model) != shapes(build()), "the field changes the weights"
    x, y = run(model)
    assert np.isfinite(y).all()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(np.asarray(loaded(x, training=False)), y)
    assert kr.features(loaded).output_shape == [(None, 4, 4, 64)] * 4


def shapes(model):
    return {slot.key: slot.shape for slot in kr.weights.slots(model)}


def test_stochastic_depth_grows_to_its_rate():
    model = build(drop_path=0.3)
    rates = [
        model.get_layer(f"blocks.{i}.{part}.residual.drop_path").rate for i in range(4) for part in ("attn", "mlp")
    ]
    np.testing.assert_allclose(rates, [0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3])


def test_initialisation():
    model = models.find("SigLIPBase16").build(models.find("SigLIPBase16").config.tiny())
    assert np.std(np.asarray(model.get_layer("attn_pool.latent").value)) == pytest.approx(64**-0.5, rel=0.5)
    kernel = np.asarray(model.get_layer("blocks.0.mlp.fc1").kernel)
    assert np.std(kernel) == pytest.approx(0.02, rel=0.15)  # truncated at two deviations
    assert np.abs(kernel).max() < 0.05
    assert not np.asarray(model.get_layer("blocks.0.attn.qkv").bias).any()


def test_every_builder_has_the_same_signature():
    assert len({str(inspect.signature(e.builder)) for e in ROWS}) == 1
