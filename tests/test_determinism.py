"""Trained three times with the same seed, networks of five kinds have the same bits."""

import keras
import numpy as np
import pytest

import keras_residual as kr
from keras_residual.training import Execution, Recipe, Selection, fit

from . import tools

NETWORKS = ["ResNet18", "ResNeXt50_32x4d", "ConvNeXtAtto", "ViTTiny16", "TabularResNet"]
RECIPE = Recipe(epochs=2, batch_size=8, learning_rate=0.05)


def trained(name, seed):
    """Weights and losses of a tiny twin after two epochs, with all that draws random numbers on."""
    row = kr.models.find(name).config.tiny()
    keras.utils.set_random_seed(seed)
    model = kr.models.find(name).build(row, classes=3, drop_path=0.2)
    data = tools.noise((32, *row.input_shape)), np.arange(32) % 3
    execution, selection = Execution(deterministic=True), Selection(keep="last")
    history = fit(model, RECIPE, data, seed=seed, execution=execution, selection=selection, progress=False)
    return [np.asarray(v) for v in model.weights], history["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_three_runs_are_one(name):
    first, losses = trained(name, 0)
    for _ in range(2):
        again, same = trained(name, 0)
        assert same == losses
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)
    assert trained(name, 1)[1] != losses, "another seed is another training, or this shows nothing"
