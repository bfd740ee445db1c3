"""A tiny random llama model with a byte-level tokenizer, written with the gguf package: for tests
of the program around the engine (flags, signals, hostile files), where the text does not matter."""
from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def byte_tokens() -> list[str]:
    """The 256 symbols of byte-level BPE in byte order (GPT-2's mapping: printable bytes stand for
    themselves)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names, extra = [], 0
    for b in range(256):
        names.append(chr(b) if b in plain else chr(256 + extra))
        extra += b not in plain
    return names


def tokenizer_keys(w: gguf.GGUFWriter) -> int:
    """Byte-level BPE with two merges and two control tokens; returns the vocabulary size."""
    tokens = ["<|bos|>", "<|end|>", *byte_tokens(), "th", "the"]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    w.add_token_merges(["t h", "th e"])
    w.add_bos_token_id(0)
    w.add_eos_token_id(1)
    w.add_add_bos_token(True)
    return len(tokens)


def write_model(path: Path, *, dim: int = 32, layers: int = 2, heads: int = 4, kv_heads: int = 2,
                ffn: int = 64, context: int = 256, seed: int = 1, std: float = 0.3,
                split_max_tensors: int = 0) -> None:
    """Write the model; every matrix is float32.

    With `split_max_tensors` it comes in parts, STEM-0000N-of-0000M.gguf."""
    rng = np.random.default_rng(seed)
    w = gguf.GGUFWriter(str(path), "llama", split_max_tensors=split_max_tensors)
    vocab = tokenizer_keys(w)
    w.add_context_length(context)
    w.add_embedding_length(dim)
    w.add_block_count(layers)
    w.add_feed_forward_length(ffn)
    w.add_head_count(heads)
    w.add_head_count_kv(kv_heads)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(vocab)

    def matrix(name: str, *shape: int) -> None:
        w.add_tensor(name, (rng.standard_normal(shape) * std).astype(np.float32))

    kv = dim // heads * kv_heads
    matrix("token_embd.weight", vocab, dim)
    for i in range(layers):
        b = f"blk.{i}."
        w.add_tensor(b + "attn_norm.weight", np.ones(dim, np.float32))
        matrix(b + "attn_q.weight", dim, dim)
        matrix(b + "attn_k.weight", kv, dim)
        matrix(b + "attn_v.weight", kv, dim)
        matrix(b + "attn_output.weight", dim, dim)
        w.add_tensor(b + "ffn_norm.weight", np.ones(dim, np.float32))
        matrix(b + "ffn_gate.weight", ffn, dim)
        matrix(b + "ffn_up.weight", ffn, dim)
        matrix(b + "ffn_down.weight", dim, ffn)
    w.add_tensor("output_norm.weight", np.ones(dim, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
