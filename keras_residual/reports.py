"""What a run leaves behind beside its weights: tables, measures and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_residual import figures, metrics
from keras_residual.classifier import Classifier
from keras_residual.io import write_table, written_whole

__all__ = ["write_history", "write_report"]

SHEET = 24  # images of the worst mistakes


def write_history(history: Mapping[str, Sequence[float]], path: Path) -> None:
    """Writes one row for each epoch; what an epoch lacks stays empty."""
    epochs = max(map(len, history.values()), default=0)
    columns = [[f"{value:.6g}" for value in values] + [""] * (epochs - len(values)) for values in history.values()]
    write_table(path, ("epoch", *history), zip(range(1, epochs + 1), *columns, strict=True))


def write_report(
    classifier: Classifier, examples: Any, directory: Path, *, majority: int, batch_size: int = 32, title: str = ""
) -> dict[str, float]:
    """Measures a classifier, and writes `metrics.json`, `confusion.png`, `predictions.csv` and `mistakes.png`.

    Args:
        classifier: The classifier.
        examples: A `keras_residual.data.Examples`.
        directory: Where the files go; is made if it does not exist.
        majority: Number of the training data's most frequent class.
        batch_size: Images in a batch.
        title: Above the pictures.

    Returns:
        The measures, as in `keras_residual.metrics.measure`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    probabilities = classifier.probabilities(examples, batch_size)
    truth, guesses = examples.labels, probabilities.argmax(-1)
    found = metrics.measure(probabilities, truth, majority)
    with written_whole(directory / "metrics.json") as part:
        part.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    labels = classifier.labels
    matrix = np.zeros((len(labels), len(labels)), int)
    np.add.at(matrix, (truth, guesses), 1)
    words = f"{found['accuracy']:.1%} of {len(truth):,} held-out images are right"
    figures.draw_confusion(matrix, labels, directory / "confusion.png", f"{title}{words}")
    sure = probabilities[np.arange(len(truth)), guesses]
    own = probabilities[np.arange(len(truth)), truth]
    write_table(
        directory / "predictions.csv",
        ("image", "true", "predicted", "probability", "probability_of_true"),
        (
            (name, labels[t], labels[g], f"{p:.4f}", f"{q:.4f}")
            for name, t, g, p, q in zip(examples.names, truth, guesses, sure, own, strict=True)
        ),
    )
    wrong = np.flatnonzero(guesses != truth)
    worst = wrong[np.argsort(own[wrong], kind="stable")][:SHEET]
    figures.draw_mistakes(
        [examples[int(i)][0] for i in worst],
        [
            f"{labels[guesses[i]][:22]} {sure[i]:.0%}\nis {labels[truth[i]][:22]} {own[i]:.0%}\n"
            f"{_tail(examples.names[i])}"
            for i in worst
        ],
        directory / "mistakes.png",
        f"{title}{_worst(len(wrong), len(worst), len(truth))}",
    )
    return found


def _tail(name: str, most: int = 30) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _worst(wrong: int, shown: int, images: int) -> str:
    if not wrong:
        return f"no mistake among {images:,} held-out images"
    which = f"all {wrong:,} mistakes" if shown == wrong else f"the {shown} worst of {wrong:,} mistakes"
    which = "the one mistake" if wrong == 1 else which
    return f"{which}: what was predicted, how surely; what it is, how surely; the file"
