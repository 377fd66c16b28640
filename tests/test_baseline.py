"""The baseline of a report equals scikit-learn's on the same images, and takes seconds."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import keras_residual as kr
from keras_residual import baseline, finetuning
from keras_residual.baseline import Baseline


def pictures(count, seed):
    """Two classes that differ in the brightness of one half, with noise."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = generator.normal(128, 40, (count, 20, 24, 3))
    images[labels == 1, :, 12:] += 15
    return np.clip(images, 0, 255).astype("uint8"), labels


@pytest.fixture(scope="module")
def parts():
    return tuple(kr.data.load(pictures(*part), validation=0.0).train for part in ((80, 0), (40, 1)))


def test_pixels_are_fitted_as_scikit_learn_does(parts, monkeypatch):
    monkeypatch.setattr(baseline, "STRENGTHS", (1e-2,))
    found = baseline.on_pixels(*parts)
    whole = kr.weights.Preprocess((16, 16), (0.0,) * 3, (1.0,) * 3, 1.0, "squash", "bilinear")
    x, test_x = (np.stack([np.asarray(whole(part[i][0])).ravel() for i in range(len(part))]) for part in parts)
    reduced = PCA(53, svd_solver="full")  # two of three folds
    model = make_pipeline(StandardScaler(), reduced, LogisticRegression(C=1e-2, max_iter=1000))
    expected = model.fit(x, parts[0].labels).score(test_x, parts[1].labels)
    assert found.accuracy == pytest.approx(expected, abs=0.05)
    assert found.accuracy > 0.7, "the halves differ"
    assert (found.trained, found.tested) == (80, 40)


def test_features_are_those_of_the_function(parts):
    def embed(images):
        return images[:, :, 12:].mean((1, 2, 3))[:, None] - images[:, :, :12].mean((1, 2, 3))[:, None]

    found = baseline.on_features(embed, kr.weights.Preprocess((20, 24), crop=1.0), *parts)
    assert found.accuracy == 1.0
    noise = baseline.on_features(lambda images: np.ones((len(images), 3)), kr.weights.Preprocess((8, 8)), *parts)
    assert noise.accuracy == 0.5


def test_slow_features_end_in_time(parts, monkeypatch):
    monkeypatch.setattr(baseline, "SECONDS", 0.0)
    found = baseline.on_features(lambda images: images[:, 0, 0], kr.weights.Preprocess((8, 8)), *parts)
    assert (found.trained, found.tested) == (32, 32)


@pytest.mark.parametrize("classes", [1, 2, 40, 300])
def test_any_number_of_classes_takes_seconds(classes):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(600, 768)).astype("float32"), np.arange(600) % classes
    begun = time.monotonic()
    assert 0 <= baseline._fitted("name", (x, y), (x[:50], y[:50])).accuracy <= 1
    assert time.monotonic() - begun < 60


def test_two_images_of_a_class_are_enough():
    x, y = np.random.default_rng(0).normal(size=(4, 768)).astype("float32"), np.array([0, 0, 1, 1])
    assert baseline._fitted("name", (x, y), (x, y)).accuracy == 1.0


def test_the_warning_names_both_and_what_to_try():
    found = Baseline("logistic regression on 16x16 pixels", 0.797, 100, 50)
    plan = SimpleNamespace(network=SimpleNamespace(source=None))
    line = finetuning._beaten(0.791, found, plan)
    assert line.startswith(
        "warning     the network (79.10%) is not better than logistic regression on 16x16 pixels (79.70%)"
    )
    assert "--weights imagenet" in line
    plan.network.source = "timm/resnet18.a1_in1k"
    assert "--weights" not in finetuning._beaten(0.791, found, plan)
