"""Faults that an attacker on the wire would use, on every port."""

from tools.faults.fault import Fault

FAULTS = (
    Fault(
        "p1 p2 p3: a path is normalised, not refused",
        (
            (
                "web/target.py",
                '        _look_closely(raw, scope["path"])\n',
                '        scope["path"] = __import__("posixpath").normpath(scope["path"])\n',
            ),
        ),
        ("tests/system/attacks/test_paths.py", "-k", "p1_to_p9 and (p1 or p2 or p3)"),
    ),
    Fault(
        "p4: a path is decoded twice",
        (
            (
                "web/target.py",
                '        _look_closely(raw, scope["path"])\n',
                '        scope["path"] = __import__("posixpath").normpath(unquote_plus(scope["path"]))\n',
            ),
        ),
        ("tests/system/attacks/test_paths.py", "-k", "p1_to_p9 and p4]"),
    ),
    Fault(
        "p5: a backslash is a slash",
        (
            (
                "web/target.py",
                '        _look_closely(raw, scope["path"])\n',
                '        scope["path"] = __import__("posixpath").normpath(scope["path"].replace(chr(92), "/"))\n',
            ),
        ),
        ("tests/system/attacks/test_paths.py", "-k", "p1_to_p9"),
    ),
    Fault(
        "p6: bytes that are no UTF-8 are dropped",
        (
            (
                "web/target.py",
                '        _look_closely(raw, scope["path"])\n',
                '        scope["path"] = "/" + scope["path"].replace(chr(0xFFFD), "").strip("/")\n',
            ),
        ),
        ("tests/system/attacks/test_paths.py", "-k", "p1_to_p9"),
    ),
    Fault(
        "p7: another spelling of a path reaches it",
        (
            (
                "web/target.py",
                'rb"//|./$|/\\.\\.?(?:/|$)|\\\\|%(?:[01][0-9a-f]|2[def]|3[0-9]|4[1-9a-f]|5[0-9acf]|6[1-9a-f]|7[0-9aef])"',
                'rb"//|/\\.\\.?(?:/|$)|\\\\|%(?:2f|5c|[01][0-9a-f]|7f)"',
            ),
        ),
        ("tests/system/attacks/test_paths.py", "-k", "p7"),
    ),
    Fault(
        "p8: a path ends at NUL",
        (
            (
                "web/target.py",
                '        _look_closely(raw, scope["path"])\n',
                '        scope["path"] = scope["path"].split(chr(0))[0]\n',
            ),
        ),
        ("tests/system/attacks/test_paths.py", "-k", "p1_to_p9"),
    ),
    Fault(
        "p9: parameters of a path are cut off",
        (
            (
                "web/target.py",
                "    refuse(raw)\n",
                '    refuse(raw)\n    scope["path"] = scope["path"].split(";")[0]\n',
            ),
        ),
        ("tests/system/attacks/test_paths.py", "-k", "p7 or p1_to"),
    ),
    Fault(
        "p11: targets elsewhere are served",
        (
            ("web/target.py", '    if not raw.startswith(b"/"):', "    if False:"),
            (
                "web/target.py",
                "    if not _PLAIN_PATH.fullmatch(raw):",
                '    if raw.startswith(b"/") and not _PLAIN_PATH.fullmatch(raw):',
            ),
        ),
        ("tests/system/attacks/test_paths.py", "-k", "p11"),
    ),
    Fault(
        "p12: a target has no bound",
        (("web/target.py", "    if len(raw) > MAX_TARGET_BYTES:", "    if False:"),),
        ("tests/system/attacks/test_paths.py", "-k", "p12"),
    ),
    Fault(
        "m1: a length beside chunks is taken",
        (
            (
                "web/protocol.py",
                "        self.flow = Flow(transport)\n",
                "        self.flow = Flow(transport)\n        self.parser.set_dangerous_leniencies(lenient_chunked_length=True)\n",
            ),
        ),
        ("tests/system/attacks/test_messages.py", "-k", "m1"),
    ),
    Fault(
        "m2: a line may end in LF",
        (
            (
                "web/protocol.py",
                "        self.flow = Flow(transport)\n",
                "        self.flow = Flow(transport)\n        self.parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True)\n",
            ),
        ),
        ("tests/system/attacks/test_messages.py", "-k", "m2"),
    ),
    Fault(
        "m3 m12 m13: headers are read leniently",
        (
            (
                "web/protocol.py",
                "        self.flow = Flow(transport)\n",
                "        self.flow = Flow(transport)\n        self.parser.set_dangerous_leniencies(lenient_headers=True)\n",
            ),
        ),
        ("tests/system/attacks/test_messages.py", "-k", "m3 or m12 or m13"),
    ),
    Fault(
        "m4: a missing host is ours",
        (
            (
                "web/edge.py",
                "        if len(hosts) != 1:",
                '        hosts = hosts or ["localhost"]\n        if len(hosts) != 1:',
            ),
        ),
        ("tests/system/attacks/test_messages.py", "-k", "m4"),
    ),
    Fault(
        "m5: the first of two hosts counts",
        (("web/edge.py", "        if len(hosts) != 1:", "        if not hosts:"),),
        ("tests/system/attacks/test_messages.py", "-k", "m5"),
    ),
    Fault(
        "m6: a head has no bound",
        (("web/protocol.py", "MAX_HEAD_BYTES = 32 << 10", "MAX_HEAD_BYTES = 1 << 20"),),
        ("tests/system/attacks/test_messages.py", "-k", "m6 or trailer or extension"),
    ),
    Fault(
        "m7: headers are not counted",
        (("web/protocol.py", "MAX_HEADERS = 100", "MAX_HEADERS = 10_000"),),
        ("tests/system/attacks/test_messages.py", "-k", "m7"),
    ),
    Fault(
        "m8 m9 m10: what cannot be read is passed over",
        (
            (
                "web/protocol.py",
                "            except HttpParserError:\n                self._refuse(Refused(400, NOT_HTTP))",
                "            except HttpParserError:\n                self._in_head = True",
            ),
        ),
        ("tests/system/attacks/test_messages.py", "-k", "m8 or m9"),
    ),
    Fault(
        "m11: an unknown coding of a transfer is passed over",
        (
            (
                "web/edge.py",
                '        if any(coding != "chunked" for coding in found[b"transfer-encoding"]):',
                "        if False:",
            ),
        ),
        ("tests/system/attacks/test_messages.py", "-k", "m11"),
    ),
    Fault(
        "m14: what follows a refused head is served",
        (
            (
                "web/edge.py",
                "        self.addressed = False\n",
                "        self.addressed = True\n",
            ),
        ),
        ("tests/system/attacks/test_messages.py", "-k", "m5 or m4"),
    ),
    Fault(
        "m14: any request line is taken",
        (
            (
                "web/protocol.py",
                '                "malformed": self._is_malformed(),',
                '                "malformed": False,',
            ),
        ),
        ("tests/system/attacks/test_messages.py", "-k", "m14 or m11"),
    ),
    Fault(
        "m: chunks are read leniently",
        (
            (
                "web/protocol.py",
                "        self.flow = Flow(transport)\n",
                "        self.flow = Flow(transport)\n        self.parser.set_dangerous_leniencies(lenient_optional_crlf_after_chunk=True, lenient_spaces_after_chunk_size=True)\n",
            ),
        ),
        ("tests/system/attacks/test_messages.py", "-k", "chunk"),
    ),
    Fault(
        "m: a trailer is a header",
        (
            (
                "web/protocol.py",
                "        if self._in_head:\n            name = name.lower()",
                "        if True:\n            name = name.lower()",
            ),
        ),
        ("tests/system/attacks/test_messages.py", "-k", "trailers"),
    ),
    Fault(
        "m: an upgrade hides its body",
        (
            (
                "web/protocol.py",
                "        if _length_of(self.headers):\n            self._in_head",
                "        if False:\n            self._in_head",
            ),
        ),
        ("tests/system/attacks/test_messages.py", "-k", "upgrade"),
    ),
    Fault(
        "m15: a header of the caller is written into the reply",
        (
            (
                "web/edge.py",
                '        parent = parse_traceparent(given[0].decode("latin-1")) if given else None',
                '        parent = unquote_plus(given[0].decode("latin-1")) if given else None',
            ),
        ),
        ("tests/system/attacks/test_messages.py", "-k", "m15"),
    ),
    Fault(
        "b1: any host is ours",
        (
            (
                "web/edge.py",
                '        return match["name"] in LOOPBACK_NAMES or match["name"] in self._hosts',
                "        return True",
            ),
        ),
        ("tests/system/attacks/test_browser_rules.py", "-k", "b1"),
    ),
    Fault(
        "b2: any origin is ours",
        (
            (
                "web/edge.py",
                "        if len(origins) > 1 or not all(self._is_our_origin(o, port) for o in origins):",
                "        if False:",
            ),
        ),
        ("tests/system/attacks/test_browser_rules.py", "-k", "b2"),
    ),
    Fault(
        "b3: every origin may read",
        (
            (
                "web/edge.py",
                '        kept.append((b"x-trace-id", self.trace_id.encode()))',
                '        kept.append((b"x-trace-id", self.trace_id.encode()))\n        kept.append((b"access-control-allow-origin", b"*"))',
            ),
        ),
        ("tests/system/attacks/test_browser_rules.py", "-k", "b3"),
    ),
    Fault(
        "b4: other sites may ask",
        (
            (
                "web/edge.py",
                '        if not OWN_SITES.issuperset(found[b"sec-fetch-site"]):',
                "        if False:",
            ),
        ),
        ("tests/system/attacks/test_browser_rules.py", "-k", "b4"),
    ),
    Fault(
        "b6: types are sniffed",
        (("web/headers.py", '    (b"x-content-type-options", b"nosniff"),\n', ""),),
        ("tests/system/attacks/test_browser_rules.py", "-k", "b6"),
    ),
    Fault(
        "b7: a handshake needs no origin",
        (
            (
                "web/edge.py",
                "        if not _ADDRESSING.isdisjoint(sent):",
                '        if not _ADDRESSING.isdisjoint(sent) and b"upgrade" not in sent:',
            ),
            (
                "web/edge.py",
                'b"content-length", b"traceparent"}',
                'b"content-length", b"traceparent", b"upgrade"}',
            ),
        ),
        ("tests/system/attacks/test_browser_rules.py", "-k", "b7"),
    ),
    Fault(
        "b8: a header overrides the method",
        (
            (
                "web/edge.py",
                "            check_target(scope, self._refuse_target)\n",
                '            check_target(scope, self._refuse_target)\n            given = dict(scope["headers"]).get(b"x-http-method-override")\n            scope["method"] = given.decode() if given else scope["method"]\n',
            ),
        ),
        ("tests/system/attacks/test_browser_rules.py", "-k", "b8"),
    ),
    Fault(
        "l5: an announced length is not looked at",
        (("web/edge.py", "            exchange.check_announced()\n", ""),),
        ("tests/system/attacks/test_limits.py", "-k", "l5 and 10_gb"),
    ),
    Fault(
        "l5: chunks are not counted",
        (
            (
                "web/edge.py",
                "        if self._received > self._limit:",
                "        if False:",
            ),
        ),
        ("tests/system/attacks/test_limits.py", "-k", "l5 and without"),
    ),
    Fault(
        "l5: a coding of the content is not looked at",
        (
            (
                "web/edge.py",
                '        if any(coding != "identity" for coding in found[b"content-encoding"]):',
                "        if False:",
            ),
        ),
        ("tests/system/attacks/test_limits.py", "-k", "l5 and compressed"),
    ),
    Fault(
        "l6: names may be given twice",
        (
            (
                "web/errors.py",
                "    _refuse_ambiguous(body)\n    return value",
                "    return value",
            ),
        ),
        ("tests/system/attacks/test_limits.py", "-k", "l6 and no_json"),
    ),
    Fault(
        "l6: deep nesting is an error of ours",
        (
            (
                "web/errors.py",
                '    except RecursionError:\n        raise InvalidInput.at("body", "nested too deeply") from None\n    _refuse_ambiguous',
                '    except ZeroDivisionError:\n        raise InvalidInput.at("body", "nested too deeply") from None\n    _refuse_ambiguous',
            ),
        ),
        ("tests/system/attacks/test_limits.py", "-k", "l6 and no_json"),
    ),
    Fault(
        "l7: tokens have no bound",
        (
            (
                "ralph/decision.py",
                "    if budget.tokens is not None and spent.tokens >= budget.tokens:",
                "    if False:",
            ),
        ),
        ("tests/system/attacks/test_limits.py", "-k", "l7"),
    ),
    Fault(
        "a1: who asks is looked at after the body",
        (
            (
                "web/edge.py",
                "            await self._authenticate(scope, exchange.sent)\n",
                (
                    "            first = [await exchange.receive()] if exchange._announced else []\n"
                    "            await self._authenticate(scope, exchange.sent)\n"
                ),
            ),
            (
                "web/edge.py",
                "            await self._app(scope, exchange.receive, exchange.send)\n",
                (
                    "            async def again():\n"
                    "                return first.pop() if first else await exchange.receive()\n"
                    "            await self._app(scope, again, exchange.send)\n"
                ),
            ),
        ),
        ("tests/system/attacks/test_auth.py", "-k", "a1"),
    ),
    Fault(
        "a1: scopes are not looked at",
        (
            (
                "web/auth.py",
                "    if ADMIN not in user.scopes and user.scopes.isdisjoint(wanted):",
                "    if False:",
            ),
        ),
        ("tests/system/attacks/test_auth.py", "-k", "a1"),
    ),
    Fault(
        "a2: a key may stand in the URL",
        (
            (
                "web/target.py",
                "        if name.strip().lower() in KEY_NAMES:",
                "        if False:",
            ),
        ),
        ("tests/system/attacks/test_auth.py", "-k", "a2"),
    ),
    Fault(
        "a3: keys are compared without case",
        (
            (
                "web/auth.py",
                "        self._admin = _digest(api_key.encode())",
                "        self._admin = _digest(api_key.lower().encode())",
            ),
            (
                "web/auth.py",
                "        digest = _digest(key)",
                "        digest = _digest(key.lower())",
            ),
        ),
        ("tests/system/attacks/test_auth.py", "-k", "a3"),
    ),
    Fault(
        "a4: one of two keys counts",
        (
            (
                "web/auth.py",
                "    if found or len(bearers) > 1 or len(plain) > 1:",
                "    if False:",
            ),
        ),
        ("tests/system/attacks/test_auth.py", "-k", "a4"),
    ),
    Fault(
        "a6: unknown fields of a key are passed over",
        (
            (
                "web/coordinator.py",
                "class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):",
                "class NewKey(msgspec.Struct, frozen=True, kw_only=True):",
            ),
        ),
        ("tests/system/attacks/test_auth.py", "-k", "a6"),
    ),
    Fault(
        "property: a request in pieces is refused",
        (
            (
                "web/protocol.py",
                "            elif self._head_bytes < _LINE_BYTES:\n                self._line += piece\n",
                "",
            ),
        ),
        ("tests/system/attacks/test_smuggling_property.py", "-k", "pieces"),
    ),
    Fault(
        "property: a byte that is no ASCII is a fault of ours",
        (
            (
                "web/edge.py",
                'host.decode("latin-1").lower()',
                'host.decode("ascii").lower()',
            ),
        ),
        ("tests/system/attacks/test_smuggling_property.py", "-k", "changed"),
    ),
    Fault(
        "a3: guesses take the places of those who have a key",
        (
            (
                "web/edge.py",
                "            await self._authenticate(scope, exchange.sent)\n            self._find_room(scope, exchange)\n",
                "            self._find_room(scope, exchange)\n            await self._authenticate(scope, exchange.sent)\n",
            ),
        ),
        ("tests/faces/test_edge_refusals.py", "-k", "a3_guesses"),
    ),
    Fault(
        "l5: refused strangers that go on sending take places",
        (
            (
                "web/edge.py",
                "            await self._authenticate(scope, exchange.sent)\n            self._find_room(scope, exchange)\n",
                "            self._find_room(scope, exchange)\n            await self._authenticate(scope, exchange.sent)\n",
            ),
            (
                "web/edge.py",
                "                self.leave_room()\n                await",
                "                await",
            ),
            ("web/wire.py", "MAX_LINGERING = 256", "MAX_LINGERING = 1 << 20"),
        ),
        ("tests/faces/test_edge_refusals.py", "-k", "strangers"),
    ),
    Fault(
        "l5: health is refused for room",
        (
            (
                "web/edge.py",
                '            if scope["raw_path"].startswith(_ALWAYS):',
                "            if False:",
            ),
        ),
        ("tests/faces/test_edge_refusals.py", "-k", "health_is_told"),
    ),
    Fault(
        "l5: any number of refused clients is heard out",
        (
            (
                "web/wire.py",
                "        if not self._room.enter():\n            return\n",
                "        self._room.enter()\n",
            ),
        ),
        ("tests/faces/test_edge_refusals.py", "-k", "only_so_many"),
    ),
    Fault(
        "l5: who was heard out keeps the place",
        (("web/wire.py", "            self._room.leave()\n", "            pass\n"),),
        ("tests/faces/test_edge_refusals.py", "-k", "only_so_many"),
    ),
    Fault(
        "l5: a refusal from inside is lost",
        (
            (
                "web/edge.py",
                "                await self._lingering.linger(self._receive)\n",
                "",
            ),
        ),
        ("tests/faces/test_edge_refusals.py", "-k", "from_inside"),
    ),
    Fault(
        "a3: a key that is too long is met with silence",
        (
            (
                "web/protocol.py",
                "            self._write_problem(error)\n",
                "            pass\n",
            ),
        ),
        ("tests/system/attacks/test_auth.py", "-k", "a3"),
    ),
)
