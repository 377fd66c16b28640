"""RegNet X, Y, Z and V: grouped bottlenecks whose widths follow a quantised linear function of depth.

The topology and the names of networks and layers follow timm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from keras_residual import blocks
from keras_residual.blocks import Activation, Norm, Tensor, activate, conv_norm, convolution, rules, squeeze_excite
from keras_residual.layers import StageOutput
from keras_residual.models._network import Network
from keras_residual.registry import Config, variant
from keras_residual.weights.formats import State, renamed


def post_activation(
    x: Tensor,
    filters: int,
    *,
    row: RegNetConfig,
    stride: int,
    group: int,
    norm: Norm,
    activation: Activation,
    drop_path: float,
    name: str,
) -> Tensor:
    """Apply a block of 1x1, grouped 3x3 and 1x1 convolutions with a gate after the second.

    Source: Radosavovic et al. 2020, figure 4.
    """
    inside, use = filters * row.expansion, partial(conv_norm, norm=norm)
    y = use(x, inside, 1, activation=activation, name=f"{name}.conv1")
    y = use(y, inside, 3, stride=stride, groups=inside // group, activation=activation, name=f"{name}.conv2")
    y = _gated(y, x, row, activation, name)
    y = use(y, filters, 1, zero_init=row.zero_init, name=f"{name}.conv3")
    last = None if row.linear else activation
    if stride == 1 and x.shape[-1] == filters:
        return blocks.residual(x, y, drop_path=drop_path, activation=last, name=name)
    if row.shortcut is None:  # RegNet-Z: the first block of a stage has no skip
        return activate(y, last, name=f"{name}.act")
    h = use(x, filters, 1, stride=stride, name=f"{name}.downsample")
    return blocks.residual(h, y, drop_path=drop_path, activation=last, name=name)


def pre_activation(
    x: Tensor,
    filters: int,
    *,
    row: RegNetConfig,
    stride: int,
    group: int,
    norm: Norm,
    activation: Activation,
    drop_path: float,
    name: str,
) -> Tensor:
    """Apply a block with norm and activation before each convolution.

    As in timm, the shortcut of a block that changes the shape also starts after the first norm and activation.
    """

    def normed(x: Tensor, number: int) -> Tensor:
        return activate(norm(x, name=f"{name}.norm{number}"), activation, name=f"{name}.act{number}")

    inside, use = filters * row.expansion, partial(convolution, bias=False)
    h = normed(x, 1)
    y = normed(use(h, inside, 1, name=f"{name}.conv1"), 2)
    y = use(y, inside, 3, stride=stride, groups=inside // group, name=f"{name}.conv2")
    y = use(normed(_gated(y, x, row, activation, name), 3), filters, 1, name=f"{name}.conv3")
    if (stride > 1 or x.shape[-1] != filters) and row.shortcut == "pool":
        h = blocks.average_pool(h, stride, padding="same", name=f"{name}.downsample.0")
        h = use(h, filters, 1, name=f"{name}.downsample.1")
    elif stride > 1 or x.shape[-1] != filters:
        h = use(h, filters, 1, stride=stride, name=f"{name}.downsample")
    return blocks.residual(h, y, drop_path=drop_path, name=name)


def _gated(y: Tensor, x: Tensor, row: RegNetConfig, activation: Activation, name: str) -> Tensor:
    """Apply squeeze-and-excitation to `y`. Its hidden width depends on the channels of the block's input `x`."""
    if not row.squeeze:
        return y
    return squeeze_excite(y, reduced=round(x.shape[-1] * row.squeeze), activation=activation, name=f"{name}.se")


@dataclasses.dataclass(frozen=True)
class RegNetConfig(Config):
    """Configuration of a RegNet.

    Block `i` has `initial + slope * i` channels, rounded to `initial` times a power of `step`.

    Attributes:
        depth: Number of blocks in all four stages (`d` in the paper).
        initial: Channels of the first stage before rounding (`w_0`).
        slope: Channels added per block (`w_a`).
        step: Ratio between the widths of adjacent stages (`w_m`).
        group_size: Channels per group of the 3x3 convolutions (`g`).
        expansion: Channels inside a block as a multiple of its output channels (the inverse of `b`).
        squeeze: Channels inside squeeze-and-excitation as a fraction of the block's input channels; 0 disables it.
        rounding: Smallest fraction of a width that may remain after rounding to whole groups; `None` rounds to the
            nearest multiple.
        block: `post_activation` or `pre_activation`.
        shortcut: Shortcut of blocks that change the shape: `"conv"`, `"pool"`, or `None` for no skip connection.
        linear: If true, a block ends in the addition, without an activation.
        features: Channels of a 1x1 convolution before pooling; 0 for none.
        zero_init: If true, each branch is initialized to output zero.
        norm: Normalisation after each convolution.
        activation: Activation of the stem, the blocks and the gates.
    """

    depth: int
    initial: int
    slope: float
    step: float
    group_size: int
    expansion: int = 1
    squeeze: float = 0.0
    rounding: float | None = None
    block: Callable[..., Tensor] = post_activation
    shortcut: str | None = "conv"
    linear: bool = False
    features: int = 0
    zero_init: bool = True
    norm: Norm = blocks.batch_norm
    activation: Activation = "relu"
    head: tuple[str, ...] = dataclasses.field(default=("head.fc",), kw_only=True)
    top: tuple[str, ...] = dataclasses.field(default=("head.",), kw_only=True)

    @property
    def stages(self) -> list[tuple[int, int, int]]:
        """Width, group size and depth of each stage (Radosavovic et al. 2020, equations 2 to 4)."""
        wanted = np.arange(self.depth, dtype="float32") * np.float32(self.slope) + self.initial
        powers = np.round(np.log(wanted / self.initial) / np.log(self.step))
        widths, depths = np.unique(np.round(self.initial * self.step**powers / 8) * 8, return_counts=True)
        return [(*self._in_groups(int(width)), int(depth)) for width, depth in zip(widths, depths, strict=True)]

    def _in_groups(self, width: int) -> tuple[int, int]:
        """Round a width so that the channels inside a block form whole groups, and return it with the group size."""
        inside = width * self.expansion
        group = min(self.group_size, inside)
        if self.rounding is None:
            inside = round(inside / group) * group
        else:
            inside = rules.make_divisible(inside, group, limit=self.rounding)
        return inside // self.expansion, group

    def tiny(self) -> RegNetConfig:
        """Return the same topology with six blocks of 16 to 128 channels and 64x64 images."""
        # Few groups, because XLA compiles each group of a convolution separately on CPUs.
        small = {"depth": 6, "initial": 16, "slope": 16.0, "step": 2.0, "group_size": 16 * self.expansion}
        return dataclasses.replace(self, **small, features=min(self.features, 96), input_shape=(64, 64, 3), classes=10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegNet(Network[RegNetConfig]):
    """A RegNet.

    The rank of the convolutions follows from `input_shape`: `(H, W, C)` for images, `(steps, C)` for signals,
    `(D, H, W, C)` for volumes or videos.

    Args:
        norm: Normalisation, such as `keras_residual.blocks.batch_norm`; defaults to the variant's.
        activation: Activation of the stem, the blocks and the gates; defaults to the variant's.
    """

    norm: Norm | None = None
    activation: Activation = None

    def forward(self, row: RegNetConfig, x: Tensor) -> Tensor:
        inputs, norm, activation = x, self.norm or row.norm, self.activation or row.activation
        preact = row.block is pre_activation
        if preact:
            x = convolution(x, 32, 3, stride=2, bias=False, name="stem")
        else:
            x = conv_norm(x, 32, 3, stride=2, norm=norm, activation=activation, name="stem")
        self.require_size(inputs, x, 16)
        rates = iter(blocks.drop_path_rates(self.drop_path, row.depth))
        options: dict[str, Any] = {"row": row, "norm": norm, "activation": activation}
        for stage, (width, group, depth) in enumerate(row.stages, start=1):
            for i in range(depth):
                place: dict[str, Any] = {"stride": 1 if i else 2, "group": group, "drop_path": next(rates)}
                x = row.block(x, width, name=f"s{stage}.b{i + 1}", **place, **options)
            x = StageOutput(stage, name=f"s{stage}")(x)
        if row.features:
            return conv_norm(x, row.features, 1, norm=norm, activation=activation, name="final_conv")
        return activate(x, activation if row.linear or preact else None, name="final_conv.act")

    @staticmethod
    def to_timm(state: State) -> State:
        """Convert torchvision's checkpoints."""
        return renamed(state, _TORCHVISION) if "stem.0.weight" in state else state


_TORCHVISION = (
    (r"^stem\.0\.", "stem.conv."),
    (r"^stem\.1\.", "stem.bn."),
    (r"^trunk_output\.block\d\.block(\d)-(\d+)\.", lambda found: f"s{found[1]}.b{int(found[2]) + 1}."),
    (r"\.f\.([abc])\.", lambda found: f".conv{'abc'.index(found[1]) + 1}."),
    (r"\.f\.se\.", ".se."),
    (r"\.proj\.", ".downsample."),
    (r"\.(conv\d|downsample)\.0\.", r".\1.conv."),
    (r"\.(conv\d|downsample)\.1\.", r".\1.bn."),
    (r"^fc\.", "head.fc."),
)


def _groups_of_16(x: Tensor, *, name: str, zero_init: bool = False) -> Tensor:
    return blocks.group_norm(x, groups=x.shape[-1] // 16, name=name, zero_init=zero_init)


# Variants. Parameters and GMACs: timm at the variant's input size.

_Y: dict[str, Any] = {"squeeze": 0.25}
_V: dict[str, Any] = {"squeeze": 0.25, "block": pre_activation, "activation": "silu"}
_Z: dict[str, Any] = {
    "squeeze": 0.25,
    "expansion": 4,
    "shortcut": None,
    "linear": True,
    "zero_init": False,
    "activation": "silu",
}

# fmt: off
RegNetV040 = variant(RegNet, RegNetConfig("RegNetV040", 22, 96, 31.41, 2.24, 64, **_V,
    timm="regnetv_040", tag="ra3_in1k", params=20_640_640, gmacs=3.973, source="Radosavovic et al. 2020"))
RegNetV064 = variant(RegNet, RegNetConfig("RegNetV064", 25, 112, 33.22, 2.27, 72, shortcut="pool", **_V,
    timm="regnetv_064", tag="ra3_in1k", params=30_576_052, gmacs=6.355, source="Radosavovic et al. 2020"))
RegNetX002 = variant(RegNet, RegNetConfig("RegNetX002", 13, 24, 36.44, 2.49, 8,
    timm="regnetx_002", tag="pycls_in1k", params=2_684_792, gmacs=0.1990, source="Radosavovic et al. 2020"))
RegNetX004 = variant(RegNet, RegNetConfig("RegNetX004", 22, 24, 24.48, 2.54, 16,
    timm="regnetx_004", tag="pycls_in1k", params=5_157_512, gmacs=0.3977, source="Radosavovic et al. 2020"))
RegNetX004TV = variant(RegNet, RegNetConfig("RegNetX004TV", 22, 24, 24.48, 2.54, 16, rounding=0.9,
    timm="regnetx_004_tv", tag="tv2_in1k", params=5_495_976, gmacs=0.4138, source="Radosavovic et al. 2020"))
RegNetX006 = variant(RegNet, RegNetConfig("RegNetX006", 16, 48, 36.97, 2.24, 24,
    timm="regnetx_006", tag="pycls_in1k", params=6_196_040, gmacs=0.6009, source="Radosavovic et al. 2020"))
RegNetX008 = variant(RegNet, RegNetConfig("RegNetX008", 16, 56, 35.73, 2.28, 16,
    timm="regnetx_008", tag="tv2_in1k", params=7_259_656, gmacs=0.7997, source="Radosavovic et al. 2020"))
RegNetX016 = variant(RegNet, RegNetConfig("RegNetX016", 18, 80, 34.01, 2.25, 24,
    timm="regnetx_016", tag="tv2_in1k", params=9_190_136, gmacs=1.603, source="Radosavovic et al. 2020"))
RegNetX032 = variant(RegNet, RegNetConfig("RegNetX032", 25, 88, 26.31, 2.25, 48,
    timm="regnetx_032", tag="tv2_in1k", params=15_296_552, gmacs=3.177, source="Radosavovic et al. 2020"))
RegNetX040 = variant(RegNet, RegNetConfig("RegNetX040", 23, 96, 38.65, 2.43, 40,
    timm="regnetx_040", tag="pycls_in1k", params=22_118_248, gmacs=3.964, source="Radosavovic et al. 2020"))
RegNetX064 = variant(RegNet, RegNetConfig("RegNetX064", 17, 184, 60.83, 2.07, 56,
    timm="regnetx_064", tag="pycls_in1k", params=26_209_256, gmacs=6.460, source="Radosavovic et al. 2020"))
RegNetX080 = variant(RegNet, RegNetConfig("RegNetX080", 23, 80, 49.56, 2.88, 120,
    timm="regnetx_080", tag="tv2_in1k", params=39_572_648, gmacs=7.995, source="Radosavovic et al. 2020"))
RegNetX120 = variant(RegNet, RegNetConfig("RegNetX120", 19, 168, 73.36, 2.37, 112,
    timm="regnetx_120", tag="pycls_in1k", params=46_106_056, gmacs=12.09, source="Radosavovic et al. 2020"))
RegNetX160 = variant(RegNet, RegNetConfig("RegNetX160", 22, 216, 55.59, 2.1, 128,
    timm="regnetx_160", tag="tv2_in1k", params=54_278_536, gmacs=15.94, source="Radosavovic et al. 2020"))
RegNetX320 = variant(RegNet, RegNetConfig("RegNetX320", 23, 320, 69.86, 2, 168,
    timm="regnetx_320", tag="tv2_in1k", params=107_811_560, gmacs=31.74, source="Radosavovic et al. 2020"))
RegNetY002 = variant(RegNet, RegNetConfig("RegNetY002", 13, 24, 36.44, 2.49, 8, **_Y,
    timm="regnety_002", tag="pycls_in1k", params=3_162_996, gmacs=0.1995, source="Radosavovic et al. 2020"))
RegNetY004 = variant(RegNet, RegNetConfig("RegNetY004", 16, 48, 27.89, 2.09, 8, **_Y,
    timm="regnety_004", tag="tv2_in1k", params=4_344_144, gmacs=0.4018, source="Radosavovic et al. 2020"))
RegNetY006 = variant(RegNet, RegNetConfig("RegNetY006", 15, 48, 32.54, 2.32, 16, **_Y,
    timm="regnety_006", tag="pycls_in1k", params=6_055_160, gmacs=0.6012, source="Radosavovic et al. 2020"))
RegNetY008 = variant(RegNet, RegNetConfig("RegNetY008", 14, 56, 38.84, 2.4, 16, **_Y,
    timm="regnety_008", tag="pycls_in1k", params=6_263_168, gmacs=0.7972, source="Radosavovic et al. 2020"))
RegNetY008TV = variant(RegNet, RegNetConfig("RegNetY008TV", 14, 56, 38.84, 2.4, 16, rounding=0.9, **_Y,
    timm="regnety_008_tv", tag="tv2_in1k", params=6_432_512, gmacs=0.8339, source="Radosavovic et al. 2020"))
RegNetY016 = variant(RegNet, RegNetConfig("RegNetY016", 27, 48, 20.71, 2.65, 24, **_Y,
    timm="regnety_016", tag="tv2_in1k", params=11_202_430, gmacs=1.612, source="Radosavovic et al. 2020"))
RegNetY032 = variant(RegNet, RegNetConfig("RegNetY032", 21, 80, 42.63, 2.66, 24, **_Y,
    timm="regnety_032", tag="ra_in1k", params=19_436_338, gmacs=3.176, source="Radosavovic et al. 2020"))
RegNetY040 = variant(RegNet, RegNetConfig("RegNetY040", 22, 96, 31.41, 2.24, 64, **_Y,
    timm="regnety_040", tag="ra3_in1k", params=20_646_656, gmacs=3.973, source="Radosavovic et al. 2020"))
RegNetY040SGN = variant(RegNet, RegNetConfig("RegNetY040SGN", 22, 96, 31.41, 2.24, 64, **_Y, norm=_groups_of_16,
    activation="silu",
    timm="regnety_040_sgn", params=20_646_656, gmacs=3.973, source="A form of timm, after Radosavovic et al. 2020"))
RegNetY064 = variant(RegNet, RegNetConfig("RegNetY064", 25, 112, 33.22, 2.27, 72, **_Y,
    timm="regnety_064", tag="ra3_in1k", params=30_583_252, gmacs=6.355, source="Radosavovic et al. 2020"))
RegNetY080 = variant(RegNet, RegNetConfig("RegNetY080", 17, 192, 76.82, 2.19, 56, **_Y,
    timm="regnety_080", tag="ra3_in1k", params=39_180_068, gmacs=7.963, source="Radosavovic et al. 2020"))
RegNetY080TV = variant(RegNet, RegNetConfig("RegNetY080TV", 17, 192, 76.82, 2.19, 56, rounding=0.9, **_Y,
    timm="regnety_080_tv", tag="tv2_in1k", params=39_381_472, gmacs=8.473, source="Radosavovic et al. 2020"))
RegNetY120 = variant(RegNet, RegNetConfig("RegNetY120", 19, 168, 73.36, 2.37, 112, **_Y,
    timm="regnety_120", tag="sw_in12k_ft_in1k", params=51_822_544, gmacs=12.09, source="Radosavovic et al. 2020"))
RegNetY160 = variant(RegNet, RegNetConfig("RegNetY160", 18, 200, 106.23, 2.48, 112, **_Y,
    timm="regnety_160", tag="sw_in12k_ft_in1k", params=83_590_140, gmacs=15.91, source="Radosavovic et al. 2020"))
RegNetY320 = variant(RegNet, RegNetConfig("RegNetY320", 20, 232, 115.89, 2.53, 232, **_Y,
    timm="regnety_320", tag="tv2_in1k", params=145_046_770, gmacs=32.28, source="Radosavovic et al. 2020"))
RegNetY640 = variant(RegNet, RegNetConfig("RegNetY640", 20, 352, 147.48, 2.4, 328, **_Y,
    input_shape=(384, 384, 3),
    timm="regnety_640", tag="seer_ft_in1k", params=281_378_786, gmacs=188.2, source="Goyal et al. 2021"))
RegNetY1280 = variant(RegNet, RegNetConfig("RegNetY1280", 27, 456, 160.83, 2.52, 264, **_Y,
    input_shape=(384, 384, 3),
    timm="regnety_1280", tag="swag_ft_in1k", params=644_812_894, gmacs=374.6, source="Goyal et al. 2021"))
RegNetY2560 = variant(RegNet, RegNetConfig("RegNetY2560", 27, 640, 230.83, 2.53, 373, **_Y,
    input_shape=(384, 384, 3),
    timm="regnety_2560", tag="seer_ft_in1k", params=1_282_601_138, gmacs=747.2, source="Goyal et al. 2021"))
RegNetZ005 = variant(RegNet, RegNetConfig("RegNetZ005", 21, 16, 10.7, 2.51, 4, features=1024, **_Z,
    timm="regnetz_005", params=7_122_742, gmacs=0.5072, source="Dollár et al. 2021"))
RegNetZ040 = variant(RegNet, RegNetConfig("RegNetZ040", 28, 48, 14.5, 2.226, 8, **_Z,
    input_shape=(256, 256, 3),
    timm="regnetz_040", tag="ra3_in1k", params=27_116_800, gmacs=4.015, source="Dollár et al. 2021"))
RegNetZ040H = variant(RegNet, RegNetConfig("RegNetZ040H", 28, 48, 14.5, 2.226, 8, features=1536, **_Z,
    input_shape=(256, 256, 3),
    timm="regnetz_040_h", tag="ra3_in1k", params=28_938_880, gmacs=4.068, source="Dollár et al. 2021"))
# fmt: on
