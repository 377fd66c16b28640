"""Parity against timm: needs the extra `parity` (torch, torchvision, timm), and is skipped without it."""

import importlib.util

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
