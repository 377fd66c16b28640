"""Notebooks begin with their subject, run as they are, and store the outputs of a clean run.

Store new outputs after a change: `python tests/test_notebooks.py notebooks/01_quickstart.ipynb`.
"""

import ast
import os
import re
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
PLACES = re.compile(r"/(home|root|tmp|opt|usr|Users|var|mnt)/|[A-Z]:\\\\")
PLUMBING = ("os.environ", "chdir", "run_functions_eagerly", "KERAS_RESIDUAL_NOTEBOOK_FAST")

# Quick values for the parameters cell of each notebook.
QUICK = {
    "01_quickstart": {"EPOCHS": 2},
    "02_from_sequential_to_functional": {
        "TRAINING_IMAGES": 64,
        "SEEDS": 1,
        "DEPTHS": (2,),
        "EPOCHS": 2,
        "MLP_DEPTHS": (2,),
        "MLP_EPOCHS": 2,
    },
    "03_why_residual_works": {
        "TRAINING_IMAGES": 64,
        "DEPTHS": (8, 14),
        "SEEDS": 1,
        "EPOCHS": 2,
        "NOISE_LEVELS": 3,
        "PATHS": 6,
    },
    "04_prenorm_transformers": {
        "TRAINING_IMAGES": 128,
        "VIT_DEPTH": 2,
        "VIT_EPOCHS": 1,
        "GRADIENT_DEPTHS": (2, 4),
        "DEPTHS": (2,),
        "RATES": (1e-3,),
        "SEEDS": 1,
        "STEPS": 3,
        "GENERATOR_STEPS": 3,
        "CHARACTERS": 2,
    },
    "05_finetune_your_images": {"SOURCE_IMAGES": 16, "TEST_IMAGES": 8, "SOURCE_EPOCHS": 1, "EPOCHS": 2, "SEEDS": 1},
    "06_serve": {"TRAINING_IMAGES": 128, "EPOCHS": 1, "REQUEST_SIZES": (1, 8), "REPEATS": 3},
    "07_gpu_and_many_machines": {"EPOCHS": 1, "WAYS": (("float32", False),), "JAX_IMAGES": 256, "JAX_EPOCHS": 1},
}
# Where tracing takes longer than the few steps themselves. (XLA and exports must trace.)
EAGER = {
    "02_from_sequential_to_functional",
    "03_why_residual_works",
    "04_prenorm_transformers",
    "05_finetune_your_images",
}

# What neither a lesson nor its reader needs: logs go to stdout, without TensorFlow's; figures are small.
SETUP = """\
import logging, sys
class Stdout(logging.StreamHandler):
    stream = property(lambda self: sys.stdout, lambda self, stream: None)  # as it is now: %%capture replaces it
logging.basicConfig(format="%(message)s", handlers=[Stdout()])
logging.getLogger("tensorflow").setLevel("ERROR")
get_ipython().run_line_magic("config", "InlineBackend.rc = {'figure.dpi': 80}")
"""
RUN_EAGERLY = "import tensorflow; tensorflow.config.run_functions_eagerly(True)"


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def python(cell):
    """Parse a cell without its magics and shell commands."""
    return ast.parse(re.sub(r"^[%!].*$", "", cell.source, flags=re.MULTILINE))


def parameters(notebook):
    """Return the place of the parameters cell and its values, by name."""
    (place,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    body = python(notebook.cells[place]).body
    return place, {statement.targets[0].id: ast.literal_eval(statement.value) for statement in body}


def shorten(notebook, values):
    """Insert a cell with other values behind the parameters cell, as papermill does."""
    place, known = parameters(notebook)
    assert values.keys() <= known.keys(), "the notebook has no such parameters"
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(source))


def run(notebook, folder, setup=SETUP):
    """Execute all cells after `setup`, with `folder` as the working directory."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = {**os.environ, "PATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
    env.pop("MPLBACKEND", None)  # figures are shown inline
    line = f"exec({setup!r}, dict(get_ipython=get_ipython))"  # leaves no names behind
    nbclient.NotebookClient(
        notebook,
        timeout=1800,
        coalesce_streams=True,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=[
            f"--IPKernelApp.exec_lines={[line]!r}",
            "--IPKernelApp.capture_fd_output=False",  # TensorFlow's C++ libraries log at every level
        ],
    ).execute(env=env)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_begins_with_its_subject(path):
    notebook = nbformat.read(path, as_version=4)
    imports = [node for node in ast.walk(python(code(notebook)[0])) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert len(imports) <= 5, "import in the section that needs it"
    found = [word for cell in code(notebook) for word in PLUMBING if word in cell.source]
    assert not found, "what tests need belongs into this file"
    assert parameters(notebook)[1].keys() == QUICK[path.stem].keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_saved_outputs(path):
    cells = code(nbformat.read(path, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run all cells, in order"
    for output in (output for cell in cells for output in cell.outputs):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", "warnings of one machine are not for the reader"
        words = output.get("text") or output.get("data", {}).get("text/plain", "")
        assert not PLACES.search(words), f"a path of one machine: {words}"
    assert path.stat().st_size < 400_000, "keep the figures small"


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    shorten(notebook, QUICK[path.stem])
    run(notebook, tmp_path, SETUP + RUN_EAGERLY if path.stem in EAGER else SETUP)
    assert list(tmp_path.iterdir()) == [], "a notebook removes what it writes"


def store(path):
    """Execute a notebook with its own parameters and keep the outputs."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        run(notebook, folder)
    for cell in code(notebook):
        cell.metadata.pop("execution", None)  # when each cell ran
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = output.text.replace("\r\n", "\n")  # of shell commands
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        store(argument)
