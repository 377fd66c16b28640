"""Every ConvNeXt row against timm: its numbers, the same topology tiny, and one at full size."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import timm
import torch

import keras_residual as kr
from keras_residual import blocks, layers, models, registry

from . import reference

ROWS = [e for e in registry.entries().values() if e.builder.__module__ == "keras_residual.models.convnext"]
STAGES = {level: f"stages.{level - 1}" for level in (1, 2, 3, 4)}
LIMIT = 1e-5


def tiny(row):
    """timm's network of the tiny row."""
    head = {"head_hidden_size": row.hidden} if row.hidden else {}
    return timm.create_model(row.timm, depths=row.depths, dims=row.widths, num_classes=10, **head)


def randomise(twin):
    """Random weights, with faint convolutions before the norms: beside variances of 1, an epsilon is nothing."""
    reference.randomise(twin)
    with torch.no_grad():
        for name, value in twin.named_parameters():
            if "conv_dw" in name or name.startswith("stem.0"):
                value.mul_(0.05)
    return twin


def compare(row, model):
    return reference.compare(randomise(tiny(row)), model, STAGES, size=(64, 64))


def build(entry, row=None, **options):
    return entry.build(row or entry.config.tiny(), classifier_activation=None, classes=10, **options)


@pytest.mark.parametrize("entry", ROWS, ids=lambda e: e.config.timm)
def test_tiny_twin(entry, report):
    errors = compare(entry.config.tiny(), build(entry))
    report(entry.config.name, errors)
    assert max(errors.values()) < LIMIT, errors


@pytest.mark.parametrize("entry", ROWS, ids=lambda e: e.config.timm)
def test_numbers_of_the_row(entry):
    """What the tiny twin replaces, as the full network has it."""
    row = entry.config
    with torch.device("meta"):
        full = timm.create_model(row.timm, num_classes=row.classes)
    hidden = getattr(full.head, "hidden_size", None)
    theirs = {
        "depths": tuple(len(stage.blocks) for stage in full.stages),
        "widths": tuple(stage["num_chs"] for stage in full.feature_info),
        "kernels": tuple(stage.blocks[0].conv_dw.kernel_size[0] for stage in full.stages),
        "hidden": hidden or 0,
        "params": sum(value.numel() for value in full.parameters()),
    }
    assert theirs == {name: getattr(row, name) for name in theirs}
    name = f"{row.timm}.{row.tag}" if row.tag else row.timm
    assert timm.get_pretrained_cfg(name).input_size[1:] == row.input_shape[:2]


def test_full_size():
    twin = timm.create_model("convnext_tiny")
    model = models.create("convnext_tiny", classifier_activation=None)
    assert model.count_params() == sum(v.numel() for v in twin.state_dict().values())
    errors = reference.compare(randomise(twin), model, STAGES, size=(224, 224))
    assert max(errors.values()) < LIMIT, errors


def test_odd_size():
    """What is beyond the last whole patch is cut off, in the stem and before each stage."""
    entry = models.find("convnext_tiny")
    row = dataclasses.replace(entry.config.tiny(), input_shape=(75, 109, 3))
    errors = reference.compare(randomise(tiny(row)), build(entry, row), STAGES, size=(75, 109))
    assert max(errors.values()) < LIMIT, errors


def test_facebook_names():
    """Meta's checkpoints: the names that timm's own filter renames, axes as in Meta's code."""
    filtered = timm.models.convnext.checkpoint_filter_fn
    for name in ("convnext_tiny", "convnextv2_atto"):
        entry = models.find(name)
        twin = randomise(tiny(entry.config.tiny()))
        state, theirs = {k: v.numpy() for k, v in twin.state_dict().items()}, {}
        for key, value in state.items():
            kind = key.replace("mlp.grn.weight", "grn.gamma").replace("mlp.grn.bias", "grn.beta")
            kind = kind.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv").replace(".blocks.", ".")
            kind = kind.replace("head.fc.", "head.").replace("head.norm.", "norm.")
            if ".downsample." in kind:
                kind = "downsample_layers." + kind.removeprefix("stages.").replace(".downsample.", ".")
            kind = kind.replace("stem.", "downsample_layers.0.")
            if ".grn." in kind:
                value = value.reshape(1, 1, 1, -1)
            elif ".pwconv" in kind and kind.endswith("weight"):
                value = value.reshape(value.shape[:2])
            theirs[kind] = value
        again = filtered({k: torch.from_numpy(v) for k, v in theirs.items()}, twin)
        assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in twin.state_dict().items()}
        model = build(entry)
        kr.load_weights(model, theirs)
        for slot in kr.weights.slots(model):
            np.testing.assert_array_equal(slot.to_torch(np.asarray(slot.variable)), state[slot.key])


def test_open_clip_names():
    """An OpenCLIP image tower with one more layer before the projection."""
    entry = models.find("convnext_large_mlp")
    state = {k: v.numpy() for k, v in randomise(tiny(entry.config.tiny())).state_dict().items()}
    theirs = {f"visual.trunk.{k}": v for k, v in state.items() if not k.startswith(("head.fc", "head.pre_logits"))}
    theirs["visual.head.mlp.fc1.weight"] = state["head.pre_logits.fc.weight"]
    theirs["visual.head.mlp.fc1.bias"] = state["head.pre_logits.fc.bias"]
    theirs["visual.head.mlp.fc2.weight"] = state["head.fc.weight"]
    state["head.fc.bias"] = np.zeros(10)
    model = build(entry)
    kr.load_weights(model, theirs)
    for slot in kr.weights.slots(model):
        np.testing.assert_array_equal(slot.to_torch(np.asarray(slot.variable)), state[slot.key])


# ------------------------------------------------------------------------------- the suite can fail: made on purpose


def torch_epsilon(monkeypatch):
    return {"norm": functools.partial(blocks.layer_norm, epsilon=1e-5)}


def tanh_gelu(monkeypatch):
    return {"activation": "gelu_tanh"}


def no_layer_scale(monkeypatch):
    monkeypatch.setattr(layers.LayerScale, "call", lambda self, x: x)


def response_over_channels(monkeypatch):
    def call(self, x):
        norm = keras.ops.sqrt(keras.ops.sum(x * x, -1, keepdims=True))
        return x + self.gamma * x * norm / (keras.ops.mean(norm, (1, 2), keepdims=True) + self.epsilon) + self.beta

    monkeypatch.setattr(layers.GlobalResponseNorm, "call", call)


def response_without_the_input(monkeypatch):
    whole = layers.GlobalResponseNorm.call
    monkeypatch.setattr(layers.GlobalResponseNorm, "call", lambda self, x: whole(self, x) - x)


def asymmetric_stem(monkeypatch):
    def convolution(x, filters, kernel, *, stride, initializer, name):
        return keras.layers.Conv2D(filters, kernel, strides=stride, padding="same", name=name)(x)

    monkeypatch.setattr(blocks, "convolution", convolution)


def biased_variance(monkeypatch):
    def call(self, x):
        return x * keras.ops.rsqrt(keras.ops.var(x, -1, keepdims=True) + self.epsilon) * self.gamma

    monkeypatch.setattr(layers.SimpleNorm, "call", call)


MUTATIONS = [
    ("convnext_tiny", torch_epsilon),
    ("convnext_tiny", tanh_gelu),
    ("convnext_tiny", no_layer_scale),
    ("convnextv2_tiny", response_over_channels),
    ("convnextv2_tiny", response_without_the_input),
    ("convnext_atto_ols", asymmetric_stem),
    ("convnext_zepto_rms", biased_variance),
]


@pytest.mark.parametrize(("name", "mutation"), MUTATIONS, ids=lambda m: m if isinstance(m, str) else m.__name__)
def test_mutation_is_seen(name, mutation, monkeypatch):
    entry = models.find(name)
    model = build(entry, **(mutation(monkeypatch) or {}))
    error = max(compare(entry.config.tiny(), model).values())
    assert error > 10 * LIMIT
