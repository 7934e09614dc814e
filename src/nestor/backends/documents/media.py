"""What a document is: by its name, else by what the sender says, else by how it begins."""

import re
from pathlib import PurePosixPath
from typing import NamedTuple

TEXT = "text/plain"
MARKDOWN = "text/markdown"
HTML = "text/html"
PDF = "application/pdf"

_BY_SUFFIX = {
    **dict.fromkeys((".md", ".markdown", ".mdx", ".mkd"), MARKDOWN),
    **dict.fromkeys((".html", ".htm", ".xhtml"), HTML),
    ".pdf": PDF,
    **dict.fromkeys((".bash", ".sh", ".bats"), "text/x-bash"),
    ".c": "text/x-c",
    **dict.fromkeys((".cc", ".cpp", ".cxx", ".h", ".hh", ".hpp", ".hxx"), "text/x-cpp"),
    ".go": "text/x-go",
    ".java": "text/x-java",
    **dict.fromkeys((".js", ".cjs", ".mjs", ".jsx"), "text/x-javascript"),
    **dict.fromkeys((".py", ".pyi", ".pyw"), "text/x-python"),
    ".rs": "text/x-rust",
    **dict.fromkeys((".ts", ".cts", ".mts"), "text/x-typescript"),
    ".tsx": "text/x-tsx",
}
"""A header is read as C++, whose grammar reads C as well."""
_BY_MEDIA = {
    "text/x-markdown": MARKDOWN,
    "application/xhtml+xml": HTML,
    "application/x-pdf": PDF,
    "application/x-sh": "text/x-bash",
    "text/x-sh": "text/x-bash",
    "text/x-shellscript": "text/x-bash",
    "text/x-c++": "text/x-cpp",
    "text/x-csrc": "text/x-c",
    "text/x-c++src": "text/x-cpp",
    "text/x-java-source": "text/x-java",
    "text/javascript": "text/x-javascript",
    "application/javascript": "text/x-javascript",
    "application/typescript": "text/x-typescript",
    "text/x-script.python": "text/x-python",
    **{media: media for media in _BY_SUFFIX.values()},
}
_SCRIPT = re.compile(
    rb"#![^\r\n]{0,100}\b(?:(bash|sh|dash|zsh)|(python)[\d.]*|(node))\b"
)
_HTML = re.compile(
    rb"\s*(?:<!--.{0,2000}?-->\s*)?<(?:!doctype\s+html|html)\b",
    re.IGNORECASE | re.DOTALL,
)
_CHARSET = re.compile(r";\s*charset\s*=\s*[\"']?([^\s;\"']+)", re.IGNORECASE)
_HEAD = 4096


class Kind(NamedTuple):
    """``media`` is one of those ``model.knowledge.Document.media`` names."""

    media: str
    charset: str | None


def kind_of(name: str, said: str | None, head: bytes) -> Kind:
    """Decide what to read as. ``said``: a media type, perhaps with ``charset``."""
    told, charset = _parsed(said)
    media = _BY_SUFFIX.get(PurePosixPath(name).suffix.lower())
    if media is None:
        media = _BY_MEDIA.get(told) or _begins(head[:_HEAD])
    return Kind(media, charset)


def _begins(head: bytes) -> str:
    if head.startswith(b"%PDF-"):
        return PDF
    if _HTML.match(head):
        return HTML
    if script := _SCRIPT.match(head):
        names = ("text/x-bash", "text/x-python", "text/x-javascript")
        return names[(script.lastindex or 1) - 1]
    return TEXT


def _parsed(said: str | None) -> tuple[str, str | None]:
    if not said:
        return "", None
    said = said[:1000]
    charset = _CHARSET.search(said)
    return said.partition(";")[0].strip().lower(), charset[1] if charset else None
