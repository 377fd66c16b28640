"""Residual networks for vectors and tables: what a "ResNet" of dense layers is when it has its skips."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from keras_residual import blocks
from keras_residual.blocks import Activation, Norm, Tensor
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
        dropout: Default rate inside the blocks.
    """

    width: int
    hidden: int
    depth: int
    norm: Norm = blocks.layer_norm
    activation: Activation = "gelu"
    norm_activated: bool = False
    dropout: float = 0.0
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
        hidden: Channels inside a block; `None` for the row's.
        depth: Number of blocks; `None` for the row's.
        dropout: Rate inside the blocks; `None` for the row's.
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
    width, depth = width or config.width, config.depth if depth is None else depth
    hidden = hidden or (config.hidden if width == config.width else width * config.hidden // config.width)
    dropout = config.dropout if dropout is None else dropout
    norm, activation = norm or config.norm, activation or config.activation
    for what, size in (("width", width), ("hidden", hidden), ("depth", depth)):
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{what} is a positive number. Received: {size!r}.")

    x = _dense(frame.x, width, "stem")
    for i, rate in enumerate(blocks.drop_path_rates(drop_path, depth)):
        y = norm(x, name=f"blocks.{i}.norm")
        y = blocks.activate(_dense(y, hidden, f"blocks.{i}.fc1"), activation, name=f"blocks.{i}.act")
        y = keras.layers.Dropout(dropout, name=f"blocks.{i}.dropout")(y)
        y = _dense(y, width, f"blocks.{i}.fc2")
        x = blocks.residual(x, y, drop_path=rate, name=f"blocks.{i}")
        x = StageOutput(i + 1, name=f"blocks.{i}")(x)
    x = norm(x, name="norm")
    if config.norm_activated:
        x = blocks.activate(x, activation, name="act")
    return frame.model(x)


def _dense(x: Tensor, units: int, name: str) -> Tensor:
    return keras.layers.Dense(units, kernel_initializer="he_normal", name=name)(x)


# What the 784-64-10 "ResNet" of the tutorials should have been: the same width, with blocks that have a skip.
ResidualMLP = variant(
    residual_mlp, MLPConfig("ResidualMLP", 64, 128, 4, params=117_834, source="He et al. 2016b, on dense layers")
)
TabularResNet = variant(
    residual_mlp,
    MLPConfig(
        "TabularResNet",
        192,
        384,
        4,
        norm=blocks.batch_norm,
        activation="relu",
        norm_activated=True,
        dropout=0.2,
        input_shape=(100,),
        source="Gorishniy et al. 2021, section 3.2",
    ),
)
