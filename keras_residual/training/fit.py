"""`fit`: a network, a recipe, images. `keras.Model.fit` does the training; here it is prepared, watched and resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_residual.io import announce
from keras_residual.training import distributed
from keras_residual.training.arrays import Arrays
from keras_residual.training.callbacks import Save, between_steps, signals
from keras_residual.training.checkpoint import Checkpoints, ResumeError, Snapshot, differences
from keras_residual.training.decide import Decision, decide
from keras_residual.training.inputs import readable
from keras_residual.training.progress import Progress, Speed
from keras_residual.training.recipes import Recipe
from keras_residual.training.run import Run
from keras_residual.training.settings import (
    Checkpointing,
    Execution,
    Selection,
    accepts_flat_settings,
    require_group,
)
from keras_residual.training.state import TrainingState
from keras_residual.training.step import Step
from keras_residual.training.tensorboard import Board

__all__ = ["History", "fit", "prepare"]


class History(dict[str, list[float]]):
    """Values by name and epoch, as `keras.callbacks.History.history`, and how the training went.

    Attributes:
        epochs: Epochs trained.
        best_epoch: The epoch, from 0 on, whose weights the network has; `None` for the last.
        decision: Where and how it ran.
        compile_seconds: Duration of the first call of each phase; `None` if nothing was left to train.
        images_per_second: Training images a second, without compilation and validation; of the last phase.
        save_seconds: What each checkpoint held up the training.
    """

    epochs: int
    best_epoch: int | None
    decision: Decision
    compile_seconds: float | None
    images_per_second: float
    save_seconds: list[float]

    @property
    def history(self) -> dict[str, list[float]]:
        """Itself, for code that expects Keras' object."""
        return self


@accepts_flat_settings
def fit(
    model: keras.Model,
    recipe: Recipe | str,
    train: Any,
    validation: Any = None,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    preprocess: Any = "auto",
    classes: int | None = None,
    class_weight: Sequence[float] | None = None,
    checkpoints: Checkpointing | str | os.PathLike[str] | None = None,
    selection: Selection = Selection(),  # noqa: B008
    execution: Execution = Execution(),  # noqa: B008
    callbacks: Sequence[keras.callbacks.Callback] = (),
    logs: Any = None,
    progress: bool = True,
) -> History:
    """Train a classifier in place.

    With `checkpoints` the training survives: killed at any moment and called again, it resumes from its last
    checkpoint, and with `Execution(deterministic=True)` the outcome is bit for bit that of an uninterrupted training.

    Args:
        model: Functional, with logits or a softmax layer at its end. It is trained in the precision it was built in.
        recipe: A `Recipe`, or the name of a published one.
        train: `keras_residual.data.Examples`, arrays `(x, y)`, or a finite `tf.data.Dataset`. Labels are class
            numbers.
        validation: The same, evaluated after each epoch.
        epochs: Instead of the recipe's.
        batch_size: Instead of the recipe's; the learning rate is scaled if the recipe says so.
        seed: Of the order, the views, the augmentation and dropout; 0 to 2**32 - 1. Not of the initial weights.
        preprocess: How images of 0..255 become the network's input, inside the step: a `Preprocess` layer, a
            checkpoint's record, `(mean, std)` by channel as parts of 255; `None` for arrays that are the network's
            input; `"auto"`: `None` for arrays of floats, ImageNet's otherwise.
        classes: Number of classes, where some have no images.
        class_weight: Weight of each class in the loss.
        checkpoints: Where to save checkpoints, how often, and whether to resume: a `Checkpointing`, or just its
            directory; `None` for none.
        selection: Which epoch's weights to end with, and when to stop early.
        execution: Whether XLA compiles the step, and whether operations are deterministic.
        callbacks: Keras' own or others; their state is not saved.
        logs: Directory for TensorBoard's logs; `None` for none.
        progress: Whether to print what was decided, and the progress.

    Returns:
        The history, by name and epoch, of all runs of this training.

    Raises:
        TypeError: For an argument that `fit` does not have, with the nearest one.
        ValueError: For data, labels or arguments that cannot be trained with, before the first step.
        ResumeError: If the directory holds another training.
        NonFiniteError: If the loss or a weight becomes NaN or infinite; the last good weights are put back.
        CheckpointError: If a checkpoint cannot be written.
    """
    require_group("selection", selection)
    require_group("execution", execution)
    saving = _checkpointing(checkpoints)
    run = Run(model, recipe, train, validation, epochs, batch_size, seed, preprocess, classes, class_weight)
    selection = selection.resolved(weighted=class_weight is not None, validated=validation is not None)
    decision = _decided(run, execution)
    about = run.about(None if saving is None else saving.fingerprint)
    progress = progress and distributed.part()[0] == 0
    with distributed.explained():
        distributed.agree(about)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(_opened(saving))
        snapshot = _last(store, saving, about)
        run.make_step()
        if store is not None:
            store.reserve(run.checkpoint_bytes())
        state = _state(run, about, store, snapshot, selection)
        decision = _fitted(decision, state)
        own, save = _own_callbacks(run, state, selection, saving, store)
        speed = Progress(state, run.batch, run.recipe.epochs) if progress else Speed(state, run.batch)
        if progress:
            _introduce(run, decision, state)
        stack.enter_context(signals(save))
        stack.enter_context(run.as_trained())
        stack.enter_context(speed)
        with distributed.explained(), readable([run.train_data, run.validation], state.kept):
            run.train(state, decision, [*own, speed, *callbacks, *_boards(logs, state)], snapshot)
        if state.best_weights is not None:
            state.best_weights.put(run.evaluated())
        run.step.finish()
    if progress:
        _conclude(state, selection, speed)
    return _history(state, decision, speed, save)


@accepts_flat_settings
def prepare(
    model: keras.Model,
    recipe: Recipe | str,
    train: Any,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    preprocess: Any = "auto",
    classes: int | None = None,
    class_weight: Sequence[float] | None = None,
    execution: Execution = Execution(),  # noqa: B008
) -> tuple[Step, Any]:
    """Return the compiled step that `fit` would use and its endless training batches, for measurements.

    The arguments are those of `fit`. `compiled_hlo(step, next(iter(batches)))` shows what XLA makes of the step.
    """
    require_group("execution", execution)
    run = Run(model, recipe, train, None, epochs, batch_size, seed, preprocess, classes, class_weight)
    decision = _decided(run, execution)
    run.make_step()
    run.compile(run.phases()[-1], decision)
    return run.step, run.batches(0, run.recipe.image_size(0, run.recipe.epochs))


def _checkpointing(given: Checkpointing | str | os.PathLike[str] | None) -> Checkpointing | None:
    return given if given is None or isinstance(given, Checkpointing) else Checkpointing(given)


def _decided(run: Run, execution: Execution) -> Decision:
    """Decide how to execute, and make TensorFlow deterministic if requested."""
    decision = decide(run.network, execution.jit, execution.steps_per_execution, execution.deterministic)
    if execution.deterministic and decision.backend == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    return decision


@contextlib.contextmanager
def _opened(saving: Checkpointing | None) -> Iterator[Checkpoints | None]:
    """Lock the checkpoint directory, if there is one."""
    if saving is None:
        yield None
        return
    with Checkpoints(distributed.own(Path(saving.directory))).open() as store:
        yield store


def _last(store: Checkpoints | None, saving: Checkpointing | None, about: dict[str, Any]) -> Snapshot | None:
    """Return the checkpoint to resume from, or `None`.

    Raises:
        ResumeError: If it is one of another training.
    """
    if store is None or saving is None:
        return None
    if not saving.resume:
        store.clear()
        return None
    snapshot = store.load(distributed.common(store.steps()))
    if snapshot is not None and saving.resume != "anyway":
        found = differences(_with_more_epochs(snapshot.state["about"], about), about)
        if found:
            raise ResumeError(
                f"{str(store.folder)!r} already contains another training. It differs in\n  "
                + "\n  ".join(found)
                + "\nChoose another directory to keep both, or resume despite the difference with resume='anyway' "
                "(--resume-anyway)."
            )
    return snapshot


def _with_more_epochs(saved: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Return the saved description with the number of epochs requested now, if it is larger."""
    epochs = wanted["recipe"]["epochs"]
    if epochs <= saved["recipe"]["epochs"]:
        return saved
    return {**saved, "recipe": {**saved["recipe"], "epochs": epochs}}


def _state(
    run: Run, about: dict[str, Any], store: Checkpoints | None, snapshot: Snapshot | None, selection: Selection
) -> TrainingState:
    """Return the initial state of the training, or the one it resumes from."""
    state = TrainingState(run.step, run.variables, run.steps, about, None if store is None else store.folder)
    if snapshot is not None:
        state.resume(snapshot, keep_best=selection.keep == "best")
        if store is not None:  # remove checkpoints after this step: training will differ from there on
            store.clear(after=state.step)
    return state


def _fitted(decision: Decision, state: TrainingState) -> Decision:
    """Choose steps per execution that divide the epoch; otherwise Keras would read images of the next one."""
    together = math.gcd(state.steps, state.step)
    wanted = min(decision.steps_per_execution, together)
    return dataclasses.replace(decision, steps_per_execution=max(n for n in range(1, wanted + 1) if together % n == 0))


def _own_callbacks(
    run: Run, state: TrainingState, selection: Selection, saving: Checkpointing | None, store: Checkpoints | None
) -> tuple[list[keras.callbacks.Callback], Save]:
    return between_steps(
        state,
        run.recipe,
        selection,
        run.evaluated,
        store,
        None if saving is None else saving.save_steps,
        by_time=distributed.processes() == 1,
    )


def _boards(logs: Any, state: TrainingState) -> list[Board]:
    """Return the TensorBoard callback, if one is requested; only process 0 writes logs."""
    return [] if logs is None or distributed.part()[0] else [Board(Path(logs), state.history)]


def _history(state: TrainingState, decision: Decision, speed: Speed, save: Save) -> History:
    history = History(state.history)
    history.epochs = state.step // state.steps
    history.best_epoch = state.best["epoch"] if state.best_weights is not None else None
    history.decision, history.save_seconds = decision, save.seconds
    history.compile_seconds, history.images_per_second = speed.compile_seconds, speed.rate
    return history


def _introduce(run: Run, decision: Decision, state: TrainingState) -> None:
    r = run.recipe
    announce(decision.line())
    values = "as they come" if run.normalize is None else f"0..255, mean {run.normalize[0]}, std {run.normalize[1]}"
    announce(
        f"recipe {r.name}: {r.optimizer}, rate {r.rate(run.batch):.3g}, {r.epochs} epochs of {run.steps} steps of "
        f"{run.batch}; images {values}"
    )
    parts = []
    if r.head_epochs:
        parts.append(f"epochs 1 to {r.head_epochs} train the head alone, rate {r.head_rate or r.rate(run.batch):.3g}")
    if r.layer_decay != 1:
        parts.append(f"then each block at {r.layer_decay:g} times the rate of the next")
    if r.batch_norm == "frozen":
        parts.append("statistics of batch norms stay")
    if parts:
        announce("; ".join(parts))
    if isinstance(run.train_data, Arrays) and run.normalize is not None and r.crop != "pad":
        announce("arrays are not cropped; keras_residual.data.load((x, y)) makes random views of them")
    if state.step:
        announce(f"resuming after step {state.step:,} of {r.epochs * run.steps:,}")


def _conclude(state: TrainingState, selection: Selection, speed: Speed) -> None:
    words = []
    if speed.compile_seconds is not None:
        words.append(f"first step with compilation {speed.compile_seconds:.1f} s, then {speed.rate:,.0f} images/s")
    if state.stopped:
        words.append(f"stopped early after epoch {state.step // state.steps}")
    if state.best_weights is not None:
        words.append(f"weights of epoch {state.best['epoch'] + 1}, the best by {selection.monitor}")
    if words:
        announce("; ".join(words))
