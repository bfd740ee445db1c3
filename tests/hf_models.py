"""Tiny random transformers models, and a plain reference of the architecture `gpt`.

There is one Case per family and feature. The weights are spread out so that everything shows: norm
weights lie in 0.5 .. 1.5, biases and scales are far from nothing, attention scores have a deviation
of some units, and logits of about 1.7. Each Case names features to drop: the same weights without
that feature must give other logits, or the parity test proves nothing about it."""
from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor

TEXT = """Once upon a time there was a small house by the sea, and in it lived an old man \
with 3 cats and 12 hens.
"What's that?" said the cat. "I don't know, I'll look!" The hens didn't care; \
they'd seen it all: rain, snow, storms...
for (int i = 0; i < 10; i++) { x[i] = a * b + c; }  // a line of code
Es war einmal eine Königin, die hatte eine Tochter. Il était une fois. Жили-были дед да баба.
"""
PROMPT = ("Once upon a time there was a cat, and the old man said: \"What's that, 12 hens?\" It "
          "rained in the sea.")


def tokenizer_json(n_vocab: int = 300, pattern: Any = None, normalizer: Any = None,
                   **extra: Any) -> dict[str, Any]:
    """A byte-level BPE trained on TEXT, as tokenizer.json.

    `pattern` replaces ByteLevel's own regex."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    tok = Tokenizer(models.BPE())
    if pattern is None:
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tok.pre_tokenizer = pre_tokenizers.Sequence([
            *[pre_tokenizers.Split(Regex(p), "isolated") for p in pattern],
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    if normalizer == "nfc":
        tok.normalizer = normalizers.NFC()
    tok.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=n_vocab, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    return json.loads(tok.to_str()) | extra


FINAL_NORM = r"(final_layer_?norm|ln_f|norm_f|embedding_norm|\.norm)$"


def randomise(model: torch.nn.Module, seed: int, offset: float = 0.0) -> None:
    """Spread-out weights. `offset`: what the model itself adds to norm weights (Gemma)."""
    g = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    with torch.no_grad():
        for name, b in model.named_buffers():
            if name.endswith(("expert_bias", "e_score_correction_bias")):
                b.copy_(torch.randn(b.shape, generator=g) * 0.3)
        for name, p in model.named_parameters():
            if p.data_ptr() in done:
                continue
            done.add(p.data_ptr())
            if name.endswith("A_log"):  # strong decays make f32 and f64 differ
                p.copy_(torch.randn(p.shape, generator=g) * 0.3 - 2)
            elif p.ndim == 1 and name.endswith(("weight", "scale")):
                own = 0 if "linear_attn.norm" in name else offset
                p.copy_(torch.rand(p.shape, generator=g) + 0.5 - own)
            elif p.ndim == 1:
                p.copy_(torch.randn(p.shape, generator=g) * 0.3)
            elif p.ndim == 3:  # experts
                p.copy_(torch.randn(p.shape, generator=g) / math.sqrt(p.shape[2]))
            elif re.search(r"embed|wte|wpe|lm_head", name):
                p.copy_(torch.randn(p.shape, generator=g) * 0.5)
            else:
                gain = 1.8 if re.search(r"q_proj|k_proj|query_key_value|c_attn|qkv", name) else 1.0
                fan_in = p.shape[0] if type(model).__name__ == "GPT2LMHeadModel" else p.shape[1]
                p.copy_(torch.randn(p.shape, generator=g) * gain / math.sqrt(fan_in))
        for name, p in model.named_buffers():
            if name.endswith("layer_scalar"):  # Gemma 4
                p.copy_(torch.rand(p.shape, generator=g) + 0.5)


@dataclass
class Case:
    """One tiny model.

    A drop is a dict of config changes, or ("zero"|"one"|"less", regex of parameter names), less is
    -30, or a function that changes the model."""
    name: str
    cls: str  # transformers' ...ForCausalLM
    config: dict[str, Any]
    arch: str  # what export.py must choose
    drops: dict[str, Any] = field(default_factory=dict)
    offset: float = 0.0
    length: int = 40  # tokens of the prompt
    context: int | None = None  # ./run -c
    seed: int = 0
    rewrite: Callable[[Path], None] | None = None  # makes another model_type of the saved folder

    def model(self, changes: dict[str, Any] | None = None) -> torch.nn.Module:
        import transformers
        cls = getattr(transformers, self.cls)
        kw = {"attn_implementation": "eager"} | self.config | (changes or {})
        m = cls(cls.config_class(**json.loads(json.dumps(kw)))).eval().float()
        # transformers ignores alibi_bias_max; MPT's own code and llama.cpp do not
        if self.cls == "MptForCausalLM":
            from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor
            bias = m.config.attn_config.alibi_bias_max
            m.transformer.build_mpt_alibi_tensor = (
                lambda n, t, b=8, device=None: build_mpt_alibi_tensor(n, t, bias, device))
        return m

    def build(self) -> torch.nn.Module:
        m = self.model()
        m.rewrite_folder = self.rewrite
        randomise(m, self.seed + 1, self.offset)
        m.tie_weights()
        ids = torch.randint(3, 290, (1, 48), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            for _ in range(3):  # a soft cap makes this a loop
                std = m(ids).logits.std().item()
                scale = 1.7 / std
                out = m.get_output_embeddings()
                tied = out.weight.data_ptr() == m.get_input_embeddings().weight.data_ptr()
                if tied:
                    norms = [mod for name, mod in m.named_modules() if hasattr(mod, "weight")
                             and re.search(FINAL_NORM, name) and mod.weight.ndim == 1]
                    norm = norms[-1]
                    norm.weight.copy_((norm.weight + self.offset) * scale - self.offset)
                    if getattr(norm, "bias", None) is not None:
                        norm.bias.mul_(scale)
                else:
                    out.weight.mul_(scale)
                    if out.bias is not None:
                        out.bias.mul_(scale)
        return m

    def dropped(self, m: torch.nn.Module, drop: Any) -> torch.nn.Module:
        """A copy of `m` without a feature."""
        copy = self.model(drop if isinstance(drop, dict) else None)
        state = m.state_dict()
        if isinstance(drop, dict):
            state = {k: v for k, v in state.items() if k in copy.state_dict()}
            copy.load_state_dict(state, strict=False)
            copy.tie_weights()
            return copy
        if callable(drop):
            copy.load_state_dict(state)
            drop(copy)
            return copy
        what, pattern = drop
        hits = 0
        state = {k: v.clone() for k, v in state.items()}
        for k in state:
            if re.search(pattern, k):
                hits += 1
                value = {"zero": 0.0, "one": 1.0, "less": -30.0}[what]
                state[k] = torch.full_like(state[k], value)
        assert hits, f"{self.name}: no parameter matches {pattern}"
        copy.load_state_dict(state)
        return copy


def base(**kw: Any) -> dict[str, Any]:
    return dict(vocab_size=300, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
                bos_token_id=None, eos_token_id=None, pad_token_id=None) | kw


def rp(kind: str = "default", theta: float = 10000.0, **kw: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta, **kw}


def gpt2_base(**kw: Any) -> dict[str, Any]:
    return dict(vocab_size=300, n_embd=48, n_layer=3, n_head=4, n_positions=256, n_inner=80,
                bos_token_id=None, eos_token_id=None) | kw


def gemma4_base(**kw: Any) -> dict[str, Any]:
    return base(num_hidden_layers=6, head_dim=16, global_head_dim=24, sliding_window=7,
                hidden_size_per_layer_input=0, vocab_size_per_layer_input=300, rope_parameters={
                    "sliding_attention": rp(theta=300.0), "full_attention": rp(
                        "proportional", 500.0, partial_rotary_factor=0.5)},
                layer_types=["sliding_attention", "full_attention"] * 3) | kw


DEEPSEEK_YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "beta_fast": 32,
                 "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707,
                 "original_max_position_embeddings": 64}


def deepseek_base(**kw: Any) -> dict[str, Any]:
    """Latents of 24 numbers, 8 rotated ones, and heads of 10 more and of 14."""
    return base(num_key_value_heads=4, q_lora_rank=20, kv_lora_rank=24, qk_rope_head_dim=8,
                qk_nope_head_dim=10, v_head_dim=14, n_routed_experts=8, num_experts_per_tok=3,
                moe_intermediate_size=24, n_shared_experts=1, first_k_dense_replace=1,
                routed_scaling_factor=1.7) | kw


def latent_eps(model: torch.nn.Module) -> None:
    """The norms of latents with the epsilon of the others."""
    for layer in model.model.layers:
        for name in ("q_a_layernorm", "kv_a_layernorm"):
            getattr(layer.self_attn, name).variance_epsilon = model.config.rms_norm_eps


def granite_hybrid(**kw: Any) -> dict[str, Any]:
    """Granite 4; without experts its FFN has the width of the shared one."""
    return base(num_hidden_layers=4, intermediate_size=80, shared_intermediate_size=80,
                num_local_experts=0, num_experts_per_tok=0,
                embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.5,
                attention_multiplier=0.4, mamba_n_heads=6, mamba_d_state=20, mamba_expand=2,
                tie_word_embeddings=True,
                layer_types=["mamba", "mamba", "attention", "mamba"]) | kw


# what makes a gated delta net and a gated attention, and a Mamba
DELTA_DROPS: dict[str, Any] = {
    "convolution": ("zero", r"conv1d"), "decay": ("less", r"A_log"), "dt": ("zero", r"dt_bias"),
    "beta": ("zero", r"in_proj_b"), "gate": ("zero", r"in_proj_z"),
    "norm": ("one", r"linear_attn.norm"), "q norm": ("zero", r"q_norm"),
    "k norm": ("zero", r"k_norm")}
MAMBA_DROPS: dict[str, Any] = {
    "convolution": ("zero", r"conv1d.weight"), "its bias": ("zero", r"conv1d.bias"),
    "decay": ("less", r"A_log"), "dt": ("zero", r"dt_bias"), "skip": ("zero", r"mamba.D"),
    "norm": ("one", r"mamba.norm"), "attention": ("zero", r"self_attn.o_proj"),
    "embedding": dict(embedding_multiplier=1.0), "residual": dict(residual_multiplier=1.0),
    "scores": dict(attention_multiplier=0.1), "logits": dict(logits_scaling=1.0)}


def with_extra_layer(folder: Path) -> None:
    """A layer that predicts one more token, as in Qwen3.5's folders; a text has no use for it."""
    from safetensors.torch import load_file, save_file
    path, weights = folder / "config.json", folder / "model.safetensors"
    config, state = json.loads(path.read_text()), load_file(weights)
    like = f"model.layers.{config['layer_types'].index('full_attention')}."
    dim = config["hidden_size"]
    state |= {name.replace(like, "mtp.layers.0."): t + 1 for name, t in state.items()
              if name.startswith(like)}
    state["mtp.fc.weight"] = torch.ones(dim, 2 * dim)
    state |= {f"mtp.{name}.weight": torch.ones(dim)
              for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    save_file(state, weights, {"format": "pt"})
    if "num_experts" in config:  # which has no dense FFN
        del config["intermediate_size"]
    path.write_text(json.dumps(config | {"mtp_num_hidden_layers": 1}))


def published_layers(folder: Path) -> None:
    """Kinds of layers as folders on the Hub, and llama.cpp's converter, spell them."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["layer_types"] = ["mamba" if kind == "linear_attention" else "attention"
                             for kind in config["layer_types"]]
    path.write_text(json.dumps(config))


def plain_values(model: torch.nn.Module) -> None:
    """Gemma 4 without the norm of its values."""
    for layer in model.model.layers:
        layer.self_attn.v_norm = torch.nn.Identity()


def usual_scale(model: torch.nn.Module) -> None:
    for layer in model.model.layers:
        layer.self_attn.scaling = layer.self_attn.head_dim ** -0.5


def other_keys(model: torch.nn.Module) -> None:
    """The windowed layer at the end takes the keys of the first one, not of the last with some."""
    for layer, stores in ((0, True), (2, False)):
        model.model.layers[layer].self_attn.store_full_length_kv = stores


def other_config(folder: Path, kind: str, cls: str, keep: list[str], **more: Any) -> None:
    """config.json of a model that transformers has no class for."""
    c = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(
        {k: c[k] for k in keep} | {"model_type": kind, "architectures": [cls]} | more))


LLAMA_FIELDS = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
                "rms_norm_eps", "hidden_act", "tie_word_embeddings"]


def as_minicpm(folder: Path) -> None:
    """MiniCPM is Granite by other names: OpenBMB's modeling_minicpm.py."""
    c = json.loads((folder / "config.json").read_text())
    other_config(folder, "minicpm", "MiniCPMForCausalLM", LLAMA_FIELDS, rope_theta=500.0,
                 scale_emb=c["embedding_multiplier"],
                 scale_depth=c["residual_multiplier"] * c["num_hidden_layers"] ** 0.5,
                 dim_model_base=int(c["hidden_size"] / c["logits_scaling"]))


def as_internlm2(folder: Path) -> None:
    """InternLM2 is Llama by other names, with q, k and v in one: its modeling_internlm2.py."""
    from safetensors.torch import load_file, save_file
    other_config(folder, "internlm2", "InternLM2ForCausalLM", LLAMA_FIELDS, bias=False,
                 rope_theta=500.0, rope_scaling={"type": "dynamic", "factor": 2.0})
    state, c = load_file(folder / "model.safetensors"), json.loads(
        (folder / "config.json").read_text())
    kv, d = c["num_key_value_heads"], c["hidden_size"]
    names = {"self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1",
             "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
             "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
             "embed_tokens": "tok_embeddings", "lm_head": "output"}
    for i in range(c["num_hidden_layers"]):
        q, k, v = (state.pop(f"model.layers.{i}.self_attn.{p}_proj.weight") for p in "qkv")
        width = k.shape[0] // kv
        state[f"model.layers.{i}.attention.wqkv.weight"] = torch.cat(
            [q.view(kv, -1, width, d), k.view(kv, 1, width, d), v.view(kv, 1, width, d)],
            1).reshape(-1, d)
    for theirs, ours in names.items():
        state = {k.replace(theirs, ours): t for k, t in state.items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})


NORMS = ("one", r"(norm|ln_\w+|layernorm|norm_\w|q_norm|k_norm)\.weight$")
GEMMA_NORMS = ("zero", r"norm\.weight$")
BIAS = ("zero", r"\.bias$")
LONG = [1.0 + 0.7 * i for i in range(6)]
SHORT = [1.0 + 0.1 * i for i in range(6)]
L, M, G, F = "LlamaForCausalLM", "MistralForCausalLM", "GPT2LMHeadModel", "FalconForCausalLM"
G4 = "Gemma4ForCausalLM"

CASES = [
    Case("llama", L, base(rms_norm_eps=1e-4), "llama",
         {"norms": NORMS, "theta": dict(rope_parameters=rp(theta=500.0)),
          "eps": dict(rms_norm_eps=3e-2)}),
    Case("llama-mha-tied", L,
         base(num_key_value_heads=4, tie_word_embeddings=True, rope_parameters=rp(theta=500.0)),
         "llama", {"theta": dict(rope_parameters=rp())}),
    Case("llama-mqa-head-dim", L, base(num_key_value_heads=1, head_dim=20), "llama",
         {"norms": NORMS, "theta": dict(rope_parameters=rp(theta=500.0))}),
    Case("llama-bias", L, base(attention_bias=True, mlp_bias=True), "llama",
         {"attention bias": ("zero", r"attn.*bias"), "ffn bias": ("zero", r"mlp.*bias")}),
    Case("llama-linear", L, base(rope_parameters=rp("linear", factor=4.0)), "llama",
         {"rope scaling": dict(rope_parameters=rp())}),
    Case("llama-llama3", L,
         base(rope_parameters=rp("llama3", 500.0, factor=8.0, low_freq_factor=1.0,
                                 high_freq_factor=4.0, original_max_position_embeddings=32)),
         "llama", {"rope scaling": dict(rope_parameters=rp(theta=500.0))}, length=60),
    Case("llama-yarn", L,
         base(rope_parameters=rp("yarn", 500.0, factor=4.0, original_max_position_embeddings=24)),
         "llama",
         {"rope scaling": dict(rope_parameters=rp(theta=500.0)), "attention factor": dict(
              rope_parameters=rp("yarn", 500.0, factor=4.0, original_max_position_embeddings=24,
                                 attention_factor=1.0))}, length=60),
    Case("llama-yarn-betas", L,
         base(rope_parameters=rp("yarn", 500.0, factor=4.0, original_max_position_embeddings=64,
                                 beta_fast=6.0, beta_slow=2.0, attention_factor=1.3)), "gpt",
         {"betas": dict(rope_parameters=rp("yarn", 500.0, factor=4.0,
                                           original_max_position_embeddings=64,
                                           attention_factor=1.3))}, length=60),
    Case("llama-relu", L, base(hidden_act="relu"), "gpt", {"activation": dict(hidden_act="silu")}),
    Case("llama-relu2", L, base(hidden_act="relu2"), "gpt",
         {"activation": dict(hidden_act="relu")}),
    Case("mistral", M, base(sliding_window=None), "llama", {"norms": NORMS}),
    Case("mistral-window", M, base(sliding_window=7), "gpt",
         {"window": dict(sliding_window=None),
          "window by one": dict(sliding_window=8)}),
    Case("qwen2", "Qwen2ForCausalLM", base(), "qwen2", {"bias": BIAS, "norms": NORMS}),
    Case("qwen2-window", "Qwen2ForCausalLM",
         base(use_sliding_window=True, sliding_window=7, max_window_layers=1), "gpt",
         {"window": dict(use_sliding_window=False),
          "which layers": dict(layer_types=["sliding_attention"] * 3)}),
    Case("qwen3", "Qwen3ForCausalLM", base(head_dim=20), "qwen3",
         {"q norm": ("one", r"q_norm"), "k norm": ("one", r"k_norm")}),
    Case("qwen3-bias", "Qwen3ForCausalLM",
         base(head_dim=20, attention_bias=True, tie_word_embeddings=True), "gpt",
         {"bias": BIAS, "output bias": ("zero", r"o_proj.bias")}),
    Case("mixtral", "MixtralForCausalLM", base(num_local_experts=5, num_experts_per_tok=2), "llama",
         {"experts": ("zero", r"\.experts\.down_proj"), "router": ("zero", r"gate.weight"),
          "number": dict(num_experts_per_tok=3)}),
    Case("mixtral-window", "MixtralForCausalLM",
         base(num_local_experts=4, num_experts_per_tok=3, sliding_window=7), "gpt",
         {"window": dict(sliding_window=None), "number": dict(num_experts_per_tok=2)}),
    Case("qwen3moe", "Qwen3MoeForCausalLM",
         base(head_dim=20, num_experts=9, num_experts_per_tok=4, moe_intermediate_size=24,
              norm_topk_prob=True), "qwen3moe",
         {"router": ("zero", r"mlp.gate.weight"), "q norm": ("one", r"q_norm"),
          "sum of weights": dict(norm_topk_prob=False), "number": dict(num_experts_per_tok=3)}),
    Case("qwen3moe-layers", "Qwen3MoeForCausalLM",
         base(num_hidden_layers=5, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=40,
              decoder_sparse_step=2, tie_word_embeddings=True), "gpt",
         {"sum of weights": dict(norm_topk_prob=True),
          "dense layers": ("zero", r"layers.0.mlp.down_proj")}),
    Case("qwen2moe", "Qwen2MoeForCausalLM",
         base(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24,
              shared_expert_intermediate_size=56), "qwen2moe",
         {"shared": ("zero", r"shared_expert.down_proj"),
          "experts": ("zero", r"\.experts\.down_proj"),
          "gate of the shared": ("zero", r"shared_expert_gate"), "bias": BIAS,
          "sum of weights": dict(norm_topk_prob=True)}),
    Case("qwen2moe-layers", "Qwen2MoeForCausalLM",
         base(num_hidden_layers=4, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=24,
              shared_expert_intermediate_size=56, mlp_only_layers=[1], qkv_bias=False,
              norm_topk_prob=True, use_sliding_window=True, sliding_window=7), "gpt",
         {"sum of weights": dict(norm_topk_prob=False), "window": dict(use_sliding_window=False),
          "dense layers": ("zero", r"layers.1.mlp.down_proj")}),
    Case("olmoe", "OlmoeForCausalLM", base(num_experts=8, num_experts_per_tok=3), "olmoe",
         {"q norm": ("one", r"q_norm"), "k norm": ("one", r"k_norm"),
          "experts": ("zero", r"\.experts\.down_proj"),
          "sum of weights": dict(norm_topk_prob=True)}),
    Case("granitemoe", "GraniteMoeForCausalLM",
         base(num_local_experts=6, num_experts_per_tok=3, embedding_multiplier=3.0,
              residual_multiplier=0.6, attention_multiplier=0.4, logits_scaling=5.0), "granitemoe",
         {"embedding": dict(embedding_multiplier=1.0), "residual": dict(residual_multiplier=1.0),
          "attention": dict(attention_multiplier=0.3), "logits": dict(logits_scaling=1.0),
          "experts": ("zero", r"\.experts\.down_proj"), "router": ("zero", r"router"),
          "number": dict(num_experts_per_tok=2)}),
    Case("granitemoe-shared", "GraniteMoeSharedForCausalLM",
         base(num_local_experts=6, num_experts_per_tok=3, shared_intermediate_size=56,
              attention_bias=True, tie_word_embeddings=True, attention_multiplier=0.4),
         "granitemoe",
         {"shared": ("zero", r"shared_mlp.output"), "experts": ("zero", r"\.experts\.down_proj"),
          "bias": BIAS}, seed=1),
    Case("ernie4_5-moe", "Ernie4_5_MoeForCausalLM",
         base(num_hidden_layers=4, moe_num_experts=7, moe_k=3, moe_intermediate_size=24,
              intermediate_size=96,  # llama.cpp takes the shared width for this / key heads
              tie_word_embeddings=False), "ernie4_5-moe",
         {"shared": ("zero", r"shared_experts.down_proj"),
          "experts": ("zero", r"\.experts\.down_proj"),
          "bias for the choice": ("zero", r"e_score_correction_bias"),
          "dense layer": ("zero", r"layers.0.mlp.down_proj"), "number": dict(moe_k=2)}),
    Case("ernie4_5-moe-layers", "Ernie4_5_MoeForCausalLM",
         base(num_hidden_layers=5, moe_num_experts=5, moe_k=2, moe_intermediate_size=40,
              moe_num_shared_experts=0, moe_layer_interval=2), "gpt",
         {"bias for the choice": ("zero", r"e_score_correction_bias"),
          "dense layer": ("zero", r"layers.2.mlp.down_proj")}),
    Case("lfm2", "Lfm2ForCausalLM",
         base(num_hidden_layers=5, block_auto_adjust_ff_dim=False, norm_eps=1e-5,
              tie_word_embeddings=True, layer_types=["conv", "conv", "full_attention", "conv",
                                                     "full_attention"]), "lfm2",
         {"convolution": ("zero", r"conv\.conv"), "q norm": ("one", r"q_layernorm"),
          "k norm": ("one", r"k_layernorm"), "final norm": ("one", r"embedding_norm"),
          "theta": dict(rope_parameters=rp(theta=500.0))}),
    Case("lfm2-taps", "Lfm2ForCausalLM",
         base(num_hidden_layers=4, intermediate_size=120, block_multiple_of=32,
              block_ffn_dim_multiplier=1.1, conv_L_cache=5, tie_word_embeddings=False,
              layer_types=["full_attention", "conv", "conv", "conv"]), "lfm2",
         {"convolution": ("zero", r"conv\.conv"), "attention": ("zero", r"self_attn.out_proj")}),
    Case("lfm2moe", "Lfm2MoeForCausalLM",
         base(num_hidden_layers=5, num_experts=7, num_experts_per_tok=3, moe_intermediate_size=24,
              num_dense_layers=2, tie_word_embeddings=True,
              layer_types=["conv", "conv", "full_attention", "conv", "conv"]), "lfm2moe",
         {"convolution": ("zero", r"conv\.conv"), "router": ("zero", r"feed_forward.gate.weight"),
          "experts": ("zero", r"\.experts\.down_proj"), "dense": ("zero", r"1.feed_forward.w2"),
          "bias for the choice": ("zero", r"expert_bias"),
          "sum of weights": dict(norm_topk_prob=False), "number": dict(num_experts_per_tok=2)}),
    Case("lfm2moe-plain", "Lfm2MoeForCausalLM",
         base(num_hidden_layers=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=40,
              num_dense_layers=0, use_expert_bias=False, norm_topk_prob=False,
              tie_word_embeddings=False,
              layer_types=["conv", "full_attention", "conv", "full_attention"]), "gpt",
         {"sum of weights": dict(norm_topk_prob=True), "router": ("zero", r"gate.weight")}),
    Case("lfm2-head-dim", "Lfm2ForCausalLM",
         base(num_hidden_layers=3, block_auto_adjust_ff_dim=False, conv_L_cache=2, head_dim=20,
              tie_word_embeddings=False, layer_types=["conv", "full_attention", "conv"]), "gpt",
         {"convolution": ("zero", r"conv\.conv"), "k norm": ("one", r"k_layernorm")}),
    Case("deepseek2", "DeepseekV2ForCausalLM", deepseek_base(
             q_lora_rank=None, n_shared_experts=2, routed_scaling_factor=1.0),
         "deepseek2",
         {"norm of latents": ("one", "kv_a_layernorm"),
          "theta": dict(rope_parameters=rp(theta=300.0)),
          "shared": ("zero", r"shared_experts.down_proj"), "router": ("zero", r"mlp.gate.weight"),
          "experts": ("zero", r"\.experts\.down_proj"),
          "dense layer": ("zero", r"layers.0.mlp.down_proj"),
          "number": dict(num_experts_per_tok=2)}),
    Case("deepseek2-yarn", "DeepseekV2ForCausalLM", deepseek_base(
             topk_method="group_limited_greedy", n_group=4, topk_group=2, first_k_dense_replace=0,
             norm_topk_prob=True,  # which its router ignores
             rms_norm_eps=1e-3, rope_parameters=DEEPSEEK_YARN), "deepseek2",
         {"norm of latents": ("one", "kv_a_layernorm"),
          "norm of q latents": ("one", "q_a_layernorm"),
          "eps of latents": latent_eps,
          "groups": dict(topk_method="greedy"), "groups used": dict(topk_group=3),
          "scale": dict(routed_scaling_factor=1.0),
          "rope scaling": dict(rope_parameters=rp(theta=500.0)),
          "scale of scores": dict(rope_parameters={**DEEPSEEK_YARN, "mscale_all_dim": 0})},
         length=60, seed=2),
    Case("deepseek2-mscale", "DeepseekV2ForCausalLM", deepseek_base(
             attention_bias=True, rope_parameters={**DEEPSEEK_YARN, "mscale": 1.0}), "gpt",
         {"mscale": dict(rope_parameters=DEEPSEEK_YARN), "bias": BIAS}, length=60, seed=1),
    Case("deepseek2-betas", "DeepseekV2ForCausalLM", deepseek_base(
             rope_parameters={**DEEPSEEK_YARN, "beta_fast": 6, "beta_slow": 4}), "gpt",
         {"betas": dict(rope_parameters=DEEPSEEK_YARN)}),
    Case("deepseek3", "DeepseekV3ForCausalLM", deepseek_base(
             n_group=4, topk_group=2, norm_topk_prob=True, rope_parameters={
                 **DEEPSEEK_YARN, "mscale": 1.0, "mscale_all_dim": 1.0}), "deepseek2",
         {"bias for the choice": ("zero", "e_score_correction_bias"),
          "groups": dict(topk_group=4), "sum of weights": dict(norm_topk_prob=False),
          "scale": dict(routed_scaling_factor=1.0), "shared": ("zero", r"shared_experts.down_proj"),
          "scale of scores": dict(rope_parameters={**DEEPSEEK_YARN, "mscale_all_dim": 0})}),
    Case("deepseek3-halves", "DeepseekV3ForCausalLM", deepseek_base(
             n_group=1, topk_group=1, rope_interleave=False, norm_topk_prob=False), "gpt",
         {"pairing": dict(rope_interleave=True), "sum of weights": dict(norm_topk_prob=True)}),
    Case("glm4-moe-lite", "Glm4MoeLiteForCausalLM", deepseek_base(
             num_hidden_layers=4, num_attention_heads=5, num_key_value_heads=5, rms_norm_eps=1e-3,
             norm_topk_prob=True, tie_word_embeddings=True, first_k_dense_replace=2,
             mlp_layer_types=["dense", "dense", "sparse", "sparse"]), "deepseek2",
         {"bias for the choice": ("zero", "e_score_correction_bias"), "eps of latents": latent_eps,
          "dense layers": ("zero", r"layers.[01].mlp.down_proj"),
          "scale": dict(routed_scaling_factor=1.0), "sum of weights": dict(norm_topk_prob=False)}),
    Case("glm4moe", "Glm4MoeForCausalLM",
         base(head_dim=16, attention_bias=True, use_qk_norm=True, n_routed_experts=8,
              num_experts_per_tok=3, moe_intermediate_size=24, n_shared_experts=2,
              routed_scaling_factor=1.7, num_mtp_layers=0,
              rope_parameters=rp(theta=500.0, partial_rotary_factor=0.5)),
         "glm4moe",
         {"q norm": ("one", r"q_norm"), "bias": BIAS,
          "shared": ("zero", r"shared_experts.down_proj"),
          "bias for the choice": ("zero", "e_score_correction_bias"),
          "partial rope": dict(rope_parameters=rp(theta=500.0, partial_rotary_factor=1.0)),
          "dense layer": ("zero", r"layers.0.mlp.down_proj"),
          "scale": dict(routed_scaling_factor=1.0), "sum of weights": dict(norm_topk_prob=False)}),
    Case("glm4moe-plain", "Glm4MoeForCausalLM",
         base(head_dim=16, n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=24,
              n_shared_experts=1, n_group=2, topk_group=1, first_k_dense_replace=0), "glm4moe",
         {"groups": dict(topk_group=2)}),
    Case("qwen35", "Qwen3_5ForCausalLM",
         base(num_hidden_layers=5, head_dim=16, linear_num_key_heads=2, linear_num_value_heads=6,
              linear_key_head_dim=12, linear_value_head_dim=12, tie_word_embeddings=True,
              layer_types=["linear_attention", "linear_attention", "full_attention",
                           "linear_attention", "full_attention"],
              rope_parameters=rp(theta=100.0, partial_rotary_factor=0.5)), "qwen35",
         DELTA_DROPS | {"rope": dict(rope_parameters=rp(theta=100.0, partial_rotary_factor=0.25))},
         offset=1.0, rewrite=with_extra_layer),
    Case("qwen35-interval", "Qwen3_5ForCausalLM",
         base(num_hidden_layers=4, head_dim=32, linear_num_key_heads=3, linear_num_value_heads=3,
              linear_key_head_dim=40, linear_value_head_dim=40, linear_conv_kernel_dim=2,
              tie_word_embeddings=False), "qwen35",
         {"convolution": ("zero", r"conv1d"), "attention": ("zero", r"self_attn.o_proj")},
         offset=1.0, length=140),
    Case("qwen35-widths", "Qwen3_5ForCausalLM",
         base(num_hidden_layers=3, head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4,
              linear_key_head_dim=8, linear_value_head_dim=50, tie_word_embeddings=False,
              attention_bias=True,
              layer_types=["linear_attention", "full_attention", "linear_attention"]), "gpt",
         {"convolution": ("zero", r"conv1d"), "biases": ("zero", r"(q|k)_proj.bias")}, offset=1.0),
    Case("qwen35moe", "Qwen3_5MoeForCausalLM",
         base(num_hidden_layers=4, head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4,
              linear_key_head_dim=12, linear_value_head_dim=12, num_experts=7,
              num_experts_per_tok=3, moe_intermediate_size=24, shared_expert_intermediate_size=40,
              tie_word_embeddings=False,
              rope_parameters=rp(theta=100.0, partial_rotary_factor=0.5)), "qwen35moe",
         DELTA_DROPS | {"router": ("zero", r"mlp.gate.weight"),
                        "experts": ("zero", r"\.experts\.down_proj"),
                        "shared expert": ("zero", r"shared_expert.down_proj"),
                        "gate of the shared expert": ("zero", r"shared_expert_gate"),
                        "number": dict(num_experts_per_tok=2)}, offset=1.0,
         rewrite=with_extra_layer),
    Case("granitehybrid", "GraniteMoeHybridForCausalLM",
         granite_hybrid(), "granitehybrid", MAMBA_DROPS, rewrite=published_layers),
    Case("granitehybrid-experts", "GraniteMoeHybridForCausalLM",
         granite_hybrid(num_local_experts=5, num_experts_per_tok=2, mamba_n_groups=3,
                        mamba_conv_bias=False, shared_intermediate_size=40), "granitehybrid",
         {"router": ("zero", r"router"), "experts": ("zero", r"\.experts\.down_proj"),
          "shared expert": ("zero", r"shared_mlp.output"), "number": dict(num_experts_per_tok=1),
          "convolution": ("zero", r"conv1d.weight")}, rewrite=published_layers),
    Case("granitehybrid-rope", "GraniteMoeHybridForCausalLM",
         granite_hybrid(position_embedding_type="rope", rope_parameters=rp(theta=100.0)),
         "granitehybrid", {"rope": dict(position_embedding_type=None)}),
    Case("granitehybrid-attention", "GraniteMoeHybridForCausalLM",
         granite_hybrid(layer_types=["full_attention"] * 4, position_embedding_type="rope",
                        rope_parameters=rp(theta=100.0)),
         "granite", {"rope": dict(position_embedding_type=None)}, rewrite=published_layers),
    Case("granitehybrid-wide", "GraniteMoeHybridForCausalLM",
         granite_hybrid(mamba_expand=3, mamba_n_heads=4, mamba_d_conv=3), "gpt",
         {"convolution": ("zero", r"conv1d.weight")}),
    Case("gpt-oss", "GptOssForCausalLM",
         base(num_hidden_layers=4, num_local_experts=6, num_experts_per_tok=3, head_dim=20,
              sliding_window=9, max_position_embeddings=256, rope_parameters={
                  "rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "truncate": False,
                  "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 32}),
         "gpt-oss",
         {"sinks": ("less", r"sinks"), "window": dict(sliding_window=200),
          "biases": ("zero", r"gate_up_proj_bias"), "bias of down": ("zero", r"down_proj_bias"),
          "router's bias": ("zero", r"router.bias"), "limit": dict(swiglu_limit=0.5),
          "number": dict(num_experts_per_tok=2), "yarn": dict(rope_parameters={
              "rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "truncate": True,
              "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 32})}),
    Case("gpt-oss-plain", "GptOssForCausalLM",
         base(num_local_experts=4, num_experts_per_tok=2, head_dim=16, sliding_window=7,
              attention_bias=False, swiglu_limit=0.9,
              rope_parameters={"rope_type": "default", "rope_theta": 10000.0}), "gpt",
         {"limit": dict(swiglu_limit=7.0), "sinks": ("less", r"sinks")}),
    Case("gemma", "GemmaForCausalLM", base(head_dim=20, num_key_value_heads=1, hidden_act="gelu"),
         "gemma", {"norms": GEMMA_NORMS}, offset=1.0),
    Case("gemma2", "Gemma2ForCausalLM",
         base(head_dim=20, num_hidden_layers=4, sliding_window=7, query_pre_attn_scalar=20,
              attn_logit_softcapping=2.0, final_logit_softcapping=4.0,
              hidden_activation="gelu_pytorch_tanh"), "gemma2",
         {"norms": GEMMA_NORMS, "window": dict(sliding_window=200),
          "attention cap": dict(attn_logit_softcapping=None),
          "final cap": dict(final_logit_softcapping=None),
          "which layers": dict(layer_types=["sliding_attention"] * 4)}, offset=1.0),
    Case("gemma2-scale", "Gemma2ForCausalLM",
         base(head_dim=20, sliding_window=7, query_pre_attn_scalar=9, attn_logit_softcapping=None,
              final_logit_softcapping=None), "gpt",
         {"scale": dict(query_pre_attn_scalar=20), "window": dict(sliding_window=200)}, offset=1.0),
    Case("gemma3", "Gemma3ForCausalLM",
         base(head_dim=20, num_hidden_layers=7, sliding_window=7, query_pre_attn_scalar=20,
              rope_parameters={
                  "full_attention": rp(theta=1e6), "sliding_attention": rp(theta=300.0)}), "gemma3",
         {"norms": GEMMA_NORMS, "window": dict(sliding_window=200), "q norm": ("zero", r"q_norm"),
          "local base": dict(rope_parameters={"full_attention": rp(theta=1e6),
                                              "sliding_attention": rp(theta=1e6)}),
          "global base": dict(rope_parameters={"full_attention": rp(theta=300.0),
                                               "sliding_attention": rp(theta=300.0)}),
          "which layers": dict(layer_types=["sliding_attention"] * 7)}, offset=1.0),
    Case("gemma3-linear", "Gemma3ForCausalLM",
         base(head_dim=20, num_hidden_layers=7, sliding_window=7, query_pre_attn_scalar=20,
              final_logit_softcapping=4.0,
              rope_parameters={"full_attention": rp("linear", 300.0, factor=8.0),
                               "sliding_attention": rp(theta=300.0)}), "gemma3",
         {"rope scaling": dict(rope_parameters={"full_attention": rp(theta=300.0),
                                                "sliding_attention": rp(theta=300.0)}),
          "final cap": dict(final_logit_softcapping=None)}, offset=1.0),
    Case("gemma3-pattern", "Gemma3ForCausalLM",
         base(head_dim=20, num_hidden_layers=4, sliding_window=7, query_pre_attn_scalar=11,
              layer_types=["full_attention", "sliding_attention", "sliding_attention",
                           "full_attention"], rope_parameters={
                  "full_attention": rp("linear", 300.0, factor=8.0),
                  "sliding_attention": rp(theta=50.0)}), "gpt",
         {"which layers": dict(layer_types=["full_attention"] * 4),
          "scale": dict(query_pre_attn_scalar=20)}, offset=1.0),
    Case("gemma4", G4,
         gemma4_base(num_global_key_value_heads=1, attention_k_eq_v=True,
                     final_logit_softcapping=4.0), "gemma4",
         {"norms": NORMS, "q norm": ("one", r"q_norm"), "k norm": ("one", r"k_norm"),
          "norm of values": plain_values, "scale": usual_scale,
          "scale of layers": ("one", r"layer_scalar"), "window": dict(sliding_window=200),
          "final cap": dict(final_logit_softcapping=None),
          "proportional": dict(rope_parameters={
              "sliding_attention": rp(theta=300.0), "full_attention": rp(theta=500.0)}),
          "local base": dict(rope_parameters={
              "sliding_attention": rp(theta=500.0), "full_attention": rp(
                  "proportional", 500.0, partial_rotary_factor=0.5)})}),
    Case("gemma4-unified", "Gemma4UnifiedForCausalLM",
         {k: v for k, v in gemma4_base(num_kv_shared_layers=2, rope_parameters=None).items()
          if "per_layer" not in k}, "gemma4",
         {"norm of values": plain_values, "scale of layers": ("one", r"layer_scalar")}),
    Case("gemma4-per-layer", G4,
         gemma4_base(hidden_size_per_layer_input=20, num_kv_shared_layers=2,
                     use_double_wide_mlp=True), "gemma4",
         {"table": ("zero", r"embed_tokens_per_layer"),
          "projection": ("zero", r"per_layer_model_projection"),
          "norm of projections": ("one", r"per_layer_projection_norm"),
          "gate": ("zero", r"per_layer_input_gate"),
          "norm after": ("one", r"post_per_layer_input_norm"),
          "whose keys": other_keys}),
    Case("gemma4-experts", G4,
         gemma4_base(num_hidden_layers=4, layer_types=["sliding_attention", "full_attention"] * 2,
                     enable_moe_block=True, num_experts=7, top_k_experts=3,
                     moe_intermediate_size=24, num_global_key_value_heads=1,
                     attention_k_eq_v=True), "gemma4",
         {"experts": ("zero", r"\.experts\.down_proj"), "dense": ("zero", r"mlp.down_proj"),
          "router": ("zero", r"router.proj"), "what the router reads": ("one", r"router.scale"),
          "scale of experts": ("one", r"per_expert_scale"),
          "norm before": ("one", r"pre_feedforward_layernorm_2"),
          "norm of the dense": ("one", r"post_feedforward_layernorm_1"),
          "norm after": ("one", r"post_feedforward_layernorm_2"), "number": dict(top_k_experts=2)}),
    Case("gemma4-all", G4,
         gemma4_base(num_hidden_layers=5, attention_bias=True, hidden_size_per_layer_input=12,
                     num_kv_shared_layers=2, use_double_wide_mlp=True, enable_moe_block=True,
                     num_experts=5, top_k_experts=2, moe_intermediate_size=40,
                     num_global_key_value_heads=1, attention_k_eq_v=True, layer_types=[
                         "full_attention", "sliding_attention", "sliding_attention",
                         "full_attention", "full_attention"]), "gpt",
         {"bias": BIAS, "experts": ("zero", r"\.experts\.down_proj"),
          "gate": ("zero", r"per_layer_input_gate"), "norm of values": plain_values,
          "scale of layers": ("one", r"layer_scalar")}),
    Case("phi2", "PhiForCausalLM",
         base(num_key_value_heads=4, rope_parameters=rp(partial_rotary_factor=0.5)), "phi2",
         {"partial rope": dict(rope_parameters=rp(partial_rotary_factor=1.0)), "bias": BIAS,
          "norms": NORMS,
          "output bias": ("zero", r"lm_head.bias")}),
    Case("phi2-gqa-tied", "PhiForCausalLM",
         base(tie_word_embeddings=True, rope_parameters=rp(partial_rotary_factor=0.5)), "phi2",
         {"bias": BIAS}),
    Case("phi2-qk-norm", "PhiForCausalLM",
         base(qk_layernorm=True, rope_parameters=rp(partial_rotary_factor=0.5)), "gpt",
         {"q norm": ("one", r"q_layernorm.weight"), "k norm bias": ("zero", r"k_layernorm.bias"),
          "q norm bias": ("zero", r"q_layernorm.bias")}),
    Case("phi3", "Phi3ForCausalLM", base(rope_parameters=rp(partial_rotary_factor=0.5)), "phi3",
         {"norms": NORMS, "partial rope": dict(rope_parameters=rp(partial_rotary_factor=1.0))}),
    Case("phi3-window", "Phi3ForCausalLM", base(sliding_window=7), "gpt",
         {"window": dict(sliding_window=None)}),
    Case("phi3-longrope", "Phi3ForCausalLM",
         base(original_max_position_embeddings=32,
              rope_parameters=rp("longrope", 500.0, long_factor=LONG, short_factor=SHORT)), "phi3",
         {"rope scaling": dict(rope_parameters=rp(theta=500.0)), "long factors": dict(
              rope_parameters=rp("longrope", 500.0, long_factor=SHORT, short_factor=SHORT))},
         length=60, context=200),
    Case("phi3-longrope-short", "Phi3ForCausalLM",
         base(original_max_position_embeddings=128,
              rope_parameters=rp("longrope", 500.0, long_factor=LONG, short_factor=SHORT)), "phi3",
         {"rope scaling": dict(rope_parameters=rp(theta=500.0))}, context=128),
    Case("gpt2", G, gpt2_base(), "gpt2",
         {"bias": BIAS, "norms": NORMS, "positions": ("zero", r"wpe"),
          "activation": dict(activation_function="gelu"),
          "eps": dict(layer_norm_epsilon=3e-2)}),
    Case("gpt2-untied", G, gpt2_base(tie_word_embeddings=False, n_inner=None), "gpt2",
         {"bias": BIAS}),
    Case("gpt2-scales", G,
         gpt2_base(scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True), "gpt",
         {"inverse layer": dict(scale_attn_by_inverse_layer_idx=False)}),
    Case("gpt2-unscaled", G, gpt2_base(scale_attn_weights=False), "gpt",
         {"scale": dict(scale_attn_weights=True)}),
    Case("gpt2-relu", G, gpt2_base(activation_function="relu"), "gpt",
         {"activation": dict(activation_function="gelu_new")}),
    Case("gptneox", "GPTNeoXForCausalLM", base(rope_parameters=rp(partial_rotary_factor=0.5)),
         "gptneox", {"parallel": dict(use_parallel_residual=False), "bias": BIAS, "norms": NORMS,
                     "partial rope": dict(rope_parameters=rp(partial_rotary_factor=1.0)),
                     "activation": dict(hidden_act="gelu_new")}),
    Case("gptneox-sequential", "GPTNeoXForCausalLM",
         base(use_parallel_residual=False, tie_word_embeddings=True,
              rope_parameters=rp(partial_rotary_factor=0.5)), "gptneox",
         {"sequential": dict(use_parallel_residual=True)}),
    Case("gptneox-tanh", "GPTNeoXForCausalLM", base(hidden_act="gelu_new", attention_bias=False,
                                                    rope_parameters=rp(partial_rotary_factor=0.5)),
         "gpt", {"activation": dict(hidden_act="gelu")}),
    Case("gptj", "GPTJForCausalLM", gpt2_base(rotary_dim=8), "gpt",
         {"rotary dim": dict(rotary_dim=12), "bias": BIAS, "norms": NORMS,
          "output bias": ("zero", r"lm_head.bias")}),
    Case("starcoder2", "Starcoder2ForCausalLM", base(), "starcoder2",
         {"bias": BIAS, "norms": NORMS}),
    Case("starcoder2-window", "Starcoder2ForCausalLM",
         base(sliding_window=7, use_bias=False, tie_word_embeddings=False), "gpt",
         {"window": dict(sliding_window=None)}),
    Case("stablelm", "StableLmForCausalLM", base(rope_parameters=rp(partial_rotary_factor=0.5)),
         "stablelm",
         {"norms": NORMS, "partial rope": dict(rope_parameters=rp(partial_rotary_factor=1.0))}),
    Case("stablelm-qk-norm", "StableLmForCausalLM",
         base(qk_layernorm=True, use_parallel_residual=True, use_qkv_bias=True,
              rope_parameters=rp(partial_rotary_factor=0.5)), "stablelm",
         {"q norm": ("one", r"q_layernorm"), "k norm": ("one", r"k_layernorm"), "bias": BIAS,
          "one head's norm": ("one", r"q_layernorm.norms.1.weight")}),
    Case("olmo2", "Olmo2ForCausalLM", base(), "olmo2",
         {"q norm": ("one", r"q_norm"), "k norm": ("one", r"k_norm"),
          "post norms": ("one", r"post_\w+norm.weight")}),
    Case("olmo2-bias", "Olmo2ForCausalLM", base(attention_bias=True), "gpt", {"bias": BIAS}),
    Case("smollm3", "SmolLM3ForCausalLM",
         base(num_hidden_layers=5, rope_parameters=rp(theta=500.0)), "smollm3",
         {"nope layers": dict(no_rope_layers=[1] * 5), "norms": NORMS}),
    Case("smollm3-layers", "SmolLM3ForCausalLM",
         base(no_rope_layers=[1, 0, 1], use_sliding_window=True, sliding_window=7,
              rope_parameters=rp(theta=500.0)), "gpt",
         {"nope layers": dict(no_rope_layers=[1, 1, 1], layer_types=[
                                  "full_attention", "sliding_attention", "full_attention"]),
          "window": dict(use_sliding_window=False)}),
    Case("granite", "GraniteForCausalLM",
         base(embedding_multiplier=3.0, residual_multiplier=0.6, attention_multiplier=0.4,
              logits_scaling=5.0), "granite",
         {"embedding": dict(embedding_multiplier=1.0), "residual": dict(residual_multiplier=1.0),
          "attention": dict(attention_multiplier=0.3), "logits": dict(logits_scaling=1.0)}),
    Case("granite-bias", "GraniteForCausalLM",
         base(attention_bias=True, mlp_bias=True, tie_word_embeddings=True), "granite",
         {"bias": BIAS}),
    Case("olmo3", "Olmo3ForCausalLM",
         base(num_hidden_layers=5, sliding_window=7, rope_parameters={
             "full_attention": rp("yarn", 500.0, factor=4.0, original_max_position_embeddings=24),
             "sliding_attention": rp(theta=500.0)}), "olmo2",
         {"window": dict(sliding_window=200), "which layers": dict(
              layer_types=["sliding_attention"] * 5), "global rope": dict(rope_parameters={
                  "full_attention": rp(theta=500.0), "sliding_attention": rp(theta=500.0)}),
          "local rope": dict(rope_parameters={
              k: rp("yarn", 500.0, factor=4.0, original_max_position_embeddings=24)
              for k in ("full_attention", "sliding_attention")})}, length=60, seed=1),
    Case("olmo", "OlmoForCausalLM", base(clip_qkv=1.5), "olmo",
         {"clip": dict(clip_qkv=None), "theta": dict(rope_parameters=rp(theta=500.0))}),
    Case("olmo-plain", "OlmoForCausalLM", base(num_key_value_heads=4), "olmo",
         {"theta": dict(rope_parameters=rp(theta=500.0))}),
    Case("cohere", "CohereForCausalLM", base(logit_scale=0.4), "command-r",
         {"norms": NORMS, "scale": dict(logit_scale=1.0),
          "theta": dict(rope_parameters=rp(theta=300.0))}),
    Case("cohere-qk-norm", "CohereForCausalLM",
         base(use_qk_norm=True, attention_bias=True, tie_word_embeddings=False), "gpt",
         {"q norm": ("one", r"q_norm"), "k norm": ("one", r"k_norm"), "bias": BIAS}),
    Case("cohere-64", "CohereForCausalLM",  # llama.cpp knows the q/k norms by the layers
         base(use_qk_norm=True, num_hidden_layers=64, hidden_size=24, intermediate_size=20),
         "command-r", {"q norm": ("one", r"q_norm"), "k norm": ("one", r"k_norm")}),
    Case("cohere2", "Cohere2ForCausalLM",
         base(num_hidden_layers=5, logit_scale=0.4, sliding_window=7, rotary_pct=1.0), "cohere2",
         {"window": dict(sliding_window=8), "which layers": dict(
              layer_types=["sliding_attention"] * 5), "scale": dict(logit_scale=1.0),
          "theta": dict(rope_parameters=rp(theta=300.0))}),
    Case("cohere2-layers", "Cohere2ForCausalLM",
         base(sliding_window=300, layer_types=[
             "full_attention", "sliding_attention", "full_attention"]), "gpt",
         {"which layers": dict(layer_types=["sliding_attention"] * 3)}),
    Case("glm4", "Glm4ForCausalLM", base(head_dim=20, rope_parameters=rp(
             partial_rotary_factor=0.5)), "glm4",
         {"bias": BIAS, "norms": NORMS, "partial rope": dict(rope_parameters=rp(
              partial_rotary_factor=1.0)),
          "post norms": ("one", r"post_(self_attn|mlp)_layernorm")}, seed=1),
    Case("glm4-plain", "Glm4ForCausalLM", base(head_dim=12, attention_bias=False,
             tie_word_embeddings=True), "glm4", {"norms": NORMS}),
    Case("exaone4", "Exaone4ForCausalLM",
         base(sliding_window=None, layer_types=["full_attention"] * 3, rope_parameters=rp(
             "llama3", 500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
             original_max_position_embeddings=32)), "exaone4",
         {"q norm": ("one", r"q_norm"), "k norm": ("one", r"k_norm"),
          "post norms": ("one", r"post_\w+norm.weight"),
          "rope scaling": dict(rope_parameters=rp(theta=500.0))}, length=60),
    Case("exaone4-window", "Exaone4ForCausalLM", base(num_hidden_layers=5, sliding_window=7), "gpt",
         {"window": dict(sliding_window=8), "rope of all": dict(
             sliding_window=None, layer_types=["full_attention"] * 5)}),
    Case("exaone4-64", "Exaone4ForCausalLM",  # llama.cpp knows the windows by the layers
         base(num_hidden_layers=64, hidden_size=24, intermediate_size=20, sliding_window=7),
         "exaone4", {"window": dict(sliding_window=8)}),
    Case("ernie4_5", "Ernie4_5ForCausalLM", base(head_dim=20, tie_word_embeddings=False),
         "ernie4_5", {"norms": NORMS, "theta": dict(rope_parameters=rp(theta=300.0))}),
    Case("ernie4_5-bias", "Ernie4_5ForCausalLM", base(head_dim=12, use_bias=True), "gpt",
         {"bias": BIAS}),
    Case("seed_oss", "SeedOssForCausalLM", base(head_dim=20), "seed_oss",
         {"bias": BIAS, "norms": NORMS}),
    Case("seed_oss-biases", "SeedOssForCausalLM",
         base(head_dim=20, attention_out_bias=True, mlp_bias=True), "gpt",
         {"output bias": ("zero", r"o_proj.bias"), "ffn bias": ("zero", r"mlp.*bias")}),
    Case("hunyuan", "HunYuanDenseV1ForCausalLM",
         base(head_dim=20, max_position_embeddings=32768,  # llama.cpp takes no other with alpha
              rope_parameters=rp("dynamic", alpha=3.0, factor=1.0)), "hunyuan-dense",
         {"q norm": ("one", r"query_layernorm"), "k norm": ("one", r"key_layernorm"),
          "alpha": dict(rope_parameters=rp("dynamic", alpha=2.0, factor=1.0))}),
    Case("hunyuan-bias", "HunYuanDenseV1ForCausalLM", base(head_dim=12, attention_bias=True), "gpt",
         {"bias": BIAS}),
    Case("nemotron", "NemotronForCausalLM", base(rope_parameters=rp(partial_rotary_factor=0.5)),
         "nemotron",
         {"norms": GEMMA_NORMS, "norm bias": ("zero", r"norm\.bias"),
          "activation": dict(hidden_act="relu"),
          "partial rope": dict(rope_parameters=rp(partial_rotary_factor=1.0))}, offset=1.0),
    Case("nemotron-bias", "NemotronForCausalLM",
         base(attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
              rope_parameters=rp(partial_rotary_factor=0.5)), "nemotron",
         {"attention bias": ("zero", r"attn.*bias"), "ffn bias": ("zero", r"mlp.*bias")},
         offset=1.0),
    Case("arcee", "ArceeForCausalLM", base(head_dim=20), "arcee",
         {"norms": NORMS, "activation": dict(hidden_act="relu")}),
    Case("apertus", "ApertusForCausalLM", base(rope_parameters=rp(
             "llama3", 500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
             original_max_position_embeddings=32)), "apertus",
         {"q norm": ("one", r"q_norm"), "k norm": ("one", r"k_norm"), "norms": NORMS,
          **{part: ("zero", f"act_fn.{part}") for part in ("alpha_p", "alpha_n")}}, length=60),
    Case("apertus-bias", "ApertusForCausalLM",
         base(attention_bias=True, rope_parameters=rp(theta=500.0)), "apertus", {"bias": BIAS}),
    Case("ministral3", "Ministral3ForCausalLM",
         base(head_dim=20, rope_parameters=rp(
             "yarn", 500.0, factor=4.0, original_max_position_embeddings=16, mscale=1.0,
             mscale_all_dim=1.0, beta_fast=32.0, beta_slow=1.0, llama_4_scaling_beta=0.4)),
         "mistral3",
         {"temperature": dict(rope_parameters=rp(
              "yarn", 500.0, factor=4.0, original_max_position_embeddings=16, mscale=1.0,
              mscale_all_dim=1.0, llama_4_scaling_beta=0.0)),
          "rope scaling": dict(rope_parameters=rp(
              theta=500.0, original_max_position_embeddings=16, llama_4_scaling_beta=0.4))},
         length=60),
    Case("ministral3-plain", "Ministral3ForCausalLM",
         base(sliding_window=9, rope_parameters=rp(
             original_max_position_embeddings=24, llama_4_scaling_beta=0.3)), "gpt",
         {"window": dict(sliding_window=None), "temperature": dict(rope_parameters=rp(
             original_max_position_embeddings=24, llama_4_scaling_beta=0.0))}, length=60),
    Case("minicpm", "GraniteForCausalLM",
         base(embedding_multiplier=3.0, residual_multiplier=0.6, attention_multiplier=12 ** -0.5,
              logits_scaling=4.0, rope_parameters=rp(theta=500.0)), "minicpm",
         {"embedding": dict(embedding_multiplier=1.0), "residual": dict(residual_multiplier=1.0),
          "logits": dict(logits_scaling=1.0)}, rewrite=as_minicpm),
    Case("internlm2", L, base(rope_parameters=rp(theta=500.0)), "internlm2", {"norms": NORMS},
         rewrite=as_internlm2),
    Case("llama-dynamic", L, base(rope_parameters=rp("dynamic", 500.0, factor=2.0)), "llama",
         {"theta": dict(rope_parameters=rp("dynamic", factor=2.0))}),
    Case("gpt_bigcode", "GPTBigCodeForCausalLM", gpt2_base(n_inner=None), "starcoder",
         {"bias": BIAS, "norms": NORMS, "positions": ("zero", r"wpe")}),
    Case("gpt_bigcode-mha", "GPTBigCodeForCausalLM", gpt2_base(multi_query=False), "starcoder",
         {"bias": BIAS, "activation": dict(activation_function="gelu")}),
    Case("gpt_neo", "GPTNeoForCausalLM",
         dict(vocab_size=300, hidden_size=48, num_layers=3, num_heads=4, intermediate_size=80,
              max_position_embeddings=256, window_size=7, bos_token_id=None, eos_token_id=None,
              attention_types=[[["global", "local"], 1], [["local"], 1]]), "gpt",
         {"window": dict(window_size=8), "bias": BIAS, "norms": NORMS, "which layers": dict(
              attention_types=[[["global"], 3]])}),
    Case("codegen", "CodeGenForCausalLM", gpt2_base(rotary_dim=8), "gpt",
         {"rotary dim": dict(rotary_dim=12), "bias": BIAS, "norms": NORMS}),
    Case("opt", "OPTForCausalLM",
         base(ffn_dim=80, word_embed_proj_dim=48, tie_word_embeddings=False), "gpt",
         {"bias": BIAS, "norms": NORMS, "activation": dict(activation_function="gelu"),
          "positions": ("zero", r"embed_positions")}),
    Case("opt-350m", "OPTForCausalLM",
         base(ffn_dim=80, word_embed_proj_dim=32, do_layer_norm_before=False), "gpt",
         {"bias": BIAS, "norms": NORMS, "place of norms": dict(do_layer_norm_before=True)}),
    Case("opt-plain", "OPTForCausalLM",
         base(ffn_dim=80, word_embed_proj_dim=32, enable_bias=False, tie_word_embeddings=False,
              layer_norm_elementwise_affine=False), "gpt",
         {"positions": ("zero", r"embed_positions")}),
    Case("falcon-7b", F, base(ffn_hidden_size=80, num_kv_heads=None), "falcon",
         {"norms": NORMS, "norm bias": BIAS, "activation": dict(activation="gelu_new")}),
    Case("falcon-40b", F, base(ffn_hidden_size=80, new_decoder_architecture=True, num_kv_heads=2),
         "falcon",
         {"attention norm": ("one", r"ln_attn.weight"), "ffn norm": ("one", r"ln_mlp.weight")}),
    Case("falcon-11b", F,
         base(ffn_hidden_size=80, new_decoder_architecture=True, num_kv_heads=2,
              num_ln_in_parallel_attn=1, tie_word_embeddings=False), "falcon", {"norms": NORMS}),
    Case("falcon-sequential", F, base(ffn_hidden_size=80, parallel_attn=False, multi_query=False,
                                      bias=True, num_kv_heads=None), "gpt", {"bias": BIAS}),
    Case("bloom", "BloomForCausalLM", base(n_head=4, n_layer=3), "bloom",
         {"bias": BIAS, "norms": NORMS}),
    Case("bloom-heads", "BloomForCausalLM", base(n_head=6, n_layer=3), "bloom",
         {"embedding norm": ("one", r"word_embeddings_layernorm.weight")}),
    Case("mpt", "MptForCausalLM", dict(vocab_size=300, d_model=48, n_heads=4, n_layers=3,
                                       max_seq_len=256, attn_config=dict(alibi_bias_max=4)), "mpt",
         {"norms": NORMS, "alibi": dict(attn_config=dict(alibi_bias_max=8))}),
    Case("mpt-clip", "MptForCausalLM", dict(vocab_size=300, d_model=48, n_heads=6, n_layers=3,
                                            max_seq_len=256, attn_config=dict(clip_qkv=1.0)), "mpt",
         {"clip": dict(attn_config=dict(clip_qkv=None))}),
    Case("mpt-scale", "MptForCausalLM",
         dict(vocab_size=300, d_model=48, n_heads=4, n_layers=3, max_seq_len=256,
              attn_config=dict(softmax_scale=0.2)), "gpt", {"scale": dict(attn_config=dict())}),
]


# ---- the architecture `gpt`, in plain torch ------------------------------------------------------

def rope_angles(s: dict[str, Any], factors: dict[str, Tensor], positions: Tensor,
                base_key: str) -> tuple[Tensor, Tensor]:
    """cos and sin (T, rope dims / 2), with scaling where it applies."""
    rot, freq = s["rope.dimension_count"], s[base_key]
    i = torch.arange(rot // 2, dtype=torch.float64)
    inv, mscale, kind = freq ** (-2 * i / rot), 1.0, s["rope.scaling.type"]
    if base_key == "rope.freq_base_swa":
        kind = "none"
    factor, original, attn = (s["rope.scaling.factor"], s["rope.scaling.original_context_length"],
                              s["rope.scaling.attn_factor"] or 1.0)
    if "rope_freqs.weight" in factors and base_key == "rope.freq_base":
        inv = inv / factors["rope_freqs.weight"]
    if kind == "linear":
        inv = inv / factor
    elif kind == "longrope":
        which = "long" if len(positions) > original else "short"
        inv, mscale = inv / factors[f"rope_factors_{which}.weight"], attn
    elif kind == "yarn":
        fast, slow = (s["rope.scaling.yarn_beta_fast"] or 32.0,
                      s["rope.scaling.yarn_beta_slow"] or 1.0)
        low, high = (rot * math.log(original / (b * 2 * math.pi)) / (2 * math.log(freq))
                     for b in (fast, slow))
        if s["rope.scaling.yarn_truncate"] is not False:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rot - 1)
        ramp = ((i - low) / max(high - low, 1e-3)).clamp(0, 1)
        inv = inv / factor * ramp + inv * (1 - ramp)
        mscale = attn * (1 + 0.1 * math.log(factor))
    angle = positions[:, None].double() * inv
    return angle.cos() * mscale, angle.sin() * mscale


def rotate(x: Tensor, cos: Tensor, sin: Tensor, pairing: str) -> Tensor:
    """Rotate the first values of x (heads, T, dim) in pairs.

    The pairing is "half" (i, i + n) or "interleaved" (2i, 2i + 1)."""
    n = cos.shape[-1]
    a, b = (x[..., :n],
            x[..., n:2 * n]) if pairing == "half" else (x[..., :2 * n:2], x[..., 1:2 * n:2])
    ra, rb = a * cos - b * sin, a * sin + b * cos
    front = torch.cat([ra, rb], -1) if pairing == "half" else torch.stack([ra, rb], -1).flatten(-2)
    return torch.cat([front, x[..., 2 * n:]], -1)


def alibi_slopes(n: int, bias: float) -> Tensor:
    p = 2 ** math.floor(math.log2(n))
    return torch.tensor([2 ** (-bias * (h + 1) / p)
                         if h < p else 2 ** (-bias / 2 * (2 * (h - p) + 1) / p) for h in range(n)],
                        dtype=torch.float64)


def gpt_forward(s: dict[str, Any], w: dict[str, Tensor], ids: list[int], maps: list[Tensor]
                | None = None, qkv: list[tuple[Tensor, ...]] | None = None) -> Tensor:
    """Logits (T, vocab) of the architecture `gpt` as docs/gpt-keys.md describes it, in f64.

    `maps` receives each layer's attention weights (heads, T, T), `qkv` its queries, keys and values
    as attention uses them, (heads, T, width) each."""
    w = {k: v.double() for k, v in w.items()}
    n, h = len(ids), s["attention.head_count"]
    positions = torch.arange(n)
    last: dict[bool, tuple[Tensor, Tensor]] = {}  # keys and values by whether there is a window

    def norm(x: Tensor, name: str) -> Tensor:
        if s["norm.type"] == "layer":
            x = x - x.mean(-1, keepdim=True)
        x = x * (x.pow(2).mean(-1, keepdim=True) + s["norm.epsilon"]).rsqrt()
        x = x * w.get(name + ".weight", 1.0)
        return x + w[name + ".bias"].view(-1, x.shape[-1]).squeeze(0) if name + ".bias" in w else x

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)

    def cap(x: Tensor, limit: float | None) -> Tensor:
        return torch.tanh(x / limit) * limit if limit else x

    act = {"gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu, "relu": torch.relu,
           "gelu_tanh": lambda t: torch.nn.functional.gelu(t, approximate="tanh"),
           "relu2": lambda t: torch.relu(t) ** 2}

    def xielu(x: Tensor) -> Tensor:
        positive, negative, beta, eps = (torch.tensor(s[f"xielu.{part}"], dtype=x.dtype)[layer]
                                         for part in ("alpha_p", "alpha_n", "beta", "eps"))
        soft = torch.nn.functional.softplus
        below = (torch.expm1(x.minimum(eps)) - x) * (beta + soft(negative))
        return torch.where(x > 0, soft(positive) * x * x, below) + beta * x
    act["xielu"] = xielu

    x = w["token_embd.weight"][ids] * s["embedding_scale"]
    if s["position"] == "learned":
        x = x + w["position_embd.weight"][positions + s["position.offset"]]
    if s["norm.embedding"]:
        x = norm(x, "token_embd_norm")
    if width := s["embedding_length_per_layer_input"]:
        own_parts = linear(x, "per_layer_model_proj").view(n, -1, width) / x.shape[1] ** 0.5
        table = w["per_layer_token_embd.weight"][ids].view(n, -1, width) * width ** 0.5
        own_parts = (norm(own_parts, "per_layer_proj_norm") + table) / 2 ** 0.5
    for layer in range(s["block_count"]):
        b = f"blk.{layer}."
        windowed = s["attention.sliding_window"] and (s["attention.sliding_window_pattern"]
                                                      or [True] * layer + [True])[layer]
        own = layer < s["block_count"] - (s["attention.shared_kv_layers"] or 0)
        swa = "_swa" if windowed else ""
        kv = s["attention.head_count_kv"]
        kv = kv[layer] if isinstance(kv, list) else kv
        kd, vd = (s[f"attention.{what}_length{swa}"] or s[f"attention.{what}_length"]
                  for what in ("key", "value"))
        a = norm(x, b + "attn_norm") if s["norm.pre"] else x

        def heads(name: str, count: int, width: int, norm_name: str = "") -> Tensor:
            """(count, T, width) of a projection: clamped, normalised and rotated."""
            t = linear(a, b + name)
            if s["attention.clamp_kqv"]:
                t = t.clamp(-s["attention.clamp_kqv"], s["attention.clamp_kqv"])
            if norm_name and s["attention.qk_norm"] == "full" and \
                    not s["attention.qk_norm_after_rope"]:
                t = norm(t, b + norm_name)
            t = t.view(n, count, width)
            if norm_name and s["attention.qk_norm"] in ("head", "heads") and \
                    not s["attention.qk_norm_after_rope"]:
                t = norm(t, b + norm_name)
            t = t.transpose(0, 1)
            if (norm_name and s["position"] == "rope"
                    and (s["rope.layers"] is None or s["rope.layers"][layer])):
                base = "rope.freq_base_swa" if swa and s["rope.freq_base_swa"] else "rope.freq_base"
                dim = swa and s["rope.dimension_count_swa"] or s["rope.dimension_count"]
                cos, sin = rope_angles(s | {"rope.dimension_count": min(dim, width)}, w, positions,
                                       base)
                t = rotate(t, cos, sin, s["rope.pairing"])
            if norm_name and s["attention.qk_norm"] != "none" and \
                    s["attention.qk_norm_after_rope"]:
                t = t.transpose(0, 1)
                t = t.reshape(n, -1) if s["attention.qk_norm"] == "full" else t
                t = norm(t, b + norm_name).reshape(n, count, width).transpose(0, 1)
            return t

        def latents() -> tuple[Tensor, Tensor, Tensor]:
            """Queries, keys and values of each head, (h, T, width)."""
            def latent_norm(x: Tensor, name: str) -> Tensor:
                return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * w[name + ".weight"]

            rank, turning = s["attention.kv_lora_rank"], kd - s["attention.kv_lora_rank"]
            cos, sin = rope_angles(s | {"rope.dimension_count": turning}, w, positions,
                                   "rope.freq_base")

            def rotated(t: Tensor) -> Tensor:  # the last part of each head
                return torch.cat([t[..., :-turning], rotate(t[..., -turning:], cos, sin,
                                                            s["rope.pairing"])], -1)
            if s["attention.q_lora_rank"]:
                q = latent_norm(linear(a, b + "attn_q_a"), b + "attn_q_a_norm")
                q = linear(q, b + "attn_q_b")
            else:
                q = linear(a, b + "attn_q")
            c, pe = linear(a, b + "attn_kv_a_mqa").split([rank, turning], -1)
            c = latent_norm(c, b + "attn_kv_a_norm")
            k = c @ w[b + "attn_k_b.weight"]  # (h, T, width)
            k = torch.cat([k, pe.expand(h, n, turning)], -1)
            return (rotated(q.view(n, h, -1).transpose(0, 1)), rotated(k),
                    c @ w[b + "attn_v_b.weight"].mT)

        is_latent = bool(s["attention.kv_lora_rank"])
        if is_latent:
            q, k, v = latents()
            kd, vd, own = q.shape[2], v.shape[2], False
            last[bool(swa)] = k, v
        else:
            q = heads("attn_q", h, kd, "attn_q_norm")
        if s["attention.temperature_scale"]:
            beyond = positions // (s["rope.scaling.original_context_length"] or s["context_length"])
            q = q * (1 + s["attention.temperature_scale"] * torch.log(1.0 + beyond))[:, None]
        if own:
            k = heads("attn_k", kv, kd, "attn_k_norm")
            same = (s["attention.keys_as_values"] or [False] * (layer + 1))[layer]
            v = (k[..., :vd] if s["attention.values_in_keys"]
                 else heads("attn_k" if same else "attn_v", kv, vd))
            v = norm(v, "") if s["attention.value_norm"] else v
            last[bool(swa)] = tuple(t.repeat_interleave(h // kv, 0) for t in (k, v))
        k, v = last[bool(swa)]
        scale = s["attention.scale"]
        scale = scale[layer] if isinstance(scale, list) else kd ** -0.5 if scale is None else scale
        scores = cap(q @ k.transpose(1, 2) * scale, s["attn_logit_softcapping"])
        back = positions[:, None] - positions[None, :]
        if s["position"] == "alibi":
            scores = scores - alibi_slopes(h, s["attention.max_alibi_bias"])[:, None, None] * back
        if s["position"] == "relative":
            reach = s["position.reach"]
            scores = scores + w[b + "attn_rel_b.weight"][:, (-back).clamp(-reach, reach) + reach]
        hidden = (back < 0) | (back >= s["attention.sliding_window"]) if windowed else back < 0
        scores = scores.masked_fill(hidden, -torch.inf)
        if s["attention.sinks"]:
            sinks = w[b + "attn_sinks.weight"][:, None, None].expand(h, n, 1)
            scores = torch.cat([scores, sinks], -1)
        weights = scores.softmax(-1)[..., :n]
        if maps is not None:
            maps.append(weights)
        if qkv is not None:
            qkv.append((q, k, v))
        out = weights @ v
        out = linear(out.transpose(0, 1).reshape(n, h * vd), b + "attn_output")
        if s["norm.post"] and not s["norm.residual"]:
            out = norm(out, b + "post_attention_norm")
        out = out * s["residual_scale"]
        mid = x + out if s["residual"] == "sequential" else x
        if s["norm.residual"]:
            mid = norm(mid, b + "post_attention_norm")
        f = a if s["residual.shared_norm"] else norm(mid, b + "ffn_norm") if s["norm.pre"] else mid

        def ffn(h: Tensor, kind: str = "", e: int | None = None) -> Tensor:
            """Of the matrices ffn_up, ffn_gate and ffn_down, or of expert e of those of a kind."""
            def product(x: Tensor, part: str) -> Tensor:
                m, bias = w[f"{b}ffn_{part}{kind}.weight"], w.get(f"{b}ffn_{part}{kind}.bias")
                m = m if e is None else m[e]
                return x @ m.T + (0.0 if bias is None else bias if e is None else bias[e])

            up, limit = product(h, "up"), s["ffn.swiglu_limit"]
            if not s["ffn.gated"]:
                return product(act[s["ffn.activation"]](up), "down")
            gate = product(h, "gate")
            if limit:
                gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
                return product(gate * (1.702 * gate).sigmoid() * (up + 1), "down")
            return product(act[s["ffn.activation"]](gate) * up, "down")

        if s["expert_count"] and (s["expert_layers"] or [True] * s["block_count"])[layer]:
            if s["expert_beside_ffn"]:
                routed = norm(mid, "") * w[b + "ffn_gate_inp.scale"] / mid.shape[1] ** 0.5
                beside = experts(s, w, b, norm(mid, b + "pre_ffw_norm_2"), ffn, routed)
                down = norm(ffn(f), b + "post_ffw_norm_1") + norm(beside, b + "post_ffw_norm_2")
            else:
                down = experts(s, w, b, f, ffn)
        else:
            down = ffn(f)
        if s["norm.post"] and not s["norm.residual"]:
            down = norm(down, b + "post_ffw_norm")
        x = mid + down * s["residual_scale"] + (out if s["residual"] == "parallel" else 0.0)
        if s["norm.residual"]:
            x = norm(x, b + "post_ffw_norm")
        if width:
            gate = act[s["ffn.activation"]](linear(x, b + "inp_gate"))
            x = x + norm(linear(gate * own_parts[:, layer], b + "proj"), b + "post_norm")
        if s["layer_output_scale"]:
            x = x * w[b + "layer_output_scale.weight"]
    if s["norm.final"]:
        x = norm(x, "output_norm")
    logits = x @ w["token_embd.weight" if s["tied"] else "output.weight"].T + w.get(
        "output.bias", 0.0)
    return cap(logits * s["logit_scale"], s["final_logit_softcapping"])


def experts(s: dict[str, Any], w: dict[str, Tensor], b: str, h: Tensor, ffn: Any,
            routed: Tensor | None = None) -> Tensor:
    """A layer's mixture of experts, one row after the other. `routed` is what the router reads."""
    p = ((h if routed is None else routed) @ w[b + "ffn_gate_inp.weight"].T
         + w.get(b + "ffn_gate_inp.bias", 0.0))
    p = p.sigmoid() if s["expert_gating_func"] == 2 else p.softmax(-1)
    out = torch.zeros_like(h)
    for t, row in enumerate(p):
        ranks = row + w.get(b + "exp_probs_b.bias", 0.0)
        if s["expert_group_count"]:
            groups = ranks.view(s["expert_group_count"], -1).clone()
            best = groups.topk(s["expert_gating_func"] or 1).values.sum(-1)
            groups[best.argsort(descending=True)[s["expert_group_used_count"]:]] = -torch.inf
            ranks = groups.flatten()
        chosen = ranks.topk(s["expert_used_count"]).indices
        total = row[chosen].sum() if s["expert_weights_norm"] else 1.0
        total = total / (s["expert_weights_scale"] or 1.0)
        for e in chosen.tolist():
            scale = w[b + "ffn_down_exps.scale"][e] if routed is not None else 1.0
            out[t] += row[e] / total * scale * ffn(h[t], "_exps", e)
    if s["expert_shared_feed_forward_length"]:
        gate = h @ w[b + "ffn_gate_inp_shexp.weight"] if s["expert_shared_gate"] else None
        shared = ffn(h, "_shexp")
        out += shared if gate is None else shared * gate.sigmoid()[:, None]
    return out


@dataclass
class GptCase:
    """A random model of the architecture `gpt`; a drop is a dict of changed keys."""
    name: str
    keys: dict[str, Any]
    drops: dict[str, dict[str, Any]]

    def build(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        from exporting.spec import gpt_spec, gpt_tensors
        sizes = {"context_length": 256, "embedding_length": 48, "block_count": 3,
                 "feed_forward_length": 80, "vocab_size": 300, "attention.head_count": 4,
                 "attention.head_count_kv": 2, "attention.key_length": 12,
                 "attention.value_length": 12, "norm.epsilon": 1e-5}
        spec = gpt_spec(**sizes | self.keys)
        g, out = torch.Generator().manual_seed(7), {}
        for name, shape in gpt_tensors(spec).items():
            if "norm" in name and name.endswith("weight") or name.startswith("rope_") or \
                    "scale" in name:
                out[name] = torch.rand(shape, generator=g) + 0.5
            elif len(shape) == 1:
                out[name] = torch.randn(shape, generator=g) * 0.3
            elif len(shape) == 3:
                out[name] = torch.randn(shape, generator=g) / shape[2] ** 0.5
            else:
                gain = {"blk": 1.0 + 0.8
                        * bool(re.search("attn_[qk]", name))}.get(name[:3], 0.5 * shape[1] ** 0.5)
                out[name] = torch.randn(shape, generator=g) * gain / shape[1] ** 0.5
        for _ in range(3):  # logits of deviation 1.7
            logits = gpt_forward(spec, out, list(range(3, 43)))
            for name in (("output.weight", "output.bias")
                         if not spec["tied"] else ("output_norm.weight", "output_norm.bias")):
                if name in out:
                    out[name] *= 1.7 / logits.std().float()
        return spec, out


LAYER = {"norm.type": "layer", "norm.bias": True}
GPT_CASES = [
    GptCase("card",
            {"ffn.gated": False, "ffn.activation": "gelu", "tied": True,
             "attention.head_count_kv": 4}, {"activation": {"ffn.activation": "gelu_tanh"}}),
    GptCase("key-value-widths",
            {"attention.key_length": 10, "attention.value_length": 21, "attention.bias": True},
            {"scale": {"attention.scale": 21 ** -0.5}}),
    GptCase("relu2-no-positions",
            {"position": "none", "ffn.gated": False, "ffn.activation": "relu2"},
            {"activation": {"ffn.activation": "relu"},
             "no rope": {"position": "rope", "rope.dimension_count": 12}}),
    GptCase("xielu", {"ffn.gated": False, "ffn.activation": "xielu",
                      "xielu.alpha_p": [0.2, -0.3, 1.0], "xielu.alpha_n": [-0.5, 0.3, 0.9],
                      "xielu.beta": [0.5, 0.3, 0.4], "xielu.eps": [-0.3, -1e-6, 0.0]},
            {"positive": {"xielu.alpha_p": [0.2, -0.3, 1.1]},
             "negative": {"xielu.alpha_n": [-0.5, 0.3, 1.1]},
             "beta": {"xielu.beta": [0.5, 0.3, 0.5]}, "eps": {"xielu.eps": [0.0, 0.0, 0.0]}}),
    GptCase("norm-residual", {**LAYER, "norm.pre": False, "norm.post": True,
                              "norm.residual": True, "residual_scale": 0.7},
            {"place": {"norm.residual": False}}),
    GptCase("norm-after-rope",
            {"attention.qk_norm": "full", "attention.qk_norm_after_rope": True,
             "norm.type": "layer", "norm.bias": True, "attention.qk_norm_bias": True},
            {"order": {"attention.qk_norm_after_rope": False}}),
    GptCase("temperature", {"attention.temperature_scale": 0.5, "rope.dimension_count": 8,
                            "rope.scaling.original_context_length": 11},
            {"temperature": {"attention.temperature_scale": None},
             "length": {"rope.scaling.original_context_length": 12}}),
    GptCase("gated-kinds", {"ffn.activation": "gelu", "ffn.bias": True, "feed_forward_length": 83},
            {"activation": {"ffn.activation": "gelu_tanh"}}),
    GptCase("learned-offset", {**LAYER, "position": "learned", "position.offset": 2},
            {"offset": {"position.offset": 0}}),
    GptCase("values-in-keys", {"attention.values_in_keys": True, "attention.value_length": 7},
            {"rope": {"position": "none"}}),
    GptCase("relative", {"position": "relative", "position.reach": 11},
            {"bias": {"position": "none"}, "clamp": {"position.reach": 10}}),
    GptCase("no-affine",
            {"norm.type": "layer", "norm.affine": False, "norm.post": True, "norm.embedding": True},
            {"embedding norm": {"norm.embedding": False}, "post norm": {"norm.post": False}}),
    GptCase("qk-heads-bias",
            {**LAYER, "attention.qk_norm": "heads", "attention.qk_norm_bias": True},
            {"q/k norm": {"attention.qk_norm": "none"}}),
    GptCase("qk-full-layer", {"norm.type": "layer", "attention.qk_norm": "full"},
            {"q/k norm": {"attention.qk_norm": "none"}}),
    GptCase("interleaved-partial",
            {"rope.pairing": "interleaved", "rope.dimension_count": 8, "rope.freq_base": 500.0},
            {"pairing": {"rope.pairing": "half"}, "partial": {"rope.dimension_count": 12}}),
    GptCase("parallel-two-norms",
            {"residual": "parallel", "residual_scale": 0.7, "attention.output_bias": True},
            {"parallel": {"residual": "sequential"}, "scale": {"residual_scale": 1.0}}),
    GptCase("parallel-shared-post", {"residual": "parallel", "residual.shared_norm": True,
                                     "norm.post": True}, {"post norms": {"norm.post": False}}),
    GptCase("alibi-window",
            {"position": "alibi", "attention.max_alibi_bias": 5.0, "attention.sliding_window": 9,
             "attention.sliding_window_pattern": [True, False, True]},
            {"window": {"attention.sliding_window_pattern": [False] * 3},
             "slopes": {"attention.max_alibi_bias": 8.0}}),
    GptCase(
        "scales-caps",
        {"attention.scale": [0.2, 0.5, 0.9], "embedding_scale": 3.0, "logit_scale": 0.3,
         "output_bias": True,
         "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "attention.clamp_kqv": 1.5},
        {"per layer": {"attention.scale": 0.2}, "cap": {"attn_logit_softcapping": None},
         "logit": {"logit_scale": 1.0},
         "final cap": {"final_logit_softcapping": None}, "clamp": {"attention.clamp_kqv": None}}),
    GptCase("local-base-yarn",
            {"rope.freq_base_swa": 100.0, "attention.sliding_window": 9,
             "rope.scaling.type": "yarn", "rope.scaling.yarn_truncate": False,
             "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32,
             "rope.layers": [True, True, False],
             "attention.sliding_window_pattern": [True, False, True]},
            {"local base": {"rope.freq_base_swa": None}, "yarn": {"rope.scaling.type": "none"},
             "whole pairs": {"rope.scaling.yarn_truncate": None},
             "layers": {"rope.layers": None}}),
    GptCase("windowed-widths",
            {"attention.key_length": 16, "attention.value_length": 10,
             "attention.key_length_swa": 8, "attention.value_length_swa": 14,
             "rope.dimension_count": 12, "rope.dimension_count_swa": 6, "attention.qk_norm": "head",
             "attention.sliding_window": 9,
             "attention.sliding_window_pattern": [True, False, True]},
            {"rope width": {"rope.dimension_count_swa": 8}, "scale": {"attention.scale": 0.25}}),
    GptCase("shared-kv",
            {"block_count": 5, "attention.shared_kv_layers": 2, "attention.sliding_window": 9,
             "attention.qk_norm": "full",
             "attention.sliding_window_pattern": [True, False, True, False, True]},
            {"mask": {"attention.sliding_window": 20}}),
    GptCase("experts",
            {"expert_count": 7, "expert_used_count": 3, "expert_feed_forward_length": 33,
             "expert_weights_norm": False, "expert_choice_bias": True, "ffn.activation": "gelu",
             "expert_shared_feed_forward_length": 21, "expert_layers": [False, True, True]},
            {"sum of weights": {"expert_weights_norm": True},
             "shared": {"expert_shared_feed_forward_length": None},
             "number": {"expert_used_count": 2}}),
    GptCase("per-layer",
            {"embedding_length_per_layer_input": 21, "layer_output_scale": True,
             "attention.keys_as_values": [True, False, True], "attention.value_norm": True,
             "attention.head_count_kv": [1, 2, 4], "feed_forward_length": [80, 33, 41],
             "residual": "parallel", "residual_scale": 0.7},
            {"norm of values": {"attention.value_norm": False},
             "scale of layers": {"layer_output_scale": False},
             "inputs": {"embedding_length_per_layer_input": None}}),
    GptCase("latent",
            {"attention.head_count_kv": 1, "attention.key_length": 27, "attention.value_length": 21,
             "attention.kv_lora_rank": 21, "attention.key_length_mla": 17,
             "attention.value_length_mla": 13, "rope.dimension_count": 6, "attention.bias": True,
             "attention.output_bias": True, "attention.sinks": True, "attention.sliding_window": 9,
             "attention.sliding_window_pattern": [True, False, True], "attention.scale": 0.4,
             "expert_count": 12, "expert_used_count": 3, "expert_feed_forward_length": 33,
             "expert_group_count": 4, "expert_group_used_count": 2, "expert_weights_scale": 1.9,
             "expert_weights_norm": False},
            {"window": {"attention.sliding_window": 20}, "sinks": {"attention.sinks": False},
             "scale of scores": {"attention.scale": None},
             "groups": {"expert_group_used_count": 4}, "scale": {"expert_weights_scale": 1.0}}),
    GptCase("latent-q",
            {"attention.head_count_kv": 1, "attention.key_length": 27, "attention.value_length": 21,
             "attention.kv_lora_rank": 21, "attention.q_lora_rank": 19,
             "attention.key_length_mla": 17, "attention.value_length_mla": 13,
             "rope.dimension_count": 6, "rope.pairing": "interleaved", "norm.epsilon": 1e-2,
             "expert_count": 12, "expert_used_count": 3, "expert_feed_forward_length": 33,
             "expert_gating_func": 2, "expert_choice_bias": True, "expert_group_count": 3,
             "expert_group_used_count": 2, "expert_weights_norm": True},
            {"pairing": {"rope.pairing": "half"}, "groups": {"expert_group_used_count": 3},
             "gate": {"expert_gating_func": 1}}),
    GptCase("experts-beside",
            {"expert_count": 5, "expert_used_count": 2, "expert_feed_forward_length": 33,
             "expert_beside_ffn": True, "expert_weights_norm": False, "norm.type": "layer",
             "norm.bias": True, "expert_layers": [True, False, True]},
            {"sum of weights": {"expert_weights_norm": True},
             "number": {"expert_used_count": 1}}),
    GptCase("sinks",
            {"attention.sinks": True, "attention.sliding_window": 9, "expert_count": 5,
             "attention.sliding_window_pattern": [True, False, True], "expert_used_count": 2,
             "expert_feed_forward_length": 33, "expert_bias": True, "ffn.activation": "silu",
             "ffn.swiglu_limit": 1.5, "expert_weights_norm": True},
            {"sinks": {"attention.sinks": False}, "limit": {"ffn.swiglu_limit": 3.0}}),
    GptCase("experts-ungated",
            {"expert_count": 1, "expert_used_count": 1, "expert_feed_forward_length": 32,
             "expert_weights_norm": False, "ffn.gated": False, "residual": "parallel",
             "residual.shared_norm": True, "expert_shared_feed_forward_length": 40,
             "expert_shared_gate": True},
            {"gate of the shared": {"expert_shared_gate": False}}),
    GptCase("no-pre-no-final", {"norm.pre": False, "norm.post": True, "norm.final": False},
            {"norms": {"norm.post": False}}),
    GptCase("mqa-odd-widths",
            {"embedding_length": 50, "attention.head_count": 5, "attention.head_count_kv": 1,
             "attention.key_length": 6, "attention.value_length": 7, "feed_forward_length": 33},
            {"theta": {"rope.freq_base": 100.0}}),
]


def save(model: torch.nn.Module, tok: dict[str, Any], folder: Path) -> Path:
    """A Hugging Face folder of the model and its tokenizer."""
    model.save_pretrained(folder)
    if rewrite := getattr(model, "rewrite_folder", None):
        rewrite(folder)
    (folder / "tokenizer.json").write_text(json.dumps(tok), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def exported(model: torch.nn.Module, tok: dict[str, Any], path: Path) -> Path:
    """What export.py makes of a transformers model, in f32; its folder lies beside it."""
    import export
    folder = save(model, tok, path.with_suffix(".hf"))
    assert export.main([str(folder), "-o", str(path), "--dtype", "f32"]) == 0
    return path


def exported_gpt(spec: dict[str, Any], tensors: dict[str, Tensor], tok: dict[str, Any],
                 path: Path) -> Path:
    """A file of the architecture `gpt` with these keys and tensors, in f32."""
    import export
    from exporting import spec as M, vocab, weights
    export.export(M.Model(spec, {name: M.Recipe((name,)) for name in tensors},
                          weights.Tensors(tensors), vocab.bpe_vocab(tok, Path("tokenizer.json")),
                          "gpt", path.stem), path, "f32")
    return path


def exported_case(case: Case | GptCase, tok: dict[str, Any], path: Path) -> Path:
    """A case's file, in f32."""
    if isinstance(case, GptCase):
        return exported_gpt(*case.build(), tok, path)
    return exported(case.build(), tok, path)


def sentencepiece(folder: Path, kind: str = "bpe", **kw: Any) -> Path:
    import sentencepiece as spm
    text = folder / "text.txt"
    text.write_text(TEXT.replace("\n", " ") * 3)
    spm.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=400, model_type=kind,
        byte_fallback=True, minloglevel=2, hard_vocab_limit=False,
        **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False, **kw})
    text.unlink()
    (folder / "tokenizer.vocab").unlink()
    return folder / "tokenizer.model"


def nanogpt_state(n: int, d: int, layers: int, block: int, bias: bool) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    state = {"transformer.wte.weight": torch.randn(n, d, generator=g),
             "transformer.wpe.weight": torch.randn(block, d, generator=g)}
    shapes = {"ln_1": (d,), "attn.c_attn": (3 * d, d), "attn.c_proj": (d, d), "ln_2": (d,),
              "mlp.c_fc": (4 * d, d),
              "mlp.c_proj": (d, 4 * d)}
    for i in range(layers):
        for name, shape in shapes.items():
            state[f"transformer.h.{i}.{name}.weight"] = (
                torch.rand(shape, generator=g) + 0.5 if len(shape) == 1 else
                torch.randn(shape, generator=g) / shape[1] ** 0.5)
            if bias:
                state[f"transformer.h.{i}.{name}.bias"] = torch.randn(shape[0], generator=g) * 0.3
        state[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, block, block).tril()
    state["transformer.ln_f.weight"] = torch.rand(d, generator=g) * 0.3
    if bias:
        state["transformer.ln_f.bias"] = torch.zeros(d)
    return state | {"lm_head.weight": state["transformer.wte.weight"]}


def nanogpt_forward(state: dict[str, torch.Tensor], ids: list[int], layers: int, heads: int,
                    bias: bool) -> torch.Tensor:
    f = torch.nn.functional
    x = state["transformer.wte.weight"][ids] + state["transformer.wpe.weight"][:len(ids)]
    for i in range(layers):
        p = {k.removeprefix(f"transformer.h.{i}."): v for k, v in state.items()}
        d = x.shape[-1]
        q, k, v = f.linear(f.layer_norm(x, (d,), p["ln_1.weight"], p.get("ln_1.bias")),
                           p["attn.c_attn.weight"], p.get("attn.c_attn.bias")).split(d, -1)
        q, k, v = (t.view(len(ids), heads, -1).transpose(0, 1) for t in (q, k, v))
        y = f.scaled_dot_product_attention(q, k, v,
                                           is_causal=True).transpose(0, 1).reshape(len(ids), d)
        x = x + f.linear(y, p["attn.c_proj.weight"], p.get("attn.c_proj.bias"))
        y = f.gelu(f.linear(f.layer_norm(x, (d,), p["ln_2.weight"], p.get("ln_2.bias")),
                            p["mlp.c_fc.weight"], p.get("mlp.c_fc.bias")))
        x = x + f.linear(y, p["mlp.c_proj.weight"], p.get("mlp.c_proj.bias"))
    x = f.layer_norm(x, (d,), state["transformer.ln_f.weight"], state.get("transformer.ln_f.bias"))
    return f.linear(x, state["lm_head.weight"])


def fast_json(sp: Any) -> dict[str, Any]:
    """tokenizer.json of a SentencePiece BPE, as transformers converts it.

    Every way to make a piece of two others is a merge."""
    n = sp.vocab_size()
    vocab = {sp.id_to_piece(i): i for i in range(n)}
    merges = [[p[:k], p[k:]] for p in sorted(vocab, key=lambda p: -sp.get_score(vocab[p]))
              if vocab[p] > 258 for k in range(1, len(p)) if p[:k] in vocab and p[k:] in vocab]
    return {
        "added_tokens": [{"id": i, "content": sp.id_to_piece(i), "special": True,
                          "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False} for i in range(3)],
        "normalizer": {"type": "Sequence", "normalizers": [
                           {"type": "Prepend", "prepend": "\u2581"},
                           {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        "model": {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True,
                  "vocab": vocab, "merges": merges}}
