"""Augmentation: the identity, what black means, and that parameters decide everything."""

import torch

from usvar.augment import MAX_ROTATION_DEGREES, augment, draw_parameters


def image(side: int = 32) -> torch.Tensor:
    return torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8


def test_neutral_parameters_change_nothing():
    neutral = torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 2)
    torch.testing.assert_close(augment(image(), neutral), image(), atol=1e-5, rtol=0)


def test_mirror_is_left_to_right():
    mirrored = augment(image(), torch.tensor([[-1.0, 0.0, 0.0, 0.0]] * 2))
    torch.testing.assert_close(mirrored, image().flip(3), atol=1e-5, rtol=0)


def test_rotation_turns_and_brings_no_black_corners():
    """Black wedges in the corners of rectangular scans would be learned as anatomy."""
    bright = torch.ones(1, 1, 32, 32) * 0.5
    turned = augment(bright, torch.tensor([[1.0, MAX_ROTATION_DEGREES * torch.pi / 180, 0.0, 0.0]]))
    torch.testing.assert_close(turned, bright)
    spot = torch.full((1, 1, 33, 33), -0.5)
    spot[0, 0, 16, 30] = 1.0
    turned = augment(spot, torch.tensor([[1.0, 0.17, 0.0, 0.0]]))
    assert turned[0, 0, 16, 30] < 0.5 and turned[0, 0, 12:22, 24:].max() > 0


def test_black_outside_the_scan_stays_black():
    scan = image()
    scan[:, :, :, :8] = -1
    lighter = augment(scan, torch.tensor([[1.0, 0.0, 0.1, 0.1]] * 2))
    assert (lighter[:, :, :, :8] == -1).all()
    assert (lighter[:, :, :, 8:] > scan[:, :, :, 8:]).float().mean() > 0.9


def test_drawn_parameters_stay_in_range_and_follow_the_generator():
    drawn = draw_parameters(1000, torch.Generator().manual_seed(3))
    assert set(drawn[:, 0].tolist()) == {-1.0, 1.0}
    assert drawn[:, 1].abs().max() <= MAX_ROTATION_DEGREES * torch.pi / 180
    assert drawn[:, 2:].abs().max() <= 0.1
    assert torch.equal(drawn, draw_parameters(1000, torch.Generator().manual_seed(3)))
