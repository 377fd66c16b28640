"""List devices, and count those that share a batch."""

from __future__ import annotations

import contextlib
from typing import Any

import keras

__all__ = ["gpu_names", "jax_devices", "replica_count", "sharing", "sharing_gradients", "strategy_scope"]


def gpu_names() -> list[str]:
    """Return the names of this process's accelerators."""
    if keras.backend.backend() == "jax":
        import jax

        return [device.device_kind for device in jax.local_devices() if device.platform != "cpu"]
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus]


def jax_devices() -> int:
    """Return the number of devices, of all processes, that share a batch on JAX."""
    if keras.backend.backend() != "jax" or keras.distribution.distribution() is None:
        return 1
    import jax

    return jax.device_count()


def replica_count(model: keras.Model) -> int:
    """Return how many of this process's devices share a batch: those of the strategy that the model was built under."""
    strategy = _strategy(model)
    return 1 if strategy is None else int(strategy.num_replicas_in_sync)


def strategy_scope(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    """Return the scope of the strategy that the model was built under, if any."""
    strategy = _strategy(model)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def _strategy(model: keras.Model) -> Any:
    if keras.backend.backend() != "tensorflow" or not model.variables:
        return None
    return getattr(model.variables[0].value, "_distribute_strategy", None)


def sharing() -> int:
    """Return the number of replicas of TensorFlow's current strategy, whose gradients Keras sums."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def sharing_gradients() -> int:
    """Return `sharing()` inside a replica, where gradients are not summed yet, otherwise 1."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return 1 if tf.distribute.in_cross_replica_context() else sharing()
