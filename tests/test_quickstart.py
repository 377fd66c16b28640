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
from keras_residual.io import LOCK

from .tools import distance


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        metrics = job.quickstart(folder / "run", folder / "served", seeds=1, epochs=2, width=16)
    return folder, metrics, printed.getvalue()


def test_what_it_leaves_behind(run):
    folder, metrics, printed = run
    names = {path.name for path in (folder / "run").iterdir()} - {LOCK}
    assert names == {
        "config.json",
        "labels.txt",
        "model.keras",
        "weights.safetensors",
        "metrics.json",
        "history.csv",
        "curves.png",
        "confusion.png",
        "mistakes.png",
        "predictions.csv",
        "classes.csv",
        "confusions.csv",
    }
    assert ", ".join(sorted(names)) in printed
    assert json.loads((folder / "run" / "metrics.json").read_text()) == metrics
    assert set(metrics["accuracy"]) == {"majority class", "logistic regression", "SVC (RBF)", job.NETWORK}
    assert metrics["accuracy"]["SVC (RBF)"][0] > 0.98
    with open(folder / "run" / "history.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 3
    assert (folder / "served" / "1" / "saved_model.pb").is_file()
    for name in ("curves.png", "confusion.png"):
        pixels = np.asarray(Image.open(folder / "run" / name).convert("RGB"))
        assert pixels.std() > 10, name


def test_the_run_is_a_classifier(run):
    """It loads by its directory, from its `.keras` file and by its weights, and has the accuracy that was printed."""
    folder, metrics, _ = run
    _, test = job.split(0)
    classifier = kr.Classifier.load(folder / "run")
    images, classes = job.arrays(test)
    found = classifier.predict(images)
    assert np.mean([prediction.label == str(true) for prediction, true in zip(found, classes, strict=True)]) == (
        pytest.approx(metrics["accuracy"][job.NETWORK][0])
    )
    predicted = np.stack([list(prediction.probabilities.values()) for prediction in found])
    model = keras.models.load_model(folder / "run" / "model.keras")
    assert distance(np.asarray(model(images / np.float32(255))), predicted) < 1e-5
    other = kr.ResNet8(input_shape=(8, 8, 1), width=16)
    kr.load_weights(other, folder / "run" / "weights.safetensors")
    assert distance(np.asarray(other(images / np.float32(255))), predicted) < 1e-5


def test_what_it_says(run):
    *_, printed = run
    assert "recipe digits: adamw" in printed
    assert re.search(r"^epoch +2/2  loss \d+\.\d+  accuracy .*  validation .* images/s$", printed, re.MULTILINE)
    assert float(re.search(r"read back without Keras: probabilities agree to (\S+)", printed)[1]) < 1e-5
    commands = re.findall(r"^  keras-residual (.*)$", printed, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:  # what it names next exists
        parser().parse_args(shlex.split(command))


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
    training, test = job.split(3)
    assert len(training) + len(test) == 1797
    assert not set(training.names) & set(test.names)
    counts = np.bincount(test.labels)
    assert counts.min() >= 34
    assert counts.max() <= 37
    assert not np.array_equal(job.arrays(test)[0], job.arrays(job.split(4)[1])[0])


@pytest.mark.slow
def test_five_seeds_are_at_least_the_svc(tmp_path):
    """The bar of the README: the mean over five splits."""
    accuracy = job.quickstart(tmp_path / "run", tmp_path / "served", seeds=5)["accuracy"]
    assert np.mean(accuracy[job.NETWORK]) >= np.mean(accuracy["SVC (RBF)"])
    assert Path(tmp_path / "run" / "metrics.json").is_file()
