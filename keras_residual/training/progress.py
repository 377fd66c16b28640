"""Measure the speed of a training, and show its progress as a bar or in lines."""

from __future__ import annotations

import sys
import time
from typing import Any

import keras

from keras_residual.io import announce
from keras_residual.training.state import TrainingState

__all__ = ["Progress", "Speed"]


class Speed(keras.callbacks.Callback):
    """Measure images per second, and separately the duration of compilation. A context manager, like `Progress`.

    Args:
        state: State whose step is updated before this callback is called.
        batch: Images per step.
    """

    def __init__(self, state: TrainingState, batch: int) -> None:
        super().__init__()
        self.state, self.batch = state, batch
        self.compile_seconds: float | None = None
        self.images = 0
        self.seconds = 0.0

    @property
    def rate(self) -> float:
        """Return training images per second of the current phase, without compilation and validation."""
        return self.images / self.seconds if self.seconds else 0.0

    def __enter__(self) -> Speed:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def on_train_begin(self, logs: Any = None) -> None:
        self.images, self.seconds, self.fresh = 0, 0.0, True  # each phase has its own speed and is compiled again

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch, self.seen = epoch, self.state.step
        self.begun = self.clock = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        now = time.perf_counter()
        if self.fresh:  # the first call compiles
            self.compile_seconds, self.fresh = (self.compile_seconds or 0.0) + now - self.clock, False
        else:
            self.seconds += now - self.clock
            self.images += self.batch * (self.state.step - self.seen)
        self.clock, self.seen = now, self.state.step


class Progress(Speed):
    """Show a live bar on a terminal, otherwise ten lines in total. A context manager: the bar is visible inside it.

    Args:
        state: State whose step is updated before this callback is called.
        batch: Images per step.
        epochs: Epochs of the whole training.
    """

    def __init__(self, state: TrainingState, batch: int, epochs: int) -> None:
        super().__init__(state, batch)
        self.epochs = epochs
        self.bar: Any = None
        if sys.stdout.isatty():
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = BarColumn(bar_width=None), TextColumn("{task.fields[words]}"), TimeRemainingColumn(compact=True)
            self.bar = Bar(*columns, expand=True)

    def __enter__(self) -> Speed:
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task("training", total=self.epochs * self.state.steps, words="compiling")
        return self

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.stop()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_end(batch, logs)
        if self.bar is not None:
            words = f"{self.epoch + 1}/{self.epochs}  {self.rate:,.0f} images/s"
            self.bar.update(self.task, completed=self.state.step, words=words)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if (epoch + 1) % max(1, self.epochs // 10) and epoch + 1 != self.epochs and not self.state.stopped:
            return
        words = self._line(epoch, logs or {})
        if self.bar is not None:
            self.bar.console.print(words)
        else:
            announce(words)

    def _line(self, epoch: int, logs: dict[str, Any]) -> str:
        words = f"epoch {epoch + 1:>3}/{self.epochs}  loss {logs['loss']:.4f}  accuracy {logs['accuracy']:.2%}"
        if "val_accuracy" in logs:
            words += f"  validation {logs['val_loss']:.4f} {logs['val_accuracy']:.2%}"
        if "val_macro_f1" in logs:
            words += f" F1 {logs['val_macro_f1']:.3f}"
        words += f"  {self.rate:,.0f} images/s"
        left = (time.perf_counter() - self.begun) * (self.epochs - epoch - 1)
        return f"{words}  {left:,.0f} s left" if left else words
