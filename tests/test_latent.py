"""Latent attention: the same bytes however the rows go through, both forms of its files, and
folders as they are published.

That logits and maps are right is for test_parity.py, test_dump.py and test_converter.py, the choice
of experts for test_experts.py."""
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import export
import hf_models as hf
from command import logits_of, run, text_of
from exporting.config import ExportError
from exporting.huggingface import hf_model
from fuzz_corpus import FAMILIES, model
from gguf_files import U32
from passes import check_neighbours, check_passes
from test_session_files import MORE, continued

# wide enough for every type of weights; widths that no vector divides
WIDE = hf.Case("wide", "DeepseekV3ForCausalLM", hf.deepseek_base(
    hidden_size=256, intermediate_size=256, num_hidden_layers=2, q_lora_rank=64, kv_lora_rank=256,
    qk_rope_head_dim=32, qk_nope_head_dim=64, v_head_dim=64, n_routed_experts=6, n_group=2,
    topk_group=1, moe_intermediate_size=256), "deepseek2")
ODD = hf.Case("odd", "DeepseekV3ForCausalLM", hf.deepseek_base(
    kv_lora_rank=23, qk_nope_head_dim=7, v_head_dim=9, n_group=1, topk_group=1), "deepseek2")
torch.set_num_threads(1)  # these models are far too small to share
CASES = {c.name: c for c in [*hf.CASES, *hf.GPT_CASES, WIDE, ODD]}
EXACT = ["--exact", "--kv", "f32"]


def copied(path: Path, out: Path, tensors: dict[str, np.ndarray], drop: tuple[str, ...] = (),
           keys: dict[str, Any] = {}) -> Path:
    """A file with other tensors in the place of those that are dropped, and other keys.

    A key with None is left out."""
    reader = gguf.GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    w = gguf.GGUFWriter(out, arch)
    for name, f in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = keys.get(name.removeprefix(f"{arch}."), f.contents())
        if value is None:
            continue
        if f.types[0] == gguf.GGUFValueType.ARRAY:
            w.add_array(name, value)
        else:
            w.add_key_value(name, value, f.types[0])
    for t in reader.tensors:
        if not t.name.endswith(drop or ("/",)):
            w.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    for name, t in tensors.items():
        w.add_tensor(name, t)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return out


def old_form(path: Path, out: Path, dtype: type = np.float32) -> Path:
    """A file as llama.cpp's converter wrote it before it took the two matrices apart."""
    found = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    fused = {}
    for name in found:
        if name.endswith("attn_k_b.weight"):
            keys, values = found[name], found[name.replace("k_b", "v_b")]
            both = np.concatenate([keys.swapaxes(1, 2), values], 1)
            fused[name.replace("k_b", "kv_b")] = both.reshape(-1, both.shape[2]).astype(dtype)
    reader = gguf.GGUFReader(path)
    sizes = {what: reader.fields[f"deepseek2.attention.{what}_mla"].contents()
             for what in ("key_length", "value_length")}
    heads = reader.fields["deepseek2.attention.head_count"].contents()
    return copied(path, out, fused, ("attn_k_b.weight", "attn_v_b.weight"),
                  {f"attention.{what}": n for what, n in sizes.items()}
                  | {f"attention.{what}_mla": None for what in sizes}
                  | {"attention.head_count_kv": heads})


def logits(exe: Path, model: Path, folder: Path, *args: object) -> np.ndarray:
    return logits_of(exe, model, folder / "l.npy", "-i", hf.PROMPT, "-n", 0, *args)[1]


@pytest.mark.parametrize("name, quantized", [
    ("deepseek2", ""), ("deepseek2-yarn", ""), ("deepseek3", ""), ("odd", ""), ("wide", "bf16"),
    ("wide", "q8_0"), ("wide", "q4_k_m")])
def test_same_bytes(name: str, quantized: str, model_of, run_bin: Path, tmp_path: Path) -> None:
    """Chunks, threads and neighbours change no bit of a logit or a text."""
    path = model_of(name, quantized)
    for kv in ("f16", "q8") if name == "odd" else ("f16",):
        check_passes(run_bin, path, tmp_path, hf.PROMPT, 64, "--kv", kv)
    check_neighbours(run_bin, path, hf.PROMPT)


def test_same_bytes_with_every_table(table: str, model_of, run_bin: Path, tmp_path: Path) -> None:
    """The same within each kernel table, where values are turned in another format.

    All tables are near each other."""
    env = {**os.environ, "RUN_CPU": table}
    if run(run_bin, model_of("odd"), "-i", "a", "-n", 0, env=env).returncode == 2:
        pytest.skip(f"this machine has no {table}")
    for name, quantized in (("odd", ""), ("wide", "q4_k_m")):
        path, args = model_of(name, quantized), ["-i", hf.PROMPT, "-n", 4, "--temp", 0]
        got = [logits_of(run_bin, path, tmp_path / "l.npy", *args, "-b", b, "-t", t, env=env)
               for b, t in ((512, 1), (1, 2), (33, 2))]
        assert len({(text, x.tobytes()) for text, x in got}) == 1
        usual = logits(run_bin, path, tmp_path)
        assert (got[0][1][:len(usual)] - usual).std() < 0.4  # of unrelated ones: 2.4


@pytest.mark.parametrize("kv, limit", [("f16", 0.002), ("q8", 0.05)])
def test_caches(kv: str, limit: float, model_of, run_bin: Path, tmp_path: Path) -> None:
    """Latents in f16 and in bytes are near those in f32: the logits were 0.0007 and 0.024 off.

    The limit is twice that; those of an unrelated model would be off by 2.4."""
    want = logits(run_bin, model_of("deepseek2"), tmp_path, *EXACT)
    got = logits(run_bin, model_of("deepseek2"), tmp_path, "--exact", "--kv", kv)
    assert 0 < (got - want).std() < limit


@pytest.mark.parametrize("name", ["deepseek2", "deepseek2-yarn", "deepseek3"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_old_form(name: str, dtype: type, model_of, run_bin: Path, tmp_path: Path) -> None:
    """attn_kv_b instead of attn_k_b and attn_v_b: the same numbers, so the same bytes."""
    path = model_of(name)
    new = {t.name: t.data.astype(dtype) for t in gguf.GGUFReader(path).tensors
           if t.name.endswith(("k_b.weight", "v_b.weight"))}
    apart = copied(path, tmp_path / "new", new, ("attn_k_b.weight", "attn_v_b.weight"))
    old = old_form(path, tmp_path / "old", dtype)
    args = ["-i", hf.PROMPT, "-n", 12, "--temp", 0, "--ignore-eos"]
    (a, x), (b, y) = (logits_of(run_bin, p, tmp_path / "l.npy", *args) for p in (apart, old))
    assert a == b and x.tobytes() == y.tobytes()
    for path in (apart, old):
        text_of(run_bin, path, *args, "--dump-attn", path.with_suffix(".npz"))
    maps = [np.load(p.with_suffix(".npz"))["attn"] for p in (apart, old)]
    assert maps[0].tobytes() == maps[1].tobytes() and maps[0].shape[1] == 4


@pytest.mark.parametrize("kind", ["q8_0", "q4_k"])
def test_old_form_quantised(kind: str, model_of, run_bin: Path, tmp_path: Path) -> None:
    """The key matrices of a quantised attn_kv_b are turned, which blocks cannot be: they are f16.

    Against the same numbers in f32 that moves the logits by f16's rounding, at most 2^-11 of each
    weight: 2e-3 was seen. Without the key matrices they move by 5."""
    path, old, apart = model_of("wide"), tmp_path / "old", tmp_path / "apart"
    text_of(run_bin, old_form(path, tmp_path / "f32"), "--quantize", "f32", "--quantize-type",
            f"attn_kv_b={kind}", "-o", old)
    c, tensors = CASES["wide"].config, {}
    for t in gguf.GGUFReader(old).tensors:
        if t.name.endswith("kv_b.weight"):
            assert t.tensor_type.name == kind.upper()
            both = gguf.dequantize(t.data, t.tensor_type).reshape(4, -1, c["kv_lora_rank"])
            keys, values = np.split(both, [c["qk_nope_head_dim"]], 1)
            tensors[t.name.replace("kv_b", "k_b")] = np.ascontiguousarray(keys.swapaxes(1, 2))
            tensors[t.name.replace("kv_b", "v_b")] = np.ascontiguousarray(values)
    copied(path, apart, tensors, ("attn_k_b.weight", "attn_v_b.weight"))
    got, want = (logits(run_bin, p, tmp_path, *EXACT) for p in (old, apart))
    assert 0 < np.abs(got - want).max() < 5e-3


def test_absent_keys(model_of, run_bin: Path, tmp_path: Path) -> None:
    """A file without a gate function has a sigmoid where it has a bias for the choice."""
    for name in ("deepseek2", "deepseek3", "glm4-moe-lite"):
        path = model_of(name)
        short = copied(path, tmp_path / name, {}, keys={"expert_gating_func": None})
        assert short.stat().st_size < path.stat().st_size
        assert np.array_equal(logits(run_bin, path, tmp_path), logits(run_bin, short, tmp_path))


def test_equal_groups(run_bin: Path, tmp_path: Path) -> None:
    """A router that likes all experts the same: the first ones of the first groups are taken."""
    def chosen(**keys: int) -> list[int]:
        m = model(*next(f for f in FAMILIES if f[0] == "deepseek2"))
        for name, value in keys.items():
            m.set(f"deepseek2.{name}", U32, value)
        for name in ("ffn_gate_inp.weight", "exp_probs_b.bias"):
            t = m.tensors[f"blk.1.{name}"]
            t.data = bytes(len(t.data))
        if bias is not None:
            m.tensors["blk.1.exp_probs_b.bias"].data = np.array(bias, np.float32).tobytes()
        (tmp_path / "m").write_bytes(m.build())
        text_of(run_bin, tmp_path / "m", "-i", "ab", "-n", 0, "--dump-routing", tmp_path / "r.npz")
        (found,) = {tuple(sorted(x)) for x in np.load(tmp_path / "r.npz")["experts"][0].tolist()}
        return list(found)

    bias = None
    assert chosen() == [0, 1] and chosen(expert_group_used_count=2) == [0, 1]
    bias = [0.0, 0.1, 0.1, 0.0]  # groups of the same worth, by one or both experts of theirs
    assert chosen() == chosen(expert_gating_func=1) == [0, 1]
    bias = [0.3, 0.0, 0.2, 0.2]
    assert chosen() == [2, 3] and chosen(expert_gating_func=1) == [0, 1]
    assert chosen(expert_group_used_count=2) == [0, 2]


def test_sessions(model_of, run_bin: Path, tmp_path: Path) -> None:
    for n in (0, 1, 40):
        continued(run_bin, model_of("deepseek3"), tmp_path / "s", hf.PROMPT, MORE, n,
                  "--ignore-eos")


def test_verbose(model_of, run_bin: Path) -> None:
    """The cache holds a latent and the rotated part of a row, once for all heads."""
    done = run(run_bin, model_of("deepseek2"), "-i", "a", "-n", 1, "-v", "-c", 64)
    assert b"4 heads (1 key/value)" in done.stderr
    assert b"KV cache f16 %.1f KB per token" % (3 * (24 + 8) * 2 / 1e3) in done.stderr


def test_published_folders(model_of, tok: dict, tmp_path: Path) -> None:
    """config.json as DeepSeek's and Z.ai's folders have it, and the layer that predicts a second
    token: the same tensors."""
    def exported(folder: Path) -> dict[str, bytes]:
        assert export.main([str(folder), "-o", str(tmp_path / "m"), "--dtype", "f32"]) == 0
        return {t.name: t.data.tobytes() for t in gguf.GGUFReader(tmp_path / "m").tensors}

    def kept(path: Path) -> dict[str, Any]:
        return {k: f.contents() for k, f in gguf.GGUFReader(path).fields.items()
                if "name" not in k and not k.startswith("GGUF.")}

    for name in ("deepseek2-yarn", "deepseek3", "glm4-moe-lite"):
        path, folder = model_of(name), tmp_path / name
        shutil.copytree(path.with_suffix(".hf"), folder)
        config = json.loads((folder / "config.json").read_text())
        rope = config.pop("rope_parameters")
        config |= {"rope_theta": rope.pop("rope_theta"), "num_nextn_predict_layers": 1,
                   "rope_scaling": None, "scoring_func": "sigmoid", "ep_size": 1}
        if rope["rope_type"] == "yarn":
            config["rope_scaling"] = {"type": rope.pop("rope_type")} | rope
        config.pop("head_dim", None)
        (folder / "config.json").write_text(json.dumps(config))
        state = load_file(folder / "model.safetensors")
        n = config["num_hidden_layers"]
        state |= {f"model.layers.{n}.{part}.weight": torch.zeros(4, 4)
                  for part in ("eh_proj", "self_attn.o_proj", "shared_head.head")}
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        assert exported(folder) == {t.name: t.data.tobytes() for t in gguf.GGUFReader(path).tensors}
        assert kept(path) == kept(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    for change, want in (({"mlp_layer_types": ["sparse"]}, "mlp_layer_types: got"),
                         ({"kv_lora_rank": 0}, "kv_lora_rank: got 0"),
                         ({"mlp_bias": True}, "biases of experts"),
                         ({"model_type": "deepseek_v2", "topk_method": "noaux_tc"}, "topk_method"),
                         ({"model_type": "deepseek_v3", "first_k_dense_replace": -1},
                          "first_k_dense_replace: got -1"),
                         ({"rope_scaling": {"type": "yarn", "factor": 0}}, "without a factor")):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ExportError, match=want):
            hf_model(folder, None)
