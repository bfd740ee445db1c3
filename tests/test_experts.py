"""Mixtures of experts: the same bytes however the rows go through, both ways to store experts, and
which experts tokens go to.

That logits and maps are right is for test_parity.py and test_dump.py, which compare every family
with transformers."""
from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import export
import hf_models as hf
from command import error_of, logits_of, run, text_of
from gguf_files import U32, smallest, smallest_experts
from passes import check_neighbours, check_passes

# wide enough for every type of weights
WIDE = hf.Case("wide", "Qwen3MoeForCausalLM",
               hf.base(hidden_size=256, head_dim=64, num_experts=9, num_experts_per_tok=4,
                       moe_intermediate_size=256, norm_topk_prob=True), "qwen3moe")
torch.set_num_threads(1)  # these models are far too small to share
CASES = {c.name: c for c in [*hf.CASES, *hf.GPT_CASES, WIDE]}


@pytest.mark.parametrize("name, quantized", [
    ("mixtral", ""), ("qwen3moe", ""), ("experts", ""), ("experts-ungated", ""), ("wide", ""),
    ("wide", "f16"), ("wide", "bf16"), ("wide", "q8_0"), ("wide", "q4_k_m"), ("wide", "q4_0")])
def test_same_bytes(name: str, quantized: str, model_of, run_bin: Path, tmp_path: Path) -> None:
    """Chunks, threads and neighbours change no bit of a logit or a text."""
    path = model_of(name, quantized)
    check_passes(run_bin, path, tmp_path, hf.PROMPT, 64)
    check_neighbours(run_bin, path, hf.PROMPT)


def test_same_bytes_with_every_table(table: str, model_of, run_bin: Path, tmp_path: Path) -> None:
    """The same within each kernel table, where one row goes another way than several."""
    path, args = model_of("wide", "q4_k_m"), ["-i", hf.PROMPT, "-n", 4, "--temp", 0]
    env = {**os.environ, "RUN_CPU": table}
    if run(run_bin, path, "-i", "a", "-n", 0, env=env).returncode == 2:
        pytest.skip(f"this machine has no {table}")
    got = [logits_of(run_bin, path, tmp_path / "l.npy", *args, "-b", b, "-t", t, env=env)
           for b, t in ((512, 1), (1, 2), (33, 2))]
    assert len({(text, logits.tobytes()) for text, logits in got}) == 1


@pytest.mark.parametrize("quantized, limit", [("q8_0", 0.15), ("q4_k_m", 0.8), ("mxfp4", 0.6)])
def test_quantized(quantized: str, limit: float, model_of, run_bin: Path, tmp_path: Path) -> None:
    """Quantised experts are near those in f32: the logits were 0.08, 0.38 and 0.28 off.

    The limit is twice that; those of an unrelated model would be off by 2.4."""
    def logits(path: Path) -> np.ndarray:
        return logits_of(run_bin, path, tmp_path / "l.npy", "-i", hf.PROMPT, "-n", 0)[1]

    want, path = logits(model_of("wide")), model_of("wide", quantized)
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    assert types["blk.0.ffn_gate_inp.weight"] == "F32"
    assert types["blk.0.ffn_up_exps.weight"] == {"q8_0": "Q8_0", "q4_k_m": "Q4_K",
                                                  "mxfp4": "MXFP4"}[quantized]
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


# ---- --dump-routing and -v -----------------------------------------------------------------------

EXACT = ["--exact", "--kv", "f32", "--temp", 0, "--ignore-eos"]
MIXTURES = [c for c in hf.CASES
            if (re.search("Mixtral|Moe|Deepseek", c.cls) or c.name == "gemma4-experts")
            and c.config.get("num_local_experts") != 0]
TOLERANCE = 1e-4


def routing(exe: Path, path: Path, folder: Path, *args: object) -> dict[str, np.ndarray]:
    text_of(exe, path, *args, "--dump-routing", folder / "r.npz")
    with np.load(folder / "r.npz") as z:
        return dict(z)


def routers(model: torch.nn.Module, ids: list[int]) -> tuple[list[int], list[tuple]]:
    """Layers with experts and what transformers' routers return: logits, weights, experts.

    Gemma 4's returns probabilities for logits.

    With them what the choice goes by: the probabilities, with a bias, in the best groups."""
    layers, seen = [], []

    def note(module: torch.nn.Module, inputs: tuple, out: tuple) -> None:
        lfm2, bias = hasattr(module, "use_expert_bias"), getattr(module, "e_score_correction_bias",
                                                                 None)
        p = (out[0] if type(module).__name__.startswith("Gemma4") else
             out[0].sigmoid() if lfm2 or bias is not None else out[0].softmax(-1))
        if hasattr(module, "moe_statics"):
            p = module.moe_statics(p)
        elif lfm2 and module.use_expert_bias:
            p = p + inputs[1]
        if bias is not None:
            p = p + bias
        if getattr(module, "topk_method", bias is not None) not in (False, "greedy"):
            groups = p.view(len(p), module.num_group, -1)
            worth = groups.topk(1 if bias is None else 2).values.sum(-1)
            least = worth.topk(module.topk_group).values[:, -1:]
            p = groups.masked_fill((worth < least)[..., None], -1.0).flatten(1)
        seen.append((*out, p))

    for name, module in model.named_modules():
        if type(module).__name__.lower().endswith(("topkrouter", "gemma4textrouter")):
            layers.append(int(re.search(r"layers\.(\d+)\.", name)[1]))
            module.register_forward_hook(note)
    with torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
    return layers, seen


@pytest.mark.parametrize("case", MIXTURES, ids=lambda c: c.name)
def test_routing(case: hf.Case, run_bin: Path, tok: dict, tmp_path: Path) -> None:
    """The experts of prompt and generated tokens, and their weights, against transformers' routers.

    The tolerance is that of the maps: both are results of a softmax, of logits that differ by some
    1e-5. Where the last of the chosen is ahead of the next by less than twice that, another choice
    is right too; those are few."""
    model = case.build()
    path = hf.exported(model, tok, tmp_path / "model.bin")
    got = routing(run_bin, path, tmp_path, "-i", hf.PROMPT, "-n", 12, *EXACT)
    ids, used = got["token_ids"].tolist(), got["experts"].shape[2]
    layers, want = routers(model, ids)
    assert got["layers"].tolist() == layers and len(ids) == got["n_prompt"] + 12 >= 60
    assert got["experts"].shape == got["weights"].shape == (len(layers), len(ids), used)
    assert got["n_experts"] == want[0][0].shape[1] > used == want[0][2].shape[1]
    assert (np.diff(got["weights"], axis=2) <= 0).all()
    clear = 0
    for experts, weights, (_, top, index, ranks) in zip(got["experts"], got["weights"], want):
        best = ranks.sort(-1, descending=True).values
        rows = (best[:, used - 1] - best[:, used] > 2 * TOLERANCE).numpy()
        dense = np.zeros((2, *ranks.shape), np.float32)
        np.put_along_axis(dense[0], experts, weights, 1)
        np.put_along_axis(dense[1], index.numpy(), top.numpy(), 1)
        assert ((dense[0] > 0) == (dense[1] > 0))[rows].all()
        assert np.abs(dense[0] - dense[1])[rows].max() <= TOLERANCE
        clear += rows.mean() / len(layers)
    assert clear > 0.95


def test_routing_formats(model_of, run_bin: Path, tmp_path: Path) -> None:
    """The three formats say the same, for the same text whatever the chunks, beside maps or not."""
    path = model_of("wide", "q4_k_m")
    args = ["-i", hf.PROMPT, "-n", 5, "--temp", 0, "--ignore-eos"]
    want = routing(run_bin, path, tmp_path, *args)
    files = [tmp_path / f"a{e}" for e in (".npz", ".jsonl", ".csv")]
    text = text_of(run_bin, path, *args, "-b", 7, "-t", 2, "--dump-attn", tmp_path / "m.jsonl",
                   "--dump-attn", tmp_path / "m.npz",
                   *[a for f in files for a in ("--dump-routing", f)])
    assert text == text_of(run_bin, path, *args)
    assert files[0].read_bytes() == (tmp_path / "r.npz").read_bytes()
    with np.load(tmp_path / "m.npz") as maps:
        for name in ("token_ids", "tokens", "token_bytes", "token_offsets", "n_prompt"):
            assert (maps[name] == want[name]).all()
    lines = [json.loads(line) for line in files[1].read_text().splitlines()]
    assert np.array_equal([line["experts"] for line in lines], want["experts"].swapaxes(0, 1))
    assert np.array_equal(np.array([line["weights"] for line in lines], np.float32),
                          want["weights"].swapaxes(0, 1))
    assert [line["id"] for line in lines] == want["token_ids"].tolist()
    assert [line["prompt"] for line in lines] == [True] * int(want["n_prompt"]) + [False] * 5
    keys = ["v", "pos", "id", "token", "bytes", "prompt", "layers", "experts", "weights"]
    assert all([*line] == keys and line["layers"] == [0, 1, 2] for line in lines)
    with files[2].open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [*rows[0]] == ["layer", "pos", "token", "expert", "weight"]
    assert [int(r["layer"]) for r in rows] == np.repeat([0, 1, 2], len(lines) * 4).tolist()
    assert [int(r["pos"]) for r in rows] == np.tile(np.repeat(range(len(lines)), 4), 3).tolist()
    assert {r["token"] for r in rows} == {line["token"] for line in lines}
    assert [int(r["expert"]) for r in rows] == want["experts"].ravel().tolist()
    assert np.array_equal(np.array([r["weight"] for r in rows], np.float32),
                          want["weights"].ravel())
    out = text_of(run_bin, path, "-i", hf.PROMPT, "-n", 0, "--dump-routing", "-")
    assert out.decode().splitlines() == files[1].read_text().splitlines()[:int(want["n_prompt"])]


def test_routing_refused(run_bin: Path, tmp_path: Path) -> None:
    path, dense = tmp_path / "m", tmp_path / "dense"
    path.write_bytes(smallest_experts().build())
    dense.write_bytes(smallest().build())
    args = ["-i", "ab", "-n", 1]
    for name in ("a.svg", "a.npy", "a"):
        line = error_of(run_bin, path, *args, "--dump-routing", tmp_path / name, code=2)
        assert line.endswith('", want a name ending in .npz, .jsonl or .csv'), line
    assert error_of(run_bin, dense, *args, "--dump-routing", tmp_path / "a.csv", code=2) \
        == "--dump-routing: got a model without experts, want a mixture of experts"
    twice = ["--dump-routing", tmp_path / "a.csv", "--dump-routing", tmp_path / "a.csv"]
    assert "got one file for two results" in error_of(run_bin, path, *args, *twice, code=2)
    assert error_of(run_bin, path, *args, "--dump-routing", path, code=2) \
        == "--dump-routing: got the model's own file, want another"
    assert "does not go together with --dump-routing" in error_of(
        run_bin, path, *args, *twice[:2], "--save-session", tmp_path / "s", code=2)
    assert "of one text" in error_of(run_bin, path, *args, *twice[:2], "--samples", 2, "--json",
                                     code=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense", "m"]


def test_load_of_experts(model_of, run_bin: Path, tmp_path: Path) -> None:
    """The line of -v, against the numbers of --dump-routing."""
    path = model_of("qwen3moe")
    z = routing(run_bin, path, tmp_path, "-i", hf.PROMPT, "-n", 0)
    load = np.array([np.bincount(e.ravel(), minlength=9) for e in z["experts"]])
    share = load / load.sum(1, keepdims=True)
    entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(1)
    layer, expert = np.unravel_index(share.argmax(), share.shape)
    done = run(run_bin, path, "-i", hf.PROMPT, "-n", 0, "-v", "-b", 7)
    assert done.stderr.decode().splitlines()[-1] == (
        f"experts: 4 of 9 a token in 3 layers; {100 * (load > 0).mean():.1f} % were used, as "
        f"evenly as {np.exp(entropy).mean():.1f} of 9 would be; most: layer {layer}, expert "
        f"{expert}, {100 * load.max() / len(z['token_ids']):.1f} % of the tokens")
    (tmp_path / "dense").write_bytes(smallest().build())
    assert b"experts" not in run(run_bin, tmp_path / "dense", "-i", "ab", "-n", 1, "-v").stderr
