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
    folder, metrics, _ = run
    names = {path.name for path in (folder / "run").iterdir()} - {LOCK}
    assert names == {
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
    assert names == set(job.FILES.split(", "))
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
    _, (images, classes) = job.split(0)
    model = keras.models.load_model(folder / "run" / "model.keras")
    predicted = np.asarray(model(images))
    assert (predicted.argmax(-1) == classes).mean() == pytest.approx(metrics["accuracy"][job.NETWORK.name][0])
    other = job.network(16)
    kr.load_weights(other, folder / "run" / "weights.safetensors")
    logits = np.asarray(other(images))
    assert distance(keras.ops.softmax(logits), predicted) < 1e-5


def test_what_it_says(run):
    *_, printed = run
    assert "recipe digits: adamw" in printed
    assert re.search(r"^epoch +2/2  loss \d+\.\d+  accuracy .*  validation .* images/s$", printed, re.MULTILINE)
    assert float(re.search(r"read back without Keras: probabilities agree to (\S+)", printed)[1]) < 1e-5
    commands = re.findall(r"^  keras-residual (.*?)  ", printed, re.MULTILINE)
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
    (training, _), (test, classes) = job.split(3)
    assert len(training) + len(test) == 1797
    counts = np.bincount(classes)
    assert counts.min() >= 34
    assert counts.max() <= 37
    assert not np.array_equal(test, job.split(4)[1][0])


def test_distortion_is_for_training_alone():
    images = job.split(0)[0][0][:200]
    distort = job.Distort()
    np.testing.assert_array_equal(distort(images), images)
    first, second = (np.asarray(distort(images, training=True)) for _ in range(2))
    assert np.abs(first - images).max(axis=(1, 2, 3)).min() > 0.05  # each image
    assert np.abs(first - second).max(axis=(1, 2, 3)).min() > 0.05  # anew each time
    assert first.min() >= 0
    assert first.max() <= 1 + 1e-6
    assert first.mean() == pytest.approx(images.mean(), rel=0.2)  # a little ink leaves the picture


def test_distortion_is_one_affine_map(monkeypatch):
    """That of SciPy, with the largest turn, size and shifts."""
    from scipy.ndimage import affine_transform

    monkeypatch.setattr(keras.random, "uniform", lambda shape, *_, **__: keras.ops.ones(shape))
    image = job.split(0)[0][0][:1]
    turned, middle, angle = np.asarray(job.Distort()(image, training=True)), np.array([3.5, 3.5]), np.deg2rad(10)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / np.exp(0.1)
    offset = middle + 1 - rotation @ middle
    expected = affine_transform(image[0, ..., 0], rotation, offset, order=1, mode="constant")
    np.testing.assert_allclose(turned[0, ..., 0], expected, atol=1e-5)


@pytest.mark.slow
def test_five_seeds_are_at_least_the_svc(tmp_path):
    """The bar of the README: the mean over five splits."""
    accuracy = job.quickstart(tmp_path / "run", tmp_path / "served", seeds=5)["accuracy"]
    assert np.mean(accuracy[job.NETWORK.name]) >= np.mean(accuracy["SVC (RBF)"])
    assert Path(tmp_path / "run" / "metrics.json").is_file()
