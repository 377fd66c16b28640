"""Data sets of TensorFlow Datasets: by name, or a directory that TFDS has prepared."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from typing import Any

from keras_residual.data.catalog import Gathered, from_bytes
from keras_residual.data.listing import SPLITS, Listing, known, listed
from keras_residual.data.objects import Budget
from keras_residual.data.validation import Progress
from keras_residual.io import literal


def directory(path: str) -> str | None:
    """The folder below `path` (or itself) that TFDS has prepared, if there is one.

    Raises:
        ValueError: If there are several.
    """
    found = [
        os.path.dirname(file)
        for depth in ("", "*", "*/*")
        for file in glob.glob(os.path.join(glob.escape(path), depth, "dataset_info.json"))
    ]
    if len(found) > 1:
        raise ValueError(f"One data set at a time. Received: '{literal(path)}', which holds {listed(found)}.")
    return found[0] if found else None


def from_tfds(
    source: str,
    classes: Sequence[str] | None,
    max_pixels: int,
    progress: Progress | None,
    data_dir: str | os.PathLike[str] | None = None,
    partial: bool = False,
) -> Gathered:
    """Reads `tfds:NAME`, `tfds:NAME:CONFIG` or a prepared directory; images stay encoded until they are used.

    Raises:
        ValueError: If there is no such data set, or it has not one image and one class label.
    """
    import tensorflow_datasets as tfds

    builder = _builder(tfds, source, data_dir)
    image, label = _keys(tfds, builder)
    feature = builder.info.features[label]
    names = tuple(feature.int2str(i) for i in range(feature.num_classes))
    chosen = names if classes is None else tuple(classes)
    lacking = [name for name in chosen if name not in names and not partial]
    if lacking:
        raise ValueError(
            f"Each of classes is one of the data set's. Received: {listed(lacking)}; it has {listed(names)}."
        )
    number = {i: chosen.index(name) for i, name in enumerate(names) if name in chosen}
    listing, items, budget = Listing("", chosen, partial=partial), [], Budget()
    # a builder that has not been prepared may not know its splits
    splits = {split: SPLITS.get(split.lower()) for split in builder.info.splits} or {"train": "train"}
    read = {split: part for split, part in splits.items() if part} if "train" in splits.values() else {}
    if not read:
        read = {next(iter(splits)): None}
    others = [split for split in splits if split not in read]
    if others:
        listing.warnings.append(f"The splits {listed(others)} are left out.")
    for split, part in read.items():
        data = builder.as_dataset(split=split, decoders={image: tfds.decode.SkipDecoding()}, shuffle_files=False)
        for i, example in enumerate(data.as_numpy_iterator()):
            name, value = f"{split}/{i}", int(example[label])
            if value not in number:
                if partial and value in range(len(names)):
                    known([names[value]], chosen, source)
                if value not in range(len(names)):
                    listing.skipped.append((name, f"has no class (its label is {value})"))
                continue
            budget.take(len(example[image]))
            listing.names.append(name)
            listing.labels.append(number[value])
            listing.splits.append(part)
            items.append(example[image])
    shape = builder.info.features[image].shape
    return from_bytes(listing, items, 1 if shape[-1] == 1 else 3, max_pixels, progress)


def _builder(tfds: Any, source: str, data_dir: str | os.PathLike[str] | None) -> Any:
    if not source.startswith("tfds:"):
        return tfds.builder_from_directory(source)
    name, _, config = source.removeprefix("tfds:").partition(":")
    name = f"{name}/{config}" if config else name
    try:
        builder = tfds.builder(name, **({} if data_dir is None else {"data_dir": data_dir}))
    except tfds.core.DatasetNotFoundError:
        raise ValueError(
            f"tfds:NAME is a data set that TensorFlow Datasets knows. Received: {source!r}. "
            "`tfds.list_builders()` lists them."
        ) from None
    except ValueError as error:
        raise ValueError(f"tfds:NAME:CONFIG is a data set and one of its configurations. {error}") from None
    builder.download_and_prepare()  # nothing, if it was
    return builder


def _keys(tfds: Any, builder: Any) -> tuple[str, str]:
    features = builder.info.features
    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    supervised = builder.info.supervised_keys
    if supervised and len(supervised) == 2 and supervised[0] in images and supervised[1] in labels:
        return supervised[0], supervised[1]
    if len(images) == 1 and len(labels) == 1:
        return images[0], labels[0]
    raise ValueError(
        f"A data set to classify has one image and one class label. Received: {builder.info.name!r} with the images "
        f"{listed(images)} and the labels {listed(labels)}."
    )
