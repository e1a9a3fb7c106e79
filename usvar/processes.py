"""Work over all cores, in processes that a signal stops."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice
from typing import Any

from tqdm import tqdm

from usvar import signals


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parallel(
    title: str, work_on: Callable, jobs: Iterable[tuple], total: int, workers: int
) -> Iterator[tuple[tuple, Any]]:
    """Run `work_on(*job)` for each job over all cores; yields (job, result) in no fixed order.

    Only a few jobs per worker are in flight, so memory does not grow with their number. SIGINT and SIGTERM
    end it with signals.Stopped.

    Args:
        title: stands before the progress bar.
        work_on: a function of a module.
        jobs: its arguments.
        total: how many jobs there are.
        workers: processes; 0 is one per core.
    """
    workers = min(workers or cores(), total)
    with signals.stop_on_signals():
        if workers <= 1:
            for job in tqdm(jobs, title, total, disable=not total):
                yield job, work_on(*job)
            return
        pool = ProcessPoolExecutor(workers, initializer=start_worker)
        try:
            waiting = iter(jobs)
            running = {pool.submit(work_on, *job): job for job in islice(waiting, 16 * workers)}
            with tqdm(total=total, desc=title, mininterval=0.5) as bar:
                while running:
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        job = running.pop(future)
                        yield job, future.result()
                        bar.update()
                    for job in islice(waiting, len(done)):
                        running[pool.submit(work_on, *job)] = job
        finally:
            pool.shutdown(cancel_futures=True)


def start_worker() -> None:
    """First call in a process of a pool: leave Ctrl-C to the parent, which stops the pool.

    A parent that is killed cannot stop it: then the process ends by itself, instead of waiting forever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
