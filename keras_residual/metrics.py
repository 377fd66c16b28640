"""Classification metrics whose memory grows with images plus classes, not with their product."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = ["Answers", "confusions", "measure", "per_class"]

BINS = 15  # Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2


@dataclasses.dataclass(frozen=True)
class Answers:
    """Predictions reduced to the per-image values that the metrics need, each an array `(N,)`.

    Attributes:
        truth: Indices of the true classes.
        guesses: Indices of the predicted classes.
        sure: Probability of the predicted class.
        own: Probability of the true class.
        likelier: Number of classes that are more probable than the true class.
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
        """Reduce the probabilities `(N, classes)` of images with labels `(N,)` to `Answers`."""
        labels = np.asarray(labels)
        own = probabilities[np.arange(len(labels)), labels]
        likelier = (probabilities > own[:, None]).sum(-1)
        guesses, sure = probabilities.argmax(-1), probabilities.max(-1)
        return cls(labels, guesses, sure, own, likelier, probabilities.shape[1])

    @classmethod
    def joined(cls, parts: Iterable[Answers]) -> Answers:
        """Concatenate the results of several batches.

        Raises:
            ValueError: If there are no images.
        """
        parts = list(parts)
        if not sum(len(part.truth) for part in parts):
            raise ValueError("A classifier must be evaluated on at least one image; got none. Check the data source.")
        names = ("truth", "guesses", "sure", "own", "likelier")
        arrays: Any = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return cls(**arrays, classes=parts[0].classes)

    def per_class(self) -> dict[str, np.ndarray[Any, Any]]:
        """Compute the metrics of each class; see the function `per_class`."""
        return per_class(self.truth, self.guesses, self.classes)

    def measure(self, majority: int) -> dict[str, float]:
        """Compute the metrics; see the function `measure`."""
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
    """Compute metrics of predicted probabilities against the true labels.

    Args:
        probabilities: Predicted probabilities `(N, classes)`; each row sums to 1.
        labels: Indices of the true classes `(N,)`.
        majority: Index of the most frequent class in the *training* data, which the baseline always predicts.

    Returns:
        `accuracy`, `top5` (only with 6 or more classes), `macro_f1` (mean over the classes in `labels`), `loss`
        (cross-entropy in nats), `calibration_error` (expected calibration error, 15 bins of equal width),
        `majority_accuracy` (accuracy of the majority-class baseline) and `images` (number of images).

    Raises:
        ValueError: If there are no images.
    """
    return Answers.joined([Answers.of(probabilities, labels)]).measure(majority)


def confusions(truth: Any, guesses: Any) -> list[tuple[int, int, int]]:
    """Count the mistakes per pair of classes as `(images, true, predicted)`, most frequent pair first.

    Pairs without mistakes are left out; a full matrix for 20,000 classes would need 3 GB.
    """
    truth, guesses = np.asarray(truth), np.asarray(guesses)
    wrong = np.stack([truth, guesses], 1)[truth != guesses]
    pairs, counts = np.unique(wrong, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(counts[i]), int(pairs[i, 0]), int(pairs[i, 1])) for i in order]


def per_class(truth: Any, guesses: Any, classes: int) -> dict[str, np.ndarray[Any, Any]]:
    """Compute the number of images, recall, precision and F1 score of each class.

    Returns:
        `images`, `recall`, `precision` and `f1`, each `(classes,)`; a ratio whose denominator is 0 is 0.
    """
    truth, guesses = np.asarray(truth), np.asarray(guesses)
    hits, own, named = (np.bincount(part, minlength=classes) for part in (truth[truth == guesses], truth, guesses))
    measures = {"recall": (hits, own), "precision": (hits, named), "f1": (2 * hits, own + named)}
    return {"images": own, **{name: part / np.maximum(total, 1) for name, (part, total) in measures.items()}}
