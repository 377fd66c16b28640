"""Write `keras_residual/weights/published.csv`: `python -m tests.parity.published RESULTS`.

RESULTS is `results/results-imagenet.csv` of timm's repository; tags, sizes and licences come from the installed timm.
The file lists all of timm's tags, so that a new family does not change it.
"""

import csv
import sys
from pathlib import Path

from . import conftest  # noqa: F401  (lets torchvision import)

TARGET = Path(__file__).parents[2] / "keras_residual" / "weights" / "published.csv"


def rows(results):
    """Yield one row for each of timm's pretrained tags."""
    import timm

    for tag in sorted(timm.list_pretrained()):
        given = timm.get_pretrained_cfg(tag)
        accuracy = results.get(tag, {})
        yield {
            "tag": tag,
            "size": given.input_size[-1],
            "classes": given.num_classes,
            "top1": accuracy.get("top1", ""),
            "top5": accuracy.get("top5", ""),
            "measured_at": accuracy.get("img_size", ""),
            "licence": given.license or "",
        }


if __name__ == "__main__":
    with open(sys.argv[1], newline="") as file:
        table = list(rows({row["model"]: row for row in csv.DictReader(file)}))
    with open(TARGET, "w", newline="") as file:
        writer = csv.DictWriter(file, table[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    print(f"{len(table)} tags")
