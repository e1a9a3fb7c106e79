"""Work over processes: none of them outlives the one that started it."""

import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_workers_end_when_their_parent_is_killed():
    """Else they would wait for work for ever, each with its memory."""
    script = """
import os, signal, time
from concurrent.futures import ProcessPoolExecutor
from usvar.processes import start_worker
pool = ProcessPoolExecutor(2, initializer=start_worker)
[pool.submit(time.sleep, 0.3) for _ in range(2)]
time.sleep(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""
    # The workers hold the pipe of the output, so that its end is theirs.
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
