"""A stack whose agents reach its Coordinator, and a scripted model behind that."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT
from tests.faces.shell import tell
from tests.servers.scripted_model import Rule, ScriptedModel

from nestor.backends.agents import backends
from nestor.ports.agent import AgentBackend
from nestor.settings import Settings
from nestor.web import coordinator
from nestor.web.app import create_app
from nestor.web.serve import bind, serve
from nestor.wiring import Nestor, running
from nestor.wiring import stack as wiring

PROGRAMS = (ROOT / ".cache" / "agents").resolve()
"""``make`` installs every agent here, by ``nestor agents install``."""


@asynccontextmanager
async def agent_stack(
    home: Path,
    rules: Sequence[Rule],
    *,
    agent: AgentBackend | None = None,
    **settings: Any,
) -> AsyncIterator[tuple[Nestor, ScriptedModel]]:
    """Take tasks; ``agent`` stands in for the backend of its name."""
    (socket,) = bind({"coordinator": ("127.0.0.1", 0)}).values()
    url = f"http://127.0.0.1:{socket.getsockname()[1]}"
    with pytest.MonkeyPatch.context() as patch:
        if agent is not None:
            put = {agent.name: agent}
            patch.setattr(
                wiring, "agent_backends", lambda folder=None: backends(folder) | put
            )
        async with ScriptedModel(rules) as model:
            given: dict[str, Any] = {"agents_dir": PROGRAMS, **settings}
            values = Settings(
                home=home,
                remote_model="scripted-model",
                remote_base_url=model.base_url,
                **given,
            )
            async with running(values, coordinator_url=url) as nestor:
                app = create_app(
                    "coordinator",
                    nestor,
                    coordinator.handlers(),
                    dependencies=nestor.dependencies,
                )
                stop, told = asyncio.Event(), asyncio.Event()
                serving = asyncio.create_task(
                    serve(
                        {"coordinator": app},
                        {"coordinator": socket},
                        ready=tell(told),
                        stop=stop,
                    )
                )
                await told.wait()
                await nestor.ralph.start()
                try:
                    yield nestor, model
                finally:
                    stop.set()
                    await serving
