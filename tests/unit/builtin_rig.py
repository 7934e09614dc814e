"""The builtin agent's program as a process in a folder, and what it said."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from aiohttp import web
from tests.servers.scripted_model import Rule, ScriptedModel

from nestor.backends.agents.builtin import END, PROGRAM, REFUSED, START


class Ran:
    """How one run ended."""

    def __init__(self, code: int | None, output: str) -> None:
        self.code = code
        self.output = output
        last = output.splitlines()[-1]
        assert last.startswith(END), output
        self.end: dict[str, Any] = json.loads(last.removeprefix(END))
        self.refused: list[str] = [
            json.loads(line.removeprefix(REFUSED))
            for line in output.splitlines()
            if line.startswith(REFUSED)
        ]


async def run(
    cwd: Path,
    model: ScriptedModel,
    prompt: str = "fix it",
    *,
    timeout_s: float = 60,
    limits: dict[str, float] | None = None,
    **more: object,
) -> Ran:
    told = {
        "prompt": prompt,
        "model_base_url": model.base_url,
        "limits": {"backoff_s": 0.01, **(limits or {})},
        **more,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-c", START, str(PROGRAM)),
        cwd=cwd,
        env={"PATH": os.defpath, "HTTP_PROXY": "http://127.0.0.1:9"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(timeout_s):
        out, _ = await process.communicate(json.dumps(told).encode())
    return Ran(process.returncode, out.decode())


def call(name: str, **arguments: object) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def raw_call(name: str, arguments: object) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": "raw", "type": "function", "function": function}


def script(*turns: list[dict[str, Any]]) -> list[Rule]:
    """One reply a turn, then done."""
    rules = [Rule(nth=n, tool_calls=calls) for n, calls in enumerate(turns, 1)]
    return [*rules, Rule(tool_calls=[call("done", summary="finished")])]


def results(model: ScriptedModel) -> list[str]:
    """What the tools answered, as the last request has it."""
    messages = model.chats[-1].body["messages"]
    return [m["content"] for m in messages if m["role"] == "tool"]


class WithPerson(ScriptedModel):
    """A scripted model, and at ``/nestor/ask`` a person whose answers are written down.

    The last answer is given again; a number is an HTTP status.
    """

    def __init__(
        self, rules: list[Rule], *answers: dict[str, Any] | int, delay_s: float = 0.0
    ) -> None:
        super().__init__(rules)
        self.asked: list[dict[str, Any]] = []
        self._answers = list(answers)
        self._delay_s = delay_s

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.path != "/nestor/ask":
            return await super()._serve(request)
        self.asked.append(await request.json())
        await asyncio.sleep(self._delay_s)
        answer = self._answers[0]
        if len(self._answers) > 1:
            del self._answers[0]
        if isinstance(answer, int):
            return web.json_response({"status": answer}, status=answer)
        return web.json_response(answer)
