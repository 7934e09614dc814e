"""Cut code along its classes and functions, by tree-sitter.

A function is a piece of its own, whole unless it is over the limit; comments, decorators
and attributes stay with what follows them, a docstring with what it describes. What
stands between is cut as text is. The heading is the path: ``Shop > total``.
"""

import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from nestor.backends.documents.blocks import LIMIT, Block, Span, short, spans
from nestor.backends.documents.chunk import paragraphs

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

MOST_BYTES = 4 * 1024 * 1024
"""A larger file is cut as text: its tree would take some hundred times its size."""
_DEEPEST = 12
"""Classes in classes; what is below is cut as text."""
_SHORT_HEADER = 160
"""Characters of a class above its first method that make no piece of their own."""
_LONGEST_TAIL = 200

_GRAMMARS = {
    "text/x-bash": ("tree_sitter_bash", "language"),
    "text/x-c": ("tree_sitter_c", "language"),
    "text/x-cpp": ("tree_sitter_cpp", "language"),
    "text/x-go": ("tree_sitter_go", "language"),
    "text/x-java": ("tree_sitter_java", "language"),
    "text/x-javascript": ("tree_sitter_javascript", "language"),
    "text/x-python": ("tree_sitter_python", "language"),
    "text/x-rust": ("tree_sitter_rust", "language"),
    "text/x-tsx": ("tree_sitter_typescript", "language_tsx"),
    "text/x-typescript": ("tree_sitter_typescript", "language_typescript"),
}


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_FUNCTIONS = _set(
    """
    function_definition function_declaration generator_function_declaration
    method_definition function_signature method_declaration constructor_declaration
    compact_constructor_declaration function_item function_signature_item
    macro_definition abstract_method_signature enum_declaration record_declaration
    annotation_type_declaration type_alias_declaration type_declaration struct_item
    enum_item union_item enum_specifier union_specifier type_definition
    concept_definition
    """
)
_CLASSES = _set(
    """
    class_definition class_declaration abstract_class_declaration
    interface_declaration internal_module module impl_item trait_item mod_item
    class_specifier struct_specifier namespace_definition
    """
)
_WITH_BODY_ONLY = _set(
    """
    class_specifier struct_specifier enum_specifier union_specifier
    """
)
_WRAPPERS = _set(
    """
    decorated_definition export_statement template_declaration ambient_declaration
    lexical_declaration variable_declaration expression_statement
    """
)
"""Stand around one definition, which takes their whole text."""
_THROUGH = _set(
    """
    preproc_ifdef preproc_if preproc_else preproc_elif linkage_specification
    declaration_list class_body field_declaration_list interface_body block
    statement_block compound_statement enum_body statement_list
    """
)
"""Hold definitions, without a name of their own."""
_LEADING = frozenset({"attribute_item", "decorator"})
_VALUES = _set(
    """
    arrow_function function_expression generator_function class function
    class_expression
    """
)
_TYPE_ARGUMENTS = re.compile(r"[<\[(].*", re.DOTALL)


def languages() -> Sequence[str]:
    """Return the media types that are cut by structure."""
    return tuple(_GRAMMARS)


def code_spans(
    content: str,
    media: str,
    *,
    limit: int = LIMIT,
) -> list[Span]:
    """Return the spans of the pieces; as of plain text where there is too much."""
    raw = content.encode()
    if len(raw) > MOST_BYTES:
        return spans(content, paragraphs(content, 0, len(content)), limit)
    root = _parser(media).parse(raw).root_node
    cuts = [cut for cut in _Cutter(raw, limit).cuts(root) if cut.start < cut.end]
    offsets = _Offsets(raw, content)
    blocks = (
        Block(
            start=offsets.char(cut.start),
            end=offsets.char(cut.end),
            path=cut.path,
            opens=cut.opens,
            bare=cut.bare,
        )
        for cut in cuts
    )
    return spans(content, _finer(content, blocks, limit), limit)


@cache
def _parser(media: str) -> "Parser":
    from tree_sitter import Language, Parser  # noqa: PLC0415 - only where code is read

    package, function = _GRAMMARS[media]
    grammar = getattr(importlib.import_module(package), function)
    return Parser(Language(grammar()))


@dataclass(slots=True)
class _Cut:
    """A block whose offsets are bytes still."""

    start: int
    end: int
    path: tuple[str, ...]
    opens: bool = True
    bare: bool = False


class _Cutter:
    """Walks the definitions of a tree; its cuts are in order and leave nothing out."""

    def __init__(self, raw: bytes, limit: int) -> None:
        self._raw = raw
        self._limit = limit

    def cuts(self, root: "Node") -> Iterator[_Cut]:
        yield from self._inside(root, (), 0, len(self._raw), 0)

    def _inside(
        self, node: "Node", path: tuple[str, ...], start: int, end: int, depth: int
    ) -> Iterator[_Cut]:
        """Cut ``start`` to ``end``, which the children of ``node`` lie in."""
        at, last = start, None
        for found in self._definitions(node, start):
            if found.start > at:
                yield self._between(at, found.start, path, last)
            for cut in self._definition(found, path, depth):
                last = cut.path
                yield cut
            at = found.end
        if at < end:
            yield self._between(at, end, path, last)

    def _between(
        self,
        start: int,
        end: int,
        path: tuple[str, ...],
        last: tuple[str, ...] | None,
    ) -> _Cut:
        """What is no definition; a lone bracket belongs to what stands before it."""
        if (
            last is not None
            and end - start <= _LONGEST_TAIL
            and not re.search(rb"[\w\x80-\xff]", self._raw[start:end])
        ):
            return _Cut(start, end, last, opens=False)
        return _Cut(start, end, path)

    def _definition(
        self, found: "_Found", path: tuple[str, ...], depth: int
    ) -> Iterator[_Cut]:
        inner = (*path, *found.names)
        size = found.end - found.start
        descend = found.holds or size > self._limit
        if not descend or depth >= _DEEPEST:
            yield _Cut(found.start, found.end, inner)
            return
        first = True
        for cut in self._inside(found.node, inner, found.start, found.end, depth + 1):
            if first and cut.path == inner and cut.end < found.end:
                cut.bare = cut.end - cut.start <= _SHORT_HEADER and not re.search(
                    rb"[\"']{3}", self._raw[cut.start : cut.end]
                )
            first = False
            yield cut

    def _definitions(self, node: "Node", start: int) -> Iterator["_Found"]:
        """Yield the nearest definitions below ``node``, each with what leads to it."""
        lead: int | None = None
        row = -1  # where the last thing that was not a comment ended
        for child in _flat(node):
            kind = child.type
            if "comment" in kind or kind in _LEADING:
                if lead is None and child.start_point.row > row:
                    lead = child.start_byte
                continue
            found = _found(child)
            if found is not None:
                begin = child.start_byte
                if lead is not None and not self._stands_alone(lead, begin):
                    begin = lead
                while begin > start and self._raw[begin - 1] in b" \t":
                    begin -= 1  # the indentation
                end = self._line_end(child)
                yield _Found(
                    found.node, found.names, max(begin, start), end, found.holds
                )
                start = end
            if child.is_named or kind not in {";", ","}:
                lead, row = None, child.end_point.row

    def _stands_alone(self, lead: int, begin: int) -> bool:
        """A licence at the top of a file, with a blank line below it, leads to nothing."""
        if self._raw[:lead].strip(b"\xef\xbb\xbf \t\r\n"):
            return False
        return re.search(rb"\n[ \t\r]*\n", self._raw[lead:begin]) is not None

    def _line_end(self, node: "Node") -> int:
        """Take a ``;`` and a comment on the same line along."""
        end, row = node.end_byte, node.end_point.row
        after = node.next_sibling
        while after is not None and after.start_point.row == row:
            if after.type != ";" and "comment" not in after.type:
                break
            end, after = after.end_byte, after.next_sibling
        return end


@dataclass(frozen=True, slots=True)
class _Found:
    node: "Node"
    names: tuple[str, ...]
    start: int
    end: int
    holds: bool
    """Its parts are pieces of their own."""


def _flat(node: "Node") -> Iterator["Node"]:
    """Yield the children, and those of what only holds them. Never recurses."""
    waiting = [iter(node.children)]
    while waiting:
        child = next(waiting[-1], None)
        if child is None:
            waiting.pop()
        elif child.type in _THROUGH:
            waiting.append(iter(child.children))
        else:
            yield child


def _found(node: "Node") -> _Found | None:
    """Tell whether a node is a definition, or stands around one."""
    inner: Node | None = node
    for _ in range(6):
        if inner is None:
            return None
        kind = inner.type
        if kind in _CLASSES or kind in _FUNCTIONS:
            if kind in _WITH_BODY_ONLY and inner.child_by_field_name("body") is None:
                return None
            names = _names(inner)
            return _Found(inner, names, 0, 0, kind in _CLASSES) if names else None
        if kind in {"variable_declarator", "assignment_expression"}:
            return _assigned(inner)
        if kind not in _WRAPPERS:
            return None
        inner = _wrapped(inner)
    return None


def _wrapped(node: "Node") -> "Node | None":
    for child in node.named_children:
        if (
            child.type in _WRAPPERS
            or child.type in _CLASSES
            or child.type in _FUNCTIONS
            or child.type in {"variable_declarator", "assignment_expression"}
        ):
            return child
    return None


def _assigned(node: "Node") -> _Found | None:
    """Read ``const total = () => …`` and ``module.exports.total = function …``."""
    value = node.child_by_field_name("value") or node.child_by_field_name("right")
    name = node.child_by_field_name("name") or node.child_by_field_name("left")
    if value is None or name is None or value.type not in _VALUES:
        return None
    return _Found(value, (_text(name),), 0, 0, value.type.startswith("class"))


def _names(node: "Node") -> tuple[str, ...]:
    """Return a definition's name, with the type it belongs to where that is elsewhere."""
    name = node.child_by_field_name("name")
    if node.type == "impl_item":
        kind = node.child_by_field_name("type")
        return (_TYPE_ARGUMENTS.sub("", _text(kind)),) if kind else ()
    if node.type == "type_declaration":  # Go: of one type, or of several in brackets
        specs = [c for c in node.named_children if c.child_by_field_name("name")]
        name = specs[0].child_by_field_name("name") if len(specs) == 1 else None
    if receiver := node.child_by_field_name("receiver"):
        owner = _TYPE_ARGUMENTS.sub("", _text(receiver).strip("()").split()[-1])
        return (owner.lstrip("*"), _text(name)) if name and owner else ()
    if name is None:
        name = _declared(node)
    if name is None:
        return ("anonymous namespace",) if node.type == "namespace_definition" else ()
    return tuple(part for part in _text(name).strip("\"'").split("::") if part)


def _declared(node: "Node") -> "Node | None":
    """C: the name stands at the bottom of ``*(*total)(int)``."""
    inner = node.child_by_field_name("declarator")
    for _ in range(20):
        below = inner.child_by_field_name("declarator") if inner else None
        if below is None:
            break
        inner = below
    return inner


def _text(node: "Node") -> str:
    return short((node.text or b"")[:2_000].decode(errors="replace"))


def _finer(content: str, blocks: Iterator[Block], limit: int) -> Iterator[Block]:
    """Cut what is over the limit at its blank lines, as text is."""
    for block in blocks:
        if block.end - block.start <= limit:
            yield block
            continue
        for part in paragraphs(content, block.start, block.end):
            part.path = block.path
            part.opens, block.opens = block.opens, False
            yield part


class _Offsets:
    """Bytes to characters, for places that are asked for in order."""

    def __init__(self, raw: bytes, content: str) -> None:
        self._raw = raw
        self._ascii = len(raw) == len(content)
        self._byte = self._char = 0

    def char(self, byte: int) -> int:
        """Count the characters before a byte."""
        if self._ascii:
            return byte
        part = self._raw[self._byte : byte]
        self._char += len(part.translate(None, _CONTINUATION))
        self._byte = byte
        return self._char


_CONTINUATION = bytes(range(0x80, 0xC0))
