"""VAR: a transformer that predicts the next, finer token map from all coarser ones, given the class.

Source: K. Tian et al., "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction"
(2024), section 3.2; classifier-free guidance after J. Ho and T. Salimans (2022). A drop-in for the published
class: same constructor, methods and state_dict. Attention is PyTorch's scaled_dot_product_attention.

Axes: B images, C channels, h w latent grid, l tokens of one scale, L tokens of all scales (coarse first),
S scales, V codebook size, D width.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.basic_var import AdaLNBeforeHead, AdaLNSelfAttn, KeyValueCache, Linear
from models.helpers import (
    compile_each,
    filter_top_k_top_p,
    gumbel_noise,
    head_cross_entropy,
    image_seeds,
    next_scale_mask,
    sample_with_top_k_top_p,
    scale_position,
    scale_spans,
)
from models.vqvae import VQVAE


def smooth_temperature(scale: int, num_scales: int) -> float:
    """Temperature of the blend that more_smooth makes: lower at finer scales. The published constants."""
    return max(0.27 * (1 - 0.95 * scale_position(scale, num_scales)), 0.005)


class SharedAdaLin(nn.Linear):
    """The adaLN layer that serves all blocks: (B, D) -> (B, 1, 6, D)."""

    def forward(self, cond_BD: Tensor) -> Tensor:
        return rearrange(super().forward(cond_BD), "B (n D) -> B 1 n D", n=6)


class VAR(nn.Module):
    """Next-scale transformer over the tokens of a VQ-VAE, which it uses but does not own.

    Args:
        vae_local: gives the codebook, and decodes samples; stays out of state_dict and parameters.
        num_classes: classes are 0 to num_classes - 1; num_classes itself means "no class".
        depth, embed_dim, num_heads, mlp_ratio: size of the transformer.
        drop_rate, attn_drop_rate: dropout.
        drop_path_rate: stochastic depth of the last block; earlier blocks have less, the first none.
        norm_eps: of all layer norms.
        shared_aln: one adaLN layer for all blocks.
        cond_drop_rate: chance that a training image loses its class, which guidance needs.
        attn_l2_norm: attention by cosine.
        patch_nums: tokens per side of each scale, coarse first; those of vae_local.
        flash_if_available, fused_if_available: taken for the published package's callers, and without effect:
            PyTorch's own attention picks its kernel.

    Raises:
        ValueError: heads that do not divide the width, or other patch numbers than the VQ-VAE's.
    """

    def __init__(
        self,
        vae_local: VQVAE,
        num_classes: int = 1000,
        depth: int = 16,
        embed_dim: int = 1024,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
        shared_aln: bool = False,
        cond_drop_rate: float = 0.1,
        attn_l2_norm: bool = False,
        patch_nums: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        flash_if_available: bool = True,
        fused_if_available: bool = True,
    ):
        super().__init__()
        patch_nums = tuple(patch_nums)
        if patch_nums != vae_local.quantize.v_patch_nums:
            raise ValueError(
                f"found patch_nums={patch_nums}, but the VQ-VAE has {vae_local.quantize.v_patch_nums}: "
                "give both the same"
            )
        self.Cvae, self.V = vae_local.Cvae, vae_local.vocab_size
        self.depth, self.num_heads = depth, num_heads
        self.C = self.D = embed_dim  # the width, by both of its published names
        self.num_classes = num_classes
        self.cond_drop_rate = cond_drop_rate
        # Progressive training: only scales 0 .. prog_si are run; -1 runs all.
        self.prog_si = -1
        # In training, attend scale by scale instead of to all scales under a mask: the same numbers, faster
        # at 680 tokens (benchmarks/training.py).
        self.attend_by_scale = True
        # In training, keep only what goes into each block and run it once more in the backward pass: less
        # memory for up to a third more work (benchmarks/training.py).
        self.recompute_blocks = False
        self.patch_nums = patch_nums
        self.begin_ends = scale_spans(patch_nums)
        self.L, self.first_l = self.begin_ends[-1][1], self.begin_ends[0][1]
        # In tuples, so that the VQ-VAE's weights are not taken for this model's.
        self.vae_proxy, self.vae_quant_proxy = (vae_local,), (vae_local.quantize,)

        std = math.sqrt(1 / (3 * embed_dim))
        self.word_embed = Linear(self.Cvae, embed_dim)
        self.class_emb = nn.Embedding(num_classes + 1, embed_dim)
        self.pos_start = nn.Parameter(torch.empty(1, self.first_l, embed_dim))
        self.pos_1LC = nn.Parameter(torch.empty(1, self.L, embed_dim))
        self.lvl_embed = nn.Embedding(len(patch_nums), embed_dim)
        for weight in (self.class_emb.weight, self.pos_start, self.pos_1LC, self.lvl_embed.weight):
            nn.init.trunc_normal_(weight, std=std)

        self.shared_ada_lin = (
            nn.Sequential(nn.SiLU(), SharedAdaLin(embed_dim, 6 * embed_dim)) if shared_aln else nn.Identity()
        )
        self.blocks = nn.ModuleList(
            AdaLNSelfAttn(
                block_idx=i,
                embed_dim=embed_dim,
                num_heads=num_heads,
                shared_aln=shared_aln,
                mlp_ratio=mlp_ratio,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=drop_path_rate * i / max(depth - 1, 1),
                norm_eps=norm_eps,
                attn_l2_norm=attn_l2_norm,
            )
            for i in range(depth)
        )

        scale_L = torch.cat([torch.full((end - start,), i) for i, (start, end) in enumerate(self.begin_ends)])
        self.register_buffer("lvl_1L", scale_L[None])
        bias_LL = torch.zeros(self.L, self.L).masked_fill(
            ~next_scale_mask(patch_nums).to(scale_L.device), -torch.inf
        )
        self.register_buffer("attn_bias_for_masking", bias_LL[None, None])

        self.head_nm = AdaLNBeforeHead(embed_dim, embed_dim, norm_eps=norm_eps)
        self.head = Linear(embed_dim, self.V)

    def extra_repr(self) -> str:
        return f"{self.patch_nums}, num_classes={self.num_classes}, cond_drop_rate={self.cond_drop_rate}"

    # --- training ---

    def forward(
        self,
        label_B: Tensor,
        x_BLCv_wo_first_l: Tensor | None,
        class_drop_B: Tensor | None = None,
        target_BL: Tensor | None = None,
        label_smoothing: float = 0.0,
        chunk: int = 0,
        path_drop_BN2: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Predict every token from the coarser scales of the same image (teacher forcing).

        Args:
            label_B: long; -1 or num_classes means "no class".
            x_BLCv_wo_first_l: from quantize.idxBl_to_var_input; with prog_si, what comes after is not used.
                None where only the first scale is run.
            class_drop_B: bool, True where an image loses its class. None draws it here with cond_drop_rate,
                in training mode only. A trainer of several processes gives its part of a mask drawn for the
                whole batch, so that the result does not depend on the number of processes.
            target_BL: long, the tokens to be predicted; then what helpers.head_cross_entropy says of them is
                returned, and with `chunk` the logits of all tokens are never held. Here and not in a method
                of its own, because DistributedDataParallel and torch.compile see only forward.
            label_smoothing: share of the target spread over all codes, 0 to 1; only with target_BL.
            chunk: tokens whose logits are held at once; 0 is all; only with target_BL.
            path_drop_BN2: bool (B, depth, 2), where an image skips a block's attention or feed-forward part
                in training. None draws it here; a trainer of several processes gives it, as class_drop_B.

        Returns:
            float32 logits (B, L, V), or with target_BL loss_BL, nats_BL and correct_BL of
            helpers.head_cross_entropy; L is that of the first prog_si + 1 scales where prog_si is set.

        Raises:
            ValueError: wrong shapes; on a CPU also labels out of range (a GPU says so itself).
        """
        end = self.begin_ends[self.prog_si][1] if self.prog_si >= 0 else self.L
        B = label_B.shape[0]
        self._check_inputs(label_B, x_BLCv_wo_first_l, end, class_drop_B)
        no_class_B = label_B < 0
        if class_drop_B is not None:
            no_class_B = no_class_B | class_drop_B
        elif self.training and self.cond_drop_rate > 0:
            no_class_B = no_class_B | (torch.rand(B, device=label_B.device) < self.cond_drop_rate)
        cond_BD = self.class_emb(label_B.masked_fill(no_class_B, self.num_classes))

        x_BLD = self._first_tokens(cond_BD)
        if end > self.first_l:
            x_BLD = torch.cat(
                [x_BLD, self.word_embed(x_BLCv_wo_first_l[:, : end - self.first_l].float())], dim=1
            )
        else:
            # Gives word_embed a gradient of 0, for DistributedDataParallel waits for every parameter.
            x_BLD = x_BLD + 0 * (self.word_embed.weight.sum() + self.word_embed.bias.sum())
        x_BLD = x_BLD + self._position_embedding()[:, :end]
        if self.attend_by_scale:
            block_kwargs = {"spans": [span for span in self.begin_ends if span[1] <= end]}
        else:
            block_kwargs = {"attn_bias": self.attn_bias_for_masking[:, :, :end, :end]}
        shared = self.shared_ada_lin(cond_BD)
        for i, block in enumerate(self.blocks):
            modulation_B16D = block.modulation(shared)
            if path_drop_BN2 is not None:
                block_kwargs["path_drop_B2"] = path_drop_BN2[:, i]
            if self.recompute_blocks and torch.is_grad_enabled():
                x_BLD = checkpoint(block, x_BLD, modulation_B16D, use_reentrant=False, **block_kwargs)
            else:
                x_BLD = block(x_BLD, modulation_B16D, **block_kwargs)
        if target_BL is None:
            return self.get_logits(x_BLD, cond_BD)
        h_BLD = self.head_nm(x_BLD.float(), cond_BD).float()
        return head_cross_entropy(self.head, h_BLD, target_BL[:, :end], label_smoothing, chunk)

    def get_logits(self, h_BlD: Tensor, cond_BD: Tensor) -> Tensor:
        """Turn the last block's output into float32 logits (B, l, V)."""
        return self.head(self.head_nm(h_BlD.float(), cond_BD).float()).float()

    def _first_tokens(self, cond_BD: Tensor) -> Tensor:
        """Input of the first scale: the class embedding at each of its positions."""
        return cond_BD[:, None] + self.pos_start

    def _position_embedding(self) -> Tensor:
        """What tells the model where a token lies: (1, L, D)."""
        return self.lvl_embed(self.lvl_1L) + self.pos_1LC

    def _check_inputs(
        self, label_B: Tensor, x_BLC: Tensor | None, end: int, class_drop_B: Tensor | None
    ) -> None:
        if label_B.dim() != 1:
            raise ValueError(f"found labels of shape {tuple(label_B.shape)}, wanted (B,)")
        if class_drop_B is not None and class_drop_B.shape != label_B.shape:
            raise ValueError(
                f"found a class_drop_B of shape {tuple(class_drop_B.shape)} for {len(label_B)} labels: "
                "give one value per image"
            )
        needed = end - self.first_l
        found = None if x_BLC is None else tuple(x_BLC.shape)
        fits = needed == 0 if x_BLC is None else x_BLC.dim() == 3 and found[::2] == (len(label_B), self.Cvae)
        if not fits or (found and not needed <= found[1] <= self.L - self.first_l):
            raise ValueError(
                f"found an input of shape {found} for {len(label_B)} labels, "
                f"wanted {(len(label_B), self.L - self.first_l, self.Cvae)} from quantize.idxBl_to_var_input"
            )
        # Reading values makes a GPU wait, so there it is left to the embedding's own check.
        if label_B.device.type == "cpu":
            self._check_labels(label_B)

    def _check_labels(self, label_B: Tensor) -> None:
        if label_B.numel() and (label_B.min() < -1 or label_B.max() > self.num_classes):
            raise ValueError(
                f"found labels from {label_B.min()} to {label_B.max()}, wanted 0 to {self.num_classes - 1}, "
                f"or -1 for no class"
            )

    # --- sampling ---

    @torch.no_grad()
    def autoregressive_infer_cfg(
        self,
        B: int,
        label_B: int | Tensor | None,
        g_seed: int | None = None,
        cfg: float = 1.5,
        top_k: int = 0,
        top_p: float = 0.0,
        more_smooth: bool = False,
    ) -> Tensor:
        """Generate images; the published call, a thin one around generate_tokens.

        Args:
            B: how many.
            label_B: one class for all, or one per image (long, B); -1 means "no class"; None draws classes
                from the seed.
            g_seed: image i depends on (g_seed, i) alone, not on B; None draws a seed from torch's global
                stream.
            cfg, top_k, top_p, more_smooth: see generate_tokens.

        Returns:
            (B, 3, H, W) in [0, 1].
        """
        if g_seed is None:
            g_seed = int(torch.randint(2**62, (), device="cpu"))
        if label_B is None:
            label_B = torch.tensor(
                [s % self.num_classes for s in image_seeds(g_seed, B, "class")], dtype=torch.long
            )
        _, f_hat = self.generate_tokens(
            label_B, seeds=image_seeds(g_seed, B), cfg=cfg, top_k=top_k, top_p=top_p, more_smooth=more_smooth
        )
        return self.vae_proxy[0].fhat_to_img(f_hat).add_(1).mul_(0.5)

    @torch.no_grad()
    def generate_tokens(
        self,
        label_B: int | Sequence[int] | Tensor,
        *,
        seeds: Sequence[int],
        cfg: float = 1.5,
        top_k: int = 0,
        top_p: float = 0.0,
        temperature: float | Sequence[float] = 1.0,
        greedy: bool = False,
        more_smooth: bool = False,
        known_BL: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw token maps, coarse to fine, with a key/value cache; dropout is off whatever the mode.

        Every image, position and code has its own random number, a hash of the image's seed. So a sample does
        not depend on the batch, the device, or which other tokens are given: only rounding of the arithmetic
        differs, which changes a token when its two best codes are that near.

        Args:
            label_B: one class for all, or one per image (long, B); -1 or num_classes means "no class".
            seeds: one per image; B is their number.
            cfg: strength of guidance; it grows with the scale: t = cfg * s / (S - 1), logits (1 + t) * with
                class - t * without. A single scale gets all of it. 0 skips the half without class.
            top_k, top_p: see helpers.filter_top_k_top_p.
            temperature: divides the guided logits; one for all or one per scale, 1e-6 or more.
            greedy: take the most likely token; no randomness.
            more_smooth: blend codes by a Gumbel-softmax whose temperature falls with the scale, instead of
                taking the drawn one: nicer to look at, but f_hat is then not that of the tokens.
            known_BL: long (B, L), -1 where a token is free; others are taken as they are (a prefix of real
                tokens, or the part to keep when editing). None leaves all free.

        Returns:
            idx_BL: long (B, L), the tokens.
            f_hat: (B, Cvae, h, w), their quantised map, for vae.fhat_to_img.

        Raises:
            ValueError: wrong shapes, labels or tokens out of range, settings that make no sense.
        """
        B, S, device = len(seeds), len(self.patch_nums), self.pos_1LC.device
        if B == 0:
            raise ValueError("found no seeds: give one for each image that is to be generated")
        label_B = self._labels(label_B, B).to(device, non_blocking=True)
        temperatures = self._temperatures(temperature)
        if greedy and more_smooth:
            raise ValueError("found greedy and more_smooth together: more_smooth is random, choose one")
        if not 0.0 <= cfg < math.inf:
            raise ValueError(f"found cfg={cfg}: guidance must be 0 or more")
        if top_k < 0 or not 0.0 <= top_p <= 1.0:
            raise ValueError(
                f"found top_k={top_k}, top_p={top_p}: top_k must be 0 or more, top_p from 0 to 1"
            )
        known_BL = self._known(known_BL, B)
        # Asked before the copy to the device, and all scales at once: no wait for the device in between.
        free_S = torch.stack([(known_BL[:, a:b] < 0).any() for a, b in self.begin_ends]).tolist()
        known_BL = known_BL.to(device, non_blocking=True)
        quantize = self.vae_quant_proxy[0]
        guided = cfg != 0
        if guided:
            label_B = torch.cat([label_B, torch.full_like(label_B, self.num_classes)])
        last_free = max((si for si in range(S) if free_S[si]), default=-1)
        idx_list, f_hat = [], None
        with _evaluating(self), _cast_once(self):
            cond_BD = self.class_emb(label_B)
            shared = self.shared_ada_lin(cond_BD)
            modulations = [block.modulation(shared) for block in self.blocks]
            caches = [KeyValueCache(self.begin_ends[last_free][1]) for _ in self.blocks]
            position_1LD = self._position_embedding()
            x_BlD = self._first_tokens(cond_BD)
            for si, (start, end) in enumerate(self.begin_ends):
                # Scales that are given are still run, because finer ones look at them; after the last free
                # one none does.
                if si <= last_free:
                    x_BlD = x_BlD + position_1LD[:, start:end]
                    for block, modulation, cache in zip(self.blocks, modulations, caches, strict=True):
                        x_BlD = block(x_BlD, modulation, cache=cache)
                idx_Bl = known_BL[:, start:end]
                is_free_Bl = idx_Bl < 0
                if free_S[si]:
                    logits_BlV = self._guided_logits(x_BlD, cond_BD, B, cfg * scale_position(si, S))
                    logits_BlV = logits_BlV / temperatures[si]
                    if greedy:
                        drawn_Bl = logits_BlV.argmax(dim=-1)
                    else:
                        drawn_Bl = self._draw(logits_BlV, si, seeds, top_k, top_p)
                    idx_Bl = torch.where(is_free_Bl, drawn_Bl, idx_Bl)
                idx_list.append(idx_Bl)
                h_BChw = quantize.codes_to_map(idx_Bl, self.patch_nums[si])
                if more_smooth and free_S[si]:
                    smooth_BChw = self._smooth_codes(logits_BlV, si, seeds, top_k, top_p)
                    is_free_B1hw = rearrange(is_free_Bl, "B (h w) -> B 1 h w", h=self.patch_nums[si])
                    h_BChw = torch.where(is_free_B1hw, smooth_BChw, h_BChw)
                f_hat, next_BChw = quantize.get_next_autoregressive_input(si, S, f_hat, h_BChw)
                if si < last_free:
                    x_BlD = self.word_embed(rearrange(next_BChw, "B C h w -> B (h w) C"))
                    if guided:
                        x_BlD = x_BlD.repeat(2, 1, 1)
        return torch.cat(idx_list, dim=1), f_hat

    def _guided_logits(self, x_BlD: Tensor, cond_BD: Tensor, B: int, t: float) -> Tensor:
        """Logits (B, l, V) of a scale: (1 + t) * those of the first B rows - t * those of the rest."""
        # At the first scale t is 0: the half without class ran for the cache alone.
        rows = slice(None) if t else slice(B)
        logits_BlV = self.get_logits(x_BlD[rows], cond_BD[rows])
        return (1 + t) * logits_BlV[:B] - t * logits_BlV[B:] if t else logits_BlV

    def _draw(self, logits_BlV: Tensor, si: int, seeds: Sequence[int], top_k: int, top_p: float) -> Tensor:
        """Tokens (B, l) of scale si, drawn from its logits."""
        gumbel_BlV = gumbel_noise(seeds, range(*self.begin_ends[si]), self.V, logits_BlV.device)
        return sample_with_top_k_top_p(logits_BlV, gumbel_BlV, top_k, top_p)

    def _smooth_codes(
        self, logits_BlV: Tensor, si: int, seeds: Sequence[int], top_k: int, top_p: float
    ) -> Tensor:
        """Codes of scale si blended by a Gumbel-softmax of its logits, as a map (B, C, h, w)."""
        # Positions beyond L give noise that is unrelated to that of the tokens.
        start, end = self.begin_ends[si]
        gumbel_BlV = gumbel_noise(seeds, range(self.L + start, self.L + end), self.V, logits_BlV.device)
        S = len(self.patch_nums)
        logits_BlV = filter_top_k_top_p(logits_BlV, top_k, top_p) * (1 + scale_position(si, S))
        weights_BlV = ((logits_BlV + gumbel_BlV) / smooth_temperature(si, S)).softmax(dim=-1)
        return self.vae_quant_proxy[0].blend_to_map(weights_BlV, self.patch_nums[si])

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the blocks by torch.compile, for shapes that stay: one graph per scale for all blocks.

        Graphs are made at the first call with a batch size, and a batch of another size makes its own.

        Args:
            backend: of torch.compile.
        """
        compile_each(self.blocks, 8 * len(self.patch_nums), backend)

    def _labels(self, label_B: int | Sequence[int] | Tensor, B: int) -> Tensor:
        """One label per image, with "no class" as num_classes."""
        label_B = torch.as_tensor(label_B)
        if label_B.dim() == 0:
            label_B = label_B.expand(B)
        if tuple(label_B.shape) != (B,) or label_B.is_floating_point():
            raise ValueError(
                f"found {label_B.dtype} labels of shape {tuple(label_B.shape)} for {B} images, "
                f"wanted one whole number, or ({B},) of them"
            )
        self._check_labels(label_B)
        return label_B.long().masked_fill(label_B < 0, self.num_classes)

    def _temperatures(self, temperature: float | Sequence[float]) -> list[float]:
        S = len(self.patch_nums)
        temperatures = [float(temperature)] * S if isinstance(temperature, int | float) else list(temperature)
        # Logits divided by numbers near 0 overflow; by 1e-6, those up to 1e32 stay finite.
        if len(temperatures) != S or not all(1e-6 <= t < math.inf for t in temperatures):
            raise ValueError(
                f"found temperature={temperature}, wanted one finite number of 1e-6 or more, "
                f"or {S}, one per scale"
            )
        return temperatures

    def _known(self, known_BL: Tensor | None, B: int) -> Tensor:
        if known_BL is None:
            return torch.full((B, self.L), -1, dtype=torch.long)
        if tuple(known_BL.shape) != (B, self.L):
            raise ValueError(
                f"found known tokens of shape {tuple(known_BL.shape)}, wanted ({B}, {self.L}), -1 where free"
            )
        if known_BL.min() < -1 or known_BL.max() >= self.V:
            raise ValueError(
                f"found known tokens from {known_BL.min()} to {known_BL.max()}, "
                f"the codebook has 0 to {self.V - 1}: were they made by another VQ-VAE?"
            )
        return known_BL.long()

    # --- starting weights ---

    def init_weights(
        self,
        init_adaln: float = 0.5,
        init_adaln_gamma: float = 1e-5,
        init_head: float = 0.02,
        init_std: float = 0.02,
        conv_std_or_gain: float = 0.02,
    ) -> None:
        """Start all weights anew for training.

        Args:
            init_adaln: factor on the weights that give scales and shifts.
            init_adaln_gamma: factor on those that give gains; near 0 each block starts as the identity.
            init_head: factor on the head, so that all tokens start equally likely; negative leaves it.
            init_std: deviation of linear layers and embeddings; negative means sqrt(1 / (3 D)).
            conv_std_or_gain: there are no convolutions here; for those of a subclass, deviation if positive,
                else minus the gain of Xavier's rule.
        """
        std = init_std if init_std >= 0 else math.sqrt(1 / (3 * self.D))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std)
            elif isinstance(module, nn.modules.conv._ConvNd):
                if conv_std_or_gain > 0:
                    nn.init.trunc_normal_(module.weight, std=conv_std_or_gain)
                else:
                    nn.init.xavier_normal_(module.weight, gain=-conv_std_or_gain)
            if isinstance(getattr(module, "bias", None), nn.Parameter):
                nn.init.zeros_(module.bias)

        with torch.no_grad():
            if init_head >= 0:
                self.head.weight.mul_(init_head)
            self.head_nm.ada_lin[-1].weight.mul_(init_adaln)
            for block in self.blocks:
                # The residual stream grows with depth; the branches' last layers make up for it (GPT-2,
                # section 2.3).
                for last in (block.attn.proj, block.ffn.fc2):
                    last.weight.div_(math.sqrt(2 * self.depth))
                # The six vectors lie along the first axis of ada_lin, and along the third of ada_gss: gains
                # first.
                if block.shared_aln:
                    gains, others = block.ada_gss[:, :, :2], block.ada_gss[:, :, 2:]
                else:
                    weight = block.ada_lin[-1].weight
                    gains, others = weight[: 2 * self.D], weight[2 * self.D :]
                gains.mul_(init_adaln_gamma)
                others.mul_(init_adaln)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout and stochastic depth off, and back to what it was, also when something fails."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextlib.contextmanager
def _cast_once(model: nn.Module) -> Iterator[None]:
    """Let autocast cast frozen weights at the first scale and keep them for the others, not at each anew.

    Autocast caches only casts of weights that require a gradient, so they are marked so for the block; no
    gradient is recorded while sampling.
    """
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
