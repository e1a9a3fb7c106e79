"""Measures that compare sets of features: arrays in, numbers out; evaluate_var.py says between which sets.

All of them are written for sets of tens to thousands of images: the kernel distance has no bias from the size
of a set, the Fréchet distance is extrapolated to infinitely many images, and the measures of neighbours are
meant to be read beside the same measures of real images. Tables of all pairs are never held whole.

Images of one patient or video are not independent. Spreads and intervals therefore draw whole groups of them,
the clusters of survey statistics; an image that was generated is a group of its own.

The library is used where it has the measure: torch-fidelity for the Fréchet distance, scikit-learn for
distances in blocks. The tests hold the kernel distance, precision and recall to torch-fidelity's numbers; its
own functions for these cannot weigh classes, leave out pairs or give a standard error.

Axes: N and M images of two sets, D features, C classes, G groups, S random halves, H W pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import pairwise_distances_argmin_min, pairwise_distances_chunked

# What is compared with the real test images, in the order of tables and figures.
SETS = {
    "generated": "generated",
    "real_train": "real training images (floor)",
    "reconstructed_test": "test images rebuilt by the VQ-VAE (as near as the tokenizer allows)",
    "position_prior": "tokens by frequency alone (trivial generator)",
}
# Groups that a class must have for its halves to tell how groups scatter.
LEAST_GROUPS = 4
# The Fréchet distance is extrapolated from so many numbers of images, a third of all to all, and in so many
# random orders of the groups.
FRECHET_SIZES, FRECHET_ORDERS = 8, 10
# Rows at a time, and MiB, where a table of all pairs would not fit in memory.
ROWS, BLOCK_MIB = 1024, 64


@dataclass
class ImageSet:
    """Images with their classes and groups and, once computed, what the extractors make of them."""

    grey_NHW: np.ndarray
    label_N: np.ndarray
    # Extractor name -> (N, D).
    features: dict[str, np.ndarray] = field(default_factory=dict)
    # (N, L) tokens that the images were decoded from; None: they were not drawn here.
    idx_NL: np.ndarray | None = None
    # (N,) group of each image, such as its patient; None: each image is one by itself.
    group_N: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.group_N = groups_or_rows(self.group_N, len(self))

    def __len__(self) -> int:
        return len(self.label_N)

    @property
    def num_groups(self) -> int:
        """Groups that the images are of."""
        return len(np.unique(self.group_N))

    @property
    def in_words(self) -> str:
        """How many images of how many groups."""
        return f"{len(self)} images" + f" of {self.num_groups} groups" * (self.num_groups < len(self))

    def of_class(self, label: int) -> "ImageSet":
        """The images of one class."""
        return self.take(np.flatnonzero(self.label_N == label))

    def take(self, rows: np.ndarray) -> "ImageSet":
        """Some of the images."""
        features = {name: values_ND[rows] for name, values_ND in self.features.items()}
        idx_NL = None if self.idx_NL is None else self.idx_NL[rows]
        return ImageSet(self.grey_NHW[rows], self.label_N[rows], features, idx_NL, self.group_N[rows])


def groups_or_rows(group_N: np.ndarray | None, count: int) -> np.ndarray:
    """The group of each of `count` rows; where none are known, each row is one by itself."""
    return np.arange(count) if group_N is None else group_N


def least_images(neighbours: int) -> int:
    """Images that a class must have to be judged: 4 to halve, and more than k to have k neighbours."""
    return max(4, neighbours + 1)


def small_classes(label_N: np.ndarray, classes: Sequence[str], least: int) -> dict[str, int]:
    """Name -> number of images, of the classes that have fewer than `least`; `classes` in label order."""
    count_C = np.bincount(label_N, minlength=len(classes))
    return {name: int(count) for name, count in zip(classes, count_C, strict=True) if count < least}


def note(left_out: list[dict[str, str]], what: str, why: str) -> None:
    """Keep what could not be computed at this number of images, for the file and the page."""
    left_out.append({"what": what, "why": why})


# --- kernel distance ---


def kernel_distance(
    fake_ND: np.ndarray,
    real_MD: np.ndarray,
    fake_label_N: np.ndarray | None = None,
    real_label_M: np.ndarray | None = None,
    *,
    fake_group_N: np.ndarray | None = None,
    real_group_M: np.ndarray | None = None,
    paired: bool = False,
    subsets: int = 100,
    seed: int = 0,
) -> tuple[float, float | None]:
    """Squared maximum mean discrepancy with the cubic kernel of KID, without bias from the number of images.

    A. Gretton et al., "A Kernel Two-Sample Test", JMLR 2012, equation 3; kernel (x.y / D + 1)^3 of
    M. Binkowski et al., "Demystifying MMD GANs", ICLR 2018, section 4. With labels each class weighs the same
    on its side, so that two sets of other class shares compare; each pair of classes is then an average
    without bias. Two images of one class and group are no pair: they are alike because of their patient, not
    of their set. The value may be below 0: it scatters around 0 when the two sets come from one source.

    The spread is the deviation over random halves of the groups of each class. Halves without replacement
    scatter about the whole as the whole does about the truth (J. Shao and C. Wu, "A general theory for
    jackknife variance estimation", Annals of Statistics 1989; for groups K. Rust and J. Rao, "Variance
    estimation for complex surveys using replication techniques", Statistical Methods in Medical Research
    1996), so it is a standard error where the sets differ. Where they hardly do, the value no longer scatters
    in proportion, and the spread is too large, by up to 1.8 times in simulations. A class of under
    LEAST_GROUPS groups does not tell how they scatter: its images are taken for independent, so that the
    spread is too small and the distance too high.

    Args:
        fake_ND: features of one set.
        real_MD: features of the other.
        fake_label_N: class of each row; None: one class. Classes with a single image are left out.
        real_label_M: likewise.
        fake_group_N: whole number of the group of each row; None: each row is one by itself.
        real_group_M: likewise.
        paired: row i of both sets stems from the same picture (a reconstruction and its original); such pairs
            and others of a group are left out, as in equation 4 of Gretton et al., because they would count
            as likeness.
        subsets: random halves for the spread.
        seed: of those halves.

    Returns:
        The squared distance, and its spread or None when a class has fewer than 4 images to halve.

    Raises:
        ValueError: when a set has no class of two or more images.
    """
    fake, fake_NC, fake_group_N = _with_classes(fake_ND, fake_label_N, fake_group_N)
    real, real_MC, real_group_M = _with_classes(real_MD, real_label_M, real_group_M)
    if not fake_NC.shape[1] or not real_MC.shape[1]:
        raise ValueError(
            f"found sets of {len(fake_ND)} and {len(real_MD)} images, wanted two or more of a class in each"
        )
    # Column 0 is the whole set, the others are its halves: one pass over the pairs serves them all.
    has_spread = min(fake_NC.sum(0).min(), real_MC.sum(0).min()) >= 4
    rng, halves = np.random.default_rng(seed), subsets if has_spread else 0
    fake_NS = _whole_and_halves(fake_NC, fake_group_N, halves, rng)
    real_MS = fake_NS if paired else _whole_and_halves(real_MC, real_group_M, halves, rng)
    value_S = (
        _mean_kernel(fake, fake, fake_NC, fake_NC, fake_NS, fake_NS, fake_group_N)
        + _mean_kernel(real, real, real_MC, real_MC, real_MS, real_MS, real_group_M)
        - 2 * _mean_kernel(fake, real, fake_NC, real_MC, fake_NS, real_MS, fake_group_N if paired else None)
    )
    return float(value_S[0]), float(value_S[1:].std()) if has_spread else None


def _with_classes(
    x_ND: np.ndarray, label_N: np.ndarray | None, group_N: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the classes with two images or more, (N, C) of 0 and 1, a column for each such class, and (N,)
    groups: each image by itself in a class of few."""
    x_ND = np.asarray(x_ND, np.float64)
    label_N = np.zeros(len(x_ND), np.int64) if label_N is None else np.asarray(label_N)
    group_N = np.array(groups_or_rows(group_N, len(x_ND)))  # a copy, which is changed below
    for label in np.unique(label_N):
        rows = np.flatnonzero(label_N == label)
        if len(np.unique(group_N[rows])) < LEAST_GROUPS:
            group_N[rows] = group_N.max() + 1 + np.arange(len(rows))
    kept = [label for label in np.unique(label_N) if (label_N == label).sum() >= 2]
    rows = np.isin(label_N, kept)
    one_hot_NC = label_N[rows, None] == np.array(kept, label_N.dtype)[None]
    return x_ND[rows], one_hot_NC.astype(np.float64), group_N[rows]


def _whole_and_halves(
    one_hot_NC: np.ndarray, group_N: np.ndarray, halves: int, rng: np.random.Generator
) -> np.ndarray:
    """(N, 1 + halves) of 0 and 1: all rows, then the rows of half the groups of each class at random."""
    member_NS = np.zeros((len(one_hot_NC), 1 + halves))
    member_NS[:, 0] = 1.0
    for half in range(1, 1 + halves):
        # One order for all classes, so that a group with images of several mostly comes with all of them.
        place_N = rng.permutation(group_N.max() + 1)[group_N]
        for column in range(one_hot_NC.shape[1]):
            rows = np.flatnonzero(one_hot_NC[:, column])
            place_G = np.unique(place_N[rows])
            member_NS[rows[place_N[rows] < place_G[len(place_G) // 2]], half] = 1.0
    return member_NS


def _mean_kernel(
    x_ND: np.ndarray,
    y_MD: np.ndarray,
    x_class_NC: np.ndarray,
    y_class_MC: np.ndarray,
    x_member_NS: np.ndarray,
    y_member_MS: np.ndarray,
    group_N: np.ndarray | None,
) -> np.ndarray:
    """Mean over pairs of classes of the mean kernel between them, (S,), for each subset of members.

    Where the rows of both sides have groups, two rows of one class and group are no pair.
    """
    x_count_CS, y_count_CS = x_class_NC.T @ x_member_NS, y_class_MC.T @ y_member_MS
    x_weight_NS = x_member_NS / (x_class_NC @ x_count_CS)
    y_weight_MS = y_member_MS / (y_class_MC @ y_count_CS)
    pairs = len(x_count_CS) * len(y_count_CS)
    if group_N is None:
        return _bilinear(x_ND, y_MD, x_weight_NS, y_weight_MS) / pairs
    _, unit_N = np.unique(np.stack([x_class_NC.argmax(1), group_N]), axis=1, return_inverse=True)
    mean_S = _bilinear(x_ND, y_MD, x_weight_NS, y_weight_MS, unit_N) / pairs
    # Within a class there are fewer pairs than n^2: without groups n (n - 1).
    for column, count_S in enumerate(x_count_CS):
        rows = np.flatnonzero(x_class_NC[:, column])
        sum_S = _bilinear(x_ND[rows], y_MD[rows], x_member_NS[rows], y_member_MS[rows], unit_N[rows])
        unit_count_US = np.zeros((unit_N.max() + 1, len(count_S)))
        np.add.at(unit_count_US, unit_N[rows], x_member_NS[rows])
        pairs_S = count_S**2 - np.square(unit_count_US).sum(0)
        mean_S += sum_S * (1 / pairs_S - 1 / count_S**2) / pairs
    return mean_S


def _bilinear(
    x_ND: np.ndarray, y_MD: np.ndarray, u_NS: np.ndarray, v_MS: np.ndarray, unit_N: np.ndarray | None = None
) -> np.ndarray:
    """u^T K v for each column, (S,), with the cubic kernel K computed a block of rows at a time.

    K is 0 for two rows of one unit, where the rows of both sides have units.
    """
    total_S = np.zeros(u_NS.shape[1])
    for start in range(0, len(x_ND), ROWS):
        block_BM = (x_ND[start : start + ROWS] @ y_MD.T / x_ND.shape[1] + 1) ** 3
        if unit_N is not None:
            block_BM[unit_N[start : start + ROWS, None] == unit_N] = 0.0
        total_S += (u_NS[start : start + ROWS] * (block_BM @ v_MS)).sum(0)
    return total_S


# --- Fréchet distance ---


def frechet_distance(fake_ND: np.ndarray, real_MD: np.ndarray) -> float:
    """Fréchet distance of two normal distributions fitted to the features, as torch-fidelity computes it.

    M. Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NeurIPS 2017. Biased upwards, the more
    the fewer images: see `frechet_extrapolated`.
    """
    # Slow to import, and sample_vqvae.py takes none of it.
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    fitted = [
        fid_features_to_statistics(torch.from_numpy(np.asarray(x, np.float64))) for x in (fake_ND, real_MD)
    ]
    return float(fid_statistics_to_metric(*fitted, verbose=False)[KEY_METRIC_FID])


def frechet_extrapolated(
    fake_ND: np.ndarray,
    real_MD: np.ndarray,
    *,
    fake_group_N: np.ndarray | None = None,
    real_group_M: np.ndarray | None = None,
    paired: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """Fréchet distance at this number of images, and its limit for infinitely many.

    M. Chong and D. Forsyth, "Effectively Unbiased FID and Inception Score and Where to Find Them", CVPR 2020:
    the bias falls as 1 / N, so a line through the distances at several N meets the limit at 1 / N = 0. There
    the real set is large and fixed; ours is as small as the generated one, so both are cut to the same N.

    Args:
        fake_ND: features of one set.
        real_MD: features of the other.
        fake_group_N: whole number of the group of each row; None: each row is one by itself. Whole groups are
            taken, so that images N times as many are of N times as many patients.
        real_group_M: likewise.
        paired: row i of both sets stems from the same picture: such sets share their accidents, so each
            distance is taken between different pictures, which halves N.
        seed: of the orders that the groups are taken in.

    Returns:
        "FD" at "FD_images" images, "FD_infinite", and "FD_infinite_deviation" over the orders: about the
        scatter of the estimate from sample to sample, once to twice as large in the tests.

    Raises:
        ValueError: when there are not twice as many images as features.
    """
    most = min(len(fake_ND), len(real_MD)) // (2 if paired else 1)
    if most < 2 * fake_ND.shape[1]:
        raise ValueError(f"found {most} images for {fake_ND.shape[1]} features, wanted twice as many or more")
    least = max(most // 3, fake_ND.shape[1] + 1)
    count_K = np.unique(np.linspace(least, most, FRECHET_SIZES).round().astype(int))
    rng, distance_OK = np.random.default_rng(seed), np.empty((FRECHET_ORDERS, len(count_K)))
    for order in range(FRECHET_ORDERS):
        fake_row_N = _group_after_group(len(fake_ND), fake_group_N, rng)
        real_row_M = fake_row_N[::-1] if paired else _group_after_group(len(real_MD), real_group_M, rng)
        distance_OK[order] = [
            frechet_distance(fake_ND[fake_row_N[:count]], real_MD[real_row_M[:count]]) for count in count_K
        ]
    intercept_O = np.polyfit(1 / count_K, distance_OK.T, 1)[1]
    return {
        "FD": float(distance_OK[:, -1].mean()),
        "FD_images": int(most),
        "FD_infinite": float(intercept_O.mean()),
        "FD_infinite_deviation": float(intercept_O.std(ddof=1)),
    }


def _group_after_group(count: int, group_N: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """All rows, the groups in random order."""
    group_N = groups_or_rows(group_N, count)
    return np.argsort(rng.permutation(group_N.max() + 1)[group_N], kind="stable")


# --- neighbours ---


def manifold_measures(
    fake_ND: np.ndarray, real_MD: np.ndarray, neighbours: int = 3, *, pair_N: np.ndarray | None = None
) -> dict[str, float]:
    """How many fakes look real, and how many real images are reached.

    Precision and recall after T. Kynkaanniemi et al., "Improved Precision and Recall Metric", NeurIPS 2019;
    density and coverage after M. Naeem et al., "Reliable Fidelity and Diversity Metrics", ICML 2020.

    Each image has a ball that reaches to its k-th nearest neighbour of its own set. Precision: share of fakes
    inside a ball of a real image. Recall: share of real images inside a ball of a fake one. Density: balls of
    real images around a fake one, over k. Coverage: share of real images with a fake in their own ball.

    Args:
        fake_ND: features of the generated set.
        real_MD: features of the real set.
        neighbours: k; both sets need more images than that.
        pair_N: row of the real image that stems from the same picture as each fake: such pairs do not count.

    Raises:
        ValueError: when a set has k images or fewer.
    """
    if min(len(fake_ND), len(real_MD)) <= neighbours:
        raise ValueError(
            f"found sets of {len(fake_ND)} and {len(real_MD)} images, wanted more than {neighbours} in each"
        )
    real_radius_M, fake_radius_N = _radii(real_MD, neighbours), _radii(fake_ND, neighbours)
    precise, balls = 0, 0
    covered_M, recalled_M = np.zeros(len(real_MD), bool), np.zeros(len(real_MD), bool)
    for start, between_BM in _distance_blocks(fake_ND, real_MD):
        rows = np.arange(len(between_BM))
        if pair_N is not None:
            between_BM[rows, pair_N[start + rows]] = np.inf
        in_real_BM = between_BM <= real_radius_M[None]
        precise += int(in_real_BM.any(1).sum())
        balls += int(in_real_BM.sum())
        covered_M |= in_real_BM.any(0)
        recalled_M |= (between_BM <= fake_radius_N[start + rows, None]).any(0)
    return {
        "precision": precise / len(fake_ND),
        "recall": float(recalled_M.mean()),
        "density": balls / (len(fake_ND) * neighbours),
        "coverage": float(covered_M.mean()),
    }


def realism(fake_ND: np.ndarray, real_MD: np.ndarray, neighbours: int = 3) -> np.ndarray:
    """How deep each fake lies in a ball of a real image, (N,); above 1 is inside one.

    Kynkaanniemi et al. 2019, equation 3: the half of the real images with the larger balls is left out,
    because they lie where images are few and would call nearly anything real.
    """
    radius_M = _radii(real_MD, neighbours)
    kept_M = radius_M <= np.median(radius_M)
    score_N = [
        (radius_M[kept_M] / np.maximum(block_BM, 1e-12)).max(1)
        for _, block_BM in _distance_blocks(fake_ND, real_MD[kept_M])
    ]
    return np.concatenate(score_N)


def _distance_blocks(x_ND: np.ndarray, y_MD: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """First row and Euclidean distances (B, M) of blocks of rows, float64."""
    start = 0
    for block_BM in pairwise_distances_chunked(
        np.asarray(x_ND, np.float64), np.asarray(y_MD, np.float64), working_memory=BLOCK_MIB
    ):
        yield start, block_BM
        start += len(block_BM)


def _radii(x_ND: np.ndarray, neighbours: int) -> np.ndarray:
    """Distance of each row to its k-th nearest other row, (N,)."""
    radius_N = np.empty(len(x_ND))
    for start, block_BM in _distance_blocks(x_ND, x_ND):
        rows = np.arange(len(block_BM))
        block_BM[rows, start + rows] = 0.0
        radius_N[start + rows] = np.partition(block_BM, neighbours, axis=1)[:, neighbours]
    return radius_N


def nearest(query_ND: np.ndarray, reference_MD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest reference of each query.

    Returns:
        (N,) distances and (N,) rows of `reference_MD`.
    """
    row_N, distance_N = pairwise_distances_argmin_min(
        np.asarray(query_ND, np.float64), np.asarray(reference_MD, np.float64)
    )
    return distance_N, row_N


# --- what to say of several numbers ---


def disagreements(
    first: dict[str, tuple[float, float | None]], second: dict[str, tuple[float, float | None]]
) -> list[tuple[str, str]]:
    """Pairs of sets that two extractors put in opposite order, beyond twice the spread of the difference.

    Args:
        first: set name -> distance and its spread (None: unknown, no order is claimed), by one extractor.
        second: the same sets by another.

    Returns:
        (a, b) for each pair in which `first` has a nearer than b, and `second` b nearer than a.
    """

    def order(table: dict[str, tuple[float, float | None]], a: str, b: str) -> int:
        (value_a, spread_a), (value_b, spread_b) = table[a], table[b]
        if spread_a is None or spread_b is None:
            return 0
        return int(np.sign(value_b - value_a)) * (abs(value_b - value_a) > 2 * np.hypot(spread_a, spread_b))

    return [(a, b) for a in first for b in first if order(first, a, b) > 0 > order(second, a, b)]


def wilson_interval(hits: float, count: float) -> tuple[float, float]:
    """95% confidence interval of a share (E. Wilson, JASA 1927, right for small counts too).

    The counts may be fractions, as effective ones are: scipy's `binomtest`, which gives the same, takes whole
    ones only.
    """
    z = stats.norm.ppf(0.975)
    share, weight = hits / count, 1 + z**2 / count
    centre = (share + z**2 / (2 * count)) / weight
    half = z / weight * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def standard_error(value_N: np.ndarray, group_N: np.ndarray) -> float | None:
    """Standard error of a mean over images of several groups; None for a single group.

    J. Rao and A. Scott, "A simple method for the analysis of clustered binary data", Biometrics 1992, section
    2. Of groups of one image each it is the deviation over the root of N.
    """
    groups, row_N = np.unique(group_N, return_inverse=True)
    if len(groups) < 2:
        return None
    residual_G = np.bincount(row_N, value_N - np.mean(value_N))
    return float(np.sqrt(len(groups) / (len(groups) - 1) * np.square(residual_G).sum()) / len(value_N))


def share_interval(right_N: np.ndarray, group_N: np.ndarray) -> tuple[float, float]:
    """95% interval of a share of images of several groups.

    Wilson's with the number of independent images that would scatter as much, as Rao and Scott 1992 do: all
    where the images of a group are as unlike as others, the number of groups where they are all alike. So it
    is too where no scatter is seen, as when every image is right.

    Args:
        right_N: bool, which images count.
        group_N: their groups.
    """
    share, error = float(np.mean(right_N)), standard_error(right_N, group_N)
    count: float = len(np.unique(group_N))
    if error:
        count = min(len(right_N), 1 + share * (1 - share) / error**2)
    return wilson_interval(share * count, count)


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """95% confidence interval of the mean of a few repetitions (Student's t), cut to 0 and 1.

    Raises:
        ValueError: for fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"found {len(values)} value(s), wanted two or more for an interval")
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return max(0.0, float(np.mean(values) - half)), min(1.0, float(np.mean(values) + half))


def draw_weights(group_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Weights (N,) of one draw of the groups (whole numbers) anew, the same for all images of a group.

    D. Rubin, "The Bayesian Bootstrap", Annals of Statistics 1981. As the common bootstrap, but no group is
    ever missing, so that no class of few groups is.
    """
    return rng.exponential(size=group_N.max() + 1)[group_N]


def balanced_share_interval(
    right_SN: np.ndarray, label_N: np.ndarray, group_N: np.ndarray | None = None
) -> tuple[float, float]:
    """95% interval, from the choice of images, of the share that counts in the mean over classes.

    Wilson's with the number of independent images that would scatter as much, as `share_interval`; classes
    are strata, whose variances add up (W. Cochran, "Sampling Techniques", 1977, chapter 5). A class of one
    group, or whose groups are all right, shows no scatter. That is no certainty: it counts as P. Laplace's
    rule of succession has it, (G p + 1) / (G + 2) with the variance of G independent images.

    Args:
        right_SN: bool, whether each image counts, such as one that a classifier is right on or whose frame is
            whole; S of these, such as of S classifiers, are averaged.
        label_N: classes, which weigh alike.
        group_N: groups of images that are alike; None: each image is one by itself.
    """
    share_N = right_SN.mean(0)
    _, class_N = np.unique(label_N, return_inverse=True)
    _, group_N = np.unique(groups_or_rows(group_N, len(label_N)), return_inverse=True)
    count_CG, right_CG = np.zeros((2, class_N.max() + 1, group_N.max() + 1))
    np.add.at(count_CG, (class_N, group_N), 1)
    np.add.at(right_CG, (class_N, group_N), share_N)
    share_C, groups_C = right_CG.sum(1) / count_CG.sum(1), (count_CG > 0).sum(1)
    residual_CG = (right_CG - share_C[:, None] * count_CG) / count_CG.sum(1, keepdims=True)
    has_scatter_C = np.abs(residual_CG).max(1) > 1e-9
    residual_CG *= np.sqrt(groups_C / np.maximum(groups_C - 1, 1))[:, None]
    likely_C = np.where(has_scatter_C, share_C, (groups_C * share_C + 1) / (groups_C + 2))
    assumed_C = np.where(has_scatter_C, 0, likely_C * (1 - likely_C) / groups_C)
    # A group with images of several classes moves them together.
    variance = (np.square(residual_CG.sum(0)).sum() + assumed_C.sum()) / len(share_C) ** 2
    count = min(len(share_N), likely_C.mean() * (1 - likely_C.mean()) / variance)
    return wilson_interval(float(share_C.mean() * count), float(count))
