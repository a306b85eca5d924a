"""Batches made ahead on a thread, so that the devices need not wait for them."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from hybrid_jax.data.packing import Batch


class StepBatches(Protocol):
    """Batches as a pure function of the step; `Batches` is one."""

    def batch(self, step: int) -> Batch: ...


class Prefetch:
    """Gives the batches of `batches`, the next ones already made when steps come in order.

    A step out of order starts anew from there. What goes wrong on the thread is raised by `batch`,
    and again whenever that step is asked for. As a context manager it ends its thread.

    >>> from hybrid_jax.data.batches import Batches
    >>> from hybrid_jax.data.text import read_text
    >>> with Prefetch(Batches(read_text("kjv"), global_batch=2, seq_len=8)) as batches:
    ...     batches.batch(0)["tokens"].shape
    (2, 8)

    Args:
      batches: what to make ahead; used on one other thread.
      depth: batches made ahead.

    Attributes:
      wait_seconds: time that all calls of `batch` took together: what the loop waited for input.
    """

    def __init__(self, batches: StepBatches, depth: int = 2) -> None:
        assert depth >= 1, depth
        self.batches = batches
        self.depth = depth
        self.wait_seconds = 0.0
        self._step = 0  # of the first batch in `_ahead`
        self._ahead: deque[Future[Batch]] = deque()
        # One worker: batches are made in order. It idles when all of them are made, so nothing
        # ever blocks it, and the interpreter can exit without `close`.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="prefetch")

    def batch(self, step: int) -> Batch:
        """Returns the batch of `step`, waiting for it where it is not ready."""
        start = time.perf_counter()
        try:
            if step != self._step:
                self._drop()
                self._step = step
            self._fill()
            first = self._ahead.popleft()
            self._step += 1
            self._fill()
            return first.result()
        finally:
            self.wait_seconds += time.perf_counter() - start

    def close(self) -> None:
        """Ends the thread, after the batch that it is making; no batch can be had any more."""
        self._drop()
        self._executor.shutdown(wait=True)

    def _fill(self) -> None:
        while len(self._ahead) < self.depth:
            step = self._step + len(self._ahead)
            self._ahead.append(self._executor.submit(self.batches.batch, step))

    def _drop(self) -> None:
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
