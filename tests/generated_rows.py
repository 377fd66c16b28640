"""Fill the registry up to 900 rows, to measure what they cost the suite: `pytest -p tests.generated_rows`.

A generated row is a registered one with more blocks, as most of timm's rows differ from a sibling.
"""

import dataclasses
import itertools
import sys

import keras_residual.models  # noqa: F401  (registers every family)
from keras_residual import registry

COUNT = 900


def deeper(row, more):
    """The row with more blocks in its deepest stage, under a name of its own; published facts are left out."""
    if hasattr(row, "depths"):
        depths = list(row.depths)
        depths[depths.index(max(depths))] += more
        change = {"depths": tuple(depths)}
    else:
        change = {"depth": row.depth + more}
    facts = {"timm": None, "aliases": (), "params": None, "gmacs": None, "tag": None}
    return dataclasses.replace(row, name=f"{row.name}Plus{more}", source="Generated", **facts, **change)


def fill():
    known = [e for e in registry.entries().values() if hasattr(e.config, "depths") or hasattr(e.config, "depth")]
    for more, entry in itertools.product(range(1, COUNT), known):
        if len(registry.entries()) >= COUNT:
            return
        try:
            row = deeper(entry.config, more)
        except ValueError:  # a row whose depth has a rule, such as 6n + 2
            continue
        setattr(sys.modules[entry.family.__module__], row.name, registry.variant(entry.family, row))


fill()
