"""Liver, kidney, stomach wall and abdomen, each in its publisher's layout with its trap."""

import json

import numpy as np
import pytest
from PIL import Image
from raw_trees import find, plant, save, told, write

from usvar.errors import InputError


@pytest.mark.parametrize(
    ("raw", "home"),
    [("", "105US/105 US Images"), ("", "Breast/105/a/105 US Images"), ("", "105 US Images")],
)
def test_105us_is_liver(tmp_path, raw, home):
    """Trap: mask stems and folders with blanks, `readme.txt`; the predecessor has it under breast."""
    plant(tmp_path / home, "001.png", "002.PNG")
    write(tmp_path / home / "readme.txt", "105 pictures")
    plant((tmp_path / home).parent, "105 US Masks/001 G man.png", "105 US Masks/002 G man.png")
    found = find(tmp_path)
    assert told(found) == {
        f"{home}/001.png": ("Liver-Malignant", "", ""),
        f"{home}/002.PNG": ("Liver-Malignant", "", ""),
    }
    assert {record.organ for record in found.records} == {"Liver"} and not found.rejected


def painted(share, colour=(100, 0, 100), rest=(255, 255, 0)):
    """An annotation: the liver's colour on a share of the rows, the kidney's on as many, the rest black."""
    rgb = np.zeros((80, 96, 3), np.uint8)
    rows = round(80 * share)
    rgb[:rows], rgb[rows : 2 * rows] = colour, rest
    return rgb


@pytest.mark.parametrize(
    "home", ["AbdomenUS/abdominal_US/abdominal_US", "abdominal_US", "abdominal_US/abdominal_US"]
)
def test_abdomen_real_pictures_by_their_painted_liver(tmp_path, home):
    """Trap: the same tree under AUS and RUS; RGBA, JPEG and grey annotations; most pictures have none."""
    root = tmp_path / home
    plant(root / "RUS/images", "train/a.png", *(f"test/{name}.png" for name in "abcdefg"))
    plant(root / "AUS/images", "train/ct14-10.png", "test/ct14-2.jpg", "test/ct3-1.png", first=20)
    for name in ("train/ct14-10", "test/ct14-2"):
        save(root / f"AUS/annotations/{name}.png", painted(0.5))
    annotations = root / "RUS/annotations/test"
    save(annotations / "a.png", painted(0.3))
    alpha = np.full((80, 96, 1), 255, np.uint8)
    save(annotations / "b.PNG", np.concatenate([painted(0.3), alpha], -1))
    save(annotations / "c.jpg", painted(0.3), quality=80)
    save(annotations / "d.png", painted(0.03))
    # Spleen beside kidney, then a single channel, then a broken file; g is not annotated.
    save(annotations / "e.png", painted(0.4, (255, 0, 255)))
    save(annotations / "f.png", np.asarray(Image.fromarray(painted(0.4)).convert("L")))
    write(annotations / "g.png", b"no picture")
    found = find(tmp_path)
    classes = {"a": "Liver-Normal", "b": "Liver-Normal", "c": "Liver-Normal"}
    expected = {
        f"{home}/RUS/images/test/{name}.png": (classes.get(name, "Abdomen"), "RUS", "") for name in "abcdef"
    }
    assert told(found) == {source: said for source, said in expected.items() if said[0] == "Liver-Normal"}
    assert set(found.rejected) == {f"{home}/RUS/images/test/g.png"}
    simulated = {
        f"{home}/AUS/images/{name}" for name in ("train/ct14-10.png", "test/ct14-2.jpg", "test/ct3-1.png")
    }
    # One group that cannot fill three splits, which ended every run.
    other = {f"{home}/RUS/images/{name}.png" for name in ("test/d", "test/e", "test/f", "train/a")}
    assert set(found.left_out) == simulated | other
    assert told(find(tmp_path, "no-liver")) == expected | {
        f"{home}/RUS/images/train/a.png": ("Abdomen", "RUS", "")
    }
    with_simulated = told(find(tmp_path, "simulated"))
    assert {source: with_simulated[source] for source in with_simulated if "AUS" in source} == {
        source: ("Abdomen-Simulated", "ct3" if "ct3" in source else "ct14", "") for source in simulated
    }


@pytest.mark.parametrize("depth", ["{0}/image", "{0}/{0}/image"])
@pytest.mark.parametrize("home", ["AUL", "7272660", "liver/Annotated Ultrasound Liver"])
def test_aul_at_both_depths(tmp_path, home, depth):
    """Trap: doubled class folders; numbers repeat over classes; Normal without `mass`; 229 and 306."""
    outline = json.dumps([[0, 0], [95, 0], [95, 79], [0, 79]])
    expected = {}
    for label, numbers in (("Benign", (1, 194)), ("Malignant", (1, 229, 306)), ("Normal", (1,))):
        images = tmp_path / home / depth.format(label)
        for number in numbers:
            plant(images, f"{number}.jpg", first=number)
            for part in ("liver", "outline", *(("mass",) if label != "Normal" else ())):
                write(images.parent / "segmentation" / part / f"{number}.json", outline)
            expected[f"{home}/{depth.format(label)}/{number}.jpg"] = (f"Liver-{label}", "", "")
    # The malignant 1 has no outline at all.
    (tmp_path / home / depth.format("Malignant")).parent.joinpath("segmentation/outline/1.json").unlink()
    found = find(tmp_path)
    assert told(found) == expected
    with_outline = {record.source for record in found.records if record.outline}
    assert with_outline == {
        source
        for source in expected
        if not source.endswith(("229.jpg", "306.jpg")) and "Malignant" not in source
    }


def coco(names, kinds, categories=True, extra=()):
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [
            {"image_id": number, "category_id": kind, "segmentation": [[0, 0, 9, 0, 9, 9]]}
            for number, kind in [*enumerate(kinds), *extra]
        ],
    }
    if categories:
        content["categories"] = [{"id": 1, "name": "lmym"}, {"id": 2, "name": "GIST"}]
    return json.dumps(content)


@pytest.mark.parametrize("home", ["GIST514-DB/data/usd514_jpeg_roi", "usd514_jpeg_roi", "GIST514-DB"])
@pytest.mark.parametrize("categories", [True, False])
def test_gist_trusts_the_lists(tmp_path, home, categories):
    """Trap: derived crops in the picture folder that no list names; class by COCO category, not by folder."""
    root = tmp_path / home
    plant(root / "images", "1.jpg", "2.jpg", "3.JPG", "4.jpg", "5.jpg", "1_crop.jpg")
    plant(root, "crops/1.jpg", "images_aug/2.jpg")
    names = ["1.jpg", "2.jpg", "images/3.jpg", "4.jpg", "5.jpg"]
    write(root / "annotations/all_anno_crop.json", coco(names, [1, 2, 2], categories, [(3, 1), (3, 2)]))
    write(root / "annotations/train_anno_crop_split_0.json", coco(names[:2], [1, 2], categories))
    write(root / "annotations/val_anno_crop_split_0.json", coco(names[2:3], [2], categories))
    found = find(tmp_path)
    assert told(found) == {
        f"{home}/images/1.jpg": ("EUS-Leiomyoma", "1", ""),
        f"{home}/images/2.jpg": ("EUS-GIST", "2", ""),
        f"{home}/images/3.JPG": ("EUS-GIST", "3", ""),
    }
    assert {
        source.split("/")[-1]: reason.split(", wanted")[0] for source, reason in found.rejected.items()
    } == {
        "4.jpg": "unknown label 'gist and lmym'",
        "5.jpg": "unknown label ''",
    }
    # Not rejected: the download may hold 43,000 of them, and a run with so many bad files stops.
    assert set(found.left_out) == {f"{home}/images/1_crop.jpg"}


def test_gist_screens_are_second_copies(tmp_path):
    """Trap: `usd514_jpeg_raw` holds the full screens of the same cases."""
    root = tmp_path / "GIST514-DB"
    for kind in ("roi", "raw"):
        plant(root / f"usd514_jpeg_{kind}/images", "1.jpg", "2.jpg")
        suffix = "_crop" if kind == "roi" else ""
        write(
            root / f"usd514_jpeg_{kind}/annotations/all_anno{suffix}.json", coco(["1.jpg", "2.jpg"], [1, 2])
        )
    found = find(tmp_path)
    assert set(told(found)) == {f"GIST514-DB/usd514_jpeg_roi/images/{name}.jpg" for name in "12"}
    screens = {f"GIST514-DB/usd514_jpeg_raw/images/{name}.jpg" for name in "12"}
    assert set(found.left_out) == screens
    both = told(find(tmp_path, "copies"))
    assert {both[source] for source in screens} == set(told(found).values())


@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"images": []}', '{"images": [{"id": 1}], "annotations": []}']
)
def test_gist_names_a_broken_list(tmp_path, content):
    plant(tmp_path / "GIST514", "images/1.jpg")
    write(tmp_path / "GIST514/annotations/all_anno_crop.json", content)
    with pytest.raises(InputError, match=r"all_anno_crop\.json is no"):
        find(tmp_path)


def vgg(**comments):
    """The annotator's CSV: several rows a picture, attributes in JSON."""
    rows = ["filename,file_size,file_attributes,region_count,region_id,region_attributes"]
    for name, comment in comments.items():
        attributes = json.dumps({"Quality": "Fair", "View": "Transverse", "Comments": comment})
        doubled = attributes.replace('"', '""')
        rows += [f'{name}_anon.png,1,"{doubled}",2,{region},"{{}}"' for region in range(2)]
    return "\n".join(rows) + "\n"


KIDNEYS = (
    "1_IM-0001-0059",
    "2_IM-0001-0060",
    "102_IM-0262-0009",
    "400_IM-0262-0009",
    "404_IM-0262-0009",
    "404_IM-0084-0022",
    "7_IM-0005-0001-0002",
    "8_IM-0115-17408",
    "9_IM-0009-0001",
)


@pytest.mark.parametrize(
    "home",
    [
        *("kidneyUS/kidneyUS_images_14_june_2022", "kidneyUS_images_14_june_2022", "Open Kidney/data/images"),
        # All flat in its own folder, by any of its names; the alias was read as a class of its own.
        *("kidneyUS", "Open Kidney", "open-kidney", "Open Kidney Ultrasound", "Kidney_US"),
    ],
)
def test_kidney_copies_masks_and_remarks(tmp_path, home):
    """Trap: one `IM-...` token under three prefixes; masks of equal names; `Transplant ` with a blank."""
    plant(tmp_path / home, *(f"{name}_anon.png" for name in KIDNEYS))
    labels = tmp_path / home.split("/")[0] / "labels"
    for part in ("capsule", "regions"):
        plant(labels / "reviewed_masks_1" / part, f"{KIDNEYS[0]}_anon.png", f"{KIDNEYS[1]}_anon.png")
    comments = dict.fromkeys(KIDNEYS, "n/a") | {
        KIDNEYS[0]: "Transplant ",
        KIDNEYS[1]: "?transplant, dark image",
        KIDNEYS[7]: "Image taken for liver.\n",
        KIDNEYS[3]: "transplant",  # a copy of number 2
    }
    write(labels / "reviewed_labels_1.csv", vgg(**comments))
    write(labels / "reviewed_labels_2.csv", vgg(**dict.fromkeys(KIDNEYS, "liver")))
    found = find(tmp_path)
    name = f"{home}/{{}}_anon.png".format
    # 404 has a copy of 102's picture, and so is of its study with its other one too.
    kept = {0: "1", 1: "2", 2: "102", 5: "102", 6: "7", 8: "9"}
    assert told(found) == {name(KIDNEYS[i]): ("Kidney", group, "") for i, group in kept.items()}
    assert {record.source for record in found.records if record.remark == "transplant"} == {
        name(KIDNEYS[0]),
        name(KIDNEYS[1]),
        name(KIDNEYS[2]),
    }
    assert {source: reason.split(" (--")[0] for source, reason in found.left_out.items()} == {
        name(KIDNEYS[3]): "second copies of pictures",
        name(KIDNEYS[4]): "second copies of pictures",
        name(KIDNEYS[7]): "noted as taken for the liver or spleen",
    }
    assert not found.rejected
    copies = told(find(tmp_path, "copies"))
    assert {copies[name(KIDNEYS[i])][1] for i in (2, 3, 4)} == {"102"} and name(KIDNEYS[7]) not in copies
    assert name(KIDNEYS[7]) in told(find(tmp_path, "other-organ"))


def test_kidney_prefixes_are_joined_over_several_copies(tmp_path):
    """The copy is dropped, and its prefix's other picture could come to another side of the split."""
    names = ("40_IM-0001-0001", "30_IM-0001-0001", "30_IM-0002-0001", "20_IM-0002-0001", "40_IM-0003-0001")
    plant(tmp_path / "kidneyUS", *(f"{name}_anon.png" for name in (*names, "50_IM-0001-0002")))
    groups = {source[9:11]: group for source, (_, group, _) in told(find(tmp_path, "copies")).items()}
    assert groups == {"20": "20", "30": "20", "40": "20", "50": "50"}


def test_kidney_copy_of_another_organ_needs_both_words(tmp_path):
    plant(
        tmp_path / "kidneyUS", *(f"{name}-0001_anon.png" for name in ("5_IM-0001", "10_IM-0001", "3_IM-0002"))
    )
    liver = {name: "liver image" for name in ("5_IM-0001-0001", "10_IM-0001-0001")} | {"3_IM-0002-0001": ""}
    # Only the second sonographer's list is there.
    write(tmp_path / "kidneyUS/labels/reviewed_labels_2.csv", vgg(**liver))
    counts = [len(find(tmp_path, *words).records) for words in ((), ("copies",), ("other-organ",))]
    assert counts == [1, 1, 2]
    # The smallest prefix is the smallest number, not the first text.
    groups = {group for _, group, _ in told(find(tmp_path, "copies", "other-organ")).values()}
    assert groups == {"5", "3"}
    assert len(find(tmp_path, "copies", "other-organ").records) == 3


@pytest.mark.parametrize("labels", ["labels", "kidneyUS/labels", "kidneyUS_images_14_june_2022/labels"])
def test_kidney_without_its_list_is_said(tmp_path, labels):
    """A list beside the pictures' folder or in a clone is not seen, and nobody noticed."""
    plant(tmp_path / "kidneyUS_images_14_june_2022", "5_IM-0001-0001_anon.png")
    write(tmp_path / labels / "reviewed_labels_2.csv", vgg(**{"5_IM-0001-0001": "transplant"}))
    found = find(tmp_path)
    warnings = [note for note in found.notes if note.startswith("WARNING: kidneyUS_images_14_june_2022: ")]
    if labels.startswith("kidneyUS_images"):
        assert found.records[0].remark == "transplant" and not warnings
    else:
        assert warnings == [
            "WARNING: kidneyUS_images_14_june_2022: kidneyUS, without reviewed_labels_1.csv or "
            "reviewed_labels_2.csv, so less is known of its pictures: unpack the pictures' archive, and "
            "labels/ of the repository inside the same folder"
        ]


def test_kidney_names_a_broken_list(tmp_path):
    plant(tmp_path / "kidneyUS", "5_IM-0001-0001_anon.png")
    path = tmp_path / "kidneyUS/labels/reviewed_labels_1.csv"
    write(path, "filename,file_attributes\n5_IM-0001-0001_anon.png,{broken\n")
    with pytest.raises(InputError, match=r"reviewed_labels_1\.csv has file_attributes '\{broken'"):
        find(tmp_path)
    write(path, "filename,attributes\n5_IM-0001-0001_anon.png,{}\n")
    with pytest.raises(InputError, match="lacks the column file_attributes"):
        find(tmp_path)
