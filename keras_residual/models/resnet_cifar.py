"""CIFAR networks of the residual papers: ResNets, plain networks without skips, pre-activation and Wide ResNets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from keras_residual import blocks
from keras_residual.blocks import (
    Activation,
    Norm,
    Tensor,
    basic,
    padded_identity,
    plain_basic,
    preact_basic,
    preact_bottleneck,
)
from keras_residual.layers import StageOutput
from keras_residual.models._network import Network
from keras_residual.registry import Config, variant


@dataclasses.dataclass(frozen=True)
class CifarConfig(Config):
    """Configuration of a network with three stages for 32x32 images.

    Attributes:
        block: `basic`, `plain_basic`, `preact_basic` or `preact_bottleneck`.
        depth: Number of blocks per stage (`n` in the paper).
        widths: Output channels per stage.
    """

    block: Callable[..., Tensor]
    depth: int
    widths: tuple[int, int, int] = (16, 32, 64)
    input_shape: tuple[int | None, ...] = dataclasses.field(default=(32, 32, 3), kw_only=True)
    classes: int = dataclasses.field(default=10, kw_only=True)

    @property
    def preactivated(self) -> bool:
        """True if norm and activation precede each convolution and follow the last block."""
        return self.block in (preact_basic, preact_bottleneck)

    def tiny(self) -> CifarConfig:
        """Return the same topology with two blocks per stage and 16 to 64 channels (128 for bottlenecks)."""
        widths = (64, 64, 128) if self.block is preact_bottleneck else (16, 32, 64)
        return dataclasses.replace(self, depth=2, widths=widths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetCifar(Network[CifarConfig]):
    """A network for small images: a 3x3 stem and three stages with strides 1, 2 and 2.

    The rank of the convolutions follows from `input_shape`.

    Args:
        dropout: Dropout rate between the convolutions of a block, for Wide ResNets.
        width: Output channels of the first stage; defaults to the variant's. The other stages scale with it.
        norm: Normalisation, such as `keras_residual.blocks.batch_norm`.
        activation: Activation of the stem and the blocks, by name or as a function.
        zero_init: If true, initialize each branch to output zero, which the papers do not do. Blocks without a last
            norm ignore it.
    """

    classes: int = dataclasses.field(default=10, kw_only=False)
    dropout: float = 0.0
    width: int | None = None
    norm: Norm = blocks.batch_norm
    activation: Activation = "relu"
    zero_init: bool = False

    def forward(self, row: CifarConfig, x: Tensor) -> Tensor:
        inputs, norm, activation = x, self.norm, self.activation
        options: dict[str, Any] = {"norm": norm, "activation": activation}
        if row.block is preact_basic:
            options["dropout"] = self.dropout
        elif self.dropout:
            raise ValueError(
                f"`dropout` must be 0 for {row.name}, because only Wide ResNets have dropout; got {self.dropout}."
            )
        if row.block is basic:
            options |= {"shortcut": padded_identity, "zero_init": self.zero_init}

        x = blocks.convolution(x, 16, 3, bias=False, name="conv1")
        if not row.preactivated:
            x = blocks.activate(norm(x, name="bn1"), activation, name="act1")
        self.require_size(inputs, x, 4)
        rates = iter(blocks.drop_path_rates(self.drop_path, 3 * row.depth))
        for stage, filters in enumerate(self._widths(row), start=1):
            for i in range(row.depth):
                stride = 2 if stage > 1 and i == 0 else 1
                x = row.block(x, filters, stride=stride, drop_path=next(rates), name=f"layer{stage}.{i}", **options)
            x = StageOutput(stage, name=f"layer{stage}")(x)
        if row.preactivated:  # no activation follows the last addition inside the blocks
            x = blocks.activate(norm(x, name="bn"), activation, name="act")
        return x

    def _widths(self, row: CifarConfig) -> tuple[int, ...]:
        if self.width is None:
            return row.widths
        if self.width < 16:  # strided 1x1 convolutions of fewer than 16 channels crash in oneDNN
            raise ValueError(f"`width` must be None or at least 16; got {self.width}.")
        return tuple(self.width * filters // row.widths[0] for filters in row.widths)


_HE = "He et al. 2016, table 6"
_PREACT = "He et al. 2016b, table 4"
_WIDE = "Zagoruyko & Komodakis 2016, table 4"

# Depth is 6n + 2 for basic blocks, 9n + 2 for bottlenecks, 6n + 4 for Wide ResNets.
# fmt: off
ResNet8 = variant(ResNetCifar, CifarConfig("ResNet8", basic, 1, params=75_290, gmacs=0.0122, source=_HE))
ResNet20 = variant(ResNetCifar, CifarConfig("ResNet20", basic, 3, params=269_722, gmacs=0.0408, source=_HE))
ResNet32 = variant(ResNetCifar, CifarConfig("ResNet32", basic, 5, params=464_154, gmacs=0.0691, source=_HE))
ResNet44 = variant(ResNetCifar, CifarConfig("ResNet44", basic, 7, params=658_586, gmacs=0.0974, source=_HE))
ResNet56 = variant(ResNetCifar, CifarConfig("ResNet56", basic, 9, params=853_018, gmacs=0.1257, source=_HE))
ResNet110 = variant(ResNetCifar, CifarConfig("ResNet110", basic, 18, params=1_727_962, gmacs=0.2531, source=_HE))
ResNet1202 = variant(ResNetCifar, CifarConfig("ResNet1202", basic, 200, params=19_421_274, gmacs=2.829, source=_HE))

# Plain networks of He et al. 2016, figure 6 left. They have as many parameters, since option A's skips have none.
PlainNet20 = variant(ResNetCifar, CifarConfig("PlainNet20", plain_basic, 3, params=269_722, source=_HE))
PlainNet32 = variant(ResNetCifar, CifarConfig("PlainNet32", plain_basic, 5, params=464_154, source=_HE))
PlainNet44 = variant(ResNetCifar, CifarConfig("PlainNet44", plain_basic, 7, params=658_586, source=_HE))
PlainNet56 = variant(ResNetCifar, CifarConfig("PlainNet56", plain_basic, 9, params=853_018, source=_HE))
PlainNet110 = variant(ResNetCifar, CifarConfig("PlainNet110", plain_basic, 18, params=1_727_962, source=_HE))

PreActResNet110 = variant(ResNetCifar, CifarConfig("PreActResNet110", preact_basic, 18,
    params=1_730_522, source=_PREACT))
PreActResNet164 = variant(ResNetCifar, CifarConfig("PreActResNet164", preact_bottleneck, 18, (64, 128, 256),
    params=1_703_258, source=_PREACT))
PreActResNet1001 = variant(ResNetCifar, CifarConfig("PreActResNet1001", preact_bottleneck, 111, (64, 128, 256),
    params=10_327_706, source=_PREACT))

WideResNet16_8 = variant(ResNetCifar, CifarConfig("WideResNet16_8", preact_basic, 2, (128, 256, 512),
    params=10_961_370, source=_WIDE))
WideResNet28_10 = variant(ResNetCifar, CifarConfig("WideResNet28_10", preact_basic, 4, (160, 320, 640),
    params=36_479_194, source=_WIDE))
WideResNet40_2 = variant(ResNetCifar, CifarConfig("WideResNet40_2", preact_basic, 6, (32, 64, 128),
    params=2_243_546, source=_WIDE))
