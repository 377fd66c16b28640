"""Collect the usable images of any source, with labels and warnings, before they are split."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from keras_residual.data.listing import Listing, is_manifest, listed
from keras_residual.data.stores import Encoded, Pixels, Store
from keras_residual.data.validation import Progress, Record, default_cache, scan, scan_bytes
from keras_residual.io import literal
from keras_residual.reading.graph import FORMATS
from keras_residual.reading.rules import Reading


@dataclasses.dataclass
class Gathered:
    """Usable images of one source.

    Attributes:
        classes: Class names, in the order of their indices.
        store: The images.
        names: Name of each image.
        labels: Class index of each image.
        splits: `"train"`, `"validation"`, `"test"`, or `None` if the source does not define a split.
        digests: Hash of the content of each image.
        skipped: Skipped images, with the reason.
        warnings: Warnings for the user.
        records: Result of the scan for each image; empty for arrays.
        named: Whether names identify the images. If not, their content does, because the source has no fixed order.
    """

    classes: tuple[str, ...]
    store: Store
    names: list[str]
    labels: list[int]
    splits: list[str | None]
    digests: list[str]
    skipped: list[tuple[str, str]]
    warnings: list[str]
    records: list[Record] = dataclasses.field(default_factory=list)
    named: bool = True

    def select(self, rows: list[int]) -> None:
        """Keep only these images."""
        for name in ("names", "labels", "splits", "digests", "records"):
            values = getattr(self, name)
            setattr(self, name, [values[i] for i in rows])
        assert isinstance(self.store, Encoded)
        items = self.store.items.numpy()
        self.store = Encoded([items[i] for i in rows], self.records, self.store.reading, self.store.in_memory)

    @property
    def keys(self) -> list[str]:
        """Return the name that identifies each image in a split and a fingerprint."""
        return self.names if self.named else self.digests


def from_listing(
    listing: Listing, source: str, cache: str | os.PathLike[str] | bool, max_pixels: int, progress: Progress | None
) -> Gathered:
    """Check every file of a listing."""
    place = default_cache(source) if cache is True else Path(cache) if cache else None  # type: ignore[arg-type]
    paths = [listing.path(name) for name in listing.names]
    records = scan(paths, place, max_pixels, progress)
    where = "the manifest" if is_manifest(source) else "the folder"
    return _from_records(listing, [os.fsencode(path) for path in paths], records, 3, False, where)


def from_bytes(
    listing: Listing, items: list[bytes], channels: int, max_pixels: int, progress: Progress | None
) -> Gathered:
    """Check encoded images in memory, whose names are in `listing`."""
    return _from_records(listing, items, scan_bytes(items, max_pixels, progress), channels, True, "the dataset")


def from_pixels(listing: Listing, images: np.ndarray[Any, Any]) -> Gathered:
    """Gather decoded images, `(N, height, width, channels)` uint8."""
    digests = [hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest() for image in images]
    return Gathered(
        listing.classes,
        Pixels(images),
        listing.names,
        listing.labels,
        listing.splits,
        digests,
        listing.skipped,
        listing.warnings,
    )


def _from_records(
    listing: Listing, items: list[bytes], records: list[Record], channels: int, in_memory: bool, where: str
) -> Gathered:
    good = [i for i, record in enumerate(records) if not record.reason]
    skipped = listing.skipped + [
        (name, record.reason) for name, record in zip(listing.names, records, strict=True) if record.reason
    ]
    kept = [records[i] for i in good]
    warnings = listing.warnings + _notes([listing.names[i] for i in good], kept)
    members: dict[int, list[int]] = collections.defaultdict(list)
    for i, number in enumerate(listing.labels):
        members[number].append(i)
    for number, label in enumerate(listing.classes):
        found = members[number]
        if not found and listing.partial:
            continue
        if not found:
            raise ValueError(
                f"Every class must have images; got the class {label!r} without any in {where}. Add some, remove the "
                "class, or select the classes to use with classes=[...]."
            )
        if all(records[i].reason for i in found):
            examples = "; ".join(f"{literal(listing.names[i])} {records[i].reason}" for i in found[:3])
            raise ValueError(
                f"Every class must have usable images; got the class {label!r} with {len(found)} "
                f"file{'s' if len(found) > 1 else ''}, none of which can be used: {examples}. Repair them, or select "
                "the classes to use with classes=[...]."
            )
    return Gathered(
        listing.classes,
        Encoded([items[i] for i in good], kept, Reading(channels=channels), in_memory),
        [listing.names[i] for i in good],
        [listing.labels[i] for i in good],
        [listing.splits[i] for i in good],
        [record.digest for record in kept],
        skipped,
        warnings,
        kept,
    )


_NOTES = {
    "animated": "animated: only the first frame is used",
    "several pages": "in a file with several pages: only the first page is used",
    "transparent": "partly transparent: see background",
    "extra bytes": "JPEG with extraneous bytes: check that it looks right",
    "CMYK": "CMYK: converted to RGB without a color profile",
    "not in exports": "in a format that exported models cannot read: convert such images before asking a server; "
    f"it reads {', '.join(FORMATS)}, not CMYK or palette BMP",
}


def _notes(names: list[str], records: list[Record]) -> list[str]:
    warnings = []
    for note, explanation in _NOTES.items():
        found = [name for name, record in zip(names, records, strict=True) if note in record.notes]
        if found:
            warnings.append(
                f"{len(found):,} image{'s are' if len(found) > 1 else ' is'} {explanation} ({listed(found, 3)})."
            )
    return warnings
