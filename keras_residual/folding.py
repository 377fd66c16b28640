"""Folding of batch normalisations into adjacent convolutions and dense layers, for faster inference.

At inference a batch normalisation is `a * x + b` per channel. It can be folded into the kernel and bias of a linear
layer before it, or after it if that layer does not pad with zeros. The result is a Keras model, on every backend.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_residual import layers
from keras_residual.graph import connected, copy_weights, functional, nodes, rebuilt, takers, uses

__all__ = ["Folding", "fold_batch_norm", "folding"]

Array = np.ndarray[Any, Any]
# Exactly these types: a subclass may compute something else.
_CONVS = {f"{kind}{rank}D" for kind in ("Conv", "StandardizedConv") for rank in (1, 2, 3)}
_CONVS = {getattr(place, name) for name in _CONVS for place in (keras.layers, layers) if hasattr(place, name)}
_DEPTHWISE = {keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D}
_DENSE = {keras.layers.Dense, layers.PointwiseDense}
_LINEAR = _CONVS | _DEPTHWISE | _DENSE
_STANDARDIZED: Any = layers._StandardizedConv
_NORMS = {keras.layers.BatchNormalization, layers.BatchNorm}


@dataclasses.dataclass(frozen=True)
class Folding:
    """Plan or result of folding a model's batch normalisations, by the names of layers.

    Attributes:
        after: Normalisations that are folded into the layer before them, each with that layer.
        before: Normalisations that are folded into the layer after them, each with that layer.
        kept: Normalisations that cannot be folded, each with the reason.
    """

    after: dict[str, str]
    before: dict[str, str]
    kept: dict[str, str]

    def __str__(self) -> str:
        count = len(self.after) + len(self.before)
        lines = [f"{count} of {count + len(self.kept)} batch normalisations folded"]
        return "\n".join([*lines, *(f"  {name} is kept: {why}" for name, why in self.kept.items())])


def fold_batch_norm(model: keras.Model, *, strict: bool = False) -> keras.Model:
    """Return a copy of a model for inference, with its batch normalisations folded into adjacent layers.

    Kernels and biases are computed in float64, so that outputs differ only by rounding. A normalisation that cannot be
    folded is kept; `folding(model)` returns the reasons. Layers keep their names. The original model is not changed.

    Args:
        model: A built Functional or Sequential model. Nested models are folded separately.
        strict: If true, raise an error if a normalisation cannot be folded.

    Returns:
        An uncompiled Functional model.

    Raises:
        ValueError: If the model is subclassed or not built, or if `strict` and a normalisation cannot be folded.
    """
    graph = _graph(model)
    after, before, kept = _plan(graph)
    if strict and kept:
        raise ValueError(
            f"All batch normalisations of {model.name} must be foldable, because strict=True; got:\n"
            f"{_report(after, before, kept)}"
        )
    removed = {id(norm) for norm in (*after, *before)}
    changed = {id(layer) for layer in (*after.values(), *before.values())}

    def clone(layer: Any) -> Any:
        if functional(layer) is not None:
            return fold_batch_norm(layer, strict=strict)
        return _with_bias(layer) if id(layer) in changed else None

    def call(old: Any, new: Any, *arguments: Any, **options: Any) -> Any:
        return arguments[0] if id(old) in removed else new(*arguments, **options)

    def assign(old: Any, new: Any) -> None:
        if id(old) in changed:
            _assign_folded(old, new, _folded_into(old, before), _folded_into(old, after))
        else:
            copy_weights(old, new)

    return rebuilt(graph, clone_function=clone, call_function=call, assign=assign)


def folding(model: keras.Model) -> Folding:
    """Return the normalisations that `fold_batch_norm` would fold or keep, with the reasons.

    Raises:
        ValueError: If the model is subclassed or not built.
    """
    found = Folding({}, {}, {})
    graph = _graph(model)
    parts = graph._flatten_layers(include_self=False)
    for part in (graph, *(_graph(part) for part in parts if functional(part) is not None)):
        report = _report(*_plan(part))
        for name in ("after", "before", "kept"):
            getattr(found, name).update(getattr(report, name))
    return found


def _report(after: dict[Any, Any], before: dict[Any, Any], kept: dict[Any, str]) -> Folding:
    return Folding(
        {norm.name: layer.name for norm, layer in after.items()},
        {norm.name: layer.name for norm, layer in before.items()},
        {norm.name: why for norm, why in kept.items()},
    )


def _graph(model: keras.Model) -> Any:
    """Return the model as a Functional model of the same layers."""
    graph = functional(model)
    if graph is None:
        raise ValueError(
            "The model must be a Functional or a built Sequential model to fold its batch normalisations, because the "
            f"layers before and after them must be known; got {model.name!r}, a {type(model).__name__}. Define it with "
            "keras.Input and keras.Model(inputs, outputs)."
        )
    return connected(graph.input, graph.output, model.name)


# ------------------------------------------------------------------------------------------------- what can be folded


def _plan(graph: Any) -> tuple[dict[Any, Any], dict[Any, Any], dict[Any, str]]:
    """Return the three mappings of `Folding`, with layers instead of names."""
    counts, consumers = uses(graph), takers(graph)
    after: dict[Any, Any] = {}
    before: dict[Any, Any] = {}
    kept: dict[Any, str] = {}
    for node in nodes(graph):
        norm = node.operation
        if not isinstance(norm, keras.layers.BatchNormalization):
            continue
        if type(norm) not in _NORMS:
            kept[norm] = f"it is a {type(norm).__name__}, which may compute something else"
        elif counts[id(norm)] > 1:
            kept[norm] = "it is used more than once"
        else:
            given, result = node.arguments.keras_tensors[0], node.outputs[0]
            source, users = given._keras_history.operation, consumers[id(result)]
            why = _obstacle(source, norm, counts)
            if why is None and len(consumers[id(given)]) > 1:
                why = f"the output of {source.name} is also used elsewhere"
            if why is None:
                after[norm] = source
            elif len(users) == 1 and _obstacle(users[0], norm, counts, follows=True) is None:
                before[norm] = users[0]
            else:
                kept[norm] = why
    return after, before, kept


def _obstacle(layer: Any, norm: Any, counts: collections.Counter[int], follows: bool = False) -> str | None:
    """Return why a normalisation cannot be folded into `layer`, or `None` if it can.

    With `follows`, the layer follows the normalisation; otherwise it precedes it.
    """
    if type(layer) not in _LINEAR:
        return f"{layer.name} is a {type(layer).__name__}, not a layer known to be linear"
    if counts[id(layer)] > 1:
        return f"{layer.name} is used more than once"
    if len(layer.weights) != 1 + layer.use_bias:
        return f"{layer.name} has weights other than kernel and bias"
    rank = len(layer.output.shape)
    axis = 1 if getattr(layer, "data_format", None) == "channels_first" else rank - 1
    if norm.axis % rank != axis:
        return f"it normalises axis {norm.axis}, not the channels of {layer.name}"
    if follows:
        padded = type(layer) not in _DENSE and layer.padding != "valid" and max(layer.kernel_size) > 1
        return f"{layer.name} pads with zeros" if padded else None
    if keras.activations.get(layer.activation) is not keras.activations.linear:
        return f"{layer.name} has an activation"
    return None


# -------------------------------------------------------------------------------------------------------- arithmetic


def _folded_into(layer: Any, folded: dict[Any, Any]) -> list[Any]:
    """Return the normalisations that are folded into a layer."""
    return [norm for norm, into in folded.items() if into is layer]


def _assign_folded(layer: Any, new: Any, before: list[Any], after: list[Any]) -> None:
    """Assign to the new layer the kernel and bias that include the normalisations before and after it."""
    kernel, bias = _kernel_and_bias(layer)
    # Start with the normalisations before the layer, because those after it also scale that part of the bias.
    for norm in before:
        kernel, bias = _fold_before(layer, kernel, bias, *_affine(norm))
    for norm in after:
        kernel, bias = _fold_after(layer, kernel, bias, *_affine(norm))
    new.kernel.assign(kernel.astype(layer.kernel.dtype))
    new.bias.assign(bias.astype(layer.kernel.dtype))


def _affine(norm: Any) -> tuple[Array, Array]:
    """Return the `a` and `b` of a normalisation `a * x + b`."""
    mean, variance = _float64(norm.moving_mean), _float64(norm.moving_variance)
    scale = 1 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale = scale * _float64(norm.gamma)
    offset = -mean * scale
    return scale, offset + _float64(norm.beta) if norm.center else offset


def _kernel_and_bias(layer: Any) -> tuple[Array, Array]:
    """Return the effective kernel and the bias of each output channel."""
    kernel = _float64(layer.kernel)
    if isinstance(layer, _STANDARDIZED):
        kernel = kernel - kernel.mean(tuple(range(kernel.ndim - 1)), keepdims=True)
        kernel = kernel / np.sqrt((kernel**2).mean(tuple(range(kernel.ndim - 1)), keepdims=True) + layer.epsilon)
    if layer.use_bias:
        return kernel, _float64(layer.bias)
    depthwise = type(layer) in _DEPTHWISE  # whose kernel is (*size, C, multiplier)
    return kernel, np.zeros(kernel.shape[-1] * (kernel.shape[-2] if depthwise else 1))


def _fold_after(layer: Any, kernel: Array, bias: Array, scale: Array, offset: Array) -> tuple[Array, Array]:
    factor = scale.reshape(kernel.shape[-2:]) if type(layer) in _DEPTHWISE else scale
    return kernel * factor, bias * scale + offset


def _fold_before(layer: Any, kernel: Array, bias: Array, scale: Array, offset: Array) -> tuple[Array, Array]:
    if type(layer) in _DEPTHWISE:
        scale, offset = scale[:, None], offset[:, None]
        more = (kernel * offset).sum(tuple(range(kernel.ndim - 2))).reshape(-1)
    else:  # each group of filters has different input channels: (C / groups, filters)
        groups = getattr(layer, "groups", 1)
        scale, offset = (np.repeat(v.reshape(groups, -1).T, kernel.shape[-1] // groups, 1) for v in (scale, offset))
        more = (kernel * offset).sum(tuple(range(kernel.ndim - 1)))
    return kernel * scale, bias + more


def _with_bias(layer: Any) -> Any:
    """Return an unbuilt copy of a layer with a bias, and without weight standardisation."""
    config = {**layer.get_config(), "use_bias": True}
    kind = type(layer)
    if isinstance(layer, _STANDARDIZED):
        del config["epsilon"]
        kind = getattr(layers, f"Conv{layer.rank}D")
    return kind.from_config(config)


def _float64(value: Any) -> Array:
    return np.asarray(ops.convert_to_numpy(value)).astype("float64")
