"""The blocks of mobile networks: depthwise convolutions between pointwise ones, as in MobileNet and EfficientNet."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

from keras_residual.blocks.conv import batch_norm, conv_norm
from keras_residual.blocks.equation import residual
from keras_residual.blocks.padding import Kernel, Padding
from keras_residual.blocks.rules import (
    Activation,
    Downsample,
    Norm,
    Tensor,
    fresh_name,
    make_divisible,
    require_function,
    require_sizes,
)


class SqueezeExcite(Protocol):
    """Channel attention within a block whose input has that many channels: `se(x, channels, name=...)`."""

    def __call__(self, x: Tensor, channels: int, *, name: str) -> Tensor: ...


def depthwise_separable(
    x: Tensor,
    filters: int,
    *,
    kernel: Kernel = 3,
    stride: int = 1,
    group_size: int = 1,
    se: SqueezeExcite | None = None,
    downsample: Downsample | None = None,
    norm: Norm = batch_norm,
    activation: Activation = "relu",
    pointwise_activation: bool = False,
    skip: bool = True,
    padding: Padding = None,
    drop_path: float = 0.0,
    name: str | None = None,
) -> Tensor:
    """Depthwise convolution, then a pointwise one (Howard et al. 2017, MobileNet): `(N, *spatial, C)` -> `(N, *spatial,
    filters)`.

    timm: `DepthwiseSeparableConv`. Arguments as in `inverted_residual`; `pointwise_activation` activates the output, as
    in MobileNet itself, whose blocks have no skip.
    """
    name = fresh_name(name, "depthwise_separable")
    use, step = _options(x, filters, stride, se, downsample, norm, padding, name)
    channels, groups = x.shape[-1], _groups(x.shape[-1], group_size, name)
    names = ("conv_dw", "bn1", "act1")
    y = use(x, channels, kernel, stride=step, groups=groups, activation=activation, names=names)
    y = _between(y, x.shape[-1], stride, se, downsample, name)
    final = activation if pointwise_activation else None
    y = use(y, filters, 1, activation=final, names=("conv_pw", "bn2", "act2"))
    return _added(x, y, stride, skip, drop_path, name)


def inverted_residual(
    x: Tensor,
    filters: int,
    *,
    kernel: Kernel = 3,
    stride: int = 1,
    expansion: float = 6.0,
    group_size: int = 1,
    se: SqueezeExcite | None = None,
    downsample: Downsample | None = None,
    norm: Norm = batch_norm,
    activation: Activation = "relu",
    skip: bool = True,
    padding: Padding = None,
    drop_path: float = 0.0,
    name: str | None = None,
) -> Tensor:
    """Expand, convolve depthwise, project (Sandler et al. 2018, MobileNetV2): `(N, *spatial, C)` -> `(N, *spatial,
    filters)`.

    timm: `InvertedResidual`; EfficientNet's MBConv. Nothing is activated after the projection and the addition.

    Args:
        x: The block's input.
        filters: Output channels.
        kernel: Size of the depthwise convolution.
        stride: Step of the depthwise convolution.
        expansion: The inner channels are this multiple of the input's, rounded by `make_divisible`.
        group_size: Channels of each group of the convolution in the middle; 1 is depthwise.
        se: Channel attention after the depthwise convolution; it also gets the number of the block's input channels,
            of which EfficientNet's width is a share. `None` for none.
        downsample: Anti-aliased subsampling in place of the stride.
        norm: Normalisation after each convolution.
        activation: After each normalisation but the last.
        skip: Whether to add the input where neither size nor channels change.
        padding: Of every convolution, as in `convolution`.
        drop_path: Stochastic-depth rate.
        name: Prefix of the layers' names.
    """
    name = fresh_name(name, "inverted_residual")
    use, step = _options(x, filters, stride, se, downsample, norm, padding, name)
    hidden = make_divisible(x.shape[-1] * expansion)
    groups = _groups(hidden, group_size, name)
    y = use(x, hidden, 1, activation=activation, names=("conv_pw", "bn1", "act1"))
    names = ("conv_dw", "bn2", "act2")
    y = use(y, hidden, kernel, stride=step, groups=groups, activation=activation, names=names)
    y = _between(y, x.shape[-1], stride, se, downsample, name)
    y = use(y, filters, 1, names=("conv_pwl", "bn3", ""))
    return _added(x, y, stride, skip, drop_path, name)


def edge_residual(
    x: Tensor,
    filters: int,
    *,
    kernel: Kernel = 3,
    stride: int = 1,
    expansion: float = 4.0,
    expanded_from: int | None = None,
    se: SqueezeExcite | None = None,
    downsample: Downsample | None = None,
    norm: Norm = batch_norm,
    activation: Activation = "relu",
    skip: bool = True,
    padding: Padding = None,
    drop_path: float = 0.0,
    name: str | None = None,
) -> Tensor:
    """Expand by a full convolution, then project (Tan & Le 2021, Fused-MBConv): `(N, *spatial, C)` -> `(N, *spatial,
    filters)`.

    timm: `EdgeResidual`. Arguments as in `inverted_residual`; `expanded_from` stands in for the input's channels, which
    `expansion` multiplies, in EfficientNet-EdgeTPU.
    """
    name = fresh_name(name, "edge_residual")
    use, step = _options(x, filters, stride, se, downsample, norm, padding, name)
    hidden = make_divisible((expanded_from or x.shape[-1]) * expansion)
    y = use(x, hidden, kernel, stride=step, activation=activation, names=("conv_exp", "bn1", "act1"))
    y = _between(y, x.shape[-1], stride, se, downsample, name)
    y = use(y, filters, 1, names=("conv_pwl", "bn2", ""))
    return _added(x, y, stride, skip, drop_path, name)


def _options(
    x: Tensor,
    filters: int,
    stride: int,
    se: SqueezeExcite | None,
    downsample: Downsample | None,
    norm: Norm,
    padding: Padding,
    name: str,
) -> tuple[Any, int]:
    """Return `conv_norm` with what all its calls have in common, and the step of the convolution that strides."""
    require_sizes(name, filters=filters, stride=stride)
    require_function(norm, "norm", name)
    if se is not None:
        require_function(se, "se", name)
    return partial(conv_norm, norm=norm, padding=padding, name=name), 1 if downsample else stride


def _groups(channels: int, size: int, name: str) -> int:
    require_sizes(name, group_size=size)
    if channels % size:
        raise ValueError(
            f"{name}: group_size must divide the channels of the convolution in the middle. Received: {channels} "
            f"channels, group_size={size}."
        )
    return channels // size


def _between(
    y: Tensor, channels: int, stride: int, se: SqueezeExcite | None, downsample: Downsample | None, name: str
) -> Tensor:
    if downsample and stride > 1:
        y = downsample(y, stride, name=f"{name}.aa")
    return y if se is None else se(y, channels, name=f"{name}.se")


def _added(x: Tensor, y: Tensor, stride: int, skip: bool, drop_path: float, name: str) -> Tensor:
    if skip and stride == 1 and x.shape[-1] == y.shape[-1]:
        return residual(x, y, drop_path=drop_path, name=name)
    return y
