"""``nestor hook stop|install``: Claude Code's Stop hook, held to Nestor's checks.

Claude Code runs the command when the agent wants to stop and hands it a JSON object.
Exit 0 without output lets it stop; exit 0 with ``{"decision": "block", "reason": …}``
makes it go on with that reason; ``{"systemMessage": …}`` is shown to the person. Exit 2
would hold it as well, so no mistake of ours or of the command line may end with 2: it is
1, which Claude Code shows and does not act on.
"""

import json
import logging
import os
import select
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from nestor.cli import hook_settings
from nestor.cli.client import load_settings
from nestor.cli.hook_sessions import session_of
from nestor.cli.inert import one_line
from nestor.cli.render import Screen
from nestor.errors import InvalidInput, NestorError

if TYPE_CHECKING:
    from nestor.model.task import TaskSpec
    from nestor.wiring.holding import Held

LIMIT_S, MAX_BLOCKS, MAX_SAME = 300.0, 8, 3
TASK_FILE = ".nestor/task.json"
_HOLDS = 2
"""To Claude Code; to typer: a wrong command line."""
_STDIN_BYTES, _STDIN_S = 1024 * 1024, 10.0
_TAIL_CHARS = 2_000
_REASON_CHARS = 8_000
_STOPS = {"Stop", "SubagentStop"}
"""Hooks of Claude Code at which an agent wants to end."""
_NO_CHECKS = f"no checks are given: name some with --check, --task or {TASK_FILE}"


class _NeverTwo(TyperGroup):
    """Its wrong command lines end with 1: to Claude Code, 2 means to hold the session."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if getattr(error, "exit_code", 0) == _HOLDS:
                error.exit_code = 1  # type: ignore[attr-defined]
            raise


app = typer.Typer(
    name="hook",
    cls=_NeverTwo,
    no_args_is_help=True,
    help="Hold an interactive Claude Code session to checks.",
)
_CHECK = Annotated[
    list[str] | None,
    typer.Option("--check", help="Command that must pass; repeatable."),
]
_SETUP = Annotated[
    list[str] | None,
    typer.Option("--setup", help="Command that makes the environment, once."),
]
_TASK = Annotated[
    Path | None,
    typer.Option(
        "--task", help=f"Task file with the checks; else {TASK_FILE} of the commit."
    ),
]
_BASE = Annotated[
    str | None,
    typer.Option(help="Commit whose tests count; the current HEAD when not given."),
]
_LIMIT = Annotated[
    float, typer.Option("--limit-s", min=1, help="Longest that one look may take.")
]
_BLOCKS = Annotated[
    int, typer.Option("--max-blocks", min=1, help="Most holds of one session.")
]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is said to Claude Code; neither: it may stop."""

    block: str = ""
    message: str = ""

    def printed(self) -> str:
        """Return the reply, one line of JSON; "" for nothing to say."""
        if self.block:
            return json.dumps({"decision": "block", "reason": self.block})
        return json.dumps({"systemMessage": self.message}) if self.message else ""


@app.command(
    epilog='Example, in .claude/settings.json:\n\n  nestor hook stop --check "pytest -q"'
)
def stop(
    check: _CHECK = None,
    setup: _SETUP = None,
    task: _TASK = None,
    base: _BASE = None,
    repo: Annotated[
        Path | None, typer.Option(help="The project; else the session's folder.")
    ] = None,
    limit_s: _LIMIT = LIMIT_S,
    max_blocks: _BLOCKS = MAX_BLOCKS,
) -> None:
    """Answer Claude Code's Stop hook: let the agent stop only when the checks pass.

    Reads the hook's JSON from standard input. Whatever goes wrong lets it stop.
    """
    told = _told()
    wanted = _Wanted(check or [], setup or [], task, base)
    try:
        answer = _answer(told, wanted, repo, limit_s=limit_s, max_blocks=max_blocks)
    except TimeoutError:
        why = f"the checks took longer than {limit_s:g} s"
        answer = Answer(message=f"nestor: not checked, {why}")
    except NestorError as error:
        answer = Answer(message=f"nestor: not checked: {error}")
    except Exception as error:  # noqa: BLE001 - a process edge: it must never hold anyone
        said = f"{type(error).__name__}: {error}"
        answer = Answer(message=f"nestor: not checked, which is a bug: {said}")
    if text := answer.printed():
        typer.echo(text)


@dataclass(frozen=True)
class _Wanted:
    check: list[str]
    setup: list[str]
    task: Path | None
    base: str | None


def _told() -> dict[str, Any]:
    """Read what Claude Code says; anything else ends with 1, which holds nobody."""
    raw, deadline = b"", time.monotonic() + _STDIN_S
    try:
        while len(raw) <= _STDIN_BYTES:
            left = max(deadline - time.monotonic(), 0)
            if not select.select([0], [], [], left)[0]:
                break
            piece = os.read(0, 65536)
            if not piece:
                break
            raw += piece
        told = json.loads(raw)
    except (OSError, ValueError, RecursionError):
        told = None
    if not isinstance(told, dict) or not isinstance(told.get("session_id"), str):
        typer.echo(
            "nestor hook stop: this is for Claude Code, which hands it the JSON of a"
            " Stop hook; put it into a project with: nestor hook install",
            err=True,
        )
        raise typer.Exit(1)
    # To another hook the same answer means something else: "block" forbids a tool.
    if (name := told.get("hook_event_name", "Stop")) not in _STOPS:
        said = f"this answers a Stop hook, and was called as {one_line(name, 80)}"
        put = "put it under Stop in the settings, or run: nestor hook install"
        typer.echo(f"nestor hook stop: {said}; {put}", err=True)
        raise typer.Exit(1)
    return told


def _answer(
    told: dict[str, Any],
    wanted: _Wanted,
    repo: Path | None,
    *,
    limit_s: float,
    max_blocks: int,
) -> Answer:
    # Heavy libraries: for this command only.
    import asyncio  # noqa: PLC0415

    from nestor.telemetry.logs import configure  # noqa: PLC0415

    settings = load_settings()
    configure(settings.log_format, sys.stderr, level=logging.ERROR)
    place = repo or Path(str(told.get("cwd") or "."))

    async def look() -> "Held | None":
        from nestor.wiring import holding  # noqa: PLC0415

        async with asyncio.timeout(limit_s):
            top = holding.top_of(place)
            here = str(place.expanduser().resolve().relative_to(top))
            spec = await _spec(wanted, top, here)
            return None if spec is None else await holding.hold(settings, top, spec)

    held = asyncio.run(look())
    if held is None:
        return Answer(message=f"nestor: not checked: {_NO_CHECKS}")
    sessions = settings.home / "hook" / "sessions"
    return _decided(told, held, sessions, max_blocks=max_blocks)


async def _spec(wanted: _Wanted, top: Path, here: str) -> "TaskSpec | None":
    """Return the checks as a task; None where the project has none."""
    import msgspec  # noqa: PLC0415 - as above

    from nestor.model.task import Check, TaskSpec, WorkspaceSpec  # noqa: PLC0415

    spec = TaskSpec()
    if wanted.task is not None or not wanted.check:
        found = await _from_file(wanted, top, TaskSpec)
        if found is None and not wanted.check:
            return None
        spec = found or spec
    given = spec.workspace or WorkspaceSpec()
    start = None if here == "." or wanted.task is not None else here
    lines = dict.fromkeys(wanted.check)
    checks = [*spec.checks, *(Check(name=line, run=line) for line in lines)]
    spec = msgspec.structs.replace(
        spec,
        checks=checks,
        setup=[*spec.setup, *wanted.setup],
        workspace=WorkspaceSpec(
            path=given.path or start, base=wanted.base or given.base
        ),
    )
    if not spec.all_checks:
        raise InvalidInput.at("checks", "the task file has none")
    return spec


async def _from_file(
    wanted: _Wanted, top: Path, kind: type["TaskSpec"]
) -> "TaskSpec | None":
    """Read the task file: one in the repository as its commit has it.

    The agent may write the working tree, and with it what it is measured by.
    """
    import msgspec  # noqa: PLC0415 - as above

    from nestor.cli.task_file import read_task_file  # noqa: PLC0415
    from nestor.wiring import holding  # noqa: PLC0415

    path = (top / (wanted.task or TASK_FILE)).resolve()
    if path.is_relative_to(top):
        name = str(path.relative_to(top))
        raw = await holding.committed(top, name, base=wanted.base)
        if raw is None:
            if wanted.task is None and not path.exists():
                return None
            why = f"{name} is not in the commit; what is not committed does not count"
            raise InvalidInput.at("--task", why)
        value = _decoded(raw, path)
    else:
        value = read_task_file(path)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidInput.at("--task", f"{path}: {error}") from error


def _decoded(raw: bytes, path: Path) -> Any:
    import yaml  # noqa: PLC0415 - as above

    try:
        text = raw.decode()
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise InvalidInput.at("--task", f"{path}: {error}") from error


def _decided(
    told: dict[str, Any], held: "Held", sessions: Path, *, max_blocks: int
) -> Answer:
    """Hold it, or let it go although checks fail: for ever is too long."""
    going_on = told.get("stop_hook_active")
    try:
        with session_of(sessions, told["session_id"]) as session:
            if not held.failing:
                session.saw_none()
                return Answer()
            session.saw(held.signature, fresh=going_on is False)
            if session.blocks >= max_blocks:
                return _let_go(held, f"this session was held {max_blocks} times")
            if session.same >= MAX_SAME:
                return _let_go(held, f"the same failure was seen {MAX_SAME} times")
            session.blocks += 1
    except OSError as error:
        if not held.failing:
            return Answer()
        # Without a count of our own, Claude Code's is what bounds us: once in a turn.
        if going_on is not False:
            return _let_go(held, f"holds cannot be counted ({error.strerror})")
    return Answer(block=_reason(held))


def _let_go(held: "Held", why: str) -> Answer:
    failing = ", ".join(verdict.check for verdict in held.failing)
    return Answer(message=f"nestor: checks still fail ({failing}); let go, as {why}")


def _reason(held: "Held") -> str:
    """Say what fails, for the agent."""
    parts = ["The work is not done: these checks do not pass on a copy of the tree."]
    for verdict in held.failing:
        how = verdict.note or f"exit {verdict.exit_code}"
        tail = verdict.output_tail[-_TAIL_CHARS:].strip()
        parts.append(f"check {verdict.check}: failed ({how})\n{tail}".rstrip())
    if held.restored:
        named = ", ".join(held.restored[:5])
        parts.append(
            "These files were put back as they are in the commit before the checks ran,"
            f" so changes to them do not count: {named}"
        )
    parts.append("Mend the cause, not the checks.")
    return "\n\n".join(parts)[:_REASON_CHARS]


@app.command(
    epilog='Examples:\n\n  nestor hook install --check "pytest -q"'
    "\n\n  nestor hook install --task ci/task.yaml --print"
)
def install(
    check: _CHECK = None,
    setup: _SETUP = None,
    task: _TASK = None,
    base: _BASE = None,
    project: Annotated[Path, typer.Option(help="The project.")] = Path(),
    limit_s: _LIMIT = LIMIT_S,
    max_blocks: _BLOCKS = MAX_BLOCKS,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print what would be written, and stop.")
    ] = False,
) -> None:
    """Put the hook into the project's .claude/settings.json; what stands there stays."""
    from nestor.wiring.holding import top_of  # noqa: PLC0415 - as above

    options = [
        *(part for line in check or [] for part in ("--check", line)),
        *(part for line in setup or [] for part in ("--setup", line)),
        *(("--task", str(task)) if task else ()),
        *(("--base", base) if base else ()),
        *(("--limit-s", f"{limit_s:g}") if limit_s != LIMIT_S else ()),
        *(("--max-blocks", str(max_blocks)) if max_blocks != MAX_BLOCKS else ()),
    ]
    top = top_of(project)
    _refuse_unchecked(top, check, task)
    path = top / ".claude" / "settings.json"
    change = hook_settings.with_hook(path, options, limit_s=limit_s, top=top)
    screen = Screen()
    if only_print:
        screen.line(change.after.rstrip())
        return
    if not change.diff:
        screen.line(f"{path} has it already")
        return
    screen.diff(change.diff)
    change.write()
    screen.line(f"written to {path}; Claude Code reads it when a session begins")


def _refuse_unchecked(top: Path, check: list[str] | None, task: Path | None) -> None:
    """Raise ``InvalidInput`` for a hook that would find nothing to check."""
    if check and task is None:
        return
    path = top / (task or TASK_FILE)
    if path.is_file():
        return
    if task is None:
        raise InvalidInput.at("--check", f"{_NO_CHECKS}; {path} does not exist")
    raise InvalidInput.at("--task", f"{path} does not exist")
