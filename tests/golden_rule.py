"""Golden numbers of the published implementation: the rule that fills weights, and how numbers are compared.

`golden/` holds what the released code computes in float32 on a CPU for weights filled by `fill_by_rule`. The
rule is part of the numbers; it must not be changed.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models import VAR, VQVAE

GOLDEN = Path(__file__).parent / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text())
VQVAE_NAMES = [name for name, entry in INDEX.items() if entry["kind"] == "vqvae"]
VAR_NAMES = [name for name, entry in INDEX.items() if entry["kind"] == "var"]
KEPT = ("ema_vocab_hit_SV", "lvl_1L", "attn_bias_for_masking", "zero_k_bias")


def load_golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def fill_by_rule(model: nn.Module) -> None:
    state = model.state_dict()
    for key, value in state.items():
        if key.endswith(KEPT):
            continue
        stream = np.random.RandomState(zlib.crc32(key.encode()))
        x = stream.standard_normal(tuple(value.shape)).astype(np.float32)
        if key == "quantize.embedding.weight":
            x = x * 0.5
        elif x.ndim >= 2:
            x = x / np.sqrt(np.prod(x.shape[1:]))
        elif key.endswith("weight"):
            x = 1 + 0.1 * x
        else:
            x = 0.1 * x
        state[key] = torch.from_numpy(np.asarray(x, dtype=np.float32))
    model.load_state_dict(state)


def build_vqvae(name: str) -> VQVAE:
    vae = VQVAE(**INDEX[name]["arguments"], test_mode=False)
    fill_by_rule(vae)
    return vae


def build_var(name: str) -> tuple[VQVAE, VAR]:
    vae = build_vqvae(INDEX[name]["vqvae"]).eval().requires_grad_(False)
    var = VAR(vae, **INDEX[name]["arguments"])
    fill_by_rule(var)
    return vae, var


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what is wanted.

    NaN (a parameter without a gradient) must meet NaN. A wanted picture that was kept at every n-th pixel is
    compared at those.
    """
    if found.dim() == 4 and found.shape != wanted.shape:
        step = found.shape[-1] // wanted.shape[-1]
        found = found[:, :, ::step, ::step]
    assert found.shape == wanted.shape, f"found {tuple(found.shape)}, wanted {tuple(wanted.shape)}"
    assert torch.equal(found.isnan(), wanted.isnan())
    found, wanted = found.detach().nan_to_num().double(), wanted.nan_to_num().double()
    return float((found - wanted).norm() / wanted.norm())


def gradient_norms(model: nn.Module, order: list[str]) -> Tensor:
    """2-norm of each parameter's gradient in the given order; NaN where there is none."""
    parameters = dict(model.named_parameters())
    assert sorted(parameters) == order
    nan = torch.tensor(torch.nan)
    return torch.stack([nan if p.grad is None else p.grad.norm() for p in map(parameters.get, order)])
