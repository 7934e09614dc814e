"""What the SDKs offer beside conversations: async clients, lists, embeddings, headers, keys."""

import asyncio
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from tests.servers.scripted_model import Rule
from tests.system.sdk_stack import SPOKEN, UPSTREAM_KEYS, SdkStack
from tests.system.sdk_talks import DIALECT_OF

pytest_plugins = ("tests.system.sdk_running",)
pytestmark = [pytest.mark.heavy, pytest.mark.alone]

HELLO: Any = [{"role": "user", "content": "hello"}]
USAGE = {
    "prompt_tokens": 120,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 100},
}
COST_USD = "0.0001"
"""20 tokens at 1, 100 cached at 0.1, and 7 at 10 USD per million."""
ID_HEADERS = {"openai": "x-request-id", "anthropic": "request-id"}
both = pytest.mark.parametrize("upstream", SPOKEN)


@both
async def test_the_async_clients_hear_the_same(sdks: SdkStack, upstream: str) -> None:
    sdks.script(Rule(reply="Hello to you.", usage=USAGE))
    async with sdks.async_openai() as client, sdks.async_anthropic() as other:
        asked = {"model": upstream, "messages": HELLO}
        whole = await asyncio.gather(
            client.chat.completions.create(**asked),
            client.responses.create(model=upstream, input="hello"),
            other.messages.create(**asked, max_tokens=9),
        )
        assert whole[0].choices[0].message.content == "Hello to you."
        assert whole[1].output_text == "Hello to you."
        assert [block.to_dict()["text"] for block in whole[2].content] == [
            "Hello to you."
        ]
        async with client.chat.completions.stream(**asked) as events:
            chat = await events.get_final_completion()
        async with client.responses.stream(model=upstream, input="hello") as said:
            response = await said.get_final_response()
        async with other.messages.stream(**asked, max_tokens=9) as told:
            message = await told.get_final_message()
        assert chat.choices[0].message.content == "Hello to you."
        assert response.output_text == "Hello to you."
        assert response.usage is not None
        assert response.usage.total_tokens == 127
        assert [block.to_dict()["text"] for block in message.content] == [
            "Hello to you."
        ]
        assert message.usage.cache_read_input_tokens == 100
    assert len(sdks.asked(upstream)) == 6


def test_both_sdks_list_the_models(sdks: SdkStack) -> None:
    one, other = sdks.openai(), sdks.anthropic()
    names = [model.id for model in one.models.list()]
    assert {"auto", "local", "remote", "openai", "anthropic-model", "vectors"} <= {
        *names
    }
    assert len(names) == len(set(names))
    assert [model.id for model in other.models.list()] == names
    assert [model.id for model in other.beta.models.list()] == names
    shown = other.models.list().data[0]
    assert (shown.type, shown.display_name) == ("model", names[0])


def test_a_list_of_models_is_paged_as_the_sdk_asks(sdks: SdkStack) -> None:
    client = sdks.anthropic()
    names = [model.id for model in client.models.list()]
    page = client.models.list(limit=2)
    assert [model.id for model in page.data] == names[:2]
    assert page.has_more
    assert [model.id for model in page] == names  # the SDK turns the pages
    last = client.models.list(limit=2, before_id=names[4])
    assert [model.id for model in last.data] == names[2:4]


def test_one_model_is_looked_up_by_its_name(sdks: SdkStack) -> None:
    one, other = sdks.openai(), sdks.anthropic()
    assert one.models.retrieve("openai-model").id == "openai-model"
    assert other.models.retrieve("openai-model").display_name == "openai-model"
    with pytest.raises(openai.NotFoundError, match="'nope'") as caught:
        one.models.retrieve("nope")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(anthropic.NotFoundError, match="'nope'") as found:
        other.models.retrieve("nope")
    for error in (caught.value, found.value):
        assert error.request_id == error.response.headers["x-trace-id"]


def test_a_list_that_is_refused_says_why_in_words_that_both_sdks_show(
    sdks: SdkStack,
) -> None:
    stranger, missing = "nst_" + "x" * 43, "no model is called that"
    with pytest.raises(openai.AuthenticationError, match="key"):
        sdks.openai(stranger).models.list()
    with pytest.raises(anthropic.AuthenticationError, match="key"):
        sdks.anthropic(stranger).models.list()
    with pytest.raises(anthropic.BadRequestError, match=missing):
        sdks.anthropic().models.list(after_id="nope")
    with pytest.raises(openai.BadRequestError, match=missing):
        sdks.openai().models.list(extra_query={"before_id": "nope"})


def test_embeddings_come_as_the_sdk_asks_for_them(sdks: SdkStack) -> None:
    sdks.script(Rule(vectors=[[0.25, -0.5], [1.0, 0.0]], usage={"prompt_tokens": 8}))
    client = sdks.openai()
    raw = client.embeddings.with_raw_response.create(
        model="vectors", input=["one", "two"], dimensions=2, user="me"
    )
    made = raw.parse()
    assert [one.embedding for one in made.data] == [[0.25, -0.5], [1.0, 0.0]]
    assert made.usage.total_tokens == 8
    assert raw.headers["x-nestor-model"] == "vectors-model"
    asked = sdks.upstreams["openai"].embeddings[-1].body
    assert asked == {
        "model": "vectors-model",
        "input": ["one", "two"],
        "dimensions": 2,
        "user": "me",
        "encoding_format": "base64",  # the SDK's own wish
    }
    (call,) = sdks.metered(raw.headers["x-nestor-interaction-id"])
    assert call["usage"]["input_tokens"] == 8


def ask(sdks: SdkStack, caller: str, model: str, *, stream: bool) -> Any:
    """Return the SDK's raw response to one question, read to its end."""
    asked: dict[str, Any] = {"model": model, "stream": stream}
    if caller == "messages":
        raw: Any = sdks.anthropic().messages.with_raw_response.create(
            **asked, messages=HELLO, max_tokens=9
        )
    elif caller == "chat":
        raw = sdks.openai().chat.completions.with_raw_response.create(
            **asked, messages=HELLO
        )
    else:
        raw = sdks.openai().responses.with_raw_response.create(**asked, input="hello")
    if stream:
        assert list(raw.parse())
    return raw


@both
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("caller", DIALECT_OF)
def test_headers_and_the_meter_tell_how_it_was_answered(
    sdks: SdkStack, caller: str, upstream: str, stream: bool
) -> None:
    sdks.script(Rule(reply="Hello.", usage=USAGE))
    headers = ask(sdks, caller, upstream, stream=stream).headers
    side = {"openai": "local", "anthropic": "remote"}[upstream]
    assert headers["x-nestor-route"] == side
    assert headers["x-nestor-model"] == f"{upstream}-model"
    assert 0 <= float(headers["x-nestor-overhead-ms"]) < 10_000
    assert "x-nestor-left-out" not in headers
    assert "x-nestor-fallback-from" not in headers
    cost = headers.get("x-nestor-cost-usd")
    assert cost is None if stream else float(cost) == float(COST_USD)
    named = ID_HEADERS["anthropic" if caller == "messages" else "openai"]
    assert headers[named] == headers["x-trace-id"]
    (call,) = sdks.metered(headers["x-nestor-interaction-id"])
    assert call["dialect"] == DIALECT_OF[caller]
    assert (call["deployment"], call["side"]) == (upstream, side)
    assert (call["ok"], call["unsettled"]) == (True, False)
    assert float(call["cost_usd"]) == float(COST_USD)
    usage = call["usage"]
    counted = [usage[f"{name}_tokens"] for name in ("input", "output", "cached")]
    assert counted == [120, 7, 100]
    assert call["trace_id"] == headers["x-trace-id"]


def test_either_header_carries_the_key_and_upstreams_see_their_own_alone(
    sdks: SdkStack,
) -> None:
    sdks.script(Rule(reply="Hello."))
    bearer = sdks.anthropic(api_key=None, auth_token=sdks.key)
    twice = sdks.openai(default_headers={"X-API-Key": sdks.key})
    for upstream in SPOKEN:
        bearer.messages.create(model=upstream, messages=HELLO, max_tokens=9)
        twice.chat.completions.create(model=upstream, messages=HELLO)
        ask(sdks, "messages", upstream, stream=False)
        ask(sdks, "responses", upstream, stream=True)
    for upstream in SPOKEN:
        got = sdks.asked(upstream)
        assert len(got) == 4
        for recorded in got:
            name = {"openai": "authorization", "anthropic": "x-api-key"}[upstream]
            assert (
                recorded.headers[name].removeprefix("Bearer ")
                == UPSTREAM_KEYS[upstream]
            )
            assert sdks.key not in str(recorded.headers)
            assert len({"authorization", "x-api-key"} & {*recorded.headers}) == 1


def test_betas_of_anthropic_reach_its_server_and_are_named_to_no_other(
    sdks: SdkStack,
) -> None:
    sdks.script(Rule(reply="Hello."))
    betas = ["context-1m-2025-08-07", "interleaved-thinking-2025-05-14"]
    for stream in (False, True):
        for upstream in SPOKEN:
            raw: Any = sdks.anthropic().beta.messages.with_raw_response.create(
                model=upstream, messages=HELLO, max_tokens=9, betas=betas, stream=stream
            )
            if stream:
                assert list(raw.parse())
            (exchange,) = sdks.take_exchanges()
            got = sdks.asked(upstream)[-1]
            assert got.headers.get("anthropic-version", "2023-06-01") == "2023-06-01"
            if upstream == "anthropic":
                assert got.headers["anthropic-beta"] == ",".join(betas)
                assert exchange.left_out == []
            else:
                assert "anthropic-beta" not in got.headers
                assert exchange.left_out == ["anthropic-beta"]


@pytest.mark.parametrize("name", ["a b", "é", "x" * 101, "one;two", '"'])
def test_what_is_no_betas_name_is_refused(sdks: SdkStack, name: str) -> None:
    sdks.script(Rule(reply="never"))
    for upstream in SPOKEN:
        reply = httpx2.post(
            f"{sdks.url}/v1/messages",
            json={"model": upstream, "messages": HELLO, "max_tokens": 9},
            headers=[
                (b"x-api-key", sdks.key.encode()),
                (b"anthropic-beta", b"well-2025-01-01," + name.encode()),
            ],
        )
        assert reply.status_code == 400
        assert reply.json()["error"]["message"].startswith("anthropic-beta: ")
        assert not sdks.asked(upstream)
