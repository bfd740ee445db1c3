"""--perplexity against transformers and plain numpy, and its errors; what --bench prints.

The protocol is llama.cpp's: windows of -c tokens, BOS at the start of each, the second half counts.
With --exact --kv f32 the logits are within 1e-3 of transformers' (test_real.py), so a mean over
hundreds of tokens agrees to 3 decimals."""
from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from command import error_of, ids_of, logits_of, text_of
from test_real import ROOT, log_softmax

PASSAGE = ROOT / "tests" / "passage.txt"
TALES = ROOT / "models" / "tales.bin"


def windows_of(ids: list[int], n: int, bos: int | None) -> list[list[int]]:
    out = [ids[i:i + n] for i in range(0, len(ids) - n + 1, n)]
    return [[bos, *w[1:]] if bos is not None else w for w in out]


def counted(logits: np.ndarray, window: list[int]) -> list[float]:
    """-log p of the tokens of a window's second half."""
    rows = range(len(window) // 2, len(window) - 1)
    p = log_softmax(logits)
    return [-p[i, window[i + 1]] for i in rows]


def score(run: Path, model: Path, text: Path, *args: str) -> dict[str, float]:
    return json.loads(text_of(run, model, "--perplexity", text, "--json", *args))


@pytest.mark.parametrize("fixture", ["smollm2_path", "gemma3_path"])
def test_transformers(fixture: str, run_bin: Path, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(fixture)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name,
                                                 dtype=torch.float32).eval()
    ids = ids_of(run_bin, path, "--keep-newline", "-f", PASSAGE)
    bos = ids[0] if fixture == "gemma3_path" else None  # SmolLM2's tokenizer adds none
    nll = []
    for w in windows_of(ids, 128, bos):
        with torch.no_grad():
            nll += counted(model(torch.tensor([w])).logits[0].numpy(), w)
    ours = score(run_bin, path, PASSAGE, "-c", "128", "--exact", "--kv", "f32")
    assert (ours["windows"], ours["window"], ours["tokens"]) == (len(ids) // 128, 128, len(nll))
    assert abs(ours["nll"] - np.mean(nll)) < 5e-4
    assert abs(ours["perplexity"] - math.exp(np.mean(nll))) < 5e-4 * ours["perplexity"]
    assert abs(ours["nll_error"] - np.std(nll) / math.sqrt(len(nll) - 1)) < 1e-4


def test_protocol(run_bin: Path, tmp_path: Path) -> None:
    """Windows, BOS, bytes and threads, from the program's own logits of each window."""
    ids = ids_of(run_bin, TALES, "--keep-newline", "-f", PASSAGE)
    pieces = json.loads(text_of(run_bin, TALES, "--tokenize", "--json", "--keep-newline", "-f",
                                PASSAGE))["pieces"]
    ours = score(run_bin, TALES, PASSAGE, "-c", "100", "-t", "1")
    assert ours == score(run_bin, TALES, PASSAGE, "-c", "100", "-t", "2", "-b", "7")
    # one letter, one byte
    n_bytes = sum(len(pieces[i]) for k in range(len(ids) // 100)
                  for i in range(100 * k + 51, 100 * k + 100))
    assert (ours["windows"], ours["tokens"],
            ours["bytes"]) == (len(ids) // 100, len(ids) // 100 * 49, n_bytes)
    assert ours["bits_per_byte"] == pytest.approx(ours["nll"] * ours["tokens"] / n_bytes
                                                  / math.log(2), rel=1e-6)
    short = tmp_path / "short.txt"
    short.write_text(PASSAGE.read_text()[:200])
    window = ids_of(run_bin, TALES, "-f", short)
    nll = counted(logits_of(run_bin, TALES, tmp_path / "l.npy", "-f", short, "-n", 0)[1], window)
    got = score(run_bin, TALES, short)  # shorter than a window: one window of its length
    assert got["window"] == len(window) and got["nll"] == pytest.approx(np.mean(nll), abs=1e-5)
    bare = score(run_bin, TALES, short, "--no-bos")
    assert bare["window"] == len(window) - 1 and bare["nll"] != got["nll"]
    line = text_of(run_bin, TALES, "--perplexity", short).decode()
    assert line.startswith(f"perplexity {got['perplexity']:.4f} +- ") and line.count("\n") == 1


@pytest.mark.parametrize("fixture", ["smollm2_path", "gemma3_path"])
def test_q8_cache(fixture: str, run_bin: Path, request: pytest.FixtureRequest) -> None:
    """A q8 cache costs at most 0.3 % over f16; 0.05 % and 0.015 % were seen.

    With --exact, and of 765 tokens: activations rounded to bytes move single logits more than the
    cache does, and 255 tokens moved by up to 0.5 %, better or worse."""
    model: Path = request.getfixturevalue(fixture)
    text = ROOT / "examples" / "glass-mountain.txt"
    f16, q8 = (score(run_bin, model, text, "--exact", "--kv", kv)["perplexity"]
                  for kv in ("f16", "q8"))
    assert 0 < abs(q8 / f16 - 1) < 3e-3


def test_errors(run_bin: Path, tmp_path: Path) -> None:
    for text, n in (("", 1), ("x", 2)):  # and BOS
        (tmp_path / "few").write_text(text)
        line = f"{n} tokens are too few to score; perplexity needs at least 3"
        assert error_of(run_bin, TALES, "--perplexity", tmp_path / "few",
                        code=2) == f"{tmp_path / 'few'}: {line}"
        assert error_of(run_bin, TALES, "--perplexity", "-", stdin=text.encode(),
                        code=2) == f"standard input: {line}"
    error_of(run_bin, TALES, "--perplexity", tmp_path / "none", code=1)
    error_of(run_bin, TALES, "--perplexity", PASSAGE, "-i", "x", code=2)
    assert error_of(run_bin, TALES, "--perplexity", PASSAGE, "-c", "2",
                    code=2) == "-c: got windows of 2 tokens, want at least 3 for --perplexity"
    error_of(run_bin, "--perplexity", PASSAGE, code=2)


def test_bench(run_bin: Path) -> None:
    """The keys that scripts read, rates that are rates, and the lines for people.

    No rate is judged."""
    got = json.loads(text_of(run_bin, TALES, "--bench", "--pp", "40", "--tg", "3", "--depth", "70",
                             "--json", "-t", "1", "--kv", "f32"))
    assert (got["arch"], got["threads"], got["kv"], got["pp"], got["tg"],
            got["depth"]) == ("gpt", 1, "f32", 40, 3, 70)
    for name in ("prefill_tps", "decode_tps"):
        assert 0 < got[f"{name}_min"] <= got[name] <= got[f"{name}_max"]
    lines = text_of(run_bin, TALES, "--bench", "--pp", "0", "--tg", "2", "--runs",
                    "3").decode().splitlines()
    assert len(lines) == 2 and lines[1].startswith("decode ") and lines[1].endswith("in 3 runs)")
    error_of(run_bin, TALES, "--bench", "--pp", "0", "--tg", "0", code=2)
    error_of(run_bin, TALES, "--bench", "-i", "x", code=2)
