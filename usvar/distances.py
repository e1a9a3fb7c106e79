"""How far each set of images lies from the real test images, and whether the extractors agree on it.

The measures are those of usvar/evaluation.py; here is said between which images, and what is left out where
they are too few.

Axes: N and M images of two sets, D features, C classes.
"""

import itertools
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
    most = most_of_a_class(sets["generated"])
    train_C = np.bincount(sets["real_train"].label_N, minlength=num_classes)
    return {
        name: image_set
        if name == "reconstructed_test"
        else image_set.take(rows_of_each_class(image_set.label_N, np.minimum(most, train_C), seed))
        for name, image_set in sets.items()
    }


def most_of_a_class(image_set: ImageSet) -> int:
    """Images of the class that has the most."""
    return int(np.bincount(image_set.label_N).max())


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
    least, most = evaluation.least_images(neighbours), most_of_a_class(sets["generated"])
    judged = [i for i in range(len(classes)) if len(test.of_class(i)) >= least]
    for i in sorted(set(range(len(classes))) - set(judged)):
        note(left_out, f"{classes[i]} in the pooled distances", f"under {least} test images")
    for i in judged:
        if test.of_class(i).num_groups < evaluation.LEAST_GROUPS:
            why = f"under {evaluation.LEAST_GROUPS} of test: KD takes its images for independent"
            note(left_out, f"groups of {classes[i]}", why)
    pooled_groups = test.take(np.flatnonzero(np.isin(test.label_N, judged))).num_groups
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
                carried = pooled_groups // GROUPS_PER_COMPONENT
                fitting = [c for c in (dims, *FEW_COMPONENTS) if c <= min(dims, carried)]
                row |= compare(
                    fake,
                    real,
                    extractor,
                    components=max(fitting, default=min(dims, *FEW_COMPONENTS)),
                    neighbours=neighbours,
                    most_paired=most if name == "reconstructed_test" else None,
                    seed=seed,
                    title=title,
                    left_out=left_out,
                )
    return distances


def compare(
    fake: ImageSet,
    real: ImageSet,
    extractor: str,
    *,
    components: int,
    neighbours: int,
    most_paired: int | None,
    seed: int,
    title: str,
    left_out: list[dict[str, str]],
) -> dict[str, Any]:
    """All distances of one set from real test images by one extractor.

    In the kernel distance classes weigh alike, whatever their counts. The other measures depend on the
    counts: so of the reconstructions, too, only `most_paired` images per class are looked at.

    Args:
        fake: N images with features (N, D).
        real: M images with features (M, D).
        extractor: whose features.
        components: the first of D, for the Fréchet distance.
        neighbours: k of precision, recall, density and coverage.
        most_paired: where row i of both sets stems from the same picture: most images per class; else None.
        seed: of random halves, orders and rows.
        title: of what is compared, for what is left out.
        left_out: what could not be computed is added here.

    Returns:
        Numbers whose names begin with the extractor's.
    """
    paired = most_paired is not None
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
        note(left_out, f"spread of KD, {title}", "a class has under 4 images to halve")
    pair_N = None
    if paired:
        pair_N = rows_of_each_class(real.label_N, np.full(real.label_N.max() + 1, most_paired), seed)
        fake, fake_ND = fake.take(pair_N), fake_ND[pair_N]
    leading_ND, leading_MD = fake_ND[:, :components], (real_MD[pair_N] if paired else real_MD)[:, :components]
    wanted = 2 * components * (2 if paired else 1)
    if min(fake.num_groups, real.num_groups) >= wanted:
        row |= evaluation.frechet_extrapolated(
            leading_ND,
            leading_MD,
            fake_group_N=fake.group_N,
            real_group_M=real.group_N,
            paired=paired,
            seed=seed,
        )
        row["FD_components"] = components
    else:
        counts = f"{fake.in_words} against {real.in_words} of test"
        why = f"{counts}, wanted {wanted} groups each for {components} components"
        note(left_out, f"Fréchet distance, {title}", why)
    if len(fake_ND) > neighbours:
        row |= evaluation.manifold_measures(fake_ND, real_MD, neighbours, pair_N=pair_N)
    else:
        what = f"precision, recall, density and coverage, {title}"
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
