"""Helpers for the tests of the manual: sample data for its pages, and the code blocks of each page."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "pages").rglob("*.md"))
CLASSES = ("daisy", "rose", "tulip")
BLOCK = re.compile(r"^(?P<indent> *)```(?P<kind>python|sh)\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
PROGRAM = "keras-residual"


def name(page):
    """Return a page's name relative to `docs/pages`."""
    return page.relative_to(ROOT / "docs" / "pages").with_suffix("").as_posix()


def blocks(page):
    """Return the Python and shell blocks of a page as `(kind, code)`, including those in lists."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [(block["kind"], re.sub(f"^{block['indent']}", "", block["code"], flags=re.MULTILINE)) for block in found]


def lines(code):
    """Return the lines of a shell block, joining those that end with a backslash."""
    return [line for line in code.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


def arguments(line):
    """Return the arguments of `keras-residual` in the last command of a shell line, or `None` for other programs."""
    command = re.split(r"&&|&(?=\s*\S)", line.rstrip("& "))[-1]
    tokens = shlex.split(re.sub(r"^\s*([A-Z_]+=\S+\s+)+", "", command), comments=True)
    return tokens[1:] if tokens[:1] == [PROGRAM] else None


def photos(place, count=12, classes=CLASSES):
    """Write colour images of digits, with one folder per class."""
    digits = load_digits()
    for number, label in enumerate(classes):
        (place / label).mkdir(parents=True)
        for i, image in enumerate(digits.images[digits.target == number][:count]):
            pixels = np.kron(image, np.ones((4, 4)))[..., None] * np.array([15.9, 12, 8])
            Image.fromarray(pixels.astype("uint8")).save(place / label / f"{i:02}.jpg", quality=95)


def world(place):
    """Write the data that the pages use without creating it: photos of flowers, and of good and defective parts."""
    photos(place / "photos")
    photos(place / "more_photos", 4)
    photos(place / "unbalanced", 16, ("good", "defect"))
    for extra in sorted((place / "unbalanced" / "defect").iterdir())[4:]:
        extra.unlink()
    shutil.copy(place / "photos" / "rose" / "00.jpg", place / "new.jpg")


def blossoms(place):
    """Prepare a dataset `blossoms` with TensorFlow Datasets."""
    import tensorflow_datasets as tfds

    digits = load_digits()

    class Blossoms(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
            features = {"image": image, "label": tfds.features.ClassLabel(names=list(CLASSES))}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for label in range(3):
                for i, image in enumerate(digits.images[digits.target == label][:12]):
                    pixels = np.kron(image, np.ones((4, 4)))[..., None] * np.array([15, 15, 15])
                    yield f"{label}/{i}", {"image": pixels.astype("uint8"), "label": label}

    Blossoms(data_dir=place).download_and_prepare()
