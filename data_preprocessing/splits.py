"""Which pictures are kept and which split each goes to: no copy, no patient and no video on two sides.

Everything is decided from hashes, so that the result depends on the pictures and the seed, not on the
order, the names or the number of files: a picture keeps its split when others are added or files renamed.
Exceptions: a new picture that joins two groups may move one of them, and the last resort that fills a split
which a class would lack.
"""

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from data_preprocessing.near_copies import (
    NEAR_BITS,
    NEAR_CORRELATION,
    PLAIN_CORRELATION,
    Copies,
    Signature,
    find_copies,
)
from usvar.errors import InputError

SPLITS = ("train", "val", "test")
# Shares of train, val and test.
SHARES = (0.8, 0.1, 0.1)
# Near copies from here on must not have two labels. Below, as far as copies.NEAR_CORRELATION, they only stay
# on one side: there it may be the next moment of one examination, or even, at 0.88, another person's picture.
# Of planted copies, 98.8% reach this.
CONFLICT_CORRELATION = 0.93
# Columns of label_conflicts.csv.
CONFLICT = [
    *("source", "class", "dataset", "other_source", "other_class", "other_dataset"),
    # "exact", "near" or "mirror".
    "kind",
    "correlation",
]


@dataclass(frozen=True, slots=True)
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
    signature: Signature


@dataclass(frozen=True, slots=True)
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
    # Pairs of copies with different labels, as rows of label_conflicts.csv; both sides are dropped.
    conflicts: list[dict[str, str]] = field(default_factory=list)
    # One for each picture that was dropped or joined: (source, other source, kind, correlation).
    copies: list[tuple[str, str, str, float]] = field(default_factory=list)
    # What the search for near copies did.
    search: Copies | None = None


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
    kept, group_of, plan = _without_copies(pictures)
    _require_three_groups(kept, group_of, extra_classes, "")
    drawn = _draw(kept, group_of, seed, cap)
    plan.over_cap.update(p.dataset for p in kept)
    plan.over_cap.subtract(p.dataset for p in drawn)
    plan.over_cap = +plan.over_cap
    _require_three_groups(drawn, group_of, (), f" within --cap {cap}")
    split_of = _choose_splits(drawn, group_of, seed)
    plan.places = {p.source: Place(split_of[group_of[p.source]], group_of[p.source]) for p in drawn}
    return plan


def share_of(*words: object) -> float:
    """A number in [0, 1) that depends on the words only."""
    digest = hashlib.sha256("|".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _without_copies(pictures: list[Picture]) -> tuple[list[Picture], dict[str, str], Plan]:
    """Drop exact copies and copies with different labels; join patients and near copies to groups.

    Returns:
        The kept pictures; source -> name of its group; a plan with what was dropped and found.
    """
    by_pixels = defaultdict(list)
    for picture in sorted(pictures, key=lambda p: (p.dataset, p.source)):
        by_pixels[picture.sha256].append(picture)
    # In the order of their hashes, so that new names or an addition change no decision about others.
    same = [by_pixels[sha256] for sha256 in sorted(by_pixels)]
    labels = [sorted({p.class_name for p in copies}) for copies in same]
    plan = Plan({}, {}, Counter())

    # Exact copies join the patients they come from; the most held-out official split of the copies holds.
    kept, links = {}, []
    for n, copies in enumerate(same):
        kept[n] = max(copies, key=lambda p: ("", *SPLITS).index(p.split))
        for p in copies:
            if p is not kept[n]:
                plan.copies.append((kept[n].source, p.source, "exact", 1.0))
                plan.dropped[p.source] = f"exact copy of {kept[n].source}"
                links.append((_own_group(kept[n]), _own_group(p)))
        plan.conflicts += _conflicts(copies, copies, "exact", 1.0)
        if len(labels[n]) > 1:
            plan.dropped |= {
                p.source: f"exact copies with different labels: {', '.join(labels[n])}" for p in copies
            }

    # Near copies, over all data sets together. Pictures of one known patient or video may look alike and have
    # two labels, such as two moments of a sweep: find_copies passes them over.
    group_of = _join_groups(pictures, links)
    plan.search = find_copies(
        [min((p.signature for p in copies), key=lambda s: (s.hash, s.small)) for copies in same],
        _numbers([_own_group(p) for p in kept.values()]),
        _numbers([group_of[p.source] for p in kept.values()]),
        _numbers([str(names) for names in labels]),
    )
    for (first, second), correlation, mirrored in zip(
        plan.search.pair_P2.tolist(),
        plan.search.correlation_P.tolist(),
        plan.search.mirrored_P.tolist(),
        strict=True,
    ):
        kind = "mirror" if mirrored else "near"
        plan.copies.append((kept[first].source, kept[second].source, kind, correlation))
        links.append((_own_group(kept[first]), _own_group(kept[second])))
        if correlation < CONFLICT_CORRELATION:
            continue
        conflicts = _conflicts(same[first], same[second], kind, correlation)
        plan.conflicts += conflicts
        if conflicts:
            both = ", ".join(sorted({*labels[first], *labels[second]}))
            plan.dropped |= {
                p.source: f"{kind} copies with different labels: {both}" for p in same[first] + same[second]
            }
    left = [p for p in kept.values() if p.source not in plan.dropped]
    return left, _join_groups(pictures, links), plan


def _numbers(names: list[str]) -> np.ndarray:
    """Equal names get equal numbers."""
    return np.unique(np.array(names, dtype=str), return_inverse=True)[1]


def _own_group(picture: Picture) -> str:
    """The patient where known, else the picture's content, so that a new file name changes nothing."""
    return f"{picture.dataset}/{picture.group}" if picture.group else f"sha256/{picture.sha256}"


def _conflicts(
    some: list[Picture], others: list[Picture], kind: str, correlation: float
) -> list[dict[str, str]]:
    """Rows of label_conflicts.csv for two lists of exact copies, or for the pairs inside one list."""
    rows = []
    for p, q in product(some, others):
        if p.class_name == q.class_name or (some is others and p.source > q.source):
            continue
        values = (p.source, p.class_name, p.dataset, q.source, q.class_name, q.dataset)
        rows.append(dict(zip(CONFLICT, (*values, kind, f"{correlation:.3f}"), strict=True)))
    return rows


def _join_groups(pictures: list[Picture], links: list[tuple[str, str]]) -> dict[str, str]:
    """source -> name of its group: patients joined by the pictures they share.

    The joined group has the smallest of the names.
    """
    names = sorted({_own_group(p) for p in pictures})
    number_of = {name: number for number, name in enumerate(names)}
    link_P2 = np.array([(number_of[a], number_of[b]) for a, b in links], dtype=np.int64).reshape(-1, 2)
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


def leak_report(pictures: list[Picture], plan: Plan) -> dict:
    """What leak_report.json says: copies examined, found and dropped, and a check of the final places.

    Args:
        pictures: the same as `make_plan` was given.
        plan: its outcome. The check looks only at `places` and at what is known of the pictures.
    """
    of = {p.source: p for p in pictures}
    kinds = Counter(kind for _, _, kind, _ in plan.copies)
    by_sets = defaultdict(Counter)
    official = Counter()
    for source, other, kind, _ in plan.copies:
        first, second = of[source], of[other]
        by_sets[" | ".join(sorted({first.dataset, second.dataset}))][kind] += 1
        if first.split and second.split and first.split != second.split:
            # Of exact copies one is kept, and a cap or a conflict may have taken either.
            went = {plan.places[s].split for s in (source, other) if s in plan.places}
            sides = " and ".join(sorted({first.split, second.split}, key=SPLITS.index))
            official[f"{sides}: went to {', '.join(sorted(went)) or 'neither'}"] += 1
    own = {_own_group(p) for p in pictures}
    links = [(_own_group(of[a]), _own_group(of[b])) for a, b, _, _ in plan.copies]
    joined = set(_join_groups(pictures, links).values())
    sides = defaultdict(set)
    for source, place in plan.places.items():
        sides["group", place.group].add(place.split)
        sides["patient", _own_group(of[source])].add(place.split)
    for n, (source, other, _, _) in enumerate(plan.copies):
        sides["copies", n] |= {plan.places[s].split for s in (source, other) if s in plan.places}
    across = Counter(what for (what, _), splits in sides.items() if len(splits) > 1)
    search = plan.search
    return {
        "pictures_examined": len(pictures),
        "exact_copies": {
            "found": kinds["exact"],
            "dropped": sum(why.startswith("exact copy of") for why in plan.dropped.values()),
        },
        "near_copies": {
            "hash_pairs_compared": search.compared,
            "candidates": search.candidates,
            # Of one class and already in one group by their patient, video or other copies.
            "candidates_already_joined": search.already_joined,
            "candidates_examined": search.examined,
            "near_found": kinds["near"],
            "mirror_found": kinds["mirror"],
        },
        "pairs_by_data_sets": {
            name: dict(sorted(counts.items())) for name, counts in sorted(by_sets.items())
        },
        "label_conflicts": {
            "pairs": len(plan.conflicts),
            "pictures_dropped": sum("different labels" in why for why in plan.dropped.values()),
        },
        "groups": {
            "before_joining": len(own),
            "after_joining": len(joined),
            "joined": len(own) - len(joined),
        },
        "across_splits": {
            "groups": across["group"],
            "patients_or_videos": across["patient"],
            "pairs_of_copies": across["copies"],
        },
        "pairs_on_two_official_sides": dict(sorted(official.items())),
        "thresholds": {
            "near_bits_of_63": NEAR_BITS,
            "plain_correlation": PLAIN_CORRELATION,
            "near_correlation": NEAR_CORRELATION,
            "conflict_correlation": CONFLICT_CORRELATION,
        },
    }
