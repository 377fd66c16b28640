"""Files on disk: written whole or not at all, hashed, and found where the user says they are."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "escaped",
    "expand",
    "literal",
    "remove_parts",
    "say",
    "sha256",
    "write_json",
    "write_table",
    "written_whole",
]

# How safetensors (Rust) and HDF5 report a disk error: neither raises an OSError.
_DISK = re.compile(r"os error|I/O error|errno = |no space left|file too large|read-only file", re.IGNORECASE)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success the file written there replaces `path` in one step.

    Raises:
        OSError: If the disk is full or not writable, whichever exception the writing library raises.
    """
    temporary = path.with_name(
        f".{path.stem}.{os.getpid()}.part{path.suffix}"
    )  # Keras chooses the format by the suffix
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # safetensors makes files readable by their owner only
        os.replace(temporary, path)
    except Exception as error:
        if not isinstance(error, OSError) and not _DISK.search(str(error)):
            raise
        kind = type(error) if isinstance(error, OSError) else OSError
        raise kind(f"{str(path)!r} could not be written: {error}. The previous file is unchanged.") from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove the temporary files of a process that was killed while writing."""
    for part in folder.glob(".*.part*"):
        part.unlink()


def write_table(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV table, whole or not at all. Text is written as `literal` returns it: one line per row."""
    with written_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        for row in (header, *rows):
            table.writerow([literal(cell) if isinstance(cell, str) else cell for cell in row])


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all. Reading it back returns every string unchanged."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    with written_whole(path) as part:  # UTF-8 has no surrogates; backslashreplace writes them as JSON's own \\udcff
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def literal(text: str) -> str:
    """Return a name as it is printed, drawn and written: in one line, without characters that act on their own.

    Line feeds and other control characters become `\\n`, `\\x1b`, `\\u202e`; bytes of a file name that are not UTF-8
    become `\\xNN`. All other text, backslashes and dollar signs included, stays as it is.
    """
    if text.isprintable():  # nearly all names, at once
        return text
    return "".join(escaped(char) if _acts(char) else char for char in text)


def _acts(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in _DIRECTIONS


def escaped(char: str) -> str:
    """Return the escape of a character, for example `\\n`, `\\xe9` or `\\u4e2d`."""
    if char in _ESCAPES:
        return _ESCAPES[char]
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # how Python represents a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("ascii", "backslashreplace").decode() if code > 0x7F else f"\\x{code:02x}"


_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # reorder the text around them


def say(line: str) -> None:
    """Print a line. Characters that the terminal's encoding lacks are escaped; `print` would raise an error."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def expand(path: str | os.PathLike[str]) -> Path:
    """Return a path with `~` and environment variables expanded, as a shell would.

    A program called without a shell (from Python, a notebook or a service file) receives them literally.
    """
    return Path(os.path.expandvars(os.path.expanduser(os.fspath(path))))
