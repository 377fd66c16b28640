"""Mapping between a model's variables and the keys and axis orders of timm's state dict.

There is one rule per layer type, and layers are named like timm's modules, so families need no tables of names. The
rules for Keras' layers are in this module; a layer of this package defines its rule in its method `stored`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import keras
import numpy as np

from keras_residual import graph, layers

Array = Any
Shape = tuple[int, ...]
Convert = Callable[[Array], Array]
Rule = tuple[str, Convert, Convert]


@dataclasses.dataclass(frozen=True)
class Slot:
    """A variable of a model and its entry in a state dict.

    Attributes:
        key: The key in timm's state dict.
        variable: The Keras variable.
        layer: The layer that owns it.
        shape: Shape of the array in the state dict.
        to_keras: Converts the array of the state dict to the variable's axis order.
        to_torch: Converts the variable's value to the axis order of the state dict.
    """

    key: str
    variable: Any
    layer: keras.layers.Layer
    shape: tuple[int, ...]
    to_keras: Convert
    to_torch: Convert


@runtime_checkable
class StoresItself(Protocol):
    """Protocol for layers that define the key and shape of their variables in a state dict.

    The values must have the same order as in the variable, so that shapes differ only in axes of size 1. A subclass of
    a Keras layer returns `None` for variables that are stored as the Keras layer's are.
    """

    def stored(self, variable: str, /) -> layers.Stored | None:
        """Return the part of the key after the layer's name, such as "" or ".gain", and the array's shape."""
        ...


def slots(model: keras.Model) -> list[Slot]:
    """Return the slots of all weights of a model, in the order of its layers.

    Raises:
        TypeError: If a layer with weights has a type without a rule.
        ValueError: If two variables have the same key.
    """
    found = [slot for layer in graph.leaves(model) for slot in _layer_slots(layer)]
    keys = [slot.key for slot in found]
    doubles = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
    if doubles:
        raise ValueError(f"Layers with weights must have unique names; got twice: {', '.join(doubles[:5])}.")
    return found


_NORMS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.RMSNormalization,
)
_NORM_KEYS = {
    "gamma": "weight",
    "scale": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def _layer_slots(layer: keras.layers.Layer) -> Iterator[Slot]:
    for variable in layer.weights:
        key, to_keras, to_torch = _rule(layer, variable)
        shape = to_torch(np.broadcast_to(np.float32(0), variable.shape)).shape
        yield Slot(key, variable, layer, shape, to_keras, to_torch)


def _rule(layer: keras.layers.Layer, variable: Any) -> Rule:
    stated = _stated(layer, variable.name)
    if stated is None:
        return _keras_rule(layer, variable.name)
    suffix, shape = stated
    return f"{layer.name}{suffix}", *_reshaped(layer, tuple(variable.shape), tuple(shape))


def _stated(layer: keras.layers.Layer, variable: str) -> layers.Stored | None:
    return layer.stored(variable) if isinstance(layer, StoresItself) else None


def _reshaped(layer: keras.layers.Layer, ours: Shape, theirs: Shape) -> tuple[Convert, Convert]:
    """Return the conversions between two shapes. They leave arrays of other shapes alone; loading rejects those."""
    if [n for n in ours if n != 1] != [n for n in theirs if n != 1]:
        raise ValueError(
            f"{type(layer).__name__}.stored (layer {layer.name!r}) must return the variable's shape with axes of size "
            f"1 added or removed; got {theirs} for a variable of shape {ours}."
        )

    def to_keras(a: Array) -> Array:
        return a.reshape(ours) if tuple(a.shape) == theirs else a

    def to_torch(a: Array) -> Array:
        return a.reshape(theirs) if tuple(a.shape) == ours else a

    return to_keras, to_torch


def _keras_rule(layer: keras.layers.Layer, variable: str) -> Rule:
    if isinstance(layer, _NORMS):
        return f"{layer.name}.{_NORM_KEYS[variable]}", _same, _same
    if variable == "bias":
        return f"{layer.name}.bias", _same, _same
    key = f"{layer.name}.weight"
    if isinstance(layer, layers.PointwiseDense):  # (in, out) <-> (out, in, 1, 1)
        return key, lambda a: a.reshape(a.shape[:2]).T, lambda a: a.T[..., None, None]
    if isinstance(layer, keras.layers.Dense):  # (in, out) <-> (out, in)
        return key, np.transpose, np.transpose
    if isinstance(layer, (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)):
        # (*size, C, m) <-> (C * m, 1, *size)
        channels, multiplier = layer.kernel.shape[-2:]

        def to_keras(a: Array) -> Array:
            return np.moveaxis(a.reshape(channels, multiplier, *a.shape[2:]), (0, 1), (-2, -1))

        def to_torch(a: Array) -> Array:
            a = np.moveaxis(a, (-2, -1), (0, 1))
            return a.reshape(channels * multiplier, 1, *a.shape[2:])

        return key, to_keras, to_torch
    if isinstance(layer, (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)):
        # (*size, in, out) <-> (out, in, *size), grouped or not
        return key, lambda a: np.moveaxis(a, (1, 0), (-2, -1)), lambda a: np.moveaxis(a, (-2, -1), (1, 0))
    raise TypeError(
        f"There is no rule for the weights of {type(layer).__name__} (layer {layer.name!r}). Add a method `stored` to "
        "the layer; keras_residual.weights.layout.StoresItself documents it."
    )


def _same(a: Array) -> Array:
    return a
