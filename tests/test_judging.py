"""What the sweep and the evaluation share: pictures rebuilt, networks that judge read again, refusals."""

import weakref

import numpy as np
import torch

from usvar import judging


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
