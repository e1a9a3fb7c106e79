"""Prepare raw ultrasound pictures: crop, scale, split, and say what was done.

    python data_preprocessing/prepare_datasets.py --raw-root data/raw --out-root data/processed
    python data_preprocessing/prepare_datasets.py --raw-root data/raw --out-root data/small --size 64
    python data_preprocessing/prepare_datasets.py --raw-root data/raw --list  # known, found, missing

Reads <raw-root>/<DataSet>/... as unpacked by its publisher (catalogue/ knows which), and a person's own
pictures as <raw-root>/<AnyName>/<Class>/* or <raw-root>/<AnyName>/{train,val,test}/<Class>/*. Writes to
<out-root>: {train,val,test}/<Class>/<dataset>__<id>.png (grey stored as RGB), manifest.csv, rejected.csv,
left_out.csv, per_class_by_split.png, contact_sheets/<Class>.png and made_by.json. Raw data is never changed.

Run it again after a change or an interruption: only what is new is read and written, and outputs that are
no longer wanted are removed. Another --size writes all images anew; another --seed, --cap or --selection
writes only those that come or move.
"""

import csv
import dataclasses
import hashlib
import io
import json
import os
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NoReturn

import tyro
from tqdm import tqdm

# A script sees only its own folder; the shared packages lie one level up.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_preprocessing import catalogue, report, work
from data_preprocessing.discover import Found, Record, discover
from data_preprocessing.flags import FLAGS
from data_preprocessing.shortcut import shortcut_report
from data_preprocessing.splits import CONFLICT, SPLITS, Picture, Plan, leak_report, make_plan, share_of
from usvar import cli
from usvar.errors import InputError
from usvar.files import LOCK_NAME, atomic_path, lock_folder, remove_stale_temporaries, write_json, write_text
from usvar.provenance import made_by

# What was found in each raw picture, so that it is read only once.
INDEX = ".index.jsonl"
# Seconds between two saves of the index: a killed run loses no more than that.
SAVE_EVERY = 60
# A change in one of these files makes the index and all outputs stale.
VERSIONED = ("crop.py", "flags.py", "near_copies.py", "readers.py", "work.py")
SHEET_PICTURES = 24
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


@dataclass(frozen=True)
class Settings:
    # Folder with one folder for each data set, as unpacked by its publisher, or with class folders.
    raw_root: Path = Path("data/raw")
    # Where to write; a new or empty folder, or one that this script made.
    out_root: Path = Path("data/processed")
    # Print the known data sets, what of each is found under --raw-root and how to get the rest; do no more.
    list: tyro.conf.UseCounterAction[int] = 0
    # Side of the square output images in pixels, 16 to 1024.
    size: int = 256
    # Which classes: "all", "mission" (its six organs), or a JSON file {"class": "new name" or null}.
    selection: str = "all"
    # Classes to leave out, by name.
    exclude_classes: tuple[str, ...] = ()
    # What to bring back of that which is left out by default; --list prints the words of each data set.
    include: tuple[str, ...] = ()
    # Leave out pictures in which this was detected: calipers, doppler, dual (two views), text.
    exclude_flags: tuple[str, ...] = ()
    # Frames taken from each video or volume, evenly spaced.
    frames: int = 4
    # Largest number of images of one data set, drawn by whole patients; 0 for no cap.
    cap: int = 1000
    # Changes which patients are drawn and which split they go to.
    seed: int = 0
    # Processes; 0 for one on each core.
    workers: int = 0
    # Share of unreadable pictures, 0 to 1, above which the run stops before it writes an image.
    max_rejected: float = 0.2


def main(settings: Settings) -> None:
    if settings.list:
        print(report.list_data_sets(settings.raw_root))
        return
    check(settings)
    found = discover(settings.raw_root, settings.include)
    for note in found.notes:
        print(note)
    chosen = select(found, settings)
    with lock_folder(settings.out_root, "--out-root"):
        prepare(settings, found, chosen)


def prepare(settings: Settings, found: Found, chosen: list[Record]) -> None:
    """Look, plan, write, report: all that happens in the out root."""
    index = Index.load(settings.out_root)
    records = choose_frames(chosen, index, found, settings)

    # Look at every picture once.
    looks = {r.id: index.looks[key(r)] for r in records if key(r) in index.looks}
    new = [(settings.raw_root, rs) for rs in by_file(r for r in records if r.id not in looks)]
    try:
        for (_, part), seen in in_parallel("look", work.look, new, settings.workers):
            for record, one in zip(part, seen, strict=True):
                looks[record.id] = index.looks[key(record)] = one
            index.save_if_due(settings.out_root, records)
    except cli.Stopped as stop:
        done = f"{len(looks)} of {len(records)} pictures looked at; the same command goes on"
        raise cli.Stopped(stop.signal_number, done) from None
    finally:
        # Also for a run that is refused below: it goes on here when its settings are mended.
        index.save(settings.out_root, records)

    # Decide everything before anything is written.
    rejected = found.rejected | {r.id: looks[r.id].reason for r in records if looks[r.id].reason}
    left_out = found.left_out | flagged(records, looks, settings.exclude_flags)
    readable = [r for r in records if not looks[r.id].reason and r.id not in left_out]
    if not readable:
        source, reason = next(iter(rejected.items()))
        raise InputError(
            f"none of the {len(records)} pictures in {settings.raw_root} can be used; the first, {source}: "
            f"{reason}; wanted pictures such as PNG or JPEG: look at the files"
        )
    seen = len(found.rejected) + len(records)
    if len(rejected) > settings.max_rejected * seen:
        refuse(rejected, seen, settings)
    empty = found.empty_classes if settings.selection == "all" else []
    must_have = tuple(sorted(set(empty) - set(settings.exclude_classes)))
    pictures = [picture(r, looks[r.id]) for r in readable]
    plan = make_plan(pictures, settings.seed, settings.cap, must_have)
    kept = {r.id: r for r in readable if r.id in plan.places}
    files = {s: f"{plan.places[s].split}/{r.class_name}/{r.name}.png" for s, r in kept.items()}

    # An output stays when it was made from the same look, for the same place and size.
    outputs = {}
    for source, record in kept.items():
        output = index.outputs.get(key(record))
        same = output is not None and (output.file, output.size) == (files[source], settings.size)
        if same and length_of(settings.out_root / output.file) == output.bytes:
            outputs[source] = output
    removed = remove_outputs(settings.out_root, {output.file for output in outputs.values()})
    todo = sorted(set(files) - set(outputs))
    check_room(settings, len(todo))
    # Before the first write the index forgets what is to be overwritten: a killed run never leaves it wrong.
    index.outputs = {key(kept[source]): output for source, output in outputs.items()}
    index.save(settings.out_root, records)
    jobs = [
        (
            settings.raw_root,
            [(r, looks[r.id].frame, settings.out_root / files[r.id]) for r in rs],
            settings.size,
        )
        for rs in by_file(kept[s] for s in todo)
    ]
    try:
        for (_, part, _), written in in_parallel("write", work.write, jobs, settings.workers):
            for (record, *_), (sha256, length) in zip(part, written, strict=True):
                output = Output(files[record.id], settings.size, sha256, length)
                outputs[record.id] = index.outputs[key(record)] = output
            index.save_if_due(settings.out_root, records)
    finally:
        index.save(settings.out_root, records)

    rows = manifest_rows(kept, looks, plan, outputs)
    write_leak_report(settings.out_root, rows, pictures, plan)
    changed = write_reports(settings, rows, rejected | plan.dropped, left_out, kept, looks, outputs)
    say(settings, rows, rejected, left_out, plan, seen, len(todo), removed, changed)


def check(settings: Settings) -> None:
    """Refuse settings that cannot work, before anything is read."""
    if not 16 <= settings.size <= 1024:
        raise InputError(f"--size {settings.size}, wanted 16 to 1024")
    if settings.cap < 0 or settings.workers < 0:
        raise InputError("--cap and --workers must be 0 or more")
    if not 0 <= settings.max_rejected <= 1:
        raise InputError(f"--max-rejected {settings.max_rejected}, wanted a share from 0 to 1")
    if settings.frames < 1:
        raise InputError(f"--frames {settings.frames}, wanted at least 1")
    if unknown := sorted(set(settings.include) - set(catalogue.INCLUDES)):
        raise InputError(f"--include {unknown[0]}, known are {', '.join(catalogue.INCLUDES)}: see --list")
    if unknown := sorted(set(settings.exclude_flags) - set(FLAGS)):
        raise InputError(f"--exclude-flags {unknown[0]}, known are {', '.join(FLAGS)}")
    raw, out = settings.raw_root.resolve(), settings.out_root.resolve()
    if raw == out or raw in out.parents or out in raw.parents:
        raise InputError(
            f"--out-root {settings.out_root} and --raw-root {settings.raw_root} overlap: give two folders"
        )
    if out.exists() and not out.is_dir():
        raise InputError(f"--out-root {settings.out_root} is a file, wanted a folder")
    if out.is_dir() and {path.name for path in out.iterdir()} - {LOCK_NAME} and not (out / INDEX).is_file():
        raise InputError(
            f"--out-root {settings.out_root} holds files that this script did not make: give an empty folder"
        )


def select(found: Found, settings: Settings) -> list[Record]:
    """Keep, rename or drop classes as --selection and --exclude-classes say."""
    known = {r.class_name for r in found.records} | set(found.empty_classes)
    if unknown := sorted(set(settings.exclude_classes) - known):
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
    kept = [
        replace(r, class_name=new_name[r.class_name])
        for r in found.records
        if new_name.get(r.class_name) and r.class_name not in settings.exclude_classes
    ]
    if not kept:
        raise InputError(
            f"--selection {settings.selection} keeps none of the classes {', '.join(sorted(known))}"
        )
    folded = {}
    for name in sorted({r.class_name for r in kept}):
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
    except (OSError, ValueError) as error:
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
    ):
        raise InputError(
            f"class name {name!r} cannot be a folder's name: use letters, digits, blanks and hyphens"
        )


def by_file(records: Iterable[Record]) -> list[list[Record]]:
    """Records of one file together, so that a video or volume is opened once."""
    files: dict[str, list[Record]] = {}
    for record in records:
        files.setdefault(record.source, []).append(record)
    return list(files.values())


def choose_frames(records: list[Record], index: "Index", found: Found, settings: Settings) -> list[Record]:
    """One record a picture: videos and volumes become a few frames; those without a frame are rejected."""
    several = [(settings.raw_root, r, settings.frames) for r in records if r.take not in ("still", "first")]
    known = {frames_key(r, settings.frames) for _, r, _ in several} & set(index.frames)
    new = [job for job in several if frames_key(job[1], settings.frames) not in known]
    try:
        for (_, record, wanted), numbers in in_parallel("frames", work.frames_of, new, settings.workers):
            index.frames[frames_key(record, wanted)] = numbers
    finally:
        if new:
            index.save(settings.out_root)
    chosen = []
    for record in records:
        if record.take in ("still", "first"):
            chosen.append(record)
            continue
        numbers = index.frames[frames_key(record, settings.frames)]
        if isinstance(numbers, str):
            found.rejected[record.source] = numbers
            continue
        chosen += [replace(record, number=n, name=f"{record.name}_f{n:04}", frames=()) for n in numbers]
    return chosen


def flagged(records: list[Record], looks: dict[str, work.Look], unwanted: tuple[str, ...]) -> dict[str, str]:
    """id -> reason, for pictures in which something was detected that --exclude-flags names."""
    return {
        r.id: f"detected: {', '.join(hits)} (--exclude-flags)"
        for r in records
        if (hits := sorted(set(looks[r.id].flags) & set(unwanted)))
    }


def refuse(rejected: dict[str, str], seen: int, settings: Settings) -> NoReturn:
    """Stop because too many pictures are unusable; only the list of the reasons is written."""
    path = settings.out_root / "rejected.csv"
    write_csv(path, ["source", "reason"], reasons_of(rejected))
    source, reason = min(rejected.items())
    raise InputError(
        f"{len(rejected)} of {seen} pictures cannot be used, more than --max-rejected "
        f"{settings.max_rejected:g}; the first, {source}: {reason}; all are listed in {path}: mend or "
        "remove the files, or raise --max-rejected"
    )


def check_room(settings: Settings, images: int) -> None:
    """Stop before the disk runs full: a PNG of grey stored as RGB takes at most about a byte a pixel.

    To that come the lists, some 4 kB an image, and the contact sheets.
    """
    needed = images * (settings.size**2 + 4096) + (20 << 20) * (images > 0)
    home = next(
        path
        for path in (settings.out_root.absolute(), *settings.out_root.absolute().parents)
        if path.exists()
    )
    free = shutil.disk_usage(home).free
    if needed > free:
        raise InputError(
            f"{images} images of {settings.size} x {settings.size} need up to {needed / 1e9:.3f} GB, "
            f"{free / 1e9:.3f} GB are free at {settings.out_root}: make room, or lower --size or --cap"
        )
    if images:
        print(f"{images} images to write, up to {needed / 1e9:.2f} GB ({free / 1e9:.0f} GB free)")


def key(record: Record) -> str:
    """What must be unchanged for an earlier look at a picture to hold."""
    return json.dumps(
        [
            *(record.source, record.bytes, record.modified_ns, record.name, record.number),
            *(record.frame, record.turn, record.outline, record.outline_ns, record.axis, record.array),
        ]
    )


def frames_key(record: Record, wanted: int) -> str:
    """What must be unchanged for an earlier choice of frames to hold."""
    labels_ns = Path(record.labels).stat().st_mtime_ns if Path(record.labels).is_file() else 0
    return json.dumps(
        [
            *(record.source, record.bytes, record.modified_ns, record.take, record.axis, record.array),
            *(record.frames, record.labels, labels_ns, wanted),
        ]
    )


@dataclass(frozen=True, slots=True)
class Output:
    """A prepared image that was written."""

    # Below the out root.
    file: str
    size: int
    # Of its RGB pixels.
    sha256: str
    # Length of the file.
    bytes: int


class Index:
    """What earlier runs found and wrote, by `key`; empty when the code that crops has changed since."""

    def __init__(self) -> None:
        self.looks: dict[str, work.Look] = {}
        self.outputs: dict[str, Output] = {}
        # By `frames_key`: numbers of the chosen frames, or why there are none.
        self.frames: dict[str, list[int] | str] = {}
        self.saved = time.monotonic()

    @staticmethod
    def stamp() -> str:
        """A digest of the code that decides how a picture is read and cropped."""
        here = Path(__file__).resolve().parent
        return hashlib.sha256(b"".join((here / name).read_bytes() for name in VERSIONED)).hexdigest()

    @classmethod
    def load(cls, out_root: Path) -> "Index":
        """Read the index of an earlier run; an absent, damaged or outdated one counts as empty."""
        index = cls()
        try:
            with open(out_root / INDEX, encoding="utf-8") as lines:
                if json.loads(next(lines))["stamp"] != cls.stamp():
                    return index
                for row in map(json.loads, lines):
                    if "frames" in row:
                        index.frames[row["key"]] = row["frames"]
                        continue
                    index.looks[row["key"]] = work.Look.from_json(row["look"])
                    if row["output"]:
                        index.outputs[row["key"]] = Output(*row["output"])
        except (OSError, ValueError, KeyError, TypeError, StopIteration):
            return cls()
        return index

    def save(self, out_root: Path, records: list[Record] | None = None) -> None:
        """Write what is known (of `records`, if given), one JSON line each, if it differs from the file."""
        path = out_root / INDEX
        # Line by line: as one text it would be the largest thing in memory.
        if path.is_file():
            with open(path, encoding="utf-8") as old:
                same = all(was == line for was, line in zip_longest(old, self._lines(records)))
        if not path.is_file() or not same:
            with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
                file.writelines(self._lines(records))
        self.saved = time.monotonic()

    def _lines(self, records: list[Record] | None) -> Iterator[str]:
        yield json.dumps({"stamp": self.stamp()}) + "\n"
        for k, frames in sorted(self.frames.items()):
            yield json.dumps({"key": k, "frames": frames}) + "\n"
        for k in self.looks if records is None else map(key, records):
            if k in self.looks:
                output = dataclasses.astuple(self.outputs[k]) if k in self.outputs else None
                yield json.dumps({"key": k, "look": self.looks[k].as_json(), "output": output}) + "\n"

    def save_if_due(self, out_root: Path, records: list[Record]) -> None:
        """Save when the last time is SAVE_EVERY seconds ago."""
        if time.monotonic() - self.saved >= SAVE_EVERY:
            self.save(out_root, records)


def in_parallel(
    title: str, work_on: Callable, jobs: list[tuple], workers: int
) -> Iterator[tuple[tuple, Any]]:
    """Run `work_on(*job)` for each job over all cores; yields (job, result) in no fixed order.

    Only a few jobs a worker are in flight, so memory does not grow with their number. SIGINT and SIGTERM
    end it with cli.Stopped.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers or cores, len(jobs))
    with cli.stop_on_signals():
        if workers <= 1:
            for job in tqdm(jobs, title, disable=not jobs):
                yield job, work_on(*job)
            return
        pool = ProcessPoolExecutor(workers, initializer=cli.start_worker)
        try:
            waiting = iter(jobs)
            running = {pool.submit(work_on, *job): job for job in islice(waiting, 16 * workers)}
            with tqdm(total=len(jobs), desc=title, mininterval=0.5) as bar:
                while running:
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        job = running.pop(future)
                        yield job, future.result()
                        bar.update()
                    for job in islice(waiting, len(done)):
                        running[pool.submit(work_on, *job)] = job
        finally:
            pool.shutdown(cancel_futures=True)


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


def length_of(path: Path) -> int:
    """Length of a file in bytes, -1 when it is missing."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def remove_outputs(out_root: Path, wanted: set[str]) -> int:
    """Delete unwanted pictures, half-written ones and empty folders; returns how many pictures went."""
    removed = 0
    for split in SPLITS:
        for folder in sorted((out_root / split).glob("*/")):
            remove_stale_temporaries(folder)
            for path in folder.glob("*.png"):
                if f"{split}/{folder.name}/{path.name}" not in wanted:
                    path.unlink()
                    removed += 1
            if not any(folder.iterdir()):
                folder.rmdir()
    return removed


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, none when it is missing."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, header: list[str], rows: list[dict[str, Any]]) -> bool:
    """Write rows atomically; returns whether the file's text is new."""
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    if path.is_file() and path.read_text(encoding="utf-8") == text.getvalue():
        return False
    write_text(path, text.getvalue())
    return True


def reasons_of(reasons: dict[str, str]) -> list[dict[str, str]]:
    """source -> reason as rows of a list, sorted."""
    return [{"source": source, "reason": reason} for source, reason in sorted(reasons.items())]


def manifest_rows(
    kept: dict[str, Record], looks: dict[str, work.Look], plan: Plan, outputs: dict[str, Output]
) -> list[dict[str, str]]:
    """One row for each prepared image, by file name; all values as text, as they are read back."""
    rows = []
    for name, record in kept.items():
        seen, place, output = looks[name], plan.places[name], outputs[name]
        corners = " ".join(f"{x:g},{y:g}" for x, y in seen.frame.polygon)
        values = (
            *(output.file, record.source, record.dataset, record.organ, record.class_name, record.group),
            *(place.group, place.split, record.number, record.turn, seen.frame.kind),
            *(*seen.frame.box, corners),
            *(seen.width, seen.height, f"{seen.signature.black_share:.3f}", " ".join(seen.flags)),
            *(record.remark, output.size, output.sha256),
        )
        rows.append(dict(zip(MANIFEST, map(str, values), strict=True)))
    return sorted(rows, key=lambda row: row["file"])


def write_leak_report(out: Path, rows: list[dict[str, str]], pictures: list[Picture], plan: Plan) -> None:
    """Write label_conflicts.csv and leak_report.json where they are new, and say the main figures."""
    facts = [
        {
            **{name: row[name] for name in ("class", "dataset", "group")},
            **{name: float(row[name]) for name in ("source_width", "source_height", "black_share")},
            "overlays": tuple(row["flags"].split()),
        }
        for row in rows
    ]
    found = leak_report(pictures, plan) | {"shortcut": shortcut_report(facts)}
    write_csv(out / "label_conflicts.csv", CONFLICT, plan.conflicts)
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    path = out / "leak_report.json"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    near = found["near_copies"]
    print(
        f"copies: {found['exact_copies']['found']} exact, {near['near_found']} near, {near['mirror_found']} "
        f"mirrored, {found['label_conflicts']['pictures_dropped']} pictures dropped for two labels; "
        f"{found['across_splits']['groups']} groups across splits; see {path}"
    )
    print(found["shortcut"]["text"])


def write_reports(
    settings: Settings,
    rows: list[dict[str, str]],
    rejected: dict[str, str],
    left_out: dict[str, str],
    kept: dict[str, Record],
    looks: dict[str, work.Look],
    outputs: dict[str, Output],
) -> bool:
    """Write contact sheets, chart, lists and made_by.json where they are new; returns whether any was."""
    out = settings.out_root
    old_rows = read_csv(out / "manifest.csv")
    id_of = {output.file: name for name, output in outputs.items()}
    old, by_class = defaultdict(list), defaultdict(list)
    for table, members in ((old_rows, old), (rows, by_class)):
        for row in table:
            members[row["class"]].append(row)
    sheets = out / "contact_sheets"
    jobs = []
    for name, members in sorted(by_class.items()):
        if members == old[name] and (sheets / f"{name}.png").is_file():
            continue
        shown = sorted(members, key=lambda row: share_of(settings.seed, "sheet", row["file"]))
        shown = [(id_of[row["file"]], out / row["file"]) for row in shown[:SHEET_PICTURES]]
        pictures = [(kept[name], looks[name].frame, path) for name, path in shown]
        title = (
            f"{name}: {len(shown)} of {len(members)}; original with the crop drawn on it, beside the result"
        )
        jobs.append((settings.raw_root, pictures, sheets / f"{name}.png", title))
    for _ in in_parallel("contact sheets", work.draw_sheet, jobs, settings.workers):
        pass
    for path in sheets.glob("*.png"):
        if path.stem not in by_class:
            path.unlink()
    header = ["source", "reason"]
    lists = [write_csv(out / "rejected.csv", header, reasons_of(rejected))]
    lists += [write_csv(out / "left_out.csv", header, reasons_of(left_out))]
    changed = any(lists) or bool(jobs) or rows != old_rows
    chart = out / "per_class_by_split.png"
    if changed or not chart.is_file():
        counts = Counter((row["class"], row["split"]) for row in rows)
        report.bar_chart(chart, counts, sorted(by_class))
        write_json(out / "made_by.json", made_by("data_preprocessing/prepare_datasets.py", settings))
    # The manifest comes last: it says that the rest is there.
    return write_csv(out / "manifest.csv", MANIFEST, rows) or changed


def say(
    settings: Settings,
    rows: list[dict[str, str]],
    rejected: dict[str, str],
    left_out: dict[str, str],
    plan: Plan,
    seen: int,
    written: int,
    removed: int,
    changed: bool,
) -> None:
    """The last words: table, what was done, and how many were rejected."""
    counts = Counter((row["class"], row["split"]) for row in rows)
    print(report.table(counts, sorted({row["class"] for row in rows})))
    for name, number in sorted(plan.over_cap.items()):
        print(f"{name}: {number} pictures left out by --cap {settings.cap}")
    if written or removed or changed:
        print(
            f"{settings.out_root}: {len(rows)} images, {written} written, {removed} removed, "
            f"{len(rows) - written} as before"
        )
    else:
        print(f"{settings.out_root}: {len(rows)} images, nothing to do")
    if left_out:
        print(
            f"{len(left_out)} left out by default or by a setting: see {settings.out_root / 'left_out.csv'}"
        )
    reasons = Counter(reason.split(":")[0].split(" of ")[0] for reason in (rejected | plan.dropped).values())
    why = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common(4))
    print(
        f"rejected {len(rejected) + len(plan.dropped)} of {seen} ({len(rejected)} unreadable, "
        f"{len(plan.dropped)} copies)" + (f": {why}; see {settings.out_root / 'rejected.csv'}" if why else "")
    )


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
