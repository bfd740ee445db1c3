"""The families of Hugging Face folders: a row for each model_type of transformers.

A row says which function reads its config.json, how its tensors are called and stored, and the
defaults of its configuration class that matter."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable

from exporting.config import Config
from exporting.decoders import (apertus, arcee, bloom, cohere, cohere2, deepseek, ernie, ernie_moe,
                                exaone4, falcon, gemma, gemma4, glm4, glm4_moe, gpt2, gpt_bigcode,
                                gpt_neo, gpt_neox, gpt_oss, gptj, granite, granite_hybrid,
                                granite_moe, hunyuan, internlm2, lfm2, lfm2_moe, llama, minicpm,
                                ministral3, mistral, mixtral, mpt, nemotron, olmo, olmo2, olmo3,
                                olmoe, opt, phi, phi3, qwen, qwen2_moe, qwen3_5, qwen3_5_moe,
                                qwen3_moe, seed_oss, smollm3, stablelm, starcoder2)
from exporting.encoders import (BERT_LAYER, DISTIL_LAYER, MODERN_LAYER, NOMIC_LAYER, bert,
                                encoder_names, modern_bert, nomic_bert, roberta)
from exporting.spec import Spec


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
BERT_DEFAULTS = defaults(hidden_act="gelu", norm_eps=1e-12, max_position_embeddings=512,
                         type_vocab_size=2, pad_token_id=0, num_hidden_layers=12,
                         num_attention_heads=12, hidden_size=768, intermediate_size=3072)
FAMILIES: dict[str, Family] = {
    "bert": Family("bert", bert, names=encoder_names(("bert.",), "encoder.layer", BERT_LAYER),
                   defaults=BERT_DEFAULTS),
    "electra": Family("bert", bert, names=encoder_names(
        ("electra.",), "encoder.layer", BERT_LAYER), defaults=BERT_DEFAULTS | dict(
            embedding_size=128)),
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
            rope_parameters={"full_attention": {"rope_theta": 160000.0},
                             "sliding_attention": {"rope_theta": 10000.0}},
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
