"""No copy, patient or video on two sides; splits that stay when other pictures come and go."""

import csv
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data_preprocessing import prepare_datasets, splits
from data_preprocessing.near_copies import signature
from data_preprocessing.splits import Picture, Place, Plan, leak_report
from usvar.errors import InputError


def image(number: int) -> np.ndarray:
    """A (48, 64) uint8 picture unlike all others: smoothed noise."""
    noise_HW = ndimage.gaussian_filter(np.random.default_rng(number).normal(size=(48, 64)), 3)
    return np.clip(128 + noise_HW * (50 / noise_HW.std()), 0, 255).astype(np.uint8)


def picture(number: int, **changes: object) -> Picture:
    """A picture unlike all others; the number decides its pixels."""
    values = {
        "source": f"set/{number}.png",
        "dataset": "set",
        "class_name": "A",
        "group": "",
        "split": "",
        "sha256": np.random.default_rng(number).bytes(32).hex(),
    }
    if "signature" not in changes:
        values["signature"] = signature(image(number))
    return Picture(**(values | changes))


def near(original: int, number: int, **changes: object) -> Picture:
    """A near copy of picture `original`: one column narrower and a little brighter."""
    return picture(number, signature=signature(image(original)[:, 1:] // 2 + 100), **changes)


@dataclass(frozen=True)
class Outcome:
    """A plan in words."""

    plan: Plan
    places: dict[str, Place]
    dropped: dict[str, str]
    copies: list[tuple[str, str, str, float]]
    conflicts: list[dict[str, str]]

    def move(self, source: str) -> None:
        """Put a picture into another split, past all rules."""
        (n,) = self.plan.pictures.db.execute("SELECT n FROM picture WHERE source = ?", (source,)).fetchone()
        self.plan.split_N[n] = {0: 2, 1: 0, 2: 0}[int(self.plan.split_N[n])]


def make_plan(pictures: list[Picture], seed: int, cap: int) -> Outcome:
    plan = splits.make_plan(pictures, seed, cap)
    copies = [
        (*(plan.pictures.word("source", n) for n in (first, second)), splits.KINDS[kind], float(correlation))
        for first, second, kind, correlation in plan.copy_C
    ]
    return Outcome(plan, dict(plan.places()), dict(plan.dropped()), copies, list(plan.conflicts()))


def split_by_source(pictures: list[Picture], seed: int = 0, cap: int = 0) -> dict[str, str]:
    return {source: place.split for source, place in make_plan(pictures, seed, cap).places.items()}


def test_shares_are_80_10_10():
    counts = Counter(split_by_source([picture(i) for i in range(3000)]).values())
    np.testing.assert_allclose([counts[s] / 3000 for s in splits.SPLITS], [0.8, 0.1, 0.1], atol=0.02)


def test_groups_never_cross():
    """Patients, near copies of their pictures, and exact copies that join two patients."""
    pictures = [picture(i, group=f"p{i // 4}") for i in range(400)]
    pictures += [near(4 * i, 1000 + i, group=f"q{i}") for i in range(50)]
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
    pictures = [picture(i, signature=replace(signature(image(i)), hash=7)) for i in range(30)]
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


def test_a_class_that_is_large_enough_can_be_judged_in_val_and_test():
    """Four groups each where that is an eighth of the class or less; patients of two classes rob neither."""
    sizes = {"A": 8, "B": 20, "C": 32, "D": 45, "E": 300}
    wanted = {"A": 1, "B": 2, "C": 4, "D": 4, "E": 4}
    pictures = [
        picture(1000 * ord(name) + i, class_name=name, group=f"{name}{i}")
        for name, size in sizes.items()
        for i in range(size)
    ]
    # Seven patients have a picture of another class as well.
    pictures += [
        picture(10**6 + i, class_name="BCDEA"[i % 5], group=f"{'ABCDE'[i % 5]}{i}") for i in range(7)
    ]
    moved = 0
    for seed in range(20):
        plan = make_plan(pictures, seed, 0)
        groups = defaultdict(set)
        for p in pictures:
            groups[p.class_name, plan.places[p.source].split].add(p.group)
        for name in sizes:
            train, val, test = (len(groups[name, split]) for split in splits.SPLITS)
            assert val >= wanted[name] and test >= wanted[name]
            assert train >= (train + val + test) // 2
        by_hash = [splits.share_of(seed, "split", place.group) for place in plan.places.values()]
        by_hash = [splits.SPLITS[int(np.searchsorted([0.8, 0.9], share, side="right"))] for share in by_hash]
        moved += sum(a != place.split for a, place in zip(by_hash, plan.places.values(), strict=True))
    # No more than what is missing moves: of 20 x 412 pictures few.
    assert 0 < moved < 200


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
    pictures.append(near(2, 500, split="train"))
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


def test_near_copies_share_a_side_over_data_sets_and_mirrored():
    pictures = [picture(i) for i in range(200)]
    pictures += [near(i, 1000 + i, dataset="other", source=f"other/{i}") for i in range(0, 100, 2)]
    pictures += [
        picture(2000 + i, signature=signature(image(i)[:, ::-1]), dataset="mirrored", source=f"mirrored/{i}")
        for i in range(1, 100, 2)
    ]
    plan = make_plan(pictures, 0, 0)
    assert not plan.dropped and len(plan.places) == 300
    for i in range(100):
        other = f"{'mirrored' if i % 2 else 'other'}/{i}"
        assert plan.places[other] == plan.places[f"set/{i}.png"]
    assert Counter(kind for _, _, kind, _ in plan.copies) == {"near": 50, "mirror": 50}


def test_near_copies_keep_their_side_under_new_names_and_orders():
    """The near copy's name once decided which of two was compared with which."""
    pictures = [picture(i) for i in range(100)] + [near(i, 1000 + i) for i in range(0, 100, 3)]
    before = make_plan(pictures, 0, 0)
    assert len(before.copies) == 34
    renamed = make_plan([replace(p, source=f"{p.sha256}.png") for p in pictures[::-1]], 0, 0)
    assert {p.source: renamed.places[f"{p.sha256}.png"] for p in pictures} == before.places
    sha256 = {p.source: p.sha256 for p in pictures}
    assert [(f"{sha256[a]}.png", f"{sha256[b]}.png", *rest) for a, b, *rest in before.copies] == (
        renamed.copies
    )
    more = [*pictures, *(picture(i) for i in range(5000, 5100))]
    after = make_plan(more, 0, 0).places
    assert {source: after[source] for source in before.places} == before.places


def test_near_copies_with_two_labels_are_dropped_and_listed():
    pictures = [picture(i, class_name="AB"[i % 2]) for i in range(20)]
    pictures.append(near(0, 30, class_name="B", dataset="other"))
    pictures.append(picture(31, class_name="B", signature=signature(image(2)[:, ::-1])))
    # An exact copy of one with a near copy of another label goes with it.
    pictures.append(
        picture(32, source="again.png", sha256=pictures[0].sha256, signature=pictures[0].signature)
    )
    plan = make_plan(pictures, 0, 0)
    gone = {"set/0.png", "again.png", "set/30.png", "set/2.png", "set/31.png"}
    assert set(plan.dropped) == gone and not gone & set(plan.places)
    assert all("copies with different labels: A, B" in why for why in plan.dropped.values())
    listed = {(frozenset((row["source"], row["other_source"])), row["kind"]) for row in plan.conflicts}
    assert listed == {
        (frozenset(("set/0.png", "set/30.png")), "near"),
        (frozenset(("again.png", "set/30.png")), "near"),
        (frozenset(("set/2.png", "set/31.png")), "mirror"),
    }
    row = next(row for row in plan.conflicts if "set/31.png" in row.values())
    assert list(row) == splits.CONFLICT and {row["class"], row["other_class"]} == {"A", "B"}
    assert float(row["correlation"]) >= splits.CONFLICT_CORRELATION


def test_a_copy_of_a_disputed_picture_is_dropped_too():
    """It stayed where the picture of the other class is a less sure copy of it than of the disputed one."""

    def marked(top: int, left: int) -> np.ndarray:
        marked_HW = image(0).copy()
        marked_HW[top : top + 7, left : left + 8] = 255
        return marked_HW

    pictures = [picture(i, class_name="AB"[i % 2]) for i in range(20)]
    pictures.append(picture(30, class_name="A", signature=signature(marked(14, 20))))
    pictures.append(picture(31, class_name="B", signature=signature(marked(20, 30))))
    plan = make_plan(pictures, 0, 0)
    correlation = {frozenset(pair): value for *pair, _, value in plan.copies}
    assert correlation[frozenset(("set/30.png", "set/31.png"))] < splits.CONFLICT_CORRELATION
    assert plan.dropped == {
        "set/0.png": "near copies with different labels: A, B",
        "set/31.png": "near copies with different labels: A, B",
        "set/30.png": "copy of pictures with different labels",
    }
    assert len(plan.conflicts) == 1
    assert leak_report(plan.plan)["label_conflicts"] == {"pairs": 1, "pictures_dropped": 3}
    # A less sure copy of it is joined and keeps its label.
    pictures[-2] = replace(pictures[-2], signature=signature(marked(6, 8)))
    assert make_plan(pictures, 0, 0).dropped.keys() == {"set/0.png", "set/31.png"}


def test_frames_of_one_patient_with_two_labels_are_no_conflict():
    """A sweep passes from healthy to ill tissue; only the very same pixels with two labels are an error."""
    pictures = [picture(i, class_name="AB"[i % 2]) for i in range(20)]
    pictures += [picture(50, class_name="A", group="p1"), near(50, 51, class_name="B", group="p1")]
    plan = make_plan(pictures, 0, 0)
    assert not plan.dropped and not plan.conflicts and len(plan.places) == 22
    pictures.append(picture(52, class_name="A", group="p1", sha256=pictures[-1].sha256))
    plan = make_plan(pictures, 0, 0)
    assert set(plan.dropped) == {"set/51.png", "set/52.png"}
    assert [row["kind"] for row in plan.conflicts] == ["exact"]


def test_less_sure_copies_with_two_labels_are_joined_but_kept(monkeypatch):
    monkeypatch.setattr(splits, "CONFLICT_CORRELATION", 1.01)
    pictures = [picture(i, class_name="AB"[i % 2]) for i in range(20)] + [near(0, 30, class_name="B")]
    plan = make_plan(pictures, 0, 0)
    assert not plan.dropped and plan.places["set/30.png"] == plan.places["set/0.png"]


def leaky_pictures() -> list[Picture]:
    """Patients, near and exact copies over two sets, and copies on two official sides."""
    pictures = [picture(i, group=f"p{i // 2}") for i in range(100)]
    pictures += [near(i, 1000 + i, dataset="other", source=f"other/{i}") for i in range(0, 20, 2)]
    pictures += [
        picture(2000 + i, signature=signature(image(i)[:, ::-1]), group=f"q{i}") for i in range(41, 49, 2)
    ]
    pictures += [picture(3000, sha256=pictures[60].sha256), picture(3001, sha256=pictures[62].sha256)]
    official = [picture(4000 + i, dataset="third", split=["train", "test"][i % 2]) for i in range(20)]
    official += [
        near(4000, 4100, dataset="third", split="test"),
        near(4003, 4101, dataset="third", split="train"),
    ]
    return pictures + official


def test_leak_report_counts_what_was_planted():
    pictures = leaky_pictures()
    report = leak_report(make_plan(pictures, 0, 0).plan)
    assert report["pictures_examined"] == 138
    assert report["exact_copies"] == {"found": 2, "dropped": 2}
    near_copies = report["near_copies"]
    assert (near_copies["near_found"], near_copies["mirror_found"]) == (12, 4)
    # 136 pictures without their exact copies; of each patient's two none is compared further.
    assert near_copies["hash_pairs_compared"] == 136 * 135 // 2
    assert (
        near_copies["candidates_examined"] + near_copies["candidates_already_joined"]
        == near_copies["candidates"]
    )
    assert report["pairs_by_data_sets"] == {
        "other | set": {"near": 10},
        "set": {"exact": 2, "mirror": 4},
        "third": {"near": 2},
    }
    # 50 patients, 10 near copies, 4 further patients, 2 exact copies, 22 with official splits.
    assert report["groups"] == {"before_joining": 88, "after_joining": 70, "joined": 18}
    assert report["pairs_on_two_official_sides"] == {"train and test: went to test": 2}
    assert set(report["across_splits"].values()) == {0}
    assert report["label_conflicts"] == {"pairs": 0, "pictures_dropped": 0}


def test_leak_report_sees_a_wrong_place():
    """The check does not trust the plan's own groups."""
    pictures = leaky_pictures()
    plan = make_plan(pictures, 0, 0)
    plan.plan.group_N[:] = np.arange(len(pictures))
    plan.move("other/0")
    across = leak_report(plan.plan)["across_splits"]
    assert across == {"groups": 0, "patients_or_videos": 0, "pairs_of_copies": 1}
    plan.move("set/50.png")
    assert leak_report(plan.plan)["across_splits"]["patients_or_videos"] == 1


def test_a_prepared_folder_holds_both_reports(tmp_path, capsys):
    """Two copies planted over sets, one of them under another class, on real files and with a second run."""
    for number in range(24):
        path = tmp_path / "raw" / "mine" / "AB"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(number)).save(path)
    for source, name in ((0, "A"), (1, "A")):
        path = tmp_path / "raw" / "other" / name / f"copy of {source}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(source)).resize((128, 96)).save(path, quality=80)
    settings = prepare_datasets.Settings(tmp_path / "raw", tmp_path / "out", size=32, workers=1)
    prepare_datasets.main(settings)
    said = capsys.readouterr().out
    assert "copies: 0 exact, 2 near, 0 mirrored, 2 pictures dropped for two labels; 0 groups" in said
    assert "shortcut: metadata alone tells the class" in said
    with open(tmp_path / "out" / "label_conflicts.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert {row["source"], row["other_source"]} == {"mine/B/1.png", "other/A/copy of 1.jpg"}
    report = json.loads((tmp_path / "out" / "leak_report.json").read_text(encoding="utf-8"))
    assert report["pairs_by_data_sets"] == {"mine | other": {"near": 2}}
    assert report["shortcut"]["pictures"] == 24
    with open(tmp_path / "out" / "manifest.csv", newline="", encoding="utf-8") as file:
        split_of = {row["source"]: row["split"] for row in csv.DictReader(file)}
    assert split_of["mine/A/0.png"] == split_of["other/A/copy of 0.jpg"]
    times = {
        name: (tmp_path / "out" / name).stat().st_mtime_ns
        for name in ("leak_report.json", "label_conflicts.csv")
    }
    prepare_datasets.main(settings)
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == time for name, time in times.items())


def test_cap_takes_whole_groups_and_keeps_the_class_ratio():
    pictures = [picture(i, class_name="B" if i < 250 else "A", group=f"p{i // 5}") for i in range(1000)] + [
        picture(2000 + i, dataset="small") for i in range(30)
    ]
    plan = make_plan(pictures, 0, 600)
    drawn = [p for p in pictures if p.source in plan.places]
    counts = Counter((p.dataset, p.class_name) for p in drawn)
    assert counts == {("set", "A"): 450, ("set", "B"): 150, ("small", "A"): 30}
    sizes = Counter(p.group for p in drawn if p.dataset == "set")
    assert set(sizes.values()) == {5}
    beyond = dict(plan.plan.over_cap())
    assert len(beyond) == 400 and set(beyond.values()) == {"over --cap 600 of its data set"}
    assert beyond.keys() == {p.source for p in pictures} - plan.places.keys()
    # The same groups are drawn whatever the order, others with another seed.
    assert make_plan(pictures[::-1], 0, 600).places == plan.places
    assert make_plan(pictures, 1, 600).places.keys() != plan.places.keys()
    # Of 50 patients of B ten whole ones would fill 50 places: too few to be judged.
    plan = make_plan(pictures, 0, 200)
    sizes = Counter(p.group for p in pictures if p.source in plan.places and p.class_name == "B")
    assert len(sizes) >= splits.FEW_GROUPS and sum(sizes.values()) == 50


def test_few_sweeps_all_get_into_the_cap():
    """TG3K: sixteen sweeps of two hundred frames; four whole ones would fill the cap."""
    pictures = [picture(i, group=f"sweep{i // 200}") for i in range(3200)]
    plan = make_plan(pictures, 0, 1000)
    groups = Counter(p.group for p in pictures if p.source in plan.places)
    assert len(groups) == 16 and set(groups.values()) == {62}


def test_many_singles_of_the_official_test_do_not_crowd_out_the_subjects():
    """US-nerve: 47 subjects of 120 frames and as many test frames of unknown ones; 4 subjects were drawn."""
    pictures = [picture(i, group=f"p{i // 40}", split="train") for i in range(47 * 40)]
    pictures += [picture(10**4 + i, split="test") for i in range(47 * 40)]
    plan = make_plan(pictures, 0, 400)
    drawn = [p for p in pictures if p.source in plan.places]
    assert Counter(p.split for p in drawn) == {"train": 198, "test": 200}
    assert len({p.group for p in drawn if p.split == "train"}) >= splits.FEW_GROUPS


def test_a_copy_whose_class_says_less_is_dropped_alone():
    """ "Breast" does not contradict "Breast-Benign": exact and near copies, the vaguer one goes."""
    pictures = [picture(i, class_name="Breast-Benign", group=f"p{i}") for i in range(20)]
    pictures += [picture(100 + i, class_name="Breast", dataset="vague") for i in range(10)]
    pictures += [near(i, 200 + i, class_name="Breast", dataset="vague") for i in range(3)]
    for i in range(3, 6):
        sha256 = pictures[i].sha256
        changes = {"sha256": sha256, "signature": pictures[i].signature, "split": "test"}
        pictures.append(picture(300 + i, class_name="Breast", dataset="vague", **changes))
    plan = make_plan(pictures, 0, 0)
    assert not plan.conflicts
    dropped = {f"set/{n}.png" for n in (200, 201, 202, 303, 304, 305)}
    assert plan.dropped.keys() == dropped and plan.places.keys() == {p.source for p in pictures} - dropped
    assert plan.dropped["set/200.png"] == "near copy of set/0.png, whose class Breast-Benign says more"
    assert plan.dropped["set/303.png"] == "exact copy of set/3.png"
    assert leak_report(plan.plan)["vaguer_copies"] == {"pictures_dropped": 3}
    # Two that say different things, and one that says less than both.
    more = [near(0, 400, class_name="Breast-Malignant", dataset="other")]
    dropped = make_plan(pictures + more, 0, 0).dropped
    assert "different labels" in dropped["set/400.png"] and "different labels" in dropped["set/0.png"]


@pytest.mark.parametrize("pathology", ["Thyroid-Benign", "Thyroid-Malignant"])
def test_a_nodule_of_unknown_pathology_says_less(pathology):
    """TNSCUI and its repack, which has no list of pathology, dropped each other."""
    pictures = [picture(i, class_name=pathology) for i in range(20)]
    pictures.append(near(0, 100, class_name="Thyroid-Nodule"))
    pictures.append(picture(101, class_name="Thyroid-Nodule", sha256=pictures[1].sha256))
    # Of the organ alone too; a gland is no nodule.
    pictures.append(near(0, 102, class_name="Thyroid"))
    pictures.append(near(2, 103, class_name="Thyroid-Gland"))
    plan = make_plan(pictures, 0, 0)
    assert plan.dropped.keys() == {f"set/{n}.png" for n in (100, 101, 102, 2, 103)}
    assert {row["class"] for row in plan.conflicts} <= {pathology, "Thyroid-Gland"}
    labels = ["Thyroid", "Thyroid-Benign", "Thyroid-Malignant", "Thyroid-Nodule"]
    assert splits._most_exact(labels, {0, 2, 3}) == 2 and splits._most_exact(labels, {1, 2, 3}) == -1


def test_a_class_of_copies_that_say_less_may_vanish():
    """STMUS_NDA with --include copies: of "Muscle" nothing was left, and the run stopped."""
    pictures = [picture(i, class_name="Muscle-Healthy") for i in range(20)]
    pictures.append(near(0, 100, class_name="Muscle"))
    same = {"sha256": pictures[1].sha256, "signature": pictures[1].signature}
    pictures.append(picture(101, class_name="Muscle", **same))
    plan = splits.make_plan(pictures, 0, 0, extra_classes=("Muscle", "Muscle-Healthy"))
    assert dict(plan.dropped()).keys() == {"set/100.png", "set/101.png"}
    # Not one of which a picture is dropped for two labels.
    pictures.append(near(2, 102, class_name="Muscle"))
    pictures.append(near(2, 103, class_name="Muscle-Ill"))
    with pytest.raises(InputError, match=r"in class Muscle \(0 image"):
        splits.make_plan(pictures, 0, 0, extra_classes=("Muscle", "Muscle-Healthy"))


def test_near_copies_of_one_class_are_no_conflict_by_a_vaguer_exact_copy():
    """MMOTU with its figshare copy, whose class is "Ovary", and another near copy: all three were dropped."""
    pictures = [picture(i, class_name="Ovary-Teratoma") for i in range(20)]
    vaguer = {"sha256": pictures[0].sha256, "signature": pictures[0].signature}
    pictures.append(picture(100, class_name="Ovary", dataset="figshare", **vaguer))
    pictures.append(near(0, 200, class_name="Ovary-Teratoma", dataset="other"))
    plan = make_plan(pictures, 0, 0)
    assert plan.dropped == {"set/100.png": "exact copy of set/0.png"} and not plan.conflicts
    assert plan.places["set/200.png"] == plan.places["set/0.png"]
    # Of another class, it does contradict both.
    pictures[-1] = replace(pictures[-1], class_name="Ovary-Normal")
    pictures += [picture(300 + i, class_name="Ovary-Normal") for i in range(3)]
    plan = make_plan(pictures, 0, 0)
    assert plan.dropped.keys() == {"set/0.png", "set/100.png", "set/200.png"}


@pytest.mark.parametrize(
    ("label", "other"),
    [
        ("Thyroid-Nodule", "Thyroid-Nodule-DDTI"),
        ("Fetal-Head", "Fetal-Head-Intrapartum"),
        ("Prostate", "Prostate-Phantom"),
        ("Abdomen", "Abdomen-Simulated"),
        ("Ovary", "Ovary-CEUS"),
    ],
)
def test_a_longer_name_does_not_always_say_more(label, other):
    """A source, a phantom or a contrast agent is no condition: such copies contradict each other."""
    pictures = [picture(i, class_name=(label, other)[i % 2]) for i in range(20)]
    pictures.append(near(0, 30, class_name=other, dataset="other"))
    plan = make_plan(pictures, 0, 0)
    assert plan.dropped.keys() == {"set/0.png", "set/30.png"}
    assert [{row["class"], row["other_class"]} for row in plan.conflicts] == [{label, other}]


def test_a_class_of_which_nothing_is_left_is_named():
    pictures = [picture(i) for i in range(9)]
    with pytest.raises(InputError, match=r"in class B \(0 image\(s\) in 0 group\(s\)\)"):
        splits.make_plan(pictures, 0, 0, extra_classes=("A", "B"))


def test_a_long_video_does_not_fill_the_cap():
    pictures = [picture(i, group="long") for i in range(500)]
    pictures += [picture(1000 + i, group=f"p{i}") for i in range(60)]
    plan = make_plan(pictures, 0, 90)
    groups = Counter(p.group for p in pictures if p.source in plan.places)
    assert sum(groups.values()) <= 90 and 0 < groups["long"] <= 30 and len(groups) > 30


def test_the_cap_drops_no_class():
    """A class of 4 among 256 had no share of 30 pictures and went without a word."""
    counts = {"A": 154, "B": 98, "C": 4}
    names = [name for name, count in counts.items() for _ in range(count)]
    pictures = [picture(i, class_name=name) for i, name in enumerate(names)]
    class_of = {p.source: p.class_name for p in pictures}
    places = make_plan(pictures, 0, 30).places
    assert Counter(class_of[source] for source in places) == {"A": 15, "B": 12, "C": 3}
    with pytest.raises(InputError, match=r"within --cap 6 in class C \(0 image.*raise --cap"):
        make_plan(pictures, 0, 6)


def test_the_cap_takes_a_small_class_from_all_its_official_splits():
    parts = [("A", "train")] * 240 + [("A", "val")] * 30 + [("A", "test")] * 30
    parts += [("B", "train")] * 4 + [("B", "val"), ("B", "test")]
    pictures = [picture(i, class_name=name, split=split) for i, (name, split) in enumerate(parts)]
    splits_of = split_by_source(pictures, cap=30)
    assert Counter(splits_of.get(p.source) for p in pictures if p.class_name == "B") == {
        **{"train": 1, "val": 1, "test": 1, None: 3}
    }
