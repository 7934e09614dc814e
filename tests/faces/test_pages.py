from pathlib import Path

from tests.faces.shell import SmallNestor, serving

from nestor.model.health import Dependency
from nestor.telemetry import metrics
from nestor.web import dashboard, learning
from nestor.web.app import create_app


async def _nothing() -> list[Dependency]:
    return []


async def test_the_first_page_is_open_and_holds_no_script_and_no_secret(
    nestor: SmallNestor,
) -> None:
    app = create_app("dashboard", nestor, dashboard.handlers(), dependencies=_nothing)
    async with serving(nestor, app) as shell:
        page = await shell.call("GET", "/", key=None)
        assert page.status == 200
        assert page.headers["Content-Type"].startswith("text/html")
        text = page.body.decode()
        assert "<script" not in text
        assert nestor.api_key not in text
        assert str(nestor.settings.telemetry_dir.parent) not in text
        for layer in ("ralph", "aidb", "coordinator", "learning"):
            assert (
                f"http://127.0.0.1:{getattr(nestor.settings, layer + '_port')}" in text
            )
        # Where this process does listen counts, not what the setting says.
        assert f"http://127.0.0.1:{shell.port}" in text
        assert page.headers["Content-Security-Policy"].startswith(
            "default-src 'none'; style"
        )
        assert "'unsafe" not in page.headers["Content-Security-Policy"]
        assert "color-scheme: light dark" in text


async def test_learning_tells_what_is_recorded_and_that_nothing_learns(
    nestor: SmallNestor,
) -> None:
    app = create_app("learning", nestor, learning.handlers(), dependencies=_nothing)
    async with serving(nestor, app) as shell:
        assert (await shell.call("GET", "/learning/stats", key=None)).status == 401
        empty = (await shell.call("GET", "/learning/stats")).json
        assert empty["telemetry"] == {"files": 0, "bytes": 0}
        assert empty["learning"] == "not_running"
        assert empty["processed"] == 0
        assert empty["outbox_depth"] is None
        folder: Path = nestor.settings.telemetry_dir
        folder.mkdir()
        (folder / "unified-events.jsonl").write_bytes(b"x" * 10)
        (folder / "unified-events.jsonl.1.gz").write_bytes(b"x" * 5)
        (folder / "something-else").write_bytes(b"x" * 100)
        metrics.EVENTS_WRITTEN.labels("task_started").inc()
        full = (await shell.call("GET", "/learning/stats")).json
        assert full["telemetry"] == {"files": 2, "bytes": 15}
        assert full["events_written"] == empty["events_written"] + 1


async def test_a_telemetry_folder_that_cannot_be_read_is_unknown_not_zero(
    nestor: SmallNestor,
) -> None:
    nestor.settings.telemetry_dir.write_text("a file, not a folder")
    app = create_app("learning", nestor, learning.handlers(), dependencies=_nothing)
    async with serving(nestor, app) as shell:
        told = (await shell.call("GET", "/learning/stats")).json
        assert told["telemetry"] == {"files": None, "bytes": None}
