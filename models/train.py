"""Train the small story model that ships as models/tales.bin, sample from it, measure it.

    train.py fairytales.txt stories.txt -o tales.pt       train, then measure the best checkpoint
    train.py fairytales.txt -o tales.pt --evaluate        measure again
    train.py -o tales.pt --sample 10 --seed 1             write texts
    train.py fairytales.txt --check-copies samples.txt    longest runs of words taken from the data

A data file holds texts separated by a line <|endoftext|>; several files may be given. The model is
a decoder: token embedding (also the output head), RMSNorm before attention and feed-forward, rotary
positions, causal attention, ungated GELU, no biases. Runs on the CPU; export.py turns the
checkpoint into a file for ./run. Needs torch (2.9 or newer, for Muon), tokenizers and tqdm."""
import argparse
import math
import re
import time
import zlib
from collections import Counter, defaultdict
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

# token 0: stands before each text and ends it
END = "<|endoftext|>"

# ---- model ---------------------------------------------------------------------------------------


def rotary_table(c):
    """Cosines and sines of the angle of every position and pair, (seq_len, head_dim/2) each."""
    half = c["dim"] // c["n_heads"] // 2
    angle = torch.outer(torch.arange(c["seq_len"]), c["rope_base"] ** (-torch.arange(half) / half))
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Rotary positions: element i turns with element i + head_dim/2.

    x (batch, heads, t, head_dim)."""
    cos, sin = cos[:x.shape[2]].to(x.dtype), sin[:x.shape[2]].to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        dim, hidden = c["dim"], c["hidden_dim"]
        self.attn_norm = nn.RMSNorm(dim, c["norm_eps"])
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.ffn_norm = nn.RMSNorm(dim, c["norm_eps"])
        self.w_up, self.w_down = nn.Linear(dim, hidden,
                                           bias=False), nn.Linear(hidden, dim, bias=False)

    def forward(self, x, rope, dropout):                         # (batch, t, dim)
        h = self.attn_norm(x)
        q, k, v = (w(h).unflatten(-1, (self.c["n_heads"], -1)).transpose(1, 2)
                   for w in (self.wq, self.wk, self.wv))
        q, k = (rotate(y, *rope) for y in (q, k))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.dropout(self.wo(a.transpose(1, 2).flatten(2)), dropout, self.training)
        return x + F.dropout(self.w_down(F.gelu(self.w_up(self.ffn_norm(x)))), dropout,
                             self.training)


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.tok_emb = nn.Embedding(c["vocab_size"], c["dim"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["n_layers"]))
        self.rope = rotary_table(c)
        self.final_norm = nn.RMSNorm(c["dim"], c["norm_eps"])
        for name, w in self.named_parameters():
            # what adds to the residual stream starts smaller
            if w.dim() == 2:
                nn.init.normal_(w, std=0.02 / math.sqrt(2 * c["n_layers"]
                                                        if "wo" in name or "w_down" in name else 1))

    # (batch, t) -> (batch, t, vocab_size)
    def forward(self, ids, dropout=0.0):
        x = F.dropout(self.tok_emb(ids), dropout, self.training)
        for layer in self.layers:
            x = layer(x, self.rope, dropout)
        return F.linear(self.final_norm(x), self.tok_emb.weight)


# ---- data ----------------------------------------------------------------------------------------


def read_texts(path, split):
    """The texts of a data file in the split "train" or "val".

    A checksum of the text decides; 1 in 20 is val."""
    texts = [t.strip() for t in Path(path).read_text().split(END)]
    return [t for t in texts if t and (zlib.crc32(t.encode()) % 20 == 0) == (split == "val")]


def train_tokenizer(texts, vocab_size):
    """Byte-level BPE with GPT-2's pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END],
                                   initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                   show_progress=False))
    return tokenizer


def to_stream(tokenizer, texts):
    """All texts as one row of ids, each after a 0, and a last 0."""
    ids = [t for e in tokenizer.encode_batch(texts) for t in [0] + e.ids]
    return torch.tensor(ids + [0])


class Batches:
    """Endless batches of windows of the streams.

    One in eight begins where a text begins, the others anywhere."""

    def __init__(self, streams, weights, seq_len, rows, seed):
        self.streams, self.rows = streams, rows
        self.window = torch.arange(seq_len + 1)
        self.weights = torch.tensor(weights or [float(len(s)) for s in streams])
        self.random = torch.Generator().manual_seed(seed)
        self.begins = [b[b < len(s) - seq_len] for s in streams for b in [(s == 0).nonzero()[:, 0]]]

    def pick(self, n):
        return torch.randint(n, (1,), generator=self.random)

    def __iter__(self):
        while True:
            windows = []
            for row, i in enumerate(torch.multinomial(self.weights, self.rows, True,
                                                      generator=self.random)):
                stream, begins = self.streams[i], self.begins[i]
                at = (begins[self.pick(len(begins))]
                      if row % 8 == 0 else self.pick(len(stream) - len(self.window) + 1))
                windows.append(stream[at + self.window])
            w = torch.stack(windows)
            yield w[:, :-1], w[:, 1:]


# ---- training ------------------------------------------------------------------------------------


def loss_of(model, x, y, dropout=0.0, reduction="mean"):
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x, dropout)
    return F.cross_entropy(logits.flatten(0, 1).float(), y.flatten(), reduction=reduction)


@torch.no_grad()
def nats(model, stream, overlap, rows=32):
    """Summed loss over a stream's tokens but the first.

    Windows share `overlap` tokens; each token counts once."""
    windows = defaultdict(list)                                  # those of one shape run together
    at = done = 0                                                # tokens 1..done are counted
    while done < len(stream) - 1:
        stop = min(at + model.c["seq_len"], len(stream) - 1)
        windows[stop - at, stop - done].append(stream[at:stop + 1])
        done, at = stop, stop - overlap
    total = 0.0
    model.eval()
    for (length, new), group in windows.items():
        for i in range(0, len(group), rows):
            w = torch.stack(group[i:i + rows])
            loss = loss_of(model, w[:, :-1], w[:, 1:], reduction="none")
            total += loss.view(len(w), length)[:, -new:].sum().item()
    model.train()
    return total


def train(a):
    torch.manual_seed(a.seed)
    train_texts = [read_texts(path, "train") for path in a.data]
    val_texts = [t for path in a.data for t in read_texts(path, "val")]
    tokenizer = train_tokenizer([t for texts in train_texts for t in texts], a.vocab_size)
    streams = [to_stream(tokenizer, texts) for texts in train_texts]
    val = to_stream(tokenizer, val_texts)
    config = {"dim": a.dim, "n_layers": a.layers, "n_heads": a.heads, "n_kv_heads": a.heads,
              "hidden_dim": a.hidden,
              "vocab_size": tokenizer.get_vocab_size(), "seq_len": a.seq_len, "norm": "rms",
              "norm_eps": 1e-5,
              "rope_base": 10000.0, "rope_pairing": "half", "activation": "gelu", "gated": False,
              "bias": False,
              "tied": True, "bos_id": 0, "eos_id": 0}
    model = Model(config)
    for path, stream in zip(a.data, streams):
        print(f"{path}: {len(stream):,} training tokens")
    print(f"{sum(w.numel() for w in model.parameters()):,} parameters, "
          f"{len(val):,} validation tokens")

    # in a trial of 60 steps Muon learned faster than AdamW; it is for matrices, so embedding and
    # norms stay with AdamW
    hidden = [w for w in model.layers.parameters() if w.dim() == 2]
    vectors = [w for w in model.parameters() if w.dim() == 1]
    optimizers = [
        torch.optim.Muon(hidden, weight_decay=a.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([{"params": [model.tok_emb.weight], "weight_decay": a.weight_decay},
                           {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.98))]
    batches = iter(Batches(streams, a.weights, a.seq_len, a.rows, a.seed))
    best, recent, began, step, done = math.inf, [], time.time(), 0, 0.0
    bar = tqdm(total=1, bar_format="{l_bar}{bar}| {elapsed}{postfix}", mininterval=1)
    while done < 1:
        step += 1
        done = min(1.0, step / a.steps if a.steps else (time.time() - began) / 60 / a.minutes)
        rate = a.lr * min(step / a.warmup, 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        loss = loss_of(model, *next(batches), a.dropout)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        recent = recent[-99:] + [loss.item()]
        train_loss = sum(recent) / len(recent)
        bar.update(done - bar.n)
        bar.set_postfix_str(f"step {step}, loss {train_loss:.3f}, best validation {best:.3f}")
        if step % a.eval_every == 0 or done == 1:
            val_loss = nats(model, val, overlap=0) / (len(val) - 1)
            print(f"\nstep {step}: training loss {train_loss:.3f}, validation loss {val_loss:.3f}, "
                  f"{(time.time() - began) / 60:.1f} minutes", flush=True)
            if val_loss < best:
                best = val_loss
                save(a.out,
                     {"format": "attn.c-train-1", "config": config, "model": model.state_dict(),
                      "tokenizer": tokenizer.to_str(), "step": step, "train_loss": train_loss,
                      "val_loss": val_loss, "seed": a.seed})
    bar.close()


def save(path, checkpoint):
    """Write beside, then rename: a reader never sees half a checkpoint."""
    torch.save(checkpoint, path + ".part")
    Path(path + ".part").replace(path)


def load(path):
    ck = torch.load(path, weights_only=True)
    model = Model(ck["config"])
    model.load_state_dict(ck["model"])
    return ck, model.eval(), Tokenizer.from_str(ck["tokenizer"])


# ---- measuring -----------------------------------------------------------------------------------


class NGrams:
    """Interpolated Kneser-Ney over token ids, down to the uniform distribution.

    Each order has one discount."""

    def __init__(self, ids, order, vocab_size):
        self.order, self.vocab_size = order, vocab_size
        counts = Counter(zip(*(ids[i:] for i in range(order))))
        # longest first: (counts, totals, kinds, discount)
        self.tables = []
        for _ in range(order):
            total, kinds = Counter(), Counter()
            for gram, n in counts.items():
                total[gram[:-1]] += n
                kinds[gram[:-1]] += 1
            spread = Counter(counts.values())
            self.tables.append((counts, total, kinds, spread[1] / (spread[1] + 2 * spread[2])))
            # lower orders count the kinds of tokens to the left
            counts = Counter(gram[1:] for gram in counts)

    def probability(self, gram):
        p = 1 / self.vocab_size
        for n in range(1, len(gram) + 1):
            counts, total, kinds, discount = self.tables[self.order - n]
            g = gram[-n:]
            if seen := total[g[:-1]]:
                p = (max(counts[g] - discount, 0) + discount * kinds[g[:-1]] * p) / seen
        return p

    def nats(self, ids):
        return -sum(math.log(self.probability(tuple(ids[max(0, i - self.order + 1):i + 1])))
                    for i in range(1, len(ids)))


def evaluate(a):
    ck, model, tokenizer = load(a.out)
    print(f"{a.out}: {sum(w.numel() for w in model.parameters()):,} parameters, step {ck['step']}, "
          f"training loss {ck['train_loss']:.3f}, validation loss {ck['val_loss']:.3f}")
    ids = [t for path in a.data for t in to_stream(tokenizer, read_texts(path, "train")).tolist()]
    grams = NGrams(ids, 5, ck["config"]["vocab_size"])
    print("held-out text          texts     bytes    tokens  loss/token  "
          "bits/byte  5-gram bits/byte")
    for path in a.data:
        texts = read_texts(path, "val")
        stream = to_stream(tokenizer, texts)
        size, n = sum(len(t.encode()) for t in texts), len(stream) - 1
        loss = nats(model, stream, overlap=ck["config"]["seq_len"] // 2)
        print(f"{Path(path).name:22} {len(texts):5} {size:9,} {n:9,} {loss / n:11.3f} "
              f"{loss / size / math.log(2):10.3f} "
              f"{grams.nats(stream.tolist()) / size / math.log(2):17.3f}")


# ---- sampling ------------------------------------------------------------------------------------


@torch.no_grad()
def sample(model, tokenizer, prompt, seed, max_tokens, temperature, top_p):
    """A text that begins with the prompt, up to its end token or max_tokens.

    The model sees its last seq_len tokens."""
    random = torch.Generator().manual_seed(seed)
    ids = [0] + tokenizer.encode(prompt).ids
    for _ in range(max_tokens):
        logits = model(torch.tensor([ids[-model.c["seq_len"]:]]))[0, -1]
        p, order = (logits / temperature).softmax(-1).sort(descending=True)
        p[p.cumsum(-1) - p > top_p] = 0
        ids.append(order[torch.multinomial(p, 1, generator=random)].item())
        if ids[-1] == 0:
            break
    return tokenizer.decode(ids)


def write_samples(a):
    _, model, tokenizer = load(a.out)
    for seed in range(a.seed, a.seed + a.sample):
        text = sample(model, tokenizer, a.prompt, seed, a.max_tokens, a.temperature, a.top_p)
        print(text.strip() + "\n" + END, flush=True)


def check_copies(a):
    """For each text of a file, the longest run of words it shares with the data."""
    words = lambda text: re.findall(r"[a-z']+", text.lower())
    data = [w for path in a.data for w in words(Path(path).read_text())]
    texts = [words(t) for t in Path(a.check_copies).read_text().split(END) if t.strip()]
    places, best = defaultdict(list), [(0, 0)] * len(texts)
    for i, t in enumerate(texts):
        for j in range(len(t) - 3):
            places[tuple(t[j:j + 4])].append((i, j))
    for k, gram in enumerate(zip(data, data[1:], data[2:], data[3:])):
        for i, j in places.get(gram, ()):
            n = 4
            while j + n < len(texts[i]) and k + n < len(data) and texts[i][j + n] == data[k + n]:
                n += 1
            best[i] = max(best[i], (n, j))
    for i, (n, j) in enumerate(best):
        print(f"text {i + 1}: {len(texts[i])} words, longest run {n}: "
              f"{' '.join(texts[i][j:j + n])}")
    print(f"longest of all: {max(best)[0]} words")


def main():
    class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
        pass

    p = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    p.add_argument("data", nargs="*", help="text files")
    p.add_argument("-o", "--out", default="tales.pt", help="checkpoint to write or to read")
    mode = p.add_mutually_exclusive_group()
    mode.add_argument("--evaluate", action="store_true", help="only measure the checkpoint")
    mode.add_argument("--sample", type=int, metavar="N",
                      help="only write N texts, with the seeds SEED, SEED + 1, ..")
    mode.add_argument("--check-copies", metavar="FILE",
                      help="only look for runs of words that FILE's texts share with the data")
    g = p.add_argument_group("model")
    g.add_argument("--dim", type=int, default=256, help="width of the residual stream")
    g.add_argument("--layers", type=int, default=4, help="decoder layers")
    g.add_argument("--heads", type=int, default=8, help="attention heads")
    g.add_argument("--hidden", type=int, default=1024, help="width of the feed-forward")
    g.add_argument("--vocab-size", type=int, default=4096, help="tokens")
    g.add_argument("--seq-len", type=int, default=256, help="context")
    g = p.add_argument_group("training")
    g.add_argument("--minutes", type=float, default=82,
                   help="length of the run: the learning rate follows the clock")
    g.add_argument("--steps", type=int, help="length of the run in steps instead")
    g.add_argument("--rows", type=int, default=16, help="windows in a batch")
    g.add_argument("--weights", type=float, nargs="*",
                   help="share of the batches for each data file (default: by size)")
    g.add_argument("--lr", type=float, default=3e-3, help="highest learning rate")
    g.add_argument("--warmup", type=int, default=100,
                   help="steps over which the learning rate rises")
    g.add_argument("--weight-decay", type=float, default=0.1, help="of the matrices")
    g.add_argument("--dropout", type=float, default=0.2,
                   help="on the embedding and on what each block adds")
    g.add_argument("--eval-every", type=int, default=200, help="steps between validations")
    g = p.add_argument_group("sampling")
    g.add_argument("--prompt", default="Once upon a time", help="how each text begins")
    g.add_argument("--max-tokens", type=int, default=220, help="longest text")
    g.add_argument("--temperature", type=float, default=0.8, help="of the softmax")
    g.add_argument("--top-p", type=float, default=0.95, help="share of the probability kept")
    p.add_argument("--seed", type=int, default=1, help="of training or of the first text")
    a = p.parse_args()
    if a.sample:
        write_samples(a)
    elif not a.data:
        p.error("no data file")
    elif a.check_copies:
        check_copies(a)
    else:
        if not a.evaluate:
            train(a)
        evaluate(a)


if __name__ == "__main__":
    main()
