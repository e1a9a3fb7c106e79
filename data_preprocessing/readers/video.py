"""Videos, decoded by FFmpeg through PyAV."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from data_preprocessing.readers.source import LARGEST_AREA, Source, Unreadable, check_size

VIDEO_SUFFIXES = (".avi", ".mp4", ".mpeg", ".mpg", ".mov", ".webm", ".mkv")
# Other containers (playlists above all) name further files or addresses, which FFmpeg would open.
VIDEO_FORMATS = "avi,mov,mp4,m4a,3gp,3g2,mj2,mpeg,mpegvideo,mpegts,matroska,webm"
# What FFmpeg raises on broken files, found by feeding it truncated and scrambled ones.
VIDEO_ERRORS = (OSError, ValueError, RuntimeError, EOFError)


@contextmanager
def open_video(path: Path, axis: int, array: str) -> Iterator[Source]:
    """Open a video; `axis` and `array` mean nothing here."""
    import av

    options = {"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": "file"}
    # An absolute path is never taken for an address.
    try:
        with av.open(os.path.abspath(path), options=options) as container:
            yield _video_frames(container)
    except av.FFmpegError as error:
        raise Unreadable(f"damaged or truncated: {error.strerror}") from None


def _video_frames(container: Any) -> Source:
    stream = next(iter(container.streams.video), None)
    if stream is None or stream.codec_context is None:
        raise Unreadable("no video stream in it that can be decoded")
    check_size(stream.width, stream.height)
    # One thread, since many files are read side by side; faults are told instead of painted over.
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(LARGEST_AREA)}

    def count() -> int:
        # Counted packet by packet, which decodes nothing: the header of a truncated file is wrong, and that
        # of an MPEG stream is silent.
        packets = sum(bool(packet.size) and not packet.is_discard for packet in container.demux(stream))
        if not packets:
            raise Unreadable("truncated: no whole frame in it")
        return packets

    def read(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        wanted = set(numbers)
        number = -1
        for number, frame in enumerate(container.decode(stream) if wanted else ()):
            if frame.is_corrupt:
                raise Unreadable(f"damaged at frame {number}")
            if number in wanted:
                check_size(frame.width, frame.height)
                colours = "gray" if frame.format.name.startswith("gray") else "rgb24"
                yield np.rot90(frame.to_ndarray(format=colours), round(frame.rotation / 90))
                if number == numbers[-1]:
                    return
        if wanted:
            raise Unreadable(f"no frame {numbers[-1]}: the file has {number + 1}")

    return Source(count, read)
