"""Layers that hand a state from row to row: the same bytes however the rows go through, whatever
was taken over of another text, and what is said of layers without maps.

That logits and maps are right is for test_parity.py and test_dump.py, which compare every family
with transformers; cutting and forking of states is in test_session.c."""
from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import export
import hf_models as hf
from exporting.config import ExportError
from exporting.huggingface import hf_model
from fuzz_corpus import FAMILIES, SHORT_CONV, model
from command import error_of, ids_of, logits_of, run, text_of
from passes import check_passes
from test_chat import Terminal
from test_session_files import MORE, continued

# wide enough for every type of weights
WIDE = hf.Case("wide", "Lfm2ForCausalLM",
               hf.base(hidden_size=256, num_hidden_layers=4, intermediate_size=256,
                       block_auto_adjust_ff_dim=False, tie_word_embeddings=True,
                       layer_types=["conv", "full_attention", "conv", "conv"]), "lfm2")
# wide enough for every type of weights, as WIDE
WIDE_DELTA = hf.Case("wide-delta", "Qwen3_5ForCausalLM",
                     hf.base(hidden_size=256, num_hidden_layers=4, intermediate_size=256,
                             head_dim=64, linear_num_key_heads=2, linear_num_value_heads=4,
                             linear_key_head_dim=64, linear_value_head_dim=64,
                             tie_word_embeddings=True), "qwen35", offset=1.0)
WIDE_MAMBA = hf.Case("wide-mamba", "GraniteMoeHybridForCausalLM",
                     hf.granite_hybrid(hidden_size=256, intermediate_size=256,
                                       shared_intermediate_size=256, mamba_n_heads=8), "granite")
torch.set_num_threads(1)  # these models are far too small to share
CASES = {c.name: c for c in [*hf.CASES, WIDE, WIDE_DELTA, WIDE_MAMBA]}
LONG = hf.PROMPT * 3  # past two positions where states are kept


def answers(exe: Path, model: Path, lines: list[dict], *args: object) -> list[dict]:
    text = "".join(json.dumps(x) + "\n" for x in lines).encode()
    return [json.loads(line) for line in text_of(exe, model, "--jsonl", "-", *args,
                                                 stdin=text).splitlines()]


@pytest.mark.parametrize("name, quantized", [
    ("lfm2", ""), ("lfm2-taps", ""), ("lfm2-head-dim", ""), ("lfm2moe", ""), ("wide", "q8_0"),
    ("wide", "q4_k_m"), ("qwen35", ""), ("qwen35-widths", ""), ("qwen35moe", ""),
    ("granitehybrid", ""), ("granitehybrid-experts", ""), ("wide-delta", "q4_k_m"),
    ("wide-mamba", "q8_0")])
def test_same_bytes(name: str, quantized: str, model_of, run_bin: Path, tmp_path: Path) -> None:
    """Chunks, threads and neighbours change no bit of a logit or a text."""
    path = model_of(name, quantized)
    check_passes(run_bin, path, tmp_path, LONG, 192)


@pytest.mark.parametrize("name", ["lfm2", "lfm2moe", "qwen35", "granitehybrid"])
def test_batches(name: str, model_of, run_bin: Path) -> None:
    """Lines take a common beginning over up to a state that was kept, and are as if alone."""
    path = model_of(name)
    lines = [{"prompt": LONG[:n] + str(n), "seed": n} for n in (300, 3, 270, 299, 150, 301, 40)]
    args = ["-n", 12, "--ignore-eos", "--logprobs", 2]
    want = [answers(run_bin, path, [x], *args)[0] for x in lines]
    for parallel, threads in ((1, 1), (2, 2), (4, 1), (7, 2)):
        got = answers(run_bin, path, lines, *args, "--parallel", parallel, "-t", threads)
        for a, b in zip(got, want, strict=True):
            assert all(a[k] == b[k] for k in ("text", "ids", "logprobs", "n_prompt"))
    samples = [json.loads(x) for x in
               text_of(run_bin, path, "-i", LONG, "-n", 9, "-s", 4, "--samples", 5, "--ignore-eos",
                       "--json").splitlines()]
    assert len(samples) == 5 and len({x["text"] for x in samples}) > 1
    for x in samples:
        alone = json.loads(text_of(run_bin, path, "-i", LONG, "-n", 9, "-s", x["seed"],
                                   "--ignore-eos", "--json"))
        assert x["ids"] == alone["ids"]


def test_score(model_of, run_bin: Path, tmp_path: Path) -> None:
    """Given texts with a common beginning, and perplexity: what their logits say."""
    path, lines = model_of("lfm2"), [LONG[:n] for n in (200, 201, 90, 260)]
    text = "".join(json.dumps({"prompt": LONG[:80], "completion": x[80:]}) + "\n" for x in lines)
    got = [json.loads(x) for x in text_of(run_bin, path, "--score", "--jsonl", "-",
                                          stdin=text.encode()).splitlines()]
    for line, one in zip(lines, got, strict=True):
        score, n = one["scores"][0], one["n_prompt"]
        ids = one["prompt_ids"] + score["ids"]
        assert ids == ids_of(run_bin, path, "-i", line)
        logits = logits_of(run_bin, path, tmp_path / "l.npy", "-i", line, "-n", 0)[1]
        logp = torch.log_softmax(torch.tensor(logits), -1)
        assert score["logprob"] == pytest.approx(
            sum(float(logp[i - 1, ids[i]]) for i in range(n, len(ids))), abs=1e-3)
    (tmp_path / "text").write_text(LONG * 2)
    found = {text_of(run_bin, path, "--perplexity", tmp_path / "text", "-c", 150, "-b", b)
             for b in (1, 7, 64)}
    assert len(found) == 1


@pytest.mark.parametrize("name", ["lfm2", "lfm2-taps", "qwen35", "granitehybrid-experts"])
def test_sessions(name: str, model_of, run_bin: Path, tmp_path: Path) -> None:
    """A session goes on in another process, at once or from where a state was kept."""
    for start in (LONG[:60], LONG):
        for n in (0, 1, 40):
            continued(run_bin, model_of(name), tmp_path / "s", start, MORE, n, "--ignore-eos")
    path, args = model_of(name), ("-n", 8, "-s", 3, "--ignore-eos", "--temp", 0)
    whole = text_of(run_bin, path, "-i", LONG, *args, "--save-session", tmp_path / "s", "-c", 240)
    prompt, again = tmp_path / "p", ("-c", 250, "-n", 8, "--temp", 0, "--ignore-eos")
    text_of(run_bin, path, "-i", LONG, "-n", 0, "--save-session", prompt)
    # no new token: its last one runs again, from a state that was kept
    assert text_of(run_bin, path, "--load-session", prompt, *again) == whole


def test_damaged_sessions(model_of, run_bin: Path, tmp_path: Path) -> None:
    """A state too few or too many, and one of another model."""
    path, file = model_of("lfm2"), tmp_path / "s"
    text_of(run_bin, path, "-i", LONG, "-n", 0, "--save-session", file)
    data = file.read_bytes()
    size = 3 * 2 * 48 * 4 // 64 * 64
    for bad in (data[:-size], data + bytes(size), data[:-64], data[:-1], data + bytes(64)):
        file.write_bytes(bad)
        assert "size: got a damaged file" in error_of(run_bin, path, "--load-session", file, "-i",
                                                      "a", code=3)
    file.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    assert "keys and values: got a damaged file" in error_of(run_bin, path, "--load-session", file,
                                                             "-i", "a", code=3)
    file.write_bytes(data)
    assert "model: got a session of another one" in error_of(
        run_bin, model_of("lfm2-taps"), "--load-session", file, "-i", "a", code=3)


def test_no_attention(run_bin: Path, tmp_path: Path) -> None:
    """A model of short convolutions alone runs, and has no maps."""
    path = tmp_path / "m"
    keys = {"shortconv.layers": [True, True], "shortconv.l_cache": 3}
    path.write_bytes(model("gpt", keys, SHORT_CONV.replace("blk.0.", "*")).build())
    args = ["-i", "abab", "-n", 8, "--temp", 0, "--ignore-eos"]
    text = text_of(run_bin, path, *args)
    assert text and text_of(run_bin, path, *args, "-b", 1) == text
    text_of(run_bin, path, "-i", "abab", "-n", 0, "--save-session", tmp_path / "s")
    assert text_of(run_bin, path, "--load-session", tmp_path / "s", *args[2:]) == text
    line = error_of(run_bin, path, *args, "--dump-attn", tmp_path / "a.npz", code=2)
    assert "no layer of the model has any" in line


def test_numbers_that_are_not_finite(run_bin: Path, tmp_path: Path) -> None:
    for name in ("in_proj", "conv", "out_proj"):
        m = model(*next(f for f in FAMILIES if f[0] == "lfm2"))
        t = m.tensors[f"blk.0.shortconv.{name}.weight"]
        t.data = np.full(len(t.data) // 4, np.nan, np.float32).tobytes()
        (tmp_path / "m").write_bytes(m.build())
        line = error_of(run_bin, tmp_path / "m", "-i", "ab", "-n", 2, code=1)
        assert "the results of layer 0 are not finite" in line


def test_chat(model_of, run_bin: Path, tmp_path: Path) -> None:
    """What is taken back in a conversation leaves nothing behind."""
    form = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}answer:"
    (tmp_path / "form").write_text(form)
    path = model_of("lfm2")
    args = ("--temp", "0", "-n", "20", "--ignore-eos", "--chat-template", str(tmp_path / "form"))
    said = ["Who was the old man by the sea, and what did he say to his twelve hens? " * 3,
            "And the cat?", "It rained in the sea."]
    t = Terminal(run_bin, path, "--chat", *args)
    t.until("> ")
    shown = []
    for line in (said[0], said[1], "/undo", said[2], "/reset", said[0]):
        t.say(line)
        shown.append(t.until("\n> "))
    t2 = Terminal(run_bin, path, "--chat", *args)
    t2.until("> ")
    for line, n in ((said[0], 0), (said[2], 3)):
        t2.say(line)
        assert t2.until("\n> ") == shown[n]
    assert shown[5] == shown[0]


def test_maps(model_of, run_bin: Path, tmp_path: Path) -> None:
    """Only layers with attention have maps, and a named one without is an error."""
    path, out = model_of("lfm2"), tmp_path / "a.npz"
    args = ["-i", hf.PROMPT, "-n", 0]
    text_of(run_bin, path, *args, "--dump-attn", out)
    got = np.load(out)
    assert got["layers"].tolist() == [2, 4] and got["attn"].shape[0] == 2
    text_of(run_bin, path, *args, "--dump-attn", tmp_path / "b.npz", "--attn-layers", "-1")
    assert np.array_equal(np.load(tmp_path / "b.npz")["attn"][0], got["attn"][1])
    line = error_of(run_bin, path, *args, "--dump-attn", out, "--attn-layers", "1-2", code=2)
    assert "--attn-layers: layer 1 is a short convolution" in line
    for name, said in (("qwen35", "gated delta net"), ("granitehybrid", "Mamba-2 layer")):
        line = error_of(run_bin, model_of(name), *args, "--dump-attn", out, "--attn-layers", 1,
                        code=2)
        assert f"--attn-layers: layer 1 is a {said}, which has no map" in line
    stats = text_of(run_bin, path, *args, "--attn-stats", tmp_path / "s.csv")
    assert stats == b"" and len((tmp_path / "s.csv").read_text().splitlines()) == 1 + 2 * 4


def test_published_spelling(model_of, tmp_path: Path) -> None:
    """config.json as LFM2's first releases have it: the same file."""
    path = model_of("lfm2-taps")
    folder = tmp_path / "hf"
    shutil.copytree(path.with_suffix(".hf"), folder)
    config = json.loads((folder / "config.json").read_text())
    kinds = config.pop("layer_types")
    config |= {"block_ff_dim": config.pop("intermediate_size"), "intermediate_size": 9,
               "tie_embedding": config.pop("tie_word_embeddings"),
               "full_attn_idxs": [i for i, kind in enumerate(kinds) if kind != "conv"],
               "rope_theta": config.pop("rope_parameters")["rope_theta"]}
    (folder / "config.json").write_text(json.dumps(config))
    assert export.main([str(folder), "-o", str(tmp_path / "m"), "--dtype", "f32"]) == 0
    files = [gguf.GGUFReader(p) for p in (path, tmp_path / "m")]
    values = [{k: f.contents() for k, f in r.fields.items() if "name" not in k} for r in files]
    assert values[0] == values[1]
    assert values[0]["lfm2.attention.head_count_kv"] == [2, 0, 0, 0]
    tensors = [{t.name: t.data.tobytes() for t in r.tensors} for r in files]
    assert tensors[0] == tensors[1]
    for change, want in (({"conv_bias": True}, "biases of short convolutions"),
                         ({"conv_L_cache": 257}, "conv_L_cache: got 257"),
                         ({"layer_types": ["conv"] * 3}, "layer_types: got"),
                         ({"layer_types": ["conv", "mamba"] * 2}, "layer_types: got")):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ExportError, match=want):
            hf_model(folder, None)


def fields_and_tensors(path: Path) -> tuple[dict, dict]:
    reader = gguf.GGUFReader(path)
    return ({k: f.contents() for k, f in reader.fields.items() if "name" not in k},
            {t.name: t.data.tobytes() for t in reader.tensors})


@pytest.mark.parametrize("name", ["qwen35", "qwen35moe"])
def test_published_qwen35(name: str, model_of, tmp_path: Path) -> None:
    """A folder as on the Hub makes the same file as the flat one.

    Its text configuration is nested, and images and layers that predict further tokens lie
    beside it."""
    path, folder = model_of(name), tmp_path / "hf"
    flat = path.with_suffix(".hf")
    shutil.copytree(flat, folder)
    config = json.loads((flat / "config.json").read_text())
    kind, tied = config["model_type"].removesuffix("_text"), config.pop("tie_word_embeddings")
    config["rope_parameters"] |= {"mrope_section": [11, 11, 10], "mrope_interleaved": True}
    (folder / "config.json").write_text(json.dumps(
        {"model_type": kind, "architectures": [], "tie_word_embeddings": tied,
         "text_config": config, "vision_config": {"hidden_size": 8}}))
    state = load_file(flat / "model.safetensors")
    assert any(k.startswith("mtp.layers.0.self_attn") for k in state)
    state = {re.sub(r"^model\.", "model.language_model.", k): v
             for k, v in state.items()}
    state["model.visual.blocks.0.attn.qkv.weight"] = torch.ones(4, 4)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert export.main([str(folder), "-o", str(tmp_path / "m"), "--dtype", "f32"]) == 0
    assert fields_and_tensors(tmp_path / "m") == fields_and_tensors(path)


def test_keys(model_of) -> None:
    """What llama.cpp reads of these families."""
    qwen, _ = fields_and_tensors(model_of("qwen35-interval"))
    assert qwen["qwen35.full_attention_interval"] == 4 and qwen["qwen35.rope.dimension_count"] == 8
    assert qwen["qwen35.rope.dimension_sections"] == [11, 11, 10, 0]
    other, _ = fields_and_tensors(model_of("qwen35"))
    assert "qwen35.full_attention_interval" not in other
    assert other["qwen35.attention.recurrent_layers"] == [True, True, False, True, False]
    assert [other[f"qwen35.ssm.{k}"] for k in ("conv_kernel", "time_step_rank", "group_count",
                                               "state_size", "inner_size")] == [4, 6, 2, 12, 72]
    for name, rope in (("granitehybrid", False), ("granitehybrid-rope", True)):
        granite, _ = fields_and_tensors(model_of(name))
        assert granite["granitehybrid.attention.head_count_kv"] == [0, 0, 2, 0]
        assert granite["granitehybrid.rope.scaling.finetuned"] is rope


@pytest.mark.parametrize("name, change, why", [
    ("qwen35", {"layer_types": ["linear_attention"] * 4}, "layer_types: got"),
    ("qwen35", {"layer_types": ["linear_attention", "mamba"] * 2 + ["x"]}, "layer_types: got"),
    ("qwen35", {"layer_types": 3}, "layer_types: got 3"),
    ("qwen35", {"linear_num_value_heads": 5}, "linear_num_value_heads: got 5, want a multiple"),
    ("qwen35", {"linear_conv_kernel_dim": 257}, "linear_conv_kernel_dim: got 257"),
    ("qwen35", {"linear_key_head_dim": 2**31}, "linear_key_head_dim: got 2147483648"),
    ("qwen35", {"linear_value_head_dim": 2**29}, "width of recurrent layers: got"),
    ("granitehybrid", {"mamba_proj_bias": True}, "biases of its projections"),
    ("granitehybrid", {"mamba_n_heads": 7}, "mamba_n_heads: got 7, want a divisor of 96"),
    ("granitehybrid", {"mamba_n_groups": 4}, "a multiple of 4"),
    ("granitehybrid", {"time_step_limit": [0.001, 0.1]}, "time_step_limit: got"),
    ("granitehybrid", {"time_step_limit": "none"}, "time_step_limit: got"),
    ("granitehybrid", {"mamba_d_state": 0}, "mamba_d_state: got 0"),
    ("granitehybrid", {"mamba_d_state": 10**6}, "got 1000000, want 1 to 8192")])
def test_configurations(name: str, change: dict, why: str, model_of, tmp_path: Path) -> None:
    """What cannot be, or cannot be said, is refused in one line."""
    folder = tmp_path / "hf"
    shutil.copytree(model_of(name).with_suffix(".hf"), folder)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match=why):
        hf_model(folder, None)


def test_verbose(model_of, run_bin: Path) -> None:
    done = run(run_bin, model_of("lfm2"), "-i", "a", "-n", 1, "-v")
    assert re.search(rb"4 heads \(2 key/value\)", done.stderr)
    assert b"state 1.2 KB" in done.stderr  # 3 layers, 2 rows of 48
    assert b"5 layers (3 short convolutions)," in done.stderr
    for name, said in (("qwen35", "3 gated delta nets"), ("granitehybrid", "3 Mamba-2 layers")):
        assert f" layers ({said})," in run(run_bin, model_of(name), "-i", "a", "-n", 0,
                                           "-v").stderr.decode()
        assert json.loads(text_of(run_bin, model_of(name), "--info", "--json"))["recurrent"] == said
