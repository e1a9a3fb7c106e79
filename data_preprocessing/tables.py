"""The lists that lie beside the pictures: CSV, Excel sheets, JSON, XML, columns of HDF5 files.

All come from strangers: encodings are guessed in a fixed order, sizes are limited before anything is
unpacked, no entity is expanded, and a broken list is one InputError with the name of the file.
"""

import csv
import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from usvar.errors import InputError

# The largest list known is EchoNet's tracings, some 40 MB.
LARGEST_LIST = 64 << 20
# A sheet that unpacks to more is no list of pictures.
LARGEST_SHEET = 64 << 20
MOST_ROWS = 1_000_000
MOST_COLUMNS = 256


def read_rows(path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """Read named columns of a CSV file (`,`, `;` or tab) or of the first sheet of an XLSX file.

    Header names are compared without case and blanks. Cells are stripped; an empty cell is "". Blank rows are
    left out.

    Args:
        path: `.xlsx`, or any other suffix for text.
        columns: the columns that must be there.
        optional: columns that are "" in all rows where the file lacks them.

    Returns:
        One dict a row, with the names as written in `columns` and `optional` as keys.

    Raises:
        InputError: when the file is broken or lacks a column.
    """
    rows = _sheet(path) if path.suffix.lower() == ".xlsx" else _text_rows(path)
    numbered = enumerate(rows, 1)
    rows = [(n, cells) for n, row in numbered if any(cells := [cell.strip() for cell in row])]
    if not rows:
        raise InputError(f"{path} is empty, wanted the columns {', '.join(columns)}: unpack it again")
    (_, names), *rows = rows
    header = [_plain(name) for name in names]
    missing = [name for name in columns if _plain(name) not in header]
    if missing:
        raise InputError(
            f"{path} lacks the column {', '.join(missing)}, found {_found(names)}: "
            "take the list that its publisher gives, unchanged"
        )
    places = {name: header.index(_plain(name)) for name in columns + optional if _plain(name) in header}
    last = max(places.values(), default=0)
    records = []
    for number, row in rows:
        # Excel leaves out empty cells at the end of a row; a row of text that is cut short is another matter.
        if len(row) <= last and path.suffix.lower() != ".xlsx":
            raise InputError(
                f"{path}, row {number} has {len(row)} cells, its header {len(header)}: "
                "the list is truncated or damaged, unpack it again"
            )
        cells = {name: row[place] if place < len(row) else "" for name, place in places.items()}
        records.append(dict.fromkeys(optional, "") | cells)
    return records


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Read a list without a header, two values a line: `0000.jpg,1` or `658.JPG  5`.

    Raises:
        InputError: when a line holds no two values.
    """
    pairs = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        separator = next((mark for mark in ",;\t" if mark in line), None)
        parts = [part.strip() for part in line.strip().rsplit(separator, 1)]
        if len(parts) != 2 or not all(parts):
            raise InputError(
                f"{path}, line {number} is {_found([line])}, wanted a name and a value: "
                "take the list that its publisher gives, unchanged"
            )
        pairs.append((parts[0], parts[1]))
    return pairs


def read_json(path: Path) -> Any:
    """Read JSON in UTF-8 or, as some annotation tools write it, in GBK (unknown characters are replaced).

    Raises:
        InputError: when it is no JSON.
    """
    data = _bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("gbk", errors="replace")
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError(f"{path} is nested too deeply for an annotation: unpack it again") from None
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({_line(error)}): unpack it again") from None


def read_xml(path: Path) -> Element:
    """Read XML; entities are refused, since they can name other files or grow without bounds.

    Returns:
        The root element.

    Raises:
        InputError: when it is no XML, or holds entities.
    """
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        return fromstring(_bytes(path))
    except DefusedXmlException:
        raise InputError(
            f"{path} declares XML entities, which are not read: remove the declaration"
        ) from None
    except (ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path} is no XML ({_line(error)}): unpack it again") from None


def read_hdf5_column(path: Path, name: str) -> list[str]:
    """Read a one-dimensional array of text or numbers from an HDF5 file, as text.

    Raises:
        InputError: when the file is broken or has no such array.
    """
    import h5py

    from data_preprocessing.readers import Unreadable
    from data_preprocessing.readers.arrays import ARRAY_ERRORS, hdf5_array

    try:
        with h5py.File(path, "r") as file:
            array = hdf5_array(file, name)
            if array.ndim != 1 or array.nbytes > LARGEST_LIST:
                raise Unreadable(f"array {name!r} is {array.shape}, wanted one column")
            if array.dtype.kind in "OS":
                return [text.decode("utf-8", "replace").strip() for text in array[()]]
            return [str(value) for value in array[()].tolist()]
    except (Unreadable, AttributeError, *ARRAY_ERRORS) as error:
        raise InputError(f"{path} has no column {name!r} ({_line(error)}): download it again") from None


def _bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > LARGEST_LIST:
            raise InputError(
                f"{path} has {size} bytes, wanted a list of at most {LARGEST_LIST}: unpack it again"
            )
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): unpack it again or mend its rights"
        ) from None


def read_text(path: Path) -> str:
    """A list as text, whatever its encoding.

    Raises:
        InputError: when it cannot be read, or is too large for a list.
    """
    data = _bytes(path)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    # Chinese before Western: its pairs of high bytes are rare in Western text, which takes nearly any byte.
    for encoding in ("utf-8-sig", "gb2312", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("gbk", errors="replace")


def _text_rows(path: Path) -> list[list[str]]:
    text = read_text(path)
    header = text.lstrip().split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    try:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise InputError(f"{path} is no CSV list ({_line(error)}): unpack it again") from None


def _sheet(path: Path) -> list[list[str]]:
    # Slow to import, and needed by few data sets.
    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    data = _bytes(path)
    rows = []
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > LARGEST_SHEET:
            raise InputError(
                f"{path} unpacks to {unpacked} bytes, wanted at most {LARGEST_SHEET}: save it as CSV"
            )
        workbook = load_workbook(io.BytesIO(data), read_only=True, data_only=True)
        sheet = workbook.worksheets[0]
        # The size that a sheet states is often wrong, and would be filled up with empty cells.
        sheet.reset_dimensions()
        for row in sheet.iter_rows(values_only=True, max_col=MOST_COLUMNS):
            if len(rows) > MOST_ROWS:
                raise InputError(f"{path} has more than {MOST_ROWS} rows: save the list as CSV")
            # Rows come filled up to MOST_COLUMNS.
            used = max((place for place, value in enumerate(row, 1) if value is not None), default=0)
            if used:
                rows.append(["" if value is None else str(value) for value in row[:used]])
    except InputError:
        raise
    except (*SHEET_ERRORS, InvalidFileException) as error:
        raise InputError(
            f"{path} is no Excel sheet that can be read ({_line(error)}): save it again, or as CSV"
        ) from None
    return rows


# What openpyxl raises on broken files, found by feeding it truncated and scrambled ones.
SHEET_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
)


def _plain(name: str) -> str:
    return "".join(name.split()).lower()


def _found(names: list[str]) -> str:
    text = repr(", ".join(" ".join(name.split()) for name in names))
    return text if len(text) <= 200 else text[:200] + "..."


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:120]
