"""The catalogue as a whole: complete, without contradictions, and printed in docs/datasets.md as it is."""

import errno
import re
from pathlib import Path

import pytest
from raw_trees import find, plant, write

from data_preprocessing.catalogue import (
    CATALOGUE,
    INCLUDES,
    MISSION_CLASSES,
    classes_of,
    plain_name,
    read_outline,
)
from data_preprocessing.catalogue.__main__ import page
from usvar.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
# The rows of the mission's table, by the names that its readers know.
ROWS = (
    *("105US", "AbdomenUS", "ACOUSLIC", "ASUS", "AUL", "brachial_plexus", "BrEaST"),
    *("BUID", "BUS_UC", "BUS_UCML", "BUS-BRA", "BUS", "BUSI", "CAMUS"),
    *("CardiacUDC", "CCAUI", "DDTI", "EchoCP", "EchoNet-Dynamic", "EchoNet-Pediatric", "FALLMUD"),
    *("FASS", "Fast-U-Net", "FH-PS-AOP", "GIST514-DB", "HC", "kidneyUS", "LUSS_phantom"),
    *("MicroSeg", "MMOTU-2D", "MMOTU-3D", "MUP", "regPro", "S1", "Segthy"),
    *("STMUS_NDA", "STU-Hospital", "TG3K", "Cineclip", "TN3K", "TNSCUI", "UPBD"),
    "US_nerve_Segmentation",
)


def test_every_row_of_the_table_has_an_entry():
    known = {plain_name(name) for entry in CATALOGUE for name in (entry.name, *entry.aliases)}
    assert len(ROWS) == 43
    assert not [row for row in ROWS if plain_name(row) not in known]


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_an_entry_is_complete(entry):
    assert entry.organ and entry.home and entry.unpack and entry.labels and entry.groups
    assert entry.shape in ("fan", "rectangle", "both")
    assert entry.access in ("open", "register", "hard to reach")
    assert entry.layouts or entry.same_as in {other.name for other in CATALOGUE}
    for layout in entry.layouts:
        re.compile(layout.pattern)
        assert layout.take in ("still", "first", "even", "listed", "labelled")
        assert (layout.labels is not None) == (layout.take == "labelled")
        assert set(layout.splits.values()) <= {"train", "val", "test"}
        assert not layout.include or layout.include in entry.left_out
        assert not layout.copy_of or "copies" in entry.left_out
    for name in classes_of(entry):
        assert re.fullmatch(r"[A-Z][A-Za-z0-9]*(-[A-Z][A-Za-z0-9]*)*", name), name


def test_names_of_folders_lead_to_one_entry():
    """Two sets of one archive may share the archive's name; else a name would be ambiguous."""
    archives = {plain_name("Thyroid Dataset"), plain_name("MMOTU")}
    names = [
        name
        for entry in CATALOGUE
        for name in {plain_name(known) for known in (entry.name, *entry.aliases)} - archives
    ]
    assert not {name for name in names if names.count(name) > 1}


def test_the_mission_has_six_organs_and_twelve_classes():
    assert len(MISSION_CLASSES) == 12
    assert {name.split("-")[0] for name in MISSION_CLASSES} == {
        *("Breast", "Fetal", "Heart", "Kidney", "Liver", "Thyroid")
    }
    assert set(MISSION_CLASSES) <= {name for entry in CATALOGUE for name in classes_of(entry)}


def test_a_list_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    """Root may read all, hence the patch. A copy that cannot be read is rejected when it is looked at."""
    lists = {
        "CAMUS/database_split/subgroup_training.txt": "patient0001",
        "CAMUS/database_nifti/patient0001/Info_2CH.cfg": "ED: 1\nES: 3\n",
    }
    plant(tmp_path, "BUS_UC/All/images/1.png", "BUS_UC/Benign/images/01.png")
    write(tmp_path / "CAMUS/database_nifti/patient0001/patient0001_2CH_half_sequence.nii.gz", "x")
    write(tmp_path / "CAMUS/database_nifti/patient0001/patient0001_2CH_ED.nii.gz", "x")
    locked = {tmp_path / "BUS_UC/All/images/1.png"}

    def opened(path, *rest, real=Path.open, **named):
        if path in locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *rest, **named)

    for name, text in lists.items():
        write(tmp_path / name, text)
    monkeypatch.setattr(Path, "open", opened)
    assert "BUS_UC/All/images/1.png" in find(tmp_path, "copies").rejected
    for name in lists:
        locked.add(tmp_path / name)
        with pytest.raises(InputError, match=rf"{name} cannot be read \(Permission denied\)"):
            find(tmp_path, "half-sequences")
        locked.remove(tmp_path / name)


def test_the_page_is_the_catalogue():
    """Made again by `python -m data_preprocessing.catalogue > docs/datasets.md`."""
    assert (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8") == page()
    assert all(f"`--include {word}`" in page() for word in INCLUDES)


def test_the_page_gives_a_misspelt_set_its_right_name():
    assert "\n| UPBD (right name: UBPD) | Nerve |" in page() and "\n**UPBD (right name: UBPD)** (" in page()


def test_a_licence_that_nobody_read_is_not_said_to_be_missing():
    """It was printed as "not stated", which reads like a search without a result."""
    unread = {"105US", "AbdomenUS", "ASUS", "MicroSeg", "MUP", "UPBD"}
    assert {entry.name for entry in CATALOGUE if entry.licence == "not known"} == unread


@pytest.mark.parametrize(
    "text",
    [
        *("[[1, 2], [3, NaN], [5, 6]]", "[[1, 2], [3, Infinity]]", "[1, 2]", "{"),
        pytest.param(f"[[1, {10**400}]]", id="400 digits"),
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_an_outline_with_a_fault_is_none(tmp_path, text):
    (tmp_path / "outline.json").write_text(text)
    assert read_outline(tmp_path / "outline.json") is None
    (tmp_path / "outline.json").write_text("[[1, 2], [3, 4.5]]")
    assert read_outline(tmp_path / "outline.json") == [(1.0, 2.0), (3.0, 4.5)]
