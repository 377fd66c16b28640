"""`keras-residual finetune`."""

from __future__ import annotations

import argparse
import os
import sys

SUMMARY = "Train a classifier on your own images. Run the same command again to resume."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="a folder per class, a .csv or .parquet manifest, or tfds:NAME")
    parser.add_argument("--model", default="ResNet18", metavar="NAME", help="a registered network (%(default)s)")
    parser.add_argument(
        "--weights",
        default="imagenet",
        metavar="SRC",
        help="imagenet, a repository such as timm/resnet18.a1_in1k, a file, a run, or none (%(default)s)",
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the images (by the size of the data)")
    parser.add_argument("--output", metavar="RUN", help="the run's directory (runs/NAME)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of split, order, new weights (%(default)s)")
    parser.add_argument(
        "--validation", type=_fraction_or_source, default=0.2, metavar="PART", help="a part, or a source (%(default)s)"
    )
    parser.add_argument("--recipe", metavar="NAME", help="a preset, for example finetune or resnet_strikes_back_a2")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="height and width of the images (the checkpoint's)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images in a step")
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help="the highest one, for this batch size")
    parser.add_argument("--head-epochs", type=int, metavar="N", help="epochs, out of all, that train the head alone")
    parser.add_argument("--batch-norm", choices=["frozen", "train"], help="freeze or update batch-norm statistics")
    parser.add_argument("--patience", type=int, metavar="N", help="epochs without improvement before it stops early")
    parser.add_argument(
        "--precision", default="auto", metavar="POLICY", help="for example mixed_bfloat16 (%(default)s)"
    )
    parser.add_argument("--deterministic", action="store_true", help="the same seed gives the same bits")
    parser.add_argument("--overwrite", action="store_true", help="replace a run with other settings")
    parser.add_argument(
        "--resume-anyway",
        action="store_const",
        const="anyway",
        dest="resume",
        help="resume an interrupted run even if settings or versions differ",
    )
    several = parser.add_argument_group("several machines", "Each runs the same command, with KERAS_BACKEND=jax.")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    several.add_argument("--processes", type=int, default=1, metavar="N", help="how many there are (%(default)s)")
    several.add_argument("--process-id", type=int, default=0, metavar="I", help="which one this is, 0 to N - 1")


def run(options: argparse.Namespace) -> None:
    from keras_residual.finetuning import finetune

    given = {key: value for key, value in vars(options).items() if key != "command" and value is not None}
    if given["weights"].lower() == "none":
        given["weights"] = None
    try:
        finetune(**given)
    except ConnectionError as error:
        if options.processes == 1:
            raise
        print(f"keras-residual: {error}", file=sys.stderr, flush=True)
        os._exit(2)  # at a usual exit JAX would wait for the process that has gone


def _fraction_or_source(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
