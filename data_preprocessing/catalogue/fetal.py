"""Fetal head and abdomen."""

import os
from collections.abc import Iterable
from pathlib import Path

from data_preprocessing.catalogue.entry import DataSet, Facts, File, Layout, in_blocks, named, split_lists
from data_preprocessing.tables import read_rows


def _acouslic_subjects(files: Iterable[File]) -> Facts:
    return {
        row["uuid"].lower(): {"group": row["subject_id"]}
        for file in named(files, r"fetal_abdominal_circumferences_per_sweep\.csv")
        for row in read_rows(file.path, ("uuid", "subject_id"))
    }


def _acouslic_mask(image: Path) -> Path:
    """`masks` lies in `images` or beside it."""
    below = Path("masks") / "stacked_fetal_abdomen" / image.name
    inside = image.parents[1] / below
    return inside if os.path.isfile(inside) else image.parents[2] / below


def _fast_u_net_split(files: Iterable[File]) -> Facts:
    return split_lists(files, r"AC/(train|val)\.txt")


def _fh_blocks(files: Iterable[File]) -> Facts:
    """Twenty blocks, each of several videos (78 in all), with a tenth of a block between."""
    stems = [file.path.stem for file in named(files, r"image_mha/\d+\.mha")]
    return in_blocks(stems, 20, len(stems) // 200)


ENTRIES = (
    DataSet(
        "ACOUSLIC",
        "Fetal abdomen",
        (
            Layout(
                r"stacked_fetal_ultrasound/(?P<key>[^/]+)\.mha",
                "Fetal-Abdomen",
                facts=_acouslic_subjects,
                listed_only=True,
                take="labelled",
                labels=_acouslic_mask,
            ),
        ),
        aliases=("ACOUSLIC-AI", "acouslic-ai-train-set"),
        shape="fan",
        licence="CC BY-NC-SA 4.0",
        cite="Sappia et al. 2025 (name unconfirmed), Medical Image Analysis, doi 10.1016/j.media.2025.103640",
        home="https://zenodo.org/records/12697994",
        labels="one class; only frames with a mask show the abdomen",
        groups="subject_id of fetal_abdominal_circumferences_per_sweep.csv",
        marker="acouslic-ai-train-set/images/stacked_fetal_ultrasound/<uuid>.mha",
        left_out={"unlabelled": "frames without a mask, most of which show no abdomen"},
        true_count=300,
        note="300 cases of 840 frames, about 6,620 of them with a mask; place of masks unconfirmed",
    ),
    DataSet(
        "FASS",
        "Fetal abdomen",
        # Numbers are padded unevenly and compared as text. The arrays are pickles of pictures and masks.
        (Layout(r"IMAGES/(?P<group>P\d+)_IMG\d+\.png", "Fetal-Abdomen", frame="text"),),
        aliases=("Fetal Abdominal Structures Segmentation Dataset Using Ultrasonic Images",),
        shape="fan",
        licence="CC BY 4.0",
        cite="Da Correggio et al. (names unconfirmed), Mendeley Data, doi 10.17632/4gcpm9dsc3.1",
        home="https://data.mendeley.com/datasets/4gcpm9dsc3/1",
        unpack="an archive in the archive",
        groups="patient: P<id> in the name (169 women)",
        marker="IMAGES/P01_IMG1.png",
        seed_count=1588,
        true_count=1588,
        note="text, calipers and Doppler tint likely (unconfirmed)",
    ),
    DataSet(
        "Fast-U-Net",
        "Fetal abdomen",
        (
            # The publisher's "val" is its only held-out part.
            Layout(
                r"(AC_)?images?\d*/(?P<key>(fa_)?\d+)\.png",
                "Fetal-Abdomen",
                {"train": "train", "val": "test"},
                facts=_fast_u_net_split,
            ),
            # The lists of this part are not used: 56 examinations are in both.
            Layout(
                r"(HC_)?images?\d*/(?P<group>\d+)_\d?HC\.png",
                "Fetal-Head",
                include="copies",
            ),
        ),
        aliases=("Fast-U-Net-main", "Fast-U-Net-master"),
        shape="fan",
        cite="Ashkani Chenarlogh et al. 2022 (unconfirmed), Fast and accurate U-Net, Ultrasonic Imaging",
        home="https://github.com/vahidashkani/Fast-U-Net",
        unpack="RAR archives below Dataset/AC; those of HC repeat HC18",
        labels="file name: AC is the abdomen, HC the head",
        groups="abdomen: each picture by itself, official lists; head: examination, the number before _",
        marker="Dataset/AC/image/0001.png",
        left_out={"copies": "the training set of HC18 once more, resized"},
        seed_count=412,
        true_count=412,
        note="412 abdomens, 999 heads; folders within the RAR archives of pictures unconfirmed",
    ),
    DataSet(
        "FH-PS-AOP",
        "Fetal head",
        (
            # Three equal planes; frames of few women without a number, so blocks stay together.
            Layout(
                r"image_mha/(?P<key>\d+)\.mha",
                "Fetal-Head-Intrapartum",
                facts=_fh_blocks,
                take="first",
                guessed=True,
            ),
        ),
        aliases=(
            "Pubic Symphysis-Fetal Head Segmentation and Angle of Progression",
            "FH-PS-AOP grand challenge",
            "ps-fh-aop-2023",
        ),
        shape="fan",
        licence="CC BY-NC 4.0 (unconfirmed)",
        cite="Lu et al. 2022, JNU-IFM, Data in Brief, doi 10.1016/j.dib.2022.107904",
        home="https://zenodo.org/records/10829116",
        unpack="an archive in the archive",
        groups="20 blocks in the order of the numbers, with gaps; patients are not told",
        marker="image_mha/00001.mha",
        left_out={"gaps": "frames next to a border between blocks"},
        true_count=4000,
        note="may overlap JNU-IFM and PSFHS; that videos follow each other in number is unconfirmed",
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
        shape="fan",
        licence="CC BY 4.0",
        cite="van den Heuvel et al. 2018, PLOS ONE, doi 10.1371/journal.pone.0200412",
        home="https://zenodo.org/records/1327317",
        unpack="training_set.zip and test_set.zip",
        groups="examination: the number before _ (806 in training, of fewer women)",
        marker="training_set/000_HC.png",
        seed_count=1334,
        true_count=1334,
    ),
)
