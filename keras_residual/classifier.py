"""The image classifier that fine-tuning returns and a run directory stores: model, preprocessing and labels."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_residual import metrics
from keras_residual.graph import connected
from keras_residual.io import literal, sha256, write_json, written_whole
from keras_residual.models import find
from keras_residual.reading.rules import Reading
from keras_residual.weights import Preprocess, Weights, WeightsError, load_weights, preprocessing, save_weights

__all__ = ["Classifier", "Prediction"]

_DROPS = Reading.from_dict(None)
SECTION = "keras_residual"  # section of config.json for values that timm's format has no field for
NAMED = 10  # skipped files listed in a warning


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Prediction for one image.

    Attributes:
        name: Path of the image, or its position in the input if it has no path.
        label: Name of the most probable class; empty if the image could not be read.
        probability: Probability of that class.
        probabilities: Probability of every class, by class name.
        error: Why the image could not be read; empty if it was read.
    """

    name: str
    label: str = ""
    probability: float = 0.0
    probabilities: Mapping[str, float] = dataclasses.field(default_factory=dict)
    error: str = ""

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the `count` most probable classes with their probabilities, most probable first."""
        return sorted(self.probabilities.items(), key=lambda pair: -pair[1])[:count]


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """Image classifier: a model with its preprocessing and class labels.

    Attributes:
        model: Maps normalised images `(N, H, W, C)` to logits `(N, classes)`.
        preprocess: Maps an image `(H, W, C)` of any size, with values 0 to 255, to the model's input.
        labels: Class names, in the order of the logits.
        architecture: Registered name of the architecture.
        options: Builder arguments other than the number of classes and the input shape; JSON types only.
        tag: timm tag of the checkpoint it was fine-tuned from; some tags change the configuration (`Config.tags`).
        reading: How image files are read; by default as in version 0.1, which dropped transparency.
    """

    model: keras.Model
    preprocess: Preprocess
    labels: tuple[str, ...]
    architecture: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tag: str | None = None
    reading: Reading = _DROPS

    def __post_init__(self) -> None:
        if self.model.output_shape[-1] != len(self.labels):
            raise ValueError(
                f"`labels` must have one label for each of the model's {self.model.output_shape[-1]} outputs; got "
                f"{len(self.labels)} labels."
            )

    def predict(self, images: Any, batch_size: int = 32) -> list[Prediction]:
        """Classify images.

        Args:
            images: A path, a folder (all images in it) or a pattern such as `"photos/*.jpg"`; the bytes of a file; a
                PIL image; an array or tensor with values 0 to 255, either one image `(H, W)` or `(H, W, C)` or a batch
                `(N, H, W, C)`; or an iterable that mixes these. Files are read as in training (see `reading`).
            batch_size: Images per batch.

        Returns:
            One prediction per image, in order. If a file, bytes or a PIL image cannot be read, its prediction has the
            reason in `error`.

        Raises:
            FileNotFoundError: If a path does not exist.
            ValueError: If an image is a URL, or an array whose values are not 0 to 255 (0 to 1, -1 to 1, 16 bits) or
                whose channels come first.
            TypeError: If `images` has any other type.
        """
        from keras_residual.data.images import named, read

        listed = named(images, self.model.input_shape[-1])
        found: list[Prediction] = []
        for first in range(0, len(listed), batch_size):
            names, sources = zip(*listed[first : first + batch_size], strict=True)
            inputs = [self._input_or_reason(pixels) for pixels in read(sources, self._reading())]
            good = [x for x in inputs if not isinstance(x, str)]
            rows = iter(self._probabilities(np.stack(good)) if good else ())
            for name, x in zip(names, inputs, strict=True):
                found.append(Prediction(name, error=x) if isinstance(x, str) else self._prediction(name, next(rows)))
        return found

    def _reading(self) -> Reading:
        """Return the rules, with the network's number of channels."""
        return dataclasses.replace(self.reading, channels=self.model.input_shape[-1])

    def _input_or_reason(self, pixels: Any) -> Any:
        from keras_residual.data.images import too_long

        if isinstance(pixels, str):
            return pixels
        long = self.preprocess.crop_mode == "center" and too_long(pixels, self.preprocess.size)
        return long or self._prepared(pixels)

    def _prediction(self, name: str, row: np.ndarray[Any, Any]) -> Prediction:
        best = int(row.argmax())
        each = dict(zip(self.labels, map(float, row), strict=True))
        return Prediction(name, self.labels[best], float(row[best]), each)

    def probabilities(self, examples: Any, batch_size: int = 32) -> np.ndarray[Any, Any]:
        """Return the probabilities `(N, classes)` of a `keras_residual.data.Examples`, in its order."""
        rows = [probabilities for probabilities, _ in self._batches(examples, batch_size)]
        return np.concatenate(rows) if rows else np.zeros((0, len(self.labels)), "float32")

    def answers(self, examples: Any, batch_size: int = 32) -> metrics.Answers:
        """Return the per-image results that the metrics need; unlike `probabilities`, independent of the class count.

        Raises:
            ValueError: If there are no images.
        """
        return metrics.Answers.joined(metrics.Answers.of(*batch) for batch in self._batches(examples, batch_size))

    def _batches(self, examples: Any, batch_size: int) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        """Yield the probabilities and labels of each batch."""
        for images, labels in examples.evaluation(batch_size, self.preprocess):
            pixels = self.normalise(keras.ops.convert_to_numpy(images))
            yield self._probabilities(pixels), np.asarray(labels)

    def evaluate(self, data: Any, batch_size: int = 32, majority: int | None = None) -> dict[str, float]:
        """Evaluate the classifier on labelled images; see `keras_residual.metrics.measure`.

        Args:
            data: A source that `keras_residual.data.load` accepts, or an `Examples`. Classes are matched by name; a
                class may have no images. If the source is split, the test split is used, or else the validation split.
            batch_size: Images per batch.
            majority: Index of the class that the majority-class baseline predicts; by default the most frequent class
                in `data`.

        Returns:
            The metrics, and `skipped`: the number of images in `data` that could not be read and were left out. A
            `UserWarning` lists them and reports anything else unusual about the data.

        Raises:
            ValueError: If the data has a class that is not one of the classifier's labels.
        """
        from keras_residual.data import Examples

        if isinstance(data, Examples):
            examples, skipped = data, 0
        else:
            examples, messages, skipped = labelled(data, self.labels, self._reading())
            for message in messages:
                warnings.warn(message, stacklevel=2)
        if majority is None:
            majority = int(np.bincount(examples.labels, minlength=1).argmax())
        return self.answers(examples, batch_size).measure(majority) | {"skipped": float(skipped)}

    def normalise(self, images: Any) -> Any:
        """Normalise pixels of 0 to 255, already resized, to the model's input."""
        mean, std = (np.asarray(values, "float32") for values in (self.preprocess.mean, self.preprocess.std))
        return (images.astype("float32") / 255 - mean) / std

    def with_probabilities(self) -> keras.Model:
        """Return the model with a softmax output; it shares its weights with `model`."""
        outputs = keras.layers.Softmax(dtype="float32", name="probabilities")(self.model.output)
        return connected(self.model.input, outputs, self.model.name)

    def export(self, path: str | os.PathLike[str], **options: Any) -> Path:
        """Export a SavedModel that TensorFlow Serving can load; see `keras_residual.export` for the options."""
        from keras_residual.exporting import export
        from keras_residual.reading.rules import Reading

        options.setdefault("reading", getattr(self, "reading", Reading.from_dict(None)))
        return export(self.with_probabilities(), path, labels=self.labels, preprocess=self.preprocess, **options)

    # ------------------------------------------------------------------------------------------- the run directory

    def save(self, directory: str | os.PathLike[str], about: Mapping[str, Any] | None = None) -> None:
        """Write `weights.safetensors`, `model.keras`, `labels.txt` and `config.json`: all of them or none.

        The config follows timm's format, so `from_pretrained` also accepts the directory.

        Args:
            directory: Output directory; created if it does not exist.
            about: Additional entries for the `keras_residual` section of the config.

        Raises:
            OSError: If a file cannot be written; the files of an earlier classifier are then unchanged.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "config.json"
        with contextlib.ExitStack() as stack:  # on exit it replaces files in reverse order, the config last
            parts = [
                stack.enter_context(written_whole(directory / name))
                for name in ("config.json", "weights.safetensors", "model.keras", "labels.txt")
            ]
            save_weights(self.model, parts[1])
            keras.saving.save_model(self.with_probabilities(), parts[2])
            lines = (f"{literal(label)}\n" for label in self.labels)  # `literal` keeps each label on one line
            parts[3].write_text("".join(lines), encoding="utf-8")
            write_json(parts[0], self._config(parts[1], about))
            config.unlink(missing_ok=True)  # the old config does not describe the new weights

    def save_config(self, directory: str | os.PathLike[str], about: Mapping[str, Any] | None = None) -> None:
        """Write `config.json` for weights already written by `save`; takes the same arguments as `save`."""
        directory = Path(directory)
        write_json(directory / "config.json", self._config(directory / "weights.safetensors", about))

    def _config(self, weights: Path, about: Mapping[str, Any] | None) -> dict[str, Any]:
        row, prepare = find(self.architecture).config, self.preprocess
        height, width, channels = self.model.input_shape[1:]
        return {
            "architecture": row.timm or row.name,
            "num_classes": len(self.labels),
            "pretrained_cfg": {
                "input_size": [channels, height or prepare.size[0], width or prepare.size[1]],
                "mean": prepare.mean,
                "std": prepare.std,
                "crop_pct": prepare.crop,
                "crop_mode": prepare.crop_mode,
                "interpolation": prepare.interpolation,
                "label_names": self.labels,
            },
            SECTION: {
                "model": self.architecture,
                "options": dict(self.options),
                **({"tag": self.tag} if self.tag else {}),
                "input_shape": [height, width, channels],
                "size": prepare.size,
                "sha256": sha256(weights),
                "reading": self._reading().to_dict(),
                **(about or {}),
            },
        }

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Classifier:
        """Load a classifier that `save` wrote; the model is built from its architecture name, and no stored code runs.

        Raises:
            FileNotFoundError: If the directory does not contain a finished run.
            WeightsError: If a file is damaged, was changed, or was not written by this package.
        """
        directory = Path(directory)
        if not (directory / "config.json").is_file():
            raise FileNotFoundError(
                f"The directory must contain a finished run; got {str(directory)!r}, which has no config.json. Check "
                "the path, or finish the training first."
            )
        record = Weights.read(directory)
        own = json.loads((directory / "config.json").read_text(encoding="utf-8")).get(SECTION)
        if not isinstance(own, dict) or not {"model", "options", "input_shape", "sha256"} <= set(own):
            raise WeightsError(
                f"The run directory must have been written by keras_residual; got {str(directory)!r}, whose "
                "config.json was not. Use keras_residual.from_pretrained to load a published checkpoint."
            )
        weights = directory / "weights.safetensors"
        if sha256(weights) != own["sha256"]:
            raise WeightsError(
                f"{str(weights)!r} must have the SHA-256 that config.json records; it has a different one, so it is "
                "damaged or was changed. Restore both files from a backup, or train again."
            )
        entry = find(own["model"])
        model = entry.build(
            entry.config.tagged(own.get("tag")),
            classes=record.classes,
            input_shape=tuple(own["input_shape"]),
            classifier_activation=None,
            **own["options"],
        )
        load_weights(model, weights)
        prepare = preprocessing(dataclasses.replace(record, input_size=(*own["size"], record.input_size[2])))
        reading = Reading.from_dict(own.get("reading"))
        prepare = Preprocess.from_config({**prepare.get_config(), "rounded": reading.dtype == "uint8"})
        return cls(model, prepare, record.labels, own["model"], own["options"], own.get("tag"), reading)

    # -------------------------------------------------------------------------------------------------- one batch

    def _prepared(self, image: Any) -> Any:
        return _model_input(image, self.preprocess, self.model.input_shape[-1])

    def _probabilities(self, batch: Any) -> np.ndarray[Any, Any]:
        logits = keras.ops.convert_to_numpy(self.model(batch, training=False)).astype("float64")
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return (weights / weights.sum(-1, keepdims=True)).astype("float32")


def labelled(source: Any, labels: Sequence[str], reading: Reading | None = None) -> tuple[Any, list[str], int]:
    """Load the labelled images of a source to evaluate a classifier with these labels.

    Returns:
        The images as `Examples`, warnings for the user, and the number of images that could not be read.

    Raises:
        ValueError: If the source has a class that is not in `labels`.
    """
    from keras_residual.data import load

    found = load(source, validation=0.0, classes=labels, partial=True, reading=reading)
    parts = {"test": found.test or (), "validation": found.validation, "train": found.train}
    there = [name for name, images in parts.items() if len(images)]
    messages = []
    if len(there) > 1:
        messages.append(f"Evaluating on the {there[0]} split of {literal(str(source))}; its other splits are not used.")
    skipped = found.skipped
    if skipped:
        named = "; ".join(f"{literal(name)} {reason}" for name, reason in skipped[:NAMED])
        more = f"; and {len(skipped) - NAMED:,} more" if len(skipped) > NAMED else ""
        messages.append(f"Skipped {len(skipped):,} file{'s' * (len(skipped) > 1)}: {named}{more}.")
    return parts[there[0]], messages + list(found.warnings), len(skipped)


def model_inputs(images: Any, preprocess: Preprocess, channels: int, most: int) -> np.ndarray[Any, Any]:
    """Load and preprocess images, given as for `Classifier.predict`, to an array `(N, H, W, channels)`.

    Unreadable files are skipped. If there are more than `most` images, `most` evenly spaced ones are used.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If no image can be read.
    """
    from keras_residual.data.images import named, read

    listed = named(images, channels)
    if len(listed) > most:
        listed = [listed[number * len(listed) // most] for number in range(most)]
    read_ones = (pixels for source in listed for pixels in read([source[1]]))
    prepared = [_model_input(pixels, preprocess, channels) for pixels in read_ones if not isinstance(pixels, str)]
    if not prepared:
        raise ValueError(f"At least one image must be readable; got {images!r}, none of which could be read.")
    return np.stack(prepared)


def _model_input(image: Any, preprocess: Preprocess, channels: int) -> Any:
    """Preprocess uint8 pixels `(height, width, channels)` that have 1, 3, 4 or the model's number of channels."""
    if image.shape[-1] != channels:
        image = _with_channels(image, channels)
    return keras.ops.convert_to_numpy(preprocess(image))


def _with_channels(image: Any, channels: int) -> Any:
    image = image[..., :3]  # drop the alpha channel
    if image.shape[-1] == channels:
        return image
    if channels == 1:  # ITU-R 601 luma, as in Pillow's convert("L")
        return np.round(image @ np.array([0.299, 0.587, 0.114]))[..., None].astype("uint8")
    if image.shape[-1] == 1:
        return np.repeat(image, channels, -1)
    raise ValueError(f"Images must have {channels} channels for this network; got an image with {image.shape[-1]}.")
