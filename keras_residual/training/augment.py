"""Augmentation inside the training step: `keras.ops` alone, so it runs on each backend and compiles with XLA.

Nothing here has a state. Every random number is a hash of the seed, of what it is for, and of the image's position in
the whole training (`index`): a run that is cut off and goes on draws the same ones.

Images are `(N, H, W, C)` float32 of 0..255; `amount`s are `(N,)`.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_residual.training.recipes import Recipe

__all__ = ["Random", "augment", "beta", "mix"]

Images = Any


class Random:
    """Random numbers as a pure function of (seed, purpose, index).

    Args:
        seed: 0 to 2**32 - 1.
        index: `(N,)` uint32: the images' positions, counted through all of training.
    """

    def __init__(self, seed: int, index: Any) -> None:
        self.seed, self.index = seed, ops.cast(index, "uint32")

    def uniform(self, purpose: str) -> Any:
        """Return `(N,)` float32 in [0, 1), with 24 random bits."""
        key = _hash_int(self.seed ^ zlib.crc32(purpose.encode()))
        bits = _hash(_hash(ops.bitwise_xor(self.index, _uint(key))) + _uint(_hash_int(key ^ 0x9E3779B9)))
        return ops.cast(ops.right_shift(bits, _uint(8)), "float32") * 2.0**-24

    def normal(self, purpose: str) -> Any:
        """Return `(N,)` float32 of mean 0 and variance 1 (Box and Muller 1958)."""
        a, b = self.uniform(purpose + " a"), self.uniform(purpose + " b")
        return ops.sqrt(-2.0 * ops.log(1.0 - a)) * ops.cos(2 * math.pi * b)

    def sign(self, purpose: str) -> Any:
        """Return `(N,)` of -1 and 1."""
        return ops.where(self.uniform(purpose) < 0.5, -1.0, 1.0)

    def first(self) -> Random:
        """Random numbers of the batch: shape `(1,)`."""
        return Random(self.seed, self.index[:1])


def _uint(value: int) -> Any:
    return ops.convert_to_tensor(np.uint32(value & 0xFFFFFFFF))


def _hash(x: Any) -> Any:
    """Hash 32 bits bijectively; every bit of the result depends on every bit of `x` (Wellons 2018, lowbias32)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ops.bitwise_xor(x, ops.right_shift(x, _uint(shift))) * _uint(factor)
    return ops.bitwise_xor(x, ops.right_shift(x, _uint(16)))


def _hash_int(x: int) -> int:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x & 0xFFFFFFFF) >> shift) * factor & 0xFFFFFFFF
    return x ^ x >> 16


# ---------------------------------------------------------------------------------------------------- MixUp, CutMix


@functools.cache
def _beta_table(alpha: float) -> np.ndarray[Any, Any]:
    from scipy.special import betaincinv

    return betaincinv(alpha, alpha, np.linspace(0, 1, 4097)).astype("float32")


def beta(uniform: Any, alpha: float) -> Any:
    """Sample Beta(alpha, alpha) by a table of its inverse distribution function. No backend has a sampler of it
    that compiles with XLA on TensorFlow."""
    table = ops.convert_to_tensor(_beta_table(alpha))
    place = uniform * 4096.0
    low = ops.minimum(ops.cast(place, "int32"), 4095)
    part = place - ops.cast(low, "float32")
    return ops.take(table, low) * (1 - part) + ops.take(table, low + 1) * part


def plane(images: Any) -> tuple[int, int]:
    """Height and width; 1 by 1 for what is no image, which only MixUp is for."""
    return images.shape[1:3] if len(images.shape) == 4 else (1, 1)


def _partner(x: Any) -> Any:
    """Return the image to mix with each image: its neighbour in the batch, which is in random order."""
    return ops.roll(x, 1, axis=0)


def mix_plan(recipe: Recipe, random: Random, size: tuple[int, int]) -> tuple[Any, Any, Any]:
    """Draw how a batch is mixed: whether by CutMix, the share of each image, and the box (top, bottom, left, right).

    All have the shape `(1,)`: a batch is mixed in one way, as in timm and torchvision. The part is exact for boxes
    that the border cuts.
    """
    draw = random.first()
    mixed = draw.uniform("mix") < recipe.mix_probability
    if recipe.mixup and recipe.cutmix:
        cut = draw.uniform("mixup or cutmix") < 0.5
    else:
        cut = ops.broadcast_to(ops.convert_to_tensor(bool(recipe.cutmix)), (1,))
    u, ones = draw.uniform("part"), ops.ones((1,))
    part = beta(u, recipe.mixup) if recipe.mixup else ones
    height, width = size
    side = ops.sqrt(1 - beta(u, recipe.cutmix)) if recipe.cutmix else ones * 0
    box = []
    for name, length in (("row", height), ("column", width)):
        middle, half = ops.floor(draw.uniform(name) * length), ops.floor(side * length / 2)
        box += [ops.clip(middle - half, 0, length), ops.clip(middle + half, 0, length)]
    area = (box[1] - box[0]) * (box[3] - box[2]) / (height * width)
    part = ops.where(cut, 1 - area, part)
    return cut, ops.where(mixed, part, 1.0), [ops.where(mixed, edge, 0.0) for edge in box]


def mix(recipe: Recipe, images: Images, random: Random) -> Images:
    """MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019) of a batch with itself."""
    if not (recipe.mixup or recipe.cutmix):
        return images
    height, width = plane(images)
    cut, part, (top, bottom, left, right) = mix_plan(recipe, random, (height, width))
    other = _partner(images)
    if len(images.shape) != 4:
        part = ops.reshape(part, (1,) * len(images.shape))
        return part * images + (1 - part) * other
    rows, columns = ops.arange(height, dtype="float32"), ops.arange(width, dtype="float32")
    inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))[None]
    pasted = ops.where(inside[None, :, :, None], other, images)
    return ops.where(cut, pasted, part * images + (1 - part) * other)


def mix_targets(recipe: Recipe, targets: Any, random: Random, size: tuple[int, int]) -> Any:
    """Mix targets `(N, classes)` as `mix` mixes the images."""
    if not (recipe.mixup or recipe.cutmix):
        return targets
    _, part, _ = mix_plan(recipe, random, size)
    return part * targets + (1 - part) * _partner(targets)


def main_labels(recipe: Recipe, labels: Any, random: Random, size: tuple[int, int]) -> Any:
    """Return the labels `(N,)` with the largest share of each image after `mix`."""
    if not (recipe.mixup or recipe.cutmix):
        return labels
    _, part, _ = mix_plan(recipe, random, size)
    return ops.where(part >= 0.5, labels, _partner(labels))


# ------------------------------------------------------------------------------------------------------- operations


def _each(amount: Any) -> Any:
    return ops.reshape(amount, (-1, 1, 1, 1))


def _gray(images: Images) -> Images:
    """Luma as PIL has it; one channel, or other than three, are their own mean."""
    if images.shape[-1] == 3:
        weights = ops.convert_to_tensor(np.array([0.299, 0.587, 0.114], "float32"))
        return ops.sum(images * weights, -1, keepdims=True)
    return ops.mean(images, -1, keepdims=True)


def _blend(dull: Any, images: Images, amount: Any) -> Images:
    """Blend like PIL's `ImageEnhance`: 0 gives `dull`, 1 the image, and more than 1 extrapolates."""
    return ops.clip(dull + _each(amount) * (images - dull), 0.0, 255.0)


def brightness(images: Images, amount: Any) -> Images:
    return _blend(ops.zeros_like(images), images, amount)


def contrast(images: Images, amount: Any) -> Images:
    gray = ops.floor(ops.mean(ops.round(_gray(images)), (1, 2, 3), keepdims=True) + 0.5)
    return _blend(gray, images, amount)


def color(images: Images, amount: Any) -> Images:
    return _blend(_gray(images), images, amount)


def sharpness(images: Images, amount: Any) -> Images:
    return _blend(_smooth(images), images, amount)


def _smooth(images: Images) -> Images:
    """Filter like PIL's SMOOTH: a 3x3 kernel of ones with 5 in the middle, divided by 13; the border is unchanged."""
    height, width = images.shape[1:3]
    if min(height, width) < 3:
        return images
    total = 4.0 * images[:, 1:-1, 1:-1]
    for row in range(3):
        for column in range(3):
            total = total + images[:, row : row + height - 2, column : column + width - 2]
    inner = ops.pad(total / 13.0, [(0, 0), (1, 1), (1, 1), (0, 0)])
    edge = np.ones((1, height, width, 1), bool)
    edge[:, 1:-1, 1:-1] = False
    return ops.where(ops.convert_to_tensor(edge), images, inner)


def solarize(images: Images, threshold: Any) -> Images:
    return ops.where(images >= _each(threshold), 255.0 - images, images)


def solarize_add(images: Images, amount: Any) -> Images:
    return ops.where(images < 128.0, ops.clip(images + _each(amount), 0.0, 255.0), images)


def posterize(images: Images, bits: Any) -> Images:
    """Keep the highest `bits` of the eight."""
    step = _each(2.0 ** (8.0 - bits))
    return ops.floor(images / step) * step


def invert(images: Images) -> Images:
    return 255.0 - images


def autocontrast(images: Images) -> Images:
    low, high = (f(images, (1, 2), keepdims=True) for f in (ops.min, ops.max))
    spread = ops.where(high > low, high - low, 255.0)
    return ops.where(high > low, ops.clip((images - low) * (255.0 / spread), 0.0, 255.0), images)


def equalize(images: Images) -> Images:
    """Equalise the histogram of each channel, like PIL."""
    n, height, width, channels = images.shape
    n = ops.shape(images)[0] if n is None else n
    values = ops.cast(ops.clip(ops.round(images), 0.0, 255.0), "int32")
    planes = ops.reshape(ops.transpose(values, (0, 3, 1, 2)), (-1, height * width))  # (N * C, H * W)
    start = ops.arange(n * channels, dtype="int32")[:, None] * 256
    flat = ops.reshape(planes + start, (-1,))
    counts = ops.segment_sum(ops.ones_like(flat), flat, num_segments=n * channels * 256)
    counts = ops.reshape(counts, (-1, 256))
    used = counts > 0
    last = ops.max(ops.where(used, ops.arange(256, dtype="int32"), -1), -1, keepdims=True)
    step = (height * width - ops.take_along_axis(counts, last, -1)) // 255
    before = ops.cumsum(counts, -1) - counts
    table = ops.minimum((before + step // 2) // ops.maximum(step, 1), 255)
    flat_image = ops.sum(ops.cast(used, "int32"), -1, keepdims=True) <= 1
    table = ops.where(flat_image | (step == 0), ops.arange(256, dtype="int32"), table)
    equal = ops.take(ops.reshape(table, (-1,)), planes + start)
    equal = ops.transpose(ops.reshape(equal, (-1, channels, height, width)), (0, 2, 3, 1))
    return ops.cast(equal, "float32")


def blur(images: Images, sigma: Any) -> Images:
    """Gaussian blur of `sigma` pixels, up to 2; the kernel ends at 3 sigma."""
    offsets = np.arange(-6, 7)
    weights = ops.exp(-0.5 * (offsets[None].astype("float32") / ops.maximum(sigma, 1e-3)[:, None]) ** 2)
    weights = weights / ops.sum(weights, -1, keepdims=True)  # (N, 13)
    for axis in (1, 2):
        pad = [(0, 0)] * 4
        pad[axis] = (6, 6)
        size = images.shape[axis]
        x = ops.pad(images, pad, mode="symmetric") if size >= 6 else ops.pad(images, pad, mode="edge")
        total: Any = 0.0
        for i in range(13):
            place = [slice(None)] * 4
            place[axis] = slice(i, i + size)
            total = total + _each(weights[:, i]) * x[tuple(place)]
        images = total
    return images


def affine(images: Images, matrix: tuple[Any, ...], fill: Any) -> Images:
    """Move pixels, bilinearly: `matrix` (a, b, c, d, e, f), each `(N,)`, maps a pixel of the result to where it comes
    from, (a x + b y + c, d x + e y + f), in coordinates from the middle; what comes from outside is `fill`."""
    n, height, width, channels = images.shape
    n = ops.shape(images)[0] if n is None else n
    y, x = np.mgrid[:height, :width].astype("float32").reshape(2, 1, -1)
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    a, b, c, d, e, f = (ops.reshape(value, (-1, 1)) for value in matrix)
    column = a * x + b * y + c + (width - 1) / 2  # (N, H * W)
    row = d * x + e * y + f + (height - 1) / 2
    flat = ops.reshape(images - fill, (-1, height * width, channels))
    left, top = ops.floor(column), ops.floor(row)
    result: Any = 0.0
    for down in (0, 1):
        for right in (0, 1):
            i, j = top + down, left + right
            weight = (1 - ops.abs(row - i)) * (1 - ops.abs(column - j))
            inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
            place = ops.cast(ops.clip(i, 0, height - 1) * width + ops.clip(j, 0, width - 1), "int32")
            value = ops.take_along_axis(flat, ops.broadcast_to(place[..., None], (n, height * width, channels)), 1)
            result = result + ops.where(inside, weight, 0.0)[..., None] * value
    return ops.reshape(result, (-1, height, width, channels)) + fill


def distort(images: Images, random: Random, limits: tuple[float, float, float], fill: Any) -> Images:
    """Rotate, shift and zoom each image at random, at most by `Recipe.affine`: one map, so pixels are blurred once."""
    height, width = images.shape[1:3]

    def drawn(purpose: str, limit: float) -> Any:
        return limit * (2 * random.uniform(f"affine {purpose}") - 1)

    degrees, shift, zoom = limits
    angle, scale = drawn("angle", math.radians(degrees)), ops.exp(-drawn("zoom", zoom))
    cos, sin = scale * ops.cos(angle), scale * ops.sin(angle)
    right, down = drawn("column", shift * width), drawn("row", shift * height)
    return affine(images, (cos, -sin, right, sin, cos, down), fill)


def erase(images: Images, random: Random, probability: float, fill: Any) -> Images:
    """Random erasing (Zhong et al. 2020) to one colour: 2 to 33 % of the area, sides 0.3 to 3.3."""
    height, width = images.shape[1:3]
    area = (0.02 + 0.31 * random.uniform("erased area")) * height * width
    ratio = ops.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * random.uniform("erased ratio"))
    tall = ops.minimum(ops.round(ops.sqrt(area * ratio)), height - 1.0)
    wide = ops.minimum(ops.round(ops.sqrt(area / ratio)), width - 1.0)
    top = ops.floor(random.uniform("erased row") * (height - tall + 1))[:, None]
    left = ops.floor(random.uniform("erased column") * (width - wide + 1))[:, None]
    rows, columns = ops.arange(height, dtype="float32")[None], ops.arange(width, dtype="float32")[None]
    inside = ((rows >= top) & (rows < top + tall[:, None]))[:, :, None]
    inside = inside & ((columns >= left) & (columns < left + wide[:, None]))[:, None, :]
    chosen = ops.reshape(random.uniform("erased") < probability, (-1, 1, 1, 1))
    return ops.where(chosen & inside[..., None], fill, images)


# --------------------------------------------------------------------------------------------------------- policies

# Each operation's amount for a strength of 0..1 and a sign. Geometry is collected into one matrix: pixels move once.
Amount = Callable[[Any, Any], Any]


def _increasing(strength: Any, sign: Any) -> Any:
    return ops.maximum(0.1, 1 + 0.9 * sign * strength)


# Cubuk et al. 2020, in timm's form ("inc1"): more strength, more change.
RANDAUGMENT: dict[str, Amount | None] = {
    "autocontrast": None,
    "equalize": None,
    "invert": None,
    "rotate": lambda s, sign: 30.0 * s * sign,
    "posterize": lambda s, sign: 4.0 - ops.floor(4.0 * s),
    "solarize": lambda s, sign: 256.0 - ops.floor(256.0 * s),
    "solarize_add": lambda s, sign: ops.minimum(128.0, ops.floor(110.0 * s)),
    "color": _increasing,
    "contrast": _increasing,
    "brightness": _increasing,
    "sharpness": _increasing,
    "shear_x": lambda s, sign: 0.3 * s * sign,
    "shear_y": lambda s, sign: 0.3 * s * sign,
    "translate_x": lambda s, sign: 0.45 * s * sign,
    "translate_y": lambda s, sign: 0.45 * s * sign,
}
# Müller & Hutter 2021, table 6 "wide", in torchvision's form. Its shifts are pixels of 224.
TRIVIALAUGMENT: dict[str, Amount | None] = {
    "identity": None,
    "shear_x": lambda s, sign: 0.99 * s * sign,
    "shear_y": lambda s, sign: 0.99 * s * sign,
    "translate_x": lambda s, sign: 32.0 / 224 * s * sign,
    "translate_y": lambda s, sign: 32.0 / 224 * s * sign,
    "rotate": lambda s, sign: 135.0 * s * sign,
    "brightness": lambda s, sign: 1 + 0.99 * s * sign,
    "color": lambda s, sign: 1 + 0.99 * s * sign,
    "contrast": lambda s, sign: 1 + 0.99 * s * sign,
    "sharpness": lambda s, sign: 1 + 0.99 * s * sign,
    "posterize": lambda s, sign: 8.0 - ops.round(6.0 * s),
    "solarize": lambda s, sign: 255.0 * (1 - s),
    "autocontrast": None,
    "equalize": None,
}
_PIXELS: dict[str, Callable[..., Images]] = {
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": invert,
    "posterize": posterize,
    "solarize": solarize,
    "solarize_add": solarize_add,
    "color": color,
    "contrast": contrast,
    "brightness": brightness,
    "sharpness": sharpness,
}
_PLACES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def apply_one(images: Images, names: list[str], chosen: Any, amounts: dict[str, Any], fill: Any) -> Images:
    """Apply to each image the operation with index `chosen` `(N,)` in `names`; -1 for none.

    Without data-dependent control flow all pixel operations are computed and one of them is taken.
    """

    def amount(name: str, otherwise: float = 0.0) -> Any:
        value = amounts.get(name)
        return ops.where(chosen == names.index(name), value, otherwise) if value is not None else otherwise

    result = images
    for i, name in enumerate(names):
        if name in _PIXELS:
            changed = _PIXELS[name](images, *([amounts[name]] if name in amounts else []))
            result = ops.where(_each(chosen == i), changed, result)
    height, width = images.shape[1:3]
    angle = amount("rotate") * (math.pi / 180)
    zero = ops.zeros_like(ops.cast(chosen, "float32"))
    cos, sin = ops.cos(angle + zero), ops.sin(angle + zero)
    matrix = (
        cos,
        amount("shear_x") - sin,
        amount("translate_x") * width + zero,
        amount("shear_y") + sin,
        cos,
        amount("translate_y") * height + zero,
    )
    moved = functools.reduce(ops.logical_or, [chosen == i for i, name in enumerate(names) if name in _PLACES], zero > 0)
    return ops.where(_each(moved), affine(images, matrix, fill), result)


def augment(recipe: Recipe, images: Images, random: Random, fill: Any = 128.0) -> Images:
    """Apply the recipe's policy, affine map, colour jitter, erasing, and MixUp or CutMix, in this order.

    Args:
        recipe: What is done.
        images: `(N, H, W, C)` of 0..255; of any range and rank if the recipe only mixes.
        random: Of the seed and the images' positions.
        fill: What comes into the picture from outside, and what is erased: a number, or one a channel.

    Returns:
        Images of the same shape, float32.
    """
    x = ops.cast(images, "float32")
    if recipe.policy == "randaugment":
        names = list(RANDAUGMENT)
        for layer in range(recipe.policy_layers):
            key = f"layer {layer} "
            chosen = ops.cast(random.uniform(key + "operation") * len(names), "int32")
            chosen = ops.where(random.uniform(key + "at all") < recipe.policy_probability, chosen, -1)
            level = recipe.policy_magnitude + recipe.policy_spread * random.normal(key + "strength")
            x = _policy(x, RANDAUGMENT, chosen, ops.clip(level, 0.0, 10.0) / 10, random.sign(key + "sign"), fill)
    elif recipe.policy == "trivialaugment":
        chosen = ops.cast(random.uniform("operation") * len(TRIVIALAUGMENT), "int32")
        strength = ops.floor(random.uniform("strength") * 31) / 30
        x = _policy(x, TRIVIALAUGMENT, chosen, strength, random.sign("sign"), fill)
    elif recipe.policy == "threeaugment":
        chosen = ops.floor(random.uniform("three") * 3)
        blurred = blur(x, 0.1 + 1.9 * random.uniform("blur"))
        gray = ops.broadcast_to(_gray(x), ops.shape(x))
        for i, changed in enumerate((gray, solarize(x, 128.0 * ops.ones_like(chosen)), blurred)):
            x = ops.where(_each(chosen == i), changed, x)
    if any(recipe.affine):
        x = distort(x, random, recipe.affine, fill)
    if recipe.color_jitter:
        for name, change in (("brightness", brightness), ("contrast", contrast), ("color", color)):
            x = change(x, 1 + recipe.color_jitter * (2 * random.uniform("jitter " + name) - 1))
    if recipe.erasing:
        x = erase(x, random, recipe.erasing, fill)
    return mix(recipe, x, random)


def _policy(x: Any, table: dict[str, Amount | None], chosen: Any, strength: Any, sign: Any, fill: Any) -> Any:
    amounts = {name: amount(strength, sign) for name, amount in table.items() if amount}
    return apply_one(x, list(table), chosen, amounts, fill)
