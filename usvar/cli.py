"""How every script starts: flags from a settings dataclass, one clear line for a wrong input.

Exit codes: 0 done, 2 wrong input (nothing half-written), 3 a run that cannot go on (disk or memory full, a
read that hangs, a loss that is not finite; what was saved before is whole), 130 and 143 stopped by SIGINT and
SIGTERM after saving (the same command goes on from there).
"""

import contextlib
import errno
import io
import math
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from usvar import checks
from usvar.errors import InputError, RunError
from usvar.files import NO_ROOM
from usvar.signals import Stopped

S = TypeVar("S")

NO_PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
OUT_OF_MEMORY = "out of memory|can't allocate memory|not enough memory"


def run(main: Callable[[S], Any], settings_class: type[S], description: str | None) -> None:
    """Parse the command line into `settings_class`, call `main` and turn wrong input into one line.

    Args:
        main: the script's main function.
        settings_class: a frozen dataclass; its fields are the flags, their comments the help.
        description: the script's docstring.

    Raises:
        SystemExit: with code 2 for a wrong flag or an InputError, 3 for a RunError, 130 or 143 after a stop.
    """
    settings = parse(settings_class, description, sys.argv[1:])
    try:
        main(settings)
    except (InputError, RunError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, InputError) else 3) from None
    except (MemoryError, RuntimeError) as error:
        # PyTorch has a type of its own for a GPU that is full and none for other memory.
        if not isinstance(error, MemoryError) and not re.search(OUT_OF_MEMORY, str(error)):
            raise
        reason = one_line(str(error))[:200]
        print(
            f"error: the memory does not suffice ({reason}): give a smaller --batch-size; in training, "
            "--accumulate and --recompute True need less as well",
            file=sys.stderr,
        )
        raise SystemExit(3) from None
    except OSError as error:
        if error.errno in NO_PLACE:
            reason = one_line(str(error))
            print(
                f"error: {reason}: a file stands where a folder must go, or a name is too long; move it or "
                "name another place",
                file=sys.stderr,
            )
            raise SystemExit(2) from None
        if error.errno not in NO_ROOM:
            raise
        print(f"error: {one_line(str(error))}: make room, then give the same command again", file=sys.stderr)
        raise SystemExit(3) from None
    except Stopped as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        raise SystemExit(128 + stop.signal_number) from None
    except KeyboardInterrupt:
        print("stopped: run the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None


def parse(settings_class: type[S], description: str | None, arguments: list[str]) -> S:
    """Flags to settings; a wrong flag is one line on stderr and exit code 2.

    No setting of any script is NaN or infinite, and not every one has a range to be checked against: such
    numbers are refused here for all, and so is an --out-dir or --out-root that is a file.

    tyro explains a wrong flag in a framed box of many lines. We keep its first statement and its
    suggestions, in one line that a log file or a terminal shows whole.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            settings = tyro.cli(
                settings_class, description=description, args=arguments, config=(tyro.conf.FlagConversionOff,)
            )
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
        print(f"error: {_flag_error(box.getvalue())}", file=sys.stderr)
        raise SystemExit(2) from None
    given = [word.split("=")[0].replace("_", "-") for word in arguments if word.startswith("--")]
    for name, value in vars(settings).items():
        flag = checks.flag(name)
        if isinstance(value, tuple) and given.count(flag) > 1:
            # tyro would forget the first values without a word. Of single values the last one counts: people
            # add a flag to a command and expect that.
            print(f"error: {flag} was given twice: give it once, with all its values", file=sys.stderr)
            raise SystemExit(2)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                print(f"error: {flag} {number} was given, wanted a finite number", file=sys.stderr)
                raise SystemExit(2)
    for name in ("out_dir", "out_root"):
        out = getattr(settings, name, None)
        nearest = next((path for path in (out, *out.parents) if path.exists()), None) if out else None
        if nearest and not nearest.is_dir():
            flag = checks.flag(name)
            print(f"error: {flag} {out} was given, but {nearest} is a file: name a folder", file=sys.stderr)
            raise SystemExit(2)
    return settings


def _flag_error(box: str) -> str:
    """The statement and the suggestions of tyro's box, whose frame is absent in an ASCII terminal."""
    rows = [row.strip(" │╭╮╰╯") for row in box.splitlines()][1:]
    rows = [re.sub(r"\[/?bold\]", "", row) for row in rows]
    blocks = [one_line(block) for block in re.split("[─-]{8,}", "\n".join(rows))]
    blocks = [block for block in blocks if block]
    statement = re.sub(r"\S+\.py:", "the command line:", blocks[0])
    unknown = [block for block in blocks[1:] if block.startswith("Unrecognized options")]
    near = re.findall(r"(?:meant:|similar to --\S+:) (--\S+)", " ".join(blocks))
    hints = [f"did you mean {' or '.join(near)}?"] if near else []
    return "; ".join([statement, *unknown, *hints, "--help lists all flags"])


def one_line(text: str) -> str:
    """White space of any kind folded into single blanks."""
    return " ".join(text.split())
