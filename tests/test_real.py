"""The two real models against transformers, with the same dequantised weights.

Tolerances. --exact --kv f32: both sides are float32 with sums in different orders; over the 700
positions here the logits (deviation 3 and 12) were seen to differ by at most 7e-5 and 4e-4, so 1e-3
is what the project promises. Default flags: activations are rounded to 8 bits, keys and values to
11 or 8, which moves logits by some 0.1; what counts then is the distribution. Its KL divergence was
0.0026 and 0.0019 in the mean, 0.010 and 0.008 at one position in a hundred; single positions reach
0.02 to 0.06, which ones changes with any rounding. Limits are twice that, and the same best token
at 95 % of the positions."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from command import ids_of, logits_of, run, text_of

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "The capital of France is"
# About 700 tokens: past Gemma's window of 512 and past a span of attention.
PASSAGE = ["--keep-newline", "-f", ROOT / "tests" / "passage.txt"]
EXACT = ["--exact", "--kv", "f32"]


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def reference(model, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def test_long_text(real, run_bin: Path, tmp_path: Path) -> None:
    _, path, model = real
    ids, file = ids_of(run_bin, path, *PASSAGE), tmp_path / "l.npy"
    assert len(ids) > 560
    want = reference(model, ids)
    _, exact = logits_of(run_bin, path, file, *PASSAGE, "-n", 0, *EXACT)
    assert exact.shape == want.shape
    assert np.abs(exact - want).max() <= 1e-3
    _, default = logits_of(run_bin, path, file, *PASSAGE, "-n", 0)
    p, q = log_softmax(want), log_softmax(default)
    kl = (np.exp(p) * (p - q)).sum(-1)
    assert kl.mean() <= 0.005 and np.quantile(kl, 0.99) <= 0.02 and kl.max() <= 0.12
    assert (want.argmax(-1) == default.argmax(-1)).mean() >= 0.95


def test_greedy(real, run_bin: Path, tmp_path: Path) -> None:
    """48 greedy tokens: each is the reference's best, or one of two within 0.01."""
    name, path, model = real
    text, ours = logits_of(run_bin, path, tmp_path / "l.npy", "-i", PROMPT, "-n", 48, "--temp", 0,
                           "--ignore-eos", *EXACT)
    ids = ids_of(run_bin, path, "-i", PROMPT)
    n = len(ids)
    assert len(ours) == n + 47
    want = reference(model, ids + [int(row.argmax()) for row in ours[n - 1:-1]])
    assert np.abs(ours - want).max() <= 1e-3
    for row in range(n - 1, len(ours)):
        assert want[row].max() - want[row, ours[row].argmax()] <= 0.01
    assert text.split()[0] == {"smollm2_path": b"Paris.", "gemma3_path": b"the"}[name]


def test_same_bytes(real, run_bin: Path) -> None:
    """One text for any number of threads and any size of chunk; greedy and sampled."""
    _, path, _ = real
    for args, *others in ((["-i", PROMPT, "--temp", 0, "-t", 1], ["-t", 2]),
                          ([*PASSAGE, "-s", 7], ["-t", 1, "-b", 64], ["-b", 7])):
        want = text_of(run_bin, path, "-n", 24, *args)
        for more in others:
            assert text_of(run_bin, path, "-n", 24, *args, *more) == want, more


def test_chunks(smollm2_path: Path, run_bin: Path, tmp_path: Path) -> None:
    """The same logits, bit for bit, however the prompt is cut."""
    args = (run_bin, smollm2_path, tmp_path / "l.npy", *PASSAGE, "-n", 0)
    _, whole = logits_of(*args)
    for batch in (1, 7, 32):
        assert np.array_equal(whole, logits_of(*args, "-b", batch, "-t", 1)[1]), batch


def test_tables_agree(smollm2_path: Path, run_bin: Path, tmp_path: Path, table: str) -> None:
    """Kernel tables differ by the order of sums only.

    2.6e-4 was seen on this prompt, the promise is 1e-3 as above."""
    args = (run_bin, smollm2_path, tmp_path / "l.npy", "-i",
            "Attention weights say where a model looks; they do not say why.", "-n", 0, *EXACT)
    _, best = logits_of(*args)
    env = {"RUN_CPU": table}
    if run(run_bin, smollm2_path, "-i", "x", "-n", 0, env=env).returncode == 2:
        pytest.skip(f"this machine has no {table}")
    assert np.abs(best - logits_of(*args, env=env)[1]).max() <= 1e-3
