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

from . import checks
from .test_checks import PARTS

pytest.importorskip("jax", reason="needs: pip install 'keras-residual[jax]'")

QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # compiled, not fast

# Graphs take seconds to build and to compile on JAX: the networks with most parts, the first of them with a training
# step; the others, with a step for each family, are slow tests. The networks of one test share a child process.
CERTAIN = [entry for entry in PARTS if not getattr(entry.config, "dropout", 0)]  # dropout draws other numbers on JAX
FIRST = CERTAIN[:2]
REST = [entry for entry in PARTS if entry not in FIRST]
GROUPS = (FIRST, *(REST[i::5] for i in range(5)))
TRAINED = {entry.config.name for entry in FIRST[:1]}
TRAINED |= {entry.config.name for entry in {entry.family: entry for entry in CERTAIN if entry in REST}.values()}


def measure(entries, folder):
    """How far JAX is from TensorFlow with the same weights and images, by name."""
    for entry in entries:
        name, model, x, labels = entry.config.name, checks.build(entry), checks.sample(entry), np.array([1, 7])
        kr.save_weights(model, folder / f"{name}.safetensors")
        data = {"x": x, "y": np.asarray(model(x, training=False))}
        if name in TRAINED:
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.SGD(1e-3), loss, run_eagerly=True)
            data |= {"labels": labels, "loss": model.train_on_batch(x, labels)}
            data["after"] = np.asarray(model(x, training=False))
        np.savez(folder / f"{name}.npz", **data)
    (folder / "names.json").write_text(json.dumps([entry.config.name for entry in entries]))
    child = subprocess.run(
        [sys.executable, "-m", "tests.jax_child", str(folder)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICKLY},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize(
    "group", [pytest.param(i, marks=pytest.mark.slow if i else pytest.mark.long) for i in range(len(GROUPS))]
)
def test_equals_tensorflow(group, tmp_path):
    limits = {"inference": 1e-5, "loss": 1e-3, "after": 1e-2}
    results = measure(GROUPS[group], tmp_path)
    assert set(results) == {entry.config.name for entry in GROUPS[group]}
    for name, result in results.items():
        assert set(result) == (set(limits) if name in TRAINED else {"inference"}), name
    far = {name: r for name, r in results.items() if not all(value < limits[what] for what, value in r.items())}
    assert not far, far


FLASH = """
import jax, keras, numpy as np
from jax import numpy as jnp
from keras_residual import primitives

assert keras.backend.backend() == "jax"
generator = np.random.default_rng(0)
for lengths in ((6, 6), (5, 5), (5, 6), (6, 3)):
    for causal in (False, True)[: 1 + (lengths[0] == lengths[1])]:
        places = (lengths[0], lengths[1], lengths[1])
        inputs = [jnp.asarray(generator.normal(size=(2, 3, length, 8)), "float32") for length in places]
        found = []
        # cuDNN needs a GPU; "xla" is JAX's own reference for the same call
        for function in (lambda *t: primitives._flash_attention(*t, causal, "xla"),
                         lambda *t: primitives.attention(*t, causal)):
            value, back = jax.vjp(function, *inputs)
            found.append((value, *back(jnp.cos(jnp.arange(value.size, dtype="float32")).reshape(value.shape))))
        for ours, theirs in zip(*found, strict=True):
            assert np.abs(ours - theirs).max() < 1e-5, (lengths, causal)

shape = (3, 6, 8)
assert not primitives._cudnn_takes(shape, shape, shape, "bfloat16")  # there is no GPU
jax.default_backend = lambda: "gpu"
assert not primitives._cudnn_takes(shape, shape, shape, "bfloat16")  # JAX says so itself
primitives._tried = lambda *_: True
assert primitives._cudnn_takes(shape, shape, shape, "bfloat16")
assert not primitives._cudnn_takes(shape, shape, shape, "float32")
keras.config.disable_flash_attention()
assert not primitives._cudnn_takes(shape, shape, shape, "bfloat16")
"""


@pytest.mark.slow
def test_flash_attention():
    child = subprocess.run(
        [sys.executable, "-c", FLASH],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr[-3000:]
