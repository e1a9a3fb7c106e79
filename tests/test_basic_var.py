"""models/basic_var.py: attention, key/value cache, adaLN blocks. Whole numbers are checked in test_var.py."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.basic_var import FFN, AdaLNBeforeHead, AdaLNSelfAttn, KeyValueCache, SelfAttention
from models.helpers import next_scale_mask, scale_spans

PATCH_NUMS = (1, 2, 3)  # L = 1 + 4 + 9


def mask_bias() -> Tensor:
    return torch.zeros(14, 14).masked_fill(~next_scale_mask(PATCH_NUMS), -torch.inf)[None, None]


def block_of(**arguments) -> AdaLNSelfAttn:
    return AdaLNSelfAttn(block_idx=0, embed_dim=16, num_heads=2, **arguments)


@pytest.mark.parametrize("attn_l2_norm", [False, True])
def test_a_finer_scale_never_changes_a_coarser_one(attn_l2_norm):
    torch.manual_seed(0)
    block = block_of(attn_l2_norm=attn_l2_norm).eval()
    x_BLD, modulation = torch.randn(2, 14, 16), block.modulation(torch.randn(2, 16))
    changed_BLD = x_BLD.clone()
    changed_BLD[:, 5:] = torch.randn(2, 9, 16)
    before, after = block(x_BLD, modulation, mask_bias()), block(changed_BLD, modulation, mask_bias())
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert not torch.allclose(after[:, 5:], before[:, 5:])


@pytest.mark.parametrize("attn_l2_norm", [False, True])
def test_scale_by_scale_with_a_cache_equals_all_at_once_with_a_mask(attn_l2_norm):
    torch.manual_seed(0)
    attention = SelfAttention(0, 16, 2, attn_l2_norm=attn_l2_norm)
    x_BLD = torch.randn(2, 14, 16)
    cache = KeyValueCache(14)
    parts = [attention(x_BLD[:, a:b], cache=cache) for a, b in scale_spans(PATCH_NUMS)]
    torch.testing.assert_close(torch.cat(parts, dim=1), attention(x_BLD, mask_bias()))


def test_attention_equals_the_formula_and_takes_a_quarter_of_the_usual_scale():
    torch.manual_seed(0)
    attention = SelfAttention(0, 16, 2)
    torch.nn.init.normal_(attention.q_bias)
    torch.nn.init.normal_(attention.v_bias)
    x = torch.randn(1, 5, 16)
    w_q, w_k, w_v = attention.mat_qkv.weight.chunk(3)
    heads = []
    for h in (slice(0, 8), slice(8, 16)):
        q = x @ w_q[h].T + attention.q_bias[h]
        k, v = x @ w_k[h].T, x @ w_v[h].T + attention.v_bias[h]
        heads.append((0.25 / math.sqrt(8) * q @ k.transpose(1, 2)).softmax(-1) @ v)
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, dim=-1)))


def test_l2_normalised_attention_starts_at_4_and_stops_at_100():
    torch.manual_seed(0)
    attention = SelfAttention(0, 16, 2, attn_l2_norm=True)
    torch.testing.assert_close(attention.scale_mul_1H11.exp(), torch.full((1, 2, 1, 1), 4.0))
    x = torch.randn(1, 6, 16)
    outputs = []
    for factor in (4.0, 100.0, 1000.0):
        torch.nn.init.constant_(attention.scale_mul_1H11, math.log(factor))
        outputs.append(attention(x))
    assert not torch.allclose(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[1], outputs[2])


def test_attention_takes_one_dtype_under_autocast():
    attention = SelfAttention(0, 16, 2, attn_l2_norm=True)
    x = torch.randn(2, 14, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = attention(x, mask_bias())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), attention(x, mask_bias()), atol=0.02, rtol=0.05)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="heads must divide the width"):
        SelfAttention(0, 16, 3)


@pytest.mark.parametrize("shared_aln", [False, True])
def test_gains_scales_and_shifts_come_in_the_published_order(shared_aln):
    """Each of the six vectors is set alone and must do its own work."""
    torch.manual_seed(0)
    block = block_of(shared_aln=shared_aln).eval()
    x = torch.randn(1, 4, 16)
    none = torch.zeros(1, 1, 6, 16)
    torch.testing.assert_close(block(x, none), x)  # gains of 0: the identity
    n = F.layer_norm(x, (16,), eps=1e-6)
    for branch, function in enumerate((block.attn, block.ffn)):
        modulation = none.clone()
        modulation[:, :, branch] = 2.0
        torch.testing.assert_close(block(x, modulation), x + 2 * function(n))
        modulation[:, :, 2 + branch], modulation[:, :, 4 + branch] = 0.5, 0.25
        torch.testing.assert_close(block(x, modulation), x + 2 * function(1.5 * n + 0.25))


def test_shared_adaln_adds_the_blocks_own_offsets():
    block = block_of(shared_aln=True)
    shared = torch.randn(2, 1, 6, 16)
    torch.testing.assert_close(block.modulation(shared), shared + block.ada_gss)
    assert not hasattr(block, "ada_lin")
    own = block_of()
    cond = torch.randn(2, 16)
    torch.testing.assert_close(own.modulation(cond).flatten(1), own.ada_lin[1](F.silu(cond)))


def test_head_norm_scales_and_shifts_by_the_class():
    norm = AdaLNBeforeHead(16, 16)
    x, cond = torch.randn(2, 3, 16), torch.randn(2, 16)
    scale, shift = norm.ada_lin(cond).chunk(2, dim=1)
    wanted = F.layer_norm(x, (16,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(norm(x, cond), wanted)


def test_ffn_is_a_tanh_gelu_between_two_layers():
    ffn = FFN(8, 32, 4)
    x = torch.randn(2, 8) * 3
    hidden = ffn.fc1(x)
    gelu = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    torch.testing.assert_close(ffn(x), ffn.fc2(gelu))


def test_dropout_and_stochastic_depth_rest_in_eval_mode():
    torch.manual_seed(0)
    block = block_of(drop=0.3, attn_drop=0.3, drop_path=0.3)
    x, modulation = torch.randn(4, 14, 16), torch.randn(4, 1, 6, 16)
    assert not torch.equal(block(x, modulation), block(x, modulation))
    block.eval()
    assert torch.equal(block(x, modulation), block(x, modulation))


# --- fast paths: the same numbers ---


@pytest.mark.parametrize("attn_l2_norm", [False, True])
@pytest.mark.parametrize("patch_nums", [(1, 2, 3), (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)])
def test_scale_by_scale_equals_a_mask_with_gradients(attn_l2_norm, patch_nums):
    torch.manual_seed(0)
    attention = SelfAttention(0, 16, 2, attn_l2_norm=attn_l2_norm)
    mask_LL = next_scale_mask(patch_nums)
    bias = torch.zeros(mask_LL.shape).masked_fill(~mask_LL, -torch.inf)[None, None]
    x, weight = torch.randn(2, len(mask_LL), 16), torch.randn(2, len(mask_LL), 16)
    results = []
    for settings in ({"attn_bias": bias}, {"spans": scale_spans(patch_nums)}):
        x_BLD = x.clone().requires_grad_()
        attention.zero_grad()
        y_BLD = attention(x_BLD, **settings)
        (y_BLD * weight).sum().backward()
        results.append([y_BLD.detach(), x_BLD.grad, *(p.grad.clone() for p in attention.parameters())])
    for masked, by_scale in zip(*results, strict=True):
        torch.testing.assert_close(by_scale, masked, rtol=1e-4, atol=1e-4)
