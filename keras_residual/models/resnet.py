"""ResNet and its variants: ResNet-C, -D, -T and -S, ResNeXt, Wide ResNet, SE, ECA, anti-aliased, ResNet-RS.

The topology and the names of networks and layers follow timm.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np

from keras_residual import blocks
from keras_residual.blocks import (
    Activation,
    Attention,
    Downsample,
    Norm,
    Shortcut,
    Tensor,
    average_pool,
    basic,
    blur_pool,
    bottleneck,
    conv_norm,
    efficient_channel_attention,
    group_norm,
    plain_basic,
    pooled_projection,
    projection,
    rules,
    squeeze_excite,
)
from keras_residual.layers import StageOutput
from keras_residual.models._network import Network
from keras_residual.registry import Config, variant
from keras_residual.weights.formats import State


class Stem(Protocol):
    """Protocol for the layers before the first stage."""

    def __call__(self, x: Tensor, *, norm: Norm, activation: Activation, downsample: Downsample | None) -> Tensor: ...


def imagenet_stem(x: Tensor, *, norm: Norm, activation: Activation, downsample: Downsample | None) -> Tensor:
    """Apply a 7x7 convolution and 3x3 max pooling of stride 2 each: 64 channels, stride 4 (He et al. 2016, table 1)."""
    x = conv_norm(x, 64, 7, stride=2, norm=norm, activation=activation, name="", names=("conv1", "bn1", "act1"))
    return _pool(x, downsample)


def deep_stem(
    x: Tensor,
    *,
    norm: Norm,
    activation: Activation,
    downsample: Downsample | None,
    widths: tuple[int, int, int] = (32, 32, 64),
    pool: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Apply three 3x3 convolutions, the first of stride 2, then pooling (He et al. 2019, ResNet-C): stride 4."""
    use = partial(conv_norm, norm=norm, activation=activation, name="")
    x = use(x, widths[0], stride=2, names=("conv1.0", "conv1.1", "conv1.2"))
    x = use(x, widths[1], names=("conv1.3", "conv1.4", "conv1.5"))
    x = use(x, widths[2], names=("conv1.6", "bn1", "act1"))
    return pool(x, norm=norm, activation=activation) if pool else _pool(x, downsample)


def small_stem(
    x: Tensor, *, norm: Norm, activation: Activation, downsample: Downsample | None, width: int = 64
) -> Tensor:
    """Apply one 3x3 convolution without pooling: stride 1, for images of about 32x32."""
    return conv_norm(x, width, 3, norm=norm, activation=activation, name="", names=("conv1", "bn1", "act1"))


def strided_pool(x: Tensor, *, norm: Norm, activation: Activation) -> Tensor:
    """Apply a 3x3 convolution of stride 2, which replaces the stem's max pooling (Bello et al. 2021, ResNet-RS)."""
    names = ("maxpool.0", "maxpool.1", "maxpool.2")
    return conv_norm(x, x.shape[-1], 3, stride=2, norm=norm, activation=activation, name="", names=names)


def _pool(x: Tensor, downsample: Downsample | None) -> Tensor:
    if downsample is None:
        return blocks.max_pool(x, name="maxpool")
    if downsample is average_pool:  # timm omits the max pooling if the anti-aliasing is an average pooling
        return downsample(x, 2, name="maxpool")
    return downsample(blocks.max_pool(x, stride=1, name="maxpool.0"), 2, name="maxpool.1")


@dataclasses.dataclass(frozen=True)
class ResNetConfig(Config):
    """Configuration of a ResNet.

    Attributes:
        block: `basic`, `bottleneck` or `plain_basic`, or a tuple with one of them per stage.
        depths: Number of blocks per stage.
        stem: Layers before the first stage.
        shortcut: Shortcut of blocks that change the shape.
        widths: Channels of the 3x3 convolutions per stage; a bottleneck outputs four times as many.
        groups: Groups of the 3x3 convolutions (ResNeXt's cardinality).
        base_width: Channels per group in a stage of width 64.
        reduce_first: Divisor of the channels of a bottleneck's first convolution.
        attention: Channel attention at the end of each branch.
        downsample: Anti-aliased subsampling that replaces strides.
        norm: Normalisation after each convolution.
    """

    block: Callable[..., Tensor] | tuple[Callable[..., Tensor], ...]
    depths: tuple[int, ...]
    stem: Stem = imagenet_stem
    shortcut: Shortcut = projection
    widths: tuple[int, ...] = (64, 128, 256, 512)
    groups: int = 1
    base_width: int = 64
    reduce_first: int = 1
    attention: Attention | None = None
    downsample: Downsample | None = None
    norm: Norm = blocks.batch_norm

    def tiny(self) -> ResNetConfig:
        """Return the same topology with one or two blocks per stage, 32 to 64 channels and 64x64 images."""
        return dataclasses.replace(
            self,
            depths=(1, 2, 1, 1),
            widths=(32, 32, 64, 64),
            groups=min(self.groups, 4),
            base_width=self.base_width if self.groups == 1 else 16,
            input_shape=(64, 64, 3),
            classes=10,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNet(Network[ResNetConfig]):
    """A residual network of the ResNet family.

    The rank of the convolutions follows from `input_shape`: `(H, W, C)` for images, `(steps, C)` for signals,
    `(D, H, W, C)` for volumes or videos.

    Args:
        norm: Normalisation, such as `keras_residual.blocks.batch_norm`; defaults to the variant's.
        activation: Activation of the stem and the blocks, by name or as a function.
        stem: `imagenet_stem`, `deep_stem` or `small_stem` of this module, or a function with the same arguments;
            defaults to the variant's.
        stride_in: Convolution of a bottleneck that has the stride: `"3x3"` (v1.5, as in timm and torchvision) or
            `"1x1"` (the original v1).
        zero_init: If true, initialize each branch to output zero, by setting the scale of its last norm to 0.
    """

    norm: Norm | None = None
    activation: Activation = "relu"
    stem: Stem | None = None
    stride_in: str = "3x3"
    zero_init: bool = True

    def forward(self, row: ResNetConfig, x: Tensor) -> Tensor:
        inputs, norm, stem = x, self.norm or row.norm, self.stem or row.stem
        rules.require_function(stem, "stem", row.name)
        options: dict[str, Any] = {"shortcut": row.shortcut, "norm": norm, "activation": self.activation}
        options |= {"attention": row.attention, "downsample": row.downsample, "zero_init": self.zero_init}
        stages = row.block if isinstance(row.block, tuple) else (row.block,) * len(row.depths)
        if self.stride_in != "3x3" and bottleneck not in stages:
            raise ValueError(
                f"`stride_in` must be '3x3' for {row.name}, which has no bottleneck blocks; got {self.stride_in!r}."
            )

        x = stem(x, norm=norm, activation=self.activation, downsample=row.downsample)
        self.require_size(inputs, x, 2 ** (len(row.depths) - 1), None if stem is small_stem else small_stem)
        rates = iter(blocks.drop_path_rates(self.drop_path, sum(row.depths)))
        for stage, (block, depth, width) in enumerate(zip(stages, row.depths, row.widths, strict=True), start=1):
            filters, own = width, {}
            if block is bottleneck:
                filters = 4 * width
                own = {
                    "width": width * row.base_width // 64 * row.groups,
                    "groups": row.groups,
                    "reduce_first": row.reduce_first,
                    "stride_in": self.stride_in,
                }
            for i in range(depth):
                stride = 2 if stage > 1 and i == 0 else 1
                x = block(x, filters, stride=stride, drop_path=next(rates), name=f"layer{stage}.{i}", **options, **own)
            x = StageOutput(stage, name=f"layer{stage}")(x)
        return x

    @staticmethod
    def to_timm(state: State) -> State:
        """Convert the `.h5` file of a `keras.applications` ResNet."""
        return _keras_applications(state) if any("conv1_conv/" in key for key in state) else state


def _keras_applications(state: State) -> State:
    """Convert ResNet50, 101 or 152 of `keras.applications`: fold the convolutions' biases into the following norms."""
    result: State = {}
    biases: State = {}
    for key, value in state.items():
        layer, variable = key.split("/")[-2], key.split("/")[-1].partition(":")[0]
        name = _keras_name(layer)
        if name is None:
            raise ValueError(f"layer {layer!r} does not belong to a keras.applications ResNet")
        if variable == "kernel":
            axes = (1, 0) if value.ndim == 2 else (3, 2, 0, 1)
            result[f"{name}.weight"] = np.transpose(value, axes)
        elif layer.endswith("_conv") and variable == "bias":
            norm = _keras_name(layer.removesuffix("_conv") + "_bn")
            if norm is None:
                raise ValueError(f"layer {layer!r} has a bias but no batch normalisation to fold it into")
            biases[norm] = value
        else:
            result[f"{name}.{_KERAS_NORM[variable]}"] = value
    for norm, bias in biases.items():
        result[f"{norm}.running_mean"] = result[f"{norm}.running_mean"] - bias
    for key in [key for key in result if key.endswith(".running_var")]:
        result[key] = result[key] + np.float32(1.001e-5 - 1e-5)  # difference between the epsilons of Keras and torch
    return result


_KERAS_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "bias": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def _keras_name(layer: str) -> str | None:
    if layer in ("conv1_conv", "conv1_bn"):
        return "conv1" if layer == "conv1_conv" else "bn1"
    if layer in ("probs", "predictions"):
        return "fc"
    match = re.fullmatch(r"conv([2-5])_block(\d+)_([0-3])_(conv|bn)", layer)
    if not match:
        return None
    stage, block, place, kind = match.groups()
    base = f"layer{int(stage) - 1}.{int(block) - 1}"
    if place == "0":
        return f"{base}.downsample.{0 if kind == 'conv' else 1}"
    return f"{base}.{kind}{place}"


# Variants. Parameters and GMACs: timm and torchvision at the variant's input size.

_WIDE_STEM = partial(deep_stem, widths=(64, 64, 128))
_C: dict[str, Any] = {"stem": deep_stem}
_D: dict[str, Any] = {"stem": deep_stem, "shortcut": pooled_projection}
_T: dict[str, Any] = {"stem": partial(deep_stem, widths=(24, 32, 64)), "shortcut": pooled_projection}
_S: dict[str, Any] = {"stem": _WIDE_STEM}
_RS: dict[str, Any] = {
    "stem": partial(deep_stem, pool=strided_pool),
    "shortcut": pooled_projection,
    "attention": partial(squeeze_excite, ratio=0.25),
}

# fmt: off
ResNet10T = variant(ResNet, ResNetConfig("ResNet10T", basic, (1, 1, 1, 1), **_T,
    timm="resnet10t", tag="c3_in1k", params=5_435_488, gmacs=1.097, source="He et al. 2019"))
ResNet14T = variant(ResNet, ResNetConfig("ResNet14T", bottleneck, (1, 1, 1, 1), **_T,
    timm="resnet14t", tag="c3_in1k", params=10_081_632, gmacs=1.677, source="He et al. 2019"))
ResNet18 = variant(ResNet, ResNetConfig("ResNet18", basic, (2, 2, 2, 2),
    timm="resnet18", tag="a1_in1k", params=11_689_512, gmacs=1.814, source="He et al. 2016, table 1"))
ResNet18D = variant(ResNet, ResNetConfig("ResNet18D", basic, (2, 2, 2, 2), **_D,
    timm="resnet18d", tag="ra2_in1k", params=11_708_744, gmacs=2.054, source="He et al. 2019"))
ResNet34 = variant(ResNet, ResNetConfig("ResNet34", basic, (3, 4, 6, 3),
    timm="resnet34", tag="a1_in1k", params=21_797_672, gmacs=3.664, source="He et al. 2016, table 1"))
ResNet34D = variant(ResNet, ResNetConfig("ResNet34D", basic, (3, 4, 6, 3), **_D,
    timm="resnet34d", tag="ra2_in1k", params=21_816_904, gmacs=3.903, source="He et al. 2019"))
ResNet26 = variant(ResNet, ResNetConfig("ResNet26", bottleneck, (2, 2, 2, 2),
    timm="resnet26", tag="bt_in1k", params=15_995_176, gmacs=2.342, source="A form of timm, after He et al. 2016"))
ResNet26T = variant(ResNet, ResNetConfig("ResNet26T", bottleneck, (2, 2, 2, 2), **_T,
    timm="resnet26t", tag="ra2_in1k", params=16_011_872, gmacs=2.550, source="He et al. 2019"))
ResNet26D = variant(ResNet, ResNetConfig("ResNet26D", bottleneck, (2, 2, 2, 2), **_D,
    timm="resnet26d", tag="bt_in1k", params=16_014_408, gmacs=2.582, source="He et al. 2019"))
ResNet50 = variant(ResNet, ResNetConfig("ResNet50", bottleneck, (3, 4, 6, 3),
    timm="resnet50", tag="a1_in1k", params=25_557_032, gmacs=4.089, source="He et al. 2016, table 1"))
ResNet50C = variant(ResNet, ResNetConfig("ResNet50C", bottleneck, (3, 4, 6, 3), **_C,
    timm="resnet50c", tag="gluon_in1k", params=25_576_264, gmacs=4.329, source="He et al. 2019"))
ResNet50D = variant(ResNet, ResNetConfig("ResNet50D", bottleneck, (3, 4, 6, 3), **_D,
    timm="resnet50d", tag="ra2_in1k", params=25_576_264, gmacs=4.329, source="He et al. 2019"))
ResNet50S = variant(ResNet, ResNetConfig("ResNet50S", bottleneck, (3, 4, 6, 3), **_S,
    timm="resnet50s", tag="gluon_in1k", params=25_680_808, gmacs=5.444, source="He et al. 2019"))
ResNet50T = variant(ResNet, ResNetConfig("ResNet50T", bottleneck, (3, 4, 6, 3), **_T,
    timm="resnet50t", params=25_573_728, gmacs=4.297, source="He et al. 2019"))
ResNet101 = variant(ResNet, ResNetConfig("ResNet101", bottleneck, (3, 4, 23, 3),
    timm="resnet101", tag="a1h_in1k", params=44_549_160, gmacs=7.801, source="He et al. 2016, table 1"))
ResNet101C = variant(ResNet, ResNetConfig("ResNet101C", bottleneck, (3, 4, 23, 3), **_C,
    timm="resnet101c", tag="gluon_in1k", params=44_568_392, gmacs=8.041, source="He et al. 2019"))
ResNet101D = variant(ResNet, ResNetConfig("ResNet101D", bottleneck, (3, 4, 23, 3), **_D,
    timm="resnet101d", tag="ra2_in1k", params=44_568_392, gmacs=8.041, source="He et al. 2019"))
ResNet101S = variant(ResNet, ResNetConfig("ResNet101S", bottleneck, (3, 4, 23, 3), **_S,
    timm="resnet101s", tag="gluon_in1k", params=44_672_936, gmacs=9.157, source="He et al. 2019"))
ResNet152 = variant(ResNet, ResNetConfig("ResNet152", bottleneck, (3, 8, 36, 3),
    timm="resnet152", tag="a1h_in1k", params=60_192_808, gmacs=11.51, source="He et al. 2016, table 1"))
ResNet152C = variant(ResNet, ResNetConfig("ResNet152C", bottleneck, (3, 8, 36, 3), **_C,
    timm="resnet152c", tag="gluon_in1k", params=60_212_040, gmacs=11.75, source="He et al. 2019"))
ResNet152D = variant(ResNet, ResNetConfig("ResNet152D", bottleneck, (3, 8, 36, 3), **_D,
    timm="resnet152d", tag="ra2_in1k", params=60_212_040, gmacs=11.75, source="He et al. 2019"))
ResNet152S = variant(ResNet, ResNetConfig("ResNet152S", bottleneck, (3, 8, 36, 3), **_S,
    timm="resnet152s", tag="gluon_in1k", params=60_316_584, gmacs=12.87, source="He et al. 2019"))
ResNet200 = variant(ResNet, ResNetConfig("ResNet200", bottleneck, (3, 24, 36, 3),
    timm="resnet200", params=64_673_832, gmacs=15.01, source="A form of timm, after He et al. 2016"))
ResNet200D = variant(ResNet, ResNetConfig("ResNet200D", bottleneck, (3, 24, 36, 3), **_D,
    timm="resnet200d", tag="ra2_in1k", params=64_693_064, gmacs=15.25, source="He et al. 2019"))
WideResNet50_2 = variant(ResNet, ResNetConfig("WideResNet50_2", bottleneck, (3, 4, 6, 3), base_width=128,
    timm="wide_resnet50_2", tag="racm_in1k", params=68_883_240, gmacs=11.40, source="Zagoruyko & Komodakis 2016"))
WideResNet101_2 = variant(ResNet, ResNetConfig("WideResNet101_2", bottleneck, (3, 4, 23, 3), base_width=128,
    timm="wide_resnet101_2", tag="tv_in1k", params=126_886_696, gmacs=22.75, source="Zagoruyko & Komodakis 2016"))
ResNet50GN = variant(ResNet, ResNetConfig("ResNet50GN", bottleneck, (3, 4, 6, 3), norm=group_norm,
    timm="resnet50_gn", tag="a1h_in1k", params=25_557_032, gmacs=4.089, source="Wu & He 2018"))
ResNeXt50_32x4d = variant(ResNet, ResNetConfig("ResNeXt50_32x4d", bottleneck, (3, 4, 6, 3), groups=32, base_width=4,
    timm="resnext50_32x4d", tag="a1h_in1k", params=25_028_904, gmacs=4.230, source="Xie et al. 2017"))
ResNeXt50D_32x4d = variant(ResNet, ResNetConfig("ResNeXt50D_32x4d", bottleneck, (3, 4, 6, 3), **_D, groups=32,
    base_width=4,
    timm="resnext50d_32x4d", tag="bt_in1k", params=25_048_136, gmacs=4.470, source="Xie et al. 2017"))
ResNeXt101_32x4d = variant(ResNet, ResNetConfig("ResNeXt101_32x4d", bottleneck, (3, 4, 23, 3), groups=32,
    base_width=4,
    timm="resnext101_32x4d", tag="fb_ssl_yfcc100m_ft_in1k", params=44_177_704, gmacs=7.970,
    source="Xie et al. 2017"))
ResNeXt101_32x8d = variant(ResNet, ResNetConfig("ResNeXt101_32x8d", bottleneck, (3, 4, 23, 3), groups=32,
    base_width=8,
    timm="resnext101_32x8d", tag="tv_in1k", params=88_791_336, gmacs=16.41, source="Xie et al. 2017"))
ResNeXt101_32x16d = variant(ResNet, ResNetConfig("ResNeXt101_32x16d", bottleneck, (3, 4, 23, 3), groups=32,
    base_width=16,
    timm="resnext101_32x16d", tag="fb_wsl_ig1b_ft_in1k", params=194_026_792, gmacs=36.16, source="Xie et al. 2017"))
ResNeXt101_32x32d = variant(ResNet, ResNetConfig("ResNeXt101_32x32d", bottleneck, (3, 4, 23, 3), groups=32,
    base_width=32,
    timm="resnext101_32x32d", tag="fb_wsl_ig1b_ft_in1k", params=468_530_472, gmacs=87.11, source="Xie et al. 2017"))
ResNeXt101_64x4d = variant(ResNet, ResNetConfig("ResNeXt101_64x4d", bottleneck, (3, 4, 23, 3), groups=64,
    base_width=4,
    timm="resnext101_64x4d", tag="c1_in1k", params=83_455_272, gmacs=15.46, source="Xie et al. 2017"))
ECAResNet26T = variant(ResNet, ResNetConfig("ECAResNet26T", bottleneck, (2, 2, 2, 2), **_T,
    attention=efficient_channel_attention,
    timm="ecaresnet26t", tag="ra2_in1k", params=16_011_916, gmacs=2.550, source="Wang et al. 2020"))
ECAResNet50D = variant(ResNet, ResNetConfig("ECAResNet50D", bottleneck, (3, 4, 6, 3), **_D,
    attention=efficient_channel_attention,
    timm="ecaresnet50d", tag="miil_in1k", params=25_576_350, gmacs=4.329, source="Wang et al. 2020"))
ECAResNet50T = variant(ResNet, ResNetConfig("ECAResNet50T", bottleneck, (3, 4, 6, 3), **_T,
    attention=efficient_channel_attention,
    timm="ecaresnet50t", tag="ra2_in1k", params=25_573_814, gmacs=4.297, source="Wang et al. 2020"))
ECAResNetLight = variant(ResNet, ResNetConfig("ECAResNetLight", bottleneck, (1, 1, 11, 3), shortcut=pooled_projection,
    attention=efficient_channel_attention,
    timm="ecaresnetlight", tag="miil_in1k", params=30_162_046, gmacs=4.089, source="Wang et al. 2020"))
ECAResNet101D = variant(ResNet, ResNetConfig("ECAResNet101D", bottleneck, (3, 4, 23, 3), **_D,
    attention=efficient_channel_attention,
    timm="ecaresnet101d", tag="miil_in1k", params=44_568_563, gmacs=8.041, source="Wang et al. 2020"))
ECAResNet200D = variant(ResNet, ResNetConfig("ECAResNet200D", bottleneck, (3, 24, 36, 3), **_D,
    attention=efficient_channel_attention,
    timm="ecaresnet200d", params=64_693_400, gmacs=15.25, source="Wang et al. 2020"))
ECAResNet269D = variant(ResNet, ResNetConfig("ECAResNet269D", bottleneck, (3, 30, 48, 8), **_D,
    attention=efficient_channel_attention,
    timm="ecaresnet269d", tag="ra2_in1k", params=102_093_077, gmacs=20.27, source="Wang et al. 2020"))
ECAResNeXt26T_32x4d = variant(ResNet, ResNetConfig("ECAResNeXt26T_32x4d", bottleneck, (2, 2, 2, 2), **_T, groups=32,
    base_width=4, attention=efficient_channel_attention,
    timm="ecaresnext26t_32x4d", params=15_406_220, gmacs=2.679, source="Wang et al. 2020"))
ECAResNeXt50T_32x4d = variant(ResNet, ResNetConfig("ECAResNeXt50T_32x4d", bottleneck, (3, 4, 6, 3), **_T, groups=32,
    base_width=4, attention=efficient_channel_attention,
    timm="ecaresnext50t_32x4d", params=25_045_686, gmacs=4.439, source="Wang et al. 2020"))
SEResNet18 = variant(ResNet, ResNetConfig("SEResNet18", basic, (2, 2, 2, 2), attention=squeeze_excite,
    timm="seresnet18", params=11_779_624, gmacs=1.814, source="Hu et al. 2018"))
SEResNet34 = variant(ResNet, ResNetConfig("SEResNet34", basic, (3, 4, 6, 3), attention=squeeze_excite,
    timm="seresnet34", params=21_960_416, gmacs=3.664, source="Hu et al. 2018"))
SEResNet50 = variant(ResNet, ResNetConfig("SEResNet50", bottleneck, (3, 4, 6, 3), attention=squeeze_excite,
    timm="seresnet50", tag="a1_in1k", params=28_088_024, gmacs=4.092, source="Hu et al. 2018"))
SEResNet50T = variant(ResNet, ResNetConfig("SEResNet50T", bottleneck, (3, 4, 6, 3), **_T, attention=squeeze_excite,
    timm="seresnet50t", params=28_104_720, gmacs=4.300, source="Hu et al. 2018"))
SEResNet101 = variant(ResNet, ResNetConfig("SEResNet101", bottleneck, (3, 4, 23, 3), attention=squeeze_excite,
    timm="seresnet101", params=49_326_872, gmacs=7.806, source="Hu et al. 2018"))
SEResNet152 = variant(ResNet, ResNetConfig("SEResNet152", bottleneck, (3, 8, 36, 3), attention=squeeze_excite,
    timm="seresnet152", params=66_821_848, gmacs=11.52, source="Hu et al. 2018"))
SEResNet152D = variant(ResNet, ResNetConfig("SEResNet152D", bottleneck, (3, 8, 36, 3), **_D, attention=squeeze_excite,
    timm="seresnet152d", tag="ra2_in1k", params=66_841_080, gmacs=11.76, source="Hu et al. 2018"))
SEResNet200D = variant(ResNet, ResNetConfig("SEResNet200D", bottleneck, (3, 24, 36, 3), **_D,
    attention=squeeze_excite,
    timm="seresnet200d", params=71_855_096, gmacs=15.25, source="Hu et al. 2018"))
SEResNet269D = variant(ResNet, ResNetConfig("SEResNet269D", bottleneck, (3, 30, 48, 8), **_D,
    attention=squeeze_excite,
    timm="seresnet269d", params=113_672_760, gmacs=20.28, source="Hu et al. 2018"))
SEResNeXt26D_32x4d = variant(ResNet, ResNetConfig("SEResNeXt26D_32x4d", bottleneck, (2, 2, 2, 2), **_D, groups=32,
    base_width=4, attention=squeeze_excite,
    timm="seresnext26d_32x4d", tag="bt_in1k", params=16_809_512, gmacs=2.712, source="Hu et al. 2018"))
SEResNeXt26T_32x4d = variant(ResNet, ResNetConfig("SEResNeXt26T_32x4d", bottleneck, (2, 2, 2, 2), **_T, groups=32,
    base_width=4, attention=squeeze_excite,
    timm="seresnext26t_32x4d", tag="bt_in1k", params=16_806_976, gmacs=2.680, source="Hu et al. 2018"))
SEResNeXt50_32x4d = variant(ResNet, ResNetConfig("SEResNeXt50_32x4d", bottleneck, (3, 4, 6, 3), groups=32,
    base_width=4, attention=squeeze_excite,
    timm="seresnext50_32x4d", tag="racm_in1k", params=27_559_896, gmacs=4.233, source="Hu et al. 2018"))
SEResNeXt101_32x4d = variant(ResNet, ResNetConfig("SEResNeXt101_32x4d", bottleneck, (3, 4, 23, 3), groups=32,
    base_width=4, attention=squeeze_excite,
    timm="seresnext101_32x4d", tag="gluon_in1k", params=48_955_416, gmacs=7.975, source="Hu et al. 2018"))
SEResNeXt101_32x8d = variant(ResNet, ResNetConfig("SEResNeXt101_32x8d", bottleneck, (3, 4, 23, 3), groups=32,
    base_width=8, attention=squeeze_excite,
    timm="seresnext101_32x8d", tag="ah_in1k", params=93_569_048, gmacs=16.42, source="Hu et al. 2018"))
SEResNeXt101D_32x8d = variant(ResNet, ResNetConfig("SEResNeXt101D_32x8d", bottleneck, (3, 4, 23, 3), **_D, groups=32,
    base_width=8, attention=squeeze_excite,
    timm="seresnext101d_32x8d", tag="ah_in1k", params=93_588_280, gmacs=16.66, source="Hu et al. 2018"))
SEResNeXt101_64x4d = variant(ResNet, ResNetConfig("SEResNeXt101_64x4d", bottleneck, (3, 4, 23, 3), groups=64,
    base_width=4, attention=squeeze_excite,
    timm="seresnext101_64x4d", tag="gluon_in1k", params=88_232_984, gmacs=15.47, source="Hu et al. 2018"))
SENet154 = variant(ResNet, ResNetConfig("SENet154", bottleneck, (3, 8, 36, 3), **_S, groups=64, base_width=4,
    reduce_first=2, shortcut=partial(projection, kernel=3), attention=squeeze_excite,
    timm="senet154", tag="gluon_in1k", params=115_088_984, gmacs=20.69, source="Hu et al. 2018"))
ResNetBlur18 = variant(ResNet, ResNetConfig("ResNetBlur18", basic, (2, 2, 2, 2), downsample=blur_pool,
    timm="resnetblur18", params=11_689_512, gmacs=2.338, source="Zhang 2019"))
ResNetBlur50 = variant(ResNet, ResNetConfig("ResNetBlur50", bottleneck, (3, 4, 6, 3), downsample=blur_pool,
    timm="resnetblur50", tag="bt_in1k", params=25_557_032, gmacs=5.133, source="Zhang 2019"))
ResNetBlur50D = variant(ResNet, ResNetConfig("ResNetBlur50D", bottleneck, (3, 4, 6, 3), **_D, downsample=blur_pool,
    timm="resnetblur50d", params=25_576_264, gmacs=5.373, source="Zhang 2019"))
ResNetBlur101D = variant(ResNet, ResNetConfig("ResNetBlur101D", bottleneck, (3, 4, 23, 3), **_D, downsample=blur_pool,
    timm="resnetblur101d", params=44_568_392, gmacs=9.085, source="Zhang 2019"))
ResNetAA34D = variant(ResNet, ResNetConfig("ResNetAA34D", basic, (3, 4, 6, 3), **_D, downsample=average_pool,
    timm="resnetaa34d", params=21_816_904, gmacs=4.424, source="Zhang 2019"))
ResNetAA50 = variant(ResNet, ResNetConfig("ResNetAA50", bottleneck, (3, 4, 6, 3), downsample=average_pool,
    timm="resnetaa50", tag="a1h_in1k", params=25_557_032, gmacs=5.130, source="Zhang 2019"))
ResNetAA50D = variant(ResNet, ResNetConfig("ResNetAA50D", bottleneck, (3, 4, 6, 3), **_D, downsample=average_pool,
    timm="resnetaa50d", tag="sw_in12k_ft_in1k", params=25_576_264, gmacs=5.369, source="Zhang 2019"))
ResNetAA101D = variant(ResNet, ResNetConfig("ResNetAA101D", bottleneck, (3, 4, 23, 3), **_D, downsample=average_pool,
    timm="resnetaa101d", tag="sw_in12k_ft_in1k", params=44_568_392, gmacs=9.081, source="Zhang 2019"))
SEResNetAA50D = variant(ResNet, ResNetConfig("SEResNetAA50D", bottleneck, (3, 4, 6, 3), **_D,
    attention=squeeze_excite, downsample=average_pool,
    timm="seresnetaa50d", params=28_107_256, gmacs=5.372, source="Zhang 2019"))
SEResNeXtAA101D_32x8d = variant(ResNet, ResNetConfig("SEResNeXtAA101D_32x8d", bottleneck, (3, 4, 23, 3), **_D,
    groups=32, base_width=8, attention=squeeze_excite, downsample=average_pool,
    timm="seresnextaa101d_32x8d", tag="sw_in12k_ft_in1k_288", params=93_588_280, gmacs=17.18, source="Zhang 2019"))
SEResNeXtAA201D_32x8d = variant(ResNet, ResNetConfig("SEResNeXtAA201D_32x8d", bottleneck, (3, 24, 36, 4),
    stem=_WIDE_STEM, shortcut=pooled_projection, groups=32, base_width=8, attention=squeeze_excite,
    downsample=average_pool,
    timm="seresnextaa201d_32x8d", tag="sw_in12k_ft_in1k_384", params=149_394_904, gmacs=34.28, source="Zhang 2019"))
ResNetRS50 = variant(ResNet, ResNetConfig("ResNetRS50", bottleneck, (3, 4, 6, 3), **_RS,
    timm="resnetrs50", tag="tf_in1k", input_shape=(160, 160, 3), params=35_691_912, gmacs=2.279,
    source="Bello et al. 2021"))
ResNetRS101 = variant(ResNet, ResNetConfig("ResNetRS101", bottleneck, (3, 4, 23, 3), **_RS,
    timm="resnetrs101", tag="tf_in1k", input_shape=(192, 192, 3), params=63_618_696, gmacs=6.012,
    source="Bello et al. 2021"))
ResNetRS152 = variant(ResNet, ResNetConfig("ResNetRS152", bottleneck, (3, 8, 36, 3), **_RS,
    timm="resnetrs152", tag="tf_in1k", input_shape=(256, 256, 3), params=86_621_576, gmacs=15.53,
    source="Bello et al. 2021"))
ResNetRS200 = variant(ResNet, ResNetConfig("ResNetRS200", bottleneck, (3, 24, 36, 3), **_RS,
    timm="resnetrs200", tag="tf_in1k", input_shape=(256, 256, 3), params=93_209_992, gmacs=20.09,
    source="Bello et al. 2021"))
ResNetRS270 = variant(ResNet, ResNetConfig("ResNetRS270", bottleneck, (4, 29, 53, 4), **_RS,
    timm="resnetrs270", tag="tf_in1k", input_shape=(256, 256, 3), params=129_861_448, gmacs=26.95,
    source="Bello et al. 2021"))
ResNetRS350 = variant(ResNet, ResNetConfig("ResNetRS350", bottleneck, (4, 36, 72, 4), **_RS,
    timm="resnetrs350", tag="tf_in1k", input_shape=(288, 288, 3), params=163_956_168, gmacs=43.49,
    source="Bello et al. 2021"))
ResNetRS420 = variant(ResNet, ResNetConfig("ResNetRS420", bottleneck, (4, 44, 87, 4), **_RS,
    timm="resnetrs420", tag="tf_in1k", input_shape=(320, 320, 3), params=191_891_656, gmacs=63.94,
    source="Bello et al. 2021"))
TestResNet = variant(ResNet, ResNetConfig("TestResNet", (basic, basic, bottleneck, basic), (1, 1, 1, 1),
    stem=partial(deep_stem, widths=(16, 16, 32)), shortcut=pooled_projection, widths=(32, 48, 48, 96),
    timm="test_resnet", tag="r160_in1k", input_shape=(160, 160, 3), params=469_688, gmacs=0.103,
    source="A small network of timm\'s, for tests"))

# Plain networks of He et al. 2016, figure 4: the same layers without skip connections.
PlainNet18 = variant(ResNet, ResNetConfig("PlainNet18", plain_basic, (2, 2, 2, 2),
    source="He et al. 2016, table 2: plain-18"))
PlainNet34 = variant(ResNet, ResNetConfig("PlainNet34", plain_basic, (3, 4, 6, 3),
    source="He et al. 2016, table 2: plain-34"))
