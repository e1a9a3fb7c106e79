"""models/fast_paths.py: the same numbers as PyTorch's own functions, with gradients, where they are taken."""

import pytest
import torch
import torch.nn.functional as F

from models import fast_paths
from models.basic_var import Linear
from models.helpers import scale_spans


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
        lambda x, scale, shift: fast_paths.scaled_norm(x, norm, scale, shift),
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
        fast_paths.scaled_norm(x.requires_grad_(), norm, *vectors)
    assert sum(tensor.shape == x.shape for tensor in kept) == 1


@pytest.mark.parametrize("earlier", [0, 5])
@pytest.mark.parametrize("spans", [None, scale_spans((1, 2, 3))])
@pytest.mark.parametrize("batch", [1, 3])
def test_attention_by_products_of_matrices_is_the_fused_one_with_gradients(
    batch, spans, earlier, monkeypatch
):
    monkeypatch.setattr(fast_paths, "matrices_are_faster", lambda *_: True)
    torch.manual_seed(0)
    # Heads as attention cuts them out of one product.
    q, k, v = (torch.randn(batch, n, 2, 8).double().transpose(1, 2) for n in (14, 14 + earlier, 14 + earlier))
    weight = torch.randn_like(q)
    results = []
    for function in (fast_paths.fused_attention, fast_paths.attend):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        y = function(*leaves, spans or [(0, 14)], 0.3)
        (y * weight).sum().backward()
        results.append([y.detach(), *(x.grad for x in leaves)])
    for fused, ours in zip(*results, strict=True):
        # Gradients of keys and values are added up in float32.
        torch.testing.assert_close(ours, fused, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fast_paths.attend(q, k, v, spans, 0.3), results[0][0])


def test_bfloat16_on_a_cpu_attends_by_products_of_matrices_and_nothing_else_does(monkeypatch):
    used = []
    apply = fast_paths._MatrixAttention.apply
    monkeypatch.setattr(fast_paths._MatrixAttention, "apply", lambda *a: used.append(1) or apply(*a))
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 680, 64, dtype=torch.float64)
    spans = scale_spans((1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    wanted = fast_paths.attend(q, k, v, spans, 0.125)
    assert fast_paths.attend(q.float(), k.float(), v.float(), spans, 0.125, dropout=0.1).shape == q.shape
    fast_paths.attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), spans, 0.125, dropout=0.1)
    assert not used
    found = fast_paths.attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), spans, 0.125)
    assert used and found.dtype == torch.bfloat16
    assert (found - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
@pytest.mark.parametrize("out", [40, 24, 16])
@pytest.mark.parametrize("bias", [False, True])
def test_products_by_onednn_are_those_of_a_linear_layer_with_gradients(bias, out, monkeypatch):
    monkeypatch.setattr(fast_paths, "onednn_is_faster", lambda: True)
    used = []
    whole = fast_paths._onednn_matmul
    monkeypatch.setattr(fast_paths, "_onednn_matmul", lambda *a: used.append(1) or whole(*a))
    torch.manual_seed(0)
    layer = Linear(24, out, bias=bias)
    x, weight = torch.randn(3, 50, 24), torch.randn(3, 50, out)
    results = []
    for function in (F.linear, fast_paths.linear):
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
    fast_paths.linear(x.double(), layer.weight.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert not used
