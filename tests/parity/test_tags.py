"""Any of timm's tags in these families: a repository of it, as the Hub's cache lays it out, loads offline."""

import json
import os
import random
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch

import keras_residual as kr
from keras_residual import models, registry
from keras_residual.weights import Weights
from keras_residual.weights.published import published

from . import reference

TAGS = [tag for tag in timm.list_pretrained() if registry.resolve(tag.partition(".")[0])]
SMALL = [tag for tag in TAGS if models.find(tag.partition(".")[0]).config.params < 25e6]
# KR_TAGS=50 takes fifty, KR_SEED=3 others.
SOME = random.Random(int(os.environ.get("KR_SEED", "0"))).sample(SMALL, int(os.environ.get("KR_TAGS", "10")))


def config(model, folder):
    """What timm would push, by timm's own code."""
    timm.models._hub.save_config_for_hf(model, folder / "config.json")
    return json.loads((folder / "config.json").read_text())


def test_count():
    assert len(TAGS) >= 590
    assert set(published()) == set(timm.list_pretrained()), "python -m tests.parity.published"


@pytest.mark.parametrize("tag", SOME)
def test_a_tag_that_nobody_tested_by_hand(tag, hub, tmp_path):
    twin = reference.randomise(timm.create_model(tag, pretrained=False))
    with torch.no_grad():  # see the families' own tests: embeddings whose variance is not far above the epsilon
        for name, value in twin.named_parameters():
            if name.startswith("patch_embed.proj") or name.rpartition(".")[2] in (
                "cls_token",
                "reg_token",
                "pos_embed",
            ):
                value.mul_(0.05)
    described = config(twin, tmp_path)
    hub(
        f"timm/{tag}",
        {"config.json": described, "model.safetensors": {k: v.numpy() for k, v in twin.state_dict().items()}},
    )
    model = kr.from_pretrained(f"timm/{tag}")
    given = twin.pretrained_cfg
    x = reference.images(given["input_size"][1:], given["input_size"][0], batch=1)
    with torch.no_grad():
        logits = twin(reference.to_torch(x)).numpy()
    assert model.output_shape == (None, *logits.shape[1:])
    assert reference.distance(np.asarray(model(x, training=False)), logits) < 1e-5


def test_record_of_every_tag(tmp_path):
    """The record of every tag, from a `config.json` that timm's own code wrote: what is not the row's is read right."""
    for tag in TAGS:
        given = timm.get_pretrained_cfg(tag)
        twin = SimpleNamespace(pretrained_cfg=given.to_dict(), num_classes=given.num_classes, num_features=0)
        config(twin, tmp_path)
        record, expected = Weights.read(tmp_path), timm.data.resolve_data_config(pretrained_cfg=given.to_dict())
        assert record.classes == given.num_classes, tag
        assert record.input_size == (*given.input_size[1:], given.input_size[0]), tag
        for name in ("mean", "std", "interpolation", "crop_mode"):
            assert getattr(record, name) == expected[name], (tag, name)
        assert record.crop == expected["crop_pct"], tag
        assert record.top1 == published()[tag].top1, tag
        assert {name for name, _ in record.arguments} <= {"num_classes"}, tag
