"""Gates that scale the channels of a branch."""

from __future__ import annotations

import math

import keras

from keras_residual.blocks.conv import convolution
from keras_residual.blocks.equation import activate
from keras_residual.blocks.rules import Tensor, fresh_name, pooling, spatial_rank


def squeeze_excite(x: Tensor, *, name: str | None = None, ratio: float = 1 / 16, bias: bool = True) -> Tensor:
    """Squeeze-and-excitation (Hu et al. 2018): each channel is scaled by a gate that sees all channels' means."""
    name = fresh_name(name, "se")
    reduced = max(8, int(x.shape[-1] * ratio + 4) // 8 * 8)  # a multiple of 8, as timm rounds
    gate = pooling("GlobalAverage", spatial_rank(x, name))(keepdims=True, name=f"{name}.pool")(x)
    gate = activate(convolution(gate, reduced, 1, bias=bias, name=f"{name}.fc1"), "relu", name=f"{name}.act")
    gate = activate(convolution(gate, x.shape[-1], 1, bias=bias, name=f"{name}.fc2"), "sigmoid", name=f"{name}.gate")
    return keras.layers.Multiply(name=f"{name}.scale")([x, gate])


def efficient_channel_attention(x: Tensor, *, name: str | None = None) -> Tensor:
    """ECA (Wang et al. 2020): gates from a short 1-D convolution across the channels' means."""
    name, rank, channels = fresh_name(name, "eca"), spatial_rank(x, "eca"), x.shape[-1]
    size = int(abs(math.log2(channels) + 1) / 2)
    gate = pooling("GlobalAverage", rank)(name=f"{name}.pool")(x)
    gate = keras.layers.Reshape((channels, 1), name=f"{name}.channels")(gate)
    gate = convolution(gate, 1, max(size if size % 2 else size + 1, 3), bias=False, name=f"{name}.conv")
    gate = activate(gate, "sigmoid", name=f"{name}.gate")
    gate = keras.layers.Reshape((1,) * rank + (channels,), name=f"{name}.broadcast")(gate)
    return keras.layers.Multiply(name=f"{name}.scale")([x, gate])
