"""Preprocessing against timm's evaluation transform on PIL images, and with a model behind it."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform

import keras_residual as kr
from keras_residual.weights import Weights
from keras_residual.weights.preprocessing import preprocessing

from . import reference

PHOTOS = [Image.fromarray(image) for image in load_sample_images().images]
SHAPES = [(427, 640), (640, 427), (300, 300), (255, 256), (97, 80)]


def ours_and_theirs(record, photo):
    transform = create_transform(
        input_size=(3, *record.input_size[:2]),
        is_training=False,
        mean=record.mean,
        std=record.std,
        crop_pct=record.crop,
        crop_mode=record.crop_mode,
        interpolation=record.interpolation,
    )
    theirs = np.moveaxis(transform(photo).numpy(), 0, -1)
    return np.asarray(preprocessing(record)(np.asarray(photo))), theirs


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("size", "crop"), [((224, 224, 3), 0.875), ((288, 288, 3), 1.0), ((160, 192, 3), 0.95)])
def test_equals_timms_transform(mode, interpolation, size, crop):
    record = Weights("test", "resnet18", input_size=size, crop=crop, crop_mode=mode, interpolation=interpolation)
    for photo in PHOTOS:
        for shape in SHAPES:
            given = photo.resize(shape[::-1])
            ours, theirs = ours_and_theirs(record, given)
            difference = np.abs(ours - theirs) * np.array(record.std) * 255
            # squash: Pillow's order of passes depends on its version, see `Preprocess`
            limits = (5.01, 0.2) if mode == "squash" else (2.01, 0.05)
            assert difference.max() < limits[0], (shape, difference.max())
            assert difference.mean() < limits[1], (shape, difference.mean())
            assert mode == "squash" or (difference > 1.01).mean() < 5e-5


@pytest.mark.parametrize("change", [{"crop": 0.9}, {"interpolation": "bilinear"}, {"mean": (0.5, 0.5, 0.5)}])
def test_a_wrong_record_is_seen(change):
    record = Weights("test", "resnet18", interpolation="bicubic")
    ours, _ = ours_and_theirs(dataclasses.replace(record, **change), PHOTOS[0])
    _, theirs = ours_and_theirs(record, PHOTOS[0])
    assert np.abs(ours - theirs).mean() * 0.226 * 255 > 0.5


def test_unknown_sizes_in_a_graph():
    record = Weights("test", "resnet18", interpolation="bicubic", crop_mode="border")
    for mode in ("center", "border", "squash"):
        layer = preprocessing(dataclasses.replace(record, crop_mode=mode))
        data = tf.data.Dataset.from_generator(
            lambda: (np.asarray(photo) for photo in PHOTOS),
            output_signature=tf.TensorSpec((None, None, 3), tf.uint8),
        )
        for image, photo in zip(data.map(layer), PHOTOS, strict=True):
            np.testing.assert_allclose(image, np.asarray(layer(np.asarray(photo))), atol=1e-4)


def test_with_a_model():
    record = Weights("test", "resnet18", interpolation="bicubic")
    twin = reference.randomise(timm.create_model("resnet18"))
    model = kr.ResNet18(classifier_activation=None)
    kr.load_weights(model, {key: value.numpy() for key, value in twin.state_dict().items()})
    for photo in PHOTOS:
        ours, theirs = ours_and_theirs(record, photo)
        with torch.no_grad():
            expected = twin(torch.from_numpy(np.moveaxis(theirs, -1, 0).copy())[None]).numpy()
        assert reference.distance(np.asarray(model(ours[None], training=False)), expected) < 2e-2
