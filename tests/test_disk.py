"""A full disk, or one that is read-only: whatever writes says so, and what was there before stays as it was."""

import contextlib
import hashlib
import os
import resource
import signal

import keras
import numpy as np
import pytest

import keras_residual as kr
from keras_residual import figures, reports
from keras_residual.classifier import Classifier
from keras_residual.training.checkpoint import Snapshot
from keras_residual.weights import Preprocess


@contextlib.contextmanager
def full(folder):
    """No file grows beyond 200 bytes: as on a full disk, writing fails in the middle."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@contextlib.contextmanager
def read_only(folder):
    if os.geteuid() == 0:
        pytest.skip("the superuser writes into any directory")
    folder.chmod(0o500)
    try:
        yield
    finally:
        folder.chmod(0o700)


@pytest.fixture(scope="module")
def classifier():
    keras.utils.set_random_seed(0)
    model = kr.ResNet20(classes=3, input_shape=(16, 16, 3), classifier_activation=None)
    return Classifier(model, Preprocess((16, 16)), ("a", "b", "c"), "ResNet20")


def examples():
    x = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3)).astype("uint8")
    return kr.data.load((x, np.arange(30) % 3), validation=0.0).train


HISTORY = {"loss": [1.0 / (i + 1) for i in range(50)], "accuracy": [0.5] * 50}
WRITERS = {
    "checkpoint": lambda c, folder: Snapshot({"a": np.ones(999)}, {"step": 1}).write(folder / "step.safetensors"),
    "weights": lambda c, folder: kr.save_weights(c.model, folder / "weights.safetensors"),
    "run": lambda c, folder: c.save(folder),
    "history": lambda c, folder: reports.write_history(HISTORY, folder / "history.csv"),
    "curves": lambda c, folder: figures.draw_curves(HISTORY, folder / "curves.png", "title"),
}


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("disk", [full, read_only])
@pytest.mark.parametrize("writer", WRITERS)
def test_what_was_there_stays(classifier, writer, disk, tmp_path):
    WRITERS[writer](classifier, tmp_path)
    before = hashes(tmp_path)
    with disk(tmp_path), pytest.raises(OSError, match=r"could not be written.*The previous file is unchanged"):
        WRITERS[writer](classifier, tmp_path)
    assert hashes(tmp_path) == before


@pytest.mark.parametrize("disk", [full, read_only])
def test_a_report_that_cannot_be_written_is_a_warning(classifier, disk, tmp_path):
    measured = reports.write_report(classifier, examples(), tmp_path, majority=0)
    before = hashes(tmp_path)
    with disk(tmp_path), pytest.warns(UserWarning, match=r"^Could not write .*could not be written") as seen:
        assert reports.write_report(classifier, examples(), tmp_path, majority=0) == measured
    named = {str(warning.message).split()[3] for warning in seen}
    assert named == {"metrics.json", "predictions.csv", "confusion.png", "mistakes.png"}  # confusions.csv is short
    assert hashes(tmp_path) == before
