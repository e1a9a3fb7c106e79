"""Pictures that began with given tokens are never scored, nor those of one transformer as another's."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from usvar import images
from usvar.chosen import Drawing
from usvar.errors import InputError
from usvar.prefixed import refuse_prefixed, require_drawn_by


def listed(folder: Path, prefixed: bool, file: str) -> None:
    entry = {"file": file, "prefixed": prefixed, "K": 5 if prefixed else 0}
    listing = {"made_by": {"script": "sample_var.py"}, "samples": [entry]}
    (folder / "samples.json").write_text(json.dumps(listing), encoding="utf-8")


def save_black(path: Path, **tokens_given: int) -> None:
    images.save_png(path, np.zeros((64, 64), np.uint8), **tokens_given)


def test_a_folder_of_a_boundary_above_0_is_refused_by_its_name(tmp_path):
    for name in ("scale_2_K5/tp", "scale_0_K0/plain"):
        save_black(tmp_path / name / "Heart" / "0.png")
    with pytest.raises(InputError, match=r"given tokens \(scale_2_K5\)"):
        refuse_prefixed(tmp_path / "scale_2_K5" / "tp")
    refuse_prefixed(tmp_path / "scale_0_K0" / "plain")


def test_a_renamed_folder_is_known_by_the_listing_above_it(tmp_path):
    for name in ("mine/tp", "scale_0_K0/plain"):
        save_black(tmp_path / name / "Heart" / "0.png")
    listed(tmp_path, True, "mine/tp/Heart/0.png")
    with pytest.raises(InputError, match=r"given tokens \(mine/tp/Heart/0\.png\)"):
        refuse_prefixed(tmp_path / "mine" / "tp")
    refuse_prefixed(tmp_path / "scale_0_K0" / "plain")


@pytest.mark.parametrize(
    "text", ['{"made_by": {"script": "sample_var.py"}}', '{"made_by": {"script": "sample_var.py"']
)
def test_a_broken_listing_is_refused(tmp_path, text):
    save_black(tmp_path / "a" / "Heart" / "0.png")
    refuse_prefixed(tmp_path / "a")
    (tmp_path / "samples.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="does not say which"):
        refuse_prefixed(tmp_path / "a")


def test_a_copied_image_still_says_that_it_began_with_given_tokens(tmp_path):
    """Neither listing nor folder name goes with `cp -r samples/scale_2_K5/tp elsewhere`."""
    save_black(tmp_path / "a" / "Heart" / "0.png")
    refuse_prefixed(tmp_path / "a")
    save_black(tmp_path / "a" / "Heart" / "1.png", tokens_given=5)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(InputError, match=r"--generated b .* given tokens \(Heart/1\.png\)"):
        refuse_prefixed(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "text"), [("samples.json", "[1, 2]"), ("edit.json", '{"made_by": {"script": "gan.py"}}')]
)
def test_a_listing_of_another_generator_is_none_of_ours(tmp_path, name, text):
    save_black(tmp_path / "a" / "gan" / "Heart" / "0.png")
    (tmp_path / name).write_text(text, encoding="utf-8")
    refuse_prefixed(tmp_path / "a" / "gan")


def test_samples_of_another_transformer_or_other_settings_are_not_taken_for_those_of_var(tmp_path):
    """Past fault: the sweep and the likelihood of --var were shown as if it had drawn the images."""
    folder = tmp_path / "scale_0_K0" / "plain"
    save_black(folder / "Heart" / "0.png")
    drawing = Drawing(cfg=1.5, top_k=0, top_p=0.95, temperature=1.0)
    assert not require_drawn_by(folder, "a" * 64, drawing)
    listing = {
        "made_by": {
            "script": "sample_var.py",
            "settings": vars(drawing) | {"temperature": [1.0]},
            "inputs": {"var": {"sha256": "a" * 64}},
        },
        "samples": [{"file": "scale_0_K0/plain/Heart/0.png", "prefixed": False}],
    }
    (tmp_path / "samples.json").write_text(json.dumps(listing), encoding="utf-8")
    assert require_drawn_by(folder, "a" * 64, drawing) and require_drawn_by(folder, "a" * 64, None)
    with pytest.raises(InputError, match=r"by a transformer with SHA-256 aaaaaaaaaaaa, --var .* bbbb"):
        require_drawn_by(folder, "b" * 64, None)
    with pytest.raises(InputError, match=r"drawn with cfg 1\.5, --settings-from says 3\.0"):
        require_drawn_by(folder, "a" * 64, dataclasses.replace(drawing, cfg=3.0))
    # Pictures of another folder are none of these.
    save_black(tmp_path / "gan" / "Heart" / "0.png")
    assert not require_drawn_by(tmp_path / "gan", "b" * 64, None)
