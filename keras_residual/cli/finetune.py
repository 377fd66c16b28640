"""The command `keras-residual finetune`."""

from __future__ import annotations

import argparse
import os
import sys

SUMMARY = "Train a classifier on your own images. Run the same command again to resume."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", metavar="DATA", help="directory with one folder per class, a .csv or .parquet table, or tfds:NAME"
    )
    parser.add_argument("--model", default="ResNet18", metavar="NAME", help="name of a network (%(default)s)")
    parser.add_argument(
        "--weights",
        default="imagenet",
        metavar="SRC",
        help="imagenet, a repository such as timm/resnet18.a1_in1k, a file, a run directory, or none (%(default)s)",
    )
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="number of epochs (default: by the size of the dataset)"
    )
    parser.add_argument("--output", metavar="RUN", help="run directory (runs/NAME)")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="seed of split, shuffling, augmentation and new weights (%(default)s)",
    )
    parser.add_argument(
        "--validation",
        type=_fraction_or_source,
        default=0.2,
        metavar="PART",
        help="fraction for validation, or a separate dataset (%(default)s)",
    )
    parser.add_argument(
        "--recipe", metavar="NAME", help="name of a recipe, for example finetune or resnet_strikes_back_a2"
    )
    parser.add_argument(
        "--size", type=int, metavar="PIXELS", help="height and width of the images (default: the checkpoint's)"
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="images per step")
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help="peak learning rate, for this batch size")
    parser.add_argument("--head-epochs", type=int, metavar="N", help="number of epochs that train only the new head")
    parser.add_argument("--batch-norm", choices=["frozen", "train"], help="freeze or update batch-norm statistics")
    parser.add_argument(
        "--resize",
        choices=["crop", "squash", "letterbox"],
        help="crop images to the network's aspect ratio, or use all of each image, squashed or padded",
    )
    parser.add_argument(
        "--flip",
        choices=["none", "horizontal", "vertical", "both"],
        help="mirror images at random (default: the recipe's, horizontal)",
    )
    parser.add_argument(
        "--augment",
        choices=["none", "light", "strong"],
        help="random changes: none at all, small ones, or RandAugment, erasing and MixUp (default: the recipe's)",
    )
    parser.add_argument(
        "--crop-scale",
        type=_two_numbers,
        metavar="LOW,HIGH",
        help="area of random crops as a fraction of the image, for example 0.5,1 (default: the recipe's)",
    )
    parser.add_argument(
        "--patience", type=int, metavar="N", help="stop early after this many epochs without improvement"
    )
    parser.add_argument(
        "--precision", default="auto", metavar="POLICY", help="dtype policy, for example mixed_bfloat16 (%(default)s)"
    )
    parser.add_argument("--deterministic", action="store_true", help="make runs with the same seed bit-identical")
    parser.add_argument("--overwrite", action="store_true", help="replace a run with other settings")
    parser.add_argument(
        "--resume-anyway",
        action="store_const",
        const="anyway",
        dest="resume",
        help="resume an interrupted run even if settings or versions differ",
    )
    several = parser.add_argument_group("several machines", "Each runs the same command, with KERAS_BACKEND=jax.")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    several.add_argument("--processes", type=int, default=1, metavar="N", help="number of processes (%(default)s)")
    several.add_argument("--process-id", type=int, default=0, metavar="I", help="number of this process, from 0")


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
        os._exit(2)  # a normal exit would wait for the process that has ended


def _two_numbers(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be two numbers LOW,HIGH, for example 0.5,1; got {text!r}") from None
    return low, high


def _fraction_or_source(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
