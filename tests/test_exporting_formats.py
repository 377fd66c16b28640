"""Tests that ONNX, OpenVINO, LiteRT and other readers of the SavedModel reproduce the Keras model's outputs."""

import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_residual as kr
from keras_residual import blocks, registry
from keras_residual.exporting import formats
from keras_residual.exporting.formats import convert

from .tools import distance, distinct, noise, randomise

ENTRIES = list(registry.entries().values())


def twin(entry):
    model = randomise(entry.build(entry.config.tiny(), classes=10, classifier_activation="softmax"))
    x = noise((3, *model.input_shape[1:]), 5)
    return model, x, np.asarray(model(x, training=False))


def in_onnx(path, x):
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["inputs"]
    return session.run(["probabilities"], {"inputs": x})[0]


def in_openvino(path, x):
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled({"inputs": x})["probabilities"]


def in_litert(path, x):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(path))
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], x.shape)
    interpreter.allocate_tensors()
    return interpreter.get_signature_runner("serving_default")(inputs=x)["probabilities"]


LONG, SLOW = pytest.mark.long, pytest.mark.slow
READERS = {".onnx": in_onnx, ".xml": in_openvino, ".tflite": in_litert}
NEEDS = {".onnx": "tf2onnx", ".xml": "openvino", ".tflite": "ai_edge_litert"}
# By default. OpenVINO reads a directory below. SigLIP pools by attention, whose one query is taken out of a sequence:
# LiteRT runs no batch through a sequence of length 0.
SHOWN = [(".onnx", "ResNeXt50_32x4d"), (".tflite", "ConvNeXtZeptoRMS"), (".tflite", "SigLIPBase16")]
QUICK = [("mixed_bfloat16", ".tflite", "ViTTiny16"), ("mixed_float16", ".onnx", "ResNet18")]


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("entry", distinct(ENTRIES), ids=lambda entry: entry.config.name)
@pytest.mark.slow
def test_every_model_in_every_format(entry, suffix, tmp_path):
    check(entry, suffix, tmp_path)


@pytest.mark.parametrize(("suffix", "name"), SHOWN)
@pytest.mark.long
def test_formats(suffix, name, tmp_path):
    check(registry.entries()[name], suffix, tmp_path)


def check(entry, suffix, folder):
    pytest.importorskip(NEEDS[suffix])
    model, x, expected = twin(entry)
    assert convert(model, folder / f"model{suffix}")["difference"] < 1e-5
    assert distance(READERS[suffix](folder / f"model{suffix}", x), expected) < 1e-5
    assert len(list(folder.iterdir())) == (2 if suffix == ".xml" else 1)


@pytest.mark.parametrize(
    ("policy", "suffix", "name"),
    [
        pytest.param(policy, suffix, name, marks=LONG if (policy, suffix, name) in QUICK else SLOW)
        for policy in ("mixed_bfloat16", "mixed_float16", "float16", "float64")
        for suffix in READERS
        for name in ("ResNet18", "SEResNeXt50_32x4d", "ConvNeXtAtto", "ViTTiny16", "SigLIPBase16")
    ],
)
def test_a_file_computes_in_float32(policy, suffix, name, tmp_path):
    """A converted model computes in float32, because the runtimes support few operations in other types."""
    pytest.importorskip(NEEDS[suffix])
    entry = registry.entries()[name]
    model, x, expected = twin(entry)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        narrow = entry.build(entry.config.tiny(), classes=10, classifier_activation="softmax")
    finally:
        keras.config.set_dtype_policy(before)
    for variable, value in zip(narrow.variables, model.variables, strict=True):
        variable.assign(value)
    if policy == "float16":  # its variables too
        for variable, value in zip(model.variables, narrow.variables, strict=True):
            variable.assign(value)
        expected = np.asarray(model(x, training=False))
    assert convert(narrow, tmp_path / f"model{suffix}")["difference"] < 1e-5
    assert distance(READERS[suffix](tmp_path / f"model{suffix}", x), expected) < 1e-5


# ResNet18 has max pooling
@pytest.mark.parametrize("name", [pytest.param("ResNet20", marks=LONG), pytest.param("ResNet18", marks=SLOW)])
def test_int8(name, tmp_path):
    """For a trained network, the labels agree and the weights take a quarter of the space."""
    pytest.importorskip("ai_edge_litert")
    pixels = noise((200, 32, 32, 3)) + np.eye(10)[np.arange(200) % 10][:, :3, None, None].transpose(0, 2, 3, 1)
    model = randomise(kr.create(name, input_shape=(32, 32, 3), classes=10, classifier_activation="softmax"))
    kernel = np.asarray(model.get_layer("fc").kernel)
    model.get_layer("fc").kernel.assign(kernel * 0.1)
    whole = convert(model, tmp_path / "float.tflite")
    found = convert(model, tmp_path / "int8.tflite", representative=pixels[:100].astype("float32"))
    assert whole["difference"] < 1e-5
    assert found["agreement"] >= 0.9
    fresh = pixels[100:].astype("float32")
    ours = in_litert(tmp_path / "int8.tflite", fresh).argmax(-1)
    assert (ours == np.asarray(model(fresh, training=False)).argmax(-1)).mean() >= 0.9
    sizes = [(tmp_path / f"{kind}.tflite").stat().st_size for kind in ("int8", "float")]
    assert sizes[0] < 0.45 * sizes[1]


@pytest.mark.slow
@pytest.mark.parametrize("entry", distinct(ENTRIES), ids=lambda entry: entry.config.name)
def test_int8_of_every_model(entry, tmp_path):
    """It runs. What random weights answer to noise tells little of how exact it is: far better than chance, a tenth."""
    pytest.importorskip("ai_edge_litert")
    model, *_ = twin(entry)
    x = noise((48, *model.input_shape[1:]), 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the classes of some agree for less than nine tenths
        assert convert(model, tmp_path / "model.tflite", representative=x)["agreement"] > 0.5


@pytest.mark.parametrize("size", [31, 32])
def test_max_pooling_before_int8(size):
    """Mirrored edges give the same maxima as infinite padding, also for negative values."""
    x = keras.Input((size, size, 2))
    model = keras.Model(x, blocks.max_pool(x, name="pool"))
    other = formats._for_litert(model, quantised=True)
    values = noise((2, size, size, 2)) - 9
    assert not any(isinstance(op, type(model.operations[1])) and op.mode == "constant" for op in other.operations)
    np.testing.assert_array_equal(other(values), model(values))


@pytest.mark.parametrize(("count", "calibrating", "measured"), [(30, 20, 10), (12, 8, 4), (11, 11, None)])
def test_int8_is_measured_on_other_samples(count, calibrating, measured, tmp_path, monkeypatch):
    """Agreement is not measured on calibration images."""
    pytest.importorskip("ai_edge_litert")
    samples, seen, read = noise((count, 4)), {}, formats._litert

    def litert(function, path, representative):
        answer = read(function, path, representative)
        seen["calibration"] = representative
        return lambda x: seen.update(measuring=x) or answer(x)

    monkeypatch.setattr(formats, "_litert", litert)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    found = convert(model, tmp_path / "model.tflite", representative=samples)
    assert (len(seen["calibration"]), found.get("measured")) == (calibrating, measured)
    assert ("agreement" in found) == (measured is not None)
    common = {row.tobytes() for row in seen["calibration"]} & {row.tobytes() for row in seen["measuring"]}
    assert len(common) == (0 if measured else count)


def test_what_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="suffix"):
        convert(model, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="other than LiteRT"):
        convert(model, tmp_path / "model.onnx", representative=noise((3, 4)))
    with pytest.raises(ValueError, match="must contain samples"):
        convert(model, tmp_path / "model.tflite", representative=noise((0, 4)))


def test_an_operation_that_litert_lacks(tmp_path):
    pytest.importorskip("ai_edge_litert")
    x = keras.Input((8, 8, 8, 2))
    with pytest.raises(RuntimeError, match=r"LiteRT does not support .*: MaxPool3D\."):
        convert(keras.Model(x, keras.layers.MaxPooling3D()(x)), tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("shape", [(64, 3), (32, 32, 32, 2)], ids=["1-D", "3-D"])
@pytest.mark.parametrize("name", ["ResNeXt50_32x4d", "BiT50x1", "ConvNeXtAtto"])
def test_other_ranks(name, shape, suffix, tmp_path):
    pytest.importorskip(NEEDS[suffix])
    entry = registry.entries()[name]
    model = randomise(entry.build(entry.config.tiny(), input_shape=shape, classes=4, classifier_activation="softmax"))
    if suffix == ".tflite" and any(isinstance(layer, keras.layers.MaxPooling3D) for layer in model.layers):
        with pytest.raises(RuntimeError, match="MaxPool3D"):
            convert(model, tmp_path / "model.tflite")
        return
    x = noise((2, *shape), 3)
    assert convert(model, tmp_path / f"model{suffix}")["difference"] < 1e-5
    assert distance(READERS[suffix](tmp_path / f"model{suffix}", x), np.asarray(model(x, training=False))) < 1e-5


def test_a_file_that_answers_otherwise_is_not_written(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    monkeypatch.setattr(formats, "fold_batch_norm", lambda model: randomise(keras.models.clone_model(model), 8))
    with pytest.raises(RuntimeError, match="differ by"):
        convert(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------- other readers of a SavedModel


@pytest.mark.parametrize("name", [pytest.param("ResNet18", marks=SLOW), pytest.param("ViTTiny16", marks=LONG)])
def test_openvino_reads_the_directory(name, tmp_path):
    openvino = pytest.importorskip("openvino")
    model, x, expected = twin(registry.entries()[name])
    version = kr.export(model, tmp_path)
    compiled = openvino.Core().compile_model(
        openvino.convert_model(str(version)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    outputs = compiled({"inputs": x})
    assert distance(outputs["probabilities"], expected) < 1e-5
    np.testing.assert_allclose(outputs["scores"], -np.sort(-expected, -1)[:, :5], atol=1e-5)


@pytest.mark.slow
def test_saved_model_cli(tmp_path):
    """TensorFlow's own command: lists the signatures, and runs one."""
    inputs = keras.Input((6,))
    model = randomise(keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(inputs)))
    version, x = kr.export(model, tmp_path / "model"), noise((2, 6))
    np.save(tmp_path / "x.npy", x)
    command = [str(Path(sys.executable).with_name("saved_model_cli")), "run", "--dir", str(version)]
    command += ["--tag_set", "serve", "--signature_def", "serving_default"]
    command += ["--inputs", f"inputs={tmp_path / 'x.npy'}", "--outdir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert distance(np.load(tmp_path / "probabilities.npy"), model(x)) < 1e-5
