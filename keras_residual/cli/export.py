"""The command `keras-residual export`."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_residual.io import expand

if TYPE_CHECKING:
    import keras

RUNTIMES = {".onnx": "ONNX Runtime", ".xml": "OpenVINO", ".tflite": "LiteRT"}
SAMPLES = 300
FLAGS = {"version": "--version", "top_k": "--top-k", "freeze": "--no-freeze"}
SUMMARY = "Export a run or a checkpoint as a SavedModel for TensorFlow Serving, or to ONNX, OpenVINO or LiteRT."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN", help="run directory, or a checkpoint such as timm/resnet18.a1_in1k")
    parser.add_argument(
        "directory",
        metavar="DIR",
        help="directory of the model, saved_models/NAME; or a file for ONNX (.onnx), OpenVINO (.xml) or LiteRT "
        "(.tflite), which contains the network without preprocessing and labels",
    )
    parser.add_argument(
        "--version", type=int, metavar="N", help="version number (default: the highest existing one plus 1)"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="number of classes in each response (5)")
    parser.add_argument("--no-fold", action="store_true", help="do not fold batch normalisation into convolutions")
    parser.add_argument("--no-freeze", action="store_true", help="keep weights as variables instead of constants")
    parser.add_argument(
        "--int8",
        metavar="IMAGES",
        help="with .tflite: quantise to 8 bits, calibrated on the images of this folder; a third of them measures the "
        "result",
    )


def run(options: argparse.Namespace) -> None:
    """Export a run or a published checkpoint with its preprocessing and labels, and print the result."""
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"Keras must run on TensorFlow for an export; got KERAS_BACKEND={keras.backend.backend()}. Set "
            "KERAS_BACKEND=tensorflow; weights trained on JAX load without conversion."
        )
    given = {
        "version": options.version,
        "top_k": options.top_k,
        "fold": False if options.no_fold else None,
        "freeze": False if options.no_freeze else None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    directory = expand(options.directory)
    other_format = directory.suffix in RUNTIMES
    if other_format and (unused := [FLAGS[name] for name in given if name != "fold"]):
        raise ValueError(f"{', '.join(unused)} must not be used with {directory.suffix} files, only for a SavedModel.")
    if options.int8 is not None and directory.suffix != ".tflite":
        raise ValueError(f"--int8 requires an output file that ends in .tflite; got {str(directory)!r}.")
    model, preprocess, labels, reading = _read(options.source)
    if other_format:
        _convert(model, directory, preprocess, options.int8, given.get("fold", True))
    else:
        _export(model, directory, preprocess=preprocess, labels=labels, reading=reading, **given)


def _read(source: str) -> tuple[keras.Model, Any, Any, Any]:
    """Return a model with a softmax at its end, its preprocessing, its labels, and how it reads images.

    Args:
        source: A run's directory, or what `keras_residual.from_pretrained` takes; `~` and variables are expanded.
    """
    from keras_residual.classifier import SECTION, Classifier
    from keras_residual.models._checkpoints import require_architecture
    from keras_residual.models.pretrained import from_pretrained
    from keras_residual.reading.rules import Reading
    from keras_residual.weights import Weights, preprocessing

    place = expand(source)
    config = place / "config.json"
    if place.is_dir() and not config.is_file():
        raise FileNotFoundError(
            "The source must be a finished run of `keras-residual finetune` or a published checkpoint, which contain a "
            f"config.json; {str(place)!r} has none. To finish an interrupted run, run its `finetune` command again."
        )
    if config.is_file() and SECTION in json.loads(config.read_text(encoding="utf-8")):
        run = Classifier.load(place)
        return run.with_probabilities(), run.preprocess, run.labels, getattr(run, "reading", Reading.from_dict(None))
    require_architecture(source)
    record = Weights.read(source)
    model = from_pretrained(source, classifier_activation="softmax" if record.classes else None)
    return model, preprocessing(record), record.labels or None, None


def _export(model: keras.Model, directory: Path, **options: Any) -> None:
    from keras_residual.exporting import export
    from keras_residual.exporting.bundle import METADATA

    version = export(model, directory, **options)
    about = json.loads((version / METADATA).read_text(encoding="utf-8"))
    size = sum(file.stat().st_size for file in version.rglob("*") if file.is_file())
    folded = about["batch_normalisations"]
    print(f"{version}: {about['name']}, {size / 1e6:,.1f} MB, {'frozen' if about['frozen'] else 'not frozen'}")
    print(f"  {folded['folded']} batch normalisations folded, {len(folded['kept'])} kept")
    for name, why in folded["kept"].items():
        print(f"    {name}: {why}")
    print(f"  signatures: {', '.join(about['signatures'])}; each was run and agrees with the model")
    quoted = shlex.quote(str(directory))
    print(f"\nnext:\n  keras-residual serve {quoted}\n  cd {quoted} && docker compose up")


def _convert(model: keras.Model, path: Path, preprocess: Any, int8: str | None, fold: bool) -> None:
    """Write the network in another format and print how far its output differs from the model's.

    Args:
        model: The model, ending in probabilities.
        path: The file; its suffix determines the format.
        preprocess: The model's preprocessing.
        int8: Images for calibration and measurement, of which at most 300 are used; `None` for float32.
        fold: Whether batch normalisations are folded.
    """
    from keras_residual.classifier import model_inputs
    from keras_residual.exporting.bundle import describe
    from keras_residual.exporting.formats import HELD_OUT, convert

    samples = None
    if int8 is not None:
        samples = model_inputs(expand(int8), preprocess, model.input_shape[-1], SAMPLES)
    found = convert(model, path, representative=samples, fold=fold)
    if samples is None:
        difference = f"differs from the model by at most {found['difference']:.1e}, run by {RUNTIMES[path.suffix]}"
        print(f"{path}: {model.name}, {difference}")
    elif "agreement" in found:
        measured = round(found["measured"])
        agreement = f"predicts the class of the float32 model for {found['agreement']:.1%} of {measured} other images"
        print(f"{path}: {model.name} in int8, calibrated on {len(samples) - measured} images; {agreement}")
    else:
        print(
            f"{path}: {model.name} in int8, calibrated on all {len(samples)} images; agreement with the float32 model "
            f"was not measured, which requires at least {HELD_OUT} images"
        )
    print(f"  the file contains the network only; prepare images of 0..255 as follows: {describe(preprocess)}")
