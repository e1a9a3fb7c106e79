"""Work in a process of its own, for benchmarks whose memory or settings must not mix."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from usvar.errors import RunError


def in_new_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work(*arguments)` returns in a process that has done nothing else.

    Raises:
        RunError: when the process fails; it has said itself why.
    """
    context = multiprocessing.get_context("spawn")
    result = context.SimpleQueue()
    process = context.Process(target=_answer, args=(result, work, arguments))
    process.start()
    process.join()
    if process.exitcode:
        raise RunError(f"a process ended with code {process.exitcode}: its own lines stand above")
    return result.get()


def _answer(result: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    result.put(work(*arguments))
