"""The transformer's training script: files, resume, several processes, learning, refusals."""

import contextlib
import copy
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train_vqvae import ROOT, assert_same, log_without_timings, optimiser_of, stopped_after

import train_var
from models import VAR
from models.helpers import scale_spans
from usvar import runs, tokens, training
from usvar.checkpoints import load_var, load_vqvae, read_checkpoint
from usvar.distributed import World
from usvar.errors import InputError
from usvar.signals import Stopped

ALONE = World(0, 1, torch.device("cpu"))


def settings(tokens_dir: Path, vqvae: Path, out: Path, **changes) -> train_var.Settings:
    chosen = {
        "tokens_dir": tokens_dir,
        "vqvae": vqvae,
        "out_dir": out,
        "depth": 2,
        "width": 32,
        "heads": 2,
        "drop_rate": 0.1,
        "class_drop": 0.3,
        "batch_size": 4,
        "steps": 6,
        "log_every": 2,
        "eval_every": 6,
        "save_every": 6,
        "samples_per_class": 2,
        "device": "cpu",
        "precision": "float32",
    }
    return train_var.Settings(**chosen | changes)


@pytest.fixture
def no_figures(monkeypatch):
    for name in ("draw_curves", "draw_samples"):
        monkeypatch.setattr(train_var, name, lambda *_: None)


@pytest.fixture(scope="module")
def straight(tiny_tokens, tiny_vqvae, tmp_path_factory) -> Path:
    """A run of six steps without a stop."""
    out = tmp_path_factory.mktemp("var") / "straight"
    train_var.main(settings(tiny_tokens, tiny_vqvae, out))
    return out


def test_muon_trains_attention_and_feed_forward_layers_and_nothing_else(straight, tiny_vqvae):
    """Not the matrices that turn the class into gains and shifts."""
    var = load_var(straight / "ar-ckpt-best.pth", load_vqvae(tiny_vqvae))
    last = read_checkpoint(straight / "ar-ckpt-last.pth")
    by_muon, *by_adamw = last["optimiser"]["param_groups"]
    named = var.model.blocks.named_parameters()
    matrices = [p for name, p in named if p.ndim == 2 and "ada_lin" not in name]
    assert by_muon["muon_rate"] == train_var.Settings.muon_rate and len(by_muon["params"]) == len(matrices)
    state = last["optimiser"]["state"]
    shapes = [state[i]["momentum_buffer"].shape for i in by_muon["params"]]
    assert sorted(shapes) == sorted(p.shape for p in matrices)
    assert all("exp_avg" in state[i] for group in by_adamw for i in group["params"])


def test_the_averaged_weights_are_a_copy_and_the_vqvae_is_not(tiny_tokens, tiny_vqvae, tmp_path):
    s, vae = settings(tiny_tokens, tiny_vqvae, tmp_path), load_vqvae(tiny_vqvae).model
    arguments = {"num_classes": 3, "depth": 2, "embed_dim": 32, "num_heads": 2, "patch_nums": (1, 2, 4)}
    model, averaged, _ = train_var.build(s, vae, arguments, ALONE.device, torch.float32)
    assert averaged.vae_proxy[0] is vae and averaged.vae_quant_proxy[0] is vae.quantize
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in averaged.parameters()}


def test_a_run_writes_what_the_next_stages_read(straight, tiny_vqvae):
    for name in ("loss_curves", "loss_per_scale", "samples"):
        assert (straight / f"{name}.png").stat().st_size > 5000
    newest = (straight / "samples.png").read_bytes()
    assert (straight / "progress" / "samples_000006.png").read_bytes() == newest
    var = load_var(straight / "ar-ckpt-best.pth", load_vqvae(tiny_vqvae))
    assert var.classes == ("Heart", "Kidney", "Liver") and var.config["image_size"] == 64
    assert var.made_by["inputs"].keys() == {"vqvae", "train_tokens", "val_tokens"}
    rows = log_without_timings(straight)
    assert [row["step"] for row in rows] == [2, 4, 6, 6]
    assert len(rows[0]["train_per_scale"]) == 3
    assert rows[-1]["val_mean_bits"] == pytest.approx(rows[-1]["val_mean"] / np.log(2))
    assert rows[-1]["val_per_scale"][-1] == rows[-1]["val_last"]
    baselines = json.loads((straight / "baselines.json").read_text())
    assert len(baselines["nats_per_token_of_each_scale_on_val"]["unigram"]) == 3


@pytest.mark.parametrize("stop_at", [4, 5])
def test_stopped_and_resumed_is_the_same_as_not_stopped(straight, tiny_tokens, tiny_vqvae, tmp_path, stop_at):
    """Bit for bit, with dropout and class dropout on, also when the stop comes between two log lines."""
    with (
        stopped_after(stop_at, signal.SIGTERM),
        pytest.raises(Stopped, match=f"step {stop_at} is in"),
    ):
        train_var.main(settings(tiny_tokens, tiny_vqvae, tmp_path))
    train_var.main(settings(tiny_tokens, tiny_vqvae, tmp_path))
    for name in ("ar-ckpt-last.pth", "ar-ckpt-best.pth"):
        first, second = (read_checkpoint(out / name) for out in (straight, tmp_path))
        for content in (first, second):
            del content["made_by"]  # names the output folder
        assert_same(first, second)
    assert log_without_timings(tmp_path) == log_without_timings(straight)


def learned_nothing_after(monkeypatch, scores: list[float]) -> None:
    """Validations that read as the list says, one after another; the last one stays."""
    own, rest = train_var.validate, list(scores)

    def validate(*arguments):
        return own(*arguments) | {"val_mean": rest.pop(0) if len(rest) > 1 else rest[0]}

    monkeypatch.setattr(train_var, "validate", validate)


@pytest.mark.usefixtures("no_figures")
def test_training_stops_early_and_keeps_the_best(tiny_tokens, tiny_vqvae, tmp_path, monkeypatch, capsys):
    """Two validations in a row without a new best; one between two bests does not count."""
    learned_nothing_after(monkeypatch, [3.0, 3.1, 2.0, 2.2, 2.1, 1.0])
    s = settings(tiny_tokens, tiny_vqvae, tmp_path, eval_every=1, steps=6, patience=2)
    train_var.main(s)
    assert "stopped early at step 5, 2 validations after the best" in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "ar-ckpt-best.pth")["step"] == 3
    last = read_checkpoint(tmp_path / "ar-ckpt-last.pth")
    assert (last["step"], last["stale"], last["best"]) == (5, 2, 2.0)
    before = (tmp_path / "log.jsonl").read_text()
    train_var.main(s)
    said = capsys.readouterr().out
    assert "nothing to do: the run stopped early at step 5" in said and "--patience 0 goes on" in said
    assert (tmp_path / "log.jsonl").read_text() == before
    (tmp_path / "ar-ckpt-best.pth").unlink()
    with pytest.raises(InputError, match="missing or damaged, and the run stopped early at step 5"):
        train_var.main(s)


@pytest.mark.usefixtures("no_figures")
def test_the_count_towards_early_stopping_outlives_a_stop(tiny_tokens, tiny_vqvae, tmp_path, monkeypatch):
    learned_nothing_after(monkeypatch, [1.0, 2.0])
    s = settings(tiny_tokens, tiny_vqvae, tmp_path, eval_every=2, steps=12, patience=2)
    # After the first validation without a new best.
    with stopped_after(5, signal.SIGTERM), pytest.raises(Stopped, match="step 5 is in"):
        train_var.main(s)
    train_var.main(s)
    last = read_checkpoint(tmp_path / "ar-ckpt-last.pth")
    assert last.pop("step") == 6
    for name in ("ar-ckpt-last.pth", "ar-ckpt-last-previous.pth"):
        torch.save(
            {key: value for key, value in last.items() if key != "stale"} | {"step": 6}, tmp_path / name
        )
    with pytest.raises(InputError, match="count of validations without a new best"):
        train_var.main(s)


@pytest.mark.usefixtures("no_figures")
def test_a_run_that_stopped_early_goes_on_when_asked(tiny_tokens, tiny_vqvae, tmp_path, monkeypatch):
    """With the numbers that it would have had without early stopping."""
    learned_nothing_after(monkeypatch, [1.0, 2.0])
    runs = {"eval_every": 1, "steps": 5}
    train_var.main(settings(tiny_tokens, tiny_vqvae, tmp_path / "early", patience=2, **runs))
    assert read_checkpoint(tmp_path / "early" / "ar-ckpt-last.pth")["step"] == 3
    train_var.main(settings(tiny_tokens, tiny_vqvae, tmp_path / "early", **runs))
    learned_nothing_after(monkeypatch, [1.0, 2.0])
    train_var.main(settings(tiny_tokens, tiny_vqvae, tmp_path / "straight", **runs))
    first, second = (read_checkpoint(tmp_path / name / "ar-ckpt-last.pth") for name in ("early", "straight"))
    for key in ("model", "ema", "optimiser", "meter", "step", "stale"):
        assert_same(first[key], second[key])


def last_weights(out: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(out / "ar-ckpt-last.pth")["model"]


# Stochastic depth and class dropout are drawn for the whole batch, dropout is not.
CALM = {"drop_rate": 0.0, "drop_path_rate": 0.5, "steps": 3, "log_every": 1}


@pytest.mark.parametrize(
    "changes",
    [{"accumulate": 4}, {"head_chunk": 5}, {"recompute": True}],
    ids=["accumulate", "head_chunk", "recompute"],
)
@pytest.mark.usefixtures("no_figures")
def test_ways_to_save_memory_train_the_same_weights(tiny_tokens, tiny_vqvae, tmp_path, changes):
    """AdamW divides by the gradient's size: rounding of one near 0 moves its weight by up to a step."""
    calm = CALM | {"learning_rate": 1e-3, "steps": 3, "label_smoothing": 0.1}
    rate = calm["learning_rate"] * calm["steps"]
    for name, way in (("plain", {}), ("saving", changes)):
        train_var.main(settings(tiny_tokens, tiny_vqvae, tmp_path / name, **calm | way))
    plain, saving = (last_weights(tmp_path / name) for name in ("plain", "saving"))
    plain.pop("attn_bias_for_masking")  # infinite
    moved = torch.cat([(saving[key] - plain[key]).float().flatten().abs() for key in plain])
    assert moved.max() < 0.1 * rate and moved.mean() < 1e-4 * rate
    for a, b in zip(*(log_without_timings(tmp_path / name) for name in ("plain", "saving")), strict=True):
        for name in a.keys() - {"step"}:
            assert b[name] == pytest.approx(a[name], rel=1e-4), name


def test_gradients_of_processes_are_added_up_once_a_step(tiny_tokens, tiny_vqvae, tmp_path):
    """Not behind every piece: that would be the same numbers and as many times the traffic."""
    waits = []

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.is_quiet = load_var_of(tiny_vqvae), False

        @contextlib.contextmanager
        def no_sync(self):
            self.is_quiet = True
            yield
            self.is_quiet = False

        def forward(self, *arguments, **named):
            waits.append(self.is_quiet)
            return self.network(*arguments, **named)

    maps = tokens.read_token_maps(tiny_tokens / "train")
    idx_BL = tokens.as_tensor(maps.idx_NL, range(4))
    batch = (idx_BL, torch.zeros(4, dtype=torch.long), torch.zeros(4) > 0, torch.zeros(4, 1, 2) > 0)
    s = settings(tiny_tokens, tiny_vqvae, tmp_path, accumulate=4)
    spans = scale_spans(maps.patch_nums)
    train_var.backward(s, Network(), load_vqvae(tiny_vqvae).model, batch, spans, torch.float32)
    assert waits == [True, True, True, False]


def whole_step(tiny_tokens: Path, tiny_vqvae: Path, out: Path, device: torch.device) -> Callable[[], None]:
    """A function that does all of a training step but loading, on networks that are on the device."""
    maps = tokens.read_token_maps(tiny_tokens / "train")
    idx_BL, label_B = tokens.as_tensor(maps.idx_NL, range(4)), torch.zeros(4, dtype=torch.long)
    batch = [x.to(device) for x in (idx_BL, label_B, torch.zeros(4) > 0, torch.zeros(4, 1, 2) > 0)]
    model, vae = load_var_of(tiny_vqvae).to(device), load_vqvae(tiny_vqvae).model.to(device)
    s = settings(tiny_tokens, tiny_vqvae, out, accumulate=2, head_chunk=8)
    model.recompute_blocks = True
    spans, dtype = scale_spans(maps.patch_nums), torch.bfloat16 if device.type == "cuda" else torch.float32
    averaged, meter = copy.deepcopy(model).requires_grad_(False), training.Meter()
    optimiser = optimiser_of(model)
    guard = training.StepGuard(model.parameters(), optimiser, 1.0, World(0, 1, device))

    def step() -> None:
        loss, nats_S, _ = train_var.backward(s, model, vae, batch, spans, dtype)
        norm, is_taken = guard.step(0, 1e-3, loss)
        training.ema_update(averaged, model, 0, 0.9, is_taken)
        meter.add(is_taken, nats=nats_S, norm=norm)

    return step


def test_a_step_asks_nothing_of_the_device(tiny_tokens, tiny_vqvae, tmp_path):
    """On "meta" there are no values: whoever asks for one, and so would make a GPU wait, raises."""
    with pytest.raises(RuntimeError, match="meta"):
        bool(torch.ones((), device="meta").isfinite())
    step = whole_step(tiny_tokens, tiny_vqvae, tmp_path, torch.device("meta"))
    for _ in range(2):
        step()


def test_a_step_does_not_wait_for_the_device(tiny_tokens, tiny_vqvae, tmp_path):
    # Not asked on import: the fork server imports this file, and CUDA bears no fork after it.
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: a CPU has nothing to wait for")
    step = whole_step(tiny_tokens, tiny_vqvae, tmp_path, torch.device("cuda"))
    step()  # what is made once is made here
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def load_var_of(vqvae: Path) -> VAR:
    return VAR(
        load_vqvae(vqvae).model, num_classes=3, depth=1, embed_dim=32, num_heads=2, patch_nums=(1, 2, 4)
    )


@pytest.mark.usefixtures("no_figures")
def test_the_training_loss_is_smoothed_and_what_is_logged_is_not(tiny_tokens, tiny_vqvae, tmp_path):
    """So that train and val compare, and runs of different smoothing."""
    first = {}
    for smoothing in (0.0, 0.5):
        out = tmp_path / str(smoothing)
        train_var.main(settings(tiny_tokens, tiny_vqvae, out, **CALM, label_smoothing=smoothing))
        first[smoothing] = log_without_timings(out)
    assert first[0.0][0]["train_mean"] == pytest.approx(first[0.5][0]["train_mean"], rel=1e-6)
    assert first[0.0][0]["gradient_norm"] > 1.5 * first[0.5][0]["gradient_norm"]


@pytest.mark.usefixtures("no_figures")
def test_bfloat16_trains_nearly_the_same(tiny_tokens, tiny_vqvae, tmp_path):
    rows = {}
    for precision in ("float32", "bfloat16"):
        out = tmp_path / precision
        train_var.main(settings(tiny_tokens, tiny_vqvae, out, **CALM, precision=precision))
        rows[precision] = log_without_timings(out)[-1]
        assert all(x.dtype == torch.float32 for x in last_weights(out).values() if x.is_floating_point())
    assert rows["bfloat16"]["val_mean"] == pytest.approx(rows["float32"]["val_mean"], rel=1e-2)
    assert rows["bfloat16"]["val_mean"] != rows["float32"]["val_mean"]


@pytest.mark.usefixtures("no_figures")
def test_the_compiled_network_trains_the_same(tiny_tokens, tiny_vqvae, tmp_path, monkeypatch):
    """With the backend that needs no compiler."""
    compiled, own = [], torch.compile

    def compile_without_compiler(network):
        compiled.append(network)
        return own(network, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_without_compiler)
    rows = {}
    for name in ("plain", "compiled"):
        out = tmp_path / name
        way = {"compile": name == "compiled", "accumulate": 2}
        train_var.main(settings(tiny_tokens, tiny_vqvae, out, **CALM | way))
        rows[name] = log_without_timings(out)
    assert (
        len(compiled) == 1 and last_weights(tmp_path / "compiled").keys() == compiled[0].state_dict().keys()
    )
    for a, b in zip(rows["plain"][:3], rows["compiled"][:3], strict=True):
        assert b["train_mean"] == pytest.approx(a["train_mean"], rel=1e-4)


class Seen(Exception):
    """Ends a run at its first batch."""


@pytest.mark.parametrize(("balance", "wanted"), [(0.0, 0.04), (1.0, 1 / 3)])
@pytest.mark.parametrize("class_drop", [0.0, 0.3])
def test_the_batches_are_balanced_and_hide_classes_as_asked(
    balance, wanted, class_drop, tiny_tokens, tiny_vqvae, tmp_path, monkeypatch
):
    """Without hidden classes in training, guidance would subtract what was never learned."""
    maps = tokens.read_token_maps(tiny_tokens / "train")
    rows = np.flatnonzero((maps.label_N != 0) | (np.arange(len(maps)) == 0))  # one Heart of twelve
    for split in ("train", "val"):
        columns = [column[rows] for column in (maps.idx_NL, maps.label_N, maps.path_N, maps.view_N)]
        about = (maps.patch_nums, maps.classes, maps.made_by)
        tokens.write_token_maps(tmp_path / "tokens" / split, *columns, *about)
    seen = []

    def backward(s, network, vae, batch, *_):
        seen.extend(batch)
        raise Seen

    monkeypatch.setattr(train_var, "backward", backward)
    chosen = {"class_balance": balance, "class_drop": class_drop, "batch_size": 2000}
    with pytest.raises(Seen):
        train_var.main(settings(tmp_path / "tokens", tiny_vqvae, tmp_path / "out", **chosen))
    _, label_B, drop_B, _ = seen
    assert (label_B == 0).float().mean().item() == pytest.approx(wanted, abs=0.04)
    assert drop_B.float().mean().item() == pytest.approx(class_drop, abs=0.04)


def test_a_finished_run_says_so(straight, tiny_tokens, tiny_vqvae, capsys):
    train_var.main(settings(tiny_tokens, tiny_vqvae, straight))
    assert "nothing to do" in capsys.readouterr().out


def test_a_class_that_val_lacks_is_named(tiny_tokens, tiny_vqvae, tmp_path, no_figures, capsys):
    shutil.copytree(tiny_tokens, tmp_path / "tokens")
    maps = tokens.read_token_maps(tiny_tokens / "val")
    rows = np.flatnonzero(maps.label_N < 2)
    columns = (np.array(x[rows]) for x in (maps.idx_NL, maps.label_N, maps.path_N, maps.view_N))
    tokens.write_token_maps(
        tmp_path / "tokens" / "val", *columns, maps.patch_nums, maps.classes, maps.made_by
    )
    train_var.main(settings(tmp_path / "tokens", tiny_vqvae, tmp_path / "var", steps=1))
    assert "note: val has no token map of Liver" in capsys.readouterr().out


def test_two_processes_give_the_curve_of_one(tiny_tokens, tiny_vqvae, tmp_path):
    """Half the batch each, in two pieces; gradients are added up behind the second.

    Class dropout and stochastic depth are drawn for the whole batch; dropout differs by process and piece.
    """
    # At this rate the blocks, which start as the identity, soon matter.
    calm = {"drop_rate": 0.0, "drop_path_rate": 0.5, "learning_rate": 1e-2, "steps": 10}
    one = settings(tiny_tokens, tiny_vqvae, tmp_path / "one", **calm)
    two = replace(one, out_dir=tmp_path / "two", accumulate=2)
    train_var.main(one)
    flags = [
        text for name, value in vars(two).items() for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    flags = [text if text != "(0.9, 0.95)" else "0.9" for text in flags]
    flags.insert(flags.index("--betas") + 2, "0.95")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "train_var.py", *flags], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for a, b in zip(log_without_timings(one.out_dir), log_without_timings(two.out_dir), strict=True):
        for name in ("train_mean", "train_last", "val_mean", "val_accuracy"):
            if name in a:
                assert b[name] == pytest.approx(a[name], rel=1e-4), name


def test_the_class_is_hidden_in_training_only(tiny_tokens, tiny_vqvae, straight):
    """Class dropout acted in eval mode too, so that validation was noisy."""
    loaded = load_vqvae(tiny_vqvae)
    var = load_var(straight / "ar-ckpt-best.pth", loaded).model
    var.cond_drop_rate = 1.0
    maps = tokens.read_token_maps(tiny_tokens / "val")
    s = settings(tiny_tokens, tiny_vqvae, straight)
    scores = train_var.validate(s, var, loaded.model, maps, ALONE, torch.float32)
    row = next(row for row in runs.read_log(straight / "log.jsonl") if "val_mean" in row)
    assert scores["val_mean"] == pytest.approx(row["val_mean"], rel=1e-6)


def test_sixteen_images_are_learned_by_heart_and_sampled_back(tiny_tokens, tiny_vqvae, tmp_path):
    """The loss nears zero but for the choice among a class's images, and most samples are one of them.

    Tokens of one scale are drawn without a look at each other, so that images whose coarser tokens are the
    same can mix.
    """
    maps = tokens.read_token_maps(tiny_tokens / "train")
    rows = np.flatnonzero(maps.view_N == 0)[:16]
    for split in ("train", "val"):
        tokens.write_token_maps(
            tmp_path / "tokens" / split,
            np.array(maps.idx_NL[rows]),
            maps.label_N[rows],
            np.array(maps.path_N[rows]),
            maps.view_N[rows],
            maps.patch_nums,
            maps.classes,
            maps.made_by,
        )
    learn = {"steps": 200, "log_every": 200, "eval_every": 200, "learning_rate": 5e-3, "samples_per_class": 0}
    calm = {"drop_rate": 0.0, "class_drop": 0.0, "drop_path_rate": 0.0, "weight_decay": 0.0, "ema_decay": 0.9}
    size = {"width": 64, "batch_size": 16}
    train_var.main(settings(tmp_path / "tokens", tiny_vqvae, tmp_path / "var", **learn, **calm, **size))
    row = log_without_timings(tmp_path / "var")[-1]
    # To choose one of 16 / 3 images takes 1.7 nats, once in 21 tokens.
    assert row["val_mean"] < 0.2
    var = load_var(tmp_path / "var" / "ar-ckpt-best.pth", load_vqvae(tiny_vqvae)).model
    label_B = torch.arange(3).repeat_interleave(8)
    idx_BL, _ = var.generate_tokens(label_B, seeds=list(range(24)), cfg=0.0)
    learned_NL = tokens.as_tensor(maps.idx_NL, rows)
    same_BN = (idx_BL[:, None] == learned_NL).float().mean(-1)
    nearest_B = same_BN.argmax(1)
    is_learned_B = same_BN.amax(1) == 1
    assert is_learned_B.float().mean() > 0.5
    assert (torch.from_numpy(maps.label_N[rows])[nearest_B] == label_B).all()
    assert len(nearest_B[is_learned_B].unique()) > 6


def test_means_of_scales_and_of_tokens():
    nats_BL = torch.rand(3, 14)
    spans = scale_spans((1, 2, 3))
    nats_S = train_var.scale_means(nats_BL, spans)
    torch.testing.assert_close(nats_S[1], nats_BL[:, 1:5].mean())
    torch.testing.assert_close(train_var.mean_over_tokens(nats_S, spans), nats_BL.mean())


def test_tokens_of_another_vqvae_are_refused(tiny_tokens, tiny_vqvae, tmp_path):
    content = read_checkpoint(tiny_vqvae)
    content["made_by"] = {"another": "run"}
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"run tokenize_multiscale_maps\.py again"):
        train_var.main(settings(tiny_tokens, tmp_path / "other.pth", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_classes_in_another_order_are_refused(tiny_tokens, tiny_vqvae, tmp_path):
    shutil.copytree(tiny_tokens, tmp_path / "tokens")
    (tmp_path / "tokens" / "val" / "classes.json").write_text('["Kidney", "Heart", "Liver"]')
    with pytest.raises(InputError, match="lists Kidney, Heart, Liver"):
        train_var.main(settings(tmp_path / "tokens", tiny_vqvae, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_tensorboard_gets_the_numbers_when_asked(straight, tiny_tokens, tiny_vqvae, tmp_path):
    train_var.main(settings(tiny_tokens, tiny_vqvae, tmp_path / "out", tensorboard=True))
    (events,) = (tmp_path / "out" / "tensorboard").iterdir()
    assert b"val_mean" in events.read_bytes()
    assert not (straight / "tensorboard").exists()


def test_labels_of_another_data_set_are_refused(straight, tiny_tokens, tiny_vqvae, tmp_path):
    """Class names beside the tokens that are not theirs, and a run that would go on with other classes."""
    out = shutil.copytree(straight, tmp_path / "out")
    before = (out / "ar-ckpt-last.pth").read_bytes()
    other = shutil.copytree(tiny_tokens, tmp_path / "tokens")
    for split in ("train", "val"):
        (other / split / "classes.json").write_text('["Lung", "Spleen", "Toe"]')
    with pytest.raises(InputError, match="lists Lung, Spleen, Toe, the tokens beside it were made for Heart"):
        train_var.main(settings(other, tiny_vqvae, out))
    for split in ("train", "val"):
        maps = tokens.read_token_maps(tiny_tokens / split)
        arrays = maps.idx_NL, maps.label_N, maps.path_N, maps.view_N
        classes = ("Lung", "Spleen", "Toe")
        tokens.write_token_maps(other / split, *arrays, maps.patch_nums, classes, maps.made_by)
    with pytest.raises(InputError, match="another train tokens file"):
        train_var.main(settings(other, tiny_vqvae, out))
    assert (out / "ar-ckpt-last.pth").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"width": 33}, "--width 33"),
        ({"depth": 0}, "--depth 0"),
        ({"class_drop": 1.5}, "--class-drop 1.5"),
        ({"top_p": -0.1}, "--top-p -0.1"),
        ({"top_k": -1}, "--top-k -1"),
        ({"heads": 0}, "--heads 0 was given, wanted 1 or more"),
        ({"warmup": 2.0}, "--warmup 2.0 was given, wanted 0 to 1"),
        ({"clip": -1.0}, "--clip -1.0 was given, wanted above 0"),
        ({"drop_rate": 1.0}, "--drop-rate 1.0 was given, wanted 0 to below 1"),
        ({"samples_per_class": -1}, "--samples-per-class -1 was given, wanted 0 or more"),
        ({"patience": -1}, "--patience -1 was given, wanted 0 or more"),
        ({"head_chunk": -5}, "--head-chunk -5 was given, wanted 0 or more"),
        ({"accumulate": 0}, "--accumulate 0 was given, wanted 1 or more"),
        ({"accumulate": 3}, "--batch-size 4 is not divisible by .* choose a multiple of 3"),
    ],
)
def test_wrong_settings_are_refused(tiny_tokens, tiny_vqvae, tmp_path, changes, named):
    with pytest.raises(InputError, match=named):
        train_var.main(settings(tiny_tokens, tiny_vqvae, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_one_line_and_exit_code_2(tmp_path):
    command = [
        sys.executable,
        "train_var.py",
        "--tokens-dir",
        str(tmp_path),
        "--vqvae",
        str(tmp_path / "no.pth"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_samples_of_a_training_without_class_dropout_have_no_guidance(tiny_vqvae, tiny_tokens):
    """The "no class" that guidance subtracts is not learned then."""
    chosen = train_var.Settings(tiny_tokens, tiny_vqvae, cfg=1.5, class_drop=0.0)
    assert chosen.drawing.cfg == 0.0 and replace(chosen, class_drop=0.1).drawing.cfg == 1.5
