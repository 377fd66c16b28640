"""The command `keras-residual info`."""

from __future__ import annotations

import argparse

SUMMARY = "Show parameters, cost, source and checkpoints of a model."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of a model, also its timm name, or of a timm checkpoint")


def run(options: argparse.Namespace) -> None:
    from keras_residual.costs import costs
    from keras_residual.models import find
    from keras_residual.weights.published import published

    name, _, tag = options.name.removeprefix("timm/").partition(".")
    row = find(name).config
    count = costs(row.name)
    shape = " x ".join(map(str, row.input_shape))
    facts = {
        "parameters": f"{count.params:,}",
        "multiply-additions": f"{count.macs / 1e9:,.3f} G at {shape}",
        "activations": f"{count.activations / 1e6:,.2f} M",
        "input": shape,
        "outputs": str(row.classes),
        "timm": ", ".join(filter(None, (row.timm, *(alias for alias, _ in row.aliases)))),
        'weights="imagenet"': row.checkpoint or "",
        "source": row.source,
    }
    print(row.name)
    for fact, value in facts.items():
        if value:
            print(f"  {fact:<20} {value}")
    names = {row.timm, *(alias for alias, _ in row.aliases)}
    known = [
        p for p in published().values() if p.tag.partition(".")[0] in names and p.tag.endswith(f".{tag}" * bool(tag))
    ]
    if tag and not known:
        raise ValueError(f"{row.name} has no checkpoint {tag!r}. `keras-residual info {row.name}` lists those it has.")
    if known:
        print(f"\n  {'checkpoint':<58} {'pixels':>6} {'classes':>7} {'top-1':>6} {'top-5':>6}    at  licence")
    for p in sorted(known, key=lambda p: -(p.top1 or 0)):
        accuracy = f"{p.top1:6.2f} {p.top5:6.2f} {p.measured_at:>5}" if p.top1 else f"{'':19}"
        print(f"  {f'timm/{p.tag}':<58} {p.size:>6} {p.classes or '':>7} {accuracy}  {p.licence or 'not stated'}")
