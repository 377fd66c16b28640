"""Every Vision Transformer row against timm: the same topology, tiny, and one at full size."""

import numpy as np
import pytest
import timm
import torch

import keras_residual as kr
from keras_residual import models, registry

from . import reference

ROWS = [e for e in registry.entries().values() if e.builder.__module__ == "keras_residual.models.vit"]
LIMIT = 1e-5


def compare(twin, model, row):
    """Distances of logits and of the four levels, as `(N, h, w, C)` maps without class and register tokens."""
    kr.load_weights(model, {key: value.numpy() for key, value in twin.state_dict().items()})
    x = reference.images(row.input_shape[:2])
    at = [max(1, row.depth * level // 4) - 1 for level in (1, 2, 3, 4)]
    with torch.no_grad():
        maps = twin.forward_intermediates(reference.to_torch(x), indices=at, intermediates_only=True)
        logits = twin(reference.to_torch(x)).numpy()
    errors = {"logits": reference.distance(np.asarray(model(x, training=False)), logits)}
    for i, ours, theirs in zip(at, kr.features(model)(x, training=False), maps, strict=True):
        errors[f"blocks.{i}"] = reference.distance(np.asarray(ours), np.moveaxis(theirs.numpy(), 1, -1))
    return errors


@pytest.mark.parametrize("entry", ROWS, ids=lambda e: e.config.timm)
def test_tiny_twin(entry):
    row = entry.config.tiny()
    size = row.input_shape[0]
    twin = timm.create_model(
        row.timm,
        img_size=size,
        embed_dim=row.width,
        depth=row.depth,
        num_heads=row.heads,
        mlp_ratio=row.hidden / row.width,
        num_classes=10,
    )
    model = entry.family(row, classifier_activation=None, classes=10)
    errors = compare(reference.randomise(twin), model, row)
    assert max(errors.values()) < LIMIT, errors


def test_full_size():
    twin = timm.create_model("vit_tiny_patch16_224")
    model = models.create("vit_tiny_patch16_224", classifier_activation=None)
    assert model.count_params() == sum(v.numel() for v in twin.state_dict().values())
    errors = compare(reference.randomise(twin), model, models.find("ViTTiny16").config)
    assert max(errors.values()) < LIMIT, errors
