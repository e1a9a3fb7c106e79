"""Breast sets: a small tree in each publisher's layout, with the trap that it holds."""

import numpy as np
import pytest
from openpyxl import Workbook
from raw_trees import empty_png, find, plant, save, speckle, told, write

from usvar.errors import InputError


def write_sheet(path, rows, further=()):
    """An XLSX file with `rows` in its first sheet."""
    book = Workbook()
    for row in rows:
        book.active.append(row)
    for title in further:
        book.create_sheet(title).append(["nothing", "of", "concern"])
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)


def write_csv(path, rows, separator=","):
    write(path, "\n".join(separator.join(map(str, row)) for row in rows) + "\n")


BREST = "BrEaST-Lesions_USG-images_and_masks"
BREST_SHEET = "BrEaST-Lesions-USG-clinical-data-Dec-15-2023"
BREST_ROWS = [
    ["CaseID", "Image_filename", "Mask_tumor_filename", "Mask_other_filename", "BIRADS", "Classification"],
    [1, "case001.png", "case001_tumor.png", "case001_other1.png", "3", "benign"],
    [2, "case002.png", "case002_tumor.png&case002_tumor2.png", None, "4c", "malignant"],
    [45, "case045.png", None, None, "1", "normal"],
]


def plant_brest(folder):
    """PNG with alpha, masks in the same folder."""
    names = ("001", "001_tumor", "001_other1", "002", "002_tumor", "002_tumor2", "045")
    for number, name in enumerate(names):
        save(
            folder / f"case{name}.png", np.dstack([speckle(number)] * 3 + [np.full((80, 96), 255, np.uint8)])
        )


@pytest.mark.parametrize(
    "home",
    ["BrEaST", "BrEaST/breast-lesions-usg/tidy", "breast-lesions-usg"],
    ids=["fresh", "deeper", "alias"],
)
@pytest.mark.parametrize("kind", ["xlsx", "csv"])
def test_brest(tmp_path, home, kind):
    """A cell of masks lists two names, another is empty; masks lie beside the pictures; XLSX or CSV."""
    plant_brest(tmp_path / home / BREST)
    sheet = tmp_path / home / f"{BREST_SHEET}.{kind}"
    if kind == "xlsx":
        write_sheet(sheet, BREST_ROWS, further=["BIRADS"])
    else:
        write_csv(sheet, [["" if cell is None else cell for cell in row] for row in BREST_ROWS])
    found = find(tmp_path)
    assert told(found) == {
        f"{home}/{BREST}/case001.png": ("Breast-Benign", "1", ""),
        f"{home}/{BREST}/case002.png": ("Breast-Malignant", "2", ""),
        f"{home}/{BREST}/case045.png": ("Breast-Normal", "45", ""),
    }
    assert {record.dataset for record in found.records} == {"BrEaST"}
    assert not found.rejected and not found.left_out


def test_brest_shallower_and_unlisted(tmp_path):
    """Without the folder of the archive; a picture that the sheet lacks, and one with an unknown label."""
    plant_brest(tmp_path / "BrEaST")
    write_sheet(
        tmp_path / "BrEaST" / f"{BREST_SHEET}.xlsx",
        [BREST_ROWS[0], BREST_ROWS[1], [*BREST_ROWS[2][:5], "borderline"]],
    )
    found = find(tmp_path)
    assert told(found) == {"BrEaST/case001.png": ("Breast-Benign", "1", "")}
    assert found.rejected == {
        "BrEaST/case002.png": "unknown label 'borderline', wanted one of benign, malignant, normal",
        "BrEaST/case045.png": "not in the publisher's list",
    }


def test_brest_without_its_sheet_is_rejected_aloud(tmp_path):
    plant_brest(tmp_path / "BrEaST" / BREST)
    found = find(tmp_path)
    assert not found.records
    assert set(found.rejected.values()) == {"the publisher's list is missing"} and len(found.rejected) == 3
    assert found.notes == ["BrEaST: BrEaST, 0 files; 3 rejected, the first: the publisher's list is missing"]


def test_a_list_without_its_column_stops(tmp_path):
    plant_brest(tmp_path / "BrEaST" / BREST)
    write_sheet(tmp_path / "BrEaST" / f"{BREST_SHEET}.xlsx", [row[:5] for row in BREST_ROWS])
    with pytest.raises(InputError, match=r"clinical-data-Dec-15-2023.xlsx lacks the column Classification"):
        find(tmp_path)


@pytest.mark.parametrize("home", ["BUID", "QAMEBI/Ultrasound Images", "BUID/new/BLUI"])
def test_buid(tmp_path, home):
    """Each case has a picture, one with the lesion drawn in, and a mask, with blanks in the names."""
    plant(
        tmp_path,
        *(
            f"{home}/{label}/1 {label} {what}"
            for label in ("Benign", "Malignant")
            for what in ("Image.bmp", "Lesion.bmp", "Mask.tif")
        ),
    )
    pictures = {
        f"{home}/Benign/1 Benign Image.bmp": ("Breast-Benign", "1 Benign", ""),
        f"{home}/Malignant/1 Malignant Image.bmp": ("Breast-Malignant", "1 Malignant", ""),
    }
    overlays = {source.replace("Image", "Lesion"): said for source, said in pictures.items()}
    # "Ultrasound Images" is part of a folder's name above.
    overlays = {
        source.replace("Ultrasound Lesions", "Ultrasound Images"): s for source, s in overlays.items()
    }
    found = find(tmp_path)
    assert told(found) == pictures and not found.rejected
    assert set(found.left_out) == set(overlays)
    assert told(find(tmp_path, "overlays")) == pictures | overlays


@pytest.mark.parametrize("home", ["BUS_UC", "BUS_UC/BUS_UC", "bus-uc/3ksd7w7jkx/BUS_UC"])
def test_bus_uc(tmp_path, home):
    """The same stem in Benign, Malignant and All: none from All, whose classes only bytes tell."""
    folder = tmp_path / home
    plant(folder, "Benign/images/01.png", "Benign/images/07.png", "Malignant/images/01.png")
    plant(folder, "Benign/masks/01.png", "Malignant/masks/01.png", "All/masks/01.png", first=50)
    for copy, original in (("01", "Malignant/images/01"), ("02", "Benign/images/01")):
        write(folder / f"All/images/{copy}.png", (folder / f"{original}.png").read_bytes())
    plant(folder, "All/images/09.png", first=90)  # of no class
    pictures = {
        f"{home}/Benign/images/01.png": ("Breast-Benign", "", ""),
        f"{home}/Benign/images/07.png": ("Breast-Benign", "", ""),
        f"{home}/Malignant/images/01.png": ("Breast-Malignant", "", ""),
    }
    found = find(tmp_path)
    assert told(found) == pictures and not found.rejected
    assert set(found.left_out) == {f"{home}/All/images/{stem}.png" for stem in ("01", "02", "09")}
    found = find(tmp_path, "copies")
    assert told(found) == pictures | {
        f"{home}/All/images/01.png": ("Breast-Malignant", "", ""),
        f"{home}/All/images/02.png": ("Breast-Benign", "", ""),
    }
    assert set(found.rejected) == {f"{home}/All/images/09.png"}


UCLM = "BUS-UCLM Breast ultrasound lesion segmentation dataset/BUS-UCLM"
UCLM_ROWS = [
    ["Image", "Label", "Resolution", "Doppler", "Marks", "Combined"],
    ["ALWI_000.png", "Normal", "856x606", "No", "No", "No"],
    ["ALWI_001.png", "Benign", "856x606", "No", "No", "No"],
    ["ALWI_002.png", "Benign", "856x606", "Yes", "No", "No"],
    ["FUHI_000.png", "Malignant", "856x606", "No", "Yes", "No"],
    ["FUHI_001.png", "Malignant", "856x606", "No", "No", "No"],
    ["FUHI_002.png", "Benign", "856x606", "No", "No", "Yes"],
    ["FUHI_003.png", "Benign", "856x606", "Yes", "Yes", "No"],
]


@pytest.mark.parametrize("home", [UCLM, "BUS_UCML", f"BUS_UCML/{UCLM}"], ids=["fresh", "shallower", "deeper"])
@pytest.mark.parametrize("separator", [";", ","])
def test_bus_uclm(tmp_path, home, separator):
    """Rows of Doppler, calipers or two scans are left out by word; a row of two needs both words."""
    for row in UCLM_ROWS[1:]:
        plant(tmp_path / home, f"images/{row[0]}", f"masks/{row[0]}")
    write_csv(tmp_path / home / "INFO.csv", UCLM_ROWS, separator)
    images = f"{home}/images"
    plain = {
        f"{images}/ALWI_000.png": ("Breast-Normal", "ALWI", ""),
        f"{images}/ALWI_001.png": ("Breast-Benign", "ALWI", ""),
        f"{images}/FUHI_001.png": ("Breast-Malignant", "FUHI", ""),
    }
    found = find(tmp_path)
    assert told(found) == plain and not found.rejected
    assert {source.rsplit("/", 1)[1]: why for source, why in found.left_out.items()} == {
        "ALWI_002.png": "colour Doppler by INFO.csv (--include doppler brings them back)",
        "FUHI_000.png": "calipers by INFO.csv (--include marks brings them back)",
        "FUHI_002.png": "two scans side by side by INFO.csv (--include combined brings them back)",
        "FUHI_003.png": "colour Doppler by INFO.csv and calipers by INFO.csv "
        "(--include doppler marks brings them back)",
    }
    doppler = plain | {f"{images}/ALWI_002.png": ("Breast-Benign", "ALWI", "")}
    assert told(find(tmp_path, "doppler")) == doppler
    assert len(find(tmp_path, "doppler", "marks", "combined").records) == 7


def test_bus_uclm_without_its_list(tmp_path):
    """Its masks tell the classes by colour; all of it was rejected."""
    home = "BUS-UCLM/images"
    colours = {"0": (0, 255, 0), "1": (255, 0, 0), "2": (0, 0, 0), "3": (0, 0, 255)}
    for name, colour in colours.items():
        mask_HW3 = np.zeros((80, 96, 3), np.uint8)
        mask_HW3[20:40, 30:50] = colour
        save(tmp_path / f"BUS-UCLM/masks/ALWI_00{name}.png", mask_HW3)
    mask_HW3[50:60, 30:50], mask_HW3[20:40, 30:50] = (0, 255, 0), (255, 0, 0)
    save(tmp_path / "BUS-UCLM/masks/FUHI_000.png", mask_HW3)
    save(tmp_path / "BUS-UCLM/masks/FUHI_001.png", np.zeros((80, 96), np.uint8))
    write(tmp_path / "BUS-UCLM/masks/FUHI_002.png", b"no picture")
    plant(tmp_path / home, *(f"ALWI_00{n}.png" for n in range(4)), *(f"FUHI_00{n}.png" for n in range(4)))
    found = find(tmp_path)
    assert told(found) == {
        f"{home}/ALWI_000.png": ("Breast-Benign", "ALWI", ""),
        f"{home}/ALWI_001.png": ("Breast-Malignant", "ALWI", ""),
        f"{home}/ALWI_002.png": ("Breast-Normal", "ALWI", ""),
        f"{home}/FUHI_001.png": ("Breast-Normal", "FUHI", ""),
    }
    labels = {source[-12:-4]: why.split("'")[1] for source, why in found.rejected.items()}
    assert labels == {
        "ALWI_003": "(a mask of other colours)",
        "FUHI_000": "benign and malignant",
        "FUHI_002": "(a broken mask)",
        "FUHI_003": "(no mask)",
    }
    assert "WARNING: BUS-UCLM: BUS-UCLM, without INFO.csv or INFO.xlsx, so less is known" in "\n".join(
        found.notes
    )


@pytest.mark.parametrize("home", ["BUSBRA", "BUS-BRA/BUSBRA", "BUS-BRA/zenodo 8231412/BUSBRA"])
def test_bus_bra(tmp_path, home):
    """Two pictures of one woman are one group and lie in one fold; the first fold is the test part."""
    women = {"0001": (1, "benign", 1), "0002": (2, "malignant", 2), "0003": (3, "benign", 5)}
    sides = [("0001", "l"), ("0001", "r"), ("0002", "l"), ("0003", "s")]
    for number, side in sides:
        plant(tmp_path / home, f"Images/bus_{number}-{side}.png", f"Masks/mask_{number}-{side}.png")
    header = ["ID", "Case", "Histology", "Pathology", "BIRADS", "Device", "Width", "Height", "Side", "BBOX"]
    rows = [
        [f"bus_{n}-{side}", women[n][0], "Cyst", women[n][1], 4, "GE", 96, 80, "left", '"[1, 2, 3, 4]"']
        for n, side in sides
    ]
    write_csv(tmp_path / home / "bus_data.csv", [header, *rows])
    folds = [[f"bus_{n}-{side}", women[n][1], women[n][2], 0] for n, side in sides]
    write_csv(tmp_path / home / "5-fold-cv.csv", [["ID", "Pathology", "kFold", "valid_1"], *folds])
    # Its folds are others: were they read, 0001 would go to train.
    tenfold = [[f"bus_{n}-{side}", women[n][1], 3] for n, side in sides]
    write_csv(tmp_path / home / "10-fold-cv.csv", [["ID", "Pathology", "kFold"], *tenfold])
    expected = {
        f"{home}/Images/bus_0001-l.png": ("Breast-Benign", "1", "test"),
        f"{home}/Images/bus_0001-r.png": ("Breast-Benign", "1", "test"),
        f"{home}/Images/bus_0002-l.png": ("Breast-Malignant", "2", "train"),
        f"{home}/Images/bus_0003-s.png": ("Breast-Benign", "3", "train"),
    }
    found = find(tmp_path)
    assert told(found) == expected
    assert not found.rejected and not found.left_out
    (tmp_path / home / "5-fold-cv.csv").unlink()
    assert told(find(tmp_path)) == {source: (*said[:2], "") for source, said in expected.items()}


@pytest.mark.parametrize("home", ["BUS", "UDIAT/BUS", "Dataset B/given by mail/BUS"])
@pytest.mark.parametrize("kind", ["xlsx", "csv"])
def test_bus_dataset_b(tmp_path, home, kind):
    """The sheet holds plain numbers, the names are padded to six digits; masks have the same names."""
    for number in (1, 12, 163):
        plant(tmp_path / home, f"original/{number:06}.png", f"GT/{number:06}.png", first=number)
    rows = [["Image", "Type"], [1, "Benign"], [12, "Malignant"], [163, "Benign"]]
    (write_sheet if kind == "xlsx" else write_csv)(tmp_path / home / f"DatasetB.{kind}", rows)
    found = find(tmp_path)
    assert told(found) == {
        f"{home}/original/000001.png": ("Breast-Benign", "", ""),
        f"{home}/original/000012.png": ("Breast-Malignant", "", ""),
        f"{home}/original/000163.png": ("Breast-Benign", "", ""),
    }
    assert not found.rejected and not found.left_out


BUSI_NAMES = [
    *("benign/benign (1).png", "benign/benign (1)_mask.png", "benign/benign (1)_mask_1.png"),
    *("malignant/malignant (1).PNG", "malignant/malignant (1)_mask.png"),
    *("normal/normal (1).png", "normal/normal (1)_mask.png"),
]
BUSI_CLASSES = {
    "benign/benign (1).png": ("Breast-Benign", "", ""),
    "malignant/malignant (1).PNG": ("Breast-Malignant", "", ""),
    "normal/normal (1).png": ("Breast-Normal", "", ""),
}


@pytest.mark.parametrize(
    "home", ["Dataset_BUSI_with_GT", "BUSI", "BUSI/Dataset_BUSI_with_GT", "BUSI/kaggle/Dataset_BUSI_with_GT"]
)
def test_busi(tmp_path, home):
    """A second mask of one picture; a normal picture has a (black) mask too."""
    plant(tmp_path / home, *BUSI_NAMES)
    save(tmp_path / home / "normal/normal (1)_mask.png", np.zeros((80, 96), np.uint8))
    found = find(tmp_path)
    assert told(found) == {f"{home}/{name}": said for name, said in BUSI_CLASSES.items()}
    assert not found.rejected and not found.left_out


def test_busi_256_is_a_second_copy(tmp_path):
    """Its inner folder is named like BUSI's own; the outer name counts."""
    for folder in ("BUSI", "BUSI_256"):
        plant(tmp_path / folder / "Dataset_BUSI_with_GT", *BUSI_NAMES)
    own = {f"BUSI/Dataset_BUSI_with_GT/{name}": said for name, said in BUSI_CLASSES.items()}
    copies = {f"BUSI_256/Dataset_BUSI_with_GT/{name}": said for name, said in BUSI_CLASSES.items()}
    found = find(tmp_path)
    assert told(found) == own and set(found.left_out) == set(copies)
    found = find(tmp_path, "copies")
    assert told(found) == own | copies
    assert {record.source.split("/")[0]: record.dataset for record in found.records} == {
        "BUSI": "BUSI",
        "BUSI_256": "BUSI_256",
    }


def lesion(*greys: int) -> np.ndarray:
    """An Expanded label of S1: three equal channels, lesions of these greys on black."""
    label_HW = np.zeros((80, 96), np.uint8)
    for i, grey in enumerate(greys):
        label_HW[20:40, 10 + 30 * i : 30 + 30 * i] = grey
    return np.dstack([label_HW] * 3)


@pytest.mark.parametrize(
    "home", ["S1/Data", "S1", "S1/pone/S1 File/Data"], ids=["fresh", "shallower", "deeper"]
)
def test_s1(tmp_path, home):
    """Stem 0 in train and test, of different classes; two folders of test pictures; binary labels beside."""
    folder = tmp_path / home
    train, test = "TrainingDataSet", "TestingDataSet/Test"
    plant(folder, *(f"{train}/BreastTumourImages/{n}.jpg" for n in (0, 1, 2, 3)))
    plant(folder, *(f"{test}-Expanded-BreastTumourImages/{n}.jpg" for n in (0, 1)), first=10)
    for n, greys in ((0, (127,)), (1, (255,)), (2, (127, 255)), (3, ())):
        save(folder / f"{train}/Expanded-3-channel-Labels/{n}.png", lesion(*greys))
        save(folder / f"{train}/General-1-channel-Labels/{n}.png", lesion(255)[..., 0])
    for n, grey in ((0, 255), (1, 127)):
        save(folder / f"{test}-Expanded-3-channel-Labels/{n}.png", lesion(grey))
        save(folder / f"{test}-General-1-channel-Labels/{n}.png", lesion(255)[..., 0])
    # The second folder of test pictures: 0 is the other's 1, 5 is nowhere else.
    copy = (folder / f"{test}-Expanded-BreastTumourImages/1.jpg").read_bytes()
    write(folder / f"{test}-General-1-BreastTumourImages/0.jpg", copy)
    plant(folder, f"{test}-General-1-BreastTumourImages/5.jpg", first=70)
    plant(folder, "Segmentation_Results/BreastTumourImages/0.jpg", "Segmentation_Results/0.png", first=80)
    pictures = {
        f"{home}/{train}/BreastTumourImages/0.jpg": ("Breast-Benign", "", "train"),
        f"{home}/{train}/BreastTumourImages/1.jpg": ("Breast-Malignant", "", "train"),
        f"{home}/{test}-Expanded-BreastTumourImages/0.jpg": ("Breast-Malignant", "", "test"),
        f"{home}/{test}-Expanded-BreastTumourImages/1.jpg": ("Breast-Benign", "", "test"),
    }
    wanted = "wanted one of benign, malignant"
    rejected = {
        f"{home}/{train}/BreastTumourImages/2.jpg": f"unknown label 'benign and malignant', {wanted}",
        f"{home}/{train}/BreastTumourImages/3.jpg": f"unknown label '', {wanted}",
    }
    found = find(tmp_path)
    assert told(found) == pictures and found.rejected == rejected
    second = f"{home}/{test}-General-1-BreastTumourImages"
    assert set(found.left_out) == {f"{second}/0.jpg", f"{second}/5.jpg"}
    found = find(tmp_path, "copies")
    assert told(found) == pictures | {f"{second}/0.jpg": ("Breast-Benign", "", "test")}
    assert set(found.rejected) == {*rejected, f"{second}/5.jpg"}


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\nbroken", empty_png(30_000, 30_000)])
def test_s1_with_a_broken_or_missing_label(tmp_path, content):
    plant(tmp_path / "S1", *(f"TrainingDataSet/BreastTumourImages/{n}.jpg" for n in (0, 1)))
    write(tmp_path / "S1/TrainingDataSet/Expanded-3-channel-Labels/0.png", content)
    found = find(tmp_path)
    assert not found.records and "broken label picture" in found.rejected.pop(
        "S1/TrainingDataSet/BreastTumourImages/0.jpg"
    )
    assert set(found.rejected) == {"S1/TrainingDataSet/BreastTumourImages/1.jpg"}


@pytest.mark.parametrize("home", ["STU-Hospital/Hospital", "STU-Hospital", "STU-Hospital/master/Hospital"])
def test_stu_hospital(tmp_path, home):
    """Masks lie beside the pictures and are of other sizes; no diagnosis, so not benign."""
    plant(tmp_path / home, "Test_Image_1.png", "Test_Image_42.PNG")
    save(tmp_path / home / "mask_1.png", speckle(7, 420, 420))
    save(tmp_path / home / "mask_42.png", speckle(8, 512, 512))
    found = find(tmp_path)
    assert told(found) == {
        f"{home}/Test_Image_1.png": ("Breast", "", ""),
        f"{home}/Test_Image_42.PNG": ("Breast", "", ""),
    }
    assert not found.rejected and not found.left_out
