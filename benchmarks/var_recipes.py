"""Remedies for the transformer on the same token maps, as many seen by each: what helps, and how much?

    python benchmarks/var_recipes.py --data-root data/real64 --vqvae runs/vqvae/best.pth \\
        --tokens-dir runs/tokens                 # images of 64 x 64, 30 tokens: 12 minutes of one core
    python benchmarks/var_recipes.py ... --rows base "dropout 0.1"             # some rows
    python benchmarks/var_recipes.py ... --depth 6 --width 384 --heads 6 --batch-size 64 \\
        --steps 30000                                                          # full size, a GPU

Trains each row by train_var.py: the base, the base with another seed (so far do equal recipes differ), and
the base with one thing changed. Measures the weights that each run kept: cross-entropy on val, over all
tokens and on the last scale, the step of the best, and how far samples lie from val images rebuilt by the
VQ-VAE (kernel distance under a small network trained once on the training images). Prints a table and writes
<out-dir>/results.json, recipes.png and a run folder per row. Run the same command again to go on; rows that
are done are not trained again. Calls with other --rows, also at the same time, add to the table. The test
split is not read. Results so far: docs/var_recipes.md.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train_var
from benchmarks.measure import add_row, chosen_rows
from models import VAR, VQVAE
from models.helpers import image_seeds
from usvar import checks, cli, distributed, extractor, images, judging, plots, provenance, runs, training
from usvar.checkpoints import load_var, load_vqvae
from usvar.evaluation import kernel_distance
from usvar.plots import COLOURS, plt

BASE = "base"

# Rows of the table: what each changes in the base.
RECIPES: dict[str, dict[str, Any]] = {
    BASE: {},
    "base, another seed": {"seed": 1},
    "AdamW alone": {"muon_rate": 0.0},
    "AdamW alone, rate 2e-3": {"muon_rate": 0.0, "learning_rate": 2e-3},
    "Muon 4 times AdamW": {"muon_rate": 4.0},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "dropout 0.1": {"drop_rate": 0.1},
    "drop path 0.1": {"drop_path_rate": 0.1},
    "no class balance": {"class_balance": 0.0},
    "all classes equally often": {"class_balance": 1.0},
}


@dataclass(frozen=True)
class Settings:
    """The small version; the full one is in the commands above."""

    # Prepared images: <data-root>/{train,val,test}/<Class>/*.png.
    data_root: Path

    # The VQ-VAE that made the tokens.
    vqvae: Path

    # Token maps: <tokens-dir>/{train,val}/tokens_multiscale_maps.npz.
    tokens_dir: Path

    # Results, and a run folder for each row.
    out_dir: Path = Path("runs/var_recipes")

    # Rows of the table, or all.
    rows: tuple[str, ...] = ("all",)

    # Optimiser steps of each row.
    steps: int = 400

    # Token maps per step; steps * batch_size are seen by each row.
    batch_size: int = 32

    # Transformer blocks.
    depth: int = 4

    # Width of a token inside the transformer.
    width: int = 128

    # Attention heads.
    heads: int = 4

    # Highest learning rate.
    learning_rate: float = 1e-3

    # Decay of the averaged weights, which are measured.
    ema_decay: float = 0.98

    # Validations of each row, evenly spread.
    evaluations: int = 10

    # Samples for each image of val, of the same class.
    samples_per_image: int = 2

    # Steps that the network of the sample measure is trained on the training images.
    extractor_steps: int = 200

    # Side that this network looks at.
    extractor_pixels: int = 64

    # Seed of weights, batches and samples.
    seed: int = 0

    # auto (a GPU if there is one), cpu, cuda or cuda:1.
    device: str = "auto"


def check(s: Settings) -> tuple[str, ...]:
    """The rows that are asked for, after refusing what is not there."""
    chosen = chosen_rows(s.rows, RECIPES)
    checks.require(s, "1 or more", "steps", "evaluations", "samples_per_image", "extractor_steps")
    return chosen


def train_settings(s: Settings, name: str) -> train_var.Settings:
    """Settings of a row's run. The base has none of the remedies."""
    changes = {"drop_path_rate": 0.0, "seed": s.seed, "learning_rate": s.learning_rate} | RECIPES[name]
    if "seed" in RECIPES[name]:
        changes["seed"] = s.seed + RECIPES[name]["seed"]
    return train_var.Settings(
        tokens_dir=s.tokens_dir,
        vqvae=s.vqvae,
        out_dir=s.out_dir / "".join(c if c.isalnum() else "_" for c in name),
        depth=s.depth,
        width=s.width,
        heads=s.heads,
        batch_size=s.batch_size,
        steps=s.steps,
        ema_decay=s.ema_decay,
        eval_every=max(1, s.steps // s.evaluations),
        log_every=max(1, s.steps // 20),
        save_every=max(1, s.steps // 4),
        samples_per_class=0,
        device=s.device,
        **changes,
    )


@torch.no_grad()
def draw(s: Settings, run: train_var.Settings, model: VAR, vae: VQVAE, label_N: np.ndarray) -> np.ndarray:
    """Samples (N, H, W) uint8 of these classes, drawn as train_var.py draws them, from fixed seeds."""
    grey, seeds = [], image_seeds(s.seed, len(label_N))
    device = next(model.parameters()).device
    for rows in training.batches(range(len(label_N)), 64):
        chosen = slice(rows.start, rows.stop)
        _, f_hat = model.generate_tokens(
            torch.from_numpy(label_N[chosen]).to(device),
            seeds=seeds[chosen],
            cfg=run.cfg,
            top_k=run.top_k,
            top_p=run.top_p,
        )
        grey.append(images.to_uint8(vae.fhat_to_img(f_hat)))
    return np.concatenate(grey)


@dataclass(frozen=True)
class SampleMeasure:
    """How far images lie from rebuilt val images.

    Rebuilt, because no transformer can be nearer to real images than the VQ-VAE is.
    """

    network: extractor.Extractor
    # Features of the rebuilt images.
    wanted_ND: np.ndarray
    seed: int

    def __call__(self, grey_NHW: np.ndarray) -> tuple[float, float]:
        """Distance and its spread."""
        return kernel_distance(extractor.features(self.network, grey_NHW), self.wanted_ND, seed=self.seed)


def sample_measure(s: Settings, vae: VQVAE) -> tuple[SampleMeasure, np.ndarray]:
    """The measure with its network trained, and val's classes.

    Its network is trained on the CPU: calls for further rows train the same one again.
    """
    classes = images.find_classes(s.data_root)
    files = {split: images.find_images(s.data_root, split, classes) for split in ("train", "val")}
    side = images.image_size(files["train"])
    train, val = (images.read_images(found, range(len(found)), side) for found in files.values())
    network = extractor.train_extractor(
        train,
        files["train"].label_N,
        len(classes),
        s.extractor_pixels,
        s.extractor_steps,
        64,
        s.seed,
        torch.device("cpu"),
    )
    wanted_ND = extractor.features(network, judging.rebuild(vae, val, 32))
    return SampleMeasure(network, wanted_ND, s.seed), files["val"].label_N


def numbers(run: train_var.Settings) -> dict[str, Any]:
    """What a row's log says: at the best step, at the last, and on the way."""
    rows = runs.read_log(run.out_dir / "log.jsonl")
    validated = [row for row in rows if "val_mean" in row]
    best = runs.best_row(rows, "val_mean")
    return {
        "images_seen": run.steps * run.batch_size,
        "best_step": best["step"],
        "val_mean": best["val_mean"],
        "val_last": best["val_last"],
        "val_accuracy": best["val_accuracy"],
        "val_per_scale": best["val_per_scale"],
        "val_mean_at_the_end": validated[-1]["val_mean"],
        "train_mean_at_the_end": [row for row in rows if "train_mean" in row][-1]["train_mean"],
        "steps": [row["step"] for row in validated],
        "val_mean_at": [row["val_mean"] for row in validated],
    }


def print_table(table: dict[str, dict[str, Any]]) -> None:
    """A line per row."""
    width = max(map(len, table))
    print(
        f"{'recipe':{width}}  val mean  last scale  best step  at the end  train there  right   "
        "kernel distance"
    )
    for name, row in table.items():
        print(
            f"{name:{width}}  {row['val_mean']:8.4f}  {row['val_last']:10.4f}  {row['best_step']:9d}  "
            f"{row['val_mean_at_the_end']:10.4f}  {row['train_mean_at_the_end']:11.4f}  "
            f"{row['val_accuracy']:6.2%}  {row['distance']:6.3f} +- {row['distance_spread']:5.3f}"
        )


def draw_table(path: Path, table: dict[str, dict[str, Any]]) -> None:
    """A dot per row and measure; between the lines of the base's seeds lie recipes that differ by chance."""
    panels = {
        "val_mean": "cross-entropy on val,\nnats per token",
        "val_last": "last scale on val,\nnats per token",
        "best_step": "step of the best",
        "distance": "samples: kernel distance to\nrebuilt val images",
    }
    names = list(table)
    bases = [name for name in names if name.startswith(BASE)]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(12.5, 0.33 * len(names) + 1.9), sharey=True, layout="constrained"
    )
    for axis, (key, title) in zip(axes, panels.items(), strict=True):
        values = [table[name][key] for name in names]
        spread = [table[name]["distance_spread"] for name in names] if key == "distance" else None
        axis.errorbar(values, range(len(names)), xerr=spread, fmt="o", color=COLOURS[0], markersize=5)
        for name, dashes in zip(bases, ("--", ":"), strict=False):
            axis.axvline(table[name][key], color="0.4", linestyle=dashes, linewidth=1, label=name)
        axis.set_title(title)
        axis.locator_params(axis="x", nbins=4)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    if bases:
        figure.legend(
            *axes[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=len(bases),
            title="recipes between these lines differ by chance",
        )
    seen = next(iter(table.values()))["images_seen"]
    figure.suptitle(f"VAR: remedies, one at a time, {seen:,} token maps seen by each")
    plots.save(figure, path)


def main(s: Settings) -> None:
    """Train and measure row by row; what is done is written at once."""
    chosen = check(s)
    device = distributed.choose_device(s.device)
    vqvae = load_vqvae(s.vqvae, device)
    measure, label_N = sample_measure(s, vqvae.model)
    label_N = np.repeat(label_N, s.samples_per_image)
    table: dict[str, dict[str, Any]] = {}
    for name in chosen:
        run = train_settings(s, name)
        print(f"--- {name}")
        train_var.main(run)
        model = load_var(run.out_dir / "ar-ckpt-best.pth", vqvae, device).model
        distance, spread = measure(draw(s, run, model, vqvae.model, label_N))
        content = {
            "made_by": provenance.made_by("var_recipes.py", s),
            "extractor_sha256": measure.network.sha256(),
            "changes": provenance.plain(RECIPES),
        }
        row = numbers(run) | {"distance": distance, "distance_spread": spread}
        table = add_row(s.out_dir / "results.json", content, name, row)
        draw_table(s.out_dir / "recipes.png", table)
    print_table(table)
    print(f"done: {s.out_dir / 'results.json'}, {s.out_dir / 'recipes.png'}")


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
