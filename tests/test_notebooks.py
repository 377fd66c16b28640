"""Notebooks run as they stand, and their saved outputs are those of a clean run."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
PLACES = re.compile(r"/(home|root|tmp|opt|usr|Users|var|mnt)/|[A-Z]:\\\\")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_saved_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run all cells, in order"
    for output in (output for cell in cells for output in cell.outputs):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", "warnings of one machine are not for the reader"
        words = output.get("text") or output.get("data", {}).get("text/plain", "")
        assert not PLACES.search(words), f"a path of one machine: {words}"
    assert path.stat().st_size < 400_000, "keep the figures small"


# The first steps run by default; the others, half a minute each, in `.ci/run`.
QUICK = {"01_quickstart"}


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=[] if p.stem in QUICK else [pytest.mark.slow]) for p in NOTEBOOKS]
)
def test_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_RESIDUAL_NOTEBOOK_FAST", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # figures are shown inline
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    assert list(tmp_path.iterdir()) == [], "a notebook cleans up behind itself"
