"""One line a record, no secrets, the trace id; console and JSON alike."""

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest
import structlog

from nestor.telemetry import logs
from nestor.telemetry.trace import trace

FORMATS = pytest.mark.parametrize("log_format", ["console", "json"])
LIBRARIES = ["uvicorn.error", "dbos", "alembic.runtime", "litestar", "anything"]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@FORMATS
def test_f4_no_value_breaks_out_of_its_line_or_steers_the_terminal(
    log_format: str,
) -> None:
    stream = io.StringIO()
    logs.configure(log_format, stream)
    hostile = "x\r\n2026-01-01T00:00:00Z error forged\x1b[31m\x00\u202e\u2028\x9b\x85"

    logs.get_logger("a").info("seen", value=hostile, nested={hostile: [hostile]})
    logs.get_logger("a").info(hostile, **{hostile: 1})
    logging.getLogger("uvicorn.error").warning("bad request: %s", hostile)

    text = stream.getvalue()
    assert text.count("\n") == 3
    assert text.replace("\n", "").isprintable()
    assert text.count("forged") >= 5


@pytest.fixture(autouse=True)
def _levels_of_their_own() -> None:
    """What other tests started in this process may have made some libraries quiet."""
    for name in (*LIBRARIES, "dbos"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@FORMATS
@pytest.mark.parametrize("library", LIBRARIES)
def test_library_logs_take_the_same_way(log_format: str, library: str) -> None:
    stream = io.StringIO()
    logs.configure(log_format, stream)
    with trace("0af7651916cd43dd8448eb211c80319c"):
        logging.getLogger(library).warning("hello %s", "world", extra={"k": 1})

    (line,) = stream.getvalue().splitlines()
    assert "hello world" in line
    assert "0af7651916cd43dd8448eb211c80319c" in line
    assert "warning" in line


@FORMATS
def test_k1_no_secret_reaches_the_log(log_format: str) -> None:
    stream = io.StringIO()
    logs.configure(log_format, stream)
    log = logs.get_logger("a")

    class Holder:
        def __repr__(self) -> str:
            return "Holder(password='CANARY')"

    log.info("sk-CANARY0123456789", password="CANARY", url="pg://u:CANARY@h")
    log.info("x", held=Holder(), error=ValueError("token=CANARY"), raw=b"key=CANARY99")
    logging.getLogger("dbos").warning("postgres://u:%s@h", "CANARY")
    try:
        raise ValueError("Bearer CANARY0123456789")  # noqa: TRY301
    except ValueError:
        log.exception("failed")
        logging.getLogger("uvicorn.error").exception("failed")

    assert "CANARY" not in stream.getvalue()
    assert stream.getvalue().count("ValueError") >= 2


def test_a_traceback_on_the_console_is_marked_line_by_line() -> None:
    stream = io.StringIO()
    logs.configure("console", stream)
    try:
        raise ValueError("x\n2026-01-01T00:00:00Z error forged")  # noqa: TRY301
    except ValueError:
        logs.get_logger("a").exception("failed")

    first, *rest = stream.getvalue().splitlines()
    assert "failed" in first
    assert rest
    assert all(line.startswith("  | ") for line in rest)


def test_json_lines_are_whole_objects_in_ascii() -> None:
    stream = io.StringIO()
    logs.configure("json", stream)
    logs.get_logger("a").info("écrit", n=1, lone="\ud800", nothing=None)

    record = json.loads(stream.getvalue())
    assert stream.getvalue().isascii()
    assert (record["event"], record["n"], record["nothing"]) == ("écrit", 1, None)
    assert record["lone"] == "\ufffd"
    assert "trace_id" not in record


def test_a_long_value_is_cut_and_says_so() -> None:
    stream = io.StringIO()
    logs.configure("json", stream)
    logs.get_logger("a").info("x", value="y" * 50_000_000)

    assert len(stream.getvalue()) < 20_000
    assert json.loads(stream.getvalue())["value"].endswith("[cut]")


def test_configuring_again_replaces_and_does_not_double() -> None:
    first, second = io.StringIO(), io.StringIO()
    logs.configure("console", first)
    logs.configure("json", second)
    logs.get_logger("a").info("once")
    logging.getLogger("dbos").info("once")

    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 2


def test_a_stream_that_is_gone_neither_raises_nor_spills_the_record(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream = io.StringIO()
    logs.configure("json", stream)
    stream.close()

    logs.get_logger("a").info("x", password="CANARY")
    logging.getLogger("dbos").info("password=%s", "CANARY")

    assert "CANARY" not in "".join(capsys.readouterr())


def test_before_configure_nothing_goes_to_standard_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.get_logger("a").warning("early", password="CANARY")

    out, err = capsys.readouterr()
    assert out == ""
    assert "early" in err
    assert "CANARY" not in err
    assert sys.stdout is not sys.stderr
