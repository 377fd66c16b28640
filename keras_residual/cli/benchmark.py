"""`keras-residual benchmark`."""

from __future__ import annotations

import argparse

SUMMARY = "Measure how fast a network trains and answers here, with XLA and without."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a registered network")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="images in a step (%(default)s)")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="height and width of the images (the network's)")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="steps that are timed (%(default)s)")
    parser.add_argument("--xla", choices=["both", "on", "off"], default="both", help="(%(default)s)")
    parser.add_argument(
        "--precision", default="auto", metavar="POLICY", help="for example mixed_bfloat16 (%(default)s)"
    )
    parser.add_argument(
        "--hlo", metavar="FILE", help="write the compiled training step there: the proof that it compiles"
    )
    parser.add_argument("--csv", metavar="FILE", help="write the table there too")


def run(options: argparse.Namespace) -> None:
    from keras_residual.benchmark import benchmark

    given = {key: value for key, value in vars(options).items() if key not in ("command", "name")}
    benchmark(options.name, **given)
