"""Faults in the task loop: verified or not, nothing lost, nothing twice."""

from tools.faults.fault import Fault

CHEATS = "tests/system/test_verified_or_not.py"
KILLS = "tests/system/test_loop_kill.py"

FAULTS = (
    Fault("no fault: the control", (), (CHEATS, "-k", "honest or deletes")),
    Fault(
        "verified without a check that failed before",
        (("ralph/decision.py", "(told_apart or facts.guard_only)", "True"),),
        (CHEATS, "-k", "idling"),
    ),
    Fault(
        "verified with an unchanged tree",
        (("ralph/decision.py", "if changed and (", "if ("),),
        ("tests/unit/test_decision.py",),
    ),
    Fault(
        "the claim of the agent is believed",
        (
            (
                "ralph/decision.py",
                "if not verdict.passed]\n    if failing",
                "if not verdict.passed and not turn.claimed_done]\n    if failing",
            ),
        ),
        (CHEATS, "-k", "is_wrong or wrong"),
    ),
    Fault(
        "protected paths are not restored",
        (("ralph/checking.py", "protected=is_protected", "protected=lambda _: False"),),
        (CHEATS, "-k", "edits or deletes or skips or empties"),
    ),
    Fault(
        "the agent's own tree is delivered",
        (
            (
                "ralph/turns.py",
                "(checked.judged or snapshot).commit",
                "snapshot.commit",
            ),
        ),
        (CHEATS, "-k", "delivered_is_what"),
    ),
    Fault(
        "tests are counted, not named",
        (("ralph/verdicts.py", "elif by_name and (gone", "elif False and (gone"),),
        (CHEATS, "-k", "pads"),
    ),
    Fault(
        "more tests may be skipped than on the base",
        (
            (
                "ralph/verdicts.py",
                "if report.skipped > before.skipped:",
                "if False:",
            ),
        ),
        (CHEATS, "-k", "unnamed"),
    ),
    Fault(
        "a check without tests on the base may prove something",
        (("ralph/decision.py", "not v.passed and v.telling", "not v.passed"),),
        (CHEATS, "-k", "alone_wrote"),
    ),
    Fault(
        "an environment belongs to its commands alone",
        (
            (
                "ralph/environment.py",
                "tree_id\n        if files is None",
                "''\n        if files is None",
            ),
        ),
        ("tests/unit/test_environment.py", "-k", "serves_again"),
    ),
    Fault(
        "the Makefile of a check is the agent's",
        (
            (
                "ralph/protection.py",
                '("Makefile", "makefile"',
                '("xMakefile", "makefile"',
            ),
        ),
        (CHEATS, "-k", "Makefile"),
    ),
    Fault(
        "a branch of somebody else is moved",
        (
            (
                "backends/git/source.py",
                "    if not ours and not",
                "    if False and not",
            ),
        ),
        ("tests/contracts/test_workspace.py", "-k", "somebody_else"),
    ),
    Fault(
        "a runner may end without its report",
        (
            (
                "ralph/verdicts.py",
                "        if runner is None and before is None:",
                "        if True:",
            ),
        ),
        (CHEATS, "-k", "ends"),
    ),
    Fault(
        "tested code may rewrite the tests while they run",
        (
            (
                "ralph/verification.py",
                "                    (p for p, digest in guarded.items() if digest[:5] != _LINK),",
                "                    (),",
            ),
            ("ralph/verdicts.py", "        if touched:", "        if False:"),
        ),
        (CHEATS, "-k", "rewrite"),
    ),
    Fault(
        "a new runner configuration is believed",
        (
            (
                "ralph/protection.py",
                "_anywhere([*RUNNER_FILES, *build_files, *_linters(spec)])",
                "_anywhere([*build_files, *_linters(spec)])",
            ),
        ),
        (CHEATS, "-k", "replaces or sitecustomize"),
    ),
    Fault(
        "a check that cannot start is only a failing one",
        (
            (
                "ralph/verdicts.py",
                "if result.exit_code in _NOT_FOUND or _is_absent(check, result.output):",
                "if False:",
            ),
        ),
        (CHEATS, "-k", "cannot_start"),
    ),
    Fault(
        "the iteration cap is a success",
        (
            (
                "ralph/decision.py",
                "status=TaskStatus.EXHAUSTED, reason=stop",
                "status=TaskStatus.VERIFIED, reason=stop",
            ),
        ),
        (CHEATS, "-k", "does_nothing or nothing"),
    ),
    Fault(
        "a half-done edit survives a crash",
        (
            (
                "ralph/acting.py",
                "    if run_dir.exists():\n",
                "    if False:\n",
            ),
        ),
        (KILLS, "-k", "after-agent-1"),
    ),
    Fault(
        "the row and its enqueue are two commits",
        (
            (
                "backends/sql/task_store.py",
                "            if enqueue:\n                task = await self._hand_over(connection",
                (
                    "        if enqueue:\n            async with self._database.write() as"
                    " connection:\n                task = await self._hand_over(connection"
                ),
            ),
        ),
        (KILLS, "-k", "between"),
    ),
    Fault(
        "outbox: the log is not asked what it has",
        (
            (
                "ralph/outbox.py",
                "if self._unsure else frozenset()",
                "if False else frozenset()",
            ),
        ),
        ("tests/unit/test_outbox.py",),
    ),
    Fault(
        "outbox: what is only in memory counts as sent",
        (("ralph/outbox.py", "if not self._log.buffered:", "if True:"),),
        ("tests/unit/test_outbox.py",),
    ),
    Fault(
        "cancelled is said at once",
        (
            (
                "ralph/parts.py",
                "        running.cancel()\n        await asyncio.wait({running})\n",
                "",
            ),
            (
                "ralph/parts.py",
                "        await asyncio.gather(running, watch, return_exceptions=True)\n",
                "",
            ),
        ),
        ("tests/unit/test_cancellation.py",),
    ),
    Fault(
        "loop: only errors count as the same twice",
        (
            (
                "ralph/decision.py",
                "    *(Outcome.TIMEOUT, Outcome.BLOCKED),\n",
                "",
            ),
        ),
        ("tests/unit/test_decision.py", "-k", "same_twice"),
    ),
    Fault(
        "loop: a marker makes each block another",
        (("ralph/verification.py", r"nestor-blocked-\S+|", ""),),
        ("tests/system/test_verified_or_not.py", "-k", "twice_alike"),
    ),
    Fault(
        "loop: to say nothing twice is to say the same",
        (
            (
                "ralph/turns.py",
                "silent or agent.unanswered",
                "agent.unanswered",
            ),
        ),
        ("tests/system/test_verified_or_not.py", "-k", "says_nothing_before"),
    ),
)
