"""The command line as a user meets it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import keras_residual as kr
from keras_residual.cli import main


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
        (["quickstart", "--seeds", "0"], "positive"),
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
