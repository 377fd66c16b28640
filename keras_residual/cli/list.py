"""The command `keras-residual list`."""

from __future__ import annotations

import argparse
import sys

SUMMARY = "List the registered models."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="wildcard, for example 'resnet*'")


def run(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from keras_residual.models import find, list_models

    table = Table("name", "timm", "source", box=None, pad_edge=False)
    table.add_column("params", justify="right")
    table.add_column("GMACs", justify="right")
    names = list_models(options.pattern)
    for name in names:
        row = find(name).config
        params = f"{row.params / 1e6:,.1f} M" if row.params else ""
        table.add_row(name, row.timm or "", row.source, params, f"{row.gmacs:,.2f}" if row.gmacs else "")
    if not names:
        raise ValueError(f"No model matches {options.pattern!r}. `keras-residual list` lists all.")
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    print(f"{len(names)} models")
