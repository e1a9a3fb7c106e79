"""Errors of rebuilt images against scikit-image and known answers."""

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from usvar.metrics import image_errors


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(3, 1, 40, 48, generator=generator).expand(-1, 3, -1, -1) * 2 - 1
    noise = torch.randn(3, 1, 40, 48, generator=generator).expand(-1, 3, -1, -1) * 0.2
    return first, (first + noise).clamp(-1, 1)


def test_psnr_and_ssim_agree_with_scikit_image():
    first, second = pair()
    errors = image_errors(first, second)
    for i in range(3):
        a, b = ((x[i, 0].numpy().astype(np.float64) + 1) / 2 for x in (first, second))
        assert abs(errors["psnr_db"][i].item() - peak_signal_noise_ratio(a, b, data_range=1)) < 1e-3
        _, full = structural_similarity(
            a, b, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
        )
        # Ours averages the windows that lie inside the image.
        assert abs(errors["ssim"][i].item() - full[5:-5, 5:-5].mean()) < 1e-4


def test_known_answers():
    black, white = torch.full((1, 3, 16, 16), -1.0), torch.ones(1, 3, 16, 16)
    errors = image_errors(black, white)
    assert errors["mse"].item() == 1 and errors["mae"].item() == 1 and abs(errors["psnr_db"].item()) < 1e-6
    errors = image_errors(white, white)
    assert errors["mse"].item() == 0 and abs(errors["psnr_db"].item() - 100) < 1e-3
    assert abs(errors["ssim"].item() - 1) < 1e-6


def test_values_beyond_the_range_are_clipped_as_on_disk():
    white = torch.ones(1, 3, 16, 16)
    assert image_errors(white, white * 1.5)["mse"].item() == 0
