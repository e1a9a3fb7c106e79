"""Encoder and decoder of the VQ-VAE: the convolutional pair of VQGAN, four times halved and doubled.

Source: P. Esser et al., "Taming Transformers for High-Resolution Image Synthesis" (2021), table 7; the
layout of weights is that of the published VAR checkpoints.

Axes: B images, C channels, H W pixels of the level at hand; h w the latent grid.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Channels a group norm shares statistics over are width / GROUPS, so every width is a multiple of it.
GROUPS = 32


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm that under a GPU's autocast gives what it gets, bfloat16, as it does on a CPU.

    PyTorch would go to float32 there: twice the traffic of the largest maps, and twice the memory that the
    backward pass keeps of them. The kernel's own sums are float32 in either case.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not (x_BCHW.is_cuda and x_BCHW.dtype == torch.bfloat16):
            return super().forward(x_BCHW)
        gain_C, bias_C = self.weight.to(x_BCHW.dtype), self.bias.to(x_BCHW.dtype)
        with torch.autocast("cuda", enabled=False):
            return F.group_norm(x_BCHW, self.num_groups, gain_C, bias_C, self.eps)


def group_norm(width: int) -> GroupNorm:
    """Build the normalisation used before every convolution here."""
    return GroupNorm(GROUPS, width, eps=1e-6)


def conv3x3(in_width: int, out_width: int) -> nn.Conv2d:
    """Build a convolution that keeps height and width."""
    return nn.Conv2d(in_width, out_width, kernel_size=3, padding=1)


def silu(x: Tensor) -> Tensor:
    """SiLU; without gradients in place, because it is given only what a norm has just made."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class Upsample2x(nn.Module):
    """Double height and width: each pixel four times, then a convolution.

    Done as one transposed convolution of stride 2, whose kernel is the convolution's smeared over 2x2 pixels:
    the same up to rounding, with 4 instead of 9 products a pixel and without the map of repeated pixels.
    """

    def __init__(self, in_channels: int):
        super().__init__()
        self.conv = conv3x3(in_channels, in_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        weight_IO33 = self.conv.weight.transpose(0, 1).flip(2, 3)
        weight_IO44 = sum(F.pad(weight_IO33, (i, 1 - i, j, 1 - j)) for i in (0, 1) for j in (0, 1))
        return F.conv_transpose2d(x_BCHW, weight_IO44, self.conv.bias, stride=2, padding=1)


class Downsample2x(nn.Module):
    """Halve height and width by a strided convolution, padded at the right and the bottom only."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels, kernel_size=3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class ResnetBlock(nn.Module):
    """Two convolutions around a shortcut, which is 1x1 where the width changes."""

    def __init__(self, *, in_channels: int, out_channels: int | None = None, dropout: float = 0.0):
        super().__init__()
        out_channels = out_channels or in_channels
        self.norm1 = group_norm(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels)
        same = in_channels == out_channels
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = self.conv1(silu(self.norm1(x_BCHW)))
        y = self.conv2(self.dropout(silu(self.norm2(y))))
        return y.add_(self.nin_shortcut(x_BCHW))


class AttnBlock(nn.Module):
    """Attention of one head over all places of the map, with a shortcut."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.norm = group_norm(in_channels)
        self.qkv = nn.Conv2d(in_channels, 3 * in_channels, kernel_size=1)
        self.proj_out = nn.Conv2d(in_channels, in_channels, kernel_size=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        # The axis of length 1 is the head; without it PyTorch takes its slow path.
        q, k, v = rearrange(self.qkv(self.norm(x_BCHW)), "B (n C) H W -> n B 1 (H W) C", n=3)
        y = F.scaled_dot_product_attention(q, k, v)
        return x_BCHW + self.proj_out(rearrange(y, "B 1 (H W) C -> B C H W", H=x_BCHW.shape[2]))


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention if asked, then a change of resolution."""

    def __init__(
        self,
        in_width: int,
        out_width: int,
        num_blocks: int,
        dropout: float,
        attend: bool,
        downsample: bool = False,
        upsample: bool = False,
    ):
        super().__init__()
        widths = [in_width] + [out_width] * num_blocks
        self.block = nn.ModuleList(
            ResnetBlock(in_channels=a, out_channels=b, dropout=dropout) for a, b in itertools.pairwise(widths)
        )
        self.attn = nn.ModuleList(AttnBlock(out_width) for _ in range(num_blocks if attend else 0))
        # Identity has no weights, so an absent one leaves no key in the state_dict.
        self.downsample = Downsample2x(out_width) if downsample else nn.Identity()
        self.upsample = Upsample2x(out_width) if upsample else nn.Identity()
        # Keep only what enters a residual block, and run it once more in the backward pass.
        self.recompute = False

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            if self.recompute and torch.is_grad_enabled():
                x_BCHW = checkpoint(block, x_BCHW, use_reentrant=False)
            else:
                x_BCHW = block(x_BCHW)
            if self.attn:
                x_BCHW = self.attn[i](x_BCHW)
        return self.upsample(self.downsample(x_BCHW))


class Middle(nn.Module):
    """Block, attention, block at the coarsest resolution."""

    def __init__(self, width: int, dropout: float, attend: bool):
        super().__init__()
        self.block_1 = ResnetBlock(in_channels=width, dropout=dropout)
        self.attn_1 = AttnBlock(width) if attend else nn.Identity()
        self.block_2 = ResnetBlock(in_channels=width, dropout=dropout)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_BChw)))


class Encoder(nn.Module):
    """Image to latent map.

    Args:
        ch: width of the finest level; a multiple of 32.
        ch_mult: width of each level as a multiple of ch; all but the last level halve the resolution.
        num_res_blocks: residual blocks per level.
        dropout: inside the residual blocks.
        in_channels: colours of the image.
        z_channels: channels of the latent map.
        double_z: give twice as many channels (mean and log-variance of a plain VAE).
        using_sa, using_mid_sa: attention in the last level, and between the blocks of the middle.
    """

    def __init__(
        self,
        *,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int = 2,
        dropout: float = 0.0,
        in_channels: int = 3,
        z_channels: int,
        double_z: bool = False,
        using_sa: bool = True,
        using_mid_sa: bool = True,
    ):
        super().__init__()
        widths = [ch * m for m in ch_mult]
        last = len(widths) - 1
        self.conv_in = conv3x3(in_channels, ch)
        self.down = nn.ModuleList(
            Level(before, width, num_res_blocks, dropout, attend=using_sa and i == last, downsample=i < last)
            for i, (before, width) in enumerate(zip([ch, *widths[:-1]], widths, strict=True))
        )
        self.mid = Middle(widths[-1], dropout, using_mid_sa)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = conv3x3(widths[-1], z_channels * (2 if double_z else 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Turn (B, in_channels, H, W) into (B, z_channels, h, w)."""
        x = self.conv_in(x_BCHW)
        for level in self.down:
            x = level(x)
        return self.conv_out(silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latent map to image: the encoder's mirror, with one more residual block per level.

    Args:
        ch, ch_mult, dropout, z_channels, using_sa, using_mid_sa: as for Encoder.
        num_res_blocks: of the encoder; here there is one more.
        in_channels: colours of the image, which is the output here (the published name).
    """

    def __init__(
        self,
        *,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int = 2,
        dropout: float = 0.0,
        in_channels: int = 3,
        z_channels: int,
        using_sa: bool = True,
        using_mid_sa: bool = True,
    ):
        super().__init__()
        widths = [ch * m for m in ch_mult]
        last = len(widths) - 1
        self.conv_in = conv3x3(z_channels, widths[-1])
        self.mid = Middle(widths[-1], dropout, using_mid_sa)
        # Kept finest first, as in the encoder; forward runs them backwards.
        self.up = nn.ModuleList(
            Level(before, width, num_res_blocks + 1, dropout, attend=using_sa and i == last, upsample=i > 0)
            for i, (before, width) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = conv3x3(widths[0], in_channels)

    def forward(self, z_BChw: Tensor) -> Tensor:
        """Turn (B, z_channels, h, w) into (B, in_channels, H, W); values are not clamped."""
        x = self.mid(self.conv_in(z_BChw))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(silu(self.norm_out(x)))
