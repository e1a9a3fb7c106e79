"""The measures against answers that are known by construction."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from usvar import evaluation

RNG_SEEDS = range(150)


def gaussian(count: int, seed: int, shift: float = 0.0, dims: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1.0, (count, dims))


def test_kernel_distance_of_two_points_is_the_kernel_by_hand():
    fake, real = np.full((5, 2), 1.0), np.full((7, 2), 3.0)
    # k(x, y) = (x.y / 2 + 1)^3: k(1, 1) = 2^3, k(3, 3) = 10^3, k(1, 3) = 4^3
    value, spread = evaluation.kernel_distance(fake, real)
    assert value == pytest.approx(8 + 1000 - 2 * 64)
    assert spread == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("blocks", [1024, 7])
def test_kernel_distance_is_that_of_torch_fidelity(blocks, monkeypatch):
    """One class, sets of one size, the whole set as its only subset: there the two mean the same."""
    monkeypatch.setattr(evaluation, "ROWS", blocks)
    fake, real = gaussian(40, 0, 0.3), gaussian(40, 1)
    theirs = kid_features_to_metric(
        torch.from_numpy(fake), torch.from_numpy(real), kid_subsets=1, kid_subset_size=40, verbose=False
    )
    assert evaluation.kernel_distance(fake, real)[0] == pytest.approx(theirs[KEY_METRIC_KID_MEAN], rel=1e-9)


def test_the_weighing_of_classes_is_the_mean_over_pairs_of_classes():
    """Written out: within a class all pairs of different images, between classes all pairs."""
    fake, real, label_N = gaussian(9, 0), gaussian(14, 1), np.array([0] * 4 + [1] * 5)
    label_M = np.array([0] * 9 + [1] * 5)

    def mean(x, y, labels_x, labels_y, same):
        values = []
        for a in (0, 1):
            for b in (0, 1):
                pairs = [
                    (x[i] @ y[j] / 8 + 1) ** 3
                    for i in np.flatnonzero(labels_x == a)
                    for j in np.flatnonzero(labels_y == b)
                    if not (same and i == j)
                ]
                values.append(np.mean(pairs))
        return np.mean(values)

    wanted = (
        mean(fake, fake, label_N, label_N, True)
        + mean(real, real, label_M, label_M, True)
        - 2 * mean(fake, real, label_N, label_M, False)
    )
    assert evaluation.kernel_distance(fake, real, label_N, label_M)[0] == pytest.approx(wanted)


@pytest.mark.parametrize("count", [100, 300, 1000])
def test_kernel_distance_of_two_halves_is_zero_within_its_spread(count):
    """Skewed features with outliers in two classes, as those of images are, halved twenty times."""
    rng = np.random.default_rng(count)
    label_N = np.arange(count) % 2
    x_ND = rng.gamma(1.5, 1.0, (count, 64)) - 1.5 + label_N[:, None]
    z = []
    for _ in range(20):
        order = np.concatenate([rng.permutation(np.flatnonzero(label_N == k)) for k in (0, 1)])
        first, second = order[::2], order[1::2]
        value, spread = evaluation.kernel_distance(
            x_ND[first], x_ND[second], label_N[first], label_N[second], subsets=50
        )
        z.append(value / spread)
    assert np.mean(np.abs(z) < 2) >= 0.85
    assert abs(np.mean(z)) < 4 / math.sqrt(20)


def test_kernel_distance_of_one_source_has_no_bias_at_small_counts():
    """A bias would favour the larger set: with the diagonal kept, the mean is far above 0 at 15 images."""
    values = [evaluation.kernel_distance(gaussian(15, 2 * i), gaussian(25, 2 * i + 1))[0] for i in RNG_SEEDS]
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values)) < 3.5 * error
    assert error < 0.02


def test_the_spread_is_how_much_the_distance_scatters():
    found = [evaluation.kernel_distance(gaussian(40, 2 * i, 1.0), gaussian(40, 2 * i + 1)) for i in RNG_SEEDS]
    scatter = np.std([value for value, _ in found])
    assert np.mean([spread for _, spread in found]) == pytest.approx(scatter, rel=0.3)


def test_ten_copies_of_each_image_in_its_group_change_neither_distance_nor_spread():
    """Past fault: they made the spread a third as wide, and the distance higher, as copies are alike."""
    fake, real, label_M = gaussian(30, 0, 0.5), gaussian(24, 1), np.arange(24) % 2
    fake_label_N, ten, group_M = np.arange(30) % 2, np.arange(24).repeat(10), np.arange(24)
    once = evaluation.kernel_distance(fake, real, fake_label_N, label_M)
    again = evaluation.kernel_distance(fake, real[ten], fake_label_N, label_M[ten], real_group_M=group_M[ten])
    assert again == pytest.approx(once)
    as_if_independent = evaluation.kernel_distance(fake, real[ten], fake_label_N, label_M[ten])
    assert as_if_independent[0] > once[0] + 0.1
    rebuilt = evaluation.kernel_distance(real, real, label_M, label_M, paired=True)
    again = evaluation.kernel_distance(
        *(real[ten], real[ten], label_M[ten], label_M[ten]),
        fake_group_N=group_M[ten],
        real_group_M=group_M[ten],
        paired=True,
    )
    assert again == pytest.approx(rebuilt)
    # Three groups do not tell how groups scatter: images are taken for independent.
    three = evaluation.kernel_distance(fake, real, real_group_M=np.arange(24) % 3)
    assert three == pytest.approx(evaluation.kernel_distance(fake, real), rel=0.1)


def patients(seed: int, count: int = 20, images: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Features of several images of each patient, more alike than those of two patients, and the patients."""
    group_N = np.arange(count).repeat(images)
    return gaussian(count, seed)[group_N] + 0.5 * gaussian(len(group_N), seed + 10_000), group_N


def test_of_patients_with_several_images_the_distance_has_no_bias_and_the_spread_is_its_scatter():
    of_one_source, values, spreads, by_images = [], [], [], []
    for i in RNG_SEEDS:
        (fake, fake_group_N), (real, real_group_M) = patients(2 * i), patients(2 * i + 1)
        groups = {"fake_group_N": fake_group_N, "real_group_M": real_group_M}
        of_one_source.append(evaluation.kernel_distance(fake, real, **groups, subsets=1)[0])
        value, spread = evaluation.kernel_distance(fake + 1, real, **groups, subsets=40)
        values.append(value)
        spreads.append(spread)
        by_images.append(evaluation.kernel_distance(fake + 1, real, subsets=40))
    assert abs(np.mean(of_one_source)) < 3.5 * np.std(of_one_source) / math.sqrt(len(values))
    assert np.mean(spreads) == pytest.approx(np.std(values), rel=0.3)
    # Images taken for independent: half the spread, and a distance that is too high.
    assert np.mean([spread for _, spread in by_images]) < 0.6 * np.std(values)
    assert np.mean([value for value, _ in by_images]) > np.mean(values) + 0.1


@pytest.mark.parametrize("paired", [True, False])
def test_pairs_of_one_picture_do_not_count_as_likeness(paired):
    """Perfect reconstructions: 0 is right, and below 0 would be a false gain."""
    values = []
    for i in RNG_SEEDS:
        real = gaussian(12, i)
        values.append(evaluation.kernel_distance(real.copy(), real, paired=paired)[0])
    error = np.std(values) / math.sqrt(len(values))
    assert bool(abs(np.mean(values)) < 3.5 * error + 1e-9) is paired


def test_classes_weigh_alike_whatever_their_counts():
    """More images of one class on one side is no difference between the sets."""
    points = np.array([[0.0, 1.0], [2.0, -1.0]])
    fake_label, real_label = np.array([0] * 4 + [1] * 4), np.array([0] * 4 + [1] * 40)
    value, _ = evaluation.kernel_distance(points[fake_label], points[real_label], fake_label, real_label)
    assert value == pytest.approx(0.0, abs=1e-9)
    unweighted, _ = evaluation.kernel_distance(points[fake_label], points[real_label])
    assert unweighted > 0.1


def test_a_dropped_class_is_a_distance_and_not_left_out():
    points = np.array([[0.0, 1.0], [2.0, -1.0]])
    fake_label, real_label = np.zeros(8, dtype=int), np.array([0] * 4 + [1] * 4)
    value, _ = evaluation.kernel_distance(points[fake_label], points[real_label], fake_label, real_label)
    assert value > 0.1


def test_too_few_images_give_no_spread_and_one_image_no_distance():
    assert evaluation.kernel_distance(gaussian(3, 0), gaussian(9, 1))[1] is None
    with pytest.raises(ValueError, match="two or more"):
        evaluation.kernel_distance(gaussian(1, 0), gaussian(9, 1))
    with pytest.raises(ValueError, match="more than 3"):
        evaluation.manifold_measures(gaussian(3, 0), gaussian(9, 1), 3)


def test_neighbour_measures_of_identical_and_of_disjoint_sets():
    real = gaussian(30, 0)
    same = evaluation.manifold_measures(real, real, 3)
    assert same["precision"] == same["recall"] == same["coverage"] == 1.0
    assert same["density"] >= 1.0
    far = evaluation.manifold_measures(real + 100, real, 3)
    assert far == {"precision": 0.0, "recall": 0.0, "density": 0.0, "coverage": 0.0}


def test_neighbour_measures_by_hand():
    """Balls of real images reach to 1, those of fakes to about 100: the four numbers are all different."""
    real, fake = np.arange(10.0)[:, None], np.array([[-100.0], [4.5], [100.0]])
    found = evaluation.manifold_measures(fake, real, 1)
    assert found == pytest.approx({"precision": 1 / 3, "recall": 1.0, "density": 2 / 3, "coverage": 0.2})


@pytest.mark.parametrize("mebibytes", [64, 0.01])
def test_precision_and_recall_are_those_of_torch_fidelity(mebibytes, monkeypatch):
    monkeypatch.setattr(evaluation, "BLOCK_MIB", mebibytes)
    fake, real = gaussian(60, 0, 0.5), gaussian(80, 1)
    theirs = prc_features_to_metric(
        torch.from_numpy(fake), torch.from_numpy(real), prc_neighborhood=3, save_cpu_ram=False, verbose=False
    )
    ours = evaluation.manifold_measures(fake, real, 3)
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=1e-6)


def test_realism_is_above_1_inside_the_balls_of_real_images():
    real = np.arange(10.0)[:, None]
    score = evaluation.realism(np.array([[4.5], [4.1], [30.0]]), real, 1)
    # Balls of radius 1; the nearest kept real image lies 0.5, 0.1 and 21 away.
    assert score == pytest.approx([2.0, 10.0, 1 / 21])


def test_frechet_distance_of_shifted_normals_and_its_limit():
    """|shift|^2 in the limit; at 100 images the bias alone is several times that."""
    found = [
        evaluation.frechet_extrapolated(gaussian(100, 2 * i, 0.25), gaussian(100, 2 * i + 1), seed=i)
        for i in range(40)
    ]
    wanted = 8 * 0.25**2
    assert np.mean([f["FD"] for f in found]) > wanted + 0.3
    limits = [f["FD_infinite"] for f in found]
    assert np.mean(limits) == pytest.approx(wanted, abs=0.1)
    assert np.mean([f["FD_infinite_deviation"] for f in found]) > 0.5 * np.std(limits)
    assert found[0]["FD_images"] == 100


def test_frechet_distance_of_reconstructions_does_not_gain_from_their_originals():
    """Identical pairs: compared as two sets the distance would be 0 at any number of images."""
    found = []
    for i in range(40):
        real = gaussian(100, i)
        found.append(evaluation.frechet_extrapolated(real.copy(), real, paired=True, seed=i))
    assert np.mean([f["FD"] for f in found]) > 0.3
    assert abs(np.mean([f["FD_infinite"] for f in found])) < 0.15
    assert found[0]["FD_images"] == 50


def test_the_limit_of_the_frechet_distance_is_right_for_patients_with_several_images():
    """Both sets of one source: 0. With the images in any order the line is too flat, and misses it."""
    limits = {True: [], False: []}
    for i in range(30):
        (fake, fake_group_N), (real, real_group_M) = patients(2 * i, 30), patients(2 * i + 1, 30)
        for known, found in limits.items():
            groups = {"fake_group_N": fake_group_N, "real_group_M": real_group_M} if known else {}
            found.append(evaluation.frechet_extrapolated(fake, real, **groups, seed=i)["FD_infinite"])
    assert abs(np.mean(limits[True])) < 0.25 < np.mean(limits[False]) - 0.5


def test_too_few_images_give_no_frechet_distance():
    with pytest.raises(ValueError, match="twice as many"):
        evaluation.frechet_extrapolated(gaussian(15, 0), gaussian(100, 1))


def test_extractors_disagree_only_where_both_are_sure():
    first = {"a": (1.0, 0.1), "b": (2.0, 0.1), "c": (2.1, 0.1)}
    assert evaluation.disagreements(first, first) == []
    second = {"a": (2.0, 0.1), "b": (1.0, 0.1), "c": (1.1, 0.1)}
    assert evaluation.disagreements(first, second) == [("a", "b"), ("a", "c")]
    unsure = {"a": (2.0, 5.0), "b": (1.0, 0.1), "c": (1.1, None)}
    assert evaluation.disagreements(first, unsure) == []


def test_student_interval_against_a_table():
    low, high = evaluation.student_interval([0.4, 0.5, 0.6])
    assert (low, high) == pytest.approx((0.5 - 4.303 * 0.1 / 3**0.5, 0.5 + 4.303 * 0.1 / 3**0.5), abs=1e-3)
    with pytest.raises(ValueError, match="two or more"):
        evaluation.student_interval([0.5])


def test_the_interval_of_a_balanced_share_of_one_class_is_that_of_a_share():
    right = np.zeros((3, 200), bool)
    right[:, ::2] = True
    found = evaluation.balanced_share_interval(right, np.zeros(200, int))
    assert found == pytest.approx(evaluation.wilson_interval(100, 200), abs=1e-3)
    all_right = evaluation.balanced_share_interval(np.ones((3, 57), bool), np.zeros(57, int))
    assert all_right == pytest.approx(evaluation.wilson_interval(57, 57))


def test_a_small_class_widens_the_interval_of_a_balanced_share():
    """Classes weigh alike: three right of a rare class and none of a common one are a half, and of the rare
    one it is not known how many more would be right."""
    labels = np.array([0] * 97 + [1] * 3)
    low, high = evaluation.balanced_share_interval((labels == 1)[None], labels)
    assert low < 0.33 and high > 0.67
    assert np.mean((low, high)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("groups_C", "images_C"),
    [
        ([40] * 4 + [1] * 2, [1] * 4 + [20] * 2),
        ([40] * 5 + [1], [1] * 5 + [20]),
        ([8] * 6, [1] * 6),
        ([4] * 21, [1] * 21),
        ([10] * 3, [5] * 3),
    ],
)
@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_the_interval_of_a_balanced_share_holds_it(groups_C, images_C, rate):
    """Past fault: a class of one patient counted as certain, so that 0.54 of the first case's intervals held
    the true share."""
    held, size_G = 0, np.repeat(images_C, groups_C)
    label_N = np.repeat(np.arange(len(groups_C)).repeat(groups_C), size_G)
    group_N = np.arange(len(size_G)).repeat(size_G)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        right_N = rng.random(len(group_N)) < rng.beta(2 * rate, 2 * (1 - rate), len(size_G))[group_N]
        low, high = evaluation.balanced_share_interval(right_N[None], label_N, group_N)
        held += low <= rate <= high
    assert held >= 0.92 * 300


def test_several_images_of_a_patient_do_not_narrow_an_interval():
    """Ten images of each of 40 patients, all right or all wrong: the interval is that of 40 images."""
    rng = np.random.default_rng(0)
    right_N, label_N, ten = rng.random(40) < 0.7, np.arange(40) % 2, np.arange(40).repeat(10)
    balanced = evaluation.balanced_share_interval
    once = balanced(right_N[None], label_N)
    assert balanced(right_N[None, ten], label_N[ten], ten) == pytest.approx(once)
    assert np.ptp(balanced(right_N[None, ten], label_N[ten])) < 0.5 * np.ptp(once)
    # All right: no certainty, and no more of it for ten images of each patient.
    surely = balanced(np.ones((1, 400), bool), label_N[ten], ten)
    assert surely == pytest.approx(evaluation.wilson_interval(40, 40))
    # A patient with images of two classes moves both.
    both_NG = np.arange(40).repeat(2), np.tile([0, 1], 40)
    assert balanced(right_N[None].repeat(2, 1), both_NG[1], both_NG[0]) == pytest.approx(
        evaluation.wilson_interval(right_N.sum(), 40), abs=0.01
    )
    for right in (right_N, np.ones(40, bool), np.zeros(40, bool)):
        wanted = evaluation.wilson_interval(right.sum(), 40)
        assert evaluation.share_interval(right, np.arange(40)) == pytest.approx(wanted)
        assert evaluation.share_interval(right[ten], ten) == pytest.approx(wanted)
    assert evaluation.share_interval(right_N, np.zeros(40, int)) == pytest.approx(
        evaluation.wilson_interval(right_N.mean(), 1)
    )


def test_the_interval_of_a_share_holds_it_for_patients_with_several_images():
    missed, missed_by_images = 0, 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        group_N = np.arange(25).repeat(rng.integers(1, 9, 25))
        right_N = rng.random(len(group_N)) < rng.beta(1.6, 0.4, 25)[group_N]  # 0.8 of patients, unlike
        low, high = evaluation.share_interval(right_N, group_N)
        missed += not low <= 0.8 <= high
        low, high = evaluation.wilson_interval(right_N.sum(), len(right_N))
        missed_by_images += not low <= 0.8 <= high
    assert missed <= 0.09 * 300 < 0.15 * 300 < missed_by_images


def test_standard_error_is_of_images_or_of_their_groups():
    value_N = np.array([1.0, 2.0, 4.0, 9.0])
    assert evaluation.standard_error(value_N, np.arange(4)) == pytest.approx(value_N.std(ddof=1) / 2)
    # Two groups with means of 1.5 and 6.5: half their difference.
    assert evaluation.standard_error(value_N, np.array([0, 0, 5, 5])) == pytest.approx(2.5)
    assert evaluation.standard_error(value_N, np.zeros(4, int)) is None


def test_mode_collapse_lowers_recall_and_coverage_but_not_precision():
    real, good = gaussian(200, 0, dims=3), gaussian(200, 1, dims=3)
    collapsed = real[:5].repeat(40, axis=0) + 0.01 * gaussian(200, 2, dims=3)
    before = evaluation.manifold_measures(good, real, 3)
    after = evaluation.manifold_measures(collapsed, real, 3)
    assert after["precision"] > 0.9
    assert after["recall"] < 0.2 < before["recall"]
    assert after["coverage"] < 0.2 < before["coverage"]


def test_a_ball_that_holds_its_own_reconstruction_alone_does_not_count():
    """Each reconstruction lies beside its original and far from all else: paired, nothing is covered."""
    real = np.arange(10.0)[:, None] ** 3
    unpaired = evaluation.manifold_measures(real + 1e-3, real, 1)
    assert unpaired["coverage"] == 1.0
    assert evaluation.manifold_measures(real + 1e-3, real, 1, pair_N=np.arange(len(real)))["coverage"] < 1.0


def test_planted_copies_are_found_at_their_source():
    train = gaussian(50, 0)
    planted = train[[3, 41, 17] * 5] + 1e-3 * gaussian(15, 1)
    distance, row = evaluation.nearest(planted, train)
    assert row.tolist() == [3, 41, 17] * 5
    threshold = np.quantile(evaluation.nearest(gaussian(50, 2), train)[0], 0.05)
    assert (distance < threshold).all()


def test_classes_of_few_images_are_named_with_their_numbers():
    label_N = np.array([0, 2, 2, 2, 2])
    assert evaluation.small_classes(label_N, ("Heart", "Kidney", "Liver"), 4) == {"Heart": 1, "Kidney": 0}
    assert evaluation.small_classes(label_N, ("Heart", "Kidney", "Liver"), 0) == {}


def test_wilson_interval_against_published_values():
    assert evaluation.wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert evaluation.wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    library = binomtest(7, 31).proportion_ci(method="wilson")
    assert evaluation.wilson_interval(7, 31) == pytest.approx((library.low, library.high))
    # Between the whole counts, where the library has none.
    assert evaluation.wilson_interval(6.5, 31)[0] < library.low < evaluation.wilson_interval(7.5, 31)[0]
