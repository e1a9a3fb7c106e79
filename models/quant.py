"""Multi-scale residual quantiser: a latent map becomes one token map per scale, coarse to fine.

Each scale looks up, at its own resolution, what the coarser scales left over, and adds its contribution at
full resolution.
Source: K. Tian et al., "Visual Autoregressive Modeling" (2024), section 3.3, algorithms 1 and 2;
data-dependent start and revival of codes after P. Dhariwal et al., "Jukebox" (2020), section 3.1.

Axes: B images, C channels, h w latent grid, l tokens of one scale, L tokens of all scales, N = B * l places,
S scales, V codebook size.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.helpers import scale_position

# Weight of the newest step in the moving average of hits.
HIT_RATE = 0.01
# A code is in use when it is hit at least this share of what it would get if all codes were hit equally
# often.
USED_SHARE = 0.08


def code_counts(idx_Bl_list: Sequence[Tensor], vocab_size: int) -> Tensor:
    """Count how often each code occurs in each scale.

    Args:
        idx_Bl_list: token ids, one tensor per scale (any shape, any integer type).
        vocab_size: V.

    Returns:
        long (S, V), on the device of the tokens.
    """
    counts = []
    for idx_Bl in idx_Bl_list:
        idx_N = idx_Bl.reshape(-1).long()
        # Not torch.bincount, which makes a GPU wait to learn the largest value.
        counts.append(idx_N.new_zeros(vocab_size).scatter_add_(0, idx_N, torch.ones_like(idx_N)))
    return torch.stack(counts)


def usage(counts_SV: Tensor) -> Tensor:
    """Give the share of codes, 0 to 1, that occur at all in each scale: (S, V) -> (S,)."""
    return (counts_SV > 0).float().mean(dim=-1)


def usage_of_possible(counts_SV: Tensor) -> Tensor:
    """Give the share of codes that occur among those that could: n tokens can use n codes. (S, V) -> (S,)."""
    possible_S = counts_SV.sum(dim=-1).clamp(1, counts_SV.shape[-1])
    return (counts_SV > 0).sum(dim=-1) / possible_S


def perplexity(counts_SV: Tensor) -> Tensor:
    """Give exp(entropy) of the codes of each scale: how many equally frequent codes would be as varied.

    Args:
        counts_SV: hits, (..., V), any number type.

    Returns:
        float (...): 1 when one code does everything, V when all occur equally often, 0 where nothing was
        counted.
    """
    total = counts_SV.sum(dim=-1, keepdim=True)
    share_SV = counts_SV.double() / total.clamp_min(1e-12)
    entropy_S = -torch.special.xlogy(share_SV, share_SV).sum(dim=-1)
    return torch.where(total[..., 0] > 0, entropy_S.exp(), 0.0).float()


@functools.cache
def _bicubic(small: int, large: int, device: torch.device) -> Tensor:
    """How bicubic interpolation mixes the values of a row: (large, small), read off from unit vectors."""
    with torch.inference_mode(False):  # it is kept, and training must not meet a tensor of inference
        unit_1sv1 = torch.eye(small, device=device)[None, :, :, None]
        return F.interpolate(unit_1sv1, size=(large, 1), mode="bicubic")[0, :, :, 0].T.contiguous()


def upsample(h_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring float32 maps to a size by bicubic interpolation, as two products of matrices.

    The same as F.interpolate up to rounding and several times as fast: its GPU kernel gives each thread one
    place and all images and channels one after the other, and 16 x 16 places do not fill a GPU.
    """
    rows, columns = (
        _bicubic(s, large, h_BChw.device) for s, large in zip(h_BChw.shape[-2:], size, strict=True)
    )
    return rows @ h_BChw @ columns.T


class Phi(nn.Conv2d):
    """Blend a map with its 3x3 convolution: what up-sampling blurred, phi may mend."""

    def __init__(self, embed_dim: int, quant_resi: float):
        super().__init__(embed_dim, embed_dim, kernel_size=3, padding=1)
        self.resi_ratio = abs(quant_resi)

    def forward(self, h_BChw: Tensor) -> Tensor:
        return torch.lerp(h_BChw, super().forward(h_BChw), self.resi_ratio)


def nearest_tick(position: float, count: int) -> int:
    """Say which of count evenly spread convolutions serves the scale at this position (0 coarsest, 1 finest).

    The margin is 1/12 for four of them and half a spacing otherwise, as released checkpoints were trained.
    With ten scales on four convolutions two positions lie midway, and float64 rounding of these very
    expressions decides.
    """
    margin = 1 / 3 / count if count == 4 else 1 / 2 / count
    return int(np.argmin(np.abs(np.linspace(margin, 1 - margin, count) - position)))


class PhiShared(nn.Module):
    """One phi for all scales."""

    def __init__(self, qresi: nn.Module):
        super().__init__()
        self.qresi = qresi

    def at(self, position: float) -> nn.Module:
        """Return the phi of the scale at this position."""
        return self.qresi

    def __getitem__(self, position: float) -> nn.Module:
        """The same, as callers of the published package write it."""
        return self.at(position)


class PhiPartiallyShared(nn.Module):
    """A few phi, each shared by neighbouring scales."""

    def __init__(self, qresi_ls: nn.ModuleList):
        super().__init__()
        self.qresi_ls = qresi_ls

    def at(self, position: float) -> nn.Module:
        """Return the phi of the scale at this position."""
        return self.qresi_ls[nearest_tick(position, len(self.qresi_ls))]

    def __getitem__(self, position: float) -> nn.Module:
        """The same, as callers of the published package write it."""
        return self.at(position)


class PhiNonShared(nn.ModuleList):
    """As many phi as scales, or as asked for; being the list itself gives the state_dict its keys."""

    def at(self, position: float) -> nn.Module:
        """Return the phi of the scale at this position."""
        return self[nearest_tick(position, len(self))]

    def __getitem__(self, key: float | int | slice) -> nn.Module:
        """By a position, as callers of the published package write it, or as of any list."""
        return self.at(key) if isinstance(key, float) else super().__getitem__(key)


def _side(patch_num: int | tuple[int, int]) -> tuple[int, int]:
    return (patch_num, patch_num) if isinstance(patch_num, int) else tuple(patch_num)


class VectorQuantizer2(nn.Module):
    """Multi-scale residual vector quantiser; all its arithmetic is float32, also under autocast.

    Args:
        vocab_size: V, codes in the one codebook that all scales share.
        Cvae: channels of the latent map and of a code.
        using_znorm: look up by cosine instead of Euclidean distance.
        beta: weight of the commitment term, which draws the encoder to the codes.
        default_qresi_counts: how many phi when none is shared; 0 means one per scale.
        v_patch_nums: tokens per side of each scale, coarse first; the last is the latent map's own side.
        quant_resi: share of the convolution in phi, 0 leaves phi out.
        share_quant_resi: 0 no phi is shared, 1 all scales share one, n: n phi for all scales.

    Raises:
        ValueError: v_patch_nums is missing or holds something other than positive integers.
    """

    def __init__(
        self,
        vocab_size: int,
        Cvae: int,
        using_znorm: bool,
        beta: float = 0.25,
        default_qresi_counts: int = 0,
        v_patch_nums: Sequence[int] | None = None,
        quant_resi: float = 0.5,
        share_quant_resi: int = 4,
    ):
        super().__init__()
        v_patch_nums = () if v_patch_nums is None else tuple(v_patch_nums)
        if not v_patch_nums or any(int(n) != n or n < 1 for n in v_patch_nums):
            raise ValueError(
                f"found v_patch_nums={v_patch_nums}: give tokens per side of each scale, such as (1, 2, 4)"
            )
        self.vocab_size = vocab_size
        self.Cvae = Cvae
        self.using_znorm = using_znorm
        self.beta = beta
        self.v_patch_nums = tuple(int(n) for n in v_patch_nums)
        self.quant_resi_ratio = quant_resi
        # Progressive training: idxBl_to_var_input stops after this scale's input; -1 gives all.
        self.prog_si = -1

        def new_phi() -> nn.Module:
            return Phi(Cvae, quant_resi) if abs(quant_resi) > 1e-6 else nn.Identity()

        if share_quant_resi == 0:
            count = default_qresi_counts or len(self.v_patch_nums)
            self.quant_resi = PhiNonShared(new_phi() for _ in range(count))
        elif share_quant_resi == 1:
            self.quant_resi = PhiShared(new_phi())
        else:
            self.quant_resi = PhiPartiallyShared(nn.ModuleList(new_phi() for _ in range(share_quant_resi)))
        # Moving average of the hits a training step gives each code, over all processes.
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(self.v_patch_nums), vocab_size))
        # A step's batch may come in pieces: all but the last are told so, and their hits wait here.
        self.completes_step = True
        self.register_buffer("waiting_hits_SV", torch.zeros_like(self.ema_vocab_hit_SV), persistent=False)
        self.embedding = nn.Embedding(vocab_size, Cvae)

    def eini(self, eini: float) -> None:
        """Start the codebook at random: truncated normal if eini > 0, uniform within eini / V if not."""
        if eini > 0:
            nn.init.trunc_normal_(self.embedding.weight, std=eini)
        elif eini < 0:
            bound = -eini / self.vocab_size
            nn.init.uniform_(self.embedding.weight, -bound, bound)

    def extra_repr(self) -> str:
        return f"{self.v_patch_nums}, znorm={self.using_znorm}, quant_resi={self.quant_resi_ratio}"

    # --- training ---

    def forward(self, f_BChw: Tensor, ret_usages: bool = False) -> tuple[Tensor, list[float] | None, Tensor]:
        """Quantise with gradients; in training mode also count which codes were hit, over all processes.

        Args:
            f_BChw: latent map from the encoder, any float dtype; h and w are the last patch number.
            ret_usages: also say how much of the codebook is in use. Waits for the device.

        Returns:
            f_hat (B, C, h, w): the quantised map, whose gradient passes to f_BChw unchanged.
            usages: percent of codes in use in each scale by the moving average, or None. See usage_percent.
            vq_loss: scalar, the mean over scales of the error of the running sum up to that scale.
        """
        self._check_latent(f_BChw, self.v_patch_nums)
        with self._float32():
            f_BChw = f_BChw.float()
            goal_BChw = f_BChw.detach()
            losses, indices = [], []
            for _, idx_Bl, f_hat in self._walk(goal_BChw, self.v_patch_nums):
                commitment = F.mse_loss(f_BChw, f_hat.detach())
                losses.append(F.mse_loss(f_hat, goal_BChw) + self.beta * commitment)
                indices.append(idx_Bl)
            if self.training:
                self._record_hits(indices)
            usages = self.usage_percent(f_BChw.shape[0]) if ret_usages else None
            # Straight through: the value of f_hat, the gradient of f_BChw.
            f_hat = f_BChw + (f_hat.detach() - goal_BChw)
            return f_hat, usages, torch.stack(losses).mean()

    @torch.no_grad()
    def _record_hits(self, idx_Bl_list: list[Tensor]) -> None:
        hits_SV = self.waiting_hits_SV + code_counts(idx_Bl_list, self.vocab_size)
        if not self.completes_step:
            self.waiting_hits_SV.copy_(hits_SV)
            return
        self.waiting_hits_SV.zero_()
        if _is_distributed():
            dist.all_reduce(hits_SV)
        # The first step is taken as it is. No counter is kept, so that a resumed run goes on where it was.
        first = self.ema_vocab_hit_SV.sum() == 0
        self.ema_vocab_hit_SV.copy_(
            torch.where(first, hits_SV, self.ema_vocab_hit_SV.lerp(hits_SV, HIT_RATE))
        )

    def usage_percent(self, batch_size: int) -> list[float]:
        """Say how much of the codebook is in use in each scale, by the moving average of training.

        A code counts when its average hits per step reach USED_SHARE of what it would get if all codes were
        hit equally often. That expectation is batch * l / V and so differs from scale to scale.

        Args:
            batch_size: images per step on this process.

        Returns:
            S numbers from 0 to 100.
        """
        images = batch_size * (dist.get_world_size() if _is_distributed() else 1)
        tokens_S = torch.tensor([h * w for h, w in map(_side, self.v_patch_nums)], dtype=torch.float32)
        margin_S = (USED_SHARE * images / self.vocab_size * tokens_S).to(self.ema_vocab_hit_SV.device)
        return (100 * (self.ema_vocab_hit_SV >= margin_S[:, None]).float().mean(dim=1)).tolist()

    @torch.no_grad()
    def residuals(self, f_BChw: Tensor) -> list[Tensor]:
        """Give the vectors that each scale looks up, which is what its codes should resemble.

        Returns:
            S tensors (B * l, C), float32, coarse first.
        """
        self._check_latent(f_BChw, self.v_patch_nums)
        with self._float32():
            return [z_NC for z_NC, _, _ in self._walk(f_BChw.float(), self.v_patch_nums)]

    @torch.no_grad()
    def replace_codes_(
        self, dead_V: Tensor, vectors_NC: Tensor, generator: torch.Generator | None = None
    ) -> int:
        """Put vectors that were looked up in place of codes that nobody uses, or of all codes as a start.

        With fewer vectors than such codes, vectors are used again, shifted by 1 % of their deviation so that
        no two codes are the same. Under several processes give all of them the same vectors and seed.

        Args:
            dead_V: bool (V,), True where the code is to be replaced.
            vectors_NC: such as torch.cat(residuals(f)).
            generator: CPU stream that chooses.

        Returns:
            how many codes were replaced.

        Raises:
            ValueError: no vectors, or shapes that do not fit the codebook.
        """
        if vectors_NC.dim() != 2 or vectors_NC.shape[1] != self.Cvae or len(vectors_NC) == 0:
            raise ValueError(
                f"found vectors of shape {tuple(vectors_NC.shape)}, wanted (N, {self.Cvae}), N at least 1"
            )
        if dead_V.shape != (self.vocab_size,):
            raise ValueError(f"found a mask of shape {tuple(dead_V.shape)}, wanted ({self.vocab_size},)")
        codes = self.embedding.weight
        dead = dead_V.cpu().nonzero()[:, 0]
        # Whole rounds over all vectors, so that none is taken twice before each was taken once.
        rounds = -(-len(dead) // len(vectors_NC))
        chosen = [torch.randperm(len(vectors_NC), generator=generator, device="cpu") for _ in range(rounds)]
        if not chosen:
            return 0
        chosen = torch.cat(chosen)[: len(dead)]
        noise = torch.randn(len(dead), self.Cvae, generator=generator, device="cpu")
        noise[: len(vectors_NC)] = 0.0
        deviation_C = vectors_NC.float().std(dim=0, correction=0)
        new = vectors_NC[chosen.to(vectors_NC.device)].float() + 0.01 * deviation_C * noise.to(
            deviation_C.device
        )
        codes[dead.to(codes.device)] = new.to(codes)
        return len(dead)

    # --- between latent maps, tokens and images' worth of tokens ---

    @torch.no_grad()
    def f_to_idxBl_or_fhat(
        self, f_BChw: Tensor, to_fhat: bool, v_patch_nums: Sequence[int | tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """Quantise without gradients.

        Args:
            f_BChw: latent map.
            to_fhat: True gives maps, False tokens.
            v_patch_nums: other scales than the model's own, each a side or (height, width).

        Returns:
            for each scale either the quantised map (B, C, h, w) up to that scale, or token ids (B, l).
        """
        patch_nums = tuple(v_patch_nums or self.v_patch_nums)
        self._check_latent(f_BChw, patch_nums)
        with self._float32():
            walk = self._walk(f_BChw.float(), patch_nums)
            return [f_hat if to_fhat else idx_Bl for _, idx_Bl, f_hat in walk]

    def embed_to_fhat(
        self, ms_h_BChw: list[Tensor], all_to_max_scale: bool = True, last_one: bool = False
    ) -> list[Tensor] | Tensor:
        """Add up code maps, coarse to fine.

        Args:
            ms_h_BChw: looked-up codes, one (B, C, pn, pn) per scale; with fewer scales the sum stops early.
            all_to_max_scale: True adds at full resolution; False lets the sum grow with the scales.
            last_one: give only the last sum.

        Returns:
            the sum after each scale, or the last of them.
        """
        with self._float32():
            S = len(self.v_patch_nums)
            full = _side(self.v_patch_nums[-1])
            f_hat, sums = None, []
            for si, h_BChw in enumerate(ms_h_BChw):
                h_BChw = h_BChw.float()
                if all_to_max_scale:
                    contribution = self._contribution(h_BChw, si, S, full)
                else:
                    contribution = self.quant_resi.at(scale_position(si, S))(h_BChw)
                    if f_hat is not None:
                        f_hat = upsample(f_hat, contribution.shape[-2:])
                f_hat = contribution if f_hat is None else f_hat + contribution
                sums.append(f_hat)
            return sums[-1] if last_one else sums

    def idxBl_to_var_input(self, gt_ms_idx_Bl: list[Tensor]) -> Tensor | None:
        """Make the transformer's teacher-forcing input: the sum so far, at the size of each later scale.

        Args:
            gt_ms_idx_Bl: token ids, one (B, l) per scale, coarse first.

        Returns:
            float32 (B, L - first l, C), shorter when prog_si stops it early; None where only the first scale
            counts.

        Raises:
            ValueError: wrong number or size of token maps, or a token that is no code.
        """
        S = len(self.v_patch_nums)
        if len(gt_ms_idx_Bl) != S:
            raise ValueError(
                f"found {len(gt_ms_idx_Bl)} token maps, wanted {S}, one for each of {self.v_patch_nums}"
            )
        steps = S - 1 if self.prog_si < 0 else min(self.prog_si, S - 1)
        f_hat, inputs = None, []
        for si in range(steps):
            h_BChw = self.codes_to_map(gt_ms_idx_Bl[si], self.v_patch_nums[si])
            f_hat, next_BChw = self.get_next_autoregressive_input(si, S, f_hat, h_BChw)
            inputs.append(rearrange(next_BChw, "B C h w -> B (h w) C"))
        return torch.cat(inputs, dim=1) if inputs else None

    def get_next_autoregressive_input(
        self, si: int, SN: int, f_hat: Tensor | None, h_BChw: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add one scale to the sum and resize the sum for the next scale.

        Args:
            si: the scale just done, from 0.
            SN: number of scales.
            f_hat: (B, C, h, w), the sum so far, or None before the first scale; not changed.
            h_BChw: looked-up codes of scale si, at its own size.

        Returns:
            the new sum, and the same at the size of scale si + 1 (itself after the last scale).
        """
        with self._float32():
            contribution = self._contribution(h_BChw.float(), si, SN, _side(self.v_patch_nums[-1]))
            f_hat = contribution if f_hat is None else f_hat + contribution
            if si == SN - 1:
                return f_hat, f_hat
            return f_hat, F.interpolate(f_hat, size=_side(self.v_patch_nums[si + 1]), mode="area")

    def codes_to_map(self, idx_Bl: Tensor, patch_num: int | tuple[int, int]) -> Tensor:
        """Look up token ids (B, l) and lay them out as (B, C, h, w).

        Raises:
            ValueError: l is not the size of the map; on a CPU also a token that is no code (a GPU says so
                itself).
        """
        h, w = _side(patch_num)
        if idx_Bl.dim() != 2 or idx_Bl.shape[1] != h * w:
            raise ValueError(
                f"found tokens of shape {tuple(idx_Bl.shape)}, a {h} x {w} map needs (B, {h * w})"
            )
        if (
            idx_Bl.device.type == "cpu"
            and idx_Bl.numel()
            and (idx_Bl.min() < 0 or idx_Bl.max() >= self.vocab_size)
        ):
            raise ValueError(
                f"found tokens from {idx_Bl.min()} to {idx_Bl.max()}, "
                f"the codebook has 0 to {self.vocab_size - 1}: were they made by another VQ-VAE?"
            )
        return rearrange(self.embedding(idx_Bl.long()), "B (h w) C -> B C h w", h=h)

    def blend_to_map(self, weights_BlV: Tensor, patch_num: int | tuple[int, int]) -> Tensor:
        """Mix codes by weights that sum to 1, and lay them out as (B, C, h, w)."""
        with self._float32():
            codes_BlC = weights_BlV.float() @ self.embedding.weight.float()
        return rearrange(codes_BlC, "B (h w) C -> B C h w", h=_side(patch_num)[0])

    # --- the arithmetic ---

    def _walk(self, f_BChw: Tensor, patch_nums: Sequence[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield, for each scale, vectors looked up (N, C), token ids (B, l), the sum so far (B, C, h, w)."""
        S, B, size = len(patch_nums), f_BChw.shape[0], f_BChw.shape[-2:]
        residual_BChw, f_hat = f_BChw, 0.0
        for si, (h, w) in enumerate(map(_side, patch_nums)):
            z_BChw = residual_BChw if si == S - 1 else F.interpolate(residual_BChw, size=(h, w), mode="area")
            z_NC = rearrange(z_BChw, "B C h w -> (B h w) C")
            idx_Bl = self._nearest(z_NC).view(B, h * w)
            codes_BChw = rearrange(self.embedding(idx_Bl), "B (h w) C -> B C h w", h=h)
            contribution = self._contribution(codes_BChw, si, S, size)
            f_hat = f_hat + contribution
            # Which code is nearest has no gradient, so what is left over needs none.
            residual_BChw = residual_BChw - contribution.detach()
            yield z_NC, idx_Bl, f_hat

    @torch.no_grad()
    def _nearest(self, z_NC: Tensor) -> Tensor:
        codes_VC = self.embedding.weight.float()
        if self.using_znorm:
            return (F.normalize(z_NC, dim=1) @ F.normalize(codes_VC, dim=1).T).argmax(dim=1)
        # |z - e|^2 without |z|^2, which is the same for all codes.
        return torch.addmm(codes_VC.square().sum(dim=1), z_NC, codes_VC.T, alpha=-2).argmin(dim=1)

    def _contribution(self, h_BChw: Tensor, si: int, S: int, size: tuple[int, int]) -> Tensor:
        """Bring one scale's codes to full size, except the last scale's, and pass them through its phi."""
        if si < S - 1:
            h_BChw = upsample(h_BChw, size)
        return self.quant_resi.at(scale_position(si, S))(h_BChw)

    def _float32(self) -> contextlib.AbstractContextManager:
        device = self.embedding.weight.device.type
        if not torch.amp.is_autocast_available(device):
            return contextlib.nullcontext()  # "meta", for one, has none to switch off
        return torch.autocast(device, enabled=False)

    def _check_latent(self, f_BChw: Tensor, patch_nums: Sequence[int]) -> None:
        wanted = ("B", self.Cvae, *_side(patch_nums[-1]))
        if f_BChw.dim() != 4 or tuple(f_BChw.shape[1:]) != wanted[1:]:
            raise ValueError(
                f"found a latent map of shape {tuple(f_BChw.shape)}, wanted {wanted}: "
                f"its sides must equal the last of the patch numbers {tuple(patch_nums)}"
            )


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
