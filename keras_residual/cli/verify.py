"""The command `keras-residual verify`."""

from __future__ import annotations

import argparse

from keras_residual.io import expand

SUMMARY = "Verify an export: hashes of its files, and responses of its signatures."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="directory of a model, or of one version")


def run(options: argparse.Namespace) -> None:
    """Check one exported version, or all of a model, and print how far each response differs from the recorded one."""
    from keras_residual.exporting.bundle import METADATA, verify

    directory = expand(options.directory)
    numbers = [path for path in directory.glob("*") if path.name.isdecimal() and (path / METADATA).is_file()]
    for version in sorted(numbers, key=lambda path: int(path.name)) or [directory]:
        for name, difference in verify(version).items():
            print(f"{version}  {name:<16} differs by {difference:.1e}")
