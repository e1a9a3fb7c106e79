"""Heart sets: echocardiography."""

import re
from collections.abc import Iterable
from functools import partial

from data_preprocessing.catalogue.entry import DataSet, Facts, File, Layout, named, split_lists
from data_preprocessing.tables import read_rows, read_text
from usvar.errors import InputError

CAMUS_SPLITS = {"training": "train", "validation": "val", "testing": "test"}
# The sites start again with patient 1; the second number is the clip.
CARDIAC_CLIP = r"(?P<key>Site_[A-Z]_\d+/(?:patient|normal)-?\d+)-\d+_image\.nii(?:\.gz)?"


def _camus_split(files: Iterable[File]) -> Facts:
    return split_lists(files, r"subgroup_(training|validation|testing)\.txt")


def _camus_between(files: Iterable[File]) -> Facts:
    """Of each half sequence the frames between ED and ES, which are files of their own."""
    split_of = _camus_split(files)
    facts = {}
    for file in named(files, r"Info_[24]CH\.cfg"):
        text = read_text(file.path)
        ends = [re.search(rf"^\s*{key}\s*:\s*(\d+)\s*$", text, re.MULTILINE) for key in ("ED", "ES")]
        if None in ends:
            raise InputError(
                f"{file.path} has no frame numbers of ED and ES, wanted lines like `ED: 1`: unpack it again"
            )
        # Counted from 1, while frames are counted from 0.
        first, last = sorted(int(end[1]) - 1 for end in ends)
        patient = file.path.parent.name.lower()
        facts[f"{patient}_{file.path.stem[-3:]}".lower()] = split_of.get(patient, {}) | {
            "frames": " ".join(map(str, range(first + 1, last)))
        }
    return facts


def _cardiac_patients(files: Iterable[File]) -> Facts:
    """`patient-1-4` and `patient1-4` are two spellings of one patient's clip."""
    names = (re.search(f"/{CARDIAC_CLIP}$", file.path.as_posix(), re.IGNORECASE) for file in files)
    keys = {name["key"].lower() for name in names if name}
    return {key: {"group": re.sub("(patient|normal)-", r"\1", key)} for key in keys}


def _echonet_lists(files: Iterable[File], first: int, by_view: bool) -> Facts:
    """FileList.csv tells the split, VolumeTracings.csv the traced frames, counted from `first`.

    The lists differ in whether a name ends in `.avi`. A frame may be words ("No Systolic").
    """
    facts, frames = {}, {}
    for file in named(files, r"(FileList|VolumeTracings)\.csv"):
        column = "Split" if file.path.stem.lower() == "filelist" else "Frame"
        view = f"{file.path.parent.name}/Videos/" if by_view else ""
        for row in read_rows(file.path, ("FileName", column)):
            video = f"{view}{row['FileName']}".lower().removesuffix(".avi")
            if column == "Split":
                facts.setdefault(video, {})["split"] = row["Split"]
            elif row["Frame"].isdecimal() and int(row["Frame"]) >= first:
                frames.setdefault(video, set()).add(int(row["Frame"]) - first)
    for video, numbers in frames.items():
        facts.setdefault(video, {})["frames"] = " ".join(map(str, sorted(numbers)))
    return facts


ENTRIES = (
    DataSet(
        "CAMUS",
        "Heart",
        (
            Layout(
                r"(?P<group>(?P<key>patient\d+))_[24]CH_E[DS]\.nii(\.gz)?",
                "Heart",
                CAMUS_SPLITS,
                "zero border",
                facts=_camus_split,
            ),
            # The older release (unconfirmed), whose numbers start again in testing.
            Layout(
                r"(?P<group>((?P<split>training|testing)/)?patient\d+)/patient\d+_[24]CH_E[DS]\.(mhd|mha)",
                "Heart",
                CAMUS_SPLITS,
                "zero border",
            ),
            # A converted copy whose rows and columns are swapped; its folders are not the official split.
            Layout(
                r"images/(?P<group>(?P<key>patient\d+))_[24]CH_E[DS]\.png",
                "Heart",
                CAMUS_SPLITS,
                "zero border",
                "transpose",
                _camus_split,
            ),
            Layout(
                r"(?P<key>(?P<group>patient\d+)_[24]CH)_half_sequence\.nii(\.gz)?",
                "Heart",
                CAMUS_SPLITS,
                "zero border",
                facts=_camus_between,
                include="half-sequences",
                take="listed",
            ),
        ),
        aliases=("CAMUS_public", "database_nifti", "CAMUS dataset"),
        shape="fan",
        licence="CC BY-NC-SA 4.0",
        cite="Leclerc et al. 2019, IEEE Transactions on Medical Imaging 38(9), doi 10.1109/TMI.2019.2900516",
        home="https://humanheart-project.creatis.insa-lyon.fr (collection CAMUS)",
        unpack="one archive; keep database_split and database_nifti in one folder CAMUS",
        labels="one class, views 2CH and 4CH together",
        groups="patient: patientNNNN in the name; official split 400/50/50 by patient",
        marker="database_nifti/patient0001/patient0001_4CH_ED.nii.gz",
        left_out={"half-sequences": "frames between ED and ES, nearly copies of these"},
        true_count=2000,
        note="the download may ask for registration (unconfirmed); MHD of the older release unconfirmed",
    ),
    DataSet(
        "CardiacUDC",
        "Heart",
        (
            Layout(CARDIAC_CLIP, "Heart", turn="rotate 180", facts=_cardiac_patients, take="even"),
            # May repeat the sites' patients under other numbers, so it is one group, left out.
            Layout(
                r"(?P<group>label_all_frame)/(patient|normal)-?\d+-\d+_image\.nii(\.gz)?",
                "Heart",
                turn="rotate 180",
                include="copies",
                take="even",
                guessed=True,
            ),
        ),
        aliases=("cardiacUDC_dataset", "CardiacUDA"),
        shape="fan",
        licence="Apache 2.0 (as listed)",
        cite="Yang et al. 2023, GraphEcho, ICCV, arXiv 2309.11145",
        home="https://www.kaggle.com/datasets/xiaoweixumedicalai/cardiacudc-dataset",
        unpack="rename the last part .change2zip to .zip, join the parts with 7z or zip -s 0",
        groups="patient: site and first number of the name",
        marker="cardiacUDC_dataset/Site_G_20/patient-1-4_image.nii.gz",
        left_out={"copies": "label_all_frame, which may repeat patients of the sites"},
        note="992 clips in the paper, under 300 with labels in public; name styles, ECG and text unconfirmed",
    ),
    DataSet(
        "EchoCP",
        "Heart",
        (
            Layout(
                r"(?P<group>\d{3})_[rv]_image\.nii(\.gz)?",
                "Heart",
                turn="rotate 180",
                include="contrast",
                take="even",
            ),
        ),
        aliases=("EchoCP_dataset",),
        shape="fan",
        licence="Apache 2.0 (as listed)",
        cite="EchoCP 2021, MICCAI, arXiv 2105.08267",
        home="https://www.kaggle.com/datasets/xiaoweixumedicalai/echocp",
        unpack="rename the last part .change2zip to .zip, join the parts with 7z or zip -s 0",
        labels="one class; the list of PFO levels judges clips, not frames",
        groups="patient: the three digits, at rest and under Valsalva",
        marker="EchoCP_dataset/001_r_image.nii.gz",
        left_out={"contrast": "a contrast agent fills the right heart"},
        true_count=60,
        note="60 clips of 30 patients; frames from before the contrast are not told",
    ),
    DataSet(
        "EchoNet-Dynamic",
        "Heart",
        (
            # Not those of EchoNet-Pediatric beside it. A video without a tracing gives evenly spaced frames.
            Layout(
                r"(?<!A4C/)(?<!PSAX/)Videos/(?P<group>(?P<key>[^/]+))\.avi",
                "Heart",
                {"train": "train", "val": "val", "test": "test"},
                facts=partial(_echonet_lists, first=0, by_view=False),
                take="listed",
            ),
        ),
        aliases=("EchoNet",),
        shape="fan",
        access="register",
        licence="Stanford research use agreement, no redistribution",
        cite="Ouyang et al. 2020, Nature, doi 10.1038/s41586-020-2145-8",
        home="https://echonet.github.io/dynamic",
        groups="video (one a patient, unconfirmed); official split of FileList.csv",
        marker="EchoNet-Dynamic/Videos/0X10A28877E97DF540.avi",
        true_count=10030,
        note="112 x 112 pixels; ED and ES as traced, about 20,048 frames of the videos",
    ),
    DataSet(
        "EchoNet-Pediatric",
        "Heart",
        (
            # Stems may repeat in the other view. The first part of a name is taken for the patient.
            Layout(
                r"(?P<key>(A4C|PSAX)/Videos/(?P<group>[^/-]+)[^/]*)\.avi",
                "Heart",
                {**{str(fold): "train" for fold in range(8)}, "8": "val", "9": "test"},
                facts=partial(_echonet_lists, first=1, by_view=True),
                take="listed",
            ),
        ),
        aliases=("pediatric_echo_avi",),
        shape="fan",
        access="register",
        licence="Stanford research use agreement, no redistribution",
        cite="Reddy et al. 2023 (name unconfirmed), JASE, doi 10.1016/j.echo.2023.01.015",
        home="https://echonet.github.io/pediatric",
        labels="one class, views A4C and PSAX together",
        groups="patient: the name before the first - (unconfirmed), over both views; folds 0-7, 8, 9",
        marker="pediatric_echo_avi/A4C/Videos/CR32a7555-CR32a7582-000039.avi",
        true_count=7643,
        note="7,643 videos of 1,958 patients; 112 x 112 pixels (unconfirmed)",
    ),
)
