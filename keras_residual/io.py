"""Files on disk: written whole or not at all, hashed, and found where the user says they are."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["expand", "remove_parts", "sha256", "write_table", "written_whole"]

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
    """Write a CSV table, whole or not at all."""
    with written_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)


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
