"""Kill -9 at any moment: the newest whole checkpoint loads, one interval is lost at most, nothing is left."""

import itertools
import os
import random
import signal
import time
from pathlib import Path

import pytest
from faults import LAST, run, settings_of, start, temporaries
from test_train_vqvae import assert_same, log_without_timings

from usvar.checkpoints import previous_path, read_checkpoint, read_last
from usvar.runs import read_log

SAVE_EVERY = 2


@pytest.fixture(scope="module")
def tiny(tiny_data, tiny_tokens, tiny_vqvae) -> dict[str, Path]:
    return {"data": tiny_data, "tokens": tiny_tokens, "vqvae": tiny_vqvae}


def settings(script: str, tiny: dict, out: Path, steps: int):
    return settings_of(
        script, tiny, out, steps=steps, save_every=SAVE_EVERY, log_every=1, eval_every=max(10, steps // 4)
    )


def assert_same_run(script: str, first: Path, second: Path) -> None:
    """Two folders hold the same run: weights, averages, momenta and log, bit for bit."""
    for name in (LAST[script], LAST[script].replace("last", "best")):
        contents = [read_checkpoint(out / name) for out in (first, second)]
        for content in contents:
            del content["made_by"]  # names the output folder
        assert_same(*contents)
    rows = [[row for row in log_without_timings(out) if "note" not in row] for out in (first, second)]
    assert rows[0] == rows[1]


def kill_again_and_again(script: str, tiny: dict, folder: Path, kills: int, steps: int, seed: int) -> dict:
    """Start a run `kills` times and kill it each time after a random while; then let it end.

    Returns:
        What was met: kills before the first checkpoint, kills that left a half-written file, falls back to
        the checkpoint before.
    """
    out, draw = folder / "killed", random.Random(seed)
    chosen, step, met = settings(script, tiny, out, steps), 0, {"early": 0, "half": 0, "fell_back": 0}

    def rows() -> int:
        return (out / "log.jsonl").read_bytes().count(b"\n") if (out / "log.jsonl").exists() else 0

    def is_saving() -> bool:
        return any(LAST[script] in name for name in temporaries(out))

    for number in range(kills):
        process = start(script, chosen, folder / "printed")
        began = time.monotonic()
        rows_before = rows()
        while process.is_alive() and time.monotonic() - began < 300:
            if number % 10 == 4 and time.monotonic() - began > draw.uniform(0, 1):  # while it starts
                break
            # Half of the kills are aimed at a save: a random moment after a half-written file is seen.
            if number % 2 and rows() > rows_before + SAVE_EVERY and is_saving():
                time.sleep(draw.uniform(0, 0.02))
                break
            if number % 2 == 0 and rows() > rows_before + draw.randrange(4):
                time.sleep(draw.uniform(0, 0.1))
                break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, (folder / "printed").read_text()
        left = temporaries(out)
        content, _, note = read_last(out / LAST[script])
        log = read_log(out / "log.jsonl") if (out / "log.jsonl").exists() else []
        reached = max((row["step"] for row in log), default=0)
        now = content["step"] if content else 0
        if now > step:  # it came past its start, where it clears up
            assert all(name.startswith(f".tmp-{process.pid}-") for name in left), "an earlier run's file"
        assert now >= step, "a checkpoint was lost"
        assert reached - now <= SAVE_EVERY, "more than one interval was lost"
        met["early"] += content is None
        met["half"] += any(LAST[script] in name for name in left)
        met["fell_back"] += bool(note)
        step = now
    assert step < steps, "the run ended before all kills: give it more steps"
    code, printed = run(script, chosen, folder / "printed")
    assert code == 0, printed
    assert not temporaries(out)
    straight = settings(script, tiny, folder / "straight", steps)
    assert run(script, straight, folder / "printed")[0] == 0
    assert_same_run(script, folder / "straight", out)
    return met


@pytest.mark.parametrize(("script", "kills", "steps"), [("train_var", 3, 30), ("train_vqvae", 2, 14)])
def test_a_few_kills(script, kills, steps, tiny, tmp_path):
    kill_again_and_again(script, tiny, tmp_path, kills, steps, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize(("script", "steps"), [("train_var", 200), ("train_vqvae", 130)])
def test_thirty_kills(script, steps, tiny, tmp_path):
    met = kill_again_and_again(script, tiny, tmp_path, kills=30, steps=steps, seed=0)
    print(f"{script}: 30 kills, met {met}")
    assert met["half"] >= 5  # during saving too


class KillInSave:
    """Called before a run: kills it in its third save, at one of the moments that a save has."""

    MOMENTS = ("half written", "written", "before rename 1", "before rename 2", "after rename 2")

    def __init__(self, moment: str, name: str) -> None:
        self.moment, self.name = moment, name

    def __call__(self) -> None:
        from usvar import checkpoints

        saves, renames = itertools.count(1), itertools.count(1)
        own_write, own_replace, in_third = checkpoints._write, os.replace, []

        def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def write(path, content):
            own_write(path, content)
            if not path.name.endswith(self.name) or next(saves) < 3:
                return
            in_third.append(True)
            if self.moment == "half written":
                os.truncate(path, path.stat().st_size // 2)
            if self.moment in ("half written", "written"):
                die()

        def replace(source, target):
            number = next(renames) if in_third else 0
            if self.moment == f"before rename {number}":
                die()
            own_replace(source, target)
            if self.moment == f"after rename {number}":
                die()

        checkpoints._write, os.replace = write, replace


@pytest.mark.parametrize("moment", KillInSave.MOMENTS)
@pytest.mark.parametrize("script", ["train_var", pytest.param("train_vqvae", marks=pytest.mark.slow)])
def test_a_kill_at_each_moment_of_a_save(script, tiny, tmp_path, moment):
    out, name = tmp_path / "out", LAST[script]
    chosen = settings(script, tiny, out, steps=8)
    code, printed = run(script, chosen, tmp_path / "printed", KillInSave(moment, name))
    assert code == -signal.SIGKILL, printed
    content, _, note = read_last(out / name)
    # Saves are at steps 2, 4 and 6; the third is there once the second rename is done.
    assert content["step"] == (6 if moment == "after rename 2" else 4)
    assert bool(note) == (moment == "before rename 2")  # between the two renames only the one before is there
    assert (out / name).exists() == (moment != "before rename 2") and previous_path(out / name).exists()
    code, printed = run(script, chosen, tmp_path / "printed")
    assert code == 0, printed
    assert ("note: " in printed) == bool(note)
    assert not temporaries(out)
    assert [row["step"] for row in read_log(out / "log.jsonl") if "note" not in row and "rate" in row] == [
        *range(1, 9)
    ]
