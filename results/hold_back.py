"""List or remove the share of the public sets that is kept back for independent tests.

    python results/hold_back.py --raw-root data/raw                 # list: set, key, file
    python results/hold_back.py --raw-root data/raw --remove True   # delete those files from the raw root

A picture is kept back when the SHA-1 of its key, written in hexadecimal, ends in 0, 1 or 2: three of sixteen. The
key is the file's name, or where several pictures belong together what they share (patient, case, video), so that
they are kept back together. Run it on the raw root before prepare_datasets.py: then whoever downloads the
sets from their publishers trains on what the runs in this folder were trained on. Masks and lists stay.
"""

import hashlib
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# A script sees only its own folder; the shared packages lie one level up.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_preprocessing.catalogue import INCLUDES
from data_preprocessing.discover import discover
from usvar import cli
from usvar.errors import InputError

KEPT_BACK = "012"
# By data set: what of the end of a path the key is made of, and how.
KEYS = {
    "BUSI": (r"/(?P<name>[^/]+)", "{name}"),
    "BUSI_256": (r"/(?P<name>[^/]+)", "{name}"),
    "STU-Hospital": (r"/(?P<name>[^/]+)", "{name}"),
    "MMOTU-2D": (r"/(?P<name>[^/]+)", "{name}"),
    # The first picture of the examination.
    "HC18": (r"/(?P<examination>\d+)_\d?HC\.png", "{examination}_HC.png"),
    "CAMUS": (r"/(?P<patient>patient\d+)_[^/]+", "{patient}"),
    # Numbers repeat over the classes.
    "AUL": (r"/(?P<label>[^/]+)/image/(?P<name>[^/]+)", "{label}/{name}"),
    "DDTI": (r"/(?P<case>\d+)_\d+\.jpg", "case{case}"),
    # Frames of one video; the name of the video has its suffix.
    "COVID-LUS": (r"/(?P<video>[^/]+?)(_frame[^/]*)?", "{video}"),
}


@dataclass(frozen=True)
class Settings:
    # Folder with one folder for each data set, as for prepare_datasets.py.
    raw_root: Path
    # Delete the files that are kept back; without it they are only listed.
    remove: bool = False


def main(settings: Settings) -> None:
    found = discover(settings.raw_root, tuple(INCLUDES))
    sources = {record.source: record.dataset for record in found.records}
    keys = {source: key_of(source, name) for source, name in sources.items() if name in KEYS}
    held = {source: key for source, key in keys.items() if is_kept_back(key)}
    for source, key in sorted(held.items()):
        print(f"{sources[source]}\t{key}\t{source}")
        if settings.remove:
            (settings.raw_root / source).unlink()
    pictures = Counter(sources.values())
    kept_back = Counter(sources[source] for source in held)
    word = "removed" if settings.remove else "kept back"
    for name in sorted(pictures):
        rule = f"{kept_back[name]} {word}" if name in KEYS else "no share is kept back"
        print(f"{name}: {pictures[name]} pictures or videos, {rule}", file=sys.stderr)


def key_of(source: str, dataset: str) -> str:
    """The key of a picture.

    Args:
        source: path below the raw root, with forward slashes.
        dataset: its name in the catalogue, one of KEYS.

    Raises:
        InputError: the file is not named as in the copy that the rule was made for.
    """
    pattern, form = KEYS[dataset]
    match = re.search(f"{pattern}$", source)
    if match is None:
        raise InputError(
            f"{source}: {dataset} is not in the layout whose names decide what is kept back; wanted a path "
            f"that ends in {pattern}: bring that copy, or move this data set out of the raw root"
        )
    return form.format_map(match.groupdict())


def is_kept_back(key: str) -> bool:
    """Whether the SHA-1 of `key` in hexadecimal ends in 0, 1 or 2."""
    return hashlib.sha1(key.encode(), usedforsecurity=False).hexdigest()[-1] in KEPT_BACK


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
