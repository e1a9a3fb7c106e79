"""What the listings of sample_var.py and edit_var.py say of pictures in a folder that are to be judged.

Pictures that began with given tokens are never scored as generated, nor pictures of one transformer as
another's.
"""

import json
import re
from pathlib import Path
from typing import Any

from PIL import Image

from usvar.chosen import Drawing
from usvar.errors import InputError
from usvar.images import TOKENS_GIVEN

# What the scripts that write pictures call their listing; its made_by names the script.
LISTINGS = {"samples.json": "sample_var.py", "edit.json": "edit_var.py"}


def listed(folder: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The pictures of a folder that sample_var.py or edit_var.py list there or up to three folders above.

    Returns:
        For each what made it and what the listing says of it.

    Raises:
        InputError: when a listing of these scripts cannot be read.
    """
    pictures = []
    for place in (folder, *list(folder.parents)[:3]):
        for listing_name, script in LISTINGS.items():
            listing = place / listing_name
            text = listing.read_bytes() if listing.is_file() else b""
            # As text, so that a broken listing is still known as ours.
            if f'"{script}"'.encode() not in text:
                continue
            try:
                content = json.loads(text)
                pictures += [
                    (content["made_by"], {name: entry[name] for name in ("file", "prefixed")})
                    for entry in content["samples"]
                    if (place / entry["file"]).is_relative_to(folder)
                ]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{listing} does not say which pictures have a prefix ({error!r}): sample again"
                ) from error
    return pictures


def refuse_prefixed(folder: Path) -> None:
    """Refuse a folder in which a picture holds given tokens of a real image or of the position prior.

    A listing says so (another generator's files of these names are passed over); a moved folder still has K
    in its name, and a copied picture says it itself.

    Args:
        folder: holds <Class>/*.png, whose files can be read.

    Raises:
        InputError: when there is such a picture, or a listing that cannot be read.
    """
    folder = folder.resolve()
    for place in (folder, *list(folder.parents)[:3]):
        named = re.fullmatch(r"scale_\d+_K(\d+)", place.name)
        if named and int(named[1]):
            raise _refusal(folder, place.name)
    for _, entry in listed(folder):
        if entry["prefixed"]:
            raise _refusal(folder, entry["file"])
    for path in sorted(folder.glob("[!.]*/[!.]*.png")):  # nothing hidden, as images are found
        with Image.open(path) as picture:
            if TOKENS_GIVEN in picture.info:
                raise _refusal(folder, path.relative_to(folder).as_posix())


def require_drawn_by(folder: Path, var_sha256: str, drawing: Drawing | None) -> bool:
    """Refuse pictures that are listed as drawn by another transformer, or with other settings.

    Args:
        folder: holds <Class>/*.png.
        var_sha256: of the transformer.
        drawing: settings that they must have been drawn with; None: any.

    Returns:
        Whether a listing says that this transformer drew them; without one nothing is known.

    Raises:
        InputError: when another one did, or with other settings.
    """
    records = [made_by for made_by, _ in listed(folder.resolve())]
    for made_by in records:
        found = made_by["inputs"]["var"]["sha256"]
        if found != var_sha256:
            raise InputError(
                f"--generated {folder} was drawn by a transformer with SHA-256 {found[:12]}, --var has "
                f"{var_sha256[:12]}: give the one that drew these images"
            )
        for name, value in vars(drawing).items() if drawing else ():
            used = made_by["settings"][name]
            if used not in (value, [value]):  # sample_var.py may have a temperature for each scale
                raise InputError(
                    f"--generated {folder} was drawn with {name} {used}, --settings-from says {value}: leave "
                    "--settings-from out, or sample again with it"
                )
    return bool(records)


def _refusal(folder: Path, found: str) -> InputError:
    return InputError(
        f"--generated {folder.name} holds pictures that began with given tokens ({found}), wanted plain "
        "samples (K = 0): give scale_0_K0/plain of sample_var.py, or leave --generated out"
    )
