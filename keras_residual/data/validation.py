"""Check every image before training by decoding it completely with the decoder used in training.

The header alone is not reliable (a truncated file has a valid one), nor is Pillow (it reads files that TensorFlow
rejects).
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
from keras_residual.reading import graph, host
from keras_residual.reading.host import UnreadableError

MAX_BYTES = 1 << 30
Progress = Callable[[int, int], None]

# Cached results are valid only for these rules and decoder versions.
_RULES = f"3 tensorflow {tf.__version__} pillow {PIL.__version__}"
_LARGE = 8_000_000  # pixels; larger images are decoded one at a time, so that memory use does not grow with the cores
_one_at_a_time = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Record:
    """Result of scanning one image.

    Attributes:
        reason: Why the image cannot be used; empty if it can.
        how: Decoder that reads it. This and the next four attributes are those of `host.Header`.
        height: Height as decoded.
        width: Width as decoded.
        orientation: EXIF orientation, not yet applied; 1 for images that `host.decode` reads.
        notes: Remarks for the user.
        digest: Hash of the file content.
        kind: Sample type, such as `"uint8"`. This and the next attribute are those of `host.Header`, too.
        channels: Number of channels, not counting transparency.
        limits: Smallest and largest sample, and the range of the sample type, or `None` if it has no fixed one; empty
            for 8 bits.
    """

    reason: str = ""
    how: int = host.PILLOW
    height: int = 0
    width: int = 0
    orientation: int = 1
    notes: tuple[str, ...] = ()
    digest: str = ""
    kind: str = "uint8"
    channels: int = 3
    limits: tuple[Any, ...] = ()


def check(data: bytes, max_pixels: int = host.MAX_PIXELS) -> Record:
    """Decode the bytes of an image as in training and return the result."""
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    try:
        head = host.header(data, max_pixels)
        with _one_at_a_time if head.height * head.width > _LARGE else contextlib.nullcontext():
            samples = host.stored(data, head)
    except UnreadableError as error:
        return Record(str(error), digest=digest)
    except MemoryError:
        return Record("needs more memory than is available", digest=digest)
    height, width, orientation, notes = head.height, head.width, head.orientation, head.notes
    if head.how == host.PILLOW:
        samples = host.upright(samples, orientation)
        (height, width), orientation = samples.values.shape[:2], 1
    if "transparent" in notes and samples.opaque:
        notes = tuple(note for note in notes if note != "transparent")
    if not graph.supports(data, "CMYK" in notes):
        notes = (*notes, "not in exports")
    limits = () if samples.kind == "uint8" else (*map(float, samples.extremes), samples.range)
    return Record("", head.how, height, width, orientation, notes, digest, head.kind, head.channels, limits)


def check_file(path: str, max_pixels: int = host.MAX_PIXELS) -> Record:
    """Check one file. Only regular files are opened: opening a FIFO would block forever."""
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
    """Check files in parallel, reusing cached results of files with unchanged size and modification time.

    Args:
        paths: Paths of the files.
        cache: File with the results of earlier scans, which is updated; `None` for no cache.
        max_pixels: Larger images are rejected before decoding.
        progress: Called periodically with the number of files done and the total.

    Returns:
        One record per path, in the same order.
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
    finally:  # keep the results of an interrupted scan too
        if cache and missing:
            rows = dict(known)  # another split of the same dataset may share the cache
            for path, stamp in zip(paths, stamps, strict=True):
                if path in records and stamp is not None:
                    rows[path] = [*stamp, *dataclasses.astuple(records[path])]
            with contextlib.suppress(OSError):  # without a cache the next scan is slower, but training still works
                cache.parent.mkdir(parents=True, exist_ok=True)
                with written_whole(cache) as part:
                    part.write_text(json.dumps({"rules": rules, "files": rows}), encoding="ascii")
    return [records[path] for path in paths]


def scan_bytes(
    items: Sequence[bytes], max_pixels: int = host.MAX_PIXELS, progress: Progress | None = None
) -> list[Record]:
    """Check encoded images in memory, as `scan` does files."""
    records = []
    for record in _parallel(lambda data: check(data, max_pixels), items):
        records.append(record)
        if progress and (len(records) % 64 == 0 or len(records) == len(items)):
            progress(len(records), len(items))
    return records


def default_cache(source: str) -> Path:
    """Return the cache file for a folder or manifest, in the user's cache directory rather than among the images."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = hashlib.blake2b(os.fsencode(os.path.realpath(source)), digest_size=8).hexdigest()
    return Path(home, "keras_residual", "scans", f"{name}.json")


def _parallel(function: Callable[[Any], Record], items: Sequence[Any]) -> Iterator[Record]:
    """Check items in threads, in order, 256 at a time."""
    for start in range(0, len(items), 256):
        chunk = items[start : start + 256]
        checked = _map_with_corruption(function, chunk, lambda record: record.how == host.JPEG and not record.reason)
        for record, corruption in checked:
            if reason := _loss(corruption):
                yield Record(reason, digest=record.digest)
            else:
                yield dataclasses.replace(record, notes=(*record.notes, "extra bytes")) if corruption else record


def decoded(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Decode images in threads, with an `UnreadableError` as the result of each JPEG that has lost pixels.

    Args:
        function: Takes an item and returns its pixels or an exception.
        items: Batch of images. While it is decoded, the standard error of C libraries is captured.

    Returns:
        One result per item, in the same order.
    """
    results = _map_with_corruption(function, items, lambda result: not isinstance(result, Exception))
    return [UnreadableError(_loss(corruption)) if _loss(corruption) else result for result, corruption in results]


def _map_with_corruption(
    function: Callable[[Any], Any], items: Sequence[Any], suspect: Callable[[Any], bool]
) -> list[tuple[Any, str]]:
    """Map in threads and return each result with the corruption that libjpeg reports for the item, usually "".

    libjpeg fills missing pixels with gray and prints a warning to standard error without naming the file. Only if a
    batch causes such a warning are its items with a `suspect` result decoded again, one by one. Threads help because
    the decoders release Python's global interpreter lock.
    """
    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # the record already has what matters
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        with _captured_stderr() as captured:
            results = list(pool.map(function, items))
        if not (captured and "JPEG data" in captured[0]):
            return [(result, "") for result in results]
        return [
            _call_with_corruption(function, item) if suspect(result) else (result, "")
            for item, result in zip(items, results, strict=True)
        ]


def _call_with_corruption(function: Callable[[Any], Any], item: Any) -> tuple[Any, str]:
    with _captured_stderr() as captured:
        result = function(item)
    match = re.search(r"Corrupt JPEG data: (.*)", captured[0] if captured else "")
    return result, match[1].strip() if match else ""


def _loss(corruption: str) -> str:
    """Return why a JPEG with this corruption cannot be used; "" for extraneous bytes, which are harmless."""
    lost = corruption and "extraneous bytes" not in corruption
    return f"is damaged: some of its pixels are lost ({corruption})" if lost else ""


_capture_lock = threading.Lock()
_LOG = re.compile(r"[IWEF]\d{4} ")  # start of a line of TensorFlow's log
_DECODERS_LOG = re.compile(r"\b(jpeg_mem|png_io|gif_io)\.cc:\d+\]")
_DECODERS = re.compile(r"JPEG|JFIF|Huffman|SOS|SOF|marker|progression|scanlines|TIFF|PNG|WebP|GIF|gif")


@contextlib.contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """Capture what C libraries print to standard error inside the context; the text is appended on exit.

    We tried two alternatives. Child processes that redirect their standard error have to import TensorFlow: 42 s
    instead of 9 s for 5,000 JPEGs of 96 x 96 on two busy cores. And the faults that libjpeg reports cannot be detected
    without decoding. So we replace the stream that C code prints to, not the file descriptor of the process: output
    from Python, in any thread, still appears at once, and lines from other C code are written out afterwards.
    """
    captured: list[str] = []
    with _capture_lock:  # a concurrent capture would restore the wrong stream
        file = _capture_file(os.getpid())
        with _replaced_stream(file) if _c_stderr() else _redirected(file):
            yield captured
        file.seek(0)
        captured.append(file.read().decode("utf-8", "replace"))
        file.seek(0)
        file.truncate()
        others = [line for line in captured[0].splitlines(keepends=True) if not _is_from_decoder(line)]
        with contextlib.suppress(OSError):  # the process may have no standard error
            if others:
                os.write(2, "".join(others).encode())


def _is_from_decoder(line: str) -> bool:
    return bool((_DECODERS_LOG if _LOG.match(line) else _DECODERS).search(line))


@functools.cache
def _capture_file(process: int) -> Any:
    """Return the capture file, one per process because a forked process would share the file offset."""
    return tempfile.TemporaryFile()


@functools.cache
def _c_stderr() -> Any:
    """Return the C variable `stderr`, or `None` where it cannot be set, such as on Windows."""
    name = {"linux": "stderr", "darwin": "__stderrp"}.get(sys.platform)
    try:
        return ctypes.c_void_p.in_dll(ctypes.CDLL(None), name) if name else None
    except (OSError, ValueError):
        return None


@functools.cache
def _stream(file: Any) -> int:
    """Return a C stream to a file; it is never closed because another thread may still be writing to it."""
    libc = ctypes.CDLL(None)
    libc.fdopen.restype = ctypes.c_void_p
    libc.setvbuf.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    stream = libc.fdopen(os.dup(file.fileno()), b"w")
    libc.setvbuf(stream, None, 2, 0)  # _IONBF: unbuffered
    return stream


@contextlib.contextmanager
def _replaced_stream(file: Any) -> Iterator[None]:
    """Make C code that prints to `stderr` write to a file inside the context."""
    variable = _c_stderr()
    original, variable.value = variable.value, _stream(file)
    try:
        yield
    finally:
        variable.value = original


@contextlib.contextmanager
def _redirected(file: Any) -> Iterator[None]:
    """Redirect the standard error of the process, if it has one, to a file inside the context."""
    try:
        original = os.dup(2)
    except OSError:
        yield
        return
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)


def _cached(cache: Path | None, rules: str) -> dict[str, list[Any]]:
    if cache is None:
        return {}
    try:
        found = json.loads(cache.read_text(encoding="ascii"))
        if found["rules"] != rules:
            return {}
        files = found["files"]
        return {path: [*row[:7], tuple(row[7]), *row[8:11], _limits(row[11])] for path, row in files.items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):  # missing or damaged
        return {}


def _limits(row: Sequence[Any]) -> tuple[Any, ...]:
    return (*row[:2], row[2] and tuple(row[2])) if row else ()


def _stamp(path: str) -> list[int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_mtime_ns, found.st_size] if stat.S_ISREG(found.st_mode) else None


def content(path: str) -> bytes:
    """Return the content of a regular file.

    Raises:
        UnreadableError: If the path is missing or not a regular file, or the file is empty or larger than `MAX_BYTES`.
        OSError: If the file cannot be read.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise UnreadableError("is a broken link" if os.path.islink(path) else "does not exist") from None
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFIFO: "FIFO", stat.S_IFCHR: "device", stat.S_IFBLK: "device", stat.S_IFSOCK: "socket"}
        raise UnreadableError(f"is a {kinds.get(stat.S_IFMT(found.st_mode), 'folder')}, not a file; it was not opened")
    if not found.st_size:
        raise UnreadableError("is empty")
    if found.st_size > MAX_BYTES:
        raise UnreadableError(f"has {found.st_size:,} bytes; an image file must have at most {MAX_BYTES:,}")
    with open(path, "rb") as file:
        return file.read()
