"""Keras layer that resizes, crops, scales and normalises images as a checkpoint expects them."""

from __future__ import annotations

import math
import os
from typing import Any, get_args

import keras
from keras import ops

from keras_residual import primitives
from keras_residual.weights.sources import CropMode, Interpolation, Weights

__all__ = ["Preprocess", "preprocessing"]


@keras.saving.register_keras_serializable(package="keras_residual")
class Preprocess(keras.layers.Layer):
    """timm's evaluation transform as a layer: `(N, H, W, C)` or `(H, W, C)` of 0..255 -> `(N, height, width, C)`.

    Images are resized as in PIL, horizontally and then vertically, rounding to integers after each pass. If the aspect
    ratio is kept, 1 in 50,000 values differs from PIL's by more than 1/255. If it is not (`"squash"`), Pillow 13 starts
    with the vertical pass when the height shrinks more; values then differ by 0.15/255 on average and by at most 5/255.

    Args:
        size: Height and width of the result.
        mean: Mean of each channel, subtracted after scaling to [0, 1].
        std: Standard deviation of each channel, by which the result is divided.
        crop: Fraction of the resized image's side that the crop keeps.
        crop_mode: `"center"` keeps the aspect ratio and crops the longer side, `"squash"` changes the aspect ratio, and
            `"border"` keeps the whole image and pads it with the mean.
        interpolation: `"bicubic"`, `"bilinear"` or `"nearest"`; antialiased except for `"nearest"`.

    Raises:
        ValueError: For an unknown interpolation or crop mode, or a crop outside (0, 1].
    """

    def __init__(
        self,
        size: tuple[int, int],
        mean: tuple[float, ...] = Weights.mean,
        std: tuple[float, ...] = Weights.std,
        crop: float = Weights.crop,
        crop_mode: CropMode | str = Weights.crop_mode,
        interpolation: Interpolation | str = "bicubic",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dtype", "float32")  # half precision is too coarse for values of 0..255
        super().__init__(**kwargs)
        for argument, value, allowed in (
            ("interpolation", interpolation, get_args(Interpolation)),
            ("crop_mode", crop_mode, get_args(CropMode)),
        ):
            if value not in allowed:
                raise ValueError(f"`{argument}` must be one of {', '.join(map(repr, allowed))}; got {value!r}.")
        if not 0 < crop <= 1:
            raise ValueError(f"`crop` must be a fraction of the image, 0 < crop <= 1; got {crop}.")
        self.size, self.mean, self.std = (int(size[0]), int(size[1])), tuple(mean), tuple(std)
        self.crop, self.crop_mode, self.interpolation = crop, crop_mode, interpolation
        # `call` must get the unconverted 8-bit values
        self.autocast = False

    def call(self, inputs: Any) -> Any:
        batched = len(inputs.shape) == 4
        x = ops.cast(inputs if batched else inputs[None], "float32")
        height, width = ops.shape(x)[1], ops.shape(x)[2]
        # timm rounds the size before the crop down to whole pixels
        tall, wide = (math.floor(side / self.crop) for side in self.size)
        if self.crop_mode == "squash":
            new = (tall, wide)
        elif self.crop_mode == "center" and tall == wide:  # torchvision's Resize of the shorter side
            flat = height <= width
            new = _where(flat, tall, tall * height // width), _where(flat, tall * width // height, tall)
        else:
            sides = [float(s) if isinstance(s, int) else ops.cast(s, "float64") for s in (height, width)]
            ratio = _extreme(sides[0] / tall, sides[1] / wide, largest=self.crop_mode == "border")
            new = tuple(_extreme_int(_round(side / ratio), 1) for side in sides)
        for target in ((height, new[1]), new):  # PIL's two passes, each rounded to integers
            x = ops.clip(ops.round(primitives.resize(x, target, self.interpolation)), 0.0, 255.0)
        fill = self.fill if self.crop_mode == "border" else (0.0,) * len(self.mean)
        x = _crop_or_pad(x, new, self.size, fill)
        x = (x / 255.0 - ops.convert_to_tensor(self.mean, "float32")) / ops.convert_to_tensor(self.std, "float32")
        x = ops.cast(x, self.compute_dtype)
        return x if batched else x[0]

    @property
    def fill(self) -> tuple[float, ...]:
        """Return the color of the border, 0 to 255: the mean, rounded."""
        return tuple(float(round(255 * m)) for m in self.mean)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        return (*input_shape[:-3], *self.size, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        names = ("size", "mean", "std", "crop", "crop_mode", "interpolation")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def preprocessing(source: str | os.PathLike[str] | Weights, revision: str | None = None) -> Preprocess:
    """Return the preprocessing that a checkpoint was trained with, as stated in its `config.json`.

    Args:
        source: A repository such as `"timm/resnet18.a1_in1k"`, a directory with a `config.json`, or a `Weights` record.
        revision: Branch, tag or commit of the repository.

    Returns:
        A layer that converts images with values of 0..255 to the model's input.
    """
    record = source if isinstance(source, Weights) else Weights.read(source, revision)
    return Preprocess(
        record.input_size[:2],
        record.mean,
        record.std,
        record.crop,
        record.crop_mode,
        record.interpolation,
        name="preprocessing",
    )


# In the functions below, sizes are Python numbers if the image size is static, and tensors if it is dynamic.


def _where(condition: Any, a: Any, b: Any) -> Any:
    return (a if condition else b) if isinstance(condition, bool) else ops.where(condition, a, b)


def _extreme(a: Any, b: Any, largest: bool) -> Any:
    if isinstance(a, float) and isinstance(b, float):
        return max(a, b) if largest else min(a, b)
    return ops.maximum(a, b) if largest else ops.minimum(a, b)


def _round(a: Any) -> Any:
    return round(a) if isinstance(a, float) else ops.cast(ops.round(a), "int32")


def _crop_or_pad(x: Any, given: tuple[Any, ...], size: tuple[int, int], fill: tuple[float, ...]) -> Any:
    """Crop or pad height and width evenly on both sides; an odd pixel is placed as in torchvision."""
    x = x - ops.convert_to_tensor(fill, "float32")  # so that padding with zeros pads with the fill
    for axis, (have, want) in enumerate(zip(given, size, strict=True), start=1):
        if isinstance(have, int) and have == want:
            continue
        missing = _extreme_int(want - have, 0)
        before = missing // 2
        widths = [(0, 0)] * 4
        widths[axis] = (before, missing - before)
        x = ops.pad(x, widths)
        extra = _extreme_int(have - want, 0)
        half = extra // 2
        start = half + (extra % 2) * (half % 2)  # Python rounds halves to even
        place = [slice(None)] * 4
        place[axis] = slice(start, start + want)
        x = x[tuple(place)]
    return x + ops.convert_to_tensor(fill, "float32")


def _extreme_int(a: Any, b: int) -> Any:
    return max(a, b) if isinstance(a, int) else ops.maximum(a, b)
