"""Layers in the form that TensorFlow makes one operation of, which oneDNN then computes: for tracing an export only."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_residual import layers

__all__ = ["fusable"]

# Exactly these: a subclass may do anything.
_DENSE = (keras.layers.Dense, layers.PointwiseDense)
_NORMS = (keras.layers.LayerNormalization,)


@contextlib.contextmanager
def fusable(model: keras.Model, norms: bool = True) -> Iterator[None]:
    """Meanwhile, a model's dense layers and layer normalisations are traced in the form that TensorFlow fuses.

    Args:
        model: The model; afterwards it is as it was.
        norms: Whether layer normalisations take part. They become batch normalisations in training mode, of one
            sample whose channels are the positions: that is what Keras 2 made of them, and what TensorFlow looks
            for. Other runtimes have their own pattern, which is Keras 3's.
    """
    calls: dict[Any, Any] = {}
    for layer in model._flatten_layers():
        if type(layer) in _DENSE and layer.quantization_mode is None and not getattr(layer, "lora_enabled", False):
            calls[layer] = _product
        elif norms and type(layer) in _NORMS and _is_plain(layer):
            calls[layer] = _normalised
    try:
        for layer, call in calls.items():
            layer.call = functools.partial(call, layer)
        yield
    finally:
        for layer in calls:
            layer.__dict__.pop("call", None)  # the class's again


def _product(layer: Any, inputs: Any, training: bool | None = None) -> Any:
    """A dense layer on sequences and maps as one product of two matrices and the bias, no reshape between.

    Keras has one there. Then nothing is fused, and constant weights are not laid out for the processor once.
    """
    y = keras.ops.matmul(keras.ops.reshape(inputs, (-1, inputs.shape[-1])), layer.kernel)
    if layer.bias is not None:
        y = tf.nn.bias_add(y, keras.ops.convert_to_tensor(layer.bias))
    y = keras.ops.reshape(y, (*keras.ops.shape(inputs)[:-1], layer.units))
    return y if layer.activation is None else layer.activation(y)


def _is_plain(layer: Any) -> bool:
    return layer.axis in (-1, [-1]) and not layer.rms_scaling and layer.compute_dtype == "float32"


def _normalised(layer: Any, inputs: Any) -> Any:
    """A layer normalisation that becomes one operation where oneDNN is on, instead of eight passes over memory.

    TensorFlow knows two more forms of one. It gives this one alone the layer's epsilon, another 0.001 whatever it is.
    """
    shape, channels = tf.shape(inputs), inputs.shape[-1]
    x = inputs if len(inputs.shape) < 4 else tf.reshape(inputs, (-1, channels))  # more axes are not looked at
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
