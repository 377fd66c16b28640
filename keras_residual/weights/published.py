"""Published accuracy and licence of timm's checkpoints. The table is informational; loading does not depend on it."""

from __future__ import annotations

import csv
import dataclasses
import functools
from importlib import resources


@dataclasses.dataclass(frozen=True)
class Published:
    """Published record of a timm checkpoint.

    Attributes:
        tag: Name of the checkpoint, such as `"resnet18.a1_in1k"`; its Hub repository is `timm/` followed by the name.
        size: Height and width of its input images in pixels.
        classes: Number of classes; 0 if it has no classifier.
        top1: ImageNet-1k validation accuracy in per cent, as published by timm; `None` if there is none.
        top5: Top-5 accuracy of the same evaluation.
        measured_at: Height and width of the images in that evaluation, in pixels.
        licence: Licence of the weights; empty if timm states none.
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
