"""Thousands of classes: labels are walked through a fixed number of times, not once for each class."""

import numpy as np
import pytest

from keras_residual import data
from keras_residual.data import arrays, catalog, loading
from keras_residual.data.listing import Listing
from keras_residual.data.validation import Record


class Labels(list):
    """Counts how often somebody walks through it."""

    walks = 0

    def __iter__(self):
        self.walks += 1
        return super().__iter__()


def listing(classes):
    count = 2 * classes
    names = [str(i) for i in range(count)]
    labels = Labels(i % classes for i in range(count))
    return Listing("", tuple(map(str, range(classes))), names, labels, [None] * count, [], [])


def all_occur(given):
    arrays._check_classes(given)
    assert not given.warnings


def from_records(given):
    records = [Record(height=8, width=8, digest=name) for name in given.names]
    catalog._from_records(given, [b""] * len(records), records, 3, False, "the folder")


def absent(given):
    assert not loading._absent(given)


@pytest.mark.parametrize("work", [all_occur, from_records, absent])
def test_walks_do_not_grow_with_the_classes(work):
    walks = []
    for classes in (5, 500):
        given = listing(classes)
        work(given)
        walks.append(given.labels.walks)
    assert walks[0] == walks[1] > 0


def test_many_classes():
    y = np.arange(8000) % 4000
    found = data.load((np.zeros((8000, 2, 2, 1), "uint8"), y), validation=0.0)
    assert len(found.labels) == 4000
    assert len(found.train) == 8000
