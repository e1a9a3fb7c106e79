"""Runs that are stopped, resumed, doubled, poisoned with NaN, or whose reads hang."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from faults import (
    LAST,
    TRAINERS,
    SignalAtStep,
    error_line,
    run,
    run_two,
    settings_of,
    start,
    temporaries,
    wait_for,
)
from test_reliability_kills import assert_same_run
from test_train_vqvae import assert_same, log_without_timings, stopped_after

import sample_var
import tokenize_multiscale_maps
import train_var
import train_vqvae
from usvar import images, losses, runs, signals, threads, tokens, training
from usvar.checkpoints import read_checkpoint
from usvar.distributed import World
from usvar.errors import InputError, RunError

MAINS = {"train_var": train_var.main, "train_vqvae": train_vqvae.main}


@pytest.fixture(scope="module")
def tiny(tiny_data, tiny_tokens, tiny_vqvae) -> dict[str, Path]:
    return {"data": tiny_data, "tokens": tiny_tokens, "vqvae": tiny_vqvae}


@pytest.fixture(autouse=True, scope="module")
def no_figures():
    with pytest.MonkeyPatch.context() as patch:
        for module in (train_var, train_vqvae):
            patch.setattr(module, "draw_curves", lambda *_: None)
        patch.setattr(train_var, "draw_samples", lambda *_: None)
        patch.setattr(train_vqvae, "draw_reconstructions", lambda *_: None)
        yield


@pytest.fixture(autouse=True)
def no_process_is_left():
    """A process that a failed test leaves waiting would keep pytest from ending: SIGTERM does not end it."""
    yield
    for process in multiprocessing.active_children():
        process.kill()


# Point 2. One process, in the middle and at the edge of a log interval: test_train_vqvae, test_train_var.
@pytest.mark.parametrize("script", ["train_var", pytest.param("train_vqvae", marks=pytest.mark.slow)])
def test_two_processes_stopped_and_resumed_are_the_same_as_not_stopped(script, tiny, tmp_path):
    """Between two log lines each process has sums of its own; the first one's were once taken for all."""
    steps = {"steps": 6, "log_every": 3, "eval_every": 6, "save_every": 6}
    for name in ("straight", "stopped"):
        chosen = settings_of(script, tiny, tmp_path / name, **steps)
        if name == "stopped":
            # The first process got no signal itself, and stops at the same step as the second.
            assert run_two(script, chosen, tmp_path / "printed", SignalAtStep(4)) == [130, 143]
            assert read_checkpoint(tmp_path / name / LAST[script])["step"] == 4
        codes = run_two(script, chosen, tmp_path / "printed")
        assert codes == [0, 0], (tmp_path / "printed.0").read_text()
    assert_same_run(script, tmp_path / "straight", tmp_path / "stopped")


class NeverBetter:
    """Called before a run: validations of this process read as if nothing had been learned."""

    def __call__(self) -> None:
        own = train_var.validate
        train_var.validate = lambda *arguments: own(*arguments) | {"val_mean": float("inf")}


def test_all_processes_stop_early_together(tiny, tmp_path):
    """One that stopped alone would leave the others waiting for ever."""
    chosen = settings_of("train_var", tiny, tmp_path / "out", eval_every=2, patience=1)
    assert run_two("train_var", chosen, tmp_path / "printed", NeverBetter()) == [0, 0]
    assert read_checkpoint(tmp_path / "out" / LAST["train_var"])["step"] == 2
    assert "stopped early at step 2" in (tmp_path / "printed.0").read_text()


def test_the_number_of_reading_threads_and_a_cache_that_is_there_change_nothing(tiny, tmp_path):
    """Pictures are decoded by threads before the first step; nothing else reads them."""
    for name, workers in (("one", 1), ("four", 4)):
        train_vqvae.main(settings_of("train_vqvae", tiny, tmp_path / name, steps=2, workers=workers))
    shutil.copytree(tmp_path / "one" / "cache", tmp_path / "cached" / "cache")
    train_vqvae.main(settings_of("train_vqvae", tiny, tmp_path / "cached", steps=2))
    for name in ("four", "cached"):
        assert_same_run("train_vqvae", tmp_path / "one", tmp_path / name)


@pytest.mark.parametrize("script", TRAINERS)
def test_log_lines_of_a_run_that_died_before_its_first_checkpoint_are_forgotten(script, tiny, tmp_path):
    """They were once kept beside those of the new start."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log.jsonl").write_text('{"step": 1, "rate": 1.0}\n{"step": 2, "rate": 1.0}\n{"st')
    MAINS[script](settings_of(script, tiny, tmp_path / "out", steps=2, log_every=1))
    assert [row["step"] for row in log_without_timings(tmp_path / "out") if "rate" in row] == [1, 2]


# Point 5: signals from outside, at any moment of a step.
@pytest.mark.parametrize(
    ("script", "number", "code"),
    [
        ("train_var", signal.SIGTERM, 143),
        ("train_var", signal.SIGINT, 130),
        ("train_vqvae", signal.SIGTERM, 143),
    ],
)
def test_a_signal_is_answered_with_a_checkpoint_and_its_exit_code(script, number, code, tiny, tmp_path):
    steps = 24 if script == "train_var" else 8
    chosen = settings_of(
        script, tiny, tmp_path / "out", steps=steps, log_every=1, save_every=1000, eval_every=1000
    )
    process = start(script, chosen, tmp_path / "printed")
    wait_for(lambda: (tmp_path / "out" / "log.jsonl").exists())
    time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(60)
    printed = (tmp_path / "printed").read_text()
    assert process.exitcode == code, printed
    step = read_checkpoint(tmp_path / "out" / LAST[script])["step"]
    assert 0 < step < steps and f"stopped: step {step} is in" in printed
    assert not temporaries(tmp_path / "out")
    assert run(script, chosen, tmp_path / "printed")[0] == 0
    straight = settings_of(
        script,
        tiny,
        tmp_path / "straight",
        **{k: getattr(chosen, k) for k in ("steps", "log_every", "save_every", "eval_every")},
    )
    assert run(script, straight, tmp_path / "printed")[0] == 0
    assert_same_run(script, tmp_path / "straight", tmp_path / "out")


class LongCall:
    """Called before a run: the second step ends in a call that runs no Python for minutes.

    Args:
        marker: a file that is made when the call begins.
        is_signalled: Ctrl-C comes before the call.
    """

    def __init__(self, marker: Path, is_signalled: bool = False) -> None:
        self.marker, self.is_signalled = marker, is_signalled

    def __call__(self) -> None:
        own = training.ema_update

        def update(averaged, model, step, decay, is_taken):
            own(averaged, model, step, decay, is_taken)
            if step == 1:
                if self.is_signalled:
                    os.kill(os.getpid(), signal.SIGINT)
                self.marker.touch()
                hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)

        training.ema_update = update


def test_ctrl_c_twice_stops_at_once_also_in_a_long_call(tiny, tmp_path):
    chosen = settings_of("train_var", tiny, tmp_path / "out")
    process = start("train_var", chosen, tmp_path / "printed", LongCall(tmp_path / "marker"))
    wait_for((tmp_path / "marker").exists)
    # Python notes the first signal when it runs again: here that is minutes away, so that both wait.
    os.kill(process.pid, signal.SIGINT)
    process.join(1)
    assert process.exitcode is None
    os.kill(process.pid, signal.SIGINT)
    process.join(20)
    assert process.exitcode == 130


def test_a_second_ctrl_c_ends_a_long_call_that_began_after_the_first(tiny, tmp_path):
    chosen = settings_of("train_var", tiny, tmp_path / "out")
    process = start("train_var", chosen, tmp_path / "printed", LongCall(tmp_path / "marker", True))
    wait_for((tmp_path / "marker").exists)
    process.join(1)
    assert process.exitcode is None, (tmp_path / "printed").read_text()
    os.kill(process.pid, signal.SIGINT)
    process.join(20)
    assert process.exitcode == 130


def test_under_torchrun_one_ctrl_c_that_comes_twice_is_one(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with signals.StopSignal() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == signal.SIGINT


# Point 6: numbers that are not finite.
def poison(monkeypatch, script: str, steps: set[int], what: str) -> None:
    """Make the loss a NaN, or a gradient infinite, at some steps (counted from 1)."""
    own, number = training.learning_rate, []

    def rate(step, *arguments):
        number[:] = [step + 1]
        return own(step, *arguments)

    monkeypatch.setattr(training, "learning_rate", rate)
    module, name = (train_var, "mean_over_tokens") if script == "train_var" else (losses, "base_terms")
    own_loss = getattr(module, name)

    class InfiniteGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("inf")

    def loss(*arguments):
        value = own_loss(*arguments)
        first = value[0] if isinstance(value, tuple) else value
        if number and number[0] in steps and first.requires_grad:
            first = first * float("nan") if what == "loss" else InfiniteGradient.apply(first)
        return (first, *value[1:]) if isinstance(value, tuple) else first

    monkeypatch.setattr(module, name, loss)


def weights(out: Path, script: str) -> dict:
    content = read_checkpoint(out / LAST[script])
    return {key: content[key] for key in ("model", "ema", "optimiser", "step")}


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("script", TRAINERS)
def test_a_step_that_is_not_finite_stops_the_run_before_it_is_taken(
    script, what, tiny, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    chosen = settings_of(script, tiny, out, steps=4, save_every=100, log_every=1)
    straight = settings_of(script, tiny, tmp_path / "straight", steps=4, save_every=2, log_every=1)
    MAINS[script](straight)
    poison(monkeypatch, script, {3}, what)
    with pytest.raises(
        RunError, match=r"step 3 was skipped: .*nonfinite_step_3\.json.*--max-skipped-steps 1"
    ):
        MAINS[script](chosen)
    # The state after step 2 is saved, and it is the one of the run that met no NaN.
    now, wanted = (
        read_checkpoint(out / LAST[script]),
        read_checkpoint(tmp_path / "straight" / f"{Path(LAST[script]).stem}-previous.pth"),
    )
    for content in (now, wanted):
        content["optimiser"] = content["optimiser"]["state"]  # the rate is that of the last step tried
    for key in ("model", "ema", "optimiser", "meter", "step"):
        assert_same(now[key], wanted[key])
    listed = json.loads((out / "nonfinite_step_3.json").read_text())
    if script == "train_vqvae":
        files = images.find_images(tiny["data"], "train", images.find_classes(tiny["data"]))
        rows = training.BalancedSampler(files.label_N, chosen.class_balance, chosen.seed).batch(
            2, chosen.batch_size
        )
        names = [files.paths[row] for row in rows]
    else:
        maps = tokens.read_token_maps(tiny["tokens"] / "train")
        rows = training.BalancedSampler(maps.label_N, chosen.class_balance, chosen.seed).batch(
            2, chosen.batch_size
        )
        names = [f"{maps.path_N[row]} view {maps.view_N[row]}" for row in rows]
    assert listed["batch"] == names and listed["step"] == 3
    assert listed["loss" if what == "loss" else "gradient_norm"] in ("nan", "inf")
    # The same command stops again, and has rotated nothing away.
    before = (out / LAST[script]).read_bytes()
    with pytest.raises(RunError, match="step 3 was skipped"):
        MAINS[script](chosen)
    assert (out / LAST[script]).read_bytes() == before
    assert [row["step"] for row in log_without_timings(out) if "note" in row] == [3]


@pytest.mark.parametrize("script", TRAINERS)
def test_a_step_that_is_not_finite_is_found_late_and_nothing_after_it_counts(
    script, tiny, tmp_path, monkeypatch
):
    """With six steps between two log lines: the steps after the third are tried, and none of them is made."""
    late = settings_of(script, tiny, tmp_path / "late", steps=6, save_every=100, log_every=100)
    at_once = settings_of(script, tiny, tmp_path / "at_once", steps=6, save_every=100, log_every=1)
    poison(monkeypatch, script, {3}, "loss")
    for chosen in (late, at_once):
        with pytest.raises(RunError, match="step 3 was skipped"):
            MAINS[script](chosen)
    late, at_once = (read_checkpoint(tmp_path / name / LAST[script]) for name in ("late", "at_once"))
    for key in ("model", "ema", "step", "skipped", "best"):
        assert_same(late[key], at_once[key])
    assert_same(late["optimiser"]["state"], at_once["optimiser"]["state"])
    assert late["meter"]["steps"] == 2 and at_once["meter"]["steps"] == 0


@pytest.mark.parametrize("script", TRAINERS)
def test_a_first_step_that_is_not_finite_leaves_the_start_behind(script, tiny, tmp_path, monkeypatch):
    poison(monkeypatch, script, {1}, "loss")
    with pytest.raises(RunError, match="step 1 was skipped"):
        MAINS[script](settings_of(script, tiny, tmp_path / "out", steps=2))
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "out" / LAST[script])["step"] == 0
    MAINS[script](settings_of(script, tiny, tmp_path / "out", steps=2))
    MAINS[script](settings_of(script, tiny, tmp_path / "straight", steps=2))
    assert_same_run(script, tmp_path / "straight", tmp_path / "out")


@pytest.mark.parametrize("script", TRAINERS)
def test_a_stated_number_of_steps_may_be_skipped(script, tiny, tmp_path, monkeypatch):
    """Counted over the whole run, also over a stop; a resumed run is the same as one that was not stopped."""
    poison(monkeypatch, script, {2, 4}, "loss")
    runs = {"steps": 4, "save_every": 100, "log_every": 4}
    MAINS[script](settings_of(script, tiny, tmp_path / "two", max_skipped_steps=2, **runs))
    assert read_checkpoint(tmp_path / "two" / LAST[script])["skipped"] == 2
    with pytest.raises(RunError, match=r"step 4 was skipped.*--max-skipped-steps 2"):
        MAINS[script](settings_of(script, tiny, tmp_path / "one", max_skipped_steps=1, **runs))
    content = read_checkpoint(tmp_path / "one" / LAST[script])
    assert content["step"] == 3 and content["skipped"] == 1
    MAINS[script](settings_of(script, tiny, tmp_path / "one", max_skipped_steps=2, **runs))
    assert_same_run(script, tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("script", TRAINERS)
def test_fewer_skips_than_there_were_are_refused(script, tiny, tmp_path, monkeypatch):
    """No step was taken then, and the run ended in a traceback, or saved steps that it had not taken."""
    poison(monkeypatch, script, {1, 2}, "loss")
    out, chosen = tmp_path / "out", {"steps": 6, "save_every": 1, "log_every": 1}
    with stopped_after(3, signal.SIGTERM), pytest.raises(signals.Stopped):
        MAINS[script](settings_of(script, tiny, out, max_skipped_steps=2, **chosen))
    before = files_of(out, "*")
    for allowed in (0, 1):
        with pytest.raises(
            InputError, match=rf"--max-skipped-steps {allowed} .* skipped 2 already: give 2 or more"
        ):
            MAINS[script](settings_of(script, tiny, out, max_skipped_steps=allowed, **chosen))
        assert files_of(out, "*") == before
    MAINS[script](settings_of(script, tiny, out, max_skipped_steps=2, **chosen))
    MAINS[script](settings_of(script, tiny, out, max_skipped_steps=0, **chosen))  # nothing is left to skip
    assert read_checkpoint(out / LAST[script])["step"] == 6


def test_an_optimiser_s_step_on_a_nan_is_not_made():
    model = torch.nn.Linear(2, 1)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    guard = training.StepGuard(model.parameters(), optimiser, 1.0, World(0, 1, torch.device("cpu")), 1)
    before = model.weight.detach().clone()
    loss = (model(torch.ones(1, 2)) * float("nan")).sum()
    loss.backward()
    norm, is_taken = guard.step(0, 0.1, loss)
    assert not is_taken and norm.isnan() and torch.equal(model.weight, before) and model.weight.grad is None


def test_a_step_that_is_bad_in_another_process_is_not_made():
    class OneOfTwo(World):
        def sum(self, values):
            return values + 1  # the other process has found its loss to be no number

    model = torch.nn.Linear(2, 1)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    guard = training.StepGuard(model.parameters(), optimiser, 1.0, OneOfTwo(0, 2, torch.device("cpu")))
    before = model.weight.detach().clone()
    loss = model(torch.ones(1, 2)).sum()
    loss.backward()
    assert not guard.step(0, 0.1, loss)[1] and torch.equal(model.weight, before)


def test_after_the_step_that_was_one_too_many_none_is_taken_however_late_it_is_asked_for():
    """Steps 1 and 3 are bad and one may be; 4 and 5 are good, but the weights must be those before step 3."""
    model = torch.nn.Linear(2, 1)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    guard = training.StepGuard(model.parameters(), optimiser, 1.0, World(0, 1, torch.device("cpu")), 1)
    weights_were, made = [], []
    for step, factor in enumerate((float("nan"), 1.0, float("inf"), 1.0, 1.0)):
        weights_were.append(model.weight.detach().clone())
        loss = (model(torch.ones(1, 2)) * factor).sum()
        loss.backward()
        made.append(bool(guard.step(step, 0.1, loss)[1]))
    assert made == [False, True, False, False, False]
    assert torch.equal(model.weight, weights_were[2]) and not torch.equal(model.weight, weights_were[1])
    assert optimiser.state[model.weight]["step"] == 1
    assert guard.stopped_at is None  # nobody has asked yet
    assert [(bad.step, bad.before) for bad in guard.read()] == [(1, 0), (3, 1)]
    assert (guard.stopped_at, guard.steps_before_stop) == (3, 2) and guard.skipped == 1 and guard.read() == []


# Point 9: reads that fail, die or hang. There are no loader processes: threads read.
@pytest.mark.parametrize("error", [InputError("a.png cannot be read"), SystemExit(1), MemoryError("a.png")])
def test_what_a_reading_thread_raises_reaches_the_run(error):
    def read(item):
        if item == 2:
            raise error
        return item

    got = threads.in_order(read, range(5), 2, 2, 60, str)
    assert [next(got), next(got)] == [0, 1]
    with pytest.raises(type(error)):
        next(got)


def test_results_come_in_order_and_not_too_far_ahead():
    asked = []

    def items():
        for i in range(20):
            asked.append(i)
            yield i

    got = threads.in_order(lambda i: time.sleep(0.002 * (i % 3)) or i, items(), 4, 3, 60, str)
    assert next(got) == 0 and len(asked) <= 4
    assert list(got) == list(range(1, 20))


@pytest.mark.timeout(60)  # without the guard it never ends
def test_a_picture_that_hangs_is_named_within_the_limit(tmp_path, tiny):
    """A pipe in the place of a picture: nobody writes to it, and reading it never ends."""
    shutil.copytree(tiny["data"], tmp_path / "data")
    files = images.find_images(tmp_path / "data", "train", images.find_classes(tmp_path / "data"))
    hanging = files.root / files.paths[7]
    hanging.unlink()
    os.mkfifo(hanging)
    began = time.monotonic()
    with pytest.raises(RunError, match=f"reading {hanging} has taken more than 0.5 s"):
        images.decoded(files, 64, tmp_path / "cache", workers=2, limit_s=0.5)
    assert time.monotonic() - began < 10
    assert not temporaries(tmp_path / "cache")
    with pytest.raises(InputError, match="no plain PNG file"):
        images.find_images(tmp_path / "data", "train", files.classes)


def test_tokenising_names_a_picture_that_hangs_and_its_process_ends(tmp_path, tiny, monkeypatch):
    shutil.copytree(tiny["data"], tmp_path / "data")
    own = images.read_images

    def read(files, indices, size):
        hanging = next((tmp_path / "data" / "train").rglob("*.png"))
        hanging.unlink()
        os.mkfifo(hanging)
        return own(files, indices, size)

    monkeypatch.setattr(images, "read_images", read)
    chosen = {"views": 1, "batch_size": 2, "device": "cpu", "read_limit_s": 0.5, "out_dir": tmp_path / "out"}
    settings = tokenize_multiscale_maps.Settings(tmp_path / "data", tiny["vqvae"], **chosen)
    with pytest.raises(RunError, match=r"reading .*\.png or .*\.png has taken more than 0.5 s"):
        tokenize_multiscale_maps.main(settings)


class HangingBatches:
    """Called before a run: the third batch never comes, as from a network folder that is gone."""

    def __call__(self) -> None:
        own = training.BalancedSampler.batch

        def batch(sampler, step, size):
            if step == 2:
                time.sleep(10**6)
            return own(sampler, step, size)

        training.BalancedSampler.batch = batch


@pytest.mark.parametrize("script", TRAINERS)
def test_a_batch_that_hangs_ends_the_run_within_the_limit(script, tiny, tmp_path):
    chosen = (
        settings_of(
            script,
            tiny,
            tmp_path / "out",
            read_limit_s=2.0,
            save_every=1,
            log_every=1,
            codebook_start_images=0,
        )
        if script == "train_vqvae"
        else settings_of(script, tiny, tmp_path / "out", read_limit_s=2.0, save_every=1, log_every=1)
    )
    code, printed = run(script, chosen, tmp_path / "printed", HangingBatches())
    assert code == 3, printed
    source = "cache/train-" if script == "train_vqvae" else "train/tokens_multiscale_maps.npz"
    line = error_line(printed)
    assert "reading the batch of step 3 from" in line and source in line and "more than 2 s" in line
    assert read_checkpoint(tmp_path / "out" / LAST[script])["step"] == 2


# Point 11: two runs in one folder.
class Waiting:
    """Called before a run: it waits in its first step, until it is killed."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __call__(self) -> None:
        def wait(*_):
            self.marker.touch()
            time.sleep(10**6)

        training.StepGuard.step = wait
        tokenize_multiscale_maps.tokenise = wait


@pytest.mark.parametrize("script", [*TRAINERS, "tokenize_multiscale_maps"])
def test_a_second_run_is_refused_and_a_dead_one_does_not_block(script, tiny, tmp_path):
    if script in TRAINERS:
        chosen = settings_of(script, tiny, tmp_path / "out", steps=2)
    else:
        chosen = tokenize_multiscale_maps.Settings(
            tiny["data"], tiny["vqvae"], tmp_path / "out", views=1, device="cpu"
        )
    first = start(script, chosen, tmp_path / "printed_1", Waiting(tmp_path / "marker"))
    wait_for((tmp_path / "marker").exists, 120)
    code, printed = run(script, chosen, tmp_path / "printed_2")
    assert code == 2, printed
    assert f"another run writes to {tmp_path / 'out'} (process {first.pid})" in error_line(printed)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    code, printed = run(script, chosen, tmp_path / "printed_2")
    assert code == 0, printed


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        runs.RunFolder(tmp_path / "file" / "out", {})


# Point 12: the same seed gives the same bytes, and a finished stage has nothing to do.
def files_of(folder: Path, pattern: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob(pattern))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_samples_byte_for_byte(tiny, tiny_var, tmp_path, capsys):
    made = []
    for name in ("first", "second"):
        settings = sample_var.Settings(
            tiny_var,
            tiny["vqvae"],
            tiny["tokens"],
            tmp_path / name,
            images_per_class=2,
            variety=2,
            save_tokens=True,
            figure_rows=1,
            prefix_tokens=(0, 5),
            device="cpu",
        )
        sample_var.main(settings)
        made.append(files_of(tmp_path / name, "*.png") | files_of(tmp_path / name, "*.npy"))
    assert len(made[0]) > 30 and made[0] == made[1]
    capsys.readouterr()
    sample_var.main(settings)
    assert "nothing to do" in capsys.readouterr().out
    assert files_of(tmp_path / "second", "*.png") | files_of(tmp_path / "second", "*.npy") == made[1]


@pytest.mark.parametrize("script", TRAINERS)
def test_a_start_with_nothing_to_do_changes_no_file(script, tiny, tmp_path, capsys):
    """settings.json then named settings and a code revision that the checkpoints were not made with."""
    out = tmp_path / "out"
    MAINS[script](settings_of(script, tiny, out, steps=2))
    before = files_of(out, "*")
    MAINS[script](settings_of(script, tiny, out, steps=2, log_every=7, save_every=1))
    assert "nothing to do" in capsys.readouterr().out and files_of(out, "*") == before


def test_the_same_seed_gives_the_same_models_and_tokens(tiny, tmp_path, capsys):
    for name in ("first", "second"):
        train_var.main(settings_of("train_var", tiny, tmp_path / name / "var"))
        settings = tokenize_multiscale_maps.Settings(
            tiny["data"], tiny["vqvae"], tmp_path / name / "tokens", views=2, device="cpu"
        )
        tokenize_multiscale_maps.main(settings)
    assert_same_run("train_var", tmp_path / "first" / "var", tmp_path / "second" / "var")
    for split in images.SPLITS:
        first, second = (
            tokens.read_token_maps(tmp_path / name / "tokens" / split) for name in ("first", "second")
        )
        assert (first.idx_NL == second.idx_NL).all()
    capsys.readouterr()
    train_var.main(settings_of("train_var", tiny, tmp_path / "second" / "var"))
    tokenize_multiscale_maps.main(settings)
    assert capsys.readouterr().out.count("nothing to do") == 4
