"""Training and evaluation see images in the same shape; crops, flips and augmentation are what the user asked for."""

import json
import re

import keras
import numpy as np
import pytest
from PIL import Image

import keras_residual as kr
from keras_residual import data, figures, finetuning
from keras_residual.cli import main
from keras_residual.data.mirrors import mirror_pair
from keras_residual.finetuning import finetune
from keras_residual.reading.rules import Reading
from keras_residual.training import Recipe, first_images, prepare
from keras_residual.training.run import Run
from keras_residual.weights import Preprocess, Weights

from .data_images import encoded, exif, picture

SIZE = (48, 48)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
PLAIN = Recipe(batch_size=2, flip=False, crop="center")
# Training resizes bilinearly, after averaging; evaluation bicubically and antialiased. On these smooth pictures values
# differ by up to 2.5 of 255 on average, or 4 where small images are enlarged.
SHRUNK, ENLARGED, MOST = 2.5, 4.5, 40


def smooth(height, width, seed):
    """A picture without detail finer than the pixels of the result, in which each place has another colour."""
    return np.asarray(Image.fromarray(picture(6, 7, seed)).resize((width, height), Image.Resampling.BICUBIC))


def folder_of(path, sizes, kind="PNG", orientation=1, each=2, names=("a", "b")):
    for name in names:
        (path / name).mkdir(parents=True)
    for i in range(each * len(names)):
        image = Image.fromarray(smooth(*sizes[i % len(sizes)], seed=i))
        options = {"exif": exif(orientation)} if orientation > 1 else {}
        content = encoded(image, kind, **options, **({"quality": 95} if kind == "JPEG" else {}))
        (path / names[i % len(names)] / f"{i}.{kind.lower()}").write_bytes(content)
    return path


def network(channels=3, size=SIZE):
    inputs = keras.Input((*size, channels))
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(inputs)))


def views(recipe, examples, preprocess="auto", size=SIZE):
    """The pixels of each image in training and in evaluation, in the order of the dataset."""
    run = Run(network(size=size), recipe, examples, examples, preprocess=preprocess, batch_size=1)
    evaluated = np.concatenate([np.asarray(images) for images, _ in run.validation_batches()]).astype(int)
    batches = run.batches(0, None).take(len(examples))
    trained = [np.asarray(images)[0].astype(int) for (images, _), _ in batches]
    # one epoch has each image once; the order is the pipeline's
    order = [int(np.argmin([np.abs(seen - other).mean() for seen in trained])) for other in evaluated]
    return np.stack([trained[i] for i in order]), evaluated


@pytest.mark.parametrize("crop", ["center", "squash", "letterbox", "pad", "whole"])
@pytest.mark.parametrize(
    ("sizes", "kind", "orientation", "tolerance"),
    [
        ([(60, 60), (60, 240), (240, 60), (100, 70)], "PNG", 1, SHRUNK),  # square, strips, mixed
        ([(400, 1600), (901, 333)], "JPEG", 1, SHRUNK),  # scaled down by the decoder
        ([(60, 200)], "JPEG", 6, SHRUNK),  # a tall strip, stored lying down
        ([(16, 20), (20, 8)], "PNG", 1, ENLARGED),
        ([(1, 200), (200, 1)], "PNG", 1, SHRUNK),
    ],
)
def test_training_without_randomness_is_evaluation(tmp_path, crop, sizes, kind, orientation, tolerance):
    options = {"pad": {"crop": "pad", "padding": 0}, "whole": {"crop": "random", "crop_scale": (1.0, 1.0)}}
    recipe = PLAIN.replace(**options.get(crop, {"crop": crop}))
    examples = data.load(folder_of(tmp_path / "images", sizes, kind, orientation), validation=0, cache=False).train
    trained, evaluated = views(recipe, examples, preprocess=(MEAN, STD))
    difference = np.abs(trained - evaluated)
    assert difference.mean(axis=(1, 2, 3)).max() <= tolerance
    assert difference.max() <= MOST


@pytest.mark.parametrize(("size", "shape"), [((48, 48), (30, 91)), ((48, 32), (91, 30)), ((33, 48), (47, 47))])
def test_letterbox_pads_as_evaluation_does(size, shape):
    """The border is the same to the pixel, also where an odd row is left over, and in the colour of the mean."""
    image = np.full((4, *shape, 3), 200, "uint8")
    examples = data.load((image, [0, 1, 0, 1]), validation=0).train
    trained, evaluated = views(PLAIN.replace(crop="letterbox"), examples, (MEAN, STD), size)
    np.testing.assert_array_equal(trained, evaluated)
    assert {tuple(pixel) for pixel in trained[0].reshape(-1, 3)} == {(200, 200, 200), (102, 128, 153)}


def test_a_checkpoint_keeps_its_crop_unless_a_recipe_has_another():
    layer = Preprocess(SIZE, MEAN, STD, crop=0.9)
    squashed = Preprocess(SIZE, MEAN, STD, crop=0.95, crop_mode="squash", interpolation="bilinear")
    for known in (layer, squashed):
        assert Recipe().evaluated(known) is known
        for crop, mode in {"squash": "squash", "pad": "squash", "letterbox": "border", "center": "center"}.items():
            found = Recipe(crop=crop).evaluated(known)
            assert (found.crop, found.crop_mode) == (1.0, mode)
            assert (found.size, found.mean, found.std) == (known.size, known.mean, known.std)
            assert found.interpolation == known.interpolation
    assert (Recipe(crop_scale=(1, 1)).evaluated(layer).crop, layer.crop) == (1.0, 0.9)


# ------------------------------------------------------------------------------------------------- what the user asks


class StopError(Exception):
    """Raised in place of training, with the recipe and the preprocessing."""


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Call `finetune` up to its training; return the recipe, the preprocessing, and what was said."""

    def train(plan, *_, **options):
        raise StopError(plan.recipe, plan.preprocess)

    def call(folder, *, size=64, **options):
        said = []
        with pytest.raises(StopError) as stop:
            finetune(folder, "TestResNet", None, 1, size=size, output=tmp_path / "run", say=said.append, **options)
        return *stop.value.args, said

    monkeypatch.setattr("keras_residual.finetuning._train", train)
    monkeypatch.setattr("keras_residual.finetuning._draw_first_batch", lambda *_: None)
    return call


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("squares") / "images", [(40, 40)], each=8)


@pytest.mark.parametrize(
    ("options", "crop", "flip", "evaluation"),
    [
        ({}, "random", True, (0.875, "center")),
        ({"resize": "crop"}, "random", True, (0.875, "center")),
        ({"resize": "squash"}, "squash", True, (1.0, "squash")),
        ({"resize": "letterbox", "flip": "none"}, "letterbox", False, (1.0, "border")),
        ({"augment": "none"}, "center", False, (1.0, "center")),
        ({"augment": "none", "resize": "crop", "recipe": Recipe(crop="pad")}, "center", False, (1.0, "center")),
        ({"augment": "none", "flip": "vertical"}, "center", "vertical", (1.0, "center")),
        ({"augment": "none", "crop_scale": (0.5, 1)}, "random", False, (0.875, "center")),
        ({"recipe": "wrn"}, "pad", True, (1.0, "squash")),
        ({"recipe": "wrn", "resize": "crop"}, "random", True, (0.875, "center")),
        ({"recipe": "wrn", "crop_scale": (0.5, 1)}, "random", True, (0.875, "center")),
        ({"recipe": "wrn", "resize": "letterbox", "flip": "both"}, "letterbox", "both", (1.0, "border")),
        ({"crop_scale": (1, 1)}, "random", True, (1.0, "center")),
    ],
)
def test_options_override_the_recipe(planned, squares, options, crop, flip, evaluation):
    recipe, preprocess, _ = planned(squares, batch_size=4, **options)
    assert (recipe.crop, recipe.flip) == (crop, flip)
    assert (preprocess.crop, preprocess.crop_mode) == evaluation
    assert recipe.crop_scale == options.get("crop_scale", recipe.crop_scale)


def test_resize_crop_overrides_a_checkpoint_that_squashes():
    record, row = Weights("nowhere", "resnet18", crop=0.95, crop_mode="squash"), kr.models.find("ResNet18").config
    for resize, mode in {None: "squash", "crop": "center"}.items():
        found = finetuning._preprocess(record, row, {"size": None, "resize": resize}, Reading())
        assert (found.crop_mode, found.crop) == (mode, 0.95)


def test_augment():
    strong = Recipe(policy="trivialaugment", cutmix=1.0)
    for word in ("none", "light"):
        recipe = strong.with_views(augment=word)
        assert (recipe.policy, recipe.cutmix, recipe.mixup, recipe.erasing) == (None, 0, 0, 0)
    assert any(strong.with_views(augment="light").affine)
    assert Recipe().with_views(augment="strong").policy == "randaugment"
    assert strong.with_views() == strong


def test_old_and_new_spellings_of_flips_are_the_same_recipe():
    assert Recipe(flip="horizontal") == Recipe(flip=True)
    assert Recipe(flip="none") == Recipe(flip=False)
    assert Recipe.from_dict(Recipe(flip="both").to_dict()).flip == "both"
    assert Recipe(flip="none").to_dict()["flip"] is False  # as in runs of version 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resize": "stretch"}, "resize must be one of 'crop', 'squash', 'letterbox'; got 'stretch'"),
        ({"augment": "heavy"}, "augment must be one of 'none', 'light', 'strong'; got 'heavy'"),
        ({"flip": "sideways"}, "flip must be one of 'none', 'horizontal', .*; got 'sideways'"),
        ({"crop_scale": (1, 0.5)}, r"crop_scale must be .*got \(1, 0.5\)"),
        ({"crop_scale": (0, 1)}, r"crop_scale must be .*got \(0, 1\)"),
        ({"crop_scale": (0.5, 1.5)}, r"crop_scale must be .*got \(0.5, 1.5\)"),
        ({"crop_scale": (float("nan"), 1)}, r"crop_scale must be .*got \(nan, 1\)"),
        ({"crop_scale": 0.5}, "crop_scale must be .*got 0.5"),
        ({"crop_scale": "0.5,1"}, "crop_scale must be .*got 0.5,1"),
        ({"crop_scale": (0.5, 1), "resize": "squash"}, "crop_scale must be left out if resize is 'squash'"),
    ],
)
def test_bad_values_are_refused_before_anything_is_read(tmp_path, monkeypatch, options, words):
    monkeypatch.setattr("keras_residual.finetuning._read", lambda *_: pytest.fail("it read the data"))
    with pytest.raises(ValueError, match=words):
        finetune(tmp_path, "TestResNet", None, output=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--crop-scale", "half"], "must be two numbers LOW,HIGH, for example 0.5,1; got 'half'"),
        (["--crop-scale", "0.5"], "two numbers"),
        (["--resize", "stretch"], "invalid choice: 'stretch'"),
        (["--flip", "up"], "invalid choice: 'up'"),
        (["--augment", "most"], "invalid choice: 'most'"),
    ],
)
def test_bad_values_on_the_command_line(capsys, options, words):
    with pytest.raises(SystemExit):
        main(["finetune", "photos", *options])
    assert words in capsys.readouterr().err


def test_the_command_line_passes_them_on(monkeypatch):
    given = {}
    monkeypatch.setattr("keras_residual.finetuning.finetune", lambda **options: given.update(options))
    main(["finetune", "x", "--resize", "crop", "--flip", "both", "--augment", "light", "--crop-scale", "0.5,1"])
    assert {name: given[name] for name in ("resize", "flip", "augment", "crop_scale")} == {
        "resize": "crop",
        "flip": "both",
        "augment": "light",
        "crop_scale": (0.5, 1.0),
    }


# -------------------------------------------------------------------------------------------------- warnings and hints


@pytest.mark.parametrize(
    ("sizes", "options", "lost"),
    [
        ([(100, 1200)], {}, "94% of the typical image, which is 1,200 x 100"),
        ([(1200, 100)], {}, "94% of the typical image, which is 100 x 1,200"),
        ([(60, 60), (60, 60), (60, 600)], {}, None),  # most are square
        ([(60, 60), (60, 600), (60, 600)], {}, "92% of the typical image, which is 600 x 60"),
        ([(100, 1200)], {"resize": "squash"}, None),
        ([(100, 1200)], {"resize": "letterbox"}, None),
        ([(100, 1200)], {"recipe": "wrn"}, None),
        ([(100, 1200)], {"augment": "none"}, "92%"),
        ([(60, 80)], {"augment": "none"}, None),  # a quarter
    ],
)
def test_a_crop_that_loses_much_is_reported(planned, tmp_path, sizes, options, lost):
    folder = folder_of(tmp_path / "images", sizes, each=6)
    _, _, said = planned(folder, batch_size=4, **options)
    lines = [line for line in said if line.startswith("warning     the crop")]
    assert len(lines) == (lost is not None)
    if lost is not None:
        assert lost in lines[0]
        assert "--resize squash" in lines[0]


@pytest.mark.parametrize(
    ("names", "horizontal", "vertical"),
    [
        (("left", "right"), ("left", "right"), None),
        (("d", "b", "x"), ("b", "d"), None),
        (("p", "q"), ("p", "q"), None),
        (("B", "D"), None, None),
        (("East wind", "West wind"), ("East wind", "West wind"), None),
        (("turnLeft", "turnRight"), ("turnLeft", "turnRight"), None),
        (("hand_l", "hand_r"), ("hand_l", "hand_r"), None),
        (("anti-clockwise", "clockwise"), ("anti-clockwise", "clockwise"), ("anti-clockwise", "clockwise")),
        (("左转", "右转"), ("左转", "右转"), None),
        (("up", "down"), None, ("up", "down")),
        (("cup", "cdown"), None, None),
        (("bright", "blight", "left", "plant"), None, None),
        (("cat", "dog"), None, None),
    ],
)
def test_mirrored_names(names, horizontal, vertical):
    assert mirror_pair(names) == horizontal
    assert mirror_pair(names, vertical=True) == vertical


@pytest.mark.parametrize(
    ("names", "flip", "hint"),
    [
        (("left", "right"), None, "'left' and 'right' alike. Off: --flip none"),
        (("left", "right"), "both", "'left' and 'right' alike. Off: --flip vertical"),
        (("left", "right"), "none", None),
        (("left", "right"), "vertical", None),
        (("down", "up"), None, None),
        (("down", "up"), "vertical", "'down' and 'up' alike. Off: --flip none"),
        (("down", "up"), "both", "'down' and 'up' alike. Off: --flip horizontal"),
    ],
)
def test_a_hint_about_mirror_images(planned, tmp_path, names, flip, hint):
    folder = folder_of(tmp_path / "images", [(32, 32)], each=8, names=names)
    _, _, said = planned(folder, flip=flip)
    lines = [line for line in said if line.startswith("hint")]
    assert len(lines) == (hint is not None)
    assert hint is None or hint in lines[0]


# --------------------------------------------------------------------------------------------------------------- flips


@pytest.mark.parametrize("kind", ["examples", "arrays"])
@pytest.mark.parametrize(
    ("flip", "expected"),
    [("none", 0), ("horizontal", 1), (True, 1), ("vertical", 2), ("both", 3)],
)
def test_flips(kind, flip, expected):
    """Each corner of the image has another value: the value at the top left says which way it was flipped."""
    image = np.zeros((8, 8, 1), "uint8")
    image[0, 0], image[0, 7], image[7, 0], image[7, 7] = 10, 20, 30, 40
    x, y = np.stack([image] * 200), np.arange(200) % 2
    train = data.load((x, y), validation=0).train if kind == "examples" else (x, y)
    run = Run(network(1, (8, 8)), Recipe(flip=flip, crop="squash", batch_size=200), train, preprocess=((0.5,), (0.5,)))
    (images, _), _ = next(iter(run.batches(0, None)))
    seen = {value: int(np.sum(images[:, 0, 0, 0] == value)) for value in (10, 20, 30, 40)}
    wanted = {0: (1, 0, 0, 0), 1: (0.5, 0.5, 0, 0), 2: (0.5, 0, 0.5, 0), 3: (0.25,) * 4}[expected]
    assert np.abs(np.array(list(seen.values())) / 200 - wanted).max() < 0.12
    assert all((count > 0) == (share > 0) for count, share in zip(seen.values(), wanted, strict=True))


# ----------------------------------------------------------------------------------------------------------- the sheet


@pytest.mark.parametrize(
    "changes",
    [
        {"crop": "letterbox"},
        {"crop": "random", "policy": "randaugment", "color_jitter": 0.3, "erasing": 0.5, "mixup": 0.5, "cutmix": 1.0},
        {"crop": "random", "affine": (20.0, 0.1, 0.1), "cutmix": 1.0, "batch_size": 8},
    ],
)
def test_the_sheet_shows_what_the_network_sees(changes):
    """The images of the figure are those that the network gets in its first step, normalised."""
    recipe = Recipe(batch_size=32, crop_scale=(0.3, 1.0)).replace(**changes)
    x = np.stack([smooth(40, 70, seed) for seed in range(40)])
    train = data.load((x, np.arange(40) % 2), validation=0).train
    layer = Preprocess((16, 16), MEAN, STD)
    images, shares = first_images(recipe, train, layer, seed=3, classes=2)
    step, batches = prepare(network(size=(16, 16)), recipe, train, seed=3, preprocess=layer)
    (batch, index), labels = next(iter(batches))
    step.network = lambda pixels, training: pixels
    seen = keras.ops.convert_to_numpy(step((batch, index), training=True))
    seen = np.clip((seen * STD + MEAN) * 255, 0, 255)
    first = int(recipe.batch_size > 24)
    assert len(images) == min(24, recipe.batch_size)
    assert np.abs(images - seen[first : first + len(images)]).max() <= 0.51
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-5)
    if not (recipe.mixup or recipe.cutmix):
        assert shares.argmax(-1).tolist() == np.asarray(labels)[first : first + len(images)].tolist()


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_a_sheet_is_drawn_for_any_channels_and_names(tmp_path, channels):
    from keras_residual.reports import write_first_batch

    images = np.full((5, 20, 20, channels), 90, "uint8")
    names = ["US$10\\frac$ a_{b}^c", "new\nline 中文"]
    shares = np.array([[1, 0], [0, 1], [0.7, 0.3], [0.5, 0.5], [0.998, 0.002]])
    drawn = {}
    with pytest.MonkeyPatch.context() as patch:
        draw = figures.draw_mistakes
        patch.setattr(figures, "draw_mistakes", lambda *given: (drawn.update(captions=given[1]), draw(*given)))
        write_first_batch(images, shares, names, tmp_path / "augmented.png", 5)
    assert np.asarray(Image.open(tmp_path / "augmented.png").convert("L")).std() > 5
    assert drawn["captions"][0] == drawn["captions"][4] == figures.short(names[0])
    assert re.fullmatch(r".* 70%\n.* 30%", drawn["captions"][2])


@pytest.mark.long
def test_a_run_with_options(squares, tmp_path, monkeypatch):
    """A sheet before training, the settings in run.json, the crop in the classifier, and another run is refused."""
    options = {"size": 32, "batch_size": 4, "say": str, "output": tmp_path / "run", "resize": "letterbox"}
    options |= {"flip": "vertical", "augment": "light"}
    sheets, fit = [], kr.training.fit

    def watched(*given, **named):
        sheets.append((tmp_path / "run" / "augmented.png").is_file())
        return fit(*given, **named)

    monkeypatch.setattr("keras_residual.training.fit", watched)
    classifier = finetune(squares, "TestResNet", None, 1, **options)
    assert sheets == [True]
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (about["recipe"]["crop"], about["recipe"]["flip"]) == ("letterbox", "vertical")
    assert about["asked"]["resize"] == "letterbox"
    assert about["evaluation_crop"] == ["border", 1.0]
    loaded = kr.Classifier.load(tmp_path / "run")
    for known in (classifier.preprocess, loaded.preprocess):
        assert (known.crop_mode, known.crop) == ("border", 1.0)
    with pytest.raises(ValueError, match="flip: 'vertical' before, 'none' now"):
        finetune(squares, "TestResNet", None, 1, **{**options, "flip": "none"})
    finetune(squares, "TestResNet", None, 1, **options)  # finished
    assert len(sheets) == 1


def test_a_sheet_that_cannot_be_drawn_is_a_warning(squares, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no font")

    def train(*_, **__):
        raise StopError

    monkeypatch.setattr(figures, "draw_mistakes", fail)
    monkeypatch.setattr("keras_residual.finetuning._train", train)
    with pytest.warns(UserWarning, match=r"Could not write augmented\.png .*no font"), pytest.raises(StopError):
        finetune(squares, "TestResNet", None, 1, size=32, batch_size=4, output=tmp_path / "run", say=str)


def test_any_shape_can_be_classified_if_nothing_is_cropped():
    """To crop an image of 1 x 30,000 it would have to be enlarged to 1.4 million columns first."""
    image = np.full((1, 30_000, 3), 90, "uint8")
    for mode, readable in (("center", False), ("squash", True), ("border", True)):
        layer = Preprocess(SIZE, MEAN, STD, crop=1.0, crop_mode=mode)
        found = kr.Classifier(network(), layer, ("a", "b"), "ResNet20").predict(image)[0]
        assert (found.error == "") is readable


# ----------------------------------------------------------------------------------------------------------- real runs


@pytest.mark.long
@pytest.mark.parametrize("resize", ["squash", "letterbox"])
@pytest.mark.parametrize("tall", [False, True])
def test_strips(tmp_path, resize, tall):
    """The class shows at one end only, which a central crop never sees."""
    colours = [(220, 40, 40), (40, 200, 40), (40, 40, 220)]
    for kind in range(3):
        (tmp_path / "strips" / "abc"[kind]).mkdir(parents=True)
        for index in range(10):
            strip = np.random.default_rng(100 * kind + index).integers(90, 160, (100, 1200, 3)).astype("uint8")
            strip[:, -100:] = colours[kind]
            strip = strip.transpose(1, 0, 2) if tall else strip
            Image.fromarray(strip).save(tmp_path / "strips" / "abc"[kind] / f"{index}.jpg", quality=85)
    options = {"size": 64, "resize": resize, "say": str}
    classifier = finetune(tmp_path / "strips", "ResNet20", None, 8, output=tmp_path / "run", **options)
    assert classifier.evaluate(tmp_path / "strips")["accuracy"] == 1


@pytest.mark.long
@pytest.mark.parametrize(("names", "flip"), [(("left", "right"), "none"), (("up", "down"), "horizontal")])
def test_arrows(tmp_path, names, flip):
    for index in range(40):
        noise = np.random.default_rng(index)
        left, top = noise.integers(8, 14, 2)
        arrow = np.full((32, 32, 3), 235, "uint8") - noise.integers(0, 30, (32, 32, 3), "uint8")
        for step in range(7):
            arrow[top + 7 - step : top + 8 + step, left + step] = 30
        arrow = arrow if names[0] == "left" else arrow.transpose(1, 0, 2)
        mirrored = arrow[:, ::-1] if names[0] == "left" else arrow[::-1]
        for name, image in zip(names, (arrow, mirrored), strict=True):
            (tmp_path / "arrows" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(image)).save(tmp_path / "arrows" / name / f"{index}.png")
    classifier = finetune(tmp_path / "arrows", "ResNet20", None, 8, output=tmp_path / "run", flip=flip, say=str)
    assert classifier.evaluate(tmp_path / "arrows")["accuracy"] == 1
