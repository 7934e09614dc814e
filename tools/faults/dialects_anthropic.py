"""Faults in what is said between chat completions and Anthropic's messages."""

from tools.faults.fault import Fault

_FACE = "tests/unit/test_dialect_anthropic.py"
_SERVER = "tests/unit/test_dialect_anthropic_server.py"
_TURNS = "tests/unit/test_dialect_anthropic_turns.py"
_GOLDEN = "tests/unit/test_dialect_anthropic_golden.py"
_IN = "coordinator/dialects/"

FAULTS = (
    Fault(
        "anthropic events: every block is number 0",
        ((f"{_IN}anthropic_events.py", "        self._opened += 1\n", ""),),
        (_GOLDEN, "-k", "parallel"),
    ),
    Fault(
        "anthropic events: usage after the finish is lost",
        (
            (
                f"{_IN}anthropic_events.py",
                'if isinstance(chunk.get("usage"), dict):',
                'if isinstance(chunk.get("usage"), dict) and not self._end:',
            ),
        ),
        (_TURNS, "-k", "chat_answer_streamed"),
    ),
    Fault(
        "anthropic events: pieces of a call that waits are dropped",
        (
            (
                f"{_IN}anthropic_events.py",
                "        if not block.closed:\n            block.pending += more",
                "        if not block.closed:\n            block.pending = more",
            ),
        ),
        (_TURNS, "-k", "chat_answer_streamed"),
    ),
    Fault(
        "anthropic events: a call is closed as soon as another begins",
        (
            (
                f"{_IN}anthropic_events.py",
                '.endswith("}"):\n            return False',
                '.endswith("}"):\n            return True',
            ),
        ),
        (_GOLDEN, "-k", "parallel"),
    ),
    Fault(
        "anthropic events: calls are told apart by their index only",
        (
            (
                f"{_IN}anthropic_events.py",
                "if block is None or (named and call_id != block.call_id and block.complete):",
                "if block is None:",
            ),
        ),
        (_FACE, "-k", "all_say_index_0"),
    ),
    Fault(
        "anthropic events: broken arguments pass as an answer",
        (
            (
                f"{_IN}anthropic_events.py",
                "            input_of(block.said.getvalue(), block.name)\n        block.closed",
                "            pass\n        block.closed",
            ),
        ),
        (_FACE, "-k", "end_broken"),
    ),
    Fault(
        "anthropic events: arguments that the limit cut are an error",
        (
            (
                f"{_IN}anthropic_events.py",
                'if block.number is not None and self._stop()[0] != "max_tokens":',
                "if block.number is not None:",
            ),
        ),
        (_FACE, "-k", "the_limit_cut"),
    ),
    Fault(
        "anthropic events: white space beside calls becomes a block",
        (
            (
                f"{_IN}anthropic_events.py",
                "self.pending.strip() if self.number is None else self.name",
                "self.pending if self.number is None else self.name",
            ),
        ),
        (_FACE, "-k", "white_space"),
    ),
    Fault(
        "anthropic events: silence while a model thinks",
        (
            (
                f"{_IN}anthropic_events.py",
                "            self._quiet = 0\n            return _PING\n",
                "            self._quiet = 0\n",
            ),
        ),
        (_FACE, "-k", "ping"),
    ),
    Fault(
        "anthropic reply: an answer always ends its turn",
        (
            (
                f"{_IN}anthropic_reply.py",
                "return _ENDS[finish], None",
                'return "end_turn", None',
            ),
        ),
        (_FACE, "-k", "stop_reason"),
    ),
    Fault(
        "anthropic reply: a forced call does not end in tool_use",
        (
            (
                f"{_IN}anthropic_reply.py",
                "    if called:\n",
                '    if called and finish == "tool_calls":\n',
            ),
        ),
        (_FACE, "-k", "stop_reason"),
    ),
    Fault(
        "anthropic reply: cached tokens are counted twice",
        (
            (
                f"{_IN}anthropic_reply.py",
                "max(0, total - (cached or 0) - (written or 0))",
                "max(0, total - (written or 0))",
            ),
        ),
        (_FACE, "-k", "counted_once"),
    ),
    Fault(
        "anthropic reply: arguments that do not parse are an empty object",
        (
            (
                f"{_IN}anthropic_reply.py",
                "        found = None\n    if isinstance(found, dict):",
                "        found = {}\n    if isinstance(found, dict):",
            ),
        ),
        (_FACE, "-k", "without_words"),
    ),
    Fault(
        "anthropic reply: ids pass as servers write them",
        (
            (
                f"{_IN}tool_ids.py",
                "    if _LEGAL.fullmatch(call_id):",
                "    if call_id:",
            ),
        ),
        (_FACE, "-k", "ids_that_anthropic"),
    ),
    Fault(
        "anthropic reply: ids that differ become the same",
        (
            (
                f"{_IN}tool_ids.py",
                '[:_KEPT]}_{digest}"',
                '[:_KEPT]}"',
            ),
        ),
        (_FACE, "-k", "ids_that_anthropic"),
    ),
    Fault(
        "from anthropic: results in the order of the user's blocks",
        (
            (
                f"{_IN}anthropic_messages.py",
                '            self._results.sort(key=lambda said: self._asked[said["tool_call_id"]])\n',
                "",
            ),
        ),
        (_FACE, "-k", "follow_their_calls"),
    ),
    Fault(
        "from anthropic: text stands between a call and its result",
        (
            (
                f"{_IN}anthropic_messages.py",
                "        if role == self._role:\n            return\n",
                "",
            ),
        ),
        (_FACE, "-k", "follow_their_calls"),
    ),
    Fault(
        "from anthropic: an unknown block is dropped",
        (
            (
                f"{_IN}anthropic_messages.py",
                '                self._picture(block, here, "messages.content")\n            else:\n                raise no_words(here, kind)',
                '                self._picture(block, here, "messages.content")',
            ),
        ),
        (_FACE, "-k", "carries_meaning"),
    ),
    Fault(
        "from anthropic: a failed tool is not said to have failed",
        (
            (
                f"{_IN}anthropic_messages.py",
                "            text = TOOL_FAILED + text\n",
                "            pass\n",
            ),
        ),
        (_TURNS, "-k", "messages_said"),
    ),
    Fault(
        "from anthropic: a result for a call that nobody made passes",
        (
            (
                f"{_IN}anthropic_messages.py",
                "        if call_id not in self._asked:\n",
                "        self._asked.setdefault(call_id, 9)\n        if call_id not in self._asked:\n",
            ),
        ),
        (_FACE, "-k", "carries_meaning"),
    ),
    Fault(
        "from anthropic: Claude Code's billing line goes to the model",
        (
            (
                f"{_IN}anthropic_messages.py",
                "if text.startswith(_BILLING)",
                "if text.endswith(_BILLING)",
            ),
        ),
        (_FACE, "-k", "claude_code"),
    ),
    Fault(
        "from anthropic: unknown fields are dropped without a word",
        (
            (
                f"{_IN}anthropic.py",
                "            left[name] = None\n        if request",
                "            pass\n        if request",
            ),
        ),
        (_FACE, "-k", "unknown_fields"),
    ),
    Fault(
        "from anthropic: a name of the caller's breaks a header",
        (
            (
                f"{_IN}left_out.py",
                'kept = [re.sub(r"[^!-+\\--~]", "?", name)[:_LONGEST] for name in left]',
                "kept = list(left)",
            ),
        ),
        (_FACE, "-k", "unknown_fields"),
    ),
    Fault(
        "from anthropic: where a model runs is not asked of a chat server",
        (
            (
                f"{_IN}anthropic.py",
                'frozenset({"container", "inference_geo", "mcp_servers", "thread"})',
                'frozenset({"container", "mcp_servers", "thread"})',
            ),
        ),
        (_FACE, "-k", "carries_meaning"),
    ),
    Fault(
        "from anthropic: addresses in a request pass the check",
        ((f"{_IN}anthropic.py", "        refuse_pointers(request)\n", ""),),
        (_FACE, "-k", "check_names"),
    ),
    Fault(
        "from anthropic: parallel calls stay allowed",
        (
            (
                f"{_IN}anthropic.py",
                'found["parallel_tool_calls"] = False',
                'found["parallel_tool_calls"] = True',
            ),
        ),
        (_FACE, "-k", "choice_of_tools"),
    ),
    Fault(
        "to anthropic: arguments are dropped",
        (
            (
                f"{_IN}to_anthropic_messages.py",
                '"input": arguments,',
                '"input": {},',
            ),
        ),
        (_TURNS, "-k", "chat_said"),
    ),
    Fault(
        "to anthropic: roles do not take turns",
        (
            (
                f"{_IN}to_anthropic_messages.py",
                'if self._found and self._found[-1]["role"] == role:',
                'if self._found and self._found[-1]["role"] == role == "assistant":',
            ),
        ),
        (_SERVER, "-k", "roles_take_turns"),
    ),
    Fault(
        "to anthropic: text before a result in the same turn",
        (
            (
                f"{_IN}to_anthropic_messages.py",
                'key=lambda block: block["type"] != "tool_result"',
                'key=lambda block: block["type"] == "tool_result"',
            ),
        ),
        (_SERVER, "-k", "come_before"),
    ),
    Fault(
        "to anthropic: two calls of one id",
        (
            (
                f"{_IN}to_anthropic_messages.py",
                "        while name in self._taken:",
                "        while not name:",
            ),
        ),
        (_SERVER, "-k", "ids_are_legal"),
    ),
    Fault(
        "to anthropic: an image elsewhere is fetched by the server",
        (
            (
                f"{_IN}to_anthropic_messages.py",
                'if not url.startswith("data:") or not comma or coding != "base64":',
                "if not comma and not coding and not url:",
            ),
        ),
        (_SERVER, "-k", "carries_meaning"),
    ),
    Fault(
        "to anthropic: several answers are asked for and one is given",
        ((f"{_IN}to_anthropic.py", '    "n": lambda value: value != 1,\n', ""),),
        (_SERVER, "-k", "carries_meaning"),
    ),
    Fault(
        "to anthropic: a temperature out of range is sent",
        (
            (
                f"{_IN}to_anthropic.py",
                "if not number or not 0 <= value <= 1:",
                "if not number:",
            ),
        ),
        (_SERVER, "-k", "carries_meaning"),
    ),
    Fault(
        "to anthropic: the caller's limit is not sent",
        (
            (
                f"{_IN}to_anthropic.py",
                "        return limit\n    return absent",
                "        return absent\n    return absent",
            ),
        ),
        (_SERVER, "-k", "the_limit"),
    ),
    Fault(
        "anthropic chunks: calls are numbered as blocks",
        (
            (
                f"{_IN}anthropic_chunks.py",
                "number = len(self._calls)",
                'number = event.get("index", 0)',
            ),
        ),
        (_GOLDEN, "-k", "text_then_tools"),
    ),
    Fault(
        "anthropic chunks: a call without arguments has none that parse",
        (
            (
                f"{_IN}anthropic_chunks.py",
                "if call is None or call.began:",
                "if call is None or call.began or not call.whole:",
            ),
        ),
        (_GOLDEN, "-k", "text_then_tools"),
    ),
    Fault(
        "anthropic chunks: the last count is added to the first",
        (
            (
                f"{_IN}anthropic_chunks.py",
                "self._usage.update(known)",
                "self._usage.update({k: v + self._usage.get(k, 0) if isinstance(v, int) else v for k, v in known.items()})",
            ),
        ),
        (_TURNS, "-k", "message_streamed"),
    ),
    Fault(
        "anthropic chunks: cached tokens are lost",
        (
            (
                f"{_IN}anthropic_chunks.py",
                "prompt = fresh + (read or 0) + (written or 0)",
                "prompt = fresh",
            ),
        ),
        (_SERVER, "-k", "prompt_holds"),
    ),
    Fault(
        "anthropic chunks: unknown usage is 0",
        (
            (
                f"{_IN}anthropic_chunks.py",
                "    if fresh is None or output is None:\n        return None\n",
                "    fresh, output = fresh or 0, output or 0\n",
            ),
        ),
        (_SERVER, "-k", "unknown_usage"),
    ),
    Fault(
        "anthropic chunks: an unknown block is dropped",
        (
            (
                f"{_IN}anthropic_chunks.py",
                '        if kind == "redacted_thinking":\n            return []\n        raise _no_words("a block", kind)',
                "        return []",
            ),
        ),
        (_SERVER, "-k", "cannot_say"),
    ),
    Fault(
        "anthropic chunks: every answer stops",
        (
            (
                f"{_IN}anthropic_chunks.py",
                'return _FINISHES.get(str(reason), "stop")',
                'return "stop"',
            ),
        ),
        (_SERVER, "-k", "finish_reason"),
    ),
    Fault(
        "anthropic chunks: an odd event breaks the process",
        (
            (
                f"{_IN}anthropic_chunks.py",
                "return index if isinstance(index, int) else 0",
                "return 0 if index is None else index",
            ),
        ),
        (_SERVER, "-k", "odd_events"),
    ),
)
