"""Every RegNet row against timm: its numbers, the same topology tiny; and torchvision's names."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import timm
import torch
import torchvision

import keras_residual as kr
from keras_residual import blocks, models, registry
from keras_residual.models import regnet

from . import reference

ROWS = [e for e in registry.entries().values() if e.builder.__module__ == "keras_residual.models.regnet"]
STAGES = {level: f"s{level}" for level in (1, 2, 3, 4)}
LIMIT = 1e-5


def tiny(row):
    """timm's network of the tiny row; what it does not say is what the full row has in timm."""
    sizes = {"depth": row.depth, "w0": row.initial, "wa": row.slope, "wm": row.step, "group_size": row.group_size}
    return timm.create_model(row.timm, **sizes, num_features=row.features, num_classes=10)


def compare(row, model):
    return reference.compare(reference.randomise(tiny(row)), model, STAGES, size=row.input_shape[:2])


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


@pytest.mark.parametrize("name", ["regnety_016", "regnetv_064"])
def test_odd_size(name):
    entry = models.find(name)
    row = dataclasses.replace(entry.config.tiny(), input_shape=(75, 109, 3))
    errors = compare(row, build(entry, row))
    assert max(errors.values()) < LIMIT, errors


def test_torchvision_names():
    """A checkpoint of torchvision's gives the logits of torchvision's own network."""
    twin = reference.randomise(torchvision.models.regnet_y_800mf(num_classes=10))
    model = models.create("regnety_008_tv", classes=10, classifier_activation=None, input_shape=(64, 64, 3))
    kr.load_weights(model, {key: value.numpy() for key, value in twin.state_dict().items()})
    x = reference.images((64, 64))
    with torch.no_grad():
        logits = twin(reference.to_torch(x)).numpy()
    assert reference.distance(np.asarray(model(x, training=False)), logits) < LIMIT


# ------------------------------------------------------------------------------- the suite can fail: made on purpose


def gate_by_hard_sigmoid(monkeypatch):
    monkeypatch.setattr(regnet, "squeeze_excite", functools.partial(regnet.squeeze_excite, gate="hard_sigmoid"))


def shortcut_before_the_norm(monkeypatch):
    whole = blocks.residual
    monkeypatch.setattr(blocks, "residual", lambda h, y, **rest: whole(keras.ops.sigmoid(h), y, **rest))


def relu_for_silu(monkeypatch):
    return {"activation": "relu"}


MUTATIONS = [
    ("regnety_008", gate_by_hard_sigmoid),
    ("regnetv_040", shortcut_before_the_norm),
    ("regnetz_040_h", relu_for_silu),
]


@pytest.mark.parametrize(("name", "mutation"), MUTATIONS, ids=lambda m: m if isinstance(m, str) else m.__name__)
def test_mutation_is_seen(name, mutation, monkeypatch):
    entry = models.find(name)
    model = build(entry, **(mutation(monkeypatch) or {}))
    assert max(compare(entry.config.tiny(), model).values()) > 10 * LIMIT
