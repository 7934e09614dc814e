"""Each failure is the exception that the SDK has for it, with words that say what to do."""

import time
from collections.abc import Callable, Generator
from typing import Any

import anthropic
import openai
import pytest
from tests.servers.scripted_model import Rule
from tests.system.sdk_stack import SPOKEN, SdkStack, for_errors, until
from tests.system.sdk_talks import CALLERS, b64, text_of_events

pytest_plugins = ("tests.system.sdk_running",)
pytestmark = [pytest.mark.heavy, pytest.mark.alone]

HELLO: Any = [{"role": "user", "content": "hello"}]
DOCUMENT = {
    "type": "document",
    "source": {"type": "base64", "media_type": "application/pdf", "data": b64(b"%PDF")},
}
callers = pytest.mark.parametrize("caller", CALLERS)
both = pytest.mark.parametrize("upstream", SPOKEN)
either = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
Fails = Callable[..., Any]


def ask(client: Any, caller: str, model: str, **more: Any) -> Any:
    """Ask, with more fields if wanted; read a stream to its end."""
    asked = {"model": model, **more}
    if caller == "messages":
        done = client.messages.create(**{"messages": HELLO, "max_tokens": 9, **asked})
    elif caller == "chat":
        done = client.chat.completions.create(**{"messages": HELLO, **asked})
    else:
        done = client.responses.create(**{"input": "hello", **asked})
    return list(done) if more.get("stream") else done


def events_of(client: Any, caller: str, model: str) -> Generator[Any, None, None]:
    """Read a stream as it comes; let go of it with the iterator."""
    if caller == "messages":
        create, asked = client.messages.create, {"messages": HELLO, "max_tokens": 9}
    elif caller == "chat":
        create, asked = client.chat.completions.create, {"messages": HELLO}
    else:
        create, asked = client.responses.create, {"input": "hello"}
    with create(model=model, stream=True, **asked) as events:
        yield from events


def fails(sdks: SdkStack, caller: str, model: str, **more: Any) -> Any:
    """Ask what must fail; return the exception, which names the reply's trace."""
    key = more.pop("key", None)
    anthropic_s = caller == "messages"
    client = sdks.anthropic(key) if anthropic_s else sdks.openai(key)
    of = anthropic.APIStatusError if anthropic_s else openai.APIStatusError
    with pytest.raises(of) as caught:
        ask(client, caller, model, **more)
    error: Any = caught.value
    trace = error.response.headers["x-trace-id"]
    assert error.request_id == trace
    return error


def said(done: Any) -> str:
    """Return the text of an answer, whole or as events."""
    if not isinstance(done, list):
        whole = done.to_dict()
        if "choices" in whole:
            return str(whole["choices"][0]["message"]["content"])
        return str(getattr(done, "output_text", None) or whole["content"][0]["text"])
    return text_of_events(done)


def text_of(error: Any) -> str:
    """Return the words of an error, from where the SDK keeps its body."""
    body = error.body
    return str(body["error"]["message"] if "error" in body else body["message"])


def kind_of(error: Any) -> str:
    body = error.body
    return str(body["error"]["type"] if "error" in body else body["type"])


@either
@pytest.mark.parametrize(
    ("caller", "model", "more", "field"),
    [
        ("chat", "anthropic", {"n": 2}, "n"),
        ("chat", "anthropic", {"logprobs": True}, "logprobs"),
        ("chat", "anthropic", {"temperature": 1.5}, "temperature"),
        ("chat", "anthropic", {"presence_penalty": 0.5}, "presence_penalty"),
        ("messages", "openai",
         {"messages": [{"role": "user", "content": [DOCUMENT]}]}, "messages.0.content.0"),
        ("messages", "openai",
         {"extra_body": {"container": "c_1"}}, "container"),
        ("responses", "openai", {"previous_response_id": "resp_1"}, "previous_response_id"),
        ("responses", "anthropic", {"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ("responses", "anthropic", {"temperature": 1.5}, "temperature"),
    ],
)  # fmt: skip
def test_what_the_other_dialect_cannot_say_is_refused_by_name(
    sdks: SdkStack, caller: str, model: str, more: Any, field: str, stream: bool
) -> None:
    sdks.script(Rule(reply="never"))
    error = fails(sdks, caller, model, stream=stream, **more)
    assert error.status_code == 400
    assert kind_of(error) == "invalid_request_error"
    assert text_of(error).startswith(f"{field}: ")
    if caller != "messages":
        assert error.param == field
    assert not sdks.asked(model), "nobody was asked"


@callers
def test_who_has_no_right_key_is_told_so(sdks: SdkStack, caller: str) -> None:
    sdks.script(Rule(reply="never"))
    stranger = fails(sdks, caller, "openai", key="nst_" + "x" * 43)
    reader = fails(sdks, caller, "openai", key=sdks.new_key("read"))
    of = anthropic if caller == "messages" else openai
    assert isinstance(stranger, of.AuthenticationError)
    assert isinstance(reader, of.PermissionDeniedError)
    kinds = [kind_of(error) for error in (stranger, reader)]
    assert kinds == ["authentication_error", "permission_error"]
    assert "model" in text_of(reader), "it names the scope that is missing"
    assert not sdks.asked("openai")


@callers
@both
@pytest.mark.parametrize("limits", [{"usd": "0.000001"}, {"tokens": 3}])
def test_a_key_without_money_left_is_told_402(
    sdks: SdkStack, caller: str, upstream: str, limits: Any
) -> None:
    sdks.script(Rule(reply="never"))
    error = fails(sdks, caller, upstream, key=sdks.new_key("model", **limits))
    assert error.status_code == 402
    usual = {"messages": "billing_error"}.get(caller, "insufficient_quota")
    assert kind_of(error) == usual
    if caller == "messages":
        assert isinstance(error, anthropic.PaymentRequiredError)
    assert "budget" in text_of(error)
    assert not sdks.asked(upstream)


@callers
@either
def test_an_unknown_model_is_not_found_and_the_known_ones_are_named(
    sdks: SdkStack, caller: str, stream: bool
) -> None:
    error = fails(sdks, caller, "gpt-nope", stream=stream)
    of = anthropic if caller == "messages" else openai
    assert isinstance(error, of.NotFoundError)
    assert "gpt-nope" in text_of(error)
    assert "openai-model" in text_of(error)
    if caller != "messages":
        assert (error.code, error.param) == ("model_not_found", "model")


@callers
def test_a_body_that_is_too_large_is_413(sdks: SdkStack, caller: str) -> None:
    sdks.script(Rule(reply="never"))
    long = "x" * (9 << 20)
    more = {"input": long} if caller == "responses" else {
        "messages": [{"role": "user", "content": long}]
    }  # fmt: skip
    error = fails(sdks, caller, "openai", **more)
    assert error.status_code == 413
    if caller == "messages":
        assert isinstance(error, anthropic.RequestTooLargeError)
        assert kind_of(error) == "request_too_large"
    assert not sdks.asked("openai")


class Clock:
    """Stands in for ``time`` in an SDK: nobody waits, and each wait is kept."""

    def __init__(self) -> None:
        self.waited: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.waited.append(seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@callers
def test_a_key_at_its_limit_is_429_and_the_sdk_waits_as_long_as_it_is_told(
    sdks: SdkStack, caller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdks.script(Rule(reply="Hello."))
    vendor = "anthropic" if caller == "messages" else "openai"
    clock = Clock()
    monkeypatch.setattr(f"{vendor}._base_client.time", clock)
    key = sdks.new_key("model", rpm=1)
    make = sdks.anthropic if caller == "messages" else sdks.openai
    client: Any = make(key, max_retries=2)
    ask(client, caller, "openai")
    of: Any = anthropic if caller == "messages" else openai
    with pytest.raises(of.RateLimitError) as caught:
        ask(client, caller, "openai")
    error = caught.value
    assert kind_of(error) == "rate_limit_error"
    assert "1 requests a minute" in text_of(error)
    told = int(error.response.headers["retry-after"])
    assert 1 <= told <= 61
    assert len(clock.waited) == 2
    assert all(told <= waited <= told + 2 for waited in clock.waited)
    assert len(sdks.asked("openai")) == 1


@callers
@both
def test_an_upstream_that_asks_to_come_back_soon_is_waited_for(
    sdks: SdkStack, caller: str, upstream: str
) -> None:
    again = {"retry-after": "1"}
    sdks.script(Rule(times=1, status=429, headers=again), Rule(reply="Now."))
    client = sdks.anthropic() if caller == "messages" else sdks.openai()
    assert said(ask(client, caller, upstream)) == "Now."
    assert len(sdks.asked(upstream)) == 2


@both
def test_an_upstream_that_asks_to_come_back_late_is_429_with_its_time(
    sdks: SdkStack, upstream: str
) -> None:
    busy = Rule(status=429, headers={"retry-after": "33"}, reply="too many of you")
    sdks.script(busy)
    error = fails(sdks, "messages", f"late-{upstream}")
    assert isinstance(error, anthropic.RateLimitError)
    assert 30 <= int(error.response.headers["retry-after"]) <= 34
    assert f"late-{upstream}" in text_of(error)
    later = fails(sdks, "chat", f"late-{upstream}")
    assert later.status_code in {429, 503}
    assert 1 <= int(later.response.headers["retry-after"]) <= 34
    assert len(sdks.asked(upstream)) == 1, "it is left alone while it asks for that"


@callers
@either
@both
def test_a_broken_upstream_is_retried_by_the_sdk_until_it_is_well(
    sdks: SdkStack, caller: str, stream: bool, upstream: str
) -> None:
    # Three failures: what the gateway tries by itself; the SDK's second try finds it well.
    sdks.script(
        Rule(times=3, status=500, reply="went wrong"), Rule(reply="Well again.")
    )
    make = sdks.anthropic if caller == "messages" else sdks.openai
    client: Any = make(max_retries=1)
    name = for_errors("shaky", upstream, caller, stream)
    assert said(ask(client, caller, name, stream=stream)) == "Well again."
    statuses = [exchange.status for exchange in sdks.take_exchanges()]
    assert statuses == [502, 200]
    assert len(sdks.asked(upstream)) == 4
    # The meter has each of them, and counts what the upstream's bill counts.
    calls = sdks.metered_of(name)
    assert [call["ok"] for call in calls] == [False, False, False, True]
    assert [call["cost_usd"] for call in calls[:3]] == ["0", "0", "0"]
    billed = sdks.upstreams[upstream].billed
    assert (billed.input_tokens, billed.output_tokens) == (11, 7)
    usage = calls[-1]["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (11, 7)
    assert float(calls[-1]["cost_usd"]) == 0.000081


@callers
@both
@pytest.mark.parametrize("how", ["cut", "error"])
def test_an_answer_that_breaks_half_way_is_an_error_and_is_not_asked_again(
    sdks: SdkStack, caller: str, upstream: str, how: str
) -> None:
    breaks = Rule(reply="One two three four five six.")
    breaks.cut_after_chunks = 5 if how == "cut" else None
    breaks.error_after_chunks = 5 if how == "error" else None
    sdks.script(breaks)
    make = sdks.anthropic if caller == "messages" else sdks.openai
    client: Any = make(max_retries=2)
    name = for_errors("shaky", upstream, caller, stream=True)
    of: Any = anthropic.APIStatusError if caller == "messages" else openai.APIError
    heard: list[Any] = []
    with pytest.raises(of) as caught:
        heard.extend(events_of(client, caller, name))
    text = text_of_events(heard)
    assert text
    assert "One two three four".startswith(text.strip())
    assert name in caught.value.message
    assert len(sdks.asked(upstream)) == 1, "half an answer is not begun anew"
    (exchange,) = sdks.exchanges
    (call,) = sdks.metered(exchange.headers["x-nestor-interaction-id"])
    assert (call["ok"], call["usage"]["output_tokens"]) == (False, None)
    assert call["cost_usd"] is None, "what was written is not known"


@callers
@both
def test_a_caller_who_leaves_half_way_stops_the_upstream_and_is_metered(
    sdks: SdkStack, caller: str, upstream: str
) -> None:
    sdks.script(Rule(reply="word " * 400, chunk_delay_s=0.02))
    make = sdks.anthropic if caller == "messages" else sdks.openai
    client: Any = make()
    events = events_of(client, caller, upstream)
    next(events)
    events.close()
    (asked,) = sdks.asked(upstream)
    until(lambda: asked.disconnected, "the upstream is let go")
    (exchange,) = sdks.exchanges
    identity = exchange.headers["x-nestor-interaction-id"]
    until(lambda: bool(sdks.metered(identity)), "the call is settled")
    (call,) = sdks.metered(identity)
    assert not call["ok"]
    assert "left" in call["error"]


@callers
@either
@pytest.mark.parametrize("back", SPOKEN)
def test_a_broken_upstream_has_another_to_fall_back_to(
    sdks: SdkStack, caller: str, stream: bool, back: str
) -> None:
    first = SPOKEN[1 - SPOKEN.index(back)]
    name = for_errors("backed", first, caller, stream)
    broken = Rule(status=500, reply="went wrong")
    if stream:  # before anything of the answer was said
        broken = Rule(cut_after_chunks=1)
    broken.model = f"{name}-model"
    sdks.script(broken, Rule(reply="The other one."))
    client = sdks.anthropic() if caller == "messages" else sdks.openai()
    assert said(ask(client, caller, name, stream=stream)) == "The other one."
    (exchange,) = sdks.take_exchanges()
    assert exchange.headers["x-nestor-fallback-from"] == name
    assert exchange.headers["x-nestor-model"] == f"{back}-model"
    counted = sdks.metered(exchange.headers["x-nestor-interaction-id"])
    assert sorted(call["ok"] for call in counted) == [False, True]


@callers
@both
def test_what_the_upstream_refuses_is_told_in_its_words(
    sdks: SdkStack, caller: str, upstream: str
) -> None:
    sdks.script(Rule(status=400, reply="messages: the roles must alternate"))
    error = fails(sdks, caller, upstream)
    assert error.status_code == 400
    assert "the roles must alternate" in text_of(error)
    assert len(sdks.asked(upstream)) == 1, "to ask again would not help"


@callers
@both
def test_a_key_of_ours_that_the_upstream_refuses_is_not_the_callers_fault(
    sdks: SdkStack, caller: str, upstream: str
) -> None:
    sdks.script(Rule(status=401, reply="invalid x-api-key"))
    error = fails(sdks, caller, upstream)
    of: Any = anthropic if caller == "messages" else openai
    assert isinstance(error, of.InternalServerError)
    assert error.status_code == 502
    assert upstream in text_of(error)
    assert "401" in text_of(error)
