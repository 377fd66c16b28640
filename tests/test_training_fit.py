"""`fit`: what it trains, what it averages, what it refuses, how it resumes. Networks of a second, on arrays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from tensorflow.python.framework.config import disable_op_determinism

import keras_residual as kr
from keras_residual.training import (
    CheckpointError,
    Checkpointing,
    Execution,
    NonFiniteError,
    Recipe,
    ResumeError,
    Selection,
    compiled_hlo,
    decide,
    fit,
    prepare,
)
from keras_residual.training.checkpoint import Snapshot

from . import GIVEN

CLASSES, SIZE = 3, 8


def network(seed=0, classes=CLASSES, activation="softmax", dtype=None, noise=1.0):
    """The smallest with batch statistics, dropout, stochastic depth (both times `noise`) and a residual."""
    keras.utils.set_random_seed(seed)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype or policy)
    try:
        inputs = keras.Input((SIZE, SIZE, 3))
        x = kr.blocks.conv_norm(inputs, 16, 3, norm=kr.blocks.batch_norm, activation="relu", name="stem")
        y = keras.layers.Dropout(0.2 * noise, name="dropped")(
            kr.blocks.conv_norm(x, 16, 3, norm=kr.blocks.batch_norm, name="branch")
        )
        x = kr.blocks.residual(x, y, drop_path=0.3 * noise, activation="relu", name="block")
        x = keras.layers.GlobalAveragePooling2D()(x)
        x = keras.layers.Dense(classes, name="fc")(x)
        outputs = keras.layers.Activation(activation or "linear", dtype="float32", name="predictions")(x)
        return keras.Model(inputs, outputs, name="small")
    finally:
        keras.config.set_dtype_policy(policy)


def data(n=72, seed=0, classes=CLASSES):
    """Stripes as wide as the class says."""
    g = np.random.default_rng(seed)
    y = np.arange(n) % classes
    phase = g.integers(0, SIZE, n)
    stripes = ((np.arange(SIZE)[None] + phase[:, None]) // (1 + y[:, None]) % 2)[:, None, :, None] * 150
    x = stripes + g.integers(0, 80, (n, SIZE, SIZE, 3))
    return x.astype("uint8"), y


RECIPE = Recipe(learning_rate=0.05, batch_size=8, epochs=3, warmup=1, weight_decay=1e-4)
QUIET = {"progress": False, "selection": Selection(keep="last")}
DETERMINISTIC = Execution(deterministic=True)


def weights(model):
    return [np.array(keras.ops.convert_to_numpy(v)) for v in model.weights]


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


# ---------------------------------------------------------------------------------------------------- what it trains


def test_learns_and_tells(capsys):
    model = network()
    history = fit(model, RECIPE.replace(epochs=6), data(), data(seed=1))
    assert history["val_accuracy"][history.best_epoch] == max(history["val_accuracy"]) > 0.8
    ranks = [(a, -b) for a, b in zip(history["val_accuracy"], history["val_loss"], strict=True)]
    assert ranks[history.best_epoch] == max(ranks), "of equal accuracies the lower loss is the better"
    assert len(history["loss"]) == history.epochs == 6
    out = capsys.readouterr().out
    for words in ("XLA off (faster on GPUs only)", "float32", "images/s", "compilation", "best by val_accuracy"):
        assert words in out
    x, y = data(seed=1)
    mean, std = (np.array(v, "float32") for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    predicted = model.predict((x / np.float32(255) - mean) / std, verbose=0)
    np.testing.assert_allclose((predicted.argmax(-1) == y).mean(), max(history["val_accuracy"]), atol=1e-6)
    np.testing.assert_allclose(predicted.sum(-1), 1, atol=1e-5)  # the network that came is the one that was trained


def test_averages_are_of_all_weights_and_statistics():
    """Against the same training step by step, averaged in NumPy."""
    recipe = RECIPE.replace(ema=0.8, epochs=1)
    seen = []
    plain = network()
    record = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(weights(plain)))
    start = weights(plain)
    fit(plain, recipe.replace(ema=0.0), data(), callbacks=[record], **QUIET)
    expected = [w.astype("float64") for w in start]
    for count, values in enumerate(seen):
        decay = min(0.8, (1 + count) / (10 + count))
        expected = [decay * e + (1 - decay) * v for e, v in zip(expected, values, strict=True)]
    averaged = network()
    fit(averaged, recipe, data(), **QUIET)
    for v, ours, theirs, last in zip(averaged.weights, weights(averaged), expected, seen[-1], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, err_msg=v.path)
        assert not np.allclose(ours, last, atol=1e-4), v.path


def test_frozen_batch_norm_and_head_first():
    model = network()
    # the head alone
    before = weights(model)
    fit(model, RECIPE.replace(epochs=1, head_epochs=1), data(), **QUIET)
    changed = {v.path for v, a, b in zip(model.weights, before, weights(model), strict=True) if (a != b).any()}
    assert changed == {"fc/kernel", "fc/bias"}
    assert all(layer.trainable for layer in model.layers)
    # then all but the norms
    before = weights(model)
    fit(model, RECIPE.replace(epochs=2, head_epochs=1, batch_norm="frozen", layer_decay=0.5), data(), **QUIET)
    changed = {v.path for v, a, b in zip(model.weights, before, weights(model), strict=True) if (a != b).any()}
    assert changed == {v.path for v in model.weights if not v.path.split("/")[0].endswith(("bn", "norm"))}
    assert len(changed) == 4


def test_accumulation_is_the_larger_batch():
    """Without what differs between batches: batch statistics, dropout."""
    results = []
    for batch, parts in ((16, 1), (8, 2)):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((SIZE, SIZE, 3))
        x = keras.layers.Conv2D(16, 3, strides=2, name="conv")(inputs)
        x = keras.layers.GlobalAveragePooling2D()(x)
        model = keras.Model(inputs, keras.layers.Dense(CLASSES)(x))
        recipe = RECIPE.replace(
            optimizer="adamw",
            learning_rate=1e-2,
            schedule="constant",
            warmup=0,
            batch_size=batch,
            accumulate=parts,
            epochs=2,
            flip=False,
            clip_norm=0.1,
        )
        fit(model, recipe, data(64), **QUIET)
        results.append(weights(model))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_targets_of_the_binary_loss():
    """Each class that is mixed in is one, whatever its part; smoothing comes last, or the threshold would undo it."""
    import tensorflow as tf

    mixing = {"mixup": 1.0, "flip": False}
    for settings, zero, one in (
        (kr.training.recipe("deit3"), 0.0, 1.0),
        (kr.training.recipe("resnet_strikes_back_a1"), 0.1 / 3, 0.9 + 0.1 / 3),
        (Recipe(loss="binary", **mixing), None, None),
    ):
        step, batches = prepare(network(), settings.replace(batch_size=8, size=None, drop_path=0.0), data())
        several = 0
        for inputs, labels in batches.take(12):
            # the gradient by the logits is (sigmoid(z) - t) / (N * classes): at z = 0 it gives the targets away
            logits = tf.zeros((8, CLASSES))
            with tf.GradientTape() as tape:
                tape.watch(logits)
                loss = step.compute_loss(inputs, labels, logits)
            targets = 0.5 - tape.gradient(loss, logits).numpy() * 8 * CLASSES
            if zero is None:
                several += ((targets > 0.01) & (targets < 0.99)).any()
                np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-4)
            else:
                np.testing.assert_allclose(np.unique(np.round(targets, 3)), [zero, one], atol=1e-3)
                several += ((targets > 0.5).sum(-1) == 2).any()
        assert several > 3


def test_orders():
    """Each epoch has all images once, in another order; the same from any step on."""
    from keras_residual.training.arrays import Arrays

    arrays = Arrays(np.arange(24, dtype="float32")[:, None], np.arange(24))
    batches = [b[1].numpy() for b in arrays.training(8, seed=3).take(6)]
    first, second = np.concatenate(batches[:3]), np.concatenate(batches[3:])
    assert sorted(first) == sorted(second) == list(range(24))
    assert (first != second).any()
    assert (first != np.arange(24)).any()
    for start in (1, 4):
        again = [b[1].numpy() for b in arrays.training(8, seed=3, start=start).take(6 - start)]
        assert_same(batches[start:], again)
    halves = [[b[1].numpy() for b in arrays.training(8, seed=3, part=(i, 2)).take(2)] for i in range(2)]
    for whole, a, b in zip(batches, *halves, strict=False):
        np.testing.assert_array_equal(whole, np.concatenate([a, b]))


def test_a_dataset_of_tensorflow():
    import tensorflow as tf

    x, y = data()
    pairs = tf.data.Dataset.from_tensor_slices((x, y))
    histories = [
        fit(network(), RECIPE.replace(epochs=1), source, **QUIET) for source in (pairs, pairs.shuffle(72).batch(5))
    ]
    assert histories[0] == histories[1]
    endless = tf.data.Dataset.from_tensor_slices((x, y)).repeat()
    with pytest.raises(ValueError, match=r"Remove .repeat"):
        fit(network(), RECIPE, endless, **QUIET)


@pytest.mark.slow
def test_progressive_size():
    keras.utils.set_random_seed(0)
    model = kr.create("ResNet20", input_shape=(None, None, 3), classes=2, classifier_activation=None)

    class Sized:
        """As `keras_residual.data.Examples`: makes images of the size it is asked for."""

        labels = np.arange(16) % 2
        asked = []  # noqa: RUF012

        def __len__(self):
            return 16

        def steps_per_epoch(self, batch):
            return 16 // batch

        def training(self, batch, size, **options):
            import tensorflow as tf

            self.asked.append((size, options["start"]))
            images = tf.zeros((batch, size, size, 3), tf.uint8)
            return tf.data.Dataset.from_tensors((images, tf.zeros(batch, tf.int32))).repeat()

        def evaluation(self, batch, size):
            raise NotImplementedError

    recipe = RECIPE.replace(epochs=4, growth=((0.0, 16), (0.5, 24)))
    fit(model, recipe, Sized(), **QUIET)
    assert Sized.asked == [(16, 0), (24, 4)]


def test_a_network_of_another_size_is_told(tmp_path):
    source = kr.data.load(data(), validation=0.0).train
    with pytest.raises(ValueError, match=r"16 x 16.*network for \(8, 8, 3\).*replace\(size=8, growth=\(\)\)"):
        fit(network(), RECIPE.replace(growth=((0.0, 8), (0.5, 16))), source, **QUIET)


@pytest.mark.slow
def test_the_step_compiles():
    recipe = RECIPE.replace(ema=0.9, mixup=0.2, cutmix=1.0, clip_norm=1.0, accumulate=2)
    step, batches = prepare(network(), recipe, data(), execution=Execution(jit=True))
    hlo = compiled_hlo(step, next(iter(batches)))
    assert "convolution" in hlo
    assert "ENTRY" in hlo


@pytest.mark.long
def test_xla_trains_the_same():
    recipe = RECIPE.replace(epochs=1, ema=0.5, mixup=0.2)
    executions = Execution(jit=False), Execution(jit=True)
    histories = [fit(network(), recipe, data(), execution=execution, **QUIET) for execution in executions]
    # dropout draws other numbers there; the loss stays near
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=0.2)
    assert histories[1].decision.jit


def test_several_steps_in_one_execution_are_the_same_training():
    """Four do not divide an epoch of nine steps: the last call would take images of the next epoch."""
    results = []
    for count in (1, 4):
        model = network(noise=0.0)
        execution = Execution(steps_per_execution=count)
        history = fit(model, RECIPE.replace(epochs=2), data(), execution=execution, **QUIET)
        results.append((history["loss"], weights(model)))
    assert history.decision.steps_per_execution == 3
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-4)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_decisions():
    model = network(dtype="mixed_bfloat16")
    decision = decide(model)
    assert (decision.jit, decision.why) == (False, "faster on GPUs only")
    assert decision.precision == "mixed_bfloat16"
    with pytest.raises(ValueError, match="deterministic"):
        fit(model, RECIPE, data(), execution=Execution(jit=True, deterministic=True), **QUIET)
    assert not fit(model, RECIPE.replace(epochs=1), data(16), execution=DETERMINISTIC, **QUIET).decision.jit
    assert "deterministic" in decide(model).why
    disable_op_determinism()
    model.get_layer("stem.conv").supports_jit = False
    assert "stem.conv (Conv2D)" in decide(model).why
    with pytest.raises(ValueError, match=r"stem\.conv"):
        decide(model, jit=True)


@pytest.mark.parametrize(("rate", "built"), [("drop_path", 0.3), ("dropout", 0.2)])
def test_a_recipe_with_another_rate_than_the_network_is_told(rate, built):
    with pytest.warns(UserWarning, match=rf"{rate}=0\.1, but 'small' was built with {built}, which is used") as said:
        fit(network(), RECIPE.replace(epochs=1, **{rate: 0.1}), data(16), **QUIET)
    assert [one.filename for one in said if rate in str(one.message)] == [__file__], "the caller's line, once"
    as_built = RECIPE.replace(epochs=1, **{rate: built * (1 + 1e-12)})  # the rates of a ramp are rounded
    fit(network(), as_built, data(16), **QUIET)  # a warning would be an error here


# ---------------------------------------------------------------------------------------------------- what it refuses

X, Y = data()
BAD = {
    "label too high": ((X, Y + 1), {}, "got 3, for 24 of 72 labels, the first at index 2"),
    "labels from 1": ((X, np.arange(72) % 3 + 1), {}, "count from 1"),
    "negative label": ((X, Y - 1), {}, "got -1, for 24 of 72 labels"),
    "float labels": ((X, Y.astype("float32")), {}, "integers"),
    "labels that mix classes": ((X, 0.7 * np.eye(3)[Y] + 0.1), {}, r"argmax\(-1\)"),
    "a head too large": ((X, Y % 2), {}, "classes=2"),
    "another number of classes": ((X, Y), {"classes": 4}, "3 outputs, 4 classes"),
    "labels missing": ((X, Y[:-1]), {}, "72 images and 71 labels"),
    "0..1 for 0..255": (
        (X.astype("float32") / 255, Y),
        {"preprocess": ((0.5,), (0.5,))},
        r"seems to be 0\.\.1. Use x \* 255.*preprocess=None",
    ),
    "0..255 for 0..1": ((X.astype("float32"), Y), {}, "divide the images by 255"),
    "uint8 for 0..1": ((X, Y), {"preprocess": None}, "uint8 up to"),
    "normalised twice": ((X / 100.0 - 1, Y), {"preprocess": ((0.5,), (0.5,))}, "normalised already"),
    "channels first": ((np.moveaxis(X, -1, 1), Y), {}, "channels first"),
    "gray for colour": ((X[..., :1], Y), {}, r"input_shape=\(\.\.\., 1\)"),
    "another size": ((X[:, :4], Y), {}, r"network's input shape, \(8, 8, 3\); got"),
    "names as labels": ((X, np.array(["a", "b", "c"])[Y]), {}, "np.unique|numpy.unique"),
    "NaN in images": ((np.where(X.max() == X, np.nan, X / 255.0), Y), {}, "NaN or infinity"),
    "strings": ((X.astype(str), Y), {}, "images must be integers or floats"),
    "fewer images than the batch": ((X[:6], Y[:6]), {}, "batch_size=8 for 6 images"),
    "no images": ((X[:0], Y[:0]), {}, "no images"),
    "one image a batch": ((X, Y), {"batch_size": 1}, "must be at least 2 for"),
    "no pair": (X, {}, "arrays"),
}


@pytest.mark.parametrize("jit", [False, True], ids=["plain", "xla"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_the_first_step(case, jit):
    source, options, words = BAD[case]
    model = BAD.setdefault("model", network())
    before = weights(model)
    with pytest.raises((ValueError, TypeError), match=words):
        fit(model, RECIPE, source, execution=Execution(jit=jit), **options, **QUIET)
    assert_same(before, weights(model))


@pytest.mark.parametrize("change", [{"policy": "trivialaugment"}, {"color_jitter": 0.3}])
def test_colours_are_changed_where_they_are_0_to_255(change):
    """Solarising 0..1 at 128, or inverting it to 254..255, would be silently wrong."""
    recipe = RECIPE.replace(epochs=1, **change)
    with pytest.raises(ValueError, match=r"images of 0\.\.255.*preprocess=\(mean, std\)"):
        fit(network(), recipe, (X / np.float32(255), Y), **QUIET)
    fit(network(), recipe, (X[:16], Y[:16]), **QUIET)


def test_affine_maps_are_for_images():
    vectors = np.zeros((16, 5), "float32"), np.arange(16) % 2
    with pytest.raises(ValueError, match=r"require images; got inputs of shape \(5,\).*affine=\(0, 0, 0\)"):
        fit(kr.ResidualMLP(input_shape=(5,), classes=2), RECIPE.replace(affine=(10, 0, 0)), vectors, **QUIET)
    for bad in ((10.0, 0.1), (10.0, -0.1, 0.0)):
        with pytest.raises(ValueError, match="affine must be three numbers"):
            RECIPE.replace(affine=bad)


@pytest.mark.parametrize("validation", [(X, Y + 1), (X[:, :4], Y)])
def test_validation_is_checked_too(validation):
    with pytest.raises(ValueError, match="validation images"):
        fit(network(), RECIPE, (X, Y), validation, **QUIET)


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "xla"])
def test_nan_stops_at_once_and_keeps_the_good_weights(tmp_path, jit):
    """One image that overflows, in the middle of the second epoch."""
    x = X.astype("float32") / 255
    good = []

    class Spoil(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if len(good) == 12:  # what goes wrong in a real training: a weight explodes
                kernel = self.model.network.get_layer("fc").kernel
                kernel.assign(kernel * np.float32("inf"))
            good.append(batch)

    model = network()
    with pytest.raises(NonFiniteError, match=r"step 14 \(epoch 2, step 6 of 9\)") as caught:
        fit(model, RECIPE, (x, Y), checkpoints=tmp_path, execution=Execution(jit=jit), callbacks=[Spoil()], **QUIET)
    assert "The weights of step 9 are kept, and are saved in " in str(caught.value)
    assert all(np.isfinite(w).all() for w in weights(model))
    saved = Snapshot.read(max(tmp_path.glob("step-*")))
    assert saved.state["step"] == 9
    assert saved.finite()


# ----------------------------------------------------------------------------------------------------- how it resumes

EVERYTHING = RECIPE.replace(
    ema=0.7,
    mixup=0.3,
    cutmix=1.0,
    clip_norm=1.0,
    optimizer="adamw",
    learning_rate=3e-3,
    schedule="plateau",
    patience=1,
    head_epochs=1,
    epochs=4,
    crop="pad",
    padding=1,
)
CASES = {
    "everything": (EVERYTHING, None),
    "plain": (RECIPE, None),
    "lamb, random colours": (RECIPE.replace(optimizer="lamb", learning_rate=0.01, policy="threeaugment"), None),
    "mixed precision": (RECIPE.replace(ema=0.9), "mixed_bfloat16"),
    "accumulated": (RECIPE.replace(accumulate=2, nesterov=True), None),
}


class Cut(BaseException):
    """What a power cut is to a process."""


class CutAt(keras.callbacks.Callback):
    """After so many steps of this process, or `"epoch"`: between its first epoch and the next."""

    def __init__(self, place):
        super().__init__()
        self.place, self.done = place, 0

    def on_train_batch_end(self, batch, logs=None):
        self.done += 1
        if self.done == self.place:
            raise Cut

    def on_epoch_end(self, epoch, logs=None):
        if self.place == "epoch":
            raise Cut


def outcome(folder, recipe, dtype=None, cuts=(), noise=1.0, images=data, **selection):
    """Weights, history and all other state after a training that was cut off at some places."""
    checkpoints = Checkpointing(folder, save_steps=4)
    options = {"checkpoints": checkpoints, "execution": DETERMINISTIC, "progress": False}
    options["selection"] = Selection(**selection)
    for cut in cuts:
        model = network(dtype=dtype, noise=noise)
        with pytest.raises(Cut):
            fit(model, recipe, images(), data(24, 1), callbacks=[CutAt(cut)], **options)
    model = network(dtype=dtype, noise=noise)
    history = fit(model, recipe, images(), data(24, 1), **options)
    return weights(model), history, Snapshot.read(max(folder.glob("step-*")))


def assert_equal_outcomes(whole, pieces):
    assert_same(whole[0], pieces[0])
    assert whole[1] == pieces[1]
    assert whole[2].digest() == pieces[2].digest()


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.long if case == "everything" else pytest.mark.slow) for case in CASES]
)
def test_resumed_is_bit_equal(case, tmp_path):
    """Cut in the first epoch before anything is saved, in the middle of an epoch, and right after one."""
    recipe, dtype = CASES[case]
    whole = outcome(tmp_path / "whole", recipe, dtype, patience=9)
    assert_equal_outcomes(whole, outcome(tmp_path / "pieces", recipe, dtype, cuts=(3, 14, 7), patience=9))
    again = network(dtype=dtype)  # what is finished is read, not trained
    options = {"checkpoints": tmp_path / "pieces", "selection": Selection(patience=9), "progress": False}
    fit(again, recipe, data(), data(24, 1), **options)
    assert_same(whole[0], weights(again))


PLAIN = RECIPE.replace(schedule="constant", warmup=0, flip=False)
# One thing at a time, beside what is always there: an order of its own in each epoch.
FEATURES = {
    "plain": {"recipe": PLAIN, "noise": 0.0},
    "shuffled files": {"recipe": PLAIN, "noise": 0.0, "images": lambda: kr.data.load(data(), validation=0.0).train},
    "dropout": {"recipe": PLAIN},
    "augmentation": {
        "recipe": RECIPE.replace(policy="randaugment", erasing=0.3, mixup=0.3, cutmix=1.0, crop="pad", padding=1),
        "noise": 0.0,
    },
    "mixed precision": {"recipe": RECIPE, "dtype": "mixed_bfloat16"},
    "averages": {"recipe": RECIPE.replace(ema=0.9)},
    "plateau schedule": {"recipe": RECIPE.replace(schedule="plateau", patience=1, epochs=5)},
    "early stopping": {"recipe": RECIPE.replace(learning_rate=1.0, epochs=20), "patience": 2, "monitor": "val_loss"},
}
KINDS = {"epoch": ("epoch",), "mid-epoch": (14,), "twice": (6, 15)}


@pytest.fixture(scope="module", params=FEATURES)
def feature(request, tmp_path_factory):
    """A feature, and a training with it that nobody disturbs."""
    options = FEATURES[request.param]
    whole = outcome(tmp_path_factory.mktemp("whole"), **options)
    if "patience" in options:
        assert whole[1].epochs < options["recipe"].epochs
    if options["recipe"].schedule == "plateau":
        assert len(set(whole[1]["learning_rate"])) > 1
    return options, whole


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_feature_resumes_bit_equal(feature, kind, tmp_path):
    options, whole = feature
    assert_equal_outcomes(whole, outcome(tmp_path, cuts=KINDS[kind], **options))


def test_cut_while_it_validates(tmp_path):
    """The epoch's last step is done, and a checkpoint is due after it: the epoch is not over all the same."""

    class CutValidation(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            raise Cut

    recipe = RECIPE.replace(epochs=2)
    options = {"execution": DETERMINISTIC, **QUIET}
    whole = fit(network(), recipe, data(), data(24, 1), checkpoints=tmp_path / "whole", **options)
    options["checkpoints"] = Checkpointing(tmp_path / "cut", save_steps=3)
    with pytest.raises(Cut):
        fit(network(), recipe, data(), data(24, 1), callbacks=[CutValidation()], **options)
    resumed = fit(network(), recipe, data(), data(24, 1), **options)
    assert resumed == whole
    assert resumed.epochs == 2


def test_the_best_weights_are_those_of_the_checkpoint(tmp_path, monkeypatch):
    """Killed after the best weights are written, before the checkpoint that knows of them; then one is damaged."""
    from keras_residual.training.checkpoint import Checkpoints

    save, files = Checkpoints.save, []

    def cut(self, snapshot, kind="step"):
        if kind == "step" and snapshot.state["step"] == 36:
            self.close()
            raise Cut
        save(self, snapshot, kind)

    recipe = RECIPE.replace(epochs=6, learning_rate=0.01)
    options = {"checkpoints": tmp_path, "selection": Selection(monitor="val_loss"), "progress": False}
    monkeypatch.setattr(Checkpoints, "save", cut)
    with pytest.raises(Cut):
        fit(network(), recipe, data(), data(24, 1), **options)
    monkeypatch.setattr(Checkpoints, "save", save)
    assert (tmp_path / "best-0000000036.safetensors").exists(), "the fourth epoch was to be the best"
    found = Checkpoints(tmp_path).load()
    assert found.state["step"] == 27
    assert found.best.state["step"] == found.state["best"]["step"] == 9 * (found.state["best"]["epoch"] + 1) <= 27

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            files.append(sorted(path.name for path in tmp_path.iterdir()))

    model = network()
    history = fit(model, recipe, data(), data(24, 1), callbacks=[Look()], **options)
    assert "best-0000000036.safetensors" not in files[0]
    last = Checkpoints(tmp_path).load()
    assert last.state["best"]["epoch"] == history.best_epoch
    assert_same(weights(model), [last.best.arrays[name] for name in sorted(last.best.arrays)])
    path = tmp_path / f"best-{last.state['best']['step']:010d}.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.warns(RuntimeWarning, match="best weights until step 54 are lost"):
        found = Checkpoints(tmp_path).load()
    assert found.state["step"] == 54
    assert found.best is found.state["best"]["value"] is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with two checkpoints of a finished training."""
    folder = tmp_path_factory.mktemp("trained")
    fit(network(), RECIPE, data(), checkpoints=folder, **QUIET)
    return folder


def copied(trained, tmp_path):
    for path in trained.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return sorted(tmp_path.glob("step-*"))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "header"])
def test_a_damaged_checkpoint_falls_back(trained, tmp_path, damage):
    before, last = copied(trained, tmp_path)
    content = bytearray(last.read_bytes())
    place = {"flipped": len(content) - 50, "header": 40}.get(damage)
    if place is not None:
        content[place] ^= 4
    last.write_bytes({"truncated": content[:-7], "empty": b""}.get(damage, bytes(content)))
    from keras_residual.training.checkpoint import Checkpoints

    with pytest.warns(RuntimeWarning, match="one before it"):
        found = Checkpoints(tmp_path).load()
    assert found.state["step"] == Snapshot.read(before).state["step"] == 18


CHANGES = {
    "data": lambda: fit_again((X + 1, Y)),
    "images": lambda: fit_again((X[:64], Y[:64])),
    "classes": lambda: fit_again(data(classes=4), model=network(classes=4)),
    "batch_size": lambda: fit_again((X, Y), batch_size=12),
    "seed": lambda: fit_again((X, Y), seed=1),
    "architecture": lambda: fit_again((X, Y), model=kr.create("ResNet20", input_shape=(8, 8, 3), classes=3)),
    "learning_rate": lambda: fit_again((X, Y), recipe=RECIPE.replace(learning_rate=0.1)),
    "epochs": lambda: fit_again((X, Y), epochs=2),
    "preprocess": lambda: fit_again((X, Y), preprocess=((0.5,), (0.5,))),
}


def fit_again(source, model=None, recipe=RECIPE, **options):
    fit(model or network(), recipe, source, checkpoints=globals()["FOLDER"], **options, **QUIET)


@pytest.mark.parametrize("change", CHANGES)
def test_another_training_is_not_gone_on_with(trained, change, monkeypatch):
    monkeypatch.setitem(globals(), "FOLDER", trained)
    with pytest.raises(ResumeError, match=f"{change}: .* before, .* now"):
        CHANGES[change]()


def test_logs_of_a_resumed_run_have_each_epoch_once(tmp_path):
    """The second process knows of one epoch only: what the first logged after its last checkpoint is gone."""
    import tensorflow as tf

    from keras_residual.training.tensorboard import Board

    first = Board(tmp_path, {"loss": [3.0, 2.0], "val_loss": [4.0, 5.0]})
    first.on_train_begin()
    history = {"loss": [3.0], "val_loss": [4.0]}
    second = Board(tmp_path, history)
    second.on_train_begin()
    for epoch, value in ((1, 1.5), (2, 1.0)):
        history["loss"].append(value)
        second.on_epoch_end(epoch)
    second.on_train_begin()  # the next phase
    found = {}
    for path in tmp_path.glob("*/events.out.tfevents.*"):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                found.setdefault((path.parent.name, value.tag), []).append(
                    (event.step, *tf.make_ndarray(value.tensor).flat)
                )
    assert found == {
        ("train", "epoch_loss"): [(0, 3.0), (1, 1.5), (2, 1.0)],
        ("validation", "epoch_loss"): [(0, 4.0)],
    }


def test_another_version_is_told(trained, monkeypatch):
    monkeypatch.setattr(kr, "__version__", "9.9")
    with pytest.raises(ResumeError, match=r"version: '.*' before, '9\.9' now"):
        fit(network(), RECIPE, data(), checkpoints=trained, **QUIET)
    history = fit(network(), RECIPE, data(), checkpoints=Checkpointing(trained, resume="anyway"), **QUIET)
    assert history.epochs == 3
    assert history.compile_seconds is None  # nothing was left to train


def test_a_checkpoint_keeps_the_order_of_the_history(tmp_path):
    """Which is that of the columns of a run's history.csv."""
    history = {"loss": [0.5], "accuracy": [0.9], "val_loss": [0.6]}
    Snapshot({"a": np.zeros(2, "float32")}, {"history": history}).write(tmp_path / "step.safetensors")
    assert list(Snapshot.read(tmp_path / "step.safetensors").state["history"]) == list(history)


def test_two_checkpoints_are_kept(trained):
    assert [int(path.stem.split("-")[1]) for path in sorted(trained.glob("step-*"))] == [18, 27]
    assert [path.name for path in trained.glob(".*")] == [".lock"]


def test_what_a_killed_process_left_half_written_is_removed(trained, tmp_path):
    """Else each kill while it writes would cost as much room as a checkpoint."""
    from keras_residual.io import written_whole
    from keras_residual.training.checkpoint import Checkpoints

    copied(trained, tmp_path)
    with written_whole(tmp_path / "step-0000000036.safetensors") as part:
        part.write_bytes(b"half")
        left = tmp_path / part.name.replace(str(os.getpid()), "1")
        left.write_bytes(b"half")
    (tmp_path / "step-0000000036.safetensors").unlink()
    with Checkpoints(tmp_path).open() as checkpoints:
        assert checkpoints.steps() == [27, 18]
    assert not left.exists()


CHILD = """
import sys, resource, signal
from pathlib import Path
from tests.test_training_fit import *
folder, limit, steps, epochs = Path(sys.argv[1]), *map(int, sys.argv[2:])
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
class Slowly(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        print("step", flush=True)
        time.sleep(0.02)
fit(network(), RECIPE.replace(epochs=epochs, ema=0.9), data(), data(24, 1), execution=DETERMINISTIC,
    checkpoints=Checkpointing(folder, save_steps=steps), progress=False, callbacks=[Slowly()])
"""


def child(folder, limit=0, steps=3, epochs=8):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(limit), str(steps), str(epochs)],
        cwd=Path(__file__).parents[1],
        env=GIVEN,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_full_disk_leaves_the_earlier_checkpoint(trained, tmp_path):
    """A file-size limit fails in the middle of writing, as a full disk does."""
    process = child(tmp_path)
    for _ in range(8):
        process.stdout.readline()
    process.kill()
    process.communicate()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("step-*")}
    assert before
    process = child(tmp_path, limit=10_000)
    _, err = process.communicate()
    assert process.returncode == 1
    assert "CheckpointError" in err
    assert "Make room" in err
    assert {path.name: path.read_bytes() for path in tmp_path.glob("step-*")} == before
    assert {path.name for path in tmp_path.glob(".*")} <= {".lock"}, "half a file is left"


def test_an_unwritable_disk_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is not writable"):
        fit(network(), RECIPE, data(), checkpoints=tmp_path / "file" / "below", **QUIET)


@pytest.mark.slow
def test_sigterm_saves(tmp_path):
    process = child(tmp_path, steps=1000)
    for _ in range(5):
        process.stdout.readline()
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "saved in" in err
    assert Snapshot.read(max(tmp_path.glob("step-*"))).state["step"] >= 5


@pytest.mark.slow
def test_sigkill(tmp_path):
    """One kill, in the second epoch, between two checkpoints; gone on with here."""
    process = child(tmp_path / "killed", epochs=3)
    for _ in range(14):
        process.stdout.readline()
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    found = []
    for name in ("killed", "whole"):
        model = network()
        checkpoints = Checkpointing(tmp_path / name, save_steps=3)
        options = {"checkpoints": checkpoints, "execution": DETERMINISTIC, "progress": False}
        fit(model, RECIPE.replace(epochs=3, ema=0.9), data(), data(24, 1), **options)
        found.append((weights(model), Snapshot.read(max((tmp_path / name).glob("step-*"))).digest()))
    assert_same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


@pytest.mark.slow
def test_sigkill_at_random_moments(tmp_path):
    """Kills until it comes through, at moments of all kinds; the outcome is that of the undisturbed training."""
    process = child(tmp_path / "whole", epochs=16)
    _, err = process.communicate()
    assert process.returncode == 0, err[-2000:]
    g = np.random.default_rng(0)
    kills = 0
    wanted = int(os.environ.get("KR_KILLS", "10"))
    for wait in [*g.integers(1, 144 // wanted + 5, wanted), None]:
        process = child(tmp_path / "killed", epochs=16)
        if wait is not None:
            for _ in range(wait):
                process.stdout.readline()
            time.sleep(float(g.uniform(0, 0.04)))
            process.kill()
            kills += process.wait() == -signal.SIGKILL
        _, err = process.communicate()
    assert process.returncode == 0, err[-2000:]
    assert kills >= 0.8 * wanted
    whole, killed = (Snapshot.read(max((tmp_path / name).glob("step-*"))) for name in ("whole", "killed"))
    assert whole.digest() == killed.digest()


def test_more_epochs_continue_a_training(trained, tmp_path):
    """Weights, optimiser and history of the first epochs are those of the shorter training."""
    copied(trained, tmp_path)
    short = Snapshot.read(max(trained.glob("step-*"))).state["history"]
    history = fit(network(), RECIPE, data(), checkpoints=tmp_path, epochs=5, **QUIET)
    assert history.epochs == 5
    assert {key: values[:3] for key, values in history.items()} == short
    with pytest.raises(ResumeError, match=r"recipe\.epochs: 5 before, 3 now"):
        fit(network(), RECIPE, data(), checkpoints=tmp_path, **QUIET)


def test_class_weights_choose_the_best_epoch_by_macro_f1(tmp_path):
    """By accuracy, a constant classifier can win; the metric is scikit-learn's."""
    from sklearn.metrics import f1_score

    model, (x, y), seen = network(), data(), []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            guesses = np.asarray(self.model(x, training=False)).argmax(-1)
            seen.append(f1_score(y, guesses, labels=np.unique(y), average="macro"))

    history = fit(model, RECIPE, (x, y), (x, y), class_weight=[1.0, 2.0, 0.5], callbacks=[Look()], progress=False)
    np.testing.assert_allclose(history["val_macro_f1"], seen, rtol=1e-5)
    assert len(set(seen)) > 1
    ranks = list(zip(history["val_macro_f1"], [-loss for loss in history["val_loss"]], strict=True))
    assert history.best_epoch == ranks.index(max(ranks))
    with pytest.raises(ValueError, match="with class_weight 'val_macro_f1'"):
        fit(network(), RECIPE, (x, y), (x, y), selection=Selection(monitor="val_macro_f1"))


def test_the_default_monitor_with_class_weights_is_macro_f1():
    """Of a constant answer and one that finds the rare classes, accuracy prefers the first and macro F1 the second."""
    y = np.repeat([0, 1, 2], [60, 6, 6])
    looks = np.where(np.arange(72) < 14, 1, y)  # 14 of the frequent class look like a rare one
    x = np.broadcast_to(np.eye(3, dtype="float32")[looks][:, None, None], (72, 2, 2, 3)).copy()
    inputs = keras.Input((2, 2, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, name="fc")(pooled))

    class Answers(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            constant = epoch != 1
            kernel = np.zeros((3, 3)) if constant else 5 * np.eye(3)
            model.get_layer("fc").set_weights([kernel, np.array([constant, 0, 0], "float32")])

    recipe = RECIPE.replace(learning_rate=1e-12, weight_decay=0, warmup=0)
    given = {"class_weight": [1.0, 2.0, 0.5], "callbacks": [Answers()], "progress": False}
    history = fit(model, recipe, (x, y), (x, y), **given)
    assert np.argmax(history["val_accuracy"]) != 1, "the two metrics must disagree"
    assert np.argmax(history["val_macro_f1"]) == 1
    assert history.best_epoch == 1


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("jpg", "removed"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("jpg", "cut"), ("webp", "removed"), ("webp", "cut"))
        ),
    ],
)
def test_an_image_that_disappears_is_named(tmp_path, kind, damage):
    from PIL import Image

    generator = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(12):
            pixels = generator.integers(0, 255, (24, 24, 3)).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.{kind}")
    found = kr.data.load(tmp_path, cache=False)
    lost = tmp_path / found.train.names[3]
    content = lost.read_bytes()
    lost.unlink()
    if damage == "cut":
        lost.write_bytes(content[:200])
        os.utime(lost, (2**31, 2**31))  # after the scan, whatever the resolution of the clock
    model = kr.create("ResNet20", input_shape=(16, 16, 3), classes=2, classifier_activation=None)
    recipe = RECIPE.replace(batch_size=10, epochs=1)
    with pytest.raises(
        OSError, match=rf"could no longer be read: '{lost}'\. No weights had been trained yet\. Restore"
    ):
        fit(model, recipe, found.train, found.validation, **QUIET)
