"""Sums and means over processes. What processes do together is tested with the scripts that start them."""

import torch
import torch.distributed as dist

from usvar.distributed import World


def test_the_first_process_decides_in_place(monkeypatch):
    values = torch.zeros(3)
    World(0, 1, torch.device("cpu")).take_from_main(values)  # alone there is nobody to ask
    monkeypatch.setattr(dist, "broadcast", lambda values, source: values.fill_(source + 7))
    World(1, 2, torch.device("cpu")).take_from_main(values)
    assert values.tolist() == [7, 7, 7]


def test_sum_and_mean_leave_their_argument_as_it_is(monkeypatch):
    """They changed it with several processes and not with one, so that every caller had to copy."""
    world = World(0, 2, torch.device("cpu"))
    monkeypatch.setattr(dist, "all_reduce", lambda values: values.mul_(2))  # the other has the same numbers
    values = torch.arange(16.0).view(1, 4, 2, 2).to(memory_format=torch.channels_last)
    before = values.clone()
    total, mean = world.sum(values), world.mean(values)
    assert torch.equal(values, before) and torch.equal(total, 2 * before) and torch.equal(mean, before)
    # Processes may lay out their numbers differently; they are added in one order.
    assert total.is_contiguous()
