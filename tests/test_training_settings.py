"""The settings of `fit` in three groups: what they refuse, and the flat keywords of 0.1.0."""

import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pytest

from keras_residual.training import Checkpointing, Execution, Recipe, Selection, decide, fit, prepare
from keras_residual.training.settings import accepts_flat_settings

from .test_training_fit import QUIET, RECIPE, data, network, weights

WRONG = {
    "no path": (
        lambda: Checkpointing(True),
        r"checkpoints must be Checkpointing\(directory, ...\) or a path; got True",
    ),
    "save_steps": (lambda: Checkpointing("runs", save_steps=0), "save_steps must be .* 1 or more, or None; got 0"),
    "resume": (lambda: Checkpointing("runs", resume="yes"), "resume must be True, False or 'anyway'; got 'yes'"),
    "keep": (lambda: Selection(keep="first"), "keep must be 'best' or 'last'; got 'first'"),
    "monitor": (lambda: Selection(monitor="val_acc"), "monitor must be 'auto', .*; got 'val_acc'"),
    "no monitor": (lambda: Selection(monitor=None), "monitor must be 'auto', .*; got None"),
    "patience": (lambda: Selection(patience=0), "patience must be .* 1 or more, or None; got 0"),
    "jit": (lambda: Execution(jit="on"), "jit must be True, False or 'auto'; got 'on'"),
    "steps": (lambda: Execution(steps_per_execution=1.5), "steps_per_execution must be .* or 'auto'; got 1.5"),
    "deterministic": (lambda: Execution(deterministic="auto"), "deterministic must be True or False; got 'auto'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_setting_out_of_its_range_is_refused(case):
    make, words = WRONG[case]
    with pytest.raises((TypeError, ValueError), match=words):
        make()


def test_numbers_of_numpy_are_numbers():
    assert Checkpointing("runs", save_steps=np.int64(3)).save_steps == 3
    assert Selection(patience=np.int32(2)).patience == 2


def test_decide_refuses_what_execution_refuses():
    with pytest.raises(ValueError, match="steps_per_execution must be"):
        decide(network(), steps_per_execution=0)


@pytest.mark.parametrize(
    ("given", "weighted", "validated", "found"),
    [
        (Selection(), False, True, Selection("best", "val_accuracy")),
        (Selection(), True, True, Selection("best", "val_macro_f1")),
        (Selection(), False, False, Selection("last", "val_accuracy")),  # nothing to choose by
        (Selection(monitor="loss", patience=2), False, False, Selection("best", "loss", 2)),
        (Selection("last", "macro_f1"), True, False, Selection("last", "macro_f1")),
    ],
)
def test_a_selection_is_resolved(given, weighted, validated, found):
    assert given.resolved(weighted=weighted, validated=validated) == found


def test_patience_needs_validation():
    with pytest.raises(ValueError, match=r"patience .* 'val_accuracy' without validation data.*monitor='loss'"):
        fit(network(), RECIPE, data(), selection=Selection(patience=2), progress=False)


@pytest.mark.parametrize(("group", "value"), [("selection", "last"), ("execution", True), ("checkpoints", 3)])
def test_a_group_of_another_type_is_refused(group, value):
    kind = {"selection": "Selection", "execution": "Execution", "checkpoints": "Checkpointing"}[group]
    with pytest.raises(TypeError, match=rf"{group} must be {kind}\("):
        fit(network(), RECIPE, data(), **{group: value})


# --------------------------------------------------------------------------------------------------- the old spelling


def test_flat_keywords_train_the_same_and_show_the_new_spelling(tmp_path):
    new, old = network(), network()
    checkpoints, selection = Checkpointing(tmp_path / "new", save_steps=5), Selection(keep="last")
    execution = Execution(steps_per_execution=3)
    expected = fit(
        new, RECIPE, data(), checkpoints=checkpoints, selection=selection, execution=execution, progress=False
    )
    with pytest.warns(DeprecationWarning, match="Write fit") as said:
        history = fit(
            old,
            RECIPE,
            data(),
            directory=tmp_path / "old",
            save_steps=5,
            keep="last",
            steps_per_execution=3,
            progress=False,
        )
    assert history == expected
    for a, b in zip(weights(new), weights(old), strict=True):
        np.testing.assert_array_equal(a, b)
    files = [sorted(path.name for path in (tmp_path / name).glob("*.safetensors")) for name in ("new", "old")]
    assert files[0] == files[1] != []
    (warning,) = [one for one in said if one.filename == __file__]  # the caller's line is shown, once
    spelling = str(warning.message).partition("Write fit(..., ")[2].removesuffix(").")
    names = {"PosixPath": Path, "WindowsPath": Path, **vars(inspect.getmodule(Selection))}
    groups = eval(f"dict({spelling})", names)
    assert groups == {
        "checkpoints": dataclasses.replace(checkpoints, directory=tmp_path / "old"),
        "selection": selection,
        "execution": execution,
    }


def test_every_flat_keyword_of_the_last_release_has_a_home():
    homes: dict = {}

    @accepts_flat_settings
    def take(*, checkpoints=None, selection=None, execution=None):
        homes.update(checkpoints=checkpoints, selection=selection, execution=execution)

    flat = {"directory": "runs", "save_steps": 4, "resume": False, "fingerprint": "f"}
    flat |= {"keep": "last", "monitor": "loss", "patience": 3}
    flat |= {"jit": False, "steps_per_execution": 2, "deterministic": True}
    with pytest.warns(DeprecationWarning, match="Write take"):
        take(**flat)
    assert homes == {
        "checkpoints": Checkpointing("runs", 4, False, "f"),
        "selection": Selection("last", "loss", 3),
        "execution": Execution(False, 2, True),
    }


def test_without_a_directory_there_are_no_checkpoints():
    with pytest.warns(DeprecationWarning, match="checkpoints=None"):
        fit(network(), RECIPE.replace(epochs=1), data(16), directory=None, resume=True, **QUIET)


def test_prepare_takes_flat_keywords_too():
    with pytest.warns(DeprecationWarning, match=r"Write prepare\(..., execution=Execution\(jit=False"):
        step, _ = prepare(network(), RECIPE, data(), jit=False)
    assert step.jit_compile is False


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"epoch": 3}, r"fit\(\) has no argument 'epoch'. Did you mean 'epochs'\?"),
        ({"patient": 3}, r"no argument 'patient'. Did you mean selection=Selection\(patience=...\)\?"),
        ({"checkpoint": "runs"}, "Did you mean 'checkpoints'"),
        ({"xyz": 1}, r"no argument 'xyz'. Its arguments: model, recipe, train, .*progress\."),
        ({"selection": Selection(), "keep": "last"}, r"got both. Write selection=Selection\(..., keep='last'\)"),
    ],
)
def test_an_unknown_keyword_names_the_nearest(keywords, words):
    with pytest.raises(TypeError, match=words):
        fit(network(), RECIPE, data(), **keywords)


def test_an_editor_sees_the_groups_alone():
    """A test of the shape, so that `fit` does not grow back into a list of switches."""
    known = inspect.signature(fit).parameters
    assert list(known)[:4] == ["model", "recipe", "train", "validation"]
    assert {"checkpoints", "selection", "execution"} < set(known)
    assert len(known) <= 16
    assert not {field.name for kind in (Checkpointing, Selection, Execution) for field in dataclasses.fields(kind)} & {
        *known
    }


@pytest.mark.parametrize(("head", "epochs", "expected"), [(6, 3, 2), (6, 1, 0), (6, 20, 6), (10, 4, 4), (0, 4, 0)])
def test_fewer_epochs_leave_one_for_all_layers(head, epochs, expected):
    """A preset with six epochs for the head also trains for three; a linear probe stays one."""
    changed = Recipe(epochs=10, head_epochs=head).with_epochs(epochs)
    assert (changed.epochs, changed.head_epochs) == (epochs, expected)
    with pytest.raises(ValueError, match="epochs"):
        changed.with_epochs(0)
