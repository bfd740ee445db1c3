"""Parts of a Spec that several families have: rope, windows, experts, heads."""
from __future__ import annotations

import math
from typing import Any, Callable

from exporting.config import Config, ExportError, short
from exporting.spec import Spec, dims


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
