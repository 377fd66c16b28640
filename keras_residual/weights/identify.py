"""Tell what a file is by its content, so that a wrong one is named and its owner knows what to do. Nothing is run."""

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
    "Read its arrays with the library that wrote it, and load them by name: "
    "keras_residual.load_weights(model, {name: array})."
)
_STATE_DICT = (
    "In the program that made it, where the network is called model, write its state dict instead:\n"
    "  from safetensors.torch import save_file\n"
    '  save_file(model.state_dict(), "weights.safetensors")'
)
_OWN_PICKLE = (
    "A pickle runs code when it is loaded, so it is not loaded here. Where you trust it, load it in a program of your "
    "own, and load its arrays by name: keras_residual.load_weights(model, {name: array})."
)
_AGAIN = "Download the file itself again."


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a file is.

    Attributes:
        what: The words for it, with an article.
        advice: What to do with one that holds no weights readable here, in whole sentences.
        reader: The suffix whose reader reads it, or says how it is damaged; empty if there is none.
    """

    what: str
    advice: str = ""
    reader: str = ""


# How files begin. Longer ones first where one begins like another.
_BEGINNINGS: tuple[tuple[bytes, Kind], ...] = (
    (
        b"version https://git-lfs.github.com/spec/",
        Kind("a Git LFS pointer, not the file that it stands for", "Fetch the file itself with `git lfs pull`."),
    ),
    (b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file", reader=".h5")),
    (b"GGUF", Kind("a GGUF file, a language model of llama.cpp", _ARRAYS)),
    (b"\x89PNG", Kind("a PNG image", _AGAIN)),
    (b"\xff\xd8\xff", Kind("a JPEG image", _AGAIN)),
    (b"%PDF", Kind("a PDF document", _AGAIN)),
    (b"\x93NUMPY", Kind("a single NumPy array (.npy)", "Save all arrays by name with numpy.savez.")),
    (b"\x1f\x8b", Kind("a gzip archive", "Unpack it first, and name the file in it.")),
    (b"BZh", Kind("a bzip2 archive", "Unpack it first, and name the file in it.")),
    (b"\xfd7zXZ", Kind("an xz archive", "Unpack it first, and name the file in it.")),
    (b"\x28\xb5\x2f\xfd", Kind("a Zstandard archive", "Unpack it first, and name the file in it.")),
    (b"7z\xbc\xaf\x27\x1c", Kind("a 7-Zip archive", "Unpack it first, and name the file in it.")),
    (b"Rar!", Kind("a RAR archive", "Unpack it first, and name the file in it.")),
)
_TF_TABLE = bytes.fromhex("57fb808b247547db")  # the last bytes of a TensorFlow checkpoint's .index
_CHECKPOINT = Kind(
    "a part of a TensorFlow checkpoint",
    "Read its arrays with tf.train.load_checkpoint, and load them by name: "
    "keras_residual.load_weights(model, {name: array}).",
)
_SAVED_MODEL = Kind(
    "the graph of a TensorFlow SavedModel", "Name the weights, run or checkpoint that it was exported from."
)


def identify(path: Path) -> Kind:
    """Tell what a file is, by its first and last bytes and, of archives and pickles, by what they list.

    Raises:
        OSError: If it cannot be read.
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
        return Kind("a msgpack file, as Flax writes", _ARRAYS)
    return _text(head) or Kind("of a kind not known here", _ARRAYS, path.suffix)


def _text(head: bytes) -> Kind | None:
    try:
        text = head.decode("utf-8").lstrip("\ufeff \r\n\t").lower()
    except UnicodeDecodeError:
        return None
    if re.search(r"[\0-\x08\x0e-\x1f]", text):
        return None
    if re.match(r"<!doctype html|<html|<head|<body", text):
        advice = "A download that needs a login, or a wrong address, gives one. Download the file itself."
        return Kind("an HTML page, not the file that was asked for", advice)
    if text.startswith("<?xml"):
        return Kind("an XML file", _ARRAYS if "<net " in text else _AGAIN)
    if text.startswith(("{", "[")):
        return Kind("a JSON text", "Name the file of the weights beside it, or the directory of both.")
    if text.startswith("model_checkpoint_path:"):
        return _CHECKPOINT
    return Kind("a text file", _AGAIN)


def _archive(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            data = next((name for name in names if re.fullmatch(r"([^/]+/)?data\.pkl", name)), None)
            if any(name.endswith("/constants.pkl") for name in names):
                advice = f'{_STATE_DICT}\nThere, model = torch.jit.load("{path.name}").'
                return Kind("a TorchScript archive", advice)
            if data is not None:
                size = archive.getinfo(data).file_size
                found = _globals(io.BytesIO(archive.read(data))) if size < 100_000_000 else set()
                return _torch(found)
    except Exception:  # damaged: the reader of its suffix tells how
        return Kind("a damaged ZIP archive", _AGAIN, path.suffix if path.suffix in (".npz", ".keras") else "")
    if "model.weights.h5" in names:
        return Kind("a .keras archive", reader=".keras")
    if (names and all(name.endswith(".npy") for name in names)) or path.suffix == ".npz":
        return Kind("an .npz archive", reader=".npz")
    return Kind("a ZIP archive", "Unpack it first, and name the file or the directory in it.")


def _pickle(path: Path) -> Kind:
    """A bare pickle: torch's old form, of which the first pickle is a certain number, or another library's."""
    with path.open("rb") as file:
        try:
            first = [argument for _, argument, _ in itertools.islice(pickletools.genops(file), 10)]
            file.seek(0)
            if 0x1950A86A20F9469CFC6C not in first:
                kind = _torch(_globals(file), "a pickle")
                return dataclasses.replace(kind, advice=_OWN_PICKLE, reader="") if kind.reader else kind
            for _ in range(3):  # that number, a version, facts about the machine
                for _ in itertools.islice(pickletools.genops(file), 1000):
                    pass
            return _torch(_globals(file))
        except Exception:  # cut off, or no pickle after all
            return Kind("a damaged pickle", _AGAIN, ".pt")


def _torch(found: set[str], what: str = "a torch pickle") -> Kind:
    foreign = sorted(name for name in found if not _PLAIN.match(name))
    network = any(re.match(r"torch\.(nn\.modules|fx|jit)\.", name) for name in foreign)
    if network:
        return Kind(f"a whole network, pickled with its classes ({_few(foreign)}), not a state dict", _STATE_DICT)
    if foreign:
        return Kind(f"{what} with objects of other classes ({_few(foreign)})", _STATE_DICT, ".pt")
    return Kind(what, _STATE_DICT, ".pt")


# What a state dict is made of: tensors, their storages, containers, numbers
_PLAIN = re.compile(
    r"torch\._utils\._rebuild|torch\.storage\.|torch\.nn\.parameter\.|torch\.\w+$|torch\._tensor\.|"
    r"collections\.OrderedDict$|(builtins|__builtin__)\.(set|dict|list|tuple|slice|complex|bytearray|int|float|str)$|"
    r"_codecs\.encode$|numpy(\.\w+)*\.(dtype|ndarray|scalar|_reconstruct|\w+DType)$"
)


def _few(names: list[str]) -> str:
    own = [name for name in names if not name.startswith("torch.nn.")] or names
    return ", ".join(own[:3]) + (" and more" if len(own) > 3 else "")


def _globals(file: Any) -> set[str]:
    """Names of the classes and functions that a pickle would call; it is only listed, never loaded."""
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
