"""A worker process for the guardian's tests: runs one command and prints its result.

``python -m tests.system.sandbox_worker bubblewrap|none HOME RUN_JSON``
"""

import asyncio
import sys
from pathlib import Path

import msgspec

from nestor.backends.sandbox import BubblewrapSandbox, NoSandbox
from nestor.ports.sandbox import SandboxRun

KINDS: dict[str, type[BubblewrapSandbox | NoSandbox]] = {
    "bubblewrap": BubblewrapSandbox,
    "none": NoSandbox,
}


def as_path(kind: type, value: object) -> Path:
    assert kind is Path
    return Path(str(value))


async def main() -> None:
    kind, home, run = sys.argv[1:]
    sandbox = KINDS[kind](coordinator_url="http://127.0.0.1:9", home=Path(home))
    decoded = msgspec.json.decode(run, type=SandboxRun, dec_hook=as_path)
    result = await sandbox.run(decoded)
    print(msgspec.json.encode(result).decode(), flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main())
