"""Mixtures of experts: the same bytes however the rows go through, and both ways to store experts.

That the numbers are right is for test_parity.py and test_dump.py, which compare every family with
transformers; here its experts are compared with themselves."""
from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

import export
import hf_models as hf
from command import logits_of, text_of
from gguf_files import U32, smallest_experts

# wide enough for every type of weights
WIDE = hf.Case("wide", "Qwen3MoeForCausalLM",
               hf.base(hidden_size=256, head_dim=64, num_experts=9, num_experts_per_tok=4,
                       moe_intermediate_size=256, norm_topk_prob=True), "qwen3moe")
CASES = {c.name: c for c in [*hf.CASES, *hf.GPT_CASES, WIDE]}


@pytest.fixture(scope="module")
def model_of(run_bin: Path, tok: dict, tmp_path_factory: pytest.TempPathFactory):
    """model_of(name, quantized): a case's file, in f32 or as --quantize makes it."""
    folder = tmp_path_factory.mktemp("models")

    def build(name: str, quantized: str = "") -> Path:
        path, case = folder / f"{name}.gguf", CASES[name]
        if not path.exists():
            (hf.exported_gpt(*case.build(), tok, path) if isinstance(case, hf.GptCase)
             else hf.exported(case.build(), tok, path))
        if not quantized:
            return path
        small = folder / f"{name}-{quantized}.gguf"
        if not small.exists():
            text_of(run_bin, path, "--quantize", quantized, "-o", small)
        return small

    return build


@pytest.mark.parametrize("name, quantized", [
    ("mixtral", ""), ("qwen3moe", ""), ("experts", ""), ("experts-ungated", ""), ("wide", ""),
    ("wide", "f16"), ("wide", "bf16"), ("wide", "q8_0"), ("wide", "q4_k_m"), ("wide", "q4_0")])
def test_same_bytes(name: str, quantized: str, model_of, run_bin: Path, tmp_path: Path) -> None:
    """Chunks, threads and neighbours change no bit of a logit or a text."""
    path = model_of(name, quantized)
    args = ["-i", hf.PROMPT, "-n", 12, "--temp", 0, "--ignore-eos"]
    text, want = logits_of(run_bin, path, tmp_path / "l.npy", *args, "-t", 1)
    assert len(want) > 64
    for batch, threads in ((1, 1), (7, 2), (32, 1), (64, 2), (512, 2)):
        other, got = logits_of(run_bin, path, tmp_path / "l.npy", *args, "-b", batch, "-t", threads)
        assert other == text and got.tobytes() == want.tobytes(), (batch, threads)
    lines = b"".join(json.dumps({"prompt": hf.PROMPT[:n] + str(n)}).encode() + b"\n"
                     for n in (40, 3, 70, 22, 9))
    texts = [text_of(run_bin, path, "--jsonl", "-", "-n", 12, "-s", 5, "--ignore-eos",
                     "--logprobs", 2, "--parallel", n, "-t", t, stdin=lines)
             for n, t in ((1, 1), (2, 2), (5, 1), (5, 2))]
    assert len(set(texts)) == 1 and texts[0].count(b"\n") == 5


@pytest.mark.parametrize("quantized, limit", [("q8_0", 0.15), ("q4_k_m", 0.8)])
def test_quantized(quantized: str, limit: float, model_of, run_bin: Path, tmp_path: Path) -> None:
    """Quantised experts are near those in f32: the logits were 0.08 and 0.38 off.

    The limit is twice that; those of an unrelated model would be off by 2.4."""
    def logits(path: Path) -> np.ndarray:
        return logits_of(run_bin, path, tmp_path / "l.npy", "-i", hf.PROMPT, "-n", 0)[1]

    want, path = logits(model_of("wide")), model_of("wide", quantized)
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    assert types["blk.0.ffn_gate_inp.weight"] == "F32"
    assert types["blk.0.ffn_up_exps.weight"] == {"q8_0": "Q8_0", "q4_k_m": "Q4_K"}[quantized]
    assert 0 < (logits(path) - want).std() < limit


@pytest.mark.parametrize("name", [c.name for c in hf.CASES if "experts" in c.drops])
def test_folders(name: str, model_of, tok: dict, tmp_path: Path) -> None:
    """A matrix per expert or all in one (transformers 5 writes both): the same file."""
    case = CASES[name]
    model = case.build()
    folder = hf.save(model, tok, tmp_path / name)
    model.save_pretrained(folder, save_original_format=False)
    out = tmp_path / "out.gguf"
    assert export.main([str(folder), "-o", str(out), "--dtype", "f32"]) == 0
    files = [gguf.GGUFReader(p) for p in (out, model_of(name))]
    tensors = [{t.name: t.data.tobytes() for t in f.tensors} for f in files]
    assert tensors[0] == tensors[1]


def test_gate_and_up_in_one(run_bin: Path, tmp_path: Path) -> None:
    """ffn_gate_up_exps has gate's rows, then up's, of each expert."""
    apart, together = smallest_experts(), smallest_experts()
    gate, up = (np.frombuffer(apart.tensors[f"blk.0.ffn_{p}_exps.weight"].data,
                              np.float32).reshape(3, 4, 4) for p in ("gate", "up"))
    for part in ("gate", "up"):
        together.drop(f"blk.0.ffn_{part}_exps.weight")
    name = "blk.0.ffn_gate_up_exps.weight"
    together.tensor(name, 3, 8, 4).tensors[name].data = np.concatenate([gate, up], 1).tobytes()
    got = []
    for m in (apart, together):
        (tmp_path / "m").write_bytes(m.build())
        got.append(logits_of(run_bin, tmp_path / "m", tmp_path / "l.npy", "-i", "abab", "-n", 4,
                             "--temp", 0, "--ignore-eos"))
    assert got[0][0] == got[1][0] and got[0][1].tobytes() == got[1][1].tobytes()


def test_equal_experts(run_bin: Path, tmp_path: Path) -> None:
    """A router that likes all experts the same: the first ones are taken."""
    m = smallest_experts()
    m.tensors["blk.0.ffn_gate_inp.weight"].data = bytes(3 * 4 * 4)
    first = smallest_experts().set("llama.expert_count", U32, 2)
    for name in ("gate_inp", "gate_exps", "up_exps", "down_exps"):
        t = m.tensors[f"blk.0.ffn_{name}.weight"]
        f = first.tensors[f"blk.0.ffn_{name}.weight"]
        f.dims, f.data = [*t.dims[:-1], 2], t.data[:len(t.data) // 3 * 2]
    got = []
    for n, model in enumerate((m, first)):
        (tmp_path / "m").write_bytes(model.build())
        got.append(logits_of(run_bin, tmp_path / "m", tmp_path / "l.npy", "-i", "abab", "-n",
                             0)[1].tobytes())
    assert got[0] == got[1]
