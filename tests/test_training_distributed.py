"""Many devices: two processes of Keras on JAX on this machine, and TensorFlow's mirrored strategy."""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_residual.classifier import Classifier
from keras_residual.training import Selection, fit, mirrored, start
from keras_residual.training.checkpoint import Snapshot

from .distributed_child import TOGETHER
from .test_training_fit import data, network, weights

ROOT = Path(__file__).parents[1]
JAX = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}


def free_port():
    with contextlib.closing(socket.socket()) as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def child(folder, port, process_id, seed=0, slowly=False):
    numbers = (2, process_id, seed, int(slowly))
    return subprocess.Popen(
        [sys.executable, "-m", "tests.distributed_child", str(folder), f"127.0.0.1:{port}", *map(str, numbers)],
        cwd=ROOT,
        env={**os.environ, **JAX},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def two(folder, seeds=(0, 0), slowly=False):
    port = free_port()
    return [child(folder, port, i, seeds[i], slowly) for i in range(2)]


def ended(processes, seconds=900):
    """Exit codes and what was said on stderr. A busy machine may take minutes for what takes seconds."""
    try:
        said = [process.communicate(timeout=seconds)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


def saved(folder, process_id):
    with np.load(folder / f"{process_id}.npz") as file:
        return [file[name] for name in file.files]


def begin(folder):
    """The same start for all; what one process with the whole batch makes of it."""
    model = network(noise=0.0)
    np.savez(folder / "start.npz", *weights(model))
    return model


@pytest.mark.long
def test_two_processes_train_as_one_with_the_whole_batch(tmp_path):
    """Equal weights, and one process on TensorFlow as the judge: batch statistics, averages and clipping of the whole
    batch, each image once, the same mirrored."""
    pytest.importorskip("jax", reason="needs: pip install 'keras-residual[jax]'")
    model = begin(tmp_path)
    processes = two(tmp_path)
    history = fit(model, TOGETHER, data(), data(24, 1), progress=False, selection=Selection(keep="last"))
    codes, said = ended(processes)
    assert codes == [0, 0], said[codes.index(max(codes, key=abs))][-3000:]
    first, second = saved(tmp_path, 0), saved(tmp_path, 1)
    for variable, a, b, c in zip(model.weights, weights(model), first, second, strict=True):
        np.testing.assert_array_equal(b, c, err_msg=variable.path)
        np.testing.assert_allclose(a, b, atol=2e-4, err_msg=variable.path)
    for process_id in range(2):
        theirs = json.loads((tmp_path / f"{process_id}.json").read_text())
        for name in ("loss", "val_loss", "accuracy", "val_accuracy"):
            np.testing.assert_allclose(theirs[name], history[name], rtol=1e-3, err_msg=name)


@pytest.mark.slow
def test_the_command_on_two_processes(tmp_path):
    """As two machines would: number 0 alone writes the run, the checkpoints of both are the same."""
    from .test_finetune import make_photos

    make_photos(tmp_path / "photos", each=12)
    options = ["--model", "TestResNet", "--weights", "none", "--size", "32", "--epochs", "2", "--batch-size", "8"]
    command = [sys.executable, "-m", "keras_residual.cli", "finetune", "photos", *options, "--output", "run"]
    command += ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--process-id"]
    environment = {**os.environ, **JAX, "PYTHONPATH": str(ROOT)}
    start_one = functools.partial(subprocess.Popen, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True)
    processes = [start_one([*command, str(i)]) for i in range(2)]
    codes, said = ended(processes)
    assert codes == [0, 0], said
    assert (tmp_path / "run" / "config.json").is_file()
    assert not (tmp_path / "run" / "training" / "process-1" / "config.json").exists()
    first, second = (
        Snapshot.read(max((tmp_path / "run" / "training" / f"process-{i}").glob("step-*"))) for i in range(2)
    )
    assert first.digest() == second.digest()
    ours = Classifier.load(tmp_path / "run")  # on TensorFlow
    assert len(ours.predict(tmp_path / "photos" / "cross")) == 12


@pytest.mark.slow
def test_processes_that_differ_are_told(tmp_path):
    begin(tmp_path)
    codes, said = ended(two(tmp_path, seeds=(0, 1)))
    assert 0 not in codes
    for words in said:
        assert "other ones in different processes, in seed" in words


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_both_go_on(tmp_path, victim):
    begin(tmp_path)
    processes = two(tmp_path, slowly=True)
    for _ in range(22):  # two epochs, and some
        processes[victim].stdout.readline()
    processes[victim].kill()
    codes, said = ended(processes)
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] not in (0, -signal.SIGKILL)
    assert "Start all of them again" in said[1 - victim]
    codes, said = ended(two(tmp_path, slowly=True))
    assert codes == [0, 0], said
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "start.npz").write_bytes((tmp_path / "start.npz").read_bytes())
    ended(two(tmp_path / "whole", slowly=True))
    for process_id in range(2):
        for a, b in zip(saved(tmp_path, process_id), saved(tmp_path / "whole", process_id), strict=True):
            np.testing.assert_array_equal(a, b)


def test_several_processes_on_tensorflow_are_refused():
    with pytest.raises(ValueError, match=r"silently trains on one device.*KERAS_BACKEND=jax"):
        start("127.0.0.1:1", 2, 0)


MIRRORED = """
import sys
from pathlib import Path
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from keras_residual.finetuning import finetune
from keras_residual.training import Selection, fit, mirrored
from tests.distributed_child import TOGETHER
from tests.test_training_fit import data, network, weights
folder = Path(sys.argv[1])
with mirrored(["CPU:0", "CPU:1"]).scope():
    model = network(noise=0.0)
    model.set_weights([*np.load(folder / "start.npz").values()])
history = fit(model, TOGETHER, data(), data(25, 1), progress=False, selection=Selection(keep="last"))
assert history.decision.replicas == 2
assert history.decision.why == "it fails under tf.distribute"
np.savez(folder / "0.npz", *weights(model))
np.save(folder / "val_loss.npy", history["val_loss"])
if sys.argv[2:]:
    options = {"size": 32, "batch_size": None, "devices": ["CPU:0", "CPU:1"], "output": folder / "run"}
    run = finetune(data(90), "TestResNet", None, 1, say=lambda line: None, **options)
    x, y = data(90)
    again = type(run).load(folder / "run")
    found = [[p.probability for p in r.predict(list(x[:6]))] for r in (run, again)]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
"""


@pytest.mark.long
def test_mirrored_devices_train_as_one(tmp_path):
    """Two virtual CPUs: batch statistics, clipping and averages are those of the whole batch.

    The last batch of the validation is one image: one of the two has none.
    """
    model = begin(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", MIRRORED, str(tmp_path)], cwd=ROOT, stdout=-1, stderr=-1, text=True
    )
    history = fit(model, TOGETHER, data(), data(25, 1), progress=False, selection=Selection(keep="last"))
    codes, said = ended([process])
    assert codes == [0], said[0][-3000:]
    for variable, a, b in zip(model.weights, weights(model), saved(tmp_path, 0), strict=True):
        # one device has the unbiased variance of TensorFlow's kernel, as torch; several the biased one of Keras
        rtol = 1 / 400 if variable.name == "moving_variance" else 1e-7
        np.testing.assert_allclose(a, b, rtol=rtol, atol=2e-4, err_msg=variable.path)
    np.testing.assert_allclose(np.load(tmp_path / "val_loss.npy"), history["val_loss"], rtol=1e-2)


@pytest.mark.slow
def test_finetune_on_mirrored_devices(tmp_path):
    begin(tmp_path)
    command = [sys.executable, "-c", MIRRORED, str(tmp_path), "finetune"]
    codes, said = ended([subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True)])
    assert codes == [0], said[0][-3000:]


def test_mirrored_is_refused_on_other_backends(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match=r"keras_residual\.training\.start"):
        mirrored()
