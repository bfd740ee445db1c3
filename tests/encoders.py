"""Tiny random encoders of transformers, with a WordPiece tokenizer."""
from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

import hf_models

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
N_VOCAB = 400


def wordpiece(corpus: list[str], lowercase: bool = True, strip_accents: bool | None = None,
              **trainer: Any) -> Tokenizer:
    """BERT's tokenizer, trained on a corpus."""
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.train_from_iterator(corpus, trainers.WordPieceTrainer(
        special_tokens=SPECIAL, show_progress=False, **trainer))
    ids = [(name, tok.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tok.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ids)
    return tok


def tokenizer_json(n_vocab: int = N_VOCAB) -> dict[str, Any]:
    """BERT's, trained on hf_models.TEXT."""
    return json.loads(wordpiece([hf_models.TEXT], vocab_size=n_vocab).to_str())


@dataclass
class Encoder:
    """One tiny model.

    A drop is a dict of config changes, or ("zero"|"one", regex of parameter names)."""
    name: str
    cls: str
    config: dict[str, Any]
    arch: str  # what export.py must choose
    drops: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def model(self, changes: dict[str, Any] | None = None) -> torch.nn.Module:
        import transformers
        cls = getattr(transformers, self.cls)
        kw = {"attn_implementation": "eager", "vocab_size": N_VOCAB, "pad_token_id": 0} \
            | self.config | (changes or {})
        m = cls(cls.config_class(**kw)).eval().float()
        hf_models.randomise(m, self.seed + 1)
        return m

    def save(self, m: torch.nn.Module, folder: Path) -> None:
        m.save_pretrained(folder)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))


BERT = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96,
            max_position_embeddings=128)
ENCODERS = [
    Encoder("bert", "BertModel", BERT, "bert", {
        "activation": {"hidden_act": "relu"}, "positions": ("zero", "position_embeddings"),
        "token types": ("zero", "token_type"), "embedding norm": ("one", "embeddings.LayerNorm.w"),
        "biases": ("zero", r"(query|dense)\.bias"), "epsilon": {"layer_norm_eps": 0.1}}),
    Encoder("electra", "ElectraModel", BERT | {"embedding_size": 64}, "bert", {
        "attention norm": ("one", r"attention\.output\.LayerNorm\.w")}),
    Encoder("distilbert", "DistilBertModel", dict(
        dim=64, n_layers=3, n_heads=4, hidden_dim=96, max_position_embeddings=128), "bert", {
        "output norm": ("one", r"output_layer_norm\.w")}),
    Encoder("roberta", "RobertaModel", BERT | {"pad_token_id": 4}, "bert", {
        "offset of positions": {"pad_token_id": 0}}),
    Encoder("nomic-bert", "NomicBertModel", BERT, "nomic-bert", {
        "rope": {"rope_parameters": {"rope_type": "default", "rope_theta": 10.0}},
        "gate": {"hidden_act": "relu"}, "token types": ("zero", "token_type")}),
    Encoder("modern-bert", "ModernBertModel", BERT | {
        "num_hidden_layers": 4, "local_attention": 16, "layer_types": [
            "full_attention", *["sliding_attention"] * 2, "full_attention"]}, "modern-bert", {
        "window": {"local_attention": 12}, "layers without one": {
            "layer_types": ["full_attention"] * 4},
        "local rope": {"rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 160000.0}
            for kind in ("sliding_attention", "full_attention")}},
        "first norm": ("one", r"layers\.1\.attn_norm"), "final norm": ("one", "final_norm")}),
]
