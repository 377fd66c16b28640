"""Convolutions and normalisations of 1-D, 2-D or 3-D tensors."""

from __future__ import annotations

from typing import Any

import keras

from keras_residual import layers
from keras_residual.blocks.equation import activate
from keras_residual.blocks.padding import Kernel, Padding, is_zero, keeps_size, kernel_sizes, pad, padding_widths
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
    kernel: Kernel = 3,
    *,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    padding: Padding = None,
    norm: Norm | None = None,
    activation: Activation = None,
    zero_init: bool = False,
    name: str | None = None,
    names: tuple[str, str, str] = ("conv", "bn", "act"),
) -> Tensor:
    """Apply a convolution, a normalisation and an activation.

    Maps `(N, *spatial, C)` to `(N, *ceil(spatial / stride), filters)`. The convolution has a bias only if no
    normalisation follows.

    Args:
        x: A tensor of rank 3, 4 or 5, for a 1-D, 2-D or 3-D convolution.
        filters: Number of output channels.
        kernel: Kernel size, one for all axes or one per axis.
        stride: Step along each axis.
        groups: Number of channel groups (ResNeXt's cardinality).
        dilation: Dilation rate of the kernel.
        padding: As in `convolution`.
        norm: `batch_norm`, `group_norm`, ... or `None`.
        activation: Activation after the normalisation; `None` for linear.
        zero_init: If true, initialize the scale of the normalisation to 0, so that the branch that ends in it outputs
            zero (Goyal et al. 2017).
        name: Prefix of the layers' names.
        names: Names of convolution, normalisation and activation, appended to the prefix.
    """
    name = fresh_name(name, "conv_norm")
    conv_name, norm_name, act_name = (f"{name}.{n}" if name else n for n in names)
    x = convolution(
        x,
        filters,
        kernel,
        stride=stride,
        groups=groups,
        dilation=dilation,
        padding=padding,
        bias=norm is None,
        name=conv_name,
    )
    if norm is not None:
        require_function(norm, "norm", norm_name)
        x = norm(x, name=norm_name, zero_init=zero_init)
    return activate(x, activation, name=act_name)


def convolution(
    x: Tensor,
    filters: int,
    kernel: Kernel,
    *,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    padding: Padding = None,
    bias: bool = True,
    standardize: float | None = None,
    initializer: Any = None,
    name: str,
) -> Tensor:
    """Apply a convolution without normalisation or activation.

    Args:
        x: A tensor `(N, *spatial, C)`.
        filters: Number of output channels.
        kernel: Kernel size, one for all axes or one per axis.
        stride: Step along each axis.
        groups: Number of channel groups. If it equals the number of channels and filters, the convolution is depthwise.
        dilation: Dilation rate of the kernel.
        padding: Zeros around the image. `None` pads both sides equally so that the size is kept at stride 1 (torch's
            rule, odd kernels only). `"same"` is TensorFlow's rule, which depends on the input size and pads more at the
            end. `"valid"` does not pad. An integer pads all sides, and pairs `(before, after)` pad each axis.
        bias: If true, add a bias.
        standardize: Epsilon of weight standardisation (Qiao et al. 2019); `None` for no standardisation.
        initializer: Initializer of the kernel.
        name: Name of the layer.

    Returns:
        A tensor `(N, *spatial, filters)`.
    """
    rank = spatial_rank(x, name)
    require_sizes(name, filters=filters, stride=stride, groups=groups, dilation=dilation)
    sizes = kernel_sizes(kernel, rank, name)
    if x.shape[-1] % groups or filters % groups:
        raise ValueError(
            f"{name}: input and output channels must be multiples of the number of groups; got {x.shape[-1]} input "
            f"channels, {filters} output channels, groups={groups}."
        )
    widths = padding_widths(padding, sizes, dilation, name)
    if max(sizes) == 1 and stride > 1 and x.shape[-1] < 16 and (widths is None or is_zero(widths)):
        # oneDNN crashes on strided 1x1 convolutions of few channels (oneDNN #6035), so subsample first.
        x = pooling("Max", rank)(1, stride, name=f"{name}.subsample")(x)
        stride = 1
    if stride == 1 and widths is not None and keeps_size(widths, sizes, dilation):
        widths = None  # same result as a separate padding layer
    if widths is not None and not is_zero(widths):
        x = pad(x, widths, name=f"{name}.pad")
    options: dict[str, Any] = {"strides": stride, "padding": "valid" if widths else "same", "dilation_rate": dilation}
    options |= {"use_bias": bias, "name": name}
    initializer = initializer or keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
    if groups == filters == x.shape[-1] > 1 and rank < 3 and standardize is None:  # Keras has none for 3-D
        conv = of_rank("DepthwiseConv{}D", rank)
        return conv(sizes, depthwise_initializer=initializer, **options)(x)
    if standardize is not None:
        conv = getattr(layers, f"StandardizedConv{rank}D")
        options["epsilon"] = standardize
    else:
        conv = getattr(layers, f"Conv{rank}D") if groups > 1 else of_rank("Conv{}D", rank)
    return conv(filters, sizes, groups=groups, kernel_initializer=initializer, **options)(x)


def depthwise(
    x: Tensor,
    kernel: Kernel,
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: Padding = None,
    bias: bool = True,
    initializer: Any = None,
    name: str,
) -> Tensor:
    """Convolve each channel separately: `(N, *spatial, C)` -> `(N, *spatial, C)`. Arguments as in `convolution`."""
    channels = x.shape[-1]
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "padding": padding, "bias": bias, "name": name}
    initializer = initializer or keras.initializers.TruncatedNormal(stddev=0.02)
    return convolution(x, channels, kernel, groups=channels, initializer=initializer, **options)


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
    """Cut `(N, *spatial, C)` into patches of `size` along each axis and project each patch to `filters` channels."""
    conv = of_rank("Conv{}D", spatial_rank(x, name))
    initializer = initializer or keras.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal")
    return conv(filters, size, size, use_bias=bias, kernel_initializer=initializer, name=f"{name}.{layer}")(x)


def batch_norm(x: Tensor, *, name: str, zero_init: bool = False, epsilon: float = 1e-5) -> Tensor:
    """Apply batch normalisation with torch's momentum, epsilon and running variance; see `layers.BatchNorm`."""
    gamma = "zeros" if zero_init else "ones"
    return layers.BatchNorm(epsilon=epsilon, gamma_initializer=gamma, name=name)(x)


def group_norm(
    x: Tensor, *, name: str, zero_init: bool = False, groups: int = 32, group_size: int | None = None
) -> Tensor:
    """Apply group normalisation (Wu & He 2018) with `groups` groups, or with groups of `group_size` channels."""
    channels = x.shape[-1]
    if channels % (group_size or groups):
        wrong = f"groups={groups}" if group_size is None else f"group_size={group_size}"
        raise ValueError(
            f"{name}: the number of channels must be a multiple of `{wrong.partition('=')[0]}`; got {channels} "
            f"channels and {wrong}. Pass norm=functools.partial(group_norm, {wrong.partition('=')[0]}=...)."
        )
    gamma = "zeros" if zero_init else "ones"
    return layers.GroupNorm(channels // group_size if group_size else groups, gamma_initializer=gamma, name=name)(x)


def layer_norm(x: Tensor, *, name: str, zero_init: bool = False, epsilon: float = 1e-6) -> Tensor:
    """Apply layer normalisation over the channels."""
    gamma = "zeros" if zero_init else "ones"
    return layers.LayerNorm(epsilon=epsilon, gamma_initializer=gamma, name=name)(x)


def rms_norm(x: Tensor, *, name: str, zero_init: bool = False, epsilon: float = 1e-6) -> Tensor:
    """Apply root-mean-square normalisation over the channels (Zhang & Sennrich 2019)."""
    if zero_init:
        raise ValueError(
            f"{name}: `zero_init` must be False, because Keras' RMSNormalization always starts at scale 1. Use "
            "layer_norm with zero_init."
        )
    return keras.layers.RMSNormalization(epsilon=epsilon, name=name)(x)


def affine(x: Tensor, *, name: str, zero_init: bool = False) -> Tensor:
    """Scale and shift each channel, without normalising; see `layers.Affine`."""
    if zero_init:
        raise ValueError(
            f"{name}: `zero_init` must be False, because Affine always starts at scale 1. Use layer_norm with "
            "zero_init."
        )
    return layers.Affine(name=name)(x)


def simple_norm(x: Tensor, *, name: str, zero_init: bool = False, epsilon: float = 1e-6) -> Tensor:
    """Divide by the standard deviation of the channels; see `layers.SimpleNorm`."""
    if zero_init:
        raise ValueError(
            f"{name}: `zero_init` must be False, because SimpleNorm always starts at scale 1. Use layer_norm with "
            "zero_init."
        )
    return layers.SimpleNorm(epsilon, name=name)(x)
