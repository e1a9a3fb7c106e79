"""Patch discriminator: says for each patch of an image whether it looks real.

Source: P. Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks" (2017), section
3.2.2, with group instead of batch normalisation, so that an image's score does not depend on the others in
its batch and several processes give the result of one.

Axes: B images, C channels, H W pixels, h w patches.
"""

import torch
from torch import Tensor, nn

from models.basic_vae import GROUPS, GroupNorm


class PatchDiscriminator(nn.Module):
    """Four-by-four convolutions, three of which halve the image; a score for each patch of 70 x 70 pixels.

    Args:
        ch: width of the first layer, a multiple of 32.
        in_channels: colours of the image.
    """

    def __init__(self, ch: int = 64, in_channels: int = 3):
        super().__init__()

        def layer(before: int, width: int, stride: int) -> list[nn.Module]:
            conv = nn.Conv2d(before, width, 4, stride, padding=1, bias=False)
            return [conv, GroupNorm(GROUPS, width), nn.LeakyReLU(0.2)]

        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, ch, 4, 2, padding=1),
            nn.LeakyReLU(0.2),
            *layer(ch, 2 * ch, 2),
            *layer(2 * ch, 4 * ch, 2),
            *layer(4 * ch, 8 * ch, 1),
            nn.Conv2d(8 * ch, 1, 4, 1, padding=1),
        )
        # Moving averages of the scores of real and of rebuilt images, for the LeCam term.
        self.register_buffer("mean_scores_2", torch.zeros(2))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Score images: (B, C, H, W) in [-1, 1] to (B, 1, h, w), high for real."""
        return self.layers(image_BCHW)
