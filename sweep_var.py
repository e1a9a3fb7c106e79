"""Choose guidance, top-k, top-p and temperature on the validation split; show what K prefix tokens bring.

    python sweep_var.py --data-root data/processed --var runs/var/ar-ckpt-best.pth \\
        --vqvae runs/vqvae/best.pth --tokens-dir runs/tokens
    python sample_var.py ... --settings-from runs/sweep/chosen.json
    python evaluate_var.py ... --settings-from runs/sweep/chosen.json --judges runs/sweep/judges.pth

One setting after the other is varied, the others held at the best found so far. Each point draws the same
images anew (same seeds) and measures kernel distance to the validation images, coverage, and the share that
classifiers of real images take for the class asked for. Of the settings whose kernel distance lies within one
spread of the lowest, and whose classes are not surely worse than the best of these, the one with the highest
coverage is kept: distances nearer than that cannot be told apart, and variety is lost unnoticed. The test
split is not read.

Writes to <out-dir>: chosen.json (for --settings-from), sweep.json (every point), sweep.png and judges.pth
(the networks that judge). Run the same command again to go on with the points that are missing; the values to
be tried may be others then, and points that were measured before are kept.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models.helpers import scale_boundaries
from usvar import (
    checks,
    cli,
    distributed,
    evaluation,
    evaluation_figures,
    judging,
    provenance,
    runs,
    tokens,
)
from usvar.chosen import DRAWING, Drawing
from usvar.errors import InputError
from usvar.evaluation import ImageSet
from usvar.files import read_record, write_json
from usvar.judging import Judges, JudgeTraining, ModelsWithTokens

# Settings that do not change a point: they may differ when a sweep goes on.
# What is varied is part of a point's name.
MAY_CHANGE = (
    "data_root",
    "var",
    "vqvae",
    "tokens_dir",
    "out_dir",
    "judges",
    "cfg",
    "top_p",
    "top_k",
    "temperature",
    "prefix_tokens",
    "batch_size",
    "device",
)

# What 0 stands for.
UNLIMITED = {"top_k": math.inf, "top_p": 1.0}
# Values that no other lies beyond: no guidance, one code, all codes.
ENDS: dict[str, tuple[float, ...]] = {
    "cfg": (0.0,),
    "top_k": (1, math.inf),
    "top_p": (1.0,),
    "temperature": (),
}


@dataclass(frozen=True)
class Settings:
    """What is varied, and on how many images."""

    # Prepared images: <data-root>/{train,val}/<Class>/*.png.
    data_root: Path

    # Transformer: ar-ckpt-best.pth of train_var.py.
    var: Path

    # The VQ-VAE that made its tokens.
    vqvae: Path

    # Token maps of train and val from tokenize_multiscale_maps.py.
    tokens_dir: Path

    # Table, figure, chosen.json and judges.pth are written here.
    out_dir: Path = Path("runs/sweep")

    # judges.pth of an earlier sweep or evaluation on these training images; how they were trained counts
    # instead of the settings below; none: train them.
    judges: Path | None = None

    # Images drawn for each class at each point.
    images_per_class: int = 100

    # Strengths of class guidance to try, varied first; it grows with the scale; 0: none.
    cfg: tuple[float, ...] = (0.0, 1.0, 1.5, 2.0, 3.0)

    # Values to try: draw only from the most likely codes whose probabilities add up to this, 0 to 1; 0: from
    # all.
    top_p: tuple[float, ...] = (0.0, 0.9, 0.95, 0.99)

    # Values to try: draw only from this many most likely codes; 0: from all.
    top_k: tuple[int, ...] = (0, 100, 300, 900)

    # Values to try: divides the logits, below 1 less varied, above 1 more.
    temperature: tuple[float, ...] = (0.8, 0.9, 1.0, 1.1, 1.2)

    # Prefix tokens, on scale boundaries, shown with a real prefix and one by frequency; none given: all
    # boundaries but the last. Never chosen: pictures with a prefix are not scored as generated.
    prefix_tokens: tuple[int, ...] = ()

    # Training steps of each extractor.
    extractor_steps: int = 1500

    # Side in pixels that images are averaged to for extractors and classifiers.
    extractor_pixels: int = 128

    # Training steps of each classifier.
    classifier_steps: int = 1000

    # Number of classifiers, 3 or more.
    classifier_seeds: int = 3

    # k of coverage and recall.
    neighbours: int = 3

    # Images at once.
    batch_size: int = 32

    # auto (a GPU if there is one), cpu, cuda or cuda:1.
    device: str = "auto"

    # Seed of samples, networks and subsets.
    seed: int = 0


# Where each setting starts, before it is varied: plain sampling with the defaults of sample_var.py.
START = Drawing(cfg=1.5, top_k=0, top_p=0.95, temperature=1.0)


def check(s: Settings, boundaries: list[int]) -> None:
    """Refuse settings that make no sense before anything is written."""
    judging.check_shared(s)
    checks.require(s, f"{evaluation.least_images(s.neighbours)} or more", "images_per_class")
    for name in DRAWING:
        if not getattr(s, name):
            raise InputError(f"{checks.flag(name)} was given without a value: give one or more")
        for value in getattr(s, name):
            replace(START, **{name: value}).check()
    tokens.check_prefix_tokens(s.prefix_tokens, boundaries[:-1])


def judgeable(s: Settings, val: ImageSet, classes: tuple[str, ...]) -> tuple[ImageSet, list[str]]:
    """The validation images of classes that have enough of them, and the names of the other classes.

    A class without spread or neighbourhoods is left out on both sides, or it would count as a difference.

    Raises:
        InputError: when no class has enough.
    """
    least = evaluation.least_images(s.neighbours)
    few = evaluation.small_classes(val.label_N, classes, least)
    if len(few) == len(classes):
        raise InputError(
            f"{s.data_root / 'val'} has at most {max(few.values())} images of a class, wanted {least} or "
            f"more with --neighbours {s.neighbours}: prepare more data"
        )
    judged = [label for label, name in enumerate(classes) if name not in few]
    return val.take(np.flatnonzero(np.isin(val.label_N, judged))), list(few)


def measure(
    s: Settings, models: ModelsWithTokens, judges: Judges, val: ImageSet, drawing: Drawing, mode: str, K: int
) -> dict[str, Any]:
    """Draw images for one point, and compare them with the validation images.

    Real prefixes are of training images: pictures that start from those of val would be scored against the
    very images that they start from.

    Args:
        s: number of images, seeds, and k of the measures of neighbours.
        models: both models and the training token maps, which prefixes are drawn from.
        judges: extractors and classifiers.
        val: real images with their features; only their classes are drawn.
        drawing: how tokens are drawn.
        mode: "plain"; "tp", with the first tokens of a real image given; or "nop", with these drawn by
            frequency.
        K: tokens given, 0 in "plain".

    Returns:
        "images" and "val_images"; KD, its spread, precision, recall, density and coverage, each behind the
        name of its extractor; and "class_fidelity".
    """
    labels, real = np.unique(val.label_N), models.maps["train"]

    def draw_prefix(label_B: np.ndarray, seeds: list[int]) -> np.ndarray:
        if mode == "nop":
            prefix_BK = tokens.draw_from_position_prior(real, label_B.tolist(), K, seeds)
        else:
            rows_B = [tokens.rows_of_class(real, int(label)) for label in label_B]
            rows = [rows[seed % len(rows)] for rows, seed in zip(rows_B, seeds, strict=True)]
            prefix_BK = real.idx_NL[rows, :K]
        return tokens.known_from_prefix(prefix_BK, models.var.L)

    known = None if mode == "plain" else draw_prefix
    # A separate stream: the evaluation must not reuse the very samples that the settings were chosen on.
    fake = judging.draw_samples(
        models, drawing, s.images_per_class, s.seed, s.batch_size, known, labels=labels, stream="sweep"
    )
    judges.describe(fake)
    row: dict[str, Any] = {"images": len(fake), "val_images": len(val)}
    for name in judges.extractors:
        fake_ND, real_MD = fake.features[name], val.features[name]
        row[f"{name}-KD"], row[f"{name}-KD_spread"] = evaluation.kernel_distance(
            fake_ND, real_MD, fake.label_N, val.label_N, real_group_M=val.group_N, seed=s.seed
        )
        near = evaluation.manifold_measures(fake_ND, real_MD, s.neighbours)
        row |= {f"{name}-{key}": value for key, value in near.items()}
    device = next(models.var.parameters()).device
    row["class_fidelity"] = judging.class_fidelity(judges, fake, device)["balanced_accuracy"]
    return row


def within_a_spread(rows: list[dict[str, Any]]) -> list[int]:
    """The rows whose kernel distance lies within one spread of the lowest."""
    distance = f"{judging.SUPERVISED}-KD"
    lowest = min(rows, key=lambda row: row[distance])
    highest_distance = lowest[distance] + lowest[f"{distance}_spread"]
    return [i for i, row in enumerate(rows) if row[distance] <= highest_distance]


def best_of(rows: list[dict[str, Any]]) -> int:
    """The row to keep, see the head of this file.

    Coverage counts real images that have a generated one near them. Recall would not do: pictures that are
    noise have large neighbourhoods, and many real ones lie inside.
    """
    near = within_a_spread(rows)
    best_class = max((rows[i] for i in near), key=lambda row: row["class_fidelity"])
    right = round(best_class["class_fidelity"] * best_class["images"])
    lowest_fidelity, _ = evaluation.wilson_interval(right, best_class["images"])
    near = [i for i in near if rows[i]["class_fidelity"] >= lowest_fidelity]
    name = judging.SUPERVISED
    return max(near, key=lambda i: (rows[i][f"{name}-coverage"], -rows[i][f"{name}-KD"]))


def print_point(drawing: Drawing, mode: str, K: int, row: dict[str, Any], extractors: list[str]) -> None:
    """One line with what `measure` found."""
    distances = (
        f"{name}-KD {row[f'{name}-KD']:.3f} +- {row[f'{name}-KD_spread']:.3f}" for name in extractors
    )
    print(
        f"{drawing}  {mode} K = {K}: {'  '.join(distances)}"
        f"  coverage {row[f'{judging.SUPERVISED}-coverage']:.2f}  class right {row['class_fidelity']:.0%}"
    )


def reason(
    s: Settings,
    tried: int,
    val_images: int,
    left_out: list[str],
    at_edge: list[str],
    excluded: dict[str, int],
) -> str:
    """Why the settings were chosen, in words.

    Args:
        s: how they were looked for.
        tried: settings that were compared.
        val_images: images that they were compared with.
        left_out: classes with too few of these.
        at_edge: see `edges`.
        excluded: setting -> how many of its values were too far away to be kept.
    """
    words = (
        f"Of {tried} settings with {s.images_per_class} images per class, varied one after another: the "
        f"highest {judging.SUPERVISED}-coverage among those within one spread of the lowest "
        f"{judging.SUPERVISED}-KD to {val_images} validation images whose classes are not surely worse"
    )
    if left_out:
        least = evaluation.least_images(s.neighbours)
        words += f" (without {', '.join(left_out)}: under {least} validation images)"
    counts = (f"{n} of {len(getattr(s, axis))} {checks.flag(axis)}" for axis, n in excluded.items())
    words += f". The distance alone left out {', '.join(counts)}."
    if at_edge:
        words += f" At the edge of what was tried: {', '.join(at_edge)}; values beyond it may be better."
    return words


def edges(s: Settings, chosen: Drawing) -> list[str]:
    """The chosen values, as flags, that are the lowest or highest tried, where there are values beyond."""
    at_edge = []
    for name, value in vars(chosen).items():
        unlimited = UNLIMITED.get(name, 0.0)
        tried = {number or unlimited for number in getattr(s, name)}
        place = value or unlimited
        if len(tried) > 1 and place in (min(tried), max(tried)) and place not in ENDS[name]:
            at_edge.append(f"{checks.flag(name)} {value:g}")
    return at_edge


def main(s: Settings) -> None:
    """Vary one setting after the other, keep the best, then show K."""
    device = distributed.choose_device(s.device)
    models = judging.load_models(s.data_root, s.var, s.vqvae, s.tokens_dir, ("train", "val"), device)
    boundaries = scale_boundaries(models.var.patch_nums)
    check(s, boundaries)
    checks.require_class_drop(max(s.cfg), models.config)
    s = judging.with_their_training(s, s.judges)
    inputs = {"var": s.var, "vqvae": s.vqvae} | {f"{k}_tokens": v.file for k, v in models.maps.items()}
    inputs["manifest"] = judging.find_manifest(s.data_root)  # its groups decide KD and its spread
    record = provenance.made_by("sweep_var.py", s, inputs)
    # Said when there is none, too, or points would be kept when one was taken away.
    record["inputs"].setdefault("manifest", {"path": "manifest.csv", "sha256": None})
    earlier, points = read_record(s.out_dir / "sweep.json", "made_by", "points"), {}
    if earlier:
        runs.refuse_other_settings(s.out_dir / "sweep.json", earlier["made_by"], record, MAY_CHANGE)
        points = earlier["points"]
    own_judges = s.out_dir / "judges.pth"
    judges_path = s.judges or (own_judges if own_judges.is_file() else None)
    if judges_path and not s.judges:
        judging.refuse_other_judges(own_judges, JudgeTraining.of(s))
    run = runs.RunFolder(s.out_dir, record)
    cache, group_of = s.out_dir / "cache", judging.read_groups(s.data_root)
    (train, train_files), (val, _) = (
        judging.read_split(s.data_root, split, models.classes, models.size, cache, group_of, str(s.vqvae))
        for split in ("train", "val")
    )
    val, left_out = judgeable(s, val, models.classes)
    if left_out:
        least = evaluation.least_images(s.neighbours)
        print(f"left out, with under {least} validation images: {', '.join(left_out)}")

    # From here on the folder belongs to these settings, its judges as well.
    write_json(s.out_dir / "sweep.json", {"made_by": record, "points": points})
    points_before = len(points)
    judges = judging.read_or_train(
        judges_path, own_judges, train, train_files, JudgeTraining.of(s), device, record
    )
    judges.describe(val)
    stamps = judges.stamps
    printed: set[str] = set()

    def point(drawing: Drawing, mode: str = "plain", K: int = 0) -> dict[str, Any]:
        key = f"{drawing!r} {mode} {K} {stamps}"
        if key not in points:
            points[key] = measure(s, models, judges, val, drawing, mode, K)
            write_json(s.out_dir / "sweep.json", {"made_by": record, "points": points})
        if key not in printed:  # where each setting starts, and K = 0, are met several times
            printed.add(key)
            print_point(drawing, mode, K, points[key], list(stamps))
        return points[key]

    rows: list[dict[str, Any]] = []
    chosen, compared = START, set()
    excluded: dict[str, int] = {}
    for axis in ("cfg", "top_p", "top_k", "temperature"):
        values = getattr(s, axis)
        varied = [replace(chosen, **{axis: value}) for value in values]
        measured = [point(drawing) for drawing in varied]
        compared |= set(varied)
        excluded[axis] = len(measured) - len(within_a_spread(measured))
        print(
            f"{judging.SUPERVISED}-KD excludes {excluded[axis]} of {len(values)} {checks.flag(axis)}"
            + ("" if excluded[axis] else ": class fidelity and coverage decide")
        )
        best = best_of(measured)
        chosen = varied[best]
        rows += [
            row | {"axis": axis, "value": value, "mode": "plain", "chosen": i == best}
            for i, (value, row) in enumerate(zip(values, measured, strict=True))
        ]
    for mode in ("tp", "nop"):
        for K in s.prefix_tokens or boundaries[:-1]:
            row = point(chosen, mode if K else "plain", K)
            rows.append(row | {"axis": "K", "value": K, "mode": mode, "chosen": K == 0})

    if at_edge := edges(s, chosen):
        print(f"note: chosen at the edge of what was tried: {', '.join(at_edge)}; try values beyond it")
    why = reason(s, len(compared), len(val), left_out, at_edge, excluded)
    sweep = {"why": why, "stamps": stamps, "rows": rows}
    evaluation_figures.draw_sweep(s.out_dir / "sweep.png", sweep)
    write_json(
        s.out_dir / "chosen.json",
        {"chosen": vars(chosen), "var_sha256": models.var_sha256, **sweep, "made_by": record},
    )
    run.close()
    if len(points) == points_before:
        print(f"nothing to do: all {len(printed)} points are in {s.out_dir / 'sweep.json'}")
    print(f"chosen: {chosen}; see {s.out_dir / 'sweep.png'}, use --settings-from {s.out_dir / 'chosen.json'}")


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
