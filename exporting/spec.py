"""How a checkpoint is described: a Spec, and Recipes for its tensors.

A Spec says all of a model in the keys of the architecture `gpt` (docs/gpt-keys.md); a Recipe makes
one of the model's tensors of tensors of the checkpoint.

Readers (huggingface.py, checkpoints.py) make a Model; export.py writes it. What a family's
configuration or a llama.cpp architecture means is not known here."""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Callable

import torch
from gguf import GGUFValueType as V
from torch import Tensor

from exporting.config import LIMITS, Config, ExportError, short
from exporting.vocab import Vocab
from exporting.weights import Tensors

Spec = dict[str, Any]

# ---- the architecture gpt: its keys and its tensors ----------------------------------------------

U32, F32, BOOL, STR = V.UINT32, V.FLOAT32, V.BOOL, V.STRING
REQUIRED = object()
XIELU = ("alpha_p", "alpha_n", "beta", "eps")  # of each layer; keys without "gpt."
SSM = ("conv_kernel", "time_step_rank", "group_count", "state_size", "inner_size")
# key without "gpt.": type (a list value is an array of it), default
GPT_KEYS: dict[str, tuple[V, Any]] = {
    "context_length": (U32, REQUIRED), "context_limit": (BOOL, None),
    "embedding_length": (U32, REQUIRED), "block_count": (U32, REQUIRED),
    "feed_forward_length": (U32, REQUIRED), "vocab_size": (U32, REQUIRED),
    "attention.head_count": (U32, REQUIRED), "attention.head_count_kv": (U32, REQUIRED),
    "attention.key_length": (U32, REQUIRED), "attention.value_length": (U32, REQUIRED),
    "attention.key_length_swa": (U32, None), "attention.value_length_swa": (U32, None),
    "rope.dimension_count_swa": (U32, None), "attention.shared_kv_layers": (U32, None),
    "norm.type": (STR, "rms"), "norm.epsilon": (F32, REQUIRED), "norm.affine": (BOOL, True),
    "norm.bias": (BOOL, False),
    "norm.pre": (BOOL, True), "norm.post": (BOOL, False), "norm.residual": (BOOL, False),
    "norm.embedding": (BOOL, False), "norm.final": (BOOL, True),
    "attention.qk_norm": (STR, "none"), "attention.qk_norm_bias": (BOOL, False),
    "attention.qk_norm_after_rope": (BOOL, False), "attention.temperature_scale": (F32, None),
    "attention.bias": (BOOL, False), "attention.output_bias": (BOOL, False),
    "ffn.bias": (BOOL, False), "ffn.gated": (BOOL, True), "ffn.activation": (STR, "silu"),
    "residual": (STR, "sequential"), "residual.shared_norm": (BOOL, False),
    "residual_scale": (F32, 1.0), "embedding_scale": (F32, 1.0), "logit_scale": (F32, 1.0),
    "attention.values_in_keys": (BOOL, False),
    "attention.scale": (F32, None), "attn_logit_softcapping": (F32, None),
    "final_logit_softcapping": (F32, None),
    "attention.clamp_kqv": (F32, None), "attention.max_alibi_bias": (F32, None),
    "position": (STR, "rope"), "position.offset": (U32, 0), "position.reach": (U32, None),
    "rope.pairing": (STR, "half"), "rope.dimension_count": (U32, None),
    "rope.freq_base": (F32, 10000.0),
    "rope.freq_base_swa": (F32, None), "rope.layers": (BOOL, None),
    "rope.scaling.type": (STR, "none"),
    "rope.scaling.factor": (F32, None), "rope.scaling.original_context_length": (U32, None),
    "rope.scaling.attn_factor": (F32, None), "rope.scaling.yarn_beta_fast": (F32, None),
    "rope.scaling.yarn_beta_slow": (F32, None),
    "attention.sliding_window": (U32, None), "attention.sliding_window_pattern": (BOOL, None),
    "output_bias": (BOOL, False), "tied": (BOOL, False),
    **{f"xielu.{part}": (F32, None) for part in XIELU},  # lists
    "expert_count": (U32, None), "expert_used_count": (U32, None),
    "expert_feed_forward_length": (U32, None), "expert_shared_feed_forward_length": (U32, None),
    "expert_shared_gate": (BOOL, None), "expert_choice_bias": (BOOL, None),
    "expert_weights_norm": (BOOL, None), "expert_layers": (BOOL, None),
    "expert_bias": (BOOL, None), "attention.sinks": (BOOL, None), "ffn.swiglu_limit": (F32, None),
    "rope.scaling.yarn_truncate": (BOOL, None),
    "attention.value_norm": (BOOL, None), "attention.keys_as_values": (BOOL, None),
    "layer_output_scale": (BOOL, None), "embedding_length_per_layer_input": (U32, None),
    "expert_beside_ffn": (BOOL, None),
    "shortconv.layers": (BOOL, None), "shortconv.l_cache": (U32, None),
    "delta_net.layers": (BOOL, None), "mamba.layers": (BOOL, None),
    "mamba.conv_bias": (BOOL, None), **{f"ssm.{part}": (U32, None) for part in SSM},
    "attention.output_gate": (BOOL, None),
    "expert_gating_func": (U32, None),
    "expert_group_count": (U32, None), "expert_group_used_count": (U32, None),
    "expert_weights_scale": (F32, None),
    "attention.kv_lora_rank": (U32, None), "attention.q_lora_rank": (U32, None),
    "attention.key_length_mla": (U32, None), "attention.value_length_mla": (U32, None),
    "attention.causal": (BOOL, None), "pooling_type": (U32, None), "token_types": (U32, None),
    "norm.plain_first": (BOOL, None),
}


def gpt_spec(**kw: Any) -> Spec:
    """A full Spec: defaults of GPT_KEYS overlaid with `kw` (keys spelled with __ for dots)."""
    spec = {key: default for key, (_, default) in GPT_KEYS.items()}
    spec["rope_factors"] = {}  # tensor name -> rope.dimension_count / 2 divisors; not a key
    spec.update({key.replace("__", "."): value for key, value in kw.items()})
    assert spec.keys() == GPT_KEYS.keys() | {"rope_factors"}, spec.keys() - GPT_KEYS.keys()
    missing = [key for key, (_, default) in GPT_KEYS.items()
               if default is REQUIRED and spec[key] in (None, REQUIRED)]
    if missing:
        raise ExportError(f"the configuration has no {missing[0]}")
    for key, (name, most) in LIMITS.items():  # sizes that a family computes, too
        for value in spec[key] if isinstance(spec[key], list) else [spec[key]]:
            if value is not None and not 1 <= value <= most:
                raise ExportError(f"the configuration's {name}: got {value}, want 1 to {most}")
    if spec["rope.dimension_count"] is None and spec["position"] == "rope":
        spec["rope.dimension_count"] = spec["attention.key_length"]
    return spec


def of_layer(s: Spec, key: str, layer: int) -> Any:
    """The value of a key that may be a list with one for each layer."""
    return s[key][layer] if isinstance(s[key], list) else s[key]


def is_windowed(s: Spec, layer: int) -> bool:
    pattern = s["attention.sliding_window_pattern"]
    return bool(s["attention.sliding_window"]) and (not pattern or pattern[layer])


def head_widths(s: Spec, layer: int) -> tuple[int, int]:
    """Widths of a head's keys and values in a layer."""
    kd, vd = s["attention.key_length"], s["attention.value_length"]
    if is_windowed(s, layer):
        kd, vd = s["attention.key_length_swa"] or kd, s["attention.value_length_swa"] or vd
    return kd, vd


def has_kv(s: Spec, layer: int) -> bool:
    """Whether a layer has keys and values of its own."""
    return layer < s["block_count"] - (s["attention.shared_kv_layers"] or 0)


def mixer(s: Spec, layer: int) -> str:
    """What a layer has instead of attention, "" for nothing."""
    kinds = ("shortconv", "delta_net", "mamba")
    return next((k for k in kinds if s[f"{k}.layers"] and s[f"{k}.layers"][layer]), "")


def mixer_tensors(s: Spec, kind: str) -> dict[str, tuple[int, ...]]:
    """The tensors of a recurrent layer, without "blk.N."."""
    d = s["embedding_length"]
    if kind == "shortconv":
        return {"shortconv.in_proj.weight": (3 * d, d),
                "shortconv.conv.weight": (d, s["shortconv.l_cache"]),
                "shortconv.out_proj.weight": (d, d)}
    taps, heads, groups, width, inner = (s[f"ssm.{part}"] for part in SSM)
    conv = inner + 2 * groups * width
    out: dict[str, tuple[int, ...]] = {
        "ssm_conv1d.weight": (conv, taps), "ssm_dt.bias": (heads,), "ssm_out.weight": (d, inner)}
    if kind == "delta_net":
        return out | {
            "attn_qkv.weight": (conv, d), "attn_gate.weight": (inner, d), "ssm_a": (heads,),
            "ssm_alpha.weight": (heads, d), "ssm_beta.weight": (heads, d),
            "ssm_norm.weight": (inner // heads,)}
    if s["mamba.conv_bias"]:
        out["ssm_conv1d.bias"] = (conv,)
    return out | {"ssm_in.weight": (inner + conv + heads, d), "ssm_a": (heads, 1),
                  "ssm_d": (heads, 1), "ssm_norm.weight": (groups, inner // groups)}


def has_experts(s: Spec, layer: int) -> bool:
    return bool(s["expert_count"]) and (not s["expert_layers"] or s["expert_layers"][layer])


def expert_tensors(s: Spec) -> dict[str, tuple[int, ...]]:
    """Those of the FFN of a layer with experts, without "blk.N."."""
    d, n, ff = s["embedding_length"], s["expert_count"], s["expert_feed_forward_length"]
    out: dict[str, tuple[int, ...]] = {"ffn_gate_inp.weight": (n, d)}
    if s["expert_bias"]:
        out["ffn_gate_inp.bias"] = (n,)
    if s["expert_choice_bias"]:
        out["exp_probs_b.bias"] = (n,)
    shared = s["expert_shared_feed_forward_length"]
    for part in ("gate", "up") if s["ffn.gated"] else ("up",):
        out[f"ffn_{part}_exps.weight"] = (n, ff, d)
        if s["expert_bias"]:
            out[f"ffn_{part}_exps.bias"] = (n, ff)
        if shared:
            out[f"ffn_{part}_shexp.weight"] = (shared, d)
    out["ffn_down_exps.weight"] = (n, d, ff)
    if s["expert_bias"]:
        out["ffn_down_exps.bias"] = (n, d)
    if shared:
        out["ffn_down_shexp.weight"] = (d, shared)
    if shared and s["expert_shared_gate"]:
        out["ffn_gate_inp_shexp.weight"] = (d,)
    if s["expert_beside_ffn"]:
        out |= {"ffn_gate_inp.scale": (d,), "ffn_down_exps.scale": (n,)}
    return out


def gpt_tensors(s: Spec) -> dict[str, tuple[int, ...]]:
    """Exactly the tensors that a Spec needs, with their shapes, outermost dimension first."""
    d, n_vocab, h = s["embedding_length"], s["vocab_size"], s["attention.head_count"]
    per_layer = s["embedding_length_per_layer_input"]
    out: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, d)}

    def norm(name: str, shape: tuple[int, ...] = (d,), bias: bool | None = None) -> None:
        if s["norm.affine"]:
            out[name + ".weight"] = shape
            if s["norm.bias"] if bias is None else bias:
                out[name + ".bias"] = (math.prod(shape),)

    def linear(name: str, rows: int, cols: int, bias: bool) -> None:
        out[name + ".weight"] = (rows, cols)
        if bias:
            out[name + ".bias"] = (rows,)

    def latents(b: str) -> None:
        rank, q_rank = s["attention.kv_lora_rank"], s["attention.q_lora_rank"]
        kd, vd = s["attention.key_length_mla"], s["attention.value_length_mla"]
        turning = s["attention.key_length"] - rank
        if q_rank:
            linear(b + "attn_q_a", q_rank, d, s["attention.bias"])
            norm(b + "attn_q_a_norm", (q_rank,))
        linear(b + ("attn_q_b" if q_rank else "attn_q"), h * kd, q_rank or d, False)
        linear(b + "attn_kv_a_mqa", rank + turning, d, s["attention.bias"])
        norm(b + "attn_kv_a_norm", (rank,))
        out[b + "attn_k_b.weight"] = (h, rank, kd - turning)
        out[b + "attn_v_b.weight"] = (h, vd, rank)

    def heads(b: str, i: int) -> None:
        kd, vd = head_widths(s, i)
        kv = of_layer(s, "attention.head_count_kv", i)
        gates = 2 if s["attention.output_gate"] else 1
        linear(b + "attn_q", gates * h * kd, d, s["attention.bias"])
        if has_kv(s, i):
            linear(b + "attn_k", kv * kd, d, s["attention.bias"])
            if not (s["attention.values_in_keys"] or of_layer(s, "attention.keys_as_values", i)):
                linear(b + "attn_v", kv * vd, d, s["attention.bias"])
        if s["attention.qk_norm"] != "none":
            for name, heads in (("attn_q_norm", h), ("attn_k_norm", kv))[:1 + has_kv(s, i)]:
                shape = {"head": (kd,), "heads": (heads, kd),
                         "full": (heads * kd,)}[s["attention.qk_norm"]]
                norm(b + name, shape, s["attention.qk_norm_bias"])

    def attention(b: str, i: int) -> None:
        latent = s["attention.kv_lora_rank"]
        vd = s["attention.value_length_mla"] if latent else head_widths(s, i)[1]
        if latent:
            latents(b)
        else:
            heads(b, i)
        if s["position"] == "relative":
            out[b + "attn_rel_b.weight"] = (h, 2 * s["position.reach"] + 1)
        if s["attention.sinks"]:
            out[b + "attn_sinks.weight"] = (h,)
        linear(b + "attn_output", d, h * vd, s["attention.output_bias"])

    if s["position"] == "learned":
        out["position_embd.weight"] = (s["context_length"] + s["position.offset"], d)
    if s["token_types"]:
        out["token_types.weight"] = (s["token_types"], d)
    if s["norm.embedding"]:
        norm("token_embd_norm")
    if per_layer:
        width = s["block_count"] * per_layer
        out |= {"per_layer_token_embd.weight": (n_vocab, width),
                "per_layer_model_proj.weight": (width, d)}
        norm("per_layer_proj_norm", (per_layer,))
    for i in range(s["block_count"]):
        b, ff = f"blk.{i}.", of_layer(s, "feed_forward_length", i)
        beside = has_experts(s, i) and s["expert_beside_ffn"]
        if s["norm.pre"] and not (s["norm.plain_first"] and i == 0):
            norm(b + "attn_norm")
        if kind := mixer(s, i):
            out |= {b + name: shape for name, shape in mixer_tensors(s, kind).items()}
        else:
            attention(b, i)
        if s["norm.post"]:
            norm(b + "post_attention_norm")
        if s["norm.pre"] and not s["residual.shared_norm"]:
            norm(b + "ffn_norm")
        if has_experts(s, i):
            out |= {b + name: shape for name, shape in expert_tensors(s).items()}
        if not has_experts(s, i) or beside:
            for name in ("ffn_gate", "ffn_up") if s["ffn.gated"] else ("ffn_up",):
                linear(b + name, ff, d, s["ffn.bias"])
            linear(b + "ffn_down", d, ff, s["ffn.bias"])
        if s["norm.post"]:
            norm(b + "post_ffw_norm")
        for name in ("post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2") if beside else ():
            norm(b + name)
        if per_layer:
            out |= {b + "inp_gate.weight": (per_layer, d), b + "proj.weight": (d, per_layer)}
            norm(b + "post_norm")
        if s["layer_output_scale"]:
            out[b + "layer_output_scale.weight"] = (1,)
    if s["norm.final"]:
        norm("output_norm")
    if not s["tied"]:
        out["output.weight"] = (n_vocab, d)
    if s["output_bias"]:
        out["output.bias"] = (n_vocab,)
    out.update({name: (len(v),) for name, v in s["rope_factors"].items()})
    return out


# ---- recipes: how an output tensor is made of input tensors --------------------------------------

@dataclass(frozen=True)
class Recipe:
    """op(source tensors) -> one tensor; run on meta tensors first to check shapes."""
    sources: tuple[str, ...]
    op: Callable[..., Tensor] = lambda t: t
    packed: bool = False  # the sources are bytes of a format that op knows

    def then(self, op: Callable[[Tensor], Tensor]) -> Recipe:
        return Recipe(self.sources, lambda *ts: op(self.op(*ts)), self.packed)


def concat(parts: list[Recipe], dim: int = 0) -> Recipe:
    """Recipes joined along the rows, or along another dimension."""
    counts = [len(p.sources) for p in parts]

    def op(*ts: Tensor) -> Tensor:
        out, at = [], 0
        for part, n in zip(parts, counts):
            out.append(part.op(*ts[at:at + n]))
            at += n
        return torch.cat(out, dim)
    return Recipe(tuple(name for p in parts for name in p.sources), op)


def split_rows(t: Tensor, sizes: list[int], which: int) -> Tensor:
    """Part `which` of a fused tensor: rows of q, then k, then v, or of gate, then up."""
    return t.split(sizes)[which]


def alternate(t: Tensor, which: int) -> Tensor:
    """Every second value of the last dimension: those of gate, or those of up."""
    return t[..., which::2]


def from_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """The values of matrices in MXFP4 as Hugging Face's gpt-oss has them, transposed.

    blocks (..., rows, groups, 16) are bytes of two values each, the low half first; scales (...,
    rows, groups) are exponents with 127 added. The result is (..., 32 groups, rows)."""
    if blocks.dtype.itemsize != 1 or scales.dtype.itemsize != 1 or blocks.shape[-1] != 16:
        raise ValueError("not blocks of 16 bytes with scales of one")
    half = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], device=blocks.device)
    table = torch.cat([half, -half])  # E2M1 of the OCP Microscaling formats, v1.0
    values = table[torch.stack([blocks & 15, blocks >> 4 & 15], -1).int()].flatten(-2)
    return torch.ldexp(values, scales[..., None].int() - 127).flatten(-2).mT


def half_rows(t: Tensor, which: int) -> Tensor:
    """Half `which` of the rows of a matrix or of each of several: of gate, then up."""
    return t.chunk(2, -2)[which]


def tile_heads(t: Tensor, keys: int, heads: int, from_row: int = 0, dim: int = 0) -> Tensor:
    """Value heads that share a key head, which were neighbours, apart by the number of key heads.

    They are rows from `from_row` on, or what another dimension counts."""
    before, own = t.split([from_row, t.shape[dim] - from_row], dim)
    parts = own.unflatten(dim, (keys, heads // keys, -1)).transpose(dim, dim + 1)
    return torch.cat([before, parts.flatten(dim, dim + 2)], dim)


def split_groups(t: Tensor, kv: int, per_kv: int, dim: int, which: int) -> Tensor:
    """q, k or v (`which`) of a fused tensor of `kv` groups.

    A group is per_kv query heads, a key head and a value head."""
    g = t.reshape(kv, per_kv + 2, dim, *t.shape[1:])
    return (g[:, :-2], g[:, -2], g[:, -1])[which].reshape(-1, *t.shape[1:])


def latent_part(t: Tensor, heads: int, key: int, which: int) -> Tensor:
    """The key or value matrices (`which`) of a fused one of latent attention.

    A head's rows are `key` of its keys, then those of its values; key matrices are turned."""
    t = t.reshape(heads, -1, t.shape[1])
    return t[:, key:] if which else t[:, :key].mT


def split_blocks(t: Tensor, which: int) -> Tensor:
    """q, k or v (`which`) of CodeGen's fused tensor: four blocks of q, v, k."""
    blocks = t.reshape(4, 3, t.shape[0] // 12, *t.shape[1:])
    return blocks[:, (0, 2, 1)[which]].reshape(-1, *t.shape[1:])


def product(a: Recipe, b: Recipe, transposed: bool) -> Recipe:
    """The product of two matrices, or of the first and the second one's transpose."""
    return Recipe((*a.sources, *b.sources),
                  lambda x, y: x.float() @ (y.float().T if transposed else y.float()))


def change_pairing(t: Tensor, dim: int, rot: int, to: str) -> Tensor:
    """Reorder the rows of each head of `dim` to the rope pairing `to`, in its first `rot` rows."""
    heads = t.reshape(-1, dim, *t.shape[1:])
    first = heads[:, :rot]
    shape = (2, rot // 2) if to == "interleaved" else (rot // 2, 2)
    first = first.reshape(first.shape[0], *shape, *t.shape[1:]).transpose(1, 2).reshape(first.shape)
    return torch.cat([first, heads[:, rot:]], 1).reshape(t.shape)


def check_shapes(spec: Spec, recipes: dict[str, Recipe], source: Tensors) -> None:
    """Try every recipe on shapes alone.

    So nothing is written for a checkpoint that does not fit its config."""
    for name, want in gpt_tensors(spec).items():
        recipe = recipes[name]
        metas = [source.meta(n) for n in recipe.sources]
        what = f"tensor {short(recipe.sources[0]) if recipe.sources else name}"
        floats = all(m.dtype.is_floating_point and m.dtype.itemsize > 1 for m in metas)
        if not floats and not recipe.packed:
            raise ExportError(f"{what}: not a plain floating-point tensor (quantised checkpoints "
                              "are not supported)")
        try:
            got = tuple(recipe.op(*metas).shape)
        except (RuntimeError, IndexError, TypeError, ValueError) as e:
            raise ExportError(
                f"{what}: shape {tuple(metas[0].shape)} does not fit the configuration") from e
        if got != want:
            raise ExportError(
                f"{what}: got shape {tuple(metas[0].shape) if len(metas) == 1 else got}, "
                f"want {want} for {name}")


@dataclass
class Model:
    """What a reader returns and the writer takes."""
    spec: Spec
    recipes: dict[str, Recipe]  # by the names of gpt_tensors()
    source: Tensors
    vocab: Vocab
    arch: str  # llama.cpp's name of the family, or "gpt"
    name: str
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# ---- configurations ------------------------------------------------------------------------------

def dims(c: Config) -> Spec:
    """The sizes that all families share, and rope's keys."""
    d, h = c.int("hidden_size"), c.int("num_attention_heads")
    if c.get("head_dim") is None and d % h:
        raise ExportError(f"config.json: hidden_size {d} is no multiple of num_attention_heads {h}")
    kv, dim = c.int("num_key_value_heads", h), c.int("head_dim", d // h)
    if h % kv:
        raise ExportError(f"config.json: num_attention_heads {h} is no multiple of "
                          f"num_key_value_heads {kv}")
    return {
        "context_length": c.int("max_position_embeddings"), "embedding_length": d,
        "vocab_size": c.int("vocab_size"),
        "block_count": c.int("num_hidden_layers"),
        "feed_forward_length": c.int("intermediate_size", 4 * d),
        "attention.head_count": h, "attention.head_count_kv": kv,
        "attention.key_length": dim, "attention.value_length": dim,
        "norm.epsilon": c.num("norm_eps"), "tied": c.flag("tie_word_embeddings"),
    }


LAYER_NORM = {"norm.type": "layer", "norm.bias": True}
UNGATED = {"ffn.gated": False, "ffn.bias": True}
ALL_BIAS = {"attention.bias": True, "attention.output_bias": True}
POST_RESIDUAL = {"norm.pre": False, "norm.post": True, "norm.residual": True, "norm.final": False}
