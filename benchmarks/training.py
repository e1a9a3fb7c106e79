"""Time and memory of a training step: each fast path off and on, and beside the published package.

    python benchmarks/training.py
    python benchmarks/training.py --published path/to/VAR             # a checkout of the published package
    python benchmarks/training.py --device cuda --dtype bfloat16 --batch 64 --published path/to/VAR

A step is the teacher-forcing input from token ids, forward, cross-entropy, backward, clipping and AdamW (in
one row Muon, as train_var.py has it). Both ways of a row run in turn from the same random weights; that loss
and gradients are the same is checked first. Writes training.json and training.png to <out-dir>. The published
trainer also runs the VQ-VAE's encoder in each step; that is a row of its own.
"""

import copy
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

# A script's own folder is on the path, the repository's root is not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train_var
from benchmarks.measure import (
    Cost,
    NetworkSettings,
    Pair,
    as_record,
    build,
    cost_of,
    measure,
    report,
    start_packages,
    summary,
)
from models import VAR, VQVAE
from models.fast_paths import attend, fused_attention, linear, scaled_norm
from models.helpers import scale_spans, split_scales
from usvar import cli, distributed, training
from usvar.distributed import World
from usvar.muon import Muon, layers_for_muon, round_by_round, through_square


@dataclass(frozen=True)
class Settings(NetworkSettings):
    # Checkout of the published package; without it only the fast paths are measured.
    published: Path | None = None

    # Measure each fast path, too; False leaves only what stands beside the published package.
    fast_paths: bool = True

    # cpu or cuda.
    device: str = "cpu"

    # Tokens whose logits are held at once by the loss in chunks.
    chunk: int = 1024

    # Also measure torch.compile, and on a GPU FlexAttention, which needs it: minutes of compiling.
    compile: bool = False


class Step:
    """A training step of a model of its own, always on the same tokens."""

    def __init__(self, s: NetworkSettings, vae: VQVAE, var: VAR, device: torch.device, **ways: Any) -> None:
        self.vae, self.model, self.device = vae, copy.deepcopy(var).train(), device
        # Which classes are dropped is drawn, so equality needs it off; it costs nothing.
        self.model.cond_drop_rate = 0.0
        self.model.attend_by_scale = ways.get("by_scale", True)
        self.model.recompute_blocks = ways.get("recompute", False)
        self.chunk = ways.get("chunk")
        self.encode = ways.get("encode", False)
        self.dtype = ways.get("dtype", torch.bfloat16 if s.dtype == "bfloat16" else torch.float32)
        self.network = torch.compile(self.model, dynamic=False) if ways.get("compile") else self.model
        # With a rate of 0 it is fused AdamW, as the published trainer has it.
        layers = layers_for_muon(self.model)
        groups = training.decay_groups(self.model, 0.05, ways.get("muon_rate", 0.0), layers)
        self.optimiser = Muon(groups, lr=1e-4, betas=(0.9, 0.95), dtype=self.dtype)
        self.guard = training.StepGuard(self.model.parameters(), self.optimiser, 2.0, World(0, 1, device))
        stream = torch.Generator().manual_seed(0)
        self.label_B = (torch.arange(s.batch) % self.model.num_classes).to(device)
        self.idx_BL = torch.randint(s.vocab_size, (s.batch, self.model.L), generator=stream).to(device)
        side = 16 * s.patch_nums[-1] if self.encode else 1
        self.image_B3HW = (torch.rand(s.batch, 3, side, side, generator=stream) * 2 - 1).to(device)

    def backward(self) -> torch.Tensor:
        """Loss, with gradients in the model."""
        if self.encode:
            with training.autocast(self.device, self.dtype):
                self.vae.img_to_idxBl(self.image_B3HW)
        with torch.no_grad():
            maps = split_scales(self.idx_BL, self.model.patch_nums)
            input_BLC = self.vae.quantize.idxBl_to_var_input(maps)
        with training.autocast(self.device, self.dtype):
            if self.chunk is None:
                logits_BLV = self.network(self.label_B, input_BLC)
                loss = F.cross_entropy(logits_BLV.flatten(0, 1), self.idx_BL.flatten())
            else:
                target = {"target_BL": self.idx_BL, "chunk": self.chunk}
                loss = self.network(self.label_B, input_BLC, **target)[0].mean()
        loss.backward()
        return loss.detach()

    def run(self) -> None:
        """The whole step."""
        self.guard.step(0, 1e-4, self.backward())

    def gradient(self) -> torch.Tensor:
        """All gradients of the loss in one vector, for comparison."""
        self.backward()
        gradient = torch.cat([p.grad.flatten() for p in self.model.parameters()]).double()
        self.optimiser.zero_grad(set_to_none=True)
        return gradient


def fast_paths(s: Settings, vae: VQVAE, var: VAR, device: torch.device) -> list[Pair]:
    """Each fast path of the step, off and on."""

    def pair(name: str, work: Callable[[Any], Any], slow: Any, fast: Any) -> Pair:
        """The same work by two ways."""
        costs = (lambda memory, way=way: cost_of(lambda: work(way), device, memory) for way in (slow, fast))
        return Pair(name, *costs)

    ways: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "step: encoder in it -> tokens from a file": ({"encode": True}, {}),
        "step: attention by mask -> by scale": ({"by_scale": False}, {}),
        "step: loss undivided -> in chunks": ({}, {"chunk": s.chunk}),
        "step: activations kept -> made again": ({}, {"recompute": True}),
        "step: both for memory": ({}, {"chunk": s.chunk, "recompute": True}),
        "step: AdamW -> Muon for the blocks": ({}, {"muon_rate": train_var.Settings.muon_rate}),
        "step: float32 -> bfloat16": ({"dtype": torch.float32}, {"dtype": torch.bfloat16}),
    }
    if s.compile:
        ways["step: eager -> compiled"] = ({}, {"compile": True})
    pairs = []
    for name, (slow_way, fast_way) in ways.items():
        slow, fast = (Step(s, vae, var, device, **way) for way in (slow_way, fast_way))
        wanted, found = slow.gradient(), fast.gradient()
        error = float((wanted - found).norm() / wanted.norm())
        if not error < (1e-3 if slow.dtype == fast.dtype == torch.float32 else 0.1):
            raise SystemExit(f"FAILED: {name} changes the gradient by {error:.1e} of its norm")
        pairs.append(pair(name, Step.run, slow, fast))

    for name, work, slow, fast in parts(s, var, device):
        wanted, found = work(slow).double(), work(fast).double()
        error = float((wanted - found).norm() / wanted.norm())
        if not error < 3e-2:
            raise SystemExit(f"FAILED: {name} changes the numbers by {error:.1e} of their norm")
        pairs.append(pair(name, work, slow, fast))
    return pairs


def parts(s: Settings, var: VAR, device: torch.device) -> list[tuple[str, Callable, Callable, Callable]]:
    """Parts of a step at the shapes that they have in it: name, work of a way, and the two ways."""
    dtype = torch.bfloat16 if s.dtype == "bfloat16" else torch.float32
    heads, spans, stream = var.num_heads, scale_spans(s.patch_nums), torch.Generator(device).manual_seed(0)
    layer, norm = var.blocks[0].ffn.fc1, var.blocks[0].ln_wo_grad

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, generator=stream, device=device, dtype=dtype)

    def gradient(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        """Of a weighted sum of what the function gives, for its first input."""
        leaves = [x.detach().requires_grad_() for x in inputs]
        y = function(*leaves)
        (y * weight[: y.numel()].view_as(y)).sum().backward()
        return leaves[0].grad

    x_BLD, scale_B1D, shift_B1D = (draw(s.batch, n, var.C) for n in (var.L, 1, 1))
    q, k, v = (draw(s.batch, heads, var.L, var.C // heads, dtype=dtype) for _ in range(3))
    weight = draw(s.batch * var.L * layer.out_features)

    def product(function: Callable[..., torch.Tensor]) -> torch.Tensor:
        with training.autocast(device, dtype):
            return gradient(function, x_BLD, layer.weight, layer.bias)

    def normed(function: Callable[..., torch.Tensor]) -> torch.Tensor:
        return gradient(lambda x, *more: function(x, norm, *more), x_BLD, scale_B1D, shift_B1D)

    def plain_norm(
        x_BLD: torch.Tensor, norm: torch.nn.Module, scale_B1D: torch.Tensor, shift_B1D: torch.Tensor
    ) -> torch.Tensor:
        return norm(x_BLD) * (1 + scale_B1D) + shift_B1D

    def attention(function: Callable[..., torch.Tensor]) -> torch.Tensor:
        return gradient(lambda q, k, v: function(q, k, v, spans, 0.25), q, k, v)

    wide_NOI = draw(s.depth, var.C, layer.out_features)
    wide_NOI /= wide_NOI.norm(dim=(1, 2), keepdim=True)
    found = [
        ("products: PyTorch's choice -> ours", product, F.linear, linear),
        ("norm: in parts -> keeps its input only", normed, plain_norm, scaled_norm),
        ("attention: PyTorch's fused -> ours", attention, fused_attention, attend),
        ("Muon, wide matrices: rounds -> square", lambda way: way(wide_NOI), round_by_round, through_square),
    ]
    # On a CPU it has no gradients, and with two threads torch 2.11's kernel writes where it must not.
    if s.compile and device.type == "cuda":
        sizes_S = torch.tensor([end - start for start, end in spans], device=device)
        scale_L = torch.arange(len(spans), device=device).repeat_interleave(sizes_S)
        mask = create_block_mask(
            lambda b, h, query, key: scale_L[key] <= scale_L[query], None, None, var.L, var.L, device=device
        )
        compiled = torch.compile(flex_attention)

        def flex(q, k, v, spans, scale: float) -> torch.Tensor:
            return compiled(q, k, v, block_mask=mask, scale=scale)

        found.append(("attention: FlexAttention -> ours", attention, flex, attend))
    return found


def published_pairs(s: Settings, theirs: Any, ours: Any) -> list[Pair]:
    """A step of both on tokens, and the published one with its encoder beside ours without.

    "With Muon" is ours as train_var.py takes it by default: more work a step, for fewer nats after as many.
    """

    def cost(worker: Any, **request: Any) -> Callable[[bool], Cost]:
        return lambda memory: worker.cost("step", batch=s.batch, seed=0, memory=memory, **request)

    muon = {"muon_rate": train_var.Settings.muon_rate}
    return [
        Pair("step on tokens: published -> ours", cost(theirs), cost(ours)),
        Pair("step on tokens: published -> ours with Muon", cost(theirs), cost(ours, **muon)),
        Pair("step: published with encoder -> ours", cost(theirs, encode=True), cost(ours)),
        Pair("step: published with encoder -> ours with Muon", cost(theirs, encode=True), cost(ours, **muon)),
    ]


def main(s: Settings) -> None:
    device = distributed.choose_device(s.device)
    vae, var, arguments = build(s, device)
    s.out_dir.mkdir(parents=True, exist_ok=True)
    if s.fast_paths:
        pairs = fast_paths(s, vae, var, device)
        measure(pairs, s.repeats)
        record = as_record(s, "benchmarks/training.py", {})
        report(summary(pairs), s.out_dir, "training", record, ("off", "on"))
    if s.published is not None:
        with tempfile.TemporaryDirectory() as folder:
            theirs, ours, checks = start_packages(s, arguments, vae, var, Path(folder))
            try:
                pairs = published_pairs(s, theirs, ours)
                measure(pairs, s.repeats)
            finally:
                theirs.close()
                ours.close()
        record = as_record(s, "benchmarks/training.py", checks)
        report(summary(pairs), s.out_dir, "training_published", record, ("published", "ours"))


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
