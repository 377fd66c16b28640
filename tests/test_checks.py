"""Runs `tests.checks` over the registry."""

import pytest

from keras_residual import registry

from . import checks, tools

ENTRIES = list(registry.entries().values())
DISTINCT = tools.distinct(ENTRIES)
COVER = tools.cover(ENTRIES)
LARGE = 33  # blocks; a network of more takes seconds to build


def _cases():
    # By entry first: the twin that one check has built serves the next.
    for entry in ENTRIES:
        for check, rows in checks.ALL.items():
            if rows != "every" and entry not in DISTINCT:
                continue
            slow = (rows == "cover" and entry not in COVER) or (
                check is checks.check_full_size and tools.blocks_of(entry.config) > LARGE
            )
            name = f"{entry.config.name}-{check.__name__.removeprefix('check_')}"
            yield pytest.param(check, entry, id=name, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(("check", "entry"), list(_cases()))
def test_registered_model(check, entry):
    check(entry)


def test_representatives():
    """The cover leaves no value of any field out, so that a new block or stem is always checked in full."""
    assert frozenset().union(*map(tools.features, COVER)) == frozenset().union(*map(tools.features, ENTRIES))
    assert {tools.features(e) for e in DISTINCT} == {tools.features(e) for e in ENTRIES}
