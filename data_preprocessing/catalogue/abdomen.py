"""Liver, kidney, stomach wall and whole-abdomen sets."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data_preprocessing.catalogue.entry import COPIES, DataSet, Facts, File, Layout, named
from data_preprocessing.readers import Unreadable, read_frames
from data_preprocessing.tables import read_json, read_rows
from usvar.errors import InputError

LIVER = {"benign": "Liver-Benign", "malignant": "Liver-Malignant", "normal": "Liver-Normal"}
# AbdomenUS paints each organ in its own colour. From this share of the picture on, the liver is shown.
LIVER_RGB = (100, 0, 100)
LIVER_SHARE = 0.05
# Grey levels that a lossy annotation may be off.
COLOUR_ERROR = 30
# AUL's outlines with these numbers are the liver's; the scan area was not published.
NO_SCAN_AREA = ("229", "306")
EUS = {"gist": "EUS-GIST", "lmym": "EUS-Leiomyoma"}
EUS_IDS = {1: "lmym", 2: "gist"}
# Where all lies flat in its own folder, that has any of the entry's names.
KIDNEYS = (
    r"((kidney[ _-]?US|open[ _-]?kidney)[^/]*|images)/"
    r"(?P<key>(?P<group>\d+)_(?P<token>IM-\d+-\d+(-\d+)?)_anon)\.png"
)

# Of two sonographers.
KIDNEY_LISTS = ("reviewed_labels_1.csv", "reviewed_labels_2.csv")


def _abdomen_liver(files: Iterable[File]) -> Facts:
    """Which of the real pictures show the liver by their annotation; the others are of the class Abdomen."""

    def key_of(file: File) -> str:
        return re.split(r"/(?:images|annotations)/", file.relative.lower())[-1].rsplit(".", 1)[0]

    pictures = named(files, r"RUS/images/([^/]+/)?[^/]+\.(png|jpe?g)")
    facts = {key_of(file): {"leave": "no-liver"} for file in pictures}
    for file in named(files, r"RUS/annotations/([^/]+/)?[^/]+\.(png|jpe?g)"):
        key = key_of(file)
        try:
            colours = read_frames(file.path, [0])[0]
        except Unreadable:
            facts[key] = {"label": "annotation that cannot be read"}
            continue
        # A single channel tells no organs.
        if colours.ndim == 3:
            off = np.abs(colours.astype(int) - LIVER_RGB).max(-1)
            if (off <= COLOUR_ERROR).mean() >= LIVER_SHARE:
                facts[key] = {"label": "liver"}
    return facts


def _aul_outline(picture: Path) -> Path | None:
    if picture.stem in NO_SCAN_AREA:
        return None
    return picture.parent.parent / "segmentation" / "outline" / f"{picture.stem}.json"


def _gist_lists(files: Iterable[File]) -> Facts:
    """COCO lists of the whole set and of five folds; the pictures are those that they name.

    The folds are for cross-validation, one picture a case: no split to keep. Of some 43,000 further files
    (unconfirmed) only crops of these can be meant.
    """
    labels = defaultdict(set)
    for file in named(files, r"(all|train|val)_anno[^/]*\.json"):
        coco = read_json(file.path)
        try:
            kinds = {kind["id"]: str(kind["name"]).lower() for kind in coco.get("categories", ())}
            names = {image["id"]: Path(image["file_name"]).stem.lower() for image in coco["images"]}
            for name in names.values():
                labels.setdefault(name, set())
            for mark in coco["annotations"]:
                kind = mark["category_id"]
                known = kinds.get(kind) in EUS
                labels[names[mark["image_id"]]].add(kinds[kind] if known else EUS_IDS.get(kind, str(kind)))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{file.path} is no COCO list (no {error}), wanted images, annotations and their "
                "category_id: unpack it again"
            ) from None
    pictures = named(files, r"images/[^/]+\.jpe?g") if labels else []
    unlisted = {file.path.stem.lower(): {"leave": "copies"} for file in pictures}
    return unlisted | {name: {"label": " and ".join(sorted(kinds))} for name, kinds in labels.items()}


def _kidney_lists(files: Iterable[File]) -> Facts:
    """Copies by the `IM-...` token, of which the smallest prefix stays; what a sonographer remarked.

    A prefix may hold another picture of the study: prefixes that share a copy are one group.
    """
    comments = {}
    first, second = (named(files, re.escape(name)) for name in KIDNEY_LISTS)
    for file in first or second:
        for row in read_rows(file.path, ("filename", "file_attributes")):
            try:
                comment = json.loads(row["file_attributes"]).get("Comments") or ""
            except (ValueError, AttributeError):
                raise InputError(
                    f"{file.path} has file_attributes {row['file_attributes'][:80]!r}, wanted JSON: "
                    "take the list that its publisher gives, unchanged"
                ) from None
            comments[Path(row["filename"]).stem.lower()] = str(comment).lower()
    copies = defaultdict(list)
    for file in named(files, KIDNEYS):
        match = re.search(rf"(?:^|/){KIDNEYS}$", f"images/{file.path.name}", re.IGNORECASE)
        copies[match["token"].lower()].append((int(match["group"]), match["key"].lower()))
    joined: dict[int, set[int]] = {}
    for pictures in copies.values():
        prefixes = set().union(*(joined.get(prefix, {prefix}) for prefix, _ in pictures))
        joined |= dict.fromkeys(prefixes, prefixes)
    facts = {}
    for pictures in copies.values():
        kept = min(pictures)
        # What is noted of one copy holds for all.
        comment = " ".join(comments.get(key, "") for _, key in pictures)
        for picture in pictures:
            words = ["copies"] * (picture != kept) + ["other-organ"] * bool(
                re.search("liver|spleen", comment)
            )
            facts[picture[1]] = {
                "group": str(min(joined[kept[0]])),
                "leave": " ".join(words),
                "remark": "transplant" if "transplant" in comment else "",
            }
    return facts


ENTRIES = (
    DataSet(
        "105US",
        "Liver",
        # Masks are `105 US Masks/001 G man.png`.
        (Layout(r"(105 ?)?US Images/\d+\.png", "Liver-Malignant"),),
        aliases=("105", "105 US Images", "100 2D US Images and Tumor Segmentation Masks"),
        shape="fan",
        licence="not known",
        cite="Hann et al. 2017, arXiv 1710.02984",
        home="https://www.researchgate.net/publication/329586355 (a log-in may be asked, unconfirmed)",
        labels="one class: all show a metastasis",
        marker="105 US Images/001.png",
        seed_count=105,
        true_count=105,
        note="liver, not breast as the predecessor has it; six recorders, text likely (unconfirmed)",
    ),
    DataSet(
        "AbdomenUS",
        "Abdomen",
        (
            # Real: 11 volunteers whom the names do not tell, so all stay on one side.
            Layout(
                r"(?P<group>RUS)/images/(?P<key>((train|test)/)?[^/]+)\.(png|jpe?g)",
                {"": "Abdomen", "liver": "Liver-Normal"},
                facts=_abdomen_liver,
                guessed=True,
            ),
            # Ray-cast from CT; the official split is not known to keep a CT on one side.
            Layout(
                r"AUS/images/((train|test)/)?(?P<group>[^/-]+)[^/]*\.(png|jpe?g)",
                "Abdomen-Simulated",
                include="simulated",
            ),
        ),
        aliases=("abdominal_US", "ussimandsegm", "US simulation and segmentation"),
        shape="fan",
        access="register",
        licence="not known",
        cite="Vitale et al. 2020, International Journal of CARS, doi 10.1007/s11548-019-02046-5",
        home="https://www.kaggle.com/datasets/ignaciorlando/ussimandsegm",
        labels="liver colour in RUS/annotations (61 pictures): Liver-Normal; else Abdomen",
        groups="real: one group, subjects unknown; simulated: CT case, the name before -",
        marker="abdominal_US/abdominal_US/RUS/images/test",
        left_out={"no-liver": "real, no liver marked: class Abdomen", "simulated": "simulated from CT"},
        seed_count=1543,
        true_count=617,
        note="926 more are simulated; the real ones are one group, which cannot fill three splits: "
        "Liver-Normal needs another set beside it, and Abdomen is left out",
    ),
    DataSet(
        "AUL",
        "Liver",
        # Numbers repeat over the classes.
        (Layout(r"(?P<label>benign|malignant|normal)/image/\d+\.jpe?g", LIVER, outline=_aul_outline),),
        aliases=("Annotated Ultrasound Liver", "Annotated Ultrasound Liver images", "7272660"),
        shape="fan",
        licence="CC BY 4.0",
        cite="Xu et al. 2023, Briefings in Bioinformatics, doi 10.1093/bib/bbac569",
        home="https://zenodo.org/records/7272660",
        unpack="the archive, then Benign.zip, Malignant.zip and Normal.zip inside it",
        labels="folder",
        marker="Benign/image/1.jpg",
        seed_count=735,
        true_count=735,
        note="the published outline is the scan area, except 229 and 306; some near copies across classes",
    ),
    DataSet(
        "GIST514-DB",
        "Stomach wall",
        (
            # Full screens of the same cases.
            Layout(
                r"usd514_jpeg_raw/images/(?P<group>(?P<key>[^/]+))\.jpe?g",
                EUS,
                frame="text",
                facts=_gist_lists,
                listed_only=True,
                include="copies",
            ),
            Layout(
                r"images/(?P<group>(?P<key>[^/]+))\.jpe?g",
                EUS,
                frame="full",
                facts=_gist_lists,
                listed_only=True,
            ),
        ),
        aliases=("GIST514", "usd514_jpeg_roi", "usd514"),
        shape="rectangle",
        licence="CC BY-NC-SA 4.0",
        cite="He et al. 2022, Computers in Biology and Medicine, doi 10.1016/j.compbiomed.2022.106424",
        home="https://github.com/howardchina/query2 (Google Drive)",
        labels="COCO category in annotations/*.json",
        groups="case: the picture's name",
        marker="usd514_jpeg_roi/images and usd514_jpeg_roi/annotations/all_anno_crop.json",
        left_out={"copies": COPIES},
        seed_count=514,
        true_count=514,
        note="leiomyoma 251, GIST 263 by the authors' table; one source swaps them",
    ),
    DataSet(
        "kidneyUS",
        "Kidney",
        # Masks have the pictures' names, in labels/reviewed_masks_1/capsule and the like.
        (Layout(KIDNEYS, "Kidney", facts=_kidney_lists, lists=KIDNEY_LISTS),),
        aliases=("kidneyUS_images_14_june_2022", "Open Kidney", "Open Kidney Ultrasound"),
        shape="fan",
        access="register",
        licence="CC BY-NC-SA",
        cite="Singla et al. 2022, arXiv 2206.06657",
        home="https://github.com/rsingla92/kidneyUS (labels; pictures by a form)",
        unpack="the pictures' archive, and labels/ of the repository inside the same folder",
        labels="one class; the remark transplant where a comment says so",
        groups="patient: the number before _; of numbers that share a copy the smallest",
        marker="kidneyUS_images_14_june_2022/1_IM-0001-0059_anon.png",
        left_out={"copies": COPIES, "other-organ": "noted as taken for the liver or spleen"},
        seed_count=534,
        true_count=514,
        note="not normal kidneys: most people are ill, and 157 are transplants; a second sonographer's list "
        "is read when the first is missing",
    ),
)
