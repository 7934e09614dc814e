"""One model server: its address, its key, and what is asked of it."""

import asyncio
import io
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import aiohttp
import msgspec
from multidict import CIMultiDict
from yarl import URL

from nestor import __version__
from nestor.backends.model_http.border import error_text, say, translated
from nestor.backends.model_http.connections import forget_reuse, was_reused
from nestor.backends.model_http.stream import EventStream
from nestor.errors import Misconfigured, UpstreamError
from nestor.model.network import base_url
from nestor.model.routing import Deployment

T = TypeVar("T")
S = TypeVar("S", bound=EventStream)
CONNECT_S = 10.0
READ_BUFFER_BYTES = 64 * 1024
"""Twice this may wait for a slow reader; then nothing more is read from the upstream."""
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
_MAX_ERROR_BYTES = 64 * 1024
_LARGE_BODY_BYTES = 512 * 1024
_OK = 200
_REDIRECTS = range(300, 400)
_LONGEST_WAIT_S = 3600.0
_HEADERS = {
    "Content-Type": "application/json",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "User-Agent": f"nestor/{__version__}",
}
"""All that the driver would add by itself, so that it need not look."""
_NO_MORE: Mapping[str, str] = {}


class Endpoint:
    """Posts JSON to one address of configuration and to no other.

    The key goes to ``deployment.base_url`` and nowhere else: the address is fixed here,
    and a redirect is an error. The session stays the giver's.
    """

    def __init__(
        self,
        deployment: Deployment,
        session: aiohttp.ClientSession,
        headers: Mapping[str, str],
    ) -> None:
        """``headers``: those of the dialect, its key included. Raises ``Misconfigured``."""
        self.deployment = deployment
        self._session = session
        self._headers = CIMultiDict({**_HEADERS, **headers})
        try:
            self._base = URL(base_url(deployment.base_url))
        except ValueError as error:
            raise Misconfigured(f"{deployment.name}: base URL: {error}") from error

    def url(self, path: str) -> URL:
        """Return the address of ``path`` below the base URL."""
        return self._base.with_path(self._base.path.rstrip("/") + path)

    @property
    def path(self) -> str:
        """Of the base URL, without a slash at its end."""
        return self._base.path.rstrip("/")

    async def whole(
        self,
        url: URL,
        body: Mapping[str, Any],
        *,
        limit: int,
        headers: Mapping[str, str] = _NO_MORE,
    ) -> bytes:
        """Ask and wait for the whole answer, at most ``limit`` bytes of it.

        ``headers``: of this request, beside those of the endpoint.
        """
        limit_s = self.deployment.timeout_s
        with translated(self.deployment, limit_s=limit_s):
            async with asyncio.timeout(limit_s):
                response = await self._post(url, body, headers)
                try:
                    raw = await _bounded(response, limit)
                finally:
                    response.close()  # no more than a mark when all of it was read
        if raw is None:
            raise UpstreamError(say(self.deployment, f"answer over {limit} bytes"))
        return raw

    async def begin(
        self,
        url: URL,
        body: Mapping[str, Any],
        make: Callable[[aiohttp.ClientResponse], S],
        *,
        headers: Mapping[str, str] = _NO_MORE,
    ) -> S:
        """Ask, and return the stream once its first token is there."""
        limit_s = self.deployment.timeout_s
        with translated(self.deployment, limit_s=limit_s):
            async with asyncio.timeout(limit_s):
                response = await self._post(url, body, headers)
                try:
                    stream = make(response)
                    await stream.wait_for_token()
                except BaseException:  # also cancellation: nobody else knows of it yet
                    response.close()
                    raise
        return stream

    def decoded(self, raw: bytes, type_: type[T]) -> T:
        """Read a reply. Raises ``UpstreamError`` for what is no JSON object."""
        try:
            if not raw.isascii():
                raw.decode()  # what is skipped is not looked at
            return msgspec.json.decode(raw, type=type_)
        except msgspec.ValidationError as error:
            message = "the answer is not a JSON object"
            raise UpstreamError(say(self.deployment, message)) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            message = "the answer is not JSON"
            raise UpstreamError(say(self.deployment, message)) from error

    async def _post(
        self, url: URL, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """Return the reply once its head is there; its status is 200.

        Raises ``UpstreamError`` for any other, and where a connection that had served
        before ended without a byte of an answer (``stale``, see ``connections``).
        """
        forget_reuse()
        data = msgspec.json.encode(body)
        try:
            response = await self._session.post(
                url,
                # The driver writes large bytes only with a warning, as one piece.
                data=data if len(data) < _LARGE_BODY_BYTES else io.BytesIO(data),
                headers={**self._headers, **headers} if headers else self._headers,
                allow_redirects=False,
                timeout=_TIMEOUT,
                read_bufsize=READ_BUFFER_BYTES,
                raise_for_status=False,
            )
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if not _without_a_byte(error):
                raise
            message = "a kept connection ended before its answer began"
            raise UpstreamError(say(self.deployment, message), stale=True) from error
        if response.status == _OK:
            return response
        try:
            raise await self._refusal(response)
        finally:
            response.close()

    async def _refusal(self, response: aiohttp.ClientResponse) -> UpstreamError:
        status = response.status
        if status in _REDIRECTS:
            message = say(self.deployment, f"HTTP {status}: redirects are not followed")
            return UpstreamError(message, status=status)
        raw = await _bounded(response, _MAX_ERROR_BYTES) or b""
        text: object = raw.decode(errors="replace")
        with suppress(msgspec.DecodeError, RecursionError):
            text = msgspec.json.decode(raw)
        return UpstreamError(
            say(self.deployment, f"HTTP {status}: {error_text(text)}"),
            status=status,
            retry_after_s=_seconds(response.headers),
        )


async def _bounded(response: aiohttp.ClientResponse, limit: int) -> bytes | None:
    """Read a body; None when it is longer than ``limit`` (the rest stays unread)."""
    body = await response.content.readany()
    if response.content.at_eof():
        return body if len(body) <= limit else None
    read = bytearray(body)
    while len(read) <= limit:
        read += await response.content.readany()
        if response.content.at_eof():
            return bytes(read) if len(read) <= limit else None
    return None


def value_of(raw: msgspec.Raw) -> Any:
    """Decode a part of a reply; None where it is missing or cannot be."""
    text = bytes(raw)
    try:
        return msgspec.json.decode(text) if text else None
    except (msgspec.DecodeError, RecursionError):
        return None


def _without_a_byte(error: aiohttp.ClientError) -> bool:
    """Tell whether a reused connection broke before anything of an answer came."""
    if isinstance(error, aiohttp.ClientConnectorError) or not was_reused():
        return False
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return isinstance(error.message, str)  # else it is the beginning that came
    return True


def _seconds(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After; a date is not read: their clock may not be ours."""
    for name, unit_s in (("retry-after-ms", 0.001), ("Retry-After", 1.0)):
        try:
            value = float(headers[name]) * unit_s
        except (KeyError, ValueError):
            continue
        if value >= 0:
            return min(value, _LONGEST_WAIT_S)
    return None
