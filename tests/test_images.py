"""Prepared images as data: what is listed, what is refused, and one way between pixels and numbers."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from usvar import images
from usvar.errors import InputError
from usvar.files import LOCK_NAME, TEMPORARY_PREFIX, alone_in


def prepared(root: Path, counts: dict[str, int], side: int = 32) -> Path:
    """A prepared folder with `counts` images per class in every split."""
    noise = np.random.default_rng(0)
    for split in images.SPLITS:
        for name, count in counts.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                grey = noise.integers(0, 256, (side, side), dtype=np.uint8)
                images.save_png(root / split / name / f"a__{i}.png", grey)
    return root


def test_data_sets_are_told_by_the_names_of_files(tmp_path):
    root = prepared(tmp_path, {"Heart": 2, "Breast": 1})
    for name in ("b__a__0", "b__c__0"):
        images.save_png(root / "train" / "Heart" / f"{name}.png", np.zeros((32, 32), np.uint8))
    files = images.find_images(root, "train", ("Breast", "Heart"))
    assert images.data_sets(files).tolist() == [0, 0, 0, 1, 1]


def test_labels_follow_the_sorted_class_names(tmp_path):
    root = prepared(tmp_path, {"Heart": 2, "Breast": 1})
    classes = images.find_classes(root)
    files = images.find_images(root, "val", classes)
    assert classes == ("Breast", "Heart")
    assert files.paths == ("val/Breast/a__0.png", "val/Heart/a__0.png", "val/Heart/a__1.png")
    assert files.label_N.tolist() == [0, 1, 1]


@pytest.mark.parametrize("junk", [".DS_Store", "Thumbs.db", "thumbs.db", "desktop.ini", "Desktop.ini"])
def test_what_a_file_manager_leaves_is_no_image(tmp_path, junk):
    """Past fault: Windows' two files in a class folder stopped training."""
    root = prepared(tmp_path, {"Heart": 2})
    (root / "train" / "Heart" / junk).write_bytes(b"junk")
    assert len(images.find_images(root, "train", images.find_classes(root))) == 2
    (root / "train" / "Heart" / f"my {junk}").write_bytes(b"junk")
    with pytest.raises(InputError, match="is no plain PNG file"):
        images.find_images(root, "train", ("Heart",))


def test_pixels_survive_the_way_in_and_out(tmp_path):
    root = prepared(tmp_path, {"Heart": 2})
    files = images.find_images(root, "train", ("Heart",))
    grey_BHW = images.read_images(files, [0, 1], 32)
    image_B3HW = images.to_model_range(grey_BHW)
    assert image_B3HW.shape == (2, 3, 32, 32) and image_B3HW.min() >= -1 and image_B3HW.max() <= 1
    assert np.array_equal(images.to_uint8(image_B3HW), grey_BHW)
    assert images.to_model_range(np.array([[[0, 255]]], dtype=np.uint8))[0, 0].tolist() == [[-1.0, 1.0]]
    assert images.to_uint8(torch.tensor([-3.0, 3.0]).view(1, 1, 1, 2)).tolist() == [[[0, 255]]]


def test_decoded_images_are_those_on_disk_and_follow_a_change(tmp_path):
    root = prepared(tmp_path / "data", {"Heart": 3})
    files = images.find_images(root, "train", ("Heart",))
    first = images.decoded(files, 32, tmp_path / "cache")
    assert np.array_equal(first, images.read_images(files, range(3), 32))
    images.save_png(root / files.paths[1], np.zeros((32, 32), dtype=np.uint8))
    assert images.decoded(files, 32, tmp_path / "cache")[1].max() == 0


def test_runs_that_share_a_cache_wait_for_each_other(tmp_path):
    files = images.find_images(prepared(tmp_path / "data", {"Heart": 3}), "train", ("Heart",))
    cache = tmp_path / "cache"
    cache.mkdir()
    other = cache / f"{TEMPORARY_PREFIX}1-train.npy"
    with ThreadPoolExecutor(1) as pool:
        with alone_in(cache):
            other.write_bytes(b"what another run is writing")
            found = pool.submit(images.decoded, files, 32, cache)
            with pytest.raises(TimeoutError):
                found.result(timeout=0.3)
            assert other.exists()
        assert np.array_equal(found.result(timeout=60), images.read_images(files, range(3), 32))
    assert not other.exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "cannot be read"),
        (b"<html>not found</html>", "cannot be read"),
        ("truncated", "cannot be read"),
        ("colour", "colour"),
        ("sixteen bits", "stored in Pillow's mode I;16, wanted .* 8-bit L or RGB"),
        ("other size", "16 x 16"),
    ],
)
def test_a_bad_picture_is_refused_by_name_and_never_replaced(tmp_path, content, named):
    """The predecessor silently took the next picture instead."""
    root = prepared(tmp_path, {"Heart": 3})
    files = images.find_images(root, "train", ("Heart",))
    bad = root / files.paths[1]
    if content == "truncated":
        content = bad.read_bytes()[:200]
    if isinstance(content, bytes):
        bad.write_bytes(content)
    elif content == "colour":
        Image.new("RGB", (32, 32), (200, 10, 10)).save(bad)
    elif content == "sixteen bits":
        Image.fromarray(np.full((32, 32), 40000, dtype=np.uint16)).save(bad)
    else:
        Image.new("L", (16, 16)).save(bad)
    with pytest.raises(InputError, match=named) as refused:
        images.decoded(files, 32, tmp_path / "cache")
    assert "a__1.png" in str(refused.value)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [LOCK_NAME]


def test_missing_folders_and_classes_are_named(tmp_path):
    with pytest.raises(InputError, match="wanted the folders train, val and test"):
        images.find_classes(tmp_path / "nowhere")
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="no class folder"):
        images.find_classes(tmp_path)
    root = prepared(tmp_path / "data", {"Heart": 1})
    with pytest.raises(InputError, match="'Heart'"):
        images.find_images(root, "train", ("Breast",))
    (root / "train" / "Kidney").mkdir()
    files = images.find_images(root, "train", ("Heart", "Kidney"))
    with pytest.raises(InputError, match="class Kidney has no image"):
        images.require_every_class(files)


def test_a_vqvae_of_other_training_images_is_named(tiny_data, capsys):
    """After another preparation its training may have held what is test now."""
    train = images.find_images(tiny_data, "train", images.find_classes(tiny_data))
    for sha256, is_same in ((images.listing_sha256(train), True), ("0" * 64, False), (None, None)):
        made_by = {"inputs": {"train_images": {"sha256": sha256}}} if sha256 else {}
        assert images.note_other_training(Path("best.pth"), made_by, train) is is_same
        assert ("best.pth was trained on other images" in capsys.readouterr().out) == (is_same is False)
