"""The networks of the evaluation: they learn, the same seed gives the same, their features are scaled."""

import numpy as np
import pytest
import torch
from conftest import speckled_disc

from usvar import extractor

CPU = torch.device("cpu")


def discs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    stream, labels = np.random.default_rng(seed), np.arange(count) % 3
    return np.stack([speckled_disc(label, stream) for label in labels]), labels


@pytest.fixture(scope="module")
def trained() -> list[extractor.SmallNet]:
    """Two networks from one seed and one from another."""
    data = discs(60, 0), discs(12, 1)
    return [
        extractor.train_network(extractor.EXTRACTOR_SHAPE, *data, 3, 32, 40, seed, CPU) for seed in (0, 0, 1)
    ]


def test_the_network_learns_the_classes(trained):
    grey, labels = discs(30, 2)
    predicted = extractor.probabilities(trained[0], grey, 32, CPU).argmax(1)
    assert (predicted == labels).mean() > 0.8


def test_the_hash_is_that_of_the_weights_and_the_size_looked_at(trained):
    hashes = [extractor.weights_sha256([net], 32) for net in trained]
    assert hashes[0] == hashes[1] != hashes[2]
    assert extractor.weights_sha256([trained[0]], 64) != hashes[0]


def test_training_leaves_the_random_numbers_of_the_caller_alone():
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    data = discs(6, 0), discs(3, 1)
    extractor.train_network(extractor.CLASSIFIER_SHAPE, *data, 3, 32, 1, 0, CPU)
    assert torch.equal(torch.rand(3), wanted)


def test_features_of_the_training_images_have_mean_0_and_mean_square_1(trained):
    grey, _ = discs(60, 0)
    found = extractor.features(extractor.make_extractor(trained[0], grey, 32, 16, 0), grey, 32)
    assert found.shape == (60, 16)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-3)
    assert np.square(found).mean() == pytest.approx(1, rel=1e-3)
    # Principal components: not correlated, the strongest first.
    covariance = found.T @ found / 60
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=2e-3)
    assert (np.diff(np.diag(covariance)) <= 1e-4).all()


def test_fewer_images_than_features_give_fewer_features(trained):
    grey, _ = discs(9, 0)
    assert extractor.features(extractor.make_extractor(trained[0], grey, 32, 64, 0), grey, 32).shape == (9, 8)


def test_features_do_not_depend_on_the_other_images(trained):
    grey, _ = discs(12, 3)
    made = extractor.make_extractor(trained[0], grey, 32, 8, 0)
    together = extractor.features(made, grey, 32)
    alone = np.concatenate([extractor.features(made, grey[i : i + 1], 32) for i in range(12)])
    np.testing.assert_allclose(alone, together, atol=1e-4)
