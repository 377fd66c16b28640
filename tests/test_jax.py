"""The same networks on JAX: in a child process, since a process has one backend."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_residual as kr

from . import checks, tools
from .test_checks import COVER

pytest.importorskip("jax", reason="needs: pip install 'keras-residual[jax]'")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What TensorFlow computes, and what JAX makes of the same weights, by name."""
    folder, losses = tmp_path_factory.mktemp("jax"), {}
    for entry in COVER:
        name, model, x = entry.config.name, checks.build(entry), checks.sample(entry)
        labels = np.array([1, 7])
        kr.save_weights(model, folder / f"{name}.safetensors")
        y = np.asarray(model(x, training=False))
        model.compile(
            keras.optimizers.SGD(1e-3),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            run_eagerly=True,
        )
        losses[name] = float(model.train_on_batch(x, labels))
        after = np.asarray(model(x, training=False))
        np.savez(folder / f"{name}.npz", x=x, y=y, labels=labels, after=after)
    (folder / "names.json").write_text(json.dumps(list(losses)))
    child = subprocess.run(
        [sys.executable, "-m", "tests.jax_child", str(folder)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    found = json.loads((folder / "result.json").read_text())
    return {name: {**found[name], "expected_loss": losses[name]} for name in losses}


@pytest.mark.parametrize("name", [entry.config.name for entry in COVER])
def test_equals_tensorflow(results, name):
    result = results[name]
    assert result["distance"] < 1e-5, "inference differs"
    assert result["loss"] == pytest.approx(result["expected_loss"], rel=1e-3), "the training loss differs"
    assert result["after"] < 1e-2, "a training step goes elsewhere"
