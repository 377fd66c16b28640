"""State of a training between two steps: updated by callbacks, stored in checkpoints, restored on resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_residual.training.checkpoint import Snapshot

__all__ = ["NonFiniteError", "TrainingState"]


class NonFiniteError(ArithmeticError):
    """The loss or a weight is NaN or infinite. The weights are those of the last good state."""


class TrainingState:
    """The state of a training, shared by its callbacks.

    Args:
        model: The compiled step.
        variables: Function that returns all variables by name; they change with the phase of the training.
        steps: Steps per epoch.
        about: Settings that identify the training; saved with the state.
        folder: Checkpoint directory, for messages; `None` if nothing is saved.

    Attributes:
        step: Number of completed steps.
        history: Values by name, one for each completed epoch.
        best: Memory of early stopping and the plateau schedule.
        best_weights: Weights of the best epoch, if they are kept.
        stopped: Whether the training ended early.
        good: The last state known to be finite.
        resumed: The checkpoint that training resumed from, until its first epoch begins.
    """

    def __init__(
        self,
        model: Any,
        variables: Callable[[], dict[str, Any]],
        steps: int,
        about: dict[str, Any],
        folder: Path | None = None,
    ) -> None:
        self.model, self.variables, self.steps, self.about, self.folder = model, variables, steps, about, folder
        self.step = 0
        self.history: dict[str, list[float]] = {}
        self.best: dict[str, Any] = {"value": None, "epoch": None, "waited": 0, "plateau": None, "flat": 0}
        self.best["step"] = None  # of `best_weights`
        self.best_weights: Snapshot | None = None
        self.stopped = False
        self.good: Snapshot | None = None
        self.resumed: Snapshot | None = None

    @property
    def between_epochs(self) -> bool:
        """Return True if the last completed step ends an epoch."""
        return self.step % self.steps == 0

    def record(self) -> dict[str, Any]:
        """Return the part of a checkpoint that is not variables."""
        return {
            "step": self.step,
            "history": self.history,
            "best": self.best,
            "stopped": self.stopped,
            "about": self.about,
        }

    def resume(self, snapshot: Snapshot, keep_best: bool) -> None:
        """Adopt a checkpoint's state; variables get their values once the phase's optimiser exists.

        Args:
            snapshot: The checkpoint.
            keep_best: Whether the training ends with the best weights; if not, those of the checkpoint are ignored.
        """
        state = snapshot.state
        self.step, self.history, self.best = state["step"], state["history"], state["best"]
        self.stopped, self.good, self.resumed = state["stopped"], snapshot, snapshot
        self.best_weights = snapshot.best if keep_best else None
        if self.about["recipe"]["epochs"] > state["about"]["recipe"]["epochs"]:  # the user has requested more
            self.stopped, self.best["waited"] = False, 0

    def take(self) -> Snapshot:
        """Copy the state and remember it as the last good one.

        Raises:
            NonFiniteError: If a weight is NaN or infinite.
        """
        sync(self.model)
        taken = Snapshot.take(self.variables(), self.record())
        if not taken.finite():
            self.fail(f"a weight is not finite after step {self.step:,}")
        self.good = taken
        return taken

    def put(self, snapshot: Snapshot) -> None:
        """Assign a snapshot's values to all variables except the metrics, which each epoch resets first."""
        saved = {name: array for name, array in snapshot.arrays.items() if not _metric(name)}
        Snapshot(saved, {}).put({name: v for name, v in self.variables().items() if not _metric(name)})

    def put_metrics(self, snapshot: Snapshot) -> None:
        """Assign a snapshot's values to the metrics: in the middle of an epoch they continue."""
        for name, variable in self.variables().items():
            if _metric(name):
                variable.assign(snapshot.arrays[name])

    def fail(self, what: str) -> None:
        """Restore the last good state and raise a NonFiniteError."""
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
        """Describe which weights a failed training leaves behind."""
        step = 0 if self.good is None else self.good.state["step"]
        if not step:
            return "No weights had been trained yet."
        saved = f", and are saved in {str(self.folder)!r}" if self.folder is not None else ""
        return f"The weights of step {step:,} are kept{saved}."


def _metric(name: str) -> bool:
    return name.startswith("metrics/")


def sync(model: Any) -> None:
    """Update the variables from the state of the step; on JAX they lag behind it."""
    if getattr(model, "_jax_state", None) is not None:
        model.jax_state_sync()
