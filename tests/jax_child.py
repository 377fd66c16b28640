"""Run by test_jax.py with KERAS_BACKEND=jax: loads what TensorFlow wrote, computes, says how far off it is."""

import json
import sys
from pathlib import Path

import keras
import numpy as np

from keras_residual import registry
from keras_residual.models import list_models as _  # noqa: F401  (registers every family)
from tests import tools


def main(folder):
    assert keras.backend.backend() == "jax"
    entries, result = registry.entries(), {}
    for name in json.loads((folder / "names.json").read_text()):
        entry, data = entries[name], np.load(folder / f"{name}.npz")
        model = entry.build(
            entry.config.tiny(), classes=10, classifier_activation=None, weights=str(folder / f"{name}.safetensors")
        )
        result[name] = {"inference": tools.distance(model(data["x"], training=False), data["y"])}
        if "after" not in data:
            continue
        model.compile(keras.optimizers.SGD(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        loss = float(model.train_on_batch(data["x"], data["labels"]))
        result[name]["loss"] = abs(loss / float(data["loss"]) - 1)
        result[name]["after"] = tools.distance(model(data["x"], training=False), data["after"])
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
