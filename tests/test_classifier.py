"""Network, preprocessing and labels as one thing, on disk and back."""

import json

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score

import keras_residual as kr
from keras_residual import metrics
from keras_residual.classifier import Classifier, model_inputs
from keras_residual.weights import Preprocess, WeightsError

LABELS = ("ant", "bee", "crab", "dog", "eel", "fox", "gnu")


@pytest.fixture
def classifier():
    model = kr.ResNet20(classes=7, input_shape=(32, 32, 3), classifier_activation=None, drop_path=0.1)
    for value in model.variables:  # so that nothing is as it was built
        if "seed" not in value.path:
            noise = np.random.default_rng(1).normal(size=value.shape, scale=0.1)
            value.assign(value + np.abs(noise) if "variance" in value.path else value + noise)
    head = model.get_layer("fc")
    head.kernel.assign(head.kernel * 0.02)  # so that no class has all of the probability
    prepare = Preprocess((32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 0.9, interpolation="bicubic")
    return Classifier(model, prepare, LABELS, "ResNet20", {"drop_path": 0.1})


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype("uint8")


def test_run_directory_round_trip(classifier, tmp_path):
    classifier.save(tmp_path / "run", {"seed": 7})
    again = Classifier.load(tmp_path / "run")
    image = noise(50, 40, 3)
    before, after = classifier.predict([image])[0], again.predict([image])[0]
    assert after == before
    assert len({*before.probabilities.values()}) == 7, "all the same would prove nothing"
    assert (again.labels, again.options) == (LABELS, {"drop_path": 0.1})
    assert again.preprocess.get_config()["crop"] == 0.9
    assert (tmp_path / "run" / "labels.txt").read_text().split() == list(LABELS)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["keras_residual"]["seed"] == 7
    whole = keras.saving.load_model(tmp_path / "run" / "model.keras")
    x = keras.ops.convert_to_numpy(classifier.preprocess(image))[None]
    np.testing.assert_allclose(whole(x)[0], list(before.probabilities.values()), rtol=1e-4)


def test_a_run_is_a_source_of_weights(classifier, tmp_path):
    classifier.save(tmp_path / "run")
    model = kr.from_pretrained(tmp_path / "run")
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    np.testing.assert_allclose(model(x), classifier.model(x), rtol=1e-6)
    assert kr.from_pretrained(tmp_path / "run", classes=3).output_shape == (None, 3)
    assert kr.preprocessing(tmp_path / "run").mean == (0.4, 0.5, 0.6)


def test_predict_reads_what_it_can(classifier, tmp_path):
    Image.fromarray(noise(64, 48, 3)).save(tmp_path / "a.png")
    Image.fromarray(noise(64, 48)).save(tmp_path / "grey.png")
    (tmp_path / "b.jpg").write_text("no image")
    found = {p.name.rpartition("/")[2]: p for p in classifier.predict(tmp_path, batch_size=2)}
    assert list(found) == ["a.png", "b.jpg", "grey.png"]
    assert found["b.jpg"].error
    assert not found["b.jpg"].label
    assert sum(found["a.png"].probabilities.values()) == pytest.approx(1)
    assert found["a.png"].top(1) == [(found["a.png"].label, found["a.png"].probability)]
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        classifier.predict([tmp_path / "nowhere.png"])


def test_model_inputs(classifier, tmp_path):
    """Of many images evenly spread ones; what is no image is left out."""
    for number in range(10):
        Image.fromarray(np.full((50, 40, 3), 20 * number, "uint8")).save(tmp_path / f"{number}.png")
    (tmp_path / "9.png").write_bytes(b"none")
    whole = model_inputs(tmp_path, classifier.preprocess, 3, 10)
    assert whole.shape == (9, 32, 32, 3)
    np.testing.assert_allclose(whole[4, 0, 0] * (0.2, 0.3, 0.25) + (0.4, 0.5, 0.6), 80 / 255, atol=1e-6)
    np.testing.assert_array_equal(model_inputs(tmp_path, classifier.preprocess, 3, 3), whole[[0, 3, 6]])
    with pytest.raises(ValueError, match=r"no image that can be read.*9\.png"):
        model_inputs(tmp_path / "9.png", classifier.preprocess, 3, 10)


def test_probabilities_are_the_models(classifier):
    image = noise(32, 32, 3)
    prepare = Preprocess((32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 1.0)
    plain = Classifier(classifier.model, prepare, LABELS, "ResNet20")
    x = (image / 255 - np.array([0.4, 0.5, 0.6])) / np.array([0.2, 0.3, 0.25])  # nothing to resize
    logits = np.asarray(classifier.model(x[None].astype("float32")), "float64")[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(list(plain.predict([image])[0].probabilities.values()), expected, rtol=1e-4)


@pytest.mark.parametrize("file", ["weights.safetensors", "config.json"])
def test_a_changed_run_is_refused(classifier, tmp_path, file):
    classifier.save(tmp_path)
    raw = bytearray((tmp_path / file).read_bytes())
    raw[-5] ^= 1
    (tmp_path / file).write_bytes(raw)
    with pytest.raises(WeightsError):
        Classifier.load(tmp_path)


def test_labels_fit_the_outputs(classifier):
    with pytest.raises(ValueError, match="7 outputs"):
        Classifier(classifier.model, classifier.preprocess, LABELS[:3], "ResNet20")


def test_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="finished run"):
        Classifier.load(tmp_path)


def test_metrics_are_scikit_learns():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(500, 9)), generator.integers(0, 8, 500)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = metrics.measure(probabilities, labels, majority=3)
    guesses = probabilities.argmax(-1)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, guesses))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, guesses, labels=range(8), average="macro"))
    assert found["majority_accuracy"] == (labels == 3).mean()
    first = np.argsort(-probabilities, -1)[:, :5]
    assert found["top5"] == (first == labels[:, None]).any(-1).mean()
    assert found["loss"] == pytest.approx(-np.log(probabilities[range(500), labels]).mean())


def test_calibration_error_by_hand():
    # two bins: 0.9 sure and right in one of two, 0.6 sure and right in both: 2/4 * 0.4 + 2/4 * 0.4
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    found = metrics.measure(probabilities, np.array([0, 1, 0, 0]), majority=0)
    assert found["calibration_error"] == pytest.approx(0.4)
    assert "top5" not in found
