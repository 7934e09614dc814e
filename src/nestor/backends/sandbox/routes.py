"""Gives a network namespace a way out through slirp4netns, but none to private networks.

Standard library only: the guardian imports it without our package. The command has no
capabilities in the namespace, so it cannot take back what is set here.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import socket
import struct
import sys

TYPE_CHECKING = False  # typing costs 6 ms at start
if TYPE_CHECKING:
    from collections.abc import Iterable
if TYPE_CHECKING or __name__ != "routes":
    from nestor.backends.sandbox.processes import spawn
else:
    from processes import spawn

GATEWAY = "10.0.2.2"
NS_GET_USERNS = 0xB701
NEWROUTE, UNICAST, UNREACHABLE = 24, 1, 7
REQUEST, ACK, CREATE, REPLACE = 1, 4, 0x400, 0x100
MAIN_TABLE, STATIC, UNIVERSE = 254, 4, 0
DESTINATION, VIA = 1, 5
_libc = ctypes.CDLL(None, use_errno=True)


def connect(
    init: int, slirp4netns: str, *, unreachable: list[str], reachable: list[str]
) -> int:
    """Set up the namespace of process ``init``; returns what keeps slirp4netns alive.

    Raises ``RuntimeError``: then nothing may be started.
    """
    net = os.open(f"/proc/{init}/ns/net", os.O_RDONLY)
    owner = fcntl.ioctl(net, NS_GET_USERNS)
    ready_r, ready_w = os.pipe()
    exit_r, alive = os.pipe()
    argv = [
        slirp4netns, "--configure", "--mtu=65520",
        "--disable-host-loopback", "--netns-type=path",
        f"--userns-path=/proc/self/fd/{owner}", f"--ready-fd={ready_w}",
        f"--exit-fd={exit_r}", f"/proc/self/fd/{net}", "tap0",
    ]  # fmt: skip
    nothing = os.open("/dev/null", os.O_RDWR)
    passed = [net, owner, ready_w, exit_r]
    spawn(argv, stdin=nothing, output=nothing, passed=passed)
    for fd in (ready_w, exit_r, nothing):
        os.close(fd)
    if not (select.select([ready_r], [], [], 5)[0] and os.read(ready_r, 1)):
        raise RuntimeError("slirp4netns did not come up")
    os.close(ready_r)
    child = os.fork()
    if not child:
        code = 1
        try:
            for namespace in (owner, net):
                enter(namespace)
            bar(unreachable, reachable)
            code = 0
        except BaseException as error:  # noqa: BLE001 - nothing may return from the child
            sys.stderr.write(f"routes: {error}\n")
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(net)
    os.close(owner)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("private networks could not be barred")
    return alive


def enter(namespace: int) -> None:
    """Move this process into a namespace."""
    if _libc.setns(namespace, 0):
        raise OSError(ctypes.get_errno(), "setns")


def bar(unreachable: Iterable[str], reachable: Iterable[str]) -> None:
    """Set the routes of the namespace that we are in."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.bind((0, 0))
        for network in unreachable:
            family = socket.AF_INET6 if ":" in network else socket.AF_INET
            if family == socket.AF_INET6 and not os.path.exists("/proc/net/if_inet6"):  # noqa: PTH110 - pathlib costs 8 ms
                continue
            _set(netlink, family, network, UNREACHABLE)
        for network in reachable:
            _set(netlink, socket.AF_INET, network, UNICAST)


def _set(netlink: socket.socket, family: int, network: str, kind: int) -> None:
    address, _, length = network.partition("/")
    fields = (family, int(length), 0, 0, MAIN_TABLE, STATIC, UNIVERSE, kind, 0)
    body = struct.pack("=BBBBBBBBI", *fields)
    body += _attribute(DESTINATION, socket.inet_pton(family, address))
    if kind == UNICAST:
        body += _attribute(VIA, socket.inet_pton(family, GATEWAY))
    flags = REQUEST | ACK | CREATE | REPLACE
    netlink.sendall(struct.pack("=IHHII", 16 + len(body), NEWROUTE, flags, 1, 0) + body)
    (error,) = struct.unpack_from("=i", netlink.recv(4096), 16)
    if error:
        raise OSError(-error, f"{network}: {os.strerror(-error)}")


def _attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + b"\0" * (-length % 4)
