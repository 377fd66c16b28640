"""What `keras-residual inspect` does: every diagnosis of a run, printed and written beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_residual import layers
from keras_residual.classifier import Classifier, labelled
from keras_residual.diagnostics.check import check_residual
from keras_residual.diagnostics.flow import gradient_flow
from keras_residual.diagnostics.maps import attention_rollout, grad_cam
from keras_residual.diagnostics.report import residual_report
from keras_residual.diagnostics.result import Result
from keras_residual.io import expand, literal, locked, say
from keras_residual.reports import attempt

__all__ = ["inspect_run"]


def inspect_run(
    run: str | os.PathLike[str],
    images: Sequence[str] = (),
    *,
    data: str | None = None,
    count: int = 32,
    output: str | os.PathLike[str] | None = None,
    say: Callable[[str], None] = say,
) -> list[Result]:
    """Diagnoses a run: its skip connections, its gradients, its blocks, and where it looks in some images.

    Gradients and blocks are measured on `count` images spread evenly over `data`, with their labels; where there are no
    data, on `images`, labelled by the run itself.

    Args:
        run: A run directory, as `keras_residual.finetune` writes it.
        images: Files to draw Grad-CAM (or, for a Vision Transformer, attention roll-out) on.
        data: Labelled images; by default what the run was trained on, if it is still there.
        count: How many of them.
        output: Where figures and tables go; `RUN/inspect` if `None`.
        say: Gets each table.

    Returns:
        The results, in the order in which they were printed.

    Raises:
        FileNotFoundError: If there is no finished run, or no such image.
        ValueError: If a file is no image.
    """
    run = expand(run)
    classifier, folder = Classifier.load(run), run / "inspect" if output is None else expand(output)
    with locked(folder):
        return _inspect(classifier, run, images, data, count, folder, say)


def _inspect(
    classifier: Classifier,
    run: Path,
    images: Sequence[str],
    data: str | None,
    count: int,
    folder: Path,
    say: Callable[[str], None],
) -> list[Result]:
    prepared, raw = _read(classifier, images)
    x, y = _sample(classifier, data or _trained_on(Path(run)), count, say)
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
        say("Gradients and blocks are measured on images: give some, or --data.")
    written = [file for name in results for file in (f"{name}.png", f"{name}.csv") if (folder / file).exists()]
    say(literal(f"written to {folder}/: {', '.join(written)}"))
    return list(results.values())


def _trained_on(run: Path) -> str | None:
    """The data the run was trained on, if they are there."""
    record = run / "run.json"
    data = json.loads(record.read_text(encoding="utf-8")).get("data") if record.is_file() else None
    return data if data and Path(data).exists() else None


def _sample(classifier: Classifier, data: str | None, count: int, say: Callable[[str], None]) -> tuple[Any, Any]:
    if data is None:
        return None, None
    examples, words, _ = labelled(data, classifier.labels)
    for line in words:
        say(f"warning: {line}")
    places = np.unique(np.linspace(0, len(examples) - 1, min(count, len(examples))).astype(int))
    x = np.stack([classifier._prepared(examples[int(i)][0]) for i in places])
    return x, np.asarray(examples.labels)[places]


def _read(classifier: Classifier, images: Sequence[str]) -> tuple[Any, list[Any]]:
    """Images as the network takes them, and as they are shown: cut to what it sees."""
    from keras_residual.data import UnreadableError, decode

    prepared, mean, std = [], np.asarray(classifier.preprocess.mean), np.asarray(classifier.preprocess.std)
    for image in images:
        try:
            prepared.append(classifier._prepared(decode(Path(image).read_bytes())))
        except UnreadableError as error:
            raise ValueError(f"{image}: {error}") from None
    return np.stack(prepared) if prepared else [], [np.clip((x * std + mean) * 255, 0, 255) for x in prepared]
