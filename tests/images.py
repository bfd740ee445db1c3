"""GGUF files made byte by byte, so that they can be wrong in every way; and the smallest models
that work."""
from __future__ import annotations

import copy
import struct
from dataclasses import dataclass, field

import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
PACK = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q",
        I64: "q", F64: "d"}


def text(s: str | bytes) -> bytes:
    raw = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, v: object) -> bytes:
    return text(v) if kind == STR else struct.pack("<" + PACK[kind], v)


@dataclass
class Tensor:
    dims: list[int]  # innermost first, as in the file
    kind: int
    data: bytes
    offset: int | None = None  # None: where the data stands


@dataclass
class Image:
    """Keys are name -> bytes of type and value, in order; a list holds more entries, with any
    names."""

    keys: dict[str, bytes] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    more_keys: list[tuple[str | bytes, bytes]] = field(default_factory=list)
    more_tensors: list[tuple[str | bytes, Tensor]] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_keys: int | None = None
    alignment: int = 32

    def set(self, name: str, kind: int, v: object) -> "Image":
        self.keys[name] = struct.pack("<I", kind) + value(kind, v)
        return self

    def array(self, name: str, kind: int, items: list, n: int | None = None) -> "Image":
        body = b"".join(value(kind, v) for v in items)
        self.keys[name] = struct.pack("<IIQ", ARR, kind, len(items) if n is None else n) + body
        return self

    def drop(self, name: str) -> "Image":
        del (self.keys if name in self.keys else self.tensors)[name]
        return self

    def tensor(self, name: str, *shape: int, seed: int = 0, std: float = 0.5) -> "Image":
        """Float32 of this shape, outermost first; vectors are near one."""
        rng = np.random.default_rng([seed, len(self.tensors)])
        v = rng.standard_normal(shape).astype(np.float32) * np.float32(std) + np.float32(
            len(shape) == 1)
        self.tensors[name] = Tensor(list(reversed(shape)), 0, v.tobytes())
        return self

    def copy(self) -> "Image":
        return copy.deepcopy(self)

    def header(self) -> bytes:
        """Everything before the padding and the data."""
        keys = [*self.keys.items(), *self.more_keys]
        tensors = [*self.tensors.items(), *self.more_tensors]
        out = self.magic + struct.pack("<I", self.version)
        out += struct.pack("<QQ", len(tensors) if self.n_tensors is None else self.n_tensors,
                           len(keys) if self.n_keys is None else self.n_keys)
        out += b"".join(text(name) + body for name, body in keys)
        at = 0
        for name, t in tensors:
            out += text(name) + struct.pack("<I", len(t.dims)) + b"".join(
                struct.pack("<Q", d) for d in t.dims)
            out += struct.pack("<IQ", t.kind, at if t.offset is None else t.offset)
            at += -(-len(t.data) // self.alignment) * self.alignment
        return out

    def build(self) -> bytes:
        out = self.header()
        out += bytes(-len(out) % self.alignment)
        tensors = [*self.tensors.values(), *(t for _, t in self.more_tensors)]
        for i, t in enumerate(tensors):
            out += t.data
            if i + 1 < len(tensors):
                out += bytes(-len(t.data) % self.alignment)
        return out


def base(arch: str, dim: int, heads: int, kv_heads: int, ffn: int, context: int,
         layers: int = 1) -> Image:
    m = Image().set("general.architecture", STR, arch)
    for name, v in {"embedding_length": dim, "block_count": layers, "context_length": context,
                    "feed_forward_length": ffn, "attention.head_count": heads,
                    "attention.head_count_kv": kv_heads}.items():
        m.set(f"{arch}.{name}", U32, v)
    return m


def smallest(layers: int = 1) -> Image:
    """A llama of dimension 4 with a SentencePiece vocabulary of 7 tokens: about 1.5 kB."""
    tokens = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab"]
    m = base("llama", 4, 2, 1, 4, 16,
             layers).set("llama.attention.layer_norm_rms_epsilon", F32, 1e-5)
    m.set("tokenizer.ggml.model", STR, "llama").array("tokenizer.ggml.tokens", STR, tokens)
    m.array("tokenizer.ggml.scores", F32,
            [0, 0, 0, -1, -1, -1, 0]).array("tokenizer.ggml.token_type", I32, [2, 3, 3, 1, 1, 1, 1])
    m.tensor("token_embd.weight", 7, 4).tensor("output_norm.weight", 4)
    for i in range(layers):
        b = f"blk.{i}."
        m.tensor(b + "attn_norm.weight",
                 4).tensor(b + "attn_q.weight", 4,
                           4).tensor(b + "attn_k.weight", 2, 4).tensor(b + "attn_v.weight", 2, 4)
        m.tensor(b + "attn_output.weight", 4,
                 4).tensor(b + "ffn_norm.weight", 4).tensor(b + "ffn_gate.weight", 4, 4)
        m.tensor(b + "ffn_up.weight", 4, 4).tensor(b + "ffn_down.weight", 4, 4)
    return m


def byte_level(context: int = 16) -> Image:
    """A GPT-2 (learned positions, biases) of dimension 8 with a byte-level vocabulary: a, b, ab, an
    end token."""
    m = base("gpt2", 8, 2, 2, 8, context).set("gpt2.attention.layer_norm_epsilon", F32, 1e-5)
    m.set("tokenizer.ggml.model", STR, "gpt2").set("tokenizer.ggml.pre", STR, "gpt-2")
    m.array("tokenizer.ggml.tokens", STR,
            ["a", "b", "ab", "<|end|>"]).array("tokenizer.ggml.token_type", I32, [1, 1, 1, 3])
    m.array("tokenizer.ggml.merges", STR, ["a b"]).set("tokenizer.ggml.eos_token_id", U32, 3)
    m.tensor("token_embd.weight", 4, 8).tensor("position_embd.weight", context, 8)
    for n, shape in {"output_norm": (8,), "blk.0.attn_norm": (8,), "blk.0.attn_qkv": (24, 8),
                     "blk.0.attn_output": (8, 8),
                     "blk.0.ffn_norm": (8,), "blk.0.ffn_up": (8, 8),
                     "blk.0.ffn_down": (8, 8)}.items():
        m.tensor(n + ".weight", *shape).tensor(n + ".bias", shape[0])
    return m
