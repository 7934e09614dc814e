"""What a dialect of callers has to know."""

from typing import Any, Protocol

import msgspec

from nestor.model.routing import Dialect


class Translated(msgspec.Struct, frozen=True, kw_only=True):
    """A request in other words."""

    body: dict[str, Any]
    left_out: tuple[str, ...] = ()
    """Fields that only hint and have no equal; the reply names them (``x-nestor-left-out``)."""


class Events(Protocol):
    """Makes the dialect's events of one streamed answer out of chat chunks."""

    def feed(self, chunk: dict[str, Any]) -> bytes:
        """Take one ``chat.completion.chunk``; return whole events, or nothing yet."""
        ...

    def end(self) -> bytes:
        """Return what ends an answer that came to its end."""
        ...


class Face(Protocol):
    """One dialect, as callers speak it."""

    dialect: Dialect

    def check(self, request: dict[str, Any]) -> None:
        """Refuse what no server should see. Raises ``InvalidInput`` that names the field.

        Unknown names pass: the shape belongs to the provider.
        """
        ...

    def to_chat(self, request: dict[str, Any]) -> Translated:
        """Say it as a chat request. Raises ``InvalidInput`` for what cannot be said."""
        ...

    def reply(self, chat: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
        """Say a ``chat.completion`` as this dialect's reply to ``request``.

        Raises ``UpstreamError`` for an answer that it has no words for.
        """
        ...

    def events(self, request: dict[str, Any]) -> Events:
        """Begin the events of one streamed answer to ``request``."""
        ...
