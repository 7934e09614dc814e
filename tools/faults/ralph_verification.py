"""Faults in verification: what is sealed, what is flaky, what a judge may say, reports."""

from tools.faults.fault import Fault

FLAKY = "tests/system/test_flaky_checks.py"
JUDGED = "tests/system/test_judged.py"
ANSWER = "tests/unit/test_judge_answer.py"
RUNNERS = "tests/unit/test_runners.py"
SEALING = "tests/unit/test_sealing.py"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "ralph verification: a mount is not sealed",
        (("ralph/sealing.py", '        "mounts": spec.mounts,\n', ""),),
        (SEALING, "-k", "whatever_decides"),
    ),
    Fault(
        "ralph verification: the digest is of the order in which a task is written",
        (
            (
                "ralph/sealing.py",
                'msgspec.json.encode(decides, order="sorted")',
                "msgspec.json.encode(decides)",
            ),
        ),
        (SEALING, "-k", "what_decides_nothing"),
    ),
    Fault(
        "ralph verification: the start does not say what was sealed",
        (("ralph/preparing.py", '"checks_digest": task.checks_digest,', ""),),
        (JUDGED, "-k", "goes_on"),
    ),
    Fault(
        "ralph verification: a failure on the base is believed at once",
        (
            (
                "ralph/flaky.py",
                "return [v.check for v in verdicts if not v.passed and v.telling]",
                "return []",
            ),
        ),
        (FLAKY, "-k", "proves_nothing"),
    ),
    Fault(
        "ralph verification: a pass is believed at once",
        (
            (
                "ralph/flaky.py",
                "    doubted = known.proving | known.flaky\n",
                "    doubted = frozenset[str]()\n",
            ),
        ),
        (FLAKY, "-k", "proves_nothing"),
    ),
    Fault(
        "ralph verification: the agent is blamed for one bad run",
        (
            (
                "ralph/flaky.py",
                "    doubted = known.passed | known.flaky\n",
                "    doubted = frozenset[str]()\n",
            ),
        ),
        (FLAKY, "-k", "nobodys_fault"),
    ),
    Fault(
        "ralph verification: a flaky pass proves the work",
        (
            (
                "ralph/decision.py",
                "if v.passed and v.flaky is not True and",
                "if v.passed and",
            ),
        ),
        ("tests/unit/test_decision.py", "-k", "flaky"),
    ),
    Fault(
        "ralph verification: a flaky check on the base still tells",
        (
            ("ralph/flaky.py", "        telling=False,\n", ""),
            ("ralph/decision.py", "v.telling and v.flaky is not True]", "v.telling]"),
        ),
        (FLAKY, "-k", "proves_nothing"),
    ),
    Fault(
        "ralph verification: one of three is enough",
        (("ralph/flaky.py", "_ENOUGH = 2", "_ENOUGH = 1"),),
        ("tests/unit/test_flaky.py", "-k", "two_of_three"),
    ),
    Fault(
        "ralph verification: further runs may take for ever",
        (
            (
                "ralph/verification.py",
                "flaky.wants_another(done) and flaky.affordable(done, left_s)",
                "flaky.wants_another(done)",
            ),
            (
                "ralph/verification.py",
                "limit = min(check.timeout_s, left_s)",
                "limit = check.timeout_s",
            ),
        ),
        (FLAKY, "-k", "may_cost"),
    ),
    Fault(
        "ralph verification: the agent is not told what is flaky",
        (
            (
                "ralph/turns.py",
                "for verdict in seen if verdict.flaky}",
                "for verdict in []}",
            ),
        ),
        (FLAKY, "-k", "nobodys_fault"),
    ),
    Fault(
        "ralph verification: the judge is believed without a quote",
        (("ralph/judge_answer.py", "    if met and not found:", "    if False:"),),
        (ANSWER, "-k", "without_found"),
    ),
    Fault(
        "ralph verification: a quote may stand in any file",
        (
            (
                "ralph/judging.py",
                "        return text is not None and holds(text, quote)",
                "        return True",
            ),
        ),
        (JUDGED, "-k", "cannot_show"),
    ),
    Fault(
        "ralph verification: a brace is evidence",
        (("ralph/judge_answer.py", "_MIN_WORD_CHARS = 3", "_MIN_WORD_CHARS = 0"),),
        (ANSWER, "-k", "without_found"),
    ),
    Fault(
        "ralph verification: the line around what is judged is known",
        (
            (
                "ralph/judge_answer.py",
                'hashlib.sha256(material.encode("utf-8", "replace"))',
                'hashlib.sha256(b"")',
            ),
        ),
        (ANSWER, "-k", "cannot_hold"),
    ),
    Fault(
        "ralph verification: an answer may leave criteria out",
        (
            (
                "ralph/judge_answer.py",
                "if len(answer.criteria) != len(said) or set(said) != set(range(1, count + 1)):",
                "if not said:",
            ),
        ),
        (ANSWER, "-k", "no_answer"),
    ),
    Fault(
        "ralph verification: an answer of no use is not asked for again",
        (("ralph/judging.py", "_ANSWERS = 2", "_ANSWERS = 1"),),
        (JUDGED, "-k", "cannot_show"),
    ),
    Fault(
        "ralph verification: the same tree is judged again",
        (
            (
                "ralph/judging.py",
                "if earlier.n != n and earlier.tree == judged.tree and known:",
                "if False:",
            ),
        ),
        (JUDGED, "-k", "cannot_show"),
    ),
    Fault(
        "ralph verification: doing nothing is judged",
        (
            (
                "ralph/judging.py",
                "if judged.tree == turns.prepared.base_tree or not all(",
                "if not all(",
            ),
        ),
        (JUDGED, "-k", "cannot_show"),
    ),
    Fault(
        "ralph verification: who says nothing is satisfied",
        (
            (
                "ralph/decision.py",
                "not said or any(one.met is None for one in said)",
                "not said",
            ),
        ),
        ("tests/unit/test_decision.py", "-k", "judge"),
    ),
    Fault(
        "ralph verification: what a judge likes is verified",
        (
            (
                "ralph/decision.py",
                "Decision(status=TaskStatus.JUDGED, reason=Reason.JUDGE_PASSED)",
                "Decision(status=TaskStatus.VERIFIED, reason=Reason.JUDGE_PASSED)",
            ),
        ),
        ("tests/unit/test_decision.py",),
    ),
    Fault(
        "ralph verification: what the judge cost is not counted",
        (
            (
                "ralph/judging.py",
                "    if judged.total is None or judged.iteration is None:",
                "    if True:",
            ),
        ),
        (JUDGED, "-k", "goes_on"),
    ),
    Fault(
        "ralph verification: a forged summary is added up",
        (("ralph/verdicts.py", "    if report.parts > most:", "    if False:"),),
        (RUNNERS, "-k", "one_too_many"),
    ),
    Fault(
        "ralph verification: a file of node that ended early is a test that passed",
        (
            (
                "ralph/reports.py",
                "    ran = sum(tests) - skipped - len(files)",
                "    ran = sum(tests) - skipped",
            ),
        ),
        (RUNNERS, "-k", "node"),
    ),
    Fault(
        "ralph verification: a file of node that was never read need not be later",
        (
            (
                "ralph/verdicts.py",
                "    if ended := set(before.unread)",
                "    if ended := set()",
            ),
        ),
        (RUNNERS, "-k", "node"),
    ),
    Fault(
        "ralph verification: results that tested code prints are results",
        (
            (
                "ralph/reports.py",
                '    if len(results) > sum(tests) + sum(totals("suites")):',
                "    if False:",
            ),
        ),
        (RUNNERS, "-k", "node"),
    ),
    Fault(
        "ralph verification: go may end in the middle of a test",
        (("ralph/reports.py", 'how == "ok" and begun - ended.keys()', "False"),),
        (RUNNERS, "-k", "go"),
    ),
    Fault(
        "ralph verification: go is not told to name its tests",
        (("ralph/verification.py", "                **_named_by_go(check),\n", ""),),
        ("tests/system/test_tampering.py", "-k", "agents_git"),
    ),
    Fault(
        "ralph verification: cargo need not account for all it began",
        (
            (
                "ralph/reports.py",
                "if not ends or sum(int(n or 0) for n in ends[-1]) != int(begun):",
                "if not ends:\n            continue\n        if False:",
            ),
        ),
        (RUNNERS, "-k", "own"),
    ),
    Fault(
        "ralph verification: what a failing test prints is cargo's result",
        (
            (
                "ralph/reports.py",
                "sum(int(n or 0) for n in ends[-1]) != int(begun)",
                "sum(int(n or 0) for n in ends[0]) != int(begun)",
            ),
        ),
        (RUNNERS, "-k", "cargo"),
    ),
    Fault(
        "ralph verification: the verdicts before any work are not to be had",
        (
            (
                "cli/verdicts.py",
                '    if base := recorded.get("base"):',
                "    if base := []:",
            ),
        ),
        ("tests/faces/test_cli_verdicts.py",),
    ),
    Fault(
        "ralph verification: any name is a judge",
        (("wiring/stack.py", "    _refuse_judge(settings)\n", ""),),
        (JUDGED, "-k", "no_judge"),
    ),
)
