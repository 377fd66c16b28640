"""Pooling; the rank is the tensor's."""

from __future__ import annotations

from keras import ops

from keras_residual import layers
from keras_residual.blocks.padding import Padding, is_zero, pad, padding_widths
from keras_residual.blocks.rules import Tensor, pooling, require_sizes, spatial_rank


def max_pool(
    x: Tensor, size: int = 3, stride: int = 2, *, padding: Padding = None, ceil: bool = False, name: str
) -> Tensor:
    """Max pooling; padding never wins, also where activations are negative.

    Args:
        x: A tensor `(N, *spatial, C)`.
        size: Size of the windows along each axis.
        stride: Step along each axis.
        padding: As in `convolution`; `None` is symmetric, of an even size one step less.
        ceil: torch's ceil mode, as in SENet and VoVNet: a last window may begin within the image and end beyond it.
        name: Name of the layer.
    """
    rank = spatial_rank(x, name)
    require_sizes(name, size=size, stride=stride)
    widths = padding_widths((size - 1) // 2 if padding is None else padding, (size,) * rank, 1, name)
    if ceil:
        if widths is None or size < stride:
            raise ValueError(
                f"{name}: ceil mode takes padding other than 'same' and windows not smaller than the stride. Received: "
                f"padding={padding!r}, size={size}, stride={stride}."
            )
        widths = tuple((before, after + stride - 1) for before, after in widths)
    if widths is None:
        return pooling("Max", rank)(size, stride, padding="same", name=name)(x)
    if not is_zero(widths):
        x = ops.pad(x, [(0, 0), *widths, (0, 0)], constant_values=float("-inf"))
    return pooling("Max", rank)(size, stride, name=name)(x)


def average_pool(
    x: Tensor, stride: int = 2, *, size: int | None = None, padding: Padding = "valid", name: str
) -> Tensor:
    """Average pooling; without options plain anti-aliased subsampling.

    Args:
        x: A tensor `(N, *spatial, C)`.
        stride: Step along each axis.
        size: Size of the windows along each axis; `None` for `stride`.
        padding: As in `convolution`. `"same"` averages what a window covers; of size and stride 2 that is torch's ceil
            mode, of an odd size and stride 1 `count_include_pad=False`. Other padding counts as zeros.
        name: Name of the layer.
    """
    rank, size = spatial_rank(x, name), size or stride
    require_sizes(name, size=size, stride=stride)
    widths = padding_widths(padding, (size,) * rank, 1, name)
    if widths is not None and not is_zero(widths):
        x = pad(x, widths, name=f"{name}.pad")
    return pooling("Average", rank)(size, stride, padding="same" if widths is None else "valid", name=name)(x)


def blur_pool(x: Tensor, stride: int = 2, *, name: str) -> Tensor:
    """Binomial 3x3 blur, then subsampling (Zhang 2019); see `layers.BlurPool`."""
    return layers.BlurPool(stride, name=name)(x)
