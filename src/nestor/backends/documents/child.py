"""The child that parses: ``python -m nestor.backends.documents.child LIMITS``.

What it parses was written by others, and the parsers are C as often as not. It has no
secrets, no network where the kernel lets it give that up, may write no file, and cannot
outgrow its memory. It ends when its parent does, however that happens. Stdin is a
socket to the parent; one question at a time.
"""

import ctypes
import os
import resource
import signal
import socket
import sys
from pathlib import Path

import msgspec

from nestor.backends.documents import wire
from nestor.backends.documents.opening import take
from nestor.backends.documents.reading import read
from nestor.errors import Unreadable

_CLONE_NEWUSER, _CLONE_NEWNET, _PR_SET_PDEATHSIG = 0x10000000, 0x40000000, 1
_MIB = 1024 * 1024
_TIRED_BYTES = 512 * _MIB
"""Memory ever held, at which a fresh child is cheaper than this one."""


def main() -> None:
    """Serve until the parent closes its end."""
    limits = msgspec.json.decode(sys.argv[1], type=wire.Limits)
    _confine(limits)
    told = socket.socket(fileno=os.dup(0))
    told.sendall(wire.READY)
    with told.makefile("rb") as asked:
        for number in range(1, limits.documents + 1):
            front = asked.read(wire.FRONT.size)
            if len(front) < wire.FRONT.size:
                return
            head_length, body_length, _ = wire.FRONT.unpack(front)
            head, body = asked.read(head_length), asked.read(body_length)
            if _serve(told, head, body, last=number == limits.documents):
                return


def _confine(limits: wire.Limits) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)  # neither: some kernels forbid it
    # After unshare, which takes this signal back. It fires when the *thread* that
    # started us ends; that is the event loop's.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != limits.parent:  # it ended before the line above took effect
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        hard = resource.getrlimit(kind)[1]
        new = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (new, new))


def _serve(told: socket.socket, head: bytes, body: bytes, *, last: bool) -> bool:
    """Answer one question; returns whether it was the last."""
    content = b""
    try:
        answer, content = _answer(wire.question(head), body)
    except Unreadable as error:
        answer = wire.Answer(refused=str(error))
    except MemoryError:
        mib = resource.getrlimit(resource.RLIMIT_AS)[0] // _MIB
        text = f"reading it takes more than {mib:,} MiB of memory; split it"
        answer, last = wire.Answer(refused=text), True
    except RecursionError:
        answer = wire.Answer(refused="it is nested too deeply")
    except Exception as error:  # noqa: BLE001 - process edge: one document is at fault
        text = f"its reader broke off ({type(error).__name__}: {str(error)[:200]})"
        answer = wire.Answer(refused=text)
    last = last or _most_held() > _TIRED_BYTES
    head = wire.encode(answer)
    if len(head) > wire.MAX_HEAD or len(content) > wire.MAX_BODY:
        content = b""
        head = wire.encode(wire.Answer(refused="it has too many parts; split it"))
    told.sendall(wire.before(head, content, last=last))
    if content:
        told.sendall(content)
    return last


def _most_held() -> int:
    """Return the most memory that this program ever held, in bytes.

    ``getrusage`` would tell of the process that started it as well (getrusage(2), Notes).
    """
    for line in Path("/proc/self/status").read_bytes().splitlines():
        if line.startswith(b"VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0  # a kernel that counts no memory: `documents` still bounds the child


def _answer(asked: wire.Question, body: bytes) -> tuple[wire.Answer, bytes]:
    _allow(asked.seconds)
    source = take(asked.path) if asked.path is not None else body.decode()
    found = read(
        source,
        name=asked.name,
        media=asked.media,
        seconds=asked.seconds,
        plain=asked.plain,
    )
    same = found.content == source
    answer = wire.Answer(
        media=found.media, title=found.title, spans=found.spans, same=same
    )
    return answer, b"" if same else found.content.encode()


def _allow(seconds: float) -> None:
    """Let the kernel end us (SIGXCPU) at so much more processor time than was used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(
        resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1])
    )


if __name__ == "__main__":
    main()
