"""Models for use from Python, and their exchange: one safetensors file with the settings inside.

    models = load("runs/exchange")                # a folder, or "owner/name" on the Hugging Face Hub
    images = generate(models, ["Breast", "Heart"], seed=1)
    idx_BL = tokenise(models, grey_BHW)
    models.save_pretrained("runs/exchange")       # or models.push_to_hub("owner/name"), after `hf auth login`

Nothing here unpickles. A folder needs no network; a repository that was downloaded once needs none either.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.helpers import image_seeds
from usvar import checks
from usvar.checkpoints import Loaded, build_var, build_vqvae, load_var, load_vqvae
from usvar.errors import InputError
from usvar.files import atomic_path, write_json, write_text
from usvar.images import to_model_range
from usvar.training import batches

FILE_NAME = "model.safetensors"
# Name of the settings in the file's metadata; the number rises when older files can no longer be read.
SETTINGS_KEY = "ultrasound-var-1"

CARD = """---
library_name: ultrasound-var
license: mit
tags: [ultrasound, image-generation, visual-autoregressive-modeling]
---

# Ultrasound images by next-scale prediction

A multi-scale VQ-VAE and, where it is there, a VAR transformer over its tokens, in `model.safetensors`; the
settings are in the file's metadata and in `config.json`. Load it with `usvar.exchange.load`.

Classes: {classes}.

**Not for diagnosis. No privacy guarantee**: a generative model can repeat a training image. The licences of
the data sets that it was trained on may restrict what it is used for.
"""


class Models(ModelHubMixin):
    """A VQ-VAE and its transformer. The mixin gives from_pretrained, save_pretrained and push_to_hub.

    Args:
        vqvae: the loaded VQ-VAE.
        var: the loaded transformer over its tokens; None for a VQ-VAE alone.
    """

    def __init__(self, vqvae: Loaded, var: Loaded | None = None) -> None:
        self.vqvae, self.var = vqvae, var

    def _save_pretrained(self, save_directory: Path) -> None:
        parts = {"vqvae": self.vqvae} | ({"var": self.var} if self.var else {})
        state, settings = {}, {}
        for name, loaded in parts.items():
            state |= {f"{name}.{key}": value.cpu() for key, value in loaded.model.state_dict().items()}
            settings[name] = {
                "config": loaded.config,
                "made_by": _without_paths(loaded.made_by),
                "sha256": loaded.sha256,
            }
        with atomic_path(save_directory / FILE_NAME) as temporary:
            state = {key: value.contiguous() for key, value in state.items()}
            save_file(state, temporary, metadata={SETTINGS_KEY: json.dumps(settings)})
        # The Hub shows this one; `load` does not read it. The mixin's from_pretrained does, for nothing.
        write_json(save_directory / "config.json", {SETTINGS_KEY: settings})
        card = save_directory / "README.md"
        # One of ours in all but the classes is of earlier models; a line that a person wrote makes it theirs.
        ours = ".*".join(map(re.escape, CARD.split("{classes}")))
        if not card.exists() or re.fullmatch(ours, card.read_text(encoding="utf-8", errors="replace")):
            classes = (self.var or self.vqvae).classes or ("not named",)
            write_text(card, CARD.format(classes=", ".join(classes)))

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        device: torch.device | str = "cpu",
    ) -> "Models":
        if Path(model_id).is_dir():
            return read(Path(model_id) / FILE_NAME, device)
        path = hf_hub_download(
            model_id,
            FILE_NAME,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        return read(Path(path), device)


def load(
    source: str | Path,
    device: torch.device | str = "cpu",
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Models:
    """Load models for use: eval mode, no gradients.

    Args:
        source: a folder written by Models.save_pretrained, or "owner/name" on the Hugging Face Hub.
        device: where they go.
        revision: branch, tag or commit of the repository.
        cache_dir: where downloads are kept; None is the Hub's usual folder.
        local_files_only: never use the network.

    Raises:
        InputError: when there is no such folder or repository, or its file is not one of ours or damaged.
    """
    try:
        # Not from_pretrained, which fails on a damaged config.json though nothing in it is needed.
        return Models._from_pretrained(
            model_id=str(source),
            device=device,
            revision=revision,
            cache_dir=cache_dir,
            force_download=False,
            local_files_only=local_files_only,
            token=None,
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, ConnectionError) as error:
        raise InputError(
            f"{source} is no folder and could not be fetched from the Hugging Face Hub "
            f"({str(error).splitlines()[0][:160]}): correct the name, or give a folder"
        ) from error


def from_checkpoints(
    vqvae: str | Path, var: str | Path | None = None, device: torch.device | str = "cpu"
) -> Models:
    """Load models from the checkpoints that the training scripts wrote, or from published ones.

    Args:
        vqvae: best.pth of train_vqvae.py.
        var: ar-ckpt-best.pth of train_var.py; None for the VQ-VAE alone.
        device: where they go.

    Raises:
        InputError: see checkpoints.load_vqvae and load_var.
    """
    loaded = load_vqvae(Path(vqvae), device)
    return Models(loaded, load_var(Path(var), loaded, device) if var else None)


def read(path: Path, device: torch.device | str = "cpu") -> Models:
    """Read a file that Models.save_pretrained wrote.

    Raises:
        InputError: when it is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing, wanted a folder written by Models.save_pretrained")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            settings = json.loads((file.metadata() or {})[SETTINGS_KEY])
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        about = {name: settings[name] for name in ("vqvae", "var") if name in settings}
        of_part = {name: (part["config"], part["made_by"], part["sha256"]) for name, part in about.items()}
        config = of_part["vqvae"][0]
        if unknown := sorted(key for key in state if key.split(".")[0] not in about):
            raise ValueError(f"found the unknown tensor {unknown[0]}")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged or not written by Models.save_pretrained "
            f"({type(error).__name__}: {str(error)[:160]}): copy it again"
        ) from error

    def weights(part: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{part}."): v for key, v in state.items() if key.startswith(f"{part}.")}

    vae = build_vqvae(path, weights("vqvae"), config).requires_grad_(False)
    models: dict[str, nn.Module] = {"vqvae": vae}
    if "var" in of_part:
        models["var"] = build_var(path, weights("var"), of_part["var"][0], vae)
        # A published transformer does not say which VQ-VAE made its tokens.
        beside = of_part["vqvae"][2]
        if (made_with := of_part["var"][0].get("vqvae_sha256", beside)) != beside:
            raise InputError(
                f"{path} has a transformer for tokens of a VQ-VAE with SHA-256 {str(made_with)[:12]}, beside "
                f"it is {str(beside)[:12]}: save those again that belong together"
            )
    loaded = {name: Loaded(model.to(device).eval(), *of_part[name]) for name, model in models.items()}
    return Models(loaded["vqvae"], loaded.get("var"))


@torch.no_grad()
def generate(
    models: Models,
    labels: str | Sequence[str | int],
    *,
    seed: int = 0,
    batch_size: int = 32,
    cfg: float = 1.5,
    **sampling: Any,
) -> Tensor:
    """Generate one image for each label.

    Args:
        models: with a transformer.
        labels: class names, or numbers; -1 is "no class". A single name is one image.
        seed: image i depends on the seed, on i and on its label, not on the others or the batch.
        batch_size: images at once; bounds the memory.
        cfg: strength of class guidance; it grows with the scale; 0: none.
        sampling: top_k, top_p, temperature, greedy, more_smooth of VAR.generate_tokens.

    Returns:
        (B, 3, H, W) float32 in [-1, 1], the three channels about equal; images.to_uint8 makes grey pixels.

    Raises:
        InputError: no transformer, no labels, an unknown class, a setting that makes no sense, or guidance of
            a transformer that was trained without class dropout.
        ValueError: another setting of the sampler that makes no sense.
    """
    if batch_size < 1 or cfg < 0:
        raise InputError(f"batch_size {batch_size} and cfg {cfg} were given, wanted 1 and 0 or more")
    if models.var is None:
        raise InputError("these models hold no transformer, wanted one: load them with a var")
    checks.require_class_drop(cfg, models.var.config)
    if isinstance(labels, str):
        labels = [labels]
    if not len(labels):
        raise InputError("no labels were given, wanted one for each image")
    model, vae, names = models.var.model, models.vqvae.model, models.var.classes or ()
    numbers = []
    for label in labels:
        if isinstance(label, str) and label not in names:
            raise InputError(f"class {label} is not known, known are {', '.join(names) or 'numbers only'}")
        numbers.append(names.index(label) if isinstance(label, str) else int(label))
    seeds, images = image_seeds(seed, len(numbers)), []
    with _as_in_the_scripts():
        for some, seeds_B in zip(batches(numbers, batch_size), batches(seeds, batch_size), strict=True):
            _, f_hat = model.generate_tokens(some, seeds=seeds_B, cfg=cfg, **sampling)
            images.append(vae.fhat_to_img(f_hat))
    return torch.cat(images)


@torch.no_grad()
def tokenise(models: Models, grey_BHW: np.ndarray | Tensor, *, batch_size: int = 32) -> Tensor:
    """Turn images into token maps.

    Args:
        models: whose VQ-VAE is used.
        grey_BHW: uint8, of the size that it was trained on.
        batch_size: images at once; bounds the memory.

    Returns:
        long (B, L), scales coarse first; models.helpers.split_scales makes one map per scale of it.

    Raises:
        InputError: images of another type or size.
    """
    vae = models.vqvae.model
    side, dtype = vae.image_side, str(grey_BHW.dtype).removeprefix("torch.")
    if dtype != "uint8" or tuple(grey_BHW.shape[1:]) != (side, side) or not len(grey_BHW):
        raise InputError(
            f"images are {dtype} of shape {tuple(grey_BHW.shape)}, wanted uint8 of shape (B, {side}, {side})"
        )
    device = next(vae.parameters()).device
    with _as_in_the_scripts():
        idx = [
            torch.cat(vae.img_to_idxBl(to_model_range(part, device)), dim=1)
            for part in batches(grey_BHW, batch_size)
        ]
    return torch.cat(idx)


@contextlib.contextmanager
def _as_in_the_scripts() -> Iterator[None]:
    """No TF32 on a GPU, which would make other tokens, see `distributed.set_up_gpu`; then as before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _without_paths(made_by: dict[str, Any]) -> dict[str, Any]:
    """The record without paths, which may tell of a machine or its user; the hashes of the files stay."""
    settings = made_by.get("settings", {})
    kept = {key: v for key, v in settings.items() if not (isinstance(v, str) and set("/\\") & set(v))}
    return made_by | ({"settings": kept} if settings else {})
