"""Every layer of our own is whole again after its config: each argument, at a value that is not the default."""

import inspect

import keras
import numpy as np
import pytest

from keras_residual import layers

from . import tools

# How a layer is made, and the shapes of its inputs.
LAYERS = {
    "Affine": ({}, [(2, 3, 4)]),
    "Attend": ({"causal": True}, [(2, 3, 5, 4)] * 3),
    "BatchNorm": ({"axis": -1, "momentum": 0.8, "epsilon": 0.1}, [(2, 3, 4)]),
    "BlurPool": ({"strides": 3}, [(2, 7, 7, 4)]),
    "Conv1D": ({"filters": 8, "kernel_size": 3, "groups": 2}, [(2, 5, 4)]),
    "Conv2D": ({"filters": 8, "kernel_size": 3, "groups": 2}, [(2, 5, 5, 4)]),
    "Conv3D": ({"filters": 8, "kernel_size": 3, "groups": 2}, [(2, 5, 5, 5, 4)]),
    "GlobalResponseNorm": ({"epsilon": 0.1}, [(2, 3, 5, 4)]),
    "GroupNorm": ({"groups": 2, "axis": -1, "epsilon": 0.1}, [(2, 3, 5, 4)]),
    "LayerNorm": ({"axis": -1, "epsilon": 0.1}, [(2, 3, 4)]),
    "LayerScale": ({"init": 0.5}, [(2, 3, 4)]),
    "PointwiseDense": ({"units": 6}, [(2, 3, 4)]),
    "PositionEmbedding": ({"grid": (2, 3), "prefix": 1}, [(2, 7, 4)]),
    "SimpleNorm": ({"epsilon": 0.1}, [(2, 3, 4)]),
    "SkipInit": ({"init": 0.5}, [(2, 3, 4)]),
    "SplitHeads": ({"heads": 3, "parts": 2}, [(2, 5, 24)]),
    "StageOutput": ({"level": 7, "grid": (1, 3), "family": "ViT"}, [(2, 3, 4)]),
    "StandardizedConv1D": ({"filters": 8, "kernel_size": 3, "epsilon": 0.1}, [(2, 5, 4)]),
    "StandardizedConv2D": ({"filters": 8, "kernel_size": 3, "groups": 2, "epsilon": 0.1}, [(2, 5, 5, 4)]),
    "StandardizedConv3D": ({"filters": 8, "kernel_size": 3, "epsilon": 0.1}, [(2, 5, 5, 5, 4)]),
    "Token": ({"count": 3, "stddev": 0.5}, [(2, 5, 4)]),
}
OURS = {name for name in layers.__all__ if inspect.isclass(getattr(layers, name))} - {"Parameter"}


def test_every_layer_has_a_case():
    assert set(LAYERS) == OURS


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_config_and_shapes(name):
    arguments, shapes = LAYERS[name]
    made = getattr(layers, name)(**arguments, name="it")
    config = made.get_config()
    for key, value in arguments.items():
        stored = config[key]
        assert (tuple(stored) if isinstance(value, tuple) else stored) in (value, (value,) * (len(shapes[0]) - 2)), key
    if "__init__" in vars(type(made)):  # others take Keras' own arguments
        parameters = inspect.signature(type(made).__init__).parameters.values()
        own = {p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD} - {"self"}
        assert own == set(arguments), "each argument has its place here"
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(made))
    assert type(again) is type(made), "registered under its own name"
    assert again.get_config() == config

    x = [tools.noise(shape, seed) for seed, shape in enumerate(shapes)]
    x = x if len(x) > 1 else x[0]
    expected = made(x)
    again(x)
    again.set_weights(made.get_weights())
    many = expected if isinstance(expected, list) else [expected]
    got = again(x)
    for a, b in zip(many, got if isinstance(got, list) else [got], strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    symbolic = [keras.KerasTensor((None, *shape[1:])) for shape in shapes]
    out = again.compute_output_spec(symbolic if len(symbolic) > 1 else symbolic[0])
    out = out if isinstance(out, list) else [out]
    assert [tuple(o.shape[1:]) for o in out] == [tuple(m.shape[1:]) for m in many]
    with_batch = again.compute_output_shape(shapes if len(shapes) > 1 else shapes[0])
    with_batch = with_batch if isinstance(with_batch, list) else [with_batch]
    assert [tuple(s) for s in with_batch] == [tuple(m.shape) for m in many]


@pytest.mark.parametrize(
    ("rank", "padding"), [(1, "causal"), *((rank, padding) for rank in (1, 2, 3) for padding in ("same", "valid"))]
)
@pytest.mark.parametrize("groups", [1, 4])
def test_convolutions(rank, groups, padding):
    """Keras' convolution, and that with a standardised kernel. Of one axis Keras convolves elsewhere than of others."""
    options = {"filters": 8, "kernel_size": 3, "padding": padding, "groups": groups}
    ours = getattr(layers, f"StandardizedConv{rank}D")(epsilon=0.01, **options)
    theirs = getattr(keras.layers, f"Conv{rank}D")(**options)
    x = np.random.default_rng(0).normal(size=(2, *(6,) * rank, 8)).astype("float32")
    ours.build(x.shape)
    theirs.build(x.shape)
    kernel, axes = np.asarray(ours.kernel), tuple(range(rank + 1))
    theirs.kernel.assign((kernel - kernel.mean(axes)) / np.sqrt(kernel.var(axes) + 0.01))
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-5)
    plain = getattr(layers, f"Conv{rank}D")(**options)
    plain.build(x.shape)
    plain.kernel.assign(theirs.kernel)
    np.testing.assert_allclose(plain(x), theirs(x), atol=1e-5)
