"""models/basic_var.py: attention, key/value cache, adaLN blocks. Whole numbers are checked in test_var.py."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import basic_var
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


@pytest.mark.parametrize(
    ("x_dtype", "dtype"),
    [(torch.float64, torch.float64), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)],
)
def test_the_scaled_norm_is_the_formula_with_gradients_and_keeps_no_tokens_but_its_input(x_dtype, dtype):
    torch.manual_seed(0)
    x = (torch.randn(2, 14, 16) * 3 + 1).to(x_dtype)
    vectors = [torch.randn(2, 1, 16).to(dtype) for _ in range(2)]
    weight = torch.randn_like(x)
    norm = torch.nn.LayerNorm(16, eps=1e-6, elementwise_affine=False)
    results = []
    for function in (
        lambda x, scale, shift: norm(x) * (1 + scale) + shift,
        lambda x, scale, shift: basic_var.scaled_norm(x, norm, scale, shift),
    ):
        leaves = [x.clone().requires_grad_(), *(v.clone().requires_grad_() for v in vectors)]
        y = function(*leaves)
        (y * weight).sum().backward()
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for formula, ours in zip(*results, strict=True):
        assert ours.dtype == formula.dtype
        close = {"rtol": 0.05, "atol": 0.05} if torch.bfloat16 in (x_dtype, ours.dtype) else {}
        torch.testing.assert_close(ours, formula, **close)

    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        basic_var.scaled_norm(x.requires_grad_(), norm, *vectors)
    assert sum(tensor.shape == x.shape for tensor in kept) == 1


@pytest.mark.parametrize("earlier", [0, 5])
@pytest.mark.parametrize("spans", [None, scale_spans(PATCH_NUMS)])
@pytest.mark.parametrize("batch", [1, 3])
def test_attention_by_products_of_matrices_is_the_fused_one_with_gradients(
    batch, spans, earlier, monkeypatch
):
    monkeypatch.setattr(basic_var, "matrices_are_faster", lambda *_: True)
    torch.manual_seed(0)
    # Heads as attention cuts them out of one product.
    q, k, v = (torch.randn(batch, n, 2, 8).double().transpose(1, 2) for n in (14, 14 + earlier, 14 + earlier))
    weight = torch.randn_like(q)
    results = []
    for function in (basic_var.fused_attention, basic_var.attend):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        y = function(*leaves, spans or [(0, 14)], 0.3)
        (y * weight).sum().backward()
        results.append([y.detach(), *(x.grad for x in leaves)])
    for fused, ours in zip(*results, strict=True):
        # Gradients of keys and values are added up in float32.
        torch.testing.assert_close(ours, fused, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(basic_var.attend(q, k, v, spans, 0.3), results[0][0])


def test_bfloat16_on_a_cpu_attends_by_products_of_matrices_and_nothing_else_does(monkeypatch):
    used = []
    apply = basic_var._MatrixAttention.apply
    monkeypatch.setattr(basic_var._MatrixAttention, "apply", lambda *a: used.append(1) or apply(*a))
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 680, 64, dtype=torch.float64)
    spans = scale_spans((1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    wanted = basic_var.attend(q, k, v, spans, 0.125)
    assert basic_var.attend(q.float(), k.float(), v.float(), spans, 0.125, dropout=0.1).shape == q.shape
    basic_var.attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), spans, 0.125, dropout=0.1)
    assert not used
    found = basic_var.attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), spans, 0.125)
    assert used and found.dtype == torch.bfloat16
    assert (found - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
@pytest.mark.parametrize("out", [40, 24, 16])
@pytest.mark.parametrize("bias", [False, True])
def test_products_by_onednn_are_those_of_a_linear_layer_with_gradients(bias, out, monkeypatch):
    monkeypatch.setattr(basic_var, "onednn_is_faster", lambda: True)
    used = []
    whole = basic_var._onednn_matmul
    monkeypatch.setattr(basic_var, "_onednn_matmul", lambda *a: used.append(1) or whole(*a))
    torch.manual_seed(0)
    layer = basic_var.Linear(24, out, bias=bias)
    x, weight = torch.randn(3, 50, 24), torch.randn(3, 50, out)
    results = []
    for function in (F.linear, basic_var.linear):
        leaf = x.clone().requires_grad_()
        layer.zero_grad()
        # Also from a view of every second row, and with a gradient that is one number in memory.
        y, y_of_view = (function(z, layer.weight, layer.bias) for z in (leaf, leaf[:, ::2]))
        ((y * weight).sum() + y_of_view.sum()).backward()
        parameters = (p.grad.clone() for p in layer.parameters())
        results.append([y.detach(), y_of_view.detach(), leaf.grad, *parameters])
    assert len(used) == 6, "forward and two products backward, twice"
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(x), results[0][0], rtol=1e-5, atol=1e-5)
    # No rows, another dtype and autocast take the usual way.
    used.clear()
    assert layer(x[:, :0]).shape == (3, 0, out)
    basic_var.linear(x.double(), layer.weight.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert not used
