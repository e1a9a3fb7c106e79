"""The run folder: one writer, a log without lines from a lost future, and no going on from another run."""

import json

import pytest

from usvar import runs
from usvar.checkpoints import previous_path, save_checkpoint
from usvar.errors import InputError


def test_a_second_run_in_a_folder_is_refused_and_a_dead_one_does_not_block(tmp_path):
    run = runs.RunFolder(tmp_path, {})
    with pytest.raises(InputError, match="another run writes"):
        runs.RunFolder(tmp_path, {})
    run.close()  # as when its process dies: the kernel drops the lock
    runs.RunFolder(tmp_path, {}).close()


def test_log_lines_after_the_checkpoint_are_forgotten(tmp_path):
    run = runs.RunFolder(tmp_path, {})
    for step in (1, 2, 3):
        run.log({"step": step, "loss": float("inf") if step == 1 else 0.5, "scales": [float("nan"), 1.0]})
    with open(run.log_path, "a") as file:
        file.write('{"step": 4, "lo')  # a killed run's last line
    run.begin(2, [], {})
    rows = [json.loads(line) for line in run.log_path.read_text().splitlines()]
    scales = {"scales": [None, 1.0]}
    assert rows == [{"step": 1, "loss": None, **scales}, {"step": 2, "loss": 0.5, **scales}]
    run.close()


def test_other_settings_or_files_are_refused_by_name(tmp_path):
    before = {"settings": {"width": 8, "log_every": 5}, "inputs": {"vqvae": {"sha256": "a", "path": "b.pth"}}}
    now = json.loads(json.dumps(before))
    now["settings"]["log_every"] = 7
    runs.refuse_other_settings(tmp_path, before, now, may_change=("log_every",))
    now["settings"]["width"] = 16
    with pytest.raises(InputError, match="width = 8, now it is 16"):
        runs.refuse_other_settings(tmp_path, before, now, may_change=("log_every",))
    now["settings"]["width"], before["settings"]["width"] = [1, 2, 5], [1, 2, 4]
    with pytest.raises(InputError, match="give --width 1 2 4 to go on"):  # as it is typed
        runs.refuse_other_settings(tmp_path, before, now, may_change=("log_every",))
    before["settings"]["width"] = 8
    now["settings"]["width"], now["inputs"]["vqvae"]["sha256"] = 8, "other"
    with pytest.raises(
        InputError, match=r"another vqvae file .* made again by another command or code rev.*: give"
    ):
        runs.refuse_other_settings(tmp_path, before, now, may_change=("log_every",))


def test_a_figure_is_kept_of_each_step(tmp_path):
    figure = tmp_path / "samples.png"
    for step in (1000, 2000):
        figure.write_bytes(b"%d" % step)
        runs.keep_of_step(figure, step)
    kept = sorted((tmp_path / "progress").iterdir())
    assert [path.name for path in kept] == ["samples_001000.png", "samples_002000.png"]
    assert [path.read_bytes() for path in kept] == [b"1000", b"2000"]


def test_an_earlier_run_without_its_best_checkpoint_says_so_and_has_no_best(tmp_path):
    """The sentence once ran on from that about a damaged last checkpoint, without a stop between."""
    last, best = tmp_path / "last.pth", tmp_path / "best.pth"
    record = {"settings": {"seed": 0}, "inputs": {}}
    content = {key: {} for key in ("model", "ema", "optimiser", "meter", "config")}
    content |= {"step": 3, "best": 1.5, "skipped": 0, "made_by": record}
    assert runs.earlier_run(last, best, record, {}, (), tmp_path) == (None, last, [])
    save_checkpoint(previous_path(last), content)
    last.write_bytes(b"damaged")
    found, path, notes = runs.earlier_run(last, best, record, {}, (), tmp_path)
    assert found["best"] == float("inf") and path == previous_path(last)
    assert "goes on from last-previous.pth, step 3" in notes[0]
    assert notes[1:] == [f"{best} is missing or damaged: the next validation writes it anew"]
    save_checkpoint(best, content)
    assert runs.earlier_run(last, best, record, {}, (), tmp_path)[0]["best"] == 1.5
    with pytest.raises(InputError, match="seed = 0, now it is 1"):
        runs.earlier_run(last, best, {**record, "settings": {"seed": 1}}, {}, (), tmp_path)
    with pytest.raises(InputError, match=r"was trained with side None, .* has 8"):
        runs.earlier_run(last, best, record, {"side": 8}, (), tmp_path)
