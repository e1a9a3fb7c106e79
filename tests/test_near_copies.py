"""Planted copies are found, look-alikes are not joined, and the search is complete and cheap."""

import base64
import dataclasses
import json
import time
from itertools import combinations

import numpy as np
import pytest
from scipy import ndimage

from benchmarks.preparation import PLANTS, plant
from data_preprocessing import near_copies
from data_preprocessing.crop import cut, find_frame
from data_preprocessing.near_copies import MIRROR_BITS, NEAR_BITS, Signature, Smalls, find_copies, signature

HEIGHT, WIDTH = 180, 220


def scan(number: int) -> np.ndarray:
    """A fan of speckled tissue on a black screen: the same outline for all, another content for each."""
    stream = np.random.default_rng(number)
    tissue_HW = ndimage.gaussian_filter(stream.normal(size=(HEIGHT, WIDTH)), 9)
    tissue_HW = 100 + tissue_HW * (45 / tissue_HW.std())
    speckle_HW = ndimage.gaussian_filter(stream.normal(size=(HEIGHT, WIDTH)), 0.8) * 25
    y, x = np.mgrid[:HEIGHT, :WIDTH] - np.array([-20, WIDTH / 2 - 0.5])[:, None, None]
    fan_HW = (np.abs(np.arctan2(x, y)) < 0.55) & (np.hypot(x, y) > 35) & (np.hypot(x, y) < 190)
    return np.where(fan_HW, np.clip(tissue_HW + speckle_HW, 8, 255), 0).astype(np.uint8)


def seen(grey_HW: np.ndarray) -> Signature:
    """The signature of what is cropped from a screen."""
    return signature(cut(grey_HW, find_frame(grey_HW, "auto")))


@pytest.fixture(scope="module")
def originals() -> tuple[list[np.ndarray], list[Signature]]:
    pictures = [scan(number) for number in range(30)]
    return pictures, [seen(grey_HW) for grey_HW in pictures]


def search(signatures: list[Signature]) -> near_copies.Copies:
    """Without known patients, in one class."""
    each = np.arange(len(signatures))
    return find_copies(*columns(signatures), each, each, np.zeros(len(each), int))


def columns(signatures: list[Signature]) -> tuple[np.ndarray, Smalls]:
    """The hashes in memory and the small versions on the disk."""
    smalls = Smalls()
    for s in signatures:
        smalls.append(s.small)
    return np.array([s.hash for s in signatures], np.uint64), smalls


@pytest.mark.parametrize("kinds", PLANTS, ids=" + ".join)
def test_planted_copies_are_found(originals, kinds):
    """Each kind and each two of them. 98% are wanted of real pictures; of these none is hard."""
    pictures, signatures = originals
    stream = np.random.default_rng(1)
    planted = [seen(plant(grey_HW, tuple(stream.permutation(kinds)), stream)) for grey_HW in pictures]
    found = search(signatures + planted)
    pairs = set(map(tuple, found.pair_P2.tolist()))
    wanted = {(n, n + len(pictures)) for n in range(len(pictures))}
    assert pairs == wanted
    assert (found.mirrored_P == ("mirrored" in kinds)).all()


def test_two_fans_of_one_machine_are_not_joined(originals):
    """A hash of the whole crop sees the same outline everywhere."""
    assert len(search(originals[1]).pair_P2) == 0


def test_a_near_hash_alone_joins_nothing(originals):
    alike = [dataclasses.replace(s, hash=originals[1][0].hash) for s in originals[1]]
    found = search(alike)
    assert found.candidates == found.examined == 30 * 29 // 2 and len(found.pair_P2) == 0


def test_a_negative_is_no_copy(originals):
    s = originals[1][0]
    negative = -np.frombuffer(base64.b64decode(s.small), np.int8)
    two = [s, dataclasses.replace(s, small=base64.b64encode(negative.tobytes()).decode())]
    assert search(two).candidates == 1 and len(search(two).pair_P2) == 0


@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (-1, 1)])
def test_a_shift_by_one_pixel_of_the_small_version_is_aligned(originals, shift):
    """A crop of 4 pixels moves a picture of 128 so far."""
    for s in originals[1][:10]:
        small_HW = np.frombuffer(base64.b64decode(s.small), np.int8).reshape(
            near_copies.SIDE, near_copies.SIDE
        )
        moved_HW = np.roll(small_HW, shift, (0, 1))
        plain = np.corrcoef(small_HW.ravel(), moved_HW.ravel())[0, 1]
        basis_BK = near_copies._alignment_basis(small_HW.ravel())
        aligned = near_copies._correlation(basis_BK, moved_HW.reshape(1, -1), np.array([0]))[0]
        # Well over a third of what is missing to 1 comes back.
        assert plain < 0.92 and 1 - aligned < (1 - plain) / 1.6


@pytest.mark.parametrize("margin", [((0, 0), (0, 60)), ((30, 0), (25, 0)), ((0, 40), (0, 0))])
def test_another_fit_of_the_scan_area_is_the_same_picture(originals, margin):
    """A wider crop squeezes the picture; its own frame does not move."""
    areas = [cut(grey_HW, find_frame(grey_HW, "auto")) for grey_HW in originals[0]]
    found = search(originals[1] + [signature(np.pad(area_HW, margin)) for area_HW in areas])
    assert found.pair_P2.tolist() == [[n, n + len(areas)] for n in range(len(areas))]


def test_calipers_on_a_dark_picture():
    """White lines once outweighed all else: the brightness is compressed before it is measured."""
    stream = np.random.default_rng(0)
    dark = [scan(number) // 4 for number in range(30)]
    marked = [plant(area_HW, ("calipers",), stream) for area_HW in dark]
    found = search([signature(area_HW) for area_HW in dark + marked])
    assert {(n, n + 30) for n in range(30)} - set(map(tuple, found.pair_P2.tolist())) == set()


def test_signature_is_plain_small_and_the_same_each_time(originals):
    stored = json.dumps(dataclasses.asdict(originals[1][0]))
    assert len(stored) < 1500 and Signature(**json.loads(stored)) == originals[1][0] == seen(scan(0))


def test_mirroring_is_one_xor(originals):
    for grey_HW, s in zip(originals[0][:20], originals[1][:20], strict=True):
        mirrored = signature(np.ascontiguousarray(cut(grey_HW, find_frame(grey_HW, "auto"))[:, ::-1]))
        # A coefficient near zero may change its sign by rounding.
        assert int(s.hash ^ mirrored.hash ^ int(MIRROR_BITS)).bit_count() <= 2


@pytest.mark.parametrize(
    "area_HW",
    [
        np.zeros((20, 30), np.uint8),
        np.full((16, 16), 200, np.uint8),
        np.eye(40, dtype=np.uint8)[:1].repeat(16, 0),
    ],
    ids=["black", "one grey", "one column"],
)
def test_pictures_with_nothing_in_them_are_nobodys_copy(area_HW):
    s = signature(area_HW)
    assert 0 <= s.hash < 2**63
    if area_HW.std() == 0:
        assert len(search([s, s]).pair_P2) == 0


def test_black_share():
    area_HW = np.full((10, 20), 90, np.uint8)
    area_HW[:, :5] = near_copies.BLACK
    assert signature(area_HW).black_share == 0.25


def test_search_misses_no_pair_that_all_pairs_have():
    """Against a plain comparison of each with each, mirror images too."""
    stream = np.random.default_rng(0)
    hashes = [int(h) for h in stream.integers(0, 2**63, 150, dtype=np.uint64)]
    for n in range(0, 150, 3):
        flips = sum(1 << int(bit) for bit in stream.choice(63, stream.integers(8, 18), replace=False))
        hashes.append(hashes[n] ^ flips ^ (int(MIRROR_BITS) if n % 2 else 0))
    small = signature(scan(0)).small
    wanted = {
        (i, j)
        for i, j in combinations(range(len(hashes)), 2)
        if min((hashes[i] ^ hashes[j]).bit_count(), (hashes[i] ^ hashes[j] ^ int(MIRROR_BITS)).bit_count())
        <= NEAR_BITS
    }
    found = search([Signature(h, small, 0.0) for h in hashes])
    assert 10 < len(wanted) < 60 and found.candidates == len(wanted)
    # With one small version for all, each direct pair is a copy.
    direct = {pair for pair in wanted if (hashes[pair[0]] ^ hashes[pair[1]]).bit_count() <= NEAR_BITS}
    assert direct <= set(map(tuple, found.pair_P2.tolist())) <= wanted


def test_frames_of_a_video_cost_one_pass():
    """A thousand frames alike make half a million pairs; each is joined once."""
    first_HW = scan(7).astype(int)
    stream = np.random.default_rng(0)
    base = seen(scan(7))
    frames = [base] + [
        seen((first_HW + 3 * stream.integers(0, 2, first_HW.shape)).clip(0, 255).astype(np.uint8))
        for _ in range(20)
    ]
    frames = [frames[n % 21] for n in range(1000)]
    found = search(frames)
    assert found.examined == len(found.pair_P2) == 999 and found.candidates == 1000 * 999 // 2
    # The frames of one known video are not even looked at, whatever their labels.
    one = np.zeros(1000, int)
    assert find_copies(*columns(frames), one, one, np.arange(1000)).examined == 0
    # Without a known video, frames of another class are.
    label_N = np.arange(1000) % 2
    found = find_copies(*columns(frames[:50]), np.arange(50), np.arange(50), label_N[:50])
    differing = label_N[found.pair_P2]
    assert (differing[:, 0] != differing[:, 1]).sum() == 25 * 25


def test_search_stays_within_its_share_of_a_minute():
    """50,000 hashes in under a minute: 20,000 are (2 / 5)^2 of that. benchmarks/preparation.py does all."""
    stream = np.random.default_rng(0)
    signatures = [
        Signature(int(h), signature(scan(0)).small if n == 0 else "", 0.0)
        for n, h in enumerate(stream.integers(0, 2**63, 20_000, dtype=np.uint64))
    ]
    signatures = [dataclasses.replace(s, small=signatures[0].small) for s in signatures]
    start = time.process_time()
    assert search(signatures).compared == 20_000 * 19_999 // 2
    assert time.process_time() - start < 60 * (2 / 5) ** 2
