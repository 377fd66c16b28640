"""The main job: quick, on two epochs, for what it leaves behind; slow, for what it achieves."""

import contextlib
import csv
import io
import json
import re
import shlex
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_residual as kr
from keras_residual import quickstart as job
from keras_residual.cli import parser

from .tools import distance


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        metrics = job.quickstart(folder / "run", folder / "served", seeds=1, epochs=2, width=16)
    return folder, metrics, printed.getvalue()


def test_what_it_leaves_behind(run):
    folder, metrics, _ = run
    names = {path.name for path in (folder / "run").iterdir()}
    assert names == {
        "model.keras",
        "weights.safetensors",
        "metrics.json",
        "history.csv",
        "curves.png",
        "confusion.png",
    }
    assert json.loads((folder / "run" / "metrics.json").read_text()) == metrics
    assert set(metrics["accuracy"]) == {"majority class", "logistic regression", "SVC (RBF)", job.NETWORK.name}
    assert metrics["accuracy"]["SVC (RBF)"][0] > 0.98
    with open(folder / "run" / "history.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 3
    assert (folder / "served" / "1" / "saved_model.pb").is_file()
    for name in ("curves.png", "confusion.png"):
        pixels = np.asarray(Image.open(folder / "run" / name).convert("RGB"))
        assert pixels.std() > 10, name


def test_the_saved_model_and_weights_are_the_network(run):
    folder, metrics, _ = run
    split = job.Split.of_digits(0)
    model = keras.models.load_model(folder / "run" / "model.keras")
    predicted = np.asarray(model(split.test_images))
    assert (predicted.argmax(-1) == split.test_classes).mean() == pytest.approx(
        metrics["accuracy"][job.NETWORK.name][0]
    )
    other = job.network(16)
    kr.load_weights(other, folder / "run" / "weights.safetensors")
    logits = np.asarray(other(split.test_images))
    assert distance(keras.ops.softmax(logits), predicted) < 1e-5


def test_what_it_says(run):
    *_, printed = run
    assert re.search(r"epoch +2/2 +loss \d+\.\d+ .* images/s +0 s left", printed)
    assert float(re.search(r"read back without Keras: probabilities agree to (\S+)", printed)[1]) < 1e-5
    commands = re.findall(r"^  keras-residual (.*?)  ", printed, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:  # what it names next exists
        parser().parse_args(shlex.split(command))


def test_the_bar_is_whole_on_80_columns(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("rich._console", None)  # its width is read once
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", terminal)
    bar = job.Progress(40)
    bar.on_train_begin()
    bar.on_epoch_begin(38)
    bar.on_train_batch_end(21)
    bar.train_seconds = 0.11
    bar.on_epoch_end(38, {"loss": 0.5251, "accuracy": 1.0, "val_accuracy": 1.0})
    bar.on_train_end()
    words = "39/40  loss 0.525  accuracy 100.0%  held out 100.0%  12,800 images/s"
    *_, last = re.findall(r"[^\r\n]*39/40[^\r\n]*", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()))
    assert re.fullmatch(rf"[━╸╺]+ {re.escape(words)} (--|\d+):(--|\d+)", last.rstrip())


def test_what_would_fail_at_the_end_fails_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "train", lambda *_: pytest.fail("it trained"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileExistsError):
        job.quickstart(tmp_path / "file", tmp_path / "served")
    with pytest.raises(FileExistsError):
        job.quickstart(tmp_path / "run", tmp_path / "file")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="KERAS_BACKEND"):
        job.quickstart(tmp_path / "run", tmp_path / "served")


def test_split_is_stratified_and_disjoint():
    split = job.Split.of_digits(3)
    assert len(split.train_images) + len(split.test_images) == 1797
    counts = np.bincount(split.test_classes)
    assert counts.min() >= 34
    assert counts.max() <= 37
    assert not np.array_equal(split.test_images, job.Split.of_digits(4).test_images)


def test_distortion_depends_on_seed_and_epoch_alone():
    split = job.Split.of_digits(0)
    data, again = (job.Distorted(split.train_images, split.train_classes, 7) for _ in range(2))
    first, _ = data[0]
    np.testing.assert_array_equal(first, again[0][0])
    data.on_epoch_end()
    assert not np.array_equal(first, data[0][0])
    assert first.min() >= 0
    assert first.max() <= 1
    assert first.mean() == pytest.approx(split.train_images.mean(), rel=0.2)  # a little ink leaves the picture


@pytest.mark.slow
def test_five_seeds_are_at_least_the_svc(tmp_path):
    """The bar of the README: the mean over five splits."""
    accuracy = job.quickstart(tmp_path / "run", tmp_path / "served", seeds=5)["accuracy"]
    assert np.mean(accuracy[job.NETWORK.name]) >= np.mean(accuracy["SVC (RBF)"])
    assert Path(tmp_path / "run" / "metrics.json").is_file()
