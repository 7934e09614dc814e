"""Faults in how the end of a command is read: cut short, at a limit, hostile, with secrets."""

from tools.faults.fault import Fault

CUT = "tests/system/test_cut_short.py"
PROTECTION = "tests/unit/test_protection.py"
PLANTED = "tests/system/test_planted_configuration.py"
SHOWN = "tests/unit/test_shown.py"
REPORTS = "tests/unit/test_reports.py"
SERVICE = "tests/system/test_task_service.py"
WITHOUT = "tests/system/test_checks_without_report.py"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "ralph ends: a check that was cut short has failed",
        (("ralph/verification.py", "if not seen.result.cancelled:", "if True:"),),
        (CUT, "-k", "from_its_start"),
    ),
    Fault(
        "ralph ends: an agent that was cut short has failed",
        (("ralph/acting.py", "    if result.cancelled:", "    if False:"),),
        (CUT, "-k", "from_its_start"),
    ),
    Fault(
        "ralph ends: a setup that was cut short has failed",
        (
            (
                "ralph/environment.py",
                "            if result.cancelled:",
                "            if False:",
            ),
        ),
        (CUT, "-k", "from_its_start"),
    ),
    Fault(
        "ralph ends: a setup goes on in the checkout where it was cut short",
        (
            (
                "ralph/environment.py",
                "checkout(task_id, base, tree)\n            except",
                "files(task_id, base)\n            except",
            ),
        ),
        (CUT, "-k", "from_its_start"),
    ),
    Fault(
        "ralph ends: who was cut short twice is given up",
        (("ralph/cut_short.py", "TRIES = 3", "TRIES = 2"),),
        (CUT,),
    ),
    Fault(
        "ralph ends: the limit that ended a check is not named",
        (
            (
                "ralph/verdicts.py",
                "    elif result.limit is not None:",
                "    elif False:",
            ),
        ),
        (CUT, "-k", "limits"),
    ),
    Fault(
        "ralph ends: a check has not the disk of its task",
        (
            (
                "ralph/verification.py",
                "            disk_bytes=spec.sandbox.disk_bytes,\n",
                "",
            ),
        ),
        (CUT, "-k", "limits"),
    ),
    Fault(
        "ralph ends: npm's own configuration is the agent's",
        (("ralph/protection.py", '".npmrc", ', ""),),
        (PLANTED, "-k", "npm"),
    ),
    Fault(
        "ralph ends: without tests a new build file stands before the one of the base",
        (
            (
                "ralph/protection.py",
                "if tests or any(map(_anywhere(tool).search, base_files))",
                "if tests",
            ),
        ),
        (PLANTED, "-k", "make"),
    ),
    Fault(
        "ralph ends: a linter is told to look away",
        (
            (
                "ralph/protection.py",
                "_anywhere([*RUNNER_FILES, *build_files, *_linters(spec)])",
                "_anywhere([*RUNNER_FILES, *build_files])",
            ),
        ),
        (PLANTED, "-k", "linter"),
    ),
    Fault(
        "ralph ends: a link for a folder of configuration is the agent's",
        (
            (
                "ralph/protection.py",
                'found += ["/".join(names[:n]) + r"\\Z" for n in range(1, len(names))]',
                "pass",
            ),
        ),
        (PROTECTION, "-k", "also_when_it_is_new"),
    ),
    Fault(
        "ralph ends: output is cut before it is redacted",
        (("ralph/shown.py", "text[-(most + _MORE_CHARS) :]", "text[-most:]"),),
        (SHOWN,),
    ),
    Fault(
        "ralph ends: a head is cut before it is redacted",
        (
            (
                "ralph/shown.py",
                "redact(text[: most + _MORE_CHARS])",
                "redact(text[:most])",
            ),
        ),
        (SHOWN,),
    ),
    Fault(
        "ralph ends: what is left of a key is shown",
        (
            (
                "ralph/shown.py",
                "        window = _whole_lines(window)\n",
                "        pass\n",
            ),
        ),
        (SHOWN,),
    ),
    Fault(
        "ralph ends: aider's output is searched anew for each error",
        (
            (
                "backends/agents/aider.py",
                "        last = deque(",
                """
        [_AGAIN.search(output[e.end() :]) for e in _ERROR.finditer(output)]
        last = deque(""",
            ),
        ),
        ("tests/contracts/test_agent_ends.py", "-k", "one_pass and aider"),
    ),
    Fault(
        "ralph ends: what an agent printed is read on the event loop",
        (
            (
                "ralph/acting.py",
                "await asyncio.to_thread(p.backends[task.backend].read, result)",
                "p.backends[task.backend].read(result)",
            ),
        ),
        (SERVICE, "-k", "beside_the_event_loop"),
    ),
    Fault(
        "ralph ends: a report may have any number of elements",
        (("ralph/junit.py", "self._elements > _MAX_ELEMENTS or ", ""),),
        (REPORTS, "-k", "takes_no_room"),
    ),
    Fault(
        "ralph ends: a report may define entities",
        (
            (
                "ralph/junit.py",
                '        raise ValueError(f"{name}',
                '        print(f"{name}',
            ),
        ),
        (REPORTS, "-k", "hostile"),
    ),
    Fault(
        "ralph ends: a report is stored with all its names",
        (("ralph/reports.py", "_MAX_NAMES = 20_000", "_MAX_NAMES = 20_000_000"),),
        (REPORTS, "-k", "large"),
    ),
    Fault(
        "ralph ends: a number of any length is one",
        (("ralph/reports.py", r'r"^Ran (\d{1,9}) tests', r'r"^Ran (\d+) tests'),),
        (REPORTS, "-k", "many_digits"),
    ),
    Fault(
        "ralph ends: a fault throws away what was done before it",
        (
            (
                "ralph/recording.py",
                "        branch = await _rescued(p, task)\n",
                "        pass\n",
            ),
        ),
        (SERVICE, "-k", "next_one_breaks"),
    ),
    Fault(
        "ralph ends: a task whose branch cannot be delivered never ends",
        (
            (
                "ralph/recording.py",
                "    except Exception as fault:",
                "    except WorkspaceError as fault:",
            ),
        ),
        (SERVICE, "-k", "cannot_be_delivered"),
    ),
    Fault(
        "ralph ends: a check with a report of its own is run again and again",
        (
            (
                "ralph/verdicts.py",
                "    if report is None and asks_for_its_own(check.run):",
                "    if False:",
            ),
        ),
        (WITHOUT, "-k", "no_iteration"),
    ),
    Fault(
        "ralph ends: who names pytest runs it",
        (
            (
                "ralph/reports.py",
                "part for part in _COMMANDS.split(line) if not _RUNS_NONE.match(part)",
                "_COMMANDS.split(line)",
            ),
        ),
        (REPORTS, "-k", "command_line"),
    ),
)
