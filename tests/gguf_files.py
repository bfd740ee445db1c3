"""GGUF files for tests.

Whole models and vocabularies are written by the gguf package; an Image is made byte by byte and can
be wrong in every way. Both take the same keys (plain Python values by their full names) and tensors
(arrays by name)."""
from __future__ import annotations

import copy
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
PACK = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q",
        I64: "q", F64: "d"}
Keys = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


def kind_of(value: Any) -> int:
    """The GGUF type of a Python value.

    int is u32, but i32 in lists, as llama.cpp writes types of tokens; float is f32; bytes are an
    array of u8."""
    return {int: U32, bytes: ARR}.get(type(value)) or int(gguf.GGUFValueType.get_type(value))


def write(path: Path, arch: str, keys: Keys, tensors: dict[str, np.ndarray] = {},
          split_max_tensors: int = 0, raw: gguf.GGMLQuantizationType | None = None) -> Path:
    """With `split_max_tensors` the file comes in parts, STEM-0000N-of-0000M.gguf.

    `raw`: the tensors are bytes of this type."""
    w = gguf.GGUFWriter(path, arch, split_max_tensors=split_max_tensors)
    for name, value in keys.items():
        w.add_key_value(name, value, gguf.GGUFValueType(kind_of(value)))
    for name, t in tensors.items():
        w.add_tensor(name, t, raw_dtype=raw)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


# ---- quantised weights ---------------------------------------------------------------------------


def random_blocks(kind: gguf.GGMLQuantizationType, shape: tuple[int, ...], std: float,
                  seed: int = 0) -> np.ndarray:
    """Bytes (*shape[:-1], bytes of a row) of random blocks: numbers of about this deviation.

    For the types that the gguf package reads and does not write; every block has the same scale."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng([kind.value, seed])
    blocks = rng.integers(0, 256, (int(np.prod(shape)) // values, size), dtype=np.uint8)

    def scaled(scale: float) -> np.ndarray:
        half = np.float16(scale).view(np.uint16)
        if kind.name == "MXFP4":
            blocks[:, 0] = 127 + round(np.log2(scale))
        elif kind.name == "IQ1_M":  # four bits on top of each two bytes
            for i in range(4):
                blocks[:, 49 + 2 * i] = blocks[:, 49 + 2 * i] & 15 | int(half >> 4 * i & 15) << 4
        else:
            at = size - 2 if kind.name.startswith("TQ") else 0
            blocks[:, at:at + 2] = [half & 255, half >> 8]
        return gguf.quants.dequantize(blocks, kind)

    scaled(std / float(scaled(1.0).std()))
    return blocks.reshape(*shape[:-1], -1)


# ---- descriptions of models ----------------------------------------------------------------------


def sizes(arch: str, dim: int, heads: int, kv_heads: int, ffn: int, context: int,
          layers: int = 1) -> Keys:
    return {f"{arch}.embedding_length": dim, f"{arch}.block_count": layers,
            f"{arch}.context_length": context, f"{arch}.feed_forward_length": ffn,
            f"{arch}.attention.head_count": heads, f"{arch}.attention.head_count_kv": kv_heads}


def llama_shapes(vocab: int, dim: int, kv_dim: int, ffn: int, layers: int = 1) -> Shapes:
    shapes: Shapes = {"token_embd": (vocab, dim), "output_norm": (dim,)}
    for i in range(layers):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in {
            "attn_norm": (dim,), "attn_q": (dim, dim), "attn_k": (kv_dim, dim),
            "attn_v": (kv_dim, dim), "attn_output": (dim, dim), "ffn_norm": (dim,),
            "ffn_gate": (ffn, dim), "ffn_up": (ffn, dim), "ffn_down": (dim, ffn)}.items()}
    return {name + ".weight": shape for name, shape in shapes.items()}


def sentencepiece_keys() -> Keys:
    """A SentencePiece vocabulary of 7 tokens."""
    return {"tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab"],
            "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -1.0, -1.0, 0.0],
            "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1]}


def byte_tokens() -> list[str]:
    """The 256 symbols of byte-level BPE in byte order, as GPT-2 maps them.

    Printable bytes stand for themselves, the others for characters from U+0100 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b if b in plain else next(others)) for b in range(256)]


def write_tiny(path: Path, context: int = 256, split_max_tensors: int = 0, **more: str) -> Path:
    """A random llama of dimension 32 with byte-level BPE: two merges and two control tokens.

    For tests of the program around the engine, where the text does not matter. `more` keys have
    two underscores for a dot."""
    tokens = ["<|bos|>", "<|end|>", *byte_tokens(), "th", "the"]
    keys = sizes("llama", 32, 4, 2, 64, context, 2) | {
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.merges": ["t h", "th e"], "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.add_bos_token": True} | {
            k.replace("__", "."): v for k, v in more.items()}
    rng = np.random.default_rng(1)
    tensors = {name: np.ones(shape, np.float32) if len(shape) == 1 else
               (rng.standard_normal(shape) * 0.3).astype(np.float32)
               for name, shape in llama_shapes(len(tokens), 32, 16, 64, 2).items()}
    return write(path, "llama", keys, tensors, split_max_tensors)


# ---- images --------------------------------------------------------------------------------------


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
    """Keys are name -> bytes of type and value, in order; a list holds more entries.

    The names of `more_keys` and `more_tensors` need not be text and may repeat others."""

    keys: dict[str, bytes] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    more_keys: list[tuple[str | bytes, bytes]] = field(default_factory=list)
    more_tensors: list[tuple[str | bytes, Tensor]] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_keys: int | None = None
    alignment: int = 32

    def set(self, name: str, kind: int, v: object) -> Image:
        self.keys[name] = struct.pack("<I", kind) + value(kind, v)
        return self

    def array(self, name: str, kind: int, items: Iterable[object], n: int | None = None) -> Image:
        """`n`: the number of items that the file claims."""
        packed = [value(kind, v) for v in items]
        self.keys[name] = (struct.pack("<IIQ", ARR, kind, len(packed) if n is None else n)
                           + b"".join(packed))
        return self

    def drop(self, name: str) -> Image:
        del (self.keys if name in self.keys else self.tensors)[name]
        return self

    def tensor(self, name: str, *shape: int, std: float = 0.5) -> Image:
        """Float32 of this shape, outermost first; vectors are near one."""
        rng = np.random.default_rng([0, len(self.tensors)])
        v = rng.standard_normal(shape).astype(np.float32) * np.float32(std)
        self.tensors[name] = Tensor(list(reversed(shape)), 0,
                                    (v + np.float32(len(shape) == 1)).tobytes())
        return self

    def copy(self) -> Image:
        return copy.deepcopy(self)

    def header(self) -> bytes:
        """Everything before the padding and the data."""
        keys = [*self.keys.items(), *self.more_keys]
        tensors = [*self.tensors.items(), *self.more_tensors]
        out = self.magic + struct.pack("<IQQ", self.version,
                                       len(tensors) if self.n_tensors is None else self.n_tensors,
                                       len(keys) if self.n_keys is None else self.n_keys)
        out += b"".join(text(name) + body for name, body in keys)
        at = 0
        for name, t in tensors:
            out += text(name) + struct.pack(f"<I{len(t.dims)}Q", len(t.dims), *t.dims)
            out += struct.pack("<IQ", t.kind, at if t.offset is None else t.offset)
            at += -(-len(t.data) // self.alignment) * self.alignment
        return out

    def build(self) -> bytes:
        out = self.header()
        out += bytes(-len(out) % self.alignment)
        for t in [*self.tensors.values(), *(t for _, t in self.more_tensors)]:
            out += bytes(-len(out) % self.alignment) + t.data
        return out


def image(arch: str, keys: Keys, shapes: Shapes = {}) -> Image:
    """A file that is in order, with random tensors."""
    m = Image()
    for name, v in ({"general.architecture": arch} | keys).items():
        if isinstance(v, list):
            m.array(name, int(gguf.GGUFValueType.get_type(v[0])), v)
        else:
            m.set(name, kind_of(v), v)
    for name, shape in shapes.items():
        m.tensor(name, *shape)
    return m


def smallest(layers: int = 1) -> Image:
    """A llama of dimension 4 with a SentencePiece vocabulary of 7 tokens: about 1.5 kB."""
    keys = sizes("llama", 4, 2, 1, 4, 16, layers)
    return image("llama", keys | {"llama.attention.layer_norm_rms_epsilon": 1e-5}
                 | sentencepiece_keys(), llama_shapes(7, 4, 2, 4, layers))


def smallest_experts() -> Image:
    """The same with 3 experts, of which 2 are used."""
    m = smallest().set("llama.expert_count", U32, 3).set("llama.expert_used_count", U32, 2)
    for part in ("gate", "up", "down"):  # a tensor's numbers depend on how many are before it
        m.tensor(f"blk.0.ffn_{part}_exps.weight", 3, 4, 4)
    for part in ("gate", "up", "down"):
        m.drop(f"blk.0.ffn_{part}.weight")
    return m.tensor("blk.0.ffn_gate_inp.weight", 3, 4)


def byte_level(context: int = 16) -> Image:
    """A GPT-2 of dimension 8 with a byte-level vocabulary: a, b, ab, an end token.

    It has learned positions and biases."""
    shapes: Shapes = {"token_embd.weight": (4, 8), "position_embd.weight": (context, 8)}
    for n, shape in {"output_norm": (8,), "blk.0.attn_norm": (8,), "blk.0.attn_qkv": (24, 8),
                     "blk.0.attn_output": (8, 8), "blk.0.ffn_norm": (8,), "blk.0.ffn_up": (8, 8),
                     "blk.0.ffn_down": (8, 8)}.items():
        shapes |= {n + ".weight": shape, n + ".bias": shape[:1]}
    return image("gpt2", sizes("gpt2", 8, 2, 2, 8, context) | {
        "gpt2.attention.layer_norm_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": ["a", "b", "ab", "<|end|>"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3], "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 3}, shapes)
