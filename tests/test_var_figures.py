"""Curves of the transformer: which numbers stand where, and where overfitting begins."""

import json
import math

import pytest

from usvar import plots, var_figures

BASELINES = {"unigram": ([2.0, 4.0], [0.3, 0.1]), "class_position": ([1.0, 3.0], [0.5, 0.2])}


def test_panels_lines_and_the_best_step(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        plots, "curves", lambda path, panels, lines, **more: drawn.update({path.name: (panels, lines, more)})
    )
    rows = [{"step": 5, "note": "a word"}]
    for step, nats in ((10, 3.0), (20, 2.0), (30, 2.5)):
        scores = {
            "mean": nats,
            "per_scale": [1.0, nats],
            "accuracy": 0.1,
            "accuracy_per_scale": [0.4, 1 / nats],
        }
        rows.append({"step": step} | {f"train_{k}": v for k, v in scores.items()})
        rows.append({"step": step} | {f"val_{k}": v for k, v in scores.items()})
    rows[1]["train_mean"] = None
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    var_figures.draw_curves(tmp_path, (1, 2), BASELINES)
    assert drawn.keys() == {"loss_curves.png", "loss_per_scale.png", "accuracy_per_scale.png"}

    panels, lines, more = drawn["loss_curves.png"]
    whole, last = "all tokens: cross-entropy, nats per token", "last scale: cross-entropy, nats per token"
    assert panels[whole]["val"] == ([10, 20, 30], [3.0, 2.0, 2.5])
    assert math.isnan(panels[whole]["train"][1][0]) and panels[whole]["train"][1][1:] == [2.0, 2.5]
    assert panels["last scale: share of tokens predicted right"]["val"][1] == [1 / 3, 1 / 2, 1 / 2.5]
    # One token and four: the mean over tokens, not over scales.
    assert lines[whole]["codes' frequencies"] == pytest.approx((2 + 4 * 4) / 5)
    assert lines[last]["class and position frequencies"] == 3.0
    assert lines["all tokens: share of tokens predicted right"]["codes' frequencies"] == pytest.approx(
        0.7 / 5
    )
    assert more["marks"] == {"lowest on val: step 20": 20}
    assert more["right_axes"] == {
        name: ("bits per token", pytest.approx(1 / math.log(2))) for name in (whole, last)
    }

    panels, lines, more = drawn["accuracy_per_scale.png"]
    assert list(panels) == [f"{n} x {n}: share of tokens predicted right" for n in (1, 2)]
    assert panels["1 x 1: share of tokens predicted right"]["train"][1] == [0.4] * 3
    assert not more["right_axes"] and more["marks"] == {"lowest on val: step 20": 20}


def test_before_the_first_validation_there_is_no_mark(tmp_path):
    scores = {"train_mean": 1.0, "train_per_scale": [1.0, 1.0], "train_accuracy": 0.5}
    row = {"step": 1, "train_accuracy_per_scale": [0.5, 0.5]} | scores
    (tmp_path / "log.jsonl").write_text(json.dumps(row) + "\n")
    var_figures.draw_curves(tmp_path, (1, 2), BASELINES)
    assert (tmp_path / "loss_curves.png").stat().st_size > 5000
