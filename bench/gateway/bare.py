"""The least that a gateway in Python can do: Starlette on uvicorn, aiohttp towards upstream.

    python -m bench.gateway.bare URL

No key is checked, nothing is counted, logged, parsed or chosen; the bytes of the request
go on as they came, and those of the answer come back as they come. Prints its port.
"""

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
import uvloop
from bench.gateway import traffic
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

_HEADERS = {
    "authorization": f"Bearer {traffic.UPSTREAM_KEY}",
    "content-type": "application/json",
}


def app(url: str) -> Starlette:
    """Return the pass-through to ``url``."""

    @asynccontextmanager
    async def connected(application: Starlette) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # kept alive
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        ) as session:
            application.state.session = session
            yield

    async def chat(request: Request) -> Response:
        session: aiohttp.ClientSession = request.app.state.session
        reply = await session.post(url, data=await request.body(), headers=_HEADERS)
        if reply.content_type != "text/event-stream":
            async with reply:
                return Response(
                    await reply.read(), reply.status, media_type=reply.content_type
                )
        return StreamingResponse(pieces(reply), media_type="text/event-stream")

    async def pieces(reply: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        async with reply:
            async for piece in reply.content.iter_any():
                yield piece

    return Starlette(
        routes=[Route("/v1/chat/completions", chat, methods=["POST"])],
        lifespan=connected,
    )


async def main() -> None:
    """Serve until it is ended."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        print(listening.getsockname()[1], flush=True)
        config = uvicorn.Config(
            app(sys.argv[1]), http="httptools", ws="none", access_log=False,
            log_level="warning",
        )  # fmt: skip
        await uvicorn.Server(config).serve(sockets=[listening])


if __name__ == "__main__":
    uvloop.run(main())
