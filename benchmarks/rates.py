"""Compare learning rates of `finetune` on small datasets: test accuracy, three seeds, two tasks, one change at a time.

    python benchmarks/rates.py [--output benchmarks/rates.csv]

The network is small (TestResNet, 64 px). It is pretrained on some classes and then fine-tuned on a dozen images of each
of the other classes, or trained on these from scratch. The shapes are generated; the digits are scikit-learn's.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

from keras_residual.finetuning import _settings, finetune
from keras_residual.models import find

SIZE, FEW = 64, 12
FINETUNE = [{}, {"learning_rate": 3e-4}, {"learning_rate": 3e-3}, {"head_rate": 3e-3}, {"head_rate": 3e-2}]
SCRATCH = [{}, {"learning_rate": 5e-4}, {"learning_rate": 8e-3}]


def shapes(names, each, seed):
    """Return images of outlines at random positions, in random colours, on noise."""
    generator = np.random.default_rng(seed)
    images = []
    for name, _ in itertools.product(names, range(each)):
        image = Image.fromarray(generator.integers(0, 90, (SIZE, SIZE, 3)).astype("uint8"))
        draw, colour = ImageDraw.Draw(image), tuple(int(c) for c in generator.integers(150, 256, 3))
        side = int(generator.integers(24, 40))
        x, y = (int(v) for v in generator.integers(4, SIZE - side - 4, 2))
        corners = {
            "square": [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)],
            "triangle": [(0, 1), (0.5, 0), (1, 1), (0, 1)],
            "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5), (0.5, 0)],
            "hook": [(0, 0), (0, 1), (1, 1)],
            "zigzag": [(0, 0), (1, 0), (0, 1), (1, 1)],
        }
        if name == "circle":
            draw.ellipse((x, y, x + side, y + side), outline=colour, width=5)
        else:
            draw.line([(x + side * a, y + side * b) for a, b in corners[name]], colour, 5)
        images.append(np.asarray(image))
    return np.stack(images), np.repeat(np.arange(len(names)), each)


def digits(classes, seed, each=None):
    """Return enlarged digits of some classes: `each` images per class, and the remaining images."""
    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    order = order[np.isin(data.target[order], classes)]
    y = np.searchsorted(classes, data.target[order])
    x = np.kron(data.images[order], np.ones((SIZE // 8, SIZE // 8)))[..., None].repeat(3, -1) * (255 / 16)
    chosen = np.zeros(len(y), bool)
    for c in range(len(classes)):
        chosen[np.flatnonzero(y == c)[: each or len(y)]] = True
    x = x.round().astype("uint8")
    return (x[chosen], y[chosen]), (x[~chosen], y[~chosen])


def task(name, seed):
    """Return the datasets for pretraining, fine-tuning and testing."""
    if name == "digits":
        few, rest = digits((5, 6, 7, 8, 9), seed, FEW)
        return digits((0, 1, 2, 3, 4), 0)[0], few, rest
    others = ("diamond", "hook", "zigzag")
    return shapes(("circle", "square", "triangle"), 150, 0), shapes(others, FEW, 10 + seed), shapes(others, 100, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=os.path.join(os.path.dirname(__file__), "rates.csv"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    row, rows = find("TestResNet").config, []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("shapes", "digits"):
            first, *_ = task(name, 0)
            base = Path(folder) / name
            finetune(first, "TestResNet", None, 15, size=SIZE, output=base, say=lambda line: None)
            for scratch, changes in [(False, c) for c in FINETUNE] + [(True, c) for c in SCRATCH]:
                found = []
                for seed in range(arguments.seeds):
                    _, few, test = task(name, seed)
                    recipe = _settings(None, len(few[1]), row, scratch).replace(**changes)
                    run = finetune(
                        *(few, "TestResNet", None if scratch else base),
                        recipe=recipe,
                        size=SIZE,
                        seed=seed,
                        output=Path(folder) / f"{name}{scratch}{changes}{seed}",
                        say=lambda line: None,
                    )
                    found.append(run.evaluate(test)["accuracy"])
                rows.append(
                    {
                        "task": name,
                        "from": "scratch" if scratch else "pretrained",
                        "learning_rate": recipe.learning_rate,
                        "head_rate": "" if scratch else recipe.head_rate,
                        "accuracy": round(float(np.mean(found)), 4),
                        "lowest": round(min(found), 4),
                        "highest": round(max(found), 4),
                        "seeds": len(found),
                    }
                )
                print(rows[-1], flush=True)
    with open(arguments.output, "w", newline="") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
