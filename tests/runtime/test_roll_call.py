"""The roll call and the group, in real processes that need no JAX."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import finish_processes, free_port

MEMBER = Path(__file__).with_name("member.py")
SLEEP = "then=time.sleep(60)"


def start(port: int, count: int, index: int, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(MEMBER), str(port), str(count), str(index), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_all(count: int, *words: str, port: int | None = None) -> list[subprocess.Popen[str]]:
    port = port or free_port()
    members = [start(port, count, index, *words) for index in range(count)]
    for member in members:
        assert member.stdout is not None
        assert member.stdout.readline() == "joined\n"
    return members


def finish(members: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    return [(result.returncode, result.stderr) for result in finish_processes(members, 60)]


def connect(port: int, text: bytes) -> socket.socket:
    """Connects as soon as somebody listens, and says something."""
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            connection.sendall(text)
            return connection


def test_all_meet_and_finish_whatever_knocks_at_the_port():
    port = free_port()
    first = start(port, 3, 0)
    strangers = [
        connect(port, text)
        for text in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"[1]\n",
            b'{"greeting": "hybrid_jax 1"}\n',
            b"\0" * 100_000,
            b"",
        )
    ]
    members = [first, start(port, 3, 1, "then=time.sleep(0.5)"), start(port, 3, 2)]
    assert finish(members) == [(0, "")] * 3
    for stranger in strangers:
        stranger.close()


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_process_ends_the_others_in_one_line(victim):
    members = start_all(3, SLEEP)
    members[victim].kill()
    start = time.monotonic()
    results = finish(members)
    assert time.monotonic() - start < 5
    pid = members[victim].pid
    for status, stderr in results[:victim] + results[victim + 1 :]:
        assert status == 75
        assert stderr.count("\n") == 1
        assert stderr.startswith(f"error: process {victim} (host ")
        assert f", pid {pid}) is gone: its connection closed without a word" in stderr


def test_a_stopped_process_is_noticed_by_its_silence():
    groups = [start_all(3, SLEEP, "peer=3") for _ in range(2)]
    for victim, members in enumerate(groups):
        members[victim].send_signal(signal.SIGSTOP)
    for victim, members in enumerate(groups):
        stopped = members.pop(victim)
        results = finish(members)
        stopped.kill()
        finish([stopped])
        for status, stderr in results:
            assert status == 75
            assert stderr.count("\n") == 1
            assert f"error: process {victim} (host " in stderr
            assert "silent for 3 s (train.peer_seconds)" in stderr


def test_a_process_that_was_stopped_blames_nobody():
    members = start_all(2, "peer=3", "then=time.sleep(3)")
    for member in members:
        member.send_signal(signal.SIGSTOP)
    time.sleep(3.5)
    for member in members:
        member.send_signal(signal.SIGCONT)
    assert finish(members) == [(0, "")] * 2


ERRORS = [
    ("from hybrid_jax import UserError as E; raise E('a is 1')", 2, "a is 1"),
    ("from hybrid_jax import RunError as E; raise E('disk full')", 1, "disk full"),
    ("{}['a']", 1, "KeyError: 'a'"),
    ("raise KeyboardInterrupt", 130, "interrupted"),
]


def test_an_error_in_one_process_is_the_end_of_all():
    wait = "time.sleep(0 if index == 1 else 60)\n"
    groups = [start_all(3, f"then={wait}{code}") for code, _, _ in ERRORS]
    for members, (_, status, reason) in zip(groups, ERRORS, strict=True):
        results = finish(members)
        assert [result[0] for result in results] == [status] * 3
        assert results[1][1].splitlines()[-1].removeprefix("error: ") == reason
        for index in (0, 2):
            assert results[index][1].count("\n") == 1
            assert results[index][1].startswith("error: process 1 (host ")
            assert results[index][1].endswith(f") ended: {reason}\n")


def test_a_process_that_gives_up_waiting_shows_the_stacks_of_all():
    wait = "time.sleep(0 if index == 1 else 60)\n"
    code = "from hybrid_jax.runtime.watchdog import leave\nleave('no progress for 9 s.')"
    for status, stderr in finish(start_all(3, f"then={wait}{code}")):
        assert status == 75
        assert "most recent call first" in stderr
        assert stderr.splitlines()[-1].endswith("no progress for 9 s.")


def test_an_error_that_another_process_caused_names_that_one():
    code = "time.sleep(1)\nraise RuntimeError('connection reset by peer')"
    members = start_all(3, f"then={code}")
    members[2].kill()
    for status, stderr in finish(members[:2]):
        assert status == 75
        assert stderr.count("\n") == 1
        assert stderr.startswith("error: process 2 ")
    finish(members[2:])


def test_one_that_has_finished_waits_for_the_others_and_sees_them_die():
    members = start_all(2, "then=time.sleep(60 * index)")
    with pytest.raises(subprocess.TimeoutExpired):
        members[0].wait(timeout=1)
    members[1].kill()
    status, stderr = finish(members)[0]
    assert status == 75
    assert "process 1 " in stderr


def test_a_missing_process_is_named_after_5_s_and_in_the_end():
    groups = [
        [start(port, 3, index, "join=7") for index in range(3) if index != missing]
        for missing, port in ((0, free_port()), (2, free_port()))
    ]
    for missing, members in zip((0, 2), groups, strict=True):
        for number, (status, stderr) in enumerate(finish(members)):
            *notices, last = stderr.splitlines()
            assert status == 75
            assert last.startswith(f"error: process {missing} ")
            assert "within 7 s (train.join_seconds)" in last
            if missing == 0 or number == 0:
                assert len(notices) == 1
                assert notices[0].startswith(f"waiting for process {missing} ")
                assert notices[0].endswith(" since 5 s")
            else:
                assert notices == []


def test_a_process_that_dies_while_others_are_awaited():
    port = free_port()
    first = start(port, 3, 0)
    greeting = {"greeting": "hybrid_jax 1", "index": 1, "count": 3, "host": "node1", "pid": 42}
    with connect(port, json.dumps(greeting).encode() + b"\n") as connection:
        assert b"welcome" in connection.recv(1000)
    ((status, stderr),) = finish([first])
    assert status == 75
    line = "error: process 1 (host node1, pid 42) ended before all processes had joined."
    assert stderr.splitlines()[-1] == line


def test_process_0_dies_while_others_are_awaited():
    with socket.create_server(("127.0.0.1", 0)) as server:
        second = start(server.getsockname()[1], 3, 1)
        with server.accept()[0] as connection:
            assert b"hybrid_jax 1" in connection.recv(1000)
            connection.sendall(b'{"welcome": [0, "node0", 41]}\n')
        ((status, stderr),) = finish([second])
    assert status == 75
    line = "error: process 0 (host node0, pid 41) ended before all processes had joined.\n"
    assert stderr == line


def test_a_busy_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ((status, stderr),) = finish([start(port, 2, 0)])
    assert status == 2
    assert stderr.count("\n") == 1
    assert f"port {port} of the coordinator address 127.0.0.1:{port} is in use" in stderr


def test_another_program_at_the_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        ((status, stderr),) = finish([start(server.getsockname()[1], 2, 1, "join=1")])
    assert status == 75
    assert "whoever listens there is not process 0 of a run that waits" in stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([(3, 1), (3, 1)], "have the same index: give each process its own JAX_PROCESS_ID"),
        ([(3, 1), (2, 1)], "start all with the same JAX_NUM_PROCESSES"),
    ],
)
def test_processes_that_were_numbered_wrongly(others, message):
    port = free_port()
    members = [start(port, 3, 0)] + [start(port, count, index) for count, index in others]
    for status, stderr in finish(members):
        assert status == 2
        assert stderr.count("\n") == 1
        assert message in stderr


def test_fields_that_differ_are_named_with_their_values():
    port, fields = free_port(), '{{"optimizer.learning_rate": {}, "train.steps": 20}}'
    members = [
        start(port, 3, index, f"fields={fields.format(rate)}")
        for index, rate in enumerate((0.001, 0.1, 0.1))
    ]
    for status, stderr in finish(members):
        assert status == 2
        assert stderr == (
            "error: processes 1, 2 have optimizer.learning_rate=0.1, process 0 has 0.001: start "
            "all processes with the same.\n"
        )
