"""Pre-activation ResNet V2 and Big Transfer (BiT): norm and activation before each convolution.

The topology and the names of networks and layers follow timm.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import keras
import numpy as np

from keras_residual import blocks
from keras_residual.blocks import (
    Activation,
    Norm,
    PreactShortcut,
    Tensor,
    convolution,
    group_norm,
    preact_basic,
    preact_bottleneck,
)
from keras_residual.layers import PointwiseDense, StageOutput
from keras_residual.models._network import Network
from keras_residual.registry import Config, variant
from keras_residual.weights.formats import State


class Pool(Protocol):
    """Protocol for the pooling of stride 2 at the end of the stem."""

    def __call__(self, x: Tensor, *, name: str) -> Tensor: ...


class Stem(Protocol):
    """Protocol for the layers before the first stage.

    The last convolution has neither norm nor activation, because the first block starts with them.
    """

    def __call__(
        self, x: Tensor, width: int, *, conv: Callable[..., Tensor], norm: Norm, activation: Activation, pool: Pool
    ) -> Tensor: ...


def imagenet_stem(
    x: Tensor, width: int, *, conv: Callable[..., Tensor], norm: Norm, activation: Activation, pool: Pool
) -> Tensor:
    """Apply a 7x7 convolution and a 3x3 max pooling, both of stride 2: stride 4."""
    return pool(conv(x, width, 7, stride=2, bias=False, name="stem.conv"), name="stem.pool")


def deep_stem(
    x: Tensor,
    width: int,
    *,
    conv: Callable[..., Tensor],
    norm: Norm,
    activation: Activation,
    pool: Pool,
    eighths: tuple[int, int] = (4, 4),
) -> Tensor:
    """Apply three 3x3 convolutions, the first of stride 2, then pooling (He et al. 2019, ResNet-C): stride 4.

    `eighths` are the channels of the first two convolutions in eighths of `width`.
    """
    for i, share in enumerate(eighths, start=1):
        x = conv(x, width * share // 8, 3, stride=2 if i == 1 else 1, bias=False, name=f"stem.conv{i}")
        x = blocks.activate(norm(x, name=f"stem.norm{i}"), activation, name=f"stem.act{i}")
    return pool(conv(x, width, 3, bias=False, name="stem.conv3"), name="stem.pool")


def small_stem(
    x: Tensor, width: int, *, conv: Callable[..., Tensor], norm: Norm, activation: Activation, pool: Pool
) -> Tensor:
    """Apply one 3x3 convolution without pooling: stride 1, for images of about 32x32."""
    return conv(x, width, 3, bias=False, name="stem.conv")


def zero_padded_max_pool(x: Tensor, *, name: str) -> Tensor:
    """Apply BiT's 3x3 max pooling of stride 2, padded with zeros although its inputs may be negative."""
    return blocks.max_pool(blocks.pad(x, 1, name=f"{name}.pad"), padding="valid", name=name)


def projection(y: Tensor, filters: int, *, stride: int, conv: Callable[..., Tensor], name: str) -> Tensor:
    """Apply a strided 1x1 convolution."""
    return conv(y, filters, 1, stride=stride, bias=False, name=f"{name}.conv")


def pooled_projection(y: Tensor, filters: int, *, stride: int, conv: Callable[..., Tensor], name: str) -> Tensor:
    """Apply average pooling, then a 1x1 convolution (He et al. 2019, ResNet-D)."""
    if stride > 1:
        # "same" equals torch's ceil mode: windows beyond the edge average only the values inside.
        y = blocks.average_pool(y, stride, padding="same", name=f"{name}.pool")
    return conv(y, filters, 1, bias=False, name=f"{name}.conv")


@dataclasses.dataclass(frozen=True)
class ResNetV2Config(Config):
    """Configuration of a pre-activation ResNet.

    Attributes:
        block: `preact_basic` or `preact_bottleneck`.
        depths: Number of blocks per stage.
        widths: Output channels per stage.
        factor: Multiplier of all channels, including the stem's 64.
        stem: Layers before the first stage.
        pool: Pooling of the stem.
        shortcut: Shortcut of blocks that change the shape.
        conv: Function for every convolution: `blocks.convolution`, with or without weight standardisation.
        norm: Normalisation before each convolution.
    """

    block: Callable[..., Tensor]
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    factor: int = 1
    stem: Stem = imagenet_stem
    pool: Pool = blocks.max_pool
    shortcut: PreactShortcut = projection
    conv: Callable[..., Tensor] = convolution
    norm: Norm = blocks.batch_norm
    head: tuple[str, ...] = dataclasses.field(default=("head.fc",), kw_only=True)
    top: tuple[str, ...] = dataclasses.field(default=("head.",), kw_only=True)

    def tiny(self) -> ResNetV2Config:
        """Return the same topology with one or two blocks per stage, few channels and 64x64 images."""
        bottlenecks = self.block is preact_bottleneck  # group norm needs 32 channels inside the bottlenecks
        return dataclasses.replace(
            self,
            depths=(1, 2, 1, 1),
            widths=(128, 128, 128, 256) if bottlenecks else (64, 64, 32, 32),
            factor=min(self.factor, 2),
            input_shape=(64, 64, 3),
            classes=10,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetV2(Network[ResNetV2Config]):
    """A pre-activation residual network.

    The rank of the convolutions follows from `input_shape`: `(H, W, C)` for images, `(steps, C)` for signals,
    `(D, H, W, C)` for volumes or videos.

    Args:
        pooling: Output if `include_top` is false: `None` for the feature map `(N, *spatial, C)` after the last norm and
            activation, `"avg"` or `"max"` for pooled features `(N, C)`.
        norm: Normalisation, such as `keras_residual.blocks.batch_norm`; defaults to the variant's.
        activation: Activation after each normalisation, by name or as a function.
        stem: `imagenet_stem`, `deep_stem` or `small_stem` of this module, or a function with the same arguments;
            defaults to the variant's.
    """

    norm: Norm | None = None
    activation: Activation = "relu"
    stem: Stem | None = None

    def forward(self, row: ResNetV2Config, x: Tensor) -> Tensor:
        inputs, norm, stem = x, self.norm or row.norm, self.stem or row.stem
        options: dict[str, Any] = {"conv": row.conv, "norm": norm, "activation": self.activation}
        x = stem(x, 64 * row.factor, pool=row.pool, **options)
        self.require_size(inputs, x, 2 ** (len(row.depths) - 1), None if stem is small_stem else small_stem)
        rates = iter(blocks.drop_path_rates(self.drop_path, sum(row.depths)))
        for stage, (depth, width) in enumerate(zip(row.depths, row.widths, strict=True)):
            for i in range(depth):
                x = row.block(
                    x,
                    width * row.factor,
                    stride=2 if stage and i == 0 else 1,
                    shortcut=row.shortcut,
                    drop_path=next(rates),
                    name=f"stages.{stage}.blocks.{i}",
                    norms="norm",
                    **options,
                )
            x = StageOutput(stage + 1, name=f"stages.{stage}")(x)
        return blocks.activate(norm(x, name="norm"), self.activation, name="act")

    def classifier(self) -> Callable[..., keras.layers.Layer]:
        initializer = keras.initializers.RandomNormal(stddev=0.01)
        # stored like timm's classifier, a 1x1 convolution
        return lambda name: PointwiseDense(self.classes, kernel_initializer=initializer, name=name)

    @staticmethod
    def to_timm(state: State) -> State:
        """Convert Google's `.npz` files of Big Transfer."""
        return _bit(state) if any(key.endswith("root_block/standardized_conv2d/kernel") for key in state) else state


def _bit(state: State) -> State:
    """Convert Google's `.npz` files of Big Transfer: names are paths, kernels `(*size, in, out)`."""
    result = {}
    for key, value in state.items():
        for old, new in _BIT_NAMES:
            key = re.sub(old, new, key)
        key = re.sub(r"^block(\d+)/unit(\d+)/", lambda m: f"stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 1}.", key)
        result[key] = np.transpose(value, (3, 2, 0, 1)) if value.ndim == 4 else value
    return result


_BIT_NAMES = (
    (r"^resnet/", ""),
    (r"^root_block/standardized_conv2d/kernel$", "stem.conv.weight"),
    (r"^group_norm/", "norm/"),
    (r"^head/conv2d/", "head.fc/"),
    (r"/a/proj/standardized_conv2d/", "/downsample.conv/"),
    *((f"/{part}/standardized_conv2d/", f"/conv{number}/") for number, part in enumerate("abc", start=1)),
    *((f"/{part}/group_norm/", f"/norm{number}/") for number, part in enumerate("abc", start=1)),
    (r"/(kernel|gamma)$", ".weight"),
    (r"/(bias|beta)$", ".bias"),
)


# Variants. Parameters and GMACs: timm at the variant's input size.

_BASIC = (64, 128, 256, 512)
_D: dict[str, Any] = {"stem": deep_stem, "shortcut": pooled_projection}
_T: dict[str, Any] = {"stem": partial(deep_stem, eighths=(3, 4)), "shortcut": pooled_projection}
_BIT: dict[str, Any] = {
    "pool": zero_padded_max_pool,
    "conv": partial(convolution, standardize=1e-8),
    "norm": group_norm,
}

# fmt: off
BiT50x1 = variant(ResNetV2, ResNetV2Config("BiT50x1", preact_bottleneck, (3, 4, 6, 3), **_BIT,
    timm="resnetv2_50x1_bit", tag="goog_distilled_in1k", params=25_549_352, gmacs=4.089,
    source="Kolesnikov et al. 2020"))
BiT50x3 = variant(ResNetV2, ResNetV2Config("BiT50x3", preact_bottleneck, (3, 4, 6, 3), factor=3, **_BIT,
    timm="resnetv2_50x3_bit", tag="goog_in21k_ft_in1k", input_shape=(448, 448, 3), params=217_319_080, gmacs=144.31,
    source="Kolesnikov et al. 2020"))
BiT101x1 = variant(ResNetV2, ResNetV2Config("BiT101x1", preact_bottleneck, (3, 4, 23, 3), **_BIT,
    timm="resnetv2_101x1_bit", tag="goog_in21k_ft_in1k", input_shape=(448, 448, 3), params=44_541_480, gmacs=31.20,
    source="Kolesnikov et al. 2020"))
BiT101x3 = variant(ResNetV2, ResNetV2Config("BiT101x3", preact_bottleneck, (3, 4, 23, 3), factor=3, **_BIT,
    timm="resnetv2_101x3_bit", tag="goog_in21k_ft_in1k", input_shape=(448, 448, 3), params=387_934_888, gmacs=277.95,
    source="Kolesnikov et al. 2020"))
BiT152x2 = variant(ResNetV2, ResNetV2Config("BiT152x2", preact_bottleneck, (3, 8, 36, 3), factor=2, **_BIT,
    timm="resnetv2_152x2_bit", tag="goog_teacher_in21k_ft_in1k", params=236_335_208, gmacs=45.81,
    source="Kolesnikov et al. 2020"))
BiT152x4 = variant(ResNetV2, ResNetV2Config("BiT152x4", preact_bottleneck, (3, 8, 36, 3), factor=4, **_BIT,
    timm="resnetv2_152x4_bit", tag="goog_in21k_ft_in1k", input_shape=(480, 480, 3), params=936_533_224, gmacs=839.25,
    source="Kolesnikov et al. 2020"))
ResNetV2_18 = variant(ResNetV2, ResNetV2Config("ResNetV2_18", preact_basic, (2, 2, 2, 2), _BASIC,
    timm="resnetv2_18", tag="ra4_e3600_r224_in1k", params=11_687_720, gmacs=1.814, source="He et al. 2016b"))
ResNetV2_18D = variant(ResNetV2, ResNetV2Config("ResNetV2_18D", preact_basic, (2, 2, 2, 2), _BASIC, **_D,
    timm="resnetv2_18d", tag="ra4_e3600_r224_in1k", params=11_706_952, gmacs=2.054, source="He et al. 2016b"))
ResNetV2_34 = variant(ResNetV2, ResNetV2Config("ResNetV2_34", preact_basic, (3, 4, 6, 3), _BASIC,
    timm="resnetv2_34", tag="ra4_e3600_r224_in1k", params=21_795_880, gmacs=3.664, source="He et al. 2016b"))
ResNetV2_34D = variant(ResNetV2, ResNetV2Config("ResNetV2_34D", preact_basic, (3, 4, 6, 3), _BASIC, **_D,
    timm="resnetv2_34d", tag="ra4_e3600_r224_in1k", params=21_815_112, gmacs=3.903, source="He et al. 2016b"))
ResNetV2_50 = variant(ResNetV2, ResNetV2Config("ResNetV2_50", preact_bottleneck, (3, 4, 6, 3),
    timm="resnetv2_50", tag="a1h_in1k", params=25_549_352, gmacs=4.089, source="He et al. 2016b"))
ResNetV2_50D = variant(ResNetV2, ResNetV2Config("ResNetV2_50D", preact_bottleneck, (3, 4, 6, 3), **_D,
    timm="resnetv2_50d", params=25_568_584, gmacs=4.329, source="He et al. 2016b"))
ResNetV2_50T = variant(ResNetV2, ResNetV2Config("ResNetV2_50T", preact_bottleneck, (3, 4, 6, 3), **_T,
    timm="resnetv2_50t", params=25_566_048, gmacs=4.297, source="He et al. 2016b"))
ResNetV2_101 = variant(ResNetV2, ResNetV2Config("ResNetV2_101", preact_bottleneck, (3, 4, 23, 3),
    timm="resnetv2_101", tag="a1h_in1k", params=44_541_480, gmacs=7.801, source="He et al. 2016b"))
ResNetV2_101D = variant(ResNetV2, ResNetV2Config("ResNetV2_101D", preact_bottleneck, (3, 4, 23, 3), **_D,
    timm="resnetv2_101d", params=44_560_712, gmacs=8.041, source="He et al. 2016b"))
ResNetV2_152 = variant(ResNetV2, ResNetV2Config("ResNetV2_152", preact_bottleneck, (3, 8, 36, 3),
    timm="resnetv2_152", params=60_185_128, gmacs=11.51, source="He et al. 2016b"))
ResNetV2_152D = variant(ResNetV2, ResNetV2Config("ResNetV2_152D", preact_bottleneck, (3, 8, 36, 3), **_D,
    timm="resnetv2_152d", params=60_204_360, gmacs=11.75, source="He et al. 2016b"))
ResNetV2_50DGN = variant(ResNetV2, ResNetV2Config("ResNetV2_50DGN", preact_bottleneck, (3, 4, 6, 3), **_D,
    norm=group_norm,
    timm="resnetv2_50d_gn", tag="ah_in1k", params=25_568_584, gmacs=4.329, source="He et al. 2016b"))
