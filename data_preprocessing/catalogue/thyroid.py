"""Thyroid sets.

DDTI, TG3K and TN3K come in one archive; they are three different sets.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from data_preprocessing.catalogue.entry import COPIES, GAPS, DataSet, Facts, File, Layout, in_blocks, named
from data_preprocessing.tables import read_hdf5_column, read_pairs, read_rows, read_xml

TN3K_ARCHIVE = "https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation (Google Drive)"
PATHOLOGY = {"0": "benign", "1": "malignant", "0.0": "benign", "1.0": "malignant"}
NODULES = {"benign": "Thyroid-Benign", "malignant": "Thyroid-Malignant"}
DDTI_CASES = r"(?P<group>(?P<key>\d+))_\d+\.jpe?g"
DDTI_COPY = r"1_or_data/image/(?P<key>\d+)\.png"
DDTI_CROPS = r"stage\d/p_image/(?P<key>\d+)\.png"
TNSCUI_PICTURES = r"(?:image|JPEGImages)/(?P<group>(?P<key>[^/]+))\.(png|jpe?g)"


def _ddti_tirads(files: Iterable[File]) -> Facts:
    """TI-RADS of a case, which is no diagnosis and so only a remark; many have none."""
    levels = {
        file.path.stem: read_xml(file.path).findtext("tirads") or "" for file in named(files, r"\d+\.xml")
    }
    return {case: {"remark": f"TI-RADS {level.strip()}"} for case, level in levels.items() if level.strip()}


def _ddti_blocks(files: Iterable[File]) -> Facts:
    """The PNG copy has lost the cases (one to four pictures, neighbours in number)."""
    return in_blocks(_stems(files, DDTI_COPY) or _stems(files, DDTI_CROPS), 20, 3)


def _segthy_label(picture: Path) -> Path:
    """`US/001_P1_1_left_US.nii` -> `US_thyroid_label/001_P1_1_left.nii`, either of the two compressed."""
    stem = picture.name.lower().split("_us.nii")[0]
    plain = picture.parent.parent / "US_thyroid_label" / f"{picture.name[: len(stem)]}.nii"
    packed = plain.with_name(f"{plain.name}.gz")
    return packed if os.path.isfile(packed) else plain


def _tg3k_blocks(files: Iterable[File]) -> Facts:
    """16 sweeps, presumably one after the other; where each begins is not known."""
    return in_blocks(_stems(files, r"thyroid-image/\d+\.jpe?g"), 16, 20)


def _cineclips(file: File, files: Iterable[File]) -> list[dict[str, str]]:
    """One part a nodule; its frames are the rows of the HDF5 file with its `annot_id` (such as `159_`)."""
    frames = defaultdict(list)
    for row, nodule in enumerate(read_hdf5_column(file.path, "annot_id")):
        frames[nodule.strip("_")].append(str(row))
    columns = ("annot_id", "histopath_diagnosis")
    rows = [
        row
        for sheet in named(files, r"metadata\.csv")
        for row in read_rows(sheet.path, columns, ("ti-rads_level",))
    ]
    told = {
        row["annot_id"].strip("_"): {
            "label": PATHOLOGY.get(row["histopath_diagnosis"], row["histopath_diagnosis"]),
            "remark": f"TI-RADS {row['ti-rads_level']}" if row["ti-rads_level"] else "",
        }
        for row in rows
    }
    missing = {"label": "not in metadata.csv"}
    return [
        {"group": nodule.split("_")[0], "frames": " ".join(numbers), **told.get(nodule, missing)}
        for nodule, numbers in frames.items()
    ]


def _tn3k_lists(files: Iterable[File]) -> Facts:
    """Blocks of trainval, where neighbours may be of one patient; pathology from lists that some copies hold.

    The folds are not used: they put neighbours on two sides.
    """
    facts = in_blocks(
        [f"trainval-image/{stem}" for stem in _stems(files, r"trainval-image/\d+\.jpe?g")], 48, 1
    )
    for part in ("trainval", "test"):
        pathology = {
            _unpadded(name): value
            for file in named(files, rf"label4{part}\.csv")
            for name, value in read_pairs(file.path)
        }
        for stem in _stems(files, rf"{part}-image/\d+\.jpe?g"):
            if value := pathology.get(_unpadded(stem)):
                facts.setdefault(f"{part}-image/{stem}", {})["remark"] = PATHOLOGY.get(value, value)
    return facts


def _tnscui_list(files: Iterable[File]) -> Facts:
    """`train.csv`: ID and CATE. The repack of other hands has no list: nodules of unknown pathology."""
    lists = named(files, r"train\.csv")
    listed = {
        _unpadded(row["ID"]): {"label": PATHOLOGY.get(row["CATE"], row["CATE"])}
        for file in lists
        for row in read_rows(file.path, ("ID", "CATE"))
    }
    stems = _stems(files, TNSCUI_PICTURES)
    if not lists:
        return {stem: {"label": "unknown"} for stem in stems}
    return {stem: listed[_unpadded(stem)] for stem in stems if _unpadded(stem) in listed}


def _stems(files: Iterable[File], pattern: str) -> list[str]:
    return [file.path.stem.lower() for file in named(files, pattern)]


def _unpadded(name: str) -> str:
    """`0001.jpg`, `1.PNG` and `1` are one picture."""
    return Path(name).stem.lower().lstrip("0")


ENTRIES = (
    DataSet(
        "DDTI",
        "Thyroid",
        # One class: TI-RADS is no diagnosis, and `category.csv` is said to be invalid.
        (
            # The original: <case>_<k>.jpg beside <case>.xml.
            Layout(DDTI_CASES, "Thyroid-Nodule-DDTI", frame="rectangle", facts=_ddti_tirads),
            # Without the cases.
            Layout(
                DDTI_COPY,
                "Thyroid-Nodule-DDTI",
                frame="rectangle",
                facts=_ddti_blocks,
                copy_of=DDTI_CASES,
                guessed=True,
            ),
            # `2_preprocessed_data`: the same pictures again, without their borders.
            Layout(
                DDTI_CROPS,
                "Thyroid-Nodule-DDTI",
                frame="full",
                facts=_ddti_blocks,
                include="copies",
                guessed=True,
            ),
        ),
        aliases=("DDTI dataset", "Thyroid Dataset", "ddti-thyroid-ultrasound-images", "ddti-dataset"),
        shape="rectangle",
        cite="Pedraza et al. 2015, Proc. SPIE 9287, doi 10.1117/12.2073532",
        home="https://www.kaggle.com/datasets/dasmehdixtr/ddti-thyroid-ultrasound-images (JPG and XML); "
        f"PNG copy: {TN3K_ARCHIVE}",
        unpack="one archive; the PNG copy is DDTI.zip inside the archive of TN3K",
        licence="not stated (CC0 on a public copy)",
        groups="case: the number before _; PNG copy: blocks of 32 in numerical order",
        marker="1_1.jpg or 1_or_data/image/0000.PNG",
        left_out={"copies": COPIES, "gaps": GAPS},
        seed_count=637,
        true_count=637,
        note="black or grey border, text, arrows; two scans in one picture in part (unconfirmed)",
    ),
    DataSet(
        "Segthy",
        "Thyroid",
        (
            Layout(
                r"US/(?P<group>\d{3})_P\d_\d_(left|right)_US\.nii(\.gz)?",
                "Thyroid-Gland",
                turn="rotate 180",
                take="labelled",
                labels=_segthy_label,
            ),
        ),
        aliases=("US_data", "US_volunteer_dataset", "ground_truth_data"),
        shape="rectangle",
        licence="CC BY",
        cite="Krönke et al. 2022, PLOS ONE, doi 10.1371/journal.pone.0268550 (name unconfirmed)",
        home="Technical University of Munich, chair CAMP, page SegThy (US_data.zip, over 18 GB)",
        unpack="US_data.zip; the MRI archive is not needed",
        groups="volunteer: the 3-digit number (three physicians, repeats and two lobes each)",
        marker="US_volunteer_dataset/ground_truth_data/US/001_P1_1_left_US.nii",
        left_out={"unlabelled": "slices without thyroid"},
        note="compounded 3D sweeps, about 12,737 labelled slices, of which a few of each sweep are taken; "
        "sweeps without labels in other folders (unconfirmed) are not read",
    ),
    DataSet(
        "TG3K",
        "Thyroid",
        # The official lists put frames of one sweep on two sides, so they are not used.
        (
            Layout(
                r"thyroid-image/(?P<key>\d+)\.jpe?g",
                "Thyroid-Gland",
                frame="full",
                facts=_tg3k_blocks,
                guessed=True,
            ),
        ),
        aliases=("Thyroid Dataset",),
        shape="rectangle",
        cite="Gong et al. 2023, Computers in Biology and Medicine, doi 10.1016/j.compbiomed.2022.106389; "
        "sweeps of Wunderling et al. 2017",
        home=TN3K_ARCHIVE,
        unpack="the archive of TN3K",
        groups="16 blocks in numerical order for the 16 sweeps, whose borders are not known",
        marker="tg3k/thyroid-image/0000.jpg",
        left_out={"gaps": GAPS},
        seed_count=3585,
        true_count=3585,
        note="at most 16 people; dark margin and inner frame in part (unconfirmed)",
    ),
    DataSet(
        "Thyroid US Cineclip",
        "Thyroid",
        (
            Layout(
                r"dataset\.(hdf5|h5)",
                NODULES,
                take="listed",
                array="image",
                parts=_cineclips,
            ),
        ),
        aliases=(
            "Thyroid Ultrasound Cine-clip",
            "thyroidultrasoundcineclip",
            "Cineclip",
            "Stanford Cineclip",
        ),
        shape="both",
        access="register",
        licence="Stanford AIMI research use agreement, no redistribution",
        cite="Yamashita et al. 2022, Radiology: Artificial Intelligence, doi 10.1148/ryai.210174",
        home="https://stanfordaimi.azurewebsites.net (dataset a72f2b02-...)",
        unpack="dataset.hdf5 and metadata.csv side by side",
        labels="histopath_diagnosis in metadata.csv",
        groups="the number in annot_id: a nodule; that two are of one patient is not told (unconfirmed)",
        marker="dataset.hdf5",
        true_count=192,
        note="nodules (17 malignant) of 167 patients, 17,412 frames in one file; some scanned with a convex "
        "probe; TI-RADS as a remark",
    ),
    DataSet(
        "TN3K",
        "Thyroid",
        # One class: with `label4*.csv` beside the folders the manifest remarks benign or malignant, and a
        # person who wants Thyroid-Benign and Thyroid-Malignant sorts by that.
        (
            Layout(
                r"(?P<key>(?P<split>trainval|test)-image/\d+)\.jpe?g",
                "Thyroid-Nodule",
                {"trainval": "train", "test": "test"},
                "full",
                facts=_tn3k_lists,
                guessed=True,
            ),
        ),
        aliases=("Thyroid Dataset", "TRFE-Net"),
        shape="rectangle",
        licence="MIT (Hugging Face copy)",
        cite="Gong et al. 2023, Computers in Biology and Medicine, doi 10.1016/j.compbiomed.2022.106389; "
        "pathology: Gong et al. 2022, MICCAI",
        home=f"{TN3K_ARCHIVE}; https://huggingface.co/datasets/haifan-gong/TN3K",
        groups="official test; trainval in blocks of 60 in numerical order, where patients may be neighbours",
        marker="tn3k/trainval-image/0000.jpg",
        left_out={"gaps": GAPS},
        seed_count=3493,
        true_count=3493,
        note="no copy of TG3K, with which it shares an archive; calipers and text in some (unconfirmed)",
    ),
    DataSet(
        "TNSCUI",
        "Thyroid",
        (
            Layout(
                TNSCUI_PICTURES,
                NODULES | {"unknown": "Thyroid-Nodule"},
                facts=_tnscui_list,
                lists=("train.csv",),
                listed_only=True,
            ),
        ),
        aliases=("TN-SCUI 2020", "TNSCUI2020_train", "TN-SCUI"),
        shape="rectangle",
        access="register",
        licence="by application",
        cite="TN-SCUI 2020 challenge, design: Zenodo 3715942",
        home="https://tn-scui2020.grand-challenge.org",
        unpack="the archive, with train.csv inside the same folder",
        labels="CATE in train.csv; without that list Thyroid-Nodule",
        groups="picture, said to be the patient",
        marker="TNSCUI2020_train/image/00001.png",
        true_count=3644,
        note="910 test pictures are hidden; calipers in many (unconfirmed)",
    ),
)
