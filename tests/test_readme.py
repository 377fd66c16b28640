"""The README shows what runs, and what is there."""

import base64
import json
import re

import numpy as np
from safetensors.numpy import load_file

import keras_residual as kr
from keras_residual import registry
from keras_residual.weights.published import published

from .tables import PAGES, PLACE, TABLES, with_tables

README = PAGES[0]
TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_code_runs(tmp_path, monkeypatch, hub):
    """The blocks are read from top to bottom, as one script."""
    monkeypatch.chdir(tmp_path)
    publish(hub)
    namespace = {"__name__": "readme", "photos": np.zeros((2, 300, 400, 3), "uint8")}
    for number, block in enumerate(BLOCKS, start=1):
        exec(compile(block, f"README.md, block {number}", "exec"), namespace)


def publish(hub):
    """Publish the repository that the README names, with random weights, in the local cache of the Hub."""
    assert set(re.findall(r"timm/[\w.]+", TEXT)) == {"timm/resnet18.a1_in1k"}
    assert kr.models.find("ResNet18").config.tag == "a1_in1k", "the default checkpoint that the README loads"
    kr.save_weights(kr.ResNet18(), "model.safetensors")
    record = {"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": {"input_size": [3, 224, 224]}}
    hub("timm/resnet18.a1_in1k", {"config.json": record, "model.safetensors": load_file("model.safetensors")})


def test_numbers_are_current():
    """The counts in the text are those of the registry."""
    loaded = sum(bool(registry.resolve(tag.partition(".")[0])) for tag in published())
    assert f"TensorFlow: {len(registry.entries())} networks" in TEXT
    assert f"{loaded} pretrained timm checkpoints" in TEXT
    assert f"has: {loaded} timm checkpoints" in TEXT
    assert f"without PyTorch | {loaded} |" in TEXT


def test_there_is_code():
    assert len(BLOCKS) == TEXT.count("```python") >= 3


def test_tables_are_current():
    shown = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert with_tables(text) == text, f"{page.name} is not current. Run: python -m tests.tables"
        shown |= {found[2] for found in PLACE.finditer(text)}
    assert shown == set(TABLES)


def test_figure_is_current():
    """The README's picture is one that the notebook has drawn."""
    notebook = json.loads((README.parent / "notebooks" / "03_why_residual_works.ipynb").read_text(encoding="utf-8"))
    shown = [output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", [])]
    drawn = [base64.b64decode(data["image/png"]) for data in shown if "image/png" in data]
    (path,) = re.findall(r"^!\[.*\]\((.*\.png)\)$", TEXT, re.MULTILINE)
    assert (README.parent / path).read_bytes() in drawn
