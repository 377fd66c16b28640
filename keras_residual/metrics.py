"""What is said of a classifier on held-out images."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["measure"]

BINS = 15  # Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2


def measure(probabilities: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], majority: int) -> dict[str, float]:
    """Compares predictions with the truth.

    Args:
        probabilities: `(N, classes)`, rows that sum to 1.
        labels: `(N,)`, numbers of the true classes.
        majority: The most frequent class of the *training* data, which a constant answer would be.

    Returns:
        `accuracy`, `top5` (from 6 classes on), `macro_f1` (the mean over the classes that occur), `loss` (cross-entropy
        in nats), `calibration_error` (expected, 15 bins of equal width), `majority_accuracy` (of the constant answer)
        and `images`.

    Raises:
        ValueError: If there are no images.
    """
    from sklearn.metrics import f1_score

    labels = np.asarray(labels)
    if not len(labels):
        raise ValueError("A classifier is measured on images. Received: none.")
    guesses, sure = probabilities.argmax(-1), probabilities.max(-1).astype("float64")
    right = guesses == labels
    own = probabilities[np.arange(len(labels)), labels]
    place = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)  # bins are open below and closed above
    gaps = [abs(right[place == b].mean() - sure[place == b].mean()) * (place == b).mean() for b in np.unique(place)]
    found = {
        "accuracy": right.mean(),
        "macro_f1": f1_score(labels, guesses, labels=np.unique(labels), average="macro", zero_division=0.0),
        "loss": -np.log(np.maximum(own.astype("float64"), 1e-12)).mean(),
        "calibration_error": np.sum(gaps),
        "majority_accuracy": (labels == majority).mean(),
        "images": len(labels),
    }
    if probabilities.shape[1] > 5:
        better = (probabilities > own[:, None]).sum(-1)
        found["top5"] = (better < 5).mean()
    return {name: float(value) for name, value in found.items()}
