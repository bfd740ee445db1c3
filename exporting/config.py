"""Reading a checkpoint's JSON files, config.json above all, by the spellings of all families.

Whatever is wrong with the input is an ExportError. What a configuration means for the model is
not known here, but in decoders.py, encoders.py and checkpoints.py."""
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


class ExportError(Exception):
    """Something about the input; the message is one line for the user."""


def short(value: object, limit: int = 60) -> str:
    """A value from a file, escaped and cut for a message."""
    text = repr(value)
    return text if len(text) <= limit else text[:limit - 3] + "..."


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise ExportError(f"{path}: not readable JSON: {e}") from e
    if not isinstance(value, dict):
        raise ExportError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


LIMITS = {  # key: its name in config.json, the most that config.c takes (it sets none for tokens)
    "embedding_length": ("hidden_size", 2**18), "block_count": ("num_hidden_layers", 4096),
    "context_length": ("max_position_embeddings", 2**28), "vocab_size": ("vocab_size", 2**24),
    "feed_forward_length": ("intermediate_size", 2**20),
    "attention.head_count": ("num_attention_heads", 4096),
    "attention.head_count_kv": ("num_key_value_heads", 4096),
    "attention.key_length": ("head_dim", 8192), "attention.value_length": ("head_dim", 8192),
    "embedding_length_per_layer_input": ("hidden_size_per_layer_input", 2**18),
    "attention.sliding_window": ("sliding_window", 2**28),
    "shortconv.l_cache": ("conv_L_cache", 256), "token_types": ("type_vocab_size", 2**20),
    "ssm.conv_kernel": ("linear_conv_kernel_dim", 256),
    "ssm.time_step_rank": ("linear_num_value_heads", 4096),
    "ssm.group_count": ("linear_num_key_heads", 4096),
    "ssm.state_size": ("linear_key_head_dim", 8192),
    "ssm.inner_size": ("width of recurrent layers", 2**20),
    "expert_count": ("num_experts", 4096), "expert_used_count": ("num_experts_per_tok", 4096),
    "expert_feed_forward_length": ("moe_intermediate_size", 2**20),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size", 2**20),
    "rope.scaling.original_context_length": ("original_max_position_embeddings", 2**28),
}
MAX_VOCAB = LIMITS["vocab_size"][1]
MOST = dict(LIMITS.values())

ALIASES = {  # the spellings of one field, in the order tried
    "hidden_size": ("hidden_size", "n_embd", "d_model", "n_embed", "dim"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "intermediate_size": ("block_ff_dim", "intermediate_size", "n_inner", "ffn_hidden_size",
                          "ffn_dim", "hidden_dim"),
    "tie_word_embeddings": ("tie_embedding", "tie_word_embeddings"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "max_seq_len",
                                "seq_length"),
    "norm_eps": ("norm_eps", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon",
                 "norm_epsilon"),
    "rope_theta": ("rope_theta", "rotary_emb_base"),
    "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct", "rope_pct"),
    "num_experts": ("num_experts", "num_local_experts", "moe_num_experts", "n_routed_experts"),
    "num_experts_per_tok": ("num_experts_per_tok", "moe_k", "top_k_experts"),
    "hidden_act": ("hidden_act", "activation_function", "activation"),
}
CANONICAL = {spelling: name for name, spellings in ALIASES.items() for spelling in spellings}
ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh",
    "relu": "relu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh", "relu2": "relu2", "xielu": "xielu",
}


class Config:
    """config.json, or what a checkpoint has instead (`source`), over the family's defaults.

    Reads are typed and their errors one line. A null is a value, not an absence."""

    def __init__(self, data: dict[str, Any], defaults: dict[str, Any],
                 source: str = "config.json"):
        if not isinstance(data, dict):
            raise ExportError(f"{source}: got {short(data)}, want an object")
        self.data, self.defaults, self.source = data, defaults, source

    def get(self, name: str, default: Any = None) -> Any:
        for spelling in ALIASES.get(name, (name,)):
            if spelling in self.data:
                return self.data[spelling]
        return self.defaults.get(name, default)

    def bad(self, name: str, want: str) -> ExportError:
        return ExportError(f"{self.source}: {name}: got {short(self.get(name))}, want {want}")

    def int(self, name: str, default: int | None = None) -> int:
        value = self.get(name)
        value = default if value is None else value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        most = MOST.get(CANONICAL.get(name, name), 2**31 - 1)
        if type(value) is not int or not 1 <= value <= most:
            raise self.bad(name, f"a whole number from 1 to {most}")
        return value

    def num(self, name: str, default: float | None = None) -> float | None:
        value = self.get(name, default)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or \
                not math.isfinite(value):
            raise self.bad(name, "a number")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.bad(name, "true or false")
        return bool(value)

    def activation(self, name: str = "hidden_act") -> str:
        value = self.get(name)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise self.bad(name, "one of " + ", ".join(ACTIVATIONS))
        return ACTIVATIONS[value]

    def refuse(self, name: str, allowed: tuple[Any, ...], why: str) -> None:
        """A field that changes the model in a way that the file cannot say."""
        if self.get(name) not in allowed:
            raise ExportError(f"{self.source}: {name} = {short(self.get(name))}: {why}")
