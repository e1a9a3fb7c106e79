"""The evaluation's figures: what is drawn can be told apart without its colour."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.lines import Line2D

from usvar import evaluation_figures, plots, report


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, closed at the end."""
    figures: list[plt.Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, _: figures.append(figure))
    yield figures
    for figure in figures:
        figure.canvas.draw()
        plt.close(figure)


def looks(lines: list[Line2D]) -> set[tuple[str, str]]:
    return {(line.get_linestyle(), line.get_marker()) for line in lines}


def test_every_curve_of_the_likelihood_has_a_look_of_its_own(drawn, tmp_path):
    names = ("train", "val", "test", *report.BY_FREQUENCY.values())
    entry = {"bits_per_token_of_each_scale": [1.0, 2.0], "bits_per_token": 1.8, "images": 3}
    evaluation_figures.draw_bits(tmp_path / "bits.png", dict.fromkeys(names, entry), [1, 2])
    lines = drawn[0].axes[0].lines
    assert len(looks(lines)) == len(names) == 5
    assert [line.get_linestyle() != "-" for line in lines] == [False] * 3 + [True] * 2


def test_every_set_has_a_marker_in_each_panel_of_physics(drawn, tmp_path):
    """Where nothing is known of a depth, too."""
    curves = {
        "frequency": np.linspace(0.1, 0.5, 40),
        "spectrum": np.linspace(0, -30, 40),
        "grey": np.full(256, 1 / 256),
        "along": np.linspace(1, 0, 9),
        "across": np.linspace(1, 0, 9),
        "depth": np.r_[np.full(4, np.nan), np.full(28, 90.0)],
    }
    sets = evaluation_figures.ORDER
    evaluation_figures.draw_physics(tmp_path / "physics.png", dict.fromkeys(sets, curves))
    for axis, count in zip(drawn[0].axes, (5, 5, 10, 5), strict=True):
        assert len(axis.lines) == len(looks(axis.lines)) == count
    assert len(drawn[0].legends[0].get_texts()) == len(sets)


def test_the_legend_says_which_test_images_were_rebuilt(drawn, tmp_path):
    found = {"label": "pixels", "is_rebuilt": False, "is_test_rebuilt": True, "thresholds": [0.5]}
    found |= {"generated": np.array([0.4, 0.6]), "test": np.array([0.5, 0.7, 0.9])}
    tokens = {"label": "tokens", "is_test_rebuilt": False, "thresholds": [0.5, 0.6]}
    copies = {"pixels": found, "tokens": found | tokens}
    evaluation_figures.draw_copies(tmp_path / "copies.png", copies, {})
    quantiles = "5% quantile of test (rebuilt)", "5% quantile of test, by class"
    for axis, test, quantile in zip(drawn[0].axes, ("test (rebuilt)", "test"), quantiles, strict=True):
        words = [text.get_text() for text in axis.get_legend().get_texts()]
        assert words == [f"{test}, n = 3", "generated, n = 2", quantile]
        assert len({patch.get_linestyle() for patch in axis.patches}) == 2
