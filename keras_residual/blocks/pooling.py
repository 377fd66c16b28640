"""Pooling of 1-D, 2-D or 3-D tensors."""

from __future__ import annotations

from keras import ops

from keras_residual import layers
from keras_residual.blocks.padding import Padding, is_zero, pad, padding_widths
from keras_residual.blocks.rules import Tensor, pooling, require_sizes, spatial_rank


def max_pool(
    x: Tensor, size: int = 3, stride: int = 2, *, padding: Padding = None, ceil: bool = False, name: str
) -> Tensor:
    """Apply max pooling. Padded values are never the maximum, even if all activations are negative.

    Args:
        x: A tensor `(N, *spatial, C)`.
        size: Size of the windows along each axis.
        stride: Step along each axis.
        padding: As in `convolution`; `None` pads `(size - 1) // 2` on both sides.
        ceil: If true, use torch's ceil mode, as in SENet and VoVNet: the last window may extend beyond the image.
        name: Name of the layer.
    """
    rank = spatial_rank(x, name)
    require_sizes(name, size=size, stride=stride)
    widths = padding_widths((size - 1) // 2 if padding is None else padding, (size,) * rank, 1, name)
    if ceil:
        if widths is None or size < stride:
            raise ValueError(
                f"{name}: with ceil=True, padding must not be 'same' and the size must not be smaller than the stride; "
                f"got padding={padding!r}, size={size}, stride={stride}."
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
    """Apply average pooling. By default the windows do not overlap, for anti-aliased subsampling.

    Args:
        x: A tensor `(N, *spatial, C)`.
        stride: Step along each axis.
        size: Size of the windows along each axis; defaults to `stride`.
        padding: As in `convolution`. `"same"` averages only the values inside the image, which equals torch's ceil mode
            for size and stride 2, and `count_include_pad=False` for an odd size and stride 1. Other padding counts as
            zeros.
        name: Name of the layer.
    """
    rank, size = spatial_rank(x, name), size or stride
    require_sizes(name, size=size, stride=stride)
    widths = padding_widths(padding, (size,) * rank, 1, name)
    if widths is not None and not is_zero(widths):
        x = pad(x, widths, name=f"{name}.pad")
    return pooling("Average", rank)(size, stride, padding="same" if widths is None else "valid", name=name)(x)


def blur_pool(x: Tensor, stride: int = 2, *, name: str) -> Tensor:
    """Apply a binomial 3x3 blur, then subsample (Zhang 2019); see `layers.BlurPool`."""
    return layers.BlurPool(stride, name=name)(x)
