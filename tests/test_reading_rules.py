"""Test the accepted spellings of backgrounds and ranges, and the record that is stored in runs."""

import fractions
import json

import numpy as np
import pytest
import tensorflow as tf

from keras_residual.reading.rules import Reading, background_color, composite, scale, value_range


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


def test_composite_is_the_nearest_integer():
    """For every color, opacity and background: exact fractions, computed without the formula."""
    color, alpha = np.mgrid[:256, :256].astype("int32")[..., None]
    for background in (0, 1, 77, 128, 254, 255):
        exact = color * alpha + background * (255 - alpha)  # 255 times the blend
        found = composite(color, alpha, background)
        assert (2 * np.abs(255 * found - exact) < 255).all()
        in_graph = tf.function(composite)(tf.constant(color), tf.constant(alpha), background)
        np.testing.assert_array_equal(in_graph, found)


def test_scale_is_exact_for_widened_bytes_and_equal_in_a_graph():
    every = np.arange(65536, dtype="float32")
    np.testing.assert_array_equal(scale(every[::257], 0, 65535), np.arange(256))
    for low, high in ((0, 65535), (0, 4095), (-1000, 3095), (-0.25, 1.5)):
        found = scale(every, low, high)
        np.testing.assert_array_equal(tf.function(scale)(tf.constant(every), low, high), found)
        exact = float((fractions.Fraction(1234) - fractions.Fraction(low)) * 255 / fractions.Fraction(high - low))
        assert found[1234] == pytest.approx(exact, rel=1e-6)
