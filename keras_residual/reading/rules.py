"""Rules by which the bytes of an image become an array, in one frozen record."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

__all__ = ["Reading", "background_color", "composite", "scale", "value_range"]

Color = tuple[int, int, int]
_COLORS: dict[str, Color] = {"white": (255, 255, 255), "black": (0, 0, 0)}


@dataclasses.dataclass(frozen=True)
class Reading:
    """Rules for reading images. Datasets, runs, exports and model cards carry them, and every path obeys them.

    Attributes:
        background: Color (R, G, B) of 0..255 on which transparent images are composited; `None` drops the alpha
            channel and keeps the colors below it.
        range: The sample values that become 0 and 255, or `None` for the range of the sample type.
        channels: Number of channels of the array.
        dtype: `"uint8"`, or `"float32"` for images with more than 8 bits per sample, whose precision is kept.
    """

    background: Color | None = _COLORS["white"]
    range: tuple[float, float] | None = None
    channels: int = 3
    dtype: Literal["uint8", "float32"] = "uint8"

    def to_dict(self) -> dict[str, Any]:
        """Return the record for `run.json`, as JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any] | None) -> Reading:
        """Return the record of a run; `None` for a run of version 0.1, which dropped transparency."""
        if settings is None:
            return cls(background=None)
        tuples = {name: tuple(value) for name, value in settings.items() if isinstance(value, list)}
        return cls(**{**settings, **tuples})


# NumPy and TensorFlow give the same bits for both formulas. In floating point, no addition follows a multiplication,
# because compilers may fuse the two.


def composite(color: Any, alpha: Any, background: Any) -> Any:
    """Blend 8-bit colors with a background by their opacity, rounded to the nearest integer.

    Args:
        color: int32 array or tensor `(..., channels)` of 0..255, not premultiplied.
        alpha: int32 array or tensor `(..., 1)` of 0..255.
        background: `channels` integers of 0..255, of the same type.
    """
    return (color * alpha + background * (255 - alpha) + 127) // 255


def scale(samples: Any, low: float, high: float) -> Any:
    """Map samples from `low`..`high` to 0..255, without clipping.

    Args:
        samples: float32 array or tensor.
        low: Sample value that becomes 0.
        high: Sample value that becomes 255.
    """
    return (samples - np.float32(low)) * np.float32(255 / (high - low))


def background_color(given: Any) -> Color | None:
    """Return the color that a user means: `"white"`, `"black"`, `"R,G,B"`, three numbers, or `"drop"` for `None`.

    Raises:
        ValueError: If it is none of these.
    """
    if given is None or given == "drop":
        return None
    if isinstance(given, str) and given in _COLORS:
        return _COLORS[given]
    parts = re.split(r"\s*,\s*", given.strip()) if isinstance(given, str) else given
    try:
        red, green, blue = (int(part) for part in parts)
        if all(0 <= part <= 255 for part in (red, green, blue)) and [red, green, blue] == [float(p) for p in parts]:
            return red, green, blue
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"background must be white, black, drop, or three whole numbers of 0..255 such as 128,128,128; got {given!r}."
    )


def value_range(given: Any) -> tuple[float, float] | Literal["auto"] | None:
    """Return the range that a user means: `"LOW,HIGH"`, two numbers, `"auto"`, or `None` for that of the sample type.

    Raises:
        ValueError: If it is none of these, or empty, reversed or not finite.
    """
    if given is None or given == "auto":
        return given
    try:
        low, high = (float(part) for part in (given.split(",") if isinstance(given, str) else given))
    except (TypeError, ValueError):
        raise ValueError(f"range must be auto or two numbers LOW,HIGH such as 0,4095; got {given!r}.") from None
    if not -float("inf") < low < high < float("inf"):
        raise ValueError(f"range must be LOW,HIGH with LOW < HIGH, both finite; got {given!r}.")
    return low, high
