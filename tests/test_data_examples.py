"""Training batches are a function of seed and step; crops and geometry are what Pillow and the weights' layer say."""

import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_residual import data
from keras_residual.data import sampling
from keras_residual.data.stores import Encoded
from keras_residual.data.validation import Record, check
from keras_residual.reading.host import ORIENTATIONS
from keras_residual.reading.rules import Reading
from keras_residual.weights import Preprocess, Weights
from tests.data_images import encoded, exif, picture, write_folder


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return data.load(write_folder(tmp_path_factory.mktemp("data") / "images"), cache=False)


def numbered(count, size=(4, 4)):
    """Images whose pixels all say their number, and labels that do too."""
    images = np.tile(np.arange(count, dtype="uint8")[:, None, None, None], (1, *size, 1))
    return data.load((images, np.arange(count) % 2), validation=0).train


def drawn(examples, steps, batch_size=4, size=(16, 20), **options):
    batches = examples.training(batch_size, size, **options).take(steps)
    return [(images.numpy(), labels.numpy()) for images, labels in batches]


def same(a, b):
    return len(a) == len(b) and all(
        np.array_equal(x, u) and np.array_equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


# ------------------------------------------------------------------------------------------------- order and resuming


def test_batches(found):
    data = found.train.training(5, (16, 20))
    assert data.element_spec[0] == tf.TensorSpec((5, 16, 20, 3), tf.uint8)
    assert data.element_spec[1] == tf.TensorSpec((5,), tf.int32)
    assert data.cardinality() == tf.data.INFINITE_CARDINALITY
    assert found.train.steps_per_epoch(5) == 4


def test_resumed_is_uninterrupted(found):
    """Six steps an epoch: from each kind of place, within and between epochs."""
    whole = drawn(found.train, 20)
    for start in (0, 1, 5, 6, 13):
        assert same(drawn(found.train, 20 - start, start=start), whole[start:])
    assert not same(drawn(found.train, 20, seed=1), whole)
    assert not same(whole[6:12], whole[:6])


@pytest.mark.parametrize("crop", ["center", "squash", "pad"])
def test_resumed_is_uninterrupted_whatever_the_crop(found, crop):
    assert same(drawn(found.train, 4, crop=crop, start=7), drawn(found.train, 11, crop=crop)[7:])


def test_resumed_in_a_large_set():
    """More images than are planned at once, and a batch that does not divide that number."""
    examples = numbered(250).take(np.arange(700) % 250)
    whole = drawn(examples, 40, batch_size=33, size=4)
    for start in (7, 8, 15, 22):
        assert same(drawn(examples, 40 - start, batch_size=33, size=4, start=start), whole[start:])


def test_far_step_comes_at_once(found):
    first = drawn(found.train, 1, start=6 * 10**8)
    assert same(first, drawn(found.train, 1, start=6 * 10**8))


def test_each_epoch_is_a_permutation():
    examples = numbered(200)
    steps = drawn(examples, 3 * 28, batch_size=7, size=4, crop="squash")
    seen = np.concatenate([images[:, 0, 0, 0] for images, _ in steps]).reshape(3, 196)
    labels = np.concatenate([labels for _, labels in steps]).reshape(3, 196)
    np.testing.assert_array_equal(labels, seen % 2)
    for epoch in seen:
        assert len(set(epoch)) == 196  # 4 are left out, other ones each time
    assert len({tuple(epoch) for epoch in seen}) == 3
    left = [set(range(200)) - set(epoch) for epoch in seen]
    assert left[0] != left[1]


def test_views_do_not_depend_on_the_batch(found):
    small = np.concatenate([images for images, _ in drawn(found.train, 8, batch_size=3)])
    large = np.concatenate([images for images, _ in drawn(found.train, 2, batch_size=12)])
    np.testing.assert_array_equal(small, large)


def test_order_is_written_down():
    """A new version that draws otherwise would break everyone's resume: it has to say so."""
    order = [int(images[0, 0, 0, 0]) for images, _ in drawn(numbered(10), 10, batch_size=1, size=4, seed=7)]
    assert order == [1, 5, 4, 7, 0, 3, 8, 9, 2, 6]


def test_parts_of_batches(found):
    whole = drawn(found.train, 9, batch_size=6)
    for i in (0, 2):
        part = drawn(found.train, 9, batch_size=6, part=(i, 3))
        assert same(part, [(images[2 * i : 2 * i + 2], labels[2 * i : 2 * i + 2]) for images, labels in whole])
    assert same(drawn(found.train, 4, batch_size=6, part=(1, 2), start=5), [(x[3:], y[3:]) for x, y in whole[5:]])


def test_without_order_the_same_images_come():
    examples = numbered(64)
    steps = drawn(examples, 8, batch_size=8, size=4, crop="squash", deterministic=False)
    assert set(np.concatenate([images[:, 0, 0, 0] for images, _ in steps])) == set(range(64))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 25}, "batch_size=25 for 24 images. Use a smaller batch_size"),
        ({"batch_size": 0}, "positive integer; got 0"),
        ({"seed": -1}, "seed"),
        ({"start": -1}, "start"),
        ({"crop": "centre"}, "'random', 'center', 'squash', 'pad', 'letterbox'; got 'centre'"),
        ({"scale": (0, 1)}, "scale"),
        ({"scale": (0.5, 0.1)}, "scale"),
        ({"ratio": (2, 1)}, "ratio"),
        ({"size": 0}, "size"),
        ({"padding": 16, "crop": "pad"}, "padding"),
        ({"part": (2, 2)}, "part"),
        ({"part": (0, 3)}, "part"),
    ],
)
def test_wrong_arguments(found, options, words):
    arguments = {"batch_size": 4, "size": 16, **options}
    with pytest.raises(ValueError, match=words):
        found.train.training(**arguments)


# --------------------------------------------------------------------------------------------------------------- views


def windows(views, height, width, count=4000):
    noise = tf.random.stateless_uniform((count, 34), (1, 2))
    shape = tf.fill((count,), height), tf.fill((count,), width)
    return sampling.windows(views, *shape, noise).numpy()


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (1, 1), (2, 3)])
def test_crops_of_extreme_images(height, width):
    for crop in ("random", "center", "squash", "pad"):
        found = windows(sampling.Views((8, 8), crop, padding=1), height, width, 200)
        assert (found[:, 2:] >= 1).all()
        assert (found[:, :2] >= 0).all()
        assert (found[:, :2] + found[:, 2:] <= [height, width]).all()


def test_center_keeps_the_shape():
    assert windows(sampling.Views((10, 20), "center"), 100, 100, 1).tolist() == [[25, 0, 50, 100]]
    assert windows(sampling.Views((20, 10), "center"), 100, 100, 1).tolist() == [[0, 25, 100, 50]]
    assert windows(sampling.Views((10, 10), "center"), 100, 60, 1).tolist() == [[20, 0, 60, 60]]


def several(contents, channels=3):
    """Encoded images as a split; the label is the place."""
    store = Encoded(contents, [check(content) for content in contents], Reading(channels=channels), in_memory=True)
    places = np.arange(len(contents))
    return data.Examples(store, places, places.astype("int32"), tuple(map(str, places)))


def single(content, channels=3):
    return several([content] * 10, channels)


@pytest.mark.parametrize("size", [(48, 96), (96, 48)])
def test_training_sees_images_upright(size):
    """The whole image without a flip is what Pillow shows, however the camera was held."""
    image = Image.fromarray(picture(96, 192))
    upright = {1: None, 2: 0, 3: 3, 4: 1} if size[0] < size[1] else {5: 5, 6: 4, 7: 6, 8: 2}
    options = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}}
    cases = [(kind, orientation) for kind in options for orientation in upright]
    contents = [encoded(image, kind, exif=exif(orientation), **options[kind]) for kind, orientation in cases]
    images, labels = drawn(several(contents), 1, len(cases), size, crop="squash", flip=False)[0]
    for seen, label in zip(images, labels, strict=True):
        kind, orientation = cases[label]
        turn = upright[orientation]
        shown = image if turn is None else image.transpose(Image.Transpose(turn))
        expected = np.asarray(shown.resize(size[::-1], Image.Resampling.BOX))
        assert np.abs(seen.astype(int) - expected).max() <= (12 if kind == "JPEG" else 1)  # scaled by the IDCT


def test_crops_are_parts_of_the_image():
    """Each pixel says where it is: a crop has to show a rectangle, not turned, not shifted, once mirrored or not."""
    y, x = np.mgrid[:120, :160]
    image = np.stack([y, x, np.full_like(y, 99)], -1).astype("uint8")
    for turned in (1, 6):
        content = encoded(image, "PNG", exif=exif(turned))
        mirrored = 0
        for images, _ in drawn(single(content), 40, batch_size=5, size=(24, 24), scale=(0.1, 0.4)):
            for crop in images.astype(float):
                if turned == 6:  # rows run from right to left then
                    crop = np.stack([crop[..., 1], 119 - crop[..., 0], crop[..., 2]], -1)
                rows, columns = np.diff(crop[..., 0], axis=0), np.diff(crop[..., 1], axis=1)
                assert np.ptp(crop[..., 0], axis=1).max() <= 1
                assert np.ptp(crop[..., 1], axis=0).max() <= 1
                assert (rows >= 0).all()
                assert (columns >= 0).all() or (columns <= 0).all()
                mirrored += columns.min() < 0
                height, width = np.ptp(crop[..., 0]) + 1, np.ptp(crop[..., 1]) + 1
                assert 0.06 < height * width / (120 * 160) < 0.45
        assert 60 < mirrored < 140


def test_large_jpegs_are_scaled_by_the_decoder():
    """A crop of a large JPEG is within JPEG's own noise of the same crop made by Pillow from all pixels."""
    image = picture(800, 1200)
    content = encoded(image, "JPEG", quality=95)
    examples = single(content)
    _, way = examples.store.ways(tf.constant([0, 0, 0]), tf.constant([[0, 0, s, s] for s in (60, 200, 800)]), (50, 50))
    assert way.numpy().tolist() == [0, 2, 3]
    images, _ = drawn(examples, 1, batch_size=1, size=50, crop="center", flip=False)[0]
    expected = np.asarray(Image.fromarray(image[:, 200:1000]).resize((50, 50), Image.Resampling.BOX))
    assert np.abs(images[0].astype(int) - expected).max() <= 6


def test_shrinking_leaves_out_no_pixels():
    """One bright row in four: a quarter of the light, wherever the rows of the result fall."""
    image = np.zeros((64, 64, 3), "uint8")
    image[::4] = 240
    images, _ = drawn(single(encoded(image, "PNG")), 1, batch_size=1, size=16, crop="squash", flip=False)[0]
    assert np.abs(images.astype(int) - 60).max() <= 1


def test_pad_shifts_within_reflected_edges():
    image = picture(32, 32)
    examples = data.load((np.stack([image] * 400), np.arange(400) % 2), validation=0).train
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), "reflect")
    places = {(y, x): padded[y : y + 32, x : x + 32].tobytes() for y in range(9) for x in range(9)}
    by_content = {content: place for place, content in places.items()}
    images = np.concatenate([images for images, _ in drawn(examples, 4, 100, 32, crop="pad", flip=False)])
    found = [by_content[shifted.tobytes()] for shifted in images]
    assert {y for y, _ in found} == {x for _, x in found} == set(range(9))
    assert len(set(found)) > 70


def test_arrays_at_their_size_stay_as_they_are():
    x = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 5)).astype("uint8")
    examples = data.load((x, np.arange(30) % 3), validation=0).train
    by_content = {image.tobytes(): i % 3 for i, image in enumerate(x)}
    for images, labels in drawn(examples, 6, batch_size=10, size=8, crop="squash", flip=False):
        assert [by_content[image.tobytes()] for image in images] == labels.tolist()


def test_grey_batches():
    content = encoded(picture(20, 30), "JPEG", quality=95)
    images, _ = drawn(single(content, channels=1), 1, 2, (20, 30), crop="squash", flip=False)[0]
    assert images.shape == (2, 20, 30, 1)
    assert np.abs(images[0, ..., 0].astype(int) - np.asarray(Image.fromarray(picture(20, 30)).convert("L"))).max() <= 4


# ---------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_evaluation_is_the_weights_preprocessing(found, mode, interpolation):
    layer = Preprocess((24, 32), crop=0.9, crop_mode=mode, interpolation=interpolation)
    batches = list(found.validation.evaluation(4, layer))
    assert [len(images) for images, _ in batches] == [4, 2]
    images = np.concatenate([images for images, _ in batches])
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), found.validation.labels)
    for i, image in enumerate(images):
        expected = keras.ops.convert_to_numpy(layer(found.validation[i][0]))
        mine = (image / 255.0 - np.array(layer.mean)) / np.array(layer.std)
        np.testing.assert_allclose(mine, expected, atol=1e-5)


def test_evaluation_beside_pillow(found):
    """The usual geometry, by Pillow alone: the shorter side to 256 / 224 of the size, then the middle."""
    images = np.concatenate([images for images, _ in found.validation.evaluation(4, 28)])
    for i, image in enumerate(images):
        whole = Image.fromarray(found.validation[i][0])
        size = [int(32 * side / min(whole.size)) if side != min(whole.size) else 32 for side in whole.size]
        resized = whole.resize(size, Image.Resampling.BICUBIC)
        left, top = (round((side - 28) / 2) for side in size)
        expected = np.asarray(resized.crop((left, top, left + 28, top + 28)))
        assert np.abs(image.astype(int) - expected).max() <= 1


def test_evaluation_takes_a_record(found):
    record = Weights("nowhere", "resnet18", input_size=(20, 20, 3), crop=1.0, interpolation="bilinear")
    assert next(iter(found.validation.evaluation(3, record)))[0].shape == (3, 20, 20, 3)
    assert next(iter(found.validation.evaluation(3, (20, 10))))[0].shape == (3, 20, 10, 3)
    with pytest.raises(ValueError, match="batch_size"):
        found.validation.evaluation(0, 20)


def test_evaluation_of_turned_and_grey_images():
    content = encoded(picture(40, 60), "JPEG", exif=exif(6))
    layer = Preprocess((30, 20), crop=1.0, crop_mode="squash")
    images, _ = next(iter(single(content).evaluation(1, layer)))
    upright = Image.fromarray(data.decode(content))
    assert upright.size == (40, 60)
    expected = np.asarray(upright.resize((20, 30), Image.Resampling.BICUBIC))
    assert np.abs(images[0].numpy().astype(int) - expected).max() <= 1
    assert next(iter(single(content, channels=1).evaluation(1, 20)))[0].shape == (1, 20, 20, 1)


def test_empty_evaluation(found):
    assert list(found.train.take([]).evaluation(4, 16)) == []


def test_indexing_and_taking(found):
    assert len(found.train.take([3, 1])) == 2
    assert found.train.take([3, 1]).names == (found.train.names[3], found.train.names[1])
    image, label = found.train.take([3, 1])[1]
    np.testing.assert_array_equal(image, found.train[1][0])
    assert label == found.train.labels[1]
    assert found.train.channels == 3


# -------------------------------------------------------------------------------------------------- in a training loop


def test_fit_takes_it(found):
    model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()])
    model.add(keras.layers.Dense(3))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(
        found.train.training(4, 16),
        steps_per_epoch=found.train.steps_per_epoch(4),
        shuffle=False,
        epochs=2,
        validation_data=found.validation.evaluation(4, 16),
        verbose=0,
    )
    assert len(history.history["val_loss"]) == 2


@pytest.mark.slow
def test_on_jax(tmp_path):
    """The same batches where Keras runs on JAX: the pipeline is TensorFlow's, the geometry goes through Keras."""
    pytest.importorskip("jax")
    write_folder(tmp_path / "images", count=3, kinds=("PNG",))
    code = """
        import sys, hashlib
        import numpy as np
        from keras_residual import data

        found = data.load(sys.argv[1], cache=False, validation=0.4)
        batches = list(found.train.training(3, 16).take(3)) + list(found.validation.evaluation(2, 16))
        np.savez(sys.argv[2], *[images.numpy() for images, _ in batches])
    """
    batches = {}
    for backend in ("tensorflow", "jax"):
        file = str(tmp_path / f"{backend}.npz")
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "images"), file]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        batches[backend] = list(np.load(file).values())
    for a, b in zip(*batches.values(), strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1


def test_records_of_nothing():
    assert len(Encoded([], [])) == 0
    assert Record("is empty").height == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_windows_are_found_again_in_the_file(orientation):
    """A window of the upright image, cut out of the stored one and turned, shows the same pixels."""
    upright = np.arange(7 * 11).reshape(7, 11)
    transpose, upside_down, mirrored = ORIENTATIONS[orientation]
    stored = upright[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
    stored = stored.T if transpose else stored
    window = tf.constant([[1, 2, 3, 4]])
    flags = [tf.constant([flag]) for flag in (transpose, upside_down, mirrored)]
    height, width = (tf.constant([side]) for side in stored.shape)
    ((top, left, h, w),) = sampling.as_stored(window, height, width, *flags).numpy()
    cut = stored[top : top + h, left : left + w]
    cut = cut.T if transpose else cut
    np.testing.assert_array_equal(cut[:: -1 if upside_down else 1, :: -1 if mirrored else 1], upright[1:4, 2:6])


def test_turned_jpegs_keep_their_resolution():
    """A wide result from a tall file: the decoder scales as the turned sides allow."""
    store = single(encoded(picture(200, 400), "JPEG", exif=exif(6))).store
    _, way = store.ways(tf.constant([0]), tf.constant([[0, 0, 200, 400]]), (200, 50))
    assert way.numpy().tolist() == [1]  # by 2: 400 stored columns make 200 rows
