"""What several tests need: noise, models with every variable filled, representatives of the registry."""

import dataclasses
import functools
import math

import numpy as np

from keras_residual.registry import Config


def noise(shape, seed=0):
    """Standard normal float32 of the given shape."""
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def randomise(model, seed=0):
    """Fills every variable, so that no zero-initialised branch or unit statistic hides a mistake."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        normal = generator.normal(size=variable.shape)
        if variable.name == "moving_variance":
            value = 1 + 0.3 * np.abs(normal)
        elif variable.name in ("gamma", "scale", "gain"):
            value = 1 + 0.2 * normal
        elif variable.name == "kernel":
            value = normal * 1.4 / math.sqrt(max(math.prod(variable.shape[:-1]), 1))
        else:
            value = 0.2 * normal
        variable.assign(value)
    return model


def distance(ours, theirs):
    """Largest difference relative to the largest value of the reference."""
    ours, theirs = np.asarray(ours, "float64"), np.asarray(theirs, "float64")
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-12))


def describe(value):
    """A hashable description of a row's field; functions by name, numbers by whether they are 0, 1 or more.

    Rows that differ in size alone, by 12 heads or 16, run the same code.
    """
    if isinstance(value, functools.partial):
        return (describe(value.func), *sorted((k, describe(v)) for k, v in value.keywords.items()))
    if isinstance(value, (tuple, list)):
        return tuple(sorted({str(describe(v)) for v in value}))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value if value in (0, 1) else "number"
    return getattr(value, "__qualname__", None) or repr(value)


# What every row has says what it is called, how large it is, where it comes from: not how it is built.
_FACTS = {field.name for field in dataclasses.fields(Config)} - {"dynamic_size", "ranks"}


def features(entry):
    """The set of (family, field, value) that a row's tiny twin consists of."""
    row = entry.config.tiny()
    fields = [f.name for f in dataclasses.fields(row) if f.name not in _FACTS]
    return frozenset((entry.family.__name__, name, describe(getattr(row, name))) for name in fields)


def parts(entry):
    """The same where a block, norm or activation is one part, whichever family has it."""
    row = entry.config.tiny()
    return frozenset(
        (value,) if callable(getattr(row, field)) or isinstance(getattr(row, field), str) else (family, field, value)
        for family, field, value in features(entry)
    )


def distinct(entries):
    """The first row of each tiny topology: rows that differ in depth or width alone have the same twin."""
    seen = {}
    for entry in entries:
        seen.setdefault(features(entry), entry)
    return list(seen.values())


def cover(entries):
    """A few rows that together have all `parts` of all rows, chosen greedily."""
    left = {entry.config.name: parts(entry) for entry in entries}
    by_name = {entry.config.name: entry for entry in entries}
    todo, chosen = frozenset().union(*left.values()), []
    while todo:
        best = max(left, key=lambda name: len(left[name] & todo))
        todo -= left[best]
        chosen.append(by_name[best])
    return chosen


def blocks_of(config):
    """How many blocks the full network has, as far as the row tells: what building it takes is in proportion."""
    depths = getattr(config, "depths", None) or (getattr(config, "depth", 1),) * len(getattr(config, "widths", (1,)))
    return sum(depths)
