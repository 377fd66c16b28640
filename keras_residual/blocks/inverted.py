"""Blocks of mobile networks, with depthwise and pointwise convolutions, as in MobileNet and EfficientNet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from keras_residual.blocks.conv import batch_norm, conv_norm
from keras_residual.blocks.equation import residual
from keras_residual.blocks.padding import Kernel, Padding
from keras_residual.blocks.rules import (
    Activation,
    Downsample,
    Norm,
    SqueezeExcite,
    Tensor,
    fresh_name,
    make_divisible,
    require_function,
    require_sizes,
)


def depthwise_separable(
    x: Tensor,
    filters: int,
    *,
    kernel: Kernel = 3,
    stride: int = 1,
    se: SqueezeExcite | None = None,
    norm: Norm = batch_norm,
    activation: Activation = "relu",
    pointwise_activation: bool = False,
    skip: bool = True,
    padding: Padding = None,
    drop_path: float = 0.0,
    name: str | None = None,
) -> Tensor:
    """Apply a depthwise and a pointwise convolution with a skip connection (Howard et al. 2017, MobileNet).

    Maps `(N, *spatial, C)` to `(N, *ceil(spatial / stride), filters)`. This is timm's `DepthwiseSeparableConv`.
    Arguments as in `inverted_residual`. With `pointwise_activation` the output is activated, as in the original
    MobileNet, whose blocks have no skip connections.
    """
    name = fresh_name(name, "depthwise_separable")
    use = _convolutions(filters, stride, se, norm, padding, name)
    channels, names = x.shape[-1], ("conv_dw", "bn1", "act1")
    y = use(x, channels, kernel, stride=stride, groups=channels, activation=activation, names=names)
    y = y if se is None else se(y, channels, name=f"{name}.se")
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
    hidden: int | None = None,
    se: SqueezeExcite | None = None,
    norm: Norm = batch_norm,
    activation: Activation = "relu",
    skip: bool = True,
    padding: Padding = None,
    drop_path: float = 0.0,
    name: str | None = None,
) -> Tensor:
    """Expand, convolve depthwise and project, with a skip connection (Sandler et al. 2018, MobileNetV2).

    Maps `(N, *spatial, C)` to `(N, *ceil(spatial / stride), filters)`. This is timm's `InvertedResidual` and
    EfficientNet's MBConv. No activation follows the projection or the addition.

    Args:
        x: The block's input.
        filters: Output channels.
        kernel: Size of the depthwise convolution.
        stride: Step of the depthwise convolution.
        expansion: Inner channels as a multiple of the input channels, rounded by `make_divisible`.
        hidden: Number of inner channels, as in pruned networks; `None` to use `expansion`.
        se: Channel attention after the depthwise convolution, or `None`. It also receives the number of the block's
            input channels, because EfficientNet's hidden width is a fraction of it.
        norm: Normalisation after each convolution.
        activation: Activation after each normalisation except the last.
        skip: If true, add the input if the block keeps its size and channels.
        padding: Padding of every convolution, as in `convolution`.
        drop_path: Stochastic-depth rate.
        name: Prefix of the layers' names.
    """
    name = fresh_name(name, "inverted_residual")
    use = _convolutions(filters, stride, se, norm, padding, name)
    hidden = hidden or make_divisible(x.shape[-1] * expansion)
    y = use(x, hidden, 1, activation=activation, names=("conv_pw", "bn1", "act1"))
    names = ("conv_dw", "bn2", "act2")
    y = use(y, hidden, kernel, stride=stride, groups=hidden, activation=activation, names=names)
    y = y if se is None else se(y, x.shape[-1], name=f"{name}.se")
    y = use(y, filters, 1, names=("conv_pwl", "bn3", ""))
    return _added(x, y, stride, skip, drop_path, name)


def edge_residual(
    x: Tensor,
    filters: int,
    *,
    kernel: Kernel = 3,
    stride: int = 1,
    expansion: float = 4.0,
    hidden: int | None = None,
    group_size: int | None = None,
    se: SqueezeExcite | None = None,
    downsample: Downsample | None = None,
    norm: Norm = batch_norm,
    activation: Activation = "relu",
    skip: bool = True,
    padding: Padding = None,
    drop_path: float = 0.0,
    name: str | None = None,
) -> Tensor:
    """Expand by a full convolution and project, with a skip connection (Tan & Le 2021, Fused-MBConv).

    Maps `(N, *spatial, C)` to `(N, *ceil(spatial / stride), filters)`. This is timm's `EdgeResidual`. Arguments as in
    `inverted_residual`. `group_size` divides the inner channels into groups (mobilenet_edgetpu_v2). `downsample` is
    anti-aliased subsampling that replaces the stride (mobilenetv4).
    """
    name = fresh_name(name, "edge_residual")
    use = _convolutions(filters, stride, se, norm, padding, name)
    hidden = hidden or make_divisible(x.shape[-1] * expansion)
    require_sizes(name, hidden=hidden, group_size=group_size or 1)
    if hidden % (group_size or 1):
        raise ValueError(
            f"{name}: the number of inner channels must be a multiple of `group_size`; got {hidden} channels and "
            f"group_size={group_size}."
        )
    step, groups = 1 if downsample else stride, hidden // group_size if group_size else 1
    names = ("conv_exp", "bn1", "act1")
    y = use(x, hidden, kernel, stride=step, groups=groups, activation=activation, names=names)
    if downsample and stride > 1:
        y = downsample(y, stride, name=f"{name}.aa")
    y = y if se is None else se(y, x.shape[-1], name=f"{name}.se")
    y = use(y, filters, 1, names=("conv_pwl", "bn2", ""))
    return _added(x, y, stride, skip, drop_path, name)


def _convolutions(
    filters: int, stride: int, se: SqueezeExcite | None, norm: Norm, padding: Padding, name: str
) -> Callable[..., Tensor]:
    """Return `conv_norm` with the options shared by all convolutions of a block."""
    require_sizes(name, filters=filters, stride=stride)
    require_function(norm, "norm", name)
    if se is not None:
        require_function(se, "se", name)
    return partial(conv_norm, norm=norm, padding=padding, name=name)


def _added(x: Tensor, y: Tensor, stride: int, skip: bool, drop_path: float, name: str) -> Tensor:
    if skip and stride == 1 and x.shape[-1] == y.shape[-1]:
        return residual(x, y, drop_path=drop_path, name=name)
    return y
