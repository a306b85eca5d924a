"""A process of a group, without JAX: `python member.py PORT COUNT INDEX [word=value …]`.

Words: join=SECONDS, peer=SECONDS, fields=JSON (to agree on), then=CODE (what it does when all have
joined). It prints "joined", and a line and a status for what goes wrong, as the command line does.
"""

import json
import sys
import time

from hybrid_jax.errors import RunError, UserError
from hybrid_jax.runtime.attendance import attend
from hybrid_jax.runtime.group import MAY_BE_ELSEWHERE, Group, join_group, leave_group
from hybrid_jax.runtime.roll_call import gather, listen


def main(port: int, count: int, index: int, words: dict[str, str]) -> None:
    join_seconds = float(words.get("join", 20))
    if index == 0:
        meeting = gather(listen("127.0.0.1", port), count, join_seconds)
    else:
        meeting = attend("127.0.0.1", port, index, count, join_seconds)
    group = join_group(Group(index, *meeting, float(words.get("peer", 10))))
    if "fields" in words:
        group.agree(json.loads(words["fields"]))
    print("joined", flush=True)
    exec(words.get("then", ""), {"time": time, "sys": sys, "group": group, "index": index})


if __name__ == "__main__":
    port, count, index, *rest = sys.argv[1:]
    try:
        main(int(port), int(count), int(index), dict(word.split("=", 1) for word in rest))
    except (RunError, UserError) as error:
        wait = MAY_BE_ELSEWHERE if isinstance(error, RunError) else 0.0
        leave_group(error.status, f"error: {error}", wait=wait)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
