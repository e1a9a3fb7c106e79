"""Find the pictures below the raw root and what their paths tell: data set, class, patient, official split.

Nothing is opened here except the publishers' lists. Links are followed at the top (a data-set folder may be a
link) and below only to files of the same folder; every other link, device or pipe is listed as rejected.

What is a file or a folder is asked of os.path: in a folder that may not be searched it says no, where
Path.is_file and Path.is_dir raise an error (Python 3.11).
"""

import copy
import hashlib
import itertools
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Self

from data_preprocessing.catalogue import CATALOGUE, DataSet, File, Layout, named, plain_name
from data_preprocessing.on_disk import DiskList, private_database
from data_preprocessing.readers import is_picture_name, may_have_frames
from usvar.errors import InputError
from usvar.files import is_hidden

# Names of split folders in a person's own data.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validate", "validation", "dev", "devel", "development"),
    "test": ("test", "testing", "tests", "holdout", "heldout"),
}
# As `plain_name` writes them: "Test set" and "test_set" are one.
OWN_SPLITS = {
    name + more: split
    for split, names in SPLIT_NAMES.items()
    for name in names
    for more in ("", "set", "data", "split")
}
# Words in names of a person's own folders and files that say that these are no pictures of a class:
# "1_mask.png" and "gt 3.png", but not "unmasked.png"; "SegmentationClass" is a folder of the VOC format.
MASK_WORDS = re.compile(
    r"(^|[^a-z])(masks?|gt|ground[^a-z]?truths?|annot\w*|labels?|segs?|segmentation(s|class|object)?)($|[^a-z])",
    re.IGNORECASE,
)
NO_PICTURE = "no picture, volume or video by its suffix"
# Letters of a data set's name in the names of its images; file systems take 255 bytes in all.
LONGEST_SET_NAME = 150
OR_RENAME = ": lay it out so, or rename it if the pictures are your own"
ARCHIVE = re.compile(r"\.(zip|rar|7z|tar|tgz|tar\.gz|z\d\d|change2zip)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Record:
    """A picture, or a file of several frames before they are chosen, as far as path and lists tell."""

    # Path below the raw root, with forward slashes.
    source: str
    dataset: str
    organ: str
    class_name: str
    # Patient, video or examination; "" when unknown.
    group: str
    # Official split, or "".
    split: str
    # Name of the output without folder and suffix; unique, and the same whatever else lies beside it.
    name: str
    frame: str = "auto"
    turn: str = ""
    # File of the published scan area, as `source`, and its time of change; "" and 0 without one.
    outline: str = ""
    outline_ns: int = 0
    bytes: int = 0
    modified_ns: int = 0
    # How frames are chosen, see catalogue.Layout; `frames` are the numbers that lists name, `labels` is a
    # file, as `source`, with its time of change, 0 where it is missing.
    take: str = "still"
    frames: tuple[int, ...] = ()
    labels: str = ""
    labels_ns: int = 0
    axis: int = 0
    array: str = ""
    # What the publisher's lists say beyond the class.
    remark: str = ""
    # The frame in the file.
    number: int = 0
    # The group is a guess, see catalogue.Layout.
    guessed: bool = False

    @property
    def id(self) -> str:
        """The picture's name in lists: its path, and the frame's number in a volume or video."""
        return self.source if self.take == "still" else f"{self.source}#{self.number}"

    def to_json(self) -> str:
        """All fields in their order, as one text."""
        return json.dumps([getattr(self, each.name) for each in fields(self)])

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        named = dict(zip((each.name for each in fields(cls)), json.loads(text), strict=True))
        return cls(**named | {"frames": tuple(named["frames"])})


@dataclass
class Found:
    """What lies below a raw root. What grows with the pictures is on the disk when index.Index made it."""

    records: list[Record] | DiskList = field(default_factory=list)
    # source -> reason.
    rejected: MutableMapping[str, str] = field(default_factory=dict)
    # source -> reason, of pictures that --include would bring back.
    left_out: MutableMapping[str, str] = field(default_factory=dict)
    # Names of outputs, with the frames of each.
    names: MutableMapping[str, bool] = field(default_factory=dict)
    # source -> data set, of rejected pictures that a layout of the catalogue knows.
    rejected_of: MutableMapping[str, str] = field(default_factory=dict)
    # Classes of the records.
    classes: set[str] = field(default_factory=set)
    # How many pictures are left out, by data set.
    left_out_of: Counter[str] = field(default_factory=Counter)
    # One printed line for each folder: read as what, or why not.
    notes: list[str] = field(default_factory=list)
    # Class folders without a file, which must not go unnoticed.
    empty_classes: list[str] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Take a record in under a name that no other has.

        Two folders of one data set may hold the same paths: the later one is named by its whole path. Parts
        of one file share its name and differ by their frames.
        """
        if f"{record.name} {record.frames}" in self.names:
            record = replace(record, name=_output_name(record.dataset, record.source))
        self.names[f"{record.name} {record.frames}"] = True
        self.classes.add(record.class_name)
        self.records.append(record)


class Files:
    """All regular files below a folder, by path. They are kept on the disk: there may be a million."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Below which of its folders files are given, each with a slash at its end; "" is all.
        self.homes: tuple[str, ...] = ("",)
        # Relative path -> reason, of links, devices and pipes.
        self.refused: dict[str, str] = {}
        self._db = private_database()
        self._db.execute(
            "CREATE TABLE file (relative TEXT PRIMARY KEY, bytes INTEGER, modified_ns INTEGER) WITHOUT ROWID"
        )
        self._db.executemany("INSERT INTO file VALUES (?, ?, ?)", self._walk())

    def __len__(self) -> int:
        return self._db.execute("SELECT count(*) FROM file").fetchone()[0]

    def __iter__(self) -> Iterator[File]:
        return itertools.chain.from_iterable(map(self.below, self.homes))

    def only(self, homes: tuple[str, ...]) -> Self:
        """The same files, less those that lie below none of the folders `homes`."""
        fewer = copy.copy(self)
        fewer.homes = homes
        return fewer

    def below(self, folder: str) -> Iterator[File]:
        """The files whose relative path starts with `folder`, which is "" or ends in a slash."""
        # "0" comes next after the slash.
        after = f"{folder[:-1]}0" if folder else "\U0010ffff"
        rows = self._db.execute("SELECT * FROM file WHERE relative >= ? AND relative < ?", (folder, after))
        for relative, size, modified_ns in rows:
            yield File(self.folder / relative, relative, size, modified_ns)

    def _walk(self) -> Iterator[tuple[str, int, int]]:
        home = self.folder.resolve()
        pending = [""]
        while pending:
            below = pending.pop()
            try:
                entries = os.scandir(self.folder / below)
            except OSError as error:
                self.refused[below.removesuffix("/")] = f"cannot be opened: {error.strerror}"
                continue
            with entries:
                for item in entries:
                    relative = f"{below}{item.name}"
                    if is_hidden(item.name):
                        continue
                    try:
                        relative.encode()
                    except UnicodeEncodeError:
                        self.refused[ascii(relative)] = "its name is no valid text"
                        continue
                    if why := _why_refused(item, home):
                        self.refused[relative] = why
                    elif item.is_dir():
                        pending.append(f"{relative}/")
                    else:
                        status = item.stat()
                        yield relative, status.st_size, status.st_mtime_ns


def _why_refused(item: os.DirEntry, home: Path) -> str:
    """Why a file or folder below `home` is not read, "" for one that is."""
    if item.is_symlink():
        # Unlike `resolve`, it does not fail where links lead round in a circle.
        target = Path(os.path.realpath(item.path))
        if not target.is_relative_to(home):
            return "a link that leads out of the data set's folder"
        if os.path.isdir(target):
            return "a link to a folder, not followed"
        if not os.path.exists(target):
            return "a link to nothing"
    try:
        mode = item.stat().st_mode
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
    return "" if stat.S_ISDIR(mode) or stat.S_ISREG(mode) else "a device or pipe, not a file"


def discover(
    raw_root: Path, include: Sequence[str] = (), found: Found | None = None, own_patients: str = ""
) -> Found:
    """All pictures below `raw_root`, in a fixed order.

    Args:
        include: words of the catalogue's `left_out` that bring back what is left out by default.
        found: an empty one to be filled, None for one in memory.
        own_patients: regular expression whose first group is the patient in the path, below the class folder,
            of a person's own pictures; "" where patients are unknown.

    Raises:
        InputError: when the folder is missing, nothing in it can be read as a data set, or a publisher's
            list is broken.
    """
    if not os.path.isdir(raw_root):
        raise InputError(
            f"--raw-root {raw_root} is no folder, wanted one that holds <DataSet>/...: unpack the data there"
        )
    found = Found() if found is None else found
    try:
        inside = sorted(raw_root / name for name in os.listdir(raw_root) if not is_hidden(name))
    except OSError as error:
        raise InputError(
            f"--raw-root {raw_root} cannot be opened ({error.strerror}), wanted a folder with data sets: "
            "give yourself the right to read it"
        ) from error
    folders = [path for path in inside if os.path.isdir(path)]
    packed = _still_packed([path.name for path in inside], {plain_name(path.name) for path in folders})
    if packed:
        found.notes.append(
            f"WARNING: {', '.join(packed)} in {raw_root}: still packed, unpack to {raw_root / '<DataSet>'}"
        )
    if not folders:
        raise InputError(
            f"--raw-root {raw_root} has no folder"
            + (f", only the archive {packed[0]}" if packed else "")
            + ", wanted <raw-root>/<DataSet>/... or <raw-root>/<Class>/*: unpack the data there"
        )
    entries_of = {folder: entries_in(folder) for folder in folders}
    if not any(entries_of.values()):
        _refuse_a_set_itself(raw_root)
    split_folders = [path for path in folders if _split_of(path)]
    has_sets = any(entries_of[folder] for folder in folders if folder not in split_folders)
    if not has_sets and "train" in map(_split_of, split_folders):
        _read_own(raw_root, raw_root, own_patients, found)
    else:
        for folder in split_folders:
            # Perhaps a set that was unpacked one level too high; as own pictures it would be split anew.
            if has_sets and not entries_of[folder]:
                folders.remove(folder)
                found.notes.append(
                    f"WARNING: {folder.name}: left out, a split's folder beside data sets: move it to "
                    f"{raw_root / '<DataSet>' / folder.name}"
                )
        # A folder of the same pictures under another name may hold the original's name too. It is left out
        # only where the original's folder does hold pictures.
        originals = {entry.same_as for entries in entries_of.values() for entry in entries}
        present = {
            entry.name
            for folder, entries in entries_of.items()
            for i, (entry, homes) in enumerate(entries.items())
            if entry.name not in {outer.same_as for outer in list(entries)[:i]}
            and (entry.name not in originals or _has_records(entry, folder, homes))
        }
        # In any folder of the set, as the other form of it may have come in another archive.
        present |= {
            layout.copy_of
            for folder, entries in entries_of.items()
            for entry, homes in entries.items()
            for layout in entry.layouts
            if layout.copy_of and named(Files(folder).only(homes), layout.copy_of)
        }
        said = []
        for folder in folders:
            before = len(found.notes)
            _read_folder(
                raw_root, folder, entries_of[folder], present, frozenset(include), own_patients, found
            )
            said += found.notes[before:] if not _entries_named(folder.name) else []
        # No data set among them: they may be the class folders themselves.
        nothing = not found.records and not found.rejected and not found.left_out
        if nothing and _read_own(raw_root, raw_root, own_patients, found):
            # That they are none was said of each.
            found.notes = [note for note in found.notes if note not in said]
    why = f" ({'; '.join(found.notes)})" if found.notes else ""
    if not found.records and not found.rejected and found.left_out:
        raise InputError(
            f"--raw-root {raw_root} holds no usable picture but ones left out by default{why}: name them "
            "with --include, or add other data"
        )
    if not found.records and not found.rejected:
        names = ", ".join(entry.name for entry in CATALOGUE)
        raise InputError(
            f"--raw-root {raw_root} holds no usable picture{why}, wanted folders of known data sets "
            f"({names}) or <raw-root>/<AnyName>/<Class>/*.png: unpack or sort the data"
        )
    loose = sum(os.path.isfile(path) and is_picture_name(path.name) for path in inside)
    if loose:
        found.notes.append(f"{loose} pictures directly in {raw_root}: left out, they have no class folder")
    return found


def _refuse_a_set_itself(raw_root: Path) -> None:
    """Read as class folders, a data set's own folder would give masks as pictures and no patients."""
    for entry in _entries_named(raw_root.resolve().name):
        if _has_records(entry, raw_root, ("",)):
            raise InputError(
                f"--raw-root {raw_root} is the folder of {entry.name} itself, wanted the one that holds it: "
                f"give --raw-root {raw_root.resolve().parent}"
            )


def _has_records(entry: DataSet, folder: Path, homes: tuple[str, ...]) -> bool:
    files = Files(folder).only(homes)
    return _read_entry(entry, folder, files, set(), frozenset(), [], Found()).records > 0


def _names(entry: DataSet) -> set[str]:
    """What its folder may be called, as `plain_name` writes it."""
    return {plain_name(name) for name in (entry.name, *entry.aliases)}


def _entries_named(name: str) -> list[DataSet]:
    """The catalogue's entries that a folder of this name belongs to."""
    return [entry for entry in CATALOGUE if plain_name(name) in _names(entry)]


def _read_folder(
    raw_root: Path,
    folder: Path,
    entries: dict[DataSet, tuple[str, ...]],
    present: set[str],
    include: frozenset[str],
    own_patients: str,
    found: Found,
) -> None:
    files = Files(folder) if entries else None
    taken: list[Taken] = []
    silent: list[DataSet] = []
    for named_like, homes in entries.items():
        entry = named_like
        if entry.same_as in present:
            found.notes.append(f"{folder.name}: {entry.name} left out, the same pictures as {entry.same_as}")
            taken += [Taken(re.compile(""), homes)] * bool(files)
            continue
        entry = next((e for e in CATALOGUE if e.name == entry.same_as), entry)
        tally = _read_entry(entry, folder, files.only(homes), present, include, taken, found)
        if tally.records or tally.left_out or tally.rejected:
            found.rejected.update({f"{folder.name}/{file}": why for file, why in files.refused.items()})
            found.left_out_of[entry.name] += tally.left_out.total()
            said = [f"{folder.name}: {entry.name}, {tally.records} files"]
            for why, count in sorted(tally.left_out.items()):
                said.append(f"{count} left out, {why}")
            if tally.rejected:
                why = next(iter(tally.rejected))
                said.append(f"{tally.rejected.total()} rejected, the first: {why}")
            found.notes.append("; ".join(said))
            found.notes += [f"WARNING: {folder.name}: {entry.name}, {why}" for why in tally.warnings]
        else:
            silent.append(named_like)
    # In a folder that is named like a set, whatever is not as its publisher made it may be a mask.
    own = not taken and not _entries_named(folder.name)
    if own and _read_own(raw_root, folder, own_patients, found):
        return
    files = files or Files(folder)
    unpacked = {plain_name(name) for file in files for name in file.relative.split("/")[:-1]}
    packed = _still_packed((file.path.name for file in files), unpacked)[:3]
    unpack = f"{', '.join(packed)} still packed, unpack there"
    first = next(iter(entries), None)
    if first and taken:
        if packed:
            found.notes.append(f"{folder.name}: {unpack} if pictures are missing ({first.unpack})")
        found.notes += _unread(folder, files, entries, silent, taken)
        return
    inside = sorted(item.name for item in _inside(folder))[:5]
    found_there = f"found {', '.join(inside) or 'nothing'}"
    if first:
        why = _in_another_layout(entries)
        found_there += OR_RENAME
        unpack += f" ({first.unpack})"
    else:
        why = "not a known data set, and no class folders with pictures"
    why += f"; {unpack if packed else found_there}"
    if files.refused:
        refused, reason = next(iter(files.refused.items()))
        why += f"; {f'{folder.name}/{refused}'.removesuffix('/')}: {reason}"
    found.notes.append(f"WARNING: {folder.name}: left out, {why}")


def _in_another_layout(entries: Iterable[DataSet]) -> str:
    """Why a folder that is named like them is not read."""
    first, *_ = entries
    return f"named like {first.name}, but no path like {' or '.join(map(_looks, entries))} is in it"


def _looks(entry: DataSet) -> str:
    return entry.marker or entry.layouts[0].pattern


def _still_packed(names: Iterable[str], unpacked: set[str]) -> list[str]:
    """Names of archives; one beside the folder that came out of it, of its plain name, has done its work."""
    return [
        name for name in names if ARCHIVE.search(name) and plain_name(ARCHIVE.sub("", name)) not in unpacked
    ]


def entries_in(folder: Path) -> dict[DataSet, tuple[str, ...]]:
    """The catalogue's entries by the name of the folder, or of one inside it at most two levels down.

    One archive may hold several sets (TN3K, TG3K and DDTI), and a person may sort sets by organ. The
    outermost name comes first: BUSI_256 holds a folder that is named like BUSI's.

    Returns:
        With each entry the inner folders whose files are its own, such as ("BUSI/",): many sets have a
        benign/*.png. ("",) is the whole folder, for a set that has it to itself or gave it its name.
    """
    inside = _folders_in(folder)
    further = [below for path in inside for below in _folders_in(path)]
    named: dict[DataSet, list[tuple[str, ...]]] = {}
    for paths in ([folder], inside, further):
        # By name, because there may be a folder per patient, and an entry has few names.
        called: dict[str, list[tuple[str, ...]]] = {}
        for path in paths:
            called.setdefault(plain_name(path.name), []).append(path.relative_to(folder).parts)
        for entry in CATALOGUE:
            for name in _names(entry) & called.keys():
                named.setdefault(entry, []).extend(called[name])
    for repeat in [entry for entry in named if entry.same_as]:
        # MUP may hold a folder that is named like MicroSeg's; beside MicroSeg that is no second home of it.
        for original in [entry for entry in named if entry.name == repeat.same_as]:
            apart = [own for own in named[original] if not _is_below(own, named[repeat])]
            named[original] = apart or named[original]
    return {
        entry: _homes(own, {parts for other in named if other != entry for parts in named[other]})
        for entry, own in named.items()
    }


def _is_below(parts: tuple[str, ...], folders: list[tuple[str, ...]]) -> bool:
    """Whether a folder is one of others or lies inside one."""
    return any(parts[: len(outer)] == outer for outer in folders)


def _homes(own: list[tuple[str, ...]], others: set[tuple[str, ...]]) -> tuple[str, ...]:
    """Of each folder named like a set the outermost around it that holds no other set: lists lie beside."""
    homes: list[tuple[str, ...]] = []
    for parts in own:
        around = [parts[:depth] for depth in range(len(parts) + 1)]
        alone = (home for home in around if not any(other[: len(home)] == home for other in others))
        home = next(alone, parts)
        if not _is_below(home, homes):
            homes.append(home)
    return tuple("".join(f"{part}/" for part in home) for home in homes)


def _folders_in(folder: Path) -> list[Path]:
    """Its own folders: no links, none of the system's."""
    return [Path(item.path) for item in _inside(folder) if item.is_dir(follow_symlinks=False)]


def _linked_folders_in(folder: Path) -> list[Path]:
    """Its folders and links to folders, sorted."""
    return sorted(Path(item.path) for item in _inside(folder) if os.path.isdir(item.path))


def _inside(folder: Path) -> Iterator[os.DirEntry]:
    """What lies in it, less the system's; nothing when it cannot be opened, which `Files` lists."""
    try:
        items = os.scandir(folder)
    except OSError:
        return
    with items:
        yield from (item for item in items if not is_hidden(item.name))


def _output_name(dataset: str, relative: str) -> str:
    """`<dataset>__<stem>_<digest of the path>`: stems repeat over folders, and may hold any sign.

    Only the first `__` of a name ends the data set's, see usvar.images.data_sets.
    """
    stem = relative.rsplit("/", 1)[-1]
    for suffix in (".gz", ""):
        stem = stem.removesuffix(suffix) if suffix else stem.rsplit(".", 1)[0]
    readable = re.sub(r"[^A-Za-z0-9]+", "_", stem).strip("_")[:48]
    set_name = re.sub(r"[^A-Za-z0-9]+", lambda signs: "_" if signs[0] == "_" else "-", dataset)
    set_name = set_name.strip("-_") or "own"
    if len(set_name) > LONGEST_SET_NAME:
        # What is cut off may be all in which two folders differ.
        set_name = f"{set_name[:LONGEST_SET_NAME]}-{hashlib.sha256(dataset.encode()).hexdigest()[:8]}"
    return f"{set_name}__{readable}_{hashlib.sha256(relative.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Taken:
    """What an earlier layout read or left out, so that no other takes it."""

    pattern: re.Pattern[str]
    homes: tuple[str, ...]

    def holds(self, source: str, file: File) -> bool:
        """Whether it read the file, which `source` names below the raw root."""
        return file.relative.startswith(self.homes) and bool(self.pattern.search(source))


@dataclass
class Tally:
    """How many pictures an entry has; of those that are left out or rejected, by reason."""

    records: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)


def _read_entry(
    entry: DataSet,
    folder: Path,
    files: Files,
    present: set[str],
    include: frozenset[str],
    taken: list[Taken],
    found: Found,
) -> Tally:
    """Add the pictures of one entry among `files` to `found`, and the patterns that know some to `taken`."""
    tally = Tally()
    for layout in entry.layouts:
        ending = re.compile(rf"(?:^|/)(?:{layout.pattern})$", re.IGNORECASE)
        facts, officially = None, Counter()
        for file in files:
            source = f"{folder.name}/{file.relative}"
            # The folder's own name may be part of the pattern.
            match = ending.search(source)
            if not match or any(earlier.holds(source, file) for earlier in taken):
                continue
            if facts is None:
                facts = layout.facts(files) if layout.facts else {}
            told = match.groupdict()
            told |= facts.get((told.get("key") or "").lower(), {})
            unlisted = layout.listed_only and (told["key"] or "").lower() not in facts
            for one in layout.parts(file, files) if layout.parts and not unlisted else [{}]:
                again = "copies" if layout.copy_of in present else ""
                words = {layout.include, again, *(told | one).get("leave", "").split()} - {"", *include}
                record = _record(entry, layout, folder, file, told | one)
                # Each part of a file has its own line in the lists.
                name = f"{source}#part {one['group']}" if one else source
                if words:
                    why = " and ".join(entry.left_out[word] for word in sorted(words))
                    why += f" (--include {' '.join(sorted(words))} brings them back)"
                    tally.left_out[why] += name not in found.left_out
                    found.left_out[name] = why
                elif unlisted or isinstance(record, str):
                    lists = f" ({' or '.join(layout.lists)})" if layout.lists else ""
                    missing = f"the publisher's list is missing{lists}"
                    why = "not in the publisher's list" if facts else missing
                    why = why if unlisted else record
                    tally.rejected[why] += name not in found.rejected
                    found.rejected[name] = why
                    found.rejected_of[source] = entry.name
                else:
                    if record.take == "labelled" and "unlabelled" in include:
                        record = replace(record, take="even", labels="")
                    found.add(record)
                    tally.records += 1
                    officially[bool(record.split)] += 1
        if facts is not None:
            taken.append(Taken(ending, files.homes))
            lists = {name.lower() for name in layout.lists}
            if lists and not any(file.path.name.lower() in lists for file in files):
                tally.warnings.append(
                    f"without {' or '.join(layout.lists)}, so less is known of its pictures: unpack "
                    f"{entry.unpack}"
                )
        if layout.splits and layout.facts and officially[False] and not officially[True]:
            tally.warnings.append(
                "its official split is drawn anew, for the list of it is not in this folder: "
                f"put it beside the pictures ({entry.unpack})"
            )
    return tally


def _record(
    entry: DataSet, layout: Layout, folder: Path, file: File, told: dict[str, str | None]
) -> Record | str:
    """The record of a picture, or the reason why it has none."""
    label = (told.get("label") or "").lower()
    if isinstance(layout.classes, str):
        class_name = layout.classes
    elif not layout.classes:
        class_name = told.get("label") or ""
    elif label in layout.classes:
        class_name = layout.classes[label]
    else:
        return f"unknown label {label!r}, wanted one of {', '.join(sorted(layout.classes))}"
    split = layout.splits.get((told.get("split") or "").lower(), "")
    group = told.get("group") or ""
    if group.isdigit() and split and re.search(r"\(\?P<split>", layout.pattern):
        # Examination numbers start again in each split folder; names do not.
        group = f"{split}/{group}"
    outline = layout.outline(file.path) if layout.outline else None
    if outline is not None and (not os.path.isfile(outline) or _leads_out(outline, folder)):
        outline = None
    labels = layout.labels(file.path) if layout.labels else None
    if labels is not None and _leads_out(labels, folder):
        return f"its label file {labels.name} is a link that leads out of the data set's folder"
    return Record(
        source=f"{folder.name}/{file.relative}",
        dataset=entry.name,
        organ=entry.organ,
        class_name=class_name,
        group=group,
        split=split,
        name=_output_name(entry.name, file.relative),
        frame=layout.frame,
        turn=layout.turn,
        outline=os.path.relpath(outline, folder.parent) if outline else "",
        outline_ns=outline.stat().st_mtime_ns if outline else 0,
        bytes=file.bytes,
        modified_ns=file.modified_ns,
        take=layout.take,
        frames=tuple(map(int, (told.get("frames") or "").split())),
        labels=os.path.relpath(labels, folder.parent) if labels else "",
        labels_ns=labels.stat().st_mtime_ns if labels and os.path.isfile(labels) else 0,
        axis=layout.axis,
        array=layout.array,
        remark=told.get("remark") or "",
        guessed=layout.guessed and bool(group),
    )


def _leads_out(beside: Path, folder: Path) -> bool:
    """Whether a file beside a picture, which `Files` has not looked at, lies elsewhere behind a link."""
    return not Path(os.path.realpath(beside)).is_relative_to(folder.resolve())


def _unread(
    folder: Path,
    files: Files,
    entries: dict[DataSet, tuple[str, ...]],
    silent: list[DataSet],
    taken: list[Taken],
) -> Iterator[str]:
    """Notes on what lies beside the sets that were read in a folder and gave nothing.

    Args:
        silent: those of the entries that gave nothing.
    """
    read = {entry: homes for entry, homes in entries.items() if entry not in silent}
    homes_read = [home for homes in read.values() for home in homes]
    # Inside a set that was read such a name is a part of it, as the subject S1 of TimTrack; around one it is
    # a shelf's, as breast is in breast/BUSI.
    missed = {
        home: entry
        for entry in silent
        for home in entries[entry]
        if not any(home.startswith(other) or other.startswith(home) for other in homes_read)
    }
    for home, entry in missed.items():
        yield f"WARNING: {folder.name}: {entry.name} not read, no path like {_looks(entry)} is in {home}"
    known, unknown = {home.split("/")[0] for home in missed}, set()
    for file in files:
        inner, _, below = file.relative.partition("/")
        if is_picture_name(below):
            source = f"{folder.name}/{file.relative}"
            (known if any(each.holds(source, file) for each in taken) else unknown).add(inner)
    names = sorted(name for name in unknown - known if not MASK_WORDS.search(name))
    note = f"{folder.name}: nothing was read of {len(names)} folders with files named like pictures"
    note += f" ({', '.join(names[:5])})"
    if names and any(plain_name(folder.name) in _names(entry) for entry in read):
        # The publisher's, most likely, as the arrays of FASS.
        yield note
    elif names:
        yield (
            f"WARNING: {note}: name known sets as docs/datasets.md does, move own classes to "
            "<raw-root>/<AnyName>/<Class>"
        )


def _read_own(raw_root: Path, folder: Path, own_patients: str, found: Found) -> bool:
    """A person's own pictures: `<Class>/*` or `{train,val,test}/<Class>/*` in `folder`.

    With `own_patients` they may lie deeper, such as `<Class>/<Patient>/*`, where it finds a patient.

    Returns:
        Whether anything was found.
    """
    inside = _linked_folders_in(folder)
    splits = {path: split for path in inside if (split := _split_of(path))}
    homes = splits or {folder: ""}
    class_folders, misnamed = [], {}
    for home, split in homes.items():
        for path in _linked_folders_in(home):
            if path.is_symlink() and not path.resolve().is_relative_to(raw_root.resolve()):
                found.rejected[f"{path.relative_to(raw_root)}"] = "a link that leads out of the raw root"
                continue
            if entries := _entries_named(path.name):
                # In a split's folder it is a class; `_read_folder` said it of one in the raw root.
                if split:
                    misnamed[path.name] = f"read as a class, {_in_another_layout(entries)}"
                elif folder != raw_root:
                    misnamed[path.name] = f"left out, {_in_another_layout(entries)}{OR_RENAME}"
                if not split:
                    continue
            class_folders.append((path, split))
    if not own_patients and not any(_has_pictures(path) for path, _ in class_folders):
        return False
    title = raw_root.resolve().name if folder == raw_root else folder.name
    if masks := [path.name for path, _ in class_folders if MASK_WORDS.search(path.name)]:
        found.notes.append(
            f"{title}: left out, {masks[0]!r} looks like masks, wanted class folders with pictures only"
        )
        return True
    files, read, unknown, unknown_file, empty_classes = Files(folder), 0, 0, "", []
    masks, mask_file, others, other_file = 0, "", 0, ""
    for path, split in class_folders:
        home, empty = f"{path.relative_to(folder).as_posix()}/", True
        for file in files.below(home):
            below = file.relative.removeprefix(home)
            match = re.search(own_patients, below) if own_patients else None
            patient = match[1] if match else None
            if "/" in below and (not patient or MASK_WORDS.search(below.rsplit("/", 1)[0])):
                continue
            source = str(file.path.relative_to(raw_root))
            if not is_picture_name(file.path.name):
                found.left_out[source] = NO_PICTURE
                others, other_file = others + 1, other_file or file.relative
                continue
            if MASK_WORDS.search(file.path.stem):
                found.left_out[source] = "named like a mask: rename it if it is a picture"
                masks, mask_file = masks + 1, mask_file or file.relative
                continue
            several = may_have_frames(file.path.name)
            # Frames of one video or volume belong together.
            group = patient or (file.relative if several else "")
            if not group:
                unknown, unknown_file = unknown + 1, unknown_file or file.relative
            found.add(
                Record(
                    source=source,
                    dataset=title,
                    organ=path.name.split("-")[0],
                    class_name=path.name,
                    group=group,
                    split=split,
                    name=_output_name(title, file.relative),
                    bytes=file.bytes,
                    modified_ns=file.modified_ns,
                    take="even" if several else "still",
                )
            )
            read, empty = read + 1, False
        if empty:
            empty_classes.append(path.name)
    if not read and not masks:
        return False
    found.left_out_of[title] += masks
    found.empty_classes += empty_classes
    prefix = "" if folder == raw_root else f"{folder.name}/"
    found.rejected.update({prefix + relative: why for relative, why in files.refused.items()})
    classes = {path.name for path, _ in class_folders}
    rest = len(files) - read - masks - others
    elsewhere = f" ({rest} files elsewhere left out)" if rest else ""
    suffix = f" ({others} no pictures by their suffix, such as {other_file})" if others else ""
    note = f"{title}: own pictures, {read} files in {len(classes)} classes{elsewhere}{suffix}"
    if unknown and not splits:
        note += (
            f"; the patients of {unknown} of them are unknown, such as {unknown_file}: where pictures of one "
            "patient are no near copies they can come to two sides of the split, unless --own-patients says "
            "what of the path names the patient"
        )
    found.notes.append(note)
    found.notes += [f"WARNING: {title}/{name}: {why}" for name, why in misnamed.items()]
    beside = [
        path.name
        for path in inside
        if splits
        and path not in splits
        and any(is_picture_name(file.path.name) for file in files.below(f"{path.name}/"))
    ]
    if beside:
        found.notes.append(
            f"WARNING: {title}: {len(beside)} folders with pictures beside train, val or test left out "
            f"({', '.join(beside[:5])}): give them a split's name, or move their classes into a split"
        )
    if masks:
        found.notes.append(
            f"WARNING: {title}: {masks} files left out, named like masks, such as {mask_file}: rename them "
            "if they are pictures"
        )
    return True


def _split_of(folder: Path) -> str:
    """The split that a person's own folder is named like, "" for none."""
    return OWN_SPLITS.get(plain_name(folder.name), "")


def _has_pictures(folder: Path) -> bool:
    """Whether a folder itself holds a file that is named like a picture."""
    return any(is_picture_name(item.name) for item in _inside(folder))
