"""Pruning of residual blocks."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_residual import figures
from keras_residual.diagnostics.graph import Graph
from keras_residual.diagnostics.report import batches, lesions
from keras_residual.diagnostics.result import Result, headline, name_places
from keras_residual.diagnostics.structure import Block, Structure
from keras_residual.graph import rebuilt

__all__ = ["Pruned", "prune_blocks"]


@dataclasses.dataclass(frozen=True)
class Pruned(Result):
    """Result of `prune_blocks`.

    Attributes:
        model: The pruned model, with copies of the weights; not compiled.
        accuracy: Accuracy of the pruned model on the data; `None` without labels.
        accuracy_before: Accuracy of the original model.
    """

    model: Any = None
    accuracy: float | None = None
    accuracy_before: float | None = None

    def figure(self) -> Any:
        figure, ((axis,),) = figures.canvas(1, 1, (max(6.0, min(16.0, 3 + 0.3 * len(self.rows))), 4.0))
        heights = [row.get("output change", 1.0) for row in self.rows]
        for word, colour in (("kept", "tab:blue"), ("removed", "tab:red")):
            places = [i for i, row in enumerate(self.rows) if row["block is"].startswith(word)]
            axis.bar(places, [heights[i] for i in places], color=colour, label=word)
        if any("output change" in row for row in self.rows):
            axis.set_ylabel("output change without this block")
        else:
            axis.set_yticks([])
        axis.grid(axis="y", alpha=0.3)
        axis.set_ylim(0, 1.2 * max(heights) or 1)
        axis.legend(ncols=2, fontsize=8)
        name_places(axis, [row["block"] for row in self.rows])
        headline(figure, self.title)
        return figure


def prune_blocks(model: keras.Model, keep: int | Collection[str], data: Any = None, *, batch_size: int = 16) -> Pruned:
    """Remove residual blocks from a model. Residual networks lose little accuracy even without retraining.

    A removed block is replaced by its input (Veit et al. 2016, section 4.1). Blocks that change the shape, or whose
    addition is used more than once, cannot be removed. The original model is not changed.

    Args:
        model: A Functional model with residual blocks.
        keep: Names of the blocks to keep, as listed by `check_residual` and `residual_report`, or their number. With a
            number, the blocks whose individual removal changes the output least are removed first.
        data: Inputs, inputs and labels, or batches, as for `residual_report`. Required if `keep` is a number. With
            labels, accuracy is measured before and after.
        batch_size: Batch size if `data` are arrays.

    Returns:
        A result with `.model`, `.accuracy`, `.accuracy_before`, and one row per block.

    Raises:
        ValueError: If a block does not exist, if too few blocks can be removed, or if a layer cannot be copied.
    """
    graph = Graph(model)
    blocks = Structure(graph).residual
    uses = collections.Counter(id(call.operation) for call in graph.calls)
    free = [block for block in blocks if _removable(graph, block) and uses[id(block.call.operation)] == 1]
    moved: dict[str, float] = {}
    if isinstance(keep, int):
        least = len(blocks) - len(free)
        if data is None or not least <= keep <= len(blocks) or isinstance(keep, bool):
            raise ValueError(
                f"`keep` must be {least} to {len(blocks)} for {model.name} ({least} of its {len(blocks)} blocks cannot "
                "be removed), and `data` must be given to choose the blocks; got "
                f"keep={keep!r}, data={'None' if data is None else 'given'}."
            )
        rows, *_ = lesions(graph, blocks, batches(data, batch_size))
        moved = {row["block"]: row["output change"] for row in rows}
        names = sorted((block.name for block in free), key=lambda name: moved.get(name, 0.0))
        removed = set(names[: len(blocks) - keep])
    else:
        kept, known = set(keep), {block.name for block in blocks}
        if kept - known:
            raise ValueError(
                f"`keep` must contain names of residual blocks of {model.name}; got {sorted(kept - known)}. Its blocks "
                f"are: {', '.join(block.name for block in blocks) or 'none'}."
            )
        removed = {block.name for block in free} - kept
    shallower = _without(model, {id(b.call.operation): _position(b) for b in free if b.name in removed})
    rows = []
    for block in blocks:
        fixed = "it changes the shape" if uses[id(block.call.operation)] == 1 else "it is used more than once"
        stays = "removed" if block.name in removed else "kept" if block in free else f"kept: {fixed}"
        change = {"output change": moved[block.name]} if block.name in moved else {}
        rows.append({"block": block.name, "shortcut": block.kind, **change, "block is": stays})
    accuracy = accuracy_before = None
    measured = ""
    if data is not None:
        accuracy_before, accuracy = (_accuracy(m, data, batch_size) for m in (model, shallower))
        if accuracy is not None:
            measured = f", accuracy {accuracy_before:.1%} to {accuracy:.1%}"
    sizes = f"{model.count_params():,} to {shallower.count_params():,} parameters"
    title = f"{model.name}: {len(blocks) - len(removed)} of {len(blocks)} blocks kept, {sizes}{measured}"
    return Pruned(title, rows, (), shallower, accuracy, accuracy_before)


def _removable(graph: Graph, block: Block) -> bool:
    same = tuple(graph.tensors[block.shortcut.operand].shape) == tuple(graph.tensors[block.end].shape)
    plain = abs(block.shortcut.coefficient - 1) < 1e-3 and not block.others
    return same and plain and block.shortcut.identity


def _position(block: Block) -> int:
    """Return the index of the shortcut among the addition's arguments."""
    return block.call.operands.index(block.shortcut.operand)


def _without(model: Any, removed: dict[int, int]) -> keras.Model:
    """Return a copy of a model in which some additions are replaced by one of their arguments."""

    def call(old: Any, new: Any, *args: Any, **kwargs: Any) -> Any:
        if id(old) in removed:
            return tree.flatten((args, kwargs))[removed[id(old)]]
        return new(*args, **kwargs)

    return rebuilt(model, call_function=call)


def _accuracy(model: keras.Model, data: Any, batch_size: int) -> float | None:
    right = count = 0
    for x, y in batches(data, batch_size):
        if y is None:
            return None
        guesses = np.asarray(ops.convert_to_numpy(model(x, training=False))).argmax(-1)
        right += int((guesses == np.asarray(ops.convert_to_numpy(y)).reshape(-1)).sum())
        count += len(guesses)
    return right / count
