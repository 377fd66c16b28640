"""Tests of the mapping to timm's state dict: rules by type for Keras' layers, `stored` for other layers."""

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import keras_residual as kr
from keras_residual import layers
from keras_residual.weights import WeightsError, slots

from .test_weights import snapshot, state_of, unchanged
from .tools import distance, noise, randomise


class StarScale(layers.SkipInit):
    """Layer with a scalar that timm stores as an array of one element, like StarReLU's."""

    def stored(self, variable):
        return ".scale", (1,)


class Affine(keras.layers.Layer):
    """ResMLP's layer with two numbers per channel, stored in the shape of a sequence."""

    def build(self, input_shape):
        self.alpha = self.add_weight(shape=(input_shape[-1],), name="alpha")
        self.beta = self.add_weight(shape=(input_shape[-1],), name="beta")

    def call(self, inputs):
        return inputs * self.alpha + self.beta

    def stored(self, variable):
        return f".{variable}", (1, 1, *self.alpha.shape)


class GainedConv(layers.Conv2D):
    """NFNet's convolution with a gain per output channel; kernel and bias are stored as usual."""

    def build(self, input_shape):
        super().build(input_shape)
        self.gain = self.add_weight(shape=(self.filters,), name="gain")

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel * self.gain)

    # Keras' convolutions save their kernel and bias alone.
    save_own_variables = keras.layers.Layer.save_own_variables
    load_own_variables = keras.layers.Layer.load_own_variables

    def stored(self, variable):
        return (".gain", (self.filters, 1, 1, 1)) if variable == "gain" else None


SHAPES = {
    "conv.weight": (6, 3, 2, 2),
    "conv.bias": (6,),
    "conv.gain": (6, 1, 1, 1),
    "affine.alpha": (1, 1, 6),
    "affine.beta": (1, 1, 6),
    "act.scale": (1,),
    "gamma": (6,),
    "grn.weight": (6,),
    "grn.bias": (6,),
    "norm.weight": (6,),
}


def network(seed=None):
    x = inputs = keras.Input((4, 4, 3))
    x = GainedConv(6, 2, name="conv")(x)
    x = Affine(name="affine")(x)
    x = StarScale(name="act")(x)
    x = layers.LayerScale(name="gamma")(x)
    x = layers.GlobalResponseNorm(name="grn")(x)
    x = layers.SimpleNorm(name="norm")(x)
    model = keras.Model(inputs, x)
    return model if seed is None else randomise(model, seed)


def test_a_layers_rule_comes_with_it(tmp_path):
    model, other = network(1), network(2)
    assert {slot.key: slot.shape for slot in slots(model)} == SHAPES
    kr.save_weights(model, tmp_path / "a.safetensors")
    state = load_file(tmp_path / "a.safetensors")
    assert {key: value.shape for key, value in state.items()} == SHAPES
    np.testing.assert_array_equal(state["conv.gain"][:, 0, 0, 0], np.asarray(model.get_layer("conv").gain))
    np.testing.assert_array_equal(
        state["conv.weight"].transpose(2, 3, 1, 0), np.asarray(model.get_layer("conv").kernel)
    )
    kr.load_weights(other, tmp_path / "a.safetensors")
    x = noise((2, 4, 4, 3))
    assert distance(other(x), model(x)) == 0


def test_a_keras_file_knows_the_same_layers(tmp_path):
    model, other = network(1), network(2)
    model.save(tmp_path / "a.keras")
    kr.load_weights(other, tmp_path / "a.keras")
    assert unchanged(other, snapshot(model))


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("act.scale", ()),
        ("act.scale", (2,)),
        ("affine.alpha", (6,)),
        ("affine.alpha", (1, 6, 1)),
        ("conv.gain", (6,)),
        ("conv.gain", (1, 6, 1, 1)),
        ("conv.gain", (5, 1, 1, 1)),
        ("grn.bias", (1, 6)),
    ],
)
def test_another_shape_is_refused(key, shape, tmp_path):
    model = network(1)
    before = snapshot(model)
    save_file({**state_of(network(2)), key: noise(shape)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError) as caught:
        kr.load_weights(model, tmp_path / "a.safetensors")
    assert caught.value.report.misshapen == (f"{key} {shape}, expected {SHAPES[key]}",)
    assert unchanged(model, before)


def test_a_keras_file_of_another_width_is_refused(tmp_path):
    inputs = keras.Input((4, 4, 5))
    keras.Model(inputs, Affine(name="affine")(inputs)).save(tmp_path / "a.keras")
    inputs = keras.Input((4, 4, 6))
    model = keras.Model(inputs, Affine(name="affine")(inputs))
    with pytest.raises(WeightsError, match=r"misshapen \(2\): affine.alpha \(5,\), expected \(1, 1, 6\)"):
        kr.load_weights(model, tmp_path / "a.keras")


class Transposing(Affine):
    def stored(self, variable):
        return ".alpha", (1, 2, 3)


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (
            Transposing,
            ValueError,
            r"Transposing.stored .*'affine'.* must .*\(1, 2, 3\) for a variable of shape \(6,\)",
        ),
        (keras.layers.EinsumDense, TypeError, "EinsumDense .*'affine'.* `stored`"),
    ],
)
def test_a_wrong_rule_and_none(layer, error, message):
    options = {"equation": "...c,cd->...d", "output_shape": (4, 4, 6)} if layer is keras.layers.EinsumDense else {}
    inputs = keras.Input((4, 4, 6))
    model = keras.Model(inputs, layer(name="affine", **options)(inputs))
    with pytest.raises(error, match=message):
        slots(model)
