"""Faults in keys and in who may see what."""

from tools.faults.fault import Fault

K = "tests/contracts/test_key_store.py"
KH = "tests/faces/test_keys_http.py"
OW = "tests/faces/test_owners.py"
RO = "tests/faces/test_workspace_roots.py"
FF = "tests/faces/test_foreign_fields.py"
CK = "tests/faces/test_cli_keys.py"
S = "backends/sql/key_store.py"
FAULTS = (
    Fault(
        "a3: the form of a key is not looked at",
        ((S, "if not SECRET.fullmatch(secret):", "if not secret:"),),
        (K, "-k", "a3"),
    ),
    Fault(
        "a3: the form of a key is looked at to its end only",
        ((S, "SECRET.fullmatch(secret)", "SECRET.match(secret)"),),
        (K, "-k", "a3"),
    ),
    Fault(
        "a3: any number of guesses is looked up at once",
        (
            (
                "backends/sql/lookups.py",
                "self._guesses = asyncio.Semaphore(LOOKUPS)",
                "self._guesses = asyncio.Semaphore(9999)",
            ),
        ),
        (K, "-k", "crowd"),
    ),
    Fault(
        "a3: guesses and good keys wait in one lane",
        (
            (
                S,
                "self._lookups.turn(known=digest in self._known)",
                "self._lookups.turn(known=False)",
            ),
        ),
        (K, "-k", "flood"),
    ),
    Fault(
        "a3: a guess pushes out what is known",
        ((S, "self._known.pop(digest, None)", "self._known.clear()"),),
        (K, "-k", "crowd"),
    ),
    Fault(
        "every request of a key looks it up",
        (
            (
                S,
                "return self._cached(digest) or await self._read(digest)",
                "return await self._read(digest)",
            ),
        ),
        (K, "-k", "look_it_up_once"),
    ),
    Fault(
        "the list does not know what this process saw",
        ((S, "for at in (stored, used.get(row.id))", "for at in (stored,)"),),
        (K, "-k", "shown_at_once"),
    ),
    Fault(
        "an older use replaces a later one",
        ((S, "api_key.c.last_used_at < at)", "api_key.c.last_used_at != at)"),),
        (K, "-k", "older_use"),
    ),
    Fault(
        "a clock set back moves the last use back",
        ((S, "at if before is None else max(at, before)", "at"),),
        (K, "-k", "set_back"),
    ),
    Fault(
        "a use that was not written is forgotten",
        (
            (
                S,
                "            self._write_failed = True\n            return\n",
                "            self._write_failed = True\n",
            ),
        ),
        (K, "-k", "said_once"),
    ),
    Fault(
        "a use that cannot be written is said each time",
        ((S, "if not self._write_failed:", "if True:"),),
        (K, "-k", "said_once"),
    ),
    Fault(
        "uses are written only at the end",
        ((S, "if self._writer is None and not self._closed:", "if False:"),),
        (K, "-k", "background or said_once"),
    ),
    Fault(
        "the writer of uses never begins again",
        (
            (
                S,
                "            await self._write_uses()\n        self._writer = None\n",
                "            await self._write_uses()\n",
            ),
        ),
        (K, "-k", "background"),
    ),
    Fault(
        "the store of keys is not closed",
        (("wiring/stack.py", "stack.push_async_callback(keys.close)", "pass"),),
        (KH, "-k", "stop_and_a_start"),
    ),
    Fault(
        "a wrong scope is named by another place",
        ((S, "enumerate(scopes)", "enumerate(sorted(scopes))"),),
        (K, "-k", "by_its_place"),
    ),
    Fault(
        "a key's name may hold escapes",
        ((S, "if found := _HIDES.search(name):", "if found := None:"),),
        (K, "-k", "plain_text"),
    ),
    Fault(
        "keys are listed to who reads",
        (
            (
                "web/coordinator.py",
                '@get("/keys", opt={"scope": "admin"',
                '@get("/keys", opt={"scope": "read"',
            ),
        ),
        (KH, "-k", "no_other_key"),
    ),
    Fault(
        "a6: a new key takes unknown fields",
        (
            (
                "web/coordinator.py",
                "class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True)",
                "class NewKey(msgspec.Struct, frozen=True, kw_only=True)",
            ),
        ),
        (FF, "-k", "keys"),
    ),
    Fault(
        "a6: a budget takes unknown fields",
        (
            (
                "model/task.py",
                "class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True)",
                "class Budget(msgspec.Struct, frozen=True, kw_only=True)",
            ),
        ),
        (FF, "-k", "inside_a_task"),
    ),
    Fault(
        "a6: a task takes unknown fields",
        (
            (
                "model/task.py",
                "class TaskSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True)",
                "class TaskSpec(msgspec.Struct, frozen=True, kw_only=True)",
            ),
        ),
        (FF, "-k", "submit or tasks"),
    ),
    Fault(
        "a6: a document of a batch takes unknown fields",
        (
            (
                "model/knowledge.py",
                "class NewDocument(\n    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True\n)",
                "class NewDocument(\n    msgspec.Struct, frozen=True, kw_only=True\n)",
            ),
        ),
        (FF, "-k", "batch"),
    ),
    Fault(
        "a5: every key with submit sees every task",
        (
            (
                "ralph/access.py",
                "        task.submitted_by == reader.key_id\n        or",
                "        True\n        or",
            ),
        ),
        (OW, "-k", "a5"),
    ),
    Fault(
        "who approves sees what never asked",
        (("ralph/access.py", "and bool(task.approvals)", "and True"),),
        (OW, "-k", "never_asked"),
    ),
    Fault(
        "a5: the task service does not ask who looks",
        (
            (
                "ralph/access.py",
                "if task is None or not (by is None or may_see(task, by)):",
                "if task is None:",
            ),
        ),
        (OW, "-k", "a5"),
    ),
    Fault(
        "a5: the routes of one task do not say who looks",
        (
            (
                "web/ralph.py",
                "return await nestor.ralph.get(task_id, by=request.user)",
                "return await nestor.ralph.get(task_id)",
            ),
        ),
        (OW, "-k", "a5"),
    ),
    Fault(
        "a5: a hidden task says that it is hidden",
        (
            (
                "ralph/access.py",
                "    if task is None or not (by is None or may_see(task, by)):\n",
                '    if task is not None and by is not None and not may_see(task, by):\n        raise Forbidden("not yours")\n    if task is None:\n',
            ),
        ),
        (OW, "-k", "a5"),
    ),
    Fault(
        "a5: a taken id tells whether the body is the same",
        (
            (
                "ralph/service.py",
                "        if there is not None:\n            refuse_hidden(there, principal)\n        else:\n",
                "        if there is None:\n",
            ),
        ),
        (OW, "-k", "says_nothing"),
    ),
    Fault(
        "a5: who loses the race for an id sees the winner's task",
        (
            (
                "ralph/service.py",
                "        else:\n            refuse_hidden(stored, principal)\n",
                "",
            ),
        ),
        (OW, "-k", "loser_learns"),
    ),
    Fault(
        "who sees a task may end it",
        (
            (
                "ralph/access.py",
                "if by is not None and task.submitted_by != by.key_id",
                "if False and task.submitted_by != by.key_id",
            ),
        ),
        (OW, "-k", "ends_none"),
    ),
    Fault(
        "who approves does not see the command",
        (("web/task_view.py", '"command": task.spec.command,', '"command": None,'),),
        (OW, "-k", "what_it_is_about"),
    ),
    Fault(
        "what a check finds in its environment is shown to all",
        (("web/task_view.py", "if not reader.may(ADMIN):", "if False:"),),
        (OW, "-k", "what_it_is_about"),
    ),
    Fault(
        "the key that submitted approves",
        (
            (
                "ralph/approving.py",
                "if task.submitted_by == principal.key_id and not",
                "if False and not",
            ),
        ),
        (OW, "-k", "cannot_approve"),
    ),
    Fault(
        "a test command does not wait for approval",
        (
            (
                "ralph/sealing.py",
                '("checks", spec.all_checks)',
                '("checks", spec.checks)',
            ),
        ),
        (OW, "-k", "cannot_approve"),
    ),
    Fault(
        "more processes do not wait for approval",
        (
            (
                "ralph/sealing.py",
                "limits.processes > SandboxSpec().processes",
                "False",
            ),
        ),
        (OW, "-k", "cannot_approve"),
    ),
    Fault(
        "a root is the beginning of a name",
        (
            (
                "backends/git/borders.py",
                "if not any(real.is_relative_to(root) for root in inside):",
                "if not any(str(real).startswith(str(root)) for root in inside):",
            ),
        ),
        (RO, "-k", "only_an_admin"),
    ),
    Fault(
        "the path of a repository is not followed",
        (
            (
                "backends/git/borders.py",
                "            real = path.resolve()\n",
                "            real = path.absolute()\n",
            ),
            (
                "backends/git/borders.py",
                "path = Path(text).expanduser().resolve()",
                "path = Path(text).expanduser().absolute()",
            ),
        ),
        (RO, "-k", "only_an_admin"),
    ),
    Fault(
        "a path nobody can follow is a bug",
        (
            (
                "backends/git/borders.py",
                "    except (OSError, RuntimeError):  # nobody's home, or links in a circle\n        raise _outside() from None\n    _refuse",
                "    except OSError:\n        raise _outside() from None\n    _refuse",
            ),
        ),
        (RO, "-k", "only_an_admin"),
    ),
    Fault(
        "what git reads for a repository may lie anywhere",
        (
            (
                "backends/git/workspaces.py",
                "await asyncio.to_thread(borders.check, found, inside)",
                "pass",
            ),
        ),
        (RO, "-k", "cannot_lead"),
    ),
    Fault(
        "a pack may be a link out of the roots",
        (
            (
                "backends/git/borders.py",
                "        _refuse(_links(folder), inside)",
                "        pass",
            ),
        ),
        (RO, "-k", "one_pack or pack"),
    ),
    Fault(
        "git's folder may be outside the roots",
        (("backends/git/borders.py", "    _refuse(sorted(folders), inside)\n", ""),),
        (RO, "-k", "cannot_lead"),
    ),
    Fault(
        "alternate objects may be outside the roots",
        (
            (
                "backends/git/borders.py",
                "    _refuse(_alternates(found.objects), inside)\n",
                "",
            ),
        ),
        (RO, "-k", "alternates"),
    ),
    Fault(
        "alternate objects in quotes are not seen",
        (("backends/git/borders.py", "if line.startswith(b'\"'):", "if False:"),),
        (RO, "-k", "quoted"),
    ),
    Fault(
        "a repository that became a link is used",
        (("ralph/preparing.py", "if why := moved(task.spec):", "if why := None:"),),
        (RO, "-k", "became_a_link"),
    ),
    Fault(
        "a repository is not sealed where it lies",
        (
            (
                "ralph/service.py",
                "spec=followed(task.spec),",
                "spec=task.spec,",
            ),
        ),
        (RO, "-k", "link_when_it"),
    ),
    Fault(
        "roots are not resolved at the start",
        (
            (
                "settings.py",
                "return [root.expanduser().resolve() for root in value]",
                "return value",
            ),
        ),
        (RO, "-k", "only_an_admin or leads_nowhere"),
    ),
    Fault(
        "nestor key revoke guesses between two keys",
        (("cli/keys.py", "if len(found) > 1:", "if False:"),),
        (CK, "-k", "several"),
    ),
    Fault(
        "nestor key list shows a revoked key as good",
        (
            (
                "cli/keys.py",
                'if row.get("revoked_at") else "good"',
                'if False else "good"',
            ),
        ),
        (CK, "-k", "list_shows"),
    ),
)
