"""Layer implementations that TensorFlow fuses into single oneDNN operations. They are used only to trace exports."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_residual import layers
from keras_residual.graph import nodes, takers, uses

__all__ = ["fusable"]

# Exactly these types: a subclass may compute something else.
_DENSE = (keras.layers.Dense, layers.PointwiseDense)
_NORMS = (keras.layers.LayerNormalization, layers.LayerNorm)


@contextlib.contextmanager
def fusable(model: keras.Model, native: bool = True) -> Iterator[None]:
    """Make a model's dense layers, GELUs and layer normalisations trace to operations that TensorFlow fuses.

    Args:
        model: The model; its layers are restored on exit.
        native: If true, include GELUs and layer normalisations, whose fused forms only TensorFlow recognises. Other
            runtimes recognise the layers' normal forms.
    """
    calls: dict[Any, Any] = {}
    for layer in model._flatten_layers():
        if type(layer) in _DENSE and layer.quantization_mode is None and not getattr(layer, "lora_enabled", False):
            calls[layer] = _product
        elif native and type(layer) in _NORMS and _is_plain(layer):
            calls[layer] = _normalised
    for dense, activation in _before_gelu(model) if native else ():
        if calls.get(dense) is _product:
            calls[dense], calls[activation] = _product_and_gelu, _identity
    try:
        for layer, call in calls.items():
            layer.call = functools.partial(call, layer)
        yield
    finally:
        for layer in calls:
            layer.__dict__.pop("call", None)  # restore the method of the class


def _product(layer: Any, inputs: Any, training: bool | None = None) -> Any:
    """Compute a dense layer on sequences or feature maps as one matrix product plus bias.

    Keras reshapes between product and bias, which prevents fusion and the one-time reordering of constant weights.
    """
    y = _restored(_affine(layer, inputs), inputs)
    return y if layer.activation is None else layer.activation(y)


def _product_and_gelu(layer: Any, inputs: Any, training: bool | None = None) -> Any:
    """Compute a dense layer and the exact GELU after it in the form that TensorFlow fuses into one operation."""
    y = _affine(layer, inputs)
    return _restored((tf.math.erf(y * math.sqrt(0.5)) + 1.0) * 0.5 * y, inputs)


def _affine(layer: Any, inputs: Any) -> Any:
    y = keras.ops.matmul(keras.ops.reshape(inputs, (-1, inputs.shape[-1])), layer.kernel)
    return y if layer.bias is None else tf.nn.bias_add(y, keras.ops.convert_to_tensor(layer.bias))


def _restored(y: Any, inputs: Any) -> Any:
    return keras.ops.reshape(y, (*keras.ops.shape(inputs)[:-1], y.shape[-1]))


def _identity(layer: Any, inputs: Any, training: bool | None = None) -> Any:
    return inputs


def _before_gelu(model: keras.Model) -> Iterator[tuple[Any, Any]]:
    """Yield each float32 dense layer whose only consumer is this package's GELU, together with the GELU layer."""
    counts, users = uses(model), takers(model)
    for node in nodes(model):
        dense, behind = node.operation, users[id(node.outputs[0])] if node.outputs else []
        if type(dense) not in _DENSE or len(behind) != 1 or type(behind[0]) is not keras.layers.Activation:
            continue
        plain = keras.activations.get(dense.activation) is keras.activations.linear and dense.compute_dtype == "float32"
        alone = counts[id(dense)] == counts[id(behind[0])] == 1
        if plain and alone and dense.bias is not None and behind[0].activation is layers.gelu:
            yield dense, behind[0]


def _is_plain(layer: Any) -> bool:
    return layer.axis in (-1, [-1]) and not layer.rms_scaling and layer.compute_dtype == "float32"


def _normalised(layer: Any, inputs: Any) -> Any:
    """Compute a layer normalisation that oneDNN fuses into one operation instead of eight passes over memory.

    As in Keras 2, it is a batch normalisation in training mode of one sample whose channels are the positions.
    TensorFlow recognises two other patterns, but only this one keeps the layer's epsilon; another always uses 0.001.
    """
    shape, channels = tf.shape(inputs), inputs.shape[-1]
    x = inputs if len(inputs.shape) < 4 else tf.reshape(inputs, (-1, channels))  # TensorFlow only matches fewer axes
    count = tf.reduce_prod(tf.shape(x)[:-1])
    y, *_ = tf.raw_ops.FusedBatchNormV3(
        x=tf.reshape(x, tf.stack([1, count, channels, 1])),
        scale=tf.fill([count], 1.0),
        offset=tf.fill([count], 0.0),
        mean=[],
        variance=[],
        epsilon=layer.epsilon,
        data_format="NCHW",
        is_training=True,
    )
    gamma = tf.ones((channels,)) if layer.gamma is None else keras.ops.convert_to_tensor(layer.gamma)
    beta = tf.zeros((channels,)) if layer.beta is None else keras.ops.convert_to_tensor(layer.beta)
    y = tf.reshape(y, tf.shape(x)) * gamma + beta
    return tf.ensure_shape(tf.reshape(y, shape), inputs.shape) if x is not inputs else y
