"""Train a small residual network on scikit-learn's digits, compare it with baselines, and export it."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_residual import figures, reports
from keras_residual.classifier import Classifier
from keras_residual.data import Examples, load
from keras_residual.exporting.readback import answers_without_keras
from keras_residual.io import locked, say, write_json
from keras_residual.models import find
from keras_residual.training import Recipe, Selection, fit
from keras_residual.weights import Preprocess

__all__ = ["quickstart"]

NETWORK = "ResNet8"
PREPROCESS = Preprocess((8, 8), (0.0,), (1.0,), crop=1.0, interpolation="bilinear")
# Width and recipe were chosen on splits of other seeds than those that the README reports.
WIDTH = 32
RECIPE = Recipe(
    name="digits",
    optimizer="adamw",
    learning_rate=3e-3,
    batch_size=64,
    epochs=40,
    warmup=3,
    weight_decay=0.05,
    decay_all=True,
    label_smoothing=0.1,
    flip=False,
    affine=(10.0, 1 / 8, 0.1),
)

Part = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def split(seed: int) -> tuple[Examples, Examples]:
    """Return four fifths of the 1,797 digits for training and one fifth for testing, stratified by class."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images[..., None] * 255 / 16).astype("uint8")
    data = load((images, digits.target), validation=0.2, seed=seed, classes=list("0123456789"))
    return data.train, data.validation


def arrays(examples: Examples) -> Part:
    """Return the images `(N, 8, 8, 1)`, uint8, and their classes `(N,)`."""
    return np.stack([examples[i][0] for i in range(len(examples))]), np.asarray(examples.labels)


def train(training: Part, test: Part, seed: int, epochs: int, width: int) -> tuple[Classifier, Any]:
    """Train a classifier and return it with its history.

    The weights are those of the last epoch: choosing an epoch by the test digits would flatter the result.
    """
    keras.utils.set_random_seed(seed)
    model = find(NETWORK).builder(input_shape=(8, 8, 1), classifier_activation=None, width=width, name="digits")
    fitting: dict[str, Any] = {"epochs": epochs, "seed": seed, "selection": Selection(keep="last")}
    history = fit(model, RECIPE, training, test, preprocess=PREPROCESS, **fitting)
    return Classifier(model, PREPROCESS, tuple("0123456789"), NETWORK, {"width": width}), history


def baselines(training: Part, test: Part) -> dict[str, float]:
    """Return the accuracy of three classical classifiers on the same split."""
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    models = {
        "majority class": DummyClassifier(),
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        "SVC (RBF)": SVC(gamma=0.256),  # scikit-learn's example has 0.001 for pixels of 0..16
    }
    (x, y), (test_x, test_y) = ((a.reshape(len(a), -1) / 255, b) for a, b in (training, test))
    return {name: float(model.fit(x, y).score(test_x, test_y)) for name, model in models.items()}


def quickstart(
    output: str | os.PathLike[str] = "runs/digits",
    saved_model: str | os.PathLike[str] = "saved_models/digits",
    seeds: int = 1,
    seed: int = 0,
    epochs: int | None = None,
    width: int = WIDTH,
) -> dict[str, Any]:
    """Train on handwritten digits, compare with baselines, write a run directory, and export a SavedModel.

    Args:
        output: Run directory of the first seed: classifier, tables and figures. Its `metrics.json` covers all seeds.
        saved_model: Directory in which the SavedModel gets the next version number.
        seeds: Number of runs, each with its own split.
        seed: Seed of the first run.
        epochs: Epochs of each run; `None` for 40.
        width: Channels of the first stage, 16 or more.

    Returns:
        The contents of `metrics.json`.

    Raises:
        ValueError: If `seeds` or `epochs` is not positive, `width` below 16, or Keras does not run on TensorFlow.
        OSError: If a directory cannot be created.
    """
    epochs = RECIPE.epochs if epochs is None else epochs
    for what, number in (("seeds", seeds), ("epochs", epochs)):
        if number < 1:
            raise ValueError(f"{what} must be 1 or more; got {number}.")
    if keras.backend.backend() != "tensorflow":  # found before the training, not at the export
        raise ValueError(
            "The quickstart writes a SavedModel, for which Keras must run on TensorFlow; got "
            f"KERAS_BACKEND={keras.backend.backend()}. Set KERAS_BACKEND=tensorflow."
        )
    Path(saved_model).mkdir(parents=True, exist_ok=True)
    metrics: dict[str, Any] = {"accuracy": {}, "training_seconds": [], "epochs": epochs, "width": width}
    metrics["seeds"] = list(range(seed, seed + seeds))
    with locked(Path(output)):
        first, *_ = [_run(each, metrics) for each in metrics["seeds"]]
        say("\naccuracy on test digits" + (f", {seeds} splits: mean, lowest to highest" * (seeds > 1)))
        for name, values in metrics["accuracy"].items():
            spread = f"   {min(values):.1%} to {max(values):.1%}" if seeds > 1 else ""
            say(f"  {name:<20} {np.mean(values):7.2%}{spread}")
        _write(Path(output), *first, metrics)
    _export(Path(saved_model), first[0], first[3], metrics)
    where = [shlex.quote(str(path)) for path in (output, saved_model)]
    say(
        f"\nnext:\n  keras-residual inspect {where[0]}\n  keras-residual serve {where[1]}\n"
        "  keras-residual quickstart --seeds 5\n  keras-residual list 'resnet*'"
    )
    return metrics


def _run(seed: int, metrics: dict[str, Any]) -> tuple[Classifier, Any, Examples, Examples]:
    """Train and measure on one split; append the results to `metrics`."""
    training, test = split(seed)
    parts = arrays(training), arrays(test)
    say(f"\nseed {seed}: {NETWORK} on {len(training)} digits of 8x8 pixels, {len(test)} for testing")
    start = time.perf_counter()
    classifier, history = train(*parts, seed, metrics["epochs"], metrics["width"])
    metrics["training_seconds"].append(round(time.perf_counter() - start, 1))
    for name, accuracy in (baselines(*parts) | {NETWORK: classifier.evaluate(test)["accuracy"]}).items():
        metrics["accuracy"].setdefault(name, []).append(accuracy)
    return classifier, history, training, test


def _write(
    folder: Path, classifier: Classifier, history: Any, training: Examples, test: Examples, metrics: dict[str, Any]
) -> None:
    """Write the run directory; the classifier first, so that a failing report loses nothing."""
    classifier.save(folder, metrics)
    title = f"{NETWORK} on handwritten digits"
    reports.write_report(classifier, test, folder, majority=int(np.bincount(training.labels).argmax()), part="test")
    write_json(folder / "metrics.json", metrics)  # replaces that of one seed without baselines
    with reports.attempt("history.csv"):
        reports.write_history(history, folder / "history.csv")
    with reports.attempt("curves.png"):
        figures.draw_curves(history, folder / "curves.png", title)
    say(f"\nwritten to {folder}/: {', '.join(reports.shown(folder))}")


def _export(saved_model: Path, classifier: Classifier, test: Examples, metrics: dict[str, Any]) -> None:
    """Export, compare with the answers of a process without Keras, and print four digits with their answers."""
    version = classifier.export(saved_model, top_k=3, notes=_notes(metrics))
    images, truth = arrays(test)
    served = answers_without_keras(version, images.astype("float32"))["probabilities"]
    difference = np.abs(served - classifier.probabilities(test)).max()
    say(f"exported to {version}/, read back without Keras: probabilities agree to {difference:.1e}\n")
    for y in range(8):
        say("   ".join("".join(" .:-=+*#%@"[9 * int(p) // 255] * 2 for p in image[y, :, 0]) for image in images[:4]))
    answers = zip(classifier.predict(images[:4]), truth, strict=False)
    say("   ".join(f"{f'{found.label} ({found.probability:.0%}), true: {true}':<16}" for found, true in answers))


def _notes(metrics: dict[str, Any]) -> str:
    """Describe data, accuracy and licence for the model card."""
    seed, width, accuracy = metrics["seeds"][0], metrics["width"], metrics["accuracy"]
    return (
        "Classifies handwritten digits of 8x8 pixels: light ink on a dark ground, the digit filling the image. A "
        f"residual network with one block per stage and {width}, {2 * width} and {4 * width} channels (He et al. "
        "2016), trained on four fifths of scikit-learn's 1,797 digits (UCI's Optical Recognition of Handwritten "
        f"Digits, CC BY 4.0, doi:10.24432/C50P49). On the other fifth, the split of seed {seed}, its accuracy is "
        f"{accuracy[NETWORK][0]:.2%} (SVC: {accuracy['SVC (RBF)'][0]:.2%}). It assigns a digit to any other image, "
        "too.\n\n"
        f"Made by `keras-residual quickstart --seed {seed} --epochs {metrics['epochs']} --width {width}`. Licence of "
        "the network: Apache-2.0, as keras_residual."
    )
