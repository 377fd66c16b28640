"""Run `tests.checks` over the registry."""

import pytest

from keras_residual import registry

from . import checks, tools

ENTRIES = list(registry.entries().values())
DISTINCT = tools.distinct(ENTRIES)
PARTS = tools.cover(ENTRIES)
FAMILIES = list({entry.family: entry for entry in reversed(PARTS)}.values())
ROWS = {"every": ENTRIES, "distinct": DISTINCT, "parts": PARTS, "third": PARTS[::3], "families": FAMILIES}
LARGE = 16  # blocks; a network of more takes seconds to build


def _cases():
    # By entry first: the twin that one check has built serves the next.
    for entry in ENTRIES:
        for check, rows in checks.ALL.items():
            if rows != "every" and entry not in DISTINCT:
                continue
            large = check is checks.check_full_size and tools.blocks_of(entry.config) > LARGE
            slow = entry not in ROWS[rows] or large
            name = f"{entry.config.name}-{check.__name__.removeprefix('check_')}"
            yield pytest.param(check, entry, id=name, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(("check", "entry"), list(_cases()))
def test_registered_model(check, entry):
    check(entry)


def test_representatives():
    """No part is left out, so that a new block or stem is always checked; and no family."""
    assert frozenset().union(*map(tools.parts, PARTS)) == frozenset().union(*map(tools.parts, ENTRIES))
    assert {entry.family for entry in PARTS} == {entry.family for entry in ENTRIES}
    assert {tools.features(e) for e in DISTINCT} == {tools.features(e) for e in ENTRIES}
