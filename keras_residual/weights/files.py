"""Weights from and to files, strictly: everything in the file and everything in the model is accounted for."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_residual.weights.layout import Slot, slots

# torch's bookkeeping, no weights
_IGNORED = ("num_batches_tracked", "relative_position_index", "attn_mask")


@dataclasses.dataclass(frozen=True)
class Report:
    """What a load did.

    Attributes:
        source: Where the weights came from.
        loaded: Keys that were assigned.
        missing: Keys of the model that the source lacks.
        unexpected: Keys of the source that the model lacks.
        misshapen: Keys whose shapes differ, with both shapes.
        adapted: Keys that were changed to fit, as the caller asked.
    """

    source: str
    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded from {self.source}"]
        for what in ("missing", "unexpected", "misshapen", "adapted"):
            names = getattr(self, what)
            if names:
                more = f" and {len(names) - 20} more" if len(names) > 20 else ""
                lines.append(f"  {what} ({len(names)}): {', '.join(names[:20])}{more}")
        return "\n".join(lines)


def load_weights(model: keras.Model, source: str | os.PathLike[str] | Mapping[str, Any]) -> Report:
    """Loads weights by name, all or nothing.

    Args:
        model: A model of this package.
        source: A `.safetensors` file, or a mapping from timm's names to arrays in timm's layout.

    Returns:
        A report of what was loaded.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If anything is missing, unexpected, misshapen or not finite. The model is unchanged.
    """
    if isinstance(source, Mapping):
        name, state = "a mapping", dict(source)
    else:
        name, state = str(source), _read_safetensors(Path(source))
    state = {key: value for key, value in state.items() if not key.endswith(_IGNORED)}
    places = {slot.key: slot for slot in slots(model)}

    report = Report(
        name,
        loaded=tuple(key for key in places if key in state),
        missing=tuple(key for key in places if key not in state),
        unexpected=tuple(key for key in state if key not in places),
        misshapen=tuple(
            f"{key} {tuple(np.shape(state[key]))} for {slot.shape}"
            for key, slot in places.items()
            if key in state and tuple(np.shape(state[key])) != tuple(slot.shape)
        ),
    )
    if report.missing or report.unexpected or report.misshapen:
        raise ValueError(f"The weights must fit {model.name} exactly; nothing was loaded. Received:\n{report}")
    values = [(slot, slot.to_keras(_checked(key, state[key]))) for key, slot in places.items()]
    for slot, value in values:
        slot.variable.assign(value)
    return report


def save_weights(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Writes all weights with timm's names and layout as safetensors. The file appears whole or not at all.

    Args:
        model: A model of this package.
        path: A path that ends in `.safetensors`.
    """
    from safetensors.numpy import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"Weights are written as safetensors. Received: {str(path)!r}. Let the name end in .safetensors."
        )
    state = {slot.key: _contiguous(slot) for slot in slots(model)}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(state, temporary, metadata={"format": "pt"})
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _contiguous(slot: Slot) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(slot.to_torch(keras.ops.convert_to_numpy(slot.variable)))


def _read_safetensors(path: Path) -> dict[str, Any]:
    import ml_dtypes as _  # noqa: F401  (lets NumPy hold bfloat16)
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if path.suffix != ".safetensors":
        raise ValueError(f"Weights are read from .safetensors files. Received: {str(path)!r}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file {str(path)!r}.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is not a whole safetensors file: {error}. Nothing was loaded.") from error


def _checked(key: str, value: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(value)
    if array.dtype.kind not in "fV" and array.dtype.name != "bfloat16":
        raise ValueError(f"Weights are floating-point numbers. Received: {key} of {array.dtype}. Nothing was loaded.")
    if not np.isfinite(array.astype("float64" if array.dtype == np.float64 else "float32")).all():
        raise ValueError(f"Weights are finite. Received: NaN or infinity in {key}. Nothing was loaded.")
    return array
