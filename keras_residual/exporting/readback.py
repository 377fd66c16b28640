"""Run an exported version in a process that cannot import Keras, like a server without Keras."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["answers_without_keras"]

_READER = """
import sys
sys.modules["keras"] = None  # importing Keras from here on fails
import numpy as np, tensorflow as tf
version, signature, inputs, outputs = sys.argv[1:]
function = tf.saved_model.load(version).signatures[signature]
answers = function(inputs=tf.constant(np.load(inputs)))
np.savez(outputs, **{name: value.numpy() for name, value in answers.items()})
"""


def answers_without_keras(
    version: str | os.PathLike[str], inputs: Any, signature: str = "serving_default"
) -> dict[str, np.ndarray[Any, Any]]:
    """Run a signature of a SavedModel in a new process that cannot import Keras.

    Args:
        version: A directory that `keras_residual.export` returned.
        inputs: The signature's input, an array of numbers.
        signature: Name of a signature whose outputs are numbers.

    Returns:
        The outputs by name.

    Raises:
        RuntimeError: If the process fails; the message ends with the last lines of its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, answers = Path(folder, "inputs.npy"), Path(folder, "outputs.npz")
        np.save(given, inputs)
        command = [sys.executable, "-c", _READER, str(version), signature, str(given), str(answers)]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise RuntimeError(
                f"An export must load without Keras, but {str(version)!r} did not. Export the model again. Last output "
                f"of the process:\n{done.stderr[-2000:]}"
            )
        with np.load(answers) as found:
            return dict(found)
