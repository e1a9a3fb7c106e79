"""Ctrl-C and SIGTERM: how a training loop, and work over a pool of processes, stop in good order."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Under torchrun, one Ctrl-C reaches a process twice, from the terminal and from torchrun.
REPEAT_S = 2.0


class Stopped(Exception):
    """Raised by a script after it has saved, when a signal asked it to stop.

    Args:
        signal_number: the signal that was received, such as signal.SIGINT.
        message: where the state was saved.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class StopSignal:
    """Turns SIGINT and SIGTERM into a flag that the loop reads after a step; Ctrl-C again stops at once.

    Python's own handlers wait for the main thread, which may be in a long call that runs no Python, or in a
    read that hangs. So a thread of its own counts the signals, told of each by a pipe, and ends the process
    at the second SIGINT with exit code 130. Repeated SIGTERMs, as schedulers send them, are one; so are two
    SIGINTs within REPEAT_S under torchrun, which passes on a Ctrl-C that the process has got as well.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "StopSignal":
        self._before = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        told, self._tell = os.pipe()
        os.set_blocking(self._tell, False)
        self._told_before = signal.set_wakeup_fd(self._tell)
        threading.Thread(target=self._watch, args=(told,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._told_before)
        # The thread ends with its pipe.
        os.close(self._tell)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def as_error(self, step: int, last_path: Path) -> Stopped:
        """What every process raises after the loop; the signal may have reached another one only.

        Args:
            step: the last one taken, after which all was saved.
            last_path: the checkpoint of it.
        """
        text = f"step {step} is in {last_path}; the same command goes on"
        return Stopped(self.received or signal.SIGINT, text)

    def _receive(self, number: int, _frame: object) -> None:
        self.received = self.received or number

    def _watch(self, told: int) -> None:
        first_at = None
        patience = REPEAT_S if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
        with open(told, "rb", buffering=0) as pipe:
            while numbers := pipe.read(64):
                for number in numbers:
                    if first_at is None and number in (signal.SIGINT, signal.SIGTERM):
                        first_at = time.monotonic()
                    elif number == signal.SIGINT and time.monotonic() - first_at >= patience:
                        os._exit(128 + signal.SIGINT)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into Stopped inside the block, for work over a pool of processes."""

    def stop(number: int, _: Any) -> None:
        raise Stopped(number, "run the same command again to go on")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
