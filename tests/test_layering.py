"""Imports point downward only, and `import keras_residual` stays cheap."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_residual as kr
from keras_residual import registry

PACKAGE = Path(kr.__file__).parent
# From the bottom up, one part on each line: a part may import those above it here and no other, so no cycle can hide.
ORDER = (
    "serving",  # imports nothing of the rest
    "primitives",
    "registry",
    "io",
    "checking",
    "metrics",
    "graph",
    "layers",
    "blocks",
    "weights",
    "models",
    "costs",
    "folding",
    "reading",
    "data",
    "training",
    "exporting",
    "classifier",
    "baseline",
    "figures",
    "run_directory",
    "reports",
    "diagnostics",
    "benchmark",
    "finetuning",
    "quickstart",
    "cli",
    "__main__",
)
CORE = {"registry", "graph", "layers", "blocks", "models", "weights"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path):
    """The top-level part of the package that a file belongs to; "" for the package's own `__init__`."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imports(path):
    """Absolute names of everything a file imports, wherever in the file, but not under TYPE_CHECKING."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.dump(test.test)
        for child in test.body
        for node in ast.walk(child)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path):
    """The parts of the package that a file imports."""
    names = {name for name in imports(path) if name.split(".")[0] == "keras_residual"}
    assert "keras_residual" not in names, f"{path.name}: import the part, not the package, whose names load any part"
    return {name.split(".")[1] for name in names} - {"__version__"}


def upward(part, path):
    """Return the imports of a file that are not below its part."""
    return ours(path) - {part, *ORDER[: ORDER.index(part)]}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_downward(path):
    part = part_of(path)
    if not part:
        return
    assert part in ORDER, f"say in ORDER where {part!r} stands"
    assert not upward(part, path), f"{part} imports {upward(part, path)}, which do not stand below it"


def test_every_part_has_one_place():
    assert len(set(ORDER)) == len(ORDER)
    assert set(ORDER) == {part_of(path) for path in MODULES} - {""}


@pytest.mark.parametrize(
    ("part", "line", "found"),
    [
        ("exporting", "from keras_residual.classifier import Classifier", {"classifier"}),
        ("exporting", "def late():\n    from keras_residual import classifier", {"classifier"}),
        ("exporting", "import keras_residual.classifier", {"classifier"}),
        ("layers", "from keras_residual import fit", {"fit"}),  # loads `training`
        ("classifier", "from keras_residual.exporting import export", set()),
    ],
)
def test_an_upward_import_is_found(part, line, found, tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text(line)
    assert upward(part, planted) == found


@pytest.mark.parametrize(
    "path", [p for p in MODULES if part_of(p) in CORE], ids=lambda p: p.relative_to(PACKAGE).as_posix()
)
def test_the_core_is_backend_neutral(path):
    """`primitives` is the only core module that imports TensorFlow."""
    foreign = {name.split(".")[0] for name in imports(path)} & {"tensorflow", "jax", "torch", "timm"}
    if part_of(path) == "weights":  # it reads torch's files, for those who have torch
        foreign -= {"torch"}
    assert not foreign, f"{path.name} imports {foreign}; write it with keras.ops, or put it into primitives"


FAMILIES = [p for p in sorted((PACKAGE / "models").glob("*.py")) if "keras_residual.registry.variant" in imports(p)]


@pytest.mark.parametrize("path", FAMILIES, ids=lambda p: p.stem)
def test_families_do_not_know_each_other(path):
    """What two families share belongs into blocks, layers or the frame."""
    families = {p.stem for p in FAMILIES} - {path.stem}
    known = {name.split(".")[2] for name in imports(path) if name.startswith("keras_residual.models")}
    assert not known & families, f"{path.stem} imports {known & families}"


def test_every_family_registers():
    used = {entry.builder.__module__.rpartition(".")[2] for entry in registry.entries().values()}
    assert {p.stem for p in FAMILIES} == used, "models/_families.py imports every family"


def test_walks():
    """The two walkthroughs in CONTRIBUTING.md name at most eight files each, and all of them exist."""
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = text.partition("## Code walkthroughs")[2].partition("\n## ")[0]
    walks = [re.findall(r"^\d\. `(.+?)`", walk, re.MULTILINE) for walk in re.split(r"^From ", text, flags=re.M)[1:]]
    assert len(walks) == 2
    for walk in walks:
        assert 1 < len(walk) <= 8
        assert [file for file in walk if not (PACKAGE.parent / file).is_file()] == []


def run(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip()


def test_import_is_cheap():
    heavy = "{'keras', 'tensorflow', 'jax', 'numpy', 'sklearn', 'matplotlib'}"
    assert run(f"import sys, keras_residual; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_public_names():
    for name in kr.__all__:
        assert getattr(kr, name) is not None
    assert {*kr.__all__, *registry.entries()} == set(dir(kr))
    with pytest.raises(AttributeError, match="ResNet9999"):
        kr.ResNet9999  # noqa: B018
    with pytest.raises(AttributeError, match="nothing"):
        kr.nothing  # noqa: B018


@pytest.mark.parametrize("name", ["blocks", "layers", "models", "registry", "weights"])
def test_dunder_all_is_true(name):
    """`__all__` lists what is there, and every public function of the module."""
    module = getattr(kr, name)
    for public in module.__all__:
        assert hasattr(module, public), public
    if name == "blocks":
        shared = {"__init__", "rules", "padding"}  # rules and kinds that the other modules share
        parts = [getattr(module, path.stem) for path in (PACKAGE / "blocks").glob("*.py") if path.stem not in shared]
        defined = {
            key
            for part in parts
            for key, value in vars(part).items()
            if not key.startswith("_") and getattr(value, "__module__", "") == part.__name__
        }
        public = {name for name in module.__all__ if getattr(module, name).__module__.split(".")[-1] not in shared}
        assert defined == public, defined ^ public
