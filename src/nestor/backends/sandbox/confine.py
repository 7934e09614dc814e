"""Gives up what a command may not have, by Landlock and seccomp, and becomes the command.

Runs as ``python -I -S confine.py RULES COMMAND…``, standard library only. RULES is JSON:
``read`` and ``write`` name host paths, ``ports`` the TCP ports that may be connected to.
The command's variables come with ``VEILED`` before their names, so that none of them
(``LD_PRELOAD``) means anything to this program, which still may do everything.
Nothing that is given up comes back, for this process and all that it starts.

A command that cannot be started ends with 127 (not found) or 126, with a line in its
output, as from a shell.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import stat
import struct
import sys

VEILED = "NESTOR_VEILED_"
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
PATH_BENEATH, NET_PORT = 1, 2
VERSION = 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
FILE_RIGHTS = {1: EXECUTE | WRITE_FILE | READ_FILE, 3: 1 << 14, 5: 1 << 15}
"""What a rule on a file may grant; the key is the ABI that brought it (truncate, ioctl)."""
FS_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
DEVICE_MAKING = 1 << 6 | 1 << 11
"""Character and block devices: never made, wherever."""
BIND_TCP, CONNECT_TCP = 1, 2
SCOPE_ABSTRACT_SOCKETS, SCOPE_SIGNALS = 1, 2
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_SECUREBITS = 38, 22, 24, 28
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
NO_ROOT = 0b101111
"""SECBIT: user 0 is nobody special, and that is locked."""
CAPABILITIES_V3 = 0x20080522
AF_INET, AF_INET6, SOCK_STREAM, TCP = 2, 10, 1, 6
FAST_OPEN = 0x20000000
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
# Calls of each machine, in the order of its columns.
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
NUMBERS = {
    "socket": (41, 198),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "prlimit64": (302, 261),
}
FORBIDDEN = {
    "io_uring_setup": (425, 425), "ptrace": (101, 117), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "shmget": (29, 194),
    "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "mount": (165, 40),
    "unshare": (272, 97), "setns": (308, 268), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "setpriority": (141, 140),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
}  # fmt: skip
"""They reach other processes of our user, or more of the kernel than a command needs."""
libc = ctypes.CDLL(None, use_errno=True)


def main(rules: str, command: list[str]) -> None:
    """Give up, then become the command."""
    rule = json.loads(rules)
    given = os.environ  # noqa: TID251 - the command's, to be handed on
    mine = {k: v for k, v in given.items() if k.startswith(VEILED)}
    env = {name.removeprefix(VEILED): value for name, value in mine.items()}
    confine(rule["read"], rule["write"], rule["ports"])
    try:
        os.execvpe(command[0], command, env)  # noqa: S606
    except OSError as error:
        line = f"nestor: cannot run {command[0]!r} in {os.getcwd()!r}: {error}\n"  # noqa: PTH109
        os.write(2, line.encode(errors="replace"))
        missing = error.errno in {errno.ENOENT, errno.ENOTDIR}
        os._exit(127 if missing else 126)


def abi() -> int:
    """Return the version of Landlock that the kernel speaks; 0 without one."""
    return max(0, int(libc.syscall(CREATE_RULESET, None, 0, VERSION)))


def confine(read: list[str], write: list[str], ports: list[int]) -> None:
    """Raise ``OSError`` when anything of it cannot be had: then nothing may be started."""
    drop_capabilities()
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    restrict(read, write, ports)
    filter_system_calls()


def drop_capabilities() -> None:
    """Give up what makes root root; done by somebody else it changes nothing."""
    number = 0
    while libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    # Who may not set it has no capability to lose.
    libc.prctl(PR_SET_SECUREBITS, NO_ROOT, 0, 0, 0)
    header = struct.pack("=II", CAPABILITIES_V3, 0)
    if libc.capset(header, bytes(24)):
        raise _failed("capset")


def restrict(read: list[str], write: list[str], ports: list[int]) -> None:
    """Enforce a Landlock ruleset of exactly these paths and ports."""
    version = abi()
    rights = sum(bits for since, bits in FS_RIGHTS.items() if since <= version)
    of_files = sum(bits for since, bits in FILE_RIGHTS.items() if since <= version)
    reading = EXECUTE | READ_FILE | READ_DIR
    about = struct.pack("=Q", rights)
    if version >= 4:  # noqa: PLR2004
        about += struct.pack("=Q", BIND_TCP | CONNECT_TCP)
    if version >= 6:  # noqa: PLR2004
        about += struct.pack("=Q", SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS)
    ruleset = libc.syscall(CREATE_RULESET, about, len(about), 0)
    if ruleset < 0:
        raise _failed("landlock_create_ruleset")
    given = [(path, reading) for path in read]
    given += [(path, rights & ~DEVICE_MAKING) for path in write]
    for path, wanted in given:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        bits = wanted if folder else wanted & of_files
        _add(ruleset, PATH_BENEATH, struct.pack("=Qi", bits, fd))
        os.close(fd)
    for port in ports:
        _add(ruleset, NET_PORT, struct.pack("=QQ", CONNECT_TCP, port))
    if libc.syscall(RESTRICT_SELF, ruleset, 0):
        raise _failed("landlock_restrict_self")
    os.close(ruleset)


def filter_system_calls() -> None:
    """Refuse what Landlock does not see: sockets but TCP, other processes, other kernels' doors.

    Landlock judges TCP by connect() and bind() alone; MPTCP, UDP, Unix sockets and data
    with the first packet would pass it by.
    """
    machine, column = MACHINES[platform.machine()]

    def number(name: str) -> int:
        return (NUMBERS | FORBIDDEN)[name][column]

    program = [_load(4), _if(machine, 1, 0), _end(REFUSE), _load(0)]
    if column == 0:
        # The 32-bit pointers of x86: the same calls under other numbers.
        program += [_op(0x35, 0, 1, 0x40000000), _end(REFUSE)]
    for name in FORBIDDEN:
        program += [_if(number(name), 0, 1), _end(REFUSE)]
    program += [
        _if(number("prlimit64"), 0, 4), _load(16), _if(0, 0, 1), _end(ALLOW), _end(REFUSE),
        # socket(domain, kind, protocol): IPv4 or IPv6, a stream, TCP.
        _if(number("socket"), 0, 11),
        _load(16), _if(AF_INET, 1, 0), _if(AF_INET6, 0, 7),
        _load(24), _op(0x54, 0, 0, 0xF), _if(SOCK_STREAM, 0, 4),
        _load(32), _if(0, 1, 0), _if(TCP, 0, 1), _end(ALLOW), _end(REFUSE),
    ]  # fmt: skip
    for name, place in (("sendto", 40), ("sendmsg", 32), ("sendmmsg", 40)):
        program += [
            _if(number(name), 0, 4), _load(place), _op(0x45, 0, 1, FAST_OPEN),
            _end(REFUSE), _end(ALLOW),
        ]  # fmt: skip
    program.append(_end(ALLOW))
    code = b"".join(program)
    buffer = ctypes.create_string_buffer(code, len(code))
    about = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    _prctl(PR_SET_SECCOMP, 2, about)


def _op(code: int, then: int, otherwise: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)


def _load(offset: int) -> bytes:
    return _op(0x20, 0, 0, offset)


def _if(value: int, then: int, otherwise: int) -> bytes:
    return _op(0x15, then, otherwise, value)


def _end(verdict: int) -> bytes:
    return _op(0x06, 0, 0, verdict)


def _add(ruleset: int, kind: int, rule: bytes) -> None:
    if libc.syscall(ADD_RULE, ruleset, kind, rule, 0):
        raise _failed("landlock_add_rule")


def _prctl(option: int, value: int, more: bytes | None = None) -> None:
    if libc.prctl(option, value, more, 0, 0):
        raise _failed("prctl")


def _failed(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
