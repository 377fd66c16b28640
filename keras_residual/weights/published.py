"""Accuracy and licence of timm's checkpoints, for people to choose by; loading needs none of it."""

from __future__ import annotations

import csv
import dataclasses
import functools
from importlib import resources


@dataclasses.dataclass(frozen=True)
class Published:
    """One of timm's checkpoints.

    Attributes:
        tag: Its name, such as `"resnet18.a1_in1k"`; `timm/` before it makes the repository on the Hub.
        size: Height and width of the images it is meant for, in pixels.
        classes: Number of classes; 0 if it has no classifier.
        top1: ImageNet-1k validation accuracy in per cent, by timm's own evaluation; `None` if it has none.
        top5: The same, of the five likeliest classes.
        measured_at: Height and width of the images of that evaluation.
        licence: Of the weights; empty if timm states none.
    """

    tag: str
    size: int
    classes: int
    top1: float | None
    top5: float | None
    measured_at: int | None
    licence: str


@functools.cache
def published() -> dict[str, Published]:
    """Return all of timm's pretrained checkpoints by tag (timm 1.0.31, its results of August 2026)."""
    with resources.files("keras_residual.weights").joinpath("published.csv").open(encoding="utf-8") as file:
        return {
            row["tag"]: Published(
                row["tag"],
                int(row["size"]),
                int(row["classes"]),
                float(row["top1"]) if row["top1"] else None,
                float(row["top5"]) if row["top5"] else None,
                int(row["measured_at"]) if row["measured_at"] else None,
                row["licence"],
            )
            for row in csv.DictReader(file)
        }
