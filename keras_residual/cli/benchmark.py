"""The command `keras-residual benchmark`."""

from __future__ import annotations

import argparse

SUMMARY = "Measure training and inference throughput of a network on this machine, with and without XLA."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of a network")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="images per step (%(default)s)")
    parser.add_argument(
        "--size", type=int, metavar="PIXELS", help="height and width of the images (default: the network's)"
    )
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="timed steps (%(default)s)")
    parser.add_argument(
        "--xla", choices=["both", "on", "off"], default="both", help="whether XLA compiles (%(default)s)"
    )
    parser.add_argument(
        "--precision", default="auto", metavar="POLICY", help="dtype policy, for example mixed_bfloat16 (%(default)s)"
    )
    parser.add_argument("--hlo", metavar="FILE", help="write the HLO of the compiled training step to this file")
    parser.add_argument("--csv", metavar="FILE", help="write the table to this file")


def run(options: argparse.Namespace) -> None:
    from keras_residual.benchmark import benchmark

    given = {key: value for key, value in vars(options).items() if key not in ("command", "name")}
    benchmark(options.name, **given)
