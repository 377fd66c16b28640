"""Strict, name-based loading and saving of weights."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_residual import graph, layers
from keras_residual.io import expand, written_whole
from keras_residual.registry import family
from keras_residual.weights import files, formats, sources
from keras_residual.weights.files import WeightsError
from keras_residual.weights.identify import identify
from keras_residual.weights.layout import Slot, slots

Array = np.ndarray[Any, Any]
Grid = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Report:
    """Result of loading weights, or of a refused attempt to load them.

    Attributes:
        source: Where the weights came from.
        loaded: Keys that were assigned; if the load was refused, all keys of the model that the source contains.
        missing: Keys of the model that the source lacks.
        unexpected: Keys of the source that the model lacks.
        misshapen: Keys whose shapes differ, with both shapes.
        adapted: Changes made to fit the model, as allowed by the caller.
    """

    source: str
    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors of {self.source} matched by name"]
        for field in ("missing", "unexpected", "misshapen", "adapted"):
            names = getattr(self, field)
            if names:
                more = f" and {len(names) - 20} more" if len(names) > 20 else ""
                lines.append(f"  {field} ({len(names)}): {', '.join(names[:20])}{more}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Adapt:
    """Differences between checkpoint and model that a builder's arguments allow.

    Attributes:
        head: Names of the classifier's layers, which may keep their initial values because `classes` differs.
        top: Prefixes of keys that belong to the classification head; dropped if the model has none.
        channels: If true, the first convolution may be summed or repeated to fit another number of input channels.
        size: If true, position embeddings may be resampled to the model's grid.
    """

    head: tuple[str, ...] = ()
    top: tuple[str, ...] = ()
    channels: bool = False
    size: bool = False


def load_weights(
    model: keras.Model,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    adapt: Adapt | None = None,
    revision: str | None = None,
    grid: tuple[int, ...] | None = None,
    to_timm: formats.Convert | None = None,
) -> Report:
    """Load weights by name, all or nothing.

    To load weights from any other format (an ONNX or TensorFlow.js file, a TensorFlow checkpoint, a pickle published
    with a paper), read the arrays with the library that wrote them, name them as timm does, and pass them as a mapping.
    `slots(model)` lists every name with its shape. If the mapping does not fit, the error lists the missing and
    unexpected names and the wrong shapes. The manual has a complete example.

        for slot in keras_residual.weights.slots(model):
            print(slot.key, slot.shape)  # conv1.weight (64, 3, 7, 7), bn1.weight (64,), ...
        keras_residual.load_weights(model, {"conv1.weight": kernel.transpose(3, 2, 0, 1), ...})

    Args:
        model: A model of this package.
        source: A file (`.safetensors`, `.npz`, `.keras`, a `keras.applications` ResNet's `.h5`, or `.pth` where torch
            is installed), a directory with one, a repository of the Hugging Face Hub such as
            `"timm/resnet18.a1_in1k"`, or a mapping from timm's names to arrays in timm's layout: convolutions
            `(out, in, *size)`, depthwise ones `(channels, 1, *size)`, dense kernels `(out, in)`. `~` and environment
            variables in a path are expanded.
        adapt: Allowed differences; with `None` everything must match exactly.
        revision: Branch, tag or commit of a repository.
        grid: For a Vision Transformer's weights: the number of patches along each axis, which is the image's
            `(height, width)` divided by the patch size. Needed only if the grid is not square and the source does not
            state it.
        to_timm: Function that converts a state dict with the publisher's names to timm's names and layout. With
            `None`, the formats of the model's family are converted; a network that belongs to no family of this
            package accepts timm's names only.

    Returns:
        A report of what was loaded and adapted.

    Raises:
        FileNotFoundError: If there is no such file or repository.
        WeightsError: If the source is damaged, if a tensor is missing, unexpected, misshapen or not finite, or if the
            grid of the position embeddings is unknown. It is a `ValueError`. The model is unchanged.
    """
    places = {slot.key: slot for slot in slots(model)}
    positions = {slot.key: layer for slot, layer in _positions(places.values())}
    if grid is not None and not positions:
        raise ValueError(f"`grid` must be None for {model.name}, which has no position embeddings; got {grid!r}.")
    if not isinstance(source, (str, os.PathLike, Mapping)):
        raise TypeError(
            "`source` must be a file, a directory, a repository such as 'timm/resnet18.a1_in1k', or a mapping of "
            f"names to arrays; got {source!r}."
        )
    stated: dict[str, Grid] = {}
    size: Grid | None = None
    if isinstance(source, Mapping):
        name, state = "a mapping", dict(source)
    else:
        path = sources.weights_file(source, revision)
        name = str(source)
        state = files.read(path, limit=_limit(places))
        if identify(path).reader == ".keras":
            state = _from_keras_order(state, places, name)
        if positions and grid is None:
            stated = files.grids(path)
            size = None if stated else sources.input_size(source, path, revision)
    state = formats.to_timm(state, to_timm or _converter(model))
    grids = {
        key: layer.grid_of(np.shape(state[key]), stated.get(key) if grid is None else tuple(grid), size)
        for key, layer in positions.items()
        if key in state
    }
    if grid is not None and any(found != tuple(grid) for found in grids.values()):
        shapes = ", ".join(str(np.shape(state[key])) for key in grids)
        raise ValueError(
            f"`grid` must have as many patches as the source's position embeddings, of shape {shapes}; got {grid}."
        )
    values, report = _fit(name, state, places, model, adapt or Adapt(), grids)
    for slot, value in values:
        slot.variable.assign(value)
    return report


def save_weights(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Save all weights as safetensors in timm's names and layout. The file is written atomically.

    The file contains a SHA-256 of its tensors, with which `load_weights` detects damage, and the grid of a Vision
    Transformer's position embeddings, which is needed to resample them for another image size.

    Args:
        model: A model of this package.
        path: A path that ends in `.safetensors`; `~` and environment variables in it are expanded.
    """
    import ml_dtypes as _  # noqa: F401  (lets NumPy hold bfloat16)
    from safetensors.numpy import save_file

    path = expand(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"`path` must end in .safetensors, the only format that weights are saved in; got {str(path)!r}."
        )
    found = slots(model)
    state = {s.key: np.ascontiguousarray(s.to_torch(keras.ops.convert_to_numpy(s.variable))) for s in found}
    for slot in found:
        if isinstance(slot.layer, keras.layers.BatchNormalization):  # torch's strict loading expects this key
            state[f"{slot.layer.name}.num_batches_tracked"] = np.zeros((), "int64")
    metadata = {"format": "pt", files.DIGEST: files.digest(state)}
    if grids := {slot.key: layer.grid for slot, layer in _positions(found)}:
        metadata[files.GRIDS] = json.dumps(grids)
    with written_whole(path) as temporary:
        save_file(state, temporary, metadata=metadata)
        files.order_metadata(temporary)


def _positions(found: Iterable[Slot]) -> Iterator[tuple[Slot, layers.PositionEmbedding]]:
    """Yield the slots of position embeddings, each with its layer."""
    return ((slot, slot.layer) for slot in found if isinstance(slot.layer, layers.PositionEmbedding))


def _converter(model: keras.Model) -> formats.Convert | None:
    """Return the conversion of the model's family, or `None` if the model belongs to no family or to several."""
    marked = {layer.family for layer in graph.leaves(model) if isinstance(layer, layers.StageOutput) and layer.family}
    found = family(marked.pop()) if len(marked) == 1 else None
    return found.to_timm if found else None


def _limit(places: Mapping[str, Slot]) -> int:
    """Return the largest accepted checkpoint in bytes: all weights twice in float64, plus 2 GB for heads and towers."""
    return 16 * sum(math.prod(slot.shape) for slot in places.values()) + 2_000_000_000


def _from_keras_order(state: Mapping[str, Array], places: Mapping[str, Slot], name: str) -> dict[str, Array]:
    """Convert the arrays of a `.keras` file, named `layer/index`, to timm's names and layout by the layers' names."""
    keys: dict[str, Slot] = {}
    counts: dict[str, int] = {}
    for slot in places.values():
        index = counts[slot.layer.name] = counts.get(slot.layer.name, -1) + 1
        keys[f"{slot.layer.name}/{index}"] = slot
    unknown = [key for key in state if key not in keys and not _is_seed(state[key])]
    misshapen = [k for k in state if k in keys and not _same_axes(state[k], keys[k])]
    if unknown or misshapen:
        report = Report(name, unexpected=tuple(unknown), misshapen=tuple(misshapen))
        error = WeightsError(
            f"The layers of the .keras file must have the names and shapes of the model's layers; nothing was loaded. "
            f"Got:\n{report}"
        )
        error.report = report
        raise error
    return {keys[key].key: keys[key].to_torch(value) for key, value in state.items() if key in keys}


def _same_axes(value: Array, slot: Slot) -> bool:
    """Return True if `to_torch` can permute the array's axes. Sizes are compared later."""
    shape = tuple(slot.variable.shape)
    depthwise = isinstance(slot.layer, (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D))
    return tuple(value.shape) == shape or (value.ndim == len(shape) and not depthwise)


def _is_seed(value: Array) -> bool:
    return value.dtype.kind in "iu"


def _fit(
    name: str,
    state: dict[str, Any],
    places: Mapping[str, Slot],
    model: keras.Model,
    adapt: Adapt,
    grids: Mapping[str, Grid | None],
) -> tuple[list[tuple[Slot, Array]], Report]:
    adapted: list[str] = []
    for key in [key for key in state if key not in places and key.startswith(adapt.top)] if adapt.top else []:
        del state[key]
        adapted.append(f"{key} dropped: the model has no classification head")
    head = {key for key, slot in places.items() if slot.layer.name in adapt.head}
    skipped = head if head.isdisjoint(state) else set[str]()  # a checkpoint without classifier
    misshapen: list[str] = []
    for key, slot in places.items():
        if key not in state:
            continue
        state[key] = value = _checked(name, key, state[key])
        if _is_same_matrix(value, slot):
            state[key] = value = value.reshape(slot.shape)
        old, new = str(tuple(value.shape)), str(tuple(slot.shape))
        if key in grids:
            old, new = _on_grid(value.shape, grids[key]), _on_grid(slot.shape, slot.layer.grid)
        if old == new:
            continue
        resized = _resized(value, slot, model, adapt, grids.get(key))
        if slot.layer.name in adapt.head:
            skipped |= {k for k, s in places.items() if s.layer.name == slot.layer.name}
        elif resized is not None:
            state[key] = resized
            adapted.append(f"{key} {old} resized to {new}")
        else:
            misshapen.append(f"{key} {old}, expected {new}")
    adapted += [f"{key} not loaded: new classification head" for key in sorted(skipped)]
    report = Report(
        name,
        loaded=tuple(key for key in places if key in state and key not in skipped),
        missing=tuple(key for key in places if key not in state and key not in skipped),
        unexpected=tuple(key for key in state if key not in places),
        misshapen=tuple(misshapen),
        adapted=tuple(adapted),
    )
    if report.missing or report.unexpected or report.misshapen:
        error = WeightsError(
            f"The weights must match {model.name} exactly; nothing was loaded. Got:\n{report}{_hint(report, places)}"
        )
        error.report = report
        raise error
    return [(places[key], places[key].to_keras(state[key])) for key in report.loaded], report


def _on_grid(shape: Grid, grid: Grid | None) -> str:
    """Format a shape with its grid, for messages."""
    description = "an unknown grid" if grid is None else f"a grid of {' x '.join(map(str, grid))}"
    return f"{tuple(shape)} on {description}"


def _is_same_matrix(value: Array, slot: Slot) -> bool:
    """Return True if the array is a dense layer's kernel, stored either as a matrix or as a 1x1 convolution."""
    shape = tuple(slot.shape)
    return (
        isinstance(slot.layer, keras.layers.Dense)
        and len(shape) > 1
        and tuple(value.shape[:2]) == shape[:2]
        and value.size == math.prod(shape)
    )


def _hint(report: Report, places: Mapping[str, Slot]) -> str:
    dense = {slot.key: slot for slot in places.values() if isinstance(slot.layer, keras.layers.Dense)}
    heads = [entry for entry in report.misshapen if entry.split(" ")[0] in dense]
    if heads and not report.missing and not report.unexpected:
        return (
            "\nThe checkpoint has a different number of classes. Build the model with the checkpoint's `classes`, or "
            "pass the checkpoint to the builder as `weights` to get a new head."
        )
    if any(" on an unknown grid, expected " in entry for entry in report.misshapen):
        return (
            "\nThe source does not state its grid of patches, and 192 patches may be 12 x 16 or 16 x 12. Build the "
            "model without weights and pass the grid (the image size divided by the patch size): keras_residual."
            "load_weights(model, source, grid=(12, 16)). Add adapt=keras_residual.weights.Adapt(size=True) to resample "
            "the embeddings to the model's grid."
        )
    if report.unexpected and all("/vars/" in key for key in report.unexpected):
        return (
            "\nA Keras .weights.h5 file stores weights by position, not by name. Load it with the model's method: "
            "model.load_weights(file)."
        )
    return ""


def _resized(value: Array, slot: Slot, model: keras.Model, adapt: Adapt, grid: Grid | None) -> Array | None:
    """Return the checkpoint's array resized to the model's shape, or `None` if `adapt` does not allow it."""
    old, new = tuple(value.shape), tuple(slot.shape)
    if adapt.size and grid is not None and old[-1] == new[-1]:
        return slot.layer.resampled(value, grid)
    first = len(old) == len(new) > 2 and old[0] == new[0] and old[2:] == new[2:]
    if adapt.channels and first and new[1] == model.inputs[0].shape[-1] and old[1] == 3:
        # timm's rule: sum over the channels for grey images, otherwise repeat them and keep the scale of the response
        if new[1] == 1:
            return value.sum(1, keepdims=True, dtype=value.dtype)
        return np.concatenate([value] * -(-new[1] // 3), axis=1)[:, : new[1]] * value.dtype.type(3 / new[1])
    return None


def _checked(source: str, key: str, value: Any) -> Array:
    array = np.asarray(value)
    half = array.dtype.name in ("bfloat16", "float16")
    if array.dtype.kind != "f" and not half:
        raise WeightsError(
            f"Weights must be floating-point arrays; got {array.dtype} for {key} in {source}. Nothing was loaded."
        )
    numbers = array.astype("float32") if half else array
    if not np.isfinite(numbers).all():
        raise WeightsError(f"Weights must be finite; {key} in {source} contains NaN or infinity. Nothing was loaded.")
    if key.endswith("running_var") and (numbers < 0).any():
        raise WeightsError(
            f"Variances must not be negative; {key} in {source} contains a negative value. Nothing was loaded."
        )
    return numbers
