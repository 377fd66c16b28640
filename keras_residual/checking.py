"""Check labels and images. Each rule is here once, with the one sentence that states it.

A dataset, `fit`, a classifier and the diagnostics all ask here, so that the same mistake gets the same words.
"""

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
    """Return labels `(N,)`: of a column `(N, 1)` its values, of one-hot rows the number of the class.

    Args:
        labels: Numbers or names, as a source has them; other labels stay as they are, to be refused with a reason.
        known: Whether they are known to be numbers of classes, whatever their dtype: `label_mode="binary"` has floats.
        rank: Dimensions that they should have: 1, or more for a class per pixel or token, which is never one-hot.
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
    """Return True for `(N, classes)` with a single 1 in each row and zeros besides."""
    if labels.ndim != 2 or labels.shape[1] < 2 or labels.dtype.kind not in "buif":
        return False
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(-1) == 1).all())


def require_class_numbers(
    labels: Array, classes: int | None, what: str = "", shape: tuple[int, ...] | None = None, names: bool = False
) -> None:
    """Raise unless labels are class numbers.

    Args:
        labels: What `class_numbers` returns.
        classes: Number of classes; `None` if any number from 0 on is one.
        what: Name of the data, at the beginning of errors.
        shape: Their shape; `None` for `(N,)` of any N.
        names: Whether names would have been accepted, for the error.

    Raises:
        ValueError: For another shape, dtype or range, with what to do.
    """
    kinds = "class numbers or names" if names else "class numbers"
    if labels.ndim != 1 if shape is None else labels.shape != shape:
        wanted = "(N,)" if shape is None else shape
        hint = " These are not one-hot rows; for the likeliest class use labels.argmax(-1)." * (labels.ndim == 2)
        raise _error(what, f"labels must be {kinds} of shape {wanted}; got shape {labels.shape}.{hint}")
    if labels.dtype.kind not in "iu":
        hint = " Use labels.astype('int32')." if labels.dtype.kind == "f" and _whole(labels) else ""
        raise _error(what, f"labels must be {kinds}, whole numbers from 0; got dtype {labels.dtype}.{hint}")
    wrong = np.flatnonzero((labels < 0) if classes is None else (labels < 0) | (labels >= classes))
    if len(wrong):
        values = sorted({int(value) for value in labels.flat[wrong]})
        shown = ", ".join(map(str, values[:5])) + ", ..." * (len(values) > 5)
        limit = "" if classes is None else f" to {classes - 1}, as there are {classes} classes"
        raise _error(
            what,
            f"labels must be from 0{limit or ' on'}; got {shown}, for {len(wrong):,} of {labels.size:,} labels, the "
            f"first at number {wrong[0]:,}.{_range_hint(labels, classes)}",
        )


def _range_hint(labels: Array, classes: int | None) -> str:
    if labels.min() == 1 and labels.max() == classes:
        return " Do they count from 1? Subtract 1."
    return " Leave out images without a class, or give them a class of their own." if labels.min() < 0 else ""


def require_one_label_each(images: int, labels: int, what: str = "") -> None:
    """Raise a ValueError unless there are as many labels as images."""
    if images != labels:
        raise _error(what, f"each image must have one label; got {images:,} images and {labels:,} labels.")


def _whole(values: Array) -> bool:
    return bool(np.isfinite(values).all() and np.array_equal(values, np.round(values)))


# ------------------------------------------------------------------------------------------------------------- images


def require_pixels(images: Array, what: str = "", advice: str = "") -> None:
    """Raise unless the values of images are of 0..255.

    Args:
        images: Images of any shape, at least one.
        what: Name of the data, at the beginning of errors.
        advice: What else may be done about values of another range.

    Raises:
        ValueError: For values that are no finite numbers, or of another range: -1..1, 0..1, 16 bits.
    """
    low, high = require_finite_numbers(images, what)
    rule = f"images must be 0..255; got {low:.6g} to {high:.6g}"
    if low < 0:
        raise _error(
            what,
            f"{rule}: normalised already, it seems. Pass the images as they were; they are normalised as the weights "
            f"need it. For -1..1, use (x + 1) * 127.5.{advice}",
        )
    if high > 255:
        raise _error(what, f"{rule}. For 16-bit images, use (x // 256).astype('uint8').{advice}")
    if images.dtype.kind == "f" and 0 < high < 2 and not (high > 1 and _whole(images)):
        raise _error(what, f"{rule}: a range of 0..1, it seems. Use x * 255.{advice}")


def require_finite_numbers(images: Array, what: str = "") -> tuple[float, float]:
    """Return the least and largest value of images.

    Raises:
        ValueError: For values that are no numbers, NaN or infinite.
    """
    if images.dtype.kind not in "uif":
        hint = " Use x * np.uint8(255)." if images.dtype.kind == "b" else ""
        raise _error(what, f"images must be whole or floating numbers, 0..255; got dtype {images.dtype}.{hint}")
    low, high = float(images.min()), float(images.max())
    if not np.isfinite([low, high]).all():
        rows = images.reshape(len(images), -1)
        bad = sum(not np.isfinite(row).all() for row in rows)
        raise _error(what, f"images must be finite; got NaN or infinity in {bad:,} of {len(images):,} images.")
    return low, high


def channels_first(axis: int = 1) -> str:
    """Return what to do about images whose channels come first."""
    return f" With channels first, as it seems, use np.moveaxis(x, {axis}, -1)."


def _error(what: str, sentence: str) -> ValueError:
    return ValueError(f"{what}: {sentence}" if what else sentence[0].upper() + sentence[1:])
