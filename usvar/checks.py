"""Checks of settings that several scripts make, before anything is written."""

import re
from pathlib import Path
from typing import Any

from usvar.errors import InputError


def fits(number: float, wanted: str) -> bool:
    """Whether a number is in a range; NaN and infinity are in none.

    Args:
        number: what is looked at.
        wanted: "1 or more", "above 0", "0 to 1" or "0 to below 1", with any numbers.
    """
    is_above, least, to = re.fullmatch(r"(above )?([\d.]+)(?: or more| to (.+))?", wanted).groups()
    most = to.removeprefix("below ") if to else "inf"
    fits_below = number > float(least) if is_above else number >= float(least)
    fits_above = number <= float(most) if to == most else number < float(most)
    return fits_below and fits_above


def require(settings: Any, wanted: str, *names: str) -> None:
    """Refuse numbers that are out of range.

        require(s, "1 or more", "steps", "batch_size")
        require(s, "0 to below 1", "betas")

    Args:
        settings: the dataclass.
        wanted: see `fits`.
        names: fields of it: a number, several, or None.

    Raises:
        InputError: names the first flag that is out of range, what it is and what was wanted.
    """
    for name in names:
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple) else () if value is None else (value,):
            if not fits(number, wanted):
                raise InputError(f"--{name.replace('_', '-')} {number} was given, wanted {wanted}")


def require_file(flag: str, path: Path | None) -> None:
    """Refuse an optional file that is not there.

    Raises:
        InputError: names the flag.
    """
    if path is not None and not path.is_file():
        raise InputError(f"{flag} {path} is no file: leave it out, or correct it")
