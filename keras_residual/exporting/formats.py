"""Conversion of models to ONNX, OpenVINO and LiteRT, verified with the runtime of each format."""

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
HELD_OUT = 12  # with at least this many representative samples, every third is held out to measure agreement
BATCH = 32


def convert(
    model: keras.Model, path: str | os.PathLike[str], *, representative: Any = None, fold: bool = True
) -> dict[str, float]:
    """Convert a model to ONNX (`.onnx`), OpenVINO (`.xml` and `.bin`) or LiteRT (`.tflite`).

    The converted model takes the model's input as `inputs`, float32 `(N, *input_shape)`, without preprocessing. Its
    output is `probabilities` if the model ends in softmax or sigmoid, and `outputs` otherwise. N may be any number;
    in LiteRT, call `resize_tensor_input` first. The converted model always computes in float32.

    Args:
        model: A built model with one input and one output.
        path: File to write; its suffix selects the format.
        representative: For LiteRT only: a hundred or more typical inputs of the model, `(M, *input_shape)`. If given,
            weights and activations are quantised to int8, while inputs and outputs stay float32. If there are at least
            12 samples, every third is held out to measure agreement.
        fold: If true, fold batch normalisations into the adjacent layers.

    Returns:
        `"difference"` between runtime and model, relative to the largest value, in float32. For int8 also
        `"agreement"`, the fraction of held-out samples for which both predict the same class, and `"measured"`, the
        number of these samples. Without held-out samples these two are missing, and the difference is measured on the
        calibration samples.

    Raises:
        ValueError: If the suffix is unknown, or if `representative` is empty or the format is not LiteRT.
        ImportError: If the extra `export` is not installed.
        RuntimeError: If the runtime lacks an operation, or if its outputs differ from the model's. Nothing is written.
    """
    path = expand(path)
    ways = {".onnx": _onnx, ".xml": _openvino, ".tflite": _litert}
    if path.suffix not in ways:
        raise ValueError(f"The suffix of `path` must be one of {', '.join(ways)}; got {path.name!r}.")
    if representative is not None and path.suffix != ".tflite":
        raise ValueError(f"`representative` must be None for formats other than LiteRT (.tflite); got {path.name!r}.")
    if representative is not None and not len(representative):
        raise ValueError("`representative` must contain samples, preferably a hundred or more; got none.")
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
                f"The outputs of {path.name} must equal those of {model.name}; they differ by "
                f"{found['difference']:.1e}. Nothing was written."
            )
        if representative is not None and x is not representative:
            found |= {"agreement": float((got.argmax(-1) == expected.argmax(-1)).mean()), "measured": len(x)}
            if found["agreement"] < AGREEMENT:
                warnings.warn(
                    f"The int8 version of {model.name} predicts the same class as the float32 model for only "
                    f"{found['agreement']:.0%} of {len(x)} held-out samples. Pass more samples that resemble the "
                    "inputs in production.",
                    stacklevel=2,
                )
        with contextlib.ExitStack() as whole:  # OpenVINO has two files; both are written before either is renamed
            for file in sorted(Path(folder).glob(f"{path.stem}.*")):
                shutil.copyfile(file, whole.enter_context(written_whole(path.with_suffix(file.suffix))))
    return found


def _parts(samples: Any) -> tuple[Any, Any]:
    """Split samples into a calibration set and a held-out set; with few samples both are the full set.

    Every third sample is held out, so that samples sorted by class have each class in both sets.
    """
    if len(samples) < HELD_OUT:
        return samples, samples
    held_out = np.arange(len(samples)) % 3 == 2
    return samples[~held_out], samples[held_out]


def _samples(model: keras.Model) -> Any:
    default = {3: 256, 4: 224, 5: 32}.get(len(model.inputs[0].shape), 1)
    shape = (2, *(size or default for size in model.inputs[0].shape[1:]))
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
        except Exception as error:  # the converter's exception type is not public, and its message contains the graph
            if missing := re.search(r"(?:TF Select|Custom) ops: (.+)", str(error)):
                raise RuntimeError(
                    f"LiteRT does not support these operations of the network: {missing[1]}. Nothing was written. Try "
                    "ONNX or OpenVINO."
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
    """Return the model computing in float32, since the runtimes support few operations in half precision."""
    if all(layer.compute_dtype == "float32" for layer in model.layers):
        return model

    def clone(operation: Any) -> Any:
        if not isinstance(operation, keras.Layer) or isinstance(operation, keras.Model):
            return None
        return type(operation).from_config({**operation.get_config(), "dtype": "float32"})

    return rebuilt(model, clone_function=clone)


def _for_litert(model: keras.Model, quantised: bool) -> keras.Model:
    """Return an equivalent model of operations that LiteRT supports.

    LiteRT has no erf. Its converter recognises Keras' GELU and replaces it with one operation, but not this package's
    GELU, which trains faster. In int8, the infinities that pad the input of a max pooling would determine its scale.
    Mirroring the edges instead gives the same maxima, because the mirrored values are already in the same window.
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
        raise ImportError(f"{error}. To convert models, run: pip install 'keras-residual[export]'") from error
