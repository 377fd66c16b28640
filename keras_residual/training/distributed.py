"""Train on several devices: GPUs of one machine with TensorFlow's mirrored strategy, machines with Keras on JAX."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_residual.graph import rebuilt
from keras_residual.training.devices import gpu_names, jax_devices, replica_count

_STRATEGIES: dict[tuple[str, ...], Any] = {}
_LONGEST = 1 << 14  # bytes of a message from one process to the others
_GONE = re.compile(r"gloo|nccl|socket|connection|peer|heartbeat|coordination|unavailable|deadline", re.IGNORECASE)

__all__ = ["PeerError", "agree", "common", "explained", "first", "mirrored", "own", "part"]
__all__ += ["processes", "shared", "single", "start", "whole"]


class PeerError(ConnectionError):
    """Another process of the training has ended, so this one cannot continue."""


def mirrored(devices: list[str] | None = None) -> Any:
    """Return a strategy for several devices of this machine. Build the network in its scope and call `fit`:

        with mirrored().scope():
            model = kr.ResNet18(classes=10)
        kr.fit(model, ...)

    Each batch is divided among the devices; batch statistics are those of the whole batch.

    Raises:
        ValueError: If Keras does not run on TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"`mirrored` requires Keras on TensorFlow; got KERAS_BACKEND={keras.backend.backend()}. On JAX, call "
            "keras_residual.training.start() instead; all devices then share each batch."
        )
    import tensorflow as tf

    made = tf.distribute.MirroredStrategy(devices)
    # Reuse one strategy per set of devices: collectives of a second one would get the same group keys, and fail.
    return _STRATEGIES.setdefault(made.extended.worker_devices, made)


def start(coordinator: str | None = None, number: int = 1, process_id: int = 0, patience: int = 30) -> None:
    """Connect this process to the others of a training on several machines; call it before any other use of JAX.

    Run the same program on each machine. Each trains on its part of every batch, and all have the same weights.

    Args:
        coordinator: `"HOST:PORT"` of process 0; `None` for a single process, which uses all its devices.
        number: Number of processes.
        process_id: Number of this process, 0 to `number - 1`.
        patience: Seconds without a heartbeat after which a process counts as dead.

    Raises:
        ValueError: If Keras does not run on JAX, with the reason, or the numbers do not fit.
    """
    if keras.backend.backend() != "jax":
        raise ValueError(
            "Training with several processes requires Keras on JAX; got "
            f"KERAS_BACKEND={keras.backend.backend()}. On TensorFlow keras.distribution silently trains on one device, "
            "and MultiWorkerMirroredStrategy fails in Keras 3 (keras #20585). Set KERAS_BACKEND=jax; the trained "
            "weights also load on TensorFlow."
        )
    if not 0 <= process_id < number or (number > 1 and not coordinator):
        raise ValueError(
            f"process_id must be from 0 to {number - 1}, and several processes need coordinator='HOST:PORT'; got "
            f"process_id={process_id} of {number}, coordinator={coordinator!r}."
        )
    import jax

    if number > 1:
        with contextlib.suppress(AttributeError):  # GPUs use other collectives
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            coordinator,
            number,
            process_id,
            heartbeat_timeout_seconds=patience,
            shutdown_timeout_seconds=3600,  # the others wait while process 0 writes its report
        )
    # each process already reads only its part of a batch
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))


def processes() -> int:
    """Return the number of processes."""
    if keras.backend.backend() != "jax" or keras.distribution.distribution() is None:
        return 1
    import jax

    return jax.process_count()


def part() -> tuple[int, int]:
    """Return the index of the part of each batch that this process reads, and the number of parts."""
    count = processes()
    if count == 1:
        return (0, 1)
    import jax

    return (jax.process_index(), count)


def own(directory: Path) -> Path:
    """Return the checkpoint directory of this process; they are separate, for machines without a shared disk."""
    index, count = part()
    return directory if count == 1 else directory / f"process-{index}"


def whole(batches: Any) -> Any:
    """Return evaluation batches `(images, labels)` that divide among the devices of this process, as JAX requires.

    The remainder of the last batch is dropped: fewer images than there are devices.
    """
    if jax_devices() == processes():
        return batches
    import jax

    count = jax.local_device_count()

    import tensorflow as tf

    def cut(x: Any, y: Any) -> Any:
        most = tf.shape(y)[0] // count * count
        return x[:most], y[:most]

    return batches.map(cut).filter(lambda x, y: tf.shape(y)[0] > 0)


def first(action: Callable[[], str]) -> str:
    """Broadcast the result of process 0 to all processes; if it raises an error, all raise it."""
    if processes() == 1:
        return action()
    from jax.experimental import multihost_utils

    answer = {"value": "", "error": ""}
    if part()[0] == 0:
        try:
            answer["value"] = action()
        except (ValueError, OSError) as error:
            answer["error"] = str(error)[:2000]
    text = np.frombuffer(json.dumps(answer).encode()[:_LONGEST].ljust(_LONGEST), "uint8")
    told = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes().decode())
    if told["error"]:
        raise ValueError(told["error"])
    return told["value"]


def agree(about: Mapping[str, Any]) -> None:
    """Check that all processes train the same; otherwise they would deadlock or diverge silently.

    Raises:
        ValueError: If not; the error names what differs.
    """
    if processes() == 1:
        return
    from jax.experimental import multihost_utils

    names = sorted(about)
    texts = [json.dumps(about[name], sort_keys=True).encode() for name in names]
    mine = np.stack([np.frombuffer(hashlib.sha256(text).digest()[:8], "uint8") for text in texts])
    everyone = np.asarray(multihost_utils.process_allgather(mine))
    different = [name for i, name in enumerate(names) if (everyone[:, i] != everyone[0, i]).any()]
    if different:
        raise ValueError(
            f"All processes must have the same images and settings; they differ in {', '.join(different)}. Run the "
            "same command on every machine, with the same images."
        )


def shared(devices: Sequence[str] | None = None) -> tuple[Any, int]:
    """Return a context manager in which to build a network whose batches all devices share, and their number.

    Args:
        devices: Names of devices of this machine, for TensorFlow; all GPUs if `None`.
    """
    if keras.backend.backend() == "jax":
        if processes() == 1 and len(gpu_names()) > 1:
            start()
        return contextlib.nullcontext(), jax_devices()
    import tensorflow as tf

    names = [device.name for device in tf.config.list_logical_devices("GPU")] if devices is None else list(devices)
    if len(names) < 2:
        return contextlib.nullcontext(), 1
    return mirrored(names).scope(), len(names)


def alone() -> None:
    """Make this process compute on one device from now on, without the others."""
    if keras.backend.backend() == "jax":
        keras.distribution.set_distribution(None)


def single(network: keras.Model) -> keras.Model:
    """Return the trained network as a network on one device."""
    if jax_devices() == replica_count(network) == 1:
        return network
    alone()
    return rebuilt(network)


def common(steps: list[int]) -> set[int] | None:
    """Return the steps of which every process has a checkpoint; `None` for a single process."""
    if processes() == 1:
        return None
    from jax.experimental import multihost_utils

    mine = np.array(([*steps, -1, -1, -1])[:3], "int32")
    everyone = np.asarray(multihost_utils.process_allgather(mine))
    return set.intersection(*(set(row.tolist()) for row in everyone)) - {-1}


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Explain errors that are caused by the end of another process."""
    if processes() == 1:
        yield
        return
    try:
        yield
    except Exception as error:
        words = str(error)
        if not _GONE.search(words):
            raise
        raise PeerError(
            "Another process of this training has ended, so this one ends too. Start all of them again with the same "
            f"command: they go on from their last common checkpoint. ({words.splitlines()[0][:200]})"
        ) from error
