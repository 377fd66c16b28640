"""Shortcuts, `h(x)`: what a block adds its branch to."""

from __future__ import annotations

from keras import ops

from keras_residual.blocks.conv import batch_norm, conv_norm
from keras_residual.blocks.pooling import average_pool
from keras_residual.blocks.rules import Norm, Tensor, fresh_name, pooling, spatial_rank


def identity(x: Tensor, filters: int, *, stride: int = 1, norm: Norm = batch_norm, name: str = "") -> Tensor:
    """`h(x) = x`: the shortcut of every block that keeps the shape."""
    return x


def projection(
    x: Tensor, filters: int, *, stride: int = 1, norm: Norm = batch_norm, name: str | None = None, kernel: int = 1
) -> Tensor:
    """`h(x) = W x`, a strided 1x1 convolution and a norm: the shortcut where the shape changes (He et al. 2016, B).

    `kernel` is the size where it subsamples: at stride 1 the convolution is 1x1 whatever `kernel` is, as timm has it.
    """
    kernel = kernel if stride > 1 else 1
    name = fresh_name(name, "projection")
    return conv_norm(x, filters, kernel, stride=stride, norm=norm, name=name, names=("0", "1", "act"))


def pooled_projection(
    x: Tensor, filters: int, *, stride: int = 1, norm: Norm = batch_norm, name: str | None = None
) -> Tensor:
    """Average pooling, then a 1x1 convolution: no value of `x` is thrown away (He et al. 2019, ResNet-D)."""
    name = fresh_name(name, "projection")
    if stride > 1:
        # "same" is torch's ceil mode: windows that hang over the edge average what they cover.
        x = average_pool(x, stride, padding="same", name=f"{name}.0")
    return conv_norm(x, filters, 1, norm=norm, name=name, names=("1", "2", "act"))


def padded_identity(
    x: Tensor, filters: int, *, stride: int = 1, norm: Norm = batch_norm, name: str | None = None
) -> Tensor:
    """Subsampling, then zeros for the new channels: a shortcut without parameters (He et al. 2016, option A)."""
    name, rank = fresh_name(name, "shortcut"), spatial_rank(x, "padded_identity")
    if stride > 1:
        x = pooling("Max", rank)(1, stride, name=f"{name}.subsample")(x)
    missing = filters - x.shape[-1]
    if missing < 0:
        raise ValueError(
            f"{name}: zeros can only add channels. Received: {x.shape[-1]} channels, filters={filters}. Use projection."
        )
    return ops.pad(x, [(0, 0)] * (rank + 1) + [(missing // 2, missing - missing // 2)]) if missing else x
