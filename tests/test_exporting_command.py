"""`keras-residual export` and `verify`, as a user meets them."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from safetensors.numpy import load_file

import keras_residual as kr
from keras_residual.classifier import Classifier
from keras_residual.cli import main

from .tools import noise, randomise

LABELS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's directory, and the classifier in it."""
    model = randomise(kr.ResNet20(input_shape=(32, 32, 3), classes=3, classifier_activation=None))
    prepare = kr.weights.Preprocess((32, 32), crop=0.9, interpolation="bilinear")
    classifier = Classifier(model, prepare, LABELS, "ResNet20")
    folder = tmp_path_factory.mktemp("run")
    classifier.save(folder)
    return folder, classifier


def test_export_of_a_run(run, tmp_path, capsys):
    """What is served says of an image what the classifier says of it."""
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
    assert "labels.txt is not the file that was exported" in capsys.readouterr().err


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
    assert "differs from the model by" in capsys.readouterr().out
    assert (tmp_path / "model.bin").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "missing", "models/x"], "missing"),
        (["verify", "missing"], "no exported version"),
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
