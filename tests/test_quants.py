"""Dequantisation of random blocks of every type, on every kernel table; whole models of a type.

The blocks equal the gguf package's, bit for bit; a model runs as one of the same weights in f32."""
from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from command import error_of, logits_of
from gguf_files import Image, Tensor, byte_tokens, image, llama_shapes, random_blocks, sizes

TYPES = [T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q2_K, T.Q3_K, T.Q4_K,
         T.Q5_K, T.Q6_K, T.IQ4_NL, T.IQ4_XS, T.MXFP4, T.IQ1_S, T.IQ1_M, T.IQ2_XXS,
         T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S, T.TQ1_0, T.TQ2_0]
BLOCKS = 400
RANDOM = [t for t in TYPES if t.name[:2] in ("IQ", "TQ", "MX")]  # of these, models


def finite_scales(blocks: np.ndarray) -> np.ndarray:
    """Clear an exponent bit wherever a byte could make a scale inf or NaN.

    Payloads of NaN are nobody's contract."""
    blocks = blocks.copy()
    blocks[(blocks & 0x7C) == 0x7C] &= 0xBF
    return blocks


@pytest.mark.parametrize("qtype", TYPES, ids=lambda t: t.name)
def test_blocks(driver, qtype: T, table: str) -> None:
    size, bytes_per_block = gguf.GGML_QUANT_SIZES[qtype]
    count = max(BLOCKS, 4096 // size)
    rng = np.random.default_rng(qtype.value)
    raw = rng.integers(0, 256, (count, bytes_per_block), dtype=np.uint8)
    if qtype == T.MXFP4:  # a byte is a power of two, none is NaN: every one of them
        raw[:256, 0] = np.arange(256)
    else:
        raw = finite_scales(raw)
    if qtype == T.IQ1_M:  # its scale's last four bits are here
        raw[:, -1] &= 0xBF
    exe: Path = driver("dequantize_driver")
    done = subprocess.run([exe, table, str(qtype.value), str(raw.size)], input=raw.tobytes(),
                          capture_output=True)
    if done.returncode == 2 and table != "scalar":
        pytest.skip(f"this machine has no {table}")
    assert done.returncode == 0
    ours = np.frombuffer(done.stdout, np.uint32)
    with np.errstate(over="ignore"):  # MXFP4's largest are infinite
        theirs = gguf.quants.dequantize(raw, qtype).astype(np.float32).reshape(-1).view(np.uint32)
    assert np.array_equal(ours, theirs)


@cache
def model_of(kind: T, floats: bool) -> Image:
    """A llama with all matrices of this type, or with what they dequantise to."""
    tokens = ["<|bos|>", "<|end|>", *byte_tokens(), "th"]
    keys = sizes("llama", 256, 4, 2, 256, 64) | {
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.merges": ["t h"], "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1}
    m = image("llama", keys, llama_shapes(len(tokens), 256, 128, 256))
    for i, t in enumerate(m.tensors.values()):
        if len(t.dims) == 2:
            raw = random_blocks(kind, tuple(reversed(t.dims)), 0.08, i)
            t.kind = T.F32 if floats else kind
            t.data = (gguf.quants.dequantize(raw, kind) if floats else raw).tobytes()
    return m


@pytest.mark.parametrize("kind", RANDOM, ids=lambda t: t.name)
def test_model(run_bin: Path, tmp_path: Path, table: str, kind: T) -> None:
    """Logits of a prompt and of steps after it: the exact path's are those of the floats but for
    the order of sums, and activations in bytes move them by some per cent of their deviation."""
    text, got = ("-i", "The quick brown fox jumps over it.", "-n", 4, "--temp", 0), {}
    for name, floats, flags in (("f32", True, ["--exact"]), ("exact", False, ["--exact"]),
                                ("fast", False, [])):
        path = tmp_path / name
        path.write_bytes(model_of(kind, floats).build())
        try:
            got[name] = logits_of(run_bin, path, tmp_path / "l.npy", *text, *flags,
                                  env={"RUN_CPU": table})
        except AssertionError as e:
            if "RUN_CPU: got" in str(e):
                pytest.skip(f"this machine has no {table}")
            raise
    want = got["f32"][1]
    assert got["exact"][0] == got["f32"][0]
    assert want.std() > 0.5 and np.abs(got["exact"][1] - want).max() < 1e-4 * want.std()
    n = len(got["fast"][1]) - 4  # the first steps may already choose other tokens
    moved = np.abs(got["fast"][1][:n] - want[:n]).max() / want.std()
    assert moved < 0.3 and (moved > 0) == (table != "scalar")


def test_a_type_that_is_not_read(any_run: Path, tmp_path: Path) -> None:
    m = model_of(T.IQ2_S, False).copy()
    name = "blk.0.attn_q.weight"
    for kind in (T.NVFP4, T.Q1_0, T.Q8_K):
        values, size = gguf.GGML_QUANT_SIZES[kind]
        m.tensors[name] = Tensor([256, 256], kind, bytes(256 * 256 // values * size))
        (tmp_path / "m").write_bytes(m.build())
        assert error_of(any_run, tmp_path / "m", "-i", "x", code=3).endswith(
            f"m: tensor {name}: got type {kind.name}, which is not supported")
    m.tensors[name] = Tensor([256, 255], T.IQ3_S, bytes(110 * 255))
    (tmp_path / "m").write_bytes(m.build())
    assert "got shape (255, 256), want (256, 256)" in error_of(any_run, tmp_path / "m", "-i", "x",
                                                             code=3)
