"""Reading in threads: results in order, errors passed on, and a limit on how long a read may hang."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from usvar.errors import RunError

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    work: Callable[[T], R],
    items: Iterable[T],
    threads: int,
    ahead: int,
    limit_s: float,
    name: Callable[[T], object],
) -> Iterator[R]:
    """`work(item)` for every item, done ahead in threads and handed out in the order of the items.

    The threads are daemons: one that hangs in a dead network folder or a pipe keeps neither the caller nor
    the end of the process. That is why this is no ThreadPoolExecutor, which waits for its threads.

    Args:
        work: called in a thread; what it raises is raised here, at its item.
        items: may be endless; at most `ahead` of them are worked on before they are asked for.
        threads: how many work at once.
        ahead: 1 or more.
        limit_s: seconds that the caller waits for one item.
        name: what an item reads, for the message.

    Raises:
        RunError: names the item that was waited for longer than `limit_s`.
    """
    todo: queue.SimpleQueue[tuple[Future, T] | None] = queue.SimpleQueue()

    def keep_working() -> None:
        while task := todo.get():
            future, item = task
            try:
                future.set_result(work(item))
            except BaseException as error:
                future.set_exception(error)
            # Tensors that a daemon lets go of while the interpreter ends abort the process.
            del task, future, item

    for _ in range(threads):
        threading.Thread(target=keep_working, daemon=True).start()
    pending: deque[tuple[Future, T]] = deque()

    def oldest() -> R:
        future, item = pending.popleft()
        try:
            return future.result(limit_s)
        except TimeoutError as error:
            if future.done():  # raised by the work itself
                raise
            raise RunError(
                f"reading {name(item)} has taken more than {limit_s:g} s: look at that file and the disk it "
                "is on, then give the same command again"
            ) from error

    try:
        for item in items:
            pending.append((Future(), item))
            todo.put(pending[-1])
            if len(pending) > ahead:
                yield oldest()
        while pending:
            yield oldest()
    finally:
        for _ in range(threads):
            todo.put(None)
