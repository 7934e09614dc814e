"""Folders with ONNX models: what is read of them, and what is said of bad ones."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.faces.fake_stack import Cli
from tests.servers.tiny_bert import (
    SHAPE,
    make_tiny_folder,
    vocabulary,
    weights,
)

from nestor.backends.embeddings.bert_graph import BertGraph
from nestor.backends.embeddings.choose import embedder_of, refuse_embeddings
from nestor.backends.embeddings.onnx_embedder import OnnxEmbedder
from nestor.backends.embeddings.onnx_model import OnnxModel
from nestor.backends.embeddings.safetensors import read_tensors
from nestor.backends.openai.resolver import model_session
from nestor.errors import Misconfigured, Unavailable


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def tokens_model(table: np.ndarray[Any, Any]) -> bytes:
    """Write a model that gives each token its row, and pools nothing."""
    places = ["batch", "tokens"]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "rows",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, places)],
        [
            helper.make_tensor_value_info(
                "last_hidden_state", TensorProto.FLOAT, [*places, table.shape[1]]
            )
        ],
        initializer=[numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_of_tokens_are_pooled_as_the_folder_says(
    tmp_path: Path, pooling: str
) -> None:
    folder = make_tiny_folder(tmp_path / "m", pooling=pooling)
    words = vocabulary()
    table = np.random.default_rng(1).normal(size=(len(words), 8)).astype(np.float32)
    (folder / "model.onnx").write_bytes(tokens_model(table))
    rows = table[[words.index(word) for word in ("[CLS]", "the", "cat", "[SEP]")]]
    wanted = rows[0] if pooling == "cls" else rows.mean(axis=0)

    found = OnnxModel.load(folder).vector("the cat")

    assert np.allclose(found, wanted / np.linalg.norm(wanted), atol=1e-6)


def test_a_model_that_gives_no_direction_is_none(tmp_path: Path) -> None:
    folder = make_tiny_folder(tmp_path / "m")
    zeros = np.zeros((len(vocabulary()), 8), dtype=np.float32)
    (folder / "model.onnx").write_bytes(tokens_model(zeros))

    with pytest.raises(Unavailable, match="a vector of zeros"):
        OnnxModel.load(folder)


async def test_a_text_that_the_model_cannot_take_is_unavailable(tmp_path: Path) -> None:
    folder = make_tiny_folder(tmp_path / "m", max_tokens=500)  # it has 128 places
    embedder = OnnxEmbedder(folder)
    async with asyncio.timeout(20):
        with pytest.raises(Unavailable, match="the model failed"):
            await embedder.embed(["x", "the cat " * 300, "y"])

        assert len(await embedder.embed(["x"])) == 1
    await embedder.close()


def test_questions_and_texts_are_marked_as_the_folder_says(tmp_path: Path) -> None:
    marked = OnnxModel.load(
        make_tiny_folder(tmp_path / "a", query_prefix="the dog: ", text_prefix="cat ")
    )
    plain = OnnxModel.load(make_tiny_folder(tmp_path / "b"))

    assert marked.vector("runs", query=True) == plain.vector("the dog: runs")
    assert marked.vector("runs") == plain.vector("cat runs")


def test_the_stamp_follows_from_the_files_unless_the_folder_says_it(
    tmp_path: Path,
) -> None:
    stamps = [
        OnnxModel.load(
            make_tiny_folder(tmp_path / name, seed=seed, revision=revision)
        ).stamp
        for name, seed, revision in (
            ("a", 1, None),
            ("b", 1, None),
            ("c", 2, None),
            ("d", 2, "v7"),
        )
    ]

    assert stamps[0] == stamps[1]
    assert stamps[0] != stamps[2]
    assert stamps[3].id == "tiny-bert@v7:64"


def test_integers_stay_near_the_whole_weights(tmp_path: Path) -> None:
    small = OnnxModel.load(make_tiny_folder(tmp_path / "a"))
    large = small.beside(BertGraph(weights(), SHAPE, int8=False).model("whole"))
    texts = ["the cat sleeps", "x", "error in function foo(1)", "dog " * 90]

    for text in texts:
        assert cosine(small.vector(text), large.vector(text)) > 0.995
    assert cosine(small.vector(texts[0]), large.vector(texts[2])) < 0.95


def test_the_same_weights_make_the_same_bytes() -> None:
    first, second = (BertGraph(weights(3), SHAPE, int8=True).model("m") for _ in "ab")

    assert first == second


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.onnx", b"junk", "holds no model that can be used"),
        ("model.onnx", b"", "holds no model that can be used"),
        ("model.onnx", None, "has no model.onnx"),
        ("tokenizer.json", b"{}", "holds no model that can be used"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("nestor.json", None, "has no nestor.json"),
        ("nestor.json", b"[", "nestor.json"),
        ("nestor.json", b'{"name": "x"}', "max_tokens"),
        ("nestor.json", b'{"name": "x", "max_tokens": 9, "polling": "cls"}', "polling"),
    ],
)
async def test_a_damaged_folder_is_unavailable_until_it_is_mended(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    folder = make_tiny_folder(tmp_path / "m")
    before = (folder / name).read_bytes()
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    embedder = OnnxEmbedder(folder)
    with pytest.raises(Unavailable) as caught:
        await embedder.embed(["x"])
    assert str(caught.value).startswith("embeddings: ")
    assert said in str(caught.value)
    (folder / name).write_bytes(before)

    assert len(await embedder.embed(["x"])) == 1
    await embedder.close()


async def test_a_call_that_waits_while_it_closes_fails(tmp_path: Path) -> None:
    embedder = OnnxEmbedder(make_tiny_folder(tmp_path / "m"))
    waiting = asyncio.create_task(embedder.embed(["the cat " * 40] * 100_000))
    await asyncio.sleep(0.5)
    async with asyncio.timeout(10):
        await embedder.close()
        with pytest.raises(Unavailable, match="closed"):
            await waiting

    with pytest.raises(Unavailable, match="closed"):
        await embedder.embed(["x"])


async def test_what_the_settings_name_is_what_is_made(tmp_path: Path) -> None:
    async with model_session() as session:

        def made(model: str | None, base_url: str | None = None) -> Any:
            return embedder_of(
                model, base_url=base_url, api_key=None, home=tmp_path, session=session
            )

        assert made(None) is None
        with pytest.raises(
            Unavailable, match=r"^embeddings: not built; run: nestor models add minilm$"
        ):
            await made("minilm").embed(["x"])
        folder = make_tiny_folder(tmp_path / "models" / "minilm")
        assert (await made("minilm").stamp()).model == "tiny-bert"
        (folder / "model.onnx").write_bytes(b"junk")
        with pytest.raises(Unavailable, match=r"; run: nestor models add minilm$"):
            await made("minilm").embed(["x"])
        with pytest.raises(Misconfigured, match=r"no-such has no model.onnx; give a"):
            made(str(tmp_path / "no-such"))
        refuse_embeddings("BAAI/x", "http://127.0.0.1:1/v1", tmp_path)


def test_a_file_of_tensors_is_read_strictly() -> None:
    head = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}

    def file(told: Any, body: bytes = b"\0\0\x80?\0\0\0@") -> bytes:
        raw = json.dumps(told).encode()
        return len(raw).to_bytes(8, "little") + raw + body

    assert read_tensors(file(head))["a"].tolist() == [1.0, 2.0]
    assert read_tensors(file({"__metadata__": {"x": "y"}, **head})).keys() == {"a"}
    bad: list[bytes] = [
        b"",
        b"\xff" * 16,
        file(head, b"short"),
        file({"a": {**head["a"], "dtype": "F8"}}),
        file({"a": {**head["a"], "shape": [3]}}),
        file({"a": {**head["a"], "data_offsets": [-8, 0]}}),
        file([1]),
    ]
    for content in bad:
        with pytest.raises(ValueError, match=r"."):
            read_tensors(content)


def test_models_list_shows_what_is_there_and_who_uses_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_tiny_folder(home / "models" / "mine")
    (home / "models" / "broken").mkdir()
    (home / "models" / ".minilm-left").mkdir()
    gguf = tmp_path / "chat.gguf"
    gguf.write_bytes(b"GGUF")
    used = {"NESTOR_EMBEDDINGS_MODEL": "minilm", "NESTOR_LOCAL_MODEL": str(gguf)}
    cli = Cli(home, tmp_path, used)

    rows = {
        row["name"]: row
        for row in json.loads(cli("models", "list", "--json").stdout)["models"]
    }
    shown = cli("models", "list").stdout

    assert set(rows) == {"mine", "broken", "minilm", "chat"}
    assert rows["mine"]["state"] == "ready"
    assert rows["mine"]["used_by"] is None
    assert rows["mine"]["size_bytes"] > 100_000
    assert rows["broken"]["state"].endswith("has no model.onnx")
    assert rows["minilm"]["state"] == "not built"
    assert rows["minilm"]["size_bytes"] is None
    assert rows["minilm"]["used_by"] == "NESTOR_EMBEDDINGS_MODEL"
    assert rows["chat"]["used_by"] == "NESTOR_LOCAL_MODEL"
    assert rows["chat"]["size_bytes"] == 4
    assert "unknown" in shown


def test_models_add_knows_one_name(tmp_path: Path) -> None:
    cli = Cli(tmp_path / "home", tmp_path)
    done = cli("models", "add", "minlm")

    assert done.returncode == 2
    assert "known: minilm" in done.stderr
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("settings", "state", "said"),
    [
        ({}, "ok", "nestor models add minilm"),
        ({"NESTOR_EMBEDDINGS_MODEL": "minilm"}, "warn", "minilm is not built"),
        ({"NESTOR_EMBEDDINGS_MODEL": "./none"}, "fail", "none has no model.onnx"),
        (
            {
                "NESTOR_EMBEDDINGS_MODEL": "e",
                "NESTOR_EMBEDDINGS_BASE_URL": "http://127.0.0.1:1/v1",
            },
            "fail",
            "refused",
        ),
    ],
)
def test_doctor_says_how_texts_become_vectors(
    tmp_path: Path, settings: dict[str, str], state: str, said: str
) -> None:
    done = Cli(tmp_path / "home", tmp_path, settings)("doctor", "--json")
    (found,) = (
        one
        for one in json.loads(done.stdout)["findings"]
        if one["what"] in {"embeddings", "model embeddings"}
    )

    assert found["state"] == state
    assert said in found["detail"] + found["remedy"]
