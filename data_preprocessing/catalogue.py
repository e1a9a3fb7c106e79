"""What is known of each public data set: one short entry each.

An entry finds its pictures by a *positive* pattern on the end of the path, so that masks, overlays and
second copies are left out, and a folder unpacked one level deeper or shallower is read all the same. To add
a data set, write one more `DataSet(...)` in `CATALOGUE`; the named groups of its pattern (`label`, `group`,
`split`, `key`) say what the path tells.

Facts come from the publishers' papers and pages, as named in each entry.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# What a published list adds to a picture: {value of the pattern's `key`: {"label": ..., "split": ...}}.
Facts = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Layout:
    """One way in which the pictures of a data set lie on disk."""

    # Regular expression for the end of the path, in any case of letters.
    pattern: str
    # The path's `label` (in lower case) -> class, or one class for all.
    classes: dict[str, str] | str
    # The path's `split` (in lower case) -> "train", "val" or "test". A split that the publisher lacks is
    # drawn from "train".
    splits: dict[str, str] = field(default_factory=dict)
    # How the scan area is found, see crop.find_frame.
    frame: str = "auto"
    # What brings the probe to the top, see readers.read_grey.
    turn: str = ""
    # Reads lists that lie beside the pictures; a picture that the list lacks is rejected when `listed_only`.
    facts: Callable[[list[Path]], Facts] | None = None
    listed_only: bool = False
    # The file with the published scan area of a picture.
    outline: Callable[[Path], Path] | None = None


@dataclass(frozen=True)
class DataSet:
    """A public data set, or a person's own pictures in class folders."""

    name: str
    organ: str
    layouts: tuple[Layout, ...]
    # Further names of its folder, at the top of the raw root or one or two levels below.
    aliases: tuple[str, ...] = ()
    licence: str = "not stated"
    cite: str = ""
    home: str = ""


def _camus_split(files: list[Path]) -> Facts:
    """Official lists `subgroup_{training,validation,testing}.txt`, one patient a line."""
    names = {"subgroup_training": "train", "subgroup_validation": "val", "subgroup_testing": "test"}
    return {
        patient: {"split": names[path.stem]}
        for path in files
        if path.stem in names
        for patient in path.read_text(encoding="utf-8", errors="replace").split()
    }


def _mmotu_lists(files: list[Path]) -> Facts:
    """`train_cls.txt` and `val_cls.txt` hold lines such as `658.JPG  5`."""
    facts = {}
    for path in files:
        if path.name in ("train_cls.txt", "val_cls.txt"):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                if len(words := line.split()) == 2:
                    facts[words[0].split(".")[0]] = {"label": words[1], "split": path.stem.split("_")[0]}
    return facts


def _aul_outline(picture: Path) -> Path:
    return picture.parent.parent / "segmentation" / "outline" / f"{picture.stem}.json"


def read_outline(path: Path) -> list[tuple[float, float]] | None:
    """A polygon stored as a JSON list of [x, y], or None when there is no usable one."""
    try:
        points = json.loads(path.read_text(encoding="utf-8"))
        return [(float(x), float(y)) for x, y in points]
    except (OSError, ValueError, TypeError):
        return None


# Order of the index as in the authors' code; the folder names are those of a re-sorted copy.
_MMOTU = (
    ("Ovary-Chocolate-Cyst", "chocolate_cyst"),
    ("Ovary-Serous-Cystadenoma", "serous_cystadenoma"),
    ("Ovary-Teratoma", "teratoma"),
    ("Ovary-Theca-Cell-Tumour", "theca_cell_tumor"),
    ("Ovary-Simple-Cyst", "simple_cyst"),
    ("Ovary-Normal", "ovary_normal"),
    ("Ovary-Mucinous-Cystadenoma", "mucinous_cystadenoma"),
    ("Ovary-High-Grade-Serous", "high-grade_serous_cystadenoma"),
)
_BREAST = {"benign": "Breast-Benign", "malignant": "Breast-Malignant", "normal": "Breast-Normal"}
_LIVER = {"benign": "Liver-Benign", "malignant": "Liver-Malignant", "normal": "Liver-Normal"}

CATALOGUE = (
    DataSet(
        "AUL",
        "Liver",
        # Outlines 229 and 306 are the liver's, not the scan area's; crop.find_frame notices.
        (Layout(r"(?P<label>benign|malignant|normal)/image/\d+\.jpe?g", _LIVER, outline=_aul_outline),),
        licence="CC BY 4.0",
        cite="Xu et al. 2023, Briefings in Bioinformatics, doi 10.1093/bib/bbac569",
        home="https://zenodo.org/records/7272660",
    ),
    DataSet(
        "BUSI",
        "Breast",
        (Layout(r"(?P<label>benign|malignant|normal) \(\d+\)\.png", _BREAST, frame="full"),),
        aliases=("Dataset_BUSI_with_GT", "Dataset_BUSI"),
        cite="Al-Dhabyani et al. 2020, Data in Brief 28:104863",
        home="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
    ),
    DataSet(
        "CAMUS",
        "Heart",
        (
            # ED and ES repeat frames of the half sequences, which are left out.
            Layout(
                r"(?P<group>(?P<key>patient\d+))_[24]CH_E[DS]\.(nii|nii\.gz|mhd|mha)",
                "Heart",
                {"train": "train", "val": "val", "test": "test"},
                "zero border",
                facts=_camus_split,
            ),
            # A converted copy whose rows and columns are swapped; its folders are not the official split.
            Layout(
                r"images/(?P<group>patient\d+)_[24]CH_E[DS]\.png",
                "Heart",
                frame="zero border",
                turn="transpose",
            ),
        ),
        aliases=("CAMUS_public", "database_nifti"),
        licence="CC BY-NC-SA 4.0",
        cite="Leclerc et al. 2019, IEEE Transactions on Medical Imaging 38(9), doi 10.1109/TMI.2019.2900516",
        home="https://humanheart-project.creatis.insa-lyon.fr (collection CAMUS)",
    ),
    DataSet(
        "COVID-LUS",
        "Lung",
        (
            Layout(
                r"(?P<label>regular|pneumonia|covid)/(?P<group>[^/]+?)(_frame\d+)?\.(jpe?g|png)",
                {"regular": "Lung-Regular", "pneumonia": "Lung-Pneumonia", "covid": "Lung-Covid"},
                # Cut to squares without text by the authors.
                frame="full",
            ),
        ),
        aliases=("covid19_ultrasound", "covid19_pocus_ultrasound", "pocus"),
        licence="per source: CC BY 4.0, CC BY-NC 4.0, CC BY-NC-SA 4.0",
        cite="Born et al. 2021, Applied Sciences 11(2):672",
        home="https://github.com/jannisborn/covid19_ultrasound",
    ),
    DataSet(
        "DDTI",
        "Thyroid",
        # The original: <case>_<k>.jpg beside <case>.xml. One class: TI-RADS is no diagnosis.
        (Layout(r"(?P<group>\d+)_\d+\.jpe?g", "Thyroid-Nodule", frame="rectangle"),),
        aliases=("ddti-thyroid-ultrasound-images",),
        cite="Pedraza et al. 2015, Proc. SPIE 9287, doi 10.1117/12.2073532",
        home="https://www.kaggle.com/datasets/dasmehdixtr/ddti-thyroid-ultrasound-images",
    ),
    DataSet(
        "HC18",
        "Fetal head",
        (
            # The number is the examination; test starts again at 000.
            Layout(
                r"(?P<split>training|test)_set/(?P<group>\d+)_\d?HC\.png",
                "Fetal-Head",
                {"training": "train", "test": "test"},
                "clean",
            ),
        ),
        aliases=("HC",),
        licence="CC BY 4.0",
        cite="van den Heuvel et al. 2018, PLOS ONE, doi 10.1371/journal.pone.0200412",
        home="https://zenodo.org/records/1327317",
    ),
    DataSet(
        "MMOTU-2D",
        "Ovary",
        (
            Layout(
                r"OTU_2d/images/(?P<key>\d+)\.jpe?g",
                {str(index): name for index, (name, _) in enumerate(_MMOTU)},
                # The publisher's "val" is its only held-out part.
                {"train": "train", "val": "test"},
                "text",
                facts=_mmotu_lists,
                listed_only=True,
            ),
            Layout(
                rf"(?P<label>{'|'.join(folder for _, folder in _MMOTU)})/images/\d+\.jpe?g",
                {folder: name for name, folder in _MMOTU},
                frame="text",
            ),
        ),
        aliases=("MMOTU", "OTU_2d"),
        licence="CC BY 4.0 (figshare copy)",
        cite="Zhao et al. 2022, arXiv 2207.06799",
        home="https://github.com/cv516Buaa/MMOTU_DS2Net",
    ),
    DataSet(
        "Simulated",
        "as its class says",
        # Made by simulate_ultrasound.py: exactly 0 outside the scan area, each class with its own patients.
        (Layout(r"(?P<group>(?P<label>[^/]+)/[^/]+?)_view\d+\.png", {}, frame="zero border"),),
        licence="MIT",
        home="data_preprocessing/simulate_ultrasound.py",
    ),
    DataSet(
        "STU-Hospital",
        "Breast",
        # No diagnosis is published: the class says only the organ.
        (Layout(r"Test_Image_\d+\.png", "Breast", frame="full"),),
        aliases=("STU", "Hospital"),
        cite="Zhuang et al. 2019, PLOS ONE, doi 10.1371/journal.pone.0221535",
        home="https://github.com/xbhlk/STU-Hospital",
    ),
    DataSet(
        "US-nerve",
        "Nerve",
        (
            Layout(r"(?P<split>train)/(?P<group>\d+)_\d+\.tif", "Nerve", {"train": "train"}, "full"),
            Layout(r"(?P<split>test)/\d+\.tif", "Nerve", {"test": "test"}, "full"),
        ),
        aliases=("ultrasound-nerve-segmentation", "US nerve Segmentation"),
        licence="Kaggle competition rules",
        cite="Kaggle, Ultrasound Nerve Segmentation, 2016",
        home="https://www.kaggle.com/c/ultrasound-nerve-segmentation",
    ),
)

# Folders that are known and not read, with the reason that is printed.
LEFT_OUT = {
    "BUSI_256": "a second copy of BUSI, squashed to squares",
    "PlusLibData": "format examples of a phantom, not for training",
}

# The mission's six organs; other classes are left out by `--selection mission`.
MISSION_CLASSES = (
    "Breast-Benign",
    "Breast-Malignant",
    "Breast-Normal",
    "Fetal-Head",
    "Heart",
    "Kidney",
    "Liver-Benign",
    "Liver-Malignant",
    "Liver-Normal",
    "Thyroid-Gland",
    "Thyroid-Nodule",
)


def plain_name(name: str) -> str:
    """A folder's name as it is compared: letters and digits in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
