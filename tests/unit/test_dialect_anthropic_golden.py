"""Golden transcripts, byte for byte, and the providers' own SDKs reading them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from nestor.coordinator.dialects.anthropic import Anthropic
from nestor.coordinator.dialects.to_anthropic import Chunks
from nestor.model.sse import EventSplitter, data_of

GOLDEN = Path(__file__).parent.parent / "golden" / "anthropic"
EVENTS = sorted(path.stem for path in (GOLDEN / "events").glob("*.sse"))
CHUNKS = sorted(path.stem for path in (GOLDEN / "chunks").glob("*.sse"))
ASKED = {"model": "local", "stop_sequences": ["END"]}
READ = {"type": "tool_use", "id": "call_a1", "name": "read_file"}


@pytest.mark.parametrize("name", EVENTS)
def test_chat_chunks_become_exactly_these_events(name: str) -> None:
    making = Anthropic().events(ASKED)

    found = b"".join([*map(making.feed, chunks_of("events", name)), making.end()])

    assert found == (GOLDEN / "events" / f"{name}.sse").read_bytes()


@pytest.mark.parametrize("name", CHUNKS)
def test_events_become_exactly_these_chat_chunks(name: str) -> None:
    making = Chunks(clock=lambda: 1763800000.5)
    raw = (GOLDEN / "chunks" / f"{name}.sse").read_bytes()
    events = [data_of(event) for event in EventSplitter().feed(raw)]

    found = [c for event in events if event is not None for c in making.feed(event)]

    assert found == chunks_of("chunks", name)


@pytest.mark.parametrize(
    ("name", "content", "stop", "counts"),
    [
        (
            "text",
            [{"type": "text", "text": "The answer is 42."}],
            "end_turn",
            (20, 100, 7),
        ),
        (
            "one_tool_call",
            [{**READ, "input": {"path": "src/app.py"}}],
            "tool_use",
            (80, None, 21),
        ),
        (
            "parallel_tool_calls",
            [
                {**READ, "input": {"path": "a.py"}},
                {
                    "type": "tool_use",
                    "id": "call_b2",
                    "name": "grep",
                    "input": {"pattern": "def main"},
                },
            ],
            "tool_use",
            (90, None, 44),
        ),
        (
            "text_then_tool",
            [
                {"type": "text", "text": "I will look first."},
                {
                    "type": "tool_use",
                    "id": "functions_bash_0_8497fe9cce69",
                    "name": "bash",
                    "input": {"command": "ls"},
                },
            ],
            "tool_use",
            (64, None, 19),
        ),
        (
            "length",
            [{"type": "text", "text": "Once upon"}],
            "max_tokens",
            (11, None, 2),
        ),
        ("empty", [], "end_turn", (11, None, 0)),
        (
            "thoughts_then_text",
            [{"type": "text", "text": "\n\nDone."}],
            "end_turn",
            (30, None, 25),
        ),
        ("no_usage", [{"type": "text", "text": "Hi"}], "end_turn", (0, None, 0)),
    ],
)
async def test_the_anthropic_sdk_reads_the_transcript_as_the_answer(
    name: str,
    content: list[dict[str, Any]],
    stop: str,
    counts: tuple[int | None, ...],
) -> None:
    async with served(GOLDEN / "events" / f"{name}.sse") as url:
        client = AsyncAnthropic(api_key="k", base_url=url, max_retries=0)
        async with (
            client,
            client.messages.stream(
                model="m",
                max_tokens=9,
                messages=[{"role": "user", "content": "hi"}],
            ) as stream,
        ):
            found = (await stream.get_final_message()).to_dict()

    blocks: Any = found["content"]
    known = [{k: v for k, v in block.items() if v is not None} for block in blocks]
    usage: Any = found["usage"]
    names = ("input_tokens", "cache_read_input_tokens", "output_tokens")
    assert known == content
    assert (found["stop_reason"], found["stop_sequence"]) == (stop, None)
    assert tuple(usage[name] for name in names) == counts
    assert (found["id"], found["model"]) == ("msg_9f2", "qwen3-coder")


async def test_the_openai_sdk_reads_an_anthropic_answer_with_tools(
    tmp_path: Path,
) -> None:
    chunks = chunks_of("chunks", "text_then_tools")
    stream = tmp_path / "stream"
    sent = b"".join(b"data: %b\n\n" % msgspec.json.encode(chunk) for chunk in chunks)
    stream.write_bytes(sent + b"data: [DONE]\n\n")

    async with served(stream) as url:
        client = AsyncOpenAI(api_key="k", base_url=url, max_retries=0)
        async with (
            client,
            client.chat.completions.stream(
                model="m", messages=[{"role": "user", "content": "hi"}]
            ) as answer,
        ):
            found = await answer.get_final_completion()

    (choice,) = found.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I will look."
    calls = [
        (call.id, call.function.name, json.loads(call.function.arguments))
        for call in choice.message.tool_calls or ()
    ]
    assert calls == [
        ("toolu_01", "read_file", {"path": "a.py"}),
        ("toolu_02", "list_files", {}),
    ]
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (70, 55)


def chunks_of(folder: str, name: str) -> list[dict[str, Any]]:
    lines = (GOLDEN / folder / f"{name}.chunks.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[str]:
    """Answer every request with the file, as a stream of events."""
    body = path.read_bytes()

    async def answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        sizes = [
            line for line in head.lower().split(b"\r\n") if b"content-length" in line
        ]
        await reader.readexactly(int(sizes[0].split(b":")[1]))
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"
