"""A million token maps: does memory grow with the number of them?

    python benchmarks/million_token_maps.py                                 # 1,000,000 maps, 2.8 GB on disk
    python benchmarks/million_token_maps.py --maps 200000 --folder runs/maps

Makes up token maps of full size (680 tokens, 2,048 codes, 20 classes), writes them as
tokenize_multiscale_maps.py does, and trains a small transformer for some steps with train_var.py, each in a
process of its own; then the same with a tenth of the maps. Prints seconds and the most memory of its own that
each process had, and fails when a map costs more than --bytes-per-map of it. Pages of the memory-mapped file
are not counted: the system takes them back when it needs room. Linux only.
"""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.processes import in_new_process
from usvar import cli
from usvar.errors import InputError, RunError
from usvar.files import new_memmap

PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
VOCAB_SIZE, CLASSES = 2048, 20
BLOCK = 8192


@dataclass(frozen=True)
class Settings:
    """How many, and what is allowed."""

    # Token maps of the larger run; the smaller one has a tenth.
    maps: int = 1_000_000

    # Optimiser steps of each run.
    steps: int = 20

    # Memory of its own that a map may cost in training, bytes; its 680 tokens alone are 1,360 on disk.
    bytes_per_map: float = 100.0

    # Takes the files, which are deleted at the end; none given: a new temporary folder.
    folder: Path | None = None


def own_bytes() -> int:
    """Memory of this process that is not a file's: RssAnon of Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise InputError("/proc/self/status has no RssAnon, wanted Linux 4.5 or later")


def _measure(work: Callable, arguments: tuple) -> tuple[float, int]:
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], own_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        work(*arguments)
        return time.perf_counter() - started, max(peak[0], own_bytes())
    finally:
        done.set()
        watcher.join()


def measured(work: Callable, *arguments: object) -> tuple[float, int]:
    """Seconds of `work` in a new process, and the most memory of its own that it had, in bytes."""
    return in_new_process(_measure, work, arguments)


def make_maps(folder: Path, count: int, vqvae_sha256: str) -> None:
    """Write a split's archive of made-up maps from memory-mapped arrays, as the tokeniser does."""
    from usvar import tokens

    folder.mkdir(parents=True, exist_ok=True)
    draw, length = np.random.default_rng(0), sum(side * side for side in PATCH_NUMS)
    idx_NL = new_memmap(folder / "idx.npy", np.uint16, (count, length))
    path_N = new_memmap(folder / "path.npy", "<U32", (count,))
    for start in range(0, count, BLOCK):
        rows = min(BLOCK, count - start)
        idx_NL[start : start + rows] = draw.integers(0, VOCAB_SIZE, (rows, length), dtype=np.uint16)
        path_N[start : start + rows] = [f"train/Class/{i:08d}.png" for i in range(start, start + rows)]
    label_N, view_N = np.arange(count) % CLASSES, np.zeros(count, dtype=np.int64)
    made_by = {"vocab_size": VOCAB_SIZE, "image_size": 256, "inputs": {"vqvae": {"sha256": vqvae_sha256}}}
    names = [f"Class{i:02d}" for i in range(CLASSES)]
    tokens.write_token_maps(folder, idx_NL, label_N, path_N, view_N, PATCH_NUMS, names, made_by)
    for name in ("idx.npy", "path.npy"):
        (folder / name).unlink()


def make_vqvae(path: Path) -> None:
    """A VQ-VAE of the full vocabulary with random weights."""
    from models import VQVAE
    from usvar.checkpoints import save_checkpoint

    arguments = {"vocab_size": VOCAB_SIZE, "z_channels": 16, "ch": 32, "v_patch_nums": list(PATCH_NUMS)}
    config = {"kind": "vqvae", "arguments": arguments, "image_size": 256}
    save_checkpoint(path, {"model": VQVAE(**arguments).state_dict(), "config": config, "made_by": {}})


def train(tokens_dir: Path, vqvae: Path, out: Path, steps: int) -> None:
    """train_var.py, small."""
    import torch

    import train_var

    torch.set_num_threads(1)
    sizes = {"depth": 1, "width": 64, "heads": 1, "batch_size": 4, "samples_per_class": 0, "device": "cpu"}
    every = {"steps": steps, "log_every": steps, "eval_every": steps, "save_every": steps}
    train_var.main(train_var.Settings(tokens_dir, vqvae, out, **sizes, **every))


def main(s: Settings) -> None:
    """Make, write and train twice; compare."""
    if s.maps < 20 * BLOCK or s.steps < 1:  # a tenth of them is two blocks, which are in memory by turns
        raise InputError(f"--maps {s.maps} --steps {s.steps} were given, wanted {20 * BLOCK} and 1 or more")
    from usvar.provenance import sha256_file

    folder = s.folder or Path(tempfile.mkdtemp())
    counts, training = (s.maps // 10, s.maps), []
    try:
        make_vqvae(folder / "vqvae.pth")
        sha256 = sha256_file(folder / "vqvae.pth")
        measured(make_maps, folder / "val", 256, sha256)
        for count in counts:
            seconds, peak = measured(make_maps, folder / "train", count, sha256)
            print(f"write {count:>9,} maps: {seconds:7.1f} s, {peak / 2**20:7.1f} MiB of its own", flush=True)
            # train_var.py reads <tokens-dir>/{train,val}.
            seconds, peak = measured(train, folder, folder / "vqvae.pth", folder / f"out_{count}", s.steps)
            print(f"train {count:>9,} maps: {seconds:7.1f} s, {peak / 2**20:7.1f} MiB of its own", flush=True)
            training.append(peak)
    finally:
        for name in ("vqvae.pth", "val", "train", *(f"out_{count}" for count in counts)):
            path = folder / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if s.folder is None:
            os.rmdir(folder)
    per_map = (training[1] - training[0]) / (counts[1] - counts[0])
    print(json.dumps({"maps": s.maps, "bytes_per_map": round(per_map, 1), "allowed": s.bytes_per_map}))
    if per_map > s.bytes_per_map:
        raise RunError(f"a token map costs {per_map:.0f} bytes of memory, {s.bytes_per_map:g} are allowed")


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
