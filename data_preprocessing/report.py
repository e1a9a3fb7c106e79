"""What a person looks at after preparing: the table, the bar chart and a contact sheet for each class."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data_preprocessing.catalogue import CATALOGUE
from data_preprocessing.crop import Frame
from data_preprocessing.discover import Found, discover
from data_preprocessing.splits import SPLITS
from usvar import plots
from usvar.errors import InputError
from usvar.files import atomic_path
from usvar.plots import COLOURS, plt

# Orange between blue and green: bars that touch are told apart by their lightness too.
COLOUR_OF = dict(zip(SPLITS, (COLOURS[0], COLOURS[4], COLOURS[2]), strict=True))
OUTLINE = COLOURS[1]
TILE = 192
PAIRS_ACROSS = 4


def short_reason(reason: str) -> str:
    """A reason without what is of one picture alone: "exact copy of FILE" is "exact copy"."""
    return re.split(r":| of | \(", reason, maxsplit=1)[0]


def table(counts: Counter, classes: Sequence[str]) -> str:
    """Classes by splits as aligned text, and what is not used of each.

    Args:
        counts: number of pictures by (class, split), (class, "rejected") and (class, "left_out").
        classes: the rows.
    """
    width = max(len(name) for name in ("class", *classes))
    titles = (*SPLITS, "all", "rejected", "left out")
    rows = [f"{'class':<{width}}" + "".join(f"{title:>10}" for title in titles)]
    totals = Counter()
    for (_, column), count in counts.items():
        totals["all", column] += count
    for name, number in (*((name, counts) for name in classes), ("all", totals)):
        kept = [number[name, split] for split in SPLITS]
        numbers = (*kept, sum(kept), number[name, "rejected"], number[name, "left_out"])
        rows.append(f"{name:<{width}}" + "".join(f"{n:>10}" for n in numbers))
    return "\n".join(rows)


def list_data_sets(raw_root: Path, found: Found) -> str:
    """All data sets of the catalogue: what each is, what lies below `raw_root`, how to get the rest.

    Args:
        found: an empty one, to be filled.
    """
    here, left_out, problem = Counter(), Counter(), []
    try:
        discover(raw_root, (), found)
        here, left_out = Counter(record.dataset for record in found.records), found.left_out_of
        # Folders that were found, but not what was looked for in them.
        problem = ["", *warnings] if (warnings := [n for n in found.notes if "WARNING" in n]) else []
    except InputError as error:
        problem = ["", f"WARNING: {error}"]
    rows = [("data set", "organ", "shape", "access", "published", "found")]
    missing = []
    for entry in CATALOGUE:
        count = str(entry.true_count or entry.seed_count or "?")
        there = str(here[entry.name] or "-")
        if left_out[entry.name]:
            there = f"{here[entry.name]} ({left_out[entry.name]} left out)"
        rows.append((entry.name, entry.organ, entry.shape, entry.access, count, there))
        if there == "-":
            same = f" (the same pictures as {entry.same_as}: not needed beside it)" if entry.same_as else ""
            missing.append(f"{entry.name}: {entry.home or 'no home known'}; {entry.unpack}{same}")
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", "Left out by default, and the word that brings it back:"]
    lines += [
        f"  {entry.name}: --include {word}: {what}"
        for entry in CATALOGUE
        for word, what in sorted(entry.left_out.items())
    ]
    lines += [
        "",
        f"Not found: get it, then unpack it to {raw_root}/<data set>/",
        *(f"  {m}" for m in missing),
    ]
    return "\n".join(lines + problem)


def bar_chart(path: Path, counts: Counter, classes: Sequence[str]) -> None:
    """Draw the number of pictures by class and split."""
    figure, axes = plt.subplots(figsize=(8, 1.6 + 0.42 * len(classes)), layout="constrained")
    rows = np.arange(len(classes))
    for number, split in enumerate(SPLITS):
        heights = [counts[name, split] for name in classes]
        bars = axes.barh(rows + (number - 1) * 0.27, heights, 0.25, label=split, color=COLOUR_OF[split])
        axes.bar_label(bars, padding=2, fontsize=7)
    axes.set_yticks(rows, classes)
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.01)
    axes.set_xlabel("images")
    axes.set_title("Prepared images by class and split")
    axes.grid(axis="y", visible=False)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right")
    plots.save(figure, path)


def pair_tile(source_HW: np.ndarray, frame: Frame, result_HW: np.ndarray, caption: str) -> np.ndarray:
    """The original with its crop drawn on it, beside the result.

    Returns:
        (TILE + 14, 2 TILE, 3) uint8.
    """
    scale = TILE / max(source_HW.shape)
    size = (max(1, round(source_HW.shape[1] * scale)), max(1, round(source_HW.shape[0] * scale)))
    small = Image.fromarray(source_HW).resize(size, Image.Resampling.BOX).convert("RGB")
    draw = ImageDraw.Draw(small)
    left, top, right, bottom = frame.box
    corners = frame.polygon or ((left, top), (right - 1, top), (right - 1, bottom - 1), (left, bottom - 1))
    draw.polygon([((x + 0.5) * scale - 0.5, (y + 0.5) * scale - 0.5) for x, y in corners], outline=OUTLINE)
    tile = Image.new("RGB", (2 * TILE, TILE + 14), "#303030")
    tile.paste(small, ((TILE - size[0]) // 2, 14 + (TILE - size[1]) // 2))
    result = Image.fromarray(result_HW).resize((TILE - 4, TILE - 4), Image.Resampling.BICUBIC)
    tile.paste(result, (TILE + 2, 16))
    ImageDraw.Draw(tile).text((3, 1), caption.encode("ascii", "replace").decode()[:62], fill="white")
    return np.asarray(tile)


def contact_sheet(path: Path, tiles: Sequence[np.ndarray], title: str) -> None:
    """Write the tiles of a class as one picture."""
    height, width, _ = tiles[0].shape
    down = -(-len(tiles) // PAIRS_ACROSS)
    sheet = Image.new("RGB", (PAIRS_ACROSS * (width + 6), down * (height + 6) + 20), "#101010")
    ImageDraw.Draw(sheet).text((4, 3), title.encode("ascii", "replace").decode(), fill="white")
    for number, tile in enumerate(tiles):
        row, column = divmod(number, PAIRS_ACROSS)
        sheet.paste(Image.fromarray(tile), (column * (width + 6) + 3, row * (height + 6) + 20))
    with atomic_path(path) as temporary:
        sheet.save(temporary, compress_level=3)
