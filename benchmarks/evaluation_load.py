"""5,000 generated against 5,000 real images: time and memory of the measures of evaluate_var.py.

    python benchmarks/evaluation_load.py
    python benchmarks/evaluation_load.py --images 500      # a quick look

Pictures and features are made up, because the cost does not depend on what they show; both exist before the
clock starts, as they do once the networks have run. Counted: all distances of the four sets by two
extractors, pooled and for each class, the copy search in pixels, features (mirror images included) and
tokens, variety, and the physics of all sets. Not counted, since they run networks: drawing, decoding,
features, the accuracy score and the likelihood. Fails when it takes over 10 minutes or over 4 GiB.
On a machine that does other work too, give --threads 1: CPU seconds count then, those of one idle core.
"""

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

# A script's own folder is on the path, the repository's root is not: usvar lies there.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.helpers import scale_spans
from usvar import cli, copies, distances, physics
from usvar.evaluation import SETS, ImageSet

MOST_SECONDS, MOST_GIB = 600.0, 4.0
EXTRACTORS = {"US": 64, "US-SSL": 64}
PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


@dataclass(frozen=True)
class Settings:
    """How many pictures, and of which size."""

    # Images of each set: generated, training, test.
    images: int = 5000

    # Side in pixels.
    size: int = 256

    # Classes.
    classes: int = 10

    # Token maps of each training image: itself and its augmented views.
    views: int = 2

    # Threads; 2 is the machine that the limit is meant for.
    threads: int = 2


def made_up(count: int, s: Settings, seed: int) -> ImageSet:
    """Speckled fans with features and tokens, classes in turn."""
    rng, label_N = np.random.default_rng(seed), np.arange(count) % s.classes
    y, x = np.mgrid[: s.size, : s.size] / s.size
    fan_HW = (np.hypot(x - 0.5, y + 0.1) < 1.05) & (np.abs(x - 0.5) < 0.5 * (y + 0.15))
    grey_NHW = rng.integers(20, 200, (count, s.size, s.size), dtype=np.uint8)
    grey_NHW *= fan_HW
    features = {
        name: (rng.normal(0, 1, (count, dims)) + 0.1 * label_N[:, None]).astype(np.float32)
        for name, dims in EXTRACTORS.items()
    }
    length = sum(side * side for side in PATCH_NUMS)
    return ImageSet(grey_NHW, label_N, features, rng.integers(0, 4096, (count, length)).astype(np.uint16))


def main(s: Settings) -> None:
    """Time every part, and fail beyond the limits."""
    torch.set_num_threads(s.threads)
    classes = tuple(f"class {i}" for i in range(s.classes))
    train, test, generated = (made_up(s.images, s, seed) for seed in range(3))
    sets = {
        "generated": generated,
        "real_train": train,
        "reconstructed_test": test,
        "position_prior": generated,
    }
    before_gib = memory_gib()
    # With one thread the time on the CPU is that of the work, whatever else the machine does.
    clock = time.perf_counter if s.threads > 1 else time.process_time
    started = last = clock()

    def lap(name: str) -> None:
        nonlocal last
        now = clock()
        print(f"{name:32s} {now - last:7.1f} s   at most {memory_gib():.2f} GiB", flush=True)
        last = now

    stamps = dict.fromkeys(EXTRACTORS, "made up")
    chosen = distances.equal_counts(sets, s.classes, 0)
    measured = distances.all_distances(chosen, test, classes, stamps, neighbours=3, seed=0, left_out=[])
    assert all("US-KD" in measured[name]["pooled"] for name in SETS)
    lap("distances, 4 sets, 2 extractors")
    search = copies.PixelSearch(train.grey_NHW)
    for found in (generated, test):
        search(found.grey_NHW)
    lap("copies in pixels")
    for name in EXTRACTORS:
        for found in (generated, test):
            copies.nearest_in_features(found.features[name], train.features[name], train.features[name])
    lap("copies in features")
    train_ML = np.tile(train.idx_NL, (s.views, 1))
    for found in (generated, test):
        copies.nearest_in_tokens(found.idx_NL, train_ML, scale_spans(PATCH_NUMS))
    lap("copies in tokens")
    physics.variety({"real_test": test, **sets}, classes, seed=0, left_out=[])
    lap("variety, 5 sets")
    physics.differences_from_test(sets, train, test)
    lap("physics, 5 sets")
    seconds, gib = clock() - started, memory_gib()
    print(
        f"{s.images} against {s.images} images of {s.size} x {s.size}: {seconds:.0f} "
        f"{'s' if s.threads > 1 else 'CPU s'}, at most {gib:.2f} "
        f"GiB, of which {before_gib:.2f} the pictures themselves and the libraries"
    )
    if seconds > MOST_SECONDS or gib > MOST_GIB:
        print(f"too much: wanted {MOST_SECONDS:.0f} s and {MOST_GIB} GiB at most")
        raise SystemExit(1)


def memory_gib() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
