"""The simulator: its statistics against theory, its geometry, its data set on disk."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_preprocessing import simulate_ultrasound as us
from usvar.errors import InputError

# A linear probe whose gain fits its tissue, with no noise: what comes out is the speckle alone.
PROBE = us.Probe(8.0, 40.0, 20.0, 8.0, width_mm=40.0, bands=1, tgc_db=0.5, noise_db=-200.0)
FAN = replace(PROBE, width_mm=0.0, radius_mm=40.0, half_angle_deg=30.0)
MIDDLE = (slice(160, 480), slice(20, -20))


def phantom(probe: us.Probe, attenuation: float = 0.5) -> us.Tissue:
    return us.uniform_tissue(*us.beam_points(probe)[:2], attenuation=attenuation)


def mean_db(envelope_ZB: np.ndarray) -> float:
    return float(10 * np.log10((envelope_ZB**2).mean()))


@pytest.mark.parametrize(("bands", "expected"), [(1, 1.913), (2, 2.755)])
def test_speckle_of_a_homogeneous_phantom_has_the_known_snr(bands: int, expected: float) -> None:
    """Mean / standard deviation of the envelope: Rayleigh sqrt(pi / (4 - pi)), two bands Nakagami m = 2.

    About 7,000 independent speckles: the ratio is known to some 2%.
    """
    probe = replace(PROBE, bands=bands)
    envelope_ZB = us.simulate_envelope(phantom(probe), probe, np.random.default_rng(0))[MIDDLE]
    assert envelope_ZB.mean() / envelope_ZB.std() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("probe", [PROBE, FAN])
def test_a_fitting_gain_makes_tissue_equally_bright_at_every_depth(probe: us.Probe) -> None:
    envelope_ZB = us.simulate_envelope(phantom(probe), probe, np.random.default_rng(1))
    for rows in (slice(100, 200), slice(300, 400), slice(500, 600)):
        assert mean_db(envelope_ZB[rows, 30:-30]) == pytest.approx(0, abs=0.7)


def test_point_spread_is_narrow_at_the_focus_and_wide_elsewhere() -> None:
    probe = replace(PROBE, width_mm=10.0)
    x_ZB, z_ZB, spacing_Z = us.beam_points(probe)
    depths = (80, 320, 600)  # 5, 20 (the focus) and 37.5 mm
    points_ZB = np.zeros(x_ZB.shape, np.complex64)
    points_ZB[depths, us.BEAMS // 2] = 1
    spread_ZB = np.abs(us.point_spread(points_ZB, probe, probe.frequency_mhz))
    width_mm = [(spread_ZB[row] > spread_ZB[row].max() / 2).sum() * spacing_Z[row] for row in depths]
    theory_mm = us.beam_width_mm(probe, z_ZB[depths, 0], probe.frequency_mhz)
    np.testing.assert_allclose(width_mm, theory_mm, atol=2 * spacing_Z[0])
    assert width_mm[1] < 0.9 * min(width_mm[0], width_mm[2])
    # In depth: cycles x wavelength / 2, everywhere.
    for row in depths:
        pulse = spread_ZB[row - 20 : row + 20, us.BEAMS // 2]
        pulse_mm = (pulse > pulse.max() / 2).sum() * probe.depth_mm / us.SAMPLES
        assert pulse_mm == pytest.approx(probe.cycles * 1.54 / 2 / probe.frequency_mhz, abs=0.07)


@pytest.mark.parametrize(("attenuation", "expected_db"), [(1.5, -16.0), (0.0, 8.0)])
def test_absorbers_cast_shadows_and_fluid_enhances(attenuation: float, expected_db: float) -> None:
    """10 mm that differ by a dB/cm/MHz change what lies below by 2 x 1 cm x 8 MHz x a, and only that."""
    tissue = phantom(PROBE)
    tissue.attenuation[160:320, 80:144] = attenuation
    envelope_ZB = us.simulate_envelope(tissue, PROBE, np.random.default_rng(2))
    below = mean_db(envelope_ZB[360:600, 90:134])
    assert below - mean_db(envelope_ZB[360:600, 20:64]) == pytest.approx(expected_db, abs=1)
    assert mean_db(envelope_ZB[40:140, 90:134]) == pytest.approx(0, abs=1)


def test_an_interface_is_bright_only_towards_its_normal() -> None:
    levels = []
    for slope in (0.0, 1.0):
        tissue = phantom(PROBE)
        tissue.fill(20 + slope * tissue.x - tissue.z, 0, 0.5, 1.75)
        tissue.echo_db -= 60
        envelope_ZB = us.simulate_envelope(tissue, PROBE, np.random.default_rng(3))
        levels.append(20 * np.log10(envelope_ZB[100:-20, 90:134].max()))
    assert levels[0] > levels[1] + 8


def test_a_sheet_of_known_reflection_has_that_echo() -> None:
    """The sum of dZ / 2Z over a step is its R; the pulse then has its full height."""
    tissue = phantom(PROBE)
    tissue.fill(20 - tissue.z, 0, 0.5, 1.80)
    reflection = us.interface_echo(tissue, PROBE)[0].sum(axis=0) / us.SPECULAR_GAIN
    np.testing.assert_allclose(reflection, 0.5 * np.log(1.80 / 1.63), rtol=0.02)


def test_noise_grows_with_depth_in_the_picture() -> None:
    probe = replace(PROBE, noise_db=-40.0)
    tissue = phantom(probe)
    tissue.echo_db -= 200
    envelope_ZB = us.simulate_envelope(tissue, probe, np.random.default_rng(4))
    deep, shallow = mean_db(envelope_ZB[480:560]), mean_db(envelope_ZB[240:320])
    assert deep - shallow == pytest.approx(2 * 0.5 * 8 * 1.5, abs=0.5)  # 1.5 cm deeper


def test_log_compression_shows_exactly_the_stated_dynamic_range() -> None:
    level_db = np.array([40.0, 30.0, 15.0, 0.0, -29.9, -30.0, -80.0])
    grey = us.log_compress(10 ** (level_db / 20), replace(PROBE, white_db=30.0, dynamic_range_db=60.0))
    np.testing.assert_allclose(grey, [255, 255, 191.25, 127.5, 0.425, 0, 0], atol=1e-3)


def test_echo_levels_come_out_as_grey_levels() -> None:
    """Two halves that scatter 20 dB apart are 20 / 60 of the grey scale apart, through the whole chain."""
    tissue = phantom(PROBE)
    tissue.echo_db[:, us.BEAMS // 2 :] -= 20
    envelope_ZB = us.simulate_envelope(tissue, PROBE, np.random.default_rng(5))
    picture_HW = us.scan_convert(us.log_compress(envelope_ZB, PROBE), PROBE, 256).astype(float)
    left, right = picture_HW[60:240, 20:100].mean(), picture_HW[60:240, 156:236].mean()
    assert left - right == pytest.approx(255 * 20 / 60, abs=3)


@pytest.mark.parametrize("probe", [PROBE, FAN])
def test_scan_conversion_puts_a_point_where_it_is(probe: us.Probe) -> None:
    x_ZB, z_ZB, _ = us.beam_points(probe)
    grey_ZB = np.full(x_ZB.shape, 60.0)
    row, beam = 400, 170
    grey_ZB[row - 2 : row + 3, beam - 1 : beam + 2] = 255
    picture_HW = us.scan_convert(grey_ZB, probe, 256)
    found_z, found_x = (axis.mean() for axis in np.nonzero(picture_HW > 150))
    if probe is PROBE:
        pixel_mm, top_mm = 40 / 256, 0.0
    else:
        pixel_mm, top_mm = 80 / 256, 40 * (np.cos(np.pi / 6) - 1)  # width 2 (40 + 40) sin 30 degrees
    assert (found_x - 127.5) * pixel_mm == pytest.approx(x_ZB[row, beam], abs=pixel_mm)
    assert (found_z + 0.5) * pixel_mm + top_mm == pytest.approx(z_ZB[row, beam], abs=pixel_mm)


def test_a_fan_is_black_outside_its_sector() -> None:
    """Grey 0 means outside and nothing else: the preparation crops by it."""
    picture_HW = us.scan_convert(np.zeros((us.SAMPLES, us.BEAMS)), FAN, 200)
    assert set(np.unique(picture_HW)) == {0, 1}
    assert not picture_HW[0, :40].any() and not picture_HW[-1].any()
    # Area of a ring sector: half angle x (outer^2 - inner^2).
    area_mm2 = (picture_HW > 0).sum() * (80 / 200) ** 2
    assert area_mm2 == pytest.approx(np.pi / 6 * (80**2 - 40**2), rel=0.01)


@pytest.mark.parametrize("class_name", list(us.ANATOMIES))
def test_views_share_the_anatomy_and_nothing_else(class_name: str) -> None:
    """Views of one patient resemble each other more than another patient; speckle and gain differ."""
    x_ZB, z_ZB, _ = us.beam_points(PROBE)
    maps = [us.anatomy_of(class_name, p, 0, 0.0, x_ZB * 3, z_ZB * 3).echo_db for p in (0, 0, 1)]
    np.testing.assert_array_equal(maps[0], maps[1])
    assert np.abs(maps[0] - maps[2]).mean() > 1
    pictures = [
        us.simulate_image(class_name, p, v, 0, 64)[0].astype(float) for p, v in ((0, 0), (0, 1), (1, 0))
    ]
    assert (pictures[0] != pictures[1]).mean() > 0.2
    same, other = (np.corrcoef(pictures[0].ravel(), picture.ravel())[0, 1] for picture in pictures[1:])
    assert same > other + 0.03
    probes = [us.set_up(class_name, 0, view, 0)[0] for view in (0, 1)]
    assert probes[0].frequency_mhz == probes[1].frequency_mhz
    assert probes[0].white_db != probes[1].white_db


def test_a_benign_mass_enhances_and_a_malignant_one_shadows() -> None:
    """Median over patients of the level below the mass against the level beside it, in dB."""
    change_db = {}
    for class_name in ("Breast-Benign", "Breast-Malignant"):
        x_ZB, z_ZB, _ = us.beam_points(PROBE)
        changes = []
        for patient in range(10):
            tissue = us.anatomy_of(class_name, patient, 0, 0.0, x_ZB, z_ZB)
            total_B = tissue.attenuation[: us.SAMPLES * 3 // 4].mean(axis=0)
            ends = np.median(np.r_[total_B[:20], total_B[-20:]])
            middle = total_B[np.abs(total_B - ends).argmax()]
            changes.append(-2 * 3 * PROBE.frequency_mhz * (middle - ends))
        change_db[class_name] = np.median(changes)
    assert change_db["Breast-Benign"] > 3
    assert change_db["Breast-Malignant"] < -6


def test_the_nearest_class_mean_of_tiny_pictures_tells_the_classes_apart() -> None:
    """Six classes, 4 patients to learn from and 2 others, 16 x 16 pixels; chance is 1 in 6."""
    tiny = np.array(
        [
            [us.simulate_image(c, p, 0, 3, 64)[0].reshape(16, 4, 16, 4).mean((1, 3)) for p in range(6)]
            for c in us.ANATOMIES
        ]
    )
    distance = ((tiny[:, 4:, None] - tiny[:, :4].mean(axis=1)) ** 2).sum((-1, -2))
    assert (distance.argmin(-1) == np.arange(6)[:, None]).mean() > 0.8


def run(out_root: Path, **changes: object) -> None:
    base = us.Settings(out_root, 2, ("Heart", "Breast-Benign"), views_per_patient=2, size=64, workers=1)
    us.main(replace(base, **changes))


def contents(out_root: Path) -> dict[str, bytes]:
    return {p.relative_to(out_root).as_posix(): p.read_bytes() for p in sorted(out_root.glob("*/*"))}


def test_the_data_set_on_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Layout, resuming, and bytes that depend on the seed only: not on workers, order or classes."""
    one, two, other = tmp_path / "one", tmp_path / "two", tmp_path / "other"
    run(one)
    run(two, workers=2, images_per_class=3, classes=("Breast-Benign", "Heart"))
    run(other, seed=1, classes=("Heart",))
    files = contents(one)
    assert list(files) == [f"{c}/patient0000_view{v}.png" for c in ("Breast-Benign", "Heart") for v in (0, 1)]
    assert len(set(files.values())) == 4
    assert all(contents(two)[name] == data for name, data in files.items())
    assert contents(other)["Heart/patient0000_view0.png"] != files["Heart/patient0000_view0.png"]
    with Image.open(one / "Heart/patient0000_view1.png") as picture:
        assert picture.mode == "RGB" and picture.size == (64, 64)
        array = np.asarray(picture)
        assert (array[..., 0] == array[..., 2]).all() and array.max() > 150
        assert not array[0, :20].any()
    with open(one / "simulation.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [
        f"{c}/patient0000_view{v}.png" for c in ("Heart", "Breast-Benign") for v in (0, 1)
    ]
    assert float(rows[0]["half_angle_deg"]) > 0 and float(rows[2]["width_mm"]) > 0
    record = json.loads((one / "made_by.json").read_text(encoding="utf-8"))
    assert record["settings"]["seed"] == 0 and record["script"] == us.SCRIPT

    capsys.readouterr()
    run(one)
    assert "nothing to do" in capsys.readouterr().out
    kept = one / "Heart/patient0000_view0.png"
    before = kept.stat().st_mtime_ns
    (one / "Heart/patient0000_view1.png").unlink()
    (one / "Heart/.tmp-1-patient0000_view1.png").write_bytes(b"half")
    run(one)
    assert contents(one) == files and kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images_per_class": 0}, "--images-per-class 0 was given, wanted 1 to"),
        ({"views_per_patient": 0}, "--views-per-patient 0 was given, wanted 1 to 100"),
        ({"size": 20}, "--size 20 was given, wanted 64 to 1024"),
        ({"seed": -1}, "--seed -1"),
        ({"classes": ()}, "--classes"),
        ({"classes": ("Heart", "Heart")}, "--classes"),
    ],
)
def test_settings_that_make_no_data_set(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    made = tmp_path / "made"
    run(made, images_per_class=1, classes=("Heart",))
    before = contents(made)
    for changes, message in (
        ({"seed": 1}, "made with seed 0, wanted 1"),
        ({"size": 128}, "made with size 64, wanted 128"),
        ({"views_per_patient": 3}, "views_per_patient 2, wanted 3"),
        ({"classes": ("Kidney",)}, "these settings do not make"),
    ):
        with pytest.raises(InputError, match=message):
            run(made, **changes)
    record = json.loads((made / "made_by.json").read_text(encoding="utf-8"))
    record["inputs"]["simulator"]["sha256"] = "0" * 64
    (made / "made_by.json").write_text(json.dumps(record), encoding="utf-8")
    run(made, images_per_class=1, classes=("Heart",))  # complete: the version does not matter
    with pytest.raises(InputError, match="another version of the simulator"):
        run(made, images_per_class=2, classes=("Heart",))
    assert contents(made) == before
    (made / "made_by.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match="was not written by"):
        run(made)
    (made / "made_by.json").unlink()
    with pytest.raises(InputError, match="no made_by"):
        run(made)
