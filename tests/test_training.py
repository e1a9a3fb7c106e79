"""Rates, batches, seeds, means to log: all that a resumed run must meet again."""

import itertools
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from usvar import training
from usvar.distributed import World
from usvar.errors import InputError

MADE = torch.tensor(True)
ALONE = World(0, 1, torch.device("cpu"))


def test_the_rate_rises_then_falls_to_its_final_share():
    rates = [training.learning_rate(step, 1.0, 10, 100, 0.1) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and max(rates) == 1.0
    assert all(a < b for a, b in itertools.pairwise(rates[:10]))
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert abs(rates[99] - 0.1) < 1e-9 < rates[98] - rates[99]


def test_seeds_differ_by_stream_step_and_process():
    seeds = {
        training.step_seed(seed, stream, step, rank)
        for seed in range(2)
        for stream in range(3)
        for step in range(5)
        for rank in range(2)
    }
    assert len(seeds) == 60
    assert training.step_seed(1, 2, 3) == training.step_seed(1, 2, 3)


@pytest.mark.parametrize(("balance", "wanted"), [(0.0, [0.9, 0.1]), (1.0, [0.5, 0.5]), (0.5, [0.75, 0.25])])
def test_the_sampler_draws_classes_as_asked(balance, wanted):
    label_N = np.array([0] * 90 + [1] * 10)
    np.random.default_rng(0).shuffle(label_N)
    sampler = training.BalancedSampler(label_N, balance, seed=0)
    drawn = sampler.batch(step=0, size=20000)
    share = np.bincount(label_N[drawn], minlength=2) / 20000
    np.testing.assert_allclose(share, wanted, atol=0.01)
    assert len(np.unique(drawn)) == 100  # every image has its turn


def test_a_batch_is_a_function_of_seed_and_step():
    label_N = np.arange(50) % 3
    first, second = (training.BalancedSampler(label_N, 0.5, seed=1) for _ in range(2))
    assert np.array_equal(first.batch(7, 8), second.batch(7, 8))
    assert not np.array_equal(first.batch(7, 8), first.batch(8, 8))
    assert not np.array_equal(first.batch(7, 8), training.BalancedSampler(label_N, 0.5, seed=2).batch(7, 8))


@pytest.mark.parametrize(("balance", "wanted"), [(0.0, [0.9, 0.1]), (0.5, [0.75, 0.25]), (1.0, [0.5, 0.5])])
def test_data_sets_are_balanced_within_their_class(balance, wanted):
    """Class 0 has 90 images of data set 0 and 10 of 2, mixed; class 1 has 50 of data set 1 alone."""
    label_N = np.array([0] * 100 + [1] * 50)
    data_set_N = np.array(([2] + [0] * 9) * 10 + [1] * 50)
    sampler = training.BalancedSampler(label_N, 1.0, 0, data_set_N, balance)
    drawn = sampler.batch(step=0, size=20000)
    share = np.bincount(data_set_N[drawn], minlength=3) / 20000
    np.testing.assert_allclose(share, [wanted[0] / 2, 0.5, wanted[1] / 2], atol=0.01)
    assert len(np.unique(drawn)) == 150  # every image has its turn
    if balance == 0:
        assert np.array_equal(training.BalancedSampler(label_N, 1.0, 0).batch(0, 20000), drawn)


def test_a_class_without_images_is_never_drawn():
    sampler = training.BalancedSampler(np.array([0, 0, 2]), 1.0, seed=0)
    assert set(sampler.batch(0, 100).tolist()) == {0, 1, 2}


def test_averaged_weights_move_toward_the_model_s():
    model, averaged = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    torch.nn.init.constant_(model.weight, 3.0)
    model.running_mean.fill_(5.0)
    training.ema_update(averaged, model, step=10**6, decay=0.75)
    torch.testing.assert_close(averaged.weight.data, torch.full((2,), 1.5))
    assert (averaged.running_mean == 5).all()
    training.ema_update(averaged, model, step=0, decay=0.75)  # early: decay 1/10
    torch.testing.assert_close(averaged.weight.data, torch.full((2,), 1.5 * 0.1 + 3 * 0.9))


def test_only_kernels_decay():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2), torch.nn.Embedding(3, 2))
    none, decayed, kept = training.decay_groups(model, 0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 2)] and decayed["weight_decay"] == 0.1
    assert len(kept["params"]) == 4 and kept["weight_decay"] == 0 and not none["params"]


def test_muon_trains_the_kernels_of_its_part():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 4), torch.nn.Embedding(3, 2))
    by_muon, decayed, kept = training.decay_groups(model, 0.1, muon_rate=2.0, muon_part=model[1])
    assert [tuple(p.shape) for p in by_muon["params"]] == [(4, 3)]
    assert by_muon["muon_rate"] == 2 and by_muon["weight_decay"] == 0.1
    assert [tuple(p.shape) for p in decayed["params"]] == [(3, 2)] and len(kept["params"]) == 3
    by_muon, decayed, _ = training.decay_groups(model, 0.1, muon_rate=2.0)
    assert len(by_muon["params"]) == 2 and not decayed["params"]


def test_the_seconds_of_a_step_leave_pauses_out(monkeypatch):
    """Validation and figures between two log lines are no training: the share of waiting would look small."""
    clock = iter([0.0, 2.0, 9.0, 4.0 + 7.0, 0.0])
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(clock))
    meter = training.Meter()
    with meter.paused():
        meter.add(MADE, loss=torch.ones(()))
    _, seconds = meter.read(World(0, 1, torch.device("cpu")))
    assert seconds == 4.0


def test_set_up_is_no_part_of_the_first_step(monkeypatch):
    """Loading a checkpoint and the start of the codebook once counted as time of the first steps."""
    monkeypatch.setattr(training.time, "perf_counter", iter([0.0, 100.0, 103.0, 103.0]).__next__)
    meter = training.Meter()
    meter.start()
    meter.add(MADE, loss=torch.ones(()))
    assert meter.read(ALONE)[1] == 3.0


def test_a_process_that_prefetched_tensors_ends_in_peace():
    """A daemon that dropped the last batch while the interpreter ended aborted it: half of such runs."""
    code = """
import torch
from usvar import training
def main():
    load = lambda step: [torch.zeros(9) for _ in range(200_000)]
    for step, batch, waited in training.prefetch(load, range(2), 60, "x"):
        pass
main()
"""
    for _ in range(4):
        assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


def test_prefetch_gives_every_step_in_order():
    loaded = training.prefetch(lambda step: step * 10, range(3, 7), 60, "x.npy")
    assert [(step, batch) for step, batch, waited in loaded] == [(3, 30), (4, 40), (5, 50), (6, 60)]
    assert list(training.prefetch(lambda step: step, range(5, 5), 60, "x.npy")) == []


def test_an_error_of_the_loader_reaches_the_loop():
    def load(step):
        raise InputError("bad.png cannot be read")

    with pytest.raises(InputError, match=r"bad\.png"):
        next(training.prefetch(load, range(3), 60, "x.npy"))


def test_the_meter_goes_on_from_its_state():
    """A run stopped between two log lines logs the same means as one that was not."""
    straight, first = training.Meter(), training.Meter()
    for value in (1.0, 2.0, 6.0):
        straight.add(MADE, loss=torch.tensor(value), scales=torch.tensor([value, 0.0]))
    first.add(MADE, loss=torch.tensor(1.0), scales=torch.tensor([1.0, 0.0]))
    second = training.Meter()
    second.load_state_dict(first.state_dict(ALONE), ALONE)
    for value in (2.0, 6.0):
        second.add(MADE, loss=torch.tensor(value), scales=torch.tensor([value, 0.0]))
    assert second.read(ALONE)[0] == straight.read(ALONE)[0] == {"loss": 3.0, "scales": [3.0, 0.0]}
    assert second.steps == 0


def test_a_number_that_begins_within_an_interval_is_a_mean_of_its_own_steps():
    """The adversarial loss was divided by all steps of the interval that it began in: too small by half."""
    first, second = training.Meter(), training.Meter()
    first.add(MADE, loss=torch.tensor(1.0))
    second.load_state_dict(first.state_dict(ALONE), ALONE)
    for meter in (first, second):
        meter.add(MADE, loss=torch.tensor(3.0), adversarial=torch.tensor(8.0))
        assert meter.read(ALONE)[0] == {"loss": 2.0, "adversarial": 8.0}
    second.load_state_dict({"sums": {"loss": torch.tensor([4.0])}, "steps": 2}, ALONE)  # of before
    assert second.read(ALONE)[0] == {"loss": 2.0}


def test_the_meter_leaves_out_steps_that_were_skipped():
    meter, skipped = training.Meter(), torch.tensor(False)
    meter.add(skipped, loss=torch.tensor(float("nan")))
    assert meter.read(ALONE)[0] == {}
    for is_taken, value in ((MADE, 1.0), (skipped, float("inf")), (MADE, 5.0)):
        meter.add(is_taken, loss=torch.tensor(value))
    assert meter.state_dict(ALONE)["steps"] == 2 and meter.read(ALONE)[0] == {"loss": 3.0}


@pytest.mark.parametrize(("processes", "accumulate", "wanted"), [(1, 1, 32), (4, 2, 4), (4, 16, 1)])
def test_validation_takes_no_more_images_at_once_than_training(processes, accumulate, wanted):
    """Each process took the whole batch at once: with eight GPUs eight times what it trains on."""
    settings = types.SimpleNamespace(batch_size=32, accumulate=accumulate)
    world = World(0, processes, torch.device("cpu"))
    assert training.validation_batch(settings, world) == wanted


def test_a_batch_must_be_divisible_by_the_processes():
    assert World(1, 2, torch.device("cpu")).shard(6) == slice(3, 6)
    with pytest.raises(InputError, match="is not divisible by 4 processes"):
        World(0, 4, torch.device("cpu")).shard(6)


@pytest.mark.parametrize(
    ("able", "wanted"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, torch.bfloat16),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True}, torch.float32),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, torch.bfloat16),
        ({"cpu_name": "Intel Xeon"}, torch.float32),
        ({}, torch.float32),  # another architecture
    ],
)
def test_auto_precision_is_the_faster_one(monkeypatch, able, wanted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert training.amp_dtype(torch.device("cpu"), "auto") == wanted


def test_auto_precision_takes_no_emulated_bf16(monkeypatch):
    """A GPU before Ampere only emulates it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert training.amp_dtype(torch.device("cuda"), "auto") == torch.float32


def test_precision_words():
    assert training.amp_dtype(torch.device("cpu"), "float32") == torch.float32
    assert training.amp_dtype(torch.device("cpu"), "bfloat16") == torch.bfloat16


def test_what_is_due_and_after_the_last_step_all():
    s = types.SimpleNamespace(log_every=2, eval_every=3, save_every=4, steps=7)
    assert training.due(1, s) == (False, False, False)
    assert training.due(4, s) == (True, False, True)
    assert training.due(7, s) == (True, True, True)
