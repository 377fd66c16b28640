"""The command line as a user meets it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import keras_residual as kr
from keras_residual.classifier import Classifier
from keras_residual.cli import main
from keras_residual.weights import Preprocess


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["quickstart", "--help"]])
def test_help_does_not_wait_for_tensorflow(arguments):
    code = (
        "import sys, keras_residual.cli as cli\n"
        f"try: cli.main({arguments!r})\n"
        "except SystemExit as stop: assert not stop.code\n"
        "loaded = {'keras', 'tensorflow', 'numpy'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "keras-residual" in done.stdout


def test_only_commands_that_exist_are_named():
    """In messages, docstrings, README, manual and notebooks."""
    root = Path(__file__).parents[1]
    files = [
        root / "README.md",
        *(f for part in ("keras_residual", "docs", "notebooks") for f in (root / part).rglob("*")),
    ]
    named = {
        (name, file.name)
        for file in files
        if file.suffix in (".py", ".md", ".ipynb")
        for name in re.findall(r"keras-residual ([a-z]+)", file.read_text(encoding="utf-8"))
    }
    assert len(named) > 20
    for name, file in sorted(named):
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0, (name, file)


def test_list(capsys):
    assert main(["list", "ResNeXt50*"]) == 0
    out = capsys.readouterr().out
    assert "ResNeXt50_32x4d" in out
    assert "25.0 M" in out
    assert "ViT" not in out


@pytest.mark.long
def test_a_reader_that_has_enough_is_no_error():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "keras_residual.cli", "info", "ResNet20"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.stderr == ""


def test_info(capsys):
    assert main(["info", "resnet50"]) == 0
    out = capsys.readouterr().out
    for fact in ("ResNet50", "25,557,032", "4.089 G", "11.11 M", "timm/resnet50."):
        assert fact in out, fact


def test_info_of_checkpoints(capsys):
    assert main(["info", "resnet18"]) == 0
    everything = capsys.readouterr().out
    assert "timm/resnet18.a1_in1k" in everything
    assert "timm/resnet18.fb_swsl_ig1b_ft_in1k" in everything
    assert main(["info", "timm/resnet18.a1_in1k"]) == 0
    (line,) = (
        line
        for line in capsys.readouterr().out.splitlines()
        if "timm/resnet18." in line and "top-1" not in line and "weights" not in line
    )
    assert float(line.split()[3]) == 71.5  # Wightman et al. 2021 (ResNet strikes back), table 3
    assert line.split()[-1] == "apache-2.0"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["info", "resnet18.nothing"], "keras-residual info ResNet18"),
        (["info", "resnet51"], "ResNet50"),
        (["list", "nothing*"], "No model matches"),
        (["convert", "missing.safetensors", "b.safetensors", "--model", "ResNet20"], "missing.safetensors"),
        (["quickstart", "--seeds", "0"], "seeds must be 1 or more"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, words, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err


def test_convert(tmp_path, capsys):
    model = kr.ResNet20()
    model.save(tmp_path / "a.keras")
    target = tmp_path / "b.safetensors"
    assert main(["convert", str(tmp_path / "a.keras"), str(target), "--model", "ResNet20"]) == 0
    kernel = np.asarray(model.get_layer("conv1").kernel)
    np.testing.assert_array_equal(load_file(target)["conv1.weight"], kernel.transpose(3, 2, 0, 1))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "my run"
    model = kr.ResNet20(classes=2, input_shape=(32, 32, 3), classifier_activation=None)
    Classifier(model, Preprocess((32, 32), (0.4,) * 3, (0.2,) * 3), ("ant", "bee"), "ResNet20").save(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(40):
        noise = np.random.default_rng(number).integers(0, 256, (40, 50, 3)).astype("uint8")
        Image.fromarray(noise).save(folder / f"{number:02}.jpg")
    return folder


def test_predict_passes_over_other_files(run, photos, capsys):
    for name in ("notes.txt", ".hidden.jpg", "Thumbs.db", "00.jpg.xmp"):
        (photos / name).write_text("no image")
    assert main(["predict", str(run), str(photos)]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 40
    assert err.splitlines() == ["skipped 4 (hidden, or not an image): .hidden.jpg, 00.jpg.xmp, Thumbs.db, ..."]


def test_predict_of_many_files_is_that_of_their_folder(run, photos, capsys, monkeypatch):
    """Also in speed: the network sees whole batches, not one file at a time."""
    sizes = []
    predicted = Classifier._probabilities
    monkeypatch.setattr(Classifier, "_probabilities", lambda self, x: sizes.append(len(x)) or predicted(self, x))
    answers = []
    for given in ([str(photos)], sorted(map(str, photos.iterdir())), [str(photos / "*.jpg")]):
        assert main(["predict", str(run), *given]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] == answers[2]
    assert sizes == [32, 8] * 3


def test_predict_expands_paths(run, photos, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(run.parent))
    monkeypatch.setenv("PHOTOS", str(photos))
    assert main(["predict", "~/my run", "$PHOTOS/07.jpg", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["image"] == str(photos / "07.jpg")
    assert set(answer["classes"]) == {"ant", "bee"}


def test_predict_tells_by_its_exit_code(run, photos, tmp_path, capsys):
    whole = (photos / "00.jpg").read_bytes()
    (photos / "half.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    assert main(["predict", str(run), str(photos / "half.jpg"), str(photos / "01.jpg")]) == 1
    out, err = capsys.readouterr()
    assert "half.jpg: is damaged: some of its pixels are lost" in err
    assert out.startswith(f"{photos}/01.jpg: ")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("no image")
    for folder in ("empty", "notes"):
        assert main(["predict", str(run), str(tmp_path / folder)]) == 1
        assert f"There are no images in {tmp_path / folder}." in capsys.readouterr().err
    for given, words in (("https://example.com/a.jpg", "Download it first"), ("nowhere/*.jpg", "No such image")):
        assert main(["predict", str(run), str(photos / "01.jpg"), given]) == 2
        out, err = capsys.readouterr()
        assert words in err
        assert not out
        assert "Traceback" not in err


def test_help_of_predict_lists_its_exit_codes(capsys):
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert re.search(r"Exit codes: 0 if .*; 1 if .*; 2 if ", words)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_and_options(capsys, tmp_path):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit, match="0"):
        main(["--print-completion", "bash"])
    (tmp_path / "completion").write_text(capsys.readouterr().out)
    script = """source completion
    COMP_WORDS=(keras-residual fine); COMP_CWORD=1; _shtab_keras_residual; echo "${COMPREPLY[@]}"
    COMP_WORDS=(keras-residual finetune photos --epo); COMP_CWORD=3; _shtab_keras_residual; echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["finetune", "--epochs"], done.stderr


def test_completion_without_its_extra_says_how_to_install_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit, match="2"):
        main(["--print-completion", "bash"])
    assert "pip install 'keras-residual[completion]'" in capsys.readouterr().err
