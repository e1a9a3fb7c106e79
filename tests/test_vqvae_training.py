"""benchmarks/vqvae_training.py: its ways give the same numbers, it knows waiting from work, one tiny run."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import vqvae_training
from benchmarks.vqvae_training import DATA_WAYS, Feed, Settings, Step
from models import VQVAE
from usvar import images
from usvar.distributed import World
from usvar.errors import InputError

SCRIPT = Path(vqvae_training.__file__)
WORLD = World(0, 1, torch.device("cpu"))
TINY = Settings(ch=32, vocab_size=32, patch_nums=(1, 2), batch_size=2, steps=2, device="cpu")


@pytest.fixture(scope="module")
def start() -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(TINY.vocab_size, 16, TINY.ch, v_patch_nums=TINY.patch_nums, test_mode=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files, and the same decoded."""
    folder = tmp_path_factory.mktemp("pictures")
    files = vqvae_training.make_pictures(folder, 32, 8)
    return files, images.decoded(files, 32, folder / "cache")


def test_a_tiny_run_counts_images_and_waiting(tmp_path):
    """In a process of its own, for what malloc is told holds for the whole of it."""
    command = [sys.executable, SCRIPT, "--out-dir", tmp_path, "--rows", "batch in 2 pieces", "read ahead"]
    command += ["--ch", "32", "--vocab-size", "32", "--patch-nums", "1", "2", "--batch-size", "2"]
    command += ["--steps", "1", "--repeats", "1", "--adversarial", "True", "--device", "cpu"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "vqvae_training.json").read_text())
    network, data = (found["rows"][name] for name in ("batch in 2 pieces", "read ahead"))
    for row, count in ((network, 2), (data, 2)):
        for way in (row["slow"], row["fast"]):
            assert way["images_per_s"] == pytest.approx(count / way["wall_s"]) and way["peak_mb"] > 0
        assert row["loss_error"] <= row["loss_bound"] and row["gradient_error"] < 0.03
    assert network["slow"]["waiting_share"] is None and 0 < data["slow"]["waiting_share"] < 1
    assert found["lasting_mb"] > 12 and all(name in done.stdout for name in found["rows"])


def test_every_way_of_the_network_gives_the_same_loss_and_gradient(start):
    """bfloat16 too, which a run leaves out on processors that only emulate it."""
    ways = vqvae_training.network_ways(TINY, WORLD.device) | {"bfloat16": {"precision": "bfloat16"}}
    steps = {name: Step(TINY, start, WORLD, **way) for name, way in ways.items()}
    assert steps["bfloat16"].dtype == torch.bfloat16
    image_B3HW = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    _, equal = vqvae_training.network_pairs(Step(TINY, start, WORLD), steps, image_B3HW)
    assert set(equal) == set(ways)
    assert equal["bfloat16"]["loss_error"] > 0 and equal["bfloat16"]["gradient_error"] > 0
    again = equal["activations made again"]
    assert again["loss_error"] == again["gradient_error"] == 0


def test_a_way_that_changes_the_numbers_ends_the_benchmark():
    gradient = torch.ones(4).double()
    for loss, other in ((1.01, gradient), (1.0, 1.1 * gradient), (float("nan"), gradient)):
        with pytest.raises(SystemExit, match="FAILED: other changes the loss"):
            vqvae_training.check_equal("other", (1.0, gradient), (loss, other), torch.float32)


def test_every_way_of_the_data_gives_the_same_images(start, pictures):
    step = Step(TINY, start, WORLD)
    feeds = [Feed(step, *pictures, **way) for both in DATA_WAYS.values() for way in both]
    for number in (0, 1):
        wanted, *others = (feed.to_device(*feed.load(number)) for feed in feeds)
        assert wanted.shape == (2, 3, 32, 32) and -1 <= wanted.min() < -0.5 < 0.5 < wanted.max() <= 1
        assert all(torch.allclose(wanted, other, atol=1e-5) for other in others)


def test_waiting_is_what_is_not_read_during_the_step_before(pictures):
    class SlowFeed(Feed):
        def load(self, number: int) -> tuple[torch.Tensor, ...]:
            time.sleep(0.2)
            return super().load(number)

    step = SimpleNamespace(world=WORLD, settings=SimpleNamespace(batch_size=2), run=lambda _: time.sleep(0.6))
    shares = {}
    for ahead in (False, True):
        feed = SlowFeed(step, *pictures, read_ahead=ahead)
        feed.run(1)
        feed.run(2)
        shares[ahead] = feed.waiting_shares[1]
    assert shares[True] < 0.1 < shares[False] < 0.6


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"patch_nums": (2, 1)}, "patch numbers"),
        ({"patch_nums": ()}, "patch numbers"),
        ({"ch": 16}, "--ch 16"),
        ({"accumulate": 3}, "--batch-size 2"),
        ({"steps": 0}, "--steps 0"),
        ({"rows": ("no such",)}, "--rows 'no such'"),
    ],
)
def test_wrong_settings_are_refused(changes, flag):
    with pytest.raises(InputError, match=flag):
        vqvae_training.main(Settings(**vars(TINY) | changes))
