"""Train and validate the multi-scale VQ-VAE on prepared images.

    python train_vqvae.py --data-root data/processed --out-dir runs/vqvae
    python train_vqvae.py --data-root data/processed --ch 32 --steps 50 --batch-size 8   # smoke run, CPU
    python train_vqvae.py --data-root data/mine --init-from runs/vqvae/best.pth          # fine-tuning
    torchrun --nproc-per-node 4 train_vqvae.py --data-root data/processed                # four GPUs

Reads <data-root>/{train,val}/<Class>/*.png from data_preprocessing/prepare_datasets.py. Writes to <out-dir>:
best.pth (averaged weights, lowest loss on val), last.pth (everything needed to go on), last-previous.pth
(the one before it, taken when last.pth is damaged), log.jsonl, settings.json, loss_curves.png,
quality_curves.png, reconstructions.png (that of each validation as progress/reconstructions_<step>.png),
codebook_usage.png and codebook_perplexity.png (per scale), codebook_vectors.png and codebook_weight.npy. Run
the same command again to resume from last.pth; Ctrl-C saves first. The test split is not read here.
"""

import copy
import dataclasses
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from models import VQVAE
from models.basic_vae import Level
from models.discriminator import PatchDiscriminator
from models.quant import code_counts, perplexity, usage, usage_of_possible
from usvar import checks, cli, distributed, images, losses, metrics, provenance, runs, signals, training
from usvar.augment import augment, draw_parameters
from usvar.checkpoints import load_strictly, load_vqvae, restore, save_checkpoint, save_last
from usvar.codebook import latent_maps, revive_codes, start_codebook, take_weights
from usvar.errors import InputError
from usvar.files import atomic_path
from usvar.muon import Muon
from usvar.vqvae_figures import draw_codebook, draw_curves, draw_reconstructions

# Settings that do not change the numbers: they may differ when a run goes on.
MAY_CHANGE = (
    "data_root",
    "out_dir",
    # Of these files the contents are compared, not the paths.
    "init_from",
    "vgg",
    "max_skipped_steps",
    "log_every",
    "save_every",
    "tensorboard",
    "workers",
    "read_limit_s",
    "device",
)


@dataclass(frozen=True)
class Settings:
    """The full-size recipe for one GPU: 256 x 256 pixels, 17 M parameters."""

    # Prepared images: <data-root>/{train,val,test}/<Class>/*.png.
    data_root: Path

    # Checkpoints, log and figures; a run resumes when last.pth is already here.
    out_dir: Path = Path("runs/vqvae")

    # Fine-tune from this VQ-VAE: weights whose sizes fit are taken; the log names the others.
    init_from: Path | None = None

    # Number of code vectors, V.
    vocab_size: int = 2048

    # Channels of the latent grid and of a code vector.
    z_channels: int = 16

    # Width of the first layers; the last ones have four times as many channels.
    ch: int = 64

    # Tokens per side of each scale, coarse to fine; the last is the image's side in pixels / 16.
    patch_nums: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)

    # Look codes up by cosine (both sides l2-normalised) instead of Euclidean distance.
    cosine_lookup: bool = False

    # Weight of the commitment part of the VQ loss.
    beta: float = 0.25

    # Weight of the VQ loss per pixel value: the total is SSE + vq_weight * (values in an image) * VQ. More
    # holds the encoder nearer to the codes, less lets more codes be used (docs/vqvae_recipes.md).
    vq_weight: float = 0.3

    # Weight of the mean absolute error; times the values in an image, like vq_weight and those below; 0: off.
    l1_weight: float = 0.0

    # Weight of 1 - structural similarity: borders come out crisper (docs/vqvae_recipes.md).
    ssim_weight: float = 0.1

    # Weight of the distance of VGG16's features (ImageNet's weights), the perceptual loss.
    perceptual_weight: float = 0.0

    # Weights of torchvision's VGG16; none given: the file in torch's cache; without it the loss is off.
    vgg: Path | None = None

    # Weight of the adversarial loss, times the ratio of gradients at the last layer (VQGAN's equation 7).
    adversarial_weight: float = 0.25

    # Share of the steps before the discriminator and its loss begin, 0 to 1;
    # the search for best.pth restarts there.
    adversarial_start: float = 0.5

    # Weight of LeCam's term, which holds back the discriminator on small data.
    lecam_weight: float = 0.001

    # Start the codebook from what the untrained encoder says of this many images; 0 keeps the random start.
    codebook_start_images: int = 256

    # Replace unused codes by vectors that real images look up, every so many steps; 0 never.
    revive_every: int = 50

    # A code counts as unused when its share of recent look-ups is below this share of the mean: one that was
    # as frequent as the mean is replaced about 350 steps after its last look-up.
    revive_below: float = 0.03

    # Share of the steps after which no code is replaced any more, so that the last ones settle.
    revive_until: float = 0.8

    # Images per step, over all processes together; change the rate with it.
    batch_size: int = 32

    # Pieces in which each process works through its part of the batch: less memory, the same result (but for
    # the adversarial loss, whose adaptive weight is then each piece's own).
    accumulate: int = 1

    # Activation checkpointing: compute blocks again in the backward pass; less memory, slower.
    recompute: bool = False

    # Optimiser steps in all.
    steps: int = 30_000

    # Peak learning rate.
    learning_rate: float = 3e-4

    # Muon trains the kernels; the size of its updates as a multiple of AdamW's; 0: AdamW trains everything.
    muon_rate: float = 8.0

    # Share of the steps spent on linear warm-up, 0 to 1.
    warmup: float = 0.02

    # Learning rate at the last step as a share of the peak.
    final_rate: float = 0.02

    # AdamW's betas; it trains everything but kernels.
    betas: tuple[float, float] = (0.9, 0.95)

    # Betas of the discriminator's AdamW: a shorter memory, since what it judges keeps changing.
    discriminator_betas: tuple[float, float] = (0.5, 0.9)

    # Weight decay of kernels (not of biases, gains and codes).
    weight_decay: float = 0.01

    # Largest norm of the gradient of the total per pixel value.
    clip: float = 1.0

    # Steps that may be skipped because loss or gradient is not finite; the next such step stops the run.
    max_skipped_steps: int = 0

    # Decay of the averaged weights that are validated and kept in best.pth.
    ema_decay: float = 0.999

    # 0: classes in proportion to their images, 1: all classes equally often.
    class_balance: float = 0.5

    # The same for the data sets that a class is made of (the first part of the files' names).
    data_set_balance: float = 0.0

    # Mirror, rotate by up to 10 degrees, change brightness and contrast by up to 0.1; training images only.
    augment: bool = True

    # Steps between two log lines.
    log_every: int = 50

    # Steps between two validations with figures.
    eval_every: int = 1000

    # Steps between two saves of last.pth.
    save_every: int = 1000

    # Also write the numbers of log.jsonl for TensorBoard, to <out-dir>/tensorboard.
    tensorboard: bool = False

    # Threads that decode images at the start.
    workers: int = 4

    # Seconds to wait for a read before the run stops and names the file.
    read_limit_s: float = 300.0

    # auto (a GPU if there is one), cpu, cuda or cuda:1.
    device: str = "auto"

    # Forward pass: auto (bfloat16 where that is faster), float32 or bfloat16; the quantiser is float32.
    precision: training.Precision = "auto"

    # Compile the levels of encoder and decoder with torch.compile: slower to start, faster to run on a GPU.
    compile: bool = False

    # Seed of weights, batches and augmentation.
    seed: int = 0

    @property
    def warmup_steps(self) -> int:
        """Steps of the linear warm-up."""
        return max(1, round(self.warmup * self.steps))

    @property
    def further_losses(self) -> dict[str, float]:
        """Weights of the losses on top that need no discriminator; those without a weight left out."""
        weights = {
            "l1": self.l1_weight,
            "dissimilarity": self.ssim_weight,
            "perceptual": self.perceptual_weight,
        }
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def adversarial_step(self) -> int:
        """First step, from 0, with an adversarial loss."""
        return round(self.adversarial_start * self.steps)


def check(s: Settings, side: int, processes: int = 1) -> None:
    """Refuse settings that do not fit the images or each other, before anything is written.

    Args:
        s: what was given.
        side: of the images, in pixels.
        processes: how many share a batch.

    Raises:
        InputError: names the flag.
    """
    checks.require_file("--init-from", s.init_from)
    checks.require_file("--vgg", s.vgg)
    is_rising = list(s.patch_nums) == sorted({n for n in s.patch_nums if n > 0})
    if side % 16 or not s.patch_nums or s.patch_nums[-1] != side // 16 or not is_rising:
        fitting = [n for n in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16) if n < side // 16] + [side // 16]
        raise InputError(
            f"patch numbers {' '.join(map(str, s.patch_nums))} do not fit images of {side} x {side} pixels, "
            f"wanted rising numbers that end at {side}/16: give --patch-nums {' '.join(map(str, fitting))}"
        )
    if s.adversarial_weight and side < 32:
        raise InputError(
            f"--adversarial-weight {s.adversarial_weight:g} was given, but the discriminator needs images of "
            f"32 pixels, these have {side}: give --adversarial-weight 0"
        )
    if s.ch % 32 or s.ch < 32:
        raise InputError(
            f"--ch {s.ch} was given, wanted a multiple of 32 (group normalisation has 32 groups)"
        )
    checks.require(s, "2 or more", "vocab_size")
    checks.require(s, "1 or more", "z_channels", "workers")
    checks.require(s, "0 to 1", "data_set_balance", "adversarial_start", "revive_until")
    checks.require(s, "0 to below 1", "discriminator_betas")
    checks.require(s, "0 or more", "codebook_start_images", "beta", "revive_every", "revive_below")
    checks.require(s, "0 or more", "vq_weight", "l1_weight", "ssim_weight", "perceptual_weight")
    checks.require(s, "0 or more", "adversarial_weight", "lecam_weight")
    training.check_shared(s, processes)


def discriminator_backward(
    s: Settings,
    discriminator: PatchDiscriminator,
    image_B3HW: Tensor,
    rebuilt_B3HW: Tensor,
    pieces: int,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Gradients of the discriminator from a piece of a batch; the rebuilt images get none.

    Args:
        s: the weight of LeCam's term.
        discriminator: gradients are added to those of the pieces before.
        image_B3HW: the piece's images.
        rebuilt_B3HW: what the network made of them.
        pieces: of a batch, over which the loss is a mean.
        dtype: of the forward pass.

    Returns:
        Loss and mean scores, by the names under which they are logged.
    """
    with training.autocast(image_B3HW.device, dtype):
        loss, scores_2 = losses.discriminator_loss(discriminator, image_B3HW, rebuilt_B3HW, s.lecam_weight)
    (loss / pieces).backward()
    return {"discriminator_loss": loss, "scores_real_fake": scores_2}


def clip_discriminator(discriminator: PatchDiscriminator, clip: float, world: distributed.World) -> Tensor:
    """Clip the discriminator's gradients, after averaging them over processes; gives their norm before."""
    for parameter in discriminator.parameters():
        # Copied back, because fused AdamW wants gradients in the layout of the weights.
        parameter.grad.copy_(world.mean(parameter.grad))
    return nn.utils.clip_grad_norm_(discriminator.parameters(), clip)


def backward(
    s: Settings,
    network: nn.Module,
    model: VQVAE,
    discriminator: PatchDiscriminator | None,
    perceptual: losses.Perceptual | None,
    image_B3HW: Tensor,
    world: distributed.World,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Gradients of this process's part of a batch, piece by piece.

    Args:
        s: the weights, and the number of pieces.
        network: the model as it is called, wrapped for several processes.
        model: the same, bare.
        discriminator: None before the adversarial loss begins.
        perceptual: None without one.
        image_B3HW: augmented images in [-1, 1].
        world: all processes.
        dtype: of the forward pass.

    Returns:
        Losses per image and what else is to be logged, by name: means over the pieces.
    """
    values, pieces = image_B3HW[0].numel(), image_B3HW.chunk(s.accumulate)
    means: dict[str, Tensor] = {}
    for i, piece_B3HW in enumerate(pieces):
        is_last = i + 1 == len(pieces)
        # Hits of a step are counted together, and processes add up their gradients once.
        model.quantize.completes_step = is_last
        with distributed.sum_gradients(network, now=is_last):
            with training.autocast(image_B3HW.device, dtype):
                rebuilt_B3HW, _, vq = network(piece_B3HW)
            terms = losses.rebuilding_terms(
                piece_B3HW, rebuilt_B3HW, vq, s.vq_weight, s.further_losses, perceptual, dtype
            )
            found, loss = {f"train_{name}": term for name, term in terms.items()}, terms["total"]
            if discriminator:
                reconstruction = terms["sse"] + sum(terms[name] for name in s.further_losses)
                last_layer = model.decoder.conv_out.weight
                generator_loss, adaptive_weight = losses.generator_term(
                    discriminator, rebuilt_B3HW, reconstruction, last_layer, world, dtype
                )
                adversarial = s.adversarial_weight * generator_loss
                found |= {"train_adversarial": adversarial, "adaptive_weight": adaptive_weight}
                found |= discriminator_backward(
                    s, discriminator, piece_B3HW, rebuilt_B3HW, len(pieces), dtype
                )
                loss = loss + adversarial
            # Per pixel value, so that `clip` means the same at every image size.
            (loss / values / len(pieces)).backward()
        for name, value in found.items():
            share = value.detach() / len(pieces)
            means[name] = means[name] + share if name in means else share
    if discriminator:
        means["discriminator_norm"] = clip_discriminator(discriminator, s.clip, world)
    return means


@torch.no_grad()
def validate(
    s: Settings,
    model: VQVAE,
    pixels_NHW: np.ndarray,
    world: distributed.World,
    dtype: torch.dtype,
    perceptual: losses.Perceptual | None,
) -> tuple[dict[str, float | list[float]], Tensor]:
    """Losses, PSNR, SSIM and use of the codebook per scale on the validation split, un-augmented.

    Usage is the share of codes in use among those that could be: a scale of few tokens cannot use them all.

    Returns:
        The numbers by name, and how often each scale used each code, (S, V).
    """
    device = world.device
    names = ("sse", "vq", "total", *s.further_losses, *metrics.METRICS)
    sums = torch.zeros(len(names), dtype=torch.float64, device=device)
    hits_SV = torch.zeros(len(s.patch_nums), s.vocab_size, device=device)
    mine = np.arange(world.rank, len(pixels_NHW), world.size)
    for rows in training.batches(mine, training.validation_batch(s, world)):
        image_B3HW = images.to_model_range(pixels_NHW[rows], device)
        with training.autocast(device, dtype):
            features_BChw = model.img_to_features(image_B3HW)
            f_hat_BChw, _, vq = model.quantize(features_BChw)
            rebuilt_B3HW = model.fhat_to_img(f_hat_BChw).float()
            # forward gives the loss but not the tokens, so they are looked up again: under 1% of a validation
            # on a CPU.
            tokens = model.quantize.f_to_idxBl_or_fhat(features_BChw, to_fhat=False)
        found = losses.rebuilding_terms(
            image_B3HW, rebuilt_B3HW, vq, s.vq_weight, s.further_losses, perceptual, dtype
        )
        errors = metrics.image_errors(image_B3HW, rebuilt_B3HW)
        found |= {name: errors[name].mean() for name in metrics.METRICS}
        sums += torch.stack([found[name] for name in names]).double() * len(rows)
        hits_SV += code_counts(tokens, s.vocab_size)
    means = (world.sum(sums) / len(pixels_NHW)).tolist()
    hits_SV = world.sum(hits_SV)
    scores = {
        **{f"val_{name}": value for name, value in zip(names, means, strict=True)},
        "val_usage": usage_of_possible(hits_SV).tolist(),
        "val_perplexity": perplexity(hits_SV).tolist(),
        "val_usage_all": usage(hits_SV.sum(0)).item(),
    }
    return scores, hits_SV


def run_record(
    s: Settings, train_files: images.ImageFiles, val_files: images.ImageFiles, vgg: Path | None
) -> dict[str, Any]:
    """The run's record: settings, code revision, and hashes of everything that it reads."""
    record = provenance.made_by("train_vqvae.py", s, {"init_from": s.init_from})
    for files in (train_files, val_files):
        listing = {"path": files.split, "sha256": images.listing_sha256(files)}
        record["inputs"][f"{files.split}_images"] = listing
    if vgg:
        record["inputs"]["vgg"] = {"path": vgg.name, "sha256": provenance.sha256_file(vgg)}
    elif s.perceptual_weight:
        record["inputs"]["vgg"] = {"path": "none", "sha256": "off"}
    return record


def model_config(s: Settings, side: int, names: Sequence[str]) -> dict[str, Any]:
    """What checkpoints say of the model: how it is built, the side of its images in pixels, its classes."""
    arguments = {
        "vocab_size": s.vocab_size,
        "z_channels": s.z_channels,
        "ch": s.ch,
        "beta": s.beta,
        "using_znorm": s.cosine_lookup,
        "v_patch_nums": list(s.patch_nums),
    }
    return {"kind": "vqvae", "arguments": arguments, "image_size": side, "classes": list(names)}


def read_source(s: Settings, device: torch.device) -> VQVAE:
    """The VQ-VAE that fine-tuning starts from.

    Raises:
        InputError: when it has another width, or its file cannot be read.
    """
    source = load_vqvae(s.init_from, device).model
    if (width := source.encoder.conv_in.out_channels) != s.ch:
        raise InputError(f"{s.init_from} has width {width}, --ch {s.ch} was given: give --ch {width}")
    return source


def build(
    s: Settings, arguments: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> tuple[VQVAE, VQVAE, PatchDiscriminator | None, Muon]:
    """The VQ-VAE, its averaged weights, the discriminator if there is one, and the optimiser of all."""
    torch.manual_seed(s.seed)
    layout = training.image_layout(device)
    model = VQVAE(**arguments, test_mode=False).to(device, memory_format=layout)
    for module in model.modules():
        if isinstance(module, Level):
            module.recompute = s.recompute
    averaged = copy.deepcopy(model).requires_grad_(False).eval()
    groups, discriminator = training.decay_groups(model, s.weight_decay, s.muon_rate), None
    if s.adversarial_weight:
        discriminator = PatchDiscriminator(s.ch).to(device, memory_format=layout)
        groups += discriminator_groups(s, discriminator)
    return model, averaged, discriminator, Muon(groups, s.learning_rate, s.betas, dtype)


def discriminator_groups(s: Settings, discriminator: PatchDiscriminator) -> list[dict[str, Any]]:
    """Its parameter groups, which have momenta of their own."""
    groups = training.decay_groups(discriminator, s.weight_decay)
    return [group | {"betas": s.discriminator_betas} for group in groups]


def begin(
    s: Settings, model: VQVAE, source: VQVAE | None, batches: Iterable[Tensor], world: distributed.World
) -> list[str]:
    """Set where a new run starts: another model's weights, and a codebook made from real images.

    Args:
        s: how many images start the codebook, and the number of pieces.
        model: changed in place.
        source: the VQ-VAE that fine-tuning starts from; None without one.
        batches: images (B, 3, H, W) for the start of the codebook, this process's part of each batch.
        world: all processes.

    Returns:
        What the log is to say of it.
    """
    new_V, notes = torch.ones(s.vocab_size, dtype=torch.bool), []
    if source:
        kept, new_V = take_weights(model, source)
        notes = [f"started from {s.init_from}: {kept}"]
    if s.codebook_start_images and new_V.any():
        model.eval()
        features = [latent_maps(model, image_B3HW, world, s.accumulate) for image_B3HW in batches]
        features_BChw = torch.cat(features)
        start_codebook(model, features_BChw, s.seed, new_V)
        world.take_from_main(model.quantize.embedding.weight.data)
    return notes


def recent_use(model: VQVAE, images_a_process: int) -> dict[str, list[float]]:
    """Use of the codebook per scale in training, from the moving average of look-ups."""
    percent_S = model.quantize.usage_percent(images_a_process)
    return {
        "train_usage": [percent / 100 for percent in percent_S],
        "train_perplexity": perplexity(model.quantize.ema_vocab_hit_SV).tolist(),
    }


def report_training(run: runs.RunFolder, row: dict[str, Any], batch_size: int) -> None:
    """Log the numbers of an interval of steps, and print the main ones.

    Args:
        run: the folder.
        row: the step, the meter's means, the rate and the timings.
        batch_size: images of a step, for the speed.
    """
    run.log(row)
    tqdm.write(
        f"step {row['step']:>6}  SSE {row['train_sse']:8.1f}  VQ {row['train_vq']:8.1f}  "
        f"gradient {row['gradient_norm']:8.2f}  rate {row['rate']:.1e}  "
        f"{batch_size / row['seconds_per_step']:7.1f} images/s  waiting {row['waiting_share']:.1%}"
    )


def save_best(
    best_path: Path,
    averaged: VQVAE,
    config: dict[str, Any],
    record: dict[str, Any],
    step: int,
    scores: dict[str, float | list[float]],
) -> None:
    """Save the averaged weights with their scores, and the codebook beside them as codebook_weight.npy."""
    content = {"model": averaged.state_dict(), "config": config, "made_by": record}
    save_checkpoint(best_path, {**content, "step": step, "val": scores})
    with atomic_path(best_path.with_name("codebook_weight.npy")) as temporary:
        np.save(temporary, averaged.quantize.embedding.weight.cpu().numpy())


def report_validation(
    s: Settings,
    run: runs.RunFolder,
    step: int,
    scores: dict[str, float | list[float]],
    hits_SV: Tensor,
    averaged: VQVAE,
    val_NHW: np.ndarray,
    val_label_N: np.ndarray,
    names: Sequence[str],
) -> None:
    """Log a validation's scores, draw all figures, and print the main scores.

    Args:
        s: where figures go, and which losses they show.
        run: the folder.
        step: after which it was.
        scores, hits_SV: what `validate` returned, and the recent use of the codebook.
        averaged: the validated weights.
        val_NHW, val_label_N, names: images that reconstructions.png shows, their classes and these' names.
    """
    run.log({"step": step, **scores})
    draw_curves(s.out_dir, s.patch_nums, s.further_losses)
    draw_codebook(s.out_dir, averaged, hits_SV)
    draw_reconstructions(s.out_dir, step, averaged, val_NHW, val_label_N, names)
    tqdm.write(
        f"step {step:>6}  val: SSE {scores['val_sse']:.1f}  PSNR {scores['val_psnr_db']:.2f} dB  "
        f"SSIM {scores['val_ssim']:.3f}  codes in use {scores['val_usage_all']:.0%}"
    )


def main(s: Settings) -> None:
    """Train, validate, save, and go on from last.pth when there is one."""
    world = distributed.start(s.device)
    device, shard = world.device, world.shard(s.batch_size)
    dtype = training.amp_dtype(device, s.precision)

    # What is read, and whether the settings fit it and the run that was here before.
    names = images.find_classes(s.data_root)
    train_files, val_files = (images.find_images(s.data_root, split, names) for split in ("train", "val"))
    images.require_every_class(train_files)
    side = images.image_size(train_files)
    check(s, side, world.size)
    vgg = losses.vgg_path(s.vgg) if s.perceptual_weight else None
    record, config = run_record(s, train_files, val_files, vgg), model_config(s, side, names)
    last_path, best_path = s.out_dir / "last.pth", s.out_dir / "best.pth"
    last, found_path, notes = runs.earlier_run(last_path, best_path, record, config, MAY_CHANGE, s.data_root)
    if last and not s.init_from and "init_from" in last["made_by"]["inputs"]:
        # --init-from was not repeated, but the weights still come from it: it stays on record.
        for part in ("inputs", "settings"):
            record[part]["init_from"] = last["made_by"][part]["init_from"]
    source = read_source(s, device) if s.init_from and not last else None
    if s.perceptual_weight and not vgg:
        s = dataclasses.replace(s, perceptual_weight=0.0)
        notes.append(
            "the perceptual loss is OFF: torch's cache has no weights of torchvision's VGG16; "
            "give --vgg FILE in another --out-dir to have it"
        )
    perceptual = losses.Perceptual(vgg).to(device) if vgg else None
    run = runs.RunFolder(s.out_dir) if world.is_main else None
    with world.main_first():  # one process decodes, the others then find the file
        train_NHW, val_NHW = (
            images.decoded(files, side, s.out_dir / "cache", s.workers, s.read_limit_s)
            for files in (train_files, val_files)
        )

    # Networks, the optimiser, and the batch of a step.
    model, averaged, discriminator, optimiser = build(s, config["arguments"], device, dtype)
    # With few scales, some of the four shared phi serve none of them. The discriminator is not wrapped:
    # `backward` averages its gradients over processes.
    network: nn.Module = world.wrap(model, some_unused=True)
    sampler = training.BalancedSampler(
        train_files.label_N, s.class_balance, s.seed, images.data_sets(train_files), s.data_set_balance
    )

    def batch_names(step: int) -> list[str]:
        return [train_files.paths[row] for row in sampler.batch(step, s.batch_size)]

    def load(step: int) -> tuple[Tensor, ...]:
        rows = sampler.batch(step, s.batch_size)[shard]
        generator = training.step_generator(s.seed, training.STREAM_AUGMENT, step)
        pixels_BHW = torch.from_numpy(np.stack([train_NHW[row] for row in rows]))
        return training.pinned((pixels_BHW, draw_parameters(s.batch_size, generator)[shard]), device)

    def to_device(pixels_BHW: Tensor, parameters_B4: Tensor) -> Tensor:
        image_B3HW = images.to_model_range(pixels_BHW, device)
        if s.augment:
            # One channel is augmented, then shown three times.
            parameters_B4 = parameters_B4.to(device, non_blocking=True)
            image_B3HW = augment(image_B3HW[:, :1], parameters_B4).expand(-1, 3, -1, -1)
        return image_B3HW.contiguous(memory_format=training.image_layout(device))

    # Where it starts: at a checkpoint or anew.
    meter, start, best, skipped = training.Meter(), 0, float("inf"), 0
    if last:
        restore(found_path, last, model, averaged, optimiser)
        if discriminator:
            load_strictly(discriminator, last.get("discriminator", {}), found_path, "discriminator.")
        meter.load_state_dict(last["meter"], world)
        start, best, skipped = last["step"], last["best"], last["skipped"]
    else:
        if lacking := images.lacking_classes(val_files.label_N, names):
            notes.append(f"val has no image of {', '.join(lacking)}: no number says how they are rebuilt")
        # The codebook starts from the images of the first training steps.
        first_steps = range(-(-s.codebook_start_images // s.batch_size))
        notes += begin(s, model, source, (to_device(*load(step)) for step in first_steps), world)
        averaged.load_state_dict(model.state_dict())
    if s.compile:
        # Not before: the start of the codebook would compile graphs of its own.
        model.compile_levels()
    if start >= s.steps:
        runs.end_at_once(run, world, last_path, best_path, f"all {s.steps} steps are done", notes)
        return
    guard = training.StepGuard(model.parameters(), optimiser, s.clip, world, s.max_skipped_steps, skipped)

    def save(step: int) -> None:
        content = {"model": model.state_dict(), "ema": averaged.state_dict()}
        content |= {"optimiser": optimiser.state_dict(), "meter": meter.state_dict(world)}
        content |= {"step": step, "best": best, "skipped": guard.skipped}
        content |= {"config": config, "made_by": record}
        if discriminator:
            content["discriminator"] = discriminator.state_dict()
        if world.is_main:
            save_last(last_path, content, *filter(None, (model, discriminator, averaged)))

    if run:
        run.begin(start, notes, record)
        if s.tensorboard:
            run.open_tensorboard(start)
        count = sum(p.numel() for p in model.parameters()) / 1e6
        print(
            f"{len(train_files)} train and {len(val_files)} val images of {side} x {side} in {len(names)} "
            f"classes; {count:.1f} M parameters; {device}, {dtype}; steps {start} to {s.steps}"
        )
    progress = tqdm(total=s.steps, initial=start, disable=not world.is_main, file=sys.stdout, mininterval=5)
    waited_s = 0.0
    # Why the run ends early: raised after the loop, once every process has left it.
    ending: Exception | None = None
    network.train()
    meter.start()
    with signals.StopSignal() as stop:
        batches = training.prefetch(load, range(start, s.steps), s.read_limit_s, train_NHW.filename)
        for step, batch, waited in batches:
            # One step.
            waited_s += waited
            done = step + 1
            rate = training.learning_rate(step, s.learning_rate, s.warmup_steps, s.steps, s.final_rate)
            image_B3HW = to_device(*batch)
            hits_before_SV = model.quantize.ema_vocab_hit_SV.clone()
            active = discriminator if step >= s.adversarial_step else None
            if active and step == s.adversarial_step:
                # Else the smoother images from before this loss would stay the best for good.
                best = float("inf")
            numbers = backward(s, network, model, active, perceptual, image_B3HW, world, dtype)
            loss = (numbers["train_total"] + numbers.get("train_adversarial", 0)) / image_B3HW[0].numel()
            # A discriminator whose gradient is not finite holds back the whole step.
            other_norms = [numbers["discriminator_norm"]] if active else []
            norm, is_taken = guard.step(step, rate, loss, *other_norms)
            # A skipped step leaves no hits either.
            hits_SV = model.quantize.ema_vocab_hit_SV
            hits_SV.copy_(torch.where(is_taken, hits_SV, hits_before_SV))
            if active:
                losses.update_lecam_averages(active, world.mean(numbers["scores_real_fake"]), is_taken)
            training.ema_update(averaged, model, step, s.ema_decay, is_taken)
            progress.update()

            # What is due now. Which steps were skipped is asked only when something is due, because the
            # answer waits for the device; also just before `adversarial_step`, because the next step resets
            # `best` and a save after a stop needs the old value.
            log_due, eval_due, save_due = training.due(done, s)
            revive_due = s.revive_every and done % s.revive_every == 0 and done <= s.revive_until * s.steps
            stopping = world.any(stop.received is not None)
            if log_due or eval_due or save_due or revive_due or stopping or done == s.adversarial_step:
                ending = training.report_skipped(guard, run, last_path, batch_names)
                if ending:
                    # Not when the checkpoint on the disk has these weights already.
                    if guard.steps_before_stop > start or last is None:
                        save(guard.steps_before_stop)
                    break

            revived = torch.zeros((), device=device)
            if revive_due and is_taken:
                seed = training.step_seed(s.seed, training.STREAM_REVIVE, step)
                revived = revive_codes(
                    model, averaged, optimiser, image_B3HW, world, s.revive_below, seed, s.accumulate
                )
            meter.add(is_taken, **numbers, gradient_norm=norm, revived_codes_per_step=revived)

            if log_due:
                steps = meter.steps
                means, seconds = meter.read(world)
                waiting, waited_s = waited_s / max(1e-9, seconds * steps), 0.0
                if run and means:
                    timing = {"seconds_per_step": seconds, "waiting_share": waiting}
                    report_training(run, {"step": done, **means, "rate": rate, **timing}, s.batch_size)
            with meter.paused():
                if eval_due:
                    scores, val_hits_SV = validate(s, averaged, val_NHW, world, dtype, perceptual)
                    scores |= recent_use(model, s.batch_size // world.size)
                    is_best = scores["val_total"] < best
                    best = min(best, scores["val_total"])
                    if run and is_best:
                        save_best(best_path, averaged, config, record, done, scores)
                    if run:
                        report_validation(
                            s, run, done, scores, val_hits_SV, averaged, val_NHW, val_files.label_N, names
                        )
                if save_due or stopping:
                    save(done)
            if stopping and done < s.steps:
                ending = stop.as_error(done, last_path)
                break
        progress.close()
        world.close()
    if run:
        run.close()
    if ending:
        raise ending
    if run:
        print(f"done: {best_path} (val total {best:.0f}), figures in {s.out_dir}")


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
