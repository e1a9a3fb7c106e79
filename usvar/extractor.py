"""Feature extractors and judges for the evaluation, trained on the real training split and nothing else.

Networks trained on photographs say little of ultrasound, and their files are not at hand offline. So the
features in which sets of images are compared come from two small networks trained here: one on the classes
("US") and one without any label ("US-SSL"). A hash of the weights stands beside every number, since numbers
under another extractor do not compare. Neither validation nor test images choose anything: training runs a
fixed number of steps, and the last weights are taken.

A network from outside (Inception, RadImageNet, DINO) comes as a TorchScript file: the one form that holds a
network whole and is read without pickle. Such a file is a program all the same, and runs when it is loaded:
give only files that you trust.

Axes: B images, H W pixels, F pooled features, D features after projection.
"""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from usvar import images, training
from usvar.augment import augment, draw_parameters
from usvar.distributed import World
from usvar.errors import InputError, RunError

BATCH = 32
PEAK_RATE = 2e-3
# Images per step of the self-supervised training, in two views each.
PAIRS, SSL_TEMPERATURE = 48, 0.2
# Smallest part of a side that a self-supervised view keeps.
LEAST_CROP = 0.6
# Most training images that the projection is fitted on; it is drawn from a table of them.
FITTED_ON = 5000
# Images at a time where a network is only used.
AT_ONCE = 64


@dataclass(frozen=True)
class Shape:
    """What a small network looks like."""

    # Channels of each level; every level halves the sides.
    widths: tuple[int, ...]
    # Side of the first convolution of a level, odd.
    kernel: int


# The classifier that judges samples is another one than the extractor, so that neither grades itself.
EXTRACTOR_SHAPE = Shape(widths=(16, 32, 64, 96), kernel=3)
CLASSIFIER_SHAPE = Shape(widths=(12, 24, 48, 64, 96), kernel=5)


class SmallNet(nn.Module):
    """Convolutions at falling size, averaged over all places: the image's size is free.

    Args:
        shape: widths and kernel.
        num_outputs: classes, or numbers that a self-supervised view is told apart by.
    """

    def __init__(self, shape: Shape, num_outputs: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, width, shape.kernel, stride=2, padding=shape.kernel // 2),
                nn.GroupNorm(4, width),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.GroupNorm(4, width),
                nn.SiLU(),
            )
            for before, width in zip((1, *shape.widths), shape.widths, strict=False)
        )
        self.head = nn.Linear(shape.widths[-1], num_outputs)

    @property
    def num_features(self) -> int:
        """F of `raw`."""
        return sum(level[0].out_channels for level in self.levels[1:])

    def pooled(self, x_B1HW: Tensor) -> list[Tensor]:
        """Mean over places after each level, (B, width) each."""
        means = []
        for level in self.levels:
            x_B1HW = level(x_B1HW)
            means.append(x_B1HW.mean((2, 3)))
        return means

    def raw(self, x_B1HW: Tensor) -> Tensor:
        """Features (B, F) of all levels but the first.

        The last level alone would keep only what its task needs; the earlier ones keep texture too.
        """
        return torch.cat(self.pooled(x_B1HW)[1:], dim=1)

    def forward(self, x_B1HW: Tensor) -> Tensor:
        """Logits (B, C) of images in [-1, 1]."""
        return self.head(F.dropout(self.pooled(x_B1HW)[-1], 0.2, self.training))


class OutsideNet(nn.Module):
    """A network from a TorchScript file.

    Args:
        path: takes (B, 3, side, side) float32 in [-1, 1], the three channels equal, and gives (B, F); what
            its training did to images beyond that belongs into the file.
        pixels: side that images are scaled to.

    Raises:
        InputError: when the file is missing, no TorchScript, or does not give (B, F).
    """

    def __init__(self, path: Path, pixels: int) -> None:
        super().__init__()
        if not path.is_file():
            raise InputError(f"--extractor-file {path} is missing: leave it out, or correct the path")
        try:
            self.script = torch.jit.load(str(path), map_location="cpu").eval()
            with torch.no_grad():
                shape = tuple(self.script(torch.zeros(2, 3, pixels, pixels)).shape)
        except (RuntimeError, ValueError, AttributeError) as error:
            reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
            raise InputError(
                f"--extractor-file {path} is no TorchScript network for {pixels} pixels ({reason}): "
                "save it by torch.jit.trace(...).save(...), or correct --extractor-file-pixels"
            ) from error
        if len(shape) != 2 or shape[0] != 2:
            raise InputError(
                f"--extractor-file {path} gives {shape} for two images, wanted (2, features): cut it off "
                "after its pooling"
            )
        self.num_features = shape[1]

    def raw(self, x_B1HW: Tensor) -> Tensor:
        """Features (B, F)."""
        return self.script(x_B1HW.expand(-1, 3, -1, -1)).float()


class Extractor(nn.Module):
    """Features of a frozen network, projected to their principal components over the training images.

    Args:
        net: SmallNet or OutsideNet; frozen here.
        dims: D.
        pixels: side that images are scaled to.
    """

    def __init__(self, net: SmallNet | OutsideNet, dims: int, pixels: int) -> None:
        super().__init__()
        self.net = net.requires_grad_(False).eval()
        self.pixels = pixels
        self.register_buffer("centre_F", torch.zeros(net.num_features))
        self.register_buffer("projection_FD", torch.zeros(net.num_features, dims))

    @property
    def dims(self) -> int:
        """D."""
        return self.projection_FD.shape[1]

    def forward(self, x_B1HW: Tensor) -> Tensor:
        """Features (B, D) of images in [-1, 1]."""
        return (self.net.raw(x_B1HW) - self.centre_F) @ self.projection_FD

    def fit_projection(self, raw_NF: Tensor) -> None:
        """Set the projection: each raw feature scaled to deviation 1, then principal components.

        One factor for all scales the mean square of a feature to 1, so that the kernel (x.y / D + 1)^3 has
        the same reach for every extractor.
        """
        centre_F, deviation_F = raw_NF.mean(0), raw_NF.std(0, correction=0).clamp(min=1e-6)
        _, strength, axes = torch.linalg.svd((raw_NF - centre_F) / deviation_F, full_matrices=False)
        factor = (strength[: self.dims].square().sum() / (len(raw_NF) * self.dims)).rsqrt()
        self.centre_F.copy_(centre_F)
        self.projection_FD.copy_(axes[: self.dims].T / deviation_F[:, None] * factor)

    def sha256(self) -> str:
        """Hash of all weights and of the size looked at; independent of the file they lie in."""
        return weights_sha256([self], self.pixels)


def network_input(grey_BHW: np.ndarray, pixels: int, device: torch.device | str) -> Tensor:
    """uint8 images to (B, 1, pixels, pixels) in [-1, 1], averaged over areas or, if smaller, interpolated."""
    x_B1HW = images.to_model_range(grey_BHW, device)[:, :1]
    if x_B1HW.shape[-1] >= pixels:
        return F.adaptive_avg_pool2d(x_B1HW, pixels)
    return F.interpolate(x_B1HW, (pixels, pixels), mode="bilinear", align_corners=False)


# --- training ---


def train_classifier(
    shape: Shape,
    grey_NHW: np.ndarray,
    label_N: np.ndarray,
    num_classes: int,
    pixels: int,
    steps: int,
    seed: int,
    device: torch.device,
) -> SmallNet:
    """Train on the classes, augmented, classes equally often.

    Args:
        shape: of the network.
        grey_NHW: images, uint8.
        label_N: their classes.
        num_classes: C.
        pixels: side that the images are scaled to.
        steps: optimiser steps.
        seed: of weights, batches and augmentation.
        device: where it runs.
    """
    sampler = training.BalancedSampler(label_N, 1.0, seed)

    def loss_of(net: SmallNet, step: int) -> Tensor:
        rows = np.sort(sampler.batch(step, BATCH))
        draws = draw_parameters(BATCH, training.step_generator(seed, training.STREAM_AUGMENT, step))
        x_B1HW = augment(network_input(grey_NHW[rows], pixels, device), draws)
        label_B = torch.from_numpy(label_N[rows]).to(device)
        return F.cross_entropy(net(x_B1HW), label_B, label_smoothing=0.1)

    return _train(shape, num_classes, loss_of, steps, seed, device)


def train_self_supervised(
    shape: Shape, grey_NHW: np.ndarray, pixels: int, steps: int, seed: int, device: torch.device
) -> SmallNet:
    """Train without labels: two views of one picture are to be told from all other pictures.

    T. Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020,
    equation 1. Views differ by the augmentation of the other networks and by a crop; not by blur or noise, so
    that texture, which a generator must get right, stays part of the features.

    Args:
        shape, grey_NHW, pixels, steps, seed, device: as in `train_classifier`.
    """
    sampler = training.BalancedSampler(np.zeros(len(grey_NHW), np.int64), 0.0, seed)

    def loss_of(net: SmallNet, step: int) -> Tensor:
        rows = np.unique(sampler.batch(step, PAIRS))  # the same picture twice would be its own opposite
        generator = training.step_generator(seed, training.STREAM_AUGMENT, step)
        x_B1HW = network_input(grey_NHW[rows], pixels, device).repeat(2, 1, 1, 1)
        view_B1HW = random_crop(augment(x_B1HW, draw_parameters(len(x_B1HW), generator)), generator)
        return contrastive_loss(F.normalize(net(view_B1HW), dim=1), SSL_TEMPERATURE)

    return _train(shape, shape.widths[-1], loss_of, steps, seed, device)


def contrastive_loss(unit_BD: Tensor, temperature: float) -> Tensor:
    """NT-Xent of Chen et al. 2020: rows i and i + B / 2 are views of one picture, all of length 1."""
    likeness_BB = unit_BD @ unit_BD.T / temperature
    likeness_BB = likeness_BB.masked_fill(
        torch.eye(len(unit_BD), dtype=torch.bool, device=unit_BD.device), -torch.inf
    )
    partner_B = torch.arange(len(unit_BD), device=unit_BD.device).roll(len(unit_BD) // 2)
    return F.cross_entropy(likeness_BB, partner_B)


def random_crop(x_B1HW: Tensor, generator: torch.Generator) -> Tensor:
    """A random part of each picture, scaled back to its size."""
    draw_B3 = torch.rand(len(x_B1HW), 3, generator=generator).to(x_B1HW)
    scale_B = LEAST_CROP + (1 - LEAST_CROP) * draw_B3[:, 0]
    shift_B2 = (2 * draw_B3[:, 1:] - 1) * (1 - scale_B[:, None])
    affine_B23 = torch.cat([torch.diag_embed(scale_B[:, None].expand(-1, 2)), shift_B2[:, :, None]], dim=2)
    grid_BHW2 = F.affine_grid(affine_B23, list(x_B1HW.shape), align_corners=False)
    return F.grid_sample(x_B1HW, grid_BHW2, padding_mode="border", align_corners=False)


def _train(shape: Shape, num_outputs: int, loss_of, steps: int, seed: int, device: torch.device) -> SmallNet:
    """The loop of both; `loss_of(net, step)` gives the loss of a step.

    Raises:
        RunError: at the first step whose loss or gradient is not finite; that step is skipped.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        net = SmallNet(shape, num_outputs).to(device).train()
        optimiser = torch.optim.AdamW(training.decay_groups(net, 0.05), lr=PEAK_RATE, fused=True)
        guard = training.StepGuard(net.parameters(), optimiser, 1.0, World(0, 1, device))
        for step in tqdm(range(steps), "train a judge", leave=False, file=sys.stdout):
            loss = loss_of(net, step)
            loss.backward()
            rate = training.learning_rate(step, PEAK_RATE, max(1, steps // 20), steps, 0.0)
            guard.step(step, rate, loss)
        for skipped in guard.read():
            raise RunError(
                f"a network of the evaluation cannot be trained: at step {skipped.step} of {steps} its loss "
                f"is {skipped.loss:g}, the norm of its gradient {skipped.norm:g}; nothing is kept: give "
                "another --seed, or --device cpu if this was a GPU"
            )
    return net.requires_grad_(False).eval()


# --- use ---


@torch.no_grad()
def probabilities(net: SmallNet, grey_NHW: np.ndarray, pixels: int, device: torch.device) -> np.ndarray:
    """Class probabilities (N, C), never exactly 0."""
    rows = [
        net(network_input(grey_NHW[i : i + AT_ONCE], pixels, device)).double().softmax(1).clamp(min=1e-12)
        for i in range(0, len(grey_NHW), AT_ONCE)
    ]
    return torch.cat(rows).cpu().numpy()


def make_extractor(
    net: SmallNet | OutsideNet, grey_NHW: np.ndarray, pixels: int, dims: int, seed: int, device: torch.device
) -> Extractor:
    """Extractor from a network, its projection fitted on training images.

    Args:
        net: trained.
        grey_NHW: training images, uint8.
        pixels: side that images are scaled to.
        dims: D; fewer when there are fewer images or features.
        seed: of the choice of images when there are many.
        device: where it runs.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(grey_NHW))[:FITTED_ON])
    extractor = Extractor(net, min(dims, net.num_features, len(chosen) - 1), pixels).to(device)
    with torch.no_grad():
        raw = [
            extractor.net.raw(network_input(grey_NHW[rows], pixels, device))
            for rows in np.array_split(chosen, -(-len(chosen) // AT_ONCE))
        ]
        extractor.fit_projection(torch.cat(raw))
    return extractor


def train_extractor(
    grey_NHW: np.ndarray,
    label_N: np.ndarray,
    num_classes: int,
    pixels: int,
    steps: int,
    dims: int,
    seed: int,
    device: torch.device,
) -> Extractor:
    """Extractor from a network trained on the classes; see `train_classifier` and `make_extractor`."""
    net = train_classifier(EXTRACTOR_SHAPE, grey_NHW, label_N, num_classes, pixels, steps, seed, device)
    return make_extractor(net, grey_NHW, pixels, dims, seed, device)


@torch.no_grad()
def features(extractor: Extractor, grey_NHW: np.ndarray) -> np.ndarray:
    """Features (N, D) float32 of uint8 images."""
    device = extractor.centre_F.device
    rows = [
        extractor(network_input(grey_NHW[i : i + AT_ONCE], extractor.pixels, device)).cpu()
        for i in range(0, len(grey_NHW), AT_ONCE)
    ]
    return torch.cat(rows).numpy()


def weights_sha256(modules: Sequence[nn.Module], pixels: int) -> str:
    """Hash of all weights and of the size the networks look at; independent of the file they lie in."""
    digest = hashlib.sha256(str(pixels).encode())
    for module in modules:
        for name, value in module.state_dict().items():
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
