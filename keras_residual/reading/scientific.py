"""Read images saved by NumPy (`.npy`, `.npz`) and DICOM images (with the extra `dicom`)."""

from __future__ import annotations

import contextlib
import io
import zipfile
from typing import Any

import numpy as np

from keras_residual.reading.samples import Samples, UnreadableError, fixed_range, kind_of

_NPY, _ZIP, _DICOM = b"\x93NUMPY", b"PK\x03\x04", b"DICM"
_MOST_BYTES = 1 << 30


def is_ours(data: bytes) -> bool:
    """Return True for a file of NumPy or a DICOM file."""
    return data.startswith(_NPY) or data[128:132] == _DICOM or (data.startswith(_ZIP) and bool(_members(data)))


def header(data: bytes) -> tuple[int, int, int, str, tuple[str, ...]]:
    """Return height, width, number of channels, sample type and notes, without reading the samples.

    Raises:
        UnreadableError: If the file is not an image.
    """
    if data[128:132] == _DICOM:
        return _dicom_header(_dataset(data, stop_before_pixels=True))
    with _npy(data) as file:
        shape, dtype = _array_header(file)
    height, width, channels = shape if len(shape) == 3 else (*shape, 1)
    return height, width, channels, kind_of(dtype, fixed_range(dtype)), ()


def samples(data: bytes) -> Samples:
    """Return the samples of an image.

    Raises:
        UnreadableError: If the file is damaged, or cannot be decoded.
    """
    if data[128:132] == _DICOM:
        return _dicom_samples(_dataset(data))
    with _npy(data) as file:
        _array_header(file)
        file.seek(0)
        values = np.load(file, allow_pickle=False)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    values = values.astype("uint8") * np.uint8(255) if values.dtype == bool else values
    values = values[..., None] if values.ndim == 2 else values
    return Samples(values, fixed_range(values.dtype))


# --------------------------------------------------------------------------------------------------------------- NumPy


def _members(data: bytes) -> list[str]:
    with contextlib.suppress(zipfile.BadZipFile):
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
        return names if all(name.endswith(".npy") for name in names) else []
    return []


def _npy(data: bytes) -> Any:
    """Open the only array of a file."""
    if data.startswith(_NPY):
        return io.BytesIO(data)
    names = _members(data)
    if len(names) != 1:
        shown = ", ".join(name.removesuffix(".npy") for name in names[:5])
        raise UnreadableError(f"contains {len(names)} arrays ({shown}); an .npz image must contain exactly one")
    return zipfile.ZipFile(io.BytesIO(data)).open(names[0])


def _array_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(file)
    if len(shape) not in (2, 3) or 0 in shape:
        raise UnreadableError(f"has the shape {shape}; an image must be (height, width) or (height, width, channels)")
    if len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] > 16:
        raise UnreadableError(
            f"has the shape {shape}, apparently channels first; save it as (height, width, channels): "
            "np.moveaxis(image, 0, -1)"
        )
    if dtype.kind not in "uifb":
        raise UnreadableError(f"has the dtype {dtype}; an image must have integers or floats")
    if int(np.prod(shape, dtype="int64")) * dtype.itemsize > _MOST_BYTES:
        raise UnreadableError(f"has the shape {shape}, too large to read; resize it")
    return shape, dtype


# --------------------------------------------------------------------------------------------------------------- DICOM


def _dataset(data: bytes, **options: Any) -> Any:
    try:
        import pydicom
    except ImportError:
        raise UnreadableError(
            "is a DICOM image, which needs pydicom; install it: pip install 'keras-residual[dicom]'"
        ) from None
    return pydicom.dcmread(io.BytesIO(data), **options)


def _dicom_header(found: Any) -> tuple[int, int, int, str, tuple[str, ...]]:
    if "Rows" not in found or "Columns" not in found:
        raise UnreadableError("is a DICOM file without an image")
    syntax = found.file_meta.TransferSyntaxUID
    if syntax.is_private or not syntax.is_transfer_syntax:
        raise UnreadableError(
            f"has the unknown DICOM transfer syntax {syntax}; decompress it, for example with `gdcmconv --raw`"
        )
    frames = int(found.get("NumberOfFrames", 1) or 1)
    channels = int(found.get("SamplesPerPixel", 1))
    channels = 3 if found.get("PhotometricInterpretation") == "PALETTE COLOR" else channels
    color = channels == 3
    kind = "uint8" if color and int(found.BitsAllocated) == 8 else "DICOM"
    return int(found.Rows), int(found.Columns), channels, kind, ("several pages",) if frames > 1 else ()


def _dicom_samples(found: Any) -> Samples:
    """Apply rescale, window and photometric interpretation; without a window, the range is that of the stored bits."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut, convert_color_space, pixel_array

    _dicom_header(found)
    try:
        pixels = pixel_array(found, index=0, raw=True)
    except (NotImplementedError, RuntimeError) as error:
        name = found.file_meta.TransferSyntaxUID.name
        reason = " ".join(str(error).split())[:120]
        raise UnreadableError(
            f"cannot be decoded: its DICOM transfer syntax is {name}, and pydicom says: {reason}. Install "
            "pylibjpeg[all], or decompress the file"
        ) from None
    meaning = found.PhotometricInterpretation
    if meaning == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, found)
        return Samples(pixels, fixed_range(pixels.dtype))
    if meaning.startswith("YBR"):
        pixels = convert_color_space(pixels, meaning, "RGB")
    if pixels.ndim == 3:
        return Samples(pixels, fixed_range(pixels.dtype, int(found.BitsStored)))
    limits = _window(found)
    values = np.asarray(apply_modality_lut(pixels, found))[..., None]
    if values.dtype == np.float64:
        values = values.astype("float32")
    return Samples(values, limits, inverted=meaning == "MONOCHROME1")


def _window(found: Any) -> tuple[float, float]:
    """Return the values that mean black and white: the first window, or else the range of the stored bits."""
    windows = [np.atleast_1d(found.get(name) or []) for name in ("WindowCenter", "WindowWidth")]
    if all(map(len, windows)):
        center, width = (float(values[0]) for values in windows)
        if str(found.get("VOILUTFunction", "LINEAR")) == "LINEAR_EXACT":
            return center - width / 2, center + width / 2
        if width > 1:  # DICOM PS3.3, C.11.2.1.2: the function LINEAR
            return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
        return center - 1, center
    bits, signed = int(found.BitsStored), int(found.PixelRepresentation)
    slope, intercept = (float(found.get(name, other)) for name, other in (("RescaleSlope", 1), ("RescaleIntercept", 0)))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    ends = sorted((low * slope + intercept, high * slope + intercept))
    return ends[0], ends[1]
