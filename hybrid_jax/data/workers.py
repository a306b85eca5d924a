"""Runs a function over many jobs in processes that end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import TypeVar

from hybrid_jax.errors import RunError

Job = TypeVar("Job")
Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Generator[Result, None, None]:
    """Yields `function(job)` for every job, in the order of the jobs; the first error ends all.

    Args:
      function: of a module, so that another process can import it.
      jobs: picklable, one after the other taken by the next free process.
      workers: 1 runs in this process.

    Raises:
      RunError: a worker died.
    """
    if workers == 1 or len(jobs) <= 1:
        yield from map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")
    stopped, stop = context.Pipe(duplex=False)
    count = min(workers, len(jobs))
    pool = ProcessPoolExecutor(count, context, initializer=_obey, initargs=(stopped,))
    try:
        # Ctrl-C in a terminal reaches workers too; they start with it blocked and leave it to us.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            futures = [pool.submit(function, job) for job in jobs]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for future in futures:
            yield future.result()
        pool.shutdown()
    except BrokenProcessPool:
        raise RunError(
            "a worker process died: there may be too little memory for this many workers, or the "
            'script that called this lacks its `if __name__ == "__main__":`.'
        ) from None
    finally:
        # Workers end at once, in the midst of a job, also when this process is killed.
        stop.close()
        pool.shutdown(cancel_futures=True)


def _obey(stopped: Connection) -> None:
    """In a worker: ends it when the other end of the pipe is closed."""

    def wait() -> None:
        stopped.poll(None)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
