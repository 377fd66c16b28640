"""Write the history as event files for TensorBoard, on every backend."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

__all__ = ["Board"]


class Board(keras.callbacks.Callback):
    """Write `epoch_loss`, `epoch_accuracy` ... like `keras.callbacks.TensorBoard`, which works only on TensorFlow and
    requires the package `tensorboard` for scalars.

    A resumed run rewrites the logs from its history, so that no epoch appears twice and epochs after the last
    checkpoint disappear.

    Args:
        directory: Directory for the folders `train` and `validation`; earlier logs in them are removed.
        history: Values by name and epoch, of all epochs so far; it grows during training.
    """

    def __init__(self, directory: Path, history: Mapping[str, Sequence[float]]) -> None:
        super().__init__()
        self.directory, self.history = directory, history
        self.writers: dict[str, Any] = {}
        self.failed = False

    def on_train_begin(self, logs: Any = None) -> None:
        if not self.writers:  # otherwise another phase of the same training
            self._attempt(self._begin)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._attempt(lambda: self._epoch(epoch))

    def _attempt(self, write: Callable[[], None]) -> None:
        """Stop logging after the first failure, with a warning, so that it does not end the training."""
        if self.failed:
            return
        try:
            write()
            for writer in self.writers.values():
                writer.flush()
        except Exception as error:
            self.failed = True
            reason = " ".join(str(error).split())[:300]
            warnings.warn(f"TensorBoard's logs could not be written ({reason}). Training continues.", stacklevel=2)

    def _begin(self) -> None:
        for part in ("train", "validation"):
            for path in (self.directory / part).glob("events.out.tfevents.*"):
                path.unlink()
        for name, values in self.history.items():
            for epoch, value in enumerate(values):
                self._write(name, epoch, value)

    def _epoch(self, epoch: int) -> None:
        for name, values in self.history.items():  # `Count` has written this epoch by now
            if epoch < len(values):
                self._write(name, epoch, values[epoch])

    def _write(self, name: str, epoch: int, value: float) -> None:
        part = "validation" if name.startswith("val_") else "train"
        with tf.device("CPU:0"):
            if part not in self.writers:
                self.writers[part] = tf.summary.create_file_writer(str(self.directory / part))
            with self.writers[part].as_default():
                tag = f"epoch_{name.removeprefix('val_')}"
                # what tf.summary.scalar writes
                metadata = tf.compat.v1.SummaryMetadata(data_class=1)
                metadata.plugin_data.plugin_name = "scalars"
                tf.summary.write(tag, tf.constant(value, tf.float32), step=epoch, metadata=metadata)
