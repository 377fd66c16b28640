"""Detection of residual blocks in a graph: additions whose operands are computed from the same tensor.

Names are not used. What an operation computes follows from its type, if Keras documents it. Otherwise it is measured on
noise, for example for an `Average`, a `Lambda`, or the scaled addition of an Inception-ResNet.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_residual import layers
from keras_residual.diagnostics.graph import Call, Graph, gradients

__all__ = ["Block", "Nature", "Path", "Steps", "Structure", "noise"]

Array = np.ndarray[Any, Any]
Steps = tuple[float, ...]  # subsampling factor along each spatial axis
# Prefixes of layers that are linear except for their `activation`.
_ACTIVATED = ("Conv", "Dense", "EinsumDense", "SeparableConv", "DepthwiseConv", "StandardizedConv", "PointwiseDense")
_LINEAR = (
    "BatchNorm",
    "LayerScale",
    "ZeroPadding",
    "Cropping",
    "UpSampling",
    "Reshape",
    "Flatten",
    "Permute",
    "GetItem",
)
_NOISE_SAMPLES = 4  # samples of noise for measuring an operation


@dataclasses.dataclass(frozen=True)
class Nature:
    """Properties of an operation, as a function of its input tensor.

    Attributes:
        kind: "identity", "scale" (multiplication by a number), "linear" (affine), "nonlinear", or "constant"
            (independent of its input, or without gradient).
        scale: The factor, if the kind is "scale".
        activation: True for activations: elementwise, nonlinear, with no trained parameters except slopes.
        norm: True for normalisations.
        dropout: Rate at which it drops values; 0 if it does not.
        weights: True if it has a kernel, that is, weights that mix channels or positions.
        positive: True if its outputs are never negative.
        stride: Subsampling factor along each spatial axis, below 1 for upsampling; `None` if unknown.
        crops: True if it crops.
        detached: True if its value depends on its input but its gradient is zero.
        zero: True if it is the constant 0.
    """

    kind: str
    scale: float = 1.0
    activation: bool = False
    norm: bool = False
    dropout: float = 0.0
    weights: bool = False
    positive: bool = False
    stride: Steps | None = ()
    crops: bool = False
    detached: bool = False
    zero: bool = False


@dataclasses.dataclass(frozen=True)
class Path:
    """One side of an addition: the calls between the common ancestor of all sides and the operand.

    Attributes:
        operand: Number of the tensor that is added.
        coefficient: Factor by which the addition multiplies the operand.
        calls: The calls on the path, in order.
        natures: Properties of each call.
    """

    operand: int
    coefficient: float
    calls: tuple[Call, ...]
    natures: tuple[Nature, ...]

    def calls_with(self, attribute: str) -> list[Call]:
        """Return the calls for which the given attribute of `Nature` is true."""
        return [call for call, nature in zip(self.calls, self.natures, strict=True) if getattr(nature, attribute)]

    def of_kind(self, *kinds: str) -> list[Call]:
        return [call for call, nature in zip(self.calls, self.natures, strict=True) if nature.kind in kinds]

    @property
    def weights(self) -> bool:
        return bool(self.calls_with("weights"))

    @property
    def linear(self) -> bool:
        """True if the side is an affine function of the common ancestor."""
        return not self.of_kind("nonlinear", "constant")

    @property
    def identity(self) -> bool:
        """True if the side is the identity at inference, up to a factor."""
        return not self.of_kind("linear", "nonlinear", "constant")

    @property
    def scale(self) -> float:
        """Factor by which an identity side multiplies its input."""
        return self.coefficient * math.prod(nature.scale for nature in self.natures)

    @property
    def rank(self) -> int:
        """Sort key by which the shortcut is chosen: the side with the smallest value does least."""
        if self.identity:
            return 0
        bend = any(n.kind in ("nonlinear", "constant") and not n.norm for n in self.natures)
        if not self.weights:
            return 2 if bend else 1
        return 4 if bend else 3


@dataclasses.dataclass(frozen=True)
class Block:
    """An addition of tensors with a common ancestor.

    Attributes:
        call: The addition.
        name: Name of the block: that of the addition without the suffix of `keras_residual.blocks.residual`.
        start: Number of the last common ancestor, the block's input.
        end: Number of the sum.
        shortcut: The side that does least.
        branch: The other side; if there are several, the first with weights.
        others: All other sides.
        trunk: True if all paths from the block's input to the outputs go through the sum.
        kind: "identity", "projection", "parameter-free", "gated", "sum" (no side is a shortcut) or "self" (no side is a
            branch).
    """

    call: Call
    name: str
    start: int
    end: int
    shortcut: Path
    branch: Path
    others: tuple[Path, ...]
    trunk: bool
    kind: str

    @property
    def sides(self) -> tuple[Path, ...]:
        """All sides except the shortcut."""
        return (self.branch, *self.others)

    @property
    def residual(self) -> bool:
        """True if the addition is a residual block, with a shortcut and a branch."""
        return self.kind not in ("sum", "self")


class Structure:
    """The additions and residual blocks of a graph.

    Attributes:
        graph: The graph.
        blocks: All additions of tensors with a common ancestor, in order.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._natures: dict[Any, Nature] = {}
        self._sums: dict[Any, tuple[float, ...] | None] = {}
        self.blocks = [block for block in map(self._block, graph.calls) if block is not None]

    @functools.cached_property
    def residual(self) -> list[Block]:
        """The residual blocks, in order."""
        return [block for block in self.blocks if block.residual]

    @functools.cached_property
    def chain(self) -> list[Block]:
        """The residual blocks that contain no other residual block: the steps of the residual stream."""
        ends = {block.call.number for block in self.residual}
        return [block for block in self.residual if not ends & {c.number for path in block.sides for c in path.calls}]

    # -------------------------------------------------------------------------------------------------- the additions

    def sum_of(self, call: Call) -> tuple[float, ...] | None:
        """Return the coefficients with which a call adds its operands, or `None` if it is not a sum."""
        key = self._key(call)
        if key not in self._sums:
            self._sums[key] = self._coefficients(call)
        return self._sums[key]

    def _coefficients(self, call: Call) -> tuple[float, ...] | None:
        shapes = [self.graph.tensors[number].shape for number in call.operands]
        result = self.graph.tensors[call.outputs[0]].shape
        if len(shapes) < 2 or len(call.outputs) != 1 or any(len(shape) != len(result) for shape in shapes):
            return None
        if any(not _fits(a, b) for shape in shapes for a, b in zip(shape, result, strict=True)):
            return None
        if type(call.operation) is keras.layers.Add:
            return (1.0,) * len(shapes)
        if any(not _is_float(self.graph.tensors[number]) for number in call.operands):
            return None
        if len(call.inputs) < len(call.operands):  # x + x: divide the total factor equally
            nature = self.nature(call)
            return (nature.scale / len(shapes),) * len(shapes) if nature.kind in ("identity", "scale") else None
        return _measure_sum(call, [self.graph.tensors[number] for number in call.inputs])

    def _block(self, call: Call) -> Block | None:
        factors, graph = self.sum_of(call), self.graph
        if factors is None:
            return None
        common = functools.reduce(int.__and__, (graph.ancestors[number] for number in call.operands))
        if not common:
            return None
        start, end = common.bit_length() - 1, call.outputs[0]
        if not _is_float(graph.tensors[start]):  # embeddings of the same integers, not a residual stream
            return None
        paths = [self.path(start, number, factor) for number, factor in zip(call.operands, factors, strict=True)]
        shortcut, *rest = sorted(paths, key=lambda path: (path.rank, len(path.calls)))
        branch = next((path for path in rest if path.weights), rest[-1])
        others = tuple(path for path in rest if path is not branch)
        if any(self.adds_constant(path, start) for path in paths):  # adds position embeddings or a bias, not a branch
            return None
        kind = _kind(shortcut, branch)
        if kind is None:
            return None
        return Block(call, _block_name(call), start, end, shortcut, branch, others, graph.passes(start, end), kind)

    def path(self, start: int, operand: int, factor: float = 1.0) -> Path:
        """Return the path between two tensors."""
        tensors = self.graph.between(start, operand)
        calls = {maker.number: maker for maker in (self.graph.maker[number] for number in tensors) if maker}
        natures = tuple(self.nature(call) for call in calls.values())
        return Path(operand, factor, tuple(calls.values()), natures)

    def cuts(self, path: Path, start: int) -> list[Call]:
        """Return the calls that block the gradient of a side, if they block all of its paths."""
        stops = path.of_kind("constant")
        reached = {start}
        for call in path.calls:
            if call not in stops and reached & set(call.inputs):
                reached |= set(call.outputs)
        return [] if path.operand in reached else stops

    def adds_constant(self, path: Path, start: int) -> bool:
        """Return True if a side is a nonzero constant, such as position embeddings, and not a detached branch."""
        natures = [self.nature(call) for call in self.cuts(path, start)]
        return bool(natures) and not any(nature.zero or nature.detached for nature in natures)

    def gain(self, block: Block) -> float:
        """Return the factor of the block's input in the sum, over all paths that are identities."""
        gains = {block.start: 1.0}
        calls = {call.number: call for path in (block.shortcut, *block.sides) for call in path.calls}
        for _, call in sorted((calls | {block.call.number: block.call}).items()):
            given = [gains.get(number, 0.0) for number in call.operands]
            factors = self.sum_of(call)
            if factors is not None:
                value = sum(factor * gain for factor, gain in zip(factors, given, strict=True))
            else:
                nature = self.nature(call)
                value = given[0] * nature.scale if nature.kind in ("identity", "scale") else 0.0
            gains |= dict.fromkeys(call.outputs, value)
        return gains[block.end]

    # -------------------------------------------------------------------------------------------- what operations do

    def nature(self, call: Call) -> Nature:
        """Return the properties of a call, from its type or by measurement."""
        key = self._key(call)
        if key not in self._natures:
            self._natures[key] = self._nature(call)
        return self._natures[key]

    def _key(self, call: Call) -> Any:
        """Return a cache key, equal for layers of the same type and configuration on tensors of the same shape."""
        kind = type(call.operation)
        known = kind.__module__.startswith(("keras.", "keras_residual.")) and issubclass(kind, keras.Layer)
        if not known or kind is keras.layers.Lambda:  # the configuration may be incomplete
            return call.number
        config = {key: value for key, value in call.operation.get_config().items() if key != "name"}
        places = tuple(call.inputs.index(number) for number in call.operands)
        shapes = [
            (tuple(t.shape), str(t.dtype)) for t in (self.graph.tensors[n] for n in (*call.inputs, *call.outputs))
        ]
        return (kind, repr(sorted(config.items())), repr(shapes), places)

    def _nature(self, call: Call) -> Nature:
        operation, kind = call.operation, type(call.operation).__name__
        given, made = self.graph.tensors[call.inputs[0]], self.graph.tensors[call.outputs[0]]
        layer = isinstance(operation, keras.Layer)
        norm = layer and "Norm" in kind
        slopes = norm or isinstance(operation, (keras.layers.PReLU, layers.PositionEmbedding))
        own: dict[str, Any] = {
            "norm": norm,
            "weights": layer and not slopes and any(len(v.shape) >= 2 for v in operation.weights),
            "stride": _stride(call, kind, given, made),
            "crops": kind.startswith(("Cropping", "CenterCrop"))
            or (kind == "GetItem" and given.shape[1:-1] != made.shape[1:-1]),
        }
        rate = _rate(operation, kind)
        if rate is not None:
            return Nature("identity", dropout=rate, **own)
        if layer and isinstance(operation, keras.layers.Identity):
            return Nature("identity", **own)
        if kind == "StopGradient":
            return Nature("constant", detached=True, **own)
        if len(call.inputs) > 1:
            joins = kind == "Concatenate" or self.sum_of(call) is not None
            return Nature("linear" if joins else "nonlinear", **own)
        if kind.startswith(_ACTIVATED) and hasattr(operation, "activation"):
            activation = keras.activations.get(operation.activation)
            if activation is keras.activations.linear:
                return Nature("linear", **own)
            values = ops.convert_to_numpy(activation(ops.linspace(-6.0, 6.0, 49)))
            return Nature("nonlinear", activation=True, positive=bool(values.min() >= 0), **own)
        # Max pooling is not treated as an activation: in a shortcut it selects a position.
        if kind.startswith(_LINEAR) or "Pooling" in kind or kind in ("MaxPool", "AveragePool"):
            return Nature("linear", **own)
        if norm or isinstance(operation, keras.layers.MultiHeadAttention):
            return Nature("nonlinear", **own)
        if not _is_float(given) or not _is_float(made):
            return Nature("nonlinear", **own)
        return _measure(call, given, made, own)


def _kind(shortcut: Path, branch: Path) -> str | None:
    """Classify an addition; return `None` if it neither is nor resembles a residual block."""
    if branch.identity:
        return "self"
    if branch.linear and not branch.weights:
        return None  # a filter without weights, such as x - pool(x)
    if shortcut.identity:
        return "identity"
    if not shortcut.weights:
        gate = shortcut.calls[-1]
        return "gated" if len(gate.inputs) > 1 and shortcut.natures[-1].kind == "nonlinear" else "parameter-free"
    if len(shortcut.calls[-1].inputs) > 1 and shortcut.natures[-1].kind == "nonlinear":
        return "gated"
    if shortcut.rank == 3 and branch.rank > 3:  # the sum of two linear maps is linear, or the heads of an ensemble
        return "projection"
    return "sum"


def _block_name(call: Call) -> str:
    name, colon, use = call.name.partition(":")
    for ending in (".residual.add", ".add"):
        if name.endswith(ending):
            return name.removesuffix(ending) + colon + use
    return call.name


def _fits(given: int | None, made: int | None) -> bool:
    return given == made or given == 1 or given is None or made is None


def _is_float(tensor: Any) -> bool:
    return "float" in keras.backend.standardize_dtype(tensor.dtype)


def _rate(operation: Any, kind: str) -> float | None:
    """Return the rate of a layer that drops values in training, or `None` for other layers."""
    if not any(word in kind for word in ("Dropout", "DropPath", "StochasticDepth", "DropBlock")):
        return None
    for name in ("rate", "drop_path_rate", "drop_prob", "survival_probability"):
        value = getattr(operation, name, None)
        if isinstance(value, (int, float)):
            return 1 - float(value) if name == "survival_probability" else float(value)
    return 1.0


def _stride(call: Call, kind: str, given: Any, made: Any) -> Steps | None:
    """Return the subsampling factor along each spatial axis, or `None` if it is unknown."""
    before, after = given.shape[1:-1], made.shape[1:-1]
    axes = len(before)
    if axes != len(after) or not axes or kind == "Reshape":
        return (1.0,) * axes if before == after else None
    steps = _sizes(getattr(call.operation, "strides", getattr(call.operation, "stride", None)), axes)
    if steps is not None:
        return tuple(1 / step for step in steps) if "Transpose" in kind else steps
    if kind.startswith("UpSampling"):
        size = _sizes(call.operation.size, axes)
        return size and tuple(1 / step for step in size)
    if before == after or kind.startswith(("ZeroPadding", "Cropping", "CenterCrop")) or kind == "Pad":
        return (1.0,) * axes
    if kind == "GetItem":  # Keras does not expose the slice, so measure it
        return _slice_steps(call, given)
    if kind == "Resizing" and all(before) and all(after):
        return tuple(old / new for old, new in zip(before, after, strict=True))
    return None


def _sizes(value: Any, axes: int) -> Steps | None:
    """Expand a size that is given for all axes or per axis."""
    if isinstance(value, (int, float)) and value:
        return (float(value),) * axes
    if isinstance(value, (tuple, list)) and len(value) == axes:
        return tuple(map(float, value))
    return None


def _slice_steps(call: Call, given: Any) -> Steps | None:
    """Measure the steps of a slice by applying it to a tensor of positions."""
    steps = []
    for axis in range(1, len(given.shape) - 1):
        places: Array = np.zeros(noise(given, 0).shape, "float32")
        shape = [-1 if i == axis else 1 for i in range(places.ndim)]
        places += np.arange(places.shape[axis], dtype="float32").reshape(shape)
        kept = np.unique(_apply(call, [places], [given]))
        if kept.size < 2:
            return None
        steps.append(float(kept[1] - kept[0]))
    return tuple(steps)


# ------------------------------------------------------------------------------------------------------- measuring


def noise(tensor: Any, seed: int) -> Array:
    """Return normal noise of a symbolic tensor's shape, or zeros and ones if it is an integer tensor."""
    shape = [_NOISE_SAMPLES if tensor.shape[0] is None else tensor.shape[0]]
    shape += [16 if size is None else size for size in tensor.shape[1:]]
    values = np.random.default_rng(seed).normal(size=shape).astype("float32")
    return values if _is_float(tensor) else (values > 0).astype("int32")


def _with_random_weights(operation: Any) -> keras.StatelessScope:
    """Return a scope with random weights of the operation, so that a scale initialized to 0 is not a constant."""
    generator, values = np.random.default_rng(0), []
    for variable in getattr(operation, "variables", ()):
        if "float" in keras.backend.standardize_dtype(variable.dtype):
            shape = tuple(variable.shape)
            # Kernels need both signs, or their outputs would all be positive; scales and variances must be positive.
            value = generator.normal(size=shape) if len(shape) > 1 else 0.5 + 0.5 * generator.random(shape)
            values.append((variable, ops.convert_to_tensor(value, variable.dtype)))
    return keras.StatelessScope(state_mapping=values)


def _apply(call: Call, arguments: list[Array], tensors: list[Any]) -> Array:
    values = [ops.convert_to_tensor(a, t.dtype) for a, t in zip(arguments, tensors, strict=True)]
    return np.asarray(ops.convert_to_numpy(ops.cast(call(values)[0], "float32")), "float64")


def _measure_sum(call: Call, tensors: list[Any]) -> tuple[float, ...] | None:
    """Measure the coefficients of a linear combination; return `None` if the call is not one."""
    given = [noise(tensor, seed) for seed, tensor in enumerate(tensors)]
    try:
        with _with_random_weights(call.operation):
            total = _apply(call, given, tensors)
            factors, rest = [], total
            for i, value in enumerate(given):
                alone = [x if i == j else np.zeros_like(x) for j, x in enumerate(given)]
                part, value = _apply(call, alone, tensors), np.broadcast_to(value, total.shape)
                factors.append(float((part * value).sum() / (value**2).sum()))
                rest = rest - factors[-1] * value
    except Exception:  # an operation that cannot be measured
        return None
    tolerance = 1e-3 if "float32" in str(tensors[0].dtype) else 3e-2
    if np.abs(rest).max() > tolerance * max(np.abs(total).max(), 1e-6) or 0.0 in np.round(factors, 6):
        return None
    return tuple(factors)


def _measure(call: Call, given: Any, made: Any, own: dict[str, Any]) -> Nature:
    a, b = 2 * noise(given, 1), 2 * noise(given, 2)
    try:
        with _with_random_weights(call.operation):
            f = [_apply(call, [x], [given]) for x in (np.zeros_like(a), a, b, a + b)]
    except Exception:
        return Nature("nonlinear", **own)
    size, tolerance = max(np.abs(f[1]).max(), 1e-6), 1e-3 if "float32" in str(given.dtype) else 5e-2
    positive = min(x.min() for x in f) >= 0 and not np.allclose(f[1], f[2])
    if np.abs(f[1] - f[2]).max() < 1e-6 * size:
        return Nature("constant", zero=not f[1].any(), **own)
    scope, at = _with_random_weights(call.operation), [ops.convert_to_tensor(a, given.dtype)]
    _, (slope,) = gradients(lambda x: ops.sum(call(x)[0] ** 2), at, scope)
    if not np.asarray(ops.convert_to_numpy(ops.cast(slope, "float32"))).any():
        return Nature("constant", detached=True, **own)
    if np.abs(f[3] - f[1] - f[2] + f[0]).max() > tolerance * size:
        elementwise = given.shape == made.shape and not own["weights"]
        return Nature("nonlinear", activation=elementwise, positive=positive, **own)
    if given.shape == made.shape and np.abs(f[0]).max() < 1e-6 * size:
        scale = float((f[1] * a).sum() / (a**2).sum())
        if abs(scale) > 1e-6 and np.abs(f[1] - scale * a).max() < tolerance * size:
            return Nature("identity" if abs(scale - 1) < 1e-3 else "scale", scale, **own)
        if abs(scale) <= 1e-6:
            return Nature("constant", zero=True, **own)
    return Nature("linear", **own)
