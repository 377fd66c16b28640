"""ConvNeXt and ConvNeXt V2: depthwise 7x7 convolutions, with one norm and one activation per block.

The topology and the names of networks and layers follow timm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import keras

from keras_residual import blocks
from keras_residual.blocks import Activation, Norm, Tensor, layer_norm, mlp, pointwise, rms_norm, simple_norm
from keras_residual.layers import StageOutput
from keras_residual.models._network import Network
from keras_residual.registry import Config, variant
from keras_residual.weights.formats import State, renamed


class Stem(Protocol):
    """Protocol for the layers of stride 4 before the first stage."""

    def __call__(self, x: Tensor, width: int, *, norm: Norm, activation: Activation) -> Tensor: ...


def patch_stem(x: Tensor, width: int, *, norm: Norm, activation: Activation) -> Tensor:
    """Embed patches of 4x4 pixels and normalise them (Liu et al. 2022, section 2.3)."""
    x = blocks.patches(x, width, 4, initializer=_initializer(), name="stem", layer="0")
    return norm(x, name="stem.1")


def overlapped_stem(
    x: Tensor, width: int, *, norm: Norm, activation: Activation, tiered: bool = False, activated: bool = False
) -> Tensor:
    """Embed overlapping patches by two 3x3 convolutions of stride 2, as in timm's `_ols` networks.

    With `tiered`, the first convolution has half the channels. With `activated`, an activation follows it.
    """
    first = max(8, (width // 2 + 4) // 8 * 8) if tiered else width  # timm rounds to a multiple of 8
    x = blocks.convolution(x, first, 3, stride=2, initializer=_initializer(), name="stem.0")
    if activated:
        x = blocks.activate(x, activation, name="stem.1")
    second = 1 + activated
    x = blocks.convolution(x, width, 3, stride=2, initializer=_initializer(), name=f"stem.{second}")
    return norm(x, name=f"stem.{second + 1}")


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig(Config):
    """Configuration of a ConvNeXt.

    Attributes:
        depths: Number of blocks per stage.
        widths: Channels per stage.
        stem: Layers before the first stage.
        kernels: Kernel size of the depthwise convolutions per stage.
        feed_forward: `blocks.mlp`, possibly with options: 1x1 convolutions as in timm's smaller networks, or response
            normalisation (V2).
        activation: Activation of the blocks.
        norm: Normalisation of all layers.
        norm_first: If true, the last norm precedes pooling; otherwise it follows pooling.
        hidden: Channels of an additional layer before the classifier; 0 for none.
        scale: Initial value of LayerScale; `None` for no LayerScale (V2).
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stem: Stem = patch_stem
    kernels: tuple[int, ...] = (7, 7, 7, 7)
    feed_forward: Callable[..., Tensor] = mlp
    activation: Activation = "gelu"
    norm: Norm = layer_norm
    norm_first: bool = False
    hidden: int = 0
    scale: float | None = 1e-6
    head: tuple[str, ...] = dataclasses.field(default=("head.fc",), kw_only=True)
    top: tuple[str, ...] = dataclasses.field(default=("head.",), kw_only=True)

    def tiny(self) -> ConvNeXtConfig:
        """Return the same topology with one or two blocks per stage, 32 to 64 channels and 64x64 images."""
        return dataclasses.replace(
            self,
            depths=(1, 2, 1, 1),
            widths=(32, 48, 48, 64),
            hidden=48 if self.hidden else 0,
            input_shape=(64, 64, 3),
            classes=10,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvNeXt(Network[ConvNeXtConfig]):
    """A ConvNeXt.

    The rank of the convolutions follows from `input_shape`: `(H, W, C)` for images, `(steps, C)` for signals,
    `(D, H, W, C)` for volumes or videos.

    Args:
        include_top: If true, include the classification head: pooling, a norm and the classifier.
        pooling: Output if `include_top` is false: `None` for the feature map `(N, *spatial, C)`, `"avg"` or `"max"`
            for pooled features `(N, C)`. A last norm that follows pooling belongs to the top.
        classes: Number of outputs of the classifier; 0 for the pooled and normalised features without a classifier.
        dropout: Dropout rate before the classifier.
        norm: Normalisation, such as `keras_residual.blocks.layer_norm`; defaults to the variant's.
        activation: Activation of the blocks; defaults to the variant's.
    """

    dropout: float = 0.0
    norm: Norm | None = None
    activation: Activation = None

    def forward(self, row: ConvNeXtConfig, x: Tensor) -> Tensor:
        norm, activation = self.norm or row.norm, self.activation or row.activation
        self.require_size(x, x, 4 * 2 ** (len(row.depths) - 1))
        x = row.stem(x, row.widths[0], norm=norm, activation=activation)
        rates = iter(blocks.drop_path_rates(self.drop_path, sum(row.depths)))
        for stage, (depth, width, kernel) in enumerate(zip(row.depths, row.widths, row.kernels, strict=True)):
            if stage:
                x = norm(x, name=f"stages.{stage}.downsample.0")
                place = f"stages.{stage}.downsample"
                x = blocks.patches(x, width, 2, initializer=_initializer(), name=place, layer="1")
            for i in range(depth):
                x = blocks.convnext(
                    x,
                    kernel=kernel,
                    feed_forward=row.feed_forward,
                    norm=norm,
                    activation=activation,
                    scale=row.scale,
                    drop_path=next(rates),
                    name=f"stages.{stage}.blocks.{i}",
                )
            x = StageOutput(stage + 1, name=f"stages.{stage}")(x)
        return norm(x, name="norm_pre") if row.norm_first else x

    def finish(self, row: ConvNeXtConfig, x: Tensor) -> Tensor:
        if not row.norm_first:
            x = (self.norm or row.norm)(x, name="head.norm")
        if row.hidden:
            x = blocks.dense(x, row.hidden, name="head.pre_logits.fc")
            x = blocks.activate(x, "gelu", name="head.pre_logits.act")
        return keras.layers.Dropout(self.dropout, name="head.drop")(x)

    def classifier(self) -> Callable[..., keras.layers.Layer]:
        return partial(keras.layers.Dense, self.classes, kernel_initializer=_initializer())

    @staticmethod
    def to_timm(state: State) -> State:
        """Convert Meta's checkpoints of ConvNeXt, ConvNeXt V2 and DINOv3."""
        return _facebook(state) if "downsample_layers.0.0.weight" in state else state


def _facebook(state: State) -> State:
    """Convert Meta's ConvNeXt, ConvNeXt V2 and DINOv3 ConvNeXts; drop the norms of DINOv3's inner stages."""
    state = {key: value for key, value in state.items() if not key.startswith("norms.")}
    state = renamed(
        state,
        (
            (r"^downsample_layers\.0\.", "stem."),
            (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
            (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\.dwconv\.", ".conv_dw."),
            (r"\.pwconv([12])\.", r".mlp.fc\1."),
            (r"\.grn\.gamma$", ".mlp.grn.weight"),
            (r"\.grn\.beta$", ".mlp.grn.bias"),
            (r"^head\.", "head.fc."),
            (r"^norm\.", "head.norm."),
        ),
    )
    return {key: value.reshape(-1) if ".grn." in key else value for key, value in state.items()}


def _initializer() -> Any:
    return keras.initializers.TruncatedNormal(stddev=0.02)


# Variants. Parameters and GMACs: timm at the variant's input size.

# timm implements the MLPs of its smaller networks as 1x1 convolutions.
_CONV: dict[str, Any] = {"feed_forward": partial(mlp, linear=pointwise)}
_V2: dict[str, Any] = {"feed_forward": partial(mlp, response_norm=True), "scale": None}
_CONV_V2: dict[str, Any] = {"feed_forward": partial(mlp, linear=pointwise, response_norm=True), "scale": None}
_OLS = partial(overlapped_stem, tiered=True)
_TORCH: dict[str, Any] = {"norm": partial(layer_norm, epsilon=1e-5)}

# fmt: off
ConvNeXtZeptoRMS = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtZeptoRMS", (2, 2, 4, 2), (32, 64, 128, 256), **_CONV,
    norm=simple_norm,
    timm="convnext_zepto_rms", tag="ra4_e3600_r224_in1k", params=2_155_656, gmacs=0.302,
    source="A form of timm, after Liu et al. 2022"))
ConvNeXtZeptoRMSOLS = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtZeptoRMSOLS", (2, 2, 4, 2), (32, 64, 128, 256),
    **_CONV, stem=partial(overlapped_stem, activated=True), norm=simple_norm,
    timm="convnext_zepto_rms_ols", tag="ra4_e3600_r224_in1k", params=2_164_232, gmacs=0.337,
    source="A form of timm, after Liu et al. 2022"))
ConvNeXtAtto = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtAtto", (2, 2, 6, 2), (40, 80, 160, 320), **_CONV,
    timm="convnext_atto", tag="d2_in1k", params=3_695_520, gmacs=0.547,
    source="A form of timm, after Liu et al. 2022"))
ConvNeXtAttoOLS = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtAttoOLS", (2, 2, 6, 2), (40, 80, 160, 320), **_CONV,
    stem=_OLS,
    timm="convnext_atto_ols", tag="a2_in1k", params=3_702_912, gmacs=0.577,
    source="A form of timm, after Liu et al. 2022"))
ConvNeXtAttoRMS = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtAttoRMS", (2, 2, 6, 2), (40, 80, 160, 320), **_CONV,
    norm=rms_norm,
    timm="convnext_atto_rms", params=3_693_040, gmacs=0.547, source="A form of timm, after Liu et al. 2022"))
ConvNeXtFemto = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtFemto", (2, 2, 6, 2), (48, 96, 192, 384), **_CONV,
    timm="convnext_femto", tag="d1_in1k", params=5_217_784, gmacs=0.780,
    source="A form of timm, after Liu et al. 2022"))
ConvNeXtFemtoOLS = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtFemtoOLS", (2, 2, 6, 2), (48, 96, 192, 384), **_CONV,
    stem=_OLS,
    timm="convnext_femto_ols", tag="d1_in1k", params=5_226_520, gmacs=0.813,
    source="A form of timm, after Liu et al. 2022"))
ConvNeXtPico = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtPico", (2, 2, 6, 2), (64, 128, 256, 512), **_CONV,
    timm="convnext_pico", tag="d1_in1k", params=9_045_672, gmacs=1.367,
    source="A form of timm, after Liu et al. 2022"))
ConvNeXtPicoOLS = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtPicoOLS", (2, 2, 6, 2), (64, 128, 256, 512), **_CONV,
    stem=_OLS,
    timm="convnext_pico_ols", tag="d1_in1k", params=9_061_928, gmacs=1.426,
    source="A form of timm, after Liu et al. 2022"))
ConvNeXtNano = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtNano", (2, 2, 8, 2), (80, 160, 320, 640), **_CONV,
    timm="convnext_nano", tag="in12k_ft_in1k", params=15_593_560, gmacs=2.446,
    source="A form of timm, after Liu et al. 2022"))
ConvNeXtNanoOLS = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtNanoOLS", (2, 2, 8, 2), (80, 160, 320, 640), **_CONV,
    stem=overlapped_stem,
    timm="convnext_nano_ols", tag="d1h_in1k", params=15_649_560, gmacs=2.641,
    source="A form of timm, after Liu et al. 2022"))
ConvNeXtTinyHNF = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtTinyHNF", (3, 3, 9, 3), (96, 192, 384, 768), **_CONV,
    norm_first=True,
    timm="convnext_tiny_hnf", tag="a2h_in1k", params=28_589_128, gmacs=4.456,
    source="A form of timm, after Liu et al. 2022"))
ConvNeXtTiny = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtTiny", (3, 3, 9, 3), (96, 192, 384, 768),
    timm="convnext_tiny", tag="in12k_ft_in1k", params=28_589_128, gmacs=4.456, source="Liu et al. 2022"))
ConvNeXtSmall = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtSmall", (3, 3, 27, 3), (96, 192, 384, 768),
    timm="convnext_small", tag="in12k_ft_in1k", params=50_223_688, gmacs=8.684, source="Liu et al. 2022"))
ConvNeXtBase = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtBase", (3, 3, 27, 3), (128, 256, 512, 1024),
    timm="convnext_base", tag="fb_in22k_ft_in1k", params=88_591_464, gmacs=15.35, source="Liu et al. 2022"))
ConvNeXtLarge = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtLarge", (3, 3, 27, 3), (192, 384, 768, 1536),
    timm="convnext_large", tag="fb_in22k_ft_in1k", params=197_767_336, gmacs=34.36, source="Liu et al. 2022"))
ConvNeXtLargeMLP = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtLargeMLP", (3, 3, 27, 3), (192, 384, 768, 1536),
    hidden=1536,
    timm="convnext_large_mlp", tag="clip_laion2b_soup_ft_in12k_in1k_320", input_shape=(320, 320, 3),
    params=200_128_168, gmacs=70.13, source="OpenCLIP, after Liu et al. 2022"))
ConvNeXtXLarge = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtXLarge", (3, 3, 27, 3), (256, 512, 1024, 2048),
    timm="convnext_xlarge", tag="fb_in22k_ft_in1k", params=350_196_968, gmacs=60.92, source="Liu et al. 2022"))
ConvNeXtXXLarge = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtXXLarge", (3, 4, 30, 3), (384, 768, 1536, 3072), **_TORCH,
    timm="convnext_xxlarge", tag="clip_laion2b_soup_ft_in1k", input_shape=(256, 256, 3), params=846_471_016,
    gmacs=197.97, source="OpenCLIP, after Liu et al. 2022"))
ConvNeXtV2Atto = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtV2Atto", (2, 2, 6, 2), (40, 80, 160, 320), **_CONV_V2,
    timm="convnextv2_atto", tag="fcmae_ft_in1k", params=3_708_400, gmacs=0.547, source="Woo et al. 2023"))
ConvNeXtV2Femto = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtV2Femto", (2, 2, 6, 2), (48, 96, 192, 384), **_CONV_V2,
    timm="convnextv2_femto", tag="fcmae_ft_in1k", params=5_233_240, gmacs=0.780, source="Woo et al. 2023"))
ConvNeXtV2Pico = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtV2Pico", (2, 2, 6, 2), (64, 128, 256, 512), **_CONV_V2,
    timm="convnextv2_pico", tag="fcmae_ft_in1k", params=9_066_280, gmacs=1.367, source="Woo et al. 2023"))
ConvNeXtV2Nano = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtV2Nano", (2, 2, 8, 2), (80, 160, 320, 640), **_CONV_V2,
    timm="convnextv2_nano", tag="fcmae_ft_in22k_in1k", params=15_623_800, gmacs=2.446, source="Woo et al. 2023"))
ConvNeXtV2Tiny = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtV2Tiny", (3, 3, 9, 3), (96, 192, 384, 768), **_V2,
    timm="convnextv2_tiny", tag="fcmae_ft_in22k_in1k", params=28_635_496, gmacs=4.456, source="Woo et al. 2023"))
ConvNeXtV2Small = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtV2Small", (3, 3, 27, 3), (96, 192, 384, 768), **_V2,
    timm="convnextv2_small", params=50_318_440, gmacs=8.684, source="Woo et al. 2023"))
ConvNeXtV2Base = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtV2Base", (3, 3, 27, 3), (128, 256, 512, 1024), **_V2,
    timm="convnextv2_base", tag="fcmae_ft_in22k_in1k", params=88_717_800, gmacs=15.35, source="Woo et al. 2023"))
ConvNeXtV2Large = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtV2Large", (3, 3, 27, 3), (192, 384, 768, 1536), **_V2,
    timm="convnextv2_large", tag="fcmae_ft_in22k_in1k", params=197_956_840, gmacs=34.36, source="Woo et al. 2023"))
ConvNeXtV2Huge = variant(ConvNeXt, ConvNeXtConfig("ConvNeXtV2Huge", (3, 3, 27, 3), (352, 704, 1408, 2816), **_V2,
    timm="convnextv2_huge", tag="fcmae_ft_in22k_in1k_384", input_shape=(384, 384, 3), params=660_289_640,
    gmacs=337.72, source="Woo et al. 2023"))
TestConvNeXt = variant(ConvNeXt, ConvNeXtConfig("TestConvNeXt", (1, 2, 4, 2), (24, 32, 48, 64),
    activation="gelu_tanh", **_TORCH,
    timm="test_convnext", tag="r160_in1k", input_shape=(160, 160, 3), params=272_128, gmacs=0.031,
    source="A form of timm, after Liu et al. 2022"))
TestConvNeXt2 = variant(ConvNeXt, ConvNeXtConfig("TestConvNeXt2", (1, 1, 1, 1), (32, 64, 96, 128),
    activation="gelu_tanh", **_TORCH,
    timm="test_convnext2", tag="r160_in1k", input_shape=(160, 160, 3), params=477_800, gmacs=0.051,
    source="A form of timm, after Liu et al. 2022"))
TestConvNeXt3 = variant(ConvNeXt, ConvNeXtConfig("TestConvNeXt3", (1, 1, 1, 1), (32, 64, 96, 128),
    kernels=(7, 5, 5, 3), activation="silu", **_TORCH,
    timm="test_convnext3", tag="r160_in1k", input_shape=(160, 160, 3), params=468_840, gmacs=0.050,
    source="A form of timm, after Liu et al. 2022"))
