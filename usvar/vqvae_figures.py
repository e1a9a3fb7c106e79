"""Figures of train_vqvae.py: drawn at each validation, from log.jsonl and the averaged weights.

Axes: N images, B of a batch, H W pixels, C channels, S scales, V codes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from models import VQVAE
from usvar import images, plots, runs


def draw_curves(folder: Path, patch_nums: Sequence[int], further_losses: Sequence[str]) -> None:
    """Losses, quality, and use of the codebook over the steps, from log.jsonl.

    Args:
        folder: of the run.
        patch_nums: tokens per side of each scale.
        further_losses: names of the losses beside SSE and VQ that have a weight.
    """
    rows = runs.read_log(folder / "log.jsonl")

    def series(name: str) -> tuple[list[float], list[float]]:
        chosen = [row for row in rows if row.get(name) is not None]
        return [row["step"] for row in chosen], [row[name] for row in chosen]

    titles = {
        "sse": "sum of squared errors per image",
        "vq": "VQ loss, weighted, per image",
        "l1": "L1, weighted, per image",
        "dissimilarity": "1 - SSIM, weighted, per image",
        "perceptual": "perceptual loss, weighted, per image",
        "total": "total" if further_losses else "total = SSE + VQ",
    }
    labels = {"sse": "SSE", "vq": "VQ", "l1": "L1", "dissimilarity": "1 - SSIM"}
    shown = ("sse", "vq", *further_losses, "total")
    panels = {
        titles[name]: {
            f"{split} {labels.get(name, name)}": series(f"{split}_{name}") for split in ("train", "val")
        }
        for name in shown
    }
    positive = list(panels)
    if series("train_adversarial")[0]:
        panels["adversarial loss, weighted, per image"] = {"train adversarial": series("train_adversarial")}
        panels["discriminator: hinge loss (1: cannot tell) + weighted LeCam"] = {
            "train discriminator": series("discriminator_loss")
        }
    plots.curves(folder / "loss_curves.png", panels, log_panels=positive, title="VQ-VAE: losses")
    plots.curves(
        folder / "quality_curves.png",
        {
            "PSNR on val, dB": {"val PSNR": series("val_psnr_db")},
            "SSIM on val": {"val SSIM": series("val_ssim")},
            "share of the codebook in use on val": {"val use": series("val_usage_all")},
        },
        title="VQ-VAE: quality on the validation split (averaged weights)",
    )
    evaluated = [row for row in rows if "val_usage" in row]
    if evaluated:
        sides = [f"{side} x {side}" for side in patch_nums]
        steps = [str(row["step"]) for row in evaluated]
        for name, title, unit, colours in (
            (
                "usage",
                "Codes in use on val, of those that the scale's tokens could use",
                "share",
                {"limits": (0, 1)},
            ),
            (
                "perplexity",
                "Perplexity of the codes on val: as varied as so many equally frequent",
                "codes",
                {"log": True},
            ),
        ):
            plots.heat_map(
                folder / f"codebook_{name}.png",
                np.array([row[f"val_{name}"] for row in evaluated]).T,
                sides,
                steps,
                title,
                "optimiser step",
                "scale",
                unit,
                **colours,
            )


def draw_codebook(folder: Path, model: VQVAE, hits_SV: Tensor) -> None:
    """How often each code was used on val, and where the code vectors lie."""
    codes_VC = model.quantize.embedding.weight.detach().float().cpu().numpy()
    projection = PCA(min(2, *codes_VC.shape)).fit(codes_VC)
    codes_V2 = np.zeros((len(codes_VC), 2))
    codes_V2[:, : projection.n_components_] = projection.transform(codes_VC)
    plots.codebook(
        folder / "codebook_vectors.png",
        hits_SV.sum(0).long().cpu().numpy(),
        codes_V2,
        float(projection.explained_variance_ratio_.sum()),
        "VQ-VAE: use of the codes on val, all scales together",
    )


@torch.no_grad()
def draw_reconstructions(
    folder: Path, step: int, model: VQVAE, pixels_NHW: np.ndarray, label_N: np.ndarray, names: Sequence[str]
) -> None:
    """One validation image of each class, what became of it after `step` steps, and where it differs."""
    device = next(model.parameters()).device
    rows, row_names = [], []
    for label in np.unique(label_N):
        grey_HW = np.asarray(pixels_NHW[np.flatnonzero(label_N == label)[0]])
        rebuilt_B3HW, _, _ = model(images.to_model_range(grey_HW[None], device))
        rebuilt_HW = images.to_uint8(rebuilt_B3HW)[0]
        error_HW = np.abs(grey_HW.astype(np.int16) - rebuilt_HW).astype(np.uint8)
        rows.append([grey_HW, rebuilt_HW, error_HW])
        row_names.append(names[label])
    figure = folder / "reconstructions.png"
    columns = ["original", "rebuilt", "error (0 to 64)"]
    title = f"VQ-VAE: validation images after step {step}"
    plots.image_grid(figure, rows, row_names, columns, title, heat_columns=(2,))
    runs.keep_of_step(figure, step)
