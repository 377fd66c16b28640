"""Folders, manifests, TFDS, arrays: what is odd about them is an error in plain words or a warning, never silence."""

import os
import unicodedata

import numpy as np
import pytest
import tensorflow as tf

from keras_residual import data
from tests.data_images import encoded, picture, write_folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "images")


def load(source, **options):
    return data.load(source, **{"cache": False, **options})


def warned(found, *words):
    return any(all(word in warning for word in words) for warning in found.warnings)


def put(path, seed, kind="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(picture(20, 24, seed=seed), kind))


# ------------------------------------------------------------------------------------------------------------ folders


def test_folder_per_class(images):
    found = load(images)
    assert found.labels == ("ant", "bee", "cow")
    assert found.warnings == ()
    assert found.skipped == ()
    assert found.test is None
    assert len(found.train) == 24
    assert np.bincount(found.validation.labels).tolist() == [2, 2, 2]
    assert found.train.labels.dtype == np.int32
    for name, label in zip(found.train.names, found.train.labels, strict=True):
        assert name.startswith(found.labels[label] + os.sep)
    assert not set(found.train.names) & set(found.validation.names)
    assert str(found) == "3 classes, 24 images to train on, 6 to validate with"


def test_split_is_a_function_of_names_and_seed(images, tmp_path):
    copy = write_folder(tmp_path / "elsewhere", kinds=("BMP",))  # other place, other content, other suffix
    for path in sorted(copy.rglob("*.bmp")):
        path.rename(path.with_suffix(next((images / path.parent.name).glob(f"{path.stem}.*")).suffix))
    first = load(images).validation.names
    assert load(copy).validation.names == first
    assert load(images, seed=1).validation.names != first
    # Written down, so that no version moves images between the parts.
    assert load(images, validation=0.1).validation.names == ("ant/005.png", "bee/001.png", "cow/000.jpg")


def test_split_sizes(images):
    assert len(load(images, validation=0).validation) == 0
    assert np.bincount(load(images, validation=0.5).validation.labels).tolist() == [5, 5, 5]
    assert np.bincount(load(images, validation=0.01).validation.labels).tolist() == [1, 1, 1]
    for wrong in (1, -0.1, 1.5):
        with pytest.raises(ValueError, match="0 <= validation < 1"):
            load(images, validation=wrong)


def test_class_of_one_image(tmp_path):
    root = write_folder(tmp_path / "r", count=3)
    put(root / "dog" / "only.png", 999)
    found = load(root)
    assert found.validation.labels.tolist() == [0, 1, 2]
    assert warned(found, "'dog'", "too few images to validate with")


def test_fingerprint(images, tmp_path):
    root = write_folder(tmp_path / "copy")
    first = load(root).fingerprint
    assert load(images).fingerprint == first  # wherever it lies
    os.utime(root / "ant" / "000.jpg", (1, 1))
    assert load(root).fingerprint == first
    assert load(root, seed=1).fingerprint != first
    assert load(root, classes=["cow", "bee", "ant"]).fingerprint != first
    (root / "ant" / "000.jpg").rename(root / "ant" / "0000.jpg")
    renamed = load(root).fingerprint
    assert renamed != first
    put(root / "ant" / "0000.jpg", 5)
    assert load(root).fingerprint not in (first, renamed)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_train_and_val_folders(tmp_path, val):
    write_folder(tmp_path / "r" / "train", count=3)
    write_folder(tmp_path / "r" / val, count=2, kinds=("TIFF",))
    write_folder(tmp_path / "r" / "test", count=1, kinds=("BMP",))
    found = load(tmp_path / "r")
    assert found.labels == ("ant", "bee", "cow")
    assert (len(found.train), len(found.validation), len(found.test)) == (9, 6, 3)
    assert all(name.startswith(f"{val}{os.sep}") for name in found.validation.names)
    assert not warned(found, "skipped")


def test_train_and_test_without_val(tmp_path):
    write_folder(tmp_path / "r" / "train", count=5)
    write_folder(tmp_path / "r" / "test", count=2, kinds=("BMP",))
    found = load(tmp_path / "r")
    assert (len(found.train), len(found.validation), len(found.test)) == (12, 3, 6)


def test_unknown_class_in_val(tmp_path):
    write_folder(tmp_path / "r" / "train", count=2)
    write_folder(tmp_path / "r" / "val", ("ant", "bee", "dog"), count=2, kinds=("TIFF",))
    with pytest.raises(ValueError, match=r"folder in train/; got 'dog' only in val/"):
        load(tmp_path / "r")
    found = load(tmp_path / "r", classes=["ant", "bee"])
    assert found.labels == ("ant", "bee")


def test_class_missing_in_val(tmp_path):
    write_folder(tmp_path / "r" / "train", count=2)
    write_folder(tmp_path / "r" / "val", ("ant", "bee"), count=2, kinds=("TIFF",))
    assert warned(load(tmp_path / "r"), "val/ has no folder for the classes 'cow'")


def test_test_folder_without_classes(tmp_path):
    write_folder(tmp_path / "r" / "train", count=4)
    put(tmp_path / "r" / "test" / "x.png", 7)
    found = load(tmp_path / "r")
    assert found.test is None
    assert warned(found, "test/ has no class folders")
    assert found.skipped == (("test/x.png", "is not in a class folder"),)


def test_class_called_train(tmp_path):
    """Only together with val or test it is a split."""
    found = load(write_folder(tmp_path / "r", ("car", "plane", "train")))
    assert found.labels == ("car", "plane", "train")


def test_empty_class(tmp_path):
    root = write_folder(tmp_path / "r", count=2)
    (root / "dog").mkdir()
    (root / ".ipynb_checkpoints").mkdir()  # no class
    with pytest.raises(ValueError, match=r"the class 'dog' without any in the folder.*classes="):
        load(root)
    assert load(root, classes=["ant", "bee", "cow"]).labels == ("ant", "bee", "cow")


def test_class_of_bad_files_only(tmp_path):
    root = write_folder(tmp_path / "r", count=2)
    (root / "dog").mkdir()
    (root / "dog" / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"class 'dog' with 1 file, none of which can be used: dog/a.jpg is empty"):
        load(root)


def test_single_class_and_none(tmp_path):
    write_folder(tmp_path / "outer" / "images", count=2)
    with pytest.raises(
        ValueError, match=r"only the folder 'images'. If the classes are inside that folder, pass it instead"
    ):
        load(tmp_path / "outer")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"at least two classes; got .* without folders"):
        load(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere")


def test_images_beside_the_classes(tmp_path):
    root = write_folder(tmp_path / "r", count=2)
    put(root / "stray.png", 7)
    found = load(root)
    assert found.skipped == (("stray.png", "is not in a class folder"),)
    assert warned(found, "1 file is not in a class folder and is skipped", "stray.png")


def test_folders_inside_a_class(tmp_path):
    root = write_folder(tmp_path / "r", count=2)
    put(root / "ant" / "red" / "x.png", 7)
    found = load(root, validation=0)
    assert "ant/red/x.png" in found.train.names
    assert warned(found, "'ant' has subfolders ('red')")


def test_links_that_loop(tmp_path):
    root = write_folder(tmp_path / "r", count=2)
    (root / "ant" / "again").symlink_to(root / "ant")
    (root / "bee" / "up").symlink_to(root)
    (root / "loop").symlink_to(root)
    found = load(root, validation=0)
    assert found.labels == ("ant", "bee", "cow")
    assert len(found.train) == 6
    assert warned(found, "again", "already read; skipped")
    assert warned(found, "up", "already read; skipped")
    assert warned(found, "'loop'", "parent folder are skipped")


def test_linked_class(tmp_path):
    root = write_folder(tmp_path / "r", count=2)
    write_folder(tmp_path / "s", ("dog", "eel"), count=3, kinds=("BMP",))
    (root / "dog").symlink_to(tmp_path / "s" / "dog")
    found = load(root)
    assert found.labels == ("ant", "bee", "cow", "dog")
    assert found.warnings == ()


def test_same_file_twice(tmp_path):
    root = write_folder(tmp_path / "r", count=5)
    (root / "ant" / "copy.jpg").write_bytes((root / "ant" / "000.jpg").read_bytes())
    for seed in range(5):  # never apart
        found = load(root, seed=seed, validation=0.4)
        assert {"ant/copy.jpg", "ant/000.jpg"} <= set(found.train.names)
        assert warned(found, "1 image is more than once in one class", "ant/000.jpg = ant/copy.jpg")
        assert not warned(found, "two splits")


def test_same_file_in_two_classes(tmp_path):
    root = write_folder(tmp_path / "r", count=5)
    (root / "bee" / "copy.jpg").write_bytes((root / "ant" / "000.jpg").read_bytes())
    assert warned(load(root), "in two classes", "ant/000.jpg = bee/copy.jpg")


def test_same_file_in_train_and_val(tmp_path):
    write_folder(tmp_path / "r" / "train", count=5)
    write_folder(tmp_path / "r" / "val", count=2)
    found = load(tmp_path / "r")
    assert warned(found, "6 images are in two splits", "too good", "train/ant/000.jpg = val/ant/000.jpg")


def test_validation_of_its_own(images, tmp_path):
    other = write_folder(tmp_path / "other", ("bee", "cow"), count=2, kinds=("TIFF",))
    found = load(images, validation=other)
    assert found.validation.labels.tolist() == [1, 1, 2, 2]
    assert warned(found, "In validation", "'ant'", "not evaluated")
    write_folder(tmp_path / "more", ("bee", "dog"), count=2)
    with pytest.raises(ValueError, match=r"trained on, 'ant', 'bee', 'cow'; got 'dog'"):
        load(images, validation=tmp_path / "more")
    other = write_folder(tmp_path / "whole", count=2, kinds=("TIFF",))
    found = load(images, validation=other)
    assert (len(found.train), len(found.validation)) == (30, 6)
    assert found.validation.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert load(images, validation=images).fingerprint != found.fingerprint
    assert warned(load(images, validation=images), "30 images are in two splits")


@pytest.mark.parametrize("kind", ["folder", "split", "manifest"])
def test_a_set_to_measure_with_may_lack_classes(kind, tmp_path):
    """By names, whatever numbers the classes would have alone; not by the order of the folders."""
    names = ("ant", "bee", "cow", "dog")

    def source(place, classes):
        if kind == "split":
            write_folder(place / "train", classes, count=2)
            write_folder(place / "test", classes[:1], count=1)
        else:
            write_folder(place, classes, count=2)
        if kind == "manifest":
            rows = [f"{name}/{file.name},{name}" for name in classes for file in (place / name).iterdir()]
            (place / "m.csv").write_text("\n".join(["path,label", *rows]))
            return place / "m.csv"
        return place

    found = load(source(tmp_path / "one", ("dog", "bee")), classes=names, validation=0.0, partial=True)
    assert found.labels == names
    for name, label in zip(found.train.names, found.train.labels, strict=True):
        assert names[label] in name
    assert len(found.train) == 4
    assert warned(found, "'ant', 'cow'", "they are not evaluated")
    assert load(source(tmp_path / "two", ("cow",)), classes=names, validation=0.0, partial=True).train.labels[0] == 2
    with pytest.raises(ValueError, match=r"trained on.*got 'elk'"):
        load(source(tmp_path / "three", ("bee", "elk")), classes=names, validation=0.0, partial=True)
    with pytest.raises(ValueError, match="must name the classes if partial=True"):
        load(tmp_path / "one", partial=True)


def test_classes_in_the_users_order(images):
    found = load(images, classes=["cow", "ant"])
    assert found.labels == ("cow", "ant")
    assert warned(found, "'bee'", "skipped")
    for name, label in zip(found.train.names, found.train.labels, strict=True):
        assert name.startswith(found.labels[label])
    with pytest.raises(ValueError, match="got 'dog', but its folders are: 'ant', 'bee', 'cow'"):
        load(images, classes=["ant", "dog"])
    with pytest.raises(ValueError, match="each once"):
        load(images, classes=["ant", "ant"])
    with pytest.raises(ValueError, match="at least two"):
        load(images, classes="ant")


def test_accents_in_two_spellings(tmp_path):
    """macOS writes e and an accent, Linux one letter: train/ and val/ still have the same class."""
    name = "caf\u00e9"
    write_folder(tmp_path / "r" / "train", (name, "tea"), count=2)
    write_folder(tmp_path / "r" / "val", (unicodedata.normalize("NFD", name), "tea"), count=2, kinds=("TIFF",))
    found = load(tmp_path / "r")
    assert found.labels == (name, "tea")
    assert len(found.validation) == 4
    write_folder(tmp_path / "s", (name, unicodedata.normalize("NFD", name)), count=2)
    with pytest.raises(ValueError, match="look the same"):
        load(tmp_path / "s")


def test_what_is_no_source(images, tmp_path):
    for wrong in (3, None, {"x": 1}, [1, 2, 3]):
        with pytest.raises(ValueError, match="Data must come from a folder per class"):
            load(wrong)
    with pytest.raises(ValueError, match="on_error"):
        load(images, on_error="ignore")


# ---------------------------------------------------------------------------------------------------------- manifests


def table(path, text):
    path.write_text(text, "utf-8")
    return path


def test_manifest(images):
    lines = [f"{c}/{p.name},{c}" for c in ("bee", "ant") for p in sorted((images / c).iterdir())]
    found = load(table(images.parent / "list.csv", "Path,label\n" + "\n".join(f"images/{x}" for x in lines)))
    assert found.labels == ("ant", "bee")
    assert (len(found.train), len(found.validation)) == (16, 4)
    assert all(
        name.split("/")[1] == found.labels[label]
        for name, label in zip(found.train.names, found.train.labels, strict=True)
    )


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_manifest_of_a_spreadsheet(images, delimiter):
    lines = [f"images/{c}/{p.name}{delimiter}{c}" for c in ("ant", "bee") for p in sorted((images / c).iterdir())]
    text = "\n".join([f"path{delimiter}label", *lines])
    found = load(table(images.parent / "sheet.csv", text))
    assert (found.labels, len(found.train)) == (("ant", "bee"), 16)


def test_manifest_with_splits_and_a_missing_file(images):
    text = "path,label,split\n"
    for i, split in enumerate(["train"] * 6 + ["val", "valid", "test"]):
        name = next((images / ("ant", "bee")[i % 2]).glob(f"{i:03}.*")).name
        text += f"images/{('ant', 'bee')[i % 2]}/{name},{('a', 'b')[i % 2]},{split}\n"
    found = load(table(images.parent / "splits.csv", text + "images/ant/none.jpg,a,train\n"))
    assert (len(found.train), len(found.validation), len(found.test)) == (6, 2, 1)
    assert found.skipped == (("images/ant/none.jpg", "does not exist"),)


def test_parquet(images):
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = [f"images/{c}/{p.name}" for c in ("ant", "bee") for p in sorted((images / c).iterdir())]
    pq.write_table(pa.table({"path": paths, "label": [10] * 10 + [9] * 10}), images.parent / "t.parquet")
    found = load(images.parent / "t.parquet")
    assert found.labels == ("9", "10")  # as numbers
    assert warned(found, "integers with gaps, 9 to 10")
    pq.write_table(pa.table({"path": paths, "label": [0.5] * 20}), images.parent / "f.parquet")
    with pytest.raises(ValueError, match=r"got 0.5 in row 1"):
        load(images.parent / "f.parquet")
    (images.parent / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="must be a Parquet table"):
        load(images.parent / "bad.parquet")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "columns path and label"),
        ("file,label\na.jpg,x\n", "with the columns file, label"),
        ("path,label\n", "has no rows"),
        ("path,label\na.jpg,x\nb.jpg\n", "in row 2"),
        ("path,label\n,x\n", "in row 1"),
        ("path,label\na.jpg,\n", "''.* in row 1"),
        ("path,label\na.jpg,x\nb.jpg,x\n", "at least two classes"),
        ("path,label\na.jpg,0.5\nb.jpg,1.5\n", "non-negative integers"),
        ("path,label\na.jpg,-1\nb.jpg,1\n", "non-negative integers"),
        ("path,label,split\na.jpg,x,train\nb.jpg,y,dev\n", "'dev' in row 2"),
        ("path,label,split\na.jpg,x,val\nb.jpg,y,val\n", "rows with the split train"),
    ],
)
def test_bad_manifests(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        load(table(tmp_path / "t.csv", text))


# ------------------------------------------------------------------------------------------------------------- arrays

X = np.random.default_rng(0).integers(0, 256, (20, 8, 9, 3)).astype("uint8")
Y = np.arange(20) % 4


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (X[..., 0], Y, r"\(20, 8, 9\).*x\[\.\.\., None\]"),
        (X[0], Y, "number, height, width, channels"),
        (X[:0], Y[:0], "empty array of shape"),
        (np.moveaxis(X, -1, 1), Y, r"channels first.*np.moveaxis\(x, 1, -1\)"),
        (X / 255.0, Y, r"seems to be 0\.\.1. Use x \* 255"),
        (X / 127.5 - 1, Y, "normalised already"),
        (X.astype("uint16") * 257, Y, r"16-bit images, use \(x // 256\)"),
        (np.where(X == 7, np.nan, X), Y, "NaN"),
        (X.astype("complex64"), Y, "complex64"),
        (X, Y[:-1], "20 images and 19 labels"),
        (X, Y.astype("float32"), r"float32. Use labels.astype\('int32'\)"),
        (X, Y + 0.5, "class numbers or names, integers from 0; got dtype float64.$"),
        (X, 0.9 * np.eye(4)[Y] + 0.025, r"not one-hot.*labels.argmax\(-1\)"),
        (X, Y - 1, "got -1, for 5 of 20.*without a class"),
        (X, Y * 0, "at least two classes"),
        (X, Y * 10**6, "np.unique"),
    ],
)
def test_bad_arrays(x, y, words):
    with pytest.raises(ValueError, match=words):
        load((x, y))


def test_labels_out_of_range():
    names = ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match=r"from 0 to 3, as there are 4 classes; got 4.*count from 1, subtract 1"):
        load((X, Y + 1), classes=names)
    with pytest.raises(ValueError, match=r"from 0 to 2, as there are 3 classes; got 3, for 5 of 20"):
        load((X, Y), classes=names[:3])
    assert load((X, Y), classes=names).labels == tuple(names)


def test_arrays():
    found = load((X, Y), validation=0.2)
    assert found.labels == ("0", "1", "2", "3")
    assert np.bincount(found.validation.labels).tolist() == [1, 1, 1, 1]
    image, label = found.train[3]
    place = int(found.train.names[3])
    np.testing.assert_array_equal(image, X[place])
    assert label == Y[place]
    assert load((X, Y[:, None])).fingerprint == load((X, Y)).fingerprint
    assert load((X.astype("float64"), Y)).fingerprint == load((X, Y)).fingerprint
    assert load((X ^ 1, Y)).fingerprint != load((X, Y)).fingerprint
    with_validation = load((X[:12], Y[:12]), validation=(X[12:], Y[12:]))
    assert (len(with_validation.train), len(with_validation.validation)) == (12, 8)


def test_arrays_with_names_as_labels():
    found = load((X, np.array(["owl", "fox", "elk", "ape"])[Y]))
    assert found.labels == ("ape", "elk", "fox", "owl")
    assert found.train[0][1] == 3


def test_arrays_that_are_odd():
    assert warned(load((X // 16, Y)), "largest pixel value is 15")
    assert warned(load((X * 0.9, Y)), "rounded")
    assert warned(load((X, np.where(Y == 3, 5, Y))), "'3', '4'", "cannot be learned")
    double = X.copy()
    double[5] = double[1]
    assert warned(load((double, Y)), "more than once in one class")


def test_tf_dataset():
    pairs = tf.data.Dataset.from_tensor_slices((X, Y))
    found = load(pairs)
    assert load(pairs.batch(6)).fingerprint == found.fingerprint
    for i in range(len(found.train)):
        image, label = found.train[i]
        place = int(found.train.names[i])
        np.testing.assert_array_equal(image, X[place])
        assert label == Y[place]
    with pytest.raises(ValueError, match=r"Remove \.repeat"):
        load(pairs.repeat())
    with pytest.raises(ValueError, match="yields nothing"):
        load(pairs.take(0))
    with pytest.raises(ValueError, match=r"Use x \* 255"):
        load(pairs.map(lambda x, y: (tf.cast(x, tf.float32) / 255, y)))


def test_tf_dataset_of_different_sizes():
    several = [X[i, : 4 + i % 3, : 5 + i % 2] for i in range(20)]
    signature = tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((), tf.int32)
    found = load(tf.data.Dataset.from_generator(lambda: zip(several, Y, strict=True), output_signature=signature))
    for i in range(len(found.train)):
        np.testing.assert_array_equal(found.train[i][0], several[int(found.train.names[i])])


def test_tf_dataset_of_encoded_images():
    files = [encoded(X[i], "PNG") for i in range(20)]
    files[4] = files[4][:50]
    found = load(tf.data.Dataset.from_tensor_slices((files, Y)))
    assert found.skipped[0][0] == "4"
    assert len(found.train) + len(found.validation) == 19
    np.testing.assert_array_equal(found.train[0][0], X[int(found.train.names[0])])


# --------------------------------------------------------------------------------------------------------------- TFDS


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data set that TFDS' own writer wrote: 12 PNG images to train with, 6 to test with."""
    import tensorflow_datasets as tfds

    class Insects(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=["moth", "wasp", "ant"]),
                "weight": tfds.features.Scalar(np.float32),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(0, 12), "test": self._generate_examples(12, 18)}

        def _generate_examples(self, start, stop):
            for i in range(start, stop):
                yield i, {"image": picture(10 + i, 12, seed=i), "label": i % 3, "weight": 1.0}

    builder = Insects(data_dir=tmp_path_factory.mktemp("tfds"))
    builder.download_and_prepare()
    return builder


def test_prepared_directory(prepared):
    for place in (prepared.data_dir, os.path.dirname(prepared.data_dir)):
        found = load(place, validation=0.25)
        assert found.labels == ("moth", "wasp", "ant")
        assert (len(found.train), len(found.validation), len(found.test)) == (9, 3, 6)
    originals = {10 + i: (picture(10 + i, 12, seed=i), i % 3) for i in range(18)}
    for part in (found.train, found.validation, found.test):
        for i in range(len(part)):
            image, label = part[i]
            expected, number = originals.pop(len(image))
            np.testing.assert_array_equal(image, expected)
            assert label == number
    assert not originals
    assert load(prepared.data_dir, validation=0.25).fingerprint == found.fingerprint
    assert load(prepared.data_dir, classes=["ant", "moth"]).labels == ("ant", "moth")


def test_tfds_by_name(prepared):
    found = load("tfds:insects", data_dir=os.path.dirname(os.path.dirname(prepared.data_dir)), validation=0)
    assert (len(found.train), len(found.test)) == (12, 6)
    with pytest.raises(ValueError, match=r"got 'tfds:no_such_data'"):
        load("tfds:no_such_data", data_dir=prepared.data_dir)


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("mnist", (28, 28, 1), 10), ("cifar10", (32, 32, 3), 10), ("tf_flowers", (None, None, 3), 5)],
)
def test_well_known_names(name, shape, classes):
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=40):
        found = load(f"tfds:{name}")
    assert len(found.labels) == classes
    assert len(found.train) + len(found.validation) in (40, 80)
    image, _ = found.train[0]
    assert all(want in (None, have) for want, have in zip(shape, image.shape, strict=True))
    batch, labels = next(iter(found.train.training(8, 28, crop="pad")))
    assert batch.shape == (8, 28, 28, shape[-1])
    assert labels.shape == (8,)


def test_tfds_without_classes():
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=2), pytest.raises(ValueError, match="one image and one class label"):
        load("tfds:imdb_reviews")


@pytest.mark.parametrize("written", ["~/photos", "$PICTURES/photos", "${PICTURES}/photos/"])
def test_home_and_variables_are_expanded(tmp_path, monkeypatch, written):
    write_folder(tmp_path / "photos", classes=("a", "b"), count=3)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PICTURES", str(tmp_path))
    assert data.load(written, cache=False).labels == ("a", "b")
