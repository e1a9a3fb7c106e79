"""Images per second, memory, and which share of the device's own matrix rate the training steps reach.

    python benchmarks/matrix_rate.py --device cuda --dtype bfloat16                 # full size
    python benchmarks/matrix_rate.py --batch 2 --vqvae-batch 1 --matrix-side 1024   # two cores

First square matrices are multiplied in --dtype: the fastest of --matrix-side and its two halvings is the rate
that this device really reaches. Then a training step of the VQ-VAE (squared error and VQ loss), one of the
transformer on token maps, tokenising and sampling with decoding are timed; their floating-point operations
are counted by PyTorch (torch.utils.flop_counter: matrix products, convolutions and attention, each
multiplication and addition as one). Writes matrix_rate.json to <out-dir>.
"""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

# A script's own folder is on the path, the repository's root is not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train_var
import train_vqvae
from benchmarks.measure import NetworkSettings, as_record, build, cost_of
from benchmarks.training import Step
from models import VQVAE
from usvar import cli, distributed, training
from usvar.distributed import World
from usvar.errors import InputError
from usvar.files import write_json
from usvar.muon import Muon


@dataclass(frozen=True)
class Settings(NetworkSettings):
    # cpu or cuda.
    device: str = "cpu"

    # Of the networks and of the matrices.
    dtype: Literal["float32", "bfloat16"] = "float32"

    # Token maps in a step of the transformer, and images sampled at once.
    batch: int = 64

    # Images in a step of the VQ-VAE, and tokenised at once.
    vqvae_batch: int = 32

    # Largest side of the matrices.
    matrix_side: int = 8192

    # Times that each is measured, after one that is not counted; the fastest is given.
    repeats: int = 5

    # Compile the networks with torch.compile: minutes of compiling.
    compile: bool = False


def matrix_rate(s: Settings, device: torch.device) -> tuple[float, int]:
    """The most operations a second of a product of two square matrices, and their side."""
    best = (0.0, 0)
    for side in (s.matrix_side, s.matrix_side // 2, s.matrix_side // 4):
        left, right = (
            torch.randn(side, side, device=device, dtype=getattr(torch, s.dtype)) for _ in range(2)
        )
        seconds = fastest(lambda left=left, right=right: left @ right, device, s.repeats)
        best = max(best, (2 * side**3 / seconds, side))
    return best


def fastest(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Wall seconds of the fastest call; a first one is not counted."""
    work()
    return min(cost_of(work, device).wall_s for _ in range(repeats))


def vqvae_step(
    s: Settings, vae: VQVAE, device: torch.device
) -> tuple[Callable[[], None], Callable[[], torch.Tensor]]:
    """A training step of the VQ-VAE with its base loss on random images, and it without the optimiser."""
    vae = vae.train().requires_grad_().to(memory_format=training.image_layout(device))
    if s.compile:
        vae.compile_levels()
    groups = training.decay_groups(vae, weight_decay=0.01, muon_rate=train_vqvae.Settings.muon_rate)
    optimiser = Muon(groups, lr=1e-4, betas=(0.9, 0.95), dtype=getattr(torch, s.dtype))
    guard = training.StepGuard(vae.parameters(), optimiser, 1.0, World(0, 1, device))
    side = vae.image_side
    image_B3HW = torch.rand(s.vqvae_batch, 3, side, side, device=device) * 2 - 1

    def backward() -> torch.Tensor:
        with training.autocast(device, getattr(torch, s.dtype)):
            rebuilt_B3HW, _, vq = vae(image_B3HW)
        loss = (rebuilt_B3HW.float() - image_B3HW).square().mean() + vq
        loss.backward()
        return loss

    def step() -> None:
        guard.step(0, 1e-4, backward())

    return step, backward


def main(s: Settings) -> None:
    if s.matrix_side < 4 or s.vqvae_batch < 1:
        raise InputError("--matrix-side must be 4 or more and --vqvae-batch 1 or more")
    device, dtype = distributed.choose_device(s.device), getattr(torch, s.dtype)
    vae, var, _ = build(s, device)
    side = vae.image_side
    image_B3HW = torch.rand(s.vqvae_batch, 3, side, side, device=device) * 2 - 1
    label_B = torch.arange(s.batch, device=device) % var.num_classes

    # In float32 and with the weights as they lie, as tokenize_multiscale_maps.py has it.
    tokeniser = copy.deepcopy(vae)

    def tokenise() -> None:
        tokeniser.img_to_idxBl(image_B3HW)

    def sample() -> None:
        with torch.no_grad(), training.autocast(device, dtype):
            var.autoregressive_infer_cfg(s.batch, label_B, g_seed=0, cfg=1.5, top_k=900, top_p=0.95)

    rate, matrix_side = matrix_rate(s, device)
    print(f"{s.dtype} matrices of {matrix_side} x {matrix_side}: {rate / 1e12:.3g} TFLOP/s")
    on_tokens = Step(s, vae, var, device, muon_rate=train_var.Settings.muon_rate, compile=s.compile)
    train, without_optimiser = vqvae_step(s, vae, device)
    if s.compile:
        # After `Step`, which takes a copy of the transformer and compiles it as a whole.
        var.compile_blocks()
    work = {
        "tokenise": (tokenise, s.vqvae_batch),
        "sample and decode": (sample, s.batch),
        "training step, transformer": (on_tokens.run, s.batch),
        # Last: it lets the VQ-VAE, which the others use, train.
        "training step, VQ-VAE": (train, s.vqvae_batch),
    }
    # Operations are counted of the networks alone: Muon's products are many for one image, few for a batch.
    counted = {train: without_optimiser, on_tokens.run: on_tokens.backward}
    rows = {}
    for name, (call, images) in tqdm(work.items(), desc="measure", file=sys.stdout):
        vae.train(name == "training step, VQ-VAE")
        # Eager, because what is first called under the counter torch.compile leaves alone for good.
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            counted.get(call, call)()
        operations = counter.get_total_flops()
        seconds = fastest(call, device, s.repeats)
        rows[name] = {
            "images": images,
            "seconds": seconds,
            "images_per_s": images / seconds,
            "operations": operations,
            "operations_per_s": operations / seconds,
            "share_of_matrix_rate": operations / seconds / rate,
            "extra_peak_mb": cost_of(call, device, memory=True).peak_mb,
        }
    print(f"{'':26}  images/s   TFLOP/s  of the matrix rate  extra MB")
    for name, row in rows.items():
        print(
            f"{name:26}  {row['images_per_s']:8.2f}  {row['operations_per_s'] / 1e12:8.3f}  "
            f"{row['share_of_matrix_rate']:18.1%}  {row['extra_peak_mb']:8.0f}"
        )
    write_json(
        s.out_dir / "matrix_rate.json",
        {
            "made_by": as_record(s, "benchmarks/matrix_rate.py", {}),
            "matrix_operations_per_s": rate,
            "matrix_side": matrix_side,
            "rows": rows,
        },
    )
    print(f"see {s.out_dir / 'matrix_rate.json'}")


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
