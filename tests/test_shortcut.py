"""The warning comes where metadata tells the class, and only there."""

import json
import time

import numpy as np
import pytest

from data_preprocessing.shortcut import FLAGS, LARGEST_CLASS, shortcut_report


def rows(count: int, dataset_of_class: float = 0.0, classes: int = 4, seed: int = 0) -> list[dict]:
    """Pictures of random size; with probability `dataset_of_class` from the set named like their class."""
    stream = np.random.default_rng(seed)
    made = []
    for n in range(count):
        label = n % classes
        dataset = label if stream.random() < dataset_of_class else int(stream.integers(classes))
        made.append(
            {
                "class": f"class {label}",
                "dataset": f"set {dataset}",
                "group": f"patient {n // (2 * classes)} of {label}",
                "source_width": int(stream.integers(300, 900)),
                "source_height": int(stream.integers(300, 900)),
                "black_share": float(stream.random()),
                "overlays": tuple(word for word in FLAGS if stream.random() < 0.3),
            }
        )
    return made


def test_classes_that_are_data_sets_are_told_apart():
    report = shortcut_report(rows(400, 1.0))
    assert report["warning"] and report["balanced_accuracy"] == 1 and report["chance"] == 0.25
    assert report["one_dataset_classes"] == {f"class {n}": f"set {n}" for n in range(4)}
    # Size and overlays were drawn without regard to the class.
    assert report["balanced_accuracy_without_dataset"] < 0.4
    assert "1.00" in report["text"] and "partly a data-set label" in report["text"]
    assert "4 of 4 classes come from one data set only" in report["text"]
    json.dumps(report, allow_nan=False)


def test_partly():
    report = shortcut_report(rows(800, 0.5))
    assert report["warning"] and 0.5 < report["balanced_accuracy"] < 0.75
    assert report["one_dataset_classes"] == {}


@pytest.mark.parametrize("seed", range(5))
def test_no_warning_by_chance(seed):
    for count in (40, 400):
        report = shortcut_report(rows(count, 0.0, seed=seed))
        assert not report["warning"] and abs(report["balanced_accuracy"] - 0.25) < 0.25
        assert "WARNING" not in report["text"] and "0.25" in report["text"]


@pytest.mark.parametrize(
    "tell",
    [
        lambda row, second: row | {"source_width": 300 if second else 800},
        lambda row, second: row | {"black_share": 0.6 if second else 0.1},
        lambda row, second: row | {"overlays": ("calipers",) if second else ()},
        # The size alone says nothing, the aspect ratio does.
        lambda row, second: row | {"source_height": row["source_width"] * (2 if second else 1)},
    ],
    ids=["width", "black share", "overlays", "aspect ratio"],
)
def test_each_kind_of_metadata_counts(tell):
    made = [tell(row, row["class"] == "class 1") for row in rows(200, classes=2)]
    report = shortcut_report(made)
    assert report["warning"] and report["balanced_accuracy_without_dataset"] > 0.9


def test_a_patient_is_never_in_fit_and_test():
    """One picture's numbers repeated under each patient: tested on the same patient it would be perfect."""
    stream = np.random.default_rng(0)
    made = []
    for patient in range(30):
        row = rows(1, seed=patient)[0] | {"class": f"class {stream.integers(2)}", "dataset": f"set {patient}"}
        made += [row | {"group": f"p{patient}"}] * 8
    assert not shortcut_report(made)["warning"]


def test_few_classes_sets_or_groups_are_said():
    assert "one class only" in shortcut_report(rows(20, classes=1))["text"]
    assert "one class only" in shortcut_report([])["text"]
    single = [row | {"group": "p"} if row["class"] == "class 1" else row for row in rows(40)]
    report = shortcut_report(single)
    assert report["balanced_accuracy"] is None and "too few groups in class 1" in report["text"]
    # With one data set for all, "from one data set only" would say nothing.
    report = shortcut_report([row | {"dataset": "one"} for row in rows(100)])
    assert report["one_dataset_classes"] == {} and "data set only" not in report["text"]


def test_order_changes_nothing():
    made = rows(1500, 0.5)
    assert shortcut_report(made[::-1]) == shortcut_report(made)


def test_large_sets_are_quick():
    start = time.process_time()
    report = shortcut_report(rows(50_000, 0.5, classes=10))
    assert time.process_time() - start < 10 and report["pictures"] == 10 * LARGEST_CLASS
