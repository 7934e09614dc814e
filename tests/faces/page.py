"""A browser on the page of a small service: what it sends, and what it may change."""

from typing import Any

from litestar import Request, delete, get, patch, post, put
from tests.faces.shell import Reply as Answer
from tests.faces.shell import (
    Served,
    SmallNestor,
)

from nestor.model.health import Dependency
from nestor.resilience.rate_limit import MovingWindow
from nestor.web import dashboard, session
from nestor.web.app import LayerApp, create_app
from nestor.web.client_address import ClientAddresses


async def _nothing() -> list[Dependency]:
    return []


async def _write_down(request: Request[Any, Any, Any]) -> None:
    request.app.state.nestor.done.append(request.method)


CHANGES = [
    kind("/change", opt={"scope": "submit"}, status_code=204, name=kind.__name__)(
        _write_down
    )
    for kind in (post, put, patch, delete)
]
CHANGING = ("POST", "PUT", "PATCH", "DELETE")


@get("/mine", opt={"scope": "read"})
async def mine(request: Request[Any, Any, Any]) -> dict[str, str]:
    return {"by": request.user.key_id}


class Minutes:
    """A monotonic clock that stands until it is moved."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def dashboard_of(
    nestor: SmallNestor, clock: Minutes, clients: ClientAddresses | None = None
) -> LayerApp:
    window = MovingWindow(session.ATTEMPTS, session.ATTEMPTS_WINDOW_S, clock=clock)
    handlers = [*dashboard.handlers(window, clients), mine, *CHANGES]
    return create_app("dashboard", nestor, handlers, dependencies=_nothing)


class Browser:
    """Sends what a browser on the page would send."""

    def __init__(self, shell: Served, name: str = "nestor.localhost") -> None:
        self.shell = shell
        self.host = f"{name}:{shell.port}"
        self.cookie: str | None = None
        self.csrf = ""

    async def call(self, method: str, path: str, **more: Any) -> Answer:
        headers = {"Host": self.host, "Sec-Fetch-Site": "same-origin"}
        if method not in {"GET", "HEAD"}:
            headers["Origin"] = f"http://{self.host}"
        if self.cookie is not None:
            headers["Cookie"] = self.cookie
        headers |= more.pop("headers", {})
        return await self.shell.call(method, path, key=None, headers=headers, **more)

    async def sign_in(self, token: str, **more: Any) -> Answer:
        reply = await self.call("POST", "/session", json={"link": token}, **more)
        if reply.status == 201:
            self.cookie = reply.headers["Set-Cookie"].partition(";")[0]
            self.csrf = reply.json["csrf_token"]
        return reply


async def link(shell: Served) -> str:
    made = await shell.call("POST", "/session/links")
    assert made.status == 201
    return str(made.json["url"]).partition("#link=")[2]
