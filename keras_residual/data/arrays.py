"""Check images and labels given as Python objects: arrays, PIL images, encoded images or paths."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import ImageOps

from keras_residual.checking import class_numbers, require_class_numbers, require_one_label_each
from keras_residual.data.catalog import Gathered, from_bytes, from_listing, from_pixels
from keras_residual.data.images import checked_pixels
from keras_residual.data.listing import Listing, class_name, listed, table
from keras_residual.data.objects import Collected, kind_of
from keras_residual.data.validation import Progress


def from_collected(
    found: Collected,
    classes: Sequence[str] | None,
    partial: bool,
    cache: str | os.PathLike[str] | bool,
    max_pixels: int,
    progress: Progress | None,
) -> Gathered:
    """Check the images and labels of a Python object.

    Raises:
        ValueError: For images or labels that cannot be used for training.
    """
    if kind_of(found.images) == "paths":
        return _from_paths(found, classes, partial, cache, max_pixels, progress)
    gathered = _from_images(found, classes, max_pixels, progress)
    return dataclasses.replace(gathered, named=found.ordered)


def _from_paths(
    found: Collected,
    classes: Sequence[str] | None,
    partial: bool,
    cache: str | os.PathLike[str] | bool,
    max_pixels: int,
    progress: Progress | None,
) -> Gathered:
    """Check files given by paths, naming them relative to their common folder, so that its location does not matter."""
    paths = [os.path.abspath(os.path.expanduser(os.fsdecode(path))) for path in found.images]
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    labels, classes = _named(found, classes)
    columns = {"path": [os.path.relpath(path, root) for path in paths], "label": labels}
    columns |= {} if found.splits is None else {"split": found.splits}
    return from_listing(table(columns, "the table", root, classes, partial), root, cache, max_pixels, progress)


def _from_images(
    found: Collected, classes: Sequence[str] | None, max_pixels: int, progress: Progress | None
) -> Gathered:
    items, warnings, kind = found.images, [], kind_of(found.images)
    pixels = checked_pixels(np.asarray(items), warnings) if kind == "array" else None
    labels, names = _labels(*_named(found, classes))
    require_one_label_each(len(items), len(labels))
    listing = Listing(
        "", names, found.names or [str(i) for i in range(len(items))], labels, [None] * len(items), [], warnings
    )
    _check_classes(listing)
    if pixels is not None:
        return from_pixels(listing, pixels)
    grey = False
    if kind == "arrays":
        items, grey = _pngs_of_arrays(items)
    elif kind == "pictures":
        grey = all(picture.mode in ("1", "L", "I", "F", "I;16") for picture in items)
        items = [_png(picture) for picture in items]
    return from_bytes(listing, list(items), 1 if grey else 3, max_pixels, progress)


def _named(found: Collected, classes: Sequence[str] | None) -> tuple[Any, Sequence[str] | None]:
    """Return labels and classes, both as names if the source has names for its class indices."""
    if found.classes is None:
        return found.labels, classes
    numbers = class_numbers(found.labels, known=True)
    require_class_numbers(numbers, len(found.classes))
    return np.array(found.classes, object)[numbers], found.classes if classes is None else classes


def _pngs_of_arrays(items: Sequence[Any]) -> tuple[list[bytes], bool]:
    """Encode arrays of different sizes as PNG, which is lossless, and return whether they are grayscale."""
    arrays = [np.asarray(item) for item in items]
    dtypes, channels = {item.dtype.name for item in arrays}, {item.shape[2:] for item in arrays}
    if dtypes != {"uint8"}:
        raise ValueError(f"Images of different sizes must be uint8, 0..255; got {', '.join(sorted(dtypes))}.")
    if not channels <= {(1,), (3,)}:
        raise ValueError(
            "Images of different sizes must be arrays (height, width, channels) with 1 or 3 channels; got the shapes "
            f"{' and '.join(str(item.shape) for item in arrays[:2])}."
        )
    return [tf.io.encode_png(item, compression=1).numpy() for item in arrays], channels == {(1,)}


def _png(picture: Any) -> bytes:
    """Encode a PIL image as PNG or TIFF, so that the rules for files also apply to it."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        if picture.mode in ("I", "F", "CMYK"):
            file = io.BytesIO()
            picture.save(file, "TIFF")
            return file.getvalue()
        picture = picture.convert("RGB")
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _labels(y: Any, classes: Sequence[str] | None) -> tuple[list[int], tuple[str, ...]]:
    y = class_numbers(y)
    if y.ndim == 1 and y.dtype.kind in "USO" and all(isinstance(label, str) for label in y.tolist()):
        given = [class_name(label) for label in y.tolist()]
        names = tuple(sorted(set(given)) if classes is None else map(class_name, classes))
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise ValueError(f"Every label must be in classes, {listed(names)}; got {listed(unknown)}.")
        number = {name: i for i, name in enumerate(names)}
        return [number[name] for name in given], names
    require_class_numbers(y, None if classes is None else len(classes), names=True)
    high = int(y.max(initial=0))
    if high >= 1_000_000:
        raise ValueError(
            f"Labels must be class numbers below 1,000,000; got {high:,}. Number the classes: "
            "labels = np.unique(labels, return_inverse=True)[1]."
        )
    return [int(label) for label in y], tuple(map(str, range(high + 1) if classes is None else classes))


def _check_classes(listing: Listing) -> None:
    """Reject a single class and warn about classes that have no images."""
    if len(listing.classes) < 2:
        raise ValueError(f"Data must have at least two classes; got {listed(listing.classes)}.")
    occurring = set(listing.labels)
    empty = [name for i, name in enumerate(listing.classes) if i not in occurring]
    if empty:
        listing.warnings.append(f"There are no images of the classes {listed(empty)}, so they cannot be learned.")
