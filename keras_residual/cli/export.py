"""`keras-residual export`."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_residual.io import expand

if TYPE_CHECKING:
    import keras

SUFFIXES = (".onnx", ".xml", ".tflite")
SAMPLES = 300
FLAGS = {"version": "--version", "top_k": "--top-k", "freeze": "--no-freeze"}
SUMMARY = "Write a SavedModel that TensorFlow Serving runs as it is."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN", help="a run, or a checkpoint such as timm/resnet18.a1_in1k")
    parser.add_argument(
        "directory",
        metavar="DIR",
        help="the model's directory, saved_models/NAME; or a file with the network alone, of ONNX (.onnx), OpenVINO "
        "(.xml) or LiteRT (.tflite)",
    )
    parser.add_argument("--version", type=int, metavar="N", help="the version (one more than the largest there)")
    parser.add_argument("--top-k", type=int, metavar="K", help="classes named in answers (5)")
    parser.add_argument("--no-fold", action="store_true", help="keep batch normalisations as they are")
    parser.add_argument("--no-freeze", action="store_true", help="keep weights as variables")
    parser.add_argument(
        "--int8",
        metavar="IMAGES",
        help="for .tflite: weights and activations of 8 bits; a third of this folder's images is held out to measure",
    )


def run(options: argparse.Namespace) -> None:
    """Export a run or a published checkpoint with its preprocessing and labels, and print the result."""
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"Exporting must run on the TensorFlow backend; got KERAS_BACKEND={keras.backend.backend()}. Set "
            "KERAS_BACKEND=tensorflow: weights that were trained on JAX load there unchanged."
        )
    given = {
        "version": options.version,
        "top_k": options.top_k,
        "fold": False if options.no_fold else None,
        "freeze": False if options.no_freeze else None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    directory = expand(options.directory)
    other_format = directory.suffix in SUFFIXES
    if other_format and (unused := [FLAGS[name] for name in given if name != "fold"]):
        raise ValueError(
            f"{directory.suffix} files must be exported without {', '.join(unused)}: these are for a SavedModel."
        )
    if options.int8 is not None and directory.suffix != ".tflite":
        raise ValueError(f"Only a LiteRT file (.tflite) can be int8; got {str(directory)!r}.")
    model, preprocess, labels = _read(options.source)
    if other_format:
        _convert(model, directory, preprocess, options.int8, given.get("fold", True))
    else:
        _export(model, directory, preprocess=preprocess, labels=labels, **given)


def _read(source: str) -> tuple[keras.Model, Any, Any]:
    """Return a model that ends in probabilities, its preprocessing, and the names of its classes.

    Args:
        source: A run's directory, or what `keras_residual.from_pretrained` takes; `~` and variables are expanded.
    """
    from keras_residual.classifier import SECTION, Classifier
    from keras_residual.models._checkpoints import require_architecture
    from keras_residual.models.pretrained import from_pretrained
    from keras_residual.weights import Weights, preprocessing

    place = expand(source)
    config = place / "config.json"
    if place.is_dir() and not config.is_file():
        raise FileNotFoundError(
            "The source must be a finished run of `keras-residual finetune` or a published checkpoint; both contain a "
            f"config.json. {str(place)!r} has none. Run the same `finetune` again to finish an interrupted run; the "
            "quickstart exports its model itself."
        )
    if config.is_file() and SECTION in json.loads(config.read_text(encoding="utf-8")):
        run = Classifier.load(place)
        return run.with_probabilities(), run.preprocess, run.labels
    require_architecture(source)
    record = Weights.read(source)
    model = from_pretrained(source, classifier_activation="softmax" if record.classes else None)
    return model, preprocessing(record), record.labels or None


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
    print(f"  signatures: {', '.join(about['signatures'])}; each was run and answers as the model does")
    quoted = shlex.quote(str(directory))
    print(f"\nnext:\n  keras-residual serve {quoted}\n  cd {quoted} && docker compose up")


def _convert(model: keras.Model, path: Path, preprocess: Any, int8: str | None, fold: bool) -> None:
    """Write a file of another format, which has the network alone, and print how far it differs from the model.

    Args:
        model: The model, ending in probabilities.
        path: The file; its suffix is the format.
        preprocess: The model's preprocessing.
        int8: Images to quantise by and to measure the result on, of which at most 300 are used; `None` for floats.
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
