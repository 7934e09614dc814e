"""Properties of the wire: how a request is cut up changes nothing, and no changed byte opens."""

import json
import socket
import time
from contextlib import closing, suppress
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from tests.conftest import Rounds
from tests.system.attacks.attacked import LAYERS, Attacked, Talk, hear

pytestmark = [pytest.mark.heavy, pytest.mark.alone, pytest.mark.timeout(3600)]

PATIENCE_S = 0.4
"""For an answer; what gives none is looked at again at the end."""
REFUSALS = {400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 421, 431, 501, 505}
DEADLINE_S = 12.0
"""After which no connection may still be open that nobody spoke on."""


def budget(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def gist(talk: Talk) -> tuple[list[int], object, bool]:
    """What must be the same however the request was sent."""
    last = json.loads(talk.raw.rpartition(b"\r\n\r\n")[2])
    changing = {"trace_id", "timestamp", "duration_ms", "latency_ms", "interaction_id"}
    kept = {name: last[name] for name in last.keys() - changing}
    return talk.statuses, kept, talk.closed


@pytest.mark.parametrize("layer", LAYERS)
def test_a_request_in_pieces_is_answered_like_one_in_a_whole(
    stack: Attacked, layer: str, counted: Rounds, seed: int
) -> None:
    body = json.dumps({"query": "x", "zz": [1, 2]}).encode()
    line = {"aidb": "POST /search", "coordinator": "POST /route"}.get(layer, "POST /x")
    half = len(body) // 2
    in_chunks = b"%x;a=b\r\n%s\r\n%x\r\n%s\r\n0\r\nT: x\r\n\r\n" % (
        half, body[:half], len(body) - half, body[half:],
    )  # fmt: skip
    requests = [
        stack.request(layer, f"{line} HTTP/1.1", body=body),
        stack.request(layer, f"{line} HTTP/1.1", "Transfer-Encoding: chunked")
        + in_chunks,
        stack.request(layer, "GET /health/live HTTP/1.1", close=False)
        + stack.request(layer, f"{line} HTTP/1.1", body=body),
        stack.request(layer, f"{line} HTTP/1.1", body=body, host="evil.com"),
        stack.request(layer, f"{line} HTTP/1.1", body=body, key=None),
    ]
    whole = [gist(stack.say(layer, request)) for request in requests]
    for number, _ in counted(f"attack-pieces-{layer}", 1, 40):

        @seeded(seed + number)
        @budget(25)
        @given(st.integers(0, len(requests) - 1), st.data())
        def check(which: int, data: st.DataObject) -> None:
            request = requests[which]
            cuts = data.draw(st.lists(st.integers(1, len(request) - 1), max_size=12))
            edges = [0, *sorted(set(cuts)), len(request)]
            parts = [request[a:b] for a, b in pairwise(edges)]
            assert gist(_in_parts(stack, layer, parts)) == whole[which], parts

        with stack.unharmed(served=True):
            check()


def _in_parts(stack: Attacked, layer: str, parts: list[bytes]) -> Talk:
    """Send each in a segment of its own."""
    with socket.create_connection(("127.0.0.1", stack.ports[layer])) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                sock.sendall(part)
                # The other end reads meanwhile; most segments arrive by themselves.
                time.sleep(0.0005)
        return hear(sock, 10)


class Quiet:
    """Connections that gave no answer: they must be closed in time, all of them."""

    def __init__(self) -> None:
        self._open: list[socket.socket] = []

    def keep(self, sock: socket.socket) -> None:
        self._open.append(sock)

    def end(self) -> None:
        until = time.monotonic() + DEADLINE_S
        while self._open:
            with closing(self._open.pop()) as sock:
                talk = hear(sock, max(0.1, until - time.monotonic()))
                assert talk.closed, "held open beyond the deadline"
                assert all(status < 500 for status in talk.statuses), talk.raw


def test_no_changed_byte_of_a_head_opens_without_a_key_or_breaks_the_server(
    stack: Attacked, counted: Rounds, seed: int
) -> None:
    bases = [
        (layer, base, right)
        for layer in LAYERS
        for base, right in _refused(stack, layer)
    ]
    quiet = Quiet()
    for number, _ in counted("attack-changed-bytes", 1, 30):

        @seeded(seed + number)
        @budget(300)
        @given(
            st.sampled_from(bases),
            st.integers(0, 1 << 16),
            st.integers(0, 255),
            st.sampled_from(["set", "insert", "drop"]),
        )
        def check(
            chosen: tuple[str, bytes, bytes], at: int, byte: int, how: str
        ) -> None:
            layer, base, right = chosen
            at %= base.index(b"\r\n\r\n") + 4
            new = b"" if how == "drop" else bytes([byte])
            sent = base[:at] + new + base[at + (how != "insert") :]
            if right and right not in sent.lower():
                return  # what made it wrong is gone: another request, and a right one
            sock = socket.create_connection(("127.0.0.1", stack.ports[layer]))
            with suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(sent)
            talk = hear(sock, PATIENCE_S, first=True)
            assert set(talk.statuses) <= REFUSALS, (sent, talk.raw)
            if talk.closed or talk.statuses:
                sock.close()
            else:
                quiet.keep(sock)

        with stack.unharmed():
            check()
            quiet.end()


def _refused(stack: Attacked, layer: str) -> list[tuple[bytes, bytes]]:
    """Requests that are refused, and the words that make them so; none: there is no key."""
    line, body = stack.effect(layer)
    line = f"{line} HTTP/1.1"
    wrong_key = "x" * len(stack.key)
    chunked = "Transfer-Encoding: chunked"
    return [
        (stack.request(layer, line, "A: b", body=body, key=wrong_key), b""),
        (stack.request(layer, line, chunked, key=None) + b"0\r\n\r\n", b""),
        (stack.request(layer, line, "Origin: http://evil", body=body), b"\norigin:"),
        (stack.request(layer, line, "Host: evil", body=body), b"\nhost: evil"),
    ]
