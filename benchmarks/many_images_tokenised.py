"""A hundred thousand tiny images to token maps: does memory grow with the number of them?

    python benchmarks/many_images_tokenised.py                      # 100,000 images, about 0.3 GB on disk
    python benchmarks/many_images_tokenised.py --images 10000

Makes up grey pictures of 32 x 32 pixels in ten classes and tokenises them with a small VQ-VAE by
tokenize_multiscale_maps.py, in a process of its own; then the same with a tenth of them. Prints images/s and
the most memory of its own that each process had, and fails when an image costs more than --bytes-per-image of
it: the names of the pictures have to be held, their pixels and tokens have not. Linux only.
"""

import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.million_token_maps import measured
from usvar import cli
from usvar.errors import InputError, RunError

SIDE, PATCH_NUMS, CLASSES = 32, (1, 2), 10


@dataclass(frozen=True)
class Settings:
    """How many, and what is allowed."""

    # Images of the larger run; the smaller one has a tenth.
    images: int = 100_000

    # Memory of its own that an image may cost, bytes; its pixels alone are 1,024.
    bytes_per_image: float = 800.0

    # Takes the files, which are deleted at the end; none given: a new temporary folder.
    folder: Path | None = None


def make_images(root: Path, count: int) -> None:
    """Pictures of noise: {train,val,test}/<Class>/*.png, nearly all in train."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for split, images in (("train", count), ("val", CLASSES), ("test", CLASSES)):
        for i in range(images):
            path = root / split / f"Class{i % CLASSES}" / f"made__{i:08d}.png"
            if i < CLASSES:
                path.parent.mkdir(parents=True)
            Image.fromarray(draw.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)).save(path, compress_level=1)


def make_vqvae(path: Path) -> None:
    """A small VQ-VAE with random weights."""
    from models import VQVAE
    from usvar.checkpoints import save_checkpoint

    arguments = {"vocab_size": 256, "z_channels": 4, "ch": 32, "v_patch_nums": list(PATCH_NUMS)}
    config = {"kind": "vqvae", "arguments": arguments, "image_size": SIDE}
    save_checkpoint(path, {"model": VQVAE(**arguments).state_dict(), "config": config, "made_by": {}})


def tokenise(root: Path, vqvae: Path, out: Path) -> None:
    """tokenize_multiscale_maps.py, one view per image."""
    import torch

    import tokenize_multiscale_maps

    torch.set_num_threads(1)
    settings = tokenize_multiscale_maps.Settings(root, vqvae, out, views=1, batch_size=64, device="cpu")
    tokenize_multiscale_maps.main(settings)


def main(s: Settings) -> None:
    """Make and tokenise twice; compare."""
    if s.images < 1000:
        raise InputError(f"--images {s.images} was given, wanted 1,000 or more")
    folder = s.folder or Path(tempfile.mkdtemp())
    counts, peaks = (s.images // 10, s.images), []
    try:
        make_vqvae(folder / "vqvae.pth")
        for count in counts:
            make_images(folder / f"data_{count}", count)
            seconds, peak = measured(
                tokenise, folder / f"data_{count}", folder / "vqvae.pth", folder / f"out_{count}"
            )
            print(
                f"tokenise {count:>9,} images: {seconds:7.1f} s, {count / seconds:7.0f} images/s, "
                f"{peak / 2**20:7.1f} MiB of its own",
                flush=True,
            )
            peaks.append(peak)
    finally:
        for name in ("vqvae.pth", *(f"{kind}_{count}" for count in counts for kind in ("data", "out"))):
            path = folder / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if s.folder is None:
            folder.rmdir()
    per_image = (peaks[1] - peaks[0]) / (counts[1] - counts[0])
    print(
        json.dumps({"images": s.images, "bytes_per_image": round(per_image, 1), "allowed": s.bytes_per_image})
    )
    if per_image > s.bytes_per_image:
        raise RunError(f"an image costs {per_image:.0f} bytes of memory, {s.bytes_per_image:g} are allowed")


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
