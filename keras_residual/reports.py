"""Report of a run: metrics, tables and figures."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_residual import figures, metrics
from keras_residual.classifier import Classifier
from keras_residual.io import literal, write_json, write_table

__all__ = ["attempt", "recall_line", "shown", "write_first_batch", "write_history", "write_report"]

SHEET = 24  # maximum number of images in mistakes.png


@contextlib.contextmanager
def attempt(name: str) -> Iterator[None]:
    """Turn a failure to write one file of a report into a warning, so that the other files are still written.

    Args:
        name: Name of the file, for the warning.
    """
    try:
        yield
    except Exception as error:  # includes MemoryError, but not KeyboardInterrupt
        reason = literal(" ".join(f"{type(error).__name__}: {error}".split())).rstrip(".: ")
        warnings.warn(f"Could not write {literal(name)} ({reason}). Continuing without it.", stacklevel=3)


def write_first_batch(images: Any, shares: Any, labels: Sequence[str], path: Path, batch_size: int) -> None:
    """Draw augmented training images with the names of their classes; of mixed images, with the shares of two.

    Args:
        images: `(n, H, W, C)`, values 0 to 255.
        shares: `(n, classes)`, share of each class in each image.
        labels: Class names.
        path: PNG file to write.
        batch_size: Number of images in the batch.
    """
    captions = []
    for row in np.asarray(shares):
        found = [int(i) for i in np.argsort(-row, kind="stable")[:2] if row[i] > 0.005]
        names = [figures.short(labels[i]) for i in found]
        mixed = [f"{name} {row[i]:.0%}" for name, i in zip(names, found, strict=True)]
        captions.append("\n".join(mixed if len(mixed) > 1 else names))
    height, width = images.shape[1:3]
    which = f"{len(images)} of {batch_size:,} images" if len(images) < batch_size else f"all {batch_size} images"
    title = f"The first training batch as the network sees it: {which}, {width} x {height} pixels"
    figures.draw_mistakes(list(images), captions, path, title)


def write_history(history: Mapping[str, Sequence[float]], path: Path) -> None:
    """Write one row per epoch; missing values are left empty."""
    epochs = max(map(len, history.values()), default=0)
    columns = [[f"{value:.6g}" for value in values] + [""] * (epochs - len(values)) for values in history.values()]
    write_table(path, ("epoch", *history), zip(range(1, epochs + 1), *columns, strict=True))


def write_report(
    classifier: Classifier,
    examples: Any,
    directory: Path,
    *,
    majority: int,
    batch_size: int = 32,
    part: str = "validation",
    skipped: int | None = None,
    answers: metrics.Answers | None = None,
    baseline: float | None = None,
) -> dict[str, float]:
    """Evaluate a classifier, and write the results as tables and figures.

    Writes `metrics.json`, `predictions.csv` (one row per image), `classes.csv` (one row per class), `confusions.csv`
    (one row per confused pair of classes), `confusion.png` and `mistakes.png`, in this order. If a file cannot be
    written, a warning is issued and the rest is still written.

    Args:
        classifier: The classifier.
        examples: A `keras_residual.data.Examples`.
        directory: Output directory; created if it does not exist.
        majority: Index of the most frequent class in the training data.
        batch_size: Images per batch.
        part: Name of the split, for the titles of the figures.
        skipped: Number of images that could not be read and were left out; added to the metrics.
        answers: Per-image results of the classifier on these examples, if already computed.
        baseline: Accuracy of a baseline on these examples, added to the metrics as `baseline_accuracy`.

    Returns:
        The metrics, as in `keras_residual.metrics.measure`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    labels, names = classifier.labels, examples.names
    answers = classifier.answers(examples, batch_size) if answers is None else answers
    found = answers.measure(majority) | ({} if skipped is None else {"skipped": float(skipped)})
    if baseline is not None:
        found["baseline_accuracy"] = baseline
    with attempt("metrics.json"):
        write_json(directory / "metrics.json", found)
    truth, guesses, sure, own = answers.truth, answers.guesses, answers.sure, answers.own
    with attempt("predictions.csv"):
        write_table(
            directory / "predictions.csv",
            ("image", "true", "predicted", "probability", "probability_of_true"),
            (
                (name, labels[t], labels[g], f"{p:.4f}", f"{q:.4f}")
                for name, t, g, p, q in zip(names, truth, guesses, sure, own, strict=True)
            ),
        )
    with attempt("classes.csv"):
        measures = answers.per_class()
        rows = zip(*(measures[name] for name in ("recall", "precision", "f1")), strict=True)
        write_table(
            directory / "classes.csv",
            ("class", "images", "recall", "precision", "f1"),
            (
                (label, int(count), *(f"{value:.4f}" for value in row))
                for label, count, row in zip(labels, measures["images"], rows, strict=True)
            ),
        )
    with attempt("confusions.csv"):
        write_table(
            directory / "confusions.csv",
            ("true", "predicted", "images"),
            ((labels[t], labels[g], count) for count, t, g in metrics.confusions(truth, guesses)),
        )
    with attempt("confusion.png"):
        title = f"{found['accuracy']:.1%} of {len(truth):,} {part} images correct"
        figures.draw_confusion(truth, guesses, labels, directory / "confusion.png", title)
    with attempt("mistakes.png"):
        wrong = np.flatnonzero(guesses != truth)
        worst = wrong[np.argsort(own[wrong], kind="stable")][:SHEET]

        def caption(i: int) -> str:
            predicted, true = (figures.short(labels[classes[i]]) for classes in (guesses, truth))
            return f"true: {true}\npredicted: {predicted} ({sure[i]:.0%})\n{_tail(literal(names[i]))}"

        figures.draw_mistakes(
            [examples[int(i)][0] for i in worst],
            [caption(i) for i in worst],
            directory / "mistakes.png",
            _mistakes_title(len(wrong), len(worst), len(truth), part),
        )
    return found


def recall_line(answers: metrics.Answers, labels: Sequence[str], most: int = 8) -> str:
    """Return the recall of each class as text, lowest first; only the `most` lowest if there are more classes."""
    measures = answers.per_class()
    order = [int(i) for i in np.argsort(measures["recall"], kind="stable") if measures["images"][i]]
    recalls = [f"{literal(labels[i])} {measures['recall'][i]:.1%} of {measures['images'][i]:,}" for i in order[:most]]
    return ", ".join(recalls) + (f", {len(order) - most:,} more in classes.csv" if len(order) > most else "")


def shown(folder: Path) -> list[str]:
    """Return the sorted names of the visible files and directories in `folder`; directories end with a slash."""
    return sorted(f"{path.name}{'/' * path.is_dir()}" for path in folder.iterdir() if not path.name.startswith("."))


def _tail(name: str, most: int = 30) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _mistakes_title(wrong: int, shown: int, images: int, part: str) -> str:
    if not wrong:
        return f"No mistakes in {images:,} {part} images"
    if shown < wrong:
        return f"The {shown} worst of {wrong:,} mistakes in {images:,} {part} images"
    which = "The only mistake" if wrong == 1 else f"All {wrong:,} mistakes"
    return f"{which} of {images:,} {part} images"
