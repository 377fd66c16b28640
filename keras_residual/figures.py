"""Figures of a run, drawn without a display and with every name shown literally."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_residual.io import escaped, literal, written_whole
from keras_residual.metrics import confusions

MOST_CLASSES = 60  # a larger confusion matrix is unreadable
MOST_CONFUSIONS = 30  # maximum number of class pairs drawn instead
BASE_FONT = "DejaVu Sans"  # bundled with matplotlib

__all__ = ["as_written", "canvas", "draw_confusion", "draw_curves", "draw_mistakes", "save", "short"]


def draw_curves(
    history: Mapping[str, Sequence[float]],
    path: Path,
    title: str,
    *,
    best: int | None = None,
    head: int = 0,
    constant: float | None = None,
    baseline: tuple[str, float] | None = None,
) -> None:
    """Plot loss and accuracy for training and validation and, if the history has it, the learning rate, per epoch.

    Args:
        history: Values per epoch by name, as in `keras.callbacks.History.history`: `loss`, `accuracy`, `val_loss` ...
        path: PNG file to write.
        title: Title of the figure.
        best: Index of the epoch whose weights were kept, counted from 0.
        head: Number of epochs that trained only the head; drawn on a grey background.
        constant: Accuracy of the majority-class baseline; drawn as a dotted line.
        baseline: Name and accuracy of another baseline; drawn as a dashed line.
    """
    names = ("loss", "accuracy", *(["learning_rate"] if history.get("learning_rate") else []))
    figure, axes = canvas(1, len(names), (4.5 * len(names), 3.6))
    for axis, name in zip(axes[0], names, strict=True):
        for key, label, style in ((name, "training", "-"), (f"val_{name}", "validation", "--")):
            if history.get(key):
                marker = "o" if len(history[key]) < 10 else None  # a line with a single point is invisible
                epochs = range(1, len(history[key]) + 1)
                axis.plot(epochs, history[key], style, marker=marker, markersize=4, label=label)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if len(history[name]) == 1:  # otherwise the axis shows fractions of an epoch
            axis.set_xlim(0, 2)
        axis.set_xlabel("epoch")
        axis.set_ylabel(name.replace("_", " "))
        axis.grid(alpha=0.3)
        if best is not None and history.get(f"val_{name}"):
            value = history[f"val_{name}"][best]
            kept = f"kept weights (epoch {best + 1})"
            axis.plot([best + 1], [value], "*", color="tab:red", markersize=12, zorder=5, label=kept)
        if name == "accuracy" and constant is not None:
            axis.axhline(constant, color="grey", linestyle=":", label="majority class")
        if name == "accuracy" and baseline is not None:
            axis.axhline(baseline[1], color="tab:green", linestyle="-.", linewidth=1, label=baseline[0])
        if head:
            axis.axvspan(1, head + 0.5, color="grey", alpha=0.12, lw=0, label="head only")
        if axis.lines and name != "learning_rate":  # which has a single line
            axis.legend(fontsize=8)
    shown = [key for key in ("accuracy", "val_accuracy") if history.get(key)]
    low = min((min(history[key][len(history[key]) // 4 :]) for key in shown), default=0.0)
    bottom = max(0.0, min([low, *[y for y in (constant, baseline and baseline[1]) if y is not None]]) - 0.02)
    axes[0, 1].set_ylim(bottom, 1 + 0.1 * (1 - bottom))  # leave room above a line at 1, without a tick
    axes[0, 1].yaxis.set_major_formatter(
        lambda value, _: f"{value:.0%}" if (100 * value) % 1 < 1e-6 else f"{value:.1%}"
    )
    figure.suptitle(literal(title))
    save(figure, path)


def draw_confusion(truth: Any, guesses: Any, labels: Sequence[str], path: Path, title: str) -> None:
    """Draw a confusion matrix; for more than 60 classes, the most frequently confused pairs instead.

    Each cell has its share of the images of its true class, as color and in percent, and below it the number of images.
    The names of the classes are followed by their totals.

    Args:
        truth: Indices of the true classes `(N,)`.
        guesses: Indices of the predicted classes `(N,)`.
        labels: Class names.
        path: PNG file to write.
        title: Title of the figure.
    """
    truth, guesses = np.asarray(truth), np.asarray(guesses)
    if len(labels) > MOST_CLASSES:
        _draw_most_frequent(truth, guesses, labels, path, title)
        return
    matrix = np.zeros((len(labels), len(labels)), int)
    np.add.at(matrix, (truth, guesses), 1)
    side = min(14.0, max(5.2, 3.2 + 0.42 * len(labels)))  # inches
    figure, axes = canvas(1, 1, (side + 0.4, side))
    axis = axes[0, 0]
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    drawn = axis.imshow(np.ma.masked_where(matrix == 0, shares), cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(drawn, ax=axis, shrink=0.8, label="% of the images of the true class")
    if len(labels) <= 25:
        for row, column in np.argwhere(matrix):
            color = "white" if shares[row, column] > 55 else "black"
            place = {"ha": "center", "color": color, "fontsize": 9 if side < 7 else 7}
            axis.text(column, row, f"{shares[row, column]:.0f}%", va="bottom", **place)
            place["fontsize"] -= 2
            axis.text(column, row, f"{matrix[row, column]:,}", va="top", **place)
    if len(labels) <= 40:  # separate adjacent cells of the same colour
        axis.set_xticks(np.arange(len(labels) - 1) + 0.5, minor=True)
        axis.set_yticks(np.arange(len(labels) - 1) + 0.5, minor=True)
        axis.grid(which="minor", color="0.85", linewidth=0.8)
        axis.tick_params(which="minor", length=0)
    names = [short(label) for label in labels]
    long = 0.09 * max(map(len, names)) > 0.75 * side / len(labels)  # inches: text width > cell width
    below, left = ([f"{name} ({total:,})" for name, total in zip(names, matrix.sum(of), strict=True)] for of in (0, 1))
    if not long:
        below = [f"{name}\n({total:,})" for name, total in zip(names, matrix.sum(0), strict=True)]
    axis.set_xticks(range(len(labels)), below, rotation=90 if long else 0, fontsize=9 if side < 14 else 6)
    axis.set_yticks(range(len(labels)), left, fontsize=9 if side < 14 else 6)
    axis.set_xlabel("predicted class (images predicted as it)")
    axis.set_ylabel("true class (images)")
    figure.suptitle(literal(title))
    save(figure, path)


def _draw_most_frequent(truth: Any, guesses: Any, labels: Sequence[str], path: Path, title: str) -> None:
    """Draw the most frequently confused pairs of classes as a bar chart with counts."""
    pairs = confusions(truth, guesses)
    most = pairs[:MOST_CONFUSIONS]
    figure, axes = canvas(1, 1, (8.5, 1.6 + 0.26 * max(1, len(most))))
    axis, places = axes[0, 0], range(len(most))
    axis.barh(places, [count for count, _, _ in most], color="tab:red", alpha=0.6)
    for place, (count, _, _) in zip(places, most, strict=True):
        axis.text(count, place, f" {count:,}", va="center", fontsize=8)
    names = [f"{short(labels[true], 26)} → {short(labels[predicted], 26)}" for _, true, predicted in most]
    axis.set_yticks(places, names, fontsize=8)
    axis.set_ylim(max(1, len(most)) - 0.4, -0.6)  # the most frequent pair on top
    axis.set_ylabel("true class → predicted class")
    axis.set_xlim(0, 1.1 * max((count for count, _, _ in most), default=1))
    axis.xaxis.get_major_locator().set_params(integer=True)
    which = f"{len(most)} most frequent of {len(pairs):,} confused pairs" if pairs else "no mistakes"
    axis.set_xlabel(f"images ({which}, {len(labels):,} classes)")
    figure.suptitle(literal(title))
    save(figure, path)


def draw_mistakes(
    images: Sequence[np.ndarray[Any, Any]], captions: Sequence[str], path: Path, title: str, columns: int = 6
) -> None:
    """Draw a grid of images with a caption below each.

    Args:
        images: Arrays `(H, W, C)` of any size with values 0 to 255, of which at most three channels are drawn; may be
            empty.
        captions: One caption per image.
        path: PNG file to write.
        title: Title of the figure.
        columns: Images per row.
    """
    columns = max(1, min(columns, len(images)))  # no empty canvas beside a few images
    rows = max(1, -(-len(images) // columns))
    width = max(2.2 * columns, 0.1 * len(title))  # inches; the title must fit
    figure, axes = canvas(rows, columns, (width, (2.3 * rows if len(images) else 0) + 0.5))
    cells = np.ravel(axes)
    for cell in cells:
        cell.set_axis_off()
    for cell, image, caption in zip(cells, images, captions, strict=False):
        cell.imshow(_drawn(image), cmap="gray", vmin=0, vmax=255)
        cell.set_title(caption, fontsize=8, y=0, va="top", pad=-4)
    figure.suptitle(literal(title))
    save(figure, path)


def _drawn(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the channels that can be drawn as uint8: the first three, or the first of fewer."""
    image = np.clip(np.round(image), 0, 255).astype("uint8")
    return image[..., :3] if image.shape[-1] >= 3 else image[..., 0]


def short(label: str, most: int = 18) -> str:
    """Return a name on one line, cut to `most` characters."""
    label = literal(label)
    return label if len(label) <= most else f"{label[: most - 1]}…"


# ------------------------------------------------------------------------------------------------------------- canvas


def canvas(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Return a figure that needs no display, and its axes as a 2-D array."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Any, path: Path) -> None:
    """Save a figure as a PNG atomically, with all of its text drawn literally."""
    as_written(figure)
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png", bbox_inches="tight", pad_inches=0.1)


def as_written(figure: Any) -> None:
    """Make a figure draw its text literally: no mathtext, no TeX, no boxes for missing glyphs.

    Names come from users: matplotlib would parse `US$10\\frac$` as a formula and fail. Numeric tick labels keep
    matplotlib's formatting, which uses mathtext for powers of ten. A glyph missing from `DejaVu Sans` is drawn in an
    installed font that has it; if there is none, the character is escaped (`\\u4e2d`). Matplotlib shapes Arabic and
    Hebrew correctly from version 3.11 on; earlier versions draw separate letters from left to right.
    """
    from matplotlib.text import Text
    from matplotlib.ticker import FixedLocator

    numbers: set[int] = set()
    named = []
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        ticks = axis.get_minor_ticks()
        if isinstance(axis.get_major_locator(), FixedLocator):  # labels set by set_xticks or set_yticks
            named.append(axis)
        else:
            ticks = [*ticks, *axis.get_major_ticks()]
        numbers |= {id(text) for tick in ticks for text in (tick.label1, tick.label2)}
    texts = [text for text in figure.findobj(Text) if id(text) not in numbers]
    fonts, missing = _coverage(frozenset("".join(text.get_text() for text in texts)))
    for axis in named:  # drawing the figure would reset the text of single ticks
        labels = (text.get_text() for text in axis.get_ticklabels())
        axis.set_ticklabels([_cut(_drawable(label, missing), label) for label in labels])
    for text in texts:
        text.set_usetex(False)
        text.set_parse_math(False)
        text.set_text(_drawable(text.get_text(), missing))
        text.set_fontfamily([BASE_FONT, *fonts])


def _drawable(text: str, missing: frozenset[str]) -> str:
    lines = (literal(line) for line in text.split("\n"))  # keep the line breaks of captions
    return "\n".join("".join(escaped(char) if char in missing else char for char in line) for line in lines)


def _cut(drawn: str, label: str) -> str:
    """Shorten a tick label that escapes made longer, so that the axis labels leave room for the plot."""
    return drawn if len(drawn) == len(label) else short(drawn, 24)


@functools.lru_cache
def _coverage(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the fallback fonts needed to draw some characters, and the characters that no font has."""
    from matplotlib import font_manager

    special = frozenset(char for char in characters if ord(char) > 0x7F and literal(char) == char)
    missing = _lacking(font_manager.findfont(BASE_FONT), special) if special else special
    fonts: list[str] = []
    for font in _upright_fonts() if missing else ():
        if not missing:
            break
        left = _lacking(font.fname, missing)
        # if a family has several files, matplotlib opens the one that findfont returns
        if left < missing and _lacking(font_manager.findfont(font.name), missing) == left:
            fonts.append(font.name)
            missing = left
    return tuple(fonts), missing


def _upright_fonts() -> list[Any]:
    """Return the installed fonts except placeholder fonts, upright and regular ones first."""
    from matplotlib import font_manager

    listed = {font.fname for font in font_manager.fontManager.ttflist}
    for path in set(font_manager.findSystemFonts()) - listed:  # matplotlib caches its list at the first import
        with contextlib.suppress(Exception):  # not a font that matplotlib can read; error types vary
            font_manager.fontManager.addfont(path)
    known = [font for font in font_manager.fontManager.ttflist if not _PLACEHOLDER.search(font.name)]
    return sorted(known, key=lambda font: (font.style != "normal", str(font.weight) not in ("400", "normal")))


def _lacking(file: str, characters: frozenset[str]) -> frozenset[str]:
    """Return the characters that a font file has no glyph for."""
    from matplotlib import font_manager

    try:
        font = font_manager.get_font(file)
    except (OSError, RuntimeError):  # removed since matplotlib listed it, or damaged
        return characters
    return frozenset(char for char in characters if not (font.get_char_index(ord(char)) or _UNSEEN.match(char)))


_PLACEHOLDER = re.compile(r"last ?resort|blank|notdef", re.IGNORECASE)
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060\ufe00-\ufe0f\ufeff]")  # invisible characters need no glyph
