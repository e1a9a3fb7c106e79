"""The measures against answers that are known by construction."""

import math

import numpy as np
import pytest
import torch

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
    assert evaluation.manifold_measures(real + 1e-3, real, 1, paired=True)["coverage"] < 1.0


def test_planted_copies_are_found_at_their_source(monkeypatch):
    monkeypatch.setattr(evaluation, "ROWS", 7)  # several blocks
    train = gaussian(50, 0)
    planted = train[[3, 41, 17] * 5] + 1e-3 * gaussian(15, 1)
    distance, row = evaluation.nearest(planted, train)
    assert row.tolist() == [3, 41, 17] * 5
    threshold = np.quantile(evaluation.nearest(gaussian(50, 2), train)[0], 0.05)
    assert (distance < threshold).all()


def test_thumbnail_distance_is_the_rms_grey_difference():
    dark, light = np.full((1, 64, 64), 51, np.uint8), np.full((1, 64, 64), 153, np.uint8)
    distance = np.linalg.norm(evaluation.thumbnails(dark) - evaluation.thumbnails(light))
    assert distance == pytest.approx(102 / 255)


def test_pairs_are_different_and_no_more_than_there_are():
    pairs = evaluation.draw_pairs(5, 100, np.random.default_rng(0))
    assert len(pairs) == 10 == len({tuple(pair) for pair in pairs.tolist()})
    assert (pairs[:, 0] < pairs[:, 1]).all()
    grey = np.stack([np.full((32, 32), 90, np.uint8)] * 2)
    assert evaluation.pairwise_ssim(grey, np.array([[0, 1]]))[0] == pytest.approx(1.0)


def test_spectrum_of_a_wave_peaks_at_its_frequency_and_noise_is_flat():
    x = np.arange(64)
    wave = np.broadcast_to(127 + 100 * np.sin(2 * np.pi * 16 * x / 64), (1, 64, 64)).round().astype(np.uint8)
    frequency, power = evaluation.radial_power_spectrum(wave)
    assert frequency[power.argmax()] == pytest.approx(16 / 64)
    noise = np.random.default_rng(0).integers(0, 256, (200, 64, 64)).astype(np.uint8)
    _, flat = evaluation.radial_power_spectrum(noise)
    assert flat.max() / flat.min() < 1.2


def test_grey_shares_count_pixels():
    shares = evaluation.grey_shares(np.array([[[0, 0], [255, 7]]], dtype=np.uint8))
    assert shares[[0, 7, 255]].tolist() == [0.5, 0.25, 0.25]


def test_token_nats_of_equal_logits_are_log_v_and_of_a_sure_model_0():
    idx = torch.tensor([[1, 0, 3, 2, 1]])
    spans = [(0, 1), (1, 5)]
    assert evaluation.token_nats(torch.zeros(1, 5, 4), idx, spans)[0] == pytest.approx([math.log(4)] * 2)
    sure = 100 * torch.nn.functional.one_hot(idx, 4).float()
    sure[0, 0] = 0.0  # only the first scale is unsure
    assert evaluation.token_nats(sure, idx, spans)[0] == pytest.approx([math.log(4), 0.0])


def test_wilson_interval_against_published_values():
    assert evaluation.wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert evaluation.wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
