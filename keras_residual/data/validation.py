"""Every file is looked at before training: read whole and decoded by the decoder that training uses.

A header's word is not enough (a cut-off file has a good one), nor is Pillow's (it reads files that TensorFlow refuses).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import json
import os
import re
import stat
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL
import tensorflow as tf
from PIL import Image

from keras_residual.io import written_whole
from keras_residual.reading import host
from keras_residual.reading.host import UnreadableError

MAX_BYTES = 1 << 30
Progress = Callable[[int, int], None]

# The verdicts of a cache count as long as these rules and decoders do.
_RULES = f"2 tensorflow {tf.__version__} pillow {PIL.__version__}"
_LARGE = 8_000_000  # pixels; such images are decoded one at a time, so that memory does not grow with the cores
_one_at_a_time = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Record:
    """What the scan found out about one image.

    Attributes:
        reason: Why it cannot be used; empty if it can.
        how: Which decoder reads it, as in `host.Header`, and likewise the next four.
        height: Rows as decoded.
        width: Columns as decoded.
        orientation: EXIF's number, which is still to be applied.
        notes: What a user should know of it.
        digest: Hash of the file's content.
    """

    reason: str = ""
    how: int = host.PILLOW
    height: int = 0
    width: int = 0
    orientation: int = 1
    notes: tuple[str, ...] = ()
    digest: str = ""


def check(data: bytes, max_pixels: int = host.MAX_PIXELS) -> Record:
    """Decodes the bytes of an image as training will, and says what came of it."""
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    try:
        head = host.header(data, max_pixels)
        with _one_at_a_time if head.height * head.width > _LARGE else contextlib.nullcontext():
            if head.how == host.PILLOW:
                height, width, _ = host.pillow_pixels(data).shape
                head = dataclasses.replace(head, height=height, width=width)
            else:
                host.decode(data, max_pixels)
    except UnreadableError as error:
        return Record(str(error), digest=digest)
    except MemoryError:
        return Record("needs more memory than there is", digest=digest)
    return Record("", head.how, head.height, head.width, head.orientation, head.notes, digest)


def check_file(path: str, max_pixels: int = host.MAX_PIXELS) -> Record:
    """Checks one file. What is no regular file is never opened: a FIFO would wait for ever."""
    try:
        data = content(path)
    except UnreadableError as error:
        return Record(str(error))
    except OSError as error:
        return Record(f"cannot be read ({error.strerror or error})")
    return check(data, max_pixels)


def scan(
    paths: Sequence[str],
    cache: Path | None = None,
    max_pixels: int = host.MAX_PIXELS,
    progress: Progress | None = None,
) -> list[Record]:
    """Checks files in parallel; those that have kept time and size since the last scan are taken from the cache.

    Args:
        paths: The files.
        cache: A file with earlier verdicts, which is brought up to date; `None` for no cache.
        max_pixels: Larger images are refused before they are decoded.
        progress: Called now and then with the number of files done and of all.
    """
    rules = f"{_RULES} max_pixels {max_pixels}"
    known = _cached(cache, rules)
    stamps = [_stamp(path) for path in paths]
    records = {
        path: Record(*known[path][2:])
        for path, stamp in zip(paths, stamps, strict=True)
        if path in known and stamp is not None and known[path][:2] == stamp
    }
    missing = [path for path in dict.fromkeys(paths) if path not in records]
    try:
        for path, record in zip(missing, _parallel(lambda p: check_file(p, max_pixels), missing), strict=True):
            records[path] = record
            if progress and (len(records) % 64 == 0 or len(records) == len(set(paths))):
                progress(len(records), len(set(paths)))
    finally:  # also if it was interrupted
        if cache and missing:
            rows = dict(known)  # another part of the same data may share the cache
            for path, stamp in zip(paths, stamps, strict=True):
                if path in records and stamp is not None:
                    rows[path] = [*stamp, *dataclasses.astuple(records[path])]
            with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the training
                cache.parent.mkdir(parents=True, exist_ok=True)
                with written_whole(cache) as part:
                    part.write_text(json.dumps({"rules": rules, "files": rows}), encoding="ascii")
    return [records[path] for path in paths]


def scan_bytes(
    items: Sequence[bytes], max_pixels: int = host.MAX_PIXELS, progress: Progress | None = None
) -> list[Record]:
    """Checks images that are in memory."""
    records = []
    for record in _parallel(lambda data: check(data, max_pixels), items):
        records.append(record)
        if progress and (len(records) % 64 == 0 or len(records) == len(items)):
            progress(len(records), len(items))
    return records


def default_cache(source: str) -> Path:
    """Where the verdicts on a folder or manifest are kept: with the user's other caches, not among the images."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = hashlib.blake2b(os.fsencode(os.path.realpath(source)), digest_size=8).hexdigest()
    return Path(home, "keras_residual", "scans", f"{name}.json")


def _parallel(function: Callable[[Any], Record], items: Sequence[Any]) -> Iterator[Record]:
    """Check items in threads, in order, some hundred at a time."""
    for start in range(0, len(items), 256):
        chunk = items[start : start + 256]
        for record, words in _heard(function, chunk, lambda record: record.how == host.JPEG and not record.reason):
            if reason := _loss(words):
                yield Record(reason, digest=record.digest)
            else:
                yield dataclasses.replace(record, notes=(*record.notes, "extra bytes")) if words else record


def decoded(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Decode images in threads; the results are the function's, and `UnreadableError` for JPEGs that have lost pixels.

    Args:
        function: Takes an item and returns its pixels, or an exception.
        items: A batch: while it is decoded, what C libraries print to standard error is collected.
    """
    heard = _heard(function, items, lambda result: not isinstance(result, Exception))
    return [UnreadableError(_loss(words)) if _loss(words) else result for result, words in heard]


def _heard(
    function: Callable[[Any], Any], items: Sequence[Any], suspect: Callable[[Any], bool]
) -> list[tuple[Any, str]]:
    """Map in threads; return each result with what libjpeg found corrupt in that item, mostly "".

    libjpeg replaces what is missing by grey and calls that a warning, which goes to standard error, without a name.
    Only if there was one, those items are decoded again, one by one, whose result is `suspect`. Decoders do not hold
    Python's lock.
    """
    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters is said in the verdict
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        with _overheard() as said:
            results = list(pool.map(function, items))
        if not (said and "JPEG data" in said[0]):
            return [(result, "") for result in results]
        return [
            _alone(function, item) if suspect(result) else (result, "")
            for item, result in zip(items, results, strict=True)
        ]


def _alone(function: Callable[[Any], Any], item: Any) -> tuple[Any, str]:
    with _overheard() as said:
        result = function(item)
    words = re.search(r"Corrupt JPEG data: (.*)", said[0] if said else "")
    return result, words[1].strip() if words else ""


def _loss(words: str) -> str:
    """Return why a JPEG cannot be used, from what libjpeg found corrupt in it; superfluous bytes do no harm."""
    lost = words and "extraneous bytes" not in words
    return f"is damaged: some of its pixels are lost ({words})" if lost else ""


_one_listener = threading.Lock()
_LOG = re.compile(r"[IWEF]\d{4} ")  # how a line of TensorFlow's log begins
_DECODERS_LOG = re.compile(r"\b(jpeg_mem|png_io|gif_io)\.cc:\d+\]")
_DECODERS = re.compile(r"JPEG|JFIF|Huffman|SOS|SOF|marker|progression|scanlines|TIFF|PNG|WebP|GIF|gif")


@contextlib.contextmanager
def _overheard() -> Iterator[list[str]]:
    """Collect what C libraries print to standard error meanwhile; the list is filled at the end.

    Two other ways were tried. Child processes that redirect their own standard error have to import TensorFlow: 42 s
    instead of 9 s for 5,000 JPEGs of 96 x 96 on two busy cores. What libjpeg complains about cannot be found in the
    bytes without decoding them. So the stream that C code prints to is exchanged, not the process's file: what Python
    prints, in whichever thread, appears at once, and lines of other C code are passed on afterwards.
    """
    said: list[str] = []
    with _one_listener:  # a second one would put back the first one's stream
        file = _paper(os.getpid())
        with _exchanged(file) if _c_stderr() else _redirected(file):
            yield said
        file.seek(0)
        said.append(file.read().decode("utf-8", "replace"))
        file.seek(0)
        file.truncate()
        others = [line for line in said[0].splitlines(keepends=True) if not _is_decoders(line)]
        with contextlib.suppress(OSError):  # there may be no standard error
            if others:
                os.write(2, "".join(others).encode())


def _is_decoders(line: str) -> bool:
    return bool((_DECODERS_LOG if _LOG.match(line) else _DECODERS).search(line))


@functools.cache
def _paper(process: int) -> Any:
    """Return the file that is written to, one for each process: a forked one would share its place."""
    return tempfile.TemporaryFile()


@functools.cache
def _c_stderr() -> Any:
    """Return C's variable `stderr`, or `None` where it cannot be set, as on Windows."""
    name = {"linux": "stderr", "darwin": "__stderrp"}.get(sys.platform)
    try:
        return ctypes.c_void_p.in_dll(ctypes.CDLL(None), name) if name else None
    except (OSError, ValueError):
        return None


@functools.cache
def _stream(file: Any) -> int:
    """Return a C stream to a file, which is never closed: another thread may still be writing when it is put away."""
    libc = ctypes.CDLL(None)
    libc.fdopen.restype = ctypes.c_void_p
    libc.setvbuf.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    stream = libc.fdopen(os.dup(file.fileno()), b"w")
    libc.setvbuf(stream, None, 2, 0)  # _IONBF: nothing waits in a buffer
    return stream


@contextlib.contextmanager
def _exchanged(file: Any) -> Iterator[None]:
    """Let C code that prints to `stderr` write to a file meanwhile."""
    variable = _c_stderr()
    usual, variable.value = variable.value, _stream(file)
    try:
        yield
    finally:
        variable.value = usual


@contextlib.contextmanager
def _redirected(file: Any) -> Iterator[None]:
    """Redirect the whole process's standard error, if there is one, to a file meanwhile."""
    try:
        usual = os.dup(2)
    except OSError:
        yield
        return
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(usual, 2)
        os.close(usual)


def _cached(cache: Path | None, rules: str) -> dict[str, list[Any]]:
    if cache is None:
        return {}
    try:
        found = json.loads(cache.read_text(encoding="ascii"))
        if found["rules"] != rules:
            return {}
        files = found["files"]
        return {path: [*row[:7], tuple(row[7]), row[8]] for path, row in files.items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):  # none, or a damaged one
        return {}


def _stamp(path: str) -> list[int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_mtime_ns, found.st_size] if stat.S_ISREG(found.st_mode) else None


def content(path: str) -> bytes:
    """The content of a regular file.

    Raises:
        UnreadableError: If it is none, or empty, or far too large.
        OSError: If it cannot be read.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise UnreadableError("is a link to nothing" if os.path.islink(path) else "does not exist") from None
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFIFO: "FIFO", stat.S_IFCHR: "device", stat.S_IFBLK: "device", stat.S_IFSOCK: "socket"}
        raise UnreadableError(
            f"is not a file but a {kinds.get(stat.S_IFMT(found.st_mode), 'folder')}; it was not opened"
        )
    if not found.st_size:
        raise UnreadableError("is empty")
    if found.st_size > MAX_BYTES:
        raise UnreadableError(f"has {found.st_size:,} bytes; an image of more than {MAX_BYTES:,} is not read")
    with open(path, "rb") as file:
        return file.read()
