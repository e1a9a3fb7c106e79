"""List, remove or refuse the share of the public sets that is kept back for independent tests.

    python results/hold_back.py list --raw-root data/raw     # set, key or licence, file
    python results/hold_back.py remove --raw-root data/raw   # delete those files from the raw root
    python results/hold_back.py refuse --raw-root data/raw   # end with code 2 when one is there

A picture is kept back when the SHA-1 of its key, written in hexadecimal, ends in 0, 1 or 2: three of
sixteen. The key is the file's name, or where several pictures belong together what they share (patient,
case, video), so that they are kept back together. Lung videos whose source states no open licence go as
well: lung_sources.csv lists those that stay. Whoever downloads the sets from their publishers and removes
these files first trains on what the runs in this folder were trained on. Masks and lists stay.
"""

import csv
import hashlib
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import tyro

# A script sees only its own folder; the shared packages lie one level up.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_preprocessing.catalogue import INCLUDES
from data_preprocessing.discover import discover
from usvar import cli
from usvar.errors import InputError

KEPT_BACK = "012"
# By data set: the end of a path, and the key made of it. A set that is not listed has no known rule: all of
# it stays, and the summary says so. Files are read in any case of letters, so keys are spelled as published.
KEYS: dict[str, tuple[str, Callable[..., str]]] = {
    "BUSI": (r"/(?P<name>[^/]+)", lambda name: name.lower()),
    "BUSI_256": (r"/(?P<name>[^/]+)", lambda name: name.lower()),
    "STU-Hospital": (r"/Test_Image_(?P<number>\d+)\.png", lambda number: f"Test_Image_{number}.png"),
    "MMOTU-2D": (r"/(?P<name>[^/]+)", lambda name: re.sub(r"(?i)\.jpg$", ".JPG", name)),
    # The first picture of the examination.
    "HC18": (r"/(?P<examination>\d+)_\d?HC\.png", lambda examination: f"{examination}_HC.png"),
    # Its heads are HC18's training set again; its abdomens have no key.
    "Fast-U-Net": (
        r"/(?:(?P<examination>\d+)_\d?HC|[^/]+)\.png",
        lambda examination: f"{examination}_HC.png" if examination else "",
    ),
    "CAMUS": (r"/(?P<patient>patient\d+)_[^/]+", lambda patient: patient.lower()),
    # Numbers repeat over the classes.
    "AUL": (
        r"/(?P<label>[^/]+)/image/(?P<name>[^/]+)",
        lambda label, name: f"{label.capitalize()}/{name.lower()}",
    ),
    "DDTI": (r"/(?P<case>\d+)_\d+\.jpg", lambda case: f"case{case}"),
    # Frames of one video; the name of the video has its suffix.
    "COVID-LUS": (
        r"/(?P<video>[^/]+?)(?:_frame[^/]*)?",
        lambda video: open_lung_sources().get(video.lower(), video),
    ),
}


LUNG_SOURCES = Path(__file__).parent / "lung_sources.csv"


@dataclass(frozen=True)
class Settings:
    # What to do with the files.
    mode: Annotated[Literal["list", "remove", "refuse"], tyro.conf.Positional]

    # Folder with one folder for each data set, as for prepare_datasets.py.
    raw_root: Path


def main(settings: Settings) -> None:
    found = discover(settings.raw_root, tuple(INCLUDES))
    # A picture that is rejected for want of its publisher's list is read when the list comes.
    data_sets = dict(found.rejected_of) | {record.source: record.dataset for record in found.records}
    held = {source: why for source, name in data_sets.items() if (why := reason(source, name))}
    counts = Counter(data_sets[source] for source in held)
    summary = [
        f"{name}: {count} pictures or videos, "
        + (f"{counts[name]} kept back" if name in KEYS else "no rule: all stays")
        for name, count in sorted(Counter(data_sets.values()).items())
    ]
    if settings.mode == "refuse":
        if held:
            raise InputError(
                f"{len(held)} files in {settings.raw_root} are kept back for tests, the first {min(held)}: "
                f"python results/hold_back.py remove --raw-root {settings.raw_root} deletes them"
            )
        print("\n".join(summary))
        return
    for source, why in sorted(held.items()):
        print(f"{data_sets[source]}\t{why}\t{source}")
        if settings.mode == "remove":
            (settings.raw_root / source).unlink()
    print("\n".join(summary), file=sys.stderr)


def reason(source: str, dataset: str) -> str:
    """Why a picture is kept back, its key or its licence, or "" where it stays."""
    if dataset not in KEYS:
        return ""
    key = key_of(source, dataset)
    if dataset == "COVID-LUS" and key not in open_lung_sources().values():
        return "no open licence"
    return key if key and is_kept_back(key) else ""


@lru_cache
def open_lung_sources() -> dict[str, str]:
    """Lung videos whose source states a Creative Commons licence, and three stills, by their lower case."""
    with open(LUNG_SOURCES, newline="", encoding="utf-8") as file:
        return {row["source"].lower(): row["source"] for row in csv.DictReader(file)}


def key_of(source: str, dataset: str) -> str:
    """The key of a picture, "" where it has none and stays.

    Args:
        source: path below the raw root, with forward slashes.
        dataset: its name in the catalogue, one of KEYS.

    Raises:
        InputError: the file is not named as in the copy that the rule was made for.
    """
    pattern, spelled = KEYS[dataset]
    match = re.search(f"{pattern}$", source, re.IGNORECASE)
    if match is None:
        raise InputError(
            f"{source}: {dataset} is not in the layout whose names decide what is kept back; wanted a path "
            f"that ends in {pattern}: bring that copy, or move this data set out of the raw root"
        )
    return spelled(**match.groupdict())


def is_kept_back(key: str) -> bool:
    """Whether the SHA-1 of `key` in hexadecimal ends in 0, 1 or 2."""
    return hashlib.sha1(key.encode(), usedforsecurity=False).hexdigest()[-1] in KEPT_BACK


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
