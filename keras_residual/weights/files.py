"""Files of weights, opened without trusting them: a header of names, shapes and dtypes first, values when asked for.

No format here runs code: `.keras` and `.h5` files are read as arrays, `.npz` without pickle, and torch's pickles only
by torch itself in its safe mode. Nothing is allocated beyond what the model can need.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_residual.weights.identify import identify

Arrays = Mapping[str, np.ndarray[Any, Any]]
DIGEST = "keras_residual.sha256"  # where a safetensors file of ours has its `digest`, next to torch's "format"
GRIDS = "keras_residual.grids"  # where it has the grids of its position embeddings, as JSON: {name: [height, width]}


class WeightsError(ValueError):
    """A file of weights that cannot be read, or does not fit. The model is unchanged.

    Attributes:
        report: Of weights that do not fit the `Report` with all names, of which the message has the first.
    """

    report: Any = None


def read(path: str | os.PathLike[str], limit: int) -> dict[str, np.ndarray[Any, Any]]:
    """Read all arrays of a file.

    Args:
        path: A file of safetensors, NumPy's `.npz`, a `.keras` archive, HDF5 or, where torch is installed, a torch
            state dict. Its content decides, not its suffix.
        limit: The most bytes that may be allocated; headers that declare more are refused.

    Raises:
        FileNotFoundError: If there is no such file.
        WeightsError: If the file is damaged, declares more than `limit`, or is of no known kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file {str(path)!r}.")
    kind = identify(path)
    reader = _READERS.get(kind.reader)
    if reader is None:
        raise WeightsError(f"{str(path)!r} is {kind.what}. Nothing was loaded. {kind.advice}")
    try:
        return reader(path, limit)
    except WeightsError:
        raise
    except MemoryError:
        raise WeightsError(f"{str(path)!r} declares more than memory holds. Nothing was loaded.") from None
    except Exception as error:  # damaged bytes make parsers fail in ways of their own; none of them is the user's
        raise WeightsError(
            f"{str(path)!r} is not a whole {kind.reader} file: {type(error).__name__}: {error}. Nothing was loaded. "
            "Fetch it again."
        ) from error


def _bound(path: Path, declared: int, count: int, limit: int) -> None:
    limit = min(limit, 50 * path.stat().st_size + 100_000_000)  # weights that were trained hardly compress
    if declared > limit or count > 100_000:
        raise WeightsError(
            f"{str(path)!r} declares {count:,} arrays of {declared:,} bytes; by this model and by the size of the file "
            f"it can be {limit:,}. Nothing was loaded."
        )


def _safetensors(path: Path, limit: int) -> dict[str, np.ndarray[Any, Any]]:
    import ml_dtypes as _  # noqa: F401  (lets NumPy hold bfloat16)
    from safetensors import safe_open

    size = path.stat().st_size
    with path.open("rb") as file:  # the header is parsed whole: bound it before the library does
        length = int.from_bytes(file.read(8), "little")
    if length > min(size, 25_000_000):
        raise WeightsError(f"{str(path)!r} is cut off: its header declares {length:,} bytes. Nothing was loaded.")
    _bound(path, size, 0, limit + length)
    with safe_open(path, framework="numpy") as file:
        names = list(file.keys())
        _bound(path, size - length, len(names), limit)
        arrays = {name: file.get_tensor(name) for name in names}
        stated = (file.metadata() or {}).get(DIGEST)
    if stated is not None and stated != digest(arrays):
        raise WeightsError(
            f"{str(path)!r} is damaged: its tensors are not those that were saved, by the SHA-256 in its header. "
            "Nothing was loaded. Fetch it again."
        )
    return arrays


def digest(arrays: Arrays) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of arrays: the format itself has no checksum."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name}\0{array.dtype.name}\0{arrays[name].shape}\0".encode())
        found.update(array.reshape(-1).view("uint8").data)
    return found.hexdigest()


def order_metadata(path: Path) -> None:
    """Sorts a safetensors file's metadata, which the library writes in another order each time: equal weights are to
    be equal files."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(size))  # the header is padded with blanks anyway


def _npz(path: Path, limit: int) -> dict[str, np.ndarray[Any, Any]]:
    import ml_dtypes

    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _bound(path, sum(m.file_size for m in members), len(members), limit)
        arrays = {}
        for member in members:
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = header(file)
                _bound(path, math.prod(shape) * dtype.itemsize, 1, limit)
            data = io.BytesIO(archive.read(member))  # checks the CRC
            array = np.lib.format.read_array(data, allow_pickle=False)
            if array.dtype.kind == "V" and array.dtype.itemsize == 2 and not array.dtype.names:
                array = array.view(ml_dtypes.bfloat16)  # NumPy's files have no word for it
            arrays[member.filename.removesuffix(".npy")] = array
    return arrays


def _torch(path: Path, limit: int) -> dict[str, np.ndarray[Any, Any]]:
    kind = identify(path)
    try:
        import torch
    except ImportError:
        raise WeightsError(
            f"{str(path)!r} is {kind.what}, which only torch can read safely. Nothing was loaded. Install torch, or "
            "write it as safetensors where torch is installed.\n" + kind.advice
        ) from None
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < (2, 10):
        raise WeightsError(
            f"Pickles need torch >= 2.10, whose safe mode has no known bypass. Received: {torch.__version__}."
        )
    _bound(path, path.stat().st_size, 0, limit + 10_000_000)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch's own words advise to switch its safe mode off
        raise WeightsError(
            f"{str(path)!r} is {kind.what}, which torch's safe mode does not load. Nothing was loaded. {kind.advice}"
        ) from None
    for wrapper in ("state_dict_ema", "model_ema", "state_dict", "model", "teacher"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
            break
    if not isinstance(state, Mapping):
        raise WeightsError(f"{str(path)!r} holds a {type(state).__name__}, not a state dict. Nothing was loaded.")
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    _bound(path, sum(t.numel() * t.element_size() for t in tensors.values()), len(tensors), limit)
    return {
        key: (t.float() if t.dtype is torch.bfloat16 else t).numpy()  # bfloat16 is exact in float32
        for key, t in tensors.items()
    }


def grids(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the grids of a file's position embeddings, by name, where it states them; `read` has accepted the file."""
    reader = identify(path).reader
    if reader == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:
            stated = json.loads((file.metadata() or {}).get(GRIDS, "{}"))
    elif reader == ".keras":
        with zipfile.ZipFile(path) as archive:
            layers = json.loads(archive.read("config.json"))["config"]["layers"]
        stated = {_layer_name(layer): layer["config"].get("grid") for layer in layers}
    else:
        stated = {}
    if not isinstance(stated, dict):
        return {}
    stated = {name: _items(grid) for name, grid in stated.items()}
    return {name: grid for name, grid in stated.items() if grid and all(type(n) is int and n > 0 for n in grid)}


def _items(value: Any) -> tuple[Any, ...]:
    """The items of a JSON list, or of a tuple in Keras' form."""
    value = value.get("items") if isinstance(value, dict) else value
    return tuple(value) if isinstance(value, list) else ()


def _keras(path: Path, limit: int) -> dict[str, np.ndarray[Any, Any]]:
    """Reads the weights member of a `.keras` archive. Names come from the archive's list of layers, read as data."""
    import h5py

    with zipfile.ZipFile(path) as archive:
        sizes = {member.filename: member.file_size for member in archive.infolist()}
        _bound(path, sizes.get("model.weights.h5", 0), len(sizes), limit)
        _bound(path, sizes.get("config.json", 0), 0, 100_000_000)
        config = json.loads(archive.read("config.json"))
        weights = io.BytesIO(archive.read("model.weights.h5"))
    paths: dict[str, str] = {}
    counts: dict[str, int] = {}
    for layer in config["config"]["layers"]:
        kind = _snake(layer["class_name"])
        number = counts[kind] = counts.get(kind, -1) + 1
        paths[f"layers/{kind}_{number}" if number else f"layers/{kind}"] = _layer_name(layer)
    arrays = {}
    with h5py.File(weights, "r") as file:
        for name, data in _datasets(file, path, limit):
            place, _, index = name.rpartition("/vars/")
            if place in paths:
                arrays[f"{paths[place]}/{index}"] = data[()]
    return arrays


def _layer_name(layer: dict[str, Any]) -> str:
    """Return a layer's name; in Keras 3.10 operations, such as `Pad`, have none in their config."""
    return layer["config"].get("name") or layer["name"]


def _h5(path: Path, limit: int) -> dict[str, np.ndarray[Any, Any]]:
    import h5py

    with h5py.File(path, "r") as file:
        return {name: data[()] for name, data in _datasets(file, path, limit)}


def _datasets(file: Any, path: Path, limit: int) -> Iterator[tuple[str, Any]]:
    """The datasets of an HDF5 file that hold their own numbers: external and linked ones could be any file, and what
    lies in several groups may have more paths than anyone can walk."""
    import h5py

    found: list[tuple[str, Any]] = []

    def walk(group: Any, prefix: str, depth: int) -> None:
        for key in group:
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink) or depth > 20:
                raise WeightsError(f"{str(path)!r} links to other places ({prefix}{key}). Nothing was loaded.")
            item = group[key]
            if h5py.h5o.get_info(item.id).rc > 1:
                raise WeightsError(f"{str(path)!r} holds {prefix}{key} in several places. Nothing was loaded.")
            if isinstance(item, h5py.Group):
                walk(item, f"{prefix}{key}/", depth + 1)
            elif item.external or item.is_virtual:
                raise WeightsError(f"{str(path)!r} refers to other files ({prefix}{key}). Nothing was loaded.")
            else:
                found.append((prefix + key, item))
            if len(found) > 100_000:
                raise WeightsError(f"{str(path)!r} declares too many arrays. Nothing was loaded.")

    walk(file, "", 0)
    _bound(path, sum(math.prod(d.shape) * d.dtype.itemsize for _, d in found), len(found), limit)
    yield from found


def _snake(name: str) -> str:
    """Keras' own spelling of a class name in its weight files."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


_READERS: dict[str, Callable[[Path, int], dict[str, np.ndarray[Any, Any]]]] = {
    ".safetensors": _safetensors,
    ".npz": _npz,
    ".keras": _keras,
    ".h5": _h5,
    ".pth": _torch,
    ".pt": _torch,
    ".bin": _torch,
}

SUFFIXES = tuple(_READERS)
