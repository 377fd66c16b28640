"""Other formats than SavedModel, by the libraries that are for it; each is read back by its own runtime."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_residual import layers
from keras_residual.exporting import graph
from keras_residual.folding import fold_batch_norm
from keras_residual.graph import rebuilt
from keras_residual.io import expand, written_whole

__all__ = ["convert"]

TOLERANCE = 1e-4
AGREEMENT = 0.9
HELD_OUT = 12  # of so many representative samples or more, every third is held out to measure agreement
BATCH = 32


def convert(
    model: keras.Model, path: str | os.PathLike[str], *, representative: Any = None, fold: bool = True
) -> dict[str, float]:
    """Writes a model as ONNX (`.onnx`), OpenVINO (`.xml`, with a `.bin` beside it) or LiteRT (`.tflite`).

    The file's input is `inputs`, float32 `(N, *input_shape)`, what the model takes; its output is `probabilities` of
    a model that ends in softmax or sigmoid, `outputs` of others. Preprocessing is not part of it. N may be any number;
    LiteRT wants to be told before (`resize_tensor_input`). The file computes in float32, whatever the model does.

    Args:
        model: A built model with one input and one output.
        path: Where to write; the suffix is the format.
        representative: For LiteRT: samples `(M, *input_shape)` as the model will see them, a hundred or more. Weights
            and activations become int8 then; inputs and outputs stay float32. Every third sample is held out to
            measure agreement, unless there are fewer than 12.
        fold: Whether to fold batch normalisations.

    Returns:
        `{"difference": ...}` between runtime and model, in float32, relative to the largest value. Of int8 also
        `"agreement"`, the fraction of the held-out samples whose most likely class is the model's, and `"measured"`,
        their number; without held-out samples, both are missing, and the difference is that on the calibration set.

    Raises:
        ValueError: For another suffix, or a representative set that is empty or for another format than LiteRT.
        ImportError: If the extra `export` is not installed.
        RuntimeError: If the runtime lacks an operation, or does not answer as the model does. Nothing is written then.
    """
    path = expand(path)
    ways = {".onnx": _onnx, ".xml": _openvino, ".tflite": _litert}
    if path.suffix not in ways:
        raise ValueError(f"The suffix is one of {', '.join(ways)}. Received: {path.name!r}.")
    if representative is not None and path.suffix != ".tflite":
        raise ValueError(f"Only LiteRT is quantised, which needs a representative set. Received: {path.name!r}.")
    if representative is not None and not len(representative):
        raise ValueError("A representative set has a sample at least, better a hundred. Received: none.")
    if representative is None:
        x = _samples(model)
    else:
        representative, x = _parts(np.asarray(representative, "float32"))
    model = _in_float32(model)
    expected = _in_batches(lambda batch: np.asarray(model(batch, training=False)), x)
    network = fold_batch_norm(model) if fold else model
    if path.suffix == ".tflite":
        network = _for_litert(network, quantised=representative is not None)
    served = graph.serve(network, None, None, True, 1, 0, native=False)
    name = "probabilities" if served.activation else "outputs"
    spec = served.signatures["serving_default"].input_signature[0]
    answer: Any = served.signatures["serving_default"]
    only: Any = tf.function(lambda inputs: {name: answer(inputs)[name]}, input_signature=[spec], autograph=False)

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, graph.quiet("tensorflow", "tf2onnx"):
        read = ways[path.suffix](only, Path(folder) / path.name, representative)
        got = _in_batches(read, x)
        scale = max(float(np.abs(expected).max()), 1e-12)
        found = {"difference": float(np.abs(got - expected).max()) / scale}
        if representative is None and not found["difference"] <= TOLERANCE:
            raise RuntimeError(
                f"{path.name} differs from {model.name} by {found['difference']:.1e}. It was not written."
            )
        if representative is not None and x is not representative:
            found |= {"agreement": float((got.argmax(-1) == expected.argmax(-1)).mean()), "measured": len(x)}
            if found["agreement"] < AGREEMENT:
                warnings.warn(
                    f"In int8 {model.name} gives the class of the full model for only {found['agreement']:.0%} of "
                    f"{len(x)} samples that were not used for calibration. Give more samples, as the network sees "
                    "them in use.",
                    stacklevel=2,
                )
        with contextlib.ExitStack() as whole:  # OpenVINO's two files: both are written before one takes its place
            for file in sorted(Path(folder).glob(f"{path.stem}.*")):
                shutil.copyfile(file, whole.enter_context(written_whole(path.with_suffix(file.suffix))))
    return found


def _parts(samples: Any) -> tuple[Any, Any]:
    """Samples to calibrate on and others to measure on; all for both where a part would be too few.

    Every third is held out, so that a set in the order of its classes has each class in both parts.
    """
    if len(samples) < HELD_OUT:
        return samples, samples
    held_out = np.arange(len(samples)) % 3 == 2
    return samples[~held_out], samples[held_out]


def _samples(model: keras.Model) -> Any:
    usual = {3: 256, 4: 224, 5: 32}.get(len(model.inputs[0].shape), 1)
    shape = (2, *(size or usual for size in model.inputs[0].shape[1:]))
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def _in_batches(function: Callable[[Any], Any], x: Any) -> Any:
    return np.concatenate([function(x[first : first + BATCH]) for first in range(0, len(x), BATCH)])


Reader = Callable[[Any], Any]


def _onnx(function: Any, path: Path, _: Any) -> Reader:
    with _extra():
        import onnxruntime
        import tf2onnx

    tf2onnx.convert.from_function(function, function.input_signature, opset=17, output_path=str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"inputs": x})[0]


def _openvino(function: Any, path: Path, _: Any) -> Reader:
    with _extra():
        import openvino

    with _saved(function) as saved:
        openvino.save_model(openvino.convert_model(saved), str(path), compress_to_fp16=False)
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: compiled([x])[0]


def _litert(function: Any, path: Path, representative: Any) -> Reader:
    with _extra():
        from ai_edge_litert.interpreter import Interpreter

    with _saved(function) as saved:
        converter = tf.lite.TFLiteConverter.from_saved_model(saved)
        if representative is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([np.asarray(x, "float32")[None]] for x in representative)
            builtins = tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS
            converter.target_spec.supported_ops = list(builtins)
        try:
            path.write_bytes(converter.convert())
        except Exception as error:  # that of the converter has no public name, and pages of its graph for a text
            if missing := re.search(r"(?:TF Select|Custom) ops: (.+)", str(error)):
                raise RuntimeError(
                    f"LiteRT lacks operations of this network: {missing[1]}. Nothing was written. ONNX and OpenVINO "
                    "may have them."
                ) from error
            raise

    def read(x: Any) -> Any:
        interpreter = Interpreter(str(path))
        ((name, parts),) = interpreter.get_signature_list().items()
        interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], x.shape)
        interpreter.allocate_tensors()
        return interpreter.get_signature_runner(name)(inputs=x)[parts["outputs"][0]]

    return read


@contextlib.contextmanager
def _saved(function: Any) -> Iterator[str]:
    root: Any = tf.Module()
    root.function = function
    with tempfile.TemporaryDirectory() as folder:
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(root, folder, signatures={"serving_default": function}, options=options)
        yield folder


def _in_float32(model: keras.Model) -> keras.Model:
    """The same weights, computed with in float32: of half precision the runtimes have some operations only."""
    if all(layer.compute_dtype == "float32" for layer in model.layers):
        return model

    def clone(operation: Any) -> Any:
        if not isinstance(operation, keras.Layer) or isinstance(operation, keras.Model):
            return None
        return type(operation).from_config({**operation.get_config(), "dtype": "float32"})

    return rebuilt(model, clone_function=clone)


def _for_litert(model: keras.Model, quantised: bool) -> keras.Model:
    """The same function in operations that LiteRT has.

    It has no erf: of Keras' own GELU its converter makes one operation, not of ours, which trains faster. The infinity
    beside the edges of a max pooling's input would set the scale of its int8; mirrored at its edges that has the same
    maxima, since what is mirrored into a window is in that window already.
    """

    def clone(operation: Any) -> Any:
        if isinstance(operation, keras.layers.Activation) and operation.activation is layers.gelu:
            return keras.layers.Activation("gelu", name=operation.name, dtype=operation.dtype_policy)
        return None

    def call(_: Any, operation: Any, *args: Any, **kwargs: Any) -> Any:
        if quantised and kwargs.get("constant_values") == -np.inf:
            return keras.ops.pad(*args, operation.pad_width, mode="symmetric")
        return operation(*args, **kwargs)

    return rebuilt(model, clone_function=clone, call_function=call)


@contextlib.contextmanager
def _extra() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{error}. Other formats need: pip install keras-residual[export]") from error
