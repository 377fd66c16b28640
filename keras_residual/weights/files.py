"""Readers for untrusted weight files.

Reading a file never runs code: `.keras` and `.h5` files are read as arrays, `.npz` files without pickle, and torch's
pickles only by torch in its safe mode. Sizes are checked against what the model can need before memory is allocated.
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
DIGEST = "keras_residual.sha256"  # metadata key of `digest` in safetensors files
GRIDS = "keras_residual.grids"  # metadata key of the position embeddings' grids, as JSON: {name: [height, width]}


class WeightsError(ValueError):
    """Raised if a weights file cannot be read or does not match the model. The model is unchanged.

    Attributes:
        report: `Report` with all names, of which the message lists the first 20; `None` if the file cannot be read.
    """

    report: Any = None


def read(path: str | os.PathLike[str], limit: int) -> dict[str, np.ndarray[Any, Any]]:
    """Read all arrays of a file.

    Args:
        path: A safetensors, `.npz`, `.keras` or HDF5 file or, if torch is installed, a torch state dict. The format is
            detected from the content, not from the suffix.
        limit: Largest number of bytes to allocate; a file whose header declares more is rejected.

    Raises:
        FileNotFoundError: If there is no such file.
        WeightsError: If the file is damaged, declares more than `limit`, or has an unknown format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file {str(path)!r}. Check the path.")
    kind = identify(path)
    reader = _READERS.get(kind.reader)
    if reader is None:
        raise WeightsError(f"{str(path)!r} is {kind.what}. Nothing was loaded. {kind.advice}")
    try:
        return reader(path, limit)
    except WeightsError:
        raise
    except MemoryError:
        raise WeightsError(f"{str(path)!r} declares arrays that do not fit in memory. Nothing was loaded.") from None
    except Exception as error:  # parsers raise many types of exceptions on damaged bytes
        raise WeightsError(
            f"{str(path)!r} is damaged or incomplete; reading it as a {kind.reader} file failed with "
            f"{type(error).__name__}: {error}. Nothing was loaded. Download it again."
        ) from error


def _bound(path: Path, declared: int, count: int, limit: int) -> None:
    limit = min(limit, 50 * path.stat().st_size + 100_000_000)  # trained weights hardly compress
    if declared > limit or count > 100_000:
        raise WeightsError(
            f"{str(path)!r} must declare at most {limit:,} bytes, given this model and the size of the file; got "
            f"{declared:,} bytes in {count:,} arrays. Nothing was loaded."
        )


def _safetensors(path: Path, limit: int) -> dict[str, np.ndarray[Any, Any]]:
    import ml_dtypes as _  # noqa: F401  (lets NumPy hold bfloat16)
    from safetensors import safe_open

    size = path.stat().st_size
    with path.open("rb") as file:  # bound the header, which the library parses at once
        length = int.from_bytes(file.read(8), "little")
    if length > min(size, 25_000_000):
        raise WeightsError(f"{str(path)!r} is truncated: its header declares {length:,} bytes. Nothing was loaded.")
    _bound(path, size, 0, limit + length)
    with safe_open(path, framework="numpy") as file:
        names = list(file.keys())
        _bound(path, size - length, len(names), limit)
        arrays = {name: file.get_tensor(name) for name in names}
        stated = (file.metadata() or {}).get(DIGEST)
    if stated is not None and stated != digest(arrays):
        raise WeightsError(
            f"{str(path)!r} is damaged: the SHA-256 of its tensors differs from the one in its header. "
            "Nothing was loaded. Download or save it again."
        )
    return arrays


def digest(arrays: Arrays) -> str:
    """Return the SHA-256 of the arrays' names, dtypes, shapes and bytes; safetensors has no checksum of its own."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name}\0{array.dtype.name}\0{arrays[name].shape}\0".encode())
        found.update(array.reshape(-1).view("uint8").data)
    return found.hexdigest()


def order_metadata(path: Path) -> None:
    """Sort a safetensors file's metadata, so that equal weights give equal files.

    The library writes the metadata in a different order each time.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(size))  # the format allows trailing spaces in the header


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
                array = array.view(ml_dtypes.bfloat16)  # .npy files store bfloat16 as raw bytes
            arrays[member.filename.removesuffix(".npy")] = array
    return arrays


def _torch(path: Path, limit: int) -> dict[str, np.ndarray[Any, Any]]:
    kind = identify(path)
    try:
        import torch
    except ImportError:
        raise WeightsError(
            f"{str(path)!r} is {kind.what}, which only torch can read safely. Nothing was loaded. Install torch, or "
            "convert the file to safetensors on a machine with torch.\n" + kind.advice
        ) from None
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < (2, 10):
        raise WeightsError(
            "torch must be version 2.10 or newer to read pickles, because its safe mode has no known bypass; got "
            f"{torch.__version__}."
        )
    _bound(path, path.stat().st_size, 0, limit + 10_000_000)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch's message recommends turning its safe mode off
        raise WeightsError(
            f"{str(path)!r} is {kind.what}, which torch refuses to load in its safe mode. Nothing was loaded. "
            f"{kind.advice}"
        ) from None
    for wrapper in ("state_dict_ema", "model_ema", "state_dict", "model", "teacher"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
            break
    if not isinstance(state, Mapping):
        raise WeightsError(
            f"{str(path)!r} must contain a state dict; got a {type(state).__name__}. Nothing was loaded."
        )
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    _bound(path, sum(t.numel() * t.element_size() for t in tensors.values()), len(tensors), limit)
    return {
        key: (t.float() if t.dtype is torch.bfloat16 else t).numpy()  # bfloat16 is exact in float32
        for key, t in tensors.items()
    }


def grids(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the grids that a file states for its position embeddings, by name. Call it after `read`."""
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
    """Return the items of a JSON list or of a tuple serialized by Keras."""
    value = value.get("items") if isinstance(value, dict) else value
    return tuple(value) if isinstance(value, list) else ()


def _keras(path: Path, limit: int) -> dict[str, np.ndarray[Any, Any]]:
    """Read the weights of a `.keras` archive. Names come from the list of layers in its `config.json`."""
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
    """Yield the datasets of an HDF5 file, and reject links, external data and shared groups.

    Links and external data could refer to any file on this machine, and the number of paths through shared groups can
    grow exponentially.
    """
    import h5py

    found: list[tuple[str, Any]] = []

    def walk(group: Any, prefix: str, depth: int) -> None:
        for key in group:
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink) or depth > 20:
                raise WeightsError(f"{str(path)!r} must not contain links; got {prefix}{key}. Nothing was loaded.")
            item = group[key]
            if h5py.h5o.get_info(item.id).rc > 1:
                raise WeightsError(
                    f"{str(path)!r} must store each array once; {prefix}{key} has several paths. Nothing was loaded."
                )
            if isinstance(item, h5py.Group):
                walk(item, f"{prefix}{key}/", depth + 1)
            elif item.external or item.is_virtual:
                raise WeightsError(
                    f"{str(path)!r} must not refer to other files, as {prefix}{key} does. Nothing was loaded."
                )
            else:
                found.append((prefix + key, item))
            if len(found) > 100_000:
                raise WeightsError(f"{str(path)!r} must declare at most 100,000 arrays. Nothing was loaded.")

    walk(file, "", 0)
    _bound(path, sum(math.prod(d.shape) * d.dtype.itemsize for _, d in found), len(found), limit)
    yield from found


def _snake(name: str) -> str:
    """Convert a class name to snake case as Keras does in its weight files."""
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
