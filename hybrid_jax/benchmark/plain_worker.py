"""The other side of `PlainProcess`: `python -m hybrid_jax.benchmark.plain_worker`.

Pickles come on standard input: first the job, then requests ("compile", strategy) and ("step",
index). Each is answered on standard output by a pickle (failed, answer).
"""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
from typing import TYPE_CHECKING, BinaryIO

import cloudpickle

if TYPE_CHECKING:
    from hybrid_jax.timing import Program


def main() -> None:
    """Serves requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints here must not land among the answers
    requests: queue.Queue = queue.Queue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, requests), daemon=True).start()
    job, programs = requests.get(), []
    while True:
        verb, argument = requests.get()
        try:
            answer = (False, _serve(job, programs, verb, argument))
        except Exception as error:  # the other side has no traceback to show
            first, *_ = str(error).splitlines() or [""]
            answer = (True, f"{type(error).__name__}: {first}")
        pickle.dump(answer, answers)
        answers.flush()


def _read(stream: BinaryIO, requests: queue.Queue) -> None:
    """Queues what comes; ends the process, whatever it is doing, when the other side is gone."""
    try:
        while True:
            requests.put(pickle.load(stream))
    except EOFError:
        os._exit(0)


def _serve(job: bytes, programs: list[Program], verb: str, argument) -> tuple:
    from hybrid_jax.analysis.memory import memory
    from hybrid_jax.benchmark.plain_program import plain_program

    if verb == "step":
        return tuple(programs[argument].timed_step())
    model, tx, clip_norm, batch = cloudpickle.loads(job)
    program = plain_program(model, tx, argument, clip_norm, batch)
    programs.append(program)
    return len(programs) - 1, program.compile_seconds, memory(program.compiled).total


if __name__ == "__main__":
    main()
