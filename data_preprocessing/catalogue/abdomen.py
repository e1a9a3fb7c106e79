"""Liver, kidney, stomach wall and whole-abdomen sets."""

from pathlib import Path

from data_preprocessing.catalogue.entry import DataSet, Layout

LIVER = {"benign": "Liver-Benign", "malignant": "Liver-Malignant", "normal": "Liver-Normal"}


def _aul_outline(picture: Path) -> Path:
    return picture.parent.parent / "segmentation" / "outline" / f"{picture.stem}.json"


ENTRIES = (
    DataSet(
        "AUL",
        "Liver",
        # Outlines 229 and 306 are the liver's, not the scan area's; crop.find_frame notices.
        (Layout(r"(?P<label>benign|malignant|normal)/image/\d+\.jpe?g", LIVER, outline=_aul_outline),),
        shape="fan",
        licence="CC BY 4.0",
        cite="Xu et al. 2023, Briefings in Bioinformatics, doi 10.1093/bib/bbac569",
        home="https://zenodo.org/records/7272660",
        unpack="the archive, then Benign.zip, Malignant.zip and Normal.zip inside it",
        labels="folder",
        marker="Benign/image/1.jpg",
        seed_count=735,
        true_count=735,
    ),
)
