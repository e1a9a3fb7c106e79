"""The simulator: its patients, its views, its data set on disk."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_preprocessing import pulse_echo
from data_preprocessing import simulate_ultrasound as us
from data_preprocessing.anatomies import ANATOMIES
from usvar.errors import InputError
from usvar.files import lock_folder

PROBE = pulse_echo.Probe(8.0, 40.0, 20.0, 8.0, width_mm=40.0)


@pytest.mark.parametrize("class_name", list(ANATOMIES))
def test_views_share_the_anatomy_and_nothing_else(class_name: str) -> None:
    """Views of one patient resemble each other more than another patient; speckle and gain differ."""
    x_ZB, z_ZB, _ = pulse_echo.beam_points(PROBE)
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
        x_ZB, z_ZB, _ = pulse_echo.beam_points(PROBE)
        changes = []
        for patient in range(10):
            tissue = us.anatomy_of(class_name, patient, 0, 0.0, x_ZB, z_ZB)
            total_B = tissue.attenuation[: pulse_echo.SAMPLES * 3 // 4].mean(axis=0)
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
            for c in ANATOMIES
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


def test_two_runs_at_once(tmp_path: Path) -> None:
    """The second removed the first one's drafts."""
    with lock_folder(tmp_path), pytest.raises(InputError, match=r"another run writes to .*--out-root"):
        run(tmp_path, images_per_class=1, classes=("Heart",))
    assert not contents(tmp_path)


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
    record["inputs"]["physics"]["sha256"] = "0" * 64
    (made / "made_by.json").write_text(json.dumps(record), encoding="utf-8")
    run(made, images_per_class=1, classes=("Heart",))  # complete: the version does not matter
    with pytest.raises(InputError, match="another version of the simulator"):
        run(made, images_per_class=2, classes=("Heart",))
    # Killed before its table was written, it is not complete: made_by.json would name the new version.
    (made / "simulation.csv").unlink()
    with pytest.raises(InputError, match="another version of the simulator"):
        run(made, images_per_class=1, classes=("Heart",))
    assert contents(made) == before
    (made / "made_by.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match="was not written by"):
        run(made)
    (made / "made_by.json").unlink()
    with pytest.raises(InputError, match="no made_by"):
        run(made)
