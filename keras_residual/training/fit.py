"""`fit`: a network, a recipe, images. `keras.Model.fit` does the training; here it is prepared, watched and resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from keras_residual.io import announce
from keras_residual.training import distributed
from keras_residual.training.arrays import Arrays
from keras_residual.training.callbacks import Keeper, Progress, signals
from keras_residual.training.checkpoint import Checkpoints, ResumeError, Snapshot, differences
from keras_residual.training.decide import Decision, decide
from keras_residual.training.inputs import readable
from keras_residual.training.recipes import Recipe
from keras_residual.training.run import Run
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


def fit(
    model: keras.Model,
    recipe: Recipe | str,
    train: Any,
    validation: Any = None,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    directory: Any = None,
    preprocess: Any = "auto",
    classes: int | None = None,
    class_weight: Sequence[float] | None = None,
    patience: int | None = None,
    keep: str = "best",
    monitor: str = "auto",
    jit: bool | str = "auto",
    steps_per_execution: int | str = "auto",
    deterministic: bool = False,
    save_steps: int | None = None,
    resume: bool | str = True,
    fingerprint: str | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    logs: Any = None,
    progress: bool = True,
) -> History:
    """Trains a classifier in place.

    With a directory the training survives: killed at any moment and called again, it goes on from its last checkpoint,
    and with `deterministic` the outcome is the same, bit for bit, as without the interruption.

    Args:
        model: Functional, with logits or a softmax layer at its end. It is trained in the precision it was built in.
        recipe: A `Recipe`, or the name of a published one.
        train: `keras_residual.data.Examples`, arrays `(x, y)`, or a finite `tf.data.Dataset`. Labels are class
            numbers.
        validation: The same, evaluated after each epoch.
        epochs: Instead of the recipe's.
        batch_size: Instead of the recipe's; the learning rate is scaled if the recipe says so.
        seed: Of the order, the views, the augmentation and dropout; 0 to 2**32 - 1. Not of the initial weights.
        directory: For checkpoints; `None` for none.
        preprocess: How images of 0..255 become the network's input, inside the step: a `Preprocess` layer, a
            checkpoint's record, `(mean, std)` by channel as parts of 255; `None` for arrays that are the network's
            input; `"auto"`: `None` for arrays of floats, ImageNet's otherwise.
        classes: Number of classes, where some have no images.
        class_weight: Weight of each class in the loss.
        patience: Epochs without a better `monitor` after which training stops; `None` for never.
        keep: `"best"` for the weights of the best epoch by `monitor`, if there is a validation, of equal ones by its
            loss; `"last"`.
        monitor: `"val_accuracy"`, `"val_loss"`, `"accuracy"` or `"loss"`; with class weights also `"val_macro_f1"` or
            `"macro_f1"`. `"auto"` means `"val_macro_f1"` with class weights, which a constant answer cannot win, and
            `"val_accuracy"` without.
        jit: Whether XLA compiles the step; `"auto"` decides by the device.
        steps_per_execution: Steps in one call of the backend, at the most; less where an epoch does not divide by it.
            `"auto"` for 1.
        deterministic: Whether operations are deterministic on TensorFlow; this stays on in the process, and
            Keras trains without XLA there.
        save_steps: Save a checkpoint after so many steps; `None`: by time. There is always one after each epoch.
        resume: `True` resumes the same training, also with more epochs than before; `"anyway"` whatever differs;
            `False` starts over.
        fingerprint: Of the data, where it is known; otherwise one is computed.
        callbacks: Keras' own or others; their state is not saved.
        logs: Directory for TensorBoard's logs; `None` for none.
        progress: Whether to print what was decided, and the progress.

    Returns:
        The history, by name and epoch, whatever number of runs it took.

    Raises:
        ValueError: For data, labels or arguments that cannot be trained with, before the first step.
        ResumeError: If the directory holds another training.
        NonFiniteError: If the loss or a weight becomes NaN or infinite; the last good weights are put back.
        CheckpointError: If a checkpoint cannot be written.
    """
    run = Run(model, recipe, train, validation, epochs, batch_size, seed, preprocess, classes, class_weight)
    if keep not in ("best", "last"):
        raise ValueError(f"keep must be 'best' or 'last'; got {keep!r}.")
    if monitor == "auto":
        monitor = "val_accuracy" if class_weight is None else "val_macro_f1"
    if monitor.removeprefix("val_") not in ("accuracy", "loss", *(("macro_f1",) if class_weight is not None else ())):
        raise ValueError(
            "monitor must be 'auto', 'val_accuracy', 'val_loss', 'accuracy' or 'loss', or with class_weight "
            f"'val_macro_f1' or 'macro_f1'; got {monitor!r}."
        )
    if validation is None and monitor.startswith("val_"):
        if patience is not None:
            raise ValueError(f"patience needs something to watch: {monitor} has no validation. Give one, or a monitor.")
        keep = "last"
    if patience is not None and patience < 1:
        raise ValueError(f"patience is a positive number of epochs. Received: {patience}.")
    decision = decide(run.network, jit, steps_per_execution, deterministic)
    if deterministic and decision.backend == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    about = run.about(fingerprint)
    progress = progress and distributed.part()[0] == 0
    with distributed.explained():
        distributed.agree(about)
    checkpoints = None if directory is None else Checkpoints(distributed.own(Path(directory)))
    with contextlib.ExitStack() as stack:
        if checkpoints is not None:
            stack.enter_context(checkpoints.open())
        snapshot = _last(checkpoints, about, resume)
        run.make_step()
        if checkpoints is not None:
            checkpoints.reserve(run.checkpoint_bytes())
        keeper = Keeper(
            run.variables,
            run.steps,
            run.recipe,
            checkpoints,
            about,
            save_steps,
            patience,
            monitor,
            keep == "best",
            run.evaluated,
            by_time=distributed.processes() == 1,
        )
        bar = Progress(run.recipe.epochs, run.steps, run.batch, keeper)
        if snapshot is not None:
            keeper.resume(snapshot)
        decision = dataclasses.replace(
            decision, steps_per_execution=_divisor(decision.steps_per_execution, run.steps, keeper.step)
        )
        if progress:
            _introduce(run, decision, keeper)
        stack.enter_context(signals(keeper))
        stack.enter_context(run.as_trained())
        if progress:
            bar.start()
            stack.callback(bar.stop)
        watching = [keeper, bar if progress else _quiet(bar), *callbacks]
        if logs is not None and distributed.part()[0] == 0:
            watching.append(Board(Path(logs), keeper.history))
        with distributed.explained(), readable([run.train_data, run.validation], keeper.kept):
            run.train(keeper, decision, watching, snapshot)
        if keeper.best_weights is not None:
            keeper.best_weights.put(run.evaluated())
        run.step.finish()
    history = History(keeper.history)
    history.epochs = keeper.step // run.steps
    history.best_epoch = keeper.best["epoch"] if keeper.best_weights is not None else None
    history.decision, history.save_seconds = decision, keeper.save_seconds
    history.compile_seconds, history.images_per_second = bar.compile_seconds, bar.rate
    if progress:
        _conclude(run, keeper, bar)
    return history


def prepare(
    model: keras.Model,
    recipe: Recipe | str,
    train: Any,
    *,
    seed: int = 0,
    jit: bool | str = "auto",
    steps_per_execution: int | str = "auto",
    **options: Any,
) -> tuple[Step, Any]:
    """The compiled step that `fit` would train by, and its endless training batches; for measurements and proofs.

    `compiled_hlo(step, next(iter(batches)))` shows what XLA makes of it.
    """
    run = Run(model, recipe, train, None, seed=seed, **options)
    decision = decide(run.network, jit, steps_per_execution)
    run.make_step()
    run.compile(run.phases()[-1], decision)
    return run.step, run.batches(0, run.recipe.image_size(0, run.recipe.epochs))


def _last(checkpoints: Checkpoints | None, about: dict[str, Any], resume: bool | str) -> Snapshot | None:
    """The checkpoint to go on from."""
    if resume not in (True, False, "anyway"):
        raise ValueError(f"resume is True, False or 'anyway'. Received: {resume!r}.")
    if checkpoints is None:
        return None
    if not resume:
        checkpoints.clear()
        return None
    snapshot = checkpoints.load(distributed.common(checkpoints.steps()))
    if snapshot is not None and resume != "anyway":
        found = differences(_with_more_epochs(snapshot.state["about"], about), about)
        if found:
            raise ResumeError(
                f"{str(checkpoints.folder)!r} already contains another training. It differs in\n  "
                + "\n  ".join(found)
                + "\nChoose another directory to keep both, or resume despite the difference with resume='anyway' "
                "(--resume-anyway)."
            )
    return snapshot


def _with_more_epochs(saved: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Return the saved description as if it had asked for the epochs that are asked for now, if these are more."""
    epochs = wanted["recipe"]["epochs"]
    if epochs <= saved["recipe"]["epochs"]:
        return saved
    return {**saved, "recipe": {**saved["recipe"], "epochs": epochs}}


def _divisor(wanted: int, steps: int, done: int) -> int:
    """Steps in one execution, so that none goes beyond an epoch's end: Keras would take images of the next one."""
    together = math.gcd(steps, done)
    return max(n for n in range(1, min(wanted, together) + 1) if together % n == 0)


def _quiet(bar: Progress) -> Progress:
    """Measures, and says nothing."""
    bar.bar, bar.epochs = None, 0
    bar.on_epoch_end = lambda epoch, logs=None: None
    return bar


def _introduce(run: Run, decision: Decision, keeper: Keeper) -> None:
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
    if keeper.step:
        announce(f"resuming after step {keeper.step:,} of {r.epochs * run.steps:,}")


def _conclude(run: Run, keeper: Keeper, bar: Progress) -> None:
    words = []
    if bar.compile_seconds is not None:
        words.append(f"first step with compilation {bar.compile_seconds:.1f} s, then {bar.rate:,.0f} images/s")
    if keeper.stopped:
        words.append(f"stopped early after epoch {keeper.step // run.steps}")
    if keeper.best_weights is not None:
        words.append(f"weights of epoch {keeper.best['epoch'] + 1}, the best by {keeper.monitor}")
    if words:
        announce("; ".join(words))
