"""Detection of the skip connections of any Functional model, and of faults in them."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import keras
import numpy as np

from keras_residual import figures
from keras_residual.diagnostics.graph import Graph
from keras_residual.diagnostics.result import Result, headline
from keras_residual.diagnostics.rules import Fault, faults
from keras_residual.diagnostics.structure import Structure

__all__ = ["Check", "Fault", "check_residual"]


@dataclasses.dataclass(frozen=True)
class Check(Result):
    """Result of `check_residual`.

    Attributes:
        faults: The faults that were found, ordered from the input to the output.
    """

    faults: tuple[Fault, ...] = ()
    spans: tuple[tuple[int, int, int], ...] = ()  # per row: positions of start, end and last call

    @property
    def healthy(self) -> bool:
        """True if no fault was found."""
        return not self.faults

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *(f"! {fault}" for fault in self.faults)])

    def figure(self) -> Any:
        figure, ((axis,),) = figures.canvas(1, 1, (11, 4.2 if self.rows else 2.2))
        length = max((last for _, _, last in self.spans), default=1)
        axis.plot([0, length], [0, 0], color="0.25", lw=2.5, solid_capstyle="butt")
        colours = {"identity": "tab:blue", "projection": "tab:orange", "parameter-free": "tab:green"}
        highest, seen, labelled = 1.0, set(), -1e9
        for row, (start, end, _) in zip(self.rows, self.spans, strict=True):
            wrong = row["verdict"] != "healthy"
            colour = "tab:red" if wrong else colours.get(row["shortcut"], "0.6")
            label = "faulty" if wrong else row["shortcut"]
            angle = np.linspace(0, np.pi, 50)
            height = (end - start) / 2
            highest = max(highest, height)
            axis.plot(
                (start + end) / 2 - height * np.cos(angle),
                height * np.sin(angle),
                color=colour,
                lw=2.2 if wrong else 1.4,
                label=None if label in seen else label,
                zorder=3 if wrong else 2,
            )
            seen.add(label)
            if wrong and (start + end) / 2 - labelled > length / 40:
                labelled = (start + end) / 2
                axis.annotate(
                    f"{row['block']}: {row['verdict']}",
                    (labelled, height),
                    xytext=(0, 6),
                    textcoords="offset points",
                    rotation=35,
                    fontsize=8,
                    color="tab:red",
                )
        axis.set_ylim(-0.12 * highest, 1.25 * highest * (1.7 if self.faults else 1))
        axis.set_yticks([])
        axis.set_xlabel("operations, from the input to the output")
        for side in ("left", "right", "top"):
            axis.spines[side].set_visible(False)
        if seen:
            axis.legend(loc="upper right", fontsize=8, frameon=False)
        headline(figure, self.title)
        return figure


def check_residual(model: keras.Model) -> Check:
    """Find the skip connections of a model, and check each of them for common faults.

    Works on any Functional model, including nested models. An addition is a residual block if its operands are computed
    from the same tensor and one of them is only an identity or a projection. If the type of a layer does not determine
    what it computes, it is measured on noise. The weights do not matter, except for detecting a residual stream that
    grows because it lacks normalisation. For a `Sequential` model or a plain network, the result states that there are
    no skip connections.

    The following faults are detected, each with a reference to the literature: a shortcut that is scaled, has dropout,
    normalisation or an activation, is detached, is projected unnecessarily, or is misaligned with its branch (cropped
    where the branch has a stride); a branch that is missing, linear, non-negative, detached or frozen; two branches and
    no shortcut; a concatenation instead of an addition; channels that are broadcast; an activation on the residual
    stream of a pre-activation network; a residual stream that grows without normalisation.

    Args:
        model: A Functional or built Sequential model.

    Returns:
        A result with one row per addition of tensors with a common origin: `block`, the tensor `from` which it starts,
        its `shortcut` ("identity", "projection", "parameter-free", "gated"; "sum" for additions that are not residual
        blocks), the number of operations in its `branch`, and its `verdict`. `.faults` lists for each fault the layer,
        what is wrong and how to fix it. `.healthy` is true if there are none.

    Raises:
        ValueError: If the model is subclassed or not built, so that it has no graph.
    """
    structure = Structure(Graph(model))
    graph = structure.graph
    found = faults(structure)
    order = {call.name: call.number for call in graph.calls}
    found.sort(key=lambda fault: order.get(fault.layer, 0))

    verdicts = {fault.block: fault.kind for fault in reversed(found)}
    rows = [
        {
            "block": block.name,
            "from": graph.name(block.start),
            "shortcut": block.kind,
            "branch": f"{len(block.branch.calls)} operations, {len(block.branch.calls_with('weights'))} with kernels",
            "verdict": verdicts.get(block.name, "healthy"),
        }
        for block in structure.blocks
    ]
    spans = [(_position(graph, block.start), block.call.number + 1, len(graph.calls)) for block in structure.blocks]
    for fault in found:
        if fault.block not in {row["block"] for row in rows}:  # a concatenation instead of an addition
            call = graph.calls[order[fault.block]]
            rows.append({"block": fault.block, "from": "", "shortcut": "none", "branch": "", "verdict": fault.kind})
            spans.append((_position(graph, min(call.inputs)), call.number + 1, len(graph.calls)))
    return Check(_title(structure, found), rows, _notes(structure), tuple(found), tuple(spans))


def _title(structure: Structure, found: list[Fault]) -> str:
    model, blocks = structure.graph.model, structure.residual
    wrong = f"{len(found)} fault{'s' * (len(found) != 1)}" if found else "no faults"
    if blocks:
        kinds = collections.Counter(block.kind for block in blocks)
        which = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        return f"{model.name}: {len(blocks)} skip connection{'s' * (len(blocks) != 1)} ({which}), {wrong}"
    if isinstance(model, keras.Sequential):
        return f"{model.name}: no skip connection; a Sequential model cannot contain one"
    return f"{model.name}: no skip connection" + (f", {wrong}" if found else "")


def _notes(structure: Structure) -> tuple[str, ...]:
    calls = structure.graph.calls
    joined = sum(type(call.operation).__name__ == "Concatenate" and len(call.inputs) > 1 for call in calls)
    notes = [f"{joined} concatenations are not counted as skip connections; only additions are."] if joined else []
    base = {keras.Model, keras.Sequential}
    closed = [c.name for c in calls if isinstance(c.operation, keras.Model) and type(c.operation) not in base]
    if closed:
        notes.append(f"Subclassed models cannot be checked: {', '.join(closed)}.")
    return tuple(notes)


def _position(graph: Graph, number: int) -> int:
    maker = graph.maker[number]
    return maker.number + 1 if maker else 0
