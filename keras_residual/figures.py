"""The pictures that runs leave behind. Drawn without a screen, written whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_residual.weights.files import written_whole

__all__ = ["draw_confusion", "draw_curves"]


def draw_curves(history: Mapping[str, Sequence[float]], path: Path, title: str) -> None:
    """Draws loss and accuracy over epochs, training and validation side by side.

    Args:
        history: Values by name and epoch, as `keras.callbacks.History.history`: `loss`, `accuracy`, `val_loss` ...
        path: The PNG to write.
        title: Above the picture.
    """
    figure, axes = _canvas(1, 2, (9, 3.6))
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        for key, label, style in ((name, "training", "-"), (f"val_{name}", "held out", "--")):
            if key in history:
                axis.plot(range(1, len(history[key]) + 1), history[key], style, label=label)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("epoch")
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
        axis.legend()
    low = min(min(history[key][len(history[key]) // 4 :]) for key in ("accuracy", "val_accuracy") if key in history)
    axes[1].set_ylim(max(0.0, low - 0.02), 1.002)
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
    figure, axis = _canvas(1, 1, (5.6, 5.2))
    diagonal = np.eye(len(labels), dtype=bool)
    # Each colour on its own scale: beside the many right answers, a few mistakes would hardly show.
    for cmap, part in (("Blues", diagonal), ("Reds", ~diagonal)):
        shown = np.ma.masked_where(~part | (matrix == 0), matrix)
        axis.imshow(shown, cmap=cmap, vmin=0, vmax=1.6 * max(1, matrix[part].max()))  # pale enough for black numbers
    for row, column in np.argwhere(matrix):
        axis.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=9)
    axis.set_xticks(range(len(labels)), labels)
    axis.set_yticks(range(len(labels)), labels)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    figure.suptitle(title)
    _save(figure, path)


def _canvas(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def _save(figure: Any, path: Path) -> None:
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
