"""The figures of evaluate_var.py, drawn from the content of metrics.json and the curves behind it."""

import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from usvar import plots
from usvar.evaluation import SETS, ImageSet
from usvar.report import BY_FREQUENCY, USE

MARKERS = "osD^v"
# Nearest pairs shown of each search, and images of a row.
PAIRS, ROW = 20, 10
# One colour, marker and hatching per set in every figure.
ORDER = ("real_test", *SETS)
COLOUR_OF = dict(zip(ORDER, ("#000000", *plots.COLOURS), strict=False))
MARKER_OF = dict(zip(ORDER, "x" + MARKERS, strict=False))
HATCH_OF = dict(zip(ORDER, ("", "", "///", "...", "xxx"), strict=True))
SHORT = {
    "real_test": "real test",
    "generated": "generated",
    "real_train": "real train",
    "reconstructed_test": "rebuilt",
    "position_prior": "by frequency",
}


def draw_all(
    folder: Path,
    result: dict[str, Any],
    sets: dict[str, ImageSet],
    copies: dict[str, Any],
    curves: dict[str, dict[str, np.ndarray]],
) -> None:
    """All figures.

    Args:
        folder: where the PNGs go.
        result: what goes into metrics.json.
        sets: images by name, those of SETS and real_test.
        copies: search -> its label, distances to the nearest training image, its row, and the thresholds.
        curves: set -> differences from the test images in spectrum, grey levels, speckle and depth.
    """
    classes, stamps = result["classes"], result["judges"]["stamps"]
    draw_first_images(folder / "samples.png", sets, classes)
    if result["best_to_worst"]:
        draw_best_and_worst(folder / "best_and_worst.png", result["best_to_worst"], sets, classes, stamps)
    draw_kernel_distances(folder / "kernel_distance.png", result["distances"], stamps)
    draw_neighbours(folder / "neighbours.png", result["distances"], stamps)
    draw_use(folder / "use.png", result["classification_accuracy_score"])
    draw_confusions(folder / "confusion.png", result["class_fidelity"], classes)
    draw_copies(folder / "copies.png", copies, stamps)
    for space, nearest in copies.items():
        path = folder / f"nearest_{space.replace(', ', '_')}.png"
        by = result["copies"][space]["by"]
        draw_nearest_pairs(path, nearest, sets["generated"], sets["real_train"], by)
    draw_variety(folder / "variety.png", result["variety"], classes, stamps)
    draw_physics(folder / "physics.png", curves)
    if result["bits_per_token"]:
        draw_bits(folder / "bits_per_token.png", result["bits_per_token"], result["patch_nums"])
    if result["sweep"]:
        draw_sweep(folder / "sweep.png", result["sweep"])


def draw_kernel_distances(path: Path, distances: dict[str, Any], stamps: dict[str, str]) -> None:
    """Kernel distance of each set, pooled and for each class, one panel per extractor."""
    groups = list(next(iter(distances.values())))
    measured = {
        g for entries in distances.values() for g in groups for key in entries[g] if key.endswith("-KD")
    }
    row_names = [group if group in measured else f"{group} (too few images)" for group in groups]
    figure, axes = plt.subplots(
        1,
        len(stamps),
        figsize=(3.2 + 3.0 * len(stamps), 1.0 + 0.6 * len(groups)),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for axis, (extractor, stamp) in zip(axes[0], stamps.items(), strict=True):
        for offset, name in enumerate(distances):
            shown = [(row, distances[name][group]) for row, group in enumerate(groups)]
            shown = [(row, entry) for row, entry in shown if f"{extractor}-KD" in entry]
            axis.errorbar(
                [entry[f"{extractor}-KD"] for _, entry in shown],
                [row + 0.17 * (offset - 1.5) for row, _ in shown],
                xerr=[entry[f"{extractor}-KD_spread"] or 0 for _, entry in shown],
                fmt=MARKER_OF[name],
                color=COLOUR_OF[name],
                markersize=5,
                capsize=2,
                label=SETS[name],
            )
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(groups)), row_names)
        axis.set_ylim(len(groups) - 0.5, -0.5)
        axis.set_xscale("symlog", linthresh=0.1)
        axis.set(title=stamp, xlabel=f"{extractor}-KD, lower is nearer")
    figure.suptitle(
        "Kernel distance to real test images; bars: spread, a standard error over random halves", fontsize=10
    )
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, loc="outside lower center", ncols=2)
    plots.save(figure, path)


def draw_neighbours(path: Path, distances: dict[str, Any], stamps: dict[str, str]) -> None:
    """Precision, recall, density and coverage over all classes, one panel per extractor."""
    names = ("precision", "recall", "density", "coverage")
    figure, axes = plt.subplots(
        1,
        len(stamps),
        figsize=(4.6 * len(stamps), 3.2),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for axis, (extractor, stamp) in zip(axes[0], stamps.items(), strict=True):
        for offset, name in enumerate(distances):
            entry = distances[name]["pooled"]
            heights = [entry.get(f"{extractor}-{key}", np.nan) for key in names]
            place = np.arange(4) + 0.2 * (offset - 1.5)
            label = f"{SETS[name]}, n = {entry.get(f'{extractor}-matched_images', 0)}"
            style = {"color": COLOUR_OF[name], "hatch": HATCH_OF[name], "edgecolor": "white"}
            axis.bar(place, heights, 0.19, label=label, **style)
        axis.set_xticks(range(4), names)
        axis.grid(False, axis="x")
        axis.set(title=stamp)
    axes[0, 0].set_ylabel("share (density: mean count)")
    figure.suptitle("Like real test images, and as varied?", fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, loc="outside lower center", ncols=2)
    plots.save(figure, path)


def draw_use(path: Path, use: dict[str, Any]) -> None:
    """Classification accuracy score by what the classifier was trained on."""
    figure, axis = plt.subplots(figsize=(7.2, 2.8), layout="constrained")
    for row, kind in enumerate(use):
        entry = use[kind]
        low, high = entry["interval_95_over_test_images"]
        axis.plot([low, high], [row + 0.12] * 2, color="#888888", linewidth=4, solid_capstyle="butt")
        low, high = entry["interval_95_over_seeds"]
        axis.plot([low, high], [row - 0.12] * 2, color=plots.COLOURS[0], linewidth=4, solid_capstyle="butt")
        scores = entry["balanced_accuracy_of_each_seed"]
        axis.plot(scores, [row - 0.12] * len(scores), "k.", markersize=5)
        axis.plot(entry["balanced_accuracy"], row, "D", color=plots.COLOURS[1], markersize=6)
    axis.set_yticks(range(len(use)), [f"{USE[kind]} ({entry['images']})" for kind, entry in use.items()])
    axis.set_ylim(len(use) - 0.5, -0.5)
    axis.set_xlim(0, 1.03)
    tested = use["real"]["test_images"]
    axis.set(
        title="Classifier trained on ..., tested on real test images",
        xlabel=f"balanced accuracy on {tested} test images: mean (diamond), seeds (dots), 95% intervals\n"
        "over seeds (blue, above) and over test images (grey, below)",
    )
    plots.save(figure, path)


def draw_confusions(path: Path, fidelity: dict[str, Any], classes: list[str]) -> None:
    """Confusion of the independent classifiers on real test images and on generated ones."""
    side = 1.5 + 0.4 * len(classes)
    figure, axes = plt.subplots(1, 2, figsize=(2 * side + 2.0, side + 0.6), layout="constrained", sharey=True)
    for axis, (name, title) in zip(
        axes, (("real_test", "real test"), ("generated", "generated")), strict=True
    ):
        table_CC = np.array(fidelity[name]["table"])
        shares_CC = table_CC / np.maximum(1, table_CC.sum(1, keepdims=True))
        drawn = axis.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(table_CC.shape):
            colour = "white" if shares_CC[row, column] > 0.6 else "black"
            text = str(table_CC[row, column] or "")  # zeros would hide the pattern
            axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
        axis.set_xticks(range(len(classes)), classes, rotation=90)
        axis.set_yticks(range(len(classes)), classes)
        axis.grid(False)
        axis.set(title=f"{title}, {fidelity[name]['images']} images", xlabel="taken for")
    axes[0].set_ylabel("true class, or the one asked for")
    figure.colorbar(drawn, ax=axes, label="share of the row")
    figure.suptitle(
        "Counts, shaded by their share of the row; classifiers trained on real images", fontsize=9
    )
    plots.save(figure, path)


def draw_copies(path: Path, copies: dict[str, Any], stamps: dict[str, str]) -> None:
    """Distances to the nearest training image: generated beside test, one panel per search."""
    units = {
        "pixels": "sqrt(1 - correlation), masked and registered",
        "tokens": "share of tokens that differ, mean over scales",
    }
    rows = -(-len(copies) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(8.4, 3.0 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(copies) :]:
        axis.set_visible(False)
    for axis, nearest in zip(axes.flat, copies.values(), strict=False):
        both = np.concatenate([nearest["generated"], nearest["test"]])
        bins = np.linspace(0, max(both.max(), 1e-6) * 1.02, 25)
        test = "test (rebuilt)" if nearest["is_test_rebuilt"] else "test"
        # Outlines: filled bars that overlap make a third colour.
        for name, title, colour, dashes in (
            ("test", test, plots.COLOURS[1], "--"),
            ("generated", "generated", plots.COLOURS[0], "-"),
        ):
            count = len(nearest[name])
            shares = np.histogram(nearest[name], bins)[0] / count
            label = f"{title}, n = {count}"
            axis.stairs(shares, bins, color=colour, linewidth=1.5, linestyle=dashes, label=label)
        quantiles = f"5% quantile of {test}" + ", by class" * (len(nearest["thresholds"]) > 1)
        for i, threshold in enumerate(nearest["thresholds"]):
            axis.axvline(threshold, color="black", linewidth=1, linestyle=":", label=None if i else quantiles)
        label, domain = nearest["label"], "rebuilt " * nearest["is_rebuilt"]
        unit = units.get(label, f"distance in features ({stamps.get(label)})")
        title = f"Nearest {domain}training image in {label}"
        axis.set(title=title, xlabel=unit, ylabel="share of images")
        axis.margins(y=0.35)  # room for the legend
        axis.legend(fontsize=7, loc="upper left")
    plots.save(figure, path)


def draw_nearest_pairs(
    path: Path, nearest: dict[str, Any], generated: ImageSet, train: ImageSet, by: str
) -> None:
    """The twenty generated images nearest to a training image in one search, each above that image."""
    chosen = np.argsort(nearest["generated"], kind="stable")[:PAIRS]
    rows, names, cells = [], [], []
    for start in range(0, len(chosen), ROW):
        part = chosen[start : start + ROW]
        rows += [list(generated.grey_NHW[part]), list(train.grey_NHW[nearest["row"][part]])]
        names += ["generated", "nearest train"]
        cells += [[f"{value:.2f}" for value in nearest["generated"][part]], [""] * len(part)]
    title = f"The {len(chosen)} nearest pairs, with their distance, by {by} (training images may be mirrored)"
    plots.image_grid(path, rows, names, [""] * min(ROW, len(chosen)), title, inch=0.95, cell_names=cells)


def draw_first_images(path: Path, sets: dict[str, ImageSet], classes: list[str]) -> None:
    """The first six images of each class and set: not chosen."""
    rows, names = [], []
    shown = [n for n in ("real_test", "reconstructed_test", "generated", "position_prior") if n in sets]
    for label, class_name in enumerate(classes):
        for name in shown:
            rows.append(list(sets[name].of_class(label).grey_NHW[:6]))
            names.append(f"{class_name}:\n{SHORT[name]}")
    plots.image_grid(path, rows, names, [str(i + 1) for i in range(6)], "The first six of each, not chosen")


def draw_best_and_worst(
    path: Path, ranked: dict[str, Any], sets: dict[str, ImageSet], classes: list[str], stamps: dict[str, str]
) -> None:
    """The most and the least real-looking of the generated images."""
    generated, shown = sets["generated"], min(2 * ROW, len(ranked["row"]) // 2)
    rows, names, cells = [], [], []
    for name, chosen in (("best", slice(0, shown)), ("worst", slice(len(ranked["row"]) - shown, None))):
        order, realism = ranked["row"][chosen], ranked["realism"][chosen]
        if name == "worst":
            order, realism = order[::-1], realism[::-1]
        for start in range(0, shown, ROW):
            part = order[start : start + ROW]
            rows.append(list(generated.grey_NHW[part]))
            names.append(f"{name}\n{start + 1} to {start + len(part)}")
            cells.append(
                [
                    f"{classes[generated.label_N[row]][:9]} {value:.2f}"
                    for row, value in zip(part, realism[start : start + ROW], strict=True)
                ]
            )
    title = f"Most and least real-looking ({next(iter(stamps.values()))}; realism above 1: among real ones)"
    plots.image_grid(path, rows, names, [""] * min(ROW, shown), title, inch=1.0, cell_names=cells)


def draw_variety(path: Path, table: dict[str, Any], classes: list[str], stamps: dict[str, str]) -> None:
    """Likeness of two images of a class, in each set."""
    panels = {"ssim": "SSIM of two images (lower: more varied)"}
    panels |= {f"{name}-distance": f"distance in features, {stamp}" for name, stamp in stamps.items()}
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.6), layout="constrained")
    for axis, (key, title) in zip(axes, panels.items(), strict=True):
        for offset, (name, per_class) in enumerate(table.items()):
            present = [i for i, class_name in enumerate(classes) if class_name in per_class]
            entries = [per_class[classes[i]] for i in present]
            axis.errorbar(
                [i + 0.15 * (offset - 2) for i in present],
                [entry[f"{key}_mean"] for entry in entries],
                [entry[f"{key}_deviation"] for entry in entries],
                fmt=MARKER_OF[name],
                color=COLOUR_OF[name],
                markersize=4,
                capsize=0,
                elinewidth=0.8,
                label=SHORT[name],
            )
        axis.set_xticks(range(len(classes)), classes, rotation=60, ha="right", fontsize=7)
        axis.set_title(title, fontsize=9)
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, loc="outside lower center", ncols=len(table))
    figure.suptitle("Pairs within a class, of different groups: mean and deviation over pairs", fontsize=9)
    plots.save(figure, path)


def draw_physics(path: Path, curves: dict[str, dict[str, np.ndarray]]) -> None:
    """How the detail, grey levels, speckle and brightness along depth of each set differ from real test.

    Differences, because each set is compared with the test images of its own classes: one curve of real
    images beside all sets would be of other classes than some of them.
    """
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
    for number, (name, of_set) in enumerate(curves.items()):
        style: dict[str, Any] = {
            "color": COLOUR_OF[name],
            "linewidth": 2.2 if name == "real_test" else 1.2,
            "marker": MARKER_OF[name],
            "markersize": 5,
            # A few along each curve, those of one set between those of the others.
            "markevery": (0.02 * number, 0.1),
        }
        style_of_lags = style | {"markevery": (number, len(curves))}  # there are as few lags as markers
        axes[0, 0].plot(of_set["frequency"], of_set["spectrum"], label=SHORT[name], **style)
        # The area under it is the distance of the grey levels, and combs of JPEG and resizing vanish.
        axes[0, 1].plot(np.cumsum(of_set["grey"]), **style)
        axes[1, 0].plot(of_set["along"], **style_of_lags)
        axes[1, 0].plot(of_set["across"], linestyle="--", **style_of_lags)
        depth = of_set["depth"]
        axes[1, 1].plot((np.arange(len(depth)) + 0.5) / len(depth), depth, **style)
    axes[0, 0].set(title="Detail", xlabel="spatial frequency, cycles per pixel", ylabel="mean power, dB")
    axes[0, 1].set(title="Brightness", xlabel="grey level", ylabel="share of pixels up to it")
    axes[1, 0].set(
        title="Speckle: along depth (full), across (dashed)",
        xlabel="pixels apart",
        ylabel="autocorrelation of the detail",
    )
    axes[1, 1].set(title="Brightness along depth", xlabel="depth, share of the picture", ylabel="grey level")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(curves))
    figure.suptitle(
        "Differences from the real test images (at 0) of the classes that both have; means over these",
        fontsize=9,
    )
    plots.save(figure, path)


def draw_bits(path: Path, bits: dict[str, Any], patch_nums: list[int]) -> None:
    """Bits per token on each scale."""
    figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    markers, dashes = iter(MARKERS), iter((":", "--"))
    for name, entry in bits.items():
        style = {"linestyle": next(dashes)} if name in BY_FREQUENCY.values() else {"marker": next(markers)}
        label = f"{name}: {entry['bits_per_token']:.2f} on average, {entry['images']} images"
        axis.plot(entry["bits_per_token_of_each_scale"], label=label, **style)
    axis.set_xticks(range(len(patch_nums)), [f"{side} x {side}" for side in patch_nums])
    axis.set_ylim(bottom=0)
    axis.set(title="How surprising real token maps are to VAR", xlabel="scale", ylabel="bits per token")
    axis.legend(fontsize=7)
    plots.save(figure, path)


# What figures call the settings that the sweep varies.
AXIS_NAMES = {"cfg": "guidance", "top_p": "top-p", "top_k": "top-k"}


def draw_sweep(path: Path, sweep: dict[str, Any]) -> None:
    """What the sweep measured on val: one column per setting, one row per measure."""
    rows = sweep["rows"]
    axes_of = list(dict.fromkeys(row["axis"] for row in rows))
    extractors = list(sweep["stamps"])
    measures = {f"{extractors[0]}-KD": f"{extractors[0]}-KD, lower is nearer"}
    measures |= {f"{extractors[0]}-coverage": "coverage", "class_fidelity": "class fidelity"}
    figure, axes = plt.subplots(
        len(measures),
        len(axes_of),
        figsize=(2.5 * len(axes_of), 2.2 * len(measures)),
        layout="constrained",
        squeeze=False,
        sharey="row",
    )
    for column, name in enumerate(axes_of):
        points = [row for row in rows if row["axis"] == name]
        # 0 switches these filters off: it stands at the loose end, not at the strict one.
        is_filter = name in ("top_p", "top_k")
        if is_filter:
            points.sort(key=lambda row: row["value"] or math.inf)
        # Each mode has the same values.
        of_first_mode = [row for row in points if row["mode"] == points[0]["mode"]]
        names = ["off" if is_filter and not row["value"] else f"{row['value']:g}" for row in of_first_mode]
        for panel, (key, title) in zip(axes[:, column], measures.items(), strict=True):
            for number, mode in enumerate(dict.fromkeys(row["mode"] for row in points)):
                of_mode = [row for row in points if row["mode"] == mode]
                panel.errorbar(
                    range(len(of_mode)),
                    [row[key] for row in of_mode],
                    [row.get(f"{key}_spread") or 0 for row in of_mode],
                    marker="os^"[number],
                    markersize=4,
                    capsize=2,
                    color=plots.COLOURS[number],
                    label={"tp": "real prefix (train)", "nop": "by frequency"}.get(mode, mode),
                )
            panel.set_xticks(range(len(names)), names)
            for place, row in enumerate(of_first_mode):
                if row["chosen"]:
                    panel.axvline(place, color="black", linestyle=":", linewidth=1)
            if not key.endswith("KD"):
                panel.set_ylim(-0.02, 1.02)
            if column == 0:
                panel.set_ylabel(title, fontsize=8)
        axes[0, column].set_title(AXIS_NAMES.get(name, name), fontsize=9)
        if len({row["mode"] for row in points}) > 1:
            axes[0, column].legend(fontsize=7)
    figure.suptitle(
        f"Sweep on val, {rows[0]['images']} images per point ({sweep['stamps'][extractors[0]]}); "
        "dotted: kept for the next column",
        fontsize=9,
    )
    plots.save(figure, path)
