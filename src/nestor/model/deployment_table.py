"""The ``[[deployment]]`` tables of ``nestor.toml``: what may stand in them, read strictly."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any

import msgspec

from nestor.model import network
from nestor.model.routing import CacheScope, Deployment, Dialect, Kind, Mode, Side

MOST = 64
"""Tables in one file: each is a label of metrics."""
PRICE_PLACES = 6
"""Digits after the point of USD per million tokens."""
DEAREST = Decimal(1_000_000)
_LONGEST_S, _DAY_S = 3600.0, 86_400.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_INLINE_KEYS = frozenset({"api_key", "apikey", "key", "secret", "token"})
_CHOICES: Mapping[str, Sequence[StrEnum]] = {
    "side": tuple(Side),
    "dialect": (Dialect.OPENAI, Dialect.ANTHROPIC),
    "kind": tuple(Kind),
    "cache": tuple(CacheScope),
}
_PLACE = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?", re.DOTALL)

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Word = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=10**9)]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=_LONGEST_S)]


class DeploymentTable(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """One table, checked by itself. Prices are USD per million tokens; None: unknown."""

    name: str
    side: Side
    base_url: str
    model: _Text
    dialect: Dialect = Dialect.OPENAI
    kind: Kind = Kind.CHAT
    api_key_file: _Text | None = None
    price_input: Decimal | None = None
    price_output: Decimal | None = None
    price_cached: Decimal | None = None
    price_cache_write: Decimal | None = None
    weight: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 1
    rpm: _Count | None = None
    tpm: _Count | None = None
    timeout_s: _Seconds = 120.0
    slow_s: _Seconds | None = None
    max_output_tokens: _Count | None = None
    context_window: Annotated[int, msgspec.Meta(ge=1024)] | None = None
    tags: Annotated[tuple[_Word, ...], msgspec.Meta(max_length=32)] = ()
    fallbacks: Annotated[tuple[_Word, ...], msgspec.Meta(max_length=32)] = ()
    cache: CacheScope = CacheScope.OFF
    cache_ttl_s: Annotated[float, msgspec.Meta(gt=0, le=30 * _DAY_S)] = 3600.0

    def deployment(self, *, api_key: str | None) -> Deployment:
        """Make what the Coordinator works with."""
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        del given["api_key_file"]
        return Deployment(**given, api_key=api_key)


def read(tables: object) -> tuple[DeploymentTable, ...]:
    """Read the tables; raises ``ValueError`` that says which place is wrong, and how."""
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise ValueError("deployment: write [[deployment]], one such table for each")
    if len(tables) > MOST:
        raise ValueError(f"deployment: {len(tables)} tables; at most {MOST}")
    return tuple(_read(at, table) for at, table in enumerate(tables))


def refuse_unrelated(tables: Sequence[Deployment], beside: Mapping[str, Kind]) -> None:
    """Hold names and fallbacks to each other, and to the deployments made ``beside`` them.

    Raises ``ValueError``: a name twice, a fallback to nobody, to another kind, or in a
    circle.
    """
    known = {**beside, **{table.name: table.kind for table in tables}}
    seen: dict[str, int] = {}
    for at, table in enumerate(tables):
        where = f"deployment.{at}.name"
        if table.name in seen:
            first = f"deployment.{seen[table.name]}"
            raise ValueError(f"{where}: {table.name!r} is the name of {first} already")
        if table.name in beside:
            other = table.name.upper()
            why = f"is what NESTOR_{other}_MODEL is called; choose another name"
            raise ValueError(f"{where}: {table.name!r} {why}")
        seen[table.name] = at
    for at, table in enumerate(tables):
        for number, name in enumerate(table.fallbacks):
            if fault := _fault_of_fallback(table, number, known):
                where = f"deployment.{at}.fallbacks.{number}"
                raise ValueError(f"{where}: {name!r} {fault}")
    _refuse_circles(tables)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint like `` (did you mean weight?)``; empty when nothing is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f" (did you mean {found[0]}?)" if found else ""


def _read(at: int, given: dict[str, Any]) -> DeploymentTable:
    try:
        return _table(f"deployment.{at}", given)
    except ValueError as error:
        # Who reads it counts from 1, and may have many.
        name = given.get("name")
        named = f" (of {name!r})" if isinstance(name, str) else ""
        raise ValueError(f"{error}{named}") from None


def _table(where: str, given: dict[str, Any]) -> DeploymentTable:
    known = DeploymentTable.__struct_fields__
    for name in given:
        if name.lower() in _INLINE_KEYS:
            message = "keys do not stand in this file; name a file with it in"
            raise ValueError(f"{where}.{name}: {message} api_key_file")
        if name not in known:
            hint = nearest(name.lower(), known)
            raise ValueError(f"{where}.{name}: unknown{hint}")
    try:
        table = msgspec.convert(given, DeploymentTable)
    except msgspec.ValidationError as error:
        raise ValueError(said_by_msgspec(where, str(error))) from None
    for name, fault in _faults(table):
        raise ValueError(f"{where}.{name}: {fault}")
    return table


def _faults(table: DeploymentTable) -> Iterable[tuple[str, str]]:
    """Tell what is wrong with single values that have the right type."""
    if _NAME.fullmatch(table.name) is None:
        yield "name", f"{table.name!r}: write 1 to 64 letters, digits, and . _ -"
    elif table.name in set(Mode):
        yield "name", f"{table.name!r} is what callers say for a side; choose another"
    try:
        network.base_url(table.base_url)
    except ValueError as error:
        yield "base_url", str(error)
    if table.dialect is Dialect.RESPONSES:
        yield "dialect", "callers speak it, no deployment does; openai or anthropic"
    if table.kind is Kind.EMBEDDINGS and table.dialect is not Dialect.OPENAI:
        yield "dialect", "embeddings are asked for in openai alone"
    for name in ("price_input", "price_output", "price_cached", "price_cache_write"):
        price = getattr(table, name)
        if price is not None and (fault := _fault_of_price(price)):
            yield name, fault


def _fault_of_price(price: Decimal) -> str | None:
    if not price.is_finite() or not 0 <= price <= DEAREST:
        return f"must be 0 to {DEAREST} USD per million tokens"
    # What is finer could not be added up exactly in the meter.
    if price != round(price, PRICE_PLACES):
        return f"{price:f} has more than {PRICE_PLACES} digits after the point"
    return None


def _fault_of_fallback(
    table: Deployment, number: int, known: Mapping[str, Kind]
) -> str | None:
    name = table.fallbacks[number]
    if name == table.name:
        return "is this deployment itself"
    if name in table.fallbacks[:number]:
        return "stands there twice"
    if name not in known:
        return f"is no deployment{nearest(name, known)}"
    if known[name] is not table.kind:
        return f"is for {known[name]}, this one for {table.kind}"
    return None


def _refuse_circles(tables: Sequence[Deployment]) -> None:
    after = {table.name: table.fallbacks for table in tables}
    done: set[str] = set()
    for at, table in enumerate(tables):
        if circle := _circle(table.name, after, done, ()):
            said = " → ".join(circle)
            raise ValueError(f"deployment.{at}.fallbacks: go in a circle: {said}")


def _circle(
    name: str,
    after: Mapping[str, Sequence[str]],
    done: set[str],
    path: tuple[str, ...],
) -> Collection[str]:
    if name in path:
        return (*path[path.index(name) :], name)
    if name in done:
        return ()
    for following in after.get(name, ()):
        if circle := _circle(following, after, done, (*path, name)):
            return circle
    done.add(name)
    return ()


def said_by_msgspec(where: str, message: str) -> str:
    """Put msgspec's words into ours: where it is comes first, as in all of the file."""
    match = _PLACE.fullmatch(message)
    what, path = (match["what"], match["path"] or "") if match else (message, "")
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", what):
        return f"{where}.{missing[1]}: is missing"
    place = re.sub(r"\[(\d+)\]", r".\1", path)
    if choices := _CHOICES.get(place.removeprefix(".")):
        return f"{where}{place}: must be one of: {', '.join(choices)}"
    words = what.replace("`", "").replace("Expected", "expected")
    return f"{where}{place}: {words}"
