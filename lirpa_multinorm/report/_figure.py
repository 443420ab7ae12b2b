"""The look that all figures share."""

from __future__ import annotations

import os
from pathlib import Path

from ..utils.files import temporary_beside

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#444444")
INK = "#333333"
DPI = 150
#: A legend has this many columns at most, and its entries a marker as wide as so many letters.
_LEGEND_COLUMNS, _LEGEND_MARK = 6, 6
_LETTERS_PER_INCH = 11


def new_figure(width: float, height: float, panels: int = 1, columns: int = 1):
    """Return a figure of a size in inches, with its axes row by row.

    The axes of a row share their scale.
    """
    # Imported here, for it is slow; a Figure without pyplot leaves the user's pyplot state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(panels, columns, sharex="col", sharey="row", squeeze=False).flatten()
    for axes in all_axes:
        axes.spines[:].set_visible(False)
        axes.tick_params(which="both", length=0)
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, list(all_axes)


def set_title(axes, title: str) -> None:
    """Put the figure's heading above its only axes."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=12)


def legend_below(figure) -> None:
    """Put a legend below the axes, in as many columns as its figure is wide enough for.

    Nothing can be hidden behind it there.
    """
    labels = figure.axes[0].get_legend_handles_labels()[1]
    widest = max(map(len, labels), default=0) + _LEGEND_MARK
    letters = figure.get_figwidth() * _LETTERS_PER_INCH
    columns = max(1, min(len(labels), _LEGEND_COLUMNS, int(letters / widest)))
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)


def save(figure, path: str | os.PathLike) -> Path:
    """Write a PNG so that readers see the old file or the new one, never an incomplete one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        figure.savefig(temporary, format="png", dpi=DPI, facecolor="white")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
