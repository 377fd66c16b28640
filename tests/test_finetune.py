"""From a folder of images to a run directory, and what one does with it."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image, ImageDraw

import keras_residual as kr
from keras_residual.classifier import Classifier
from keras_residual.cli import main
from keras_residual.finetuning import finetune
from keras_residual.training.checkpoint import Snapshot
from keras_residual.weights import slots

from . import GIVEN
from .conftest import offline_hub
from .data_images import png

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


def spoil(folder):
    """Twenty files among the images that are none, or not whole; returns their names."""
    whole = {kind: (folder / "circle" / f"{i:03}.{kind}").read_bytes() for i, kind in enumerate(FORMATS)}
    flipped = bytearray(whole["png"])
    flipped[len(flipped) // 2] ^= 4
    damaged = {
        "empty.jpg": b"",
        "page.png": b"<html>not found</html>",
        "flipped.png": bytes(flipped),
        "bomb.png": png(60_000, 60_000),
        "video.jpg": b"\0\0\0 ftypisom" + bytes(200),
        "._000.jpg": bytes(100),
        "zeros.webp": bytes(1000),
        "notes.txt": b"buy milk",
        **{f"half.{kind}": whole[kind][: len(whole[kind]) // 2] for kind in FORMATS},
        **{f"head.{kind}": whole[kind][:12] for kind in FORMATS},
    }
    for i, (name, content) in enumerate(damaged.items()):
        (folder / CLASSES[i % 3] / name).write_bytes(content)
    return set(damaged)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = make_photos(tmp_path_factory.mktemp("data") / "photos", each=80)
    assert len(spoil(folder)) == 20
    return folder


def call(photos, folder, said, **options):
    return finetune(
        *(photos, "TestResNet", "timm/test_resnet.mine", 3),
        **{"output": folder, "size": 64, "batch_size": 16, "say": said.append, **options},
    )


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """From a checkpoint in the Hub's cache: timm's form, new weights, another number of classes."""
    said, folder = [], tmp_path_factory.mktemp("runs") / "shapes"
    keras.utils.set_random_seed(1)
    model = kr.create("TestResNet", classes=7, input_shape=(64, 64, 3))
    state = {s.key: np.ascontiguousarray(s.to_torch(np.asarray(s.variable))) for s in slots(model)}
    about = {"input_size": [3, 96, 96], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "crop_pct": 0.9}
    config = {"architecture": "test_resnet", "num_classes": 7, "pretrained_cfg": about}
    with pytest.MonkeyPatch.context() as patch:
        publish = offline_hub(tmp_path_factory.mktemp("hub"), patch)
        publish("timm/test_resnet.mine", {"config.json": config, "model.safetensors": state})
        classifier = call(photos, folder, said)
        yield folder, classifier, "\n".join(said)


def test_what_a_run_holds(run):
    folder, classifier, said = run
    files = {path.name for path in folder.iterdir()}
    assert files >= {
        *("model.keras", "weights.safetensors", "labels.txt", "config.json", "history.csv", "metrics.json"),
        *("curves.png", "confusion.png", "mistakes.png", "predictions.csv", "skipped.csv", "run.json", "tensorboard"),
    }
    with open(folder / "skipped.csv", newline="") as file:
        skipped = {row["path"].rpartition("/")[2]: row["reason"] for row in csv.DictReader(file)}
    assert len(skipped) == 20
    assert {name.partition(".")[0] for name in skipped} >= {"half", "head", "empty", "bomb", "flipped", "page", "video"}
    assert "pixels" in skipped["bomb.png"]
    with open(folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert all(float(row["loss"]) > 0 and 0 <= float(row["val_accuracy"]) <= 1 for row in rows)
    measured = json.loads((folder / "metrics.json").read_text())
    assert measured["images"] == 48
    assert measured["majority_accuracy"] == pytest.approx(1 / 3, abs=0.05)
    for name in ("curves", "confusion", "mistakes"):
        assert np.asarray(Image.open(folder / f"{name}.png").convert("L")).std() > 5, "a picture with nothing on it"
    assert classifier.labels == CLASSES
    assert "20 images" in said
    assert "validation  " in said
    assert classifier.preprocess.mean == (0.4, 0.5, 0.6)  # the checkpoint's, at the size that was asked for
    assert classifier.preprocess.size == (64, 64)


def test_tensorboard_reads_the_history(run):
    """Read by TensorFlow as plain records: each epoch once, under the names of Keras' own callback."""
    import tensorflow as tf

    folder, _, _ = run
    with open(folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for part, column in (("train", "loss"), ("validation", "val_accuracy")):
        found = []
        for path in (folder / "tensorboard" / part).glob("events.out.tfevents.*"):
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                event = tf.compat.v1.Event.FromString(record)
                for value in event.summary.value:
                    if value.tag == f"epoch_{column.removeprefix('val_')}":
                        assert value.metadata.plugin_data.plugin_name == "scalars"
                        found.append((event.step, float(tf.make_ndarray(value.tensor))))
        assert [step for step, _ in found] == [0, 1, 2]
        np.testing.assert_allclose([value for _, value in found], [float(row[column]) for row in rows], rtol=1e-4)


def test_the_measures_are_those_of_the_loaded_run(run, photos):
    folder, _, _ = run
    with open(folder / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    right = []
    for row, found in zip(rows, Classifier.load(folder).predict([photos / row["image"] for row in rows]), strict=True):
        assert found.label == row["predicted"]
        assert found.probability == pytest.approx(float(row["probability"]), abs=2e-3)
        right.append(found.label == row["true"])
    assert np.mean(right) == json.loads((folder / "metrics.json").read_text())["accuracy"]


def test_the_same_call_again_does_not_train(run, photos):
    folder, _, _ = run
    before, said = (folder / "config.json").stat().st_mtime_ns, []
    call(photos, folder, said)
    assert (folder / "config.json").stat().st_mtime_ns == before
    assert "finished" in said[-1]


def test_another_run_is_not_overwritten(run, photos):
    folder, _, _ = run
    with pytest.raises(ValueError, match=r"already contains another run[\s\S]*seed: 0 before, 1 now"):
        call(photos, folder, [], seed=1)
    assert (folder / "config.json").exists()


def test_a_directory_of_someone_else_is_left_alone(photos, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="empty directory"):
        finetune(photos, "ResNet20", None, 1, output=tmp_path, size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_was_refused_is_forgotten_and_what_began_is_gone_on_with(run, photos, tmp_path, monkeypatch):
    class EnoughError(Exception):
        pass

    def fit(network, recipe, *data, checkpoints, **options):
        checkpoints.directory.mkdir(exist_ok=True)
        (checkpoints.directory / "step-0000000001.safetensors").write_text("")
        raise EnoughError

    def start(**options):
        options = {"weights": run[0], "epochs": 3, "output": tmp_path / "run", "size": 32, "say": str, **options}
        finetune(photos, **options)

    with pytest.raises(ValueError, match="batch_size=5000 for 192 images"):
        start(batch_size=5000)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("keras_residual.training.fit", fit)
    with pytest.raises(EnoughError):
        start()
    with pytest.raises(ValueError, match=r"epochs: 3 before, 2 now"):
        start(epochs=2)
    (tmp_path / "run" / "training" / "mine").write_text("")
    with pytest.raises(EnoughError):
        start(overwrite=True)  # the same run: it goes on, or a kill would cost all of it
    assert (tmp_path / "run" / "training" / "mine").exists()
    with pytest.raises(EnoughError):
        start(overwrite=True, epochs=2)
    assert not (tmp_path / "run" / "training" / "mine").exists()
    (photos.parent / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="a file"):
        start(output=photos.parent / "file")


@pytest.mark.parametrize(
    ("recipe", "size", "trained", "shape"),
    [
        ("resnet_strikes_back_a3", None, 160, (None, None, 3)),
        ("resnet_strikes_back_a3", 64, None, (64, 64, 3)),
        (None, None, None, (64, 64, 3)),
    ],
)
def test_sizes(run, photos, tmp_path, monkeypatch, recipe, size, trained, shape):
    """A named recipe trains at its own size and is measured at the checkpoint's, unless the user says a size."""

    class EnoughError(Exception):
        pass

    def fit(network, recipe, *data, preprocess, **options):
        raise EnoughError(recipe.size, network.input_shape[1:], preprocess.size)

    monkeypatch.setattr("keras_residual.training.fit", fit)
    with pytest.raises(EnoughError) as stop:
        finetune(photos, weights=run[0], recipe=recipe, size=size, output=tmp_path / "run")
    assert stop.value.args == (trained, shape, (64, 64))


@pytest.mark.parametrize(
    ("model", "options", "found"),
    [
        ("ConvNeXtAtto", {}, {"drop_path": 0.2, "dropout": 0.3}),
        ("ConvNeXtAtto", {"dropout": 0.4}, {"drop_path": 0.2, "dropout": 0.4}),  # the user's word counts
        ("TestResNet", {}, {"drop_path": 0.2}),  # its family has no dropout
    ],
)
def test_the_network_is_built_with_the_rates_of_the_recipe(photos, tmp_path, monkeypatch, model, options, found):
    class EnoughError(Exception):
        pass

    def fit(network, recipe, *data, **options):
        layers = [layer for layer in network.layers if isinstance(layer, keras.layers.Dropout) and layer.rate]
        rates = {}
        for layer in layers:
            kind = "drop_path" if layer.name.endswith(".drop_path") else "dropout"
            rates[kind] = max(rates.get(kind, 0), round(layer.rate, 6))
        raise EnoughError(rates)

    monkeypatch.setattr("keras_residual.training.fit", fit)
    recipe = kr.Recipe(drop_path=0.2, dropout=0.3, batch_size=8)
    with pytest.raises(EnoughError) as stop:
        finetune(photos, model, None, 1, recipe=recipe, output=tmp_path / "run", size=32, say=str, **options)
    assert stop.value.args == (found,)


def test_a_network_without_a_default_checkpoint(photos, tmp_path):
    """The same words from the builder and from the job."""
    words = r"weights. must be a repository or a file for ResNet20, .*got .imagenet.*--weights none"
    with pytest.raises(ValueError, match=words):
        finetune(photos, "ResNet20", "imagenet", output=tmp_path / "run")
    with pytest.raises(ValueError, match=words):
        kr.create("ResNet20", weights="imagenet")
    assert kr.models.find("ResNet20").config.checkpoint is None
    assert kr.models.find("ResNet18").config.checkpoint == "timm/resnet18.a1_in1k"


def test_missing_data_are_reported_before_weights_are_fetched(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("keras_residual.finetuning.Weights.read", lambda _: pytest.fail("it fetched weights"))
    with pytest.raises(FileNotFoundError, match="No such folder or manifest: 'fotos'"):
        finetune("fotos", "ResNet18", "imagenet", output=tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="No such folder or manifest: 'more'"):
        finetune(photos, "ResNet18", "imagenet", validation="more", output=tmp_path / "run")


def test_commands(run, photos, capsys):
    folder, _, _ = run
    assert main(["predict", str(folder), str(photos / "cross" / "001.png"), "--top", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["classes"]) <= set(CLASSES)
    assert main(["predict", str(folder), str(photos / "circle" / "empty.jpg")]) == 1
    assert "empty.jpg" in capsys.readouterr().err


def test_evaluate_goes_by_names(run, tmp_path, capsys):
    """Two of the three classes, under folders whose order is another; then one that was not trained on."""
    folder, classifier, _ = run
    make_photos(tmp_path / "some", each=12, seed=9, classes=("cross", "stripes"))
    assert main(["evaluate", str(folder), str(tmp_path / "some"), "--output", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert "'circle'" in captured.err
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert all(row["true"] == row["image"].partition("/")[0] for row in rows)
    right = np.mean([row["true"] == row["predicted"] for row in rows])
    assert f"accuracy             {right:.4f}" in captured.out
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["accuracy"] == right
    with pytest.warns(UserWarning, match="'circle'"):
        assert classifier.evaluate(tmp_path / "some")["accuracy"] == right
    make_photos(tmp_path / "more", each=2, classes=("cross", "square"))
    assert main(["evaluate", str(folder), str(tmp_path / "more")]) == 2
    assert "'square'" in capsys.readouterr().err


def test_a_run_begins_the_next_one(run, photos, tmp_path):
    folder, classifier, _ = run
    model = kr.from_pretrained(folder)
    image = np.zeros((1, 64, 64, 3), "float32")
    np.testing.assert_allclose(model(image), classifier.model(image), rtol=1e-5)


@pytest.mark.parametrize(("epochs", "recipe", "head"), [(2, None, 0), (4, None, 1), (30, None, 10), (2, "finetune", 1)])
def test_few_epochs_leave_most_for_all_layers(run, photos, tmp_path, monkeypatch, epochs, recipe, head):
    """The preset gives the head six epochs; by itself `finetune` gives it a third at most."""

    class EnoughError(Exception):
        pass

    def fit(network, recipe, *data, **options):
        raise EnoughError(recipe.epochs, recipe.head_epochs)

    monkeypatch.setattr("keras_residual.training.fit", fit)
    with pytest.raises(EnoughError) as stop:
        finetune(photos, weights=run[0], epochs=epochs, recipe=recipe, output=tmp_path / "short", size=32)
    assert stop.value.args == (epochs, head)


def command(photos, output, *more):
    """The real command, in a process of its own, as a user starts it: on a set without a validation of its own."""
    options = ["--model", "TestResNet", "--weights", "none", "--size", "32", "--epochs", "30", "--batch-size", "8"]
    return subprocess.Popen(
        [sys.executable, "-m", "keras_residual.cli", "finetune", photos, *options, "--output", output, *more],
        cwd=Path(__file__).parents[1],
        env={**GIVEN, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_the_command_killed_at_random_moments(tmp_path):
    """While it reads, compiles, trains, saves or reports: the run is that of an undisturbed one in the end."""
    photos = make_photos(tmp_path / "photos", each=16)
    process = command(photos, tmp_path / "whole", "--deterministic")
    _, err = process.communicate()
    assert process.returncode == 0, err[-2000:]
    generator = np.random.default_rng(int(os.environ.get("KR_SEED", "0")))
    wanted, kills, reached = int(os.environ.get("KR_KILLS", "10")), 0, [0]

    def step():
        """Of the last checkpoint; an epoch has four."""
        return max((int(p.stem[5:]) for p in (tmp_path / "killed").glob("training/step-*")), default=0)

    for number in range(wanted + 1):
        process = command(photos, tmp_path / "killed", "--deterministic")
        if number < wanted:
            # most of the time goes into imports: two of ten moments are there, the others some epochs later
            until = step() + 4 * generator.integers(0, 4)
            if number % 5:
                for line in process.stdout:
                    if line.startswith("recipe"):
                        break
                while step() < until and process.poll() is None:
                    time.sleep(0.01)
            time.sleep(generator.uniform(0, 1.0 if number % 5 else 10.0))
            process.kill()
            kills += process.wait() == -signal.SIGKILL
            process.communicate()
            reached.append(step())
        else:
            _, err = process.communicate()
            assert process.returncode == 0, err[-2000:]
    print("steps of the last checkpoint at each kill:", reached)
    assert kills >= 0.8 * wanted, reached
    assert len(set(reached)) > 2, reached
    for name in ("weights.safetensors", "history.csv", "metrics.json", "predictions.csv", "labels.txt"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    whole, killed = (Snapshot.read(max((tmp_path / n / "training").glob("step-*"))) for n in ("whole", "killed"))
    assert whole.digest() == killed.digest()


@pytest.mark.slow
def test_pretrained_weights_beat_scratch(tmp_path):
    """On five images a class, over three seeds; the network was trained on other shapes before."""
    before = make_photos(tmp_path / "before", each=100)
    finetune(before, "TestResNet", None, 15, output=tmp_path / "first", size=64)
    others = ("square", "plus", "bars")
    test = make_photos(tmp_path / "test", each=40, seed=1, classes=others)
    accuracy = {True: [], False: []}
    for seed in range(3):
        few = make_photos(tmp_path / f"few{seed}", each=5, seed=seed + 2, classes=others)
        for pretrained in (True, False):
            weights = tmp_path / "first" if pretrained else None
            run = finetune(few, "TestResNet", weights, output=tmp_path / f"{seed}{pretrained}", size=64, seed=seed)
            accuracy[pretrained].append(run.evaluate(test)["accuracy"])
    print(accuracy)
    assert np.mean(accuracy[True]) > np.mean(accuracy[False]) + 0.05, accuracy
