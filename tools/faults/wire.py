"""Faults on the wire: deadlines, bounds, one request after the other."""

from tools.faults.fault import Fault

FAULTS = (
    Fault(
        "l4: heads have no deadline",
        (("web/protocol.py", "waited_s >= allowed.head_s", "False"),),
        ("tests/faces/test_wire.py", "-k", "l4 and head"),
    ),
    Fault(
        "l4: a body may stop",
        (("web/protocol.py", "quiet_s >= allowed.body_idle_s", "False"),),
        ("tests/faces/test_wire.py", "-k", "stops"),
    ),
    Fault(
        "l4: a body may drip",
        (
            (
                "web/protocol.py",
                "self._body_bytes < waited_s * allowed.body_bytes_per_s",
                "False",
            ),
        ),
        ("tests/faces/test_wire.py", "-k", "drips"),
    ),
    Fault(
        "l4: the rest of a refused body has no deadline",
        (
            (
                "web/protocol.py",
                "        if not self._in_head:\n            return Turn.BODY\n",
                "",
            ),
        ),
        ("tests/faces/test_wire.py", "-k", "refused_body"),
    ),
    Fault(
        "l4: a client waits for us and is cut",
        (("web/protocol.py", "                or self.flow.read_paused\n", ""),),
        ("tests/faces/test_wire.py", "-k", "service_is"),
    ),
    Fault(
        "l4: a client that waits for 100 is cut",
        (
            (
                "web/protocol.py",
                "                or served.waiting_for_100_continue\n",
                "",
            ),
        ),
        ("tests/faces/test_wire.py", "-k", "for_100"),
    ),
    Fault(
        "l4: replies may be left for ever",
        (("web/protocol.py", "quiet_s >= allowed.write_idle_s", "False"),),
        ("tests/faces/test_wire.py", "-k", "takes_no_reply"),
    ),
    Fault(
        "l4: a slow reader or sender is cut",
        (("web/protocol.py", "if moved == self._moved else", "if True else"),),
        ("tests/faces/test_wire.py", "-k", "slow_reader or slow_line"),
    ),
    Fault(
        "l4: unread replies hold places in the service",
        (
            (
                "web/protocol.py",
                "if self._serving is None and self.pipeline and not self.flow.write_paused:",
                "if self._serving is None and self.pipeline:",
            ),
            (
                "web/protocol.py",
                " >= MAX_PIPELINED or self.flow.write_paused",
                " >= MAX_PIPELINED",
            ),
        ),
        ("tests/faces/test_wire.py", "-k", "hold_no_place"),
    ),
    Fault(
        "l4: idle connections are kept for ever",
        (("web/protocol.py", "waited_s >= allowed.keep_alive_s", "False"),),
        ("tests/faces/test_wire.py", "-k", "not_for_ever"),
    ),
    Fault(
        "l4: silence is answered",
        (("web/protocol.py", "if self.scope is not self._headed:", "if True:"),),
        ("tests/faces/test_wire.py", "-k", "without_a_word"),
    ),
    Fault(
        "l4: a stream outlives its client",
        (
            (
                "web/protocol.py",
                "            self._serving.lose()\n        super()",
                "            pass\n        super()",
            ),
        ),
        ("tests/faces/test_wire.py", "-k", "left_a_request"),
    ),
    Fault(
        "l4: no cap of connections",
        (("web/protocol.py", "        self.wire.make_room()\n", ""),),
        ("tests/faces/test_wire_bounds.py", "-k", "idled_longest"),
    ),
    Fault(
        "l4: who is served makes room",
        (
            (
                "web/protocol.py",
                "            self.wire.waiting.pop(self, None)\n            self._start",
                "            self._start",
            ),
        ),
        ("tests/faces/test_wire_bounds.py", "-k", "idled_longest or turned_away"),
    ),
    Fault(
        "l4: the newest makes room",
        (
            (
                "web/wire.py",
                "oldest = next(iter(self.waiting))",
                "oldest = next(reversed(self.waiting))",
            ),
        ),
        ("tests/faces/test_wire_bounds.py", "-k", "idled_longest"),
    ),
    Fault(
        "l4: all of a pipeline is parsed at once",
        (("web/protocol.py", "len(self.pipeline) >= MAX_PIPELINED or ", ""),),
        ("tests/faces/test_wire_bounds.py", "-k", "thousands"),
    ),
    Fault(
        "l4: what waits has no common bound",
        (
            (
                "web/wire.py",
                "return self.held_bytes > self._max_connections * HELD_BYTES",
                "return False",
            ),
        ),
        ("tests/faces/test_wire_bounds.py", "-k", "for_all_together"),
    ),
    Fault(
        "l4: the file limit stays low",
        (
            (
                "web/serve.py",
                "        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))\n",
                "",
            ),
        ),
        ("tests/faces/test_wire_bounds.py", "-k", "open_files"),
    ),
    Fault(
        "m6: trailers have no bound",
        (
            (
                "web/protocol.py",
                "self._framing_bytes > MAX_HEAD_BYTES or framing > allowed",
                "framing > allowed",
            ),
        ),
        ("tests/faces/test_wire_bounds.py", "-k", "bounded_like_a_head"),
    ),
    Fault(
        "m6: chunk extensions have no bound",
        (
            (
                "web/protocol.py",
                "self._framing_bytes > MAX_HEAD_BYTES or framing > allowed",
                "self._framing_bytes > MAX_HEAD_BYTES",
            ),
        ),
        ("tests/faces/test_wire_bounds.py", "-k", "bounded_like_a_head"),
    ),
    Fault(
        "m14: the body of an upgrade is a request",
        (
            (
                "web/protocol.py",
                "        if _length_of(self.headers):\n",
                "        if False:\n",
            ),
        ),
        ("tests/faces/test_wire_bounds.py", "-k", "upgrade"),
    ),
    Fault(
        "m14: a refusal overtakes an answer",
        (
            (
                "web/protocol.py",
                "        if earlier is not None and earlier is not broken:",
                "        if False:",
            ),
        ),
        ("tests/faces/test_wire_bounds.py", "-k", "broken_second_body"),
    ),
    Fault(
        "m14: a second reply to one request",
        (
            (
                "web/protocol.py",
                "if broken is None or not broken.response_started:",
                "if True:",
            ),
        ),
        ("tests/faces/test_wire_bounds.py", "-k", "behind_an_answer"),
    ),
    Fault(
        "m14: nonsense is executed",
        (
            (
                "web/protocol.py",
                "        self.pipeline.appendleft((cycle, self.app))",
                "        self.pipeline.appendleft((cycle, self.app))\n        self._start_next()",
            ),
        ),
        ("tests/faces/test_wire_bounds.py", "-k", "comes_with_nonsense"),
    ),
    Fault(
        "m14: an empty line in two packets is missed",
        (("web/protocol.py", "        if self._tail:\n", "        if False:\n"),),
        ("tests/faces/test_wire_bounds.py", "-k", "two_packets"),
    ),
    Fault(
        "p12: the longest target is not looked at",
        (
            (
                "web/protocol.py",
                "len(self.url) <= MAX_TARGET_BYTES",
                "len(self.url) < MAX_TARGET_BYTES",
            ),
        ),
        ("tests/faces/test_edge_refusals.py", "-k", "p12"),
    ),
    Fault(
        "what the wire refuses leaves no trace",
        (
            (
                "web/protocol.py",
                "            self.wire.note_refusal(method, path, status, self.client, trace_id)\n",
                "            pass\n",
            ),
        ),
        ("tests/faces/test_edge_refusals.py", "-k", "logged_and_counted"),
    ),
    Fault(
        "a password in a target is logged",
        (
            (
                "web/protocol.py",
                'path = self.url if self.url.startswith(b"/") else b""',
                "path = self.url",
            ),
        ),
        ("tests/faces/test_edge_refusals.py", "-k", "logged_and_counted"),
    ),
    Fault(
        "a refused body is logged as another answer",
        (
            (
                "web/protocol.py",
                'cast("dict[str, Any]", self._serving.scope)[wire.REFUSED] = status, trace_id',
                "pass",
            ),
        ),
        ("tests/faces/test_edge_refusals.py", "-k", "as_its_client_saw_it"),
    ),
    Fault(
        "the access log does not say who asked",
        (
            (
                "telemetry/access_log.py",
                "line.client[0] if line.client else None",
                "None",
            ),
        ),
        ("tests/faces/test_edge_refusals.py", "-k", "logged"),
    ),
)
