"""The transformer's training script: files, resume, several processes, learning, refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train_vqvae import ROOT, assert_same, log_without_timings

import train_var
from models.helpers import scale_spans
from usvar import cli, tokens, training
from usvar.checkpoints import load_var, load_vqvae, read_checkpoint
from usvar.distributed import World
from usvar.errors import InputError

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


@pytest.fixture(scope="module")
def straight(tiny_tokens, tiny_vqvae, tmp_path_factory) -> Path:
    """A run of six steps without a stop."""
    out = tmp_path_factory.mktemp("var") / "straight"
    train_var.main(settings(tiny_tokens, tiny_vqvae, out))
    return out


def test_a_run_writes_what_the_next_stages_read(straight, tiny_vqvae):
    for name in ("loss_curves", "loss_per_scale", "samples"):
        assert (straight / f"{name}.png").stat().st_size > 5000
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
def test_stopped_and_resumed_is_the_same_as_not_stopped(
    straight, tiny_tokens, tiny_vqvae, tmp_path, monkeypatch, stop_at
):
    """Bit for bit, with dropout and class dropout on, also when the stop comes between two log lines."""
    own = training.ema_update

    def interrupt(averaged, model, step, decay):
        own(averaged, model, step, decay)
        if step == stop_at - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training, "ema_update", interrupt)
    with pytest.raises(cli.Stopped, match=f"step {stop_at} is in"):
        train_var.main(settings(tiny_tokens, tiny_vqvae, tmp_path))
    monkeypatch.undo()
    train_var.main(settings(tiny_tokens, tiny_vqvae, tmp_path))
    for name in ("ar-ckpt-last.pth", "ar-ckpt-best.pth"):
        first, second = (read_checkpoint(out / name) for out in (straight, tmp_path))
        for content in (first, second):
            del content["made_by"]  # names the output folder
        assert_same(first, second)
    assert log_without_timings(tmp_path) == log_without_timings(straight)


def test_a_finished_run_says_so(straight, tiny_tokens, tiny_vqvae, capsys):
    train_var.main(settings(tiny_tokens, tiny_vqvae, straight))
    assert "nothing to do" in capsys.readouterr().out


def test_two_processes_give_the_curve_of_one(tiny_tokens, tiny_vqvae, tmp_path):
    """Half the batch each. Class dropout is drawn for the whole batch; other dropout differs by process."""
    flags = {}
    one, two = (settings(tiny_tokens, tiny_vqvae, tmp_path / name, drop_rate=0.0) for name in ("one", "two"))
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
    row = next(row for row in training.read_log(straight / "log.jsonl") if "val_mean" in row)
    assert scores["val_mean"] == pytest.approx(row["val_mean"], rel=1e-6)


def test_a_small_set_is_learned_by_heart_and_sampled_back(tiny_tokens, tiny_vqvae, tmp_path):
    """Three images, one a class: the loss nears zero and greedy samples are those images."""
    for split in ("train", "val"):
        maps = tokens.read_token_maps(tiny_tokens / "train")
        rows = [int(tokens.rows_of_class(maps, label)[0]) for label in range(3)]
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
    learn = {"steps": 120, "log_every": 120, "eval_every": 120, "learning_rate": 5e-3, "samples_per_class": 0}
    calm = {"drop_rate": 0.0, "class_drop": 0.0, "drop_path_rate": 0.0, "weight_decay": 0.0, "ema_decay": 0.9}
    train_var.main(settings(tmp_path / "tokens", tiny_vqvae, tmp_path / "var", **learn, **calm))
    row = log_without_timings(tmp_path / "var")[-1]
    assert row["val_mean"] < 0.1 and row["val_accuracy"] > 0.97
    loaded = load_vqvae(tiny_vqvae)
    var = load_var(tmp_path / "var" / "ar-ckpt-best.pth", loaded).model
    idx_BL, _ = var.generate_tokens(torch.arange(3), seeds=[0, 1, 2], cfg=0.0, greedy=True)
    wanted = tokens.as_tensor(tokens.read_token_maps(tmp_path / "tokens" / "train").idx_NL, [0, 1, 2])
    assert (idx_BL == wanted).float().mean() > 0.95


def test_means_of_scales_and_of_tokens():
    nats_BL = torch.rand(3, 14)
    spans = scale_spans((1, 2, 3))
    nats_S = train_var.scale_means(nats_BL, spans)
    torch.testing.assert_close(nats_S[1], nats_BL[:, 1:5].mean())
    torch.testing.assert_close(train_var.mean_over_tokens(nats_S, spans), nats_BL.mean())
    torch.testing.assert_close(train_var.mean_over_tokens(nats_S, spans, 1.0), nats_S.mean())


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


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"width": 33}, "--width 33"),
        ({"depth": 0}, "--depth 0"),
        ({"class_drop": 1.5}, "--class-drop 1.5"),
        ({"top_p": -0.1}, "--top-p -0.1"),
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
