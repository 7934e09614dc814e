"""Faults in reading documents, cutting them and walking folders."""

from tools.faults.fault import Fault

_D = "backends/documents/"
_CONTRACT = "tests/contracts/test_document_reader.py"
_CHILDREN = "tests/contracts/test_document_children.py"
_WALK = "tests/unit/test_folder_walk.py"


def _one(name: str, file: str, was: str, becomes: str, *test: str) -> Fault:
    return Fault(f"aidb reader: {name}", ((file, was, becomes),), test)


FAULTS: tuple[Fault, ...] = (
    _one(
        "links are followed",
        _D + "opening.py",
        "_check(os.lstat(path))",
        "_check(os.stat(path))",
        *(_CONTRACT, "-k", "no_file"),
    ),
    _one(
        "a file that grows is taken",
        _D + "opening.py",
        "if not same or size != after.st_size:",
        "if False:",
        *(_CONTRACT, "-k", "grows"),
    ),
    _one(
        "a large file is read whole",
        _D + "opening.py",
        "if state.st_size > MAX_BYTES:",
        "if state.st_size > MAX_BYTES * 64:",
        *(_CONTRACT, "-k", "no_file"),
    ),
    _one(
        "what is no UTF-8 is guessed at",
        _D + "decoding.py",
        "text = body.decode(encoding)",
        'text = body.decode(encoding, "replace")',
        *(_CONTRACT, "-k", "no_text"),
    ),
    _one(
        "NUL is text",
        _D + "decoding.py",
        'if (at := text.find("\\0")) >= 0:',
        'if (at := text.find("\\0")) > 10**9:',
        *(_CONTRACT, "-k", "no_text"),
    ),
    _one(
        "Python decides what an encoding is",
        _D + "decoding.py",
        "if label is None or not _ENCODINGS.fullmatch(label.strip().lower()):",
        "if label is None:",
        *(_CONTRACT, "-k", "browsers"),
    ),
    _one(
        "the depth of HTML is not looked at",
        _D + "html_spans.py",
        "if depth > DEEPEST:",
        "if depth > DEEPEST * 1_000:",
        *(_CONTRACT, "-k", "no_text"),
    ),
    _one(
        "navigation is text",
        _D + "html_spans.py",
        "if tag not in _LEFT_OUT:",
        'if tag != "script":',
        "tests/unit/test_chunk_html.py",
    ),
    _one(
        "pages are not counted",
        _D + "pdf_spans.py",
        "for page, text in enumerate(texts, 1):",
        "for page, text in enumerate(texts, 0):",
        *(_CONTRACT, "-k", "by_page"),
    ),
    _one(
        "a PDF may unpack without end",
        _D + "pdf_spans.py",
        "zlib_maximum_output_length=32 * _MIB,",
        "zlib_maximum_output_length=4096 * _MIB,",
        *(_CONTRACT, "-k", "hostile_pdf"),
    ),
    _one(
        "a scanned PDF is an empty document",
        _D + "pdf_spans.py",
        "if not any(text.strip() for text in texts):",
        "if not texts:",
        *(_CONTRACT, "-k", "scanned"),
    ),
    _one(
        "nobody looks at the clock",
        _D + "children.py",
        "async with asyncio.timeout(self._seconds):",
        "async with asyncio.timeout(None):",
        *(_CHILDREN, "-k", "stuck"),
    ),
    _one(
        "a child that broke off condemns its document",
        _D + "children.py",
        "for plain in (False, True):",
        "for plain in (False,):",
        *(_CHILDREN, "-k", "is_killed_is_replaced"),
    ),
    _one(
        "a child that was left is used again",
        _D + "children.py",
        "            kept = False\n",
        "            kept = True\n",
        *(_CHILDREN, "-k", "who_leaves or too_long"),
    ),
    _one(
        "close leaves the children",
        _D + "children.py",
        "for child in list(self._all):",
        "for child in []:",
        *(_CHILDREN, "-k", "closed"),
    ),
    _one(
        "a child inherits the environment",
        _D + "children.py",
        'env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},',
        "env=None,",
        *(_CHILDREN, "-k", "secret"),
    ),
    _one(
        "a name is told as it came",
        _D + "children.py",
        "if unicodedata.category(char) in _HIDING",
        "if False",
        *(_CONTRACT, "-k", "harmless"),
    ),
    _one(
        "a child outlives its parent",
        _D + "child.py",
        "libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)",
        "libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)",
        *(_CHILDREN, "-k", "outlives"),
    ),
    _one(
        "a child may take any memory",
        _D + "child.py",
        "(resource.RLIMIT_AS, limits.memory_bytes),",
        "(resource.RLIMIT_AS, 1 << 40),",
        *(_CHILDREN, "-k", "memory or secret"),
    ),
    _one(
        "a child may write files",
        _D + "child.py",
        "(resource.RLIMIT_FSIZE, 0),",
        "(resource.RLIMIT_FSIZE, 1 << 30),",
        *(_CHILDREN, "-k", "secret"),
    ),
    _one(
        "CR LF are two line ends",
        _D + "blocks.py",
        'count -= content.count("\\r\\n", start, end)',
        "count -= 0",
        *(_CONTRACT, "-k", "lines"),
    ),
    _one(
        "the end of a long piece is lost",
        _D + "blocks.py",
        "    if start < end:\n        yield start, end",
        "    if start + 1 < end:\n        yield start, end",
        "tests/unit/test_chunk.py",
    ),
    _one(
        "a title takes time with the square of its paragraph",
        _D + "chunk.py",
        "and pending.end - pending.start <= _LONGEST_HEADING",
        "and True",
        *("tests/unit/test_chunk.py", "-k", "looked_at_again"),
    ),
    _one(
        "decorators are left behind",
        _D + "code_spans.py",
        "_LEADING = frozenset({",
        "_LEADING = frozenset({}) and frozenset({",
        "tests/unit/test_chunk_code.py",
    ),
    _one(
        "bytes are taken for characters",
        _D + "code_spans.py",
        "self._ascii = len(raw) == len(content)",
        "self._ascii = True",
        *("tests/unit/test_chunk_code.py", "-k", "beyond"),
    ),
    _one(
        "git's list is not asked for",
        "cli/folder.py",
        "if ignored is None or ignored.returncode == 0:",
        "if True:",
        *(_WALK, "-k", "tracked"),
    ),
    _one(
        "a repository may start programs",
        "cli/folder.py",
        '["git", *options, *args],',
        '["git", *args],',
        *(_WALK, "-k", "starts_no_program"),
    ),
    _one(
        "hidden files are taken",
        "cli/folder.py",
        'if entry.name.startswith("."):',
        'if entry.name.startswith(".git"):',
        *(_WALK, "-k", "hidden"),
    ),
    _one(
        "links out of the folder are only links",
        "cli/folder.py",
        "return (LINK,) if target.is_relative_to(root) else (LINK_OUT,)",
        "return (LINK,)",
        *(_WALK, "-k", "links"),
    ),
    _one(
        "binary files are taken",
        "cli/folder.py",
        "elif _binary(entry.path):",
        "elif False:",
        *(_WALK, "-k", "no_text"),
    ),
    _one(
        "the first line that fits decides",
        "cli/ignore_rules.py",
        "[pattern for pattern in found if pattern][::-1]",
        "[pattern for pattern in found if pattern]",
        *(_WALK, "-k", "git_says"),
    ),
)
