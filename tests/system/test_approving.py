"""Questions and answers on real parts: what an answer holds for, and what follows from it."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.system.workbench import ADMIN, NOBODY, repository, stack, task, until_ended

from nestor.backends.sql.database import Database
from nestor.backends.sql.task_store import SqlTaskStore
from nestor.errors import Conflict, Forbidden, InvalidInput
from nestor.model.access import Principal
from nestor.model.task import (
    Approval,
    ApprovalKind,
    Network,
    Reason,
    Task,
    TaskStatus,
)
from nestor.ports.task_store import TaskChange
from nestor.ralph.approving import digest_of, granted
from nestor.ralph.attempts import Further
from nestor.settings import Settings
from nestor.wiring import Nestor, running

OTHER = Principal(key_id="other", scopes=frozenset({"approve"}))
SUBMITTER = Principal(key_id="mine", scopes=frozenset({"submit", "approve"}))
STUCK = "cat > /dev/null; exit 7"
"""An agent that fails each time."""


def question(task_id: str, kind: ApprovalKind, subject: str, **more: Any) -> Approval:
    """As an agent inside asks it."""
    digest = digest_of(task_id, kind, subject)
    fields = {"id": f"q-{subject}", "what": f"May it {subject}?", "digest": digest}
    return Approval(kind=kind, subject=subject, **(fields | more))


async def stored(nestor: Nestor) -> SqlTaskStore:
    store = nestor.ralph._store  # what other parts of Ralph write through
    assert isinstance(store, SqlTaskStore)
    return store


async def asks(nestor: Nestor, task_id: str, *questions: Approval) -> Task:
    """Leave a task as one is left that waits for a person in the middle."""
    store = await stored(nestor)
    return await store.change(
        task_id,
        TaskChange(
            status=TaskStatus.AWAITING_APPROVAL,
            reason=Reason.APPROVAL_PENDING,
            approvals=list(questions),
        ),
    )


async def answer(nestor: Nestor, task_id: str, action: str | None, **how: Any) -> Task:
    given = {"approved": True, "note": None, "principal": OTHER} | how
    return await nestor.ralph.approve(task_id, action=action, **given)


async def test_t4_an_answer_holds_for_its_own_question_and_no_other(
    tmp_path: Path,
) -> None:
    settings = Settings(home=tmp_path / "home")
    async with running(settings, coordinator_url=NOBODY) as nestor:
        for name in ("a", "b"):
            spec = task(None, STUCK, task_id=name, test_command=None)
            await nestor.ralph.submit(spec, ADMIN)
        host = question("a", ApprovalKind.HOST, "pypi.org:443")
        rm = question("a", ApprovalKind.COMMAND, "rm -r build")
        await asks(nestor, "a", host, rm)
        # The same question, made for one task, in another.
        await asks(nestor, "b", host, question("b", ApprovalKind.COMMAND, "make"))

        with pytest.raises(Conflict, match=r"'q-pypi.org:443', 'q-rm -r build'"):
            await answer(nestor, "a", None)
        with pytest.raises(Conflict, match="not what was asked"):
            await answer(nestor, "b", host.id)
        with pytest.raises(Conflict, match="does not wait for"):
            await answer(nestor, "b", rm.id)
        allowed = await answer(nestor, "a", host.id)
        assert granted(allowed, ApprovalKind.HOST) == ["pypi.org:443"]
        with pytest.raises(Conflict, match="does not wait for"):
            await answer(nestor, "a", host.id)
        found = await nestor.audit.entries()
        assert [(one.action, one.task_id) for one in found] == [("approve", "a")]
        assert found[0].data["digest"] == host.digest

        # Who could write the answer down for other arguments gains nothing.
        store = await stored(nestor)
        for changed in (
            msgspec.structs.replace(allowed.approvals[0], subject="evil.example:443"),
            msgspec.structs.replace(allowed.approvals[0], kind=ApprovalKind.PATH),
        ):
            other = await store.change("a", TaskChange(approvals=[changed]))
            assert granted(other, changed.kind) == []
        moved = await store.change("b", TaskChange(approvals=allowed.approvals))
        assert granted(moved, ApprovalKind.HOST) == []
        altered = msgspec.structs.replace(rm, subject="rm -r /")
        await asks(nestor, "a", altered)
        with pytest.raises(Conflict, match="not what was asked"):
            await answer(nestor, "a", altered.id)


async def test_a_parked_task_goes_on_once_nothing_blocks_it_refused_or_not(
    tmp_path: Path,
) -> None:
    repo = repository(tmp_path / "repo")
    async with stack(tmp_path / "home") as nestor:
        spec = task(repo, STUCK, task_id="t", max_iterations=1)
        await nestor.ralph.submit(spec, ADMIN)
        await until_ended(nestor, "t")
        commands = [question("t", ApprovalKind.COMMAND, name) for name in ("a", "b")]
        host = question("t", ApprovalKind.HOST, "pypi.org:443")
        store = await stored(nestor)
        await store.change("t", TaskChange(max_iterations=2))
        await asks(nestor, "t", *commands, host)

        waits = await answer(nestor, "t", "q-a", approved=False, note="no")
        assert (waits.status, waits.attempt) == (TaskStatus.AWAITING_APPROVAL, 1)
        assert "May it b?" in waits.detail
        goes_on = await answer(nestor, "t", "q-b")
        assert (goes_on.status, goes_on.attempt) == (TaskStatus.QUEUED, 2)
        done = await until_ended(nestor, "t")
        assert (done.status, done.iteration) == (TaskStatus.EXHAUSTED, 2)
        assert [one.approved for one in done.approvals] == [False, True, None]
        # Of what has ended only that may be answered which holds for what follows.
        allowed = await answer(nestor, "t", None)
        assert allowed.status is TaskStatus.EXHAUSTED
        assert granted(allowed, ApprovalKind.HOST) == ["pypi.org:443"]
        found = await nestor.audit.entries()
    assert [one.action for one in found] == ["refuse", "approve", "approve"]


async def test_who_was_not_let_begin_is_not_let_begin_by_a_resume_or_a_fork(
    tmp_path: Path,
) -> None:
    settings = Settings(home=tmp_path / "home")
    async with running(settings, coordinator_url=NOBODY) as nestor:
        spec = task(None, "true", task_id="t", test_command=None)
        held = (await nestor.ralph.submit(spec, SUBMITTER)).task
        (asked,) = held.approvals
        assert asked.digest == digest_of("t", "start", asked.subject)
        with pytest.raises(Forbidden):
            await answer(nestor, "t", None, principal=SUBMITTER)
        await nestor.ralph.cancel("t", by=SUBMITTER)
        with pytest.raises(Conflict):
            await answer(nestor, "t", None)
        again = await nestor.ralph.resume("t", Further(), by=SUBMITTER)
        assert (again.status, again.reason, again.attempt) == (
            *("awaiting_approval", "approval_pending", 2),
        )
        started = await answer(nestor, "t", None)
        assert (started.status, started.attempt) == (TaskStatus.QUEUED, 2)
        with pytest.raises(Conflict, match="no workspace"):
            await nestor.ralph.fork("t", 0, by=SUBMITTER)

        store = await stored(nestor)
        await store.change("t", TaskChange(status=TaskStatus.FAILED), carried=CARRIED)
        for who in (SUBMITTER, ADMIN):
            forked = await nestor.ralph.fork("t", 0, by=who)
            assert forked.status is TaskStatus.AWAITING_APPROVAL, who
            assert forked.approvals[0].approved is None


CARRIED = msgspec.json.encode(
    {
        "n": 0,
        "prepared": {"base": "0" * 40, "base_tree": "1" * 40},
        "commit": "0" * 40,
        "agent_tree": "1" * 40,
        "judged": "0" * 40,
    }
).decode()


async def test_a_person_grants_what_was_not_asked_for(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    (data := tmp_path / "data").mkdir()
    async with running(settings, coordinator_url=NOBODY) as nestor:
        spec = task(None, STUCK, task_id="t", test_command=None)
        await nestor.ralph.submit(spec, SUBMITTER)
        how: dict[str, Any] = {"note": None, "principal": OTHER}

        async def grant(kind: ApprovalKind, subject: str, **more: Any) -> Task:
            return await nestor.ralph.grant("t", kind, subject, **(how | more))

        with pytest.raises(Forbidden):
            await grant(ApprovalKind.HOST, "pypi.org:443", principal=SUBMITTER)
        for kind, wrong in (
            (ApprovalKind.HOST, "pypi.org"),
            (ApprovalKind.HOST, "pypi.org:0"),
            (ApprovalKind.HOST, "10.0.0.1:443"),
            (ApprovalKind.HOST, "http://pypi.org:443"),
            (ApprovalKind.PATH, "relative"),
            (ApprovalKind.PATH, f"{data}/../x"),
            (ApprovalKind.PATH, str(tmp_path / "home")),
            (ApprovalKind.NETWORK, "all"),
        ):
            with pytest.raises(InvalidInput) as error:
                await grant(kind, wrong)
            assert [one.field for one in error.value.errors] == [kind]
        for kind in (ApprovalKind.COMMAND, ApprovalKind.START):
            with pytest.raises(InvalidInput, match="cannot be granted"):
                await grant(kind, "true")

        await grant(ApprovalKind.HOST, "PyPI.org:443")
        await grant(ApprovalKind.HOST, "pypi.org:443")
        await grant(ApprovalKind.PATH, str(data))
        found = await grant(ApprovalKind.NETWORK, Network.FULL)
        assert granted(found, ApprovalKind.HOST) == ["pypi.org:443"]
        assert granted(found, ApprovalKind.PATH) == [str(data)]
        assert granted(found, ApprovalKind.NETWORK) == ["full"]
        # It still waits to be let begin, and a fork is granted nothing.
        assert found.status is TaskStatus.AWAITING_APPROVAL
        noted = await nestor.audit.entries()
        assert [one.action for one in noted] == ["grant"] * 3
        store = await stored(nestor)
        await store.change("t", TaskChange(status=TaskStatus.FAILED), carried=CARRIED)
        assert (await nestor.ralph.fork("t", 0, by=ADMIN)).grants == []


async def test_an_open_question_is_answered_by_a_grant_of_the_same(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    async with running(Settings(home=home), coordinator_url=NOBODY) as nestor:
        spec = task(None, STUCK, task_id="t", test_command=None)
        await nestor.ralph.submit(spec, ADMIN)
        host = question("t", ApprovalKind.HOST, "pypi.org:443")
        await asks(nestor, "t", host)
        found = await nestor.ralph.grant(
            "t", ApprovalKind.HOST, "pypi.org:443", note=None, principal=OTHER
        )
        assert (found.status, found.attempt) == (TaskStatus.QUEUED, 2)
        assert [one.id for one in found.approvals] == [host.id]
    async with Database.open(f"sqlite:///{home / 'nestor.db'}") as database:
        kept = await SqlTaskStore(database).get("t")
    assert kept == found
