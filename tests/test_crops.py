"""Crop settings are declared once: whoever has them has the same names, defaults and rules."""

import inspect

import pytest

from keras_residual.data import Examples
from keras_residual.data.sampling import Views
from keras_residual.training import Recipe
from keras_residual.weights import Preprocess, Weights


def defaults(function):
    return {name: known.default for name, known in inspect.signature(function).parameters.items()}


def test_training_crops_have_the_same_defaults():
    views, examples, recipe = defaults(Views), defaults(Examples.training), defaults(Recipe)
    assert {name: examples[name] for name in ("crop", "scale", "ratio", "flip")} == {
        name: views[name] for name in ("crop", "scale", "ratio", "flip")
    }
    assert (recipe["crop"], recipe["crop_scale"], recipe["flip"]) == (views["crop"], views["scale"], views["flip"])


def test_evaluation_crops_have_the_same_defaults():
    names = ("mean", "std", "crop", "crop_mode")
    assert {name: defaults(Preprocess)[name] for name in names} == {name: defaults(Weights)[name] for name in names}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: Views((8, 8), "centre"),
            r"^crop must be one of 'random', 'center', .*, 'letterbox'; got 'centre'",
        ),
        (lambda: Recipe(crop="centre"), r"^Recipe: crop must be one of 'random', 'center', .*; got 'centre'"),
        (lambda: Views((8, 8), scale=(0.5, 0.1)), r"^scale must be .* got \(0.5, 0.1\)"),
        (lambda: Recipe(crop_scale=(0, 1)), r"^Recipe: crop_scale must be .* got \(0, 1\)"),
        (lambda: Preprocess((8, 8), crop_mode="pad"), r"crop_mode. must be one of 'center', .*; got 'pad'"),
        (lambda: Preprocess((8, 8), interpolation="area"), r"interpolation. must be one of 'bicubic', .*; got 'area'"),
        (lambda: Preprocess((8, 8), crop=1.5), r"crop. must be .* 0 < crop <= 1; got 1.5"),
    ],
)
def test_a_crop_that_there_is_not_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
