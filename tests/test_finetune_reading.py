"""Fine-tuning, `predict` and exports see the same pixels of transparent and 16-bit images; a run stores the rules."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_residual as kr
from keras_residual.finetuning import finetune

OPTIONS = {"model": "TestResNet", "weights": None, "epochs": 1, "size": 32, "batch_size": 8, "say": lambda line: None}


def icons(folder):
    """Discs and squares of one color on nothing, with noise hidden below the transparency."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[-16:16, -16:16]
    for name, shape in {"disc": x**2 + y**2 < 120, "square": np.maximum(abs(x), abs(y)) < 10}.items():
        (folder / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(0, 256, (32, 32, 4), dtype="uint8")
            pixels[shape, :3] = generator.integers(0, 200, 3)
            pixels[..., 3] = np.where(shape, 255, 0)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def composited(path, color):
    """Compute what the network sees with NumPy; the icons are either opaque or invisible."""
    pixels = np.asarray(Image.open(path))
    return np.where(pixels[..., 3:] == 255, pixels[..., :3], np.uint8(color))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("icons")
    classifier = finetune(icons(place / "photos"), output=place / "run", **OPTIONS)
    return place, classifier


def test_all_paths_see_the_background(trained, tmp_path):
    place, classifier = trained
    files = sorted((place / "photos").rglob("*.png"))[::5]
    plain = [composited(path, (255, 255, 255)) for path in files]
    expected = np.array([list(found.probabilities.values()) for found in classifier.predict(plain)])
    loaded = kr.Classifier.load(place / "run")
    assert json.loads((place / "run" / "run.json").read_text())["reading"]["background"] == [255, 255, 255]
    for one in (classifier, loaded):
        got = np.array([list(found.probabilities.values()) for found in one.predict(files)])
        np.testing.assert_array_equal(got, expected)
    data = kr.data.load(place / "photos", validation=0.0).train
    by_name = dict(zip(data.names, range(len(data)), strict=True))
    for path, pixels in zip(files, plain, strict=True):
        (number,) = (i for name, i in by_name.items() if name.endswith(f"{path.parent.name}/{path.name}"))
        np.testing.assert_array_equal(data[number][0], pixels)
    served = tf.saved_model.load(str(loaded.export(tmp_path))).signatures["serving_bytes"]
    got = served(inputs=tf.constant([path.read_bytes() for path in files]))["probabilities"].numpy()
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert np.ptp(expected, 0).max() > 1e-4, "the network distinguishes these images"


def test_another_background_is_another_run(trained):
    place, _ = trained
    with pytest.raises(ValueError, match=r"background: \[?255, 255, 255\]? before, \[?0, 0, 0\]? now"):
        finetune(place / "photos", output=place / "run", background="black", **OPTIONS)
    lines = []
    finetune(place / "photos", output=place / "run", **{**OPTIONS, "say": lines.append})
    assert any("finished" in line for line in lines), "the same settings are the same run"


def test_a_run_of_version_0_1_drops_transparency(trained, tmp_path):
    place, _ = trained
    config = json.loads((place / "run" / "config.json").read_text())
    del config["keras_residual"]["reading"]
    for name in ("weights.safetensors", "labels.txt"):
        (tmp_path / name).write_bytes((place / "run" / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    old = kr.Classifier.load(tmp_path)
    path = next((place / "photos").rglob("*.png"))
    dropped = old.predict([np.asarray(Image.open(path))[..., :3]])[0].probabilities
    assert old.predict([path])[0].probabilities == dropped
    assert kr.Classifier.load(place / "run").predict([path])[0].probabilities != dropped


def test_twelve_bits_in_sixteen_are_learned_from(tmp_path):
    """Classes that differ in the lower bits only; the range is stored and used by predict."""
    generator = np.random.default_rng(0)
    for number, name in enumerate(("dark", "bright")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(1000, 1100, (32, 32)) + 100 * number
            Image.fromarray(pixels.astype("uint16")).save(tmp_path / "photos" / name / f"{i}.png")
    classifier = finetune(tmp_path / "photos", output=tmp_path / "run", value_range=(1000, 1200), **OPTIONS)
    files = sorted((tmp_path / "photos").rglob("*.png"))[::7]
    expected = [(np.asarray(Image.open(path), "float32") - 1000) / 200 * 255 for path in files]
    x = np.stack([np.repeat(image[..., None], 3, -1) for image in expected])
    x = x if classifier.model.input_shape[-1] == 3 else x[..., :1]
    got = kr.Classifier.load(tmp_path / "run").predict(files)
    want = np.asarray(classifier.with_probabilities()(classifier.preprocess(x)))
    assert not classifier.preprocess.rounded
    np.testing.assert_allclose([list(found.probabilities.values()) for found in got], want, atol=1e-5)
