"""`.keras` files of our models load by Keras alone, whichever of both is imported first and nothing else is touched."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_residual as kr
from keras_residual import layers, registry
from keras_residual.models import find

from .tools import noise, randomise

# Rows with layers that the first row of their family lacks, then the first row of each family
NETWORKS = {"ECAResNet26T", "BiT50x1", "ConvNeXtV2Atto", "ConvNeXtZeptoRMS", "ViTTiny16", "SigLIPBase16"}
NETWORKS.update({entry.family: name for name, entry in reversed(registry.entries().items())}.values())
LOADERS = {
    "ours first": "import keras_residual, keras; load = keras.saving.load_model",
    "keras first": "import keras, keras_residual; load = keras.models.load_model",
    "tensorflow's alias": "import keras_residual, tensorflow as tf; load = tf.keras.models.load_model",
    "a builder after": "import keras_residual, keras; from keras_residual import ResNet18; "
    "load = keras.saving.load_model",
}
CHILD = """
import json, sys
import numpy as np
for path in sys.argv[1:]:
    model = load(path)
    x = np.load(path.replace(".keras", ".x.npy"))
    np.testing.assert_array_equal(np.asarray(model(x, training=False)), np.load(path.replace(".keras", ".y.npy")))
    if "ViTTiny16" in path:  # it also loads the formats of its family: DINOv2's files have a mask token
        state = {s.key: s.to_torch(np.asarray(s.variable)) for s in keras_residual.weights.slots(model)}
        keras_residual.load_weights(model, {**state, "mask_token": state["cls_token"]})
import keras
print(json.dumps(sorted(name for name in keras.saving.get_custom_objects() if name.startswith("keras_residual>"))))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A file of each family, one that prepares its images, and what they answer."""
    folder = tmp_path_factory.mktemp("keras")
    models = {name: find(name).build(find(name).config.tiny()) for name in NETWORKS}
    pixels = keras.Input((40, 30, 3))
    models["preprocess"] = keras.Model(pixels, kr.weights.Preprocess((16, 16))(pixels))
    return [save(name, model, folder) for name, model in models.items()]


def save(name, model, folder):
    """Write the file and, beside it, a batch of images and what the network answers to it."""
    randomise(model)
    x = noise((2, *model.input_shape[1:]))
    np.save(folder / f"{name}.x.npy", x)
    np.save(folder / f"{name}.y.npy", np.asarray(model(x, training=False)))
    model.save(folder / f"{name}.keras")
    return str(folder / f"{name}.keras")


def child(code, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def registered():
    names = {name for name in keras.saving.get_custom_objects() if name.startswith("keras_residual>")}
    assert {f"keras_residual>{name}" for name in layers.__all__} - names == {"keras_residual>Parameter"}  # a base class
    return sorted(names)


MARKS = {"keras first": pytest.mark.long}


@pytest.mark.parametrize("loader", [pytest.param(name, marks=MARKS.get(name, pytest.mark.slow)) for name in LOADERS])
def test_files_load(loader, saved):
    assert child(LOADERS[loader] + CHILD, *saved) == registered()


def test_a_file_loads(tmp_path):
    """The network with the most kinds of layers; `long` and `slow` tests load all of them."""
    path = save("ViTTiny16", find("ViTTiny16").build(find("ViTTiny16").config.tiny()), tmp_path)
    assert child(LOADERS["keras first"] + CHILD, path) == registered()


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "graph",
        "layers",
        "primitives",
        "blocks",
        "weights.layout",
        "weights.files",
        "models.vit",
        "training",
        "exporting",
        "costs",
    ],
)
def test_whatever_is_imported_first(module):
    """Our own modules import Keras too, while they are half imported themselves."""
    code = f"import keras_residual.{module}, keras, json\n" + CHILD.rpartition("import keras\n")[2]
    assert child(code) == registered()


@pytest.mark.slow
def test_who_only_asks_for_keras_does_not_import_it():
    code = """
import sys, json, importlib.util
import keras_residual
found = importlib.util.find_spec("keras"), importlib.util.find_spec("keras")
assert all(found) and "keras" not in sys.modules and "numpy" not in sys.modules
import keras
print(json.dumps(sorted(name for name in keras.saving.get_custom_objects() if name.startswith("keras_residual>"))))
"""
    assert child(code) == registered()
