"""Rules of `check_residual`: one function per fault of a skip connection."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from keras import ops

from keras_residual.diagnostics.graph import Call
from keras_residual.diagnostics.structure import Block, Path, Steps, Structure, noise

__all__ = ["Fault", "faults"]

GROWTH = 10.0  # largest acceptable growth of a residual stream without normalisation


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault of a skip connection.

    Attributes:
        kind: Short name, such as "scaled shortcut".
        layer: Name of the layer that causes it, prefixed with the names of the enclosing models.
        block: Name of the block.
        wrong: Explanation of the fault.
        advice: How to fix it.
        source: Publication that shows the harm.
    """

    kind: str
    layer: str
    block: str
    wrong: str
    advice: str
    source: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.kind}. {self.wrong} {self.advice} ({self.source})"


def faults(structure: Structure) -> list[Fault]:
    """Return the faults of a model: the first that is found in each block, then those of the entire model."""
    found: list[Fault] = []
    for block in structure.blocks:
        if block.trunk or block.residual:
            rules = _RULES if block.trunk and not block.others else _ANYWHERE
            found += next(filter(None, (list(rule(structure, block)) for rule in rules)), [])
    faulty = {fault.block for fault in found}
    return found + [fault for rule in _WHOLE for fault in rule(structure) if fault.block not in faulty]


# ------------------------------------------------------------------------- rules for one block: the first that finds


def _broadcast(structure: Structure, block: Block) -> Iterator[Fault]:
    tensors = structure.graph.tensors
    end = tensors[block.end].shape[-1]
    for path in (block.shortcut, block.branch):
        if tensors[path.operand].shape[-1] == 1 and end not in (1, None):
            yield Fault(
                "broadcast channels",
                block.call.name,
                block.name,
                f"The single channel of {structure.graph.name(path.operand)} is added to all {end} channels, because "
                "the addition broadcasts without an error.",
                "Use the same number of channels on both sides; project the shortcut with a 1x1 convolution.",
                "He et al. 2016, eq. 2",
            )
    shapes = [tensors[number].shape[1:-1] for number in (block.start, block.shortcut.operand, block.end)]
    if block.kind == "parameter-free" and 1 in shapes[1] and shapes[1] != shapes[2] and set(shapes[0]) != {1}:
        yield Fault(
            "broadcast positions",
            block.call.name,
            block.name,
            f"The shortcut is pooled to {shapes[1]} and broadcast to {shapes[2]} positions, so that all information "
            "about positions is lost.",
            "Add the block's input instead, and use pooled context in the branch.",
            "He et al. 2016, eq. 1",
        )


def _missing_branch(structure: Structure, block: Block) -> Iterator[Fault]:
    if block.kind != "self":
        return
    if block.shortcut.operand == block.branch.operand:
        yield Fault(
            "tensor added to itself",
            block.call.name,
            block.name,
            f"Both sides are {structure.graph.name(block.shortcut.operand)}, so the sum is only a multiple of it.",
            "Add the output of the branch to the block's input.",
            "He et al. 2016, eq. 1",
        )
    else:
        yield Fault(
            "missing branch",
            block.call.name,
            block.name,
            f"Both sides are identities of {structure.graph.name(block.start)}; there is no layer to skip.",
            "Insert the layers of the branch between the block's input and one side of the addition.",
            "He et al. 2016, eq. 1",
        )


def _detached(structure: Structure, block: Block) -> Iterator[Fault]:
    for path, side in ((block.branch, "branch"), (block.shortcut, "shortcut")):
        stops = structure.cuts(path, block.start)
        if not stops:
            continue
        if any(structure.nature(call).detached for call in stops):
            wrong, advice = f"It stops the gradient, so the {side} is not trained.", "Remove it."
        else:
            wrong, advice = (
                f"Its output does not depend on its input, so the {side} is dead.",
                "Remove it, or the factor 0 in it.",
            )
        source = "He et al. 2016b, eq. 5" if side == "shortcut" else "Veit et al. 2016, section 4.3"
        kind = f"{'detached' if 'gradient' in wrong else 'dead'} {side}"
        yield Fault(kind, stops[0].name, block.name, wrong, advice, source)


def _misaligned(structure: Structure, block: Block) -> Iterator[Fault]:
    path, tensors = block.shortcut, structure.graph.tensors
    shapes = [tensors[number].shape for number in (block.start, path.operand)]
    turned = {"Permute", "Transpose", "Swapaxes", "Moveaxis"} & {type(call.operation).__name__ for call in path.calls}
    reshaped = [call for call in path.calls if type(call.operation).__name__ == "Reshape"]
    if reshaped and not turned and len(shapes[0]) == len(shapes[1]) and shapes[0][1:-1] != shapes[1][1:-1]:
        yield Fault(
            "misaligned shortcut",
            reshaped[0].name,
            block.name,
            f"The shortcut is reshaped from {shapes[0][1:]} to {shapes[1][1:]}, which moves values to other positions "
            "and channels.",
            "Project the shortcut with a 1x1 convolution of the branch's stride.",
            "He et al. 2016, section 3.3",
        )
        return
    shortcut, branch = (_step(structure, block, side) for side in (block.shortcut, block.branch))
    if shortcut is None or branch is None or np.allclose(shortcut, branch):
        return
    crop = path.calls_with("crops")
    where = crop[0] if crop else (path.calls[-1] if path.calls else block.call)
    strides = [_describe(steps) for steps in (branch, shortcut)]
    yield Fault(
        "misaligned shortcut",
        where.name,
        block.name,
        f"The branch subsamples by {strides[0]} and the shortcut by {strides[1]}, and the sizes are made equal by "
        "cropping or padding, so that values of different positions are added.",
        f"Project the shortcut with a 1x1 convolution of stride {strides[0]}.",
        "He et al. 2016, section 3.3",
    )


def _describe(steps: Steps) -> str:
    return " x ".join(f"{step:g}" for step in (steps[:1] if len(set(steps)) == 1 else steps))


def _step(structure: Structure, block: Block, path: Path) -> Steps | None:
    """Return the subsampling factor of a side along each axis, or `None` if it is unknown."""
    steps: dict[int, Steps | None] = {block.start: (1.0,) * (len(structure.graph.tensors[block.start].shape) - 2)}
    for call in path.calls:
        own = structure.nature(call).stride
        given = [steps[number] for number in call.inputs if number in steps]
        known = [step for step in given if step is not None]
        # Gates are pooled, so a product keeps the positions of its other factor.
        sure = own is not None and known and (len(given) > 1 or len(known) == len(given)) and len(own) == len(known[0])
        after = tuple(a * b for a, b in zip(own or (), known[0], strict=True)) if sure else None
        steps |= dict.fromkeys(call.outputs, after)
    return steps.get(path.operand)


def _no_shortcut(structure: Structure, block: Block) -> Iterator[Fault]:
    if block.kind != "sum":
        return
    graph, acts = structure.graph, block.shortcut.calls_with("activation")
    after = (call for call in graph.calls if graph.comes_from(call.outputs[0], block.end))
    if block.branch.rank <= 3 or not any(structure.nature(call).weights for call in after):
        return  # the heads of an ensemble are added intentionally
    above = (call for call in graph.calls if graph.comes_from(block.start, call.outputs[0]))
    if not any(structure.nature(call).weights for call in above):
        return  # two networks with the same input
    if _shares_weights(block) or any(_resamples(path) for path in (block.shortcut, block.branch)):
        return
    changes = graph.tensors[block.start].shape != graph.tensors[block.end].shape
    if changes and len(block.shortcut.calls_with("weights")) == 1 < len(block.branch.calls_with("weights")) and acts:
        yield _activated_shortcut(block, acts[-1])
        return
    yield Fault(
        "no shortcut",
        block.call.name,
        block.name,
        f"Neither side is an identity or a linear projection of {graph.name(block.start)}, so no gradient can bypass "
        "the layers.",
        "Add the block's input, or its 1x1 projection if the shape changes.",
        "He et al. 2016b, section 2",
    )


def _shares_weights(block: Block) -> bool:
    """Return True if both sides share their weights (one network applied twice)."""
    layers = [{id(call.operation) for call in path.calls_with("weights")} for path in (block.shortcut, block.branch)]
    return layers[0] == layers[1]


def _resamples(path: Path) -> bool:
    """Return True if a side subsamples and upsamples, as in networks that merge scales (Newell et al. 2016)."""
    steps = [step for nature in path.natures for step in nature.stride or ()]
    return any(step > 1 for step in steps) and any(step < 1 for step in steps)


def _activated_shortcut(block: Block, call: Call) -> Fault:
    return Fault(
        "activation on the shortcut",
        call.name,
        block.name,
        "The skip path passes through it, so values that it clips, and their gradients, are lost to all later blocks.",
        "Start the shortcut before it, or move it into the branch or after the addition.",
        "He et al. 2016b, section 3 and 4.1",
    )


def _modified_shortcut(structure: Structure, block: Block) -> Iterator[Fault]:
    path, graph = block.shortcut, structure.graph
    if block.kind not in ("identity", "projection", "parameter-free"):
        return
    for call, nature in zip(path.calls, path.natures, strict=True):
        if nature.activation:
            yield _activated_shortcut(block, call)
        elif nature.dropout:
            yield Fault(
                "dropout on the shortcut",
                call.name,
                block.name,
                f"It drops {nature.dropout:.0%} of the residual stream in training, for this and all later blocks.",
                "Move it into the branch.",
                "He et al. 2016b, section 3.1, table 1",
            )
        elif nature.norm and not path.weights and graph.tensors[block.start].shape == graph.tensors[block.end].shape:
            yield Fault(
                "normalisation on the shortcut",
                call.name,
                block.name,
                "It rescales the skip path and its gradient at every block.",
                "Normalise in the branch, and keep the shortcut an identity.",
                "He et al. 2016b, section 4.1",
            )


def _scaled(structure: Structure, block: Block) -> Iterator[Fault]:
    path = block.shortcut
    if block.kind not in ("identity", "projection", "parameter-free"):
        return
    scale, twice = path.scale, structure.gain(block)
    if block.kind == "identity" and abs(scale - 1) < 1e-3 and twice > 1.5 and abs(twice - round(twice)) < 1e-3:
        yield Fault(
            "shortcut added twice",
            block.call.name,
            block.name,
            f"{structure.graph.name(block.start)} is contained {twice:g} times in the sum, so over n such blocks the "
            f"residual stream and its gradient grow by {twice:g}^n.",
            "Add the block's input only once.",
            "He et al. 2016b, eq. 6",
        )
        return
    if abs(scale - 1) < 1e-3 or abs(scale**2 + block.branch.scale**2 - 1) < 1e-3:  # keeps the variance: Karras et al.
        return
    scaling = path.of_kind("scale")
    where = block.call if not scaling or abs(path.coefficient - 1) > 1e-3 else scaling[0]
    yield Fault(
        "scaled shortcut",
        where.name,
        block.name,
        f"The shortcut is multiplied by {scale:.3g}, so over n such blocks the residual stream and its gradient change "
        f"by {scale:.3g}^n.",
        "Do not scale the shortcut; scale the branch if necessary.",
        "He et al. 2016b, eq. 6 and table 1",
    )


def _linear_branch(structure: Structure, block: Block) -> Iterator[Fault]:
    kernels = block.branch.calls_with("weights")
    if block.kind != "identity" or not block.branch.linear or not kernels:
        return
    if all("Depthwise" in type(call.operation).__name__ for call in kernels):  # a position encoding (Chu et al. 2021)
        return
    yield Fault(
        "linear branch",
        kernels[-1].name,
        block.name,
        "The branch has no activation, so the block is a single linear layer.",
        "Insert an activation between two layers of the branch.",
        "He et al. 2016, section 3.2",
    )


def _positive_branch(structure: Structure, block: Block) -> Iterator[Fault]:
    number = block.branch.operand
    natures = dict(zip((call.outputs[0] for call in block.branch.calls), block.branch.natures, strict=True))
    while number in natures and natures[number].kind in ("identity", "scale") and natures[number].scale > 0:
        maker = structure.graph.maker[number]
        number = maker.inputs[0] if maker else -1
    if number not in natures or not natures[number].positive or block.branch.coefficient < 0:
        return
    yield Fault(
        "non-negative branch",
        structure.graph.name(number),
        block.name,
        "The branch ends in an activation without negative values, so the residual stream can only grow.",
        "End the branch in a linear layer or a normalisation, and apply activations after the addition or at the start "
        "of the branch.",
        "He et al. 2016b, section 4.1, figure 4c",
    )


def _activated_stream(structure: Structure, block: Block) -> Iterator[Fault]:
    before = []
    for nature in block.branch.natures:
        if nature.weights:
            break
        before.append(nature)
    if not any(nature.norm for nature in before):
        return
    graph = structure.graph
    maker = _producer(structure, block.start)
    if maker is None or not structure.nature(maker).activation or structure.nature(maker).weights:
        return
    above = _producer(structure, maker.inputs[0])
    if above is not None and above.number in {other.call.number for other in structure.residual}:
        yield Fault(
            "activation on the stream",
            maker.name,
            block.name,
            f"These are pre-activation blocks, but the sum {above.name} is activated before {graph.name(block.end)} "
            "adds to it, so the skip path is not an identity.",
            "Remove it. One norm and activation after the last block are sufficient.",
            "He et al. 2016b, section 4.1",
        )


def _producer(structure: Structure, number: int) -> Call | None:
    """Return the call that produces a tensor, skipping identities."""
    maker = structure.graph.maker[number]
    while maker is not None and len(maker.inputs) == 1 and structure.nature(maker).kind == "identity":
        maker = structure.graph.maker[maker.inputs[0]]
    return maker


_RULES: tuple[Callable[[Structure, Block], Iterator[Fault]], ...] = (
    _broadcast,
    _missing_branch,
    _detached,
    _misaligned,
    _no_shortcut,
    _modified_shortcut,
    _scaled,
    _linear_branch,
    _positive_branch,
    _activated_stream,
)
# Rules that also apply if the block's input is used elsewhere or if more than two sides are added.
_ANYWHERE: tuple[Callable[[Structure, Block], Iterator[Fault]], ...] = (_detached, _modified_shortcut, _scaled)


# ------------------------------------------------------------------------------------------ rules for the whole model


def _unnecessary_projection(structure: Structure) -> Iterator[Fault]:
    tensors = structure.graph.tensors
    same = [b for b in structure.residual if b.trunk and tensors[b.start].shape == tensors[b.end].shape]
    projected = [block for block in same if block.kind == "projection"]
    if len(projected) < 2 or 2 * len(projected) <= len(same):
        return
    for block in projected:
        yield Fault(
            "unnecessary projection",
            block.shortcut.calls_with("weights")[0].name,
            block.name,
            f"The shortcut is projected although the shape {tensors[block.end].shape[1:]} does not change, as in "
            f"{len(projected)} of {len(same)} such blocks, so there is no identity path.",
            "Use projections only in blocks that change the shape.",
            "He et al. 2016, section 4.1 (C); 2016b, table 1 (1x1 convolution)",
        )


def _stream_dropout(structure: Structure) -> Iterator[Fault]:
    ends = {block.end for block in structure.residual}
    same = [block for block in structure.residual if block.kind == "identity" and block.trunk]
    found = []
    for block in same:
        number, rate, where = block.start, 0.0, ""
        maker = structure.graph.maker[number]
        while maker is not None and len(maker.inputs) == 1 and number not in ends:
            nature = structure.nature(maker)
            if nature.kind != "identity" and not nature.activation:
                break
            rate, where = (nature.dropout, maker.name) if nature.dropout else (rate, where)
            number = maker.inputs[0]
            maker = structure.graph.maker[number]
        if rate and number in ends:
            found.append((block, rate, where))
    if len(found) < 2 or 2 * len(found) < len(same):  # a single one between two parts of a network may be intended
        return
    for block, rate, where in found:
        yield Fault(
            "dropout on the stream",
            where,
            block.name,
            f"It drops {rate:.0%} of the previous block's sum, and thus of the residual stream, in training.",
            "Move it into the branch, before the addition.",
            "He et al. 2016b, section 3.1, table 1",
        )


def _frozen(structure: Structure) -> Iterator[Fault]:
    def trains(calls: Any) -> bool:
        return any(getattr(call.operation, "trainable_variables", ()) for call in calls)

    def frozen(block: Block) -> bool:
        return not trains(block.branch.calls) and bool(block.branch.calls_with("weights"))

    graph = structure.graph
    others = [block for block in structure.residual if not frozen(block)]
    for block in structure.residual:
        above = [c for c in graph.calls if c.outputs and graph.comes_from(block.start, c.outputs[0])]
        if frozen(block) and trains(above) and others:
            yield Fault(
                "frozen branch",
                block.branch.calls_with("weights")[0].name,
                block.name,
                "No layer of the branch is trainable, but layers before it and other blocks are.",
                "Set trainable = True for the branch's layers and compile again. To freeze layers, start at the input.",
                "Veit et al. 2016: every branch is a path of the ensemble",
            )


def _concatenated(structure: Structure) -> Iterator[Fault]:
    def signature(path: Path) -> list[str]:
        return sorted(
            type(c.operation).__name__ for c, n in zip(path.calls, path.natures, strict=True) if n.kind != "identity"
        )

    graph = structure.graph
    known = [signature(block.branch) for block in structure.residual]
    for call in graph.calls:
        if type(call.operation).__name__ != "Concatenate" or len(call.inputs) != 2 or not known:
            continue
        first, second = sorted(call.inputs)
        shapes = {tuple(graph.tensors[number].shape) for number in call.inputs}
        if len(shapes) > 1 or not graph.comes_from(second, first):
            continue
        if graph.tensors[call.outputs[0]].shape[-1] != 2 * (graph.tensors[first].shape[-1] or 0):
            continue
        if signature(structure.path(first, second)) in known and graph.passes(first, call.outputs[0]):
            yield Fault(
                "concatenation instead of addition",
                call.name,
                call.name,
                f"{graph.name(first)} and a branch like those of other blocks are concatenated, which doubles the "
                "channels and is not a skip connection.",
                "Use keras.layers.Add, and restore the width of the following layers.",
                "He et al. 2016, eq. 1",
            )


def _growing(structure: Structure) -> Iterator[Fault]:
    graph = structure.graph
    runs: list[list[Block]] = []
    last = -1
    for block in (b for b in structure.chain if b.trunk):
        between = graph.between(last, block.start) if last >= 0 and graph.comes_from(block.start, last) else None
        calm = between is None or any(
            structure.nature(maker).norm for maker in map(graph.maker.__getitem__, between) if maker
        )
        if _is_bounded(structure, block):
            last = -1
            continue
        if last < 0 or calm:
            runs.append([])
        runs[-1].append(block)
        last = block.end
    runs = [run for run in runs if len(run) > 2]
    if not runs:
        return
    ends = [number for run in runs for number in (run[0].start, run[-1].end)]
    values = graph.run([noise(graph.tensors[number], 0) for number in graph.inputs], ends)
    for run in runs:
        before, after = (float(ops.std(ops.cast(values[n], "float32"))) for n in (run[0].start, run[-1].end))
        if after > GROWTH * max(before, 1e-12) or not np.isfinite(after):
            yield Fault(
                "growing stream",
                run[0].branch.calls_with("weights")[-1].name if run[0].branch.weights else run[0].call.name,
                run[0].name,
                f"No branch from here to {run[-1].name} is normalised or scaled, and with the current weights the "
                f"standard deviation of the residual stream grows {after / max(before, 1e-12):.3g}-fold over "
                f"{len(run)} blocks.",
                "Normalise in each branch, or initialize each branch to zero (zero_init, layers.SkipInit).",
                "Zhang et al. 2019 (Fixup), section 2; De & Smith 2020",
            )


def _is_bounded(structure: Structure, block: Block) -> bool:
    """Return True if the branch is kept small by a norm, a scale, or a last kernel of zeros."""
    kinds = ("LayerScale", "SkipInit", "Standardized", "SpectralNorm")
    for call, nature in zip(block.branch.calls, block.branch.natures, strict=True):
        name = type(call.operation).__name__
        if nature.norm or (nature.kind == "scale" and abs(nature.scale) < 1) or any(kind in name for kind in kinds):
            return True
    if abs(block.branch.coefficient) < 1 or block.kind == "gated":
        return True
    kernels = block.branch.calls_with("weights")
    maker = structure.graph.maker[block.start]
    above = structure.nature(maker).norm if maker and len(maker.inputs) == 1 else False
    last = [v for v in kernels[-1].operation.weights if len(v.shape) >= 2] if kernels else []
    return above or any(not np.asarray(ops.convert_to_numpy(v)).any() for v in last)


_WHOLE: tuple[Callable[[Structure], Iterator[Fault]], ...] = (
    _unnecessary_projection,
    _stream_dropout,
    _frozen,
    _concatenated,
    _growing,
)
