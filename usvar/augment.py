"""Augmentation of training images, in batches on the device: mirror, small rotation, brightness, contrast.

Rotation by up to 10 degrees, brightness and contrast by up to 0.1. Every image's parameters are drawn on
the CPU for the whole global batch, so the same step gives the same images on any device and for any number
of processes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ROTATION_DEGREES = 10.0
MAX_BRIGHTNESS = 0.1
MAX_CONTRAST = 0.1


def draw_parameters(batch: int, generator: torch.Generator) -> Tensor:
    """Augmentation parameters for a batch.

    Args:
        batch: number of images B.
        generator: a CPU generator.

    Returns:
        (B, 4) float32: mirror (-1 or 1), rotation in radians, brightness shift and contrast change as
        shares of the grey range.
    """
    uniform_B4 = torch.rand(batch, 4, generator=generator) * 2 - 1
    mirror_B = torch.where(uniform_B4[:, 0] < 0, -1.0, 1.0)
    rotation_B = uniform_B4[:, 1] * torch.pi * MAX_ROTATION_DEGREES / 180
    return torch.stack(
        [mirror_B, rotation_B, uniform_B4[:, 2] * MAX_BRIGHTNESS, uniform_B4[:, 3] * MAX_CONTRAST], dim=1
    )


def augment(image_BCHW: Tensor, parameters_B4: Tensor) -> Tensor:
    """Apply `draw_parameters` to images.

    Pixels that a rotation brings in from outside are mirrored at the border: black corners in a rectangular
    scan would be learned as anatomy. Exact black stays black under brightness and contrast, because it
    marks the outside of the scan area.

    Args:
        image_BCHW: float images in [-1, 1].
        parameters_B4: from `draw_parameters`, any device.

    Returns:
        (B, C, H, W) in [-1, 1].
    """
    mirror_B, rotation_B, brightness_B, contrast_B = parameters_B4.to(image_BCHW, non_blocking=True).unbind(1)
    cos_B, sin_B, zero_B = rotation_B.cos(), rotation_B.sin(), torch.zeros_like(rotation_B)
    affine_B23 = torch.stack(
        [mirror_B * cos_B, -mirror_B * sin_B, zero_B, sin_B, cos_B, zero_B], dim=1
    ).unflatten(1, (2, 3))
    grid_BHW2 = F.affine_grid(affine_B23, list(image_BCHW.shape), align_corners=False)
    turned_BCHW = F.grid_sample(image_BCHW, grid_BHW2, padding_mode="reflection", align_corners=False)
    light_BCHW = turned_BCHW * (1 + contrast_B[:, None, None, None]) + 2 * brightness_B[:, None, None, None]
    outside_BCHW = turned_BCHW <= -1 + 1 / 255
    return torch.where(outside_BCHW, turned_BCHW, light_BCHW).clamp(-1, 1)
