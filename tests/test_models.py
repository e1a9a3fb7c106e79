"""models/__init__.py: both networks together; released checkpoints' layouts."""

import inspect
import itertools

import pytest
import torch
from golden_rule import INDEX
from torch import nn

from models import VAR, VQVAE, build_vae_var
from models.helpers import split_scales

SMALL = {"patch_nums": (1, 2), "V": 16, "Cvae": 4, "ch": 32, "num_classes": 3, "depth": 2}


@pytest.mark.parametrize("name", ["published_vae_ch160v4096z32", "published_var_d16"])
def test_released_checkpoints_fit_strictly(name):
    """Built without memory; the layout is that of the file that was released."""
    with torch.device("meta"):
        model = dict(zip(("vae", "var"), build_vae_var("meta"), strict=True))[name.split("_")[1]]
        released = {key: torch.empty(shape) for key, shape in INDEX[name]["state_dict"].items()}
    assert list(model.state_dict()) == list(released)
    model.load_state_dict(released, strict=True, assign=True)


def test_sizes_follow_the_depth():
    with torch.device("meta"):
        _, var = build_vae_var("meta", depth=12, num_classes=6)
    assert (var.C, var.num_heads, var.depth, var.num_classes) == (768, 12, 12, 6)
    assert [round(block.drop_path.drop_prob, 4) for block in var.blocks[:: len(var.blocks) - 1]] == [
        0.0,
        0.05,
    ]


def test_building_leaves_the_rest_of_the_process_alone():
    """Fault of the published code: weight initialisation of all PyTorch layers was switched off for good."""
    kinds = [
        kind for kind in vars(nn).values() if isinstance(kind, type) and hasattr(kind, "reset_parameters")
    ]
    before = [kind.reset_parameters for kind in kinds]
    state = torch.is_grad_enabled(), torch.get_default_dtype()
    build_vae_var("cpu", **SMALL)
    assert [kind.reset_parameters for kind in kinds] == before
    assert (torch.is_grad_enabled(), torch.get_default_dtype()) == state
    torch.manual_seed(0)
    weights = [nn.Linear(8, 8).weight.detach() for _ in range(2)]
    assert not torch.equal(*weights)
    assert all(0 < float(weight.abs().max()) <= 8**-0.5 for weight in weights)


@pytest.mark.parametrize(("shared_aln", "attn_l2_norm"), list(itertools.product([False, True], repeat=2)))
def test_images_become_tokens_the_transformer_learns_and_samples_become_images(shared_aln, attn_l2_norm):
    torch.manual_seed(0)
    vae, var = build_vae_var("cpu", **SMALL, shared_aln=shared_aln, attn_l2_norm=attn_l2_norm)
    assert isinstance(vae, VQVAE) and isinstance(var, VAR)
    assert not any(p.requires_grad for p in vae.parameters())
    images = torch.rand(6, 3, 32, 32) * 2 - 1
    tokens = vae.img_to_idxBl(images)
    idx_BL, label_B = torch.cat(tokens, dim=1), torch.arange(6) % 3
    assert torch.equal(torch.cat(split_scales(idx_BL, (1, 2)), dim=1), idx_BL)
    x_BLC = vae.quantize.idxBl_to_var_input(tokens)
    optimizer = torch.optim.Adam(var.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(var(label_B, x_BLC).flatten(0, 1), idx_BL.flatten())
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]
    assert var.autoregressive_infer_cfg(2, 1, g_seed=0).shape == (2, 3, 32, 32)


def test_the_published_package_s_callers_may_give_all_their_keywords():
    """Kernels are PyTorch's choice here: the two keywords are taken, in their places, and change nothing."""
    places = list(inspect.signature(build_vae_var).parameters)
    assert places[9:13] == ["attn_l2_norm", "flash_if_available", "fused_if_available", "init_adaln"]
    torch.manual_seed(0)
    _, var = build_vae_var("cpu", **SMALL, flash_if_available=False, fused_if_available=False)
    torch.manual_seed(0)
    _, same = build_vae_var("cpu", **SMALL)
    assert all(torch.equal(a, b) for a, b in zip(var.parameters(), same.parameters(), strict=True))
