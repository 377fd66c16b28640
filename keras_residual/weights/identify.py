"""Detect a file's type from its content, without running code, for error messages about wrong files."""

from __future__ import annotations

import collections
import dataclasses
import io
import itertools
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Kind", "identify"]

_ARRAYS = (
    "Read its arrays with the library that wrote it and load them by name: "
    "keras_residual.load_weights(model, {name: array})."
)
_STATE_DICT = (
    "Save the network's state dict instead, in the program that wrote this file:\n"
    "  from safetensors.torch import save_file\n"
    '  save_file(model.state_dict(), "weights.safetensors")'
)
_OWN_PICKLE = (
    "Loading a pickle can run arbitrary code, so keras_residual refuses it. If you trust the file, load it in your own "
    "program and pass its arrays by name: keras_residual.load_weights(model, {name: array})."
)
_AGAIN = "Download the weights file again."


@dataclasses.dataclass(frozen=True)
class Kind:
    """Type of a file.

    Attributes:
        what: Name of the type, with its article.
        advice: What to do with a file that cannot be read, in complete sentences.
        reader: Suffix of the reader that reads the file or explains how it is damaged; empty if there is none.
    """

    what: str
    advice: str = ""
    reader: str = ""


# First bytes of each type
_BEGINNINGS: tuple[tuple[bytes, Kind], ...] = (
    (
        b"version https://git-lfs.github.com/spec/",
        Kind("a Git LFS pointer, not the file itself", "Download the file with `git lfs pull`."),
    ),
    (b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file", reader=".h5")),
    (b"GGUF", Kind("a GGUF file, the format of llama.cpp", _ARRAYS)),
    (b"\x89PNG", Kind("a PNG image", _AGAIN)),
    (b"\xff\xd8\xff", Kind("a JPEG image", _AGAIN)),
    (b"%PDF", Kind("a PDF document", _AGAIN)),
    (b"\x93NUMPY", Kind("a single NumPy array (.npy)", "Save all arrays by name with numpy.savez instead.")),
    (b"\x1f\x8b", Kind("a gzip archive", "Unpack it first and pass the file inside.")),
    (b"BZh", Kind("a bzip2 archive", "Unpack it first and pass the file inside.")),
    (b"\xfd7zXZ", Kind("an xz archive", "Unpack it first and pass the file inside.")),
    (b"\x28\xb5\x2f\xfd", Kind("a Zstandard archive", "Unpack it first and pass the file inside.")),
    (b"7z\xbc\xaf\x27\x1c", Kind("a 7-Zip archive", "Unpack it first and pass the file inside.")),
    (b"Rar!", Kind("a RAR archive", "Unpack it first and pass the file inside.")),
)
_TF_TABLE = bytes.fromhex("57fb808b247547db")  # the last bytes of a TensorFlow checkpoint's .index
_CHECKPOINT = Kind(
    "a part of a TensorFlow checkpoint",
    "Read its arrays with tf.train.load_checkpoint and load them by name: "
    "keras_residual.load_weights(model, {name: array}).",
)
_SAVED_MODEL = Kind(
    "the graph of a TensorFlow SavedModel", "Pass the weights, run or checkpoint that it was exported from."
)


def identify(path: Path) -> Kind:
    """Detect a file's type from its first and last bytes and from the contents of archives and pickles.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(4096)
        file.seek(max(0, path.stat().st_size - 8))
        tail = file.read()
    if not head:
        return Kind("an empty file", _AGAIN)
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    if head.startswith(b"PK\x03\x04"):
        return _archive(path)
    if head[4:9] == b"\0\0\0\0{":  # the header's length, then the header
        return Kind("a safetensors file", reader=".safetensors")
    if head[4:8] == b"TFL3":
        return Kind("a LiteRT (TFLite) model", _ARRAYS)
    if tail == _TF_TABLE or re.search(r"\.data-\d{5}-of-\d{5}$", path.name):
        return _CHECKPOINT
    if path.name == "saved_model.pb":
        return _SAVED_MODEL
    if re.match(rb"\x08[\x03-\x20][\x12\x1a\x22\x3a]", head):
        return Kind("an ONNX model", _ARRAYS)
    if re.match(rb"\x80[\x02-\x05]", head):
        return _pickle(path)
    if path.suffix == ".msgpack":
        return Kind("a msgpack file, the format of Flax", _ARRAYS)
    return _text(head) or Kind("a file of unknown type", _ARRAYS, path.suffix)


def _text(head: bytes) -> Kind | None:
    try:
        text = head.decode("utf-8").lstrip("\ufeff \r\n\t").lower()
    except UnicodeDecodeError:
        return None
    if re.search(r"[\0-\x08\x0e-\x1f]", text):
        return None
    if re.match(r"<!doctype html|<html|<head|<body", text):
        advice = "The download probably needed a login or had a wrong address. Download the weights file itself."
        return Kind("an HTML page, not a weights file", advice)
    if text.startswith("<?xml"):
        return Kind("an XML file", _ARRAYS if "<net " in text else _AGAIN)
    if text.startswith(("{", "[")):
        return Kind("a JSON file", "Pass the weights file next to it, or their directory.")
    if text.startswith("model_checkpoint_path:"):
        return _CHECKPOINT
    return Kind("a text file", _AGAIN)


def _archive(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            data = next((name for name in names if re.fullmatch(r"([^/]+/)?data\.pkl", name)), None)
            if any(name.endswith("/constants.pkl") for name in names):
                advice = f'{_STATE_DICT}\nwhere model = torch.jit.load("{path.name}").'
                return Kind("a TorchScript archive", advice)
            if data is not None:
                size = archive.getinfo(data).file_size
                found = _globals(io.BytesIO(archive.read(data))) if size < 100_000_000 else set()
                return _torch(found)
    except Exception:  # damaged: the reader for the suffix reports the details
        return Kind("a damaged ZIP archive", _AGAIN, path.suffix if path.suffix in (".npz", ".keras") else "")
    if "model.weights.h5" in names:
        return Kind("a .keras archive", reader=".keras")
    if (names and all(name.endswith(".npy") for name in names)) or path.suffix == ".npz":
        return Kind("an .npz archive", reader=".npz")
    return Kind("a ZIP archive", "Unpack it first and pass the file or the directory inside.")


def _pickle(path: Path) -> Kind:
    """Identify a bare pickle: torch's old format, which starts with a magic number, or that of another library."""
    with path.open("rb") as file:
        try:
            first = [argument for _, argument, _ in itertools.islice(pickletools.genops(file), 10)]
            file.seek(0)
            if 0x1950A86A20F9469CFC6C not in first:
                kind = _torch(_globals(file), "a pickle")
                return dataclasses.replace(kind, advice=_OWN_PICKLE, reader="") if kind.reader else kind
            for _ in range(3):  # the magic number, a version, system information
                for _ in itertools.islice(pickletools.genops(file), 1000):
                    pass
            return _torch(_globals(file))
        except Exception:  # truncated, or not a pickle
            return Kind("a damaged pickle", _AGAIN, ".pt")


def _torch(found: set[str], what: str = "a torch pickle") -> Kind:
    foreign = sorted(name for name in found if not _PLAIN.match(name))
    network = any(re.match(r"torch\.(nn\.modules|fx|jit)\.", name) for name in foreign)
    if network:
        return Kind(f"a pickled network ({_few(foreign)}), not a state dict", _STATE_DICT)
    if foreign:
        return Kind(f"{what} that contains objects other than tensors ({_few(foreign)})", _STATE_DICT, ".pt")
    return Kind(what, _STATE_DICT, ".pt")


# Names that occur in the pickle of a state dict: tensors, their storages, containers, numbers
_PLAIN = re.compile(
    r"torch\._utils\._rebuild|torch\.storage\.|torch\.nn\.parameter\.|torch\.\w+$|torch\._tensor\.|"
    r"collections\.OrderedDict$|(builtins|__builtin__)\.(set|dict|list|tuple|slice|complex|bytearray|int|float|str)$|"
    r"_codecs\.encode$|numpy(\.\w+)*\.(dtype|ndarray|scalar|_reconstruct|\w+DType)$"
)


def _few(names: list[str]) -> str:
    own = [name for name in names if not name.startswith("torch.nn.")] or names
    return ", ".join(own[:3]) + (" and more" if len(own) > 3 else "")


def _globals(file: Any) -> set[str]:
    """Return the names of the classes and functions that a pickle would call, without loading it."""
    found: set[str] = set()
    strings: collections.deque[Any] = collections.deque(maxlen=2)
    memo: dict[int, Any] = {}
    for code, argument in _operations(file):
        if code == "GLOBAL":
            found.add(str(argument).replace(" ", "."))
            strings.append(None)
        elif code == "STACK_GLOBAL":
            found.add(".".join(map(str, strings)))
            strings.append(None)
        elif code in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT") and strings:
            memo[len(memo) if argument is None else int(argument)] = strings[-1]
        elif code in ("BINGET", "LONG_BINGET", "GET"):
            strings.append(memo.get(int(argument)))
        elif isinstance(argument, str):
            strings.append(argument)
        else:
            strings.append(None)
    return found


def _operations(file: Any) -> Iterator[tuple[str, Any]]:
    for operation, argument, _ in itertools.islice(pickletools.genops(file), 1_000_000):
        yield operation.name, argument
