"""What happens between the steps of `keras.Model.fit`: checks, checkpoints, early stopping, a bar."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import keras

from keras_residual.io import announce
from keras_residual.training.checkpoint import Checkpoints, Snapshot
from keras_residual.training.recipes import Recipe

__all__ = ["Keeper", "NonFiniteError", "Progress", "signals"]

# A checkpoint costs training a copy of the weights: at the most this part of the time goes into it.
_SHARE = 0.02


class NonFiniteError(ArithmeticError):
    """The loss or a weight is NaN or infinite. The weights are those of the last good state."""


class Keeper(keras.callbacks.Callback):
    """Keeps a training's state: counts steps, watches the loss, saves, stops early.

    Args:
        variables: Gives all variables by name; they change with the phase of the training.
        steps: Steps of an epoch.
        recipe: For the plateau schedule.
        checkpoints: Where to save; `None` for nowhere.
        about: What the training is; saved with it.
        save_steps: Save after so many steps; `None` by time.
        patience: Epochs without improvement after which to stop; `None` for never.
        monitor: What improves: a name of the history; losses fall, others rise.
        keep_best: Whether the best epoch's weights are kept.
        best_of: Gives the variables of the network that is evaluated, by name.
    """

    def __init__(
        self,
        variables: Any,
        steps: int,
        recipe: Recipe,
        checkpoints: Checkpoints | None,
        about: dict[str, Any],
        save_steps: int | None,
        patience: int | None,
        monitor: str,
        keep_best: bool,
        best_of: Any,
        by_time: bool = True,
    ) -> None:
        super().__init__()
        self.variables, self.steps, self.recipe, self.checkpoints = variables, steps, recipe, checkpoints
        self.about, self.save_steps, self.patience, self.monitor = about, save_steps, patience, monitor
        self.keep_best, self.best_of, self.by_time = keep_best, best_of, by_time
        self.step = 0
        self.history: dict[str, list[float]] = {}
        self.best: dict[str, Any] = {"value": None, "epoch": None, "waited": 0, "plateau": None, "flat": 0}
        self.best["step"] = None  # of the weights that are kept
        self.best_weights: Snapshot | None = None
        self.stopped = False
        self.asked: int | None = None  # the signal that asked to stop
        self.good: Snapshot | None = None
        self.begun = 0
        self._metrics: Snapshot | None = None
        self._watched: tuple[int, Any] | None = None
        self._saved = time.monotonic()
        self._cost = 0.0
        self.save_seconds: list[float] = []  # that training waited for

    # ------------------------------------------------------------------------------------------------------ state

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides variables."""
        return {
            "step": self.step,
            "history": self.history,
            "best": self.best,
            "stopped": self.stopped,
            "about": self.about,
        }

    def resume(self, snapshot: Snapshot) -> None:
        """Adopt a checkpoint's state; variables get their values once the phase's optimiser exists."""
        state = snapshot.state
        self.step, self.history, self.best = state["step"], state["history"], state["best"]
        self.stopped, self.good, self._metrics = state["stopped"], snapshot, snapshot
        if self.recipe.epochs > state["about"]["recipe"]["epochs"]:  # more were asked for
            self.stopped, self.best["waited"] = False, 0
        self.best_weights = snapshot.best if self.keep_best else None
        if self.checkpoints is not None:  # what a damaged one, or a kill, left of a future that will be another
            self.checkpoints.clear(after=self.step)

    def put(self, snapshot: Snapshot) -> None:
        """Gives all variables a snapshot's values, those of the metrics excepted: an epoch begins by a reset."""
        variables = self.variables()
        saved = {name: array for name, array in snapshot.arrays.items() if not name.startswith("metrics/")}
        Snapshot(saved, {}).put({n: v for n, v in variables.items() if not n.startswith("metrics/")})

    def snapshot(self) -> Snapshot:
        """The state now, and the last good one from here on.

        Raises:
            NonFiniteError: If a weight is NaN or infinite.
        """
        sync(self.model)
        taken = Snapshot.take(self.variables(), self.state())
        if not taken.finite():
            self._fail(f"a weight is not finite after step {self.step:,}")
        self.good = taken
        return taken

    def save(self) -> None:
        """Writes a checkpoint; training waits for the copy only."""
        start = time.monotonic()
        taken = self.snapshot()
        if self.checkpoints is not None:
            self.checkpoints.save(taken)
        self._saved = time.monotonic()
        self._cost = self._saved - start
        self.save_seconds.append(self._cost)

    def _due(self, before: int) -> bool:
        if self.checkpoints is None:
            return False
        if self.save_steps is not None:
            return before // self.save_steps != self.step // self.save_steps
        age = time.monotonic() - self._saved
        return self.by_time and age > max(60.0, self._cost / _SHARE) and not self.checkpoints.busy()

    # -------------------------------------------------------------------------------------------------- callbacks

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        # Keras has reset the metrics; in the middle of an epoch they go on.
        self.begun = self.step
        if self.step % self.steps and self._metrics is not None:
            for name, variable in self.variables().items():
                if name.startswith("metrics/"):
                    variable.assign(self._metrics.arrays[name])
        self._metrics = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        before, self.step = self.step, self.begun + batch + 1
        self._watch(self.step, (logs or {}).get("loss"))
        if self.step % self.steps == 0:
            return  # the epoch's checkpoint follows its validation; from one before, its history would be missing
        if self.asked is not None:
            self._check()
            self.save()
            self.model.stop_training = True
            raise Interrupted(self.asked)
        if self._due(before):
            self._check()
            self.save()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._check()
        logs = {key: float(value) for key, value in (logs or {}).items()}
        logs["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        for key, value in logs.items():
            self.history.setdefault(key, []).append(value)
        self.step = (epoch + 1) * self.steps
        value = logs.get(self.monitor)
        if value is not None and (self.keep_best or self.patience is not None):
            self._compare(epoch, value, logs.get("val_loss", 0.0))
        if self.recipe.schedule == "plateau":
            self._plateau(logs.get("val_loss", logs["loss"]))
        if self.stopped:
            self.model.stop_training = True
        self.save()
        if self.asked is not None:
            raise Interrupted(self.asked)

    # -------------------------------------------------------------------------------------------------- decisions

    def _compare(self, epoch: int, value: float, loss: float) -> None:
        # Few validation images give few different accuracies: of equal ones the lower loss is the better.
        rank = [-value if "loss" in self.monitor else value, -loss]
        best = self.best["value"]
        if math.isfinite(value) and (best is None or rank > best):
            self.best.update(value=rank, epoch=epoch, waited=0)
            if self.keep_best:
                sync(self.model)
                self.best_weights = Snapshot.take(self.best_of(), {"step": self.step})
                self.best["step"] = self.step
                if self.checkpoints is not None:
                    self.checkpoints.save(self.best_weights, "best")
        else:
            self.best["waited"] += 1
        if self.patience is not None and self.best["waited"] >= self.patience:
            self.stopped = True

    def _plateau(self, loss: float) -> None:
        best = self.best["plateau"]
        if best is None or loss < best:
            self.best.update(plateau=loss, flat=0)
            return
        self.best["flat"] += 1
        if self.best["flat"] >= self.recipe.patience:
            factor = self.model.optimizer.rate_factor
            factor.assign(factor * self.recipe.factor)
            self.best["flat"] = 0

    def _watch(self, step: int, loss: Any) -> None:
        """Looks at the loss before this one: it is there already, so the device need not be waited for."""
        earlier, self._watched = self._watched, (step, loss)
        if earlier is not None:
            self._judge(*earlier)

    def _check(self) -> None:
        watched, self._watched = self._watched, None
        if watched is not None:
            self._judge(*watched)

    def _judge(self, step: int, loss: Any) -> None:
        if loss is not None and not math.isfinite(value := float(keras.ops.convert_to_numpy(loss))):
            self._fail(f"the loss is {value} at step {step:,}")

    def _fail(self, what: str) -> None:
        """Restore the last good state and raise."""
        epoch, within = divmod(max(self.step - 1, 0), self.steps)
        if self.good is not None:
            sync(self.model)
            self.put(self.good)
        raise NonFiniteError(
            f"Training stopped: {what} (epoch {epoch + 1}, step {within + 1} of {self.steps}). {self.kept()} The usual "
            "causes are a learning rate that is too high, no warm-up, or half precision: try a tenth of the rate, "
            "clip_norm=1.0, or float32."
        )

    def kept(self) -> str:
        """Say which weights a failed training leaves behind."""
        step = 0 if self.good is None else self.good.state["step"]
        if not step:
            return "No weights had been trained yet."
        saved = f", and are saved in {str(self.checkpoints.folder)!r}" if self.checkpoints is not None else ""
        return f"The weights of step {step:,} are kept{saved}."


class Interrupted(BaseException):
    """Asked to stop by a signal; all is saved. No `Exception`, so that nothing on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def sync(model: Any) -> None:
    """On JAX the variables lag behind the step's own state."""
    if getattr(model, "_jax_state", None) is not None:
        model.jax_state_sync()


@contextlib.contextmanager
def signals(keeper: Keeper) -> Iterator[None]:
    """End the training after the current step, with a checkpoint, on SIGTERM, Ctrl-C and a closed terminal."""
    if threading.current_thread() is not threading.main_thread() or keeper.checkpoints is None:
        yield
        return

    def ask(number: int, frame: Any) -> None:
        if keeper.asked is not None:  # the second time at once
            raise KeyboardInterrupt
        keeper.asked = number

    wanted = [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup` ignores it
        wanted.append(signal.SIGHUP)
    before = {number: signal.signal(number, ask) for number in wanted}
    try:
        yield
    except Interrupted as stop:
        assert keeper.checkpoints is not None
        keeper.checkpoints.raise_errors(wait=True)
        print(f"stopped at step {keeper.step:,}, saved in {keeper.checkpoints.folder}", file=sys.stderr, flush=True)
        if stop.number == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + stop.number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Progress(keras.callbacks.Callback):
    """A live bar on a terminal, a line for each tenth of the way elsewhere; compilation told apart."""

    def __init__(self, epochs: int, steps: int, batch: int, keeper: Keeper) -> None:
        super().__init__()
        self.epochs, self.steps, self.batch, self.keeper = epochs, steps, batch, keeper
        self.compile_seconds: float | None = None
        self.images = 0
        self.seconds = 0.0
        self.bar: Any = None
        if sys.stdout.isatty():
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = BarColumn(bar_width=None), TextColumn("{task.fields[words]}"), TimeRemainingColumn(compact=True)
            self.bar = Bar(*columns, expand=True)

    @property
    def rate(self) -> float:
        """Training images a second of the present phase, without compilation and validation."""
        return self.images / self.seconds if self.seconds else 0.0

    def start(self) -> None:
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task("training", total=self.epochs * self.steps, words="compiling")

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()

    def on_train_begin(self, logs: Any = None) -> None:
        self.images, self.seconds, self.fresh = 0, 0.0, True  # another phase has another speed, and compiles anew

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch, self.clock = epoch, time.perf_counter()
        self.begun = time.perf_counter()
        self.seen = self.keeper.step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        now = time.perf_counter()
        if self.fresh:  # the first call compiles
            self.compile_seconds, self.fresh = (self.compile_seconds or 0.0) + now - self.clock, False
        else:
            self.seconds += now - self.clock
            self.images += self.batch * (self.keeper.step - self.seen)
        self.clock, self.seen = now, self.keeper.step
        if self.bar is not None:
            words = f"{self.epoch + 1}/{self.epochs}  {self.rate:,.0f} images/s"
            self.bar.update(self.task, completed=self.keeper.step, words=words)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not ((epoch + 1) % max(1, self.epochs // 10) == 0 or epoch + 1 == self.epochs or self.keeper.stopped):
            return
        logs = logs or {}
        words = f"epoch {epoch + 1:>3}/{self.epochs}  loss {logs['loss']:.4f}  accuracy {logs['accuracy']:.2%}"
        if "val_accuracy" in logs:
            words += f"  validation {logs['val_loss']:.4f} {logs['val_accuracy']:.2%}"
        if "val_macro_f1" in logs:
            words += f" F1 {logs['val_macro_f1']:.3f}"
        words += f"  {self.rate:,.0f} images/s"
        left = (time.perf_counter() - self.begun) * (self.epochs - epoch - 1)
        if left:
            words += f"  {left:,.0f} s left"
        if self.bar is not None:
            self.bar.console.print(words)
        else:
            announce(words)
