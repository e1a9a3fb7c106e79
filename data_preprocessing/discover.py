"""Find the pictures below the raw root and what their paths tell: data set, class, patient, official split.

Nothing is opened here except the publishers' lists. Links are followed at the top (a data-set folder may be a
link) and below only to files of the same folder; every other link, device or pipe is listed as rejected.
"""

import hashlib
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from data_preprocessing.catalogue import CATALOGUE, LEFT_OUT, DataSet, Facts, Layout, plain_name
from data_preprocessing.readers import is_picture_name
from usvar.errors import InputError

# Names of split folders in a person's own data.
OWN_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
# Names that say that a folder holds no pictures of its own class.
MASK_WORDS = re.compile(r"(^|[^a-z])(masks?|gt|annot\w*|labels?|segmentations?)($|[^a-z])", re.IGNORECASE)
SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx")


@dataclass(frozen=True)
class Record:
    """A picture, as far as its path tells."""

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
    # File of the published scan area and its time of change, "" and 0 without one.
    outline: str = ""
    outline_ns: int = 0
    bytes: int = 0
    modified_ns: int = 0


@dataclass
class Found:
    """What lies below a raw root."""

    records: list[Record] = field(default_factory=list)
    # source -> reason.
    rejected: dict[str, str] = field(default_factory=dict)
    # One printed line for each folder: read as what, or why not.
    notes: list[str] = field(default_factory=list)
    # Class folders without a file, which must not go unnoticed.
    empty_classes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class File:
    """A regular file below a data set's folder."""

    path: Path
    # Below the data set's folder, with forward slashes.
    relative: str
    bytes: int
    modified_ns: int


def discover(raw_root: Path) -> Found:
    """All pictures below `raw_root`, in a fixed order.

    Raises:
        InputError: when the folder is missing or nothing in it can be read as a data set.
    """
    if not raw_root.is_dir():
        raise InputError(
            f"--raw-root {raw_root} is no folder, wanted one that holds <DataSet>/...: unpack the data there"
        )
    found = Found()
    folders = sorted(path for path in raw_root.iterdir() if path.is_dir() and not _hidden(path.name))
    if not folders:
        raise InputError(
            f"--raw-root {raw_root} has no folder, wanted <raw-root>/<DataSet>/... or <raw-root>/<Class>/*: "
            "unpack the data there"
        )
    if {path.name.lower() for path in folders} & {"train", "training"}:
        _read_own(raw_root, raw_root, found)
    else:
        for folder in folders:
            _read_folder(raw_root, folder, found)
        if not found.records and not found.rejected:
            # No data set among them: they may be the class folders themselves.
            _read_own(raw_root, raw_root, found)
    if not found.records and not found.rejected:
        names = ", ".join(entry.name for entry in CATALOGUE)
        raise InputError(
            f"--raw-root {raw_root} holds no usable picture ({'; '.join(found.notes)}), wanted folders of "
            f"known data sets ({names}) or <raw-root>/<AnyName>/<Class>/*.png: unpack or sort the data"
        )
    loose = sum(path.is_file() and is_picture_name(path.name) for path in raw_root.iterdir())
    if loose:
        found.notes.append(f"{loose} pictures directly in {raw_root}: left out, they have no class folder")
    return found


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def _read_folder(raw_root: Path, folder: Path, found: Found) -> None:
    for name, reason in LEFT_OUT.items():
        if plain_name(name) == plain_name(folder.name):
            found.notes.append(f"{folder.name}: left out, {reason}")
            return
    entry = _entry_of(folder)
    if entry is not None:
        files, refused = walk(folder)
        records, unlisted = _read_entry(entry, folder, files)
        if records:
            found.records += records
            found.rejected.update(
                {f"{folder.name}/{relative}": why for relative, why in (refused | unlisted).items()}
            )
            found.notes.append(f"{folder.name}: {entry.name}, {len(records)} pictures")
            return
    if not _read_own(raw_root, folder, found):
        why = "not a known data set, and no class folders with pictures"
        if entry is not None:
            patterns = " or ".join(layout.pattern for layout in entry.layouts)
            why = f"named like {entry.name}, but no path ends in {patterns}"
        found.notes.append(f"{folder.name}: left out, {why}")


def _entry_of(folder: Path) -> DataSet | None:
    """The catalogue's entry by the name of the folder, or of one inside it at most two levels down."""
    names = [folder.name]
    for below in sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()):
        names += [below.name, *sorted(path.name for path in below.iterdir() if path.is_dir())]
    for name in names:
        for entry in CATALOGUE:
            if plain_name(name) in {plain_name(known) for known in (entry.name, *entry.aliases)}:
                return entry
    return None


def walk(folder: Path) -> tuple[list[File], dict[str, str]]:
    """All regular files below a folder, and what was refused: {relative path: reason}."""
    files, refused = [], {}
    home = folder.resolve()
    pending = [""]
    while pending:
        below = pending.pop()
        with os.scandir(folder / below) as entries:
            for item in sorted(entries, key=lambda item: item.name):
                relative = f"{below}{item.name}"
                if _hidden(item.name):
                    continue
                try:
                    relative.encode()
                except UnicodeEncodeError:
                    refused[ascii(relative)] = "its name is no valid text"
                    continue
                if item.is_symlink():
                    target = Path(item.path).resolve()
                    if not target.is_relative_to(home):
                        refused[relative] = "a link that leads out of the data set's folder"
                        continue
                    if target.is_dir():
                        refused[relative] = "a link to a folder, not followed"
                        continue
                    if not target.exists():
                        refused[relative] = "a link to nothing"
                        continue
                if item.is_dir():
                    pending.append(f"{relative}/")
                    continue
                status = item.stat()
                if not stat.S_ISREG(status.st_mode):
                    refused[relative] = "a device or pipe, not a file"
                    continue
                files.append(File(Path(item.path), relative, status.st_size, status.st_mtime_ns))
    return sorted(files, key=lambda file: file.relative), refused


def _output_name(dataset: str, relative: str) -> str:
    """`<dataset>__<stem>_<digest of the path>`: stems repeat over folders, and may hold any sign."""
    stem = relative.rsplit("/", 1)[-1]
    for suffix in (".gz", ""):
        stem = stem.removesuffix(suffix) if suffix else stem.rsplit(".", 1)[0]
    readable = re.sub(r"[^A-Za-z0-9]+", "_", stem).strip("_")[:48]
    set_name = re.sub(r"[^A-Za-z0-9]+", "-", dataset).strip("-") or "own"
    return f"{set_name}__{readable}_{hashlib.sha256(relative.encode()).hexdigest()[:8]}"


def _read_entry(entry: DataSet, folder: Path, files: list[File]) -> tuple[list[Record], dict[str, str]]:
    records, unlisted = [], {}
    taken = set()
    for layout in entry.layouts:
        ending = re.compile(rf"(?:^|/)(?:{layout.pattern})$", re.IGNORECASE)
        facts = layout.facts([file.path for file in files]) if layout.facts else {}
        for file in files:
            # The folder's own name may be part of the pattern.
            match = ending.search(f"{folder.name}/{file.relative}")
            if match is None or file.relative in taken:
                continue
            taken.add(file.relative)
            record = _record(entry, layout, folder, file, match.groupdict(), facts)
            if isinstance(record, Record):
                records.append(record)
            else:
                unlisted[file.relative] = record
    return records, unlisted


def _record(
    entry: DataSet, layout: Layout, folder: Path, file: File, told: dict[str, str | None], facts: Facts
) -> Record | str:
    """The record of a picture, or the reason why it has none."""
    if layout.listed_only and told["key"] not in facts:
        return "not in the publisher's list of classes"
    told = told | facts.get(told.get("key") or "", {})
    label = (told.get("label") or "").lower()
    class_name = (
        layout.classes
        if isinstance(layout.classes, str)
        else layout.classes.get(label, told.get("label") or "")
    )
    split = layout.splits.get((told.get("split") or "").lower(), "")
    # Examination numbers start again in each split folder.
    group = f"{split}/{told['group']}".lstrip("/") if told.get("group") else ""
    outline = layout.outline(file.path) if layout.outline else None
    if outline is not None and not outline.is_file():
        outline = None
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
        outline=str(outline) if outline else "",
        outline_ns=outline.stat().st_mtime_ns if outline else 0,
        bytes=file.bytes,
        modified_ns=file.modified_ns,
    )


def _read_own(raw_root: Path, folder: Path, found: Found) -> bool:
    """A person's own pictures: `<Class>/*` or `{train,val,test}/<Class>/*` in `folder`.

    Returns:
        Whether anything was found.
    """
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name))
    splits = {path: OWN_SPLITS[path.name.lower()] for path in inside if path.name.lower() in OWN_SPLITS}
    homes = splits or {folder: ""}
    class_folders = []
    for home, split in homes.items():
        for path in sorted(path for path in home.iterdir() if path.is_dir() and not _hidden(path.name)):
            if path.is_symlink() and not path.resolve().is_relative_to(raw_root.resolve()):
                found.rejected[f"{path.relative_to(raw_root)}"] = "a link that leads out of the raw root"
                continue
            class_folders.append((path, split, [p for p in path.iterdir() if not _hidden(p.name)]))
    if not any(is_picture_name(item.name) for _, _, items in class_folders for item in items):
        return False
    title = raw_root.resolve().name if folder == raw_root else folder.name
    if masks := [path.name for path, _, _ in class_folders if MASK_WORDS.search(path.name)]:
        found.notes.append(
            f"{title}: left out, {masks[0]!r} looks like masks, wanted class folders with pictures only"
        )
        return True
    before = len(found.records)
    files, refused = walk(folder)
    by_home = {}
    for file in files:
        by_home.setdefault(file.path.parent, []).append(file)
    nested = len(files)
    for path, split, _ in class_folders:
        own = by_home.get(path, [])
        nested -= len(own)
        if not own:
            found.empty_classes.append(path.name)
        for file in own:
            found.records.append(
                Record(
                    source=str(file.path.relative_to(raw_root)),
                    dataset=title,
                    organ=path.name.split("-")[0],
                    class_name=path.name,
                    group="",
                    split=split,
                    name=_output_name(title, file.relative),
                    bytes=file.bytes,
                    modified_ns=file.modified_ns,
                )
            )
    prefix = "" if folder == raw_root else f"{folder.name}/"
    found.rejected.update({prefix + relative: why for relative, why in refused.items()})
    classes = {path.name for path, _, _ in class_folders}
    elsewhere = f" ({nested} files elsewhere left out)" if nested else ""
    found.notes.append(
        f"{title}: own pictures, {len(found.records) - before} files in {len(classes)} classes{elsewhere}"
    )
    return True
