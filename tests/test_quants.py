"""Dequantisation of random blocks of every type, on every kernel table.

It equals the gguf package's, bit for bit."""
from __future__ import annotations

import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

TYPES = [T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q2_K, T.Q3_K, T.Q4_K,
         T.Q5_K, T.Q6_K, T.IQ4_NL, T.IQ4_XS, T.MXFP4]
BLOCKS = 400


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
