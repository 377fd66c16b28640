"""Choose XLA, precision and steps per execution for the user, and prove that a training step compiles."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_residual.training.devices import gpu_names, replica_count
from keras_residual.training.settings import Execution

__all__ = ["Decision", "compiled_hlo", "decide"]


@dataclasses.dataclass(frozen=True)
class Decision:
    """How a training runs.

    Attributes:
        backend: `"tensorflow"` or `"jax"`.
        device: Description of the devices, such as `"2 GPUs (NVIDIA H100)"`.
        replicas: Number of devices of this process that share a batch.
        jit: Whether the step is compiled with XLA.
        why: Reason for `jit`.
        precision: dtype policy of the network, such as `"float32"` or `"mixed_bfloat16"`.
        steps_per_execution: Number of steps in one call of the backend.
    """

    backend: str
    device: str
    replicas: int
    jit: bool
    why: str
    precision: str
    steps_per_execution: int

    def line(self) -> str:
        """Return one line for the user."""
        xla = f"XLA {'on' if self.jit else 'off'} ({self.why})"
        steps = f", {self.steps_per_execution} steps per execution" if self.steps_per_execution > 1 else ""
        return f"Keras {keras.__version__} on {self.backend}, {self.device}, {xla}, {self.precision}{steps}"


def decide(
    model: keras.Model,
    jit: bool | str = "auto",
    steps_per_execution: int | str = "auto",
    deterministic: bool = False,
) -> Decision:
    """Choose how to run by the device and the model.

    XLA is faster on GPUs only: on CPUs, convolutional networks train about half as fast with it. Several steps per
    execution are faster only if XLA compiles them too and a step is short.

    Raises:
        ValueError: If XLA is requested but unavailable, with the reason; for a value that `Execution` rejects.
    """
    Execution(jit, steps_per_execution, deterministic)  # pyright: ignore[reportArgumentType]  # checks the values
    backend = keras.backend.backend()
    gpus = gpu_names()
    replicas = replica_count(model)
    device = (f"{len(gpus)} GPUs ({gpus[0]})" if len(gpus) > 1 else f"GPU ({gpus[0]})") if gpus else "CPU"
    blocked = [
        f"{layer.name} ({type(layer).__name__})"
        for layer in model._flatten_layers(include_self=False)
        if not getattr(layer, "supports_jit", True)
    ]
    if backend == "jax":
        on, why = True, "JAX always compiles"
        if jit is False:
            on, why = False, "requested"
    elif replicas > 1:
        on, why = False, "it fails under tf.distribute"
    elif deterministic or _deterministic():
        on, why = False, "Keras disables it if TensorFlow's operations are deterministic"
    elif blocked:
        on, why = False, f"these layers do not support it: {', '.join(blocked[:3])}"
    elif jit == "auto":
        on, why = bool(gpus), "faster on GPUs" if gpus else "faster on GPUs only"
    else:
        on, why = bool(jit), "requested"
    if jit is True and not on:
        raise ValueError(f"XLA cannot be used here: {why}. Omit jit.")
    together = 1 if steps_per_execution == "auto" else int(steps_per_execution)
    if replicas > 1 and together > 1:
        raise ValueError(
            "steps_per_execution must be 1 under tf.distribute, where several steps per execution fail. Omit it."
        )
    precision = precision_of(model)
    return Decision(backend, device, replicas, on, why, precision, together)


def _deterministic() -> bool:
    """Return True after `tf.config.experimental.enable_op_determinism`, which has no public getter."""
    from tensorflow.python.framework.config import is_op_determinism_enabled

    return is_op_determinism_enabled()


def precision_of(model: keras.Model) -> str:
    """Return the dtype policy of most layers of a network."""
    names = [layer.dtype_policy.name for layer in model._flatten_layers(include_self=False) if layer.weights]
    return max(set(names), key=names.count) if names else keras.config.dtype_policy().name


def best_precision() -> str:
    """Return `"mixed_bfloat16"` if the device computes bfloat16 fast (GPUs since Ampere, TPUs), else `"float32"`.

    Call `keras.config.set_dtype_policy(best_precision())` before building the network.
    """
    if keras.backend.backend() == "jax":
        import jax

        device = jax.devices()[0]
        if device.platform == "tpu":
            return "mixed_bfloat16"
        capability = float(getattr(device, "compute_capability", 0) or 0) if device.platform == "gpu" else 0.0
        return "mixed_bfloat16" if capability >= 8 else "float32"
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    capabilities = [tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus]
    return "mixed_bfloat16" if capabilities and min(capabilities) >= (8, 0) else "float32"


def compiled_hlo(step: keras.Model, batch: Any) -> str:
    """Return the HLO of the training step of a compiled model, which proves that all of it compiles.

    Args:
        step: Compiled model, for example the result of `keras_residual.training.prepare`.
        batch: One training batch in the form that `fit` uses: `((images, index), labels)`.

    Raises:
        Exception: The compiler's error, if an operation of the step has no XLA kernel.
    """
    if keras.backend.backend() == "jax":
        import jax

        step.optimizer.build(step.trainable_variables)
        state = step._get_jax_state(
            trainable_variables=True, non_trainable_variables=True, optimizer_variables=True, metrics_variables=True
        )
        batch = jax.tree.map(np.asarray, batch)
        return jax.jit(step.train_step).lower(state, batch).compile().as_text() or ""
    import tensorflow as tf

    batch = tf.nest.map_structure(tf.convert_to_tensor, batch)
    step.optimizer.build(step.trainable_variables)
    compiled = tf.function(step.train_step, jit_compile=True)
    return compiled.experimental_get_compiler_ir(batch)(stage="optimized_hlo")
