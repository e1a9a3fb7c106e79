"""What discovery does with folders that are not as their publishers made them."""

import errno
import os
import re
import shutil
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest
from raw_trees import find, plant, told, write

from data_preprocessing import discover as module
from data_preprocessing.catalogue import DataSet, Layout
from usvar.errors import InputError

BUSI = "Dataset_BUSI_with_GT/benign/benign (1).png"
HOSPITAL = "STU-Hospital/Hospital/Test_Image_1.png"


def sources(found) -> set[str]:
    return {record.source for record in found.records}


def note_of(found, folder: str) -> str:
    """The one printed line about a folder."""
    (note,) = [note for note in found.notes if note.removeprefix("WARNING: ").startswith(f"{folder}:")]
    return note


def use(monkeypatch, *entries: DataSet) -> None:
    """Made-up entries, so that a rule is seen by itself."""
    monkeypatch.setattr(module, "CATALOGUE", entries)


def test_a_folder_that_is_not_that_set(tmp_path):
    """The marker that was looked for and what was found instead are named; other sets are read."""
    plant(tmp_path, HOSPITAL, "BUSI/pictures/deep/er/1.png")
    write(tmp_path / "BUSI/readme.txt", "hello")
    found = find(tmp_path)
    assert sources(found) == {HOSPITAL}
    assert note_of(found, "BUSI") == (
        "WARNING: BUSI: left out, named like BUSI, but no path like benign/benign (1).png is in it; "
        "found pictures, readme.txt: lay it out so, or rename it if the pictures are your own"
    )


def test_a_set_that_gave_nothing_beside_another_is_named(tmp_path):
    """Beside a set that was read in the same folder it was lost without a word."""
    plant(tmp_path, "fetal/HC18/training_set/000_HC.png", "fetal/FASS/pictures/P01.png")
    found = find(tmp_path)
    assert sources(found) == {"fetal/HC18/training_set/000_HC.png"}
    assert found.notes == [
        "fetal: HC18, 1 files",
        "WARNING: fetal: FASS not read, no path like IMAGES/P01_IMG1.png is in FASS/",
    ]


def test_folders_beside_a_set_are_named(tmp_path):
    """A set under an unknown name and own classes were lost; masks and the publisher's arrays are not."""
    plant(tmp_path, "breast/BUSI/benign/benign (1).png", "breast/BUSI masks/1.png", "breast/Cyst/1.png")
    plant(tmp_path, "breast/BUSBRA_v2/Images/bus_0001-l.png", "FASS/IMAGES/P01_IMG1.png", first=10)
    write(tmp_path / "breast/lists/1.csv", "1,2\n")
    write(tmp_path / "FASS/ARRAY_FORMAT/P01_IMG1.npy", b"")
    found = find(tmp_path)
    assert sources(found) == {"breast/BUSI/benign/benign (1).png", "FASS/IMAGES/P01_IMG1.png"}
    assert found.notes == [
        "FASS: FASS, 1 files",
        "FASS: nothing was read of 1 folders with files named like pictures (ARRAY_FORMAT)",
        "breast: BUSI, 1 files",
        "WARNING: breast: nothing was read of 2 folders with files named like pictures (BUSBRA_v2, Cyst): "
        "name known sets as docs/datasets.md does, move own classes to <raw-root>/<AnyName>/<Class>",
    ]


def test_a_part_of_a_set_that_is_named_like_another_is_its_own(tmp_path):
    """TimTrack has a subject S1, and HC in Fast-U-Net is no HC18."""
    plant(tmp_path, "TimTrack/dataset 1/S1/S1_L20_step_225.png", "Fast-U-Net/Dataset/HC/image/514_HC.png")
    plant(tmp_path, "Fast-U-Net/Dataset/AC/image/0001.png", "muscle/TimTrack/S1/1.png", first=10)
    plant(tmp_path, "muscle/TimTrack/dataset 1/S1/S1_L20_step_225.png", first=20)
    write(tmp_path / "Fast-U-Net/Dataset/AC/train.txt", "image/0001.png mask/0001.png\n")
    assert not [note for note in find(tmp_path).notes if "WARNING" in note or "nothing" in note]


@pytest.mark.parametrize(
    ("folder", "names", "layout"),
    [
        ("105US", ("001.png", "001 G man.png"), "105 US Images/001.png"),
        ("MMOTU-2D", ("1.JPG", "1.PNG"), "OTU_2d/images/1.JPG"),
        ("BUSI", ("Cyst/1.png", "Cyst/1 outlined.png"), "benign/benign (1).png"),
    ],
)
@pytest.mark.parametrize("around", ["", "shelf/"])
def test_a_set_in_another_layout_is_never_read_as_own_pictures(tmp_path, folder, names, layout, around):
    """It was announced as left out, and then its masks became pictures of a class."""
    plant(tmp_path, *(f"{around}{folder}/{name}" for name in names))
    wanted = re.escape(f"named like {folder}, but no path like {layout}")
    with pytest.raises(InputError, match=f"holds no usable picture .*{wanted}"):
        find(tmp_path)
    # Nor is it where there are own pictures beside it.
    own = {f"{around}Cyst/1.png", f"{around}Abscess/1.png"}
    plant(tmp_path, *own, first=10)
    found = find(tmp_path)
    assert sources(found) == own and found.classes == {"Abscess", "Cyst"}
    if not around:
        assert len([note for note in found.notes if "WARNING" in note]) == 1
        assert re.search(wanted, note_of(found, folder))
    elif "/" not in names[0]:
        assert re.search(wanted, note_of(found, f"shelf/{folder}"))


def test_own_masks_beside_their_pictures_are_left_out_aloud(tmp_path):
    """They were taken for images: only folders named like masks were noticed."""
    pictures = {f"mine/Cyst/{name}.png" for name in ("1", "1_unmasked", "damask 2", "free", "gtx3")}
    masks = {f"mine/Cyst/{name}.png" for name in ("1_mask", "2 Mask 1", "gt3", "p1-annotated", "labels")}
    plant(tmp_path, *pictures, *masks)
    found = find(tmp_path)
    assert sources(found) == pictures and found.left_out.keys() == masks
    assert set(found.left_out.values()) == {"named like a mask: rename it if it is a picture"}
    assert found.notes[0].startswith("mine: own pictures, 5 files in 1 classes; the patients of 5 of them")
    assert found.notes[1:] == [
        "WARNING: mine: 5 files left out, named like masks, such as Cyst/1_mask.png: rename them if they are "
        "pictures"
    ]
    # A class of nothing else is not forgotten.
    plant(tmp_path, "others/Cyst/gt_1.png", first=20)
    found = find(tmp_path)
    assert sources(found) == pictures and found.empty_classes == ["Cyst"]
    assert found.notes[2] == "others: own pictures, 0 files in 1 classes"


@pytest.mark.parametrize(
    ("name", "is_mask"),
    [
        *((name, True) for name in ("ground_truth", "GroundTruth", "masks2", "SegmentationClass", "seg")),
        *((name, True) for name in ("SegmentationObject", "Ground truths", "lesion_segs", "GT")),
        *((name, False) for name in ("Muscle", "Segment-5", "Underground", "Damask", "Mastitis")),
    ],
)
def test_folders_of_own_masks_are_no_class(tmp_path, name, is_mask):
    plant(tmp_path, "mine/Cyst/1.png", f"mine/{name}/1.png", HOSPITAL)
    found = find(tmp_path)
    assert found.classes == ({"Breast"} if is_mask else {"Breast", "Cyst", name})


def test_own_files_beside_pictures_are_left_out(tmp_path):
    """A list beside each picture made half of all files unreadable, and the run was refused."""
    plant(tmp_path, "mine/Cyst/1.png", "mine/Cyst/2.png")
    for name in ("1.json", "2.json", "1_mask.txt", "volume.raw"):
        write(tmp_path / "mine/Cyst" / name, "{}")
    found = find(tmp_path)
    assert sources(found) == {"mine/Cyst/1.png", "mine/Cyst/2.png"} and not found.rejected
    assert dict(found.left_out) == {
        f"mine/Cyst/{name}": "no picture, volume or video by its suffix"
        for name in ("1.json", "2.json", "1_mask.txt", "volume.raw")
    }
    assert "2 files in 1 classes (4 no pictures by their suffix, such as Cyst/1.json)" in found.notes[0]


@pytest.mark.parametrize("stray", ["training/Heart/1.png", "train/1_1.tif", "Test/Heart/1.png"])
def test_a_stray_split_folder_hides_no_known_set(tmp_path, stray):
    """It made the raw root a person's own split. Read by itself, it would be split anew: it is left out."""
    plant(tmp_path, HOSPITAL, stray)
    found = find(tmp_path)
    assert sources(found) == {HOSPITAL}
    folder = stray.split("/")[0]
    assert note_of(found, folder) == (
        f"WARNING: {folder}: left out, a split's folder beside data sets: move it to "
        f"{tmp_path}/<DataSet>/{folder}"
    )


def test_a_split_in_the_raw_root(tmp_path):
    """It is read as such, also where a class is called like a set."""
    plant(tmp_path, "train/Hospital/1.png", "test/Hospital/2.png")
    assert told(find(tmp_path)) == {
        "train/Hospital/1.png": ("Hospital", "", "train"),
        "test/Hospital/2.png": ("Hospital", "", "test"),
    }


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(("Training", "train"), ("train_set", "train"), ("valid", "val"), ("Validation set", "val")),
        *(("dev", "val"), ("testing", "test"), ("Test Data", "test"), ("held-out", "test")),
    ],
)
@pytest.mark.parametrize("home", ["Mine/", ""])
def test_usual_names_of_splits(tmp_path, name, split, home):
    """A person's `testing` was dropped, and another test split was drawn from train."""
    other = "train" if split != "train" else "test"
    plant(tmp_path, f"{home}{name}/A/1.png", f"{home}{other}/A/2.png")
    found = find(tmp_path)
    assert told(found) == {
        f"{home}{name}/A/1.png": ("A", "", split),
        f"{home}{other}/A/2.png": ("A", "", other),
    }
    assert not [note for note in found.notes if "WARNING" in note]


@pytest.mark.parametrize("home", ["Mine/", ""])
def test_pictures_beside_splits_are_named(tmp_path, home):
    """They were only counted, among files elsewhere."""
    plant(tmp_path, *(f"{home}{name}/A/1.png" for name in ("train", "test", "extern", "fold 2")))
    write(tmp_path / f"{home}lists/all.csv", "1\n")
    found = find(tmp_path)
    assert len(found.records) == 2
    title = "Mine" if home else tmp_path.name
    assert (
        f"WARNING: {title}: 2 folders with pictures beside train, val or test left out (extern, fold 2): "
        "give them a split's name, or move their classes into a split"
    ) in found.notes


def test_class_folders_in_the_raw_root_are_not_called_left_out(tmp_path):
    plant(tmp_path, "A/1.png", "B/1.png")
    (note,) = find(tmp_path).notes
    assert note.startswith(f"{tmp_path.name}: own pictures, 2 files in 2 classes")


def test_an_unknown_folder(tmp_path):
    plant(tmp_path, HOSPITAL, "strange/a/b/c.png")
    (tmp_path / "empty").mkdir()
    found = find(tmp_path)
    assert sources(found) == {HOSPITAL}
    why = "left out, not a known data set, and no class folders with pictures; found"
    assert note_of(found, "strange") == f"WARNING: strange: {why} a"
    assert note_of(found, "empty") == f"WARNING: empty: {why} nothing"


@pytest.mark.parametrize(
    "home",
    [
        "Dataset_BUSI_with_GT",
        "BUSI",
        "BUSI/Dataset_BUSI_with_GT",
        "downloads/BUSI",
        "a/b/Dataset_BUSI_with_GT",
    ],
)
def test_one_level_deeper_or_shallower(tmp_path, home):
    plant(tmp_path / home, "benign/benign (1).png")
    found = find(tmp_path)
    assert told(found) == {f"{home}/benign/benign (1).png": ("Breast-Benign", "", "")}
    assert found.records[0].dataset == "BUSI"


def test_the_raw_root_is_the_set_itself(tmp_path):
    """Read as class folders, masks would become pictures: it is refused, and the right folder is named."""
    folder = tmp_path / "raw" / "BUSI"
    plant(folder, "benign/benign (1).png", "benign/benign (1)_mask.png")
    with pytest.raises(InputError, match=r"is the folder of BUSI itself.*give --raw-root .*raw$"):
        find(folder)
    # A person's own folder that happens to have a set's name is not.
    plant(tmp_path / "Hospital", "Cyst/1.png")
    assert told(find(tmp_path / "Hospital")) == {"Cyst/1.png": ("Cyst", "", "")}


@pytest.mark.parametrize("name", ["BUSI", "busi", "b u-s_i", "Dataset BUSI (with GT)"])
def test_names_of_folders_are_compared_by_letters_and_digits(tmp_path, name):
    plant(tmp_path / name, "benign/benign (1).png")
    assert [record.dataset for record in find(tmp_path).records] == ["BUSI"]


def test_odd_names_and_mixed_case(tmp_path):
    """Blanks, brackets, plus signs, letters beyond ASCII and capitals in folders, stems and suffixes."""
    names = {
        "Höspital +1 (neu)/BUSI/Benign/BENIGN (1).PNG",
        "Höspital +1 (neu)/BUSI/malignant/malignant (2).Png",
        "mine/Zyste groß/bild+1 (ä).JPG",
        "mine/Zyste groß/图.jpeg",
    }
    plant(tmp_path, *names)
    found = find(tmp_path)
    assert sources(found) == names and not found.rejected
    outputs = {record.name for record in found.records}
    assert len(outputs) == 4 and all(name.isascii() and " " not in name for name in outputs)


@pytest.mark.skipif(os.name != "posix", reason="file names are text here")
def test_a_name_that_is_no_text_is_rejected(tmp_path):
    plant(tmp_path, HOSPITAL)
    try:
        with open(os.fsencode(tmp_path / "STU-Hospital/Hospital/") + b"/Test_\xff_1.png", "wb"):
            pass
    except OSError:
        pytest.skip("this file system takes text only")
    found = find(tmp_path)
    assert sources(found) == {HOSPITAL}
    assert list(found.rejected.values()) == ["its name is no valid text"]


def test_files_of_the_system_are_not_seen(tmp_path):
    """`__MACOSX` repeats the tree with names that fit the pattern."""
    plant(tmp_path / "BUSI", BUSI)
    plant(tmp_path, "__MACOSX/BUSI/benign/benign (1).png", f"BUSI/__MACOSX/{BUSI}", first=5)
    plant(tmp_path, "BUSI/.hidden/benign (2).png", "mine/Cyst/1.png", "mine/__MACOSX/2.png", first=9)
    for name in (
        "BUSI/.DS_Store",
        "BUSI/Dataset_BUSI_with_GT/benign/._benign (1).png",
        "mine/Cyst/Thumbs.db",
        ".DS_Store",
    ):
        write(tmp_path / name, b"\0")
    write(tmp_path / "mine/Cyst/desktop.ini", b"\0")
    found = find(tmp_path)
    assert sources(found) == {f"BUSI/{BUSI}", "mine/Cyst/1.png"}
    assert not found.rejected and len(found.notes) == 2


def test_an_archive_in_the_raw_root(tmp_path):
    plant(tmp_path, HOSPITAL)
    for name in ("BUSBRA.ZIP", "set.tar.gz", "CardiacUDC.change2zip", "part.z01"):
        write(tmp_path / name, b"PK")
    (note,) = [note for note in find(tmp_path).notes if "packed" in note]
    assert note.startswith("WARNING: BUSBRA.ZIP, CardiacUDC.change2zip, part.z01, set.tar.gz in ")
    # One whose folder lies beside it has done its work, and was named on every run.
    write(tmp_path / "stu_hospital.zip", b"PK")
    assert note in find(tmp_path).notes
    only = tmp_path / "only"
    write(only / "BUSBRA.zip", b"PK")
    with pytest.raises(InputError, match=r"has no folder, only the archive BUSBRA.zip.*unpack"):
        find(only)


def test_archives_in_the_folder_of_a_set(tmp_path):
    """All still packed: left out, with how to unpack. Partly: said. Unpacked beside the archive: nothing."""
    plant(tmp_path, HOSPITAL)
    for label in ("Benign", "Malignant", "Normal"):
        write(tmp_path / f"AUL/{label}.zip", b"PK")
    found = find(tmp_path)
    assert note_of(found, "AUL") == (
        "WARNING: AUL: left out, named like AUL, but no path like Benign/image/1.jpg is in it; Benign.zip, "
        "Malignant.zip, Normal.zip still packed, unpack there (the archive, then Benign.zip, Malignant.zip "
        "and Normal.zip inside it)"
    )
    plant(tmp_path, "AUL/Benign/image/1.jpg")
    notes = [note for note in find(tmp_path).notes if note.startswith("AUL: ")]
    assert notes[0] == "AUL: AUL, 1 files"
    assert notes[1].startswith(
        "AUL: Malignant.zip, Normal.zip still packed, unpack there if pictures are missing"
    )
    plant(tmp_path, "AUL/Malignant/image/1.jpg", "AUL/Normal/image/1.jpg")
    assert [note for note in find(tmp_path).notes if note.startswith("AUL: ")] == ["AUL: AUL, 3 files"]


def test_an_archive_in_an_unknown_folder(tmp_path):
    plant(tmp_path, HOSPITAL)
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.writestr("a/1.png", b"")
    (tmp_path / "new").mkdir()
    (tmp_path / "pictures.zip").rename(tmp_path / "new" / "pictures.zip")
    assert note_of(find(tmp_path), "new").endswith("; pictures.zip still packed, unpack there")


def test_links(tmp_path):
    """A set's folder may be a link; below it, links to files of the same folder only are followed."""
    store = tmp_path / "store" / "BUSI of the lab"
    plant(store, "benign/benign (1).png", "malignant/malignant (1).png")
    plant(tmp_path, "elsewhere/secret.png", "elsewhere/benign (8).png", first=20)
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "BUSI").symlink_to(store, target_is_directory=True)
    (store / "benign/benign (2).png").symlink_to(tmp_path / "elsewhere/secret.png")
    (store / "benign/benign (3).png").symlink_to("../malignant/malignant (1).png")
    (store / "benign/benign (4).png").symlink_to("nowhere.png")
    (store / "further").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (store / "again").symlink_to(store / "benign", target_is_directory=True)
    os.mkfifo(store / "benign/benign (5).png")
    found = find(raw)
    assert sources(found) == {
        "BUSI/benign/benign (1).png",
        "BUSI/benign/benign (3).png",
        "BUSI/malignant/malignant (1).png",
    }
    assert found.rejected == {
        "BUSI/benign/benign (2).png": "a link that leads out of the data set's folder",
        "BUSI/benign/benign (4).png": "a link to nothing",
        "BUSI/benign/benign (5).png": "a device or pipe, not a file",
        "BUSI/further": "a link that leads out of the data set's folder",
        "BUSI/again": "a link to a folder, not followed",
    }


def test_links_that_lead_round_in_a_circle(tmp_path):
    """Each was a traceback."""
    plant(tmp_path, "BUSI/benign/benign (1).png", "mine/Cyst/1.png", "AUL/Benign/image/1.jpg")
    loops = ("BUSI/benign/benign (2).png", "mine/Cyst/2.png", "mine/Two", "own/train", "AUL/loop", "loop")
    (tmp_path / "AUL/Benign/segmentation/outline").mkdir(parents=True)
    (tmp_path / "own/train").parent.mkdir()
    for name in (*loops, "AUL/Benign/segmentation/outline/1.json"):
        (tmp_path / name).symlink_to(Path(name).name)
    found = find(tmp_path)
    assert {record.source: record.outline for record in found.records} == dict.fromkeys(
        ("BUSI/benign/benign (1).png", "mine/Cyst/1.png", "AUL/Benign/image/1.jpg"), ""
    )
    assert found.rejected.keys() >= {*loops[:3], "AUL/loop"}
    assert set(found.rejected.values()) == {"a link to nothing"}


def test_folders_that_cannot_be_opened(tmp_path, monkeypatch):
    """They are listed or named in the warning, and the rest is read. Root may open all, hence the patch."""
    read = {"BUSI/benign/benign (1).png", "mine/Cyst/1.png", "own/train/Cyst/1.png", HOSPITAL}
    locked = [
        *("BUSI/locked", "BUSI/benign/locked", "mine/locked", "mine/Cyst/locked", "own/test", "locked"),
        "strange/locked",
    ]
    plant(tmp_path, *read, *(f"{folder}/1.png" for folder in locked))

    def opened(path, scandir=os.scandir):
        if Path(path) in {tmp_path / folder for folder in locked}:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", opened)
    found = find(tmp_path)
    why = "cannot be opened: Permission denied"
    assert sources(found) == read and found.rejected == dict.fromkeys(locked[:-2], why)
    assert found.empty_classes == ["locked"]
    assert note_of(found, "locked").endswith(f"found nothing; locked: {why}")
    assert note_of(found, "strange").endswith(f"found locked; strange/locked: {why}")


def test_folders_that_may_not_be_searched(tmp_path, monkeypatch):
    """Asked what lies in them, pathlib ended in a traceback. Root may search all, hence the patch."""
    plant(tmp_path, "raw/AUL/Benign/image/1.jpg", "raw/mine/Cyst/1.png", "raw/mine/locked/1.png")
    write(tmp_path / "raw/AUL/Benign/segmentation/outline/1.json", "[[1, 1], [90, 1], [90, 70]]")
    (tmp_path / "raw/mine/linked").symlink_to("locked/further", target_is_directory=True)
    (tmp_path / "raw/mine/Cyst/2.png").symlink_to("../locked/1.png")
    (tmp_path / "raw/3.png").symlink_to("mine/locked/1.png")
    write(tmp_path / "raw/ACOUSLIC/images/stacked_fetal_ultrasound/a.mha", "x")
    write(tmp_path / "raw/ACOUSLIC/fetal_abdominal_circumferences_per_sweep.csv", "uuid,subject_id\na,7\n")
    write(tmp_path / "raw/MicroSeg/train/micro_ultrasound_scans/microUS_train_01.nii.gz", "x")
    write(tmp_path / "raw/Segthy/US/001_P1_1_left_US.nii", "x")
    locked = ("outline", "locked", "masks", "expert_annotations", "US_thyroid_label")

    def searched(path, *rest, stat=os.stat, **named):
        if {*Path(os.path.realpath(path)).parent.parts} & {*locked}:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *rest, **named)

    monkeypatch.setattr(os, "stat", searched)
    found = find(tmp_path / "raw")
    assert {record.dataset for record in found.records} == {"ACOUSLIC", "AUL", "MicroSeg", "Segthy", "mine"}
    assert {record.outline for record in found.records} == {""}
    assert found.rejected == {"mine/Cyst/2.png": "a link to nothing", "mine/linked": "a link to nothing"}

    def nothing(path, *rest, **named):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "stat", nothing)
    with pytest.raises(InputError, match="is no folder"):
        find(tmp_path / "raw")


def test_a_raw_root_that_cannot_be_opened_is_one_line(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(InputError, match=r"cannot be opened \(Permission denied\), wanted a folder"):
        find(tmp_path)


def test_a_file_in_a_folder_that_may_only_be_listed(tmp_path):
    item = Mock(stat=Mock(side_effect=PermissionError(errno.EACCES, "Permission denied")))
    item.is_symlink.return_value = item.is_dir.return_value = False
    assert module._why_refused(item, tmp_path) == "cannot be opened: Permission denied"


def test_linked_and_hidden_folders_give_no_name(tmp_path):
    plant(tmp_path / "elsewhere", "BUSI/benign/benign (1).png")
    plant(tmp_path / "raw", HOSPITAL, "new/__MACOSX/BUSI/benign/benign (1).png", "newer/a/b/1.png")
    for below in ("newer/BUSI", "newer/a/BUSI"):
        (tmp_path / "raw" / below).symlink_to(tmp_path / "elsewhere/BUSI", target_is_directory=True)
    found = find(tmp_path / "raw")
    assert sources(found) == {HOSPITAL}
    assert all("not a known data set" in note_of(found, folder) for folder in ("new", "newer"))


def test_two_folders_of_one_set(tmp_path):
    """Both are read, under names of their own; which pictures repeat is for the search for copies."""
    plant(tmp_path, f"BUSI/{BUSI}", f"BUSI old/{BUSI}", f"BUSI old/{BUSI.replace('1', '2')}")
    found = find(tmp_path)
    assert sources(found) == {f"BUSI/{BUSI}", f"BUSI old/{BUSI}", f"BUSI old/{BUSI.replace('1', '2')}"}
    assert {record.dataset for record in found.records} == {"BUSI"}
    assert len({record.name for record in found.records}) == 3


ONE = DataSet("One", "Organ", (Layout(r"one/(?P<group>\d+)_\d+\.png", "One"),), marker="one/1_1.png")
TWO = DataSet("Two", "Organ", (Layout(r"two/\d+\.png", "Two"), Layout(r"both/\d+\.png", "Two")))
COPY = DataSet("Copy", "Organ", (Layout(r"renamed/\d+\.png", "Copy"),), same_as="One")


def test_one_archive_with_several_sets(tmp_path, monkeypatch):
    """Each set takes its own pictures, wherever the folder has its name from."""
    use(monkeypatch, ONE, TWO)
    plant(
        tmp_path, "Archive of both/one/1_1.png", "Archive of both/two/1.png", "Archive of both/two/mask/1.png"
    )
    found = find(tmp_path)
    assert told(found) == {
        "Archive of both/one/1_1.png": ("One", "1", ""),
        "Archive of both/two/1.png": ("Two", "", ""),
    }
    assert [record.dataset for record in found.records] == ["One", "Two"]


GENERIC = [
    DataSet(name, "Organ", (Layout(rf"(?P<label>{label})/\d+\.png", {label: name}),))
    for name, label in (("First", "benign"), ("Second", "benign"), ("Third", "normal"))
]


@pytest.mark.parametrize("around", ["", "breast/", "2026/"])
def test_sets_sorted_below_one_more_folder(tmp_path, monkeypatch, around):
    """Each reads its own folder, though another's pattern knows the same names; lists lie beside it."""
    use(monkeypatch, *GENERIC)
    plant(
        *(tmp_path, f"sorted/{around}First/benign/1.png", f"sorted/{around}Second/benign/1.png"),
        *(f"sorted/{around}x/Third/mask/1.png", f"sorted/{around}x/normal/1.png") if not around else (),
    )
    expected = {
        f"sorted/{around}First/benign/1.png": ("First", "", ""),
        f"sorted/{around}Second/benign/1.png": ("Second", "", ""),
    }
    if not around:
        expected["sorted/x/normal/1.png"] = ("Third", "", "")
    assert told(find(tmp_path)) == expected


def test_a_picture_belongs_to_the_first_set_and_layout_that_knows_it(tmp_path, monkeypatch):
    again = DataSet("Three", "Organ", (Layout(r"\d+\.png", "Three"),), aliases=("both",))
    use(monkeypatch, again, TWO)
    plant(tmp_path, "Two/both/1.png", "Two/both/x/2.png")
    found = find(tmp_path)
    # The outer name comes first, though the other stands first in the catalogue.
    assert told(found) == {"Two/both/1.png": ("Two", "", ""), "Two/both/x/2.png": ("Three", "", "")}


@pytest.mark.parametrize("inner", ["one", "tidy/one"])
def test_the_same_pictures_under_another_name(tmp_path, monkeypatch, inner):
    """Beside its original it yields nothing; without it, it is read as that one, by its layouts.

    A folder inside that is named like the original is not the original beside it.
    """
    use(monkeypatch, COPY, ONE)
    plant(tmp_path, f"One/{inner}/1_1.png", f"Copy/{inner}/1_1.png")
    found = find(tmp_path)
    assert sources(found) == {f"One/{inner}/1_1.png"}
    assert note_of(found, "Copy") == "Copy: Copy left out, the same pictures as One"
    shutil.rmtree(tmp_path / "One")
    found = find(tmp_path)
    assert told(found) == {f"Copy/{inner}/1_1.png": ("One", "1", "")}
    assert found.records[0].dataset == "One"


@pytest.mark.parametrize("shelf", ["", "public/"])
def test_mup_beside_microseg_holds_a_folder_of_its_name(tmp_path, shelf):
    """On a shelf both were read, and all of one rejected as copies."""
    inner = (
        "Micro_Ultrasound_Prostate_Segmentation_Dataset/train/micro_ultrasound_scans/microUS_train_01.nii.gz"
    )
    write(tmp_path / f"{shelf}MicroSeg/{inner}", "x")
    write(tmp_path / f"{shelf}MUP/{inner}", "x")
    assert sources(find(tmp_path)) == {f"{shelf}MicroSeg/{inner}"}
    assert f"{shelf.removesuffix('/') or 'MUP'}: MUP left out, the same pictures as MicroSeg" in (
        find(tmp_path).notes
    )
    shutil.rmtree(tmp_path / f"{shelf}MicroSeg/Micro_Ultrasound_Prostate_Segmentation_Dataset")
    for _ in range(2):
        found = find(tmp_path)
        assert told(found) == {f"{shelf}MUP/{inner}": ("Prostate", "train_01", "train")}
        assert found.records[0].dataset == "MicroSeg"
        shutil.rmtree(tmp_path / f"{shelf}MicroSeg", ignore_errors=True)


@pytest.mark.parametrize("packed", [False, True])
def test_an_original_without_pictures_hides_no_copy(tmp_path, monkeypatch, packed):
    use(monkeypatch, COPY, ONE)
    plant(tmp_path, "Copy/one/1_1.png")
    (tmp_path / "One").mkdir()
    if packed:
        (tmp_path / "One" / "one.zip").write_bytes(b"zip")
    assert told(find(tmp_path)) == {"Copy/one/1_1.png": ("One", "1", "")}


def test_a_file_beside_a_class_folder_is_not_in_it(tmp_path):
    """ "0" comes next after the slash."""
    plant(tmp_path, "mine/Cyst/1.png")
    (tmp_path / "mine" / "Cyst0").write_bytes(b"no picture")
    assert sources(find(tmp_path)) == {"mine/Cyst/1.png"}


def test_numbers_start_again_in_each_split_and_names_do_not(tmp_path, monkeypatch):
    layout = Layout(
        r"(?P<split>train|test)_part/(?P<group>\w+)-\d+\.png", "One", {"train": "train", "test": "test"}
    )
    use(monkeypatch, DataSet("Set", "Organ", (layout,)))
    plant(
        tmp_path / "Set",
        *(f"{part}_part/{group}-1.png" for part in ("train", "test") for group in ("7", "clip7")),
    )
    assert told(find(tmp_path)) == {
        "Set/train_part/7-1.png": ("One", "train/7", "train"),
        "Set/test_part/7-1.png": ("One", "test/7", "test"),
        "Set/train_part/clip7-1.png": ("One", "clip7", "train"),
        "Set/test_part/clip7-1.png": ("One", "clip7", "test"),
    }


def test_what_is_left_out_needs_each_of_its_words(tmp_path, monkeypatch):
    """A picture of an unknown label that is left out is no reason to complain."""
    facts = {"1": {"label": "a", "leave": "drawn"}, "2": {"label": "?", "leave": "drawn"}}
    layout = Layout(
        r"(?P<key>\d)\.png", {"a": "A"}, facts=lambda files: facts, include="again", listed_only=True
    )
    words = {"drawn": "lines drawn in", "again": "a second copy"}
    use(monkeypatch, DataSet("Set", "Organ", (layout,), left_out=words))
    plant(tmp_path, "Set/1.png", "Set/2.png", "Set/3.png", "mine/Cyst/1.png")
    found = find(tmp_path)
    assert sources(found) == {"mine/Cyst/1.png"} and not found.rejected
    assert found.left_out == {
        "Set/1.png": "a second copy and lines drawn in (--include again drawn brings them back)",
        "Set/2.png": "a second copy and lines drawn in (--include again drawn brings them back)",
        "Set/3.png": "a second copy (--include again brings them back)",
    }
    assert not {"Set/1.png", "Set/2.png"} & sources(find(tmp_path, "again"))
    found = find(tmp_path, "again", "drawn")
    assert sources(found) == {"Set/1.png", "mine/Cyst/1.png"}
    assert found.rejected == {
        "Set/2.png": "unknown label '?', wanted one of a",
        "Set/3.png": "not in the publisher's list",
    }


def test_nothing_but_what_is_left_out(tmp_path):
    plant(tmp_path, f"BUSI_256/{BUSI}")
    with pytest.raises(
        InputError, match=r"no usable picture but ones left out by default .*--include copies"
    ):
        find(tmp_path)


@pytest.mark.parametrize("what", ["missing", "a file", "empty", "loose"])
def test_a_raw_root_without_folders(tmp_path, what):
    raw = tmp_path / "raw"
    if what == "a file":
        write(raw, b"")
    elif what != "missing":
        raw.mkdir()
    if what == "loose":
        plant(raw, "1.png")
    with pytest.raises(
        InputError, match="is no folder" if what in ("missing", "a file") else "has no folder"
    ):
        find(raw)


def test_the_order_is_fixed_and_names_do_not_depend_on_neighbours(tmp_path):
    plant(tmp_path, *(f"BUSI/benign/benign ({n}).png" for n in (10, 2, 1)))
    first = find(tmp_path).records
    plant(tmp_path, "BUSI/benign/benign (3).png", "AUL/Benign/image/1.jpg")
    second = {record.source: record.name for record in find(tmp_path).records}
    assert [record.source for record in first] == sorted(record.source for record in first)
    assert all(second[record.source] == record.name for record in first)


def test_an_outline_behind_a_link_that_leads_out_is_not_read(tmp_path):
    plant(tmp_path, "raw/AUL/Benign/image/1.jpg", "raw/AUL/Benign/image/2.jpg")
    home = tmp_path / "raw/AUL/Benign/segmentation/outline"
    write(home / "1.json", "[[1, 1], [90, 1], [90, 70]]")
    write(tmp_path / "elsewhere.json", "[[1, 1], [90, 1], [90, 70]]")
    (home / "2.json").symlink_to(tmp_path / "elsewhere.json")
    outlines = {r.source: r.outline for r in find(tmp_path / "raw").records}
    assert outlines == {
        "AUL/Benign/image/1.jpg": "AUL/Benign/segmentation/outline/1.json",
        "AUL/Benign/image/2.jpg": "",
    }


def test_what_is_found_does_not_depend_on_how_the_raw_root_is_given(tmp_path, monkeypatch):
    """Outlines and labels held it: another spelling made the same data set anew."""
    plant(tmp_path, "raw/AUL/Benign/image/1.jpg")
    write(tmp_path / "raw/AUL/Benign/segmentation/outline/1.json", "[[1, 1], [90, 1], [90, 70]]")
    write(tmp_path / "raw/ACOUSLIC/images/stacked_fetal_ultrasound/a.mha", "x")
    write(tmp_path / "raw/ACOUSLIC/masks/stacked_fetal_abdomen/a.mha", "x")
    write(tmp_path / "raw/ACOUSLIC/fetal_abdominal_circumferences_per_sweep.csv", "uuid,subject_id\na,7\n")
    absolute = find(tmp_path / "raw").records
    monkeypatch.chdir(tmp_path)
    assert find(Path("raw")).records == absolute
    assert [record.labels for record in absolute] == ["ACOUSLIC/masks/stacked_fetal_abdomen/a.mha", ""]
    assert absolute[0].labels_ns and absolute[1].outline_ns


@pytest.mark.parametrize(
    ("dataset", "written"),
    [
        *(("BUS_UC", "BUS_UC"), ("BUS-UCLM", "BUS-UCLM"), ("BUS Dataset B", "BUS-Dataset-B")),
        *(("a__b", "a-b"), ("a _ b", "a-b"), ("_a_", "a"), ("a__", "a"), ("a_b c", "a_b-c"), ("图", "own")),
    ],
)
def test_an_output_is_named_after_its_set(dataset, written):
    """Single underscores became hyphens, unlike in the manifest; two end the set's name."""
    name = module._output_name(dataset, "Cyst/__1 (2).nii.gz")
    assert name.split("__")[0] == written
    assert re.fullmatch(rf"{written}__1_2_[0-9a-f]{{8}}", name)


def test_long_names_of_folders(tmp_path):
    """Names of outputs fit a file system, differ where folders do, and are the same from run to run."""
    long = [f"{'x' * 239}{end}" for end in "ab"]
    plant(tmp_path, *(f"{folder}/{c}/1.png" for folder in long for c in ("A", "B")))
    names = [record.name for record in find(tmp_path).records]
    assert len(set(names)) == 4 and max(map(len, names)) < 225
    assert names == [record.name for record in find(tmp_path).records]
    assert len({name.split("__")[0] for name in names}) == 2
    shutil.rmtree(tmp_path / long[0])
    assert [record.name for record in find(tmp_path).records] == names[2:]
