"""Faults in what people do with tasks: attempts, rollback, fork, answers, the audit log."""

from tools.faults.fault import Fault

CONTROL = "tests/system/test_control.py"
KILL = "tests/system/test_control_kill.py"
ANSWERS = "tests/system/test_approving.py"
STEERING = "tests/faces/test_steering.py"
AUDIT = "tests/contracts/test_audit_log.py"
BUDGET = "tests/unit/test_coordinator_budget.py"
CLONES = "tests/contracts/test_workspace.py"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "ralph control: a further attempt has the ids of the one before",
        (
            (
                "ralph/control.py",
                "        attempt=task.attempt + 1,\n",
                "        attempt=task.attempt,\n",
            ),
        ),
        (CONTROL, "-k", "exhausted_task_goes_on"),
    ),
    Fault(
        "ralph control: a spent budget is no reason",
        (("ralph/attempts.py", "used >= limit:", "used > limit * 1000:"),),
        (CONTROL, "-k", "larger_one"),
    ),
    Fault(
        "ralph control: a retry goes on where the tree stood",
        (
            (
                "ralph/control.py",
                "fresh = encoded(at_base(before))",
                "fresh = encoded(before)",
            ),
        ),
        (CONTROL, "-k", "retry_begins"),
    ),
    Fault(
        "ralph control: what is rolled back stays verified",
        (("ralph/control.py", "and iteration != before.n:", "and False:"),),
        (CONTROL, "-k", "verified_no_more"),
    ),
    Fault(
        "ralph control: a rollback moves no branch",
        (
            (
                "ralph/control.py",
                "            if not moves:\n",
                "            if True:\n",
            ),
        ),
        (CONTROL, "-k", "retry_begins"),
    ),
    Fault(
        "ralph control: the branch is moved before the decision is stored",
        (
            (
                "ralph/control.py",
                "            after = await self._store.change(\n                task_id,\n                change,\n                live=[",
                (
                    "            if moves:\n                await self._workspaces.deliver(task_id, point.judged)\n"
                    "            after = await self._store.change(\n                task_id,\n                change,\n                live=["
                ),
            ),
        ),
        (KILL,),
    ),
    Fault(
        "ralph control: a parked task that is cancelled hands nothing over",
        (
            (
                "ralph/control.py",
                "            return await self._left_by_parked(task)\n",
                "            return task\n",
            ),
        ),
        (KILL,),
    ),
    Fault(
        "ralph control: a fork starts where its source stands",
        (
            (
                "ralph/forking.py",
                "carried=encoded(started_anew(point))",
                "carried=encoded(started_anew(before))",
            ),
        ),
        (CONTROL, "-k", "verified_no_more"),
    ),
    Fault(
        "ralph control: a fork is let begin though its source was not",
        (("ralph/forking.py", "if task.approvals or not asked:", "if True:"),),
        (ANSWERS, "-k", "not_let_begin"),
    ),
    Fault(
        "ralph control: a resume lets begin what nobody let begin",
        (
            (
                "ralph/control.py",
                "[one for one in task.asked if one.kind is ApprovalKind.START]:",
                "[]:",
            ),
        ),
        (ANSWERS, "-k", "not_let_begin"),
    ),
    Fault(
        "ralph control: t4: an answer holds for any subject",
        (
            (
                "ralph/approving.py",
                "return one.digest == digest_of(task_id, one.kind, one.subject)",
                'return one.digest != ""',
            ),
        ),
        (ANSWERS, "-k", "t4"),
    ),
    Fault(
        "ralph control: the first of several questions is the one that is meant",
        (("ralph/approving.py", "if len(asked) > 1:", "if False:"),),
        (ANSWERS, "-k", "t4"),
    ),
    Fault(
        "ralph control: a parked task goes on while a question blocks it",
        (("ralph/approving.py", "    if blocking(left):\n", "    if False:\n"),),
        (ANSWERS, "-k", "parked_task_goes_on"),
    ),
    Fault(
        "ralph control: a granted path is not looked at",
        (
            (
                "ralph/approving.py",
                "if why := self._refuses_mount(path):",
                "if (why := self._refuses_mount(path)) and False:",
            ),
        ),
        (ANSWERS, "-k", "grants_what_was_not"),
    ),
    Fault(
        "ralph control: a resume leaves no note",
        (
            (
                "ralph/control.py",
                "audit=[_note(action, task_id, by, **data)],",
                "audit=[],",
            ),
        ),
        (STEERING, "-k", "each_call_says"),
    ),
    Fault(
        "ralph control: the tool that answers needs no scope",
        (
            (
                "web/mcp_ralph.py",
                'user = _user(scope, "approve")',
                'user = _user(scope, "submit") if False else scope["user"]',
            ),
            (
                "ralph/approving.py",
                "    if task.submitted_by == principal.key_id and not",
                "    if False and not",
            ),
        ),
        (STEERING, "-k", "tools"),
    ),
    Fault(
        "ralph control: a raised budget is not read",
        (
            (
                "coordinator/limits.py",
                "        self._tasks.pop(task_id, None)\n",
                "",
            ),
        ),
        (BUDGET, "-k", "a_person_raises"),
    ),
    Fault(
        "ralph control: a budget is read once",
        (("coordinator/limits.py", "_FRESH_S = 1.0", "_FRESH_S = 1e9"),),
        (BUDGET, "-k", "another_process"),
    ),
    Fault(
        "ralph control: an audit entry may be removed",
        (
            (
                "backends/sql/migrations/0005_control.py",
                'for what in ("UPDATE", "DELETE"):',
                'for what in ("UPDATE",):',
            ),
        ),
        (AUDIT, "-k", "refuses_to_change and sqlite"),
    ),
    Fault(
        "ralph control: an audit entry is not bound to the one before",
        (
            (
                "backends/sql/audit_log.py",
                "encode([before, *row.values()])",
                'encode(["", *row.values()])',
            ),
            (
                "backends/sql/audit_log.py",
                'if row["seq"] != count + 1 or',
                "if",
            ),
        ),
        (AUDIT, "-k", "found_out and sqlite"),
    ),
    Fault(
        "ralph control: two processes append at once",
        (
            (
                "backends/sql/audit_log.py",
                "    await database.serialise(connection, _LOCK)\n",
                "",
            ),
        ),
        (AUDIT, "-k", "never_follow and postgresql"),
    ),
    Fault(
        "ralph control: a fork is prepared before its history is there",
        (
            (
                "backends/git/folders.py",
                '    (scratch / "history.git").rename(folder / "history.git")\n',
                "",
            ),
            (
                "backends/git/folders.py",
                '    (scratch / "prepared.json").rename(folder / "prepared.json")\n',
                (
                    '    (scratch / "prepared.json").rename(folder / "prepared.json")\n'
                    '    (scratch / "history.git").rename(folder / "history.git")\n'
                ),
            ),
        ),
        (CLONES, "-k", "died_at_any_rename"),
    ),
)
