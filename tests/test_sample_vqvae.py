"""sample_vqvae.py: errors by split, class and scale against numbers worked out here, figures, refusals."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, COUNTS, PATCH_NUMS
from PIL import Image

import sample_vqvae
from sample_vqvae import Settings
from usvar import cli, images, physics
from usvar.checkpoints import load_vqvae
from usvar.errors import InputError
from usvar.files import lock_folder
from usvar.images import SPLITS


@pytest.fixture(scope="module")
def run(tiny_data, tiny_vqvae, tmp_path_factory):
    """One run over all splits: its settings and what it measured."""
    out = tmp_path_factory.mktemp("reconstructions")
    s = Settings(
        tiny_data, tiny_vqvae, out, by_scale=6, images_per_class=2, worst=5, batch_size=4, device="cpu"
    )
    sample_vqvae.main(s)
    return s, json.loads((out / "reconstruction_metrics.json").read_text())


def errors_of(s: Settings, split: str, name: str, scales: int) -> np.ndarray:
    """PSNR in dB of a class's pictures, rebuilt one by one from the first `scales` scales."""
    model, found = load_vqvae(s.vqvae).model, []
    for path in sorted((s.data_root / split / name).glob("*.png")):
        grey_1HW = images.read_image(path)[None]
        rebuilt = model.img_to_reconstructed_img(images.to_model_range(grey_1HW))[scales - 1]
        share = (rebuilt.mean(1).clamp(-1, 1).numpy() + 1) / 2
        found.append(-10 * np.log10(np.mean((share - grey_1HW / 255.0) ** 2)))
    return np.array(found)


def test_every_split_and_class_has_its_mean_spread_and_count(run):
    s, measured = run
    assert list(measured["splits"]) == list(SPLITS)
    for split, found in measured["splits"].items():
        assert found["all"]["count"] == COUNTS[split] * len(CLASSES)
        assert {name: row["count"] for name, row in found["classes"].items()} == dict.fromkeys(
            CLASSES, COUNTS[split]
        )
        for metric in ("mse", "mae", "psnr_db", "ssim"):
            means = [row[metric]["mean"] for row in found["classes"].values()]
            assert found["all"][metric]["mean"] == pytest.approx(np.mean(means), rel=1e-5)
    psnr_db = errors_of(s, "val", "Kidney", len(PATCH_NUMS))
    row = measured["splits"]["val"]["classes"]["Kidney"]["psnr_db"]
    assert row["mean"] == pytest.approx(psnr_db.mean(), abs=1e-3)
    assert row["std"] == pytest.approx(psnr_db.std(), abs=1e-3)


def test_quality_by_scale_ends_at_what_all_scales_give(tiny_data, tiny_vqvae, tmp_path):
    s = Settings(tiny_data, tiny_vqvae, tmp_path, ("test",), by_scale=99, batch_size=5, device="cpu")
    sample_vqvae.main(s)
    measured = json.loads((tmp_path / "reconstruction_metrics.json").read_text())
    found = measured["by_number_of_scales"]["test"]
    assert [(row["scales"], row["K"]) for row in found] == [(1, 1), (2, 5), (3, 21)]
    # By class too, with mean, spread and count of each metric.
    last, everything = found[-1], measured["splits"]["test"]
    pairs = [(last["classes"][name], everything["classes"][name]) for name in CLASSES]
    for got, wanted in ((last["all"], everything["all"]), *pairs):
        assert got.pop("count") == wanted.pop("count") > 0
        for metric, moments in wanted.items():
            assert got[metric] == pytest.approx(moments, rel=1e-3, abs=1e-5)
    for name in CLASSES:
        psnr_db = errors_of(s, "test", name, 1)
        row = found[0]["classes"][name]["psnr_db"]
        assert (row["mean"], row["std"]) == pytest.approx((psnr_db.mean(), psnr_db.std()), abs=1e-3)


def test_by_scale_takes_as_many_images_of_each_class(tiny_data, tiny_vqvae, tmp_path):
    sample_vqvae.main(Settings(tiny_data, tiny_vqvae, tmp_path, ("val",), by_scale=2, device="cpu"))
    measured = json.loads((tmp_path / "reconstruction_metrics.json").read_text())
    for row in measured["by_number_of_scales"]["val"]:
        assert [row["classes"][name]["count"] for name in CLASSES] == [2] * len(CLASSES)


def test_the_worst_are_the_lowest_of_all_splits_in_order(run):
    s, measured = run
    everything = [
        (value, split, name)
        for split in SPLITS
        for name in CLASSES
        for value in errors_of(s, split, name, len(PATCH_NUMS))
    ]
    worst = sorted(everything)[:5]
    assert [entry["psnr_db"] for entry in measured["worst"]] == pytest.approx(
        [value for value, _, _ in worst], abs=1e-3
    )
    assert [entry["path"].split("/")[:2] for entry in measured["worst"]] == [[a, b] for _, a, b in worst]


def test_speckle_of_real_and_rebuilt_images_is_that_of_all_images_at_once(run):
    """Summed batch by batch; six images in batches of four would weigh wrongly as a mean of means."""
    s, measured = run
    found = measured["speckle"]["train"]
    paths = sorted((s.data_root / "train").rglob("*.png"))
    grey_NHW = np.stack([images.read_image(path) for path in paths])
    model = load_vqvae(s.vqvae).model
    rebuilt_B3HW = model.img_to_reconstructed_img(images.to_model_range(grey_NHW), last_one=True)
    for name, pictures_NHW in (("real", grey_NHW), ("rebuilt", images.to_uint8(rebuilt_B3HW))):
        frequency_F, power_F = physics.radial_power_spectrum(pictures_NHW)
        assert found["cycles_a_pixel"] == pytest.approx(frequency_F.tolist())
        assert found["power_db"][name] == pytest.approx(10 * np.log10(power_F + 1e-12), abs=0.05)
        counts = np.bincount(pictures_NHW.ravel(), minlength=256)
        assert np.abs(np.array(found["grey_shares"][name]) - counts / counts.sum()).sum() < 0.01
    power_db = {name: np.array(values) for name, values in found["power_db"].items()}
    difference_F = power_db["rebuilt"] - power_db["real"]
    assert found["spectrum_difference_rms_db"] == pytest.approx((difference_F**2).mean() ** 0.5)
    fine_F = np.array(found["cycles_a_pixel"]) > 0.25
    assert found["fine_detail_power_difference_db"] == pytest.approx(difference_F[fine_F].mean())
    assert found["grey_level_distance"] > 1


def test_equal_images_have_equal_speckle():
    grey_NHW = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    same = {"real": sample_vqvae.Speckle(), "rebuilt": sample_vqvae.Speckle()}
    for found in same.values():
        found.add(grey_NHW)
    row = sample_vqvae.compare_speckle(same)
    assert row["spectrum_difference_rms_db"] == 0 and row["grey_level_distance"] == 0
    same["rebuilt"] = sample_vqvae.Speckle()
    same["rebuilt"].add((grey_NHW // 2).astype(np.uint8))
    row = sample_vqvae.compare_speckle(same)
    assert row["fine_detail_power_difference_db"] == pytest.approx(-6.02, abs=0.05)
    assert row["grey_level_distance"] == pytest.approx(grey_NHW.mean() - (grey_NHW // 2).mean(), rel=1e-6)


def test_figures_and_what_made_them(run, capsys):
    s, measured = run
    for name in (*(f"scales_{name}" for name in CLASSES), "worst_5", "quality_by_scale", "speckle"):
        with Image.open(s.out_dir / f"{name}.png") as picture:
            assert min(picture.size) > 100
    made_by = measured["made_by"]
    assert made_by["script"] == "sample_vqvae.py" and len(made_by["inputs"]["vqvae"]["sha256"]) == 64
    sample_vqvae.print_table(measured["splits"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(SPLITS) * (len(CLASSES) + 1)
    assert f"{measured['splits']['val']['classes']['Liver']['psnr_db']['mean']:.2f} ±" in lines[7]


def test_a_class_without_images_in_a_split_counts_nothing(tiny_data, tiny_vqvae, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tiny_data, root)
    shutil.rmtree(root / "val" / "Liver")
    sample_vqvae.main(Settings(root, tiny_vqvae, tmp_path / "out", ("val",), by_scale=0, device="cpu"))
    found = json.loads((tmp_path / "out" / "reconstruction_metrics.json").read_text())["splits"]["val"]
    assert found["classes"]["Liver"] == {"count": 0} and found["all"]["count"] == 2 * COUNTS["val"]
    assert not (tmp_path / "out" / "scales_Liver.png").exists()
    assert not (tmp_path / "out" / "quality_by_scale.png").exists()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"splits": ()}, "wanted some of train, val, test"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"data_root": Path("nowhere")}, "holds nothing, wanted the folders train, val and test"),
        ({"vqvae": Path("nowhere.pth")}, "nowhere.pth is missing"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(
    wrong, message, tiny_data, tiny_vqvae, tmp_path
):
    arguments = {"data_root": tiny_data, "vqvae": tiny_vqvae, "out_dir": tmp_path / "out", "device": "cpu"}
    with pytest.raises(InputError, match=message):
        sample_vqvae.main(Settings(**(arguments | wrong)))
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_or_not_to_be_written_is_refused_before_the_work(
    tiny_data, tiny_vqvae, tmp_path, monkeypatch
):
    def work(*_, **__):
        raise AssertionError("it began")

    monkeypatch.setattr(sample_vqvae, "measure", work)
    s = Settings(tiny_data, tiny_vqvae, tmp_path / "out", device="cpu")
    with lock_folder(s.out_dir), pytest.raises(InputError, match="another run writes to"):
        sample_vqvae.main(s)
    with pytest.raises(InputError, match="cannot be written"):
        sample_vqvae.main(dataclasses.replace(s, out_dir=Path("/proc/none")))


def test_an_unknown_split_is_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse(Settings, None, ["--data-root", "x", "--vqvae", "x", "--splits", "val", "vall"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert "invalid choice 'vall' for argument '--splits'" in said and "'val', 'test'" in said


def test_images_of_another_size_are_refused(tiny_vqvae, tmp_path):
    """The tokeniser's network runs on any size: without this check the numbers would be of other scales."""
    for split in SPLITS:
        images.save_png(tmp_path / split / "Heart" / "a.png", np.full((32, 32), 90, np.uint8))
    with pytest.raises(InputError, match=r"32 x 32 pixels, .* wants 64 x 64: prepare with --size 64"):
        sample_vqvae.main(Settings(tmp_path, tiny_vqvae, tmp_path / "out", device="cpu"))


def test_the_command_line(tiny_data, tiny_vqvae, tmp_path):
    """A damaged picture half-way is one line and exit code 2, and leaves no numbers."""
    root, script = tmp_path / "data", Path(sample_vqvae.__file__)
    shutil.copytree(tiny_data, root)
    damaged = root / "val" / "Liver" / "made__1.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    flags = ["--data-root", root, "--vqvae", tiny_vqvae, "--out-dir", tmp_path / "out", "--splits", "val"]
    command = [sys.executable, script, *flags, "--device", "cpu", "--by-scale", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "made__1.png cannot be read" in line and "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "reconstruction_metrics.json").exists()


def test_weights_keep_no_gradients(tiny_vqvae):
    model = load_vqvae(tiny_vqvae).model
    image_B3HW, rebuilt = sample_vqvae.seen_and_rebuilt(
        model, np.zeros((2, 64, 64), np.uint8), every_scale=True
    )
    assert len(rebuilt) == len(PATCH_NUMS) and not any(part.requires_grad for part in rebuilt)
    assert torch.equal(image_B3HW, torch.full_like(image_B3HW, -1.0))
