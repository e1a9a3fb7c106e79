"""Every kind of picture file: the right pixels, or a reason."""

import numpy as np
import pytest
from PIL import Image

from data_preprocessing import readers
from data_preprocessing.readers import Unreadable, read_grey, to_8_bit


@pytest.fixture
def grey() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60)).astype(np.uint8)


def test_lossless_kinds_give_the_same_grey(tmp_path, grey):
    rgb = Image.fromarray(grey).convert("RGB")
    alpha = Image.fromarray(255 - grey)
    kinds = {
        "l.png": Image.fromarray(grey),
        "rgb.bmp": rgb,
        "rgba.png": Image.merge("RGBA", (*rgb.split(), alpha)),
        "la.png": Image.merge("LA", (Image.fromarray(grey), alpha)),
        "palette.png": Image.fromarray(grey).convert("P"),
        "cmyk.tif": Image.merge("CMYK", [Image.fromarray(255 - grey)] * 3 + [Image.new("L", (60, 40))]),
        "l.TIFF": Image.fromarray(grey),
    }
    for name, picture in kinds.items():
        picture.save(tmp_path / name)
        array = read_grey(tmp_path / name)
        assert array.dtype == np.uint8 and array.shape == (40, 60)
        np.testing.assert_allclose(array.astype(int), grey, atol=1, err_msg=name)


def test_sixteen_bits_are_scaled_by_their_own_range(tmp_path, grey):
    """Pillow's own conversion of 16 bits clips everything above 255 to white."""
    deep = grey.astype(np.uint16) * 16 + 100  # 12 bits used
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "float.tif")
    for name in ("deep.png", "deep.tif", "float.tif"):
        np.testing.assert_allclose(read_grey(tmp_path / name).astype(int), grey, atol=1, err_msg=name)


def test_exif_rotation_is_applied(tmp_path, grey):
    smooth = np.asarray(Image.fromarray(grey).resize((60, 40), Image.Resampling.BOX, (0, 0, 6, 4)))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned by 90 degrees clockwise
    Image.fromarray(smooth).save(tmp_path / "turned.jpg", exif=exif, quality=98)
    array = read_grey(tmp_path / "turned.jpg")
    assert array.shape == (60, 40)
    assert np.corrcoef(array.ravel(), np.rot90(smooth, -1).ravel())[0, 1] > 0.99


def test_transposed_pictures_are_turned(tmp_path, grey):
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert (read_grey(tmp_path / "a.png", "transpose") == grey.T).all()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha"])
def test_itk_files(tmp_path, grey, suffix):
    sitk = pytest.importorskip("SimpleITK")
    path = str(tmp_path / f"frame{suffix}")
    sitk.WriteImage(sitk.GetImageFromArray(grey.astype(np.float32)), path)
    assert (read_grey(tmp_path / f"frame{suffix}") == grey).all()
    sitk.WriteImage(sitk.GetImageFromArray(grey[None]), path)
    assert (read_grey(tmp_path / f"frame{suffix}") == grey).all()
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([grey] * 5)), path)
    with pytest.raises(Unreadable, match="5 frames, wanted a still picture"):
        read_grey(tmp_path / f"frame{suffix}")
    (tmp_path / f"frame{suffix}").write_bytes(b"broken")
    with pytest.raises(Unreadable):
        read_grey(tmp_path / f"frame{suffix}")


def test_to_8_bit():
    assert (to_8_bit(np.array([[0.0, 254.6]])) == [[0, 255]]).all()
    assert (to_8_bit(np.array([[-1.0, 1.0]])) == [[0, 255]]).all()
    assert (to_8_bit(np.array([[0, 100, 4000]], np.uint16)) == [[0, 6, 255]]).all()
    with pytest.raises(Unreadable, match="not finite"):
        to_8_bit(np.array([[0.0, np.nan]]))


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "tif", "gif", "webp"])
def test_broken_files_are_refused_never_a_crash(tmp_path, grey, kind):
    """Cut at many lengths and with scrambled bytes: pixels of the right shape, or Unreadable."""
    path = tmp_path / f"a.{kind}"
    Image.fromarray(grey).convert("RGB").save(path)
    data = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for trial in range(60):
        if trial % 2:
            broken = data[: int(len(data) * rng.random())]
        else:
            scrambled = np.frombuffer(data, np.uint8).copy()
            scrambled[rng.integers(0, len(data), 6)] = rng.integers(0, 256, 6)
            broken = scrambled.tobytes()
        path.write_bytes(broken)
        try:
            assert read_grey(path).ndim == 2
        except Unreadable as error:
            refused += 1
            assert "\n" not in str(error) and str(tmp_path) not in str(error)
    assert refused >= 20


def test_a_decompression_bomb_is_refused_before_decoding(tmp_path, monkeypatch):
    Image.new("1", (12_000, 4_000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(Unreadable, match="pixels"):
        read_grey(tmp_path / "bomb.png")


def test_picture_names():
    assert all(map(readers.is_picture_name, ("a.PNG", "b.Jpg", "c.nii.gz", "d.TIF")))
    assert not any(map(readers.is_picture_name, ("a.csv", "png", "b.gz", "c.json")))
