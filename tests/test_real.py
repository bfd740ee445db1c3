"""The two real models against transformers, which gets the same dequantised weights from the same
file.

Tolerances. --exact --kv f32: both sides are float32 with sums in different orders; over the 700
positions here the logits (deviation 3 and 12) were seen to differ by at most 7e-5 and 4e-4, so 1e-3
is what the project promises. Default flags: activations are rounded to 8 bits, keys and values to
11 or 8, which moves logits by some 0.1; what counts then is the distribution. Its KL divergence was
0.0026 and 0.0019 in the mean, 0.010 and 0.008 at one position in a hundred; single positions reach
0.02 to 0.06, which ones changes with any rounding. Limits are twice that, and the same best token
at 95 % of the positions."""
from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "The capital of France is"


def ids_of(run: Path, model: Path, *args: str) -> list[int]:
    out = subprocess.run([run, model, "--tokenize", "--json", *args], capture_output=True,
                         check=True)
    return json.loads(out.stdout)["ids"]


def logits_of(run: Path, model: Path, tmp_path: Path, *args: str) -> np.ndarray:
    """(T, vocab) of every position that was run."""
    out = tmp_path / "logits.npy"
    subprocess.run([run, model, "--logits", out, *args], capture_output=True, check=True)
    return np.load(out)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def reference(model, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


@pytest.fixture(scope="module")
def long_text() -> Path:
    """About 700 tokens: past Gemma's window of 512 and past a span of attention."""
    return ROOT / "tests" / "passage.txt"


def test_long_text(real, run_bin: Path, long_text: Path, tmp_path: Path) -> None:
    _, path, model = real
    ids = ids_of(run_bin, path, "--keep-newline", "-f", str(long_text))
    assert len(ids) > 560
    want = reference(model, ids)
    exact = logits_of(run_bin, path, tmp_path, "--keep-newline", "-f", str(long_text), "-n", "0",
                      "--exact", "--kv", "f32")
    assert exact.shape == want.shape
    assert np.abs(exact - want).max() <= 1e-3
    default = logits_of(run_bin, path, tmp_path, "--keep-newline", "-f", str(long_text), "-n", "0")
    p, q = log_softmax(want), log_softmax(default)
    kl = (np.exp(p) * (p - q)).sum(-1)
    assert kl.mean() <= 0.005 and np.quantile(kl, 0.99) <= 0.02 and kl.max() <= 0.12
    assert (want.argmax(-1) == default.argmax(-1)).mean() >= 0.95


def test_greedy(real, run_bin: Path, tmp_path: Path) -> None:
    """48 greedy tokens: each is the reference's best, or one of two within 0.01."""
    name, path, model = real
    args = ["-i", PROMPT, "-n", "48", "--temp", "0", "--ignore-eos", "--exact", "--kv", "f32"]
    ours = logits_of(run_bin, path, tmp_path, *args)
    n = len(ids_of(run_bin, path, "-i", PROMPT))
    assert len(ours) == n + 47
    ids = ids_of(run_bin, path, "-i", PROMPT) + [int(r.argmax()) for r in ours[n - 1 : -1]]
    want = reference(model, ids)
    assert np.abs(ours - want).max() <= 1e-3
    for row in range(n - 1, len(ours)):
        assert want[row].max() - want[row, ours[row].argmax()] <= 0.01
    text = subprocess.run([run_bin, path, *args], capture_output=True, check=True).stdout.decode()
    assert text.split()[0] == {"smollm2_path": "Paris.", "gemma3_path": "the"}[name]


def test_same_bytes(real, run_bin: Path, long_text: Path) -> None:
    """One text for any number of threads and any size of chunk; greedy and sampled."""
    _, path, _ = real

    def text(*args: str) -> bytes:
        return subprocess.run([run_bin, path, "-n", "24", *args], capture_output=True,
                              check=True).stdout

    assert text("-i", PROMPT, "--temp", "0", "-t",
                "1") == text("-i", PROMPT, "--temp", "0", "-t", "2")
    sampled = text("--keep-newline", "-f", str(long_text), "-s", "7")
    assert sampled == text("--keep-newline", "-f", str(long_text), "-s", "7", "-t", "1", "-b", "64")
    assert sampled == text("--keep-newline", "-f", str(long_text), "-s", "7", "-b", "7")


def test_chunks(smollm2_path: Path, run_bin: Path, long_text: Path, tmp_path: Path) -> None:
    """The same logits, bit for bit, however the prompt is cut."""
    whole = logits_of(run_bin, smollm2_path, tmp_path, "--keep-newline", "-f", str(long_text), "-n",
                      "0")
    for batch in ("1", "7", "32"):
        cut = logits_of(run_bin, smollm2_path, tmp_path, "--keep-newline", "-f", str(long_text),
                        "-n", "0", "-b", batch, "-t", "1")
        assert np.array_equal(whole, cut)


def test_tables_agree(smollm2_path: Path, run_bin: Path, tmp_path: Path, table: str,
                      monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernel tables differ by the order of sums only; 2.6e-4 was seen on this prompt, the promise
    is 1e-3 as above."""
    prompt = ["-i", "Attention weights say where a model looks; they do not say why.", "-n", "0",
              "--exact", "--kv", "f32"]
    best = logits_of(run_bin, smollm2_path, tmp_path, *prompt)
    monkeypatch.setenv("RUN_CPU", table)
    done = subprocess.run([run_bin, smollm2_path, "-i", "x", "-n", "0"], capture_output=True,
                          text=True)
    if done.returncode == 2:
        pytest.skip(f"this machine has no {table}")
    other = logits_of(run_bin, smollm2_path, tmp_path, *prompt)
    assert np.abs(best - other).max() <= 1e-3
