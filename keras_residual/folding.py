"""Batch normalisation folded into the convolutions and dense layers beside it: the same function, fewer operations.

At inference a batch normalisation is `a * x + b` on each channel. After a linear layer it is a change of that layer's
kernel and bias; so it is before one, where no padding puts zeros between. Keras in, Keras out, on every backend.
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
# Exact types: a subclass may do anything.
_CONVS = {f"{kind}{rank}D" for kind in ("Conv", "StandardizedConv") for rank in (1, 2, 3)}
_CONVS = {getattr(place, name) for name in _CONVS for place in (keras.layers, layers) if hasattr(place, name)}
_DEPTHWISE = {keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D}
_DENSE = {keras.layers.Dense, layers.PointwiseDense}
_LINEAR = _CONVS | _DEPTHWISE | _DENSE
_STANDARDIZED: Any = layers._StandardizedConv
_NORMS = {keras.layers.BatchNormalization, layers.BatchNorm}


@dataclasses.dataclass(frozen=True)
class Folding:
    """What `fold_batch_norm` does with a model's batch normalisations.

    Attributes:
        after: Normalisation -> the layer before it, into which it is folded.
        before: Normalisation -> the layer after it, into which it is folded.
        kept: Normalisation -> why it stays.
    """

    after: dict[str, str]
    before: dict[str, str]
    kept: dict[str, str]

    def __str__(self) -> str:
        count = len(self.after) + len(self.before)
        lines = [f"{count} of {count + len(self.kept)} batch normalisations folded"]
        return "\n".join([*lines, *(f"  {name} stays: {why}" for name, why in self.kept.items())])


def fold_batch_norm(model: keras.Model, *, strict: bool = False) -> keras.Model:
    """A copy of a model for inference, without the batch normalisations that can be part of another layer.

    Kernels and biases are computed in float64 and equal the model's to rounding. A normalisation that cannot be
    folded stays as it is; `folding(model)` tells which, and why. Layers keep their names; the model itself and its
    weights are not touched.

    Args:
        model: A Functional or Sequential model, built. Models inside it are folded, too, each by itself.
        strict: Whether a normalisation that has to stay is an error.

    Returns:
        A Functional model, not compiled.

    Raises:
        ValueError: If the model is a subclassed or unbuilt one, or, if `strict`, has to keep a normalisation.
    """
    graph = _graph(model)
    after, before, kept = _plan(graph)
    if strict and kept:
        raise ValueError(
            f"{model.name} has batch normalisations that cannot be folded:\n{_report(after, before, kept)}"
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
            _assign_folded(old, new, _into(old, before), _into(old, after))
        else:
            copy_weights(old, new)

    return rebuilt(graph, clone_function=clone, call_function=call, assign=assign)


def folding(model: keras.Model) -> Folding:
    """What `fold_batch_norm` would do with a model, and why it leaves what it leaves.

    Raises:
        ValueError: If the model is a subclassed or unbuilt one.
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
    """The model as a Functional one of its own layers."""
    graph = functional(model)
    if graph is None:
        raise ValueError(
            "Batch normalisations are folded where it is known what comes before and after them: in Functional and "
            f"built Sequential models. Received: {model.name!r}, a {type(model).__name__}."
        )
    return connected(graph.input, graph.output, model.name)


# ------------------------------------------------------------------------------------------------- what can be folded


def _plan(graph: Any) -> tuple[dict[Any, Any], dict[Any, Any], dict[Any, str]]:
    """Normalisations and the layers before them, those and the layers after them, those that stay and why."""
    counts, consumers = uses(graph), takers(graph)
    after: dict[Any, Any] = {}
    before: dict[Any, Any] = {}
    kept: dict[Any, str] = {}
    for node in nodes(graph):
        norm = node.operation
        if not isinstance(norm, keras.layers.BatchNormalization):
            continue
        if type(norm) not in _NORMS:
            kept[norm] = f"a {type(norm).__name__} may be anything"
        elif counts[id(norm)] > 1:
            kept[norm] = "it is used more than once"
        else:
            given, result = node.arguments.keras_tensors[0], node.outputs[0]
            source, users = given._keras_history.operation, consumers[id(result)]
            why = _obstacle(source, norm, counts)
            if why is None and len(consumers[id(given)]) > 1:
                why = f"{source.name} is used beside it, too"
            if why is None:
                after[norm] = source
            elif len(users) == 1 and _obstacle(users[0], norm, counts, follows=True) is None:
                before[norm] = users[0]
            else:
                kept[norm] = why
    return after, before, kept


def _obstacle(layer: Any, norm: Any, counts: collections.Counter[int], follows: bool = False) -> str | None:
    """Why a normalisation before (or after: `follows`) cannot be part of this layer; `None` if it can."""
    if type(layer) not in _LINEAR:
        return f"{layer.name} is a {type(layer).__name__}, not a layer known to be linear"
    if counts[id(layer)] > 1:
        return f"{layer.name} is used more than once"
    if len(layer.weights) != 1 + layer.use_bias:
        return f"{layer.name} has weights beside its kernel and bias"
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


def _into(layer: Any, folded: dict[Any, Any]) -> list[Any]:
    """Return the normalisations that are folded into a layer."""
    return [norm for norm, into in folded.items() if into is layer]


def _assign_folded(layer: Any, new: Any, before: list[Any], after: list[Any]) -> None:
    """Give the new layer the kernel and bias that do the work of the normalisations before and after it, too."""
    kernel, bias = _kernel_and_bias(layer)
    # What comes before the layer first: what comes after it scales that part of the bias, too.
    for norm in before:
        kernel, bias = _fold_before(layer, kernel, bias, *_affine(norm))
    for norm in after:
        kernel, bias = _fold_after(layer, kernel, bias, *_affine(norm))
    new.kernel.assign(kernel.astype(layer.kernel.dtype))
    new.bias.assign(bias.astype(layer.kernel.dtype))


def _affine(norm: Any) -> tuple[Array, Array]:
    """A normalisation as `a * x + b`."""
    mean, variance = _float64(norm.moving_mean), _float64(norm.moving_variance)
    scale = 1 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale = scale * _float64(norm.gamma)
    offset = -mean * scale
    return scale, offset + _float64(norm.beta) if norm.center else offset


def _kernel_and_bias(layer: Any) -> tuple[Array, Array]:
    """The kernel as it is used, and the bias of each output channel."""
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
    else:  # a group of filters sees its own channels: (C / groups, filters)
        groups = getattr(layer, "groups", 1)
        scale, offset = (np.repeat(v.reshape(groups, -1).T, kernel.shape[-1] // groups, 1) for v in (scale, offset))
        more = (kernel * offset).sum(tuple(range(kernel.ndim - 1)))
    return kernel * scale, bias + more


def _with_bias(layer: Any) -> Any:
    """The same layer, unbuilt, with a bias; of a standardised convolution one that takes its kernel as it is."""
    config = {**layer.get_config(), "use_bias": True}
    kind = type(layer)
    if isinstance(layer, _STANDARDIZED):
        del config["epsilon"]
        kind = getattr(layers, f"Conv{layer.rank}D")
    return kind.from_config(config)


def _float64(value: Any) -> Array:
    return np.asarray(ops.convert_to_numpy(value)).astype("float64")
