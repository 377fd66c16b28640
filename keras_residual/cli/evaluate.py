"""The command `keras-residual evaluate`."""

from __future__ import annotations

import argparse
import sys

from keras_residual.io import expand, locked

SUMMARY = "Evaluate a run on labelled images."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument(
        "data", metavar="DATA", help="labelled images, as for finetune; of a split dataset the test split is used"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="write metrics, confusion matrix and worst mistakes to this directory"
    )


def run(options: argparse.Namespace) -> None:
    import numpy as np

    from keras_residual.classifier import Classifier, labelled
    from keras_residual.reports import write_report

    classifier = Classifier.load(expand(options.run))
    examples, messages, skipped = labelled(options.data, classifier.labels)
    for line in messages:
        print(f"warning: {line}", file=sys.stderr)
    if options.output is None:
        found = classifier.evaluate(examples) | {"skipped": float(skipped)}
    else:
        majority = int(np.bincount(examples.labels).argmax())
        folder = expand(options.output)
        with locked(folder):
            found = write_report(classifier, examples, folder, majority=majority, skipped=skipped)
    for name, value in found.items():
        print(f"{name:<20} {value:,.0f}" if name in ("images", "skipped") else f"{name:<20} {value:.4f}")
