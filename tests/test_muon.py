"""Muon against the singular value decomposition, AdamW, and a step that must not be made."""

import copy

import pytest
import torch
from torch import Tensor, nn

from usvar import training
from usvar.checkpoints import restore
from usvar.errors import InputError
from usvar.muon import ADAMW_RMS, Muon, orthogonalised


def network(seed: int = 0) -> nn.Module:
    """Two kernels of one shape, one of another, biases and gains."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))


def muon_of(model: nn.Module, muon_rate: float = 2.0, decay: float = 0.1) -> Muon:
    return Muon(training.decay_groups(model, decay, muon_rate), lr=1e-2, betas=(0.9, 0.95))


def backward(model: nn.Module, seed: int) -> None:
    image_BCHW = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(seed))
    model(image_BCHW).square().mean().backward()


def weights_of(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("shape", [(3, 16, 40), (3, 40, 16), (2, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_become_about_one_and_vectors_stay(shape, dtype):
    random_NOI = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u_NOk, _, vh_NkI = torch.linalg.svd(random_NOI, full_matrices=False)
    before_k = torch.logspace(0, -2, min(shape[1:]))
    found_NOI = orthogonalised((u_NOk * before_k @ vh_NkI).to(dtype)).float()
    assert found_NOI.shape == shape
    own_Nkk = u_NOk.mT @ found_NOI @ vh_NkI.mT
    after_Nk = own_Nkk.diagonal(dim1=1, dim2=2)
    assert after_Nk.min() > 0.6 and after_Nk.max() < 1.3, after_Nk
    off_Nkk = own_Nkk - torch.diag_embed(after_Nk)
    assert off_Nkk.abs().max() < (1e-3 if dtype == torch.float32 else 0.15)


@pytest.mark.parametrize("shape", [(3, 32, 288), (3, 288, 32), (2, 64, 64)])
def test_the_shorter_way_is_as_good_as_the_rounds_themselves(shape):
    """float32 goes by the square of a wide matrix, float64 takes the matrix itself through the rounds."""
    generator = torch.Generator().manual_seed(4)
    # Singular values over five orders, as momenta have them.
    columns = torch.logspace(0, -5, shape[2])
    matrix_NOI = torch.randn(shape, generator=generator) * columns
    torch.testing.assert_close(
        orthogonalised(matrix_NOI), orthogonalised(matrix_NOI.double()).float(), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("columns", [6, 12])
def test_zeros_stay_zeros(columns):
    assert torch.equal(orthogonalised(torch.zeros(1, 4, columns)), torch.zeros(1, 4, columns))


def test_matrices_of_one_shape_do_not_meet():
    matrix_NOI = torch.randn(5, 6, 9, generator=torch.Generator().manual_seed(2))
    alone = torch.cat([orthogonalised(matrix_NOI[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(orthogonalised(matrix_NOI), alone, rtol=1e-5, atol=1e-6)


def test_what_is_no_kernel_is_trained_by_adamw():
    model = network()
    other = copy.deepcopy(model)
    ours = muon_of(model)
    adamw = torch.optim.AdamW(training.decay_groups(other, 0.1), lr=1e-2, betas=(0.9, 0.95), fused=True)
    backward(model, 0)
    backward(other, 0)
    ours.step()
    adamw.step()
    for own, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(own, theirs) == (own.ndim < 2)


def test_without_a_rate_it_is_adamw():
    model = network()
    other = copy.deepcopy(model)
    ours = muon_of(model, muon_rate=0.0)
    adamw = torch.optim.AdamW(training.decay_groups(other, 0.1), lr=1e-2, betas=(0.9, 0.95), fused=True)
    for step in range(3):
        for net, optimiser in ((model, ours), (other, adamw)):
            backward(net, step)
            optimiser.step()
            optimiser.zero_grad()
    for own, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(own, theirs)


@pytest.mark.parametrize("rate", [1.0, 3.0])
def test_a_step_is_as_long_as_it_says(rate):
    """All singular values 1: a root mean square of 1 / sqrt(longer side), times what `_move` makes of it."""
    model = nn.Conv2d(16, 24, 3)
    before = model.weight.detach().clone()
    optimiser = muon_of(model, muon_rate=rate, decay=0.0)
    model(torch.randn(8, 16, 9, 9)).square().mean().backward()
    optimiser.step()
    moved = (model.weight.detach() - before).square().mean().sqrt()
    assert 0.7 < moved / (1e-2 * rate * ADAMW_RMS) < 1.2


def test_momentum_is_kept_and_looked_ahead_of():
    model = nn.Conv2d(3, 8, 3, bias=False)
    optimiser = muon_of(model, muon_rate=1.0, decay=0.0)
    first, second = torch.randn(2, 8, 3, 3, 3, generator=torch.Generator().manual_seed(4))
    for gradient in (first, second):
        before = model.weight.detach().clone()
        model.weight.grad = gradient.clone()
        optimiser.step()
    momentum = 0.95 * first + second
    wanted = orthogonalised((second + 0.95 * momentum).flatten(1)[None])[0].view_as(first)
    length = 1e-2 * ADAMW_RMS * 27**0.5
    torch.testing.assert_close(model.weight.detach() - before, -length * wanted, rtol=1e-4, atol=1e-6)


def test_kernels_decay():
    model = nn.Conv2d(4, 8, 3, bias=False)
    before = model.weight.detach().clone()
    optimiser = muon_of(model, decay=0.5)
    model.weight.grad = torch.zeros_like(model.weight)
    optimiser.step()
    torch.testing.assert_close(model.weight.detach(), before * (1 - 1e-2 * 0.5))


def test_a_step_that_is_not_finite_leaves_weights_and_momenta_alone():
    model = network()
    optimiser = muon_of(model)
    backward(model, 0)
    optimiser.step()
    weights, state = weights_of(model), copy.deepcopy(optimiser.state_dict()["state"])
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimiser.found_inf = torch.ones(())
    optimiser.step()
    for own, before in zip(model.parameters(), weights, strict=True):
        assert torch.equal(own, before)
    for i, momenta in optimiser.state_dict()["state"].items():
        for name, value in momenta.items():
            assert torch.equal(value, state[i][name]), name
    optimiser.found_inf = torch.zeros(())
    backward(network(), 1)
    for parameter, other in zip(model.parameters(), network().parameters(), strict=True):
        parameter.grad = torch.ones_like(other)
    optimiser.step()
    assert all(not torch.equal(own, before) for own, before in zip(model.parameters(), weights, strict=True))


def test_it_goes_on_from_its_state(tmp_path):
    """Bit for bit, and the state of another optimiser is refused."""
    model = network()
    optimiser = muon_of(model)
    backward(model, 0)
    optimiser.step()
    optimiser.zero_grad()
    saved = copy.deepcopy(
        {
            "model": model.state_dict(),
            "ema": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "step": 1,
        }
    )
    other = network(5)
    resumed = muon_of(other)
    restore(tmp_path / "last.pth", saved, other, copy.deepcopy(other), resumed)
    for net, own in ((model, optimiser), (other, resumed)):
        backward(net, 1)
        own.step()
    for first, second in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second)
    del saved["optimiser"]["state"][0]["momentum_buffer"]
    with pytest.raises(InputError, match="without 'momentum_buffer' of shape"):
        restore(tmp_path / "last.pth", saved, other, copy.deepcopy(other), muon_of(other))


def test_a_step_asks_nothing_of_the_device():
    """On "meta" whoever asks for a value raises; fused AdamW, which is not there on it, is PyTorch's own."""
    model = network()
    optimiser = muon_of(model)
    on_meta = network().to("meta")
    parameters = [on_meta[2].weight, on_meta[3].weight]
    gradients = [torch.empty_like(parameter) for parameter in parameters]
    optimiser.found_inf = torch.zeros((), device="meta")
    with torch.no_grad():
        optimiser._move(optimiser.param_groups[0], parameters, gradients)
    assert all(optimiser.state[parameter]["momentum_buffer"].is_meta for parameter in parameters)
