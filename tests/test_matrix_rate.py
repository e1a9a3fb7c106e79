"""benchmarks/matrix_rate.py: operations are counted right, and one tiny run."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import matrix_rate
from usvar.errors import InputError

TINY = {
    "batch": 2,
    "vqvae_batch": 1,
    "depth": 1,
    "width": 64,
    "vqvae_width": 32,
    "vocab_size": 32,
    "patch_nums": (1, 2),
    "matrix_side": 64,
    "repeats": 1,
}


def test_a_tiny_run_writes_each_row(tmp_path):
    matrix_rate.main(matrix_rate.Settings(out_dir=tmp_path, **TINY))
    found = json.loads((tmp_path / "matrix_rate.json").read_text())
    assert found["matrix_side"] in (64, 32, 16)
    assert set(found["rows"]) == {
        "tokenise",
        "sample and decode",
        "training step, transformer",
        "training step, VQ-VAE",
    }
    for row in found["rows"].values():
        assert row["images_per_s"] == pytest.approx(row["images"] / row["seconds"])
        share = row["operations"] / row["seconds"] / found["matrix_operations_per_s"]
        assert row["share_of_matrix_rate"] == pytest.approx(share) and share > 0
    # Forward and backward are three times the work of forward alone, encoder and decoder about equal.
    rows = found["rows"]
    assert 3 < rows["training step, VQ-VAE"]["operations"] / rows["tokenise"]["operations"] < 12


def test_the_rate_is_that_of_the_fastest_side(monkeypatch):
    """A product of two matrices of side n takes 2 n^3 operations."""
    monkeypatch.setattr(matrix_rate, "fastest", lambda work, *_: {64: 2.0, 32: 0.1, 16: 1.0}[len(work())])
    rate, side = matrix_rate.matrix_rate(matrix_rate.Settings(**TINY), torch.device("cpu"))
    assert (rate, side) == (2 * 32**3 / 0.1, 32)


def test_sizes_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(InputError, match="--matrix-side"):
        matrix_rate.main(matrix_rate.Settings(out_dir=Path(tmp_path), **TINY | {"matrix_side": 2}))
