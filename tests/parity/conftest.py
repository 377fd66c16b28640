"""Parity against timm: needs the extra `parity` (torch, torchvision, timm), and is skipped without it."""

import csv
import importlib.metadata
import importlib.util
import os

import pytest

MISSING = [name for name in ("torch", "torchvision", "timm") if importlib.util.find_spec(name) is None]

if not MISSING:
    import torch

    # torchvision's wheel has CUDA operators that a CPU build of torch lacks; declaring them lets it import.
    _operators = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch.set_num_threads(2)


class Skipped(pytest.Module):
    """A file whose imports would fail. (A conftest itself cannot skip.)"""

    def collect(self):
        pytest.skip(f"{', '.join(MISSING)} missing: pip install 'keras-residual[parity]'", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return Skipped.from_parent(parent, path=module_path) if MISSING else None


def pytest_collection_modifyitems(items):
    for item in items:
        if "parity" in item.path.parts:
            item.add_marker(pytest.mark.parity)


# `KR_PARITY_CSV=benchmarks/parity.csv pytest tests/parity` writes the largest error of each row.
_errors = []


@pytest.fixture
def report(record_property):
    """Keeps a row's distances from its reference for the table: `report(name, errors)`."""

    def keep(name, errors):
        record_property("parity", [name, len(errors), max(errors.values())])

    return keep


def pytest_runtest_logreport(report):
    if report.when == "call":
        _errors.extend(value for name, value in report.user_properties if name == "parity")


def pytest_sessionfinish(session):
    path = os.environ.get("KR_PARITY_CSV")
    if not path or not _errors or hasattr(session.config, "workerinput"):
        return
    from keras_residual.models import find
    from keras_residual.weights.published import published

    tags = [tag.partition(".")[0] for tag in published()]
    with open(path, "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["row", "reference", "tags covered", "outputs compared", "largest relative error"])
        for name, outputs, error in sorted(map(tuple, _errors)):
            row = find(name).config
            covered = sum(tags.count(known) for known in (row.timm, *(alias for alias, _ in row.aliases)))
            version = importlib.metadata.version("timm" if row.timm else "torch")
            reference = f"timm {version}: {row.timm}" if row.timm else f"torch {version}: the paper's equations"
            table.writerow([name, reference, covered, outputs, f"{error:.1e}"])
