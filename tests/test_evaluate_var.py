"""The evaluation as a whole on tiny models: what it writes, what it leaves out, what it refuses."""

import copy
import dataclasses
import json
import math
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, speckled_disc
from test_report import CHROMIUM, contrast, looked_at
from torch import nn

import evaluate_var
from models.helpers import scale_spans, split_scales
from usvar import cli, copies, evaluation, images, judging, provenance, report
from usvar.errors import InputError
from usvar.tokens import read_token_maps, write_token_maps

EXTRACTORS = ("US", "US-SSL")
SEARCHES = ("pixels", *EXTRACTORS, "pixels, rebuilt", "US, rebuilt", "US-SSL, rebuilt", "tokens")
FIGURES = (
    "samples",
    "best_and_worst",
    "kernel_distance",
    "neighbours",
    "use",
    "confusion",
    "copies",
    *(f"nearest_{name.replace(', ', '_')}" for name in SEARCHES),
    "variety",
    "physics",
    "bits_per_token",
)


@pytest.fixture(scope="module")
def more_data(tiny_data, tmp_path_factory) -> Path:
    """The tiny images with eight test images per class, two of them of a patient: enough for all measures."""
    root = tmp_path_factory.mktemp("more") / "data"
    shutil.copytree(tiny_data, root)
    stream = np.random.default_rng(1)
    for label, name in enumerate(CLASSES):
        for i in range(3, 8):
            images.save_png(root / "test" / name / f"made__{i}.png", speckled_disc(label, stream))
    rows = ["file,group"]
    for path in sorted(root.rglob("*.png")):
        split, name, _ = path.relative_to(root).parts
        patient = path.stem.replace("made__1", "made__0") if split == "test" else path.stem
        rows.append(f"{split}/{name}/{path.name},{split}/{name}/{patient}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def settings(more_data, tiny_var, tiny_vqvae, tiny_tokens, tmp_path_factory) -> evaluate_var.Settings:
    return evaluate_var.Settings(
        data_root=more_data,
        var=tiny_var,
        vqvae=tiny_vqvae,
        tokens_dir=tiny_tokens,
        out_dir=tmp_path_factory.mktemp("evaluation"),
        images_per_class=5,
        extractor_steps=4,
        classifier_steps=3,
        extractor_pixels=32,
        device="cpu",
    )


@pytest.fixture(scope="module")
def result(settings) -> dict:
    evaluate_var.main(settings)
    return json.loads((settings.out_dir / "metrics.json").read_text(encoding="utf-8"))


def test_every_set_has_every_number_with_its_counts_and_hash(settings, result):
    stamps = result["judges"]["stamps"]
    assert tuple(stamps) == EXTRACTORS
    for name, stamp in stamps.items():
        assert re.fullmatch("[0-9a-f]{64}", result["judges"]["sha256"][name])
        assert stamp == f"{name} {result['judges']['sha256'][name][:12]}"
    assert stamps["US"].split()[1] != stamps["US-SSL"].split()[1]
    for name, groups in result["distances"].items():
        assert list(groups) == ["pooled", *CLASSES]
        for entry in groups.values():
            assert entry["real_test_images"] in (24, 8) and entry["images"] > 0
            assert entry["extractors"] == stamps
            for extractor in EXTRACTORS:
                assert entry[f"{extractor}-KD_spread"] > 0
                for key in ("precision", "recall", "density", "coverage"):
                    assert entry[f"{extractor}-{key}"] >= 0, name
    assert result["counts"]["generated"] == dict.fromkeys(CLASSES, 5) and result["drawn_by_var"] is True
    # Too few images for a Fréchet distance: said for each set and group, and nothing else is left out.
    assert {row["what"].split(",")[0] for row in result["left_out"]} == {"US-FD", "US-SSL-FD"}
    assert "FID" not in json.dumps(result["distances"])


def test_images_of_a_patient_are_one_group_where_the_manifest_names_it(settings, result):
    assert result["groups"] == {"real_train": 18, "real_val": 12, "real_test": 21}
    assert {row["real_test_groups"] for row in result["distances"]["generated"].values()} == {21, 7}
    text = (settings.out_dir / "report.html").read_text(encoding="utf-8")
    assert "real test: 24 images of 21 groups" in text and report.GROUPS_KNOWN in result["cautions"]
    # 8 of 8 right is as sure as 7 of 7 where two are of one patient, or as what was seen of them.
    for row in result["class_fidelity"]["real_test"]["per_class"]:
        if row["right"] in (0, 8):
            wanted = evaluation.wilson_interval(row["right"] * 7 / 8, 7)
            assert row["interval_95"] == pytest.approx(wanted)


def test_groups_are_read_from_the_manifest_or_each_image_is_one(settings, tmp_path):
    groups = judging.read_groups(settings.data_root)
    paths = ["test/Heart/made__0.png", "test/Heart/made__2.png", "test/Heart/made__1.png"]
    assert judging.numbers_of_groups(paths, groups).tolist() == [0, 1, 0]
    with pytest.raises(InputError, match=r"names no group of test/Heart/new\.png and 0 more"):
        judging.numbers_of_groups([*paths, "test/Heart/new.png"], groups)
    assert judging.read_groups(tmp_path) is judging.numbers_of_groups(paths, None) is None
    (tmp_path / "manifest.csv").write_text("file,patient\na.png,1\n", encoding="utf-8")
    with pytest.raises(InputError, match="does not say the group"):
        judging.read_groups(tmp_path)


def test_the_other_measures_are_there(result):
    fidelity = result["class_fidelity"]
    assert np.sum(fidelity["generated"]["table"]) == 15 and np.sum(fidelity["real_test"]["table"]) == 24
    use = result["classification_accuracy_score"]
    assert set(use) == set(report.USE)
    for entry in use.values():
        assert len(entry["balanced_accuracy_of_each_seed"]) == 3 and entry["test_images"] == 24
        low, high = entry["interval_95_over_seeds"]
        assert low <= entry["balanced_accuracy"] <= high
    assert [use[k]["images"] for k in ("real", "generated", "half_generated", "real_and_generated")] == [
        18,
        15,
        18,
        33,
    ]
    assert tuple(result["copies"]) == SEARCHES
    for entry in result["copies"].values():
        assert set(entry["planted_copies_detected"]) == set(report.PLANTS)
        assert 0 <= entry["share_below"] <= 1
    # Copies are where they must be found: as they are, and decoded among decoded ones.
    for name in ("pixels", "US", "US-SSL", "tokens"):
        assert result["copies"][name]["planted_copies_detected"]["as they are"] == {
            "planted": 18,
            "share_below_threshold": 1.0,
            "share_whose_source_is_nearest": 1.0,
        }
    for name in ("pixels, rebuilt", "US, rebuilt", "US-SSL, rebuilt"):
        detected = result["copies"][name]["planted_copies_detected"]["rebuilt"]
        assert detected["share_whose_source_is_nearest"] == 1.0
    assert set(result["variety"]) == set(result["physics"]) == {"real_test", *evaluation.SETS}
    assert result["physics"]["real_test"]["spectrum_difference_rms_db"] == 0
    assert sorted(result["best_to_worst"]["row"]) == list(range(15))
    assert result["best_to_worst"]["realism"] == sorted(result["best_to_worst"]["realism"], reverse=True)
    bits = result["bits_per_token"]
    # Train has two views of each image; the augmented one is not scored.
    assert [bits[split]["images"] for split in images.SPLITS] == [18, 12, 9]
    assert len(bits["test"]["bits_per_token_of_each_scale"]) == 3


def test_the_distances_are_the_same_again_with_the_judges_kept(settings, result, tmp_path):
    """And a TorchScript file from outside stands beside them, under its own name, whatever that is.

    Past fault: what follows a comma was taken for the kind of search, so that copies found by such a network
    stood without its hash.
    """
    outside = tmp_path / "Outside, B.pt"
    torch.jit.trace(nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), torch.zeros(2, 3, 32, 32)).save(
        str(outside)
    )
    again = dataclasses.replace(
        settings,
        out_dir=tmp_path / "out",
        judges=settings.out_dir / "judges.pth",
        extractor_steps=1,
        extractor_file=outside,
        extractor_file_pixels=32,
    )
    evaluate_var.main(again)
    found = json.loads((again.out_dir / "metrics.json").read_text(encoding="utf-8"))
    assert found["judges"]["sha256"]["US"] == result["judges"]["sha256"]["US"]
    assert found["made_by"]["inputs"]["extractor_file"]["path"] == "Outside, B.pt"
    stamp = found["judges"]["stamps"]["Outside, B"]
    assert found["copies"]["Outside, B"]["by"] == stamp
    assert found["copies"]["Outside, B, rebuilt"]["by"] == f"{stamp}, rebuilt"
    for name, groups in result["distances"].items():
        for where, row in groups.items():
            again_row = found["distances"][name][where]
            assert {k: again_row[k] for k in row if k != "extractors"} == {
                k: v for k, v in row.items() if k != "extractors"
            }
            assert again_row["Outside, B-KD"] is not None and again_row["extractors"]["Outside, B"] == stamp
    assert found["classification_accuracy_score"] == result["classification_accuracy_score"]


class Page(HTMLParser):
    """Tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_the_page_holds_all_figures_and_asks_no_network(settings, result):
    text = (settings.out_dir / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == len(FIGURES)
    assert all(picture["src"].startswith("data:image/png;base64,") for picture in pictures)
    assert all(len(picture["alt"]) > 20 for picture in pictures)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe"}
    assert not re.search(r"https?://|url\(|@import", text)
    assert "color-scheme: light dark" in text and 'name="viewport"' in text
    assert ("html", {"lang": "en"}) in page.tags
    assert all((settings.out_dir / "figures" / f"{name}.png").is_file() for name in FIGURES)
    for words in ("diagnosis", "privacy", "extractor hash", "Small sets are noisy"):
        assert words in text
    for stamp in result["judges"]["stamps"].values():
        assert text.count(stamp) > 5
    assert result["made_by"]["inputs"]["var"]["sha256"] in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path (apt-get install chromium)")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_whole_page_fits_a_phone_and_a_laptop_in_a_browser(settings, result, tmp_path, dark):
    """All figures show at both widths, only tables and figures scroll sideways, and nothing is fetched."""
    found = looked_at((settings.out_dir / "report.html").resolve(), tmp_path, dark)
    assert set(found) == {"w390", "w1280"}
    for name, layout in found.items():
        assert layout["pictures"] == len(FIGURES) and layout["broken"] == layout["without_words"] == 0
        assert layout["wide"] <= layout["room"] and layout["text_to"] <= layout["room"], (name, layout)
        assert layout["asked_for"] == [] and layout["tables"] > 10
        assert contrast(layout["background"], layout["colour"]) >= 7


def test_names_of_classes_cannot_inject_markup():
    assert "<script>" not in report.table(["a"], [["<script>"]], "<script>") + report.paragraph("<script>")


def test_what_tiny_sets_do_not_carry_is_left_out_with_its_reason(
    settings, result, tiny_data, tmp_path, capsys, monkeypatch
):
    """Three test images per class: no distances; a folder without one class: it is missed, not forgotten.

    Past fault: that a VQ-VAE may have seen the test images was printed, and stood in no file.
    """
    monkeypatch.setattr(images, "note_other_training", lambda *_: False)
    folder = tmp_path / "generated"
    stream = np.random.default_rng(2)
    for label in (0, 2):
        for i in range(4):
            images.save_png(folder / CLASSES[label] / f"{i}.png", speckled_disc(label, stream))
    small = dataclasses.replace(
        settings,
        data_root=tiny_data,
        out_dir=tmp_path / "out",
        generated=folder,
        judges=settings.out_dir / "judges.pth",
    )
    evaluate_var.main(small)
    found = json.loads((small.out_dir / "metrics.json").read_text(encoding="utf-8"))
    assert "US-KD" not in found["distances"]["generated"]["pooled"]
    reasons = " ".join(row["what"] for row in found["left_out"])
    for what in ("distances, pooled", "near copies in pixels", "variety, Kidney, generated"):
        assert what in reasons
    assert "share_below" not in found["copies"]["pixels"]
    assert found["counts"]["generated"]["Kidney"] == 0
    assert found["vqvae_is_trained_on_this_train"] is False and report.OTHER_VQVAE in found["cautions"]
    assert report.OTHER_VQVAE in (small.out_dir / "report.html").read_text(encoding="utf-8")
    assert result["vqvae_is_trained_on_this_train"] is None and report.OTHER_VQVAE not in result["cautions"]
    # These images have no manifest.csv.
    assert found["groups"] is None and report.GROUPS_UNKNOWN in found["cautions"]
    assert "is not known" in (small.out_dir / "report.html").read_text(encoding="utf-8")
    fidelity = found["class_fidelity"]["generated"]
    assert fidelity["per_class"][1]["share"] is None
    # Past fault: the mean over two of three classes stood beside that over three as if they compared.
    right = f"{fidelity['balanced_accuracy']:.0%} (without Kidney)"
    assert f"class right: generated {right}, real test" in capsys.readouterr().out
    page = (small.out_dir / "report.html").read_text(encoding="utf-8")
    assert f"<td>{right}</td>" in page and "Nothing was generated of Kidney" in page
    # No listing says who drew them: the likelihood is that of --var.
    assert found["drawn_by_var"] is False and page.count(report.OF_VAR) == 1


def test_pictures_of_another_generator_are_judged_without_our_models(settings, result, tmp_path):
    """The same figures; what needs tokens is named as left out."""
    folder, stream = tmp_path / "gan", np.random.default_rng(3)
    for label, name in enumerate(CLASSES):
        for i in range(4):
            images.save_png(folder / name / f"{i}.png", speckled_disc(label, stream))
    without = {"var": None, "vqvae": None, "tokens_dir": None, "generated": folder}
    other = dataclasses.replace(settings, **without, out_dir=tmp_path, judges=settings.out_dir / "judges.pth")
    evaluate_var.main(other)
    found = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert set(found["distances"]) == {"generated", "real_train"}
    assert found["distances"]["generated"]["pooled"]["US-KD"] is not None
    assert set(found["copies"]) == {"pixels", *EXTRACTORS}
    assert set(found["copies"]["pixels"]["planted_copies_detected"]) == {"as they are", "augmented", "moved"}
    assert set(found["classification_accuracy_score"]) == set(report.USE) - {"position_prior"}
    assert found["bits_per_token"] is None
    # Past fault: nothing told which images, and which groups, the numbers are of.
    listings = {
        name: images.listing_sha256(images.find_images(root, split, CLASSES))
        for name, root, split in (
            ("test_images", settings.data_root, "test"),
            ("generated_images", tmp_path, "gan"),
        )
    }
    listings["manifest"] = provenance.sha256_file(settings.data_root / "manifest.csv")
    inputs = {name: file["sha256"] for name, file in found["made_by"]["inputs"].items()}
    assert inputs.pop("judges") and inputs == listings
    assert set(evaluate_var.WANT_MODELS) <= {row["what"] for row in found["left_out"]}
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(what in text for what in evaluate_var.WANT_MODELS)
    assert not (tmp_path / "figures" / "bits_per_token.png").exists()


def test_one_image_and_a_first_class_without_test_images_are_drawn(settings, result, tmp_path):
    """Past faults: both ended in a traceback after all was computed."""
    shutil.copytree(settings.data_root, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "test" / CLASSES[0])
    grey_HW = speckled_disc(1, np.random.default_rng(4))
    images.save_png(tmp_path / "gan" / CLASSES[1] / "0.png", grey_HW)
    without = {"var": None, "vqvae": None, "tokens_dir": None, "generated": tmp_path / "gan"}
    change = {"data_root": tmp_path / "data", "out_dir": tmp_path / "out"}
    judges = settings.out_dir / "judges.pth"
    evaluate_var.main(dataclasses.replace(settings, **without, **change, judges=judges))
    assert (tmp_path / "out" / "report.html").is_file()
    found = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert found["best_to_worst"] == {}
    assert "best and worst images" in {row["what"] for row in found["left_out"]}


def test_numbers_are_kept_when_drawing_fails(settings, result, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no room")

    monkeypatch.setattr(evaluate_var.evaluation_figures, "draw_all", fail)
    judges = settings.out_dir / "judges.pth"
    with pytest.raises(OSError, match="no room"):
        evaluate_var.main(dataclasses.replace(settings, out_dir=tmp_path, judges=judges))
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["distances"]


@pytest.mark.parametrize(
    ("lacking", "generated", "message"),
    [
        (("vqvae",), Path("gan"), "^--vqvae not given, wanted --var, --vqvae and --tokens-dir together"),
        (("var", "tokens_dir"), Path("gan"), "^--var and --tokens-dir not given"),
        (("var", "vqvae", "tokens_dir"), None, "^--var and --vqvae and --tokens-dir not given"),
    ],
)
def test_one_model_without_the_other_is_refused(settings, tmp_path, lacking, generated, message):
    change = dict.fromkeys(lacking) | {"generated": generated, "out_dir": tmp_path / "out"}
    with pytest.raises(InputError, match=message):
        evaluate_var.main(dataclasses.replace(settings, **change))
    every = {"var": None, "vqvae": None, "tokens_dir": None, "generated": Path("gan")}
    with pytest.raises(InputError, match="--settings-from was given without --var"):
        evaluate_var.main(dataclasses.replace(settings, **every, settings_from=Path("chosen.json")))


def test_new_pictures_are_as_smooth_as_samples_where_copies_are_counted(
    settings, result, tmp_path, monkeypatch
):
    """Smooth pictures lie nearer to each other than speckled ones, copied or not."""
    asked, call = [], copies.PixelSearch.__call__
    monkeypatch.setattr(copies.PixelSearch, "__call__", lambda self, x: asked.append(x) or call(self, x))
    judges = settings.out_dir / "judges.pth"
    evaluate_var.main(dataclasses.replace(settings, out_dir=tmp_path, judges=judges))
    files = images.find_images(settings.data_root, "test", CLASSES)
    real_NHW = images.read_images(files, range(len(files)), images.image_size(files))
    assert len(asked) == 2 * (2 + len(report.PLANTS))
    assert not any(np.array_equal(x, real_NHW) for x in asked)
    assert sum(x.shape == real_NHW.shape for x in asked) == 2


def test_the_page_claims_no_difference_without_a_spread_and_no_more_than_the_whole_way(result):
    def words(generated: float, prior: float, spread: float | None) -> str:
        changed = copy.deepcopy(result)
        for name, value in {
            "generated": generated,
            "reconstructed_test": 1.0,
            "position_prior": prior,
        }.items():
            changed["distances"][name]["pooled"] |= {"US-KD": value, "US-KD_spread": spread}
        return report.main_findings(changed)[0]

    assert "differences say nothing" in words(1.0, 3.0, None)
    assert "cannot be told apart" in words(2.9, 3.0, 0.1)
    assert "gone 50%" in words(2.0, 3.0, 0.1)
    assert "no farther than rebuilt ones" in words(0.5, 3.0, 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images_per_class": 0}, "wanted 1 or more"),
        ({"extractor_pixels": 16}, "wanted 32 to 1024"),
        ({"top_p": 1.5}, "--top-p 1.5 was given, wanted 0 to 1"),
        ({"data_root": Path("nothing")}, "holds nothing"),
        ({"generated": Path("nothing")}, "is no folder"),
        ({"tokens_dir": Path("nothing")}, "is missing"),
        ({"judges": Path("nothing.pth")}, "is no file"),
        ({"extractor_file": Path("nothing.pt")}, "is no file"),
        ({"settings_from": Path("nothing.json")}, "is missing"),
        ({"classifier_seeds": 2}, "wanted 3 or more"),
    ],
)
def test_wrong_settings_are_refused(settings, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        evaluate_var.main(dataclasses.replace(settings, out_dir=tmp_path / "out", **change))
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_judges_of_other_training_images_are_refused(settings, result, tmp_path):
    """They may have been trained on what is the test split here."""
    root = tmp_path / "data"
    shutil.copytree(settings.data_root, root)
    (root / "train" / "Heart" / "made__0.png").unlink()
    other = dataclasses.replace(settings, data_root=root, judges=settings.out_dir / "judges.pth")
    with pytest.raises(InputError, match="trained on other images"):
        evaluate_var.main(dataclasses.replace(other, out_dir=tmp_path / "out"))
    with pytest.raises(InputError, match="holds no judges"):
        evaluate_var.main(dataclasses.replace(other, out_dir=tmp_path / "out", judges=settings.var))


def test_a_wrong_extractor_file_is_refused_before_anything_is_trained(settings, tmp_path, monkeypatch):
    """Past fault: after the judges, which take an hour at full size. And it cannot pass for another."""
    trained = []
    monkeypatch.setattr(judging, "train_judges", lambda *a: trained.append(a))
    square = torch.zeros(2, 3, 32, 32)
    for name, net in {"US": nn.Flatten(), "FID": nn.Flatten(), "Uncut": nn.Identity()}.items():
        torch.jit.trace(net, square).save(str(tmp_path / f"{name}.pt"))
    (tmp_path / "Text.pt").write_text("no network", encoding="utf-8")
    for name, message in {
        **dict.fromkeys(("US", "FID"), "would mislead"),
        "Uncut": r"gives \(2, 3, 32, 32\) for two images",
        "Text": "is no TorchScript network",
        "Missing": "is no file",
    }.items():
        change = {"extractor_file": tmp_path / f"{name}.pt", "extractor_file_pixels": 32}
        with pytest.raises(InputError, match=message):
            evaluate_var.main(dataclasses.replace(settings, out_dir=tmp_path / "out", **change))
    assert not trained and not (tmp_path / "out").exists()


def test_generated_images_of_another_size_or_class_are_refused(settings, tmp_path):
    images.save_png(tmp_path / "small" / "Heart" / "0.png", np.zeros((32, 32), np.uint8))
    images.save_png(tmp_path / "lung" / "Lung" / "0.png", np.zeros((64, 64), np.uint8))
    for name, message in (("small", "32 x 32 pixels"), ("lung", "holds the class 'Lung'")):
        with pytest.raises(InputError, match=message):
            evaluate_var.main(dataclasses.replace(settings, out_dir=tmp_path, generated=tmp_path / name))


def test_prefixed_samples_are_never_scored(settings, tmp_path):
    """By folder or by the picture itself; what else gives them away: tests/test_prefixed.py."""
    black = np.zeros((64, 64), np.uint8)
    images.save_png(tmp_path / "scale_2_K5" / "tp" / "Heart" / "0.png", black)
    images.save_png(tmp_path / "copied" / "Heart" / "0.png", black, tokens_given=5)
    for folder, found in (("scale_2_K5/tp", "scale_2_K5"), ("copied", r"Heart/0\.png")):
        with pytest.raises(InputError, match=rf"given tokens \({found}\)"):
            evaluate_var.main(dataclasses.replace(settings, generated=tmp_path / folder))


def test_the_folder_that_one_is_in_can_be_judged(settings, tmp_path, monkeypatch):
    """Past fault: Path(".") has no name, so that images were looked for in /Heart."""
    images.save_png(tmp_path / "gan" / "Heart" / "0.png", np.zeros((64, 64), np.uint8))
    data_root = settings.data_root.resolve()
    monkeypatch.chdir(tmp_path / "gan")
    for name in (".", "../gan"):
        change = {"data_root": data_root, "generated": Path(name)}
        found, _ = evaluate_var.read_generated(dataclasses.replace(settings, **change), CLASSES, 64)
        assert found.label_N.tolist() == [0]


def test_samples_with_their_tokens_beside_them_are_judged(settings, tmp_path):
    """Past fault: samples of sample_var.py --save-tokens True were refused."""
    images.save_png(tmp_path / "Heart" / "0.png", np.zeros((64, 64), np.uint8))
    np.save(tmp_path / "Heart" / "0.npy", np.arange(21))
    of_folder = dataclasses.replace(settings, generated=tmp_path)
    assert len(evaluate_var.read_generated(of_folder, CLASSES, 64)[0]) == 1
    np.save(tmp_path / "Heart" / "1.npy", np.zeros((64, 64)))
    with pytest.raises(InputError, match=r"1\.npy is no plain PNG file"):
        evaluate_var.read_generated(of_folder, CLASSES, 64)


def test_hidden_files_of_a_file_manager_are_no_images(settings, tmp_path):
    """Past fault: a traceback for macOS's ._0.png, whose content is no picture."""
    images.save_png(tmp_path / "Heart" / "0.png", np.zeros((64, 64), np.uint8))
    (tmp_path / ".bin").mkdir()
    for name in ("Heart/._0.png", ".bin/0.png"):
        (tmp_path / name).write_bytes(b"no picture")
    of_folder = dataclasses.replace(settings, generated=tmp_path)
    assert len(evaluate_var.read_generated(of_folder, CLASSES, 64)[0]) == 1


@pytest.mark.parametrize("tokens_at_once", [4096, 5])
def test_the_likelihood_is_that_of_the_logits_whatever_is_held_at_once(settings, monkeypatch, tokens_at_once):
    """Each scale is the mean over its own tokens: 1, 4 and 16 of the 21."""
    monkeypatch.setattr(evaluate_var, "TOKENS_AT_ONCE", tokens_at_once)
    files = settings.var, settings.vqvae, settings.tokens_dir, images.SPLITS, torch.device("cpu")
    models = judging.load_models(settings.data_root, *files)
    maps, patch_nums = models.maps["test"], models.var.patch_nums
    idx_NL = torch.from_numpy(np.asarray(maps.idx_NL).astype(np.int64))
    with torch.no_grad():
        input_NLC = models.vae.quantize.idxBl_to_var_input(split_scales(idx_NL, patch_nums))
        logits_NLV = models.var(torch.from_numpy(maps.label_N), input_NLC)
    bits_NL = -logits_NLV.log_softmax(-1).gather(-1, idx_NL[..., None])[..., 0] / math.log(2)
    found = evaluate_var.likelihood(settings, models, None)["test"]
    wanted_S = [float(bits_NL[:, start:end].mean()) for start, end in scale_spans(patch_nums)]
    assert found["bits_per_token_of_each_scale"] == pytest.approx(wanted_S, rel=1e-4)
    assert found["bits_per_token"] == pytest.approx(float(bits_NL.mean()), rel=1e-4)
    assert max(wanted_S) - min(wanted_S) > 1e-3


def test_the_likelihood_is_of_as_many_images_as_were_asked_for(settings):
    """Drawn, not the first ones, which are all of one class."""
    files = settings.var, settings.vqvae, settings.tokens_dir, images.SPLITS, torch.device("cpu")
    models = judging.load_models(settings.data_root, *files)
    few = [
        evaluate_var.likelihood(dataclasses.replace(settings, likelihood_images=2, seed=seed), models, None)
        for seed in (0, 0, 1)
    ]
    assert few[0] == few[1] != few[2]
    assert all(numbers["images"] == 2 for numbers in few[0].values())
    everything = evaluate_var.likelihood(settings, models, None)
    assert everything["train"]["images"] > everything["test"]["images"] > 2


def test_models_of_other_classes_are_refused(settings, tiny_data, tmp_path):
    shutil.copytree(tiny_data, tmp_path / "data")
    for split in images.SPLITS:
        (tmp_path / "data" / split / "Liver").rename(tmp_path / "data" / split / "Lung")
    with pytest.raises(
        InputError, match=r"best\.pth has the classes Heart, Kidney, Liver, .* has .* Lung: give"
    ):
        evaluate_var.main(
            dataclasses.replace(settings, data_root=tmp_path / "data", out_dir=tmp_path / "out")
        )


def test_images_that_were_prepared_anew_are_refused(settings, tiny_data, tiny_tokens, tmp_path):
    """What is test now may have been train when the tokens were made, and the transformer saw it."""
    shutil.copytree(tiny_tokens, tmp_path / "tokens")
    for split in images.SPLITS:
        maps = read_token_maps(tiny_tokens / split)
        listing = images.listing_sha256(images.find_images(tiny_data, split, CLASSES))
        arrays = (np.asarray(maps.idx_NL), maps.label_N, np.asarray(maps.path_N), maps.view_N)
        made_by = maps.made_by | {"listing_sha256": listing}
        write_token_maps(tmp_path / "tokens" / split, *arrays, maps.patch_nums, CLASSES, made_by)
    files = settings.var, settings.vqvae, tmp_path / "tokens", images.SPLITS, torch.device("cpu")
    judging.load_models(tiny_data, *files)
    shutil.copytree(tiny_data, tmp_path / "data")
    (tmp_path / "data/train/Heart/made__0.png").rename(tmp_path / "data/test/Heart/moved__0.png")
    with pytest.raises(InputError, match=r"train/tokens\S+ was made from other images than .*train has"):
        judging.load_models(tmp_path / "data", *files)


def test_from_the_command_line_a_wrong_folder_is_one_line_and_code_2(settings, monkeypatch, capsys):
    flags = {name: getattr(settings, name.replace("-", "_")) for name in ("var", "vqvae", "tokens-dir")}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["evaluate_var.py", *words, "--data-root", "nothing"])
    with pytest.raises(SystemExit) as stop:
        cli.run(evaluate_var.main, evaluate_var.Settings, evaluate_var.__doc__)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: nothing holds nothing") and error.count("\n") == 1


def test_guidance_of_a_transformer_trained_without_class_dropout_is_refused(
    settings, var_without_class_drop, tmp_path
):
    s = dataclasses.replace(settings, var=var_without_class_drop, out_dir=tmp_path / "out")
    with pytest.raises(InputError, match="trained without class dropout"):
        evaluate_var.main(s)
    assert not s.out_dir.exists()
