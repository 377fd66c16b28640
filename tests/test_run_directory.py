"""One run per directory: nothing trained is lost, two commands do not mix, a run is recognised wherever it lies."""

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from PIL import Image

import keras_residual as kr
from keras_residual.classifier import Classifier
from keras_residual.cli import main
from keras_residual.finetuning import MOST_WEIGHT, _balance, finetune
from keras_residual.io import LockedError, literal, locked
from keras_residual.run_directory import RunDirectory

from . import GIVEN
from .test_disk import full

STRANGE = ("US$10\\frac$", "a\nb", "中文", "x_1^2")


def stripes(folder, classes=("across", "down"), each=12, size=32):
    """Images that any network tells apart: stripes of as many widths and directions as there are classes."""
    generator = np.random.default_rng(0)
    for number, name in enumerate(classes):
        place = os.path.join(os.fsencode(folder), name if isinstance(name, bytes) else os.fsencode(name))
        os.makedirs(place)
        wave = np.sin(np.mgrid[:size, :size][number % 2] * (1 + number // 2)) * 90 + 128
        for i in range(each):
            pixels = np.clip(wave[..., None] + generator.normal(0, 20, (size, size, 3)), 0, 255).astype("uint8")
            Image.fromarray(pixels).save(os.path.join(place, b"%d.png" % i))
    return folder


def train(photos, output, **options):
    """Returns the classifier and what was printed; two epochs unless told otherwise."""
    lines = []
    given = {"model": "TestResNet", "weights": None, "epochs": 2, "size": 32, "batch_size": 8, **options}
    return finetune(photos, output=output, say=lines.append, **given), "\n".join(lines)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    train(stripes(place / "photos"), place / "run")
    return place


@pytest.fixture
def place(trained, tmp_path):
    """A copy of the run and its images, elsewhere."""
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


# ---------------------------------------------------------------------------------------------- nothing trained is lost


@pytest.mark.long
def test_a_report_that_fails_costs_one_file(tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise MemoryError("6.5 GB")

    for name in ("draw_curves", "draw_confusion", "draw_mistakes"):
        monkeypatch.setattr(f"keras_residual.figures.{name}", broken)
    with pytest.warns(UserWarning, match=r"curves\.png.*6\.5 GB") as said:
        train(stripes(tmp_path / "photos"), tmp_path / "run", epochs=1)
    assert sum("Could not write" in str(one.message) for one in said) == 4, "draw_mistakes also draws augmented.png"
    assert Classifier.load(tmp_path / "run").labels == ("across", "down")
    assert (tmp_path / "run" / "predictions.csv").exists()
    assert RunDirectory(tmp_path / "run").finished()


def test_the_classifier_is_on_disk_before_anything_is_measured(tmp_path, monkeypatch):
    """An interruption in the report, which is no failure of it: the same call measures and does not train again."""
    steps = []

    def interrupted(classifier, *arguments):
        assert Classifier.load(tmp_path / "run").labels == classifier.labels
        steps.append(1)
        raise KeyboardInterrupt

    stripes(tmp_path / "photos")
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "answers", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "photos", tmp_path / "run", epochs=1)
    assert steps
    assert not (tmp_path / "run" / "metrics.json").exists()
    _, said = train(tmp_path / "photos", tmp_path / "run", epochs=1)
    assert "epoch" not in said.partition("data")[0]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["images"] == 4


@pytest.mark.long
def test_names_that_no_figure_can_take(tmp_path):
    """Mathematics, a line feed, another script, bytes that are no UTF-8: every file of the run is written."""
    photos = stripes(tmp_path / "photos", classes=(*STRANGE, b"caf\xe9"), each=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a picture that is missing would be one
        classifier, said = train(photos, tmp_path / "run", epochs=1)
    assert set(classifier.labels) == {*map(literal, STRANGE), "caf\\xe9"}
    assert Classifier.load(tmp_path / "run").labels == classifier.labels
    assert len((tmp_path / "run" / "labels.txt").read_text(encoding="utf-8").splitlines()) == 5
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"curves.png", "confusion.png", "mistakes.png"}
    said.encode()  # and can be printed
    with open(tmp_path / "run" / "predictions.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 5


@pytest.mark.long
def test_overwriting_keeps_the_old_run_until_the_new_one_trains(place):
    before = (place / "run" / "weights.safetensors").read_bytes()
    with pytest.raises(ValueError, match="batch_size=5000"):
        train(place / "photos", place / "run", batch_size=5000, overwrite=True)
    assert (place / "run" / "weights.safetensors").read_bytes() == before
    assert Classifier.load(place / "run").labels == ("across", "down")
    assert "finished" in train(place / "photos", place / "run")[1]


def test_a_finished_run_keeps_one_checkpoint(trained):
    kinds = [path.name.partition("-")[0] for path in (trained / "run" / "training").glob("*.safetensors")]
    assert kinds.count("step") == 1
    assert kinds.count("best") == 1


# -------------------------------------------------------------------------------------------------------- one writer


HOLD = """
import sys, time
from pathlib import Path
from keras_residual.io import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(place):
    process = subprocess.Popen([sys.executable, "-c", HOLD, place / "run"], env=GIVEN, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"epochs": 5}])
def test_a_second_command_is_refused_and_changes_nothing(place, holder, options):
    before = {path.name: path.stat().st_mtime_ns for path in (place / "run").iterdir()}
    begun = time.monotonic()
    with pytest.raises(LockedError, match=rf"Another one is running \(process {holder.pid} on"):
        train(place / "photos", place / "run", **options)
    assert time.monotonic() - begun < 5
    assert {path.name: path.stat().st_mtime_ns for path in (place / "run").iterdir()} == before


def test_a_killed_process_blocks_nobody(place, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert "finished" in train(place / "photos", place / "run")[1]


def test_fit_holds_its_directory_too(tmp_path):
    x, y = np.zeros((8, 32, 32, 3), "uint8"), np.arange(8) % 2
    model = kr.create("TestResNet", classes=2, input_shape=(32, 32, 3), classifier_activation=None)
    with locked(tmp_path), pytest.raises(LockedError, match="Only one command"):
        kr.fit(model, kr.Recipe(epochs=1, batch_size=8), (x, y), checkpoints=tmp_path, progress=False)


# ---------------------------------------------------------------------------------------------- recognised by content


@pytest.mark.parametrize("typed", ["photos", "photos/", "./photos", "../copy/photos", "absolute", "moved"])
def test_the_same_images_are_the_same_run(place, monkeypatch, typed):
    monkeypatch.chdir(place)
    if typed == "moved":
        shutil.move("photos", "elsewhere")
    source = {"absolute": place / "photos", "moved": "elsewhere"}.get(typed, typed)
    assert "finished" in train(source, "run")[1]


@pytest.mark.long
def test_weights_are_recognised_by_content(place, tmp_path, monkeypatch):
    """A file under another name is the same; another file under the same name is not."""
    weights = place / "run" / "weights.safetensors"
    shutil.copy(weights, tmp_path / "a.safetensors")
    train(place / "photos", tmp_path / "next", weights=tmp_path / "a.safetensors", epochs=1)
    shutil.move(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    monkeypatch.chdir(tmp_path)
    assert "finished" in train(place / "photos", "next", weights="./b.safetensors", epochs=1)[1]
    model = kr.create("TestResNet", classes=2, input_shape=(32, 32, 3))
    kr.save_weights(model, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"weights: .sha256:.* before, .sha256:.* now"):
        train(place / "photos", "next", weights="b.safetensors", epochs=1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": 1}, "seed: 0 before, 1 now"),
        ({"learning_rate": 0.1}, "learning_rate: None before, 0.1 now"),
        ({"epochs": 1}, "epochs: 2 before, 1 now"),
        ({"batch_size": 4}, "batch_size: 8 before, 4 now"),
        ({"epochs": 3, "batch_size": 4}, "batch_size: 8 before, 4 now"),
    ],
)
def test_the_setting_that_differs_is_named_alone(place, options, named):
    with pytest.raises(ValueError, match="already contains another run") as error:
        train(place / "photos", place / "run", **options)
    lines = str(error.value).splitlines()
    assert f"  {named}" in lines
    assert len(lines) == 3 + len(options) - 1
    assert "overwrite" not in str(error.value)


@pytest.mark.parametrize("change", ["added", "removed", "changed"])
def test_other_images_are_another_run(place, change):
    image = place / "photos" / "down" / "3.png"
    if change == "added":
        shutil.copy(image, image.with_name("new.png"))
    elif change == "removed":
        image.unlink()
    else:
        Image.new("RGB", (32, 32)).save(image)
    with pytest.raises(ValueError, match=r"settings:\n  images: some were added, removed, changed[^\n]*\nChoose"):
        train(place / "photos", place / "run")


def test_an_interrupted_run_of_a_moved_directory_resumes(place, monkeypatch):
    """On another machine, from another path, after a kill in the middle: the checkpoint counts."""
    for name in ("config.json", "metrics.json", "weights.safetensors"):
        (place / "run" / name).unlink()
    shutil.move(place / "run", place / "moved")
    monkeypatch.chdir(place)
    train("photos", "moved")
    assert RunDirectory(place / "moved").finished()


# --------------------------------------------------------------------------------------------------------- more epochs


def history(folder):
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_more_epochs_continue_a_finished_run(place):
    before = history(place / "run")
    train(place / "photos", place / "run", epochs=4)
    after = history(place / "run")
    assert len(after) == 4
    assert after[:2] == before
    assert "finished" in train(place / "photos", place / "run", epochs=4)[1]


@pytest.mark.long
def test_early_stopping_ends_a_run_and_more_epochs_continue_it(place, tmp_path):
    """Nothing improves where nothing changes: a rate of almost nothing, and frozen statistics."""
    photos, options = place / "photos", {"weights": place / "run", "learning_rate": 1e-12, "batch_norm": "frozen"}
    options |= {"patience": 1, "head_epochs": 0, "output": tmp_path / "run"}
    train(photos, epochs=9, **options)
    assert len(history(tmp_path / "run")) == 2
    assert "finished" in train(photos, epochs=9, **options)[1]
    train(photos, epochs=10, **options)
    assert len(history(tmp_path / "run")) == 3


# ------------------------------------------------------------------------------------------- before the first step


def test_an_output_without_room_is_refused_before_the_first_step(tmp_path, monkeypatch):
    """A limit on the size of files stands for a quota: the free space alone does not show it."""
    monkeypatch.setattr("keras_residual.training.run.Run.train", lambda *_: pytest.fail("a step was made"))
    photos = stripes(tmp_path / "photos")
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit[1]))
    try:
        with pytest.raises(OSError, match=r"must have room for about \d+ MB; .* a quota or limit allows less"):
            train(photos, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(OSError, match=r"it has 0 MB free\. Make room"):
        train(photos, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_output_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_residual.data.load", lambda *_, **__: pytest.fail("images were read"))
    with pytest.raises(OSError, match="proc"):
        train(tmp_path, "/proc/run")
    with full(tmp_path):
        pass  # the helper itself restores the limit
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"empty directory.*thesis\.txt"):
        train(tmp_path, tmp_path)
    with pytest.raises(NotADirectoryError, match="a file"):
        train(tmp_path, tmp_path / "thesis.txt")


def test_home_and_variables_in_the_output(place, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("RUNS", "run")
    assert "finished" in train(place / "photos", "~/$RUNS")[1]


def test_head_epochs_are_among_the_epochs(place):
    with pytest.raises(ValueError, match="head_epochs must be at most the number of epochs, 3; got 6"):
        train(place / "photos", place / "new", epochs=3, head_epochs=6)
    assert not (place / "new").exists()


# -------------------------------------------------------------------------------------------------------- rare classes


@pytest.mark.parametrize("counts", [(4000, 2), (30, 10), (5, 5), (100, 1, 1, 1)])
def test_class_weights_are_capped(counts):
    counts = np.array(counts)
    weights = np.array(_balance(counts))
    assert weights.max() / weights.min() <= MOST_WEIGHT + 1e-9
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
    if counts.max() <= MOST_WEIGHT * counts.min():  # below the cap each class has the same part of the loss
        np.testing.assert_allclose(weights * counts, (weights * counts)[0])


@pytest.mark.long
def test_unbalanced_classes_are_told(tmp_path):
    photos = stripes(tmp_path / "photos", classes=("many", "few", "rare"), each=60)
    for image in [image for name in ("few", "rare") for image in (photos / name).iterdir() if int(image.stem) > 4]:
        image.unlink()
    _, said = train(photos, tmp_path / "run", epochs=1)
    assert "balance     classes have 4 to 48 images; class weights: " in said
    assert "capped at 10 times" in said
    recalls = next(line for line in said.splitlines() if line.startswith("recall"))
    with open(tmp_path / "run" / "classes.csv", newline="") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    with open(tmp_path / "run" / "predictions.csv", newline="") as file:
        answers = list(csv.DictReader(file))
    for name, row in rows.items():
        own = [answer for answer in answers if answer["true"] == name]
        right = np.mean([answer["predicted"] == name for answer in own])
        assert float(row["recall"]) == pytest.approx(right, abs=1e-4)
        assert f"{name} {right:.1%} of {len(own)}" in recalls
    assert "val_macro_f1" in history(tmp_path / "run")[0]


# ------------------------------------------------------------------------------------------------------- command line


def test_a_rate_far_too_high_is_one_message(place, capsys):
    arguments = ["finetune", str(place / "photos"), "--model", "TestResNet", "--weights", "none", "--size", "32"]
    arguments += ["--batch-size", "8", "--epochs", "1", "--output", str(place / "new run")]
    assert main([*arguments, "--learning-rate", "1e30"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "Training stopped: " in err
    assert "weights" in err
    assert main([*arguments, "--overwrite"]) == 0
    out = capsys.readouterr().out
    assert f"keras-residual predict '{place / 'new run'}' IMAGE..." in out


def command(photos, output):
    arguments = ["--model", "TestResNet", "--weights", "none", "--size", "32", "--epochs", "8", "--batch-size", "8"]
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "keras_residual.cli",
            "finetune",
            photos,
            *arguments,
            "--output",
            output,
            "--deterministic",
        ],
        env={**GIVEN, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_killed_in_each_second(tmp_path):
    """While it imports, reads, compiles, trains, saves and reports: no epoch is lost, and the end is the same.

    KR_EVERY: seconds between two moments; KR_RESUME: of how many killed runs one is resumed.
    """
    photos, whole = stripes(tmp_path / "photos", each=20), tmp_path / "whole"
    begun = time.monotonic()
    process = command(photos, whole)
    _, err = process.communicate()
    assert process.returncode == 0, err[-2000:]
    seconds = time.monotonic() - begun
    steps, killed, moments = 32 // 8, 0, np.arange(1.0, seconds + 1, float(os.environ.get("KR_EVERY", "1")))
    for number, moment in enumerate(moments):
        run = tmp_path / f"run{number}"
        process = command(photos, run)
        time.sleep(moment)
        process.kill()
        out, _ = process.communicate()
        killed += process.returncode == -signal.SIGKILL
        announced = sum(line.startswith("epoch") for line in out.splitlines())
        saved = max((int(p.stem[5:]) // steps for p in run.glob("training/step-*.safetensors")), default=0)
        assert saved >= announced - 1, (moment, out)  # the last one may still be on its way to the disk
        if (run / "config.json").exists():
            assert Classifier.load(run).labels == ("across", "down"), moment
        there = {name for name in ("config.json", "metrics.json", "mistakes.png") if (run / name).exists()}
        print(f"killed after {moment:.1f} s: {saved} epochs saved, {announced} announced, {sorted(there)}")
        if number % int(os.environ.get("KR_RESUME", "1")) == 0 or 0 < len(there) < 3:
            process = command(photos, run)
            _, err = process.communicate()
            assert process.returncode == 0, (moment, err[-2000:])
            for name in ("weights.safetensors", "history.csv", "metrics.json", "predictions.csv", "labels.txt"):
                assert (run / name).read_bytes() == (whole / name).read_bytes(), (moment, name)
        shutil.rmtree(run, ignore_errors=True)
    assert killed >= len(moments) // 2


def test_logs_that_cannot_be_written_stop_nothing(tmp_path, monkeypatch):
    """TensorFlow 2.22 writes none without the package `tensorboard`; a disk may be full."""

    def broken(*arguments, **options):
        raise NotImplementedError("tensorboard is missing")

    monkeypatch.setattr("tensorflow.summary.create_file_writer", broken)
    x, y = np.zeros((8, 32, 32, 3), "uint8"), np.arange(8) % 2
    model = kr.create("TestResNet", classes=2, input_shape=(32, 32, 3), classifier_activation=None)
    recipe = kr.Recipe(epochs=2, batch_size=8)
    with pytest.warns(UserWarning, match=r"TensorBoard.*tensorboard is missing\)\. Training continues") as said:
        kr.fit(model, recipe, (x, y), logs=tmp_path, progress=False)
    assert sum("TensorBoard" in str(one.message) for one in said) == 1


def test_a_kill_while_an_old_run_is_set_aside_loses_nothing(place, monkeypatch):
    """`--overwrite` moves the old files one by one."""
    moved, rename = [], type(place).rename

    def dies(self, target):
        if len(moved) == 3:
            raise KeyboardInterrupt  # nothing below it runs, as after a kill
        moved.append(self.name)
        return rename(self, target)

    with monkeypatch.context() as patch, locked(place / "run"):
        patch.setattr(type(place), "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            RunDirectory(place / "run")._set_aside()
    assert "run.json" in moved
    assert "finished" in train(place / "photos", place / "run")[1]


def test_a_directory_of_someone_else_keeps_its_files(place):
    """Under the names of a run, but without a run: nothing is removed."""
    (place / "mine").mkdir()
    (place / "mine" / "labels.txt").write_text("mine")
    with pytest.raises(ValueError, match="empty directory"):
        train(place / "photos", place / "mine")
    assert [path.name for path in (place / "mine").iterdir()] == ["labels.txt"]


@pytest.mark.slow
def test_a_reader_that_leaves_does_not_end_a_training(place):
    """`keras-residual finetune ... | head -1`."""
    process = command(place / "photos", place / "piped")
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 0, err[-2000:]
    assert RunDirectory(place / "piped").finished()
