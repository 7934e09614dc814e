"""Who is calling, and may they: keys in front of every service, scopes on every route.

The dashboard also knows browsers: a session's cookie stands for a key there, and there
alone, under names that no other server of this machine answers to by default. Cookies
ignore ports, so under ``localhost`` any local page would be sent it.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import msgspec

from nestor.errors import Forbidden, Unauthorized
from nestor.model.access import ADMIN, SERVICE, PageSession, Principal
from nestor.model.network import allowed_host, in_url, is_everywhere, is_loopback
from nestor.ports.key_store import KeyStore
from nestor.ports.session_store import SessionStore

MAX_KEY_BYTES = 512
TASK_KEY_LAYER = "coordinator"
TASK_KEY_PREFIX = "/v1/"

COOKIE = b"nestor_session"
PAGE_LAYER = "dashboard"
PAGE_NAME = "nestor.localhost"
_SESSION_SECRET = re.compile(rb"[A-Za-z0-9_-]{16,200}")
_KEY = re.compile(rb"[!-~]{1,%d}" % MAX_KEY_BYTES)
_BEARER = re.compile(rb"Bearer (%b)" % _KEY.pattern)
_CSRF_LABEL = b"nestor csrf token"

_SERVICE_TARGETS = frozenset({("GET", b"/health/detailed"), ("GET", b"/metrics")})
CREDENTIALS = frozenset({b"authorization", b"x-api-key", b"cookie", b"x-csrf-token"})
"""Headers that tell who calls."""
_ADMIN = Principal(key_id=ADMIN, scopes=frozenset({ADMIN}), name=ADMIN)
_SERVICE = Principal(key_id=SERVICE, scopes=frozenset({SERVICE}), name=SERVICE)

Target = tuple[str, bytes]
"""A method and a raw path, byte for byte."""
Sent = Mapping[bytes, list[bytes]]
"""Headers of a request, in lower case, each with all values that it came with."""


class PageCaller(msgspec.Struct, frozen=True, kw_only=True):
    """``scope["auth"]`` of a request that a session's cookie opened."""

    session: PageSession
    csrf_token: str


class Authenticator:
    """Finds the key of a request and sets ``scope["user"]``, before the body is read."""

    def __init__(
        self,
        *,
        layer: str,
        api_key: str,
        service_key: str,
        keys: KeyStore,
        sessions: SessionStore,
        opened: frozenset[Target],
        page_hosts: Collection[str] = (),
        serves: Callable[[bytes], bool] = lambda _: True,
    ) -> None:
        """``opened`` is matched exactly: another spelling of an open path needs a key.

        ``page_hosts``: where a session's cookie counts (``page_hosts()``); none: nowhere.
        ``serves`` tells of a raw path whether a stranger may hear that a key is needed;
        of others he hears that nothing is served.
        """
        if not api_key or not service_key:
            raise ValueError("an empty key would let everybody in")
        self._layer = layer
        self._admin = _digest(api_key.encode())
        self._service = _digest(service_key.encode())
        self._keys = keys
        self._sessions = sessions
        self._opened = opened
        self._page_hosts = page_hosts
        self._serves = serves

    async def __call__(self, scope: Any, sent: Sent) -> None:
        """``sent`` holds ``CREDENTIALS`` and Host. Raises ``Unauthorized``, ``Forbidden``."""
        scope["auth"] = None
        target = (scope["method"], scope["raw_path"])
        if target in self._opened:
            scope["user"] = None
            return
        key = key_of(sent)
        if key is None:
            caller = await self._browser(sent, scope)
            scope["auth"], scope["user"] = caller, caller.session.principal
            return
        principal = await self._principal(key)
        if principal.task_id is not None and not self._is_for_tasks(scope["path"]):
            raise Forbidden(
                "a task's key reaches /v1/* of the coordinator and nothing else"
            )
        if principal.key_id == SERVICE and target not in _SERVICE_TARGETS:
            # The scope of that name opens more, for keys that the admin made.
            raise Forbidden("the service's own key reads health and metrics alone")
        scope["user"] = principal

    async def _principal(self, key: bytes) -> Principal:
        # Digests have one length, so the comparison tells nothing about the key's.
        digest = _digest(key)
        if hmac.compare_digest(digest, self._admin):
            return _ADMIN
        if hmac.compare_digest(digest, self._service):
            return _SERVICE
        principal = await self._keys.check(key.decode("ascii"))
        if principal is None:
            raise Unauthorized("nobody knows this key")
        return principal

    async def _browser(self, sent: Sent, scope: Any) -> PageCaller:
        """Tell whose session the request's cookie is; it may have none at all."""
        secret = None
        if self._page_hosts and is_page_host(sent.get(b"host", ()), self._page_hosts):
            secret = _cookie_of(sent)
        if secret is None:
            if not self._serves(scope["raw_path"]):
                raise Forbidden("nothing is served here")
            raise Unauthorized(
                "a key is needed: Authorization: Bearer KEY, or X-API-Key"
            )
        session = await self._sessions.check(secret.decode("ascii"))
        if session is None:
            raise Unauthorized(_NO_SESSION)
        token = csrf_token(secret)
        if scope["method"] not in {"GET", "HEAD"}:
            given = sent.get(b"x-csrf-token", ())
            if len(given) != 1 or not hmac.compare_digest(given[0], token.encode()):
                raise Forbidden(
                    "a session changes nothing without its X-CSRF-Token (GET /session)"
                )
        return PageCaller(session=session, csrf_token=token)

    def _is_for_tasks(self, path: str) -> bool:
        return self._layer == TASK_KEY_LAYER and path.startswith(TASK_KEY_PREFIX)


_NO_SESSION = "this session has ended; make a new link in a terminal: nestor page"


def key_of(sent: Sent) -> bytes | None:
    """Return the one key that a request carries, None without. Raises ``Unauthorized``."""
    bearers, plain = sent.get(b"authorization", ()), sent.get(b"x-api-key", ())
    if len(bearers) == 1 and not plain and (usual := _BEARER.fullmatch(bearers[0])):
        return usual[1]
    if not bearers and not plain:
        return None
    found = {value.strip() for value in plain}
    for value in bearers:
        scheme, _, token = value.partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthorized("use Authorization: Bearer KEY")
        found.add(token.strip())
    key = found.pop()
    if found or len(bearers) > 1 or len(plain) > 1:
        raise Unauthorized("more than one key was given")
    # Keys are printable and hold no space: what cannot be one is not looked up.
    if not _KEY.fullmatch(key):
        raise Unauthorized("nobody knows this key")
    return key


def _cookie_of(sent: Sent) -> bytes | None:
    """Return the session's secret, None without one. Raises ``Unauthorized``."""
    pairs = [
        pair.strip().partition(b"=")
        for header in sent.get(b"cookie", ())
        for pair in header.split(b";")
    ]
    found = [value for name, _, value in pairs if name == COOKIE]
    if not found:
        return None
    # Another page may have set a second one beside ours; which counts is not guessed.
    if len(found) > 1 or not _SESSION_SECRET.fullmatch(found[0]):
        raise Unauthorized(_NO_SESSION)
    return found[0]


def csrf_token(secret: bytes) -> str:
    """Derive the token that a session's changes must carry; it does not tell the secret."""
    return hmac.digest(secret, _CSRF_LABEL, "sha256").hex()


def page_hosts(settings: Any) -> tuple[str, ...]:
    """Return the names at which a browser may be signed in, the page's own first.

    Of ALLOWED_HOSTS those that somebody chose for the page: no name of loopback, which
    other programs of this machine use as well, and not HOST, which the settings add.
    """
    added = settings.host
    added = "" if is_everywhere(added) else allowed_host(in_url(added))
    chosen = [host.lower() for host in settings.allowed_hosts]
    return (
        PAGE_NAME,
        *(
            host
            for host in chosen
            if host != added and not is_loopback(_bare(host).strip("[].").lower())
        ),
    )


def is_page_host(hosts: Iterable[bytes], names: Collection[str]) -> bool:
    """Tell whether the one Host header names the page, with whatever port.

    Which ports may be named was decided by ``web.edge``.
    """
    found = [host.decode("latin-1").lower() for host in hosts]
    return len(found) == 1 and (found[0] in names or _bare(found[0]) in names)


def _bare(host: str) -> str:
    """Return a host without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def check_scope(connection: Mapping[str, Any], opt: Mapping[str, Any]) -> None:
    """Hold a route to its ``opt["scope"]``: one name, several (any will do), or None.

    ``connection`` is the ASGI scope. A route that names no scope at all is for the admin
    alone. Raises ``Unauthorized`` or ``Forbidden``.
    """
    wanted = scopes_of(opt)
    if wanted is None:
        return
    user = connection.get("user")
    if not isinstance(user, Principal):
        raise Unauthorized("a key is needed")
    if user.task_id is not None:
        # Which paths it reaches was decided before routing; never what only admin may.
        template = str(connection.get("path_template", ""))
        if ADMIN in wanted or not template.startswith(TASK_KEY_PREFIX):
            raise Forbidden("a task's key does not reach this")
        return
    if ADMIN not in user.scopes and user.scopes.isdisjoint(wanted):
        raise Forbidden(f"this needs a key with the scope {' or '.join(wanted)}")


def charge_to(task_id: str | None, user: Principal) -> None:
    """Hold ``task_id`` in a body to the admin: a task's calls come with its own key.

    Anybody else could spend its budget, or write into its history. Raises ``Forbidden``.
    """
    if task_id is not None and not user.may(ADMIN):
        raise Forbidden("task_id: only an admin's key may act in a task's name")


def scopes_of(opt: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the scopes that open a route; None when it is open to all."""
    wanted = opt.get("scope", ADMIN)
    if wanted is None:
        return None
    return (wanted,) if isinstance(wanted, str) else tuple(wanted)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
