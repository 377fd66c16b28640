"""Load datasets from TensorFlow Datasets (TFDS), by name or from a prepared directory."""

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
    """Return the directory prepared by TFDS at or below `path`, or `None` if there is none.

    Raises:
        ValueError: If there is more than one.
    """
    found = [
        os.path.dirname(file)
        for depth in ("", "*", "*/*")
        for file in glob.glob(os.path.join(glob.escape(path), depth, "dataset_info.json"))
    ]
    if len(found) > 1:
        raise ValueError(
            f"A TFDS directory must contain only one dataset; got '{literal(path)}' with {listed(found)}. Pass one of "
            "these."
        )
    return found[0] if found else None


def from_tfds(
    source: str,
    classes: Sequence[str] | None,
    max_pixels: int,
    progress: Progress | None,
    data_dir: str | os.PathLike[str] | None = None,
    partial: bool = False,
) -> Gathered:
    """Read `tfds:NAME`, `tfds:NAME:CONFIG` or a prepared directory; images stay encoded until they are used.

    Raises:
        ValueError: If the dataset does not exist, or does not have exactly one image and one class label.
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
            f"Every name in classes must be a class of the dataset, {listed(names)}; got {listed(lacking)}."
        )
    number = {i: chosen.index(name) for i, name in enumerate(names) if name in chosen}
    listing, items, budget = Listing("", chosen, partial=partial), [], Budget()
    # The splits of a builder that has not been prepared may be unknown.
    splits = {split: SPLITS.get(split.lower()) for split in builder.info.splits} or {"train": "train"}
    read = {split: part for split, part in splits.items() if part} if "train" in splits.values() else {}
    if not read:
        read = {next(iter(splits)): None}
    others = [split for split in splits if split not in read]
    if others:
        listing.warnings.append(f"The splits {listed(others)} are skipped.")
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
            f"tfds:NAME must be a dataset in TensorFlow Datasets; got {source!r}. `tfds.list_builders()` lists them."
        ) from None
    except ValueError as error:
        raise ValueError(
            f"tfds:NAME:CONFIG must be a dataset and one of its configurations; got {source!r}. {error}"
        ) from None
    builder.download_and_prepare()  # does nothing if already prepared
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
        f"A TFDS dataset must have exactly one image and one class label; got {builder.info.name!r} with the images "
        f"{listed(images) or '(none)'} and the labels {listed(labels) or '(none)'}."
    )
