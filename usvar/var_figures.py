"""Curves of the transformer's training, drawn from its log.jsonl."""

import math
from pathlib import Path

import numpy as np

from models.helpers import scale_boundaries
from usvar import plots, runs, tokens

# A measure's names in the log: over all tokens and of each scale; and its unit.
MEASURES = {
    "loss": ("mean", "per_scale", "cross-entropy, nats per token"),
    "accuracy": ("accuracy", "accuracy_per_scale", "share of tokens predicted right"),
}


def draw_curves(
    folder: Path, patch_nums: tuple[int, ...], baselines: dict[str, tuple[list[float], list[float]]]
) -> None:
    """Write loss_curves.png, loss_per_scale.png and accuracy_per_scale.png.

    A vertical line stands where val was best: behind it the training split is learned by heart.

    Args:
        folder: of the run.
        patch_nums: tokens per side of each scale.
        baselines: from `tokens.frequency_scores`: what frequencies alone score, as horizontal lines.
    """
    rows = runs.read_log(folder / "log.jsonl")
    best = runs.best_row(rows, "val_mean")
    marks = {f"lowest on val: step {best['step']}": best["step"]} if best else {}
    lengths = np.diff(scale_boundaries(patch_nums))

    def panel(measure: str, scale: int | None) -> tuple[dict, dict[str, float]]:
        """Curves of train and val, and the heights of the lines; of one scale or over all tokens."""
        name = MEASURES[measure][scale is not None]
        curves = {}
        for split in ("train", "val"):
            found = [(row["step"], row[f"{split}_{name}"]) for row in rows if f"{split}_{name}" in row]
            values = [y if scale is None else y[scale] for _, y in found]
            curves[split] = [step for step, _ in found], [math.nan if y is None else y for y in values]
        scores = {
            key: np.array(nats if measure == "loss" else hits) for key, (nats, hits) in baselines.items()
        }
        heights = {
            tokens.FREQUENCIES[key]: float(
                np.average(values_S, weights=lengths) if scale is None else values_S[scale]
            )
            for key, values_S in scores.items()
        }
        return curves, heights

    def figure(
        file_name: str, panels: dict[str, tuple[dict, dict[str, float]]], title: str, columns: int
    ) -> None:
        plots.curves(
            folder / file_name,
            {name: curves for name, (curves, _) in panels.items()},
            {name: heights for name, (_, heights) in panels.items()},
            title=title,
            columns=columns,
            right_axes={name: ("bits per token", 1 / math.log(2)) for name in panels if "nats" in name},
            marks=marks,
            one_legend=True,
        )

    overall = {
        f"{where}: {MEASURES[measure][2]}": panel(measure, scale)
        for measure in MEASURES
        for where, scale in (("all tokens", None), ("last scale", -1))
    }
    figure("loss_curves.png", overall, "VAR: next-scale prediction", 2)
    for measure, (_, _, unit) in MEASURES.items():
        panels = {f"{n} x {n}: {unit}": panel(measure, scale) for scale, n in enumerate(patch_nums)}
        figure(f"{measure}_per_scale.png", panels, f"VAR: {measure} of each scale", 3)
