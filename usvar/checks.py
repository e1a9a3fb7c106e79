"""Checks of settings that several scripts make, before anything is written."""

import re
from pathlib import Path
from typing import Any

from usvar.errors import InputError

# What the sampler takes: logits divided by less can pass what a float holds.
TEMPERATURE = "0.000001 or more"


def flag(name: str) -> str:
    """The flag of a settings field: batch_size -> --batch-size."""
    return f"--{name.replace('_', '-')}"


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
                raise InputError(f"{flag(name)} {number} was given, wanted {wanted}")


def require_class_drop(cfg: float, config: dict[str, Any]) -> None:
    """Refuse guidance of a transformer that never learned the "no class" which guidance subtracts.

    Args:
        cfg: strength of guidance; 0: none.
        config: of the loaded transformer; a published one does not say how it was trained, and passes.

    Raises:
        InputError: when it was trained without class dropout and cfg is above 0.
    """
    if cfg > 0 and config["arguments"].get("cond_drop_rate") == 0:
        raise InputError(
            f"--cfg is {cfg:g}, but the transformer was trained without class dropout (--class-drop 0), "
            "which guidance needs: give --cfg 0"
        )


def require_file(name: str, path: Path | None) -> None:
    """Refuse an optional file that is not there.

    Raises:
        InputError: with the flag's `name`.
    """
    if path is not None and not path.is_file():
        raise InputError(f"{name} {path} is no file: leave it out, or correct it")


def require_class_names(path: Path, classes: Any) -> None:
    """Refuse names that are no plain names of different folders: each class has a folder of images.

    Args:
        path: the file that lists them, for the message.
        classes: what it lists.

    Raises:
        InputError: for anything but different names without slashes, dots in front and control characters.
    """
    if not isinstance(classes, list | tuple) or not classes:
        raise InputError(f"{path} lists no classes, wanted a list of names: make it again")
    for name in classes:
        is_name = isinstance(name, str) and name.isprintable() and 0 < len(name.encode()) < 200
        if not is_name or name.startswith(".") or "/" in name or "\\" in name:
            raise InputError(f"{path}: {str(name)[:80]!r} is no class name: make it again")
    if len({name.casefold() for name in classes}) < len(classes):
        raise InputError(f"{path} lists a class twice: {', '.join(classes)[:200]}: make it again")
