"""What the manual's tests share: the data that its pages speak of, and the pages as scripts."""

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
    """A page's name below `docs/pages`."""
    return page.relative_to(ROOT / "docs" / "pages").with_suffix("").as_posix()


def blocks(page):
    """The Python and shell blocks of a page, as `(kind, code)`, also those in lists."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [(block["kind"], re.sub(f"^{block['indent']}", "", block["code"], flags=re.MULTILINE)) for block in found]


def lines(code):
    """The lines of a shell block; those that end in a backslash are joined."""
    return [line for line in code.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


def arguments(line):
    """The arguments of `keras-residual` in a line of a shell, and whether more than this command is in it.

    Returns `None` for other commands.
    """
    words = shlex.split(line, comments=True)
    for word in ("&&", "&"):
        while word in words:
            words = words[words.index(word) + 1 :] if words[-1] != word else words[:-1]
    settings = [word for word in words if re.match(r"[A-Z_]+=", word)]
    words = words[len(settings) :]
    if not words or words[0] != PROGRAM:
        return None
    return words[1:]


def photos(place, count=12, classes=CLASSES):
    """A folder per class of colour images, which are digits."""
    digits = load_digits()
    for number, label in enumerate(classes):
        (place / label).mkdir(parents=True)
        for i, image in enumerate(digits.images[digits.target == number][:count]):
            pixels = np.kron(image, np.ones((4, 4)))[..., None] * np.array([15.9, 12, 8])
            Image.fromarray(pixels.astype("uint8")).save(place / label / f"{i:02}.jpg", quality=95)


def world(place):
    """All that pages speak of and do not make themselves: photos of flowers and of good and defective parts."""
    photos(place / "photos")
    photos(place / "more_photos", 4)
    photos(place / "unbalanced", 16, ("good", "defect"))
    for extra in sorted((place / "unbalanced" / "defect").iterdir())[4:]:
        extra.unlink()
    shutil.copy(place / "photos" / "rose" / "00.jpg", place / "new.jpg")


def blossoms(place):
    """A dataset `blossoms` that the writer of TensorFlow Datasets has prepared."""
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
