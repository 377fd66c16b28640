"""Channel attention: gates that scale the channels of a branch."""

from __future__ import annotations

import math

import keras

from keras_residual.blocks.conv import convolution
from keras_residual.blocks.equation import activate
from keras_residual.blocks.rules import (
    Activation,
    Tensor,
    fresh_name,
    make_divisible,
    pooling,
    require_sizes,
    spatial_rank,
)


def squeeze_excite(
    x: Tensor,
    *,
    reduced: int | None = None,
    ratio: float = 1 / 16,
    divisor: int = 8,
    bias: bool = True,
    activation: Activation = "relu",
    gate: Activation = "sigmoid",
    names: tuple[str, str] = ("fc1", "fc2"),
    name: str | None = None,
) -> Tensor:
    """Scale each channel by a gate computed from all channels' means (Hu et al. 2018, squeeze-and-excitation).

    Args:
        x: A tensor `(N, *spatial, C)`.
        reduced: Channels between the two layers; defaults to `ratio * C`, rounded to a multiple of `divisor`.
        ratio: Channels between the layers as a fraction of C.
        divisor: Divisor of the rounded number of channels.
        bias: If true, the layers have biases.
        activation: Activation between the layers; `None` for linear.
        gate: Activation of the gate.
        names: Names of the two layers, appended to the prefix.
        name: Prefix of the layers' names.

    Returns:
        A tensor of the same shape as `x`.
    """
    name = fresh_name(name, "se")
    if reduced is None:
        require_sizes(name, divisor=divisor)
        reduced = make_divisible(x.shape[-1] * ratio, divisor, limit=0)
    first, second = (f"{name}.{layer}" for layer in names)
    y = pooling("GlobalAverage", spatial_rank(x, name))(keepdims=True, name=f"{name}.pool")(x)
    y = activate(convolution(y, reduced, 1, bias=bias, name=first), activation, name=f"{name}.act")
    y = activate(convolution(y, x.shape[-1], 1, bias=bias, name=second), gate, name=f"{name}.gate")
    return keras.layers.Multiply(name=f"{name}.scale")([x, y])


def efficient_channel_attention(x: Tensor, *, name: str | None = None) -> Tensor:
    """Scale each channel by a gate from a 1-D convolution across the channels' means (Wang et al. 2020, ECA)."""
    name, rank, channels = fresh_name(name, "eca"), spatial_rank(x, "eca"), x.shape[-1]
    size = int(abs(math.log2(channels) + 1) / 2)
    gate = pooling("GlobalAverage", rank)(name=f"{name}.pool")(x)
    gate = keras.layers.Reshape((channels, 1), name=f"{name}.channels")(gate)
    gate = convolution(gate, 1, max(size if size % 2 else size + 1, 3), bias=False, name=f"{name}.conv")
    gate = activate(gate, "sigmoid", name=f"{name}.gate")
    gate = keras.layers.Reshape((1,) * rank + (channels,), name=f"{name}.broadcast")(gate)
    return keras.layers.Multiply(name=f"{name}.scale")([x, gate])
