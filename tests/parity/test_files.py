"""torch's own files, read by torch's safe mode."""

import os

import numpy as np
import pytest
import torch

import keras_residual as kr
from keras_residual.weights import WeightsError


@pytest.fixture
def model():
    return kr.ResNet20(classes=10)


def state(model):
    generator = torch.Generator().manual_seed(0)
    return {s.key: torch.rand(s.shape, generator=generator) for s in kr.weights.slots(model)}


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}])
@pytest.mark.parametrize("suffix", [".pth", ".bin"])
def test_state_dict(model, tmp_path, wrap, suffix):
    expected = state(model)
    torch.save(wrap(expected), tmp_path / f"a{suffix}")
    kr.load_weights(model, tmp_path / f"a{suffix}")
    for slot in kr.weights.slots(model):
        np.testing.assert_array_equal(slot.to_torch(np.asarray(slot.variable)), expected[slot.key].numpy())


class Hostile:
    def __reduce__(self):
        return os.system, ("echo run > hostile.txt",)


@pytest.mark.parametrize("content", [Hostile(), {"state_dict": Hostile()}, torch.nn.Linear(2, 2), [1, 2], {"a": 1}])
def test_no_code_runs(model, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    before = [np.asarray(v) for v in model.variables]
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError):
        kr.load_weights(model, tmp_path / "a.pth")
    assert not (tmp_path / "hostile.txt").exists()
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, new)


def test_truncated(model, tmp_path):
    torch.save(state(model), tmp_path / "a.pth")
    raw = (tmp_path / "a.pth").read_bytes()
    for size in (0, 10, len(raw) // 2, len(raw) - 1):
        (tmp_path / "a.pth").write_bytes(raw[:size])
        with pytest.raises(WeightsError):
            kr.load_weights(model, tmp_path / "a.pth")


def test_without_torch(model, tmp_path, monkeypatch):
    torch.save(state(model), tmp_path / "a.pth")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(WeightsError, match="Install torch"):
        kr.load_weights(model, tmp_path / "a.pth")
