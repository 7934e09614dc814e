"""What docs/reference/http.md says of each call beside its line: body fields and an example.

Fields, types and defaults come from the structs; what a name does not tell is said here.
The examples are run, in order, against a stack by the tests of the docs.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any, get_type_hints

import msgspec

from nestor.model.task import Budget, Check, SandboxSpec, TaskSpec, WorkspaceSpec

PORTS = {"ralph": 8090, "aidb": 8091, "coordinator": 8092, "learning": 8093}
_PARTS = {
    (TaskSpec, "checks"): ("checks[].", Check),
    (TaskSpec, "workspace"): ("workspace.", WorkspaceSpec),
    (TaskSpec, "budget"): ("budget.", Budget),
    (TaskSpec, "sandbox"): ("sandbox.", SandboxSpec),
}
_MEANING = {
    "task_id": "your own id; without one, one is made",
    "name": "a title",
    "task": "what to do",
    "description": "the same as `task`; give one of the three",
    "prompt": "the same as `task`; give one of the three",
    "backend": "the agent: `builtin`, `command`, or one of `nestor agents list`",
    "use_hybrid": "ask a model for guidance before each iteration",
    "files": "paths the agent is pointed to",
    "steps": "told to the agent",
    "completion_criteria": "told to the agent; a judge model may say whether they are met, only checks prove it",
    "priority": "`P0` (first) to `P3`",
    "phase": "a number to group tasks by; it changes no order",
    "estimated_iterations": "kept, not used",
    "dependencies": "tasks that must be verified first",
    "checks": "what decides",
    "checks[].name": "its name in verdicts",
    "checks[].timeout_s": "seconds",
    "checks[].run": "a line for `sh`, or a list of arguments",
    "checks[].expect_exit": "the exit code that passes",
    "checks[].env": "added to its environment",
    "test_command": "one more check, named `tests`",
    "workspace": "none: an empty scratch repository",
    "workspace.repo": "path of a local git repository",
    "command": "what backend `command` runs",
    "max_iterations": "none: the setting",
    "budget.usd": "most money, in USD",
    "budget.tokens": "most tokens",
    "budget.seconds": "most time",
    "require_approval": "wait for `approve` before the first iteration",
    "setup": "commands that make the environment, with network",
    "mounts": "folders of this machine the sandbox sees, read-only",
    "guard_only": "the checks pass already and must stay green",
    "include_dirty": "start from uncommitted changes",
    "sandbox.network": "`coordinator`, `none`, or `full`, which always waits for approval",
    "sandbox.memory_bytes": "most memory of the agent",
    "sandbox.processes": "most processes of the agent",
    "context": "kept with the task",
    "protected": "globs the agent may not change; left out: the defaults; `[]`: nothing",
    "ContextRequest.task_id": "the task this is for",
    "RouteRequest.task_id": "the task this is for",
    "RouteRequest.context": "given: the knowledge base is not asked",
    "NewKey.name": "what it is for",
    "approved": "`true` to go on, `false` to reject",
    "note": "kept with the answer",
    "query": "what is asked",
    "limit": "most items",
    "token_budget": "most tokens of context",
    "collections": "only these shelves",
    "iteration": "of that task",
    "mode": "`auto`, `local` or `remote`",
    "max_tokens": "longest answer",
    "project": "name of a collection of files; needed without `items`",
    "path": "name within the project; needed without `items`",
    "content": "the text; needed without `items`",
    "collection": "which shelf",
    "metadata": "kept with it",
    "items": "several documents, instead of the fields of one",
    "scopes": "of `admin`, `submit`, `approve`, `model`, `read`, `metrics`, `service`",
}
_CHAT = """\
Body: OpenAI's, with `model` (`auto`, `local` or `remote`), `messages`, and optionally
`stream`, `max_tokens`, `temperature`, `tools`, …
"""
_KEY = '-H "Authorization: Bearer $(nestor key)"'
_ID = "python3 -c 'import json, sys; print(json.load(sys.stdin)"
_EXAMPLES = {
    "POST /submit": """\
{post} {ralph}/submit -d '{{"task_id": "greet",
  "task": "Write greeting.txt with the word hello in it.",
  "backend": "command", "command": "echo hello > greeting.txt",
  "checks": [{{"run": "grep -qx hello greeting.txt"}}]}}'""",
    "GET /status": "{get} '{ralph}/status?status=running&limit=20'",
    "GET /results": "{get} '{ralph}/results?priority=P2'",
    "GET /tasks": "{get} '{ralph}/tasks?limit=20'",
    "GET /tasks/{task_id}": "{get} {ralph}/tasks/greet",
    "GET /tasks/{task_id}/iterations": "{get} {ralph}/tasks/greet/iterations",
    "GET /tasks/{task_id}/diff": "{get} {ralph}/tasks/greet/diff",
    "GET /tasks/{task_id}/events": "{get} --no-buffer {ralph}/tasks/greet/events",
    "POST /tasks/{task_id}/cancel": """\
{post} {ralph}/submit -d '{{"task_id": "stop-me", "task": "x", "backend": "command",
  "command": "true", "require_approval": true}}'
{post} {ralph}/tasks/stop-me/cancel""",
    "POST /tasks/{task_id}/approve": """\
{post} {ralph}/submit -d '{{"task_id": "ask-me", "task": "x", "backend": "command",
  "command": "true", "require_approval": true}}'
{post} {ralph}/tasks/ask-me/approve -d '{{"approved": true, "note": "go"}}'""",
    "GET /stats ralph": "{get} {ralph}/stats",
    "POST /context": """\
{post} {aidb}/context -d '{{"query": "when do we deploy?", "limit": 3}}'""",
    "POST /search": """\
{post} {aidb}/search -d '{{"query": "deploy", "leg": "bm25"}}'""",
    "POST /documents": """\
{post} {aidb}/documents -d '{{"project": "notes", "path": "deploys.md",
  "content": "We deploy on Tuesdays."}}'""",
    "GET /documents": "{get} {aidb}/documents",
    "GET /documents/{document_id}": """\
document=$({get} {aidb}/documents | {id}["documents"][0]["id"])')
{get} {aidb}/documents/$document""",
    "DELETE /documents/{document_id}": """\
document=$({get} {aidb}/documents | {id}["documents"][0]["id"])')
{get} -X DELETE {aidb}/documents/$document""",
    "POST /reindex": "{post} {aidb}/reindex",
    "POST /route": """\
{post} {coordinator}/route -d '{{"query": "when do we deploy?"}}'""",
    "POST /v1/chat/completions": """\
{post} {coordinator}/v1/chat/completions -d '{{"model": "auto",
  "messages": [{{"role": "user", "content": "Say hello."}}]}}'""",
    "GET /v1/models": "{get} {coordinator}/v1/models",
    "GET /stats coordinator": "{get} {coordinator}/stats",
    "GET /keys": "{get} '{coordinator}/keys?all=true'",
    "POST /keys": """\
{post} {coordinator}/keys -d '{{"name": "ci", "scopes": ["submit", "read"]}}'""",
    "DELETE /keys/{key_id}": """\
key=$({get} {coordinator}/keys | {id}["keys"][0]["id"])')
{get} -X DELETE {coordinator}/keys/$key""",
    "GET /learning/stats": "{get} {learning}/learning/stats",
}
_NEEDS_A_MODEL = {"POST /v1/chat/completions"}


def details(layer: str, call: str, handler: Any) -> list[str]:
    """Lines on one call: a heading, the fields of its body, and an example."""
    text = _EXAMPLES.get(call) or _EXAMPLES.get(f"{call} {layer}")
    if text is None:
        return []
    lines = [f"### {call}\n"]
    body = get_type_hints(handler.fn).get("data")
    if call == "POST /v1/chat/completions":
        lines.append(_CHAT)
    elif body is not None:
        lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
        lines += [*_fields(body, ""), ""]
    model = call in _NEEDS_A_MODEL
    lines.append(f"<!-- {'not run: needs a model of yours' if model else 'run'} -->")
    lines += ["```bash", _filled(text), "```", ""]
    return lines


def _filled(text: str) -> str:
    urls = {layer: f"http://127.0.0.1:{port}" for layer, port in PORTS.items()}
    get = f"curl -sS --fail-with-body {_KEY}"
    return text.format(get=get, post=f"{get} -X POST", id=_ID, **urls)


def _fields(struct: Any, prefix: str) -> Iterator[str]:
    docs = _attribute_docs(struct)
    for field in msgspec.structs.fields(struct):
        name = prefix + field.encode_name
        meaning = _meaning(struct, name) or docs.get(field.name, "").rstrip(".")
        kind = _kind(struct, field.name)
        told = f"| `{name}` | {kind} | {_default(field)} | {_cell(meaning)} |"
        part = _PARTS.get((struct, field.name))
        if part is None:
            yield told
        else:
            yield from _fields(part[1], part[0])


def _meaning(struct: Any, name: str) -> str | None:
    return _MEANING.get(f"{struct.__name__}.{name}") or _MEANING.get(name)


def _attribute_docs(struct: Any) -> dict[str, str]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(struct))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for before, after in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(before, ast.AnnAssign)
            and isinstance(before.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[before.target.id] = str(after.value.value)
    return found


def _kind(struct: Any, name: str) -> str:
    text = inspect.get_annotations(struct)[name]
    shown = text if isinstance(text, str) else str(text)
    if isinstance(text, type):
        shown = text.__name__
    shown = re.sub(r"(<class '|'>|\w+\.)", "", shown)
    shown = shown.replace(" | None", "").replace(" | UnsetType", "")
    return f"`{shown}`".replace("|", "or")


def _default(field: Any) -> str:
    if field.required:
        return "needed"
    value = field.default
    if value is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if value in (None, "", [], {}) or value is msgspec.UNSET:
        return ""
    return f"`{msgspec.json.encode(value).decode()}`"


def _cell(text: str) -> str:
    shown = " ".join(text.replace("``", "`").split())
    return shown.replace("|", "\\|")
