"""Functional models as flat lists of calls, which can be analysed and run with modifications."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops, tree

from keras_residual.graph import functional, nodes

__all__ = ["Call", "Graph", "gradients"]

Edit = Callable[["Call", int, Any], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer or operation.

    Attributes:
        number: Index among the graph's calls.
        operation: The layer, or the operation of `keras.ops`.
        name: Operation name, prefixed with the names of the enclosing models, such as `"backbone/conv1"`. The second
            call of a layer is `"backbone/conv1:2"`.
        operands: Numbers of the input tensors, in the order of the arguments.
        inputs: Numbers of the input tensors without repetition.
        outputs: Numbers of the output tensors.
    """

    number: int
    operation: Any
    name: str
    operands: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    _arguments: Any
    _keys: tuple[int, ...]  # keys of the inputs in Keras' record of the arguments

    def arguments(self, values: list[Any]) -> tuple[Any, Any]:
        """Return the arguments of the call with its input tensors replaced by `values`."""
        return self._arguments.fill_in(dict(zip(self._keys, values, strict=True)))

    def __call__(self, values: list[Any], training: bool = False) -> list[Any]:
        """Run the operation with its input tensors replaced by `values`."""
        args, kwargs = self.arguments(values)
        if getattr(self.operation, "_call_has_training_arg", False):
            kwargs = {**kwargs, "training": training}
        return tree.flatten(self.operation(*args, **kwargs))


class Graph:
    """The calls of a model from inputs to outputs, including those in nested models.

    Tensors are numbered from the inputs to the outputs, so that a tensor has a larger number than its ancestors.

    Attributes:
        model: The model.
        calls: The calls in topological order.
        tensors: The symbolic tensors (shape and dtype), by number.
        maker: The call that produces each tensor, by number; `None` for the model's inputs.
        users: The calls that consume each tensor, by number.
        inputs: Numbers of the model's inputs.
        outputs: Numbers of the model's outputs.

    Raises:
        ValueError: If the model has no graph, because it is subclassed or an unbuilt `Sequential`.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self.calls: list[Call] = []
        self.tensors: list[Any] = []
        self.maker: list[Call | None] = []
        self.users: list[list[Call]] = []
        graph = functional(model)
        if graph is None:
            raise ValueError(
                "The model must be a Functional or a built Sequential model, whose graph of layers is known; got "
                f"{getattr(model, 'name', model)!r}, a {type(model).__name__}. Define it with keras.Input and "
                "keras.Model(inputs, outputs), or start a Sequential with keras.Input(shape)."
            )
        self._uses: dict[str, int] = {}
        self.inputs = [self._tensor(tensor, None) for tensor in graph.inputs]
        self.outputs = self._open(graph, self.inputs, "")
        # Bit n of ancestors[m] is set if n is m or an ancestor of m.
        self.ancestors: list[int] = []
        for number, maker in enumerate(self.maker):
            mask = 1 << number
            for given in maker.inputs if maker else ():
                mask |= self.ancestors[given]
            self.ancestors.append(mask)

    def _tensor(self, tensor: Any, maker: Call | None) -> int:
        self.tensors.append(tensor)
        self.maker.append(maker)
        self.users.append([])
        return len(self.tensors) - 1

    def _open(self, model: Any, inputs: list[int], prefix: str) -> list[int]:
        numbers = dict(zip(map(id, model.inputs), inputs, strict=True))
        for node in nodes(model):
            operation, given = node.operation, node.arguments.keras_tensors
            if node.is_input or any(id(tensor) not in numbers for tensor in given):
                continue
            taken = [numbers[id(tensor)] for tensor in given]
            inner, own = functional(operation), _inputs(node)
            if inner is not None and len(inner.inputs) == len(own):
                made = self._open(inner, [numbers[id(tensor)] for tensor in own], f"{prefix}{operation.name}/")
            else:
                first = len(self.tensors)
                keys, numbered = tuple(dict.fromkeys(map(id, given))), tuple(dict.fromkeys(taken))
                if len(keys) != len(numbered):  # two symbolic tensors of a nested model are the same tensor outside
                    numbered = tuple(numbers[key] for key in keys)
                name = prefix + operation.name
                use = self._uses[name] = self._uses.get(name, 0) + 1
                call = Call(
                    len(self.calls),
                    operation,
                    name if use == 1 else f"{name}:{use}",
                    tuple(taken),
                    numbered,
                    tuple(range(first, first + len(node.outputs))),
                    node.arguments,
                    keys,
                )
                made = [self._tensor(tensor, call) for tensor in node.outputs]
                self.calls.append(call)
                for number in set(numbered):
                    self.users[number].append(call)
            numbers.update(zip(map(id, node.outputs), made, strict=True))
        return [numbers[id(tensor)] for tensor in model.outputs]

    # ------------------------------------------------------------------------------------------------------- looking

    def comes_from(self, number: int, source: int) -> bool:
        """Return True if `source` is the tensor or one of its ancestors."""
        return bool(self.ancestors[number] >> source & 1)

    def between(self, source: int, target: int) -> list[int]:
        """Return the tensors on all paths from one tensor to another, in order, including only the last of the two."""
        mask = self.ancestors[target] >> source + 1
        found, number = [], source + 1
        while mask:
            if mask & 1 and self.comes_from(number, source):
                found.append(number)
            mask, number = mask >> 1, number + 1
        return found

    def passes(self, source: int, through: int) -> bool:
        """Return True if every path from a tensor to the outputs goes through another tensor."""
        todo, seen = [source], {source, through}
        while todo:
            number = todo.pop()
            if number in self.outputs:
                return False
            fresh = {out for call in self.users[number] for out in call.outputs} - seen
            seen |= fresh
            todo += fresh
        return True

    def name(self, number: int) -> str:
        """Return the name of the call or input that produces a tensor."""
        maker = self.maker[number]
        return maker.name if maker else self.tensors[number].name

    # ------------------------------------------------------------------------------------------------------- running

    def run(
        self,
        inputs: Any = None,
        want: list[int] | None = None,
        *,
        training: bool = False,
        known: Mapping[int, Any] | None = None,
        edit: Edit | None = None,
        replace: Mapping[int, int] | None = None,
    ) -> dict[int, Any]:
        """Compute tensors.

        Args:
            inputs: The model's inputs; optional if `known` contains all necessary values.
            want: Numbers of the tensors to return; defaults to the model's outputs.
            training: Value of the layers' `training` argument.
            known: Values of tensors, which are not computed.
            edit: `edit(call, number, value)` returns the value that a call receives for its input tensor `number`.
            replace: Tensors to replace by other tensors, by number.

        Returns:
            The values, by number.
        """
        want, replace = list(self.outputs if want is None else want), dict(replace or {})
        values: dict[int, Any] = dict(known or {})
        if inputs is not None:
            given = tree.flatten(inputs)
            if len(given) != len(self.inputs):
                raise ValueError(
                    f"A batch must contain all inputs of the model, {len(self.inputs)} for {self.model.name}; got "
                    f"{len(given)}. Pass a list of the inputs."
                )
            for number, value in zip(self.inputs, given, strict=True):
                values.setdefault(number, ops.convert_to_tensor(value, self.tensors[number].dtype))
        needed, left = self._needed(want, values, replace)
        for call in needed:
            given = [values[replace.get(n, n)] for n in call.inputs]
            if edit is not None:
                given = [edit(call, n, value) for n, value in zip(call.inputs, given, strict=True)]
            values.update(zip(call.outputs, call(given, training), strict=True))
            for number in {replace.get(n, n) for n in call.inputs}:
                left[number] -= 1
                if not left[number]:  # free the memory
                    del values[number]
        return {number: values[replace.get(number, number)] for number in want}

    def _needed(
        self, want: list[int], values: Mapping[int, Any], replace: Mapping[int, int]
    ) -> tuple[list[Call], dict[int, int]]:
        """Return the calls to run, and the number of remaining uses of each tensor, including the final result."""
        calls: set[int] = set()
        left: dict[int, int] = {}
        todo = [replace.get(number, number) for number in want]
        for number in todo:
            left[number] = left.get(number, 0) + 1
        while todo:
            number = todo.pop()
            maker = self.maker[number]
            if number in values or (maker is not None and maker.number in calls):
                continue
            if maker is None:
                raise ValueError(
                    f"{self.model.name}: a value must be given for the input {self.tensors[number].name!r}."
                )
            calls.add(maker.number)
            for given in {replace.get(n, n) for n in maker.inputs}:
                left[given] = left.get(given, 0) + 1
                todo.append(given)
        return [self.calls[number] for number in sorted(calls)], left


def _inputs(node: Any) -> list[Any]:
    """Return the tensors that a nested model is called on, without masks, which Keras attaches to the tensors."""
    args, kwargs = node.arguments.args, node.arguments.kwargs
    given = args[0] if args else next(iter(kwargs.values()), None)
    return [tensor for tensor in tree.flatten(given) if isinstance(tensor, keras.KerasTensor)]


def gradients(function: Callable[[list[Any]], Any], values: list[Any], scope: Any = None) -> tuple[Any, list[Any]]:
    """Return the value of a scalar function of tensors, and its gradient for each tensor (zeros if independent).

    Assignments to variables in `function` (statistics, seeds) are discarded. `scope` may set values of variables.
    """
    scope = keras.StatelessScope() if scope is None else scope
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        values = [tf.convert_to_tensor(value) for value in values]
        with scope, tf.GradientTape(watch_accessed_variables=False) as tape:
            for value in values:
                tape.watch(value)
            result = function(values)
        return result, tape.gradient(result, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    if backend == "jax":
        import jax

        with scope:
            return jax.value_and_grad(function)(values)
    raise RuntimeError(f"The Keras backend must be TensorFlow or JAX for gradients; got KERAS_BACKEND={backend}.")
