"""tests/trace.py finds every point of every layer equal, and finds where they part."""
from __future__ import annotations

import sys
from importlib import util
from pathlib import Path

import numpy as np
import pytest

import hf_models as hf

ROOT = Path(__file__).resolve().parent.parent
# by its path, since Python has a module of this name
spec = util.spec_from_file_location("layer_trace", ROOT / "tests" / "trace.py")
trace = util.module_from_spec(spec)
spec.loader.exec_module(trace)
IDS = list(range(7, 27))


def parting(name: str, drop: str | None, driver, folder: Path) -> tuple[int, str] | None:
    """The first point that differs where transformers' model lacks a feature."""
    case = next(c for c in hf.CASES if c.name == name)
    model, source = trace.load(name, folder)
    got = trace.ours(driver("trace_driver"), trace.exported(source, folder), IDS)
    want = trace.theirs(case.dropped(model, case.drops[drop]) if drop else model, IDS)
    rows = trace.compare(got, want, model)
    n_layers = 1 + max(layer for layer, _ in got)
    # Bloom shows no queries, keys and values, and latent attention other ones; three layers of the
    # recurrent models have none, and no heads
    recurrent = dict.fromkeys(("lfm2", "qwen35", "granitehybrid"), 3 * 4)
    less = {"bloom": 3 * n_layers, "deepseek2-yarn": 3 * n_layers} | recurrent
    assert len(rows) == 2 + n_layers * 7 - less.get(name, 0)
    return next(((layer, point) for layer, point, off, _ in rows if off > trace.LIMIT), None)


@pytest.mark.parametrize("name, drop, want", [
    ("llama", None, None), ("gemma3", None, None), ("bloom", None, None), ("gptj", None, None),
    ("lfm2", None, None), ("lfm2", "convolution", (0, "attention")),
    ("deepseek2-yarn", None, None), ("deepseek2-yarn", "scale of scores", (0, "heads")),
    ("qwen35", None, None), ("qwen35", "beta", (0, "attention")),
    ("granitehybrid", None, None), ("granitehybrid", "skip", (0, "attention")),
    ("llama", "theta", (0, "queries")), ("gemma3", "window", (0, "heads")),
    ("gemma3", "which layers", (5, "queries")), ("gpt2", "positions", (-1, "embedded")),
    ("gpt2", "activation", (0, "ffn")), ("gemma2", "final cap", (-1, "logits"))])
def test_where_they_part(name: str, drop: str | None, want: tuple[int, str] | None, driver,
                         tmp_path: Path) -> None:
    assert parting(name, drop, driver, tmp_path) == want


def test_differences() -> None:
    """A part of the largest value; of another shape nothing is equal."""
    x = np.arange(8, dtype=np.float32).reshape(1, 8)
    assert trace.difference("heads", x, x + 1, 4) == 1 / 8
    assert trace.difference("heads", x, x[:, :4], 4) == np.inf
    pairs = x[:, [0, 2, 1, 3, 4, 6, 5, 7]]  # two heads of two pairs each
    assert trace.difference("keys", pairs, x, 4) == 0 < trace.difference("values", pairs, x, 4)


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                 tmp_path: Path) -> None:
    """The table and the exit status; after the first wrong layer only with --all."""
    def table(*args: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["trace.py", *args])
        return trace.main(), capsys.readouterr().out.splitlines()[3:]

    status, rows = table("qwen3")
    assert status == 0 and len(rows) == 2 + 3 * 7 and "logits" in rows[-1]
    assert not any("wrong" in row for row in rows)
    monkeypatch.setattr(trace, "LIMIT", 0.0)
    status, rows = table("qwen3")
    assert status == 1 and len(rows) == 1 + 7 and sum("first wrong" in row for row in rows) == 1
    assert len(table("qwen3", "--all")[1]) == 2 + 3 * 7
    with pytest.raises(SystemExit, match="trace.py: nonesuch: neither a folder with a config.json"):
        table("nonesuch")
