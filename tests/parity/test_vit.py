"""Every Vision Transformer row against timm: its numbers, the same topology tiny, and one at full size."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import timm
import torch

import keras_residual as kr
from keras_residual import blocks, layers, models, registry
from keras_residual.models import vit

from . import reference

ROWS = [e for e in registry.entries().values() if e.builder.__module__ == "keras_residual.models.vit"]
ALIASES = [(e, alias, size) for e in ROWS for alias, size in e.config.aliases]
LIMIT = 1e-5


def tiny(row, name=None, **options):
    """timm's network of the tiny row, by timm's name of the row or one of its aliases."""
    return timm.create_model(
        name or row.timm,
        img_size=row.input_shape[0],
        embed_dim=row.width,
        depth=row.depth,
        num_heads=row.heads,
        mlp_ratio=row.hidden / row.width,
        num_classes=10,
        **options,
    )


def randomise(twin, seed=0):
    """Random weights, with faint embeddings: the first norm's epsilon is nothing beside tokens of variance 1."""
    reference.randomise(twin, seed)
    with torch.no_grad():
        for name, value in twin.named_parameters():
            if name.startswith("patch_embed.proj") or name in ("cls_token", "dist_token", "reg_token", "pos_embed"):
                value.mul_(0.05)
    return twin


def compare(twin, model, row):
    """Distances of logits and of the four levels, as `(N, h, w, C)` maps without class and register tokens."""
    grid = model.get_layer("pos_embed").grid  # a state dict does not state it
    kr.load_weights(model, {key: value.numpy() for key, value in twin.state_dict().items()}, grid=grid)
    x = reference.images(row.input_shape[:2])
    at = [max(1, row.depth * level // 4) - 1 for level in (1, 2, 3, 4)]
    with torch.no_grad():
        maps = twin.forward_intermediates(reference.to_torch(x), indices=at, intermediates_only=True)
        logits = twin(reference.to_torch(x)).numpy()
    errors = {"logits": reference.distance(np.asarray(model(x, training=False)), logits)}
    for i, ours, theirs in zip(at, kr.features(model)(x, training=False), maps, strict=True):
        errors[f"blocks.{i}"] = reference.distance(np.asarray(ours), np.moveaxis(theirs.numpy(), 1, -1))
    return errors


def build(entry, row=None, **options):
    return entry.build(row or entry.config.tiny(), classifier_activation=None, classes=10, **options)


@pytest.mark.parametrize("entry", ROWS, ids=lambda e: e.config.timm)
def test_tiny_twin(entry, report):
    row = entry.config.tiny()
    errors = compare(randomise(tiny(row)), build(entry), row)
    report(entry.config.name, errors)
    assert max(errors.values()) < LIMIT, errors


@pytest.mark.parametrize("entry", ROWS, ids=lambda e: e.config.timm)
def test_numbers_of_the_row(entry):
    """What the tiny twin replaces, as the full network has it; nobody can see the number of heads in a weight."""
    row = entry.config
    with torch.device("meta"):
        full = timm.create_model(row.timm, num_classes=row.classes)
    patch, block = full.patch_embed, full.blocks[0]
    hidden = (block.mlp.fc2 if hasattr(block.mlp, "fc1_g") else block.mlp.fc1).weight.shape
    theirs = {
        "patch": patch.patch_size,
        "input_shape": patch.img_size,
        "width": full.embed_dim,
        "depth": len(full.blocks),
        "heads": {full.blocks[-1].attn.num_heads, getattr(full.attn_pool, "num_heads", block.attn.num_heads)},
        "hidden": hidden[1] if hasattr(block.mlp, "fc1_g") else hidden[0],
        "prefix": full.num_prefix_tokens,
        "global_pool": full.global_pool,
        "params": sum(value.numel() for value in full.parameters()),
    }
    assert theirs == {
        "patch": (row.patch,) * 2,
        "input_shape": row.input_shape[:2],
        "width": row.width,
        "depth": row.depth,
        "heads": {row.heads},
        "hidden": row.hidden,
        "prefix": row.prefix,
        "global_pool": row.global_pool,
        "params": row.params,
    }


@pytest.mark.parametrize(("entry", "alias", "size"), ALIASES, ids=lambda a: a if isinstance(a, str) else "")
def test_alias_is_the_same_network(entry, alias, size):
    row = entry.config.tiny()
    twin, other = randomise(tiny(row)), tiny(row, alias).eval()
    other.load_state_dict(twin.state_dict())
    x = reference.to_torch(reference.images(row.input_shape[:2]))
    with torch.no_grad():
        assert torch.equal(twin(x), other(x))
    assert timm.get_pretrained_cfg(alias).input_size == (3, size, size)

    # the numbers that the tiny networks replace
    with torch.device("meta"):
        full, own = (timm.create_model(name, img_size=16 * row.patch, num_classes=10) for name in (alias, row.timm))
    assert repr(full) == repr(own)
    assert full.blocks[0].attn.num_heads == own.blocks[0].attn.num_heads  # nothing that repr shows
    assert {k: v.shape for k, v in full.state_dict().items()} == {k: v.shape for k, v in own.state_dict().items()}


def test_size_beyond_the_last_patch():
    """SigLIP So400M/14 at 384: 27 patches of 14 pixels, and six pixels that nobody sees."""
    entry = models.find("vit_so400m_patch14_siglip_384")
    row = dataclasses.replace(entry.config.tiny(), input_shape=(384, 384, 3))
    errors = compare(randomise(tiny(row, "vit_so400m_patch14_siglip_384")), build(entry, row), row)
    assert max(errors.values()) < LIMIT, errors


def test_not_square():
    entry = models.find("vit_base_patch16_siglip_224")
    row = dataclasses.replace(entry.config.tiny(), input_shape=(32, 96, 3))
    square = dataclasses.replace(row, input_shape=((32, 96),))
    errors = compare(randomise(tiny(square)), build(entry, row), row)
    assert max(errors.values()) < LIMIT, errors


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(
    ("old", "new"), [((12, 16), (16, 12)), ((14, 14), (7, 9)), ((2, 8), (4, 4)), ((4, 4), (2, 8)), ((3, 5), (14, 14))]
)
def test_resampled_positions(old, new, prefix):
    """timm's own function, between grids of any shape."""
    value = np.random.default_rng(0).normal(size=(1, prefix + old[0] * old[1], 24)).astype("float32")
    theirs = timm.layers.resample_abs_pos_embed(torch.from_numpy(value), new, old, prefix).numpy()
    ours = layers.PositionEmbedding(new, prefix).resampled(value, old)
    assert reference.distance(ours, theirs) < LIMIT


def test_weights_of_another_grid():
    """A network of timm's at one size, loaded at another as timm loads it there."""
    row = dataclasses.replace(models.find("vit_tiny_patch16_224").config.tiny(), input_shape=((64, 48),))
    other = dataclasses.replace(row, input_shape=((48, 64),))
    twin, wide = randomise(tiny(row)), tiny(other).eval()
    state = {key: value.numpy() for key, value in twin.state_dict().items()}
    wide.load_state_dict(
        {
            **twin.state_dict(),
            "pos_embed": timm.layers.resample_abs_pos_embed(twin.state_dict()["pos_embed"], (3, 4), (4, 3), 1),
        }
    )
    model = build(models.find("vit_tiny_patch16_224"), dataclasses.replace(row, input_shape=(48, 64, 3)))
    kr.load_weights(model, state, grid=(4, 3), adapt=kr.weights.Adapt(size=True))
    x = reference.images((48, 64))
    with torch.no_grad():
        expected = wide(reference.to_torch(x)).numpy()
    assert reference.distance(np.asarray(model(x, training=False)), expected) < LIMIT


def test_qk_norm():
    entry = models.find("vit_tiny_patch16_224")
    row = dataclasses.replace(entry.config.tiny(), qk_norm=True)
    errors = compare(randomise(tiny(row, qk_norm=True)), build(entry, row), row)
    assert max(errors.values()) < LIMIT, errors


@pytest.mark.parametrize("scanned", [False, True])
def test_siglip_npz(scanned, tmp_path):
    """big_vision's file of a SigLIP: image tower, pooling head and a text tower, which timm and we leave out alike."""
    entry = models.find("vit_base_patch16_siglip_224")
    row = entry.config.tiny()
    c, heads, hidden, depth = row.width, row.heads, row.hidden, row.depth
    normal = np.random.default_rng(0).normal

    def attention(place):
        shapes = {f"{place}/{part}/kernel": (c, heads, c // heads) for part in ("query", "key", "value")}
        shapes |= {f"{place}/{part}/bias": (heads, c // heads) for part in ("query", "key", "value")}
        return {**shapes, f"{place}/out/kernel": (heads, c // heads, c), f"{place}/out/bias": (c,)}

    def mlp(place):
        shapes = {f"{place}/Dense_0/kernel": (c, hidden), f"{place}/Dense_0/bias": (hidden,)}
        return {**shapes, f"{place}/Dense_1/kernel": (hidden, c), f"{place}/Dense_1/bias": (c,)}

    def norm(place):
        return {f"{place}/scale": (c,), f"{place}/bias": (c,)}

    tokens = (row.input_shape[0] // row.patch) ** 2
    shapes = {"embedding/kernel": (row.patch, row.patch, 3, c), "embedding/bias": (c,), "pos_embedding": (1, tokens, c)}
    shapes |= {**norm("Transformer/encoder_norm"), "MAPHead_0/probe": (1, 1, c), **norm("MAPHead_0/LayerNorm_0")}
    shapes |= {**attention("MAPHead_0/MultiHeadDotProductAttention_0"), **mlp("MAPHead_0/MlpBlock_0")}
    block = {**norm("LayerNorm_0"), **attention("MultiHeadDotProductAttention_0"), **norm("LayerNorm_1")}
    block |= mlp("MlpBlock_0")
    if scanned:
        shapes |= {f"Transformer/encoderblock/{key}": (depth, *shape) for key, shape in block.items()}
    else:
        shapes |= {f"Transformer/encoderblock_{i}/{k}": shape for i in range(depth) for k, shape in block.items()}
    arrays = {f"params/img/{key}": 0.1 * normal(size=shape).astype("float32") for key, shape in shapes.items()}
    arrays |= {"params/txt/Embed_0/embedding": normal(size=(5, 4)), "params/t": normal(size=1)}
    np.savez(tmp_path / "siglip.npz", **arrays)

    twin = tiny(row).eval()
    twin.reset_classifier(0)
    twin.load_pretrained(str(tmp_path / "siglip.npz"))
    model = entry.build(row, classes=0, weights=str(tmp_path / "siglip.npz"), classifier_activation=None)
    x = reference.images(row.input_shape[:2])
    with torch.no_grad():
        theirs = twin(reference.to_torch(x)).numpy()
    assert reference.distance(np.asarray(model(x, training=False)), theirs) < LIMIT


def test_full_size():
    twin = timm.create_model("vit_tiny_patch16_224")
    model = models.create("vit_tiny_patch16_224", classifier_activation=None)
    assert model.count_params() == sum(v.numel() for v in twin.state_dict().values())
    errors = compare(randomise(twin), model, models.find("ViTTiny16").config)
    assert max(errors.values()) < LIMIT, errors


# ------------------------------------------------------------------------------- the suite can fail: made on purpose


def torch_epsilon(monkeypatch):
    return {"norm": functools.partial(blocks.layer_norm, epsilon=1e-5)}


def tanh_gelu(monkeypatch):
    return {"activation": "gelu_tanh"}


def keys_before_queries(monkeypatch):
    split = layers.SplitHeads.call
    monkeypatch.setattr(layers.SplitHeads, "call", lambda self, x: [split(self, x)[i] for i in (1, 0, 2)])


def heads_before_parts(monkeypatch):
    def call(self, x):
        x = keras.ops.reshape(x, (-1, x.shape[1], self.heads, self.parts, x.shape[2] // (self.parts * self.heads)))
        return list(keras.ops.unstack(keras.ops.transpose(x, (3, 0, 2, 1, 4)), axis=0))

    monkeypatch.setattr(layers.SplitHeads, "call", call)


def unscaled_attention(monkeypatch):
    attend = layers.Attend.call
    monkeypatch.setattr(
        layers.Attend, "call", lambda self, qkv: attend(self, [qkv[0] * qkv[0].shape[-1] ** 0.5, *qkv[1:]])
    )


def positions_by_columns(monkeypatch):
    def call(self, x):
        prefix, grid = self.value[:, : self.prefix], self.value[:, self.prefix :]
        grid = keras.ops.transpose(keras.ops.reshape(grid, (1, *self.grid, x.shape[-1])), (0, 2, 1, 3))
        return x + keras.ops.concatenate([prefix, keras.ops.reshape(grid, (1, -1, x.shape[-1]))], axis=1)

    monkeypatch.setattr(layers.PositionEmbedding, "call", call)


def token_last(monkeypatch):
    token = layers.Token.call
    monkeypatch.setattr(layers.Token, "call", lambda self, x: keras.ops.roll(token(self, x), -1, axis=1))


def mean_for_token(monkeypatch):
    return {"row": {"pool": vit.mean_of_patches}}


MUTATIONS = [
    torch_epsilon,
    tanh_gelu,
    keys_before_queries,
    heads_before_parts,
    unscaled_attention,
    positions_by_columns,
    token_last,
    mean_for_token,
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.__name__)
def test_mutation_is_seen(mutation, monkeypatch):
    entry = models.find("vit_tiny_patch16_224")
    row = entry.config.tiny()
    options = mutation(monkeypatch) or {}
    model = build(entry, dataclasses.replace(row, **options.pop("row", {})), **options)
    error = max(compare(randomise(tiny(row)), model, row).values())
    assert error > 10 * LIMIT
