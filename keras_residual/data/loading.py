"""Load datasets from any supported source, checked and split for training and validation."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from keras_residual.data import arrays, listing, tfds
from keras_residual.data.catalog import Gathered, from_listing
from keras_residual.data.deciding import check_settings, decide
from keras_residual.data.examples import Examples
from keras_residual.data.listing import listed
from keras_residual.data.objects import KINDS, collect
from keras_residual.data.validation import Progress
from keras_residual.io import expand, literal, write_table
from keras_residual.reading.host import MAX_PIXELS
from keras_residual.reading.rules import Reading


class DataError(ValueError):
    """Error for images that cannot be used, raised with `on_error="raise"`.

    Attributes:
        skipped: Name of each such image, with the reason.
    """

    def __init__(self, skipped: Sequence[tuple[str, str]]) -> None:
        self.skipped = tuple(skipped)
        lines = [f"  {literal(name)} {reason}" for name, reason in skipped[:50]]
        if len(skipped) > 50:
            lines.append(f"  and {len(skipped) - 50:,} more")
        super().__init__(
            f"{len(skipped):,} images cannot be used. Repair or remove them, or skip them with "
            'on_error="skip":\n' + "\n".join(lines)
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """A checked and split dataset.

    Attributes:
        train: Training split.
        validation: Validation split, for model selection; empty only if requested.
        test: Test split, for the final evaluation, if the source has one.
        labels: Class names, in the order of their indices.
        skipped: Skipped images, with the reason.
        warnings: Warnings about the data, as sentences to print.
        fingerprint: Hash that changes with the name, content, class or split of any image, and with the class names.
    """

    train: Examples
    validation: Examples
    test: Examples | None
    labels: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    fingerprint: str

    @property
    def reading(self) -> Reading:
        """Return the rules by which the images are read."""
        return self.train.reading

    def write_skipped(self, path: str | os.PathLike[str]) -> None:
        """Write the skipped images to a CSV file with the columns path and reason."""
        write_table(Path(path), ("path", "reason"), self.skipped)

    def __str__(self) -> str:
        text = f"{len(self.labels)} classes, {len(self.train):,} images to train on"
        text += f", {len(self.validation):,} to validate with" + (
            f", {len(self.test):,} to test with" if self.test else ""
        )
        return text + (f"; {len(self.skipped):,} skipped" if self.skipped else "")


def load(
    source: Any,
    *,
    validation: Any = 0.2,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    partial: bool = False,
    on_error: Literal["skip", "raise"] = "skip",
    cache: str | os.PathLike[str] | bool = True,
    max_pixels: int = MAX_PIXELS,
    data_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    background: Any = "white",
    value_range: Any = None,
    channels: int | Literal["auto"] = "auto",
    reading: Reading | None = None,
) -> Data:
    """Load a dataset and check every image by decoding it once with the decoder used in training.

    Args:
        source: A folder with one subfolder per class, or with `train/`, `val/` (`valid/`, `validation/`) and optionally
            `test/`, each with one subfolder per class; a table (`.csv`, `.tsv`, `.txt`, `.parquet`, or a DataFrame)
            with the columns path, label and optionally split (train, val or test); `"tfds:NAME"` or
            `"tfds:NAME:CONFIG"`; a directory prepared by TFDS; `(images, labels)`, with the images as an array
            `(N, height, width, channels)` of 0..255, or a list of arrays, PIL images, encoded images or paths; a
            finite `tf.data.Dataset`, `keras.utils.PyDataset`, data loader, generator or list of `(image, label)`, one
            by one or in batches. `tf.data`, `PyDataset`, loaders and generators may shuffle: order, split and
            fingerprint depend on the content alone. Their `class_names` are used.
        validation: Fraction of the images to use for validation, 0 <= validation < 1, if the source does not define a
            validation split; the same fraction of each class. Or a separate source of any supported kind.
        seed: Seed of the validation split, which depends only on the image names and the seed.
        classes: Names of the classes to use, in the order of their indices; by default all classes, sorted.
        partial: Whether the dataset is only for evaluation. Some of `classes` may then have no images, and any other
            class is an error. A source passed as `validation` is always treated this way.
        on_error: `"skip"` skips images that cannot be used and lists them in `skipped`; `"raise"` raises an error.
        cache: Cache of scan results, so that unchanged files are not decoded again: a file, `True` for a file in the
            user's cache directory, or `False` for no cache.
        max_pixels: Larger images are rejected before decoding.
        data_dir: Directory in which TFDS stores its datasets, for `"tfds:..."`.
        progress: Called periodically with the number of images checked and the total.
        background: Color on which transparent images are composited: `"white"`, `"black"`, `"R,G,B"` or three numbers
            of 0..255; `"drop"` drops the transparency and shows the colors below it.
        value_range: Sample values that mean black and white, for images with more than 8 bits: `(LOW, HIGH)` or
            `"LOW,HIGH"`, `"auto"` for the percentiles 0.1 and 99.9 of the training images, or `None` for the range of
            the sample type. A range applies to every image of the dataset.
        channels: Number of channels; `"auto"` reads grayscale and RGB files as RGB, and raises an error for others.
        reading: Rules of an earlier dataset or run, used instead of the last three arguments.

    Returns:
        The dataset. Print its `warnings`.

    Raises:
        ValueError: If the source is of no supported kind, or the data cannot be used for training: a class without
            images, only one class, classes in validation that training lacks, labels out of range.
        DataError: With `on_error="raise"`, if any images cannot be used; a `ValueError` that lists them.
        FileNotFoundError: If the folder or file does not exist.
    """
    if on_error not in ("skip", "raise"):
        raise ValueError(f'on_error must be "skip" or "raise"; got {on_error!r}.')
    if classes is not None and (isinstance(classes, str) or len(set(classes)) < max(2, len(classes))):
        raise ValueError(f"classes must name at least two classes, each once; got {classes!r}.")
    fraction = validation if isinstance(validation, (int, float)) and not isinstance(validation, bool) else None
    if fraction is not None and not 0 <= fraction < 1:
        raise ValueError(
            f"validation must be a fraction of the images, 0 <= validation < 1, or a source; got {validation}."
        )
    if partial and classes is None:
        raise ValueError("classes must name the classes if partial=True; got classes=None.")
    check_settings(background, value_range, channels)
    given = _gather(source, classes, partial, cache, max_pixels, data_dir, progress)
    _skip_other_channels(given, channels if reading is None else reading.channels)
    warnings, skipped = list(given.warnings), list(given.skipped)
    other: Gathered | None = None
    if fraction is None:
        other = _gather(validation, given.classes, True, cache, max_pixels, data_dir, progress)
        _skip_other_channels(other, channels if reading is None else reading.channels)
        warnings += [f"In validation: {warning}" for warning in [*other.warnings, *_absent(other)]]
        skipped += other.skipped
    if on_error == "raise" and skipped:
        raise DataError(skipped)
    parts = _split(given, 0.0 if fraction is None else fraction, seed, warnings)
    if not (any(parts.values()) if partial else parts["train"]):
        purpose = "Evaluation" if partial else "Training"
        raise ValueError(f"{purpose} data must contain at least one usable image; got none.")
    if reading is None:
        before = len(given.warnings)
        reading = decide(given, parts["train"], background, value_range, channels)
        warnings += given.warnings[before:]
    for gathered in (given,) if other is None else (given, other):
        gathered.store.read_as(reading)
    if other is None:
        validating = _examples(given, parts["validation"])
    else:
        if parts["validation"]:
            raise ValueError(
                f"Validation images must come from a single source; got validation='{literal(str(validation))}', but "
                f"the training source already contains {len(parts['validation'])} of them. Remove one of the two."
            )
        validating = _examples(other, [i for i, split in enumerate(other.splits) if split in (None, "validation")])
    _warn_of_duplicates(given, parts, other, warnings)
    _check_classes(given, parts["train"], partial, warnings)
    return Data(
        _examples(given, parts["train"]),
        validating,
        _examples(given, parts["test"]) if parts["test"] else None,
        given.classes,
        tuple(skipped),
        tuple(warnings),
        _fingerprint(given, parts, other),
    )


def existing(source: str | os.PathLike[str]) -> str:
    """Return the path of a dataset, with `~` and variables expanded; `tfds:NAME` is returned unchanged.

    Raises:
        FileNotFoundError: If there is no such file or directory.
    """
    path = os.fsdecode(os.fspath(source))
    if path.startswith("tfds:"):
        return path
    path = os.fspath(expand(path))
    if not os.path.exists(path):
        raise FileNotFoundError(f"No such folder or manifest: '{literal(path)}'. Check the path.")
    return path


def _gather(
    source: Any,
    classes: Sequence[str] | None,
    partial: bool,
    cache: str | os.PathLike[str] | bool,
    max_pixels: int,
    data_dir: str | os.PathLike[str] | None,
    progress: Progress | None,
) -> Gathered:
    found = collect(source)
    if found is not None:
        return arrays.from_collected(found, classes, partial, cache, max_pixels, progress)
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"Data must come from {KINDS}; got an object of type {type(source).__name__}.")
    path = existing(source)
    if path.startswith("tfds:"):
        return tfds.from_tfds(path, classes, max_pixels, progress, data_dir, partial)
    if os.path.isdir(path):
        found = tfds.directory(path)
        if found:
            return tfds.from_tfds(found, classes, max_pixels, progress, None, partial)
        return from_listing(listing.folder(path, classes, partial), path, cache, max_pixels, progress)
    listing.check_file(path)
    return from_listing(listing.manifest(path, classes, partial), path, cache, max_pixels, progress)


def _skip_other_channels(given: Gathered, channels: int | str) -> None:
    """Skip images that cannot be read with a number of channels that the user has chosen."""
    if channels == "auto" or not given.records:
        return
    keep = []
    for i, record in enumerate(given.records):
        stored = record.channels + ("transparent" in record.notes)
        if record.channels == channels or stored == channels or {record.channels, channels} == {1, 3}:
            keep.append(i)
        else:
            given.skipped.append((given.names[i], f"has {record.channels} channels, but channels={channels}"))
    if not keep:
        found = sorted({record.channels for record in given.records})
        raise ValueError(
            f"channels must be a number of channels that the images have, {listed(list(map(str, found)))}; got "
            f"{channels}."
        )
    if len(keep) < len(given.records):
        given.select(keep)


def _examples(given: Gathered, rows: list[int]) -> Examples:
    labels = np.array([given.labels[i] for i in rows], "int32")
    return Examples(given.store, np.array(rows, "int64"), labels, tuple(given.names[i] for i in rows))


def _split(given: Gathered, fraction: float, seed: int, warnings: list[str]) -> dict[str, list[int]]:
    """Assign images to splits, as the source does or else the same fraction of each class to validation.

    The images of a class are ordered by a hash of the seed and their name (for streams, which have no names, their
    content), and the first ones become the validation split. All copies of an image go to the training split, because
    validation must not contain training images.
    """
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    undecided: list[int] = []
    for i, split in enumerate(given.splits):
        (undecided if split is None else parts[split]).append(i)
    if not undecided and not parts["validation"] and fraction:  # train/ and test/ only
        undecided, parts["train"] = parts["train"], []
    copies = collections.Counter(given.digests)
    by_class: dict[int, list[int]] = collections.defaultdict(list)
    for i in undecided:
        by_class[given.labels[i]].append(i)
    too_small = []
    for label, members in sorted(by_class.items()):
        single = [i for i in members if copies[given.digests[i]] == 1]
        single.sort(key=lambda i: hashlib.blake2b(f"{seed}/".encode() + os.fsencode(given.keys[i])).digest())
        count = min(round(len(members) * fraction), len(single), len(members) - 1)
        if fraction and not count and single and len(members) > 1:
            count = 1
        if fraction and not count:
            too_small.append(given.classes[label])
        validating = set(single[:count])
        parts["validation"] += [i for i in members if i in validating]
        parts["train"] += [i for i in members if i not in validating]
    if too_small:
        warnings.append(
            f"The classes {listed(too_small)} have too few images to validate with; all of them are used for training."
        )
    return {name: sorted(rows) for name, rows in parts.items()}


def _warn_of_duplicates(
    given: Gathered, parts: dict[str, list[int]], other: Gathered | None, warnings: list[str]
) -> None:
    """Append warnings about images that occur in two splits, in two classes, or more than once in one class."""
    places: dict[str, list[tuple[str, int, str]]] = collections.defaultdict(list)
    for split, rows in parts.items():
        for i in rows:
            places[given.digests[i]].append((split, given.labels[i], given.names[i]))
    if other is not None:
        for digest, label, name in zip(other.digests, other.labels, other.names, strict=True):
            places[digest].append(("validation", label, name))
    several = [found for found in places.values() if len(found) > 1]
    names = [" = ".join(literal(name) for *_, name in found[:3]) for found in several]
    for where, test in (
        (
            "in two splits, so evaluation results will be too good",
            lambda found: len({split for split, *_ in found}) > 1,
        ),
        ("in two classes", lambda found: len({label for _, label, _ in found}) > 1),
        (
            "more than once in one class; every copy is used",
            lambda found: len({(split, label) for split, label, _ in found}) == 1,
        ),
    ):
        hits = [name for name, found in zip(names, several, strict=True) if test(found)]
        if hits:
            warnings.append(f"{len(hits):,} image{'s are' if len(hits) > 1 else ' is'} {where} ({listed(hits, 3)}).")


def _absent(given: Gathered) -> list[str]:
    occurring = set(given.labels)
    found = [name for i, name in enumerate(given.classes) if i not in occurring]
    return [f"There are no images of the classes {listed(found)}, so they are not evaluated."] if found else []


def _check_classes(given: Gathered, rows: list[int], partial: bool, warnings: list[str]) -> None:
    if partial:
        warnings += _absent(given)
        return
    counts = np.bincount([given.labels[i] for i in rows], minlength=len(given.classes))
    empty = [name for name, count in zip(given.classes, counts, strict=True) if not count]
    if empty and not any("cannot be learned" in warning for warning in warnings):
        raise ValueError(
            f"Every class must have training images; got none for {listed(empty)}. Add some to the training split, or "
            "select the classes to use with classes=[...]."
        )


def _fingerprint(given: Gathered, parts: dict[str, list[int]], other: Gathered | None) -> str:
    """Return a hash of the images, classes and splits, independent of folder location and file times."""
    state = hashlib.blake2b(digest_size=16)
    state.update(json.dumps(given.classes).encode())
    groups = [(split, given, rows) for split, rows in parts.items()]
    if other is not None:
        groups.append(("validation of its own", other, list(range(len(other.names)))))
    for split, source, rows in groups:
        state.update(split.encode())
        for i in rows:
            state.update(json.dumps([source.keys[i], source.labels[i], source.digests[i]]).encode())
    return state.hexdigest()
