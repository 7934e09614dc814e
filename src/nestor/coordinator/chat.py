"""The gateway's side of a chat completion: what is accepted, what is handed back."""

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

Compared without ``_``, ``-`` and capitals, as ``apiBase`` and ``API-BASE`` mean the same.
"""


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
    _refuse_steering(request)
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
        _refuse_links(message.get("content"), f"messages.{number}.content")
    for name, kind, says in (
        ("model", str, "must be a text"),
        ("stream", bool, "must be true or false"),
        ("stream_options", dict, "must be an object"),
        ("tools", list, "must be a list"),
    ):
        value = request.get(name)
        if value is not None and not isinstance(value, kind):
            raise InvalidInput.at(name, says)
    for number, tool in enumerate(request.get("tools") or []):
        if isinstance(tool, dict):
            _refuse_steering(tool, f"tools.{number}.")


def _refuse_steering(given: dict[str, Any], where: str = "") -> None:
    for name in sorted(given):
        if name.replace("_", "").replace("-", "").lower() in _STEERS:
            message = "not accepted: where models are is a setting of the server"
            raise InvalidInput.at(where + name, message)


def _refuse_links(content: Any, where: str) -> None:
    """Refuse parts that a model's server would fetch for the caller, from inside its network."""
    for number, part in enumerate(content if isinstance(content, list) else ()):
        for name, value in part.items() if isinstance(part, dict) else ():
            if not name.lower().endswith("url"):
                continue
            nested = isinstance(value, dict)
            link = value.get("url") if nested else value
            if link is None or (isinstance(link, str) and link.startswith("data:")):
                continue
            field = f"{where}.{number}.{name}" + (".url" if nested else "")
            raise InvalidInput.at(field, "only data: URLs are accepted; send the bytes")


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
