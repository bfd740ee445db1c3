"""Gemma 4 beyond one pass in f32: the same bytes however its rows go through, quantised tables, and
folders as they are published.

That logits and maps are right is for test_parity.py, test_dump.py and test_converter.py."""
from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import export
import hf_models as hf
from command import logits_of, text_of
from passes import check_neighbours, check_passes

# rows of the table are 320 values: blocks of all types, and no multiple of the piece that is read
WIDE = hf.Case("wide", hf.G4,
               hf.gemma4_base(num_hidden_layers=5, hidden_size=256, head_dim=64,
                              global_head_dim=128, intermediate_size=256,
                              hidden_size_per_layer_input=64, num_kv_shared_layers=1,
                              enable_moe_block=True, num_experts=5, top_k_experts=2,
                              moe_intermediate_size=256, layer_types=[
                                  "sliding_attention", "sliding_attention", "sliding_attention",
                                  "full_attention", "full_attention"]), "gemma4")
CASES = {c.name: c for c in [*hf.CASES, WIDE]}
torch.set_num_threads(1)  # these models are far too small to share


@pytest.mark.parametrize("name, quantized", [
    ("gemma4", ""), ("gemma4-per-layer", ""), ("gemma4-experts", ""), ("gemma4-all", ""),
    ("wide", "q8_0"), ("wide", "q4_k_m")])
def test_same_bytes(name: str, quantized: str, model_of, run_bin: Path, tmp_path: Path) -> None:
    """Chunks, threads and neighbours change no bit of a logit or a text."""
    path = model_of(name, quantized)
    check_passes(run_bin, path, tmp_path, hf.PROMPT, 64)
    check_neighbours(run_bin, path, hf.PROMPT)


@pytest.mark.parametrize("kind", ["q8_0", "q4_k", "q5_0", "bf16"])
def test_tables(kind: str, model_of, tok: dict, run_bin: Path, tmp_path: Path) -> None:
    """The table of per-layer embeddings in another type is read as gguf dequantises it."""
    path, small, back = model_of("wide"), tmp_path / "small", tmp_path / "back"
    text_of(run_bin, path, "--quantize", "f32", "--quantize-type", f"per_layer_token_embd={kind}",
            "-o", small)
    (table,) = (t for t in gguf.GGUFReader(small).tensors if t.name.startswith("per_layer_token"))
    # rows of 320 are no multiple of Q4_K's 256
    assert table.tensor_type.name == {"q4_k": "Q5_0"}.get(kind, kind.upper())
    state = load_file(path.with_suffix(".hf") / "model.safetensors")
    values = torch.from_numpy(gguf.dequantize(table.data, table.tensor_type))
    before = state["model.embed_tokens_per_layer.weight"]
    assert 0 < (values - before).abs().max() < 0.2
    state["model.embed_tokens_per_layer.weight"] = values.reshape(before.shape)
    folder = tmp_path / "hf"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((path.with_suffix(".hf") / name).read_bytes())
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert export.main([str(folder), "-o", str(back), "--dtype", "f32"]) == 0
    got = [logits_of(run_bin, p, tmp_path / "l.npy", "-i", hf.PROMPT, "-n", 0)[1]
           for p in (small, back, path)]
    assert np.array_equal(got[0], got[1]) and not np.array_equal(got[0], got[2])


@pytest.mark.parametrize("name", ["gemma4", "gemma4-per-layer", "gemma4-unified"])
def test_published(name: str, model_of, tmp_path: Path) -> None:
    """A folder as on the hub makes the same file as the flat one.

    Its text configuration is nested and names the widths of global layers, other towers lie beside
    it, and layers that share keys have some of their own, which nothing reads."""
    path, folder, out = model_of(name), tmp_path / "hf", tmp_path / "out.gguf"
    flat = path.with_suffix(".hf")
    config = json.loads((flat / "config.json").read_text())
    own = next(iter(config.pop("per_layer_config").values()))
    config |= {"global_head_dim": own["head_dim"],
               "num_global_key_value_heads": own.get("num_key_value_heads")}
    kind = config["model_type"].removesuffix("_text")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(
        {"model_type": kind, "architectures": [], "text_config": config,
         "vision_config": {"hidden_size": 8}, "audio_config": None}))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((flat / file).read_bytes())
    state = {"model.language_model." + k.removeprefix("model."): v
             for k, v in load_file(flat / "model.safetensors").items()}
    for tower in ("vision_tower.encoder.layers.0.mlp", "audio_tower.layers.0.self_attn",
                  "embed_vision.embedding_projection", "embed_audio.embedding_projection"):
        state[f"model.{tower}.weight"] = torch.ones(4, 4)
    for part in ("k_proj", "v_proj", "k_norm") if config["num_kv_shared_layers"] else ():
        stem = "model.language_model.layers.{}.self_attn." + part + ".weight"
        state[stem.format(5)] = state[stem.format(3)] + 1
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert export.main([str(folder), "-o", str(out), "--dtype", "f32"]) == 0
    files = [gguf.GGUFReader(p) for p in (out, path)]
    tensors = [{t.name: t.data.tobytes() for t in f.tensors} for f in files]
    assert tensors[0] == tensors[1]
    fields = [{k: f.fields[k].contents() for k in f.fields if k.startswith("gemma4.")}
              for f in files]
    assert fields[0] == fields[1]


def test_keys_that_are_shared_may_be_there(model_of, run_bin: Path, tmp_path: Path) -> None:
    """Files of llama.cpp's converter hold keys and values that no layer reads; they change nothing.

    They are the last tensors here, so that a reader that took them for others' would show."""
    path, more = model_of("gemma4-per-layer"), tmp_path / "more"
    reader = gguf.GGUFReader(path)
    w = gguf.GGUFWriter(more, "gemma4")
    for name, f in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            w.add_key_value(name, f.contents(), f.types[0],
                            sub_type=f.types[-1] if len(f.types) > 1 else None)
    tensors = {t.name: t.data for t in reader.tensors}
    for part in ("k", "v", "k_norm"):
        tensors[f"blk.5.attn_{part}.weight"] = tensors[f"blk.3.attn_{part}.weight"] \
            if f"blk.3.attn_{part}.weight" in tensors else tensors["blk.3.attn_k.weight"]
    for name, data in tensors.items():
        w.add_tensor(name, data)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    got = [logits_of(run_bin, p, tmp_path / "l.npy", "-i", hf.PROMPT, "-n", 0)[1]
           for p in (path, more)]
    assert np.array_equal(got[0], got[1])


@pytest.mark.parametrize("change, why", [
    ({"use_bidirectional_attention": "all"}, "attention to later tokens"),
    ({"per_layer_config": {"1": {"head_dim": 24}, "3": {"head_dim": 16}, "5": {"head_dim": 24}}},
     "head_dim differs within a layer type"),
    ({"per_layer_config": {"1": {"sliding_window": 3}}}, "per_layer_config"),
    ({"per_layer_config": [1]}, "per_layer_config"), ({"num_kv_shared_layers": 6}, "0 to 5"),
    ({"rope_parameters": {"full_attention": hf.rp("yarn", factor=2.0)}}, "rope_type"),
    ({"rope_parameters": {"full_attention": hf.rp("proportional", partial_rotary_factor=1.5)}},
     "rope_parameters"),
    ({"rope_parameters": {"sliding_attention": hf.rp()}}, "an object for full_attention"),
    ({"rope_parameters": {"full_attention": hf.rp(), "sliding_attention": hf.rp(
        "proportional", partial_rotary_factor=0.5)}}, "windowed layers"),
    ({"hidden_size_per_layer_input": -1}, "hidden_size_per_layer_input"),
    ({"enable_moe_block": True}, "num_experts"), ({"layer_types": ["x"] * 6}, "layer_types"),
    ({"hidden_activation": "silu"}, None)])
def test_configurations(change: dict, why: str | None, model_of, tmp_path: Path,
                        capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be said is refused in one line; what llama.cpp's form cannot hold becomes gpt."""
    flat, out = model_of("gemma4").with_suffix(".hf"), tmp_path / "out.gguf"
    folder = tmp_path / "hf"
    folder.mkdir()
    for file in flat.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((flat / "config.json").read_text()) | change
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    code = export.main([str(folder), "-o", str(out), "--dtype", "f32"])
    said = capsys.readouterr()
    if why is None:
        assert code == 0 and ": gpt, " in said.out
    else:
        assert code == 1 and said.err.count("\n") == 1 and why in said.err, said.err
