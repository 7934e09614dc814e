"""No request says where a model is, or what its server should fetch.

Asked of every request before anything else happens to it, in every dialect, so it walks
objects and lists once, asks of each name what it was found to be before, and puts a path
together only for the error.
"""

import re
from typing import Any

import msgspec

from nestor.errors import InvalidInput

_STEERS = frozenset(
    {
        *("apibase", "apihost", "apikey", "apitype", "apiurl", "apiversion"),
        *("authorization", "awsbedrockruntimeendpoint", "azureendpoint", "baseurl"),
        *("customllmprovider", "defaultheaders", "defaultquery", "deployment"),
        *("deploymentid", "endpoint", "engine", "extrabody", "extraheaders"),
        *("extraquery", "fallbacks", "headers", "host", "httpclient"),
        *("kvtransferparams", "litellmparams", "modellist", "organization"),
        *("proxies", "proxy", "serverurl", "url"),
    }
)
"""Would let a caller choose where a provider's key goes. Addresses come from settings.

Compared as ``_plain`` writes them: ``apiBase``, ``API-BASE`` and ``api.base`` mean the same.
"""
_EVERYDAY = frozenset(
    {"deployment", "endpoint", "engine", "host", "organization", "url"}
)
"""Fine as labels of ``metadata``, whose texts no server acts on."""
_LINK = re.compile(r".*ur[il]s?|href|links?")
"""What holds nothing but an address."""
_MEDIA = frozenset(
    {
        *("audio", "data", "document", "file", "filedata", "fileid", "image"),
        *("inputaudio", "inputfile", "inputimage", "media", "source", "src", "video"),
    }
)
"""Holds bytes or an id; some servers take an address there as well."""
_ADDRESS = re.compile(r"\s*(?!data:)([A-Za-z][A-Za-z0-9+.-]*:|//)")
_BYTES = re.compile(r"[A-Za-z0-9+/]{256}")
"""Base64 may begin with ``//`` (that of an MP3 does); no name of a host is so long."""
_DEEPEST, _LONGEST_FIELD = 32, 200
_MOST_PARTS = 20_000
"""Objects and lists in one request: each takes microseconds of the loop that serves."""

_SPOKEN = frozenset({"input", "instructions", "messages", "system"})
"""What a model is told: a ``url`` in there may carry bytes (``data:``)."""
_LABELS = frozenset({"client_metadata", "metadata"})
_CONTAINERS = frozenset({dict, list})

_OTHER, _STEER, _LINKED, _HELD, _UNKNOWN = range(5)
_MOST_NAMES, _LONGEST_NAME = 4096, 64
_found: dict[str, int] = {}
"""What names were found to be. Callers choose names, so it is emptied when it is full."""

_Link = tuple[Any, str | int]
"""The way back to the top: the link of what is around (or None), and the name in it."""


class _Place(msgspec.Struct):
    """A place in a request of which more is known than its name says."""

    inside: dict[str, "_Place"] = {}
    free: bool = False
    """Not looked at: the names in it are the caller's own."""
    only_text: bool = False
    member: str | None = None
    values: frozenset[str] = frozenset()
    """Free only beside a ``member`` that is one of them."""

    def applies(self, value: Any, beside: dict[str, Any]) -> bool:
        """Tell whether this value, with what is beside it, is one that is free."""
        if self.only_text and not isinstance(value, str):
            return False
        if self.member is None:
            return True
        said = beside.get(self.member)
        return isinstance(said, str) and said in self.values


def _places() -> _Place:
    root = _Place(inside={})

    def free(path: str, member: str | None = None, *values: str, text: bool = False) -> None:  # fmt: skip
        place = root
        for name in path.split("."):
            place = place.inside.setdefault(name, _Place(inside={}))
        place.free, place.only_text = True, text
        place.member, place.values = member, frozenset(values)

    # JSON schemas, and examples of what fits them. The last four are llama.cpp's and vLLM's.
    for path in (
        *("tools.*.function.parameters", "functions.*.parameters"),
        *("tools.*.input_schema", "tools.*.input_examples", "tools.*.parameters"),
        *("tools.*.tools.*.parameters", "text.format.schema"),
        *("output_config.format.schema", "output_format.schema"),
        "response_format.json_schema.schema",
        *("response_format.schema", "json_schema"),
        *("guided_json", "structured_outputs.json"),
    ):
        free(path)
    # What a model wrote or was shown by its provider: nobody acts on it a second time.
    calls = ("tool_use", "server_tool_use", "mcp_tool_use")
    free("messages.*.annotations", "role", "assistant")
    free("messages.*.content.*.input", "type", *calls)
    free("messages.*.content.*.citations", "type", "text")
    free("input.*.content.*.annotations", "type", "output_text")
    for parts in ("messages.*.content.*", "messages.*.content.*.content.*"):
        # Texts, whatever they begin with.
        free(f"{parts}.source", "type", "search_result", text=True)
        free(f"{parts}.source.data", "type", "text", text=True)
    result = "messages.*.content.*.content"
    free(f"{result}.*.url", "type", "web_search_result", text=True)
    free(f"{result}.url", "type", "web_fetch_result", text=True)
    free(f"{result}.content.source.data", "type", "text", text=True)
    return root


_ROOT = _places()


def refuse_pointers(request: dict[str, Any]) -> None:
    """Refuse what says where to go, at any depth. Texts are not read: they may name anything.

    Raises ``InvalidInput`` that names the field.
    """
    todo: list[tuple[Any, _Link | None, int, _Place | None]] = [
        (request, None, 0, _ROOT)
    ]
    add, known = todo.append, _found
    for value, link, depth, place in todo:  # grows while it is read: outer fields first
        if len(todo) > _MOST_PARTS or depth > _DEEPEST:
            raise _unbounded(link, depth)
        inside = place.inside if place is not None else None
        if isinstance(value, list):
            nearby = inside.get("*") if inside else None
            for number, inner in enumerate(value):
                if type(inner) in _CONTAINERS:
                    add((inner, (link, number), depth + 1, nearby))
            continue
        for name, inner in value.items():
            nearby = inside.get(name) if inside else None
            if nearby is not None and nearby.free and nearby.applies(inner, value):
                continue
            if known.get(name, _UNKNOWN):
                _refuse_pointer((link, name), inner)
            if type(inner) in _CONTAINERS:
                add((inner, (link, name), depth + 1, nearby))


def _sort(name: str) -> int:
    known = _found.get(name)
    if known is not None:
        return known
    plain = _plain(name)
    if plain in _STEERS:
        found = _STEER
    elif _LINK.fullmatch(plain):
        found = _LINKED
    else:
        found = _HELD if plain in _MEDIA else _OTHER
    if len(name) <= _LONGEST_NAME:
        if len(_found) >= _MOST_NAMES:
            _found.clear()
        _found[name] = found
    return found


def _refuse_pointer(link: _Link, value: Any) -> None:
    sort = _sort(str(link[1]))
    if sort == _OTHER:
        return
    path = _path(link)
    top, name = path[0], _plain(str(path[-1]))
    label = top in _LABELS and len(path) == 2 and isinstance(value, str)  # noqa: PLR2004 - metadata and a name in it
    if sort == _STEER:
        media = name == "url" and top in _SPOKEN
        if not (media or (label and name in _EVERYDAY)):
            message = "not accepted: where models are is a setting of the server"
            raise InvalidInput.at(_field(link), message)
    if label or value is None or isinstance(value, dict):
        return  # what an object holds is looked at by itself
    # A model's server would fetch it for the caller, from inside its network.
    if sort == _HELD:
        texts = value if isinstance(value, list) else [value]
        refused = any(isinstance(text, str) and _leads(text) for text in texts)
    elif _LINK.fullmatch(name):
        refused = not (isinstance(value, str) and value.startswith("data:"))
    else:
        refused = False
    if refused:
        message = "only data: URLs are accepted; send the bytes"
        raise InvalidInput.at(_field(link), message)


def _leads(text: str) -> bool:
    """Tell whether it is an address; bytes in base64 are none."""
    return bool(_ADDRESS.match(text)) and not _BYTES.match(text)


def _unbounded(link: _Link | None, depth: int) -> InvalidInput:
    if depth > _DEEPEST:
        return InvalidInput.at(_field(link), f"nested deeper than {_DEEPEST}")
    top = str(_path(link)[0]) if link else "messages"
    return InvalidInput.at(
        _printable(top), f"more than {_MOST_PARTS} objects and lists"
    )


def _path(link: _Link | None) -> list[str | int]:
    path: list[str | int] = []
    while link is not None:
        link, name = link
        path.append(name)
    return path[::-1]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _field(link: _Link | None) -> str:
    return _printable(".".join(map(str, _path(link))))


def _printable(text: str) -> str:
    """Keep a caller's name from breaking a line of a log, or filling it."""
    kept = (c if " " <= c <= "~" else "?" for c in text[:_LONGEST_FIELD])
    return "".join(kept)
