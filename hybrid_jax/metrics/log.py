"""The log of a run: device scalars become records without stalling the step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from hybrid_jax.metrics.background import Background, Writer

_CLOSE_SECONDS = 30.0  # for all writers together


class Log:
    """A hook that writes the metrics of every N-th step, one step late.

    The record of step n is fetched once step n + 1 has been dispatched, so the devices always
    have work while the host waits. To the step's own metrics it adds

    * `step_seconds`: mean over the steps since the last record, compilation excluded;
    * `tokens_per_second` over all devices;
    * `mfu`, where `peak_flops` is given: model FLOP utilisation (Chowdhery et al. 2022);
    * `input_wait_share`, where `input_wait` is given: the fraction of that time spent
      waiting for input.

    Every writer runs on a thread of its own, see `Background`: none can hold up a step or break it.
    As a context manager it closes its writers, also when the run ends in an error.

    Args:
      writers: where the records go.
      every: steps between two records.
      tokens_per_step: tokens in a global batch.
      flops_per_token: floating-point operations that the model needs for one token.
      peak_flops: FLOP/s of all devices together; None where it is not known.
      learning_rate: returns the rate of an update, numbered from 0, without asking a device; None:
        not recorded. A skipped step makes no update: its record has the rate of the last one made.
      input_wait: returns the seconds waited for input so far; None: not recorded.

    Attributes:
      latest: the newest value of every name.
    """

    def __init__(
        self,
        writers: Sequence[Writer],
        *,
        every: int,
        tokens_per_step: int,
        flops_per_token: float = 0.0,
        peak_flops: float | None = None,
        learning_rate: Callable[[int], float] | None = None,
        input_wait: Callable[[], float] | None = None,
    ) -> None:
        self._backgrounds = tuple(Background(writer) for writer in writers)
        self._essential = [one for one in self._backgrounds if one.writer.essential]
        self.every = every
        self.tokens_per_step = tokens_per_step
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.learning_rate = learning_rate
        self.input_wait = input_wait
        self.latest: dict[str, float] = {}
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._clock: float | None = None  # when the step after `_clock_step` could begin
        self._clock_step = 0
        self._waited = 0.0  # for input, when the clock was read last

    @property
    def failure(self) -> str | None:
        """What is wrong with an essential writer, such as a full disk; None while nothing is."""
        return next((one.failure for one in self._essential if one.failure), None)

    def on_step(self, step: int, state: Any, metrics: Mapping[str, jax.Array]) -> None:
        """Writes the last due record and keeps this one, if it is due, for the next call."""
        del state
        self._write_pending()
        if self._clock is None:
            # Step `step` has been compiled and dispatched: from here on time is the devices'.
            self._clock, self._clock_step = time.perf_counter(), step - 1
            self._waited = 0.0 if self.input_wait is None else self.input_wait()
        if step % self.every == 0 or step == 1:
            self._pending = (step, metrics)

    def on_end(self, state: Any) -> None:
        """Writes the last record."""
        del state
        self.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Passes a record to every writer."""
        self.latest.update(values)
        for background in self._backgrounds:
            background.write(step, values)

    def flush(self) -> None:
        """Writes the last due record now; waits for its step, and for the essential writers."""
        self._write_pending()
        for background in self._essential:
            background.flush()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock, for work on a finished step that should not count as training."""
        self._write_pending()
        start = time.perf_counter()
        yield
        if self._clock is not None:
            self._clock += time.perf_counter() - start

    def _write_pending(self) -> None:
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        if self.learning_rate is not None:
            updates = step - int(values.get("skipped", 0))
            values["learning_rate"] = self.learning_rate(max(updates, 1) - 1)
        self.write(step, values | self._throughput(step))

    def _throughput(self, step: int) -> dict[str, float]:
        assert self._clock is not None
        now = time.perf_counter()
        elapsed = now - self._clock
        seconds = elapsed / (step - self._clock_step)
        self._clock, self._clock_step = now, step
        tokens_per_second = self.tokens_per_step / seconds
        values = {"step_seconds": seconds, "tokens_per_second": tokens_per_second}
        if self.peak_flops is not None:
            values["mfu"] = tokens_per_second * self.flops_per_token / self.peak_flops
        if self.input_wait is not None:
            waited = self.input_wait()
            values["input_wait_share"] = (waited - self._waited) / elapsed
            self._waited = waited
        return values

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exception: object) -> None:
        for background in self._backgrounds:
            background.end()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for background in self._backgrounds:
            background.join(max(0.0, deadline - time.monotonic()))
