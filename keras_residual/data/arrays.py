"""Images that are in memory already: NumPy arrays, and what a `tf.data.Dataset` yields. Wrong values are told apart."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_residual.data.gathered import Gathered, from_bytes, from_pixels
from keras_residual.data.scan import Progress
from keras_residual.data.sources import Listing, listed


def from_arrays(x: Any, y: Any, classes: Sequence[str] | None) -> Gathered:
    """Images `(N, height, width, channels)` of 0..255 and `(N,)` labels.

    Raises:
        ValueError: For a wrong rank, order of axes, range or dtype, with the rule and what came.
    """
    x = np.asarray(x)
    warnings: list[str] = []
    images = _images(x, warnings)
    labels, names = _labels(y, classes, warnings)
    if len(images) != len(labels):
        raise ValueError(f"Each image has one label. Received: {len(images):,} images and {len(labels):,} labels.")
    listing = Listing("", names, [str(i) for i in range(len(images))], labels, [None] * len(images), [], warnings)
    _all_occur(listing)
    return from_pixels(listing, images)


def from_dataset(
    data: tf.data.Dataset, classes: Sequence[str] | None, max_pixels: int, progress: Progress | None
) -> Gathered:
    """A `tf.data.Dataset` of `(image, label)`, one by one or in batches; images as numbers or as encoded bytes.

    It is read once and kept in memory: what has no order and no length cannot be split, shuffled and resumed.

    Raises:
        ValueError: If it yields something else, or does not end.
    """
    spec: Any = data.element_spec
    if not (isinstance(spec, tuple) and len(spec) == 2 and all(isinstance(part, tf.TensorSpec) for part in spec)):
        raise ValueError(
            f"A tf.data.Dataset yields pairs (image, label). Received: {spec}. Bring it there with "
            "data.map(lambda ...: (image, label))."
        )
    image, label = spec
    if data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("A data set ends. Received: a tf.data.Dataset without an end. Leave out .repeat().")
    encoded = image.dtype == tf.string
    if image.shape.rank is None or label.shape.rank is None:
        raise ValueError(f"A tf.data.Dataset says the rank of what it yields. Received: {spec}. Use tf.ensure_shape.")
    if image.shape.rank == (1 if encoded else 4):
        data = data.unbatch()
    elif image.shape.rank != (0 if encoded else 3):
        raise ValueError(
            f"An image has the shape (height, width, channels), in a batch (batch, height, width, channels). Received: "
            f"{tuple(image.shape)}."
        )
    items, labels = [], []
    budget = Budget()
    for item, number in data.as_numpy_iterator():
        budget.take(len(item) if encoded else item.nbytes)
        items.append(item)
        labels.append(number)
    if not items:
        raise ValueError("A data set has images. Received: a tf.data.Dataset that yields nothing.")
    y = np.array([label.decode() if isinstance(label, bytes) else label for label in labels])
    if not encoded and len({item.shape for item in items}) == 1:
        return from_arrays(np.stack(items), y, classes)
    warnings: list[str] = []
    numbers, names = _labels(y, classes, warnings)
    listing = Listing("", names, [str(i) for i in range(len(items))], numbers, [None] * len(items), [], warnings)
    _all_occur(listing)
    if not encoded:  # different sizes: kept as PNG, which loses nothing
        if image.dtype != tf.uint8:
            raise ValueError(f"Images of different sizes are uint8, 0..255. Received: {image.dtype.name}.")
        channels = {item.shape[-1] for item in items}
        if not channels <= {1, 3}:
            raise ValueError(f"Images of different sizes have 1 or 3 channels. Received: {sorted(channels)}.")
        items = [tf.io.encode_png(item, compression=1).numpy() for item in items]
        return from_bytes(listing, items, 1 if channels == {1} else 3, max_pixels, progress)
    return from_bytes(listing, items, 3, max_pixels, progress)


class Budget:
    """Half of the machine's memory, for data sets that are kept there."""

    def __init__(self) -> None:
        total = 16 << 30
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self.limit, self.used = total // 2, 0

    def take(self, count: int) -> None:
        self.used += count
        if self.used > self.limit:
            raise ValueError(
                f"A data set that is no folder of files is kept in memory, in half of it at most. Received: more than "
                f"{self.limit / 1e9:.0f} GB. Write its images out as a folder per class."
            )


def _images(x: np.ndarray[Any, Any], warnings: list[str]) -> np.ndarray[Any, Any]:
    rule = "Images are an array (number, height, width, channels) of 0..255."
    if x.ndim == 3:
        raise ValueError(f"{rule} Received: {x.shape}. If they are grey, add the axis of channels: x[..., None].")
    if x.ndim != 4:
        raise ValueError(f"{rule} Received: {x.shape}.")
    if not x.size:
        raise ValueError(f"{rule} Received: {x.shape}, which holds nothing.")
    if x.shape[1] in (1, 3, 4) and x.shape[-1] > 4:
        raise ValueError(f"{rule} Received: {x.shape}: channels first, it seems. Use np.moveaxis(x, 1, -1).")
    if x.dtype.kind not in "iuf":
        raise ValueError(f"{rule} Received: {x.dtype}.")
    low, high = x.min(), x.max()
    if not np.isfinite([low, high]).all():
        raise ValueError(f"{rule} Received: values that are no numbers (NaN or infinite).")
    if low < 0:
        raise ValueError(
            f"{rule} Received: {low:g} to {high:g}: normalised already, it seems. Give the images as they were; what "
            "the weights want is done with the weights."
        )
    if high > 255:
        raise ValueError(f"{rule} Received: {low:g} to {high:g}. For 16-bit images, use (x // 256).astype('uint8').")
    if x.dtype.kind == "f" and 0 < high <= 1:
        raise ValueError(f"{rule} Received: {low:g} to {high:g}: a range of 0..1, it seems. Use x * 255.")
    if 0 < high < 64:
        warnings.append(
            f"The images' values end at {high:g}, where 0..255 is expected: scale them if 255 is not white."
        )
    rounded = np.round(x).astype("uint8")
    if x.dtype.kind == "f" and not np.array_equal(rounded, x):
        warnings.append("The images' values are rounded to whole numbers.")
    return rounded


def _labels(y: Any, classes: Sequence[str] | None, warnings: list[str]) -> tuple[list[int], tuple[str, ...]]:
    y = np.asarray(y)
    rule = "Labels are an array (number,) of whole numbers from 0, or of names."
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2:
        raise ValueError(f"{rule} Received: {y.shape}. If they are one-hot, use y.argmax(-1).")
    if y.ndim != 1:
        raise ValueError(f"{rule} Received: {y.shape}.")
    if y.dtype.kind in "USO" and all(isinstance(label, str) for label in y.tolist()):
        names = tuple(sorted(set(y.tolist()))) if classes is None else tuple(classes)
        unknown = sorted(set(y.tolist()) - set(names))
        if unknown:
            raise ValueError(f"Each label is one of classes. Received: {listed(unknown)}; classes is {listed(names)}.")
        number = {name: i for i, name in enumerate(names)}
        return [number[name] for name in y.tolist()], names
    if y.dtype.kind not in "iu":
        whole = y.dtype.kind == "f" and np.array_equal(y, np.round(y))
        raise ValueError(f"{rule} Received: {y.dtype}." + (" Use y.astype('int32')." if whole else ""))
    low, high = int(y.min(initial=0)), int(y.max(initial=0))
    if low < 0:
        raise ValueError(f"{rule} Received: {low}. Leave out images without a class, or give them one of their own.")
    if classes is not None and high >= len(classes):
        raise ValueError(
            f"Labels are less than the number of classes, {len(classes)}. Received: {high}. "
            + ("Do they begin at 1? Use y - 1." if y.min() == 1 and high == len(classes) else "Name all classes.")
        )
    if high >= 1_000_000:
        raise ValueError(f"{rule} Received: {high:,}. Count the classes: np.unique(y, return_inverse=True)[1].")
    return [int(label) for label in y], tuple(map(str, range(high + 1) if classes is None else classes))


def _all_occur(listing: Listing) -> None:
    """Refuses a single class, and says which classes never occur."""
    if len(listing.classes) < 2:
        raise ValueError(f"Data has at least two classes. Received: {listed(listing.classes)}.")
    occurring = set(listing.labels)
    dead = [name for i, name in enumerate(listing.classes) if i not in occurring]
    if dead:
        listing.warnings.append(f"No image has one of the classes {listed(dead)}: nothing can be learned of them.")
