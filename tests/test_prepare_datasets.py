"""Whole runs of prepare_datasets.py on generated raw folders in the publishers' layouts, and on bad input."""

import csv
import gc
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_trees import save, speckle

from data_preprocessing import prepare_datasets, report, shortcut
from data_preprocessing.prepare_datasets import Settings
from usvar.errors import InputError
from usvar.files import LOCK_NAME, lock_folder

ROOT = Path(__file__).resolve().parent.parent


def own_pictures(raw: Path, classes: tuple[str, ...] = ("Cat", "Dog"), each: int = 20) -> None:
    for c, name in enumerate(classes):
        for i in range(each):
            save(raw / "mine" / name / f"{i}.png", speckle(1000 * c + i))


def prepare(raw: Path, out: Path, **settings: object) -> list[dict[str, str]]:
    """Run once with one process; returns the manifest."""
    prepare_datasets.main(Settings(raw, out, size=32, workers=1, **settings))
    return manifest(out)


def manifest(out: Path) -> list[dict[str, str]]:
    with open(out / "manifest.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rejected(out: Path) -> dict[str, str]:
    with open(out / "rejected.csv", newline="", encoding="utf-8") as file:
        return {row["source"]: row["reason"] for row in csv.DictReader(file)}


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of each file."""
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != LOCK_NAME  # names the process
    }


def test_outputs_manifest_and_reports(tmp_path, capsys):
    own_pictures(tmp_path / "raw")
    before = everything(tmp_path / "raw")
    rows = prepare(tmp_path / "raw", tmp_path / "out")
    assert everything(tmp_path / "raw") == before  # raw data is never changed
    assert len(rows) == 40
    on_disk = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").glob("*/*/mine__*.png")}
    assert on_disk == {row["file"] for row in rows}
    for row in rows:
        split, name, _ = row["file"].split("/")
        assert (row["split"], row["class"]) == (split, name)
        pixels = np.asarray(Image.open(tmp_path / "out" / row["file"]))
        assert pixels.shape == (32, 32, 3) and (pixels[..., :1] == pixels).all()
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == row["sha256"]
    for name in ("Cat", "Dog"):
        assert {row["split"] for row in rows if row["class"] == name} == {"train", "val", "test"}
        assert (tmp_path / "out" / "contact_sheets" / f"{name}.png").is_file()
    assert (tmp_path / "out" / "per_class_by_split.png").is_file()
    record = json.loads((tmp_path / "out" / "made_by.json").read_text())
    assert record["settings"]["size"] == 32
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("rejected 0 of 40")


def test_publishers_layouts(tmp_path):
    """Masks and second copies are never taken as images; each trap once stood in a real folder."""
    raw = tmp_path / "raw"
    for number in range(1, 5):
        for c, label in enumerate(("benign", "malignant", "normal")):
            folder = raw / "BUSI" / "Dataset_BUSI_with_GT" / label
            save(folder / f"{label} ({number}).png", speckle(100 * c + number))
            save(folder / f"{label} ({number})_mask.png", speckle(9000 + 100 * c + number))
            save(folder / f"{label} ({number})_mask_1.png", speckle(9500 + 100 * c + number))
            # AUL as it comes out of its nested archives: the class level doubled; Normal has no mass.
            folder = raw / "AUL" / label.capitalize() / label.capitalize()
            save(folder / "image" / f"{number}.jpg", speckle(400 + 100 * c + number), quality=95)
            outline = folder / "segmentation" / "outline" / f"{number}.json"
            outline.parent.mkdir(parents=True, exist_ok=True)
            outline.write_text(json.dumps([[2, 2], [93, 2], [93, 77], [2, 77]]))
        for split, start in (("training_set", 700), ("test_set", 750)):
            save(raw / "HC18" / split / f"{number:03}_HC.png", speckle(start + number))
        save(raw / "HC18" / "training_set" / f"{number:03}_2HC.png", speckle(770 + number))
        save(raw / "HC18" / "training_set" / f"{number:03}_HC_Annotation.png", speckle(9800 + number))
        save(raw / "HC18" / "training_set" / f"{number:03}_HC_Mask.png", speckle(9900 + number))
        save(raw / "DDTI" / f"{number}_1.jpg", speckle(800 + number))
        save(raw / "STU-Hospital" / "Hospital" / f"Test_Image_{number}.PNG", speckle(820 + number))
        save(raw / "STU-Hospital" / "Hospital" / f"mask_{number}.png", speckle(9700 + number))
        save(
            raw / "ultrasound-nerve-segmentation" / "train" / f"{number}_1.tif",
            speckle(840 + number),
        )
        save(
            raw / "ultrasound-nerve-segmentation" / "train" / f"{number}_1_mask.tif",
            speckle(9600 + number),
        )
        for frame in (0, 5):
            save(
                raw
                / "covid19_ultrasound/data/image_dataset/regular"
                / f"Reg+({number}).gif_frame{frame}.jpg",
                speckle(860 + 10 * number + frame),
            )
        save(raw / "Simulated" / "Kidney" / f"patient{number:04}_view0.png", speckle(900 + number))
        save(raw / "Simulated" / "Kidney" / f"patient{number:04}_view1.png", speckle(950 + number))
    rows = prepare(raw, tmp_path / "out")
    counts = defaultdict(int)
    for row in rows:
        counts[row["dataset"], row["class"]] += 1
        assert "mask" not in row["source"].lower() and "Annotation" not in row["source"]
    assert counts == {
        **{("BUSI", f"Breast-{c}"): 4 for c in ("Benign", "Malignant", "Normal")},
        **{("AUL", f"Liver-{c}"): 4 for c in ("Benign", "Malignant", "Normal")},
        ("HC18", "Fetal-Head"): 12,
        ("DDTI", "Thyroid-Nodule-DDTI"): 4,
        ("STU-Hospital", "Breast"): 4,
        ("US-nerve", "Nerve"): 4,
        ("COVID-LUS", "Lung-Regular"): 8,
        ("Simulated", "Kidney"): 8,
    }
    assert {row["frame_kind"] for row in rows if row["dataset"] == "AUL"} == {"outline"}
    for row in rows:
        if row["dataset"] == "HC18":
            # 001 of the test set is another examination than 001 of the training set.
            assert ("test_set" in row["source"]) == (row["split"] == "test")
    for name, together in (("HC18", 2), ("COVID-LUS", 2), ("Simulated", 2)):
        patients = defaultdict(list)
        for row in rows:
            if row["dataset"] == name and row["split"] != "test":
                patients[row["patient"]].append(row["split"])
        assert patients and all(len(set(s)) == 1 for s in patients.values())
        assert all(len(s) == together for s in patients.values())


def test_camus_nifti_lists_and_the_transposed_copy(tmp_path):
    """The official lists decide the split; the PNG copy, turned upright, is the same picture and dropped."""
    sitk = pytest.importorskip("SimpleITK")
    camus = tmp_path / "raw" / "CAMUS"
    for number in range(1, 7):
        patient = f"patient{number:04}"
        for view, kind in (("2CH", np.float32), ("4CH", np.uint8)):
            folder = camus / "database_nifti" / patient
            folder.mkdir(parents=True, exist_ok=True)
            array = speckle(number * 10 + int(view[0]))
            sitk.WriteImage(
                sitk.GetImageFromArray(array.astype(kind)), str(folder / f"{patient}_{view}_ED.nii.gz")
            )
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"{patient}_{view}_ED_gt.nii.gz"))
        save(camus / "dataset_png/train/images" / f"{patient}_4CH_ED.png", speckle(number * 10 + 4).T)
        save(camus / "dataset_png/train/labels" / f"{patient}_4CH_ED_gt.png", speckle(7000 + number).T)
    # A picture that only the copy holds: the manifest says how it was turned, and gives its size after that.
    save(camus / "dataset_png/train/images" / "patient0001_2CH_ES.png", speckle(9000).T)
    lists = camus / "database_split"
    lists.mkdir()
    (lists / "subgroup_training.txt").write_text("patient0001\npatient0002\npatient0003\npatient0006\n")
    (lists / "subgroup_validation.txt").write_text("patient0004\n")
    (lists / "subgroup_testing.txt").write_text("patient0005\n")
    rows = prepare(tmp_path / "raw", tmp_path / "out")
    turned = [row for row in rows if not row["source"].endswith(".nii.gz")]
    assert len(rows) == 13 and len(turned) == 1 and {row["turn"] for row in rows} == {"", "transpose"}
    assert [turned[0][name] for name in ("turn", "source_width", "source_height")] == [
        "transpose",
        "96",
        "80",
    ]
    by_patient = {row["patient"].split("/")[-1]: row["split"] for row in rows}
    assert (by_patient["patient0004"], by_patient["patient0005"]) == ("val", "test")
    assert {by_patient[f"patient000{n}"] for n in (1, 2, 3, 6)} == {"train"}
    assert {r.split(" of ")[0] for r in rejected(tmp_path / "out").values()} == {"exact copy"}


def test_mmotu_publishers_lists(tmp_path):
    """Classes come from the lists (two blanks between name and index); one without entry is rejected."""
    folder = tmp_path / "raw" / "MMOTU" / "OTU_2d"
    for number in range(1, 9):
        save(folder / "images" / f"{number}.JPG", speckle(number))
        save(folder / "annotations" / f"{number}.PNG", speckle(500 + number))
        save(folder / "annotations" / f"{number}_binary.PNG", speckle(600 + number))
    (folder / "train_cls.txt").write_text("".join(f"{n}.JPG  5\n" for n in range(1, 6)))
    (folder / "val_cls.txt").write_text("6.JPG  5\n7.JPG  5\n")
    rows = prepare(tmp_path / "raw", tmp_path / "out")
    assert {row["class"] for row in rows} == {"Ovary-Normal"} and len(rows) == 7
    assert {Path(row["source"]).stem for row in rows if row["split"] == "test"} == {"6", "7"}
    assert rejected(tmp_path / "out") == {"MMOTU/OTU_2d/images/8.JPG": "not in the publisher's list"}


@pytest.mark.parametrize("home", ["mine", "."])
def test_own_folders_with_splits_are_kept(tmp_path, home):
    for split, start, count in (("train", 0, 6), ("valid", 100, 2), ("test", 200, 2)):
        for i in range(count):
            save(tmp_path / "raw" / home / split / "Cat" / f"{i}.png", speckle(start + i))
    rows = prepare(tmp_path / "raw", tmp_path / "out")
    assert len(rows) == 10
    for row in rows:
        assert f"/{row['split']}" in f"/{row['source']}".replace("valid", "val")


@pytest.mark.parametrize(
    ("name", "own_patients"), [("p{p:02}_{view}.png", "^([^_]+)_"), ("p{p:02}/{view}.png", "^(.+?)/")]
)
def test_own_patients_stay_on_one_side(tmp_path, capsys, name, own_patients):
    """Other pictures of one patient are no near copies: only the person who brings them knows."""
    for p in range(12):
        for view in range(4):
            path = tmp_path / "raw" / "mine" / "Cat" / name.format(p=p, view=view)
            save(path, speckle(10 * p + view))
    save(tmp_path / "raw" / "mine" / "Cat" / "masks" / "p00_0.png", speckle(900))
    save(tmp_path / "raw" / "mine" / "Cat" / "stray.png", speckle(901))
    rows = prepare(tmp_path / "raw", tmp_path / "out", own_patients=own_patients)
    assert len(rows) == 49
    assert {row["patient"] for row in rows} == {*(f"p{p:02}" for p in range(12)), ""}
    sides = {(row["patient"], row["split"]) for row in rows if row["patient"]}
    assert len(sides) == 12 and len({split for _, split in sides}) == 3
    said = capsys.readouterr().out
    assert "49 files in 1 classes (1 files elsewhere left out)" in said
    assert "the patients of 1 of them are unknown, such as Cat/stray.png" in said
    leaks = json.loads((tmp_path / "out" / "leak_report.json").read_text())
    assert leaks["patients_unknown"] == {"mine": 1}


def test_unknown_own_patients_are_said_and_can_be_named_later(tmp_path, capsys):
    for p in range(12):
        for view in range(4):
            save(tmp_path / "raw" / "mine" / "Cat" / f"p{p:02}_{view}.png", speckle(10 * p + view))
    before = prepare(tmp_path / "raw", tmp_path / "out")
    assert "the patients of 48 of them are unknown" in capsys.readouterr().out
    assert len({(row["source"].split("_")[0], row["split"]) for row in before}) > 12
    after = prepare(tmp_path / "raw", tmp_path / "out", own_patients="^([^_]+)_")
    assert len({(row["patient"], row["split"]) for row in after}) == 12
    files = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").glob("*/Cat/*.png")}
    assert files - {"contact_sheets/Cat.png"} == {row["file"] for row in after} and len(after) == 48


def test_guessed_patients_are_counted_by_themselves(tmp_path, capsys):
    """Blocks of neighbours counted as known patients; a test picture of TN3K is in none."""
    own_pictures(tmp_path / "raw", classes=("Cat",), each=5)
    for n in range(12):
        save(tmp_path / "raw" / "tn3k" / "trainval-image" / f"{n:04}.jpg", speckle(100 + n))
        save(tmp_path / "raw" / "HC18" / "training_set" / f"{n:03}_HC.png", speckle(200 + n))
        if n < 3:
            save(tmp_path / "raw" / "tn3k" / "test-image" / f"{n:04}.jpg", speckle(300 + n))
    prepare(tmp_path / "raw", tmp_path / "out")
    leaks = json.loads((tmp_path / "out" / "leak_report.json").read_text())
    assert leaks["patients_unknown"] == {"TN3K": 3, "mine": 5}
    assert leaks["patients_guessed"] == {"TN3K": 12}
    assert "patients of 8 images unknown, of 12 guessed; see" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("own_patients", "why"), [("(", "no regular expression"), ("p1", "has 0 groups"), ("(a)(b)", "has 2")]
)
def test_a_wrong_pattern_for_own_patients(tmp_path, own_patients, why):
    own_pictures(tmp_path / "raw", each=4)
    with pytest.raises(InputError, match=why):
        prepare(tmp_path / "raw", tmp_path / "out", own_patients=own_patients)
    assert not (tmp_path / "out").exists()


def test_missing_val_is_drawn_from_train_never_from_test(tmp_path):
    for split, start, count in (("train", 0, 12), ("test", 200, 3)):
        for i in range(count):
            save(tmp_path / "raw" / "mine" / split / "Cat" / f"{i}.png", speckle(start + i))
    rows = prepare(tmp_path / "raw", tmp_path / "out")
    assert {row["split"] for row in rows if "/train/" in row["source"]} == {"train", "val"}
    assert {row["split"] for row in rows if "/test/" in row["source"]} == {"test"}


def test_raw_root_may_hold_the_class_folders_itself(tmp_path):
    for i in range(5):
        save(tmp_path / "photos" / "Cat" / f"{i}.png", speckle(i))
    rows = prepare(tmp_path / "photos", tmp_path / "out")
    assert len(rows) == 5 and rows[0]["dataset"] == "photos"


def test_a_folder_with_a_long_name(tmp_path):
    """`File name too long` was a traceback, and the out root half-written."""
    name = "x" * 240
    for i in range(5):
        save(tmp_path / "raw" / name / "Cat" / f"{i}{'y' * 200}.png", speckle(i))
    rows = prepare(tmp_path / "raw", tmp_path / "out")
    assert len(rows) == 5 and rows[0]["dataset"] == name


def test_unknown_and_left_out_folders_are_said(tmp_path, capsys):
    own_pictures(tmp_path / "raw")
    save(tmp_path / "raw" / "BUSI_256" / "Dataset_BUSI_with_GT" / "benign" / "benign (1).png", speckle(1))
    save(tmp_path / "raw" / "strange" / "a" / "b" / "c.png", speckle(2))
    save(tmp_path / "raw" / "pairs" / "images" / "1.png", speckle(3))
    save(tmp_path / "raw" / "pairs" / "masks" / "1.png", speckle(4))
    rows = prepare(tmp_path / "raw", tmp_path / "out")
    said = capsys.readouterr().out
    assert "BUSI_256: BUSI_256, 0 files; 1 left out, a second copy of BUSI" in said
    for name, why in (("strange", "not a known"), ("pairs", "looks like masks")):
        assert any(f"{name}: left out" in line and why in line for line in said.splitlines())
    assert {row["dataset"] for row in rows} == {"mine"}


def test_list_names_what_is_found_and_how_to_get_the_rest(tmp_path, capsys):
    own_pictures(tmp_path / "raw")
    save(tmp_path / "raw" / "HC18" / "training_set" / "001_HC.png", speckle(1))
    save(tmp_path / "raw" / "BUID" / "pictures" / "1.jpg", speckle(2))
    prepare_datasets.main(Settings(tmp_path / "raw", tmp_path / "out", list=1))
    said = capsys.readouterr().out
    assert re.search(r"(?m)^HC18 .* 1334 +1$", said) and re.search(r"(?m)^AUL .* 735 +-$", said)
    assert "AUL: https://zenodo.org/records/7272660" in said and "HC18: https" not in said
    # Why what is there does not count.
    assert "WARNING: BUID: left out, named like BUID, but no path like Benign/1 Benign Image.bmp" in said
    assert not (tmp_path / "out").exists()


def test_the_end_of_a_pipe_is_no_fault(tmp_path):
    """`--list | head` ended with a traceback."""
    own_pictures(tmp_path / "raw", each=1)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "data_preprocessing/prepare_datasets.py", "--list", "--raw-root"]
    done = subprocess.run(
        [*command, str(tmp_path / "raw")], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_second_run_has_nothing_to_do_and_changes_nothing(tmp_path, capsys):
    own_pictures(tmp_path / "raw")
    prepare(tmp_path / "raw", tmp_path / "out")
    before = everything(tmp_path / "out")
    capsys.readouterr()
    prepare(tmp_path / "raw", tmp_path / "out")
    assert "nothing to do" in capsys.readouterr().out
    assert everything(tmp_path / "out") == before


def test_what_the_cap_leaves_out_is_listed(tmp_path, capsys):
    own_pictures(tmp_path / "raw")
    every = {row["source"] for row in prepare(tmp_path / "raw", tmp_path / "out", cap=0)}
    for _ in range(2):  # the list of the run before does not leave out more
        kept = {row["source"] for row in prepare(tmp_path / "raw", tmp_path / "out", cap=10)}
        with (tmp_path / "out" / "left_out.csv").open(encoding="utf-8") as file:
            listed = {row["source"]: row["reason"] for row in csv.DictReader(file)}
        assert len(kept) == 10 and listed.keys() == every - kept
        assert set(listed.values()) == {"over --cap 10 of its data set"}
        assert f"mine: {len(listed)} pictures left out by --cap 10" in capsys.readouterr().out
    assert {row["source"] for row in prepare(tmp_path / "raw", tmp_path / "out", cap=0)} == every


def test_only_what_is_new_is_read_and_written(tmp_path, monkeypatch):
    """One picture added, one removed, one changed, two outputs lost: nothing else is touched."""
    own_pictures(tmp_path / "raw", each=60)
    cats = tmp_path / "raw" / "mine" / "Cat"
    old = {row["source"]: row for row in prepare(tmp_path / "raw", tmp_path / "out")}
    before = everything(tmp_path / "out")
    save(cats / "new one.png", speckle(5000))
    (cats / "3.png").unlink()
    save(cats / "4.png", speckle(5001))
    (tmp_path / "out" / old["mine/Cat/5.png"]["file"]).unlink()
    (tmp_path / "out" / old["mine/Cat/6.png"]["file"]).write_bytes(b"")  # the machine crashed
    calls = defaultdict(set)
    for name in ("look", "write"):
        real = getattr(prepare_datasets.work, name)

        def spy(raw_root, part, *rest, name=name, real=real):
            calls[name] |= {(item[0] if isinstance(item, tuple) else item).source for item in part}
            return real(raw_root, part, *rest)

        monkeypatch.setattr(prepare_datasets.work, name, spy)
    rows = {row["source"]: row for row in prepare(tmp_path / "raw", tmp_path / "out")}
    assert calls["look"] == {"mine/Cat/new one.png", "mine/Cat/4.png"}
    assert calls["write"] == {"mine/Cat/new one.png", "mine/Cat/4.png", "mine/Cat/5.png", "mine/Cat/6.png"}
    assert "mine/Cat/3.png" not in rows
    assert not (tmp_path / "out" / old["mine/Cat/3.png"]["file"]).exists()
    assert rows["mine/Cat/4.png"]["sha256"] != old["mine/Cat/4.png"]["sha256"]
    after = everything(tmp_path / "out")
    for source, row in rows.items():
        if source in old and source not in calls["write"]:
            assert row == old[source] and after[row["file"]] == before[row["file"]]


def test_same_result_for_any_order_and_number_of_processes(tmp_path):
    own_pictures(tmp_path / "raw", each=12)
    one = prepare(tmp_path / "raw", tmp_path / "one")
    prepare_datasets.main(Settings(tmp_path / "raw", tmp_path / "two", size=32, workers=2))
    assert manifest(tmp_path / "two") == one


def test_another_size_writes_all_anew(tmp_path):
    """After a size change, an interrupted run once left old sizes that counted as done."""
    own_pictures(tmp_path / "raw")
    prepare(tmp_path / "raw", tmp_path / "out")
    prepare_datasets.main(Settings(tmp_path / "raw", tmp_path / "out", size=48, workers=1))
    rows = manifest(tmp_path / "out")
    assert {Image.open(tmp_path / "out" / row["file"]).size for row in rows} == {(48, 48)}
    assert {row["output_size"] for row in rows} == {"48"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_goes_on(tmp_path, number):
    """SIGTERM in the middle: no half-written file, exit code 143. The next run ends with the same files.

    SIGKILL may leave a half-written file and the journal of the index: they are gone after the next run.
    """
    own_pictures(tmp_path / "raw", each=60)
    command = [sys.executable, str(ROOT / "data_preprocessing/prepare_datasets.py"), "--raw-root"]
    command += [str(tmp_path / "raw"), "--out-root", str(tmp_path / "out"), "--size", "32", "--workers", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while len(list(tmp_path.glob("out/*/*/mine__*.png"))) < 20:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate(timeout=240)
    if number == signal.SIGTERM:
        assert process.returncode == 143 and "stopped:" in errors and "Traceback" not in errors
    else:
        assert process.returncode == -signal.SIGKILL
        (tmp_path / "out" / ".tmp-1-manifest.csv").write_text("half")
    assert not (tmp_path / "out" / "manifest.csv").exists()
    written = {p.name for p in tmp_path.glob("out/*/*/*.png")}
    assert 20 <= len(written) < 120
    rows = prepare(tmp_path / "raw", tmp_path / "out")
    assert rows == prepare(tmp_path / "raw", tmp_path / "fresh")
    assert not list(tmp_path.rglob(".tmp-*")) and not list(tmp_path.rglob("*-journal"))


@pytest.mark.parametrize("step", ["look", "write"])
def test_a_killed_run_loses_only_what_it_did_since_the_last_save(tmp_path, monkeypatch, step):
    """Killed, a process can do nothing more: the index on the disk at that moment is all that is left."""
    own_pictures(tmp_path / "raw")
    fresh = prepare(tmp_path / "raw", tmp_path / "fresh")
    monkeypatch.setattr(prepare_datasets, "SAVE_EVERY", 0)
    real, calls = getattr(prepare_datasets.work, step), []

    def spy(raw_root, part, *rest):
        calls.append(part)
        if len(calls) == 31:
            (tmp_path / "left").write_bytes((tmp_path / "out" / prepare_datasets.INDEX).read_bytes())
            raise RuntimeError("killed")
        return real(raw_root, part, *rest)

    monkeypatch.setattr(prepare_datasets.work, step, spy)
    with pytest.raises(RuntimeError, match="killed"):
        prepare(tmp_path / "raw", tmp_path / "out")
    (tmp_path / "left").replace(tmp_path / "out" / prepare_datasets.INDEX)
    calls.clear()
    calls += [None] * 40  # not killed again
    assert prepare(tmp_path / "raw", tmp_path / "out") == fresh
    assert len(calls) == 40 + 10


def test_a_refused_run_keeps_what_it_looked_at(tmp_path, monkeypatch):
    own_pictures(tmp_path / "raw")
    save(tmp_path / "raw" / "mine" / "Cow" / "only.png", speckle(9999))
    assert "Cow" in refused(tmp_path)
    monkeypatch.setattr(prepare_datasets.work, "look", lambda *_: pytest.fail("looked at again"))
    prepare(tmp_path / "raw", tmp_path / "out", exclude_classes=("Cow",))


@pytest.mark.parametrize("left", ["damaged", "half-written", "of an earlier version"])
def test_an_index_that_cannot_be_used_is_made_anew(tmp_path, left):
    own_pictures(tmp_path / "raw", each=5)
    rows = prepare(tmp_path / "raw", tmp_path / "out")
    index = tmp_path / "out" / prepare_datasets.INDEX
    if left == "damaged":
        index.write_bytes(index.read_bytes()[:-5000])
    elif left == "half-written":
        index.write_bytes(b"")
        index.with_name(f"{index.name}-journal").write_bytes(b"no journal" * 100)
    else:
        index.rename(index.with_name(prepare_datasets.EARLIER_INDEX))
    assert prepare(tmp_path / "raw", tmp_path / "out") == rows
    hidden = {path.name for path in (tmp_path / "out").glob(".*")}
    assert hidden == {prepare_datasets.INDEX, LOCK_NAME}


def test_a_disk_that_runs_full_is_one_line_and_keeps_what_was_saved(tmp_path):
    """The index may not grow past 64 kB: some looks fit in, then there is no room."""
    own_pictures(tmp_path / "raw", each=40)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536));"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from data_preprocessing import prepare_datasets as p; from usvar import cli;"
        "cli.run(p.main, p.Settings, None)"
    )
    command = [sys.executable, "-c", code, "--raw-root", str(tmp_path / "raw"), "--workers", "1"]
    done = subprocess.run(
        [*command, "--out-root", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert re.search(r"error: no room to write .*\.index\.sqlite", done.stderr)
    rows = prepare(tmp_path / "raw", tmp_path / "out")
    assert rows == prepare(tmp_path / "raw", tmp_path / "fresh")


def bad_files(folder: Path) -> dict[str, str]:
    """Write one of each kind of bad file; returns the start of the expected reason by name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.png").write_text("this is no picture")
    (folder / "notes.txt").write_text("nor is this")
    (folder / "empty.png").write_bytes(b"")
    save(folder / "whole.png", speckle(1, 200, 200))
    data = (folder / "whole.png").read_bytes()
    (folder / "whole.png").unlink()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    save(folder / "dot.png", np.zeros((1, 1), np.uint8))
    save(folder / "wide.png", np.zeros((32, 50_000), np.uint8))
    save(folder / "black.png", np.zeros((64, 64), np.uint8))
    Image.fromarray(speckle(2)).save(
        folder / "pages.tif", save_all=True, append_images=[Image.fromarray(speckle(3))]
    )
    os.mkfifo(folder / "pipe.png")
    (folder / "out.png").symlink_to("/etc/hostname")
    (folder / "nothing.png").symlink_to(folder / "gone.png")
    (folder / "inside.png").symlink_to(folder / "0.png")
    return {
        "text.png": "not a picture",
        "notes.txt": "not a picture",
        "empty.png": "empty file",
        "cut.png": "damaged or truncated",
        "dot.png": "1 x 1 pixels",
        "wide.png": "50000 x 32 pixels",
        "black.png": "nothing in it",
        "pages.tif": "2 frames",
        "pipe.png": "a device or pipe",
        "out.png": "a link that leads out",
        "nothing.png": "a link to nothing",
        "inside.png": "exact copy of mine/Cat/0.png",
    }


def test_bad_files_are_listed_counted_and_not_replaced(tmp_path, capsys):
    own_pictures(tmp_path / "raw", classes=("Cat",), each=12)
    wanted = bad_files(tmp_path / "raw" / "mine" / "Cat")
    rows = prepare(tmp_path / "raw", tmp_path / "out", max_rejected=0.5)
    assert {Path(row["source"]).name for row in rows} == {f"{i}.png" for i in range(12)}
    wanted.pop("notes.txt")  # by its suffix no picture, so that it is only left out
    reasons = {Path(source).name: reason for source, reason in rejected(tmp_path / "out").items()}
    assert reasons.keys() == wanted.keys()
    for name, start in wanted.items():
        assert reasons[name].startswith(start), (name, reasons[name])
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith(f"rejected {len(wanted)} of {12 + len(wanted)} (10 unreadable, 1 copies)")


def test_each_class_says_how_many_of_it_are_rejected_and_left_out(tmp_path, capsys):
    own_pictures(tmp_path / "raw", each=12)
    for name, count in (("Cat", 2), ("Dog", 1)):
        for i in range(count):
            (tmp_path / "raw" / "mine" / name / f"cut {i}.png").write_bytes(b"\x89PNG")
    shutil.copy(tmp_path / "raw" / "mine" / "Dog" / "0.png", tmp_path / "raw" / "mine" / "Dog" / "again.png")
    (tmp_path / "raw" / "mine" / "Dog" / "nowhere.png").symlink_to("/nowhere.png")
    rows = prepare(tmp_path / "raw", tmp_path / "out", cap=16, max_rejected=0.5)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    with open(tmp_path / "out" / "per_class_by_split.csv", newline="", encoding="utf-8") as file:
        table = {row.pop("class"): {k: int(v) for k, v in row.items()} for row in csv.DictReader(file)}
    # Of the link nobody looked at what it shows.
    assert table.pop("(no class)") == {"train": 0, "val": 0, "test": 0, "rejected": 1, "left_out": 0}
    assert {name: row["rejected"] for name, row in table.items()} == {"Cat": 2, "Dog": 2}
    assert sum(row["left_out"] for row in table.values()) == 24 - 16
    for name, row in table.items():
        assert sum(row.values()) == 12 + row["rejected"]
        for split in ("train", "val", "test"):
            assert row[split] == sum((r["class"], r["split"]) == (name, split) for r in rows)
        kept = [row[split] for split in ("train", "val", "test")]
        numbers = (*kept, sum(kept), row["rejected"], row["left_out"])
        assert [name, *map(str, numbers)] in printed


@pytest.mark.parametrize(
    ("reason", "short"),
    [
        ("exact copy of mine/Cat/0.png", "exact copy"),
        ("truncated: a.raw holds less than its header claims", "truncated"),
        ("empty file (0 bytes)", "empty file"),
        ("near copies with different labels: Cat, Dog", "near copies with different labels"),
        ("no regular file", "no regular file"),
    ],
)
def test_reasons_are_counted_without_what_is_of_one_picture(reason, short):
    assert report.short_reason(reason) == short


def test_too_many_bad_files_stop_the_run(tmp_path):
    """Nothing is written but the list of reasons; mended, the same command goes on."""
    own_pictures(tmp_path / "raw", classes=("Cat",), each=12)
    bad = bad_files(tmp_path / "raw" / "mine" / "Cat")
    with pytest.raises(InputError, match=r"10 of 23 pictures cannot be used, more than --max-rejected 0.2"):
        prepare(tmp_path / "raw", tmp_path / "out")
    assert len(rejected(tmp_path / "out")) == 10
    assert not list(tmp_path.glob("out/*/*/*.png"))
    for name in bad:
        (tmp_path / "raw" / "mine" / "Cat" / name).unlink()
    assert len(prepare(tmp_path / "raw", tmp_path / "out")) == 12


def test_videos_and_volumes_give_a_few_frames_that_stay_together(tmp_path):
    """Frames are evenly spaced, share a group, and are made again only when --frames changes."""
    sitk = pytest.importorskip("SimpleITK")
    own_pictures(tmp_path / "raw", classes=("Cat",), each=6)
    folder = tmp_path / "raw" / "mine" / "Cat"
    films = [[Image.fromarray(speckle(100 * film + i)) for i in range(8)] for film in range(1, 4)]
    for number, frames in enumerate(films):
        frames[0].save(folder / f"film {number}.gif", save_all=True, append_images=frames[1:])
    volume = np.stack([speckle(900 + i) for i in range(3)])
    sitk.WriteImage(sitk.GetImageFromArray(volume), str(folder / "volume.nii.gz"))
    rows = prepare(tmp_path / "raw", tmp_path / "out")
    numbers, splits = defaultdict(list), defaultdict(set)
    for row in rows:
        numbers[Path(row["source"]).name].append(int(row["frame"]))
        splits[Path(row["source"]).name].add(row["split"])
    assert len(rows) == 6 + 3 * 4 + 3
    for number in range(3):
        assert sorted(numbers[f"film {number}.gif"]) == [1, 3, 5, 7]
    assert sorted(numbers["volume.nii.gz"]) == [0, 1, 2]
    assert all(len(found) == 1 for found in splits.values())
    assert len(prepare(tmp_path / "raw", tmp_path / "out", frames=2)) == 6 + 3 * 2 + 2
    assert prepare(tmp_path / "raw", tmp_path / "out") == rows


def test_copies_with_different_labels_are_dropped(tmp_path):
    own_pictures(tmp_path / "raw")
    save(tmp_path / "raw" / "mine" / "Dog" / "cat.bmp", speckle(7))  # the pixels of Cat/7.png
    save(tmp_path / "raw" / "other" / "Cat" / "again.png", speckle(8))  # the pixels of Cat/8.png
    rows = prepare(tmp_path / "raw", tmp_path / "out")
    assert len(rows) == 39
    reasons = rejected(tmp_path / "out")
    label = "exact copies with different labels: Cat, Dog"
    assert reasons == {
        "mine/Cat/7.png": label,
        "mine/Dog/cat.bmp": label,
        "other/Cat/again.png": "exact copy of mine/Cat/8.png",
    }


def test_selection_mapping_and_exclusion(tmp_path):
    own_pictures(tmp_path / "raw", classes=("Cat", "Dog", "Cow"), each=5)
    choice = tmp_path / "choice.json"
    choice.write_text(json.dumps({"Cat": "Pet", "Dog": "Pet", "Cow": None, "Fetal-Head": None}))
    rows = prepare(tmp_path / "raw", tmp_path / "out", selection=str(choice))
    assert {row["class"] for row in rows} == {"Pet"} and len(rows) == 10
    # A class of the catalogue may be named where it is not.
    rows = prepare(tmp_path / "raw", tmp_path / "out", exclude_classes=("Dog", "Abdomen"))
    assert {row["class"] for row in rows} == {"Cat", "Cow"}
    assert not (tmp_path / "out" / "contact_sheets" / "Pet.png").exists()
    with (tmp_path / "out" / "left_out.csv").open(encoding="utf-8") as file:
        left_out = {row["source"]: row["reason"] for row in csv.DictReader(file)}
    why = "class Dog is not wanted (--selection, --exclude-classes)"
    assert left_out == {f"mine/Dog/{i}.png": why for i in range(5)}


def refused(tmp_path: Path, **settings: object) -> str:
    """The message of an InputError; nothing may have been written but the index of what was looked at."""
    with pytest.raises(InputError) as caught:
        prepare(tmp_path / "raw", tmp_path / "out", **settings)
    assert {p.name for p in tmp_path.glob("out/**/*")} <= {prepare_datasets.INDEX, LOCK_NAME}
    return str(caught.value)


def test_missing_or_empty_raw_root(tmp_path):
    assert "no folder" in refused(tmp_path)
    (tmp_path / "raw").mkdir()
    assert "has no folder" in refused(tmp_path)
    (tmp_path / "raw" / "DDTI").mkdir()
    assert "no usable picture" in refused(tmp_path)


def test_small_classes_are_refused_by_name(tmp_path):
    own_pictures(tmp_path / "raw")
    save(tmp_path / "raw" / "mine" / "Cow" / "only.png", speckle(9999))
    (tmp_path / "raw" / "mine" / "Empty").mkdir()
    message = refused(tmp_path)
    assert "Cow (1 image(s) in 1 group(s)), Empty (0 image(s) in 0 group(s))" in message
    assert "--exclude-classes Cow Empty" in message
    rows = prepare(tmp_path / "raw", tmp_path / "out", exclude_classes=("Cow", "Empty"))
    assert {row["class"] for row in rows} == {"Cat", "Dog"}


def test_nothing_readable_is_refused(tmp_path):
    (tmp_path / "raw" / "mine" / "Cat").mkdir(parents=True)
    (tmp_path / "raw" / "mine" / "Cat" / "a.png").write_text("no picture")
    assert "none of the 1 pictures" in refused(tmp_path)


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        (
            "BUS-BRA/Images/bus_000{}-l.png",
            r"the publisher's list is missing \(bus_data.csv or bus_data.xlsx\)",
        ),
        (
            "BUS-UCLM/images/ALWI_00{}.png",
            r"the publisher's list is missing \(INFO.csv or INFO.xlsx\)",
        ),
        ("Mine/{}/1.png", "a link that leads out of the raw root"),
    ],
)
def test_where_all_is_rejected_the_first_reason_is_said(tmp_path, folder, why):
    """It said that --selection all keeps none of the classes, and an empty list."""
    (tmp_path / "raw").mkdir()
    home = tmp_path / ("elsewhere" if "Mine" in folder else "raw")
    for i in range(4):
        save(home / folder.format(i), speckle(i))
    if "Mine" in folder:
        (tmp_path / "raw" / "Mine").mkdir()
        for i in range(4):
            (tmp_path / "raw" / "Mine" / str(i)).symlink_to(home / "Mine" / str(i))
    message = refused(tmp_path)
    first = folder.format(0).removesuffix("/1.png")
    assert re.search(f"can be used, 4 are rejected; the first, {first}: {why}: put there", message)


def test_wrong_settings_are_refused(tmp_path):
    own_pictures(tmp_path / "raw", each=4)
    for settings, word in (
        ({"selection": "misson"}, "'all' nor 'mission'"),
        ({"selection": "mission"}, "keeps none"),
        ({"exclude_classes": ("Cat", "Dog")}, "all with --exclude-classes Cat Dog keeps none"),
        ({"exclude_classes": ("Horse",)}, "Horse is no class"),
        ({"cap": -1}, "--cap"),
        ({"max_rejected": 2.0}, "--max-rejected"),
        ({"cap": 5}, "raise --cap"),
    ):
        assert word in refused(tmp_path, **settings)


def test_a_folder_of_other_files_is_not_touched(tmp_path):
    own_pictures(tmp_path / "raw", each=4)
    save(tmp_path / "out" / "train" / "Cat" / "precious.png", speckle(1))
    with pytest.raises(InputError, match="did not make"):
        prepare(tmp_path / "raw", tmp_path / "out")
    assert (tmp_path / "out" / "train" / "Cat" / "precious.png").is_file()
    with pytest.raises(InputError, match="overlap"):
        prepare(tmp_path / "raw", tmp_path / "raw" / "processed")


@pytest.mark.parametrize("how", ["folder", "link to a folder", "link to a file", "file", "deep", "moved"])
def test_files_that_others_put_into_the_splits_are_refused_not_deleted(tmp_path, how):
    """All PNG files there that were not wanted were deleted, also behind links: a person's originals."""
    own_pictures(tmp_path / "raw", each=5)
    rows = prepare(tmp_path / "raw", tmp_path / "out")
    for i in range(3):
        save(tmp_path / "precious" / f"{i}.png", speckle(7000 + i))
    extra = tmp_path / "out" / "train" / "Extra"
    wanted = "1 files in its split folders that this script did not make, the first is train/Extra"
    if how in ("folder", "deep"):
        shutil.copytree(tmp_path / "precious", extra / ("inside" if how == "deep" else ""))
        wanted = "3 files .*the first is train/Extra/0.png" if how == "folder" else f"{wanted}/inside"
    elif how == "link to a folder":
        extra.symlink_to(tmp_path / "precious", target_is_directory=True)
    elif how == "file":
        shutil.copy(tmp_path / "precious" / "0.png", extra)
    else:
        extra.mkdir()
        if how == "moved":
            # It has a name of ours, and yet a person put it there.
            shutil.copy(tmp_path / "out" / rows[0]["file"], extra)
        else:
            (extra / "0.png").symlink_to(tmp_path / "precious" / "0.png")
    before = everything(tmp_path)
    for settings in ({}, {"cap": 6}):
        with pytest.raises(InputError, match=wanted):
            prepare(tmp_path / "raw", tmp_path / "out", **settings)
        after = everything(tmp_path)
        assert after.pop("out/.index.sqlite") and after == {
            name: each for name, each in before.items() if name != "out/.index.sqlite"
        }
    extra.rename(tmp_path / "moved away")
    prepare(tmp_path / "raw", tmp_path / "out", cap=6)
    assert len(list(tmp_path.glob("out/t*/*/*.png")) + list(tmp_path.glob("out/val/*/*.png"))) == 6


@pytest.mark.parametrize("name", ["train", "val", "contact_sheets"])
@pytest.mark.parametrize("is_link", [False, True])
def test_a_split_that_is_a_file_or_a_link_is_refused(tmp_path, name, is_link):
    """A file was a traceback; behind a link images were deleted."""
    own_pictures(tmp_path / "raw", each=5)
    prepare(tmp_path / "raw", tmp_path / "out")
    (tmp_path / "out" / name).rename(tmp_path / "elsewhere")
    if is_link:
        (tmp_path / "out" / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    else:
        (tmp_path / "out" / name).write_text("")
    before = everything(tmp_path)
    kind = "link" if is_link else "file"
    with pytest.raises(InputError, match=f"{name} is a {kind}, wanted a folder that this script makes"):
        prepare(tmp_path / "raw", tmp_path / "out", cap=6)
    assert everything(tmp_path) == before


def test_of_hidden_files_in_the_splits_only_half_written_images_go(tmp_path):
    """A file manager's are no reason to refuse, and whatever begins with .tmp- was deleted."""
    own_pictures(tmp_path / "raw", each=5)
    prepare(tmp_path / "raw", tmp_path / "out")
    names = (".DS_Store", "Thumbs.db", ".secret.png", ".tmp-notes.png", ".tmp-12-mine__0.png")
    for name in names:
        (tmp_path / "out" / "train" / "Cat" / name).write_bytes(b"")
    prepare(tmp_path / "raw", tmp_path / "out", cap=6)
    left = {path.name for path in tmp_path.glob("out/train/Cat/*")}
    assert {*names[:4]} <= left and names[4] not in left


def test_contact_sheets_of_others_stay(tmp_path):
    """Every PNG there that was no class was deleted."""
    own_pictures(tmp_path / "raw", each=5)
    prepare(tmp_path / "raw", tmp_path / "out")
    save(tmp_path / "out" / "contact_sheets" / "notes.png", speckle(1))
    prepare(tmp_path / "raw", tmp_path / "out", exclude_classes=("Dog",))
    assert {p.name for p in tmp_path.glob("out/contact_sheets/*")} == {"Cat.png", "notes.png"}


@pytest.mark.parametrize("index", ["kept", "of other code"])
def test_another_run_removes_what_a_killed_one_left(tmp_path, monkeypatch, index):
    """Images that are in no manifest yet, and not even among the saved outputs of the index."""
    own_pictures(tmp_path / "raw")
    real = prepare_datasets.work.write

    def killed(raw_root, part, *rest):
        done = real(raw_root, part, *rest)
        if len(list(tmp_path.glob("out/*/*/*.png"))) == 20:
            shutil.copy(tmp_path / "out" / prepare_datasets.INDEX, tmp_path / "left")
            raise RuntimeError("killed")
        return done

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="killed"):
        patched.setattr(prepare_datasets.work, "write", killed)
        prepare(tmp_path / "raw", tmp_path / "out")
    (tmp_path / "left").replace(tmp_path / "out" / prepare_datasets.INDEX)
    if index == "of other code":
        monkeypatch.setattr("data_preprocessing.index.stamp", lambda: "later")
    rows = prepare(tmp_path / "raw", tmp_path / "out", cap=6, seed=1)
    on_disk = {p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.glob("out/*/*/*.png")}
    assert on_disk == {row["file"] for row in rows} and len(rows) == 6


@pytest.mark.parametrize("left", ["manifest", "nothing"])
def test_what_is_ours_where_the_index_is_lost(tmp_path, left):
    """The manifest says it too. With neither, images that are wanted are written anew, others refused."""
    own_pictures(tmp_path / "raw", each=5)
    rows = prepare(tmp_path / "raw", tmp_path / "out")
    (tmp_path / "out" / prepare_datasets.INDEX).write_bytes(b"no database" * 100)
    if left == "manifest":
        assert len(prepare(tmp_path / "raw", tmp_path / "out", cap=6)) == 6
        return
    (tmp_path / "out" / "manifest.csv").unlink()
    with pytest.raises(InputError, match="4 files in its split folders that this script did not make"):
        prepare(tmp_path / "raw", tmp_path / "out", cap=6)
    assert all((tmp_path / "out" / row["file"]).is_file() for row in rows)
    assert prepare(tmp_path / "raw", tmp_path / "out") == rows


def test_two_runs_at_once_and_a_folder_that_cannot_be_written(tmp_path):
    own_pictures(tmp_path / "raw", each=4)
    command = [sys.executable, "data_preprocessing/prepare_datasets.py", "--raw-root", str(tmp_path / "raw")]
    with lock_folder(tmp_path / "out"):
        done = subprocess.run(
            [*command, "--out-root", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True
        )
    assert done.returncode == 2 and "another run writes" in done.stderr and done.stderr.count("\n") == 1
    assert prepare(tmp_path / "raw", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        prepare(tmp_path / "raw", tmp_path / "file" / "out")


def disk_with(monkeypatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, free))


def test_a_disk_without_room_is_refused_before_an_image_is_written(tmp_path, monkeypatch):
    """40 images of 32 x 32 are small, but their lists and contact sheets need room as well."""
    own_pictures(tmp_path / "raw")
    disk_with(monkeypatch, 10**6)
    message = refused(tmp_path)
    assert "40 images of 32 x 32 need up to 0.021 GB, 0.001 GB are free" in message and "make room" in message


def test_a_run_refused_for_lack_of_room_leaves_the_old_data_set(tmp_path, monkeypatch, capsys):
    """Its images were deleted before the room was looked at."""
    own_pictures(tmp_path / "raw")
    prepare(tmp_path / "raw", tmp_path / "out")
    before = everything(tmp_path / "out")
    needed = 40 * (64 * 64 + 4096) + (20 << 20)
    disk_with(monkeypatch, 10**6)
    with pytest.raises(InputError, match="make room"):
        prepare_datasets.main(Settings(tmp_path / "raw", tmp_path / "out", size=64, workers=1))
    assert everything(tmp_path / "out") == before
    capsys.readouterr()
    prepare(tmp_path / "raw", tmp_path / "out")
    assert "nothing to do" in capsys.readouterr().out
    # What the old images take counts as free.
    disk_with(monkeypatch, needed - 1)
    prepare_datasets.main(Settings(tmp_path / "raw", tmp_path / "out", size=64, workers=1))
    assert {row["output_size"] for row in manifest(tmp_path / "out")} == {"64"}


def test_there_is_no_manifest_while_images_change(tmp_path, monkeypatch):
    """It says that the rest is there; that of the run before named images that were gone."""
    own_pictures(tmp_path / "raw")
    prepare(tmp_path / "raw", tmp_path / "out", cap=10)

    def stopped(*_):
        raise RuntimeError("killed")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="killed"):
        patched.setattr(prepare_datasets.work, "write", stopped)
        prepare(tmp_path / "raw", tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.csv").exists()
    assert prepare(tmp_path / "raw", tmp_path / "out") == prepare(tmp_path / "raw", tmp_path / "fresh")


@pytest.mark.parametrize("spoiled", [b"a,b\n1,2\n", b"\xff\xfe\x00nonsense", b"", "quote", "long quote"])
def test_a_spoiled_manifest_counts_as_absent(tmp_path, spoiled):
    """Another header was a KeyError; a quote that is not closed made every further run fail."""
    own_pictures(tmp_path / "raw", each=5)
    rows = prepare(tmp_path / "raw", tmp_path / "out")
    path = tmp_path / "out" / "manifest.csv"
    whole = path.read_bytes()
    if isinstance(spoiled, str):
        header, first, rest = whole.split(b"\n", 2)
        # Longer than a field may be.
        spoiled = b"\n".join([header, first, b'"' + rest * (100 if spoiled == "long quote" else 1)])
    path.write_bytes(spoiled)
    assert prepare(tmp_path / "raw", tmp_path / "out") == rows and path.read_bytes() == whole
    # What was written is still known.
    path.write_bytes(spoiled)
    assert len(prepare(tmp_path / "raw", tmp_path / "out", cap=6)) == 6


@pytest.mark.parametrize("name", ["..x", "a:b", " Cat", "a\nb", "é" * 100])
def test_unsafe_class_names_are_refused(tmp_path, name):
    choice = tmp_path / "choice.json"
    choice.write_text(json.dumps({"Cat": name if name != "..x" else "../x"}))
    own_pictures(tmp_path / "raw", classes=("Cat",), each=4)
    assert "cannot be a folder's name" in refused(tmp_path, selection=str(choice))


def test_flagged_pictures_are_left_out_on_request(tmp_path):
    own_pictures(tmp_path / "raw", classes=("Cat",), each=6)
    grey_HW = speckle(100, 560, 420)
    flow_HW3 = np.stack([grey_HW] * 3, axis=-1)
    flow_HW3[150:190, 200:270] = 220, 30, 20
    save(tmp_path / "raw" / "mine" / "Cat" / "flow.png", flow_HW3)
    assert "--exclude-flags colour" in refused(tmp_path, exclude_flags=("colour",))
    rows = prepare(tmp_path / "raw", tmp_path / "out")
    assert {row["source"]: row["flags"] for row in rows}["mine/Cat/flow.png"] == "doppler"
    assert len(prepare(tmp_path / "raw", tmp_path / "out", exclude_flags=("calipers",))) == 7
    rows = prepare(tmp_path / "raw", tmp_path / "out", exclude_flags=("calipers", "doppler"))
    assert len(rows) == 6 and not any(row["flags"] for row in rows)
    with open(tmp_path / "out" / "left_out.csv", encoding="utf-8") as file:
        assert "mine/Cat/flow.png,detected: doppler (--exclude-flags)" in file.read()


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[1]"])
def test_a_selection_that_is_no_mapping_is_refused(tmp_path, text):
    choice = tmp_path / "choice.json"
    choice.write_text(text)
    own_pictures(tmp_path / "raw", classes=("Cat",), each=4)
    assert f"--selection {choice}" in refused(tmp_path, selection=str(choice))


def test_the_command_line_says_one_line_and_exits_2(tmp_path):
    command = [sys.executable, "data_preprocessing/prepare_datasets.py", "--raw-root", str(tmp_path / "none")]
    done = subprocess.run(
        [*command, "--out-root", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_fault_of_the_code_names_its_picture(tmp_path, monkeypatch):
    own_pictures(tmp_path / "raw", each=4)

    def find_frame(*_):
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(prepare_datasets.work, "find_frame", find_frame)
    with pytest.raises(ZeroDivisionError) as caught:
        prepare(tmp_path / "raw", tmp_path / "out")
    assert caught.value.__notes__ == ["the picture was mine/Cat/0.png"]


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path, monkeypatch):
    """Records, looks and manifest rows as Python objects once took 11 kB a picture."""
    # These take as much for any large number of pictures, but not yet for a few.
    monkeypatch.setattr(shortcut, "LARGEST_CLASS", 10)
    monkeypatch.setattr(prepare_datasets.work, "draw_sheet", lambda *_: None)
    monkeypatch.setattr(prepare_datasets.report, "bar_chart", lambda *_: None)
    peak = {}
    for count in (40, 160, 640):  # the first imports what is imported late
        for n in range(count):
            save(tmp_path / f"raw {count}" / "mine" / "AB"[n % 2] / f"{n}.png", speckle(n, 24, 18))
        gc.collect()
        tracemalloc.start()
        assert len(prepare(tmp_path / f"raw {count}", tmp_path / f"out {count}", cap=0)) == count
        peak[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak[640] - peak[160] < 2000 * (640 - 160)
