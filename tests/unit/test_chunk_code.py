"""Code in pieces: along its classes and functions, whatever it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestor.backends.documents.blocks import LIMIT, pieces
from nestor.backends.documents.code_spans import code_spans, languages
from nestor.ports.document_reader import Piece


def cut(code: str, language: str, limit: int = LIMIT) -> list[Piece]:
    return pieces(code, code_spans(code, f"text/x-{language}", limit=limit))


SHOPS: dict[str, tuple[str, list[str]]] = {
    "bash": (
        """\
# lead
function total() {
  echo 1
}

empty() {
  echo
}
""",
        ["total", "empty"],
    ),
    "c": (
        """\
#ifndef A
#define A
struct shop {
  int a;
};

/* lead */
static int *total(struct shop *s) {
  return 0;
}
#endif
""",
        ["", "shop", "total", ""],
    ),
    "cpp": (
        """\
namespace sea {

/// A shop.
template <class T> class Shop : Base {
public:
  // lead
  int total() const { return 1; }
};

int Shop::empty() {
  return 2;
}
}
""",
        ["sea > Shop > total", "sea > Shop > empty"],
    ),
    "go": (
        """\
package a

// lead
func (s *Shop[T]) Total() int {
\treturn 1
}

type Shop struct {
\ta int
}

func main() {}
""",
        ["", "Shop > Total", "Shop", "main"],
    ),
    "java": (
        """\
package a;

/** A shop. */
@Sea
public class Shop {
  /** lead */
  int total() { return 1; }

  Shop() {}
}
""",
        ["", "Shop > total", "Shop > Shop"],
    ),
    "javascript": (
        """\
// lead
export default class Shop {
  total() { return 1 }
  empty() {}
}

const sell = async () => {
  x()
};

module.exports.buy = function () {};
""",
        ["Shop > total", "Shop > empty", "sell", "module.exports.buy"],
    ),
    "python": (
        """\
class Shop:
    class Till:
        def total(self):
            pass

async def main():
    pass
""",
        ["Shop > Till > total", "main"],
    ),
    "rust": (
        """\
/// A shop.
#[derive(Debug)]
struct Shop<T> {
    a: T,
}

impl<T> Sell for Shop<T> {
    // lead
    fn total(&self) {}
}

mod sea {
    fn f() {}
}
""",
        ["Shop", "Shop > total", "sea > f"],
    ),
    "tsx": (
        """\
export const Shop = () => {
  return <p>walrus</p>
}
""",
        ["Shop"],
    ),
    "typescript": (
        """\
@Injectable()
export class Shop {
  @Lead()
  total(): number { return 1 }
}

interface Sea {
  a(): void
}

namespace N {
  export function f() {}
}

type T = string
""",
        ["Shop > total", "Sea", "N > f", "T"],
    ),
}


def test_every_language_has_an_example() -> None:
    assert sorted(languages()) == [f"text/x-{name}" for name in sorted(SHOPS)]


@pytest.mark.parametrize("language", SHOPS)
def test_a_piece_has_the_path_of_classes_and_functions(language: str) -> None:
    code, headings = SHOPS[language]

    found = cut(code, language)

    assert [piece.heading for piece in found] == headings


@pytest.mark.parametrize("language", SHOPS)
def test_what_leads_to_a_definition_stays_with_it(language: str) -> None:
    code, _ = SHOPS[language]
    for piece in cut(code, language):
        last = piece.text.rstrip().splitlines()[-1].strip()
        assert not last.startswith(("//", "#[", "/*", "@", "# lead"))
        if "lead" in piece.text:
            assert "total" in piece.text.lower()


def test_a_docstring_stays_with_its_class_and_a_licence_with_nothing() -> None:
    code = (
        "# Licence.\n\nimport os\n\n# About f.\n\ndef f():\n    pass\n\n\n"
        'class A:\n    """Long\n\n    docstring."""\n\n    def g(self):\n        pass\n'
    )

    assert [(p.heading, p.first_line, p.last_line) for p in cut(code, "python")] == [
        ("", 1, 3),
        ("f", 5, 8),
        ("A", 11, 14),
        ("A > g", 16, 17),
    ]
    licensed = "# Licence.\n\ndef f():\n    pass\n"
    assert [p.heading for p in cut(licensed, "python")] == ["", "f"]


def test_a_function_is_whole_unless_it_is_over_the_limit() -> None:
    body = "".join(f"    line_{n} = {n}\n\n" for n in range(60))
    code = f"def small():\n{body}\n\ndef large():\n{body * 3}    return 1\n"

    found = cut(code, "python")

    assert [p.heading for p in found] == ["small"] + ["large"] * (len(found) - 1)
    assert len(found) > 3
    assert found[0].text.endswith("line_59 = 59")
    assert sum(p.text.count("line_") for p in found) == 240


def test_functions_in_a_function_over_the_limit_are_found() -> None:
    inner = "  function {}() {{\n" + "    step()\n" * 90 + "  }}\n"
    code = "function outer() {\n" + inner.format("one") + inner.format("two") + "}\n"

    assert [p.heading for p in cut(code, "javascript")] == [
        "outer > one",
        "outer > two",
    ]


def test_lines_and_characters_are_right_beyond_ascii() -> None:
    code = "# Walroß 🦭\r\nX = 'é'\r\n\r\ndef größe():\r\n    return '🦭'\r\n"

    found = cut(code, "python")

    assert [(p.heading, p.first_line, p.last_line) for p in found] == [
        ("", 1, 2),
        ("größe", 4, 5),
    ]
    assert found[1].text == "def größe():\r\n    return '🦭'"


def test_code_over_four_mebibytes_is_cut_as_text() -> None:
    code = "def f():\n    return 1\n\n\n" * 200_000

    spans = code_spans(code, "text/x-python")

    assert {span.heading for span in spans} == {""}
    assert sum(code.count("return 1", s.start, s.end) for s in spans) == 200_000


FRAGMENTS = st.lists(
    st.one_of(
        st.sampled_from([code for code, _ in SHOPS.values()]),
        st.sampled_from(
            [
                *("class A {", "}", "def f():\n", "    ", "\n", "\r\n", "// c\n"),
                *("# c\n", "@d\n", "fn f() {", '"""', "ß", "🦭", ";", "(", "x => "),
                *("\ufeff", "`"),
            ]
        ),
        st.text(max_size=20),
    ),
    max_size=15,
).map("".join)


@given(FRAGMENTS, st.sampled_from(sorted(SHOPS)), st.sampled_from([40, 200, LIMIT]))
def test_any_code_is_covered_by_exact_spans(
    code: str, language: str, limit: int
) -> None:
    code = code.replace("\0", "")
    position = 0
    for piece in cut(code, language, limit):
        assert code[piece.start : piece.end] == piece.text
        assert 0 < len(piece.text) <= limit
        assert piece.start >= position
        assert not code[position : piece.start].replace("\ufeff", "").strip()
        position = piece.end
    assert not code[position:].replace("\ufeff", "").strip()
