"""One OpenAI-compatible endpoint over HTTP."""

import asyncio
from contextlib import suppress
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from nestor.backends.openai.border import say, translated
from nestor.backends.openai.stream import OpenAIStream
from nestor.backends.openai.wire import error_text, usage_of
from nestor.errors import Misconfigured, UpstreamError
from nestor.model.network import base_url
from nestor.model.routing import Deployment
from nestor.ports.model_client import ModelReply

CONNECT_S = 10.0
IDLE_S = 60.0
"""How long a stream may be silent between two chunks."""
MAX_REPLY_BYTES = 16 * 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024
_OK = 200
_REDIRECTS = range(300, 400)
_LONGEST_WAIT_S = 3600.0


class OpenAIClient:
    """Implements ``ports.model_client.ModelClient`` for a base URL ending in ``/v1``.

    The key goes to ``deployment.base_url`` and nowhere else: the address is fixed here,
    and a redirect is an error. ``deployment.timeout_s`` bounds a whole answer, and the
    first token of a streamed one; after that ``idle_s`` bounds each silence. Give it a
    ``resolver.model_session``; it stays the giver's.
    """

    def __init__(
        self,
        deployment: Deployment,
        session: aiohttp.ClientSession,
        *,
        idle_s: float = IDLE_S,
    ) -> None:
        self._deployment = deployment
        self._session = session
        self._idle_s = idle_s
        self._url = _endpoint(deployment)

    async def complete(self, request: dict[str, Any]) -> ModelReply:
        """Ask and wait for the whole answer, at most 16 MiB of it."""
        body = {**request, "model": self._deployment.model}
        body.pop("stream", None)
        body.pop("stream_options", None)  # OpenAI refuses it without ``stream``
        limit = self._deployment.timeout_s
        with translated(self._deployment, limit_s=limit):
            async with asyncio.timeout(limit):
                response = await self._post(body)
                try:
                    raw = await _bounded(response, MAX_REPLY_BYTES)
                    response.release()
                finally:
                    response.close()
        return self._read(raw)

    async def stream(self, request: dict[str, Any]) -> OpenAIStream:
        """Ask; returns once the first token is there, so that until then nothing is lost.

        Usage is always asked for. The extra chunk it comes in is passed on only when the
        caller asked for it too: some clients fail on a chunk without choices.
        """
        options = request.get("stream_options")
        options = options if isinstance(options, dict) else {}
        body = {**request, "model": self._deployment.model, "stream": True}
        body["stream_options"] = {**options, "include_usage": True}
        limit = self._deployment.timeout_s
        with translated(self._deployment, limit_s=limit):
            async with asyncio.timeout(limit):
                response = await self._post(body)
                stream = OpenAIStream(
                    self._deployment,
                    response,
                    keep_usage_event=options.get("include_usage") is True,
                    idle_s=self._idle_s,
                )
                try:
                    await stream.wait_for_token()
                except BaseException:  # also cancellation: nobody else knows of it yet
                    response.close()
                    raise
        return stream

    async def close(self) -> None:
        """Nothing of its own to let go of."""

    async def _post(self, body: dict[str, Any]) -> aiohttp.ClientResponse:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._deployment.api_key:
            headers["Authorization"] = f"Bearer {self._deployment.api_key}"
        if self._url.scheme == "http":
            # llama.cpp drops idle connections early, and a POST on one that is just being
            # dropped cannot be repeated safely. Without TLS a new one costs next to nothing.
            headers["Connection"] = "close"
        response = await self._session.post(
            self._url,
            data=msgspec.json.encode(body),
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        )
        if response.status == _OK:
            return response
        try:
            raise await self._refusal(response)
        finally:
            response.close()

    async def _refusal(self, response: aiohttp.ClientResponse) -> UpstreamError:
        status = response.status
        if status in _REDIRECTS:
            message = say(
                self._deployment, f"HTTP {status}: redirects are not followed"
            )
            return UpstreamError(message, status=status)
        raw = await _bounded(response, _MAX_ERROR_BYTES) or b""
        text: object = raw.decode(errors="replace")
        with suppress(msgspec.DecodeError, RecursionError):
            text = msgspec.json.decode(raw)
        return UpstreamError(
            say(self._deployment, f"HTTP {status}: {error_text(text)}"),
            status=status,
            retry_after_s=_seconds(response.headers.get("Retry-After")),
        )

    def _read(self, raw: bytes | None) -> ModelReply:
        if raw is None:
            message = say(self._deployment, f"answer over {MAX_REPLY_BYTES} bytes")
            raise UpstreamError(message)
        try:
            value = msgspec.json.decode(raw)
        except (msgspec.DecodeError, RecursionError) as error:
            message = say(self._deployment, "the answer is not JSON")
            raise UpstreamError(message) from error
        if isinstance(value, dict):
            choices = value.get("choices")
            if isinstance(choices, list) and choices and isinstance(choices[0], dict):
                return ModelReply(body=value, usage=usage_of(value))
            if value.get("error"):  # some servers say 200 and mean it not
                raise UpstreamError(say(self._deployment, error_text(value)))
        raise UpstreamError(say(self._deployment, "the answer has no choices"))


def _endpoint(deployment: Deployment) -> URL:
    try:
        url = URL(base_url(deployment.base_url))
    except ValueError as error:
        raise Misconfigured(f"{deployment.name}: base URL: {error}") from error
    return url.with_path(url.path.rstrip("/") + "/chat/completions")


async def _bounded(response: aiohttp.ClientResponse, limit: int) -> bytes | None:
    """Read a body; None when it is longer than ``limit`` (the rest stays unread)."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit:
            return None
    return bytes(body)


def _seconds(header: str | None) -> float | None:
    """Seconds of a Retry-After; a date is not read: their clock may not be ours."""
    try:
        value = float(header) if header is not None else -1.0
    except ValueError:
        return None
    return min(value, _LONGEST_WAIT_S) if value >= 0 else None
