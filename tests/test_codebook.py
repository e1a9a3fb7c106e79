"""The codebook's life in training: where it starts, how unused codes come back, what fine-tuning keeps."""

import pytest
import torch

import train_vqvae
from models import VQVAE
from models.quant import HIT_RATE, code_counts
from usvar import codebook
from usvar.distributed import World

ALONE = World(0, 1, torch.device("cpu"))


def untrained(vocab_size: int = 256) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(vocab_size, z_channels=8, ch=32, v_patch_nums=(1, 2, 4), test_mode=False).eval()


def codes_in_use(model: VQVAE, image_B3HW: torch.Tensor) -> list[int]:
    counts_SV = code_counts(model.img_to_idxBl(image_B3HW), model.vocab_size)
    return (counts_SV > 0).sum(1).tolist()


def test_the_codebook_starts_where_the_features_are():
    """From N(0, 1) an untrained net uses a handful of codes and one at the coarsest scale."""
    model = untrained()
    image_B3HW = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    image_B3HW *= torch.linspace(0, 1, 16).view(-1, 1, 1, 1)
    before = codes_in_use(model, image_B3HW)
    codebook.start_codebook(model, codebook.latent_maps(model, image_B3HW, ALONE), seed=0)
    after = codes_in_use(model, image_B3HW)
    assert after[0] >= 8 and sum(after) > 2 * sum(before), (before, after)


@pytest.mark.parametrize(("count", "of_scales"), [(8, [3, 3, 2]), (18, [4, 7, 7]), (64, [4, 16, 44])])
def test_codes_start_from_different_vectors_of_every_scale(count, of_scales):
    """Drawn with replacement, 547 of 1,029 from eight images differed; a twin is never looked up."""
    model = untrained()
    features_BChw = torch.randn(4, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    drawn_NC = codebook.looked_up_vectors(model, features_BChw, count, seed=0)
    assert len(drawn_NC.unique(dim=0)) == len(drawn_NC) == count
    found = [
        int((drawn_NC[:, None] == vectors_NC).all(2).any(1).sum())
        for vectors_NC in model.quantize.residuals(features_BChw)
    ]
    assert found == of_scales


def test_unused_codes_are_replaced_everywhere():
    model, averaged = untrained(), untrained()
    optimiser = torch.optim.AdamW(model.parameters())
    image_B3HW = torch.rand(4, 3, 64, 64) * 2 - 1
    rebuilt, _, vq = model.train()(image_B3HW)
    (rebuilt.mean() + vq).backward()
    optimiser.step()
    hits_SV = torch.ones(3, 256)
    hits_SV[:, :100] = 0
    model.quantize.ema_vocab_hit_SV.copy_(hits_SV)
    codes_VC = model.quantize.embedding.weight
    before = codes_VC.detach().clone()
    replaced = codebook.revive_codes(model, averaged, optimiser, image_B3HW, ALONE, below=0.03, seed=0)
    assert replaced == 100
    assert (codes_VC[:100] != before[:100]).any(1).all() and torch.equal(codes_VC[100:], before[100:])
    assert torch.equal(averaged.quantize.embedding.weight[:100], codes_VC[:100])
    assert (optimiser.state[codes_VC]["exp_avg"][:100] == 0).all()
    assert (optimiser.state[codes_VC]["exp_avg"][100:] != 0).any()


def test_a_code_comes_back_as_many_steps_after_its_last_look_up_as_the_settings_say():
    """Settings.revive_below promises about 350 steps to a code that was as frequent as the mean."""
    model = untrained()
    hits_SV = torch.ones(3, model.vocab_size)
    recent_SV = model.quantize.ema_vocab_hit_SV
    recent_SV.copy_(hits_SV)
    hits_SV[:, 0] = 0
    steps, below = 0, train_vqvae.Settings.revive_below
    while steps < 1000 and recent_SV[:, 0].sum() >= below * recent_SV.sum(0).mean():
        recent_SV.lerp_(hits_SV, HIT_RATE)
        steps += 1
    assert steps == pytest.approx(350, abs=5)


def test_of_a_larger_codebook_the_most_used_codes_are_kept():
    source, model = untrained(64), untrained(16)
    source.quantize.ema_vocab_hit_SV.zero_()
    source.quantize.ema_vocab_hit_SV[:, 20:36] = 1
    text, new_V = codebook.take_weights(model, source)
    assert "16 of 64 codes kept, 0 start anew" in text and not new_V.any()
    assert torch.equal(model.quantize.embedding.weight, source.quantize.embedding.weight[20:36])


def test_a_smaller_codebook_is_kept_whole_and_the_rest_starts_anew():
    source, model = untrained(16), untrained(64)
    before_VC = model.quantize.embedding.weight.detach().clone()
    text, new_V = codebook.take_weights(model, source)
    assert "16 of 16 codes kept, 48 start anew" in text and new_V.tolist() == [False] * 16 + [True] * 48
    assert torch.equal(model.quantize.embedding.weight[:16], source.quantize.embedding.weight)
    assert torch.equal(model.quantize.embedding.weight[16:], before_VC[16:])
