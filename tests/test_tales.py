"""The shipped model.

Its file agrees with the description in torch, its card with its file, its text with the seed."""
from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import torch

import hf_models
from command import ids_of, logits_of, text_of
from exporting.spec import GPT_KEYS, gpt_spec

ROOT = Path(__file__).resolve().parent.parent
TALES = ROOT / "models" / "tales.bin"
PROMPT = "Once upon a time"


def test_logits(run_bin: Path, tmp_path: Path) -> None:
    """Against gpt_forward (f64) with the same dequantised weights: 2e-4 as in test_parity.py."""
    reader = gguf.GGUFReader(TALES)
    keys = {name[4:]: f.contents() for name, f in reader.fields.items()
            if name.startswith("gpt.") and name[4:] in GPT_KEYS}
    spec = gpt_spec(**keys)
    weights = {t.name: torch.tensor(gguf.quants.dequantize(t.data, t.tensor_type))
               .view(*reversed(t.shape.tolist())) for t in reader.tensors}
    prompt = ("Once upon a time there was a king who had three sons, and the "
              "youngest said: \"I will go.\"")
    want = hf_models.gpt_forward(spec, weights, ids_of(run_bin, TALES, "-i", prompt)).numpy()
    _, got = logits_of(run_bin, TALES, tmp_path / "l.npy", "-i", prompt, "-n", 0, "--exact",
                       "--kv", "f32")
    assert np.abs(got - want).max() <= 2e-4


def test_card(run_bin: Path) -> None:
    """At most 8 MB; the number of parameters and the samples on the card are those of the file.

    The samples were drawn with the kernels of one machine; another instruction set may round a draw
    the other way, so only the first line of each must begin alike."""
    card = (ROOT / "models" / "README.md").read_text()
    assert TALES.stat().st_size <= 8_000_000
    n_params = sum(int(np.prod(t.shape)) for t in gguf.GGUFReader(TALES).tensors)
    assert f"{n_params:,} parameters" in card
    samples = re.findall(r"^> (Once upon a time.*)$", card, re.M)
    assert len(samples) == 10
    for seed, sample in enumerate(samples, 1):
        ours = text_of(run_bin, TALES, "-i", PROMPT, "--echo", "--exact", "-n", 12, "-s",
                       seed).decode()
        assert sample.startswith(ours[:40])


def test_same_bytes(run_bin: Path) -> None:
    args = (run_bin, TALES, "-i", PROMPT, "-n", 64, "--temp", 0)
    one = text_of(*args, "-t", 1)
    assert one == text_of(*args, "-t", 2) and len(one) > 100
