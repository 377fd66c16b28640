"""Checks for all registered models: functions of one registry entry, run on its small network (`tiny`).

Most rows differ from a sibling in depth and width alone, and their tiny twins are the same network: running a check on
one of them says all that it says of the others. A check names the rows it runs on by default:

- `every` row: what a row states, checked in milliseconds: name, documentation, signature, pickling.
- `distinct`: the first row of each tiny topology. Their full networks are built, unless they have many blocks, and
  compared with the published number of parameters. Of the other rows, the parity tests compare all sizes with timm's.
- `parts`: a few rows that together have every part (block, norm, stem, option) that networks here are made of.
- `third`: every third of these, where a check takes seconds.
- `families`: one row of each family, for what a family does in one place: its inputs, its head and its files.

On all other rows a check is marked slow, once for each tiny topology. A new row of a known topology therefore costs
milliseconds, and a new family some ten seconds: `pytest -p tests.generated_rows` fills the registry up to 900 rows to
measure it. What a row does otherwise than its siblings it states itself (`config.dynamic_size`); no names stand here.
"""

import functools
import inspect
import math
import pickle
import re
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_residual as kr
from keras_residual import models, weights

from . import tools

APPLICATIONS = ["include_top", "weights", "input_tensor", "input_shape"]
APPLICATIONS += ["pooling", "classes", "classifier_activation", "name"]
ALL = {}  # function -> the rows it runs on by default


def check(rows):
    def add(function):
        ALL[function] = rows
        return function

    return add


def build(entry, **options):
    """Build the entry's small network with all variables filled with noise; it returns logits."""
    row = entry.config.tiny()
    options = {"classes": 10, "classifier_activation": None, **options}
    return tools.randomise(entry.build(row, **options))


@functools.lru_cache(maxsize=2)
def twin(entry):
    """Return a cached `build(entry)`, which must not be modified."""
    return build(entry)


def sample(entry, batch=2):
    return tools.noise((batch, *entry.config.tiny().input_shape), seed=1)


def keys(model):
    return {slot.key: slot.shape for slot in weights.slots(model)}


def images_only(entry):
    if len(entry.config.input_shape) == 1:
        pytest.skip("takes vectors")


def any_size_only(entry):
    images_only(entry)
    if not entry.config.dynamic_size:
        pytest.skip("the row fixes the input size")


# ------------------------------------------------------------------------------------------------------- the builder


@check("every")
def check_name(entry):
    name = entry.config.name
    assert entry.builder.__name__ == entry.builder.__qualname__ == name
    assert getattr(sys.modules[entry.builder.__module__], name) is entry.builder
    assert getattr(kr, name) is entry.builder
    assert name in dir(kr)
    assert name in kr.list_models()
    for known in (name.upper(), entry.config.timm, *(alias for alias, _ in entry.config.aliases)):
        assert known is None or models.find(known) is entry


@check("every")
def check_documented(entry):
    text, row = entry.builder.__doc__, entry.config
    assert text.startswith(f"{row.name}."), "the first line says which network this is"
    assert row.source or row.timm, "a row names its paper, or the network in timm that it equals"
    for said in (row.source, row.timm, row.params and f"{row.params:,} parameters"):
        assert not said or said in text, f"the docstring lacks {said!r}"
    arguments = text.partition("\nArgs:\n")[2].partition("\nReturns:\n")[0]
    described = re.findall(r"^    (\w+): \S", arguments, re.MULTILINE)
    assert described == list(inspect.signature(entry.builder).parameters), "each argument, in the signature's order"
    assert text.count("\nReturns:\n") == text.count("\nRaises:\n") == 1


@check("every")
def check_pickles(entry):
    assert pickle.loads(pickle.dumps(entry.builder)) is entry.builder


@check("every")
def check_signature(entry):
    parameters = list(inspect.signature(entry.builder).parameters.values())
    assert [p.name for p in parameters[:8]] == APPLICATIONS
    defaults = {p.name: p.default for p in parameters}
    assert defaults["include_top"] is True
    assert defaults["weights"] is None, "no surprise download"
    assert defaults["classes"] == entry.config.classes
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters[8:])


@check("distinct")
def check_full_size(entry):
    """The full network, built without memory for weights, has the published parameters and the row's output shape."""
    with keras.StatelessScope(initialize_variables=False):
        model = entry.builder()
    keras.utils.clear_session(free_memory=False)  # else the next scope would initialise these variables
    assert model.name == entry.config.name
    if entry.config.classes:
        assert model.output_shape == (None, entry.config.classes)
    else:
        assert len(model.output_shape) == 2, "features (N, C)"
        assert not {layer.name for layer in model.layers} & set(entry.config.head)
    if entry.config.params is not None:
        assert sum(math.prod(v.shape) for v in model.trainable_variables) == entry.config.params


# ------------------------------------------------------------------------------------------------- what it computes


@check("parts")
def check_outputs(entry):
    model, x = twin(entry), sample(entry)
    y = np.asarray(model(x, training=False))
    assert y.shape == (2, 10)
    assert np.isfinite(y).all()
    assert np.abs(y[0] - y[1]).max() > 1e-3, "the output does not depend on the input"
    assert tools.distance(model(x[:1], training=False), y[:1]) < 1e-5, "samples depend on each other"


@check("parts")
def check_gradients(entry):
    """Every variable gets a gradient, so there are no dead layers or unused branches."""
    model, x = twin(entry), sample(entry)
    target = tools.noise((2, 10), seed=2)
    kept = [(variable, np.asarray(variable).copy()) for variable in model.non_trainable_weights]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x, training=True) * target)
    for variable, value in kept:  # the twin serves other checks, too
        variable.assign(value)
    gradients = tape.gradient(loss, model.trainable_variables)
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        assert gradient is not None, f"{variable.path} has no gradient"
        values = np.asarray(tf.convert_to_tensor(gradient))
        assert np.isfinite(values).all(), f"the gradient of {variable.path} is not finite"
        assert np.abs(values).max() > 0, f"the gradient of {variable.path} is zero"


@check("families")
def check_second_derivatives(entry):
    """Second derivatives in training mode, which gradient penalties need, agree with finite differences."""
    smooth = {"activation": "softplus"} if "activation" in inspect.signature(entry.builder).parameters else {}
    policy = keras.config.dtype_policy()
    keras.config.set_floatx("float64")  # the inputs' dtype
    keras.config.set_dtype_policy("float64")
    try:
        model = build(entry, **smooth)
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy(policy)
    x, direction = (tf.constant(tools.noise(sample(entry).shape, seed), "float64") for seed in (1, 2))
    target = tf.constant(tools.noise((2, 10), 3), "float64")

    def slope(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.square(model(x, training=not dropout) - target))
        return tape.gradient(loss, x)

    dropout = getattr(entry.config, "dropout", 0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        along = tf.reduce_sum(slope(x) * direction)
    step = 1e-6 * direction
    assert tools.distance(tape.gradient(along, x), (slope(x + step) - slope(x - step)) / 2e-6) < 1e-4


@check("third")
def check_default_initialisation(entry):
    """One step of plain SGD from the default initialization leaves all values finite."""
    row = entry.config.tiny()
    model = entry.build(row, classes=10)
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    loss = model.train_on_batch(sample(entry), np.array([1, 7]))
    assert np.isfinite(loss)
    assert loss < 20, "the first loss of 10 classes is near log(10)"
    assert all(np.isfinite(np.asarray(v)).all() for v in model.weights)


@check("families")
def check_xla(entry):
    model, x = twin(entry), sample(entry)
    compiled = tf.function(lambda x: model(x, training=False), jit_compile=True)
    assert tools.distance(compiled(x), model(x, training=False)) < 1e-4


@check("third")
def check_mixed_bfloat16(entry):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build(entry, classifier_activation="softmax")
    finally:
        keras.config.set_dtype_policy(policy)
    assert any(layer.compute_dtype == "bfloat16" for layer in model.layers)
    x = sample(entry)
    full = keras.ops.softmax(twin(entry)(x, training=False))
    for training in (False, True):
        y = model(x, training=training)
        assert keras.backend.standardize_dtype(y.dtype) == "float32", "losses need float32"
        assert np.isfinite(np.asarray(y)).all()
        if not training:
            assert np.abs(np.asarray(y) - np.asarray(full)).max() < 0.15


# ----------------------------------------------------------------------------------------------------- inputs, output


@check("families")
def check_any_size(entry):
    any_size_only(entry)
    model = build(entry, input_shape=(None, None, 3))
    x = sample(entry)
    assert tools.distance(model(x, training=False), twin(entry)(x, training=False)) < 1e-5
    larger = tools.noise((1, x.shape[1] + 32, x.shape[2] + 64, 3))
    assert np.isfinite(np.asarray(model(larger, training=False))).all()


@check("families")
def check_channels(entry):
    images_only(entry)
    shape = entry.config.tiny().input_shape[:-1]
    for channels in (1, 4):
        model = entry.build(entry.config.tiny(), classes=10, input_shape=(*shape, channels))
        changed = {key for key, size in keys(model).items() if keys(twin(entry))[key] != size}
        assert len(changed) == 1, f"only the first layer depends on the number of channels, not {changed}"
        assert np.isfinite(np.asarray(model(tools.noise((1, *shape, channels)), training=False))).all()


@check("third")
def check_ranks(entry):
    """Networks for signals and volumes have the same layers; ranks that a row does not support are refused."""
    any_size_only(entry)
    size = entry.config.tiny().input_shape[0]
    names = set(keys(twin(entry)))
    for shape in ((size, 2), (min(size, 32), 32, 32, 2)):
        if len(shape) - 1 not in entry.config.ranks:
            with pytest.raises(ValueError, match=r"`input_shape` must be .*\(H, W, C\)"):
                build(entry, input_shape=shape)
            continue
        model = build(entry, input_shape=shape)
        assert set(keys(model)) == names
        y = np.asarray(model(tools.noise((1, *shape)), training=False))
        assert y.shape == (1, 10)
        assert np.isfinite(y).all()


@check("families")
def check_smallest_input(entry):
    images_only(entry)
    with pytest.raises(ValueError, match=r"\(1, 1"):
        build(entry, input_shape=(1, 1, 3))


@check("families")
def check_without_top(entry):
    x = sample(entry)
    bare = build(entry, include_top=False)
    head = set(keys(twin(entry))) - set(keys(bare))
    assert head, "the head has weights"
    features = np.asarray(bare(x, training=False))
    for pooling in ("avg", "max"):
        model = build(entry, include_top=False, pooling=pooling)
        pooled = np.asarray(model(x, training=False))
        assert pooled.shape == (2, features.shape[-1])
        assert model.output_shape == (None, features.shape[-1])
        if entry.config.dynamic_size and features.ndim > 2:
            reduce = np.mean if pooling == "avg" else np.max
            assert tools.distance(pooled, reduce(features, axis=tuple(range(1, features.ndim - 1)))) < 1e-5


@check("parts")
def check_features(entry):
    images_only(entry)
    model, x = twin(entry), sample(entry)
    levels = tuple(layer.level for layer in model.layers if isinstance(layer, kr.layers.StageOutput))
    assert levels == tuple(range(1, len(levels) + 1))
    assert levels, "an image network has stages"
    maps = kr.features(model, levels=levels)(x, training=False)
    sizes = [tuple(m.shape[1:-1]) for m in maps]
    assert sizes == sorted(sizes, reverse=True), "stages do not grow"
    assert all(np.isfinite(np.asarray(m)).all() for m in maps)


@check("families")
def check_input_tensor(entry):
    shape = entry.config.tiny().input_shape
    raw = keras.Input(shape)
    model = build(entry, input_tensor=keras.layers.Rescaling(2.0)(raw))
    assert keys(model) == keys(twin(entry))
    x = sample(entry)
    assert tools.distance(model(x / 2, training=False), twin(entry)(x, training=False)) < 1e-5


# --------------------------------------------------------------------------------------------- topology and storage


@check("third")
def check_topology(entry):
    """The graph and the names of weights depend only on the row, not on rates or on the size of the head."""
    model, rates = twin(entry), {"drop_path": 0.3, "dropout": 0.3}
    rates = {name: rate for name, rate in rates.items() if name in inspect.signature(entry.builder).parameters}
    options = {"name": "mine", "classifier_activation": "softmax"}
    try:
        other = build(entry, **options, **rates)
    except ValueError:  # a family may refuse dropout for some of its rows
        other = build(entry, **options, drop_path=0.3)
    assert layer_names(other) == layer_names(model), "a rate or an activation changes the graph"
    assert keys(other) == keys(model), "a rate or an activation changes the weights"
    x = sample(entry)
    expected = np.asarray(keras.ops.softmax(model(x, training=False)))
    np.testing.assert_allclose(np.asarray(other(x, training=False)), expected, atol=1e-6)

    other = entry.build(entry.config.tiny(), classes=7)
    assert layer_names(other) == layer_names(model), "the head's size changes the graph"
    assert keys(other).keys() == keys(model).keys()
    changed = {key.rpartition(".")[0] for key in keys(model) if keys(model)[key] != keys(other)[key]}
    assert changed == set(entry.config.head), "only the row's head depends on the number of classes"


def layer_names(model):
    return [layer.name for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]


@check("families")
def check_safetensors(entry):
    model, x = twin(entry), sample(entry)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        kr.save_weights(model, path)
        loaded = entry.build(entry.config.tiny(), classes=10, classifier_activation=None, weights=str(path))
    assert_equal(loaded, model, x)


@check("families")
def check_keras_file(entry):
    model, x = twin(entry), sample(entry)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        loaded = keras.models.load_model(path)
    assert_equal(loaded, model, x)


def assert_equal(loaded, model, x):
    assert len(loaded.weights) == len(model.weights)
    ours = {slot.key: np.asarray(slot.variable) for slot in weights.slots(model)}
    theirs = {slot.key: np.asarray(slot.variable) for slot in weights.slots(loaded)}
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(theirs[key], value, err_msg=key)
    np.testing.assert_array_equal(np.asarray(loaded(x, training=False)), np.asarray(model(x, training=False)))
