"""Faults in what a task may see and take of the machine: repositories, git, environments."""

from tools.faults.fault import Fault

_WORKSPACE = "tests/contracts/test_workspace.py"
_ENVIRONMENT = "tests/unit/test_environment.py"
_COMMITS = "tests/unit/test_commits.py"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "ralph workspaces: another task's folder is shown to who asks for it",
        (("backends/sandbox/mounts.py", "return not asked_for", "return True"),),
        ("tests/contracts/test_sandbox.py", "-k", "another_task and NoSandbox"),
    ),
    Fault(
        "ralph workspaces: a folder that holds a place of keys is shown",
        (
            (
                "backends/sandbox/mounts.py",
                "if place.is_relative_to(host):",
                "if place == host:",
            ),
        ),
        ("tests/contracts/test_sandbox.py", "-k", "places_of_keys and NoSandbox"),
    ),
    Fault(
        "ralph workspaces: the keys of npm are shown",
        (("backends/sandbox/mounts.py", '".npmrc", ', ""),),
        ("tests/contracts/test_sandbox.py", "-k", "places_of_keys and NoSandbox"),
    ),
    Fault(
        "ralph workspaces: roots are looked at when a task is submitted alone",
        (
            (
                "ralph/preparing.py",
                "inside = None if bound_to is None else [Path(root) for root in bound_to]",
                "inside = None if bound_to is None else [Path('/')]",
            ),
        ),
        ("tests/faces/test_workspace_roots.py", "-k", "after_submit"),
    ),
    Fault(
        "ralph workspaces: a branch is delivered to wherever git leads now",
        (
            (
                "backends/git/workspaces.py",
                "await _opened(record.repo, record.inside),",
                "await _opened(record.repo, None),",
            ),
        ),
        (_WORKSPACE, "-k", "lies_in_its_folders"),
    ),
    Fault(
        "ralph workspaces: an environment is anybody's",
        (("ralph/environment.py", "        submitter,\n", ""),),
        (_ENVIRONMENT, "-k", "one_submitter"),
    ),
    Fault(
        "ralph workspaces: an environment is of every repository",
        (
            (
                "ralph/environment.py",
                '(spec.workspace.repo if spec.workspace else None) or "",',
                '"",',
            ),
        ),
        (_ENVIRONMENT, "-k", "one_submitter"),
    ),
    Fault(
        "ralph workspaces: a command nobody knows reads lock files alone",
        (
            (
                "ralph/lock_files.py",
                "        if files is None:\n            return None\n",
                "        if files is None:\n            continue\n",
            ),
        ),
        (_ENVIRONMENT, "-k", "serves_again"),
    ),
    Fault(
        "ralph workspaces: a program of the tree is taken for pip",
        (("ralph/lock_files.py", r"""r"[\n\r\\`$]|\.\.",""", r"""r"[\n\r\\`$]","""),),
        (_ENVIRONMENT, "-k", "serves_again"),
    ),
    Fault(
        "ralph workspaces: a long word of setup breaks the task",
        (
            (
                "ralph/lock_files.py",
                "except (OSError, ValueError):",
                "except ValueError:",
            ),
            (
                "ralph/environment.py",
                "except OSError as error:",
                "except EOFError as error:",
            ),
        ),
        (_ENVIRONMENT, "-k", "long_word"),
    ),
    Fault(
        "ralph workspaces: what the disk refuses is the backend's fault",
        (
            (
                "ralph/environment.py",
                "except OSError as error:",
                "except EOFError as error:",
            ),
        ),
        (_ENVIRONMENT, "-k", "disk_refuses"),
    ),
    Fault(
        "ralph workspaces: rubble of a setup that failed stays",
        (
            (
                "ralph/environment.py",
                "                await self._workspaces.remove(place)\n                raise\n",
                "                raise\n",
            ),
        ),
        (_ENVIRONMENT, "-k", "leaves_nothing"),
    ),
    Fault(
        "ralph workspaces: environments grow without end",
        (("ralph/environment.py", "await self._make_room()", "pass"),),
        (_ENVIRONMENT, "-k", "longest_ago"),
    ),
    Fault(
        "ralph workspaces: an environment goes while its task runs",
        (("ralph/kept_environments.py", "used.write_text(digest)", "pass"),),
        (_ENVIRONMENT, "-k", "longest_ago"),
    ),
    Fault(
        "ralph workspaces: outputs of ended tasks stay",
        (
            (
                "backends/git/workspaces.py",
                '(folder / "workspace", folder / "runs")',
                '(folder / "workspace",)',
            ),
        ),
        (_WORKSPACE, "-k", "discard_keeps"),
    ),
    Fault(
        "ralph workspaces: a large file is compared line by line",
        (("backends/git/command.py", '"core.bigFileThreshold": "8m",', ""),),
        (_WORKSPACE, "-k", "short_lines"),
    ),
    Fault(
        "ralph workspaces: git takes what memory there is",
        (("backends/git/command.py", "        _limit_memory(process.pid)\n", ""),),
        (_WORKSPACE, "-k", "more_memory"),
    ),
    Fault(
        "ralph workspaces: git reads ignore rules of any size",
        (
            (
                "backends/git/listing.py",
                "status.st_size > RULES_LIMIT_BYTES",
                "status.st_size < 0",
            ),
        ),
        (_WORKSPACE, "-k", "rules_too_large"),
    ),
    Fault(
        "ralph workspaces: a tree has as many files as it likes",
        (
            (
                "backends/git/listing.py",
                "if self.paths < 0 or self.names_bytes < 0:",
                "if self.names_bytes < 0:",
            ),
        ),
        (_WORKSPACE, "-k", "worker_can_hold"),
    ),
    Fault(
        "ralph workspaces: names are as long together as they like",
        (
            (
                "backends/git/listing.py",
                "if self.paths < 0 or self.names_bytes < 0:",
                "if self.paths < 0:",
            ),
        ),
        (_WORKSPACE, "-k", "worker_can_hold"),
    ),
    Fault(
        "ralph workspaces: a killed git blocks the task",
        (
            (
                "backends/git/folders.py",
                '(*history.glob("*.lock"), *history.glob("refs/**/*.lock"))',
                "()",
            ),
        ),
        (_WORKSPACE, "-k", "block_no_step"),
    ),
    Fault(
        "ralph workspaces: git is killed before it can remove its locks",
        (
            (
                "backends/git/command.py",
                "_signal(process, signal.SIGTERM)",
                "_signal(process, signal.SIGKILL)",
            ),
        ),
        (_WORKSPACE, "-k", "not_awaited"),
    ),
    Fault(
        "ralph workspaces: git's advice is told in place of its error",
        (("backends/git/command.py", "(said or lines)[-1]", "lines[-1]"),),
        (_WORKSPACE, "-k", "lock_in_the_users"),
    ),
    Fault(
        "ralph workspaces: a commit known in one repository is known in all",
        (
            (
                "backends/git/commits.py",
                "key = (git.git_dir, trees.checked(commit))",
                "key = (None, trees.checked(commit))",
            ),
        ),
        (_COMMITS, "-k", "says_nothing_of_another"),
    ),
    Fault(
        "ralph workspaces: long names weigh as much as short ones",
        (("backends/git/commits.py", "sum(map(len, paths)) + ", ""),),
        (_COMMITS, "-k", "bounded_by_its_bytes"),
    ),
    Fault(
        "ralph workspaces: what was asked first is forgotten first",
        (("backends/git/commits.py", "self._values.move_to_end(key)", "pass"),),
        (_COMMITS, "-k", "used_last"),
    ),
    Fault(
        "ralph workspaces: one large commit drives out all others",
        (
            (
                "backends/git/commits.py",
                "if key in self._values or size > self._limit:",
                "if key in self._values:",
            ),
        ),
        (_COMMITS, "-k", "drives_nothing_out"),
    ),
    Fault(
        "ralph workspaces: a task that ended is remembered",
        (("backends/git/workspaces.py", "self._commits.forget(", "str("),),
        (_COMMITS, "-k", "is_forgotten"),
    ),
)
