"""Many devices: the GPUs of one machine by TensorFlow's mirrored strategy, several machines by Keras on JAX."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

__all__ = ["common", "explained", "mirrored", "own", "part", "processes", "start"]


def mirrored(devices: list[str] | None = None) -> Any:
    """A strategy for several devices of this machine. Build the network in its scope; `fit` does the rest:

        with mirrored().scope():
            model = kr.ResNet18(classes=10)
        kr.fit(model, ...)

    Each batch is divided among the devices, and batch statistics are those of the whole.

    Raises:
        ValueError: If Keras does not run on TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"Mirrored devices are TensorFlow's. Received: KERAS_BACKEND={keras.backend.backend()}. On JAX all devices "
            "share the work after keras_residual.training.start()."
        )
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(devices)


def start(coordinator: str | None = None, number: int = 1, process_id: int = 0, patience: int = 30) -> None:
    """Joins this process with the others of a training on several machines; called before anything else of JAX.

    The same program runs on each machine. Each trains on its part of each batch; all have the same weights.

    Args:
        coordinator: `"HOST:PORT"` of the process number 0; `None` if this process is alone, with all its devices.
        number: How many processes there are.
        process_id: Which one this is, 0 to `number - 1`.
        patience: Seconds without a sign of life after which a process counts as dead.

    Raises:
        ValueError: If Keras does not run on JAX, with the reason, or the numbers do not fit.
    """
    if keras.backend.backend() != "jax":
        raise ValueError(
            "Several processes train together by Keras on JAX. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}. On TensorFlow keras.distribution silently trains on one device, "
            "and MultiWorkerMirroredStrategy fails in Keras 3 (keras #20585). Set KERAS_BACKEND=jax; what is trained "
            "there loads on TensorFlow."
        )
    if not 0 <= process_id < number or (number > 1 and not coordinator):
        raise ValueError(
            f"Processes are numbered from 0, and meet at coordinator='HOST:PORT'. Received: process_id={process_id} of "
            f"{number}, coordinator={coordinator!r}."
        )
    import jax

    if number > 1:
        with contextlib.suppress(AttributeError):  # GPUs have collectives of their own
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator, number, process_id, heartbeat_timeout_seconds=patience)
    # each process reads its own part of a batch already
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))


def processes() -> int:
    """How many processes train together."""
    if keras.backend.backend() != "jax" or keras.distribution.distribution() is None:
        return 1
    import jax

    return jax.process_count()


def part() -> tuple[int, int]:
    """Which part of each batch this process reads, of how many."""
    count = processes()
    if count == 1:
        return (0, 1)
    import jax

    return (jax.process_index(), count)


def own(directory: Path) -> Path:
    """Where this process keeps its checkpoints: each has its own place, for machines without a common disk."""
    index, count = part()
    return directory if count == 1 else directory / f"process-{index}"


def common(steps: list[int]) -> set[int] | None:
    """The steps that every process has a checkpoint of; `None` if there is one process."""
    if processes() == 1:
        return None
    import numpy as np
    from jax.experimental import multihost_utils

    mine = np.array(([*steps, -1, -1, -1])[:3], "int32")
    everyone = np.asarray(multihost_utils.process_allgather(mine))
    return set.intersection(*(set(row.tolist()) for row in everyone)) - {-1}


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Says what it means when another process has gone."""
    if processes() == 1:
        yield
        return
    try:
        yield
    except Exception as error:
        words = str(error)
        if type(error).__name__ not in ("JaxRuntimeError", "XlaRuntimeError") and "Gloo" not in words:
            raise
        raise RuntimeError(
            "Another process of this training has ended, so this one ends too. Start all of them again with the same "
            f"command: they go on from their last common checkpoint. ({words.splitlines()[0][:200]})"
        ) from error
