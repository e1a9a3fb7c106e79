"""Measures of pictures against answers that are known by construction."""

import numpy as np
import pytest
from conftest import CLASSES, speckled_disc
from scipy import ndimage

from usvar import physics
from usvar.evaluation import ImageSet


def fans(count: int, seed: int = 0, side: int = 64) -> np.ndarray:
    """Speckled fans on black, uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    inside = (np.hypot(x - 0.5, y + 0.1) < 1.0) & (np.abs(x - 0.5) < 0.4 * (y + 0.2))
    return (rng.integers(40, 200, (count, side, side)) * inside).astype(np.uint8)


def test_pairs_are_different_and_no_more_than_there_are():
    pairs = physics.draw_pairs(np.arange(5), 100, np.random.default_rng(0))
    assert len(pairs) == 10 == len({tuple(pair) for pair in pairs.tolist()})
    assert (pairs[:, 0] < pairs[:, 1]).all()
    grey = np.stack([np.full((32, 32), 90, np.uint8)] * 2)
    assert physics.pairwise_ssim(grey, np.array([[0, 1]]))[0] == pytest.approx(1.0)


def test_pairs_of_many_items_need_no_list_of_all():
    pairs = physics.draw_pairs(np.arange(1_000_000), 100, np.random.default_rng(0))
    assert len(pairs) == 100 == len({tuple(pair) for pair in pairs.tolist()})
    assert (pairs[:, 0] < pairs[:, 1]).all()


@pytest.mark.parametrize("repeats", [2, 30])
def test_two_of_a_group_are_no_pair(repeats):
    group_N = np.array([7, 1, 4]).repeat(repeats)
    pairs = physics.draw_pairs(group_N, 100, np.random.default_rng(0))
    assert len(pairs) == min(100, 3 * repeats**2) and (group_N[pairs[:, 0]] != group_N[pairs[:, 1]]).all()


def test_spectrum_of_a_wave_peaks_at_its_frequency_and_noise_is_flat():
    x = np.arange(64)
    wave = np.broadcast_to(127 + 100 * np.sin(2 * np.pi * 16 * x / 64), (1, 64, 64)).round().astype(np.uint8)
    frequency, power = physics.radial_power_spectrum(wave)
    assert frequency[power.argmax()] == pytest.approx(16 / 64)
    noise = np.random.default_rng(0).integers(0, 256, (200, 64, 64)).astype(np.uint8)
    _, flat = physics.radial_power_spectrum(noise)
    assert flat.max() / flat.min() < 1.2


def test_grey_shares_count_pixels():
    shares = physics.grey_shares(np.array([[[0, 0], [255, 7]]], dtype=np.uint8))
    assert shares[[0, 7, 255]].tolist() == [0.5, 0.25, 0.25]


def test_autocorrelation_sees_the_size_of_speckle_in_each_direction():
    """White noise has none; smoothed by a Gaussian of deviation s it has exp(-lag^2 / 4 s^2)."""
    noise = np.random.default_rng(0).normal(0, 1, (40, 64, 64))

    def found(along: float, across: float) -> np.ndarray:
        smooth = ndimage.gaussian_filter(noise, (0, along, across))
        return physics.speckle_autocorrelation(
            np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)
        )

    white = found(0, 0)
    assert (white[:, 0] == 1.0).all() and np.abs(white[:, 1:]).max() < 0.03
    along, across = found(0, 1.2)
    assert np.abs(along[1:]).max() < 0.1
    # The mean over a window is taken off, which lowers the others by a little.
    assert across[1:3] == pytest.approx(np.exp(-np.array([1, 4]) / (4 * 1.2**2)), abs=0.15)
    assert found(1.2, 0)[0] == pytest.approx(across, abs=0.03)


def test_black_pictures_have_no_speckle_no_depth_and_no_frame():
    black = np.zeros((3, 64, 64), np.uint8)
    assert np.isnan(physics.speckle_autocorrelation(black)).all()
    area = physics.scan_areas(black)
    assert np.isnan(physics.depth_profile(black, area)).all()
    assert (physics.frame_shapes(area) == 0).all()


def test_frames_that_are_broken_frayed_or_of_another_size_are_told():
    real = fans(60)
    labels = np.zeros(60, int)
    limits = physics.FrameLimits.fit(physics.frame_shapes(physics.scan_areas(real)), labels)

    def share(grey: np.ndarray) -> float:
        shape = physics.frame_shapes(physics.scan_areas(grey))
        return limits.well_formed(shape, np.zeros(len(grey), int)).mean()

    assert share(fans(30, seed=1)) > 0.9
    assert (
        share(ndimage.gaussian_filter(fans(30, seed=1), (0, 0.5, 0.5))) > 0.9
    )  # softness is no broken frame
    broken = fans(30, seed=2)
    broken[:, 30:40] = 0
    assert share(broken) == 0
    bitten = fans(30, seed=3)
    bitten[:, 36:, 26:38] = 0
    assert share(bitten) == 0
    full = np.random.default_rng(0).integers(40, 200, (30, 64, 64)).astype(np.uint8)
    assert share(full) == 0
    assert share(np.zeros((5, 64, 64), np.uint8)) == 0


def test_a_class_with_few_pictures_is_held_to_the_limits_of_all():
    shapes, labels = np.array([[1.0, 0.9, 0.5]] * 30 + [[1.0, 0.9, 0.8]]), np.array([0] * 30 + [1])
    limits = physics.FrameLimits.fit(shapes, labels)
    assert set(limits.of_class) == {0}
    assert limits.well_formed(np.array([[1.0, 0.9, 0.5]]), np.array([1])).all()


def test_curves_are_compared_where_a_class_has_both():
    """One class ends above the last depth in the first set: there the other class is compared alone."""
    first_CK = np.array([[1.0, np.nan, np.nan], [3, 5, np.nan]])
    second_CK = np.array([[2.0, 9, 1], [4, 6, 1]])
    first_K, second_K = physics.mean_of_both(first_CK, second_CK)
    np.testing.assert_array_equal(first_K, [2, 5, np.nan])
    np.testing.assert_array_equal(second_K, [3, 6, np.nan])


def test_brightness_along_depth_is_that_of_the_scan_area():
    grey = np.zeros((2, 64, 64), np.uint8)
    grey[:, :32, 16:48], grey[:, 32:, 16:48] = 100, 200
    profile = physics.depth_profile(grey, physics.scan_areas(grey))
    assert profile[:15] == pytest.approx(np.full(15, 100)) and profile[17:] == pytest.approx(np.full(15, 200))


def test_frames_of_one_patient_are_no_variety():
    """Past fault: frames of a patient, all alike, made real images look as poor as a collapsed generator."""
    stream = np.random.default_rng(0)
    patients = np.stack([speckled_disc(2, stream) for _ in range(4)])
    real = ImageSet(patients.repeat(12, axis=0), np.zeros(48, int), group_N=np.arange(4).repeat(12))
    ungrouped = ImageSet(real.grey_NHW, real.label_N)
    single = ImageSet(patients[:1].repeat(3, axis=0), np.zeros(3, int), group_N=np.zeros(3, int))
    left_out: list = []
    sets = {"real_test": real, "generated": ungrouped, "real_train": single}
    found = physics.variety(sets, CLASSES[:1], 0, left_out)
    once = {"real_test": ImageSet(patients, np.zeros(4, int))}
    once = physics.variety(once, CLASSES[:1], 0, [])
    honest = once["real_test"]["Heart"]["ssim_mean"]
    assert found["real_test"]["Heart"]["ssim_mean"] == pytest.approx(honest, abs=0.03)
    assert found["generated"]["Heart"]["ssim_mean"] > honest + 0.1
    assert "Heart" not in found["real_train"] and left_out[0]["what"] == "variety, Heart, real_train"


def discs(counts: tuple[int, ...], seed: int) -> ImageSet:
    """So many pictures of each class of the tiny data; they differ in brightness and in their discs."""
    labels, stream = np.arange(len(counts)).repeat(counts), np.random.default_rng(seed)
    return ImageSet(np.stack([speckled_disc(2 * label, stream) for label in labels]), labels)


def test_other_class_shares_are_no_difference_of_physics():
    """Past fault: a perfect generator, with its classes balanced, was ten times as far off as the floor."""
    test, train = discs((32, 4), 0), discs((64, 8), 1)
    sets = {"generated": discs((25, 25), 2), "real_train": train}
    found, _ = physics.differences_from_test(sets, train, test)
    for key, most in {"grey_level_distance": 1.0, "spectrum_difference_rms_db": 0.5}.items():
        assert found["real_test"][key] == 0 and found["generated"][key] < most, (key, found["generated"][key])
        assert found["real_train"][key] < most
    assert found["generated"]["depth_difference_rms_levels"] < 2


def test_frames_well_formed_are_a_mean_over_classes():
    test, train = discs((32, 4), 0), discs((64, 8), 1)
    broken = discs((30, 10), 2)
    broken.grey_NHW[broken.label_N == 1, 24:40] = 0
    found = physics.differences_from_test({"generated": broken}, train, test)[0]["generated"]
    low, high = found["well_formed_interval_95"]
    assert found["well_formed_frames"] == 30 and low <= found["well_formed_share"] == 0.5 <= high


def test_physics_are_of_the_classes_that_both_sets_have():
    test, train = discs((32, 4), 0), discs((64, 8, 8), 1)
    sets = {"generated": discs((0, 25, 9), 2), "real_train": train}
    found, _ = physics.differences_from_test(sets, train, test)
    assert (found["generated"]["classes"], found["generated"]["images"]) == (1, 25)
    assert found["generated"]["grey_level_distance"] < 1.0
    assert (found["real_train"]["classes"], found["real_train"]["images"]) == (2, 72)
    found, curves = physics.differences_from_test({"generated": discs((0, 0, 9), 2)}, train, test)
    assert set(found) == set(curves) == {"real_test"}


def test_the_figure_draws_the_differences_that_the_table_tells():
    """Past fault: a set of one class was drawn beside the test images of all, 60 grey levels away."""
    test, train = discs((20, 20, 20), 0), discs((40, 40, 40), 1)
    found, curves = physics.differences_from_test({"generated": discs((25,), 2)}, train, test)
    told, drawn = found["generated"], curves["generated"]
    assert told["depth_difference_rms_levels"] == physics.root_mean_square(drawn["depth"]) < 2
    assert told["spectrum_difference_rms_db"] == physics.root_mean_square(drawn["spectrum"]) < 2
    assert told["grey_level_distance"] == pytest.approx(np.abs(np.cumsum(drawn["grey"])).sum())
    assert drawn["frequency"][-1] == 0.5 and not curves["real_test"]["depth"].any()
