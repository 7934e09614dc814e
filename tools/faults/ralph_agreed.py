"""Faults in what people agree to: what waits for them, and what of it they are shown."""

from tools.faults.fault import Fault

_SEALING = "tests/unit/test_sealing.py::"
_HOOK = "tests/unit/test_hook_settings.py::"
_STEER = "tests/faces/test_steering.py::"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "ralph agreed: further hosts need nobody's approval",
        (
            (
                "ralph/sealing.py",
                '(limits.hosts, f"the agent wants',
                '(False, f"the agent wants',
            ),
        ),
        (f"{_STEER}test_hosts_of_a_task_file_wait_for_a_person",),
    ),
    Fault(
        "ralph agreed: a yes to the network lets the rest through unseen",
        (
            (
                "ralph/sealing.py",
                'return "; ".join(text for needed, text in asked if needed) or None',
                "return next((text for needed, text in asked if needed), None)",
            ),
        ),
        (
            f"{_SEALING}test_further_hosts_wait_for_approval_even_for_an_admin_and_all_is_named",
        ),
    ),
    Fault(
        "ralph agreed: any text is a host",
        (("ralph/sealing.py", "if not is_host(host):", "if not host:"),),
        (f"{_SEALING}test_a_wrong_field_is_named",),
    ),
    Fault(
        "ralph agreed: the disk has no bounds",
        (
            (
                "ralph/sealing.py",
                "and not _MIN_DISK <= limit.disk_bytes <= _MAX_DISK,",
                "and False,",
            ),
        ),
        (f"{_SEALING}test_a_wrong_field_is_named",),
    ),
    Fault(
        "ralph agreed: a question is cut without a mark",
        (
            (
                "ralph/asking.py",
                'return f"{line[:_SHOWN_CHARS]}… ({len(line) - _SHOWN_CHARS} more characters)"',
                "return line[:_SHOWN_CHARS]",
            ),
        ),
        (f"{_STEER}test_a_person_sees_the_whole_of_what_is_approved",),
    ),
    Fault(
        "ralph agreed: of a command only its beginning is shown",
        (("cli/asked.py", "for row in rows:", "for row in rows[:1]:"),),
        ("tests/faces/test_cli_watch.py", "-k", "to_its_last_line"),
    ),
    Fault(
        "ralph agreed: an answer goes to whatever is asked by then",
        (
            (
                "cli/steering.py",
                'return asked[0].get("id") if asked else action',
                "return action",
            ),
        ),
        ("tests/faces/test_cli_views.py", "-k", "approve_sends"),
    ),
    Fault(
        "ralph agreed: the hook is written through a link of the repository",
        (
            (
                "cli/hook_settings.py",
                'self.real.with_name(f".{self.real.name}.{secrets.token_hex(8)}")',
                'self.real.with_name(f"{self.real.name}.new")',
            ),
            (
                "cli/hook_settings.py",
                "os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW",
                "os.O_CREAT",
            ),
        ),
        (f"{_HOOK}test_a_link_that_waits_beside_the_settings_is_not_written_through",),
    ),
    Fault(
        "ralph agreed: the hook's settings may lie outside of the repository",
        (
            (
                "cli/hook_settings.py",
                "if not real.is_relative_to(top.resolve()):",
                "if not top.exists():",
            ),
        ),
        (f"{_HOOK}test_settings_that_lie_elsewhere_are_refused_with_where",),
    ),
    Fault(
        "ralph agreed: what opens the models stands in a command line",
        (
            (
                "backends/sandbox/unisolated.py",
                "if self.address is not None and _MODELS in value:",
                "if False:",
            ),
        ),
        (
            "tests/contracts/test_sandbox_network.py",
            "-k",
            "never_stands_in_a_command_line",
        ),
    ),
    Fault(
        "ralph agreed: codex is told the models' address on its command line",
        (
            (
                "backends/agents/codex.py",
                '"-m",\n',
                '"-c",\n                f"x={brief.model_base_url}",\n                "-m",\n',
            ),
        ),
        ("tests/contracts/test_agent.py", "-k", "models_address and codex"),
    ),
)
