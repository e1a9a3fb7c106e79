"""What the sweep and the evaluation share: pictures rebuilt, networks that judge read again, refusals."""

import dataclasses
import weakref

import numpy as np
import pytest
import torch
from conftest import CLASSES

import evaluate_var
from usvar import checkpoints, judging
from usvar.errors import InputError
from usvar.evaluation import ImageSet
from usvar.extractor import EXTRACTOR_SHAPE, SmallNet


def test_rebuilt_pictures_do_not_gather_on_the_device_as_floats(monkeypatch):
    """Past fault: all float batches were kept until the last was there, 8 GB for 10,000 pictures."""
    vae, made, alive = torch.nn.Linear(1, 1), [], []

    def rebuilt(image_B3HW: torch.Tensor, last_one: bool) -> torch.Tensor:
        alive.append(sum(reference() is not None for reference in made))
        rebuilt_B3HW = image_B3HW.clone()
        made.append(weakref.ref(rebuilt_B3HW))
        return rebuilt_B3HW

    monkeypatch.setattr(vae, "img_to_reconstructed_img", rebuilt, raising=False)
    grey_NHW = np.random.default_rng(0).integers(0, 256, (7, 4, 4), dtype=np.uint8)
    np.testing.assert_array_equal(judging.rebuild(vae, grey_NHW, 2), grey_NHW)
    assert len(alive) == 4 and max(alive) <= 1


def test_images_of_another_size_are_refused_in_the_name_of_who_wants_it(tiny_data, tmp_path):
    """Past fault: always "the VQ-VAE", even where images of another generator were judged without one."""
    with pytest.raises(InputError, match="64 x 64 pixels, the evaluation wants 32 x 32: prepare all splits"):
        judging.read_split(tiny_data, "val", CLASSES, 32, tmp_path)
    with pytest.raises(InputError, match=r"64 x 64 pixels, best\.pth wants 32 x 32: prepare all splits"):
        judging.read_split(tiny_data, "val", CLASSES, 32, tmp_path, wanted_by="best.pth")


def test_how_judges_were_trained_is_read_from_the_keys_of_their_file(tmp_path):
    """A judges.pth that exists has these keys: they stay whatever the settings are called."""
    config = {"kind": "judges", "pixels": 32, "steps": 4, "classifier_steps": 3, "seed": 7}
    checkpoints.save_checkpoint(tmp_path / "judges.pth", {"config": config, "classifiers": [{}, {}, {}]})
    wanted = judging.JudgeTraining(
        extractor_pixels=32, extractor_steps=4, classifier_steps=3, classifier_seeds=3, seed=7
    )
    assert judging.JudgeTraining.in_file(tmp_path / "judges.pth") == wanted
    assert judging.Judges({}, [None] * 3, config).training == wanted
    settings = evaluate_var.Settings(data_root=tmp_path, seed=1)
    theirs = judging.with_their_training(settings, tmp_path / "judges.pth")
    assert judging.JudgeTraining.of(theirs) == dataclasses.replace(wanted, seed=1)
    assert judging.with_their_training(settings, None) is settings


def test_a_network_from_outside_leaves_the_judges_as_they_were():
    """Past fault: it was written into the frozen judges, whose config is what their file says."""
    grey_NHW = np.random.default_rng(0).integers(0, 256, (9, 32, 32), dtype=np.uint8)
    train = ImageSet(grey_NHW, np.zeros(9, int))
    before = judging.Judges({}, [], {"seed": 0, "sha256": {"US": "a"}, "dims": {"US": 4}})
    after = judging.with_outside(
        before, "Outside", SmallNet(EXTRACTOR_SHAPE, 2), 32, train, torch.device("cpu")
    )
    assert before.extractors == {} and before.config["sha256"] == {"US": "a"}
    assert set(after.extractors) == {"Outside"}
    assert after.config["dims"] == {"US": 4, "Outside": 8}
    assert after.config["sha256"] == {"US": "a", "Outside": after.extractors["Outside"].sha256()}
