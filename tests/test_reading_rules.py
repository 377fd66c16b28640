"""What users may type for a background and a range, and the record that runs keep."""

import json

import pytest

from keras_residual.reading.rules import Reading, background_color, value_range


@pytest.mark.parametrize(
    ("given", "color"),
    [
        ("white", (255, 255, 255)),
        ("black", (0, 0, 0)),
        ("drop", None),
        (None, None),
        ("1, 2,3", (1, 2, 3)),
        ((1, 2, 3), (1, 2, 3)),
    ],
)
def test_colors(given, color):
    assert background_color(given) == color


@pytest.mark.parametrize("given", ["whit", "", "1,2", "1,2,256", "-1,2,3", (1.5, 2, 3), 7, ("a", "b", "c")])
def test_no_color(given):
    with pytest.raises(ValueError, match="background must be white, black, drop, or three whole numbers"):
        background_color(given)


@pytest.mark.parametrize(
    ("given", "found"), [("0,4095", (0, 4095)), ((-1, 1), (-1, 1)), ("auto", "auto"), (None, None)]
)
def test_ranges(given, found):
    assert value_range(given) == found


@pytest.mark.parametrize("given", ["5,5", "7,3", "nan,1", "0,inf", "1", "a,b", 4, "1,2,3"])
def test_no_range(given):
    with pytest.raises(ValueError, match="range must be"):
        value_range(given)


def test_record():
    record = Reading((1, 2, 3), (0.0, 4095.0), 1, "float32")
    assert Reading.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert Reading.from_dict(None).background is None, "what runs of version 0.1 did"
