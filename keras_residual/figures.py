"""The pictures that runs leave behind. Drawn without a screen, written whole."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_residual.io import written_whole

# Fonts for class names that the first one cannot write, on the usual systems.
_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "Arial Unicode MS",
    "Yu Gothic",
)

__all__ = ["draw_confusion", "draw_curves", "draw_mistakes"]


def draw_curves(
    history: Mapping[str, Sequence[float]],
    path: Path,
    title: str,
    *,
    best: int | None = None,
    head: int = 0,
    constant: float | None = None,
) -> None:
    """Draws loss and accuracy over epochs, training and validation side by side.

    Args:
        history: Values by name and epoch, as `keras.callbacks.History.history`: `loss`, `accuracy`, `val_loss` ...
        path: The PNG to write.
        title: Above the picture.
        best: The epoch, from 0 on, whose weights were kept.
        head: Epochs that trained the head alone: a grey ground.
        constant: Accuracy of the constant answer, a dotted line.
    """
    figure, axes = _canvas(1, 2, (9, 3.6))
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        for key, label, style in ((name, "training", "-"), (f"val_{name}", "held out", "--")):
            if history.get(key):
                marker = "o" if len(history[key]) < 10 else None  # a line of one point would not be seen
                epochs = range(1, len(history[key]) + 1)
                axis.plot(epochs, history[key], style, marker=marker, markersize=4, label=label)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if len(history[name]) == 1:  # else the axis has parts of an epoch
            axis.set_xlim(0, 2)
        axis.set_xlabel("epoch")
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
        if best is not None and history.get(f"val_{name}"):
            value = history[f"val_{name}"][best]
            axis.plot(
                [best + 1], [value], "*", color="tab:red", markersize=12, zorder=5, label=f"kept: epoch {best + 1}"
            )
        if name == "accuracy" and constant is not None:
            axis.axhline(constant, color="grey", linestyle=":", label="always the same class")
        if head:
            axis.axvspan(1, head + 0.5, color="grey", alpha=0.12, lw=0, label="head alone")
        if axis.lines:
            axis.legend(fontsize=8)
    shown = [key for key in ("accuracy", "val_accuracy") if history.get(key)]
    low = min((min(history[key][len(history[key]) // 4 :]) for key in shown), default=0.0)
    bottom = max(0.0, min(low, 1.0 if constant is None else constant) - 0.02)
    axes[1].set_ylim(bottom, 1 + 0.1 * (1 - bottom))  # room for a line at 1, and no tick above it
    axes[1].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if (100 * value) % 1 < 1e-6 else f"{value:.1%}")
    figure.suptitle(title)
    _save(figure, path)


def draw_confusion(matrix: np.ndarray[Any, Any], labels: Sequence[str], path: Path, title: str) -> None:
    """Draws a confusion matrix with its numbers.

    Args:
        matrix: Counts `(classes, classes)`, true classes in rows.
        labels: Names of the classes.
        path: The PNG to write.
        title: Above the picture.
    """
    side = min(14.0, max(5.2, 2.2 + 0.3 * len(labels)))
    figure, axis = _canvas(1, 1, (side + 0.4, side))
    diagonal = np.eye(len(labels), dtype=bool)
    # Each colour on its own scale: beside the many right answers, a few mistakes would hardly show.
    for cmap, part in (("Blues", diagonal), ("Reds", ~diagonal)):
        shown = np.ma.masked_where(~part | (matrix == 0), matrix)
        axis.imshow(shown, cmap=cmap, vmin=0, vmax=1.6 * max(1, matrix[part].max()))  # pale enough for black numbers
    if len(labels) <= 40:
        for row, column in np.argwhere(matrix):
            axis.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=9 if side < 7 else 7)
    if len(labels) <= 40:  # neighbours of one colour must not run together
        axis.set_xticks(np.arange(len(labels) - 1) + 0.5, minor=True)
        axis.set_yticks(np.arange(len(labels) - 1) + 0.5, minor=True)
        axis.grid(which="minor", color="0.85", linewidth=0.8)
        axis.tick_params(which="minor", length=0)
    long = 0.09 * min(18, max(map(len, labels))) > 0.75 * side / len(labels)  # inches of a name, and of its place
    every = -(-len(labels) // 60)  # more names than that cannot be read
    places, names = range(0, len(labels), every), [_short(label) for label in labels[::every]]
    axis.set_xticks(places, names, rotation=90 if long else 0, fontsize=9 if side < 14 else 6)
    axis.set_yticks(places, names, fontsize=9 if side < 14 else 6)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    figure.suptitle(title)
    _save(figure, path)


def draw_mistakes(
    images: Sequence[np.ndarray[Any, Any]], captions: Sequence[str], path: Path, title: str, columns: int = 6
) -> None:
    """Draws a sheet of images with a caption below each.

    Args:
        images: Arrays `(H, W, C)` of 0..255, of any sizes; may be none.
        captions: Below each image.
        path: The PNG to write.
        title: Above the picture.
        columns: Images in a row.
    """
    rows = max(1, -(-len(images) // columns))
    figure, axes = _canvas(rows, columns, (1.9 * columns, (2.3 * rows if len(images) else 0) + 0.5))
    cells = np.ravel(axes)
    for cell in cells:
        cell.set_axis_off()
    for cell, image, caption in zip(cells, images, captions, strict=False):
        cell.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
        cell.set_title(caption, fontsize=8, y=0, va="top", pad=-4)
    figure.suptitle(title)
    _save(figure, path)


def _short(label: str, most: int = 18) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def _canvas(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import font_manager, rc_context
    from matplotlib.text import Text

    installed = set(font_manager.get_font_names())
    fonts = ["DejaVu Sans", *(name for name in _FONTS if name in installed)]
    with written_whole(path) as temporary, warnings.catch_warnings(), rc_context({"font.family": fonts}):
        # a name that no font here can write stands in the tables all the same
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        for text in figure.findobj(Text):
            text.set_fontfamily(fonts)
        figure.savefig(temporary, dpi=120, format="png", bbox_inches="tight", pad_inches=0.1)
