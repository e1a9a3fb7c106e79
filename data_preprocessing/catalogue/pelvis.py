"""Ovary and prostate."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from data_preprocessing.catalogue.entry import DataSet, Facts, File, Layout, named, split_lists
from data_preprocessing.tables import read_pairs

# Order of the index as in the authors' code; the folder names are those of a re-sorted copy.
OVARY = (
    ("Ovary-Chocolate-Cyst", "chocolate_cyst"),
    ("Ovary-Serous-Cystadenoma", "serous_cystadenoma"),
    ("Ovary-Teratoma", "teratoma"),
    ("Ovary-Theca-Cell-Tumour", "theca_cell_tumor"),
    ("Ovary-Simple-Cyst", "simple_cyst"),
    ("Ovary-Normal", "ovary_normal"),
    ("Ovary-Mucinous-Cystadenoma", "mucinous_cystadenoma"),
    ("Ovary-High-Grade-Serous", "high-grade_serous_cystadenoma"),
)
# The publisher's "val" is its only held-out part.
VAL_IS_TEST = {"train": "train", "val": "test", "test": "test"}


def _mmotu_classes(files: Iterable[File]) -> Facts:
    """`train_cls.txt` and `val_cls.txt` hold lines such as `658.JPG  5`; OTU_3d numbers its own pictures."""
    return {
        Path(name).stem.lower(): {"label": label, "split": file.path.stem.lower().removesuffix("_cls")}
        for file in named(files, r"(MM)?OTU[-_]?2d/(train|val)_cls\.txt")
        for name, label in read_pairs(file.path)
    }


def _mmotu_3d_split(files: Iterable[File]) -> Facts:
    return split_lists(files, r"(?:MM)?OTU[-_]?3d/(train|val)\.txt")


def _micro_seg_annotation(image: Path) -> Path:
    """The expert's, in a folder of its own or beside the picture."""
    name = re.sub("^microUS_", "expert_annotation_", image.name, flags=re.IGNORECASE)
    apart = image.parents[1] / "expert_annotations" / name
    return apart if os.path.isfile(apart) else image.with_name(name)


def _reg_pro_label(image: Path) -> Path:
    return image.parents[1] / "us_labels" / image.name


ENTRIES = (
    DataSet(
        "MicroSeg",
        "Prostate",
        (
            # Numbers start again in test, with other patients.
            Layout(
                r"microUS_(?P<group>(?P<split>train|test)_\d+)\.nii(\.gz)?",
                "Prostate",
                {"train": "train", "test": "test"},
                turn="rotate 180",
                take="labelled",
                labels=_micro_seg_annotation,
            ),
        ),
        aliases=("Micro_Ultrasound_Prostate_Segmentation_Dataset", "MicroSegNet"),
        shape="fan",
        licence="not known",
        cite="Jiang et al. 2024, MicroSegNet, doi 10.1016/j.compmedimag.2024.102326",
        home="https://zenodo.org/records/10475293",
        unpack="an archive in the archive",
        groups="patient: train or test and the number (55 and 20)",
        marker="train/micro_ultrasound_scans/microUS_train_01.nii.gz",
        left_out={"unlabelled": "slices without prostate"},
        true_count=75,
        note="75 volumes, about 1,931 slices with prostate; sector-like sweep (unconfirmed)",
    ),
    DataSet(
        "MMOTU-2D",
        "Ovary",
        (
            Layout(
                r"(MM)?OTU[-_]?2d/images/(?P<key>\d+)\.jpe?g",
                {str(index): name for index, (name, _) in enumerate(OVARY)},
                VAL_IS_TEST,
                "text",
                facts=_mmotu_classes,
                listed_only=True,
            ),
            # A re-sorted copy.
            Layout(
                rf"(?P<label>{'|'.join(folder for _, folder in OVARY)})/images/\d+\.jpe?g",
                {folder: name for name, folder in OVARY},
                frame="text",
            ),
            # The figshare copy, without lists of classes (unconfirmed).
            Layout(
                r"OTU_2D/(?P<split>train|test)/(train_)?image/[^/]+\.(jpe?g|png|bmp)",
                "Ovary",
                VAL_IS_TEST,
                "text",
            ),
        ),
        aliases=("MMOTU", "OTU_2d"),
        shape="fan",
        licence="CC BY 4.0 (figshare copy)",
        cite="Zhao et al. 2022, arXiv 2207.06799",
        home="https://github.com/cv516Buaa/MMOTU_DS2Net (mirror: figshare 25058690)",
        labels="train_cls.txt and val_cls.txt, or folder in a re-sorted copy; figshare copy: none",
        groups="each picture by itself; official split 1000/469 is said to be patient-disjoint",
        marker="OTU_2d/images/1.JPG",
        seed_count=1469,
        true_count=1469,
        note="text, markers and Doppler in some (unconfirmed)",
    ),
    DataSet(
        "MMOTU-3D",
        "Ovary",
        (
            Layout(
                r"(MM)?OTU[-_]?3d/images/(?P<key>\d+)\.jpe?g",
                "Ovary-CEUS",
                VAL_IS_TEST,
                "text",
                facts=_mmotu_3d_split,
                include="contrast",
            ),
            # The figshare copy.
            Layout(
                r"OTU_CEUS/image/[^/]+\.(jpe?g|png|bmp)",
                "Ovary-CEUS",
                frame="text",
                include="contrast",
            ),
        ),
        aliases=("MMOTU", "OTU_3d", "OTU_CEUS"),
        shape="fan",
        licence="CC BY 4.0 (figshare copy)",
        cite="Zhao et al. 2022, arXiv 2207.06799",
        home="https://github.com/cv516Buaa/MMOTU_DS2Net (mirror: figshare 25058690)",
        labels="one class; the order of the seven types is not certain",
        groups="each picture by itself; official lists",
        marker="OTU_3d/images/1.JPG",
        left_out={"contrast": "contrast-enhanced, tinted, often beside a second view"},
        true_count=170,
        note="still pictures, whatever the name says; a second view beside is unconfirmed",
    ),
    DataSet(
        "MUP",
        "Prostate",
        (),
        shape="fan",
        licence="not known",
        cite="Jiang et al. 2024, MicroSegNet, doi 10.1016/j.compmedimag.2024.102326",
        home="https://zenodo.org/records/10475293",
        marker="microUS_train_01.nii.gz",
        same_as="MicroSeg",
        note="an earlier naming of the same record",
    ),
    DataSet(
        "regPro",
        "Prostate",
        (
            # mr_images holds magnetic resonance of the same names. The organisers hold back a test part.
            Layout(
                r"(?P<split>train|val)/us_images/(?P<group>case\d+)\.nii(\.gz)?",
                "Prostate",
                {"train": "train", "val": "val"},
                "zero border",
                "rotate 180",
                take="labelled",
                labels=_reg_pro_label,
                axis=-1,
            ),
        ),
        aliases=("mu-RegPro", "muRegPro"),
        shape="fan",
        licence="other (open)",
        cite="mu-RegPro challenge 2023, https://muregpro.github.io",
        home="https://zenodo.org/records/7844908",
        unpack="train.zip and val.zip, side by side",
        groups="case: caseNNNNNN in the name; official folders train and val",
        marker="train/us_images/case000000.nii.gz",
        left_out={"unlabelled": "slices without prostate"},
        true_count=73,
        note="65 and 8 volumes, about 4,706 labelled slices; first structure of the 4D label taken as gland",
    ),
)
