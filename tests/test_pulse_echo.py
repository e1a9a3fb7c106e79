"""The physics of the simulator: its statistics against theory, its geometry."""

from dataclasses import replace

import numpy as np
import pytest

from data_preprocessing import pulse_echo

# A linear probe whose gain fits its tissue, with no noise: what comes out is the speckle alone.
PROBE = pulse_echo.Probe(8.0, 40.0, 20.0, 8.0, width_mm=40.0, bands=1, tgc_db=0.5, noise_db=-200.0)
FAN = replace(PROBE, width_mm=0.0, radius_mm=40.0, half_angle_deg=30.0)
MIDDLE = (slice(160, 480), slice(20, -20))


def phantom(probe: pulse_echo.Probe, attenuation: float = 0.5) -> pulse_echo.Tissue:
    return pulse_echo.uniform_tissue(*pulse_echo.beam_points(probe)[:2], attenuation=attenuation)


def mean_db(envelope_ZB: np.ndarray) -> float:
    return float(10 * np.log10((envelope_ZB**2).mean()))


@pytest.mark.parametrize(("bands", "expected"), [(1, 1.913), (2, 2.755)])
def test_speckle_of_a_homogeneous_phantom_has_the_known_snr(bands: int, expected: float) -> None:
    """Mean / standard deviation of the envelope: Rayleigh sqrt(pi / (4 - pi)), two bands Nakagami m = 2.

    About 7,000 independent speckles: the ratio is known to some 2%.
    """
    probe = replace(PROBE, bands=bands)
    envelope_ZB = pulse_echo.simulate_envelope(phantom(probe), probe, np.random.default_rng(0))[MIDDLE]
    assert envelope_ZB.mean() / envelope_ZB.std() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("probe", [PROBE, FAN])
def test_a_fitting_gain_makes_tissue_equally_bright_at_every_depth(probe: pulse_echo.Probe) -> None:
    envelope_ZB = pulse_echo.simulate_envelope(phantom(probe), probe, np.random.default_rng(1))
    for rows in (slice(100, 200), slice(300, 400), slice(500, 600)):
        assert mean_db(envelope_ZB[rows, 30:-30]) == pytest.approx(0, abs=0.7)


def test_point_spread_is_narrow_at_the_focus_and_wide_elsewhere() -> None:
    probe = replace(PROBE, width_mm=10.0)
    x_ZB, z_ZB, spacing_Z = pulse_echo.beam_points(probe)
    depths = (80, 320, 600)  # 5, 20 (the focus) and 37.5 mm
    points_ZB = np.zeros(x_ZB.shape, np.complex64)
    points_ZB[depths, pulse_echo.BEAMS // 2] = 1
    spread_ZB = np.abs(pulse_echo.point_spread(points_ZB, probe, probe.frequency_mhz))
    width_mm = [(spread_ZB[row] > spread_ZB[row].max() / 2).sum() * spacing_Z[row] for row in depths]
    theory_mm = pulse_echo.beam_width_mm(probe, z_ZB[depths, 0], probe.frequency_mhz)
    np.testing.assert_allclose(width_mm, theory_mm, atol=2 * spacing_Z[0])
    assert width_mm[1] < 0.9 * min(width_mm[0], width_mm[2])
    # In depth: cycles x wavelength / 2, everywhere.
    for row in depths:
        pulse = spread_ZB[row - 20 : row + 20, pulse_echo.BEAMS // 2]
        pulse_mm = (pulse > pulse.max() / 2).sum() * probe.depth_mm / pulse_echo.SAMPLES
        assert pulse_mm == pytest.approx(probe.cycles * 1.54 / 2 / probe.frequency_mhz, abs=0.07)


@pytest.mark.parametrize(("attenuation", "expected_db"), [(1.5, -16.0), (0.0, 8.0)])
def test_absorbers_cast_shadows_and_fluid_enhances(attenuation: float, expected_db: float) -> None:
    """10 mm that differ by a dB/cm/MHz change what lies below by 2 x 1 cm x 8 MHz x a, and only that."""
    tissue = phantom(PROBE)
    tissue.attenuation[160:320, 80:144] = attenuation
    envelope_ZB = pulse_echo.simulate_envelope(tissue, PROBE, np.random.default_rng(2))
    below = mean_db(envelope_ZB[360:600, 90:134])
    assert below - mean_db(envelope_ZB[360:600, 20:64]) == pytest.approx(expected_db, abs=1)
    assert mean_db(envelope_ZB[40:140, 90:134]) == pytest.approx(0, abs=1)


def test_an_interface_is_bright_only_towards_its_normal() -> None:
    levels = []
    for slope in (0.0, 1.0):
        tissue = phantom(PROBE)
        tissue.fill(20 + slope * tissue.x - tissue.z, 0, 0.5, 1.75)
        tissue.echo_db -= 60
        envelope_ZB = pulse_echo.simulate_envelope(tissue, PROBE, np.random.default_rng(3))
        levels.append(20 * np.log10(envelope_ZB[100:-20, 90:134].max()))
    assert levels[0] > levels[1] + 8


def test_a_sheet_of_known_reflection_has_that_echo() -> None:
    """The sum of dZ / 2Z over a step is its R; the pulse then has its full height."""
    tissue = phantom(PROBE)
    tissue.fill(20 - tissue.z, 0, 0.5, 1.80)
    reflection = pulse_echo.interface_echo(tissue, PROBE)[0].sum(axis=0) / pulse_echo.SPECULAR_GAIN
    np.testing.assert_allclose(reflection, 0.5 * np.log(1.80 / 1.63), rtol=0.02)


def test_noise_grows_with_depth_in_the_picture() -> None:
    probe = replace(PROBE, noise_db=-40.0)
    tissue = phantom(probe)
    tissue.echo_db -= 200
    envelope_ZB = pulse_echo.simulate_envelope(tissue, probe, np.random.default_rng(4))
    deep, shallow = mean_db(envelope_ZB[480:560]), mean_db(envelope_ZB[240:320])
    assert deep - shallow == pytest.approx(2 * 0.5 * 8 * 1.5, abs=0.5)  # 1.5 cm deeper


def test_log_compression_shows_exactly_the_stated_dynamic_range() -> None:
    level_db = np.array([40.0, 30.0, 15.0, 0.0, -29.9, -30.0, -80.0])
    grey = pulse_echo.log_compress(
        10 ** (level_db / 20), replace(PROBE, white_db=30.0, dynamic_range_db=60.0)
    )
    np.testing.assert_allclose(grey, [255, 255, 191.25, 127.5, 0.425, 0, 0], atol=1e-3)


def test_echo_levels_come_out_as_grey_levels() -> None:
    """Two halves that scatter 20 dB apart are 20 / 60 of the grey scale apart, through the whole chain."""
    tissue = phantom(PROBE)
    tissue.echo_db[:, pulse_echo.BEAMS // 2 :] -= 20
    envelope_ZB = pulse_echo.simulate_envelope(tissue, PROBE, np.random.default_rng(5))
    picture_HW = pulse_echo.scan_convert(pulse_echo.log_compress(envelope_ZB, PROBE), PROBE, 256).astype(
        float
    )
    left, right = picture_HW[60:240, 20:100].mean(), picture_HW[60:240, 156:236].mean()
    assert left - right == pytest.approx(255 * 20 / 60, abs=3)


@pytest.mark.parametrize("probe", [PROBE, FAN])
def test_scan_conversion_puts_a_point_where_it_is(probe: pulse_echo.Probe) -> None:
    x_ZB, z_ZB, _ = pulse_echo.beam_points(probe)
    grey_ZB = np.full(x_ZB.shape, 60.0)
    row, beam = 400, 170
    grey_ZB[row - 2 : row + 3, beam - 1 : beam + 2] = 255
    picture_HW = pulse_echo.scan_convert(grey_ZB, probe, 256)
    found_z, found_x = (axis.mean() for axis in np.nonzero(picture_HW > 150))
    if probe is PROBE:
        pixel_mm, top_mm = 40 / 256, 0.0
    else:
        pixel_mm, top_mm = 80 / 256, 40 * (np.cos(np.pi / 6) - 1)  # width 2 (40 + 40) sin 30 degrees
    assert (found_x - 127.5) * pixel_mm == pytest.approx(x_ZB[row, beam], abs=pixel_mm)
    assert (found_z + 0.5) * pixel_mm + top_mm == pytest.approx(z_ZB[row, beam], abs=pixel_mm)


def test_a_fan_is_black_outside_its_sector() -> None:
    """Grey 0 means outside and nothing else: the preparation crops by it."""
    picture_HW = pulse_echo.scan_convert(np.zeros((pulse_echo.SAMPLES, pulse_echo.BEAMS)), FAN, 200)
    assert set(np.unique(picture_HW)) == {0, 1}
    assert not picture_HW[0, :40].any() and not picture_HW[-1].any()
    # Area of a ring sector: half angle x (outer^2 - inner^2).
    area_mm2 = (picture_HW > 0).sum() * (80 / 200) ** 2
    assert area_mm2 == pytest.approx(np.pi / 6 * (80**2 - 40**2), rel=0.01)
