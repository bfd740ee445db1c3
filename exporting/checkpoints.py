"""Checkpoints other than Hugging Face's: nanoGPT's, llama2.c's and those of models/train.py.

A reader takes what torch.load gave (or the path of llama2.c's .bin of version 0) to a Model.
export.py finds out which reader a file is for."""
from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporting.config import LIMITS, Config, ExportError, short
from exporting.spec import (LAYER_NORM, UNGATED, Model, Recipe, Spec, check_shapes, dims, gpt_spec,
                            gpt_tensors)
from exporting.vocab import Vocab, bpe_vocab, read_vocab
from exporting.weights import BUFFERS, Tensors, state_dict


def renamed(source: Tensors, spec: Spec, names: dict[str, str],
            unused: list[str]) -> dict[str, Recipe]:
    """Recipes by a table of {our name: their name}, "{}" standing for the layer in both.

    Names of buffers are added to `unused`."""
    table = {ours.format(i): theirs.format(i) for ours, theirs in names.items()
             for i in range(spec["block_count"])}
    have, needed = set(source.names()), gpt_tensors(spec)
    out = {}
    for name in needed:
        theirs = table.get(name)
        if theirs not in have:
            raise ExportError(f"tensor {theirs or name} is missing")
        out[name] = Recipe((theirs,))
    left = have - {r.sources[0] for r in out.values()}
    unused += sorted(n for n in left if BUFFERS.search(n))
    if left := sorted(n for n in left if not BUFFERS.search(n)):
        raise ExportError(f"tensor {short(left[0])}: its meaning is not known")
    check_shapes(spec, out, source)
    return out


def both(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{s}": f"{theirs}.{s}" for s in ("weight", "bias")}


def nanogpt(data: dict[str, Any], path: Path, tokenizer: Path | None, activation: str) -> Model:
    """nanoGPT's checkpoint: model_args and a state dict.

    Its matrices are nn.Linear weights, q, k and v are fused in rows, embeddings are tied."""
    c = Config(data["model_args"], {}, f"{path.name}: model_args")
    source = Tensors(state_dict(data["model"], path))
    d, have = c.int("n_embd"), source.tensors
    bias = "transformer.h.0.attn.c_attn.bias" in have
    tied = "lm_head.weight" not in have or (
        have["lm_head.weight"].shape == have["transformer.wte.weight"].shape and
        torch.equal(have["lm_head.weight"], have["transformer.wte.weight"]))
    spec = gpt_spec(**dims(Config({
        "hidden_size": d, "num_hidden_layers": c.int("n_layer"),
        "num_attention_heads": c.int("n_head"), "vocab_size": c.int("vocab_size"),
        "max_position_embeddings": c.int("block_size"), "norm_eps": 1e-5,
        "tie_word_embeddings": tied}, {}, path.name)), **LAYER_NORM | UNGATED | {
            "norm.bias": "transformer.ln_f.bias" in have, "ffn.bias": bias, "attention.bias": bias,
            "attention.output_bias": bias, "position": "learned", "ffn.activation": activation})
    names, h = "transformer.h.{}.", "blk.{}."
    table = {"token_embd.weight": "transformer.wte.weight",
             "position_embd.weight": "transformer.wpe.weight",
             "output.weight": "lm_head.weight", **both("output_norm", "transformer.ln_f"),
             **both(h + "attn_norm", names + "ln_1"), **both(h + "ffn_norm", names + "ln_2"),
             **both(h + "attn_output", names + "attn.c_proj"),
             **both(h + "ffn_up", names + "mlp.c_fc"), **both(h + "ffn_down", names + "mlp.c_proj")}
    for part in "qkv":  # views of the fused tensors
        table |= both(h + f"attn_{part}", names + f"attn.c_attn.{part}")
    views = {}
    for name, t in have.items():
        if m := re.fullmatch(r"(.*\.c_attn)\.(weight|bias)", name):
            if t.shape[0] != 3 * d:
                raise ExportError(f"tensor {short(name)}: got {t.shape[0]} rows, want {3 * d}")
            views |= {f"{m[1]}.{part}.{m[2]}": v for part, v in zip("qkv", t.split(d))}
        elif not (tied and name == "lm_head.weight"):
            views[name] = t
    model = Model(spec, {}, Tensors(views), Vocab(), "gpt2", path.stem,
                  notes=[f"activation {activation} assumed (nanoGPT does not record it; "
                         "--activation changes it)"])
    model.recipes = renamed(model.source, spec, table, model.unused)
    model.vocab = read_vocab(tokenizer or path.parent, None, spec["vocab_size"], c,
                             first="meta.pkl")
    return model


LLAMA2C = {"token_embd.weight": "tok_embeddings.weight", "output_norm.weight": "norm.weight",
           "output.weight": "output.weight",
           "blk.{}.attn_norm.weight": "layers.{}.attention_norm.weight",
           **{f"blk.{{}}.attn_{a}.weight": f"layers.{{}}.attention.w{b}.weight"
              for a, b in (("q", "q"), ("k", "k"), ("v", "v"), ("output", "o"))},
           "blk.{}.ffn_norm.weight": "layers.{}.ffn_norm.weight",
           **{f"blk.{{}}.ffn_{a}.weight": f"layers.{{}}.feed_forward.w{b}.weight"
              for a, b in (("gate", 1), ("down", 2), ("up", 3))}}


def llama2c_model(args: dict[str, Any], hidden: int, source: Tensors, tied: bool, path: Path,
                  tokenizer: Path | None) -> Model:
    c = Config(args, {"norm_eps": 1e-5}, path.name)
    spec = gpt_spec(**dims(Config({
        "hidden_size": c.int("dim"), "num_hidden_layers": c.int("n_layers"),
        "num_attention_heads": c.int("n_heads"), "num_key_value_heads": args.get("n_kv_heads"),
        "intermediate_size": hidden, "norm_eps": c.num("norm_eps"),
        "vocab_size": c.int("vocab_size"), "max_position_embeddings": c.int("max_seq_len"),
        "tie_word_embeddings": tied}, {}, path.name)), rope__pairing="interleaved")
    model = Model(spec, {}, source, Vocab(), "llama", path.stem)
    model.recipes = renamed(source, spec, LLAMA2C, model.unused)
    model.vocab = read_vocab(tokenizer or path.parent, None, spec["vocab_size"], c)
    if model.vocab.ids.get("bos") == 1 and model.vocab.ids.get("eos") == 2:
        model.vocab.ids["eot"] = 1  # llama2.c trains with BOS between texts: it ends one, too
    return model


def llama2c_checkpoint(data: dict[str, Any], path: Path, tokenizer: Path | None) -> Model:
    tensors = state_dict(data["model"], path)
    head, embd = tensors.get("output.weight"), tensors.get("tok_embeddings.weight")
    tied = head is None or (
        embd is not None and head.shape == embd.shape and torch.equal(head, embd))
    if tied:
        tensors.pop("output.weight", None)
    w1 = tensors.get("layers.0.feed_forward.w1.weight")
    return llama2c_model(data["model_args"], 0 if w1 is None else w1.shape[0], Tensors(tensors),
                         tied, path, tokenizer)


def llama2c_bin(path: Path, tokenizer: Path | None) -> Model:
    """llama2.c's file of version 0.

    7 ints, then f32 arrays in a fixed order, all layers of a kind together."""
    with open(path, "rb") as f:
        header = f.read(28).ljust(28, b"\0")
    dim, hidden, layers, heads, kv, vocab, seq = struct.unpack("<7i", header)
    sizes = zip(("embedding_length", "feed_forward_length", "block_count", "attention.head_count",
                 "attention.head_count_kv", "context_length", "vocab_size"),
                (dim, hidden, layers, heads, kv, seq, abs(vocab)))
    sane = all(1 <= v <= LIMITS[key][1] for key, v in sizes)
    if not sane or dim % heads or heads % kv:
        raise ExportError(f"{path}: not a checkpoint that export.py knows (PyTorch, llama2.c .bin "
                          "version 0, folder)")
    head, kv_dim, tied, vocab = dim // heads, dim // heads * kv, vocab > 0, abs(vocab)
    shapes = [("tok_embeddings.weight", (vocab, dim)),
              ("layers.{}.attention_norm.weight", (dim,)),
              ("layers.{}.attention.wq.weight", (dim, dim)),
              ("layers.{}.attention.wk.weight", (kv_dim, dim)),
              ("layers.{}.attention.wv.weight", (kv_dim, dim)),
              ("layers.{}.attention.wo.weight", (dim, dim)),
              ("layers.{}.ffn_norm.weight", (dim,)),
              ("layers.{}.feed_forward.w1.weight", (hidden, dim)),
              ("layers.{}.feed_forward.w2.weight", (dim, hidden)),
              ("layers.{}.feed_forward.w3.weight", (hidden, dim)),
              ("norm.weight", (dim,)),
              ("", (2, seq, head // 2)),  # cosines and sines
              ("output.weight", (vocab, dim))]
    shapes = shapes[:-1] if tied else shapes
    count = sum(math.prod(shape) * (layers if "{}" in name else 1) for name, shape in shapes)
    if path.stat().st_size != 28 + 4 * count:
        raise ExportError(f"{path}: as a llama2.c file of dim {dim} and {layers} layers: got "
                          f"{path.stat().st_size} bytes, want {28 + 4 * count}")
    data, at, tensors = torch.from_numpy(np.memmap(path, "<f4", "c", 28)), 0, {}
    for name, shape in shapes:
        for i in range(layers if "{}" in name else 1):
            if name:
                tensors[name.format(i)] = data[at:at + math.prod(shape)].view(shape)
            at += math.prod(shape)
    args = {"dim": dim, "n_layers": layers, "n_heads": heads, "n_kv_heads": kv,
            "vocab_size": vocab, "max_seq_len": seq}
    return llama2c_model(args, hidden, Tensors(tensors), tied, path, tokenizer)


def attnc_checkpoint(data: dict[str, Any], path: Path, tokenizer: Path | None) -> Model:
    """models/train.py's own checkpoint, format attn.c-train-1."""
    if not isinstance(data.get("config"), dict):
        raise ExportError(f"{path}: no config")
    c = Config(data["config"], {"rope_pairing": "half", "activation": "gelu", "tied": True},
               f"{path.name}: config")
    c.refuse("rope_pairing", ("half", "interleaved"), "want half or interleaved")
    c.refuse("norm", (None, "rms"), "want rms")
    c.refuse("bias", (None, False), "want false")
    if (act := c.get("activation")) not in ("gelu", "gelu_tanh", "silu", "relu", "relu2"):
        raise c.bad("activation", "gelu, gelu_tanh, silu, relu or relu2")
    source = Tensors(state_dict(data["model"], path))
    gated = "layers.0.w_gate.weight" in source.tensors
    spec = gpt_spec(**dims(Config({
        "hidden_size": c.int("dim"), "num_hidden_layers": c.int("n_layers"),
        "num_attention_heads": c.int("n_heads"), "num_key_value_heads": c.get("n_kv_heads"),
        "intermediate_size": c.int("hidden_dim"), "head_dim": c.get("head_dim"),
        "norm_eps": c.num("norm_eps"), "vocab_size": c.int("vocab_size"),
        "max_position_embeddings": c.int("seq_len"), "tie_word_embeddings": c.flag("tied")},
        {}, path.name)),
        rope__pairing=c.get("rope_pairing"), rope__freq_base=c.num("rope_base", 10000.0),
        ffn__gated=gated, ffn__activation=act)
    names = {"token_embd.weight": "tok_emb.weight", "output_norm.weight": "final_norm.weight",
             "output.weight": "output.weight"}
    for ours, theirs in (("attn_norm", "attn_norm"), ("attn_q", "wq"), ("attn_k", "wk"),
                         ("attn_v", "wv"), ("attn_output", "wo"), ("ffn_norm", "ffn_norm"),
                         ("ffn_gate", "w_gate"), ("ffn_up", "w_up"), ("ffn_down", "w_down")):
        names[f"blk.{{}}.{ours}.weight"] = f"layers.{{}}.{theirs}.weight"
    model = Model(spec, {}, source, Vocab(), "gpt", path.stem)
    if c.flag("tied"):
        source.tensors.pop("output.weight", None)
    model.recipes = renamed(source, spec, names, model.unused)
    if tokenizer:
        model.vocab = read_vocab(tokenizer, None, spec["vocab_size"], c)
    else:
        try:
            tok = json.loads(data["tokenizer"])
        except (KeyError, TypeError, ValueError) as e:
            raise ExportError(f"{path}: no readable tokenizer inside; give --tokenizer") from e
        model.vocab = bpe_vocab(tok, path)
    end = model.vocab.find("<|endoftext|>")
    if end is not None:
        model.vocab.ids |= {"bos": end, "eos": end}
        model.vocab.add_bos = True
    model.vocab.fit(spec["vocab_size"], path)
    return model
