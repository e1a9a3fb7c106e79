"""No copy, patient or video on two sides; splits that stay when other pictures come and go."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from data_preprocessing import splits
from data_preprocessing.splits import Picture, dhash, make_plan, near_pairs
from usvar.errors import InputError


def picture(number: int, **changes: object) -> Picture:
    """A picture unlike all others; the number decides its pixels."""
    rng = np.random.default_rng(number)
    values = {
        "source": f"set/{number}.png",
        "dataset": "set",
        "class_name": "A",
        "group": "",
        "split": "",
        "sha256": rng.bytes(32).hex(),
        "dhash": int.from_bytes(rng.bytes(8), "big"),
        "small": rng.bytes(splits.SMALL_SIDE**2),
    }
    return Picture(**(values | changes))


def near(original: Picture, number: int, **changes: object) -> Picture:
    """A near copy: two bits of the hash and a little of the pixels differ."""
    small = np.frombuffer(original.small, np.uint8).astype(int) // 2 + 20
    small[number % small.size] += 30
    values = {"dhash": original.dhash ^ 0b101, "small": small.astype(np.uint8).tobytes(), "group": ""}
    return picture(number, **(values | {"class_name": original.class_name} | changes))


def split_by_source(pictures: list[Picture], seed: int = 0, cap: int = 0) -> dict[str, str]:
    return {source: place.split for source, place in make_plan(pictures, seed, cap).places.items()}


def test_shares_are_80_10_10():
    counts = Counter(split_by_source([picture(i) for i in range(3000)]).values())
    np.testing.assert_allclose([counts[s] / 3000 for s in splits.SPLITS], [0.8, 0.1, 0.1], atol=0.02)


def test_groups_never_cross():
    """Patients, near copies of their pictures, and exact copies that join two patients."""
    pictures = [picture(i, group=f"p{i // 4}") for i in range(400)]
    pictures += [near(pictures[4 * i], 1000 + i, group=f"q{i}") for i in range(50)]
    pictures += [picture(2000 + i, group="r1", sha256=pictures[8].sha256, source="z") for i in range(1)]
    pictures += [picture(2100 + i, group="r1") for i in range(3)]
    plan = make_plan(pictures, 0, 0)
    sides = defaultdict(set)
    for p in pictures:
        if p.source in plan.places:
            sides[p.group].add(plan.places[p.source])
    assert all(len(places) == 1 for places in sides.values())
    for i in range(50):
        assert sides[f"q{i}"] == sides[f"p{i}"]
    assert sides["r1"] == sides["p2"] and plan.dropped == {"z": "exact copy of set/8.png"}


def test_look_alikes_are_not_joined():
    """Two fans of one machine have near hashes but other contents; they once chained a whole set."""
    pictures = [picture(i, dhash=7) for i in range(30)]
    assert len({place.group for place in make_plan(pictures, 0, 0).places.values()}) == 30


def test_adding_renaming_and_order_move_nothing():
    pictures = [picture(i) for i in range(300)]
    before = split_by_source(pictures)
    after = split_by_source([*(picture(i) for i in range(1000, 1200)), *pictures[::-1]])
    assert {source: after[source] for source in before} == before
    renamed = [picture(i, source=f"new name {i}") for i in range(300)]
    after = split_by_source(renamed)
    assert [after[f"new name {i}"] for i in range(300)] == [before[f"set/{i}.png"] for i in range(300)]
    assert split_by_source(pictures, seed=1) != before


def test_small_classes_reach_every_split_without_robbing_another():
    pictures = [picture(i, class_name=name, group=f"{name}{i}") for name in "ABCDEFGH" for i in range(3)]
    pictures = [
        picture(100 * ord(p.class_name) + int(p.group[1:]), class_name=p.class_name, group=p.group)
        for p in pictures
    ]
    for seed in range(5):
        chosen = split_by_source(pictures, seed)
        for name in "ABCDEFGH":
            assert {chosen[p.source] for p in pictures if p.class_name == name} == set(splits.SPLITS)


def test_two_groups_are_too_few_and_named():
    pictures = [picture(i) for i in range(20)]
    pictures += [picture(50 + i, class_name="B", group=f"p{i % 2}") for i in range(20)]
    with pytest.raises(InputError, match=r"class B \(20 image\(s\) in 2 group\(s\)\).*--exclude-classes B"):
        make_plan(pictures, 0, 0)


def test_official_splits_are_kept_and_missing_ones_come_from_train():
    pictures = [picture(i, split="train") for i in range(100)]
    pictures += [picture(200 + i, split="test") for i in range(20)]
    chosen = split_by_source(pictures)
    assert {chosen[p.source] for p in pictures if p.split == "test"} == {"test"}
    assert {chosen[p.source] for p in pictures if p.split == "train"} == {"train", "val"}
    pictures += [picture(300 + i, split="val") for i in range(20)]
    assert split_by_source(pictures) == {p.source: p.split for p in pictures}


def test_copies_over_official_splits_go_to_the_held_out_side():
    pictures = [picture(i, split=s) for i, s in enumerate(["train", "val", "test"] * 10)]
    pictures.append(near(pictures[2], 500, split="train"))
    pictures.append(picture(600, split="train", sha256=pictures[5].sha256))
    plan = make_plan(pictures, 0, 0)
    assert plan.places["set/500.png"].split == "test"
    assert plan.places["set/5.png"].split == "test" and list(plan.dropped) == ["set/600.png"]


def test_copies_with_two_labels_are_all_dropped():
    pictures = [picture(i, class_name="AB"[i % 2]) for i in range(20)]
    pictures.append(picture(30, class_name="B", sha256=pictures[0].sha256))
    plan = make_plan(pictures, 0, 0)
    assert set(plan.dropped) == {"set/0.png", "set/30.png"}
    assert not set(plan.dropped) & set(plan.places)


def test_cap_takes_whole_groups_and_keeps_the_class_ratio():
    pictures = [picture(i, class_name="B" if i < 250 else "A", group=f"p{i // 5}") for i in range(1000)] + [
        picture(2000 + i, dataset="small") for i in range(30)
    ]
    plan = make_plan(pictures, 0, 200)
    drawn = [p for p in pictures if p.source in plan.places]
    counts = Counter((p.dataset, p.class_name) for p in drawn)
    assert counts == {("set", "A"): 150, ("set", "B"): 50, ("small", "A"): 30}
    sizes = Counter(p.group for p in drawn if p.dataset == "set")
    assert set(sizes.values()) == {5}
    assert plan.over_cap == {"set": 800}
    # The same groups are drawn whatever the order, others with another seed.
    assert make_plan(pictures[::-1], 0, 200).places == plan.places
    assert make_plan(pictures, 1, 200).places.keys() != plan.places.keys()


def test_a_long_video_does_not_fill_the_cap():
    pictures = [picture(i, group="long") for i in range(500)]
    pictures += [picture(1000 + i, group=f"p{i}") for i in range(60)]
    plan = make_plan(pictures, 0, 90)
    groups = Counter(p.group for p in pictures if p.source in plan.places)
    assert sum(groups.values()) <= 90 and 0 < groups["long"] <= 30 and len(groups) > 30


def test_near_pairs_against_all_pairs():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 700, dtype=np.uint64)
    hashes[300:400] = hashes[:100] ^ np.uint64(1 << 63 | 1)
    wanted = {
        (i, j) for i in range(700) for j in range(i + 1, 700) if int(hashes[i] ^ hashes[j]).bit_count() <= 3
    }
    found = near_pairs(hashes, 3)
    assert {tuple(pair) for pair in found.tolist()} == wanted and len(wanted) >= 100


def test_dhash_is_the_sign_of_the_horizontal_step():
    falling = np.tile(np.arange(9, 0, -1, dtype=np.uint8), (8, 1))
    assert dhash(falling) == 2**64 - 1 and dhash(falling[:, ::-1]) == 0
    one = np.zeros((8, 9), np.uint8)
    one[0, 0] = 1
    assert dhash(one) == 1 << 63
