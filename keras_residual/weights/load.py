"""Weights into a model and out of it, by name and strictly: everything in file and model is accounted for."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_residual import layers
from keras_residual.io import written_whole
from keras_residual.weights import files, formats, sources
from keras_residual.weights.files import WeightsError
from keras_residual.weights.layout import Slot, slots

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Report:
    """What a load did, or would have done.

    Attributes:
        source: Where the weights came from.
        loaded: Keys that were assigned.
        missing: Keys of the model that the source lacks.
        unexpected: Keys of the source that the model lacks.
        misshapen: Keys whose shapes differ, with both shapes.
        adapted: What was changed to fit, as the caller asked.
    """

    source: str
    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors of {self.source} fit"]
        for what in ("missing", "unexpected", "misshapen", "adapted"):
            names = getattr(self, what)
            if names:
                more = f" and {len(names) - 20} more" if len(names) > 20 else ""
                lines.append(f"  {what} ({len(names)}): {', '.join(names[:20])}{more}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Adapt:
    """What a builder's arguments allow to differ between checkpoint and model.

    Attributes:
        head: Layers of the classifier that may be new, because the caller asked for other classes.
        top: Prefixes of keys that the model has only with its top, to be left out without one.
        channels: Whether the first convolution may be summed or repeated to another number of input channels.
        size: Whether position embeddings may be resampled to another grid.
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
) -> Report:
    """Loads weights by name, all or nothing.

    Args:
        model: A model of this package.
        source: A file (`.safetensors`, `.npz`, `.keras`, a `keras.applications` ResNet's `.h5`, or `.pth` where torch
            is installed), a directory with one, a repository of the Hugging Face Hub such as
            `"timm/resnet18.a1_in1k"`, or a mapping from timm's names to arrays in timm's layout.
        adapt: What may differ; nothing if `None`.
        revision: With a repository: a branch, tag or commit.

    Returns:
        A report of what was loaded and adapted.

    Raises:
        FileNotFoundError: If there is no such file or repository.
        WeightsError: A `ValueError`: the source is damaged, or anything is missing, unexpected, misshapen or not
            finite. The model is unchanged.
    """
    places = {slot.key: slot for slot in slots(model)}
    if not isinstance(source, (str, os.PathLike, Mapping)):
        raise TypeError(
            "Weights come from a file, a directory, a repository such as 'timm/resnet18.a1_in1k', or a mapping of "
            f"arrays. Received: {source!r}."
        )
    if isinstance(source, Mapping):
        name, state = "a mapping", dict(source)
    else:
        path = sources.weights_file(source, revision)
        name = str(source)
        state = files.read(path, limit=_limit(places))
        if path.suffix == ".keras":
            state = _from_keras_order(state, places, name)
    state = formats.to_timm(state)
    values, report = _fit(name, state, places, model, adapt or Adapt())
    for slot, value in values:
        slot.variable.assign(value)
    return report


def save_weights(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Writes all weights as safetensors in timm's names and layout. The file appears whole or not at all, and carries
    a SHA-256 of its tensors, by which `load_weights` knows a damaged one.

    Args:
        model: A model of this package.
        path: A path that ends in `.safetensors`.
    """
    import ml_dtypes as _  # noqa: F401  (lets NumPy hold bfloat16)
    from safetensors.numpy import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"Weights are written as safetensors. Received: {str(path)!r}. Let the name end in .safetensors."
        )
    found = slots(model)
    state = {s.key: np.ascontiguousarray(s.to_torch(keras.ops.convert_to_numpy(s.variable))) for s in found}
    for slot in found:
        if isinstance(slot.layer, keras.layers.BatchNormalization):  # torch's state dict has it; nobody reads it
            state[f"{slot.layer.name}.num_batches_tracked"] = np.zeros((), "int64")
    with written_whole(path) as temporary:
        save_file(state, temporary, metadata={"format": "pt", files.DIGEST: files.digest(state)})
        files.order_metadata(temporary)


def _limit(places: Mapping[str, Slot]) -> int:
    """The most bytes a checkpoint may hold: float64 of all weights twice, and room for heads and other towers."""
    return 16 * sum(math.prod(slot.shape) for slot in places.values()) + 2_000_000_000


def _from_keras_order(state: Mapping[str, Array], places: Mapping[str, Slot], name: str) -> dict[str, Array]:
    """A `.keras` file's arrays, `layer/index`, under timm's names and layout. Layers are found by name."""
    keys: dict[str, Slot] = {}
    counts: dict[str, int] = {}
    for slot in places.values():
        index = counts[slot.layer.name] = counts.get(slot.layer.name, -1) + 1
        keys[f"{slot.layer.name}/{index}"] = slot
    unknown = [key for key in state if key not in keys and not _is_seed(state[key])]
    misshapen = [k for k in state if k in keys and tuple(state[k].shape) != tuple(keys[k].variable.shape)]
    if unknown or misshapen:
        report = Report(name, unexpected=tuple(unknown), misshapen=tuple(misshapen))
        error = WeightsError(f"The file's layers must be the model's; nothing was loaded. Received:\n{report}")
        error.report = report
        raise error
    return {keys[key].key: keys[key].to_torch(value) for key, value in state.items() if key in keys}


def _is_seed(value: Array) -> bool:
    return value.dtype.kind in "iu"


def _fit(
    name: str, state: dict[str, Any], places: Mapping[str, Slot], model: keras.Model, adapt: Adapt
) -> tuple[list[tuple[Slot, Array]], Report]:
    adapted: list[str] = []
    for key in [key for key in state if key not in places and key.startswith(adapt.top)] if adapt.top else []:
        del state[key]
        adapted.append(f"{key} left out: the model has no top")
    skipped: set[str] = set()
    misshapen: list[str] = []
    for key, slot in places.items():
        if key not in state:
            continue
        state[key] = value = _checked(name, key, state[key])
        if _is_same_matrix(value, slot):
            state[key] = value = value.reshape(slot.shape)
        if tuple(value.shape) == tuple(slot.shape):
            continue
        old = tuple(value.shape)
        resized = _resized(value, slot, model, adapt)
        if slot.layer.name in adapt.head:
            skipped |= {k for k, s in places.items() if s.layer.name == slot.layer.name}
        elif resized is not None:
            state[key] = resized
            adapted.append(f"{key} {old} to {tuple(slot.shape)}")
        else:
            misshapen.append(f"{key} {old} for {tuple(slot.shape)}")
    adapted += [f"{key} new: other classes" for key in sorted(skipped)]
    report = Report(
        name,
        loaded=tuple(key for key in places if key in state and key not in skipped),
        missing=tuple(key for key in places if key not in state),
        unexpected=tuple(key for key in state if key not in places),
        misshapen=tuple(misshapen),
        adapted=tuple(adapted),
    )
    if report.missing or report.unexpected or report.misshapen:
        error = WeightsError(
            f"The weights must fit {model.name} exactly; nothing was loaded. Received:\n{report}{_hint(report, places)}"
        )
        error.report = report
        raise error
    return [(places[key], places[key].to_keras(state[key])) for key in report.loaded], report


def _is_same_matrix(value: Array, slot: Slot) -> bool:
    """Whether the array is a dense layer's kernel, as a matrix or as a 1x1 convolution: the same numbers."""
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
        return "\nThe checkpoint has another number of classes: build with its `classes`, or ask for a new head there."
    return ""


def _resized(value: Array, slot: Slot, model: keras.Model, adapt: Adapt) -> Array | None:
    """The checkpoint's array at the model's shape, if that was asked for and is one of the known ways."""
    old, new = tuple(value.shape), tuple(slot.shape)
    if adapt.size and isinstance(slot.layer, layers.PositionEmbedding) and old[-1] == new[-1]:
        return _resampled(value, slot.layer, new)
    first = len(old) == len(new) > 2 and old[0] == new[0] and old[2:] == new[2:]
    if adapt.channels and first and new[1] == model.inputs[0].shape[-1] and old[1] == 3:
        # timm's rule: sum to grey, otherwise repeat and keep the response's size
        if new[1] == 1:
            return value.sum(1, keepdims=True, dtype=value.dtype)
        return np.concatenate([value] * -(-new[1] // 3), axis=1)[:, : new[1]] * value.dtype.type(3 / new[1])
    return None


def _resampled(value: Array, layer: layers.PositionEmbedding, new: tuple[int, ...]) -> Array | None:
    side = math.isqrt(value.shape[1] - layer.prefix)
    if side**2 != value.shape[1] - layer.prefix or len(layer.grid) != 2:
        return None
    prefix, grid = value[:, : layer.prefix], value[:, layer.prefix :].astype("float32")
    image = keras.ops.image.resize(
        grid.reshape(1, side, side, -1),
        layer.grid,
        interpolation="bicubic",
        antialias=True,
        data_format="channels_last",
    )
    grid = keras.ops.convert_to_numpy(image).reshape(1, -1, new[-1])
    return np.concatenate([prefix, grid.astype(value.dtype)], axis=1)


def _checked(source: str, key: str, value: Any) -> Array:
    array = np.asarray(value)
    half = array.dtype.name in ("bfloat16", "float16")
    if array.dtype.kind != "f" and not half:
        raise WeightsError(
            f"Weights are floating-point numbers. Received: {key} of {array.dtype} in {source}. Nothing was loaded."
        )
    numbers = array.astype("float32") if half else array
    if not np.isfinite(numbers).all():
        raise WeightsError(f"Weights are finite. Received: NaN or infinity in {key} of {source}. Nothing was loaded.")
    if key.endswith("running_var") and (numbers < 0).any():
        raise WeightsError(
            f"Variances are positive. Received: a negative one in {key} of {source}. Nothing was loaded."
        )
    return numbers
