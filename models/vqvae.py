"""Multi-scale VQ-VAE: image to token maps and back.

Source: K. Tian et al., "Visual Autoregressive Modeling" (2024), section 3.3. A drop-in for the published
class: same constructor, methods and state_dict.

Axes: B images, C channels, H W pixels, h w latent grid, l tokens of one scale, S scales.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.basic_vae import GROUPS, Decoder, Encoder, Level, Middle
from models.helpers import compile_each
from models.quant import VectorQuantizer2

# Widths of the five levels as multiples of ch; four halvings make the latent grid 1/16 of the image.
CH_MULT = (1, 1, 2, 2, 4)


class VQVAE(nn.Module):
    """Encoder, multi-scale quantiser, decoder.

    Images are RGB in [-1, 1], 16 * v_patch_nums[-1] pixels per side.

    Args:
        vocab_size: codes in the codebook.
        z_channels: channels of the latent map and of a code.
        ch: width of the finest level, a multiple of 32.
        dropout: inside the residual blocks.
        beta, using_znorm, quant_resi, share_quant_resi, default_qresi_counts: see VectorQuantizer2.
        quant_conv_ks: kernel of the convolutions before and after the quantiser, odd.
        v_patch_nums: tokens per side of each scale, coarse first.
        test_mode: start in eval mode with all weights frozen; False to train.

    Raises:
        ValueError: a width that is no multiple of 32 or an even kernel.
    """

    def __init__(
        self,
        vocab_size: int = 4096,
        z_channels: int = 32,
        ch: int = 128,
        dropout: float = 0.0,
        beta: float = 0.25,
        using_znorm: bool = False,
        quant_conv_ks: int = 3,
        quant_resi: float = 0.5,
        share_quant_resi: int = 4,
        default_qresi_counts: int = 0,
        v_patch_nums: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        test_mode: bool = True,
    ):
        super().__init__()
        if ch < 1 or ch % GROUPS:
            raise ValueError(
                f"found ch={ch}: the width must be a multiple of {GROUPS}, for group normalisation"
            )
        if quant_conv_ks % 2 == 0:
            raise ValueError(
                f"found quant_conv_ks={quant_conv_ks}: the kernel must be odd to keep the map's size"
            )
        self.test_mode = test_mode
        self.V = self.vocab_size = vocab_size
        self.Cvae = z_channels
        self.downsample = 2 ** (len(CH_MULT) - 1)
        sizes = {"ch": ch, "ch_mult": CH_MULT, "dropout": dropout, "z_channels": z_channels}
        self.encoder = Encoder(**sizes)
        self.decoder = Decoder(**sizes)
        self.quantize = VectorQuantizer2(
            vocab_size,
            z_channels,
            using_znorm,
            beta=beta,
            default_qresi_counts=default_qresi_counts,
            v_patch_nums=v_patch_nums,
            quant_resi=quant_resi,
            share_quant_resi=share_quant_resi,
        )
        padding = quant_conv_ks // 2
        self.quant_conv = nn.Conv2d(z_channels, z_channels, quant_conv_ks, padding=padding)
        self.post_quant_conv = nn.Conv2d(z_channels, z_channels, quant_conv_ks, padding=padding)
        if test_mode:
            self.eval().requires_grad_(False)

    @property
    def image_side(self) -> int:
        """Pixels per side of the images whose finest map is the last of v_patch_nums."""
        return self.downsample * self.quantize.v_patch_nums[-1]

    def forward(self, inp: Tensor, ret_usages: bool = False) -> tuple[Tensor, list[float] | None, Tensor]:
        """Rebuild images with gradients.

        Args:
            inp: (B, 3, H, W) in [-1, 1].
            ret_usages: see VectorQuantizer2.forward.

        Returns:
            rebuilt images (not clamped), codebook usage in percent per scale or None, VQ loss.
        """
        f_hat, usages, vq_loss = self.quantize(self.img_to_features(inp), ret_usages=ret_usages)
        return self.decoder(self.post_quant_conv(f_hat)), usages, vq_loss

    def img_to_features(self, inp_BCHW: Tensor) -> Tensor:
        """Give the latent map (B, Cvae, h, w) that the quantiser sees.

        Raises:
            ValueError: not (B, 3, H, W), or sides that are no multiple of downsample.
        """
        shape = tuple(inp_BCHW.shape)
        if len(shape) != 4 or shape[1] != 3 or shape[2] % self.downsample or shape[3] % self.downsample:
            side = self.image_side
            raise ValueError(
                f"found images of shape {shape}, wanted (B, 3, {side}, {side}): resize them first"
            )
        return self.quant_conv(self.encoder(inp_BCHW))

    # --- results clamped to [-1, 1]; without gradients, but for fhat_to_img ---

    def fhat_to_img(
        self, f_hat: Tensor, chunk: int | None = None, channels_last: bool | None = None
    ) -> Tensor:
        """Decode a quantised map.

        Args:
            f_hat: (B, Cvae, h, w).
            chunk: images decoded at once, which bounds the memory: the decoder's largest maps have ch * 256
                times the values of f_hat's places. None: one on a CPU, where more were measured to be slower,
                16 elsewhere.
            channels_last: lay the maps out with channels innermost: the same numbers up to rounding. None: on
                a CPU, where it was measured to be faster.

        Returns:
            (B, 3, H, W) in [-1, 1].
        """
        on_cpu = f_hat.device.type == "cpu"
        layout = (
            torch.channels_last
            if (on_cpu if channels_last is None else channels_last)
            else torch.contiguous_format
        )
        parts = [
            self.decoder(self.post_quant_conv(part.contiguous(memory_format=layout))).clamp_(-1, 1)
            for part in f_hat.split(chunk or (1 if on_cpu else 16))
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).contiguous()

    @torch.no_grad()
    def img_to_idxBl(
        self, inp_img_no_grad: Tensor, v_patch_nums: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Turn images in [-1, 1] into token ids, one long (B, l) per scale."""
        features = self.img_to_features(inp_img_no_grad)
        return self.quantize.f_to_idxBl_or_fhat(features, to_fhat=False, v_patch_nums=v_patch_nums)

    @torch.no_grad()
    def idxBl_to_img(
        self, ms_idx_Bl: list[Tensor], same_shape: bool, last_one: bool = False
    ) -> list[Tensor] | Tensor:
        """Decode token ids.

        Args:
            ms_idx_Bl: one (B, l) per scale, each l a square.
            same_shape: all pictures at full size; False gives each at the size of its scale.
            last_one: only the picture of the last scale.

        Returns:
            pictures after 1, 2, ... scales, or the last of them.
        """
        maps = [self.quantize.codes_to_map(idx_Bl, round(idx_Bl.shape[1] ** 0.5)) for idx_Bl in ms_idx_Bl]
        return self.embed_to_img(maps, all_to_max_scale=same_shape, last_one=last_one)

    @torch.no_grad()
    def embed_to_img(
        self, ms_h_BChw: list[Tensor], all_to_max_scale: bool, last_one: bool = False
    ) -> list[Tensor] | Tensor:
        """Decode looked-up codes (B, Cvae, pn, pn) of each scale; see idxBl_to_img for the rest."""
        sums = self.quantize.embed_to_fhat(ms_h_BChw, all_to_max_scale=all_to_max_scale, last_one=last_one)
        return self.fhat_to_img(sums) if last_one else [self.fhat_to_img(f_hat) for f_hat in sums]

    @torch.no_grad()
    def img_to_reconstructed_img(
        self, x: Tensor, v_patch_nums: Sequence[int] | None = None, last_one: bool = False
    ) -> list[Tensor] | Tensor:
        """Rebuild images in [-1, 1] from 1, 2, ... all scales (or only from all)."""
        sums = self.quantize.f_to_idxBl_or_fhat(
            self.img_to_features(x), to_fhat=True, v_patch_nums=v_patch_nums
        )
        return self.fhat_to_img(sums[-1]) if last_one else [self.fhat_to_img(f_hat) for f_hat in sums]

    def compile_levels(self, backend: str = "inductor") -> None:
        """Compile the levels of encoder and decoder by torch.compile, for shapes that stay.

        In parts, because a trainer may ask for the gradient of the last layer alone (VQGAN's adaptive
        weight): through a compiled whole that would be a backward pass through all of it.

        Args:
            backend: of torch.compile.
        """
        parts = [module for module in self.modules() if isinstance(module, Level | Middle)]
        compile_each(parts, 8 * len(parts), backend)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        """Load weights; hit counts of another number of scales are left out.

        Those are statistics of training. Everything else must fit: with shared phi the same weights serve
        other patch numbers.
        """
        key = "quantize.ema_vocab_hit_SV"
        own = self.quantize.ema_vocab_hit_SV
        if key in state_dict and state_dict[key].shape[0] != own.shape[0]:
            state_dict = {**state_dict, key: own}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)
