"""Tests of the messages about files without readable weights: their type and what to do. Nothing in them is run."""

import collections
import io
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save

import keras_residual as kr
from keras_residual.cli import main
from keras_residual.weights import WeightsError

from .test_weights import state_of, tiny

BY_NAME = "keras_residual.load_weights(model, {name: array})"
STATE_DICT = "save_file(model.state_dict()"


class Global:
    """Stand-in for a class of a library that is not installed."""

    def __init__(self, module, name, *arguments):
        self.module, self.name, self.arguments = module, name, arguments


class Pickler(pickle._Pickler):
    """Pickler that writes `Global` as a call of a class, as torch does with protocol 2."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_stand_in(self, obj):
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        self.save(obj.arguments)
        self.write(pickle.REDUCE)

    dispatch[Global] = save_stand_in


def pickled(thing, protocol=2):
    out = io.BytesIO()
    Pickler(out, protocol).dump(thing)
    return out.getvalue()


TENSOR = Global("torch._utils", "_rebuild_tensor_v2", Global("torch", "FloatStorage"), 0, (2, 3))
STATE = {"conv1.weight": TENSOR, "bn1.weight": TENSOR}
NETWORK = Global("torchvision.models.resnet", "ResNet", {"conv1": Global("torch.nn.modules.conv", "Conv2d", STATE)})
OWN = Global("train", "Namespace", {"lr": 0.1})


def zipped(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def torch_zip(thing, **more):
    return zipped({"model/data.pkl": pickled(thing), "model/version": "3\n", "model/data/0": bytes(24), **more})


def old_torch(thing):
    """Write the format before torch 1.6: four pickles in a row, then the numbers."""
    facts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, thing)
    return b"".join(map(pickled, facts)) + bytes(100)


# name of the file, content, expected type and advice in the message
FILES = {
    "html": (
        "model.safetensors",
        b"\n<!DOCTYPE html><html>Log in</html>",
        "an HTML page",
        "Download the weights file itself",
    ),
    "html as torch": ("model.pth", b"<html>404</html>", "an HTML page", "Download"),
    "lfs": (
        "model.safetensors",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 46\n",
        "Git LFS pointer",
        "git lfs pull",
    ),
    "empty": ("model.pth", b"", "an empty file", "again"),
    "text": ("model.safetensors", b"# Weights\nare elsewhere\n", "a text file", "again"),
    "json": ("config.json", b'{"architecture": "resnet18"}', "a JSON file", "weights file next to it"),
    "onnx": ("net.onnx", b"\x08\x07\x12\x07pytorch\x1a\x052.1.0" + bytes(range(200)), "an ONNX model", BY_NAME),
    "tflite": ("net.tflite", b"\x1c\x00\x00\x00TFL3" + bytes(50), "TFLite", BY_NAME),
    "gguf": ("net.gguf", b"GGUF\x03\x00\x00\x00" + bytes(50), "GGUF", BY_NAME),
    "tf index": ("ckpt-7.index", bytes(60) + bytes.fromhex("57fb808b247547db"), "TensorFlow checkpoint", BY_NAME),
    "tf data": ("ckpt-7.data-00000-of-00001", b"\x91\xff" * 80, "TensorFlow checkpoint", "load_checkpoint"),
    "saved model": ("saved_model.pb", b"\x08\x01\x12\xff\x01" + bytes(50), "SavedModel", "exported from"),
    "msgpack": ("flax.msgpack", b"\x82\xa6params" + bytes(50), "msgpack", BY_NAME),
    "gzip": ("model.pth.gz", b"\x1f\x8b\x08" + bytes(50), "gzip", "Unpack"),
    "zip": ("model.zip", zipped({"a/readme": "x"}), "a ZIP archive", "Unpack"),
    "cut zip": ("model.pth", torch_zip(STATE)[:-30], "damaged ZIP", "again"),
    "image": ("model.bin", b"\x89PNG\r\n\x1a\n" + bytes(50), "a PNG image", "again"),
    "unknown": ("model.weights", b"\xfe\xed" * 50, "a file of unknown type", BY_NAME),
    "pickle": ("paper.pkl", pickle.dumps({"w": np.ones(3)}), "is a pickle.", BY_NAME),
    "own pickle": ("paper.pkl", pickled({"w": OWN}), "train.Namespace", BY_NAME),
    "network": ("whole.pt", torch_zip(NETWORK), "a pickled network", STATE_DICT),
    "network of old": ("whole.pth", old_torch(NETWORK), "torchvision.models.resnet.ResNet", STATE_DICT),
    "network in .bin": ("pytorch_model.bin", torch_zip({"model": NETWORK}), "a pickled network", STATE_DICT),
    "network in .ckpt": ("last.ckpt", torch_zip({"module": NETWORK, "lr": 1}), "a pickled network", STATE_DICT),
    "torchscript": ("net.pt", torch_zip(STATE, **{"model/constants.pkl": b"x"}), "TorchScript", STATE_DICT),
    "checkpoint": ("last.ckpt", torch_zip({"state_dict": STATE, "args": OWN}), "train.Namespace", STATE_DICT),
    "state dict": ("model.pth", torch_zip(STATE), "a torch pickle", STATE_DICT),
    "state dict in .ckpt": ("last.ckpt", torch_zip(collections.OrderedDict(STATE)), "a torch pickle", STATE_DICT),
    "state dict of old": ("model.pth", old_torch(STATE), "a torch pickle", STATE_DICT),
}


@pytest.fixture(scope="module")
def victim():
    return tiny("ResNet20", seed=2)


def no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.mark.parametrize("case", list(FILES))
def test_a_file_is_named_by_its_content(case, victim, tmp_path, monkeypatch):
    no_torch(monkeypatch)
    name, content, what, advice = FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        kr.load_weights(victim, tmp_path / name)
    said = str(caught.value)
    assert what in said
    assert advice in said
    assert "Nothing was loaded" in said
    for wrong in ("none of them", "not a repository", "weights_only"):
        assert wrong not in said
    if what != "a torch pickle" and "Namespace" not in what:
        assert "Install torch" not in said


@pytest.mark.parametrize("case", ["html", "network", "state dict", "unknown", "onnx"])
def test_a_file_where_a_checkpoint_is_wanted(case, tmp_path, capsys):
    """The message says what a file lacks compared with a repository."""
    name, content, what, _ = FILES[case]
    (tmp_path / name).write_bytes(content)
    assert main(["export", str(tmp_path / name), str(tmp_path / "served")]) == 2
    said = capsys.readouterr().err
    assert what.rstrip(".") in said
    assert "architecture" in said
    assert "repository such as" not in said


class FakeTorch(types.ModuleType):
    """torch whose safe mode refuses every file."""

    __version__ = "2.10.0"

    @staticmethod
    def load(path, map_location, weights_only):
        assert weights_only is True
        raise pickle.UnpicklingError("Weights only load failed. (1) Re-running with `weights_only` set to `False`")


def test_torchs_advice_is_not_passed_on(victim, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", FakeTorch("torch"))
    for case in ("checkpoint", "state dict", "network"):
        name, content, what, _ = FILES[case]
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError) as caught:
            kr.load_weights(victim, tmp_path / name)
        assert what in str(caught.value)
        assert "eights" + "_only" not in str(caught.value)
        assert "Re-running" not in str(caught.value)


@pytest.mark.parametrize("name", ["last.ckpt", "weights", "model.sft", "model.bin", "model.pth"])
def test_content_decides_not_the_suffix(name, victim, tmp_path):
    (tmp_path / name).write_bytes(save(state_of(victim)))
    assert not kr.load_weights(victim, tmp_path / name).missing


def test_a_directory_says_what_it_has(victim, tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(save(state_of(victim)))
    with pytest.raises(FileNotFoundError, match=r"Pass one of its files instead: mine\.safetensors"):
        kr.load_weights(victim, tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    with pytest.raises(FileNotFoundError, match="It is a SavedModel"):
        kr.load_weights(victim, tmp_path)


def test_keras_files_by_position(victim, tmp_path):
    victim.save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(WeightsError, match=r"by position, .* model\.load_weights"):
        kr.load_weights(victim, tmp_path / "a.weights.h5")


# --------------------------------------------------------------------------------------------------- architectures


class Network:
    """Network access that always fails, and records what was requested."""

    def __init__(self, monkeypatch):
        self.asked = []
        for name in ("hf_hub_download", "get_hf_file_metadata"):
            monkeypatch.setattr(f"huggingface_hub.{name}", self.ask)

    def ask(self, *arguments, **options):
        self.asked.append(arguments)
        raise ConnectionError("no network")


SWIN = "timm/swin_tiny_patch4_window7_224.ms_in1k"


@pytest.mark.parametrize("source", [SWIN, f"hf-hub:{SWIN}", f"hf_hub:{SWIN}@main"])
def test_an_architecture_that_is_not_here_is_told_before_the_network(source, monkeypatch, tmp_path, capsys):
    hub = Network(monkeypatch)
    for ask in (kr.from_pretrained, lambda source: kr.ResNet20(weights=source)):
        with pytest.raises(WeightsError, match=r"must be one of this package.*'swin_tiny_patch4_window7_224'"):
            ask(source)
    for command in (["export", source, str(tmp_path / "x")], ["convert", source, str(tmp_path / "x.safetensors")]):
        assert main(command) == 2
        assert "must be one of this package" in capsys.readouterr().err
    assert not hub.asked


@pytest.mark.parametrize("source", ["someone/swin_tiny_of_mine", "timm/ViT-B-16-SigLIP", "timm/resnet18.a1_in1k"])
def test_other_repositories_are_asked(source, monkeypatch):
    hub = Network(monkeypatch)
    with pytest.raises(FileNotFoundError):
        kr.from_pretrained(source)
    assert hub.asked
