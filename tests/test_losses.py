"""The further losses: known answers, where gradients go, and the adaptive weight by hand."""

from pathlib import Path

import pytest
import torch
from torch import nn

from models import VQVAE
from models.discriminator import PatchDiscriminator
from usvar import losses
from usvar.distributed import World
from usvar.errors import InputError
from usvar.metrics import image_errors

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def vgg(tmp_path_factory) -> Path:
    """VGG16 with random weights, in the layout of torchvision's file; its classifier is not read."""
    from torchvision.models import vgg16

    with torch.device("meta"):
        features = vgg16(weights=None).features
    features.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in features.parameters():
        fan_in = parameter[0].numel()
        parameter.data.normal_(0, (2 / fan_in) ** 0.5 if parameter.ndim > 1 else 0.01, generator=generator)
    state = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save({**state, "classifier.0.weight": torch.zeros(1)}, path)
    return path


@pytest.fixture(scope="module")
def model() -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(32, z_channels=4, ch=32, v_patch_nums=(1, 2, 4), test_mode=False)


def pictures(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(2, 1, 64, 64, generator=generator) * 2 - 1).expand(-1, 3, -1, -1)


def test_l1_and_dissimilarity_are_those_of_the_metrics():
    first, second = pictures(0), pictures(1)
    errors = image_errors(first, second)
    assert losses.l1(first, second).item() == pytest.approx(2 * errors["mae"].mean().item(), rel=1e-5)
    assert losses.dissimilarity(first, second).item() == pytest.approx(
        1 - errors["ssim"].mean().item(), rel=1e-5
    )
    assert losses.l1(first, first) == 0 and abs(losses.dissimilarity(first, first).item()) < 1e-6


@pytest.mark.parametrize("name", ["l1", "dissimilarity", "perceptual", "adversarial"])
def test_the_gradient_reaches_decoder_and_encoder(name, model, vgg):
    model.zero_grad()
    image_B3HW = pictures()
    rebuilt_B3HW, _, _ = model(image_B3HW)
    if name == "perceptual":
        loss = losses.Perceptual(vgg)(image_B3HW, rebuilt_B3HW)
    elif name == "adversarial":
        loss = losses.generator_loss(PatchDiscriminator(32)(rebuilt_B3HW))
    else:
        loss = getattr(losses, name)(image_B3HW, rebuilt_B3HW)
    loss.backward()
    for part in (model.decoder.conv_in, model.decoder.conv_out, model.encoder.conv_in):
        assert part.weight.grad.abs().sum() > 0


def test_perceptual_distance_grows_with_the_error_and_its_network_is_fixed(vgg):
    perceptual, image_B3HW = losses.Perceptual(vgg), pictures()
    noise = torch.randn(image_B3HW.shape, generator=torch.Generator().manual_seed(2))
    near, far = (perceptual(image_B3HW, image_B3HW + share * noise).item() for share in (0.1, 0.5))
    assert perceptual(image_B3HW, image_B3HW) == 0 and 0 < near < far
    assert not any(p.requires_grad for p in perceptual.parameters())
    # The third activation of a known input, worked out by torchvision's own layers.
    layers = perceptual.features[:16]
    normal = ((image_B3HW + 1) / 2 - torch.tensor(losses.IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(
        losses.IMAGENET_STD
    ).view(3, 1, 1)
    wanted = nn.functional.normalize(layers(normal), dim=1, eps=1e-6)
    torch.testing.assert_close(perceptual.block_ends(image_B3HW)[2], wanted)


def test_the_perceptual_loss_is_off_without_its_file_and_refuses_another(tmp_path, monkeypatch, vgg):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert losses.vgg_path(None) is None and losses.vgg_path(vgg) == vgg
    cached = tmp_path / "checkpoints" / "vgg16-397923af.pth"
    cached.parent.mkdir()
    cached.touch()
    assert losses.vgg_path(None) == cached
    with pytest.raises(InputError, match="damaged"):
        losses.Perceptual(cached)
    with pytest.raises(InputError, match="missing"):
        losses.Perceptual(tmp_path / "none.pth")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "small.pth")
    with pytest.raises(InputError, match=r"features\.0\.weight of shape"):
        losses.Perceptual(tmp_path / "small.pth")


def test_the_total_is_the_sum_of_all_terms():
    weights = {"l1": 0.5, "dissimilarity": 0.1}
    terms = losses.rebuilding_terms(
        pictures(0), pictures(1), torch.tensor(2.0), 0.3, weights, None, torch.float32
    )
    assert list(terms) == ["sse", "vq", "total", "l1", "dissimilarity"]
    total = terms.pop("total")
    assert total.item() == pytest.approx(sum(term.item() for term in terms.values()), rel=1e-6)
    assert terms["vq"].item() == pytest.approx(0.3 * 3 * 64 * 64 * 2)


class Scores(nn.Module):
    """Stands in for the discriminator: the mean grey level is the score."""

    def __init__(self, averages: tuple[float, float]) -> None:
        super().__init__()
        self.register_buffer("mean_scores_2", torch.tensor(averages))

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        return image_BCHW.mean((1, 2, 3), keepdim=True)


def test_hinge_and_lecam_by_hand():
    real, fake = torch.full((1, 3, 4, 4), 0.5), torch.full((1, 3, 4, 4), -2.0)
    scores = Scores((0.3, -0.1))
    loss, means_2 = losses.discriminator_loss(scores, real, fake, lecam_weight=0)
    assert loss.item() == pytest.approx((0.5 + 0) / 2) and means_2.tolist() == [0.5, -2.0]
    with_lecam, _ = losses.discriminator_loss(scores, real, fake, lecam_weight=10)
    assert with_lecam.item() == pytest.approx(0.25 + 10 * ((0.5 + 0.1) ** 2 + (0.3 + 2.0) ** 2), rel=1e-5)
    losses.update_lecam_averages(scores, torch.full((2,), torch.nan), torch.tensor(False))
    assert scores.mean_scores_2.tolist() == pytest.approx([0.3, -0.1])
    losses.update_lecam_averages(scores, means_2, torch.tensor(True))
    assert scores.mean_scores_2.tolist() == pytest.approx([0.99 * 0.3 + 0.005, 0.99 * -0.1 - 0.02])
    assert losses.generator_loss(scores(fake)).item() == 2.0


def test_the_discriminator_learns_to_tell_and_gives_no_gradient_to_the_images():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(32)
    optimiser = torch.optim.AdamW(discriminator.parameters(), lr=1e-3)
    real, fake = pictures(0), pictures(1).mul(0.5).requires_grad_()
    before = losses.discriminator_loss(discriminator, real, fake, 0)[0].item()
    for _ in range(15):
        optimiser.zero_grad()
        loss, (real_score, fake_score) = losses.discriminator_loss(discriminator, real, fake, 0)
        loss.backward()
        optimiser.step()
    assert fake.grad is None and loss.item() < 0.7 * before and real_score > fake_score


def test_the_adaptive_weight_is_the_ratio_of_gradients():
    """VQGAN, equation 7: scaling the adversarial loss changes nothing, scaling the others scales it."""
    last_layer = nn.Parameter(torch.tensor([1.0, -2.0]))
    reconstruction, adversarial = (last_layer**2).sum(), (3 * last_layer).sum()
    ratio = losses.adaptive_weight(reconstruction, adversarial, last_layer, ALONE)
    assert ratio.item() == pytest.approx((20 / 18) ** 0.5, rel=1e-4) and not ratio.requires_grad
    twice = losses.adaptive_weight(2 * reconstruction, 5 * adversarial, last_layer, ALONE)
    assert twice.item() == pytest.approx(2 / 5 * ratio.item(), rel=1e-4)
    nothing = losses.adaptive_weight(reconstruction, 0 * adversarial, last_layer, ALONE)
    assert nothing.item() == losses.LARGEST_ADAPTIVE
    (reconstruction + ratio * adversarial).backward()  # the graph is still there
