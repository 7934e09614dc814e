"""Made-up Markdown files: no two sections say the same. The same for the same seed."""

import random
from collections.abc import Iterator
from pathlib import Path

WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
    "car",
    "city",
    "community",
    "name",
    "president",
    "team",
    "minute",
    "idea",
    "body",
    "information",
    "back",
    "parent",
    "face",
    "others",
    "level",
    "office",
    "door",
    "health",
    "person",
    "art",
    "war",
    "history",
    "party",
    "result",
    "change",
    "morning",
    "reason",
    "research",
    "girl",
    "guy",
    "moment",
    "air",
    "teacher",
    "force",
    "education",
    "open",
    "read",
    "write",
    "close",
    "begin",
    "run",
    "move",
    "live",
    "believe",
    "bring",
    "happen",
    "must",
    "provide",
    "sit",
    "stand",
    "lose",
    "pay",
    "meet",
    "include",
    "continue",
    "set",
    "learn",
    "lead",
    "understand",
    "watch",
    "follow",
    "stop",
    "create",
    "speak",
    "allow",
    "add",
    "spend",
    "grow",
    "walk",
    "win",
    "offer",
    "remember",
    "love",
    "consider",
    "appear",
    "buy",
    "wait",
    "serve",
    "die",
    "send",
    "expect",
    "build",
    "stay",
    "fall",
    "cut",
    "reach",
    "kill",
    "remain",
    "suggest",
    "raise",
    "pass",
    "sell",
    "require",
    "report",
    "decide",
    "server",
    "client",
    "request",
    "token",
    "cache",
    "index",
    "vector",
    "query",
    "search",
    "store",
    "table",
    "column",
    "row",
    "key",
    "value",
    "queue",
    "worker",
    "thread",
    "process",
    "memory",
    "disk",
    "file",
    "folder",
    "path",
    "link",
    "page",
    "socket",
    "port",
    "host",
    "error",
    "timeout",
    "retry",
    "limit",
    "budget",
    "model",
    "prompt",
    "answer",
    "agent",
    "task",
    "check",
    "test",
    "build",
    "deploy",
]
SECTIONS = 2
SENTENCES = 8


def section(chance: random.Random) -> str:
    """About a hundred words."""
    sentences = []
    for _ in range(SENTENCES):
        words = chance.choices(WORDS, k=chance.randint(9, 16))
        sentences.append(f"{' '.join(words).capitalize()}.")
    return " ".join(sentences)


def text(number: int, version: int, seed: int) -> str:
    """A file; another ``version`` has another last section."""
    parts = [f"# Note {number}\n"]
    for at in range(SECTIONS):
        last = version if at == SECTIONS - 1 else 0
        chance = random.Random(f"{seed}:{number}:{at}:{last}")
        parts.append(f"## {chance.choice(WORDS)} {at}\n\n{section(chance)}\n")
    return "\n".join(parts)


def write_all(folder: Path, count: int, seed: int) -> None:
    """Write ``count`` files, a hundred to a folder."""
    for number in range(count):
        path = _path(folder, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(number, 0, seed))


def change(folder: Path, count: int, share: float, seed: int) -> int:
    """Write another version of a share of them; returns how many."""
    changed = list(_changed(count, share))
    for number in changed:
        _path(folder, number).write_text(text(number, 1, seed))
    return len(changed)


def _changed(count: int, share: float) -> Iterator[int]:
    step = max(1, round(1 / share))
    return iter(range(0, count, step))


def _path(folder: Path, number: int) -> Path:
    return folder / f"d{number // 100:04d}" / f"note-{number:06d}.md"
