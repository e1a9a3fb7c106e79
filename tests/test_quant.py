"""models/quant.py: the multi-scale residual quantiser. Golden numbers are checked in test_vqvae.py."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from models.quant import (
    USED_SHARE,
    Phi,
    VectorQuantizer2,
    code_counts,
    nearest_tick,
    perplexity,
    upsample,
    usage,
    usage_of_possible,
)

PATCH_NUMS = (1, 2, 4)
EVERY_V = torch.ones(32, dtype=torch.bool)


def quantizer(**changes) -> VectorQuantizer2:
    torch.manual_seed(0)
    arguments = {"vocab_size": 32, "Cvae": 6, "using_znorm": False, "v_patch_nums": PATCH_NUMS}
    return VectorQuantizer2(**(arguments | changes))


def latent(batch: int = 2, side: int = 4) -> Tensor:
    return torch.randn(batch, 6, side, side, generator=torch.Generator().manual_seed(1))


def fair_share(batch: int) -> Tensor:
    """Hits of a code in each scale if all 32 codes were hit equally often: (S, 1)."""
    return torch.tensor([[batch * pn * pn / 32] for pn in PATCH_NUMS])


def distances(a_NC: Tensor, b_MC: Tensor) -> Tensor:
    return torch.cdist(a_NC, b_MC, compute_mode="donot_use_mm_for_euclid_dist")


# --- numbers ---


@pytest.mark.parametrize("using_znorm", [False, True])
def test_each_token_is_the_code_nearest_to_what_the_coarser_scales_left_over(using_znorm):
    vq = quantizer(using_znorm=using_znorm)
    f_BChw = latent()
    codes_VC = vq.embedding.weight
    for z_NC, idx_Bl in zip(vq.residuals(f_BChw), vq.f_to_idxBl_or_fhat(f_BChw, to_fhat=False), strict=True):
        if using_znorm:
            nearest = F.cosine_similarity(z_NC[:, None], codes_VC[None], dim=-1).argmax(1)
        else:
            nearest = distances(z_NC, codes_VC).argmin(1)
        assert torch.equal(idx_Bl.flatten(), nearest)


def test_residuals_are_the_latent_map_less_the_sum_so_far():
    vq = quantizer()
    f_BChw = latent()
    sums = [torch.zeros_like(f_BChw), *vq.f_to_idxBl_or_fhat(f_BChw, to_fhat=True)]
    for pn, z_NC, f_hat in zip(PATCH_NUMS, vq.residuals(f_BChw), sums, strict=False):
        wanted = F.interpolate(f_BChw - f_hat, size=(pn, pn), mode="area").permute(0, 2, 3, 1).reshape(-1, 6)
        torch.testing.assert_close(z_NC, wanted)


def test_ten_scales_share_four_phi_as_released_checkpoints_do():
    """Two of the ten positions lie midway between two ticks; float64 rounding decides, and must decide so."""
    assert [nearest_tick(s / 9, 4) for s in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("scales", range(2, 15))
def test_one_phi_a_scale_means_the_scales_own(scales):
    assert [nearest_tick(s / (scales - 1), scales) for s in range(scales)] == list(range(scales))


@pytest.mark.parametrize(("share", "count"), [(0, 3), (1, 1), (2, 2), (4, 4)])
def test_as_many_phi_as_asked_for(share, count):
    assert sum(isinstance(m, Phi) for m in quantizer(share_quant_resi=share).modules()) == count


@pytest.mark.parametrize("share", [0, 1, 2])
def test_phi_is_found_by_position_as_in_the_published_package(share):
    phi = quantizer(share_quant_resi=share).quant_resi
    assert [phi[s / 2] for s in range(3)] == [phi.at(s / 2) for s in range(3)]


def test_patch_numbers_may_come_as_an_array():
    assert quantizer(v_patch_nums=np.array(PATCH_NUMS)).v_patch_nums == tuple(PATCH_NUMS)


def test_no_phi_leaves_no_weights_and_unshared_phi_may_be_counted():
    assert not [k for k in quantizer(quant_resi=0.0).state_dict() if "quant_resi" in k]
    assert len(quantizer(share_quant_resi=0, default_qresi_counts=5).quant_resi) == 5


def test_phi_blends_a_map_with_its_convolution():
    phi = Phi(6, -0.25)
    h = latent()
    torch.testing.assert_close(phi(h), 0.75 * h + 0.25 * F.conv2d(h, phi.weight, phi.bias, padding=1))


def test_gradient_passes_straight_through_and_the_loss_averages_running_sums():
    vq = quantizer()
    f_BChw = latent().requires_grad_()
    f_hat, usages, loss = vq(f_BChw)
    assert usages is None
    sums = vq.f_to_idxBl_or_fhat(f_BChw, to_fhat=True)
    torch.testing.assert_close(f_hat, sums[-1])
    torch.testing.assert_close(loss, sum((s - f_BChw).square().mean() for s in sums) * 1.25 / 3)
    weight = torch.randn_like(f_hat)
    (gradient,) = torch.autograd.grad((f_hat * weight).sum(), f_BChw, retain_graph=True)
    torch.testing.assert_close(gradient, weight)
    loss.backward()
    assert vq.embedding.weight.grad.abs().sum() > 0
    wanted = sum(2 * 0.25 * (f_BChw - s) for s in sums).detach() / 3 / f_BChw.numel()
    torch.testing.assert_close(f_BChw.grad, wanted)


def test_all_arithmetic_is_float32_under_autocast():
    """In bfloat16 near codes could not be told apart, and tokens would differ between machines."""
    vq = quantizer()
    f_BChw = latent()
    tokens = vq.f_to_idxBl_or_fhat(f_BChw, to_fhat=False)
    quiet = (vq(f_BChw)[0], vq.residuals(f_BChw)[-1], vq.idxBl_to_var_input(tokens))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loud = (vq(f_BChw)[0], vq.residuals(f_BChw)[-1], vq.idxBl_to_var_input(tokens))
        assert vq(f_BChw.bfloat16())[0].dtype == torch.float32
    for a, b in zip(quiet, loud, strict=True):
        assert b.dtype == torch.float32
        assert torch.equal(a, b)


# --- round trips ---


def test_tokens_give_back_the_quantised_maps():
    vq = quantizer()
    f_BChw = latent()
    tokens = vq.f_to_idxBl_or_fhat(f_BChw, to_fhat=False)
    sums = vq.embed_to_fhat([vq.codes_to_map(t, pn) for t, pn in zip(tokens, PATCH_NUMS, strict=True)])
    for found, wanted in zip(sums, vq.f_to_idxBl_or_fhat(f_BChw, to_fhat=True), strict=True):
        torch.testing.assert_close(found, wanted)


def test_transformer_input_is_the_sum_so_far_at_the_next_size():
    vq = quantizer()
    tokens = vq.f_to_idxBl_or_fhat(latent(), to_fhat=False)
    sums = vq.f_to_idxBl_or_fhat(latent(), to_fhat=True)
    parts = [F.interpolate(s, size=(n, n), mode="area") for s, n in zip(sums, PATCH_NUMS[1:], strict=False)]
    wanted = torch.cat([p.flatten(2).transpose(1, 2) for p in parts], dim=1)
    torch.testing.assert_close(vq.idxBl_to_var_input(tokens), wanted)
    for prog_si, length in [(1, 4), (2, 20), (-1, 20)]:
        vq.prog_si = prog_si
        torch.testing.assert_close(vq.idxBl_to_var_input(tokens), wanted[:, :length])
    vq.prog_si = 0
    assert vq.idxBl_to_var_input(tokens) is None


def test_adding_a_scale_leaves_the_sum_before_it_alone():
    vq = quantizer()
    before = latent()
    kept = before.clone()
    after, _ = vq.get_next_autoregressive_input(0, 3, before, torch.randn(2, 6, 1, 1))
    assert torch.equal(before, kept)
    assert not torch.equal(after, before)


def test_sums_may_grow_with_the_scales_or_stop_early():
    vq = quantizer()
    maps = [torch.randn(2, 6, pn, pn) for pn in PATCH_NUMS]
    assert [s.shape[-1] for s in vq.embed_to_fhat(maps, all_to_max_scale=False)] == [1, 2, 4]
    full = vq.embed_to_fhat(maps)
    assert [s.shape[-1] for s in full] == [4, 4, 4]
    assert torch.equal(vq.embed_to_fhat(maps, last_one=True), full[-1])
    assert torch.equal(vq.embed_to_fhat(maps[:2], last_one=True), full[1])


def test_other_scales_than_the_models_own_even_oblong_ones():
    tokens = quantizer().f_to_idxBl_or_fhat(latent(), to_fhat=False, v_patch_nums=[1, (2, 3), (4, 4)])
    assert [t.shape for t in tokens] == [(2, 1), (2, 6), (2, 16)]


def test_a_single_scale_works():
    """Fault of the published code: si / (S - 1) divided by zero."""
    vq = quantizer(v_patch_nums=(4,))
    f_hat, _, loss = vq(latent())
    assert f_hat.isfinite().all()
    assert loss.isfinite()
    assert vq.idxBl_to_var_input(vq.f_to_idxBl_or_fhat(latent(), to_fhat=False)) is None


# --- usage ---


def test_hits_are_counted_in_training_mode_without_distributed():
    """Fault of the published code: only torch.distributed made it count, so one GPU always read 0."""
    vq = quantizer().train()
    tokens = vq.f_to_idxBl_or_fhat(latent(), to_fhat=False)
    _, usages, _ = vq(latent(), ret_usages=True)
    assert torch.equal(vq.ema_vocab_hit_SV, code_counts(tokens, 32).float())
    assert usages == pytest.approx([100 * len(t.unique()) / 32 for t in tokens])


def test_hits_are_a_moving_average_that_eval_mode_leaves_alone():
    vq = quantizer().train()
    vq(latent())
    first = vq.ema_vocab_hit_SV.clone()
    other = torch.randn(2, 6, 4, 4)
    vq(other)
    second = code_counts(vq.f_to_idxBl_or_fhat(other, to_fhat=False), 32)
    torch.testing.assert_close(vq.ema_vocab_hit_SV, 0.99 * first + 0.01 * second)
    kept = vq.ema_vocab_hit_SV.clone()
    vq.eval()
    vq(latent())
    assert torch.equal(vq.ema_vocab_hit_SV, kept)


def test_hits_of_a_batch_in_pieces_are_those_of_the_whole():
    whole, pieces = quantizer().train(), quantizer().train()
    for seed in range(2):
        f_BChw = torch.randn(4, 6, 4, 4, generator=torch.Generator().manual_seed(seed))
        whole(f_BChw)
        before = pieces.ema_vocab_hit_SV.clone()
        for i, piece in enumerate(f_BChw.chunk(4)):
            assert torch.equal(pieces.ema_vocab_hit_SV, before)
            pieces.completes_step = i == 3
            pieces(piece)
        assert torch.equal(pieces.ema_vocab_hit_SV, whole.ema_vocab_hit_SV)


def test_usage_of_possible_codes_counts_what_so_few_tokens_could_use():
    counts_SV = torch.tensor([[1, 1, 0, 0], [2, 0, 0, 0], [3, 1, 1, 0], [0, 0, 0, 0]])
    assert usage_of_possible(counts_SV).tolist() == [1.0, 0.5, 0.75, 0.0]


def test_usage_margin_follows_the_size_of_each_map():
    """Fault of the published code: all scales were held to what the largest map would get."""
    vq = quantizer()
    for factor, percent in [(1.01, 100.0), (0.99, 0.0)]:
        vq.ema_vocab_hit_SV.copy_((factor * USED_SHARE * fair_share(8)).expand(3, 32))
        assert vq.usage_percent(batch_size=8) == [percent] * 3


def _count_on_two_processes(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    vq = quantizer().train()
    _, usages, _ = vq(latent(4).chunk(2)[rank], ret_usages=True)
    hits_SV = vq.ema_vocab_hit_SV.clone()
    # A little less than the margin for the 4 images of both processes is a lot more than that for 2.
    vq.ema_vocab_hit_SV.copy_((0.99 * USED_SHARE * fair_share(4)).expand(3, 32))
    below = vq.usage_percent(batch_size=2)
    results = {"hits": hits_SV, "usages": torch.tensor(usages), "below": torch.tensor(below)}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_count_what_one_would(tmp_path):
    mp.spawn(_count_on_two_processes, args=(str(tmp_path),), nprocs=2)
    vq = quantizer().train()
    _, usages, _ = vq(latent(4), ret_usages=True)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(found["hits"], vq.ema_vocab_hit_SV)
        assert found["usages"].tolist() == usages
        assert found["below"].tolist() == [0.0] * 3


def test_counts_usage_and_perplexity_of_known_maps():
    maps = [torch.tensor([[0], [0]]), torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]], dtype=torch.int16)]
    counts_SV = code_counts(maps, 8)
    assert counts_SV.tolist() == [[2, 0, 0, 0, 0, 0, 0, 0], [2, 2, 2, 2, 0, 0, 0, 0]]
    assert usage(counts_SV).tolist() == [1 / 8, 1 / 2]
    torch.testing.assert_close(perplexity(counts_SV), torch.tensor([1.0, 4.0]))
    skewed = torch.tensor([[3, 1, 0]])
    assert float(perplexity(skewed)) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )
    assert perplexity(torch.zeros(2, 5)).tolist() == [0.0, 0.0]


# --- starting and reviving codes ---


def test_a_codebook_started_from_residuals_is_nearer_to_them():
    """A latent map far from the random start, as an untrained encoder gives it."""
    vq = quantizer()
    f_BChw = 0.05 * latent(8) + 3
    before = vq(f_BChw)[2]
    vectors_NC = torch.cat(vq.residuals(f_BChw))
    keys = list(vq.state_dict())
    vq.replace_codes_(EVERY_V, vectors_NC, torch.Generator().manual_seed(0))
    assert vq(f_BChw)[2] < 0.5 * before
    assert list(vq.state_dict()) == keys
    codes = vq.embedding.weight.detach()
    assert (distances(codes, vectors_NC).min(dim=1).values < 1e-5).all()
    assert len(codes.unique(dim=0)) == 32
    again = quantizer()
    again.replace_codes_(EVERY_V, vectors_NC, torch.Generator().manual_seed(0))
    assert torch.equal(again.embedding.weight, vq.embedding.weight)


def test_fewer_vectors_than_codes_still_give_different_codes():
    vq = quantizer()
    vectors_NC = torch.randn(5, 6)
    vq.replace_codes_(EVERY_V, vectors_NC, torch.Generator().manual_seed(0))
    codes = vq.embedding.weight.detach()
    assert len(codes.unique(dim=0)) == 32
    near = distances(codes, vectors_NC)
    assert (near.min(dim=1).values < 0.2).all()
    assert near.argmin(dim=1).bincount().min() >= 32 // 5


def test_only_dead_codes_are_replaced():
    vq = quantizer()
    before = vq.embedding.weight.detach().clone()
    dead_V = torch.zeros(32, dtype=torch.bool)
    assert vq.replace_codes_(dead_V, torch.randn(4, 6)) == 0
    dead_V[[3, 7]] = True
    vectors_NC = torch.randn(40, 6)
    assert vq.replace_codes_(dead_V, vectors_NC, torch.Generator().manual_seed(0)) == 2
    after = vq.embedding.weight.detach()
    assert torch.equal(after[~dead_V], before[~dead_V])
    assert (distances(after[dead_V], vectors_NC).min(dim=1).values < 1e-5).all()
    assert vq.embedding.weight.requires_grad


def test_random_start_of_the_codebook():
    vq = quantizer(vocab_size=4096)
    vq.eini(0.3)
    assert float(vq.embedding.weight.detach().std()) == pytest.approx(0.3, rel=0.05)
    vq.eini(-2.0)
    assert float(vq.embedding.weight.detach().abs().max()) == pytest.approx(2 / 4096, rel=0.01)


# --- refusals ---


@pytest.mark.parametrize("patch_nums", [None, (), (1, 0), (1, 2.5)])
def test_patch_numbers_must_be_positive_whole_numbers(patch_nums):
    with pytest.raises(ValueError, match="v_patch_nums"):
        quantizer(v_patch_nums=patch_nums)


def test_shapes_and_codes_that_do_not_fit_are_refused():
    vq = quantizer()
    tokens = vq.f_to_idxBl_or_fhat(latent(), to_fhat=False)
    for call in (vq, vq.residuals, lambda f: vq.f_to_idxBl_or_fhat(f, to_fhat=True)):
        with pytest.raises(ValueError, match="latent map"):
            call(latent(side=8))
    with pytest.raises(ValueError, match="2 token maps, wanted 3"):
        vq.idxBl_to_var_input(tokens[:2])
    for wrong in (torch.full((2, 1), 32), torch.full((2, 1), -1)):
        with pytest.raises(ValueError, match="another VQ-VAE"):
            vq.idxBl_to_var_input([wrong, *tokens[1:]])
    with pytest.raises(ValueError, match="2 x 2 map needs"):
        vq.codes_to_map(tokens[2], 2)
    with pytest.raises(ValueError, match="vectors of shape"):
        vq.replace_codes_(EVERY_V, torch.randn(3, 5))
    with pytest.raises(ValueError, match="mask of shape"):
        vq.replace_codes_(torch.ones(3, dtype=torch.bool), torch.randn(3, 6))


@pytest.mark.parametrize("side", [(1, 1), (2, 2), (3, 5), (13, 13), (16, 16)])
def test_upsampling_is_bicubic_interpolation_forward_and_backward(side):
    maps = [torch.randn(2, 3, *side, requires_grad=True)]
    maps.append(maps[0].detach().clone().requires_grad_())
    weights = torch.randn(2, 3, 16, 16)
    up = upsample(maps[0], (16, 16)), F.interpolate(maps[1], size=(16, 16), mode="bicubic")
    for value in up:
        (value * weights).sum().backward()
    torch.testing.assert_close(*up, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(maps[0].grad, maps[1].grad, rtol=1e-5, atol=1e-4)
