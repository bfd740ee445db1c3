"""export.py alone: what it reads, what it writes, what it refuses.

(test_parity.py shows that the result computes right.)"""
from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import export
import hf_models as hf
from exporting import patterns as cuts, spec as M, vocab as voc
from exporting.config import LIMITS, Config, ExportError
from exporting.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)


def case(name: str) -> hf.Case:
    return next(c for c in hf.CASES if c.name == name)


@pytest.fixture(scope="session")
def tok() -> dict[str, Any]:
    return hf.tokenizer_json()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory, tok: dict[str, Any]) -> Path:
    return hf.save(case("llama").build(), tok, tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    """A copy of the llama folder to spoil."""
    return Path(shutil.copytree(llama, tmp_path / "hf"))


def run(folder: Path, out: Path, *args: str) -> dict[str, Any]:
    """Export; the file's fields by key and tensors by name."""
    assert export.main([str(folder), "-o", str(out), *args]) == 0
    return read(out)


def read(path: Path) -> dict[str, Any]:
    r = gguf.GGUFReader(path)
    keys = {k: f.contents() for k, f in r.fields.items()}
    return keys | {"tensors": {t.name: t for t in r.tensors}}


def values(t: Any) -> np.ndarray:
    shape = tuple(int(n) for n in reversed(t.shape))
    return gguf.quants.dequantize(t.data, t.tensor_type).reshape(shape)


def refused(capsys: pytest.CaptureFixture[str], folder: Path, out: Path, *args: str) -> str:
    """Exit 1, one line on stderr, nothing written; returns that line."""
    before = sorted(out.parent.iterdir())
    capsys.readouterr()
    assert export.main([str(folder), "-o", str(out), *args]) == 1
    text = capsys.readouterr()
    assert text.out == "" and text.err.startswith("export.py: ") and text.err.count("\n") == 1
    assert sorted(out.parent.iterdir()) == before
    return text.err


def edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text())
    for key, value in changes.items():
        if value is ...:
            data.pop(key, None)
        else:
            data[key] = value
    path.write_text(json.dumps(data))


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- layouts of a Hugging Face folder ------------------------------------------------------------

def test_layouts_give_the_same_file(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    run(folder, tmp_path / "a.bin")
    want = sha(tmp_path / "a.bin")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    run(folder, tmp_path / "b.bin")
    assert sha(tmp_path / "b.bin") == want
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    run(folder, tmp_path / "c.bin")
    assert sha(tmp_path / "c.bin") == want
    (folder / "pytorch_model.bin").unlink()
    for stem, ext, write in (("pytorch_model", "bin", torch.save),
                             ("model", "safetensors", save_file)):
        names, index = sorted(state), {}
        for k in range(3):
            shard = f"{stem}-0000{k + 1}-of-00003.{ext}"
            write({n: state[n] for n in names[k::3]}, folder / shard)
            index |= {n: shard for n in names[k::3]}
        (folder / f"{stem}.{ext}.index.json").write_text(json.dumps({"weight_map": index}))
        run(folder, tmp_path / "d.bin")
        assert sha(tmp_path / "d.bin") == want


def test_transformers_4_spelling(folder: Path, tmp_path: Path) -> None:
    rope = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32}
    edit(folder / "config.json",
         rope_parameters={"rope_type": "llama3", "rope_theta": 500.0, **rope})
    run(folder, tmp_path / "a.bin")
    edit(folder / "config.json", rope_parameters=..., dtype=..., torch_dtype="float32",
         rope_theta=500.0, rope_scaling={"type": "llama3", **rope})
    run(folder, tmp_path / "b.bin")
    assert sha(tmp_path / "a.bin") == sha(tmp_path / "b.bin")


@pytest.mark.parametrize(
    "name,old", [
        ("gptneox", {"rotary_pct": 0.5, "rotary_emb_base": 10000}),
        ("stablelm", {"partial_rotary_factor": 0.5, "rope_theta": 10000}),
        ("phi3-longrope",
         {"rope_theta": 500.0,
          "rope_scaling": {"type": "su", "long_factor": hf.LONG, "short_factor": hf.SHORT}}),
        ("gemma3-linear", {"rope_theta": 300.0, "rope_local_base_freq": 300.0,
                           "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                           "layer_types": ..., "sliding_window_pattern": 6}),
        ("llama-yarn",
         {"rope_theta": 500.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                                                "original_max_position_embeddings": 24}}),
        ("qwen2", {"rope_theta": 10000.0, "rope_scaling": None, "layer_types": ...})])
def test_transformers_4_families(name: str, old: dict[str, Any], tmp_path: Path,
                                 tok: dict[str, Any]) -> None:
    path = hf.save(case(name).build(), tok, tmp_path / "hf")
    run(path, tmp_path / "a.bin")
    edit(path / "config.json", rope_parameters=..., **old)
    run(path, tmp_path / "b.bin")
    assert sha(tmp_path / "a.bin") == sha(tmp_path / "b.bin")


def test_mxfp4_of_gpt_oss(tmp_path: Path, tok: dict[str, Any], run_bin: Path,
                          capsys: pytest.CaptureFixture[str]) -> None:
    """Its published form, experts in blocks with scales, is the float form of transformers' own
    function for them, and --quantize mxfp4 makes blocks of the same values again."""
    from safetensors.torch import load_file, save_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors
    model = case("gpt-oss").model({"hidden_size": 64, "intermediate_size": 96})
    hf.randomise(model, 1)
    plain, packed = (hf.save(model, tok, tmp_path / name) for name in ("plain", "packed"))
    g = torch.Generator().manual_seed(0)
    weights = load_file(plain / "model.safetensors")
    blocks: dict[str, torch.Tensor] = {}
    for name in [n for n in weights if n.endswith("_proj") and ".experts." in n]:
        n, d_in, d_out = weights[name].shape
        scales = torch.randint(110, 134, (n, d_out, d_in // 32), generator=g).to(torch.uint8)
        b = torch.randint(0, 256, (n, d_out, d_in // 32, 16), generator=g).to(torch.uint8)
        weights[name] = convert_moe_packed_tensors(b, scales, dtype=torch.float32).contiguous()
        assert weights[name].shape == (n, d_in, d_out)
        blocks |= {f"{name}_blocks": b, f"{name}_scales": scales}
    save_file(weights, plain / "model.safetensors")
    rest = {k: v for k, v in weights.items() if f"{k}_blocks" not in blocks}
    save_file(rest | blocks, packed / "model.safetensors")
    edit(packed / "config.json", quantization_config={"quant_method": "mxfp4"})
    run(plain, tmp_path / "plain.bin")
    run(packed, tmp_path / "packed.bin")
    one, other = (read(tmp_path / f"{n}.bin")["tensors"] for n in ("plain", "packed"))
    assert one.keys() == other.keys() and len(blocks) == 16
    for name in one:
        assert one[name].data.tobytes() == other[name].data.tobytes(), name
    subprocess.run([run_bin, tmp_path / "packed.bin", "--quantize", "mxfp4", "-o",
                    tmp_path / "again.bin"], check=True)
    for name, again in read(tmp_path / "again.bin")["tensors"].items():
        if name.endswith("_exps.weight"):
            assert again.tensor_type.name == "MXFP4"
            assert np.array_equal(values(again), values(other[name])), name
    (lost,) = [n for n in blocks if "layers.1" in n and n.endswith("down_proj_scales")]
    save_file({k: v for k, v in (rest | blocks).items() if k != lost}, packed / "model.safetensors")
    assert "down_proj_blocks" in refused(capsys, packed, tmp_path / "x.bin")
    short = rest | blocks | {lost: blocks[lost][..., 1:].contiguous()}
    save_file(short, packed / "model.safetensors")
    assert "does not fit" in refused(capsys, packed, tmp_path / "x.bin")


@pytest.mark.parametrize("kind", [k for k in FAMILIES if k not in ("minicpm", "internlm2")])
def test_defaults_are_transformers(kind: str) -> None:
    """A config.json that leaves out what it may means what transformers' config class says."""
    from transformers import AutoConfig
    cls = type(AutoConfig.for_model(kind))
    sizes = {"hidden_size": 64, "num_hidden_layers": 7, "num_attention_heads": 4,
             "intermediate_size": 96, "vocab_size": 99}
    if kind in ("gpt2", "gptj", "gpt_bigcode", "codegen"):
        sizes = {"n_embd": 64, "n_layer": 7, "n_head": 4, "vocab_size": 99, "n_positions": 64}
    elif kind == "gpt_neo":
        sizes |= {"attention_types": [[["global", "local"], 3], [["local"], 1]]}
    elif kind == "granitemoehybrid":
        sizes |= {"num_attention_heads": 4, "mamba_n_heads": 8, "layer_types":
                  ["linear_attention"] * 6 + ["full_attention"]}
    elif kind == "electra":
        sizes |= {"embedding_size": 64}
    elif kind == "opt":
        sizes |= {"ffn_dim": sizes.pop("intermediate_size")}
    elif kind == "bloom":
        sizes = {"hidden_size": 64, "n_layer": 7, "n_head": 4, "vocab_size": 99}
    elif kind == "mpt":
        sizes = {"d_model": 64, "n_layers": 7, "n_heads": 4, "vocab_size": 99}
    elif kind == "falcon":
        sizes.pop("intermediate_size")
    if kind in ("mistral", "qwen2", "llama", "olmo2", "granite", "phi", "phi3", "stablelm", "qwen3",
                "gemma"):
        sizes["num_key_value_heads"] = 2
    elif kind in ("starcoder2", "mixtral", "qwen3_moe", "qwen2_moe", "ernie4_5_moe", "exaone4",
                  "seed_oss", "ministral3", "gpt_oss", "lfm2", "lfm2_moe", "qwen3_5_text",
                  "qwen3_5_moe_text", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "glm4_moe"):
        sizes["num_key_value_heads"] = 4
    if kind == "deepseek_v2":
        sizes["num_experts_per_tok"] = 6  # it has no default
    full = json.loads(json.dumps(cls(**sizes).to_dict()))
    family = FAMILIES[kind]

    def spec(data: dict[str, Any]) -> M.Spec:
        c = Config(data | {"model_type": kind}, family.defaults)
        return M.gpt_spec(**M.dims(c) | family.spec(c))
    brief, whole = spec(sizes), spec(full)
    assert {k: (brief[k], whole[k]) for k in whole if brief[k] != whole[k]} == {}


# ---- what is written -----------------------------------------------------------------------------

def test_dtypes(folder: Path, tmp_path: Path, tok: dict[str, Any]) -> None:
    from safetensors.torch import load_file
    edit(folder / "config.json", hidden_size=64, head_dim=16, intermediate_size=80)
    c = hf.Case("wide", hf.L, json.loads((folder / "config.json").read_text()), "llama")
    hf.save(c.build(), tok, folder)
    state = load_file(folder / "model.safetensors")
    for dtype, kind in (("f32", "F32"), ("f16", "F16"), ("bf16", "BF16"), ("q8_0", "Q8_0")):
        got = run(folder, tmp_path / "a.bin", "--dtype", dtype)
        t = got["tensors"]
        assert got["general.file_type"] == {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}[dtype]
        assert t["token_embd.weight"].tensor_type.name == kind
        assert t["blk.0.attn_norm.weight"].tensor_type.name == "F32"
        # 80 is no multiple of 32
        assert t["blk.0.ffn_down.weight"].tensor_type.name == ("F16" if dtype == "q8_0" else kind)
        want = state["model.embed_tokens.weight"].numpy()
        assert np.abs(values(t["token_embd.weight"])
                      - want).max() <= {"f32": 0, "f16": 1e-3, "bf16": 1e-2, "q8_0": 1e-2}[dtype]
        assert (t["token_embd.weight"].data
                == gguf.quants.quantize(want, t["token_embd.weight"].tensor_type)).all()
    assert got["general.quantization_version"] == 2


def test_own_type_is_kept(tmp_path: Path, tok: dict[str, Any]) -> None:
    model = case("llama").build().to(torch.bfloat16)
    got = run(hf.save(model, tok, tmp_path / "hf"), tmp_path / "a.bin")
    t = got["tensors"]["blk.0.ffn_up.weight"]
    assert t.tensor_type.name == "BF16"
    assert (values(t) == model.model.layers[0].mlp.up_proj.weight.float().detach().numpy()).all()


@pytest.mark.parametrize("name", ["lfm2", "qwen35", "granitehybrid", "deepseek3"])
def test_own_type_without_queries(name: str, tmp_path: Path, tok: dict[str, Any]) -> None:
    """Layer 0 is recurrent, or makes its queries of latents."""
    model = case(name).build().to(torch.bfloat16)
    got = run(hf.save(model, tok, tmp_path / "hf"), tmp_path / "a.bin")
    t = got["tensors"]["token_embd.weight"]
    assert t.tensor_type.name == "BF16"
    assert (values(t) == model.get_input_embeddings().weight.float().detach().numpy()).all()


def test_llama_keys_and_permutation(llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    got, state = run(llama, tmp_path / "a.bin"), load_file(llama / "model.safetensors")
    assert {k: got[f"llama.{k}"]
            for k in ("context_length", "embedding_length", "block_count", "feed_forward_length",
                      "attention.head_count", "attention.head_count_kv", "rope.dimension_count",
                      "vocab_size")} == {"context_length": 256, "embedding_length": 48,
                                         "block_count": 3, "feed_forward_length": 80,
                                         "attention.head_count": 4, "attention.head_count_kv": 2,
                                         "rope.dimension_count": 12, "vocab_size": 300}
    assert abs(got["llama.attention.layer_norm_rms_epsilon"] - 1e-4) < 1e-9
    k = state["model.layers.1.self_attn.k_proj.weight"].numpy()
    # rows 0 and 6 of a head become 0 and 1
    want = k.reshape(2, 2, 6, 48).swapaxes(1, 2).reshape(24, 48)
    assert (values(got["tensors"]["blk.1.attn_k.weight"]) == want).all()
    assert set(gguf.MODEL_TENSORS[gguf.MODEL_ARCH.LLAMA])  # the names are the gguf package's
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    assert all(table.get_name(n, (".weight",)) == n for n in got["tensors"])


def test_gpt_keys_document(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "gpt-keys.md").read_text()
    assert [k for k in M.GPT_KEYS if f"`{k}`" not in text] == []
    names = {n.split(".")[-2] if "." in n else n for s in (M.gpt_spec(**hf.GPT_CASES[k].build()[0])
             for k in range(len(hf.GPT_CASES))) for n in M.gpt_tensors(s)}
    assert [n for n in names if n not in text] == []


# ---- tokenizers ----------------------------------------------------------------------------------

def test_pre_tokenizers(folder: Path, tmp_path: Path) -> None:
    for pattern, normalizer, pre, patterns in (
        (None, None, "gpt-2", [cuts.GPT2_SPLIT]), (None, "nfc", "olmo", [cuts.GPT2_SPLIT]),
        ([cuts.LLAMA3_SPLIT], None, "dbrx", [cuts.LLAMA3_SPLIT]),
        ([cuts.QWEN2_SPLIT], "nfc", "qwen2", [cuts.QWEN2_SPLIT]),
        ([cuts.GPT4O_SPLIT], None, "gpt-4o", [cuts.GPT4O_SPLIT]),
        ([r"\s+\S"], None, "default", [r"\s+\S"])):
        tok = hf.tokenizer_json(pattern=pattern, normalizer=normalizer)
        (folder / "tokenizer.json").write_text(json.dumps(tok))
        got = run(folder, tmp_path / "a.bin")
        assert got["tokenizer.ggml.model"] == "gpt2" and got["tokenizer.ggml.pre"] == pre
        assert got["tokenizer.attnc.pre_patterns"] == patterns
        assert got["tokenizer.attnc.normalizer"] == (normalizer or "none")
        vocab = tok["model"]["vocab"]
        assert got["tokenizer.ggml.tokens"] == sorted(vocab, key=vocab.get)
        assert got["tokenizer.ggml.merges"] == [" ".join(m) for m in tok["model"]["merges"]]
    steps = [{"type": "Digits", "individual_digits": True},
             {"type": "ByteLevel", "add_prefix_space": False}]
    edit(folder / "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": steps})
    assert run(folder, tmp_path / "a.bin")["tokenizer.ggml.pre"] == "smollm"
    edit(folder / "tokenizer.json",
         pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "use_regex": False})
    assert run(folder, tmp_path / "a.bin")["tokenizer.attnc.pre_patterns"] == [voc.NO_SPLIT]


def test_special_tokens(folder: Path, tmp_path: Path, tok: dict[str, Any]) -> None:
    added = [{"id": i, "content": c, "special": s}
             for i, c, s in ((0, "<|endoftext|>", True), (280, "<|user|>", True),
                             (281, "<think>", False))]
    single = [{"SpecialToken": {"id": "<|user|>", "type_id": 0}},
              {"Sequence": {"id": "A", "type_id": 0}}]
    tok = hf.tokenizer_json(280) | {
        "added_tokens": added, "post_processor": {
            "type": "Sequence", "processors": [
                {"type": "ByteLevel"}, {"type": "TemplateProcessing", "single": single}]}}
    (folder / "tokenizer.json").write_text(json.dumps(tok))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({
                       "eos_token": {"content": "<|endoftext|>"}, "bos_token": "<think>",
                       "chat_template": "{{ messages }}"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 280, 281]}))
    got = run(folder, tmp_path / "a.bin")
    types = got["tokenizer.ggml.token_type"]
    assert (types[0], types[280], types[281], types[282], types[299]) == (3, 3, 4, 5, 5)
    assert got["tokenizer.ggml.tokens"][282:284] == ["[PAD282]", "[PAD283]"] and len(types) == 300
    assert (got["tokenizer.ggml.add_bos_token"] is True
            and got["tokenizer.ggml.add_eos_token"] is False)
    assert [got[f"tokenizer.ggml.{n}_token_id"]
            for n in ("bos", "eos", "eot", "eom")] == [280, 0, 280, 281]
    assert got["tokenizer.chat_template"] == "{{ messages }}"


def test_chat_templates(folder: Path, tmp_path: Path) -> None:
    """tokenizer_config.json with a text, or a list of named ones; files, which go first."""
    from transformers import AutoTokenizer

    def kept() -> dict[str, str]:
        got = run(folder, tmp_path / "a.bin")
        return {k.removeprefix("tokenizer.chat_template").removeprefix("."): v
                for k, v in got.items() if k.startswith("tokenizer.chat_template")}

    def same_as_transformers(found: dict[str, str]) -> None:
        theirs = AutoTokenizer.from_pretrained(folder).chat_template
        theirs = {"default": theirs} if isinstance(theirs, str) else theirs or {}
        assert found == {k.replace("default", "").replace("-", "_"): v for k, v in theirs.items()}

    config = folder / "tokenizer_config.json"
    same_as_transformers(kept())
    for value in ("one\r\n\u00e9{{ x }}\n", [{"name": "default", "template": "usual"},
                                              {"name": "tool_use", "template": "tools"},
                                              {"name": "r-a-g", "template": "documents"}],
                  [{"name": "rag", "template": "only"}], None, []):
        edit(config, chat_template=value)
        same_as_transformers(kept())
    edit(config, chat_template="in the configuration")
    (folder / "chat_template.jinja").write_text("in a file \u2603", encoding="utf-8")
    same_as_transformers(kept())
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    assert kept() == {"": "in a file \u2603", "tool_use": "with tools"}
    same_as_transformers(kept())


@pytest.mark.parametrize("value,want", [
    (5, "want a text"), ({"a": "b"}, "want a text"), ([1], "not a tokenizer.json as export.py"),
    ([{"name": "default"}], "not a tokenizer.json as export.py"),
    ([{"name": "x", "template": 1}], "want a text"), ("\ud800", "not valid Unicode")])
def test_bad_chat_templates(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                            value: Any, want: str) -> None:
    edit(folder / "tokenizer_config.json", chat_template=value)
    (tmp_path / "out").mkdir()
    assert want in refused(capsys, folder, tmp_path / "out" / "a.bin")
    edit(folder / "tokenizer_config.json", chat_template=None)
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    assert "not readable as UTF-8" in refused(capsys, folder, tmp_path / "out" / "a.bin")


def test_sentencepiece(folder: Path, tmp_path: Path, tok: dict[str, Any]) -> None:
    import sentencepiece as spm
    (folder / "tokenizer.json").unlink()
    path = hf.sentencepiece(folder)
    sp = spm.SentencePieceProcessor(model_file=str(path))
    n = sp.vocab_size()
    hf.save(hf.Case("x", hf.L, hf.base(vocab_size=n + 3), "llama").build(), tok, folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    got = run(folder, tmp_path / "a.bin")
    assert got["tokenizer.ggml.model"] == "llama" and got["tokenizer.ggml.add_bos_token"] is True
    assert got["tokenizer.ggml.add_space_prefix"] is True
    assert got["tokenizer.ggml.tokens"] == [sp.id_to_piece(i) for i in range(n)] + [
        f"[PAD{i}]" for i in range(n, n + 3)]
    assert np.allclose(got["tokenizer.ggml.scores"][:n], [sp.get_score(i) for i in range(n)])
    kinds = [3 if sp.is_control(i) else 2 if sp.is_unknown(i) else 6 if sp.is_byte(i) else 1
             for i in range(n)]
    assert got["tokenizer.ggml.token_type"] == kinds + [5] * 3
    assert [got[f"tokenizer.ggml.{k}_token_id"] for k in ("unknown", "bos", "eos")] == [0, 1, 2]


def test_sentencepiece_in_tokenizer_json(tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    """Llama's tokenizer.json becomes SentencePiece pieces with scores.

    That is where the merges of each piece are complete and together in the list; others are
    refused, or kept as merges where there is no space prefix (Gemma)."""
    import sentencepiece as spm
    sp = spm.SentencePieceProcessor(model_file=str(hf.sentencepiece(tmp_path)))
    tok = hf.fast_json(sp)
    vocab, merges = tok["model"]["vocab"], [tuple(m) for m in tok["model"]["merges"]]
    v = voc.bpe_vocab(tok, tmp_path)
    assert v.model == "llama" and v.add_space_prefix
    made = [p for p in vocab if any(a + b == p for a, b in merges)]
    assert sorted(made, key=lambda p: -v.scores[vocab[p]]) == sorted(
        made, key=lambda p: -sp.get_score(vocab[p]))
    some = next(m for m in merges if sum(a + b == m[0] + m[1] for a, b in merges) > 1)
    tok["model"]["merges"].remove(list(some))
    with pytest.raises(ExportError, match="scores"):
        voc.bpe_vocab(tok, tmp_path)
    tok["normalizer"]["normalizers"].pop(0)
    v = voc.bpe_vocab(tok, tmp_path)
    assert v.model == "gemma4" and len(v.merges) == len(merges) - 1 and not v.add_space_prefix


def test_tokenizers_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                            tok: dict[str, Any]) -> None:
    out, path = tmp_path / "out" / "a.bin", folder / "tokenizer.json"
    out.parent.mkdir()
    byte_level = {"type": "ByteLevel", "add_prefix_space": True}
    split = {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "MergedWithNext",
             "invert": False}
    digits = {"type": "Digits", "individual_digits": False}
    post = {"type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A"}}, {"Sequence": {"id": "B"}}]}
    for change, why in (
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "Unigram"),
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, "WordPiece"),
        ({"model": tok["model"] | {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix"),
        ({"model": tok["model"] | {"dropout": 0.1}}, "dropout"),
        ({"model": tok["model"] | {"merges": ["a b c"]}}, "merge"),
        ({"model": tok["model"] | {"vocab": {"a": -1}}}, "ids"), ({"model": 3}, "model"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer"),
        ({"pre_tokenizer": None}, "ByteLevel"),
        ({"pre_tokenizer": byte_level}, "add_prefix_space"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]}},
         "MergedWithNext"),
        ({"pre_tokenizer": {"type": "Sequence",
                            "pretokenizers": [byte_level | {"add_prefix_space": False}, split]}},
         "after ByteLevel"),
        ({"pre_tokenizer": {"type": "Sequence",
                            "pretokenizers": [byte_level | {"add_prefix_space": False}, digits]},
          "model": tok["model"] | {"vocab": tok["model"]["vocab"] | {"\u00c2\u00bd": 1000}}},
         "inside characters"),
        ({"post_processor": post}, "template"),
        ({"post_processor": {"type": "Processing"}}, "Processing"),
        ({"added_tokens": [{"id": 299, "content": "x", "special": False, "lstrip": True}]},
         "lstrip"),
        ({"added_tokens": [{"id": 300, "content": "x"}]}, "301 tokens"),
        ({"added_tokens": [7]}, "added_tokens"),
        ({"added_tokens": [{"id": 299, "content": "\ud800"}]}, "Unicode")):
        path.write_text(json.dumps(tok | change))
        assert why in refused(capsys, folder, out), change
    path.write_text("{")
    assert "JSON" in refused(capsys, folder, out)
    path.unlink()
    assert "no tokenizer" in refused(capsys, folder, out)
    hf.sentencepiece(folder, "unigram")
    assert "Unigram" in refused(capsys, folder, out)
    hf.sentencepiece(folder, normalization_rule_name="nmt_nfkc")
    assert "normalisation" in refused(capsys, folder, out)
    data = hf.sentencepiece(folder).read_bytes()
    for cut in (0, 1, 10, 1000, len(data) - 5):
        (folder / "tokenizer.model").write_bytes(data[:cut])
        refused(capsys, folder, out)


# ---- other checkpoints ---------------------------------------------------------------------------

def tensors_of(model: M.Model) -> dict[str, torch.Tensor]:
    return {n: r.op(*map(model.source.load, r.sources)) for n, r in model.recipes.items()}


@pytest.mark.parametrize("bias", (True, False))
def test_nanogpt_characters(bias: bool, tmp_path: Path) -> None:
    chars = sorted(set(hf.TEXT))
    state = hf.nanogpt_state(len(chars), 32, 2, 64, bias)
    meta = {"vocab_size": len(chars), "itos": dict(enumerate(chars)),
            "stoi": {c: i for i, c in enumerate(chars)}}
    args = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 64, "bias": bias,
            "vocab_size": len(chars), "dropout": 0.0}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    torch.save({"model": {"_orig_mod." + k: v for k, v in state.items()}, "model_args": args,
                "iter_num": 7,
                "best_val_loss": torch.tensor(1.5), "config": {"dataset": "x"}},
               tmp_path / "ckpt.pt")
    got = run(tmp_path / "ckpt.pt", tmp_path / "a.bin")
    assert (got["general.architecture"] == "gpt" and got["gpt.ffn.activation"] == "gelu"
            and got["gpt.norm.bias"] is bias)
    assert got["tokenizer.ggml.tokens"] == [voc.SPACE if c == " " else c for c in chars]
    assert (got["tokenizer.ggml.add_bos_token"] is False
            and got["tokenizer.ggml.add_space_prefix"] is False)
    model = export.read_model(tmp_path / "ckpt.pt", None, "gelu")
    ids = [meta["stoi"][c] for c in "Once upon a time"]
    want = hf.nanogpt_forward(state, ids, 2, 4, bias)
    assert (hf.gpt_forward(model.spec, tensors_of(model), ids) - want).abs().max() < 1e-4
    assert export.read_model(tmp_path / "ckpt.pt", None,
                             "gelu_tanh").spec["ffn.activation"] == "gelu_tanh"


def test_nanogpt_bpe(tmp_path: Path, tok: dict[str, Any]) -> None:
    """A padded vocabulary, with tokenizer.json, or vocab.json and merges.txt."""
    args = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 16, "bias": False,
            "vocab_size": 320}
    torch.save({"model": hf.nanogpt_state(320, 32, 1, 16, False), "model_args": args},
               tmp_path / "ckpt.pt")
    path = tmp_path / "t"
    path.mkdir()
    (path / "tokenizer.json").write_text(json.dumps(tok))
    a = run(tmp_path / "ckpt.pt", tmp_path / "a.bin", "--tokenizer", str(path / "tokenizer.json"))
    assert (a["tokenizer.ggml.tokens"][300:302] == ["[PAD300]", "[PAD301]"]
            and a["tokenizer.ggml.token_type"][319] == 5)
    (path / "tokenizer.json").unlink()
    (path / "vocab.json").write_text(json.dumps(tok["model"]["vocab"]))
    (path / "merges.txt").write_text("#version: 0.2\n"
                                     + "".join(f"{a} {b}\n" for a, b in tok["model"]["merges"]))
    for arg in (path, path / "vocab.json"):
        b = run(tmp_path / "ckpt.pt", tmp_path / "b.bin", "--tokenizer", str(arg))
        for key in ("tokens", "token_type", "merges", "pre"):
            assert a[f"tokenizer.ggml.{key}"] == b[f"tokenizer.ggml.{key}"]
        assert b["tokenizer.ggml.eos_token_id"] == 0


def llama2c_state(n: int, tied: bool) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(4)
    shapes = {"attention.wq": (32, 32), "attention.wk": (16, 32), "attention.wv": (16, 32),
              "attention.wo": (32, 32),
              "feed_forward.w1": (40, 32), "feed_forward.w2": (32, 40), "feed_forward.w3": (40, 32),
              "attention_norm": (32,), "ffn_norm": (32,)}
    state = {"tok_embeddings.weight": torch.randn(n, 32, generator=g),
             "norm.weight": torch.rand(32, generator=g)}
    state |= {f"layers.{i}.{k}.weight": torch.randn(v, generator=g) for i in range(2)
              for k, v in shapes.items()}
    return state | {"output.weight": state["tok_embeddings.weight"]
                    if tied else torch.randn(n, 32, generator=g)}


@pytest.mark.parametrize("tied", (True, False))
def test_llama2c(tied: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = [("<unk>", 0.0), ("\n<s>\n", 0.0), ("\n</s>\n", 0.0),
              *((f"<0x{b:02X}>", 0.0) for b in range(256)),
              (" t", -1.0), ("he", -2.0), (" ", -3.0), ("é", -4.0)]
    data = struct.pack("<i", 9) + b"".join(struct.pack("<fi", s, len(t.encode())) + t.encode()
                                           for t, s in tokens)
    (tmp_path / "tokenizer.bin").write_bytes(data)
    n, state = len(tokens), llama2c_state(len(tokens), tied)
    args = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": n,
            "max_seq_len": 64, "norm_eps": 1e-5, "multiple_of": 4, "dropout": 0.0}
    torch.save({"model": state, "model_args": args, "iter_num": 1}, tmp_path / "ckpt.pt")
    order = [state["tok_embeddings.weight"]]
    for k in ("attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo",
              "ffn_norm", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"):
        order += [state[f"layers.{i}.{k}.weight"] for i in range(2)]
    order += [state["norm.weight"],
              torch.zeros(2, 64, 4)] + ([] if tied else [state["output.weight"]])
    header = struct.pack("<7i", 32, 40, 2, 4, 2, n if tied else -n, 64)
    (tmp_path / "stories.bin").write_bytes(
        header + b"".join(t.contiguous().numpy().tobytes() for t in order))
    a, b = run(tmp_path / "ckpt.pt",
               tmp_path / "a.gguf"), run(tmp_path / "stories.bin", tmp_path / "b.gguf")
    for got in (a, b):
        assert got["general.architecture"] == "llama" and got["llama.feed_forward_length"] == 40
        assert ("output.weight" in got["tensors"]) is not tied
        assert (values(got["tensors"]["blk.1.attn_k.weight"])
                == state["layers.1.attention.wk.weight"].numpy()).all()
        assert (values(got["tensors"]["blk.0.ffn_up.weight"])
                == state["layers.0.feed_forward.w3.weight"].numpy()).all()
        assert got["tokenizer.ggml.tokens"][:3] == ["<unk>", "<s>", "</s>"]
        assert got["tokenizer.ggml.tokens"][-4:] == [voc.SPACE + "t", "he", voc.SPACE, "é"]
        assert (got["tokenizer.ggml.eot_token_id"] == 1
                and got["tokenizer.ggml.token_type"][3:5] == [6, 6])
    assert a["tensors"].keys() == b["tensors"].keys()
    assert all((values(t) == values(b["tensors"][k])).all() for k, t in a["tensors"].items())
    whole = (tmp_path / "stories.bin").read_bytes()
    (tmp_path / "out").mkdir()
    for cut in (0, 3, 27, 28, 1000, len(whole) - 4):
        (tmp_path / "stories.bin").write_bytes(whole[:cut])
        refused(capsys, tmp_path / "stories.bin", tmp_path / "out" / "a.gguf")


def test_own_checkpoint(tmp_path: Path, tok: dict[str, Any],
                        capsys: pytest.CaptureFixture[str]) -> None:
    g = torch.Generator().manual_seed(5)
    shapes = {"attn_norm": (32,), "wq": (32, 32), "wk": (32, 32), "wv": (32, 32), "wo": (32, 32),
              "ffn_norm": (32,), "w_up": (64, 32), "w_down": (32, 64)}
    state = {"tok_emb.weight": torch.randn(300, 32, generator=g),
             "final_norm.weight": torch.rand(32, generator=g)}
    state |= {f"layers.{i}.{k}.weight": torch.randn(v, generator=g) for i in range(2)
              for k, v in shapes.items()}
    config = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "hidden_dim": 64,
              "vocab_size": 300, "seq_len": 64, "norm_eps": 1e-5, "rope_base": 10000.0,
              "rope_pairing": "half", "activation": "gelu", "tied": True}
    data = {"format": "attn.c-train-1", "config": config, "model": state,
            "tokenizer": json.dumps(tok), "step": 3}
    torch.save(data, tmp_path / "c.pt")
    got = run(tmp_path / "c.pt", tmp_path / "a.bin", "--dtype", "q8_0")
    assert (got["general.architecture"] == "gpt" and got["gpt.ffn.gated"] is False
            and got["gpt.tied"] is True)
    assert got["tokenizer.ggml.bos_token_id"] == got["tokenizer.ggml.eos_token_id"] == 0
    assert got["tokenizer.ggml.add_bos_token"] is True
    assert got["tensors"]["blk.1.ffn_down.weight"].tensor_type.name == "Q8_0"
    (tmp_path / "out").mkdir()
    for change in ({"format": "attn.c-train-2"}, {"config": config | {"activation": "tanh"}},
                   {"config": None},
                   {"config": config | {"dim": "x"}}, {"config": config | {"n_heads": 5}},
                   {"tokenizer": "{"}, {"model": {}},
                   {"model": state | {"layers.0.extra.weight": torch.zeros(3)}},
                   {"config": config | {"dim": 64}},
                   {"config": config | {"norm": "layer"}}, {"config": config | {"bias": True}}):
        torch.save(data | change, tmp_path / "c.pt")
        refused(capsys, tmp_path / "c.pt", tmp_path / "out" / "a.bin")


# ---- refusals ------------------------------------------------------------------------------------

class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def test_pickles_run_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                             capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out" / "a.bin"
    out.parent.mkdir()
    torch.save({"model": Evil(), "model_args": {"n_embd": 3}}, "ckpt.pt")
    assert "needs code" in refused(capsys, Path("ckpt.pt"), out)
    torch.save({"model": Evil()}, "ckpt.pt", _use_new_zipfile_serialization=False)
    assert "needs code" in refused(capsys, Path("ckpt.pt"), out)
    for bad in (Evil(), {"itos": Evil()}, {"itos": {0: "ab"}}, {"itos": {1: "a"}}, {"itos": 3}, [],
                {"itos": {0: "a", 1: "a"}}, {"itos": {0: " ", 1: voc.SPACE}}, {"itos": {0: 7}}):
        with pytest.raises(ExportError):
            Path("meta.pkl").write_bytes(pickle.dumps(bad))
            voc.char_vocab(Path("meta.pkl"))
    for raw in (b"", b"\x80", pickle.dumps({"itos": {0: "a"}})[:-3],
                b"cos\nsystem\n(S'touch pwned'\ntR."):
        with pytest.raises(ExportError):
            Path("meta.pkl").write_bytes(raw)
            voc.char_vocab(Path("meta.pkl"))
    assert not Path("pwned").exists()


BAD_CONFIGS = [
    ("llama", dict(rope_parameters={"rope_type": "proportional", "rope_theta": 1e4}),
     "proportional"),
    ("llama", dict(rope_parameters={"rope_type": "linear", "rope_theta": 1e4}), "factor"),
    ("llama", dict(rope_parameters={"rope_type": "default", "mrope_section": [1, 2, 3]}), "mrope"),
    ("llama", dict(partial_rotary_factor=0.5), "partial_rotary_factor"),
    ("llama", dict(hidden_act="quick_gelu"), "hidden_act"),
    ("llama", dict(model_type="llama4"), "llama4"),
    ("llama", dict(quantization_config={"bits": 4}), "quantization_config"),
    ("llama", dict(hidden_size=0), "hidden_size"),
    ("llama", dict(num_attention_heads="4"), "num_attention_heads"),
    ("llama", dict(num_key_value_heads=3), "num_key_value_heads"),
    ("llama", dict(rms_norm_eps="x"), "norm_eps"),
    ("llama", dict(attention_bias="yes"), "attention_bias"),
    ("llama", dict(rope_parameters=[1]), "rope_parameters"),
    ("llama", dict(num_hidden_layers=4), "missing"), ("llama", dict(num_hidden_layers=2), "tensor"),
    ("llama", dict(intermediate_size=64), "shape"), ("llama", dict(vocab_size=301), "shape"),
    ("llama", dict(attention_bias=True), "missing"),
    ("llama", dict(tie_word_embeddings=True), "tie_word_embeddings"),
    ("llama", dict(rms_norm_eps=None), "norm.epsilon"), ("llama", dict(head_dim=1e9), "head_dim"),
    ("gemma", dict(use_bidirectional_attention=True), "bidirectional"),
    ("gemma3", dict(attn_logit_softcapping=5.0), "attn_logit_softcapping"),
    ("gemma3", dict(layer_types=["x"] * 7), "layer_types"),
    ("qwen2-window", dict(layer_types=["sliding_attention"]), "layer_types"),
    ("smollm3", dict(no_rope_layers=[1, 0]), "no_rope_layers"),
    ("granite", dict(logits_scaling=0), "logits_scaling"),
    ("falcon-7b", dict(alibi=True), "ALiBi"),
    ("bloom", dict(apply_residual_connection_post_layernorm=True), "residual"),
    ("mpt", dict(attn_config={"alibi": False}), "position_embd"),
    ("cohere2", dict(sliding_window=None), "sliding_window"),
    ("exaone4-window", dict(layer_types=..., sliding_window_pattern="LLLG"),
     "sliding_window_pattern"),
    ("olmo3", dict(rope_parameters={k: hf.rp("linear", factor=2.0) for k in (
        "full_attention", "sliding_attention")}), "windowed layers"),
    ("gpt_neo", dict(attention_layers=["global"] * 2), "attention_types"),
    ("minicpm", dict(num_experts=8), "experts"), ("apertus", dict(num_hidden_layers=2), "act_fn"),
    ("mpt", dict(attn_config={"alibi": True, "qk_ln": True}), "qk_ln"),
    ("mpt", dict(attn_config=[3]), "want an object"), ("mpt", dict(no_bias=False), "no_bias"),
    ("gpt2", dict(add_cross_attention=True), "cross"),
    ("gptj", dict(rotary_dim=None), "rotary_dim"),
    ("phi3-longrope",
     dict(rope_parameters={"rope_type": "longrope", "long_factor": [1], "short_factor": [1]}),
     "factor"),
    ("mistral", dict(layer_types=["sliding_attention"]), "layer_types"),
]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, tok: dict[str, Any]) -> dict[str, Path]:
    return {name: hf.save(case(name).build(), tok, tmp_path_factory.mktemp(name))
            for name in {b[0] for b in BAD_CONFIGS}}


@pytest.mark.parametrize("name,change,why", BAD_CONFIGS, ids=lambda v: str(v)[:40].replace("/", ""))
def test_configs_refused(name: str, change: dict[str, Any], why: str, folders: dict[str, Path],
                         tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(shutil.copytree(folders[name], tmp_path / "hf"))
    (tmp_path / "out").mkdir()
    edit(path / "config.json", **change)
    err = refused(capsys, path, tmp_path / "out" / "a.bin")
    assert any(w in err for w in why.split("|")), err


def test_bad_tensors(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file
    out, path = tmp_path / "out" / "a.bin", folder / "model.safetensors"
    out.parent.mkdir()
    state, whole = load_file(path), path.read_bytes()
    norm, up = "model.layers.0.input_layernorm.weight", "model.layers.0.mlp.up_proj.weight"

    def check(change: dict[str, Any], why: str, *args: str) -> None:
        save_file({k: v.contiguous() for k, v in (state | change).items() if v is not None}, path)
        assert why in refused(capsys, folder, out, *args)
    check({norm: None}, "missing")
    check({"model.layers.0.mlp.new_proj.weight": torch.zeros(3)}, "meaning")
    check({"model.layers.0.mlp.up_proj.bias": torch.zeros(80)}, "no place")
    check({norm: torch.zeros(47)}, "want (48,)")
    check({up: torch.zeros(80, 48, dtype=torch.int8)}, "floating-point")
    check({up: torch.full((80, 48), torch.nan)}, "NaN")
    check({up: torch.full((80, 48), 1e5)}, "--dtype", "--dtype", "f16")
    for cut in (0, 4, 9, 500, len(whole) - 100):
        path.write_bytes(whole[:cut])
        refused(capsys, folder, out)
    path.write_bytes(whole)
    index = folder / "model.safetensors.index.json"
    for weight_map in ({norm: "../model.safetensors"}, {norm: "none.safetensors"}, {norm: 3}, [],
                       None):
        index.write_text(json.dumps({"weight_map": weight_map}))
        refused(capsys, folder, out)
    index.unlink()
    for text in ("", "[]", "{", "\xff", '{"model_type": 3}', "{}", '{"model_type": "llama"}',
                 "[" * 100000):
        (folder / "config.json").write_text(text, encoding="latin-1")
        refused(capsys, folder, out)


def test_unused_tensors_are_named(folder: Path, tmp_path: Path,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file
    state = load_file(folder / "model.safetensors")
    save_file(state | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(6)},
              folder / "model.safetensors")
    run(folder, tmp_path / "a.bin")
    assert ("not used: 1 tensors: model.layers.0.self_attn.rotary_emb.inv_freq"
            in capsys.readouterr().out)


def test_an_old_file_survives_a_failure(folder: Path, tmp_path: Path,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out" / "a.bin"
    out.parent.mkdir()
    out.write_text("old")
    edit(folder / "config.json", vocab_size=7)
    refused(capsys, folder, out)
    assert out.read_text() == "old"


def test_every_end_token_is_kept(folder: Path, tmp_path: Path,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    """All of generation_config.json's list is kept, as transformers reads it.

    Ids of padding rows count, those beyond are named."""
    from transformers import GenerationConfig
    ids = [0, 270, 271, 272, 299]
    (folder / "tokenizer.json").write_text(json.dumps(hf.tokenizer_json(280)))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    assert GenerationConfig.from_pretrained(folder).eos_token_id == ids
    got = run(folder, tmp_path / "a.bin")
    assert got["tokenizer.ggml.eos_token_ids"] == ids
    assert [got[f"tokenizer.ggml.{n}_token_id"] for n in ("eos", "eot", "eom")] == ids[:3]
    assert got["tokenizer.ggml.token_type"][299] == 5
    edit(folder / "tokenizer_config.json", eos_token="a")  # the tokenizer's own is the first
    first = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]["a"]
    assert run(folder, tmp_path / "a.bin")["tokenizer.ggml.eos_token_ids"] == [first, *ids]
    capsys.readouterr()
    for value in (0, [0], None):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        edit(folder / "tokenizer_config.json", eos_token=...)
        assert "tokenizer.ggml.eos_token_ids" not in run(folder, tmp_path / "a.bin")
    assert "eos" not in capsys.readouterr().out
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", eos_token_id=[5, 300, -1, 6])
    assert run(folder, tmp_path / "a.bin")["tokenizer.ggml.eos_token_ids"] == [5, 6]
    out = capsys.readouterr().out
    assert "config.json: eos_token_id: 300 is left out, the model has 300 tokens" in out
    assert "-1 is left out" in out
    edit(folder / "config.json", eos_token_id=[5, "6"])
    (tmp_path / "out").mkdir()
    assert "eos_token_id" in refused(capsys, folder, tmp_path / "out" / "a.bin")


def test_added_tokens_beyond_tokenizer_json(folder: Path, tmp_path: Path,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    """transformers adds the tokens that only tokenizer_config.json lists.

    With a vocab.json, also those that only added_tokens.json lists."""
    from transformers import AutoTokenizer
    tok = hf.tokenizer_json(280)
    (folder / "tokenizer.json").write_text(json.dumps(tok))
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    edit(folder / "tokenizer_config.json", added_tokens_decoder={
             "280": flags | {"content": "<|user|>", "special": True},
             "281": flags | {"content": "<think>", "special": False},
             "999": flags | {"content": "<far>", "special": True}
         })
    theirs = AutoTokenizer.from_pretrained(folder)
    got = run(folder, tmp_path / "a.bin")
    assert got["tokenizer.ggml.tokens"][280:283] == ["<|user|>", "<think>", "[PAD282]"]
    assert got["tokenizer.ggml.tokens"][280:282] == theirs.convert_ids_to_tokens([280, 281])
    assert got["tokenizer.ggml.token_type"][280:283] == [3, 4, 5]
    assert "added token '<far>': 999 is left out" in capsys.readouterr().out
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(tok["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" +
                                       "".join(f"{a} {b}\n" for a, b in tok["model"]["merges"]))
    (folder / "added_tokens.json").write_text(json.dumps({"<|user|>": 280, "<think>": 281}))
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"additional_special_tokens": ["<|user|>"]}))
    (folder / "tokenizer_config.json").write_text("{}")
    got = run(folder, tmp_path / "a.bin")
    assert got["tokenizer.ggml.tokens"][280:283] == ["<|user|>", "<think>", "[PAD282]"]
    assert got["tokenizer.ggml.token_type"][280:283] == [3, 4, 5]


def test_padding_prints_nothing(folder: Path, tmp_path: Path, run_bin: Path) -> None:
    """Rows beyond the tokenizer print nothing, as tokenizers decodes them.

    In our files and in those of llama.cpp's converter."""
    import tokenizers
    tok = hf.tokenizer_json(280)
    (folder / "tokenizer.json").write_text(json.dumps(tok))
    got = run(folder, tmp_path / "a.bin")
    assert got["tokenizer.ggml.tokens"][290] == "[PAD290]"
    for special in ([], ["--special"]):
        args = ["-i", "a", "-n", "3", "--logit-bias", "290+1000", *special]
        done = subprocess.run([run_bin, tmp_path / "a.bin", *args], capture_output=True, text=True,
                              timeout=60)
        want = tokenizers.Tokenizer.from_str(json.dumps(tok)).decode([290, 290, 290])
        assert (done.returncode, done.stdout) == (0, want)
    some = tok["model"]["vocab"]["a"]  # the flag works
    done = subprocess.run([run_bin, tmp_path / "a.bin", "-i", "a", "-n", "3", "--logit-bias",
                           f"{some}+1000"], capture_output=True, text=True, timeout=60)
    assert done.stdout == "aaa"


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e7, -1e7, 3.4e38])
def test_values_no_type_can_hold(dtype: str, value: float, folder: Path, tmp_path: Path,
                                 run_bin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """export.py and --quantize refuse the same values of the same tensors in the same words."""
    from safetensors.torch import load_file, save_file
    edit(folder / "config.json", hidden_size=64, head_dim=16, intermediate_size=96)
    c = hf.Case("wide", hf.L, json.loads((folder / "config.json").read_text()), "llama")
    hf.save(c.build(), hf.tokenizer_json(), folder)
    state = load_file(folder / "model.safetensors")
    up = state["model.layers.1.mlp.up_proj.weight"]
    (tmp_path / "out").mkdir()
    run(folder, tmp_path / "f32.bin", "--dtype", "f32")
    at = next(t for t in gguf.GGUFReader(tmp_path / "f32.bin").tensors
              if t.name == "blk.1.ffn_up.weight")
    with open(tmp_path / "f32.bin", "r+b") as f:  # what a writer without a check would have left
        f.seek(int(at.data_offset) + 4 * 7)
        f.write(struct.pack("<f", value))
    up[0, 7] = value
    save_file(state, folder / "model.safetensors")
    quantized = subprocess.run([run_bin, tmp_path / "f32.bin", "--quantize", dtype,
                                "-o", tmp_path / "out" / "q.bin"],
                               capture_output=True, text=True, timeout=60)
    (tmp_path / "out" / "q.bin").unlink(missing_ok=True)
    if dtype == "f32":  # whatever is finite; --quantize copies this file as it is
        fits = abs(value) < torch.inf
    else:
        fits = quantized.returncode == 0
    if fits:
        run(folder, tmp_path / "out" / "a.bin", "--dtype", dtype)
        got = values(gguf_tensor(tmp_path / "out" / "a.bin", "blk.1.ffn_up.weight"))
        assert np.isfinite(got).all() and abs(got[0, 7] / value - 1) < 0.01
        return
    err = refused(capsys, folder, tmp_path / "out" / "a.bin", "--dtype", dtype)
    assert "tensor blk.1.ffn_up.weight: got NaN or a value beyond" in err
    if dtype != "f32":
        ours, theirs = err.split(": ", 1)[1].split(";")[0], quantized.stderr.split(": ", 2)[2]
        assert ours.strip() == theirs.strip()


def gguf_tensor(path: Path, name: str) -> Any:
    return next(t for t in gguf.GGUFReader(path).tensors if t.name == name)


# ---- what lies beside the weights ----------------------------------------------------------------


def test_an_index_beside_a_whole_file(folder: Path, tmp_path: Path,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file
    out = tmp_path / "out" / "a.bin"
    out.parent.mkdir()
    state = load_file(folder / "model.safetensors")
    index, shard = folder / "model.safetensors.index.json", "model-00001-of-00001.safetensors"
    run(folder, tmp_path / "want.bin")
    index.write_text(json.dumps({"weight_map": {n: shard for n in state}}))
    old = {n: t * 2 for n, t in state.items()}
    for there in (False, True):  # the old shards may be gone or not
        if there:
            save_file(old, folder / shard)
        err = refused(capsys, folder, out)
        assert "model.safetensors and model.safetensors.index.json" in err and shard in err
    index.write_text(json.dumps({"weight_map": {n: "model.safetensors" for n in state}}))
    run(folder, tmp_path / "a.bin")
    assert sha(tmp_path / "a.bin") == sha(tmp_path / "want.bin")
    index.unlink()
    torch.save(old, folder / "pytorch_model.bin")  # transformers reads safetensors before it
    run(folder, tmp_path / "a.bin")
    assert sha(tmp_path / "a.bin") == sha(tmp_path / "want.bin")
    note = "weights taken from model.safetensors; pytorch_model.bin beside it was not read"
    assert note in capsys.readouterr().out


def test_adapters_are_named(folder: Path, tmp_path: Path,
                            capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out" / "a.bin"
    out.parent.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "meta-llama/Llama-2-7b", "r": 8}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    run(folder, tmp_path / "a.bin")
    text = capsys.readouterr().out
    assert "a PEFT adapter ('LORA') for 'meta-llama/Llama-2-7b': not applied" in text
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    for _ in range(2):  # with the base's config.json and without
        err = refused(capsys, folder, out)
        assert "'LORA'" in err and "Llama-2-7b" in err and "merge" in err
        (folder / "config.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.module.", "module._orig_mod.", "_orig_mod._orig_mod.",
               "module.module.", "_fsdp_wrapped_module.", "module._fsdp_wrapped_module._orig_mod."])
@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_wrappers_names(prefix: str, layout: str, folder: Path, tmp_path: Path,
                        capsys: pytest.CaptureFixture[str]) -> None:
    """State dicts of a compiled or distributed module, saved with its wrapper's names."""
    from safetensors.torch import load_file, save_file
    run(folder, tmp_path / "want.bin")
    path = folder / "model.safetensors"
    state = load_file(path)
    path.unlink()

    def save(tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, path) if layout == "safetensors" else torch.save(
            tensors, folder / "pytorch_model.bin")
    for inner in ("layers.0.", "layers.0._orig_mod.", "layers.0._checkpoint_wrapped_module."):
        save({prefix + n.replace("layers.0.", inner): t for n, t in state.items()})
        run(folder, tmp_path / "a.bin")
        assert sha(tmp_path / "a.bin") == sha(tmp_path / "want.bin")
    (tmp_path / "out").mkdir()
    save(state | {prefix + "model.norm.weight": torch.zeros(48)})
    assert "mean the same" in refused(capsys, folder, tmp_path / "out" / "a.bin")


# ---- limits and packages -------------------------------------------------------------------------


@pytest.mark.parametrize("field,most", [("num_hidden_layers", 4096), ("hidden_size", 2**18),
                                        ("num_attention_heads", 4096),
                                        ("num_key_value_heads", 4096), ("head_dim", 8192),
                                        ("intermediate_size", 2**20),
                                        ("max_position_embeddings", 2**28), ("vocab_size", 2**24)])
def test_limits_are_those_of_the_program(field: str, most: int, folder: Path, tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    for value in (most + 1, 10**9, 2**31, 10**30):
        edit(folder / "config.json", **{field: value})
        assert f"want a whole number from 1 to {most}" in refused(capsys, folder,
                                                                  tmp_path / "out" / "a.bin")
    edit(folder / "config.json", **{field: most})  # allowed, but not what the tensors are
    if field != "max_position_embeddings":
        assert "want a whole number" not in refused(capsys, folder, tmp_path / "out" / "a.bin")


def test_limits_agree_with_config_c() -> None:
    text = (ROOT / "engine/config.c").read_text()
    names = {"MAX_DIM": ("embedding_length",), "MAX_LAYERS": ("block_count",),
             "MAX_CONTEXT": ("context_length",),
             "MAX_HEADS": ("attention.head_count", "attention.head_count_kv", "ssm.group_count",
                           "ssm.time_step_rank"),
             "MAX_HEAD_DIM": ("attention.key_length", "attention.value_length", "ssm.state_size"),
             "MAX_REACH": (),
             "MAX_EXPERTS": ("expert_count", "expert_used_count"),
             "MAX_TAPS": ("shortconv.l_cache", "ssm.conv_kernel")}
    stated = {name: eval(value)
              for name, value in re.findall(r"^    (MAX_\w+) = (.*?),?(?: //.*)?$", text, re.M)}
    assert stated.keys() == names.keys()
    for name, keys in names.items():
        assert all(LIMITS[key][1] == stated[name] for key in keys)
    assert LIMITS["feed_forward_length"][1] == 4 * stated["MAX_DIM"] and "MAX_DIM * 4" in text


@pytest.mark.parametrize("args,name",
                         [(dict(n_layer=10**9), "n_layer"), (dict(n_head=10**9), "n_head"),
                          (dict(n_embd=10**9), "n_embd"), (dict(vocab_size=10**9), "vocab_size"),
                          (dict(block_size=10**9), "max_position_embeddings")])
def test_limits_of_other_checkpoints(args: dict[str, int], name: str, tmp_path: Path,
                                     tok: dict[str, Any],
                                     capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything grows with them: this ends at once and in little memory."""
    import time
    (tmp_path / "tokenizer.json").write_text(json.dumps(tok))
    own = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 16, "bias": False,
           "vocab_size": 320} | args
    torch.save({"model": hf.nanogpt_state(320, 32, 1, 16, False), "model_args": own},
               tmp_path / "ckpt.pt")
    (tmp_path / "out").mkdir()
    begin = time.process_time()
    line = refused(capsys, tmp_path / "ckpt.pt", tmp_path / "out" / "a.bin")
    assert f"{name}: got 1000000000" in line and "ckpt.pt: " in line and "config.json" not in line
    assert time.process_time() - begin < 5


def test_a_vocabulary_is_not_padded_before_it_is_checked(folder: Path, tmp_path: Path,
                                                         capsys: pytest.CaptureFixture[str],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voc.Vocab, "fit", lambda *_: pytest.fail("padded"))
    edit(folder / "config.json", vocab_size=2**24)
    (tmp_path / "out").mkdir()
    assert "shape" in refused(capsys, folder, tmp_path / "out" / "a.bin")


@pytest.mark.parametrize("script,package", [
    *(("export.py", p) for p in ("gguf", "numpy", "torch", "safetensors", "tqdm")),
    ("attn.py", "numpy")
])
def test_missing_packages_are_named(script: str, package: str) -> None:
    code = (f"import sys, runpy; sys.modules[{package!r}] = None; "
            f"sys.argv = [{script!r}, '--help']; runpy.run_path({script!r}, run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"{script}: ")
    assert f"package {package}" in lines[0]
    assert "python -m pip install" in lines[0] and package in lines[0].split("install")[1]


def test_a_missing_matplotlib_is_named(tmp_path: Path) -> None:
    import attn
    path = tmp_path / "a.npz"
    attn.save(attn.Maps(np.tril(np.ones((1, 1, 2, 2), np.float32)) / [[1], [2]]), path)
    code = (f"import sys, runpy; sys.modules['matplotlib'] = None; sys.argv = ['attn.py', 'plot', "
            f"{str(path)!r}, '-o', 'x.png']; runpy.run_path('attn.py', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          timeout=120)
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.count("\n") == 1
    assert done.stderr.startswith("attn.py: cannot load the Python package matplotlib")
    assert done.stderr.endswith("python -m pip install matplotlib\n")


def test_command_line(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(ROOT / "export.py"), *map(str, args)],
                              capture_output=True, text=True, timeout=120)
    done = call(llama, "-o", tmp_path / "m.bin", "--dtype", "q8_0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith(f"{tmp_path / 'm.bin'}: llama, 0.08 M values in "
                                                   "30 tensors, q8_0, ")
    done = call("nowhere", "-o", tmp_path / "x")
    assert (done.returncode, done.stdout,
            done.stderr) == (1, "", "export.py: nowhere: no such file or folder\n")
    for args in ((llama, "-o", tmp_path), (llama, "-o", tmp_path / "no" / "x"),
                 (tmp_path / "m.bin", "-o", tmp_path / "x")):
        assert export.main([str(a) for a in args]) == 1 and capsys.readouterr().err.count("\n") == 1
    for usage in ([str(llama)], [str(llama), "-o", "x", "--dtype", "q4"], []):
        with pytest.raises(SystemExit) as e:
            export.main(usage)
        assert e.value.code == 2
