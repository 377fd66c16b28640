"""Decide how the images of a dataset are read, from the user's settings and the scan."""

from __future__ import annotations

import collections
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_residual.data import validation
from keras_residual.data.catalog import Gathered
from keras_residual.data.listing import listed
from keras_residual.data.stores import Encoded
from keras_residual.reading import host
from keras_residual.reading.rules import Reading, background_color, value_range

_MOST_IMAGES, _MOST_SAMPLES = 500, 10_000  # for the percentiles
_PERCENTILES = 0.1, 99.9


def check_settings(background: Any, limits: Any, channels: Any) -> None:
    """Check the three settings before any image is read.

    Raises:
        ValueError: If one of them is invalid.
    """
    background_color(background)
    value_range(limits)
    if channels != "auto" and (isinstance(channels, bool) or not isinstance(channels, int) or channels < 1):
        raise ValueError(f"channels must be auto or a positive integer; got {channels!r}.")


def decide(given: Gathered, rows: Sequence[int], background: Any, limits: Any, channels: Any) -> Reading:
    """Return how to read a dataset, and append what the user should know to its warnings.

    Args:
        given: The dataset.
        rows: Indices of the training images.
        background: As for `load`.
        limits: The value range, as for `load`.
        channels: As for `load`.

    Raises:
        ValueError: If the user must decide: the images differ in depth or in channels, or have no fixed range.
    """
    if not isinstance(given.store, Encoded):
        if channels not in ("auto", given.store.channels):
            raise ValueError(f"channels must match the arrays, which have {given.store.channels}; got {channels}.")
        if limits is not None:
            raise ValueError(f"value_range applies to files; arrays must be 0..255; got value_range={limits!r}.")
        return given.store.reading
    color, limits = background_color(background), value_range(limits)
    count = _channels(given, channels)
    wide = {i: record for i, record in enumerate(given.records) if record.limits}
    if wide and limits is None:
        _check_depths(given)
    if limits == "auto":
        limits = _percentiles(given, rows, count, color) if wide else None
    elif limits is None and wide:
        _warn_of_unused_range(given, list(wide.values()))
    return Reading(color, limits, count, "float32" if wide or limits is not None else "uint8")


def _channels(given: Gathered, channels: Any) -> int:
    if channels != "auto":
        return channels
    counts = collections.Counter(record.channels for record in given.records)
    if set(counts) <= {1, 3}:
        return given.store.channels
    found = " and ".join(f"{number:,} with {count}" for count, number in sorted(counts.items()))
    first = {record.channels: name for record, name in zip(given.records, given.names, strict=True)}
    if len(counts) == 1:
        only = next(iter(counts))
        raise ValueError(
            f"channels must be chosen for images that have neither 1 nor 3 channels; got {found}. Use channels={only} "
            f"(--channels {only}); the first kernel of a pretrained network is then repeated over the channels."
        )
    raise ValueError(
        f"Images must have the same number of channels; got {found} ({listed(list(first.values()), 3)}). Convert or "
        "remove some, or choose with channels=N (--channels N); images that do not fit are then skipped."
    )


def _check_depths(given: Gathered) -> None:
    kinds: dict[str, list[str]] = collections.defaultdict(list)
    for record, name in zip(given.records, given.names, strict=True):
        kinds[record.kind].append(name)
    unlimited = [record for record in given.records if record.limits and record.limits[2] is None]
    found = " and ".join(f"{len(names):,} {kind} ({listed(names, 1)})" for kind, names in sorted(kinds.items()))
    choice = "Choose value_range=(LOW, HIGH) or 'auto' (--range LOW,HIGH or --range auto)."
    if unlimited:
        low, high = min(r.limits[0] for r in unlimited), max(r.limits[1] for r in unlimited)
        raise ValueError(
            "Images with floating-point or 32-bit samples have no fixed range, so the values that mean black and white "
            f"must be chosen; got {found}, with samples from {low:.6g} to {high:.6g}. {choice}"
        )
    if len(kinds) > 1:
        raise ValueError(f"Images must have the same sample type; got {found}. {choice} It then applies to all images.")


def _warn_of_unused_range(given: Gathered, records: list[validation.Record]) -> None:
    low, high = min(record.limits[0] for record in records), max(record.limits[1] for record in records)
    whole = records[0].limits[2]
    if records[0].kind != "DICOM" and (high - low) < (whole[1] - whole[0]) / 2:
        given.warnings.append(
            f"The samples are {low:.6g} to {high:.6g}, a small part of the range of their type, {whole[0]:,} to "
            f"{whole[1]:,}, so the images are dark or flat; use --range {low:g},{high:g} or --range auto if these "
            "values mean black and white."
        )


def _percentiles(given: Gathered, rows: Sequence[int], channels: int, color: Any) -> tuple[float, float]:
    """Return the percentiles of the samples of the training images, evenly spaced if there are many."""
    some = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MOST_IMAGES)).astype(int)) if len(rows) else ()
    values = []
    for i in some:
        item: Any = given.store.items[rows[i]].numpy()  # type: ignore[union-attr]
        data = item if given.store.in_memory else validation.content(os.fsdecode(item))  # type: ignore[union-attr]
        samples = host.stored(data, host.header(data)).values.ravel()
        values.append(samples[:: max(1, len(samples) // _MOST_SAMPLES)].astype("float64"))
    low, high = (float(value) for value in np.percentile(np.concatenate(values), _PERCENTILES))
    if not low < high:
        raise ValueError(f"value_range='auto' needs samples that differ; got {low:g} in every training image.")
    given.warnings.append(
        f"Range of the samples: {low:.6g} to {high:.6g}, the percentiles {_PERCENTILES[0]} and {_PERCENTILES[1]} of "
        f"{len(some):,} training images; it is stored in the run."
    )
    return low, high
