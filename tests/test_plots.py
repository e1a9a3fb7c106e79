"""Figures whose numbers could be wrong: how often codes are used; axes of curves."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from usvar import plots


@pytest.mark.parametrize(
    ("hits", "bars"),
    [
        ([0, 0, 1, 1, 1, 2, 3, 4, 7, 8], {"0": 2, "1": 3, "2-3": 2, "4-7": 2, "8-15": 1}),
        ([1, 1, 1], {"0": 0, "1": 3}),
        ([0, 0], {"0": 2, "1": 0}),
        ([4, 16], {"0": 0, "1": 0, "2-3": 0, "4-7": 1, "8-15": 0, "16-31": 1}),
    ],
)
def test_every_code_is_in_one_bar(tmp_path, monkeypatch, hits, bars):
    kept = []
    monkeypatch.setattr(plots, "save", lambda figure, _: kept.append(figure))
    plots.codebook(tmp_path / "codes.png", np.array(hits), np.zeros((len(hits), 2)), 0.5, "use")
    axis = kept[0].axes[0]
    found = dict(
        zip(
            [t.get_text() for t in axis.get_xticklabels()],
            [p.get_height() for p in axis.patches],
            strict=True,
        )
    )
    assert found == bars
    kept[0].canvas.draw()
    plt.close(kept[0])


def test_curves_have_an_axis_each_and_whole_ticks_only_for_whole_numbers(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(plots, "save", lambda figure, _: kept.append(figure))
    panels = {"steps": {"a": ([0, 2], [1, 2])}, "shares": {"a": ([0.0, 0.5], [1, 2])}}
    plots.curves(tmp_path / "curves.png", panels, x_label=["step", "frequency"], columns=1)
    kept[0].canvas.draw()
    steps, shares = kept[0].axes
    assert [axis.get_xlabel() for axis in (steps, shares)] == ["step", "frequency"]
    assert all(float(tick).is_integer() for tick in steps.get_xticks())
    assert not all(float(tick).is_integer() for tick in shares.get_xticks())
    plt.close(kept[0])


def test_curves_may_have_a_second_scale_a_mark_and_one_legend(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(plots, "save", lambda figure, _: kept.append(figure))
    panels = {name: {"train": ([0, 2], [1, 3]), "val": ([0, 2], [2, 2])} for name in ("nats", "share")}
    more = {"right_axes": {"nats": ("bits", 2.0)}, "marks": {"best: step 1": 1}, "one_legend": True}
    plots.curves(tmp_path / "curves.png", panels, **more)
    kept[0].canvas.draw()
    nats, share = kept[0].axes
    (right,) = nats.child_axes
    assert right.get_ylabel() == "bits" and not share.child_axes
    np.testing.assert_allclose(right.get_ylim(), 2 * np.array(nats.get_ylim()))
    for axis in (nats, share):
        assert axis.get_legend() is None
        assert [line.get_xdata() for line in axis.lines if line.get_label() == "best: step 1"] == [[1, 1]]
    (legend,) = kept[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["train", "val", "best: step 1"]
    plt.close(kept[0])


def test_horizontal_lines_differ_in_more_than_their_colour(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(plots, "save", lambda figure, _: kept.append(figure))
    lines = {"nats": {"by code": 2.0, "by class": 1.0}}
    plots.curves(tmp_path / "curves.png", {"nats": {"train": ([0, 2], [1, 3])}}, lines)
    dashes = [line.get_linestyle() for line in kept[0].axes[0].lines]
    assert len(set(dashes)) == len(dashes) == 3
    plt.close(kept[0])


def test_names_are_no_formulas_and_logarithmic_ticks_are_plain_numbers(tmp_path):
    """Past fault: a class named with two $ ended the evaluation after all was computed."""
    picture = np.zeros((8, 8), np.uint8)
    plots.image_grid(tmp_path / "grid.png", [[picture]], [r"a $\wrong$"], [r"$\{$"], r"$\b$")
    figure, (log, symlog) = plt.subplots(1, 2)
    log.plot([1, 1000])
    log.set_yscale("log")
    symlog.plot([0, 50])
    symlog.set_yscale("symlog", linthresh=0.1)
    plots.save(figure, tmp_path / "log.png")
    for axis in (log, symlog):
        names = [label.get_text() for label in axis.get_yticklabels()]
        assert {"1", "10"} < set(names) and not any("$" in name for name in names)


def test_a_grid_may_begin_with_an_empty_row(tmp_path):
    """Past fault: the first class without a test image ended the evaluation."""
    picture = np.zeros((8, 8), np.uint8)
    plots.image_grid(tmp_path / "grid.png", [[], [picture]], ["none", "one"], ["1"], "title")
    assert (tmp_path / "grid.png").is_file()
