"""How close a rebuilt image is to its original.

Images enter as floats in [-1, 1]; errors are stated on the grey range scaled to [0, 1], as is usual for
PSNR and SSIM, so that figures compare with other work.
"""

import torch
from torch import Tensor

METRICS = ("mse", "mae", "psnr_db", "ssim")


def image_errors(original_BCHW: Tensor, rebuilt_BCHW: Tensor) -> dict[str, Tensor]:
    """Errors of each image, over the mean of its channels.

    Args:
        original_BCHW: images in [-1, 1].
        rebuilt_BCHW: the same shape.

    Returns:
        "mse", "mae" on the [0, 1] range, "psnr_db" (100 dB at most, for equal images) and "ssim", each (B,).
    """
    real_B1HW = (original_BCHW.float().mean(1, keepdim=True) + 1) / 2
    fake_B1HW = (rebuilt_BCHW.float().mean(1, keepdim=True).clamp(-1, 1) + 1) / 2
    difference_B1HW = real_B1HW - fake_B1HW
    mse_B = difference_B1HW.square().mean((1, 2, 3))
    return {
        "mse": mse_B,
        "mae": difference_B1HW.abs().mean((1, 2, 3)),
        "psnr_db": -10 * mse_B.clamp(min=1e-10).log10(),
        "ssim": ssim(real_B1HW, fake_B1HW),
    }


def ssim(first_B1HW: Tensor, second_B1HW: Tensor) -> Tensor:
    """Structural similarity with the Gaussian window of its authors (sigma 1.5, 11 x 11).

    Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004,
    equation 13 with K1 = 0.01, K2 = 0.03. Computed here, on the device and in batch, because scikit-image
    (which it agrees with, see the tests) takes one image at a time on the CPU.

    Args:
        first_B1HW: grey images in [0, 1], at least 11 pixels per side.
        second_B1HW: the same shape.

    Returns:
        (B,) mean over all windows that lie inside the image.
    """
    window_hH, window_wW = (gaussian_windows(side, first_B1HW.device) for side in first_B1HW.shape[2:])

    def blur(x_B1HW: Tensor) -> Tensor:
        return window_hH @ x_B1HW @ window_wW.T

    mean_1, mean_2 = blur(first_B1HW), blur(second_B1HW)
    variance_1 = blur(first_B1HW**2) - mean_1**2
    variance_2 = blur(second_B1HW**2) - mean_2**2
    covariance = blur(first_B1HW * second_B1HW) - mean_1 * mean_2
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)) / (
        (mean_1**2 + mean_2**2 + c1) * (variance_1 + variance_2 + c2)
    )
    return similarity.mean((1, 2, 3))


def gaussian_windows(side: int, device: torch.device) -> Tensor:
    """The Gaussian window of SSIM at each place inside a line of pixels, to multiply images with.

    A convolution with one channel does the same sums, and its gradient takes six times as long on a CPU.

    Args:
        side: pixels of the line, at least 11.
        device: where the matrix is wanted.

    Returns:
        (side - 10, side), float32; each row sums to 1.
    """
    pixel = torch.arange(side, device=device, dtype=torch.float32)
    from_centre_hH = pixel - pixel[5:-5, None]
    weight_hH = torch.exp(-from_centre_hH.square() / (2 * 1.5**2)) * (from_centre_hH.abs() <= 5)
    return weight_hH / weight_hH.sum(1, keepdim=True)
