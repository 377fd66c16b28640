"""From a folder of images to a run directory, and what one does with it."""

import csv
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

import keras_residual as kr
from keras_residual.classifier import Classifier
from keras_residual.cli import main
from keras_residual.finetuning import finetune

CLASSES = ("circle", "cross", "stripes")
FORMATS = ("jpg", "png", "webp", "bmp", "gif", "tiff")


def drawing(kind, generator, size=40):
    """One of three shapes at a random place, in random colours, on noise."""
    back = generator.integers(0, 90, (size, size, 3)).astype("uint8")
    image = Image.fromarray(back)
    draw, colour = ImageDraw.Draw(image), tuple(int(c) for c in generator.integers(150, 256, 3))
    x, y = (int(v) for v in generator.integers(4, 14, 2))
    if kind == "square":
        draw.rectangle((x, y, x + 18, y + 18), outline=colour, width=4)
    elif kind == "plus":
        draw.line((x + 10, y, x + 10, y + 20), colour, 4)
        draw.line((x, y + 10, x + 20, y + 10), colour, 4)
    elif kind == "bars":
        for i in range(0, 22, 7):
            draw.line((x + i, y, x + i, y + 20), colour, 3)
    elif kind == "circle":
        draw.ellipse((x, y, x + 20, y + 20), outline=colour, width=4)
    elif kind == "cross":
        draw.line((x, y, x + 20, y + 20), colour, 4)
        draw.line((x, y + 20, x + 20, y), colour, 4)
    else:
        for i in range(0, 22, 7):
            draw.line((x, y + i, x + 20, y + i), colour, 3)
    return image


def make_photos(folder, each=24, seed=0, classes=CLASSES):
    generator = np.random.default_rng(seed)
    for kind in classes:
        (folder / kind).mkdir(parents=True)
        for i in range(each):
            drawing(kind, generator).save(folder / kind / f"{i:03}.{FORMATS[i % len(FORMATS)]}")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = make_photos(tmp_path_factory.mktemp("data") / "photos")
    (folder / "circle" / "empty.jpg").write_bytes(b"")
    whole = (folder / "cross" / "000.jpg").read_bytes()
    (folder / "cross" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "stripes" / "page.png").write_text("<html>not found</html>")
    return folder


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    said = []
    folder = tmp_path_factory.mktemp("runs") / "shapes"
    classifier = finetune(photos, "ResNet20", None, 3, output=folder, size=32, batch_size=16, say=said.append)
    return folder, classifier, "\n".join(said)


def test_what_a_run_holds(run):
    folder, classifier, said = run
    files = {path.name for path in folder.iterdir()}
    assert files >= {
        *("model.keras", "weights.safetensors", "labels.txt", "config.json", "history.csv", "metrics.json"),
        *("curves.png", "confusion.png", "mistakes.png", "predictions.csv", "skipped.csv", "run.json"),
    }
    with open(folder / "skipped.csv", newline="") as file:
        assert {row["path"].rpartition("/")[2] for row in csv.DictReader(file)} == {"empty.jpg", "half.jpg", "page.png"}
    with open(folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert all(float(row["loss"]) > 0 and 0 <= float(row["val_accuracy"]) <= 1 for row in rows)
    measured = json.loads((folder / "metrics.json").read_text())
    assert measured["images"] == 15
    assert measured["majority_accuracy"] == pytest.approx(1 / 3, abs=0.05)
    for name in ("curves", "confusion", "mistakes"):
        assert np.asarray(Image.open(folder / f"{name}.png").convert("L")).std() > 5, "a picture with nothing on it"
    assert classifier.labels == CLASSES
    assert "3 images" in said
    assert "held out" in said


def test_the_measures_are_those_of_the_loaded_run(run, photos):
    folder, _, _ = run
    again, right = Classifier.load(folder), []
    with open(folder / "predictions.csv", newline="") as file:
        for row in csv.DictReader(file):
            (found,) = again.predict(photos / row["image"] if (photos / row["image"]).exists() else row["image"])
            assert found.label == row["predicted"]
            assert found.probability == pytest.approx(float(row["probability"]), abs=2e-3)
            right.append(found.label == row["true"])
    assert np.mean(right) == json.loads((folder / "metrics.json").read_text())["accuracy"]


def test_the_same_call_again_does_not_train(run, photos):
    folder, _, _ = run
    before, said = (folder / "config.json").stat().st_mtime_ns, []
    finetune(photos, "ResNet20", None, 3, output=folder, size=32, batch_size=16, say=said.append)
    assert (folder / "config.json").stat().st_mtime_ns == before
    assert "finished" in said[-1]


def test_another_run_is_not_overwritten(run, photos):
    folder, _, _ = run
    with pytest.raises(ValueError, match=r"seed: 0 there, 1 now[\s\S]*overwrite"):
        finetune(photos, "ResNet20", None, 3, output=folder, size=32, batch_size=16, seed=1)
    assert (folder / "config.json").exists()


def test_a_directory_of_someone_else_is_left_alone(photos, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="empty directory"):
        finetune(photos, "ResNet20", None, 1, output=tmp_path, size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_commands(run, photos, capsys):
    folder, _, _ = run
    assert main(["predict", str(folder), str(photos / "cross" / "001.png"), "--top", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["classes"]) <= set(CLASSES)
    assert main(["predict", str(folder), str(photos / "circle" / "empty.jpg")]) == 1
    assert "empty.jpg" in capsys.readouterr().err
    assert main(["evaluate", str(folder), str(photos)]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_a_run_begins_the_next_one(run, photos, tmp_path):
    folder, classifier, _ = run
    model = kr.from_pretrained(folder)
    image = np.zeros((1, 32, 32, 3), "float32")
    np.testing.assert_allclose(model(image), classifier.model(image), rtol=1e-5)


def test_few_epochs_leave_some_for_all_layers(run, photos, tmp_path, monkeypatch):
    """The recipe gives the head three epochs: of two, one is left to it."""

    class EnoughError(Exception):
        pass

    def fit(network, recipe, *data, **options):
        raise EnoughError(recipe.epochs, recipe.head_epochs)

    monkeypatch.setattr("keras_residual.training.fit", fit)
    with pytest.raises(EnoughError, match=r"\(2, 1\)"):
        finetune(photos, weights=run[0], epochs=2, output=tmp_path / "short", size=32)


@pytest.mark.slow
def test_pretrained_weights_beat_scratch(tmp_path):
    """On a dozen images a class, over three seeds; the network was trained on other shapes before."""
    before = make_photos(tmp_path / "before", each=150)
    finetune(before, "ResNet20", None, 12, output=tmp_path / "first", size=32)
    others = ("square", "plus", "bars")
    test = make_photos(tmp_path / "test", each=60, seed=1, classes=others)
    accuracy = {True: [], False: []}
    for seed in range(3):
        few = make_photos(tmp_path / f"few{seed}", each=12, seed=seed + 2, classes=others)
        for pretrained in (True, False):
            weights = tmp_path / "first" if pretrained else None
            run = finetune(few, "ResNet20", weights, output=tmp_path / f"{seed}{pretrained}", size=32, seed=seed)
            accuracy[pretrained].append(run.evaluate(test)["accuracy"])
    print(accuracy)
    assert np.mean(accuracy[True]) > np.mean(accuracy[False]) + 0.05, accuracy
