"""Muscle and carotid samples beyond the 43 rows: a small tree in each publisher's layout, with its trap."""

import numpy as np
import pytest
from raw_trees import empty_png, find, plant, save, speckle, told, write


@pytest.mark.parametrize("home", ["TimTrack", "ultrasound-automated-algorithm-main", "TimTrack/clone/x"])
def test_timtrack(tmp_path, home):
    """Folders are subjects in data sets 1 and 4, speeds in 3 (the subject is in the name), movements in 2."""
    pictures = {
        "dataset 1/S2/S2_L20_step_225.png": "S2",
        "dataset 1/S2/S2_R20_step_025.png": "S2",
        "dataset 1/S11/S11_R20_step_225.png": "S11",
        "dataset 2/jumping/gastroc_jumping_084.png": "dataset 2",
        "dataset 2/range-of-motion/gastroc_range_of_motion_842.png": "dataset 2",
        "dataset 3/030/p6_isokinetic030_01_push_01_123.jpg": "p6",
        "dataset 3/isometric/p6_isometric_max_01_push_01_10.jpg": "p6",
        "dataset 4/SampleA/GM_T_1.PNG": "SampleA",
    }
    plant(tmp_path / home, *pictures)
    # What the repository holds beside its data.
    plant(tmp_path / home, "figures/S2.png", "dataset 1/overview.png", first=50)
    write(tmp_path / home / "dataset 1/S2/S2_L20.mat", b"MATLAB")
    if home.startswith("ultrasound"):
        (tmp_path / home).rename(tmp_path / "ultrasound-automated-algorithm")
        home = "ultrasound-automated-algorithm"
    found = find(tmp_path)
    assert told(found) == {f"{home}/{name}": ("Muscle", group, "") for name, group in pictures.items()}
    assert {record.frame for record in found.records} == {"rectangle"}
    assert not found.rejected and not found.left_out


def screen(number: int, colour: tuple[int, int, int] | None = None) -> np.ndarray:
    """A grey picture with blue text, and a coloured patch when it shows Doppler."""
    rgb_HWC = np.dstack([speckle(number)] * 3)
    rgb_HWC[2:6, 5:40] = (60, 120, 200)
    if colour:
        rgb_HWC[30:40, 30:40] = colour
    return rgb_HWC


@pytest.mark.parametrize(
    "home", ["carotids/data_samples", "carotids", "carotids/clone/carotids/data_samples"]
)
def test_carotids(tmp_path, home):
    """Doppler is told by colour only; `segmentation_samples` are cuts of other pictures, not masks."""
    classified = tmp_path / home / "classification_samples"
    save(classified / "201501061011050145VAS.png", screen(1))
    save(classified / "201501061011390150VAS.png", screen(2))
    save(classified / "201501061013070161VAS.png", screen(3, (230, 120, 40)))  # a spectrum
    save(classified / "201711081140010077VAS.png", screen(4, (220, 30, 10)))  # colour
    plant(
        tmp_path / home,
        "localization_samples/longitudinal/201509291151590620VAS.png",
        "localization_samples/transverse/201811211122300246VAS.png",
        "segmentation_samples/longitudinal/2201509291151590620.png",
        "segmentation_samples/transverse/1201811211122300246.png",
        first=10,
    )
    grey = {
        f"{home}/classification_samples/201501061011050145VAS.png": ("Carotid", "20150106", ""),
        f"{home}/classification_samples/201501061011390150VAS.png": ("Carotid", "20150106", ""),
        f"{home}/localization_samples/longitudinal/201509291151590620VAS.png": ("Carotid", "20150929", ""),
        f"{home}/localization_samples/transverse/201811211122300246VAS.png": ("Carotid", "20181121", ""),
    }
    doppler = {
        f"{home}/classification_samples/201501061013070161VAS.png": ("Carotid", "20150106", ""),
        f"{home}/classification_samples/201711081140010077VAS.png": ("Carotid", "20171108", ""),
    }
    # In the group of the picture that they are cut from.
    cuts = {
        f"{home}/segmentation_samples/longitudinal/2201509291151590620.png": ("Carotid", "20150929", ""),
        f"{home}/segmentation_samples/transverse/1201811211122300246.png": ("Carotid", "20181121", ""),
    }
    found = find(tmp_path)
    assert told(found) == grey and not found.rejected
    assert set(found.left_out) == {*doppler, *cuts}
    assert told(find(tmp_path, "doppler")) == grey | doppler
    assert told(find(tmp_path, "copies")) == grey | cuts


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\nbroken", empty_png(30_000, 30_000)])
def test_a_broken_picture_does_not_stop_discovery(tmp_path, content):
    """It is found, and rejected when it is looked at."""
    write(tmp_path / "carotids/classification_samples/201501061011050145VAS.png", content)
    assert len(find(tmp_path).records) == 1
