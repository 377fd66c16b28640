"""Between the steps: one state, several callbacks, one order."""

import signal

import keras
import numpy as np
import pytest

from keras_residual.training import Checkpointing, NonFiniteError, Selection, fit
from keras_residual.training.callbacks import Interrupted, Watch, between_steps
from keras_residual.training.checkpoint import Checkpoints, Snapshot
from keras_residual.training.state import TrainingState

from .test_training_fit import QUIET, RECIPE, data, network


class Model:
    """As much of the compiled step as callbacks look at."""

    stop_training = False


def state(steps=4):
    value = keras.Variable(np.zeros(2, "float32"))
    return TrainingState(Model(), lambda: {"model/0": value}, steps, {"recipe": {"epochs": 2}})


def made(selection=Selection("last"), store=None, save_steps=None, recipe=RECIPE):  # noqa: B008
    """A state, its callbacks and the one that saves."""
    kept = state()
    callbacks, save = between_steps(kept, recipe, selection, dict, store, save_steps, by_time=True)
    for callback in callbacks:
        callback.set_model(kept.model)
    return kept, callbacks, save


@pytest.mark.parametrize(
    ("selection", "schedule", "names"),
    [
        (Selection("last"), "cosine", ["Count", "Watch", "Save"]),
        (Selection("best"), "cosine", ["Count", "Watch", "Best", "Save"]),
        (Selection("last", patience=2), "plateau", ["Count", "Watch", "Best", "Plateau", "Save"]),
    ],
)
def test_the_order(selection, schedule, names):
    _, callbacks, save = made(selection, recipe=RECIPE.replace(schedule=schedule))
    assert [type(callback).__name__ for callback in callbacks] == names
    assert callbacks[-1] is save


def test_a_loss_is_looked_at_one_step_later_and_before_anything_is_saved():
    kept, (count, watch, save), _ = made()
    assert isinstance(watch, Watch)
    for callback in (count, watch, save):
        callback.on_epoch_begin(0)
    count.on_train_batch_end(0)
    watch.on_train_batch_end(0, {"loss": np.nan})  # the device need not be waited for
    save.on_train_batch_end(0)
    save.signal = signal.SIGTERM
    with pytest.raises(NonFiniteError, match="the loss is nan at step 1 "):
        save.on_train_batch_end(0)
    assert kept.good is None, "it must not count as a good state"


def test_a_step_that_failed_is_not_saved(tmp_path):
    """Every step is saved, so that the one whose loss is not finite would be."""

    class Spoil(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                kernel = self.model.network.get_layer("fc").kernel
                kernel.assign(kernel * np.float32("inf"))

    with pytest.raises(NonFiniteError, match=r"the loss is nan at step 5 .*weights of step 4 are kept"):
        fit(network(), RECIPE, data(), checkpoints=Checkpointing(tmp_path, save_steps=1), callbacks=[Spoil()], **QUIET)
    last = Snapshot.read(max(tmp_path.glob("step-*")))
    assert last.state["step"] == 4
    assert last.finite()


def test_a_signal_is_answered_with_a_checkpoint_whenever_it_comes(tmp_path, monkeypatch):
    """Also between the look at whether one came and the end of the callback: after the next step then."""
    with Checkpoints(tmp_path).open() as store:
        kept, _, save = made(store=store)

        def late(before):
            save.signal = signal.SIGTERM
            return False

        monkeypatch.setattr(save, "_due", late)
        kept.step = 1
        save.on_train_batch_end(0)
        kept.step = 2
        with pytest.raises(Interrupted):
            save.on_train_batch_end(1)
        store.raise_errors(wait=True)
        assert store.steps() == [2]
    assert kept.model.stop_training


def test_a_training_resumed_with_the_last_weights_forgets_the_best(tmp_path):
    """`keep` is not part of what must be equal: the best weights in the checkpoint are not those asked for."""
    first = fit(network(), RECIPE, data(), data(24, 1), checkpoints=tmp_path, progress=False)
    assert first.best_epoch is not None
    model = network()
    history = fit(model, RECIPE, data(), data(24, 1), checkpoints=tmp_path, epochs=4, **QUIET)
    assert history.epochs == 4
    assert history.best_epoch is None
    last = Snapshot.read(max(tmp_path.glob("step-*")))
    names = [name for name in sorted(last.arrays) if name.startswith("model/")]
    saved = {last.arrays[name].tobytes() for name in names}
    assert all(np.asarray(v).tobytes() in saved for v in model.weights)
