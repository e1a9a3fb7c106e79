"""Prepare raw ultrasound pictures: crop, scale, split, and say what was done.

    python data_preprocessing/prepare_datasets.py --raw-root data/raw --out-root data/processed
    python data_preprocessing/prepare_datasets.py --raw-root data/raw --out-root data/small --size 64
    python data_preprocessing/prepare_datasets.py --raw-root data/raw --list  # known, found, missing

Reads <raw-root>/<DataSet>/... as unpacked by its publisher (catalogue/ knows which), and a person's own
pictures as <raw-root>/<AnyName>/<Class>/* or <raw-root>/<AnyName>/{train,val,test}/<Class>/*. Writes to
<out-root>: {train,val,test}/<Class>/<dataset>__<id>.png (grey stored as RGB), manifest.csv, rejected.csv,
left_out.csv, label_conflicts.csv, leak_report.json, per_class_by_split.csv and .png,
contact_sheets/<Class>.png and made_by.json. Raw data is never changed.

Run it again after a change or an interruption: only what is new is read and written, and outputs that are
no longer wanted are removed. Another --size writes all images anew; another --seed, --cap or --selection
writes only those that come or move. Only what this script wrote is removed: files that others put into the
split folders are refused by name.

A picture is what a raw set holds, a file or a frame of one; an image is what is written here.

Memory grows by less than 1 kB a picture: what is known of them is in
<out-root>/.index.sqlite and in temporary files (index.py).
"""

import csv
import hashlib
import heapq
import io
import json
import os
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import tyro

# A script sees only its own folder; the shared packages lie one level up.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_preprocessing import catalogue, report, work
from data_preprocessing.discover import Found, Record, discover
from data_preprocessing.flags import FLAGS
from data_preprocessing.index import INDEX, Index, frames_key
from data_preprocessing.on_disk import DiskDict, database_faults_named
from data_preprocessing.shortcut import shortcut_report
from data_preprocessing.splits import (
    CONFLICT,
    SPLITS,
    Picture,
    Place,
    Plan,
    leak_report,
    make_plan,
    share_of,
)
from usvar import checks, cli, signals
from usvar.errors import InputError
from usvar.files import (
    LOCK_NAME,
    is_half_written,
    is_hidden,
    lock_folder,
    remove_stale_temporaries,
    write_if_new,
    write_json,
)
from usvar.processes import in_parallel
from usvar.provenance import made_by

# Seconds between two saves of the index: a killed run loses no more than that.
SAVE_EVERY = 10
# What earlier versions of this script wrote in place of the index: a folder with it is known as ours.
EARLIER_INDEX = ".index.jsonl"
SHEET_PICTURES = 24
# Folder of the contact sheets.
SHEETS = "contact_sheets"
MANIFEST = [
    *("file", "source", "dataset", "organ", "class", "patient", "group", "split", "frame"),
    # What brought the probe to the top, see readers.turned; box, polygon and size are those of the picture
    # after it.
    *("turn", "frame_kind"),
    # The polygon is empty where the whole box is image; else pixels outside it were made black.
    *("crop_left", "crop_top", "crop_right", "crop_bottom", "polygon", "source_width", "source_height"),
    # Share of near-black pixels of the source; what was detected in it, as words.
    *("black_share", "flags"),
    # What the publisher's lists say beyond the class, such as "transplant".
    "remark",
    # The hash is of the RGB pixels of the output, as decoded from its PNG.
    *("output_size", "sha256"),
]

# Switches take a value (`--x True`), as cli.parse has it for every bool. --list asks for another thing than
# preparing and stands alone, as --help does: tyro lets only a number that counts its flag do so.
# Given more than once is no more than once, so that --help does not say that it counts.
LoneFlag = Annotated[tyro.conf.UseCounterAction[int], tyro.conf.arg(help_behavior_hint="")]


@dataclass(frozen=True)
class Settings:
    # Folder with one folder for each data set, as unpacked by its publisher, or with class folders.
    raw_root: Path = Path("data/raw")
    # Where to write; a new or empty folder, or one that this script made.
    out_root: Path = Path("data/processed")
    # Print the known data sets, what of each is found under --raw-root and how to get the rest; do no more.
    list: LoneFlag = 0
    # Side of the square output images in pixels, 16 to 1024.
    size: int = 256
    # Which classes: "all", "mission" (twelve, see catalogue), or a JSON file {"class": "new name" or null}.
    selection: str = "all"
    # Classes to leave out, by name.
    exclude_classes: tuple[str, ...] = ()
    # Also take pictures that are left out by default; --list prints the words of each data set.
    include: tuple[str, ...] = ()
    # Leave out pictures in which this was detected: calipers, doppler, dual (two views), text.
    exclude_flags: tuple[str, ...] = ()
    # Which part of the path below <AnyName>/<Class>/ names the patient of your own pictures: a regular
    # expression with one group, '^([^_]+)_' for p012_3.png, '^(.+?)/' for p012/3.png; '' if there is none.
    own_patients: str = ""
    # Frames taken from each video or volume, evenly spaced.
    frames: int = 4
    # Largest number of images of one data set, a folder of your own pictures too, drawn by whole patients; 0
    # for no cap.
    cap: int = 1000
    # Changes which patients are drawn and which split they go to.
    seed: int = 0
    # Processes; 0 for one on each core.
    workers: int = 0
    # Share of unreadable pictures, 0 to 1, above which the run stops before it writes an image.
    max_rejected: float = 0.2


def main(settings: Settings) -> None:
    if settings.list:
        try:
            print(report.list_data_sets(settings.raw_root, Index().found), flush=True)
        except BrokenPipeError:
            # `| head` has read enough; what is left must not fail at the end of the process.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    check(settings)
    with database_faults_named(settings.out_root / INDEX):
        index = Index()
        found = discover(settings.raw_root, settings.include, index.found, settings.own_patients)
        for note in found.notes:
            print(note)
        new_name = select(found, settings)
        with lock_folder(settings.out_root, "--out-root"), index.opened(settings.out_root):
            remove_stale_temporaries(settings.out_root)
            (settings.out_root / EARLIER_INDEX).unlink(missing_ok=True)
            prepare(settings, found, new_name, index)


@dataclass(frozen=True)
class Done:
    """What a run did, for its last words."""

    # Pictures that were looked at or rejected, and how many of them cannot be used.
    seen: int
    unreadable: int
    # Images.
    written: int
    removed: int
    # Whether a list or a contact sheet is new.
    changed: bool


def prepare(settings: Settings, found: Found, new_name: dict[str, str], index: Index) -> None:
    """Look, decide, write, report: all that happens in the out root."""
    out = settings.out_root
    for record in found.records:
        if record.class_name not in new_name:
            found.left_out[record.source] = (
                f"class {record.class_name} is not wanted (--selection, --exclude-classes)"
            )
    choose_frames(settings, found, new_name, index)
    look_at_pictures(settings, index)
    # Everything is decided before anything is written.
    seen, unreadable = refuse_unusable(settings, found, index)
    plan = decide(settings, found, new_name, index)
    before = classes_in(read_manifest(out / "manifest.csv"), settings.seed)
    index.add_ours(row["file"] for row in read_manifest(out / "manifest.csv"))
    index.add_ours(sheet_of(name) for name in before)
    refuse_foreign_files(out, index)
    written, removed = write_images(settings, index)
    guessed = Counter()
    for file, record, *more in index.written():
        index.rows.append(manifest_row(file, record, *more))
        guessed[record.dataset] += record.guessed
    write_leak_report(out, index.rows, plan, +guessed)
    counts = index.class_counts()
    changed = write_reports(settings, found, index, counts, before)
    say(settings, found, counts, plan, Done(seen, unreadable, written, removed, changed))


def look_at_pictures(settings: Settings, index: Index) -> None:
    """Look at every picture once."""
    jobs = ((settings.raw_root, part) for part in index.unseen())
    parts = index.parts("unseen")
    pictures = index.count("picture")
    try:
        for (_, part), seen in in_parallel("look", work.look, jobs, parts, settings.workers):
            for record, look in zip(part, seen, strict=True):
                index.add_look(record, look)
            index.save_if_due(SAVE_EVERY)
    except signals.Stopped as stop:
        done = f"{pictures - index.count('unseen')} of {pictures} pictures looked at"
        raise signals.Stopped(stop.signal_number, f"{done}; the same command goes on") from None
    index.forget_other_looks()


def refuse_unusable(settings: Settings, found: Found, index: Index) -> tuple[int, int]:
    """Reject or leave out what the looks say; returns how many pictures there are, and how many unusable."""
    pictures = index.count("picture")
    seen = len(found.rejected) + pictures
    found.rejected.update(index.unreadable())
    leave_out_flagged(found, index, settings.exclude_flags)
    if not index.count("readable"):
        source, reason = next(iter((found.rejected or found.left_out).items()))
        raise InputError(
            f"none of the {pictures} pictures in {settings.raw_root} can be used; the first, {source}: "
            f"{reason}; wanted pictures such as PNG or JPEG: look at the files"
        )
    unreadable = len(found.rejected)
    if unreadable > settings.max_rejected * seen:
        refuse(found.rejected, seen, settings)
    return seen, unreadable


def decide(settings: Settings, found: Found, new_name: dict[str, str], index: Index) -> Plan:
    """Choose the pictures and their places."""
    # No class goes missing without a word: neither an empty folder nor one of which nothing can be used.
    empty = found.empty_classes if settings.selection == "all" else []
    must_have = tuple(sorted({*new_name.values(), *(set(empty) - set(settings.exclude_classes))}))
    plan = make_plan(
        (picture(record, look) for record, look in index.readable()), settings.seed, settings.cap, must_have
    )
    found.rejected.update(plan.dropped())
    found.left_out.update(plan.over_cap())
    index.place(plan.places(), settings.out_root, settings.size)
    return plan


def write_images(settings: Settings, index: Index) -> tuple[int, int]:
    """Remove the images that are not wanted and write those that are missing; returns how many of each.

    Nothing is touched where the new ones have no room.
    """
    out, todo = settings.out_root, index.count("unwritten")
    unwanted = [item.stat(follow_symlinks=False).st_size for item in unwanted_outputs(out, index)]
    check_room(settings, todo, sum(unwanted))
    if todo or unwanted:
        # It says that the rest is there.
        (out / "manifest.csv").unlink(missing_ok=True)
    index.forget_other_outputs()
    index.note_places()
    removed = remove_outputs(out, index)
    jobs = (
        (settings.raw_root, [(record, look.frame, out / file) for record, look, file in part], settings.size)
        for part in index.unwritten()
    )
    parts = index.parts("unwritten")
    for (_, part, size), written in in_parallel("write", work.write, jobs, parts, settings.workers):
        for (record, _, path), (sha256, length) in zip(part, written, strict=True):
            index.add_output(record, path.relative_to(out).as_posix(), size, sha256, length)
        index.save_if_due(SAVE_EVERY)
    return todo, removed


def check(settings: Settings) -> None:
    """Refuse settings that cannot work, before anything is read."""
    checks.require(settings, "16 to 1024", "size")
    checks.require(settings, "0 or more", "cap", "workers")
    checks.require(settings, "0 to 1", "max_rejected")
    checks.require(settings, "1 or more", "frames")
    try:
        groups = re.compile(settings.own_patients).groups
    except re.error as error:
        raise InputError(
            f"--own-patients {settings.own_patients} is no regular expression: {error}"
        ) from None
    if settings.own_patients and groups != 1:
        raise InputError(
            f"--own-patients {settings.own_patients} has {groups} groups, wanted one, which is the patient, "
            "such as '^([^_]+)_'"
        )
    if unknown := sorted(set(settings.include) - set(catalogue.INCLUDES)):
        raise InputError(f"--include {unknown[0]}, known are {', '.join(catalogue.INCLUDES)}: see --list")
    if unknown := sorted(set(settings.exclude_flags) - set(FLAGS)):
        raise InputError(f"--exclude-flags {unknown[0]}, known are {', '.join(FLAGS)}")
    raw, out = settings.raw_root.resolve(), settings.out_root.resolve()
    if raw == out or raw in out.parents or out in raw.parents:
        raise InputError(
            f"--out-root {settings.out_root} and --raw-root {settings.raw_root} overlap: give two folders"
        )
    if (
        out.is_dir()
        and {path.name for path in out.iterdir()} - {LOCK_NAME}
        and not any((out / name).is_file() for name in (INDEX, EARLIER_INDEX))
    ):
        raise InputError(
            f"--out-root {settings.out_root} holds files that this script did not make: give an empty folder"
        )
    for name in (*SPLITS, SHEETS):
        # Behind a link lie files of others.
        if os.path.lexists(out / name) and ((out / name).is_symlink() or not (out / name).is_dir()):
            raise InputError(
                f"{settings.out_root / name} is a {'link' if (out / name).is_symlink() else 'file'}, wanted "
                "a folder that this script makes: move it elsewhere, or give another --out-root"
            )


def select(found: Found, settings: Settings) -> dict[str, str]:
    """Which classes to keep, as --selection and --exclude-classes say, and their new names."""
    known = found.classes | set(found.empty_classes)
    if not found.classes and found.rejected:
        # No choice of classes can mend that.
        source, reason = next(iter(found.rejected.items()))
        raise InputError(
            f"none of the pictures in {settings.raw_root} can be used, {len(found.rejected)} are rejected; "
            f"the first, {source}: {reason}: put there what is missing, or add other data"
        )
    if unknown := sorted(set(settings.exclude_classes) - known - catalogue.CLASSES):
        raise InputError(f"--exclude-classes {unknown[0]} is no class here, found {', '.join(sorted(known))}")
    if settings.selection == "all":
        new_name = {name: name for name in known}
    elif settings.selection == "mission":
        new_name = {name: name for name in catalogue.MISSION_CLASSES} | catalogue.CLASS_ALIASES
    else:
        new_name = read_mapping(Path(settings.selection))
        # Also a class of a data set that is not here: one file serves any choice of data sets.
        if unknown := sorted(set(new_name) - known - catalogue.CLASSES):
            raise InputError(
                f"{settings.selection} names the class {unknown[0]!r}, found {', '.join(sorted(known))}"
            )
    kept = {
        name: new_name[name]
        for name in sorted(found.classes - set(settings.exclude_classes))
        if new_name.get(name)
    }
    if not kept:
        less = f" with --exclude-classes {' '.join(settings.exclude_classes)}"
        raise InputError(
            f"--selection {settings.selection}{less if settings.exclude_classes else ''} keeps none of the "
            f"classes {', '.join(sorted(known))}: choose others"
        )
    folded = {}
    for name in sorted(set(kept.values())):
        check_class_name(name)
        if (other := folded.setdefault(name.casefold(), name)) != name:
            raise InputError(
                f"classes {other!r} and {name!r} differ only in capital letters: rename one folder"
            )
    return kept


def read_mapping(path: Path) -> dict[str, str | None]:
    """A person's own choice of classes: a JSON object {"class": "new name", "other class": null}."""
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
    # Python's reader gives up on brackets some thousand deep.
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"--selection {path} is neither 'all' nor 'mission' nor a JSON file that can be read "
            f"({cli.one_line(str(error))})"
        ) from None
    if not isinstance(mapping, dict) or not all(v is None or isinstance(v, str) for v in mapping.values()):
        raise InputError(f'--selection {path} must hold one JSON object {{"class": "new name" or null}}')
    return mapping


def check_class_name(name: str) -> None:
    """Refuse a class name that is unsafe as a folder's name."""
    if (
        not name.isprintable()
        or name != name.strip()
        or name.startswith(".")
        or any(c in name for c in '/\\:*?"<>|')
        # What the trainers read of a folder's name, see usvar.checks.require_class_names.
        or len(name.encode()) >= 200
    ):
        raise InputError(
            f"class name {name[:80]!r} cannot be a folder's name: use letters, digits, blanks and hyphens, "
            "fewer than 200 bytes"
        )


def choose_frames(settings: Settings, found: Found, new_name: dict[str, str], index: Index) -> None:
    """Put the selected pictures into the index, of videos and volumes a few frames; reject those without."""

    def selected() -> Iterator[Record]:
        for record in found.records:
            if record.class_name in new_name:
                yield replace(record, class_name=new_name[record.class_name])

    def unknown() -> Iterator[tuple[Path, Record, int]]:
        for record in selected():
            several = record.take not in ("still", "first")
            if several and frames_key(record, settings.frames) not in index.frames:
                yield settings.raw_root, record, settings.frames

    files, jobs = sum(1 for _ in unknown()), unknown()
    for (_, record, wanted), numbers in in_parallel("frames", work.frames_of, jobs, files, settings.workers):
        index.frames[frames_key(record, wanted)] = numbers
        index.save_if_due(SAVE_EVERY)
    for record in selected():
        if record.take in ("still", "first"):
            index.add(record)
            continue
        numbers = index.frames[frames_key(record, settings.frames)]
        if isinstance(numbers, str):
            found.rejected[record.source] = numbers
            continue
        for n in numbers:
            index.add(replace(record, number=n, name=f"{record.name}_f{n:04}", frames=()))


def leave_out_flagged(found: Found, index: Index, unwanted: tuple[str, ...]) -> None:
    """Leave out pictures in which something was detected that --exclude-flags names."""
    for record, look in index.readable() if unwanted else ():
        if hits := sorted(set(look.flags) & set(unwanted)):
            found.left_out[record.id] = f"detected: {', '.join(hits)} (--exclude-flags)"


def refuse(rejected: DiskDict, seen: int, settings: Settings) -> NoReturn:
    """Stop because too many pictures are unusable; only the list of the reasons is written."""
    path = settings.out_root / "rejected.csv"
    write_csv(path, ["source", "reason"], reasons_of(rejected))
    source, reason = next(rejected.sorted())
    raise InputError(
        f"{len(rejected)} of {seen} pictures cannot be used, more than --max-rejected "
        f"{settings.max_rejected:g}; the first, {source}: {reason}; all are listed in {path}: mend or "
        "remove the files, or raise --max-rejected"
    )


def check_room(settings: Settings, images: int, spare: int) -> None:
    """Stop before the disk runs full: a PNG of grey stored as RGB takes at most about a byte a pixel.

    To that come the lists, some 4 kB an image, and the contact sheets.

    Args:
        images: how many are to be written.
        spare: bytes of the files that are removed before.
    """
    needed = images * (settings.size**2 + 4096) + (20 << 20) * (images > 0)
    home = next(
        path
        for path in (settings.out_root.absolute(), *settings.out_root.absolute().parents)
        if path.exists()
    )
    free = shutil.disk_usage(home).free + spare
    if needed > free:
        raise InputError(
            f"{images} images of {settings.size} x {settings.size} need up to {needed / 1e9:.3f} GB, "
            f"{free / 1e9:.3f} GB are free at {settings.out_root}: make room, or lower --size or --cap"
        )
    if images:
        print(f"{images} images to write, up to {needed / 1e9:.2f} GB ({free / 1e9:.0f} GB free)")


def picture(record: Record, seen: work.Look) -> Picture:
    """A readable picture as the plan sees it."""
    return Picture(
        record.id,
        record.dataset,
        record.class_name,
        record.group,
        record.split,
        seen.sha256,
        seen.signature,
    )


def sheet_of(class_name: str) -> str:
    """Path of a class's contact sheet below the out root."""
    return f"{SHEETS}/{class_name}.png"


def in_splits(out_root: Path) -> Iterator[tuple[str, os.DirEntry]]:
    """What lies in the class folders of the splits, and beside these, by its path below the out root.

    Links are not followed: what is behind them is not ours.
    """
    for split in SPLITS:
        if not (out_root / split).is_dir():
            continue
        with os.scandir(out_root / split) as items:
            folders = sorted(items, key=lambda item: item.name)
        for folder in folders:
            if not folder.is_dir(follow_symlinks=False):
                yield f"{split}/{folder.name}", folder
                continue
            # One by one: a list of all would be large.
            with os.scandir(folder) as items:
                for item in items:
                    yield f"{split}/{folder.name}/{item.name}", item


def refuse_foreign_files(out_root: Path, index: Index) -> None:
    """Refuse files in the split folders that this script did not write, before anything is changed.

    Ours is what the index or the manifest says, and what has the path of an image of this run. Where both
    were lost after a kill, images of the killed run that are wanted elsewhere now count as foreign: their
    names alone do not tell that nobody put them there.

    Raises:
        InputError: names the first and says how many there are.
    """
    first, count = "", 0
    for file, item in in_splits(out_root):
        ours = not item.is_dir(follow_symlinks=False) and (index.is_ours(file) or index.is_wanted(file))
        if not ours and not is_hidden(item.name):
            first, count = min(first or file, file), count + 1
    if count:
        raise InputError(
            f"--out-root {out_root} holds {count} files in its split folders that this script did not make, "
            f"the first is {first}: move them elsewhere, or give another folder"
        )


def unwanted_outputs(out_root: Path, index: Index) -> Iterator[os.DirEntry]:
    """Images that this script wrote and that do not stay, and half-written ones."""
    for file, item in in_splits(out_root):
        if not item.is_dir(follow_symlinks=False) and (
            is_half_written(item.name) or (index.is_ours(file) and not index.stays(file))
        ):
            yield item


def remove_outputs(out_root: Path, index: Index) -> int:
    """Delete unwanted images, half-written ones and empty folders; returns how many images went."""
    removed = 0
    for item in unwanted_outputs(out_root, index):
        os.unlink(item.path)
        removed += not is_half_written(item.name)
    for split in SPLITS:
        for folder in (out_root / split).glob("*/"):
            if folder.is_symlink():
                continue
            with os.scandir(folder) as items:
                empty = next(items, None) is None
            if empty:
                folder.rmdir()
    return removed


def read_manifest(path: Path) -> Iterator[dict[str, str]]:
    """Rows of the manifest of an earlier run, up to the first that is spoiled; none when it is missing.

    What comes after is lost without harm: the index says as well which files are ours, and a contact sheet
    whose rows were lost is drawn anew.
    """
    if path.is_file():
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            rows = csv.DictReader(file)
            try:
                if rows.fieldnames != MANIFEST:
                    return
                for row in rows:
                    # Cells are missing, or there are too many.
                    if None in row or None in row.values():
                        return
                    yield row
            except csv.Error:
                # Such as a quote that is never closed.
                return


def write_csv(path: Path, header: list[str], rows: Iterable[dict[str, Any]]) -> bool:
    """Write rows one by one, atomically; returns whether the file is new."""
    return write_if_new(path, csv_lines(header, rows))


def csv_lines(header: list[str], rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Header and rows as text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    yield text.getvalue()
    for row in rows:
        text.seek(0)
        text.truncate()
        writer.writerow(row)
        yield text.getvalue()


def reasons_of(reasons: DiskDict) -> Iterator[dict[str, str]]:
    """source -> reason as rows of a list, sorted."""
    return ({"source": source, "reason": reason} for source, reason in reasons.sorted())


def manifest_row(
    file: str, record: Record, look: work.Look, place: Place, size: int, sha256: str
) -> dict[str, str]:
    """The row of a prepared image; all values as text, as they are read back."""
    corners = " ".join(f"{x:g},{y:g}" for x, y in look.frame.polygon)
    values = (
        *(file, record.source, record.dataset, record.organ, record.class_name, record.group),
        *(place.group, place.split, record.number, record.turn, look.frame.kind),
        *(*look.frame.box, corners),
        *(look.width, look.height, f"{look.signature.black_share:.3f}", " ".join(look.flags)),
        *(record.remark, size, sha256),
    )
    return dict(zip(MANIFEST, map(str, values), strict=True))


def write_leak_report(out: Path, rows: Sequence[dict[str, str]], plan: Plan, guessed: Counter) -> None:
    """Write label_conflicts.csv and leak_report.json where they are new, and say the main figures.

    Args:
        guessed: by data set, the images whose patient is a guess, such as a block of neighbours.
    """
    facts = (
        {
            **{name: row[name] for name in ("class", "dataset", "group")},
            **{name: float(row[name]) for name in ("source_width", "source_height", "black_share")},
            "overlays": tuple(row["flags"].split()),
        }
        for row in rows
    )
    unknown = Counter(row["dataset"] for row in rows if not row["patient"])
    found = leak_report(plan) | {
        # Images of no named patient or video, by data set: only near copies keep those of one together.
        "patients_unknown": dict(sorted(unknown.items())),
        # Images whose patient of the manifest is a guess: blocks of neighbours, all of one day, one for all.
        "patients_guessed": dict(sorted(guessed.items())),
        "shortcut": shortcut_report(facts),
    }
    write_csv(out / "label_conflicts.csv", CONFLICT, plan.conflicts())
    path = out / "leak_report.json"
    write_if_new(path, [json.dumps(found, indent=2, ensure_ascii=False) + "\n"])
    near = found["near_copies"]
    print(
        f"copies: {found['exact_copies']['found']} exact, {near['near_found']} near, {near['mirror_found']} "
        f"mirrored, {found['label_conflicts']['pictures_dropped']} pictures dropped for two labels; "
        f"{found['across_splits']['groups']} groups across splits; "
        f"patients of {unknown.total()} images unknown, of {guessed.total()} guessed; see {path}"
    )
    print(found["shortcut"]["text"])


@dataclass
class ClassRows:
    """What a contact sheet depends on: the manifest rows of a class."""

    count: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    # The images to be shown, those with the smallest `share_of`, as (minus share, file).
    drawn: list[tuple[float, str]] = field(default_factory=list)


def classes_in(rows: Iterable[dict[str, str]], seed: int) -> dict[str, ClassRows]:
    """The rows of each class, read once."""
    classes = defaultdict(ClassRows)
    for row in rows:
        members = classes[row["class"]]
        members.count += 1
        members.digest.update(repr(row).encode())
        heapq.heappush(members.drawn, (-share_of(seed, "sheet", row["file"]), row["file"]))
        if len(members.drawn) > SHEET_PICTURES:
            heapq.heappop(members.drawn)
    return classes


def write_reports(
    settings: Settings, found: Found, index: Index, counts: Counter, old: dict[str, ClassRows]
) -> bool:
    """Write contact sheets, chart, lists and made_by.json where they are new; returns whether any was.

    Args:
        counts: see `Index.class_counts`.
        old: the classes of the manifest that was there before.
    """
    out = settings.out_root
    classes = classes_in(index.rows, settings.seed)
    same = {
        name for name in classes if name in old and classes[name].digest.digest() == old[name].digest.digest()
    }
    sheets = out / SHEETS
    jobs = []
    for name, members in sorted(classes.items()):
        if name in same and (sheets / f"{name}.png").is_file():
            continue
        shown = [file for _, file in sorted(members.drawn, reverse=True)]
        pictures = [
            (record, look.frame, out / file) for file in shown for _, record, look, *_ in index.written(file)
        ]
        title = (
            f"{name}: {len(shown)} of {members.count}; original with the crop drawn on it, beside the result"
        )
        jobs.append((settings.raw_root, pictures, sheets / f"{name}.png", title))
    index.add_ours(sheet_of(name) for name in classes)
    index.save()
    for _ in in_parallel("contact sheets", work.draw_sheet, jobs, len(jobs), settings.workers):
        pass
    for path in sheets.glob("*.png"):
        if path.stem not in classes and index.is_ours(sheet_of(path.stem)):
            path.unlink()
    index.keep_ours([sheet_of(name) for name in classes])
    header = ["source", "reason"]
    lists = [
        write_csv(out / "rejected.csv", header, reasons_of(found.rejected)),
        write_csv(out / "left_out.csv", header, reasons_of(found.left_out)),
    ]
    columns = (*SPLITS, "rejected", "left_out")
    rows = (
        {"class": name} | {column: counts[name, column] for column in columns}
        for name in sorted({name for name, _ in counts})
    )
    lists.append(write_csv(out / "per_class_by_split.csv", ["class", *columns], rows))
    changed = any(lists) or bool(jobs) or not same == set(classes) == set(old)
    chart = out / "per_class_by_split.png"
    if changed or not chart.is_file():
        report.bar_chart(chart, counts, sorted(classes))
        write_json(out / "made_by.json", made_by("data_preprocessing/prepare_datasets.py", settings))
    # The manifest comes last: it says that the rest is there.
    return write_csv(out / "manifest.csv", MANIFEST, index.rows) or changed


def say(settings: Settings, found: Found, counts: Counter, plan: Plan, done: Done) -> None:
    """The last words: table, what was done, and how many were rejected."""
    print(report.table(counts, sorted({name for name, _ in counts})))
    datasets = plan.pictures.number_N["dataset"][plan.over_cap_M]
    for dataset, count in zip(*np.unique(datasets, return_counts=True), strict=True):
        print(f"{plan.pictures.datasets[dataset]}: {count} pictures left out by --cap {settings.cap}")
    images = sum(counts[name, split] for name, split in counts if split in SPLITS)
    if done.written or done.removed or done.changed:
        print(
            f"{settings.out_root}: {images} images, {done.written} written, {done.removed} removed, "
            f"{images - done.written} as before"
        )
    else:
        print(f"{settings.out_root}: {images} images, nothing to do")
    if left_out := len(found.left_out):
        print(f"{left_out} left out by default or by a setting: see {settings.out_root / 'left_out.csv'}")
    reasons = Counter(map(report.short_reason, found.rejected.values()))
    why = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common(4))
    rejected, unreadable = reasons.total(), done.unreadable
    print(
        f"rejected {rejected} of {done.seen} ({unreadable} unreadable, {rejected - unreadable} copies)"
        + (f": {why}; see {settings.out_root / 'rejected.csv'}" if why else "")
    )


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
