"""Editing: what is to be kept is kept, the rest is drawn for the class, and wrong input is one clear line."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import edit_var
from models import VAR, VQVAE
from usvar import checkpoints, cli, images
from usvar.chosen import Drawing
from usvar.errors import InputError
from usvar.files import lock_folder
from usvar.prefixed import refuse_prefixed
from usvar.provenance import sha256_file

BOX = (0, 0, 32, 32)
DRAWING = Drawing(cfg=1.5, top_k=0, top_p=0.0, temperature=1.0)


@pytest.fixture(scope="module")
def models(tiny_var, tiny_vqvae) -> tuple[VAR, VQVAE]:
    vqvae = checkpoints.load_vqvae(tiny_vqvae)
    return checkpoints.load_var(tiny_var, vqvae).model, vqvae.model


@pytest.fixture
def settings(tiny_data, tiny_var, tiny_vqvae, tmp_path) -> edit_var.Settings:
    return edit_var.Settings(
        var=tiny_var,
        vqvae=tiny_vqvae,
        image=tiny_data / "val" / "Heart" / "made__0.png",
        class_name="Heart",
        box=BOX,
        out_dir=tmp_path / "edits",
        variants=2,
        device="cpu",
    )


def region(size: int = 64, box: tuple[int, int, int, int] = BOX) -> np.ndarray:
    return edit_var.box_region(box, size)


def saved(path: Path, array: np.ndarray) -> Path:
    Image.fromarray(array).save(path)
    return path


def token_maps(patch_nums: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.arange(side * side)[None] for side in patch_nums]


def edited(settings: edit_var.Settings) -> np.ndarray:
    edit_var.main(settings)
    paths = (settings.out_dir / f"edit_{i}.png" for i in range(settings.variants))
    return np.stack([images.read_image(path) for path in paths])


def test_a_token_is_free_when_its_cell_overlaps_the_part():
    known = edit_var.known_tokens(token_maps((1, 2, 4)), region(), (1, 2, 4))
    maps = [(part < 0)[0].nonzero()[:, 0].tolist() for part in known.split([1, 4, 16], dim=1)]
    assert maps == [[0], [0], [0, 1, 4, 5]]
    one_more = edit_var.known_tokens(token_maps((4,)), region(box=(0, 0, 33, 32)), (4,))
    assert (one_more < 0)[0].nonzero()[:, 0].tolist() == [0, 1, 2, 4, 5, 6]


def test_a_cell_that_cuts_a_pixel_is_free_on_both_sides():
    """64 / 3 is no whole number: pixel 21 belongs to the first and to the second cell."""
    known = edit_var.known_tokens(token_maps((3,)), region(box=(21, 21, 22, 22)), (3,))
    assert (known < 0)[0].nonzero()[:, 0].tolist() == [0, 1, 3, 4]


def test_overlap_keeps_the_coarse_tokens():
    known = edit_var.known_tokens(token_maps((1, 2, 4)), region(), (1, 2, 4), overlap=0.5)
    assert [int((part < 0).sum()) for part in known.split([1, 4, 16], dim=1)] == [0, 1, 4]


def test_all_free_is_plain_generation(models):
    model, vae = models
    known = edit_var.known_tokens(token_maps((1, 2, 4)), np.ones((64, 64), bool), (1, 2, 4))
    assert (known == -1).all()
    found = edit_var.draw_variants(model, vae, known, 1, [5, 6], DRAWING)
    _, f_hat = model.generate_tokens(1, seeds=[5, 6], cfg=1.5)
    np.testing.assert_array_equal(found, images.to_uint8(vae.fhat_to_img(f_hat)))


def test_none_free_is_the_reconstruction(models, settings):
    model, vae = models
    image = images.to_model_range(images.read_image(settings.image)[None])
    known = edit_var.known_tokens(vae.img_to_idxBl(image), np.zeros((64, 64), bool), (1, 2, 4))
    found = edit_var.draw_variants(model, vae, known, 0, [1], DRAWING)
    rebuilt = images.to_uint8(vae.img_to_reconstructed_img(image, last_one=True))
    assert np.abs(found.astype(int) - rebuilt).max() <= 1  # rounding


def test_fading_starts_inside_the_part_and_ignores_the_border_of_the_image():
    weight = edit_var.fade(region(), 4)
    assert (weight[~region()] == 0).all()
    assert weight[0, 28:33].tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert weight[0, 0] == 1.0
    # A part narrower than the fade is not lost.
    assert edit_var.fade(region(box=(20, 20, 23, 60)), 8).max() == 1.0
    assert set(np.unique(edit_var.fade(region(), 0))) == {0.0, 1.0}


@pytest.mark.parametrize("outside", [False, True])
def test_the_part_to_keep_is_the_original_and_the_other_differs_by_seed(settings, outside):
    found = edited(dataclasses.replace(settings, outside=outside))
    change = ~region() if outside else region()
    original = images.read_image(settings.image)
    assert (found[:, ~change] == original[~change]).all()
    assert (found[0] != found[1])[change].mean() > 0.3
    content = json.loads((settings.out_dir / "edit.json").read_text())
    assert content["share_of_pixels_to_change"] == pytest.approx(0.75 if outside else 0.25)
    free = {"1x1": 1, "2x2": 3, "4x4": 12} if outside else {"1x1": 1, "2x2": 1, "4x4": 4}
    assert content["free_tokens_of_each_scale"] == free
    assert [row["kept_tokens"] for row in content["samples"]] == [21 - sum(free.values())] * 2
    assert all(row["prefixed"] for row in content["samples"])
    with Image.open(settings.out_dir / "edit_0.png") as picture:
        assert picture.info == {images.TOKENS_GIVEN: str(21 - sum(free.values()))}
    assert (settings.out_dir / "before_after.png").is_file()


def test_the_class_decides_what_is_drawn_and_the_same_command_draws_the_same(settings, tmp_path):
    first = edited(settings)
    np.testing.assert_array_equal(edited(dataclasses.replace(settings, out_dir=tmp_path / "again")), first)
    other = edited(dataclasses.replace(settings, class_name="Liver", out_dir=tmp_path / "other"))
    assert (other != first)[:, region()].mean() > 0.3


def test_drawn_as_the_sweep_chose(settings, tmp_path):
    chosen = {"cfg": 3.0, "top_k": 4, "top_p": 0.5, "temperature": 1.5}
    path = tmp_path / "chosen.json"
    path.write_text(json.dumps({"chosen": chosen, "var_sha256": sha256_file(settings.var)}), encoding="utf-8")
    by_flags = edited(dataclasses.replace(settings, **chosen, out_dir=tmp_path / "flags"))
    by_file = edited(dataclasses.replace(settings, settings_from=path, out_dir=tmp_path / "file"))
    np.testing.assert_array_equal(by_file, by_flags)
    assert (by_file != edited(settings)).any()


def test_a_mask_is_the_same_as_its_box_and_variants_do_not_depend_on_the_batch(settings, tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(region()).save(path)  # one bit per pixel
    by_mask = dataclasses.replace(
        settings, box=None, mask=path, out_dir=tmp_path / "by_mask", variants=3, batch_size=2
    )
    assert (edited(by_mask)[:2] == edited(settings)).all()


WHITE = np.where(region(), 255, 0).astype(np.uint8)
ALL_WHITE = np.full_like(WHITE, 255)


@pytest.mark.parametrize(
    "pixels",
    [
        np.where(region(), 65535, 500).astype(np.uint16),
        np.dstack([WHITE] * 3),
        np.dstack([ALL_WHITE] * 3 + [WHITE]),
        np.dstack([ALL_WHITE, WHITE]),
    ],
    ids=["16 bits", "RGB", "RGBA", "LA"],
)
def test_white_is_half_of_the_brightest_or_more_and_not_transparent(pixels, tmp_path):
    """Past fault: 500 of 65535 was white, and so was a transparent background."""
    assert (edit_var.mask_region(saved(tmp_path / "mask.png", pixels), 64) == region()).all()


def test_edits_of_an_earlier_run_do_not_stay(settings):
    edited(dataclasses.replace(settings, variants=4))
    edited(settings)
    assert [p.name for p in sorted(settings.out_dir.glob("edit_*.png"))] == ["edit_0.png", "edit_1.png"]


def test_a_picture_of_the_users_own_stays(settings):
    """Past fault: edit_0_annotated.png was deleted with the edits of the earlier run."""
    own = settings.out_dir / "edit_0_annotated.png"
    images.save_png(own, np.zeros((8, 8), np.uint8))
    edited(settings)
    assert own.is_file()


def test_a_stop_leaves_no_record_of_other_edits(settings, monkeypatch):
    """Past fault: edit.json of the run before stood beside the first pictures of the one that was stopped."""
    edited(settings)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "save_png", stop)
    with pytest.raises(KeyboardInterrupt):
        edit_var.main(dataclasses.replace(settings, class_name="Liver"))
    assert not (settings.out_dir / "edit.json").exists()


def test_a_folder_in_use_or_not_to_be_written_is_refused_before_the_work(settings, monkeypatch):
    def work(*_, **__):
        raise AssertionError("it began")

    monkeypatch.setattr(edit_var, "draw_variants", work)
    with lock_folder(settings.out_dir), pytest.raises(InputError, match="another run writes to"):
        edit_var.main(settings)
    with pytest.raises(InputError, match="cannot be written"):
        edit_var.main(dataclasses.replace(settings, out_dir=Path("/proc/none")))


def test_pasted_pixels_mark_the_picture_even_when_every_token_was_drawn(settings):
    """A box that touches every cell keeps no token, and still most of the picture is real."""
    found = edited(dataclasses.replace(settings, box=(8, 8, 56, 56)))
    content = json.loads((settings.out_dir / "edit.json").read_text())
    assert [row["kept_tokens"] for row in content["samples"]] == [0, 0]
    assert (found[:, :8] == images.read_image(settings.image)[:8]).all()
    (settings.out_dir / "copied" / "Heart").mkdir(parents=True)
    shutil.copy(settings.out_dir / "edit_0.png", settings.out_dir / "copied" / "Heart")
    (settings.out_dir / "edit.json").unlink()
    with pytest.raises(InputError, match="pictures that began with given tokens"):
        refuse_prefixed(settings.out_dir / "copied")


def test_without_pasting_everything_is_decoded(settings):
    found = edited(dataclasses.replace(settings, paste=False))
    assert (found != images.read_image(settings.image))[:, ~region()].mean() > 0.3


@pytest.mark.parametrize(("box", "is_given"), [((8, 8, 56, 56), False), (BOX, True)])
def test_picture_and_record_agree_on_what_was_given(settings, box, is_given):
    """Past fault: with nothing pasted and every token drawn, edit.json alone said that tokens were given."""
    edited(dataclasses.replace(settings, box=box, paste=False))
    for row in json.loads((settings.out_dir / "edit.json").read_text())["samples"]:
        with Image.open(settings.out_dir / row["file"]) as picture:
            assert (images.TOKENS_GIVEN in picture.info) == row["prefixed"] == is_given


def test_the_title_says_all_that_decides_how_tokens_are_drawn(settings, monkeypatch):
    """Past fault: top-k and temperature of --settings-from were left out."""
    titles = []
    monkeypatch.setattr(edit_var.plots, "image_grid", lambda *given: titles.append(given[-1]))
    edit_var.main(dataclasses.replace(settings, top_k=8, temperature=1.5))
    assert titles[0].endswith("as Heart\nguidance 1.5, top-k 8, top-p 0.95, temperature 1.5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": None}, "neither --box nor --mask"),
        ({"mask": Path("x.png")}, "both --box and --mask"),
        ({"box": (5, 5, 5, 9)}, "is empty"),
        ({"box": (-1, 5, 7, 9)}, "reaches outside"),
        ({"box": (0, 0, 65, 9)}, "reaches outside"),
        ({"box": (0, 0, 64, 64)}, "marks the whole image"),
        ({"class_name": "Lung"}, "known are Heart, Kidney, Liver"),
        ({"image": Path("missing.png")}, "is no file"),
        ({"variants": 0}, "wanted 1 or more"),
        ({"cfg": -1.0}, "--cfg -1 was given, wanted 0 or more"),
        ({"temperature": 1e-7}, "--temperature 1e-07 was given, wanted 0.000001 or more"),
        ({"temperature": float("nan")}, "--temperature nan was given"),
        ({"overlap": 1.0}, "--overlap 1.0 was given, wanted 0 to below 1"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(settings, change, message):
    with pytest.raises(InputError, match=message):
        edit_var.main(dataclasses.replace(settings, **change))
    assert not settings.out_dir.exists()


def test_guidance_of_a_transformer_trained_without_class_dropout_is_refused(settings, var_without_class_drop):
    s = dataclasses.replace(settings, var=var_without_class_drop)
    with pytest.raises(InputError, match="trained without class dropout"):
        edit_var.main(s)
    assert not s.out_dir.exists()
    edited(dataclasses.replace(s, cfg=0.0))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((64, 64), np.uint8), "marks nothing"),
        (np.full((64, 64), 255, np.uint8), "marks the whole image"),
        (np.zeros((32, 64), np.uint8), "64 x 32, the image is 64 x 64"),
        (region().astype(np.float32), "32 bits per pixel"),
        (region().astype(np.int32) * 65535, "32 bits per pixel"),
        (None, "cannot be read as a mask"),
    ],
)
def test_wrong_masks_are_refused(settings, tmp_path, mask, message):
    path = tmp_path / "mask.tif"  # also holds 32 bits
    path.write_bytes(b"no picture") if mask is None else saved(path, mask)
    with pytest.raises(InputError, match=message):
        edit_var.main(dataclasses.replace(settings, box=None, mask=path))


@pytest.mark.parametrize(
    ("picture", "message"),
    [(np.zeros((32, 32), np.uint8), "32 x 32, the models take 64 x 64"), (None, "cannot be read")],
)
def test_wrong_images_are_refused(settings, tmp_path, picture, message):
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG") if picture is None else saved(path, picture)
    with pytest.raises(InputError, match=message):
        edit_var.main(dataclasses.replace(settings, image=path))


def test_from_the_command_line_a_wrong_class_is_one_line_and_code_2(settings, monkeypatch, capsys):
    flags = {"var": settings.var, "vqvae": settings.vqvae, "image": settings.image, "class-name": "Lung"}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["edit_var.py", *words, "--box", "0", "0", "9", "9"])
    with pytest.raises(SystemExit) as stop:
        cli.run(edit_var.main, edit_var.Settings, edit_var.__doc__)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --class-name Lung") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cfg": "-1"}, "--cfg -1 was given, wanted 0 or more"),
        ({"cfg": "nan"}, "--cfg nan"),
        ({"temperature": "inf"}, "--temperature inf"),
        ({"top-p": "1.5"}, "--top-p 1.5 was given, wanted 0 to 1"),
        ({"var": "half"}, "half.pth is damaged"),
        ({"vqvae": "half"}, "half.pth is damaged"),
        ({"mask": "black"}, "marks nothing"),
        ({"mask": "small"}, "32 x 32, the image is 64 x 64"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(settings, tmp_path, change, message, monkeypatch, capsys):
    half = tmp_path / "half.pth"
    half.write_bytes(settings.var.read_bytes()[:20_000])
    made = {"half": half, "black": tmp_path / "black.png", "small": tmp_path / "small.png"}
    saved(made["black"], np.zeros((64, 64), np.uint8))
    saved(made["small"], np.full((32, 32), 255, np.uint8))
    flags = {"var": settings.var, "vqvae": settings.vqvae, "image": settings.image, "class-name": "Heart"}
    flags |= {"out-dir": tmp_path / "out", "device": "cpu"}
    flags |= {name: made.get(value, value) for name, value in change.items()}
    words = [f"--{name}={value}" for name, value in flags.items()]
    words += [] if "mask" in change else ["--box", "0", "0", "9", "9"]
    monkeypatch.setattr(sys, "argv", ["edit_var.py", *words])
    with pytest.raises(SystemExit) as stop:
        cli.run(edit_var.main, edit_var.Settings, edit_var.__doc__)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error, error
    assert not (tmp_path / "out").exists()
