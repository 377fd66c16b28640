"""Padding of convolutions and poolings by the rules of torch, TensorFlow or explicit widths."""

from __future__ import annotations

from typing import Any

from keras_residual.blocks.rules import Tensor, of_rank, require_sizes, spatial_rank

Kernel = int | tuple[int, ...]
Widths = tuple[tuple[int, int], ...]
Padding = str | int | Widths | None


def kernel_sizes(kernel: Any, rank: int, name: str) -> tuple[int, ...]:
    """Return the size of a kernel along each axis."""
    sizes = tuple(kernel) if isinstance(kernel, (tuple, list)) else (kernel,) * rank
    if len(sizes) != rank:
        raise ValueError(
            f"{name}: `kernel` must be one size or one per spatial axis; got kernel={kernel!r} for {rank} axes."
        )
    for size in sizes:
        require_sizes(name, kernel=size)
    return sizes


def keeps_size(widths: Widths, kernel: tuple[int, ...], dilation: int) -> bool:
    """Return True if the padding is equal on both sides and keeps the size at stride 1."""
    pairs = zip(widths, kernel, strict=True)
    return all(before == after and before + after == dilation * (size - 1) for (before, after), size in pairs)


def is_zero(widths: Widths) -> bool:
    return not any(before or after for before, after in widths)


def padding_widths(padding: Any, kernel: tuple[int, ...], dilation: int, name: str) -> Widths | None:
    """Return the padding before and after each axis, or `None` if it depends on the input size ("same")."""
    if padding == "same":
        return None
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding is None:
        if any(size % 2 == 0 for size in kernel):
            raise ValueError(
                f"{name}: `padding` must be given for an even kernel, which cannot be padded symmetrically; got "
                f"kernel={kernel}, padding=None. Use 'same' (TensorFlow's rule), 'valid', an integer, or pairs such as "
                "((0, 1), (0, 1)). To cut an image into patches, use blocks.patches."
            )
        widths = (dilation * (size - 1) // 2 for size in kernel)
        return tuple((width, width) for width in widths)
    return _explicit(padding, len(kernel), name)


def _explicit(padding: Any, rank: int, name: str) -> Widths:
    widths = ((padding, padding),) * rank if _is_width(padding) else padding
    pairs = isinstance(widths, (tuple, list)) and all(isinstance(w, (tuple, list)) and len(w) == 2 for w in widths)
    if not pairs or len(widths) != rank or not all(_is_width(w) for pair in widths for w in pair):
        raise ValueError(
            f"{name}: `padding` must be None (symmetric), 'same', 'valid', an integer, or a pair of integers per "
            f"spatial axis, such as {((0, 1),) * rank} for a zero after each; got {padding!r} for {rank} axes."
        )
    return tuple((before, after) for before, after in widths)


def _is_width(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool) and value >= 0


def pad(x: Tensor, width: int | Widths, *, name: str) -> Tensor:
    """Add zeros around each spatial axis: `width` on both sides, or a pair `(before, after)` per axis."""
    rank = spatial_rank(x, name)
    widths = _explicit(width, rank, name)
    return of_rank("ZeroPadding{}D", rank)(widths[0] if rank == 1 else widths, name=name)(x)
