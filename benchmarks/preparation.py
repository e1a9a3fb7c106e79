"""Measure the preparation: planted copies in real pictures, and time and memory at full size.

    python benchmarks/preparation.py planted --raw-root data/raw
    python benchmarks/preparation.py search --count 50000
    python benchmarks/preparation.py load --count 10000
    python benchmarks/preparation.py load --count 100000 --width 60 --size 32

"planted" makes copies of the pictures below --raw-root in memory: resized to 50 to 200%, re-encoded as JPEG
at 80, mirrored, with calipers drawn on, cropped by 4 pixels on each side, and each two of these. Each copy is
cropped anew, once by the rule of its original's data set and once as a picture of which nothing is known, and
is looked for beside its original. Then one copy of each picture, every second with another label, joins all
originals. Ends with exit code 1 when less than 98% are found or a copy is on another side than its original.

"search" looks for near copies among generated hashes without a known patient; ends with exit code 1 when that
takes a minute or more, or 1.5 GB of memory.

"load" makes pictures of --width pixels, fans and rectangles with text beside them, and prepares them at
--size pixels, first a tenth of them, then all. Ends with exit code 1 below 60 images per second, or when any
process takes 1.5 GB of memory.
"""

import hashlib
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image, ImageDraw
from tqdm import tqdm

# A script's own folder is on the path, the repository's root is not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_preprocessing.catalogue import read_outline
from data_preprocessing.crop import cut, find_frame
from data_preprocessing.discover import Record, discover
from data_preprocessing.near_copies import SIDE, Signature, Smalls, find_copies, signature
from data_preprocessing.readers import Unreadable, read_grey
from data_preprocessing.splits import Picture, leak_report, make_plan, share_of
from usvar import cli
from usvar.errors import InputError

KINDS = ("resized", "jpeg 80", "mirrored", "calipers", "cropped by 4")
PLANTS = (*((kind,) for kind in KINDS), *combinations(KINDS, 2))
WANTED = 0.98
MOST_SECONDS, MOST_BYTES = 60, 1.5e9
LEAST_RATE = 60
# How much a generated picture differs from the others of its set; so about 0.1% of all pairs are candidates.
SET_CONTRAST = 0.8


@dataclass(frozen=True)
class Settings:
    # What to measure.
    mode: Annotated[Literal["planted", "search", "load"], tyro.conf.Positional]
    # planted: folder of data sets as prepare_datasets.py reads it.
    raw_root: Path = Path("data/raw")
    # planted: every n-th picture gets copies, one for each kind and for each two.
    every: int = 1
    # load: width of the pictures, and side of the prepared ones, in pixels.
    width: int = 600
    size: int = 256
    # search: number of hashes; load: number of pictures.
    count: int = 50_000
    seed: int = 0


def plant(grey_HW: np.ndarray, kinds: tuple[str, ...], stream: np.random.Generator) -> np.ndarray:
    """A copy of a picture, changed in the ways of `kinds`, one after the other.

    Args:
        grey_HW: uint8, at least 24 pixels per side.
        kinds: of KINDS.
        stream: draws size and place of what is changed.

    Returns:
        uint8, of another size for "resized" and "cropped by 4".
    """
    for kind in kinds:
        grey_HW = _CHANGES[kind](grey_HW, stream)
    return grey_HW


def _resized(grey_HW: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    height, width = (max(16, round(side)) for side in np.array(grey_HW.shape) * stream.uniform(0.5, 2))
    return np.asarray(Image.fromarray(grey_HW).resize((width, height), Image.Resampling.BICUBIC))


def _jpeg(grey_HW: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(grey_HW).save(file, "JPEG", quality=80)
    return np.asarray(Image.open(file))


def _calipers(grey_HW: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """Two dotted lines between crosses, and a measure in letters."""
    picture = Image.fromarray(grey_HW)
    draw = ImageDraw.Draw(picture)
    size = np.array(picture.size)
    short = min(picture.size)
    centre = stream.uniform(0.35, 0.65, 2) * size
    reach, arm, thick = stream.uniform(0.08, 0.2) * short, max(3, short / 60), max(1, short // 250)
    for angle in stream.uniform(0, np.pi, 2):
        step = reach * np.array([np.cos(angle), np.sin(angle)])
        for x, y in (centre - step, centre + step):
            draw.line([(x - arm, y), (x + arm, y)], fill=255, width=thick)
            draw.line([(x, y - arm), (x, y + arm)], fill=255, width=thick)
        for share in np.linspace(-1, 1, int(2 * reach / max(4, short / 80))):
            draw.point(tuple(centre + share * step), fill=255)
    draw.text(tuple(size * [0.05, 0.9]), "1 D 2.34 cm", fill=255, font_size=max(8, short // 25))
    return np.asarray(picture)


_CHANGES = {
    "resized": _resized,
    "jpeg 80": _jpeg,
    "mirrored": lambda grey_HW, stream: np.ascontiguousarray(grey_HW[:, ::-1]),
    "calipers": _calipers,
    "cropped by 4": lambda grey_HW, stream: np.ascontiguousarray(grey_HW[4:-4, 4:-4]),
}


@dataclass(frozen=True)
class Planted:
    """A planted copy beside its original, as the plan sees the two."""

    original: Picture
    copy: Picture
    kinds: tuple[str, ...]
    # Whether it was cropped by the rule of its original's data set.
    same_rule: bool


def planted(settings: Settings) -> bool:
    """Plant copies and look for them; prints a table and returns whether enough were found."""
    stream = np.random.default_rng(settings.seed)
    originals, plants = [], []
    for n, record in enumerate(tqdm(discover(settings.raw_root).records, "plant")):
        try:
            grey_HW = read_grey(settings.raw_root / record.source, record.turn)
        except Unreadable:
            continue
        original = _original(settings.raw_root, record, grey_HW)
        originals.append(original)
        for kinds in PLANTS if n % settings.every == 0 else ():
            copy_HW = plant(grey_HW, tuple(stream.permutation(kinds)), stream)
            for rule in sorted({"auto", record.frame}):
                name = f"{record.source} {' + '.join(kinds)} {rule}"
                copy = replace(
                    original,
                    source=name,
                    dataset="Planted",
                    # Every second copy has another label than its original.
                    class_name="AB"[(original.class_name == "B") ^ (len(plants) % 2)],
                    group="",
                    split="",
                    sha256=hashlib.sha256(name.encode()).hexdigest(),
                    signature=signature(cut(copy_HW, find_frame(copy_HW, rule))),
                )
                plants.append(Planted(original, copy, kinds, rule == record.frame))
    if not plants:
        raise InputError(f"--raw-root {settings.raw_root} holds no picture that can be read")

    # Each copy alone with its original: no other copy of the picture may help to join the two.
    number = np.arange(2)
    found = [
        len(find_copies(*_stored([p.original.signature, p.copy.signature]), number, number, number).pair_P2)
        == 1
        for p in plants
    ]
    print(f"{'planted':28}{'copies':>8}{'found':>8}{'of which with the rule of the original':>40}")
    for kinds in (*PLANTS, None):
        mine = [(f, p.same_rule) for f, p in zip(found, plants, strict=True) if kinds in (None, p.kinds)]
        share, same = np.mean([f for f, _ in mine]), np.mean([f for f, rule in mine if rule])
        print(f"{' + '.join(kinds or ['all']):28}{len(mine):>8}{share:>8.1%}{same:>40.1%}")

    # One copy of each picture among all originals.
    once = [plants[int(stream.choice(members))] for members in _by_original(plants).values()]
    pictures = [*originals, *(p.copy for p in once)]
    plan = make_plan(pictures, settings.seed, 0)
    leaks, place_of = leak_report(plan), dict(plan.places())
    places = [(place_of.get(p.original.source), place_of.get(p.copy.source)) for p in once]
    across = sum(a is not None and b is not None and a.split != b.split for a, b in places)
    other_label = [p.original.class_name != p.copy.class_name for p in once]
    listed = {(row["source"], row["other_source"]) for row in plan.conflicts()}
    listed |= {(b, a) for a, b in listed}
    conflicts = sum((p.original.source, p.copy.source) in listed for p in once)
    print(
        f"one copy of each of {len(once)} pictures: {across} on another side than the original; "
        f"{conflicts} of {sum(other_label)} with another label dropped and listed; "
        f"check of the final places: {leaks['across_splits']}"
    )
    return np.mean(found) >= WANTED and across == 0


def _stored(signatures: Iterable[Signature]) -> tuple[np.ndarray, Smalls]:
    """The hashes in memory and the small versions on the disk, as find_copies takes them."""
    smalls, hashes = Smalls(), []
    for one in signatures:
        smalls.append(one.small)
        hashes.append(one.hash)
    return np.array(hashes, np.uint64), smalls


def _original(raw_root: Path, record: Record, grey_HW: np.ndarray) -> Picture:
    outline = read_outline(Path(record.outline)) if record.outline else None
    area_HW = cut(grey_HW, find_frame(grey_HW, record.frame, outline))
    sha256 = hashlib.sha256(repr(grey_HW.shape).encode() + grey_HW.tobytes()).hexdigest()
    # Two made-up classes, because the plan wants three groups in each; a patient has one.
    class_name = "AB"[share_of(record.group or sha256) < 0.5]
    return Picture(record.source, record.dataset, class_name, record.group, "", sha256, signature(area_HW))


def _by_original(plants: list[Planted]) -> dict[str, list[int]]:
    members = defaultdict(list)
    for n, p in enumerate(plants):
        members[p.original.source].append(n)
    return members


def search(settings: Settings) -> bool:
    """Time the search over generated hashes; prints the cost and returns whether it is low enough.

    As in real sets, pictures of one set look alike, and a fifth of all pictures are frames of videos.
    """
    stored = _stored(_made_up(settings))
    each = np.arange(settings.count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start, busy = time.perf_counter(), time.process_time()
    found = find_copies(*stored, each, each, np.zeros(settings.count, int))
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{settings.count:,} hashes: {found.compared:,} pairs compared, {found.candidates:,} candidates, "
        f"{found.examined:,} examined, {len(found.pair_P2):,} joined in {seconds:.1f} s ({busy:.1f} s of one "
        f"core); peak memory {peak / 1e6:,.0f} MB, of which {(peak - before) / 1e6:,.0f} MB by the search"
    )
    return seconds < MOST_SECONDS and peak < MOST_BYTES


def _made_up(settings: Settings) -> Iterator[Signature]:
    stream = np.random.default_rng(settings.seed)
    scene_HW = set_HW = np.zeros((SIDE, SIDE))
    for n in tqdm(range(settings.count), "generate"):
        if n % 1000 == 0:
            set_HW = _smooth_noise(stream)
        if n % 1000 >= 200 or n % 20 == 0:
            scene_HW = set_HW + SET_CONTRAST * _smooth_noise(stream)
        frame_HW = scene_HW + 0.1 * _smooth_noise(stream)
        grey_HW = np.clip(128 + 40 * frame_HW / frame_HW.std(), 1, 255).astype(np.uint8)
        yield signature(grey_HW)


def _smooth_noise(stream: np.random.Generator) -> np.ndarray:
    """A (SIDE, SIDE) picture with the falling spectrum of a natural one, standard deviation 1."""
    noise_HW = np.fft.ifft2(np.fft.fft2(stream.normal(size=(SIDE, SIDE))) * _SPECTRUM).real
    return noise_HW / noise_HW.std()


# Amplitude falls with the frequency.
_SPECTRUM = 1 / np.maximum(np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE))), 1 / SIDE)


def load(settings: Settings) -> bool:
    """Prepare `count` pictures with all cores; returns whether it was fast and small enough."""
    with tempfile.TemporaryDirectory() as folder:
        few, all_of_them = settings.count // 10, settings.count
        jobs = [(Path(folder), n, settings.seed, settings.width) for n in range(all_of_them)]
        with ProcessPoolExecutor() as pool:
            list(tqdm(pool.map(_make_screen, *zip(*jobs, strict=True), chunksize=64), "make", all_of_them))
        _, few_bytes = _prepare(Path(folder) / "few", Path(folder) / "out few", settings.size)
        all_s, all_bytes = _prepare(Path(folder) / "all", Path(folder) / "out all", settings.size)
    rate = all_of_them / all_s
    print(
        f"{all_of_them:,} images prepared in {all_s:.0f} s, {rate:.0f} a second, on {os.cpu_count()} cores; "
        f"largest process {all_bytes / 1e6:,.0f} MB; {few:,} images: {few_bytes / 1e6:,.0f} MB, so "
        f"{(all_bytes - few_bytes) / (all_of_them - few):,.0f} bytes an image more"
    )
    return rate >= LEAST_RATE and all_bytes < MOST_BYTES


def _prepare(raw_root: Path, out_root: Path, size: int) -> tuple[float, float]:
    """Run the script; seconds and memory of its largest process in bytes."""
    script = Path(__file__).resolve().parent.parent / "data_preprocessing" / "prepare_datasets.py"
    command = [sys.executable, str(script), "--raw-root", str(raw_root), "--out-root", str(out_root)]
    # A process of its own asks, or the larger of two runs would be told for both.
    asking = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", asking, *command, "--cap", "0", "--size", str(size)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return time.perf_counter() - start, int(done.stdout.split()[-1]) * 1024.0


def _make_screen(folder: Path, number: int, seed: int, width: int) -> None:
    """Write one picture of a scanner's screen, every tenth of them twice."""
    stream = np.random.default_rng([seed, number])
    height, unit = width * 3 // 4, width / 600
    coarse = Image.fromarray(stream.integers(0, 256, (12, 16)).astype(np.uint8))
    smooth_HW = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    echo_HW = smooth_HW * stream.rayleigh(0.7, (height, width)).astype(np.float32)
    y, x = np.mgrid[:height, :width] / unit
    if number % 2:
        radius, angle = np.hypot(x - 300, y + 40), np.abs(np.arctan2(x - 300, y + 40))
        inside = (radius > 80) & (radius < 470) & (angle < 0.6)
    else:
        inside = (x > 90) & (x < 510) & (y > 40) & (y < 420)
    screen = Image.fromarray(np.where(inside, echo_HW.clip(12, 255), 0).astype(np.uint8))
    text = f"Gain {number % 90} dB  12.5 MHz  {number}"
    ImageDraw.Draw(screen).text((8 * unit, 8 * unit), text, fill=200)
    for name in ("all", "few") if number % 20 < 2 else ("all",):
        path = folder / name / "Screens" / ("Rectangle", "Fan")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        screen.save(path, quality=90)


def main(settings: Settings) -> None:
    if settings.every < 1 or settings.count < 100:
        raise InputError("--every must be 1 or more, --count 100 or more")
    if not {"planted": planted, "search": search, "load": load}[settings.mode](settings):
        raise SystemExit("FAILED: see the figures above")


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
