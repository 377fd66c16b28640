"""Functional models as graphs: their calls in order, what takes a tensor, and models rebuilt from them."""

from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras

__all__ = ["connected", "copy_weights", "deep", "functional", "leaves", "made_by", "nodes", "rebuilt", "takers", "uses"]

Operation = Any  # a layer, or an operation of `keras.ops`


@contextlib.contextmanager
def deep() -> Iterator[None]:
    """Raise Python's recursion limit: Keras walks a graph by recursion, a call per layer, and ResNet-1202 has 3,600."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 20_000))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def connected(inputs: Any, outputs: Any, name: str | None = None) -> keras.Model:
    """Return `keras.Model(inputs, outputs, name=name)`, however many layers lie between."""
    with deep():
        return keras.Model(inputs, outputs, name=name)


# ------------------------------------------------------------------------------------------------------------ walking


def functional(model: Any) -> Any:
    """Return the graph of a model as Keras holds it, or `None` for anything but a Functional or built Sequential."""
    if isinstance(model, keras.Sequential):
        return getattr(model, "_functional", None) or None
    return model if isinstance(model, keras.Model) and getattr(model, "_nodes_by_depth", None) else None


def nodes(model: Any) -> list[Any]:
    """Return Keras' records of the calls in a Functional model, from its inputs to its outputs.

    A layer's own list of them, `_inbound_nodes`, would have its calls in other models, too.
    """
    by_depth = functional(model)._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def uses(model: Any) -> collections.Counter[int]:
    """Count the calls of each operation in a model, by its `id`."""
    return collections.Counter(id(node.operation) for node in nodes(model))


def takers(model: Any) -> dict[int, list[Operation]]:
    """List the operations that take each tensor of a model, by its `id`; the model itself takes its outputs."""
    found: dict[int, list[Operation]] = collections.defaultdict(list)
    for node in nodes(model):
        for tensor in node.arguments.keras_tensors:
            found[id(tensor)].append(node.operation)
    for tensor in functional(model).outputs:
        found[id(tensor)].append(model)
    return found


def made_by(tensor: Any) -> tuple[Operation, list[Any]]:
    """Return the operation that made a tensor, and the tensors that it was given."""
    operation, node, _ = tensor._keras_history
    return operation, operation._inbound_nodes[node].input_tensors


def leaves(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """Yield the layers of a model, and those of the models in it."""
    inner = layer.layers if isinstance(layer, keras.Model) else []
    if not inner:
        yield layer
    for child in inner:
        yield from leaves(child)


# --------------------------------------------------------------------------------------------------------- rebuilding


def copy_weights(old: Any, new: Any) -> None:
    """Give a layer the values of another one's variables; by way of NumPy, so that both never share a buffer."""
    for variable, value in zip(new.variables, old.variables, strict=True):
        variable.assign(keras.ops.convert_to_numpy(value))
    for part in new._flatten_layers():
        if hasattr(part, "finalize_state"):  # keras.layers.Normalization keeps what it computes from its variables
            part.finalize_state()


def rebuilt(
    model: keras.Model,
    *,
    clone_function: Callable[[Operation], Operation | None] | None = None,
    call_function: Callable[..., Any] | None = None,
    assign: Callable[[Any, Any], None] = copy_weights,
) -> keras.Model:
    """Rebuild a Functional model of copies of its layers, with their names and weights; the model stays as it is.

    Models inside are rebuilt in the same way.

    Args:
        model: A Functional model, or a Sequential one that is built.
        clone_function: Returns what stands in an operation's place, or `None` for its copy. A model that it returns
            comes with its weights.
        call_function: `call_function(old, new, *args, **kwargs)` calls what stands in the place of `old`.
        assign: `assign(old, new)` fills the variables of a new layer that is called.

    Returns:
        A Functional model, not compiled.

    Raises:
        ValueError: If the model is a subclassed or unbuilt one, or a layer cannot be copied.
    """
    whole = functional(model)
    if whole is None:
        raise ValueError(
            f"Only a Functional or built Sequential model can be rebuilt. Received: {model.name!r}, a "
            f"{type(model).__name__}. Write it with keras.Input and keras.Model(inputs, outputs)."
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
        plain = keras.Model(whole.input, whole.output, name=model.name)
        result = keras.models.clone_model(plain, clone_function=clone, call_function=call)
    for old, new in pairs:
        if new.built:  # `call_function` may leave a layer out
            assign(old, new)
    return result


def _copy(old: Operation) -> Operation:
    try:
        return type(old).from_config(old.get_config())
    except Exception as error:
        raise ValueError(
            f"Layers are copied by their get_config and from_config. Received: {old.name!r}, a {type(old).__name__}, "
            "which cannot be. Give it a get_config with what __init__ takes, and let __init__ take **kwargs for the "
            "layer's own."
        ) from error
