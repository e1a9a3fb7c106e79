"""Time and memory of sampling: each fast path off and on, and beside the published package.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --published path/to/VAR             # a checkout of the published package
    python benchmarks/sampling.py --device cuda --dtype bfloat16 --batch 64 --published path/to/VAR

Both ways of a row run in turn on the same random weights; where a fast path is said to change nothing, that
is checked first. Parts are timed at the shapes that they have inside the sampler. Writes sampling.json and
sampling.png to <out-dir>. The published package must be able to import what it needs (huggingface_hub).
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

# A script's own folder is on the path, the repository's root is not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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
from models.basic_var import KeyValueCache
from models.fast_paths import linear
from models.helpers import filter_top_k_top_p, gumbel_noise, sample_with_top_k_top_p, scale_spans
from models.quant import upsample
from usvar import cli, distributed, training


@dataclass(frozen=True)
class Settings(NetworkSettings):
    # Checkout of the published package; without it only the fast paths are measured.
    published: Path | None = None

    # Measure each fast path, too; False leaves only what stands beside the published package.
    fast_paths: bool = True

    # cpu or cuda.
    device: str = "cpu"

    # Codes that may be drawn at a place.
    top_k: int = 900

    # Probability that they must reach together.
    top_p: float = 0.95

    # Guidance.
    cfg: float = 1.5

    # Also measure torch.compile: minutes of compiling.
    compile: bool = False


def sorted_filter(logits_BlV: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Top-k, then top-p over the whole codebook, as the published filter goes about it."""
    least = logits_BlV.topk(top_k, dim=-1).values[..., -1:]
    logits_BlV = logits_BlV.masked_fill(logits_BlV < least, -torch.inf)
    rising, order = logits_BlV.sort(dim=-1)
    drop = rising.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    drop[..., -1:] = False
    return logits_BlV.masked_fill(drop.scatter(-1, order, drop), -torch.inf)


def check_equal(name: str, slow: torch.Tensor, fast: torch.Tensor, tolerance: float = 1e-4) -> None:
    """A fast path that changes the numbers is no fast path."""
    error = float((slow.double() - fast.double()).norm() / slow.double().norm())
    if not error <= tolerance:
        raise SystemExit(f"FAILED: {name} changes the numbers by {error:.1e} of their norm")


@torch.no_grad()
def fast_paths(s: Settings, vae: VQVAE, var: VAR, device: torch.device) -> list[Pair]:
    """Each fast path of the sampler, off and on."""
    amp = torch.bfloat16 if s.dtype == "bfloat16" else torch.float32
    heads, rows, (start, end) = var.num_heads, 2 * s.batch, var.begin_ends[-1]
    last, spans = end - start, scale_spans(s.patch_nums)
    stream = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=stream, device=device)

    def pair(
        name: str,
        slow: Callable[[], Any],
        fast: Callable[[], Any],
        equal: bool = True,
        dtypes: tuple[torch.dtype, torch.dtype] = (amp, amp),
        rounding: float = 3e-2,
    ) -> Pair:
        def run(work: Callable[[], Any], dtype: torch.dtype) -> Any:
            with torch.no_grad(), training.autocast(device, dtype):
                return work()

        if equal:
            tolerance = 1e-4 if dtypes == (torch.float32, torch.float32) else rounding
            check_equal(name, run(slow, dtypes[0]), run(fast, dtypes[1]), tolerance)
        costs = [
            lambda memory, work=work, dtype=dtype: cost_of(lambda: run(work, dtype), device, memory)
            for work, dtype in zip((slow, fast), dtypes, strict=True)
        ]
        return Pair(name, *costs)

    sampling = {"seeds": range(s.batch), "top_k": s.top_k, "top_p": s.top_p}

    def tokens(cfg: float = s.cfg, model: VAR = var) -> torch.Tensor:
        return model.generate_tokens(1, cfg=cfg, **sampling)[0]

    def casting_anew() -> torch.Tensor:
        with torch.autocast(device.type, amp, cache_enabled=False):
            return tokens()

    cond_BD, logits_BlV = draw(rows, var.D), 2 * draw(s.batch, last, s.vocab_size)
    gumbel_BlV = gumbel_noise(list(range(s.batch)), range(last), s.vocab_size, device)
    k_BHLd, v_BHLd = (draw(rows, heads, var.L, var.C // heads) for _ in range(2))

    def adaln(times: int) -> torch.Tensor:
        return [block.modulation(cond_BD) for _ in range(times) for block in var.blocks][-1]

    def grown() -> torch.Tensor:
        k = v = None
        for a, b in spans:
            k_new, v_new = k_BHLd[:, :, a:b], v_BHLd[:, :, a:b]
            k = k_new if k is None else torch.cat([k, k_new], dim=2)
            v = v_new if v is None else torch.cat([v, v_new], dim=2)
        return k

    def preallocated() -> torch.Tensor:
        cache = KeyValueCache(var.L)
        return [cache.extend(k_BHLd[:, :, a:b], v_BHLd[:, :, a:b]) for a, b in spans][-1][0]

    x_BlD, first_B1D = draw(rows, last, var.C), draw(rows, 1, var.C)
    hidden = var.blocks[0].ffn.fc1
    up = vae.decoder.up[1].upsample
    map_BChw = draw(1, up.conv.in_channels, 8 * s.patch_nums[-1], 8 * s.patch_nums[-1])
    if device.type == "cpu":  # as fhat_to_img lays it out
        map_BChw = map_BChw.contiguous(memory_format=torch.channels_last)
    f_hat = draw(s.batch, vae.Cvae, s.patch_nums[-1], s.patch_nums[-1])
    maps_of_codes = [draw(s.batch, vae.Cvae, side, side) for side in s.patch_nums[:-1]]

    def head_at_first_scale(half: slice) -> torch.Tensor:
        return var.get_logits(first_B1D[half], cond_BD[half])[: s.batch]

    pairs = [
        pair("adaLN: each scale -> once", lambda: adaln(len(spans)), lambda: adaln(1)),
        pair("cache: grown -> pre-allocated", grown, preallocated),
        # Batches of two sizes may use two kernels of a GPU, which round differently: a token in some
        # thousand is then another one. On a CPU they are the same.
        pair(
            "guidance 0: both halves -> one",
            lambda: tokens(1e-12),
            lambda: tokens(0.0),
            equal=device.type == "cpu",
        ),
        pair(
            "head at scale 0: both halves -> one",
            lambda: head_at_first_scale(slice(None)),
            lambda: head_at_first_scale(slice(s.batch)),
        ),
        pair(
            "top-p: over all codes -> over the k",
            lambda: sorted_filter(logits_BlV, s.top_k, s.top_p).isfinite(),
            lambda: filter_top_k_top_p(logits_BlV, s.top_k, s.top_p).isfinite(),
        ),
        # On a GPU both are the same.
        pair(
            "drawing: all places together -> in pieces",
            lambda: (filter_top_k_top_p(logits_BlV, s.top_k, s.top_p) + gumbel_BlV).argmax(-1),
            lambda: sample_with_top_k_top_p(logits_BlV, gumbel_BlV, s.top_k, s.top_p),
            dtypes=(torch.float32, torch.float32),
        ),
        pair(
            "products: PyTorch's choice -> ours",
            lambda: F.linear(x_BlD, hidden.weight, hidden.bias),
            lambda: linear(x_BlD, hidden.weight, hidden.bias),
        ),
        pair(
            "doubling: repeat, convolve -> at once",
            lambda: up.conv(F.interpolate(map_BChw, scale_factor=2)),
            lambda: up(map_BChw),
        ),
        pair(
            "codes to full size: F.interpolate -> products",
            lambda: torch.stack([F.interpolate(x, f_hat.shape[2:], mode="bicubic") for x in maps_of_codes]),
            lambda: torch.stack([upsample(x, f_hat.shape[2:]) for x in maps_of_codes]),
            dtypes=(torch.float32, torch.float32),
        ),
        pair(
            "decoding: whole batch -> in chunks",
            lambda: vae.fhat_to_img(f_hat, s.batch),
            lambda: vae.fhat_to_img(f_hat),
            # A decoder of random weights multiplies bfloat16's rounding, and other shapes round otherwise.
            rounding=0.1,
        ),
        pair(
            "decoding: channels first -> last",
            lambda: vae.fhat_to_img(f_hat, channels_last=False),
            lambda: vae.fhat_to_img(f_hat, channels_last=True),
            rounding=0.1,
        ),
        pair(
            "decoding: float32 -> bfloat16",
            lambda: vae.fhat_to_img(f_hat),
            lambda: vae.fhat_to_img(f_hat),
            equal=False,
            dtypes=(torch.float32, torch.bfloat16),
        ),
        pair(
            "tokens: float32 -> bfloat16",
            tokens,
            tokens,
            equal=False,
            dtypes=(torch.float32, torch.bfloat16),
        ),
    ]
    if amp != torch.float32:
        # float32 is cast nowhere.
        pairs.append(pair("weights: cast at each scale -> once", casting_anew, tokens))
    if s.compile:
        compiled = copy.deepcopy(var)
        compiled.compile_blocks()
        pairs.append(
            pair("tokens: eager -> compiled blocks", tokens, lambda: tokens(model=compiled), equal=False)
        )
    return pairs


def published_pairs(s: Settings, theirs: Any, ours: Any) -> list[Pair]:
    """The same calls to both packages."""
    sampling = {"cfg": s.cfg, "top_k": s.top_k, "top_p": s.top_p}
    requests = {"images": {"do": "sample", "sampling": sampling}, "decoding": {"do": "decode"}}

    def cost(worker: Any, request: dict[str, Any]) -> Callable[[bool], Cost]:
        return lambda memory: worker.cost(**request, batch=s.batch, seed=0, memory=memory)

    return [
        Pair(f"{name}: published -> ours", cost(theirs, request), cost(ours, request))
        for name, request in requests.items()
    ]


def main(s: Settings) -> None:
    device = distributed.choose_device(s.device)
    vae, var, arguments = build(s, device)
    s.out_dir.mkdir(parents=True, exist_ok=True)
    if s.fast_paths:
        pairs = fast_paths(s, vae, var, device)
        measure(pairs, s.repeats)
        record = as_record(s, "benchmarks/sampling.py", {})
        report(summary(pairs), s.out_dir, "sampling", record, ("off", "on"))
    if s.published is not None:
        with tempfile.TemporaryDirectory() as folder:
            theirs, ours, checks = start_packages(s, arguments, vae, var, Path(folder))
            try:
                pairs = published_pairs(s, theirs, ours)
                measure(pairs, s.repeats)
            finally:
                theirs.close()
                ours.close()
        record = as_record(s, "benchmarks/sampling.py", checks)
        report(summary(pairs), s.out_dir, "sampling_published", record, ("published", "ours"))


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
