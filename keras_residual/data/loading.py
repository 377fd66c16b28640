"""`load`: any source becomes checked examples to train on and to validate with."""

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
from keras_residual.data.examples import Examples
from keras_residual.data.listing import listed
from keras_residual.data.objects import KINDS, collect
from keras_residual.data.validation import Progress
from keras_residual.io import literal, write_table
from keras_residual.reading.host import MAX_PIXELS


class DataError(ValueError):
    """Images that cannot be used, where `on_error="raise"` asks for an error.

    Attributes:
        skipped: Each of them, with the reason.
    """

    def __init__(self, skipped: Sequence[tuple[str, str]]) -> None:
        self.skipped = tuple(skipped)
        lines = [f"  {literal(name)} {reason}" for name, reason in skipped[:50]]
        if len(skipped) > 50:
            lines.append(f"  and {len(skipped) - 50:,} more")
        super().__init__(
            f"{len(skipped):,} images cannot be used. Mend or remove them, or leave them out with "
            'on_error="skip":\n' + "\n".join(lines)
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """A data set, checked and split.

    Attributes:
        train: What to train on.
        validation: What to choose by; may be empty, if that was asked for.
        test: What is held out for the end, if the source has such a part.
        labels: Names of the classes, in the order of their numbers.
        skipped: Images that are left out, with the reason.
        warnings: What is odd about the data, in plain words.
        fingerprint: Changes with any file's name, content, class or split, and with the names of the classes.
    """

    train: Examples
    validation: Examples
    test: Examples | None
    labels: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    fingerprint: str

    def write_skipped(self, path: str | os.PathLike[str]) -> None:
        """Writes what is left out as a CSV table with the columns path and reason."""
        write_table(Path(path), ("path", "reason"), self.skipped)

    def __str__(self) -> str:
        words = f"{len(self.labels)} classes, {len(self.train):,} images to train on"
        words += f", {len(self.validation):,} to validate with" + (
            f", {len(self.test):,} to test with" if self.test else ""
        )
        return words + (f"; {len(self.skipped):,} left out" if self.skipped else "")


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
) -> Data:
    """Loads a data set; every image is decoded once, by the decoder that training uses, before anything else.

    Args:
        source: A folder with a folder per class, or with `train/` and `val/` (`valid/`, `validation/`) and perhaps
            `test/`, which have a folder per class each; a table (`.csv`, `.tsv`, `.txt`, `.parquet`, or a DataFrame)
            with the columns path, label and perhaps split (train, val or test); `"tfds:NAME"` or `"tfds:NAME:CONFIG"`;
            a directory prepared by TFDS; `(images, labels)`, images as an array `(N, height, width, channels)` of
            0..255, or a list of arrays, PIL images, encoded images or paths; a finite `tf.data.Dataset`,
            `keras.utils.PyDataset`, data loader, generator or list of `(image, label)`, one by one or in batches.
            `tf.data`, `PyDataset`, loaders and generators may shuffle: the order is a function of the content alone,
            and so are split and fingerprint. Their `class_names` are used.
        validation: Part of the images, 0 <= validation < 1, that validates, where the source does not say which; the
            same part of each class. Or a source of its own, of any kind.
        seed: Which images validate: a function of their names and the seed.
        classes: Names of the classes that count, in the order of their numbers; all, sorted, by default.
        partial: Whether this is a set to measure with: some of `classes` may be without images, and others are an
            error. So it always is for a source of `validation`.
        on_error: `"skip"` leaves out images that cannot be used and lists them in `skipped`; `"raise"` raises.
        cache: Where verdicts on files are kept, so that those that did not change are not looked at again: a file;
            `True` for one in the user's cache directory, `False` for none.
        max_pixels: Larger images are refused before they are decoded.
        data_dir: Where TFDS keeps its data sets, for `"tfds:..."`.
        progress: Called now and then with the number of images looked at and of all.

    Returns:
        The data set. Print its `warnings`.

    Raises:
        ValueError: If the source is not of these kinds, or something about it makes training pointless: a class
            without images, only one class, classes in validation that training lacks, labels out of range.
        DataError: A `ValueError` that lists the images that cannot be used, if `on_error="raise"`.
        FileNotFoundError: If there is no such folder or file.
    """
    if on_error not in ("skip", "raise"):
        raise ValueError(f'on_error is "skip" or "raise". Received: {on_error!r}.')
    if classes is not None and (isinstance(classes, str) or len(set(classes)) < max(2, len(classes))):
        raise ValueError(f"classes names at least two classes, each once. Received: {classes!r}.")
    fraction = validation if isinstance(validation, (int, float)) and not isinstance(validation, bool) else None
    if fraction is not None and not 0 <= fraction < 1:
        raise ValueError(
            f"validation is a part of the images, 0 <= validation < 1, or a source. Received: {validation}."
        )
    if partial and classes is None:
        raise ValueError("partial=True needs the names of the classes. Received: classes=None.")
    given = _gather(source, classes, partial, cache, max_pixels, data_dir, progress)
    warnings, skipped = list(given.warnings), list(given.skipped)
    other: Gathered | None = None
    if fraction is None:
        other = _gather(validation, given.classes, True, cache, max_pixels, data_dir, progress)
        warnings += [f"In validation: {words}" for words in [*other.warnings, *_absent(other)]]
        skipped += other.skipped
    if on_error == "raise" and skipped:
        raise DataError(skipped)
    parts = _split(given, 0.0 if fraction is None else fraction, seed, warnings)
    if not (any(parts.values()) if partial else parts["train"]):
        raise ValueError(f"{'Measuring' if partial else 'Training'} needs images. Received: none that can be used.")
    if other is None:
        validating = _examples(given, parts["validation"])
    else:
        if parts["validation"]:
            raise ValueError(
                f"Images to validate with come from one place. Received: validation='{literal(str(validation))}', and "
                f"a source that has {len(parts['validation'])} of its own."
            )
        validating = _examples(other, [i for i, split in enumerate(other.splits) if split in (None, "validation")])
    _doubles(given, parts, other, warnings)
    _occurring(given, parts["train"], partial, warnings)
    return Data(
        _examples(given, parts["train"]),
        validating,
        _examples(given, parts["test"]) if parts["test"] else None,
        given.classes,
        tuple(skipped),
        tuple(warnings),
        _fingerprint(given, parts, other),
    )


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
        raise ValueError(f"Data must come from {KINDS}. Received: {type(source).__name__}.")
    path = os.fspath(source)
    path = os.fsdecode(path)
    if path.startswith("tfds:"):
        return tfds.from_tfds(path, classes, max_pixels, progress, data_dir, partial)
    path = os.path.expanduser(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no folder or manifest '{literal(path)}'.")
    if os.path.isdir(path):
        found = tfds.directory(path)
        if found:
            return tfds.from_tfds(found, classes, max_pixels, progress, None, partial)
        return from_listing(listing.folder(path, classes, partial), path, cache, max_pixels, progress)
    listing.check_file(path)
    return from_listing(listing.manifest(path, classes, partial), path, cache, max_pixels, progress)


def _examples(given: Gathered, rows: list[int]) -> Examples:
    labels = np.array([given.labels[i] for i in rows], "int32")
    return Examples(given.store, np.array(rows, "int64"), labels, tuple(given.names[i] for i in rows))


def _split(given: Gathered, fraction: float, seed: int, warnings: list[str]) -> dict[str, list[int]]:
    """Which images go where. Where the source says, as it says; else the same part of each class validates.

    Within a class, images are put in the order of a hash of the seed and their name (of streams, which have no names,
    of their content), and the first ones validate.
    Copies of one image stay together, in training: else validation would know what was trained on.
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
    alone = []
    for label, members in sorted(by_class.items()):
        single = [i for i in members if copies[given.digests[i]] == 1]
        single.sort(key=lambda i: hashlib.blake2b(f"{seed}/".encode() + os.fsencode(given.keys[i])).digest())
        count = min(round(len(members) * fraction), len(single), len(members) - 1)
        if fraction and not count and single and len(members) > 1:
            count = 1
        if fraction and not count:
            alone.append(given.classes[label])
        validating = set(single[:count])
        parts["validation"] += [i for i in members if i in validating]
        parts["train"] += [i for i in members if i not in validating]
    if alone:
        warnings.append(f"The classes {listed(alone)} have too few images to validate with: theirs are trained on.")
    return {name: sorted(rows) for name, rows in parts.items()}


def _doubles(given: Gathered, parts: dict[str, list[int]], other: Gathered | None, warnings: list[str]) -> None:
    """Says which images occur in two splits, under two classes, or more than once."""
    places: dict[str, list[tuple[str, int, str]]] = collections.defaultdict(list)
    for split, rows in parts.items():
        for i in rows:
            places[given.digests[i]].append((split, given.labels[i], given.names[i]))
    if other is not None:
        for digest, label, name in zip(other.digests, other.labels, other.names, strict=True):
            places[digest].append(("validation", label, name))
    several = [found for found in places.values() if len(found) > 1]
    names = [" = ".join(literal(name) for *_, name in found[:3]) for found in several]
    for words, test in (
        ("in two splits: what is measured there is too good", lambda found: len({split for split, *_ in found}) > 1),
        ("in two classes", lambda found: len({label for _, label, _ in found}) > 1),
        (
            "more than once in one class; training sees them as often",
            lambda found: len({(split, label) for split, label, _ in found}) == 1,
        ),
    ):
        hits = [name for name, found in zip(names, several, strict=True) if test(found)]
        if hits:
            warnings.append(f"{len(hits):,} image{'s are' if len(hits) > 1 else ' is'} {words} ({listed(hits, 3)}).")


def _absent(given: Gathered) -> list[str]:
    occurring = set(given.labels)
    found = [name for i, name in enumerate(given.classes) if i not in occurring]
    return [f"No image has one of the classes {listed(found)}: nothing is measured of them."] if found else []


def _occurring(given: Gathered, rows: list[int], partial: bool, warnings: list[str]) -> None:
    if partial:
        warnings += _absent(given)
        return
    counts = np.bincount([given.labels[i] for i in rows], minlength=len(given.classes))
    dead = [name for name, count in zip(given.classes, counts, strict=True) if not count]
    if dead and not any("nothing can be learned" in words for words in warnings):
        raise ValueError(
            f"Each class has images to train on. Received: none for {listed(dead)}. Put some into training, or name "
            "the classes that count with classes=[...]."
        )


def _fingerprint(given: Gathered, parts: dict[str, list[int]], other: Gathered | None) -> str:
    """A hash of what is trained on and measured with; the place of a folder and its files' times do not matter."""
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
