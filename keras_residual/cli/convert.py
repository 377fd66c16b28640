"""The command `keras-residual convert`."""

from __future__ import annotations

import argparse

SUMMARY = "Convert weights to safetensors with timm's names and layout."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="file, directory, or repository such as timm/resnet18.a1_in1k")
    parser.add_argument("target", metavar="DST", help="output path, ending in .safetensors")
    parser.add_argument(
        "--model", metavar="NAME", help="network of the weights; required if the source has no config.json"
    )
    parser.add_argument("--classes", type=int, metavar="N", help="number of classes of the weights, with --model")


def run(options: argparse.Namespace) -> None:
    from keras_residual.models import create
    from keras_residual.models.pretrained import from_pretrained
    from keras_residual.weights import load_weights, save_weights

    if options.model is None:
        model = from_pretrained(options.source)
    else:
        model = create(options.model, **({} if options.classes is None else {"classes": options.classes}))
        print(load_weights(model, options.source))
    save_weights(model, options.target)
    print(f"{model.name}: {options.target}")
