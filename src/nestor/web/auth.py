"""Who is calling, and may they: keys in front of every service, scopes on every route."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Any

from litestar.connection import ASGIConnection

from nestor.errors import Forbidden, Unauthorized
from nestor.model.access import ADMIN, SERVICE, Principal
from nestor.ports.key_store import KeyStore
from nestor.ports.session_store import SessionStore

MAX_KEY_BYTES = 512
TASK_KEY_LAYER = "coordinator"
TASK_KEY_PREFIX = "/v1/"

Target = tuple[str, bytes]
"""A method and a raw path, byte for byte."""


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
    ) -> None:
        """``opened`` is matched exactly: another spelling of an open path needs a key."""
        if not api_key or not service_key:
            raise ValueError("an empty key would let everybody in")
        self._layer = layer
        self._admin = _digest(api_key.encode())
        self._service = _digest(service_key.encode())
        self._keys = keys
        self._sessions = sessions
        self._opened = opened

    async def __call__(self, scope: Any) -> None:
        """Raises ``Unauthorized`` or ``Forbidden``."""
        scope["auth"] = None
        if (scope["method"], scope["raw_path"]) in self._opened:
            scope["user"] = None
            return
        principal = await self._principal(key_of(scope["headers"]))
        if principal.task_id is not None and not self._is_for_tasks(scope["path"]):
            raise Forbidden(
                "a task's key reaches /v1/* of the coordinator and nothing else"
            )
        scope["user"] = principal

    async def _principal(self, key: bytes) -> Principal:
        # Digests have one length, so the comparison tells nothing about the key's.
        digest = _digest(key)
        if hmac.compare_digest(digest, self._admin):
            return Principal(key_id=ADMIN, scopes=frozenset({ADMIN}))
        if hmac.compare_digest(digest, self._service):
            return Principal(key_id=SERVICE, scopes=frozenset({SERVICE}))
        principal = await self._keys.check(key.decode("ascii"))
        if principal is None:
            raise Unauthorized("nobody knows this key")
        return principal

    def _is_for_tasks(self, path: str) -> bool:
        return self._layer == TASK_KEY_LAYER and path.startswith(TASK_KEY_PREFIX)


def key_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the one key that a request carries. Raises ``Unauthorized``."""
    found: set[bytes] = set()
    count = {b"authorization": 0, b"x-api-key": 0}
    for name, value in headers:
        if name not in count:
            continue
        count[name] += 1
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() != b"bearer":
                raise Unauthorized("use Authorization: Bearer KEY")
            found.add(token.strip())
        else:
            found.add(value.strip())
    if not found:
        raise Unauthorized("a key is needed: Authorization: Bearer KEY, or X-API-Key")
    key = found.pop()
    if found or max(count.values()) > 1:
        raise Unauthorized("more than one key was given")
    if not key or len(key) > MAX_KEY_BYTES or not key.isascii():
        raise Unauthorized("nobody knows this key")
    return key


def check_scope(
    connection: ASGIConnection[Any, Any, Any, Any], opt: Mapping[str, Any]
) -> None:
    """Hold a route to its ``opt["scope"]``: one name, several (any will do), or None.

    A route that names no scope at all is for the admin alone. Raises ``Unauthorized``
    or ``Forbidden``.
    """
    wanted = scopes_of(opt)
    if wanted is None:
        return
    user = connection.scope.get("user")
    if not isinstance(user, Principal):
        raise Unauthorized("a key is needed")
    if user.task_id is not None:
        # Which paths it reaches was decided before routing; never what only admin may.
        if ADMIN in wanted or not str(
            connection.scope.get("path_template", "")
        ).startswith(TASK_KEY_PREFIX):
            raise Forbidden("a task's key does not reach this")
        return
    if not any(user.may(scope) for scope in wanted):
        raise Forbidden(f"this needs a key with the scope {' or '.join(wanted)}")


def scopes_of(opt: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the scopes that open a route; None when it is open to all."""
    wanted = opt.get("scope", ADMIN)
    if wanted is None:
        return None
    return (wanted,) if isinstance(wanted, str) else tuple(wanted)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
