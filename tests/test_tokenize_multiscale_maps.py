"""Images to token maps: the contract's arrays, views, restart, refusals."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train_vqvae import ROOT

import tokenize_multiscale_maps as script
from usvar import distributed, images, provenance, tokens
from usvar.checkpoints import load_vqvae, read_checkpoint, save_checkpoint
from usvar.errors import InputError


def settings(data: Path, vqvae: Path, out: Path, **changes) -> script.Settings:
    chosen = {"data_root": data, "vqvae": vqvae, "out_dir": out, "views": 3, "batch_size": 4, "device": "cpu"}
    return script.Settings(**chosen | changes)


@pytest.fixture(scope="module")
def made(tiny_data, tiny_vqvae, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tokens")
    script.main(settings(tiny_data, tiny_vqvae, out))
    return out


def test_tokens_are_those_of_the_model(made, tiny_data, tiny_vqvae):
    model = load_vqvae(tiny_vqvae).model
    for split, views in (("train", 3), ("val", 1), ("test", 1)):
        maps = tokens.read_token_maps(made / split)
        files = images.find_images(tiny_data, split, images.find_classes(tiny_data))
        assert len(maps) == len(files) * views
        assert maps.classes == files.classes
        own = np.flatnonzero(maps.view_N == 0)
        assert tuple(maps.path_N[own]) == files.paths and np.array_equal(maps.label_N[own], files.label_N)
        image_B3HW = images.to_model_range(images.read_images(files, range(len(files)), 64))
        idx_NL = torch.cat(model.img_to_idxBl(image_B3HW), dim=1).numpy()
        assert (maps.idx_NL[own] == idx_NL).mean() > 0.995  # another batch size may round otherwise
    assert maps.made_by["inputs"]["vqvae"]["sha256"] == load_vqvae(tiny_vqvae).sha256


def test_a_vqvae_of_other_training_images_is_named(tiny_data, tiny_vqvae, tmp_path, capsys):
    content = read_checkpoint(tiny_vqvae)
    content["made_by"] = {"inputs": {"train_images": {"sha256": "0" * 64}}}
    save_checkpoint(tmp_path / "best.pth", content)
    script.main(settings(tiny_data, tmp_path / "best.pth", tmp_path / "out", views=1))
    assert "best.pth was trained on other images" in capsys.readouterr().out


def test_views_differ_in_training_only_and_do_not_depend_on_the_batch(made, tiny_data, tiny_vqvae, tmp_path):
    """Validation and test images were augmented by the predecessor."""
    maps = tokens.read_token_maps(made / "train")
    assert sorted(set(maps.view_N)) == [0, 1, 2]
    first = maps.idx_NL[maps.path_N == maps.path_N[0]]
    assert len(np.unique(first, axis=0)) == 3
    assert (
        set(tokens.read_token_maps(made / "val").view_N)
        == set(tokens.read_token_maps(made / "test").view_N)
        == {0}
    )
    script.main(settings(tiny_data, tiny_vqvae, tmp_path, batch_size=7))
    assert (tokens.read_token_maps(tmp_path / "train").idx_NL == maps.idx_NL).mean() > 0.995


def test_a_picture_is_read_once_for_all_its_views(made, tiny_data, tiny_vqvae, tmp_path, monkeypatch):
    read, own = [], images.read_images
    monkeypatch.setattr(
        images, "read_images", lambda files, rows, *more: read.append(list(rows)) or own(files, rows, *more)
    )
    script.main(settings(tiny_data, tiny_vqvae, tmp_path, batch_size=6, views=3))
    maps = tokens.read_token_maps(tmp_path / "train")
    count = len(set(maps.path_N))
    batches = read[: -(-len(maps) // 6)]  # six rows of three views are two pictures
    assert [row for rows in batches for row in rows] == list(range(count))
    assert (maps.idx_NL == tokens.read_token_maps(made / "train").idx_NL).mean() > 0.995


def test_a_stopped_run_goes_on_and_a_finished_one_says_so(
    made, tiny_data, tiny_vqvae, tmp_path, monkeypatch, capsys
):
    own, calls = script.tokenise, []
    monkeypatch.setattr(script, "ROWS_PER_MARK", 8)

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return own(*arguments)

    monkeypatch.setattr(script, "tokenise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.main(settings(tiny_data, tiny_vqvae, tmp_path))
    assert not (tmp_path / "train" / tokens.FILE_NAME).exists()
    # Somebody tidied up: without one of its files there is nothing to go on from.
    shutil.copytree(tmp_path / "train", tmp_path / "lost" / "train")
    (tmp_path / "lost" / "train" / "partial_idx.npy").unlink()
    calls.extend([0] * 100)
    script.main(settings(tiny_data, tiny_vqvae, tmp_path / "lost"))
    calls.clear()
    calls.extend([0] * 100)
    script.main(settings(tiny_data, tiny_vqvae, tmp_path))
    assert len(calls) - 100 < 14 + 3 + 3  # 54 rows in fours would be 14 batches; 16 rows were kept
    for split in images.SPLITS:
        name = f"{split}/{tokens.FILE_NAME}"
        first, second = (tokens.read_token_maps((out / name).parent) for out in (made, tmp_path))
        assert np.array_equal(first.idx_NL, second.idx_NL)
    assert not list(tmp_path.glob("*/partial*"))
    capsys.readouterr()
    script.main(settings(tiny_data, tiny_vqvae, tmp_path))
    assert capsys.readouterr().out.count("nothing to do") == 3


def test_what_a_run_that_died_in_its_last_words_left_is_removed(
    made, tiny_data, tiny_vqvae, tmp_path, monkeypatch
):
    """The archive was whole, so the next run had nothing to do, and partial_* stayed for ever."""
    write = tokens.write_token_maps

    def write_and_die(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tokens, "write_token_maps", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            script.main(settings(tiny_data, tiny_vqvae, tmp_path))
    assert (tmp_path / "train" / tokens.FILE_NAME).is_file() and list(tmp_path.glob("train/partial_*"))
    script.main(settings(tiny_data, tiny_vqvae, tmp_path))
    assert not list(tmp_path.glob("*/partial_*"))


def test_what_other_settings_began_outlives_a_run_that_has_nothing_to_do(
    made, tiny_data, tiny_vqvae, tmp_path, monkeypatch
):
    shutil.copytree(made, tmp_path / "out")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(script, "write_archive", stop)
        with pytest.raises(KeyboardInterrupt):
            script.main(settings(tiny_data, tiny_vqvae, tmp_path / "out", views=4))
    began = {path: path.read_bytes() for path in (tmp_path / "out/train").glob("partial_*")}
    script.main(settings(tiny_data, tiny_vqvae, tmp_path / "out"))
    assert len(began) == 3 and all(path.read_bytes() == content for path, content in began.items())


def test_one_process_alone_says_why_a_split_is_made_anew(made, tmp_path, capsys):
    """Each of them did."""
    before = tokens.read_token_maps(made / "val")
    (tmp_path / tokens.FILE_NAME).write_bytes(b"cut")
    (tmp_path / "classes.json").write_text("[]")
    for rank in (0, 1):
        world = distributed.World(rank, 2, torch.device("cpu"))
        assert not script.is_finished(made / "val", before.classes, before.made_by | {"views": 9}, world)
        assert not script.is_finished(tmp_path, before.classes, before.made_by, world)
        assert capsys.readouterr().out.count("it is made anew") == (2 if rank == 0 else 0)


def test_only_what_decides_the_tokens_makes_them_anew(tiny_data, tiny_vqvae, tmp_path, monkeypatch, capsys):
    """A half-done split began anew after a commit or with another batch size, and renaming the VQ-VAE made
    all tokens anew."""
    own, rows_done = script.tokenise, []

    def interrupted(model, files, rows, *more):
        if sum(rows_done) >= 24:
            raise KeyboardInterrupt
        rows_done.append(len(rows))
        return own(model, files, rows, *more)

    def stop_half_way(out: Path) -> None:
        rows_done.clear()
        with monkeypatch.context() as patch:
            patch.setattr(script, "ROWS_PER_MARK", 8)
            patch.setattr(script, "tokenise", interrupted)
            with pytest.raises(KeyboardInterrupt):
                script.main(settings(tiny_data, tiny_vqvae, out))

    def rows_made(out: Path, vqvae: Path = tiny_vqvae, **changes) -> int:
        rows_done.clear()
        with monkeypatch.context() as patch:
            patch.setattr(script, "tokenise", lambda *x: rows_done.append(len(x[2])) or own(*x))
            script.main(settings(tiny_data, vqvae, out, **changes))
        return sum(rows_done)

    renamed = shutil.copy(tiny_vqvae, tmp_path / "renamed.pth")
    stop_half_way(tmp_path / "same")
    monkeypatch.setattr(provenance, "code_revision", lambda: "the next commit")
    changes = {"batch_size": 6, "read_limit_s": 100.0}
    all_rows = 54 + 12 + 9  # train in three views, val, test
    assert rows_made(tmp_path / "same", renamed, **changes) == all_rows - 24
    assert rows_made(tmp_path / "same", renamed, **changes) == 0
    assert rows_made(tmp_path / "same") == 0
    assert capsys.readouterr().out.count("nothing to do") == 6
    # Val and test have one view, whatever --views says.
    assert rows_made(tmp_path / "same", views=2) == 36
    stop_half_way(tmp_path / "other")
    assert rows_made(tmp_path / "other", seed=1) == all_rows


def test_a_new_image_or_setting_makes_the_tokens_anew(made, tiny_data, tiny_vqvae, tmp_path, capsys):
    shutil.copytree(tiny_data, tmp_path / "data")
    shutil.copytree(made, tmp_path / "tokens")
    grey_HW = np.full((64, 64), 7, dtype=np.uint8)
    images.save_png(tmp_path / "data" / "val" / "Heart" / "new.png", grey_HW)
    script.main(settings(tmp_path / "data", tiny_vqvae, tmp_path / "tokens"))
    printed = capsys.readouterr().out
    assert printed.count("nothing to do") == 2
    assert "is of another listing_sha256; it is made anew" in printed
    assert "val/Heart/new.png" in tokens.read_token_maps(tmp_path / "tokens" / "val").path_N


def test_a_new_class_in_train_moves_the_labels_of_the_other_splits(made, tiny_data, tiny_vqvae, tmp_path):
    """Val and test kept the labels of before, and train_var.py then asked to tokenise again, in vain."""
    shutil.copytree(tiny_data, tmp_path / "data")
    shutil.copytree(made, tmp_path / "tokens")
    images.save_png(tmp_path / "data/train/Aorta/new.png", np.full((64, 64), 7, dtype=np.uint8))
    script.main(settings(tmp_path / "data", tiny_vqvae, tmp_path / "tokens"))
    for split in images.SPLITS:
        maps = tokens.read_token_maps(tmp_path / "tokens" / split)
        assert maps.classes == ("Aorta", "Heart", "Kidney", "Liver")
        assert [maps.classes[i] for i in maps.label_N] == [path.split("/")[1] for path in maps.path_N]


def test_two_processes_write_the_same_archive(made, tiny_data, tiny_vqvae, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    flags = ["--data-root", tiny_data, "--vqvae", tiny_vqvae, "--out-dir", tmp_path, "--views", "3"]
    done = subprocess.run(
        [*command, "tokenize_multiscale_maps.py", *map(str, flags), "--device", "cpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for split in images.SPLITS:
        one, two = (tokens.read_token_maps(out / split) for out in (made, tmp_path))
        assert (one.idx_NL == two.idx_NL).mean() > 0.995
        assert one.path_N.tolist() == two.path_N.tolist()


def test_images_of_another_size_are_refused(tiny_vqvae, tmp_path):
    for split in images.SPLITS:
        images.save_png(tmp_path / "data" / split / "Heart" / "a.png", np.zeros((32, 32), dtype=np.uint8))
    with pytest.raises(InputError, match="prepare with --size 64"):
        script.main(settings(tmp_path / "data", tiny_vqvae, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_wrong_checkpoint_is_one_line_and_exit_code_2(tiny_data, tmp_path):
    (tmp_path / "best.pth").write_text(json.dumps({"model": "none"}))
    command = [sys.executable, "tokenize_multiscale_maps.py", "--data-root", str(tiny_data)]
    done = subprocess.run(
        [*command, "--vqvae", str(tmp_path / "best.pth"), "--out-dir", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
