"""The heart sets in their publishers' layouts."""

import numpy as np
import pytest
from raw_trees import chosen, find, plant, save, save_video, save_volume, speckle, told, write

from usvar.errors import InputError


def clip(first: int, count: int) -> np.ndarray:
    """(count, H, W): `count` different frames."""
    return np.stack([speckle(first + i) for i in range(count)])


def flashes(count: int) -> list[np.ndarray]:
    """Frames that a lossy video can be told apart by: their brightness is ten times their number."""
    return [(speckle(1, 112, 112) // 8 + 10 * number).astype(np.uint8) for number in range(count)]


def brightness(frames: dict[int, np.ndarray]) -> list[int]:
    """Number of each frame as `flashes` wrote it into the pixels."""
    base = flashes(1)[0].mean()
    return [round((frame.mean() - base) / 10) for frame in frames.values()]


def camus(home) -> None:
    """Three patients, one in each official list; ED and ES of patient0002's 4CH come in the other order."""
    for number in (1, 2, 3):
        patient = f"patient{number:04}"
        folder = home / "database_nifti" / patient
        for view, (ed, es) in (("2CH", (2, 6)), ("4CH", (4, 1) if number == 2 else (1, 3))):
            for name, array in (
                ("ED", speckle(100 * number)),
                ("ES", speckle(100 * number + 1)),
                ("half_sequence", clip(100 * number + 50, 7)),
            ):
                save_volume(folder / f"{patient}_{view}_{name}.nii.gz", array)
                save_volume(folder / f"{patient}_{view}_{name}_gt.nii.gz", (array > 99).astype(np.uint8))
            write(folder / f"Info_{view}.cfg", f"ED: {ed}\nES: {es}\nNbFrame: 7\nImageQuality: Good\n")
        name = {1: "training", 2: "validation", 3: "testing"}[number]
        write(home / "database_split" / f"subgroup_{name}.txt", f"{patient}\n")


@pytest.mark.parametrize("folder", ["CAMUS/CAMUS_public", "CAMUS", "CAMUS_public", "mine/data"])
def test_camus_takes_ed_and_es_without_masks_and_sequences(tmp_path, folder):
    """Trap: `_gt` files and half sequences beside the pictures; the lists decide the split."""
    camus(tmp_path / folder)
    found = find(tmp_path)
    assert told(found) == {
        f"{folder}/database_nifti/patient{n:04}/patient{n:04}_{view}_{end}.nii.gz": (
            "Heart",
            f"patient{n:04}",
            split,
        )
        for n, split in ((1, "train"), (2, "val"), (3, "test"))
        for view in ("2CH", "4CH")
        for end in ("ED", "ES")
    }
    assert not found.rejected and len(found.left_out) == 6
    assert all(
        source.endswith("_half_sequence.nii.gz") and "--include half-sequences" in why
        for source, why in found.left_out.items()
    )
    assert {(record.take, record.frame, record.turn) for record in found.records} == {
        ("still", "zero border", "")
    }


def test_camus_without_its_lists_says_that_the_split_is_drawn(tmp_path):
    """Two folders side by side in the raw root are two data sets."""
    camus(tmp_path)
    found = find(tmp_path)
    assert {split for _, _, split in told(found).values()} == {""}
    warning = "WARNING: database_nifti: CAMUS, its official split is drawn anew"
    assert any(note.startswith(warning) for note in found.notes)
    (tmp_path / "CAMUS").mkdir()
    for name in ("database_nifti", "database_split"):
        (tmp_path / name).rename(tmp_path / "CAMUS" / name)
    assert not any("drawn anew" in note for note in find(tmp_path).notes)


def test_camus_half_sequences_give_the_frames_between_ed_and_es(tmp_path):
    """Trap: the cfg counts from 1, and ES may come first. ED and ES are files of their own."""
    camus(tmp_path / "CAMUS")
    found = find(tmp_path, "half-sequences")
    by_name = {record.source.rsplit("/", 1)[-1]: record for record in found.records}
    assert len(by_name) == 18 and not found.left_out
    sequences = {name: r for name, r in by_name.items() if "half" in name}
    assert {name[:15]: (r.frames, r.group, r.split) for name, r in sequences.items()} == {
        "patient0001_2CH": ((2, 3, 4), "patient0001", "train"),
        "patient0001_4CH": ((1,), "patient0001", "train"),
        "patient0002_2CH": ((2, 3, 4), "patient0002", "val"),
        "patient0002_4CH": ((1, 2), "patient0002", "val"),
        "patient0003_2CH": ((2, 3, 4), "patient0003", "test"),
        "patient0003_4CH": ((1,), "patient0003", "test"),
    }
    frames = chosen(tmp_path, sequences["patient0001_2CH_half_sequence.nii.gz"])
    assert list(frames) == [2, 3, 4]
    assert all(np.array_equal(frame, speckle(150 + number)) for number, frame in frames.items())


def test_camus_cfg_without_frame_numbers_is_named(tmp_path):
    camus(tmp_path / "CAMUS")
    write(tmp_path / "CAMUS/database_nifti/patient0001/Info_2CH.cfg", "ED: first\nES: 6\n")
    with pytest.raises(InputError, match=r"patient0001/Info_2CH\.cfg .*ED: 1"):
        find(tmp_path, "half-sequences")


def test_camus_older_release_counts_patients_anew_in_testing(tmp_path):
    """Trap: training/patient0001 and testing/patient0001 are two people."""
    home = tmp_path / "CAMUS"
    for number, part in enumerate(("training", "testing")):
        for name in ("2CH_ED", "2CH_ED_gt"):
            save_volume(home / part / "patient0001" / f"patient0001_{name}.mhd", speckle(number)[None])
    found = find(tmp_path)
    assert told(found) == {
        "CAMUS/training/patient0001/patient0001_2CH_ED.mhd": ("Heart", "training/patient0001", "train"),
        "CAMUS/testing/patient0001/patient0001_2CH_ED.mhd": ("Heart", "testing/patient0001", "test"),
    }
    for record in found.records:
        frames = chosen(tmp_path, record)
        assert np.array_equal(frames[0], speckle(int("testing" in record.source)))


def test_camus_png_copy_is_turned_and_its_folders_are_no_split(tmp_path):
    """Trap: rows and columns are swapped; masks lie in `labels`; one patient may be in both forms."""
    home = tmp_path / "CAMUS"
    for name in ("patient0001_4CH_ED", "patient0002_4CH_ES"):
        save(home / f"dataset_png/test/images/{name}.png", speckle(3).T)
        save(home / f"dataset_png/test/labels/{name}_gt.png", speckle(4).T)
    save_volume(home / "database_nifti/patient0001/patient0001_4CH_ED.nii", speckle(5).astype(np.float32))
    found = find(tmp_path)
    assert told(found) == {
        "CAMUS/database_nifti/patient0001/patient0001_4CH_ED.nii": ("Heart", "patient0001", ""),
        "CAMUS/dataset_png/test/images/patient0001_4CH_ED.png": ("Heart", "patient0001", ""),
        "CAMUS/dataset_png/test/images/patient0002_4CH_ES.png": ("Heart", "patient0002", ""),
    }
    pictures = {r.source.rsplit(".", 1)[-1]: chosen(tmp_path, r)[0] for r in found.records}
    assert np.array_equal(pictures["png"], speckle(3)) and np.array_equal(pictures["nii"], speckle(5))


@pytest.mark.parametrize("folder", ["CardiacUDC/cardiacUDC_dataset", "CardiacUDC", "cardiacUDC_dataset"])
def test_cardiac_udc_patients_by_site(tmp_path, folder):
    """Traps: a site without labels, two styles of names, numbers that start again, a folder of repeats."""
    clips = {
        "Site_G_20/patient-1-4_image.nii.gz": "site_g_20/patient1",
        "Site_G_20/patient1-5_image.nii": "site_g_20/patient1",
        "Site_G_20/patient-11-1_image.nii.gz": "site_g_20/patient11",
        "Site_R_73/patient-1-4_image.nii.gz": "site_r_73/patient1",
    }
    for number, name in enumerate(clips):
        save_volume(tmp_path / folder / name, clip(100 * number, 8))
        if "R_73" not in name:
            save_volume(tmp_path / folder / name.replace("_image", "_label"), clip(100 * number, 8) // 99)
    for name in ("normal-23-4", "patient-1-4"):
        for kind in ("image", "label"):
            save_volume(tmp_path / folder / f"label_all_frame/{name}_{kind}.nii.gz", clip(900, 4))
    found = find(tmp_path)
    assert told(found) == {f"{folder}/{name}": ("Heart", group, "") for name, group in clips.items()}
    repeats = {
        f"{folder}/label_all_frame/{name}_image.nii.gz": ("Heart", "label_all_frame", "")
        for name in ("normal-23-4", "patient-1-4")
    }
    assert found.left_out.keys() == repeats.keys() and not found.rejected
    assert all("--include copies" in why for why in found.left_out.values())
    assert told(find(tmp_path, "copies")) == told(found) | repeats
    frames = chosen(tmp_path, found.records[0], 2)
    assert list(frames) == [2, 6]
    first = 100 * list(clips).index(found.records[0].source.removeprefix(f"{folder}/"))
    assert np.array_equal(frames[6], speckle(first + 6)[::-1, ::-1])


@pytest.mark.parametrize("folder", ["EchoCP/EchoCP_dataset", "EchoCP", "EchoCP_dataset"])
def test_echo_cp_is_left_out_for_its_contrast(tmp_path, folder):
    """Trap: the agent changes the picture; rest (r) and Valsalva (v) are one patient."""
    openpyxl = pytest.importorskip("openpyxl")
    for name in ("001_r", "001_v", "002_r"):
        for kind in ("image", "label"):
            save_volume(tmp_path / folder / f"{name}_{kind}.nii.gz", clip(0, 9))
    sheet = openpyxl.Workbook()
    sheet.active.append(["index", "action", "PFO level"])
    sheet.active.append(["oo1", "r", 1])
    sheet.save(tmp_path / folder / "echoCP_diagnosis_label.xlsx")
    with pytest.raises(InputError, match=r"holds no usable picture .* left out"):
        find(tmp_path)
    wanted = {f"{folder}/{name}_image.nii.gz": name[:3] for name in ("001_r", "001_v", "002_r")}
    found = find(tmp_path, "contrast")
    assert told(found) == {source: ("Heart", group, "") for source, group in wanted.items()}
    frames = chosen(tmp_path, found.records[0])
    assert list(frames) == [1, 4, 7] and np.array_equal(frames[4], speckle(4)[::-1, ::-1])
    plant(tmp_path, "BUSI/benign/benign (1).png")
    found = find(tmp_path)
    assert {record.dataset for record in found.records} == {"BUSI"} and not found.rejected
    assert found.left_out.keys() == wanted.keys()
    assert all("--include contrast" in why for why in found.left_out.values())


def echonet_dynamic(home) -> None:
    for name in ("0X1", "0X2A", "0X3", "0X4"):
        save_video(home / f"Videos/{name}.avi", flashes(10))
    write(
        home / "FileList.csv",
        "FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split\n"
        "0X1,60,30,70,112,112,50,10,TRAIN\n0X2A,60,30,70,112,112,50,10,TRAIN\n"
        "0X3,60,30,70,112,112,50,10,VAL\n0X4,60,30,70,112,112,50,10,TEST\n",
    )
    write(
        home / "VolumeTracings.csv",
        "FileName,X1,Y1,X2,Y2,Frame\n"
        + "".join(
            f"{name}.avi,1.5,2,3,4,{frame}\n"
            for name, *frames in (("0X1", 7, 3), ("0X3", 0, 9), ("0X4", 2, 5))
            for frame in frames
            for _ in range(3)
        ),
    )


@pytest.mark.parametrize("folder", ["EchoNet-Dynamic", "EchoNet/EchoNet-Dynamic", "EchoNetDynamic/a/b"])
def test_echonet_dynamic_takes_the_traced_frames(tmp_path, folder):
    """Trap: only the tracings write `.avi` behind a name; a video without a tracing gives even frames."""
    echonet_dynamic(tmp_path / folder)
    found = find(tmp_path)
    assert told(found) == {
        f"{folder}/Videos/0X1.avi#(3, 7)": ("Heart", "0X1", "train"),
        f"{folder}/Videos/0X2A.avi": ("Heart", "0X2A", "train"),
        f"{folder}/Videos/0X3.avi#(0, 9)": ("Heart", "0X3", "val"),
        f"{folder}/Videos/0X4.avi#(2, 5)": ("Heart", "0X4", "test"),
    }
    assert not found.rejected and not found.left_out
    frames = [chosen(tmp_path, record) for record in found.records]
    assert [list(f) for f in frames] == [[3, 7], [1, 5, 8], [0, 9], [2, 5]]
    assert [brightness(f) for f in frames] == [list(f) for f in frames]


@pytest.mark.parametrize("name, column", [("FileList.csv", "Split"), ("VolumeTracings.csv", "Frame")])
def test_echonet_list_without_a_column_is_named(tmp_path, name, column):
    echonet_dynamic(tmp_path / "EchoNet-Dynamic")
    path = tmp_path / "EchoNet-Dynamic" / name
    path.write_text(path.read_text().replace(column, "Other", 1))
    with pytest.raises(InputError, match=f"{name} lacks the column {column}"):
        find(tmp_path)


def echonet_pediatric(home) -> None:
    """Two patients; CR1 has a video of the same name in both views, in different folds."""
    for view, end, name_of_frame in (("A4C", ".avi", "No Systolic"), ("PSAX", "", "No Diastolic")):
        for name in ("CR1-CR11-000039", "CR2-CR21-000001"):
            save_video(home / view / f"Videos/{name}.avi", flashes(10))
        fold = {"A4C": (3, 8), "PSAX": (7, 9)}[view]
        write(
            home / view / "FileList.csv",
            "FileName,EF,Sex,Age,Weight,Height,Split\n"
            f"CR1-CR11-000039{end},60,F,3,12,90,{fold[0]}\nCR2-CR21-000001{end},60,M,4,14,95,{fold[1]}\n",
        )
        frame = {"A4C": 1, "PSAX": 10}[view]
        write(
            home / view / "VolumeTracings.csv",
            "FileName,X,Y,Frame\n"
            f"CR1-CR11-000039.avi,1,2,{frame}\nCR1-CR11-000039.avi,1,3,{frame}\n"
            f"CR1-CR11-000039.avi,1,2,5\nCR2-CR21-000001.avi,1,2,{name_of_frame}\n",
        )


@pytest.mark.parametrize(
    "folder", ["EchoNet-Pediatric/pediatric_echo_avi/pediatric_echo_avi", "EchoNet-Pediatric"]
)
def test_echonet_pediatric_keeps_the_views_apart_and_the_patient_together(tmp_path, folder):
    """Traps: one name in two views, frames that count from 1 or are words, ten folds."""
    echonet_pediatric(tmp_path / folder)
    found = find(tmp_path)
    assert told(found) == {
        f"{folder}/A4C/Videos/CR1-CR11-000039.avi#(0, 4)": ("Heart", "CR1", "train"),
        f"{folder}/PSAX/Videos/CR1-CR11-000039.avi#(4, 9)": ("Heart", "CR1", "train"),
        f"{folder}/A4C/Videos/CR2-CR21-000001.avi": ("Heart", "CR2", "val"),
        f"{folder}/PSAX/Videos/CR2-CR21-000001.avi": ("Heart", "CR2", "test"),
    }
    assert not found.rejected and not found.left_out
    assert len({record.name for record in found.records}) == 4
    traced = next(record for record in found.records if record.frames == (4, 9))
    assert brightness(chosen(tmp_path, traced)) == [4, 9]


def test_both_echonet_sets_in_one_folder(tmp_path):
    """Trap: both keep their videos in a folder `Videos`."""
    echonet_dynamic(tmp_path / "EchoNet/EchoNet-Dynamic")
    echonet_pediatric(tmp_path / "EchoNet/pediatric_echo_avi")
    by_set = {}
    for record in find(tmp_path).records:
        by_set.setdefault(record.dataset, set()).add(record.source.split("/")[1])
    assert by_set == {
        "EchoNet-Dynamic": {"EchoNet-Dynamic"},
        "EchoNet-Pediatric": {"pediatric_echo_avi"},
    }
    assert len(find(tmp_path).records) == 8


def test_a_heart_set_of_another_layout_names_its_marker(tmp_path):
    plant(tmp_path, "EchoNet-Dynamic/frames/0X1.png")
    write(tmp_path / "EchoCP/EchoCP_dataset.z01", "packed")
    plant(tmp_path, "BUSI/benign/benign (1).png")
    notes = "\n".join(find(tmp_path).notes)
    assert "no path like EchoNet-Dynamic/Videos/0X10A28877E97DF540.avi is in it; found frames" in notes
    assert "EchoCP_dataset.z01 still packed, unpack there (rename the last part .change2zip" in notes
