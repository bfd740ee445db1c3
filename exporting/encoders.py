"""What a config.json of an encoder means, how its tensors are called, and what the folders of
sentence-transformers say beside it. A function a family, as in decoders.py."""
from __future__ import annotations

import json
from pathlib import Path

from exporting.config import Config, ExportError, read_json, short
from exporting.parts import local_base, mha, rope
from exporting.spec import ALL_BIAS, LAYER_NORM, POST_RESIDUAL, UNGATED, Spec

POOLING = {"mean": 1, "cls": 2, "lasttoken": 3}  # pooling_type


def sentence_pooling(folder: Path) -> int | None:
    """What a folder of sentence-transformers says of pooling; other parts than that and a division
    by the length are refused."""
    path = folder / "modules.json"
    if not path.is_file():
        return None
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        types = {m["type"].rpartition(".")[2]: m["path"] for m in modules}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        raise ExportError(f"{path}: not a list of modules: {short(str(e))}") from e
    if other := [t for t in types if t not in ("Transformer", "Pooling", "Normalize")]:
        raise ExportError(f"{path}: a module {short(other[0])} is not supported")
    if "Pooling" not in types:
        return None
    path = folder / str(types["Pooling"]) / "config.json"
    c = Config(read_json(path), {}, str(path))
    on = [name for name, flag in (("mean", "mean_tokens"), ("cls", "cls_token"),
                                  ("lasttoken", "lasttoken"), ("other", "max_tokens"),
                                  ("other", "mean_sqrt_len_tokens"),
                                  ("other", "weightedmean_tokens"))
          if c.flag(f"pooling_mode_{flag}")] or [str(c.get("pooling_mode"))]
    if len(on) != 1 or on[0] not in POOLING:
        raise ExportError(f"{path}: want one of mean, cls and last token")
    return POOLING[on[0]]


def encoder(c: Config) -> Spec:
    c.refuse("is_decoder", (None, False), "only encoders are supported")
    c.refuse("add_cross_attention", (None, False), "not supported")
    c.refuse("position_embedding_type", (None, "absolute", "rotary"), "not supported")
    types = c.get("type_vocab_size") or None
    return mha(c) | LAYER_NORM | {
        "attention.causal": False, "pooling_type": c.get("_pooling"), "norm.embedding": True,
        "token_types": types and c.int("type_vocab_size"), "ffn.activation": c.activation(),
        "tied": True}  # there are no logits


def bert(c: Config) -> Spec:
    c.refuse("embedding_size", (None, c.get("hidden_size")), "embeddings of another width")
    return encoder(c) | UNGATED | ALL_BIAS | POST_RESIDUAL | {"position": "learned"}


def roberta(c: Config) -> Spec:
    """Rows of the position table up to that of padding are not used."""
    return bert(c) | {"context_length": c.int("max_position_embeddings") - roberta_offset(c)}


def roberta_offset(c: Config) -> int:
    pad = c.get("pad_token_id")
    if type(pad) is not int or not 0 <= pad < c.int("max_position_embeddings") - 1:
        raise c.bad("pad_token_id", "a token")
    return pad + 1


def nomic_bert(c: Config) -> Spec:
    for flag in ("prenorm", "qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "moe_every_n_layers"):
        c.refuse(flag, (None, False, 0), "not supported")
    if c.get("rotary_emb_fraction") not in (None, 1, 1.0):
        raise c.bad("rotary_emb_fraction", "1")
    if c.get("hidden_act") == "swiglu":  # in its first folders
        c = Config(c.data | {"hidden_act": "silu"}, c.defaults)
    return rope(c) | encoder(c) | POST_RESIDUAL


def modern_bert(c: Config) -> Spec:
    n, every, types = (c.int("num_hidden_layers"), c.get("global_attn_every_n_layers"),
                       c.get("layer_types"))
    if types is None and type(every) is int and every > 0:
        types = ["sliding_attention" if i % every else "full_attention" for i in range(n)]
    if not isinstance(types, list) or len(types) != n or \
            set(types) - {"sliding_attention", "full_attention"}:
        raise c.bad("layer_types", f"{n} of sliding_attention and full_attention")
    bases = {f"{kind}_rope_theta": c.num(f"{kind}_rope_theta") for kind in ("global", "local")}
    nested = c.get("rope_parameters") if not all(bases.values()) else {
        "full_attention": {"rope_theta": bases["global_rope_theta"]},
        "sliding_attention": {"rope_theta": bases["local_rope_theta"]}}
    c = Config(c.data | {"rope_parameters": nested, "rope_theta": None}, c.defaults)
    attn = c.flag("attention_bias")
    return rope(c) | encoder(c) | local_base(c, 10000.0) | {
        "norm.bias": c.flag("norm_bias"), "norm.plain_first": True, "attention.bias": attn,
        "attention.output_bias": attn, "ffn.bias": c.flag("mlp_bias"),
        "attention.sliding_window": c.int("local_attention"),
        "attention.sliding_window_pattern": [t == "sliding_attention" for t in types]}


BERT_LAYER = (("attention.self.query", "attn_q"), ("attention.self.key", "attn_k"),
              ("attention.self.value", "attn_v"), ("attention.output.dense", "attn_output"),
              ("attention.output.LayerNorm", "post_attention_norm"),
              ("intermediate.dense", "ffn_up"), ("output.dense", "ffn_down"),
              ("output.LayerNorm", "post_ffw_norm"))
DISTIL_LAYER = (("attention.q_lin", "attn_q"), ("attention.k_lin", "attn_k"),
                ("attention.v_lin", "attn_v"), ("attention.out_lin", "attn_output"),
                ("sa_layer_norm", "post_attention_norm"), ("ffn.lin1", "ffn_up"),
                ("ffn.lin2", "ffn_down"), ("output_layer_norm", "post_ffw_norm"))
NOMIC_LAYER = (("attn.Wqkv", "attn_qkv"), ("attn.out_proj", "attn_output"),
               ("norm1", "post_attention_norm"), ("mlp.fc11", "ffn_up"), ("mlp.fc12", "ffn_gate"),
               ("mlp.fc2", "ffn_down"), ("norm2", "post_ffw_norm"))
MODERN_LAYER = (("attn_norm", "attn_norm"), ("attn.Wqkv", "attn_qkv"), ("attn.Wo", "attn_output"),
                ("mlp_norm", "ffn_norm"), ("mlp.Wi", "ffn_up"), ("mlp.Wo", "ffn_down"))


def encoder_names(prefixes: tuple[str, ...], layers: str,
                  table: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    names = [(f"embeddings.{theirs}", ours) for theirs, ours in (
        ("word_embeddings", "token_embd"), ("tok_embeddings", "token_embd"),
        ("position_embeddings", "position_embd"), ("token_type_embeddings", "token_types"),
        ("LayerNorm", "token_embd_norm"), ("norm", "token_embd_norm"))]
    names += [("final_norm", "output_norm"), ("emb_ln", "token_embd_norm")]
    names += [(f"{layers}.{{}}.{theirs}", f"blk.{{}}.{ours}") for theirs, ours in table]
    return tuple((p + theirs, ours) for p in ("", *prefixes) for theirs, ours in names)
