"""Tests of how the manual is built, and of the code in CONTRIBUTING.md."""

import importlib.util
import re
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "pages").rglob("*.md"))
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.long
def test_the_example_of_a_family(tmp_path):
    """The example is short and runs, and its network passes the checks of the registry.

    It runs in a separate process, because a registered row cannot be removed and is not a public name of the package.
    """
    (code,) = CODE.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(code.splitlines()) < 60
    (tmp_path / "tower.py").write_text(code, encoding="utf-8")
    program = f"""
        import sys
        sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]
        import keras, pytest, tower
        from keras_residual import registry
        from tests import checks

        entry = registry.entries()["Tower8"]
        assert tower.Tower8().output_shape == (None, 1000)
        names = {{check.__name__: check for check in checks.ALL}}
        del names["check_name"]
        for name, check in names.items():
            keras.utils.set_random_seed(0)
            try:
                check(entry)
            except pytest.skip.Exception:
                continue
            print(name)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.split()) > 15, "the checks ran"


@pytest.fixture
def hooks():
    pytest.importorskip("mkdocs")
    pytest.importorskip("latex2mathml")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sections_are_found(hooks):
    """A page asks for a section of a text that has it; links that lead nowhere from there are words."""
    asked = [found for page in PAGES for found in hooks.INCLUDE.finditer(page.read_text(encoding="utf-8"))]
    assert asked
    for found in asked:
        text = hooks.section(ROOT / found["file"], found["title"])
        assert len(text) > 100
        assert not re.search(r"^## ", text, re.MULTILINE)
    with pytest.raises(ValueError, match="no section"):
        hooks.section(ROOT / "README.md", "Nothing")


def test_the_reference_is_complete(hooks, tmp_path):
    """Functions named as their file are asked for, and a site without them is no manual."""
    assert "::: keras_residual.training.fit.fit\n" in hooks._module("training", "Training")
    place = tmp_path / "reference" / "training"
    place.mkdir(parents=True)
    (place / "index.html").write_text('<h2 id="keras_residual.training.fit">', encoding="utf-8")
    with pytest.raises(Exception, match="lacks public names") as found:
        hooks.on_post_build(types.SimpleNamespace(site_dir=str(tmp_path)))
    named = str(found.value)
    assert "keras_residual.training.decide" in named
    assert "keras_residual.finetuning.finetune" in named
    assert "training.fit" not in named


def test_formulas_are_drawn(hooks):
    page = hooks._notebook(ROOT / "notebooks" / "03_why_residual_works.ipynb")["notebooks/03_why_residual_works.md"]
    assert "<mfrac>" in page
    assert "$$" not in page


def test_commands_are_described(hooks):
    page = hooks._command_line()
    for name in ("quickstart", "finetune", "inspect", "export", "serve"):
        assert f"usage: keras-residual {name}" in page
