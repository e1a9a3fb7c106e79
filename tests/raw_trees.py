"""What tests of the preparation share: small pictures in publishers' layouts, and what is found in them."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import SimpleITK
from PIL import Image

from data_preprocessing.discover import Found, Record, discover

# Codec and pixel format by suffix.
CODECS = {".avi": ("mjpeg", "yuvj420p"), ".gif": ("gif", "rgb8"), ".webm": ("vp8", "yuv420p")}


def speckle(number: int, width: int = 96, height: int = 80) -> np.ndarray:
    """A grey picture that fills its frame; each number is another one."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(40, 255, (6, 7)).astype(np.uint8))
    smooth_HW = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return (smooth_HW + rng.integers(-20, 21, (height, width))).clip(20, 255).astype(np.uint8)


def save(path: Path, array: np.ndarray, **options: object) -> None:
    """Write a picture in the format that the suffix names; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def save_volume(path: Path, array: np.ndarray) -> None:
    """Write an array, slowest axis first, as NIfTI or MetaImage; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array, isVector=False), str(path))


def save_video(path: Path, frames: list[np.ndarray]) -> None:
    """Write grey frames as a video in the format that the suffix names; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        codec, stored = CODECS.get(path.suffix, ("mpeg4", "yuv420p"))
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape
        stream.pix_fmt = stored
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode())


def plant(root: Path, *names: str, first: int = 0) -> None:
    """Write a different small picture under each name, relative to `root`."""
    for number, name in enumerate(names, start=first):
        save(root / name, speckle(number))


def empty_png(width: int, height: int) -> bytes:
    """The start of a grey PNG that claims a size and holds no pixel."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + crc + struct.pack(">I", 99) + b"IDAT"


def write(path: Path, content: str | bytes) -> None:
    """Write a list that lies beside pictures; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def find(raw: Path, *include: str) -> Found:
    """What is found below `raw`."""
    return discover(raw, include)


def told(found: Found) -> dict[str, tuple[str, str, str]]:
    """source -> (class, group, split) of what was found, with its frames where lists name them."""
    return {
        record.source + (f"#{record.frames}" if record.frames else ""): (
            record.class_name,
            record.group,
            record.split,
        )
        for record in found.records
    }


def chosen(raw: Path, record: Record, wanted: int = 3) -> dict[int, np.ndarray]:
    """Number -> picture of the frames that the preparation takes from a volume, video or array."""
    from data_preprocessing.work import frames_of, read_pictures

    numbers = [0] if record.take in ("still", "first") else frames_of(raw, record, wanted)
    assert isinstance(numbers, list), numbers
    return dict(
        zip(numbers, read_pictures(raw, [replace(record, number=number) for number in numbers]), strict=True)
    )
