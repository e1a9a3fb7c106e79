"""Checkpoints that are cut, flipped, foreign, hostile, or that the disk has no room for."""

import io
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import LAST, TRAINERS, error_line, run, settings_of, temporaries
from test_train_vqvae import ROOT, assert_same, log_without_timings

import train_var
import train_vqvae
from usvar import checkpoints, files
from usvar.checkpoints import (
    is_whole,
    load_var,
    load_vqvae,
    previous_path,
    read_checkpoint,
    save_last,
)
from usvar.errors import InputError, RunError

MAINS = {"train_var": train_var.main, "train_vqvae": train_vqvae.main}
STEPS = {"train_var": 6, "train_vqvae": 4}


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


class Runs(dict):
    """Folders of finished runs, saved every second step, each made when it is first asked for."""

    def __init__(self, tiny: dict[str, Path], root: Path) -> None:
        super().__init__()
        self.tiny, self.root = tiny, root

    def __missing__(self, script: str) -> Path:
        self[script] = self.root / script
        MAINS[script](settings_of(script, self.tiny, self[script], steps=STEPS[script], save_every=2))
        return self[script]


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory) -> dict[str, Path]:
    return Runs(tiny, tmp_path_factory.mktemp("straight"))


def damage(path: Path, how: str) -> None:
    """Cut a file at a share of its length, or flip a bit in its middle."""
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 4
    path.write_bytes(content if how == "flip" else content[: int(len(content) * float(how))])


def test_every_flipped_bit_and_every_cut_is_seen(straight, tmp_path):
    """torch.load alone reads a flipped weight without a word."""
    path = tmp_path / "last.pth"
    shutil.copy(straight["train_var"] / LAST["train_var"], path)
    assert is_whole(path)
    size, draw = path.stat().st_size, random.Random(0)
    # Random places, and every bit of the last bytes: the archive's end, the mark and the checksum.
    places = [(draw.randrange(size), draw.randrange(8)) for _ in range(1000)]
    places += [(size - 1 - i, bit) for i in range(100) for bit in range(8)]
    with open(path, "r+b") as file:
        for place, bit in places:
            file.seek(place)
            byte = file.read(1)[0]
            for value in (byte ^ 1 << bit, byte):
                file.seek(place)
                file.write(bytes([value]))
                file.flush()
                assert is_whole(path) == (value == byte), (place, bit)
    content = path.read_bytes()
    cuts = [size * tenth // 10 for tenth in range(10)] + [size - i for i in range(1, 100)]
    for cut in cuts:
        path.write_bytes(content[:cut])
        assert not is_whole(path), cut
    path.write_bytes(content[: size // 2] + bytes(size - size // 2))  # a page that never reached the disk
    assert not is_whole(path)


def test_torch_load_and_a_shell_read_the_format(straight):
    path = straight["train_var"] / LAST["train_var"]
    assert torch.load(path, weights_only=True)["step"] == STEPS["train_var"]
    head = subprocess.run(f"head -c -64 '{path}' | sha256sum", shell=True, capture_output=True, check=True)
    assert head.stdout[:64] == path.read_bytes()[-64:]
    assert zipfile.ZipFile(path).comment == b"sha256 " + head.stdout[:64]


@pytest.mark.parametrize("how", ["flip", "0", "0.3", "0.999"])
@pytest.mark.parametrize("script", TRAINERS)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    straight, tiny, tmp_path, script, how, capsys
):
    out, last = tmp_path / "out", LAST[script]
    shutil.copytree(straight[script], out)
    damage(out / last, how)
    chosen = settings_of(script, tiny, out, steps=STEPS[script], save_every=2)
    MAINS[script](chosen)
    printed = capsys.readouterr().out
    before = STEPS[script] - 2
    assert (
        f"{last} is damaged" in printed
        and f"goes on from {previous_path(out / last).name}, step {before}" in printed
    )
    notes = [row for row in log_without_timings(out) if "note" in row]
    assert len(notes) == 1 and notes[0]["step"] == before and "is damaged" in notes[0]["note"]
    first, second = (read_checkpoint(folder / last) for folder in (straight[script], out))
    for content in (first, second):
        del content["made_by"]
    assert_same(first, second)
    # The damaged file did not take the place of the good one before it.
    assert read_checkpoint(previous_path(out / last))["step"] == before


def test_with_no_checkpoint_left_there_is_one_clear_line(straight, tiny, tmp_path):
    out, last = tmp_path / "out", LAST["train_var"]
    shutil.copytree(straight["train_var"], out)
    damage(out / last, "flip")
    damage(previous_path(out / last), "0.5")
    code, printed = run(
        "train_var", settings_of("train_var", tiny, out, steps=6, save_every=2), tmp_path / "p"
    )
    assert code == 2 and printed.count("\n") == 1
    for words in ("no checkpoint is left", last, previous_path(out / last).name, "another --out-dir"):
        assert words in printed


def test_a_best_checkpoint_that_is_damaged_is_not_passed_over(straight, tiny, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(straight["train_var"], out)
    damage(out / "ar-ckpt-best.pth", "flip")
    chosen = settings_of("train_var", tiny, out, steps=6, save_every=2)
    with pytest.raises(
        InputError, match=r"ar-ckpt-best\.pth is missing or damaged.*delete ar-ckpt-last\.pth"
    ):
        train_var.main(chosen)
    (out / LAST["train_var"]).unlink()  # as the message says
    train_var.main(chosen)
    best, wanted = (read_checkpoint(folder / "ar-ckpt-best.pth") for folder in (out, straight["train_var"]))
    assert_same(best["model"], wanted["model"])


# Point 7: what a run needs to go on, taken away or from elsewhere.
def of_adamw(content: dict) -> dict:
    """Momenta of the first parameter in the checkpoint that AdamW trains."""
    return next(state for state in content["optimiser"]["state"].values() if "exp_avg" in state)


@pytest.mark.parametrize("script", TRAINERS)
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c.pop("ema"), r"averaged weights \(EMA\) \('ema'\)"),
        (lambda c: c.pop("optimiser"), "optimiser's state"),
        (lambda c: c.pop("meter"), "running means"),
        (lambda c: c.pop("step"), "no step"),
        (lambda c: c.update(step="4"), "no step"),
        (lambda c: c.pop("best"), "best score"),
        (lambda c: c.pop("skipped"), "skipped steps"),
        (lambda c: c.pop("made_by"), "seed and input files"),
        (lambda c: c["made_by"]["settings"].pop("seed"), "seed = None"),
        (lambda c: c["made_by"]["settings"].update(seed=1), "seed = 1"),
        (lambda c: c["made_by"]["settings"].update(batch_size=64), "batch_size = 64"),
        (lambda c: [c["made_by"]["inputs"][k].update(sha256="0") for k in c["made_by"]["inputs"]], "another"),
        (lambda c: c["ema"].popitem(), r"lacks ema\."),
        (lambda c: c["ema"].update(more=torch.zeros(1)), r"unknown tensor ema\.more"),
        (lambda c: c["model"].popitem(), "lacks"),
        (lambda c: c["optimiser"]["state"].clear(), "empty optimiser"),
        (lambda c: of_adamw(c).pop("exp_avg"), "without 'exp_avg'"),
        (lambda c: of_adamw(c).update(exp_avg_sq=torch.zeros(1, 7)), "without 'exp_avg_sq'"),
        (lambda c: c["optimiser"]["param_groups"].pop(), "optimiser's state of another model"),
    ],
)
def test_missing_or_foreign_state_is_refused_by_name(straight, tiny, tmp_path, script, change, named):
    """Random numbers and the order of the data are functions of seed, step and data: those are compared."""
    out = tmp_path / "out"
    out.mkdir()
    content = read_checkpoint(previous_path(straight[script] / LAST[script]))
    change(content)
    torch.save(content, out / LAST[script])
    before = (out / LAST[script]).read_bytes()
    with pytest.raises(InputError, match=named):
        MAINS[script](settings_of(script, tiny, out, steps=STEPS[script], save_every=2))
    assert (out / LAST[script]).read_bytes() == before


@pytest.mark.parametrize("script", TRAINERS)
@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("meter"),
        lambda c: c["made_by"]["settings"].update(seed=1),
        lambda c: c["ema"].popitem(),
        lambda c: c["optimiser"]["state"].clear(),
    ],
)
def test_what_is_wrong_in_the_one_before_is_said_of_that_file(straight, tiny, tmp_path, script, change):
    """With a damaged last checkpoint, the messages named that one, which was not read."""
    out = tmp_path / "out"
    out.mkdir()
    before = previous_path(out / LAST[script])
    content = read_checkpoint(previous_path(straight[script] / LAST[script]))
    change(content)
    torch.save(content, before)
    with pytest.raises(InputError, match=f"^{re.escape(str(before))} "):
        MAINS[script](settings_of(script, tiny, out, steps=STEPS[script], save_every=2))


def test_other_images_do_not_go_on_from_a_checkpoint(straight, tiny, tmp_path):
    """Which image is drawn at a step depends on the list of images: one more would change all batches."""
    shutil.copytree(tiny["data"], tmp_path / "data")
    shutil.copytree(straight["train_vqvae"], tmp_path / "out")
    image = next((tmp_path / "data" / "train").rglob("*.png"))
    shutil.copy(image, image.with_name("one_more.png"))
    chosen = settings_of("train_vqvae", {"data": tmp_path / "data"}, tmp_path / "out", steps=4, save_every=2)
    with pytest.raises(InputError, match="another train images file or folder"):
        train_vqvae.main(chosen)


# Point 4: the disk is full.
class SmallFiles:
    """Called before a run: no file may grow beyond a size, as under a quota."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_quota_while_saving_keeps_the_earlier_checkpoint(straight, tiny, tmp_path, share):
    out, last = tmp_path / "out", LAST["train_var"]
    out.mkdir()
    for name in ("ar-ckpt-best.pth", "log.jsonl"):
        shutil.copy(straight["train_var"] / name, out / name)
    shutil.copy(previous_path(straight["train_var"] / last), out / last)  # step 4
    before = (out / last).read_bytes()
    limit = SmallFiles(int(len(before) * share))
    chosen = settings_of("train_var", tiny, out, steps=6, save_every=1, log_every=1)
    code, printed = run("train_var", chosen, tmp_path / "printed", limit)
    assert code == 3, printed
    assert error_line(printed).startswith(
        f"error: no room to write {out / last} (File too large): what was saved before is whole"
    )
    assert "Traceback" not in printed
    assert (out / last).read_bytes() == before and not temporaries(out)
    code, printed = run("train_var", chosen, tmp_path / "printed")
    assert code == 0, printed
    assert read_checkpoint(out / last)["step"] == 6


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_keeps_what_was_there(small_disk):
    path = small_disk / "last.pth"
    checkpoints.save_checkpoint(path, {"weight": torch.ones(1 << 17)})  # 0.5 MiB
    before = path.read_bytes()
    for write in (
        lambda: checkpoints.save_checkpoint(path, {"weight": torch.ones(1 << 19)}),
        lambda: files.write_text(path, "x" * (3 << 20)),
        lambda: files.new_memmap(small_disk / "cache.npy", np.uint8, (3 << 20,)),  # SIGBUS without its guard
    ):
        with pytest.raises(RunError, match=r"no room to write .*No space left on device"):
            write()
        assert path.read_bytes() == before
    assert not temporaries(small_disk)


def test_numpy_s_own_words_for_a_full_disk_are_understood(small_disk):
    with pytest.raises(RunError, match="no room"), files.atomic_path(small_disk / "a.npy") as temporary:
        np.save(temporary, np.ones(1 << 20))
    assert not list(small_disk.iterdir())


# Point 6, at the file: what is not finite is not saved.
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["weight", "momentum"])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, value, where):
    model = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    path = tmp_path / "last.pth"
    for step in (1, 2):
        save_last(path, {"step": step, "optimiser": optimiser.state_dict()}, model)
    tensor = model.weight.data if where == "weight" else optimiser.state[model.weight]["exp_avg"]
    tensor[0, 0] = value
    with pytest.raises(RunError, match="not finite; the earlier checkpoint stays"):
        save_last(path, {"step": 3, "optimiser": optimiser.state_dict()}, model)
    assert read_checkpoint(path)["step"] == 2 and read_checkpoint(previous_path(path))["step"] == 1


# Point 10: files made by others.
class Evil:
    """Pickles into a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("script", TRAINERS)
def test_a_pickle_that_would_run_code_is_refused_where_a_run_goes_on(tiny, tmp_path, script):
    out = tmp_path / "out"
    out.mkdir()
    torch.save({"model": Evil(tmp_path / "made")}, out / LAST[script])
    with pytest.raises(InputError, match="Python objects"):
        MAINS[script](settings_of(script, tiny, out))
    assert not (tmp_path / "made").exists()


def rewritten(path: Path, target: Path, pickled=lambda data: data, compress=False) -> Path:
    """A checkpoint packed again, with its pickle changed or its members compressed."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as packed:
        for info in source.infolist():
            data = source.read(info)
            if info.filename.endswith("data.pkl"):
                data = pickled(data)
            kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
            packed.writestr(info.filename, data, compress_type=kind)
    return target


def test_tensors_that_claim_a_million_million_elements_are_refused(tiny, tmp_path):
    path = tmp_path / "claims.pth"
    torch.save({"weight": torch.zeros(1).expand(10**6, 10**6)}, path)  # a view of four bytes
    with pytest.raises(InputError, match=r"shape \(1000000, 1000000\) on 4 bytes"):
        read_checkpoint(path)
    plain = tmp_path / "plain.pth"
    torch.save({"weight": torch.zeros(1000)}, plain)
    thousand, huge = b"M\xe8\x03", b"\x8a\x06" + (10**12).to_bytes(6, "little")
    with pytest.raises(InputError, match="no readable checkpoint"):
        read_checkpoint(rewritten(plain, path, lambda data: data.replace(thousand, huge)))
    torch.save({"weight": torch.zeros(1 << 20)}, plain)
    with pytest.raises(InputError, match="claims"):
        read_checkpoint(rewritten(plain, path, compress=True))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vocab_size": 10**12}, "vocab_size = 1000000000000"),
        ({"ch": 32 * 10**9}, "ch = 32000000000"),
        ({"v_patch_nums": [1, 2, 10**9]}, "config without v_patch_nums"),
        ({"v_patch_nums": "1, 2"}, "config without v_patch_nums"),
        ({"v_patch_nums": [1, 2, 3, 4]}, "3 scales, 4 patch numbers"),
        ({"made_up": 1}, "describes no VQVAE"),
    ],
)
def test_sizes_that_are_not_the_tensors_are_refused_before_a_model_is_made(
    tiny_vqvae, tmp_path, change, named
):
    content = read_checkpoint(tiny_vqvae)
    content["config"]["arguments"] |= change
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match=named):
        load_vqvae(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"depth": 10**9}, "depth = 1000000000"),
        ({"embed_dim": 10**6}, "embed_dim = 1000000"),
        ({"num_classes": 10**12}, "num_classes"),
        ({"num_heads": 7}, "describes no VAR"),
        ({"patch_nums": None}, "config without patch_nums"),
    ],
)
def test_sizes_of_a_transformer_that_are_not_its_tensors_are_refused(
    tiny_var, tiny_vqvae, tmp_path, change, named
):
    content = read_checkpoint(tiny_var)
    content["config"]["arguments"] |= change
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match=named):
        load_var(tmp_path / "a.pth", load_vqvae(tiny_vqvae))


BAD_NAMES = (
    ["../../x", "B", "C"],
    ["a/b", "B", "C"],
    ["..", "B", "C"],
    ["A\n", "B", "C"],
    ["", "B", "C"],
    "ABC",
)
BAD_NAMES += (
    ["A", "A", "C"],
    ["A", "a", "C"],
    [1, 2, 3],
    {"A": 1},
    [],
    ["A" * 300, "B", "C"],
    ["A\0", "B", "C"],
)


@pytest.mark.parametrize("names", BAD_NAMES)
def test_class_names_that_are_no_folder_names_are_refused(tiny_var, tiny_vqvae, tmp_path, names):
    """Images are written to a folder per class: none may lie outside, and no two may be one."""
    for path, load in (
        (tiny_vqvae, load_vqvae),
        (tiny_var, lambda path: load_var(path, load_vqvae(tiny_vqvae))),
    ):
        content = read_checkpoint(path)
        content["config"]["classes"] = names
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(InputError, match="class"):
            load(tmp_path / "a.pth")


def test_nothing_is_written_outside_the_output_folder(tiny, tiny_var, tmp_path):
    """The whole script, with hostile class names in the tokens and in the checkpoint."""
    shutil.copytree(tiny["tokens"], tmp_path / "in" / "tokens")
    content = read_checkpoint(tiny_var)
    content["config"]["classes"] = ["../../x", "Kidney", "Liver"]
    torch.save(content, tmp_path / "in" / "var.pth")
    for split in ("train", "val", "test"):
        (tmp_path / "in" / "tokens" / split / "classes.json").write_text('["../../x", "Kidney", "Liver"]')
    before = sorted(tmp_path.rglob("*"))
    command = [
        sys.executable,
        "sample_var.py",
        "--var",
        tmp_path / "in" / "var.pth",
        "--vqvae",
        tiny["vqvae"],
    ]
    command += [
        "--tokens-dir",
        tmp_path / "in" / "tokens",
        "--out-dir",
        tmp_path / "a" / "b",
        "--device",
        "cpu",
    ]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "is no class name" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_checkpoints_broken_by_a_fuzzer_are_refused(tiny_vqvae, tmp_path):
    """200 files without a checksum, changed at random: each loads as a VQ-VAE or is refused in one line."""
    bare = io.BytesIO()
    torch.save(
        read_checkpoint(tiny_vqvae) | {"model": {"encoder.conv_in.weight": torch.zeros(32, 3, 3, 3)}}, bare
    )
    content, draw, path = bare.getvalue(), random.Random(0), tmp_path / "a.pth"
    refused = 0
    for _ in range(200):
        broken = bytearray(content)
        for _ in range(draw.choice((1, 3, 30))):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        path.write_bytes(broken[: draw.randrange(len(broken))] if draw.random() < 0.3 else broken)
        with pytest.raises(InputError) as error:  # it lacks most tensors, so that none loads
            load_vqvae(path)
        refused += "\n" not in str(error.value)
    assert refused == 200
