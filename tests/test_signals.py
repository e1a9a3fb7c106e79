"""Signals: noted by a loop, one line from a script, and no worker left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from usvar import signals

ROOT = Path(__file__).parents[1]


def test_the_first_signal_is_noted_and_the_handlers_come_back():
    # A shell that starts the tests in the background lets them ignore SIGINT.
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with signals.StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # as a scheduler repeats it
        assert stop.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_workers_end_when_their_parent_is_killed():
    """Else they would wait for work for ever, each with its memory."""
    script = """
import os, signal, time
from concurrent.futures import ProcessPoolExecutor
from usvar import signals
pool = ProcessPoolExecutor(2, initializer=signals.start_worker)
[pool.submit(time.sleep, 0.3) for _ in range(2)]
time.sleep(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""
    # The workers hold the pipe of the output, so that its end is theirs.
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
