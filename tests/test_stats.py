"""--attn-stats against docs/attention.md's formulas in numpy.

Here is what the maps alone do not say: windows, and the massive values of queries, keys and values.
What they do say is compared with attn.py in test_attn.py."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command import text_of

import hf_models as hf
from test_dump import EXACT, MORE_CASES

CASES = [*MORE_CASES, *(c for c in hf.GPT_CASES if c.name in ("mqa-odd-widths", "card"))]


def statistics(maps: np.ndarray, ids: np.ndarray, window: int | None,
               rows: range) -> dict[str, float]:
    """Of one head, (T, T)."""
    sums: dict[str, list[float]] = {k: [] for k in ("entropy", "entropy_rel", "distance", "sink",
                                                    "self", "previous", "max_weight", "sink_rows")}
    hits = total = 0.0
    for q in rows:
        w, keys = maps[q], np.arange(len(maps))
        n = min(q + 1, window or q + 1)
        total += w.sum()
        hits += w[[k for k in range(1, q + 1) if ids[k - 1] == ids[q] and k - 1 != q]].sum()
        if n < 2:
            continue
        h = -sum(x * np.log(x) for x in w if x > 0)
        for name, v in zip(sums, (h, h / np.log(n), (w * (q - keys)).sum(), w[0], w[q], w[q - 1],
                                  w.max(), w.argmax() == 0)):
            sums[name].append(v)
    return {name: float(np.mean(v))
            for name, v in sums.items()} | {"induction": hits / total, "rows": len(sums["self"])}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("queries", ["all", "40-90"])
def test_formulas(case: hf.GptCase, queries: str, run_bin: Path, tok: dict,
                  tmp_path: Path) -> None:
    spec, tensors = case.build()
    path, out = tmp_path / "model.bin", tmp_path / "stats.json"
    hf.exported_gpt(spec, tensors, tok, path)
    text_of(run_bin, path, "-i", hf.PROMPT * 3, "-n", "2", *EXACT, "--attn-stats", out,
            "--attn-queries", queries, "--dump-attn", tmp_path / "m.npz")
    got, ids = json.loads(out.read_text()), np.load(tmp_path / "m.npz")["token_ids"]
    maps: list[torch.Tensor] = []
    qkv: list[tuple[torch.Tensor, ...]] = []
    hf.gpt_forward(spec, tensors, ids.tolist(), maps, qkv)
    rows = range(len(ids)) if queries == "all" else range(40, 91)
    assert (got["n_tokens"], got["n_prompt"], got["model"]) == (len(ids), len(ids) - 2, "model.bin")
    assert len(got["heads"]) == spec["block_count"] * spec["attention.head_count"]
    for h in got["heads"]:
        layer, head = h["layer"], h["head"]
        pattern = spec["attention.sliding_window_pattern"] or [True] * spec["block_count"]
        window = (spec["attention.sliding_window"]
                  if spec["attention.sliding_window"] and pattern[layer] else None)
        want = statistics(maps[layer][head].numpy(), ids, window, rows)
        for name, v in want.items():
            assert h[name] == pytest.approx(v, abs=1e-4 * max(1, abs(v))), name
        for name, x in zip("qkv", qkv[layer]):
            a = x[head].abs()
            assert h[f"{name}_massive"] == pytest.approx((a.max() / a.mean()).item(), rel=1e-4)
            assert h[f"{name}_dim"] == int(a.argmax()) % a.shape[1]
