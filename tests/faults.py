"""Runs of the training scripts in processes of their own, to be killed, stopped, starved and compared.

The processes come from a fork server that has imported torch once, so that a start costs no seconds.
"""

import importlib
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import test_train_var
import test_train_vqvae
import torch
import torch._dynamo  # every optimiser imports it: once in the fork server is enough

from usvar import cli
from usvar.files import TEMPORARY_PREFIX

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["faults", "train_vqvae", "train_var", "tokenize_multiscale_maps"])

LAST = {"train_vqvae": "last.pth", "train_var": "ar-ckpt-last.pth"}
TRAINERS = tuple(LAST)


def settings_of(script: str, tiny: dict[str, Path], out: Path, **changes: Any) -> Any:
    """Small settings of a trainer; `tiny` has the paths data, tokens and vqvae."""
    if script == "train_vqvae":
        return test_train_vqvae.settings(tiny["data"], out, **changes)
    return test_train_var.settings(tiny["tokens"], tiny["vqvae"], out, **changes)


def flags(settings: Any) -> list[str]:
    """Settings as a command line."""
    words = []
    for name, value in vars(settings).items():
        values = map(str, value) if isinstance(value, tuple) else [str(value)]
        words += [f"--{name.replace('_', '-')}", *values]
    return words


def _child(script: str, words: list[str], printed: Path, world: dict, before: Callable | None) -> None:
    """What the process does: the script as from a shell, with what it prints in a file, and no figures."""
    with open(printed, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(world)
    torch.set_num_threads(1)
    module = importlib.import_module(script)
    sys.argv = [f"{script}.py", *words]
    for name in ("draw_curves", "draw_reconstructions", "draw_samples"):
        if hasattr(module, name):
            setattr(module, name, lambda *_: None)
    if before:
        before()
    cli.run(module.main, module.Settings, module.__doc__)


def start(
    script: str, settings: Any, printed: Path, before: Callable | None = None, world: dict | None = None
) -> multiprocessing.Process:
    """Start a script; `before` is called in its process and must be picklable."""
    arguments = (script, flags(settings), printed, world or {}, before)
    process = PROCESSES.Process(target=_child, args=arguments, daemon=True)
    process.start()
    return process


def run(script: str, settings: Any, printed: Path, before: Callable | None = None) -> tuple[int, str]:
    """Exit code and all that a script prints."""
    process = start(script, settings, printed, before)
    process.join(400)
    assert process.exitcode is not None, printed.read_text()
    return process.exitcode, printed.read_text()


def run_two(script: str, settings: Any, printed: Path, before: Callable | None = None) -> list[int]:
    """Exit codes of two processes that train together; `before` is called in the second one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [
        start(
            script,
            settings,
            printed.with_suffix(f".{rank}"),
            before if rank else None,
            world | {"RANK": str(rank)},
        )
        for rank in range(2)
    ]
    for process in both:
        process.join(400)
    return [process.exitcode for process in both]


def error_line(printed: str) -> str:
    """The one line of an error, which may stand behind a progress bar."""
    (line,) = re.findall("error: .*", printed)
    return line


def wait_for(happened: Callable[[], bool], limit_s: float = 60) -> None:
    """Wait until something is so."""
    end = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def temporaries(folder: Path) -> list[str]:
    """Half-written files in a folder and those below it."""
    return sorted(path.name for path in folder.rglob(f"{TEMPORARY_PREFIX}*"))


class SignalAtStep:
    """Called before a run: sends its own process a signal at the end of a step, before that step is saved."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    def __call__(self) -> None:
        from usvar import training

        own = training.ema_update

        def update(averaged, model, step, decay, is_taken):
            own(averaged, model, step, decay, is_taken)
            if step == self.step - 1:
                os.kill(os.getpid(), self.number)

        training.ema_update = update
