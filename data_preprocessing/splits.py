"""Which pictures are kept and which split each goes to: no copy, no patient and no video on two sides.

Everything is decided from hashes, so that the result depends on the pictures and the seed, not on the
order, the names or the number of files: a picture keeps its split when others are added or files renamed.
Exceptions: a new picture that joins two groups may move one of them, and the last resort that fills a split
which a class would lack.
"""

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from usvar.errors import InputError

SPLITS = ("train", "val", "test")
# Shares of train, val and test.
SHARES = (0.8, 0.1, 0.1)
# Two pictures are near copies when at most this many of the 64 bits of their hashes differ ...
NEAR_BITS = 12
# ... and their small versions correlate at least so well.
NEAR_CORRELATION = 0.97
SMALL_SIDE = 16


@dataclass(frozen=True)
class Picture:
    """What the plan needs to know of a readable picture."""

    source: str
    dataset: str
    class_name: str
    # Patient, video or examination inside the data set; "" when unknown.
    group: str
    # Official split or "".
    split: str
    # SHA-256 of the decoded source pixels.
    sha256: str
    # 64-bit difference hash of the scan area.
    dhash: int
    # (SMALL_SIDE ** 2) uint8 bytes: the scan area, small.
    small: bytes


@dataclass(frozen=True)
class Place:
    """Where a kept picture goes."""

    split: str
    # Name of the group that must stay on one side.
    group: str


@dataclass
class Plan:
    """The outcome, by source."""

    places: dict[str, Place]
    # source -> reason, for exact copies and copies with different labels.
    dropped: dict[str, str]
    # Number of pictures left out by the cap, by data set.
    over_cap: Counter


def make_plan(pictures: list[Picture], seed: int, cap: int, extra_classes: tuple[str, ...] = ()) -> Plan:
    """Drop copies, join groups, draw the cap, choose splits.

    Args:
        pictures: all readable ones.
        seed: changes cap and splits.
        cap: largest number of pictures of a data set; 0 for no cap.
        extra_classes: classes that must exist although no picture of theirs is readable.

    Raises:
        InputError: when a class cannot have a picture in each of train, val and test.
    """
    kept, dropped, links = _without_copies(pictures)
    group_of = _join_groups(kept, links)
    _require_three_groups(kept, group_of, extra_classes, "")
    drawn = _draw(kept, group_of, seed, cap)
    over_cap = Counter(p.dataset for p in kept)
    over_cap.subtract(p.dataset for p in drawn)
    _require_three_groups(drawn, group_of, (), f" within --cap {cap}")
    split_of = _choose_splits(drawn, group_of, seed)
    places = {p.source: Place(split_of[group_of[p.source]], group_of[p.source]) for p in drawn}
    return Plan(places, dropped, +over_cap)


def share_of(*words: object) -> float:
    """A number in [0, 1) that depends on the words only."""
    digest = hashlib.sha256("|".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def dhash(small_HW: np.ndarray) -> int:
    """Difference hash of 64 bits: is a pixel of the (8, 9) picture brighter than its right neighbour?"""
    bits = (small_HW[:, :-1] > small_HW[:, 1:]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_pairs(hash_N: np.ndarray, bits: int = NEAR_BITS) -> np.ndarray:
    """All pairs of hashes that differ in at most `bits` bits.

    Args:
        hash_N: uint64.

    Returns:
        (P, 2) indices, the first smaller than the second.
    """
    pairs = [np.empty((0, 2), dtype=np.int64)]
    chunk = 256
    for start in range(0, len(hash_N), chunk):
        distance = np.bitwise_count(hash_N[start : start + chunk, None] ^ hash_N[None, start:])
        first, second = (distance <= bits).nonzero()
        later = second > first
        pairs.append(np.stack([first[later], second[later]], 1) + start)
    return np.concatenate(pairs)


def _without_copies(pictures: list[Picture]) -> tuple[list[Picture], dict[str, str], list[tuple[str, str]]]:
    """The kept pictures, the dropped ones with their reason, and the pairs of groups that share a picture."""
    by_pixels = defaultdict(list)
    for picture in sorted(pictures, key=lambda p: (p.dataset, p.source)):
        by_pixels[picture.sha256].append(picture)
    kept, dropped, links = [], {}, []
    for copies in by_pixels.values():
        links += [(_own_group(copies[0]), _own_group(p)) for p in copies[1:]]
        classes = sorted({p.class_name for p in copies})
        if len(classes) > 1:
            for p in copies:
                dropped[p.source] = f"exact copies with different labels: {', '.join(classes)}"
            continue
        # The most held-out official split of the copies holds.
        kept.append(max(copies, key=lambda p: ("", *SPLITS).index(p.split)))
        for p in copies:
            if p is not kept[-1]:
                dropped[p.source] = f"exact copy of {kept[-1].source}"
    return kept, dropped, links


def _own_group(picture: Picture) -> str:
    """The patient where known, else the picture's content, so that a new file name changes nothing."""
    return f"{picture.dataset}/{picture.group}" if picture.group else f"sha256/{picture.sha256}"


def _join_groups(pictures: list[Picture], links: list[tuple[str, str]]) -> dict[str, str]:
    """source -> name of its group: patients, joined by shared pictures and by near copies inside a data set.

    The joined group has the smallest of the names.
    """
    pairs = [*links]
    by_set = defaultdict(list)
    for picture in pictures:
        by_set[picture.dataset].append(picture)
    for members in by_set.values():
        near_P2 = near_pairs(np.array([p.dhash for p in members], dtype=np.uint64))
        small = np.frombuffer(b"".join(p.small for p in members), np.uint8).reshape(len(members), -1)
        small = small - small.mean(1, keepdims=True, dtype=np.float32)
        small /= np.linalg.norm(small, axis=1, keepdims=True) + 1e-6
        # In parts, because a long video has very many pairs.
        for start in range(0, len(near_P2), 100_000):
            part_P2 = near_P2[start : start + 100_000]
            alike_P = (small[part_P2[:, 0]] * small[part_P2[:, 1]]).sum(1) >= NEAR_CORRELATION
            pairs += [(_own_group(members[i]), _own_group(members[j])) for i, j in part_P2[alike_P]]
    names = sorted({_own_group(p) for p in pictures} | {name for pair in pairs for name in pair})
    number_of = {name: number for number, name in enumerate(names)}
    link_P2 = np.array([(number_of[a], number_of[b]) for a, b in pairs], dtype=np.int64).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(link_P2), bool), link_P2.T), shape=(len(names), len(names)))
    joined = connected_components(graph, directed=False)[1]
    first = {}
    for name, part in zip(names, joined, strict=True):
        first.setdefault(int(part), name)
    return {p.source: first[int(joined[number_of[_own_group(p)]])] for p in pictures}


def _require_three_groups(
    pictures: list[Picture], group_of: dict[str, str], extra_classes: tuple[str, ...], where: str
) -> None:
    groups = {name: set() for name in extra_classes}
    counts = Counter(p.class_name for p in pictures)
    for p in pictures:
        groups.setdefault(p.class_name, set()).add(group_of[p.source])
    few = [
        f"{name} ({counts[name]} image(s) in {len(members)} group(s))"
        for name, members in sorted(groups.items())
        if len(members) < len(SPLITS)
    ]
    if few:
        names = " ".join(entry.split(" (")[0] for entry in few)
        remedy = "raise --cap" if where else "add images"
        raise InputError(
            f"too few different patients or pictures{where} in class {', '.join(few)}; wanted at least 3, "
            f"one each for train, val and test: {remedy}, or leave out with --exclude-classes {names}"
        )


def _draw(pictures: list[Picture], group_of: dict[str, str], seed: int, cap: int) -> list[Picture]:
    """At most `cap` pictures of each data set: whole groups in random order, classes in proportion."""
    by_set = defaultdict(list)
    for p in pictures:
        by_set[p.dataset].append(p)
    drawn = []
    for members in by_set.values():
        if not cap or len(members) <= cap:
            drawn += members
            continue
        room = _quotas(Counter(p.class_name for p in members), cap)
        groups = defaultdict(list)
        for p in members:
            groups[group_of[p.source]].append(p)
        # A group larger than a third of its class's quota (one long video) is thinned, or it would fill it.
        for name, group in groups.items():
            limit = max(1, min(room[p.class_name] for p in group) // 3)
            if len(group) > limit:
                group.sort(key=lambda p: share_of(seed, "thin", p.sha256))
                groups[name] = group[:limit]
        for name in sorted(groups, key=lambda name: share_of(seed, "cap", name)):
            wanted = Counter(p.class_name for p in groups[name])
            if all(room[c] >= n for c, n in wanted.items()):
                room.subtract(wanted)
                drawn += groups[name]
    return drawn


def _quotas(counts: Counter, cap: int) -> Counter:
    """The cap shared out in proportion to the classes' counts, by largest remainder."""
    exact = {name: cap * n / counts.total() for name, n in counts.items()}
    quotas = Counter({name: int(share) for name, share in exact.items()})
    left = cap - quotas.total()
    for name in sorted(exact, key=lambda name: (int(exact[name]) - exact[name], name))[:left]:
        quotas[name] += 1
    return quotas


def _choose_splits(pictures: list[Picture], group_of: dict[str, str], seed: int) -> dict[str, str]:
    """group -> split. Official splits are kept; the rest follows the hash of seed and group."""
    official = defaultdict(set)
    for p in pictures:
        if p.split:
            official[p.dataset].add(p.split)
    allowed: dict[str, set[str]] = {}
    classes = defaultdict(set)
    for p in pictures:
        group = group_of[p.source]
        classes[group].add(p.class_name)
        may = set(SPLITS)
        # Without an official train there is no split to keep; splits that are missing are drawn from train.
        if p.split and "train" in official[p.dataset]:
            may = {p.split} if p.split != "train" else {"train", *(set(SPLITS) - official[p.dataset])}
        both = allowed.get(group, may) & may
        # Near copies on two official sides: the more held-out side gets both.
        allowed[group] = both or {max(allowed[group] | may, key=SPLITS.index)}
    split_of, position = {}, {}
    for group, may in allowed.items():
        position[group] = share_of(seed, "split", group)
        bounds = np.cumsum(
            [share if split in may else 0 for split, share in zip(SPLITS, SHARES, strict=True)]
        )
        split_of[group] = SPLITS[int(np.searchsorted(bounds, position[group] * bounds[-1], side="right"))]
    _fill_empty_splits(split_of, position, allowed, classes)
    return split_of


def _fill_empty_splits(
    split_of: dict[str, str],
    position: dict[str, float],
    allowed: dict[str, set[str]],
    classes: dict[str, set[str]],
) -> None:
    """Where a class has none in a split, move the group whose hash lies nearest; never a class's last one."""
    lows = dict(zip(SPLITS, np.cumsum([0, *SHARES[:-1]]), strict=True))
    shares = dict(zip(SPLITS, SHARES, strict=True))
    groups_of = defaultdict(list)
    for group, names in classes.items():
        for name in names:
            groups_of[name].append(group)
    tally = Counter((name, split_of[group]) for name, groups in groups_of.items() for group in groups)
    for name in sorted(groups_of):
        for split in SPLITS:
            if tally[name, split]:
                continue
            movable = [
                group
                for group in groups_of[name]
                if split in allowed[group] and all(tally[c, split_of[group]] > 1 for c in classes[group])
            ]
            if not movable:
                raise InputError(
                    f"class {name} has no picture for {split}: its {len(groups_of[name])} groups belong to "
                    "other splits, wanted at least one each for train, val and test: add images, or leave "
                    f"out with --exclude-classes {name}"
                )
            middle = lows[split] + shares[split] / 2
            nearest = min(movable, key=lambda group: (abs(position[group] - middle), group))
            for c in classes[nearest]:
                tally[c, split_of[nearest]] -= 1
                tally[c, split] += 1
            split_of[nearest] = split
