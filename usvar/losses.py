"""Losses of the VQ-VAE beyond squared error: L1, structure, features, and an adversarial loss.

All are means over a batch. Images enter as floats in [-1, 1].

Axes: B images, C channels, H W pixels, h w places of a feature map or patches of a discriminator.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.discriminator import PatchDiscriminator
from usvar.checkpoints import load_strictly, read_checkpoint
from usvar.distributed import World
from usvar.metrics import ssim
from usvar.training import autocast

# Indices in VGG16's features of the activations that end its five blocks: relu1_2 to relu5_3.
VGG_BLOCK_ENDS = (3, 8, 15, 22, 29)
# ImageNet's mean and deviation of red, green and blue on the [0, 1] range, which VGG was trained with.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Decay of the discriminator's mean scores, and the largest adaptive weight: both of the published codes.
SCORE_DECAY, LARGEST_ADAPTIVE = 0.99, 1e4


def base_terms(
    image_B3HW: Tensor, rebuilt_B3HW: Tensor, vq: Tensor, vq_weight: float
) -> tuple[Tensor, Tensor]:
    """The base loss: squared error summed over an image, and the VQ loss on the same footing.

    Args:
        image_B3HW: originals in [-1, 1].
        rebuilt_B3HW: the network's output.
        vq: the quantiser's loss, a mean over latent values.
        vq_weight: weight per pixel value.

    Returns:
        SSE per image and the weighted VQ loss; without further losses, their sum is the total.
    """
    sse = (rebuilt_B3HW.float() - image_B3HW).square().sum((1, 2, 3)).mean()
    return sse, vq_weight * image_B3HW[0].numel() * vq


def further_terms(
    image_B3HW: Tensor,
    rebuilt_B3HW: Tensor,
    weights: Mapping[str, float],
    perceptual: "Perceptual | None",
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """The losses on top that need no discriminator, times their weights.

    Args:
        image_B3HW: originals in [-1, 1].
        rebuilt_B3HW: the network's output.
        weights: some of "l1", "dissimilarity" and "perceptual"; what is not there costs nothing.
        perceptual: needed when it has a weight.
        dtype: of VGG's forward pass.

    Returns:
        name -> scalar, per image.
    """
    terms = {}
    if "l1" in weights:
        terms["l1"] = l1(image_B3HW, rebuilt_B3HW)
    if "dissimilarity" in weights:
        terms["dissimilarity"] = dissimilarity(image_B3HW, rebuilt_B3HW)
    if "perceptual" in weights:
        with autocast(image_B3HW.device, dtype):
            terms["perceptual"] = perceptual(image_B3HW, rebuilt_B3HW)
    return {name: weights[name] * image_B3HW[0].numel() * term for name, term in terms.items()}


def rebuilding_terms(
    image_B3HW: Tensor,
    rebuilt_B3HW: Tensor,
    vq: Tensor,
    vq_weight: float,
    weights: Mapping[str, float],
    perceptual: "Perceptual | None",
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """All losses that need no discriminator, and their sum.

    Args:
        image_B3HW, rebuilt_B3HW, vq, vq_weight: see `base_terms`.
        weights, perceptual, dtype: see `further_terms`.

    Returns:
        "sse", "vq", "total" and the further terms: name -> scalar, weighted, per image.
    """
    sse, weighted_vq = base_terms(image_B3HW, rebuilt_B3HW, vq, vq_weight)
    further = further_terms(image_B3HW, rebuilt_B3HW, weights, perceptual, dtype)
    return {"sse": sse, "vq": weighted_vq, "total": sse + weighted_vq + sum(further.values()), **further}


def l1(image_BCHW: Tensor, rebuilt_BCHW: Tensor) -> Tensor:
    """Mean absolute error of a pixel value."""
    return (rebuilt_BCHW.float() - image_BCHW).abs().mean()


def dissimilarity(image_BCHW: Tensor, rebuilt_BCHW: Tensor) -> Tensor:
    """One minus structural similarity of the mean over channels, 0 to 2.

    Not clamped to the grey range as the metric is: outside of it there would be no gradient.
    """
    grey = [(x_BCHW.float().mean(1, keepdim=True) + 1) / 2 for x_BCHW in (image_BCHW, rebuilt_BCHW)]
    return 1 - ssim(*grey).mean()


class Perceptual(nn.Module):
    """Distance of VGG16's features, each place's vector scaled to length 1.

    R. Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018), equation
    1 with all learned weights 1. VGG saw photographs, not ultrasound: judge it by its row in the table.

    Args:
        path: weights of torchvision's VGG16, the whole network's state_dict.

    Raises:
        InputError: when the file is missing or holds anything else.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        from torchvision.models import vgg16  # a second of start-up that only this loss needs

        # On "meta" nothing is drawn for the 120 M weights of the classifier, which is not used.
        with torch.device("meta"):
            features = vgg16(weights=None).features
        features.to_empty(device="cpu")
        state = read_checkpoint(path)
        kept = {k.removeprefix("features."): v for k, v in state.items() if not k.startswith("classifier.")}
        load_strictly(features, kept, path, "features.")
        for layer in features:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
        self.features = features
        self.register_buffer("mean_C11", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std_C11", torch.tensor(IMAGENET_STD).view(3, 1, 1))
        self.eval().requires_grad_(False)

    def block_ends(self, image_B3HW: Tensor) -> list[Tensor]:
        """Features (B, C, h, w) at the end of each block, of length 1 over C."""
        x, found = ((image_B3HW + 1) / 2 - self.mean_C11) / self.std_C11, []
        for i, layer in enumerate(self.features[: VGG_BLOCK_ENDS[-1] + 1]):
            x = layer(x)
            if i in VGG_BLOCK_ENDS:
                found.append(F.normalize(x.float(), dim=1, eps=1e-6))
        return found

    def forward(self, image_B3HW: Tensor, rebuilt_B3HW: Tensor) -> Tensor:
        """Sum over blocks of the mean squared distance; the gradient goes to the rebuilt images."""
        with torch.no_grad():
            wanted = self.block_ends(image_B3HW)
        found = self.block_ends(rebuilt_B3HW)
        return sum((a - b).square().sum(1).mean() for a, b in zip(wanted, found, strict=True))


def vgg_path(given: Path | None) -> Path | None:
    """The given file, or torchvision's own in torch's cache, or None when it is not there."""
    from torchvision.models import VGG16_Weights

    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(VGG16_Weights.IMAGENET1K_V1.url).name
    return given or (cached if cached.is_file() else None)


def generator_loss(score_B1hw: Tensor) -> Tensor:
    """The generator's side of the hinge loss: low when rebuilt images are taken for real ones."""
    return -score_B1hw.float().mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, world: World) -> Tensor:
    """How many times the gradient of the adversarial loss goes into that of the others, at the last layer.

    P. Esser et al., "Taming Transformers for High-Resolution Image Synthesis" (2021), equation 7. The
    gradients are those of the global batch, so that several processes take the weight of one.

    Args:
        reconstruction, adversarial: scalar losses with a gradient.
        last_layer: the decoder's last kernel.
        world: all processes.

    Returns:
        A scalar without gradient.
    """
    norms = [
        world.mean(torch.autograd.grad(loss, last_layer, retain_graph=True)[0]).norm()
        for loss in (reconstruction, adversarial)
    ]
    return (norms[0] / (norms[1] + 1e-6)).clamp(max=LARGEST_ADAPTIVE)


def generator_term(
    discriminator: PatchDiscriminator,
    rebuilt_B3HW: Tensor,
    reconstruction: Tensor,
    last_layer: Tensor,
    world: World,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The generator's adversarial loss per image, times its adaptive weight.

    Args:
        discriminator: takes no gradient from here.
        rebuilt_B3HW: the network's output, with its graph.
        reconstruction: all losses of the rebuilt images, per image.
        last_layer: the decoder's last kernel.
        world: all processes.
        dtype: of the forward pass.

    Returns:
        The loss with a gradient, and the adaptive weight.
    """
    values = rebuilt_B3HW[0].numel()
    discriminator.requires_grad_(False)
    with autocast(rebuilt_B3HW.device, dtype):
        loss = generator_loss(discriminator(rebuilt_B3HW))
    weight = adaptive_weight(reconstruction / values, loss, last_layer, world)
    discriminator.requires_grad_(True)
    return weight * values * loss, weight


def discriminator_loss(
    discriminator: PatchDiscriminator, image_BCHW: Tensor, rebuilt_BCHW: Tensor, lecam_weight: float
) -> tuple[Tensor, Tensor]:
    """The discriminator's side: hinge loss and LeCam's term.

    LeCam keeps the scores near their moving averages, which holds back a discriminator that has few images to
    learn by heart: H.-Y. Tseng et al., "Regularizing Generative Adversarial Networks under Limited Data"
    (2021), with the one-sided distances of its published code.

    Args:
        discriminator: with its moving averages.
        image_BCHW: real images.
        rebuilt_BCHW: what became of them; no gradient goes there.
        lecam_weight: 0 leaves the term out.

    Returns:
        The loss, and (2,) the mean scores of real and of rebuilt images, for `update_lecam_averages`.
    """
    real, fake = (discriminator(x.detach()).float() for x in (image_BCHW, rebuilt_BCHW))
    loss = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    if lecam_weight:
        mean_real, mean_fake = discriminator.mean_scores_2.clone()
        lecam = F.relu(real - mean_fake).square().mean() + F.relu(mean_real - fake).square().mean()
        loss = loss + lecam_weight * lecam
    return loss, torch.stack([real.mean(), fake.mean()]).detach()


@torch.no_grad()
def update_lecam_averages(discriminator: PatchDiscriminator, scores_2: Tensor, is_taken: Tensor) -> None:
    """Move the averages that LeCam compares with toward the newest mean scores, if the step was taken."""
    means_2 = discriminator.mean_scores_2
    means_2.copy_(torch.where(is_taken, means_2.lerp(scores_2, 1 - SCORE_DECAY), means_2))
