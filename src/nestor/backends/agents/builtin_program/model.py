"""The model and the person, as they are reached from inside: over the Coordinator's address."""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from .faults import AgentError, TooLong
from .limits import REPLY_LIMIT, RETRIES, Limits
from .timing import Clock

REFUSALS = (401, 402, 403)
BUSY = 429
SERVER_ERROR = 500
_TOLD_S = 10.0
_TOO_LONG = re.compile(
    r"context.{0,30}(?:length|window|size|exceed)|too many tokens|prompt is too long"
    r"|maximum.{0,20}tokens|exceed.{0,40}context",
    re.IGNORECASE,
)
_LIMIT = re.compile(
    r"(?:maximum context length|context (?:length|window|size)|n_ctx)\D{0,40}?(\d{3,8})"
    r"|(\d{3,8}) (?:tokens? )?(?:maximum|max\b)",
    re.IGNORECASE,
)
_WINDOW_NAMES = (
    *("context_window", "context_length", "max_model_len", "max_context_length"),
    *("n_ctx", "max_input_tokens"),
)


class _Same(urllib.request.HTTPRedirectHandler):
    """Requests go to the given address and nowhere else."""

    def redirect_request(self, *_: object) -> None:
        return None


@dataclass(frozen=True)
class Reply:
    """The assistant's message, what it was asked with, and what that was counted as."""

    message: dict[str, object]
    sent_bytes: int
    prompt_tokens: int | None


class Model:
    """Chat completions of one endpoint, not streamed; busy or broken is tried again."""

    def __init__(self, base_url: str, model: str, limits: Limits, clock: Clock) -> None:
        self._base = base_url.rstrip("/")
        self._model = model
        self._limits = limits
        self._clock = clock
        proxies = urllib.request.ProxyHandler({})
        self._opener = urllib.request.build_opener(proxies, _Same())

    def reply(self, messages: list[dict[str, object]], tools: list[object]) -> Reply:
        """Return the answer. Raises AgentError, and TooLong for what does not fit."""
        body = {"model": self._model, "messages": messages, "tools": tools}
        data = json.dumps({**body, "stream": False}, sort_keys=True).encode()
        problem = ""
        for attempt in range(RETRIES + 1):
            if attempt:
                time.sleep(self._limits.backoff_s * 2 ** (attempt - 1))
            try:
                raw = self._post("/chat/completions", data)
                return _reply(raw, len(data))
            except urllib.error.HTTPError as error:
                detail = _detail(error)
                problem = f"the model server answered {error.code}: {detail}"
                if error.code in REFUSALS:
                    raise AgentError("refused", problem) from error
                if error.code != BUSY and _TOO_LONG.search(detail):
                    raise TooLong(problem, _limit(detail)) from error
                if error.code != BUSY and error.code < SERVER_ERROR:
                    raise AgentError("agent_error", problem) from error
            except (OSError, http.client.HTTPException) as error:
                problem = f"the model server did not answer: {error}"
        raise AgentError("agent_error", f"{problem} ({RETRIES + 1} attempts)")

    def window(self) -> int | None:
        """Ask how many tokens the model takes; None: nobody says."""
        try:
            request = urllib.request.Request(self._base + "/models")  # noqa: S310 - the address comes from the harness
            with self._opener.open(request, timeout=_TOLD_S) as response:
                listed = json.loads(response.read(REPLY_LIMIT))["data"]
            found = [one for one in listed if one.get("id") == self._model]
            return _window_of(found[0]) if found else None
        except (
            *(OSError, http.client.HTTPException, ValueError, LookupError),
            *(TypeError, AttributeError, RecursionError),
        ):
            return None

    def ask(self, question: dict[str, str]) -> dict[str, object] | None:
        """Put a question to a person and wait; None: nobody can be asked from here."""
        parts = urlsplit(self._base)
        # Without isolation the address has a secret path in front.
        path = parts.path.removesuffix("/v1") + "/nestor/ask"
        url = urlunsplit((parts.scheme, parts.netloc, path, "", ""))
        request = urllib.request.Request(  # noqa: S310 - the address comes from the harness
            url,
            data=json.dumps(question).encode(),
            headers={"content-type": "application/json"},
        )
        begun = time.monotonic()
        try:
            with self._opener.open(
                request, timeout=self._limits.ask_timeout_s
            ) as response:
                answer = json.loads(response.read(REPLY_LIMIT))
        except (OSError, http.client.HTTPException, ValueError, RecursionError):
            return None
        finally:
            self._clock.waited_s += time.monotonic() - begun
        return answer if isinstance(answer, dict) else None

    def _post(self, path: str, data: bytes) -> bytes:
        request = urllib.request.Request(  # noqa: S310 - the address comes from the harness
            self._base + path, data=data, headers={"content-type": "application/json"}
        )
        timeout = self._clock.left(self._limits.model_timeout_s)
        with self._opener.open(request, timeout=timeout) as response:
            reply: bytes = response.read(REPLY_LIMIT + 1)
        if len(reply) > REPLY_LIMIT:
            raise AgentError("agent_error", "the model's reply is too large")
        return reply


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        with error:
            return error.read(2048).decode("utf-8", "replace").strip()[:300]
    except (OSError, http.client.HTTPException):
        return "no readable body"


def _limit(detail: str) -> int | None:
    found = _LIMIT.search(detail)
    return int(found.group(1) or found.group(2)) if found else None


def _window_of(listed: dict[str, object]) -> int | None:
    """Take the window from where servers put it: in the entry, or in its ``meta``."""
    meta = listed.get("meta")
    for place in (listed, meta if isinstance(meta, dict) else {}):
        for name in _WINDOW_NAMES:
            value = place.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _reply(raw: bytes, sent_bytes: int) -> Reply:
    """Take the known parts of the first choice; anything else is not sent back."""
    try:
        whole = json.loads(raw)
        said = whole["choices"][0]["message"]
        message: dict[str, object] = {
            "role": "assistant",
            "content": str(said.get("content") or ""),
        }
        calls = [
            {
                "id": str(call.get("id") or f"call_{number}"),
                "type": "function",
                "function": {
                    "name": str(call["function"]["name"]),
                    "arguments": _as_text(call["function"].get("arguments")),
                },
            }
            for number, call in enumerate(said.get("tool_calls") or [])
        ]
        counted = (whole.get("usage") or {}).get("prompt_tokens")
    except (
        *(ValueError, LookupError, TypeError, AttributeError),
        RecursionError,
    ) as error:
        raise AgentError(
            "agent_error", "the model's reply is not a chat completion"
        ) from error
    if calls:
        message["tool_calls"] = calls
    known = isinstance(counted, int) and not isinstance(counted, bool) and counted > 0
    return Reply(message, sent_bytes, counted if known else None)


def _as_text(arguments: object) -> str:
    """Some servers send the arguments as an object, not as its JSON text."""
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments or {}, sort_keys=True)
