"""The sets of ovary and prostate in their publishers' layouts."""

import numpy as np
import pytest
from raw_trees import chosen, find, plant, save_volume, speckle, told, write

from usvar.errors import InputError

SCANS, EXPERT = (
    "{}/micro_ultrasound_scans/microUS_{}.nii.gz",
    "{}/expert_annotations/expert_annotation_{}.nii.gz",
)
# An earlier naming, all files of a part in one folder.
FLAT_SCANS, FLAT_EXPERT = "{}/microUS_{}.nii.gz", "{}/expert_annotation_{}.nii.gz"


def micro_seg(home, scans: str = SCANS, expert: str = EXPERT) -> None:
    """train_01 and test_01 are two patients; the prostate is in slices 2, 3 and 6, for others in all."""
    for first, name in enumerate(("train_01", "train_02", "test_01")):
        part = name.split("_")[0]
        scan = np.stack([speckle(10 * first + number) for number in range(8)])
        save_volume(home / scans.format(part, name), scan)
        mask = np.zeros_like(scan)
        mask[[2, 3, 6], 20:30, 20:30] = 1
        save_volume(home / expert.format(part, name), mask)
        if part == "train" and expert == EXPERT:
            save_volume(home / f"{part}/non_expert_annotations/non_expert_annotation_{name}.nii.gz", mask + 1)


@pytest.mark.parametrize(
    "folder",
    [
        "MicroSeg/Micro_Ultrasound_Prostate_Segmentation_Dataset",
        "Micro_Ultrasound_Prostate_Segmentation_Dataset",
        "MicroSeg",
        "MUP",
    ],
)
@pytest.mark.parametrize("layout", [(SCANS, EXPERT), (FLAT_SCANS, FLAT_EXPERT)])
def test_micro_seg_numbers_start_again_in_test(tmp_path, folder, layout):
    """Traps: train_01 and test_01 are two patients; two kinds of annotations. MUP alone is read."""
    scans, expert = layout
    micro_seg(tmp_path / folder, scans, expert)
    found = find(tmp_path)
    assert told(found) == {
        f"{folder}/{scans.format(name.split('_')[0], name)}": ("Prostate", name, name.split("_")[0])
        for name in ("train_01", "train_02", "test_01")
    }
    assert {record.dataset for record in found.records} == {"MicroSeg"}
    assert not found.rejected and not found.left_out
    first = next(record for record in found.records if "train_01" in record.source)
    frames = chosen(tmp_path, first, 2)
    assert list(frames) == [2, 6] and np.array_equal(frames[6], speckle(6)[::-1, ::-1])
    unlabelled = find(tmp_path, "unlabelled").records
    assert [list(chosen(tmp_path, record, 4)) for record in unlabelled] == [[1, 3, 5, 7]] * 3


def test_mup_yields_nothing_beside_micro_seg(tmp_path):
    """Trap: MUP is an earlier naming of the same record."""
    micro_seg(tmp_path / "MicroSeg")
    micro_seg(tmp_path / "MUP", FLAT_SCANS, FLAT_EXPERT)
    found = find(tmp_path)
    assert len(found.records) == 3
    assert all(record.source.startswith("MicroSeg/") for record in found.records)
    assert "MUP: MUP left out, the same pictures as MicroSeg" in found.notes


def mmotu(home) -> None:
    for number in range(8):
        plant(home, f"images/{number}.JPG", first=number)
        plant(home, f"annotations/{number}.PNG", f"annotations/{number}_binary.PNG", first=50 + number)
        plant(home, f"annotations/{number}_binary_binary.PNG", first=90 + number)
    for split, numbers in (("train", (0, 1, 2, 3, 4)), ("val", (5, 6, 7))):
        write(home / f"{split}.txt", "".join(f"{number}\n" for number in numbers))


TYPES = (
    *("Ovary-Chocolate-Cyst", "Ovary-Serous-Cystadenoma", "Ovary-Teratoma", "Ovary-Theca-Cell-Tumour"),
    *("Ovary-Simple-Cyst", "Ovary-Normal", "Ovary-Mucinous-Cystadenoma", "Ovary-High-Grade-Serous"),
)


def ovary_types(home) -> None:
    """Number n is of type n; 8 is in no list and 9 of an unknown type."""
    for split, numbers in (("train", (0, 1, 2, 3, 4, 9)), ("val", (5, 6, 7))):
        write(home / f"{split}_cls.txt", "".join(f"{number}.JPG  {number}\n" for number in numbers))
    plant(home, "images/8.JPG", "images/9.JPG", first=8)


@pytest.mark.parametrize("folder", ["MMOTU/OTU_2d", "MMOTU-2D", "OTU_2d", "MMOTU/a/OTU_2d"])
def test_mmotu_2d_types_come_from_the_lists(tmp_path, folder):
    """Traps: two kinds of binary masks with `.PNG`; two blanks in a list; types in the authors' order."""
    mmotu(tmp_path / folder)
    ovary_types(tmp_path / folder)
    found = find(tmp_path)
    assert told(found) == {
        f"{folder}/images/{number}.JPG": (name, "", "train" if number < 5 else "test")
        for number, name in enumerate(TYPES)
    }
    assert found.rejected == {
        f"{folder}/images/8.JPG": "not in the publisher's list",
        f"{folder}/images/9.JPG": "unknown label '9', wanted one of 0, 1, 2, 3, 4, 5, 6, 7",
    }
    assert not found.left_out


def test_mmotu_2d_broken_list_is_named(tmp_path):
    mmotu(tmp_path / "MMOTU/OTU_2d")
    write(tmp_path / "MMOTU/OTU_2d/train_cls.txt", "1.JPG\n")
    with pytest.raises(InputError, match=r"train_cls\.txt, line 1"):
        find(tmp_path)


def test_mmotu_2d_copy_in_folders_of_types(tmp_path):
    """The copy that is sorted by type has no lists, and its masks have the pictures' numbers."""
    home = tmp_path / "MMOTU/OTU_2d"
    for number, name in enumerate(("chocolate_cyst", "high-grade_serous_cystadenoma")):
        plant(home, f"{name}/images/{number}.JPG", f"{name}/annotations/{number}.PNG", first=number)
    found = find(tmp_path)
    assert told(found) == {
        "MMOTU/OTU_2d/chocolate_cyst/images/0.JPG": ("Ovary-Chocolate-Cyst", "", ""),
        "MMOTU/OTU_2d/high-grade_serous_cystadenoma/images/1.JPG": ("Ovary-High-Grade-Serous", "", ""),
    }


@pytest.mark.parametrize("folder", ["MMOTU/dataset/OTU_2D", "MMOTU/OTU_2D", "OTU_2D"])
def test_mmotu_2d_copy_of_figshare_has_no_types(tmp_path, folder):
    """Trap: other folders, masks with the pictures' names, no lists, so only the organ is known."""
    plant(tmp_path / folder, "train/train_image/1.JPG", "train/train_label/label/1.PNG")
    plant(tmp_path / folder, "test/image/2.JPG", "test/label/black_write/2.PNG", first=5)
    found = find(tmp_path)
    assert told(found) == {
        f"{folder}/train/train_image/1.JPG": ("Ovary", "", "train"),
        f"{folder}/test/image/2.JPG": ("Ovary", "", "test"),
    }
    assert not found.rejected and not found.left_out


@pytest.mark.parametrize(
    "folder", ["MMOTU-3D/OTU_3d", "MMOTU-3D", "OTU_3d", "MMOTU/A/OTU_3d", "MMOTU/z/OTU_3d"]
)
def test_mmotu_3d_is_left_out_for_its_contrast(tmp_path, folder):
    """Traps: still pictures in spite of the name; the same numbers as in OTU_2d, whose lists are others."""
    mmotu(tmp_path / folder)
    ovary_types(tmp_path / folder)
    mmotu(tmp_path / "MMOTU/OTU_2d")
    write(tmp_path / "MMOTU/OTU_2d/train_cls.txt", "0.JPG  5\n1.JPG  5\n")
    write(tmp_path / "MMOTU/OTU_2d/train.txt", "5\n6\n7\n")
    write(tmp_path / "MMOTU/OTU_2d/val.txt", "0\n1\n")
    plain = find(tmp_path)
    wanted = {
        f"{folder}/images/{number}.JPG": (
            "Ovary-CEUS",
            "",
            "train" if number < 5 else "test" if number < 8 else "",
        )
        for number in range(10)
    }
    assert told(plain) == {
        f"MMOTU/OTU_2d/images/{number}.JPG": ("Ovary-Normal", "", "train") for number in (0, 1)
    }
    assert plain.left_out.keys() == wanted.keys()
    assert all("--include contrast" in why for why in plain.left_out.values())
    assert told(find(tmp_path, "contrast")) == told(plain) | wanted


def test_mmotu_3d_copy_of_figshare(tmp_path):
    home = tmp_path / "MMOTU/dataset"
    plant(home, "OTU_CEUS/image/1.JPG", "OTU_CEUS/label/1.PNG", "OTU_2D/test/image/1.JPG")
    found = find(tmp_path)
    assert told(found) == {"MMOTU/dataset/OTU_2D/test/image/1.JPG": ("Ovary", "", "test")}
    assert list(found.left_out) == ["MMOTU/dataset/OTU_CEUS/image/1.JPG"]
    assert len(find(tmp_path, "contrast").records) == 2


def reg_pro(home) -> None:
    """Volumes of 20 x 24 x 10 (z, y, x); the gland is in x = 3, 4 and 8, a second structure elsewhere."""
    for first, (part, case) in enumerate((("train", 0), ("train", 1), ("val", 65))):
        volume = np.stack([speckle(10 * first + x, 24, 20) for x in range(10)], axis=-1)
        label = np.zeros((2, 20, 24, 10), np.uint8)
        label[0, 5:9, 5:9, [3, 4, 8]] = 1
        label[1, 5:9, 5:9, [0, 1]] = 1
        for kind in ("us", "mr"):
            save_volume(home / part / f"{kind}_images/case{case:06}.nii.gz", volume)
            save_volume(home / part / f"{kind}_labels/case{case:06}.nii.gz", label)


@pytest.mark.parametrize("folder", ["regPro", "regPro/a", "mu-RegPro/data/x"])
def test_reg_pro_takes_ultrasound_slices_of_the_gland(tmp_path, folder):
    """Traps: magnetic resonance of the same names; slices along x; a 4D label, the gland first."""
    reg_pro(tmp_path / folder)
    found = find(tmp_path)
    assert told(found) == {
        f"{folder}/{part}/us_images/{case}.nii.gz": ("Prostate", case, part)
        for part, case in (("train", "case000000"), ("train", "case000001"), ("val", "case000065"))
    }
    assert not found.rejected and not found.left_out
    frames = chosen(tmp_path, found.records[0])
    assert list(frames) == [3, 4, 8]
    assert np.array_equal(frames[8], speckle(8, 24, 20)[::-1, ::-1])
    unlabelled = find(tmp_path, "unlabelled").records
    assert list(chosen(tmp_path, unlabelled[0], 2)) == [2, 7]


def test_a_pelvic_set_of_another_layout_names_its_marker(tmp_path):
    plant(tmp_path, "MicroSeg/pictures/1.png", "BUSI/benign/benign (1).png")
    write(tmp_path / "regPro/train.zip", "packed")
    notes = "\n".join(find(tmp_path).notes)
    assert "no path like train/micro_ultrasound_scans/microUS_train_01.nii.gz is in it" in notes
    assert "train.zip still packed, unpack there (train.zip and val.zip, side by side)" in notes
