"""Sums and means over processes, and who joins them. What they do together is tested with their scripts."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import edit_var
import sample_var
import sample_vqvae
import sweep_var
from usvar.distributed import World, choose_device
from usvar.errors import InputError

NONE = Path("nowhere")


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


@pytest.mark.parametrize(
    ("script", "more"),
    [
        (sample_var, {"var": NONE, "tokens_dir": NONE}),
        (sweep_var, {"var": NONE, "tokens_dir": NONE, "data_root": NONE}),
        (edit_var, {"var": NONE, "image": NONE, "class_name": "Heart", "box": (0, 0, 1, 1)}),
        (sample_vqvae, {"data_root": NONE}),
    ],
)
def test_a_script_of_one_process_joins_no_group(script, more, monkeypatch):
    """Past fault: under torchrun it joined one, and never left it."""

    def join(*_, **__):
        raise AssertionError("it joined")

    monkeypatch.setattr(dist, "init_process_group", join)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"nowhere.* is missing"):
        script.main(script.Settings(vqvae=NONE, device="cpu", **more))


def test_a_device_that_is_not_here_is_refused():
    assert choose_device("cpu") == torch.device("cpu")
    for device in ("gpu", "meta"):
        with pytest.raises(InputError, match=f"--device {device} .*wanted auto, cpu or cuda"):
            choose_device(device)


FAULTS = """
import resource, sys, torch
from usvar import distributed

def work():
    for _ in range(10):
        torch.ones(10_000_000)  # 40 MB, 9,766 pages

if sys.argv[1] == "keep":
    distributed.choose_device("cpu")
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is asked to keep memory")
def test_memory_freed_on_a_cpu_is_kept_for_the_next_batch():
    """In processes of their own: what malloc is told holds for the whole process."""
    root = Path(__file__).parent.parent
    given_back, kept = (
        int(subprocess.check_output([sys.executable, "-c", FAULTS, word], cwd=root))
        for word in ("give back", "keep")
    )
    assert kept < 0.1 * given_back
