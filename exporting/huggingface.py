"""Hugging Face folders: one row per transformers model_type.

A row leads from config.json to a Spec and from tensor names to Recipes. vocab.py reads the
tokenizer, weights.py the shards of weights."""
from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Callable

import gguf
import torch

from exporting.config import Config, ExportError, read_json, short
from exporting.spec import (ALL_BIAS, LAYER_NORM, SSM, UNGATED, XIELU, Model, Recipe, Spec,
                            alternate, check_shapes, dims, from_mxfp4, gpt_spec, gpt_tensors,
                            half_rows, has_kv, latent_part, product, split_blocks, split_groups,
                            split_rows, tile_heads)
from exporting.vocab import read_vocab
from exporting.weights import BUFFERS, Tensors, adapter, folder_tensors, has_weights


def rope_spec(c: Config, dim: int, layer_type: str | None = None) -> Spec:
    """The rope.* part of a Spec.

    transformers 4 spells it rope_theta and rope_scaling, 5 rope_parameters."""
    p = c.get("rope_scaling") or c.get("rope_parameters") or {}
    if not isinstance(p, dict):
        raise c.bad("rope_parameters", "an object")
    if layer_type in p or "full_attention" in p:
        p = p.get(layer_type or "full_attention") or {}
    p = Config({**p}, {"rope_theta": c.get("rope_theta"),
                       "partial_rotary_factor": c.get("partial_rotary_factor")})
    base, share = p.num("rope_theta", 10000.0), p.num("partial_rotary_factor", 1.0)
    if share != 1 and "partial_rotary_factor" not in c.defaults:
        raise ExportError(f"config.json: partial_rotary_factor = {share}: "
                          "this model_type rotates whole heads")
    rot = int(dim * share)
    kind = p.get("rope_type", p.get("type")) or "default"
    if c.get("model_type") == "phi3" and kind in ("su", "yarn"):
        kind = "longrope"  # the names of its first releases
    out: Spec = {"rope.freq_base": base, "rope.dimension_count": rot}
    if rot < 2 or rot % 2 or not 0 < base:
        raise ExportError(f"config.json: rope over {rot} of {dim} values per head with base "
                          f"{base}: want an even number")
    if "mrope_section" in p.data and not str(c.get("model_type")).startswith("qwen3_5"):
        raise ExportError("config.json: rope with mrope_section (several "
                          "position axes) is not supported")
    if kind == "dynamic" and p.get("alpha") and str(c.get("model_type")).startswith("hunyuan"):
        out["rope.freq_base"] = base * p.num("alpha") ** (dim / (dim - 2))  # a fixed stretch
        return out
    if kind == "dynamic":  # plain within the context
        return out | {"context_limit": True}
    if kind == "default":
        return out
    if kind not in ("linear", "llama3", "yarn", "longrope"):
        raise ExportError(f"config.json: rope type {short(kind)} is not supported (linear, llama3, "
                          "yarn, longrope, dynamic are)")
    context = c.int("max_position_embeddings")
    original = (c.get("original_max_position_embeddings")
                or p.get("original_max_position_embeddings") or context)
    if type(original) is not int or original <= 0:
        raise ExportError(f"config.json: original_max_position_embeddings: got {short(original)}, "
                          "want a positive number")
    factor = p.num("factor", context / original if kind in ("yarn", "longrope") else None)
    if factor is None or factor <= 0:
        raise ExportError(f"config.json: rope type {kind} without a factor")
    attn = p.num("attention_factor", p.num("attn_factor"))
    if kind == "linear":
        return out | ({"rope.scaling.type": "linear", "rope.scaling.factor": factor}
                      if factor != 1 else {})
    if kind == "llama3":
        low, high = p.num("low_freq_factor"), p.num("high_freq_factor")
        if low is None or high is None or low == high:
            raise ExportError("config.json: rope type llama3 needs "
                              "low_freq_factor and a different high_freq_factor")
        divisors = []
        for i in range(rot // 2):
            # turns within the original context
            rotations = original / (2 * math.pi * base ** (2 * i / rot))
            smooth = min(max((rotations - low) / (high - low), 0.0), 1.0)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
        return out | {"rope_factors": {"rope_freqs.weight": divisors}}
    out |= {"rope.scaling.type": kind, "rope.scaling.original_context_length": original}
    if kind == "longrope":  # without a factor: llama.cpp would divide the frequencies by it
        for which in ("long", "short"):
            values = p.get(f"{which}_factor")
            if not isinstance(values, list) or len(values) != rot // 2 or \
                    not all(isinstance(v, (int, float)) and v > 0 for v in values):
                raise ExportError(f"config.json: rope {which}_factor: want a "
                                  f"list of {rot // 2} positive numbers")
            out.setdefault("rope_factors", {})[f"rope_factors_{which}.weight"] = values
        if attn is None:
            attn = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        return out | {"rope.scaling.attn_factor": attn}
    out["rope.scaling.factor"] = factor
    if p.get("truncate") is False:
        out["rope.scaling.yarn_truncate"] = False
    # what a yarn engine multiplies by on its own
    usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    mscale, all_dim = p.num("mscale"), p.num("mscale_all_dim")
    if attn is None and mscale and all_dim:
        attn = (0.1 * mscale * math.log(factor)
                + 1) / (0.1 * all_dim * math.log(factor) + 1) if factor > 1 else 1.0
    if attn is not None and attn != usual:
        out["rope.scaling.attn_factor"] = attn / usual
    fast, slow = p.num("beta_fast") or 32.0, p.num("beta_slow") or 1.0
    return out | ({} if (fast, slow) == (32, 1) else
                  {"rope.scaling.yarn_beta_fast": fast, "rope.scaling.yarn_beta_slow": slow})


def windows(c: Config, has_window: Callable[[int], bool] = lambda i: True,
            keep: bool = False) -> Spec:
    """The sliding window and its layers: layer_types, else has_window(layer).

    A window that holds the whole context is left out unless `keep`."""
    n = c.int("num_hidden_layers")
    if c.get("sliding_window") is None:
        return {}
    types = c.get("layer_types")
    if types is None:
        pattern = [bool(has_window(i)) for i in range(n)]
    elif (not isinstance(types, list) or len(types) != n
              or set(types) - {"sliding_attention", "full_attention"}):
        raise c.bad("layer_types", f"{n} of sliding_attention and full_attention")
    else:
        pattern = [t == "sliding_attention" for t in types]
    if not any(pattern) or (c.int("sliding_window") >= c.int("max_position_embeddings")
                            and not keep):
        return {}
    return {"attention.sliding_window": c.int("sliding_window"),
            "attention.sliding_window_pattern": pattern}


def local_base(c: Config, default: float) -> Spec:
    """The rope of the windowed layers, which is plain."""
    nested = c.get("rope_parameters") or {}
    local = nested.get("sliding_attention") or {"rope_theta": default}
    context = c.int("max_position_embeddings")
    local = rope_spec(Config({"rope_parameters": local, "max_position_embeddings": context}, {}),
                      dims(c)["attention.key_length"])
    if local.keys() - {"rope.freq_base", "rope.dimension_count"}:
        raise ExportError("config.json: scaled rope in the windowed layers is not supported")
    return {"rope.freq_base_swa": local["rope.freq_base"]}


def experts(c: Config, width: str = "moe_intermediate_size", renormalised: bool | None = None,
            shared: int = 0, **more: Any) -> Spec:
    """The expert_* part of a Spec; `width` is the field of their width.

    Without `renormalised`, norm_topk_prob says it. Layers without experts: mlp_only_layers, and
    those between each decoder_sparse_step-th."""
    n, dense = c.int("num_hidden_layers"), c.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(type(i) is not int for i in dense):
        raise c.bad("mlp_only_layers", "a list of layers")
    step, count, used = c.int("decoder_sparse_step", 1), c.int("num_experts"), \
        c.int("num_experts_per_tok")
    if used > count:
        raise c.bad("num_experts_per_tok", f"at most the {count} experts")
    layers = [i not in dense and (i + 1) % step == 0 for i in range(n)]
    layers = more.pop("layers", layers)
    if not any(layers):
        return {}
    return {"expert_count": count, "expert_used_count": used,
            "expert_feed_forward_length": c.int(width),
            "expert_weights_norm": c.flag("norm_topk_prob") if renormalised is None
            else renormalised,
            "expert_shared_feed_forward_length": shared or None,
            "expert_layers": None if all(layers) else layers} | more


def rope(c: Config) -> Spec:
    return rope_spec(c, dims(c)["attention.key_length"])


def mha(c: Config) -> Spec:
    """For models that know neither head_dim nor num_key_value_heads.

    config.json may have them nevertheless; transformers does not read them."""
    h = c.int("num_attention_heads")
    dim = c.int("hidden_size") // h
    return {"attention.head_count_kv": h, "attention.key_length": dim,
            "attention.value_length": dim}


def llama(c: Config) -> Spec:
    bias = c.flag("attention_bias")
    return rope(c) | {"attention.bias": bias, "attention.output_bias": bias,
                      "ffn.bias": c.flag("mlp_bias"),
                      "ffn.activation": c.activation()}


def mistral(c: Config) -> Spec:
    c.refuse("layer_types", (None,), "not a plain Mistral")
    return rope(c) | windows(c) | {"ffn.activation": c.activation()}


def mixtral(c: Config) -> Spec:
    return mistral(c) | experts(c, "intermediate_size", True)


def qwen2_moe(c: Config) -> Spec:
    first = c.int("max_window_layers")
    w = windows(c, lambda i: i % 2 == 0 and i < first) if c.flag("use_sliding_window") else {}
    more = experts(c, shared=c.int("shared_expert_intermediate_size"), expert_shared_gate=True)
    return rope(c) | w | more | {"attention.bias": c.flag("qkv_bias"),
                                 "ffn.activation": c.activation()}


def olmoe(c: Config) -> Spec:
    c.refuse("clip_qkv", (None,), "q and k are clamped after their norms, which is not supported")
    bias = c.flag("attention_bias")
    return rope(c) | experts(c, "intermediate_size") | {
        "attention.qk_norm": "full", "attention.bias": bias, "attention.output_bias": bias,
        "ffn.activation": c.activation()}


def granite_moe(c: Config) -> Spec:
    shared = c.get("shared_intermediate_size") or 0
    return granite(c) | experts(c, "intermediate_size", True, shared and c.int(
        "shared_intermediate_size")) | {"ffn.bias": False}


def ernie_moe(c: Config) -> Spec:
    c.refuse("use_bias", (None, False), "biases of experts are not supported")
    c.refuse("moe_norm_min", (1e-12,), "only 1e-12 is supported")
    n, width, shared = (c.int("num_hidden_layers"), c.int("moe_intermediate_size"),
                        c.get("moe_num_shared_experts"))
    first, last, step = (c.get(f"moe_layer_{what}")
                         for what in ("start_index", "end_index", "interval"))
    if any(type(v) is not int for v in (first, last, step, shared)) or step < 1 or shared < 0:
        raise ExportError("config.json: moe_layer_* and moe_num_shared_experts: want whole numbers")
    last = n - 1 if last == -1 else last
    return rope(c) | experts(
        c, renormalised=True, shared=width * shared, expert_choice_bias=True,
        layers=[first <= i <= last and (i + 1) % step == 0 for i in range(n)]) | {
        "rope.pairing": "interleaved", "ffn.activation": c.activation()}


def gpt_oss(c: Config) -> Spec:
    c.refuse("hidden_act", ("silu",), "only silu is supported")
    c.refuse("swiglu_alpha", (1.702,), "only 1.702 is supported")
    bias = c.flag("attention_bias")
    return rope(c) | windows(c, lambda i: i % 2 == 0, keep=True) | experts(
        c, "intermediate_size", True, expert_bias=True) | {
        "attention.bias": bias, "attention.output_bias": bias, "attention.sinks": True,
        "ffn.swiglu_limit": c.num("swiglu_limit")}


def lfm2(c: Config) -> Spec:
    c.refuse("conv_bias", (None, False), "biases of short convolutions are not supported")
    n, types = c.int("num_hidden_layers"), c.get("layer_types")
    if types is None:
        full = c.get("full_attn_idxs")
        types = ["full_attention" if full is None or i in full else "conv" for i in range(n)]
    if not isinstance(types, list) or len(types) != n or set(types) - {"conv", "full_attention"}:
        raise c.bad("layer_types", f"{n} of conv and full_attention")
    width = c.int("intermediate_size")
    if c.flag("block_auto_adjust_ff_dim"):
        width, factor = int(2 * width / 3), c.num("block_ffn_dim_multiplier")
        if factor is not None:
            step = c.int("block_multiple_of")
            width = step * -(-int(factor * width) // step)
    return rope(c) | {
        "attention.qk_norm": "head", "feed_forward_length": width,
        "shortconv.layers": [t == "conv" for t in types] if "conv" in types else None,
        "shortconv.l_cache": c.int("conv_L_cache") if "conv" in types else None}


def lfm2_moe(c: Config) -> Spec:
    c.refuse("routed_scaling_factor", (1.0, None), "only 1 is supported")
    n, dense = c.int("num_hidden_layers"), c.get("num_dense_layers")
    if type(dense) is not int or not 0 <= dense <= n:
        raise c.bad("num_dense_layers", f"0 to {n}")
    return lfm2(c) | experts(c, layers=[i >= dense for i in range(n)], expert_gating_func=2,
                             expert_choice_bias=c.flag("use_expert_bias"))


def latent_rope(c: Config, head: int) -> Spec:
    """Rope of latent attention, and the scale of scores that goes with yarn there."""
    p = c.get("rope_scaling") or c.get("rope_parameters") or {}
    p = Config({**p}, {"rope_type": p.get("type", "default")})
    out, scale = rope_spec(c, c.int("qk_rope_head_dim")), {}
    kind, all_dim, factor = p.get("rope_type"), p.num("mscale_all_dim"), p.num("factor", 1.0)
    if kind == "yarn":  # it may be left out
        factor = out["rope.scaling.factor"]
    if kind != "default" and all_dim and factor > 1:
        scale = {"attention.scale": (0.1 * all_dim * math.log(factor) + 1) ** 2 / head ** 0.5}
    return out | scale


def deepseek_experts(c: Config) -> Spec:
    """Experts of later layers, in groups, and shared ones that are one wider FFN."""
    kind, n = c.get("model_type"), c.int("num_hidden_layers")
    c.refuse("mlp_bias", (None, False), "biases of experts are not supported")
    layers = c.get("mlp_layer_types") if kind == "glm4_moe_lite" else None
    first = 1 if kind == "glm4_moe_lite" else c.get("first_k_dense_replace") or 0
    if type(first) is not int or first < 0:
        raise c.bad("first_k_dense_replace", "0 or more")
    if layers is None:
        layers = ["dense" if i < first else "sparse" for i in range(n)]
    if not isinstance(layers, list) or len(layers) != n or set(layers) - {"dense", "sparse"}:
        raise c.bad("mlp_layer_types", f"{n} of dense and sparse")
    v2, scale = kind == "deepseek_v2", c.num("routed_scaling_factor", 1.0)
    if v2:
        c.refuse("topk_method", ("greedy", "group_limited_greedy"), "not supported")
    grouped = not v2 or c.get("topk_method") == "group_limited_greedy"
    groups = c.int("n_group") if grouped else 1
    return experts(
        c, renormalised=False if v2 else None,  # V2's router does not look at norm_topk_prob
        shared=c.int("n_shared_experts") * c.int("moe_intermediate_size"),
        layers=[kind == "sparse" for kind in layers], expert_gating_func=1 if v2 else 2,
        expert_choice_bias=None if v2 else True,
        expert_weights_scale=scale if scale != 1 else None,
        expert_group_count=groups if groups > 1 else None,
        expert_group_used_count=c.int("topk_group") if groups > 1 else None)


def deepseek(c: Config) -> Spec:
    """DeepSeek-V2 and V3, and GLM-4.7-Flash: latent attention."""
    rank, turning = c.int("kv_lora_rank"), c.int("qk_rope_head_dim")
    head, bias = c.int("qk_nope_head_dim") + turning, c.flag("attention_bias")
    return latent_rope(c, head) | deepseek_experts(c) | {
        "attention.head_count_kv": 1, "attention.key_length": rank + turning,
        "attention.value_length": rank, "attention.kv_lora_rank": rank,
        "attention.q_lora_rank":
            None if c.get("q_lora_rank") is None else c.int("q_lora_rank"),
        "attention.key_length_mla": head, "attention.value_length_mla": c.int("v_head_dim"),
        "attention.bias": bias, "attention.output_bias": bias,
        "rope.pairing":
            "half" if c.get("rope_interleave") is False else "interleaved",
        "ffn.activation": c.activation()}


def glm4_moe(c: Config) -> Spec:
    return rope(c) | deepseek_experts(c) | {
        "attention.bias": c.flag("attention_bias"), "ffn.activation": c.activation(),
        "attention.qk_norm": "head" if c.flag("use_qk_norm") else "none"}


def recurrent_layers(c: Config, types: Any, names: tuple[str, ...]) -> list[bool] | None:
    """Which layers have one of these names; the others have full attention."""
    n = c.int("num_hidden_layers")
    full = {"full_attention", "attention"}
    if not isinstance(types, list) or len(types) != n or \
            any(not isinstance(t, str) or t not in {*names, *full} for t in types):
        raise c.bad("layer_types", f"{n} of {names[0]} and full_attention")
    layers = [t in names for t in types]
    return layers if any(layers) else None


def qwen3_5(c: Config) -> Spec:
    bias, types, step = c.flag("attention_bias"), c.get("layer_types"), c.int(
        "full_attention_interval", 4)
    if types is None:
        types = ["linear_attention" if (i + 1) % step else "full_attention"
                 for i in range(c.int("num_hidden_layers"))]
    layers = recurrent_layers(c, types, ("linear_attention",))
    heads, keys = c.int("linear_num_value_heads"), c.int("linear_num_key_heads")
    if heads % keys:
        raise c.bad("linear_num_value_heads", f"a multiple of {keys}")
    sizes = (c.int("linear_conv_kernel_dim"), heads, keys, c.int("linear_key_head_dim"),
             heads * c.int("linear_value_head_dim"))
    return rope(c) | {
        "attention.qk_norm": "head", "attention.output_gate": True, "attention.bias": bias,
        "attention.output_bias": bias, "ffn.activation": c.activation(),
        "delta_net.layers": layers,
        **({f"ssm.{part}": size for part, size in zip(SSM, sizes)} if layers else {})}


def qwen3_5_moe(c: Config) -> Spec:
    return qwen3_5(c) | experts(c, renormalised=True, expert_shared_gate=True,
                                shared=c.int("shared_expert_intermediate_size"))


def qwen3_moe(c: Config) -> Spec:
    bias = c.flag("attention_bias")
    w = windows(c) if c.flag("use_sliding_window") else {}
    return rope(c) | w | experts(c) | {
        "attention.qk_norm": "head", "attention.bias": bias, "attention.output_bias": bias,
        "ffn.activation": c.activation()}


def qwen(c: Config) -> Spec:
    first = c.get("max_window_layers", 28)
    w = windows(c, lambda i: i >= first) if c.flag("use_sliding_window") else {}
    bias = c.flag("attention_bias")
    rest = {"attention.bias": True} if c.get("model_type") == "qwen2" else \
        {"attention.qk_norm": "head", "attention.bias": bias, "attention.output_bias": bias}
    return rope(c) | w | rest | {"ffn.activation": c.activation()}


def gemma(c: Config) -> Spec:
    c.refuse("use_bidirectional_attention", (None, False),
             "attention to later tokens is not supported")
    bias, kind = c.flag("attention_bias"), c.get("model_type")
    out = {"attention.bias": bias, "attention.output_bias": bias,
           "embedding_scale": c.int("hidden_size") ** 0.5}
    if kind == "gemma":
        # its first releases meant the tanh form
        act = "gelu_tanh" if c.get("hidden_act") == "gelu" else c.activation()
        return rope(c) | out | {"ffn.activation": act}
    scalar = c.num("query_pre_attn_scalar")
    if scalar != c.int("head_dim"):
        out["attention.scale"] = scalar ** -0.5
    out |= {"ffn.activation": c.activation("hidden_activation"), "norm.post": True,
            "final_logit_softcapping": c.num("final_logit_softcapping")}
    if kind == "gemma2":
        cap = {"attn_logit_softcapping": c.num("attn_logit_softcapping")}
        return rope(c) | out | cap | windows(c, lambda i: i % 2 == 0, keep=True)
    c.refuse("attn_logit_softcapping", (None,), "Gemma 3 has no attention soft cap")
    step = c.int("sliding_window_pattern", c.get("_sliding_window_pattern") or 6)
    w = windows(c, lambda i: (i + 1) % step != 0, keep=True)
    if w:
        out |= local_base(c, c.num("rope_local_base_freq", 10000.0))
    return rope(c) | out | w | {"attention.qk_norm": "head"}


def gemma4_layers(c: Config, windowed: list[bool]) -> tuple[list[int], list[int]]:
    """Width of a head and number of key/value heads of each layer.

    Folders on the hub have fields for layers without a window, transformers 5 saves what differs by
    layer."""
    width, kv = c.int("head_dim"), c.int("num_key_value_heads")
    full = {"head_dim": c.int("global_head_dim")}
    if c.flag("attention_k_eq_v") and c.get("num_global_key_value_heads") is not None:
        full["num_key_value_heads"] = c.int("num_global_key_value_heads")
    own = c.get("per_layer_config")
    if own is None:
        own = {str(i): full for i, w in enumerate(windowed) if not w}
    if not isinstance(own, dict) or not all(
            str(i).isdecimal() and isinstance(v, dict) and v.keys() <= {
                "head_dim", "num_key_value_heads"} for i, v in own.items()):
        raise c.bad("per_layer_config", "head_dim and num_key_value_heads by layer")
    layers = [Config(own.get(str(i), {}), {"head_dim": width, "num_key_value_heads": kv})
              for i in range(len(windowed))]
    return [v.int("head_dim") for v in layers], [v.int("num_key_value_heads") for v in layers]


def gemma4_rope(c: Config, kind: str, width: int) -> tuple[float, list[float]]:
    """The base of a layer type, and by what the frequencies of a head's pairs are divided.

    "proportional" turns only a part of the pairs, the others by no visible angle."""
    nested = c.get("rope_parameters") or c.defaults["rope_parameters"]
    if not isinstance(nested, dict) or not isinstance(nested.get(kind), dict):
        raise c.bad("rope_parameters", f"an object for {kind}")
    p = Config(nested[kind], {"rope_type": "default"})
    p.refuse("rope_type", ("default", "proportional"), "only default and proportional are known")
    base, share, factor = (p.num(name, usual) for name, usual in (
        ("rope_theta", 10000.0), ("partial_rotary_factor", 1.0), ("factor", 1.0)))
    if p.get("rope_type") == "default":
        share = factor = 1.0
    turning = int(share * width // 2)
    if not 0 <= turning <= width // 2 or not 0 < factor or not 1 < base or width % 2:
        raise c.bad("rope_parameters", "a base above 1, and a share of an even head_dim")
    return base, [factor] * turning + [1e30] * (width // 2 - turning)


def gemma4(c: Config) -> Spec:
    c.refuse("use_bidirectional_attention", (None, False, "vision"),
             "attention to later tokens is not supported")  # between those of images only: vision
    n, bias = c.int("num_hidden_layers"), c.flag("attention_bias")
    w = windows(c, lambda i: (i + 1) % 6 != 0, keep=True)
    windowed = w.get("attention.sliding_window_pattern") or [False] * n
    windowed[-1] = False  # transformers forces it
    widths, kv = gemma4_layers(c, windowed)
    local = {widths[i] for i in range(n) if windowed[i]} or {widths[-1]}
    if len({widths[i] for i in range(n) if not windowed[i]}) != 1 or len(local) != 1:
        raise ExportError("config.json: head_dim differs within a layer type, which is not "
                          "supported")
    base, divisors = gemma4_rope(c, "full_attention", widths[-1])
    local_width = local.pop()
    local_base, plain = (gemma4_rope(c, "sliding_attention", local_width) if any(windowed)
                         else (base, [1.0]))
    if set(plain) != {1.0}:
        raise ExportError("config.json: scaled rope in the windowed layers is not supported")
    shared, ff = c.get("num_kv_shared_layers") or 0, c.int("intermediate_size")
    if type(shared) is not int or not 0 <= shared < n:
        raise c.bad("num_kv_shared_layers", f"0 to {n - 1}")
    if c.flag("use_double_wide_mlp") and shared:
        ff = [ff * (1 + (i >= n - shared)) for i in range(n)]
    out = experts(c, renormalised=True, expert_beside_ffn=True) \
        if c.flag("enable_moe_block") else {}
    if per_layer := c.get("hidden_size_per_layer_input"):
        per_layer = c.int("hidden_size_per_layer_input")
    return out | w | {
        "attention.bias": bias, "attention.output_bias": bias, "attention.scale": 1.0,
        "attention.head_count_kv": kv[0] if len(set(kv)) == 1 else kv, "feed_forward_length": ff,
        "attention.key_length": widths[-1], "attention.value_length": widths[-1],
        "attention.key_length_swa": local_width, "attention.value_length_swa": local_width,
        "attention.qk_norm": "head", "attention.value_norm": True,
        "attention.keys_as_values": [not v for v in windowed] if c.flag("attention_k_eq_v")
        else None,
        "attention.shared_kv_layers": shared or None, "layer_output_scale": True,
        "embedding_length_per_layer_input": per_layer or None, "norm.post": True,
        "embedding_scale": c.int("hidden_size") ** 0.5,
        "ffn.activation": c.activation("hidden_activation"),
        "final_logit_softcapping": c.num("final_logit_softcapping") or None,
        "rope.freq_base": base, "rope.dimension_count": widths[-1],
        "rope.freq_base_swa": local_base, "rope.dimension_count_swa": local_width,
        "rope_factors": {"rope_freqs.weight": divisors}}


def phi(c: Config) -> Spec:
    qk = {"attention.qk_norm": "head",
          "attention.qk_norm_bias": True} if c.flag("qk_layernorm") else {}
    return rope(c) | LAYER_NORM | UNGATED | ALL_BIAS | qk | {
        "ffn.activation": c.activation(), "residual": "parallel", "residual.shared_norm": True,
        "output_bias": True}


def phi3(c: Config) -> Spec:
    return rope(c) | windows(c) | {"ffn.activation": c.activation()}


def gpt2(c: Config) -> Spec:
    c.refuse("add_cross_attention", (None, False), "cross-attention is not supported")
    dim, n = c.int("hidden_size") // c.int("num_attention_heads"), c.int("num_hidden_layers")
    base = 1.0 if c.get("scale_attn_weights") is False else dim ** -0.5
    scale = None if base != 1.0 else 1.0
    if c.flag("scale_attn_by_inverse_layer_idx"):
        scale = [base / (i + 1) for i in range(n)]
    return mha(c) | LAYER_NORM | UNGATED | ALL_BIAS | {
        "position": "learned", "ffn.activation": c.activation(), "attention.scale": scale}


def gpt_neox(c: Config) -> Spec:
    bias = c.flag("attention_bias")
    return mha(c) | rope(c) | LAYER_NORM | UNGATED | {
        "attention.bias": bias, "attention.output_bias": bias, "ffn.activation": c.activation(),
        "residual": "parallel" if c.flag("use_parallel_residual") else "sequential"}


def gptj(c: Config) -> Spec:
    return mha(c) | LAYER_NORM | UNGATED | {
        "rope.pairing": "interleaved", "rope.dimension_count": c.int("rotary_dim"),
        "output_bias": True,
        "ffn.activation": c.activation(), "residual": "parallel", "residual.shared_norm": True}


def gpt_bigcode(c: Config) -> Spec:
    heads = mha(c)
    return gpt2(c) | heads | {
        "attention.head_count_kv": 1 if c.flag("multi_query") else heads["attention.head_count_kv"]}


def gpt_neo(c: Config) -> Spec:
    n, layers = c.int("num_hidden_layers"), c.get("attention_layers")
    if layers is None:
        layers = [kind for kinds, times in c.get("attention_types") for _ in range(times)
                  for kind in kinds]
    if len(layers) != n or set(layers) - {"global", "local"}:
        raise c.bad("attention_types", f"{n} of global and local")
    window = {} if "local" not in layers else {
        "attention.sliding_window": c.int("window_size"),
        "attention.sliding_window_pattern": [kind == "local" for kind in layers]}
    return mha(c) | LAYER_NORM | UNGATED | window | {
        "position": "learned", "ffn.activation": c.activation(), "attention.scale": 1.0,
        "attention.output_bias": True}


def opt(c: Config) -> Spec:
    before, bias = c.flag("do_layer_norm_before"), c.flag("enable_bias")
    affine, d = c.flag("layer_norm_elementwise_affine"), c.int("hidden_size")
    projected = (c.get("word_embed_proj_dim") or d) != d
    return mha(c) | {
        "norm.type": "layer", "norm.epsilon": 1e-5, "norm.affine": affine, "norm.bias": affine,
        "norm.pre": before, "norm.post": not before, "norm.residual": not before,
        "norm.final": before and not c.flag("_remove_final_layer_norm"),
        "attention.bias": bias, "attention.output_bias": bias, "ffn.bias": bias,
        "ffn.gated": False, "ffn.activation": c.activation(), "position": "learned",
        "position.offset": 2, "tied": c.flag("tie_word_embeddings") and not projected}


def minicpm(c: Config) -> Spec:
    if c.get("num_experts"):
        raise ExportError("config.json: num_experts: MiniCPM with experts is not supported")
    out = llama(c)
    if out.get("rope.scaling.type") == "longrope":
        raise ExportError("config.json: rope_scaling: MiniCPM with longrope is not supported")
    return out | {"embedding_scale": c.num("scale_emb"),
                  "residual_scale": c.num("scale_depth") / c.int("num_hidden_layers") ** 0.5,
                  "logit_scale": c.int("dim_model_base") / c.int("hidden_size")}


def internlm2(c: Config) -> Spec:
    bias = c.flag("bias")
    return rope(c) | {"attention.bias": bias, "attention.output_bias": bias,
                      "ffn.activation": c.activation()}


def starcoder2(c: Config) -> Spec:
    bias = c.flag("use_bias")
    return rope(c) | LAYER_NORM | windows(c) | {
        "attention.bias": bias, "attention.output_bias": bias, "ffn.bias": bias, "ffn.gated": False,
        "ffn.activation": c.activation()}


def stablelm(c: Config) -> Spec:
    parallel = c.flag("use_parallel_residual")
    return rope(c) | LAYER_NORM | {
        "attention.bias": c.flag("use_qkv_bias"),
        "attention.qk_norm": "heads" if c.flag("qk_layernorm") else "none",
        "ffn.activation": c.activation(), "residual": "parallel" if parallel else "sequential",
        "residual.shared_norm": parallel}


def olmo2(c: Config) -> Spec:
    return llama(c) | {"norm.pre": False, "norm.post": True, "attention.qk_norm": "full",
                       "ffn.bias": False}


def olmo3(c: Config) -> Spec:
    w = windows(c, lambda i: (i + 1) % 4 != 0, keep=True)
    return olmo2(c) | w | (local_base(c, c.num("rope_theta", 500000.0)) if w else {})


def olmo(c: Config) -> Spec:
    return llama(c) | {"norm.type": "layer", "norm.affine": False, "norm.epsilon": 1e-5,
                       "ffn.bias": False, "attention.clamp_kqv": c.num("clip_qkv")}


def cohere(c: Config) -> Spec:
    return llama(c) | {
        "norm.type": "layer", "residual": "parallel", "residual.shared_norm": True,
        "rope.pairing": "interleaved", "logit_scale": c.num("logit_scale"), "ffn.bias": False,
        "attention.qk_norm": "heads" if c.flag("use_qk_norm") else "none"}


def no_global_rope(c: Config, w: Spec) -> list[bool]:
    """Only layers with a window have rope."""
    return w.get("attention.sliding_window_pattern") or [False] * c.int("num_hidden_layers")


def cohere2(c: Config) -> Spec:
    step = c.int("sliding_window_pattern", 4)
    c.int("sliding_window")
    w = windows(c, lambda i: (i + 1) % step != 0, keep=True)
    return cohere(c) | w | {"rope.layers": no_global_rope(c, w)}


def exaone4(c: Config) -> Spec:
    step = c.get("sliding_window_pattern")
    if c.get("sliding_window") is not None and c.get("layer_types") is None and (
            type(step) is not int or step < 1):
        raise c.bad("sliding_window_pattern", "a whole number, or layer_types")
    w = windows(c, lambda i: (i + 1) % step != 0, keep=True)
    layers = {} if c.get("sliding_window") is None else {"rope.layers": no_global_rope(c, w)}
    return rope(c) | w | layers | {"norm.pre": False, "norm.post": True,
                                   "attention.qk_norm": "head", "ffn.activation": c.activation()}


def glm4(c: Config) -> Spec:
    return rope(c) | {"rope.pairing": "interleaved", "norm.post": True,
                      "attention.bias": c.flag("attention_bias"), "ffn.activation": c.activation()}


def ernie(c: Config) -> Spec:
    bias = c.flag("use_bias")
    return rope(c) | {"rope.pairing": "interleaved", "attention.bias": bias,
                      "attention.output_bias": bias, "ffn.bias": bias,
                      "ffn.activation": c.activation()}


def seed_oss(c: Config) -> Spec:
    return llama(c) | {"attention.output_bias": c.flag("attention_out_bias")}


def hunyuan(c: Config) -> Spec:
    return llama(c) | {"attention.qk_norm": "head", "attention.qk_norm_after_rope": True,
                       "ffn.bias": False}


def nemotron(c: Config) -> Spec:
    return llama(c) | LAYER_NORM | {"ffn.gated": False}


def arcee(c: Config) -> Spec:
    return llama(c) | {"ffn.gated": False}


def apertus(c: Config) -> Spec:
    return llama(c) | {"attention.qk_norm": "head", "ffn.gated": False, "ffn.bias": False}


def ministral3(c: Config) -> Spec:
    p = c.get("rope_parameters") or c.get("rope_scaling") or {}
    p = Config(p, {})
    original = p.int("original_max_position_embeddings", c.int("max_position_embeddings"))
    return rope(c) | windows(c) | {
        "attention.temperature_scale": p.num("llama_4_scaling_beta"),
        "rope.scaling.original_context_length": original, "ffn.activation": c.activation()}


def smollm3(c: Config) -> Spec:
    n, step = c.int("num_hidden_layers"), c.int("no_rope_layer_interval")
    layers = c.get("no_rope_layers") or [(i + 1) % step != 0 for i in range(n)]
    if not isinstance(layers, list) or len(layers) < n or set(layers) - {0, 1}:
        raise c.bad("no_rope_layers", f"{n} of 0 and 1")
    layers = [bool(v) for v in layers[:n]]
    w = windows(c, lambda i: not layers[i]) if c.flag("use_sliding_window") else {}
    return llama(c) | w | {"rope.layers": layers}


def granite(c: Config) -> Spec:
    logits = c.num("logits_scaling", 1.0)
    if not logits:
        raise c.bad("logits_scaling", "a number other than 0")
    return llama(c) | {"attention.scale": c.num("attention_multiplier", 1.0),
                       "logit_scale": 1 / logits,
                       "embedding_scale": c.num("embedding_multiplier", 1.0),
                       "residual_scale": c.num("residual_multiplier", 1.0)}


def granite_hybrid(c: Config) -> Spec:
    c.refuse("mamba_proj_bias", (None, False), "biases of its projections are not supported")
    limit = c.get("time_step_limit")
    if limit is not None and (not isinstance(limit, list) or len(limit) != 2 or limit[0] != 0
                              or limit[1] not in (math.inf, {"__float__": "Infinity"})):
        raise c.bad("time_step_limit", "no limits")
    types = c.get("layer_types") or c.get("layers_block_type") or \
        ["mamba"] * c.int("num_hidden_layers")
    layers = recurrent_layers(c, types, ("mamba", "linear_attention"))
    inner, heads, groups = (c.int("mamba_expand") * c.int("hidden_size"), c.int("mamba_n_heads"),
                            c.int("mamba_n_groups"))
    if layers and (inner % heads or heads % groups):
        raise c.bad("mamba_n_heads", f"a divisor of {inner} and a multiple of {groups}")
    sizes = (c.int("mamba_d_conv"), heads, groups, c.int("mamba_d_state"), inner)
    shared = c.int("shared_intermediate_size")
    ffn = experts(c, "intermediate_size", True, shared) if c.get("num_experts") else {
        "feed_forward_length": shared}
    return granite(c) | ffn | {
        "ffn.bias": False, "position": "rope" if c.get("position_embedding_type") == "rope"
        else "none", "mamba.layers": layers,
        **({f"ssm.{part}": size for part, size in zip(SSM, sizes)}
           | {"mamba.conv_bias": c.flag("mamba_conv_bias")} if layers else {})}


def falcon(c: Config) -> Spec:
    c.refuse("alibi", (None, False),
             "Falcon's ALiBi (bfloat16 biases scaled by the head width) is not supported")
    new, heads = c.flag("new_decoder_architecture"), c.int("num_attention_heads")
    kv = c.int("num_key_value_heads", heads) if new else 1 if c.flag("multi_query") else heads
    if heads % kv:
        raise c.bad("num_kv_heads", f"a divisor of {heads}")
    parallel = c.flag("parallel_attn")
    norms = c.get("num_ln_in_parallel_attn") or (2 if new else 1)
    if (new and not parallel) or norms not in (1, 2) or (norms == 2 and not new):
        raise ExportError("config.json: this mix of new_decoder_architecture, parallel_attn and "
                          "num_ln_in_parallel_attn has no meaning in transformers")
    bias = c.flag("bias")
    return rope(c) | LAYER_NORM | {
        "attention.bias": bias, "attention.output_bias": bias, "ffn.bias": bias, "ffn.gated": False,
        "attention.head_count_kv": kv, "ffn.activation": c.activation(),
        "residual": "parallel" if parallel else "sequential",
        "residual.shared_norm": parallel and norms == 1}


def bloom(c: Config) -> Spec:
    c.refuse("apply_residual_connection_post_layernorm", (None, False),
             "residuals after the norm are not supported")
    return mha(c) | LAYER_NORM | UNGATED | ALL_BIAS | {
        "norm.embedding": True, "position": "alibi", "attention.max_alibi_bias": 8.0,
        "ffn.activation": "gelu_tanh",
        "feed_forward_length": 4 * c.int("hidden_size")}


def mpt(c: Config) -> Spec:
    a = Config(c.get("attn_config") or {}, {"alibi": True, "attn_type": "multihead_attention"})
    a.refuse("attn_type", ("multihead_attention",), "only multihead_attention is supported")
    for flag in ("qk_ln", "prefix_lm"):
        a.refuse(flag, (None, False), "not supported")
    c.refuse("no_bias", (True,), "MPT with biases is not supported")
    c.refuse("logit_scale", (None,), "not supported")
    c.refuse("norm_type", ("low_precision_layernorm", "layernorm"), "not supported")
    return mha(c) | LAYER_NORM | {
        "norm.bias": False, "ffn.gated": False, "ffn.activation": "gelu",
        "position": "alibi" if a.flag("alibi") else "learned",
        "attention.max_alibi_bias": a.num("alibi_bias_max", 8.0) if a.flag("alibi") else None,
        "attention.clamp_kqv": a.num("clip_qkv") or None,
        "attention.scale": a.num("softmax_scale"),
        "feed_forward_length": c.int("expansion_ratio") * c.int("hidden_size")}


# ---- encoders ------------------------------------------------------------------------------------

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
    return encoder(c) | UNGATED | ALL_BIAS | {
        "norm.pre": False, "norm.post": True, "norm.residual": True, "norm.final": False,
        "position": "learned"}


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
    return rope(c) | encoder(c) | {
        "norm.pre": False, "norm.post": True, "norm.residual": True, "norm.final": False}


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


@dataclass(frozen=True)
class Family:
    """One transformers model_type."""
    # the gguf package's name of it: tensor names and, where CONVENTIONS has it, the file's
    # architecture
    arch: str
    spec: Callable[[Config], Spec]  # what differs from dims() and the defaults
    # a fused query_key_value: "rows" (q, then k, then v), "groups" (heads with their k and v) or
    # "blocks" (four times q, v, k)
    qkv: str = ""
    table: str = ""  # the gguf package's name whose tensor names hold, if it is another one
    gate_up: bool = False  # gate and up are one matrix of a dense FFN
    # experts are stored (in, out), with columns of gate and up in turn, and may be MXFP4
    across: bool = False
    conv1d: bool = False  # weights stored (in, out)
    norm_offset: float = 0.0  # added to norm weights
    names: tuple[tuple[str, str], ...] = ()  # (transformers' name, ours) beyond the gguf package's
    extra_layers: bool = False  # after the last one, to predict further tokens: left out
    # where the config class's default matters
    defaults: dict[str, Any] = field(default_factory=dict)


def defaults(**kw: Any) -> dict[str, Any]:
    return dict(hidden_act="silu", norm_eps=1e-6, max_position_embeddings=2048,
                tie_word_embeddings=False) | kw


GEMMA = dict(tie_word_embeddings=True, head_dim=256, hidden_act="gelu_pytorch_tanh",
             query_pre_attn_scalar=256, hidden_activation="gelu_pytorch_tanh",
             max_position_embeddings=8192, sliding_window=4096, vocab_size=256000)
GEMMA4 = defaults(**GEMMA | dict(max_position_embeddings=131072, vocab_size=262144,
                                 sliding_window=512),
                  num_attention_heads=8, num_key_value_heads=4, hidden_size=2304,
                  intermediate_size=9216, num_hidden_layers=30, global_head_dim=512,
                  hidden_size_per_layer_input=256, rope_parameters={
                      "sliding_attention": {"rope_theta": 1e4},
                      "full_attention": {"rope_type": "proportional", "rope_theta": 1e6,
                                         "partial_rotary_factor": 0.25}})
COHERE = dict(norm_eps=1e-5, tie_word_embeddings=True, max_position_embeddings=8192,
              logit_scale=0.0625)
GPT = dict(hidden_act="gelu_new", norm_eps=1e-5, tie_word_embeddings=True)
QK = (("model.layers.{}.self_attn.q_layernorm", "blk.{}.attn_q_norm"),
      ("model.layers.{}.self_attn.k_layernorm", "blk.{}.attn_k_norm"))
GPT_NEO = tuple((f"transformer.h.{{}}.attn.attention.{theirs}_proj", f"blk.{{}}.attn_{ours}")
                for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "output")))
OPT = (("model.decoder.embed_tokens", "token_embd"),
       ("model.decoder.embed_positions", "position_embd"),
       ("model.decoder.final_layer_norm", "output_norm"),
       ("model.decoder.project_in", "project_in"), ("model.decoder.project_out", "project_out"),
       *((f"model.decoder.layers.{{}}.{theirs}", f"blk.{{}}.{ours}") for theirs, ours in (
           ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"),
           ("self_attn.v_proj", "attn_v"), ("self_attn.out_proj", "attn_output"),
           ("self_attn_layer_norm", "attn_norm"), ("final_layer_norm", "ffn_norm"),
           ("fc1", "ffn_up"), ("fc2", "ffn_down"))))
# of layers without experts, which the gguf package does not know beside others with them
DENSE = tuple((f"model.layers.{{}}.mlp.{part}_proj", f"blk.{{}}.ffn_{part}")
              for part in ("gate", "up", "down"))
GRANITE_ROUTER = (("model.layers.{}.block_sparse_moe.router", "blk.{}.ffn_gate_inp"),
                  ("model.layers.{}.block_sparse_moe.experts.down_proj", "blk.{}.ffn_down_exps"))
AFTER_ATTENTION = (("model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm"),)
QWEN3_5 = defaults(head_dim=256, num_key_value_heads=4, max_position_embeddings=32768,
                   partial_rotary_factor=0.25, linear_conv_kernel_dim=4, linear_key_head_dim=128,
                   linear_value_head_dim=128, linear_num_key_heads=16, linear_num_value_heads=32)
# the dense FFN of a Granite without experts has the name of the shared one
SHARED_MLP = (("model.layers.{}.shared_mlp.output_linear", "blk.{}.ffn_down_shexp"),)
LFM2 = (("model.embedding_norm", "output_norm"),
        *((f"model.layers.{{}}.feed_forward.experts.{w}", f"blk.{{}}.ffn_{part}_exps")
          for w, part in (("w1", "gate"), ("w2", "down"), ("w3", "up"))))
DEEPSEEK = defaults(kv_lora_rank=512, q_lora_rank=1536, qk_rope_head_dim=64, qk_nope_head_dim=128,
                    v_head_dim=128, first_k_dense_replace=0, head_dim=64)
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


BERT_DEFAULTS = defaults(hidden_act="gelu", norm_eps=1e-12, max_position_embeddings=512,
                         type_vocab_size=2, pad_token_id=0, num_hidden_layers=12,
                         num_attention_heads=12, hidden_size=768, intermediate_size=3072)
FAMILIES: dict[str, Family] = {
    "bert": Family("bert", bert, names=encoder_names(("bert.",), "encoder.layer", BERT_LAYER),
                   defaults=BERT_DEFAULTS),
    "electra": Family("bert", bert, names=encoder_names(
        ("electra.",), "encoder.layer", BERT_LAYER), defaults=BERT_DEFAULTS),
    "roberta": Family("bert", roberta, names=encoder_names(
        ("roberta.",), "encoder.layer", BERT_LAYER), defaults=BERT_DEFAULTS | dict(pad_token_id=1)),
    "distilbert": Family("bert", bert, names=encoder_names(
        ("distilbert.",), "transformer.layer", DISTIL_LAYER),
        defaults=BERT_DEFAULTS | dict(type_vocab_size=0)),
    "nomic_bert": Family("nomic-bert", nomic_bert, qkv="rows", names=encoder_names(
        ("bert.",), "encoder.layers", NOMIC_LAYER), defaults=BERT_DEFAULTS | dict(
            hidden_act="silu", max_position_embeddings=2048, rope_theta=1000.0)),
    "modernbert": Family("modern-bert", modern_bert, qkv="rows", gate_up=True, names=encoder_names(
        ("model.",), "layers", MODERN_LAYER), defaults=defaults(
            hidden_act="gelu", norm_eps=1e-5, max_position_embeddings=8192, local_attention=128,
            global_attn_every_n_layers=3, num_hidden_layers=22, num_attention_heads=12,
            hidden_size=768, intermediate_size=1152)),
    "llama": Family("llama", llama, defaults=defaults()),
    "mistral": Family("llama", mistral,
                      defaults=defaults(sliding_window=4096, num_key_value_heads=8,
                                        max_position_embeddings=131072)),
    "qwen2": Family("qwen2", qwen, defaults=defaults(max_position_embeddings=32768)),
    "qwen3": Family("qwen3", qwen, defaults=defaults(max_position_embeddings=32768, head_dim=128)),
    "mixtral": Family("llama", mixtral, defaults=defaults(
        norm_eps=1e-5, num_key_value_heads=8, max_position_embeddings=131072, rope_theta=1e6,
        num_experts=8, num_experts_per_tok=2)),
    "qwen3_moe": Family("qwen3moe", qwen3_moe, names=DENSE, defaults=defaults(
        max_position_embeddings=32768, num_key_value_heads=4, num_experts=128,
        num_experts_per_tok=8, moe_intermediate_size=768)),
    "qwen2_moe": Family("qwen2moe", qwen2_moe, names=DENSE, defaults=defaults(
        max_position_embeddings=32768, num_key_value_heads=16, num_experts=60,
        num_experts_per_tok=4, moe_intermediate_size=1408, shared_expert_intermediate_size=5632,
        max_window_layers=28, sliding_window=4096, qkv_bias=True)),
    "olmoe": Family("olmoe", olmoe, defaults=defaults(
        norm_eps=1e-5, max_position_embeddings=4096, num_experts=64, num_experts_per_tok=8)),
    "granitemoe": Family("granitemoe", granite_moe, names=GRANITE_ROUTER, defaults=defaults(
        num_experts=8, num_experts_per_tok=2)),
    "granitemoeshared": Family("granitemoe", granite_moe, names=GRANITE_ROUTER, defaults=defaults(
        num_experts=8, num_experts_per_tok=2)),
    "deepseek_v2": Family("deepseek2", deepseek, extra_layers=True, defaults=DEEPSEEK | dict(
        n_shared_experts=2, num_experts=64, moe_intermediate_size=1407, topk_method="greedy")),
    "deepseek_v3": Family("deepseek2", deepseek, extra_layers=True, defaults=DEEPSEEK | dict(
        max_position_embeddings=4096, first_k_dense_replace=3, n_shared_experts=1,
        num_experts=256, num_experts_per_tok=8, moe_intermediate_size=2048, n_group=8, topk_group=4,
        routed_scaling_factor=2.5, norm_topk_prob=True)),
    "glm4_moe_lite": Family("deepseek2", deepseek, extra_layers=True, defaults=DEEPSEEK | dict(
        norm_eps=1e-5, max_position_embeddings=202752, q_lora_rank=768, qk_nope_head_dim=192,
        v_head_dim=256, n_shared_experts=1, num_experts=64, num_experts_per_tok=4,
        moe_intermediate_size=1536, n_group=1, topk_group=1, routed_scaling_factor=1.8,
        norm_topk_prob=True)),
    "glm4_moe": Family("glm4moe", glm4_moe, extra_layers=True, names=AFTER_ATTENTION + DENSE,
                       defaults=defaults(
        norm_eps=1e-5, max_position_embeddings=131072, num_key_value_heads=8, n_shared_experts=1,
        partial_rotary_factor=0.5, num_experts=128, num_experts_per_tok=8, n_group=1, topk_group=1,
        moe_intermediate_size=1408, norm_topk_prob=True, first_k_dense_replace=1)),
    "gpt_oss": Family("gpt-oss", gpt_oss, names=AFTER_ATTENTION, across=True, defaults=defaults(
        norm_eps=1e-5, max_position_embeddings=131072, num_key_value_heads=8, head_dim=64,
        sliding_window=128, attention_bias=True, num_experts=128, num_experts_per_tok=4,
        swiglu_alpha=1.702, swiglu_limit=7.0, rope_theta=150000.0,
        rope_parameters={"rope_type": "yarn", "factor": 32.0, "truncate": False,
                         "original_max_position_embeddings": 4096})),
    "ernie4_5_moe": Family("ernie4_5-moe", ernie_moe, names=DENSE, defaults=defaults(
        norm_eps=1e-5, max_position_embeddings=131072, num_key_value_heads=4, rope_theta=500000.0,
        tie_word_embeddings=True, num_experts=64, num_experts_per_tok=6, moe_norm_min=1e-12,
        moe_intermediate_size=1536, moe_num_shared_experts=2, moe_layer_start_index=1,
        moe_layer_end_index=-1, moe_layer_interval=1)),
    "gemma": Family("gemma", gemma, norm_offset=1, defaults=defaults(**GEMMA)),
    "gemma2": Family("gemma2", gemma, norm_offset=1, defaults=defaults(
                         **GEMMA, num_attention_heads=8, num_key_value_heads=4, hidden_size=2304,
                         intermediate_size=9216, num_hidden_layers=26, attn_logit_softcapping=50.0,
                         final_logit_softcapping=30.0)),
    "gemma3_text": Family(
        "gemma3", gemma, norm_offset=1, defaults=defaults(
            **GEMMA | dict(max_position_embeddings=131072, rope_theta=1e6, vocab_size=262208),
            num_attention_heads=8, num_key_value_heads=4, hidden_size=2304, intermediate_size=9216,
            num_hidden_layers=26)),
    "gemma4_text": Family("gemma4", gemma4, defaults=GEMMA4),
    "gemma4_unified_text": Family("gemma4", gemma4, defaults=GEMMA4 | dict(
        max_position_embeddings=262144, sliding_window=1024, hidden_size_per_layer_input=None)),
    "phi": Family("phi2", phi, names=QK, defaults=defaults(hidden_act="gelu_new", norm_eps=1e-5,
                                                           partial_rotary_factor=0.5)),
    "phi3": Family("phi3", phi3, qkv="rows", gate_up=True, defaults=defaults(
                       norm_eps=1e-5, max_position_embeddings=4096, partial_rotary_factor=1.0)),
    "gpt2": Family("gpt2", gpt2, qkv="rows", conv1d=True,
                   defaults=defaults(**GPT, max_position_embeddings=1024)),
    "gpt_neox": Family("gptneox", gpt_neox, qkv="groups", defaults=defaults(
                           hidden_act="gelu", norm_eps=1e-5, partial_rotary_factor=0.25,
                           use_parallel_residual=True, attention_bias=True)),
    "gptj": Family("gptj", gptj,
                   defaults=defaults(**GPT | dict(tie_word_embeddings=False), rotary_dim=64)),
    "codegen": Family("gptj", gptj, qkv="blocks", names=(
        ("transformer.h.{}.attn.qkv_proj", "blk.{}.attn_qkv"),),
        defaults=defaults(**GPT | dict(tie_word_embeddings=False), rotary_dim=64)),
    "gpt_bigcode": Family("starcoder", gpt_bigcode, qkv="groups", defaults=defaults(
        **GPT | dict(hidden_act="gelu_pytorch_tanh"), max_position_embeddings=1024,
        multi_query=True)),
    "gpt_neo": Family("gpt", gpt_neo, table="gpt2", names=GPT_NEO, defaults=defaults(
        **GPT, window_size=256, attention_types=[[["global", "local"], 12]])),
    "opt": Family("gpt", opt, table="gpt2", names=OPT, defaults=defaults(
        hidden_act="relu", do_layer_norm_before=True, enable_bias=True,
        layer_norm_elementwise_affine=True, tie_word_embeddings=True)),
    "minicpm": Family("minicpm", minicpm, defaults=defaults(tie_word_embeddings=True, scale_emb=1,
                                                            scale_depth=1, dim_model_base=1)),
    "internlm2": Family("internlm2", internlm2, qkv="groups", names=(
        ("model.layers.{}.attention.wqkv", "blk.{}.attn_qkv"),), defaults=defaults(bias=True)),
    "starcoder2": Family(
        "starcoder2", starcoder2,
        defaults=defaults(hidden_act="gelu_pytorch_tanh", norm_eps=1e-5, num_key_value_heads=2,
                          max_position_embeddings=4096, use_bias=True, tie_word_embeddings=True)),
    "stablelm": Family("stablelm", stablelm,
                       defaults=defaults(norm_eps=1e-5, partial_rotary_factor=0.25,
                                         max_position_embeddings=4096)),
    "olmo2": Family("olmo2", olmo2, defaults=defaults(norm_eps=1e-5)),
    "olmo3": Family("olmo2", olmo3, defaults=defaults(
        norm_eps=1e-5, rope_theta=500000.0, sliding_window=4096)),
    "olmo": Family("olmo", olmo, defaults=defaults()),
    "cohere": Family("command-r", cohere, defaults=defaults(
        **COHERE | dict(rope_theta=500000.0))),
    "cohere2": Family("cohere2", cohere2, defaults=defaults(**COHERE, sliding_window=4096)),
    "glm4": Family("glm4", glm4, gate_up=True, defaults=defaults(
        norm_eps=0.00000015625, num_key_value_heads=2, head_dim=128, attention_bias=True,
        max_position_embeddings=131072, partial_rotary_factor=0.5)),
    "exaone4": Family("exaone4", exaone4, defaults=defaults(
        norm_eps=1e-5, num_key_value_heads=32, sliding_window=4096, sliding_window_pattern=4)),
    "ernie4_5": Family("ernie4_5", ernie, defaults=defaults(
        norm_eps=1e-5, num_key_value_heads=2, head_dim=128, rope_theta=500000.0,
        max_position_embeddings=131072, tie_word_embeddings=True)),
    "seed_oss": Family("seed_oss", seed_oss, names=AFTER_ATTENTION, defaults=defaults(
        num_key_value_heads=8, head_dim=128, attention_bias=True, max_position_embeddings=524288)),
    "hunyuan_v1_dense": Family("hunyuan-dense", hunyuan, defaults=defaults(norm_eps=1e-5)),
    "nemotron": Family("nemotron", nemotron, norm_offset=1, defaults=defaults(
        norm_eps=1e-5, hidden_act="relu2", max_position_embeddings=4096,
        partial_rotary_factor=0.5)),
    "arcee": Family("arcee", arcee, defaults=defaults(
        norm_eps=1e-5, hidden_act="relu2", max_position_embeddings=4096)),
    "apertus": Family("apertus", apertus, defaults=defaults(
        norm_eps=1e-5, hidden_act="xielu", max_position_embeddings=65536, rope_theta=12e6,
        rope_parameters={"rope_type": "llama3", "rope_theta": 12e6, "factor": 8.0,
                         "original_max_position_embeddings": 8192, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0})),
    "ministral3": Family("mistral3", ministral3, defaults=defaults(
        norm_eps=1e-5, num_key_value_heads=8, head_dim=128, max_position_embeddings=262144,
        rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "mscale": 1.0,
                         "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384,
                         "llama_4_scaling_beta": 0.1})),
    "smollm3": Family("smollm3", smollm3, defaults=defaults(
                          num_key_value_heads=4, rope_theta=2e6, no_rope_layer_interval=4,
                          max_position_embeddings=32768, tie_word_embeddings=True)),
    "granite": Family("granite", granite, defaults=defaults()),
    "lfm2": Family("lfm2", lfm2, names=LFM2, defaults=defaults(
        norm_eps=1e-5, max_position_embeddings=128000, num_key_value_heads=8, rope_theta=1e6,
        tie_word_embeddings=True, conv_L_cache=3, block_auto_adjust_ff_dim=True,
        block_ffn_dim_multiplier=1.0, block_multiple_of=256)),
    "lfm2_moe": Family("lfm2moe", lfm2_moe, names=LFM2, defaults=defaults(
        norm_eps=1e-5, max_position_embeddings=128000, num_key_value_heads=8, rope_theta=1e6,
        tie_word_embeddings=True, conv_L_cache=3, moe_intermediate_size=1792, num_dense_layers=2,
        num_experts=32, num_experts_per_tok=4, use_expert_bias=True, norm_topk_prob=True,
        routed_scaling_factor=1.0)),
    "qwen3_5_text": Family("qwen35", qwen3_5, norm_offset=1, names=AFTER_ATTENTION,
                           defaults=QWEN3_5),
    "qwen3_5_moe_text": Family(
        "qwen35moe", qwen3_5_moe, norm_offset=1, names=AFTER_ATTENTION, defaults=QWEN3_5 | dict(
            num_key_value_heads=2, num_experts=256, num_experts_per_tok=8,
            moe_intermediate_size=512, shared_expert_intermediate_size=512)),
    "granitemoehybrid": Family(
        "granitehybrid", granite_hybrid, names=(*GRANITE_ROUTER, *SHARED_MLP), defaults=defaults(
            num_experts=8, num_experts_per_tok=2, shared_intermediate_size=1024, mamba_n_heads=128,
            mamba_n_groups=1, mamba_d_state=256, mamba_d_conv=4, mamba_expand=2,
            mamba_conv_bias=True)),
    "falcon": Family("falcon", falcon, qkv="groups",
                     names=(("transformer.h.{}.post_attention_layernorm", "blk.{}.ffn_norm"),),
                     defaults=defaults(hidden_act="gelu", norm_eps=1e-5, multi_query=True,
                                       parallel_attn=True, tie_word_embeddings=True)),
    "bloom": Family("bloom", bloom, qkv="groups",
                    defaults=defaults(norm_eps=1e-5, tie_word_embeddings=True)),
    "mpt": Family("mpt", mpt, qkv="rows",
                  defaults=defaults(norm_eps=1e-5, expansion_ratio=4, no_bias=True,
                                    norm_type="low_precision_layernorm", tie_word_embeddings=True)),
}
# one of several tensors that are one of ours: a norm of each head, a matrix of each expert
NUMBERED = re.compile(r"(.*layernorm)\.norms\.(\d+)(\.weight)|(.*\.experts)\.(\d+)(\.\w+\.weight)")
# gate's rows, then up's, of all experts (transformers 5, Granite) or of the shared one
GATE_UP = re.compile(
    r".*\.layers\.(\d+)\.(?:(.*)\.)?(experts\.gate_up_proj(?:_bias)?|input_linear\.weight)")
NUMBERS = re.compile(r".*\.layers\.(\d+)\.mlp\.act_fn\.(\w+)")  # of Apertus's activation
# heads of encoders: of masked tokens, the next sentence, classes, spans
HEADS = re.compile(r"(^|\.)(cls|pooler|lm_head|predictions|vocab_\w+|head|decoder|classifier|"
                   r"pre_classifier|qa_outputs|discriminator_predictions|generator_predictions|"
                   r"generator_lm_head)(\.|$)")
OTHER_PARTS = re.compile(r"(^|\.)(vision_tower|multi_modal_projector|vision_model|audio_tower|"
                         r"embed_vision|embed_audio|visual|mtp|"
                         r"mtp_(block|emb_norm|hidden_norm|linear_proj))\.")  # mtp_: Ernie


def hf_model(folder: Path, tokenizer: Path | None) -> Model:
    notes: list[str] = []
    if what := adapter(folder):
        if not (folder / "config.json").is_file() or not has_weights(folder):
            raise ExportError(
                f"{folder}: is {what}, not a whole model: merge it into its base first "
                "(peft: merge_and_unload(), then save_pretrained())")
        notes.append(f"adapter_config.json is {what}: not applied to the folder's own weights")
    data = read_json(folder / "config.json")
    if isinstance(data.get("text_config"), dict):  # Gemma 3 with its image tower
        tied = not str(data.get("model_type")).startswith("qwen3_5")  # where nothing says it
        data = {"tie_word_embeddings": data.get("tie_word_embeddings", tied)} | \
            data["text_config"] | {"_outer": data.get("model_type")}
        data.setdefault("model_type", str(data["_outer"]) + "_text")
    kind = data.get("model_type")
    kind = {"RefinedWebModel": "falcon", "RefinedWeb": "falcon",
            "stablelm_epoch": "stablelm"}.get(str(kind), kind)
    if kind not in FAMILIES:
        raise ExportError(f"config.json: model_type {short(kind)} is not supported (known: "
                          f"{', '.join(FAMILIES)})")
    family, packed = FAMILIES[kind], data.get("quantization_config")
    if packed is not None and not (family.across and isinstance(packed, dict)
                                   and packed.get("quant_method") == "mxfp4"):
        raise ExportError("config.json: quantization_config: quantised "
                          "checkpoints are not supported")
    c = Config(data | {"model_type": kind, "_pooling": sentence_pooling(folder)}, family.defaults)
    try:
        spec = gpt_spec(**dims(c) | family.spec(c))
    except (TypeError, AttributeError, KeyError, ValueError, OverflowError, ZeroDivisionError) as e:
        raise ExportError(f"config.json: a field has an unexpected type or value ({e})") from e
    source = folder_tensors(folder, notes)
    if spec["ffn.activation"] == "xielu":
        read_xielu(spec, source)
    recipes, unused = hf_recipes(family, spec, source)
    check_shapes(spec, recipes, source)
    vocab = read_vocab(tokenizer or folder, folder, spec["vocab_size"], c)
    arch = family.arch
    if arch == "granitehybrid" and not spec["mamba.layers"]:  # Granite 4's without Mamba
        arch = "granitemoe" if spec["expert_count"] else "granite"
    return Model(spec, recipes, source, vocab, arch, str(folder.resolve().name), unused,
                 notes)


def read_xielu(spec: Spec, source: Tensors) -> None:
    """The numbers of each layer's activation, which are tensors there."""
    found: dict[str, dict[int, float]] = {part: {} for part in XIELU}
    for name in source.names():
        m = NUMBERS.fullmatch(name)
        if m and m[2] in found and math.prod(source.meta(name).shape) == 1:
            found[m[2]][int(m[1])] = float(source.load(name).float().reshape(()))
    for part, values in found.items():
        if sorted(values) != list(range(spec["block_count"])):
            raise ExportError(f"tensors mlp.act_fn.{part}: want a number for each layer")
        spec[f"xielu.{part}"] = [values[i] for i in sorted(values)]


def tile_values(spec: Spec, found: dict[str, Recipe]) -> None:
    """Value heads of gated delta nets in llama.cpp's order, head i with key head i % keys."""
    taps, heads, keys, width, inner = (spec[f"ssm.{part}"] for part in SSM)
    of_values = {"attn_qkv.weight": 2 * keys * width, "ssm_conv1d.weight": 2 * keys * width,
                 "attn_gate.weight": 0, "ssm_beta.weight": 0, "ssm_alpha.weight": 0,
                 "ssm_dt.bias": 0, "ssm_a": 0}
    for name in found:
        part = name.split(".", 2)[-1]
        if part in of_values and heads != keys:
            found[name] = found[name].then(partial(
                tile_heads, keys=keys, heads=heads, from_row=of_values[part]))
        if part == "ssm_out.weight" and heads != keys:
            found[name] = found[name].then(partial(tile_heads, keys=keys, heads=heads, dim=1))


def hf_recipes(family: Family, spec: Spec, source: Tensors) -> tuple[dict[str, Recipe], list[str]]:
    """Match the checkpoint's tensor names with those that `spec` needs.

    Returns recipes and the names not used."""
    known = family.table or family.arch
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == known)
    table = gguf.get_tensor_name_map(arch, spec["block_count"])
    for theirs, ours in (("lm_head", "output"), *family.names):
        for i in range(spec["block_count"]):
            table.mapping[theirs.format(i)] = (gguf.MODEL_TENSOR.ATTN_NORM, ours.format(i))
    needed, found, unused = gpt_tensors(spec), {}, []
    scales = {name for name in source.names() if family.across and name.endswith("_scales")}
    numbered: dict[str, dict[int, str]] = {}

    def ours(name: str) -> str | None:
        if name.endswith(("experts.down_proj", ".sinks", ".layer_scalar")):  # transformers 5
            name += ".weight"
        name = re.sub(r"experts\.down_proj_bias$", "experts.down_proj.bias", name)
        name = re.sub(r"(gate\.)?moe_statics\.e_score_correction_bias$",  # Ernie
                      "moe_statics.e_score_correction.bias", name)
        name = re.sub(r"e_score_correction_bias$", "e_score_correction.bias", name)  # DeepSeek
        name = re.sub(r"router\.scale$", "router.proj.scale", name)  # Gemma 4
        name = re.sub(r"router\.per_expert_scale$", "experts.down_proj.scale", name)
        name = re.sub(r"\.expert_bias$", ".expert_bias.bias", name)  # LFM2
        name = re.sub(r"\.dt_bias$", ".dt_proj.bias", name)  # of gated delta nets and Mamba
        bare = re.search(r"\.(A_log|D)$", name) is not None
        stem, _, suffix = (f"{name}." if bare else name).rpartition(".")
        stem = re.sub(r"^(model\.)?language_model\.(model\.)?", "model.",
                      stem).replace("model.lm_head", "lm_head")
        bases = ("model.", "transformer.", "gpt_neox.")
        for spelling in (stem, stem.removeprefix("transformer."), *(base + stem for base in bases)):
            hit = table.get_name(spelling)
            if hit and (bare or suffix in ("weight", "bias", "scale")):
                return hit if bare else f"{hit}.{suffix}"
        return None

    for name in source.names():
        if name in scales or (spec["xielu.eps"] and NUMBERS.fullmatch(name)):
            continue
        plain = name.removesuffix("_blocks")
        whole = Recipe((name,))
        if f"{plain}_scales" in scales:
            whole, name = Recipe((name, f"{plain}_scales"), from_mxfp4, packed=True), plain
        beyond = re.match(r"model\.layers\.(\d+)\.", name) if family.extra_layers else None
        head = spec["attention.causal"] is False and HEADS.search(name)
        if BUFFERS.search(name) or OTHER_PARTS.search(name) or head or (
                beyond and int(beyond[1]) >= spec["block_count"]):
            unused.append(name)
        elif m := NUMBERED.fullmatch(name):
            stem, number, rest = (part for part in m.groups() if part is not None)
            numbered.setdefault(stem + rest, {})[int(number)] = name
        elif m := GATE_UP.fullmatch(name):
            kind = "shexp" if str(m[2]).endswith("shared_mlp") else "exps"
            suffix = "bias" if m[3].endswith("bias") else "weight"
            half = alternate if family.across else half_rows
            for which, part in enumerate(("gate", "up")):
                found[f"blk.{m[1]}.ffn_{part}_{kind}.{suffix}"] = whole.then(
                    partial(half, which=which))
        elif (target := ours(name)) is None:
            raise ExportError(f"tensor {short(name)}: its meaning is not known")
        elif target in found:
            raise ExportError(f"tensors {short(name)} and "
                              f"{short(found[target].sources[0])} mean the same")
        else:
            found[target] = whole
    for name, parts in numbered.items():
        if sorted(parts) != list(range(len(parts))) or (target := ours(name)) is None:
            what = "experts" if ".experts." in name else "norms of some heads"
            raise ExportError(f"tensor {short(name)}: {what} are missing")
        if target in found:
            raise ExportError(f"tensors {short(parts[0])} and {short(found[target].sources[0])} "
                              "mean the same")
        found[target] = Recipe(tuple(parts[i] for i in range(len(parts))),
                               lambda *ts: torch.stack(ts))

    if family.across:
        for name, recipe in found.items():
            if name.endswith("_exps.weight"):
                found[name] = recipe.then(lambda t: t.mT)
    for name, recipe in found.items():  # vectors that are matrices of one row there
        if re.search(r"exp_probs_b\.bias$|ffn_gate_inp_shexp\.weight$", name):
            found[name] = recipe.then(lambda t: t.squeeze(0))
        if name.endswith(("shortconv.conv.weight", "ssm_conv1d.weight")):  # one input channel each
            found[name] = recipe.then(lambda t: t.squeeze(1))
        if name.endswith(".ssm_a"):
            found[name] = recipe.then(lambda t: -t.float().exp())
    if spec["delta_net.layers"]:
        tile_values(spec, found)
    if spec["mamba.layers"]:
        for name, shape in needed.items():  # the same numbers in a matrix
            if name in found and name.endswith((".ssm_a", ".ssm_d", ".ssm_norm.weight")):
                found[name] = found[name].then(partial(torch.reshape, shape=shape))
    if family.arch == "granitehybrid" and not spec["expert_count"]:
        found = {n.replace("_shexp.", "."): r for n, r in found.items()}
    if family.conv1d:
        for name, recipe in found.items():
            if re.search(r"(attn_qkv|attn_output|ffn_up|ffn_down)\.weight$", name):
                found[name] = recipe.then(lambda t: t.T)
    if spec["position"] == "learned" and (embd := found.get("position_embd.weight")):
        rows = spec["context_length"] + spec["position.offset"]
        extra_rows = source.meta(embd.sources[0]).shape[0] - rows
        if spec["attention.causal"] is False and extra_rows > 0:  # RoBERTa
            found["position_embd.weight"] = embd.then(lambda t: t[extra_rows:])
    if family.norm_offset:
        for name, recipe in found.items():
            if name.endswith("norm.weight") and "ssm_norm" not in name:
                found[name] = recipe.then(lambda t: t.float() + family.norm_offset)
    if spec["norm.residual"]:  # the same norms in other places
        found = {n.replace("attn_norm", "post_attention_norm").replace("ffn_norm", "post_ffw_norm"):
                 r for n, r in found.items()}
    if "project_in.weight" in found:  # OPT 350M: embeddings of another width
        embd = found.pop("token_embd.weight")
        head = found.pop("output.weight", embd)
        found["token_embd.weight"] = product(embd, found.pop("project_in.weight"), True)
        found["output.weight"] = product(head, found.pop("project_out.weight"), False)
    # there attn_norm feeds the FFN
    if family.arch == "falcon" and any("attn_norm_2" in name for name in found):
        found = {re.sub(r"attn_norm\b", "ffn_norm", n).replace("attn_norm_2", "attn_norm"): r
                 for n, r in found.items()}
    without = [n for n in found if (m := re.match(r"blk\.(\d+)\.attn_[kv](_norm)?\.", n))
               and not has_kv(spec, int(m[1]))]  # which some checkpoints have all the same
    unused += [source for n in without for source in found.pop(n).sources]
    h, kv, ff = (spec["attention.head_count"], spec["attention.head_count_kv"],
                 spec["feed_forward_length"])
    kd, vd = spec["attention.key_length"], spec["attention.value_length"]
    for name in list(found):
        if family.qkv and ".attn_qkv." in name:
            recipe = found.pop(name)
            for which, part in enumerate("qkv"):
                op = {"rows": partial(split_rows, sizes=[h * kd, kv * kd, kv * vd], which=which),
                      "groups": partial(split_groups, kv=kv, per_kv=h // kv, dim=kd, which=which),
                      "blocks": partial(split_blocks, which=which)}[family.qkv]
                found[name.replace("attn_qkv", f"attn_{part}")] = recipe.then(op)
        if name.endswith("attn_kv_b.weight"):
            recipe = found.pop(name)
            key = spec["attention.key_length_mla"] - kd + spec["attention.kv_lora_rank"]
            for which, part in enumerate("kv"):
                found[name.replace("kv_b", f"{part}_b")] = recipe.then(
                    partial(latent_part, heads=h, key=key, which=which))
        if family.gate_up and name.endswith("ffn_up.weight"):
            recipe = found.pop(name)
            for which, part in enumerate(("ffn_gate", "ffn_up")):
                found[name.replace("ffn_up", part)] = recipe.then(
                    partial(split_rows, sizes=[ff, ff], which=which))
    if spec["tied"] and "output.weight" in found:
        head, embd = found.pop("output.weight").sources[0], found["token_embd.weight"].sources[0]
        if (source.meta(head).shape != source.meta(embd).shape
                or not torch.equal(source.load(head), source.load(embd))):
            raise ExportError(f"tensor {short(head)} differs from the embedding, but "
                              "tie_word_embeddings is true")
        unused.append(head)
    found |= {name: Recipe((), partial(torch.tensor, v))
              for name, v in spec["rope_factors"].items()}
    if missing := [name for name in needed if name not in found]:
        raise ExportError(f"{len(missing)} tensors are missing, first {missing[0]}")
    if extra := [name for name in found if name not in needed]:
        raise ExportError(f"{len(extra)} tensors have no place in this configuration, first "
                          f"{short(found[extra[0]].sources[0])} ({extra[0]})")
    return found, unused
