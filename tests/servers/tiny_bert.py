"""A BERT of 200 kB with random weights: for ONNX and, the same weights, for llama.cpp.

What its vectors mean is nothing, but tokens, layers, pooling and limits are the real
engines', and two engines that share nothing must agree on each vector.

As a process it is a real llama.cpp that serves embeddings, until its stdin ends::

    python -m tests.servers.tiny_bert FILE.gguf --port 0
"""

import argparse
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

import gguf
import msgspec
import numpy as np
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from nestor.backends.embeddings.bert_graph import BertGraph, BertShape
from nestor.backends.embeddings.folder import ABOUT, MODEL, TOKENIZER, About

HIDDEN, HEADS, LAYERS, WIDE, PLACES = 64, 4, 2, 128, 128
MAX_TOKENS = 96
API_KEY = "tiny-bert-key-0123456789"
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_WORDS = ["the", "cat", "dog", "sleeps", "runs", "on", "sofa", "function", "error"]
SHAPE = BertShape(
    hidden_size=HIDDEN, num_attention_heads=HEADS, num_hidden_layers=LAYERS
)
Weights = dict[str, np.ndarray[Any, Any]]


def vocabulary() -> list[str]:
    signs = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    return [
        *_SPECIAL,
        *signs,
        *(f"##{sign}" for sign in signs if sign.isalnum()),
        *_WORDS,
    ]


def weights(seed: int = 0) -> Weights:
    """Make the tensors under BERT's names; the same seed gives the same ones."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray[Any, Any]:
        return random.normal(0.0, 0.15, (rows, columns)).astype(np.float32)

    found: Weights = {
        "embeddings.word_embeddings.weight": matrix(len(vocabulary()), HIDDEN),
        "embeddings.position_embeddings.weight": matrix(PLACES, HIDDEN),
        "embeddings.token_type_embeddings.weight": matrix(2, HIDDEN),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        parts = {
            **{
                f"attention.self.{p}": (HIDDEN, HIDDEN)
                for p in ("query", "key", "value")
            },
            "attention.output.dense": (HIDDEN, HIDDEN),
            "intermediate.dense": (WIDE, HIDDEN),
            "output.dense": (HIDDEN, WIDE),
        }
        for part, (rows, columns) in parts.items():
            found[f"{name}.{part}.weight"] = matrix(rows, columns)
            found[f"{name}.{part}.bias"] = matrix(1, rows)[0]
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    for norm in norms:
        found[f"{norm}.weight"] = 1 + matrix(1, HIDDEN)[0]
        found[f"{norm}.bias"] = matrix(1, HIDDEN)[0]
    return found


def make_tiny_folder(
    folder: Path, *, seed: int = 0, int8: bool = True, **about: Any
) -> Path:
    """Write the model as a folder for ``OnnxEmbedder``; ``about`` goes to its nestor.json."""
    folder.mkdir(parents=True)
    graph = BertGraph(weights(seed), SHAPE, int8=int8)
    (folder / MODEL).write_bytes(graph.model("tiny-bert"))
    (folder / TOKENIZER).write_text(tokenizer())
    given = {"name": "tiny-bert", "max_tokens": MAX_TOKENS, **about}
    (folder / ABOUT).write_bytes(msgspec.json.encode(About(**given)))
    return folder


def tokenizer() -> str:
    """Return a ``tokenizer.json``, made by the library that reads it."""
    known = {word: at for at, word in enumerate(vocabulary())}
    made = Tokenizer(WordPiece(known, unk_token="[UNK]", max_input_chars_per_word=100))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(sign, known[sign]) for sign in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    return str(made.to_str())


def make_tiny_bert_gguf(path: Path, seed: int = 0) -> Path:
    """Write the same model for llama.cpp."""
    words = vocabulary()
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("tiny-bert")
    writer.add_context_length(PLACES)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(SHAPE.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(0)
    writer.add_tokenizer_model("bert")
    writer.add_token_list([_as_gguf(word) for word in words])
    writer.add_token_types([3 if word in _SPECIAL else 1 for word in words])
    writer.add_token_type_count(2)
    for add, word in (
        (writer.add_unk_token_id, "[UNK]"),
        (writer.add_bos_token_id, "[CLS]"),
        (writer.add_sep_token_id, "[SEP]"),
        (writer.add_eos_token_id, "[SEP]"),
        (writer.add_pad_token_id, "[PAD]"),
        (writer.add_mask_token_id, "[MASK]"),
    ):
        add(words.index(word))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, LAYERS)
    for name, tensor in weights(seed).items():
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _as_gguf(word: str) -> str:
    """llama.cpp marks where a word begins, not where it goes on."""
    if word in _SPECIAL:
        return word
    return word.removeprefix("##") if word.startswith("##") else f"\u2581{word}"


class LlamaEmbeddings:
    """A real llama.cpp in a process of its own; started, ended, and started again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> Self:
        """Return once it answers; after the first time at the same port."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self._path), "--port", str(self.port)],
            cwd=Path(__file__).parent.parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = json.loads(self._process.stdout.readline())["port"]
        return self

    def stop(self) -> None:
        """Kill it, as a machine that goes down."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        process.communicate()


def main() -> None:
    """Serve a GGUF until stdin ends."""
    import xllamacpp  # noqa: PLC0415 - only the child, which it stays in

    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    params = xllamacpp.CommonParams()
    params.model.path = str(arguments.path)
    params.model_alias = {arguments.path.stem}
    params.hostnames = ["127.0.0.1"]
    params.port = arguments.port
    params.api_keys = [API_KEY]
    params.embedding = True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_parallel = 4
    params.n_ctx = 4 * PLACES
    params.ui = False
    params.verbosity = 2
    server = xllamacpp.Server(params)
    request = urllib.request.Request(f"{server.listening_address}/health")
    while True:
        try:
            with urllib.request.urlopen(request):
                break
        except urllib.error.HTTPError:
            continue
    print(
        json.dumps({"port": int(server.listening_address.rsplit(":", 1)[1])}), file=told
    )
    told.flush()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
