"""Depth, range and channels of a dataset are decided by the scan, or the user is asked."""

import numpy as np
import pytest
import tifffile

from keras_residual.data import load


def folder(root, image, suffix="tif", count=6, **options):
    for number, name in enumerate("ab"):
        (root / name).mkdir(parents=True)
        for i in range(count):
            tifffile.imwrite(root / name / f"{i}.{suffix}", image(number * count + i), **options)
    return root


def ramp(dtype, top):
    return lambda seed: (np.linspace(0, top, 64 * 64).reshape(64, 64) * (1 - seed / 100)).astype(dtype)


def test_twelve_of_sixteen_bits_keep_their_precision(tmp_path):
    root = folder(tmp_path / "d", ramp("uint16", 4095))
    found = load(root, cache=False)
    assert (found.reading.dtype, found.reading.range) == ("float32", None)
    assert any("--range 0,4095" in warning for warning in found.warnings)
    found = load(root, value_range=(0, 4095), cache=False)
    image, _ = found.train[0]
    stored = tifffile.imread(root / found.train.names[0])
    np.testing.assert_allclose(image[..., 0], stored * (255 / 4095), atol=1e-3)
    for batches in (found.train.training(2, 32, crop="center"), found.train.evaluation(2, 32)):
        images = next(iter(batches))[0].numpy()
        assert images.dtype == np.float32
        assert len(np.unique(images)) > 300, "not rounded to 8 bits"


def test_a_range_is_asked_for_or_taken_from_the_training_images(tmp_path):
    root = folder(tmp_path / "d", ramp("float32", 1))
    with pytest.raises(ValueError, match=r"12 float32.*no fixed range|no fixed range.*12 float32"):
        load(root, cache=False)
    found = load(root, value_range="auto", cache=False)
    samples = np.stack([tifffile.imread(root / name) for name in found.train.names])
    np.testing.assert_allclose(found.reading.range, np.percentile(samples, (0.1, 99.9)), atol=2e-3)


def test_bands_are_asked_for(tmp_path):
    noise = np.random.default_rng(0)
    root = folder(
        tmp_path / "d",
        lambda _: noise.integers(0, 256, (16, 16, 5)).astype("uint8"),
        photometric="rgb",
        extrasamples=["unspecified"] * 2,
    )
    with pytest.raises(ValueError, match=r"12 with 5\. Use channels=5"):
        load(root, cache=False)
    image, _ = load(root, channels=5, cache=False).train[0]
    assert image.shape == (16, 16, 5)
    with pytest.raises(ValueError, match="channels must be a number of channels that the images have"):
        load(root, channels=3, cache=False)
