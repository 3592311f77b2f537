"""Threads in which torch's operations are single-threaded; each takes the next task as soon as it has done its last.

A large computation cut into parallel operations meets at the end of every one of them, and waits there for whoever
shares a core with another process. Cut into tasks that threads take as they get to them, it meets once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

import torch

from ._progress import Progress

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass
class Pool:
    """Threads that wait for something to call.

    Attributes:
        calls: what they are to call. concurrent.futures took 5 times as long to call one thread: 100 µs, not 20.
        threads: the system's numbers of the threads.
        cores: those that are shared out among the threads.
    """

    calls: SimpleQueue[Callable[[], None]]
    threads: list[int]
    cores: frozenset[int] = frozenset()

    def keep_apart(self) -> None:
        """Give each thread cores of its own, of those that the calling thread may use.

        Threads that wake from sleep are often put on one core, and stay there for most of a call: on two cores it took
        48 ms in place of 36. On Linux; elsewhere nothing is done.
        """
        if not hasattr(os, "sched_setaffinity"):
            return
        cores = frozenset(os.sched_getaffinity(0))
        if cores == self.cores:
            return
        self.cores, order = cores, sorted(cores)
        for place, thread in enumerate(self.threads):
            own = order[place :: len(self.threads)] if len(self.threads) <= len(order) else order
            with suppress(OSError):  # a sandbox may refuse
                os.sched_setaffinity(thread, own)


_pools: dict[int, Pool] = {}
_starting = threading.Lock()


def _forget_pools() -> None:
    """In a forked child, where the threads of its parent are not."""
    _pools.clear()
    _starting.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_starting.acquire, after_in_parent=_starting.release, after_in_child=_forget_pools)


def _start_pool(threads: int) -> None:
    """Start threads in which torch's operations use one thread. To be run in a thread that ends with it.

    torch.set_num_threads sets the number of the thread that calls it and the one that new threads start with. The
    second is put back as soon as all have started, the first concerns no other thread.
    """
    with _starting:
        if threads in _pools:
            return
        count = torch.get_num_threads()
        pool = Pool(SimpleQueue(), [])
        all_started, all_ready = threading.Barrier(threads), threading.Barrier(threads + 1)

        def serve() -> None:
            torch.get_num_threads()  # the first call in a thread sets its number, so that a later one does not
            with suppress(threading.BrokenBarrierError):
                all_started.wait()
                torch.set_num_threads(1)
                pool.threads.append(threading.get_native_id())
                all_ready.wait()
                while True:
                    pool.calls.get()()

        try:
            for _ in range(threads):
                threading.Thread(target=serve, name="sdsd", daemon=True).start()
            all_ready.wait()
        except RuntimeError:  # no thread can be started: the caller does without
            all_started.abort()
        else:
            _pools[threads] = pool
        finally:
            torch.set_num_threads(count)


def _pool(threads: int) -> Pool | None:
    """A pool of so many threads; None where they cannot be started, as when the interpreter shuts down."""
    if threads not in _pools:
        starter = threading.Thread(target=_start_pool, args=(threads,))
        with suppress(RuntimeError):
            starter.start()
            starter.join()
    return _pools.get(threads)


def run_tasks(
    tasks: Sequence[Task],
    start: Callable[[], Callable[[Task], Result]],
    *,
    threads: int,
    progress: Progress | None = None,
) -> list[Result]:
    """The results of all tasks, in their order, whoever does them; the first exception of a task is raised.

    Args:
        tasks: what there is to do.
        start: called in every thread that takes part; gives what does one task.
        threads: how many threads take part; 1: the calling thread does everything.
        progress: told, in the calling thread, how many tasks are done. An exception of its own ends the rest.
    """
    pool = _pool(threads) if threads > 1 else None
    if pool is not None:
        return _shared_out(pool, threads, tasks, start, progress)
    results = map(start(), tasks)
    return list(results if progress is None else _told(results, len(tasks), progress))


def _told(results: Iterable[Result], total: int, progress: Progress) -> Iterator[Result]:
    for done, result in enumerate(results, 1):
        yield result
        progress(done, total)


def _shared_out(
    pool: Pool,
    threads: int,
    tasks: Sequence[Task],
    start: Callable[[], Callable[[Task], Result]],
    progress: Progress | None,
) -> list[Result]:
    """`run_tasks` by the threads of a pool."""
    # What threads of the pool may still refer to when this call is over holds no tensor: one that is freed in such a
    # thread while the interpreter shuts down aborts the process.
    job: list[tuple[Sequence[Task], Callable[[], Callable[[Task], Result]]]] = [(tasks, start)]
    results: dict[int, Result] = {}
    errors: list[BaseException] = []
    remaining = iter(range(len(tasks)))
    at_work = min(threads, len(tasks))
    asleep = at_work - 1
    stopped, reports = False, progress is not None
    taking, finished = threading.Lock(), threading.Event()
    news: SimpleQueue[bool | None] = SimpleQueue()

    def take_part() -> None:
        nonlocal asleep, at_work, stopped
        todo = begin = perform = None
        try:
            # One thread wakes the next. Two woken by the caller, before it waits, would often start on one core.
            with taking:
                more, asleep = asleep > 0, asleep - 1
            if more:
                pool.calls.put(take_part)
            todo, begin = job[0]
            perform = begin()
            while not stopped:
                with taking:
                    index = next(remaining, None)
                if index is None:
                    break
                results[index] = perform(todo[index])
                if reports:
                    news.put(True)
        except BaseException as error:
            stopped = True
            errors.append(error)
        finally:
            todo = begin = perform = None
            with taking:
                at_work -= 1
                last = at_work == 0
            if last:
                finished.set()
                news.put(None)

    pool.keep_apart()
    try:
        pool.calls.put(take_part)
        if progress is not None:
            for done, _ in enumerate(iter(news.get, None), 1):
                progress(done, len(tasks))
        finished.wait()
    finally:
        stopped = True
        finished.wait()
        job.clear()
    if errors:
        raise errors.pop(0)
    in_order = [results[index] for index in range(len(tasks))]
    results.clear()
    return in_order
