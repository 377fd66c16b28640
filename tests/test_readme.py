"""The README shows what runs, and what is there."""

import re

import pytest

from .readme_table import README, with_table

TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def namespace():
    return {"__name__": "readme"}  # the blocks are read from top to bottom, as one script


@pytest.mark.xdist_group("readme")
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_code_runs(number, namespace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[number], f"README.md, block {number + 1}", "exec"), namespace)


def test_there_is_code():
    assert len(BLOCKS) == TEXT.count("```python") >= 3


def test_table_is_current():
    assert with_table(TEXT) == TEXT, "run: python -m tests.readme_table"
