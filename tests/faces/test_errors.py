import msgspec
import pytest
from litestar.routes import HTTPRoute
from structlog.testing import capture_logs
from tests.faces.shell import ADMIN_KEY, Served, status_of

from nestor import errors
from nestor.web.errors import STATUS, explain_validation, render
from nestor.web.openapi import EVERY_CALL

BAD_BODIES = {
    "unknown field": (b'{"name":"a","role":"admin"}', "role"),
    "unknown nested field": (b'{"name":"a","checks":[{"run":"x","b":1}]}', "checks.0.b"),
    "wrong type": (b'{"name":1}', "name"),
    "wrong nested type": (b'{"name":"a","checks":[{"run":3}]}', "checks.0.run"),
    "wrong type in a table": (b'{"name":"a","checks":[{"run":"x","env":{"A":1}}]}', "checks.0.env"),
    "number as text": (b'{"name":"a","count":"5"}', "count"),
    "number as truth": (b'{"name":"a","ok":1}', "ok"),
    "text as truth": (b'{"name":"a","ok":"true"}', "ok"),
    "missing field": (b"{}", "name"),
    "missing nested field": (b'{"name":"a","checks":[{}]}', "checks.0.run"),
    "a list": (b"[]", "body"),
    "null": (b"null", "body"),
    "empty": (b"", "body"),
    "malformed": (b'{"name":', "body"),
    "trailing comma": (b'{"name":"a",}', "body"),
    "two documents": (b'{"name":"a"} {}', "body"),
    "NaN": (b'{"name":"a","count":NaN}', "body"),
    "Infinity": (b'{"name":"a","extra":-Infinity}', "body"),
    "5,000 digits": (b'{"name":"a","count":' + b"9" * 5000 + b"}", "count"),
    "5,000 digits in anything": (b'{"name":"a","extra":' + b"9" * 5000 + b"}", "extra"),
    "beyond 64 bits": (b'{"name":"a","extra":9223372036854775808}', "extra"),
    "far beyond 64 bits": (b'{"name":"a","extra":[-' + b"1" * 400 + b"]}", "extra"),
    "beyond a float": (b'{"name":"a","extra":1e999}', "extra"),
    "not UTF-8": (b'{"name":"\xff"}', "body"),
    "lone surrogate": (b'{"name":"\\ud800"}', "body"),
    "nested 200,000 deep": (b'{"name":"a","extra":' + b"[" * 200_000, "body"),
    "name given twice": (b'{"name":"a","name":"b"}', "name"),
    "nested name given twice": (b'{"name":"a","extra":{"x":1,"x":2}}', "x"),
    "form": (b"name=a", "body"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_BODIES)
async def test_l6_a_bad_body_is_400_and_names_the_field(
    shell: Served, case: str
) -> None:
    body, field = BAD_BODIES[case]
    reply = await shell.call(
        "POST", "/things", data=body, headers={"content-type": "application/json"}
    )
    assert reply.status == 400, reply.body
    assert reply.headers["Content-Type"] == "application/problem+json"
    problem = reply.json
    assert [e["field"] for e in problem["errors"]] == [field]
    assert field in problem["detail"]
    assert problem["trace_id"] == reply.headers["X-Trace-Id"]
    assert {"type", "title", "status", "detail", "errors", "trace_id"} == set(problem)
    assert b"Traceback" not in reply.body
    assert shell.nestor.done == []


async def test_the_largest_integers_are_read(shell: Served) -> None:
    for number in (2**63 - 1, -(2**63)):
        reply = await shell.call("POST", "/things", json={"name": "a", "extra": number})
        assert reply.json["got"]["extra"] == number


async def test_a_good_body_arrives_typed(shell: Served) -> None:
    reply = await shell.call(
        "POST", "/things", json={"name": "a", "checks": [{"run": "x"}]}
    )
    assert reply.status == 201
    assert shell.nestor.done[0].checks[0].timeout_s == 10.0
    assert reply.json["by"] == "admin"


async def test_a_body_that_may_be_absent_may_be_absent_but_not_wrong(
    shell: Served,
) -> None:
    assert (await shell.call("POST", "/optional")).json == {"got": None}
    given = await shell.call("POST", "/optional", json={"name": "a"})
    assert given.json["got"]["name"] == "a"
    wrong = await shell.call("POST", "/optional", json={"nam": "a"})
    assert wrong.json["errors"][0]["field"] in {"nam", "name"}


async def test_curl_d_is_read_as_json(shell: Served) -> None:
    for content_type in ("application/x-www-form-urlencoded", "text/plain", ""):
        reply = await shell.call(
            "POST",
            "/things",
            data=b'{"name": "a"}',
            headers={"Content-Type": content_type},
        )
        assert reply.status == 201, (content_type, reply.body)


@pytest.mark.parametrize(
    ("query", "field"),
    [("limit=x", "limit"), ("limit=99", "limit"), ("limt=3", "limt"), ("of=a", "of")],
)
async def test_a_bad_query_is_400_and_names_the_parameter(
    shell: Served, query: str, field: str
) -> None:
    reply = await shell.call("GET", f"/things?{query}")
    assert reply.status == 400, reply.body
    assert [e["field"] for e in reply.json["errors"]] == [field]


async def test_a_good_query_is_read(shell: Served) -> None:
    reply = await shell.call("GET", "/things?limit=3&status=a")
    assert reply.json == {"limit": 3, "status": "a"}


async def test_a_missing_query_parameter_is_named(shell: Served) -> None:
    reply = await shell.call("GET", "/needed")
    assert reply.status == 400
    assert "phase" in reply.json["detail"]


@pytest.mark.parametrize("kind", sorted(STATUS, key=str))
async def test_each_planned_error_has_its_status(
    shell: Served, kind: type[errors.NestorError]
) -> None:
    reply = await shell.call("GET", f"/fault/{kind.__name__}")
    assert reply.status == STATUS[kind]
    assert reply.json["status"] == reply.status
    waits = kind in {errors.RateLimited, errors.CircuitOpen}
    assert reply.headers.get("Retry-After") == ("3" if waits else None)
    assert reply.headers.get("WWW-Authenticate") == (
        "Bearer" if reply.status == 401 else None
    )


def test_every_error_of_nestor_is_in_the_table() -> None:
    kinds = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.NestorError)
    }
    unplanned = {kind for kind in kinds if not set(kind.__mro__) & set(STATUS)}
    assert unplanned == {errors.NestorError}


async def test_a_bug_is_500_without_its_text_and_logged_once(shell: Served) -> None:
    with capture_logs() as logs:
        reply = await shell.call("GET", "/boom")
    assert reply.status == 500
    assert b"s3cr3t" not in reply.body
    found = [line for line in logs if line["event"] == "unexpected_error"]
    assert len(found) == 1
    assert found[0]["trace_id"] == reply.json["trace_id"] == reply.headers["X-Trace-Id"]
    assert isinstance(found[0]["exc_info"], RuntimeError)


async def test_what_is_not_there_is_a_problem_too(shell: Served) -> None:
    missing = await shell.call("GET", "/nothing")
    assert (missing.status, missing.json["title"]) == (404, "Not found")
    other = await shell.call("PUT", "/things")
    assert other.status == 405
    assert set(other.headers["Allow"].split(", ")) >= {"GET", "POST"}
    assert other.headers["Content-Type"] == "application/problem+json"


async def test_an_error_repeats_little_of_what_was_sent(shell: Served) -> None:
    reply = await shell.call("POST", "/things", json={"name": "a", "x" * 500_000: 1})
    assert reply.status == 400
    assert len(reply.body) < 6_000


def test_an_error_about_unprintable_text_can_be_printed() -> None:
    status, _, body = render(errors.InvalidInput.at("a\ud800", "b\udfff"), "t")
    assert status == 400
    assert msgspec.json.decode(body)["errors"]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("Expected `str`, got `int` - at `$.checks[0].run`", "checks.0.run"),
        ("Expected `str`, got `int` - at `$[2]`", "2"),
        ("Expected `str`, got `int` - at `key` in `$.env`", "env"),
        ("Object contains unknown field `a.b`", "a.b"),
        ("Invalid enum value 'P9' - at `$.priority`", "priority"),
        ("Something nobody has seen", "body"),
    ],
)
def test_the_path_of_a_validation_message(message: str, field: str) -> None:
    assert explain_validation(message).errors[0].field == field


async def test_no_problem_repeats_a_key_or_a_value_that_was_sent(shell: Served) -> None:
    secret = "sk-proj-A1b2C3d4E5f6G7h8I9j0"
    for how in (
        {"path": "/things", "key": secret},
        {"path": f"/things?api_key={secret}"},
        {"path": f"/things?limt={secret}"},
        {"path": f"/nothing/{secret}"},
        {"path": "/things", "headers": {"X-API-Key": secret}},
        {
            "path": "/things",
            "key": None,
            "headers": {"Authorization": f"Basic {secret}"},
        },
        {"path": "/things", "headers": {"Origin": f"https://{secret}"}},
        {"path": "/things", "headers": {"Host": f"{secret}.example"}},
    ):
        reply = await shell.call("GET", **how)
        assert reply.status >= 400, how
        assert secret.encode() not in reply.body, how
        assert not [v for v in reply.headers.values() if secret in v], how


async def test_no_header_that_was_sent_comes_back(shell: Served) -> None:
    sent = b"GET /things HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % shell.port
    sent += b"Authorization: Bearer %b\r\nConnection: close\r\n" % ADMIN_KEY.encode()
    for name in (b"X-Odd", b"X-Trace-Id", b"traceparent", b"Origin", b"X-API-Key"):
        for value in (b"caf\xc3\xa9-echo", b"\xff\xfe-echo", b"a\rX-Echo: 1", b"a\nX-Echo: 1"):  # fmt: skip
            reply = await shell.raw(sent + name + b": " + value + b"\r\n\r\n")
            assert b"echo" not in reply.lower(), (name, value, reply)
            assert status_of(reply) < 500


async def test_the_document_lists_every_route_and_what_it_answers(
    shell: Served,
) -> None:
    document = (await shell.call("GET", "/schema/openapi.json")).json
    for route in shell.app.litestar.routes:
        assert isinstance(route, HTTPRoute)
        for method, (handler, _) in route.route_handler_map.items():
            if method == "OPTIONS":
                continue
            told = document["paths"][route.path_format][method.lower()]
            statuses = {int(status) for status in told["responses"]}
            assert statuses >= set(EVERY_CALL)
            is_open = handler.opt.get("scope", "admin") is None
            assert (told.get("security") == []) == is_open == (401 not in statuses)
            assert (404 in statuses) == bool(route.path_parameters)
            assert 500 not in statuses
    (submitted,) = document["paths"]["/things"]["post"]["requestBody"][
        "content"
    ].values()
    name = submitted["schema"]["$ref"].rpartition("/")[2]
    assert document["components"]["schemas"][name]["additionalProperties"] is False


async def test_the_admin_key_is_never_in_a_reply(shell: Served) -> None:
    for path in ("/nothing", "/boom", "/health/detailed", "/schema/openapi.json"):
        assert ADMIN_KEY.encode() not in (await shell.call("GET", path)).body
