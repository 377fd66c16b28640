"""Every row of the MLP-Mixer family against timm: the same topology tiny, all weights of the full network."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
import timm
import torch
from timm.models.mlp_mixer import checkpoint_filter_fn

import keras_residual as kr
from keras_residual import blocks, layers, models, registry
from keras_residual.models import mlp_mixer

from . import reference

ROWS = [e for e in registry.entries().values() if e.builder.__module__ == "keras_residual.models.mlp_mixer"]
STAGES = {level: f"blocks.{level - 1}" for level in (1, 2, 3, 4)}
LIMIT = 1e-5


def tiny(row):
    """timm's network of the row's kind, with the tiny row's sizes: its own functions take none."""
    whole = timm.models.mlp_mixer._create_mixer
    sizes = {"num_blocks": row.depth, "embed_dim": row.width, "img_size": row.input_shape[0], "num_classes": 10}

    def create(variant, pretrained=False, **options):
        return whole(variant, pretrained, **{**options, **sizes})

    with mock.patch("timm.models.mlp_mixer._create_mixer", create):
        return timm.create_model(row.timm)


def randomise(twin):
    """Random weights, faint before each norm: an epsilon shows only next to small variances."""
    reference.randomise(twin)
    with torch.no_grad():
        for name, value in twin.named_parameters():
            before_gate = ".fc1." in name and hasattr(twin.blocks[0], "norm")  # of gMLP, whose gate has a norm
            if name.startswith("stem.proj") or before_gate:
                value.mul_(0.05)
    return twin


def compare(row, model):
    return reference.compare(randomise(tiny(row)), model, STAGES, size=row.input_shape[:2])


def build(entry, row=None, **options):
    return entry.build(row or entry.config.tiny(), classifier_activation=None, classes=10, **options)


@pytest.mark.parametrize("entry", ROWS, ids=lambda e: e.config.timm)
def test_tiny_twin(entry, report):
    errors = compare(entry.config.tiny(), build(entry))
    report(entry.config.name, errors)
    assert max(errors.values()) < LIMIT, errors


@pytest.mark.parametrize("entry", ROWS, ids=lambda e: e.config.timm)
def test_full_network(entry):
    reference.check_full_network(entry)


@pytest.mark.parametrize("name", ["resmlp_12_224", "resmlp_24_224", "resmlp_36_224", "resmlp_big_24_224"])
def test_scales_start_as_in_timm(name):
    row = models.find(name).config
    with torch.device("cpu"):
        twin = tiny(row.tiny())
    assert twin.blocks[0].ls1[0].item() == pytest.approx(row.scale)


def test_names_of_meta():
    """A ResMLP in Meta's names gives what timm's own filter makes of it."""
    entry = models.find("resmlp_12_224")
    twin = randomise(tiny(entry.config.tiny()))
    theirs = {}
    for key, value in twin.state_dict().items():
        key = key.replace("stem.", "patch_embed.").replace("linear_tokens.", "attn.").replace("mlp_channels.", "mlp.")
        key = key.replace(".ls", ".gamma_")
        theirs[key] = value.reshape(-1) if key.endswith((".alpha", ".beta")) else value
    expected = checkpoint_filter_fn(theirs, twin)
    assert {k: v.shape for k, v in expected.items()} == {k: v.shape for k, v in twin.state_dict().items()}
    model = build(entry)
    kr.load_weights(model, {key: value.numpy() for key, value in theirs.items()})
    for slot in kr.weights.slots(model):
        np.testing.assert_array_equal(slot.to_torch(np.asarray(slot.variable)), expected[slot.key].numpy())


# ------------------------------------------------------------------------------- the suite can fail: made on purpose


def gate_by_the_other_half(monkeypatch):
    return {"feed_forward": blocks.swiglu}


def norm_with_epsilon_of_vit(monkeypatch):
    monkeypatch.setattr(mlp_mixer, "layer_norm", lambda x, *, name, epsilon=0: blocks.layer_norm(x, name=name))
    return {}


def no_shift(monkeypatch):
    monkeypatch.setattr(layers.Affine, "call", lambda self, x: x * self.gamma)
    return {}


MUTATIONS = [
    ("gmixer_24_224", gate_by_the_other_half),
    ("gmlp_s16_224", norm_with_epsilon_of_vit),
    ("resmlp_24_224", no_shift),
]


@pytest.mark.parametrize(("name", "mutation"), MUTATIONS, ids=lambda m: m if isinstance(m, str) else m.__name__)
def test_mutation_is_seen(name, mutation, monkeypatch):
    entry = models.find(name)
    row = entry.config.tiny()
    model = build(entry, dataclasses.replace(row, **mutation(monkeypatch)))
    assert max(compare(row, model).values()) > 10 * LIMIT
