"""Faults in where streams end, and in what nobody foresaw of an answer."""

from tools.faults.fault import Fault

_ENDS = "tests/unit/test_model_stream_ends.py"
_ANSWERS = "tests/unit/test_gateway_answers.py"
_SHARED = "backends/model_http/stream.py"
_OPENAI = "backends/openai/stream.py"
_STREAMING = "coordinator/streaming.py"
_RESPONSES = "coordinator/dialects/responses_events.py"
_MESSAGES = "coordinator/dialects/anthropic_events.py"
_CHUNKS = "coordinator/dialects/anthropic_chunks.py"
_REPLY = "coordinator/dialects/anthropic_reply.py"
_SERVICE = "coordinator/service.py"
_NET = "        except Exception:  # noqa: BLE001 - "
_NO_NET = "        except ZeroDivisionError:  # "

FAULTS = (
    Fault(
        "streams: the end is handed out before the usage that follows it",
        (
            (
                _SHARED,
                "if self._last and (not piece or self._all_is_said()):",
                "if self._last:",
            ),
        ),
        (_ENDS, "-k", "left_at_the_end"),
    ),
    Fault(
        "streams: the text waits with the end",
        (
            (
                _SHARED,
                "        while not self._ready:\n",
                "        while not self._ready or self._last and not self._all_is_said():\n",
            ),
        ),
        (_ENDS, "-k", "text_is_there"),
    ),
    Fault(
        "streams: the end waits though the usage was said",
        (
            (_SHARED, "or self._all_is_said()):", "or False):"),
            (_SHARED, "while not self._all_is_said():", "while True:"),
        ),
        (_ENDS, "-k", "waits_for_nothing"),
    ),
    Fault(
        "streams: an end that is held back counts as handed out",
        (
            (
                _SHARED,
                "self.complete = self._done and not self._last",
                "self.complete = self._done",
            ),
        ),
        (_ENDS, "-k", "text_is_there"),
    ),
    Fault(
        "streams: usage without its empty line is not read",
        (
            (
                _SHARED,
                "if chunk else self._at_end())",
                'if chunk else b"")',
            ),
        ),
        (_ENDS, "-k", "empty_line"),
    ),
    Fault(
        "streams: bytes have no limit",
        ((_SHARED, "if self._taken > MAX_STREAM_BYTES:", "if False:"),),
        (_ENDS, "-k", "too_many_bytes"),
    ),
    Fault(
        "streams: time has no limit",
        ((_SHARED, "elif now - self._began >= MAX_STREAM_S:", "elif False:"),),
        (_ENDS, "-k", "takes_too_long"),
    ),
    Fault(
        "streams: a comment ends a silence",
        (
            (
                _SHARED,
                "            self._silent_s += self._loop.time() - began\n",
                "            pass\n",
            ),
        ),
        (_ENDS, "-k", "comments_are_silence"),
    ),
    Fault(
        "streams: a comment that names data ends a silence",
        (
            (
                "model/sse.py",
                'piece.startswith(b"data:") or b"\\ndata:" in piece',
                'b"data:" in piece',
            ),
        ),
        (_ENDS, "-k", "comments_are_silence"),
    ),
    Fault(
        "streams: the first half of a comment ends a silence",
        (
            (
                _SHARED,
                "or carries_data(piece or self._cutter.rest()):",
                "or not piece or carries_data(piece):",
            ),
        ),
        (_ENDS, "-k", "comments_are_silence"),
    ),
    Fault(
        "streams: a slow reader of comments is a silent upstream",
        (
            (
                _SHARED,
                "            self._silent_s += self._loop.time() - began\n",
                "            self._silent_s += 5\n",
            ),
        ),
        (_ENDS, "-k", "slow_reader"),
    ),
    Fault(
        "streams: a ping is silence",
        (
            (
                "model/sse.py",
                'or b"\\ndata:" in piece',
                'or (b"\\ndata:" in piece and not piece.startswith(b"event: ping"))',
            ),
        ),
        (_ENDS, "-k", "pings"),
    ),
    Fault(
        "streams: frames without sense are waited for",
        (
            (
                "backends/model_http/connections.py",
                "if isinstance(exc, HttpProcessingError) and body and",
                "if False and body and",
            ),
        ),
        (_ENDS, "-k", "frames"),
    ),
    Fault(
        "streams: another status than an error's is an answer",
        (
            (
                "backends/model_http/endpoint.py",
                "if response.status == _OK:",
                "if response.status < 400:",
            ),
        ),
        (_ENDS, "-k", "change_of_protocol"),
    ),
    Fault(
        "answers: a piece that is none is passed over",
        (
            (
                _REPLY,
                '        raise UpstreamError("the model\'s server sent a piece that cannot be read")\n',
                "        return {}\n",
            ),
        ),
        (_ANSWERS, "-k", "piece_that_is_none"),
    ),
    Fault(
        "answers: choices of any kind are gone through",
        ((_REPLY, "in choices if isinstance(choices, list) else ():", "in choices:"),),
        (_ANSWERS, "-k", "passed_over"),
    ),
    Fault(
        "answers: a reason of any kind is kept",
        (
            (
                _RESPONSES,
                "if isinstance(reason, str) and reason:",
                "if reason:",
            ),
        ),
        (_ANSWERS, "-k", "passed_over"),
    ),
    Fault(
        "answers: a function of any kind is read",
        (
            (
                _RESPONSES,
                "    return value if isinstance(value, dict) else {}\n",
                "    return value or {}\n",
            ),
        ),
        (_ANSWERS, "-k", "passed_over"),
    ),
    Fault(
        "answers: a call's name may be anything",
        (
            (
                _RESPONSES,
                "if isinstance(given, str) and not called[name]:",
                "if given and not called[name]:",
            ),
        ),
        (_ANSWERS, "-k", "passed_over"),
    ),
    Fault(
        "answers: a bug in a translation cuts the reply off",
        (
            (_STREAMING, f"{_NET}what was said", f"{_NO_NET}what was said"),
            (_STREAMING, f"{_NET}nothing that", f"{_NO_NET}nothing that"),
        ),
        (_ANSWERS, "-k", "bug_in_a_translation"),
    ),
    Fault(
        "answers: a bug at the end of a translation cuts the reply off",
        ((_STREAMING, f"{_NET}nothing that", f"{_NO_NET}nothing that"),),
        (_ANSWERS, "-k", "bug_in"),
    ),
    Fault(
        "answers: a bug is not logged",
        (
            (
                "coordinator/failures.py",
                '    _log.exception("answer_not_read", deployment=deployment.name)\n',
                "",
            ),
        ),
        (_ANSWERS, "-k", "bug_in_a_translation"),
    ),
    Fault(
        "answers: the breaker counts a broken stream as well",
        (
            (
                _STREAMING,
                "        self._answered.upstream.failed(self._answered.permit, error)\n",
                "        self._answered.upstream.answered(self._answered.permit, slow=False)\n",
            ),
        ),
        (_ANSWERS, "-k", "piece_that_is_none"),
    ),
    Fault(
        "answers: a bug leaves a whole answer unsettled",
        (("coordinator/gateway.py", f"{_NET}a call", f"{_NO_NET}a call"),),
        (_ANSWERS, "-k", "whole_answer"),
    ),
    Fault(
        "answers: a bug leaves a route's answer unsettled",
        (
            (
                _SERVICE,
                "    except Exception:  # noqa: BLE001 - a call",
                "    except ZeroDivisionError:  # a call",
            ),
        ),
        (_ANSWERS, "-k", "routes_answer"),
    ),
    Fault(
        "answers: a route's text may be a list",
        (
            (
                _SERVICE,
                'return text_in(choice_of(body)[0].get("content")), None',
                'return choice_of(body)[0].get("content") or "", None',
            ),
        ),
        (_ANSWERS, "-k", "content_is_parts"),
    ),
    Fault(
        "answers: a route without text was a success",
        (
            (
                _SERVICE,
                "            error=None if error is None else str(error),\n",
                "            error=None,\n",
            ),
        ),
        (_ANSWERS, "-k", "has_no_text"),
    ),
    Fault(
        "answers: the id of a tool's result may be anything",
        (
            (
                "coordinator/dialects/anthropic_messages.py",
                "        if not isinstance(call_id, str):\n",
                "        if False:\n",
            ),
        ),
        (_ANSWERS, "-k", "tools_result"),
    ),
    Fault(
        "answers: True and -1 are counts",
        (
            (
                "model/task.py",
                "    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:\n",
                "    if isinstance(value, int):\n",
            ),
        ),
        (_ANSWERS, "-k", "is_no_count"),
    ),
    Fault(
        "kept: a response's text has no limit",
        ((_RESPONSES, "        self._room.take(len(text))\n", ""),),
        (_ANSWERS, "-k", "without_an_end"),
    ),
    Fault(
        "kept: a response's arguments have no limit",
        ((_RESPONSES, "        self._room.take(len(piece))\n", ""),),
        (_ANSWERS, "-k", "without_an_end"),
    ),
    Fault(
        "kept: a response's calls have no limit",
        (
            (
                _RESPONSES,
                '        self._room.take(PIECE)\n        item = _Item("call")',
                '        item = _Item("call")',
            ),
        ),
        (_ANSWERS, "-k", "without_an_end"),
    ),
    Fault(
        "kept: a message's arguments have no limit",
        ((_MESSAGES, "        self._room.take(len(more))\n", ""),),
        (_ANSWERS, "-k", "without_an_end"),
    ),
    Fault(
        "kept: a message's calls have no limit",
        (
            (
                _MESSAGES,
                "            self._room.take(PIECE)\n            block = self._calls",
                "            block = self._calls",
            ),
        ),
        (_ANSWERS, "-k", "without_an_end"),
    ),
    Fault(
        "kept: calls of Anthropic's events have no limit",
        (
            (
                _CHUNKS,
                "            self._room.take(PIECE + len(msgspec.json.encode(whole)))\n",
                "",
            ),
        ),
        (_ANSWERS, "-k", "have_a_limit"),
    ),
    Fault(
        "kept: counts that nobody reads pile up",
        (
            (
                _CHUNKS,
                "told = ((name, usage.get(name)) for name in _COUNTS)",
                "told = usage.items()",
            ),
        ),
        (_ANSWERS, "-k", "only_those_are_kept"),
    ),
)
