"""Blocks of convolutional networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras

from keras_residual.blocks.conv import batch_norm, conv_norm, convolution, depthwise, layer_norm
from keras_residual.blocks.equation import activate, residual
from keras_residual.blocks.rules import (
    Activation,
    Attention,
    Downsample,
    Norm,
    PreactShortcut,
    Shortcut,
    Tensor,
    fresh_name,
    layer_scale,
    require_function,
    require_rate,
    require_sizes,
    require_tensor,
)
from keras_residual.blocks.shortcuts import projection
from keras_residual.blocks.transformer_blocks import mlp


def basic(
    x: Tensor,
    filters: int,
    *,
    stride: int = 1,
    shortcut: Shortcut = projection,
    attention: Attention | None = None,
    downsample: Downsample | None = None,
    norm: Norm = batch_norm,
    activation: Activation = "relu",
    drop_path: float = 0.0,
    zero_init: bool = True,
    name: str | None = None,
) -> Tensor:
    """Apply two 3x3 convolutions and a shortcut (He et al. 2016, figure 5 left).

    Maps `(N, *spatial, C)` to `(N, *ceil(spatial / stride), filters)`. Arguments as in `bottleneck`.
    """
    name = fresh_name(name, "basic")
    y = _basic_branch(x, filters, stride, downsample, norm, activation, zero_init, name)
    y = _attended(y, attention, name)
    h = _shortcut(x, filters, stride, shortcut, norm, name)
    return residual(h, y, drop_path=drop_path, activation=activation, name=name)


def plain_basic(
    x: Tensor,
    filters: int,
    *,
    stride: int = 1,
    norm: Norm = batch_norm,
    activation: Activation = "relu",
    name: str | None = None,
    **residual_only: Any,
) -> Tensor:
    """Apply a `basic` block without skip connection, for the plain networks that He et al. 2016 compare with.

    Options of residual blocks (`shortcut`, `drop_path`, `zero_init`) are accepted and ignored.
    """
    name = fresh_name(name, "plain")
    y = _basic_branch(x, filters, stride, None, norm, activation, False, name)
    return activate(y, activation, name=f"{name}.act")


def _attended(y: Tensor, attention: Attention | None, name: str) -> Tensor:
    if attention is None:
        return y
    require_function(attention, "attention", name)
    return attention(y, name=f"{name}.se")


def _basic_branch(
    x: Tensor,
    filters: int,
    stride: int,
    downsample: Downsample | None,
    norm: Norm,
    activation: Activation,
    zero_init: bool,
    name: str,
) -> Tensor:
    step = 1 if downsample else stride
    y = conv_norm(
        x, filters, 3, stride=step, norm=norm, activation=activation, name=name, names=("conv1", "bn1", "act1")
    )
    if downsample and stride > 1:
        y = downsample(y, stride, name=f"{name}.aa")
    return conv_norm(y, filters, 3, norm=norm, zero_init=zero_init, name=name, names=("conv2", "bn2", ""))


def bottleneck(
    x: Tensor,
    filters: int,
    *,
    stride: int = 1,
    width: int | None = None,
    groups: int = 1,
    reduce_first: int = 1,
    stride_in: str = "3x3",
    shortcut: Shortcut = projection,
    attention: Attention | None = None,
    downsample: Downsample | None = None,
    norm: Norm = batch_norm,
    activation: Activation = "relu",
    drop_path: float = 0.0,
    zero_init: bool = True,
    name: str | None = None,
) -> Tensor:
    """Apply 1x1, 3x3 and 1x1 convolutions and a shortcut (He et al. 2016, figure 5 right).

    Maps `(N, *spatial, C)` to `(N, *ceil(spatial / stride), filters)`.

    Args:
        x: The block's input.
        filters: Output channels.
        stride: Stride of the block.
        width: Channels of the 3x3 convolution; defaults to `filters // 4`.
        groups: Groups of the 3x3 convolution (ResNeXt).
        reduce_first: Divisor of the first convolution's channels (SENet-154).
        stride_in: Convolution that has the stride: `"3x3"` (v1.5) or `"1x1"` (the first one, as in the paper).
        shortcut: Shortcut if the block changes the shape.
        attention: Channel attention at the end of the branch.
        downsample: Anti-aliased subsampling that replaces the stride of the 3x3 convolution.
        norm: Normalisation after each convolution.
        activation: Activation after each normalisation except the last, and after the addition.
        drop_path: Stochastic-depth rate.
        zero_init: If true, initialize the scale of the last normalisation to 0.
        name: Prefix of the layers' names.
    """
    if stride_in not in ("3x3", "1x1"):
        raise ValueError(f"`stride_in` must be '3x3' (v1.5) or '1x1' (the original v1); got {stride_in!r}.")
    name = fresh_name(name, "bottleneck")
    require_sizes(name, filters=filters, stride=stride)
    width = width or filters // 4
    use = partial(conv_norm, norm=norm, name=name)
    first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
    y = use(x, width // reduce_first, 1, stride=first, activation=activation, names=("conv1", "bn1", "act1"))
    y = use(
        y,
        width,
        3,
        stride=1 if downsample else second,
        groups=groups,
        activation=activation,
        names=("conv2", "bn2", "act2"),
    )
    if downsample and second > 1:
        y = downsample(y, second, name=f"{name}.aa")
    y = use(y, filters, 1, zero_init=zero_init, names=("conv3", "bn3", ""))
    y = _attended(y, attention, name)
    h = _shortcut(x, filters, stride, shortcut, norm, name)
    return residual(h, y, drop_path=drop_path, activation=activation, name=name)


def _shortcut(x: Tensor, filters: int, stride: int, project: Shortcut, norm: Norm, name: str) -> Tensor:
    if stride == 1 and x.shape[-1] == filters:
        return x
    require_function(project, "shortcut", name)
    return project(x, filters, stride=stride, norm=norm, name=f"{name}.downsample")


def preact_basic(
    x: Tensor,
    filters: int,
    *,
    stride: int = 1,
    shortcut: PreactShortcut | None = None,
    conv: Callable[..., Tensor] = convolution,
    norm: Norm = batch_norm,
    activation: Activation = "relu",
    dropout: float = 0.0,
    drop_path: float = 0.0,
    name: str | None = None,
    norms: str = "bn",
) -> Tensor:
    """Apply a pre-activation block: twice norm, activation and 3x3 convolution (He et al. 2016b, figure 1b).

    The shortcut is the identity. If the shape changes, it is a projection of the output of the first norm and
    activation, as in the paper: `shortcut`, by default a 1x1 convolution. `dropout` is applied between the
    convolutions, as in Wide ResNets (Zagoruyko & Komodakis 2016). `conv` creates the convolutions, with the arguments
    of `convolution`. `norms` is the prefix of the names of the norms.
    """
    name = fresh_name(name, "preact")
    require_rate(dropout, "dropout")
    y, h = _preact(x, filters, stride, shortcut, conv, norm, activation, name, norms)
    y = conv(y, filters, 3, stride=stride, bias=False, name=f"{name}.conv1")
    y = activate(norm(y, name=f"{name}.{norms}2"), activation, name=f"{name}.act2")
    y = keras.layers.Dropout(dropout, name=f"{name}.dropout")(y)
    y = conv(y, filters, 3, bias=False, name=f"{name}.conv2")
    return residual(h, y, drop_path=drop_path, name=name)


def preact_bottleneck(
    x: Tensor,
    filters: int,
    *,
    stride: int = 1,
    shortcut: PreactShortcut | None = None,
    conv: Callable[..., Tensor] = convolution,
    norm: Norm = batch_norm,
    activation: Activation = "relu",
    drop_path: float = 0.0,
    name: str | None = None,
    norms: str = "bn",
) -> Tensor:
    """Apply a pre-activation bottleneck of 1x1, 3x3 and 1x1 convolutions (He et al. 2016b); see `preact_basic`."""
    name = fresh_name(name, "preact")
    require_sizes(name, filters=filters, stride=stride)
    width = filters // 4
    y, h = _preact(x, filters, stride, shortcut, conv, norm, activation, name, norms)
    y = conv(y, width, 1, bias=False, name=f"{name}.conv1")
    y = activate(norm(y, name=f"{name}.{norms}2"), activation, name=f"{name}.act2")
    y = conv(y, width, 3, stride=stride, bias=False, name=f"{name}.conv2")
    y = activate(norm(y, name=f"{name}.{norms}3"), activation, name=f"{name}.act3")
    y = conv(y, filters, 1, bias=False, name=f"{name}.conv3")
    return residual(h, y, drop_path=drop_path, name=name)


def _preact(
    x: Tensor,
    filters: int,
    stride: int,
    shortcut: PreactShortcut | None,
    conv: Callable[..., Tensor],
    norm: Norm,
    activation: Activation,
    name: str,
    norms: str,
) -> tuple[Tensor, Tensor]:
    require_tensor(x, "x", name)
    require_function(norm, "norm", name)
    y = activate(norm(x, name=f"{name}.{norms}1"), activation, name=f"{name}.act1")
    if stride == 1 and x.shape[-1] == filters:
        return y, x
    if shortcut is not None:
        require_function(shortcut, "shortcut", name)
        return y, shortcut(y, filters, stride=stride, conv=conv, name=f"{name}.downsample")
    return y, conv(y, filters, 1, stride=stride, bias=False, name=f"{name}.downsample")


def convnext(
    x: Tensor,
    *,
    kernel: int = 7,
    hidden: int | None = None,
    feed_forward: Callable[..., Tensor] | None = None,
    norm: Norm = layer_norm,
    activation: Activation = "gelu",
    scale: float | None = 1e-6,
    drop_path: float = 0.0,
    name: str | None = None,
) -> Tensor:
    """Apply a ConvNeXt block, `x + drop_path(scale * mlp(norm(depthwise(x))))` (Liu et al. 2022, figure 4).

    The output has the shape of the input, `(N, *spatial, C)`.

    Args:
        x: The block's input.
        kernel: Size of the depthwise convolution.
        hidden: Hidden channels of the MLP; defaults to four times C.
        feed_forward: `mlp`, the default, or `mlp` with options, such as ConvNeXt V2's
            `partial(mlp, response_norm=True)`.
        norm: Normalisation before the MLP.
        activation: Activation of the MLP.
        scale: Initial value of LayerScale; `None` for no LayerScale.
        drop_path: Stochastic-depth rate.
        name: Prefix of the layers' names.
    """
    name = fresh_name(name, "convnext")
    require_function(norm, "norm", name)
    y = norm(depthwise(x, kernel, padding="same", name=f"{name}.conv_dw"), name=f"{name}.norm")
    y = (feed_forward or mlp)(y, hidden or 4 * x.shape[-1], activation=activation, name=f"{name}.mlp")
    return residual(x, y, scale=layer_scale(scale, name), drop_path=drop_path, name=name)
