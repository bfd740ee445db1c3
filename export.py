#!/usr/bin/env python3
"""Turn a checkpoint into a GGUF file that ./run reads.

    python export.py INPUT -o model.bin [--dtype f32|f16|bf16|q8_0] [--tokenizer PATH]

INPUT is a Hugging Face folder, a nanoGPT, llama2.c or attn.c checkpoint (.pt), or a llama2.c .bin
of version 0.

Every model is first described in the words of the general architecture `gpt` (a Spec:
docs/gpt-keys.md) with a Recipe for each of its tensors. If the Spec is one that a llama.cpp
architecture implies (CONVENTIONS), the file is written in that architecture's convention, so that
other engines open it; else as `gpt`. What a Spec cannot say is refused. Nothing here runs code from
the checkpoint: pickles are read with weights_only, configuration is JSON.

This file is the command: arguments, messages, which reader a file is for, and writing. Readers and
tables are in exporting/.
"""
from __future__ import annotations

import argparse
import math
import os
import re
import sys
from pathlib import Path

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
    from exporting.conventions import CONVENTIONS, conventional, misfit
    from exporting.huggingface import hf_model
    from exporting.patterns import pre_name
    from exporting.spec import GPT_KEYS, Model, Spec
    from exporting.vocab import Vocab
    from exporting.weights import torch_file
except ImportError as e:
    if __name__ != "__main__":
        raise
    package, why = (e.name or "?").partition(".")[0], " ".join(str(e).split())
    sys.exit(f"export.py: cannot load the Python package {package} ({why}): "
             "python -m pip install gguf numpy safetensors torch tqdm")

# ---- reading -------------------------------------------------------------------------------------

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
    raise ExportError(f"{path}: not a nanoGPT, llama2.c or attn.c checkpoint (keys "
                      f"{short(sorted(map(str, data)))}); "
                      "a bare state dict needs its Hugging Face folder with config.json")


# ---- writing -------------------------------------------------------------------------------------

DTYPES = {"f32": (Q.F32, gguf.LlamaFileType.ALL_F32), "f16": (Q.F16, gguf.LlamaFileType.MOSTLY_F16),
          "bf16": (Q.BF16, gguf.LlamaFileType.MOSTLY_BF16),
          "q8_0": (Q.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0)}


def write_keys(w: gguf.GGUFWriter, arch: str, keys: Spec) -> None:
    own = {"use_parallel_residual": V.BOOL, "attention.layer_norm_rms_epsilon": V.FLOAT32,
           "attention.layer_norm_epsilon": V.FLOAT32, "leading_dense_block_count": V.UINT32,
           "interleave_moe_layer_step": V.UINT32, "expert_shared_count": V.UINT32,
           "rope.scaling.yarn_log_multiplier": V.FLOAT32,
           "attention.recurrent_layers": V.BOOL, "full_attention_interval": V.UINT32,
           "rope.dimension_sections": V.INT32, "rope.scaling.finetuned": V.BOOL}
    for key, value in keys.items():
        if value is None:
            continue
        kind, name = own.get(key) or GPT_KEYS[key][0], f"{arch}.{key}"
        if key.startswith("xielu."):
            name = key
        if isinstance(value, list):
            w.add_key_value(name, value, V.ARRAY, sub_type=kind)
        else:
            w.add_key_value(name, value, kind)


def write_vocab(w: gguf.GGUFWriter, v: Vocab) -> None:
    w.add_tokenizer_model(v.model)
    if v.model == "gpt2":
        w.add_tokenizer_pre(pre_name(v.patterns, v.nfc, v.ignore_merges))
        w.add_array("tokenizer.attnc.pre_patterns", list(v.patterns))
        w.add_string("tokenizer.attnc.normalizer", "nfc" if v.nfc else "none")
        w.add_bool("tokenizer.attnc.ignore_merges", v.ignore_merges)
    elif v.model == "bert":
        w.add_tokenizer_pre("default")
        w.add_bool("tokenizer.ggml.normalizer.lowercase", v.lowercase)
        w.add_bool("tokenizer.ggml.normalizer.strip_accents", v.strip_accents)
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
    if v.model == "bert":
        w.add_uint32("tokenizer.ggml.cls_token_id", v.ids["bos"])
    adders = {"sep": w.add_sep_token_id, "mask": w.add_mask_token_id,
              "bos": w.add_bos_token_id, "eos": w.add_eos_token_id, "unk": w.add_unk_token_id,
              "pad": w.add_pad_token_id, "eot": w.add_eot_token_id, "eom": w.add_eom_token_id}
    for name, i in v.ids.items():
        adders[name](i)
    if v.ends:  # llama.cpp has keys for three; ./run reads this one
        w.add_key_value("tokenizer.ggml.eos_token_ids", v.ends, V.ARRAY, sub_type=V.INT32)
    w.add_add_bos_token(v.add_bos)
    w.add_add_eos_token(v.add_eos)
    for name, text in v.chat_templates.items():
        key = re.sub(r"[^A-Za-z0-9]", "_", name)  # as llama.cpp's converter writes names
        w.add_string(f"tokenizer.chat_template.{key}" if key else "tokenizer.chat_template", text)


def own_type(model: Model) -> str:
    """The checkpoint's own number type, which loses nothing."""
    matrix = model.recipes.get("blk.0.attn_q.weight") or model.recipes["token_embd.weight"]
    kind = model.source.meta(matrix.sources[0]).dtype
    return {torch.float16: "f16", torch.bfloat16: "bf16"}.get(kind, "f32")


def tensor_type(name: str, shape: tuple[int, ...], dtype: str) -> Q:
    """Matrices take the type that was asked for.

    Norms, biases, routers, position tables and what a recurrent mixer keeps beside its matrices
    stay f32, as llama.cpp needs them; widths that are no multiple of the block fall back to f16."""
    if len(shape) == 1 or not name.endswith(".weight") or "norm" in name or any(
            part in name for part in ("position_embd", "token_types", "ffn_gate_inp",
                                      "ssm_conv1d", "shortconv.conv")):
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
    order = sorted(recipes, key=lambda n: (
        not n.startswith("token_embd"), n.startswith("output"),
        [int(p) if p.isdigit() else -1 for p in n.split(".")[:2]], n))
    w = gguf.GGUFWriter(None, arch)
    w.add_name(model.name)
    w.add_file_type(DTYPES[dtype][1])
    if dtype == "q8_0":
        w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_keys(w, arch, keys)
    if model.spec["token_types"]:
        w.add_token_type_count(model.spec["token_types"])
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
    parser = argparse.ArgumentParser(
        description="Turn a PyTorch or Hugging Face checkpoint into a GGUF file for ./run.")
    parser.add_argument("input", type=Path, metavar="INPUT",
                        help="a Hugging Face folder, a nanoGPT, llama2.c or attn.c checkpoint, or "
                             "a llama2.c .bin")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE",
                        help="the file to write")
    parser.add_argument("--dtype", choices=DTYPES,
                        help="type of the matrices (default: the checkpoint's own)")
    parser.add_argument("--tokenizer", type=Path, metavar="PATH",
                        help="tokenizer.json, tokenizer.model, tokenizer.bin, vocab.json, meta.pkl "
                             "or a folder with one")
    parser.add_argument("--activation", choices=("gelu", "gelu_tanh"), default="gelu",
                        help="of a nanoGPT checkpoint, which does not record it (default: gelu; "
                             "older ones: gelu_tanh)")
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
