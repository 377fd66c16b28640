"""The command `keras-residual quickstart`."""

from __future__ import annotations

import argparse

from keras_residual.io import expand

SUMMARY = "Train, compare and export a small residual network on handwritten digits."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="number of runs, each with its own split")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the first run")
    parser.add_argument("--epochs", type=int, default=None, metavar="N", help="training epochs (40)")
    parser.add_argument("--width", type=int, default=32, metavar="N", help="channels of the first stage (%(default)s)")
    parser.add_argument("--output", default="runs/digits", metavar="DIR", help="run directory (%(default)s)")
    parser.add_argument(
        "--saved-model",
        default="saved_models/digits",
        metavar="DIR",
        help="directory of the exported model (%(default)s)",
    )


def run(options: argparse.Namespace) -> None:
    from keras_residual.quickstart import quickstart

    output, saved_model = expand(options.output), expand(options.saved_model)
    quickstart(output, saved_model, options.seeds, options.seed, options.epochs, options.width)
