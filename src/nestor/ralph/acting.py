"""Stages context, guidance, agent and snapshot: one attempt at the work."""

import asyncio
from pathlib import Path

import msgspec

from nestor.errors import InvalidInput, NestorError, SandboxError, WorkspaceError
from nestor.model.knowledge import ContextRequest
from nestor.model.routing import RouteRequest
from nestor.model.task import ApprovalKind, Network, Outcome, Reason, Task
from nestor.ports.agent import AgentCommand, AgentEnd, Brief
from nestor.ports.sandbox import Ask, Mount, SandboxResult, SandboxRun
from nestor.ralph import cut_short
from nestor.ralph.asking import Asking, decided, grants_of, put
from nestor.ralph.brief import Past, brief
from nestor.ralph.parts import CANCELLED, Parts, failed, say, until_cancelled
from nestor.ralph.records import AgentRun, Context, Guidance, Taken
from nestor.ralph.shown import first, newest
from nestor.ralph.tailing import told_live
from nestor.ralph.turns import Turns
from nestor.ralph.verification import WORKSPACE, environment_mounts, signature
from nestor.telemetry.trace import trace

_OUTPUT_CHARS = 8_000
_MAX_REFUSED, _REFUSED_CHARS = 60, 300
_GRACE_S = 30.0
"""For who keeps its own time, to end by itself."""


async def context(p: Parts, task: Task, n: int) -> Context:
    """Ask the knowledge base. Its silence is noted, not fatal."""
    await say(p, task, n, "context")
    with trace(task.trace_id):
        result = await until_cancelled(p, task, _context(p, task, n))
    return result or Context(end=CANCELLED)


async def _context(p: Parts, task: Task, n: int) -> Context:
    request = ContextRequest(query=task.spec.goal, task_id=task.task_id, iteration=n)
    try:
        found = await p.knowledge.get_context(request)
    except NestorError as error:
        return Context(degraded=[f"knowledge base: {error}"])
    return Context(items=found.items, degraded=found.degraded)


async def guidance(
    p: Parts, task: Task, n: int, context: Context, turns: Turns
) -> Guidance:
    """One model call at most: advice for the agent."""
    if not p.router.has_models():
        return Guidance()
    await say(p, task, n, "guidance")
    with trace(task.trace_id):
        result = await until_cancelled(p, task, _guidance(p, task, n, context, turns))
    return result or Guidance(end=CANCELLED)


async def _guidance(
    p: Parts, task: Task, n: int, context: Context, turns: Turns
) -> Guidance:
    failing = "\n\n".join(v.output_tail[-1500:] for v in turns.failing)
    query = (
        "A coding agent works on this task. In at most five sentences, tell it what "
        f"to look at and what to avoid.\n\n{task.spec.goal}"
    )
    if failing:
        query += f"\n\nIts last attempt failed its checks:\n{failing}"
    try:
        answer = await p.router.route(
            RouteRequest(
                query=query,
                context=context.items,
                iteration=n,
                task_id=task.task_id,
                max_tokens=400,
            )
        )
    except NestorError as error:
        return Guidance(error=str(error))
    return Guidance(text=answer.response, route=answer.route, model=answer.model)


async def agent(
    p: Parts, task: Task, n: int, context: Context, guidance: Guidance, turns: Turns
) -> AgentRun:
    """Run the agent in the sandbox on the private clone."""
    await say(p, task, n, "agent")
    result = await until_cancelled(
        p, task, _to_its_end(p, task, n, context, guidance, turns)
    )
    return result or AgentRun(end=CANCELLED)


async def _to_its_end(
    p: Parts, task: Task, n: int, context: Context, guidance: Guidance, turns: Turns
) -> AgentRun:
    """Run the agent, and from the start again where it was cut short."""
    lost_s = 0.0
    for _ in range(cut_short.TRIES):
        try:
            run = await _agent(p, task, n, context, guidance, turns, lost_s=lost_s)
        except cut_short.CutShort as cut:
            lost_s += cut.worked_s
            continue
        return msgspec.structs.replace(run, duration_s=run.duration_s + lost_s)
    why = str(cut_short.every_time("the agent"))
    return AgentRun(end=failed(Reason.BACKEND_UNAVAILABLE, why))


async def _agent(
    p: Parts,
    task: Task,
    n: int,
    context: Context,
    guidance: Guidance,
    turns: Turns,
    *,
    lost_s: float,
) -> AgentRun:
    """Run it once. Raises ``CutShort`` when it was ended by no fault of its own."""
    backend = p.backends[task.backend]
    run_dir = p.workspaces.folder(task.task_id) / "runs" / f"agent-{n}"
    await p.sandbox.kill(run_dir)
    # A first attempt at this step may have died half way through an edit.
    if run_dir.exists():
        await p.workspaces.reset(task.task_id, turns.commit)
    # Read anew: what a person granted since the last iteration holds from this one on.
    now = await p.store.get(task.task_id)
    granted = await _granted(p, now)
    prompt = brief(
        task.spec,
        context=context.items,
        guidance=guidance.text,
        failing=turns.failing,
        restored=turns.restored,
        past=await _past(p, now, turns),
    )
    limit_s = _time_left(p, task, turns, lost_s)
    try:
        command = backend.command(
            Brief(
                task_id=task.task_id,
                spec=task.spec,
                iteration=n,
                prompt=prompt,
                model_base_url=p.model_base_url,
                model=task.spec.model or "auto",
                network=granted.network,
                hosts=granted.hosts,
                time_s=limit_s,
            )
        )
    except InvalidInput as error:
        return AgentRun(end=failed(Reason.BACKEND_UNAVAILABLE, str(error)))
    return await _in_sandbox(p, task, n, turns, command, granted, limit_s=limit_s)


class _Granted(msgspec.Struct, frozen=True, kw_only=True):
    """What the task file and people allow this run beyond the usual."""

    network: Network
    hosts: list[str]
    mounts: list[Mount]
    refused: list[str]
    """Granted paths that cannot be shown, each with the reason."""


async def _in_sandbox(
    p: Parts,
    task: Task,
    n: int,
    turns: Turns,
    command: AgentCommand,
    granted: _Granted,
    *,
    limit_s: float,
) -> AgentRun:
    """Run what the backend wants run. Raises ``CutShort``."""
    run_dir = p.workspaces.folder(task.task_id) / "runs" / f"agent-{n}"
    asking = Asking(p, task, n) if command.asks else None
    scope = f"task:{task.task_id}"
    await p.keys.revoke_scope(scope)
    _, key = await p.keys.create(f"task {task.task_id}, iteration {n}", [scope])
    run = _run(p, task, n, turns, command, granted, asking=asking)
    try:
        async with told_live(p, task, n, run_dir):
            result = await p.sandbox.run(
                msgspec.structs.replace(
                    run,
                    task_key=None if run.network is Network.NONE else key,
                    # Who asks keeps its own time: a person's does not count.
                    timeout_s=limit_s
                    + (asking.may_wait_s + _GRACE_S if asking else 0.0),
                    run_dir=run_dir,
                )
            )
    except SandboxError as error:
        return AgentRun(end=failed(Reason.BACKEND_UNAVAILABLE, str(error)))
    finally:
        await p.keys.revoke_scope(scope)
    await put(p, task.task_id, n, _questions(result))
    if result.cancelled:
        raise cut_short.CutShort(_worked_s(result, asking))
    said = await asyncio.to_thread(p.backends[task.backend].read, result)
    return _agent_run(said, result, task, refused=granted.refused, asking=asking)


async def _granted(p: Parts, task: Task) -> _Granted:
    network, hosts = task.spec.sandbox.network, list(task.spec.sandbox.hosts)
    mounts, refused = [], []
    known = set(task.spec.mounts)
    for grant in grants_of(task):
        if grant.kind is ApprovalKind.NETWORK:
            network = Network(grant.subject)
        elif grant.kind is ApprovalKind.HOST:
            hosts.append(grant.subject)
        elif grant.subject not in known:
            known.add(grant.subject)
            place = Path(grant.subject)
            # A person's yes does not open what no task may see.
            why = await asyncio.to_thread(p.sandbox.refuses_mount, place)
            if why is None:
                mounts.append(Mount(host=place, inside=grant.subject))
            else:
                refused.append(f"path {why}")
    return _Granted(
        network=network,
        hosts=list(dict.fromkeys(hosts)),
        mounts=mounts,
        refused=refused,
    )


async def _past(p: Parts, task: Task, turns: Turns) -> Past:
    """Gather what the agent is told of the work so far, besides the checks that fail."""
    recorded = await p.store.iterations(task.task_id)
    # After a rollback the newest record is not of the tree that the agent goes on from.
    here = next((i for i in reversed(recorded) if i.snapshot == turns.commit), None)
    return Past(
        decided=decided(task),
        flaky=turns.flaky,
        judgements=here.judgements if here else [],
        refused=recorded[-1].refused if recorded else [],
    )


def _run(
    p: Parts,
    task: Task,
    n: int,
    turns: Turns,
    command: AgentCommand,
    granted: _Granted,
    *,
    asking: Asking | None,
) -> SandboxRun:
    """Describe the run but for its key, its time and its folder."""
    inside = task.spec.workspace.path if task.spec.workspace else None
    tree = p.workspaces.tree(task.task_id)
    return SandboxRun(
        name=f"{task.task_id}/agent-{n}",
        argv=command.argv,
        cwd=f"{WORKSPACE}/{inside}" if inside else WORKSPACE,
        mounts=[
            Mount(host=tree, inside=WORKSPACE, writable=True),
            *environment_mounts(task.spec, turns.prepared.setup),
            *granted.mounts,
            *command.mounts,
        ],
        env={"NESTOR_SETUP": "/setup", **command.env},
        stdin=command.stdin,
        network=granted.network,
        hosts=granted.hosts,
        ask=asking,
        trace_id=task.trace_id,
        iteration=n,
        timeout_s=p.agent_timeout_s,
        run_dir=p.workspaces.folder(task.task_id),
        memory_bytes=task.spec.sandbox.memory_bytes,
        disk_bytes=task.spec.sandbox.disk_bytes,
        processes=task.spec.sandbox.processes,
    )


def _questions(result: SandboxResult) -> list[Ask]:
    """Turn the hosts that the sandbox refused into questions; nobody waits for them."""
    return [
        Ask(
            kind=ApprovalKind.HOST,
            subject=text.removeprefix("host "),
            why="the agent tried to reach it",
        )
        for text in result.refused
        if text.startswith("host ")
    ]


def _time_left(p: Parts, task: Task, turns: Turns, lost_s: float) -> float:
    limit = p.agent_timeout_s
    if task.budget.seconds is not None:
        limit = min(limit, max(task.budget.seconds - turns.spent.seconds - lost_s, 1.0))
    return limit


async def snapshot(p: Parts, task: Task, n: int, turns: Turns) -> Taken:
    """Commit what the agent left, in the harness's own history."""
    await say(p, task, n, "snapshot")
    try:
        snapshot = await p.workspaces.snapshot(
            task.task_id,
            message=f"{task.task_id}: iteration {n}",
            parent=turns.commit,
        )
    except WorkspaceError as error:
        return Taken(end=failed(Reason.WORKSPACE_ERROR, str(error)))
    return Taken(snapshot=snapshot)


def _agent_run(
    said: AgentEnd,
    result: SandboxResult,
    task: Task,
    *,
    refused: list[str],
    asking: Asking | None,
) -> AgentRun:
    failure = "timeout" if result.timed_out else said.failure
    summary, over = said.summary, _over_limit(result, task)
    if over:
        failure, summary = Outcome.AGENT_ERROR.value, over
    tail = newest(result.output, _OUTPUT_CHARS)
    every = [*refused, *result.refused, *said.refused, *([over] if over else [])]
    return AgentRun(
        failure=failure,
        claims_done=said.claims_done and failure is None,
        exit_code=result.exit_code,
        summary=first(summary, _OUTPUT_CHARS),
        output_tail=tail,
        signature=signature(failure, str(result.exit_code), tail) if failure else "",
        duration_s=_worked_s(result, asking),
        sandboxed=result.sandboxed,
        refused=[first(text, _REFUSED_CHARS) for text in every[:_MAX_REFUSED]],
        unanswered=failure == Outcome.BLOCKED and bool(asking and asking.unanswered),
    )


def _worked_s(result: SandboxResult, asking: Asking | None) -> float:
    return max(result.duration_s - (asking.waited_s if asking else 0.0), 0.0)


def _over_limit(result: SandboxResult, task: Task) -> str:
    """Say which limit ended the run; "" when none did."""
    if result.limit is None:
        return ""
    spec = task.spec.sandbox
    limits = {
        "memory": _size(spec.memory_bytes),
        "disk": _size(spec.disk_bytes),
        "processes": f" of {spec.processes}",
    }
    known = limits.get(result.limit, "")
    return f"killed: it used more than its {result.limit} limit{known}"


def _size(size_bytes: int | None) -> str:
    return "" if size_bytes is None else f" of {size_bytes / 1024**2:.0f} MiB"
