"""Find and read images given as files, folders, patterns, encoded bytes, PIL images or arrays."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keras_residual.checking import channels_first, require_pixels
from keras_residual.data import validation
from keras_residual.data.listing import SUFFIXES
from keras_residual.io import expand
from keras_residual.reading import host
from keras_residual.reading.host import UnreadableError
from keras_residual.reading.rules import Reading

# Includes formats that we cannot read, so that, for example, HEIC photos in a folder are reported instead of ignored.
_SUFFIXES = {*SUFFIXES, ".npy", ".npz", ".dcm", ".jpe", ".dib", ".pbm", ".pnm", ".j2k", ".heic", ".heif", ".jxl"}
_MAGIC = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|GIF8|RIFF....WEBP", re.DOTALL)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # pathlib collapses "//" to "/"
_RULE = "An image must be an array (height, width, channels) of 0..255, or (height, width) if grayscale"


# --------------------------------------------------------------------------------------------------------------- files


def find(places: Iterable[str | os.PathLike[str]]) -> tuple[list[Path], list[Path]]:
    """Find image files.

    Args:
        places: Files, folders, which are searched recursively, and patterns such as `photos/*.jpg`; `~` and
            environment variables are expanded.

    Returns:
        The images, in order, and the skipped files in folders: hidden files, and files that neither their suffix nor
        their first bytes identify as images.

    Raises:
        FileNotFoundError: If a file does not exist or no file matches a pattern.
        ValueError: For a URL.
    """
    found: list[Path] = []
    skipped: list[Path] = []
    for place in places:
        path = expand(place)
        if path.is_dir():
            for file in sorted(file for file in path.rglob("*") if not file.is_dir()):
                (found if _is_image(file, path) else skipped).append(file)
        elif os.path.lexists(path):
            found.append(path)
        elif _URL.match(os.fspath(place)):
            raise ValueError(f"Images must be files on this machine; got the URL {str(place)!r}. Download it first.")
        else:
            matches = sorted(glob.glob(str(path), recursive=True))
            if not matches:
                raise FileNotFoundError(f"No such image: {str(path)!r}. Check the path or pattern.")
            more, others = find(map(Path, matches))
            found, skipped = found + more, skipped + others
    return found, skipped


def _is_image(file: Path, folder: Path) -> bool:
    if any(part.startswith(".") for part in file.relative_to(folder).parts):
        return False
    if file.suffix.lower() in _SUFFIXES:
        return True
    try:
        if not file.is_file():  # opening a FIFO would block forever
            return False
        with file.open("rb") as opened:
            return bool(_MAGIC.match(opened.read(16)))
    except OSError:
        return False


# ------------------------------------------------------------------------------------------------- any form of images


def named(images: Any, channels: int = 3) -> list[tuple[str, Any]]:
    """List images of any form with their names.

    Args:
        images: A path, folder or pattern; the bytes of a file; a PIL image; an array or tensor of one image or of a
            batch; or an iterable of any of these.
        channels: Number of input channels of the classifier. Arrays must have this many channels, or 1, 3 or 4.

    Returns:
        The name of each image (its path or its index) and a source that `read` accepts.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: For an array that is not an image of 0..255; for lists, the message contains the index.
        TypeError: For anything else.
    """
    single = isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image))
    if single or (hasattr(images, "__array__") and np.asarray(images).dtype.kind not in "SUO"):
        return list(_one(images, 0, channels))
    if hasattr(images, "__array__"):  # of paths or encoded images
        images = np.asarray(images).ravel().tolist()
    if isinstance(images, dict) or not isinstance(images, Iterable):
        raise TypeError(_unknown("images", images))
    found: list[tuple[str, Any]] = []
    for index, image in enumerate(images):
        try:
            found += _one(image, len(found), channels)
        except (ValueError, TypeError) as error:
            raise type(error)(f"images[{index}]: {error}") from None
    return found


def _one(image: Any, number: int, channels: int) -> Iterator[tuple[str, Any]]:
    """Yield the name and source of one image, or of each image in a folder or batch."""
    if not isinstance(image, Image.Image) and hasattr(image, "__array__"):
        array = np.asarray(image)
        if array.ndim or array.dtype.kind not in "SUO":
            for offset, pixels in enumerate(_pixels(array, channels)):
                yield str(number + offset), pixels
            return
        image = array.item()
    if isinstance(image, (str, os.PathLike)):
        for path in find([image])[0]:
            yield str(path), path
    elif isinstance(image, (bytes, bytearray, memoryview)):
        yield str(number), bytes(image)
    elif isinstance(image, Image.Image):
        yield str(getattr(image, "filename", "") or number), image
    else:
        raise TypeError(_unknown("an image", image))


def _unknown(what: str, given: Any) -> str:
    forms = "a path, a folder, bytes of a file, a PIL image or an array (height, width, channels) of 0..255"
    return f"Expected {what} as {forms}, or a list of these; got {type(given).__name__}."


def _pixels(array: np.ndarray[Any, Any], channels: int) -> np.ndarray[Any, Any]:
    """Return an array of one image or of a batch as uint8 `(N, height, width, channels)`."""
    shape, kinds = array.shape, (1, 3, 4, channels)
    batch = array[None, ..., None] if array.ndim == 2 else array[None] if array.ndim == 3 else array
    if batch.ndim == 4 and batch.shape[-1] not in kinds:
        hint = " If it is a batch of grayscale images, add a channel axis: x[..., None]." if array.ndim == 3 else ""
        if batch.shape[1] in kinds:
            hint = channels_first(array.ndim - 3)
        raise ValueError(f"{_RULE}; got shape {shape}.{hint}")
    if batch.ndim != 4:
        raise ValueError(f"{_RULE}; got shape {shape}.")
    return checked_pixels(batch, [])


def checked_pixels(x: np.ndarray[Any, Any], warnings: list[str]) -> np.ndarray[Any, Any]:
    """Check that a batch of images has values of 0..255 and return it as uint8.

    Args:
        x: `(N, height, width, channels)`, integer or floating-point.
        warnings: List to which warnings about allowed but suspicious values are appended.

    Raises:
        ValueError: For a wrong rank, order of axes, range or dtype.
    """
    rule = "Images must be an array (number, height, width, channels) of 0..255"
    if x.ndim == 3:
        raise ValueError(f"{rule}; got shape {x.shape}. If they are grayscale, add a channel axis: x[..., None].")
    if x.ndim != 4:
        raise ValueError(f"{rule}; got shape {x.shape}.")
    if not x.size:
        raise ValueError(f"{rule}; got an empty array of shape {x.shape}.")
    if x.shape[1] in (1, 3, 4) and x.shape[-1] > 4:
        raise ValueError(f"{rule}; got shape {x.shape}.{channels_first()}")
    if x.dtype.name == "bfloat16":
        x = x.astype("float32")
    require_pixels(x)
    high = x.max()
    if 0 < high < 64:
        warnings.append(
            f"The largest pixel value is {high:g}, but 0..255 is expected; scale the images if 255 is not white."
        )
    rounded = np.round(x).astype("uint8")
    if x.dtype.kind == "f" and not np.array_equal(rounded, x):
        warnings.append("The pixel values are rounded to integers.")
    return rounded


# -------------------------------------------------------------------------------------------------------------- pixels


def read(sources: Sequence[Any], reading: Reading | None = None) -> list[np.ndarray[Any, Any] | str]:
    """Read images from the sources that `named` returns, by default as 8-bit RGB on white.

    Returns:
        For each image its pixels `(height, width, channels)` of 0..255, or the reason why it cannot be read, decided as
        in the check before training.
    """
    if all(isinstance(source, np.ndarray) for source in sources):
        return list(sources)
    results = validation.decoded(lambda source: _decode(source, reading or Reading()), sources)
    return [str(result) if isinstance(result, Exception) else result for result in results]


def _decode(source: Any, reading: Reading) -> np.ndarray[Any, Any] | Exception:
    try:
        if isinstance(source, np.ndarray):
            return source
        if isinstance(source, Image.Image):
            return host.picture(source, reading)
        return host.decode(validation.content(str(source)) if isinstance(source, Path) else source, reading)
    except (UnreadableError, OSError) as error:
        return error
    except MemoryError:
        return UnreadableError("needs more memory than is available")


def too_long(image: np.ndarray[Any, Any], size: tuple[int, int]) -> str:
    """Return why an image is too long to resize its shorter side to the model's size; "" if it can be resized."""
    longer, shorter = max(image.shape[:2]), min(image.shape[:2])
    if longer // shorter * size[0] * size[1] <= host.MAX_PIXELS:
        return ""
    return f"is {image.shape[0]:,} x {image.shape[1]:,} pixels, too long to be resized; crop it"
