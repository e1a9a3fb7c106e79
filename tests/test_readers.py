"""Every kind of picture file: the right pixels, or a reason."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_files import dicom, frames_NHW, interlaced_png, video

from data_preprocessing import readers
from data_preprocessing.readers import (
    Unreadable,
    count_frames,
    even_frames,
    labelled_frames,
    read_frames,
    read_grey,
    to_8_bit,
    to_grey,
    turned,
)


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
    assert (to_8_bit(np.full((2, 3), 1000, np.uint16)) == 0).all()
    with pytest.raises(Unreadable, match="not finite"):
        to_8_bit(np.array([[0.0, np.nan]]))


def test_a_decompression_bomb_is_refused_before_decoding(tmp_path, monkeypatch):
    Image.new("1", (12_000, 4_000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(Unreadable, match="pixels"):
        read_grey(tmp_path / "bomb.png")


def test_picture_names():
    names = (
        "a.PNG",
        "b.Jpg",
        "c.nii.gz",
        "d.TIF",
        "e (1).mhd",
        "f.npy",
        "g.hdf5",
        "h.DCM",
        "i.webm",
        "j.mpeg",
    )
    assert all(map(readers.is_picture_name, names))
    assert not any(
        map(readers.is_picture_name, ("a.csv", "png", "b.gz", "c.json", "d.raw", "e.mat", "f.zip"))
    )


def test_a_reason_is_one_printable_line():
    assert str(Unreadable("a \n file's\t own\x00 word\x1b[31m")) == "a file's own? word?[31m"
    assert len(str(Unreadable("x" * 1000))) == 300


def assert_frames(path, wanted_NHW, **choice):
    """All frames as wanted, asked for in one go, one by one, and out of order."""
    count = len(wanted_NHW)
    assert count_frames(path, **choice) == count
    frames = read_frames(path, range(count), **choice)
    assert all(frame.dtype == np.uint8 for frame in frames)
    np.testing.assert_array_equal(np.stack(frames), wanted_NHW, str(path))
    for number in range(count):
        np.testing.assert_array_equal(read_frames(path, [number], **choice)[0], wanted_NHW[number])
    first, last, again = read_frames(path, [count - 1, 0, count - 1], **choice)
    np.testing.assert_array_equal([first, last, again], [wanted_NHW[-1], wanted_NHW[0], wanted_NHW[-1]])
    with pytest.raises(Unreadable, match=f"no frame {count}"):
        read_frames(path, [count], **choice)
    with pytest.raises(Unreadable, match="no frame -1"):
        read_frames(path, [-1], **choice)
    assert read_frames(path, [], **choice) == []


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (20, 40, 60)).astype(np.uint8)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.mha", "v.mhd", "packed.mha", "packed.mhd"])
def test_volumes_are_read_in_the_axis_order_of_simpleitk(tmp_path, volume, name, axis):
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteImage(sitk.GetImageFromArray(volume), str(tmp_path / name), "packed" in name)
    assert_frames(tmp_path / name, np.moveaxis(volume, axis, 0), axis=axis)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".mhd"])
def test_number_types_and_colours_of_volumes(tmp_path, volume, suffix):
    """Values of 0 to 255 stay as they are in every type that SimpleITK writes."""
    sitk = pytest.importorskip("SimpleITK")
    path = tmp_path / f"v{suffix}"
    for kind in ("i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"):
        values = volume // 2
        sitk.WriteImage(sitk.GetImageFromArray(values.astype(kind)), str(path))
        assert_frames(path, values)
    colours = np.stack([volume, 255 - volume, volume // 2], -1)
    if suffix.startswith(".nii"):
        # As RGB24; SimpleITK would write vectors with five axes.
        sitk.WriteImage(sitk.GetImageFromArray(volume), str(tmp_path / "v.nii"))
        header = bytearray((tmp_path / "v.nii").read_bytes()[:352])
        header[70:72] = np.array([128], "<i2").tobytes()
        data = bytes(header) + colours.tobytes()
        path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(path))
    assert_frames(path, colours)


def test_foreign_byte_order_second_version_and_scaling_of_nifti(tmp_path, volume):
    sitk = pytest.importorskip("SimpleITK")
    path = tmp_path / "v.nii"
    sitk.WriteImage(sitk.GetImageFromArray(volume.astype(np.int16)), str(path))
    data = bytearray(path.read_bytes())
    # value = 0.5 * number + 10
    data[112:120] = np.array([0.5, 10], "<f4").tobytes()
    path.write_bytes(data)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    assert_frames(path, expected.round().astype(np.uint8))

    header = bytearray(544)
    header[:4], header[4:12] = np.array([540], ">i4").tobytes(), b"n+2\0\r\n\x1a\n"
    header[12:14] = np.array([4], ">i2").tobytes()
    header[16:80] = np.array([4, 60, 40, 1, 20, 1, 1, 1], ">i8").tobytes()
    header[168:176] = np.array([544], ">i8").tobytes()
    path.write_bytes(bytes(header) + volume.astype(">i2").tobytes())
    assert_frames(path, volume)


def test_meta_image_with_a_header_before_the_block_and_most_significant_byte_first(tmp_path, volume):
    text = "NDims = 3\nDimSize = 60 40 20\nElementType = MET_USHORT\nElementByteOrderMSB = True\n"
    block = b"seven.." + volume.astype(">u2").tobytes()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "block (1).raw").write_bytes(block)
    for size in (7, -1):
        (tmp_path / "v.mhd").write_text(text + f"HeaderSize = {size}\nElementDataFile = sub/block (1).raw\n")
        assert_frames(tmp_path / "v.mhd", volume)


def test_a_packed_file_is_not_taken_for_its_unpacked_neighbour(tmp_path, volume):
    """SimpleITK reads v.nii when asked for v.nii.gz and both are there."""
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteImage(sitk.GetImageFromArray(volume), str(tmp_path / "v.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(255 - volume), str(tmp_path / "v.nii"))
    assert_frames(tmp_path / "v.nii.gz", volume)
    assert_frames(tmp_path / "v.nii", 255 - volume)


def test_gzip_of_several_members(tmp_path, volume):
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteImage(sitk.GetImageFromArray(volume), str(tmp_path / "v.nii"))
    data = (tmp_path / "v.nii").read_bytes()
    parts = [gzip.compress(data[start : start + 5_000]) for start in range(0, len(data), 5_000)]
    (tmp_path / "m.nii.gz").write_bytes(b"".join(parts))
    assert_frames(tmp_path / "m.nii.gz", volume)
    # Browsers unpack files and keep the name.
    (tmp_path / "plain.nii.gz").write_bytes(data)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(data))
    assert_frames(tmp_path / "plain.nii.gz", volume)
    assert_frames(tmp_path / "packed.nii", volume)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
def test_a_wrong_checksum_refuses_every_frame(tmp_path, volume, suffix):
    """A flipped bit may unpack to other pixels without a word, and only the end tells."""
    sitk = pytest.importorskip("SimpleITK")
    path = tmp_path / f"v{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(volume), str(path), True)
    data = bytearray(path.read_bytes())
    # gzip ends with checksum and length, zlib with the checksum.
    data[-8 if suffix == ".nii.gz" else -4] ^= 1
    path.write_bytes(data)
    for axis in (0, -1):
        with pytest.raises(Unreadable, match="incorrect data check"):
            read_frames(path, [0], axis=axis)
    data[-8 if suffix == ".nii.gz" else -4] ^= 1
    path.write_bytes(data[:-1])
    with pytest.raises(Unreadable, match="ends before its checksum"):
        read_frames(path, [0])


def test_arrays(tmp_path, volume):
    h5py = pytest.importorskip("h5py")
    colours = np.stack([volume, 255 - volume, volume // 2], -1)
    for array, wanted in (
        (volume, volume),
        (volume[..., None], volume),
        (colours, colours),
        (np.asfortranarray(volume), volume),
        (volume.astype(">u2"), volume),
        (volume.astype(np.float32) / 255, volume),
        (volume > 127, (volume > 127) * np.uint8(255)),
        (volume[0], volume[:1]),
        (colours[0], colours[:1]),
    ):
        np.save(tmp_path / "a.npy", array)
        assert_frames(tmp_path / "a.npy", wanted)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("deep/image", data=array, compression="gzip")
            file["label"] = np.arange(5)
        assert_frames(tmp_path / "a.h5", wanted, array="deep/image")
    np.save(tmp_path / "a.npy", volume)
    assert_frames(tmp_path / "a.npy", np.moveaxis(volume, 1, 0), axis=1)
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["image"] = volume
        file["link"] = h5py.SoftLink("/image")
        file["other file"] = h5py.ExternalLink("a.h5", "/deep/image")
    assert_frames(tmp_path / "one.h5", volume)
    for name, reason in (("mask", "no array 'mask'"), ("link", "a link"), ("other file", "a link")):
        with pytest.raises(Unreadable, match=reason):
            read_frames(tmp_path / "one.h5", [0], array=name)


def test_frames_of_pictures(tmp_path, volume):
    pages = [Image.fromarray(page) for page in volume[:4]]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert_frames(tmp_path / "a.tif", volume[:4])
    pages[0].save(tmp_path / "a.gif", save_all=True, append_images=pages[1:])
    assert_frames(tmp_path / "a.gif", volume[:4])
    rgb = [page.convert("RGB") for page in pages]
    for suffix in ("webp", "png"):
        rgb[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=rgb[1:], lossless=True)
        assert_frames(tmp_path / f"a.{suffix}", np.repeat(volume[:4, ..., None], 3, -1))
    with pytest.raises(Unreadable, match="4 frames, wanted a still picture"):
        read_grey(tmp_path / "a.gif")
    np.testing.assert_array_equal(read_grey(tmp_path / "a.gif", number=2), volume[2])
    (tmp_path / "interlaced.png").write_bytes(interlaced_png(volume[0]))
    assert_frames(tmp_path / "interlaced.png", volume[:1])


@pytest.mark.parametrize(
    "name, codec, pixels",
    [
        ("a.avi", "mpeg4", "yuv420p"),
        ("b.avi", "mjpeg", "yuvj420p"),
        ("c.avi", "rawvideo", "gray"),
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mov", "mpeg4", "yuv420p"),
        ("a.mpeg", "mpeg2video", "yuv420p"),
        ("a.mpg", "mpeg1video", "yuv420p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.mkv", "ffv1", "gray"),
    ],
)
def test_videos(tmp_path, name, codec, pixels):
    """The right frame at the right place, also with frames that are stored out of order."""
    frames = frames_NHW(30) // 2
    for number, frame in enumerate(frames):
        frame[:, 2 * number : 2 * number + 6] = 250
    path = tmp_path / name
    video(path, codec, pixels, frames)
    assert count_frames(path) == 30
    wanted = [29, 3, 17, 3]
    read = [to_grey(frame).astype(int) for frame in read_frames(path, wanted)]
    for number, frame in zip(wanted, read, strict=True):
        errors = [np.abs(frame - other).mean() for other in frames.astype(int)]
        assert np.argmin(errors) == number and min(errors) < 6
    np.testing.assert_array_equal(read[1], read[3])
    if pixels == "gray":
        np.testing.assert_array_equal(read[0], frames[29])
    with pytest.raises(Unreadable, match="no frame 30"):
        read_frames(path, [30])


def test_a_video_turned_by_its_header_is_turned_back(tmp_path):
    frames = frames_NHW(3)
    video(tmp_path / "a.mp4", "mpeg4", "yuv420p", frames)
    data = (tmp_path / "a.mp4").read_bytes()
    none = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    clockwise = np.array([0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30], ">i4").tobytes()
    # The first matrix is that of the film, the second that of its picture track.
    place = data.index(none, data.index(none) + 1)
    (tmp_path / "a.mp4").write_bytes(data[:place] + clockwise + data[place + len(none) :])
    (frame,) = read_frames(tmp_path / "a.mp4", [1])
    assert frame.shape == (64, 48, 3)
    assert np.abs(to_grey(frame).astype(int) - np.rot90(frames[1], -1)).mean() < 4


def test_frames_of_a_volume_keep_their_relative_brightness(tmp_path, volume):
    """12-bit frames scaled one by one would all be equally bright."""
    sitk = pytest.importorskip("SimpleITK")
    deep = volume.astype(np.uint16) * np.arange(20, dtype=np.uint16)[:, None, None]
    wanted = (deep * (255 / deep.max())).round()
    sitk.WriteImage(sitk.GetImageFromArray(deep), str(tmp_path / "v.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(deep), str(tmp_path / "v.mha"))
    np.save(tmp_path / "v.npy", deep)
    dicom(tmp_path / "v.dcm", frames=deep)
    for name in ("v.nii.gz", "v.mha", "v.npy", "v.dcm"):
        assert_frames(tmp_path / name, wanted)
    np.testing.assert_array_equal(read_grey(tmp_path / "v.npy", number=1), wanted[1])
    np.save(tmp_path / "v.npy", deep // 2 + 5000)
    # The file changed, so its range is looked up anew.
    assert read_frames(tmp_path / "v.npy", [1])[0].max() < 20


def test_labelled_frames(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    label = np.zeros((20, 40, 60), np.uint8)
    label[[3, 7, 8], 20, 30] = 1, 2, 255
    for name in ("l.nii.gz", "l.mha", "l.nii"):
        sitk.WriteImage(sitk.GetImageFromArray(label), str(tmp_path / name))
        assert labelled_frames(tmp_path / name) == [3, 7, 8]
        assert labelled_frames(tmp_path / name, axis=-1) == [30]
    np.save(tmp_path / "l.npy", label[..., None])
    assert labelled_frames(tmp_path / "l.npy") == [3, 7, 8]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha"])
def test_label_with_one_structure_an_index(tmp_path, suffix):
    """regPro: the first structure, sliced along x; any other reading of four axes is refused."""
    sitk = pytest.importorskip("SimpleITK")
    label = np.zeros((6, 20, 40, 60), np.uint8)
    label[0, 5, 6, [10, 11]] = 1
    label[1, 5, 6, 50] = 1
    path = tmp_path / f"label{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(label, isVector=False), str(path))
    assert count_frames(path, axis=-1) == 60
    assert labelled_frames(path, axis=-1) == [10, 11]
    np.testing.assert_array_equal(read_frames(path, [10], axis=-1)[0], label[0, :, :, 10])
    with pytest.raises(Unreadable, match="4 axes"):
        labelled_frames(path)


def test_even_frames():
    assert even_frames(10, 1) == [5]
    assert even_frames(10, 2) == [2, 7]
    assert even_frames(840, 3) == [140, 420, 700]
    assert even_frames(3, 3) == even_frames(3, 9) == [0, 1, 2]
    assert even_frames(1, 4) == [0] and even_frames(0, 4) == [] and even_frames(7, 0) == []
    for count in range(2, 60):
        for wanted in range(1, count):
            frames = even_frames(count, wanted)
            assert len(frames) == wanted == len(set(frames)) and frames == sorted(frames)
            assert frames[0] >= 0 and frames[-1] < count
            assert max(np.diff(frames), default=0) <= count // wanted + 1


def test_turns(volume):
    colours = np.stack([volume[0]] * 3, -1)
    for frame in (volume[0], colours):
        assert (turned(frame, "") == frame).all()
        assert (turned(frame, "transpose") == frame.swapaxes(0, 1)).all()
        assert (turned(frame, "rotate 180") == np.rot90(frame, 2)).all()
        assert (turned(frame, "flip vertical") == np.flipud(frame)).all()
    with pytest.raises(ValueError, match="rotate 90"):
        turned(volume[0], "rotate 90")


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50"])
def test_dicom(tmp_path, syntax):
    pytest.importorskip("pydicom")
    frames = frames_NHW()
    dicom(tmp_path / "a.dcm", syntax)
    if syntax.endswith(".50"):
        np.testing.assert_allclose(read_frames(tmp_path / "a.dcm", range(5)), frames, atol=8)
    else:
        assert_frames(tmp_path / "a.dcm", frames)
    dicom(tmp_path / "negative.dcm", syntax, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(
        read_frames(tmp_path / "negative.dcm", [3])[0], 255 - read_frames(tmp_path / "a.dcm", [3])[0]
    )


def test_colour_dicom(tmp_path, volume):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.pixels import convert_color_space

    colours = np.stack([volume[:3], 255 - volume[:3], volume[:3] // 2], -1)
    dicom(tmp_path / "rgb.dcm", frames=colours)
    assert_frames(tmp_path / "rgb.dcm", colours)
    dicom(tmp_path / "rle.dcm", pydicom.uid.RLELossless, colours)
    assert_frames(tmp_path / "rle.dcm", colours)
    ybr = convert_color_space(colours, "RGB", "YBR_FULL")
    dicom(tmp_path / "ybr.dcm", frames=ybr, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(read_frames(tmp_path / "ybr.dcm", range(3)), colours, atol=3)
    table = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
    palette = {
        f"{name}PaletteColorLookupTable{part}": value
        for name, entries in zip(("Red", "Green", "Blue"), table, strict=True)
        for part, value in (("Descriptor", [256, 0, 16]), ("Data", (entries * 257).tobytes()))
    }
    dicom(tmp_path / "palette.dcm", frames=volume[:3], PhotometricInterpretation="PALETTE COLOR", **palette)
    assert_frames(tmp_path / "palette.dcm", np.moveaxis(table.astype(np.uint8)[:, volume[:3]], 0, -1))


@pytest.mark.parametrize("kind", ["u1", "u2", "rgb"])
def test_lossless_jpeg_in_dicom(tmp_path, volume, kind):
    sitk = pytest.importorskip("SimpleITK")
    frames = np.stack([volume, 255 - volume, volume // 2], -1) if kind == "rgb" else volume.astype(kind)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(tmp_path / "a.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    writer.Execute(sitk.GetImageFromArray(frames, isVector=kind == "rgb"))
    assert_frames(tmp_path / "a.dcm", frames.astype(np.uint8))


def test_dicom_is_cropped_to_its_ultrasound_region(tmp_path):
    """Names and settings stand around the region; the first region may be a graph."""
    pydicom = pytest.importorskip("pydicom")

    def region(spatial: int, data: int, left: int, top: int, right: int, bottom: int):
        values = pydicom.Dataset()
        values.RegionSpatialFormat, values.RegionDataType = spatial, data
        values.RegionLocationMinX0, values.RegionLocationMinY0 = left, top
        values.RegionLocationMaxX1, values.RegionLocationMaxY1 = right, bottom
        return values

    frames = frames_NHW()
    graph, tissue, second = region(3, 3, 0, 0, 9, 9), region(1, 1, 10, 5, 49, 40), region(1, 1, 0, 0, 63, 47)
    path = tmp_path / "a.dcm"
    dicom(path, SequenceOfUltrasoundRegions=[graph, tissue, second], BurnedInAnnotation="YES")
    assert_frames(path, frames[:, 5:41, 10:50])
    dicom(path, SequenceOfUltrasoundRegions=[region(1, 1, 0, 0, 64, 48)])
    assert_frames(path, frames)
    dicom(path, SequenceOfUltrasoundRegions=[graph])
    assert_frames(path, frames)
    dicom(path, SequenceOfUltrasoundRegions=[region(1, 1, 50, 5, 20, 40)])
    with pytest.raises(Unreadable, match="lies outside the picture"):
        read_frames(path, [0])
    dicom(path, BurnedInAnnotation="YES")
    with pytest.raises(Unreadable, match="names burnt in"):
        count_frames(path)


def test_large_files_are_read_without_holding_them(tmp_path):
    """A quarter of a gigabyte in each format, read in a process that may not hold a tenth of it."""
    shape = (500, 600, 800)
    frame = np.random.default_rng(0).integers(0, 256, shape[1:]).astype(np.uint8)
    meta = "NDims = 3\nDimSize = 800 600 500\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    with open(tmp_path / "v.mha", "wb") as file:
        file.write(meta.encode())
        for _ in range(shape[0]):
            file.write(frame)
    np.lib.format.open_memmap(tmp_path / "v.npy", "w+", np.uint8, shape)[:] = frame
    code = (
        "import sys; from pathlib import Path; path = Path(sys.argv[1]); sys.path[:0] = sys.argv[2:]; "
        "from data_preprocessing.readers import *; from sample_files import peak_megabytes; "
        "before = peak_megabytes(); read_frames(path, even_frames(count_frames(path), 4)); "
        "assert len(labelled_frames(path)) == 500; "
        "print(peak_megabytes() - before)"
    )
    here = Path(__file__).parent
    for name in ("v.mha", "v.npy"):
        command = [sys.executable, "-c", code, str(tmp_path / name), str(here), str(here.parent)]
        assert float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) < 24, name
