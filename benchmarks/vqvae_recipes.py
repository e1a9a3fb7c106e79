"""Recipes of the VQ-VAE on the same images, as many seen by each: what keeps the codebook alive?

    python benchmarks/vqvae_recipes.py --data-root data/real128                # two cores, two rows
    python benchmarks/vqvae_recipes.py --data-root data/real128 --rows all     # every remedy by itself
    python benchmarks/vqvae_recipes.py --data-root data/processed --ch 64 --vocab-size 2048 --batch-size 32 \\
        --steps 30000 --rows all                                               # full size, a GPU

Trains each row by train_vqvae.py and measures its best.pth: PSNR, SSIM and spectrum on val; use and
perplexity of the codes over the training images. Prints a table and writes <out-dir>/results.json,
recipes.png and a run folder a row. Run the same command again to go on; rows that are done are not trained
again. The test split is not read.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sample_vqvae
import train_vqvae
from models import VQVAE
from models.quant import code_counts, perplexity, usage
from usvar import cli, distributed, images, losses, plots, provenance, training
from usvar.checkpoints import load_vqvae
from usvar.errors import InputError
from usvar.files import write_json

# Of the predecessor's recipe; VQ is added to a sum of squared errors as it is, see `recipes`.
PREDECESSOR = {
    "codebook_start_images": 0,
    "revive_every": 0,
    "learning_rate": 2e-4,
    "betas": (0.9, 0.95),
    "warmup": 0.0,
    "final_rate": 0.0,
    "ema_decay": 0.0,
    "class_balance": 0.0,
    "clip": 1e9,
}


@dataclass(frozen=True)
class Settings:
    """The small version; the full one is in the commands above."""

    # Prepared images: <data-root>/{train,val,test}/<Class>/*.png.
    data_root: Path

    # Results, and a run folder for each row.
    out_dir: Path = Path("runs/recipes")

    # Rows of the table, or all; the first two are predecessor and ours.
    rows: tuple[str, ...] = ("predecessor", "ours")

    # Optimiser steps of each row.
    steps: int = 300

    # Images a step; steps * batch_size images are seen by each row.
    batch_size: int = 8

    # Width of the first layers.
    ch: int = 32

    # Codes in the codebook.
    vocab_size: int = 1024

    # Validations of each row, evenly spread.
    evaluations: int = 5

    # Weights of torchvision's VGG16 for the perceptual row; none given: the file in torch's cache.
    vgg: Path | None = None

    # Seed of weights, batches and augmentation.
    seed: int = 0

    # auto (a GPU if there is one), cpu, cuda or cuda:1.
    device: str = "auto"


def recipes(side: int, vgg: Path | None = None) -> dict[str, dict[str, Any]]:
    """Rows of the table: what each changes in the settings of train_vqvae.py.

    Args:
        side: of the images, pixels.
        vgg: weights for the perceptual row.
    """
    unweighted_vq = {"vq_weight": 1 / (3 * side * side)}
    return {
        "predecessor": PREDECESSOR | unweighted_vq,
        "ours": {},
        # One remedy taken away.
        "ours, N(0, 1) codebook": {"codebook_start_images": 0},
        "ours, no revival": {"revive_every": 0},
        "ours, unweighted VQ loss": unweighted_vq,
        "ours, no EMA": {"ema_decay": 0.0},
        # One remedy more.
        "ours + cosine look-up": {"cosine_lookup": True},
        "ours + rotation trick": {"rotation": True},
        "ours + quantiser dropout": {"quantiser_dropout": 0.1},
        "ours + EMA codebook": {"ema_codebook": 0.99},
        "ours + L1": {"l1_weight": 0.1},
        "ours + SSIM": {"ssim_weight": 0.02},
        "ours + perceptual": {"perceptual_weight": 0.01, "vgg": vgg},
        "ours + adversarial": {"adversarial_weight": 0.1},
    }


def check(s: Settings, rows: dict[str, dict]) -> tuple[str, ...]:
    """The rows that are asked for, after refusing what is not there."""
    chosen = tuple(rows) if s.rows == ("all",) else tuple(dict.fromkeys(s.rows))
    if unknown := [name for name in chosen if name not in rows] or (not chosen and ["nothing"]):
        raise InputError(f"--rows {unknown[0]!r} was given, wanted all or some of: {'; '.join(rows)}")
    if s.evaluations < 1:
        raise InputError(f"--evaluations {s.evaluations} was given, wanted 1 or more")
    return chosen


def train_settings(s: Settings, name: str, changes: dict[str, Any], side: int) -> train_vqvae.Settings:
    """Settings of a row's run."""
    patch_nums = (*(n for n in train_vqvae.Settings.patch_nums if n < side // 16), side // 16)
    return train_vqvae.Settings(
        data_root=s.data_root,
        out_dir=s.out_dir / "".join(c if c.isalnum() else "_" for c in name),
        patch_nums=patch_nums,
        batch_size=s.batch_size,
        steps=s.steps,
        ch=s.ch,
        vocab_size=s.vocab_size,
        eval_every=max(1, s.steps // s.evaluations),
        log_every=max(1, s.steps // 20),
        seed=s.seed,
        device=s.device,
        **changes,
    )


@torch.no_grad()
def train_hits(model: VQVAE, files: images.ImageFiles, batch_size: int) -> torch.Tensor:
    """How often each scale uses each code over the training images, (S, V)."""
    side, device = images.image_size(files), next(model.parameters()).device
    hits_SV = torch.zeros_like(model.quantize.ema_vocab_hit_SV, dtype=torch.long)
    with tqdm(total=len(files), desc="codes of train", file=sys.stdout) as progress:
        for rows in training.batches(len(files), batch_size):
            image_B3HW = images.to_model_range(images.read_images(files, rows, side), device)
            hits_SV += code_counts(model.img_to_idxBl(image_B3HW), model.vocab_size)
            progress.update(len(rows))
    return hits_SV


def measure(run: train_vqvae.Settings, splits: dict[str, images.ImageFiles]) -> dict[str, Any]:
    """The numbers of a row, from the weights that its run kept."""
    best = run.out_dir / "best.pth"
    model: VQVAE = load_vqvae(best, distributed.start(run.device).device).model
    sample = sample_vqvae.Settings(run.data_root, best, batch_size=run.batch_size)
    errors, speckle = sample_vqvae.measure(sample, model, splits["val"])
    hits_SV = train_hits(model, splits["train"], run.batch_size)
    validated = [row for row in training.read_log(run.out_dir / "log.jsonl") if "val_psnr_db" in row]
    return {
        "images_seen": run.steps * run.batch_size,
        "psnr_db": float(errors["psnr_db"].mean()),
        "ssim": float(errors["ssim"].mean()),
        "usage_all": usage(hits_SV.sum(0, keepdim=True)).item(),
        "sides": list(run.patch_nums),
        "usage": usage(hits_SV).tolist(),
        "perplexity": perplexity(hits_SV).tolist(),
        "perplexity_all": perplexity(hits_SV.sum(0)).item(),
        "speckle": sample_vqvae.compare_speckle(speckle),
        "images_at": [row["step"] * run.batch_size for row in validated],
        "psnr_db_at": [row["val_psnr_db"] for row in validated],
    }


def print_table(table: dict[str, dict[str, Any]]) -> None:
    """A line a row, and what the aims say of ours."""
    width = max(map(len, table))
    sides = next(iter(table.values()))["sides"]
    print(
        f"{'recipe':{width}}  PSNR, dB   SSIM  spectrum, dB off  codes in use  perplexity  "
        f"use at {', '.join(f'{side}x{side}' for side in sides)}"
    )
    for name, row in table.items():
        print(
            f"{name:{width}}  {row['psnr_db']:8.2f}  {row['ssim']:.3f}  "
            f"{row['speckle']['spectrum_difference_rms_db']:16.2f}  {row['usage_all']:12.1%}  "
            f"{row['perplexity_all']:10.0f}  {' '.join(f'{share:.1%}' for share in row['usage'])}"
        )
    if {"predecessor", "ours"} <= table.keys():
        for line in verdicts(table["predecessor"], table["ours"]):
            print(line)


def distances(row: dict[str, Any]) -> np.ndarray:
    """How far the rebuilt images' power lies from the real ones' at each radius, dB, (F,)."""
    power_db = row["speckle"]["power_db"]
    return np.abs(np.array(power_db["rebuilt"]) - power_db["real"])


def verdicts(predecessor: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Each aim, what was measured, and whether it is met."""
    # Coarser scales have too few tokens to use many codes.
    fine = [share for side, share in zip(ours["sides"], ours["usage"], strict=True) if side >= 4]
    gain_db = ours["psnr_db"] - predecessor["psnr_db"]
    closer = float((distances(ours) < distances(predecessor)).mean())
    aims = [
        ("at least 95% of the codes in use", f"{ours['usage_all']:.1%}", ours["usage_all"] >= 0.95),
        ("at least 60% at every scale of 4 x 4 and finer", f"{min(fine):.1%} at the least", min(fine) >= 0.6),
        ("PSNR above the predecessor's by 1.5 dB", f"{gain_db:+.2f} dB", gain_db >= 1.5),
        ("spectrum closer at every radius", f"at {closer:.0%} of them", closer == 1),
    ]
    return [f"aim: {aim}: {found}, {'met' if is_met else 'NOT met'}" for aim, found, is_met in aims]


def draw(path: Path, table: dict[str, dict[str, Any]]) -> None:
    """PSNR on the way, codes by scale, and the spectrum, a curve a row."""
    panels = {
        "PSNR on val, dB": {name: (row["images_at"], row["psnr_db_at"]) for name, row in table.items()},
        "share of the codes in use, training images": {
            name: (row["sides"], row["usage"]) for name, row in table.items()
        },
        "perplexity of the codes, training images": {
            name: (row["sides"], row["perplexity"]) for name, row in table.items()
        },
        "power of rebuilt over real val images, dB": {
            name: (
                row["speckle"]["cycles_a_pixel"],
                np.subtract(row["speckle"]["power_db"]["rebuilt"], row["speckle"]["power_db"]["real"]),
            )
            for name, row in table.items()
        },
    }
    x_labels = ["images seen", "tokens a side", "tokens a side", "spatial frequency, cycles a pixel"]
    seen = next(iter(table.values()))["images_seen"]
    plots.curves(
        path, panels, title=f"VQ-VAE: recipes, {seen} images seen by each", x_label=x_labels, columns=2
    )


def main(s: Settings) -> None:
    """Train and measure row by row; what is done is written at once."""
    classes = images.find_classes(s.data_root)
    splits = {split: images.find_images(s.data_root, split, classes) for split in ("train", "val")}
    side = images.image_size(splits["train"])
    rows = recipes(side, s.vgg)
    table = {}
    for name in check(s, rows):
        if "perceptual_weight" in rows[name] and not losses.vgg_path(s.vgg):
            print(
                f"--- {name}: left out, torch's cache has no weights of torchvision's VGG16; give --vgg FILE"
            )
            continue
        run = train_settings(s, name, rows[name], side)
        print(f"--- {name}")
        train_vqvae.main(run)
        table[name] = measure(run, splits)
        write_json(
            s.out_dir / "results.json",
            {
                "made_by": provenance.made_by("vqvae_recipes.py", s),
                "changes": provenance.plain(rows),
                "rows": table,
            },
        )
        draw(s.out_dir / "recipes.png", table)
    if not table:
        raise InputError("no row is left to train: give other --rows")
    print_table(table)
    print(f"done: {s.out_dir / 'results.json'}, {s.out_dir / 'recipes.png'}")


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
