"""Sources that are Python objects or tables: each is accepted, or rejected with the nearest thing that works."""

import itertools
import os
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_residual import data
from keras_residual.data import objects
from keras_residual.training.arrays import read
from keras_residual.training.inputs import check_images, check_size
from tests.data_images import encoded, write_folder

X = np.random.default_rng(0).integers(0, 256, (20, 8, 9, 3)).astype("uint8")
Y = np.arange(20) % 4
NAMES = ["ape", "elk", "fox", "owl"]
SIZES = [X[i, : 4 + i % 3] for i in range(20)]
FILES = [encoded(x, "PNG") for x in X]
PAIRS = tf.data.Dataset.from_tensor_slices((X, Y))


def load(source, **options):
    return data.load(source, **{"cache": False, **options})


class Batches(keras.utils.PyDataset):
    """Keras' own kind of dataset."""

    def __init__(self, length=4):
        super().__init__()
        self.length = length

    @property
    def num_batches(self):
        return self.length

    def __getitem__(self, index):
        return X[5 * index : 5 * index + 5], Y[5 * index : 5 * index + 5]


class Tensor:
    """As PyTorch's: an array only through `detach` and `cpu`."""

    def __init__(self, value):
        self.value = value

    def detach(self):
        return self

    def cpu(self):
        return self.value


class Loader:
    """As PyTorch's DataLoader: batches in lists, and a length in batches."""

    def __len__(self):
        return 4

    def __iter__(self):
        for i in range(4):
            yield [Tensor(X[5 * i : 5 * i + 5]), Tensor(Y[5 * i : 5 * i + 5])]


class Folder:
    """As torchvision's ImageFolder: pictures by number, and names of the classes."""

    classes = NAMES

    def __getitem__(self, index):
        if index >= 20:
            raise IndexError(index)
        return Image.fromarray(X[index]), int(Y[index])


class Frame:
    """As a DataFrame of pandas or Polars."""

    def __init__(self, columns):
        self.data, self.columns, self.shape = columns, list(columns), (len(next(iter(columns.values()))), len(columns))

    def __getitem__(self, name):
        return self.data[name]


def ragged():
    images = tf.ragged.stack([tf.RaggedTensor.from_tensor(image, ragged_rank=1) for image in SIZES])
    return tf.data.Dataset.from_tensor_slices((images, Y))


def generator(pairs):
    return (pair for pair in pairs)


ACCEPTED = {
    "arrays": lambda: (X, Y),
    "arrays in a list": lambda: [X, Y],
    "arrays in a dictionary": lambda: {"image": X, "label": Y},
    "column of labels": lambda: (X, Y[:, None]),
    "one-hot labels": lambda: (X, np.eye(4)[Y]),
    "lists of arrays": lambda: (list(X), Y.tolist()),
    "list of pairs": lambda: list(zip(X, Y, strict=True)),
    "list of dictionaries": lambda: [{"image": x, "label": y} for x, y in zip(X, Y, strict=True)],
    "tensors": lambda: (tf.constant(X), tf.constant(Y)),
    "tf.data": lambda: PAIRS,
    "tf.data in batches": lambda: PAIRS.batch(6),
    "tf.data of dictionaries": lambda: PAIRS.map(lambda x, y: {"image": x, "label": y, "id": y}),
    "tf.data of other dictionaries": lambda: PAIRS.map(lambda x, y: {"scan": x, "kind": y}).batch(3),
    "tf.data with a named input": lambda: PAIRS.map(lambda x, y: ({"input": x}, y)),
    "tf.data with one-hot labels": lambda: PAIRS.map(lambda x, y: (x, tf.one_hot(y, 4))),
    "tf.data with one-hot labels in batches": lambda: PAIRS.map(lambda x, y: (x, tf.one_hot(y, 4))).batch(8),
    "tf.data of unknown length": lambda: PAIRS.filter(lambda x, y: True),
    "tf.data of unknown rank": lambda: tf.data.Dataset.from_generator(
        lambda: zip(X, Y, strict=True), output_types=(tf.uint8, tf.int64)
    ),
    "PyDataset": Batches,
    "data loader": Loader,
    "generator": lambda: generator(zip(X, Y, strict=True)),
    "generator of batches": lambda: generator([(X[:9], Y[:9]), (X[9:], Y[9:])]),
}
ONLY_LOADED = {  # by `load`; `fit` says so
    "lists of arrays of several sizes": lambda: (SIZES, Y),
    "ragged tf.data": ragged,
    "ragged tf.data in batches": lambda: ragged().batch(6),
    "encoded images": lambda: tf.data.Dataset.from_tensor_slices(([encoded(x, "PNG") for x in X], Y)),
    "encoded images in batches": lambda: tf.data.Dataset.from_tensor_slices(([encoded(x, "PNG") for x in X], Y)).batch(
        7
    ),
    "PIL images": lambda: ([Image.fromarray(x) for x in X], Y),
    "pairs of PIL images": lambda: [(Image.fromarray(x), int(y)) for x, y in zip(X, Y, strict=True)],
    "a folder of torchvision": Folder,
}


@pytest.mark.parametrize("name", [*ACCEPTED, *ONLY_LOADED])
def test_accepted(name):
    """All images, each with its label and its pixels."""
    found = load({**ACCEPTED, **ONLY_LOADED}[name](), validation=0.0)
    assert len(found.labels) == 4
    assert len(found.train) == 20
    several = "sizes" in name or "ragged" in name
    expected = {image.tobytes(): label for image, label in zip(SIZES if several else X, Y, strict=True)}
    for i in range(20):
        image, label = found.train[i]
        assert expected.pop(image.tobytes()) == label
    assert not expected


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_by_fit(name):
    found = read(ACCEPTED[name](), "training images")
    expected = {image.tobytes(): label for image, label in zip(X, Y, strict=True)}
    assert found.images.shape == X.shape
    for image, label in zip(found.images, found.labels, strict=True):
        assert expected.pop(image.tobytes()) == label


@pytest.mark.parametrize("name", ONLY_LOADED)
def test_fit_names_load(name):
    with pytest.raises(TypeError, match=r"^training images must be arrays of one shape.*keras_residual\.data\.load"):
        read(ONLY_LOADED[name](), "training images")


REJECTED = {
    "images alone": (lambda: X, r"must have labels.*\(images, labels\)"),
    "tf.data without labels": (lambda: PAIRS.map(lambda x, y: x), r'got only .*Use label_mode="int"'),
    "weights of examples": (lambda: PAIRS.map(lambda x, y: (x, y, 1.0)), r"3 values.*lambda image, label, \*others"),
    "two images": (lambda: PAIRS.map(lambda x, y: {"left": x, "right": x, "y": y}), "'left' .*Select the two to use"),
    "endless tf.data": (lambda: PAIRS.repeat(), r"got an infinite tf.data.Dataset. Remove \.repeat\(\)"),
    "endless tf.data, filtered": (
        lambda: PAIRS.repeat().filter(lambda x, y: True),
        "only 20 of its first.*cardinality",
    ),
    "endless PyDataset": (lambda: Batches(None), "got an infinite Batches"),
    "endless generator": (lambda: itertools.cycle(zip(X, Y, strict=True)), r"only 20 of its first.*itertools\.islice"),
    "empty generator": (lambda: generator([]), "yields nothing"),
    "empty list": (list, "from a folder|must be keras_residual"),
    "a number": (lambda: 3, "from a folder|must be keras_residual"),
    "a set of numbers": (lambda: [1, 2, 3], "from a folder|must be keras_residual"),
    "a table without paths": (lambda: Frame({"file": ["a"], "label": ["b"]}), r"path and label.*file, label.*rename"),
    "more labels than images": (lambda: generator([(X, Y[:5])]), "20 images and 5 labels"),
}


@pytest.mark.parametrize("name", REJECTED)
@pytest.mark.parametrize("reader", [load, lambda source: read(source, "training images")], ids=["load", "fit"])
def test_rejected(name, reader):
    source, words = REJECTED[name]
    with pytest.raises((ValueError, TypeError), match=words):
        reader(source())


def test_endless_and_always_different(monkeypatch):
    """Random augmentation never repeats itself: the budget of memory ends it, or the number of examples."""
    noise = tf.data.Dataset.range(2**60).filter(lambda i: True).map(lambda i: (tf.fill((8, 8, 3), i), i % 4))
    for name, value, words in (("LONGEST", 3000, "3,000 examples"), ("_memory", lambda: 10_000_000, "0.0 GB")):
        with monkeypatch.context() as patch:
            patch.setattr(objects, name, value)
            with pytest.raises(ValueError, match=words):
                load(noise)


def test_many_copies_are_no_endless_dataset():
    known = PAIRS.repeat(100).apply(tf.data.experimental.assert_cardinality(2000))
    assert len(load(known, validation=0.0).train) == 2000


# --------------------------------------------------------------------------------------------------------------- order


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("order") / "images", kinds=("PNG",))


def of_directory(folder, **options):
    return keras.utils.image_dataset_from_directory(
        folder, **{"image_size": (24, 24), "batch_size": 7, "verbose": False, **options}
    )


@pytest.mark.filterwarnings("ignore")
def test_a_shuffled_dataset_is_the_same_dataset(folder):
    """By fingerprint, split and order of the rows, whatever the seed, and reshuffled in each iteration."""
    reshuffled = of_directory(folder, seed=1)
    found = [load(source) for source in (reshuffled, reshuffled, of_directory(folder, seed=2))]
    seen = [np.concatenate([y for _, y in source]) for source in (reshuffled, reshuffled)]
    assert (seen[0] != seen[1]).any(), "it is not shuffled: nothing would be proven"
    plain = load(of_directory(folder, shuffle=False))
    for other in (*found[1:], plain):
        assert other.fingerprint == found[0].fingerprint
        for part in ("train", "validation"):
            a, b = getattr(found[0], part), getattr(other, part)
            np.testing.assert_array_equal(a.labels, b.labels)
            assert all((a[i][0] == b[i][0]).all() for i in range(len(a)))
    assert load(of_directory(folder, image_size=(20, 24))).fingerprint != found[0].fingerprint


@pytest.mark.filterwarnings("ignore")
def test_fit_reads_a_shuffled_dataset_in_one_order(folder):
    first, second = (read(of_directory(folder, seed=seed), "training images") for seed in (1, 2))
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.labels, second.labels)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["int", "categorical"])
def test_class_names_and_paths_of_image_dataset_from_directory(folder, mode):
    found = load(of_directory(folder, shuffle=False, label_mode=mode), validation=0.0)
    assert found.labels == ("ant", "bee", "cow")
    for name, label in zip(found.train.names, found.train.labels, strict=True):
        assert os.path.basename(os.path.dirname(name)) == found.labels[label]
    shuffled = load(of_directory(folder, label_mode=mode), validation=0.0)
    assert shuffled.labels == found.labels
    assert shuffled.train.names == tuple(map(str, range(30)))  # whose path is whose is not known
    again = load(of_directory(folder, class_names=["cow", "bee", "ant"]), classes=["ant", "bee", "cow"], validation=0.0)
    np.testing.assert_array_equal(again.train.labels, found.train.labels)


@pytest.mark.filterwarnings("ignore")
def test_binary_labels_are_classes(tmp_path):
    found = load(
        of_directory(write_folder(tmp_path / "two", ("no", "yes"), kinds=("PNG",)), label_mode="binary"), validation=0.0
    )
    assert found.labels == ("no", "yes")
    assert np.bincount(found.train.labels).tolist() == [10, 10]


# --------------------------------------------------------------------------------------------------------------- files


def rows(folder):
    return [(str(path), path.parent.name) for path in sorted(folder.rglob("*.png"))]


PATHS = {
    "paths with labels": lambda rows: tuple(zip(*rows, strict=True)),
    "lists of paths and labels": lambda rows: [list(part) for part in zip(*rows, strict=True)],
    "array of paths": lambda rows: tuple(map(np.array, zip(*rows, strict=True))),
    "list of pairs": lambda rows: rows,
    "list of pairs of Path": lambda rows: [(Path(path), label) for path, label in rows],
    "DataFrame": lambda rows: Frame(dict(zip(("path", "label"), map(list, zip(*rows, strict=True)), strict=True))),
    "generator of pairs": generator,
}


@pytest.mark.parametrize("name", PATHS)
def test_paths_with_labels(name, folder):
    found = load(PATHS[name](rows(folder)))
    assert found.labels == ("ant", "bee", "cow")
    assert (len(found.train), len(found.validation)) == (24, 6)
    for path, label in zip(found.train.names, found.train.labels, strict=True):
        assert os.path.dirname(path) == found.labels[label]  # relative to what they have in common


def test_paths_are_the_same_dataset_wherever_they_are(folder, tmp_path):
    copy = write_folder(tmp_path / "copy", kinds=("PNG",))
    assert load(rows(copy)).fingerprint == load(rows(folder)).fingerprint


def test_the_order_of_rows_does_not_matter(folder):
    assert load(rows(folder)[::-1]).fingerprint == load(rows(folder)).fingerprint
    assert load(generator(rows(folder)[::-1])).fingerprint == load(rows(folder)).fingerprint


def test_a_dataframe_that_is_split(folder):
    paths, labels = zip(*rows(folder), strict=True)
    split = ["test" if i % 10 == 0 else "val" if i % 5 == 0 else "train" for i in range(30)]
    found = load(Frame({"Path": paths, "label": labels, "split": split}))
    assert (len(found.train), len(found.validation), len(found.test)) == (24, 3, 3)


def text(folder, delimiter=","):
    return "\n".join(delimiter.join(row) for row in [("path", "label"), *rows(folder)])


@pytest.mark.parametrize(
    ("file", "encoding", "delimiter"),
    [
        ("excel.txt", "utf-16", "\t"),  # what Excel calls Unicode text
        ("excel.csv", "utf-16", ";"),
        ("big.csv", "utf-16-be", ","),
        ("mark.csv", "utf-8-sig", ","),
        ("tabs.tsv", "utf-8", "\t"),
    ],
)
def test_tables_of_spreadsheets(file, encoding, delimiter, folder, tmp_path):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / file).write_bytes((mark + text(folder, delimiter)).encode(encoding))
    assert load(tmp_path / file).labels == ("ant", "bee", "cow")


def test_table_in_another_encoding(folder, tmp_path):
    (tmp_path / "t.csv").write_bytes(text(folder).replace(",cow", ",caf\u00e9").encode("cp1252"))
    with pytest.raises(ValueError, match=r"t\.csv', with the label 'caf\\xe9'.*cp1252.*'caf\u00e9'.*CSV UTF-8.*iconv"):
        load(tmp_path / "t.csv")
    (tmp_path / "u.csv").write_bytes(text(folder).encode("utf-16-le"))
    with pytest.raises(ValueError, match="zero bytes, so it is UTF-16 without the mark"):
        load(tmp_path / "u.csv")


def test_table_with_the_bytes_of_file_names(folder, tmp_path):
    """A name that is not UTF-8 is found by its bytes."""
    name = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    with open(name, "wb") as file:
        file.write(encoded(X[0], "PNG"))
    (tmp_path / "t.csv").write_bytes(text(folder).encode() + b"\ncaf\xe9.png,cow")
    assert len(load(tmp_path / "t.csv", validation=0.0).train) == 31


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("t.xlsx", "Save the sheet as CSV"),
        ("t.jsonl", "to_csv"),
        ("t.zip", "Unpack it and pass the folder"),
        ("t.npz", r"pass \(images, labels\)"),
        ("t.tfrecord", "tf.data.Dataset that parses it"),
        ("t.JPG", "single image; pass the folder"),
        ("t.what", r"\.csv, \.tsv, \.txt or \.parquet"),
    ],
)
def test_files_that_list_no_images(file, words, tmp_path):
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(ValueError, match=words):
        load(tmp_path / file)


def test_names_of_classes_are_one_line_in_every_source(tmp_path):
    """A line feed would shift `labels.txt`; bytes that are not UTF-8 cannot be written at all."""
    odd, escaped = ["a\nb", "caf\udce9", "e\u0301"], ("a\\nb", "caf\\xe9", "\u00e9")
    images = X[:18]
    labels = np.array(odd, object)[np.arange(18) % 3]
    assert load((images, labels)).labels == escaped
    paths = []
    for i, image in enumerate(images):
        place = os.path.join(tmp_path, odd[i % 3])
        os.makedirs(place, exist_ok=True)
        paths.append(os.path.join(place, f"{i}.png"))
        Image.fromarray(image).save(paths[-1])
    assert load(tmp_path).labels == escaped
    assert load((paths, list(labels))).labels == escaped
    assert load((images, labels), classes=odd).labels == escaped


# --------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("size", [0, (24, 24, 3), (24, None), "24", 24.0])
def test_what_is_no_size(size):
    examples = load((X, Y)).train
    for read_by in (examples.training, examples.evaluation):
        with pytest.raises(ValueError, match=r"\(height, width\).*image\.size\[::-1\]"):
            read_by(4, size)


def test_width_first():
    """PIL says (width, height), networks (height, width)."""
    with pytest.raises(ValueError, match=r"Is the width first.*np.swapaxes\(images, 1, 2\)"):
        check_images(X, (9, 8, 3), True, "images")
    with pytest.raises(ValueError, match=r"got \(9, 8\)\. Is the width first"):
        check_size(None, (9, 8), (8, 9, 3))
