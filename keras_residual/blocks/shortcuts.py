"""Shortcuts `h(x)`, to which blocks add their branches."""

from __future__ import annotations

from keras import ops

from keras_residual.blocks.conv import batch_norm, conv_norm
from keras_residual.blocks.pooling import average_pool
from keras_residual.blocks.rules import Norm, Tensor, fresh_name, pooling, spatial_rank


def identity(x: Tensor, filters: int, *, stride: int = 1, norm: Norm = batch_norm, name: str = "") -> Tensor:
    """Return `x`: the shortcut of every block that keeps the shape."""
    return x


def projection(
    x: Tensor, filters: int, *, stride: int = 1, norm: Norm = batch_norm, name: str | None = None, kernel: int = 1
) -> Tensor:
    """Apply a strided 1x1 convolution and a norm (He et al. 2016, option B).

    This is the shortcut of blocks that change the shape. `kernel` is the size of the convolution if the stride is
    larger than 1. As in timm, the convolution is always 1x1 at stride 1.
    """
    kernel = kernel if stride > 1 else 1
    name = fresh_name(name, "projection")
    return conv_norm(x, filters, kernel, stride=stride, norm=norm, name=name, names=("0", "1", "act"))


def pooled_projection(
    x: Tensor, filters: int, *, stride: int = 1, norm: Norm = batch_norm, name: str | None = None
) -> Tensor:
    """Apply average pooling, then a 1x1 convolution, which ignores no value of `x` (He et al. 2019, ResNet-D)."""
    name = fresh_name(name, "projection")
    if stride > 1:
        # "same" equals torch's ceil mode: windows beyond the edge average only the values inside.
        x = average_pool(x, stride, padding="same", name=f"{name}.0")
    return conv_norm(x, filters, 1, norm=norm, name=name, names=("1", "2", "act"))


def padded_identity(
    x: Tensor, filters: int, *, stride: int = 1, norm: Norm = batch_norm, name: str | None = None
) -> Tensor:
    """Subsample and fill new channels with zeros: a shortcut without parameters (He et al. 2016, option A)."""
    name, rank = fresh_name(name, "shortcut"), spatial_rank(x, "padded_identity")
    if stride > 1:
        x = pooling("Max", rank)(1, stride, name=f"{name}.subsample")(x)
    missing = filters - x.shape[-1]
    if missing < 0:
        raise ValueError(
            f"{name}: `filters` must not be smaller than the number of input channels, because padding can only add "
            f"channels; got {x.shape[-1]} channels and filters={filters}. Use blocks.projection."
        )
    return ops.pad(x, [(0, 0)] * (rank + 1) + [(missing // 2, missing - missing // 2)]) if missing else x
