"""Every ResNet row against timm: the same topology, tiny, and the well-known ones at full size."""

import pytest
import timm

from keras_residual import models, registry

from . import reference

ROWS = [e for e in registry.entries().values() if e.builder.__module__ == "keras_residual.models.resnet"]
STAGES = {level: f"layer{level}" for level in (1, 2, 3, 4)}
LIMIT = 1e-5


@pytest.mark.parametrize("entry", [e for e in ROWS if e.config.timm], ids=lambda e: e.config.timm)
def test_tiny_twin(entry):
    row = entry.config.tiny()
    changed = {"cardinality": row.groups, "base_width": row.base_width} if row.groups > 1 else {}
    twin = timm.create_model(row.timm, layers=row.depths, channels=row.widths, num_classes=10, **changed)
    model = entry.family(row, classifier_activation=None, classes=10)
    errors = reference.compare(reference.randomise(twin), model, STAGES, size=(64, 64))
    assert max(errors.values()) < LIMIT, errors


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "resnet50d", "seresnet50"])
def test_full_size(name):
    twin = timm.create_model(name)
    model = models.create(name, classifier_activation=None)
    assert model.count_params() == sum(v.numel() for k, v in twin.state_dict().items() if "num_batches" not in k)
    errors = reference.compare(reference.randomise(twin), model, STAGES, size=(224, 224))
    assert max(errors.values()) < LIMIT, errors
