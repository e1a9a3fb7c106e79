"""How well the VQ-VAE rebuilds: split by split, class by class, scale by scale.

    python sample_vqvae.py --data-root data/processed --vqvae runs/vqvae/best.pth
    python sample_vqvae.py --data-root data/processed --vqvae runs/vqvae/best.pth --splits val --by-scale 0

Reads <data-root>/{train,val,test}/<Class>/*.png and the VQ-VAE. Writes to <out-dir>:
reconstruction_metrics.json (MSE, MAE, PSNR and SSIM of each split and class with mean, spread and count),
scales_<Class>.png (rebuilt from 1, 2, ... all scales, the original at the right), quality_by_scale.png,
speckle.png (power over spatial frequency and grey levels, real and rebuilt: squared error smooths speckle
away, and a clinician sees that first) and worst_<n>.png. Images are streamed: memory does not grow with the
data set.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models import VQVAE
from models.helpers import scale_boundaries
from usvar import checks, cli, distributed, images, metrics, physics, plots, provenance
from usvar.checkpoints import load_vqvae
from usvar.errors import InputError
from usvar.files import lock_folder, write_json
from usvar.training import batches

# Columns of the printed table: metric -> (heading, decimals).
TABLE = {"psnr_db": ("PSNR, dB", 2), "ssim": ("SSIM", 4), "mse": ("MSE", 5), "mae": ("MAE", 4)}
# Examples in scales_<Class>.png come from val: what was trained on looks better than it is.
EXAMPLE_SPLIT = "val"


@dataclass(frozen=True)
class Settings:
    """What is rebuilt and what is drawn."""

    # Prepared images: <data-root>/{train,val,test}/<Class>/*.png.
    data_root: Path

    # Checkpoint of train_vqvae.py, or one in the published layout.
    vqvae: Path

    # Numbers and figures are written here.
    out_dir: Path = Path("runs/reconstructions")

    # Splits to measure, out of train, val and test.
    splits: tuple[images.Split, ...] = images.SPLITS

    # Images per class and split, evenly spread, that are also measured after 1, 2, ... scales; 0: none.
    by_scale: int = 8

    # Images in the figure of each class.
    images_per_class: int = 4

    # Images in the figure of the worst, by PSNR.
    worst: int = 20

    # Images at once.
    batch_size: int = 16

    # auto (a GPU if there is one), cpu, cuda or cuda:1.
    device: str = "auto"


def check(s: Settings) -> None:
    """Refuse settings that make no sense, before anything is read.

    Raises:
        InputError: names the first such setting.
    """
    checks.require(s, "1 or more", "images_per_class", "worst", "batch_size")
    checks.require(s, "0 or more", "by_scale")
    if not s.splits:
        raise InputError(f"--splits was given without any, wanted some of {', '.join(images.SPLITS)}")


def seen_and_rebuilt(model: VQVAE, grey_BHW: np.ndarray, every_scale: bool) -> tuple[Tensor, list[Tensor]]:
    """Images as the network sees them, and rebuilt from 1, 2, ... all scales (or only from all)."""
    image_B3HW = images.to_model_range(grey_BHW, next(model.parameters()).device)
    rebuilt = model.img_to_reconstructed_img(image_B3HW, last_one=not every_scale)
    return image_B3HW, rebuilt if every_scale else [rebuilt]


@dataclass
class Speckle:
    """Spectrum and grey levels of the images of a split, summed batch by batch. Axes: F frequencies."""

    images: int = 0
    frequency_F: np.ndarray | float = 0.0
    # Sums over images of power and of the share of pixels at each grey level.
    power_F: np.ndarray | float = 0.0
    grey_256: np.ndarray | float = 0.0

    def add(self, grey_BHW: np.ndarray) -> None:
        """Take in some more images, uint8."""
        self.frequency_F, power_F = physics.radial_power_spectrum(grey_BHW)
        self.power_F = self.power_F + len(grey_BHW) * power_F
        self.grey_256 = self.grey_256 + len(grey_BHW) * physics.grey_shares(grey_BHW)
        self.images += len(grey_BHW)

    @property
    def power_db_F(self) -> np.ndarray:
        """Mean power over images, dB."""
        return 10 * np.log10(self.power_F / self.images + 1e-12)


def stacked_errors(image_B3HW: Tensor, rebuilt_B3HW: Tensor) -> Tensor:
    """Every metric of every image, (M, B), on the CPU."""
    errors = metrics.image_errors(image_B3HW, rebuilt_B3HW)
    return torch.stack([errors[name] for name in metrics.METRICS]).cpu()


@torch.no_grad()
def measure(
    s: Settings, model: VQVAE, files: images.ImageFiles
) -> tuple[dict[str, np.ndarray], dict[str, Speckle]]:
    """Errors of every image of a split, metric -> (N,), and the speckle of real and of rebuilt images."""
    side, parts = images.image_size(files), []
    speckle = {"real": Speckle(), "rebuilt": Speckle()}
    with tqdm(total=len(files), desc=f"rebuild {files.split}", file=sys.stdout) as progress:
        for rows in batches(range(len(files)), s.batch_size):
            grey_BHW = images.read_images(files, rows, side)
            image_B3HW, rebuilt = seen_and_rebuilt(model, grey_BHW, every_scale=False)
            parts.append(stacked_errors(image_B3HW, rebuilt[-1]))
            speckle["real"].add(grey_BHW)
            speckle["rebuilt"].add(images.to_uint8(rebuilt[-1]))
            progress.update(len(rows))
    return dict(zip(metrics.METRICS, torch.cat(parts, dim=1).numpy(), strict=True)), speckle


def compare_speckle(speckle: dict[str, Speckle]) -> dict[str, object]:
    """Curves of real and rebuilt images, and how far they lie apart."""
    real, rebuilt = speckle["real"], speckle["rebuilt"]
    shares = {name: summed.grey_256 / summed.images for name, summed in speckle.items()}
    return {
        **physics.detail_difference(
            real.frequency_F, rebuilt.power_db_F - real.power_db_F, shares["rebuilt"] - shares["real"]
        ),
        "cycles_a_pixel": real.frequency_F.tolist(),
        "power_db": {name: summed.power_db_F.tolist() for name, summed in speckle.items()},
        "grey_shares": {name: share_256.tolist() for name, share_256 in shares.items()},
    }


def evenly_spread(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows, from the first to the last."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]


@torch.no_grad()
def measure_by_scale(s: Settings, model: VQVAE, files: images.ImageFiles) -> list[dict[str, object]]:
    """Errors after 1, 2, ... all scales, by class, over some images of each class of a split."""
    rows_of_class = (np.flatnonzero(files.label_N == label) for label in range(len(files.classes)))
    chosen = np.concatenate([evenly_spread(rows, s.by_scale) for rows in rows_of_class])
    _, *ends = scale_boundaries(model.quantize.v_patch_nums)
    side, parts = images.image_size(files), []
    with tqdm(total=len(chosen), desc=f"scale by scale, {files.split}", file=sys.stdout) as progress:
        for rows in batches(chosen, s.batch_size):
            grey_BHW = images.read_images(files, rows.tolist(), side)
            image_B3HW, rebuilt = seen_and_rebuilt(model, grey_BHW, every_scale=True)
            parts.append(torch.stack([stacked_errors(image_B3HW, rebuilt_B3HW) for rebuilt_B3HW in rebuilt]))
            progress.update(len(rows))
    found = []
    for scales, (end, errors_MN) in enumerate(zip(ends, torch.cat(parts, dim=2).numpy(), strict=True), 1):
        errors = dict(zip(metrics.METRICS, errors_MN, strict=True))
        scores = by_class(errors, files.label_N[chosen], files.classes)
        found.append({"scales": scales, "K": end, **scores})
    return found


def by_class(
    errors: dict[str, np.ndarray], label_N: np.ndarray, classes: tuple[str, ...]
) -> dict[str, dict[str, object]]:
    """Count, mean and spread of each metric over all images and over those of each class."""
    return {
        "all": summary(errors, np.ones(len(label_N), dtype=bool)),
        "classes": {name: summary(errors, label_N == label) for label, name in enumerate(classes)},
    }


def summary(errors: dict[str, np.ndarray], chosen_N: np.ndarray) -> dict[str, object]:
    """Count, and mean and standard deviation of each metric over some images of a split."""
    count = int(chosen_N.sum())
    if not count:
        return {"count": 0}
    moments = {
        name: {"mean": float(values[chosen_N].mean()), "std": float(values[chosen_N].std())}
        for name, values in errors.items()
    }
    return {"count": count, **moments}


@torch.no_grad()
def draw_scales(s: Settings, model: VQVAE, files: images.ImageFiles) -> None:
    """A figure per class: rebuilt from 1, 2, ... all scales, then the original."""
    _, *ends = scale_boundaries(model.quantize.v_patch_nums)
    columns = [f"{n} scale{'s' * (n > 1)}\nK = {end}" for n, end in enumerate(ends, 1)]
    for label, name in enumerate(files.classes):
        rows = np.flatnonzero(files.label_N == label)
        if not len(rows):
            continue
        rows = evenly_spread(rows, s.images_per_class)
        grey_BHW = images.read_images(files, rows.tolist(), images.image_size(files))
        _, rebuilt = seen_and_rebuilt(model, grey_BHW, every_scale=True)
        shown = [*map(images.to_uint8, rebuilt), grey_BHW]
        plots.image_grid(
            s.out_dir / f"scales_{name}.png",
            [list(row) for row in zip(*shown, strict=True)],
            [f"image {row - rows[0] + 1}" for row in rows],
            [*columns, "original"],
            f"{name}: {files.split} images rebuilt from their first K tokens, scale by scale",
        )


@torch.no_grad()
def draw_worst(s: Settings, model: VQVAE, worst: list[tuple[float, images.ImageFiles, int]]) -> None:
    """The images that are rebuilt worst, original at the left and rebuilt at the right of each pair."""
    pairs, names = [], []
    for psnr_db, files, row in worst:
        grey_BHW = images.read_images(files, [row], images.image_size(files))
        _, rebuilt = seen_and_rebuilt(model, grey_BHW, every_scale=False)
        pairs.append(np.hstack([grey_BHW[0], images.to_uint8(rebuilt[-1])[0]]))
        names.append(f"{files.split}, {files.classes[files.label_N[row]]}, {psnr_db:.1f} dB")
    columns = min(4, len(pairs))
    rows = list(batches(pairs, columns))
    plots.image_grid(
        s.out_dir / f"worst_{s.worst}.png",
        rows,
        [""] * len(rows),
        [""] * columns,
        f"The {len(pairs)} images with the lowest PSNR: original at the left, rebuilt at the right",
        cell_names=list(batches(names, columns)),
    )


def draw_by_scale(s: Settings, by_scale: dict[str, list[dict]]) -> None:
    """PSNR and SSIM over the number of scales, a curve per split."""
    panels = {
        title: {
            f"{split} ({found[0]['all']['count']} images)": (
                [row["scales"] for row in found],
                [row["all"][name]["mean"] for row in found],
            )
            for split, found in by_scale.items()
        }
        for title, name in (("PSNR, dB", "psnr_db"), ("SSIM", "ssim"))
    }
    plots.curves(
        s.out_dir / "quality_by_scale.png",
        panels,
        title="VQ-VAE: quality by number of scales",
        x_label="scales decoded",
    )


def draw_speckle(s: Settings, speckle: dict[str, dict]) -> None:
    """A row per split: power over spatial frequency, and the histogram of grey levels."""
    panels = {}
    for split, compared in speckle.items():
        power_db, shares = compared["power_db"], compared["grey_shares"]
        difference = f"{compared['spectrum_difference_rms_db']:.1f} dB apart"
        panels[f"{split}: power, dB ({difference})"] = {
            name: (compared["cycles_a_pixel"], power_db[name]) for name in power_db
        }
        # Level 0 is the outside of the scan, half of all pixels: it would flatten the rest.
        panels[f"{split}: share of pixels, %, black left out"] = {
            name: (range(1, 256), 100 * np.array(shares[name][1:])) for name in shares
        }
    plots.curves(
        s.out_dir / "speckle.png",
        panels,
        title="VQ-VAE: fine detail and grey levels, real and rebuilt images",
        x_label=["spatial frequency, cycles per pixel", "grey level"] * len(speckle),
        columns=2,
    )


def print_table(splits: dict[str, dict]) -> None:
    """One line per class and split: count, and mean and spread of each metric."""
    width = max(len(name) for errors in splits.values() for name in ("all classes", *errors["classes"]))
    heads = "".join(f"  {head:>18}" for head, _ in TABLE.values())
    print(f"{'split':5}  {'class':{width}}  {'images':>6}{heads}   (mean ± standard deviation)")
    for split, errors in splits.items():
        for name, row in (*errors["classes"].items(), ("all classes", errors["all"])):
            cells = [
                f"{row[metric]['mean']:.{digits}f} ± {row[metric]['std']:.{digits}f}" if row["count"] else "-"
                for metric, (_, digits) in TABLE.items()
            ]
            print(f"{split:5}  {name:{width}}  {row['count']:6}{''.join(f'  {cell:>18}' for cell in cells)}")


def main(s: Settings) -> None:
    """Measure every split, then draw."""
    check(s)
    device = distributed.choose_device(s.device)
    vqvae = load_vqvae(s.vqvae, device)
    model: VQVAE = vqvae.model
    splits = dict.fromkeys(s.splits)  # each once
    files_of_splits = images.find_images_of_side(s.data_root, splits, model.image_side, s.vqvae)
    train_files = images.find_images(s.data_root, "train", images.find_classes(s.data_root))
    is_trained_on_these = images.note_other_training(s.vqvae, vqvae.made_by, train_files)
    lock = lock_folder(s.out_dir)

    measured, speckle, by_scale, ranked = {}, {}, {}, []
    for files in files_of_splits:
        errors, summed = measure(s, model, files)
        speckle[files.split] = compare_speckle(summed)
        measured[files.split] = by_class(errors, files.label_N, files.classes)
        lowest = np.argsort(errors["psnr_db"], kind="stable")[: s.worst]
        ranked += [(float(errors["psnr_db"][row]), files, int(row)) for row in lowest]
        if s.by_scale:
            by_scale[files.split] = measure_by_scale(s, model, files)
    ranked.sort(key=lambda entry: entry[0])
    worst = ranked[: s.worst]

    write_json(
        s.out_dir / "reconstruction_metrics.json",
        {
            "made_by": provenance.made_by("sample_vqvae.py", s, {"vqvae": s.vqvae}),
            "note": "mean and standard deviation over images; errors on grey values from 0 to 1",
            "vqvae_is_trained_on_this_train": is_trained_on_these,
            "splits": measured,
            "by_number_of_scales": by_scale,
            "speckle": speckle,
            "worst": [
                {"path": files.paths[row], "class": files.classes[files.label_N[row]], "psnr_db": psnr_db}
                for psnr_db, files, row in worst
            ],
        },
    )
    examples = next((files for files in files_of_splits if files.split == EXAMPLE_SPLIT), files_of_splits[0])
    draw_scales(s, model, examples)
    draw_worst(s, model, worst)
    draw_speckle(s, speckle)
    if by_scale:
        draw_by_scale(s, by_scale)
    print_table(measured)
    for split, row in speckle.items():
        print(
            f"{split:5}  spectrum {row['spectrum_difference_rms_db']:.1f} dB RMS from the real one, "
            f"{row['fine_detail_power_difference_db']:+.1f} dB above 0.25 cycles per pixel; "
            f"grey levels {row['grey_level_distance']:.1f} of 255 apart"
        )
    print(f"done: {s.out_dir / 'reconstruction_metrics.json'}, figures in {s.out_dir}")
    lock.close()


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
