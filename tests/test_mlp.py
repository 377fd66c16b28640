"""Tests of residual networks of dense layers: sizes, options, dropout as in the paper, training."""

import keras
import numpy as np
import pytest

import keras_residual as kr

from . import tools


def dense(inputs, outputs):
    return inputs * outputs + outputs


@pytest.mark.parametrize(("features", "width", "hidden", "depth", "classes"), [(784, 64, 128, 4, 10), (7, 5, 11, 3, 2)])
def test_parameters_by_formula(features, width, hidden, depth, classes):
    model = kr.ResidualMLP(input_shape=(features,), width=width, hidden=hidden, depth=depth, classes=classes)
    block = 2 * width + dense(width, hidden) + dense(hidden, width)
    assert model.count_params() == dense(features, width) + depth * block + 2 * width + dense(width, classes)


def test_the_defaults_of_tabular_resnet():
    model = kr.TabularResNet(input_shape=(30,), classes=1, classifier_activation=None)
    block = 4 * 192 + dense(192, 384) + dense(384, 192)  # a batch norm has two trained and two running vectors
    assert model.count_params() == dense(30, 192) + 2 * block + 4 * 192 + dense(192, 1)
    rates = {layer.name: layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)}
    assert rates["blocks.1.dropout"] == 0.3
    assert rates["blocks.1.residual_dropout"] == 0.0


def test_hidden_follows_the_width():
    assert kr.ResidualMLP(width=10).get_layer("blocks.0.fc1").units == 20


@pytest.mark.parametrize(
    ("option", "kept"),
    [("dropout", "fc2's bias alone is left of the branch"), ("residual_dropout", "the stream alone is left")],
)
def test_both_dropouts_are_in_the_branch(option, kept):
    """At a rate near 1 everything after the dropout is zero, which shows its position."""
    options = {"dropout": 0.0, "residual_dropout": 0.0, option: 1 - 1e-12}
    model = tools.randomise(
        kr.TabularResNet(input_shape=(6,), width=8, depth=1, include_top=False, norm=no_norm, **options)
    )
    x = tools.noise((16, 6))
    stream = model.get_layer("stem")(x)
    branch = model.get_layer("blocks.0.fc2").bias if option == "dropout" else 0.0
    np.testing.assert_allclose(
        np.asarray(model(x, training=True)), np.maximum(np.asarray(stream + branch), 0), rtol=1e-5, atol=1e-5
    )


def no_norm(x, *, name, zero_init=False):
    return keras.layers.Identity(name=name)(x)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 0}, "`width` must be a positive integer; got 0"),
        ({"depth": 2.5}, "`depth` must be a positive integer; got 2.5"),
        ({"hidden": "wide"}, "`hidden` must be a positive integer; got 'wide'"),
        ({"dropout": 1.0}, "`dropout` must be a probability, 0 <= dropout < 1; got 1.0"),
        ({"residual_dropout": -0.1}, "`residual_dropout` must be a probability"),
        ({"input_shape": (28, 28, 1)}, "`input_shape` must be the shape of one sample without the batch, (features,)"),
    ],
)
def test_errors_say_what_to_do(options, said):
    with pytest.raises(ValueError, match="must be") as error:
        kr.ResidualMLP(**options)
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["ResidualMLP", pytest.param("TabularResNet", marks=pytest.mark.slow)])
def test_learns_a_function_that_is_not_linear(name):
    """Learn the parity of two signs, where a linear model is correct half of the time."""
    x = tools.noise((384, 8))
    y = (x[:, 0] * x[:, 1] > 0).astype("int32")
    model = kr.create(name, input_shape=(8,), classes=2, width=32, depth=2, dropout=0.0)
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x[:256], y[:256], batch_size=64, epochs=30, verbose=0)
    assert model.evaluate(x[256:], y[256:], verbose=0)[1] > 0.8
