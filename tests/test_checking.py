"""Labels and images: the same mistake gets the same sentence from a dataset, `fit` and the diagnostics."""

import keras
import numpy as np
import pytest

import keras_residual as kr
from keras_residual.checking import class_numbers, require_class_numbers, require_pixels
from keras_residual.diagnostics import gradient_flow
from keras_residual.training import Recipe, fit

X = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3)).astype("uint8")
Y = np.arange(12) % 3
RECIPE = Recipe(batch_size=4, epochs=1)


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    return keras.Model(inputs, keras.layers.Dense(3)(x), name="tiny")


def sentence(call):
    """What an error says after the name of the data, up to what else one may do; lower case."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    words = str(caught.value)
    for name in ("training images: ", "y: "):
        words = words.removeprefix(name)
    for more in (" For other targets", " If the network takes"):
        words = words.partition(more)[0]
    return words[0].lower() + words[1:]


@pytest.mark.parametrize("labels", [Y + 1, Y - 1, Y + 0.5, np.eye(3)[Y] * 0.8, np.zeros((12, 2, 2), int)])
def test_labels_are_refused_in_the_same_words_everywhere(model, labels):
    read = sentence(lambda: kr.data.load((X, labels), classes=["a", "b", "c"]))
    trained = sentence(lambda: fit(model, RECIPE, (X, labels), progress=False))
    measured = sentence(lambda: gradient_flow(model, X.astype("float32"), labels))
    assert trained == read.replace("class numbers or names", "class numbers")
    assert trained == measured.replace("(12,)", "(N,)")


@pytest.mark.parametrize(
    "images", [X / 255.0, X / 127.5 - 1, X.astype("uint16") * 257, np.where(X > 250, np.nan, X), X > 9]
)
def test_images_are_refused_in_the_same_words_everywhere(model, images):
    read = sentence(lambda: kr.data.load((images, Y)))
    mean = (0.5,), (0.5,)
    assert sentence(lambda: fit(model, RECIPE, (images, Y), preprocess=mean, progress=False)) == read


def test_one_label_each(model):
    read = sentence(lambda: kr.data.load((X, Y[:-1])))
    assert read == "each image must have one label; got 12 images and 11 labels."
    assert sentence(lambda: fit(model, RECIPE, (X, Y[:-1]), progress=False)) == read


@pytest.mark.parametrize("labels", [Y[:, None], np.eye(3)[Y], Y.astype("float32"), Y])
def test_diagnostics_read_labels_as_training_does(model, labels):
    x = X.astype("float32")
    assert gradient_flow(model, x, labels).loss == pytest.approx(gradient_flow(model, x, Y).loss)


def test_a_class_per_token_is_not_taken_for_one_hot():
    labels = np.array([[0, 1], [1, 0]])
    np.testing.assert_array_equal(class_numbers(labels, rank=2), labels)
    np.testing.assert_array_equal(class_numbers(labels[..., None], rank=2), labels)
    np.testing.assert_array_equal(class_numbers(labels), [1, 0])


def test_the_largest_number_of_a_dtype_is_a_number():
    require_class_numbers(np.array([0, 255], "uint8"), None)
    with pytest.raises(ValueError, match=r"^Labels must be from 0 to 254, .*; got 255, for 1 of 2"):
        require_class_numbers(np.array([0, 255], "uint8"), 255)


@pytest.mark.parametrize("images", [np.zeros((1, 2, 2, 1), "float32"), np.full((1, 2, 2, 1), 1, "uint8"), X * 1.0])
def test_dark_images_are_images(images):
    require_pixels(images)
