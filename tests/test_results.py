"""results/: the share kept back, archive and shards, the record, and every recipe at its smallest size."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from raw_trees import plant, save, speckle

sys.path.insert(0, str(Path(__file__).parent.parent / "results"))

import hold_back
import pack
import record

import sample_vqvae

ROOT = Path(__file__).parent.parent
RECIPES = ("real_128_cpu.sh", "real_256_gpu.sh")


@pytest.fixture(scope="session")
def raw_root(tmp_path_factory) -> Path:
    """Liver and thyroid in their publishers' layouts, without what is kept back: 42 pictures per class."""
    root, number = tmp_path_factory.mktemp("raw"), 0
    for name in (
        "AUL/Benign/image/{}.jpg",
        "AUL/Malignant/image/{}.jpg",
        "AUL/Normal/image/{}.jpg",
        "DDTI/{}_1.jpg",
    ):
        paths = [name.format(i) for i in range(1, 60)]
        paths = [path for path in paths if not hold_back.reason(path, path.split("/")[0])][:42]
        plant(root, *paths, first=number)
        number += len(paths)
    return root


def recipe(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run a recipe on two cores with this Python."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    on_cpu = {"CUDA_VISIBLE_DEVICES": "", "NO_GPU": "1"}
    return subprocess.run(
        ["bash", ROOT / "results" / name, *map(str, arguments)],
        env=os.environ | on_cpu | {"PATH": path, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )


def fails(code: int, *command: object) -> str:
    """Run a script of results/, which must end with `code` and one line; returns the line."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    return done.stderr


# ---- the share kept back


@pytest.mark.parametrize(
    ("dataset", "kept", "held"),
    [
        ("BUSI", "BUSI/benign/benign (100).png", "BUSI/benign/benign (10).png"),
        ("HC18", "HC18/training_set/403_2HC.png", "HC18/training_set/002_HC.png"),
        ("Fast-U-Net", "Fast-U-Net/Dataset/HC/image/403_2HC.png", "Fast-U-Net/Dataset/HC/image/002_HC.png"),
        ("DDTI", "DDTI/20_1.jpg", "DDTI/65_2.jpg"),
        ("AUL", "AUL/Normal/image/10.jpg", "AUL/Normal/image/11.jpg"),
    ],
)
def test_the_key_of_a_set_decides(dataset, kept, held):
    assert hold_back.reason(kept, dataset) == ""
    assert hold_back.reason(held, dataset) != ""


def test_pictures_that_belong_together_have_one_key():
    pairs = {
        "HC18": ("HC18/training_set/403_HC.png", "HC18/training_set/403_2HC.png"),
        "DDTI": ("DDTI/65_1.jpg", "DDTI/65_2.jpg"),
        "CAMUS": ("CAMUS/x/patient0007_4CH_ED.png", "CAMUS/x/patient0007_2CH_ES.nii.gz"),
        "COVID-LUS": ("l/covid/Cov-Atlas+(44).gif_frame3.jpg", "pocus_videos/convex/Cov-Atlas+(44).gif"),
    }
    for dataset, (first, second) in pairs.items():
        assert hold_back.key_of(first, dataset) == hold_back.key_of(second, dataset)
    # Numbers of livers start again in each class.
    assert hold_back.key_of("AUL/Normal/image/7.jpg", "AUL") != hold_back.key_of(
        "AUL/Benign/image/7.jpg", "AUL"
    )


def test_the_key_is_of_the_published_spelling():
    """The preparation reads files in any case of letters; renamed ones passed."""
    spelled = {
        "AUL": ("AUL/Benign/image/4.jpg", "AUL/benign/Image/4.JPG"),
        "BUSI": ("BUSI/benign/benign (10).png", "BUSI/Benign/Benign (10).PNG"),
        "STU-Hospital": ("x/Test_Image_3.png", "x/test_image_3.PNG"),
        "MMOTU-2D": ("MMOTU/OTU_2d/images/15.JPG", "MMOTU/otu_2d/images/15.jpg"),
        "HC18": ("HC18/training_set/002_HC.png", "HC18/Training_Set/002_hc.PNG"),
        "CAMUS": ("x/patient0007_4CH_ED.png", "x/Patient0007_4ch_ed.png"),
        "DDTI": ("DDTI/65_2.jpg", "ddti/65_2.JPG"),
        "COVID-LUS": ("l/Cov-Atlas+(44).gif_frame3.jpg", "l/cov-atlas+(44).gif_Frame3.JPG"),
    }
    for dataset, (published, renamed) in spelled.items():
        assert hold_back.key_of(renamed, dataset) == hold_back.key_of(published, dataset)
        assert hold_back.reason(renamed, dataset) == hold_back.reason(published, dataset)
    assert hold_back.key_of("x/images/15.jpg", "MMOTU-2D") == "15.JPG"
    assert hold_back.key_of("AUL/benign/image/4.jpg", "AUL") == "Benign/4.jpg"


def test_held_heads_are_found_in_fast_u_net(tmp_path):
    """They are HC18's again, resized, and passed; its abdomens have no key and stay."""
    home = "Fast-U-Net/Dataset"
    plant(
        tmp_path, f"{home}/HC/image/002_HC.png", f"{home}/HC/image/403_HC.png", f"{home}/AC/image/fa_0002.png"
    )
    done = subprocess.run(
        [sys.executable, ROOT / "results" / "hold_back.py", "list", "--raw-root", tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"Fast-U-Net\t002_HC.png\t{home}/HC/image/002_HC.png\n"
    assert done.stderr == "Fast-U-Net: 3 pictures or videos, 1 kept back\n"


def test_pictures_that_the_preparation_rejects_are_held_too(tmp_path):
    """Without the publisher's list the originals passed; with it beside them a later run reads them."""
    plant(tmp_path, "MMOTU/OTU_2d/images/15.JPG", "MMOTU/OTU_2d/images/1.JPG", "Mine/Heart/a.png")
    script = ROOT / "results" / "hold_back.py"
    assert "1 files" in fails(2, script, "refuse", "--raw-root", tmp_path)
    subprocess.run([sys.executable, script, "remove", "--raw-root", tmp_path], check=True)
    assert [path.name for path in sorted(tmp_path.rglob("*.*"))] == ["1.JPG", "a.png"]
    done = subprocess.run(
        [sys.executable, script, "refuse", "--raw-root", tmp_path], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "MMOTU-2D: 1 pictures or videos, 0 kept back",
        "Mine: 1 pictures or videos, no rule: all stays",
    ]


def test_a_lung_video_without_a_licence_goes():
    assert (
        hold_back.reason("x/image_dataset/covid/Cov-Unheard-Of.gif_frame3.jpg", "COVID-LUS")
        == "no open licence"
    )
    assert hold_back.reason("x/image_dataset/covid/Cov-Atlas+(44).gif_frame3.jpg", "COVID-LUS") == ""


def test_listing_removing_and_refusing(tmp_path):
    plant(tmp_path, *(f"DDTI/{name}.jpg" for name in ("20_1", "65_1", "65_2")), "Mine/Heart/a.png")
    script = ROOT / "results" / "hold_back.py"
    assert "2 files" in fails(2, script, "refuse", "--raw-root", tmp_path)
    for mode in ("list", "remove"):
        command = [sys.executable, script, mode, "--raw-root", tmp_path]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == "DDTI\tcase65\tDDTI/65_1.jpg\nDDTI\tcase65\tDDTI/65_2.jpg\n"
    assert [path.name for path in sorted(tmp_path.rglob("*.*g"))] == ["20_1.jpg", "a.png"]
    subprocess.run([sys.executable, script, "refuse", "--raw-root", tmp_path], check=True)


def test_names_of_another_copy_are_refused():
    with pytest.raises(hold_back.InputError, match="not in the layout"):
        hold_back.key_of("DDTI/image/0001.PNG", "DDTI")


# ---- archive of pictures


@pytest.fixture
def prepared(tmp_path) -> Path:
    """A small prepared folder with a manifest."""
    folder = tmp_path / "prepared"
    lines = ["file,sha256"]
    for number, name in enumerate(("train/Heart/a", "train/Liver/b", "val/Heart/c", "test/Liver/d")):
        picture = Image.fromarray(speckle(number, 64, 64)).convert("RGB")
        save(folder / f"{name}.png", np.asarray(picture), compress_level=3)
        lines.append(f"{name}.png,{'0' * 64}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def settings(mode: str, source: Path, target: Path, **more: object) -> pack.Settings:
    return pack.Settings(mode, source, target, **more)


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {
        path.relative_to(folder).as_posix(): np.asarray(Image.open(path)).astype(int)
        for path in folder.rglob("*.png")
    }


def test_lossless_archive_brings_back_the_same_files(prepared, tmp_path):
    archive, again = tmp_path / "a.zip", tmp_path / "again"
    pack.main(settings("images", prepared, archive, format="png"))
    pack.main(settings("unpack", archive, again))
    for path in prepared.rglob("*.png"):
        assert (again / path.relative_to(prepared)).read_bytes() == path.read_bytes()
    assert json.loads((again / pack.PACKED).read_text())["psnr_db_lowest"] == 100
    # The hashes are those of the pixels.
    assert "0" * 64 not in (again / "manifest.csv").read_text()
    second = tmp_path / "b.zip"
    pack.main(settings("images", prepared, second, format="png"))
    assert second.read_bytes() == archive.read_bytes()


def test_nearly_lossless_archive_is_smaller_and_says_its_error(prepared, tmp_path):
    sizes = {}
    for name in ("png", "avif"):
        pack.main(settings("images", prepared, tmp_path / f"{name}.zip", format=name))
        sizes[name] = (tmp_path / f"{name}.zip").stat().st_size
    pack.main(settings("unpack", tmp_path / "avif.zip", tmp_path / "again"))
    before, after = pixels(prepared), pixels(tmp_path / "again")
    assert before.keys() == after.keys() and sizes["avif"] < 0.8 * sizes["png"]
    psnr_db = [10 * np.log10(255**2 / ((before[name] - after[name]) ** 2).mean()) for name in before]
    about = json.loads((tmp_path / "again" / pack.PACKED).read_text())
    assert min(psnr_db) == pytest.approx(about["psnr_db_lowest"], abs=1e-6) and min(psnr_db) > 38
    assert np.mean(psnr_db) == pytest.approx(about["psnr_db_mean"], abs=1e-6)


def test_an_archive_that_is_too_large_leaves_nothing(prepared, tmp_path):
    with pytest.raises(pack.InputError, match="lower --quality"):
        pack.main(settings("images", prepared, tmp_path / "a.zip", most_mb=0.005))
    assert list(tmp_path.iterdir()) == [prepared]


@pytest.mark.parametrize("damage", ["flipped", "cut", "no archive", "absent"])
def test_a_damaged_archive_is_one_line_and_leaves_nothing(prepared, tmp_path, damage):
    archive = tmp_path / "a.zip"
    pack.main(settings("images", prepared, archive, format="png"))
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "cut":
        content = content[: len(content) // 2]
    archive.write_bytes(b"not a zip" if damage == "no archive" else content)
    if damage == "absent":
        archive.unlink()
    with pytest.raises(pack.InputError, match="bring it again"):
        pack.main(settings("unpack", archive, tmp_path / "again"))
    assert {path.name for path in tmp_path.iterdir()} <= {"prepared", "a.zip"}


def test_no_shards_are_one_line_and_code_2(tmp_path):
    line = fails(2, ROOT / "results" / "pack.py", "join", tmp_path, tmp_path / "joined.pth")
    assert "bring all files again" in line


def test_a_folder_with_files_is_not_written_to(prepared, tmp_path):
    pack.main(settings("images", prepared, tmp_path / "a.zip", format="png"))
    with pytest.raises(pack.InputError, match="is there already"):
        pack.main(settings("unpack", tmp_path / "a.zip", prepared))


# ---- weights in shards


def test_shards_are_small_and_join_to_the_rounded_model(tiny_vqvae, tmp_path):
    pack.main(settings("shard", tiny_vqvae, tmp_path / "w", most_mb=1))
    shards = sorted((tmp_path / "w").glob("*.safetensors"))
    assert len(shards) > 1 and all(path.stat().st_size < 1e6 for path in shards)
    pack.main(settings("join", tmp_path / "w", tmp_path / "joined.pth"))
    before, after = pack.read_checkpoint(tiny_vqvae), pack.read_checkpoint(tmp_path / "joined.pth")
    assert list(before["model"]) == list(after["model"]) and before["config"] == after["config"]
    changed = 0
    for key, value in before["model"].items():
        assert after["model"][key].dtype == value.dtype
        wanted = value.bfloat16().to(value.dtype) if value.is_floating_point() else value
        assert torch.equal(after["model"][key], wanted)
        changed += not torch.equal(after["model"][key], value)
    assert changed > 10
    assert after["made_by"]["rounded_to"] == "bfloat16"


def test_the_joined_file_is_the_same_wherever_it_is_joined(tiny_vqvae, tmp_path, capsys):
    """Others name the VQ-VAE by its hash; equal strings that are one object once changed it."""
    content, name = pack.read_checkpoint(tiny_vqvae), "".join(["train", "_vqvae.py"])
    content["made_by"] = {"script": name, "settings": {"steps": 3, "device": name, "betas": [0.9, 0.95]}}
    pack.save_checkpoint(tmp_path / "best.pth", content)
    pack.main(settings("shard", tmp_path / "best.pth", tmp_path / "w", most_mb=1))
    shutil.copytree(tmp_path / "w", tmp_path / "elsewhere")
    pack.main(settings("join", tmp_path / "w", tmp_path / "first.pth"))
    pack.main(settings("join", tmp_path / "elsewhere", tmp_path / "second.pth"))
    assert (tmp_path / "first.pth").read_bytes() == (tmp_path / "second.pth").read_bytes()
    assert "note" not in capsys.readouterr().err
    assert load_both(tmp_path / "first.pth").sha256 == load_both(tmp_path / "second.pth").sha256


def load_both(path: Path) -> pack.Any:
    from usvar.checkpoints import load_vqvae

    return load_vqvae(path)


@pytest.mark.parametrize("damage", ["missing", "flipped", "no index", "a path"])
def test_damaged_or_missing_shards_are_one_line(tiny_vqvae, tmp_path, damage):
    folder = tmp_path / "w"
    pack.main(settings("shard", tiny_vqvae, folder, most_mb=1))
    shard = min(folder.glob("*.safetensors"))
    if damage == "missing":
        shard.unlink()
    elif damage == "flipped":
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    elif damage == "no index":
        (folder / pack.INDEX).unlink()
    else:
        index = (folder / pack.INDEX).read_text()
        (folder / pack.INDEX).write_text(index.replace(shard.name, f"../w/{shard.name}"))
    with pytest.raises(pack.InputError, match="bring") as error:
        pack.main(settings("join", folder, tmp_path / "joined.pth"))
    assert shard.name in str(error.value) or damage == "no index"
    assert not (tmp_path / "joined.pth").exists()


def test_a_tensor_larger_than_a_shard_is_named(tiny_vqvae, tmp_path):
    with pytest.raises(pack.InputError, match=r"encoder|decoder"):
        pack.main(settings("shard", tiny_vqvae, tmp_path / "w", most_mb=0.1))


# ---- the record


@pytest.fixture
def finished_run(tmp_path) -> Path:
    """What record.py reads of a run of the VQ-VAE and of its reconstructions."""
    run = tmp_path / "run"
    made_by = {
        "code_revision": "abc",
        "settings": {"data_root": "/home/someone/data", "out_dir": "runs/x", "steps": 9},
    }
    (run / "vqvae").mkdir(parents=True)
    (run / "vqvae" / "settings.json").write_text(json.dumps(made_by))
    rows = [{"step": i, "train_sse": 1.0} for i in range(1, 1001)]
    rows[499] |= {"val_total": 1.0, "val_psnr_db": 25.0}
    rows[749] |= {"val_total": 1.5, "val_psnr_db": 24.5}
    rows[999] |= {"val_total": 2.0, "val_psnr_db": 24.0}
    # Step 500 was before the adversarial loss, with which the choice starts anew.
    pack.save_checkpoint(run / "vqvae" / "best.pth", {"made_by": made_by, "step": 750})
    (run / "vqvae" / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save(
        run / "vqvae" / "loss_curves.png",
        np.random.default_rng(0).integers(0, 255, (700, 700, 3), dtype=np.uint8),
    )
    save(run / "vqvae" / "reconstructions.png", speckle(1))
    (run / "reconstructions").mkdir()
    (run / "reconstructions" / "reconstruction_metrics.json").write_text(
        json.dumps({"made_by": made_by, "psnr": 1})
    )
    for name in ("Heart", "Liver"):
        save(run / "reconstructions" / f"scales_{name}.png", speckle(2))
    (run / "commands").mkdir()
    (run / "commands" / "vqvae.txt").write_text(
        "python train_vqvae.py --data-root /home/someone/data --steps 9\n"
    )
    (run / "commands" / "times.csv").write_text(
        "vqvae,2026-01-01T00:00:00Z,60,143\nvqvae,2026-01-02T00:00:00Z,5,0\n"
    )
    return run


def test_the_record_keeps_numbers_and_no_paths(finished_run, tmp_path):
    record.main(
        record.Settings(
            finished_run, tmp_path / "kept", shown=("Liver",), device="two cores", command="make it"
        )
    )
    kept = tmp_path / "kept" / "vqvae"
    numbers = json.loads((kept / "numbers.json").read_text())
    assert numbers["command"] == "python train_vqvae.py --data-root data --steps 9"
    assert (numbers["date"], numbers["seconds"]) == ("2026-01-02", 65)
    assert (numbers["code_revision"], numbers["device"]) == ("abc", "two cores")
    other = json.loads((tmp_path / "kept" / "reconstructions" / "numbers.json").read_text())
    assert other["command"] == "make it" and other["date"] == f"{datetime.now(UTC):%Y-%m-%d}"
    found = numbers["numbers"]
    assert (found["best_on_val"]["step"], found["last_on_val"]["step"]) == (750, 1000)
    everything = "".join(path.read_text() for path in (tmp_path / "kept").rglob("*.json*"))
    assert "someone" not in everything and str(tmp_path) not in everything
    rows = record.read_log(kept / "log.jsonl")
    assert 100 < len(rows) < 200 and {500, 750, 1000} <= {row["step"] for row in rows}


def test_the_revision_is_that_of_the_weights(finished_run, tiny_vqvae, tmp_path):
    """A finished run that is started again writes its settings anew, by whatever code is there then."""
    content = pack.read_checkpoint(tiny_vqvae) | {"made_by": {"code_revision": "older", "settings": {}}}
    pack.save_checkpoint(finished_run / "vqvae" / "best.pth", content)
    record.main(record.Settings(finished_run, tmp_path / "kept"))
    assert json.loads((tmp_path / "kept/vqvae/numbers.json").read_text())["code_revision"] == "older"


def test_the_record_shows_real_pictures_only_where_a_licence_allows_it(finished_run, tmp_path):
    record.main(record.Settings(finished_run, tmp_path / "kept", shown=("Liver",)))
    figures = {path.name: path.stat().st_size for path in (tmp_path / "kept").rglob("*.png")}
    assert set(figures) == {"loss_curves.png", "scales_Liver.png"}
    assert max(figures.values()) <= record.MOST_BYTES
    assert (finished_run / "vqvae" / "loss_curves.png").stat().st_size > record.MOST_BYTES


def test_a_figure_over_several_classes_needs_all_of_them_shown(tmp_path):
    run, image = tmp_path / "run", "processed/val/Heart/x.png"
    for name in ("Heart", "Liver"):
        save(run / "samples" / "scale_1_K1" / "tp" / name / "0.png", speckle(1))
    save(run / "samples" / "sweep_tp.png", speckle(3))
    save(run / "edits" / "before_after.png", speckle(4))
    (run / "edits" / "edit.json").write_text(json.dumps({"made_by": {"settings": {"image": image}}}))
    kept = {}
    for shown in (("Liver",), ("Heart", "Liver")):
        out_dir = tmp_path / "-".join(shown)
        record.main(record.Settings(run, out_dir, shown=shown))
        kept[shown] = {path.name for path in out_dir.rglob("*.png")}
    assert list(kept.values()) == [
        set(),
        {"sweep_tp.png", "before_after.png"},
    ]


def test_no_run_is_one_line(tmp_path):
    line = fails(2, ROOT / "results" / "record.py", "--run", tmp_path, "--out-dir", tmp_path / "kept")
    assert "no folder of a stage" in line and not (tmp_path / "kept").exists()


# ---- the recipes


def test_a_stage_that_may_fail_does_not_end_the_recipe(tmp_path):
    """A measurement that finds fault must not cost the training after it; any other stage ends the recipe."""
    text = (
        "MAY_FAIL=1 stage a - false; stage b - touch $out/b; stage c - false; stage d - touch $out/d; finish"
    )
    command = f"source results/stages.sh; {text}"
    done = subprocess.run(
        ["bash", "-c", command, "recipe", tmp_path, tmp_path / "run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "stage a ended with code 1; the others go on" in done.stderr
    assert (tmp_path / "run" / "b").exists() and not (tmp_path / "run" / "d").exists()
    times = (tmp_path / "run" / "commands" / "times.csv").read_text().splitlines()
    assert [(row.split(",")[0], row.split(",")[-1]) for row in times] == [("a", "1"), ("b", "0"), ("c", "1")]


def test_a_measurement_that_fills_a_whole_piece_does_not_hold_up_the_others(tmp_path):
    text = "MAY_FAIL=1 stage a - sleep 60; stage b - touch $out/b; finish"
    command = ["bash", "-c", f"source results/stages.sh; {text}", "recipe", tmp_path, tmp_path / "run"]
    codes = [
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PIECE_SECONDS": seconds}).returncode
        for seconds in ("1", "60")
    ]
    assert codes == [143, 0] and (tmp_path / "run" / "b").exists()


def test_a_table_that_ours_loses_is_recorded_and_no_piece_is_too_short_for_it(tmp_path):
    """Its script then ends with code 1; as a plain stage it ended the recipe before the record, each time."""
    slow = stand_in(tmp_path, "trap 'exit 143' TERM; for _ in {1..300}; do sleep 0.1; done")
    call = (RECIPES[1], "raw", tmp_path / "run", "recipes", "record")
    assert recipe(*call, PIECE_SECONDS="2", **slow).returncode == 143
    done = recipe(*call, **stand_in(tmp_path, "[[ $1 != bench* ]]"))
    assert done.returncode == 0 and "stage recipes ended with code 1" in done.stderr
    called = [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]
    assert called == ["benchmarks/vqvae_recipes.py"] * 2 + ["results/record.py"]


def test_the_recipe_for_a_gpu_does_not_train_without_one(tmp_path):
    done = recipe(RECIPES[1], "raw", tmp_path / "run", "vqvae", NO_GPU="0")
    assert done.returncode == 2 and done.stderr.startswith("torch sees no GPU") and not done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("seconds", "code"), [("1", 143), ("60", 137)])
def test_a_script_killed_when_the_piece_is_over_goes_on_and_one_killed_before_does_not(
    tmp_path, seconds, code
):
    """Such as one that compiles and does not hear the signal; a kill for want of memory is a fault."""
    text = "stage a - bash -c 'trap : TERM; sleep 1; sleep 1; kill -9 $$'; finish"
    command = ["bash", "-c", f"source results/stages.sh; {text}", "recipe", tmp_path, tmp_path / "run"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PIECE_SECONDS": seconds}, capture_output=True
    )
    assert done.returncode == code


@pytest.mark.parametrize("smoke", ["0", "1"])
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("raw", ["data/raw", "prepared.zip"])
def test_every_command_of_a_recipe_is_one_that_its_script_takes(name, smoke, raw):
    done = recipe(name, raw, "runs/none", DRY="1", SMOKE=smoke, PUBLISHED="checkout")
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(commands) >= 12
    for python, script, *flags in commands:
        assert python == "python"
        module = runpy_settings(script)
        module.cli.parse(module.Settings, module.__doc__, flags)
    assert not (ROOT / "runs" / "none").exists()


@pytest.mark.parametrize(
    ("document", "at_least"),
    [
        ("README.md", 16),
        ("demo.sh", 9),
        ("results/README.md", 7),
        ("docs/preparation.md", 1),
        ("docs/var_recipes.md", 1),
        ("docs/vqvae_recipes.md", 2),
    ],
)
def test_every_command_that_is_written_down_is_one_that_its_script_takes(document, at_least):
    """And rows of a table are such as the script has, or had at the commit that is checked out before."""
    text = (ROOT / document).read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.finditer(r"(?:^ *|`)python ((?:\w+/)*\w+\.py[^`\n|]*)", text, re.MULTILINE)
    commands = [(shlex.split(match[1], comments=True), text[: match.start()]) for match in found]
    commands = [found for found in commands if len(found[0]) > 1 and "..." not in found[0]]
    assert len(commands) >= at_least
    for (script, *flags), before in commands:
        module = runpy_settings(script)
        rows = getattr(module.cli.parse(module.Settings, module.__doc__, flags), "rows", ())
        code = (ROOT / script).read_text(encoding="utf-8")
        if older := re.search(r"git checkout ([0-9a-f]{7,})", before.rsplit("\n\n", 1)[-1]):
            show = ["git", "show", f"{older[1]}:{script}"]
            code = subprocess.run(show, cwd=ROOT, capture_output=True, text=True).stdout
        # A shallow checkout has no older commits.
        assert not code or [row for row in rows if row != "all" and f'"{row}"' not in code] == []


def runpy_settings(script: str) -> pack.Any:
    """The module of a script; its folder is on the path, as when it is run."""
    folder, name = (ROOT / script).parent, Path(script).stem
    sys.path.insert(0, str(folder))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(folder))


def stand_in(folder: Path, text: str) -> dict[str, str]:
    """A `python` that does what `text` says, to see how the stages are run."""
    path = folder / "bin" / "python"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\necho \"$@\" >> '{folder}/calls'\n{text}\n")
    path.chmod(0o755)
    return {"PATH": f"{path.parent}{os.pathsep}{os.environ['PATH']}"}


def test_a_piece_that_is_over_says_so_with_143_and_the_same_command_goes_on(tmp_path):
    slow = stand_in(tmp_path, "trap 'exit 143' TERM; for _ in {1..300}; do sleep 0.1; done")
    done = recipe(RECIPES[0], "raw", tmp_path / "run", "vqvae", "tokens", PIECE_SECONDS="2", **slow)
    assert done.returncode == 143 and "give the same command again" in done.stderr
    quick = stand_in(tmp_path, "exit 0")
    done = recipe(RECIPES[0], "raw", tmp_path / "run", "vqvae", "tokens", PIECE_SECONDS="60", **quick)
    assert done.returncode == 0
    called = [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]
    assert called == ["train_vqvae.py", "train_vqvae.py", "tokenize_multiscale_maps.py"]
    rows = [row.split(",") for row in (tmp_path / "run/commands/times.csv").read_text().splitlines()]
    assert [(row[0], row[3]) for row in rows] == [("vqvae", "143"), ("vqvae", "0"), ("tokens", "0")]


def test_a_stage_that_fails_ends_the_recipe_with_its_code(tmp_path):
    done = recipe(RECIPES[0], "raw", tmp_path / "run", **stand_in(tmp_path, "exit 2"))
    assert done.returncode == 2 and len((tmp_path / "calls").read_text().splitlines()) == 1


def test_a_finished_stage_is_not_run_and_an_unknown_one_is_refused(tmp_path):
    (tmp_path / "run" / "sweep").mkdir(parents=True)
    (tmp_path / "run" / "sweep" / "chosen.json").touch()
    done = recipe(RECIPES[0], "raw", tmp_path / "run", "sweep", "sweeep", **stand_in(tmp_path, "exit 0"))
    assert done.returncode == 2 and "no stage is called sweeep" in done.stderr
    assert "nothing to do" in done.stdout and not (tmp_path / "calls").exists()


def finished_file(tmp_path: Path, name: str, stage: str, *files: str, **environment: str) -> str:
    """Which of these files, made one after another in the run's folder, keeps the stage from being run."""
    python = stand_in(tmp_path, "exit 0")
    for file in files:
        path = tmp_path / "run" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        (tmp_path / "calls").unlink(missing_ok=True)
        assert recipe(name, "raw", tmp_path / "run", stage, **python, **environment).returncode == 0
        if not (tmp_path / "calls").exists():
            return file
    return ""


@pytest.mark.parametrize("name", RECIPES)
def test_reconstructions_are_finished_by_what_is_drawn_last(name, tiny_data, tiny_vqvae, tmp_path):
    """By the numbers they were: interrupted after those, the figures never came."""
    out = tmp_path / "out"
    sample_vqvae.main(sample_vqvae.Settings(tiny_data, tiny_vqvae, out, ("val",), device="cpu"))
    *others, last = sorted(out.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    files = [f"reconstructions/{path.name}" for path in (*others, last)]
    assert finished_file(tmp_path, name, "reconstructions", *files) == files[-1]


@pytest.mark.parametrize("stage", ["sampling", "training"])
@pytest.mark.parametrize(("published", "beside"), [("", ""), ("checkout", "_published")])
def test_a_speed_beside_the_published_package_is_finished_by_it(stage, published, beside, tmp_path):
    files = [f"speed/{stage}{name}.{suffix}" for name in ("", "_published") for suffix in ("json", "png")]
    found = finished_file(tmp_path, RECIPES[1], f"{stage}_speed", *files, PUBLISHED=published)
    assert found == f"speed/{stage}{beside}.png"


def test_a_finished_stage_that_is_started_again_is_on_record_already(raw_root, tmp_path):
    """Seconds were added up, the date became the last one and what was printed ended in "nothing to do"."""
    stages = ("processed", "vqvae", "tokens", "var", "record")
    kept = []
    for _ in range(2):
        done = recipe(RECIPES[0], raw_root, tmp_path / "run", *stages, SMOKE="1")
        assert done.returncode == 0, done.stderr
        paths = (tmp_path / "run" / "commands").iterdir()
        kept.append({path.name: path.read_text() for path in paths if "record" not in path.name})
        times = kept[-1].pop("times.csv").splitlines()
        assert [row.split(",")[0] for row in times if "record" not in row] == [*stages[:-1]]
    assert "nothing to do" in done.stdout and kept[0] == kept[1]
    assert not any("nothing to do" in text for text in kept[1].values())
    # Not on record yet, as after a kill between the last step and the row of times.csv.
    (tmp_path / "run" / "commands" / "var.txt").unlink()
    recipe(RECIPES[0], raw_root, tmp_path / "run", "var", SMOKE="1")
    assert (tmp_path / "run" / "commands" / "var.txt").read_text() == kept[0]["var.txt"]


def test_all_that_follows_a_training_on_the_gpu_stands_on_the_weights_that_come_back():
    done = recipe(RECIPES[1], "prepared.zip", "runs/none", DRY="1")
    commands = done.stdout.splitlines()
    read = [line for line in commands if re.search(r"/(ar-ckpt-)?best\.pth", line)]
    assert len(read) == 3 and all("pack.py shard" in line for line in read)
    # Each training is brought back.
    assert len(read) == sum(line.split()[1].startswith("train_") for line in commands)


def test_every_way_to_compile_is_measured_beside_the_uncompiled_one():
    lines = recipe(RECIPES[1], "prepared.zip", "runs/none", DRY="1").stdout.splitlines()
    compiled = [line.split() for line in lines if "benchmarks/" in line and "--compile True" in line]
    scripts = {"sampling", "training", "matrix_rate", "vqvae_training"}
    assert {Path(words[1]).stem for words in compiled} == scripts
    folders = {words[1]: words[words.index("--out-dir") + 1] for words in compiled}
    assert {Path(folder).name for folder in folders.values()} == {"speed_compiled"}


def test_every_stage_on_the_gpu_has_its_place_in_the_plan_and_in_the_record():
    done = recipe(RECIPES[1], "prepared.zip", "runs/none", "none", DRY="1")
    known = done.stderr.split("known are ")[1].split()
    kept = {*record.STAGES, *(name for names in record.COMMANDS.values() for name in names)}
    assert [name for name in known if name not in kept and not re.search("_shards|_join|record", name)] == []
    plan = (ROOT / "results" / "README.md").read_text().split("## To another machine")[1]
    named = set(re.findall(r"\w+", plan))
    assert len(known) > 25 and [name for name in known if name not in named] == []


def test_the_first_stages_run_at_their_smallest_size(raw_root, tmp_path):
    stages = ("held_back", "processed", "vqvae", "tokens", "var", "record")
    done = recipe(RECIPES[0], raw_root, tmp_path / "run", *stages, SMOKE="1")
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "run" / "record" / "var" / "numbers.json").read_text())
    assert numbers["numbers"]["best_on_val"]["val_mean"] > 0 and numbers["seconds"] >= 0
    printed = (tmp_path / "run" / "record" / "var" / "output.txt").read_text()
    assert printed.splitlines()[-1].startswith("done: ") and str(tmp_path) not in printed
    numbers = json.loads((tmp_path / "run" / "record" / "tokens" / "numbers.json").read_text())["numbers"]
    used, pictures = numbers["share_of_codes_in_use"], numbers["pictures"]
    assert used["1 x 1"] <= used["all"] <= 1 and pictures == len(
        list((tmp_path / "run").glob("*/train/*/*.png"))
    )
    again = recipe(RECIPES[0], raw_root, tmp_path / "run", "vqvae", SMOKE="1")
    assert again.returncode == 0 and "nothing to do" in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_whole_recipe_runs_at_its_smallest_size(name, raw_root, tmp_path):
    done = recipe(name, raw_root, tmp_path / "run", SMOKE="1")
    assert done.returncode == 0, done.stderr
    kept = {path.parent.name for path in (tmp_path / "run" / "record").rglob("numbers.json")}
    assert {"processed", "vqvae", "reconstructions", "var", "sweep", "samples", "edits", "evaluation"} <= kept
    if name == RECIPES[1]:
        assert {"speed", "speed_compiled", "recipes"} <= kept
        recipes = json.loads((tmp_path / "run" / "recipes" / "results.json").read_text())
        assert set(recipes["rows"]) == {"predecessor", "ours"}
        # From the archive that the first run made, on a machine without the raw pictures.
        done = recipe(
            name, tmp_path / "run" / "prepared.zip", tmp_path / "other", "processed", "vqvae", SMOKE="1"
        )
        assert done.returncode == 0, done.stderr
