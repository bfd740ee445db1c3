"""Products with the matrices of a tensor of three dimensions, as experts' weights are.

Through tests/product_driver.c, with each kernel table: the truth is numpy on what the gguf package
reads from the file that it wrote, and that a matrix makes the same bits in a file of its own."""
from __future__ import annotations

import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from gguf_files import random_blocks, write

EXPERTS, D, N = 5, 37, 512
USES = [(3, 2), (0, 9), (4, 1), (3, 1)]  # matrix, rows; not in their order, one of them twice


def raw_weights(qtype: T) -> np.ndarray:
    """(EXPERTS, D, bytes of N values)."""
    if qtype.name.startswith("IQ"):
        return random_blocks(qtype, (EXPERTS, D, N), 1.0)
    w = np.random.default_rng(qtype.value).standard_normal((EXPERTS, D, N)).astype(np.float32)
    return gguf.quants.quantize(w, qtype).view(np.uint8)


def multiply(exe: Path, table: str, path: Path, how: str, uses: list[tuple[int, int]],
             x: np.ndarray) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run([exe, table, how, path, "w", *(f"{i}:{n}" for i, n in uses)],
                          input=x.tobytes(), capture_output=True)
    if done.returncode == 2 and table != "scalar":
        pytest.skip(f"this machine has no {table}")
    return done


def products(*args) -> np.ndarray:
    done = multiply(*args)
    assert done.returncode == 0, done.stderr.decode()
    return np.frombuffer(done.stdout, np.float32).reshape(-1, D)


@pytest.mark.parametrize("how, limit", [("exact", 1e-6), ("fast", 0.02)])
@pytest.mark.parametrize("qtype", [T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q5_1, T.MXFP4,
                                   T.IQ2_S, T.IQ3_XXS, T.TQ1_0],
                         ids=lambda t: t.name)
def test_experts(driver, tmp_path: Path, table: str, qtype: T, how: str, limit: float) -> None:
    """Each product is with its own matrix: f32 sums, or int8 and bf16 activations.

    `limit` is of the error's norm relative to the result's."""
    exe, raw = driver("product_driver"), raw_weights(qtype)
    path = write(tmp_path / "m.gguf", "llama", {}, {"w": raw}, raw=qtype)
    tensor = gguf.GGUFReader(path).tensors[0]
    w = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(EXPERTS, D, N)
    x = np.random.default_rng(0).standard_normal((sum(n for _, n in USES), N)).astype(np.float32)
    got, row = products(exe, table, path, how, USES, x), 0
    for i, n in USES:
        own, part = x[row:row + n], got[row:row + n]
        want = own.astype(np.float64) @ w[i].astype(np.float64).T
        assert np.linalg.norm(part - want) < limit * np.linalg.norm(want)
        alone = write(tmp_path / "alone.gguf", "llama", {}, {"w": raw[i]}, raw=qtype)
        assert products(exe, table, alone, how, [(0, n)], own).tobytes() == part.tobytes()
        row += n


def test_beyond_the_last(driver, tmp_path: Path) -> None:
    """A matrix that is not there is a mistake of the caller; outermost dimensions of 1 are none."""
    exe, x, raw = driver("product_driver"), np.ones((1, N), np.float32), raw_weights(T.Q8_0)
    for shape in [(EXPERTS, D), (2, 1), (1, D), (1, 1)]:
        path = write(tmp_path / "m.gguf", "llama", {}, {"w": raw[:shape[0], :shape[1]]}, raw=T.Q8_0)
        done = [multiply(exe, "scalar", path, "exact", [(i, 1)], x)
                for i in (shape[0] - 1, shape[0])]
        assert done[0].returncode == 0 and len(done[0].stdout) == 4 * shape[1]
        assert done[1].returncode < 0 and b"n_matrices" in done[1].stderr
