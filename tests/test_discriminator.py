"""The patch discriminator: what a score sees, and that images do not mix."""

import pytest
import torch

from models.discriminator import PatchDiscriminator


@pytest.mark.parametrize(("side", "patches"), [(64, 6), (96, 10)])
def test_a_score_for_each_patch(side, patches):
    assert PatchDiscriminator(32)(torch.zeros(2, 3, side, side)).shape == (2, 1, patches, patches)


def test_an_image_is_scored_as_if_alone():
    """Batch normalisation would mix them, and processes would then differ."""
    torch.manual_seed(0)
    model, image_B3HW = PatchDiscriminator(32), torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(model(image_B3HW)[1:2], model(image_B3HW[1:2]), atol=1e-5, rtol=1e-4)
