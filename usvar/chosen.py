"""How tokens are drawn, and the file in which sweep_var.py keeps what it chose for the scripts that draw."""

import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from usvar import checks
from usvar.errors import InputError

S = TypeVar("S")


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn: the sampler's settings that are chosen."""

    # Strength of class guidance; it grows with the scale; 0: none.
    cfg: float
    # Draw only from this many most likely codes; 0: from all.
    top_k: int
    # Draw only from the most likely codes whose probabilities add up to this, 0 to 1; 0: from all.
    top_p: float
    # Divides the logits: below 1 less varied, above 1 more; one number, or one per scale.
    temperature: float | tuple[float, ...]

    @classmethod
    def of(cls, settings: Any) -> "Drawing":
        """As the settings of a script say, where a single temperature may stand in a tuple."""
        values = {name: getattr(settings, name) for name in DRAWING}
        temperature = values["temperature"]
        if isinstance(temperature, tuple) and len(temperature) == 1:
            (values["temperature"],) = temperature
        return cls(**values)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """One number, or one per scale."""
        return self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)

    def check(self) -> None:
        """Refuse settings with which no token can be drawn.

        Raises:
            InputError: names the first that is out of range.
        """
        given = {
            f"--cfg {self.cfg:g}": (self.cfg, "0 or more"),
            f"--top-k {self.top_k}": (self.top_k, "0 or more"),
            f"--top-p {self.top_p:g}": (self.top_p, "0 to 1"),
        }
        given |= {f"--temperature {number:g}": (number, checks.TEMPERATURE) for number in self.temperatures}
        for flag, (number, wanted) in given.items():
            if not checks.fits(number, wanted):
                raise InputError(f"{flag} was given, wanted {wanted}")

    def __str__(self) -> str:
        limits = {"guidance": self.cfg, "top-k": self.top_k, "top-p": self.top_p}
        words = [f"{name} {number:g}" if number else f"{name} off" for name, number in limits.items()]
        return ", ".join([*words, "temperature " + " ".join(f"{number:g}" for number in self.temperatures)])


# Their names, in this order.
DRAWING = tuple(field.name for field in fields(Drawing))


def with_chosen(settings: S, path: Path | None, var_sha256: str) -> S:
    """Settings of a script with cfg, top_k, top_p and temperature taken from a file of sweep_var.py.

    Args:
        settings: a dataclass with those four fields; temperature may be a number or a tuple of one.
        path: the file, or None: the settings are returned as they are.
        var_sha256: of the transformer that will draw; the file must be about the same.

    Raises:
        InputError: when the file is no such file, is about another transformer, or one of the four was given
            as a flag too (with its default value it looks as if it was not given, and gives way).
    """
    if path is None:
        return settings
    if not path.is_file():
        raise InputError(f"--settings-from {path} is missing: run sweep_var.py, or leave it out")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        chosen = {name: content["chosen"][name] for name in DRAWING}
        chosen |= {name: float(chosen[name]) for name in ("cfg", "top_p", "temperature")}
        if not isinstance(chosen["top_k"], int) or not all(map(math.isfinite, chosen.values())):
            raise ValueError(f"found {chosen}")
        about = content["var_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--settings-from {path} holds no chosen settings ({error!r}): give chosen.json of sweep_var.py"
        ) from error
    Drawing(**chosen).check()
    if about != var_sha256:
        raise InputError(
            f"--settings-from {path} was chosen for a transformer with SHA-256 {str(about)[:12]}, the one "
            f"given has {var_sha256[:12]}: run sweep_var.py on it"
        )
    if isinstance(getattr(settings, "temperature"), tuple):  # noqa: B009 - S is any dataclass
        chosen["temperature"] = (chosen["temperature"],)
    for name in DRAWING:
        if getattr(settings, name) not in (type(settings).__dataclass_fields__[name].default, chosen[name]):
            raise InputError(
                f"{checks.flag(name)} and --settings-from were given together: leave one of them out"
            )
    return replace(settings, **chosen)


def read_sweep(path: Path | None) -> dict[str, Any] | None:
    """What the sweep measured, from the file that `with_chosen` accepted; None without one.

    Raises:
        InputError: when the file does not say how the settings were chosen.
    """
    if path is None:
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if missing := [name for name in ("why", "rows", "stamps") if name not in content]:
        raise InputError(f"--settings-from {path} lacks {missing[0]}: run sweep_var.py again")
    return {name: content[name] for name in ("why", "rows", "stamps")}
