"""Convolutions, norms and pooling; the rank of each is its tensor's."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_residual import layers
from keras_residual.blocks.equation import activate
from keras_residual.blocks.rules import (
    Activation,
    Norm,
    Tensor,
    fresh_name,
    of_rank,
    pooling,
    require_function,
    require_sizes,
    spatial_rank,
)


def conv_norm(
    x: Tensor,
    filters: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    norm: Norm | None = None,
    activation: Activation = None,
    zero_init: bool = False,
    name: str | None = None,
    names: tuple[str, str, str] = ("conv", "bn", "act"),
) -> Tensor:
    """Convolution, normalisation, activation: `(N, *spatial, C)` -> `(N, *ceil(spatial / stride), filters)`.

    Padding is symmetric, as in torch (Keras' "same" shifts strided convolutions by a pixel). The convolution
    has a bias only where no normalisation follows.

    Args:
        x: A tensor of rank 3, 4 or 5: the convolution is 1-D, 2-D or 3-D.
        filters: Number of output channels.
        kernel: Odd kernel size, the same along each axis.
        stride: Step, the same along each axis.
        groups: Number of channel groups (ResNeXt's cardinality).
        dilation: Spacing of the kernel's taps.
        norm: `batch_norm`, `group_norm`, ... or `None`.
        activation: Applied last; `None` for linear.
        zero_init: Start the normalisation's scale at 0, so that the branch it ends starts as nothing
            (Goyal et al. 2017).
        name: Prefix of the layers' names.
        names: Names of convolution, normalisation and activation below the prefix.
    """
    name = fresh_name(name, "conv_norm")
    conv_name, norm_name, act_name = (f"{name}.{n}" if name else n for n in names)
    x = convolution(
        x, filters, kernel, stride=stride, groups=groups, dilation=dilation, bias=norm is None, name=conv_name
    )
    if norm is not None:
        require_function(norm, "norm", norm_name)
        x = norm(x, name=norm_name, zero_init=zero_init)
    return activate(x, activation, name=act_name)


def convolution(
    x: Tensor,
    filters: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    bias: bool = True,
    standardize: float | None = None,
    initializer: Any = None,
    name: str,
) -> Tensor:
    """The bare convolution of `conv_norm`.

    `standardize` is the epsilon of weight standardisation (Qiao et al. 2019), `None` for none.
    """
    rank = spatial_rank(x, name)
    require_sizes(name, filters=filters, kernel=kernel, stride=stride, groups=groups, dilation=dilation)
    if kernel % 2 == 0:
        raise ValueError(
            f"{name}: a kernel has an odd size, so that it has a middle: an even one would shift the image against its "
            f"shortcut. Received: kernel={kernel}. To cut an image into patches use blocks.patches."
        )
    if x.shape[-1] % groups or filters % groups:
        raise ValueError(
            f"{name}: input and output channels must be multiples of the number of groups. Received: "
            f"{x.shape[-1]} input channels, {filters} output channels, groups={groups}."
        )
    if kernel > 1 and stride > 1:
        x = pad(x, dilation * (kernel - 1) // 2, name=f"{name}.pad")
    elif kernel == 1 and stride > 1 and x.shape[-1] < 16:
        # oneDNN crashes the process on strided 1x1 convolutions of few channels (oneDNN #6035): subsample first.
        x = pooling("Max", rank)(1, stride, name=f"{name}.subsample")(x)
        stride = 1
    own: dict[str, Any] = {}
    if standardize is not None:
        conv: Any = getattr(layers, f"StandardizedConv{rank}D")
        own["epsilon"] = standardize
    else:
        conv = getattr(layers, f"Conv{rank}D") if groups > 1 else of_rank("Conv{}D", rank)
    return conv(
        filters,
        kernel,
        strides=stride,
        padding="valid" if stride > 1 else "same",
        groups=groups,
        dilation_rate=dilation,
        use_bias=bias,
        kernel_initializer=initializer or keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        name=name,
        **own,
    )(x)


def depthwise(x: Tensor, kernel: int, *, name: str) -> Tensor:
    """A convolution of each channel by itself, of stride 1 and with a bias: `(N, *spatial, C)` -> the same."""
    rank, initializer = spatial_rank(x, name), keras.initializers.TruncatedNormal(stddev=0.02)
    if rank == 3:  # Keras has no such layer
        return convolution(x, x.shape[-1], kernel, groups=x.shape[-1], initializer=initializer, name=name)
    return of_rank("DepthwiseConv{}D", rank)(kernel, padding="same", depthwise_initializer=initializer, name=name)(x)


def patches(
    x: Tensor,
    filters: int,
    size: int,
    *,
    bias: bool = True,
    initializer: Any = None,
    name: str,
    layer: str = "proj",
) -> Tensor:
    """Cuts `(N, *spatial, C)` into patches of `size` along each axis and projects each to `filters` channels."""
    conv = of_rank("Conv{}D", spatial_rank(x, name))
    initializer = initializer or keras.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal")
    return conv(filters, size, size, use_bias=bias, kernel_initializer=initializer, name=f"{name}.{layer}")(x)


def batch_norm(x: Tensor, *, name: str, zero_init: bool = False, epsilon: float = 1e-5) -> Tensor:
    """Batch normalisation with torch's momentum, epsilon and running variance; see `layers.BatchNorm`."""
    gamma = "zeros" if zero_init else "ones"
    return layers.BatchNorm(epsilon=epsilon, gamma_initializer=gamma, name=name)(x)


def group_norm(
    x: Tensor, *, name: str, zero_init: bool = False, groups: int = 32, group_size: int | None = None
) -> Tensor:
    """Group normalisation (Wu & He 2018), independent of the batch: `groups` groups, or groups of `group_size`."""
    channels = x.shape[-1]
    if channels % (group_size or groups):
        wrong = f"groups={groups}" if group_size is None else f"group_size={group_size}"
        raise ValueError(
            f"{name}: the channels must be a multiple of the number of groups, or of their size. Received: {channels} "
            f"channels, {wrong}. Use functools.partial(group_norm, {wrong.partition('=')[0]}=...)."
        )
    gamma = "zeros" if zero_init else "ones"
    return layers.GroupNorm(channels // group_size if group_size else groups, gamma_initializer=gamma, name=name)(x)


def layer_norm(x: Tensor, *, name: str, zero_init: bool = False, epsilon: float = 1e-6) -> Tensor:
    """Layer normalisation over the channels."""
    gamma = "zeros" if zero_init else "ones"
    return layers.LayerNorm(epsilon=epsilon, gamma_initializer=gamma, name=name)(x)


def rms_norm(x: Tensor, *, name: str, zero_init: bool = False, epsilon: float = 1e-6) -> Tensor:
    """Root-mean-square normalisation over the channels (Zhang & Sennrich 2019)."""
    if zero_init:
        raise ValueError(f"{name}: Keras' RMSNormalization always starts at scale 1. Use layer_norm with zero_init.")
    return keras.layers.RMSNormalization(epsilon=epsilon, name=name)(x)


def affine(x: Tensor, *, name: str, zero_init: bool = False) -> Tensor:
    """Scale and shift each channel, without normalising; see `layers.Affine`."""
    if zero_init:
        raise ValueError(f"{name}: Affine always starts at scale 1. Use layer_norm with zero_init.")
    return layers.Affine(name=name)(x)


def simple_norm(x: Tensor, *, name: str, zero_init: bool = False, epsilon: float = 1e-6) -> Tensor:
    """Division by the standard deviation of the channels; see `layers.SimpleNorm`."""
    if zero_init:
        raise ValueError(f"{name}: SimpleNorm always starts at scale 1. Use layer_norm with zero_init.")
    return layers.SimpleNorm(epsilon, name=name)(x)


def pad(x: Tensor, width: int, *, name: str) -> Tensor:
    """Adds `width` zeros on both sides of each spatial axis."""
    return of_rank("ZeroPadding{}D", spatial_rank(x, name))(width, name=name)(x)


def max_pool(x: Tensor, size: int = 3, stride: int = 2, *, name: str) -> Tensor:
    """Max pooling with torch's symmetric padding; padding never wins, also where activations are negative."""
    rank, width = spatial_rank(x, name), (size - 1) // 2
    x = ops.pad(x, [(0, 0), *[(width, width)] * rank, (0, 0)], constant_values=float("-inf"))
    return pooling("Max", rank)(size, stride, name=name)(x)


def average_pool(x: Tensor, stride: int = 2, *, name: str) -> Tensor:
    """Average pooling of size `stride`: plain anti-aliased subsampling."""
    return pooling("Average", spatial_rank(x, name))(stride, stride, name=name)(x)


def blur_pool(x: Tensor, stride: int = 2, *, name: str) -> Tensor:
    """Binomial 3x3 blur, then subsampling (Zhang 2019); see `layers.BlurPool`."""
    return layers.BlurPool(stride, name=name)(x)
