"""Recipes of the VQ-VAE on the same images, as many seen by each: what keeps the codebook alive?

    python benchmarks/vqvae_recipes.py --data-root data/real128                # two cores, two rows
    python benchmarks/vqvae_recipes.py --data-root data/real128 --rows all     # every remedy by itself
    python benchmarks/vqvae_recipes.py --data-root data/processed --ch 64 --vocab-size 2048 --batch-size 32 \\
        --steps 30000 --rows all                                               # full size, a GPU

Trains each row by train_vqvae.py and measures its best.pth: PSNR, SSIM and spectrum on val; use and
perplexity of the codes over the training images. Prints a table and writes <out-dir>/results.json,
recipes.png and a run folder per row. Run the same command again to go on; rows that are done are not trained
again. Calls with other --rows, also at the same time, add to the table. The test split is not read.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sample_vqvae
import train_vqvae
from benchmarks.measure import add_row, chosen_rows
from models import VQVAE
from models.quant import code_counts, perplexity, usage
from usvar import checks, cli, distributed, images, judging, losses, plots, provenance, runs, training
from usvar.checkpoints import load_vqvae
from usvar.errors import InputError
from usvar.evaluation import kernel_distance
from usvar.extractor import Extractor, features, train_extractor

# Of the predecessor's recipe; VQ is added to a sum of squared errors as it is, see `recipes`.
PREDECESSOR = {
    "codebook_start_images": 0,
    "revive_every": 0,
    "learning_rate": 2e-4,
    "muon_rate": 0.0,
    "betas": (0.9, 0.95),
    "warmup": 0.0,
    "final_rate": 0.0,
    "ema_decay": 0.0,
    "class_balance": 0.0,
    "clip": 1e9,
    "adversarial_weight": 0.0,
    "ssim_weight": 0.0,
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

    # Images per step; steps * batch_size images are seen by each row.
    batch_size: int = 8

    # Width of the first layers.
    ch: int = 32

    # Codes in the codebook.
    vocab_size: int = 1024

    # Validations of each row, evenly spread.
    evaluations: int = 5

    # Training steps of the extractor in whose features images are compared; once for all rows.
    extractor_steps: int = 400

    # Weights of torchvision's VGG16 for the perceptual rows; none given: the file in torch's cache.
    vgg: Path | None = None

    # Seed of weights, batches and augmentation.
    seed: int = 0

    # auto (a GPU if there is one), cpu, cuda or cuda:1.
    device: str = "auto"


def recipes(side: int, vgg: Path | None = None) -> dict[str, dict[str, Any]]:
    """Rows of the table: what each changes in the settings of train_vqvae.py.

    Args:
        side: of the images, pixels.
        vgg: weights for the perceptual rows.
    """
    unweighted_vq = {"vq_weight": 1 / (3 * side * side)}
    return {
        "predecessor": PREDECESSOR | unweighted_vq,
        "ours": {},
        # One remedy taken away, or with another strength.
        "ours, N(0, 1) codebook": {"codebook_start_images": 0},
        "ours, no revival": {"revive_every": 0},
        "ours, unweighted VQ loss": unweighted_vq,
        "ours, VQ weight 1": {"vq_weight": 1.0},
        "ours, AdamW": {"muon_rate": 0.0},
        "ours, AdamW, rate 1.2e-3": {"muon_rate": 0.0, "learning_rate": 1.2e-3},
        "ours, Muon 2 times AdamW": {"muon_rate": 2.0},
        "ours, no EMA": {"ema_decay": 0.0},
        "ours, no adversarial loss": {"adversarial_weight": 0.0},
        "ours, adversarial loss 0.3": {"adversarial_weight": 0.3},
        "ours, adversarial loss 0.5": {"adversarial_weight": 0.5},
        "ours, discriminator's betas 0.9 and 0.95": {"discriminator_betas": (0.9, 0.95)},
        "ours, no LeCam": {"lecam_weight": 0.0},
        "ours, no SSIM": {"ssim_weight": 0.0},
        # One remedy more.
        "ours + cosine look-up": {"cosine_lookup": True},
        "ours + L1": {"l1_weight": 0.1},
        # 0.001 has a gradient as long as the squared error's after 1,000 steps of 64 x 64 pixels.
        "ours + perceptual 0.001": {"perceptual_weight": 0.001, "vgg": vgg},
        "ours + perceptual 0.003": {"perceptual_weight": 0.003, "vgg": vgg},
        "ours + perceptual 0.01": {"perceptual_weight": 0.01, "vgg": vgg},
        "ours, perceptual 0.003 for SSIM": {"perceptual_weight": 0.003, "vgg": vgg, "ssim_weight": 0.0},
    }


def check(s: Settings, rows: dict[str, dict]) -> tuple[str, ...]:
    """The rows that are asked for, after refusing what is not there."""
    chosen = chosen_rows(s.rows, rows)
    checks.require(s, "1 or more", "evaluations")
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


@dataclass(frozen=True)
class Judged:
    """What every row is measured on, and the one extractor for all of them."""

    train_NHW: np.ndarray
    val_files: images.ImageFiles
    val_NHW: np.ndarray
    extractor: Extractor
    val_features_ND: np.ndarray


def prepare_judging(s: Settings, splits: dict[str, images.ImageFiles], side: int) -> Judged:
    """Decode both splits and train the extractor of the feature distance on the training split.

    On the CPU, where calls for further rows train the same one again, which a GPU does not promise.
    """
    distributed.choose_device(s.device)  # a wrong one is refused before anything is trained
    grey = {name: images.decoded(files, side, s.out_dir / "cache") for name, files in splits.items()}
    train = splits["train"]
    extractor = train_extractor(
        grey["train"],
        train.label_N,
        len(train.classes),
        min(64, side),
        s.extractor_steps,
        judging.FEATURE_DIMS,
        s.seed,
        torch.device("cpu"),
    )
    return Judged(grey["train"], splits["val"], grey["val"], extractor, features(extractor, grey["val"]))


@torch.no_grad()
def code_hits(model: VQVAE, grey_NHW: np.ndarray, batch_size: int) -> torch.Tensor:
    """How often each scale uses each code over the images, (S, V)."""
    device = next(model.parameters()).device
    hits_SV = torch.zeros_like(model.quantize.ema_vocab_hit_SV, dtype=torch.long)
    with tqdm(total=len(grey_NHW), desc="codes of train", leave=False, file=sys.stdout) as progress:
        for rows in training.batches(range(len(grey_NHW)), batch_size):
            image_B3HW = images.to_model_range(grey_NHW[rows.start : rows.stop], device)
            hits_SV += code_counts(model.img_to_idxBl(image_B3HW), model.vocab_size)
            progress.update(len(rows))
    return hits_SV


def measure(run: train_vqvae.Settings, judged: Judged) -> dict[str, Any]:
    """The numbers of a row, from the weights that its run kept."""
    best = run.out_dir / "best.pth"
    model: VQVAE = load_vqvae(best, distributed.start(run.device).device).model
    sample = sample_vqvae.Settings(run.data_root, best, batch_size=run.batch_size)
    errors, speckle = sample_vqvae.measure(sample, model, judged.val_files)
    rebuilt_NHW = judging.rebuild(model, judged.val_NHW, run.batch_size)
    distance, spread = kernel_distance(
        features(judged.extractor, rebuilt_NHW), judged.val_features_ND, paired=True, seed=run.seed
    )
    hits_SV = code_hits(model, judged.train_NHW, run.batch_size)
    validated = [row for row in runs.read_log(run.out_dir / "log.jsonl") if "val_psnr_db" in row]
    return {
        "images_seen": run.steps * run.batch_size,
        "psnr_db": float(errors["psnr_db"].mean()),
        "ssim": float(errors["ssim"].mean()),
        "feature_distance": distance,
        "feature_distance_spread": spread,
        "usage_all": usage(hits_SV.sum(0, keepdim=True)).item(),
        "sides": list(run.patch_nums),
        "usage": usage(hits_SV).tolist(),
        "perplexity": perplexity(hits_SV).tolist(),
        "perplexity_all": perplexity(hits_SV.sum(0)).item(),
        "speckle": sample_vqvae.compare_speckle(speckle),
        "images_at": [row["step"] * run.batch_size for row in validated],
        "psnr_db_at": [row["val_psnr_db"] for row in validated],
        "ssim_at": [row["val_ssim"] for row in validated],
    }


def print_table(table: dict[str, dict[str, Any]]) -> None:
    """A line per row."""
    width = max(map(len, table))
    sides = next(iter(table.values()))["sides"]
    print(
        f"{'recipe':{width}}  PSNR, dB   SSIM  features x 1000  spectrum, dB off  codes in use  perplexity  "
        f"use at {', '.join(f'{side}x{side}' for side in sides)}"
    )
    for name, row in table.items():
        spread = row["feature_distance_spread"]
        found = f"{1e3 * row['feature_distance']:.1f} ± {1e3 * spread:.1f}" if spread else "-"
        print(
            f"{name:{width}}  {row['psnr_db']:8.2f}  {row['ssim']:.3f}  {found:>15}  "
            f"{row['speckle']['spectrum_difference_rms_db']:16.2f}  {row['usage_all']:12.1%}  "
            f"{row['perplexity_all']:10.0f}  {' '.join(f'{share:.1%}' for share in row['usage'])}"
        )


def distances(row: dict[str, Any]) -> np.ndarray:
    """How far the rebuilt images' power lies from the real ones' at each radius, dB, (F,)."""
    power_db = row["speckle"]["power_db"]
    return np.abs(np.array(power_db["rebuilt"]) - power_db["real"])


def verdicts(predecessor: dict[str, Any], ours: dict[str, Any]) -> list[tuple[str, bool]]:
    """Each aim with what was measured, and whether it is met."""
    # Coarser scales have too few tokens to use many codes; of small images there may be no finer one.
    fine = [share for side, share in zip(ours["sides"], ours["usage"], strict=True) if side >= 4]
    least = min(fine, default=1.0)
    gain_db = ours["psnr_db"] - predecessor["psnr_db"]
    closer_F = distances(ours) < distances(predecessor)
    return [
        (
            f"at least 95% of the codes in use over the training images: {ours['usage_all']:.1%}",
            ours["usage_all"] >= 0.95,
        ),
        (f"at least 60% at every scale of 4 x 4 and finer: {least:.1%} at the least", least >= 0.6),
        (f"PSNR above the predecessor's recipe: {gain_db:+.2f} dB", gain_db > 0),
        (f"PSNR above it by 1.5 dB: {gain_db:+.2f} dB", gain_db >= 1.5),
        (f"spectrum closer at every radius: at {closer_F.sum()} of {len(closer_F)}", closer_F.all()),
    ]


def losses_of_ours(predecessor: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """The measures in which ours is worse than the predecessor's recipe."""
    is_worse = {
        "PSNR": ours["psnr_db"] < predecessor["psnr_db"],
        "SSIM": ours["ssim"] < predecessor["ssim"],
        "feature distance": ours["feature_distance"] > predecessor["feature_distance"],
        "mean distance of the spectrum": distances(ours).mean() > distances(predecessor).mean(),
        "codes in use": ours["usage_all"] < predecessor["usage_all"],
        "perplexity": ours["perplexity_all"] < predecessor["perplexity_all"],
    }
    return [name for name, worse in is_worse.items() if worse]


def draw(path: Path, table: dict[str, dict[str, Any]]) -> None:
    """Above, every row by every measure; below, predecessor and ours (or the first two rows) in detail."""
    names = list(table)
    detailed = [name for name in ("predecessor", "ours") if name in table] or names[:2]
    figure = plt.figure(figsize=(15, 0.28 * len(names) + 8.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(0.28 * len(names) + 1.4, 7.2))
    axes = above.subplots(1, 6, sharey=True)
    measures: list[tuple[str, Callable[[dict], float]]] = [
        ("PSNR on val, dB", lambda row: row["psnr_db"]),
        ("SSIM on val", lambda row: row["ssim"]),
        ("feature distance x 1000", lambda row: 1e3 * row["feature_distance"]),
        ("spectrum, dB off (RMS)", lambda row: row["speckle"]["spectrum_difference_rms_db"]),
        ("codes in use on train, %", lambda row: 100 * row["usage_all"]),
        ("perplexity on train", lambda row: row["perplexity_all"]),
    ]
    for axis, (title, number) in zip(axes, measures, strict=True):
        values = [number(table[name]) for name in names]
        spreads = [1e3 * (table[name]["feature_distance_spread"] or 0) for name in names]
        # Every row has a line of its own, so that the eye keeps to it across the panels.
        colours = [plots.COLOURS[detailed.index(name)] if name in detailed else "#666666" for name in names]
        for y, (value, spread, colour) in enumerate(zip(values, spreads, colours, strict=True)):
            error = spread if title.startswith("feature") else None
            axis.errorbar(value, y, xerr=error, fmt="o", color=colour, markersize=5)
        if "ours" in table:
            axis.axvline(number(table["ours"]), color=plots.COLOURS[1], linewidth=0.8, linestyle=":")
        axis.set_title(title)
        axis.set_yticks(range(len(names)), names)
        axis.xaxis.set_major_locator(MaxNLocator(4))
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    panels: list[tuple[str, str, Callable[[dict], tuple[Any, Any]]]] = [
        ("PSNR on val, dB", "images seen", lambda row: (row["images_at"], row["psnr_db_at"])),
        ("SSIM on val", "images seen", lambda row: (row["images_at"], row["ssim_at"])),
        (
            "power of rebuilt over real val images, dB",
            "spatial frequency, cycles per pixel",
            lambda row: (
                row["speckle"]["cycles_a_pixel"],
                np.subtract(row["speckle"]["power_db"]["rebuilt"], row["speckle"]["power_db"]["real"]),
            ),
        ),
        (
            "codes in use by scale, train, %",
            "tokens per side",
            lambda row: (row["sides"], np.multiply(100, row["usage"])),
        ),
        ("perplexity by scale, train", "tokens per side", lambda row: (row["sides"], row["perplexity"])),
    ]
    below_axes = below.subplots(2, 3).ravel()
    for axis, (title, x_label, series) in zip(below_axes[: len(panels)], panels, strict=True):
        for name, colour, marker in zip(detailed, plots.COLOURS, "os", strict=False):
            axis.plot(*series(table[name]), marker=marker, markersize=4, color=colour, label=name)
        axis.set_title(title)
        axis.set_xlabel(x_label)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=x_label != panels[2][1]))
        axis.legend()
    below_axes[5].set_visible(False)
    figure.suptitle(f"VQ-VAE: recipes, {table[names[0]]['images_seen']} images seen by each")
    plots.save(figure, path)


def main(s: Settings) -> None:
    """Train and measure row by row; what is done is written at once."""
    classes = images.find_classes(s.data_root)
    splits = {split: images.find_images(s.data_root, split, classes) for split in ("train", "val")}
    side = images.image_size(splits["train"])
    rows = recipes(side, s.vgg)
    chosen, table, judged = check(s, rows), {}, None
    for name in chosen:
        if "perceptual_weight" in rows[name] and not losses.vgg_path(s.vgg):
            print(
                f"--- {name}: left out, torch's cache has no weights of torchvision's VGG16; give --vgg FILE"
            )
            continue
        judged = judged or prepare_judging(s, splits, side)
        run = train_settings(s, name, rows[name], side)
        print(f"--- {name}")
        train_vqvae.main(run)
        content = {
            "made_by": provenance.made_by("vqvae_recipes.py", s),
            "extractor_sha256": judged.extractor.sha256(),
            "changes": provenance.plain(rows),
        }
        table = add_row(s.out_dir / "results.json", content, name, measure(run, judged))
        draw(s.out_dir / "recipes.png", table)
    if not table:
        raise InputError("no row is left to train: give other --rows")
    print_table(table)
    print(f"written: {s.out_dir / 'results.json'}, {s.out_dir / 'recipes.png'}")
    if {"predecessor", "ours"} <= table.keys():
        pair = table["predecessor"], table["ours"]
        for aim, is_met in verdicts(*pair):
            print(f"aim: {aim}: {'met' if is_met else 'NOT met'}")
        if lost := losses_of_ours(*pair):
            raise SystemExit(f"FAILED: ours is worse than the predecessor's recipe in {', '.join(lost)}")


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
