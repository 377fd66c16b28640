"""Tests of resampling position embeddings from a stated, given or unknown grid to the model's grid."""

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import keras_residual as kr
from keras_residual.layers import patches_of
from keras_residual.weights import Adapt, WeightsError

from .test_weights import CONFIG, snapshot, state_of, tiny, unchanged
from .tools import distance, noise

TALL, WIDE, SQUARE = (64, 48, 3), (48, 64, 3), (112, 112, 3)  # grids 4 x 3, 3 x 4 and 7 x 7
LONG, EVEN = (32, 128, 3), (64, 64, 3)  # 2 x 8 and 4 x 4: as many patches


def vit(shape, seed=None, name="ViTTiny16", **options):
    return tiny(name, seed, input_shape=shape, **options)


def patches(model):
    """Return the grid part of the position embeddings, `(height, width, channels)`."""
    layer = model.get_layer("pos_embed")
    return np.asarray(layer.value)[0, layer.prefix :].reshape(*layer.grid, -1)


def by_pillow(image, grid):
    """Resample each channel with Pillow, an independent bicubic, antialiased implementation."""
    channels = np.moveaxis(image, -1, 0)
    done = [Image.fromarray(c, mode="F").resize(grid[::-1], Image.Resampling.BICUBIC) for c in channels]
    return np.stack([np.asarray(c) for c in done], -1)


def safetensors(model, folder):
    kr.save_weights(model, folder / "a.safetensors")
    return folder / "a.safetensors"


def archive(model, folder):
    model.save(folder / "a.keras")
    return folder / "a.keras"


def run_directory(model, folder):
    """Write the weights like a fine-tuning run, for training at another size."""
    height, width, _ = model.input_shape[1:]
    labels = tuple(map(str, range(10)))
    classifier = kr.Classifier(model, kr.weights.Preprocess((height, width)), labels, "ViTTiny16")
    classifier.save(folder)
    bare(model, folder, "weights.safetensors")  # as it was written before files stated their grid
    return folder


def file_of_a_run(model, folder):
    return run_directory(model, folder) / "weights.safetensors"


def bare(model, folder, name="a.safetensors"):
    """Write only arrays, like timm."""
    save_file(state_of(model), folder / name)
    return folder / name


def npz(model, folder):
    np.savez(folder / "a.npz", **state_of(model))
    return folder / "a.npz"


STATING = [safetensors, archive, run_directory, file_of_a_run]
SILENT = [bare, npz, lambda model, folder: state_of(model)]


# Every form of a source with one change of the grid, and every change of the grid with one form
KNOWN = [*((write, LONG, EVEN) for write in STATING)]
KNOWN += [(safetensors, *grids) for grids in ((TALL, WIDE), (WIDE, SQUARE), (EVEN, LONG), (LONG, SQUARE))]


@pytest.mark.parametrize(("write", "old", "new"), KNOWN)
def test_the_grid_is_known(write, old, new, tmp_path):
    source = vit(old, seed=1)
    path = write(source, tmp_path)
    model = vit(new, seed=2)
    before = snapshot(model)
    with pytest.raises(WeightsError, match=r"misshapen.*pos_embed .* on a grid of \d x \d, expected"):
        kr.load_weights(model, path)
    assert unchanged(model, before)
    report = kr.load_weights(model, path, adapt=Adapt(size=True))
    assert len(report.adapted) == 1
    expected = by_pillow(patches(source), model.get_layer("pos_embed").grid)
    assert distance(patches(model), expected) < 1e-5
    np.testing.assert_array_equal(np.asarray(model.get_layer("pos_embed").value)[0, 0], class_position(source))


def class_position(model):
    return np.asarray(model.get_layer("pos_embed").value)[0, 0]


@pytest.mark.parametrize(
    ("write", "shape"), [*((write, LONG) for write in STATING), (safetensors, TALL), (safetensors, EVEN)]
)
def test_the_same_grid_is_copied(write, shape, tmp_path):
    source, model = vit(shape, seed=1), vit(shape)
    path = write(source, tmp_path)
    assert not kr.load_weights(model, path, adapt=Adapt(size=True)).adapted
    np.testing.assert_array_equal(patches(model), patches(source))


UNKNOWN = [*((write, TALL, SQUARE) for write in SILENT)]
UNKNOWN += [(bare, *grids) for grids in ((TALL, WIDE), (TALL, TALL), (EVEN, LONG), (LONG, LONG))]


@pytest.mark.parametrize(("write", "old", "new"), UNKNOWN)
def test_an_unknown_grid_is_asked_for(write, old, new, tmp_path):
    source, model = vit(old, seed=1), vit(new, seed=2)
    path = write(source, tmp_path)
    before = snapshot(model)
    for adapt in (None, Adapt(size=True)):
        with pytest.raises(WeightsError, match=r"unknown grid(.|\n)*grid=\(12, 16\)"):
            kr.load_weights(model, path, adapt=adapt)
        assert unchanged(model, before)
    grid = source.get_layer("pos_embed").grid
    kr.load_weights(model, path, adapt=Adapt(size=True), grid=grid)
    expected = patches(source) if old == new else by_pillow(patches(source), model.get_layer("pos_embed").grid)
    assert distance(patches(model), expected) < 1e-5


def test_without_a_statement_a_square_count_is_a_square_grid(tmp_path):
    """timm's own rule."""
    source, model = vit(EVEN, seed=1), vit(WIDE)
    kr.load_weights(model, bare(source, tmp_path), adapt=Adapt(size=True))
    assert distance(patches(model), by_pillow(patches(source), (3, 4))) < 1e-5


def test_a_builder_asks_too(tmp_path):
    entry = kr.models.find("ViTTiny16")
    path = str(bare(vit(TALL, seed=1), tmp_path))
    with pytest.raises(WeightsError, match="unknown grid"):
        entry.build(entry.config.tiny(), classes=10, input_shape=WIDE, weights=path)
    stated = str(safetensors(vit(TALL, seed=1), tmp_path))
    model = entry.build(entry.config.tiny(), classes=10, input_shape=WIDE, weights=stated)
    assert distance(patches(model), by_pillow(patches(vit(TALL, seed=1)), (3, 4))) < 1e-5


def test_register_tokens_have_no_place_on_the_grid(tmp_path):
    source, model = vit((56, 42, 3), 1, "DINOv2RegSmall14"), vit((42, 56, 3), None, "DINOv2RegSmall14")
    kr.load_weights(model, safetensors(source, tmp_path), adapt=Adapt(size=True))
    assert distance(patches(model), by_pillow(patches(source), (3, 4))) < 1e-5


def test_signals_have_one_axis(tmp_path):
    """For signals the number of patches determines the grid; volumes need it like images."""
    source, model = vit((96, 4), seed=1), vit((96, 4))
    kr.load_weights(model, state_of(source))
    np.testing.assert_array_equal(patches(model), patches(source))
    with pytest.raises(WeightsError, match="unknown grid"):
        kr.load_weights(vit((16, 32, 48, 2)), state_of(vit((48, 32, 16, 2), seed=1)))
    kr.load_weights(vit((32, 32, 32, 2)), state_of(vit((32, 32, 32, 2), seed=1)))


@pytest.mark.parametrize(
    "given", [{"pretrained_cfg": {"input_size": [3, 64, 48]}}, {"model_args": {"img_size": [64, 48]}}]
)
@pytest.mark.long
def test_a_repository_states_its_size(hub, given):
    """The size is stated in one of two places if it differs from timm's default."""
    source = kr.ViTTiny16(input_shape=TALL, classes=5, classifier_activation=None)
    usual = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"input_size": [3, 224, 224]}}
    config = {**CONFIG, **usual, **given}
    hub("someone/tall", {"config.json": config, "model.safetensors": state_of(source)})
    same = kr.from_pretrained("someone/tall")
    assert same.input_shape == (None, *TALL)
    x = noise((1, *TALL))
    assert distance(same(x), source(x)) == 0
    wide = kr.from_pretrained("someone/tall", input_shape=WIDE)
    assert distance(patches(wide), by_pillow(patches(source), (3, 4))) < 1e-5
    other = kr.ViTTiny16(input_shape=WIDE, classes=5)
    kr.load_weights(other, "someone/tall", adapt=Adapt(size=True))
    np.testing.assert_array_equal(patches(other), patches(wide))


def test_a_grid_of_another_count():
    model = vit(EVEN)
    with pytest.raises(ValueError, match="as many patches"):
        kr.load_weights(model, state_of(model), grid=(3, 4))
    with pytest.raises(ValueError, match="None for ResNet18"):
        kr.load_weights(tiny(), {}, grid=(3, 4))


@pytest.mark.parametrize(
    ("size", "count", "grid"),
    [
        ((224, 224), 196, (14, 14)),
        ((192, 256), 192, (12, 16)),
        ((384, 384), 729, (27, 27)),  # SigLIP So400M/14: six pixels are left over
        ((192, 256), 193, None),
        ((3, 5), 15, (3, 5)),
        ((3, 5), 16, None),
        ((0, 5), 1, None),
    ],
)
def test_patches_of_an_image(size, count, grid):
    assert patches_of(size, count) == grid
