"""Linear layers, attention and layer norm: PyTorch's numbers up to rounding, in less time or memory.

`linear` and `attend` choose what is fastest on the device at hand, `scaled_norm` keeps less for the backward
pass. What each brings is in benchmarks/README.md.

Axes: N rows, K inputs and M outputs of a layer; in attention B images, H heads, l queries, m keys, d a head's
width, N images times heads; in the norm B images, l tokens, D width.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 matrices faster than the MKL that PyTorch is built with.

    So it is on AMD processors with AVX-512, where MKL keeps to AVX2: 230 against 103 GFLOPS were measured on
    a core of an EPYC. Decided by the kind of processor and not by a stopwatch, so that a run that goes on
    rounds as it did before.
    """
    cpu = Path("/proc/cpuinfo")
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and cpu.is_file()
        and "AuthenticAMD" in cpu.read_text()
    )


def _onednn_matmul(a_NK: Tensor, b_MK: Tensor, bias_M: Tensor | None = None) -> Tensor:
    """a @ b.T + bias, float32, without gradients. Views of any strides are fine; a is copied if it is one."""
    # PyTorch's own name for oneDNN's product of ordinary tensors, which torch.compile calls; F.linear takes
    # oneDNN's tensors only, and copies into and out of them cost a tenth of a training step.
    return torch.ops.mkldnn._linear_pointwise(a_NK, b_MK, bias_M, "none", [], "")


class _OneDNNLinear(torch.autograd.Function):
    """F.linear and its gradients, all three products by oneDNN."""

    @staticmethod
    def forward(ctx, x_NK: Tensor, weight_MK: Tensor, bias_M: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NK, weight_MK)
        return _onednn_matmul(x_NK, weight_MK, bias_M)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_NM: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_NK, weight_MK = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        # The gradient of a plain sum is one number, repeated by strides of 0: oneDNN would take seconds.
        grad_NM = grad_NM.contiguous()
        grad_weight_MK = None
        if for_weight and grad_NM.shape[1] > x_NK.shape[1]:
            # The left view is copied, so let it be the smaller one.
            grad_weight_MK = _onednn_matmul(x_NK.T, grad_NM.T).T
        elif for_weight:
            grad_weight_MK = _onednn_matmul(grad_NM.T, x_NK.T)
        return (
            _onednn_matmul(grad_NM, weight_MK.T) if for_x else None,
            grad_weight_MK,
            grad_NM.sum(dim=0) if for_bias else None,
        )


def linear(x: Tensor, weight_MK: Tensor, bias_M: Tensor | None = None) -> Tensor:
    """F.linear, up to rounding; by oneDNN where that is faster.

    Args:
        x: (..., K), any float dtype.
        weight_MK: (M, K).
        bias_M: (M,) or None.

    Returns:
        (..., M)
    """
    if (
        x.device.type != "cpu"
        or x.dtype != torch.float32
        or not x.numel()
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or not onednn_is_faster()
    ):
        return F.linear(x, weight_MK, bias_M)
    return _OneDNNLinear.apply(x.flatten(0, -2), weight_MK, bias_M).unflatten(0, x.shape[:-1])


class _MatrixAttention(torch.autograd.Function):
    """Attention by plain products of matrices; weights are made again in the backward pass, not kept.

    Scores are rounded to the dtype of the queries, as all products of matrices are; softmax works in float32.
    Images and heads are one axis N: then a part of the tokens is multiplied as it lies, and not copied first.
    """

    @staticmethod
    def forward(ctx, q_Nld: Tensor, k_Nmd: Tensor, v_Nmd: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        ctx.save_for_backward(q_Nld, k_Nmd, v_Nmd)
        ctx.spans = spans
        y_Nld = torch.empty_like(q_Nld)
        for part, seen in _parts(spans, q_Nld, k_Nmd):
            torch.bmm(_weights(q_Nld[part], k_Nmd[seen]), v_Nmd[seen], out=y_Nld[part])
        return y_Nld

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_Nld: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_Nld, k_Nmd, v_Nmd = ctx.saved_tensors
        grad_q_Nld = torch.empty_like(q_Nld)
        # Every part adds to these.
        grad_k_Nmd, grad_v_Nmd = (torch.zeros_like(x, dtype=torch.float32) for x in (k_Nmd, v_Nmd))
        for part, seen in _parts(ctx.spans, q_Nld, k_Nmd):
            weight_Nlm = _weights(q_Nld[part], k_Nmd[seen])
            grad_v_Nmd[seen] += weight_Nlm.mT @ grad_Nld[part]
            grad_weight_Nlm = grad_Nld[part] @ v_Nmd[seen].mT
            # PyTorch's own name for the gradient of softmax.
            grad_score_Nlm = torch._softmax_backward_data(grad_weight_Nlm, weight_Nlm, -1, q_Nld.dtype)
            torch.bmm(grad_score_Nlm, k_Nmd[seen], out=grad_q_Nld[part])
            grad_k_Nmd[seen] += grad_score_Nlm.mT @ q_Nld[part]
        return grad_q_Nld, grad_k_Nmd.to(k_Nmd.dtype), grad_v_Nmd.to(v_Nmd.dtype), None


def _parts(spans: Sequence[tuple[int, int]], q_Nld: Tensor, k_Nmd: Tensor) -> list[tuple[tuple, tuple]]:
    """Of each span its queries and the keys that it looks at, as indices."""
    earlier = k_Nmd.shape[1] - q_Nld.shape[1]
    return [(np.s_[:, start:end], np.s_[:, : earlier + end]) for start, end in spans]


def _weights(q_Nld: Tensor, k_Nmd: Tensor) -> Tensor:
    """How much each query takes of each key; a row sums to 1."""
    return (q_Nld @ k_Nmd.mT).softmax(dim=-1)


def matrices_are_faster(q_BHld: Tensor, dropout: float) -> bool:
    """Whether plain products of matrices outrun PyTorch's fused attention, and can do what is asked.

    In bfloat16 on a CPU they do: 2.2 times over ten scales with the gradients, on an AMD EPYC with AVX-512
    (benchmarks/training.py). In float32 they do not.
    """
    return (
        q_BHld.device.type == "cpu"
        and q_BHld.dtype == torch.bfloat16
        and not dropout
        and not torch.compiler.is_compiling()
    )


def attend(
    q_BHld: Tensor,
    k_BHmd: Tensor,
    v_BHmd: Tensor,
    spans: Sequence[tuple[int, int]] | None = None,
    scale: float = 1.0,
    dropout: float = 0.0,
) -> Tensor:
    """Attention without a mask, and without work on what a mask would rule out.

    Args:
        q_BHld: queries.
        k_BHmd, v_BHmd: keys and values of the same tokens, after those of m - l earlier ones.
        spans: (start, end) of each scale in l, one after the other from 0 to l; a scale looks at itself, the
            scales before it and all earlier tokens. None is one span: all look at all.
        scale: multiplies the scores.
        dropout: chance that a weight is dropped.

    Returns:
        (B, H, l, d)
    """
    spans = spans or [(0, q_BHld.shape[2])]
    if not matrices_are_faster(q_BHld, dropout):
        return fused_attention(q_BHld, k_BHmd, v_BHmd, spans, scale, dropout)
    flat = (x.flatten(0, 1) for x in (q_BHld * scale, k_BHmd, v_BHmd))
    return _MatrixAttention.apply(*flat, spans).unflatten(0, q_BHld.shape[:2])


def fused_attention(
    q_BHld: Tensor,
    k_BHmd: Tensor,
    v_BHmd: Tensor,
    spans: Sequence[tuple[int, int]],
    scale: float = 1.0,
    dropout: float = 0.0,
) -> Tensor:
    """The same by PyTorch's fused attention, one call a span."""
    earlier = k_BHmd.shape[2] - q_BHld.shape[2]
    # From the last scale to the first, each prefix cut from the one before and not from the whole: the
    # gradient of a cut is padded to the length of what it was cut from.
    parts_BHld = []
    for start, end in reversed(spans):
        if end < q_BHld.shape[2]:
            q_BHld = q_BHld[:, :, :end]
            k_BHmd, v_BHmd = (x[:, :, : earlier + end] for x in (k_BHmd, v_BHmd))
        part_BHld = F.scaled_dot_product_attention(
            q_BHld[:, :, start:], k_BHmd, v_BHmd, dropout_p=dropout, scale=scale
        )
        parts_BHld.append(part_BHld)
    return parts_BHld[0] if len(parts_BHld) == 1 else torch.cat(parts_BHld[::-1], dim=2)


class _ScaledNorm(torch.autograd.Function):
    """Layer norm, scaled and shifted; what lies between is made again in the backward pass, not kept."""

    @staticmethod
    def forward(ctx, x_BlD: Tensor, scale_B1D: Tensor, shift_B1D: Tensor, eps: float) -> Tensor:
        normed_BlD, mean_Bl1, rstd_Bl1 = torch.native_layer_norm(x_BlD, x_BlD.shape[-1:], None, None, eps)
        ctx.save_for_backward(x_BlD, scale_B1D, mean_Bl1, rstd_Bl1)
        ctx.shift_dtype = shift_B1D.dtype
        return normed_BlD * (1 + scale_B1D) + shift_B1D

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_BlD: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x_BlD, scale_B1D, mean_Bl1, rstd_Bl1 = ctx.saved_tensors
        # The sums over tokens of grad * (x - mean) * rstd and of grad, by products of matrices.
        rstd_B1l, shift_B1l = (z.mT.to(grad_BlD.dtype) for z in (rstd_Bl1, mean_Bl1 * rstd_Bl1))
        weight_B2l = torch.cat([shift_B1l, torch.ones_like(shift_B1l)], dim=1)
        shifted_B1D, grad_shift_B1D = (weight_B2l @ grad_BlD).split(1, dim=1)
        grad_scale_B1D = rstd_B1l @ (x_BlD * grad_BlD) - shifted_B1D
        # PyTorch's own name for the layer norm's gradient; the mask asks for that of x alone.
        grad_x_BlD, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad_BlD * (1 + scale_B1D),
            x_BlD,
            x_BlD.shape[-1:],
            mean_Bl1,
            rstd_Bl1,
            None,
            None,
            [True, False, False],
        )
        return grad_x_BlD, grad_scale_B1D.to(scale_B1D.dtype), grad_shift_B1D.to(ctx.shift_dtype), None


def scaled_norm(x_BlD: Tensor, norm: nn.LayerNorm, scale_B1D: Tensor, shift_B1D: Tensor) -> Tensor:
    """norm(x) * (1 + scale) + shift, with less memory until the backward pass.

    Args:
        x_BlD: token features.
        norm: a layer norm over D without weights.
        scale_B1D, shift_B1D: of each image.
    """
    return _ScaledNorm.apply(x_BlD, scale_B1D, shift_B1D, norm.eps)
