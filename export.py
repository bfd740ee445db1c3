#!/usr/bin/env python3
"""Turn a checkpoint into a GGUF file that ./run reads.

    python export.py INPUT -o model.bin [--dtype f32|f16|bf16|q8_0] [--tokenizer PATH]

INPUT is a Hugging Face folder, a nanoGPT, llama2.c or attn.c checkpoint (.pt), or a llama2.c .bin of version 0.

Every model is first described in the words of the general architecture `gpt` (a Spec: docs/gpt-keys.md) with a Recipe
for each of its tensors. If the Spec is one that a llama.cpp architecture implies (CONVENTIONS), the file is written in
that architecture's convention, so that other engines open it; else as `gpt`. What a Spec cannot say is refused.
Nothing here runs code from the checkpoint: pickles are read with weights_only, configuration is JSON.
"""
from __future__ import annotations

import argparse
import math
import os
import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable

try:
    import gguf
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType as Q
    from gguf import GGUFValueType as V
    from torch import Tensor
    from tqdm import tqdm

    from exporting.checkpoints import attnc_checkpoint, llama2c_bin, llama2c_checkpoint, nanogpt
    from exporting.config import ExportError, short
    from exporting.huggingface import hf_model
    from exporting.spec import (ALL_BIAS, GPT_KEYS, LAYER_NORM, UNGATED, Model, Recipe, Spec,
                                change_pairing, concat, torch_file)
    from exporting.vocab import PRE_NAMES, Vocab
except ImportError as e:
    if __name__ != "__main__":
        raise
    package, why = (e.name or "?").partition(".")[0], " ".join(str(e).split())
    sys.exit(f"export.py: cannot load the Python package {package} ({why}): "
             "python -m pip install gguf numpy safetensors torch tqdm")

# ---- reading ---------------------------------------------------------------------------------------------------------

def read_model(path: Path, tokenizer: Path | None, activation: str) -> Model:
    if path.is_dir():
        return hf_model(path, tokenizer)
    if not path.is_file():
        raise ExportError(f"{path}: no such file or folder")
    with open(path, "rb") as f:
        magic = f.read(4)
    if magic == b"GGUF":
        raise ExportError(f"{path}: is already a GGUF file; ./run reads it as it is")
    if magic[:2] not in (b"PK", b"\x80\x02"):
        return llama2c_bin(path, tokenizer)
    data = torch_file(path)
    if not isinstance(data, dict):
        raise ExportError(f"{path}: expected a checkpoint dict, got {type(data).__name__}")
    if str(data.get("format", "")).startswith("attn.c-train"):
        if data["format"] != "attn.c-train-1":
            raise ExportError(f"{path}: format {short(data['format'])}, want attn.c-train-1")
        return attnc_checkpoint(data, path, tokenizer)
    if isinstance(data.get("model_args"), dict) and "model" in data:
        if "n_embd" in data["model_args"]:
            return nanogpt(data, path, tokenizer, activation)
        return llama2c_checkpoint(data, path, tokenizer)
    raise ExportError(f"{path}: not a nanoGPT, llama2.c or attn.c checkpoint (keys {short(sorted(map(str, data)))}); "
                      "a bare state dict needs its Hugging Face folder with config.json")


# ---- llama.cpp's conventions -----------------------------------------------------------------------------------------

ANY, SET = object(), object()  # the tensors or a key say it; and it must not be None
ROPE_SCALING = ("none", "linear", "yarn")


@dataclass(frozen=True)
class Convention:
    """What a llama.cpp architecture implies of a Spec (beyond gpt_spec()'s defaults) and how it spells the rest."""
    implies: dict[str, Any]  # Spec key -> value, ANY, a tuple of values, or a function of the Spec that gives the value
    pairing: str = "half"
    fused: tuple[str, ...] = ()  # qkv in one tensor, gate_up in one tensor
    square: bool = False  # n_heads * head_dim must be dim
    tied: str = "any"  # "must", or "copy": a tied output is written out
    factors: tuple[str, ...] = ()  # rope factor tensors it reads
    keys: Callable[[Spec], Spec] = lambda s: {}  # keys of its own


def every(n: int, count: int) -> list[bool]:
    """False for each n-th layer."""
    return [(i + 1) % n != 0 for i in range(count)]


def gemma_scale(layers_27b: int) -> Callable[[Spec], float | None]:
    """The 27B models, known by their layer count, scale by dim / heads; the others by the head width."""
    return lambda s: (None if s["block_count"] != layers_27b else
                      (s["embedding_length"] // s["attention.head_count"]) ** -0.5)


def window_keys(s: Spec) -> Spec:
    return {"attention.sliding_window": s["attention.sliding_window"]}


def residual_key(s: Spec) -> Spec:
    return {"use_parallel_residual": s["residual"] == "parallel"}


GEMMA_IMPLIES = {"embedding_scale": lambda s: s["embedding_length"] ** 0.5, "ffn.activation": "gelu_tanh"}
LAYERED = LAYER_NORM | UNGATED
PARTIAL = {"rope.dimension_count": ANY}
CONVENTIONS: dict[str, Convention] = {
    "llama": Convention({"attention.bias": ANY, "attention.output_bias": ANY, "ffn.bias": ANY}, "interleaved",
                        factors=("rope_freqs.weight",)),
    "qwen2": Convention({"attention.bias": True}, square=True),
    "qwen3": Convention({"attention.qk_norm": "head"}),
    "gemma": Convention(GEMMA_IMPLIES, tied="must"),
    "gemma2": Convention(GEMMA_IMPLIES | {
        "norm.post": True, "attention.scale": gemma_scale(46), "attention.sliding_window": ANY,
        "attention.sliding_window_pattern": lambda s: every(2, s["block_count"]),
        "attn_logit_softcapping": SET, "final_logit_softcapping": SET}, tied="must",
        keys=lambda s: window_keys(s) | {k: s[k] for k in ("attn_logit_softcapping", "final_logit_softcapping")}),
    "gemma3": Convention(GEMMA_IMPLIES | {
        "norm.post": True, "attention.qk_norm": "head", "attention.scale": gemma_scale(62),
        "attention.sliding_window": ANY, "attention.sliding_window_pattern": lambda s: every(6, s["block_count"]),
        "rope.freq_base_swa": ANY, "final_logit_softcapping": ANY},
        keys=lambda s: window_keys(s) | {k: s[k] for k in ("rope.freq_base_swa", "final_logit_softcapping")}),
    "phi2": Convention(LAYERED | ALL_BIAS | PARTIAL | {
        "ffn.activation": "gelu_tanh", "residual": "parallel", "residual.shared_norm": True, "output_bias": True},
        square=True, tied="copy"),
    "phi3": Convention(PARTIAL | {"rope.scaling.type": (*ROPE_SCALING, "longrope")}, fused=("qkv", "gate_up"),
                       square=True, factors=("rope_factors_long.weight", "rope_factors_short.weight"),
                       keys=lambda s: {"attention.sliding_window": 0}),
    "gpt2": Convention(LAYERED | ALL_BIAS | {"ffn.activation": "gelu_tanh", "position": "learned"}, fused=("qkv",),
                       square=True),
    "gptneox": Convention(LAYERED | ALL_BIAS | PARTIAL | {"ffn.activation": "gelu", "residual": ANY}, fused=("qkv",),
                          square=True, tied="copy", keys=residual_key),
    "starcoder2": Convention(LAYERED | ALL_BIAS | {"ffn.activation": "gelu_tanh"}, square=True),
    "stablelm": Convention({"norm.type": "layer", "norm.bias": True, "attention.bias": ANY, "residual": ANY,
                            "residual.shared_norm": lambda s: s["residual"] == "parallel",
                            "attention.qk_norm": ("none", "heads")} | PARTIAL, square=True, tied="copy",
                           keys=residual_key),
    "olmo2": Convention({"norm.pre": False, "norm.post": True, "attention.qk_norm": "full"}, square=True, tied="copy"),
    "smollm3": Convention({"rope.layers": lambda s: every(4, s["block_count"])}, "interleaved"),
    "granite": Convention({k: ANY for k in ("attention.bias", "attention.output_bias", "ffn.bias", "attention.scale",
                                            "embedding_scale", "residual_scale", "logit_scale")}, "interleaved",
                          factors=("rope_freqs.weight",), keys=lambda s: {
                              "attention.scale": s["attention.scale"], "embedding_scale": s["embedding_scale"],
                              "residual_scale": s["residual_scale"], "logit_scale": 1 / s["logit_scale"]}),
    "falcon": Convention(LAYERED | {"ffn.bias": False, "ffn.activation": "gelu", "residual": "parallel",
                                    "residual.shared_norm": ANY}, fused=("qkv",), square=True),
    "bloom": Convention(LAYERED | ALL_BIAS | {"ffn.activation": "gelu_tanh", "norm.embedding": True, "position": "alibi",
                                              "attention.max_alibi_bias": 8.0}, fused=("qkv",), square=True),
    "mpt": Convention({"norm.type": "layer", "ffn.gated": False, "ffn.activation": "gelu", "position": "alibi",
                       "attention.max_alibi_bias": ANY, "attention.clamp_kqv": ANY}, fused=("qkv",), square=True,
                      keys=lambda s: {k: s[k] for k in ("attention.max_alibi_bias", "attention.clamp_kqv")}),
}
SIZES = ("context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size",
         "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length")
ROPE_KEYS = ("rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor",
             "rope.scaling.original_context_length", "rope.scaling.attn_factor")


def misfit(conv: Convention, s: Spec) -> str | None:
    """The first thing about a Spec that a convention cannot express, or None."""
    free = {*SIZES, *ROPE_KEYS, "norm.epsilon", "rope.pairing", "tied"}
    want = {k: default for k, (_, default) in GPT_KEYS.items() if k not in free}
    want |= {"rope.scaling.type": ROPE_SCALING} | conv.implies
    if s["position"] == "rope":
        want.setdefault("rope.dimension_count", s["attention.key_length"])
    for key, value in want.items():
        value = value(s) if callable(value) else value
        if value is ANY or (value is SET and s[key] is not None) or \
                (s[key] in value if isinstance(value, tuple) else s[key] == value):
            continue
        return f"{key} = {short(s[key])}"
    h, kd, vd = s["attention.head_count"], s["attention.key_length"], s["attention.value_length"]
    if kd != vd or (conv.square and h * kd != s["embedding_length"]):
        return f"attention.key_length = {kd} with value_length = {vd}"
    if conv.tied == "must" and not s["tied"]:
        return "tied = False"
    return next((name for name in s["rope_factors"] if name not in conv.factors), None)


def conventional(model: Model, conv: Convention) -> tuple[Spec, dict[str, Recipe]]:
    """Keys (without the architecture's prefix) and recipes in llama.cpp's convention."""
    s, out = model.spec, dict(model.recipes)
    norm = "attention.layer_norm_rms_epsilon" if s["norm.type"] == "rms" else "attention.layer_norm_epsilon"
    keys = {k: s[k] for k in SIZES} | {norm: s["norm.epsilon"]}
    if s["position"] == "rope":
        keys |= {k: s[k] for k in ROPE_KEYS if not (k == "rope.scaling.type" and s[k] == "none")}
        if s["rope.pairing"] != conv.pairing:
            op = partial(change_pairing, dim=s["attention.key_length"], rot=s["rope.dimension_count"], to=conv.pairing)
            for name in out:
                if re.search(r"\.attn_[qk]\.|\.attn_[qk]_norm\.", name):
                    out[name] = out[name].then(op)
    if s["tied"] and conv.tied == "copy":
        out["output.weight"] = out["token_embd.weight"]
    for i in range(s["block_count"]):
        b = f"blk.{i}."
        for suffix in ("weight", "bias"):
            if "qkv" in conv.fused and f"{b}attn_q.{suffix}" in out:
                out[f"{b}attn_qkv.{suffix}"] = concat([out.pop(f"{b}attn_{p}.{suffix}") for p in "qkv"])
            if "gate_up" in conv.fused and f"{b}ffn_gate.{suffix}" in out:
                out[f"{b}ffn_up.{suffix}"] = concat([out.pop(f"{b}ffn_gate.{suffix}"), out[f"{b}ffn_up.{suffix}"]])
    if model.arch == "falcon" and not s["residual.shared_norm"]:
        out = {re.sub(r"ffn_norm\b", "attn_norm", re.sub(r"attn_norm\b", "attn_norm_2", n)): r for n, r in out.items()}
    return keys | conv.keys(s), out


# ---- writing ---------------------------------------------------------------------------------------------------------

DTYPES = {"f32": (Q.F32, gguf.LlamaFileType.ALL_F32), "f16": (Q.F16, gguf.LlamaFileType.MOSTLY_F16),
          "bf16": (Q.BF16, gguf.LlamaFileType.MOSTLY_BF16), "q8_0": (Q.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0)}


def write_keys(w: gguf.GGUFWriter, arch: str, keys: Spec) -> None:
    own = {"use_parallel_residual": V.BOOL, "attention.layer_norm_rms_epsilon": V.FLOAT32,
           "attention.layer_norm_epsilon": V.FLOAT32}
    for key, value in keys.items():
        if value is None:
            continue
        kind = own.get(key) or GPT_KEYS[key][0]
        if isinstance(value, list):
            w.add_key_value(f"{arch}.{key}", value, V.ARRAY, sub_type=kind)
        else:
            w.add_key_value(f"{arch}.{key}", value, kind)


def write_vocab(w: gguf.GGUFWriter, v: Vocab) -> None:
    w.add_tokenizer_model(v.model)
    if v.model == "gpt2":
        w.add_tokenizer_pre(PRE_NAMES.get(v.patterns, "default"))
        w.add_array("tokenizer.attnc.pre_patterns", list(v.patterns))
        w.add_string("tokenizer.attnc.normalizer", "nfc" if v.nfc else "none")
        w.add_bool("tokenizer.attnc.ignore_merges", v.ignore_merges)
    else:
        w.add_tokenizer_pre("gemma4" if v.model == "gemma4" else "default")
        w.add_token_scores(v.scores)
        w.add_add_space_prefix(v.add_space_prefix)
        if v.space_prefix:
            w.add_string("tokenizer.attnc.space_prefix", v.space_prefix)
        if v.space_prefix and v.normalized:
            w.add_key_value("tokenizer.attnc.normalized_tokens", sorted(v.normalized), V.ARRAY,
                            sub_type=V.INT32)
    w.add_token_list(v.tokens)
    w.add_token_types(v.types)
    w.add_token_merges(v.merges)
    adders = {"bos": w.add_bos_token_id, "eos": w.add_eos_token_id, "unk": w.add_unk_token_id,
              "pad": w.add_pad_token_id, "eot": w.add_eot_token_id, "eom": w.add_eom_token_id}
    for name, i in v.ids.items():
        adders[name](i)
    if v.ends:  # llama.cpp has keys for three; ./run reads this one
        w.add_key_value("tokenizer.ggml.eos_token_ids", v.ends, V.ARRAY, sub_type=V.INT32)
    w.add_add_bos_token(v.add_bos)
    w.add_add_eos_token(v.add_eos)
    if isinstance(v.chat_template, str) or (isinstance(v.chat_template, list) and v.chat_template):
        w.add_chat_template(v.chat_template)


def own_type(model: Model) -> str:
    """The checkpoint's own number type, which loses nothing."""
    kind = model.source.meta(model.recipes["blk.0.attn_q.weight"].sources[0]).dtype
    return {torch.float16: "f16", torch.bfloat16: "bf16"}.get(kind, "f32")


def tensor_type(name: str, shape: tuple[int, ...], dtype: str) -> Q:
    """Matrices take the asked type; norms, biases and position tables stay f32; odd widths fall back to f16."""
    if len(shape) == 1 or "norm" in name or name.startswith("position_embd"):
        return Q.F32
    return Q.F16 if dtype == "q8_0" and shape[-1] % 32 else DTYPES[dtype][0]


def export(model: Model, out: Path, dtype: str | None) -> str:
    """Write the file under a temporary name and rename it. Returns the architecture."""
    dtype = dtype or own_type(model)
    conv = CONVENTIONS.get(model.arch)
    why = misfit(conv, model.spec) if conv else None
    if conv and why is None:
        arch, (keys, recipes) = model.arch, conventional(model, conv)
    else:
        arch, keys, recipes = "gpt", {k: model.spec[k] for k in GPT_KEYS}, model.recipes
        if model.spec["position"] != "rope":
            keys = {k: v for k, v in keys.items() if not k.startswith("rope.")}
        if why:
            model.notes.append(f"written as gpt, since {model.arch} in GGUF cannot hold {why}")
    order = sorted(recipes, key=lambda n: (not n.startswith("token_embd"), n.startswith("output"),
                                           [int(p) if p.isdigit() else -1 for p in n.split(".")[:2]], n))
    w = gguf.GGUFWriter(None, arch)
    w.add_name(model.name)
    w.add_file_type(DTYPES[dtype][1])
    if dtype == "q8_0":
        w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_keys(w, arch, keys)
    write_vocab(w, model.vocab)
    plan = []
    for name in order:
        recipe = recipes[name]
        shape = tuple(recipe.op(*map(model.source.meta, recipe.sources)).shape)
        kind = tensor_type(name, shape, dtype)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        plan.append((name, recipe, shape, kind))
        w.add_tensor_info(name, shape, np.dtype(np.float32), math.prod(shape) // block * size, kind)
    temp = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    total = sum(t.nbytes for group in w.tensors for t in group.values())
    try:
        w.write_header_to_file(temp)
        w.write_kv_data_to_file()
        w.write_ti_data_to_file()
        with tqdm(total=total, unit="B", unit_scale=True, disable=None, file=sys.stderr) as bar:
            for name, recipe, shape, kind in plan:
                data = encode(name, recipe.op(*map(model.source.load, recipe.sources)), kind)
                w.write_tensor_data(data)
                bar.update(data.nbytes)
        w.close()
        os.replace(temp, out)
    except OSError as e:
        raise ExportError(f"{out}: {e.strerror or e}") from e
    finally:
        temp.unlink(missing_ok=True)
    n = sum(math.prod(shape) for _, _, shape, _ in plan)
    model.notes.append(f"{out}: {arch}, {n / 1e6:.2f} M values in {len(plan)} tensors, {dtype}, "
                       f"{out.stat().st_size:,} bytes")
    return arch


# The largest value that a type holds, as in quantize.c; the values of the others, or the scales of
# their blocks, are f16
FINITE = {Q.F32: float(np.finfo(np.float32).max), Q.BF16: float.fromhex("0x1.fep127")}


def encode(name: str, t: Tensor, kind: Q) -> np.ndarray:
    """A tensor's bytes in the file, (rows, bytes of a row); a million values at a time."""
    rows = t.reshape(-1, t.shape[-1])
    block, size = gguf.GGML_QUANT_SIZES[kind]
    limit = FINITE.get(kind, 65504.0)
    out = np.empty((rows.shape[0], rows.shape[1] // block * size), np.uint8)
    step = max(1, 2**20 // rows.shape[1])
    for i in range(0, rows.shape[0], step):
        a = np.ascontiguousarray(rows[i:i + step].to(torch.float32).numpy())
        if not (np.abs(a) <= limit).all():
            hint = "" if limit > 65504 else "; --dtype bf16 or f32 can hold more"
            raise ExportError(
                f"tensor {name}: got NaN or a value beyond {limit:.9g}, want what {kind.name} can "
                f"hold{hint}")
        out[i:i + step] = gguf.quants.quantize(a, kind).view(np.uint8).reshape(len(a), -1)
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Turn a PyTorch or Hugging Face checkpoint into a GGUF file for ./run.")
    parser.add_argument("input", type=Path, metavar="INPUT",
                        help="a Hugging Face folder, a nanoGPT, llama2.c or attn.c checkpoint, or a llama2.c .bin")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the matrices (default: the checkpoint's own)")
    parser.add_argument("--tokenizer", type=Path, metavar="PATH",
                        help="tokenizer.json, tokenizer.model, tokenizer.bin, vocab.json, meta.pkl or a folder with one")
    parser.add_argument("--activation", choices=("gelu", "gelu_tanh"), default="gelu",
                        help="of a nanoGPT checkpoint, which does not record it (default: gelu; older ones: gelu_tanh)")
    args = parser.parse_args(argv)
    try:
        if args.output.is_dir():
            raise ExportError(f"{args.output}: is a folder")
        if not args.output.absolute().parent.is_dir():
            raise ExportError(f"{args.output}: its folder does not exist")
        model = read_model(args.input, args.tokenizer, args.activation)
        export(model, args.output, args.dtype)
    except ExportError as e:
        print(f"export.py: {' '.join(str(e).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as e:
        print(f"export.py: {e.filename or args.input}: {e.strerror or e}", file=sys.stderr)
        return 1
    if model.unused:
        more = ", ..." if len(model.unused) > 8 else ""
        print(f"not used: {len(model.unused)} tensors: {', '.join(model.unused[:8])}{more}")
    for note in model.vocab.notes + model.notes:
        print(note)
    return 0


if __name__ == "__main__":
    sys.exit(main())
