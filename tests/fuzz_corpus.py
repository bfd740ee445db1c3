"""Inputs to begin with for the fuzz targets, tests/fuzz_NAME.c:

    fuzz_corpus.py FOLDER      writes FOLDER/NAME/0, 1, ..."""
from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from conversations import CONVERSATIONS
from gguf_files import (U32, Image, Keys, byte_level, byte_tokens, image, llama_shapes,
                        sentencepiece_keys, sizes, smallest)
from schemas import all_schemas
from test_grammar import GRAMMARS, REFUSED
from test_json_reader import NO, YES
from test_template import STATEMENTS, VARIABLES, groups


def json_texts() -> Iterable[bytes]:
    return [t.encode("utf-8", "surrogatepass") for t in YES + NO if len(t) < 5000]


QKV, OUT = "*attn_q.bias:4 *attn_k.bias:2 *attn_v.bias:2", "*attn_output.bias:4"
FFN = "*ffn_down.bias:4 *ffn_up.bias:4"
NORMS = "output_norm.bias:4 *attn_norm.bias:4"
POST = "*post_attention_norm.weight:4 *post_ffw_norm.weight:4"
HEADS = "*attn_q_norm.weight:2 *attn_k_norm.weight:2"
EXPERTS = ("*ffn_gate_inp.weight:3,4 *ffn_gate_exps.weight:3,4,4 *ffn_up_exps.weight:3,4,4 "
           "*ffn_down_exps.weight:3,4,4 -*ffn_gate.weight -*ffn_up.weight -*ffn_down.weight")
SHARED = "*ffn_gate_shexp.weight:2,4 *ffn_up_shexp.weight:2,4 *ffn_down_shexp.weight:4,2"
# of the first layer in place of attention
NO_ATTENTION = ("-blk.0.attn_q.weight -blk.0.attn_k.weight -blk.0.attn_v.weight "
                "-blk.0.attn_output.weight")
SHORT_CONV = ("blk.0.shortconv.in_proj.weight:12,4 blk.0.shortconv.conv.weight:4,3 "
              f"blk.0.shortconv.out_proj.weight:4,4 {NO_ATTENTION}")
SSM: Keys = {"ssm.conv_kernel": 3, "ssm.time_step_rank": 2, "ssm.group_count": 1,
             "ssm.state_size": 2, "ssm.inner_size": 4}
STATES = f"blk.0.ssm_conv1d.weight:8,3 blk.0.ssm_dt.bias:2 blk.0.ssm_out.weight:4,4 {NO_ATTENTION}"
DELTA_NET = ("blk.0.attn_qkv.weight:8,4 blk.0.attn_gate.weight:4,4 blk.0.ssm_alpha.weight:2,4 "
             f"blk.0.ssm_beta.weight:2,4 blk.0.ssm_a:2 blk.0.ssm_norm.weight:2 {STATES}")
MAMBA = ("blk.0.ssm_in.weight:14,4 blk.0.ssm_conv1d.bias:8 blk.0.ssm_a:2,1 blk.0.ssm_d:2,1 "
         f"blk.0.ssm_norm.weight:4 {STATES}")
QWEN35 = ("blk.1.attn_q.weight:8,4 blk.1.attn_q_norm.weight:2 blk.1.attn_k_norm.weight:2 "
          f"*post_attention_norm.weight:4 -*ffn_norm.weight {DELTA_NET}")
XIELU: Keys = {"xielu.alpha_p": [0.1, 0.2], "xielu.alpha_n": [0.3, 0.4], "xielu.beta": [0.5, 0.5],
               "xielu.eps": -1e-6}
YARN: Keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
              "rope.scaling.yarn_log_multiplier": 1.0,
              "rope.scaling.original_context_length": 8}
BESIDE = ("*ffn_gate_inp.weight:3,4 *ffn_gate_inp.scale:4 *ffn_down_exps.weight:3,4,4 "
          "*ffn_down_exps.scale:3 *post_ffw_norm_1.weight:4 *pre_ffw_norm_2.weight:4 "
          "*post_ffw_norm_2.weight:4")
PER_LAYER = ("per_layer_token_embd.weight:7,4 per_layer_model_proj.weight:4,4 "
             "per_layer_proj_norm.weight:2 *inp_gate.weight:2,4 *proj.weight:4,2 "
             "*post_norm.weight:4 *layer_output_scale.weight:1")
# latents of 3 numbers, 2 rotated ones, and heads of 1 more and of 2
LATENT = ("*attn_q.weight:6,4 *attn_kv_a_mqa.weight:5,4 *attn_kv_a_norm.weight:3 "
          "*attn_k_b.weight:2,3,1 *attn_v_b.weight:2,2,3 -*attn_k.weight -*attn_v.weight")
LATENT_KEYS: Keys = {"attention.kv_lora_rank": 3, "attention.key_length": 5,
                     "attention.value_length": 3, "attention.key_length_mla": 3,
                     "attention.value_length_mla": 2, "rope.dimension_count": 2}
GROUPS: Keys = {"expert_count": 4, "expert_used_count": 2, "expert_group_count": 2,
                "expert_group_used_count": 1, "expert_weights_scale": 1.5}
GROUPED = ("ffn_gate_inp.weight:4,4 ffn_gate_exps.weight:4,4,4 ffn_up_exps.weight:4,4,4 "
           "ffn_down_exps.weight:4,4,4 exp_probs_b.bias:4 -ffn_gate.weight -ffn_up.weight "
           "-ffn_down.weight")
ENCODER = ("token_embd_norm.weight:4 token_embd_norm.bias:4 *attn_output_norm.weight:4 "
           "*attn_output_norm.bias:4 *layer_output_norm.weight:4 *layer_output_norm.bias:4 "
           "token_types.weight:2,4 -*attn_norm.weight -*ffn_norm.weight -output_norm.weight")
PLAIN, ONE_NORM = "-*ffn_gate.weight", "-*ffn_norm.weight"

# How the tensors of a family, with these keys, differ from llama's: NAME:SHAPE is there, -NAME is
# not; * is each layer.
FAMILIES: list[tuple[str, Keys, str]] = [
    ("llama", {"rope.dimension_count": 2, "attention.key_length": 2, "vocab_size": 7,
               "expert_count": 0, "rope.freq_base": 100.0}, ""),
    ("llama", {"expert_count": 3, "expert_used_count": 2}, EXPERTS),
    ("gpt", {"expert_count": 3, "expert_used_count": 2, "expert_feed_forward_length": 4,
             "expert_shared_feed_forward_length": 2, "expert_shared_gate": True,
             "expert_choice_bias": True},
     f"{EXPERTS} {SHARED} *ffn_gate_inp_shexp.weight:4 *exp_probs_b.bias:3"),
    ("gpt-oss", {"expert_count": 3, "expert_used_count": 2, "attention.sliding_window": 3},
     f"{EXPERTS} *ffn_gate_inp.bias:3 *ffn_gate_exps.bias:3,4 *ffn_up_exps.bias:3,4 "
     "*ffn_down_exps.bias:3,4 *attn_sinks.weight:2 *post_attention_norm.weight:4 "
     f"{QKV} {OUT} {ONE_NORM}"),
    ("lfm2", {"attention.head_count_kv": [0, 1], "shortconv.l_cache": 3},
     f"{SHORT_CONV} blk.1.attn_q_norm.weight:2 blk.1.attn_k_norm.weight:2 "
     "token_embd_norm.weight:4 -output_norm.weight"),
    ("lfm2moe", {"attention.head_count_kv": [0, 1], "shortconv.l_cache": 3, "expert_count": 3,
                 "expert_used_count": 2, "expert_gating_func": 2},
     f"{SHORT_CONV} blk.1.attn_q_norm.weight:2 blk.1.attn_k_norm.weight:2 {EXPERTS} "
     "*exp_probs_b.bias:3 token_embd_norm.weight:4 -output_norm.weight"),
    ("deepseek2", LATENT_KEYS | GROUPS | {"leading_dense_block_count": 1, "expert_shared_count": 1},
     f"{LATENT} blk.1.ffn_gate_shexp.weight:4,4 blk.1.ffn_up_shexp.weight:4,4 "
     "blk.1.ffn_down_shexp.weight:4,4 "
     + " ".join(w.replace("-", "-blk.1.") if w[0] == "-" else "blk.1." + w
                for w in GROUPED.split())),
    ("deepseek2", YARN | {  # the old form
        "attention.head_count_kv": 2, "attention.key_length": 3, "attention.value_length": 2,
        "attention.kv_lora_rank": 3, "attention.q_lora_rank": 3, "rope.dimension_count": 2,
        "nextn_predict_layers": 1, "block_count": 3},
     f"{LATENT} blk.2.nextn.eh_proj.weight:4,8 blk.2.attn_norm.weight:4 -*attn_q.weight "
     "-*attn_k_b.weight -*attn_v_b.weight *attn_q_a.weight:3,4 "
     "*attn_q_a_norm.weight:3 *attn_q_b.weight:6,3 *attn_kv_b.weight:6,3"),
    ("gpt", LATENT_KEYS | GROUPS | {"expert_feed_forward_length": 4, "expert_gating_func": 2,
                                    "expert_choice_bias": True, "attention.sinks": True},
     f"{LATENT} *attn_sinks.weight:2 "
     + " ".join(w.replace("-", "-*") if w[0] == "-" else "*" + w for w in GROUPED.split())),
    ("gpt", {"shortconv.layers": [True, False], "shortconv.l_cache": 3}, SHORT_CONV),
    ("gpt", {"shortconv.layers": [True, True], "shortconv.l_cache": 3},
     SHORT_CONV.replace("blk.0.", "*")),
    ("qwen35", SSM | {"attention.recurrent_layers": [True, False, False],
                      "nextn_predict_layers": 1, "block_count": 3,
                      "rope.dimension_sections": [1, 0, 0, 0]},
     f"{QWEN35} blk.2.nextn.eh_proj.weight:4,8 blk.2.attn_norm.weight:4"),
    ("qwen35moe", SSM | {"full_attention_interval": 2, "expert_count": 3, "expert_used_count": 2,
                         "expert_feed_forward_length": 4, "expert_shared_feed_forward_length": 2},
     f"{QWEN35} {EXPERTS} {SHARED} *ffn_gate_inp_shexp.weight:4"),
    ("granitehybrid", SSM | {"attention.head_count_kv": [0, 1], "logit_scale": 2.0,
                             "rope.scaling.finetuned": False}, MAMBA),
    ("gpt", SSM | {"delta_net.layers": [True, False], "attention.output_gate": True},
     f"{DELTA_NET} blk.1.attn_q.weight:8,4"),
    ("gpt", SSM | {"mamba.layers": [True, False], "mamba.conv_bias": True}, MAMBA),
    ("qwen2", {}, QKV), ("qwen3", {}, HEADS), ("gemma2", {}, POST),
    ("gemma3", {"attention.sliding_window": 3}, f"{HEADS} {POST}"),
    ("gemma4", {"attention.sliding_window": 3, "attention.sliding_window_pattern": [True, False],
                "attention.key_length": 4, "attention.value_length": 4,
                "attention.key_length_swa": 2, "attention.value_length_swa": 2,
                "embedding_length_per_layer_input": 2, "final_logit_softcapping": 4.0},
     f"{HEADS} {POST} {PER_LAYER} blk.1.attn_q.weight:8,4 blk.1.attn_k.weight:4,4 "
     "-blk.1.attn_v.weight blk.1.attn_q_norm.weight:4 blk.1.attn_k_norm.weight:4 "
     "blk.1.attn_output.weight:4,8 rope_freqs.weight:2"),
    ("gemma4", {"expert_count": 3, "expert_used_count": 2, "attention.shared_kv_layers": 1,
                "attention.sliding_window": 3,
                "attention.sliding_window_pattern": [False, False]},
     f"{HEADS} {POST} {BESIDE} *ffn_gate_up_exps.weight:3,8,4 rope_freqs.weight:1 "
     "-blk.1.attn_k_norm.weight"),
    ("gpt", {"expert_count": 3, "expert_used_count": 2, "expert_feed_forward_length": 4,
             "expert_beside_ffn": True, "expert_layers": [True, False], "norm.post": True,
             "attention.value_norm": True, "attention.keys_as_values": [False, True],
             "layer_output_scale": True, "embedding_length_per_layer_input": 2},
     f"{POST} {PER_LAYER} {BESIDE.replace('*', 'blk.0.')} -blk.1.attn_v.weight "
     "blk.0.ffn_gate_exps.weight:3,4,4 blk.0.ffn_up_exps.weight:3,4,4"),
    ("phi2", {}, f"{NORMS} {QKV} {OUT} {FFN} output.bias:7 {PLAIN} {ONE_NORM}"),
    ("phi3", {"attention.sliding_window": 0}, f"*ffn_up.weight:8,4 {PLAIN}"),
    ("gptneox", {"use_parallel_residual": True},
     f"{NORMS} *ffn_norm.bias:4 {QKV} {OUT} {FFN} {PLAIN}"),
    ("olmo2", {},
     f"*attn_q_norm.weight:4 *attn_k_norm.weight:2 {POST} -*attn_norm.weight {ONE_NORM}"),
    ("granite", {"logit_scale": 2.0, "residual_scale": 0.5, "attention.scale": 0.3}, ""),
    ("falcon", {}, f"{NORMS} {PLAIN} {ONE_NORM}"),
    ("bloom", {}, "token_embd_norm.weight:4 token_embd_norm.bias:4 *ffn_norm.bias:4 "
     f"{NORMS} {QKV} {OUT} {FFN} {PLAIN}"),
    ("mpt", {"attention.max_alibi_bias": 8.0}, PLAIN),
    ("command-r", {"logit_scale": 0.5},
     f"*attn_q_norm.weight:2,2 *attn_k_norm.weight:1,2 {ONE_NORM}"),
    ("cohere2", {"attention.sliding_window": 3}, ONE_NORM),
    ("glm4", {"rope.dimension_count": 2}, f"*ffn_up.weight:8,4 {PLAIN} {POST}"),
    ("exaone4", {"attention.sliding_window": 3}, f"{HEADS} {POST} -*attn_norm.weight {ONE_NORM}"),
    ("seed_oss", {}, f"{QKV} *post_attention_norm.weight:4 {ONE_NORM}"),
    ("hunyuan-dense", {}, HEADS),
    ("olmo", {"attention.clamp_kqv": 2.0}, f"-output_norm.weight -*attn_norm.weight {ONE_NORM}"),
    ("nemotron", {}, f"{NORMS} *ffn_norm.bias:4 {PLAIN}"), ("arcee", {}, PLAIN),
    ("apertus", XIELU, f"{HEADS} {PLAIN}"), ("ernie4_5", {}, ""),
    ("mistral3", YARN | {"attention.temperature_scale": 0.1}, ""),
    ("minicpm", {"logit_scale": 3.0}, ""), ("internlm2", {"context_limit": True}, ""),
    ("starcoder", {}, f"position_embd.weight:16,4 *ffn_norm.bias:4 {NORMS} {QKV} {OUT} {FFN} "
     f"{PLAIN}"),
    ("gpt", {"norm.pre": False, "norm.post": True, "norm.residual": True},
     f"{POST} -*attn_norm.weight {ONE_NORM}"),
    ("gpt", XIELU | {"ffn.activation": "xielu", "ffn.gated": False}, PLAIN),
    ("gpt", {"attention.temperature_scale": 0.1, "attention.qk_norm": "head",
             "attention.qk_norm_after_rope": True}, HEADS),
    ("gpt", {}, ""),
    ("gpt", {"position": "learned", "position.offset": 2, "norm.type": "layer", "norm.bias": True,
             "ffn.gated": False, "residual": "parallel", "residual.shared_norm": True,
             "attention.bias": True, "tied": False, "output_bias": True},
     f"position_embd.weight:18,4 output.weight:7,4 output.bias:7 {NORMS} {QKV} {PLAIN} {ONE_NORM}"),
    ("gpt", {"position": "alibi", "attention.max_alibi_bias": 8.0, "norm.post": True,
             "norm.embedding": True, "attention.qk_norm": "heads", "attention.sliding_window": 3,
             "attention.sliding_window_pattern": [True, False], "attention.values_in_keys": True},
     "token_embd_norm.weight:4 *attn_q_norm.weight:2,2 *attn_k_norm.weight:1,2 "
     f"{POST} -*attn_v.weight"),
    ("gpt", {"position": "relative", "position.reach": 3, "attention.shared_kv_layers": 1,
             "ffn.activation": "relu2", "attention.scale": [0.5, 0.25],
             "feed_forward_length": [4, 4]}, "*attn_rel_b.weight:2,7"),
    ("gpt", {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
             "rope.scaling.original_context_length": 8, "rope.layers": [True, False],
             "attention.sliding_window": 3, "rope.freq_base_swa": 50.0,
             "attention.key_length_swa": 4, "attention.value_length_swa": 4,
             "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0,
             "attention.clamp_kqv": 1.0},
     "*attn_q.weight:8,4 *attn_k.weight:4,4 *attn_v.weight:4,4 *attn_output.weight:4,8"),
    ("bert", {"attention.causal": False, "pooling_type": 1},
     f"{ENCODER} position_embd.weight:16,4 {QKV} {OUT} {FFN} {PLAIN}"),
    ("nomic-bert", {}, ENCODER),
    ("jina-bert-v2", {}, f"{ENCODER} *attn_q_norm.weight:4 *attn_q_norm.bias:4 *ffn_up.weight:8,4 "
     f"{PLAIN}"),
    ("modern-bert", {"attention.sliding_window": 4, "rope.freq_base_swa": 50.0},
     "token_embd_norm.weight:4 -blk.0.attn_norm.weight *ffn_up.weight:8,4 -*ffn_gate.weight"),
    ("gpt", {"attention.causal": False, "token_types": 3, "norm.plain_first": True},
     "token_types.weight:3,4 -blk.0.attn_norm.weight"),
    ("gpt", {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": 8,
             "rope.scaling.attn_factor": 1.1},
     "rope_factors_short.weight:1 rope_factors_long.weight:1"),
]
GPT: Keys = {
    "norm.type": "rms", "norm.epsilon": 1e-5, "norm.affine": True, "norm.bias": False,
    "norm.pre": True, "norm.post": False, "norm.embedding": False, "norm.final": True,
    "attention.qk_norm": "none", "attention.bias": False, "attention.output_bias": False,
    "ffn.gated": True, "ffn.activation": "silu", "ffn.bias": False, "residual": "sequential",
    "tied": True, "position": "rope", "rope.pairing": "half", "attention.key_length": 2,
    "attention.value_length": 2}


def model(arch: str, keys: Keys, changes: str) -> Image:
    own = GPT if arch == "gpt" else {"attention.layer_norm_rms_epsilon": 1e-5,
                                     "attention.layer_norm_epsilon": 1e-5}
    m = image(arch, sizes(arch, 4, 2, 1, 4, 16, 2)
              | {name if name.startswith("xielu.") else f"{arch}.{name}": v
                 for name, v in (own | keys).items()} | sentencepiece_keys(),
              llama_shapes(7, 4, 2, 4, 2))
    for word in changes.split():
        for layer in range(2 if "*" in word else 1):
            name, _, shape = word.replace("*", f"blk.{layer}.").partition(":")
            if shape:
                m.tensor(name, *map(int, shape.split(",")))
            else:
                m.drop(name[1:])
    return m


def models() -> Iterable[bytes]:
    second = smallest()
    second.version = 2
    plain = [smallest(), byte_level(), second, smallest().set("split.count", U32, 1)]
    return [m.build() for m in plain + [model(*family) for family in FAMILIES]]


def written(flags: int, text: str | bytes, keys: Keys) -> bytes:
    """As tests/fuzz_tokenizer.c reads it."""
    def raw(v: object) -> bytes:
        if isinstance(v, str):
            return v.encode("utf-8", "surrogateescape")
        return b"%d" % v if isinstance(v, int) else repr(v).encode()

    out = b"%d\xfe%s\xff" % (flags, raw(text) if isinstance(text, str) else text)
    for name, v in keys.items():
        items = v if isinstance(v, list) else [v]
        letter = {str: "s", bool: "b", int: "i" if isinstance(v, list) else "u",
                  float: "f"}[type(items[0]) if items else str]
        if isinstance(v, list):
            letter = letter.upper()
        out += b"\xfe".join([name.encode(), letter.encode(), *map(raw, items)]) + b"\xff"
    return out


BYTE_LEVEL = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
              "tokenizer.ggml.tokens": ["<|bos|>", "<|end|>", "<mask>", "th", "the", "aa", "aaaa",
                                        *byte_tokens()],
              "tokenizer.ggml.token_type": [3, 3, 4] + [1] * 260,
              "tokenizer.ggml.merges": ["t h", "th e", "a a", "aa aa"],
              "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1,
              "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
SHORT = BYTE_LEVEL | {"tokenizer.ggml.tokens": ["<|bos|>", "<|end|>", "<mask>", "t", "h", "e", "th",
                                                "the", "a", "aa", "aaaa", "1", "\u0120"],
                      "tokenizer.ggml.token_type": [3, 3, 4] + [1] * 10}
PIECES = {"tokenizer.ggml.model": "bert",
          "tokenizer.ggml.tokens": ["[UNK]", "[CLS]", "[SEP]", "\u2581the", "\u2581a", "he", "a",
                                    "\u2581e", "\u2581<", "\u4e2d"],
          "tokenizer.ggml.token_type": [3, 3, 3, 1, 1, 1, 1, 1, 1, 1],
          "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.cls_token_id": 1,
          "tokenizer.ggml.seperator_token_id": 2}
TEXT = "<|bos|>the <mask> hehaaaaa 12\u00e9\u1100\u1161 <|end|>\n  a"
PATTERNS = [[], [r"\p{N}{1,3}"], [r"(?i:'s|'t)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"],
            [r"(a+)+b", r"(?=a)(?>a*?)|[^a-c\d]{2,}+"],
            [r"[\p{L}&&[^\p{Han}]]+|\P{Han}"], [r"^\b.$|\Ba\z", r"\u0061|\n|\A(?:x|y)*"]]


def tokenizers() -> Iterable[bytes]:
    spm = sentencepiece_keys()
    bytes_too = {"tokenizer.ggml.tokens": [*spm["tokenizer.ggml.tokens"],
                                           *(f"<0x{b:02X}>" for b in range(256))],
                 "tokenizer.ggml.scores": [*spm["tokenizer.ggml.scores"], *[0.0] * 256],
                 "tokenizer.ggml.token_type": [*spm["tokenizer.ggml.token_type"], *[6] * 256]}
    out = [(BYTE_LEVEL, TEXT), (SHORT, TEXT), (spm, "ab <s>ba"), (spm | bytes_too, TEXT)]
    out += [(SHORT | {"tokenizer.ggml.pre": rule}, TEXT)
            for rule in ("llama-bpe", "qwen2", "smollm", "tekken", "deepseek-llm", "gpt-4o",
                         "kimi-k2", "afmoe")]
    out += [(SHORT | {"tokenizer.attnc.pre_patterns": p}, TEXT) for p in PATTERNS]
    out += [(PIECES | keys, TEXT + " \u00e9\u4e2d\u0130 a\u0301" + "a" * 120)
            for keys in ({}, {"tokenizer.ggml.normalizer.lowercase": False},
                         {"tokenizer.ggml.normalizer.strip_accents": False})]
    nfc = {"tokenizer.attnc.normalizer": "nfc", "tokenizer.attnc.ignore_merges": True}
    out.append((SHORT | nfc, "e\u0301\u1100\u1161\u11a8a\u0316"))
    out += [(spm | {"tokenizer.attnc.space_prefix": way, "tokenizer.attnc.normalized_tokens": [1],
                    "tokenizer.ggml.unknown_token_id": 0}, " ab  <s> a b</s>")
            for way in ("first", "always", "never", "prepend", "replace")]
    out.append((spm | {"tokenizer.ggml.model": "gemma4", "tokenizer.ggml.merges": ["a b"],
                       "tokenizer.ggml.eos_token_ids": [1, 2]}, "ab\n\nab"))
    out.append((spm | {"tokenizer.ggml.add_space_prefix": False}, "ab ab"))
    return [written(flags, text, keys) for i, (keys, text) in enumerate(out)
            for flags in {i % 8, 7}]


def templates() -> Iterable[bytes]:
    """As tests/fuzz_template.c reads it: a template, messages and variables with FF between."""
    expressions = [e for group in groups().values() for e in group]
    lines = ["".join(f"{{{{ {e} }}}}" for e in expressions[i:i + 3])
             for i in range(0, len(expressions), 3)]
    variables = json.dumps(VARIABLES)
    chats = [json.dumps(messages) for _, messages, _ in CONVERSATIONS]
    return ["\0".join(parts).encode("utf-8", "surrogatepass").replace(b"\0", b"\xff")
            for i, t in enumerate(lines + STATEMENTS)
            for parts in [(t.replace("\0", ""), chats[i % len(chats)], variables)]]


def grammars() -> Iterable[bytes]:
    return [t.encode() + b"\xff" + bytes(range(3, 80, 3)) for t in [*GRAMMARS.values(), *REFUSED]]


def schemas() -> Iterable[bytes]:
    return [json.dumps(s).encode() + b"\xff" + bytes(range(3, 80, 3))
            for s in all_schemas().values()]


def sessions() -> Iterable[bytes]:
    """As tests/fuzz_session.c reads it, which puts in what depends on the model."""
    out = []
    for i, m in enumerate([smallest(), *(model(*f) for f in FAMILIES if f[0] == "gpt")]):
        for kv, name in enumerate((b"f16", b"f32", b"q8")):
            head = struct.pack("<8sII64s8sIIQQQQ64s", b"attnKV\r\n", 1, 1, b"", name, 0, i % 2, 5,
                               (5, 4, 0)[kv], 0, 0, b"")
            file = m.build()
            flags = next(f for f in range(12, 16) if f % 3 == kv)
            out.append(struct.pack("<BI", flags, len(file)) + file + head
                       + struct.pack("<5i", 1, 3, 4, 5, 6))
            out.append(out[-1].ljust(5 + len(file) + 4096, b"\0") + bytes(range(1, 200)))
    return out


CORPORA: dict[str, Callable[[], Iterable[bytes]]] = {
    "gguf": models, "grammar": grammars, "json": json_texts, "schema": schemas,
    "session": sessions, "template": templates, "tokenizer": tokenizers}


def main(folder: Path) -> None:
    targets = {p.stem.removeprefix("fuzz_") for p in Path(__file__).parent.glob("fuzz_*.c")}
    assert targets == CORPORA.keys(), "each tests/fuzz_NAME.c has a line in CORPORA"
    for name, make in CORPORA.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, raw in enumerate(make()):
            (folder / name / str(i)).write_bytes(raw)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
