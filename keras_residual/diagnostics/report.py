"""What each block adds, what is lost without it, and how long the paths are that carry the gradient."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_residual import figures
from keras_residual.diagnostics.flow import check_labels, default_loss
from keras_residual.diagnostics.graph import Call, Graph, gradients
from keras_residual.diagnostics.result import Result, headline, name_places
from keras_residual.diagnostics.structure import Block, Structure

__all__ = ["ResidualReport", "batches", "lesions", "residual_report"]

Array = np.ndarray[Any, Any]
_LENGTHS = 9  # path lengths that are sampled; those between them are interpolated
_SAMPLES = 8  # images whose gradients are taken


@dataclasses.dataclass(frozen=True)
class ResidualReport(Result):
    """What `residual_report` returns.

    Attributes:
        effective_depth: The mean number of branches on a path, paths weighted by the gradient they carry.
        path_share: The share of the gradient carried by all paths of 0, 1, 2 ... branches.
        accuracy: Of the whole network; `None` without labels.
    """

    effective_depth: float = float("nan")
    path_share: tuple[float, ...] = ()
    accuracy: float | None = None

    def figure(self) -> Any:
        width = max(10.0, min(18.0, 6 + 0.45 * len(self.rows)))
        figure, ((ratio, drop, paths),) = figures.canvas(1, 3, (width, 4.2))
        names, places = [row["block"] for row in self.rows], range(len(self.rows))
        ratio.bar(places, [row["branch / stream"] for row in self.rows], color="tab:blue")
        ratio.set_title("norm of branch / stream", fontsize=10)
        # Few samples may lose no accuracy at all; the output moves always.
        key = "accuracy lost" if any(row.get("accuracy lost") for row in self.rows) else "output change"
        drop.bar(places, [row[key] for row in self.rows], color="tab:red")
        drop.set_title(f"{key} without the block", fontsize=10)
        for axis in (ratio, drop):
            name_places(axis, names, 24)
            axis.grid(axis="y", alpha=0.3)
        count = len(self.path_share) - 1
        lengths = np.arange(count + 1)
        logs = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in lengths]
        share = np.exp(np.array(logs) - count * math.log(2))
        paths.plot(lengths, share, "--", color="0.5", label="of the paths")
        paths.plot(lengths, self.path_share, "o-", color="tab:green", ms=4, label="of the gradient")
        paths.axvline(self.effective_depth, color="tab:green", lw=0.8, ls=":", label="effective depth")
        paths.set_title("share by length of path", fontsize=10)
        paths.set_xlabel("branches on the path")
        paths.xaxis.get_major_locator().set_params(integer=True)
        paths.legend(fontsize=8)
        paths.grid(alpha=0.3)
        headline(figure, self.title)
        return figure


def residual_report(
    model: keras.Model, data: Any, *, paths: int = 27, batch_size: int = 16, seed: int = 0
) -> ResidualReport:
    """What each residual block adds to the stream, what is lost without it, and the network's effective depth.

    - `branch / stream`: the norm of what the branch adds, over that of the shortcut; the mean over the samples.
    - dropped: the network runs with this block's branch taken away and nothing trained anew (the lesion study of Veit
      et al. 2016, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks", section 4.1): how far the
      output moves, relative to its norm, and with labels how much accuracy is lost.
    - effective depth: n blocks are 2^n paths, each through some of the branches. Paths of each length are sampled, the
      gradient is sent back along each of them alone, and its norm at the first block times the number of such paths
      says what that length contributes (section 4.3, figure 6 there). Lengths between the sampled ones are
      interpolated, in the logarithm. Outputs without labels stand for themselves: the class that is predicted, or
      half their square.

    Args:
        model: A Functional model with residual blocks.
        data: Inputs `(N, ...)`, a tuple of inputs and integer labels `(N,)`, or an iterable of such batches, for
            example a list or a `tf.data.Dataset`. Of a model with several inputs, inputs are the list of them.
        paths: How many paths are sampled, in all.
        batch_size: Samples in a batch of arrays.
        seed: Of the paths.

    Returns:
        One row for each block; `.effective_depth`, `.path_share`, `.accuracy`.

    Raises:
        ValueError: If the model has no residual blocks, or is no graph.
    """
    graph = Graph(model)
    structure = Structure(graph)
    blocks = [block for block in structure.residual if _fixed_shape(graph, block)]
    if not blocks:
        raise ValueError(
            f"A residual report needs residual blocks. Received: {model.name!r}, which has none. "
            "check_residual(model) tells what it has; gradient_flow works on plain networks, too."
        )
    rows, accuracy, count, (x, labels) = lesions(graph, blocks, batches(data, batch_size))
    chain = [block for block in structure.chain if block.trunk] or blocks
    share = _path_share(graph, chain, x, labels, paths, np.random.default_rng(seed))
    depth = float((np.arange(len(share)) * share).sum())
    low, high = (int(np.searchsorted(np.cumsum(share), edge)) for edge in (0.025, 0.975))
    measured = "" if accuracy is None else f", accuracy {accuracy:.1%}"
    return ResidualReport(
        f"{model.name}: effective depth {depth:.1f} of {len(chain)} blocks{measured}, {count} samples",
        rows,
        (f"95 % of the gradient comes by paths of {low} to {high} branches (Veit et al. 2016).",),
        depth,
        tuple(map(float, share)),
        accuracy,
    )


def lesions(
    graph: Graph, blocks: list[Block], data: Iterator[tuple[Any, Any]]
) -> tuple[list[dict[str, Any]], float | None, int, tuple[Any, Any]]:
    """The network without each of some blocks.

    Returns:
        A row for each block; the whole network's accuracy (`None` without labels); the number of samples; the first
        batch of inputs and labels.

    Raises:
        ValueError: If there are no samples.
    """
    kept = sorted({n for block in blocks for n in (block.end, block.shortcut.operand, block.branch.operand)})
    sums: dict[str, dict[str, float]] = {
        block.name: dict.fromkeys(("ratio", "moved", "right"), 0.0) for block in blocks
    }
    count, right, labelled, sample = 0, 0.0, True, None
    for x, y in data:
        values = graph.run(x, [*kept, *graph.outputs])
        outputs = _numpy(values[graph.outputs[0]])
        labels = None if y is None else check_labels(y, outputs)
        sample = sample or (x, labels)
        labelled &= labels is not None
        count += len(outputs)
        right += _right(outputs, labels)
        for block in blocks:
            shortcut, branch, end = (
                values[number] for number in (block.shortcut.operand, block.branch.operand, block.end)
            )
            branch = branch * block.branch.coefficient
            own = sums[block.name]
            stream = _norms(shortcut * block.shortcut.coefficient)
            own["ratio"] += float((_norms(branch) / np.maximum(stream, 1e-12)).sum())
            known = {n: values[n] for n in kept if not graph.comes_from(n, block.end)} | {block.end: end - branch}
            without = _numpy(graph.run(x, [graph.outputs[0]], known=known)[graph.outputs[0]])
            own["moved"] += float((_norms(without - outputs) / np.maximum(_norms(outputs), 1e-12)).sum())
            own["right"] += _right(without, labels)
    if sample is None:
        raise ValueError("data holds at least one sample. Received: none.")
    rows = []
    for block in blocks:
        own = sums[block.name]
        row = {"block": block.name, "shortcut": block.kind}
        row |= {"branch / stream": own["ratio"] / count, "output change": own["moved"] / count}
        rows.append(row | ({"accuracy lost": (right - own["right"]) / count} if labelled else {}))
    return rows, right / count if labelled else None, count, sample


def _right(outputs: Array, labels: Any) -> float:
    """How many samples are right; of a sample with many labels, as a pixel has one each, the share that is."""
    if labels is None:
        return 0.0
    return float((outputs.argmax(-1) == labels).reshape(len(outputs), -1).mean(1).sum())


def batches(data: Any, batch_size: int) -> Iterator[tuple[Any, Any]]:
    """Batches of inputs and labels, `None` where there are none."""
    if isinstance(data, tuple) or hasattr(data, "ndim"):
        x, y = (*data, None)[:2] if isinstance(data, tuple) else (data, None)
        for first in range(0, len(tree.flatten(x)[0]), batch_size):
            place = slice(first, first + batch_size)
            yield _part(x, place), None if y is None else y[place]
        return
    for batch in data:
        yield (batch[0], batch[1]) if isinstance(batch, (tuple, list)) else (batch, None)


def _part(x: Any, place: slice) -> Any:
    """Some of the samples, of each of a model's inputs."""
    return tree.map_structure(lambda value: value[place], x)


def _fixed_shape(graph: Graph, block: Block) -> bool:
    shapes = [tuple(graph.tensors[path.operand].shape) for path in (block.shortcut, block.branch)]
    return shapes[0] == shapes[1]


def _path_share(
    graph: Graph, chain: list[Block], x: Any, labels: Any, paths: int, generator: np.random.Generator
) -> Array:
    """The share of the gradient that paths of each length carry, from one batch."""
    x = _part(x, slice(_SAMPLES))
    count, start = len(chain), chain[0].start
    value = graph.run(x, [start])[start]
    score = _score(graph, None if labels is None else labels[:_SAMPLES])
    lengths = np.unique(np.linspace(0, count, min(count + 1, _LENGTHS)).round().astype(int))
    found = []
    for length in lengths:
        draws = 1 if length in (0, count) else max(1, paths // len(lengths))
        norms = []
        for _ in range(draws):
            chosen = set(generator.choice(count, length, replace=False).tolist())
            # Through the branch of the chosen blocks and past all others: the other side lets no gradient through.
            stops = {
                (block.call.number, (block.shortcut if i in chosen else block.branch).operand)
                for i, block in enumerate(chain)
            }

            def edit(call: Call, number: int, value: Any, stops: Any = stops) -> Any:
                return ops.stop_gradient(value) if (call.number, number) in stops else value

            def loss(given: list[Any], edit: Any = edit) -> Any:
                return score(graph.run(x, known={start: given[0]}, edit=edit)[graph.outputs[0]])

            _, (slope,) = gradients(loss, [value])
            norms.append(float(_norms(slope).mean()))
        found.append(max(float(np.mean(norms)), 1e-30))
    every = np.arange(count + 1)
    logs = np.interp(every, lengths, np.log(found))
    logs = logs + [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in every]
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()


def _score(graph: Graph, labels: Any) -> Callable[[Any], Any]:
    """What is differentiated: the loss of labels, of the predicted class, or half the square of outputs."""
    cross_entropy = default_loss(graph)

    def score(outputs: Any) -> Any:
        if len(outputs.shape) != 2 or outputs.shape[-1] < 2:
            return ops.mean(ops.square(ops.cast(outputs, "float32"))) / 2
        return cross_entropy(ops.argmax(outputs, -1) if labels is None else labels, outputs)

    return score


def _numpy(value: Any) -> Array:
    return np.asarray(ops.convert_to_numpy(ops.cast(value, "float32")))


def _norms(value: Any) -> Array:
    """The norm of each sample."""
    value = _numpy(value)
    return np.linalg.norm(value.reshape(len(value), -1), axis=1)
