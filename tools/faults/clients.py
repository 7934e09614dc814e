"""Faults in the clients of model servers, in record and replay, and in the answer cache."""

from tools.faults.fault import Fault

CLIENT = "tests/unit/test_coordinator_openai_client.py"
STREAM = "tests/unit/test_openai_stream.py"
KEPT = "tests/unit/test_model_connections.py"
ANTHROPIC = "tests/unit/test_anthropic_client.py"
TAPES = "tests/unit/test_cassette_dialects.py"
CACHE = "tests/contracts/test_answer_cache.py"
OPENAI_STREAM = "backends/openai/stream.py"
SHARED = "backends/model_http/stream.py"
ENDPOINT = "backends/model_http/endpoint.py"
CONNECTIONS = "backends/model_http/connections.py"

FAULTS = (
    Fault(
        "client: usage beside the last words is not read",
        (
            (
                OPENAI_STREAM,
                'if data.get("usage"):',
                'if data.get("usage") and not data.get("choices"):',
            ),
        ),
        (STREAM, "-k", "wherever"),
    ),
    Fault(
        "client: a later, smaller count of a stream stands",
        (
            (
                OPENAI_STREAM,
                "self._running = larger(self._running, counts)",
                "self._running = counts",
            ),
        ),
        (STREAM, "-k", "largest"),
    ),
    Fault(
        "client: nothing is read after the last event",
        (
            (
                OPENAI_STREAM,
                "return self.usage().output_tokens is not None",
                "return True",
            ),
        ),
        (STREAM, "-k", "wherever"),
    ),
    Fault(
        "client: a usage chunk nobody asked for goes on",
        ((OPENAI_STREAM, "and not self._keep_usage_event", "and False"),),
        (STREAM, "-k", "however or one_piece"),
    ),
    Fault(
        "client: [DONE] within a text ends the stream",
        (
            (
                OPENAI_STREAM,
                "            if is_done(event):",
                '            if b"[DONE]" in event:',
            ),
        ),
        (STREAM, "-k", "however or one_piece or handed_out"),
    ),
    Fault(
        "client: half an event is handed out",
        (
            (
                "backends/model_http/cut.py",
                "        self._held = chunk[end:]\n        return chunk[:end]",
                '        self._held = b""\n        return chunk',
            ),
        ),
        (STREAM, "-k", "however"),
    ),
    Fault(
        "client: reasoning tokens are not read",
        (
            (
                "backends/openai/wire.py",
                'count(written.get("reasoning_tokens"))',
                "None",
            ),
        ),
        (STREAM, "-k", "wherever"),
    ),
    Fault(
        "client: a stream is complete before its end was handed out",
        (
            (
                SHARED,
                "        self.complete = self._done and not self._last\n",
                "        self.complete = True\n",
            ),
        ),
        (STREAM, "-k", "handed_out or died"),
    ),
    Fault(
        "client: an end in the middle is an end",
        ((SHARED, "        if not self._finished:\n", "        if False:\n"),),
        (STREAM, "-k", "clean_end"),
    ),
    Fault(
        "client: a slow reader is taken for a silent upstream",
        (
            (
                SHARED,
                "        finally:\n            self._waiting_since = None\n",
                "        finally:\n            pass\n",
            ),
        ),
        (KEPT, "-k", "silence"),
    ),
    Fault(
        "client: a silent stream is waited for without end",
        (
            (
                SHARED,
                "            self._response.content.set_exception(TimeoutError())\n",
                "",
            ),
        ),
        (STREAM, "-k", "silence"),
    ),
    Fault(
        "client: a stream that was left goes on at the upstream",
        (
            (
                SHARED,
                "        self._stop_clock()\n        self._response.close()\n",
                "        self._stop_clock()\n",
            ),
        ),
        (KEPT, "-k", "leaves"),
    ),
    Fault(
        "client: a reply that never ends holds its connection",
        (
            (
                SHARED,
                "self._loop.call_later(LINGER_S, self._response.close)",
                "pass",
            ),
        ),
        (KEPT, "-k", "does_not_end"),
    ),
    Fault(
        "client: a connection that ended is used again",
        ((CONNECTIONS, "return not poll.poll(0)", "return True"),),
        (KEPT, "-k", "seen_before"),
    ),
    Fault(
        "client: a connection is kept for as long as it likes",
        ((CONNECTIONS, "time.monotonic() - left_at < kept_s and ", ""),),
        (KEPT, "-k", "idle_for_long"),
    ),
    Fault(
        "client: every call makes a connection",
        (
            (
                CONNECTIONS,
                "            limit_per_host=0,",
                "            force_close=True,",
            ),
            (
                CONNECTIONS,
                "            keepalive_timeout=max(idle_s, tls_idle_s),\n",
                "",
            ),
        ),
        (KEPT, "-k", "share or is_kept_once"),
    ),
    Fault(
        "client: nobody learns that a connection was stale",
        (
            (
                ENDPOINT,
                "            if not _without_a_byte(error):",
                "            if True:",
            ),
        ),
        (KEPT, "-k", "is_stale"),
    ),
    Fault(
        "client: a begun answer counts as a stale connection",
        (
            (
                ENDPOINT,
                "return isinstance(error.message, str)",
                "return error.message is not None",
            ),
        ),
        (KEPT, "-k", "no_stale"),
    ),
    Fault(
        "client: a new connection that dies counts as a stale one",
        ((ENDPOINT, " or not was_reused()", ""),),
        (KEPT, "-k", "no_stale"),
    ),
    Fault(
        "client: embeddings without vectors are an answer",
        (("backends/openai/client.py", "_LIST.match(head.data) is None", "False"),),
        (CLIENT, "-k", "embeddings_that_are_none"),
    ),
    Fault(
        "client: the bytes of an answer are made anew",
        (
            (
                "backends/openai/client.py",
                "usage_of(value_of(head.usage)))",
                'usage_of(value_of(head.usage)), body=__import__("json").loads(raw))',
            ),
            (
                "ports/model_client.py",
                "        if raw is None:",
                "        if body is not None:",
            ),
        ),
        (CLIENT, "-k", "keeps_its_bytes"),
    ),
    Fault(
        "anthropic: cached input is not counted as input",
        (
            (
                "backends/anthropic/wire.py",
                "            total += self.cache_read_input_tokens or 0\n",
                "",
            ),
        ),
        (ANTHROPIC, "-k", "adds_up"),
    ),
    Fault(
        "anthropic: a zero at the end forgets the input counted at the start",
        (
            (
                "backends/anthropic/wire.py",
                "old if new is None or (new == 0 and old is not None) else new",
                "new",
            ),
        ),
        (ANTHROPIC, "-k", "start_and_at or newest"),
    ),
    Fault(
        "anthropic: the guess at the start is the count of a cut stream",
        (
            (
                "backends/anthropic/stream.py",
                "msgspec.structs.replace(counts, output_tokens=None)",
                "counts",
            ),
        ),
        (ANTHROPIC, "-k", "guesses"),
    ),
    Fault(
        "anthropic: a ping is a token",
        (
            (
                "backends/anthropic/wire.py",
                'case "message_delta" | "message_stop":',
                'case "message_delta" | "message_stop" | "ping":',
            ),
        ),
        (ANTHROPIC, "-k", "ping"),
    ),
    Fault(
        "anthropic: an error event has no status",
        (
            (
                "backends/anthropic/stream.py",
                "UpstreamError(message, status=status)",
                "UpstreamError(message)",
            ),
        ),
        (ANTHROPIC, "-k", "error_event"),
    ),
    Fault(
        "anthropic: the key goes in another header",
        (("backends/anthropic/client.py", '"x-api-key"', '"authorization"'),),
        (ANTHROPIC, "-k", "base_url"),
    ),
    Fault(
        "cassette: one dialect is answered in the other's shape",
        (
            (
                "backends/replay/tape.py",
                "self._entries.get((dialect, digest(texts)))",
                "self._entries.get((Dialect.OPENAI, digest(texts)))",
            ),
        ),
        (TAPES, "-k", "each_dialect"),
    ),
    Fault(
        "cassette: results of tools in messages do not matter",
        (
            (
                "backends/replay/normalise.py",
                "normalise(_content(block.get('content')))",
                "''",
            ),
        ),
        (TAPES, "-k", "conversation_of_messages"),
    ),
    Fault(
        "cassette: the input of a streamed tool is lost",
        (
            (
                "backends/replay/anthropic_answer.py",
                'msgspec.json.decode(text or "{}")',
                "{}",
            ),
        ),
        (TAPES, "-k", "streamed_message"),
    ),
    Fault(
        "cassette: the shape of embeddings does not matter",
        (
            (
                "backends/replay/normalise.py",
                'for key in ("dimensions", "encoding_format")',
                'for key in ("model",) if False',
            ),
        ),
        (TAPES, "-k", "embeddings"),
    ),
    Fault(
        "answers: one key's answer is given to another",
        (
            (
                "coordinator/answer_cache.py",
                "[dialect, owner, group, asked]",
                "[dialect, group, asked]",
            ),
        ),
        (CACHE, "-k", "differs_by"),
    ),
    Fault(
        "answers: a request with tools is answered from the cache",
        (("coordinator/answer_cache.py", '*("tools", "functions",', '*("functions",'),),
        (CACHE, "-k", "acts_or_leans"),
    ),
    Fault(
        "answers: results of tools are answered from the cache",
        (("coordinator/answer_cache.py", " or _has_tools(said)", ""),),
        (CACHE, "-k", "acts_or_leans"),
    ),
    Fault(
        "answers: a cut answer is given again",
        (("coordinator/answer_cache.py", '{"finish_reason": "stop", ', "{"),),
        (CACHE, "-k", "cut_or_acts"),
    ),
    Fault(
        "answers: an answer that calls a tool is given again",
        (("coordinator/answer_cache.py", "return not acts and ", "return "),),
        (CACHE, "-k", "cut_or_acts"),
    ),
    Fault(
        "answers: garbage in the store is an answer",
        (
            (
                "coordinator/answer_cache.py",
                "answer if kept[1 : 1 + _SUM_BYTES] == _sum(key, answer) else None",
                "answer",
            ),
        ),
        (CACHE, "-k", "not_what_was_kept"),
    ),
    Fault(
        "answers: they never end",
        (("resilience/answer_cache.py", "until <= self._clock()", "False"),),
        (CACHE, "-k", "ends_with_its_time or monotonic"),
    ),
    Fault(
        "answers: memory grows without end",
        (
            (
                "resilience/answer_cache.py",
                "while self._bytes + size > self._max_bytes",
                "while False",
            ),
        ),
        (CACHE, "-k", "memory_is_bounded"),
    ),
    Fault(
        "answers: in Redis they never end",
        (("backends/redis/answer_cache.py", ", px=milliseconds", ""),),
        (CACHE, "-k", "has_an_end or ends_with"),
    ),
    Fault(
        "answers: a huge value of another's making is read whole",
        (
            (
                "backends/redis/answer_cache.py",
                "len(found) <= MAX_VALUE_BYTES",
                "len(found) >= 0",
            ),
        ),
        (CACHE, "-k", "anothers_making"),
    ),
    Fault(
        "answers: another's kind of value looks like Redis being away",
        (
            (
                "backends/redis/answer_cache.py",
                'startswith("WRONGTYPE")',
                'startswith("?")',
            ),
        ),
        (CACHE, "-k", "anothers_making"),
    ),
)
