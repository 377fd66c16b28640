"""Checks of labels and images, shared by datasets, `fit`, classifiers and diagnostics for consistent errors."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = [
    "channels_first",
    "class_numbers",
    "is_one_hot",
    "require_class_numbers",
    "require_finite_numbers",
    "require_one_label_each",
    "require_pixels",
]

Array = np.ndarray[Any, Any]


# ------------------------------------------------------------------------------------------------------------- labels


def class_numbers(labels: Any, known: bool = False, rank: int = 1) -> Array:
    """Convert labels to class numbers or names `(N,)`: squeeze a column `(N, 1)`, and take the argmax of one-hot rows.

    Args:
        labels: Class numbers or names; labels of any other kind are returned unchanged, to be rejected later.
        known: True if the labels are class numbers of any dtype; `label_mode="binary"`, for example, yields floats.
        rank: Expected number of dimensions: 1, or more for one class per pixel or token, which is never one-hot.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind == "S" or (labels.dtype.kind == "O" and any(isinstance(x, bytes) for x in labels.flat)):
        texts = [x.decode("utf-8", "surrogateescape") if isinstance(x, bytes) else x for x in labels.flat]
        labels = np.array(texts).reshape(labels.shape)
    if labels.ndim == rank + 1 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    if rank == 1 and is_one_hot(labels):
        return labels.argmax(-1)
    return labels.astype("int64") if known and labels.dtype.kind in "bf" and _whole(labels) else labels


def is_one_hot(labels: Array) -> bool:
    """Return True if the labels have shape `(N, classes)` with a single 1 and otherwise zeros in each row."""
    if labels.ndim != 2 or labels.shape[1] < 2 or labels.dtype.kind not in "buif":
        return False
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(-1) == 1).all())


def require_class_numbers(
    labels: Array, classes: int | None, what: str = "", shape: tuple[int, ...] | None = None, names: bool = False
) -> None:
    """Check that labels are class numbers.

    Args:
        labels: Labels as returned by `class_numbers`.
        classes: Number of classes; `None` to allow any number from 0 up.
        what: Name of the data, put at the beginning of error messages.
        shape: Required shape; `None` for `(N,)` with any N.
        names: True if class names are accepted as well; used in the error message only.

    Raises:
        ValueError: If the shape, dtype or range is wrong; the message says how to fix it.
    """
    kinds = "class numbers or names" if names else "class numbers"
    if labels.ndim != 1 if shape is None else labels.shape != shape:
        wanted = "(N,)" if shape is None else shape
        hint = " The rows are not one-hot; use labels.argmax(-1) to take the most probable class." * (labels.ndim == 2)
        raise _error(what, f"labels must be {kinds} of shape {wanted}; got shape {labels.shape}.{hint}")
    if labels.dtype.kind not in "iu":
        hint = " Use labels.astype('int32')." if labels.dtype.kind == "f" and _whole(labels) else ""
        raise _error(what, f"labels must be {kinds}, integers from 0; got dtype {labels.dtype}.{hint}")
    wrong = np.flatnonzero((labels < 0) if classes is None else (labels < 0) | (labels >= classes))
    if len(wrong):
        values = sorted({int(value) for value in labels.flat[wrong]})
        shown = ", ".join(map(str, values[:5])) + ", ..." * (len(values) > 5)
        rule = "0 or greater" if classes is None else f"from 0 to {classes - 1}, as there are {classes} classes"
        raise _error(
            what,
            f"labels must be {rule}; got {shown}, for {len(wrong):,} of {labels.size:,} labels, the first at index "
            f"{wrong[0]:,}.{_range_hint(labels, classes)}",
        )


def _range_hint(labels: Array, classes: int | None) -> str:
    if labels.min() == 1 and labels.max() == classes:
        return " If the labels count from 1, subtract 1."
    return " Remove images without a class, or assign them to a separate class." if labels.min() < 0 else ""


def require_one_label_each(images: int, labels: int, what: str = "") -> None:
    """Check that there are as many labels as images; raise a ValueError otherwise."""
    if images != labels:
        raise _error(what, f"each image must have one label; got {images:,} images and {labels:,} labels.")


def _whole(values: Array) -> bool:
    return bool(np.isfinite(values).all() and np.array_equal(values, np.round(values)))


# ------------------------------------------------------------------------------------------------------------- images


def require_pixels(images: Array, what: str = "", advice: str = "") -> None:
    """Check that image values range from 0 to 255.

    Args:
        images: Images of any shape, at least one.
        what: Name of the data, put at the beginning of error messages.
        advice: Additional advice, appended to errors about the range.

    Raises:
        ValueError: If values are not finite numbers, or their range looks like -1 to 1, 0 to 1 or 16 bits.
    """
    low, high = require_finite_numbers(images, what)
    rule = f"images must have values in 0..255; got {low:.6g} to {high:.6g}"
    if low < 0:
        raise _error(
            what,
            f"{rule}. They seem to be normalised already. Pass the original images; they are normalised to match the "
            f"weights. For the range -1..1, use (x + 1) * 127.5.{advice}",
        )
    if high > 255:
        raise _error(what, f"{rule}. For 16-bit images, use (x // 256).astype('uint8').{advice}")
    if images.dtype.kind == "f" and 0 < high < 2 and not (high > 1 and _whole(images)):
        raise _error(what, f"{rule}. Their range seems to be 0..1. Use x * 255.{advice}")


def require_finite_numbers(images: Array, what: str = "") -> tuple[float, float]:
    """Check that image values are finite numbers, and return the smallest and the largest.

    Raises:
        ValueError: If the dtype is not numeric, or a value is NaN or infinite.
    """
    if images.dtype.kind not in "uif":
        hint = " Use x * np.uint8(255)." if images.dtype.kind == "b" else ""
        raise _error(what, f"images must be integers or floats in 0..255; got dtype {images.dtype}.{hint}")
    low, high = float(images.min()), float(images.max())
    if not np.isfinite([low, high]).all():
        rows = images.reshape(len(images), -1)
        bad = sum(not np.isfinite(row).all() for row in rows)
        raise _error(what, f"images must be finite; got NaN or infinity in {bad:,} of {len(images):,} images.")
    return low, high


def channels_first(axis: int = 1) -> str:
    """Return the hint for images that seem to have channels first."""
    return f" If they are channels first, use np.moveaxis(x, {axis}, -1)."


def _error(what: str, sentence: str) -> ValueError:
    return ValueError(f"{what}: {sentence}" if what else sentence[0].upper() + sentence[1:])
