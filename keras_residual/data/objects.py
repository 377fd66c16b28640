"""Collect images and labels from Python objects: arrays, lists, tables, `tf.data`, generators."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_residual.checking import class_numbers, is_one_hot, require_one_label_each

__all__ = ["KINDS", "Budget", "Collected", "collect", "kind_of"]

KINDS = (
    "a folder per class; a table with the columns path and label (.csv, .tsv, .txt, .parquet or a DataFrame); "
    "'tfds:NAME'; (images, labels) as arrays or lists of arrays, PIL images or paths; or a tf.data.Dataset, "
    "keras.utils.PyDataset, data loader, generator or list of (image, label)"
)
LONGEST = 1_000_000  # examples of a source of unknown length
REPEATING = 1000  # examples after which a source of unknown length is checked for repetitions


@dataclasses.dataclass
class Collected:
    """Content of a source.

    Attributes:
        images: An array `(N, ...)`, or a list of arrays, encoded images (bytes), PIL images or paths.
        labels: Labels in the form of the source, one per image: `(N,)`, `(N, 1)` or one-hot `(N, classes)`.
        classes: Class names, if the source has them and its labels are class indices.
        names: Name of each image, if the source has them.
        splits: Split of each image, if the source is a table with a split column.
        ordered: Whether the images are in the order of the source. If not, the order depends on the content alone,
            because a source that shuffles yields the same examples in a different order each time.
    """

    images: Any
    labels: Any
    classes: tuple[str, ...] | None = None
    names: list[str] | None = None
    splits: list[Any] | None = None
    ordered: bool = True


class Budget:
    """Memory limit for datasets that are kept in memory, as a fraction of the available memory."""

    def __init__(self, part: float = 0.5) -> None:
        self.limit, self.used = int(_memory() * part), 0

    def take(self, count: int) -> None:
        self.used += count
        if self.used > self.limit:
            raise ValueError(
                f"A dataset that is not a folder of files is kept in memory and must fit into {self.limit / 1e9:.1f} "
                "GB on this machine; got a larger or an infinite one. Write its images to a folder per class, or "
                "remove .repeat() if it repeats."
            )


def _memory() -> int:
    """Return the memory limit of this process in bytes; a container may have less memory than its machine."""
    total = 16 << 30
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(place) as file:
                limit = file.read().strip()
        except OSError:
            continue
        total = min(total, int(limit)) if limit.isdigit() else total
    return total


# ------------------------------------------------------------------------------------------------------- collecting


def collect(source: Any, what: str = "The dataset") -> Collected | None:
    """Collect a source that is a Python object.

    Args:
        source: See `KINDS`.
        what: Name of the source in error messages.

    Returns:
        Images and labels; `None` for a path or an object of an unsupported type.

    Raises:
        ValueError: If the source is infinite, or yields anything other than images with labels.
    """
    if source is None or isinstance(source, (str, bytes, os.PathLike, int, float)):
        return None
    if _is_table(source):
        return _from_table(source, what)
    if isinstance(source, Mapping):
        return Collected(*_pair_of(source, what)) if len(source) > 1 else None  # {"image": images, "label": labels}
    if isinstance(source, (tuple, list)):
        if _is_list_of_pairs(source):
            images, labels = zip(*(_pair_of(element, what) for element in source), strict=True)
            return Collected(_stacked(images), labels)
        return Collected(_images(source[0]), source[1]) if len(source) == 2 else None
    if isinstance(source, (np.ndarray, tf.Tensor)) or hasattr(source, "__array__"):
        raise ValueError(f"{what} must have labels; got only images. Pass (images, labels), both as arrays.")
    if isinstance(source, (Iterable, tf.data.Dataset, keras.utils.PyDataset)) or hasattr(source, "__getitem__"):
        return _from_stream(source, what)
    return None


def kind_of(images: Any) -> str:
    """Return the form of images: "array", "arrays" of different sizes, "encoded", "pictures" (PIL) or "paths"."""
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OSU":
        return "array"
    first = images[0] if len(images) else None
    if isinstance(first, (str, os.PathLike)):
        return "paths"
    if isinstance(first, bytes):
        return "encoded"
    if _is_picture(first):
        return "pictures"
    return "array" if len({np.shape(image) for image in images}) <= 1 else "arrays"


def _images(images: Any) -> Any:
    """Return lists, tuples and arrays unchanged, and any other container (tensor, table column) as an array."""
    return images if isinstance(images, (list, tuple, np.ndarray)) else np.asarray(images)


def _is_picture(value: Any) -> bool:
    return hasattr(value, "mode") and hasattr(value, "convert") and hasattr(value, "getbands")


def _is_table(source: Any) -> bool:
    """Return True for data frames, such as those of pandas and Polars."""
    return hasattr(source, "columns") and hasattr(source, "shape") and hasattr(source, "__getitem__")


def _from_table(source: Any, what: str) -> Collected:
    names = {str(name).strip().lower(): name for name in source.columns}
    if not {"path", "label"} <= set(names):
        raise ValueError(
            f"{what}: a table must have the columns path and label, and may have split; got the columns "
            f"{', '.join(map(str, source.columns))}. Rename them: table.rename(columns={{...}})."
        )
    columns = {key: list(source[names[key]]) for key in ("path", "label", "split") if key in names}
    return Collected(columns["path"], columns["label"], splits=columns.get("split"))


def _is_list_of_pairs(source: Sequence[Any]) -> bool:
    """Return True for `[(image, label), ...]`, and False for `(images, labels)`."""
    if not isinstance(source, list) or not source:
        return False
    return all(
        isinstance(element, Mapping)
        or (isinstance(element, (tuple, list)) and len(element) == 2 and np.ndim(_value(element[1])) == 0)
        for element in source
    )


# ------------------------------------------------------------------------------------------------------------ streams


def _from_stream(source: Any, what: str) -> Collected:
    """Read a source of examples or batches once, and sort it into an order that depends on the content alone."""
    length = _length(source, what)
    images: list[Any] = []
    labels: list[Any] = []
    digests: list[bytes] = []
    different: set[bytes] = set()
    numbers, files = Budget(0.25), Budget()  # arrays are copied once more when they are stacked
    for element in _elements(source):
        for image, label in _examples(*_pair_of(element, what)):
            encoded = isinstance(image, (bytes, str, os.PathLike))
            (files if encoded else numbers).take(200 + (len(os.fspath(image)) if encoded else _bytes_of(image)))
            images.append(image)
            labels.append(label)
            digests.append(_digest(image))
            different.add(digests[-1])
            if length is None:
                _check_end(len(images), len(different), source, what)
    if not images:
        raise ValueError(f"{what} must have images; got a {_name(source)} that yields nothing.")
    order = sorted(range(len(images)), key=lambda i: (digests[i], _digest(np.asarray(labels[i]))))
    names = _names(source, len(images))
    labels = [labels[i] for i in order]
    classes = _class_names(source)
    return Collected(
        _stacked([images[i] for i in order]),
        class_numbers(np.asarray(labels), bool(classes)),
        classes,
        None if names is None else [names[i] for i in order],
        ordered=False,
    )


def _length(source: Any, what: str) -> int | None:
    """Return the number of elements of a stream, or `None` if it is unknown.

    Raises:
        ValueError: If the stream is known to be infinite.
    """
    if isinstance(source, tf.data.Dataset):
        length = int(source.cardinality())
        endless = length == tf.data.INFINITE_CARDINALITY
        length = length if length >= 0 else None
    elif isinstance(source, keras.utils.PyDataset):
        length = _counted(lambda: source.num_batches)
        endless = length is None
    else:
        length, endless = _counted(lambda: len(source)), False
    if endless:
        raise ValueError(
            f"{what} must be finite; got an infinite {_name(source)}. Remove .repeat(), or limit it with .take(n)."
        )
    return length


def _counted(count: Callable[[], int | None]) -> int | None:
    try:
        return count()
    except (TypeError, NotImplementedError):  # a generator, or a loader or PyDataset without a length
        return None


def _check_end(count: int, different: int, source: Any, what: str) -> None:
    advice = (
        "Remove .repeat(); if it is finite, set its length: data.apply(tf.data.experimental.assert_cardinality(n))."
        if isinstance(source, tf.data.Dataset)
        else "If it is finite, pass a list: list(itertools.islice(source, n))."
    )
    if count >= REPEATING and count > 4 * different:
        raise ValueError(
            f"{what} must be finite; got a {_name(source)} of unknown length that repeats itself: only {different:,} "
            f"of its first {count:,} examples are different. {advice}"
        )
    if count > LONGEST:
        raise ValueError(
            f"{what} must be finite; got a {_name(source)} of unknown length with more than {LONGEST:,} examples. "
            f"{advice}"
        )


def _elements(source: Any) -> Iterator[Any]:
    if isinstance(source, keras.utils.PyDataset):  # iterating over a PyDataset may never end
        return (source[i] for i in range(source.num_batches or 0))
    return iter(source)


def _pair_of(element: Any, what: str) -> tuple[Any, Any]:
    """Return the image and label, or the batch of them, in one element of a source.

    Raises:
        ValueError: If the element has any other form.
    """
    if isinstance(element, Mapping):
        image, label = _keys_of(element, what)
        return _value(element[image]), _value(element[label])
    if isinstance(element, (tuple, list)) and len(element) == 2:
        image, label = element
        if isinstance(image, Mapping) and len(image) == 1:  # one named input
            (image,) = image.values()
        if not isinstance(image, (Mapping, tuple)) and not isinstance(label, (Mapping, tuple)):
            return _value(image), _value(label)
    if isinstance(element, (tuple, list)):
        received = f"{len(element)} values: {', '.join(map(_shape, element))}"
        hint = "map(lambda image, label, *others: (image, label))" if len(element) > 2 else "map(...)"
    else:
        received, hint = (
            f"only {_shape(element)}",
            'label_mode="int" in image_dataset_from_directory, or zip the images with labels',
        )
    raise ValueError(f"{what} must yield pairs (image, label); got {received}. Use {hint}.")


def _keys_of(element: Mapping[str, Any], what: str) -> tuple[str, str]:
    """Return the keys of the image and the label in a dictionary of features."""
    standard = [
        next((key for key in element if str(key).lower() in (name, f"{name}s")), None) for name in ("image", "label")
    ]
    if standard[0] is not None and standard[1] is not None:
        return standard[0], standard[1]
    values = {key: _value(value) for key, value in element.items()}
    images = [key for key, value in values.items() if _is_image(value)]
    labels = [key for key, value in values.items() if key not in images and np.ndim(value) <= 2]
    if len(images) == 1 and len(labels) == 1:
        return images[0], labels[0]
    features = ", ".join(f"{key!r} {_shape(value)}" for key, value in element.items())
    raise ValueError(
        f"{what} must yield pairs (image, label); got a dictionary with {features}. Select the two to use: "
        "map(lambda features: (features['...'], features['...']))."
    )


def _is_image(value: Any) -> bool:
    return _is_picture(value) or isinstance(value, (bytes, tf.RaggedTensor)) or np.ndim(value) >= 3


def _examples(image: Any, label: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the examples of an element, which is a single example or a batch."""
    if isinstance(image, tf.RaggedTensor):
        if image.shape.rank == 4:
            image = [row.to_tensor().numpy() if isinstance(row, tf.RaggedTensor) else row.numpy() for row in image]
        else:
            image = image.to_tensor().numpy()
    if isinstance(label, tf.RaggedTensor):
        label = label.to_tensor().numpy()
    if not _is_batch(image, label):
        yield image, label
        return
    require_one_label_each(len(image), len(label))
    yield from zip(image, label, strict=True)


def _is_batch(image: Any, label: Any) -> bool:
    if np.ndim(label) == 0 or _is_picture(image) or isinstance(image, (bytes, str, os.PathLike)):
        return False
    if isinstance(image, list) or np.ndim(image) >= 4 or np.ndim(label) >= 2:
        return True
    # Distinguish one image with a one-hot label from a batch of vectors (strings, signals).
    one_image = np.ndim(image) == 3 and image.shape[-1] in (1, 3, 4) and is_one_hot(np.asarray(label)[None])
    return len(image) == len(label) and not one_image


def _value(value: Any) -> Any:
    """Convert a tensor of any library to NumPy; ragged tensors, text, PIL images and lists of them are unchanged."""
    if isinstance(value, (bytes, str, os.PathLike, tf.RaggedTensor, np.ndarray)) or _is_picture(value):
        return value
    if isinstance(value, list) and value and (_is_picture(value[0]) or len({np.shape(one) for one in value}) > 1):
        return value
    if hasattr(value, "detach"):  # a PyTorch tensor, which may be on a GPU or require a gradient
        value = value.detach().cpu()  # pyright: ignore[reportAttributeAccessIssue]
    array = np.asarray(value)
    return array.item() if array.ndim == 0 and array.dtype.kind in "OSU" else array


def _shape(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{getattr(value, 'dtype', '')} {tuple(shape)}".replace("'", "")


def _bytes_of(image: Any) -> int:
    return 4 * image.width * image.height if _is_picture(image) else np.asarray(image).nbytes


def _digest(value: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(value, (str, os.PathLike)):
        value = os.fsencode(value)
    elif _is_picture(value):
        digest.update(f"{value.mode} {value.size}".encode())
        value = value.tobytes()
    elif not isinstance(value, bytes):
        value = np.ascontiguousarray(value)
        digest.update(f"{value.dtype} {value.shape}".encode())
        value = value.tobytes()
    digest.update(value)
    return digest.digest()


def _stacked(images: Sequence[Any]) -> Any:
    """Stack images into one array if all are arrays of the same shape; return a list otherwise."""
    if isinstance(images[0], np.ndarray) and len({image.shape for image in images}) == 1:
        return np.stack(images)
    return list(images)


def _name(source: Any) -> str:
    return "tf.data.Dataset" if isinstance(source, tf.data.Dataset) else type(source).__name__


def _class_names(source: Any) -> tuple[str, ...] | None:
    """Return the class names of a source, such as the datasets of Keras and torchvision, or `None`."""
    indices = getattr(source, "class_indices", None)
    if isinstance(indices, Mapping):
        return tuple(sorted(indices, key=lambda name: indices[name]))
    for attribute in ("class_names", "classes"):
        names = getattr(source, attribute, None)
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def _names(source: Any, count: int) -> list[str] | None:
    """Return the image names in the order in which a source yields them, or `None` if that order is random."""
    stages = [source] if hasattr(source, "_inputs") else []
    for stage in stages:
        stages += stage._inputs()
    if any("shuffle" in type(stage).__name__.lower() for stage in stages):
        return None
    paths = getattr(source, "file_paths", None)  # of image_dataset_from_directory
    if stages and paths is not None and len(paths) == count:
        return [os.fspath(path) for path in paths]
    return [str(number) for number in range(count)]
