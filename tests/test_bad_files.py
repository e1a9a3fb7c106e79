"""A corpus of broken and strange files, made with a fixed seed: nothing crashes, hangs or is half-read.

Each format's whole file is cut at every tenth of its length and scrambled byte by byte; by hand come headers
that claim 10^12 values, files that lead to other files, files that run code when unpickled, entity bombs, zip
bombs, devices and pipes. `test_the_corpus_is_large` states the number. All are read in one child process, so
that a native library that crashes or hangs is seen as a failure and not as a lost test run:

    python tests/test_bad_files.py <folder>     # the child: one JSON line before and one after each file
"""

import faulthandler
import json
import os
import pickle
import re
import subprocess
import sys
import time
import traceback
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the child, which pytest does not start
from sample_files import dicom, frames_NHW, interlaced_png, peak_megabytes, video

from data_preprocessing import readers, tables
from usvar.errors import InputError

SEED = 20_260
# How often each whole file is scrambled.
SCRAMBLED = 30
# No single file may take longer.
SECONDS_EACH = 10
# Peak memory of the child with all libraries loaded; some headers below claim a million times more.
MOST_MEGABYTES = 400
COLUMNS = ("name", "label")


def whole_pictures(folder: Path) -> None:
    """Still and animated pictures of every kind."""
    frames = [Image.fromarray(frame) for frame in frames_NHW()]
    grey, rgb = frames[0], frames[0].convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    grey.save(folder / "grey.png")
    rgb.save(folder / "rgb.png")
    rgb.convert("RGBA").save(folder / "alpha.png")
    rgb.quantize(64).save(folder / "palette.png")
    Image.fromarray(frames_NHW()[0].astype(np.uint16) * 200).save(folder / "deep.png")
    (folder / "interlaced.png").write_bytes(interlaced_png(frames_NHW()[0]))
    rgb.save(folder / "rgb.jpg", quality=90)
    rgb.save(folder / "progressive.jpg", progressive=True)
    rgb.save(folder / "turned.jpg", exif=exif)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.save(folder / "rgb.bmp")
    grey.save(folder / "grey.tif")
    rgb.save(folder / "lzw.tif", compression="tiff_lzw")
    rgb.save(folder / "deflate.tif", compression="tiff_deflate")
    frames[0].save(folder / "pages.tif", save_all=True, append_images=frames[1:])
    grey.save(folder / "still.gif")
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:])
    rgb.save(folder / "lossy.webp")
    rgb.save(folder / "lossless.webp", lossless=True)
    rgb.save(
        folder / "film.webp",
        save_all=True,
        append_images=[f.convert("RGB") for f in frames[1:]],
        lossless=True,
    )
    grey.save(folder / "grey.pgm")


def whole_volumes(folder: Path) -> None:
    """NIfTI, MetaImage, NPY and HDF5."""
    import h5py
    import SimpleITK

    image = SimpleITK.GetImageFromArray(frames_NHW())
    for name in ("volume.nii", "packed.nii.gz", "volume.mha", "volume.mhd"):
        SimpleITK.WriteImage(image, str(folder / name))
    SimpleITK.WriteImage(image, str(folder / "packed.mha"), True)
    SimpleITK.WriteImage(SimpleITK.Cast(image, SimpleITK.sitkFloat32), str(folder / "float.nii.gz"))
    np.save(folder / "array.npy", frames_NHW()[..., None])
    with h5py.File(folder / "plain.h5", "w") as file:
        file["image"] = frames_NHW()
    with h5py.File(folder / "packed.hdf5", "w") as file:
        file.create_dataset(
            "image", data=frames_NHW(), chunks=(1, 48, 64), compression="gzip", fletcher32=True
        )


def whole_dicoms(folder: Path) -> None:
    """Native, RLE, baseline JPEG and (through SimpleITK) lossless JPEG."""
    import pydicom
    import SimpleITK

    dicom(folder / "native.dcm")
    dicom(folder / "rle.dcm", pydicom.uid.RLELossless)
    dicom(folder / "jpeg.dcm", pydicom.uid.JPEGBaseline8Bit)
    writer = SimpleITK.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(folder / "lossless.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    writer.Execute(SimpleITK.GetImageFromArray(frames_NHW()))


VIDEOS = {
    "mpeg4.avi": ("mpeg4", "yuv420p"),
    "mjpeg.avi": ("mjpeg", "yuvj420p"),
    "raw.avi": ("rawvideo", "gray"),
    "ffv1.mkv": ("ffv1", "gray"),
    "h264.mp4": ("libx264", "yuv420p"),
    "mpeg4.mov": ("mpeg4", "yuv420p"),
    "mpeg2.mpeg": ("mpeg2video", "yuv420p"),
    "vp9.webm": ("libvpx-vp9", "yuv420p"),
}


def whole_lists(folder: Path) -> None:
    """CSV, XLSX, XML and JSON."""
    from openpyxl import Workbook

    rows = [("name", "label"), *((f"bus_{i:04}.png", ("benign", "malignant")[i % 2]) for i in range(20))]
    (folder / "list.csv").write_text("\n".join(map(",".join, rows)))
    book = Workbook()
    for row in rows:
        book.active.append(row)
    book.save(folder / "list.xlsx")
    points = [[3 * i, 2 * i] for i in range(20)]
    (folder / "outline.json").write_text(json.dumps({"shapes": [{"label": "nerve", "points": points}]}))
    marks = "".join(f"<mark><image>{i}</image><svg>{json.dumps(points)}</svg></mark>" for i in range(4))
    (folder / "case.xml").write_text(f"<?xml version='1.0'?><case><tirads>4a</tirads>{marks}</case>")


def make_whole(folder: Path) -> None:
    """One good file of each format."""
    whole_pictures(folder)
    whole_volumes(folder)
    whole_dicoms(folder)
    for name, (codec, pixels) in VIDEOS.items():
        video(folder / name, codec, pixels)
    whole_lists(folder)


def break_files(whole: Path, folder: Path, scrambled: int = SCRAMBLED, seed: int = SEED) -> None:
    """Cut each whole file at every tenth (`<stem>~cut3.suffix`) and scramble it (`<stem>~bytes7.suffix`)."""
    rng = np.random.default_rng(seed)
    for path in sorted(whole.iterdir()):
        data = path.read_bytes()
        stem, dot, suffix = path.name.partition(".")
        for tenth in range(10):
            (folder / f"{stem}~cut{tenth}{dot}{suffix}").write_bytes(data[: len(data) * tenth // 10])
        for trial in range(scrambled):
            values = np.frombuffer(data, np.uint8).copy()
            # Half of them near the start, where the header is.
            reach = len(values) if trial % 2 else min(len(values), 400)
            places = rng.integers(0, reach, 1 + trial % 6)
            values[places] = rng.integers(0, 256, len(places))
            (folder / f"{stem}~bytes{trial}{dot}{suffix}").write_bytes(values.tobytes())
    # The header of volume.mhd names volume.raw; here is one for each broken block.
    (folder / "volume.raw").write_bytes((whole / "volume.raw").read_bytes())
    for part in sorted(folder.glob("volume~*.raw")):
        part.with_suffix(".raw.mhd").write_text(
            (whole / "volume.mhd").read_text().replace("volume.raw", part.name)
        )


def claim_too_much(folder: Path, whole: Path) -> None:
    """Headers that claim up to 10^12 values over a few bytes."""
    import h5py
    import pydicom

    def png(width: int, height: int) -> bytes:
        data = bytearray((folder / "small.png").read_bytes())
        data[16:24] = width.to_bytes(4) + height.to_bytes(4)
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
        return bytes(data)

    grey = Image.fromarray(frames_NHW()[0])
    grey.save(folder / "small.png")
    (folder / "claims.png").write_bytes(png(2**31 - 1, 2**31 - 1))
    (folder / "claims area.png").write_bytes(png(9_999, 9_999))
    (folder / "small.png").unlink()
    # The canvas of an animation, 2^14 pixels a side.
    webp = bytearray((whole / "film.webp").read_bytes())
    webp[24:30] = b"\xff\x3f\0" * 2
    (folder / "claims.webp").write_bytes(webp)
    # The second page says that the first comes next.
    tif = bytearray((whole / "pages.tif").read_bytes())
    second = int.from_bytes(tif[4:8], "little")
    second += 2 + 12 * int.from_bytes(tif[second : second + 2], "little")
    second = int.from_bytes(tif[second : second + 4], "little")
    link = second + 2 + 12 * int.from_bytes(tif[second : second + 2], "little")
    tif[link : link + 4] = tif[4:8]
    (folder / "loop~.tif").write_bytes(tif)
    grey.convert("RGB").save(folder / "claims.bmp")
    data = bytearray((folder / "claims.bmp").read_bytes())
    data[18:26] = (60_000).to_bytes(4, "little") * 2
    (folder / "claims.bmp").write_bytes(data)
    Image.new("1", (12_000, 4_000)).save(folder / "bomb.png")
    Image.new("1", (9_000, 9_000)).save(folder / "bomb.tif", compression="tiff_deflate")
    Image.new("L", (40_000, 30)).save(folder / "very wide.png")
    Image.new("L", (1, 1)).save(folder / "one pixel.png")

    header = np.zeros(352, np.uint8)
    header[:4] = np.array([348], "<i4").view(np.uint8)
    header[40:56] = np.array([3, 9999, 4000, 25_000, 1, 1, 1, 1], "<i2").view(np.uint8)
    header[70:72] = np.array([64], "<i2").view(np.uint8)
    header[344:348] = np.frombuffer(b"n+1\0", np.uint8)
    (folder / "claims.nii").write_bytes(header.tobytes() + bytes(5_000))
    packer = zlib.compressobj(9, wbits=31)
    packed = packer.compress(header.tobytes() + bytes(5_000)) + packer.flush()
    (folder / "claims.nii.gz").write_bytes(packed)
    second = np.zeros(544, np.uint8)
    second[:4] = np.array([540], "<i4").view(np.uint8)
    second[4:8] = np.frombuffer(b"n+2\0", np.uint8)
    second[12:14] = np.array([2], "<i2").view(np.uint8)
    second[16:80] = np.array([3, 1000, 1000, 10**12, 1, 1, 1, 1], "<i8").view(np.uint8)
    (folder / "claims second.nii").write_bytes(second.tobytes() + bytes(5_000))
    meta = "ObjectType = Image\nNDims = 3\nElementType = MET_UCHAR\nCompressedData = {}\n"
    for name, packed in (("claims.mha", False), ("claims packed.mha", True)):
        text = meta.format(packed) + "DimSize = 1000 1000 1000000\nElementDataFile = LOCAL\n"
        (folder / name).write_bytes(text.encode() + zlib.compress(bytes(5_000)))
    (folder / "endless.mha").write_bytes(b"a = 1\n" * 20_000)
    for name, shape in (("claims.npy", (10**6, 1000, 1000)), ("overflow.npy", (2**40, 2**40, 2**40))):
        array = {"descr": "|u1", "fortran_order": False, "shape": shape}
        with open(folder / name, "wb") as file:
            np.lib.format.write_array_header_1_0(file, array)
            file.write(bytes(5_000))
    with h5py.File(folder / "claims.h5", "w") as file:
        file.create_dataset("image", (10**6, 1000, 1000), "u1", chunks=(1, 1000, 1000))
    with h5py.File(folder / "claims packed.h5", "w") as file:
        packed = file.create_dataset(
            "image", (10**6, 1000, 1000), "u1", chunks=(1, 1000, 1000), compression=9
        )
        packed[0] = 1
    with h5py.File(folder / "claims pieces.h5", "w") as file:
        shape = (1, 30_000, 30_000)
        pieces = file.create_dataset("image", shape, "u1", chunks=shape, compression=9)
        pieces.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(900_000_000 // 100), 9) * 100)
    dicom(
        folder / "deflated.dcm", pydicom.uid.DeflatedExplicitVRLittleEndian, np.zeros((9_000, 48, 64), "u1")
    )
    dicom(folder / "claims.dcm", Rows=65_535, Columns=65_535)
    dicom(folder / "claims frames.dcm", NumberOfFrames=2_000_000_000)
    dicom(folder / "claims packed.dcm", pydicom.uid.JPEGBaseline8Bit, NumberOfFrames=2_000_000_000)
    with zipfile.ZipFile(folder / "bomb.xlsx", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("xl/workbook.xml", bytes(70 << 20))
    (folder / "bomb.xml").write_text(
        "<!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'>"
        + "".join(f"<!ENTITY {chr(98 + i)} '{f'&{chr(97 + i)};' * 10}'>" for i in range(9))
        + "]><x>&j;</x>"
    )
    (folder / "deep.xml").write_text("<a>" * 100_000)
    (folder / "deep.json").write_text("[" * 1_000_000)
    (folder / "digits.json").write_text("1" * 100_000)
    (folder / "wide.csv").write_text("name,label\n" + "a" * 1_000_000 + ",b\n")


def lead_elsewhere(folder: Path, outside: Path) -> None:
    """Files that would open another file, reach a device, or run code."""
    import h5py

    (outside / "secret.raw").write_bytes(frames_NHW().tobytes())
    (outside / "secret.txt").write_text("secret")
    meta = "ObjectType = Image\nNDims = 3\nElementType = MET_UCHAR\nDimSize = 64 48 5\nElementDataFile = {}\n"
    (folder / "up.mhd").write_text(meta.format(f"../{outside.name}/secret.raw"))
    (folder / "absolute.mhd").write_text(meta.format(outside / "secret.raw"))
    (folder / "link.raw").symlink_to(outside / "secret.raw")
    (folder / "link.mhd").write_text(meta.format("link.raw"))
    (folder / "zero.raw").symlink_to("/dev/zero")
    (folder / "device.mhd").write_text(meta.format("zero.raw"))
    (folder / "list.mhd").write_text(meta.format(f"LIST\n{outside / 'secret.raw'}"))
    (folder / "gone.mhd").write_text(meta.format("gone.raw"))
    with h5py.File(outside / "secret.h5", "w") as file:
        file["image"] = frames_NHW()
    with h5py.File(folder / "external link.h5", "w") as file:
        file["image"] = h5py.ExternalLink(str(outside / "secret.h5"), "/image")
    with h5py.File(folder / "external raw.h5", "w") as file:
        blocks = [(str(outside / "secret.raw"), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("image", (5, 48, 64), "u1", external=blocks)
    with h5py.File(folder / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((5, 48, 64), "u1")
        layout[:] = h5py.VirtualSource(str(outside / "secret.h5"), "image", (5, 48, 64))
        file.create_virtual_dataset("image", layout)
    video(outside / "secret.mp4", "mpeg4", "yuv420p")
    (folder / "playlist.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{outside / 'secret.mp4'}\n#EXT-X-ENDLIST\n")
    (folder / "inside.raw").write_bytes((outside / "secret.mp4").read_bytes())
    (folder / "concat.avi").write_text("ffconcat version 1.0\nfile 'inside.raw'\n")
    (folder / "entity.xml").write_text(
        f"<!DOCTYPE x [<!ENTITY a SYSTEM 'file://{outside / 'secret.txt'}'>]><x>&a;</x>"
    )

    class RunsCode:
        def __reduce__(self):
            return os.mkdir, (str(outside / "code was run"),)

    np.save(folder / "pickle.npy", np.array([RunsCode()], object), allow_pickle=True)
    (folder / "bare pickle.npy").write_bytes(pickle.dumps(RunsCode()))
    np.savez(folder / "archive.npz", frames_NHW())
    (folder / "archive.npz").rename(folder / "archive.npy")
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "link to nothing.nii").symlink_to(folder / "nothing.nii")
    for suffix in ("png", "nii", "mha", "npy", "h5", "dcm", "avi"):
        (folder / f"folder.{suffix}").mkdir()


def be_something_else(folder: Path) -> None:
    """Good files of another kind, and files that hold nothing of use."""
    import h5py

    page = "<!DOCTYPE html><html><body>404 Not Found</body></html>" * 20
    suffixes = (
        "png jpg bmp tif gif webp pgm nii nii.gz mha mhd npy h5 hdf5 dcm avi mp4 mpeg mpg mov webm mkv xlsx"
    )
    for suffix in (*suffixes.split(), "xml", "json", "csv"):
        (folder / f"page.{suffix}").write_text(page)
        (folder / f"zeros.{suffix}").write_bytes(bytes(3_000))
    dicom(folder / "no picture.dcm", Rows=None, Columns=None)
    dicom(folder / "names.dcm", BurnedInAnnotation="YES")
    dicom(folder / "unknown.dcm")
    data = (folder / "unknown.dcm").read_bytes()
    (folder / "unknown.dcm").write_bytes(data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.9.9\0"))
    np.save(folder / "text.npy", np.array(["a", "b"]))
    np.save(folder / "record.npy", np.zeros((48, 64), [("a", "u1"), ("b", "u1")]))
    np.save(folder / "complex.npy", np.zeros((48, 64), np.complex64))
    np.save(folder / "five axes.npy", np.zeros((2, 2, 2, 48, 64), np.uint8))
    np.save(folder / "one axis.npy", np.zeros(3000, np.uint8))
    np.save(folder / "no values.npy", np.zeros((0, 48, 64), np.uint8))
    np.save(folder / "not a number.npy", np.full((5, 48, 64), np.nan, np.float32))
    np.save(folder / "endless.npy", np.full((5, 48, 64), np.inf, np.float64))
    with h5py.File(folder / "two arrays.h5", "w") as file:
        file["image"] = file["mask"] = frames_NHW()
        file["label"] = frames_NHW()
    with h5py.File(folder / "text.h5", "w") as file:
        file["image"] = ["a", "b"]


def read_any(path: Path) -> list:
    """What the project would read from a file of this suffix: frames, or the content of a list."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".xlsx"):
        return tables.read_rows(path, COLUMNS)
    if suffix == ".json":
        return [tables.read_json(path)]
    if suffix == ".xml":
        return [[(element.tag, element.text) for element in tables.read_xml(path).iter()]]
    count = readers.count_frames(path)
    frames = readers.read_frames(path, readers.even_frames(count, 5))
    for frame in frames:
        assert frame.dtype == np.uint8 and frame.ndim in (2, 3) and frame.shape[2:] in ((), (3,))
    return frames


def child(folder: Path) -> None:
    """Read all files of a folder, one JSON line before and one after each."""
    for path in sorted(path for path in folder.iterdir() if path.suffix != ".raw"):
        print(json.dumps({"begin": path.name}), flush=True)
        faulthandler.dump_traceback_later(SECONDS_EACH, exit=True)
        start = time.perf_counter()
        outcome = {"name": path.name}
        try:
            read_any(path)
        except (readers.Unreadable, InputError) as error:
            outcome["refused"] = str(error)
        except Exception:
            outcome["raised"] = traceback.format_exc()
        faulthandler.cancel_dump_traceback_later()
        outcome["seconds"] = time.perf_counter() - start
        outcome["megabytes"] = peak_megabytes()
        print(json.dumps(outcome), flush=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, Path]:
    """Folders of the whole files, of the broken ones, and the folder that no file may lead to."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("whole", "broken", "outside")}
    make_whole(folders["whole"])
    break_files(folders["whole"], folders["broken"])
    claim_too_much(folders["broken"], folders["whole"])
    lead_elsewhere(folders["broken"], folders["outside"])
    be_something_else(folders["broken"])
    return folders


@pytest.fixture(scope="module")
def outcomes(corpus) -> dict[str, dict]:
    """What the child said of each broken file, by name; it fails here when it dies or hangs."""
    command = [sys.executable, __file__, str(corpus["broken"])]
    run = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300, check=False)
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.returncode == 0, f"died or hung at {lines[-1]}: {run.stderr[-2000:]}"
    assert "Secret" not in run.stdout + run.stderr, "a patient's name was printed"
    return {line["name"]: line for line in lines if "name" in line}


def test_the_corpus_is_large(corpus, outcomes):
    """More than 1,900 files, most of them refused; scrambled pixels, for one, are still pixels."""
    files = {path.name for path in corpus["broken"].iterdir() if path.suffix != ".raw"}
    assert outcomes.keys() == files
    kinds = Counter(name.rpartition(".")[2] for name in files)
    refused = sum("refused" in outcome for outcome in outcomes.values())
    print(f"{len(files)} bad files, {refused} refused: {dict(kinds)}")
    assert len(files) >= 1_900 and refused >= 1_200
    assert {kind for kind, count in kinds.items() if count < 20} == {"mpg"}


def test_nothing_but_unreadable_and_input_errors(outcomes):
    raised = {name: outcome["raised"] for name, outcome in outcomes.items() if "raised" in outcome}
    assert not raised, "\n".join(f"{name}: {text}" for name, text in raised.items())


def test_each_reason_is_one_line_without_the_folder(corpus, outcomes):
    for name, outcome in outcomes.items():
        reason = outcome.get("refused", "a")
        assert reason and "\n" not in reason and len(reason) < 500, (name, reason)
        # The lists' errors begin with the path as the user gave it; no other path may be in a reason.
        rest = reason.removeprefix(str(corpus["broken"] / name))
        assert str(corpus["broken"].parent) not in rest, (name, reason)


def test_time_and_memory_stay_small(outcomes):
    assert max(outcome["seconds"] for outcome in outcomes.values()) < SECONDS_EACH
    assert max(outcome["megabytes"] for outcome in outcomes.values()) < MOST_MEGABYTES


def test_a_cut_file_is_refused_or_gives_its_very_own_frames(corpus, outcomes):
    """Cut at every tenth: what is read at all equals what the whole file gives, value by value."""
    partly = Counter()
    for name in sorted(name for name in outcomes if "~cut" in name and "refused" not in outcomes[name]):
        stem, _, rest = name.partition("~cut")
        whole = corpus["whole"] / f"{stem}.{'mhd' if rest.endswith('raw.mhd') else rest.split('.', 1)[1]}"
        cut = corpus["broken"] / name
        if cut.suffix == ".csv":
            # Text that ends early looks like text that ends: only its last row can be wrong.
            rows, all_rows = read_any(cut), read_any(whole)
            assert rows[:-1] == all_rows[: len(rows) - 1]
        else:
            count = readers.count_frames(cut)
            for number, frame in enumerate(readers.read_frames(cut, range(count))):
                np.testing.assert_array_equal(frame, readers.read_frames(whole, [number])[0], name)
        partly[cut.suffix] += 1
    # A stream has whole frames before its cut; a still picture, an array and a sheet have not.
    assert set(partly) <= {".mkv", ".webm", ".mpeg", ".csv"}, partly


def test_what_claims_too_much_leads_elsewhere_or_is_something_else_is_refused(corpus, outcomes):
    by_hand = {name for name in outcomes if "~" not in name}
    assert len(by_hand) >= 100
    assert not {name for name in by_hand if "refused" not in outcomes[name]}
    assert not (corpus["outside"] / "code was run").exists()
    assert "entities" in outcomes["bomb.xml"]["refused"] and "entities" in outcomes["entity.xml"]["refused"]
    for name in ("up.mhd", "absolute.mhd", "link.mhd", "device.mhd"):
        assert "leads out of its folder" in outcomes[name]["refused"]
    for name in ("pipe.png", "pipe.mp4", "device.png", "folder.nii"):
        assert outcomes[name]["refused"] == "no regular file"
    for name in outcomes:
        # Refused by what the header claims, before anything else is tried.
        if name.startswith("claims") and name.endswith((".nii", ".gz", ".mha", ".dcm", ".h5")):
            assert re.search(r"claims \d+|pieces of more|wanted at most", outcomes[name]["refused"]), name
    assert "names burnt in" in outcomes["names.dcm"]["refused"]
    assert "0 arrays in it" in outcomes["external link.h5"]["refused"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any file")
def test_a_file_without_the_right_to_read_is_refused(tmp_path):
    for suffix in ("png", "nii", "mha", "npy", "h5", "dcm", "avi"):
        path = tmp_path / f"locked.{suffix}"
        path.write_bytes(b"x" * 100)
        path.chmod(0)
        with pytest.raises(readers.Unreadable, match="cannot be opened"):
            readers.count_frames(path)


if __name__ == "__main__":
    child(Path(sys.argv[1]))
