"""A network, what prepares its images, and the names of its classes: what fine-tuning makes, what a run holds."""

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
from keras_residual.weights import Preprocess, Weights, WeightsError, load_weights, preprocessing, save_weights

__all__ = ["Classifier", "Prediction"]

SECTION = "keras_residual"  # of config.json: what timm's form has no place for
NAMED = 10  # skipped files that a warning names


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image.

    Attributes:
        name: The image's path, or its number where it came as an array.
        label: Name of the likeliest class; empty if the image could not be read.
        probability: Of that class.
        probabilities: Of every class, by name.
        error: Why the image could not be read; empty if it could.
    """

    name: str
    label: str = ""
    probability: float = 0.0
    probabilities: Mapping[str, float] = dataclasses.field(default_factory=dict)
    error: str = ""

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The likeliest classes with their probabilities, best first."""
        return sorted(self.probabilities.items(), key=lambda pair: -pair[1])[:count]


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A network with its preprocessing and its labels.

    Attributes:
        model: From normalised images `(N, H, W, C)` to logits `(N, classes)`.
        preprocess: From images of 0..255, `(H, W, C)` of any size, to the model's input.
        labels: Names of the classes, in the order of the logits.
        architecture: The registered name of the network.
        options: What its builder was given beside classes and input shape; of JSON's types.
        tag: timm's tag of the checkpoint that it was fine-tuned from, which may change the row (`Config.tags`).
    """

    model: keras.Model
    preprocess: Preprocess
    labels: tuple[str, ...]
    architecture: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tag: str | None = None

    def __post_init__(self) -> None:
        if self.model.output_shape[-1] != len(self.labels):
            raise ValueError(
                f"A classifier has one label for each output. Received: {len(self.labels)} labels for "
                f"{self.model.output_shape[-1]} outputs."
            )

    def predict(self, images: Any, batch_size: int = 32) -> list[Prediction]:
        """Classify images.

        Args:
            images: A path, a folder (all images in it) or a pattern such as `"photos/*.jpg"`; the bytes of a file; a
                PIL image; an array or tensor of 0..255, of one image `(H, W)` or `(H, W, C)` or of a batch
                `(N, H, W, C)`; or an iterable of these, mixed. EXIF orientations are applied, transparency is dropped.
            batch_size: Images in a batch.

        Returns:
            One prediction for each image, in order. A file, bytes or a PIL image that cannot be read gets one that says
            why in `error`.

        Raises:
            FileNotFoundError: If a path does not exist.
            ValueError: For a URL, or an array that is not of 0..255: a range of 0..1 or -1..1, 16 bits, channels first.
            TypeError: For anything else.
        """
        from keras_residual.data.images import named, read

        listed = named(images, self.model.input_shape[-1])
        found: list[Prediction] = []
        for first in range(0, len(listed), batch_size):
            names, sources = zip(*listed[first : first + batch_size], strict=True)
            inputs = [self._input_or_reason(pixels) for pixels in read(sources)]
            good = [x for x in inputs if not isinstance(x, str)]
            rows = iter(self._probabilities(np.stack(good)) if good else ())
            for name, x in zip(names, inputs, strict=True):
                found.append(Prediction(name, error=x) if isinstance(x, str) else self._prediction(name, next(rows)))
        return found

    def _input_or_reason(self, pixels: Any) -> Any:
        from keras_residual.data.images import too_long

        if isinstance(pixels, str):
            return pixels
        return too_long(pixels, self.preprocess.size) or self._prepared(pixels)

    def _prediction(self, name: str, row: np.ndarray[Any, Any]) -> Prediction:
        best = int(row.argmax())
        each = dict(zip(self.labels, map(float, row), strict=True))
        return Prediction(name, self.labels[best], float(row[best]), each)

    def probabilities(self, examples: Any, batch_size: int = 32) -> np.ndarray[Any, Any]:
        """Return the probabilities `(N, classes)` of a `keras_residual.data.Examples`, in its order."""
        rows = [probabilities for probabilities, _ in self._batches(examples, batch_size)]
        return np.concatenate(rows) if rows else np.zeros((0, len(self.labels)), "float32")

    def answers(self, examples: Any, batch_size: int = 32) -> metrics.Answers:
        """Return what the measures need of each image; unlike `probabilities`, it fits in memory for many classes.

        Raises:
            ValueError: If there are no images.
        """
        return metrics.Answers.joined(metrics.Answers.of(*batch) for batch in self._batches(examples, batch_size))

    def _batches(self, examples: Any, batch_size: int) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        """Yield probabilities and labels, batch by batch."""
        for images, labels in examples.evaluation(batch_size, self.preprocess):
            pixels = self.normalise(keras.ops.convert_to_numpy(images))
            yield self._probabilities(pixels), np.asarray(labels)

    def evaluate(self, data: Any, batch_size: int = 32, majority: int | None = None) -> dict[str, float]:
        """Measure the classifier on labelled images; see `keras_residual.metrics.measure`.

        Args:
            data: What `keras_residual.data.load` reads, or an `Examples`. Classes go by their names; some may have no
                images. Of a source that is split, the part called test, or else validation, is measured.
            batch_size: Images in a batch.
            majority: Number of the class that a constant classifier would predict; by default the most frequent one
                here.

        Returns:
            The measures, and `skipped`: how many images of `data` could not be read and are not measured. A
            `UserWarning` names them, and whatever else is unusual about the data.

        Raises:
            ValueError: If the data has a class that the classifier does not know.
        """
        from keras_residual.data import Examples

        if isinstance(data, Examples):
            examples, skipped = data, 0
        else:
            examples, words, skipped = labelled(data, self.labels)
            for line in words:
                warnings.warn(line, stacklevel=2)
        if majority is None:
            majority = int(np.bincount(examples.labels, minlength=1).argmax())
        return self.answers(examples, batch_size).measure(majority) | {"skipped": float(skipped)}

    def normalise(self, images: Any) -> Any:
        """Pixels of 0..255 that are resized already, to the model's input."""
        mean, std = (np.asarray(values, "float32") for values in (self.preprocess.mean, self.preprocess.std))
        return (images.astype("float32") / 255 - mean) / std

    def with_probabilities(self) -> keras.Model:
        """The model with a softmax at its end; it shares the weights."""
        outputs = keras.layers.Softmax(dtype="float32", name="probabilities")(self.model.output)
        return connected(self.model.input, outputs, self.model.name)

    def export(self, path: str | os.PathLike[str], **options: Any) -> Path:
        """Writes a SavedModel that TensorFlow Serving runs as it is; see `keras_residual.export` for the options."""
        from keras_residual.exporting import export

        return export(self.with_probabilities(), path, labels=self.labels, preprocess=self.preprocess, **options)

    # ------------------------------------------------------------------------------------------- the run directory

    def save(self, directory: str | os.PathLike[str], about: Mapping[str, Any] | None = None) -> None:
        """Write `weights.safetensors`, `model.keras`, `labels.txt` and `config.json`; all of them, or none.

        The config has timm's form, so that the directory is a source for `from_pretrained`, too.

        Args:
            directory: Created if it does not exist.
            about: More to keep in the config's own section.

        Raises:
            OSError: If a file cannot be written; those of an earlier classifier are unchanged.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "config.json"
        with contextlib.ExitStack() as stack:  # replaces files at its end, in reverse order: the config last
            parts = [
                stack.enter_context(written_whole(directory / name))
                for name in ("config.json", "weights.safetensors", "model.keras", "labels.txt")
            ]
            save_weights(self.model, parts[1])
            keras.saving.save_model(self.with_probabilities(), parts[2])
            lines = (f"{literal(label)}\n" for label in self.labels)  # one for each class, whatever its name
            parts[3].write_text("".join(lines), encoding="utf-8")
            write_json(parts[0], self._config(parts[1], about))
            config.unlink(missing_ok=True)  # an earlier one does not describe the new weights

    def save_config(self, directory: str | os.PathLike[str], about: Mapping[str, Any] | None = None) -> None:
        """Write `config.json` for weights that `save` has written to the directory; same arguments as `save`."""
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
                **(about or {}),
            },
        }

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Classifier:
        """Reads what `save` wrote. The network is built by this package from its name; no code of the file runs.

        Raises:
            FileNotFoundError: If the directory has no finished run.
            WeightsError: If a file is not what was written.
        """
        directory = Path(directory)
        if not (directory / "config.json").is_file():
            raise FileNotFoundError(f"A finished run has a config.json. Received: {str(directory)!r}, which has none.")
        record = Weights.read(directory)
        own = json.loads((directory / "config.json").read_text(encoding="utf-8")).get(SECTION)
        if not isinstance(own, dict) or not {"model", "options", "input_shape", "sha256"} <= set(own):
            raise WeightsError(
                f"A run directory was written by keras_residual. Received: {str(directory)!r}, whose config.json was "
                "not. Published checkpoints are loaded by keras_residual.from_pretrained."
            )
        weights = directory / "weights.safetensors"
        if sha256(weights) != own["sha256"]:
            raise WeightsError(f"{weights} is not what was written beside its config.json: it has changed.")
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
        return cls(model, prepare, record.labels, own["model"], own["options"], own.get("tag"))

    # -------------------------------------------------------------------------------------------------- one batch

    def _prepared(self, image: Any) -> Any:
        return _model_input(image, self.preprocess, self.model.input_shape[-1])

    def _probabilities(self, batch: Any) -> np.ndarray[Any, Any]:
        logits = keras.ops.convert_to_numpy(self.model(batch, training=False)).astype("float64")
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return (weights / weights.sum(-1, keepdims=True)).astype("float32")


def labelled(source: Any, labels: Sequence[str]) -> tuple[Any, list[str], int]:
    """Load the images of a source to measure a classifier of these labels on.

    Returns:
        The images as `Examples`; what the user should know about them, a line each; how many could not be read.

    Raises:
        ValueError: If the source has other classes.
    """
    from keras_residual.data import load

    found = load(source, validation=0.0, classes=labels, partial=True)
    parts = {"test": found.test or (), "validation": found.validation, "train": found.train}
    there = [name for name, images in parts.items() if len(images)]
    words = [f"the part {there[0]!r} of {literal(str(source))} is measured"] if len(there) > 1 else []
    skipped = found.skipped
    if skipped:
        named = "; ".join(f"{literal(name)} {reason}" for name, reason in skipped[:NAMED])
        more = f"; and {len(skipped) - NAMED:,} more" if len(skipped) > NAMED else ""
        words.append(f"{len(skipped):,} file{'s are' if len(skipped) > 1 else ' is'} not measured: {named}{more}.")
    return parts[there[0]], words + list(found.warnings), len(skipped)


def model_inputs(images: Any, preprocess: Preprocess, channels: int, most: int) -> np.ndarray[Any, Any]:
    """Images as `Classifier.predict` takes them, prepared: `(N, H, W, channels)`; files that are none are left out.

    Of more than `most` it takes so many, evenly spread over their order.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If none is an image.
    """
    from keras_residual.data.images import named, read

    listed = named(images, channels)
    if len(listed) > most:
        listed = [listed[number * len(listed) // most] for number in range(most)]
    read_ones = (pixels for source in listed for pixels in read([source[1]]))
    prepared = [_model_input(pixels, preprocess, channels) for pixels in read_ones if not isinstance(pixels, str)]
    if not prepared:
        raise ValueError(f"There is no image that can be read. Received: {images!r}.")
    return np.stack(prepared)


def _model_input(image: Any, preprocess: Preprocess, channels: int) -> Any:
    """Prepare pixels `(height, width, channels)`, uint8, of 1, 3 or 4 channels or as many as the model's."""
    if image.shape[-1] != channels:
        image = _with_channels(image, channels)
    return keras.ops.convert_to_numpy(preprocess(image))


def _with_channels(image: Any, channels: int) -> Any:
    image = image[..., :3]  # transparency is dropped
    if image.shape[-1] == channels:
        return image
    if channels == 1:  # ITU-R 601 luma, as Pillow's convert("L")
        return np.round(image @ np.array([0.299, 0.587, 0.114]))[..., None].astype("uint8")
    if image.shape[-1] == 1:
        return np.repeat(image, channels, -1)
    raise ValueError(f"The network takes {channels} channels. Received: an image of {image.shape[-1]}.")
