"""Blocks of the convolutional families: widths, paddings and pooling that other libraries use."""

import functools

import keras
import numpy as np
import pytest

import keras_residual as kr
from keras_residual import blocks

from . import tools


def build(function, shape, seed=0):
    """The Functional model of `function` on inputs of `shape`, every variable filled."""
    inputs = keras.Input(shape)
    return tools.randomise(keras.Model(inputs, function(inputs)), seed)


# ------------------------------------------------------------------------------------------------ channels and gates


@pytest.mark.parametrize(
    ("channels", "divisor", "limit", "expected"),
    [
        (3, 8, 0.9, 8),  # never below the divisor
        (11.9, 8, 0.0, 8),
        (11.9, 8, 0.9, 16),  # 8 would be less than nine tenths
        (12, 8, 0.0, 16),  # halves round up
        (35.2, 8, 0.9, 32),  # EfficientNet-B2: 32 * 1.1
        (22.4, 8, 0.9, 24),  # 16 * 1.4
        (5.0, 1, 0.0, 5),
        (5.5, 1, 0.0, 6),
    ],
)
def test_make_divisible(channels, divisor, limit, expected):
    assert blocks.make_divisible(channels, divisor, limit=limit) == expected


def test_squeeze_excite_is_as_wide_as_asked():
    names = ("conv_reduce", "conv_expand")
    for options, width in (
        ({"reduced": 5}, 5),
        ({}, 8),
        ({"ratio": 1 / 4}, 24),  # a quarter of 80 is 20, rounded up to a multiple of 8
        ({"ratio": 1 / 4, "divisor": 1}, 20),
    ):
        model = build(functools.partial(blocks.squeeze_excite, name="se", names=names, **options), (4, 4, 80))
        assert model.get_layer("se.conv_reduce").filters == width
        assert model.get_layer("se.conv_expand").filters == 80


def test_squeeze_excite_gates():
    model = build(
        functools.partial(blocks.squeeze_excite, name="se", bias=False, activation="silu", gate="hard_sigmoid"),
        (3, 5, 16),
    )
    x = tools.noise((2, 3, 5, 16))
    first, second = (np.asarray(w)[0, 0] for w in model.get_weights())
    hidden = x.mean((1, 2)) @ first
    gate = np.clip((hidden / (1 + np.exp(-hidden))) @ second / 6 + 0.5, 0, 1)
    assert tools.distance(model(x), x * gate[:, None, None]) < 1e-5


def test_group_norm_takes_the_size_of_its_groups():
    model = build(functools.partial(blocks.group_norm, name="norm", group_size=4), (5, 5, 24))
    assert model.get_layer("norm").groups == 6
    with pytest.raises(ValueError, match=r"multiple.*24 channels, group_size=5"):
        build(functools.partial(blocks.group_norm, name="norm", group_size=5), (5, 5, 24))


def test_batch_norm_takes_an_epsilon():
    model = build(functools.partial(blocks.batch_norm, name="norm", epsilon=0.5), (4, 3))
    x = tools.noise((2, 4, 3))
    gamma, beta, mean, variance = model.get_weights()
    assert tools.distance(model(x), (x - mean) / np.sqrt(variance + 0.5) * gamma + beta) < 1e-5


def test_defaults_are_those_of_the_rows_that_exist():
    keys = {
        slot.key: slot.shape
        for slot in kr.weights.slots(build(functools.partial(blocks.squeeze_excite, name="se"), (4, 4, 256)))
    }
    assert keys == {
        "se.fc1.weight": (16, 256, 1, 1),
        "se.fc1.bias": (16,),
        "se.fc2.weight": (256, 16, 1, 1),
        "se.fc2.bias": (256,),
    }
