"""The VQ-VAE's training script: files, resume, several processes, the codebook, refusals."""

import contextlib
import copy
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo

import train_var
import train_vqvae
from models import VQVAE
from models.discriminator import PatchDiscriminator
from usvar import cli, images, losses, runs, signals, training
from usvar.augment import augment
from usvar.checkpoints import load_vqvae, read_checkpoint, save_checkpoint
from usvar.distributed import World
from usvar.errors import InputError, RunError

ALONE = World(0, 1, torch.device("cpu"))
ROOT = Path(__file__).resolve().parent.parent
TIMINGS = ("seconds_per_step", "waiting_share")


def settings(data: Path, out: Path, **changes) -> train_vqvae.Settings:
    chosen = {
        "data_root": data,
        "out_dir": out,
        "vocab_size": 32,
        "z_channels": 4,
        "ch": 32,
        "patch_nums": (1, 2, 4),
        "adversarial_weight": 0.0,
        "ssim_weight": 0.0,
        "codebook_start_images": 4,
        "revive_every": 2,
        "batch_size": 2,
        "steps": 4,
        "log_every": 2,
        "eval_every": 4,
        "save_every": 4,
        "device": "cpu",
        "precision": "float32",
    }
    return train_vqvae.Settings(**chosen | changes)


def log_without_timings(out: Path) -> list[dict]:
    rows = runs.read_log(out / "log.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]


def assert_same(first, second) -> None:
    """Nested checkpoints, bit for bit."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


@contextlib.contextmanager
def stopped_after(done: int, number: int) -> Iterator[None]:
    """In the block, this process gets a signal after so many steps, before they are saved."""
    own = training.ema_update

    def interrupt(averaged, model, step, decay, is_taken):
        own(averaged, model, step, decay, is_taken)
        if step == done - 1:
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "ema_update", interrupt)
        yield


def optimiser_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Fused AdamW, which PyTorch does not have on "meta": there one whose step changes nothing."""
    if next(model.parameters()).is_meta:
        optimiser = torch.optim.SGD(model.parameters())
        optimiser.step = lambda: None
        return optimiser
    return torch.optim.AdamW(model.parameters(), fused=True)


class Seen(Exception):
    """Ends a run at its first batch."""


def first_batch(monkeypatch, s: train_vqvae.Settings) -> torch.Tensor:
    """Images (B, 3, H, W) that the first step of a run is given."""
    seen = []

    def backward(s, network, model, discriminator, perceptual, image_B3HW, *_):
        seen.append(image_B3HW)
        raise Seen

    monkeypatch.setattr(train_vqvae, "backward", backward)
    with pytest.raises(Seen):
        train_vqvae.main(s)
    return seen[0]


def test_training_images_are_augmented_unless_it_is_switched_off(tiny_data, tmp_path, monkeypatch):
    files = images.find_images(tiny_data, "train", ["Heart", "Kidney", "Liver"])
    whole_N3HW = images.to_model_range(images.read_images(files, range(len(files)), 64))
    for is_on in (False, True):
        s = settings(tiny_data, tmp_path / str(is_on), augment=is_on, batch_size=8)
        batch_B3HW = first_batch(monkeypatch, s)
        on_disk = [any(torch.equal(image, other) for other in whole_N3HW) for image in batch_B3HW]
        assert (not any(on_disk)) if is_on else all(on_disk)


@pytest.mark.parametrize(
    ("class_balance", "data_set_balance", "of_class", "of_data_set"),
    [
        (0.0, 0.0, 4 / 16, 1 / 16),
        (1.0, 0.0, 1 / 3, 1 / 12),
        (1.0, 1.0, 1 / 3, 1 / 6),
        (0.0, 1.0, 4 / 16, 1 / 8),
    ],
)
def test_batches_are_balanced_over_classes_and_data_sets(
    class_balance, data_set_balance, of_class, of_data_set, tmp_path, monkeypatch
):
    """Four pictures of a heart, one of them from another data set, told by their brightness."""
    for name, pixel in [("Heart/rare__0", 250)] + [(f"Heart/made__{i}", 200) for i in range(3)]:
        images.save_png(tmp_path / "data" / "train" / f"{name}.png", np.full((16, 16), pixel, np.uint8))
    for name in ("Kidney", "Liver"):
        for i in range(6):
            path = tmp_path / "data" / "train" / name / f"made__{i}.png"
            images.save_png(path, np.full((16, 16), 100, np.uint8))
    shutil.copytree(tmp_path / "data" / "train", tmp_path / "data" / "val")
    chosen = {"class_balance": class_balance, "data_set_balance": data_set_balance, "augment": False}
    chosen |= {"batch_size": 3000, "patch_nums": (1,), "codebook_start_images": 0}
    batch_B3HW = first_batch(monkeypatch, settings(tmp_path / "data", tmp_path / "out", **chosen))
    pixel_B = (batch_B3HW[:, 0, 0, 0] + 1) * 127.5
    assert (pixel_B > 150).float().mean().item() == pytest.approx(of_class, abs=0.03)
    assert (pixel_B > 225).float().mean().item() == pytest.approx(of_data_set, abs=0.03)


def test_the_discriminator_has_momenta_of_its_own(tiny_data, tmp_path):
    s = settings(tiny_data, tmp_path, adversarial_weight=0.25, discriminator_betas=(0.1, 0.2))
    arguments = train_vqvae.model_config(s, 64, ["Heart"])["arguments"]
    _, _, discriminator, optimiser = train_vqvae.build(s, arguments, ALONE.device, torch.float32)
    betas = {p: group["betas"] for group in optimiser.param_groups for p in group["params"]}
    its = set(discriminator.parameters())
    assert {betas[p] for p in its} == {(0.1, 0.2)} and {betas[p] for p in betas.keys() - its} == {s.betas}


@pytest.fixture(scope="module")
def straight(tiny_data, tmp_path_factory) -> Path:
    """A run of four steps without a stop."""
    out = tmp_path_factory.mktemp("vqvae") / "straight"
    train_vqvae.main(settings(tiny_data, out))
    return out


def test_muon_trains_all_kernels_and_nothing_else(straight):
    model = load_vqvae(straight / "best.pth").model
    last = read_checkpoint(straight / "last.pth")
    by_muon, *by_adamw = last["optimiser"]["param_groups"]
    kernels = [p for p in model.parameters() if p.ndim == 4]
    assert by_muon["muon_rate"] == train_vqvae.Settings.muon_rate and len(by_muon["params"]) == len(kernels)
    # Some phi serve no scale of so few and have no momentum yet.
    state = last["optimiser"]["state"]
    shapes = [state[i]["momentum_buffer"].shape for i in by_muon["params"] if i in state]
    assert len(shapes) > 80 and set(shapes) <= {p.shape for p in kernels}
    assert all("exp_avg" in state[i] for group in by_adamw for i in group["params"] if i in state)


def test_a_run_writes_what_the_next_stages_read(straight, tiny_data):
    figures = ("loss_curves", "quality_curves", "reconstructions")
    for name in (*figures, "codebook_usage", "codebook_perplexity", "codebook_vectors"):
        assert (straight / f"{name}.png").stat().st_size > 5000
    newest = (straight / "reconstructions.png").read_bytes()
    assert (straight / "progress" / "reconstructions_000004.png").read_bytes() == newest
    best = load_vqvae(straight / "best.pth")
    assert best.config["image_size"] == 64
    assert best.classes == images.find_classes(tiny_data)
    assert best.made_by["script"] == "train_vqvae.py" and best.made_by["settings"]["ch"] == 32
    codes_VC = np.load(straight / "codebook_weight.npy")
    assert np.array_equal(codes_VC, best.model.quantize.embedding.weight.numpy())
    rows = log_without_timings(straight)
    assert [row["step"] for row in rows] == [2, 4, 4]
    assert {"train_sse", "train_vq", "train_total"} <= rows[0].keys()
    assert abs(rows[0]["train_total"] - rows[0]["train_sse"] - rows[0]["train_vq"]) < 1e-2
    assert len(rows[2]["val_usage"]) == len(rows[2]["val_perplexity"]) == 3
    assert all(0 < share <= 1 for share in rows[2]["train_usage"]) and len(rows[2]["train_usage"]) == 3
    assert all(1 <= codes <= 32 for codes in rows[2]["train_perplexity"])
    assert json.loads((straight / "settings.json").read_text())["settings"]["steps"] == 4


@pytest.mark.parametrize("stop_at", [2, 3])
def test_stopped_and_resumed_is_the_same_as_not_stopped(straight, tiny_data, tmp_path, stop_at):
    """Bit for bit, also when the stop comes between two log lines."""
    with stopped_after(stop_at, signal.SIGINT), pytest.raises(signals.Stopped, match=f"step {stop_at} is in"):
        train_vqvae.main(settings(tiny_data, tmp_path))
    assert read_checkpoint(tmp_path / "last.pth")["step"] == stop_at
    train_vqvae.main(settings(tiny_data, tmp_path))
    for name in ("last.pth", "best.pth"):
        first, second = (read_checkpoint(out / name) for out in (straight, tmp_path))
        for content in (first, second):
            del content["made_by"]  # names the output folder
        assert_same(first, second)
    assert log_without_timings(tmp_path) == log_without_timings(straight)


ALL_LOSSES = {"l1_weight": 0.1, "ssim_weight": 0.1, "adversarial_weight": 0.5, "adversarial_start": 0.25}
# A small rate: in AdamW's first steps rounding grows a thousandfold, and two processes differ by it.
ALL_LOSSES |= {"learning_rate": 1e-5}


@pytest.fixture(scope="module")
def with_all_losses(tiny_data, tmp_path_factory) -> Path:
    """Four steps, the last three with an adversarial loss."""
    out = tmp_path_factory.mktemp("vqvae") / "all_losses"
    train_vqvae.main(settings(tiny_data, out, **ALL_LOSSES))
    return out


def test_every_loss_is_logged_and_acts(with_all_losses, straight):
    rows = log_without_timings(with_all_losses)
    for row in rows[:2]:
        total = sum(row[f"train_{name}"] for name in ("sse", "vq", "l1", "dissimilarity"))
        assert row["train_total"] == pytest.approx(total, rel=1e-5)
        assert row["train_adversarial"] != 0 and row["adaptive_weight"] > 0 and row["discriminator_norm"] > 0
    total = sum(rows[2][f"val_{name}"] for name in ("sse", "vq", "l1", "dissimilarity"))
    assert rows[2]["val_total"] == pytest.approx(total, rel=1e-5)
    first, last = (read_checkpoint(out / "last.pth") for out in (straight, with_all_losses))
    assert not torch.equal(
        first["model"]["decoder.conv_out.weight"], last["model"]["decoder.conv_out.weight"]
    )
    assert last["discriminator"]["mean_scores_2"].abs().sum() > 0 and "discriminator" not in first


@pytest.mark.parametrize("stop_at", [1, 3])
def test_the_discriminator_is_saved_and_goes_on_bit_for_bit(with_all_losses, tiny_data, tmp_path, stop_at):
    """At 1 the next step is the discriminator's first."""
    with stopped_after(stop_at, signal.SIGINT), pytest.raises(signals.Stopped):
        train_vqvae.main(settings(tiny_data, tmp_path, **ALL_LOSSES))
    train_vqvae.main(settings(tiny_data, tmp_path, **ALL_LOSSES))
    first, second = (read_checkpoint(out / "last.pth") for out in (with_all_losses, tmp_path))
    for content in (first, second):
        del content["made_by"]
    assert_same(first, second)
    assert log_without_timings(tmp_path) == log_without_timings(with_all_losses)


def test_best_starts_anew_with_the_adversarial_loss(tiny_data, tmp_path, monkeypatch):
    """Images from before it are smoother and nearer in squared error: they would stay best for good."""
    own = train_vqvae.validate
    totals = iter([1.0, 50.0, 60.0])

    def validate(*arguments):
        scores, hits_SV = own(*arguments)
        return scores | {"val_total": next(totals)}, hits_SV

    monkeypatch.setattr(train_vqvae, "validate", validate)
    train_vqvae.main(settings(tiny_data, tmp_path, steps=3, eval_every=1, **ALL_LOSSES))
    assert read_checkpoint(tmp_path / "best.pth")["step"] == 2


def test_a_loss_without_weight_costs_nothing(tiny_data, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("was called without a weight")

    for name in (
        "l1",
        "dissimilarity",
        "generator_loss",
        "discriminator_loss",
        "adaptive_weight",
        "Perceptual",
        "vgg_path",
    ):
        monkeypatch.setattr(losses, name, refuse)
    monkeypatch.setattr(train_vqvae, "PatchDiscriminator", refuse)
    train_vqvae.main(settings(tiny_data, tmp_path, steps=1))


def test_a_perceptual_loss_without_weights_says_that_it_is_off(tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    train_vqvae.main(settings(tiny_data, tmp_path / "out", steps=1, perceptual_weight=1.0))
    assert "perceptual loss is OFF" in capsys.readouterr().out
    rows = runs.read_log(tmp_path / "out" / "log.jsonl")
    assert "OFF" in rows[0]["note"] and not any("train_perceptual" in row for row in rows)


def test_a_discriminator_without_a_number_holds_back_the_step(tiny_data, tmp_path, monkeypatch):
    own = losses.discriminator_loss

    def poisoned(*arguments):
        loss, scores_2 = own(*arguments)
        return loss * float("nan"), scores_2

    monkeypatch.setattr(losses, "discriminator_loss", poisoned)
    with pytest.raises(RunError, match="step 2 was skipped"):
        train_vqvae.main(settings(tiny_data, tmp_path, **ALL_LOSSES))
    kept = read_checkpoint(tmp_path / "last.pth")
    assert kept["step"] == 1 and all(tensor.isfinite().all() for tensor in kept["discriminator"].values())


def test_tensorboard_gets_the_numbers_of_the_log_when_asked(straight, tiny_data, tmp_path, monkeypatch):
    """A stand-in takes the numbers."""
    taken = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            taken.append((folder.name, purge_step))

        def add_scalar(self, name, value, step):
            taken.append((name, value, step))

        def close(self):
            taken.append("closed")

    stand_in = types.ModuleType("torch.utils.tensorboard")
    stand_in.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    train_vqvae.main(settings(tiny_data, tmp_path, tensorboard=True))
    rows = log_without_timings(straight)
    assert taken[0] == ("tensorboard", 1) and taken[-1] == "closed"
    assert ("train_sse", rows[0]["train_sse"], 2) in taken and ("val_ssim", rows[2]["val_ssim"], 4) in taken
    assert ("val_usage/3", rows[2]["val_usage"][2], 4) in taken


def test_fine_tuning_starts_at_the_weights_of_a_checkpoint(straight, tiny_data, tmp_path):
    """The first loss is that of the kept weights, and the run goes on by itself once it has started."""
    chosen = settings(
        tiny_data, tmp_path, init_from=straight / "best.pth", learning_rate=1e-9, revive_every=0, save_every=2
    )
    train_vqvae.main(chosen)
    before, after = (read_checkpoint(out / "best.pth") for out in (straight, tmp_path))
    for name, tensor in before["model"].items():
        if "hit" not in name:
            torch.testing.assert_close(after["model"][name], tensor, atol=1e-7, rtol=0)
    assert after["val"]["val_sse"] == pytest.approx(before["val"]["val_sse"], rel=1e-4)
    assert len(after["made_by"]["inputs"]["init_from"]["sha256"]) == 64
    rows = runs.read_log(tmp_path / "log.jsonl")
    assert "32 of 32 codes kept, 0 start anew" in rows[0]["note"] and rows[0]["note"].endswith("anew: none")
    # Its weights are in the checkpoint: it need not be named again, and is still known.
    (tmp_path / "last.pth").unlink()  # else there is nothing to do; now step 3 follows last-previous.pth
    train_vqvae.main(dataclasses.replace(chosen, init_from=None))
    record = json.loads((tmp_path / "settings.json").read_text())
    assert record["inputs"] == after["made_by"]["inputs"]
    assert record["settings"]["init_from"] == str(straight / "best.pth")


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"vocab_size": 48}, 32),
        ({"vocab_size": 20}, 20),
        ({"patch_nums": (1, 2, 3, 4)}, 32),
        ({"z_channels": 6}, 0),
    ],
)
def test_fine_tuning_with_other_sizes_keeps_what_fits_and_names_the_rest(
    straight, tiny_data, tmp_path, changes, kept
):
    s = settings(
        tiny_data,
        tmp_path,
        init_from=straight / "best.pth",
        steps=1,
        learning_rate=1e-9,
        ema_decay=0.0,
        **changes,
    )
    train_vqvae.main(s)
    before, after = (
        read_checkpoint(out / name)["model"] for out, name in ((straight, "best.pth"), (tmp_path, "last.pth"))
    )
    note = runs.read_log(tmp_path / "log.jsonl")[0]["note"]
    assert f"{kept} of 32 codes kept, {s.vocab_size - kept} start anew" in note
    named = note.split("anew: ")[-1].split(", ")
    for name, tensor in before.items():
        if name in ("quantize.embedding.weight", "quantize.ema_vocab_hit_SV"):
            continue
        if name in named:
            assert tensor.shape != after[name].shape
        else:
            torch.testing.assert_close(after[name], tensor, atol=1e-7, rtol=0)
    assert ("encoder.conv_out.weight" in named) == ("z_channels" in changes)
    codes_VC = after["quantize.embedding.weight"]
    if kept:
        most_used = before["quantize.ema_vocab_hit_SV"].sum(0).argsort(descending=True, stable=True)[:kept]
        torch.testing.assert_close(
            codes_VC[:kept], before["quantize.embedding.weight"][most_used.sort().values], atol=1e-6, rtol=0
        )
    # The rest lies where features are, not at N(0, 1).
    assert (
        codes_VC[kept:].numel() == 0
        or codes_VC[kept:].abs().max() < 2 * before["quantize.embedding.weight"].abs().max()
    )


def test_fine_tuning_with_another_look_up_names_it(straight, tiny_data, tmp_path):
    start = straight / "best.pth"
    train_vqvae.main(settings(tiny_data, tmp_path, init_from=start, steps=1, cosine_lookup=True))
    note = runs.read_log(tmp_path / "log.jsonl")[0]["note"]
    assert "looked up by Euclidean distance, now by angle" in note


def test_fine_tuning_from_another_width_is_refused(straight, tiny_data, tmp_path):
    with pytest.raises(InputError, match="has width 32, --ch 64 was given: give --ch 32"):
        train_vqvae.main(settings(tiny_data, tmp_path / "out", init_from=straight / "best.pth", ch=64))
    assert not (tmp_path / "out").exists()


def test_a_finished_run_says_so_and_changes_nothing(straight, tiny_data, capsys):
    before = (straight / "last.pth").read_bytes()
    train_vqvae.main(settings(tiny_data, straight))
    assert "nothing to do" in capsys.readouterr().out
    assert (straight / "last.pth").read_bytes() == before


def test_other_settings_do_not_go_on_from_a_checkpoint(straight, tiny_data):
    with pytest.raises(InputError, match="learning_rate"):
        train_vqvae.main(settings(tiny_data, straight, learning_rate=1.0))


@pytest.fixture(scope="module")
def batch_of_4(tiny_data, tmp_path_factory) -> Path:
    """Four steps of four images, in one piece and one process."""
    out = tmp_path_factory.mktemp("vqvae") / "batch_of_4"
    train_vqvae.main(settings(tiny_data, out, **BATCH_OF_4))
    return out


# After the second step unused codes are replaced, and two more steps see them.
BATCH_OF_4 = {"batch_size": 4, "steps": 4, "log_every": 1, "eval_every": 4, "learning_rate": 1e-5}
SAME = (
    "train_sse",
    "train_vq",
    "val_sse",
    "val_psnr_db",
    "val_ssim",
    "adaptive_weight",
    "discriminator_norm",
)


def assert_same_curve(first: Path, second: Path) -> None:
    for one, two in zip(log_without_timings(first), log_without_timings(second), strict=True):
        assert one.keys() == two.keys()
        # A fresh discriminator's gradient is small: the ratio to it, in the norm too, makes rounding larger.
        loose = {"adaptive_weight": 2e-2, "gradient_norm": 2e-2 if "adaptive_weight" in one else 2e-3}
        for name in (*SAME, "gradient_norm", "revived_codes_per_step"):
            if name in one:
                assert two[name] == pytest.approx(one[name], rel=loose.get(name, 2e-3)), name


def test_a_batch_in_pieces_run_twice_gives_the_numbers_of_a_whole_one(batch_of_4, tiny_data, tmp_path):
    """Less memory by --accumulate and --recompute, the same loss, gradient, counts of codes and weights."""
    train_vqvae.main(settings(tiny_data, tmp_path, accumulate=4, recompute=True, **BATCH_OF_4))
    assert_same_curve(batch_of_4, tmp_path)
    whole, pieces = (read_checkpoint(out / "last.pth")["model"] for out in (batch_of_4, tmp_path))
    hits = "quantize.ema_vocab_hit_SV"
    assert torch.equal(pieces.pop(hits), whole.pop(hits))
    for name, tensor in whole.items():
        torch.testing.assert_close(pieces[name], tensor, atol=5e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    "changes", [BATCH_OF_4 | {"accumulate": 2}, pytest.param(ALL_LOSSES, marks=pytest.mark.slow)]
)
def test_two_processes_give_the_curve_of_one(tiny_data, tmp_path, request, changes):
    """Half the batch each, also in pieces; the codebook's start, revival and validation see the whole."""
    one_process = request.getfixturevalue("batch_of_4" if "accumulate" in changes else "with_all_losses")
    s = settings(tiny_data, tmp_path, **changes)
    flags = []
    for name, value in vars(s).items():
        values = map(str, value) if isinstance(value, tuple) else [str(value)]
        flags += [f"--{name.replace('_', '-')}", *values]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "train_vqvae.py", *flags], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert_same_curve(one_process, tmp_path)


def test_a_class_that_val_lacks_is_named(tiny_data, tmp_path, capsys):
    shutil.copytree(tiny_data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "val" / "Kidney")
    train_vqvae.main(settings(tmp_path / "data", tmp_path / "out", steps=1, eval_every=9, save_every=9))
    assert "note: val has no image of Kidney" in capsys.readouterr().out


def test_validation_sees_the_images_as_they_are(tiny_data, straight):
    """The predecessor augmented validation images and fed [0, 1] to a decoder that clamps to [-1, 1]."""
    s = settings(tiny_data, straight)
    files = images.find_images(tiny_data, "val", images.find_classes(tiny_data))
    pixels_NHW = images.read_images(files, range(len(files)), 64)
    model = load_vqvae(straight / "best.pth").model
    scores, _ = train_vqvae.validate(s, model, pixels_NHW, ALONE, torch.float32, None)
    image_B3HW = torch.from_numpy(pixels_NHW)[:, None].expand(-1, 3, -1, -1) / 127.5 - 1
    with torch.no_grad():
        rebuilt_B3HW, _, vq = model(image_B3HW)
    sse = (rebuilt_B3HW.clamp(-1, 1) - image_B3HW).square().sum((1, 2, 3)).mean().item()
    assert scores["val_sse"] == pytest.approx(sse, rel=1e-4)
    assert scores["val_vq"] == pytest.approx(s.vq_weight * 3 * 64 * 64 * vq.item(), rel=1e-3)
    row = next(row for row in runs.read_log(straight / "log.jsonl") if "val_sse" in row)
    assert scores["val_sse"] == pytest.approx(row["val_sse"], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"patch_nums": (1, 2, 5)}, "--patch-nums 1 2 3 4"),
        ({"patch_nums": (2, 1, 4)}, "rising"),
        ({"ch": 20}, "--ch 20"),
        ({"steps": 0}, "--steps 0"),
        ({"accumulate": 3}, "--batch-size 2 is not divisible by 1 processes times --accumulate 3"),
        ({"data_set_balance": 2.0}, "--data-set-balance 2.0 was given, wanted 0 to 1"),
        ({"class_balance": 2.0}, "--class-balance 2.0"),
        ({"adversarial_start": -1.0}, "--adversarial-start -1.0"),
        ({"l1_weight": -1.0}, "--l1-weight -1.0"),
        ({"init_from": Path("none.pth")}, "--init-from none.pth is no file"),
        ({"vgg": Path("none.pth"), "perceptual_weight": 1.0}, "--vgg none.pth is no file"),
        ({"device": "cuda:99"}, "--device cuda:99 was asked for, .*torch sees"),
        ({"device": "meta"}, "--device meta was given, wanted auto, cpu or cuda"),
        ({"workers": 0}, "--workers 0 was given, wanted 1 or more"),
        ({"ema_decay": 1.5}, "--ema-decay 1.5 was given, wanted 0 to below 1"),
        ({"betas": (0.9, 1.5)}, "--betas 1.5 was given, wanted 0 to below 1"),
        ({"learning_rate": -1.0}, "--learning-rate -1.0 was given, wanted above 0"),
        ({"seed": -1}, "--seed -1 was given, wanted 0 or more"),
        ({"ch": 0}, "--ch 0 was given, wanted a multiple of 32"),
        ({"patch_nums": ()}, "do not fit images"),
        ({"patch_nums": (0, 1, 4)}, "do not fit images"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(tiny_data, tmp_path, changes, named):
    with pytest.raises(InputError, match=named):
        train_vqvae.main(settings(tiny_data, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_images_too_small_for_the_discriminator_are_refused_before_the_first_step(tmp_path):
    """It ended half-way, when the adversarial loss began."""
    for split in ("train", "val"):
        images.save_png(tmp_path / split / "Heart" / "a.png", np.full((16, 16), 90, np.uint8))
    with pytest.raises(
        InputError, match="needs images of 32 pixels, these have 16: give --adversarial-weight 0"
    ):
        train_vqvae.main(settings(tmp_path, tmp_path / "out", patch_nums=(1,), adversarial_weight=0.25))
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_other_classes_is_refused_by_what_differs(straight, tiny_data, tmp_path):
    content = read_checkpoint(straight / "last.pth")
    content["config"]["classes"] = ["Heart", "Spleen"]
    save_checkpoint(tmp_path / "last.pth", content)
    with pytest.raises(InputError, match=r"classes \['Heart', 'Spleen'\], .* has \['Heart', 'Kidney'"):
        train_vqvae.main(settings(tiny_data, tmp_path))


@pytest.mark.parametrize("script", [train_vqvae, train_var])
def test_an_unknown_precision_is_one_line_and_exit_code_2(script, capsys):
    paths = {train_vqvae: ["--data-root", "x"], train_var: ["--tokens-dir", "x", "--vqvae", "x"]}
    with pytest.raises(SystemExit) as stop:
        cli.parse(script.Settings, None, [*paths[script], "--precision", "half"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert "invalid choice 'half' for argument '--precision'" in said and "'bfloat16'" in said


def test_a_wrong_folder_is_one_line_and_exit_code_2(tmp_path):
    command = [
        sys.executable,
        "train_vqvae.py",
        "--data-root",
        str(tmp_path),
        "--out-dir",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(tiny_data, tmp_path):
    with pytest.raises(RunError, match="--learning-rate"):
        train_vqvae.main(settings(tiny_data, tmp_path, learning_rate=1e18, clip=1e30, save_every=1))
    kept = read_checkpoint(tmp_path / "last.pth")
    assert kept["step"] < 4
    assert all(tensor.isfinite().all() for tensor in kept["ema"].values())


def test_compiled_levels_train_the_same(with_all_losses, tiny_data, tmp_path, monkeypatch):
    """With the backend that needs no compiler, and an adversarial loss."""
    own = VQVAE.compile_levels
    monkeypatch.setattr(VQVAE, "compile_levels", lambda model: own(model, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    train_vqvae.main(settings(tiny_data, tmp_path, **ALL_LOSSES, compile=True))
    counters = torch._dynamo.utils.counters
    # Twelve in training, more without gradients: codebook start and revival.
    assert counters["stats"]["unique_graphs"] >= 12 and not counters["graph_break"]
    first, second = (read_checkpoint(out / "last.pth")["model"] for out in (with_all_losses, tmp_path))
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-4, atol=1e-5)


def test_gradients_have_the_layout_of_the_weights(tmp_path):
    """On a GPU both networks are channels last, and fused AdamW there refuses gradients that are not."""
    world = World(0, 1, torch.device("cpu"))
    s = settings(tmp_path, tmp_path, adversarial_weight=0.1)
    model = VQVAE(vocab_size=32, z_channels=4, ch=32, v_patch_nums=s.patch_nums, test_mode=False)
    discriminator = PatchDiscriminator(32)
    for network in (model, discriminator):
        network.to(memory_format=torch.channels_last)
    image_B3HW = torch.rand(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    train_vqvae.backward(s, model, model, discriminator, None, image_B3HW, world, torch.float32)
    for network in (model, discriminator):
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                assert parameter.grad.stride() == parameter.stride(), name


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_a_step_does_not_wait_for_the_device(device, tmp_path):
    """On "meta" there are no values: whoever asks for one, and so would make a GPU wait, raises."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU: a CPU has nothing to wait for")
    world = World(0, 1, torch.device(device))
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    s = settings(tmp_path, tmp_path, accumulate=2, ssim_weight=0.1, l1_weight=0.1, adversarial_weight=0.1)
    model = VQVAE(vocab_size=32, z_channels=4, ch=32, v_patch_nums=s.patch_nums, test_mode=False).to(device)
    averaged = copy.deepcopy(model).requires_grad_(False)
    discriminator, meter = PatchDiscriminator(32).to(device), training.Meter()
    trained = torch.nn.ModuleList([model, discriminator])
    guard = training.StepGuard(model.parameters(), optimiser_of(trained), 1.0, world)
    pixels_BHW, parameters_B4 = torch.zeros(2, 64, 64, dtype=torch.uint8), torch.zeros(2, 4)

    def step() -> None:
        pixels, parameters = training.pinned((pixels_BHW, parameters_B4), world.device)
        image_B3HW = images.to_model_range(pixels, world.device)
        image_B3HW = augment(image_B3HW, parameters.to(device, non_blocking=True))
        numbers = train_vqvae.backward(s, model, model, discriminator, None, image_B3HW, world, dtype)
        norm, is_taken = guard.step(0, 1e-3, numbers["train_total"] + numbers["train_adversarial"])
        losses.update_lecam_averages(discriminator, numbers["scores_real_fake"], is_taken)
        training.ema_update(averaged, model, 0, 0.9, is_taken)
        meter.add(is_taken, **numbers, norm=norm)

    step()  # what is made once is made here
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("until", "steps"), [(1.0, [2, 4, 6, 8]), (0.6, [2, 4]), (0.0, [])])
def test_codes_are_revived_every_so_many_steps_until_a_share_of_the_run(
    tiny_data, tmp_path, monkeypatch, until, steps
):
    """Late ones would have no time to learn."""
    seeds = []

    def revive_codes(*arguments):
        seeds.append(arguments[6])
        return torch.zeros(())

    monkeypatch.setattr(train_vqvae, "revive_codes", revive_codes)
    train_vqvae.main(settings(tiny_data, tmp_path, steps=8, eval_every=8, save_every=8, revive_until=until))
    assert seeds == [training.step_seed(0, training.STREAM_REVIVE, step - 1) for step in steps]
