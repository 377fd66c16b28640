"""`keras-residual export` and `keras-residual verify`."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import keras

from keras_residual.classifier import SECTION, Classifier, model_inputs
from keras_residual.exporting import export
from keras_residual.exporting.bundle import METADATA, describe, verify
from keras_residual.io import expand
from keras_residual.models._checkpoints import require_architecture
from keras_residual.models.pretrained import from_pretrained
from keras_residual.weights import Weights, preprocessing

__all__ = ["export_source", "verify_directory"]

SUFFIXES = (".onnx", ".xml", ".tflite")
SAMPLES = 300


def export_source(
    source: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    int8: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Path:
    """Export a run or a published checkpoint with its preprocessing and labels, and print the result.

    `~` and environment variables in paths are expanded.

    Args:
        source: A run's directory, or what `keras_residual.from_pretrained` takes.
        directory: The model's directory, `saved_models/NAME`; or a file of another format, see
            `keras_residual.exporting.formats`, which has the network alone.
        int8: For a LiteRT file: a folder of images, or one, to quantise by and to measure the result on; at most 300
            are used.
        **options: Those of `keras_residual.export`; a file of another format has `fold` alone.

    Returns:
        The version's directory, or the file.

    Raises:
        ValueError: If Keras does not run on TensorFlow, the source is no whole model, or the options are not those of
            the format.
        OSError: If there is no such source, or the export cannot be written.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"A SavedModel is written by Keras on TensorFlow. Received: KERAS_BACKEND={keras.backend.backend()}. Run "
            "this with KERAS_BACKEND=tensorflow; weights that were trained on JAX are read as they are."
        )
    directory, place = expand(directory), expand(source)
    other_format = directory.suffix in SUFFIXES
    if other_format and (unused := sorted(set(options) - {"fold"})):
        raise ValueError(f"A file of another format has the option fold alone. Received: {', '.join(unused)}.")
    if int8 is not None and directory.suffix != ".tflite":
        raise ValueError(f"Only a file of LiteRT, .tflite, can be of int8. Received: {str(directory)!r}.")
    config = place / "config.json"
    if place.is_dir() and not config.is_file():
        raise FileNotFoundError(
            "A finished run of `keras-residual finetune` is exported, or a published checkpoint; both have a "
            f"config.json. Received: {str(source)!r}, which has none. The same `finetune` finishes an interrupted run; "
            "the quickstart exports its model itself."
        )
    if config.is_file() and SECTION in json.loads(config.read_text(encoding="utf-8")):
        run = Classifier.load(place)
        model, preprocess, labels = run.with_probabilities(), run.preprocess, run.labels
    else:
        require_architecture(source)
        record = Weights.read(source)
        model = from_pretrained(source, classifier_activation="softmax" if record.classes else None)
        preprocess, labels = preprocessing(record), record.labels or None
    if other_format:
        _convert(model, directory, preprocess, int8, options.get("fold", True))
        return directory
    version = export(model, directory, preprocess=preprocess, labels=labels, **options)
    about = json.loads((version / METADATA).read_text(encoding="utf-8"))
    size = sum(file.stat().st_size for file in version.rglob("*") if file.is_file())
    folded = about["batch_normalisations"]
    print(f"{version}: {about['name']}, {size / 1e6:,.1f} MB, {'frozen' if about['frozen'] else 'not frozen'}")
    print(f"  {folded['folded']} batch normalisations folded, {len(folded['kept'])} kept")
    for name, why in folded["kept"].items():
        print(f"    {name}: {why}")
    print(f"  signatures: {', '.join(about['signatures'])}; each was run and answers as the model does")
    quoted = shlex.quote(str(directory))
    print(f"\nnext:\n  keras-residual serve {quoted}\n  cd {quoted} && docker compose up")
    return version


def _convert(model: keras.Model, path: Path, preprocess: Any, int8: Any, fold: bool) -> None:
    from keras_residual.exporting.formats import HELD_OUT, convert

    samples = None
    if int8 is not None:
        samples = model_inputs(expand(int8), preprocess, model.input_shape[-1], SAMPLES)
    found = convert(model, path, representative=samples, fold=fold)
    if samples is None:
        print(f"{path}: {model.name}, differs from the model by {found['difference']:.1e} in its own runtime")
    elif "agreement" in found:
        measured = round(found["measured"])
        agreement = f"gives the class of the full model for {found['agreement']:.1%} of {measured} other images"
        print(f"{path}: {model.name} in int8, calibrated on {len(samples) - measured} images; {agreement}")
    else:
        print(
            f"{path}: {model.name} in int8, calibrated on all {len(samples)} images; agreement with the full model was "
            f"not measured, which needs {HELD_OUT} images or more"
        )
    print(f"  it has the network alone; an image is prepared before, from pixels 0..255: {describe(preprocess)}")


def verify_directory(directory: str | os.PathLike[str]) -> None:
    """Check an exported version, or all of a model's, and print how far each answers from what it did.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If a file was changed, or a signature answers otherwise than it did.
    """
    directory = expand(directory)
    numbers = [path for path in directory.glob("*") if path.name.isdecimal() and (path / METADATA).is_file()]
    for version in sorted(numbers, key=lambda path: int(path.name)) or [directory]:
        for name, difference in verify(version).items():
            print(f"{version}  {name:<16} differs by {difference:.1e}")
