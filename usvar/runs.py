"""The folder of a run: its lock, settings and log; what it goes on from, and what it must not go on from."""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from usvar.checkpoints import is_whole, read_last
from usvar.checks import flag
from usvar.distributed import World
from usvar.errors import InputError
from usvar.files import (
    atomic_path,
    full_disk_named,
    lock_folder,
    remove_stale_temporaries,
    write_json,
    write_text,
)


class RunFolder:
    """A folder that one run writes at a time: settings.json, log.jsonl, checkpoints, figures.

    Args:
        path: the folder; made if missing.
        record: what makes the run, from `provenance.made_by`; None where `begin` will say it.

    Raises:
        InputError: when another run that is alive writes to the folder, or it cannot be written.
    """

    def __init__(self, path: Path, record: dict[str, Any] | None = None) -> None:
        self._lock = lock_folder(path)
        self.path, self.log_path = path, path / "log.jsonl"
        self.writer: Any = None
        remove_stale_temporaries(path)
        remove_stale_temporaries(path / "progress")
        if record is not None:
            write_json(path / "settings.json", record)

    def open_tensorboard(self, step: int) -> None:
        """From now on `log` writes numbers for TensorBoard as well; those after `step` are forgotten."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.writer = SummaryWriter(self.path / "tensorboard", purge_step=step + 1)

    def log(self, row: dict[str, Any]) -> None:
        """Append one line to log.jsonl; numbers that are not finite become null, in lists too.

        It reaches the disk before a checkpoint of the same step can. For TensorBoard a list, such as the use
        of each scale, is a scalar for each entry.
        """
        for name, value in row.items() if self.writer else ():
            for i, number in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(number, float):
                    label = f"{name}/{i + 1}" if isinstance(value, list) else name
                    self.writer.add_scalar(label, number, row["step"])
        clean = {name: _finite(value) for name, value in row.items()}
        with full_disk_named(self.log_path), open(self.log_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(clean, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def note(self, step: int, text: str) -> None:
        """Say something in the output and in the log."""
        print(f"note: {text}", flush=True)
        self.log({"step": step, "note": text})

    def begin(self, step: int, notes: Iterable[str], record: dict[str, Any]) -> None:
        """Write settings.json, drop log lines of steps after the checkpoint (a killed run's), log the notes.

        Not before it is known that there is something to do: a start that does nothing must not put its own
        settings and code revision beside checkpoints that were made with others.
        """
        write_json(self.path / "settings.json", record)
        if self.log_path.exists():
            kept = [row for row in read_log(self.log_path) if row["step"] <= step]
            write_text(self.log_path, "".join(json.dumps(row) + "\n" for row in kept))
        for text in notes:
            self.note(step, text)

    def close(self) -> None:
        """Let another run use the folder."""
        if self.writer:
            self.writer.close()
        self._lock.close()


def _finite(value: Any) -> Any:
    """The value, with None in place of numbers that JSON does not know."""
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def end_at_once(
    run: RunFolder | None, world: World, last_path: Path, best_path: Path, done: str, notes: Iterable[str]
) -> None:
    """End a run that has nothing left to do, and leave its files as they are.

    Args:
        run: the folder; None in all processes but the first.
        world: all processes.
        last_path: the checkpoint that says so.
        best_path: the checkpoint that the run is for.
        done: why nothing is left, for the message.
        notes: what the log would say of this start.

    Raises:
        InputError: when the best checkpoint is lost.
    """
    if not is_whole(best_path):
        raise InputError(
            f"{best_path} is missing or damaged, and {done}: delete {last_path.name} to train the last steps "
            "again from the checkpoint before it"
        )
    if run:
        for text in notes:
            print(f"note: {text}")
        print(f"nothing to do: {done}, as {last_path} says")
        run.close()
    world.close()


def keep_of_step(figure: Path, step: int) -> None:
    """Keep a copy of a figure that the next validation overwrites, as progress/<name>_<step> beside it."""
    kept = figure.parent / "progress" / f"{figure.stem}_{step:06}{figure.suffix}"
    with atomic_path(kept) as temporary:
        shutil.copyfile(figure, temporary)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a log.jsonl; a last line that a killed run left half-written is dropped."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def best_row(rows: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The row of a log whose number is lowest, the first of equals; None when no row has it."""
    return min((row for row in rows if row.get(name) is not None), key=lambda row: row[name], default=None)


def refuse_other_settings(path: Path, before: dict, now: dict, may_change: tuple[str, ...]) -> None:
    """A run goes on only with the settings and input files it was started with.

    Args:
        path: the checkpoint, for the message.
        before: made_by record of the checkpoint.
        now: made_by record of this start.
        may_change: names of settings that do not change the numbers, such as log intervals.

    Raises:
        InputError: names the first setting or input file that differs.
    """
    for name, value in now["settings"].items():
        old = before["settings"].get(name)
        if name not in may_change and old != value:
            # As they are typed.
            then, new = (" ".join(map(str, x if isinstance(x, list) else [x])) for x in (old, value))
            raise InputError(
                f"{path} was made with {name} = {then}, now it is {new}: "
                f"give {flag(name)} {then} to go on, or another --out-dir to start anew"
            )
    for role, file in now["inputs"].items():
        if before["inputs"].get(role, {}).get("sha256") != file["sha256"]:
            raise InputError(
                f"{path} was made with another {role.replace('_', ' ')} file or folder than {file['path']} "
                "(a file that was made again by another command or code revision is another one): "
                "give that one to go on, or another --out-dir to start anew"
            )


def refuse_other_config(path: Path, before: dict[str, Any], now: dict[str, Any], data: Path) -> None:
    """Refuse to go on with other classes or sizes than those of a checkpoint.

    Args:
        path: the checkpoint.
        before: its "config".
        now: the same of the data and settings at hand.
        data: where the data lie, for the message.

    Raises:
        InputError: for the first entry that differs.
    """
    for name, value in now.items():
        if (old := before.get(name)) != value:
            raise InputError(
                f"{path} was trained with {name} {old}, {data} has {value}: give the data that it was "
                "trained on to go on, or another --out-dir to start anew"
            )


def earlier_run(
    last_path: Path,
    best_path: Path,
    record: dict[str, Any],
    config: dict[str, Any],
    may_change: tuple[str, ...],
    data: Path,
    more_state: Mapping[str, tuple[str, type]] | None = None,
) -> tuple[dict[str, Any] | None, Path, list[str]]:
    """Read the checkpoint that a run goes on from, and refuse it when it belongs to another run.

    Args:
        last_path: the last checkpoint.
        best_path: the best one. When it is lost, no score counts as best: the next validation writes it anew.
        record: made_by record of this start.
        config: of the model at hand.
        may_change: see `refuse_other_settings`.
        data: see `refuse_other_config`.
        more_state: see `checkpoints.read_last`.

    Returns:
        Its content, None when no run has been here; the file it was read from, for messages about it; and
        what the log is to say.

    Raises:
        InputError: when it cannot be read, or settings, input files, classes or sizes differ.
    """
    last, found_path, note = read_last(last_path, more_state)
    notes = [note] if note else []
    if last:
        refuse_other_settings(found_path, last["made_by"], record, may_change)
        refuse_other_config(found_path, last["config"], config, data)
        if last["best"] < float("inf") and not is_whole(best_path):
            last["best"] = float("inf")
            notes.append(f"{best_path} is missing or damaged: the next validation writes it anew")
    return last, found_path, notes
