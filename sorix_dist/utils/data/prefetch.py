"""Work that is done ahead by threads, in the order in which it is asked for."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

_END: Any = object()


def ahead(make: Callable[[Any], Any], tasks: Iterator[Any], threads: int, depth: int) -> Generator[Any, None, None]:
    """`make(task)` of each of the tasks, in order; `threads` threads are up to `depth` results ahead.

    The threads also take the tasks from their iterator, one at a time. What fails in a thread is raised where its
    result would have come. The threads end after the last result, and when this generator is closed or forgotten,
    each as soon as what it is making is done. With 0 threads everything is done here, when it is asked for.
    """
    if threads == 0:
        for task in tasks:
            yield _made(make, task)
        return
    requests: SimpleQueue[Future[Any]] = SimpleQueue()
    turn, ended = threading.Lock(), threading.Event()

    def work() -> None:
        while True:
            with turn:  # a request and its task are taken together, so that the results keep the order
                result = requests.get()
                if ended.is_set():
                    return
                try:
                    task = next(tasks, _END)
                except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
                    result.set_exception(error)
                    continue
            try:
                result.set_result(task if task is _END else _made(make, task))
            except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
                result.set_exception(error)

    awaited: deque[Future[Any]] = deque()

    def ask() -> None:
        awaited.append(Future())
        requests.put(awaited[-1])

    for number in range(threads):
        # With the caller's context, where the seed and the ranks are found.
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(work,), name=f"sorix_dist data loader {number}", daemon=True).start()
    try:
        for _ in range(depth):
            ask()
        while (result := awaited.popleft().result()) is not _END:
            ask()
            yield result
    finally:
        ended.set()
        for _ in range(threads):
            requests.put(Future())


def _made(make: Callable[[Any], Any], task: Any) -> Any:
    """`make(task)`. A StopIteration of it becomes a RuntimeError, because loops take one for the end of the tasks."""
    try:
        return make(task)
    except StopIteration as error:
        failure = RuntimeError(
            "StopIteration was raised where a sample or batch was made, and would have ended the epoch"
        )
        for note in getattr(error, "__notes__", ()):
            failure.add_note(note)
        raise failure from error
