"""Small files of every kind that tests read: frames, interlaced PNG, DICOM, video."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def frames_NHW(count: int = 5, height: int = 48, width: int = 64) -> np.ndarray:
    """Slopes with a little noise, all different: lossy formats keep them, none packs them to nothing."""
    n, y, x = np.mgrid[:count, :height, :width]
    noise = np.random.default_rng(0).integers(0, 6, (count, height, width))
    return ((x * 3 + y * 2 + n * 40) % 200 + 20 + noise).astype(np.uint8)


def interlaced_png(grey_HW: np.ndarray) -> bytes:
    """Adam7 (PNG specification, section 8.2), which Pillow reads but does not write."""
    passes = (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    )
    lines = b"".join(
        b"\0" + line.tobytes()
        for top, left, down, right in passes
        for line in grey_HW[top::down, left::right]
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    height, width = grey_HW.shape
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 0, 0, 0, 1])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def dicom(
    path: Path, syntax: str = "1.2.840.10008.1.2.1", frames: np.ndarray | None = None, **values
) -> None:
    """Write a multi-frame DICOM file of grey frames.

    Args:
        path: the file.
        syntax: transfer syntax: native, RLE, or JPEG baseline.
        frames: (N, H, W) uint8.
        values: further elements by keyword, in place of the usual ones; None leaves one out.
    """
    import pydicom
    from pydicom.encaps import encapsulate

    frames = frames_NHW() if frames is None else frames
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
    header.SOPInstanceUID = "2.25.1"
    header.PatientName = "Secret^Name"
    header.NumberOfFrames, header.Rows, header.Columns = frames.shape[:3]
    header.SamplesPerPixel = 1 if frames.ndim == 3 else 3
    if header.SamplesPerPixel == 3:
        header.PlanarConfiguration = 0
    header.PhotometricInterpretation = "MONOCHROME2" if frames.ndim == 3 else "RGB"
    header.BitsAllocated = header.BitsStored = frames.dtype.itemsize * 8
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = 0
    header.PixelData = frames.tobytes()
    header["PixelData"].VR = "OW" if frames.itemsize == 2 else "OB"
    if syntax == pydicom.uid.JPEGBaseline8Bit:
        packed = [io.BytesIO() for _ in frames]
        for frame, file in zip(frames, packed, strict=True):
            Image.fromarray(frame).save(file, "JPEG", quality=95)
        header.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
        header.PixelData = encapsulate([file.getvalue() for file in packed])
    elif syntax == pydicom.uid.RLELossless:
        header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        header.compress(pydicom.uid.RLELossless)
    for name, value in values.items():
        if value is None:
            delattr(header, name)
        else:
            setattr(header, name, value)
    header.save_as(path, enforce_file_format=True)


def video(path: Path, codec: str, pixels: str, frames: np.ndarray | None = None) -> None:
    """Write a video of grey frames; skips the test where this build of FFmpeg lacks the encoder."""
    import av

    frames = frames_NHW(8) if frames is None else frames
    try:
        av.Codec(codec, "w")
    except ValueError:
        pytest.skip(f"this FFmpeg has no encoder {codec}")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        stream.bit_rate = 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode())


def peak_megabytes() -> float:
    """Peak memory of this process; `resource` would also count what its parent had before."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024
