"""sample_var.py: what is given and what is generated, own seeds, restart, the record, figures, refusals."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, PATCH_NUMS
from PIL import Image

import sample_var
from models.helpers import split_scales
from sample_var import Settings
from usvar import cli, images, tokens
from usvar.checkpoints import load_var, load_vqvae
from usvar.errors import InputError
from usvar.provenance import sha256_file
from usvar.tokens import read_token_maps, write_token_maps

BOUNDARIES = (0, 1, 5, 21)
FOLDERS = [f"scale_{scales}_K{K}" for scales, K in enumerate(BOUNDARIES)]
PER_CLASS, VARIETY = 3, 5
# Tokens are equal; a convolution sums in another order when the batch has another size.
ROUNDING = 1


@pytest.fixture(scope="module")
def files(tiny_var, tiny_vqvae, tiny_tokens) -> dict[str, Path]:
    return {"var": tiny_var, "vqvae": tiny_vqvae, "tokens_dir": tiny_tokens}


@pytest.fixture(scope="module")
def base(files, tmp_path_factory) -> Settings:
    """Settings of the one full sweep that most tests look at."""
    out = tmp_path_factory.mktemp("sweep") / "samples"
    numbers = {"images_per_class": PER_CLASS, "variety": VARIETY, "figure_rows": 2, "batch_size": 7}
    return Settings(**files, out_dir=out, **numbers, save_tokens=True, device="cpu")


@pytest.fixture(scope="module")
def sweep(base) -> dict:
    """samples.json of the full sweep."""
    sample_var.main(base)
    return json.loads((base.out_dir / "samples.json").read_text())


def idx_of(s: Settings, entry: dict) -> np.ndarray:
    return np.load((s.out_dir / entry["file"]).with_suffix(".npy"))


def val_with_listing(s: Settings, data_root: Path) -> tokens.TokenMaps:
    """Token maps of val that say which images they were made from, as tokenize_multiscale_maps.py writes."""
    val = read_token_maps(s.tokens_dir / "val")
    val.made_by["listing_sha256"] = images.listing_sha256(images.find_images(data_root, "val", CLASSES))
    return val


def chosen(listing: dict, **wanted) -> list[dict]:
    return [e for e in listing["samples"] if all(e[name] == value for name, value in wanted.items())]


def test_every_mode_class_and_boundary_has_its_pictures_and_its_record(base, sweep):
    found = sorted(path.relative_to(base.out_dir).as_posix() for path in base.out_dir.glob("*/*/*/*.png"))
    wanted = [f"{FOLDERS[0]}/plain/{name}/{i:05d}.png" for name in CLASSES for i in range(VARIETY)]
    wanted += [
        f"{folder}/{mode}/{name}/{i:05d}.png"
        for folder in FOLDERS[1:]
        for mode in ("tp", "nop")
        for name in CLASSES
        for i in range(PER_CLASS)
    ]
    assert found == sorted(wanted) == sorted(entry["file"] for entry in sweep["samples"])
    assert sweep["complete"] and sweep["boundaries"] == list(BOUNDARIES) and sweep["classes"] == list(CLASSES)
    assert set(sweep["made_by"]["inputs"]) == {"var", "vqvae", "train_tokens", "real_tokens"}
    assert sweep["made_by"]["settings"]["top_p"] == base.top_p
    for entry in sweep["samples"]:
        assert entry["K"] == BOUNDARIES[entry["scales"]]
        assert entry["generated_tokens"] == BOUNDARIES[-1] - entry["K"]
        assert CLASSES[entry["label"]] == entry["class_name"] == entry["file"].split("/")[2]
        with Image.open(base.out_dir / entry["file"]) as picture:
            assert picture.mode == "RGB" and picture.size == (64, 64)
            assert picture.info == ({images.TOKENS_GIVEN: str(entry["K"])} if entry["K"] else {})


def test_prefixed_pictures_are_marked_and_plain_ones_are_not(sweep):
    """The predecessor's prefixed samples could be taken for generated ones."""
    for entry in sweep["samples"]:
        assert entry["prefixed"] == (entry["mode"] != "plain") == (entry["K"] > 0)
        assert (entry["prefix_source"] is None) == (entry["mode"] == "plain")


def test_the_record_comes_before_the_first_picture(base, tmp_path, monkeypatch):
    """A run that is killed leaves no picture without its mark."""
    s = replace(base, out_dir=tmp_path / "out", prefix_tokens=(5,), modes=("tp",), classes=("Liver",))

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sample_var, "write_samples", stop)
    with pytest.raises(KeyboardInterrupt):
        sample_var.main(s)
    listing = json.loads((s.out_dir / "samples.json").read_text())
    assert not listing["complete"] and all(e["prefixed"] for e in listing["samples"])
    assert len(listing["samples"]) == PER_CLASS


def test_a_teacher_prefix_is_of_a_real_image_of_the_class_and_another_one_for_each_sample(base, sweep):
    """Fault of the predecessor: the first training image of a class was the prefix of all samples."""
    val = read_token_maps(base.tokens_dir / "val")
    for name in CLASSES:
        for K in BOUNDARIES[1:]:
            entries = chosen(sweep, mode="tp", class_name=name, K=K)
            sources = [entry["prefix_source"] for entry in entries]
            assert len(set(sources)) == PER_CLASS and all(path.startswith(f"val/{name}/") for path in sources)
            for entry in entries:
                row = val.path_N.tolist().index(entry["prefix_source"])
                assert row == entry["real_row"]
                np.testing.assert_array_equal(idx_of(base, entry)[:K], val.idx_NL[row, :K])
    order = {name: [e["prefix_source"][-5] for e in chosen(sweep, mode="tp", class_name=name, K=1)]
             for name in CLASSES}  # fmt: skip
    assert len({tuple(digits) for digits in order.values()}) > 1, (
        "the same pictures in every class: not drawn"
    )


def test_what_is_not_given_is_generated(base, sweep):
    """Fault of the predecessor: with the prefix given, all samples of a class were copies."""
    for mode in ("tp", "nop"):
        same = []
        for entry in chosen(sweep, mode=mode, K=5):
            real = read_token_maps(base.tokens_dir / "val").idx_NL[entry["real_row"], 5:]
            same.append(np.mean(idx_of(base, entry)[5:] == real))
        assert np.mean(same) < 0.5


def test_all_tokens_given_is_the_reconstruction_and_says_so(base, sweep):
    val, vae = read_token_maps(base.tokens_dir / "val"), load_vqvae(base.vqvae).model
    for entry in chosen(sweep, mode="tp", K=21):
        assert entry["generated_tokens"] == 0
        idx_BL = tokens.as_tensor(val.idx_NL, [entry["real_row"]])
        rebuilt = vae.idxBl_to_img(split_scales(idx_BL, PATCH_NUMS), same_shape=True, last_one=True)
        found = images.read_image(base.out_dir / entry["file"]).astype(int)
        assert np.abs(found - images.to_uint8(rebuilt)[0]).max() <= ROUNDING
    assert "reconstruction" in sweep["modes"]["tp"]


def test_a_prior_prefix_knows_only_the_frequencies_at_each_place(base, sweep):
    train = read_token_maps(base.tokens_dir / "train")
    maps_of = {
        name: [idx_of(base, e) for e in chosen(sweep, mode="nop", class_name=name)] for name in CLASSES
    }
    for label, name in enumerate(CLASSES):
        rows = tokens.rows_of_class(train, label)
        for entry in chosen(sweep, mode="nop", class_name=name):
            K, idx_L = entry["K"], idx_of(base, entry)
            assert all(idx_L[place] in train.idx_NL[rows, place] for place in range(K))
            wanted = tokens.draw_from_position_prior(train, [label], K, [entry["seed"]])
            np.testing.assert_array_equal(idx_L[:K], wanted[0])
    whole_images = {tuple(row) for row in train.idx_NL.tolist()}
    assert not any(tuple(idx_L.tolist()) in whole_images for found in maps_of.values() for idx_L in found)


def test_plain_samples_are_the_models_own_with_the_seeds_on_record(base, sweep):
    var = load_var(base.var, load_vqvae(base.vqvae)).model
    entries = chosen(sweep, mode="plain")
    idx_BL, _ = var.generate_tokens(
        [e["label"] for e in entries],
        seeds=[e["seed"] for e in entries],
        cfg=base.cfg,
        top_k=base.top_k,
        top_p=base.top_p,
    )
    np.testing.assert_array_equal(idx_BL.numpy(), [idx_of(base, e) for e in entries])


def test_a_row_keeps_its_seed_and_real_image_while_K_rises(sweep):
    for name in CLASSES:
        seeds = set()
        for index in range(PER_CLASS):
            row = chosen(sweep, class_name=name, index=index)
            assert len({entry["seed"] for entry in row}) == len({entry["real_row"] for entry in row}) == 1
            seeds.add(row[0]["seed"])
        assert len(seeds) == PER_CLASS


def test_an_image_depends_neither_on_the_batch_nor_on_how_many_nor_on_other_classes(base, sweep, tmp_path):
    """Fault of the published sampler: samples changed with the batch they were drawn in."""
    s = replace(
        base,
        out_dir=tmp_path / "out",
        batch_size=1,
        classes=("Liver",),
        prefix_tokens=(0, 5),
        images_per_class=2,
        variety=0,
    )
    sample_var.main(s)
    listing = json.loads((s.out_dir / "samples.json").read_text())
    assert len(listing["samples"]) == 2 * 3
    for entry in listing["samples"]:
        (before,) = chosen(sweep, file=entry["file"])
        assert entry == before
        np.testing.assert_array_equal(idx_of(s, entry), idx_of(base, before))
        pictures = [images.read_image(out / entry["file"]).astype(int) for out in (s.out_dir, base.out_dir)]
        assert np.abs(pictures[0] - pictures[1]).max() <= ROUNDING


def test_figures_have_K_rising_and_the_real_image_of_the_row_at_the_right(
    base, sweep, monkeypatch, tiny_data
):
    drawn = {}
    monkeypatch.setattr(sample_var.plots, "image_grid", lambda path, *rest: drawn.update({path.name: rest}))
    s = replace(base, data_root=tiny_data)
    samples = sample_var.plan(s, {split: read_token_maps(s.tokens_dir / split) for split in ("train", "val")})
    vae, val = load_vqvae(s.vqvae).model, val_with_listing(s, tiny_data)
    real, as_prepared = sample_var.real_images(s, vae, val, samples)
    assert as_prepared
    figures = sample_var.planned_figures(s, samples)
    assert all(figure.path.is_file() for figure in figures)
    sample_var.draw_figures(s, figures, real, as_prepared)
    wanted = {f"{kind}_{name}.png" for kind in ("tp", "nop", "variety") for name in CLASSES}
    assert set(drawn) == wanted | {"sweep_tp.png", "sweep_nop.png"}

    rows, row_names, column_names, title = drawn["tp_Kidney.png"]
    assert [name.split("\n")[0] for name in column_names] == [*(f"K = {K}" for K in BOUNDARIES), "real"]
    assert len(rows) == len(row_names) == 2 and "as prepared" in title
    for index, row in enumerate(rows):
        files = [f"{FOLDERS[0]}/plain/Kidney"] + [f"{folder}/tp/Kidney" for folder in FOLDERS[1:]]
        for picture, folder in zip(row[:-1], files, strict=True):
            np.testing.assert_array_equal(
                picture, images.read_image(base.out_dir / folder / f"{index:05d}.png")
            )
        (entry,) = chosen(sweep, mode="tp", class_name="Kidney", K=1, index=index)
        np.testing.assert_array_equal(row[-1], images.read_image(tiny_data / entry["prefix_source"]))
    assert drawn["sweep_nop.png"][1] == list(CLASSES)
    assert sum(len(row) for row in drawn["variety_Heart.png"][0]) == VARIETY

    # Without --data-root they come from where they were tokenised, as long as they are there.
    val.made_by["settings"] = {"data_root": str(tiny_data)}
    again, as_prepared = sample_var.real_images(base, vae, val, samples)
    assert as_prepared and all((again[row] == real[row]).all() for row in real)
    val.made_by["settings"]["data_root"] = "gone"
    decoded, as_prepared = sample_var.real_images(base, vae, val, samples)
    assert decoded.keys() == real.keys() and not as_prepared
    shown = [[entry] for entry in samples if entry.mode == "tp" and entry.K == 21 and entry.index < 2]
    sample_var.plot_sweep(base, base.out_dir / "tp_Kidney.png", shown, decoded, as_prepared, False)
    assert "decoded from its tokens" in drawn["tp_Kidney.png"][3]
    assert drawn["tp_Kidney.png"][2][-1] == "real, rebuilt\n(val)"


def test_images_of_another_preparation_are_not_shown_as_those_that_gave_the_prefix(
    base, tiny_data, tmp_path, capsys
):
    """Past fault: what lay at their paths today was shown "as prepared", here black pictures of 48 x 48."""
    samples = sample_var.plan(
        base, {split: read_token_maps(base.tokens_dir / split) for split in ("train", "val")}
    )
    vae, val = load_vqvae(base.vqvae).model, val_with_listing(base, tiny_data)
    root = shutil.copytree(tiny_data, tmp_path / "data")
    val.made_by["settings"] = {"data_root": str(root)}
    assert sample_var.real_images(base, vae, val, samples)[1] and not capsys.readouterr().out
    for path in root.glob("val/*/*.png"):
        images.save_png(path, np.zeros((48, 48), np.uint8))
    decoded, as_prepared = sample_var.real_images(base, vae, val, samples)
    assert not as_prepared and all(grey_HW.shape == (64, 64) for grey_HW in decoded.values())
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and f"were not found in {root}: the figures show them decoded" in printed
    with pytest.raises(InputError, match=r"holds other val images than .*npz was made from: give"):
        sample_var.real_images(replace(base, data_root=root), vae, val, samples)


def test_token_maps_that_do_not_say_where_their_images_lie_have_them_decoded(
    base, tiny_data, tmp_path, monkeypatch
):
    """Past fault: the missing folder became one of the name None, and was looked for here."""
    maps = {split: read_token_maps(base.tokens_dir / split) for split in ("train", "val")}
    samples, vae = sample_var.plan(base, maps), load_vqvae(base.vqvae).model
    shutil.copytree(tiny_data, tmp_path / "None")
    monkeypatch.chdir(tmp_path)
    listing = {"listing_sha256": val_with_listing(base, tiny_data).made_by["listing_sha256"]}
    for made_by in ({}, {"settings": {}}, {"settings": {"data_root": None}}):
        val = replace(maps["val"], made_by=made_by | listing)
        real, as_prepared = sample_var.real_images(base, vae, val, samples)
        assert len(real) == 2 * len(CLASSES) and not as_prepared
    plain = [replace(sample, real_row=None) for sample in samples]
    assert sample_var.real_images(base, vae, val, plain)[0] == {}


def test_plain_samples_need_no_real_image_of_the_class(base):
    """All classes were refused when val lacked one."""
    maps = {split: read_token_maps(base.tokens_dir / split) for split in ("train", "val")}
    without = maps["val"].label_N != CLASSES.index("Liver")
    names = ("idx_NL", "label_N", "path_N", "view_N")
    maps["val"] = replace(maps["val"], **{name: getattr(maps["val"], name)[without] for name in names})
    samples = sample_var.plan(replace(base, modes=("plain",)), maps)
    assert {sample.class_name for sample in samples} == set(CLASSES)
    assert all(sample.real_row is None for sample in samples)
    with pytest.raises(InputError, match="Liver"):
        sample_var.plan(replace(base, modes=("plain", "tp")), maps)


def test_the_same_command_makes_only_what_is_missing(base, sweep, capsys):
    stamps = {path: path.stat().st_mtime_ns for path in base.out_dir.rglob("*") if path.is_file()}
    sample_var.main(base)
    assert "nothing to do" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in base.out_dir.rglob("*") if p.is_file()} == stamps

    lost = base.out_dir / chosen(sweep, mode="nop", K=5)[1]["file"]
    figure, before = base.out_dir / "nop_Heart.png", images.read_image(lost).astype(int)
    lost.unlink()
    figure.unlink()
    sample_var.main(base)
    assert "1 new of" in capsys.readouterr().out
    assert figure.is_file() and np.abs(images.read_image(lost) - before).max() <= ROUNDING
    pictures = [path for path in stamps if path.parent.parent.parent.parent == base.out_dir]
    assert all(p.stat().st_mtime_ns == stamps[p] for p in pictures if p.with_suffix(".png") != lost)


def test_more_images_are_added_and_those_of_other_classes_stay_listed(base, tmp_path, capsys):
    s = replace(base, out_dir=tmp_path, classes=("Heart",), modes=("plain",), images_per_class=1, variety=0)
    sample_var.main(s)
    sample_var.main(replace(s, classes=("Liver",), images_per_class=2))
    assert "2 new of 2 images" in capsys.readouterr().out
    listing = json.loads((tmp_path / "samples.json").read_text())
    assert [(e["class_name"], e["index"]) for e in listing["samples"]] == [
        ("Heart", 0), ("Liver", 0), ("Liver", 1)
    ]  # fmt: skip


def test_chosen_settings_are_on_record_and_do_not_keep_a_run_from_going_on(base, tmp_path, capsys):
    """Past fault: samples.json did not say which chosen.json the settings were taken from."""
    path = tmp_path / "chosen.json"
    content = {"chosen": {"cfg": 2.0, "top_k": 8, "top_p": 0.9, "temperature": 1.0}}
    content["var_sha256"] = sha256_file(base.var)
    plain = {"modes": ("plain",), "classes": ("Heart",), "variety": 0}
    s = replace(base, out_dir=tmp_path / "out", settings_from=path, images_per_class=1, **plain)

    def recorded() -> dict:
        return json.loads((s.out_dir / "samples.json").read_text())

    path.write_text(json.dumps(content))
    sample_var.main(s)
    wanted = {"path": "chosen.json", "sha256": sha256_file(path)}
    assert recorded()["made_by"]["inputs"]["chosen_settings"] == wanted
    # A file of before, which lacks the role; then the same choice in other bytes.
    earlier = recorded()
    del earlier["made_by"]["inputs"]["chosen_settings"]
    (s.out_dir / "samples.json").write_text(json.dumps(earlier))
    sample_var.main(replace(s, images_per_class=2))
    path.write_text(json.dumps(content, indent=1))
    sample_var.main(replace(s, images_per_class=3))
    assert capsys.readouterr().out.count("1 new of") == 3
    # Other numbers are still refused.
    path.write_text(json.dumps(content | {"chosen": content["chosen"] | {"cfg": 3.0}}))
    with pytest.raises(InputError, match="was made with cfg = 2"):
        sample_var.main(replace(s, images_per_class=4))


def test_pictures_that_no_listing_tells_of_are_not_taken_for_those_of_these_settings(
    base, tmp_path, monkeypatch
):
    """Past fault: without samples.json they counted as made, and were listed with seeds that made others."""
    s = replace(base, out_dir=tmp_path, classes=("Heart",), modes=("plain",), images_per_class=2, variety=0)
    write_samples = sample_var.write_samples

    def stop(*rest):
        write_samples(*rest)
        raise KeyboardInterrupt

    # A run that was killed after its first picture still goes on.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sample_var, "write_samples", stop)
        sample_var.main(replace(s, batch_size=1))
    assert len(list(tmp_path.rglob("*.png"))) == 1
    sample_var.main(s)

    (tmp_path / "samples.json").unlink()
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    message = r"plain/Heart/00000\.png, but no samples\.json .* another --out-dir"
    with pytest.raises(InputError, match=message):
        sample_var.main(replace(s, seed=1))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == stamps
    # A run that makes others does not claim them either, neither now nor later.
    sample_var.main(replace(s, classes=("Liver",)))
    with pytest.raises(InputError, match=message):
        sample_var.main(s)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": (1.0, 0.5, 2.0)}, "guidance 1.5, top-k off, top-p 0.95, temperature 1 0.5 2"),
        ({"top_k": 8, "temperature": (0.9,)}, "guidance 1.5, top-k 8, top-p 0.95, temperature 0.9"),
        ({"greedy": True}, "guidance 1.5, greedy"),
        ({"greedy": True, "cfg": 0.0}, "guidance off, greedy"),
    ],
)
def test_titles_say_how_tokens_were_drawn(base, change, words):
    assert sample_var.drawing_words(replace(base, **change)) == words


@pytest.mark.parametrize(("classes", "subject"), [((), "All classes"), (("Heart", "Liver"), "Classes")])
def test_the_figure_of_several_classes_says_all_only_of_all(base, sweep, monkeypatch, classes, subject):
    """Past fault: its title said "All classes" also where --classes had named two."""
    titles = {}
    monkeypatch.setattr(sample_var.plots, "image_grid", lambda path, *rest: titles.update({path: rest[-1]}))
    s = replace(base, classes=classes)
    maps = {split: read_token_maps(s.tokens_dir / split) for split in ("train", "val")}
    samples = sample_var.plan(s, maps)
    real = {sample.real_row: np.zeros((64, 64), np.uint8) for sample in samples}
    sample_var.draw_figures(s, sample_var.planned_figures(s, samples), real, as_prepared=True)
    for mode in ("tp", "nop"):
        assert titles[s.out_dir / f"sweep_{mode}.png"].startswith(f"{subject}: ")
    assert titles[s.out_dir / "tp_Heart.png"].startswith("Heart: ")


@pytest.mark.parametrize("change", [{"seed": 1}, {"cfg": 3.0}, {"split": "test"}])
def test_other_settings_in_the_same_folder_are_refused(change, base, sweep):
    before = (base.out_dir / "samples.json").read_bytes()
    with pytest.raises(InputError, match=rf"was made with {next(iter(change))} = .* another --out-dir"):
        sample_var.main(replace(base, **change))
    assert (base.out_dir / "samples.json").read_bytes() == before


def test_greedy_and_published_smoothing_and_temperature_per_scale(base, tmp_path):
    plain = {"modes": ("plain",), "variety": 0, "classes": ("Kidney",)}
    found = {}
    for name, change in {
        "greedy": {"greedy": True},
        "drawn": {},
        "smooth": {"more_smooth": True},
        "cold": {"temperature": (1e-4, 1e-4, 1e-4)},
    }.items():
        s = replace(base, out_dir=tmp_path / name, **plain, **change)
        sample_var.main(s)
        listing = json.loads((s.out_dir / "samples.json").read_text())
        found[name] = np.array([idx_of(s, entry) for entry in listing["samples"]])
    assert (found["greedy"] == found["greedy"][0]).all() and not (found["drawn"] == found["drawn"][0]).all()
    np.testing.assert_array_equal(found["cold"], found["greedy"])
    first = f"{FOLDERS[0]}/plain/Kidney/00000.png"
    assert (tmp_path / "smooth" / first).read_bytes() != (tmp_path / "drawn" / first).read_bytes()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"prefix_tokens": (0, 4)}, "--prefix-tokens 4 was given, wanted some of 0 1 5 21"),
        ({"prefix_tokens": (30,)}, "--prefix-tokens 30 was given"),
        ({"modes": ("plain",), "prefix_tokens": (5,)}, "makes nothing"),
        ({"classes": ("Spleen",)}, "--classes Spleen was given, known are Heart, Kidney, Liver"),
        ({"data_root": Path("nowhere")}, "--data-root nowhere is no folder"),
        ({"top_p": 1.01}, "--top-p 1.01 was given, wanted 0 to 1"),
        ({"top_p": float("nan")}, "--top-p nan"),
        ({"top_k": -1}, "--top-k -1"),
        ({"cfg": -0.5}, "--cfg -0.5"),
        ({"temperature": (0.0,)}, "--temperature 0.0 was given, wanted 0.000001 or more"),
        ({"temperature": (1e-7,)}, "--temperature 1e-07 was given, wanted 0.000001 or more"),
        ({"temperature": (1.0, float("nan"), 1.0)}, "--temperature nan was given, wanted 0.000001 or more"),
        ({"temperature": (1.0, 1.0, float("inf"))}, "--temperature inf was given, wanted 0.000001 or more"),
        ({"temperature": (1.0, 1.0)}, "--temperature 1.0 1.0 was given, wanted one number, or 3, one per"),
        ({"greedy": True, "more_smooth": True}, "choose one"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"images_per_class": 0}, "--images-per-class 0"),
        ({"var": Path("nowhere.pth")}, "nowhere.pth is missing"),
        ({"tokens_dir": Path("nowhere")}, "tokens_multiscale_maps.npz is missing"),
        ({"data_root": Path(__file__).parent}, "holds other val images than"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(wrong, message, base, tmp_path):
    with pytest.raises(InputError, match=message):
        sample_var.main(replace(base, out_dir=tmp_path / "out", **wrong))
    assert not (tmp_path / "out").exists()


def copied_tokens(base: Settings, folder: Path, classes=CLASSES, **made_by) -> Path:
    """Token maps of train and val with other class names or another record."""
    for split in ("train", "val"):
        maps = read_token_maps(base.tokens_dir / split)
        arrays = (np.asarray(maps.idx_NL), maps.label_N, np.asarray(maps.path_N), maps.view_N)
        write_token_maps(folder / split, *arrays, PATCH_NUMS, classes, maps.made_by | made_by)
    return folder


def test_tokens_of_another_vqvae_are_refused(base, tmp_path):
    inputs = {"vqvae": {"path": "best.pth", "sha256": "0" * 64}}
    s = replace(
        base, tokens_dir=copied_tokens(base, tmp_path / "tokens", inputs=inputs), out_dir=tmp_path / "out"
    )
    with pytest.raises(
        InputError, match=r"made by a VQ-VAE with SHA-256 000000000000, .*tokenize_multiscale"
    ):
        sample_var.main(s)
    assert not s.out_dir.exists()


def test_a_transformer_that_learned_from_other_images_is_refused(base, tmp_path):
    """Prepared anew, its training images may be in val: a "real" prefix of val would be one of them."""
    content = torch.load(base.var, weights_only=True)
    content["made_by"]["train_listing_sha256"] = "a" * 64
    torch.save(content, tmp_path / "var.pth")
    s = replace(base, var=tmp_path / "var.pth", out_dir=tmp_path / "out", modes=("plain",), variety=0)
    other = copied_tokens(base, tmp_path / "other", listing_sha256="b" * 64)
    with pytest.raises(InputError, match=r"var\.pth was trained on other images than .*npz was made from"):
        sample_var.main(replace(s, tokens_dir=other))
    assert not s.out_dir.exists()
    same = copied_tokens(base, tmp_path / "same", listing_sha256="a" * 64)
    sample_var.main(replace(s, tokens_dir=same, prefix_tokens=(0,)))
    assert (s.out_dir / FOLDERS[0] / "plain").is_dir()


def test_guidance_of_a_transformer_trained_without_class_dropout_is_refused(
    base, var_without_class_drop, tmp_path
):
    """Past fault: the default --cfg 1.5 subtracted what a "no class" that was never learned says."""
    s = replace(base, var=var_without_class_drop, out_dir=tmp_path / "out", modes=("plain",), variety=0)
    with pytest.raises(InputError, match=r"--cfg is 1\.5, but .* \(--class-drop 0\), .*: give --cfg 0"):
        sample_var.main(s)
    assert not s.out_dir.exists()
    sample_var.main(replace(s, cfg=0.0, images_per_class=1, prefix_tokens=(0,)))
    assert (s.out_dir / FOLDERS[0] / "plain").is_dir()


@pytest.mark.parametrize("classes", [("Kidney", "Heart", "Liver"), ("Heart", "Kidney", "Liver", "Spleen")])
def test_classes_in_another_order_or_number_are_refused(classes, base, tmp_path):
    """Labels are numbers: an order that differs would give each class another name, silently."""
    s = replace(base, tokens_dir=copied_tokens(base, tmp_path / "tokens", classes), out_dir=tmp_path / "out")
    with pytest.raises(InputError, match=r"was trained with Heart, Kidney, Liver: give the token maps"):
        sample_var.main(s)
    assert not s.out_dir.exists()


def test_a_class_without_images_in_the_split_is_refused(base, tmp_path):
    folder = copied_tokens(base, tmp_path / "tokens")
    val = read_token_maps(folder / "val")
    kept = val.label_N != 1
    arrays = [np.array(array[kept]) for array in (val.idx_NL, val.label_N, val.path_N, val.view_N)]
    write_token_maps(folder / "val", *arrays, PATCH_NUMS, CLASSES, val.made_by)
    with pytest.raises(InputError, match="no image of class Kidney: choose another split"):
        sample_var.main(replace(base, tokens_dir=folder, out_dir=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_published_transformer_without_class_names_takes_those_of_the_tokens(base, tmp_path):
    state = torch.load(base.var, weights_only=True)["model"]
    torch.save(state, tmp_path / "bare.pth")
    s = replace(base, var=tmp_path / "bare.pth", out_dir=tmp_path / "out", modes=("plain",), variety=0)
    sample_var.main(s)
    assert {path.name for path in (s.out_dir / FOLDERS[0] / "plain").iterdir()} == set(CLASSES)


def test_the_command_line(files, tmp_path):
    """Flags reach the settings; a misspelt mode is one line and exit code 2."""
    flags = [f"--{name.replace('_', '-')}={path}" for name, path in files.items()]
    flags += ["--out-dir", tmp_path / "out", "--device", "cpu", "--classes", "Heart", "--variety", "0"]
    command = [sys.executable, sample_var.__file__, *flags, "--images-per-class", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*/*/Heart/00000.png"))) == 1 + 2 * len(PATCH_NUMS)
    done = subprocess.run([*command, "--modes", "tpp"], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


# --- decoding, the prior's mode ---


def test_ways_to_decode_give_the_same_grey_levels_and_tokens(base, sweep, tmp_path):
    """In chunks, channels first or last: rounding. In bfloat16: close, with the very same tokens."""
    plain = {"modes": ("plain",), "variety": 0, "classes": ("Kidney",)}
    for name, change, allowed in [
        ("chunk", {"decode_chunk": 2}, ROUNDING),
        ("last", {"channels_last": "on"}, ROUNDING),
        ("first", {"channels_last": "off", "decode_chunk": 3}, ROUNDING),
        ("bf16", {"decode_precision": "bfloat16"}, 40),
    ]:
        s = replace(base, out_dir=tmp_path / name, **plain, **change)
        sample_var.main(s)
        difference = 0
        for entry in json.loads((s.out_dir / "samples.json").read_text())["samples"]:
            np.testing.assert_array_equal(idx_of(s, entry), idx_of(base, entry))
            pictures = [
                images.read_image(out / entry["file"]).astype(int) for out in (s.out_dir, base.out_dir)
            ]
            difference = max(difference, np.abs(pictures[0] - pictures[1]).max())
        assert difference <= allowed, name
        assert name != "bf16" or difference > ROUNDING, "the setting does nothing"


def test_decoding_settings_reach_the_decoder(base, monkeypatch):
    given = []
    vae = load_vqvae(base.vqvae).model
    whole = vae.fhat_to_img
    monkeypatch.setattr(vae, "fhat_to_img", lambda f, *rest: given.append(rest) or whole(f, *rest))
    f_hat = torch.zeros(1, 8, 4, 4)
    for change in ({}, {"decode_chunk": 3, "channels_last": "off"}, {"channels_last": "on"}):
        sample_var.decode_maps(replace(base, **change), vae, f_hat)
    assert given == [(None, None), (3, False), (None, True)]


def test_the_blocks_are_compiled_only_when_asked(base, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(sample_var.VAR, "compile_blocks", lambda self: asked.append(1))
    s = replace(base, modes=("plain",), variety=0, classes=("Kidney",), images_per_class=1)
    sample_var.main(replace(s, out_dir=tmp_path / "no"))
    assert not asked
    sample_var.main(replace(s, out_dir=tmp_path / "yes", compile=True))
    assert asked


def test_the_priors_mode_is_the_most_frequent_token_at_each_place(base, tmp_path):
    s = replace(base, out_dir=tmp_path, modes=("nop",), prefix_tokens=(5,), nop_prefix="mode")
    sample_var.main(s)
    train = read_token_maps(base.tokens_dir / "train")
    listing = json.loads((tmp_path / "samples.json").read_text())
    for label, name in enumerate(CLASSES):
        entries = chosen(listing, class_name=name)
        rows = np.asarray(train.idx_NL[tokens.rows_of_class(train, label)]).astype(int)
        for entry in entries:
            assert (
                entry["prefix_source"] == "most frequent tokens in the training split" and entry["prefixed"]
            )
            for place, token in enumerate(idx_of(s, entry)[:5]):
                values, counts = np.unique(rows[:, place], return_counts=True)
                assert token == values[counts.argmax()]
        rest = {tuple(idx_of(s, entry)[5:]) for entry in entries}
        assert len(entries) == len(rest) == PER_CLASS, "what is not given still differs by seed"


# --- wrong input, as a user meets it ---


@pytest.mark.parametrize(
    "wrong",
    [
        *("half", "tokens", "labels", "class", "K", "guidance", "top-p", "cfg nan"),
        *("split", "precision", "decode", "chunk", "layout"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(wrong, base, tmp_path, monkeypatch, capsys):
    flags = {"var": base.var, "vqvae": base.vqvae, "tokens-dir": base.tokens_dir, "out-dir": tmp_path / "out"}
    wanted = {
        "half": "ar-ckpt-best.pth is damaged",
        "tokens": "the codebook has 32 codes",
        "labels": "was trained with Heart, Kidney, Liver",
        "class": "known are Heart, Kidney, Liver",
        "K": "wanted some of 0 1 5 21",
        "guidance": "--cfg -1 was given",
        "top-p": "--top-p 1.5 was given",
        "cfg nan": "--cfg nan was given",
        "split": "invalid choice 'vall' for argument '--split'",
        "precision": "invalid choice 'half' for argument '--precision'",
        "decode": "invalid choice 'half' for argument '--decode-precision'",
        "chunk": "--decode-chunk -1 was given",
        "layout": "--channels-last",
    }[wrong]
    if wrong == "half":
        flags["var"] = tmp_path / "ar-ckpt-best.pth"
        flags["var"].write_bytes(base.var.read_bytes()[: base.var.stat().st_size // 2])
    elif wrong == "tokens":
        flags["tokens-dir"] = copied_tokens(base, tmp_path / "tokens")
        val = read_token_maps(tmp_path / "tokens" / "val")
        idx_NL = np.array(val.idx_NL)
        idx_NL[0, 3] = 32
        arrays = (idx_NL, val.label_N, np.array(val.path_N), val.view_N)
        write_token_maps(tmp_path / "tokens" / "val", *arrays, PATCH_NUMS, CLASSES, val.made_by)
    elif wrong == "labels":
        flags["tokens-dir"] = copied_tokens(base, tmp_path / "tokens", ("Ovary", "Kidney", "Liver"))
    else:
        flags |= {
            "class": {"classes": "Spleen"},
            "K": {"prefix-tokens": 22},
            "guidance": {"cfg": -1},
            "top-p": {"top-p": 1.5},
            "cfg nan": {"cfg": "nan"},
            "split": {"split": "vall"},
            "precision": {"precision": "half"},
            "decode": {"decode-precision": "half"},
            "chunk": {"decode-chunk": -1},
            "layout": {"channels-last": "maybe"},
        }[wrong]
    words = [f"--{name}={value}" for name, value in flags.items()]
    monkeypatch.setattr(sys, "argv", ["sample_var.py", *words, "--device=cpu"])
    with pytest.raises(SystemExit) as stop:
        cli.run(sample_var.main, Settings, sample_var.__doc__)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and wanted in error, error
    assert not (tmp_path / "out").exists()
