"""The command `keras-residual inspect`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_residual.io import expand, literal, locked, say

if TYPE_CHECKING:
    from keras_residual.classifier import Classifier
    from keras_residual.diagnostics.result import Result

SUMMARY = "Inspect a run: skip connections, gradients, block importance, saliency."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="images on which to draw Grad-CAM or attention rollout"
    )
    parser.add_argument(
        "--data", metavar="DATA", help="labelled images for gradients and block importance (default: those of the run)"
    )
    parser.add_argument("--count", type=int, default=32, metavar="N", help="number of labelled images (%(default)s)")
    parser.add_argument("--output", metavar="DIR", help="directory for figures and tables (RUN/inspect)")


def run(options: argparse.Namespace) -> None:
    """Diagnose a run, print each result, and write figures and tables.

    Gradients and blocks are measured on the labelled images of `--data`, by default the run's training data; without
    any, on the given images with the labels that the run predicts.
    """
    from keras_residual.classifier import Classifier

    place = expand(options.run)
    classifier = Classifier.load(place)
    folder = place / "inspect" if options.output is None else expand(options.output)
    with locked(folder):
        _inspect(classifier, place, options.images, options.data, options.count, folder)


def _inspect(
    classifier: Classifier, run: Path, images: Sequence[str], data: str | None, count: int, folder: Path
) -> None:
    import numpy as np

    from keras_residual import layers
    from keras_residual.diagnostics import (
        attention_rollout,
        check_residual,
        grad_cam,
        gradient_flow,
        residual_report,
    )
    from keras_residual.reports import attempt

    prepared, raw = _read(classifier, images)
    x, y = _sample(classifier, data or _trained_on(run), count)
    if x is None and len(prepared):
        x = prepared
        y = np.asarray(classifier.model(x, training=False)).argmax(-1)
    model = classifier.model
    diagnoses: dict[str, Callable[[], Result]] = {"skips": lambda: check_residual(model)}
    if x is not None:
        diagnoses["gradients"] = lambda: gradient_flow(model, x, y)
        diagnoses["blocks"] = lambda: residual_report(model, (x, y))
    if len(prepared):
        names = [Path(image).name for image in images]
        options: dict[str, Any] = {"labels": classifier.labels, "names": names, "shown": raw}
        tokens = any(isinstance(layer, layers.Attend) for layer in model.layers)
        diagnoses["maps"] = lambda: (attention_rollout if tokens else grad_cam)(model, prepared, **options)
    results: dict[str, Result] = {}
    for name, diagnose in diagnoses.items():
        if name == "blocks" and "skips" in results and results["skips"].title.startswith(f"{model.name}: no skip"):
            continue
        with attempt(f"the diagnosis of {name}"):
            results[name] = result = diagnose()
            say(f"{result}\n")
            with attempt(f"{name}.csv"):
                result.write_csv(folder / f"{name}.csv")
            with attempt(f"{name}.png"):
                result.plot(folder / f"{name}.png")
    if x is None:
        say("Gradients and block importance require images. Give image files, or --data.")
    written = [file for name in results for file in (f"{name}.png", f"{name}.csv") if (folder / file).exists()]
    say(literal(f"written to {folder}/: {', '.join(written)}"))


def _trained_on(run: Path) -> str | None:
    """Return the path of the training data, if it still exists."""
    record = run / "run.json"
    data = json.loads(record.read_text(encoding="utf-8")).get("data") if record.is_file() else None
    return data if data and Path(data).exists() else None


def _sample(classifier: Classifier, data: str | None, count: int) -> tuple[Any, Any]:
    """Return `count` images spread evenly over labelled data, and their labels; `None` twice without data."""
    import numpy as np

    from keras_residual.classifier import labelled

    if data is None:
        return None, None
    examples, messages, _ = labelled(data, classifier.labels)
    for line in messages:
        say(f"warning: {line}")
    places = np.unique(np.linspace(0, len(examples) - 1, min(count, len(examples))).astype(int))
    x = np.stack([classifier._prepared(examples[int(i)][0]) for i in places])
    return x, np.asarray(examples.labels)[places]


def _read(classifier: Classifier, images: Sequence[str]) -> tuple[Any, list[Any]]:
    """Return images as the network's input, and as pixels for display, cropped in the same way."""
    import numpy as np

    from keras_residual.data import UnreadableError, decode

    prepared, mean, std = [], np.asarray(classifier.preprocess.mean), np.asarray(classifier.preprocess.std)
    for image in images:
        try:
            prepared.append(classifier._prepared(decode(Path(image).read_bytes())))
        except UnreadableError as error:
            raise ValueError(f"{image}: {error}") from None
    return np.stack(prepared) if prepared else [], [np.clip((x * std + mean) * 255, 0, 255) for x in prepared]
