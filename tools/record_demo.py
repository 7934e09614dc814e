"""Record the demo's model traffic: `python -m tools.record_demo`.

Runs `nestor demo` against a scripted model server and keeps what was asked and answered
in the packaged cassette. The script is written by hand: no model made these answers, and
the cassette says so. Run it again when the prompts, the sample or the question change.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.servers.scripted_model import Rule, ScriptedModel

from nestor.cli.demo_sample import QUESTION

CASSETTE = Path("src/nestor/cli/demo_data/cassette.json")
LOCAL, REMOTE = "demo-local", "demo-remote"

ANSWER = (
    "So that a check can prove something. A check that passes before any work was done"
    " would also pass after none: it says nothing about the task. Nestor therefore runs"
    " every check on the untouched base first, and a task ends `verified` only when at"
    " least one check that failed there passes now, in a fresh checkout that the agent"
    " could not touch. A check that cannot even start on the base stops the task before"
    " any model is paid."
)
ADVICE_LOCAL = (
    "Read split_bill.py and its tests. The integer division drops the remainder, so the"
    " shares do not add up to the bill. Refuse a bill for nobody. Leave the tests alone."
)
ADVICE_REMOTE = (
    "The shares add up now, but the whole remainder landed on one person. Give one cent"
    " more to as many people as the remainder counts, so that shares differ by one cent"
    " at most. Run the tests before you say that it is done."
)
HEAD = '''"""Split a bill between people. All amounts are whole cents."""


def split(total: int, people: int) -> list[int]:
    """Return what each person pays."""
    if people < 1:
        raise ValueError("a bill for nobody cannot be split")
'''
WRONG = (
    HEAD
    + """    share = total // people
    shares = [share] * people
    shares[0] += total - sum(shares)
    return shares
"""
)
RIGHT = (
    HEAD
    + """    share, rest = divmod(total, people)
    return [share + 1] * rest + [share] * (people - rest)
"""
)
LOOK = "cat split_bill.py test_split_bill.py"
TEST = "/setup/venv/bin/python -m pytest -q -p no:cacheprovider"


def call(name: str, **arguments: str) -> list[dict[str, Any]]:
    """Return one tool call."""
    return [{"name": name, "arguments": arguments}]


def usage(asked: int, answered: int) -> dict[str, int]:
    """Return token counts of a plausible size; no tokenizer stands behind them."""
    return {"prompt_tokens": asked, "completion_tokens": answered}


RULES = [
    Rule(when=QUESTION, reply=ANSWER, usage=usage(1480, 96)),
    Rule(
        when="In at most five sentences",
        model=LOCAL,
        reply=ADVICE_LOCAL,
        usage=usage(1320, 41),
    ),
    Rule(
        when="In at most five sentences",
        model=REMOTE,
        reply=ADVICE_REMOTE,
        usage=usage(1890, 58),
    ),
    # The local model: a fix that looks right, and a claim it never checked.
    Rule(
        when="# Task",
        model=LOCAL,
        tool_calls=call("bash", command=LOOK),
        usage=usage(2210, 24),
    ),
    Rule(
        when="def split",
        model=LOCAL,
        tool_calls=call("write_file", path="split_bill.py", content=WRONG),
        usage=usage(2690, 131),
    ),
    Rule(
        when="re:^wrote ",
        model=LOCAL,
        tool_calls=call(
            "done", summary="Fixed: the remainder is added, so all tests pass now."
        ),
        usage=usage(2840, 27),
    ),
    # The remote model: reads what failed, mends it, and looks before it speaks.
    Rule(
        when="Your last attempt is not done",
        model=REMOTE,
        tool_calls=call("bash", command="cat split_bill.py"),
        usage=usage(3050, 19),
    ),
    Rule(
        when="def split",
        model=REMOTE,
        tool_calls=call("write_file", path="split_bill.py", content=RIGHT),
        usage=usage(3240, 118),
    ),
    Rule(
        when="re:^wrote ",
        model=REMOTE,
        tool_calls=call("bash", command=TEST),
        usage=usage(3380, 33),
    ),
    Rule(
        when=" passed",
        model=REMOTE,
        tool_calls=call(
            "done",
            summary="The remainder is spread one cent each; the tests pass.",
        ),
        usage=usage(3450, 29),
    ),
]


async def record(cassette: Path) -> int:
    """Run the demo with recording on; returns its exit code."""
    async with ScriptedModel(RULES, model="scripted model") as model:
        endpoint = {
            "NESTOR_LOCAL_BASE_URL": model.base_url,
            "NESTOR_LOCAL_MODEL": LOCAL,
            "NESTOR_REMOTE_BASE_URL": model.base_url,
            "NESTOR_REMOTE_MODEL": REMOTE,
            "NESTOR_REMOTE_PRICE_INPUT": "3",
            "NESTOR_REMOTE_PRICE_OUTPUT": "15",
            "NESTOR_RECORD_CASSETTE": str(cassette),
        }
        clean = {k: v for k, v in os.environ.items() if not k.startswith("NESTOR_")}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "nestor.cli", "demo", env=clean | endpoint
        )
        return await process.wait()


def main() -> int:
    """Record, and put the cassette into the package when the demo was verified."""
    with tempfile.TemporaryDirectory() as folder:
        cassette = Path(folder, "cassette.json")
        code = asyncio.run(record(cassette))
        if code == 0:
            CASSETTE.write_bytes(cassette.read_bytes())
            subprocess.run(["wc", "-c", str(CASSETTE)], check=True)
        return code


if __name__ == "__main__":
    sys.exit(main())
