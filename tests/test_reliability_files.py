"""Prepared pictures and token archives that are broken, strange, hostile or very many."""

import io
import os
import random
import shutil
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_files import interlaced_png

import tokenize_multiscale_maps
from usvar import images, tokens
from usvar.errors import InputError
from usvar.files import LOCK_NAME

SIDE = 32


def png(picture: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    return file.getvalue()


def grey(side: int = SIDE) -> Image.Image:
    noise = np.random.default_rng(0).integers(1, 255, (side, side), dtype=np.uint8)
    return Image.fromarray(noise)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a picture of any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return png(grey(), exif=exif)


def strange_pictures() -> dict[str, bytes]:
    """Files named .png that are no prepared picture, by what is wrong."""
    plain, jpeg = png(grey().convert("RGB")), io.BytesIO()
    grey().save(jpeg, "JPEG")
    cmyk = io.BytesIO()
    Image.new("CMYK", (SIDE, SIDE)).save(cmyk, "JPEG")
    found = {f"cut at {tenth}/10": plain[: len(plain) * tenth // 10] for tenth in range(10)}
    return found | {
        "16 bits": png(Image.fromarray(np.full((SIDE, SIDE), 40000, dtype=np.uint16))),
        "palette": png(Image.new("RGB", (SIDE, SIDE), (200, 10, 10)).quantize(4)),
        "grey palette": png(grey().convert("P")),
        "1 bit": png(grey().convert("1")),
        "grey and alpha": png(grey().convert("LA")),
        "alpha": png(grey().convert("RGBA")),
        "a transparent grey": png(grey(), transparency=7),
        "CMYK": cmyk.getvalue(),
        "JPEG": jpeg.getvalue(),
        "colour": png(Image.new("RGB", (SIDE, SIDE), (200, 10, 10))),
        "turned by EXIF": turned(),
        "animated": png(grey(), save_all=True, append_images=[Image.new("L", (SIDE, SIDE), 9)]),
        "1 x 1": png(Image.new("L", (1, 1))),
        "very wide": png(Image.new("L", (60000, 1))),
        "bomb": bomb(30000, 30000),
        "small bomb": bomb(10000, 10000),
        "a text that unpacks to 80 MB": plain[:33]
        + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80 << 20), 9))
        + plain[33:],
        "HTML": b"<!doctype html><html>not found</html>",
        "zeros": bytes(1000),
    }


@pytest.fixture
def prepared(tmp_path) -> Path:
    for split in images.SPLITS:
        for i in range(3):
            images.save_png(tmp_path / "data" / split / "Heart" / f"a__{i}.png", np.asarray(grey()))
    return tmp_path / "data"


@pytest.mark.parametrize("what", strange_pictures())
def test_a_strange_picture_is_refused_by_name_in_every_loader(prepared, tmp_path, what):
    files = images.find_images(prepared, "train", ("Heart",))
    bad = prepared / files.paths[1]
    bad.write_bytes(strange_pictures()[what])
    tracemalloc.start()
    for load in (
        lambda: images.decoded(files, SIDE, tmp_path / "cache"),
        lambda: images.read_images(files, [0, 1], SIDE),
    ):
        with pytest.raises(InputError, match=r"a__1\.png"):
            load()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20, "the bomb was decoded"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [LOCK_NAME]


@pytest.mark.parametrize("size", [(10000, 10000), (5000, 1)])
def test_a_picture_larger_than_any_prepared_one_is_not_decoded(tmp_path, size):
    """Whole and valid: 100 million black pixels are a file of 100 kB."""
    (tmp_path / "a.png").write_bytes(png(Image.new("L", size)))
    with pytest.raises(InputError, match=f"is {size[0]} x {size[1]} pixels"):
        images.read_image(tmp_path / "a.png")


def test_an_interlaced_picture_is_read_as_it_is(prepared):
    """Nothing is wrong with it: Adam7 is another order of the same pixels."""
    pixels = np.asarray(grey(8))
    path = prepared / "train" / "Heart" / "a__0.png"
    path.write_bytes(interlaced_png(pixels))
    assert np.array_equal(images.read_image(path), pixels)


def test_pictures_broken_by_a_fuzzer_are_read_whole_or_refused(tmp_path):
    """400 files: each is refused in one clear error, or has pixels that Pillow alone reads too."""
    content, draw, path = png(grey().convert("RGB")), random.Random(0), tmp_path / "a.png"
    refused = 0
    for _ in range(400):
        broken = bytearray(content)
        for _ in range(draw.choice((1, 2, 20))):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        path.write_bytes(broken)
        try:
            assert images.read_image(path).shape
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 380


@pytest.mark.parametrize("what", ["pipe", "device", "folder", "another file", "dangling link"])
def test_what_is_no_plain_picture_in_a_class_folder_is_refused(prepared, what):
    """A pipe would be waited for without end; a .jpg was left out without a word."""
    strange = prepared / "train" / "Heart" / ("b.jpg" if what == "another file" else "b.png")
    if what == "pipe":
        os.mkfifo(strange)
    elif what == "device":
        strange.symlink_to("/dev/zero")
    elif what == "folder":
        strange.mkdir()
    elif what == "another file":
        strange.write_bytes(b"x")
    else:
        strange.symlink_to(prepared / "nowhere")
    with pytest.raises(InputError, match=f"{strange.name} is no plain PNG file"):
        images.find_images(prepared, "train", ("Heart",))


def test_what_a_killed_preparation_left_is_not_an_image(prepared):
    shutil.copy(prepared / "train" / "Heart" / "a__0.png", prepared / "train" / "Heart" / ".tmp-7-a__3.png")
    assert len(images.find_images(prepared, "train", ("Heart",))) == 3


def test_a_picture_without_permission_is_refused_by_name(prepared, tmp_path):
    path = prepared / "train" / "Heart" / "a__1.png"
    for folder in path.parents[: len(path.parents) - len(tmp_path.parents) + 3]:
        folder.chmod(0o755) if folder.is_relative_to(tmp_path) else None
    path.chmod(0)
    own = os.geteuid()
    if own == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(InputError, match=r"a__1\.png cannot be read \(\[Errno 13\] Permission denied"):
            images.read_image(path)
    finally:
        if own == 0:
            os.seteuid(own)


def test_a_cut_cache_of_pictures_is_refused_by_name(prepared, tmp_path):
    files = images.find_images(prepared, "train", ("Heart",))
    images.decoded(files, SIDE, tmp_path / "cache")
    (cache,) = (tmp_path / "cache").glob("*.npy")
    cache.write_bytes(cache.read_bytes()[:1000])
    with pytest.raises(InputError, match=f"{cache.name} is damaged .*delete it"):
        images.decoded(files, SIDE, tmp_path / "cache")


# Token archives.
def write_maps(folder: Path, count: int, views: int = 1, side: int = 4) -> None:
    draw, length = np.random.default_rng(0), 1 + side * side
    tokens.write_token_maps(
        folder,
        draw.integers(0, 16, (count, length)).astype(np.uint16),
        np.arange(count) % 2,
        np.array([f"train/A/{i}.png" for i in range(count)]),
        np.arange(count) % views,
        (1, side),
        ["A", "B"],
        {"vocab_size": 16, "image_size": 64, "inputs": {"vqvae": {"sha256": "abc"}}},
    )


def test_archives_broken_by_a_fuzzer_are_read_whole_or_refused(tmp_path):
    """600 archives, changed, cut or lengthened: one clear error, or the very arrays that were written."""
    write_maps(tmp_path, 40)
    path, draw = tmp_path / tokens.FILE_NAME, random.Random(0)
    whole, content = tokens.read_token_maps(tmp_path), path.read_bytes()
    wanted = [np.array(a) for a in (whole.idx_NL, whole.label_N, whole.path_N, whole.view_N)]
    compressed = io.BytesIO()
    with np.load(path) as archive:
        np.savez_compressed(compressed, **archive)
    refused = 0
    for number in range(600):
        broken = bytearray(compressed.getvalue() if number % 3 == 0 else content)
        for _ in range(draw.choice((1, 1, 3, 30))):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        if draw.random() < 0.2:
            broken = broken[: draw.randrange(len(broken))] if draw.random() < 0.8 else broken + bytes(50)
        path.unlink()  # the maps of the round before are of the old file
        path.write_bytes(broken)
        try:
            maps = tokens.read_token_maps(tmp_path)
            for a, b in zip(wanted, (maps.idx_NL, maps.label_N, maps.path_N, maps.view_N), strict=True):
                assert np.array_equal(a, b), number
        except InputError:
            refused += 1
    assert refused > 350  # a third of the bytes are in the tok_ arrays, whose first rows alone are read


def test_a_flipped_bit_in_a_token_is_seen(tmp_path):
    """It was memory-mapped and used: another token in the range of the codebook."""
    write_maps(tmp_path, 40)
    path = tmp_path / tokens.FILE_NAME
    with zipfile.ZipFile(path) as archive:
        content = bytearray(path.read_bytes())
        start = archive.getinfo("idx.npy").header_offset
    content[start + 400] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"Bad CRC-32 for file 'idx\.npy'"):
        tokens.read_token_maps(tmp_path)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", ["idx", "label", "path", "vnums"])
def test_arrays_that_claim_a_million_million_elements_are_refused(tmp_path, name, compress):
    write_maps(tmp_path, 40)
    path = tmp_path / tokens.FILE_NAME
    with np.load(path) as archive:
        arrays = dict(archive)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w") as file:
                if key == name:
                    header = {"descr": array.dtype.str, "fortran_order": False, "shape": (10**12,)}
                    np.lib.format.write_array_header_1_0(file, header)
                else:
                    np.lib.format.write_array(file, array)
    with pytest.raises(InputError, match="cannot be read"):
        tokens.read_token_maps(tmp_path)


NO_CLASS_LISTS = (
    '"AB"',
    '{"A": 1, "B": 2}',
    '["A"',
    "",
    "[]",
    "null",
    '["A", "A"]',
    '["A", "a"]',
    '["A", 2]',
)
NO_CLASS_LISTS += (
    '["A", "B/../.."]',
    '["..", "B"]',
    '["A", "B\\u0000"]',
    '["A", ".hidden"]',
    '["A", "B\\n"]',
)
NO_CLASS_LISTS += ("[" * 100000, "\ufeff[]")


@pytest.mark.parametrize("text", NO_CLASS_LISTS, ids=range(len(NO_CLASS_LISTS)))
def test_class_lists_that_are_none_are_refused(tmp_path, text):
    """A text was once taken letter by letter."""
    write_maps(tmp_path, 40)
    (tmp_path / "classes.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"classes\.json"):
        tokens.read_token_maps(tmp_path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "train/../../x.png"])
def test_a_picture_s_path_that_leads_out_of_the_data_is_refused(tmp_path, name):
    write_maps(tmp_path, 40)
    with np.load(tmp_path / tokens.FILE_NAME) as archive:
        arrays = dict(archive)
    arrays["path"] = np.where(np.arange(40) == 7, name, arrays["path"])
    np.savez(tmp_path / tokens.FILE_NAME, **arrays)
    with pytest.raises(InputError, match="leads out of the data folder"):
        tokens.read_token_maps(tmp_path)


def test_a_damaged_archive_is_tokenised_anew(tiny_data, tiny_vqvae, tmp_path, capsys):
    settings = tokenize_multiscale_maps.Settings(tiny_data, tiny_vqvae, tmp_path, views=1, device="cpu")
    tokenize_multiscale_maps.main(settings)
    path = tmp_path / "val" / tokens.FILE_NAME
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    capsys.readouterr()
    tokenize_multiscale_maps.main(settings)
    printed = capsys.readouterr().out
    assert "it is made anew" in printed and printed.count("nothing to do") == 2
    assert path.read_bytes() == content


# Point 13, small: memory must not grow with the number of rows. The large ones are in benchmarks/.
def peak_bytes(work) -> int:
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_number_of_token_maps(tmp_path, monkeypatch):
    """Sixteen times the rows; of the arrays, only class and view of each row are held."""
    monkeypatch.setattr(tokens, "BLOCK", 512)
    counts, arrays = (2048, 32768), {}
    for work in (
        lambda count: tokens.read_token_maps(tmp_path / str(count)),
        lambda count: tokens.frequency_scores(*[tokens.read_token_maps(tmp_path / str(count))] * 2),
        lambda count: tokenize_multiscale_maps.print_usage(
            "train", np.load(tmp_path / f"{count}.npy", mmap_mode="r"), (1, 4), 16
        ),
        lambda count: tokens.write_token_maps(
            tmp_path / "again",
            np.load(tmp_path / f"{count}.npy", mmap_mode="r"),
            *arrays[count],
            (1, 4),
            ["A", "B"],
            {},
        ),
    ):
        peaks = []
        for count in counts:
            if not (tmp_path / str(count)).exists():
                write_maps(tmp_path / str(count), count)
                np.save(tmp_path / f"{count}.npy", tokens.read_token_maps(tmp_path / str(count)).idx_NL)
            maps = tokens.read_token_maps(tmp_path / str(count))
            arrays[count] = (maps.label_N, maps.path_N, maps.view_N)
            peaks.append(peak_bytes(lambda work=work, count=count: work(count)))
        # 16 bytes a row for class and view, 17 for masks and copies of them; a row has 34 bytes of tokens.
        assert peaks[1] - peaks[0] < 33 * (counts[1] - counts[0]), peaks


def test_frequencies_in_blocks_are_those_of_the_whole(tmp_path, monkeypatch):
    write_maps(tmp_path, 1000, views=3)
    maps = tokens.read_token_maps(tmp_path)
    whole = tokens.frequency_scores(maps, maps)
    monkeypatch.setattr(tokens, "BLOCK", 64)
    monkeypatch.setattr(tokens, "MAX_COUNTS", 2 * 16 * 3)  # three positions at once
    blocks = tokens.frequency_scores(maps, maps)
    for name in whole:
        np.testing.assert_allclose(blocks[name], whole[name], rtol=1e-12)
    # By hand, for one position of the finest scale.
    idx_NL, own = np.asarray(maps.idx_NL), maps.view_N == 0
    unigram_V = (np.bincount(idx_NL[:, 1:].ravel(), minlength=16) + 1) / (idx_NL[:, 1:].size + 16)
    nats = []
    for row in np.flatnonzero(own):
        same = maps.label_N == maps.label_N[row]
        seen_L = (idx_NL[same, 1:] == idx_NL[row, 1:]).mean(0)
        nats.append(-np.log(0.5 * seen_L + 0.5 * unigram_V[idx_NL[row, 1:]]))
    assert whole["class_position"][0][1] == pytest.approx(np.mean(nats), rel=1e-12)
