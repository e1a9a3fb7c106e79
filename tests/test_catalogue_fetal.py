"""The fetal sets in their publishers' layouts."""

import numpy as np
import pytest
from raw_trees import chosen, find, plant, save_volume, speckle, told, write

from usvar.errors import InputError

SWEEPS = "uuid,subject_id,sweep_1_ac_mm,sweep_2_ac_mm\n"


def acouslic(home, masks: str) -> None:
    """Cases a and b are of one woman; c has an empty mask, d is in no list, e has lost its mask."""
    for first, (name, marked) in enumerate(
        {"a-1": (2, 5, 6), "b-2": (0,), "c-3": (), "d-4": (1,), "e-5": (1,)}.items()
    ):
        sweep = np.stack([speckle(10 * first + number) for number in range(8)])
        save_volume(home / f"images/stacked_fetal_ultrasound/{name}.mha", sweep)
        mask = np.zeros_like(sweep)
        for number in marked:
            mask[number, 30:40, 30:40] = 1 + number % 2
        if name != "e-5":
            save_volume(home / masks / "stacked_fetal_abdomen" / f"{name}.mha", mask)
    write(
        home / "circumferences/fetal_abdominal_circumferences_per_sweep.csv",
        SWEEPS + "a-1,S7,,301\nb-2,S7,,\nc-3,S8,,\ne-5,S9,,\n",
    )


@pytest.mark.parametrize("masks", ["masks", "images/masks"])
@pytest.mark.parametrize("folder", ["ACOUSLIC/acouslic-ai-train-set", "ACOUSLIC-AI", "acouslic-ai-train-set"])
def test_acouslic_takes_the_frames_with_a_mask(tmp_path, folder, masks):
    """Traps: a mask that is 0 throughout; `masks` in or beside `images`; two cases of one woman."""
    acouslic(tmp_path / folder, masks)
    found = find(tmp_path)
    source = folder + "/images/stacked_fetal_ultrasound/{}.mha"
    assert told(found) == {
        source.format(name): ("Fetal-Abdomen", group, "")
        for name, group in (("a-1", "S7"), ("b-2", "S7"), ("c-3", "S8"), ("e-5", "S9"))
    }
    assert found.rejected == {source.format("d-4"): "not in the publisher's list"}
    assert not found.left_out
    frames = chosen(tmp_path, found.records[0], 2)
    assert list(frames) == [2, 6] and np.array_equal(frames[6], speckle(6))
    assert list(chosen(tmp_path, found.records[1])) == [0]

    from data_preprocessing.work import frames_of

    assert frames_of(tmp_path, found.records[2], 3) == "no frame with a label"
    assert frames_of(tmp_path, found.records[3], 3) == "its label file e-5.mha is missing"
    # The switch takes frames whatever the masks say.
    found = find(tmp_path, "unlabelled")
    assert [list(chosen(tmp_path, record, 2)) for record in found.records] == [[2, 6]] * 4


def test_acouslic_list_without_a_column_is_named(tmp_path):
    acouslic(tmp_path / "ACOUSLIC", "masks")
    write(
        tmp_path / "ACOUSLIC/circumferences/fetal_abdominal_circumferences_per_sweep.csv",
        "uuid,sweep_1_ac_mm\na-1,300\n",
    )
    with pytest.raises(InputError, match=r"per_sweep\.csv lacks the column subject_id"):
        find(tmp_path)


@pytest.mark.parametrize(
    "folder",
    [
        "FASS/Fetal Abdominal Structures Segmentation Dataset Using Ultrasonic Images",
        "Fetal Abdominal Structures Segmentation Dataset Using Ultrasonic Images",
        "FASS",
    ],
)
def test_fass_takes_pictures_and_no_arrays(tmp_path, folder):
    """Traps: pickled arrays beside the pictures; ids padded unevenly, which are compared as text."""
    names = {"P01_IMG1": "P01", "P01_IMG2": "P01", "P0149_IMG1": "P0149", "P149_IMG1": "P149"}
    plant(tmp_path, *(f"{folder}/IMAGES/{name}.png" for name in names))
    for name in names:
        write(tmp_path / folder / f"ARRAY_FORMAT/{name}.npy", b"\x93NUMPY pickled")
    found = find(tmp_path)
    assert told(found) == {
        f"{folder}/IMAGES/{name}.png": ("Fetal-Abdomen", group, "") for name, group in names.items()
    }
    assert not found.rejected and not found.left_out


@pytest.mark.parametrize(
    "ac, hc",
    [
        ("Dataset/AC/image", "Dataset/HC/image"),
        ("Dataset/AC/AC_image1", "Dataset/HC/HC_image2"),
        ("Dataset/AC/AC_image2/image", "Dataset/HC/HC_image3/image"),
        ("AC/images", "HC/images"),
        ("a/Dataset/AC/resized_data/image", "a/Dataset/HC/resized_data/image"),
    ],
)
def test_fast_u_net_is_read_for_its_abdomens(tmp_path, ac, hc):
    """Trap: the heads are HC18's training set once more, and an examination is in both of their lists."""
    home = tmp_path / "Fast-U-Net"
    names = ("0001", "0002", "fa_0001")
    plant(home, *(f"{ac}/{name}.png" for name in names))
    plant(home, *(f"{ac.replace('image', 'mask')}/{name}.png" for name in names), first=50)
    heads = ("514_HC", "514_2HC", "100_HC")
    plant(home, *(f"{hc}/{name}.png" for name in heads), first=20)
    plant(home, *(f"{hc.replace('image', 'mask')}/{name}_Annotation.png" for name in heads), first=70)
    for part, train, val in (("AC", names[:2], names[2:]), ("HC", heads[:1], heads[1:])):
        folder = home / (ac if part == "AC" else hc).split(f"{part}/")[0] / part
        for split, stems in (("train", train), ("val", val)):
            lines = "".join(f"resized_data/image/{s}.png resized_data/mask/{s}.png\n" for s in stems)
            write(folder / f"{split}.txt", lines)
    found = find(tmp_path)
    abdomens = {
        f"Fast-U-Net/{ac}/{name}.png": ("Fetal-Abdomen", "", "test" if "fa" in name else "train")
        for name in names
    }
    copies = {f"Fast-U-Net/{hc}/{name}.png": ("Fetal-Head", name.split("_")[0], "") for name in heads}
    assert told(found) == abdomens
    assert found.left_out.keys() == copies.keys() and not found.rejected
    assert all("HC18" not in r.dataset for r in found.records)
    assert told(find(tmp_path, "copies")) == abdomens | copies


FH_FOLDER = "Pubic Symphysis-Fetal Head Segmentation and Angle of Progression"


@pytest.mark.parametrize("folder", [f"FH-PS-AOP/{FH_FOLDER}", FH_FOLDER, "FH-PS-AOP"])
def test_fh_ps_aop_reads_one_of_three_equal_planes(tmp_path, folder):
    """Trap: a (3, 256, 256) array is one picture, not three slices; the labels have the same names."""
    for number in range(1, 4):
        plane = speckle(number, 256, 256)
        save_volume(tmp_path / folder / f"image_mha/{number:05}.mha", np.stack([plane] * 3))
        save_volume(tmp_path / folder / f"label_mha/{number:05}.mha", (plane > 99).astype(np.uint8))
    found = find(tmp_path, "gaps")
    assert [record.source for record in found.records] == [
        f"{folder}/image_mha/{number:05}.mha" for number in range(1, 4)
    ]
    assert {record.class_name for record in found.records} == {"Fetal-Head-Intrapartum"}
    assert not found.rejected
    for number, record in enumerate(found.records, 1):
        frames = chosen(tmp_path, record)
        assert list(frames) == [0] and np.array_equal(frames[0], speckle(number, 256, 256))


def test_fh_ps_aop_neighbours_stay_in_one_block(tmp_path):
    """Trap: frames of few women without a name: whole blocks in the order of the numbers, with gaps."""
    for number in range(1, 401):
        write(tmp_path / f"FH-PS-AOP/image_mha/{number:05}.mha", b"")
    found = find(tmp_path)
    block_of = {int(r.source[-9:-4]): r.group for r in found.records}
    assert len(set(block_of.values())) == 20 and len(block_of) == 400 - 19 * 2
    for number, block in block_of.items():
        if block_of.get(number + 1, block) != block:
            pytest.fail(f"{number} and its neighbour lie in two blocks without a gap")
    assert not {21, 22} & set(block_of) and {20, 23} <= set(block_of)
    assert all("--include gaps" in why for why in found.left_out.values())
    assert len(found.left_out) == 38 and len(find(tmp_path, "gaps").records) == 400


@pytest.mark.parametrize("inner", ["{}", "{0}/{0}", "HC/{}"])
@pytest.mark.parametrize("folder", ["HC18", "HC"])
def test_hc18_exams_of_training_and_test_differ(tmp_path, folder, inner):
    """Trap: 010_HC and 010_2HC are one examination, its annotation no picture, test starts again at 000."""
    training, test = inner.format("training_set"), inner.format("test_set")
    plant(
        tmp_path / folder,
        *(f"{training}/{name}.png" for name in ("000_HC", "010_HC", "010_2HC", "000_HC_Annotation")),
        *(f"{training}/{name}.png" for name in ("010_HC_Annotation", "010_2HC_Annotation", "010_HC_Mask")),
        f"{test}/000_HC.PNG",
    )
    write(tmp_path / folder / "training_set_pixel_size_and_HC.csv", "filename\n000_HC.png\n")
    found = find(tmp_path)
    assert told(found) == {
        f"{folder}/{training}/000_HC.png": ("Fetal-Head", "train/000", "train"),
        f"{folder}/{training}/010_HC.png": ("Fetal-Head", "train/010", "train"),
        f"{folder}/{training}/010_2HC.png": ("Fetal-Head", "train/010", "train"),
        f"{folder}/{test}/000_HC.PNG": ("Fetal-Head", "test/000", "test"),
    }
    assert not found.rejected and not found.left_out


def test_a_fetal_set_of_another_layout_names_its_marker(tmp_path):
    plant(tmp_path, "FASS/pictures/P01.png", "BUSI/benign/benign (1).png")
    write(tmp_path / "Fast-U-Net/Dataset/AC/AC_image1.rar", "packed")
    notes = "\n".join(find(tmp_path).notes)
    assert "named like FASS, but no path like IMAGES/P01_IMG1.png is in it; found pictures" in notes
    assert "AC_image1.rar still packed, unpack there (RAR archives below Dataset/AC" in notes
