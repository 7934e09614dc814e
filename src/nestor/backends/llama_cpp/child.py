"""The child process that runs llama.cpp: ``python -m nestor.backends.llama_cpp.child``.

Reads one JSON line from stdin (``model_path``, ``api_key``, ``context_tokens``,
``alias``, ``parent_pid``): the key never stands in a command line. Writes one JSON line to stdout:
``{"base_url": …}`` once the model is loaded, or ``{"error": …}``. It ends when stdin does,
that is when its parent ends, however that happens.
"""

import ctypes
import json
import os
import signal
import sys
import threading
from typing import Any, NoReturn, TextIO

_PR_SET_PDEATHSIG = 1


def main() -> NoReturn:
    """Load, report, serve until stdin ends."""
    told = _private_stdout()
    config = json.loads(sys.stdin.readline())
    _die_with_parent(config["parent_pid"])
    try:
        server = _serve(config)
    except Exception as error:  # noqa: BLE001 - process edge: the parent is told, then exit
        _tell(told, {"error": str(error) or type(error).__name__})
        os._exit(1)
    _tell(told, {"base_url": f"{server.listening_address}/v1"})
    threading.Event().wait()
    raise AssertionError


def _serve(config: dict[str, Any]) -> Any:
    import xllamacpp  # noqa: PLC0415 - an extra; its absence is told to the parent

    params = xllamacpp.CommonParams()
    params.model.path = config["model_path"]
    params.model_alias = {config["alias"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [config["api_key"]]
    params.n_ctx = config["context_tokens"]
    params.cors_origins = "http://127.0.0.1"
    params.ui = False
    params.verbosity = 2  # warnings and errors: the log must not grow with use
    params.endpoint_slots = False
    return xllamacpp.Server(params)


def _private_stdout() -> TextIO:
    """Keep the pipe to the parent for us; what llama.cpp prints goes to stderr, the log."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return pipe


def _tell(pipe: TextIO, message: dict[str, str]) -> None:
    pipe.write(json.dumps(message) + "\n")
    pipe.flush()


def _die_with_parent(parent_pid: int) -> None:
    """Two ways, since loading holds the interpreter lock: the kernel's, and stdin's end.

    The kernel's fires when the *thread* that started us ends; that is the event loop's.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it ended before the line above took effect
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_exit_at_end_of_stdin, daemon=True).start()


def _exit_at_end_of_stdin() -> NoReturn:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
