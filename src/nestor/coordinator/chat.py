"""The gateway's side of a chat completion: what is accepted, what is handed back."""

import re
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import msgspec

from nestor.coordinator.dispatch import CALLER_LEFT, Answered, Dispatcher
from nestor.errors import InvalidInput, Unavailable
from nestor.model.routing import Decision, ModelCall
from nestor.ports.model_client import ModelReply, ModelStream

_STEERS = frozenset(
    {
        *("apibase", "apihost", "apikey", "apitype", "apiurl", "apiversion"),
        *("authorization", "awsbedrockruntimeendpoint", "azureendpoint", "baseurl"),
        *("customllmprovider", "defaultheaders", "defaultquery", "deployment"),
        *("deploymentid", "endpoint", "engine", "extrabody", "extraheaders"),
        *("extraquery", "fallbacks", "headers", "host", "httpclient"),
        *("kvtransferparams", "litellmparams", "modellist", "organization"),
        *("proxies", "proxy", "serverurl", "url"),
    }
)
"""Would let a caller choose where a provider's key goes. Addresses come from settings.

Compared as ``_plain`` writes them: ``apiBase``, ``API-BASE`` and ``api.base`` mean the same.
"""
_EVERYDAY = frozenset(
    {"deployment", "endpoint", "engine", "host", "organization", "url"}
)
"""Fine as labels of ``metadata``, whose texts no server acts on."""
_LINK = re.compile(r".*ur[il]s?|href|links?")
"""What holds nothing but an address."""
_MEDIA = frozenset(
    {
        *("audio", "data", "document", "file", "filedata", "fileid", "image"),
        *("inputaudio", "inputfile", "inputimage", "media", "source", "src", "video"),
    }
)
"""Holds bytes or an id; some servers take an address there as well."""
_ADDRESS = re.compile(r"\s*(?!data:)([A-Za-z][A-Za-z0-9+.-]*:|//)")
_SCHEMAS = frozenset(
    {
        ("tools", "*", "function", "parameters"),
        ("functions", "*", "parameters"),
        ("response_format", "json_schema", "schema"),
        ("response_format", "schema"),
        ("json_schema",),
        ("guided_json",),
    }
)
"""JSON schemas: names in them are the caller's own. The last three are llama.cpp's and vLLM's."""
_DEEPEST, _LONGEST_FIELD = 32, 200
_MOST_PARTS = 20_000
"""Objects and lists in one request: each takes microseconds of the loop that serves."""


class ChatReply:
    """A whole answer; ``headers`` are the reply's ``x-nestor-…`` ones."""

    def __init__(self, reply: ModelReply, headers: dict[str, str]) -> None:
        self.body = reply.body
        self.replayed = reply.replayed
        self.headers = headers


class ChatStream:
    """A streamed answer. Iterate once, and ``aclose`` it whatever happens.

    The call is settled exactly once: at the end, when the upstream dies, or when the
    caller leaves. An upstream that dies half way ends the stream with an explicit
    ``data: {"error": …}`` event.
    """

    def __init__(
        self,
        answered: Answered[ModelStream],
        dispatcher: Dispatcher,
        headers: dict[str, str],
    ) -> None:
        self._answered = answered
        self._stream = answered.value
        self._dispatcher = dispatcher
        self._complete = False
        self._settled = False
        self.replayed = self._stream.replayed
        self.headers = headers

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for event in self._stream:
                # A caller that leaves once it has the end left nothing unread.
                self._complete = event.startswith(b"data: [DONE]") or self._complete
                yield event
            self._complete = True
        except Unavailable as error:
            self._answered.upstream.failed(self._answered.permit, error)
            await self._settle(str(error))
            yield error_event(str(error))
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Let go of the upstream and settle what is not settled."""
        if not self._settled:
            if self._complete:
                self._answered.upstream.answered(self._answered.permit)
            else:
                self._answered.permit.release()
        try:
            await self._stream.aclose()
        finally:
            await self._settle(None if self._complete else CALLER_LEFT)

    async def _settle(self, error: str | None) -> None:
        if self._settled:
            return
        self._settled = True
        await self._dispatcher.settle(
            self._answered,
            self._stream.usage(),
            replayed=self._stream.replayed,
            error=error,
        )


def check_chat(request: dict[str, Any]) -> None:
    """Refuse what no upstream should see. Unknown names pass: the shape is OpenAI's.

    Raises ``InvalidInput`` that names the field.
    """
    _refuse_pointers(request)
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidInput.at(
            "messages", "a list with at least one message is required"
        )
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidInput.at(f"messages.{number}", "must be an object")
        if not isinstance(message.get("role"), str):
            raise InvalidInput.at(f"messages.{number}.role", "must be a text")
    for name, kind, says in (
        ("model", str, "must be a text"),
        ("stream", bool, "must be true or false"),
        ("stream_options", dict, "must be an object"),
        ("tools", list, "must be a list"),
    ):
        value = request.get(name)
        if value is not None and not isinstance(value, kind):
            raise InvalidInput.at(name, says)


def _refuse_pointers(request: dict[str, Any]) -> None:
    """Refuse what says where to go, at any depth. Texts are not read: they may name anything."""
    todo: list[tuple[tuple[str | int, ...], Any]] = [((), request)]
    for path, value in todo:  # grows while it is read: the outer fields come first
        if len(todo) > _MOST_PARTS:
            raise InvalidInput.at(
                "messages", f"more than {_MOST_PARTS} objects and lists"
            )
        if len(path) > _DEEPEST:
            raise InvalidInput.at(_field(path), f"nested deeper than {_DEEPEST}")
        named = isinstance(value, dict)
        for name, inner in value.items() if named else enumerate(value):
            here = (*path, name)
            if named:
                _refuse_pointer(here, inner)
            if isinstance(inner, dict | list) and not _opaque(here, value):
                todo.append((here, inner))


def _refuse_pointer(path: tuple[str | int, ...], value: Any) -> None:
    name = _plain(str(path[-1]))
    label = path[0] == "metadata" and len(path) == 2 and isinstance(value, str)  # noqa: PLR2004 - metadata and a name in it
    media = name == "url" and path[0] == "messages"
    if name in _STEERS and not (media or (label and name in _EVERYDAY)):
        message = "not accepted: where models are is a setting of the server"
        raise InvalidInput.at(_field(path), message)
    if label or value is None or isinstance(value, dict):
        return  # what an object holds is looked at by itself
    # A model's server would fetch it for the caller, from inside its network.
    if _LINK.fullmatch(name):
        refused = not (isinstance(value, str) and value.startswith("data:"))
    else:
        texts = value if isinstance(value, list) else [value]
        refused = name in _MEDIA and any(
            isinstance(text, str) and _ADDRESS.match(text) for text in texts
        )
    if refused:
        message = "only data: URLs are accepted; send the bytes"
        raise InvalidInput.at(_field(path), message)


def _opaque(path: tuple[str | int, ...], parent: Any) -> bool:
    """Tell what is not looked into: schemas, and citations that a model gave itself."""
    shape = tuple("*" if isinstance(part, int) else part for part in path)
    if shape == ("messages", "*", "annotations"):
        return bool(parent.get("role") == "assistant")
    return shape in _SCHEMAS


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _field(path: tuple[str | int, ...]) -> str:
    return _printable(".".join(map(str, path))[:_LONGEST_FIELD])


def error_event(message: str) -> bytes:
    """Render what ends a stream that broke: no ``[DONE]`` follows it."""
    error = {"message": message, "type": "upstream_error", "code": 502}
    return b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"


def reply_headers(
    answered: Answered[Any],
    decision: Decision,
    *,
    overhead_s: float,
    replayed: bool,
    call: ModelCall | None = None,
) -> dict[str, str]:
    """Say in headers what happened. ``call``: settled already, so its cost is known."""
    deployment = answered.upstream.deployment
    headers = {
        "x-nestor-route": str(deployment.side),
        "x-nestor-model": _printable(deployment.model),
        "x-nestor-interaction-id": answered.interaction_id,
        "x-nestor-overhead-ms": f"{overhead_s * 1000:.3f}",
    }
    if decision.confidence is not None:
        headers["x-nestor-confidence"] = f"{decision.confidence:.4f}"
    if call is not None and call.cost_usd is not None:
        headers["x-nestor-cost-usd"] = money(call.cost_usd)
    if answered.fallback_from is not None:
        headers["x-nestor-fallback-from"] = _printable(answered.fallback_from)
    if replayed:
        headers["x-nestor-replayed"] = "true"
    return headers


def money(value: Decimal) -> str:
    """Render USD without an exponent."""
    return format(value, "f")


def _printable(text: str) -> str:
    """Keep a configured name from breaking a header line."""
    kept = (c if " " <= c <= "~" else "?" for c in text)
    return "".join(kept)
