"""Whether a test runner finished, and which tests it ran.

An exit code alone can lie: ``os._exit(0)`` in the tested code makes a failing pytest end
with 0. So for known runners a pass also needs the report that a runner writes at its end,
and in it the tests that ran on the base. The tested code shares the runner's process and
could forge that report; see docs/explanation/verification.md for what this cannot prove.
"""

import hashlib
import re
from collections.abc import Iterable

import msgspec

from nestor.ralph.junit import read_junit

JUNIT_NAME = "report.xml"
_MAX_NAMES = 20_000
"""Of tests and their modules, in what is stored."""

_RUNNERS = {
    "pytest": re.compile(r"(?:^|[\s/])(?:pytest|py\.test)(?:$|[\s;&|])"),
    "unittest": re.compile(r"(?:^|\s)unittest(?:$|[\s;&|.])"),
    "node": re.compile(r"(?:^|[\s/])node(?:\s\S+)*\s--test"),
    "go": re.compile(r"(?:^|[\s/])go\s+test(?:$|\s)"),
    "cargo": re.compile(r"(?:^|[\s/])cargo\s+(?:\S+\s+)*test(?:$|\s)"),
}
_COMMANDS = re.compile(r"([;&|\n]+)")
_RUNS_NONE = re.compile(
    r"[\s!(]*(?:[ef]?grep|rg|test|\[|cat|ls|echo|printf|which|command -v"
    r"|(?:python\S* -m )?pip3?)\s"
)
_OWN_JUNIT = re.compile(r"\s--junit-?xml\b")
_UNITTEST_LINE = re.compile(
    r"^(\w+) \(([\w.]+)\)(?:\n[^\n]*)? \.\.\. (.*)$", re.MULTILINE
)
_UNREADABLE = "unittest.loader._FailedTest"
_NODE_FILE = re.compile(r"\S+\.[cm]?[jt]sx?")
"""Node names a file so that printed no test: it could not be read, or ended early."""
_NODE_TAP = re.compile(
    r"^((?:    )*)(?:# Subtest: (?P<begin>.*)"
    r"|(?P<how>not ok|ok) \d+ - (?P<name>.*?)(?P<left> # (?:SKIP|TODO)\b.*)?)$",
    re.MULTILINE,
)
_NODE_SPEC = re.compile(
    r"^((?:  )*)(?:▶ (?P<begin>.*?)"
    r"|(?P<how>[✔✖﹣⚠]) (?P<name>.*?) \(\d[\d.]*ms\)(?P<left> # (?:SKIP|TODO)\b.*)?)$",
    re.MULTILINE,
)
_GO_TEST = re.compile(r"--- (PASS|FAIL|SKIP): (\S+) \(\d")
_GO_PACKAGE = re.compile(r"(ok|FAIL)[ \t]+(\S+)(?:[ \t]+(.*))?")
_CARGO_END = re.compile(
    r"^test result: \w+\. (\d{1,9}) passed; (\d{1,9}) failed(?:; (\d{1,9}) ignored)?"
    r"(?:; (\d{1,9}) measured)?",
    re.MULTILINE,
)
_CARGO_TEST = re.compile(r"^test (.+) \.\.\. (ok|FAILED|ignored)\b", re.MULTILINE)


class TestReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a complete report says. ``ran`` does not count skipped tests.

    ``ids``: short digests of the tests that ran and of the modules they are in; None
    where the runner names no tests. ``needs``: what a later report must have among its
    ``ids`` (the tests that ran, the modules that could not be read). ``unread``: files
    that could not be read, ``silent``: files that ended well without a test, both for
    runners that say so of files. ``parts``: how many summaries were printed.
    """

    __test__ = False  # for pytest, which collects what is called Test…

    ran: int
    skipped: int = 0
    ids: list[str] | None = None
    needs: list[str] = []
    unread: list[str] = []
    silent: list[str] = []
    parts: int = 1

    @property
    def tells(self) -> bool:
        """Whether a test was there at all, be it one that could not be read."""
        return bool(self.ran or self.needs or self.unread)


def runner_of(run: str | list[str]) -> str | None:
    """Name the test runner of a command line; None for one we do not know."""
    line = _line(run)
    return next((name for name, seen in _RUNNERS.items() if seen.search(line)), None)


def runs_of(run: str | list[str]) -> int:
    """Count how often a command line names its runner."""
    line = _line(run)
    runner = runner_of(run)
    return len(_RUNNERS[runner].findall(line)) if runner else 0


def asks_for_its_own(run: str | list[str]) -> bool:
    """Tell whether a line has pytest write its report elsewhere than Nestor asks it to."""
    return runner_of(run) == "pytest" and _OWN_JUNIT.search(_line(run)) is not None


def _line(run: str | list[str]) -> str:
    """Return the command line without the commands that only name a runner."""
    line = run if isinstance(run, str) else " ".join(run)
    return "".join(part for part in _COMMANDS.split(line) if not _RUNS_NONE.match(part))


def read_report(
    runner: str | None, junit: bytes | None, output: str, *, named: bool = True
) -> TestReport | None:
    """Read the report; None when there is no complete one.

    ``junit`` is the file that pytest writes as its last act. ``named``: the runner was
    told to name its tests.
    """
    if junit is not None:
        return _junit(junit)
    match runner:
        case "unittest":
            return _unittest(output)
        case "node":
            return _node(output)
        case "go":
            return _go(output, named=named)
        case "cargo":
            return _cargo(output)
    return None


def _junit(data: bytes) -> TestReport | None:
    found = read_junit(data)
    if found is None:
        return None
    return _report(found.ran, found.unreadable, skipped=found.skipped)


def _unittest(output: str) -> TestReport | None:
    totals = re.findall(r"^Ran (\d{1,9}) tests? in ", output, re.MULTILINE)
    ends = re.findall(
        r"^(?:OK|FAILED|NO TESTS RAN)(?: \(([^)]*)\))?\s*$", output, re.MULTILINE
    )
    if not totals or len(ends) < len(totals):
        return None
    total = sum(int(text) for text in totals)
    skipped = sum(
        int(text) for end in ends for text in re.findall(r"skipped=(\d{1,9})", end)
    )
    named = _UNITTEST_LINE.findall(output)
    if len(named) < total:  # without -v no test is named
        return TestReport(ran=total - skipped, skipped=skipped, parts=len(totals))
    unreadable = [name for name, where, _ in named if where.startswith(_UNREADABLE)]
    ran = [
        (where.removesuffix(f".{name}"), name)
        for name, where, how in named
        if not where.startswith(_UNREADABLE) and not how.startswith("skipped")
    ]
    return _report(ran, unreadable, skipped=skipped, parts=len(totals))


def _report(
    ran: list[tuple[str, str]],
    unreadable: list[str],
    *,
    skipped: int,
    parts: int = 1,
) -> TestReport:
    tests = {_id("test", module, _stable(name)) for module, name in ran}
    modules = {
        _id("module", ".".join(parts[:count]))
        for module in {module for module, _ in ran}
        for parts in [module.split(".")]
        for count in range(1, len(parts) + 1)
    }
    needs = tests | {_id("module", module) for module in unreadable}
    return TestReport(
        ran=len(ran),
        skipped=skipped,
        ids=sorted(tests | modules),
        needs=sorted(needs),
        parts=parts,
    )


def _id(*parts: str) -> str:
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=6).hexdigest()


def _stable(name: str) -> str:
    """A parameter's address differs from run to run."""
    return re.sub(r"0x[0-9a-f]+", "0x", name)


def kept(report: TestReport) -> TestReport:
    """Return what is worth keeping of a report that later ones are compared with.

    It is stored with every iteration. Of very many tests no names are kept, so that later
    reports are compared with it by number.
    """
    named = (report.ids or [], report.needs, report.unread, report.silent)
    if all(len(names) <= _MAX_NAMES for names in named):
        return report
    return msgspec.structs.replace(
        report,
        ids=None,
        needs=report.needs[:1],
        unread=report.unread[:_MAX_NAMES],
        silent=report.silent[:_MAX_NAMES],
    )


def missing(needs: Iterable[str], report: TestReport) -> int:
    """Count the tests (or unreadable modules) of the base that the report has not."""
    return len(set(needs) - set(report.ids or ()))


def _node(output: str) -> TestReport | None:
    def totals(word: str) -> list[int]:
        found = re.findall(rf"^(?:#|ℹ) {word} (\d{{1,9}})\s*$", output, re.MULTILINE)  # noqa: RUF001
        return [int(text) for text in found]

    tests = totals("tests")
    if not tests:
        return None
    results = _node_results(output)
    files = [
        (path[-1], good)
        for path, good, _ in results
        if len(path) == 1 and _NODE_FILE.fullmatch(path[-1])
    ]
    skipped = sum(totals("skipped")) + sum(totals("todo"))
    named = [
        (" > ".join(path[:-1]), path[-1])
        for path, _, left in results
        if not left and not (len(path) == 1 and _NODE_FILE.fullmatch(path[-1]))
    ]
    ran = sum(tests) - skipped - len(files)
    if len(results) > sum(tests) + sum(totals("suites")):  # more than were counted
        return None
    whole = len(results) == sum(tests) + sum(totals("suites"))
    report = _report(named, [], skipped=skipped, parts=len(tests))
    return TestReport(
        ran=ran,
        skipped=skipped,
        ids=report.ids if whole else None,
        needs=report.needs if whole else [],
        unread=sorted(_id("file", name) for name, good in files if not good),
        silent=sorted(_id("file", name) for name, good in files if good),
        parts=len(tests),
    )


def _node_results(output: str) -> list[tuple[list[str], bool, bool]]:
    """Return path, whether it is good, and whether it was left out, of every result."""
    line = _NODE_TAP if re.search(r"^TAP version ", output, re.MULTILINE) else None
    if line is None:
        line, width = _NODE_SPEC, 2
        output = re.split(r"^ℹ tests ", output, flags=re.MULTILINE)[0]  # noqa: RUF001
    else:
        width = 4
    within: list[str] = []
    found = []
    for match in line.finditer(output):
        depth = len(match[1]) // width
        if (name := match["begin"]) is not None:
            within[depth:] = [name]
            continue
        path = [*within[:depth], match["name"]]
        found.append((path, match["how"] in {"ok", "✔"}, bool(match["left"])))
    return found


def _go(output: str, *, named: bool) -> TestReport | None:
    ran: list[tuple[str, str]] = []
    packages: list[str] = []
    unreadable: list[str] = []
    skipped, begun, ended = 0, set[str](), dict[str, str]()
    for line in output.splitlines():
        if line.startswith("=== RUN "):
            begun.add(line.split()[-1])
        elif found := _GO_TEST.search(line):
            ended[found[2]] = found[1]
        elif found := _GO_PACKAGE.fullmatch(line.rstrip()):
            how, package, rest = found[1], found[2], found[3] or ""
            if how == "ok" and begun - ended.keys():  # it ended in the middle of a test
                return None
            if "failed]" in rest:
                unreadable.append(package)
            elif "[no test" not in rest:
                packages.append(package)
            ran += [(package, name) for name, end in ended.items() if end != "SKIP"]
            skipped += sum(end == "SKIP" for end in ended.values())
            begun, ended = set(), {}
    if not packages and not unreadable:
        return None
    if named or ran:
        return _report(ran, unreadable, skipped=skipped)
    return TestReport(ran=len(packages))


def _cargo(output: str) -> TestReport | None:
    parts = re.split(r"^running (\d{1,9}) tests?$", output, flags=re.MULTILINE)
    if len(parts) == 1:
        return None
    ran: list[tuple[str, str]] = []
    counted, skipped, whole = 0, 0, True
    for begun, body in zip(parts[1::2], parts[2::2], strict=True):
        ends = _CARGO_END.findall(body)
        # What a test printed may look like an end; the real one is the last.
        if not ends or sum(int(n or 0) for n in ends[-1]) != int(begun):
            return None
        passed, failed, left, _ = (int(n or 0) for n in ends[-1])
        tests = _CARGO_TEST.findall(body.partition("\nfailures:\n")[0])
        whole = whole and len(tests) == int(begun)
        ran += [("", _unnumbered(name)) for name, how in tests if how != "ignored"]
        counted, skipped = counted + passed + failed, skipped + left
    if not whole:
        return TestReport(ran=counted, skipped=skipped)
    return _report(ran, [], skipped=skipped)


def _unnumbered(name: str) -> str:
    """A test in a comment is named by its line, which moves."""
    return re.sub(r" \(line \d+\)", "", name)
