"""Feature extractor and classifier for the evaluation, trained on the real training split and nothing else.

Networks trained on photographs say little of ultrasound, and their files are not at hand offline. So the
features in which sets of images are compared come from a small network trained here; its hash stands beside
every number, since numbers under another extractor do not compare.

Axes: B images, H W pixels, F pooled features, D features after projection.
"""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usvar import training
from usvar.augment import augment, draw_parameters

BATCH = 32
PEAK_RATE = 2e-3
# Most training images that the projection is fitted on; it is drawn from a table of them.
FITTED_ON = 5000


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
        num_classes: outputs.
    """

    def __init__(self, shape: Shape, num_classes: int) -> None:
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
        self.head = nn.Linear(shape.widths[-1], num_classes)

    def pooled(self, x_B1HW: Tensor) -> list[Tensor]:
        """Mean over places after each level, (B, width) each."""
        means = []
        for level in self.levels:
            x_B1HW = level(x_B1HW)
            means.append(x_B1HW.mean((2, 3)))
        return means

    def forward(self, x_B1HW: Tensor) -> Tensor:
        """Logits (B, C) of images in [-1, 1]."""
        return self.head(F.dropout(self.pooled(x_B1HW)[-1], 0.2, self.training))


class Extractor(nn.Module):
    """Features of all levels but the first, projected to their principal components over the training images.

    The last level alone would keep only what tells the classes apart; the earlier ones keep texture too.

    Args:
        net: trained; frozen here.
        num_features: F of the network.
        dims: D.
    """

    def __init__(self, net: SmallNet, num_features: int, dims: int) -> None:
        super().__init__()
        self.net = net.requires_grad_(False).eval()
        self.register_buffer("centre_F", torch.zeros(num_features))
        self.register_buffer("projection_FD", torch.zeros(num_features, dims))

    def raw(self, x_B1HW: Tensor) -> Tensor:
        """(B, F) before the projection."""
        return torch.cat(self.net.pooled(x_B1HW)[1:], dim=1)

    def forward(self, x_B1HW: Tensor) -> Tensor:
        """Features (B, D) of images in [-1, 1]."""
        return (self.raw(x_B1HW) - self.centre_F) @ self.projection_FD

    def fit_projection(self, raw_NF: Tensor) -> None:
        """Set the projection: each raw feature scaled to deviation 1, then principal components.

        One factor for all scales the mean square of a feature to 1, so that the kernel (x.y / D + 1)^3 has
        the same reach for every extractor.
        """
        centre_F, deviation_F = raw_NF.mean(0), raw_NF.std(0, correction=0).clamp(min=1e-6)
        _, strength, axes = torch.linalg.svd((raw_NF - centre_F) / deviation_F, full_matrices=False)
        dims = self.projection_FD.shape[1]
        factor = (strength[:dims].square().sum() / (len(raw_NF) * dims)).rsqrt()
        self.centre_F.copy_(centre_F)
        self.projection_FD.copy_(axes[:dims].T / deviation_F[:, None] * factor)


def network_input(grey_BHW: np.ndarray, pixels: int, device: torch.device | str) -> Tensor:
    """uint8 images to (B, 1, pixels, pixels) in [-1, 1], averaged over areas."""
    x_B1HW = torch.from_numpy(np.array(grey_BHW)).to(device)[:, None].float() / 127.5 - 1
    return F.adaptive_avg_pool2d(x_B1HW, pixels)


def train_network(
    shape: Shape,
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    num_classes: int,
    pixels: int,
    steps: int,
    seed: int,
    device: torch.device,
) -> SmallNet:
    """Train on the classes, augmented, classes equally often; the weights best on val are returned.

    Args:
        shape: of the network.
        train: images (N, H, W) uint8 and their classes (N,).
        val: likewise; chooses the weights.
        num_classes: C.
        pixels: side that the images are averaged to.
        steps: optimiser steps.
        seed: of weights, batches and augmentation.
        device: where it runs.
    """
    grey_NHW, label_N = train
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        net = SmallNet(shape, num_classes).to(device)
        optimiser = torch.optim.AdamW(training.decay_groups(net, 0.05), lr=PEAK_RATE)
        sampler = training.BalancedSampler(label_N, 1.0, seed)
        best, best_state = float("inf"), copy.deepcopy(net.state_dict())
        every = max(1, steps // 10)
        for step in range(steps):
            rows = sampler.batch(step, BATCH)
            x_B1HW = network_input(grey_NHW[np.sort(rows)], pixels, device)
            label_B = torch.from_numpy(label_N[np.sort(rows)]).to(device)
            draws = draw_parameters(BATCH, training.step_generator(seed, training.STREAM_AUGMENT, step))
            loss = F.cross_entropy(net.train()(augment(x_B1HW, draws)), label_B, label_smoothing=0.1)
            loss.backward()
            rate = training.learning_rate(step, PEAK_RATE, max(1, steps // 20), steps, 0.0)
            training.optimiser_step(list(net.parameters()), optimiser, rate, clip=1.0)
            if (step + 1) % every == 0 or step + 1 == steps:
                loss_N = -np.log(probabilities(net, val[0], pixels, device)[np.arange(len(val[1])), val[1]])
                # Mean of class means: val may have many more images of one class.
                score = float(np.mean([loss_N[val[1] == label].mean() for label in np.unique(val[1])]))
                if score < best:
                    best, best_state = score, copy.deepcopy(net.state_dict())
    net.load_state_dict(best_state, strict=True)
    return net.requires_grad_(False).eval()


@torch.no_grad()
def probabilities(net: SmallNet, grey_NHW: np.ndarray, pixels: int, device: torch.device) -> np.ndarray:
    """Class probabilities (N, C), never exactly 0."""
    net.eval()
    rows = [
        net(network_input(grey_NHW[i : i + 64], pixels, device)).double().softmax(1).clamp(min=1e-12)
        for i in range(0, len(grey_NHW), 64)
    ]
    return torch.cat(rows).cpu().numpy()


def make_extractor(net: SmallNet, grey_NHW: np.ndarray, pixels: int, dims: int, seed: int) -> Extractor:
    """Extractor from a trained network, its projection fitted on training images.

    Args:
        net: from `train_network`.
        grey_NHW: training images, uint8.
        pixels: as in training.
        dims: D; fewer when there are fewer images.
        seed: of the choice of images when there are many.
    """
    device = net.head.weight.device
    chosen = np.sort(np.random.default_rng(seed).permutation(len(grey_NHW))[:FITTED_ON])
    num_features = sum(level[0].out_channels for level in net.levels[1:])
    extractor = Extractor(net, num_features, min(dims, num_features, len(chosen) - 1)).to(device)
    with torch.no_grad():
        raw = [
            extractor.raw(network_input(grey_NHW[rows], pixels, device))
            for rows in np.array_split(chosen, -(-len(chosen) // 64))
        ]
        extractor.fit_projection(torch.cat(raw))
    return extractor


@torch.no_grad()
def features(extractor: Extractor, grey_NHW: np.ndarray, pixels: int) -> np.ndarray:
    """Features (N, D) float32 of uint8 images."""
    device = extractor.centre_F.device
    rows = [
        extractor(network_input(grey_NHW[i : i + 64], pixels, device)).cpu()
        for i in range(0, len(grey_NHW), 64)
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
