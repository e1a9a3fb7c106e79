"""report.html: one page with everything that evaluate_var.py found.

The page needs no network, follows the reader's light or dark setting, and lets wide tables and figures scroll
by themselves on a phone. All numbers come from the content of metrics.json.
"""

import base64
import json
import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from usvar import tokens
from usvar.evaluation import SETS

# Name of a figure, what it shows in words, and its caption -> the HTML of that figure.
Picture = Callable[[str, str, str], str]
# What the classifiers of the accuracy score are trained on.
USE = {
    "real": "real training images",
    "generated": "generated images alone",
    "half_generated": "half of the real, generated for the rest",
    "real_and_generated": "all real and all generated",
    "position_prior": "tokens by frequency alone",
}
# What a model of `tokens.frequency_scores` is called among the splits of "bits_per_token": a line to compare
# with, where nothing comes from the transformer.
BY_FREQUENCY = {name: f"test, {title} alone" for name, title in tokens.FREQUENCIES.items()}
PLANTS = (
    *("as they are", "augmented", "moved"),
    *("rebuilt", "augmented, then rebuilt", "moved, then rebuilt"),
)
CAUTIONS = (
    "Research only: nothing here is fit for diagnosis or for any decision about a patient.",
    "No guarantee of privacy: few near copies do not show that no training image can be recovered.",
    "Distances are named after their extractor (US: trained on the classes of this data set; US-SSL: trained "
    "on it without labels). They compare only under the same extractor hash, and not with any published FID "
    "or KID.",
    "Small sets are noisy: look at the counts and spreads beside each number before reading a difference.",
    "The extractors were trained on the training images, so the line of real training images may lie a "
    "little above zero even when both splits come from one source.",
)
# By whether the groups of the real images are known.
GROUPS_KNOWN = (
    "Spreads and intervals draw real images by their groups in manifest.csv: patients or videos, joined with "
    "their near copies. Where a publisher names no patients, each picture is a group. Of a class with few "
    "groups an interval is still a little narrow, and with under four KD takes its images for independent: "
    "its spread is too small and its value too high. Precision, recall, density and coverage know no groups."
)
GROUPS_UNKNOWN = (
    "Spreads and intervals take every real image for independent, because the data has no manifest.csv. "
    "Several of one patient or video are not: then its numbers are less certain than they look, and its "
    "distance is too high."
)
# Of a VQ-VAE whose training images were not those of the training split.
OTHER_VQVAE = (
    "The VQ-VAE was trained on other images than the training split holds: it may have seen test images, "
    "which it then rebuilds too well. To be sure, train it and the transformer again."
)
# Above what is told of --var, where images were read from a folder without a listing.
OF_VAR = "Nothing says that the transformer given drew these images: this section is about that transformer."
STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem;
  background: Canvas; color: CanvasText; overflow-wrap: break-word; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
figure { margin: 1rem 0; }
figure .wide { border-radius: 4px; margin: 0; }
img { display: block; max-width: 100%; min-width: min(100%, 34rem); height: auto; background: #fff;
  border-radius: 4px; }
@media (max-width: 40rem) { img { min-width: 34rem; } }
a { color: LinkText; }
figcaption, small { opacity: .85; font-size: .9rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
caption { text-align: left; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
td { white-space: nowrap; }
th { min-width: 3.5rem; }
th:first-child, td:first-child { text-align: left; min-width: 8rem; }
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
        f'<figure><div class="wide" role="region" aria-label="{escape(caption)}" tabindex="0">'
        f'<img alt="{escape(alternative)}" src="data:image/png;base64,{data}"></div>'
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


def folded(summary: str, blocks: Sequence[str], is_open: bool = False) -> str:
    """Blocks that open and close on demand."""
    return f"<details{' open' * is_open}><summary>{escape(summary)}</summary>{''.join(blocks)}</details>"


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


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table."""
    return "left out" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share for a table."""
    return "left out" if value is None else f"{value:.0%}"


def classes_right(entry: dict[str, Any], classes: Sequence[str]) -> str:
    """Share of one set of `class_fidelity` that is of its class, with the classes that no image is of."""
    lacking = [name for name, row in zip(classes, entry["per_class"], strict=True) if not row["images"]]
    share = percent(entry["balanced_accuracy"])
    return f"{share} (without {', '.join(lacking)})" if lacking else share


def agreement_words(agreed: dict[str, Any]) -> str:
    """Whether the extractors put the sets in one order, in a sentence."""
    if agreed["agree"] is None:
        return "There is nothing on which the extractors could agree: too few images were compared."
    if agreed["agree"]:
        return "The extractors agree on the order of the sets, as far as they tell them apart."
    first = agreed["opposite"][0]
    return (
        f"THE EXTRACTORS DO NOT AGREE: by {first['by']} {SETS[first['nearer']]} are nearer to the test "
        f"images than {SETS[first['farther']]} ({first['where']}), by {first['not_by']} the other way round"
        + (f", and {len(agreed['opposite']) - 1} more such pairs." if len(agreed["opposite"]) > 1 else ".")
    )


def relative_progress(distances: dict[str, Any], extractor: str) -> str:
    """How far the generated images lie between the trivial generator's and rebuilt ones, in a sentence."""
    if "position_prior" not in distances:
        return ""
    pooled = {name: distances[name]["pooled"][f"{extractor}-KD"] for name in distances}
    spreads = [
        distances[name]["pooled"][f"{extractor}-KD_spread"] for name in ("generated", "position_prior")
    ]
    span = pooled["position_prior"] - pooled["reconstructed_test"]
    gain = pooled["position_prior"] - pooled["generated"]
    if None in spreads:
        return " Too few images of a class for a spread: differences say nothing."
    if abs(gain) < 2 * math.hypot(*spreads):
        return " Generated images and the trivial generator's cannot be told apart: within twice the spread."
    if gain < 0:
        return " The generated images lie farther away than the trivial generator's."
    if gain > span > 0:
        return " The generated images lie nearer than the trivial generator's, no farther than rebuilt ones."
    if span > 0:
        return f" From the trivial generator to the rebuilt test images they have gone {gain / span:.0%}."
    return " The generated images lie nearer than the trivial generator's."


def main_findings(result: dict[str, Any]) -> list[str]:
    """The main findings in words, each beside what it must be compared with."""
    distances, physics = result["distances"], result["physics"]
    use = result["classification_accuracy_score"]
    words = []
    for extractor, stamp in result["judges"]["stamps"].items():
        pooled = {SETS[name]: distances[name]["pooled"].get(f"{extractor}-KD") for name in distances}
        if pooled[SETS["generated"]] is None:
            continue
        values = ", ".join(f"{title} {number(value)}" for title, value in pooled.items())
        progress = relative_progress(distances, extractor)
        words.append(f"Pooled {extractor}-KD to the real test images: {values} ({stamp}).{progress}")
    words.append(agreement_words(result["extractors_agree"]))
    words.append(
        f"A classifier trained on generated images alone names {use['generated']['balanced_accuracy']:.0%} "
        f"of the real test images right (mean over classes), one trained on real images "
        f"{use['real']['balanced_accuracy']:.0%}"
        + (
            f", one trained on tokens by frequency alone {use['position_prior']['balanced_accuracy']:.0%}."
            if "position_prior" in use
            else "."
        )
    )
    trusted, blind, has_rebuilt = [], [], "tokens" in result["copies"]
    for space, entry in result["copies"].items():
        if "share_below" in entry:
            detected = entry["planted_copies_detected"][_plant(result, space)]["share_below_threshold"]
            shares = f"{space} {entry['share_below']:.1%} ({detected:.0%})"
            (trusted if detected >= 0.5 else blind).append(shares)
    if trusted or blind:
        words.append(
            "Copies. Share of the generated images that lie nearer to a training image than 95% of the test "
            f"images of their class do{', as smooth as they' * has_rebuilt} (5% is what new images would "
            "give), and in brackets the share of planted copies, augmented"
            f"{' and decoded as samples are' * has_rebuilt}, that the same search finds: "
            + (", ".join(trusted) if trusted else "no search finds half of them")
            + (f". Not to be trusted here, finding fewer than half: {', '.join(blind)}." if blind else ".")
            + _conspicuous_classes(result)
        )
    if lacking := [name for name, count in result["counts"]["generated"].items() if not count]:
        words.append(
            f"Nothing was generated of {', '.join(lacking)}: the shares of right classes and of whole frames "
            "are means over the other classes, those of real images over all."
        )
    if "generated" in physics:
        words.append(
            f"Frames well formed (mean over classes): {physics['generated']['well_formed_share']:.0%} of the "
            f"generated, {physics['real_test']['well_formed_share']:.0%} of the real test images"
            + (
                f", {physics['reconstructed_test']['well_formed_share']:.0%} of these rebuilt by the VQ-VAE."
                if "reconstructed_test" in physics
                else "."
            )
        )
    return words


def _plant(result: dict[str, Any], space: str) -> str:
    """The kind of planted copies by which a search is judged.

    A model learns augmented views, and draws what the VQ-VAE makes of them.
    """
    return "augmented, then rebuilt" if "tokens" in result["copies"] and space != "tokens" else "augmented"


def _conspicuous_classes(result: dict[str, Any]) -> str:
    """The classes that have more near copies than new pictures would give, in a sentence."""
    found = [
        f"{result['classes'][row['label']]} in {space} ({row['generated_below']} of {row['generated']}, "
        f"new images at most {row['most_of_new']})"
        for space, entry in result["copies"].items()
        for row in entry.get("per_class", [])
        if row["generated_below"] > row["most_of_new"]
    ]
    return f" NEARER THAN NEW IMAGES WOULD LIE: {', '.join(found)}." if found else ""


def cautions_of(groups: dict[str, int] | None, vqvae_is_trained_on_this_train: bool | None) -> list[str]:
    """What a reader must keep in mind.

    Args:
        groups: number of groups of each real set; None: not known.
        vqvae_is_trained_on_this_train: None: there is no VQ-VAE, or it does not say.
    """
    of_groups = GROUPS_UNKNOWN if groups is None else GROUPS_KNOWN
    return [*CAUTIONS, of_groups, *([OTHER_VQVAE] if vqvae_is_trained_on_this_train is False else [])]


def evaluation_page(result: dict[str, Any], folder: Path) -> str:
    """report.html from metrics.json's content and the figures in a folder."""

    def picture(name: str, alternative: str, caption: str) -> str:
        return figure(folder / f"{name}.png", alternative, caption)

    sections = [
        ("", [paragraph(f"Generated images ({_source(result)}), judged against the real test split.")]),
        ("Before you read", [cautions(result["cautions"])]),
        ("In short", [paragraph(line) for line in main_findings(result)]),
        ("What was compared", [_count_table(result), paragraph(groups_in_words(result))]),
        ("Images", _image_blocks(result, picture)),
        ("Like real images?", _distance_blocks(result, picture)),
        ("Useful?", _use_blocks(result, picture)),
        ("Of the class that was asked for?", _fidelity_blocks(result, picture)),
        ("Copies?", _copy_blocks(result, picture)),
        ("Varied?", _variety_blocks(result, picture)),
        ("Like ultrasound?", _physics_blocks(result, picture)),
        ("Likelihood", _bits_blocks(result, picture)),
        ("How the settings were chosen", _sweep_blocks(result, picture)),
        ("Left out", _left_out_blocks(result)),
        ("What made this page", _origin_blocks(result)),
    ]
    return page("Evaluation of generated ultrasound images", sections)


def _source(result: dict[str, Any]) -> str:
    """Where the generated images are from, in words."""
    is_given = result["made_by"]["settings"]["generated"]
    source = "read from a folder" if is_given else "drawn here, nothing given but the class"
    if result["drawing"]:
        source += ": " + ", ".join(f"{k.replace('_', '-')} {v:g}" for k, v in result["drawing"].items())
    return source


def groups_in_words(result: dict[str, Any]) -> str:
    """How many images of how many patients or videos each real set has."""
    if result["groups"] is None:
        return "How many patients the real images are of is not known."
    counts = {name: sum(result["counts"][name].values()) for name in result["groups"]}
    return "; ".join(
        f"{name.replace('_', ' ')}: {counts[name]} images of {groups} groups (patients or videos)"
        for name, groups in result["groups"].items()
    )


def _count_table(result: dict[str, Any]) -> str:
    counts = result["counts"]
    rows = [[name.replace("_", " "), *map(str, counts[name].values())] for name in counts]
    return table(["images", *result["classes"]], rows, "number of images of each class")


def _image_blocks(result: dict[str, Any], picture: Picture) -> list[str]:
    blocks = []
    if result["best_to_worst"]:
        realism = result["best_to_worst"]["realism"]
        blocks.append(
            picture(
                "best_and_worst",
                "Two grids: the generated images that look most like real test images, and those that look "
                f"least like them. Realism goes from {realism[0]:.2f} to {realism[-1]:.2f}, with a median of "
                f"{realism[len(realism) // 2]:.2f}.",
                "Chosen by realism (Kynkaanniemi et al. 2019, equation 3): above 1 an image lies among real "
                f"ones. {next(iter(result['judges']['stamps'].values()))}",
            )
        )
    blocks.append(
        picture(
            "samples",
            "Grid of images: for each class, real test images and those of the sets that are compared, "
            "without the training images.",
            "The first six of each class and set, not chosen.",
        )
    )
    return blocks


def _distance_blocks(result: dict[str, Any], picture: Picture) -> list[str]:
    stamps = result["judges"]["stamps"]
    stamp_list = ", ".join(stamps.values())
    return [
        picture(
            "kernel_distance",
            "Kernel distances with their spread, pooled and for each class; all values stand in the tables "
            "below. " + main_findings(result)[0],
            f"Bars: spread, a standard error over random halves. {stamp_list}",
        ),
        paragraph(agreement_words(result["extractors_agree"])),
        *(_distance_table(result, "pooled", extractor) for extractor in stamps),
        paragraph(
            "Precision: share of the set inside the neighbourhoods of real test images; recall: share of "
            "real test images inside those of the set. Precision, recall, density and coverage depend on "
            "the number of images (column before them), which is as good as equal in all lines: as many of a "
            "class as each set has. Read them beside the other lines only."
        ),
        paragraph(
            "In the pooled KD all classes weigh alike, but one that looks like no other can make up most of "
            f"it. {' '.join(_largest_part(result, extractor) for extractor in stamps)}"
        ),
        picture(
            "neighbours",
            "Bars of precision, recall, density and coverage for each set, as in the tables above.",
            f"k = {result['made_by']['settings']['neighbours']}. {stamp_list}",
        ),
        *(
            folded(
                f"Each class by {extractor}",
                [_distance_table(result, name, extractor) for name in result["classes"]],
            )
            for extractor in stamps
        ),
    ]


def _largest_part(result: dict[str, Any], extractor: str) -> str:
    """Which class makes up most of the generated images' kernel distance."""
    entry = result["distances"]["generated"]["pooled"]
    if (largest := entry.get(f"{extractor}-KD_largest_part")) is None:
        return ""
    return (
        f"Of the generated images' {extractor}-KD of {number(entry[f'{extractor}-KD'])}, {largest['class']} "
        f"alone makes {number(largest['part'])}; the median over classes is "
        f"{number(entry[f'{extractor}-KD_median_of_classes'])}."
    )


def _distance_table(result: dict[str, Any], group: str, extractor: str) -> str:
    """All distances by one extractor, of a class or "pooled"."""
    header = ["set", "images", "test", "groups of test", f"{extractor}-KD", "spread"]
    header += [f"{extractor}-FD", "at n", "FD, n infinite", "of images"]
    header += ["precision", "recall", "density", "coverage"]
    rows, components = [], None
    for name, groups in result["distances"].items():
        entry = {k.removeprefix(f"{extractor}-"): v for k, v in groups[group].items()}
        components = components or entry.get("FD_components")
        cells = [number(entry.get(key)) for key in ("KD", "KD_spread", "FD")]
        cells.append(str(entry.get("FD_images", "left out")))
        limit, deviation = (number(entry.get(f"FD_infinite{end}")) for end in ("", "_deviation"))
        cells.append(f"{limit} +- {deviation}" if "FD_infinite" in entry else limit)
        cells.append(str(entry.get("matched_images", "left out")))
        cells += [number(entry.get(key)) for key in ("precision", "recall", "density", "coverage")]
        counts = [str(entry[key]) for key in ("images", "real_test_images", "real_test_groups")]
        rows.append([SETS[name], *counts, *cells])
    stamp = result["judges"]["stamps"][extractor]
    over = f", FD over the first {components} components" if components else ""
    return table(header, rows, f"{group}, against real test images; {stamp}{over}")


def _use_blocks(result: dict[str, Any], picture: Picture) -> list[str]:
    use = result["classification_accuracy_score"]
    rows = []
    for kind, entry in use.items():
        cells = [str(entry["images"]), str(entry["generated_images"]), percent(entry["balanced_accuracy"])]
        cells.append(" ".join(percent(v) for v in entry["balanced_accuracy_of_each_seed"]))
        for key in ("interval_95_over_seeds", "interval_95_over_test_images"):
            cells.append(" to ".join(percent(v) for v in entry[key]))
        rows.append([USE[kind], *cells])
    header = [
        "trained on",
        "images",
        "of them generated",
        "balanced accuracy",
        "each seed",
        "95% over seeds",
        "95% over test images",
    ]
    tested = use["real"]["test_images"]
    return [
        paragraph(
            "Classification accuracy score: one small classifier, the same recipe each time, trained on each "
            "of these and tested on real test images. Generated images are useful as far as the second line "
            "comes near the first, and help where a mixture stands above it by more than the intervals."
        ),
        picture(
            "use",
            "Balanced accuracy of classifiers by what they were trained on, with intervals: "
            + ", ".join(f"{USE[kind]} {percent(entry['balanced_accuracy'])}" for kind, entry in use.items()),
            f"On {tested} real test images.",
        ),
        table(header, rows, f"balanced accuracy on {tested} real test images"),
    ]


def _fidelity_blocks(result: dict[str, Any], picture: Picture) -> list[str]:
    fidelity = result["class_fidelity"]
    kinds = {"real_test": "real test", "generated": "generated", "position_prior": "by frequency"}
    kinds = {kind: title for kind, title in kinds.items() if kind in fidelity}
    rows = [
        [
            name,
            *(
                f"{entry['right']} of {entry['images']}"
                + (
                    f" ({entry['interval_95'][0]:.0%} to {entry['interval_95'][1]:.0%})"
                    if entry["interval_95"]
                    else ""
                )
                for entry in (fidelity[kind]["per_class"][i] for kind in kinds)
            ),
        ]
        for i, name in enumerate(result["classes"])
    ]
    means = {kind: classes_right(fidelity[kind], result["classes"]) for kind in kinds}
    rows.append(["mean over classes", *means.values()])
    return [
        table(
            ["class", *(f"{title}: right" for title in kinds.values())],
            rows,
            f"by classifiers trained on real images, with 95% intervals; classifiers "
            f"{result['judges']['classifiers_sha256'][:12]}",
        ),
        picture(
            "confusion",
            "Two confusion matrices, real test images and generated images: "
            + ", ".join(f"{title} {means[kind]}" for kind, title in kinds.items())
            + " right in the mean over classes.",
            "Classifiers that err on real images say as little about generated ones.",
        ),
    ]


def _copy_blocks(result: dict[str, Any], picture: Picture) -> list[str]:
    header = ["in", "median to train", "same of test", "below 5% quantile of test", "95% interval"]
    header += ["train images hit", *(f"planted {kind}: found" for kind in PLANTS)]
    rows = []
    for space, entry in result["copies"].items():
        planted = entry.get("planted_copies_detected", {})
        rows.append(
            [
                space,
                number(entry["median_generated_to_train"]),
                number(entry["median_test_to_train"]),
                f"{entry['generated_below']} of {entry['generated_counted']} ({entry['share_below']:.1%})"
                if "generated_below" in entry
                else "left out",
                " to ".join(f"{v:.1%}" for v in entry.get("share_below_interval_95", [])) or "left out",
                f"{entry['share_of_train_that_is_nearest']:.0%} of {entry['train_images']}",
                *(
                    f"{planted[kind]['share_below_threshold']:.0%} of {planted[kind]['planted']}"
                    if kind in planted
                    else "left out"
                    for kind in PLANTS
                ),
            ]
        )
    smoothness = (
        "A picture decoded from tokens is softer than any real one, so the test images went through the "
        "VQ-VAE first (for the tokens: they were tokenised as the training images were). Tokens: all views "
        "that the transformer was trained on. Rebuilt: training images went through the VQ-VAE too."
        if "tokens" in result["copies"]
        else "They are as they are: pictures smoother than these fall below more easily, copied or not."
    )
    names = result["judges"]["stamps"]
    caption = "nearest training image; features: " + ", ".join(names.values())
    return [
        paragraph(
            "If more than 5% of the samples, beyond the interval, fall below the 5% quantile of the "
            "distances of test to train images of their class, they lie nearer to training images than new "
            "images do. Classes with fewer than 20 groups of test images share one quantile, for which these "
            "weigh by class as the samples do; a class of which each group would weigh over 5% there is not "
            f"counted. {smoothness} How many planted copies are found says how far each "
            "search can be trusted. Pixels: compared inside the training image's scan area, turned by up to "
            "10 degrees, moved by up to a sixteenth of the side and mirrored to fit, whatever the gain."
        ),
        table(header, rows, caption),
        *_copies_by_class(result),
        picture(
            "copies",
            "Histograms of the distance to the nearest training image in pixels, features and tokens: "
            "generated and test images. Medians and shares stand in the table above.",
            "Generated left of test: nearer to training images than real ones are.",
        ),
        *(
            folded(
                f"The twenty nearest pairs in {space}",
                is_open=space.startswith("pixels"),
                blocks=[
                    picture(
                        f"nearest_{space.replace(', ', '_')}",
                        f"The twenty generated images nearest to a training image in {space}, each above "
                        "that training image, with the distance.",
                        f"By {entry['by']}. Look at the first ones: are these the same picture?",
                    )
                ],
            )
            for space, entry in result["copies"].items()
        ),
    ]


def _copies_by_class(result: dict[str, Any]) -> list[str]:
    """A table with a row for each class that is counted: what each search finds in it."""
    searches = {
        space: entry["per_class"] for space, entry in result["copies"].items() if "per_class" in entry
    }
    rows: dict[int, list[str]] = {}
    for space, per_class in searches.items():
        for row in per_class:
            name = result["classes"][row["label"]] + " *" * row["is_threshold_shared"]
            is_conspicuous = row["generated_below"] > row["most_of_new"]
            found = f"{row['planted_below'][_plant(result, space)]} of {row['planted']}"
            rows.setdefault(row["label"], [name, str(row["generated"]), str(row["test_groups"])]).append(
                f"{row['generated_below']}{'!' * is_conspicuous} (new: up to {row['most_of_new']}; test: "
                f"{row['test_below'] / row['test_images']:.0%}); {found}"
            )
    caption = (
        "generated images below the quantile; in brackets the most that new images would give (in 19 of 20 "
        "evaluations no class of a search has more; ! marks one that has) and the share of the class's test "
        "images below; then the planted copies found, altered as in the summary on top. * fewer than 20 "
        "groups of test images: all such classes share a quantile, under which copies can hide"
    )
    header = ["class", "generated", "groups of test", *searches]
    return [table(header, list(rows.values()), caption)] if rows else []


def _variety_blocks(result: dict[str, Any], picture: Picture) -> list[str]:
    return [
        picture(
            "variety",
            "Mean structural similarity and feature distance of pairs within each class, for real, rebuilt, "
            "generated and trivially generated images; values in the table below.",
            "Less variety shows as higher SSIM and smaller distances than real images have; two real ones of "
            "a patient or video are no pair. " + ", ".join(result["judges"]["stamps"].values()),
        ),
        folded("Numbers", [_variety_table(result)]),
    ]


def _variety_table(result: dict[str, Any]) -> str:
    keys = ["ssim", *(f"{name}-distance" for name in result["judges"]["stamps"])]
    rows = [
        [f"{class_name}, {name.replace('_', ' ')}", str(entry["pairs"])]
        + [f"{entry[f'{key}_mean']:.3f} +- {entry[f'{key}_deviation']:.3f}" for key in keys]
        for class_name in result["classes"]
        for name, per_class in result["variety"].items()
        if (entry := per_class.get(class_name))
    ]
    stamps = ", ".join(result["judges"]["stamps"].values())
    return table(["class, set", "pairs", *keys], rows, f"mean and deviation over pairs of a class; {stamps}")


def _physics_blocks(result: dict[str, Any], picture: Picture) -> list[str]:
    titles = {"real_test": "real test images", **SETS}
    rows = [
        [
            titles[name],
            str(e["images"]),
            str(e["classes"]),
            f"{e['spectrum_difference_rms_db']:.1f}",
            f"{e['fine_detail_power_difference_db']:+.1f}",
            f"{e['grey_level_distance']:.1f}",
            number(e["speckle_difference_rms"]),
            number(e["depth_difference_rms_levels"], 1),
            f"{e['well_formed_share']:.0%} ({' to '.join(f'{v:.0%}' for v in e['well_formed_interval_95'])})",
        ]
        for name, e in result["physics"].items()
    ]
    header = ["set", "images", "classes", "spectrum, RMS dB", "fine detail, dB", "grey levels, distance"]
    header += ["speckle, RMS", "depth, RMS levels", "frame well formed (95% interval)"]
    return [
        picture(
            "physics",
            "Four panels of differences from real test images, which lie at 0: power over spatial frequency, "
            "shares of grey levels, autocorrelation of speckle, brightness along depth; in the table below.",
            "A fall at the right of the spectrum is lost speckle: compare with the rebuilt images.",
        ),
        table(header, rows, "difference from the real test images"),
        paragraph(
            "Classes weigh alike, whatever their counts: each curve, and the share of frames, is a mean "
            "over the classes that the set and the test images both have, and is compared with the test "
            "images of these. A frame is well formed when its outline is in one piece, not frayed, and as "
            "large as those of 98% of the real training images of its class."
        ),
    ]


def _bits_blocks(result: dict[str, Any], picture: Picture) -> list[str]:
    bits = result["bits_per_token"]
    if not bits:
        return [paragraph("Left out: these images are of a generator without our tokens.")]
    rows = [
        [
            name,
            str(e["images"]),
            number(e["bits_per_token"]),
            "-" if name in BY_FREQUENCY.values() else number(e["standard_error"]),
            *(number(v, 2) for v in e["bits_per_token_of_each_scale"]),
        ]
        for name, e in bits.items()
    ]
    header = ["split", "images", "mean", "standard error", *(f"{v} x {v}" for v in result["patch_nums"])]
    return [
        *([] if result["drawn_by_var"] else [paragraph(OF_VAR)]),
        picture(
            "bits_per_token",
            "Bits per token on each scale for train, val and test: "
            + ", ".join(f"{name} {e['bits_per_token']:.2f} on average" for name, e in bits.items())
            + ".",
            "Train below test: the transformer remembers its training images.",
        ),
        table(header, rows, "bits per token"),
    ]


def _sweep_blocks(result: dict[str, Any], picture: Picture) -> list[str]:
    sweep = result["sweep"]
    if not sweep:
        return [paragraph("By hand: no sweep was given (sweep_var.py, then --settings-from chosen.json).")]
    names = list(sweep["stamps"])
    keys = [f"{name}-KD" for name in names]
    rows = [
        [
            f"{row['axis'].replace('_', ' ')} = {row['value']:g}"
            + (f", {row['mode']}" if row["mode"] != "plain" else ""),
            str(row["images"]),
            *(f"{number(row[key])} +- {number(row[f'{key}_spread'])}" for key in keys),
            *(number(row[f"{name}-coverage"], 2) for name in names),
            percent(row["class_fidelity"]),
            "kept" if row["chosen"] else "",
        ]
        for row in sweep["rows"]
    ]
    header = ["setting", "images", *keys, *(f"{name}-coverage" for name in names), "class fidelity", ""]
    return [
        *([] if result["drawn_by_var"] else [paragraph(OF_VAR)]),
        paragraph(f"On the validation split, before this page's test split was read. {sweep['why']}"),
        picture(
            "sweep",
            "Kernel distance, coverage and class fidelity on val over each setting; values below.",
            "K above 0 is shown to see what a prefix brings; such pictures are never scored as generated. "
            "Real prefixes of val would be compared with the very images that they are of.",
        ),
        table(header, rows, "on val; " + ", ".join(sweep["stamps"].values())),
    ]


def _left_out_blocks(result: dict[str, Any]) -> list[str]:
    left_out = result["left_out"]
    if not left_out:
        return [paragraph("Nothing.")]
    rows = [[row["what"], row["why"]] for row in left_out]
    summary = f"{len(left_out)} things could not be computed at these numbers of images"
    return [folded(summary, [table(["what", "why"], rows, "left out")])]


def _origin_blocks(result: dict[str, Any]) -> list[str]:
    record = json.dumps(result["made_by"], indent=2)
    return [_hash_table(result), preformatted(record, "settings, code revision, file hashes")]


def _hash_table(result: dict[str, Any]) -> str:
    judges, files = result["judges"], result["made_by"]["inputs"]
    rows = [[f"extractor {name}", "weights", digest] for name, digest in judges["sha256"].items()]
    rows.append(["classifiers", "weights", judges["classifiers_sha256"]])
    rows += [[role.replace("_", " "), file["path"], file["sha256"]] for role, file in files.items()]
    return table(["what", "file", "SHA-256"], rows, "what was run with which files")
