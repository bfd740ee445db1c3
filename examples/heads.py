#!/usr/bin/env python3
"""The figures and pictures of examples/heads.md.

    python examples/heads.py SMOLLM2.gguf [GEMMA3.gguf]

Kinds of heads, where the massive values sit, and which matrix suffers most from rounding. It needs
./run, numpy, matplotlib and gguf, no network; 4 GB of temporary files with Gemma, and some ten
minutes."""
from __future__ import annotations

import csv
import json
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from io import BytesIO
from itertools import groupby
from pathlib import Path

import gguf
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import attn  # noqa: E402

TEXT = (HERE / "glass-mountain.txt").read_text()
EXCERPT = TEXT[:1290]  # some 300 tokens
N_WORDS, SEEDS = 100, (0, 1, 2)  # of a prompt of random words, said twice
HALF = 0.5  # a head is of a kind when it gives half its weight that way
CUT = 0.4  # induction heads to switch off
KINDS = ("attn_q", "attn_k", "attn_v", "attn_output")
FFN = ("ffn_gate", "ffn_up", "ffn_down")


class Model:
    """A GGUF file, and what ./run says about it."""

    def __init__(self, path: Path, work: Path) -> None:
        self.path, self.work, self.reader = path, work, gguf.GGUFReader(path)
        self.keys = {f.name: f.contents() for f in self.reader.fields.values()}
        self.tensors = {t.name: t for t in self.reader.tensors}
        self.arch = self.keys["general.architecture"]
        key = lambda name, other=None: self.keys.get(f"{self.arch}.{name}", other)
        self.dim, self.n_layers, self.n_heads = (key("embedding_length"), key("block_count"),
                                                 key("attention.head_count"))
        self.n_kv_heads = key("attention.head_count_kv")
        self.head_dim = key("attention.key_length", self.dim // self.n_heads)
        self.base, self.eps = key("rope.freq_base"), key("attention.layer_norm_rms_epsilon")
        self.gemma = self.arch == "gemma3"
        self.name = "Gemma 3 270M" if self.gemma else "SmolLM2"

    def weight(self, name: str) -> np.ndarray:
        """float32, (out, in) for matrices."""
        t = self.tensors[name + ".weight"]
        return gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1])

    def call(self, text: str, *flags: str | Path, model: Path | None = None) -> bytes:
        return subprocess.run([HERE.parent / "run", model or self.path, "-f", "-", "--keep-newline",
                               *flags], input=text.encode(), stdout=subprocess.PIPE,
                              check=True).stdout

    def run(self, text: str, *flags: str | Path, model: Path | None = None) -> bytes:
        return self.call(text, "-n", "0", "--exact", *flags, model=model)

    def ids(self, text: str) -> list[int]:
        return json.loads(self.call(text, "--tokenize", "--json"))["ids"]

    def stats(self, text: str, *flags: str) -> dict[str, np.ndarray]:
        """Column of --attn-stats -> (layers, heads)."""
        out = self.work / "stats.csv"
        self.run(text, "--attn-stats", out, *flags)
        with open(out, newline="") as f:
            rows = list(csv.DictReader(f))
        return {c: np.array([float(r[c] or "nan") for r in rows])
                .reshape(self.n_layers, self.n_heads) for c in rows[0]}

    def copy(self, change: dict[str, np.ndarray]) -> Path:
        """The same file with these matrices as F32."""
        out = self.work / "copy.gguf"
        w = gguf.GGUFWriter(out, self.arch)
        for f in self.reader.fields.values():
            if not f.name.startswith("GGUF.") and f.name != "general.architecture":
                sub = f.types[-1] if f.types[0] == gguf.GGUFValueType.ARRAY else None
                w.add_key_value(f.name, self.keys[f.name], f.types[0], sub_type=sub)
        for name, t in self.tensors.items():
            if (new := change.get(name.removesuffix(".weight"))) is not None:
                w.add_tensor(name, np.ascontiguousarray(new, np.float32))
            else:
                w.add_tensor(name, t.data, raw_dtype=t.tensor_type)
        for step in (w.write_header_to_file, w.write_kv_data_to_file, w.write_tensors_to_file,
                     w.close):
            step()
        return out

    def logits(self, text: str, name: str, model: Path | None = None) -> np.ndarray:
        self.run(text, "--logits", self.work / name, model=model)
        return np.load(self.work / name, mmap_mode="r")


def losses(logits: np.ndarray, ids: list[int],
           against: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Of each token after the first, in nats: its loss, and the KL divergence from `against`.

    The loss is the negative log likelihood; `against` are logits."""
    log_p = lambda x: (y := x - x.max(-1, keepdims=True)) - np.log(np.exp(y).sum(-1, keepdims=True))
    nll, kl = np.empty((2, len(ids) - 1))
    for i in range(0, len(nll), 64):
        at = np.arange(i, min(i + 64, len(nll)))
        p = log_p(logits[at])
        nll[at] = -p[np.arange(at.size), np.array(ids)[at + 1]]
        q = p if against is None else log_p(against[at])
        kl[at] = (np.exp(q) * (q - p)).sum(-1)
    return nll, kl


def forward(m: Model, ids: list[int]) -> tuple[list[list[np.ndarray]], np.ndarray]:
    """Both models in plain numpy.

    ./run shows statistics of q, k and v but not the vectors themselves."""
    T, D = len(ids), m.head_dim
    norm = lambda x, name: x / np.sqrt((x * x).mean(-1, keepdims=True) + m.eps) * m.weight(name)
    x = m.weight("token_embd")[ids] * (m.dim**0.5 if m.gemma else 1)
    mask = np.where(np.arange(T) > np.arange(T)[:, None], -np.inf, 0)
    seen = []
    for l in range(m.n_layers):
        at = f"blk.{l}."
        base = 1e4 if m.gemma and l % 6 != 5 else m.base  # five local layers, then a global one
        angle = np.arange(T)[:, None] * base ** (-np.arange(0, D, 2) / D)
        c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
        h = norm(x, at + "attn_norm")
        q, k, v = ((h @ m.weight(f"{at}attn_{n}").T).reshape(T, -1, D) for n in "qkv")
        if m.gemma:
            q, k = norm(q, at + "attn_q_norm"), norm(k, at + "attn_k_norm")
        for y in (q, k):
            a, b = (y[..., :D // 2], y[..., D // 2:]) if m.gemma else (y[..., ::2], y[..., 1::2])
            a[:], b[:] = a * c - b * s, a * s + b * c
        seen.append([q, k, v])
        k, v = (np.repeat(y, m.n_heads // m.n_kv_heads, 1) for y in (k, v))
        w = np.exp((w := np.einsum("qhd,khd->hqk", q, k) / D**0.5 + mask)
                   - w.max(-1, keepdims=True))
        h = np.einsum("hqk,khd->qhd", w / w.sum(-1, keepdims=True),
                      v).reshape(T, -1) @ m.weight(at + "attn_output").T
        x = x + (norm(h, at + "post_attention_norm") if m.gemma else h)
        h = norm(x, at + "ffn_norm")
        g, u = h @ m.weight(at + "ffn_gate").T, h @ m.weight(at + "ffn_up").T
        g = (g * (1 + np.tanh(0.7978845608 * (g + 0.044715 * g**3))) / 2
             if m.gemma else g / (1 + np.exp(-g)))
        h = (g * u) @ m.weight(at + "ffn_down").T
        x = x + (norm(h, at + "post_ffw_norm") if m.gemma else h)
    return seen, norm(x, "output_norm") @ m.weight("token_embd").T


def show(title: str, columns: str, rows: list[list[object]]) -> None:
    print(f"\n{title}\n\n{attn.table(columns.split(), rows)}", flush=True)


def save(fig: Figure, name: str) -> None:
    """As PNG of 256 colours."""
    png = BytesIO()
    fig.savefig(png, dpi=100)
    image = Image.open(png).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, 4,
                                                    dither=Image.Dither.NONE)
    image.save(HERE / name, optimize=True)


# ---- 1. kinds of heads ---------------------------------------------------------------------------

def random_words(models: list[Model]) -> list[str]:
    """Words that are one token of every model here, a space before them."""
    found = [{t[1:] for t in m.keys["tokenizer.ggml.tokens"] if re.fullmatch("[Ġ▁][a-z]{4,8}", t)}
             for m in models]
    return sorted(set.intersection(*found))


def twice(words: list[str], n: int, seed: int) -> str:
    return "".join(" " + w for w in random.Random(seed).sample(words, n) * 2)


def kinds(m: Model, words: list[str]) -> list[np.ndarray]:
    """(layers, heads) of sink, previous and induction."""
    s, scores = m.stats(EXCERPT), []
    for seed in SEEDS:
        ids = m.ids(text := twice(words, N_WORDS, seed))
        assert ids[-N_WORDS:] == ids[-2 * N_WORDS:-N_WORDS]
        scores.append(m.stats(text, "--attn-queries",
                              f"{len(ids) - N_WORDS + 1}-{len(ids) - 1}")["induction"])
    found, rows = {"sink": s["sink"], "previous": s["previous"],
                   "induction": np.mean(scores, 0)}, []
    for kind, score in found.items():
        best = np.dstack(np.unravel_index(np.argsort(-score, axis=None)[:5], score.shape))[0]
        layers = attn.spans(sorted(set(np.argwhere(score > HALF)[:, 0].tolist())))
        rows.append([kind, int((score > HALF).sum()), layers, f"{score.mean():.3f}",
                     "  ".join(f"L{l}H{h} {score[l, h]:.2f}" for l, h in best)])
    show(f"{m.name}: {m.n_layers * m.n_heads} heads; sink and previous on "
         f"{len(m.ids(EXCERPT))} tokens of prose", f"kind over_{HALF} in_layers mean highest", rows)
    low, high = np.min(scores, 0), np.max(scores, 0)
    print("\ninduction, lowest to highest of the prompts:",
          ", ".join(f"L{l}H{h} {low[l, h]:.2f} to {high[l, h]:.2f}"
                    for l, h in np.argwhere(found["induction"] > CUT)))
    m.run(EXCERPT, "--dump-attn", m.work / "a.npz", "--attn-reduce", "mean-heads")
    maps = attn.load(m.work / "a.npz")
    T = maps.attn.shape[3]
    # mean weight on a key from the rows that see it
    got = maps.attn[:, 0].sum(1)[:, :T - 20] / np.arange(T, 20, -1)
    for key, group in groupby(range(m.n_layers), lambda l: int(got[l].argmax())):
        layers = list(group)
        low, high = got[layers, key].min(), got[layers, key].max()
        print(f"layer{'s' * (len(layers) > 1)} {attn.spans(layers)}: token {key} "
              f"{maps.tokens[key]!r} gets most, {low:.2f} to {high:.2f}")
    return list(found.values())


def cut(m: Model, words: list[str], score: np.ndarray) -> None:
    """The loss without the induction heads, against as many others of the same layers."""
    heads = [tuple(x) for x in np.argwhere(score > CUT).tolist()]
    others = [(l, h) for l, _ in dict(heads).items()
              for h in range(m.n_heads) if (l, h) not in heads]
    D, tests = m.head_dim, [("copy", twice(words, N_WORDS, s), N_WORDS - 1)
                            for s in SEEDS] + [("prose", EXCERPT, 0)]

    def measure(off: list[tuple[int, int]]) -> dict[str, np.ndarray]:
        change = {f"blk.{l}.attn_output": m.weight(f"blk.{l}.attn_output").copy() for l, _ in off}
        for l, h in off:
            change[f"blk.{l}.attn_output"][:, h * D:(h + 1) * D] = 0
        file, out = m.copy(change), {"copy": [], "prose": []}
        for kind, text, last in tests:
            out[kind].append(losses(m.logits(text, "cut.npy", file), m.ids(text))[0][-last:])
        return {k: np.concatenate(v) for k, v in out.items()}

    def control(seed: int) -> list[tuple[int, int]]:
        count, pick = Counter(l for l, _ in heads), random.Random(seed)
        return [x for l, n in count.items()
                for x in pick.sample([o for o in others if o[0] == l], n)]

    rows = [[f"{r['copy'].mean():.3f}", f"{r['prose'].mean():.3f}",
             " ".join(f"L{l}H{h}" for l, h in off) or "nothing"]
            for off in ([], heads, *map(control, SEEDS)) for r in [measure(off)]]
    show(f"{m.name}: loss per token without these heads (nats)", "second_copy prose off", rows)


def picture_kinds(all_found: list[tuple[Model, list[np.ndarray]]]) -> None:
    ratios = [m.n_heads + 2 for m, _ in all_found for _ in range(3)]
    fig = Figure((1.2 + sum(ratios) * 0.16, 5.6), layout="constrained")
    axes = fig.subplots(1, len(ratios), width_ratios=ratios)
    for i, ax in enumerate(axes):
        (m, found), kind = all_found[i // 3], i % 3
        image = ax.imshow(found[kind], vmin=0, vmax=1, cmap="viridis", aspect="auto")
        ax.set_title(f"{m.name if kind == 1 else ''}\n{('sink', 'previous', 'induction')[kind]}",
                     fontsize=9)
        ax.set_xticks(range(0, m.n_heads, 2))
        ax.set_yticks(range(0, m.n_layers, 5))
        ax.set_xlabel("head", fontsize=8)
        ax.tick_params(labelsize=7)
    axes[0].set_ylabel("layer", fontsize=8)
    fig.colorbar(image, ax=axes, fraction=0.02, label="share of the head's weight")
    save(fig, "heads-kinds.png")


def picture_induction(m: Model, words: list[str], score: np.ndarray) -> None:
    layer, head = (int(x) for x in np.unravel_index(score.argmax(), score.shape))
    dump = m.work / "map.npz"
    m.run(twice(words, 20, 0), "--dump-attn", dump, "--attn-layers", str(layer), "--attn-heads",
          str(head))
    fig = Figure((7, 6), layout="constrained")
    attn.heatmap(attn.load(dump), layer, head, fig.add_subplot())
    save(fig, "heads-induction.png")


# ---- 2. massive values ---------------------------------------------------------------------------

def massive(m: Model) -> list[list[np.ndarray]]:
    """Print where the massive values sit; return the norms of q, k and v of every layer.

    The norms are over the tokens, (heads, head_dim)."""
    ids = m.ids(EXCERPT)
    m.run(EXCERPT, "--kv", "f32", "--logits", m.work / "check.npy")
    seen, logits = forward(m, ids)
    off = np.abs(logits - np.load(m.work / "check.npy")).max()
    shown = m.stats(EXCERPT, "--kv", "f32")
    D, rows, where = m.head_dim, [], []
    # rotary pair of a dimension; 0 turns fastest
    pair = np.arange(D) % (D // 2) if m.gemma else np.arange(D) // 2
    norms = [[np.sqrt((x**2).sum(0)) for x in layer] for layer in seen]
    for i, name in enumerate("qkv"):
        # (layers * heads, T, head_dim)
        heads = np.abs(np.concatenate([layer[i] for layer in seen], 1)).transpose(1, 0, 2)
        ratio, later = (x.max((1, 2)) / x.mean((1, 2)) for x in (heads, heads[:, 1:]))
        want = (shown[f"{name}_massive"][:, ::1 if name == "q" else m.n_heads // m.n_kv_heads]
                .ravel())
        off = max(off, np.abs(ratio - want).max())
        big = [(l, h, d) for l, n in enumerate(norms)
               for h, d in np.argwhere(n[i] > 5 * n[i].mean()).tolist()]
        slow = sum(int(pair[d] >= D // 4) for *_, d in big)
        rows.append([name, len(ratio),
                     *(f"{x:.1f}" for x in (np.median(ratio), ratio.max(), np.median(later))),
                     int((heads.max(2).argmax(1) == 0).sum()), len(big),
                     len({(l, h) for l, h, _ in big}),
                     len({l for l, *_ in big}), slow if name != "v" else "-"])
        top = Counter((pair if name != "v" else np.arange(
                           D))[np.concatenate([n[i] for n in norms]).argmax(-1)].tolist())
        where.append(f"{name}: " + ", ".join(f"{p} in {n}" for p, n in top.most_common(5)))
    normal = np.abs(np.random.default_rng(0).standard_normal((100, len(ids) * D)))
    show(f"{m.name}: largest |x| / mean |x| of a head, and dimensions whose norm is over 5 times "
         "their layer's mean",
         "x heads median max median_without_0 largest_at_0 massive in_heads in_layers slow", rows)
    print(f"\nnormal numbers, as many: {np.median(normal.max(1) / normal.mean(1)):.1f}; numpy is "
          f"within {off:.1g} of ./run")
    print("where a head's largest norm is (rotary pairs, of v dimensions):", *where, sep="\n")
    for h, x in enumerate(np.abs(seen[0][2]).transpose(1, 0, 2)):
        p, d = np.unravel_index(x.argmax(), x.shape)
        same = np.flatnonzero(np.array(ids) == ids[p])
        word, median = m.keys["tokenizer.ggml.tokens"][ids[p]], np.median(x[:, d]) / x.mean()
        print(f"layer 0, values of head {h}: {x.max() / x.mean():.1f} in dimension {d} at "
              f"{word!r}, {same.size} times in the text, first at {same[0]}; the median token has "
              f"{median:.1f} there")
    return norms


def picture_massive(found: list[tuple[Model, list[list[np.ndarray]]]]) -> None:
    fig = Figure((9, 1.1 + 2.0 * len(found)), layout="constrained")
    axes = fig.subplots(len(found), 3, squeeze=False)
    for row, (m, norms) in zip(axes, found):
        for i, ax in enumerate(row):
            x = np.concatenate([layer[i] / layer[i].mean() for layer in norms])
            image = ax.imshow(x, vmin=0, vmax=5, cmap="viridis", aspect="auto",
                              interpolation="nearest")
            ax.set_title(f"{m.name}: {'qkv'[i]}", fontsize=9)
            ax.tick_params(labelsize=7)
        row[0].set_ylabel("layer and head", fontsize=8)
    for ax in axes[-1]:
        ax.set_xlabel("dimension", fontsize=8)
    fig.colorbar(image, ax=axes, fraction=0.02, label="norm / mean norm of the layer", extend="max")
    save(fig, "heads-massive.png")


# ---- 3. rounding ---------------------------------------------------------------------------------

def rounded(w: np.ndarray, bits: int) -> np.ndarray:
    """Round to `bits` bits in blocks of 32 along the input.

    Each block has its own grid of 2^bits - 1 steps, symmetric about 0, which ends at its largest
    magnitude."""
    blocks, top = w.reshape(-1, 32), 2**(bits - 1) - 1
    scale = np.abs(blocks).max(1, keepdims=True) / top
    return (np.rint(blocks / np.where(scale > 0, scale, 1)) * scale).reshape(w.shape)


def rounding(m: Model) -> None:
    ids, dump, every = m.ids(TEXT), m.work / "a.npz", range(m.n_layers)
    base = m.logits(TEXT, "base.npy")
    nll, _ = losses(base, ids)
    m.run(EXCERPT, "--dump-attn", dump)
    maps = attn.load(dump).attn.astype(np.float64)
    cases = [("nothing", KINDS, 32, every),
             *((kind, [kind], bits, every) for bits in (4, 3) for kind in KINDS + FFN),
             ("all four", KINDS, 4, every),
             ("all but attn_v", [k for k in KINDS if k != "attn_v"], 4, every),
             ("attn_v, layer 0", ["attn_v"], 4, [0])]
    rows = []
    for name, which, bits, layers in cases:
        old = {f"blk.{l}.{kind}": m.weight(f"blk.{l}.{kind}") for l in layers for kind in which}
        new = {k: rounded(w, bits) if bits < 32 else w for k, w in old.items()}
        error = sum(((new[k] - w)**2).sum()
                    for k, w in old.items()) / sum((w**2).sum() for w in old.values())
        file = m.copy(new)
        loss, kl = losses(m.logits(TEXT, "copy.npy", file), ids, base)
        m.run(EXCERPT, "--dump-attn", dump, model=file)
        moved = [attn.jensen_shannon(a[:, 1:], b[:, 1:].astype(float)).mean()
                 for a, b in zip(maps, attn.load(dump).attn)]
        se = lambda x: float(x.std(ddof=1) / x.size**0.5)
        rows.append([name, bits, f"{sum(w.size for w in old.values()) / 1e6:.1f}",
                     f"{error**0.5:.3f}",
                     float((loss - nll).mean()), se(loss - nll), float(kl.mean()), se(kl),
                     float(np.mean(moved))])
    total = sum(int(np.prod(t.shape)) for t in m.tensors.values())
    show(f"{m.name}, {total / 1e6:.1f} million parameters: {nll.mean():.4f} nats per token as it "
         f"is (+- {se(nll):.4f}, {nll.size} tokens)",
         "rounded bits millions error more_loss +- kl +- js", rows)


def main() -> None:
    if not 2 <= len(sys.argv) <= 3:
        sys.exit("usage: python examples/heads.py SMOLLM2.gguf [GEMMA3.gguf]")
    with tempfile.TemporaryDirectory() as tmp:
        models = [Model(Path(p), Path(tmp)) for p in sys.argv[1:]]
        words = random_words(models)
        print(f"{len(words)} words to draw from")
        found = [(m, kinds(m, words)) for m in models]
        picture_kinds(found)
        picture_induction(models[0], words, found[0][1][2])
        for m, f in found:
            cut(m, words, f[2])
        picture_massive([(m, massive(m)) for m in models])
        for m in models:
            rounding(m)


if __name__ == "__main__":
    main()
