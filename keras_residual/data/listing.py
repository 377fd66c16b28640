"""Where images come from: a folder per class, or a manifest that lists files. What is odd about them is said."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import io
import os
import re
import shlex
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_residual.io import literal

# What the folders (and a manifest's splits) of a data set that is split already may be called.
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm", ".jfif")
_IGNORED = re.compile(r"\.(?!_).*|__MACOSX|@eaDir|Thumbs\.db|desktop\.ini", re.IGNORECASE)


@dataclasses.dataclass
class Listing:
    """Files with the class and split that their source gives them. Nothing has been opened yet.

    Attributes:
        root: What `names` are relative to.
        classes: Names of the classes, in the order of their numbers.
        names: Relative path of each file.
        labels: Number of its class.
        splits: `"train"`, `"validation"`, `"test"`, or `None` where the source does not say.
        skipped: Files that are left out already, with the reason.
        warnings: What the user should know.
        partial: Whether classes may be without images.
    """

    root: str
    classes: tuple[str, ...]
    names: list[str] = dataclasses.field(default_factory=list)
    labels: list[int] = dataclasses.field(default_factory=list)
    splits: list[str | None] = dataclasses.field(default_factory=list)
    skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    partial: bool = False

    def path(self, name: str) -> str:
        return os.path.join(self.root, name)


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first of some names, and how many more there are."""
    words = ", ".join(f"'{literal(name)}'" for name in names[:most])
    return words + (f" and {len(names) - most:,} more" if len(names) > most else "")


# --------------------------------------------------------------------------------------------------- folder per class


def folder(root: str, classes: Sequence[str] | None = None, partial: bool = False) -> Listing:
    """Lists a folder per class, or `train/`, `val/` and `test/` with a folder per class in each.

    Raises:
        ValueError: If there are fewer than two classes, or the splits do not fit together; if `partial`, for a folder
            that is none of `classes`.
    """
    warnings: list[str] = []
    folders, files = _outer(root, warnings)
    lower = {name.lower(): name for name in folders}
    if "train" in lower and (set(lower) & (SPLITS.keys() - {"train", "training"}) or len(folders) == 1):
        return _nested(root, folders, files, classes, partial, warnings)
    listing = Listing(root, _classes(folders, classes, partial, literal(root)), warnings=warnings, partial=partial)
    _left_out(listing, folders, classes is not None)
    listing.skipped += [(name, "lies beside the class folders") for name in files]
    _add_classes(listing, "", folders, None)
    if files:
        listing.warnings.append(
            f"{len(files):,} file{'s lie' if len(files) > 1 else ' lies'} beside the class folders and "
            f"{'are' if len(files) > 1 else 'is'} left out: {listed(files)}."
        )
    return listing


def _nested(
    root: str, folders: list[str], files: list[str], classes: Sequence[str] | None, partial: bool, warnings: list[str]
) -> Listing:
    """`train/`, `val/` and `test/`, each with a folder per class."""
    splits = {name: SPLITS[name.lower()] for name in folders if name.lower() in SPLITS}
    if len(set(splits.values())) < len(splits):
        raise ValueError(f"Each split has one folder. Received: {listed(list(splits))}. Merge or rename them.")
    inside = {name: _outer(os.path.join(root, name), warnings) for name in splits}
    train = next(name for name, split in splits.items() if split == "train")
    names = _classes(inside[train][0], classes, partial, literal(os.path.join(root, train)))
    listing = Listing(root, names, warnings=warnings, partial=partial)
    _left_out(listing, inside[train][0], classes is not None)
    listing.skipped += [(name, "lies beside the folders of the splits") for name in files]
    other = [name for name in folders if name not in splits]
    if other:
        listing.warnings.append(f"Folders beside train/ that are no split are left out: {listed(other)}.")
    for name, split in splits.items():
        found, beside = inside[name]
        listing.skipped += [(os.path.join(name, file), "lies beside the class folders") for file in beside]
        if beside:
            listing.warnings.append(
                f"{len(beside):,} files in {literal(name)}/ are not in a class folder and are skipped."
            )
        have = {class_name(folder): folder for folder in found}
        unknown = [have[label] for label in have if label not in listing.classes]
        if partial:
            known([class_name(label) for label in unknown], listing.classes, os.path.join(root, name))
        if name != train and unknown and classes is None:
            raise ValueError(
                f"All splits have the classes of {literal(train)}/, or fewer. Received: {literal(name)}/ with "
                f"{listed(sorted(unknown))}, which {literal(train)}/ lacks: nothing could be learned of them. Move "
                "them, or name the classes that count with classes=[...]."
            )
        missing = [label for label in listing.classes if label not in have]
        if name != train and missing and found:
            listing.warnings.append(f"{literal(name)}/ has no folder for the classes {listed(missing)}.")
        if name != train and not found:
            listing.warnings.append(f"{literal(name)}/ has no class folders: left out.")
        _add_classes(listing, name, found, split)
    return listing


def _classes(folders: list[str], wanted: Sequence[str] | None, partial: bool, where: str) -> tuple[str, ...]:
    names = [class_name(name) for name in folders]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"Each class has one folder. Received: two folders whose names look the same, {listed(twice)}, spelled "
            "with different Unicode characters. Merge them."
        )
    if wanted is not None:
        if len(set(wanted)) < len(wanted):
            raise ValueError(f"classes names each class once. Received: {list(wanted)}.")
        lacking = [name for name in wanted if class_name(name) not in names and not partial]
        if lacking:
            raise ValueError(
                f"Each of classes has a folder. Received: {listed(lacking)}, of which {where!r} has none; it has "
                f"{listed(sorted(names), 10) or 'no folders at all'}."
            )
        names = [class_name(name) for name in wanted]
    else:
        names = sorted(names)
    if len(names) < 2:
        raise ValueError(
            f"A folder of images has a folder for each class, and at least two of them. Received: {where!r} with "
            + (
                f"the one folder {names[0]!r}. If its folders are the classes, give that one."
                if names
                else "none. Put the images of each class into a folder of its own."
            )
        )
    return tuple(names)


def _left_out(listing: Listing, folders: list[str], asked: bool) -> None:
    other = [name for name in folders if class_name(name) not in listing.classes]
    if listing.partial:
        known([class_name(name) for name in other], listing.classes, listing.root)
    elif other and asked:
        listing.warnings.append(f"Folders that classes does not name are left out: {listed(sorted(other))}.")


def known(other: Sequence[str], classes: Sequence[str], where: str) -> None:
    """Raises where a set to measure with has classes that were not trained on."""
    if other:
        raise ValueError(
            f"A classifier is measured on its own classes, {listed(classes)}. Received: {listed(sorted(other))} in "
            f"'{literal(where)}'. Rename them, or take them out."
        )


def _add_classes(listing: Listing, prefix: str, folders: list[str], split: str | None) -> None:
    number = {name: i for i, name in enumerate(listing.classes)}
    for name in folders:
        if class_name(name) not in number:
            continue
        start = os.path.join(prefix, name)
        deeper: list[str] = []
        for file in _files(listing, start, deeper):
            base = os.path.basename(file)
            if base.startswith("._"):
                listing.skipped.append((file, "is a file of macOS' own (its name starts with ._), not an image"))
                continue
            listing.names.append(file)
            listing.labels.append(number[class_name(name)])
            listing.splits.append(split)
        if deeper:
            listing.warnings.append(
                f"The class '{literal(name)}' has folders inside ({listed(deeper)}): their images count as "
                f"'{literal(name)}' too."
            )


def _files(listing: Listing, start: str, deeper: list[str]) -> Iterator[str]:
    """All files below a folder, relative to the root, in order. A folder that links lead to again is not entered."""
    seen = {_identity(listing.root), _identity(listing.path(start))}
    stack = [start]
    while stack:
        place = stack.pop()
        folders, files = _children(listing.path(place))
        yield from (os.path.join(place, file) for file in files)
        for name in reversed(folders):
            inner = os.path.join(place, name)
            identity = _identity(listing.path(inner))
            if identity in seen:
                listing.warnings.append(f"'{literal(inner)}' is a link to a folder that was read already: not entered.")
                continue
            seen.add(identity)
            deeper.append(os.path.relpath(inner, start))
            stack.append(inner)


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _outer(place: str, warnings: list[str]) -> tuple[list[str], list[str]]:
    """`_children` without links that lead to the folder itself, or to one around it."""
    folders, files = _children(place)
    around = os.path.join(os.path.realpath(place), "")
    loops = [
        name for name in folders if around.startswith(os.path.join(os.path.realpath(os.path.join(place, name)), ""))
    ]
    if loops:
        warnings.append(f"Links that lead back to a folder around them are not entered: {listed(loops)}.")
    return [name for name in folders if name not in loops], files


def _children(place: str) -> tuple[list[str], list[str]]:
    """Names of the folders and of everything else in a folder, sorted; hidden ones are left out."""
    folders, files = [], []
    with os.scandir(place) as entries:
        for entry in entries:
            if _IGNORED.fullmatch(entry.name):
                continue
            try:
                (folders if entry.is_dir() else files).append(entry.name)
            except OSError:  # a link that leads to itself
                files.append(entry.name)
    return sorted(folders), sorted(files)


def class_name(name: str) -> str:
    """Return the name of a class in one spelling, on one line.

    macOS and Linux write the same accents with different characters. Line feeds, control characters and bytes that are
    not UTF-8 are escaped, so that tables, `labels.txt` and exports can hold the name.
    """
    return unicodedata.normalize("NFC", literal(name))


# ----------------------------------------------------------------------------------------------------------- manifest


def manifest(file: str, classes: Sequence[str] | None = None, partial: bool = False) -> Listing:
    """Read a CSV or Parquet table with the columns `path`, `label` and, if it is split already, `split`.

    Paths are relative to the table's own folder. Labels are names; whole numbers are sorted as numbers.

    Raises:
        ValueError: If a column is missing, a label is no name, or a split is unknown; if `partial`, for a label that is
            none of `classes`.
    """
    columns = (_parquet if file.lower().endswith(".parquet") else _csv)(file)
    for name in ("path", "label"):
        if name not in columns:
            raise ValueError(
                f"A table of images must have the columns path and label, and may have split. Received: "
                f"'{literal(file)}' with {', '.join(map(literal, columns)) or 'no columns'}. Rename them."
            )
    return table(columns, literal(file), os.path.dirname(os.path.abspath(file)), classes, partial)


def table(
    columns: Mapping[str, Sequence[Any]],
    file: str,
    root: str,
    classes: Sequence[str] | None = None,
    partial: bool = False,
) -> Listing:
    """List the images of a table with the columns path, label and perhaps split; see `manifest`.

    Args:
        columns: The columns by name.
        file: Name of the table in errors.
        root: What paths are relative to.
        classes: Names of the classes that count.
        partial: Whether classes may be without images, and others are an error.
    """
    paths, given = columns["path"], columns["label"]
    if len(paths) != len(given):
        raise ValueError(f"Each image must have one label. Received: {len(paths):,} paths and {len(given):,} labels.")
    if not paths:
        raise ValueError(f"A manifest lists images. Received: {file!r}, which has no rows.")
    paths = [os.fspath(path) if isinstance(path, os.PathLike) else path for path in paths]
    bad = [i for i, path in enumerate(paths) if not isinstance(path, str) or not path]
    if bad:
        raise ValueError(f"Each row of a manifest has a path. Row {bad[0] + 1} of {file!r} has {paths[bad[0]]!r}.")
    labels = _names(given, file)
    occurring = (
        sorted(set(labels), key=int) if all(re.fullmatch(r"\d+", label) for label in labels) else sorted(set(labels))
    )
    names = tuple(occurring if classes is None else map(class_name, classes))
    listing = Listing(root, names, partial=partial)
    if partial:
        known([name for name in occurring if name not in names], names, file)
    elif classes is not None:
        lacking = [name for name in names if name not in occurring]
        if lacking:
            raise ValueError(f"Each of classes has rows in the manifest. Received: {listed(lacking)}, which have none.")
        other = [name for name in occurring if name not in listing.classes]
        if other:
            listing.warnings.append(f"Labels that classes does not name are left out: {listed(other)}.")
    elif all(name.isdigit() for name in occurring) and occurring != [str(i) for i in range(len(occurring))]:
        listing.warnings.append(
            f"The labels are numbers with gaps, {occurring[0]} to {occurring[-1]}; the {len(occurring)} that occur are "
            "counted from 0 in this order, and keep their numbers as names."
        )
    if len(listing.classes) < 2:
        raise ValueError(f"A manifest has at least two classes. Received: {file!r} with {listed(occurring)} only.")
    number = {name: i for i, name in enumerate(listing.classes)}
    splits = columns.get("split", [None] * len(paths))
    rows = zip(range(1, len(paths) + 1), paths, labels, splits, strict=True)
    for row, path, label, split in sorted(
        rows, key=lambda row: row[1:3]
    ):  # a table in another order is the same dataset
        if label not in number:
            continue
        key = str(split or "").strip().lower()
        if "split" in columns and key not in SPLITS:
            raise ValueError(
                f"split is train, val (valid, validation) or test in each row. Received: {split!r} in row {row} of "
                f"{file!r}."
            )
        listing.names.append(path)
        listing.labels.append(number[label])
        listing.splits.append(SPLITS[key] if "split" in columns else None)
    if "split" in columns and "train" not in listing.splits and not partial:
        raise ValueError(f"A manifest with splits has rows to train on. Received: {file!r} without any.")
    return listing


def _names(given: Sequence[Any], file: str) -> list[str]:
    names = []
    for row, value in enumerate(given, start=1):
        value = value.item() if hasattr(value, "item") else value  # NumPy's numbers
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise ValueError(f"A label is a class' name or whole number. Received: {value!r} in row {row} of {file!r}.")
        names.append(class_name(str(value).strip()))
    if all(re.fullmatch(r"-?\d+(\.\d*)?", name) for name in names) and any("." in n or "-" in n for n in names):
        raise ValueError(
            f"Numbers that are labels are whole and not negative. Received: {names[0]!r} in {file!r}. If they "
            "are measurements, this is no classification; if they are classes, write 0, 1, 2 ..."
        )
    return names


def _csv(file: str) -> dict[str, list[Any]]:
    text = _decoded(file)
    head = text.partition("\n")[0]  # spreadsheets write semicolons in half of the world
    delimiter = next((d for d in ("\t,;" if file.lower().endswith(_TABBED) else ",;\t") if d in head), ",")
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise ValueError(f"'{literal(file)}' is not a CSV table: {error}.") from None
    if not rows:
        return {}
    head = [name.strip().lower() for name in rows[0]]
    for number, row in enumerate(rows[1:], start=1):
        if row and len(row) != len(head):
            raise ValueError(
                f"Each row of a CSV must have {len(head)} columns, as its first row. Row {number} of "
                f"'{literal(file)}': {row}."
            )
    body = [row for row in rows[1:] if row]
    columns = {name: [row[i] for row in body] for i, name in enumerate(head)}
    _check_bytes(file, columns)
    return columns


def _decoded(file: str) -> str:
    """Return a table's text: UTF-8, or UTF-16 as Excel's "Unicode text". Other bytes are kept as surrogates."""
    content = Path(file).read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    if b"\0" in content[:1000]:
        raise ValueError(
            f"A table must be text in UTF-8, or in UTF-16 with a byte order mark. Received: '{literal(file)}', which "
            "has zero bytes: UTF-16 without the mark, or no text. Save it as CSV in UTF-8."
        )
    return content.decode("utf-8-sig", "surrogateescape")


def _check_bytes(file: str, columns: Mapping[str, Sequence[str]]) -> None:
    """Refuse a table in another encoding than UTF-8, unless its bytes are those of file names.

    Raises:
        ValueError: With the first such text as Windows' Western European encoding (cp1252) would read it.
    """
    odd = [(name, text) for name, texts in columns.items() for text in texts if _SURROGATE.search(text)]
    root = os.path.dirname(os.path.abspath(file))
    if not odd or all(name == "path" and os.path.lexists(os.path.join(root, text)) for name, text in odd):
        return
    name, text = odd[0]
    guess = os.fsencode(text).decode("cp1252", "replace")
    raise ValueError(
        f"A table must be text in UTF-8, or in UTF-16 with a byte order mark. Received: '{literal(file)}', with the "
        f"{name} '{literal(text)}' in another encoding; in cp1252 (Excel's \"CSV\" in Western countries) it is "
        f"{guess!r}. "
        f'Save it as "CSV UTF-8", or convert it: iconv -f cp1252 -t utf-8 {shlex.quote(literal(file))} > new.csv'
    )


_SURROGATE = re.compile("[\ud800-\udfff]")


def _parquet(file: str) -> dict[str, list[Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"'{literal(file)}' is not a Parquet table: {error}.") from None
    return {name.strip().lower(): table[name].to_pylist() for name in table.column_names}


_TABBED = (".tsv", ".tab", ".txt")
_TABLES = (".csv", ".parquet", *_TABBED)
_INSTEAD = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "Save the sheet as CSV in UTF-8."),
    **dict.fromkeys((".json", ".jsonl"), "Convert it: pandas.read_json(file).to_csv(file_csv, index=False)."),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"), "Unpack it and give the folder."),
    **dict.fromkeys((".npz", ".npy", ".pkl", ".h5"), "Load it, and pass (images, labels)."),
    **dict.fromkeys((".tfrecord", ".tfrecords"), "Pass a tf.data.Dataset that parses it."),
    **dict.fromkeys(SUFFIXES, "That is one image: give the folder that has a folder for each class."),
}


def is_manifest(source: str) -> bool:
    return source.lower().endswith(_TABLES)


def check_file(path: str) -> None:
    """Refuse a file that is no table of images.

    Raises:
        ValueError: With the nearest thing that works.
    """
    if not is_manifest(path):
        suffix = os.path.splitext(path)[1].lower()
        raise ValueError(
            f"A file that lists images must be a .csv, .tsv, .txt or .parquet table with the columns path and label. "
            f"Received: '{literal(path)}'. {_INSTEAD.get(suffix, '')}".rstrip()
        )
