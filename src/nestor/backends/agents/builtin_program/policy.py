"""What the agent may do by itself, what a person is asked for, and what is never done.

A guard beside the sandbox, not instead of it: it reads the words of a command line, which
a determined author can always hide; what the sandbox does not let through stays closed
either way. It stops the plain attempts before they begin, says why, and leaves a record.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .network import Target, targets, uploads
from .places import Places, names_secret
from .shell import Unreadable
from .steps import SHELLS, Step, steps

_SUBJECT_BYTES = 8 * 1024
"""A person reads it whole, or is not asked."""
_TALK = {"echo", "printf", ":"}
_DETACHERS = {
    *("nohup", "setsid", "disown", "daemonize", "crontab", "at", "batch"),
    *("systemd-run", "start-stop-daemon"),
}
_NO_ROOT = {
    *("sudo", "su", "doas", "pkexec", "mount", "umount", "mkfs", "insmod", "modprobe"),
    *("shutdown", "reboot", "poweroff", "halt", "iptables", "nft", "useradd", "passwd"),
    *("setcap", "chroot", "nsenter", "unshare", "bwrap"),
}
_ABROAD = {
    *("kubectl", "helm", "terraform", "tofu", "pulumi", "aws", "gcloud", "az", "gh"),
    *("glab", "heroku", "flyctl", "vercel", "netlify", "wrangler", "ansible-playbook"),
}
_HARMLESS = {"--version", "version", "--help", "help", "-h", "validate", "fmt"}
_PUBLISH = {
    "npm": {"publish", "unpublish", "deprecate"}, "pnpm": {"publish"},
    "yarn": {"publish", "npm"}, "bun": {"publish"}, "cargo": {"publish", "yank"},
    "gem": {"push", "yank"}, "twine": {"upload"}, "poetry": {"publish"},
    "flit": {"publish"}, "hatch": {"publish"}, "uv": {"publish"}, "pdm": {"publish"},
    "docker": {"push", "login"}, "podman": {"push", "login"}, "mvn": {"deploy"},
    "gradle": {"publish"}, "dotnet": {"nuget"},
}  # fmt: skip
_RUNS_OTHERS = re.compile(
    r"--(?:upload-pack|receive-pack|checkpoint-action|to-command|rsh|exec)=.*"
    r"|--(?:upload-pack|receive-pack|rsh)|ext::.*|.*\bProxyCommand\b.*"
    r"|.*\bLocalCommand\b.*"
)
_GIT_KEYS = re.compile(
    r"(?i)(?:core\.(?:hookspath|fsmonitor|sshcommand|editor|pager|gitproxy|askpass"
    r"|attributesfile)|alias\..*|filter\..*|diff\..*\.(?:command|textconv)"
    r"|merge\..*\.driver|credential\..*|include(?:if)?\..*|protocol\..*|url\..*"
    r"|gpg\..*|sequence\.editor|uploadpack\..*|http\..*proxy)(?:=.*)?"
)
_GIT_VARIABLES = re.compile(
    r"GIT_(?:SSH|SSH_COMMAND|EXTERNAL_DIFF|PROXY_COMMAND|ASKPASS|CONFIG\w*|EXEC_PATH"
    r"|TEMPLATE_DIR|ALLOW_PROTOCOL)=.*|LD_(?:PRELOAD|AUDIT)=.*"
)
_SETUID = re.compile(r"[ugoa]*\+[rwxt]*s[rwxt]*|0?[2467][0-7]{3}")
_CHANGERS = {
    *("rm", "rmdir", "unlink", "shred", "touch", "mkdir", "truncate", "chmod", "chown"),
    *("chgrp", "tee", "mkfifo", "mknod"),
}
_COPIERS = {"cp", "mv", "install", "ln", "rsync"}
_DECODERS = {"base64", "base32", "xxd", "uudecode", "openssl"}
_FORK_BOMB = re.compile(
    r"(\b\w{1,30}|:) {0,9}\(\) {0,9}\{[^}]{0,99}?\1 {0,9}\| {0,9}\1 {0,9}&"
)


@dataclass(frozen=True)
class Question:
    """What a person would be asked."""

    kind: str
    subject: str
    why: str


@dataclass(frozen=True)
class Decision:
    """``refused`` None and no questions: it may be done."""

    refused: str | None = None
    questions: list[Question] = field(default_factory=list)


@dataclass(frozen=True)
class Reach:
    """What this run may talk to, as the harness told it."""

    network: str = "coordinator"
    hosts: frozenset[str] = frozenset()


def judge(line: str, places: Places, reach: Reach) -> Decision:
    """Decide on one command line; everything in it is looked at, and the worst counts."""
    if _FORK_BOMB.search(line):
        return Decision("it would only multiply itself")
    try:
        found = steps(line, str(places.cwd))
    except Unreadable:
        return Decision("it is too long, or too deep, to be looked through")
    why = next(_never(found, places, reach), None)
    return Decision(why) if why else _asked(line, found, places, reach)


def _never(found: list[Step], places: Places, reach: Reach) -> Iterator[str]:
    """Give the reasons why it is not done, whoever would allow it."""
    if why := _download_is_run(found):
        yield why
    for step in found:
        yield from _forbidden(step, places)
    for step in found:
        for target in targets(step):
            if why := _unreachable(target, reach):
                yield why


def _asked(line: str, found: list[Step], places: Places, reach: Reach) -> Decision:
    """Gather what a person is asked; a question about the whole line covers its hosts."""
    reasons = [why for step in found for why in _risky(step, places)]
    hosts: dict[str, str] = {}
    for step in found:
        for target in targets(step):
            if target.local:
                continue
            if not _admitted(target, reach):
                hosts[target.address] = f"{step.name} would talk to {target.host}"
            elif uploads(step):
                reasons.append(f"it sends data to {target.host}")
    if not reasons:
        return Decision(
            questions=[Question("host", host, why) for host, why in hosts.items()]
        )
    if len(line.encode("utf-8", "replace")) > _SUBJECT_BYTES:
        return Decision("a person would have to read it, and it is too long")
    why = "; ".join(dict.fromkeys(reasons))
    return Decision(questions=[Question("command", line, why)])


def _download_is_run(found: list[Step]) -> str | None:
    """Nobody has read what comes so: neither the model nor a person."""
    remote = any(not target.local for step in found for target in targets(step))
    decoded = any(step.name in _DECODERS for step in found)
    runs = [step for step in found if step.runs_text or step.name in SHELLS]
    if remote and any(_takes_foreign_text(step) for step in runs):
        return "it downloads something and runs it unread"
    if decoded and any(_takes_foreign_text(step) and step.runs_text for step in runs):
        return "it runs encoded text that nobody can read"
    return None


def _takes_foreign_text(step: Step) -> bool:
    """Tell whether what it runs may come from another program of the line."""
    fixed = step.name in SHELLS and any(a == "-c" for a in step.args)
    return not fixed or any(step.command.inside)


def _forbidden(step: Step, places: Places) -> Iterator[str]:
    name, args = step.name, step.args
    if name in _NO_ROOT or name.startswith("mkfs."):
        yield f"{name} needs rights that nobody has here"
    if _stays_running(step):
        yield "nothing that a command leaves running survives it"
    if name == "kill" and args[-1:] == ["-1"]:
        yield "it would end every process, this one too"
    if _reads_secrets(step):
        yield "credentials are kept there"
    if any(_GIT_VARIABLES.fullmatch(word) for word in [*step.assigns, *_exports(step)]):
        yield "it makes another program run in its place"
    if any(_RUNS_OTHERS.fullmatch(word) for word in args) and name not in _TALK:
        yield "an option of it runs another program"
    if name == "git":
        yield from _git(args)
    yield from _writes(step, places)
    yield from _removes(step, places)


def _stays_running(step: Step) -> bool:
    return (
        step.name in _DETACHERS
        or (step.name in {"tmux", "screen"} and step.args[:1] != ["-V"])
        or (step.command.background and step.command.last)
    )


def _reads_secrets(step: Step) -> bool:
    if any(target.metadata for target in targets(step)):
        return True
    if step.name in _TALK or _is_message(step):
        return False
    told = [*step.args, *step.command.reads, *step.assigns, step.code]
    return any(names_secret(word) for word in told)


def _is_message(step: Step) -> bool:
    """Tell whether its words are text for people."""
    return step.name == "git" and bool({"commit", "tag"} & set(step.args[:1]))


def _exports(step: Step) -> list[str]:
    return step.args if step.name in {"export", "declare", "env"} else []


def _git(args: list[str]) -> Iterator[str]:
    for at, arg in enumerate(args):
        given = args[at + 1] if at + 1 < len(args) else ""
        if arg in {"-c", "--config", "--config-env"} and _GIT_KEYS.fullmatch(given):
            yield "a setting of git runs another program"
    rest = [arg for arg in args if not arg.startswith("-")]
    if rest[:1] == ["config"]:
        reading = {"--get", "--list", "-l", "--get-all", "get", "list"} & set(args)
        if not reading and any(_GIT_KEYS.fullmatch(arg) for arg in rest[1:]):
            yield "a setting of git runs another program"
        if {"--edit", "-e"} & set(args):
            yield "there is nobody to edit"


def _writes(step: Step, places: Places) -> Iterator[str]:
    """Give what cannot work or does harm, told from the paths that would change."""
    for path in _written(step):
        if places.outside(path, step.cwd):
            yield f"{path[:100]} is outside the working folder"
        if places.is_git_code(path, step.cwd):
            yield "git's hooks and settings are not changed"
    if step.name in {"chmod", "install"} and any(
        _SETUID.fullmatch(part)
        for arg in step.args
        for part in arg.removeprefix("--mode=").removeprefix("-m").split(",")
    ):
        yield "set-user-id files are not made"


def _removes(step: Step, places: Places) -> Iterator[str]:
    if step.name == "rm" and any(
        places.in_git(path, step.cwd) for path in _paths(step.args)
    ):
        yield "git's own files are not removed"
    if step.name == "find" and {"-delete", "rm"} & set(step.args):
        for path in _paths(step.args[:1]):
            if places.outside(path, step.cwd) or places.in_git(path, step.cwd):
                yield f"{path[:100]} is outside the working folder"


def _written(step: Step) -> list[str]:
    """Return the paths that a step would change."""
    found = list(step.command.writes)
    name, args = step.name, step.args
    if name in _CHANGERS:
        paths = _paths(args)
        found += paths[1:] if name in {"chmod", "chown", "chgrp"} else paths
    elif name in _COPIERS:
        into = [args[i + 1] for i, a in enumerate(args[:-1]) if a == "-t"]
        into += [a.partition("=")[2] for a in args if a.startswith("--target-dir")]
        paths = [p for p in _paths(args) if ":" not in p]
        found += into or paths[-1:] * (len(paths) > 1)
        found += paths[:-1] if name == "mv" else []
    elif name == "dd":
        found += [a[3:] for a in args if a.startswith("of=")]
    elif name in {"sed", "perl"} and any(a.startswith("-i") for a in args):
        found += [p for p in _paths(args) if "/" in p and not p.startswith("s/")]
    elif name in {"curl", "wget"}:
        options = {"-o", "--output", "-O", "--output-document", "-P"}
        outputs = [args[i + 1] for i, a in enumerate(args[:-1]) if a in options]
        found += [path for path in outputs if "://" not in path and path != "-"]
    return found


def _paths(args: list[str]) -> list[str]:
    if "--" in args:
        return args[args.index("--") + 1 :]
    return [arg for arg in args if not arg.startswith("-")]


def _risky(step: Step, places: Places) -> Iterator[str]:
    """What a person may want, but did not ask for."""
    name, args = step.name, step.args
    if name == "git" and "push" in args:
        yield "it pushes to another repository"
    if _PUBLISH.get(name, set()) & set(args[:2]) or (
        name.startswith("python") and {"twine", "upload"} <= set(args)
    ):
        yield "it publishes"
    if name in _ABROAD and not (set(args) & _HARMLESS or not args):
        yield f"{name} acts on systems beyond this machine"
    if name == "rm" and any(_recursive(arg) for arg in args):
        for path in _paths(args):
            if places.is_whole(path, step.cwd):
                yield "it removes the whole working folder"


def _recursive(arg: str) -> bool:
    return arg == "--recursive" or bool(re.fullmatch(r"-[a-zA-Z]*[rR][a-zA-Z]*", arg))


def _admitted(target: Target, reach: Reach) -> bool:
    return reach.network == "full" or target.address in reach.hosts


def _unreachable(target: Target, reach: Reach) -> str | None:
    """Say why asking a person would be of no use; None: it would, or need not be."""
    if target.local or _admitted(target, reach):
        return None
    if reach.network == "none":
        return "this task has no network"
    if target.scheme not in {"https", "wss", ""}:
        return (
            f"{target.host} cannot be reached: a person can admit a host for HTTPS only"
        )
    return None
