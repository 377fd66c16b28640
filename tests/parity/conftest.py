"""Parity against timm: needs the extra `parity` (torch, torchvision, timm)."""

import pytest

torch = pytest.importorskip("torch", reason="the parity suite needs: pip install 'keras-residual[parity]'")

# torchvision's wheel has CUDA operators that a CPU build of torch lacks; declaring them lets it import.
_operators = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
pytest.importorskip("timm")
torch.set_num_threads(2)


def pytest_collection_modifyitems(items):
    for item in items:
        if "parity" in item.path.parts:
            item.add_marker(pytest.mark.parity)
