"""The suite can fail: small, common mistakes, each made on purpose, each far beyond the limit."""

import keras
import pytest
import timm

import keras_residual as kr
from keras_residual import blocks, layers
from keras_residual.blocks import conv, conv_blocks

from . import reference
from .test_resnet import LIMIT, STAGES


def asymmetric_padding(monkeypatch):
    def convolution(x, filters, kernel, *, stride=1, groups=1, dilation=1, bias=True, padding=None, name):
        return keras.layers.Conv2D(filters, kernel, strides=stride, padding="same", use_bias=bias, name=name)(x)

    monkeypatch.setattr(conv, "convolution", convolution)


def keras_epsilon(monkeypatch):
    monkeypatch.setattr(
        blocks, "batch_norm", lambda x, *, name, zero_init=False: layers.BatchNorm(epsilon=1e-3, name=name)(x)
    )
    return {"norm": blocks.batch_norm}


def stride_on_the_first_convolution(monkeypatch):
    return {"stride_in": "1x1"}


def other_activation(monkeypatch):
    return {"activation": "relu6"}


def shared_padding_in_the_pool(monkeypatch):
    monkeypatch.setattr(
        blocks, "max_pool", lambda x, size=3, stride=2, *, name: keras.layers.MaxPooling2D(3, 2, "same", name=name)(x)
    )


def no_activation_after_the_addition(monkeypatch):
    original = blocks.residual
    monkeypatch.setattr(conv_blocks, "residual", lambda *a, **k: original(*a, **{**k, "activation": None}))


MUTATIONS = [
    asymmetric_padding,
    keras_epsilon,
    stride_on_the_first_convolution,
    other_activation,
    shared_padding_in_the_pool,
    no_activation_after_the_addition,
]


@pytest.mark.parametrize("mutation", [None, *MUTATIONS], ids=lambda m: m.__name__ if m else "none")
def test_mutation_is_seen(mutation, monkeypatch):
    row = kr.models.find("resnet50").config.tiny()
    twin = reference.randomise(timm.create_model("resnet50", layers=row.depths, channels=row.widths, num_classes=10))
    options = (mutation(monkeypatch) if mutation else None) or {}
    model = kr.models.find("resnet50").build(row, classes=10, classifier_activation=None, **options)
    error = max(reference.compare(twin, model, STAGES, size=(64, 64)).values())
    assert error > 100 * LIMIT if mutation else error < LIMIT
