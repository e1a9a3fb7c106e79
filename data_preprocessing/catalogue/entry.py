"""What an entry of the catalogue says, and the small tools that entries share.

An entry finds its pictures by a *positive* pattern on the end of the path, so that masks, overlays and
second copies are left out, and a folder unpacked one level deeper or shallower is read all the same. The
named groups of the pattern say what the path tells; lists beside the pictures (`facts`) may add to them:

    label    which class, a key of `classes`
    group    patient, video or examination: what must stay on one side of the split
    split    the publisher's split, a key of `splits`
    key      how `facts` finds this picture
    frames   numbers of the frames worth taking, as "3 17 40" (facts only)
    leave    the words of --include without all of which the picture is left out (facts only)
    remark   what the lists say beyond the class, such as "transplant" (facts only)
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_preprocessing.tables import read_text

# What the lists beside the pictures tell, by the pattern's `key` in lower case.
Facts = dict[str, dict[str, str]]

# What two words of --include bring back, for `DataSet.left_out`.
COPIES = "second copies of pictures"
GAPS = "frames at the border of a block, near copies of those on the other side"


@dataclass(frozen=True)
class File:
    """A regular file below a data set's folder."""

    path: Path
    # Below the data set's folder, with forward slashes.
    relative: str
    bytes: int = 0
    modified_ns: int = 0


@dataclass(frozen=True)
class Layout:
    """One way in which the pictures of a data set lie on disk."""

    # Regular expression for the end of the path, in any case of letters.
    pattern: str
    # The path's `label` (in lower case) -> class, or one class for all. {} takes the label as it is.
    classes: dict[str, str] | str
    # The path's `split` (in lower case) -> "train", "val" or "test". A split that the publisher lacks is
    # drawn from "train".
    splits: dict[str, str] = field(default_factory=dict)
    # How the scan area is found, see crop.find_frame.
    frame: str = "auto"
    # What brings the probe to the top, see readers.turned.
    turn: str = ""
    # Reads the lists that lie beside the pictures.
    facts: Callable[[Iterable[File]], Facts] | None = None
    # Names of lists, one of which should be there: pictures are read without it too, but with less known.
    lists: tuple[str, ...] = ()
    # A picture that the lists lack is rejected.
    listed_only: bool = False
    # The word of --include without which nothing of this layout is read.
    include: str = ""
    # End of the paths of the same pictures in a better form (regular expression): where a folder of the data
    # set holds them, this layout is read with --include copies only.
    copy_of: str = ""
    # The file with the published scan area of a picture, None when it is known to be wrong.
    outline: Callable[[Path], Path | None] | None = None
    # Which frames of a file: "still" (it has one), "first" (further ones repeat it), "even" (a few evenly
    # spaced), "listed" (evenly among the facts' `frames`; without any, as "even") or "labelled" (evenly
    # among those in whose label volume something is marked; with --include unlabelled, as "even").
    take: str = "still"
    # The file with the label volume of a picture, for "labelled".
    labels: Callable[[Path], Path] | None = None
    # Axis of the frames, in SimpleITK's array order (z, y, x).
    axis: int = 0
    # Name of the pictures' array in an HDF5 file.
    array: str = ""
    # Several patients in one file: what is told of each, with its `frames`.
    parts: Callable[[File, Iterable[File]], list[dict[str, str]]] | None = None
    # The groups are no patients or videos that a name or list tells, but a guess: blocks of neighbours, all
    # of one day, one group for all.
    guessed: bool = False


@dataclass(frozen=True, eq=False)
class DataSet:
    """A public data set. Each is the only one of its kind: two are equal when they are the same."""

    name: str
    organ: str
    layouts: tuple[Layout, ...]
    # How it is called elsewhere, where `name` is a misspelling that folders and manifests have.
    right_name: str = ""
    # Further names of its folder, at the top of the raw root or one or two levels below.
    aliases: tuple[str, ...] = ()
    # "fan", "rectangle" or "both".
    shape: str = "both"
    # "open", "register" (a form, an application or a log-in) or "hard to reach".
    access: str = "open"
    # "not stated" where its home and papers state none, "not known" where nobody has read them for it.
    licence: str = "not stated"
    cite: str = ""
    home: str = ""
    # What to do with the archives.
    unpack: str = "one archive"
    # Where the class comes from.
    labels: str = "one class"
    # What is kept on one side of the split, and how it is told.
    groups: str = "each picture by itself"
    # A path that a right folder holds; named when it is missing.
    marker: str = ""
    # word of --include -> what it brings back.
    left_out: dict[str, str] = field(default_factory=dict)
    # Pictures (files, where one holds many) as the predecessor's table counts them, and as the sources do; 0
    # where not counted.
    seed_count: int = 0
    true_count: int = 0
    # The entry whose pictures these are; they are read only when that one's folder is missing.
    same_as: str = ""
    # Doubts and quirks worth a line.
    note: str = ""


def classes_of(entry: DataSet) -> set[str]:
    """All classes that the layouts of an entry can give."""
    return {
        name
        for layout in entry.layouts
        for name in ([layout.classes] if isinstance(layout.classes, str) else layout.classes.values())
    }


def plain_name(name: str) -> str:
    """A folder's name as it is compared: letters and digits in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def named(files: Iterable[File], pattern: str) -> list[File]:
    """The files whose path ends in `pattern` (a regular expression, any case of letters).

    The data set's own folder may be part of the pattern.
    """
    ending = re.compile(rf"/(?:{pattern})$", re.IGNORECASE)
    return [file for file in files if ending.search(file.path.as_posix())]


def split_lists(files: Iterable[File], pattern: str) -> Facts:
    """Official splits from lists with a name a line, such as `patient0001` or `image/7.png mask/7.png`.

    Args:
        files: all files of the data set.
        pattern: end of the lists' paths; its one group is the split.

    Returns:
        stem of the line's first word in lower case -> {"split": ...}.
    """
    facts = {}
    for file in named(files, pattern):
        split = re.search(rf"(?:{pattern})$", file.path.as_posix(), re.IGNORECASE)[1]
        for line in read_text(file.path).splitlines():
            if words := line.split():
                facts[Path(words[0]).stem.lower()] = {"split": split}
    return facts


def in_blocks(names: Sequence[str], count: int, gap: int) -> dict[str, dict[str, str]]:
    """Groups for frames of unknown sweeps: contiguous blocks in numerical order, with gaps between.

    Neighbouring frames are near copies, so a random split leaks. Whole blocks go to one side; the frames
    next to a border between blocks are left out (`--include gaps` brings them back). A small part of a data
    set makes fewer blocks, at least four, and gaps are at most a quarter of a block.

    Args:
        names: keys that hold a number, such as "0007".
        count: number of blocks.
        gap: frames left out at each border.

    Returns:
        key in lower case -> {"group": ...} and, in a gap, {"leave": "gaps"}.
    """
    ordered = sorted((name.lower() for name in names), key=by_number)
    size = max(-(-len(ordered) // count), min(4 * gap, -(-len(ordered) // 4)), 1)
    gap = min(gap, size // 4)
    facts = {}
    for place, name in enumerate(ordered):
        block, inside = divmod(place, size)
        facts[name] = {"group": f"block {block}"}
        if block and inside < gap:
            facts[name]["leave"] = "gaps"
    return facts


def by_number(name: str) -> tuple[list[str | int], str]:
    """Sorts names by the numbers in them, however they are padded."""
    parts = re.split(r"(\d+)", name)
    return ([int(part) if i % 2 else part for i, part in enumerate(parts)], name)


def read_outline(path: Path) -> list[tuple[float, float]] | None:
    """A polygon stored as a JSON list of [x, y], or None when there is no usable one."""
    try:
        points = json.loads(path.read_text(encoding="utf-8"))
        outline = [(float(x), float(y)) for x, y in points]
        return outline if all(math.isfinite(value) for point in outline for value in point) else None
    except (OSError, ValueError, TypeError, OverflowError, RecursionError):
        return None
