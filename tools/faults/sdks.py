"""Faults in what the vendors' SDKs say and hear."""

from tools.faults.fault import Fault

TALKS = "tests/system/test_sdks.py"
CLIENTS = "tests/system/test_sdks_clients.py"
ERRORS = "tests/system/test_sdks_errors.py"
GOLDEN = "tests/system/test_sdks_golden.py"

FAULTS = (
    Fault(
        "sdks: the betas that are asked for go nowhere",
        (
            (
                "backends/anthropic/client.py",
                'return {BETAS: ",".join(asked)} if asked else {}',
                "return {}",
            ),
        ),
        (CLIENTS, "-k", "betas_of"),
    ),
    Fault(
        "sdks: a server without betas is not named as such",
        (
            (
                "web/gateway.py",
                "request[BETAS] = betas",
                'request[BETAS] = betas if "claude" in str(request) else []',
            ),
        ),
        (CLIENTS, "-k", "betas_of"),
    ),
    Fault(
        "sdks: anything may stand in the header of betas",
        (
            (
                "coordinator/dialects/anthropic.py",
                'r"[A-Za-z0-9._:-]{1,100}"',
                'r".*"',
            ),
        ),
        (CLIENTS, "-k", "no_betas_name"),
    ),
    Fault(
        "sdks: the next page of models begins with the last of the one before",
        (
            (
                "web/models.py",
                'first = _place(names, "after_id", after) + 1',
                'first = _place(names, "after_id", after)',
            ),
        ),
        (CLIENTS, "-k", "paged"),
    ),
    Fault(
        "sdks: the refusal of a list is a problem, which one SDK does not show",
        (
            (
                "web/app.py",
                'if "render" in handler.opt',
                "if False",
            ),
        ),
        (CLIENTS, "-k", "refused_says_why"),
    ),
    Fault(
        "sdks: errors have no id of the request",
        (
            (
                "web/gateway.py",
                "                (self._id_header, trace_id.encode()),\n",
                "",
            ),
        ),
        (ERRORS, "-k", "unknown_model"),
    ),
    Fault(
        "sdks: errors name no field",
        (("web/gateway.py", "field=field.field or None", "field=None"),),
        (ERRORS, "-k", "refused_by_name"),
    ),
    Fault(
        "sdks: nobody is told how long to wait",
        (
            (
                "web/errors.py",
                'found.append((b"retry-after", str(max(1, math.ceil(wait_s))).encode()))',
                "pass",
            ),
        ),
        (ERRORS, "-k", "waits_as_long"),
    ),
    Fault(
        "sdks: what was refused costs what it may have cost",
        (
            (
                "coordinator/dispatch.py",
                "free = deployment.replayed or _was_not_billed(error)",
                "free = deployment.replayed",
            ),
        ),
        (ERRORS, "-k", "until_it_is_well and openai-whole"),
    ),
    Fault(
        "sdks: half an answer ends like a whole one",
        (
            (
                "coordinator/streaming.py",
                "            yield self._broken(error)\n",
                "",
            ),
        ),
        (ERRORS, "-k", "breaks_half_way"),
    ),
    Fault(
        "sdks: a response's error is an event that no SDK raises for",
        (
            (
                "coordinator/dialects/errors.py",
                '        "error": error,\n        "sequence_number": failing.number(),',
                '        "sequence_number": failing.number(),',
            ),
        ),
        (ERRORS, "-k", "breaks_half_way and responses"),
    ),
    Fault(
        "sdks: a caller who leaves is not told to the upstream",
        (
            (
                "web/gateway.py",
                "        cycle.when_gone(task.cancel)\n",
                "        pass\n",
            ),
            (
                "coordinator/streaming.py",
                "            await self._stream.aclose()\n",
                "            pass\n",
            ),
        ),
        (ERRORS, "-k", "who_leaves"),
    ),
    Fault(
        "sdks: the chunk of usage is for everybody",
        (
            (
                "backends/openai/stream.py",
                "if is_usage_only(data) and not self._keep_usage_event:",
                "if False:",
            ),
        ),
        (GOLDEN, "-k", "chunk_of_usage"),
    ),
    Fault(
        "sdks: the same dialect is said anew",
        (
            (
                "backends/openai/stream.py",
                "                kept.append(event)\n",
                '                kept.append(event.replace(b", ", b","))\n',
            ),
        ),
        (GOLDEN, "-k", "passed_on and chat"),
    ),
    Fault(
        "sdks: what was cached is read twice",
        (
            (
                "coordinator/dialects/anthropic_reply.py",
                'found["input_tokens"] = max(0, total - (cached or 0) - (written or 0))',
                'found["input_tokens"] = total',
            ),
        ),
        (GOLDEN, "-k", "to_the_byte and messages-openai"),
    ),
    Fault(
        "sdks: two calls are one",
        (
            (
                "coordinator/dialects/anthropic_chunks.py",
                'return {"tool_calls": [{"index": self.number, "function": function}]}',
                'return {"tool_calls": [{"index": 0, "function": function}]}',
            ),
        ),
        (TALKS, "-k", "two_calls and chat-anthropic-stream"),
    ),
    Fault(
        "sdks: a picture is of another kind",
        (
            (
                "coordinator/dialects/to_anthropic_messages.py",
                '"media_type": kind, "data"',
                '"media_type": "image/jpeg", "data"',
            ),
        ),
        (TALKS, "-k", "byte_for_byte"),
    ),
    Fault(
        "sdks: the schema of the answer is forgotten",
        (
            (
                "coordinator/dialects/to_anthropic.py",
                'return {"output_config": {"format": schema}}',
                "return {}",
            ),
        ),
        (TALKS, "-k", "schema_for_the_answer"),
    ),
    Fault(
        "sdks: calls may be several where one at a time was asked for",
        (
            (
                "coordinator/dialects/to_anthropic.py",
                'choice["disable_parallel_tool_use"] = True',
                'choice["disable_parallel_tool_use"] = False',
            ),
        ),
        (TALKS, "-k", "which_tool"),
    ),
)
