"""The main job from end to end on data that is always there: scikit-learn's handwritten digits.

Train a small residual network, compare it, draw, save, export, read the export back without Keras.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_residual import figures, reports
from keras_residual.blocks import basic
from keras_residual.exporting import export
from keras_residual.io import locked, say, write_json, written_whole
from keras_residual.models.resnet_cifar import CifarConfig, ResNetCifar
from keras_residual.weights import Preprocess, save_weights

__all__ = ["quickstart"]

# A row of its own: 8x8 pixels ask for width before depth. Chosen on splits of other seeds than those reported.
NETWORK = CifarConfig("ResNet-8 wide", basic, 1, (32, 64, 128), input_shape=(8, 8, 1))
EPOCHS = 40
BATCH = 64
RATE = 3e-3


@dataclasses.dataclass(frozen=True)
class Split:
    """Digits `(N, 8, 8, 1)` of 0..1 and their classes, stratified: four fifths to train on, one fifth held out."""

    train_images: np.ndarray[Any, Any]
    train_classes: np.ndarray[Any, Any]
    test_images: np.ndarray[Any, Any]
    test_classes: np.ndarray[Any, Any]

    @classmethod
    def of_digits(cls, seed: int) -> Split:
        """The split of scikit-learn's 1,797 digits that belongs to a seed."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        # On the grid of 8 bits, as they are in an image file: what is served gets the very values of training.
        images = (np.round(digits.images[..., None] * 255 / 16) / 255).astype("float32")
        a, b, c, d = train_test_split(images, digits.target, test_size=0.2, stratify=digits.target, random_state=seed)
        return cls(a, c, b, d)


class Distorted(keras.utils.PyDataset):
    """Training batches, each epoch in a new order and distorted anew: a function of seed and epoch alone."""

    def __init__(self, images: Any, classes: Any, seed: int) -> None:
        super().__init__()
        self.images, self.classes, self.seed, self.epoch = images, classes, seed, 0
        self.on_epoch_begin()

    def __len__(self) -> int:
        return len(self.images) // BATCH

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        place = slice(index * BATCH, (index + 1) * BATCH)
        return self.current[place], self.targets[place]

    def on_epoch_begin(self) -> None:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(len(self.images))
        self.current = distort(self.images[order], generator)
        self.targets = np.eye(10, dtype="float32")[self.classes[order]]

    def on_epoch_end(self) -> None:
        self.epoch += 1
        self.on_epoch_begin()


def distort(images: Any, generator: np.random.Generator) -> Any:
    """Shifts by up to a pixel, turns by up to 10 degrees and scales by up to 10 %, each image its own way.

    One affine map and one interpolation: Keras' three layers in a row would blur 8x8 pixels three times.
    """
    from scipy.ndimage import map_coordinates

    n, height, width, _ = images.shape
    angle, size = np.deg2rad(generator.uniform(-10, 10, n)), np.exp(generator.uniform(-0.1, 0.1, n))
    shift = generator.uniform(-1, 1, (2, n, 1, 1))
    cos, sin = (f(angle)[:, None, None] / size[:, None, None] for f in (np.cos, np.sin))
    y, x = np.mgrid[:height, :width] - np.array([height - 1, width - 1])[:, None, None] / 2
    rows = cos * y + sin * x + shift[0] + (height - 1) / 2
    columns = cos * x - sin * y + shift[1] + (width - 1) / 2
    which = np.broadcast_to(np.arange(n)[:, None, None], rows.shape)
    return map_coordinates(images[..., 0], [which, rows, columns], order=1, mode="constant")[..., None]


def network(width: int = NETWORK.widths[0]) -> keras.Model:
    """The CIFAR ResNet of He et al. 2016 with one block a stage, twice as wide; logits out."""
    row = dataclasses.replace(NETWORK, widths=(width, 2 * width, 4 * width))
    return ResNetCifar(classifier_activation=None, name="digits").build(row)


def train(
    split: Split, seed: int, epochs: int, width: int = NETWORK.widths[0]
) -> tuple[keras.Model, dict[str, list[float]]]:
    """Trains a network on a split; the held-out part is looked at, never chosen by.

    Returns:
        The model, with probabilities as its outputs, and the history by name and epoch.
    """
    keras.utils.set_random_seed(seed)
    model = network(width)
    data = Distorted(split.train_images, split.train_classes, seed)
    steps, warmup = epochs * len(data), min(3, epochs) * len(data)
    rate = keras.optimizers.schedules.CosineDecay(
        RATE / 25, max(1, steps - warmup), warmup_target=RATE, warmup_steps=warmup
    )
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=0.05),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        metrics=["accuracy"],
        jit_compile=False,  # on a CPU, XLA is slower for convolutions
    )
    held_out = (split.test_images, np.eye(10, dtype="float32")[split.test_classes])
    history = model.fit(
        data,
        epochs=epochs,
        validation_data=held_out,
        validation_batch_size=360,
        verbose=0,
        callbacks=[Progress(epochs)],
    )
    outputs = keras.layers.Softmax(name="probabilities")(model.output)
    return keras.Model(model.input, outputs, name="digits"), history.history


class Progress(keras.callbacks.Callback):
    """A live bar on a terminal, a line every tenth of the way elsewhere."""

    def __init__(self, epochs: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        super().__init__()
        self.epochs = epochs
        # The bar takes what room the words leave: all of it must be readable on 80 columns.
        columns = BarColumn(bar_width=None), TextColumn("{task.fields[words]}"), TimeRemainingColumn(compact=True)
        self.bar = Progress(*columns, expand=True) if sys.stdout.isatty() else None

    def on_train_begin(self, logs: Any = None) -> None:
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task("training", total=self.epochs, words="compiling")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches = batch + 1
        self.train_seconds = time.perf_counter() - self.start

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs = logs or {}
        words = (
            f"{epoch + 1:>2}/{self.epochs}  loss {logs['loss']:.3f}  accuracy {logs['accuracy']:.1%}  "
            f"held out {logs['val_accuracy']:.1%}  {self.batches * BATCH / self.train_seconds:,.0f} images/s"
        )
        if self.bar is not None:
            self.bar.update(self.task, completed=epoch + 1, words=words)
        elif (epoch + 1) % max(1, self.epochs // 10) == 0:
            # By the last epoch: the first compiles, and would promise too long a time.
            left = (time.perf_counter() - self.start) * (self.epochs - epoch - 1)
            say(f"  epoch {words}  {left:.0f} s left")

    def on_train_end(self, logs: Any = None) -> None:
        if self.bar is not None:
            self.bar.stop()


def baselines(split: Split) -> dict[str, float]:
    """Accuracy of three classical classifiers on the same split."""
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
    train, test = (images.reshape(len(images), -1) for images in (split.train_images, split.test_images))
    return {
        name: float(model.fit(train, split.train_classes).score(test, split.test_classes))
        for name, model in models.items()
    }


def quickstart(
    output: str | os.PathLike[str] = "runs/digits",
    saved_model: str | os.PathLike[str] = "saved_models/digits",
    seeds: int = 1,
    seed: int = 0,
    epochs: int | None = None,
    width: int = NETWORK.widths[0],
) -> dict[str, Any]:
    """Trains on handwritten digits, compares, draws, saves and exports; prints what it does.

    Args:
        output: Directory for `model.keras`, `weights.safetensors`, `history.csv`, `metrics.json`, `curves.png` and
            `confusion.png` of the first seed.
        saved_model: Directory in which the SavedModel gets the next version number.
        seeds: Number of runs, each with a split of its own.
        seed: Seed of the first run.
        epochs: Epochs of each run; `None` for 40.
        width: Channels of the first stage, 16 or more; the second has twice as many, the third four times.

    Returns:
        What `metrics.json` holds.

    Raises:
        ValueError: If `seeds` or `epochs` is not positive, `width` below 16, or Keras does not run on TensorFlow.
        OSError: If a directory cannot be made.
    """
    epochs = EPOCHS if epochs is None else epochs
    for what, number in (("seeds", seeds), ("epochs", epochs)):
        if number < 1:
            raise ValueError(f"{what} is a positive number. Received: {number}.")
    if width < 16:  # strided 1x1 convolutions of fewer channels crash in oneDNN
        raise ValueError(f"width is 16 or more. Received: {width}.")
    # What would fail at the end fails here, before the training.
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "The quickstart ends in a SavedModel, which Keras writes on TensorFlow. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}. Set KERAS_BACKEND=tensorflow."
        )
    Path(saved_model).mkdir(parents=True, exist_ok=True)
    with locked(Path(output)):
        return _quickstart(Path(output), saved_model, seeds, seed, epochs, width)


def _quickstart(
    folder: Path, saved_model: str | os.PathLike[str], seeds: int, seed: int, epochs: int, width: int
) -> dict[str, Any]:
    say(
        f"keras_residual quickstart: Keras {keras.__version__} on {keras.backend.backend()}, "
        "XLA off: it gains on GPUs only"
    )
    accuracies: dict[str, list[float]] = {}
    seconds: list[float] = []
    first: tuple[keras.Model, dict[str, list[float]], Split] | None = None
    for number in range(seed, seed + seeds):
        split = Split.of_digits(number)
        train_size, test_size = len(split.train_images), len(split.test_images)
        say(f"\nseed {number}: {NETWORK.name} on {train_size} digits of 8x8 pixels, {test_size} held out")
        start = time.perf_counter()
        model, history = train(split, number, epochs, width)
        seconds.append(round(time.perf_counter() - start, 1))
        say(f"  trained in {seconds[-1]:.0f} s")
        predicted = _predict(model, split.test_images).argmax(-1)
        for name, accuracy in {
            **baselines(split),
            NETWORK.name: float((predicted == split.test_classes).mean()),
        }.items():
            accuracies.setdefault(name, []).append(accuracy)
        first = first or (model, history, split)
    assert first is not None
    model, history, split = first

    say("\naccuracy on held-out digits" + (f", {seeds} splits: mean, lowest to highest" if seeds > 1 else ""))
    for name, values in accuracies.items():
        spread = f"   {min(values):.1%} to {max(values):.1%}" if seeds > 1 else ""
        say(f"  {name:<20} {np.mean(values):7.2%}{spread}")

    metrics = {
        "accuracy": accuracies,
        "training_seconds": seconds,
        "seeds": list(range(seed, seed + seeds)),
        "epochs": epochs,
        "width": width,
    }
    _write_run(folder, model, history, split, metrics)
    say(
        f"\nwritten to {folder}/: model.keras, weights.safetensors, history.csv, metrics.json, curves.png, "
        "confusion.png"
    )

    prepare = Preprocess((8, 8), (0.0,), (1.0,), crop=1.0, interpolation="bilinear")
    digits = [str(digit) for digit in range(10)]
    version = export(model, saved_model, labels=digits, preprocess=prepare, top_k=3, notes=_notes(metrics))
    difference = _read_without_keras(version, split.test_images, _predict(model, split.test_images))
    say(f"exported to {version}/, read back without Keras: probabilities agree to {difference:.1e}\n")
    _show(model, split)
    say(
        "\nnext:\n"
        "  keras-residual list 'resnet*'             which models there are\n"
        "  keras-residual info ResNet50              what one of them costs\n"
        "  keras-residual quickstart --seeds 5       how sure the accuracy is\n"
        f"  keras-residual {f'serve {shlex.quote(str(saved_model))}':<25}  try it in a browser"
    )
    return metrics


def _predict(model: keras.Model, images: Any) -> Any:
    return np.asarray(model(images, training=False))


def _write_run(folder: Path, model: keras.Model, history: dict[str, list[float]], split: Split, metrics: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / "model.keras") as path:
        model.save(path)
    save_weights(model, folder / "weights.safetensors")
    write_json(folder / "metrics.json", metrics)
    with reports.attempt("history.csv"):
        reports.write_history(history, folder / "history.csv")
    with reports.attempt("curves.png"):
        figures.draw_curves(history, folder / "curves.png", f"{NETWORK.name} on handwritten digits")
    predicted = _predict(model, split.test_images).argmax(-1)
    with reports.attempt("confusion.png"):
        figures.draw_confusion(
            split.test_classes,
            predicted,
            [str(digit) for digit in range(10)],
            folder / "confusion.png",
            f"{len(predicted)} held-out digits, {(predicted == split.test_classes).mean():.1%} right",
        )


def _notes(metrics: dict[str, Any]) -> str:
    """What the model card says of data, accuracy and licence."""
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


_READER = """
import sys
sys.modules["keras"] = None  # whoever imports Keras from here on fails
import numpy as np, tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
data = np.load(sys.argv[2])
outputs = serve(inputs=tf.constant(255 * data["images"]))["probabilities"].numpy()
print(np.abs(outputs - data["expected"]).max())
"""


def _read_without_keras(version: Path, images: Any, expected: Any) -> float:
    """Largest difference between the SavedModel's answers, in a process that never imports Keras, and `expected`."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        data = os.path.join(folder, "data.npz")
        np.savez(data, images=images, expected=expected)
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, "-c", _READER, str(version), data]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"The SavedModel in {version} could not be read back:\n{done.stderr[-2000:]}")
    return float(done.stdout)


def _show(model: keras.Model, split: Split, count: int = 4) -> None:
    """Prints some held-out digits, and what the network says of them."""
    probabilities = _predict(model, split.test_images[:count])
    rows = [
        "   ".join(
            "".join(" .:-=+*#%@"[int(9 * pixel)] * 2 for pixel in image[y, :, 0]) for image in split.test_images[:count]
        )
        for y in range(8)
    ]
    answers = (
        f"{p.argmax()}, {p.max():.0%} sure (is {c})" for p, c in zip(probabilities, split.test_classes, strict=False)
    )
    say("\n".join(rows))
    say("   ".join(f"{answer:<16}" for answer in answers))
