"""Logistic regression as the baseline that a trained network should beat."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_residual.weights import Preprocess

__all__ = ["Baseline", "on_features", "on_pixels"]

SIDE = 16  # height and width of small pixels
MOST_IMAGES = 2_000  # of each split; more would take minutes
SECONDS = 10.0  # for the features of each split
STRENGTHS = (1e-3, 1e-2, 1e-1)  # inverse strengths of the L2 penalty, chosen by cross-validation
COMPONENTS = 128  # principal components; fitting hundreds of inputs would take ten times as long
MOST_CLASSES = 50  # with more classes, cross-validation would take minutes; the strength is then the middle one

Batch = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Accuracy of a logistic regression on the validation split.

    Attributes:
        name: Description of its inputs.
        accuracy: Fraction of correct validation images.
        trained: Number of training images.
        tested: Number of validation images.
    """

    name: str
    accuracy: float
    trained: int
    tested: int


def on_pixels(training: Any, validation: Any) -> Baseline:
    """Fit small pixels, 16x16, of two `keras_residual.data.Examples`; at most 2,000 images of each."""
    whole = Preprocess((SIDE, SIDE), crop=1.0, crop_mode="squash", interpolation="bilinear")

    def pixels(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return batch.reshape(len(batch), -1) / np.float32(255)

    parts = [_gather(_sample(part), whole, pixels, None) for part in (training, validation)]
    return _fitted(f"logistic regression on {SIDE}x{SIDE} pixels", *parts)


def on_features(embed: Callable[[Any], Any], preprocess: Preprocess, training: Any, validation: Any) -> Baseline:
    """Fit the features of a pretrained network that is not trained further: a linear probe.

    Args:
        embed: Function from images `(N, H, W, C)` of 0..255, as evaluation prepares them, to features `(N, D)`.
        preprocess: Layer that resizes and crops the images.
        training: Training images; as many of them as 10 seconds allow, up to 2,000.
        validation: Validation images, limited likewise.
    """
    parts = [_gather(_sample(part), preprocess, embed, SECONDS) for part in (training, validation)]
    return _fitted("logistic regression on the checkpoint's features", *parts)


def _sample(examples: Any) -> Any:
    """Return at most 2,000 examples in random order, so that any beginning of them is a fair sample."""
    order = np.random.default_rng(0).permutation(len(examples))
    return examples.take(order[:MOST_IMAGES])


def _gather(examples: Any, preprocess: Preprocess, embed: Callable[[Any], Any], seconds: float | None) -> Batch:
    """Return the features `(N, D)` and labels `(N,)` of as many images as the time allows, at least one batch."""
    found, begun = [], time.monotonic()
    for images, labels in examples.evaluation(32, preprocess):
        found.append((np.asarray(embed(np.asarray(images)), "float32"), np.asarray(labels)))
        if seconds is not None and time.monotonic() - begun > seconds:
            break
    features, labels = zip(*found, strict=True)
    return np.concatenate(features), np.concatenate(labels)


def _fitted(name: str, training: Batch, validation: Batch) -> Baseline:
    from sklearn.decomposition import PCA
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    x, y = training
    counts = np.unique(y, return_counts=True)[1]
    if len(counts) < 2:
        model: Any = DummyClassifier()
    else:
        folds = min(3, int(counts.min())) if len(counts) <= MOST_CLASSES else 1
        fitted = len(y) - -(-len(y) // folds) if folds > 1 else len(y)  # images left when the largest fold is left out
        reduce = PCA(min(COMPONENTS, fitted, x.shape[1]), svd_solver="randomized", random_state=0)
        model = make_pipeline(
            StandardScaler(), reduce, LogisticRegression(C=STRENGTHS[len(STRENGTHS) // 2], max_iter=100)
        )
        if folds > 1:
            model = GridSearchCV(model, {"logisticregression__C": STRENGTHS}, cv=folds)
    # small matrices: threads would wait for each other
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 100 iterations need not converge
        accuracy = float(model.fit(x, y).score(*validation))
    return Baseline(name, accuracy, len(y), len(validation[1]))
