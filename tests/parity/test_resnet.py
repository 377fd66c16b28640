"""Every ResNet row against timm: the same topology, tiny, and the well-known ones at full size."""

import pytest
import timm
import torchvision

from keras_residual import models, registry
from keras_residual.costs import costs

from . import reference

ROWS = [e for e in registry.entries().values() if e.builder.__module__ == "keras_residual.models.resnet"]
STAGES = {level: f"layer{level}" for level in (1, 2, 3, 4)}
LIMIT = 1e-5
# timm's name: torchvision's
TORCHVISION = {
    **{name: name for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d")},
    **{name: name for name in ("resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2")},
    **{f"vit_{size}_patch{patch}_224": f"vit_{size[0]}_{patch}" for size in ("base", "large") for patch in (16, 32)},
    **{f"convnext_{size}": f"convnext_{size}" for size in ("tiny", "small", "base", "large")},
}
PUBLISHED = {  # the first weights of each are of the size the papers have
    ours: next(iter(torchvision.models.get_model_weights(theirs))).meta["_ops"] for ours, theirs in TORCHVISION.items()
}


@pytest.mark.parametrize("entry", [e for e in ROWS if e.config.timm], ids=lambda e: e.config.timm)
def test_tiny_twin(entry, report):
    row = entry.config.tiny()
    changed = {"cardinality": row.groups, "base_width": row.base_width} if row.groups > 1 else {}
    twin = timm.create_model(row.timm, layers=row.depths, channels=row.widths, num_classes=10, **changed)
    model = entry.build(row, classifier_activation=None, classes=10)
    errors = reference.compare(reference.randomise(twin), model, STAGES, size=(64, 64))
    report(entry.config.name, errors)
    assert max(errors.values()) < LIMIT, errors


@pytest.mark.parametrize("entry", [e for e in registry.entries().values() if e.config.timm in PUBLISHED])
def test_published_operations(entry):
    """torchvision states what it measured of its own networks."""
    stated = PUBLISHED[entry.config.timm]
    assert costs(entry.config.name).macs / 1e9 == pytest.approx(stated, rel=0.01)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "resnet50d", "seresnet50"])
def test_full_size(name):
    twin = timm.create_model(name)
    model = models.create(name, classifier_activation=None)
    assert model.count_params() == sum(v.numel() for k, v in twin.state_dict().items() if "num_batches" not in k)
    errors = reference.compare(reference.randomise(twin), model, STAGES, size=(224, 224))
    assert max(errors.values()) < LIMIT, errors
