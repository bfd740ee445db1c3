"""The tables of docs/exactness.md: the real models against transformers.

    .venv/bin/python tests/exactness.py cache/*.gguf

Compared are logits and attention maps on tests/passage.txt. Both sides have the same dequantised
weights; transformers runs in float32 with eager attention. test_real.py and test_dump.py assert
limits of the same comparison. The passage is from Grimm's Household Tales (Hunt, 1884)."""
from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from command import ids_of, logits_of
from test_real import PASSAGE, log_softmax


def measure(run: Path, path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager").eval()
    ids = ids_of(run, path, *PASSAGE)
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_attentions=True)
    want, maps = out.logits[0].numpy(), [a[0].numpy() for a in out.attentions]
    print(f"{path.name}: {len(ids)} tokens, logits deviate by {want.std():.1f}")
    p = log_softmax(want)
    with tempfile.TemporaryDirectory() as folder:
        for flags in (["--exact", "--kv", "f32"], []):
            dump = Path(folder) / "maps.npy"
            _, got = logits_of(run, path, Path(folder) / "l.npy", *PASSAGE, "-n", 0,
                               "--dump-attn", dump, *flags)
            q, off = log_softmax(got), np.abs(got - want)
            kl, same = (np.exp(p) * (p - q)).sum(-1), (want.argmax(-1) == got.argmax(-1)).mean()
            moved = [np.abs(ours - theirs)
                     for ours, theirs in zip(np.load(dump, mmap_mode="r"), maps, strict=True)]
            print(f"  {' '.join(flags) or 'default flags':20} logits: largest {off.max():.1e}, "
                  f"mean {off.mean():.1e}; KL mean {max(kl.mean(), 0):.1e}, at most "
                  f"{max(kl.max(), 0):.1e}; same best token {same:.1%}; maps: largest "
                  f"{max(m.max() for m in moved):.1e}, mean "
                  f"{np.mean([m.mean() for m in moved]) * 2 * len(ids) / (len(ids) + 1):.1e}",
                  flush=True)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        measure(ROOT / "run", Path(name))
