"""Turn the samples of an image file, of any type and number of channels, into the array that a network receives."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from keras_residual.reading.rules import Reading, composite, scale

LUMA = (19595, 38470, 7471)  # in 65,536ths, as in Pillow's conversion to mode "L"


class UnreadableError(ValueError):
    """Error for an image that cannot be used, with the reason as its message."""


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Samples of one image as stored, but upright.

    Attributes:
        values: `(height, width, channels)`, integers or floats.
        range: Sample values that mean black and white, or `None` if the type has no fixed range.
        alpha: `(height, width, 1)`: opacity, of the same type as `values`; `None` for an opaque image.
        inverted: Whether the smallest value means white.
        premultiplied: Whether the colors have already been multiplied by their opacity.
    """

    values: np.ndarray[Any, Any]
    range: tuple[float, float] | None = (0, 255)
    alpha: np.ndarray[Any, Any] | None = None
    inverted: bool = False
    premultiplied: bool = False

    @property
    def kind(self) -> str:
        """Return the sample type for people and for comparisons, such as `"uint16"`."""
        return kind_of(self.values.dtype, self.range)

    @property
    def opaque(self) -> bool:
        """Return True if no pixel is transparent."""
        return self.alpha is None or self.range is None or bool((self.alpha >= self.range[1]).all())

    @property
    def extremes(self) -> tuple[Any, Any]:
        """Return the smallest and the largest value.

        Raises:
            UnreadableError: If a value is NaN or infinite.
        """
        _require_finite(self.values)
        return self.values.min(), self.values.max()


def kind_of(dtype: Any, limits: tuple[float, float] | None) -> str:
    """Return the name of a sample type; packed samples of 12 bits are `"uint12"`."""
    dtype = np.dtype(dtype)
    if dtype.kind == "u" and limits is not None and limits[0] == 0:
        return f"uint{int(limits[1]).bit_length()}"
    return dtype.name


def fixed_range(dtype: Any, bits: int | None = None) -> tuple[float, float] | None:
    """Return the range of a sample type: `None` for floats and for 32 bits or more, which are never used in full."""
    dtype = np.dtype(dtype)
    bits = 8 * dtype.itemsize if bits is None else bits
    if dtype.kind not in "ui" or bits > 16:
        return None
    return (0, 2**bits - 1) if dtype.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def array(samples: Samples, reading: Reading) -> np.ndarray[Any, Any]:
    """Return the array that `reading` describes.

    Returns:
        `(height, width, reading.channels)`, uint8 or float32, both on a scale of 0..255.

    Raises:
        UnreadableError: If the samples need a range, or their number of channels does not fit.
    """
    stored = samples.values.shape[-1] + (samples.alpha is not None)
    if samples.alpha is not None and reading.channels == stored != 3:  # all of them are wanted, the alpha channel too
        both = np.concatenate([samples.values, samples.alpha], -1)
        samples = Samples(both, samples.range, None, samples.inverted)
    values, alpha = (_scaled(part, samples, reading) for part in (samples.values, samples.alpha))
    if alpha is not None:
        values = _blended(values, alpha, reading, samples.premultiplied)
    return np.ascontiguousarray(_fitted(values, reading.channels))


def _scaled(part: Any, samples: Samples, reading: Reading) -> Any:
    """Map values, or an alpha channel (whose range is always that of its type), to 0..255, uint8 or float32."""
    if part is None:
        return None
    opacity = part is samples.alpha
    limits = samples.range if opacity or reading.range is None else reading.range
    if limits is None:
        raise UnreadableError(
            f"has {part.dtype.name} samples, which have no fixed range; choose the values that mean black and white "
            "(value_range=(LOW, HIGH), --range LOW,HIGH)"
        )
    inverted = samples.inverted and not opacity
    if part.dtype == np.uint8 and tuple(limits) == (0, 255):
        part = 255 - part if inverted else part
        return part if reading.dtype == "uint8" else part.astype("float32")
    if part.dtype == np.uint16 and tuple(limits) == (0, 65535) and reading.dtype == "uint8":
        part = (part >> 8).astype("uint8")  # the high byte, as TensorFlow's decoder of PNG
        return 255 - part if inverted else part
    _require_finite(part)
    exact = part.dtype.itemsize <= 2 or part.dtype == np.float32
    part = part.astype("float32" if exact else "float64")
    part = sum(limits) - part if inverted else part
    part = np.clip(scale(part, *limits), 0, 255)
    return np.rint(part).astype("uint8") if reading.dtype == "uint8" else part.astype("float32")


def _require_finite(values: Any) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UnreadableError("has samples that are not finite numbers (NaN or infinity)")


def _blended(values: Any, alpha: Any, reading: Reading, premultiplied: bool) -> Any:
    if reading.background is None:
        return values
    background = np.array(reading.background, "int32")
    if values.shape[-1] == 1:
        if len(set(reading.background)) == 1:
            background = background[:1]
        else:
            values = values.repeat(3, -1)
    if premultiplied:
        whole = values.dtype == np.uint8
        rest = background * (255 - alpha.astype("int32" if whole else "float32"))
        rest = (rest + 127) // 255 if whole else rest / np.float32(255)
        return np.clip(values + rest, 0, 255).astype(values.dtype)
    if values.dtype == np.uint8:
        return composite(values.astype("int32"), alpha.astype("int32"), background).astype("uint8")
    alpha = alpha / np.float32(255)
    return values * alpha + background.astype("float32") * (1 - alpha)


def _fitted(values: Any, channels: int) -> Any:
    """Return an image with the wanted number of channels, converting between grayscale and RGB only."""
    given = values.shape[-1]
    if given == channels:
        return values
    if given == 1 and channels == 3:
        return values.repeat(3, -1)
    if given == 3 and channels == 1:
        if values.dtype == np.uint8:
            return ((values.astype("int32") @ np.array(LUMA, "int32") + 0x8000) // 0x10000).astype("uint8")[..., None]
        return (values @ (np.array(LUMA, "float32") / 0x10000))[..., None]
    raise UnreadableError(
        f"has {given} channels, but {channels} are expected; read {given} with channels={given} (--channels {given}), "
        "or convert the image"
    )
