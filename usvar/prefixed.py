"""Pictures that began with given tokens are never scored as generated: how to tell them."""

import json
import re
from pathlib import Path

from PIL import Image

from usvar.errors import InputError
from usvar.images import TOKENS_GIVEN

# What the scripts that write pictures call their listing; its made_by names the script.
LISTINGS = {"samples.json": "sample_var.py", "edit.json": "edit_var.py"}


def refuse_prefixed(folder: Path) -> None:
    """Refuse a folder in which a picture holds given tokens of a real image or of the position prior.

    sample_var.py and edit_var.py list their pictures in samples.json and edit.json, up to three folders above
    them (another generator's files of these names are passed over); a moved folder still has K in its name,
    and a copied picture says it itself.

    Args:
        folder: holds <Class>/*.png, whose files can be read.

    Raises:
        InputError: when there is such a picture, or a listing that cannot be read.
    """
    folder = folder.resolve()
    for place in (folder, *list(folder.parents)[:3]):
        named = re.fullmatch(r"scale_\d+_K(\d+)", place.name)
        found = place.name if named and int(named[1]) else None
        for name, script in LISTINGS.items():
            listing = place / name
            # As text, so that a broken listing is still known for ours.
            if found is None and listing.is_file() and f'"{script}"'.encode() in listing.read_bytes():
                try:
                    entries = json.loads(listing.read_text(encoding="utf-8"))["samples"]
                    given = [entry["file"] for entry in entries if entry["prefixed"]]
                except (ValueError, KeyError, TypeError) as error:
                    raise InputError(
                        f"{listing} does not say which pictures have a prefix ({error!r}): sample again"
                    ) from error
                found = next((name for name in given if (place / name).is_relative_to(folder)), None)
        if found is not None:
            raise _refusal(folder, found)
    for path in sorted(folder.glob("[!.]*/[!.]*.png")):  # nothing hidden, as images are found
        with Image.open(path) as picture:
            if TOKENS_GIVEN in picture.info:
                raise _refusal(folder, path.relative_to(folder).as_posix())


def _refusal(folder: Path, found: str) -> InputError:
    return InputError(
        f"--generated {folder.name} holds pictures that began with given tokens ({found}), wanted plain "
        "samples (K = 0): give scale_0_K0/plain of sample_var.py, or leave --generated out"
    )
