"""Freed memory on a CPU given back to the system, and kept for the next step, batch or sample.

    python benchmarks/kept_memory.py                                   # full size, minutes
    python benchmarks/kept_memory.py --vqvae-width 32 --vqvae-batch 2

A training step of the transformer and one of the VQ-VAE, tokenising and sampling, without and with
`distributed.keep_freed_memory`, each way twice, by turns, in a process of its own. Prints the median time of
each (wall, and CPU of all threads), page faults (4 kB each, which the system clears first) and the most
memory that the process had so far. Writes kept_memory.json to <out-dir>. Linux with glibc only.
"""

import resource
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

# A script's own folder is on the path, the repository's root is not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import matrix_rate
from benchmarks.measure import NetworkSettings, as_record, build, cost_of, resident_mb
from benchmarks.processes import in_new_process
from benchmarks.training import Step
from usvar import cli, distributed
from usvar.files import write_json


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Batches for two cores."""

    # Token maps in a step of the transformer, and half as many samples.
    batch: int = 8

    # Images in a step of the VQ-VAE, and twice as many to be tokenised.
    vqvae_batch: int = 4

    # Times that each is measured in each process, after two that are not.
    repeats: int = 4


def measured(s: Settings, keep: bool) -> dict[str, dict[str, Any]]:
    """Times, page faults and memory of each; what malloc is told holds for the whole process."""
    device = torch.device("cpu")
    if keep:
        distributed.keep_freed_memory()
    sizes = matrix_rate.Settings(**asdict(s))
    vae, var, _ = build(sizes, device)
    side = 16 * s.patch_nums[-1]
    image_B3HW = torch.rand(2 * s.vqvae_batch, 3, side, side) * 2 - 1
    label_B = torch.arange(max(1, s.batch // 2)) % var.num_classes
    works = {
        "training step, transformer": Step(sizes, vae, var, device).run,
        "training step, VQ-VAE": matrix_rate.vqvae_step(sizes, vae, device)[0],
        "tokenising": lambda: vae.img_to_idxBl(image_B3HW),
        "sampling": lambda: var.autoregressive_infer_cfg(len(label_B), label_B, g_seed=0),
    }
    rows = {}
    for name, work in works.items():
        for _ in range(2):  # the first takes memory, the second what the first one's gaps were too small for
            work()
        costs, peaks_mb = [], []
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(s.repeats):
            costs.append(cost_of(work, device))
            peaks_mb.append(resident_mb("VmHWM"))
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        rows[name] = {
            "wall_s": [cost.wall_s for cost in costs],
            "cpu_s": [cost.cpu_s for cost in costs],
            "page_faults": faults / s.repeats,
            "peak_mb": max(peaks_mb),
        }
    return rows


def main(s: Settings) -> None:
    """Both ways twice, a table, a file."""
    runs = {"given back": [], "kept": []}
    for _ in range(2):
        for way, found in runs.items():
            found.append(in_new_process(measured, s, way == "kept"))
    rows: dict[str, dict[str, Any]] = {}
    for name in runs["kept"][0]:
        rows[name] = {
            way: {
                "wall_s": statistics.median(t for run in found for t in run[name]["wall_s"]),
                "cpu_s": statistics.median(t for run in found for t in run[name]["cpu_s"]),
                "page_faults": statistics.mean(run[name]["page_faults"] for run in found),
                "peak_mb": max(run[name]["peak_mb"] for run in found),
            }
            for way, found in runs.items()
        }
        before, after = rows[name]["given back"], rows[name]["kept"]
        print(
            f"{name}: {before['wall_s']:.3f} -> {after['wall_s']:.3f} s "
            f"({before['wall_s'] / after['wall_s']:.2f} times), CPU {before['cpu_s']:.3f} -> "
            f"{after['cpu_s']:.3f} s ({before['cpu_s'] / after['cpu_s']:.2f} times), "
            f"{before['page_faults']:,.0f} -> {after['page_faults']:,.0f} page faults, "
            f"{before['peak_mb']:,.0f} -> {after['peak_mb']:,.0f} MB"
        )
    record = as_record(s, "benchmarks/kept_memory.py", {})
    write_json(s.out_dir / "kept_memory.json", {"made_by": record, "rows": rows})
    print(f"see {s.out_dir / 'kept_memory.json'}")


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
