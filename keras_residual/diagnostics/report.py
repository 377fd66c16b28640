"""Contribution of each residual block, effect of removing it, and effective depth of a network."""

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
_LENGTHS = 9  # number of sampled path lengths; the others are interpolated
_SAMPLES = 8  # images to compute gradients of


@dataclasses.dataclass(frozen=True)
class ResidualReport(Result):
    """Result of `residual_report`.

    Attributes:
        effective_depth: Mean number of branches on a path, where paths are weighted by their gradient.
        path_share: Fraction of the gradient that all paths of 0, 1, 2 ... branches carry.
        accuracy: Accuracy of the complete network; `None` without labels.
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
        # With few samples the accuracy may not change at all, but the output always does.
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
    """Measure the contribution of each residual block, the effect of removing it, and the network's effective depth.

    - `branch / stream`: norm of the branch divided by the norm of the shortcut, averaged over the samples.
    - `output change` and `accuracy lost`: effect of removing the block's branch without retraining (the lesion study of
      Veit et al. 2016, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks", section 4.1). The
      change of the output is relative to its norm; the accuracy needs labels.
    - effective depth: n blocks form 2^n paths, each through a subset of the branches. For sampled paths of each length,
      the gradient is propagated along the path alone. Its norm at the first block, times the number of paths of that
      length, is the contribution of the length (ibid., section 4.3 and figure 6). Lengths between the sampled ones are
      interpolated logarithmically. Without labels, the gradient is that of the predicted class, or of half the squared
      output if the model is not a classifier.

    Args:
        model: A Functional model with residual blocks.
        data: Inputs `(N, ...)`, a tuple of inputs and integer labels `(N,)`, or an iterable of such batches, for
            example a list or a `tf.data.Dataset`. For a model with several inputs, the inputs are a list.
        paths: Total number of paths to sample.
        batch_size: Batch size if `data` are arrays.
        seed: Random seed for sampling paths.

    Returns:
        A result with one row per block, and `.effective_depth`, `.path_share` and `.accuracy`.

    Raises:
        ValueError: If the model has no residual blocks or no graph.
    """
    graph = Graph(model)
    structure = Structure(graph)
    blocks = [block for block in structure.residual if _fixed_shape(graph, block)]
    if not blocks:
        raise ValueError(
            f"The model must have residual blocks; got {model.name!r}, which has none. Use check_residual(model) to "
            "find faulty skip connections, or gradient_flow, which also works on plain networks."
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
        (f"95 % of the gradient flows through paths of {low} to {high} branches (Veit et al. 2016).",),
        depth,
        tuple(map(float, share)),
        accuracy,
    )


def lesions(
    graph: Graph, blocks: list[Block], data: Iterator[tuple[Any, Any]]
) -> tuple[list[dict[str, Any]], float | None, int, tuple[Any, Any]]:
    """Run the network with each of the given blocks removed in turn.

    Returns:
        One row per block; the accuracy of the complete network (`None` without labels); the number of samples; the
        first batch of inputs and labels.

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
        raise ValueError("`data` must contain at least one sample; got none.")
    rows = []
    for block in blocks:
        own = sums[block.name]
        row = {"block": block.name, "shortcut": block.kind}
        row |= {"branch / stream": own["ratio"] / count, "output change": own["moved"] / count}
        rows.append(row | ({"accuracy lost": (right - own["right"]) / count} if labelled else {}))
    return rows, right / count if labelled else None, count, sample


def _right(outputs: Array, labels: Any) -> float:
    """Count correct samples; a sample with one label per pixel counts as its fraction of correct pixels."""
    if labels is None:
        return 0.0
    return float((outputs.argmax(-1) == labels).reshape(len(outputs), -1).mean(1).sum())


def batches(data: Any, batch_size: int) -> Iterator[tuple[Any, Any]]:
    """Yield batches of inputs and labels; labels are `None` if there are none."""
    if isinstance(data, tuple) or hasattr(data, "ndim"):
        x, y = (*data, None)[:2] if isinstance(data, tuple) else (data, None)
        for first in range(0, len(tree.flatten(x)[0]), batch_size):
            place = slice(first, first + batch_size)
            yield _part(x, place), None if y is None else y[place]
        return
    for batch in data:
        yield (batch[0], batch[1]) if isinstance(batch, (tuple, list)) else (batch, None)


def _part(x: Any, place: slice) -> Any:
    """Select samples from each of a model's inputs."""
    return tree.map_structure(lambda value: value[place], x)


def _fixed_shape(graph: Graph, block: Block) -> bool:
    shapes = [tuple(graph.tensors[path.operand].shape) for path in (block.shortcut, block.branch)]
    return shapes[0] == shapes[1]


def _path_share(
    graph: Graph, chain: list[Block], x: Any, labels: Any, paths: int, generator: np.random.Generator
) -> Array:
    """Return the fraction of the gradient that paths of each length carry, measured on one batch."""
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
            # The path goes through the branches of the chosen blocks and the shortcuts of the others, so the gradient
            # is stopped on the opposite side of each block.
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
    """Return the function to differentiate: the loss of labels or predicted classes, or half the squared output."""
    cross_entropy = default_loss(graph)

    def score(outputs: Any) -> Any:
        if len(outputs.shape) != 2 or outputs.shape[-1] < 2:
            return ops.mean(ops.square(ops.cast(outputs, "float32"))) / 2
        return cross_entropy(ops.argmax(outputs, -1) if labels is None else labels, outputs)

    return score


def _numpy(value: Any) -> Array:
    return np.asarray(ops.convert_to_numpy(ops.cast(value, "float32")))


def _norms(value: Any) -> Array:
    """Return the norm of each sample."""
    value = _numpy(value)
    return np.linalg.norm(value.reshape(len(value), -1), axis=1)
