"""The command `keras-residual predict`."""

from __future__ import annotations

import argparse
import json
import sys

from keras_residual.io import expand

SUMMARY = "Classify images."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Exit codes: 0 if every image was classified; 1 if an image could not be read, or there was none; 2 if the "
        "command failed (for example, no such run or file, or a URL)."
    )
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, or patterns such as 'photos/*.jpg'")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="number of classes to print (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON per image")


def run(options: argparse.Namespace) -> int:
    from keras_residual.classifier import Classifier
    from keras_residual.data.images import find

    images, skipped = find(options.images)
    if skipped:
        names = ", ".join(path.name for path in skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        print(f"skipped {len(skipped)} (hidden, or not an image): {names}", file=sys.stderr)
    if not images:
        print(f"keras-residual: There are no images in {', '.join(options.images)}.", file=sys.stderr)
        return 1
    classifier, failed = Classifier.load(expand(options.run)), False
    for first in range(0, len(images), 256):  # print results while the rest is running
        for found in classifier.predict(images[first : first + 256]):
            failed |= bool(found.error)
            if options.json:
                print(json.dumps({"image": found.name, "classes": dict(found.top(options.top)), "error": found.error}))
            elif found.error:
                print(f"{found.name}: {found.error}", file=sys.stderr)
            else:
                classes = ", ".join(f"{label} {p:.1%}" for label, p in found.top(options.top))
                print(f"{found.name}: {classes}")
    return 1 if failed else 0
