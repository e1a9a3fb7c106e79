"""DICOM: images and clips, cropped to their ultrasound region. Nothing that names a patient is parsed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from data_preprocessing.readers.pictures import PILLOW_ERRORS
from data_preprocessing.readers.source import (
    LARGEST_AREA,
    Source,
    Unreadable,
    check_number,
    check_size,
    no_warnings,
)

DICOM_SUFFIXES = (".dcm",)
# What pydicom and its decoders raise on broken files, found by feeding them truncated and scrambled ones.
DICOM_ERRORS = (*PILLOW_ERRORS, AttributeError, RuntimeError)
DICOM_TAGS = (
    "NumberOfFrames",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "BitsAllocated",
    "PhotometricInterpretation",
    "BurnedInAnnotation",
    "SequenceOfUltrasoundRegions",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "PaletteColorLookupTableUID",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
)


def _dicom_header(path: Path) -> Any:
    # Slow to import, and needed by few data sets. Nothing that names a patient is parsed.
    import pydicom

    syntax = pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID
    if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
        # The library would unpack it at once, whatever its size.
        raise Unreadable("a deflated DICOM file: unpack it first")
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(DICOM_TAGS))
    if "Rows" not in header or "Columns" not in header:
        raise Unreadable("a DICOM file without a picture")
    return header


def _region(header: Any) -> tuple[int, int, int, int] | None:
    """The first 2D tissue region, to which frames are cropped; None when the header names none.

    DICOM PS3.3 C.8.5.5: Sequence of Ultrasound Regions (0018,6011), spatial format 1, data type 1.

    Returns:
        left, top, right, bottom in pixels, right and bottom exclusive.
    """
    for region in header.get("SequenceOfUltrasoundRegions") or ():
        if region.get("RegionSpatialFormat") == 1 and region.get("RegionDataType") == 1:
            left, top = int(region.RegionLocationMinX0), int(region.RegionLocationMinY0)
            # The standard's corners belong to the region; some scanners write the size instead.
            right = min(int(region.RegionLocationMaxX1) + 1, header.Columns)
            bottom = min(int(region.RegionLocationMaxY1) + 1, header.Rows)
            if not (0 <= left < right and 0 <= top < bottom):
                raise Unreadable("its ultrasound region (0018,6011) lies outside the picture")
            return left, top, right, bottom
    return None


@contextmanager
def open_dicom(path: Path, axis: int, array: str) -> Iterator[Source]:
    """Open a DICOM image or clip; `axis` and `array` mean nothing here."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        with no_warnings():
            yield _dicom_frames(path)
    except (*DICOM_ERRORS, BytesLengthException, InvalidDicomError) as error:
        # The library's own words may quote a value, hence a name.
        raise Unreadable(f"damaged or truncated DICOM file ({type(error).__name__})") from None


def _dicom_frames(path: Path) -> Source:
    from pydicom.pixels import apply_color_lut, get_decoder, iter_pixels

    header = _dicom_header(path)
    check_size(header.Columns, header.Rows)
    count = int(header.get("NumberOfFrames") or 1)
    syntax = header.file_meta.TransferSyntaxUID
    try:
        readable = syntax in LOSSLESS_JPEG or get_decoder(syntax).is_available
    except NotImplementedError:
        readable = False
    if not readable:
        raise Unreadable(f"its compression is not read ({syntax.name[:60]}): decompress it first")
    frame_bytes = header.Rows * header.Columns * header.SamplesPerPixel * header.BitsAllocated // 8
    # A compressed frame takes at least the header of its item; two pixels may share their colour.
    least = 8 if syntax.is_compressed else frame_bytes // 2
    if count < 1 or count * least > path.stat().st_size:
        raise Unreadable(f"truncated: its header claims {count} frames of {frame_bytes} bytes")
    region = _region(header)
    if region is None and str(header.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        raise Unreadable("names burnt in (0028,0301), and no ultrasound region (0018,6011) to cut them off")
    left, top, right, bottom = region or (0, 0, header.Columns, header.Rows)
    colours = header.PhotometricInterpretation

    def read(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        if not numbers:
            return
        check_number(numbers[-1], count)
        if syntax in LOSSLESS_JPEG:
            frames = _lossless_jpeg_frames(path, numbers, count)
        else:
            frames = iter_pixels(path, indices=numbers)
        for frame in frames:
            if frame.shape[:2] != (header.Rows, header.Columns):
                raise Unreadable("damaged: a frame of another size than its header says")
            if colours == "PALETTE COLOR":
                frame = apply_color_lut(frame, header)
                frame = frame if frame.dtype == np.uint8 else (frame >> 8).astype(np.uint8)
            if colours == "MONOCHROME1":
                frame = np.invert(frame)
            yield frame[top:bottom, left:right]

    return Source(lambda: count, read)


# Transfer syntax -> FFmpeg's decoder, for what pydicom leaves to packages that are not needed otherwise.
LOSSLESS_JPEG = {
    "1.2.840.10008.1.2.4.57": "mjpeg",
    "1.2.840.10008.1.2.4.70": "mjpeg",
    "1.2.840.10008.1.2.4.80": "jpegls",
    "1.2.840.10008.1.2.4.81": "jpegls",
}


def _lossless_jpeg_frames(path: Path, numbers: Sequence[int], count: int) -> Iterator[np.ndarray]:
    import av
    from pydicom import dcmread
    from pydicom.encaps import get_frame
    from pydicom.pixels import convert_color_space

    tags = ["PixelData", "PixelRepresentation", "PhotometricInterpretation", "ExtendedOffsetTable"]
    data = dcmread(path, specific_tags=tags)
    for number in numbers:
        packed = get_frame(data.PixelData, number, number_of_frames=count)
        decoder = av.CodecContext.create(LOSSLESS_JPEG[data.file_meta.TransferSyntaxUID], "r")
        decoder.options = {"err_detect": "explode", "max_pixels": str(LARGEST_AREA)}
        try:
            frames = [*decoder.decode(av.Packet(packed)), *decoder.decode(None)]
        except av.FFmpegError as error:
            raise Unreadable(f"damaged or truncated at frame {number}: {error.strerror}") from None
        if len(frames) != 1 or frames[0].is_corrupt:
            raise Unreadable(f"damaged or truncated at frame {number}")
        pixels = frames[0].format.name
        if pixels in ("gray", "gray16le"):
            array = frames[0].to_ndarray()
            yield array.view(array.dtype.str.replace("u", "i")) if data.PixelRepresentation else array
        elif pixels in ("rgb24", "bgr24"):
            array = frames[0].to_ndarray(format="rgb24")
            ybr = data.PhotometricInterpretation.startswith("YBR_FULL")
            yield convert_color_space(array, "YBR_FULL", "RGB") if ybr else array
        else:
            raise Unreadable(f"pixels of kind {pixels} in lossless JPEG, wanted grey or RGB")
