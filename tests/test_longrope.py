"""longrope against transformers.

A text's own length chooses the long or the short factors, for all of its positions. transformers
takes the long factors when a pass holds more positions than the original context (here 32), for
every position of the pass. So a row of logits belongs to the text as it was when the row ran, and
what is computed at the end (square maps, scores) belongs to the whole text.

Tolerances: test_parity.py's 2e-4 for logits; 1e-4 for weights of attention, as in test_dump.py."""
from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import hf_models as hf
from command import text_of
from test_parity import TOLERANCE, encode

ORIGINAL = 32
FLAGS = ["-t", 1, "--exact", "--kv", "f32"]


@pytest.fixture(scope="module")
def longrope(tok: dict, tmp_path_factory: pytest.TempPathFactory):
    """Model file, transformers' model and tokenizer.json of a tiny Phi-3.

    Its original context has 32 positions."""
    folder = tmp_path_factory.mktemp("longrope")
    case = next(c for c in hf.CASES if c.name == "phi3-longrope")
    model = case.build()
    return hf.exported(model, tok, folder / "model.bin"), model, tok


def one_pass(model: torch.nn.Module, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits (T, vocab) and maps (layers, heads, T, T) of one pass."""
    with torch.no_grad():
        out = model(torch.tensor([ids]), use_cache=False, output_attentions=True)
    return out.logits[0].numpy(), torch.stack(out.attentions)[:, 0].numpy()


def greedy(model: torch.nn.Module, ids: list[int], n: int) -> list[int]:
    full = list(ids)
    for _ in range(n):
        full.append(int(one_pass(model, full)[0][-1].argmax()))
    return full


def prompt_of(tok: dict, n: int) -> str:
    """A prompt of exactly n tokens."""
    return next(t for t in (hf.PROMPT[:i] for i in range(1, len(hf.PROMPT)))
                if len(encode(tok, t)) == n)


# A prompt on either side of the border, one that crosses it at once, one that never does; batches
# that part the text.
@pytest.mark.parametrize("n_prompt, n_new, args", [
    (20, 24, []), (20, 24, ["-c", 128]), (20, 24, ["-c", 250, "-b", 3]), (2, 34, ["-b", 1]),
    (31, 4, []), (32, 4, ["-c", 200]), (33, 4, ["-b", 8]), (8, 10, ["-c", 250])])
def test_rows_as_they_ran(n_prompt: int, n_new: int, args: list, run_bin: Path, longrope,
                          tmp_path: Path) -> None:
    """Text, --logits, live maps, square maps.

    Each row of the logits and of the live maps is that of the text as long as it was then."""
    path, model, tok = longrope
    text = prompt_of(tok, n_prompt)
    full = greedy(model, encode(tok, text), n_new)
    files = {name: tmp_path / name for name in ("logits.npy", "live.jsonl", "maps.npz")}
    text_of(run_bin, path, "-i", text, "-n", n_new, *FLAGS, "--temp", 0, "--ignore-eos", *args,
            "--logits", files["logits.npy"], "--dump-attn", files["live.jsonl"], "--dump-attn",
            files["maps.npz"])
    lines = [json.loads(line) for line in files["live.jsonl"].read_text().splitlines()]
    got = np.load(files["logits.npy"])
    assert [line["id"] for line in lines] == full and len(got) == len(full) - 1

    for t in range(len(full)):
        logits, maps = one_pass(model, full[:max(t + 1, n_prompt)])
        if t < len(got):
            assert np.abs(got[t] - logits[t]).max() <= TOLERANCE, t
        assert np.abs(np.array(lines[t]["attn"]) - maps[:, :, t, :t + 1]).max() <= 1e-4, t
    whole = one_pass(model, full)[1]
    assert np.abs(np.load(files["maps.npz"])["attn"] - whole).max() <= 1e-4


def test_the_border_matters(longrope) -> None:
    """At the border the two kinds differ by far more than the tolerances."""
    _, model, tok = longrope
    ids = encode(tok, hf.PROMPT)[:ORIGINAL + 1]
    short, long = one_pass(model, ids[:-1]), one_pass(model, ids)
    assert np.abs(short[0][-1] - long[0][-2]).max() > 0.1
    assert np.abs(short[1] - long[1][:, :, :-1, :-1]).max() > 0.01


@pytest.mark.parametrize("window", (ORIGINAL, ORIGINAL + 1, 60))
def test_scores_are_one_pass(window: int, run_bin: Path, longrope, tmp_path: Path) -> None:
    """--perplexity: a window's factors are those of its length."""
    path, model, tok = longrope
    file = tmp_path / "text"
    file.write_text(hf.TEXT)
    out = json.loads(text_of(run_bin, path, "--perplexity", file, "--json", "-c", window, *FLAGS))
    ids, nll = encode(tok, hf.TEXT), []
    for i in range(len(ids) // window):
        part = ids[i * window:(i + 1) * window]
        logp = torch.log_softmax(torch.from_numpy(one_pass(model, part)[0]).double(), -1)
        nll += [-logp[t, part[t + 1]].item() for t in range(window // 2, window - 1)]
    assert out["tokens"] == len(nll)
    # logits within 2e-4, the mean of some hundred
    assert math.isclose(out["nll"], sum(nll) / len(nll), abs_tol=1e-5)
