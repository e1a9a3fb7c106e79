"""Distances between made-up sets of features: what is compared, what is left out, who agrees."""

import numpy as np
import pytest
from conftest import CLASSES

from usvar import distances, evaluation, report
from usvar.evaluation import ImageSet

EXTRACTORS, NEIGHBOURS = ["US", "US-SSL"], 3


def distances_from(
    sets: dict[str, ImageSet], test: ImageSet, classes: tuple[str, ...], left_out: list
) -> dict:
    """`all_distances` without stamps."""
    return distances.all_distances(sets, test, classes, {}, NEIGHBOURS, 0, left_out)


def spots(centres: list[float], per_class: int, seed: int) -> ImageSet:
    """Made-up features around one centre per class; the images play no part."""
    rng, labels = np.random.default_rng(seed), np.arange(len(centres)).repeat(per_class)
    features = rng.normal(0, 0.3, (len(labels), 8)) + np.array(centres)[labels][:, None]
    return ImageSet(np.zeros((len(labels), 1, 1), np.uint8), labels, {"US": features})


def test_a_class_of_few_test_images_does_not_make_everything_precise():
    """Past fault: the balls of three test images of a class reached far into the others, so that pictures
    like none of the classes had a precision of 0.98."""
    test = spots([0, 3, 30], 12, 0).take(np.r_[:24, 24:27])
    nowhere = spots([15, 15, 15], 12, 1)
    left_out: list = []
    sets = {name: nowhere for name in evaluation.SETS}
    found = distances_from(sets, test, CLASSES, left_out)["generated"]["pooled"]
    assert found["US-precision"] == 0.0
    assert {"what": "Liver in the pooled distances", "why": "under 4 test images"} in left_out


def test_a_class_of_few_patients_is_named():
    test = spots([0, 3], 12, 0)
    test.group_N = np.concatenate([np.arange(12), 12 + np.arange(12) // 4])
    left_out: list = []
    sets = {name: spots([0, 3], 12, 1) for name in evaluation.SETS}
    found = distances_from(sets, test, CLASSES[:2], left_out)["generated"]
    assert [found[where]["real_test_groups"] for where in ("pooled", *CLASSES[:2])] == [15, 12, 3]
    assert found["Kidney"]["US-KD_spread"] > 0
    few = [row for row in left_out if row["what"].startswith("groups of")]
    why = "under 4 of test: KD takes its images for independent"
    assert few == [{"what": "groups of Kidney", "why": why}]
    # Of the training images as well.
    sets["real_train"].group_N = np.concatenate([np.arange(12) // 4, 12 + np.arange(12)])
    left_out.clear()
    distances_from(sets, spots([0, 3], 12, 0), CLASSES[:2], left_out)
    why = "under 4 of train: KD takes its images for independent"
    assert {"what": "groups of Heart", "why": why} in left_out


def test_a_class_that_was_not_generated_raises_the_pooled_distance():
    test, whole = spots([0, 3], 30, 0), spots([0, 3], 30, 1)
    lacking = whole.take(np.flatnonzero(whole.label_N == 0))
    kd = {}
    for name, generated in (("whole", whole), ("lacking", lacking)):
        sets = {key: spots([0, 3], 30, 2) for key in evaluation.SETS} | {"generated": generated}
        chosen = distances.equal_counts(sets, 2, 0)
        entry = distances_from(chosen, test, CLASSES[:2], [])["generated"]["pooled"]
        kd[name] = entry["US-KD"]
    assert kd["lacking"] > 10 * abs(kd["whole"])


def test_reconstructions_are_cut_to_as_many_as_were_generated_where_the_number_counts():
    """There is one for each test image, mostly of one class: all of them would cover more than others can."""
    rng, label_N = np.random.default_rng(0), np.repeat([0, 1], (40, 8))
    real_ND = rng.normal(0, 1, (48, 6)) + 3 * label_N[:, None]
    rebuilt_ND = real_ND + rng.normal(0, 1, (48, 6))
    rebuilt, real = (ImageSet(np.zeros((48, 1, 1)), label_N, {"US": x_ND}) for x_ND in (rebuilt_ND, real_ND))
    found = distances.compare(
        rebuilt,
        real,
        "US",
        components=2,
        neighbours=NEIGHBOURS,
        most_C=np.array([8, 8]),
        paired=True,
        seed=0,
        title="pooled, reconstructed",
        left_out=[],
    )
    rows = distances.rows_of_each_class(label_N, np.array([8, 8]), 0)
    assert np.bincount(label_N[rows]).tolist() == [8, 8]
    expected = evaluation.manifold_measures(rebuilt_ND[rows], real_ND, NEIGHBOURS, pair_N=rows)
    assert {key: found[f"US-{key}"] for key in expected} == expected
    assert found["US-FD_images"] == 8
    everything = evaluation.manifold_measures(rebuilt_ND, real_ND, NEIGHBOURS, pair_N=np.arange(48))
    assert found["US-coverage"] < everything["coverage"] - 0.1


def test_the_mix_of_classes_is_no_frechet_distance():
    """Past fault: as many generated images of each class stood beside test images of which most were of one,
    and the same source had a distance; rebuilt images, with the mix of the test images, had none."""
    test = spots([0, 3], 400, 0).take(np.r_[:400, 400:440])
    sets = {name: spots([0, 3], 40, i + 1) for i, name in enumerate(evaluation.SETS)}
    sets["reconstructed_test"] = ImageSet(
        test.grey_NHW, test.label_N, spots([0, 3], 400, 9).take(np.r_[:400, 400:440]).features
    )
    found = distances_from(sets, test, CLASSES[:2], [])
    for name in evaluation.SETS:
        entry = found[name]["pooled"]
        assert abs(entry["US-FD_infinite"]) < 0.6
        # The same in all lines.
        assert entry["US-matched_images"] == 80
    mixed = evaluation.frechet_extrapolated(sets["generated"].features["US"], test.features["US"])
    assert mixed["FD_infinite"] > 3


def test_each_class_has_as_many_real_images_as_were_generated_of_it():
    """Past fault: as many of each as of the class with the most, which made real images look more varied."""
    sets = {name: spots([0, 3, 6], 50, i) for i, name in enumerate(evaluation.SETS)}
    sets["generated"] = sets["generated"].take(np.r_[:40, 50:60])
    chosen = distances.equal_counts(sets, 3, 0)
    counts = {name: np.bincount(x.label_N, minlength=3).tolist() for name, x in chosen.items()}
    assert counts["generated"] == [40, 10, 0]
    # None of the last class was generated: it stays, or nothing would tell.
    assert counts["real_train"] == counts["position_prior"] == [40, 10, 40]
    assert counts["reconstructed_test"] == [50, 50, 50]


def test_a_class_that_makes_up_most_of_the_distance_is_named():
    test = spots([0, 3, 40], 20, 0)
    sets = {name: spots([0, 3, 40], 20, 1) for name in evaluation.SETS}
    sets["generated"] = spots([0, 3, 43], 20, 2)
    entry = distances_from(sets, test, CLASSES, [])["generated"]
    pooled, part = entry["pooled"], entry["pooled"]["US-KD_largest_part"]
    assert part["class"] == "Liver" and part["part"] == pytest.approx(entry["Liver"]["US-KD"] / 9)
    assert pooled["US-KD"] > part["part"] > 0.5 * pooled["US-KD"]
    assert pooled["US-KD_median_of_classes"] < 0.01 * pooled["US-KD"]


def test_extractors_that_disagree_are_said_to():
    def row(us: float, ssl: float) -> dict:
        return {"pooled": {"US-KD": us, "US-KD_spread": 0.1, "US-SSL-KD": ssl, "US-SSL-KD_spread": 0.1}}

    sets = {"generated": row(1.0, 3.0), "real_train": row(0.0, 0.0), "position_prior": row(2.0, 2.0)}
    found = distances.agreement(sets, EXTRACTORS)
    assert not found["agree"]
    (pair,) = found["opposite"]
    assert (pair["nearer"], pair["farther"], pair["where"]) == ("generated", "position_prior", "pooled")
    assert "DO NOT AGREE" in report.agreement_words(found)
    sets["generated"] = row(1.0, 1.0)
    agreed = distances.agreement(sets, EXTRACTORS)
    assert agreed == {"agree": True, "opposite": []}
    assert "The extractors agree" in report.agreement_words(agreed)


def test_every_two_extractors_are_compared():
    """Past fault: the first with each other one only; here it tells none apart, the other two disagree."""
    row = {"US-KD": 1.0, "US-KD_spread": 9.0, "US-SSL-KD_spread": 0.1, "Outside-KD_spread": 0.1}
    sets = {
        "generated": {"pooled": row | {"US-SSL-KD": 1.0, "Outside-KD": 2.0}},
        "real_train": {"pooled": row | {"US-SSL-KD": 2.0, "Outside-KD": 1.0}},
    }
    (pair,) = distances.agreement(sets, [*EXTRACTORS, "Outside"])["opposite"]
    assert (pair["by"], pair["not_by"], pair["nearer"]) == ("US-SSL", "Outside", "generated")
