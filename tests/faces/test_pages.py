import re
from pathlib import Path

from tests.faces.shell import SmallNestor, serving, status_of

from nestor.model.health import Dependency
from nestor.telemetry import metrics
from nestor.web import dashboard, learning
from nestor.web.app import create_app


async def _nothing() -> list[Dependency]:
    return []


async def test_the_first_page_is_open_and_holds_no_inline_script_and_no_secret(
    nestor: SmallNestor,
) -> None:
    app = create_app("dashboard", nestor, dashboard.handlers(), dependencies=_nothing)
    async with serving(nestor, app) as shell:
        page = await shell.call("GET", "/", key=None)
        assert page.status == 200
        assert page.headers["Content-Type"].startswith("text/html")
        text = page.body.decode()
        assert re.findall("<script[^>]*>", text) == [
            '<script src="/static/session.js" defer>'
        ]
        assert "<style" not in text
        assert not re.search(r"\s(style|on\w+)=", text)
        assert nestor.api_key not in text
        assert str(nestor.settings.telemetry_dir.parent) not in text
        for layer in ("ralph", "aidb", "coordinator", "learning"):
            assert (
                f"http://127.0.0.1:{getattr(nestor.settings, layer + '_port')}" in text
            )
        # Where this process does listen counts, not what the setting says.
        assert f"http://127.0.0.1:{shell.port}" in text
        policy = page.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; connect-src")
        for word in ("unsafe", "*", "http:", "data:", "sha256"):
            assert word not in policy
        assert "frame-ancestors 'none'" in policy
        # Under this name nobody can be signed in; it says where.
        assert f"<code>http://nestor.localhost:{shell.port}/</code>" in text
        host = {"Host": f"nestor.localhost:{shell.port}"}
        own = (await shell.call("GET", "/", key=None, headers=host)).body.decode()
        assert 'data-sign-in="here"' in own
        assert "<code>nestor page</code>" in own


async def test_static_files_are_a_fixed_set_with_their_own_types_open_to_all(
    nestor: SmallNestor,
) -> None:
    folder = Path(dashboard.__file__).parent / "static"
    app = create_app("dashboard", nestor, dashboard.handlers(), dependencies=_nothing)
    async with serving(nestor, app) as shell:
        kinds = {
            "session.js": "text/javascript; charset=utf-8",
            "page.css": "text/css; charset=utf-8",
            "icon.svg": "image/svg+xml",
        }
        assert {file.name for file in folder.iterdir()} == set(kinds)
        for name, kind in kinds.items():
            file = await shell.call("GET", f"/static/{name}", key=None)
            assert (file.status, file.headers["Content-Type"]) == (200, kind)
            assert file.body == (folder / name).read_bytes()
            assert file.headers["X-Content-Type-Options"] == "nosniff"
            assert file.headers["Cache-Control"] == "no-store"
        for other in ("", "/", "/../auth.py", "/page.css/", "/SESSION.js", "/x.js"):
            head = shell.head(f"GET /static{other} HTTP/1.1", key=None)
            assert status_of(await shell.raw(head)) in {403, 404}, other


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
