"""Blocks of the transformer: attention and feed-forward, both scaled and shifted by the class (adaLN).

Sources: W. Peebles and S. Xie, "Scalable Diffusion Models with Transformers" (2023), section 3.2, for adaLN;
K. Tian et al., "Visual Autoregressive Modeling" (2024), section 4. The layout of weights is that of the
published checkpoints.

Axes: B images, l tokens at hand (one scale or several), L tokens of all scales, D width; in attention H
heads, d a head's width.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.helpers import DropPath

# With l2-normalised attention each head's queries are scaled by a learned factor: it starts at 4, and stays
# below 100.
START_SCALE = 4.0
MAX_SCALE = 100.0


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


class Linear(nn.Linear):
    """nn.Linear by the function above."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


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


class KeyValueCache:
    """Keys and values of one attention layer for the scales done so far.

    It belongs to one sampling call and is handed down as an argument: the layers keep nothing, so a call
    that fails leaves nothing behind.

    Args:
        length: tokens there will be in the end; the room is taken once, at the first scale.
    """

    def __init__(self, length: int):
        self.length = length
        self.filled = 0
        self.store: Tensor | None = None

    def extend(self, k_BHld: Tensor, v_BHld: Tensor) -> tuple[Tensor, Tensor]:
        """Take in one scale; return keys and values of all scales so far."""
        if self.store is None:
            B, H, _, d = k_BHld.shape
            self.store = k_BHld.new_empty(2, B, H, self.length, d)
        start, self.filled = self.filled, self.filled + k_BHld.shape[2]
        self.store[0, :, :, start : self.filled] = k_BHld
        self.store[1, :, :, start : self.filled] = v_BHld
        k_BHLd, v_BHLd = self.store[:, :, :, : self.filled]
        return k_BHLd, v_BHLd


class FFN(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        drop: float = 0.0,
    ):
        super().__init__()
        hidden_features = hidden_features or in_features
        self.fc1 = Linear(in_features, hidden_features)
        self.fc2 = Linear(hidden_features, out_features or in_features)
        self.drop = nn.Dropout(drop)

    def forward(self, x_BlD: Tensor) -> Tensor:
        return self.drop(self.fc2(F.gelu(self.fc1(x_BlD), approximate="tanh")))


class SelfAttention(nn.Module):
    """Attention of many heads; keys have no bias, for it would not change what is attended to.

    Args:
        block_idx: number of the block, for reading a printed model.
        embed_dim: D.
        num_heads: H, divides D.
        attn_drop: dropout on the attention weights.
        proj_drop: dropout on the output.
        attn_l2_norm: attend by cosine, with a learned scale a head, instead of by dot product.
    """

    def __init__(
        self,
        block_idx: int,
        embed_dim: int = 768,
        num_heads: int = 12,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        attn_l2_norm: bool = False,
    ):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(
                f"found embed_dim={embed_dim}, num_heads={num_heads}: the heads must divide the width"
            )
        self.block_idx = block_idx
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.attn_drop = attn_drop
        self.attn_l2_norm = attn_l2_norm
        if attn_l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, num_heads, 1, 1), math.log(START_SCALE)))
        # A quarter of the usual 1 / sqrt(d); with l2-norm the queries carry their own scale.
        self.scale = 1.0 if attn_l2_norm else 0.25 / math.sqrt(self.head_dim)
        self.mat_qkv = Linear(embed_dim, 3 * embed_dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(embed_dim))
        self.v_bias = nn.Parameter(torch.zeros(embed_dim))
        self.register_buffer("zero_k_bias", torch.zeros(embed_dim))
        self.proj = Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        x_BlD: Tensor,
        attn_bias: Tensor | None = None,
        cache: KeyValueCache | None = None,
        spans: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """Let tokens look at each other and, with a cache, at those of the scales before.

        Args:
            x_BlD: token features.
            attn_bias: added to the attention logits, (1, 1, l, l); None lets all look at all.
            cache: takes in the keys and values of this call, and gives those of the calls before.
            spans: (start, end) of each scale in l; each then looks at itself and the scales before it, as it
                would by the mask, but without work on what the mask rules out.

        Returns:
            (B, l, D)
        """
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        qkv = linear(x_BlD, self.mat_qkv.weight, bias)
        # In three parts first: the gradient of that is one copy.
        q, k, v = (rearrange(x, "B l (H d) -> B H l d", H=self.num_heads) for x in qkv.chunk(3, dim=-1))
        if self.attn_l2_norm:
            # Normalising runs in float32 under autocast; attention wants one dtype.
            scale_1H11 = self.scale_mul_1H11.clamp_max(math.log(MAX_SCALE)).exp()
            q = (F.normalize(q, dim=-1) * scale_1H11).to(v.dtype)
            k = F.normalize(k, dim=-1).to(v.dtype)
        if cache is not None:
            k, v = cache.extend(k, v)
        dropout = self.attn_drop if self.training else 0.0
        if attn_bias is None:
            y_BHld = attend(q, k, v, spans, self.scale, dropout)
        else:
            y_BHld = F.scaled_dot_product_attention(
                q, k, v, attn_mask=attn_bias, dropout_p=dropout, scale=self.scale
            )
        y_BlD = rearrange(y_BHld, "B H l d -> B l (H d)")
        return self.proj_drop(self.proj(y_BlD))

    def extra_repr(self) -> str:
        return f"block {self.block_idx}, l2-norm={self.attn_l2_norm}"


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
        # PyTorch's own name for the gradient of the layer norm; the last word: of x alone.
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


class AdaLNSelfAttn(nn.Module):
    """One block. The class gives, for each of its two branches, a gain, a scale and a shift.

    Args:
        block_idx: number of the block.
        embed_dim: D.
        num_heads: H.
        cond_dim: width of the class embedding.
        shared_aln: the model's one adaLN layer serves all blocks, and this block only adds its own offsets.
        mlp_ratio: hidden width of the feed-forward part as a multiple of D.
        drop, attn_drop: dropout on the branches' outputs and on the attention weights.
        drop_path: chance that an image skips a branch (stochastic depth).
        norm_eps: of the layer norm, which has no weights of its own.
        attn_l2_norm: see SelfAttention.
    """

    def __init__(
        self,
        block_idx: int,
        embed_dim: int,
        num_heads: int,
        cond_dim: int | None = None,
        shared_aln: bool = False,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        attn_l2_norm: bool = False,
    ):
        super().__init__()
        self.shared_aln = shared_aln
        self.drop_path = DropPath(drop_path)
        self.attn = SelfAttention(block_idx, embed_dim, num_heads, attn_drop, drop, attn_l2_norm)
        self.ffn = FFN(embed_dim, round(embed_dim * mlp_ratio), drop=drop)
        self.ln_wo_grad = nn.LayerNorm(embed_dim, eps=norm_eps, elementwise_affine=False)
        if shared_aln:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, embed_dim) / math.sqrt(embed_dim))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(cond_dim or embed_dim, 6 * embed_dim))

    def modulation(self, cond: Tensor) -> Tensor:
        """Turn the class into the six vectors of this block; once an image, whatever the number of scales.

        Args:
            cond: the class embedding (B, D), or with shared_aln the shared layer's output (B, 1, 6, D).

        Returns:
            (B, 1, 6, D): gain of attention and of feed-forward, their scales, their shifts.
        """
        if self.shared_aln:
            return self.ada_gss + cond
        return rearrange(self.ada_lin(cond), "B (n D) -> B 1 n D", n=6)

    def forward(
        self,
        x_BlD: Tensor,
        modulation_B16D: Tensor,
        attn_bias: Tensor | None = None,
        cache: KeyValueCache | None = None,
        spans: Sequence[tuple[int, int]] | None = None,
        path_drop_B2: Tensor | None = None,
    ) -> Tensor:
        """Run both branches.

        Args:
            x_BlD: token features.
            modulation_B16D: from self.modulation.
            attn_bias, cache, spans: as in SelfAttention.
            path_drop_B2: bool, which images skip which branch in training; None draws it.
        """
        drop1_B, drop2_B = (None, None) if path_drop_B2 is None else path_drop_B2.unbind(1)
        gain1, gain2, scale1, scale2, shift1, shift2 = modulation_B16D.unbind(2)
        h_BlD = scaled_norm(x_BlD, self.ln_wo_grad, scale1, shift1)
        x_BlD = x_BlD + self.drop_path(self.attn(h_BlD, attn_bias, cache, spans) * gain1, drop1_B)
        h_BlD = scaled_norm(x_BlD, self.ln_wo_grad, scale2, shift2)
        return x_BlD + self.drop_path(self.ffn(h_BlD) * gain2, drop2_B)

    def extra_repr(self) -> str:
        return f"shared_aln={self.shared_aln}"


class AdaLNBeforeHead(nn.Module):
    """Layer norm before the head, scaled and shifted by the class embedding itself (also with shared_aln)."""

    def __init__(self, C: int, D: int, norm_eps: float = 1e-6):
        super().__init__()
        self.ln_wo_grad = nn.LayerNorm(C, eps=norm_eps, elementwise_affine=False)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(D, 2 * C))

    def forward(self, x_BlD: Tensor, cond_BD: Tensor) -> Tensor:
        scale_B1D, shift_B1D = self.ada_lin(cond_BD)[:, None].chunk(2, dim=-1)
        return scaled_norm(x_BlD, self.ln_wo_grad, scale_B1D, shift_B1D)
