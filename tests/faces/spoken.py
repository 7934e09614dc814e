"""Short words for calls of the Coordinator, and for what the event log says of them."""

import json
from typing import Any

from tests.faces.shell import Reply
from tests.faces.whole import Whole

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


async def post(face: Whole, path: str, body: Any, **how: Any) -> Reply:
    return await face.call("coordinator", "POST", path, json=body, **how)


async def get(face: Whole, path: str, **how: Any) -> Reply:
    return await face.call("coordinator", "GET", path, **how)


async def asked(face: Whole, **how: Any) -> str:
    """Ask through the gateway; return the interaction's id."""
    reply = await post(face, "/v1/chat/completions", ASK, **how)
    assert reply.status == 200, reply.body
    return reply.headers["x-nestor-interaction-id"]


def fields(reply: Reply) -> list[str]:
    return [one["field"] for one in reply.json["errors"]]


def events(face: Whole, kind: str) -> list[dict[str, Any]]:
    lines = face.nestor.event_log.path.read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [one for one in found if one["event_type"] == kind]
