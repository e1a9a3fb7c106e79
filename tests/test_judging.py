"""What the sweep and the evaluation share: pictures rebuilt, networks that judge read again, refusals."""

import weakref

import numpy as np
import pytest
import torch
from conftest import CLASSES

from usvar import judging
from usvar.errors import InputError


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
