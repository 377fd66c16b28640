"""Diagnoses are measured against independent computations, planted faults, and networks known to be sound."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_residual as kr
from keras_residual.diagnostics import check_residual, gradient_flow

from . import tools
from .faulty_models import FAULTS, HEALTHY

# ------------------------------------------------------------------------------------------------------- gradient flow


def small_resnet(**options):
    return tools.randomise(kr.ResNet20(input_shape=(16, 16, 3), **options))


def batch(shape=(4, 16, 16, 3), classes=10):
    return tools.noise(shape), np.arange(shape[0]) % classes


def by_hand(model, x, y, shortcut, fork, branch, add):
    """dL/d(fork), and its parts by shortcut and by branch, from GradientTape through models cut at the block."""
    whole = keras.Model(model.input, [t.output for t in (fork, add)] + [model.output])
    with tf.GradientTape(persistent=True) as tape:
        start, end, outputs = whole(x, training=False)
        loss = tf.reduce_mean(tf.keras.losses.sparse_categorical_crossentropy(y, outputs))
    total, above = tape.gradient(loss, start), tape.gradient(loss, end)
    parts = []
    for side in (shortcut, branch):
        if side is fork.output:
            parts.append(above)
            continue
        part = keras.Model(fork.output, side)
        with tf.GradientTape() as tape:
            tape.watch(start)
            value = part(start, training=False)
        parts.append(tape.gradient(value, start, output_gradients=above))
    return [np.asarray(t) for t in (total, *parts)]


@pytest.mark.parametrize("name", ["layer1.1", "layer2.0"])
def test_gradient_parts_equal_those_of_gradient_tape(name):
    """A block that keeps its shape and one that does not; the tape sees each side of the block by itself."""
    model = small_resnet()
    x, y = batch()
    add = model.get_layer(f"{name}.add")
    shortcut, branch = add.input
    fork = model.get_layer({"layer1.1": "layer1.0.act", "layer2.0": "layer1"}[name])
    total, by_shortcut, by_branch = by_hand(model, x, y, shortcut, fork, branch, add)
    found = gradient_flow(model, x, y).gradients[name]
    assert tools.distance(found["shortcut"], by_shortcut) < 1e-5
    assert tools.distance(found["branch"], by_branch) < 1e-5
    assert tools.distance(found["input"], total) < 1e-5
    assert tools.distance(found["shortcut"] + found["branch"], total) < 1e-5


# ---------------------------------------------------------------------------------------------------------- check

LONG = {"activated_shortcut", "halved_shortcut"}  # whole networks of keras.applications


@pytest.mark.parametrize(
    "planted", [pytest.param(f, marks=[pytest.mark.slow] if f.__name__ in LONG else []) for f in FAULTS]
)
def test_planted_faults_are_found_and_nothing_else(planted):
    model, kind = planted()
    found = check_residual(model)
    assert not found.healthy
    assert {fault.kind for fault in found.faults} == {kind}
    names = {layer.name for layer in model._flatten_layers()}
    if "here" in names:
        assert found.faults[0].layer.rpartition("/")[2] == "here"
    for fault in found.faults:
        assert fault.layer in str(found)
        assert fault.wrong in str(found)
        assert fault.advice.endswith(".")
        assert fault.source


@pytest.mark.parametrize("build", HEALTHY)
def test_networks_that_look_alike_are_healthy(build):
    found = check_residual(build())
    assert found.healthy, str(found)


def test_twelve_kinds_of_faults_are_planted():
    """In as many models; `keras.applications` among them."""
    assert len(FAULTS) >= 12
