"""benchmarks/sampling.py, training.py and kept_memory.py: one tiny run each, beside a second checkout.

And what benchmarks share in measure.py, and of matrix_rate.py what is compiled.
"""

import gc
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import tyro

from benchmarks import kept_memory, matrix_rate, measure, sampling, training, var_recipes
from benchmarks.measure import Cost, Pair, Worker, add_row, cost_of
from models import VAR, VQVAE
from usvar.checkpoints import load_vqvae
from usvar.errors import InputError

ROOT = Path(__file__).parent.parent
TINY = ["--repeats=1", "--batch=2", "--width=64", "--depth=2", "--vqvae-width=32", "--vocab-size=64"]
TINY += ["--patch-nums", "1", "2", "3"]


@pytest.mark.parametrize("script", [sampling, training, matrix_rate, kept_memory])
def test_inherited_settings_are_explained_unless_a_script_says_it_otherwise(script):
    help_text = " ".join(tyro.extras.get_parser(script.Settings).format_help().replace("│", "").split())
    own = script.Settings.__annotations__
    for name, comment in {
        "out_dir": "Tables as JSON, and figures.",
        "width": "Width of the transformer, a multiple of 64 (a head's width).",
        "patch_nums": "Tokens per side of each scale.",
        "repeats": "Times that each way is measured, after one that is not counted.",
    }.items():
        assert help_text.count(comment) == (name not in own)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "flags", "rows", "beside_rows"),
    [("sampling", ["--top-k", "20"], 13, 2), ("training", ["--chunk", "10"], 11, 4)],
)
def test_a_tiny_run_measures_each_fast_path_and_a_checkout(name, flags, rows, beside_rows, dtype, tmp_path):
    """This repository is a drop-in, so it serves as the published package; the weights go both ways."""
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", *TINY, *flags]
    command += ["--dtype", dtype, "--out-dir", tmp_path, "--published", ROOT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
    beside = json.loads((tmp_path / f"{name}_published.json").read_text())
    rows += name == "sampling" and dtype == "bfloat16"  # weights are cast
    assert len(found) == rows and len(beside["rows"]) == beside_rows
    for row in (*found.values(), *beside["rows"].values()):
        assert min(row["slow"]["wall_s"], row["fast"]["wall_s"], row["ratio"]["cpu_s"]) > 0
    assert beside["made_by"]["checks"] == {"logits_relative_error": 0.0, "same_best_code": 1.0}
    assert (tmp_path / f"{name}.png").is_file() and (tmp_path / f"{name}_published.png").is_file()
    assert all(title in done.stdout for title in (*found, *beside["rows"]))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is asked to keep memory")
def test_kept_memory_meets_fewer_page_faults(tmp_path):
    tiny = {"batch": 1, "depth": 1, "width": 64, "vqvae_width": 32, "vocab_size": 64, "patch_nums": (1, 4)}
    kept_memory.main(kept_memory.Settings(tmp_path, vqvae_batch=4, repeats=2, **tiny))
    rows = json.loads((tmp_path / "kept_memory.json").read_text())["rows"]
    assert all(way["wall_s"] > 0 < way["cpu_s"] for row in rows.values() for way in row.values())
    faults = {way: numbers["page_faults"] for way, numbers in rows["training step, VQ-VAE"].items()}
    assert faults["kept"] < 0.5 * faults["given back"]


def test_no_checkout_is_one_line_and_code_2(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "training.py", *TINY, "--out-dir", tmp_path / "out"]
    done = subprocess.run([*command, "--published", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and "has no models/var.py" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_package_that_fails_says_why(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "var.py").write_text("raise ImportError('no such thing')")
    worker = Worker(tmp_path)
    with pytest.raises(InputError, match="failed at 'build': ImportError: no such thing"):
        worker.ask("build", device="cpu", dtype="float32")


def test_a_fast_path_that_changes_the_numbers_ends_the_benchmark():
    x = torch.ones(3)
    sampling.check_equal("same", x, x + 1e-6)
    with pytest.raises(SystemExit, match="FAILED: other changes the numbers"):
        sampling.check_equal("other", x, x + 1e-3)


def test_the_reference_filter_keeps_what_ours_keeps():
    logits_BlV = 2 * torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(0))
    found = sampling.sorted_filter(logits_BlV, 20, 0.93)
    assert torch.equal(found, sampling.filter_top_k_top_p(logits_BlV, 20, 0.93))


def test_all_that_a_compiled_row_is_of_is_compiled(tmp_path, monkeypatch):
    """Sampling stayed eager. Its blocks are compiled last: a training step compiles a copy as a whole."""
    order = []
    monkeypatch.setattr(torch, "compile", lambda network, **_: order.append("step") or network)
    monkeypatch.setattr(VQVAE, "compile_levels", lambda _: order.append("levels"))
    monkeypatch.setattr(VAR, "compile_blocks", lambda var: order.append(var))
    sampled, infer = [], VAR.autoregressive_infer_cfg
    monkeypatch.setattr(
        VAR, "autoregressive_infer_cfg", lambda var, *a, **k: sampled.append(var) or infer(var, *a, **k)
    )
    tiny = {"batch": 1, "vqvae_batch": 1, "depth": 1, "width": 64, "vqvae_width": 32, "vocab_size": 32}
    tiny |= {"patch_nums": (1, 2), "matrix_side": 16, "repeats": 1, "compile": True}
    matrix_rate.main(matrix_rate.Settings(out_dir=tmp_path, **tiny))
    assert order == ["step", "levels", sampled[0]]


def test_rows_of_another_extractor_do_not_stay(tmp_path):
    """Distances in the features of two networks stood in one table."""

    def add(name: str, extractor: str) -> dict:
        content = {"made_by": {"settings": {}}, "changes": {"x": {}, "y": {}}, "extractor_sha256": extractor}
        return add_row(tmp_path / "results.json", content, name, {"of": extractor})

    assert list(add("x", "a")) == ["x"] and list(add("y", "a")) == ["x", "y"]
    assert add("y", "b") == {"y": {"of": "b"}}


def test_the_transformer_s_recipes_name_their_extractor(tiny_data, tiny_vqvae, tiny_tokens, tmp_path):
    size = {"steps": 2, "batch_size": 2, "depth": 1, "width": 32, "heads": 2, "evaluations": 1}
    size |= {"extractor_steps": 2, "samples_per_image": 1, "device": "cpu", "rows": ("base",)}
    s = var_recipes.Settings(tiny_data, tiny_vqvae, tiny_tokens, tmp_path, **size)
    var_recipes.main(s)
    measured, _ = var_recipes.sample_measure(s, load_vqvae(tiny_vqvae).model)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["extractor_sha256"] == measured.network.sha256()


def test_memory_and_ratios_are_of_the_work():
    """Memory is measured with `memory=True`: a script's test before this one in the process makes the C
    library keep all freed memory for good (distributed.keep_freed_memory), which else hides the peak."""

    def work() -> None:
        gc.collect()  # as Python may at any moment
        torch.ones(20_000_000)  # 80 MB

    torch.ones(80_000_000)  # what was held and given back before does not count
    left = [torch.ones(20_000_000)]  # 80 MB that only the garbage collector gives back
    left.append(left)
    del left
    cost = cost_of(work, torch.device("cpu"), memory=True)
    assert 75 < cost.peak_mb < 120
    # Small blocks, whose memory the C library would keep: 100 MB.
    kept = [cost_of(lambda: [torch.ones(25_000) for _ in range(1000)], torch.device("cpu"), True)]
    kept += [cost_of(lambda: [torch.ones(25_000) for _ in range(1000)], torch.device("cpu"), True)]
    assert all(90 < cost.peak_mb < 150 for cost in kept)
    assert cost_of(lambda: None, torch.device("cpu")).peak_mb < 20
    pair = Pair("row", lambda memory: Cost(4.0, 2.0, 10.0 * memory), lambda _: Cost(1.0, 1.0, 5.0))
    measure.measure([pair], repeats=3)
    assert [len(costs) for costs in pair.costs.values()] == [3, 3]
    row = measure.summary([pair])["row"]
    assert (row["ratio"]["wall_s"], row["ratio"]["cpu_s"], row["slow"]["peak_mb"]) == (4.0, 2.0, 10.0)
