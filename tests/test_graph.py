"""Tests of walking and rebuilding graphs."""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_residual as kr
from keras_residual import graph
from keras_residual.diagnostics import prune_blocks
from keras_residual.exporting.formats import _in_float32
from keras_residual.folding import fold_batch_norm, folding
from keras_residual.training.step import logits_of

from .test_weights import snapshot, unchanged
from .tools import distance, noise, randomise

PACKAGE = Path(kr.__file__).parent


def test_one_home():
    """No other module walks Keras' nodes, clones a model or changes the recursion limit."""
    words = ("setrecursionlimit", "clone_model", "_nodes_by_depth", "_inbound_nodes", "_keras_history[")
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(word in path.read_text(encoding="utf-8") for word in words)
    }
    assert found == {"graph.py"}


def small():
    """Build a model with nested models, shared layers, an operation, statistics and a generator."""
    inputs = keras.Input((6,), name="columns")
    normal = keras.layers.Normalization(mean=[1.0] * 6, variance=[2.0] * 6, name="normal")
    learned = keras.layers.Normalization(name="learned")
    x = learned(normal(inputs))
    shared = keras.layers.Dense(6, name="shared")
    x = shared(shared(x))
    inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(6), kr.layers.BatchNorm()], name="inner")
    x = keras.ops.add(x, inner(inner(x)))
    x = keras.layers.Dropout(0.5, seed=3)(x)
    deeper = keras.Input((6,))
    x = keras.Model(deeper, {"a": keras.layers.Dense(2, name="last")(deeper)}, name="head")(x)["a"]
    model = randomise(keras.Model({"columns": inputs}, {"out": x}, name="mine"), 1)
    learned.adapt(noise((20, 6)))
    return model


def test_a_rebuilt_model_is_the_same_and_its_own():
    model = small()
    before, x = snapshot(model), {"columns": noise((3, 6))}
    copy = graph.rebuilt(model)
    assert copy.name == "mine"
    assert [layer.name for layer in copy.layers] == [layer.name for layer in model.layers]
    assert [v.name for v in copy.variables] == [v.name for v in model.variables]
    assert not {id(v) for v in copy.variables} & {id(v) for v in model.variables}
    inner, theirs = copy.get_layer("inner"), model.get_layer("inner")
    assert [layer.name for layer in inner.layers[1:]] == [layer.name for layer in theirs.layers]
    np.testing.assert_array_equal(copy(x)["out"], model(x)["out"])
    randomise(copy, 2)
    assert unchanged(model, before)


def test_what_stands_in_a_place():
    """Both functions see the operations of the model, those of the models in it too."""
    model = small()
    seen = set()

    def clone(old):
        seen.add(old.name)
        return keras.layers.Dense(6, use_bias=True, name=old.name) if old.name == "shared" else None

    def call(old, new, *args, **kwargs):
        assert old.name == new.name
        return args[0] if isinstance(old, kr.layers.BatchNorm) else new(*args, **kwargs)

    copy = graph.rebuilt(model, clone_function=clone, call_function=call)
    assert {"shared", "inner", "dropout", "add", "last"} <= {name.rstrip("_0123456789") for name in seen}
    x = {"columns": noise((3, 6))}
    assert distance(copy(x)["out"], model(x)["out"]) > 1e-3
    norm = next(layer for layer in graph.leaves(model) if isinstance(layer, kr.layers.BatchNorm))
    for variable, value in zip(norm.variables, (np.sqrt(1 + norm.epsilon), 0.0, 0.0, 1.0), strict=True):
        variable.assign(np.full(6, value, "float32"))
    assert distance(copy(x)["out"], model(x)["out"]) < 1e-6


class Uncopyable(keras.layers.Layer):
    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def call(self, inputs):
        return inputs * self.width

    def get_config(self):
        return {"name": self.name}


def test_what_cannot_be_rebuilt_is_explained():
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match="'wide', a Uncopyable, which is not"):
        graph.rebuilt(keras.Model(inputs, Uncopyable(3, name="wide")(inputs)))
    with pytest.raises(ValueError, match="must be a Functional or a built Sequential"):
        graph.rebuilt(keras.Sequential([keras.layers.Dense(4)]))


def test_only_the_models_own_calls():
    inputs = keras.Input((4,))
    one, two = keras.layers.Dense(4, name="one"), keras.layers.Dense(4, name="two")
    between = one(inputs)
    model = keras.Model(inputs, [two(between), between])
    two(one(keras.Input((4,))))
    assert [node.operation.name for node in graph.nodes(model) if not node.is_input] == ["one", "two"]
    assert graph.uses(model)[id(one)] == 1
    assert graph.takers(model)[id(between)] == [two, model]
    assert graph.made_by(model.outputs[0]) == (two, [between])


# More calls in a row than Python's usual recursion limit of 1000.
DEPTH = 1100


@pytest.fixture(scope="module")
def long():
    x = inputs = keras.Input((4, 4, 2))
    x = kr.layers.BatchNorm(name="bn")(keras.layers.Conv2D(2, 1, name="conv")(x))
    x = keras.layers.Add(name="add")([x, keras.layers.Conv2D(2, 1, name="branch")(x)])
    for _ in range(DEPTH):
        x = keras.layers.Activation("relu")(x)
    x = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x))
    with pytest.raises(RecursionError):
        keras.Model(inputs, x)
    return randomise(graph.connected(inputs, keras.layers.Activation("softmax")(x), "long"))


def folded(model):
    assert len(folding(model).after) == 1
    return fold_batch_norm(model)


def with_logits(model):
    logits = logits_of(model)
    return graph.connected(logits.inputs[0], keras.layers.Softmax()(logits.outputs[0]))


def pruned(model):
    return prune_blocks(model, ["add"]).model


def in_float32(model):
    model.layers[1].dtype_policy = "mixed_float16"
    try:
        return _in_float32(model)
    finally:
        model.layers[1].dtype_policy = "float32"


@pytest.mark.parametrize(
    "change",
    [graph.rebuilt, folded, pruned, *(pytest.param(c, marks=pytest.mark.slow) for c in (with_logits, in_float32))],
)
@pytest.mark.long
def test_depth_is_no_obstacle(change, long):
    limit = sys.getrecursionlimit()
    x = noise((2, 4, 4, 2))
    assert distance(change(long)(x), long(x)) < 1e-5
    assert sys.getrecursionlimit() == limit
