"""Augmentation in the step: against PIL and SciPy, in XLA, the same on JAX, a function of seed and position."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from keras_residual.training import Recipe, augment
from keras_residual.training.augment import Random

EVERYTHING = [
    Recipe(
        policy="randaugment",
        policy_layers=1,
        policy_spread=0.5,
        affine=(9, 0.1, 0.1),
        mixup=0.2,
        cutmix=1.0,
        erasing=0.25,
    ),
    Recipe(policy="trivialaugment", mixup=0.8),
    Recipe(policy="threeaugment", color_jitter=0.3, cutmix=1.0),
]
# compilation takes seconds: the longest of them by default
COMPILED = [
    pytest.param(i, id=str(recipe.policy), marks=[] if i == 0 else pytest.mark.slow)
    for i, recipe in enumerate(EVERYTHING)
]


def pictures(n=4, size=24, channels=3, seed=0):
    """Smooth colours with noise: neither flat nor white noise, as pictures are."""
    g = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    waves = [np.sin(g.uniform(0, 6) + g.uniform(2, 9) * x + g.uniform(2, 9) * y) for _ in range(n * channels)]
    images = np.stack(waves).reshape(n, channels, size, size).transpose(0, 2, 3, 1)
    return np.clip(128 + 70 * images + g.normal(0, 15, images.shape), 20, 230).astype("uint8")


def by_pil(images, change):
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in images]).astype("float32")


def amount(value, n=4):
    return ops.convert_to_tensor(np.full(n, value, "float32"))


PIL = {
    "autocontrast": (lambda x: augment.autocontrast(x), ImageOps.autocontrast),
    "equalize": (lambda x: augment.equalize(x), ImageOps.equalize),
    "invert": (lambda x: augment.invert(x), ImageOps.invert),
    "posterize": (lambda x: augment.posterize(x, amount(3.0)), lambda i: ImageOps.posterize(i, 3)),
    "posterize to 1 bit": (lambda x: augment.posterize(x, amount(1.0)), lambda i: ImageOps.posterize(i, 1)),
    "solarize": (lambda x: augment.solarize(x, amount(100.0)), lambda i: ImageOps.solarize(i, 100)),
    "color": (lambda x: augment.color(x, amount(1.7)), lambda i: ImageEnhance.Color(i).enhance(1.7)),
    "contrast": (lambda x: augment.contrast(x, amount(0.4)), lambda i: ImageEnhance.Contrast(i).enhance(0.4)),
    "brightness": (lambda x: augment.brightness(x, amount(1.5)), lambda i: ImageEnhance.Brightness(i).enhance(1.5)),
    "sharpness": (lambda x: augment.sharpness(x, amount(1.9)), lambda i: ImageEnhance.Sharpness(i).enhance(1.9)),
}


@pytest.mark.parametrize("name", PIL)
def test_operations_are_pil_s(name):
    """To rounding: PIL keeps whole numbers."""
    ours, theirs = PIL[name]
    images = pictures()
    difference = np.abs(np.asarray(ours(ops.convert_to_tensor(images.astype("float32")))) - by_pil(images, theirs))
    limit = {"equalize": 0, "invert": 0, "posterize": 0, "solarize": 0}.get(name.split()[0], 1.6)
    assert difference.max() <= limit, difference.max()


def test_blur_is_a_gaussian():
    from scipy.ndimage import gaussian_filter

    images = pictures(2).astype("float32")
    ours = augment.blur(ops.convert_to_tensor(images), ops.convert_to_tensor(np.array([0.7, 1.6], "float32")))
    for image, mine, sigma in zip(images, np.asarray(ours), (0.7, 1.6), strict=True):
        theirs = gaussian_filter(image, (sigma, sigma, 0), mode="reflect", radius=6)
        assert np.abs(mine - theirs).max() < 0.01
    assert ImageFilter.GaussianBlur(1).radius == 1  # DeiT III's own, by boxes, is only near to one


@pytest.mark.parametrize(
    ("name", "value", "matrix"),
    [
        ("rotate", 30.0, None),
        ("shear_x", 0.3, (1, 0.3, 0, 0, 1, 0)),
        ("shear_y", -0.2, (1, 0, 0, -0.2, 1, 0)),
        ("translate_x", 0.25, (1, 0, 6, 0, 1, 0)),
        ("translate_y", -0.25, (1, 0, 0, 0, 1, -6)),
    ],
)
def test_geometry_is_pil_s(name, value, matrix):
    """PIL's matrices are about the corner, ours about the middle; its angle is counter-clockwise, as timm's is."""
    images = pictures(4, 24)
    names = list(augment.RANDAUGMENT)
    chosen = ops.convert_to_tensor(np.full(4, names.index(name), "int32"))
    moved = augment.apply_one(
        ops.convert_to_tensor(images.astype("float32")),
        names,
        chosen,
        {n: amount(value) for n in names if augment.RANDAUGMENT[n]},
        128.0,
    )

    def change(image):
        fill = (128, 128, 128)
        if matrix is None:
            return image.rotate(value, Image.Resampling.BILINEAR, fillcolor=fill)
        a, b, c, d, e, f = matrix
        middle = 12
        corner = (a, b, c + middle - a * middle - b * middle, d, e, f + middle - d * middle - e * middle)
        return image.transform(image.size, Image.Transform.AFFINE, corner, Image.Resampling.BILINEAR, fillcolor=fill)

    difference = np.abs(np.asarray(moved) - by_pil(images, change))[:, 7:17, 7:17]  # the border is PIL's own
    assert np.median(difference) < 0.6, np.median(difference)
    assert difference.max() < 3, difference.max()


def test_beta_by_table_is_beta():
    from scipy.stats import beta, kstest

    u = np.asarray(Random(3, np.arange(20000)).uniform("u"))
    for alpha in (0.1, 0.2, 0.8, 1.0):
        samples = np.asarray(augment.beta(ops.convert_to_tensor(u), alpha))
        np.testing.assert_allclose(samples, beta(alpha, alpha).ppf(u), atol=2e-3)
    assert kstest(samples, "uniform").statistic < 0.012


def test_random_numbers_are_random():
    from scipy.stats import kstest

    index = np.arange(50_000)
    draws = {key: np.asarray(Random(*key[:1], index).uniform(key[1])) for key in [(0, "a"), (0, "b"), (1, "a")]}
    for values in draws.values():
        assert kstest(values, "uniform").statistic < 0.008
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02
    a, b, c = draws.values()
    assert max(abs(np.corrcoef(pair)[0, 1]) for pair in ([a, b], [a, c], [b, c])) < 0.02
    normal = np.asarray(Random(0, index).normal("n"))
    assert kstest(normal, "norm").statistic < 0.008


def test_random_numbers_are_of_the_image_not_the_batch():
    whole = np.asarray(Random(7, np.arange(64)).uniform("x"))
    part = np.asarray(Random(7, np.arange(16, 32)).uniform("x"))
    np.testing.assert_array_equal(whole[16:32], part)


def lowbias32(x):
    """The published constants, in plain Python."""
    x ^= x >> 16
    x = x * 0x7FEB352D & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def test_hash_is_the_published_one():
    numbers = np.array([0, 1, 2, 12345, 2**31, 2**32 - 1], "uint32")
    ours = np.asarray(augment._hash(ops.convert_to_tensor(numbers)))
    assert ours.tolist() == [lowbias32(int(n)) for n in numbers]


@pytest.mark.parametrize("recipe", [Recipe(mixup=0.4), Recipe(cutmix=1.0), Recipe(mixup=0.4, cutmix=1.0)])
def test_targets_are_mixed_as_images_are(recipe):
    """Image i is all of colour i: how much of each colour is in it must be its target."""
    n, size = 8, 20
    images = np.zeros((n, size, size, n), "float32")
    images[np.arange(n), :, :, np.arange(n)] = 255
    seen = set()
    for batch in range(12):
        random = Random(5, np.arange(batch * n, batch * n + n))
        mixed = np.asarray(augment.mix(recipe, ops.convert_to_tensor(images), random))
        targets = np.asarray(
            augment.mix_targets(recipe, ops.convert_to_tensor(np.eye(n, dtype="float32")), random, (size, size))
        )
        np.testing.assert_allclose(mixed.mean((1, 2)) / 255, targets, atol=1e-5)
        labels = np.asarray(augment.main_labels(recipe, ops.convert_to_tensor(np.arange(n)), random, (size, size)))
        np.testing.assert_array_equal(targets[np.arange(n), labels] >= 0.5 - 1e-6, True)
        part = mixed[0].max(-1)
        seen.add("pasted" if (part == 255).all() else "blended")
    assert seen == {*(["blended"] if recipe.mixup else []), *(["pasted"] if recipe.cutmix else [])}


def test_mix_probability():
    recipe = Recipe(mixup=1.0, mix_probability=0.3)
    parts = [
        np.asarray(augment.mix_plan(recipe, Random(1, np.array([batch])), (8, 8))[1]) for batch in range(0, 5000, 100)
    ]
    assert 5 <= np.sum(np.array(parts) < 1) <= 25


def test_erasing():
    images = ops.convert_to_tensor(np.tile(np.array([0.0, 200.0], "float32"), (400, 20, 10, 1)).reshape(400, 20, 20, 1))
    erased = np.asarray(augment.erase(images, Random(0, np.arange(400)), 0.5, 99.0)) == 99.0
    share = erased.mean((1, 2, 3))
    assert 0.4 < (share > 0).mean() < 0.6
    assert share[share > 0].min() > 0.01
    assert share.max() < 0.37
    rows, columns = erased.any((2, 3)).sum(1), erased.any((1, 3)).sum(1)
    np.testing.assert_allclose(share * 400, rows * columns)  # rectangles


def test_no_operation_is_no_change():
    images = pictures()
    recipe = Recipe(policy="randaugment", policy_probability=0.0)
    np.testing.assert_array_equal(np.asarray(augment.augment(recipe, images, Random(0, np.arange(4)))), images)


def test_affine_is_scipys(monkeypatch):
    """With the largest rotation, shift and zoom on an oblong image; half of the strength moves it half as far."""
    from scipy.ndimage import affine_transform

    monkeypatch.setattr(Random, "uniform", lambda self, _: ops.ones(self.index.shape))
    image = pictures(1, 12)[:, :8].astype("float32")
    recipe = Recipe(affine=(10.0, 0.125, 0.1))
    moved = np.asarray(augment.augment(recipe, image, Random(0, np.arange(1)), 7.0))[0]
    middle, angle = np.array([3.5, 5.5]), np.deg2rad(10)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / np.exp(0.1)
    offset = middle + np.array([1, 1.5]) - rotation @ middle
    for channel in range(3):
        options = {"order": 1, "mode": "grid-constant", "cval": 7.0}  # grid: pixels at the border blend with the fill
        expected = affine_transform(image[0, ..., channel], rotation, offset, **options)
        np.testing.assert_allclose(moved[..., channel], expected, atol=1e-3)


def test_affine_differs_from_image_to_image():
    images = pictures(64, 16)
    moved = [
        np.asarray(augment.augment(Recipe(affine=(10, 0.1, 0.1)), images, Random(s, np.arange(64)))) for s in (0, 1)
    ]
    assert np.abs(moved[0] - images).mean((1, 2, 3)).min() > 1
    assert np.abs(moved[0] - moved[1]).mean((1, 2, 3)).min() > 1
    nothing = np.asarray(augment.augment(Recipe(affine=(0, 0, 0)), images, Random(0, np.arange(64))))
    np.testing.assert_array_equal(nothing, images)


def test_each_operation_is_drawn():
    """Each of the 15 about as often as the others."""
    from scipy.stats import chisquare

    index = np.arange(3000)
    random = Random(0, index)
    chosen = np.asarray(ops.cast(random.uniform("layer 0 operation") * 15, "int32"))
    counts = np.bincount(chosen, minlength=15)
    assert chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_number_of_channels(channels):
    images = pictures(4, 16, channels)
    for recipe in EVERYTHING:
        changed = np.asarray(augment.augment(recipe, images, Random(0, np.arange(4))))
        assert changed.shape == images.shape
        assert np.isfinite(changed).all()
        assert changed.min() >= 0
        assert changed.max() <= 255


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's compiler")
@pytest.mark.parametrize("which", COMPILED)
@pytest.mark.long
def test_compiles_with_xla(which):
    import tensorflow as tf

    recipe = EVERYTHING[which]

    def step(images, index):
        random = Random(3, index)
        targets = tf.one_hot(tf.range(8) % 4, 4)
        return augment.augment(recipe, images, random), augment.mix_targets(recipe, targets, random, (16, 16))

    arguments = pictures(8, 16), np.arange(8, dtype="uint32")
    compiled = tf.function(step, jit_compile=True)
    for a, b in zip(compiled(*arguments), step(*arguments), strict=True):
        # XLA sums in another order: a pixel at a threshold may fall on its other side
        assert np.mean(np.abs(a.numpy() - b.numpy()) > 0.01) < 0.01
    # `stage="hlo"` is the graph before compilation; that it ran is the proof that it compiled


CHILD = """
import sys, numpy as np, keras
from tests.test_training_augment import EVERYTHING, pictures
from keras_residual.training import augment
from keras_residual.training.augment import Random
import jax
assert keras.backend.backend() == "jax"
recipe = EVERYTHING[int(sys.argv[2])]
step = jax.jit(lambda x, n: augment.augment(recipe, x, Random(3, n)))
np.save(sys.argv[1], np.asarray(step(pictures(8, 16), np.arange(8, dtype="uint32"))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("which", COMPILED)
def test_the_same_on_jax(which, tmp_path):
    pytest.importorskip("jax")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "images.npy"), str(which)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    ours = np.asarray(augment.augment(EVERYTHING[which], pictures(8, 16), Random(3, np.arange(8))))
    assert np.mean(np.abs(ours - np.load(tmp_path / "images.npy")) > 0.01) < 0.01
