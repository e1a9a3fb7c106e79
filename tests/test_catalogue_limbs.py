"""Muscle, nerve, spine and carotid sets, each in its publisher's layout with its trap."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from raw_trees import chosen, find, plant, save, save_video, speckle, told, write

from data_preprocessing import prepare_datasets
from data_preprocessing.prepare_datasets import Settings
from usvar.errors import InputError


def save_array(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


@pytest.mark.parametrize("home", ["ASUS/DataArrays", "ASUS", "spine/DataArrays"])
def test_asus_arrays_without_their_masks(tmp_path, home):
    """Trap: masks are arrays too; floats from 0 to 1 with a last axis of one; the probe at the bottom."""
    frames = np.stack([speckle(number) for number in range(7)])
    for name in ("101_ultrasound", "102_ultrasound"):
        save_array(tmp_path / home / f"{name}.npy", frames[..., None].astype(np.float32) / 255)
    for name in ("101_segmentation", "102_Segmentation_v2", "101_ultrasound_mask"):
        save_array(tmp_path / home / f"{name}.npy", (frames[..., None] > 128).astype(np.float32))
    found = find(tmp_path)
    assert told(found) == {
        f"{home}/101_ultrasound.npy": ("Spine", "101", ""),
        f"{home}/102_ultrasound.npy": ("Spine", "102", ""),
    }
    pictures = chosen(tmp_path, found.records[0])
    assert list(pictures) == [1, 3, 5]
    # Scaled by the array's own range, 20 to 255.
    turned = frames[3][::-1, ::-1].astype(float)
    assert np.corrcoef(pictures[3].ravel(), turned.ravel())[0, 1] > 0.9999


@pytest.mark.parametrize("home", ["brachial_plexus", "brachial_plexus-main", "Regional-US/brachial_plexus"])
def test_brachial_plexus_pictures_are_in_the_videos(tmp_path, home):
    """Trap: every JPG of the tree is a mask; the odd folder `P_021_09_masks`."""
    data = tmp_path / home / "data"
    frames = [speckle(number) for number in range(9)]
    save_video(data / "Sonosite/videos/s005.mp4", frames)
    save_video(data / "Butterfly/videos/b240.MP4", frames[::-1])
    plant(
        data,
        *(f"Sonosite/ac_masks/s005/s005_{number:03}.jpg" for number in range(3)),
        *("eSaote/needle_masks/e001/e001_000.jpg", "Sonosite/ac_masks/P_021_09_masks/000.jpg"),
    )
    write(data / "Sonosite/bb_annotations/s005.txt", "0 1 2 3 4")
    write(tmp_path / home / "subjects_data.csv", "vid_name,nerve,frame_cnt,needle,gac_iter\ns005,1,9,0,3\n")
    found = find(tmp_path)
    assert told(found) == {
        f"{home}/data/Butterfly/videos/b240.MP4": ("Nerve", "b240", ""),
        f"{home}/data/Sonosite/videos/s005.mp4": ("Nerve", "s005", ""),
    }
    pictures = chosen(tmp_path, found.records[1])
    assert list(pictures) == [1, 4, 7]
    grey_HW = pictures[4].mean(-1) if pictures[4].ndim == 3 else pictures[4]
    assert np.corrcoef(grey_HW.ravel(), frames[4].ravel())[0, 1] > 0.9


@pytest.mark.parametrize("home", ["CCAUI/Common Carotid Artery Ultrasound Images", "CCAUI", "d4xt63mgjm/a"])
def test_ccaui_by_days(tmp_path, home):
    """Trap: masks of equal names; a person has several recordings, so the recording is no safe group."""
    names = [
        "202201121748100022VAS_slice_1128.png",
        "202201121748100022VAS_slice_1129.png",
        "202201121755100024VAS_slice_12.png",
        "202202031101000007VAS_slice_3.png",
    ]
    for folder in ("US images", "Expert mask images"):
        plant(tmp_path / home, *(f"{folder}/{name}" for name in names))
    found = find(tmp_path)
    assert told(found) == {f"{home}/US images/{name}": ("Carotid", name[:8], "") for name in names}
    assert not found.left_out


@pytest.mark.parametrize("home", ["FALLMUD", "FALLMUD/FALLMUD", "muscle/FALLMUD"])
def test_fallmud_in_blocks(tmp_path, home):
    """Trap: masks of equal stems in two folders and other formats; numbers restart in the second half."""
    cronin = [f"NeilCronin/images/img_{number:05}.tif" for number in range(1, 9)]
    cunningham = [f"RyanCunningham/images/{number}.jpg" for number in range(80)]
    plant(tmp_path / home, *cronin, *cunningham)
    plant(
        tmp_path / home,
        *("NeilCronin/aponeurosis_masks/img_00001.tif", "NeilCronin/fascicle_masks/img_00001.jpg"),
        *("RyanCunningham/aponeurosis_masks/0.jpg", "RyanCunningham/fascicle_masks/0.jpg"),
    )
    found = find(tmp_path)
    # 80 pictures make blocks of 12 with gaps of 3; as text, 10 would follow 1.
    gaps = {number for block in range(1, 7) for number in range(12 * block, 12 * block + 3)}
    expected = {
        f"{home}/{name}": ("Muscle", f"NeilCronin block {number}", "") for number, name in enumerate(cronin)
    }
    expected |= {
        f"{home}/{name}": ("Muscle", f"RyanCunningham block {number // 12}", "")
        for number, name in enumerate(cunningham)
        if number not in gaps
    }
    assert told(found) == expected
    assert set(found.left_out) == {f"{home}/{cunningham[number]}" for number in gaps}
    assert len(find(tmp_path, "gaps").records) == 88


@pytest.mark.parametrize(
    "home",
    [
        "STMUS_NDA/DATASET for Deep learning (muscle) assessment/Polito-Radboud-DeepLearningUS",
        "Polito-Radboud-DeepLearningUS",
        "STMUS_NDA",
    ],
)
def test_stmus_skips_the_networks_own_data(tmp_path, home):
    """Trap: `Segmentation_models` beside `BB` holds resized copies; masks of equal names; six folders."""
    expected = {}
    for muscle in ("BB", "GM", "TA"):
        for condition in ("Healthy", "Pathological"):
            folder = f"{muscle}/{condition}"
            names = [f"{folder}/Images/s{number}_{part}.png" for number in (2, 10) for part in (1, 2, 3, 4)]
            plant(tmp_path / home, *names, f"{folder}/Masks/s2_1.png")
            # Blocks of two: the eight pictures of a folder in numerical order, 2 before 10.
            expected |= {
                f"{home}/{name}": (f"Muscle-{condition}", f"{condition} block {place // 2}", "")
                for place, name in enumerate(names)
            }
    models = f"{home}/Segmentation_models/data/MuscleCNN"
    plant(tmp_path / models, "train/s2_1.png", "val/s10_1.png", "trainannot/s2_1.png", "valannot/s10_1.png")
    found = find(tmp_path)
    assert told(found) == expected
    copies = {f"{models}/train/s2_1.png", f"{models}/val/s10_1.png"}
    assert set(found.left_out) == copies and not found.rejected
    both = told(find(tmp_path, "copies"))
    assert both == expected | dict.fromkeys(copies, ("Muscle", "", ""))


def test_stmus_with_its_copies_can_be_split(tmp_path):
    """One group of all copies joined all blocks, and the run ended for want of a second group."""
    home = tmp_path / "raw/STMUS_NDA"
    for number, condition in enumerate(("Healthy", "Pathological")):
        plant(home, *(f"BB/{condition}/Images/{place}.png" for place in range(8)), first=8 * number)
    for place in range(8):
        picture = Image.fromarray(speckle(place)).resize((64, 64))
        save(home / f"Segmentation_models/data/MuscleCNN/train/{place}.png", np.asarray(picture))
    settings = Settings(tmp_path / "raw", tmp_path / "out", size=32, workers=1, include=("copies",))
    prepare_datasets.main(settings)
    with open(tmp_path / "out/manifest.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["class"] for row in rows} == {"Muscle-Healthy", "Muscle-Pathological"}
    assert {row["split"] for row in rows if row["class"] == "Muscle-Healthy"} == {"train", "val", "test"}


def test_stmus_leaves_gaps_between_blocks(tmp_path):
    names = [f"BB/Healthy/Images/{number}.png" for number in range(40)]
    plant(tmp_path / "STMUS_NDA", *names)
    gaps = {number for block in range(1, 5) for number in (8 * block, 8 * block + 1)}
    assert set(find(tmp_path).left_out) == {f"STMUS_NDA/BB/Healthy/Images/{number}.png" for number in gaps}
    assert len(find(tmp_path, "gaps").records) == 40


@pytest.mark.parametrize("home", ["UPBD", "UBPD/data", "Ultrasound brachial plexus dataset"])
def test_ubpd_reads_gbk(tmp_path, home):
    """Trap: JSON in GBK with Chinese text; labels in pinyin; a misspelt set; a picture without JSON."""
    plant(tmp_path / home, *(f"JPEGImages/{name}.jpg" for name in ("p1_2", "p1_10", "p2_1", "p10_1")))
    for name, labels in (("p1_2", ("shenjing", "dongmai", "shenjing")), ("p2_1", ("jirouzuzhi", "gutou"))):
        content = {
            "imagePath": "臂丛神经\\" + name,
            "shapes": [{"label": label, "points": [[0, 0], [9, 0], [9, 9]]} for label in labels],
        }
        text = json.dumps(content, ensure_ascii=False)
        write(tmp_path / home / f"json_train/{name}.json", text.encode("gbk" if name == "p1_2" else "utf-8"))
    found = find(tmp_path)
    names = ("p1_2", "p1_10", "p2_1", "p10_1")
    assert told(found) == {
        f"{home}/JPEGImages/{name}.jpg": ("Nerve", f"block {place}", "") for place, name in enumerate(names)
    }
    assert {record.source.split("/")[-1]: record.remark for record in found.records if record.remark} == {
        "p1_2.jpg": "artery, nerve",
        "p2_1.jpg": "gutou, muscle",
    }


@pytest.mark.parametrize("content", ["{", "[]", '{"shapes": [{}]}'])
def test_ubpd_names_a_broken_file(tmp_path, content):
    plant(tmp_path / "UBPD", "JPEGImages/1.jpg")
    write(tmp_path / "UBPD/json_train/1.json", content)
    with pytest.raises(InputError, match=r"json_train/1\.json is no"):
        find(tmp_path)


@pytest.mark.parametrize(
    "home",
    ["ultrasound-nerve-segmentation", "US nerve Segmentation/kaggle", "nerve/ultrasound-nerve-segmentation"],
)
def test_us_nerve_keeps_subjects_and_the_test_part(tmp_path, home):
    """Trap: masks beside the pictures; test numbers without a subject that look like train's frames."""
    plant(
        tmp_path / home,
        *("train/1_1.tif", "train/1_2.tif", "train/10_1.TIF", "test/1.tif", "test/2.tif"),
        *("train/1_1_mask.tif", "train/10_1_mask.TIF"),
    )
    write(tmp_path / home / "train_masks.csv", "subject,img,pixels\n1,1,\n")
    found = find(tmp_path)
    assert told(found) == {
        f"{home}/train/1_1.tif": ("Nerve", "train/1", "train"),
        f"{home}/train/1_2.tif": ("Nerve", "train/1", "train"),
        f"{home}/train/10_1.TIF": ("Nerve", "train/10", "train"),
        f"{home}/test/1.tif": ("Nerve", "", "test"),
        f"{home}/test/2.tif": ("Nerve", "", "test"),
    }
    assert not found.rejected and not found.left_out
