"""Breast sets."""

import hashlib
from collections.abc import Iterable

from data_preprocessing.catalogue.entry import DataSet, Facts, File, Layout, named
from data_preprocessing.readers import Unreadable, read_frames, to_grey
from data_preprocessing.tables import read_rows

BREAST = {"benign": "Breast-Benign", "malignant": "Breast-Malignant", "normal": "Breast-Normal"}
LESIONS = {"benign": "Breast-Benign", "malignant": "Breast-Malignant"}
STILL = "(jpe?g|png)"


def _brest_cases(files: Iterable[File]) -> Facts:
    """The clinical sheet; its cells of masks list several names or none, and are of no concern here."""
    return {
        row["Image_filename"].split(".")[0].lower(): {"label": row["Classification"], "group": row["CaseID"]}
        for file in named(files, r"BrEaST[^/]*clinical[^/]*\.(xlsx|csv)")
        for row in read_rows(file.path, ("CaseID", "Image_filename", "Classification"))
    }


def _uclm_images(files: Iterable[File]) -> Facts:
    """INFO.csv; without it the classes by the masks, which say nothing of Doppler, calipers and two scans."""
    flags = ("Doppler", "Marks", "Combined")
    lists = named(files, r"INFO\.(csv|xlsx)")
    if not lists:
        masks = named(files, r"masks/[^/]+\.png")
        pictures = named(files, r"images/[^/]+\.png") if masks else []
        facts = {picture.path.stem.lower(): {"label": "(no mask)"} for picture in pictures}
        return facts | {mask.path.stem.lower(): {"label": _uclm_lesion(mask)} for mask in masks}
    return {
        row["Image"].split(".")[0].lower(): {
            "label": row["Label"],
            "leave": " ".join(flag.lower() for flag in flags if row[flag].lower() != "no"),
        }
        for file in lists
        for row in read_rows(file.path, ("Image", "Label", *flags))
    }


def _uclm_lesion(mask: File) -> str:
    """The class by the colours of a mask: green benign, red malignant, black normal."""
    try:
        rgb = read_frames(mask.path, [0])[0]
    except Unreadable:
        return "(a broken mask)"
    if rgb.ndim == 2:
        return "(a mask without colours)" if rgb.any() else "normal"
    colours = (("benign", (0, 255, 0)), ("malignant", (255, 0, 0)))
    # Both, or another colour, is no class: the picture is rejected.
    classes = [name for name, colour in colours if (rgb == colour).all(-1).any()]
    return " and ".join(classes) or ("(a mask of other colours)" if rgb.any() else "normal")


def _bra_cases(files: Iterable[File]) -> Facts:
    folds = {
        row["ID"].lower(): row["kFold"]
        for file in named(files, r"5-fold-cv\.(csv|xlsx)")
        for row in read_rows(file.path, ("ID", "kFold"))
    }
    return {
        row["ID"].lower(): {
            "label": row["Pathology"],
            "group": row["Case"],
            "split": folds.get(row["ID"].lower(), ""),
        }
        for file in named(files, r"bus_data\.(csv|xlsx)")
        for row in read_rows(file.path, ("ID", "Case", "Pathology"))
    }


def _udiat_types(files: Iterable[File]) -> Facts:
    """A sheet of numbers: `1` is 000001.png."""
    return {
        row["Image"].split(".")[0].zfill(6): {"label": row["Type"]}
        for file in named(files, r"dataset ?_?b\.(xlsx|csv)")
        for row in read_rows(file.path, ("Image", "Type"))
    }


def _s1_train(files: Iterable[File]) -> Facts:
    return _lesions(files, r"TrainingDataSet/Expanded-3-channel-Labels")


def _s1_test(files: Iterable[File]) -> Facts:
    return _lesions(files, r"TestingDataSet/Test-Expanded-3-channel-Labels")


def _s1_repeats(files: Iterable[File]) -> Facts:
    """The second folder of test pictures has labels without a class: they are those of the same bytes."""
    labels = _s1_test(files)
    originals = named(files, rf"TestingDataSet/Test-Expanded-BreastTumourImages/\d+\.{STILL}")
    return _repeats(
        named(files, rf"TestingDataSet/Test-General-1-BreastTumourImages/\d+\.{STILL}"),
        {_digest(file): labels.get(file.path.stem, {}) for file in originals},
    )


def _bus_uc_repeats(files: Iterable[File]) -> Facts:
    """`All` holds the pictures of both classes again, without saying which."""
    originals = named(files, r"(benign|malignant)/images/\d+\.png")
    return _repeats(
        named(files, r"all/images/\d+\.png"),
        {_digest(file): {"label": file.path.parent.parent.name} for file in originals},
    )


def _repeats(copies: Iterable[File], known: dict[bytes, dict[str, str]]) -> Facts:
    return {file.path.stem.lower(): known.get(_digest(file) or None, {}) for file in copies}


def _digest(file: File) -> bytes:
    try:
        return hashlib.sha256(file.path.read_bytes()).digest()
    except OSError:
        # A copy whose original is not known is rejected.
        return b""


def _lesions(files: Iterable[File], folder: str) -> Facts:
    """Classes by the grey of the lesion in the label pictures of a folder: 127 benign, 255 malignant."""
    return {file.path.stem: {"label": _lesion(file)} for file in named(files, rf"{folder}/\d+\.png")}


def _lesion(label: File) -> str:
    try:
        grey_HW = to_grey(read_frames(label.path, [0])[0])
    except Unreadable:
        return "(a broken label picture)"
    greys = (("benign", 127), ("malignant", 255))
    # Both, or neither, is no class: the picture is rejected.
    return " and ".join(name for name, grey in greys if (grey_HW == grey).any())


BUSI_PICTURES = r"(?P<label>benign|malignant|normal) \(\d+\)\.png"
BUSI_CITE = "Al-Dhabyani et al. 2020, Data in Brief 28:104863"

ENTRIES = (
    DataSet(
        "BrEaST",
        "Breast",
        (
            # Masks have a further word: case001_tumor.png, case001_other1.png.
            Layout(r"(?P<key>case\d+)\.png", BREAST, frame="full", facts=_brest_cases, listed_only=True),
        ),
        aliases=("breast-lesions-usg", "BrEaST-Lesions_USG-images_and_masks"),
        shape="rectangle",
        licence="CC BY 4.0",
        cite="Pawlowska et al. 2024, Scientific Data 11:148, doi 10.1038/s41597-024-02984-z",
        home="https://www.cancerimagingarchive.net/collection/breast-lesions-usg",
        unpack="the archive of images, and in the same folder the clinical XLSX (or a CSV export of it)",
        labels="clinical sheet, column Classification",
        groups="CaseID of the clinical sheet, one picture each",
        marker="BrEaST-Lesions_USG-images_and_masks/case001.png",
        seed_count=256,
        true_count=256,
        note="cut free of text by the authors (unconfirmed)",
    ),
    DataSet(
        "BUID",
        "Breast",
        (
            Layout(r"(?P<group>\d+ (?P<label>benign|malignant)) image\.bmp", LESIONS),
            # The picture again, with the lesion drawn in.
            Layout(r"(?P<group>\d+ (?P<label>benign|malignant)) lesion\.bmp", LESIONS, include="overlays"),
        ),
        aliases=("QAMEBI", "BLUI"),
        shape="rectangle",
        cite="Abbasian Ardakani et al. 2023, Computers in Biology and Medicine 152:106438",
        home="https://qamebi.com/breast-ultrasound-images-database",
        unpack="Benign.zip and Malignant.zip",
        labels="file name",
        groups="lesion: the number in the name; patients are not told",
        marker="Benign/1 Benign Image.bmp",
        left_out={"overlays": "a picture with the lesion drawn in"},
        seed_count=232,
        true_count=232,
    ),
    DataSet(
        "BUS_UC",
        "Breast",
        (
            Layout(r"(?P<label>benign|malignant)/images/\d+\.png", LESIONS, frame="full"),
            Layout(
                r"all/images/(?P<key>\d+)\.png",
                LESIONS,
                frame="full",
                facts=_bus_uc_repeats,
                include="copies",
            ),
        ),
        shape="rectangle",
        licence="CC BY 4.0",
        cite="Iqbal and Sharif 2024, Engineering Applications of AI, doi 10.1016/j.engappai.2023.107292",
        home="https://data.mendeley.com/datasets/3ksd7w7jkx/1",
        labels="folder",
        groups="each picture by itself; several of one case are likely, and not told",
        marker="Benign/images/01.png",
        left_out={"copies": "All repeats Benign and Malignant"},
        seed_count=489,
        true_count=811,
        note="256 x 256 (unconfirmed); other collections of ultrasoundcases.info may hold the same pictures",
    ),
    DataSet(
        "BUS-UCLM",
        "Breast",
        (
            Layout(
                r"images/(?P<key>(?P<group>[^/_]+)_\d+)\.png",
                BREAST,
                facts=_uclm_images,
                lists=("INFO.csv", "INFO.xlsx"),
                listed_only=True,
            ),
        ),
        aliases=("BUS_UCML", "BUS-UCLM Breast ultrasound lesion segmentation dataset"),
        shape="rectangle",
        licence="CC BY 4.0 (version 3; version 1 CC BY-NC 3.0)",
        cite="Vallez et al. 2025, Scientific Data, doi 10.1038/s41597-025-04562-3",
        home="https://data.mendeley.com/datasets/7fvgj4jsp7",
        labels="INFO.csv, column Label",
        groups="patient: the letters before _ (38 patients)",
        marker="BUS-UCLM/images/ALWI_000.png",
        left_out={
            "doppler": "colour Doppler by INFO.csv",
            "marks": "calipers by INFO.csv",
            "combined": "two scans side by side by INFO.csv",
        },
        seed_count=683,
        true_count=683,
    ),
    DataSet(
        "BUS-BRA",
        "Breast",
        (
            # The folds keep women whole. The first is the test part, as others take it.
            Layout(
                r"(?P<key>bus_\d+-\w+)\.png",
                LESIONS,
                {"1": "test", "2": "train", "3": "train", "4": "train", "5": "train"},
                facts=_bra_cases,
                lists=("bus_data.csv", "bus_data.xlsx"),
                listed_only=True,
            ),
        ),
        aliases=("BUSBRA",),
        shape="rectangle",
        licence="CC BY 4.0",
        cite="Gomez-Flores et al. 2024, Medical Physics 51(4), doi 10.1002/mp.16812",
        home="https://zenodo.org/records/8231412",
        labels="bus_data.csv, column Pathology",
        groups="woman: bus_data.csv, column Case (1064)",
        marker="BUSBRA/Images/bus_0001-l.png",
        seed_count=1875,
        true_count=1875,
        note="calipers and body marks in some (unconfirmed)",
    ),
    DataSet(
        "BUS Dataset B",
        "Breast",
        (
            Layout(
                r"original/(?P<key>\d{6})\.png",
                LESIONS,
                frame="full",
                facts=_udiat_types,
                listed_only=True,
            ),
        ),
        aliases=("BUS", "Dataset B", "DatasetB", "UDIAT"),
        shape="rectangle",
        access="register",
        licence="by signed agreement",
        cite="Yap et al. 2018, IEEE JBHI 22(4), doi 10.1109/JBHI.2017.2731873",
        home="http://www2.docm.mmu.ac.uk/STAFF/M.Yap/dataset.php (also under helward.mmu.ac.uk)",
        unpack="the archive, with DatasetB.xlsx (or a CSV export of it) in the same folder",
        labels="DatasetB.xlsx, column Type",
        groups="woman: one picture each",
        marker="BUS/original/000001.png",
        true_count=163,
    ),
    DataSet(
        "BUSI",
        "Breast",
        # Masks have a further word: benign (1)_mask.png, benign (1)_mask_1.png; those of normal are black.
        (Layout(BUSI_PICTURES, BREAST, frame="full"),),
        aliases=("Dataset_BUSI_with_GT", "Dataset_BUSI"),
        shape="rectangle",
        licence="not stated (CC0 on mirrors)",
        cite=BUSI_CITE,
        home="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
        labels="file name",
        marker="benign/benign (1).png",
        seed_count=780,
        true_count=780,
        note="about 235 copies, some with both labels; text, calipers or Doppler in about 295",
    ),
    DataSet(
        "BUSI_256",
        "Breast",
        (Layout(BUSI_PICTURES, BREAST, frame="full", include="copies"),),
        shape="rectangle",
        cite=BUSI_CITE,
        home="https://github.com/TongxinWang0405/BMI702_project",
        labels="file name",
        marker="benign/benign (1).png",
        left_out={"copies": "a second copy of BUSI, squashed to squares"},
        true_count=780,
        note="beyond the 43; the aspect ratio is lost",
    ),
    DataSet(
        "S1",
        "Breast",
        (
            # Stems start again at 0 in each part.
            Layout(
                rf"(?P<split>train)ingDataSet/BreastTumourImages/(?P<key>\d+)\.{STILL}",
                LESIONS,
                {"train": "train"},
                facts=_s1_train,
            ),
            Layout(
                rf"(?P<split>test)ingDataSet/Test-Expanded-BreastTumourImages/(?P<key>\d+)\.{STILL}",
                LESIONS,
                {"test": "test"},
                facts=_s1_test,
            ),
            Layout(
                rf"(?P<split>test)ingDataSet/Test-General-1-BreastTumourImages/(?P<key>\d+)\.{STILL}",
                LESIONS,
                {"test": "test"},
                facts=_s1_repeats,
                include="copies",
            ),
        ),
        aliases=("Expanded U-Net breast ultrasound", "PMC8205136"),
        shape="rectangle",
        licence="CC BY 4.0 (unconfirmed)",
        cite="Guo et al. 2021, PLOS ONE, PMC8205136, supporting file S1 (authors unconfirmed)",
        home="https://www.ncbi.nlm.nih.gov/pmc/articles/PMC8205136",
        labels="grey of the lesion in the Expanded label: 127 benign, 255 malignant",
        marker="Data/TrainingDataSet/BreastTumourImages/0.jpg",
        left_out={"copies": "the second folder of test pictures, which repeats the first"},
        seed_count=192,
        true_count=201,
        note="lesions without a group; Segmentation_Results are outputs, never read",
    ),
    DataSet(
        "STU-Hospital",
        "Breast",
        # No diagnosis is published: the class says only the organ. Masks are mask_<n>.png, of other sizes.
        (Layout(r"Test_Image_\d+\.png", "Breast", frame="full"),),
        aliases=("STU", "Hospital"),
        shape="rectangle",
        cite="Zhuang et al. 2019, PLOS ONE, doi 10.1371/journal.pone.0221535",
        home="https://github.com/xbhlk/STU-Hospital",
        labels="none: lesions without a diagnosis",
        marker="Hospital/Test_Image_1.png",
        seed_count=40,
        true_count=42,
        note="128 x 128 pixels: fit for a check only",
    ),
)
