"""Ids differ: within a process, between processes, and after a fork."""

import os
import subprocess
import sys

from nestor.model.ids import new_id, new_span_id, new_trace_id

MANY = 20_000
_TELL = "from nestor.model.ids import new_id; print(*(new_id() for _ in range(1000)))"


def test_ids_differ_and_sort_by_time() -> None:
    made = [new_id() for _ in range(MANY)]
    assert len(set(made)) == MANY
    assert [one[:13] for one in made] == sorted(one[:13] for one in made)
    assert all((one[14], one[19] in "89ab") == ("7", True) for one in made)


def test_trace_and_span_ids_are_hex_of_their_length() -> None:
    for made, length in ((new_trace_id(), 32), (new_span_id(), 16)):
        assert len(made) == length
        assert int(made, 16) > 0


def test_processes_do_not_make_the_same_ids() -> None:
    made = [
        subprocess.run(
            [sys.executable, "-c", _TELL], capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert len({one[14:] for ids in made for one in ids}) == len(made) * 1000


def test_a_fork_does_not_repeat_its_parents_ids() -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - in the child
        os.write(write, " ".join(new_trace_id() for _ in range(100)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        theirs = set(pipe.read().split())
    assert len(theirs) == 100
    assert not theirs & {new_trace_id() for _ in range(100)}
