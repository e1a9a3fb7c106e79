"""Checkpoints: written atomically, read as weights only, loaded strictly.

Ours hold `{"model": state_dict, "config": {...}, "made_by": {...}}`. A bare state_dict in the layout of the
published VAR package is accepted too; its sizes are read from the shapes of its tensors.
"""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import VAR, VQVAE
from usvar.errors import InputError
from usvar.files import atomic_path
from usvar.provenance import sha256_file

PUBLISHED_PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


@dataclass(frozen=True)
class Loaded:
    """A model with what its file says of it."""

    model: Any
    # Constructor arguments and, in our own files, image_size and classes.
    config: dict[str, Any]
    made_by: dict[str, Any]
    sha256: str

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names the model was trained with; None in a published file."""
        return tuple(self.config["classes"]) if "classes" in self.config else None


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically: the file is the earlier one or the new one, never a part."""
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, tensors and plain values only.

    Raises:
        InputError: when it is missing, damaged, or holds anything but weights and plain values.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing, wanted a checkpoint: train the model first or correct the path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is damaged or holds Python objects, wanted weights and plain values only: it was not "
            "loaded; copy or train it again"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise InputError(f"{path} is no readable checkpoint ({reason}): copy or train it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, wanted a dictionary with a model")
    return content


def load_vqvae(
    path: Path, device: torch.device | str = "cpu", patch_nums: tuple[int, ...] | None = None
) -> Loaded:
    """Load a VQ-VAE for use: eval mode, no gradients.

    Args:
        path: our checkpoint, or a bare state_dict in the published layout.
        device: where the model goes.
        patch_nums: tokens a side of each scale, needed only for a bare file that has not the published ten.

    Raises:
        InputError: when the file is not a VQ-VAE that loads strictly.
    """
    content = read_checkpoint(path)
    state, config = _split(content, "vae_local")
    if "encoder.conv_in.weight" not in state:
        raise InputError(f"{path} holds no VQ-VAE: give the best.pth of train_vqvae.py or a published one")
    if config is None:
        config = {"arguments": _vqvae_arguments(path, state, patch_nums)}
    arguments = {**config["arguments"], "v_patch_nums": tuple(config["arguments"]["v_patch_nums"])}
    model = VQVAE(**arguments, test_mode=True)
    load_strictly(model, state, path)
    return Loaded(model.to(device).eval(), config, content.get("made_by", {}), sha256_file(path))


def load_var(path: Path, vqvae: Loaded, device: torch.device | str = "cpu") -> Loaded:
    """Load a transformer for use with its VQ-VAE: eval mode, no gradients.

    Args:
        path: our checkpoint, a bare state_dict, or a published trainer file.
        vqvae: the loaded VQ-VAE whose tokens it predicts.
        device: where the model goes.

    Raises:
        InputError: when the file is not a VAR, or was trained on tokens of another VQ-VAE.
    """
    content = read_checkpoint(path)
    state, config = _split(content, "var_wo_ddp")
    if "pos_start" not in state:
        raise InputError(f"{path} holds no VAR: give the ar-ckpt-best.pth of train_var.py or a published one")
    if config is None:
        config = {"arguments": _var_arguments(path, state, vqvae)}
    elif config["vqvae_sha256"] != vqvae.sha256:
        raise InputError(
            f"{path} was trained on tokens of a VQ-VAE with SHA-256 {config['vqvae_sha256'][:12]}, the one "
            f"given has {vqvae.sha256[:12]}: give the VQ-VAE that made its tokens"
        )
    arguments = {**config["arguments"], "patch_nums": tuple(config["arguments"]["patch_nums"])}
    if state["word_embed.weight"].shape[1] != vqvae.model.Cvae:
        raise InputError(
            f"{path} takes {state['word_embed.weight'].shape[1]} latent channels, the VQ-VAE has "
            f"{vqvae.model.Cvae}: give the VQ-VAE that made its tokens"
        )
    model = VAR(vae_local=vqvae.model, **arguments)
    load_strictly(model, state, path)
    model.requires_grad_(False)
    return Loaded(model.to(device).eval(), config, content.get("made_by", {}), sha256_file(path))


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state_dict whose keys and shapes must be the model's.

    Raises:
        InputError: names the first key that is missing, too many, or of another shape.
    """
    wanted = model.state_dict()
    for key in [*wanted, *state]:
        if key not in state or key not in wanted:
            what = "lacks" if key not in state else "has the unknown tensor"
            raise InputError(f"{path} {what} {key}: it belongs to a model of another kind or size")
        if state[key].shape != wanted[key].shape:
            raise InputError(
                f"{path} has {key} of shape {tuple(state[key].shape)}, wanted {tuple(wanted[key].shape)}: "
                "it belongs to a model of another size"
            )
    model.load_state_dict(state, strict=True)


def _split(content: dict[str, Any], trainer_key: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The state_dict and, in our own files, the config."""
    if isinstance(content.get("model"), dict) and isinstance(content.get("config"), dict):
        return content["model"], content["config"]
    if isinstance(content.get("trainer"), dict) and trainer_key in content["trainer"]:
        return content["trainer"][trainer_key], None
    return content, None


def _vqvae_arguments(
    path: Path, state: Mapping[str, Tensor], patch_nums: tuple[int, ...] | None
) -> dict[str, Any]:
    """Constructor arguments of a published VQ-VAE from the shapes of its tensors."""
    scales = state["quantize.ema_vocab_hit_SV"].shape[0]
    patch_nums = patch_nums or PUBLISHED_PATCH_NUMS
    if len(patch_nums) != scales:
        raise InputError(
            f"{path} has {scales} scales, {len(patch_nums)} patch numbers are known: give patch_nums"
        )
    vocab_size, channels = state["quantize.embedding.weight"].shape
    phis = sum(bool(re.fullmatch(r"quantize\.quant_resi\.qresi_ls\.\d+\.weight", key)) for key in state)
    has_phi = any(key.startswith("quantize.quant_resi.") for key in state)
    return {
        "vocab_size": vocab_size,
        "z_channels": channels,
        "ch": state["encoder.conv_in.weight"].shape[0],
        "quant_conv_ks": state["quant_conv.weight"].shape[-1],
        "quant_resi": 0.5 if has_phi else 0.0,
        # 1: a single phi; 0: one a scale, named by number alone.
        "share_quant_resi": 1 if "quantize.quant_resi.qresi.weight" in state else phis,
        "v_patch_nums": list(patch_nums),
    }


def _var_arguments(path: Path, state: Mapping[str, Tensor], vqvae: Loaded) -> dict[str, Any]:
    """Constructor arguments of a published VAR from the shapes of its tensors."""
    patch_nums = vqvae.model.quantize.v_patch_nums
    length = state["pos_1LC"].shape[1]
    if length != sum(side**2 for side in patch_nums):
        raise InputError(f"{path} has {length} tokens an image, the VQ-VAE {sum(s**2 for s in patch_nums)}")
    width = state["pos_start"].shape[-1]
    scale_key = "blocks.0.attn.scale_mul_1H11"
    return {
        "num_classes": state["class_emb.weight"].shape[0] - 1,
        "depth": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        "embed_dim": width,
        # Published models have heads of width 64.
        "num_heads": state[scale_key].shape[1] if scale_key in state else width // 64,
        "mlp_ratio": state["blocks.0.ffn.fc1.weight"].shape[0] / width,
        "shared_aln": any(key.startswith("shared_ada_lin.") for key in state),
        "attn_l2_norm": scale_key in state,
        "patch_nums": list(patch_nums),
    }
