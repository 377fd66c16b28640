"""SavedModels that TensorFlow Serving reads: a directory per version, which appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import keras

__all__ = ["export"]


def export(model: keras.Model, path: str | os.PathLike[str]) -> Path:
    """Writes a model as a SavedModel into `path/VERSION/`, the layout that TensorFlow Serving watches.

    The signature `serving_default` takes `inputs`, float32 of the model's input shape with any batch size, and
    returns `outputs`, float32. The model runs as in inference. Each weight is stored once, the optimizer not at all.

    Args:
        model: A built model with one input and one output.
        path: The model's directory; the version is one more than the largest number in it.

    Returns:
        The version's directory.

    Raises:
        RuntimeError: If Keras does not run on TensorFlow.
        ValueError: If the model has several inputs or outputs.
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"A SavedModel is written by Keras on TensorFlow. Received: KERAS_BACKEND={keras.backend.backend()}. Save "
            "the weights, and export them in a process with KERAS_BACKEND=tensorflow."
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"export takes models of one input and one output. Received: {len(model.inputs)} inputs and "
            f"{len(model.outputs)} outputs."
        )
    import tensorflow as tf

    shape = (None, *model.inputs[0].shape[1:])

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, "inputs")], autograph=False)
    def serve(inputs: Any) -> dict[str, Any]:
        return {"outputs": tf.cast(model(inputs, training=False), tf.float32)}

    root: Any = tf.Module()
    # The variables themselves: tracking the model would store its optimizer, and each weight twice (keras #23553).
    root.variables_ = [variable.value for variable in model.variables]
    root.serve = serve

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    temporary = path / f".{os.getpid()}.part"  # TensorFlow Serving looks at whole numbers only
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    logger = tf.get_logger()
    level = logger.level
    try:
        logger.setLevel("WARNING")  # it would name the temporary directory, which is gone afterwards
        tf.saved_model.save(root, str(temporary), signatures={"serving_default": serve}, options=options)
        version = path / str(1 + max((int(p.name) for p in path.iterdir() if p.name.isdigit()), default=0))
        os.replace(temporary, version)
    finally:
        logger.setLevel(level)
        shutil.rmtree(temporary, ignore_errors=True)
    return version
