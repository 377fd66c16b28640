"""Tests of the commands `keras-residual export` and `verify`."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from safetensors.numpy import load_file

import keras_residual as kr
from keras_residual.classifier import Classifier, model_inputs
from keras_residual.cli import main

from .tools import noise, randomise

LABELS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the directory of a run and its classifier."""
    model = randomise(kr.ResNet20(input_shape=(32, 32, 3), classes=3, classifier_activation=None))
    prepare = kr.weights.Preprocess((32, 32), crop=0.9, interpolation="bilinear")
    classifier = Classifier(model, prepare, LABELS, "ResNet20")
    folder = tmp_path_factory.mktemp("run")
    classifier.save(folder)
    return folder, classifier


def test_export_of_a_run(run, tmp_path, capsys):
    """The exported model predicts the same as the classifier."""
    folder, classifier = run
    target = tmp_path / "models" / "colours"
    assert main(["export", str(folder), str(target), "--top-k", "2"]) == 0
    out = capsys.readouterr().out
    assert f"{target}/1: " in out
    assert "19 batch normalisations folded, 0 kept" in out
    assert "docker compose up" in out
    image = tmp_path / "image.png"
    Image.fromarray(np.clip(128 + 60 * noise((50, 40, 3)), 0, 255).astype("uint8")).save(image)
    (ours,) = classifier.predict([image])
    served = tf.saved_model.load(str(target / "1")).signatures["serving_bytes"]
    answer = {key: value.numpy()[0] for key, value in served(inputs=tf.constant([image.read_bytes()])).items()}
    assert [label.decode() for label in answer["labels"]] == [label for label, _ in ours.top(2)]
    np.testing.assert_allclose(answer["probabilities"], list(ours.probabilities.values()), atol=2e-3)

    assert main(["verify", str(target)]) == 0
    assert f"{target}/1  serving_bytes" in capsys.readouterr().out
    with (target / "1" / "labels.txt").open("a") as file:
        file.write("more")
    assert main(["verify", str(target / "1")]) == 2
    assert "labels.txt was changed or deleted after the export" in capsys.readouterr().err


@pytest.mark.slow
def test_options(run, tmp_path):
    folder, _ = run
    target = tmp_path / "models" / "colours"
    assert main(["export", str(folder), str(target), "--no-fold", "--no-freeze", "--version", "7"]) == 0
    about = json.loads((target / "7" / "metadata.json").read_text())
    assert (about["frozen"], about["batch_normalisations"]["folded"]) == (False, 0)


@pytest.mark.slow
def test_export_of_a_checkpoint(hub, tmp_path, capsys):
    kr.save_weights(randomise(kr.ResNet18(classes=7)), tmp_path / "weights.safetensors")
    tensors = load_file(tmp_path / "weights.safetensors")
    config = {"architecture": "resnet18", "num_classes": 7, "pretrained_cfg": {"input_size": [3, 64, 64]}}
    hub("timm/resnet18.mine", {"config.json": config, "model.safetensors": tensors})
    assert main(["export", "timm/resnet18.mine", str(tmp_path / "served")]) == 0
    assert "20 batch normalisations folded" in capsys.readouterr().out
    about = json.loads((tmp_path / "served" / "1" / "metadata.json").read_text())
    assert about["preprocessing"]["size"] == [64, 64]
    assert about["probabilities"] == "softmax"


@pytest.mark.slow
def test_another_format(run, tmp_path, capsys):
    pytest.importorskip("openvino")
    folder, _ = run
    assert main(["export", str(folder), str(tmp_path / "model.xml")]) == 0
    said = capsys.readouterr().out
    assert "differs from the model by" in said
    assert "pixels 0..255: size (" in said
    assert "dtype" not in said
    assert (tmp_path / "model.bin").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:In int8:UserWarning")  # that random weights agree for less than nine tenths
def test_int8(run, tmp_path, capsys):
    """int8 conversion with a folder of images that contains an invalid file."""
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    folder, classifier = run
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(40):
        pixels = np.clip(128 + 60 * noise((40, 40, 3), number) + 90 * noise((1, 1, 3), number), 0, 255)
        Image.fromarray(pixels.astype("uint8")).save(photos / f"{number}.png")
    (photos / "bad.png").write_bytes(b"none")
    assert main(["export", str(folder), str(tmp_path / "model.tflite"), "--int8", str(photos)]) == 0
    said = capsys.readouterr().out
    (printed,) = re.findall(r"calibrated on 27 images; gives .* for ([0-9.]+)% of 13 other images", said)
    interpreter = litert.Interpreter(str(tmp_path / "model.tflite"))
    kinds = {tensor["dtype"].__name__ for tensor in interpreter.get_tensor_details() if tensor["shape"].size == 4}
    assert "int8" in kinds
    interpreter.allocate_tensors()
    ask = interpreter.get_signature_runner("serving_default")
    agree = []
    for found in classifier.predict(photos):
        if not found.error:
            answer = ask(inputs=model_inputs(found.name, classifier.preprocess, 3, 1))["probabilities"][0]
            agree.append(LABELS[answer.argmax()] == found.label)
    assert len(agree) == 40
    assert np.mean(agree[2::3]) == pytest.approx(float(printed) / 100, abs=0.08)
    assert np.mean(agree) > 0.7, "random weights; of trained ones it is more"


JAX = """
    import json, sys
    import keras
    import keras_residual as kr
    from keras_residual.classifier import Classifier
    from tests.tools import randomise
    assert keras.backend.backend() == "jax"
    model = randomise(kr.ResNet20(input_shape=(32, 32, 3), classes=3, classifier_activation=None))
    classifier = Classifier(model, kr.weights.Preprocess((32, 32)), ("red", "green", "blue"), "ResNet20")
    classifier.save(sys.argv[1])
    (found,) = classifier.predict([sys.argv[2]])
    try:
        classifier.export(sys.argv[1] + "/served")
    except RuntimeError as error:
        assert "KERAS_BACKEND=tensorflow" in str(error)
        print(json.dumps(found.probabilities))
"""


@pytest.mark.slow
def test_a_run_of_jax_is_exported_on_tensorflow(tmp_path):
    """And answers as the network did on JAX, which cannot export by itself and says so."""
    pytest.importorskip("jax")
    image = tmp_path / "image.png"
    Image.fromarray(np.clip(128 + 60 * noise((40, 40, 3)), 0, 255).astype("uint8")).save(image)
    command = [sys.executable, "-c", textwrap.dedent(JAX), str(tmp_path / "run"), str(image)]
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[1]
    child = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)
    assert child.returncode == 0, child.stderr[-2000:]
    expected = list(json.loads(child.stdout).values())
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "served")]) == 0
    served = tf.saved_model.load(str(tmp_path / "served" / "1")).signatures["serving_bytes"]
    got = served(inputs=tf.constant([image.read_bytes()]))["probabilities"].numpy()[0]
    assert np.ptp(expected) > 0.01, "a network that answers alike to everything would tell nothing"
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "missing", "models/x"], "missing"),
        (["export", ".", "models/x"], "finished run of `keras-residual finetune`"),
        (["export", ".", "x.onnx", "--top-k", "3"], "--top-k must not be used with .onnx"),
        (["export", ".", "models/x", "--int8", "."], "--int8 requires an output file that ends in .tflite"),
        (["export", "runs/typo", "models/x"], "no run, directory or file 'runs/typo'"),
        (["verify", "missing"], "must be the directory of an exported version"),
        (["serve", "missing"], "missing"),
    ],
)
def test_mistakes(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []
