"""Gradient flow: the gradient at each block's input, split into its shortcut and branch parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_residual import figures
from keras_residual.checking import class_numbers, require_class_numbers
from keras_residual.diagnostics.graph import Call, Graph, gradients
from keras_residual.diagnostics.result import Result, headline, name_places
from keras_residual.diagnostics.structure import Structure

__all__ = ["GradientFlow", "default_loss", "gradient_flow", "logits_of"]

Loss = Callable[[Any, Any], Any] | str | None


@dataclasses.dataclass(frozen=True)
class GradientFlow(Result):
    """Result of `gradient_flow`.

    Attributes:
        loss: Loss on the batch.
        gradients: Gradient at each block's input, by the name of the block, as arrays of the input's shape:
            `{"input": ..., "shortcut": ..., "branch": ..., "beside": ...}`. `input` is the sum of the others; `beside`
            is the part of consumers outside the block. Empty for a network without blocks.
    """

    loss: float = float("nan")
    gradients: dict[str, dict[str, np.ndarray[Any, Any]]] = dataclasses.field(default_factory=dict)

    def figure(self) -> Any:
        figure, ((axis,),) = figures.canvas(1, 1, (max(6.0, min(16.0, 2.5 + 0.28 * len(self.rows))), 4.6))
        names = [row["block" if self.gradients else "layer"] for row in self.rows]
        if self.gradients:
            for key, style in (("shortcut", "o-"), ("branch", "s-"), ("input", "k--")):
                label = {"input": "total at the block's input"}.get(key, f"through the {key}")
                axis.plot([row[key] or np.nan for row in self.rows], style, label=label, ms=4, lw=1.2)
            axis.legend()
        else:
            axis.plot(
                [row["output"] or np.nan for row in self.rows], "ks--", label="at the layer's output", ms=4, lw=1.2
            )
            axis.legend()
        axis.set_yscale("log")
        axis.set_ylabel("norm of the gradient of the loss")
        axis.grid(alpha=0.3)
        name_places(axis, names)
        headline(figure, self.title)
        return figure


def gradient_flow(model: keras.Model, x: Any, y: Any, *, loss: Loss = None, training: bool = False) -> GradientFlow:
    """Measure the norm of the loss gradient at every residual block, split into shortcut and branch.

    For `y = x + F(x)`, the gradient at the block's input is `dL/dy + dL/dy dF/dx` (He et al. 2016b, "Identity Mappings
    in Deep Residual Networks", eq. 5). The first part reaches every layer undiminished. Both parts are computed in one
    backward pass, as the gradients along the edges of the graph that leave the block's input. The gradient at the input
    is their sum, plus the part of consumers outside the block (`beside`), if there are any.

    Args:
        model: A Functional or built Sequential model. If it has no residual blocks, the result has one row per layer
            with a kernel, so that plain and residual networks can be compared.
        x: A batch of inputs, or a list of inputs for a model with several inputs.
        y: Targets of the batch: by default integer labels, `(N,)` or, for text and segmentation, `(N, ...)`; otherwise
            the targets of the loss that `loss` or the compiled model specifies.
        loss: Function `loss(y, outputs)` or name of a Keras loss. Defaults to the loss of a compiled model, otherwise
            to the cross-entropy with integer labels of the model's logits or probabilities.
        training: If true, layers run in training mode (batch statistics, dropout). The model is not changed.

    Returns:
        A result with the norms over the batch, one row per block in forward order: at its `output` (the sum), through
        `shortcut` and `branch` at its input, and in total at its `input`. The gradients are in `.gradients`.

    Raises:
        ValueError: If the model is subclassed or not built, or if labels and outputs do not match.
    """
    graph = Graph(model)
    blocks = Structure(graph).residual
    edges: dict[tuple[int, int], int] = {}  # (call, tensor) -> index into `taps`
    nodes = {block.end for block in blocks}
    for block in blocks:
        for call in graph.users[block.start]:
            edges.setdefault((call.number, block.start), len(edges))
    plain = [] if blocks else _layers(graph)
    nodes |= {call.outputs[0] for call in plain}
    where = {number: len(edges) + i for i, number in enumerate(sorted(nodes))}
    with keras.StatelessScope():  # discards updates of running statistics
        values = graph.run(x, [*(number for _, number in edges), *where], training=training)
    taps = [ops.zeros_like(values[number]) for number in (*(number for _, number in edges), *where)]
    measure = _loss(graph, loss, y)

    def total(taps: list[Any]) -> Any:
        """Return the loss, after adding a zero tensor (tap) wherever a gradient is needed."""

        def edit(call: Call, number: int, value: Any) -> Any:
            if number in where:
                value = value + taps[where[number]]
            edge = edges.get((call.number, number))
            return value if edge is None else value + taps[edge]

        made = graph.run(x, training=training, edit=edit)
        outputs = [made[n] + taps[where[n]] if n in where else made[n] for n in graph.outputs]
        return measure(outputs)

    value, slopes = gradients(total, taps)
    slopes = [np.asarray(ops.convert_to_numpy(ops.cast(slope, "float32"))) for slope in slopes]
    value = float(ops.convert_to_numpy(value))

    rows, found = [], {}
    for block in blocks:
        parts = {"shortcut": [], "branch": [], "beside": []}
        first = {call.number for call in block.shortcut.calls}
        other = {call.number for path in block.sides for call in path.calls}
        for call in graph.users[block.start]:
            slope = slopes[edges[call.number, block.start]]
            if call is block.call:
                parts["shortcut"].append(slope)
            else:
                side = "shortcut" if call.number in first else "branch" if call.number in other else "beside"
                parts[side].append(slope)
        zero = np.zeros_like(slopes[where[block.end]], shape=tuple(values[block.start].shape))
        sums = {side: sum(given, zero) for side, given in parts.items()}
        sums["input"] = sums["shortcut"] + sums["branch"] + sums["beside"]
        found[block.name] = sums
        norms = {side: float(np.linalg.norm(part)) for side, part in sums.items()}
        rows.append(
            {
                "block": block.name,
                "shape": " x ".join(map(str, zero.shape[1:])),
                "output": float(np.linalg.norm(slopes[where[block.end]])),
                **{side: norms[side] for side in ("shortcut", "branch", "input")},
                "branch / shortcut": norms["branch"] / norms["shortcut"] if norms["shortcut"] else float("inf"),
            }
        )
    for call in plain:
        norm = float(np.linalg.norm(slopes[where[call.outputs[0]]]))
        rows.append({"layer": call.name, "output": norm})
    change = _first_over_last(rows, "input" if blocks else "output")
    what = f"{len(blocks)} residual blocks" if blocks else "no residual block"
    return GradientFlow(
        f"Gradient flow of {model.name}: {what}, loss {value:.3f}{change}", rows, (), loss=value, gradients=found
    )


def _first_over_last(rows: list[dict[str, Any]], key: str) -> str:
    if len(rows) < 2 or not rows[-1][key]:
        return ""
    return f", gradient of first / last {'block' if key == 'input' else 'layer'} {rows[0][key] / rows[-1][key]:.3g}"


def _layers(graph: Graph) -> list[Call]:
    """Return the calls of layers with kernels, for networks without blocks."""
    calls = (call for call in graph.calls if isinstance(call.operation, keras.Layer))
    return [call for call in calls if any(len(v.shape) >= 2 for v in call.operation.trainable_variables)]


def logits_of(graph: Graph) -> tuple[int, Call | None]:
    """Return the number of the tensor of a classifier's logits, and the layer that contains the softmax, if any.

    If a model ends in `Activation("softmax")` or `Softmax`, the logits are its input. If it ends in
    `Dense(activation="softmax")`, the logits exist only inside that layer, and the tensor is its output.
    """
    number = graph.outputs[0]
    maker = graph.maker[number]
    while maker is not None:
        operation = maker.operation
        if isinstance(operation, keras.layers.Softmax) or type(operation).__name__ == "Softmax":
            return maker.inputs[0], None
        function = getattr(operation, "activation", None)
        if function is not None and keras.activations.get(function) is keras.activations.softmax:
            return (maker.inputs[0], None) if isinstance(operation, keras.layers.Activation) else (number, maker)
        if not isinstance(operation, keras.layers.Identity) and not _is_linear(operation):
            break
        number = maker.inputs[0]
        maker = graph.maker[number]
    return graph.outputs[0], None


def _is_linear(operation: Any) -> bool:
    linear = getattr(operation, "activation", None) is keras.activations.linear
    return linear and isinstance(operation, keras.layers.Activation)


def default_loss(graph: Graph) -> Callable[[Any, Any], Any]:
    """Return the cross-entropy with integer labels for the model's outputs, logits or probabilities."""
    from_logits = logits_of(graph) == (graph.outputs[0], None)

    def cross_entropy(y: Any, outputs: Any) -> Any:
        outputs = ops.cast(outputs, "float32")
        return ops.mean(ops.sparse_categorical_crossentropy(y, outputs, from_logits=from_logits))

    return cross_entropy


def check_labels(y: Any, outputs: Any) -> Any:
    """Return class numbers as an array, one for each vector of the outputs.

    Raises:
        ValueError: If they are not valid class numbers for the outputs.
    """
    shape = tuple(outputs.shape)
    labels = class_numbers(ops.convert_to_numpy(y), known=True, rank=len(shape) - 1)
    try:
        require_class_numbers(labels, shape[-1], "y", shape[:-1])
    except ValueError as error:
        raise ValueError(f"{error} For other targets, pass loss=, a function of targets and outputs.") from None
    return labels.astype("int32")


def _loss(graph: Graph, loss: Loss, y: Any) -> Callable[[list[Any]], Any]:
    """Return the loss as a function of a list of outputs."""
    trained = getattr(graph.model, "loss", None) if getattr(graph.model, "compiled", False) else None
    if loss is None and (isinstance(trained, str) or callable(trained)):
        loss = trained
    function: Any = keras.losses.get(loss) if isinstance(loss, str) else loss or default_loss(graph)
    sparse = loss is None or getattr(function, "name", getattr(function, "__name__", "")) == _SPARSE

    def measure(outputs: list[Any]) -> Any:
        y_pred = outputs[0] if len(outputs) == 1 else outputs
        return ops.mean(ops.cast(function(check_labels(y, y_pred) if sparse else y, y_pred), "float32"))

    return measure


_SPARSE = "sparse_categorical_crossentropy"
