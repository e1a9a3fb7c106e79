"""Which pictures are kept and which split each goes to: no copy, no patient and no video on two sides.

Everything is decided from hashes, so that the result depends on the pictures and the seed, not on the
order, the names or the number of files: a picture keeps its split when others are added or files renamed.
Exceptions: a new picture that joins two groups may move one of them, and a class that would have too few
groups in val or test to be judged there gets some moved.

A picture costs a few hundred bytes of memory here, whatever it is called: its words and its small version lie
on the disk, and all is decided with numbers.

Axes: N pictures, P different contents (exact copies share one), K kept pictures, G groups as first known, C
pairs of copies, M pairs of a group and a class in it, L classes, D data sets, S splits, O official splits
(the first is none).
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
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
    Smalls,
    find_copies,
)
from data_preprocessing.on_disk import private_database
from usvar.errors import InputError

SPLITS = ("train", "val", "test")
# Shares of train, val and test.
SHARES = (0.8, 0.1, 0.1)
# Near copies from here on must not have two labels. Below, as far as NEAR_CORRELATION, they only stay
# on one side: there it may be the next moment of one examination, or even, at 0.88, another person's picture.
# Of planted copies, 98.8% reach this.
CONFLICT_CORRELATION = 0.93
# What may follow an organ in a class's name and is no condition of it.
NO_CONDITION = ("CEUS", "Phantom", "Simulated")
# What says less than others besides an organ alone: a nodule whose pathology is not told.
SAYS_LESS = {"Thyroid-Nodule": ("Thyroid-Benign", "Thyroid-Malignant")}
# Groups that a class should have in val and in test: with fewer, the evaluation cannot tell patients apart.
LEAST_HELD_OUT = 4
# But of a small class not more than this share goes to either.
MOST_HELD_OUT = 1 / 8
# Under the cap pictures of so many groups of a class are taken, or of all where it has fewer.
FEW_GROUPS = 30
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


# Kinds of copies.
KINDS = ("exact", "near", "mirror")
# What is in memory of each picture: words as their place among all such words, in alphabetical order.
NUMBERS = np.dtype(
    [(name, np.int64) for name in ("place", "dataset", "label", "own", "content", "hash", "tie")]
    # 0 without an official split, else its place in SPLITS counted from 1.
    + [("official", np.int8)]
)
# A pair of copies: two pictures, place of the kind in KINDS, correlation.
COPY = np.dtype([("first", np.int64), ("second", np.int64), ("kind", np.int8), ("correlation", np.float64)])


class Pictures:
    """N pictures, numbered as they were given: their numbers in memory, all else on the disk."""

    def __init__(self, pictures: Iterable[Picture]) -> None:
        self.db, self.smalls = private_database(), Smalls()
        self.db.execute(
            "CREATE TABLE picture (n INTEGER PRIMARY KEY, source TEXT, dataset TEXT, label TEXT, own TEXT, "
            "sha256 TEXT, hash INTEGER, tie INTEGER, official INTEGER)"
        )
        self.db.executemany("INSERT INTO picture VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", self._rows(pictures))
        self.db.execute("CREATE TABLE own (number INTEGER PRIMARY KEY, name TEXT)")
        self.db.execute(
            "INSERT INTO own SELECT row_number() OVER (ORDER BY own) - 1, own FROM picture GROUP BY own"
        )
        # SQLite compares texts as Python does.
        numbers = self.db.execute(
            "SELECT row_number() OVER (ORDER BY dataset, source), dense_rank() OVER (ORDER BY dataset) - 1, "
            "dense_rank() OVER (ORDER BY label) - 1, dense_rank() OVER (ORDER BY own) - 1, "
            "dense_rank() OVER (ORDER BY sha256) - 1, hash, tie, official FROM picture ORDER BY n"
        )
        self.number_N = np.fromiter(numbers, NUMBERS)
        self.datasets, self.labels = (
            [name for (name,) in self.db.execute(f"SELECT DISTINCT {word} FROM picture ORDER BY {word}")]
            for word in ("dataset", "label")
        )
        self.groups = self.db.execute("SELECT count(*) FROM own").fetchone()[0]

    def _rows(self, pictures: Iterable[Picture]) -> Iterator[tuple]:
        for n, p in enumerate(pictures):
            self.smalls.append(p.signature.small)
            # Which of two signatures of one hash stands for both must not depend on names.
            tie = int.from_bytes(hashlib.sha256(p.signature.small.encode()).digest()[:7], "big")
            official = SPLITS.index(p.split) + 1 if p.split else 0
            words = (p.source, p.dataset, p.class_name, _own_group(p), p.sha256)
            yield n, *words, p.signature.hash, tie, official

    def __len__(self) -> int:
        return len(self.number_N)

    def word(self, column: str, n: int) -> str:
        """A picture's "source" or "sha256"."""
        return self.db.execute(f"SELECT {column} FROM picture WHERE n = ?", (int(n),)).fetchone()[0]

    def group(self, number: int) -> str:
        """The name of a group as first known."""
        return self.db.execute("SELECT name FROM own WHERE number = ?", (int(number),)).fetchone()[0]


@dataclass
class Plan:
    """The outcome; the words come one by one."""

    pictures: Pictures
    # (N,) place in SPLITS, -1 of a picture that is not kept.
    split_N: np.ndarray
    # (N,) number of its group, patients and near copies joined: that of the first of the joined ones.
    group_N: np.ndarray
    # (C,) COPY, one for each picture that was dropped or joined.
    copy_C: np.ndarray
    # The cap, and the pictures that it leaves out.
    cap: int = 0
    over_cap_M: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    # Pairs of copies with different labels, as rows of COPY; both sides are dropped.
    conflict: list[tuple[int, int, int, float]] = field(default_factory=list)
    # n -> reason, of pictures that are dropped for their labels.
    conflicting: dict[int, str] = field(default_factory=dict)
    # n -> reason, of copies of pictures whose class says more, "Breast-Benign" more than "Breast".
    vague: dict[int, str] = field(default_factory=dict)
    # What the search for near copies did.
    search: Copies | None = None

    @property
    def for_labels(self) -> dict[int, str]:
        """n -> reason, of pictures that are dropped because of a copy's label."""
        return self.vague | self.conflicting

    def places(self) -> Iterator[tuple[str, Place]]:
        """Source and place of each kept picture."""
        for n, source in self.pictures.db.execute("SELECT n, source FROM picture ORDER BY n"):
            if self.split_N[n] >= 0:
                yield source, Place(SPLITS[self.split_N[n]], self.pictures.group(self.group_N[n]))

    def over_cap(self) -> Iterator[tuple[str, str]]:
        """Source and reason of each picture that the cap leaves out."""
        for n in self.over_cap_M:
            yield self.pictures.word("source", n), f"over --cap {self.cap} of its data set"

    def dropped(self) -> Iterator[tuple[str, str]]:
        """Source and reason of each exact copy and each copy with another label."""
        for_labels = self.for_labels
        for first, second, kind, _ in self.copy_C:
            if KINDS[kind] == "exact" and second not in for_labels:
                kept = self.pictures.word("source", first)
                yield self.pictures.word("source", second), f"exact copy of {kept}"
        for n, why in for_labels.items():
            yield self.pictures.word("source", n), why

    def conflicts(self) -> Iterator[dict[str, str]]:
        """Rows of label_conflicts.csv."""
        number_N = self.pictures.number_N
        for *pair, kind, correlation in self.conflict:
            values = []
            for n in pair:
                label, dataset = (int(number_N[word][n]) for word in ("label", "dataset"))
                values += [self.pictures.word("source", n), self.pictures.labels[label]]
                values.append(self.pictures.datasets[dataset])
            yield dict(zip(CONFLICT, (*values, KINDS[kind], f"{correlation:.3f}"), strict=True))


def make_plan(pictures: Iterable[Picture], seed: int, cap: int, extra_classes: tuple[str, ...] = ()) -> Plan:
    """Drop copies, join groups, draw the cap, choose splits.

    Args:
        pictures: all readable ones, at least one; read once, in any order.
        seed: changes cap and splits.
        cap: largest number of pictures of a data set; 0 for no cap.
        extra_classes: classes that must exist although no picture of theirs is readable; not one whose
            pictures are all copies of ones whose class says more.

    Raises:
        InputError: when a class cannot have a picture in each of train, val and test.
    """
    contents = Contents(Pictures(pictures))
    plan = _drop_exact_copies(contents)
    _join_near_copies(plan, contents)
    extra_classes = tuple(sorted(set(extra_classes) - _said_better(plan, contents)))
    kept_K = contents.kept_P[~np.isin(contents.kept_P, list(plan.for_labels))]
    _require_three_groups(plan, kept_K, extra_classes, "")
    drawn_K = _draw(plan, kept_K, seed, cap)
    plan.cap, plan.over_cap_M = cap, np.setdiff1d(kept_K, drawn_K)
    had = {plan.pictures.labels[label] for label in np.unique(plan.pictures.number_N["label"][kept_K])}
    _require_three_groups(plan, drawn_K, tuple(had), f" within --cap {cap}")
    plan.split_N[drawn_K] = _choose_splits(plan, drawn_K, seed)[plan.group_N[drawn_K]]
    return plan


def share_of(*words: object) -> float:
    """A number in [0, 1) that depends on the words only."""
    digest = hashlib.sha256("|".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class Contents:
    """What pictures show, in the order of its hash; exact copies share one content.

    That order, so that new names or an addition change no decision about others.
    """

    def __init__(self, pictures: Pictures) -> None:
        number_N = pictures.number_N
        self.pictures, self.label_N = pictures, number_N["label"]
        content_N = number_N["content"]
        self.order_N = np.lexsort((number_N["place"], content_N))
        self.start_P = np.flatnonzero(np.diff(content_N[self.order_N], prepend=-1))
        self.stop_P = np.append(self.start_P[1:], len(self.order_N))
        # Of exact copies with several labels, the one that says most holds, if there is one.
        self.label_P = np.minimum.reduceat(self.label_N[self.order_N], self.start_P)
        most_P = np.maximum.reduceat(self.label_N[self.order_N], self.start_P)
        self.mixed = (self.label_P != most_P).nonzero()[0].tolist()
        for content in self.mixed:
            numbers = {int(self.label_N[n]) for n in self.members(content)}
            self.label_P[content] = _most_exact(pictures.labels, numbers)
        # Of exact copies one is kept, and the most held-out official split of them holds.
        says_less_N = self.label_N != self.label_P[content_N]
        self.kept_P = self.first_by(number_N["place"], -number_N["official"], says_less_N)

    def first_by(self, *keys_N: np.ndarray) -> np.ndarray:
        """(P,) the picture of each content that comes first by these keys, of which the last weighs most."""
        return np.lexsort((*keys_N, self.pictures.number_N["content"]))[self.start_P]

    def members(self, content: int) -> list[int]:
        """The pictures that show it."""
        return self.order_N[self.start_P[content] : self.stop_P[content]].tolist()

    def names_of(self, *contents: int) -> str:
        """All labels of their pictures."""
        numbers = {self.label_N[n] for content in contents for n in self.members(content)}
        return ", ".join(self.pictures.labels[label] for label in sorted(numbers))


def _drop_exact_copies(contents: Contents) -> Plan:
    """Exact copies join the patients they come from; those with different labels are all dropped.

    Args:
        contents: where those are dropped, its label becomes a number beyond all labels, one per set of them.

    Returns:
        A plan in which no picture has a split yet.
    """
    pictures, kept_P, label_P = contents.pictures, contents.kept_P, contents.label_P
    own_N, content_N = (pictures.number_N[name] for name in ("own", "content"))
    second_C = contents.order_N[kept_P[content_N[contents.order_N]] != contents.order_N]
    copy_C = np.zeros(len(second_C), COPY)
    copy_C["first"], copy_C["second"], copy_C["correlation"] = kept_P[content_N[second_C]], second_C, 1
    plan = Plan(pictures, np.full(len(pictures), -1, np.int8), own_N, copy_C)
    # Equal sets of labels get equal numbers.
    several: dict[str, int] = {}
    for content in contents.mixed:
        if label_P[content] >= 0:
            continue
        names, members = contents.names_of(content), contents.members(content)
        label_P[content] = several.setdefault(names, len(pictures.labels) + len(several))
        plan.conflict += _conflicts(pictures, members, members, "exact", 1.0)
        plan.conflicting |= dict.fromkeys(members, f"exact copies with different labels: {names}")
    return plan


def _join_near_copies(plan: Plan, contents: Contents) -> None:
    """Near copies, over all data sets together, become one group; those with different labels are dropped.

    Pictures of one known patient or video may look alike and have two labels, such as two moments of a sweep:
    find_copies passes them over.

    Args:
        plan: is completed, but for the splits.
        contents: as _drop_exact_copies left them.
    """
    pictures, kept_P, label_P = contents.pictures, contents.kept_P, contents.label_P
    number_N, own_N = pictures.number_N, pictures.number_N["own"]
    seen_P = contents.first_by(number_N["tie"], number_N["hash"])
    link_C2 = own_N[np.stack([plan.copy_C["first"], plan.copy_C["second"]], 1)]
    plan.search = find_copies(
        number_N["hash"][seen_P].astype(np.uint64),
        pictures.smalls.of(seen_P),
        own_N[kept_P],
        _join_groups(pictures.groups, link_C2)[own_N[kept_P]],
        label_P,
    )
    near_C = np.zeros(len(plan.search.pair_P2), COPY)
    near_C["first"], near_C["second"] = kept_P[plan.search.pair_P2].T
    near_C["kind"], near_C["correlation"] = 1 + plan.search.mirrored_P, plan.search.correlation_P
    sure_C = near_C["correlation"] >= CONFLICT_CORRELATION
    for number in sure_C.nonzero()[0].tolist():
        first, second = plan.search.pair_P2[number].tolist()
        kind, correlation = KINDS[near_C["kind"][number]], float(near_C["correlation"][number])
        pair = {int(label_P[content]): content for content in (first, second)}
        exact = -1 if max(pair) >= len(pictures.labels) else _most_exact(pictures.labels, set(pair))
        if len(pair) == 1 and exact >= 0:
            # They agree: exact copies of a vaguer class are gone already.
            continue
        if exact >= 0:
            (less,) = pair.keys() - {exact}
            other = pictures.word("source", kept_P[pair[exact]])
            why = f"{kind} copy of {other}, whose class {pictures.labels[exact]} says more"
            plan.vague |= dict.fromkeys(contents.members(pair[less]), why)
            continue
        some, others = contents.members(first), contents.members(second)
        plan.conflict += _conflicts(pictures, some, others, kind, correlation)
        why = f"{kind} copies with different labels: {contents.names_of(first, second)}"
        plan.conflicting |= dict.fromkeys(some + others, why)
    # A sure copy of a disputed picture is as doubtful, and so is a copy of that one.
    part_P = _join_groups(len(kept_P), plan.search.pair_P2[sure_C])
    part_N = part_P[number_N["content"]]
    why = "copy of pictures with different labels"
    for n in np.isin(part_N, part_N[list(plan.conflicting)]).nonzero()[0].tolist():
        plan.conflicting.setdefault(n, why)
    plan.copy_C = np.concatenate([plan.copy_C, near_C])
    link_C2 = own_N[np.stack([plan.copy_C["first"], plan.copy_C["second"]], 1)]
    plan.group_N = _join_groups(pictures.groups, link_C2)[own_N]


def _said_better(plan: Plan, contents: Contents) -> set[str]:
    """The classes of which every picture is a copy of one whose class says more."""
    number_N, labels = plan.pictures.number_N, plan.pictures.labels
    less_N = number_N["label"] != contents.label_P[number_N["content"]]
    less_N[list(plan.vague)] = True
    less_N[list(plan.conflicting)] = False
    return {labels[label] for label in set(number_N["label"]) - set(number_N["label"][~less_N])}


def _most_exact(labels: list[str], numbers: set[int]) -> int:
    """Of some labels the one that says all that the others say and more, -1 where none does.

    An organ alone says less than one with a condition, "Breast" than "Breast-Benign"; SAYS_LESS has more.
    Other longer names contradict: a "Prostate" is no "Prostate-Phantom", and a "Thyroid-Nodule" no
    "Thyroid-Nodule-DDTI".
    """

    def says_less(label: str, other: str) -> bool:
        organ, _, condition = other.partition("-")
        return (label == organ and condition not in NO_CONDITION) or other in SAYS_LESS.get(label, ())

    for number in numbers:
        if all(says_less(labels[other], labels[number]) for other in numbers - {number}):
            return number
    return -1


def _own_group(picture: Picture) -> str:
    """The patient where known, else the picture's content, so that a new file name changes nothing."""
    return f"{picture.dataset}/{picture.group}" if picture.group else f"sha256/{picture.sha256}"


def _conflicts(
    pictures: Pictures, some: list[int], others: list[int], kind: str, correlation: float
) -> list[tuple[int, int, int, float]]:
    """Rows of COPY for two lists of exact copies with different labels, or for the pairs inside one list."""
    label_N, rows = pictures.number_N["label"], []
    for p, q in product(some, others):
        if label_N[p] == label_N[q]:
            continue
        if some == others and pictures.word("source", p) > pictures.word("source", q):
            continue
        rows.append((p, q, KINDS.index(kind), correlation))
    return rows


def _join_groups(groups: int, link_C2: np.ndarray) -> np.ndarray:
    """Join groups by the pictures they share.

    Returns:
        (G,) the number of the first group that each is joined with, which is the first by name.
    """
    graph = coo_matrix((np.ones(len(link_C2), bool), link_C2.T), shape=(groups, groups))
    part_G = connected_components(graph, directed=False)[1]
    return np.unique(part_G, return_index=True)[1][part_G]


def _require_three_groups(plan: Plan, kept_K: np.ndarray, extra_classes: tuple[str, ...], where: str) -> None:
    label_K, labels = plan.pictures.number_N["label"][kept_K], plan.pictures.labels
    images = Counter({labels[label]: n for label, n in enumerate(np.bincount(label_K).tolist()) if n})
    pair_M2 = np.unique(np.stack([label_K, plan.group_N[kept_K]], 1), axis=0)
    groups = Counter({labels[label]: n for label, n in enumerate(np.bincount(pair_M2[:, 0]).tolist()) if n})
    few = [
        f"{name} ({images[name]} image(s) in {groups[name]} group(s))"
        for name in sorted({*images, *extra_classes})
        if groups[name] < len(SPLITS)
    ]
    if few:
        names = " ".join(entry.split(" (")[0] for entry in few)
        remedy = "raise --cap" if where else "add images, let --own-patients tell more patients apart"
        raise InputError(
            f"too few different patients or pictures{where} in class {', '.join(few)}; wanted at least 3, "
            f"one each for train, val and test: {remedy}, or leave out with --exclude-classes {names}"
        )


def _draw(plan: Plan, kept_K: np.ndarray, seed: int, cap: int) -> np.ndarray:
    """At most `cap` pictures of each data set: whole groups in random order, but part of a large one.

    Classes and official splits stay in proportion: the single pictures of a test part would crowd out the
    long videos of the training part.
    """
    pictures, drawn = plan.pictures, []
    dataset_N, label_N, official_N = (pictures.number_N[name] for name in ("dataset", "label", "official"))
    dataset_K = dataset_N[kept_K]

    def parts_of(members: list[int]) -> Counter:
        """How many there are of each class in each official split."""
        return Counter(zip(label_N[members].tolist(), official_N[members].tolist(), strict=True))

    for dataset in dict.fromkeys(dataset_K.tolist()):
        member_K = kept_K[dataset_K == dataset]
        if not cap or len(member_K) <= cap:
            drawn.append(member_K)
            continue
        room = _quotas(parts_of(member_K), cap)
        groups = defaultdict(list)
        for n, group in zip(member_K.tolist(), plan.group_N[member_K].tolist(), strict=True):
            groups[group].append(n)
        # Large groups are thinned, or a few of them would fill the quota of their class.
        sizes = defaultdict(list)
        for group in groups.values():
            for part, size in parts_of(group).items():
                sizes[part].append(size)
        most = {part: _most_of_a_group(sizes[part], room[part]) for part in sizes}
        for number, group in groups.items():
            limit = min(most[part] for part in parts_of(group))
            if len(group) > limit:
                group.sort(key=lambda n: share_of(seed, "thin", pictures.word("sha256", n)))
                groups[number] = group[:limit]
        for number in sorted(groups, key=lambda number: share_of(seed, "cap", pictures.group(number))):
            wanted = parts_of(groups[number])
            if all(room[part] >= n for part, n in wanted.items()):
                room.subtract(wanted)
                drawn.append(np.array(groups[number]))
    return np.concatenate([np.empty(0, np.int64), *drawn])


def _most_of_a_group(sizes: list[int], quota: int) -> int:
    """How many pictures of a group are taken at most: what lets all groups in, or FEW_GROUPS of many.

    Args:
        sizes: pictures of each group of a class in an official split.
        quota: how many pictures of them all are taken.

    Returns:
        At most a third of the quota: one long video among single pictures does not take half of it.
    """
    left, third = quota, max(1, quota // 3)
    for i, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - i)
        if size > share:
            return min(max(1, share, quota // FEW_GROUPS), third)
        left -= size
    return third


def _quotas(counts: Counter, cap: int) -> Counter:
    """The cap shared out in proportion to the counts, by largest remainder, but three to each class.

    Args:
        counts: pictures of each class in each official split.
        cap: how many of them all are taken.
    """
    exact = {name: cap * n / counts.total() for name, n in counts.items()}
    quotas = Counter({name: int(share) for name, share in exact.items()})
    left = cap - quotas.total()
    for name in sorted(exact, key=lambda name: (int(exact[name]) - exact[name], name))[:left]:
        quotas[name] += 1
    for label in sorted({label for label, _ in counts}):
        own = Counter({part: n for part, n in counts.items() if part[0] == label})
        while sum(quotas[part] for part in own) < min(len(SPLITS), own.total()):
            giver = max(sorted(quotas), key=quotas.get)
            if quotas[giver] <= len(SPLITS):
                # Too many classes for this cap, which the check of what was drawn says.
                break
            left = [part for part in sorted(own) if quotas[part] < own[part]]
            taker = max(left, key=lambda part: (not quotas[part], own[part]))
            quotas[giver], quotas[taker] = quotas[giver] - 1, quotas[taker] + 1
    return quotas


def _choose_splits(plan: Plan, drawn_K: np.ndarray, seed: int) -> np.ndarray:
    """Official splits are kept; the rest follows the hash of seed and group.

    Returns:
        (G,) place in SPLITS of each group that was drawn.
    """
    pictures, group_K = plan.pictures, plan.group_N[drawn_K]
    dataset_K, official_K = (pictures.number_N[name][drawn_K] for name in ("dataset", "official"))
    has_DO = np.zeros((len(pictures.datasets), 1 + len(SPLITS)), bool)
    has_DO[dataset_K, official_K] = True
    # Where the pictures of a data set and official split may go. Without an official train there is no split
    # to keep; splits that are missing are drawn from train.
    may_DOS = np.ones((*has_DO.shape, len(SPLITS)), bool)
    for dataset in np.flatnonzero(has_DO[:, 1]):
        may_DOS[dataset, 1:] = np.eye(len(SPLITS))
        may_DOS[dataset, 1] |= ~has_DO[dataset, 1:]
    allowed_GS = np.ones((pictures.groups, len(SPLITS)), bool)
    for group, may_S in zip(group_K.tolist(), may_DOS[dataset_K, official_K], strict=True):
        both_S = allowed_GS[group] & may_S
        if not both_S.any():
            # Near copies on two official sides: the more held-out side gets both.
            both_S[np.flatnonzero(allowed_GS[group] | may_S)[-1]] = True
        allowed_GS[group] = both_S
    names = pictures.db.execute("SELECT name FROM own ORDER BY number")
    position_G = np.fromiter((share_of(seed, "split", name) for (name,) in names), float)
    # A group goes to the split in whose part of the allowed shares its position falls.
    bounds_GS = np.cumsum(allowed_GS * SHARES, axis=1)
    split_G = (position_G[:, None] * bounds_GS[:, -1:] >= bounds_GS).sum(1)
    pair_M2 = np.unique(np.stack([group_K, pictures.number_N["label"][drawn_K]], 1), axis=0)
    _fill_splits(split_G, position_G, allowed_GS, pair_M2, pictures.labels)
    return split_G


def _fill_splits(
    split_G: np.ndarray,
    position_G: np.ndarray,
    allowed_GS: np.ndarray,
    pair_M2: np.ndarray,
    labels: list[str],
) -> None:
    """Where a class has too few groups in a split, move those whose hashes lie nearest.

    One group of each class must be in each split, and LEAST_HELD_OUT of them, if the class is large enough,
    should be in val and test. No move leaves another class, or another split, with less than that.

    Args:
        split_G: is changed.
        position_G: where the hash puts each group, 0 to 1.
        allowed_GS: whether a group may go to a split.
        pair_M2: the groups and the classes that each has, sorted.
    """
    lows = np.cumsum([0, *SHARES[:-1]])
    group_M, label_M = pair_M2.T
    size_L = np.bincount(label_M, minlength=len(labels))
    held_out_L = np.clip((size_L * MOST_HELD_OUT).astype(int), 1, LEAST_HELD_OUT)
    tally_LS = np.zeros((len(labels), len(SPLITS)), np.int64)
    np.add.at(tally_LS, (label_M, split_G[group_M]), 1)

    def labels_of(group: int) -> np.ndarray:
        return label_M[slice(*np.searchsorted(group_M, [group, group + 1]))]

    def fill(label: int, split: int, least_LS: np.ndarray) -> None:
        groups = group_M[label_M == label]
        middle = lows[split] + SHARES[split] / 2
        while tally_LS[label, split] < least_LS[label, split]:
            movable = [
                group
                for group in groups[allowed_GS[groups, split]].tolist()
                if split_G[group] != split
                and all(
                    tally_LS[other, split_G[group]] > least_LS[other, split_G[group]]
                    for other in labels_of(group)
                )
            ]
            if not movable and tally_LS[label, split]:
                return
            if not movable:
                raise InputError(
                    f"class {labels[label]} has no picture for {SPLITS[split]}: its {len(groups)} groups "
                    "belong to other splits, wanted at least one each for train, val and test: add images, "
                    f"or leave out with --exclude-classes {labels[label]}"
                )
            # Of two as near the first by name: groups are numbered by their names.
            nearest = min(movable, key=lambda group: (abs(position_G[group] - middle), group))
            tally_LS[labels_of(nearest), split_G[nearest]] -= 1
            tally_LS[labels_of(nearest), split] += 1
            split_G[nearest] = split

    must_LS = np.ones_like(tally_LS)
    should_LS = np.stack([np.maximum(size_L // 2, 1), held_out_L, held_out_L], 1)
    for least_LS in (must_LS, should_LS):
        for label, split in product(np.unique(label_M).tolist(), range(len(SPLITS))):
            fill(label, split, least_LS)


def leak_report(plan: Plan) -> dict:
    """What leak_report.json says: copies examined, found and dropped, and a check of the final places.

    The check looks only at the splits and at what was known of the pictures, not at the plan's groups alone.
    """
    pictures, search, split_N, copy_C = plan.pictures, plan.search, plan.split_N, plan.copy_C
    own_N, dataset_N, official_N = (pictures.number_N[name] for name in ("own", "dataset", "official"))
    pair_C2 = np.stack([copy_C["first"], copy_C["second"]], 1)
    exact, near, mirror = np.bincount(copy_C["kind"], minlength=len(KINDS)).tolist()
    by_sets = defaultdict(dict)
    among_C3 = np.column_stack([np.sort(dataset_N[pair_C2], 1), copy_C["kind"]])
    for (one, other, kind), count in zip(*_counted(among_C3), strict=True):
        sets = " | ".join(pictures.datasets[dataset] for dataset in dict.fromkeys((one, other)))
        by_sets[sets][KINDS[kind]] = count
    official = Counter()
    side_C2 = official_N[pair_C2]
    for pair in pair_C2[(side_C2 > 0).all(1) & (side_C2[:, 0] != side_C2[:, 1])]:
        # Of exact copies one is kept, and a cap or a conflict may have taken either.
        went = sorted({SPLITS[split] for split in split_N[pair] if split >= 0})
        sides = " and ".join(SPLITS[split - 1] for split in sorted(official_N[pair]))
        official[f"{sides}: went to {', '.join(went) or 'neither'}"] += 1
    joined = len(np.unique(_join_groups(pictures.groups, own_N[pair_C2])))
    of_pair_C2 = split_N[pair_C2]
    return {
        "pictures_examined": len(pictures),
        "exact_copies": {
            "found": exact,
            "dropped": int((~np.isin(copy_C["second"][copy_C["kind"] == 0], list(plan.for_labels))).sum()),
        },
        "near_copies": {
            "hash_pairs_compared": search.compared,
            "candidates": search.candidates,
            # Of one class and already in one group by their patient, video or other copies.
            "candidates_already_joined": search.already_joined,
            "candidates_examined": search.examined,
            "near_found": near,
            "mirror_found": mirror,
        },
        "pairs_by_data_sets": {
            name: dict(sorted(counts.items())) for name, counts in sorted(by_sets.items())
        },
        "label_conflicts": {"pairs": len(plan.conflict), "pictures_dropped": len(plan.conflicting)},
        # Copies of pictures whose class says more, such as "Breast-Benign" instead of "Breast".
        "vaguer_copies": {"pictures_dropped": len(plan.vague)},
        "groups": {
            "before_joining": pictures.groups,
            "after_joining": joined,
            "joined": pictures.groups - joined,
        },
        "across_splits": {
            "groups": _across_splits(plan.group_N, split_N),
            "patients_or_videos": _across_splits(own_N, split_N),
            "pairs_of_copies": int(((of_pair_C2 >= 0).all(1) & (of_pair_C2[:, 0] != of_pair_C2[:, 1])).sum()),
        },
        "pairs_on_two_official_sides": dict(sorted(official.items())),
        "thresholds": {
            "near_bits_of_63": NEAR_BITS,
            "plain_correlation": PLAIN_CORRELATION,
            "near_correlation": NEAR_CORRELATION,
            "conflict_correlation": CONFLICT_CORRELATION,
        },
    }


def _counted(row_CK: np.ndarray) -> tuple[list, list]:
    """The different rows, and how often each is there."""
    rows, counts = np.unique(row_CK, axis=0, return_counts=True)
    return rows.tolist(), counts.tolist()


def _across_splits(group_N: np.ndarray, split_N: np.ndarray) -> int:
    """How many groups have kept pictures in more than one split."""
    kept_N = split_N >= 0
    pair_M2 = np.unique(np.stack([group_N[kept_N], split_N[kept_N]], 1), axis=0)
    return int((np.unique(pair_M2[:, 0], return_counts=True)[1] > 1).sum())
