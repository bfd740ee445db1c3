"""The same bytes however rows go through: chunks, threads and neighbours change no bit of a logit
or a text."""
from __future__ import annotations

import json
from pathlib import Path

from command import logits_of, text_of


def check_passes(exe: Path, model: Path, folder: Path, prompt: str, longer_than: int,
                 *args: object) -> None:
    """Logits, of more than `longer_than` positions, and text in chunks and by threads."""
    args = ("-i", prompt, "-n", 12, "--temp", 0, "--ignore-eos", *args)
    text, want = logits_of(exe, model, folder / "l.npy", *args, "-t", 1)
    assert len(want) > longer_than
    for batch, threads in ((1, 1), (7, 2), (32, 1), (64, 2), (512, 2)):
        other, got = logits_of(exe, model, folder / "l.npy", *args, "-b", batch, "-t", threads)
        assert other == text and got.tobytes() == want.tobytes(), (batch, threads)


def check_neighbours(exe: Path, model: Path, prompt: str) -> None:
    """Texts of lines, beginnings of the prompt, beside one another and alone."""
    lines = b"".join(json.dumps({"prompt": prompt[:n] + str(n)}).encode() + b"\n"
                     for n in (40, 3, 70, 22, 9))
    texts = [text_of(exe, model, "--jsonl", "-", "-n", 12, "-s", 5, "--ignore-eos",
                     "--logprobs", 2, "--parallel", n, "-t", t, stdin=lines)
             for n, t in ((1, 1), (2, 2), (5, 1), (5, 2))]
    assert len(set(texts)) == 1 and texts[0].count(b"\n") == 5
