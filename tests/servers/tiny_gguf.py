"""A llama model of half a megabyte with random weights: llama.cpp loads it and answers.

What it says means nothing, but loading, templates, streaming, usage and limits are the
real engine's.
"""

import argparse
from pathlib import Path

import gguf
import numpy as np

_EMBEDDING = 64
_FEED_FORWARD = 128
_LAYERS = 2
_HEADS = 4
_CONTEXT = 4096
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}assistant:"
)


def make_tiny_gguf(path: Path, seed: int = 0) -> Path:
    """Write the model to ``path`` and return it; the same seed gives the same weights."""
    tokens, scores, types = _vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny-random")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(_EMBEDDING)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_EMBEDDING // _HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    _add_tensors(writer, len(tokens), np.random.default_rng(seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _vocabulary() -> tuple[list[bytes], list[float], list[int]]:
    tokens = [b"<unk>", b"<s>", b"</s>"]
    types = [_UNKNOWN, _CONTROL, _CONTROL]
    tokens += [f"<0x{byte:02X}>".encode() for byte in range(256)]
    types += [_BYTE] * 256
    pieces = [chr(code) for code in range(33, 127)] + ["\u2581"]
    pieces += [f"\u2581{chr(code)}" for code in range(97, 123)]
    tokens += [piece.encode() for piece in pieces]
    types += [_NORMAL] * len(pieces)
    return tokens, [-float(number) for number in range(len(tokens))], types


def _add_tensors(
    writer: gguf.GGUFWriter, vocabulary: int, random: np.random.Generator
) -> None:
    def matrix(rows: int, columns: int) -> np.ndarray:
        return random.normal(0.0, 0.05, (rows, columns)).astype(np.float32)

    ones = np.ones(_EMBEDDING, dtype=np.float32)
    writer.add_tensor("token_embd.weight", matrix(vocabulary, _EMBEDDING))
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", matrix(vocabulary, _EMBEDDING))
    for layer in range(_LAYERS):
        name = f"blk.{layer}"
        writer.add_tensor(f"{name}.attn_norm.weight", ones)
        writer.add_tensor(f"{name}.ffn_norm.weight", ones)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"{name}.{part}.weight", matrix(_EMBEDDING, _EMBEDDING))
        for part in ("ffn_gate", "ffn_up"):
            writer.add_tensor(
                f"{name}.{part}.weight", matrix(_FEED_FORWARD, _EMBEDDING)
            )
        writer.add_tensor(f"{name}.ffn_down.weight", matrix(_EMBEDDING, _FEED_FORWARD))


def main() -> None:
    """``python -m tests.servers.tiny_gguf PATH``."""
    parser = argparse.ArgumentParser(description="write the random test model")
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_tiny_gguf(arguments.path, arguments.seed)


if __name__ == "__main__":
    main()
