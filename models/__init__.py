"""The two networks: a multi-scale VQ-VAE and the next-scale transformer over its tokens.

Written here after K. Tian et al., "Visual Autoregressive Modeling" (2024); names, weights' layout and numbers
are those of the published package, so its checkpoints load and mean the same.
"""

from collections.abc import Sequence

import torch

from models.quant import VectorQuantizer2
from models.var import VAR
from models.vqvae import VQVAE

__all__ = ["VAR", "VQVAE", "VectorQuantizer2", "build_vae_var"]


def build_vae_var(
    device: torch.device | str,
    patch_nums: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    V: int = 4096,
    Cvae: int = 32,
    ch: int = 160,
    share_quant_resi: int = 4,
    num_classes: int = 1000,
    depth: int = 16,
    shared_aln: bool = False,
    attn_l2_norm: bool = True,
    flash_if_available: bool = True,
    fused_if_available: bool = True,
    init_adaln: float = 0.5,
    init_adaln_gamma: float = 1e-5,
    init_head: float = 0.02,
    init_std: float = -1,
) -> tuple[VQVAE, VAR]:
    """Build both networks by the paper's rule of size: width 64 * depth, depth heads, drop path depth / 240.

    The defaults are the released vae_ch160v4096z32 and var_d16. Nothing outside of the two networks is
    touched.

    Args:
        device: where they go.
        patch_nums: tokens per side of each scale, coarse first.
        V, Cvae, ch, share_quant_resi: of the VQ-VAE, which comes frozen and in eval mode.
        num_classes, depth, shared_aln, attn_l2_norm: of the transformer.
        flash_if_available, fused_if_available: see VAR.
        init_adaln, init_adaln_gamma, init_head, init_std: see VAR.init_weights.

    Returns:
        the VQ-VAE and the transformer.
    """
    vae = VQVAE(
        vocab_size=V,
        z_channels=Cvae,
        ch=ch,
        share_quant_resi=share_quant_resi,
        v_patch_nums=patch_nums,
        test_mode=True,
    ).to(device)
    var = VAR(
        vae,
        num_classes=num_classes,
        depth=depth,
        embed_dim=64 * depth,
        num_heads=depth,
        drop_path_rate=0.1 * depth / 24,
        shared_aln=shared_aln,
        attn_l2_norm=attn_l2_norm,
        patch_nums=patch_nums,
        flash_if_available=flash_if_available,
        fused_if_available=fused_if_available,
    ).to(device)
    var.init_weights(init_adaln, init_adaln_gamma, init_head, init_std)
    return vae, var
