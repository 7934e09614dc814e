"""Faults in what is said in OpenAI's dialects, in their errors, and in what requests may name."""

from tools.faults.fault import Fault

D = "coordinator/dialects"
POINTERS = "tests/unit/test_dialect_pointers.py"
REQUEST = "tests/unit/test_dialect_responses.py"
GOLDEN = "tests/unit/test_dialect_responses_golden.py"
STREAM = "tests/unit/test_dialect_responses_stream.py"
ERRORS = "tests/unit/test_dialect_errors.py"
OPENAI = "tests/unit/test_dialect_openai.py"

FAULTS = (
    Fault(
        "pointers: a name seen in one place is fine everywhere",
        (
            (
                f"{D}/pointers.py",
                "_refuse_pointer((link, name), inner)",
                "_refuse_pointer((link, name), inner)\n                known[name] = _OTHER",
            ),
        ),
        (POINTERS, "-k", "s1_what"),
    ),
    Fault(
        "pointers: a caller's names are kept for ever",
        ((f"{D}/pointers.py", "            _found.clear()", "            pass"),),
        (POINTERS, "-k", "memory"),
    ),
    Fault(
        "pointers: whatever stands beside a free member is free, too",
        (
            (
                f"{D}/pointers.py",
                "return isinstance(said, str) and said in self.values",
                "return True",
            ),
        ),
        (POINTERS, "-k", "s1_what"),
    ),
    Fault(
        "pointers: schemas of other dialects are looked into",
        ((f"{D}/pointers.py", '"tools.*.input_schema", ', ""),),
        (POINTERS, "-k", "talked_about"),
    ),
    Fault(
        "pointers: an MP3 in base64 is an address",
        ((f"{D}/pointers.py", " and not _BYTES.match(text)", ""),),
        (POINTERS, "-k", "talked_about"),
    ),
    Fault(
        "openai: everyone gets the usage chunk",
        (
            (
                f"{D}/openai.py",
                'options.get("include_usage") is True',
                "True",
            ),
            (
                f"{D}/openai.py",
                "isinstance(options, dict) and",
                "options is not ... and",
            ),
        ),
        (OPENAI, "-k", "usage_chunk"),
    ),
    Fault(
        "embeddings: the inputs are not looked at",
        ((f"{D}/openai.py", "        _check_inputs(given)\n", "        pass\n"),),
        (OPENAI, "-k", "bad_embeddings"),
    ),
    Fault(
        "responses: a tool that runs elsewhere is dropped",
        (
            (
                f"{D}/responses_tools.py",
                'raise InvalidInput.at(f"{field}.type", message + mend)',
                "return",
            ),
        ),
        (REQUEST, "-k", "runs_elsewhere"),
    ),
    Fault(
        "responses: what is left out is not named",
        (
            (
                f"{D}/responses_request.py",
                "            left_out[name] = None\n    for name in",
                "            pass\n    for name in",
            ),
        ),
        (REQUEST, "-k", "only_hints"),
    ),
    Fault(
        "responses: an earlier response is forgotten in silence",
        (
            (
                f"{D}/responses_request.py",
                '    "previous_response_id": _STATELESS,\n',
                "",
            ),
        ),
        (REQUEST, "-k", "names_the_field"),
    ),
    Fault(
        "responses: outputs stay where they stood",
        (
            (
                f"{D}/responses_request.py",
                "        turn.outputs.append(answer)",
                "        self._turns.append(_Turn(answer))",
            ),
        ),
        (REQUEST, "-k", "wherever"),
    ),
    Fault(
        "responses: outputs in the order they came",
        (
            (
                f"{D}/responses_request.py",
                '        self.outputs.sort(key=lambda output: places[output["tool_call_id"]])\n',
                "",
            ),
        ),
        (REQUEST, "-k", "wherever"),
    ),
    Fault(
        "responses: a tool's picture is dropped",
        (
            (
                f"{D}/responses_request.py",
                'turn.shown += [{"type": "text", "text": label}, *other]',
                "pass",
            ),
        ),
        (GOLDEN, "-k", "byte and codex_outputs"),
    ),
    Fault(
        "responses: a custom tool's input stays wrapped",
        (
            (
                f"{D}/responses_reply.py",
                'unwrapped(called["arguments"]) if done else ""',
                'called["arguments"] if done else ""',
            ),
        ),
        (REQUEST, "-k", "sent_back"),
    ),
    Fault(
        "responses: a cut answer is complete",
        (
            (
                f"{D}/responses_reply.py",
                '"status": "incomplete" if cut else "completed",\n        "incomplete_details"',
                '"status": "completed",\n        "incomplete_details"',
            ),
        ),
        (GOLDEN, "-k", "byte and cut"),
    ),
    Fault(
        "responses: an answer that broke off is complete",
        ((f"{D}/responses_reply.py", '{"abort", "error"}', '{"never"}'),),
        (STREAM, "-k", "broke_off"),
    ),
    Fault(
        "responses: unknown usage is zero",
        (
            (
                f"{D}/responses_reply.py",
                "    if read is None or written is None:\n        return None\n",
                "    read, written = read or 0, written or 0\n",
            ),
        ),
        (STREAM, "-k", "unknown_and_not"),
    ),
    Fault(
        "responses: pieces go to the last call",
        (
            (
                f"{D}/responses_events.py",
                "            if item.key == key:\n",
                "            if not named:\n",
            ),
        ),
        (STREAM, "-k", "put_together"),
    ),
    Fault(
        "responses: calls with one index are one call",
        (
            (
                f"{D}/responses_events.py",
                "if named and known and given and known != given:",
                "if False:",
            ),
        ),
        (STREAM, "-k", "kept_apart"),
    ),
    Fault(
        "responses: events that were not sent are counted",
        (
            (
                f"{D}/responses_events.py",
                "        self._numbered = self._sent_numbers\n",
                "",
            ),
        ),
        (STREAM, "-k", "not_counted"),
    ),
    Fault(
        "errors: SDKs read over a response that broke",
        (
            (
                f"{D}/errors.py",
                '        "error": error,\n        "sequence',
                '        "sequence',
            ),
        ),
        (ERRORS, "-k", "response_that_breaks"),
    ),
    Fault(
        "errors: codex reads over a response that broke",
        (
            (
                f"{D}/errors.py",
                "return first + failing.failed(failed)",
                "return first",
            ),
        ),
        (ERRORS, "-k", "response_that_breaks"),
    ),
    Fault(
        "errors: no trace id",
        (
            (
                f"{D}/errors.py",
                '            "trace_id": trace_id,\n',
                "",
            ),
        ),
        (ERRORS, "-k", "openais_sdk"),
    ),
    Fault(
        "errors: an event of Anthropic's without its name",
        (
            (
                f"{D}/errors.py",
                'b"event: error\\ndata: " + msgspec.json.encode(body)',
                'b"data: " + msgspec.json.encode(body)',
            ),
        ),
        (ERRORS, "-k", "middle_of_a_message"),
    ),
)
