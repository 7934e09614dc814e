"""Learning over HTTP, as far as there is any: what can be seen now, and what cannot."""

import asyncio
from pathlib import Path
from typing import Any

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler

from nestor.telemetry import metrics
from nestor.web.views import EventFiles, LearningStats

_ACTIVE = "unified-events.jsonl"


@get("/learning/stats", opt={"scope": "read"})
async def stats(request: Request[Any, Any, Any]) -> LearningStats:
    """Tell of the events that wait to be learned from. Null: not known here, never 0."""
    folder: Path = request.app.state.nestor.settings.telemetry_dir
    return {
        "learning": "not_running",
        "message": "events are recorded; no reader runs yet that learns from them",
        "processed": 0,
        "telemetry": await asyncio.to_thread(_files, folder),
        "events_written": _total(metrics.EVENTS_WRITTEN),
        "events_buffered": _total(metrics.EVENTS_BUFFERED),
        "events_dropped": _total(metrics.EVENTS_DROPPED),
        "patterns": None,
        "dataset": None,
        "outbox_depth": None,
    }


def handlers() -> list[HTTPRouteHandler]:
    """Return the routes of this layer."""
    return [stats]


def _files(folder: Path) -> EventFiles:
    try:
        sizes = [p.stat().st_size for p in folder.iterdir() if _is_log(p)]
    except FileNotFoundError:
        # Nothing was ever written, or a file was rotated away while we looked.
        if not folder.exists():
            return {"files": 0, "bytes": 0}
        return {"files": None, "bytes": None}
    except OSError:
        return {"files": None, "bytes": None}
    return {"files": len(sizes), "bytes": sum(sizes)}


def _is_log(path: Path) -> bool:
    return path.name.startswith(_ACTIVE)


def _total(metric: Any) -> int:
    """Add up what this process counted since it started."""
    return int(
        sum(
            sample.value
            for family in metric.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        )
    )
