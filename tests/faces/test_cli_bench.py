"""``nestor bench retrieval`` on small collections in BEIR's layout, as a process."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.faces.fake_stack import Cli
from tests.servers.tiny_bert import make_tiny_folder

DOCUMENTS = {
    "7": ("Leaking taps", "A tap that drips wants a new washer, says the plumber."),
    "kettle": ("", "Descale the kettle with vinegar once a month."),
    "oven": ("Oven", "The oven door is cleaned with baking soda."),
    "long": ("Heating", "Radiators want bleeding.\n\n" * 200 + "The boiler hums."),
    "number 7": ("", "Rooms are numbered from one upwards."),
}
QUERIES = {
    "q1": "drips plumber",
    "q2": "bleeding radiators boiler",
    "7": "vinegar kettle 7",
    "nobody judged": "oven",
}
JUDGED = [("q1", "7", 2), ("q2", "long", 1), ("7", "kettle", 1), ("q2", "oven", 0)]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path / "home", tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "household")


def write(
    folder: Path,
    *,
    documents: dict[str, tuple[str, str]] | None = None,
    queries: dict[str, str] | None = None,
    judged: list[tuple[str, str, int]] | None = None,
    packed: bool = False,
    qrels: str = "test.tsv",
) -> Path:
    """Write a collection; ``packed``: gzipped, all of it."""
    given = DOCUMENTS if documents is None else documents
    corpus = [
        {"_id": key, "title": title, "text": text, "metadata": {"more": [1]}}
        for key, (title, text) in given.items()
    ]
    asked = [{"_id": key, "text": text} for key, text in (queries or QUERIES).items()]
    rows = ["query-id\tcorpus-id\tscore"]
    rows += [f"{q}\t{d}\t{s}" for q, d, s in judged or JUDGED]
    files = {
        "corpus.jsonl": "".join(f"{json.dumps(line)}\n" for line in corpus),
        "queries.jsonl": "".join(f"{json.dumps(line)}\n" for line in asked),
        f"qrels/{qrels}": "".join(f"{line}\n" for line in rows),
    }
    (folder / "qrels").mkdir(parents=True)
    for name, text in files.items():
        raw = text.encode()
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
        else:
            (folder / name).write_bytes(raw)
    return folder


def measured(cli: Cli, data: Path, *more: str) -> dict[str, Any]:
    done = cli("bench", "retrieval", "--data", str(data), "--json", *more, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def refused(cli: Cli, data: Path, *more: str) -> str:
    done = cli("bench", "retrieval", "--data", str(data), *more, timeout=120)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


def test_without_an_embedder_words_are_measured_and_the_rest_is_unknown(
    cli: Cli, data: Path
) -> None:
    found = measured(cli, data)
    assert found["collection"] == "household"
    assert found["legs"] == {
        "bm25": {"ndcg@10": 1.0, "recall@100": 1.0},
        "dense": None,
        "fused": None,
    }
    assert "nestor models add minilm" in found["missing"]
    assert (found["queries"], found["documents"]) == (3, 5)
    assert found["chunks"] > 5
    assert found["embedder"] is None
    assert found["chunks_without_vector"] is None


@pytest.mark.heavy
def test_with_an_embedder_all_three_legs_are_measured(
    cli: Cli, tmp_path: Path, data: Path
) -> None:
    model = make_tiny_folder(tmp_path / "tiny")
    found = measured(cli, data, "--embeddings", str(model))
    assert set(found["legs"]) == {"bm25", "dense", "fused"}
    for leg, quality in found["legs"].items():
        assert 0 < quality["ndcg@10"] <= 1, leg
        # Five documents, and every way looks at a hundred.
        assert quality["recall@100"] == 1.0, leg
    assert found["missing"] is None
    assert found["embedder"].startswith("tiny-bert@")
    assert found["chunks_without_vector"] == 0
    limited = measured(cli, data, "--embeddings", str(model), "--limit", "1")
    assert limited["queries"] == 1
    assert limited["embedder"] == found["embedder"]


def test_gzipped_files_are_the_same_collection(cli: Cli, tmp_path: Path) -> None:
    packed = measured(cli, write(tmp_path / "packed" / "household", packed=True))
    plain = measured(cli, write(tmp_path / "household"))
    for one in (packed, plain):
        del one["seconds"]
    assert packed == plain


def test_a_document_of_many_pieces_counts_once(cli: Cli, tmp_path: Path) -> None:
    """Its pieces fill the first hundred; the one document after them is found all the same."""
    pieces = "\n\n".join(f"Alpha beta. {'filler word ' * 120}" for _ in range(150))
    documents = {"many": ("", pieces), "one": ("", "Alpha " + "gamma delta " * 400)}
    data = write(
        tmp_path / "pieces",
        documents=documents,
        queries={"q": "alpha beta"},
        judged=[("q", "one", 1)],
    )
    found = measured(cli, data)
    assert found["chunks"] > 150
    # Second, behind the document of 150 pieces: 1 / log2(3).
    assert found["legs"]["bm25"]["ndcg@10"] == pytest.approx(0.6309297535714575)
    assert found["legs"]["bm25"]["recall@100"] == 1.0


def test_a_document_that_is_the_query_is_no_answer_and_one_of_the_same_number_is(
    cli: Cli, tmp_path: Path
) -> None:
    argument = "Museums should be free because culture belongs to everybody."
    documents = {
        "a": ("", argument),
        "b": ("", "Museums cannot be free: culture costs everybody money."),
        "1": ("", "Ice melts at zero degrees."),
        "2": ("", "Water boils at a hundred degrees."),
    }
    data = write(
        tmp_path / "arguments",
        documents=documents,
        queries={"a": argument, "1": "when does ice melt"},
        judged=[("a", "b", 1), ("1", "1", 1)],
    )
    found = measured(cli, data)
    assert found["legs"]["bm25"] == {"ndcg@10": 1.0, "recall@100": 1.0}


def test_a_number_in_a_query_finds_no_document_by_its_id(
    cli: Cli, tmp_path: Path
) -> None:
    documents = {"225": ("", "Something else."), "x": ("", "Flow at mach 225.")}
    data = write(
        tmp_path / "numbers",
        documents=documents,
        queries={"q": "225"},
        judged=[("q", "225", 1)],
    )
    assert measured(cli, data)["legs"]["bm25"]["recall@100"] == 0.0


def test_odd_texts_are_kept_and_nothing_stops_at_one_that_is_refused(
    cli: Cli, tmp_path: Path
) -> None:
    documents = {
        "nul": ("", "A NUL\0in the middle of the night."),
        "half": ("", "Half a pair \ud800 of moonlight."),
        "empty": ("", ""),
        "page": ("", "<html><body>Sunshine in markup.</body></html>"),
        "binary": ("", "%PDF-1.7 starlight"),
    }
    queries = {"q1": "night", "q2": "moonlight", "q3": "sunshine", "q4": "  "}
    judged = [("q1", "nul", 1), ("q2", "half", 1), ("q3", "page", 1)]
    judged += [("q4", "empty", 1)]
    data = write(tmp_path / "odd", documents=documents, queries=queries, judged=judged)
    found = measured(cli, data)
    assert found["legs"]["bm25"]["ndcg@10"] == 0.75
    assert found["documents"] == 5
    assert found["documents_left_out"] == 1
    assert "PDF" in found["refused"]


def test_another_split_is_taken_where_there_is_no_test(
    cli: Cli, tmp_path: Path
) -> None:
    data = write(tmp_path / "only-dev", qrels="dev.tsv")
    assert measured(cli, data)["queries"] == 3
    shutil.copy(data / "qrels/dev.tsv", data / "qrels/first.tsv")
    shutil.move(data / "qrels/dev.tsv", data / "qrels/second.tsv")
    said = refused(cli, data)
    assert "first.tsv, second.tsv and no test.tsv" in said


def test_judged_queries_that_are_not_there_are_counted(
    cli: Cli, tmp_path: Path
) -> None:
    data = write(tmp_path / "sample", judged=[*JUDGED, ("gone", "oven", 1)])
    found = measured(cli, data)
    assert (found["queries"], found["queries_left_out"]) == (3, 1)


def test_people_get_a_table(cli: Cli, data: Path) -> None:
    done = cli("bench", "retrieval", "--data", str(data), timeout=120)
    assert done.returncode == 0, done.stderr
    assert "household" in done.stdout
    assert "nDCG@10" in done.stdout
    assert "1.0000" in done.stdout
    assert "nestor models add minilm" in done.stdout


def test_a_terminal_sees_a_bar_and_the_running_stack_nothing(
    cli: Cli, data: Path
) -> None:
    code, shown = cli.on_a_terminal("bench", "retrieval", "--data", str(data))
    assert code == 0, shown
    assert "asking" in shown
    assert not (cli.home / "nestor.db").exists()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"_id": "b"', "corpus.jsonl:2: "),
        ("corpus.jsonl", '{"text": "x"}\n', "corpus.jsonl:1: "),
        ("corpus.jsonl", '{"_id": "a"}\n\n{"_id": "a"}\n', "corpus.jsonl:3: the document 'a' stands here twice"),
        ("corpus.jsonl", "", "corpus.jsonl: holds no document"),
        ("queries.jsonl", '{"_id": "q1", "text": 5}\n', "queries.jsonl:1: "),
        ("queries.jsonl", '{"_id": 1}\n{"_id": "1"}\n', "queries.jsonl:2: the query '1' stands here twice"),
        ("queries.jsonl", '{"_id": "zz", "text": "x"}\n', "has none of the judged queries"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\t7\n", "test.tsv:2: 2 columns"),
        ("qrels/test.tsv", "q1\t7\t1\nq1\toven\thigh\n", "test.tsv:2: the score 'high' is no whole number"),
        ("qrels/test.tsv", "q1\t7\t1\nq1\t7\t0\n", "test.tsv:2: '7' was judged otherwise"),
        ("qrels/test.tsv", "q1\t7\t0\n", "no document is relevant to any query"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "holds no judgment"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_file_and_line(
    cli: Cli, data: Path, name: str, text: str, said: str
) -> None:
    (data / name).write_text(text)
    assert said in " ".join(refused(cli, data).split())


def test_a_file_that_breaks_off_is_named(cli: Cli, tmp_path: Path) -> None:
    data = write(tmp_path / "cut", packed=True)
    path = data / "corpus.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    assert "corpus.jsonl.gz:" in refused(cli, data)
    (data / "queries.jsonl.gz").write_bytes(b'{"_id": "q1"}\n')
    assert "queries.jsonl.gz:1: cannot be read on" in refused(cli, data)


def test_what_is_no_utf_8_is_named(cli: Cli, data: Path) -> None:
    good = b'\xef\xbb\xbf{"_id": "q1", "text": "drips"}\n\n'
    (data / "queries.jsonl").write_bytes(good + b'{"_id": "q2", "text": "caf\xe9"}\n')
    assert "queries.jsonl:3: not UTF-8 at byte 27" in refused(cli, data)


@pytest.mark.parametrize("missing", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_file_that_is_not_there_is_named(cli: Cli, data: Path, missing: str) -> None:
    (data / missing).unlink()
    assert f"has no {missing}" in refused(cli, data)
    assert "is no folder" in refused(cli, data / "nowhere")


def test_an_embedder_that_is_not_there_is_refused_before_anything_is_read(
    cli: Cli, data: Path, tmp_path: Path
) -> None:
    said = refused(cli, data, "--embeddings", str(tmp_path / "nothing"))
    assert said.startswith("error: --embeddings: ")
    assert "has no model.onnx" in said
    where = str(data)
    done = cli("bench", "retrieval", "--data", where, "--embeddings", "minilm")
    assert done.returncode == 3
    assert "nestor models add minilm" in done.stderr
