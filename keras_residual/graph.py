"""Functional models as graphs: iterate over calls, find the consumers of tensors, rebuild models."""

from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras

__all__ = [
    "classifier_input",
    "connected",
    "copy_weights",
    "deep",
    "functional",
    "leaves",
    "made_by",
    "nodes",
    "rebuilt",
    "takers",
    "uses",
]

Operation = Any  # a layer, or an operation of `keras.ops`


@contextlib.contextmanager
def deep() -> Iterator[None]:
    """Raise Python's recursion limit. Keras recurses once per layer of a graph, and ResNet-1202 has 3,600 layers."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 20_000))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def connected(inputs: Any, outputs: Any, name: str | None = None) -> keras.Model:
    """Return `keras.Model(inputs, outputs, name=name)` for graphs of any depth."""
    with deep():
        return keras.Model(inputs, outputs, name=name)


# ------------------------------------------------------------------------------------------------------------ walking


def functional(model: Any) -> Any:
    """Return the Functional model behind a Functional or built Sequential model, or `None` for others."""
    if isinstance(model, keras.Sequential):
        return getattr(model, "_functional", None) or None
    return model if isinstance(model, keras.Model) and getattr(model, "_nodes_by_depth", None) else None


def nodes(model: Any) -> list[Any]:
    """Return Keras' nodes, the records of the calls in a Functional model, from its inputs to its outputs.

    The `_inbound_nodes` of a layer also contain its calls in other models.
    """
    by_depth = functional(model)._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def uses(model: Any) -> collections.Counter[int]:
    """Count the calls of each operation in a model, by its `id`."""
    return collections.Counter(id(node.operation) for node in nodes(model))


def takers(model: Any) -> dict[int, list[Operation]]:
    """List the operations that consume each tensor of a model, by its `id`. The model itself consumes its outputs."""
    found: dict[int, list[Operation]] = collections.defaultdict(list)
    for node in nodes(model):
        for tensor in node.arguments.keras_tensors:
            found[id(tensor)].append(node.operation)
    for tensor in functional(model).outputs:
        found[id(tensor)].append(model)
    return found


def made_by(tensor: Any) -> tuple[Operation, list[Any]]:
    """Return the operation that produced a tensor, and its input tensors."""
    operation, node, _ = tensor._keras_history
    return operation, operation._inbound_nodes[node].input_tensors


_AFTER_CLASSIFIER = (
    keras.layers.Activation,
    keras.layers.Average,
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.Identity,
    keras.layers.Reshape,
    keras.layers.Softmax,
)


def classifier_input(model: keras.Model) -> Any:
    """Return the classifier's input (averaged over several classifiers), or `None` if the model has no classifier."""
    found, todo = [], [model.outputs[0]]
    while todo:
        layer, inputs = made_by(todo.pop())
        if isinstance(layer, keras.layers.Dense):
            found += inputs
        elif isinstance(layer, _AFTER_CLASSIFIER):
            todo += inputs
        else:
            return None
    return found[0] if len(found) == 1 else keras.ops.mean(keras.ops.stack(found), 0)


def leaves(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """Yield the layers of a model, including those of nested models."""
    inner = layer.layers if isinstance(layer, keras.Model) else []
    if not inner:
        yield layer
    for child in inner:
        yield from leaves(child)


# --------------------------------------------------------------------------------------------------------- rebuilding


def copy_weights(old: Any, new: Any) -> None:
    """Copy the values of a layer's variables to another layer, through NumPy, so that they never share a buffer."""
    for variable, value in zip(new.variables, old.variables, strict=True):
        variable.assign(keras.ops.convert_to_numpy(value))
    for part in new._flatten_layers():
        if hasattr(part, "finalize_state"):  # keras.layers.Normalization caches values computed from its variables
            part.finalize_state()


def rebuilt(
    model: keras.Model,
    *,
    clone_function: Callable[[Operation], Operation | None] | None = None,
    call_function: Callable[..., Any] | None = None,
    assign: Callable[[Any, Any], None] = copy_weights,
) -> keras.Model:
    """Rebuild a Functional model from copies of its layers, with their names and weights.

    Nested models are rebuilt in the same way. The original model is not changed.

    Args:
        model: A Functional or built Sequential model.
        clone_function: Returns the replacement of an operation, or `None` to copy it. If the replacement is a model, it
            keeps its own weights.
        call_function: `call_function(old, new, *args, **kwargs)` calls `new`, the replacement of `old`.
        assign: `assign(old, new)` sets the variables of a new layer.

    Returns:
        An uncompiled Functional model.

    Raises:
        ValueError: If the model is subclassed or not built, or if a layer cannot be copied.
    """
    graph = functional(model)
    if graph is None:
        raise ValueError(
            f"The model must be a Functional or a built Sequential model; got {model.name!r}, a "
            f"{type(model).__name__}. Define it with keras.Input and keras.Model(inputs, outputs)."
        )
    olds: dict[int, Operation] = {}
    pairs: list[tuple[Any, Any]] = []

    def clone(old: Operation) -> Operation:
        new = None if clone_function is None else clone_function(old)
        if functional(old) is None:
            new = _copy(old) if new is None else new
            if isinstance(old, keras.Layer):
                pairs.append((old, new))
        elif new is None:
            new = rebuilt(old, clone_function=clone_function, call_function=call_function, assign=assign)
        olds[id(new)] = old
        return new

    def call(new: Operation, *args: Any, **kwargs: Any) -> Any:
        return new(*args, **kwargs) if call_function is None else call_function(olds[id(new)], new, *args, **kwargs)

    with deep():
        plain = keras.Model(graph.input, graph.output, name=model.name)
        result = keras.models.clone_model(plain, clone_function=clone, call_function=call)
    for old, new in pairs:
        if new.built:  # `call_function` may skip a layer
            assign(old, new)
    return result


def _copy(old: Operation) -> Operation:
    try:
        return type(old).from_config(old.get_config())
    except Exception as error:
        raise ValueError(
            f"Layers must be copyable with get_config and from_config; got {old.name!r}, a {type(old).__name__}, which "
            "is not. Return all arguments of __init__ from its get_config, and pass **kwargs from __init__ to "
            "keras.layers.Layer."
        ) from error
