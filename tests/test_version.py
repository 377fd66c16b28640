"""The version is written once, in `keras_residual/__init__.py`; what must repeat it for readers says the same."""

import re
from pathlib import Path

import pytest

import keras_residual as kr

ROOT = Path(__file__).parents[1]
SUFFIXES = {".py", ".toml", ".cfg", ".cff", ".yml", ".yaml", ".ini", ".txt"}
FOLDERS = (".ci", "benchmarks", "docs", "keras_residual", "notebooks", "tests")
FILES = sorted(
    path
    for place in (ROOT.glob("*"), *((ROOT / folder).rglob("*") for folder in FOLDERS))
    for path in place
    if path.suffix in SUFFIXES and path.is_file() and "site" not in path.relative_to(ROOT).parts
)


def spells(text, version):
    """Return True if a text has the version as a value: quoted, or after a colon as in YAML."""
    return bool(re.search(rf"""["']{re.escape(version)}["']|:\s*{re.escape(version)}\s*$""", text, re.MULTILINE))


def test_one_file_has_the_version():
    found = [p.relative_to(ROOT).as_posix() for p in FILES if spells(p.read_text(encoding="utf-8"), kr.__version__)]
    assert found == ["keras_residual/__init__.py"]


def test_the_package_is_built_with_it():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^dynamic = \["version"\]$', text, re.MULTILINE)
    assert '[tool.hatch.version]\npath = "keras_residual/__init__.py"' in text
    project = text.partition("[project]")[2].partition("\n[")[0]
    assert not re.search(r"^version\b", project, re.MULTILINE)


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").glob("*.md"))])
def test_citations_name_this_version(path):
    cited = re.findall(r"version\s*=\s*\{(.*?)\}", path.read_text(encoding="utf-8"))
    assert set(cited) <= {kr.__version__}, f"{path.name} cites {cited}"
    assert cited or path.name != "README.md"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('version = "1.2.3"', True),
        ("version: 1.2.3\n", True),
        ("released = ('1.2.3',)", True),
        ("keep-a-changelog/en/1.2.3/", False),
        ('requires = ["x>=1.2.3"]', False),
        ('version = "1.2.34"', False),
    ],
)
def test_what_counts_as_a_spelling(text, found):
    assert spells(text, "1.2.3") == found
