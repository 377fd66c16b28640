"""Residual networks of dense layers, for vectors and tabular data."""

from __future__ import annotations

import dataclasses

import keras

from keras_residual import blocks
from keras_residual.blocks import Activation, Norm, Tensor, rules
from keras_residual.layers import StageOutput
from keras_residual.models._network import Network
from keras_residual.registry import Config, variant


@dataclasses.dataclass(frozen=True)
class MLPConfig(Config):
    """Configuration of a residual network of dense layers.

    Attributes:
        width: Channels of the residual stream.
        hidden: Channels inside a block.
        depth: Number of blocks.
        norm: Normalisation at the start of each block and after the last block.
        activation: Activation inside the blocks.
        norm_activated: If true, the activation follows the last norm.
        dropout: Default dropout rate inside a block, after the activation.
        residual_dropout: Default dropout rate at the end of a block's branch.
    """

    width: int
    hidden: int
    depth: int
    norm: Norm = blocks.layer_norm
    activation: Activation = "gelu"
    norm_activated: bool = False
    dropout: float = 0.0
    residual_dropout: float = 0.0
    input_shape: tuple[int | None, ...] = dataclasses.field(default=(784,), kw_only=True)
    classes: int = dataclasses.field(default=10, kw_only=True)
    dynamic_size: bool = dataclasses.field(default=False, kw_only=True)

    def tiny(self) -> MLPConfig:
        """Return the same topology with two blocks of 16 channels and 20 input features."""
        return dataclasses.replace(self, width=16, hidden=32, depth=2, input_shape=(20,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLP(Network[MLPConfig]):
    """A residual network of dense layers with `depth` blocks `x + fc2(f(fc1(norm(x))))`.

    Args:
        input_shape: Shape of one sample, `(features,)`.
        pooling: Ignored, because vectors need no pooling; accepted for the common signature.
        classes: Number of outputs of the classifier; 0 for the features without a classifier.
        classifier_activation: Activation of the outputs; `None` for logits or regression.
        width: Channels of the residual stream; defaults to the variant's.
        hidden: Channels inside a block; defaults to `width` times the variant's ratio.
        depth: Number of blocks; defaults to the variant's.
        dropout: Dropout rate inside a block, after the activation; defaults to the variant's.
        residual_dropout: Dropout rate at the end of a block's branch; defaults to the variant's.
        norm: Normalisation; defaults to the variant's.
        activation: Activation inside the blocks; defaults to the variant's.

    Returns:
        A Functional `keras.Model` that maps `(N, features)` to `(N, classes)`, or to `(N, width)` without top.

    Raises:
        ValueError: If an argument is invalid.
    """

    classes: int = dataclasses.field(default=10, kw_only=False)
    width: int | None = None
    hidden: int | None = None
    depth: int | None = None
    dropout: float | None = None
    residual_dropout: float | None = None
    norm: Norm | None = None
    activation: Activation = None

    def forward(self, row: MLPConfig, x: Tensor) -> Tensor:
        width = _size("width", row.width if self.width is None else self.width)
        hidden = _size("hidden", width * row.hidden // row.width if self.hidden is None else self.hidden)
        depth = _size("depth", row.depth if self.depth is None else self.depth)
        dropout = row.dropout if self.dropout is None else self.dropout
        residual_dropout = row.residual_dropout if self.residual_dropout is None else self.residual_dropout
        rules.require_rate(dropout, "dropout")
        rules.require_rate(residual_dropout, "residual_dropout")
        norm, activation = self.norm or row.norm, self.activation or row.activation

        x = _dense(x, width, "stem")
        for i, rate in enumerate(blocks.drop_path_rates(self.drop_path, depth)):
            y = norm(x, name=f"blocks.{i}.norm")
            y = blocks.activate(_dense(y, hidden, f"blocks.{i}.fc1"), activation, name=f"blocks.{i}.act")
            y = keras.layers.Dropout(dropout, name=f"blocks.{i}.dropout")(y)
            y = _dense(y, width, f"blocks.{i}.fc2")
            y = keras.layers.Dropout(residual_dropout, name=f"blocks.{i}.residual_dropout")(y)
            x = blocks.residual(x, y, drop_path=rate, name=f"blocks.{i}")
            x = StageOutput(i + 1, name=f"blocks.{i}")(x)
        x = norm(x, name="norm")
        return blocks.activate(x, activation, name="act") if row.norm_activated else x


def _size(argument: str, size: int) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"`{argument}` must be a positive integer; got {size!r}. Omit it to use the default.")
    return size


def _dense(x: Tensor, units: int, name: str) -> Tensor:
    return keras.layers.Dense(units, kernel_initializer="he_normal", name=name)(x)


# As wide as the 784-64-10 "ResNet" of popular tutorials, but with skip connections.
ResidualMLP = variant(
    MLP, MLPConfig("ResidualMLP", 64, 128, 4, params=117_834, source="He et al. 2016b, on dense layers")
)
# Two blocks of 192 channels are the example in the paper's package; the paper tunes both per dataset.
TabularResNet = variant(
    MLP,
    MLPConfig(
        "TabularResNet",
        192,
        384,
        2,
        norm=blocks.batch_norm,
        activation="relu",
        norm_activated=True,
        dropout=0.3,
        input_shape=(100,),
        params=318_538,
        source="Gorishniy et al. 2021, section 3.2",
    ),
)
