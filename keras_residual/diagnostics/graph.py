"""A Functional model as a flat list of calls: to look at, and to run with changes in its middle."""

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
    """One use of a layer or operation.

    Attributes:
        number: Place among the graph's calls.
        operation: The layer, or the operation of `keras.ops`.
        name: The operation's name, after the names of the models it lies in: `"backbone/conv1"`; the second use of a
            layer is `"backbone/conv1:2"`.
        operands: Numbers of the tensors it takes, in the order of its arguments.
        inputs: The same, each tensor once.
        outputs: Numbers of the tensors it gives.
    """

    number: int
    operation: Any
    name: str
    operands: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    _arguments: Any
    _keys: tuple[int, ...]  # what Keras' record of the arguments calls the inputs

    def arguments(self, values: list[Any]) -> tuple[Any, Any]:
        """What the operation is called with: values in place of its inputs, and everything else as it was."""
        return self._arguments.fill_in(dict(zip(self._keys, values, strict=True)))

    def __call__(self, values: list[Any], training: bool = False) -> list[Any]:
        """Runs the operation on values in place of its inputs."""
        args, kwargs = self.arguments(values)
        if getattr(self.operation, "_call_has_training_arg", False):
            kwargs = {**kwargs, "training": training}
        return tree.flatten(self.operation(*args, **kwargs))


class Graph:
    """The calls of a model from inputs to outputs; models inside it are opened, too.

    Tensors have numbers that grow from the inputs to the outputs: what a tensor is made of has smaller ones.

    Attributes:
        model: The model.
        calls: The calls, in an order in which they can be run.
        tensors: The symbolic tensors (shape and dtype), by number.
        maker: The call that makes a tensor, by number; `None` for the model's inputs.
        users: The calls that take a tensor, by number.
        inputs: Numbers of the model's inputs.
        outputs: Numbers of its outputs.

    Raises:
        ValueError: If the model is no graph: a subclassed one, or a `Sequential` that is not built.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self.calls: list[Call] = []
        self.tensors: list[Any] = []
        self.maker: list[Call | None] = []
        self.users: list[list[Call]] = []
        whole = functional(model)
        if whole is None:
            raise ValueError(
                "What is connected to what is known of Functional and built Sequential models. Received: "
                f"{getattr(model, 'name', model)!r}, a {type(model).__name__}. Write it with keras.Input and "
                "keras.Model(inputs, outputs), or give a Sequential its input shape."
            )
        self._uses: dict[str, int] = {}
        self.inputs = [self._tensor(tensor, None) for tensor in whole.inputs]
        self.outputs = self._open(whole, self.inputs, "")
        # Bit n of ancestors[m]: tensor m is made of tensor n, or is it.
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
                if len(keys) != len(numbered):  # two symbolic tensors of a nested model stand for one outside
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
        """Whether a tensor is made of another one (or is it)."""
        return bool(self.ancestors[number] >> source & 1)

    def between(self, source: int, target: int) -> list[int]:
        """The tensors on the ways from one tensor to another, without the first, with the last, in order."""
        mask = self.ancestors[target] >> source + 1
        found, number = [], source + 1
        while mask:
            if mask & 1 and self.comes_from(number, source):
                found.append(number)
            mask, number = mask >> 1, number + 1
        return found

    def passes(self, source: int, through: int) -> bool:
        """Whether every way from a tensor to the outputs goes through another one."""
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
        """The name of what makes a tensor."""
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
        """Computes tensors.

        Args:
            inputs: The model's inputs; may be left out where `known` has all that is needed.
            want: Numbers of the tensors to return; the model's outputs if `None`.
            training: What layers are told.
            known: Values that need not be computed.
            edit: `edit(call, number, value)` gives the value that a call takes in place of tensor `number`.
            replace: Number -> number of the tensor whose value stands in its place.

        Returns:
            Number -> value.
        """
        want, replace = list(self.outputs if want is None else want), dict(replace or {})
        values: dict[int, Any] = dict(known or {})
        if inputs is not None:
            given = tree.flatten(inputs)
            if len(given) != len(self.inputs):
                raise ValueError(
                    f"A batch holds each of the model's inputs: {len(self.inputs)} for {self.model.name}. Received: "
                    f"{len(given)}. Give a list of them."
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
                if not left[number]:  # activations of large images are large
                    del values[number]
        return {number: values[replace.get(number, number)] for number in want}

    def _needed(
        self, want: list[int], values: Mapping[int, Any], replace: Mapping[int, int]
    ) -> tuple[list[Call], dict[int, int]]:
        """The calls to run, and how often each tensor is still taken; wanted ones once more."""
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
                raise ValueError(f"{self.model.name}: no value for the input {self.tensors[number].name!r}.")
            calls.add(maker.number)
            for given in {replace.get(n, n) for n in maker.inputs}:
                left[given] = left.get(given, 0) + 1
                todo.append(given)
        return [self.calls[number] for number in sorted(calls)], left


def _inputs(node: Any) -> list[Any]:
    """What a model inside is called on, without the mask, which Keras hands on with the tensors when it runs."""
    args, kwargs = node.arguments.args, node.arguments.kwargs
    given = args[0] if args else next(iter(kwargs.values()), None)
    return [tensor for tensor in tree.flatten(given) if isinstance(tensor, keras.KerasTensor)]


def gradients(function: Callable[[list[Any]], Any], values: list[Any], scope: Any = None) -> tuple[Any, list[Any]]:
    """A scalar function of tensors and its gradient by each of them; zeros where it does not depend on one.

    Variables stay as they are, whatever `function` assigns to them (statistics, seeds); `scope` may give them values.
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
    raise RuntimeError(f"Gradients are taken on TensorFlow and JAX. Received: KERAS_BACKEND={backend}.")
