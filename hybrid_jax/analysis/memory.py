"""Memory of one device while a compiled program runs, as the compiler planned it."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax


@dataclass(frozen=True)
class MemoryReport:
    """Bytes on one device.

    Attributes:
      argument: the inputs; for a train step the state and the batch.
      output: the results.
      temp: what lives only while the program runs.
      alias: the part of `output` that reuses the memory of donated inputs.
      total: the most that is in use at once.
      state: of a train step, part → bytes in `argument`, as `state_parts` gives them.
    """

    argument: int
    output: int
    temp: int
    alias: int
    total: int
    state: dict[str, int] = field(default_factory=dict)

    @property
    def working(self) -> int:
        """What is in use at the peak beyond arguments and results: gradients, activations, …"""
        return self.total - self.argument - (self.output - self.alias)


def memory(compiled: jax.stages.Compiled) -> MemoryReport:
    """Returns the compiler's memory plan of `compiled`, per device.

    On TPU and GPU the total is the planned peak (and XLA:TPU may count `temp` as zero); XLA:CPU
    plans no peak, so there the total is argument + output - alias + temp.

    >>> compiled = jax.jit(lambda x: x + 1).lower(jax.numpy.zeros(256)).compile()
    >>> memory(compiled).total
    2048
    """
    stats = compiled.memory_analysis()
    assert stats is not None, "this backend gives no memory analysis"
    argument, output = stats.argument_size_in_bytes, stats.output_size_in_bytes
    temp, alias = stats.temp_size_in_bytes, stats.alias_size_in_bytes
    if _platform(compiled) == "cpu":
        total = argument + output - alias + temp
    else:
        total = stats.peak_memory_in_bytes
    return MemoryReport(argument, output, temp, alias, total)


def _platform(compiled: jax.stages.Compiled) -> str:
    sharding = jax.tree.leaves((compiled.input_shardings, compiled.output_shardings))[0]
    return next(iter(sharding.device_set)).platform
