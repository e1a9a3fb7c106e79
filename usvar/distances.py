"""How far each set of images lies from the real test images, and whether the extractors agree on it.

The measures are those of usvar/evaluation.py; here is said between which images, and what is left out where
they are too few.

Axes: N and M images of two sets, D features, C classes.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from usvar import evaluation
from usvar.evaluation import SETS, ImageSet, note

# Principal components that the Fréchet distance is taken over: all, or as many of these as there are
# GROUPS_PER_COMPONENT groups of test images for.
FEW_COMPONENTS, GROUPS_PER_COMPONENT = (16, 8), 4


def equal_counts(sets: dict[str, ImageSet], num_classes: int, seed: int) -> dict[str, ImageSet]:
    """As many images per class in each set, so that measures which depend on the number compare.

    The reconstructions stay as they are: there is one for each test image, and `compare` cuts them. A class
    that the generated images lack stays in the others: leaving it out would hide that it is missing.
    """
    generated_C, train_C = (
        np.bincount(sets[name].label_N, minlength=num_classes) for name in ("generated", "real_train")
    )
    most_C = np.minimum(np.where(generated_C, generated_C, generated_C.max()), train_C)
    return {
        name: image_set
        if name == "reconstructed_test"
        else image_set.take(rows_of_each_class(image_set.label_N, most_C, seed))
        for name, image_set in sets.items()
    }


def fewest_of_each_class(sets: Iterable[ImageSet], num_classes: int) -> np.ndarray:
    """(C,) images that each set has of a class, but for sets that lack it."""
    counts_KC = np.stack([np.bincount(x.label_N, minlength=num_classes) for x in sets])
    return np.where(counts_KC, counts_KC, counts_KC.max()).min(0)


def rows_of_each_class(label_N: np.ndarray, most_C: np.ndarray, seed: int) -> np.ndarray:
    """At most so many rows of each class at random, class by class."""
    rng = np.random.default_rng(seed)
    chosen = [
        np.sort(rng.permutation(np.flatnonzero(label_N == label))[:most]) for label, most in enumerate(most_C)
    ]
    return np.concatenate(chosen)


def all_distances(
    sets: dict[str, ImageSet],
    test: ImageSet,
    classes: tuple[str, ...],
    stamps: dict[str, str],
    neighbours: int,
    seed: int,
    left_out: list[dict[str, str]],
) -> dict[str, Any]:
    """Every set against the test images, pooled and for each class, by every extractor.

    A class with fewer test images than a ball has neighbours is left out of the pooled numbers too: its balls
    would reach into other classes, and nearly anything would count as precise.

    In the pooled kernel distance classes weigh alike, but not their features: a rare class that looks like no
    other can make up most of it. So the largest part of a single class stands beside it, and the median over
    classes.

    Args:
        sets: images by name, those of evaluation.SETS, with their features.
        test: the real test images, with theirs.
        classes: names; index = label.
        stamps: extractor -> its name and hash, kept beside the numbers.
        neighbours: k of precision, recall, density and coverage.
        seed: of random halves and orders.
        left_out: what could not be computed is added here.

    Returns:
        Set -> "pooled" or class -> numbers.
    """
    least = evaluation.least_images(neighbours)
    judged = [i for i in range(len(classes)) if len(test.of_class(i)) >= least]
    for i in sorted(set(range(len(classes))) - set(judged)):
        note(left_out, f"{classes[i]} in the pooled distances", f"under {least} test images")
    for name, image_set in {"test": test, "train": sets["real_train"]}.items():
        for i in judged:
            if 0 < image_set.of_class(i).num_groups < evaluation.LEAST_GROUPS:
                why = f"under {evaluation.LEAST_GROUPS} of {name}: KD takes its images for independent"
                note(left_out, f"groups of {classes[i]}", why)
    most_C = fewest_of_each_class([test, *sets.values()], len(classes))
    of_judged_C = most_C * np.isin(np.arange(len(classes)), judged)
    groups = test.take(rows_of_each_class(test.label_N, of_judged_C, seed)).num_groups
    labels_of = {"pooled": judged} | {name: [i] for i, name in enumerate(classes)}
    distances: dict[str, Any] = {}
    for name, image_set in sets.items():
        distances[name] = {}
        for where, labels in labels_of.items():
            fake, real = (x.take(np.flatnonzero(np.isin(x.label_N, labels))) for x in (image_set, test))
            row: dict[str, Any] = {
                "images": len(fake),
                "real_test_images": len(real),
                "real_test_groups": real.num_groups,
                "extractors": stamps,
            }
            distances[name][where] = row
            title = f"{where}, {SETS[name]}"
            most_of_class = min(np.bincount(x.label_N, minlength=1).max() for x in (fake, real))
            if min(len(fake), len(real)) < least or most_of_class < 2:
                why = f"{len(fake)} images against {len(real)} test images, wanted {least} each"
                note(left_out, f"distances, {title}", why)
                continue
            for extractor, values_ND in test.features.items():
                dims = values_ND.shape[1]
                carried = groups // GROUPS_PER_COMPONENT
                fitting = [c for c in (dims, *FEW_COMPONENTS) if c <= min(dims, carried)]
                row |= compare(
                    fake,
                    real,
                    extractor,
                    components=max(fitting, default=min(dims, *FEW_COMPONENTS)),
                    neighbours=neighbours,
                    most_C=most_C,
                    paired=name == "reconstructed_test",
                    seed=seed,
                    title=title,
                    left_out=left_out,
                )
        for extractor in test.features:
            distances[name]["pooled"] |= parts_of_classes(
                {classes[i]: distances[name][classes[i]].get(f"{extractor}-KD") for i in judged}, extractor
            )
    return distances


def parts_of_classes(distance_of: dict[str, float | None], extractor: str) -> dict[str, Any]:
    """The median kernel distance of a class, and the class with the largest part of the pooled one.

    Args:
        distance_of: class -> kernel distance of its own images, None where it was left out.
        extractor: whose names begin those of the numbers.
    """
    known = {name: value for name, value in distance_of.items() if value is not None}
    if not known:
        return {}
    largest = max(known, key=lambda name: abs(known[name]))
    # The mean over pairs of classes: a class with itself is one of C x C.
    part = {"class": largest, "part": known[largest] / len(distance_of) ** 2}
    return {
        f"{extractor}-KD_median_of_classes": float(np.median(list(known.values()))),
        f"{extractor}-KD_largest_part": part,
    }


def compare(
    fake: ImageSet,
    real: ImageSet,
    extractor: str,
    *,
    components: int,
    neighbours: int,
    most_C: np.ndarray,
    paired: bool,
    seed: int,
    title: str,
    left_out: list[dict[str, str]],
) -> dict[str, Any]:
    """All distances of one set from real test images by one extractor.

    In the kernel distance classes weigh alike, whatever their counts. The other measures depend on them: the
    Fréchet distance looks at `most_C` images of each class on both sides, for with other shares of the
    classes it would measure these, and those of neighbours at as many of the set. A class that the set lacks
    stays among the real images.

    Args:
        fake: N images with features (N, D).
        real: M images with features (M, D).
        extractor: whose features.
        components: the first of D, for the Fréchet distance.
        neighbours: k of precision, recall, density and coverage.
        most_C: images of each class where their number counts.
        paired: row i of both sets stems from the same picture.
        seed: of random halves, orders and rows.
        title: of what is compared, for what is left out.
        left_out: what could not be computed is added here.

    Returns:
        Numbers whose names begin with the extractor's.
    """
    fake_ND, real_MD = fake.features[extractor], real.features[extractor]
    value, spread = evaluation.kernel_distance(
        fake_ND,
        real_MD,
        fake.label_N,
        real.label_N,
        fake_group_N=fake.group_N,
        real_group_M=real.group_N,
        paired=paired,
        seed=seed,
    )
    row: dict[str, Any] = {"KD": value, "KD_spread": spread}
    if spread is None:
        note(left_out, f"spread of {extractor}-KD, {title}", "a class has under 4 images to halve")
    # The same pictures on both sides where they are paired, for the labels are the same.
    row_N, row_M = (rows_of_each_class(x.label_N, most_C, seed) for x in (fake, real))
    fake, alike, fake_ND = fake.take(row_N), real.take(row_M), fake_ND[row_N]
    row["matched_images"] = len(fake)
    wanted = 2 * components * (2 if paired else 1)
    if min(fake.num_groups, alike.num_groups) >= wanted:
        row |= evaluation.frechet_extrapolated(
            fake_ND[:, :components],
            real_MD[row_M, :components],
            fake_group_N=fake.group_N,
            real_group_M=alike.group_N,
            paired=paired,
            seed=seed,
        )
        row["FD_components"] = components
    else:
        counts = f"{fake.in_words} against {alike.in_words} of test"
        why = f"{counts}, wanted {wanted} groups each for {components} components"
        note(left_out, f"{extractor}-FD, {title}", why)
    if len(fake_ND) > neighbours:
        row |= evaluation.manifold_measures(fake_ND, real_MD, neighbours, pair_N=row_N if paired else None)
    else:
        what = f"precision, recall, density and coverage by {extractor}, {title}"
        note(left_out, what, f"{len(fake_ND)} images, wanted over {neighbours}")
    return {f"{extractor}-{key}": value for key, value in row.items()}


def agreement(distances: dict[str, Any], extractors: list[str]) -> dict[str, Any]:
    """Whether all extractors put the sets in the same order of kernel distance, as far as they tell them
    apart; None where fewer than two sets have a distance."""
    opposite, compared = [], 0
    for where in next(iter(distances.values())):
        tables = {
            extractor: {
                name: (by_class[where][f"{extractor}-KD"], by_class[where][f"{extractor}-KD_spread"])
                for name, by_class in distances.items()
                if f"{extractor}-KD" in by_class[where]
            }
            for extractor in extractors
        }
        for first, other in itertools.combinations(extractors, 2):
            compared += len(tables[first].keys() & tables[other].keys()) > 1
            for nearer, farther in evaluation.disagreements(tables[first], tables[other]):
                opposite.append(
                    {"where": where, "by": first, "nearer": nearer, "farther": farther, "not_by": other}
                )
    return {"agree": not opposite if compared else None, "opposite": opposite}
