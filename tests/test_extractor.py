"""The networks of the evaluation: they learn, the same seed gives the same, their features are scaled."""

import numpy as np
import pytest
import torch
from conftest import speckled_disc
from torch import nn

from usvar import extractor
from usvar.errors import InputError, RunError

CPU = torch.device("cpu")


def discs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    stream, labels = np.random.default_rng(seed), np.arange(count) % 3
    return np.stack([speckled_disc(label, stream) for label in labels]), labels


def made(net: nn.Module, grey: np.ndarray, dims: int) -> extractor.Extractor:
    return extractor.make_extractor(net, grey, 32, dims, 0, CPU)


@pytest.fixture(scope="module")
def trained() -> list[extractor.SmallNet]:
    """Two networks from one seed and one from another."""
    return [
        extractor.train_classifier(extractor.EXTRACTOR_SHAPE, *discs(60, 0), 3, 32, 40, seed, CPU)
        for seed in (0, 0, 1)
    ]


@pytest.fixture(scope="module")
def contrastive() -> extractor.SmallNet:
    return extractor.train_self_supervised(extractor.EXTRACTOR_SHAPE, discs(60, 0)[0], 32, 30, 0, CPU)


def test_the_network_learns_the_classes(trained):
    grey, labels = discs(30, 2)
    predicted = extractor.probabilities(trained[0], grey, 32, CPU).argmax(1)
    assert (predicted == labels).mean() > 0.8


def test_without_labels_views_of_a_new_picture_come_to_lie_together(contrastive):
    """The loss on pictures that were not trained on falls well below that of the random start."""

    def loss(net: extractor.SmallNet) -> float:
        x = extractor.network_input(discs(40, 5)[0], 32, CPU).repeat(2, 1, 1, 1)
        view = extractor.random_crop(x, torch.Generator().manual_seed(0))
        with torch.no_grad():
            unit = nn.functional.normalize(net(view), dim=1)
        return extractor.contrastive_loss(unit, extractor.SSL_TEMPERATURE).item()

    torch.manual_seed(0)
    assert loss(contrastive) < loss(extractor.SmallNet(extractor.EXTRACTOR_SHAPE, 96).eval()) - 0.5


def test_contrastive_loss_by_hand():
    """Two pictures, views equal and pictures at right angles: -log(e / (e + 2)) at temperature 1."""
    unit = torch.eye(2).repeat(2, 1)
    wanted = -np.log(np.e / (np.e + 2))
    assert extractor.contrastive_loss(unit, 1.0).item() == pytest.approx(wanted, rel=1e-5)


def test_crops_lie_inside_the_picture():
    """A picture that grows to the right and down: a crop's range is smaller and never beyond."""
    ramp = torch.linspace(-1, 1, 64)[None, None, None, :].expand(50, 1, 64, 64)
    cropped = extractor.random_crop(ramp, torch.Generator().manual_seed(0))
    width = cropped[:, 0, 0, -1] - cropped[:, 0, 0, 0]
    assert cropped.min() >= -1 and cropped.max() <= 1
    assert width.min() >= 2 * extractor.LEAST_CROP - 0.05 and width.max() < 2.0


def test_the_hash_is_that_of_the_weights_and_the_size_looked_at(trained):
    hashes = [extractor.weights_sha256([net], 32) for net in trained]
    assert hashes[0] == hashes[1] != hashes[2]
    assert extractor.weights_sha256([trained[0]], 64) != hashes[0]


def test_training_leaves_the_random_numbers_of_the_caller_alone():
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    extractor.train_classifier(extractor.CLASSIFIER_SHAPE, *discs(6, 0), 3, 32, 1, 0, CPU)
    extractor.train_self_supervised(extractor.CLASSIFIER_SHAPE, discs(6, 0)[0], 32, 1, 0, CPU)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_ends_the_training(what):
    """The third step of four: skipped in silence, the network would look trained."""

    def loss_of(net: extractor.SmallNet, step: int) -> torch.Tensor:
        loss = net(torch.zeros(2, 1, 32, 32)).square().mean() + 1
        if step == 2 and what == "gradient":
            loss.register_hook(lambda gradient: gradient * torch.inf)
        return loss + torch.inf if step == 2 and what == "loss" else loss  # its gradient is finite

    with pytest.raises(RunError, match=r"at step 3 of 4 .* (nan|inf)[,;].*give another --seed"):
        extractor._train(extractor.CLASSIFIER_SHAPE, 3, loss_of, 4, 0, CPU)


@pytest.mark.parametrize("kind", ["trained", "contrastive"])
def test_features_of_the_training_images_have_mean_0_and_mean_square_1(kind, request):
    net = request.getfixturevalue(kind)
    grey, _ = discs(60, 0)
    found = extractor.features(made(net[0] if kind == "trained" else net, grey, 16), grey)
    assert found.shape == (60, 16)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-3)
    assert np.square(found).mean() == pytest.approx(1, rel=1e-3)
    # Principal components: not correlated, the strongest first.
    covariance = found.T @ found / 60
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=2e-3)
    assert (np.diff(np.diag(covariance)) <= 1e-4).all()


def test_fewer_images_than_features_give_fewer_features(trained):
    grey, _ = discs(9, 0)
    assert extractor.features(made(trained[0], grey, 64), grey).shape == (9, 8)


def test_features_do_not_depend_on_the_other_images(trained):
    grey, _ = discs(12, 3)
    network = made(trained[0], grey, 8)
    together = extractor.features(network, grey)
    alone = np.concatenate([extractor.features(network, grey[i : i + 1]) for i in range(12)])
    np.testing.assert_allclose(alone, together, atol=1e-4)


class Pooled(nn.Module):
    """Stands for a network from outside: mean and deviation of each channel in four places."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([nn.functional.adaptive_avg_pool2d(x, 2).flatten(1), x.std((2, 3))], dim=1)


def test_a_torchscript_file_becomes_an_extractor(tmp_path):
    path = tmp_path / "Pooled.pt"
    torch.jit.trace(Pooled(), torch.zeros(2, 3, 96, 96)).save(str(path))
    net = extractor.OutsideNet(path, 96)
    assert net.num_features == 15
    grey, _ = discs(30, 0)  # 64 pixels: scaled up
    network = extractor.make_extractor(net, grey, 96, 4, 0, CPU)
    assert extractor.features(network, grey).shape == (30, 4)
    assert network.sha256() != extractor.make_extractor(net, grey[:20], 96, 4, 0, CPU).sha256()


def test_other_files_are_refused_in_one_line(tmp_path):
    wrong = tmp_path / "wrong.pt"
    torch.save({"a": torch.zeros(1)}, wrong)
    with pytest.raises(InputError, match="is no TorchScript network"):
        extractor.OutsideNet(wrong, 64)
    with pytest.raises(InputError, match="is missing"):
        extractor.OutsideNet(tmp_path / "nothing.pt", 64)
    maps = tmp_path / "maps.pt"
    torch.jit.trace(nn.Conv2d(3, 4, 3), torch.zeros(2, 3, 64, 64)).save(str(maps))
    with pytest.raises(InputError, match="wanted \\(2, features\\)"):
        extractor.OutsideNet(maps, 64)
