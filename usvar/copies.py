"""Is a picture a copy? The nearest training picture in pixels, in features and in tokens.

Every search gives a distance to the nearest training picture and which one it is. Whether a distance is small
is judged by the same distance of real test pictures that were made as smooth: a model that copies lies nearer
to its training pictures than new pictures do. `find_copies` runs all searches.

Axes: N queries, M training pictures, P pixels of a thumbnail, T movements, K candidates, L tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage, stats
from torch import Tensor

from models.helpers import scale_spans
from usvar import images, judging
from usvar.augment import augment, draw_parameters
from usvar.errors import InputError
from usvar.evaluation import ImageSet, draw_weights, groups_or_rows, nearest, note
from usvar.extractor import features
from usvar.judging import Judges, ModelsWithTokens
from usvar.physics import LEAST_GREY, float_chunks

# Side of the thumbnails, and of the coarse ones by which CANDIDATES are chosen that are looked at closer.
SIDE, COARSE, CANDIDATES = 32, 16, 16
# Movements tried, and the fewer ones that candidates are chosen by: degrees, and thumbnail pixels in both
# directions.
ROTATIONS, SHIFTS = (-10.0, -5.0, 0.0, 5.0, 10.0), (-2, -1, 0, 1, 2)
COARSE_ROTATIONS, COARSE_SHIFTS = (-10.0, 0.0, 10.0), (-2, 0, 2)
# Queries at a time.
ROWS = 64
# Training pictures planted as copies.
PLANTED = 100
# Fewer groups of test pictures than this: none is expected below the 5% quantile of their distances.
LEAST_FOR_QUANTILE = 20
# The share of test pictures whose distance counts as that of a copy, and draws for the interval.
QUANTILE, DRAWS = 0.05, 1000


def mirrored(grey_NHW: np.ndarray) -> np.ndarray:
    """Left and right exchanged."""
    return np.ascontiguousarray(grey_NHW[:, :, ::-1])


def moved(grey_NHW: np.ndarray, seed: int) -> np.ndarray:
    """Each picture shifted by up to a sixteenth of its sides, black where nothing is known of it."""
    rng, most = np.random.default_rng(seed), grey_NHW.shape[1] // 16
    offsets_N2 = rng.integers(-most, most + 1, (len(grey_NHW), 2))
    pairs = zip(grey_NHW, offsets_N2, strict=True)
    return np.stack([ndimage.shift(grey_HW, offset_2, order=0) for grey_HW, offset_2 in pairs])


def nearest_in_features(
    query_ND: np.ndarray, train_MD: np.ndarray, mirrored_MD: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distances (N,) to, and rows (N,) of, the nearest training picture or its mirror image."""
    distance_N, row_N = nearest(query_ND, np.concatenate([train_MD, mirrored_MD]))
    return distance_N, row_N % len(train_MD)


def thumbnails(grey_NHW: np.ndarray) -> Tensor:
    """Pictures averaged over areas to SIDE pixels, (N, SIDE, SIDE) float32.

    Averaging takes out the speckle, which no two acquisitions share.
    """
    return torch.cat([F.adaptive_avg_pool2d(x_B1HW, SIDE)[:, 0] for _, x_B1HW in float_chunks(grey_NHW)])


class PixelSearch:
    """Nearest training pictures by grey levels: masked by the scan area, registered, whatever the gain.

    The distance is sqrt(1 - r), where r is the correlation of the two pictures over the training picture's
    scan area: 0 for a copy, about 1 for pictures that have nothing in common. Brightness and contrast do not
    matter. The query is turned by up to 10 degrees, moved by up to 2 of 32 pixels and mirrored, and the best
    of all counts. The CANDIDATES that are looked at so closely are those that a fourth of the pixels and
    fewer movements find nearest.

    Args:
        train_MHW: uint8.
    """

    def __init__(self, train_MHW: np.ndarray) -> None:
        self.count = len(train_MHW)
        small_MHW = thumbnails(train_MHW)
        both_MHW = torch.cat([small_MHW, small_MHW.flip(2)])
        self.coarse_MP = _standard(_coarse(both_MHW))
        self.train_MP = both_MHW.flatten(1)
        self.inside_MP = (self.train_MP > LEAST_GREY).float()

    def __call__(self, grey_NHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distances (N,) to, and rows (N,) of, the nearest training pictures."""
        blocks = [self._block(thumbnails(grey_NHW[i : i + ROWS])) for i in range(0, len(grey_NHW), ROWS)]
        return np.concatenate([d for d, _ in blocks]), np.concatenate([r for _, r in blocks])

    def _candidates(self, query_BHW: Tensor) -> Tensor:
        """Rows (B, K) of the training pictures that are nearest by few pixels and movements."""
        moved_BTP, _ = _all_movements(query_BHW, COARSE_ROTATIONS, COARSE_SHIFTS)
        best_BM = torch.full((len(query_BHW), len(self.coarse_MP)), -1.0)
        for moved_BP in moved_BTP.unbind(1):
            coarse_BP = _standard(_coarse(moved_BP.unflatten(1, (SIDE, SIDE))))
            torch.maximum(best_BM, coarse_BP @ self.coarse_MP.T, out=best_BM)
        return best_BM.topk(min(CANDIDATES, len(self.coarse_MP)), dim=1).indices

    def _block(self, query_BHW: Tensor) -> tuple[np.ndarray, np.ndarray]:
        candidate_BK = self._candidates(query_BHW)
        moved_BTP, valid_TP = _all_movements(query_BHW, ROTATIONS, SHIFTS)
        y_BKP, inside_BKP = self.train_MP[candidate_BK], self.inside_MP[candidate_BK]

        def summed(x_BTP: Tensor, y_BKP: Tensor) -> Tensor:
            return x_BTP @ y_BKP.transpose(1, 2)

        # Weighted sums over the pixels that lie in the scan area and came from inside the moved picture.
        valid_BTP = valid_TP[None].expand_as(moved_BTP)
        x_BTP = moved_BTP * valid_BTP
        in_both_BTK = summed(valid_BTP, inside_BKP)
        count_BTK = in_both_BTK.clamp(min=1)
        x_mean, x_square = summed(x_BTP, inside_BKP) / count_BTK, summed(x_BTP**2, inside_BKP) / count_BTK
        y_in_BKP = y_BKP * inside_BKP
        y_mean, y_square = summed(valid_BTP, y_in_BKP) / count_BTK, summed(valid_BTP, y_in_BKP**2) / count_BTK
        covariance = summed(x_BTP, y_in_BKP) / count_BTK - x_mean * y_mean
        # 1 grey level^2 keeps flat pictures from correlating by rounding.
        variances = (x_square - x_mean**2).clamp(min=0) + 1, (y_square - y_mean**2).clamp(min=0) + 1
        r_BTK = covariance / (variances[0] * variances[1]).sqrt()
        # With half the scan area moved out of sight there is too little left to compare: no likeness.
        r_BTK = r_BTK.masked_fill(in_both_BTK < 0.5 * inside_BKP.sum(2)[:, None], 0.0)
        best_BK = r_BTK.amax(1)
        chosen_B = best_BK.argmax(1)
        rows = torch.arange(len(chosen_B))
        distance_B = (1 - best_BK[rows, chosen_B]).clamp(min=0).sqrt()
        return distance_B.numpy(), (candidate_BK[rows, chosen_B] % self.count).numpy()


def _coarse(x_BHW: Tensor) -> Tensor:
    """Averaged to COARSE pixels, (B, P)."""
    return F.adaptive_avg_pool2d(x_BHW[:, None], COARSE).flatten(1)


def _standard(x_BP: Tensor) -> Tensor:
    """Each row with mean 0 and length 1."""
    return F.normalize(x_BP - x_BP.mean(1, keepdim=True), dim=1, eps=1e-3)


def _all_movements(x_BHW: Tensor, rotations: Sequence[float], shifts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """All movements of each picture (B, T, P), and where they show what was inside it (T, P)."""
    affine_T23 = []
    for degrees, down, right in product(rotations, shifts, shifts):
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        affine_T23.append([[cos, -sin, 2 * right / SIDE], [sin, cos, 2 * down / SIDE]])
    affine_T23 = torch.tensor(affine_T23, dtype=torch.float32)
    grid_THW2 = F.affine_grid(affine_T23, [len(affine_T23), 1, SIDE, SIDE], align_corners=False)
    # The pictures of a block are the channels: one grid serves them all.
    stack_TBHW = torch.cat([x_BHW, torch.ones(1, SIDE, SIDE)])[None].expand(len(affine_T23), -1, -1, -1)
    moved_TBHW = F.grid_sample(stack_TBHW, grid_THW2, align_corners=False)
    return moved_TBHW[:, :-1].transpose(0, 1).flatten(2), (moved_TBHW[:, -1] > 0.99).float().flatten(1)


def nearest_in_tokens(
    query_NL: np.ndarray, train_ML: np.ndarray, spans: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest token map: the share of tokens that differ, averaged over the scales.

    Scales weigh alike, because the finest alone has a third of all tokens, and those differ between any two
    pictures.

    Args:
        query_NL: token maps.
        train_ML: training token maps, all views.
        spans: first and last + 1 column of each scale.

    Returns:
        (N,) distances, 0 to 1, and (N,) rows of `train_ML`.
    """
    train_ML = np.ascontiguousarray(train_ML)
    distance_N, row_N = np.empty(len(query_NL)), np.empty(len(query_NL), np.int64)
    for i, query_L in enumerate(np.asarray(query_NL).astype(train_ML.dtype)):
        differs_ML = train_ML != query_L
        total_M = np.zeros(len(train_ML))
        for start, end in spans:
            total_M += differs_ML[:, start:end].sum(1) / (end - start)
        row_N[i] = total_M.argmin()
        distance_N[i] = total_M[row_N[i]] / len(spans)
    return distance_N, row_N


def copy_numbers(
    generated: tuple[np.ndarray, np.ndarray],
    test_N: np.ndarray,
    labels: tuple[np.ndarray, np.ndarray],
    train_label_M: np.ndarray,
    planted: dict[str, tuple[np.ndarray, np.ndarray]],
    source_N: np.ndarray,
    seed: int = 0,
    *,
    test_group_N: np.ndarray | None = None,
) -> dict[str, Any]:
    """What the distances of one search say.

    Pictures are judged by the test pictures of their own class, because a class whose pictures are all alike
    lies nearer to its training pictures than others do: under one threshold for all it would hide copies of
    another. Classes with fewer than LEAST_FOR_QUANTILE groups of test pictures share one threshold, for which
    these are weighed so that each class counts as much as among the generated ones.

    Args:
        generated: distances and rows of the generated pictures.
        test_N: distances of test pictures to the training pictures.
        labels: classes of the generated and of the test pictures.
        train_label_M: classes of the training pictures.
        planted: kind of copy -> distances and rows of planted copies of training pictures.
        source_N: the training picture that each planted copy was made from.
        seed: of the draws for the interval.
        test_group_N: groups of the test pictures; None: each is one by itself.

    Returns:
        Medians, counts and shares, and the classes with too few groups. Where any can be counted, also the
        generated pictures below the threshold of their class and the share of planted copies that are found
        so, and the same by class. The interval of the share is from draws of both sets anew, of the test
        pictures by groups, because the quantile of few is as uncertain as the share. It is a little narrow
        where they are few: of new pictures one interval in nine lies above 5% with 20 groups in each class or
        with groups of uneven size, else one in thirty to one in twenty. The few pictures of a class are to be
        compared with `most_of_new`, not with 5%.
    """
    (generated_N, row_N), (label_N, test_label_N) = generated, labels
    test_group_N = groups_or_rows(test_group_N, len(test_N))
    label_C, few = _counted_classes(label_N, test_label_N, test_group_N)
    numbers: dict[str, Any] = {
        "generated_images": len(generated_N),
        "test_images": len(test_N),
        "train_images": len(train_label_M),
        "median_generated_to_train": float(np.median(generated_N)),
        "median_test_to_train": float(np.median(test_N)),
        "share_of_train_that_is_nearest": len(np.unique(row_N)) / len(train_label_M),
        "labels_not_counted": few,
    }
    if not len(label_C):
        return numbers

    def counted(label_N: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
        """The class number of each picture that counts, and what else is known of it."""
        is_in_N = np.isin(label_N, label_C)
        return [np.searchsorted(label_C, label_N[is_in_N]), *(x_N[is_in_N] for x_N in arrays)]

    class_N, counted_N = counted(label_N, generated_N)
    test_class_N, unseen_N, unseen_group_N = counted(test_label_N, test_N, test_group_N)
    count_C, test_count_C = np.bincount(class_N), np.bincount(test_class_N)
    groups_C = np.array([len(np.unique(unseen_group_N[test_class_N == i])) for i in range(len(label_C))])
    is_small_C = groups_C < LEAST_FOR_QUANTILE
    # Of each threshold the classes, the test pictures, and of how many groups these are.
    threshold_of_C, pools = np.where(is_small_C, -1, np.arange(len(label_C))), []
    for i in np.unique(threshold_of_C):
        rows = np.flatnonzero(threshold_of_C[test_class_N] == i)
        pools.append((threshold_of_C == i, rows, len(np.unique(unseen_group_N[rows]))))

    def below(weight_N: np.ndarray, test_weight_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The threshold of each class, and the share of its generated pictures below."""
        of_class_C = count_C / np.bincount(test_class_N, test_weight_N)
        mixed_N, threshold_C = test_weight_N * of_class_C[test_class_N], np.empty(len(label_C))
        for is_in_C, rows, groups in pools:
            share_N = mixed_N[rows] / mixed_N[rows].sum()
            threshold_C[is_in_C] = weighed_quantile(unseen_N[rows], share_N, groups)
        hit_N = weight_N * (counted_N < threshold_C[class_N])
        return threshold_C, np.bincount(class_N, hit_N) / np.bincount(class_N, weight_N)

    threshold_C, _ = below(np.ones(len(counted_N)), np.ones(len(unseen_N)))
    rng, each_N = np.random.default_rng(seed), np.arange(len(counted_N))
    draws = [below(draw_weights(each_N, rng), draw_weights(unseen_group_N, rng))[1] for _ in range(DRAWS)]
    shares = np.stack(draws) @ count_C / count_C.sum()

    def hits(class_N: np.ndarray, distance_N: np.ndarray) -> np.ndarray:
        """How many pictures of each class are below its threshold."""
        return np.bincount(class_N[distance_N < threshold_C[class_N]], minlength=len(label_C))

    below_C, test_below_C = hits(class_N, counted_N), hits(test_class_N, unseen_N)
    [planted_class_N] = counted(train_label_M[source_N])
    planted_below = {
        kind: hits(*counted(train_label_M[source_N], distance_N)) for kind, (distance_N, _) in planted.items()
    }
    columns = {
        "label": label_C,
        "generated": count_C,
        "generated_below": below_C,
        "most_of_new": most_of_new(count_C, groups_C, test_below_C / test_count_C),
        "test_images": test_count_C,
        "test_groups": groups_C,
        "test_below": test_below_C,
        "is_threshold_shared": is_small_C,
        "threshold_5_percent_of_test": threshold_C,
        "planted": np.bincount(planted_class_N, minlength=len(label_C)),
    }
    return numbers | {
        "generated_counted": len(counted_N),
        "generated_below": int(below_C.sum()),
        "share_below": float(below_C.sum() / len(counted_N)),
        "share_below_interval_95": np.quantile(shares, (0.025, 0.975)).tolist(),
        "test_below": int(test_below_C.sum()),
        "share_below_expected": QUANTILE,
        "planted_copies_detected": {
            kind: {
                "planted": len(planted_class_N),
                "share_below_threshold": float(planted_below[kind].sum() / max(1, len(planted_class_N))),
                "share_whose_source_is_nearest": float((nearest_N == source_N).mean()),
            }
            for kind, (_, nearest_N) in planted.items()
        },
        "per_class": [
            {name: column_C[i].item() for name, column_C in columns.items()}
            | {"planted_below": {kind: int(hits_C[i]) for kind, hits_C in planted_below.items()}}
            for i in range(len(label_C))
        ],
    }


def _counted_classes(
    label_N: np.ndarray, test_label_N: np.ndarray, test_group_N: np.ndarray
) -> tuple[np.ndarray, list[int]]:
    """Labels that can be counted, and those that cannot for their few groups of test pictures.

    These are classes of fewer than LEAST_FOR_QUANTILE groups each of which would weigh over QUANTILE in the
    threshold that such classes share: that would be the smallest of a few distances.
    """
    label_C, count_C = np.unique(label_N[np.isin(label_N, test_label_N)], return_counts=True)
    groups_C = np.array([len(np.unique(test_group_N[test_label_N == label])) for label in label_C])
    few: list[int] = []
    # Dropping a class raises the weight of the others, so repeat.
    while True:
        is_small_C = groups_C < LEAST_FOR_QUANTILE
        # A patient may be in several classes.
        groups = len(np.unique(test_group_N[np.isin(test_label_N, label_C[is_small_C])]))
        weighs_much_C = count_C > QUANTILE * groups_C * count_C[is_small_C].sum()
        is_few_C = is_small_C & (weighs_much_C | (groups < LEAST_FOR_QUANTILE))
        if not is_few_C.any():
            return label_C, sorted(few)
        few += label_C[is_few_C].tolist()
        label_C, count_C, groups_C = (x_C[~is_few_C] for x_C in (label_C, count_C, groups_C))


def most_of_new(count_C: np.ndarray, groups_C: np.ndarray, test_share_C: np.ndarray) -> np.ndarray:
    """What no class's new pictures below its threshold outnumber in 95% of evaluations.

    Of new values the share below the i-th smallest of N is Beta(i, N + 1 - i) distributed (H. David and
    H. Nagaraja, "Order Statistics", 2003), here with i = QUANTILE (N + 1), so the number is beta-binomial. Of
    a class with few groups, whose threshold is shared, it is the share of its own test pictures that says how
    many to expect (with Jeffreys' prior).

    Args:
        count_C: generated pictures.
        groups_C: groups of test pictures.
        test_share_C: share of the test pictures below.
    """
    is_small_C = groups_C < LEAST_FOR_QUANTILE
    below_C = np.where(is_small_C, test_share_C * groups_C + 0.5, QUANTILE * (groups_C + 1))
    most_C = stats.betabinom.ppf(1 - 0.05 / len(count_C), count_C, below_C, groups_C + 1 - below_C)
    return most_C.astype(int)


def weighed_quantile(value_N: np.ndarray, weight_N: np.ndarray, count: int) -> float:
    """The value that QUANTILE of new values of the same kind are expected to lie below.

    Of N independent values with equal weights the i-th smallest stands for i / (N + 1), so that the
    expectation is right for few values too (E. Gumbel, "Statistics of Extremes", 1958).

    Args:
        value_N: values.
        weight_N: their weights, with a sum of 1.
        count: how many of them are independent.
    """
    order = np.argsort(value_N, kind="stable")
    share_N = weight_N[order].cumsum() * count / (count + 1)
    return float(np.interp(QUANTILE, share_N, value_N[order]))


@dataclass(frozen=True)
class CopyInputs:
    """What is searched for copies, where, and by which networks; all images have one side."""

    # N images that may be copies; they have tokens where they were sampled here.
    generated: ImageSet
    # M training images, and their files in the same order.
    train: ImageSet
    train_files: images.ImageFiles
    # Real images that no network saw, and the same ones rebuilt by the VQ-VAE; None without models.
    test: ImageSet
    rebuilt_test: ImageSet | None
    # Extractors, whose features `generated`, `train`, `test` and `rebuilt_test` have already.
    judges: Judges
    # Both models and the training token maps (M times views, L); None for images of another generator.
    models: ModelsWithTokens | None


# A set to distances (N,) to the nearest training image, and its row (N,).
Find = Callable[[ImageSet], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Search:
    """One search among the training images."""

    # "pixels", "tokens" or the name of an extractor.
    label: str
    # Whether the training images went through the VQ-VAE.
    is_rebuilt: bool
    find: Find

    def named(self, label: str) -> str:
        """The label, or what is to stand in its place, and what is searched."""
        return f"{label}, rebuilt" if self.is_rebuilt else label


def find_copies(
    given: CopyInputs, batch_size: int, seed: int, left_out: list[dict[str, str]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Nearest training image of each generated one in pixels, features and tokens.

    A picture decoded from tokens is softer than any real one. The threshold is therefore of test images that
    went through the VQ-VAE, and so are the training images of the searches named "rebuilt": like is compared
    with like. Sampled tokens are compared with the tokens of test images, tokens of pictures read from a
    folder with those of rebuilt ones. Without models nothing is rebuilt, and there are no tokens.

    Args:
        given: images and networks.
        batch_size: images at once through the VQ-VAE.
        seed: of the planted copies and of the draws for intervals.
        left_out: what could not be computed is added here.

    Returns:
        Search -> numbers for the file, and search -> its label, which images went through the VQ-VAE,
        distances and rows for the figures.
    """
    generated, test, judges = given.generated, given.test, given.judges
    plants, source_N = _plants(given, batch_size, seed)
    is_sampled = generated.idx_NL is not None
    numbers, for_figures, few = {}, {}, set()
    for search in _searches(given, batch_size):
        space = search.named(search.label)
        as_tested = given.rebuilt_test is None or (search.label == "tokens" and is_sampled)
        unseen = test if as_tested else given.rebuilt_test
        (generated_N, row_N), (test_N, _) = search.find(generated), search.find(unseen)
        numbers[space] = copy_numbers(
            (generated_N, row_N),
            test_N,
            (generated.label_N, unseen.label_N),
            given.train.label_N,
            {kind: search.find(plant) for kind, plant in plants.items()},
            source_N,
            seed,
            test_group_N=unseen.group_N,
        )
        few |= set(numbers[space]["labels_not_counted"])
        is_by_net = search.label in judges.extractors
        numbers[space]["by"] = search.named(judges.stamp(search.label) if is_by_net else search.label)
        thresholds = {row["threshold_5_percent_of_test"] for row in numbers[space].get("per_class", [])}
        for_figures[space] = {
            "label": search.label,
            "is_rebuilt": search.is_rebuilt,
            "is_test_rebuilt": not as_tested,
            "generated": generated_N,
            "row": row_N,
            "test": test_N,
            "thresholds": sorted(thresholds),
        }
        if not thresholds:
            why = f"{test.in_words} of test, wanted {LEAST_FOR_QUANTILE} groups for a 5% quantile"
            note(left_out, f"share of near copies in {space}", why)
    for label in sorted(few):
        name = judges.config["classes"][label]
        why = f"fewer than {LEAST_FOR_QUANTILE} groups of test, each over 5% of those of such classes"
        note(left_out, f"{name} in the shares of near copies", why)
    return numbers, for_figures


def _plants(given: CopyInputs, batch_size: int, seed: int) -> tuple[dict[str, ImageSet], np.ndarray]:
    """Kind -> copies of up to PLANTED training images with their features, and the rows of these images.

    Classes are as frequent among them as among the generated images, as nearly as whole numbers allow
    (A. Sainte-Laguë's quotients, 1910), because they say what the search would find among those.
    """
    label_M = given.train.label_N
    generated_C = np.bincount(given.generated.label_N, minlength=label_M.max() + 1)
    order_M, quotient_M = np.random.default_rng(seed).permutation(len(label_M)), np.empty(len(label_M))
    for label in np.unique(label_M):
        rows = order_M[label_M[order_M] == label]
        quotient_M[rows] = generated_C[label] / (np.arange(len(rows)) + 0.5)
    source_N = np.argsort(-quotient_M, kind="stable")[:PLANTED]
    source_N = np.sort(source_N[quotient_M[source_N] > 0])
    planted = given.train.take(source_N)
    draws = draw_parameters(len(planted), torch.Generator().manual_seed(seed))
    augmented_NHW = images.to_uint8(augment(images.to_model_range(planted.grey_NHW)[:, :1], draws))
    plants = {
        "as they are": planted,
        "augmented": ImageSet(augmented_NHW, planted.label_N),
        "moved": ImageSet(moved(planted.grey_NHW, seed), planted.label_N),
    }
    if given.models:
        titles = ("rebuilt", "augmented, then rebuilt", "moved, then rebuilt")
        for title, plant in zip(titles, list(plants.values()), strict=True):
            plants[title] = _rebuilt(plant, given.models, batch_size)
    for plant in plants.values():
        given.judges.describe(plant)
    return plants, source_N


def _searches(given: CopyInputs, batch_size: int) -> list[Search]:
    """Every search: in pixels and by each extractor, the same among rebuilt images, and in tokens."""
    references = [(given.train, False)]
    if given.models:
        references.append((_rebuilt(given.train, given.models, batch_size), True))
    searches = []
    for reference, is_rebuilt in references:
        given.judges.describe(reference)
        searches.append(Search("pixels", is_rebuilt, _in_pixels(reference.grey_NHW)))
        mirrored_NHW = mirrored(reference.grey_NHW)
        for name, extractor in given.judges.extractors.items():
            mirrored_MD = features(extractor, mirrored_NHW)
            find = _in_features(name, reference.features[name], mirrored_MD)
            searches.append(Search(name, is_rebuilt, find))
    if given.models:
        searches.append(Search("tokens", False, _in_tokens(given.models, given.train_files, batch_size)))
    return searches


def _rebuilt(image_set: ImageSet, models: ModelsWithTokens, batch_size: int) -> ImageSet:
    """The images through the VQ-VAE and back, without features."""
    return ImageSet(judging.rebuild(models.vae, image_set.grey_NHW, batch_size), image_set.label_N)


def _in_pixels(reference_MHW: np.ndarray) -> Find:
    """Search by grey levels, masked and registered."""
    search = PixelSearch(reference_MHW)
    return lambda image_set: search(image_set.grey_NHW)


def _in_features(name: str, train_MD: np.ndarray, mirrored_MD: np.ndarray) -> Find:
    """Search by one extractor, mirror images included."""
    return lambda image_set: nearest_in_features(image_set.features[name], train_MD, mirrored_MD)


def _in_tokens(models: ModelsWithTokens, train_files: images.ImageFiles, batch_size: int) -> Find:
    """Search in the token maps of all views that the transformer was trained on."""
    maps, spans = models.maps["train"], scale_spans(models.var.patch_nums)
    row_of = {path: row for row, path in enumerate(train_files.paths)}
    if unknown := set(maps.path_N.tolist()) - set(row_of):
        raise InputError(
            f"{maps.file} holds {min(unknown)}, {train_files.root} does not: tokenise these images again"
        )
    row_M = np.array([row_of[path] for path in maps.path_N.tolist()])

    def search(image_set: ImageSet) -> tuple[np.ndarray, np.ndarray]:
        idx_NL = image_set.idx_NL
        if idx_NL is None:
            idx_NL = judging.tokenise(models.vae, image_set.grey_NHW, batch_size)
        distance_N, view_N = nearest_in_tokens(idx_NL, maps.idx_NL, spans)
        return distance_N, row_M[view_N]

    return search
