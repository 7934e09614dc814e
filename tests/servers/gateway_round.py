"""One round against the gateway: what is asked, of whom, through which faults.

All of it is drawn from one ``Random``, but for the round's case: which fault the first
request meets, and in which dialects. Cases come in turn, so that no fault is left to luck.
Every request has a mark of its own, which makes every answer and every bill one that no
other request can have.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import aiohttp
from tests.servers import told_answers
from tests.servers.fault_proxy import HARMLESS, FaultProxy, Given, Kind
from tests.servers.scripted_model import Recorded, Rule, ScriptedModel
from tests.servers.told_answers import End, Told

from nestor.model.access import KeyLimits
from nestor.model.routing import Deployment, Dialect, Side

NAMES = ("one", "two", "three")
TIMEOUT_S = 0.4
PATIENCE_S = 12.0
"""Nothing may take longer: three deployments, each with its pauses, and a slow stream."""
PATHS = {
    "openai": "/v1/chat/completions",
    "anthropic": "/v1/messages",
    "responses": "/v1/responses",
}
UsageIn = Literal["last", "with_finish", "each", "first", "after_done"]
_USAGE_IN: tuple[UsageIn, ...] = (
    *("last", "last", "with_finish", "each", "first", "after_done"),
)
_WELL = tuple(kind for kind in Kind if kind in HARMLESS)


class Case(NamedTuple):
    """What the first request of a round meets for certain, at ``NAMES[0]``."""

    kind: Kind
    stream: bool
    upstream: Dialect
    dialect: str

    @classmethod
    def of(cls, number: int) -> "Case":
        """Return a round's: every fault within ``len(Kind)`` rounds, all cases in 168."""
        turn, at = divmod(number, len(Kind))
        kind, turn = tuple(Kind)[at], turn + at
        upstream = (Dialect.OPENAI, Dialect.ANTHROPIC)[turn // 2 % 2]
        case = cls(kind, turn % 2 == 1, upstream, tuple(PATHS)[turn // 4 % 3])
        if kind is Kind.ODD_USAGE:  # there is no such thing elsewhere
            return case._replace(stream=True, upstream=Dialect.OPENAI)
        return case


@dataclass(kw_only=True)
class Asked:
    """One request, and what came of it. ``leaves``: after so many bytes, or seconds."""

    mark: str
    dialect: str
    stream: bool
    target: str
    max_tokens: int
    wants_usage: bool
    leaves_bytes: int | None = None
    leaves_s: float | None = None
    starts_s: float = 0.0
    rules: dict[str, Rule] = field(default_factory=dict)
    """What each deployment's model says to it."""
    trace_id: str = ""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes = b""
    left: bool = False
    """The client did not wait for the end."""
    broke: str = ""
    """How the connection to the gateway ended, if not well."""
    told: Told | None = None

    @property
    def body(self) -> bytes:
        """The request as it is sent."""
        text = f"please {self.mark}."
        messages = [{"role": "user", "content": text}]
        asked: dict[str, Any] = {"model": self.target, "stream": self.stream}
        if self.dialect == "responses":
            asked |= {"input": text, "max_output_tokens": self.max_tokens}
        else:
            asked |= {"messages": messages, "max_tokens": self.max_tokens}
        if self.wants_usage and self.stream and self.dialect == "openai":
            asked["stream_options"] = {"include_usage": True}
        return json.dumps(asked).encode()


@dataclass
class Round:
    """Who is asked what, behind which proxies."""

    deployments: dict[str, Deployment]
    models: dict[str, ScriptedModel]
    proxies: dict[str, FaultProxy]
    asked: list[Asked]
    limits: KeyLimits | None
    recovery_s: float
    case: Case

    @property
    def met(self) -> list[Given]:
        """What the request of the case met first, if it is under way so far."""
        return self.proxies[NAMES[0]].given[:1]

    def given(self, name: str, asked: Asked) -> list[Given]:
        """What the requests made for ``asked`` met at ``name``, in order."""
        mark = f"please {asked.mark}.".encode()
        return [one for one in self.proxies[name].given if mark in one.request]

    def bills(self, name: str, asked: Asked) -> list[Recorded]:
        """What the model behind ``name`` received of ``asked``, in order."""
        mark = f"please {asked.mark}."
        return [one for one in self.models[name].chats if mark in json.dumps(one.body)]

    def told_by(self, asked: Asked) -> Sequence[str]:
        """Who may answer: who is asked for, and its fallbacks."""
        found, todo = list[str](), [asked.target]
        while todo:
            name = todo.pop(0)
            if name not in found:
                found.append(name)
                todo += self.deployments[name].fallbacks
        return found


@asynccontextmanager
async def drawn(draw: random.Random, number: int) -> AsyncIterator[Round]:
    """Start models and proxies. ``number``: of the round."""
    case = Case.of(number)
    names = NAMES[: draw.choice((1, 2, 2, 3))]
    asked = [_asked(draw, f"m{n}", names) for n in range(draw.randint(4, 10))]
    _put(case, asked[0])
    async with AsyncExitStack() as stack:
        models, proxies = {}, {}
        for name in names:
            rules = [one.rules[name] for one in asked]
            models[name] = await stack.enter_async_context(ScriptedModel(rules))
            proxy = _proxy(draw, models[name], [case.kind] if name == NAMES[0] else [])
            proxies[name] = await stack.enter_async_context(proxy)
        deployments = {
            name: _deployment(draw, at, names, proxies[name], case)
            for at, name in enumerate(names)
        }
        yield Round(
            *(deployments, models, proxies, asked, _limits(draw)),
            recovery_s=draw.choice((0.05, 60)),
            case=case,
        )


def _put(case: Case, asked: "Asked") -> None:
    """Make a request the one of the case: it comes first, and its client stays."""
    asked.dialect, asked.stream, asked.target = case.dialect, case.stream, NAMES[0]
    asked.leaves_bytes = asked.leaves_s = None
    asked.starts_s = 0.0
    if case.kind is Kind.ODD_USAGE:
        rule = asked.rules[NAMES[0]]
        rule.usage_in = "last"
        rule.usage = rule.usage or {"prompt_tokens": 12, "completion_tokens": 3}


def _proxy(
    draw: random.Random, model: ScriptedModel, plan: Sequence[Kind]
) -> FaultProxy:
    well = draw.choice((2, 8, 30))
    return FaultProxy(
        model,
        seed=draw.random(),
        plan=plan,
        kinds=[*Kind, *(kind for kind in _WELL for _ in range(well // 2))],
        delay_s=draw.choice((0.05, TIMEOUT_S * 1.5)),
        retry_after_s=draw.choice((0, 0.05, 0.2, 30)),
        odd=0.3,
        at_ends=0.4,
        read=0.8,
    )


def _deployment(
    draw: random.Random, at: int, names: Sequence[str], proxy: FaultProxy, case: Case
) -> Deployment:
    dialect = draw.choice((Dialect.OPENAI, Dialect.ANTHROPIC))
    if names[at] == NAMES[0]:
        dialect = case.upstream
    behind = tuple(name for name in names[at + 1 :] if draw.random() < 0.7)
    url = proxy.base_url if dialect is Dialect.OPENAI else proxy.anthropic_url
    return Deployment(
        name=names[at],
        side=draw.choice((Side.LOCAL, Side.REMOTE)),
        model=f"{names[at]}-model",
        base_url=url,
        dialect=dialect,
        price_input=Decimal(draw.randint(1, 9)),
        price_output=Decimal(draw.randint(1, 90)),
        price_cached=draw.choice((None, Decimal("0.5"))),
        timeout_s=TIMEOUT_S,
        fallbacks=behind,
        rpm=draw.choice((None, None, None, 3)),
        tpm=draw.choice((None, None, None, 100_000)),
    )


def _limits(draw: random.Random) -> KeyLimits | None:
    """None, plenty, or so little that some are refused."""
    match draw.randrange(4):
        case 0:
            return None
        case 1:
            return KeyLimits(usd=Decimal("0.02"), tokens=draw.choice((None, 900)))
        case _:
            return KeyLimits(usd=Decimal(10), tokens=10**7, tpm=10**7)


def _asked(draw: random.Random, mark: str, names: Sequence[str]) -> Asked:
    one = Asked(
        mark=mark,
        dialect=draw.choice(tuple(PATHS)),
        stream=draw.random() < 0.65,
        target=draw.choice(names),
        max_tokens=draw.randint(50, 200),
        wants_usage=draw.random() < 0.5,
        starts_s=draw.choice((0, 0, 0, draw.uniform(0, 0.3))),
        trace_id=f"{draw.getrandbits(128) or 1:032x}",
    )
    if draw.random() < 0.2:
        one.leaves_s = draw.uniform(0, 0.3)
    elif one.stream and draw.random() < 0.15:
        one.leaves_bytes = draw.randrange(1, 3000)
    for name in names:
        words = [f"{name}-{mark}-{n}" for n in range(draw.randint(1, 25))]
        one.rules[name] = Rule(
            when=f"please {mark}.",
            reply=" ".join(words),
            usage=_usage(draw),
            usage_in=draw.choice(_USAGE_IN),
            delay_s=draw.choice((0, 0, draw.uniform(0, 0.02))),
            chunk_delay_s=draw.choice((0, 0, 0.001)),
        )
    return one


def _usage(draw: random.Random) -> dict[str, Any] | None:
    if draw.random() < 0.07:
        return None
    usage: dict[str, Any] = {
        "prompt_tokens": draw.randint(10, 400),
        "completion_tokens": draw.randint(1, 49),
    }
    if draw.random() < 0.3:
        cached = draw.randint(0, usage["prompt_tokens"])
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return usage


async def ask_all(
    session: aiohttp.ClientSession, url: str, key: str, played: Round
) -> None:
    """Put all requests to the gateway; that of the case is under way before the others."""
    async with asyncio.TaskGroup() as group:
        first = group.create_task(ask(session, url, key, played.asked[0]))
        while not (first.done() or played.met):
            await asyncio.sleep(0.001)
        for one in played.asked[1:]:
            group.create_task(ask(session, url, key, one))


async def ask(session: aiohttp.ClientSession, url: str, key: str, one: Asked) -> None:
    """Put one request to the gateway, and leave when it is time to."""
    await asyncio.sleep(one.starts_s)
    try:
        async with asyncio.timeout(one.leaves_s):
            await _read(session, url, key, one)
    except TimeoutError:
        one.left = True
    except aiohttp.ClientError as error:
        one.broke = repr(error)
    if one.status and not (one.left or one.broke):
        try:
            one.told = _told(one)
        except (AssertionError, LookupError, TypeError) as error:
            one.told = Told(End.NONE, why=f"not the dialect's shape: {error!r}")


def _told(one: Asked) -> Told:
    if one.status == 200 and one.stream:
        return told_answers.stream(one.dialect, one.raw)
    told = told_answers.reply(one.dialect, one.status, one.raw)
    assert told.end is not End.GARBLED, told
    return told


async def _read(session: aiohttp.ClientSession, url: str, key: str, one: Asked) -> None:
    headers = {
        "content-type": "application/json",
        "traceparent": f"00-{one.trace_id}-00f067aa0ba902b7-01",
    }
    if one.dialect == "anthropic":
        headers |= {"x-api-key": key, "anthropic-version": "2023-06-01"}
    else:
        headers["authorization"] = f"Bearer {key}"
    where = url + PATHS[one.dialect]
    async with session.post(where, data=one.body, headers=headers) as reply:
        one.status, one.headers = reply.status, dict(reply.headers)
        async for piece in reply.content.iter_any():
            one.raw += piece
            if one.leaves_bytes is not None and len(one.raw) >= one.leaves_bytes:
                one.left = True
                reply.close()
                return
