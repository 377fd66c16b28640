"""Atomic file writing, directory locks, checksums, path expansion, disk space checks and safe text output."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "LockedError",
    "announce",
    "escaped",
    "expand",
    "literal",
    "locked",
    "remove_parts",
    "require_space",
    "say",
    "sha256",
    "write_json",
    "write_table",
    "written_whole",
]

LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LockedError(OSError):
    """Raised when another process is writing to the directory."""


# How safetensors (Rust) and HDF5 report a disk error: neither raises an OSError.
_DISK = re.compile(r"os error|I/O error|errno = |no space left|file too large|read-only file", re.IGNORECASE)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success the file written there replaces `path` in one step.

    Raises:
        OSError: If the disk is full or not writable, whichever exception the writing library raises.
    """
    # keep the suffix: Keras chooses the format by it
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
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
    """Write a CSV table atomically. Text is escaped by `literal`, so each row is one line."""
    with written_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        for row in (header, *rows):
            table.writerow([literal(cell) if isinstance(cell, str) else cell for cell in row])


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically. Reading it back returns every string unchanged."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    with written_whole(path) as part:  # UTF-8 has no surrogates; backslashreplace writes them as JSON's own \\udcff
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def literal(text: str) -> str:
    """Return a name on one line with control characters escaped, for printing, drawing and writing.

    Line feeds and other control characters become `\\n`, `\\x1b`, `\\u202e`; bytes of a file name that are not UTF-8
    become `\\xNN`. All other text, backslashes and dollar signs included, stays as it is.
    """
    if text.isprintable():  # fast path for nearly all names
        return text
    with contextlib.suppress(UnicodeEncodeError):  # in the C locale every non-ASCII byte is a surrogate
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return "".join(escaped(char) if _needs_escape(char) else char for char in text)


def _needs_escape(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in _DIRECTIONS


def escaped(char: str) -> str:
    """Return the escape of a character, for example `\\n`, `\\xe9` or `\\u4e2d`."""
    if char in _ESCAPES:
        return _ESCAPES[char]
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: a byte that is not valid UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("ascii", "backslashreplace").decode() if code > 0x7F else f"\\x{code:02x}"


_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # reorder the text around them


def say(line: str) -> None:
    """Print a line; characters that the output encoding cannot represent are escaped instead of raising an error."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def announce(line: str) -> None:
    """Print a progress line; continue silently if the pipe is closed (`keras-residual finetune ... | head`)."""
    try:
        say(line)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def expand(path: str | os.PathLike[str]) -> Path:
    """Return a path with `~` and environment variables expanded, as a shell would.

    Paths from Python code, a notebook or a service file are not expanded by a shell.
    """
    return Path(os.path.expandvars(os.path.expanduser(os.fspath(path))))


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock a directory for writing, and create it if missing.

    The operating system releases the lock when the process ends, even by SIGKILL, so no stale lock remains.

    Raises:
        LockedError: If another process holds the lock.
        OSError: If the directory cannot be created or written to.
    """
    import filelock

    path = directory / LOCK
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        holder = _text(path)
        lock = filelock.FileLock(path)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            raise LockedError(
                f"Only one command at a time may write to {str(directory)!r}. Another one is running"
                f"{f' ({holder})' if holder else ''}. Wait for it to finish, or choose another output directory."
            ) from None
        if path.exists():
            break
        lock.release()  # the previous holder removed the directory after we had opened the file
    try:
        with contextlib.suppress(OSError):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        lock.release()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def require_space(directory: Path, size: int) -> None:
    """Check that a directory is writable and has room for `size` bytes, by reserving them for a moment.

    Unlike the reported free space, reserving also accounts for quotas and file size limits.

    Raises:
        OSError: If it is not writable or has too little space; the message gives both sizes.
    """
    probe = directory / f".space.{os.getpid()}.part"
    try:
        with probe.open("wb") as file:
            free = shutil.disk_usage(directory).free
            if free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if size and hasattr(os, "posix_fallocate"):
                try:
                    os.posix_fallocate(file.fileno(), 0, size)
                except OSError as error:
                    if error.errno in _FULL:  # other errors: the file system cannot reserve space
                        raise
    except OSError as error:
        where = f"The output directory {str(directory)!r}"
        if error.errno not in _FULL:
            raise OSError(
                error.errno, f"{where} must be writable: {error.strerror}. Choose another directory."
            ) from error
        free = shutil.disk_usage(directory).free
        limit = "" if free < size else ", but a quota or limit allows less"
        raise OSError(
            error.errno,
            f"{where} must have room for about {size / 1e6:,.0f} MB; it has {free / 1e6:,.0f} MB free{limit}. Make "
            "room or choose another directory.",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
