"""Train a small residual network on scikit-learn's digits, compare, draw, save, export, and read the export back."""

from __future__ import annotations

import dataclasses
import os
import shlex
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_residual import figures, reports
from keras_residual.blocks import basic
from keras_residual.classifier import Classifier
from keras_residual.data import Examples, load
from keras_residual.exporting.readback import answers_without_keras
from keras_residual.io import locked, say, write_json, written_whole
from keras_residual.models.resnet_cifar import CifarConfig, ResNetCifar
from keras_residual.training import Recipe, Selection, fit
from keras_residual.weights import Preprocess, save_weights

__all__ = ["quickstart"]

# A row of its own: 8x8 pixels ask for width before depth. Chosen on splits of other seeds than those reported.
NETWORK = CifarConfig("ResNet-8 wide", basic, 1, (32, 64, 128), input_shape=(8, 8, 1))
RECIPE = Recipe(
    name="digits",
    optimizer="adamw",
    learning_rate=3e-3,
    batch_size=64,
    epochs=40,
    warmup=3,
    warmup_start=1 / 25,
    weight_decay=0.05,
    decay_all=True,
    label_smoothing=0.1,
    flip=False,
)
DIGITS = tuple(map(str, range(10)))
FILES = (
    "model.keras, weights.safetensors, history.csv, metrics.json, curves.png, confusion.png, mistakes.png, "
    "predictions.csv, classes.csv, confusions.csv"
)
Part = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def split(seed: int) -> tuple[Part, Part]:
    """Return four fifths of the 1,797 digits for training and one fifth for testing, stratified.

    Each part is images `(N, 8, 8, 1)` of 0..1 and their classes `(N,)`.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    # Rounded to 8 bits, as in an image file: the served model gets exactly the values of training.
    images = (np.round(x.reshape(-1, 8, 8, 1) * 255 / 16) / 255).astype("float32")
    train_x, test_x, train_y, test_y = train_test_split(images, y, test_size=0.2, stratify=y, random_state=seed)
    return (train_x, train_y), (test_x, test_y)


class Distort(keras.layers.Layer):
    """In training, shift each image by up to a pixel, turn it by up to 10 degrees and scale it by up to 10 %.

    One affine map and one interpolation: Keras' three layers in a row would blur 8x8 pixels three times.
    """

    def __init__(self) -> None:
        super().__init__()
        self.random = keras.random.SeedGenerator()

    def call(self, images: Any, training: bool = False) -> Any:
        if not training:
            return images
        limits = np.array([[np.deg2rad(10)], [0.1], [1.0], [1.0]], "float32")
        drawn = keras.random.uniform((4, ops.shape(images)[0]), -1, 1, seed=self.random) * limits
        angle, size, down, right = ops.unstack(drawn, num=4)
        cos, sin = ops.cos(angle) / ops.exp(size), ops.sin(angle) / ops.exp(size)
        middle, zero = (images.shape[1] - 1) / 2, ops.zeros_like(angle)
        right, down = right + middle * (1 - cos + sin), down + middle * (1 - sin - cos)
        transforms = ops.stack([cos, -sin, right, sin, cos, down, zero, zero], axis=1)
        # Pixels whose source is not wholly inside the image become dark: at the edges, some ink is erased.
        moved = ops.image.affine_transform(ops.concatenate([images, ops.ones_like(images)], axis=-1), transforms)
        return moved[..., :1] * ops.cast(moved[..., 1:] > 0.999, moved.dtype)


def network(width: int = NETWORK.widths[0]) -> keras.Model:
    """Build the CIFAR ResNet of He et al. 2016 with one block a stage, twice as wide; it returns logits."""
    row = dataclasses.replace(NETWORK, widths=(width, 2 * width, 4 * width))
    return ResNetCifar(classifier_activation=None, name="digits").build(row)


def train(training: Part, test: Part, seed: int, epochs: int, width: int) -> tuple[Classifier, dict[str, list[float]]]:
    """Train a classifier and return it with its history by name and epoch.

    The weights are those of the last epoch: the test images are measured on, never chosen by.
    """
    keras.utils.set_random_seed(seed)
    model = network(width)
    inputs = keras.Input(NETWORK.input_shape)
    distorted = keras.Model(inputs, model(Distort()(inputs)))
    history = fit(distorted, RECIPE, training, test, epochs=epochs, seed=seed, selection=Selection(keep="last"))
    prepare = Preprocess((8, 8), (0.0,), (1.0,), crop=1.0, interpolation="bilinear")
    return Classifier(model, prepare, DIGITS, NETWORK.name), history


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
        "SVC (RBF)": SVC(gamma=0.256),  # 0.001 for pixels of 0..16, as scikit-learn's own example has it
    }
    (x, y), (test_x, test_y) = ((images.reshape(len(images), -1), classes) for images, classes in (training, test))
    return {name: float(model.fit(x, y).score(test_x, test_y)) for name, model in models.items()}


def quickstart(
    output: str | os.PathLike[str] = "runs/digits",
    saved_model: str | os.PathLike[str] = "saved_models/digits",
    seeds: int = 1,
    seed: int = 0,
    epochs: int | None = None,
    width: int = NETWORK.widths[0],
) -> dict[str, Any]:
    """Train on handwritten digits, compare, draw, save and export, and print each result.

    Args:
        output: Directory for the first seed's `model.keras`, `weights.safetensors`, `history.csv` and `curves.png`,
            and the files of `keras_residual.reports.write_report`; `metrics.json` is about all seeds.
        saved_model: Directory in which the SavedModel gets the next version number.
        seeds: Number of runs, each with a split of its own.
        seed: Seed of the first run.
        epochs: Epochs of each run; `None` for 40.
        width: Channels of the first stage, 16 or more; the second has twice as many, the third four times.

    Returns:
        The contents of `metrics.json`.

    Raises:
        ValueError: If `seeds` or `epochs` is not positive, `width` below 16, or Keras does not run on TensorFlow.
        OSError: If a directory cannot be made.
    """
    epochs = RECIPE.epochs if epochs is None else epochs
    for what, number, least in (("seeds", seeds, 1), ("epochs", epochs, 1), ("width", width, 16)):
        if number < least:  # strided 1x1 convolutions of fewer than 16 channels crash in oneDNN
            raise ValueError(f"{what} must be {least} or more; got {number}.")
    # What would fail at the end fails here, before the training.
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "The quickstart ends in a SavedModel, which Keras writes on the TensorFlow backend only; got "
            f"KERAS_BACKEND={keras.backend.backend()}. Set KERAS_BACKEND=tensorflow."
        )
    Path(saved_model).mkdir(parents=True, exist_ok=True)
    with locked(Path(output)):
        return _quickstart(Path(output), Path(saved_model), range(seed, seed + seeds), epochs, width)


def _quickstart(folder: Path, saved_model: Path, seeds: range, epochs: int, width: int) -> dict[str, Any]:
    accuracies: dict[str, list[float]] = {}
    seconds: list[float] = []
    runs: list[tuple[Classifier, dict[str, list[float]], Part, int]] = []
    for seed in seeds:
        training, test = split(seed)
        say(f"\nseed {seed}: {NETWORK.name} on {len(training[1])} digits of 8x8 pixels, {len(test[1])} for testing")
        start = time.perf_counter()
        classifier, history = train(training, test, seed, epochs, width)
        seconds.append(round(time.perf_counter() - start, 1))
        say(f"trained in {seconds[-1]:.0f} s")
        own = {NETWORK.name: classifier.evaluate(_examples(test))["accuracy"]}
        for name, accuracy in (baselines(training, test) | own).items():
            accuracies.setdefault(name, []).append(accuracy)
        runs = runs or [(classifier, history, test, int(np.bincount(training[1]).argmax()))]
    say("\naccuracy on test digits" + (f", {len(seeds)} splits: mean, lowest to highest" * (len(seeds) > 1)))
    for name, values in accuracies.items():
        spread = f"   {min(values):.1%} to {max(values):.1%}" if len(seeds) > 1 else ""
        say(f"  {name:<20} {np.mean(values):7.2%}{spread}")

    classifier, history, test, majority = runs[0]
    metrics = {"accuracy": accuracies, "training_seconds": seconds, "seeds": list(seeds)}
    metrics |= {"epochs": epochs, "width": width}
    _write_run(folder, classifier, history, _examples(test), majority, metrics)
    _export(saved_model, classifier, _examples(test), _notes(metrics))
    say(
        "\nnext:\n"
        "  keras-residual list 'resnet*'             which models there are\n"
        "  keras-residual info ResNet50              what one of them costs\n"
        "  keras-residual quickstart --seeds 5       how sure the accuracy is\n"
        f"  keras-residual {f'serve {shlex.quote(str(saved_model))}':<25}  try it in a browser"
    )
    return metrics


def _examples(part: Part) -> Examples:
    return load((np.round(255 * part[0]).astype("uint8"), part[1]), validation=0.0, classes=DIGITS).train


def _write_run(
    folder: Path, classifier: Classifier, history: Any, examples: Examples, majority: int, metrics: dict[str, Any]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / "model.keras") as path:
        classifier.with_probabilities().save(path)
    save_weights(classifier.model, folder / "weights.safetensors")
    title = f"{NETWORK.name} on handwritten digits"
    reports.write_report(classifier, examples, folder, majority=majority, title="Digits: ")
    write_json(folder / "metrics.json", metrics)  # replaces the report's, which has one seed and no baselines
    with reports.attempt("history.csv"):
        reports.write_history(history, folder / "history.csv")
    with reports.attempt("curves.png"):
        figures.draw_curves(history, folder / "curves.png", title)
    say(f"\nwritten to {folder}/: {FILES}")


def _export(saved_model: Path, classifier: Classifier, examples: Examples, notes: str) -> None:
    """Export, compare with the answers of a process without Keras, and print digits with their answers."""
    version = classifier.export(saved_model, top_k=3, notes=notes)
    images = np.stack([examples[i][0] for i in range(len(examples))])
    served = answers_without_keras(version, images.astype("float32"))["probabilities"]
    difference = np.abs(served - classifier.probabilities(examples)).max()
    say(f"exported to {version}/, read back without Keras: probabilities agree to {difference:.1e}\n")
    for y in range(8):
        say("   ".join("".join(" .:-=+*#%@"[9 * int(p) // 255] * 2 for p in image[y, :, 0]) for image in images[:4]))
    answers = zip(classifier.predict(images[:4]), examples.labels, strict=False)
    say("   ".join(f"{f'{guess.label}, {guess.probability:.0%} sure (is {digit})':<16}" for guess, digit in answers))


def _notes(metrics: dict[str, Any]) -> str:
    """Return the model card's words on data, accuracy and licence."""
    seed, width = metrics["seeds"][0], metrics["width"]
    command = f"keras-residual quickstart --seed {seed} --epochs {metrics['epochs']} --width {width}"
    return (
        f"Names handwritten digits: light ink on a dark ground, the digit filling the picture, 8x8 pixels. A residual "
        f"network of one block a stage with {width}, {2 * width} and {4 * width} channels (He et al. 2016), trained on "
        "four fifths of scikit-learn's 1,797 digits (UCI's Optical Recognition of Handwritten Digits, CC BY 4.0, "
        f"doi:10.24432/C50P49); on the other fifth, the split of seed {seed}, it is right for "
        f"{metrics['accuracy'][NETWORK.name][0]:.2%} (SVC: {metrics['accuracy']['SVC (RBF)'][0]:.2%}). It knows "
        "nothing else: for any other picture it names a digit, too.\n\n"
        f"Made by `{command}`. The network's licence is that of keras_residual, Apache-2.0."
    )
