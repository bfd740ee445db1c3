"""What llama.cpp's architectures imply of a model, one row each, and whether a Spec is one of them.

A model that fits is written with that architecture's keys and tensors, so that other engines open
it. What does not fit is export.py's to write as `gpt`."""
from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable

from exporting.config import short
from exporting.spec import (ALL_BIAS, GPT_KEYS, LAYER_NORM, POST_RESIDUAL, SSM, UNGATED, XIELU,
                            Model, Recipe, Spec, change_pairing, concat)

ANY, SET = object(), object()  # the tensors or a key say it; and it must not be None
ROPE_SCALING = ("none", "linear", "yarn")


@dataclass(frozen=True)
class Convention:
    """What a llama.cpp architecture implies of a Spec, and how it spells the rest.

    What gpt_spec() takes as default need not be said."""
    # Spec key -> value, ANY, SET, a tuple of values, or a function of the Spec that gives the value
    implies: dict[str, Any]
    pairing: str = "half"
    fused: tuple[str, ...] = ()  # qkv, gate_up, gate_up_exps: in one tensor
    square: bool = False  # n_heads * head_dim must be dim
    latent: bool = False  # keys and values may differ in width
    tied: str = "any"  # "must", or "copy": a tied output is written out
    factors: tuple[str, ...] = ()  # rope factor tensors it reads
    keys: Callable[[Spec], Spec] = lambda s: {}  # keys of its own
    names: tuple[tuple[str, str], ...] = ()  # pattern in a tensor's name, and what it is there


def every(n: int, count: int) -> list[bool]:
    """False for each n-th layer."""
    return [(i + 1) % n != 0 for i in range(count)]


def gemma_scale(layers_27b: int) -> Callable[[Spec], float | None]:
    """The 27B models, known by their number of layers, scale by dim / heads.

    The others scale by the width of a head."""
    return lambda s: (None if s["block_count"] != layers_27b else
                      (s["embedding_length"] // s["attention.head_count"]) ** -0.5)


def keys_of(*names: str) -> Callable[[Spec], Spec]:
    return lambda s: {k: s[k] for k in names}


WINDOW = ("attention.sliding_window", "attention.sliding_window_pattern")
window_keys = keys_of(WINDOW[0])


def local_rope(s: Spec) -> list[bool] | None:
    """Where some layers have a window, the others have no rope."""
    return s["attention.sliding_window_pattern"]


GRANITE = ("attention.bias", "attention.output_bias", "attention.scale", "embedding_scale",
           "residual_scale", "logit_scale")


def granite_keys(s: Spec) -> Spec:
    return {"attention.scale": s["attention.scale"], "embedding_scale": s["embedding_scale"],
            "residual_scale": s["residual_scale"], "logit_scale": 1 / s["logit_scale"]}


def residual_key(s: Spec) -> Spec:
    return {"use_parallel_residual": s["residual"] == "parallel"}


def expert_keys(*names: str) -> Callable[[Spec], Spec]:
    """The keys of experts: their number, and what else an architecture reads."""
    names = ("expert_count", "expert_used_count", *names)
    return lambda s: {k: s[k] for k in names if s["expert_count"]}


def experts(renormalised: bool, own_width: bool = True, optional: bool = False) -> dict[str, Any]:
    """What an architecture with experts in every layer implies.

    `own_width`: a key says how wide they are, else they are as wide as a dense FFN. `optional`:
    there may be no experts."""
    def when(value: Callable[[Spec], Any]) -> Callable[[Spec], Any]:
        return lambda s: value(s) if s["expert_count"] else None
    number = ANY if optional else SET
    return {"expert_count": number, "expert_used_count": number,
            "expert_weights_norm": when(lambda s: renormalised),
            "expert_feed_forward_length":
                SET if own_width else when(lambda s: s["feed_forward_length"])}


def leading_dense(s: Spec) -> list[bool] | None:
    """Layers without experts come first."""
    layers = s["expert_layers"]
    return layers and [i >= layers.index(True) for i in range(len(layers))]


def leading_dense_key(s: Spec) -> Spec:
    return {"leading_dense_block_count": (s["expert_layers"] or [True]).index(True)}


def latent_scale(s: Spec) -> float | None:
    """By what yarn with mscale_all_dim multiplies scores is free, and nothing else."""
    return s["attention.scale"] if s["rope.scaling.type"] == "yarn" else None


def latent_yarn(s: Spec) -> float | None:
    """Where scores are multiplied, cos and sin are not.

    mscale is mscale_all_dim in such files."""
    if s["attention.scale"] is None:
        return None
    return 1 / (0.1 * math.log(s["rope.scaling.factor"]) + 1)


def deepseek_keys(s: Spec) -> Spec:
    """Keys of experts in groups, beside shared ones that are counted."""
    shared, width = s["expert_shared_feed_forward_length"], s["expert_feed_forward_length"]
    return leading_dense_key(s) | expert_keys(
        "expert_feed_forward_length", "expert_gating_func", "expert_weights_norm",
        "expert_group_count", "expert_group_used_count", "expert_weights_scale")(s) | {
        "expert_shared_count": (shared or 0) // (width or 1)}


def latent_keys(s: Spec) -> Spec:
    scale, yarn = s["attention.scale"], {}
    if scale is not None:
        root = math.sqrt(scale * math.sqrt(s["attention.key_length_mla"]))
        yarn = {"rope.scaling.attn_factor": None, "rope.scaling.yarn_log_multiplier":
                (root - 1) / math.log(s["rope.scaling.factor"])}
    return yarn | deepseek_keys(s) | keys_of(
        "attention.kv_lora_rank", "attention.q_lora_rank", "attention.key_length_mla",
        "attention.value_length_mla")(s)


def headless(layers: str, *names: str) -> Callable[[Spec], Spec]:
    """Keys where the recurrent layers are those without key/value heads."""
    def keys(s: Spec) -> Spec:
        heads = s["attention.head_count_kv"]
        return {"attention.head_count_kv": [0 if yes else heads for yes in s[layers]]} | \
            keys_of(*names)(s)
    return keys


short_conv_keys = headless("shortconv.layers", "shortconv.l_cache")
SSM_KEYS = [f"ssm.{part}" for part in SSM]


def qwen35_keys(s: Spec) -> Spec:
    layers = s["delta_net.layers"]
    interval = (n for n in range(1, len(layers) + 1) if layers == every(n, len(layers)))
    return keys_of(*SSM_KEYS)(s) | {
        "attention.recurrent_layers": layers, "full_attention_interval": next(interval, None),
        "rope.dimension_sections": [11, 11, 10, 0]}  # of all Qwen3.5; no matter in a text


def granitehybrid_keys(s: Spec) -> Spec:
    return granite_keys(s) | headless("mamba.layers", *SSM_KEYS)(s) | \
        expert_keys("expert_shared_feed_forward_length")(s) | {
        "rope.scaling.finetuned": s["position"] == "rope"}


def lfm2moe_keys(s: Spec) -> Spec:
    return short_conv_keys(s) | expert_keys("expert_feed_forward_length", "expert_gating_func")(s) \
        | leading_dense_key(s)


def ernie_keys(s: Spec) -> Spec:
    shared, width = s["expert_shared_feed_forward_length"], s["expert_feed_forward_length"]
    return expert_keys("expert_feed_forward_length", "expert_shared_feed_forward_length")(s) | {
        "interleave_moe_layer_step": 1, "expert_shared_count": (shared or 0) // width} | \
        leading_dense_key(s)


def gemma4_sharing(s: Spec) -> int | None:
    """llama.cpp shares the last two layers that have keys: a windowed one, then another."""
    shared, pattern = s["attention.shared_kv_layers"], s["attention.sliding_window_pattern"] or []
    own = s["block_count"] - (shared or 0)
    return shared if own >= 2 and pattern[own - 2:own] == [True, False] else None


def gemma4_keys(s: Spec) -> Spec:
    # llama.cpp wants the first two, and caps at 30 where the last one is absent
    usual = {"attention.shared_kv_layers": 0, "embedding_length_per_layer_input": 0,
             "final_logit_softcapping": 0.0}
    return {k: s[k] or v for k, v in usual.items()} | keys_of(
        *WINDOW, "attention.key_length_swa", "attention.value_length_swa",
        "rope.dimension_count_swa", "rope.freq_base_swa")(s) | \
        expert_keys("expert_feed_forward_length")(s)


POOLING = ("attention.causal", "pooling_type")
ENCODER = {"norm.type": "layer", "norm.bias": True, "norm.embedding": True, "token_types": ANY,
           "attention.causal": False, "pooling_type": ANY, "tied": True}
POST_NAMES = ((r"post_attention_norm", "attn_output_norm"), (r"post_ffw_norm", "layer_output_norm"))
GEMMA_IMPLIES = {"embedding_scale": lambda s: s["embedding_length"] ** 0.5,
                 "ffn.activation": "gelu_tanh"}
LAYERED = LAYER_NORM | UNGATED
FFN_NORM = ((r"\.ffn_norm\.", ".post_attention_norm."),)
COHERE = {"norm.type": "layer", "residual": "parallel", "residual.shared_norm": True,
          "logit_scale": ANY}
XIELU_KEYS = [f"xielu.{part}" for part in XIELU]
YARN_BETAS = ("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow")
PARTIAL = {"rope.dimension_count": ANY}
DEEPSEEK = {"expert_layers": leading_dense,
            **{k: SET for k in ("expert_count", "expert_used_count", "expert_feed_forward_length",
                                "expert_shared_feed_forward_length")},
            **{k: ANY for k in ("expert_gating_func", "expert_weights_norm", "expert_choice_bias",
                                "expert_group_count", "expert_group_used_count",
                                "expert_weights_scale")}}
LFM2_NORM = ((r"^output_norm\.", "token_embd_norm."),)
QWEN35: dict[str, Any] = PARTIAL | {k: SET for k in SSM_KEYS} | {
    "attention.qk_norm": "head", "attention.output_gate": True, "delta_net.layers": SET,
    "ssm.inner_size": lambda s: (s["ssm.state_size"] or 0) * (s["ssm.time_step_rank"] or 0)}
CONVENTIONS: dict[str, Convention] = {
    "llama": Convention(
        {"attention.bias": ANY, "attention.output_bias": ANY, "ffn.bias": ANY}
        | experts(True, own_width=False, optional=True), "interleaved",
        factors=("rope_freqs.weight",), keys=expert_keys()),
    "qwen2": Convention({"attention.bias": True}, square=True),
    "qwen3": Convention({"attention.qk_norm": "head"}),
    "qwen3moe": Convention({"attention.qk_norm": "head"} | experts(True),
                           keys=expert_keys("expert_feed_forward_length")),
    "qwen2moe": Convention({"attention.bias": True, "expert_shared_gate": True,
                            "expert_shared_feed_forward_length": SET} | experts(False),
                           square=True, tied="copy",
                           keys=expert_keys("expert_feed_forward_length",
                                            "expert_shared_feed_forward_length")),
    "gemma": Convention(GEMMA_IMPLIES, tied="must"),
    "gemma2": Convention(GEMMA_IMPLIES | {
        "norm.post": True, "attention.scale": gemma_scale(46), "attention.sliding_window": ANY,
        "attention.sliding_window_pattern": lambda s: every(2, s["block_count"]),
        "attn_logit_softcapping": SET, "final_logit_softcapping": SET}, tied="must",
        keys=keys_of(WINDOW[0], "attn_logit_softcapping", "final_logit_softcapping")),
    "gemma3": Convention(GEMMA_IMPLIES | {
        "norm.post": True, "attention.qk_norm": "head", "attention.scale": gemma_scale(62),
        "attention.sliding_window": ANY,
        "attention.sliding_window_pattern": lambda s: every(6, s["block_count"]),
        "rope.freq_base_swa": ANY, "final_logit_softcapping": ANY},
        keys=keys_of(WINDOW[0], "rope.freq_base_swa", "final_logit_softcapping")),
    "bert": Convention(ENCODER | POST_RESIDUAL | ALL_BIAS | UNGATED | {
        "position": "learned", "ffn.activation": "gelu"}, square=True, keys=keys_of(*POOLING),
        names=POST_NAMES),
    "nomic-bert": Convention(ENCODER | POST_RESIDUAL, fused=("qkv",), square=True,
                             keys=keys_of(*POOLING), names=POST_NAMES),
    "modern-bert": Convention(ENCODER | {
        "ffn.activation": "gelu", "norm.bias": False, "norm.plain_first": True,
        "attention.sliding_window": SET, "rope.freq_base_swa": ANY,
        "attention.sliding_window_pattern": lambda s: [i % 3 > 0
                                                       for i in range(s["block_count"])]},
        fused=("qkv", "gate_up"), square=True,
        keys=keys_of(*POOLING, WINDOW[0], "rope.freq_base_swa")),
    "gemma4": Convention(GEMMA_IMPLIES | experts(True, optional=True, own_width=True) | {
        "norm.post": True, "attention.qk_norm": "head", "attention.value_norm": True,
        "attention.scale": 1.0, "attention.keys_as_values": ANY, "layer_output_scale": True,
        "attention.sliding_window": SET, "attention.sliding_window_pattern": SET,
        "attention.key_length_swa": SET,
        "attention.value_length_swa": lambda s: s["attention.key_length_swa"],
        "rope.dimension_count_swa": lambda s: s["attention.key_length_swa"],
        "rope.freq_base_swa": SET, "final_logit_softcapping": ANY,
        "attention.shared_kv_layers": gemma4_sharing, "embedding_length_per_layer_input": ANY,
        "expert_feed_forward_length": ANY,
        "expert_beside_ffn": lambda s: True if s["expert_count"] else None},
        fused=("gate_up_exps",), factors=("rope_freqs.weight",), keys=gemma4_keys),
    "phi2": Convention(LAYERED | ALL_BIAS | PARTIAL | {
        "ffn.activation": "gelu_tanh", "residual": "parallel", "residual.shared_norm": True,
        "output_bias": True}, square=True, tied="copy"),
    "phi3": Convention(
        PARTIAL | {"rope.scaling.type": (*ROPE_SCALING, "longrope")}, fused=("qkv", "gate_up"),
        square=True, factors=("rope_factors_long.weight", "rope_factors_short.weight"),
        keys=lambda s: {"attention.sliding_window": 0}),
    "gpt2": Convention(
        LAYERED | ALL_BIAS | {"ffn.activation": "gelu_tanh", "position": "learned"},
        fused=("qkv",), square=True),
    "gptneox": Convention(
        LAYERED | ALL_BIAS | PARTIAL | {"ffn.activation": "gelu", "residual": ANY},
        fused=("qkv",), square=True, tied="copy", keys=residual_key),
    "starcoder2": Convention(LAYERED | ALL_BIAS | {"ffn.activation": "gelu_tanh"}, square=True),
    "stablelm": Convention({
        "norm.type": "layer", "norm.bias": True, "attention.bias": ANY, "residual": ANY,
        "residual.shared_norm": lambda s: s["residual"] == "parallel",
        "attention.qk_norm": ("none", "heads")} | PARTIAL,
        square=True, tied="copy", keys=residual_key),
    "olmo2": Convention({"norm.pre": False, "norm.post": True, "attention.qk_norm": "full",
                         "rope.freq_base_swa": ANY} | {k: ANY for k in WINDOW},
                        square=True, tied="copy", keys=keys_of(*WINDOW, "rope.freq_base_swa")),
    "olmoe": Convention({"attention.qk_norm": "full"} | experts(False, own_width=False),
                        square=True, tied="copy", keys=expert_keys()),
    "smollm3": Convention({"rope.layers": lambda s: every(4, s["block_count"])}, "interleaved"),
    "granite": Convention({k: ANY for k in ("ffn.bias", *GRANITE)}, "interleaved",
                          factors=("rope_freqs.weight",), keys=granite_keys),
    "granitemoe": Convention(
        {k: ANY for k in ("expert_shared_feed_forward_length", *GRANITE)}
        | experts(True, own_width=False), "interleaved", factors=("rope_freqs.weight",),
        keys=lambda s: granite_keys(s) | expert_keys("expert_shared_feed_forward_length")(s)),
    "ernie4_5-moe": Convention(
        {"expert_choice_bias": True, "expert_shared_feed_forward_length": ANY,
         "expert_layers": leading_dense} | experts(True), "interleaved", keys=ernie_keys),
    "minicpm": Convention({k: ANY for k in ("embedding_scale", "residual_scale", "logit_scale")},
                          "interleaved",
                          keys=lambda s: granite_keys(s) | {"attention.scale": None}),
    "internlm2": Convention({}, "interleaved", square=True, tied="copy"),
    "starcoder": Convention(
        LAYERED | ALL_BIAS | {"ffn.activation": "gelu_tanh", "position": "learned"},
        fused=("qkv",), square=True),
    "ernie4_5": Convention({"attention.bias": ANY, "attention.output_bias": ANY}, "interleaved"),
    "command-r": Convention(COHERE | {
        "attention.qk_norm": lambda s: "heads" if s["block_count"] >= 64 else "none"},
        "interleaved", square=True, tied="must", keys=keys_of("logit_scale")),
    "cohere2": Convention(COHERE | {
        "attention.sliding_window": SET, "rope.layers": local_rope,
        "attention.sliding_window_pattern": lambda s: every(4, s["block_count"])},
        "interleaved", square=True, tied="must",
        keys=keys_of("logit_scale", "attention.sliding_window")),
    "glm4": Convention({"norm.post": True, "attention.bias": ANY} | PARTIAL, "interleaved",
                       fused=("gate_up",)),
    # llama.cpp knows the windows of the 32B model, by its number of layers
    "exaone4": Convention({
        "norm.pre": False, "norm.post": True, "attention.qk_norm": "head",
        "rope.layers": local_rope,
        **{k: lambda s, k=k: s[k] if s["block_count"] == 64 else None for k in WINDOW}},
        square=True, factors=("rope_freqs.weight",), keys=keys_of(*WINDOW)),
    "seed_oss": Convention({"attention.bias": ANY}, names=FFN_NORM),
    "hunyuan-dense": Convention({"attention.qk_norm": "head",
                                 "attention.qk_norm_after_rope": True}),
    "olmo": Convention({"norm.type": "layer", "norm.affine": False, "attention.clamp_kqv": ANY},
                       "interleaved", square=True, keys=keys_of("attention.clamp_kqv")),
    "nemotron": Convention(LAYER_NORM | PARTIAL | {
        "attention.bias": ANY, "attention.output_bias": ANY, "ffn.bias": ANY, "ffn.gated": False,
        "ffn.activation": "relu2"}, square=True, tied="copy"),
    "arcee": Convention({"ffn.gated": False, "ffn.activation": "relu2"}, "interleaved",
                        factors=("rope_freqs.weight",)),
    "apertus": Convention({
        "attention.qk_norm": "head", "attention.bias": ANY, "attention.output_bias": ANY,
        "ffn.gated": False, "ffn.activation": "xielu"} | {k: ANY for k in XIELU_KEYS},
        tied="copy", factors=("rope_freqs.weight",), keys=keys_of(*XIELU_KEYS)),
    "mistral3": Convention({"attention.temperature_scale": ANY} | {k: ANY for k in YARN_BETAS},
                           "interleaved",
                           keys=keys_of("attention.temperature_scale", *YARN_BETAS)),
    "gpt-oss": Convention(
        {"attention.bias": True, "attention.output_bias": True, "attention.sinks": True,
         "expert_bias": True, "ffn.swiglu_limit": 7.0, "attention.sliding_window": SET,
         "attention.sliding_window_pattern": lambda s: every(2, s["block_count"]),
         "rope.scaling.yarn_truncate":
             lambda s: False if s["rope.scaling.type"] == "yarn" else None}
        | experts(True), tied="copy",
        keys=lambda s: window_keys(s) | expert_keys("expert_feed_forward_length")(s),
        names=FFN_NORM),
    "lfm2": Convention(
        {"attention.qk_norm": "head", "shortconv.layers": SET, "shortconv.l_cache": SET},
        square=True, keys=short_conv_keys, names=LFM2_NORM),
    "lfm2moe": Convention(
        {"attention.qk_norm": "head", "shortconv.layers": SET, "shortconv.l_cache": SET,
         "expert_gating_func": 2, "expert_choice_bias": True, "expert_layers": leading_dense}
        | experts(True), square=True, keys=lfm2moe_keys, names=LFM2_NORM),
    "deepseek2": Convention(
        {"attention.kv_lora_rank": SET, "attention.q_lora_rank": ANY,
         "attention.key_length_mla": SET, "attention.value_length_mla": SET,
         "attention.scale": latent_scale, "rope.pairing": "interleaved",
         "rope.dimension_count":
             lambda s: s["attention.key_length"] - s["attention.kv_lora_rank"],
         "rope.scaling.attn_factor": latent_yarn}
        | DEEPSEEK, "interleaved", latent=True, keys=latent_keys),
    "glm4moe": Convention(
        {"attention.bias": ANY, "attention.qk_norm": ("none", "head")} | PARTIAL | DEEPSEEK
        | {"expert_gating_func": 2, "expert_choice_bias": True}, keys=deepseek_keys,
        names=FFN_NORM),
    "qwen35": Convention(QWEN35, keys=qwen35_keys, names=FFN_NORM),
    "qwen35moe": Convention(
        QWEN35 | {"expert_shared_gate": True, "expert_shared_feed_forward_length": SET}
        | experts(True), names=FFN_NORM,
        keys=lambda s: qwen35_keys(s) | expert_keys(
            "expert_feed_forward_length", "expert_shared_feed_forward_length")(s)),
    "granitehybrid": Convention(
        {k: ANY for k in ("expert_shared_feed_forward_length", "mamba.conv_bias", *GRANITE)}
        | {k: SET for k in SSM_KEYS} | experts(True, own_width=False, optional=True) | {
            "mamba.layers": SET, "position": ("rope", "none"),
            "ssm.inner_size": lambda s: 2 * s["embedding_length"]},
        "interleaved", keys=granitehybrid_keys),
    "falcon": Convention(LAYERED | {
        "ffn.bias": False, "ffn.activation": "gelu", "residual": "parallel",
        "residual.shared_norm": ANY}, fused=("qkv",), square=True),
    "bloom": Convention(LAYERED | ALL_BIAS | {
        "ffn.activation": "gelu_tanh", "norm.embedding": True, "position": "alibi",
        "attention.max_alibi_bias": 8.0}, fused=("qkv",), square=True),
    "mpt": Convention({
        "norm.type": "layer", "ffn.gated": False, "ffn.activation": "gelu",
        "position": ("alibi", "learned"), "attention.max_alibi_bias": ANY,
        "attention.clamp_kqv": ANY}, fused=("qkv",), square=True,
        keys=lambda s: {"attention.max_alibi_bias": s["attention.max_alibi_bias"] or 0.0,
                        "attention.clamp_kqv": s["attention.clamp_kqv"]}),
}
SIZES = ("context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size",
         "attention.head_count", "attention.head_count_kv", "attention.key_length",
         "attention.value_length")
ROPE_KEYS = ("rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor",
             "rope.scaling.original_context_length", "rope.scaling.attn_factor")


def misfit(conv: Convention, s: Spec) -> str | None:
    """The first thing about a Spec that a convention cannot express, or None."""
    free = {*SIZES, *ROPE_KEYS, "context_limit", "norm.epsilon", "rope.pairing", "tied"}
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
    if (kd != vd and not conv.latent) or (conv.square and h * kd != s["embedding_length"]):
        return f"attention.key_length = {kd} with value_length = {vd}"
    if conv.tied == "must" and not s["tied"]:
        return "tied = False"
    return next((name for name in s["rope_factors"] if name not in conv.factors), None)


# tensors that are one in files: their names, its name, and the dimension along which they lie
FUSED = {"qkv": (("attn_q", "attn_k", "attn_v"), "attn_qkv", 0),
         "gate_up": (("ffn_gate", "ffn_up"), "ffn_up", 0),
         "gate_up_exps": (("ffn_gate_exps", "ffn_up_exps"), "ffn_gate_up_exps", 1)}


def conventional(model: Model, conv: Convention) -> tuple[Spec, dict[str, Recipe]]:
    """Keys (without the architecture's prefix) and recipes in llama.cpp's convention."""
    s, out = model.spec, dict(model.recipes)
    norm = "attention.layer_norm_rms_epsilon" if s["norm.type"] == "rms" else \
        "attention.layer_norm_epsilon"
    keys = {k: s[k] for k in (*SIZES, "context_limit")} | {norm: s["norm.epsilon"]}
    if s["position"] == "rope":
        keys |= {k: s[k] for k in ROPE_KEYS if not (k == "rope.scaling.type" and s[k] == "none")}
    # llama.cpp's converter turns Granite's rows where there is no rope, too
    if s["rope.pairing"] != conv.pairing and (s["position"] == "rope" or s["mamba.layers"]):
        width = s["attention.key_length"]
        op = partial(change_pairing, dim=width, rot=s["rope.dimension_count"] or width,
                     to=conv.pairing)
        for name in out:
            if re.search(r"\.attn_[qk]\.|\.attn_[qk]_norm\.", name):
                out[name] = out[name].then(op)
    if s["tied"] and conv.tied == "copy":
        out["output.weight"] = out["token_embd.weight"]
    for i in range(s["block_count"]):
        b = f"blk.{i}."
        for suffix in ("weight", "bias"):
            for parts, whole, dim in (FUSED[what] for what in conv.fused):
                if f"{b}{parts[0]}.{suffix}" in out:
                    out[f"{b}{whole}.{suffix}"] = concat(
                        [out.pop(f"{b}{part}.{suffix}") for part in parts], dim)
    if model.arch == "falcon" and not s["residual.shared_norm"]:
        out = {re.sub(r"ffn_norm\b", "attn_norm", re.sub(r"attn_norm\b", "attn_norm_2", n)): r
               for n, r in out.items()}
    for pattern, name in conv.names:
        out = {re.sub(pattern, name, n): r for n, r in out.items()}
    return keys | conv.keys(s), out
