"""Prepare raw ultrasound pictures: crop, scale, split, and say what was done.

    python data_preprocessing/prepare_datasets.py --raw-root data/raw --out-root data/processed
    python data_preprocessing/prepare_datasets.py --raw-root data/raw --out-root data/small --size 64 --cap 100

Reads <raw-root>/<DataSet>/... as unpacked by its publisher (catalogue.py knows which), and a person's own pictures as
<raw-root>/<AnyName>/<Class>/* or <raw-root>/<AnyName>/{train,val,test}/<Class>/*. Writes to <out-root>:
{train,val,test}/<Class>/<dataset>__<id>.png (grey stored as RGB), manifest.csv, rejected.csv, per_class_by_split.png,
contact_sheets/<Class>.png and made_by.json. Raw data is never changed.

Run it again after a change or an interruption: only what is new is read and written, and outputs that are no longer
wanted are removed. Another --size writes all images anew; another --seed, --cap or --selection moves only some of them.
"""

import csv
import hashlib
import io
import json
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

# A script sees only its own folder; the shared packages lie one level up.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import base64

from data_preprocessing import catalogue, report, work
from data_preprocessing.discover import Record, discover
from data_preprocessing.splits import SPLITS, Picture, Plan, make_plan, share_of
from usvar import cli
from usvar.errors import InputError
from usvar.files import remove_stale_temporaries, write_json, write_text
from usvar.provenance import made_by

# What was found in each raw picture, so that it is read only once.
INDEX = ".index.jsonl"
# A change in one of these files makes the index and all outputs stale.
VERSIONED = ("crop.py", "readers.py", "work.py")
SHEET_PICTURES = 24
MANIFEST = [
    "file",
    "source",
    "dataset",
    "organ",
    "class",
    "patient",
    "group",
    "split",
    "frame",
    "frame_kind",
    "crop_left",
    "crop_top",
    "crop_right",
    "crop_bottom",
    "source_width",
    "source_height",
    "output_size",
    "sha256",
]


@dataclass(frozen=True)
class Settings:
    # Folder with one folder for each data set, as unpacked by its publisher, or with class folders.
    raw_root: Path
    # Where to write; a new or empty folder, or one that this script made.
    out_root: Path
    # Side of the square output images in pixels, 16 to 1024.
    size: int = 256
    # Which classes: "all", "mission" (the six organs of the mission), or a JSON file {"class": "new name" or null}.
    selection: str = "all"
    # Classes to leave out, by name.
    exclude_classes: tuple[str, ...] = ()
    # Largest number of images of one data set, drawn by whole patients; 0 for no cap.
    cap: int = 1000
    # Changes which patients are drawn and which split they go to.
    seed: int = 0
    # Processes; 0 for one on each core.
    workers: int = 0
    # Share of unreadable pictures, 0 to 1, above which the last lines say so loudly.
    warn_rejected: float = 0.2


def main(settings: Settings) -> None:
    check(settings)
    found = discover(settings.raw_root)
    for note in found.notes:
        print(note)
    records = select(found.records, settings)
    stamp = version_stamp()
    old_size, old_index = load_index(settings.out_root, stamp)

    # Look at every picture once.
    looks = {r.source: old_index[key(r)] for r in records if key(r) in old_index}
    new = [r for r in records if r.source not in looks]
    try:
        with stop_on_signals():
            for record, seen in in_parallel(
                settings, "look", work.look, [(settings.raw_root, r) for r in new]
            ):
                looks[record[1].source] = seen
    except cli.Stopped as stop:
        save_index(settings, stamp, old_size or settings.size, records, looks)
        raise cli.Stopped(
            stop.signal_number, f"{len(looks)} of {len(records)} pictures looked at; the same command goes on"
        ) from None

    # Decide, before anything is written.
    readable = [r for r in records if not looks[r.source].reason]
    rejected = found.rejected | {r.source: looks[r.source].reason for r in records if looks[r.source].reason}
    if not readable:
        raise InputError(
            f"none of the {len(records)} pictures below {settings.raw_root} can be read; the first: "
            f"{next(iter(rejected.items()), '')}: look at the files"
        )
    empty = tuple(sorted({name for name in found.empty_classes if name not in settings.exclude_classes}))
    plan = make_plan([picture(r, looks[r.source]) for r in readable], settings.seed, settings.cap, empty)
    targets = {
        r.source: f"{plan.places[r.source].split}/{r.class_name}/{r.name}.png"
        for r in readable
        if r.source in plan.places
    }

    # Remove what is stale or unwanted; from then on, a file that exists is right.
    stale_all = old_size != settings.size
    fresh = {r.source for r in new}
    wanted = {target for source, target in targets.items() if source not in fresh and not stale_all}
    removed = remove_outputs(settings.out_root, wanted)
    save_index(settings, stamp, settings.size, records, looks)
    by_source = {r.source: r for r in records}
    old_rows = {row["file"]: row for row in read_csv(settings.out_root / "manifest.csv")}
    digests = {
        source: old_rows[target]["sha256"]
        for source, target in targets.items()
        if target in old_rows and (settings.out_root / target).is_file()
    }
    todo = [source for source in sorted(targets) if source not in digests]
    jobs = [
        (settings.raw_root, by_source[s], looks[s].frame, settings.size, settings.out_root / targets[s])
        for s in todo
    ]
    with stop_on_signals():
        for job, digest in in_parallel(settings, "write", work.write, jobs):
            digests[job[1].source] = digest

    rows = manifest_rows(settings, by_source, looks, plan, targets, digests)
    changed = write_reports(settings, rows, rejected | plan.dropped, by_source, looks)
    say(settings, rows, rejected, plan, len(found.rejected) + len(records), len(todo), removed, changed)


def check(settings: Settings) -> None:
    """Refuse settings that cannot work, before anything is read."""
    if not 16 <= settings.size <= 1024:
        raise InputError(f"--size {settings.size}, wanted 16 to 1024")
    if settings.cap < 0 or settings.workers < 0:
        raise InputError("--cap and --workers must be 0 or more")
    if not 0 <= settings.warn_rejected <= 1:
        raise InputError(f"--warn-rejected {settings.warn_rejected}, wanted a share from 0 to 1")
    raw, out = settings.raw_root.resolve(), settings.out_root.resolve()
    if raw == out or raw in out.parents or out in raw.parents:
        raise InputError(
            f"--out-root {settings.out_root} and --raw-root {settings.raw_root} lie in each other: take two folders"
        )
    if out.exists() and not out.is_dir():
        raise InputError(f"--out-root {settings.out_root} is a file, wanted a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / INDEX).is_file():
        raise InputError(
            f"--out-root {settings.out_root} holds files that this script did not make: give a new or empty folder"
        )


def select(records: list[Record], settings: Settings) -> list[Record]:
    """Keep, rename or drop classes as --selection and --exclude-classes say."""
    known = {r.class_name for r in records}
    if unknown := sorted(set(settings.exclude_classes) - known):
        raise InputError(f"--exclude-classes {unknown[0]} is no class here, found {', '.join(sorted(known))}")
    if settings.selection == "all":
        new_name = {name: name for name in known}
    elif settings.selection == "mission":
        new_name = {name: name for name in catalogue.MISSION_CLASSES}
    else:
        new_name = read_mapping(Path(settings.selection))
        if unknown := sorted(set(new_name) - known):
            raise InputError(
                f"{settings.selection} names the class {unknown[0]!r}, found {', '.join(sorted(known))}"
            )
    kept = [
        replace(r, class_name=new_name[r.class_name])
        for r in records
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
            f"--selection {path} is neither 'all' nor 'mission' nor a JSON file that can be read ({cli.one_line(str(error))})"
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


def version_stamp() -> str:
    """A digest of the code that decides how a picture is read and cropped."""
    here = Path(__file__).resolve().parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in VERSIONED)).hexdigest()[:16]


def key(record: Record) -> str:
    """What must be unchanged for a look to hold."""
    return json.dumps(
        [
            record.source,
            record.bytes,
            record.modified_ns,
            record.frame,
            record.turn,
            record.outline,
            record.name,
        ]
    )


def load_index(out_root: Path, stamp: str) -> tuple[int, dict[str, work.Look]]:
    """The size of the outputs and the looks of an earlier run; (0, {}) when they do not hold any more."""
    try:
        with open(out_root / INDEX, encoding="utf-8") as lines:
            head = json.loads(next(lines))
            if head["stamp"] != stamp:
                return 0, {}
            return head["size"], {
                row["key"]: work.Look.from_json(row["look"]) for row in map(json.loads, lines)
            }
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return 0, {}


def save_index(
    settings: Settings, stamp: str, size: int, records: list[Record], looks: dict[str, work.Look]
) -> None:
    """Store the looks, one JSON line each."""
    lines = [json.dumps({"stamp": stamp, "size": size})]
    lines += [
        json.dumps({"key": key(r), "look": looks[r.source].as_json()}) for r in records if r.source in looks
    ]
    text = "\n".join(lines) + "\n"
    path = settings.out_root / INDEX
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into cli.Stopped inside the block."""

    def stop(number: int, _: Any) -> None:
        raise cli.Stopped(number, "the same command goes on")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_parallel(
    settings: Settings, title: str, work_on: Callable, jobs: list[tuple]
) -> Iterator[tuple[tuple, Any]]:
    """Run `work_on(*job)` for each job over all cores; yields (job, result) in no fixed order.

    Only a few hundred jobs are in flight, so memory does not grow with their number.
    """
    workers = (
        settings.workers or len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count()
    )
    if workers == 1 or len(jobs) < 4:
        for job in tqdm(jobs, title, disable=not jobs):
            yield job, work_on(*job)
        return
    pool = ProcessPoolExecutor(workers, initializer=work.start_worker)
    try:
        waiting = iter(jobs)
        running = {pool.submit(work_on, *job): job for job in islice(waiting, 16 * workers)}
        with tqdm(total=len(jobs), desc=title) as bar:
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
        record.source,
        record.dataset,
        record.class_name,
        record.group,
        record.split,
        seen.sha256,
        seen.dhash,
        base64.b64decode(seen.small),
    )


def remove_outputs(out_root: Path, wanted: set[str]) -> int:
    """Delete pictures that are not wanted, half-written ones and empty class folders; returns how many pictures went."""
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


def manifest_rows(
    settings: Settings,
    by_source: dict[str, Record],
    looks: dict[str, work.Look],
    plan: Plan,
    targets: dict[str, str],
    digests: dict[str, str],
) -> list[dict[str, Any]]:
    """One row for each prepared image, by file name."""
    rows = []
    for source, target in targets.items():
        record, seen, place = by_source[source], looks[source], plan.places[source]
        box = seen.frame.box
        values = (
            target,
            source,
            record.dataset,
            record.organ,
            record.class_name,
            record.group,
            place.group,
            place.split,
            0,
            seen.frame.kind,
            *box,
            seen.width,
            seen.height,
            settings.size,
            digests[source],
        )
        rows.append(dict(zip(MANIFEST, values, strict=True)))
    return sorted(rows, key=lambda row: row["file"])


def write_reports(
    settings: Settings,
    rows: list[dict[str, Any]],
    rejected: dict[str, str],
    by_source: dict[str, Record],
    looks: dict[str, work.Look],
) -> bool:
    """Write manifest, list of rejected, chart and contact sheets where they are new; returns whether any was."""
    out = settings.out_root
    old = defaultdict(list)
    for row in read_csv(out / "manifest.csv"):
        old[row["class"]].append(row)
    by_class = defaultdict(list)
    for row in rows:
        by_class[row["class"]].append(row)
    sheets = out / "contact_sheets"
    jobs = []
    for name, members in sorted(by_class.items()):
        same = [{k: str(v) for k, v in row.items()} for row in members] == old[name]
        if same and (sheets / f"{name}.png").is_file():
            continue
        shown = sorted(members, key=lambda row: share_of(settings.seed, "sheet", row["source"]))[
            :SHEET_PICTURES
        ]
        pairs = [(by_source[row["source"]], looks[row["source"]].frame) for row in shown]
        title = (
            f"{name}: {len(shown)} of {len(members)}; original with the crop drawn on it, beside the result"
        )
        jobs.append((settings.raw_root, pairs, settings.size, sheets / f"{name}.png", title))
    for _ in in_parallel(settings, "contact sheets", work.draw_sheet, jobs):
        pass
    for path in sheets.glob("*.png"):
        if path.stem not in by_class:
            path.unlink()
    counts = Counter((row["class"], row["split"]) for row in rows)
    # The manifest comes last: it says that the rest is there.
    changed = bool(jobs)
    changed |= write_csv(
        out / "rejected.csv",
        ["source", "reason"],
        [{"source": s, "reason": r} for s, r in sorted(rejected.items())],
    )
    is_new = [{k: str(v) for k, v in row.items()} for row in rows] != [r for c in sorted(old) for r in old[c]]
    if changed or is_new or not (out / "per_class_by_split.png").is_file():
        report.bar_chart(out / "per_class_by_split.png", counts, sorted(by_class))
    record = made_by("data_preprocessing/prepare_datasets.py", settings)
    if changed or is_new or not (out / "made_by.json").is_file():
        write_json(out / "made_by.json", record)
    return write_csv(out / "manifest.csv", MANIFEST, rows) | changed


def say(
    settings: Settings,
    rows: list[dict[str, Any]],
    rejected: dict[str, str],
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
            f"{settings.out_root}: {len(rows)} images, {written} written, {removed} removed, {len(rows) - written} as before"
        )
    else:
        print(f"{settings.out_root}: {len(rows)} images, nothing to do")
    share = len(rejected) / max(seen, 1)
    if share > settings.warn_rejected:
        print(
            f"WARNING: {share:.0%} of the pictures cannot be used (more than {settings.warn_rejected:.0%}): "
            f"look at {settings.out_root / 'rejected.csv'}"
        )
    reasons = Counter(reason.split(":")[0].split(" of ")[0] for reason in (rejected | plan.dropped).values())
    why = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common(4))
    print(
        f"rejected {len(rejected) + len(plan.dropped)} of {seen} ({len(rejected)} unreadable, {len(plan.dropped)} copies)"
        + (f": {why}; see {settings.out_root / 'rejected.csv'}" if why else "")
    )


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
