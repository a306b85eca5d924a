"""The processes of a run watch each other: one that dies or fails ends all, in one line each.

Every process keeps the connection to process 0 that the roll call opened. A thread sends a sign of
life over it each second and listens. JAX has such a watch too, but it ends a process by aborting
in C++, after 100 s, without the name of the one that died; its time-outs are set longer.
"""

from __future__ import annotations

import atexit
import faulthandler
import os
import selectors
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any, NoReturn

from hybrid_jax.errors import TemporaryError, UserError, notify
from hybrid_jax.runtime.channel import Channel, Peer
from hybrid_jax.runtime.fields import compare_fields
from hybrid_jax.runtime.last_words import flush_output, send_last
from hybrid_jax.runtime.notices import Notices

_BEAT_SECONDS = 1.0

MAY_BE_ELSEWHERE = 5.0
"""Seconds that a process with an error waits for the news that another one died and caused it."""

FOUND_ELSEWHERE = 10.0
"""Seconds that it waits for another process with the same error to report it first."""

_REMEDY = "start all processes again, the run resumes from its last checkpoint"


class Group:
    """This process's connections to the others, and the thread that watches them.

    Args:
      index: of this process.
      peers: all processes by index.
      channels: to all others on process 0, to process 0 on the others.
      peer_seconds: how long a process may be silent before the others end.
    """

    def __init__(
        self,
        index: int,
        peers: Mapping[int, Peer],
        channels: Mapping[int, Channel],
        peer_seconds: float,
    ) -> None:
        self.own, self.peers, self.channels = peers[index], dict(peers), dict(channels)
        self.peer_seconds = peer_seconds
        self._silent = dict.fromkeys(channels, 0.0)
        self._finished: set[int] = set()
        self._news = threading.Condition()
        self._fields: dict[int, dict[int, Any]] = {}
        self._verdicts: dict[int, str | None] = {}
        self._round = 0
        self._problem: str | None = None  # what `agree` found, known to all
        # Held by the thread that ends this process; nobody gives it back.
        self._ending = threading.Lock()
        self._has_finished = False
        self._exit_at = float("inf")

    @property
    def count(self) -> int:
        """Number of processes."""
        return len(self.peers)

    def start(self) -> None:
        """Starts watching; from here on this process ends with the others, see `end`."""
        threading.Thread(target=self._watch, name="peers", daemon=True).start()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.finish)
        sys.excepthook = self._end_with_exception

    def agree(self, fields: Mapping[str, Any]) -> None:
        """Compares fields with those of all other processes, which must call it as often.

        Raises:
          UserError: a field differs; the message names it, the processes and their values.
        """
        with self._news:
            number, self._round = self._round, self._round + 1
            if self.own.index == 0:
                self._fields.setdefault(number, {})[0] = dict(fields)
                given = self._fields[number]
                self._await(lambda: self._without(given), "to say how it was started")
                problem = self._problem = compare_fields(self._fields.pop(number))
                self._tell({"round": number, "problem": problem})
            else:
                self._tell({"round": number, "fields": dict(fields)})
                self._await(lambda: number not in self._verdicts)
                problem = self._verdicts.pop(number)
        if problem is not None:
            raise UserError(problem)

    def finish(self) -> None:
        """Waits until all processes have come to their end, so that nobody misses this one."""
        if os.getpid() != self.own.pid or self._has_finished:
            return
        self._has_finished = True
        with self._news:
            if self.own.index == 0:
                self._await(lambda: self._without({0} | self._finished), "to finish")
                self._tell({"finished": True})
            else:
                self._tell({"finished": True})
                self._await(lambda: 0 not in self._finished)
        # All have done their work. Should one die in what is left, JAX would wait for minutes.
        self._exit_at = time.monotonic() + self.peer_seconds

    def end(self, status: int, line: str, *, wait: float = 0.0, stacks: bool = False) -> NoReturn:
        """Prints why this process ends, informs the others, and ends with this status, as they do.

        No destructor and no `finally` runs: they might wait for processes that are gone.

        Args:
          wait: seconds for another process, which may have caused it, to say so; that is printed
            instead.
          stacks: whether the others show what they are doing.
        """
        time.sleep(wait)
        self._ending.acquire()
        reason = line.strip().splitlines()[-1].removeprefix("error: ")
        self._leave(status, line, {"end": status, "reason": reason, "stacks": stacks})

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for index, channel in self.channels.items():
                selector.register(channel, selectors.EVENT_READ, index)
            before = beat = time.monotonic()
            while True:
                for key, _ in selector.select(timeout=_BEAT_SECONDS / 2):
                    if not self._receive(key.data):
                        selector.unregister(key.fileobj)
                now = time.monotonic()
                if now > self._exit_at:
                    os._exit(0)
                if now - beat >= _BEAT_SECONDS:
                    self._beat()
                    beat = now
                # A process that was itself stopped or starved for a while blames nobody for it.
                self._count_silence(min(now - before, _BEAT_SECONDS))
                before = now

    def _receive(self, index: int) -> bool:
        """Reads what a process has sent; returns whether it is still connected."""
        try:
            messages = self.channels[index].receive()
        except (EOFError, ValueError):
            if index not in self._finished:
                self._end_without(
                    self.peers[index],
                    "its connection closed without a word: it was killed, or it crashed",
                )
            return False
        self._silent[index] = 0.0
        for message in messages:
            self._handle(index, message)
        return True

    def _handle(self, index: int, message: dict[str, Any]) -> None:
        if "end" in message:
            self._end_after(index, message)
        with self._news:
            if "fields" in message:
                self._fields.setdefault(message["round"], {})[index] = message["fields"]
            elif "problem" in message:
                self._verdicts[message["round"]] = self._problem = message["problem"]
            elif "finished" in message:
                self._finished.add(index)
            self._news.notify_all()

    def _beat(self) -> None:
        for channel in self.channels.values():
            if not channel.is_congested:
                channel.send({})

    def _count_silence(self, seconds: float) -> None:
        for index in self._silent.keys() - self._finished:
            self._silent[index] += seconds
            if self._silent[index] > self.peer_seconds:
                self._end_without(
                    self.peers[index],
                    f"it has been silent for {self.peer_seconds:g} s (train.peer_seconds): it is "
                    "stopped, or its machine or network is down",
                )

    def _end_without(self, peer: Peer, why: str) -> NoReturn:
        self._end_after(
            peer.index,
            {"end": TemporaryError.status, "line": f"{peer} is gone: {why}; {_REMEDY}."},
        )

    def _end_after(self, index: int, message: dict[str, Any]) -> NoReturn:
        """Ends as another process did, and passes it on."""
        self._ending.acquire()
        if message.get("stacks"):
            faulthandler.dump_traceback(file=2, all_threads=True)
        if "line" not in message:
            reason = message["reason"]
            line = reason if reason == self._problem else f"{self.peers[index]} ended: {reason}"
            message = {**message, "line": line}
        self._leave(message["end"], f"error: {message['line']}", message, but=index)

    def _leave(
        self, status: int, line: str, message: dict[str, Any], but: int | None = None
    ) -> NoReturn:
        notify(line)
        send_last(message, [self.channels[index] for index in self.channels if index != but])
        flush_output()
        os._exit(status)

    def _end_with_exception(
        self,
        kind: type[BaseException],
        error: BaseException,
        trace: TracebackType | None,
    ) -> None:
        """What `sys.excepthook` is: an exception that nobody handles ends all processes."""
        if os.getpid() != self.own.pid:  # a forked child
            sys.__excepthook__(kind, error, trace)
            return
        if issubclass(kind, KeyboardInterrupt):
            self.end(130, "interrupted")
        text = "".join(traceback.format_exception(kind, error, trace)).rstrip()
        self.end(1, text, wait=MAY_BE_ELSEWHERE)

    def _await(self, remaining: Callable[[], object], what: str | None = None) -> None:
        """Waits while something remains; process 0 prints which processes it waits for."""
        notices = Notices()
        while remaining():
            self._news.wait(timeout=1.0)  # with a time-out, so that Ctrl-C comes through
            if what is not None and (missing := remaining()):
                notices.show(lambda missing=missing: f"{missing} {what}")

    def _without(self, present: Collection[int]) -> str:
        return ", ".join(str(peer) for peer in self.peers.values() if peer.index not in present)

    def _tell(self, message: dict[str, Any]) -> None:
        for channel in self.channels.values():
            channel.send(message)

    def _forget(self) -> None:
        # A forked child that kept the connections would hide the death of its parent.
        for channel in self.channels.values():
            channel.close()


_current: Group | None = None


def current_group() -> Group | None:
    """Returns the group of this process; None in a run of one process."""
    return _current


def join_group(group: Group) -> Group:
    """Makes `group` the one of this process, for as long as it lives, and returns it."""
    global _current
    assert _current is None, "a process joins once"
    _current = group
    group.start()
    return group


def leave_group(status: int, line: str, *, wait: float = 0.0, stacks: bool = False) -> None:
    """Ends this process and all others of its run, see `Group.end`; returns if there are none."""
    if _current is not None:
        _current.end(status, line, wait=wait, stacks=stacks)
