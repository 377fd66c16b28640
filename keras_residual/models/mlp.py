"""Residual networks for vectors and tables: what a "ResNet" of dense layers is when it has its skips."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from keras_residual import blocks
from keras_residual.blocks import Activation, Norm, Tensor, rules
from keras_residual.layers import StageOutput
from keras_residual.models._frame import Frame
from keras_residual.registry import Config, variant


@dataclasses.dataclass(frozen=True)
class MLPConfig(Config):
    """One residual network of dense layers.

    Attributes:
        width: Channels of the residual stream.
        hidden: Channels inside a block.
        depth: Number of blocks.
        norm: Normalisation at the start of each block and at the end.
        activation: Activation inside the blocks.
        norm_activated: Whether the last norm is followed by the activation.
        dropout: Default rate inside a block, after the activation.
        residual_dropout: Default rate at the end of a block's branch.
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
        """The same topology with two blocks of 16 channels on 20 features."""
        return dataclasses.replace(self, width=16, hidden=32, depth=2, input_shape=(20,))


def residual_mlp(
    config: MLPConfig,
    include_top: bool = True,
    weights: str | None = None,
    input_tensor: Any = None,
    input_shape: tuple[int | None, ...] | None = None,
    pooling: str | None = None,
    classes: int = 10,
    classifier_activation: Activation = "softmax",
    name: str | None = None,
    *,
    width: int | None = None,
    hidden: int | None = None,
    depth: int | None = None,
    dropout: float | None = None,
    residual_dropout: float | None = None,
    drop_path: float = 0.0,
    norm: Norm | None = None,
    activation: Activation = None,
) -> keras.Model:
    """Builds a residual network of dense layers: `x + fc2(f(fc1(norm(x))))`, `depth` times.

    Args:
        config: The row.
        include_top: Whether to end in a classifier `fc`.
        weights: `None` for random initialisation, or a source that `keras_residual.load_weights` reads.
        input_tensor: A Functional-API tensor to build on, instead of `input_shape`.
        input_shape: Shape of one sample, `(features,)`.
        pooling: Accepted for the common signature; vectors have nothing to pool.
        classes: Number of outputs of the classifier; 0 for the features before it.
        classifier_activation: Activation of the outputs; `None` for logits, also for regression.
        name: Name of the model.
        width: Channels of the residual stream; `None` for the row's.
        hidden: Channels inside a block; `None` for the row's ratio to the width.
        depth: Number of blocks; `None` for the row's.
        dropout: Rate inside a block, after the activation; `None` for the row's.
        residual_dropout: Rate at the end of a block's branch; `None` for the row's.
        drop_path: Stochastic-depth rate of the last block, growing linearly from 0 at the first.
        norm: Normalisation; `None` for the row's.
        activation: Activation inside the blocks; `None` for the row's.

    Returns:
        A Functional `keras.Model` from `(N, features)` to `(N, classes)`, or to `(N, width)` without top.

    Raises:
        ValueError: For an argument out of its range.
    """
    frame = Frame(
        config,
        include_top,
        weights,
        input_tensor,
        input_shape,
        pooling,
        classes,
        classifier_activation,
        name,
    )
    width = _size("width", config.width if width is None else width)
    hidden = _size("hidden", width * config.hidden // config.width if hidden is None else hidden)
    depth = _size("depth", config.depth if depth is None else depth)
    dropout = config.dropout if dropout is None else dropout
    residual_dropout = config.residual_dropout if residual_dropout is None else residual_dropout
    rules.require_rate(dropout, "dropout")
    rules.require_rate(residual_dropout, "residual_dropout")
    norm, activation = norm or config.norm, activation or config.activation

    x = _dense(frame.x, width, "stem")
    for i, rate in enumerate(blocks.drop_path_rates(drop_path, depth)):
        y = norm(x, name=f"blocks.{i}.norm")
        y = blocks.activate(_dense(y, hidden, f"blocks.{i}.fc1"), activation, name=f"blocks.{i}.act")
        y = keras.layers.Dropout(dropout, name=f"blocks.{i}.dropout")(y)
        y = _dense(y, width, f"blocks.{i}.fc2")
        y = keras.layers.Dropout(residual_dropout, name=f"blocks.{i}.residual_dropout")(y)
        x = blocks.residual(x, y, drop_path=rate, name=f"blocks.{i}")
        x = StageOutput(i + 1, name=f"blocks.{i}")(x)
    x = norm(x, name="norm")
    if config.norm_activated:
        x = blocks.activate(x, activation, name="act")
    return frame.model(x)


def _size(what: str, size: int) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{what} is a positive integer. Received: {size!r}. Leave it out for the row's.")
    return size


def _dense(x: Tensor, units: int, name: str) -> Tensor:
    return keras.layers.Dense(units, kernel_initializer="he_normal", name=name)(x)


# What the 784-64-10 "ResNet" of the tutorials should have been: the same width, with blocks that have a skip.
ResidualMLP = variant(
    residual_mlp, MLPConfig("ResidualMLP", 64, 128, 4, params=117_834, source="He et al. 2016b, on dense layers")
)
# Two blocks of 192 channels are the example of the paper's own package; the paper searches for them per data set.
TabularResNet = variant(
    residual_mlp,
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
