"""Measures of a classifier on validation images, in memory that grows with images plus classes, not their product."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = ["Answers", "confusions", "measure", "per_class"]

BINS = 15  # Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers of a classifier, reduced to what the measures need: a few numbers per image, each an array `(N,)`.

    Attributes:
        truth: Numbers of the true classes.
        guesses: Numbers of the predicted ones.
        sure: Probability of the predicted class.
        own: Probability of the true class.
        likelier: How many classes are likelier than the true one.
        classes: Number of classes.
    """

    truth: np.ndarray[Any, Any]
    guesses: np.ndarray[Any, Any]
    sure: np.ndarray[Any, Any]
    own: np.ndarray[Any, Any]
    likelier: np.ndarray[Any, Any]
    classes: int

    @classmethod
    def of(cls, probabilities: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Answers:
        """Reduce the probabilities `(N, classes)` of images with the labels `(N,)`."""
        labels = np.asarray(labels)
        own = probabilities[np.arange(len(labels)), labels]
        likelier = (probabilities > own[:, None]).sum(-1)
        guesses, sure = probabilities.argmax(-1), probabilities.max(-1)
        return cls(labels, guesses, sure, own, likelier, probabilities.shape[1])

    @classmethod
    def joined(cls, parts: Iterable[Answers]) -> Answers:
        """Concatenate the answers of several batches.

        Raises:
            ValueError: If there are none.
        """
        parts = list(parts)
        if not sum(len(part.truth) for part in parts):
            raise ValueError("Measuring a classifier needs images; got none.")
        names = ("truth", "guesses", "sure", "own", "likelier")
        arrays: Any = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return cls(**arrays, classes=parts[0].classes)

    def per_class(self) -> dict[str, np.ndarray[Any, Any]]:
        """Compute the measures of each class; see the function `per_class`."""
        return per_class(self.truth, self.guesses, self.classes)

    def measure(self, majority: int) -> dict[str, float]:
        """Compute the measures; see the function `measure`."""
        right, sure = self.guesses == self.truth, self.sure.astype("float64")
        place = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)  # bins are open below and closed above
        gaps = [abs(right[place == b].mean() - sure[place == b].mean()) * (place == b).mean() for b in np.unique(place)]
        found = {
            "accuracy": right.mean(),
            "macro_f1": self.per_class()["f1"][np.unique(self.truth)].mean(),
            "loss": -np.log(np.maximum(self.own.astype("float64"), 1e-12)).mean(),
            "calibration_error": np.sum(gaps),
            "majority_accuracy": (self.truth == majority).mean(),
            "images": len(self.truth),
        }
        if self.classes > 5:
            found["top5"] = (self.likelier < 5).mean()
        return {name: float(value) for name, value in found.items()}


def measure(probabilities: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], majority: int) -> dict[str, float]:
    """Compare predictions with the truth.

    Args:
        probabilities: `(N, classes)`, rows that sum to 1.
        labels: `(N,)`, numbers of the true classes.
        majority: The most frequent class of the *training* data, which a constant classifier would predict.

    Returns:
        `accuracy`, `top5` (from 6 classes on), `macro_f1` (the mean over the classes that occur), `loss` (cross-entropy
        in nats), `calibration_error` (expected, 15 bins of equal width), `majority_accuracy` (of the constant
        classifier) and `images`.

    Raises:
        ValueError: If there are no images.
    """
    return Answers.joined([Answers.of(probabilities, labels)]).measure(majority)


def confusions(truth: Any, guesses: Any) -> list[tuple[int, int, int]]:
    """Count the mistakes by pair of classes: `(images, true, predicted)`, the most frequent pair first.

    Only pairs that occur are counted; a matrix of 20,000 classes would need 3 GB.
    """
    truth, guesses = np.asarray(truth), np.asarray(guesses)
    wrong = np.stack([truth, guesses], 1)[truth != guesses]
    pairs, counts = np.unique(wrong, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(counts[i]), int(pairs[i, 0]), int(pairs[i, 1])) for i in order]


def per_class(truth: Any, guesses: Any, classes: int) -> dict[str, np.ndarray[Any, Any]]:
    """Count and measure each class.

    Returns:
        `images`, `recall`, `precision` and `f1`, each `(classes,)`; a ratio without any image is 0.
    """
    truth, guesses = np.asarray(truth), np.asarray(guesses)
    hits, own, named = (np.bincount(part, minlength=classes) for part in (truth[truth == guesses], truth, guesses))
    measures = {"recall": (hits, own), "precision": (hits, named), "f1": (2 * hits, own + named)}
    return {"images": own, **{name: part / np.maximum(whole, 1) for name, (part, whole) in measures.items()}}
