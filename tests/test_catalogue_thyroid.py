"""Thyroid sets, each in its publisher's layout with its trap: what is found, as what, what is left out."""

import csv

import h5py
import numpy as np
import pytest
from raw_trees import chosen, find, plant, save_volume, speckle, told, write

from data_preprocessing import prepare_datasets
from data_preprocessing.catalogue.entry import in_blocks
from data_preprocessing.prepare_datasets import Settings
from data_preprocessing.work import frames_of
from usvar.errors import InputError


def remarks(found):
    return {record.source: record.remark for record in found.records}


def test_blocks_are_contiguous_in_numerical_order_with_gaps():
    """Sorted as text, 10 would come before 9, and neighbours would part."""
    facts = in_blocks([str(number) for number in range(100)], count=4, gap=2)
    assert [facts[str(number)]["group"] for number in (0, 24, 25, 99)] == [
        "block 0",
        "block 0",
        "block 1",
        "block 3",
    ]
    assert sorted(int(key) for key, fact in facts.items() if "leave" in fact) == [25, 26, 50, 51, 75, 76]


def test_a_small_part_of_a_set_is_not_all_gaps():
    assert in_blocks(["1"], 16, 20) == {"1": {"group": "block 0"}}
    few = in_blocks([f"{number:04}.jpg" for number in range(12)], 16, 20)
    assert {fact["group"] for fact in few.values()} == {f"block {i}" for i in range(4)}
    assert not any("leave" in fact for fact in few.values())


@pytest.mark.parametrize("home", ["DDTI", "thyroid/ddti-thyroid-ultrasound-images", "DDTI/unpacked"])
def test_ddti_original_keeps_cases_and_gives_no_diagnosis(tmp_path, home):
    """Trap: an XML without `tirads` is of unknown class, not benign; and TI-RADS 2 is no diagnosis either."""
    plant(tmp_path / home, "5_1.jpg", "5_2.JPG", "12_1.jpg", "13_1.jpg")
    for case, level in (("5", "<tirads>4a</tirads>"), ("12", ""), ("13", "<tirads> </tirads>")):
        write(
            tmp_path / home / f"{case}.xml",
            f"<case><number>{case}</number><age/>{level}<mark><image>1</image><svg>[]</svg></mark></case>",
        )
    found = find(tmp_path)
    assert told(found) == {
        f"{home}/5_1.jpg": ("Thyroid-Nodule-DDTI", "5", ""),
        f"{home}/5_2.JPG": ("Thyroid-Nodule-DDTI", "5", ""),
        f"{home}/12_1.jpg": ("Thyroid-Nodule-DDTI", "12", ""),
        f"{home}/13_1.jpg": ("Thyroid-Nodule-DDTI", "13", ""),
    }
    assert remarks(found) == {
        f"{home}/5_1.jpg": "TI-RADS 4a",
        f"{home}/5_2.JPG": "TI-RADS 4a",
        f"{home}/12_1.jpg": "",
        f"{home}/13_1.jpg": "",
    }


def plant_ddti_copy(home, count=12):
    for number in range(count):
        names = ("1_or_data/image", "1_or_data/mask", "2_preprocessed_data/stage1/p_image")
        plant(home, *(f"{name}/{number:04}.PNG" for name in names), first=number)
    plant(
        home,
        "2_preprocessed_data/stage1/p_mask/0000.PNG",
        "2_preprocessed_data/stage2/p_image/0000.PNG",
        "2_preprocessed_data/stage2/p_mask/0000.PNG",
    )
    write(home / "1_or_data/category.csv", "ID,CATE\n0000,0\n")
    write(home / "2_preprocessed_data/readme.txt", "cropped")


@pytest.mark.parametrize("home", ["Thyroid Dataset/DDTI dataset/DDTI", "DDTI dataset", "DDTI"])
def test_ddti_png_copy_is_read_once(tmp_path, home):
    """Trap: `.PNG` in capitals; `1_or_data` and `stage1` hold the same pictures; neighbours share a case."""
    plant_ddti_copy(tmp_path / home)
    found = find(tmp_path)
    assert told(found) == {
        f"{home}/1_or_data/image/{number:04}.PNG": ("Thyroid-Nodule-DDTI", f"block {number // 3}", "")
        for number in range(12)
    }
    crops = {f"{home}/2_preprocessed_data/stage1/p_image/{number:04}.PNG" for number in range(12)}
    crops |= {f"{home}/2_preprocessed_data/stage2/p_image/0000.PNG"}
    assert set(found.left_out) == crops and not found.rejected
    with_copies = told(find(tmp_path, "copies"))
    assert set(with_copies) == set(told(found)) | crops
    assert with_copies[f"{home}/2_preprocessed_data/stage1/p_image/0011.PNG"][1] == "block 3"


def test_ddti_gaps_are_left_out_of_both_copies(tmp_path):
    """A frame that is left out beside a border must not come back as its second copy."""
    plant_ddti_copy(tmp_path / "DDTI", 80)
    gaps = {f"{number:04}" for block in range(1, 7) for number in range(12 * block, 12 * block + 3)}
    found = find(tmp_path, "copies")
    assert {source[-8:-4] for source in found.left_out} == gaps
    assert len(found.records) == 2 * (80 - len(gaps)) + 1
    assert len(find(tmp_path, "copies", "gaps").records) == 2 * 80 + 1


def test_ddti_original_is_preferred_to_its_png_copy(tmp_path):
    """Trap: both forms in one folder; only the original knows the cases."""
    plant(tmp_path / "DDTI/original", "1_1.jpg", "1_2.jpg")
    plant_ddti_copy(tmp_path / "DDTI/DDTI dataset", 4)
    found = find(tmp_path)
    assert set(told(found)) == {"DDTI/original/1_1.jpg", "DDTI/original/1_2.jpg"}
    assert len(found.left_out) == 4 + 5


@pytest.mark.parametrize("home", ["Thyroid Dataset/DDTI dataset", "A/DDTI dataset"])
def test_ddti_original_is_preferred_to_its_png_copy_in_another_folder(tmp_path, home):
    """The two come in two archives, and every picture was read twice."""
    plant(tmp_path, "DDTI/1_1.jpg", "DDTI/1_2.jpg")
    plant_ddti_copy(tmp_path / home, 4)
    plant(tmp_path / "Thyroid Dataset/tg3k", "thyroid-image/0000.jpg", first=30)
    found = find(tmp_path)
    assert {record.source for record in found.records if record.dataset == "DDTI"} == {
        *("DDTI/1_1.jpg", "DDTI/1_2.jpg")
    }
    assert len(found.left_out) == 4 + 5
    assert len(find(tmp_path, "copies").records) == 3 + 4 + 5


@pytest.mark.parametrize(
    "home", ["Segthy/US_volunteer_dataset/ground_truth_data", "US_data/ground_truth_data"]
)
def test_segthy_takes_labelled_slices_turned(tmp_path, home):
    """Trap: label volumes are named nearly alike; most slices show no thyroid; probe at the bottom."""
    slices = np.stack([speckle(number) for number in range(9)])
    label = np.zeros_like(slices)
    label[3:8, 10:20, 10:20] = 1
    names = ("001_P1_1_left", "001_P2_1_right", "014_P1_2_left")
    for name in names:
        save_volume(tmp_path / home / f"US/{name}_US.nii", slices)
        save_volume(tmp_path / home / f"US_thyroid_label/{name}.nii", label)
    (tmp_path / home / f"US_thyroid_label/{names[2]}.nii").unlink()
    found = find(tmp_path)
    assert told(found) == {f"{home}/US/{name}_US.nii": ("Thyroid-Gland", name[:3], "") for name in names}
    frames = chosen(tmp_path, found.records[0])
    assert list(frames) == [3, 5, 7]
    np.testing.assert_array_equal(frames[5], slices[5][::-1, ::-1])
    (bare, *_) = find(tmp_path, "unlabelled").records
    assert list(chosen(tmp_path, bare)) == [1, 4, 7]
    assert frames_of(tmp_path, found.records[2], 3) == "its label file 014_P1_2_left.nii is missing"


def test_segthy_finds_packed_labels(tmp_path):
    slices = np.stack([speckle(number) for number in range(4)])
    home = tmp_path / "SegThy/ground_truth_data"
    save_volume(home / "US/002_P3_1_right_US.nii.gz", slices)
    save_volume(home / "US_thyroid_label/002_P3_1_right.nii.gz", (slices > 0).astype(np.uint8))
    (record,) = find(tmp_path).records
    assert list(chosen(tmp_path, record, 2)) == [1, 3]


@pytest.mark.parametrize("home", ["Thyroid Dataset/tg3k", "TG3K/Thyroid Dataset/tg3k", "tg3k"])
def test_tg3k_is_cut_in_blocks(tmp_path, home):
    """Trap: names padded unevenly; JPEG masks; an official list that puts neighbours on two sides."""
    stems = [f"{number:04}" if number % 2 else str(number) for number in range(100)]
    plant(tmp_path / home, *(f"thyroid-image/{stem}.jpg" for stem in stems))
    plant(tmp_path / home, *(f"thyroid-mask/{stem}.jpg" for stem in stems[:5]))
    write(tmp_path / home / "tg3k-trainval.json", '{"train": [0, 2, 4], "val": [1, 3, 5]}')
    found = find(tmp_path)
    # 100 pictures make four blocks of 25 with gaps of 6.
    assert told(found) == {
        f"{home}/thyroid-image/{stem}.jpg": ("Thyroid-Gland", f"block {number // 25}", "")
        for number, stem in enumerate(stems)
        if number < 25 or number % 25 >= 6
    }
    assert len(found.left_out) == 18 and not found.rejected
    assert len(find(tmp_path, "gaps").records) == 100


def test_tg3k_as_a_whole_makes_sixteen_blocks():
    facts = in_blocks([str(number) for number in range(3585)], 16, 20)
    assert len({fact["group"] for fact in facts.values()}) == 16
    assert sum("leave" in fact for fact in facts.values()) == 15 * 20


@pytest.mark.parametrize("home", ["Thyroid Dataset/tn3k", "TN3K/Thyroid Dataset/tn3k", "TN3K"])
def test_tn3k_keeps_its_test_part(tmp_path, home):
    """Trap: stems repeat in trainval and test; `trainval-mask`; header-less lists, padded otherwise."""
    stems = [f"{number:04}" for number in range(8)]
    plant(
        tmp_path / home,
        *(f"{folder}/{stem}.jpg" for stem in stems for folder in ("trainval-image", "trainval-mask")),
        *("test-image/0000.jpg", "test-image/0001.jpg", "test-mask/0000.jpg"),
    )
    write(tmp_path / home / "tn3k-trainval-fold0.json", '{"train": [1, 2], "val": [0]}')
    write(tmp_path / home / "label4trainval.csv", "0.jpg,1\n0001.jpg,0\n")
    write(tmp_path / home / "label4test.csv", "0000.jpg,0\n")
    found = find(tmp_path)
    expected = {
        f"{home}/trainval-image/{stem}.jpg": ("Thyroid-Nodule", f"block {number // 2}", "train")
        for number, stem in enumerate(stems)
    }
    expected |= {f"{home}/test-image/{stem}.jpg": ("Thyroid-Nodule", "", "test") for stem in stems[:2]}
    assert told(found) == expected
    assert {source[len(home) + 1 : -4]: remark for source, remark in remarks(found).items() if remark} == {
        "trainval-image/0000": "malignant",
        "trainval-image/0001": "benign",
        "test-image/0000": "benign",
    }
    assert not found.rejected and not found.left_out


@pytest.mark.parametrize("home", ["TN3K/Thyroid Dataset", "thyroid/TN3K/Thyroid Dataset"])
def test_one_archive_gives_three_sets(tmp_path, home):
    """Trap: the predecessor took TN3K for a duplicate of TG3K; they share an archive, not pictures."""
    home = tmp_path / home
    plant_ddti_copy(home / "DDTI dataset/DDTI", 3)
    plant(home / "tg3k", "thyroid-image/0000.jpg", "thyroid-mask/0000.jpg")
    plant(home / "tn3k", "trainval-image/0000.jpg", "trainval-mask/0000.jpg", "test-image/0000.jpg")
    found = find(tmp_path)
    assert sorted((record.dataset, record.class_name) for record in found.records) == [
        *[("DDTI", "Thyroid-Nodule-DDTI")] * 3,
        ("TG3K", "Thyroid-Gland"),
        *[("TN3K", "Thyroid-Nodule")] * 2,
    ]


def plant_cineclip(home, ids, sheet="annot_id,age,ti-rads_level,histopath_diagnosis\n1_,50,4,0\n2_,60,5,1\n"):
    home.mkdir(parents=True, exist_ok=True)
    images = np.stack([speckle(number) for number in range(len(ids))])
    with h5py.File(home / "dataset.hdf5", "w") as file:
        file["image"] = images
        file["mask"] = np.where(images > 128, 255, 0).astype(np.uint8)
        file["annot_id"] = np.array(ids, dtype="S8")
        file["frame_num"] = np.arange(len(ids))
    write(home / "metadata.csv", sheet)
    return images


@pytest.mark.parametrize(
    "home", ["Thyroid US Cineclip", "cineclip/thyroidultrasoundcineclip", "Cineclip/a/b"]
)
def test_cineclip_is_one_file_of_many_nodules(tmp_path, home):
    """Trap: one array holds all nodules, and not in blocks; the classes lie in another file; masks beside."""
    images = plant_cineclip(tmp_path / home, [b"1_", b"2_", b"1_", b"1_", b"2_", b"1_", b"1_"])
    found = find(tmp_path)
    source = f"{home}/dataset.hdf5"
    assert told(found) == {
        f"{source}#(0, 2, 3, 5, 6)": ("Thyroid-Benign", "1", ""),
        f"{source}#(1, 4)": ("Thyroid-Malignant", "2", ""),
    }
    assert [record.remark for record in found.records] == ["TI-RADS 4", "TI-RADS 5"]
    assert len({record.name for record in found.records}) == 1
    frames = chosen(tmp_path, found.records[0], 3)
    assert list(frames) == [0, 3, 6]
    np.testing.assert_array_equal(frames[3], images[3])


def test_cineclip_nodules_without_diagnosis_are_rejected_one_by_one(tmp_path):
    plant_cineclip(tmp_path / "Cineclip", [b"1_", b"7_"], "annot_id,histopath_diagnosis\n1_,2\n2_,0\n")
    plant_cineclip(tmp_path / "more/Cineclip", [b"1_", b"7_"])
    found = find(tmp_path)
    assert {source: reason.split(", wanted")[0] for source, reason in found.rejected.items()} == {
        "Cineclip/dataset.hdf5#part 1": "unknown label '2'",
        "Cineclip/dataset.hdf5#part 7": "unknown label 'not in metadata.csv'",
        "more/Cineclip/dataset.hdf5#part 7": "unknown label 'not in metadata.csv'",
    }
    assert len(found.records) == 1


def test_cineclip_says_which_list_is_broken(tmp_path):
    plant_cineclip(tmp_path / "Cineclip", [b"1_"], "annot_id,age\n1_,50\n")
    with pytest.raises(InputError, match=r"metadata\.csv lacks the column histopath_diagnosis"):
        find(tmp_path)


@pytest.mark.parametrize(
    "home", ["TNSCUI/TNSCUI2020_train", "TNSCUI2020_train", "TN-SCUI 2020/a/TNSCUI2020_train"]
)
def test_tnscui_takes_pathology_from_its_list(tmp_path, home):
    """Trap: masks of equal names; a list padded otherwise; a picture that it lacks; a strange label."""
    plant(
        tmp_path / home,
        *(
            f"{folder}/{stem}.png"
            for stem in ("00001", "00002", "00010", "00011")
            for folder in ("image", "mask")
        ),
    )
    write(tmp_path / home / "train.csv", "ID,CATE\n1.PNG,0\n00002,1\n10,7\n")
    found = find(tmp_path)
    assert told(found) == {
        f"{home}/image/00001.png": ("Thyroid-Benign", "00001", ""),
        f"{home}/image/00002.png": ("Thyroid-Malignant", "00002", ""),
    }
    assert found.rejected == {
        f"{home}/image/00010.png": "unknown label '7', wanted one of benign, malignant, unknown",
        f"{home}/image/00011.png": "not in the publisher's list",
    }


def test_tnscui_list_without_its_column(tmp_path):
    plant(tmp_path / "TNSCUI", "image/00001.png")
    write(tmp_path / "TNSCUI/train.csv", "ID,label\n1,0\n")
    with pytest.raises(InputError, match=r"train\.csv lacks the column CATE"):
        find(tmp_path)


def test_tnscui_without_its_list_is_said(tmp_path):
    """The list beside the folder is not seen: all became nodules of unknown pathology without a word."""
    plant(tmp_path, "TNSCUI2020_train/image/00001.png")
    write(tmp_path / "train.csv", "ID,CATE\n1,0\n")
    notes = find(tmp_path).notes
    assert notes[1].startswith("WARNING: TNSCUI2020_train: TNSCUI, without train.csv, so less is known")
    (tmp_path / "train.csv").rename(tmp_path / "TNSCUI2020_train/Train.csv")
    assert len(find(tmp_path).notes) == 1


def test_tnscui_repack_has_no_list(tmp_path):
    plant(tmp_path / "tnscui", "JPEGImages/a1.jpg", "JPEGImages/b.jpg", "SegmentationClass/a1.png")
    assert told(find(tmp_path)) == {
        "tnscui/JPEGImages/a1.jpg": ("Thyroid-Nodule", "a1", ""),
        "tnscui/JPEGImages/b.jpg": ("Thyroid-Nodule", "b", ""),
    }


def test_cineclip_is_prepared_by_nodule(tmp_path):
    """From one HDF5 file to images: a nodule on one side of the split, its TI-RADS in the manifest."""
    sheet = "annot_id,ti-rads_level,histopath_diagnosis\n" + "".join(
        f"{nodule}_,{3 + nodule % 3},{nodule % 2}\n" for nodule in range(1, 9)
    )
    plant_cineclip(
        tmp_path / "raw/Cineclip", [f"{nodule}_" for nodule in range(1, 9) for _ in range(5)], sheet
    )
    prepare_datasets.main(Settings(tmp_path / "raw", tmp_path / "out", size=32, workers=1, frames=2))
    with open(tmp_path / "out/manifest.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["file"] for row in rows}) == len(rows) == 16
    nodules = {row["patient"]: (row["class"], row["remark"], row["split"]) for row in rows}
    assert len({(row["patient"], row["split"]) for row in rows}) == 8
    assert {nodule: told[:2] for nodule, told in nodules.items()} == {
        str(nodule): (("Thyroid-Benign", "Thyroid-Malignant")[nodule % 2], f"TI-RADS {3 + nodule % 3}")
        for nodule in range(1, 9)
    }
    # Rows 1 and 3 of a nodule's five.
    assert {int(row["frame"]) for row in rows if row["patient"] == "2"} == {6, 8}
