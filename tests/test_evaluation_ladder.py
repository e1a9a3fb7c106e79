"""The validity ladder on simple made pictures: spoilt more, every measure that should move moves more.

The full ladder, on real pictures and with a figure, is benchmarks/evaluation_ladder.py: the same code.
"""

import numpy as np
import pytest
import torch
from scipy import ndimage

from benchmarks import evaluation_ladder as ladder
from usvar.errors import InputError
from usvar.evaluation import ImageSet
from usvar.extractor import (
    CLASSIFIER_SHAPE,
    EXTRACTOR_SHAPE,
    make_extractor,
    train_classifier,
    train_self_supervised,
)
from usvar.judging import Judges

CPU = torch.device("cpu")
ORGANS, SIDE = 5, 48
STRENGTHS = {
    "blur, sigma in pixels": (0.7, 3.0),
    "noise, grey levels": (15, 60),
    "JPEG, 100 - quality": (92, 98),
    "wrong organ, share": (0.3, 0.9),
    "dropped classes": (1, 3),
    "collapse, pictures left a class": (10, 1),
    "copies, share": (0.1, 0.5, 0.9),
}


def phantoms(per_class: int, seed: int) -> ImageSet:
    """Speckle on a smooth background with one to three dark cysts, and a bright one in every second organ."""
    rng, label_N = np.random.default_rng(seed), np.repeat(np.arange(ORGANS), per_class)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    grey_NHW = np.empty((len(label_N), SIDE, SIDE))
    for row, label in enumerate(label_N):
        back = ndimage.gaussian_filter(rng.normal(0, 1, (SIDE, SIDE)), 6)
        picture = 90 + 12 * back / back.std() + 8 * label
        for number in range(1 + label % 3):
            centre, radius = rng.uniform(0.2, 0.8, 2), rng.uniform(0.07, 0.12) + 0.015 * label
            cyst = np.hypot(x - centre[0], y - centre[1]) < radius
            picture[cyst] += 60 if label % 2 and number == 0 else -60
        speckle = ndimage.gaussian_filter(rng.normal(0, 1, (SIDE, SIDE)), (0.5, 0.9))
        grey_NHW[row] = picture * (1 + 0.25 * speckle / speckle.std())
    return ImageSet(np.clip(grey_NHW, 1, 255).astype(np.uint8), label_N)


@pytest.fixture(scope="module")
def rungs() -> dict[str, list[dict]]:
    torch.set_num_threads(1)
    train, good, real = phantoms(24, 0), phantoms(24, 1), phantoms(24, 2)
    nets = {
        "US": train_classifier(EXTRACTOR_SHAPE, train.grey_NHW, train.label_N, ORGANS, SIDE, 60, 0, CPU),
        "US-SSL": train_self_supervised(EXTRACTOR_SHAPE, train.grey_NHW, SIDE, 30, 0, CPU),
    }
    extractors = {k: make_extractor(net, train.grey_NHW, SIDE, 64, 0, CPU) for k, net in nets.items()}
    judge = train_classifier(CLASSIFIER_SHAPE, train.grey_NHW, train.label_N, ORGANS, SIDE, 60, 1, CPU)
    config = {"classes": list(range(ORGANS)), "pixels": SIDE, "sha256": dict.fromkeys(nets, "0" * 12)}
    return ladder.climb(good, real, train, Judges(extractors, [judge], config), STRENGTHS)


def test_every_measure_that_should_move_does_in_order(rungs):
    assert ladder.faults_of_the_measures(rungs, ["US", "US-SSL"]) == []


def test_copies_raise_the_copy_measure_and_the_distance_does_not_tell(rungs):
    """At 90% copies the distance is still at the floor: taken alone it would praise them."""
    start, *_, last = rungs[ladder.COPIES]
    assert last["copies in pixels"] >= 0.9 and start["copies in pixels"] <= 0.15
    for name in ("US", "US-SSL"):
        assert last[f"copies in {name}"] >= 0.85
        worst = max(rows[-1][f"{name}-KD"] for rows in rungs.values())
        assert last[f"{name}-KD"] < 0.25 * worst


def test_real_against_real_is_at_the_floor(rungs):
    start = rungs[ladder.COPIES][0]
    for name in ("US", "US-SSL"):
        assert abs(start[f"{name}-KD"]) < 3 * start[f"{name}-KD_spread"]
        assert start[f"{name}-recall"] > 0.7 and start[f"{name}-precision"] > 0.7


def test_a_measure_that_does_not_move_is_found_out(rungs):
    """The judge of the ladder is judged: a flat measure, a reversed one, and copies that are missed."""
    for change in (
        {"blur, sigma in pixels": {"US-KD": 0.0}},
        {"copies, share": {"copies in pixels": 0.05}},
    ):
        ((fault, values),) = change.items()
        spoilt = rungs | {fault: [row | values for row in rungs[fault]]}
        assert any(
            next(iter(values)) in line or "found in pixels" in line
            for line in ladder.faults_of_the_measures(spoilt, ["US", "US-SSL"])
        )
    reversed_rows = rungs | {"noise, grey levels": rungs["noise, grey levels"][::-1]}
    assert ladder.faults_of_the_measures(reversed_rows, ["US", "US-SSL"])


@pytest.mark.parametrize("of_each", [20, 40, 150])
def test_too_few_pictures_once_organs_are_dropped_are_refused_at_once(tmp_path, monkeypatch, of_each):
    """Past fault: 32 in all were enough, and the last of four organs ended in a traceback after training."""
    names = [f"{organ}/{number}.png" for organ in "abcd" for number in range(of_each)]
    lines = ["file,group,organ", *(f"{name},{name},{name[0]}" for name in names)]
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setattr(ladder.images, "image_size", lambda _: SIDE)
    s = ladder.Settings(data_root=tmp_path)
    if of_each < 150:
        with pytest.raises(InputError, match=r"once 3 organs are dropped, .* wanted 32 or more of both"):
            ladder.split_anew(s)
    else:
        (_, good, real), organs, _ = ladder.split_anew(s)
        assert organs == tuple("abcd") and (good.label_N == 3).sum() >= 32 and len(real) > 100


def test_an_unknown_fault_is_refused():
    some = phantoms(2, 0)
    with pytest.raises(ValueError, match="wanted one of blur"):
        ladder.spoil("fog", 1, some, some)
