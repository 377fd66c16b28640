"""The benchmark of the command line: that it measures what it says, not how fast anything is."""

import csv
import dataclasses

import numpy as np
import pytest

from keras_residual import benchmark as module
from keras_residual.benchmark import Measured, benchmark, measure
from keras_residual.cli import main


@pytest.mark.long
def test_measures_and_shows_the_compiled_step(tmp_path, monkeypatch, capsys):
    """In this process, so that it does not import everything four times."""
    orders = []

    def here(order):
        orders.append(order)
        return measure(**order)

    monkeypatch.setattr(module, "_measure_in_subprocess", here)
    files = ["--hlo", str(tmp_path / "step.hlo"), "--csv", str(tmp_path / "table.csv")]
    assert main(["benchmark", "ResidualMLP", "--batch-size", "4", "--steps", "2", *files]) == 0
    said = capsys.readouterr().out
    assert [(order["mode"], order["xla"]) for order in orders] == [
        *(("training", False), ("training", True)),
        *(("inference", False), ("inference", True)),
    ]
    assert said.count("images/s") == 4
    hlo = (tmp_path / "step.hlo").read_text()
    assert "ENTRY" in hlo
    assert "dot" in hlo
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [field.name for field in dataclasses.fields(Measured)]
    for row in rows:
        assert float(row["images_per_second"]) > 0
        assert float(row["peak_mb"]) > 50
        assert row["precision"] == "float32"
        assert row["batch_size"] == "4"
    # the first step traces and compiles: that is not in the images/s
    assert all(float(row["compile_seconds"]) > 0 for row in rows)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"steps": 0}, "steps=0"), ({"batch_size": 1}, "batch_size=1"), ({"xla": "off", "hlo": "x"}, "Leave out `hlo`")],
)
def test_bad_numbers_are_told(options, words):
    with pytest.raises(ValueError, match=words):
        benchmark("ResidualMLP", **options)


@pytest.mark.slow
def test_each_measurement_has_its_own_process():
    rows = benchmark("ResNet20", batch_size=8, steps=2, xla="off", say=lambda line: None)
    assert [row.mode for row in rows] == ["training", "inference"]
    assert rows[1].images_per_second > rows[0].images_per_second
    assert np.isfinite([row.peak_mb for row in rows]).all()
    assert rows[1].peak_mb < rows[0].peak_mb  # that of training would stay in one process
    with pytest.raises(ChildProcessError, match=r"The training benchmark of ViTSmall16 .* failed"):
        benchmark("ViTSmall16", size=17, steps=1, say=lambda line: None)
