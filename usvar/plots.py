"""Figures that people read: one style, colours that the colour-blind can tell apart, written atomically."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window: scripts run on machines without a screen

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, LogLocator, MaxNLocator, NullFormatter

from usvar.files import atomic_path

# Okabe and Ito, "Color universal design" (2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
# Of horizontal lines to compare curves with, which are full or dashed.
LINE_DASHES = (":", "-.", (0, (1, 4)))

plt.rcParams.update(
    {
        "axes.prop_cycle": plt.cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "font.size": 9,
        "figure.dpi": 120,
        "image.cmap": "gray",
        # A pale ground keeps names readable where a curve runs behind them.
        "legend.framealpha": 0.85,
        "legend.edgecolor": "none",
        # A $ in the name of a class begins no formula.
        "text.parse_math": False,
    }
)


# Numbers at ticks as they are.
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def save(figure: Figure, path: Path) -> None:
    """Write a figure and free it."""
    for axis in itertools.chain(*((axes.xaxis, axes.yaxis) for axes in figure.axes)):
        if isinstance(axis.get_major_formatter(), LogFormatter):  # it writes formulas
            axis.set_major_formatter(PLAIN)
            axis.set_minor_formatter(NullFormatter())
    with atomic_path(path) as temporary:
        figure.savefig(temporary, bbox_inches="tight")
    plt.close(figure)


def _plain_log_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis as plain numbers: a few within less than a decade, else three in each."""
    low, high = axis.get_view_interval()
    within = high < 10 * low
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]) if within else LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(PLAIN)
    axis.set_minor_formatter(NullFormatter())


def curves(
    path: Path,
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    lines: Mapping[str, Mapping[str, float]] | None = None,
    log_panels: Sequence[str] = (),
    title: str = "",
    x_label: str | Sequence[str] = "optimiser step",
    columns: int = 3,
    right_axes: Mapping[str, tuple[str, float]] | None = None,
    marks: Mapping[str, float] | None = None,
    one_legend: bool = False,
) -> None:
    """Curves over the optimiser step or another number, panels side by side.

    Args:
        path: the PNG to write.
        panels: panel title (with its unit) -> curve name -> (steps, values). Curves named "train ..." and
            "val ..." with the same ending share a colour; "val" is dashed and has dots.
        lines: panel title -> name -> height of a horizontal line, each of other dashes.
        log_panels: panels with a logarithmic axis.
        title: title of the whole figure.
        x_label: what the numbers along the x axis are; one for all panels or one for each.
        columns: most panels side by side.
        right_axes: panel title -> name and factor of a second scale at the right.
        marks: name -> x of a grey vertical line in every panel.
        one_legend: panels have curves and lines of the same names: one legend below all of them.
    """
    columns = min(columns, len(panels))
    x_labels = [x_label] * len(panels) if isinstance(x_label, str) else x_label
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.4 * columns, 3.3 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (name, series), label_x in zip(axes.flat, panels.items(), x_labels, strict=False):
        colour_of: dict[str, str] = {}
        for label, (steps, values) in series.items():
            kind, _, ending = label.partition(" ")
            key = ending if kind in ("train", "val") else label
            colour = colour_of.setdefault(key, COLOURS[len(colour_of) % len(COLOURS)])
            # Where the colours come round again, the lines are dash-dotted.
            style: dict[str, Any] = {"linestyle": "-." if len(colour_of) > len(COLOURS) else "-"}
            if kind == "val":
                style = {"linestyle": "--", "marker": "o", "markersize": 3}
            axis.plot(steps, values, color=colour, label=label, linewidth=1.4, **style)
        for offset, (label, height) in enumerate((lines or {}).get(name, {}).items()):
            colour = COLOURS[(len(colour_of) + offset) % len(COLOURS)]
            dashes = LINE_DASHES[offset % len(LINE_DASHES)]
            axis.axhline(height, color=colour, linestyle=dashes, linewidth=1.6, label=label)
        for label, x in (marks or {}).items():
            axis.axvline(x, color="0.35", linestyle=(0, (6, 3)), linewidth=1.0, label=label)
        if name in log_panels:
            axis.set_yscale("log")
            _plain_log_ticks(axis.yaxis)
        axis.set_title(name)
        axis.set_xlabel(label_x)
        is_whole = all(float(step).is_integer() for steps, _ in series.values() for step in steps)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=is_whole))
        if not one_legend:
            axis.legend(fontsize=7)
        if name in (right_axes or {}):
            right_label, factor = right_axes[name]
            right = axis.secondary_yaxis(
                "right", functions=(lambda y, f=factor: y * f, lambda y, f=factor: y / f)
            )
            right.set_ylabel(right_label)
    if one_legend:
        drawn = axes.flat[0].get_legend_handles_labels()
        figure.legend(*drawn, loc="outside lower center", ncols=min(5, len(drawn[0])), fontsize=8)
    if title:
        figure.suptitle(title)
    save(figure, path)


def image_grid(
    path: Path,
    rows: Sequence[Sequence[np.ndarray]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    title: str,
    heat_columns: Sequence[int] = (),
    inch: float = 1.25,
    cell_names: Sequence[Sequence[str]] | None = None,
) -> None:
    """Grey pictures in a grid, one name a row and a column.

    Args:
        path: the PNG to write.
        rows: pictures (H, W) uint8 of one shape, row by row; rows may be shorter than the longest,
            but not all empty.
        row_names: left of each row.
        column_names: above each column.
        title: above the grid.
        heat_columns: columns that hold an error in grey levels, drawn in colour from 0 to 64.
        inch: height of a picture.
        cell_names: one line above each picture, in place of the column names.
    """
    columns = len(column_names)
    height, width = next(row[0].shape[:2] for row in rows if row)
    # In inches, so that names and title stand as close to a small grid as to a large one.
    gap = 0.2 if cell_names else 0.05
    head = 0.1 + 0.14 * max((name.count("\n") + 1 for name in column_names), default=1)
    full_width = inch * width / height * columns + 1.1
    full_height = (inch + gap) * len(rows) + head
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(full_width, full_height),
        squeeze=False,
        gridspec_kw={
            "wspace": 0.04,
            "hspace": gap / inch,
            "left": 1.1 / full_width,
            "right": 1,
            "bottom": 0,
            "top": 1 - head / full_height,
        },
    )
    for row, (pictures, row_axes) in enumerate(zip(rows, axes, strict=True)):
        for column, axis in enumerate(row_axes):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(False)
            for spine in axis.spines.values():
                spine.set_visible(False)
            if column < len(pictures):
                heat: dict[str, Any] = (
                    {"cmap": "magma", "vmax": 64} if column in heat_columns else {"vmax": 255}
                )
                axis.imshow(pictures[column], vmin=0, interpolation="nearest", **heat)
            if cell_names:
                axis.set_title(cell_names[row][column] if column < len(pictures) else "", fontsize=7, pad=2)
            elif row == 0:
                axis.set_title(column_names[column], fontsize=8)
        row_axes[0].set_ylabel(row_names[row], rotation=0, ha="right", va="center", fontsize=8)
    # Over the middle of the pictures, not of the figure with its row names.
    figure.suptitle(title, fontsize=10, x=(1.1 / full_width + 1) / 2, y=1.0, va="bottom")
    save(figure, path)


def heat_map(
    path: Path,
    values: np.ndarray,
    row_names: Sequence[str],
    column_names: Sequence[str],
    title: str,
    x_label: str,
    y_label: str,
    unit: str,
    limits: tuple[float, float] | None = None,
    log: bool = False,
) -> None:
    """A table of numbers as colours, with a colour bar.

    Args:
        path: the PNG to write.
        values: (rows, columns).
        row_names: one per row, from the top.
        column_names: one a column; about eight are written.
        title: figure title.
        x_label: what the columns are.
        y_label: what the rows are.
        unit: of the values, beside the colour bar.
        limits: lowest and highest value of the colours; None: of the data.
        log: whether equal ratios, not differences, are equal steps of colour; for numbers above 0.
    """
    figure, axis = plt.subplots(figsize=(6.4, 0.32 * len(row_names) + 1.4), layout="constrained")
    low, high = limits or (None, None)
    norm = (LogNorm if log else Normalize)(low, high)
    drawn = axis.imshow(values, aspect="auto", cmap="viridis", norm=norm, interpolation="nearest")
    every = max(1, len(column_names) // 8)
    axis.set_xticks(range(0, len(column_names), every), column_names[::every])
    axis.set_yticks(range(len(row_names)), row_names)
    axis.grid(False)
    axis.set(title=title, xlabel=x_label, ylabel=y_label)
    bar = figure.colorbar(drawn, ax=axis, label=unit)
    if log:
        _plain_log_ticks(bar.ax.yaxis)
    save(figure, path)


def codebook(path: Path, hits_V: np.ndarray, codes_V2: np.ndarray, kept_share: float, title: str) -> None:
    """How often codes are used: a histogram, and the codes' vectors in the plane, coloured by use.

    Args:
        path: the PNG to write.
        hits_V: how often each code was looked up.
        codes_V2: the code vectors, projected.
        kept_share: share of the vectors' variance that the projection keeps.
        title: above both.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    used_V = hits_V > 0
    # Bins that double, since use spreads over orders of magnitude; the unused stand apart at the left.
    edges = 2.0 ** np.arange(0, np.ceil(np.log2(max(2, hits_V.max() + 1))) + 1)
    counts, _ = np.histogram(hits_V[used_V], edges)
    names = [
        "0",
        *(f"{int(a)}" if b - a == 1 else f"{int(a)}-{int(b) - 1}" for a, b in itertools.pairwise(edges)),
    ]
    bars = left.bar(
        range(len(names)), [np.sum(~used_V), *counts], color=[COLOURS[1], *[COLOURS[0]] * len(counts)]
    )
    left.bar_label(bars, fontsize=7)
    left.set_xticks(range(len(names)), names, rotation=45, ha="right")
    left.grid(axis="x", visible=False)
    left.set(
        title=f"{used_V.mean():.1%} of {len(hits_V)} codes in use", xlabel="times looked up", ylabel="codes"
    )
    right.scatter(*codes_V2[~used_V].T, s=14, marker="x", linewidth=0.8, color=COLOURS[1], label="unused")
    drawn = right.scatter(
        *codes_V2[used_V].T, c=hits_V[used_V], s=8, cmap="viridis", norm="log" if used_V.any() else None
    )
    bar = figure.colorbar(drawn, ax=right, label="times looked up")
    if used_V.any():
        _plain_log_ticks(bar.ax.yaxis)
    if not used_V.all():
        right.legend(fontsize=7)
    right.set(
        title=f"code vectors: two principal components, {kept_share:.0%} of the variance",
        xlabel="first component",
        ylabel="second component",
    )
    figure.suptitle(title)
    save(figure, path)
