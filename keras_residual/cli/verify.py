"""`keras-residual verify`."""

from __future__ import annotations

import argparse

from keras_residual.io import expand

SUMMARY = "Check an export: its files, and the answers of its signatures."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="a model's directory, or one version's")


def run(options: argparse.Namespace) -> None:
    """Check one exported version, or all of a model, and print how far each answer differs from the recorded one."""
    from keras_residual.exporting.bundle import METADATA, verify

    directory = expand(options.directory)
    numbers = [path for path in directory.glob("*") if path.name.isdecimal() and (path / METADATA).is_file()]
    for version in sorted(numbers, key=lambda path: int(path.name)) or [directory]:
        for name, difference in verify(version).items():
            print(f"{version}  {name:<16} differs by {difference:.1e}")
