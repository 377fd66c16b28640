"""Network, preprocessing and labels as one thing, on disk and back."""

import importlib.util
import io
import json
import os
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score

import keras_residual as kr
from keras_residual import metrics
from keras_residual.classifier import Classifier, model_inputs
from keras_residual.data import images
from keras_residual.weights import Preprocess, WeightsError

LABELS = ("ant", "bee", "crab", "dog", "eel", "fox", "gnu")


@pytest.fixture(scope="module")
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


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


COLOUR, GREY = Image.fromarray(noise(40, 50, 3)), Image.fromarray(noise(40, 50))
RGBA = np.concatenate([noise(40, 50, 3), noise(40, 50, 1, seed=1)], -1)
TURNED = Image.Exif()
TURNED[0x0112] = 6
FORMS = {
    "PIL": COLOUR,
    "bytes": saved(COLOUR),
    "bytearray": bytearray(saved(COLOUR)),
    "turned": Image.open(io.BytesIO(saved(COLOUR.rotate(90, expand=True), exif=TURNED))),
    "RGBA": Image.fromarray(RGBA),
    "RGBA array": RGBA,
    **{dtype: noise(40, 50, 3).astype(dtype) for dtype in ("int16", "uint16", "int64", "uint64", "float16", "float64")},
    "tensor": tf.constant(noise(40, 50, 3)),
    "bfloat16 tensor": tf.cast(noise(40, 50, 3), tf.bfloat16),
    "string tensor": tf.constant(saved(COLOUR)),
    "batch": noise(40, 50, 3)[None],
}
if importlib.util.find_spec("jax"):
    import jax.numpy as jnp

    FORMS["JAX array"] = jnp.asarray(noise(40, 50, 3))
GREYS = {
    "PIL grey": GREY,
    "16-bit PIL": Image.fromarray(noise(40, 50).astype("uint16") * 256),
    "rows": noise(40, 50),
    "one channel": noise(40, 50)[..., None],
    "batch of one channel": noise(40, 50)[None, ..., None],
    "grey bytes": saved(GREY),
}


def test_forms_of_an_image(classifier):
    """Alone and mixed in one list, each form is the image that it holds."""
    for forms, pixels in ((FORMS, noise(40, 50, 3)), (GREYS, np.repeat(noise(40, 50, 1), 3, -1))):
        (expected,) = classifier.predict([pixels])
        mixed = classifier.predict(list(forms.values()))
        assert len(mixed) == len(forms)
        for (name, form), in_list in zip(forms.items(), mixed, strict=True):
            (alone,) = classifier.predict(form)
            assert alone.probabilities == pytest.approx(expected.probabilities, abs=1e-6), name
            assert in_list.probabilities == pytest.approx(expected.probabilities, abs=1e-6), name
    assert expected.probabilities != pytest.approx(classifier.predict(noise(40, 50, 3))[0].probabilities, abs=1e-3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"])
def test_modes_of_pillow(classifier, mode):
    image = COLOUR.convert("RGBA" if mode == "PA" else "RGB").convert(mode)
    expected = classifier.predict(np.asarray(image.convert("RGB")))[0].probabilities
    assert classifier.predict(image)[0].probabilities == expected


def test_batches_and_what_yields_them(classifier):
    batch = noise(5, 40, 50, 3)
    expected = [classifier.predict(image)[0].probabilities for image in batch]
    for given in (batch, list(batch), iter(batch), tf.data.Dataset.from_tensor_slices(batch).batch(2), tuple(batch)):
        found = classifier.predict(given, batch_size=2)
        assert [p.name for p in found] == list("01234")
        for one, probabilities in zip(found, expected, strict=True):
            assert one.probabilities == pytest.approx(probabilities, abs=1e-6)


def test_a_grey_network_takes_every_form():
    model = kr.ResNet20(classes=7, input_shape=(32, 32, 1), classifier_activation=None)
    grey = Classifier(model, Preprocess((32, 32), (0.4,), (0.2,)), LABELS, "ResNet20")
    expected = grey.predict(np.asarray(COLOUR.convert("L")))[0].probabilities
    for given in (COLOUR, RGBA, saved(COLOUR), noise(40, 50, 3), np.asarray(COLOUR.convert("L"))[..., None]):
        assert grey.predict(given)[0].probabilities == pytest.approx(expected, abs=1e-3)


IMAGE = noise(40, 50, 3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (IMAGE / 255, r"0\.\.1.*x \* 255"),
        (IMAGE / 255 * 1.01, r"0\.\.1.*x \* 255"),
        (IMAGE / 127.5 - 1, r"normalised already.*\(x \+ 1\) \* 127\.5"),
        (IMAGE.astype("uint16") * 257, r"16-bit.*x // 256"),
        (IMAGE.astype("int8"), "0..255"),
        (IMAGE > 128, "bool"),
        (IMAGE.transpose(2, 0, 1), r"channels first.*np\.moveaxis\(x, 0, -1\)"),
        (IMAGE.transpose(2, 0, 1)[None], r"channels first.*np\.moveaxis\(x, 1, -1\)"),
        (noise(10, 28, 28), r"x\[\.\.\., None\]"),
        (noise(40, 50, 7), r"shape \(40, 50, 7\)"),
        (noise(784), r"shape \(784,\)"),
        (np.zeros((0, 5, 3)), "empty array of shape"),
        (np.full((4, 4, 3), np.nan), "NaN"),
    ],
)
def test_arrays_that_are_no_images(classifier, given, words):
    with pytest.raises(ValueError, match=words):
        classifier.predict(given)
    with pytest.raises(ValueError, match=r"images\[1\]: .*" + words):
        classifier.predict([IMAGE, given])


@pytest.mark.parametrize("given", [None, 7, {"image": IMAGE}, IMAGE.tolist(), [None], [IMAGE, [IMAGE]]])
def test_things_that_are_no_images(classifier, given):
    with pytest.raises(TypeError, match=r"a path, a folder, bytes of a file, a PIL image or an array"):
        classifier.predict(given)


def test_what_cannot_be_read_is_answered(classifier):
    """Encoded images that are damaged, and Pillow's that cannot be loaded, are like damaged files."""
    cut = saved(COLOUR)[:-500]
    for given in (b"text", b"", cut, Image.open(io.BytesIO(cut)), COLOUR.convert("L").convert("F")):
        bad, good = classifier.predict([given, IMAGE])
        assert bad.error
        assert not bad.label
        assert good.label
    (long,) = classifier.predict(Image.new("RGB", (1, 70_000_0)))
    assert long.error == "is 700,000 x 1 pixels, too long to be resized; crop it"


def test_predict_has_the_scans_verdict(classifier, tmp_path, capfd):
    """Half of the pixels are missing, and libjpeg, which fills them with grey, only says so on standard error."""
    whole = saved(COLOUR.resize((200, 200)), "JPEG")
    half = whole[: len(whole) // 2] + b"\xff\xd9"
    superfluous = whole[:-2] + b"abcdef" + whole[-2:]
    for name, data in {"a.jpg": whole, "b.jpg": half, "c.jpg": superfluous}.items():
        (tmp_path / name).write_bytes(data)
    a, b, c = classifier.predict(tmp_path)
    assert "some of its pixels are lost" in b.error
    assert (a.error, c.error) == ("", "")
    assert classifier.predict(half)[0].error == b.error
    assert "JPEG" not in capfd.readouterr().err


def test_standard_error_survives_predictions_in_threads(classifier, tmp_path, capfd):
    whole = saved(COLOUR.resize((200, 200)), "JPEG")
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    (tmp_path / "whole.jpg").write_bytes(whole)
    found, stop = [], threading.Event()

    def write():
        for number in range(300):
            os.write(2, f"line {number}\n".encode())
            stop.wait(0.003)

    threads = [threading.Thread(target=lambda: found.append(classifier.predict(tmp_path))) for _ in range(8)]
    threads.append(threading.Thread(target=write))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("the end", file=sys.stderr)
    lines = capfd.readouterr().err.splitlines()
    assert {f"line {number}" for number in range(300)} <= set(lines)
    assert "the end" in lines
    assert len(found) == 8
    assert all([bool(p.error) for p in one] == [True, False] for one in found)


def test_paths_as_a_shell_would_expand_them(classifier, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PHOTOS", str(tmp_path / "my photos"))
    (tmp_path / "my photos" / "deep").mkdir(parents=True)
    for name in ("a.png", "b.png", "deep/c.png", "[d].png"):
        COLOUR.save(tmp_path / "my photos" / name)

    def names(given):
        return [os.path.relpath(p.name, tmp_path / "my photos") for p in classifier.predict(given)]

    assert names("~/my photos/a.png") == ["a.png"]
    assert names(["$PHOTOS/b.png", "~/my photos/deep"]) == ["b.png", "deep/c.png"]
    assert names("$PHOTOS/?.png") == ["a.png", "b.png"]
    assert names("$PHOTOS/**/*.png") == ["[d].png", "a.png", "b.png", "deep/c.png"]
    assert names("$PHOTOS/[d].png") == ["[d].png"], "a file of this name, not a pattern"
    for nothing in ("$PHOTOS/*.jpg", "~/nowhere.png", "$NOWHERE/a.png"):
        with pytest.raises(FileNotFoundError, match="No such image"):
            classifier.predict(nothing)


@pytest.mark.parametrize("url", ["https://example.com/cat.jpg", "s3://bucket/cat.jpg", "HTTP://example.com/cat.jpg"])
def test_urls_are_refused(classifier, url):
    with pytest.raises(ValueError, match=r"got the URL '.*cat\.jpg'\. Download it first"):
        classifier.predict(["a.png", url][1:])


def test_a_folder_of_images_and_other_files(classifier, tmp_path):
    others = (".hidden.png", ".git/a.png", "notes.txt", "Thumbs.db", "a.png.xmp", "._a.png", "raw.cr2")
    for name in ("a.png", "b", "deep/C.PNG", *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        COLOUR.save(tmp_path / name, "PNG")
    for name in others:
        (tmp_path / name).write_bytes(b"II*\0 no image")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(tmp_path / "pipe")
    found, skipped = images.find([tmp_path])
    assert {str(path.relative_to(tmp_path)) for path in skipped} == {*others, "pipe"}
    named = {os.path.relpath(p.name, tmp_path): p.error for p in classifier.predict(tmp_path)}
    assert [name for name, error in named.items() if not error] == ["a.png", "b", "deep/C.PNG"]
    assert "HEIC" in named["photo.heic"]
    assert "broken link" in named["gone.jpg"]
    assert len(found) == len(named) == 5


def test_model_inputs(classifier, tmp_path):
    """Of many images evenly spread ones; what is no image is left out."""
    for number in range(10):
        Image.fromarray(np.full((50, 40, 3), 20 * number, "uint8")).save(tmp_path / f"{number}.png")
    (tmp_path / "9.png").write_bytes(b"none")
    whole = model_inputs(tmp_path, classifier.preprocess, 3, 10)
    assert whole.shape == (9, 32, 32, 3)
    np.testing.assert_allclose(whole[4, 0, 0] * (0.2, 0.3, 0.25) + (0.4, 0.5, 0.6), 80 / 255, atol=1e-6)
    np.testing.assert_array_equal(model_inputs(tmp_path, classifier.preprocess, 3, 3), whole[[0, 3, 6]])
    with pytest.raises(ValueError, match=r"must be readable.*9\.png"):
        model_inputs(tmp_path / "9.png", classifier.preprocess, 3, 10)


def test_probabilities_are_the_models(classifier):
    image = noise(32, 32, 3)
    prepare = Preprocess((32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 1.0)
    plain = Classifier(classifier.model, prepare, LABELS, "ResNet20")
    x = (image / 255 - np.array([0.4, 0.5, 0.6])) / np.array([0.2, 0.3, 0.25])  # nothing to resize
    logits = np.asarray(classifier.model(x[None].astype("float32")), "float64")[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    got = list(plain.predict([image])[0].probabilities.values())
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-30)  # below, float32 has few digits left


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
