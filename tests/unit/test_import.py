"""Importing the package does nothing: no file, no socket, no driver."""

import subprocess
import sys

WATCH = """
import sys
seen = []
sys.addaudithook(
    lambda event, arguments: seen.append((event, str(arguments[0])))
    if event in {"open", "socket.connect", "socket.bind", "subprocess.Popen"}
    else None
)
import nestor
for event, what in seen:
    if not (event == "open" and "/nestor/__init__." in what or "__pycache__" in what):
        print(event, what)
for name in sorted(sys.modules):
    if name.split(".")[0] in DRIVERS:
        print("imported", name)
"""
DRIVERS = {
    *("sqlalchemy", "dbos", "qdrant_edge", "aiohttp", "litestar", "pydantic"),
    *("uvicorn", "msgspec", "structlog", "prometheus_client"),
}


def test_importing_the_package_opens_nothing_and_imports_no_driver() -> None:
    program = f"DRIVERS = {DRIVERS!r}\n{WATCH}"

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout == ""
