"""Signatures of an exported SavedModel: TensorFlow functions with named inputs and outputs."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_residual.exporting.fusing import fusable
from keras_residual.graph import classifier_input, connected, made_by
from keras_residual.reading.graph import decode_batch
from keras_residual.reading.rules import Reading

__all__ = ["Served", "quiet", "serve"]

EXAMPLE_KEY = "image/encoded"  # feature of a tf.Example with an encoded image, named as in TensorFlow's datasets


@dataclasses.dataclass(frozen=True)
class Served:
    """Traced model, ready to be saved.

    Attributes:
        root: Object to pass to `tf.saved_model.save`.
        signatures: Functions by name; each takes a tensor and returns a dict of named tensors.
        activation: Activation of the output `probabilities`: "softmax", "sigmoid", or "" if the model's outputs are
            not probabilities and are exported as `outputs`.
        frozen: True if the weights are constants of the graph.
    """

    root: Any
    signatures: dict[str, Any]
    activation: str
    frozen: bool


def serve(
    model: keras.Model,
    labels: Path | None,
    preprocess: Any,
    freeze: bool,
    top_k: int,
    max_pixels: int,
    reading: Reading | None = None,
    native: bool = True,
) -> Served:
    """Trace a model's signatures.

    Args:
        model: A built model with one input and one output.
        labels: File with the name of one class per line. With labels, logits are converted to probabilities.
        preprocess: Layer that converts pixels of 0..255 to the model's input, or `None`.
        freeze: If true, convert the weights to constants.
        top_k: Number of classes in `classes`, `scores` and `labels`.
        max_pixels: Largest image to decode, in pixels.
        reading: Rules by which encoded images are read, white background by default; its channels are the model's.
        native: If true, trace layers in forms that only TensorFlow fuses; see `keras_residual.exporting.fusing`.
    """
    features, last = classifier_input(model), _last_activation(model)
    activation, count = "", model.outputs[0].shape[-1] or 0
    if len(model.outputs[0].shape) == 2:
        activation = last if last in ("softmax", "sigmoid") else "softmax" if labels is not None else ""
    outputs = [model.outputs[0]] if features is None else [model.outputs[0], features]
    network, variables = _core(connected(model.inputs[0], outputs, model.name), freeze, native)

    def core(x: Any) -> list[Any]:
        """Call the network. An empty batch is padded to one row, because oneDNN's fused convolutions fail on it."""
        count, rest = tf.shape(x)[0], tf.shape(x)[1:]
        missing = tf.cast(tf.equal(count, 0), tf.int32)
        x = tf.concat([x, tf.zeros(tf.concat([[missing], rest], 0), x.dtype)], 0)
        return [y[:count] for y in network(x)]

    root: Any = tf.Module()
    root.variables_ = [*variables, *(v.value for v in getattr(preprocess, "variables", ()))]

    names = None
    if labels is not None:
        lines = tf.lookup.TextFileInitializer(
            str(labels), tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE
        )
        root.labels_ = names = tf.lookup.StaticHashTable(lines, "")

    def answers(x: Any) -> dict[str, Any]:
        y = tf.cast(core(x)[0], tf.float32)  # TensorFlow Serving's REST cannot write half precision
        if not activation:
            return {"outputs": y}
        if activation != last:
            y = tf.nn.softmax(y)
        scores, classes = tf.math.top_k(y, min(top_k, count))
        return {"probabilities": y, "scores": scores, "classes": classes}

    def named(classes: Any) -> Any:
        wide = tf.cast(classes, tf.int64)
        text = tf.strings.as_string(wide) if names is None else names.lookup(wide)
        return tf.where(wide < 0, "", text)

    shape = tuple(model.inputs[0].shape[1:])
    signatures: dict[str, Any] = {}

    def signature(name: str, given: Any, function: Callable[[Any], dict[str, Any]]) -> None:
        def call(inputs: Any) -> dict[str, Any]:
            return function(inputs)

        call.__name__ = name
        spec = tf.TensorSpec((None, *given.shape[1:]), given.dtype, "inputs")
        signatures[name] = tf.function(call, input_signature=[spec], autograph=False)
        setattr(root, name, signatures[name])

    def prepare(pixels: Any) -> Any:
        return tf.cast(pixels if preprocess is None else preprocess(pixels), tf.float32)

    model_input = tf.TensorSpec((None, *shape), tf.float32)
    pixels = model_input if preprocess is None else tf.TensorSpec((None, None, None, shape[-1]), tf.float32)
    signature("serving_default", pixels, lambda x: answers(prepare(x)))
    if features is not None:
        signature("features", pixels, lambda x: {"features": tf.cast(core(prepare(x))[1], tf.float32)})
    if preprocess is None:
        return Served(root, signatures, activation, freeze)

    size = tuple(preprocess.compute_output_shape((None, None, shape[-1])))
    rules = dataclasses.replace(reading or Reading(), channels=shape[-1])
    signature("serving_uint8", tf.TensorSpec(pixels.shape, tf.uint8), lambda x: answers(prepare(x)))

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)], autograph=False)
    def decoded(contents: Any) -> Any:
        x, errors = decode_batch(contents, rules, prepare, size, max_pixels)
        found, good = answers(x), errors == ""
        for name, value in found.items():
            row = tf.reshape(good, (-1, *[1] * (len(value.shape) - 1)))
            found[name] = tf.where(row, value, tf.cast(-1 if name == "classes" else 0, value.dtype))
        if activation:
            found["labels"] = named(found["classes"])
        return {**found, "errors": errors}

    def classified(examples: Any) -> dict[str, Any]:
        feature = {EXAMPLE_KEY: tf.io.FixedLenFeature((), tf.string, "")}
        found = decoded(tf.io.parse_example(examples, feature)[EXAMPLE_KEY])
        return {"classes": found["labels"], "scores": found["scores"]}

    strings = tf.TensorSpec((None,), tf.string)
    signature("serving_bytes", strings, decoded)
    if activation:
        signature("classify", strings, classified)
    return Served(root, signatures, activation, freeze)


def _core(model: keras.Model, freeze: bool, native: bool) -> tuple[Callable[[Any], Any], list[Any]]:
    """Return the network as one function shared by all signatures, and the variables to track."""
    spec = tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32)

    def call(x: Any) -> Any:
        return model(x, training=False)

    network: Any = tf.function(call, input_signature=[spec], autograph=False)
    with fusable(model, native):
        concrete = network.get_concrete_function()
    if not freeze:
        # Tracking the model instead would store its optimizer, and each weight twice (keras #23553).
        return network, [variable.value for variable in model.variables]
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    return convert_variables_to_constants_v2(concrete), []


def _last_activation(model: keras.Model) -> str:
    layer, inputs = made_by(model.outputs[0])
    while isinstance(layer, (keras.layers.Identity, keras.layers.Flatten, keras.layers.Reshape)):
        layer, inputs = made_by(inputs[0])
    if isinstance(layer, keras.Model):
        return _last_activation(layer)
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    return getattr(getattr(layer, "activation", None), "__name__", "linear")


@contextlib.contextmanager
def quiet(*libraries: str) -> Iterator[None]:
    """Suppress log messages of libraries below the level of errors."""
    loggers = [logging.getLogger(name) for name in libraries]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
