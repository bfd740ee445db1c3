"""What a config.json of a decoder means: a function a family.

Each returns what differs from dims() and the defaults of a Spec. families.py says which model_type
of transformers has which."""
from __future__ import annotations

import math
from typing import Any

from exporting.config import Config, ExportError
from exporting.parts import experts, local_base, mha, rope, rope_spec, windows
from exporting.spec import ALL_BIAS, LAYER_NORM, SSM, UNGATED, Spec


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
