"""Do the measures of evaluate_var.py move when pictures get worse, and only then? A ladder of known faults.

    python benchmarks/evaluation_ladder.py --data-root data/processed --out-dir runs/ladder

No model is needed. All prepared pictures are split anew, by organ and by the groups of manifest.csv: half to
train extractors and to be copied from, half that no network saw. Of these, one half is spoilt by known
amounts (blur, noise, JPEG, wrong organ, dropped organs, collapse to ten pictures, copies of training
pictures) and compared with the other. Writes ladder.json and ladder.png, and fails when a measure that
should move does not, or moves out of order:

- each distance (kernel and Fréchet, both extractors) rises with each fault, and with its strength;
- recall and coverage fall with collapse; class fidelity falls with the wrong organ;
- real against real is at the floor: its kernel distance is 0 within three times its spread;
- the share of near copies rises in step with the copies, in pixels and by both extractors. The distances
  hardly see copies, which is why a low distance alone is no praise.

Tests run the same ladder on simple made pictures.
"""

import csv
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

# A script's own folder is on the path, the repository's root is not: usvar lies there.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from usvar import cli, copies, distributed, evaluation, images, judging, plots, provenance
from usvar.errors import InputError
from usvar.evaluation import ImageSet
from usvar.files import write_json
from usvar.judging import Judges

COMPONENTS = 16
# Fault -> strengths, mild first, and what is written at the ticks.
LADDER: dict[str, tuple[float, ...]] = {
    "blur, sigma in pixels": (0.7, 1.5, 3.0, 6.0),
    "noise, grey levels": (5, 15, 40, 80),
    "JPEG, 100 - quality": (50, 80, 92, 98),
    "wrong organ, share": (0.1, 0.3, 0.6, 0.9),
    "dropped classes": (1, 2, 3),
    "collapse, pictures left a class": (10, 5, 2, 1),
    "copies, share": (0.1, 0.3, 0.5, 0.7, 0.9),
}
COPIES = "copies, share"
# What the figure calls faults and measures whose names in ladder.json read otherwise.
TITLES = {
    "collapse, pictures left a class": "collapse, pictures left per class",
    "class_fidelity": "class fidelity",
}


@dataclass(frozen=True)
class Settings:
    """On which pictures, and how long the extractors train."""

    # Prepared images with their manifest.csv, from prepare_datasets.py.
    data_root: Path

    # Tables and figures are written here.
    out_dir: Path = Path("runs/ladder")

    # judges.pth of an earlier run on these training images; none: train them.
    judges: Path | None = None

    # Training steps of each extractor.
    extractor_steps: int = 400

    # Training steps of each classifier.
    classifier_steps: int = 300

    # Side in pixels that images are averaged to.
    extractor_pixels: int = 64

    # Most pictures of each of the three parts: spoilt, compared with, and copied from.
    images: int = 1000

    # auto (a GPU if there is one), cpu, cuda or cuda:1.
    device: str = "auto"

    # Seed of networks and faults.
    seed: int = 0


def spoil(fault: str, strength: float, good: ImageSet, train: ImageSet, seed: int = 0) -> ImageSet:
    """Real pictures with one fault.

    Args:
        fault: a key of LADDER.
        strength: one of its values.
        good: the pictures.
        train: training images, for copies.
        seed: of the choice of pictures and of the noise.
    """
    rng = np.random.default_rng(seed)
    grey_NHW, label_N = np.array(good.grey_NHW), np.array(good.label_N)
    if fault.startswith("blur"):
        grey_NHW = ndimage.gaussian_filter(grey_NHW.astype(np.float32), (0, strength, strength))
    elif fault.startswith("noise"):
        # Not outside the scan area, which stays black: the frame is another fault.
        grey_NHW = grey_NHW + (grey_NHW > 0) * rng.normal(0, strength, grey_NHW.shape)
    elif fault.startswith("JPEG"):
        grey_NHW = np.stack([_through_jpeg(grey_HW, 100 - int(strength)) for grey_HW in grey_NHW])
    elif fault.startswith("wrong organ"):
        classes = np.unique(label_N)
        wrong_N = np.searchsorted(classes, label_N) + rng.integers(1, len(classes), len(label_N))
        changed = rng.permutation(len(label_N))[: round(strength * len(label_N))]
        label_N[changed] = classes[wrong_N[changed] % len(classes)]
    elif fault.startswith("dropped"):
        kept = np.isin(label_N, np.unique(label_N)[int(strength) :])
        grey_NHW, label_N = grey_NHW[kept], label_N[kept]
    elif fault.startswith("collapse"):
        rows = []
        for label in np.unique(label_N):
            members = np.flatnonzero(label_N == label)
            rows.append(np.resize(rng.permutation(members)[: int(strength)], len(members)))
        grey_NHW, label_N = grey_NHW[np.concatenate(rows)], label_N[np.concatenate(rows)]
    elif fault == COPIES:
        order = rng.permutation(len(label_N))
        for row in order[: round(strength * len(label_N))]:
            source = rng.choice(np.flatnonzero(train.label_N == label_N[row]))
            grey_NHW[row] = train.grey_NHW[source]
    else:
        raise ValueError(f"found fault {fault!r}, wanted one of {', '.join(LADDER)}")
    return ImageSet(np.clip(np.rint(grey_NHW), 0, 255).astype(np.uint8), label_N)


def _through_jpeg(grey_HW: np.ndarray, quality: int) -> np.ndarray:
    memory = io.BytesIO()
    Image.fromarray(grey_HW).save(memory, "JPEG", quality=quality)
    return np.asarray(Image.open(memory))


def measure(
    fake: ImageSet,
    real: ImageSet,
    judges: Judges,
    near: Callable[[ImageSet], dict[str, np.ndarray]],
    limit: dict,
) -> dict[str, Any]:
    """Every measure of one rung.

    Args:
        fake: spoilt pictures.
        real: good ones to compare with.
        judges: extractors and classifiers.
        near: a set -> distances to the nearest training image by each search.
        limit: search -> distance that 5% of the good pictures lie below.
    """
    judges.describe(fake)
    row: dict[str, Any] = {"images": len(fake), "real_images": len(real)}
    for name in judges.extractors:
        fake_ND, real_MD = fake.features[name], real.features[name]
        row[f"{name}-KD"], row[f"{name}-KD_spread"] = evaluation.kernel_distance(
            fake_ND, real_MD, fake.label_N, real.label_N
        )
        limit_of = evaluation.frechet_extrapolated(fake_ND[:, :COMPONENTS], real_MD[:, :COMPONENTS])
        row[f"{name}-FD"] = limit_of["FD_infinite"]
        row[f"{name}-FD_spread"] = limit_of["FD_infinite_deviation"]
        row |= {f"{name}-{k}": v for k, v in evaluation.manifold_measures(fake_ND, real_MD).items()}
        # Of the class: what the pooled distance cannot see when organs are exchanged.
        row[f"{name}-KD of classes"] = float(
            np.mean(
                [
                    evaluation.kernel_distance(
                        *(x.of_class(k).features[name] for x in (fake, real)), subsets=1
                    )[0]
                    for k in np.unique(fake.label_N)
                    if min((x.label_N == k).sum() for x in (fake, real)) >= 4
                ]
            )
        )
    device = judges.classifiers[0].head.weight.device
    row["class_fidelity"] = judging.class_fidelity(judges, fake, device)["balanced_accuracy"]
    row |= {f"copies in {k}": float((v < limit[k]).mean()) for k, v in near(fake).items()}
    return row


def climb(
    good: ImageSet,
    real: ImageSet,
    train: ImageSet,
    judges: Judges,
    ladder: dict[str, tuple[float, ...]] = LADDER,
    seed: int = 0,
) -> dict[str, list[dict[str, Any]]]:
    """The whole ladder: fault -> one row per strength, the first with strength 0.

    Args:
        good: real pictures that are spoilt.
        real: other real pictures, to compare with; of the same source as `good`.
        train: training images, to copy from and to search in; neither in `good` nor in `real`.
        judges: extractors and classifiers.
        ladder: fault -> strengths.
        seed: of the faults.
    """
    pixel_search = copies.PixelSearch(train.grey_NHW)
    for found in (good, real, train):
        judges.describe(found)
    mirror = ImageSet(copies.mirrored(train.grey_NHW), train.label_N)
    judges.describe(mirror)

    def near(found: ImageSet) -> dict[str, np.ndarray]:
        distance = {"pixels": pixel_search(found.grey_NHW)[0]}
        for name in judges.extractors:
            features = (x.features[name] for x in (found, train, mirror))
            distance[name] = copies.nearest_in_features(*features)[0]
        return distance

    limit = {name: float(np.quantile(values, 0.05)) for name, values in near(real).items()}
    start = measure(good, real, judges, near, limit)
    rungs: dict[str, list[dict[str, Any]]] = {}
    for fault, strengths in ladder.items():
        rungs[fault] = [start | {"strength": 0.0}]
        for strength in tqdm(strengths, fault, leave=False, file=sys.stdout):
            fake = spoil(fault, strength, good, train, seed)
            rungs[fault].append(measure(fake, real, judges, near, limit) | {"strength": float(strength)})
    return rungs


def expectations(extractors: list[str]) -> Iterator[tuple[str, str, int]]:
    """Fault, measure, and +1 where it must rise with each rung or -1 where it must fall."""
    for fault in LADDER:
        for name in extractors:
            if fault == COPIES:
                continue
            # Exchanged organs leave the pooled pictures as they are; the distance of the classes must rise.
            distance = "KD of classes" if fault.startswith("wrong organ") else "KD"
            yield fault, f"{name}-{distance}", 1
            if not fault.startswith("wrong organ"):
                yield fault, f"{name}-FD", 1
            if fault.startswith("collapse"):
                yield fault, f"{name}-recall", -1
                yield fault, f"{name}-coverage", -1
            if fault.startswith("dropped"):
                yield fault, f"{name}-recall", -1
    yield "wrong organ, share", "class_fidelity", -1
    for space in ("pixels", *extractors):
        yield COPIES, f"copies in {space}", 1


def faults_of_the_measures(rungs: dict[str, list[dict[str, Any]]], extractors: list[str]) -> list[str]:
    """What did not go as `expectations` say, in words; none is what should be.

    A step may go the wrong way by a twentieth of the whole way or half a standard error: faults are random.
    """
    wrong = []
    for fault, measure_name, sign in expectations(extractors):
        if fault not in rungs:
            continue
        values = sign * np.array([row[measure_name] for row in rungs[fault]])
        whole = values[-1] - values[0]
        spread = max(row.get(f"{measure_name}_spread", 0.0) for row in rungs[fault])
        if whole <= 0 or np.diff(values).min() < -max(0.05 * whole, 0.5 * spread):
            wrong.append(f"{fault}: {measure_name} goes {np.round(sign * values, 3).tolist()}")
    start = next(iter(rungs.values()))[0]
    for name in extractors:
        if abs(start[f"{name}-KD"]) > 3 * start[f"{name}-KD_spread"]:
            wrong.append(f"real against real: {name}-KD {start[f'{name}-KD']:.3f} is not at the floor")
    if COPIES in rungs:
        for row in rungs[COPIES][1:]:
            if row["copies in pixels"] < 0.9 * row["strength"]:
                wrong.append(f"{row['strength']:.0%} copies, found in pixels {row['copies in pixels']:.0%}")
    return wrong


def draw(out_dir: Path, rungs: dict[str, list[dict[str, Any]]], stamps: dict[str, str]) -> None:
    """One column per fault, over its strength; one row per measure: distances, shares, copies."""
    names = list(stamps)
    rows = {
        "kernel distance": [f"{name}-KD" for name in names],
        "kernel distance within classes": [f"{name}-KD of classes" for name in names],
        f"Fréchet distance, n infinite,\n{COMPONENTS} components": [f"{name}-FD" for name in names],
        "share": [f"{names[0]}-{key}" for key in ("precision", "recall", "coverage")] + ["class_fidelity"],
        "nearer to a training image\nthan 95% of real ones": ["copies in pixels"]
        + [f"copies in {name}" for name in names],
    }
    figure, axes = plt.subplots(
        len(rows),
        len(rungs),
        figsize=(2.45 * len(rungs), 2.3 * len(rows)),
        layout="constrained",
        sharey="row",
    )
    for column, (fault, found) in enumerate(rungs.items()):
        ticks = ["real"] + [f"{row['strength']:g}" for row in found[1:]]
        for row, (title, keys) in enumerate(rows.items()):
            axis = axes[row, column]
            for key, marker in zip(keys, "os^v", strict=False):
                spread = [r.get(f"{key}_spread", 0) for r in found]
                values = [r[key] for r in found]
                label = TITLES.get(key, key)
                axis.errorbar(range(len(found)), values, spread, marker=marker, markersize=4, label=label)
            axis.set_xticks(range(len(found)), ticks)
            if row < 3:
                axis.set_yscale("symlog", linthresh=0.1 if row < 2 else 1.0)
            if column == 0:
                axis.set_ylabel(title, fontsize=8)
                axis.legend(fontsize=6)
        axes[0, column].set_title(TITLES.get(fault, fault), fontsize=9)
    start = next(iter(rungs.values()))[0]
    figure.suptitle(
        f"Real pictures spoilt by known amounts, {start['images']} against {start['real_images']} real ones "
        f"({', '.join(stamps.values())})"
    )
    plots.save(figure, out_dir / "ladder.png")


def split_anew(s: Settings) -> tuple[list[images.ImageFiles], tuple[str, ...], int]:
    """Pictures to train on, to spoil and to compare with; organs; side in pixels.

    Pictures of one group (patient, video, near duplicates) are all for training or all not. The unseen ones
    are halved at random, so that the two halves are of one source whatever the groups.
    """
    path = s.data_root / "manifest.csv"
    if not path.is_file():
        raise InputError(f"{path} is missing: give the --out-root of prepare_datasets.py")
    with open(path, encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["file"])
    groups, rng = sorted({row["group"] for row in rows}), np.random.default_rng(s.seed)
    for_training = {groups[i] for i in rng.permutation(len(groups))[: len(groups) // 2]}
    unseen = [row for row in rows if row["group"] not in for_training]
    halves: list[list[dict[str, str]]] = [[], []]
    for organ in sorted({row["organ"] for row in unseen}):
        members = [row for row in unseen if row["organ"] == organ]
        order = rng.permutation(len(members))
        for half, chosen in zip(halves, (order[::2], order[1::2]), strict=True):
            half += [members[i] for i in chosen] if len(members) >= 16 else []
    trained = [row for row in rows if row["group"] in for_training]
    organs = tuple(sorted({row["organ"] for row in halves[0]}))
    parts = []
    for part in (trained, *halves):
        kept = [row for row in part if row["organ"] in organs]
        kept = [kept[i] for i in sorted(rng.permutation(len(kept))[: s.images])]
        label_N = np.array([organs.index(row["organ"]) for row in kept])
        parts.append(
            images.ImageFiles(s.data_root, "ladder", tuple(r["file"] for r in kept), label_N, organs)
        )
    # The Fréchet distance wants so many; the fewest are left where most organs are dropped.
    label_N, dropped = parts[1].label_N, int(max(LADDER["dropped classes"]))
    left = int(np.isin(label_N, np.unique(label_N)[dropped:]).sum())
    if min(left, len(parts[2])) < 2 * COMPONENTS:
        raise InputError(
            f"{s.data_root} has {len(rows)} pictures, {len(organs)} organs with enough of them: {left} to "
            f"spoil once {dropped} organs are dropped, {len(parts[2])} to compare with, wanted "
            f"{2 * COMPONENTS} or more of both: prepare more organs, or about 150 pictures of each of 4"
        )
    return parts, organs, images.image_size(parts[0])


def main(s: Settings) -> None:
    """Train or read the judges, climb, draw, and fail if a measure does not do what it should."""
    device = distributed.choose_device(s.device)
    parts, classes, size = split_anew(s)
    (train_files, *_), (train, good, real) = (
        parts,
        [ImageSet(images.read_images(part, range(len(part)), size), part.label_N) for part in parts],
    )
    record = provenance.made_by("evaluation_ladder.py", s, {"judges": s.judges})
    how = judging.JudgeTraining(
        extractor_pixels=s.extractor_pixels,
        extractor_steps=s.extractor_steps,
        classifier_steps=s.classifier_steps,
        classifier_seeds=3,
        seed=s.seed,
    )
    judges = judging.read_or_train(
        s.judges, s.out_dir / "judges.pth", train, train_files, how, device, record
    )
    counts = f"{len(train)} pictures to train on, {len(good)} to spoil, {len(real)} to compare"
    print(f"{counts}; {', '.join(classes)}")
    rungs = climb(good, real, train, judges, seed=s.seed)
    stamps = judges.stamps
    wrong = faults_of_the_measures(rungs, list(judges.extractors))
    write_json(
        s.out_dir / "ladder.json", {"made_by": record, "stamps": stamps, "rungs": rungs, "wrong": wrong}
    )
    draw(s.out_dir, rungs, stamps)
    print(
        "\n".join(["every measure that should move does, in order" if not wrong else "NOT in order:", *wrong])
    )
    print(f"see {s.out_dir / 'ladder.png'}")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
