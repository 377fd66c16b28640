"""List the images of a folder per class or of a manifest, with warnings about anything unusual."""

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

# Accepted names of the folders (and of a manifest's splits) in a dataset that is already split.
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
    """Files with the class and split that the source assigns to them; no file has been opened yet.

    Attributes:
        root: Directory that `names` are relative to.
        classes: Class names, in the order of their indices.
        names: Relative path of each file.
        labels: Class index of each file.
        splits: `"train"`, `"validation"`, `"test"`, or `None` if the source does not define a split.
        skipped: Files skipped so far, with the reason.
        warnings: Warnings for the user.
        partial: Whether classes may have no images.
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
    """Return the first names as text, with the number of the remaining ones."""
    text = ", ".join(f"'{literal(name)}'" for name in names[:most])
    return text + (f" and {len(names) - most:,} more" if len(names) > most else "")


# --------------------------------------------------------------------------------------------------- folder per class


def folder(root: str, classes: Sequence[str] | None = None, partial: bool = False) -> Listing:
    """List a folder per class, or `train/`, `val/` and `test/` with a folder per class in each.

    Raises:
        ValueError: If there are fewer than two classes, or the splits are inconsistent; if `partial`, for a folder
            that is not in `classes`.
    """
    warnings: list[str] = []
    folders, files = _outer(root, warnings)
    lower = {name.lower(): name for name in folders}
    if "train" in lower and (set(lower) & (SPLITS.keys() - {"train", "training"}) or len(folders) == 1):
        return _nested(root, folders, files, classes, partial, warnings)
    listing = Listing(root, _classes(folders, classes, partial, literal(root)), warnings=warnings, partial=partial)
    _warn_of_unused_folders(listing, folders, classes is not None)
    listing.skipped += [(name, "is not in a class folder") for name in files]
    _add_classes(listing, "", folders, None)
    if files:
        listing.warnings.append(
            f"{len(files):,} file{'s are' if len(files) > 1 else ' is'} not in a class folder and "
            f"{'are' if len(files) > 1 else 'is'} skipped: {listed(files)}."
        )
    return listing


def _nested(
    root: str, folders: list[str], files: list[str], classes: Sequence[str] | None, partial: bool, warnings: list[str]
) -> Listing:
    """List `train/`, `val/` and `test/`, each with a folder per class."""
    splits = {name: SPLITS[name.lower()] for name in folders if name.lower() in SPLITS}
    if len(set(splits.values())) < len(splits):
        raise ValueError(f"Each split must have only one folder; got {listed(list(splits))}. Merge or rename them.")
    inside = {name: _outer(os.path.join(root, name), warnings) for name in splits}
    train = next(name for name, split in splits.items() if split == "train")
    names = _classes(inside[train][0], classes, partial, literal(os.path.join(root, train)))
    listing = Listing(root, names, warnings=warnings, partial=partial)
    _warn_of_unused_folders(listing, inside[train][0], classes is not None)
    listing.skipped += [(name, "is not in the folder of a split") for name in files]
    other = [name for name in folders if name not in splits]
    if other:
        listing.warnings.append(f"Folders that are not named like a split are skipped: {listed(other)}.")
    for name, split in splits.items():
        found, loose = inside[name]
        listing.skipped += [(os.path.join(name, file), "is not in a class folder") for file in loose]
        if loose:
            listing.warnings.append(
                f"{len(loose):,} file{'s' if len(loose) > 1 else ''} in {literal(name)}/ "
                f"{'are' if len(loose) > 1 else 'is'} not in a class folder and {'are' if len(loose) > 1 else 'is'} "
                "skipped."
            )
        have = {class_name(folder): folder for folder in found}
        unknown = [have[label] for label in have if label not in listing.classes]
        if partial:
            known([class_name(label) for label in unknown], listing.classes, os.path.join(root, name))
        if name != train and unknown and classes is None:
            raise ValueError(
                f"Every class must have a folder in {literal(train)}/; got {listed(sorted(unknown))} only in "
                f"{literal(name)}/. Move some of their images to {literal(train)}/, or select the classes to use with "
                "classes=[...]."
            )
        missing = [label for label in listing.classes if label not in have]
        if name != train and missing and found:
            listing.warnings.append(f"{literal(name)}/ has no folder for the classes {listed(missing)}.")
        if name != train and not found:
            listing.warnings.append(f"{literal(name)}/ has no class folders and is skipped.")
        _add_classes(listing, name, found, split)
    return listing


def _classes(folders: list[str], wanted: Sequence[str] | None, partial: bool, where: str) -> tuple[str, ...]:
    names = [class_name(name) for name in folders]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"Each class must have only one folder; got two folders whose names look the same, {listed(twice)}, but "
            "use different Unicode characters. Merge them."
        )
    if wanted is not None:
        if len(set(wanted)) < len(wanted):
            raise ValueError(f"classes must name each class only once; got {list(wanted)}.")
        lacking = [name for name in wanted if class_name(name) not in names and not partial]
        if lacking:
            raise ValueError(
                f"Every name in classes must have a folder in {where!r}; got {listed(lacking)}, but its folders are: "
                f"{listed(sorted(names), 10) or 'none'}. Correct classes, or rename the folders."
            )
        names = [class_name(name) for name in wanted]
    else:
        names = sorted(names)
    if len(names) < 2:
        raise ValueError(
            "A folder of images must contain a folder for each class, and at least two classes; got "
            + (
                f"{where!r} with only the folder {names[0]!r}. If the classes are inside that folder, pass it instead."
                if names
                else f"{where!r} without folders. Put the images of each class into a separate folder."
            )
        )
    return tuple(names)


def _warn_of_unused_folders(listing: Listing, folders: list[str], selected: bool) -> None:
    other = [name for name in folders if class_name(name) not in listing.classes]
    if listing.partial:
        known([class_name(name) for name in other], listing.classes, listing.root)
    elif other and selected:
        listing.warnings.append(f"Folders that are not in classes are skipped: {listed(sorted(other))}.")


def known(other: Sequence[str], classes: Sequence[str], where: str) -> None:
    """Raise an error if an evaluation dataset has classes that the classifier was not trained on."""
    if other:
        raise ValueError(
            f"A classifier must be evaluated on the classes it was trained on, {listed(classes)}; got "
            f"{listed(sorted(other))} in '{literal(where)}'. Rename or remove them."
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
                listing.skipped.append((file, "is a macOS metadata file (its name starts with ._), not an image"))
                continue
            listing.names.append(file)
            listing.labels.append(number[class_name(name)])
            listing.splits.append(split)
        if deeper:
            listing.warnings.append(
                f"The class '{literal(name)}' has subfolders ({listed(deeper)}); their images also belong to "
                f"'{literal(name)}'."
            )


def _files(listing: Listing, start: str, deeper: list[str]) -> Iterator[str]:
    """Yield all files below a folder, in order and relative to the root, entering each linked folder only once."""
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
                listing.warnings.append(f"'{literal(inner)}' is a link to a folder that was already read; skipped.")
                continue
            seen.add(identity)
            deeper.append(os.path.relpath(inner, start))
            stack.append(inner)


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _outer(place: str, warnings: list[str]) -> tuple[list[str], list[str]]:
    """Return `_children` without links to the folder itself or to one of its parents."""
    folders, files = _children(place)
    target = os.path.join(os.path.realpath(place), "")
    loops = [
        name for name in folders if target.startswith(os.path.join(os.path.realpath(os.path.join(place, name)), ""))
    ]
    if loops:
        warnings.append(f"Links to a parent folder are skipped: {listed(loops)}.")
    return [name for name in folders if name not in loops], files


def _children(place: str) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of all other entries in a folder, sorted, without hidden ones."""
    folders, files = [], []
    with os.scandir(place) as entries:
        for entry in entries:
            if _IGNORED.fullmatch(entry.name):
                continue
            try:
                (folders if entry.is_dir() else files).append(entry.name)
            except OSError:  # a link to itself
                files.append(entry.name)
    return sorted(folders), sorted(files)


def class_name(name: str) -> str:
    """Return a class name in normalized form, on one line.

    macOS and Linux encode the same accents with different characters. Line feeds, control characters and bytes that are
    not UTF-8 are escaped, so that the name can be written to tables, `labels.txt` and exports.
    """
    return unicodedata.normalize("NFC", literal(name))


# ----------------------------------------------------------------------------------------------------------- manifest


def manifest(file: str, classes: Sequence[str] | None = None, partial: bool = False) -> Listing:
    """Read a CSV or Parquet table with the columns `path`, `label` and, if it is already split, `split`.

    Paths are relative to the folder of the table. Labels are names; integers are sorted numerically.

    Raises:
        ValueError: If a column is missing, a label is not a name or integer, or a split is unknown; if `partial`, for a
            label that is not in `classes`.
    """
    columns = (_parquet if file.lower().endswith(".parquet") else _csv)(file)
    for name in ("path", "label"):
        if name not in columns:
            raise ValueError(
                f"A table of images must have the columns path and label, and may have split; got '{literal(file)}' "
                f"with the columns {', '.join(map(literal, columns)) or '(none)'}. Rename or add the missing ones."
            )
    return table(columns, literal(file), os.path.dirname(os.path.abspath(file)), classes, partial)


def table(
    columns: Mapping[str, Sequence[Any]],
    file: str,
    root: str,
    classes: Sequence[str] | None = None,
    partial: bool = False,
) -> Listing:
    """List the images of a table with the columns path, label and optionally split; see `manifest`.

    Args:
        columns: The columns by name.
        file: Name of the table in error messages.
        root: Directory that paths are relative to.
        classes: Names of the classes to use.
        partial: Whether classes may have no images and any other class is an error.
    """
    paths, given = columns["path"], columns["label"]
    if len(paths) != len(given):
        raise ValueError(f"Each image must have one label; got {len(paths):,} paths and {len(given):,} labels.")
    if not paths:
        raise ValueError(f"A manifest must list at least one image; got {file!r}, which has no rows.")
    paths = [os.fspath(path) if isinstance(path, os.PathLike) else path for path in paths]
    bad = [i for i, path in enumerate(paths) if not isinstance(path, str) or not path]
    if bad:
        raise ValueError(
            f"Each row of a manifest must have a path; got {paths[bad[0]]!r} in row {bad[0] + 1} of {file!r}."
        )
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
            raise ValueError(
                f"Every name in classes must have rows in the manifest; got {listed(lacking)} without any in {file!r}. "
                "Correct classes, or add rows."
            )
        other = [name for name in occurring if name not in listing.classes]
        if other:
            listing.warnings.append(f"Labels that are not in classes are skipped: {listed(other)}.")
    elif all(name.isdigit() for name in occurring) and occurring != [str(i) for i in range(len(occurring))]:
        listing.warnings.append(
            f"The labels are integers with gaps, {occurring[0]} to {occurring[-1]}; the {len(occurring)} that occur "
            "are renumbered from 0 in this order, and the original numbers become the class names."
        )
    if len(listing.classes) < 2:
        raise ValueError(f"A manifest must have at least two classes; got {file!r} with only {listed(occurring)}.")
    number = {name: i for i, name in enumerate(listing.classes)}
    splits = columns.get("split", [None] * len(paths))
    rows = zip(range(1, len(paths) + 1), paths, labels, splits, strict=True)
    for row, path, label, split in sorted(
        rows, key=lambda row: row[1:3]
    ):  # the order of the rows must not change the dataset
        if label not in number:
            continue
        key = str(split or "").strip().lower()
        if "split" in columns and key not in SPLITS:
            raise ValueError(
                f"split must be train, val (valid, validation) or test in each row; got {split!r} in row {row} of "
                f"{file!r}."
            )
        listing.names.append(path)
        listing.labels.append(number[label])
        listing.splits.append(SPLITS[key] if "split" in columns else None)
    if "split" in columns and "train" not in listing.splits and not partial:
        raise ValueError(f"A manifest with splits must have rows with the split train; got {file!r} without any.")
    return listing


def _names(given: Sequence[Any], file: str) -> list[str]:
    names = []
    for row, value in enumerate(given, start=1):
        value = value.item() if hasattr(value, "item") else value  # NumPy scalars
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise ValueError(f"A label must be a class name or an integer; got {value!r} in row {row} of {file!r}.")
        names.append(class_name(str(value).strip()))
    if all(re.fullmatch(r"-?\d+(\.\d*)?", name) for name in names) and any("." in n or "-" in n for n in names):
        raise ValueError(
            f"Numeric labels must be non-negative integers; got {names[0]!r} in {file!r}. Number the classes "
            "0, 1, 2 ...; measurements cannot be used as labels, because this is not a regression."
        )
    return names


def _csv(file: str) -> dict[str, list[Any]]:
    text = _decoded(file)
    head = text.partition("\n")[0]  # in many locales, spreadsheets use semicolons
    delimiter = next((d for d in ("\t,;" if file.lower().endswith(_TABBED) else ",;\t") if d in head), ",")
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise ValueError(
            f"The manifest must be a CSV table; got '{literal(file)}', which cannot be parsed: {error}."
        ) from None
    if not rows:
        return {}
    head = [name.strip().lower() for name in rows[0]]
    for number, row in enumerate(rows[1:], start=1):
        if row and len(row) != len(head):
            raise ValueError(
                f"Each row of a CSV must have as many columns as its first row, {len(head)}; got {row} in row {number} "
                f"of '{literal(file)}'."
            )
    body = [row for row in rows[1:] if row]
    columns = {name: [row[i] for row in body] for i, name in enumerate(head)}
    _check_bytes(file, columns)
    return columns


def _decoded(file: str) -> str:
    """Return the text of a table in UTF-8, or in UTF-16 (Excel's "Unicode text"), keeping other bytes as surrogates."""
    content = Path(file).read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    if b"\0" in content[:1000]:
        raise ValueError(
            f"A table must be text in UTF-8, or in UTF-16 with a byte order mark; got '{literal(file)}', which has "
            "zero bytes, so it is UTF-16 without the mark or a binary file. Save it as CSV in UTF-8."
        )
    return content.decode("utf-8-sig", "surrogateescape")


def _check_bytes(file: str, columns: Mapping[str, Sequence[str]]) -> None:
    """Reject a table that is not UTF-8, unless all its other bytes are names of existing files.

    Raises:
        ValueError: With the first such text decoded as cp1252, the Western European encoding of Windows.
    """
    odd = [(name, text) for name, texts in columns.items() for text in texts if _SURROGATE.search(text)]
    root = os.path.dirname(os.path.abspath(file))
    if not odd or all(name == "path" and os.path.lexists(os.path.join(root, text)) for name, text in odd):
        return
    name, text = odd[0]
    guess = os.fsencode(text).decode("cp1252", "replace")
    raise ValueError(
        f"A table must be text in UTF-8, or in UTF-16 with a byte order mark; got '{literal(file)}', with the "
        f"{name} '{literal(text)}' in another encoding; in cp1252 (Excel's \"CSV\" in Western countries) it reads "
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
        raise ValueError(
            f"The manifest must be a Parquet table; got '{literal(file)}', which cannot be read: {error}."
        ) from None
    return {name.strip().lower(): table[name].to_pylist() for name in table.column_names}


_TABBED = (".tsv", ".tab", ".txt")
_TABLES = (".csv", ".parquet", *_TABBED)
_INSTEAD = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "Save the sheet as CSV in UTF-8."),
    **dict.fromkeys((".json", ".jsonl"), "Convert it: pandas.read_json(file).to_csv(file_csv, index=False)."),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"), "Unpack it and pass the folder."),
    **dict.fromkeys((".npz", ".npy", ".pkl", ".h5"), "Load it, and pass (images, labels)."),
    **dict.fromkeys((".tfrecord", ".tfrecords"), "Pass a tf.data.Dataset that parses it."),
    **dict.fromkeys(SUFFIXES, "This is a single image; pass the folder that contains a folder for each class."),
}


def is_manifest(source: str) -> bool:
    return source.lower().endswith(_TABLES)


def check_file(path: str) -> None:
    """Reject a file that is not a table of images.

    Raises:
        ValueError: With the closest supported alternative.
    """
    if not is_manifest(path):
        suffix = os.path.splitext(path)[1].lower()
        raise ValueError(
            f"A file that lists images must be a .csv, .tsv, .txt or .parquet table with the columns path and label; "
            f"got '{literal(path)}'. {_INSTEAD.get(suffix, '')}".rstrip()
        )
