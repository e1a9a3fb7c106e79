"""Blocks of the transformer: attention and feed-forward, both scaled and shifted by the class (adaLN).

Sources: W. Peebles and S. Xie, "Scalable Diffusion Models with Transformers" (2023), section 3.2, for adaLN;
K. Tian et al., "Visual Autoregressive Modeling" (2024), section 4. The layout of weights is that of the
published checkpoints.

Axes: B images, l tokens at hand (one scale or several), L tokens of all scales, D width; in attention H
heads, d a head's width.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.fast_paths import attend, linear, scaled_norm
from models.helpers import DropPath

# With l2-normalised attention each head's queries are scaled by a learned factor: it starts at 4, and stays
# below 100.
START_SCALE = 4.0
MAX_SCALE = 100.0


class Linear(nn.Linear):
    """nn.Linear by the faster product."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


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
    """Attention of many heads; keys have no bias, because it would not change what is attended to.

    Args:
        block_idx: number of the block, for reading a printed model.
        embed_dim: D.
        num_heads: H, divides D.
        attn_drop: dropout on the attention weights.
        proj_drop: dropout on the output.
        attn_l2_norm: attend by cosine, with a learned scale per head, instead of by dot product.
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
        """Turn the class into the six vectors of this block; once per image, whatever the number of scales.

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
    """Layer norm before the head, scaled and shifted by the class embedding itself (also with shared_aln).

    Args:
        C, D: width of the tokens and of the class embedding, by their published names.
        norm_eps: of the layer norm.
    """

    def __init__(self, C: int, D: int, norm_eps: float = 1e-6):
        super().__init__()
        self.ln_wo_grad = nn.LayerNorm(C, eps=norm_eps, elementwise_affine=False)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(D, 2 * C))

    def forward(self, x_BlD: Tensor, cond_BD: Tensor) -> Tensor:
        scale_B1D, shift_B1D = self.ada_lin(cond_BD)[:, None].chunk(2, dim=-1)
        return scaled_norm(x_BlD, self.ln_wo_grad, scale_B1D, shift_B1D)
