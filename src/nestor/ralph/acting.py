"""Stages context, guidance, agent and snapshot: one attempt at the work."""

from nestor.errors import InvalidInput, NestorError, SandboxError, WorkspaceError
from nestor.model.knowledge import ContextRequest
from nestor.model.routing import RouteRequest
from nestor.model.task import Network, Reason, Task
from nestor.ports.agent import AgentBackend, Brief
from nestor.ports.sandbox import Mount, SandboxResult, SandboxRun
from nestor.ralph.brief import brief
from nestor.ralph.parts import CANCELLED, Parts, failed, say, until_cancelled
from nestor.ralph.records import AgentRun, Context, Guidance, Taken
from nestor.ralph.turns import Turns
from nestor.ralph.verification import WORKSPACE, environment_mounts, signature
from nestor.telemetry.redact import redact
from nestor.telemetry.trace import trace

_OUTPUT_CHARS = 8_000


async def context(p: Parts, task: Task, n: int) -> Context:
    """Ask the knowledge base. Its silence is noted, not fatal."""
    await say(p, task, n, "context")
    request = ContextRequest(query=task.spec.goal, task_id=task.task_id, iteration=n)
    with trace(task.trace_id):
        try:
            found = await p.knowledge.get_context(request)
        except NestorError as error:
            return Context(degraded=[f"knowledge base: {error}"])
    return Context(items=found.items, degraded=found.degraded)


async def guidance(
    p: Parts, task: Task, n: int, context: Context, turns: Turns
) -> Guidance:
    """One model call at most: advice for the agent."""
    if not task.spec.use_hybrid or not p.router.has_models():
        return Guidance()
    await say(p, task, n, "guidance")
    failing = "\n\n".join(v.output_tail[-1500:] for v in turns.failing)
    query = (
        "A coding agent works on this task. In at most five sentences, tell it what "
        f"to look at and what to avoid.\n\n{task.spec.goal}"
    )
    if failing:
        query += f"\n\nIts last attempt failed its checks:\n{failing}"
    with trace(task.trace_id):
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
        p, task, _agent(p, task, n, context, guidance, turns)
    )
    return result or AgentRun(end=CANCELLED)


async def _agent(
    p: Parts, task: Task, n: int, context: Context, guidance: Guidance, turns: Turns
) -> AgentRun:
    backend = p.backends[task.backend]
    run_dir = p.workspaces.folder(task.task_id) / "runs" / f"agent-{n}"
    await p.sandbox.kill(run_dir)
    # A first attempt at this step may have died half way through an edit.
    if run_dir.exists():
        await p.workspaces.reset(task.task_id, turns.commit)
    prompt = brief(
        task.spec,
        context=context.items,
        guidance=guidance.text,
        failing=turns.failing,
        restored=turns.restored,
    )
    try:
        command = backend.command(
            Brief(
                task_id=task.task_id,
                spec=task.spec,
                iteration=n,
                prompt=prompt,
                model_base_url=p.model_base_url,
            )
        )
    except InvalidInput as error:
        return AgentRun(end=failed(Reason.BACKEND_UNAVAILABLE, str(error)))
    scope = f"task:{task.task_id}"
    await p.keys.revoke_scope(scope)
    _, key = await p.keys.create(f"task {task.task_id}, iteration {n}", [scope])
    inside = task.spec.workspace.path if task.spec.workspace else None
    try:
        result = await p.sandbox.run(
            SandboxRun(
                name=f"{task.task_id}/agent-{n}",
                argv=command.argv,
                cwd=f"{WORKSPACE}/{inside}" if inside else WORKSPACE,
                mounts=[
                    Mount(
                        host=p.workspaces.tree(task.task_id),
                        inside=WORKSPACE,
                        writable=True,
                    ),
                    *environment_mounts(task.spec, turns.prepared.setup),
                    *command.mounts,
                ],
                env={"NESTOR_SETUP": "/setup", **command.env},
                stdin=command.stdin,
                network=task.spec.sandbox.network,
                task_key=key
                if task.spec.sandbox.network is Network.COORDINATOR
                else None,
                trace_id=task.trace_id,
                iteration=n,
                timeout_s=_time_left(p, task, turns),
                run_dir=run_dir,
                memory_bytes=task.spec.sandbox.memory_bytes,
                processes=task.spec.sandbox.processes,
            )
        )
    except SandboxError as error:
        return AgentRun(end=failed(Reason.BACKEND_UNAVAILABLE, str(error)))
    finally:
        await p.keys.revoke_scope(scope)
    return _agent_run(backend, result)


def _time_left(p: Parts, task: Task, turns: Turns) -> float:
    limit = p.agent_timeout_s
    if task.budget.seconds is not None:
        limit = min(limit, max(task.budget.seconds - turns.spent.seconds, 1.0))
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


def _agent_run(backend: AgentBackend, result: SandboxResult) -> AgentRun:
    said = backend.read(result)
    failure = "timeout" if result.timed_out else said.failure
    tail = redact(result.output[-_OUTPUT_CHARS:])
    return AgentRun(
        failure=failure,
        claims_done=said.claims_done and failure is None,
        exit_code=result.exit_code,
        summary=redact(said.summary[:_OUTPUT_CHARS]),
        output_tail=tail,
        signature=signature(failure, str(result.exit_code), tail) if failure else "",
        duration_s=result.duration_s,
        sandboxed=result.sandboxed,
    )
