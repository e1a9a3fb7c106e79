"""What evaluate_var.py shows: its figures, and one page with everything in it.

The page needs no network, follows the reader's light or dark setting, and lets wide tables scroll by
themselves on a phone. All numbers come from the content of metrics.json.
"""

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from usvar import plots
from usvar.evaluation import ImageSet

# What is compared with the real test images, in the order of tables and figures.
SETS = {
    "generated": "generated",
    "real_train": "real training images (floor)",
    "reconstructed_test": "test images rebuilt by the VQ-VAE (tokenizer's ceiling)",
    "position_prior": "tokens by frequency alone (trivial generator)",
}
CAUTIONS = (
    "Research only: nothing here is fit for diagnosis or for any decision about a patient.",
    "No guarantee of privacy: few near copies do not show that no training image can be recovered.",
    "Numbers named US-... stand on a network trained on this data set. They compare only under the same "
    "extractor hash, and not with any published FID or KID.",
    "Small sets are noisy: look at the counts and spreads beside each number before reading a difference.",
    "The extractor was trained on the training images, so the line of real training images may lie a "
    "little above zero even when both splits come from one source.",
)
STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem;
  background: Canvas; color: CanvasText; overflow-wrap: break-word; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption, small { opacity: .85; font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.caution { border-left: 4px solid #D55E00; padding: .1rem 1rem; background: var(--soft); }
pre { overflow-x: auto; background: var(--soft); padding: .6rem; font-size: .8rem; }
"""


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def cautions(lines: Sequence[str]) -> str:
    """A marked list of what a reader must keep in mind."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="caution"><ul>{items}</ul></div>'


def figure(path: Path, alternative: str, caption: str) -> str:
    """A PNG as a data URI.

    Args:
        path: the PNG.
        alternative: what it shows, in words, for those who do not see it.
        caption: below it.
    """
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure><img alt="{escape(alternative)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table of text cells that scrolls by itself on a narrow screen."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide" role="region" aria-label="{escape(caption)}" tabindex="0"><table>'
        f"<caption><small>{escape(caption)}</small></caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def preformatted(text: str, summary: str) -> str:
    """Text as it is, folded away under a summary."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def page(title: str, sections: Sequence[tuple[str, Sequence[str]]]) -> str:
    """The whole page.

    Args:
        title: in the head and on top.
        sections: heading and blocks from the functions above; an empty heading gives none.
    """
    body = "\n".join(
        "<section>" + (f"<h2>{escape(heading)}</h2>" if heading else "") + "\n".join(blocks) + "</section>"
        for heading, blocks in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main><h1>{escape(title)}</h1>\n{body}\n</main></body></html>\n"
    )


def draw_figures(
    folder: Path,
    result: dict[str, Any],
    sets: dict[str, ImageSet],
    copies: dict[str, Any],
    curves: dict[str, Any],
) -> None:
    """All figures.

    Args:
        folder: where the PNGs go.
        result: what goes into metrics.json.
        sets: images by name, those of SETS and real_test.
        copies: for "features" and "pixels", distances to the nearest training image and its row.
        curves: power spectra and grey levels.
    """
    classes, stamp = result["classes"], result["extractor"]["stamp"]
    draw_samples(folder / "samples.png", sets, classes)
    draw_kernel_distances(folder / "kernel_distance.png", result["distances"], stamp)
    draw_neighbours(folder / "neighbours.png", result["distances"], stamp)
    draw_confusions(folder / "confusion.png", result["class_fidelity"], classes)
    draw_copies(folder / "copies.png", copies, stamp)
    draw_nearest_pairs(folder / "nearest_pairs.png", copies, sets["generated"], sets["real_train"])
    draw_variety(folder / "variety.png", result["variety"], classes, stamp)
    draw_physics(folder / "physics.png", curves)
    draw_bits(folder / "bits_per_token.png", result["bits_per_token"], result["patch_nums"])


def draw_kernel_distances(path: Path, distances: dict[str, Any], stamp: str) -> None:
    """Kernel distance of each set, pooled and for each class."""
    groups = list(next(iter(distances.values())))
    figure, axis = plt.subplots(figsize=(7.2, 0.5 + 0.75 * len(groups)), layout="constrained")
    for offset, (name, title) in enumerate(SETS.items()):
        shown = [(row, distances[name][group]) for row, group in enumerate(groups)]
        shown = [(row, entry) for row, entry in shown if "US-KD" in entry]
        axis.errorbar(
            [entry["US-KD"] for _, entry in shown],
            [row + 0.17 * (offset - 1.5) for row, _ in shown],
            xerr=[entry["US-KD_spread"] or 0 for _, entry in shown],
            fmt="osD^"[offset],
            markersize=5,
            capsize=2,
            label=title,
        )
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(groups)), groups)
    axis.set_ylim(len(groups) - 0.5, -0.5)
    axis.set_xscale("symlog", linthresh=0.1)
    axis.set(title=f"Kernel distance to real test images ({stamp})", xlabel="US-KD, lower is nearer")
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.45, -0.75 / len(groups)), ncols=2)
    plots.save(figure, path)


def draw_neighbours(path: Path, distances: dict[str, Any], stamp: str) -> None:
    """Precision, recall, density and coverage over all classes."""
    names = ("precision", "recall", "density", "coverage")
    figure, axis = plt.subplots(figsize=(7.2, 3.2), layout="constrained")
    for offset, (name, title) in enumerate(SETS.items()):
        entry = distances[name]["pooled"]
        heights = [entry.get(f"US-{key}", np.nan) for key in names]
        axis.bar(np.arange(4) + 0.2 * (offset - 1.5), heights, 0.19, label=f"{title}, n = {entry['images']}")
    axis.set_xticks(range(4), names)
    axis.grid(False, axis="x")
    axis.set(title=f"Like real test images, and as varied? ({stamp})", ylabel="share (density: mean count)")
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    plots.save(figure, path)


def draw_confusions(path: Path, fidelity: dict[str, Any], classes: list[str]) -> None:
    """Confusion of the independent classifier on real test images and on generated ones."""
    side = 1.5 + 0.55 * len(classes)
    figure, axes = plt.subplots(1, 2, figsize=(2 * side + 1.2, side + 0.6), layout="constrained", sharey=True)
    for axis, (name, title) in zip(
        axes, (("real_test", "real test"), ("generated", "generated")), strict=True
    ):
        table_CC = np.array(fidelity[name]["table"])
        shares_CC = table_CC / np.maximum(1, table_CC.sum(1, keepdims=True))
        axis.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(table_CC.shape):
            colour = "white" if shares_CC[row, column] > 0.6 else "black"
            axis.text(column, row, table_CC[row, column], ha="center", va="center", color=colour)
        axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
        axis.set_yticks(range(len(classes)), classes)
        axis.grid(False)
        axis.set(title=f"{title}, {fidelity[name]['images']} images", xlabel="taken for")
    axes[0].set_ylabel("asked for")
    figure.suptitle("Counts, by a classifier trained on real images", fontsize=9)
    plots.save(figure, path)


def draw_copies(path: Path, drawn: dict[str, Any], stamp: str) -> None:
    """Distances to the nearest training image: generated beside test."""
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
    units = {
        "features": f"distance in features ({stamp})",
        "pixels": "RMS grey difference at 32 x 32, 0 to 1",
    }
    for axis, (space, found) in zip(axes, drawn.items(), strict=True):
        both = np.concatenate([found["generated"], found["test"]])
        bins = np.linspace(0, both.max() * 1.02, 25)
        for name, colour in (("test", plots.COLOURS[1]), ("generated", plots.COLOURS[0])):
            values = found[name]
            weights = np.full(len(values), 1 / len(values))
            axis.hist(
                values, bins, weights=weights, alpha=0.55, color=colour, label=f"{name}, n = {len(values)}"
            )
        if "threshold" in found:
            axis.axvline(found["threshold"], color="black", linestyle=":", label="5% quantile of test")
        axis.set(title=f"Nearest training image in {space}", xlabel=units[space], ylabel="share of images")
        axis.legend(fontsize=7)
    plots.save(figure, path)


def draw_nearest_pairs(path: Path, drawn: dict[str, Any], generated: ImageSet, train: ImageSet) -> None:
    """The twelve generated images nearest to a training image, in features and in pixels."""
    rows = []
    for found in drawn.values():
        chosen = np.argsort(found["generated"])[:12]
        rows += [list(generated.grey_NHW[chosen]), list(train.grey_NHW[found["row"][chosen]])]
    names = ["generated", "nearest train,\nin features", "generated", "nearest train,\nin pixels"]
    columns = [str(i + 1) for i in range(max(len(row) for row in rows))]
    title = "Generated images nearest to a training image, nearest first (training images may be mirrored)"
    plots.image_grid(path, rows, names, columns, title, inch=0.95)


def draw_samples(path: Path, sets: dict[str, ImageSet], classes: list[str]) -> None:
    """The first six images of each class and set: not chosen."""
    titles = {
        "real_test": "real test",
        "reconstructed_test": "rebuilt",
        "generated": "generated",
        "position_prior": "by frequency",
    }
    rows, names = [], []
    for label, class_name in enumerate(classes):
        for name, title in titles.items():
            rows.append(list(sets[name].of_class(label).grey_NHW[:6]))
            names.append(f"{class_name}: {title}")
    plots.image_grid(path, rows, names, [str(i + 1) for i in range(6)], "The first six of each, not chosen")


def draw_variety(path: Path, table: dict[str, Any], classes: list[str], stamp: str) -> None:
    """Likeness of two images of a class, in each set."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    panels = {
        "ssim": "SSIM of two images (lower: more varied)",
        "US-distance": f"distance in features ({stamp})",
    }
    for axis, (key, title) in zip(axes, panels.items(), strict=True):
        for offset, (name, per_class) in enumerate(table.items()):
            present = [i for i, class_name in enumerate(classes) if class_name in per_class]
            entries = [per_class[classes[i]] for i in present]
            axis.errorbar(
                [i + 0.15 * (offset - 1.5) for i in present],
                [entry[f"{key}_mean"] for entry in entries],
                [entry[f"{key}_deviation"] for entry in entries],
                fmt="osD^"[offset],
                markersize=5,
                capsize=2,
                label=name.replace("_", " "),
            )
        axis.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
        axis.set_title(title, fontsize=9)
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    axes[0].legend(fontsize=7)
    figure.suptitle("Pairs within a class: mean and deviation over pairs", fontsize=9)
    plots.save(figure, path)


def draw_physics(path: Path, found: dict[str, Any]) -> None:
    """Power over spatial frequency, and shares of grey levels."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name, (power_F, share_G) in found["curves"].items():
        style = {"color": "black", "linewidth": 2} if name == "real_test" else {"linewidth": 1.2}
        axes[0].plot(found["frequency"], power_F, label=name.replace("_", " "), **style)
        # Over 4 levels: single levels jump, because JPEG and resizing leave combs.
        axes[1].plot(np.arange(0, 256, 4) + 2, share_G.reshape(-1, 4).sum(1), **style)
    axes[0].set(title="Detail", xlabel="spatial frequency, cycles a pixel", ylabel="mean power, dB")
    axes[1].set(title="Brightness", xlabel="grey level", ylabel="share of pixels (bins of 4 levels)")
    axes[1].set_yscale("log")
    axes[0].legend(fontsize=7)
    plots.save(figure, path)


def draw_bits(path: Path, bits: dict[str, Any], patch_nums: list[int]) -> None:
    """Bits a token on each scale."""
    figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for name, entry in bits.items():
        is_line = "alone" in name
        axis.plot(
            entry["bits_per_token_of_each_scale"],
            linestyle=":" if is_line else "-",
            marker="" if is_line else "o",
            label=f"{name}: {entry['bits_per_token']:.2f} on average, {entry['images']} images",
        )
    axis.set_xticks(range(len(patch_nums)), [f"{side} x {side}" for side in patch_nums])
    axis.set_ylim(bottom=0)
    axis.set(title="How surprising real token maps are to VAR", xlabel="scale", ylabel="bits a token")
    axis.legend(fontsize=7)
    plots.save(figure, path)


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table."""
    return "left out" if value is None else f"{value:.{digits}f}"


def evaluation_page(result: dict[str, Any], folder: Path) -> str:
    """report.html from metrics.json's content and the figures in a folder."""
    settings = result["made_by"]["settings"]
    stamp, classes = result["extractor"]["stamp"], result["classes"]
    distances, fidelity = result["distances"], result["class_fidelity"]
    header = ["set", "images", "test images", "US-KD", "spread", "precision", "recall", "density", "coverage"]
    keys = ("US-precision", "US-recall", "US-density", "US-coverage")

    def distance_table(group: str) -> str:
        rows = []
        for name, title in SETS.items():
            entry = distances[name][group]
            cells = [number(entry.get(key)) for key in ("US-KD", "US-KD_spread", *keys)]
            rows.append([title, str(entry["images"]), str(entry["real_test_images"]), *cells])
        return table(header, rows, f"{group}, against real test images; {stamp}")

    def picture(name: str, alternative: str, caption: str) -> str:
        return figure(folder / f"{name}.png", alternative, caption)

    pooled = {name: distances[name]["pooled"].get("US-KD") for name in SETS}
    fidelity_rows = [
        [
            name,
            *(
                f"{entry['right']} of {entry['images']}"
                for entry in (fidelity[kind]["per_class"][i] for kind in ("real_test", "generated"))
            ),
        ]
        for i, name in enumerate(classes)
    ]
    fidelity_rows.append(
        [
            "mean over classes",
            *(f"{fidelity[k]['balanced_accuracy']:.0%}" for k in ("real_test", "generated")),
        ]
    )
    copy_rows = []
    for space, entry in result["copies"].items():
        planted = entry.get("planted_copies_detected", {})
        copy_rows.append(
            [
                space,
                number(entry["median_generated_to_train"]),
                number(entry["median_test_to_train"]),
                f"{entry['generated_below']} of {entry['generated_images']}"
                if "generated_below" in entry
                else "left out",
                f"{entry['share_of_train_that_is_nearest']:.0%} of {entry['train_images']}",
                *(
                    f"{planted[kind]['share_below_threshold']:.0%} of {planted[kind]['planted']}"
                    if kind in planted
                    else "left out"
                    for kind in ("rebuilt by the VQ-VAE", "augmented as in training")
                ),
            ]
        )
    copy_header = ["in", "median to train", "same of test", "below 5% quantile of test", "train images hit"]
    copy_header += ["planted, rebuilt: found", "planted, augmented: found"]
    bits_rows = [
        [name, str(e["images"]), number(e["bits_per_token"])]
        + [number(v, 2) for v in e["bits_per_token_of_each_scale"]]
        for name, e in result["bits_per_token"].items()
    ]
    physics_rows = [
        [
            SETS[name],
            str(e["images"]),
            f"{e['spectrum_difference_rms_db']:.1f}",
            f"{e['fine_detail_power_difference_db']:+.1f}",
            f"{e['grey_level_distance']:.1f}",
        ]
        for name, e in result["physics"].items()
    ]
    counts = result["counts"]
    count_rows = [[name, *(str(counts[name][c]) for c in classes)] for name in counts]
    left_out = [[row["what"], row["why"]] for row in result["left_out"]]
    source = "read from a folder" if settings["generated"] else "drawn here, K = 0"
    reading = (
        "Pooled US-KD to the real test images: "
        + ", ".join(f"{title} {number(pooled[name])}" for name, title in SETS.items())
        + ". Nothing decoded by this VQ-VAE can be expected below the tokenizer's ceiling; a transformer "
        "that has learned anything beyond frequencies stands below the trivial generator."
    )
    sections = [
        ("", [paragraph(f"Generated images {source}, judged against the real test split.")]),
        ("Before you read", [cautions(CAUTIONS)]),
        (
            "What was compared",
            [table(["images", *classes], count_rows, "number of images of each class")],
        ),
        (
            "Images",
            [
                picture(
                    "samples",
                    "Grid of images: for each class, real test images, the same rebuilt by the VQ-VAE, "
                    "generated images, and images from token frequencies alone.",
                    "The first six of each class and set, not chosen.",
                )
            ],
        ),
        (
            "Like real images?",
            [
                paragraph(reading),
                picture("kernel_distance", reading, f"Bars: standard error over random halves. {stamp}"),
                distance_table("pooled"),
                picture(
                    "neighbours",
                    "Bars of precision, recall, density and coverage for each set, as in the table above.",
                    f"k = {settings['neighbours']}. These measures depend on the number of images. {stamp}",
                ),
                *(distance_table(name) for name in classes),
            ],
        ),
        (
            "Of the class that was asked for?",
            [
                table(
                    ["class", "real test: right", "generated: right"],
                    fidelity_rows,
                    f"by a second network; classifier {result['extractor']['classifier_sha256'][:12]}",
                ),
                picture(
                    "confusion",
                    "Two confusion matrices, real test images and generated images.",
                    "A classifier that errs on real images says as little about generated ones.",
                ),
            ],
        ),
        (
            "Copies?",
            [
                paragraph(
                    "If well over 5% of the samples fall below the 5% quantile of test-to-train distances, "
                    "they lie nearer to training images than new real images do. How many planted copies "
                    "are found says how far the measure can be trusted."
                ),
                table(copy_header, copy_rows, f"nearest training image; features: {stamp}"),
                picture(
                    "copies",
                    "Histograms of the distance to the nearest training image: generated and test images.",
                    "Generated left of test: nearer to training images than real ones are.",
                ),
                picture(
                    "nearest_pairs",
                    "The twelve generated images nearest to a training image, each above that training "
                    "image, in features and in pixels.",
                    "Look at the first columns: are these the same picture?",
                ),
            ],
        ),
        (
            "Varied?",
            [
                picture(
                    "variety",
                    "Mean structural similarity and feature distance of pairs within each class, for real, "
                    "generated and trivially generated images.",
                    f"Less variety shows as higher SSIM and smaller distances than real images have. {stamp}",
                )
            ],
        ),
        (
            "Detail and brightness",
            [
                picture(
                    "physics",
                    "Power over spatial frequency and shares of grey levels, beside real test images.",
                    "A fall at the right of the spectrum is lost speckle: compare with the rebuilt images.",
                ),
                table(
                    [
                        "set",
                        "images",
                        "spectrum, RMS dB",
                        "fine detail, dB",
                        "grey-level distance, levels",
                    ],
                    physics_rows,
                    "difference from the real test images",
                ),
            ],
        ),
        (
            "Likelihood",
            [
                picture(
                    "bits_per_token",
                    "Bits per token on each scale for train, val and test; numbers in the table below.",
                    "Train below test: the transformer remembers its training images.",
                ),
                table(
                    ["split", "images", "mean", *(f"{v} x {v}" for v in result["patch_nums"])],
                    bits_rows,
                    "bits a token",
                ),
            ],
        ),
        (
            "Left out",
            [
                table(["what", "why"], left_out, "not computed at this number of images")
                if left_out
                else paragraph("Nothing.")
            ],
        ),
        (
            "What made this page",
            [preformatted(json.dumps(result["made_by"], indent=2), "settings, code revision, file hashes")],
        ),
    ]
    return page("Evaluation of generated ultrasound images", sections)
