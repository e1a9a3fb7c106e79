"""models/helpers.py: scale geometry, sampling filters, streams of random numbers, stochastic depth."""

import itertools
import math

import pytest
import torch
from golden_rule import load_golden

from models import helpers
from models.helpers import (
    GAMMA,
    DropPath,
    _scramble,
    drop_path,
    filter_top_k_top_p,
    gumbel_noise,
    gumbel_softmax_with_rng,
    head_cross_entropy,
    image_seeds,
    next_scale_mask,
    sample_with_top_k_top_p,
    sample_with_top_k_top_p_,
    scale_boundaries,
    scale_position,
    scale_spans,
    split_scales,
)

PAPER = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def test_boundaries_and_spans_of_the_papers_scales():
    assert scale_boundaries(PAPER) == [0, 1, 5, 14, 30, 55, 91, 155, 255, 424, 680]
    assert scale_spans((1, 2, 3)) == [(0, 1), (1, 5), (5, 14)]


def test_split_scales_is_undone_by_concatenation():
    idx_BL = torch.arange(28).view(2, 14)
    maps = split_scales(idx_BL, (1, 2, 3))
    assert [m.shape[1] for m in maps] == [1, 4, 9]
    assert torch.equal(torch.cat(maps, dim=1), idx_BL)
    with pytest.raises(ValueError, match="found 14 tokens"):
        split_scales(idx_BL, (1, 2))


def test_mask_lets_a_token_see_its_own_scale_and_coarser_ones_only():
    mask_LL = next_scale_mask((1, 2, 3))
    spans = scale_spans((1, 2, 3))
    for (i, rows), (j, columns) in itertools.product(enumerate(spans), repeat=2):
        assert bool(mask_LL[slice(*rows), slice(*columns)].all()) == (j <= i)
        assert bool(mask_LL[slice(*rows), slice(*columns)].any()) == (j <= i)


def test_a_single_scale_has_a_position():
    """Fault of the published code: with one scale, si / (S - 1) divided by zero."""
    assert scale_position(0, 1) == 1.0
    assert [scale_position(s, 3) for s in range(3)] == [0.0, 0.5, 1.0]


def test_image_seeds_do_not_depend_on_how_many_are_drawn():
    assert image_seeds(7, 5)[:2] == image_seeds(7, 2)
    assert len({*image_seeds(7, 100), *image_seeds(8, 100), *image_seeds(7, 100, "class")}) == 300
    assert all(0 <= seed < 2**63 for seed in image_seeds(-1, 20))


@pytest.mark.parametrize(
    "setting", ["topk0_topp0", "topk5_topp0", "topk0_topp0.8", "topk20_topp0.9", "topk1_topp0"]
)
def test_filter_keeps_exactly_what_the_published_filter_keeps(setting):
    golden = load_golden("top_k_top_p")
    top_k, top_p = setting.removeprefix("topk").split("_topp")
    before = golden["logits"].clone()
    assert torch.equal(filter_top_k_top_p(before, int(top_k), float(top_p)), golden[f"masked_{setting}"])
    assert torch.equal(before, golden["logits"]), "the filter must not change its input"
    sample_with_top_k_top_p_(before, int(top_k), float(top_p))
    assert torch.equal(before, golden[f"masked_{setting}"]), "the published call filters in place"


def test_top_p_keeps_the_token_that_crosses_it():
    logits = torch.tensor([[[0.5, 0.3, 0.15, 0.05]]]).log()
    for top_p, kept in [(0.4, 1), (0.6, 2), (0.9, 3), (1.0, 4)]:
        assert int(filter_top_k_top_p(logits, 0, top_p).isfinite().sum()) == kept


def test_top_k_beyond_the_codebook_keeps_all_and_nonsense_is_refused():
    logits = torch.randn(1, 2, 4)
    assert torch.equal(filter_top_k_top_p(logits, 9), logits)
    for top_k, top_p in [(-1, 0.0), (0, -0.1), (0, 1.5)]:
        with pytest.raises(ValueError, match="top_k must be 0 or more"):
            filter_top_k_top_p(logits, top_k, top_p)


def test_the_hash_is_splitmix64():
    """The five numbers that its authors' generator gives after the seed 1234567."""
    states = torch.tensor([1234567]) + GAMMA * torch.arange(1, 6)
    assert [number % 2**64 for number in _scramble(states).tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_noise_belongs_to_image_position_and_code_alone():
    device = torch.device("cpu")
    whole = gumbel_noise([3, -4, 2**70], range(20), 64, device)
    assert whole.dtype == torch.float32
    assert whole.isfinite().all()
    assert torch.equal(gumbel_noise([-4], range(5, 9), 64, device)[0], whole[1, 5:9])
    assert torch.equal(gumbel_noise([3], [0], 16, device)[0, 0], whole[0, 0, :16])
    assert len(whole.flatten().unique()) > 0.999 * whole.numel()


def test_noise_is_gumbel_distributed_and_neighbours_are_unrelated():
    noise = gumbel_noise(range(40), range(50), 500, torch.device("cpu")).double()
    # P(noise <= x) is exp(-exp(-x)); a million numbers know it to 0.0005.
    for x in (-1.5, 0.0, 1.0, 3.0, 6.0):
        assert float((noise <= x).double().mean()) == pytest.approx(math.exp(-math.exp(-x)), abs=2e-3)
    uniform = (-(-noise).exp()).exp() - 0.5
    for axis in range(3):
        pairs = uniform.narrow(axis, 1, uniform.shape[axis] - 1) * uniform.narrow(
            axis, 0, uniform.shape[axis] - 1
        )
        assert abs(float(pairs.mean()) * 12) < 4e-3


def test_each_token_is_drawn_as_often_as_it_should():
    torch.manual_seed(0)
    logits_V = torch.randn(12)
    noise = gumbel_noise(range(200), range(1000), 12, torch.device("cpu"))
    drawn = sample_with_top_k_top_p(logits_V.expand(200, 1000, 12), noise)
    share = torch.bincount(drawn.flatten(), minlength=12) / 200_000
    torch.testing.assert_close(share, logits_V.softmax(0), atol=4e-3, rtol=0)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.0), (7, 0.0), (0, 0.9), (7, 0.8)])
def test_noise_and_tokens_do_not_depend_on_how_many_positions_are_worked_on_at_once(
    top_k, top_p, monkeypatch
):
    logits_BlV = torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    found = []
    for count in (1, 4, 100):
        monkeypatch.setattr(helpers, "_positions_at_once", lambda *_, count=count: count)
        noise = gumbel_noise(range(3), range(5), 40, torch.device("cpu"))
        found.append((noise, sample_with_top_k_top_p(logits_BlV, noise, top_k, top_p)))
    for noise, drawn in found:
        assert torch.equal(noise, found[0][0]) and torch.equal(drawn, found[0][1])
    whole = filter_top_k_top_p(logits_BlV, top_k, top_p) + found[0][0]
    assert torch.equal(found[0][1], whole.argmax(dim=-1))


def test_tokens_that_were_ruled_out_are_never_drawn():
    torch.manual_seed(0)
    logits_BlV = torch.randn(64, 50, 40)
    noise = gumbel_noise(range(64), range(50), 40, torch.device("cpu"))
    drawn = sample_with_top_k_top_p(logits_BlV, noise, top_k=7, top_p=0.8)
    assert filter_top_k_top_p(logits_BlV, 7, 0.8).isfinite().gather(-1, drawn[..., None]).all()
    assert torch.equal(sample_with_top_k_top_p(logits_BlV, noise, top_k=1), logits_BlV.argmax(-1))


def test_rounding_of_the_logits_changes_next_to_no_token():
    """Other batch sizes round otherwise. Inverting the cumulative sum changed 3 tokens in 100 here."""
    torch.manual_seed(0)
    logits_BlV = 2 * torch.randn(8, 500, 1024)
    noise = gumbel_noise(range(8), range(500), 1024, torch.device("cpu"))
    rounded = logits_BlV + 1e-3 * torch.randn_like(logits_BlV)
    same = sample_with_top_k_top_p(logits_BlV, noise) == sample_with_top_k_top_p(rounded, noise)
    assert float((~same).float().mean()) < 5e-3


def test_published_call_draws_the_asked_number_from_its_stream():
    logits_BlV = torch.zeros(2, 3, 6)
    first, again = (
        sample_with_top_k_top_p_(logits_BlV.clone(), rng=torch.Generator().manual_seed(3), num_samples=4)
        for _ in range(2)
    )
    assert first.shape == (2, 3, 4)
    assert torch.equal(first, again)
    without_repeats = sample_with_top_k_top_p_(logits_BlV, num_samples=-6)
    assert torch.equal(without_repeats.sort(-1).values, torch.arange(6).expand(2, 3, 6))


def test_gumbel_softmax_prefers_as_the_logits_do_and_obeys_its_stream():
    logits_V = torch.tensor([2.0, 1.0, 0.0, -torch.inf])
    rng = torch.Generator().manual_seed(0)
    soft = gumbel_softmax_with_rng(logits_V.expand(100_000, 4), tau=0.5, rng=rng)
    torch.testing.assert_close(soft.sum(-1), torch.ones(100_000))
    share = soft.argmax(-1).bincount(minlength=4) / 100_000
    torch.testing.assert_close(share, logits_V.softmax(0), atol=6e-3, rtol=0)
    a, b = (gumbel_softmax_with_rng(logits_V, rng=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a, b)


def test_hard_gumbel_softmax_is_one_hot_with_a_gradient():
    logits = torch.randn(5, 8, requires_grad=True)
    hard = gumbel_softmax_with_rng(logits, hard=True)
    torch.testing.assert_close(hard.detach().sort(-1).values[:, -2:], torch.tensor([[0.0, 1.0]]).expand(5, 2))
    (hard * torch.randn(8)).sum().backward()
    assert logits.grad.abs().sum() > 0


def test_drop_path_zeroes_whole_images_keeps_the_mean_and_rests_in_eval_mode():
    torch.manual_seed(0)
    x = torch.ones(20_000, 3, 2)
    y = drop_path(x, 0.25, training=True)
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    torch.testing.assert_close(y.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert float(y.mean()) == pytest.approx(1.0, abs=0.02)
    assert set(drop_path(x, 0.25, training=True, scale_by_keep=False).unique().tolist()) == {0.0, 1.0}
    dropped_B = torch.arange(20_000) < 5_000
    given = drop_path(x, 0.25, training=True, dropped_B=dropped_B)
    assert torch.equal(given[:, 0, 0], torch.where(dropped_B, 0.0, 1 / 0.75))
    module = DropPath(0.25)
    assert torch.equal(module(x, dropped_B), given)
    assert not torch.equal(module.train()(x), x)
    assert torch.equal(module.eval()(x), x)
    assert torch.equal(drop_path(x, 1.0, training=True), torch.zeros_like(x))


def filtered_by_sorting(logits_BlV: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """The plain way: top-p over the whole sorted codebook."""
    if 0 < top_k < logits_BlV.shape[-1]:
        least_kept = logits_BlV.topk(top_k, dim=-1).values[..., -1:]
        logits_BlV = logits_BlV.masked_fill(logits_BlV < least_kept, -torch.inf)
    if top_p > 0:
        ordered, order = logits_BlV.sort(dim=-1, descending=True, stable=True)
        probability = ordered.softmax(dim=-1)
        before = probability.cumsum(dim=-1) - probability
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
        logits_BlV = logits_BlV.masked_fill(drop, -torch.inf)
    return logits_BlV


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # float64 goes the way of a GPU
@pytest.mark.parametrize("grid", [0, 1, 3])  # logits rounded to 1 / grid: many ties
def test_top_p_on_the_k_values_keeps_what_top_p_on_all_values_keeps(grid, dtype):
    stream = torch.Generator().manual_seed(grid)
    logits = 2 * torch.randn(20, 25, 64, generator=stream, dtype=dtype)
    logits = (logits * grid).round() / grid if grid else logits
    # None of these is a sum of few probabilities, where rounding would decide.
    for top_k, top_p in itertools.product((0, 1, 3, 20, 63, 64, 100), (0.0, 0.103, 0.51, 0.907, 0.951)):
        found = filter_top_k_top_p(logits, top_k, top_p)
        assert torch.equal(found, filtered_by_sorting(logits, top_k, top_p)), (top_k, top_p)


def test_ties_at_the_last_of_the_k_are_kept_by_top_k_and_in_order_by_top_p():
    logits = torch.tensor([3.0, 1, 1, 1, 1, 0])
    assert filter_top_k_top_p(logits, 2).isfinite().tolist() == [True] * 5 + [False]
    # exp(3) / (exp(3) + 4 e) is 0.649; each tie has 0.088.
    assert filter_top_k_top_p(logits, 2, 0.8).isfinite().tolist() == [True] * 3 + [False] * 3
    assert filter_top_k_top_p(logits, 2, 0.9).isfinite().tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [0, 1, 5, 21, 100])
def test_the_loss_in_chunks_is_the_loss(chunk, label_smoothing):
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 32)
    target_BL, weight_BL = torch.randint(32, (3, 7)), torch.rand(3, 7)
    results = []
    for size in (0, chunk):
        h_BLD = torch.linspace(-2, 2, 3 * 7 * 8).view(3, 7, 8).requires_grad_()
        loss_BL, nats_BL, correct_BL = head_cross_entropy(head, h_BLD, target_BL, label_smoothing, size)
        assert not nats_BL.requires_grad
        head.zero_grad()
        (weight_BL * loss_BL).sum().backward()
        gradients = [h_BLD.grad, head.weight.grad.clone(), head.bias.grad.clone()]
        results.append([loss_BL.detach(), nats_BL, correct_BL, *gradients])
    logits_BLV = head(h_BLD).detach()
    for found_BL, smoothing in zip(results[0], (label_smoothing, 0.0), strict=False):
        plain = torch.nn.functional.cross_entropy(
            logits_BLV.flatten(0, 1), target_BL.flatten(), reduction="none", label_smoothing=smoothing
        )
        torch.testing.assert_close(found_BL, plain.view(3, 7))
    assert torch.equal(results[0][2], logits_BLV.argmax(-1) == target_BL) and results[0][2].any()
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole)


def test_the_loss_in_chunks_holds_the_logits_of_a_chunk_only():
    """Counted by what autograd keeps, in the forward pass, of tensors as wide as the codebook."""
    head, h_BLD = torch.nn.Linear(8, 500), torch.randn(2, 50, 8, requires_grad=True)
    target_BL = torch.zeros(2, 50, dtype=torch.long)
    kept = {}
    for chunk in (0, 10):
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel() if tensor.shape[-1:] == (500,) and tensor.shape != (500,) else 0)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss_BL, _, _ = head_cross_entropy(head, h_BLD, target_BL, chunk=chunk)
        kept[chunk] = sum(sizes)
        loss_BL.sum().backward()
    assert kept[0] >= 100 * 500 and kept[10] == 0


def test_a_loss_that_cannot_be_is_refused():
    head, h_BLD = torch.nn.Linear(8, 32), torch.zeros(3, 7, 8)
    for target_BL, chunk in [(torch.zeros(3, 6, dtype=torch.long), 0), (torch.zeros(3, 7).long(), -1)]:
        with pytest.raises(ValueError, match="wanted chunk of 0 or more and targets of shape"):
            head_cross_entropy(head, h_BLD, target_BL, chunk=chunk)
