"""Callbacks between the steps of `keras.Model.fit`, one for each concern, all over one `TrainingState`.

Keras calls them in the order of the list, and each relies on those before it:

1. `Count` counts steps and writes the history, which all others read.
2. `Watch` looks at losses, so that nothing below chooses or saves a state whose loss is not finite.
3. `Best` keeps the best epoch's weights and stops early; the checkpoint of that epoch refers to these weights, and
   they are written before it.
4. `Plateau` lowers the learning rate, which the checkpoint holds too.
5. `Save` copies the state that the earlier callbacks have updated. It may raise `Interrupted`, so it is the last of
   ours; a progress bar, the caller's callbacks and TensorBoard's logs follow.

`between_steps` is the one place that makes this list.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_residual.training.checkpoint import Checkpoints, Snapshot
from keras_residual.training.recipes import Recipe
from keras_residual.training.settings import Selection
from keras_residual.training.state import TrainingState, sync

__all__ = ["Best", "Count", "Plateau", "Save", "Watch", "between_steps", "signals"]

# A checkpoint costs training a copy of the weights: at the most this part of the time goes into it.
_SHARE = 0.02


def between_steps(
    state: TrainingState,
    recipe: Recipe,
    selection: Selection,
    evaluated: Callable[[], dict[str, Any]],
    store: Checkpoints | None,
    save_steps: int | None,
    by_time: bool,
) -> tuple[list[keras.callbacks.Callback], Save]:
    """Return a training's own callbacks in their order, and the last of them once more.

    Args:
        state: What they share.
        recipe: For the plateau schedule.
        selection: Which epoch's weights to keep, and when to stop early.
        evaluated: Returns the variables of the network that is evaluated, by name.
        store: Where to save; `None` for nowhere.
        save_steps: Save after so many steps; `None` for by time.
        by_time: Whether time may decide, which processes that train together would not agree on.
    """
    watch = Watch(state)
    save = Save(state, watch, store, save_steps, by_time)
    made: list[keras.callbacks.Callback] = [Count(state), watch]
    if selection.keep == "best" or selection.patience is not None:
        made.append(Best(state, selection, evaluated, store))
    if recipe.schedule == "plateau":
        made.append(Plateau(state, recipe))
    return [*made, save], save


class Count(keras.callbacks.Callback):
    """Counts steps, and writes each epoch's values into the history."""

    def __init__(self, state: TrainingState) -> None:
        super().__init__()
        self.state = state
        self.begun = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.begun = self.state.step
        resumed, self.state.resumed = self.state.resumed, None
        if resumed is not None and not self.state.between_epochs:  # Keras has just reset the metrics
            self.state.put_metrics(resumed)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.state.step = self.begun + batch + 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.state.step = (epoch + 1) * self.state.steps
        values = {key: float(value) for key, value in (logs or {}).items()}
        values["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        for key, value in values.items():
            self.state.history.setdefault(key, []).append(value)


class Watch(keras.callbacks.Callback):
    """Stops at a loss that is NaN or infinite, and restores the last good weights.

    After each step it looks at the loss of the step before: that one is there already, so the device need not be
    waited for. `check` looks at the newest, before anything is made of the state.
    """

    def __init__(self, state: TrainingState) -> None:
        super().__init__()
        self.state = state
        self._unseen: tuple[int, Any] | None = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        earlier, self._unseen = self._unseen, (self.state.step, (logs or {}).get("loss"))
        self._judge(earlier)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.check()

    def check(self) -> None:
        """Check the newest loss.

        Raises:
            NonFiniteError: If it is NaN or infinite.
        """
        newest, self._unseen = self._unseen, None
        self._judge(newest)

    def _judge(self, seen: tuple[int, Any] | None) -> None:
        step, loss = seen or (0, None)
        if loss is not None and not math.isfinite(value := float(keras.ops.convert_to_numpy(loss))):
            self.state.fail(f"the loss is {value} at step {step:,}")


class Best(keras.callbacks.Callback):
    """Keep the weights of the best epoch, and stop after `patience` epochs in a row without improvement."""

    def __init__(
        self,
        state: TrainingState,
        selection: Selection,
        evaluated: Callable[[], dict[str, Any]],
        store: Checkpoints | None,
    ) -> None:
        super().__init__()
        self.state, self.selection, self.evaluated, self.store = state, selection, evaluated, store

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        value = (logs or {}).get(self.selection.monitor)
        if value is not None:
            self._compare(epoch, float(value), float((logs or {}).get("val_loss", 0.0)))
        if self.state.stopped:
            self.model.stop_training = True

    def _compare(self, epoch: int, value: float, loss: float) -> None:
        # With few validation images, equal accuracies are common: prefer the lower loss.
        rank = [-value if "loss" in self.selection.monitor else value, -loss]
        best = self.state.best
        if math.isfinite(value) and (best["value"] is None or rank > best["value"]):
            best.update(value=rank, epoch=epoch, waited=0)
            if self.selection.keep == "best":
                self._keep()
        else:
            best["waited"] += 1
        if self.selection.patience is not None and best["waited"] >= self.selection.patience:
            self.state.stopped = True

    def _keep(self) -> None:
        sync(self.model)
        self.state.best["step"] = self.state.step
        self.state.best_weights = Snapshot.take(self.evaluated(), {"step": self.state.step})
        if self.store is not None:
            self.store.save(self.state.best_weights, "best")


class Plateau(keras.callbacks.Callback):
    """Multiply the learning rate by the recipe's `factor` after `patience` epochs without a lower loss."""

    def __init__(self, state: TrainingState, recipe: Recipe) -> None:
        super().__init__()
        self.state, self.recipe = state, recipe

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs, best = logs or {}, self.state.best
        loss = float(logs.get("val_loss", logs["loss"]))
        if best["plateau"] is None or loss < best["plateau"]:
            best.update(plateau=loss, flat=0)
            return
        best["flat"] += 1
        if best["flat"] >= self.recipe.patience:
            factor = self.model.optimizer.rate_factor
            factor.assign(factor * self.recipe.factor)
            best["flat"] = 0


class Save(keras.callbacks.Callback):
    """Write checkpoints: after each epoch, in between by steps or time, and when a signal requests a stop."""

    def __init__(
        self, state: TrainingState, watch: Watch, store: Checkpoints | None, save_steps: int | None, by_time: bool
    ) -> None:
        super().__init__()
        self.state, self.watch, self.store = state, watch, store
        self.save_steps, self.by_time = save_steps, by_time
        self.signal: int | None = None  # the signal that requested a stop
        self.seconds: list[float] = []  # duration of each save, while training waits
        self._saved = time.monotonic()
        self._before = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._before = self.state.step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        before, self._before = self._before, self.state.step
        if self.state.between_epochs:
            return  # the epoch's checkpoint follows its validation; an earlier one would lack its history
        asked = self.signal is not None  # read once: a later signal is handled after the next step
        if asked or self._due(before):
            self.watch.check()
            self._save()
        if asked:
            self._stop()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._save()
        self._stop()

    def _due(self, before: int) -> bool:
        if self.store is None:
            return False
        if self.save_steps is not None:
            return before // self.save_steps != self.state.step // self.save_steps
        cost = self.seconds[-1] if self.seconds else 0.0
        age = time.monotonic() - self._saved
        return self.by_time and age > max(60.0, cost / _SHARE) and not self.store.busy()

    def _save(self) -> None:
        """Save a checkpoint; training waits only for the copy."""
        start = time.monotonic()
        taken = self.state.take()
        if self.store is not None:
            self.store.save(taken)
        self._saved = time.monotonic()
        self.seconds.append(self._saved - start)

    def _stop(self) -> None:
        if self.signal is not None:
            self.model.stop_training = True
            raise Interrupted(self.signal)


class Interrupted(BaseException):
    """A signal asked to stop, and the state is saved. Not an `Exception`, so that no handler treats it as a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def signals(save: Save) -> Iterator[None]:
    """End the training after the current step, with a checkpoint, on SIGTERM, Ctrl-C and a closed terminal."""
    store = save.store
    if threading.current_thread() is not threading.main_thread() or store is None:
        yield
        return

    def ask(number: int, frame: Any) -> None:
        if save.signal is not None:  # a second signal stops immediately
            raise KeyboardInterrupt
        save.signal = number

    wanted = [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup` ignores it
        wanted.append(signal.SIGHUP)
    before = {number: signal.signal(number, ask) for number in wanted}
    try:
        yield
    except Interrupted as stop:
        store.raise_errors(wait=True)
        print(f"stopped at step {save.state.step:,}, saved in {store.folder}", file=sys.stderr, flush=True)
        if stop.number == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + stop.number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
