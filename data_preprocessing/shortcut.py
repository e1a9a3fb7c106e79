"""Can the class be told from metadata alone? Then a model can learn the data set instead of the organ.

A logistic regression sees the data set's name, the size and aspect ratio of the source picture, its share of
black and which overlays it has, but no pixel. It is tested on groups that it was not fitted to. Balanced
accuracy is the mean over the classes of the share that is recognised, so chance is 1 / number of classes.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_preprocessing.flags import FLAGS
from data_preprocessing.on_disk import private_database

# The classes are told apart when the way from chance to perfect is covered by this much, and by more than
# three standard errors at the number of groups there are.
NOTABLE = 0.1
STANDARD_ERRORS = 3
FOLDS = 5
# Pictures per class, drawn at random: enough for a hundred or so numbers, and seconds for any data set.
LARGEST_CLASS = 250


def shortcut_report(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """How well metadata alone tells the classes.

    Args:
        rows: one for each prepared picture, read once: "class", "dataset", "group" (text), "source_width",
            "source_height" (pixels), "black_share" (0 to 1) and "overlays" (words of flags.FLAGS).

    Returns:
        Plain values for JSON: "warning" (bool), "text" (one line), "balanced_accuracy" (None where it cannot
        be measured), "balanced_accuracy_without_dataset" (the same without the data set's name), "chance",
        "recall" (by class), "one_dataset_classes" ({class: data set}), "pictures" and "groups" (used).
    """
    used, sets_of = _draw(rows)
    alone = {name: min(sets) for name, sets in sorted(sets_of.items()) if len(sets) == 1}
    datasets = set().union(*sets_of.values())
    report = {
        "warning": False,
        "text": "",
        "balanced_accuracy": None,
        "balanced_accuracy_without_dataset": None,
        "chance": 1 / max(len(sets_of), 1),
        "recall": {},
        # Where all is of one data set, this says nothing.
        "one_dataset_classes": alone if len(datasets) > 1 else {},
        "pictures": 0,
        "groups": 0,
    }
    if len(sets_of) < 2:
        return report | {"text": "shortcut: not measured, there is one class only"}
    label_N = np.array([row["class"] for row in used])
    group_N = np.array([row["group"] for row in used])
    groups_of = {name: len(set(group_N[label_N == name])) for name in sorted(sets_of)}
    folds = min(FOLDS, *groups_of.values())
    if folds < 2:
        few = ", ".join(name for name, count in groups_of.items() if count < 2)
        return report | {"text": f"shortcut: not measured, too few groups in {few}"}
    feature_NF, from_dataset_F = _features(used)
    recall = _recall(feature_NF, label_N, group_N, folds)
    accuracy = float(np.mean(list(recall.values())))
    without = feature_NF[:, ~from_dataset_F]
    chance = report["chance"]
    error = np.sqrt(sum(chance * (1 - chance) / count for count in groups_of.values())) / len(groups_of)
    above = accuracy - chance
    warning = bool(above > NOTABLE * (1 - chance) and above > STANDARD_ERRORS * error)
    text = f"shortcut: metadata alone tells the class, balanced accuracy {accuracy:.2f} (chance {chance:.2f})"
    if warning:
        text = f"WARNING: {text}: the class label is partly a data-set label"
    if report["one_dataset_classes"]:
        text += f"; {len(alone)} of {len(sets_of)} classes come from one data set only"
    return report | {
        "warning": warning,
        "text": text,
        "balanced_accuracy": round(accuracy, 4),
        "balanced_accuracy_without_dataset": round(
            float(np.mean(list(_recall(without, label_N, group_N, folds).values()))), 4
        ),
        "recall": {name: round(value, 4) for name, value in recall.items()},
        "pictures": len(used),
        "groups": len(set(group_N)),
    }


def _draw(rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, set[str]]]:
    """At most LARGEST_CLASS rows of each class, the same in any order of the rows.

    Returns:
        The drawn rows, and for each class its data sets.
    """
    db, sets_of = private_database(), defaultdict(set)
    db.execute("CREATE TABLE row (class TEXT, place TEXT, content TEXT)")
    for row in rows:
        sets_of[row["class"]].add(row["dataset"])
        # A NUL comes before all signs, so that words compare one after the other.
        place = "\0".join(str(row[name]) for name in sorted(row))
        db.execute("INSERT INTO row VALUES (?, ?, ?)", (row["class"], place, json.dumps(row)))
    stream = np.random.default_rng(0)
    used = []
    for name in sorted(sets_of):
        (count,) = db.execute("SELECT count(*) FROM row WHERE class = ?", (name,)).fetchone()
        chosen = set(stream.permutation(count)[:LARGEST_CLASS].tolist())
        members = db.execute("SELECT content FROM row WHERE class = ? ORDER BY place", (name,))
        used += [json.loads(content) for n, (content,) in enumerate(members) if n in chosen]
    return used, sets_of


def _features(rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """What the regression sees.

    Returns:
        (N, F) float64; (F,) bool, True where a column tells the data set's name.
    """
    datasets = sorted(Counter(row["dataset"] for row in rows))
    width_N, height_N, black_N = (
        np.array([float(row[name]) for row in rows])
        for name in ("source_width", "source_height", "black_share")
    )
    columns = [np.array([row["dataset"] == name for row in rows]) for name in datasets]
    # Sizes act by their ratios; the aspect ratio's logarithm is the difference of these two.
    columns += [np.log(width_N), np.log(height_N), black_N]
    columns += [np.array([word in row["overlays"] for row in rows]) for word in FLAGS]
    return np.stack(columns, 1).astype(float), np.arange(len(columns)) < len(datasets)


def _recall(feature_NF: np.ndarray, label_N: np.ndarray, group_N: np.ndarray, folds: int) -> dict[str, float]:
    """Share of each class that is recognised in groups the regression has not seen."""
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    told_N = cross_val_predict(model, feature_NF, label_N, groups=group_N, cv=splitter)
    names = sorted(set(label_N))
    return dict(
        zip(map(str, names), recall_score(label_N, told_N, labels=names, average=None).tolist(), strict=True)
    )
