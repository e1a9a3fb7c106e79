"""Checkpoints: written atomically with a checksum, read as weights only, loaded strictly.

Ours hold `{"model": state_dict, "config": {...}, "made_by": {...}}`. A bare state_dict in the layout of the
published VAR package is accepted too; its sizes are read from the shapes of its tensors.

torch.save writes a zip archive, and torch.load does not look at the checksums in it: a flipped bit is a
wrong weight, without a word. So ours carry, as the archive's comment and the last bytes of the file, the text
`sha256 ` and 64 hexadecimal digits: the SHA-256 of all bytes before the digits. torch.load and unzip read
such a file as any other, and in a shell `head -c -64 FILE | sha256sum` prints what `tail -c 64 FILE` does.
"""

import hashlib
import itertools
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import VAR, VQVAE
from models.helpers import scale_boundaries
from usvar.checks import require_class_names
from usvar.errors import InputError, RunError
from usvar.files import atomic_path
from usvar.provenance import sha256_file

PUBLISHED_PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
CHECKSUM_MARK, DIGITS = b"sha256 ", 64
# An archive's last record when nothing follows it: 22 bytes, the last two the length of the comment.
END_RECORD, END_RECORD_BYTES = b"PK\x05\x06", 22

# What a training run needs to go on exactly. Random numbers and the place in the data are functions of the
# seed and the step (usvar.training), so that there is no state of theirs to keep; bf16 needs no loss scaler.
RESUME_STATE: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "model": ("weights", dict),
    "ema": ("averaged weights (EMA)", dict),
    "optimiser": ("optimiser's state", dict),
    "meter": ("running means of the log", dict),
    "step": ("step", int),
    "best": ("best score on val", float),
    "skipped": ("count of skipped steps", int),
    "config": ("model's sizes", dict),
    "made_by": ("settings, seed and input files", dict),
}


class Damaged(InputError):
    """A checkpoint that is cut off or changed: an earlier one may do."""


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
        _write(temporary, content)


def save_last(path: Path, content: dict[str, Any], *models: nn.Module) -> None:
    """Write the checkpoint that a run goes on from, and keep the one before it.

    The one before moves to `previous_path` only when it is whole, so that a damaged file never takes the
    place of a good one.

    Args:
        path: where it goes.
        content: has the keys of RESUME_STATE.
        models: whose weights are in it. (Their buffers may hold infinities: an attention mask does.)

    Raises:
        RunError: when a weight or a momentum is not finite, or the disk is full. The earlier files stay.
    """
    weights = (named for model in models for named in model.named_parameters())
    for name, tensor in itertools.chain(weights, _tensors(content["optimiser"], "optimiser")):
        if not bool(tensor.isfinite().all()):
            raise RunError(
                f"{path} was not written: {name} holds numbers that are not finite; the earlier checkpoint "
                "stays; lower --learning-rate and start in another --out-dir"
            )
    with atomic_path(path) as temporary:
        _write(temporary, content)
        if is_whole(path):
            os.replace(path, previous_path(path))


def previous_path(path: Path) -> Path:
    """Where `save_last` keeps the checkpoint before the last one."""
    return path.with_name(f"{path.stem}-previous{path.suffix}")


def read_last(
    path: Path, more_state: Mapping[str, tuple[str, type]] | None = None
) -> tuple[dict[str, Any] | None, Path, str]:
    """Read the checkpoint that a run goes on from, or the one before it when the last one is damaged.

    Args:
        path: the last checkpoint.
        more_state: what this run needs beside RESUME_STATE, in the same form.

    Returns:
        The content, None when no run has been here; the file it was read from, for messages about it; and a
        sentence for the log, empty when all is well.

    Raises:
        InputError: when both are damaged, or something that a run needs to go on is missing in the file.
    """
    previous = previous_path(path)
    if not path.is_file() and not previous.is_file():
        return None, path, ""
    found, note = path, ""
    try:
        content = read_checkpoint(path)
    except Damaged as damage:
        try:
            content = read_checkpoint(previous)
        except Damaged as damage_before:
            raise InputError(
                f"no checkpoint is left to go on from: {damage}; {damage_before}; bring back a copy, or "
                "start anew in another --out-dir"
            ) from damage_before
        found = previous
        note = f"{damage}; the run goes on from {previous.name}, step {content.get('step')}"
    for key, (what, kind) in (RESUME_STATE | dict(more_state or {})).items():
        if not isinstance(content.get(key), kind):
            raise InputError(
                f"{found} has no {what} ({key!r}): it was not written by a training script of this "
                "repository and a run cannot go on from it; start in another --out-dir"
            )
    return content, found, note


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is there and its bytes are those that were written."""
    try:
        _refuse_damage(path)
    except Damaged:
        return False
    return True


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, tensors and plain values only.

    Raises:
        Damaged: an InputError, when it is missing, cut off, or not what its checksum says.
        InputError: when it holds anything but weights and plain values.
    """
    _refuse_damage(path)
    try:
        _refuse_false_sizes(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is damaged or holds Python objects, wanted weights and plain values only: it was not "
            "loaded; copy or train it again"
        ) from error
    except InputError:
        raise
    except Exception as error:  # a pickle of others can make torch.load fail in any way
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise InputError(f"{path} is no readable checkpoint ({reason}): copy or train it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, wanted a dictionary with a model")
    for name, tensor in _tensors(content):
        # A view that repeats its few bytes can claim any shape; a model of that shape would fill the memory.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise InputError(
                f"{path} has {name} of shape {tuple(tensor.shape)} on {tensor.untyped_storage().nbytes()} "
                "bytes: it was not loaded; copy or train it again"
            )
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    """torch.save, and the checksum as the comment of the archive."""
    with open(path, "w+b") as file:
        torch.save(content, file)
        file.seek(-2, os.SEEK_END)
        file.write((len(CHECKSUM_MARK) + DIGITS).to_bytes(2, "little") + CHECKSUM_MARK)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.write(digest.encode())
        file.flush()
        os.fsync(file.fileno())


def _refuse_damage(path: Path) -> None:
    """Refuse a file whose checksum is wrong, or that has lost its beginning or its end."""
    if not path.is_file():
        raise Damaged(f"{path} is missing, wanted a checkpoint: train the model first or correct the path")
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(2)
        file.seek(max(0, size - DIGITS - len(CHECKSUM_MARK)))
        end = file.read()
        if end.startswith(CHECKSUM_MARK) and len(end) == DIGITS + len(CHECKSUM_MARK):
            file.seek(0)
            digest, left = hashlib.sha256(), size - DIGITS
            while block := file.read(min(left, 1 << 20)):
                digest.update(block)
                left -= len(block)
            is_right = digest.hexdigest().encode() == end[len(CHECKSUM_MARK) :]
            reason = "it is not what was written: its checksum is wrong"
        else:
            # Without a checksum: an archive that ends where archives end, or torch's older format, a pickle.
            ends_well = end[-END_RECORD_BYTES:].startswith(END_RECORD) and end.endswith(b"\0\0")
            is_right = (start == b"PK" and ends_well) or start[:1] == b"\x80"
            reason = f"it is empty, cut off or no checkpoint ({size} bytes)"
    if not is_right:
        raise Damaged(f"{path} is damaged, {reason}: copy or train it again")


def _refuse_false_sizes(path: Path) -> None:
    """Refuse an archive that unpacks to more than it is: torch.save does not compress."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > path.stat().st_size:
                raise InputError(
                    f"{path} holds {info.filename}, which claims {info.file_size} bytes: it was not loaded; "
                    "copy or train it again"
                )


def _tensors(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of nested dictionaries and lists, with their names."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, list | tuple):
        for i, value in enumerate(content):
            yield from _tensors(value, f"{name}.{i}")


def restore(
    path: Path, last: dict[str, Any], model: nn.Module, averaged: nn.Module, optimiser: torch.optim.Optimizer
) -> None:
    """Put the weights, averaged weights and momenta of `read_last` where they belong.

    Raises:
        InputError: names the first tensor that is missing or of another shape.
    """
    load_strictly(model, last["model"], path)
    load_strictly(averaged, last["ema"], path, "ema.")
    try:
        optimiser.load_state_dict(last["optimiser"])
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{path} has an optimiser's state of another model ({error}): start in another --out-dir"
        ) from error
    momenta = 0
    of_muon = {p for group in optimiser.param_groups if group.get("muon_rate") for p in group["params"]}
    for parameter, state in optimiser.state.items():
        for name in ("momentum_buffer",) if parameter in of_muon else ("step", "exp_avg", "exp_avg_sq"):
            shape = parameter.shape if name != "step" else torch.Size()
            if not isinstance(state.get(name), Tensor) or state[name].shape != shape:
                raise InputError(
                    f"{path} has an optimiser's state without {name!r} of shape {tuple(shape)}: it belongs "
                    "to another model; start in another --out-dir"
                )
            if name != "step":
                # In the layout of the weights, which differs between a GPU's run and a CPU's.
                state[name] = torch.empty_like(parameter, requires_grad=False).copy_(state[name])
            momenta += 1
    if last["step"] and not momenta:
        raise InputError(f"{path} has an empty optimiser's state: start in another --out-dir")


def load_vqvae(
    path: Path, device: torch.device | str = "cpu", patch_nums: tuple[int, ...] | None = None
) -> Loaded:
    """Load a VQ-VAE for use: eval mode, no gradients.

    Args:
        path: our checkpoint, or a bare state_dict in the published layout.
        device: where the model goes.
        patch_nums: tokens per side of each scale, needed only for a bare file that has not the published ten.

    Raises:
        InputError: when the file is not a VQ-VAE that loads strictly.
    """
    content = read_checkpoint(path)
    state, config = _state_and_config(content, "vae_local")
    if "encoder.conv_in.weight" not in state:
        raise InputError(f"{path} holds no VQ-VAE: give the best.pth of train_vqvae.py or a published one")
    if config is None:
        config = {"arguments": _arguments_from_shapes(path, _vqvae_arguments, state, patch_nums)}
    model = build_vqvae(path, state, config)
    return Loaded(model.to(device).eval(), config, _made_by(path, content), sha256_file(path))


def build_vqvae(path: Path, state: Mapping[str, Tensor], config: dict[str, Any]) -> VQVAE:
    """A VQ-VAE with the weights of a file, of the sizes that its config says and its tensors have.

    Raises:
        InputError: when the two differ, before a model of such a size is made, or a tensor does not fit.
    """
    sides = _patch_nums_of(path, config, "v_patch_nums")
    derived = _arguments_from_shapes(path, _vqvae_arguments, state, sides)
    del derived["quant_resi"]  # a share between 0 and 1 that no shape tells
    _refuse_other_arguments(path, config["arguments"], derived)
    model = _built(path, VQVAE, **config["arguments"] | {"v_patch_nums": sides}, test_mode=True)
    load_strictly(model, state, path)
    return model


def load_var(
    path: Path, vqvae: Loaded, device: torch.device | str = "cpu", num_heads: int | None = None
) -> Loaded:
    """Load a transformer for use with its VQ-VAE: eval mode, no gradients.

    Args:
        path: our checkpoint, a bare state_dict, or a published trainer file.
        vqvae: the loaded VQ-VAE whose tokens it predicts.
        device: where the model goes.
        num_heads: attention heads, needed only for a bare file without l2-norm, where no tensor's shape tells
            them, if they are not 64 wide as in published models.

    Raises:
        InputError: when the file is not a VAR, or was trained on tokens of another VQ-VAE.
    """
    content = read_checkpoint(path)
    state, config = _state_and_config(content, "var_wo_ddp")
    if "pos_start" not in state:
        raise InputError(f"{path} holds no VAR: give the ar-ckpt-best.pth of train_var.py or a published one")
    if config is None:
        config = {"arguments": _arguments_from_shapes(path, _var_arguments, state, vqvae.model)}
        if not config["arguments"]["attn_l2_norm"]:
            config["arguments"]["num_heads"] = _heads_of_a_bare_file(path, config["arguments"], num_heads)
    elif (made_with := str(config.get("vqvae_sha256"))) != vqvae.sha256:
        raise InputError(
            f"{path} was trained on tokens of a VQ-VAE with SHA-256 {made_with[:12]}, the one given has "
            f"{vqvae.sha256[:12]}: give the VQ-VAE that made its tokens"
        )
    model = build_var(path, state, config, vqvae.model)
    return Loaded(model.to(device).eval(), config, _made_by(path, content), sha256_file(path))


def build_var(path: Path, state: Mapping[str, Tensor], config: dict[str, Any], vae: VQVAE) -> VAR:
    """A transformer with the weights of a file, of the sizes that its config says and its tensors have.

    Raises:
        InputError: when these differ, before a model of such a size is made, or do not fit the VQ-VAE's.
    """
    sides = _patch_nums_of(path, config, "patch_nums")
    derived = _arguments_from_shapes(path, _var_arguments, state, vae)
    del derived["num_heads"]  # without l2-norm, no shape tells it
    _refuse_other_arguments(path, config["arguments"], derived)
    if "classes" in config and len(config["classes"]) != derived["num_classes"]:
        raise InputError(
            f"{path} names {len(config['classes'])} classes, its tensors have {derived['num_classes']}: copy "
            "or train it again"
        )
    if state["word_embed.weight"].shape[1] != vae.Cvae:
        raise InputError(
            f"{path} takes {state['word_embed.weight'].shape[1]} latent channels, the VQ-VAE has "
            f"{vae.Cvae}: give the VQ-VAE that made its tokens"
        )
    model = _built(path, VAR, vae_local=vae, **config["arguments"] | {"patch_nums": sides})
    load_strictly(model, state, path)
    return model.requires_grad_(False)


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], path: Path, part: str = "") -> None:
    """Load a state_dict whose keys and shapes must be the model's and whose weights must be finite.

    Args:
        model: takes the tensors.
        state: has them.
        path: the checkpoint, for the message.
        part: what stands before the keys in the checkpoint, for the message.

    Raises:
        InputError: names the first key that is missing, too many, of another shape or not finite.
    """
    wanted = model.state_dict()
    # Not the buffers: an attention mask holds infinities.
    weights = {name for name, _ in model.named_parameters()}
    for key in [*wanted, *state]:
        if key not in state or key not in wanted:
            what = "lacks" if key not in state else "has the unknown tensor"
            raise InputError(f"{path} {what} {part}{key}: it belongs to a model of another kind or size")
        if not isinstance(state[key], Tensor) or state[key].shape != wanted[key].shape:
            found = tuple(state[key].shape) if isinstance(state[key], Tensor) else "no tensor"
            raise InputError(
                f"{path} has {part}{key} of shape {found}, wanted {tuple(wanted[key].shape)}: "
                "it belongs to a model of another size"
            )
        if key in weights and not bool(state[key].isfinite().all()):
            raise InputError(
                f"{path} has numbers in {part}{key} that are not finite: the model is of no use; copy or "
                "train it again"
            )
    model.load_state_dict(state, strict=True)


def _state_and_config(
    content: dict[str, Any], trainer_key: str
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The state_dict and, in our own files, the config."""
    if isinstance(content.get("model"), dict) and isinstance(content.get("config"), dict):
        return content["model"], content["config"]
    trainer = content.get("trainer")
    if isinstance(trainer, dict) and isinstance(trainer.get(trainer_key), dict):
        return trainer[trainer_key], None
    return content, None


def _made_by(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The record of one of our files; {} of another's."""
    made_by = content.get("made_by", {})
    parts = ("inputs", "settings")
    if not isinstance(made_by, dict) or not all(isinstance(made_by.get(part, {}), dict) for part in parts):
        raise InputError(f"{path} has a made_by record that is no dictionary: copy or train it again")
    return made_by


def _heads_of_a_bare_file(path: Path, arguments: dict[str, Any], given: int | None) -> int:
    """The number of heads where no tensor's shape tells it: as given, or of 64 channels each.

    Raises:
        InputError: when the width is no multiple of 64 and none was given.
    """
    width = arguments["embed_dim"]
    if given is None and width % 64:
        raise InputError(
            f"{path} does not say how many heads its {width} channels make: load it in Python with "
            "usvar.checkpoints.load_var(path, vqvae, num_heads=...) and save it with its settings"
        )
    if given is None:
        print(
            f"note: {path} does not say how many heads its {width} channels make; taken as {width // 64}, of "
            "64 channels each, as in published models"
        )
    return given or width // 64


def _patch_nums_of(path: Path, config: dict[str, Any], sides_key: str) -> tuple[int, ...]:
    """Patch numbers in the config of one of our files; a malformed config is refused."""
    arguments = config.get("arguments") if isinstance(config, dict) else None
    sides = arguments.get(sides_key) if isinstance(arguments, dict) else None
    if not isinstance(sides, list | tuple) or not all(isinstance(s, int) and 0 < s <= 1024 for s in sides):
        raise InputError(f"{path} has a config without {sides_key}: copy or train it again")
    if "classes" in config:
        require_class_names(path, config["classes"])
    return tuple(sides)


def _arguments_from_shapes(path: Path, derive: Callable[..., dict[str, Any]], *state: Any) -> dict[str, Any]:
    """Arguments derived from tensor shapes; missing or malformed tensors are refused."""
    try:
        return derive(path, *state)
    except (KeyError, IndexError, AttributeError, TypeError, ZeroDivisionError) as error:
        raise InputError(
            f"{path} lacks a tensor or has a strange one ({error}): copy or train it again"
        ) from error


def _refuse_other_arguments(path: Path, arguments: dict[str, Any], derived: dict[str, Any]) -> None:
    """Refuse sizes that are not those of the tensors, before a model of such a size is made."""
    for name, value in derived.items():
        # An argument that is left out has the model's own default, which the tensors then have to fit.
        found = arguments.get(name, value)
        if (list(found) if isinstance(found, tuple) else found) != value:
            raise InputError(
                f"{path} says {name} = {str(found)[:80]}, its tensors {value}: copy or train it again"
            )


def _built(path: Path, kind: type[nn.Module], **arguments: Any) -> nn.Module:
    """A model of a checkpoint's sizes."""
    try:
        return kind(**arguments)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(f"{path} describes no {kind.__name__} ({error}): copy or train it again") from error


def _vqvae_arguments(
    path: Path, state: Mapping[str, Tensor], patch_nums: tuple[int, ...] | None
) -> dict[str, Any]:
    """Constructor arguments of a published VQ-VAE from the shapes of its tensors."""
    scales = state["quantize.ema_vocab_hit_SV"].shape[0]
    patch_nums = patch_nums or PUBLISHED_PATCH_NUMS
    if len(patch_nums) != scales:
        raise InputError(
            f"{path} has {scales} scales, {len(patch_nums)} patch numbers are known: load it in Python with "
            "usvar.checkpoints.load_vqvae(path, patch_nums=...) and save it with its settings"
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
        # 1: a single phi; 0: one per scale, named by number alone.
        "share_quant_resi": 1 if "quantize.quant_resi.qresi.weight" in state else phis,
        "v_patch_nums": list(patch_nums),
    }


def _var_arguments(path: Path, state: Mapping[str, Tensor], vae: VQVAE) -> dict[str, Any]:
    """Constructor arguments of a published VAR from the shapes of its tensors."""
    patch_nums = vae.quantize.v_patch_nums
    length = state["pos_1LC"].shape[1]
    if length != (wanted := scale_boundaries(patch_nums)[-1]):
        raise InputError(f"{path} has {length} tokens per image, the VQ-VAE {wanted}")
    width = state["pos_start"].shape[-1]
    scale_key = "blocks.0.attn.scale_mul_1H11"
    return {
        "num_classes": state["class_emb.weight"].shape[0] - 1,
        "depth": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        "embed_dim": width,
        # Without l2-norm no shape tells them: `_heads_of_a_bare_file`.
        "num_heads": state[scale_key].shape[1] if scale_key in state else None,
        "mlp_ratio": state["blocks.0.ffn.fc1.weight"].shape[0] / width,
        "shared_aln": any(key.startswith("shared_ada_lin.") for key in state),
        "attn_l2_norm": scale_key in state,
        "patch_nums": list(patch_nums),
    }
