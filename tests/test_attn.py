"""attn.py opens, compares and draws what ./run dumps, which is what docs/attention.md says."""
from __future__ import annotations

import base64
import csv
import fcntl
import importlib.util
import io
import itertools
import json
import math
import os
import pickle
import random
import re
import select
import statistics
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from command import TIMEOUT, check_line, run

import attn
from attn import Maps

ROOT = Path(__file__).resolve().parent.parent
TALES = ROOT / "models" / "tales.bin"
PROMPT = "Once upon a time there was a king who had three sons, and the youngest said"
TOKENS = ["<|endoftext|>", "Once", " upon", ' "a', ",", "\n", "\\xE4", " k\u00f6nig $x$", " the",
          " the", "nan", "</script>"]
BYTES = [b"", b"Once", b" upon", b' "a', b",", b"\n", b"\xe4", " k\u00f6nig $x$".encode(), b" the",
         b" the", b"nan", b"</script>"]
FORMATS = list(attn.READERS)
REDUCES = list(attn.REDUCED)
CODE_STEP = 1 - (254.5 / 255) ** 2


def softmax(rng: np.random.Generator, shape: tuple[int, ...], queries: np.ndarray,
            sharp: float = 3) -> np.ndarray:
    """Random causal rows that sum to 1, (*shape, queries, T)."""
    x = rng.normal(size=shape) * sharp
    x = np.where(np.arange(shape[-1]) <= queries[:, None], x, -np.inf)
    w = np.exp(x - x.max(-1, keepdims=True))
    return (w / w.sum(-1, keepdims=True)).astype(np.float32)


def sample(reduce: str = "none", queries: range = range(12), seed: int = 0,
           sharp: float = 3) -> Maps:
    """Maps of layers 0, 2 and heads 1, 2, 5 over TOKENS; of a reduced axis one entry.

    They need not be a reduction of others."""
    L, H = (1 if word else n for word, n in zip(attn.REDUCED[reduce], (2, 3)))
    T, q = len(TOKENS), np.array(queries)
    w = softmax(np.random.default_rng(seed), (L, H, len(q), T), q, sharp)
    ids = [5 + TOKENS.index(t) for t in TOKENS]
    return Maps(w, TOKENS, ids, BYTES, 7, [0, 2], [1, 2, 5], list(queries), reduce)


# ---- encoders ------------------------------------------------------------------------------------

def write_npz(m: Maps, path: Path) -> None:
    np.savez(path, attn=m.attn, tokens=np.array(m.tokens),
             token_ids=np.array(m.token_ids, np.int32), n_prompt=np.int64(m.n_prompt),
             token_bytes=np.frombuffer(b"".join(m.token_bytes), np.uint8),
             token_offsets=np.cumsum([0] + [len(b) for b in m.token_bytes]),
             layers=np.array(m.layers, np.int32), heads=np.array(m.heads, np.int32),
             queries=np.array(m.queries, np.int32), reduce=np.array(m.reduce))


def write_npy(m: Maps, path: Path) -> None:
    np.save(path, m.attn)


def largest(weights: np.ndarray, top: int | None) -> list[int]:
    """Keys of one row as a file lists them."""
    return sorted(range(len(weights)),
                  key=lambda k: -weights[k])[:top] if top else list(range(len(weights)))


def write_jsonl(m: Maps, path: Path, top: int | None = None) -> None:
    with open(path, "w") as f:
        for i, pos in enumerate(m.queries):
            rows = m.attn[:, :, i, :pos + 1].astype(float)
            keys = [[largest(w, top) for w in layer] for layer in rows]
            line = {"v": 1, "pos": pos, "id": m.token_ids[pos], "token": m.tokens[pos],
                    "bytes": m.token_bytes[pos].hex(),
                    "prompt": pos < m.n_prompt, "reduce": m.reduce, "layers": m.layers,
                    "heads": m.heads,
                    "attn": [[[w[k] for k in ks] for w, ks in zip(layer, kk)]
                             for layer, kk in zip(rows, keys)]}
            f.write(json.dumps(line | ({"keys": keys} if top else {})) + "\n")


def words(m: Maps) -> tuple[list, list]:
    """What layers and heads are called where a format has one word for a reduced axis."""
    layer, head = attn.REDUCED[m.reduce]
    return [layer] if layer else m.layers, [head] if head else m.heads


def write_csv(m: Maps, path: Path, top: int | None = None) -> None:
    with open(path, "w", newline="", encoding="utf-8") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow("layer head query key query_token key_token weight".split())
        for layer, heads in zip(words(m)[0], m.attn):
            for head, rows in zip(words(m)[1], heads):
                for q, row in zip(m.queries, rows):
                    for k in largest(row[:q + 1], top):
                        out.writerow((layer, head, q, k, m.tokens[q], m.tokens[k],
                                      repr(float(row[k]))))


def write_svg(m: Maps, path: Path) -> None:
    out = ['<svg xmlns="http://www.w3.org/2000/svg"><rect width="100%" '
           'height="100%"/><text>attention</text><g transform="translate(5 5)">']
    for layer, heads in zip(words(m)[0], m.attn):
        for head, rows in zip(words(m)[1], heads):
            out.append(f'<g class="map" data-layer="{layer}" data-head="{head}"><g><rect '
                       f'width="{rows.shape[1]}" height="{len(rows)}"/>')
            paths: dict[int, str] = {}
            for y, (q, row) in enumerate(zip(m.queries, rows)):
                for level, cells in itertools.groupby(range(q + 1),
                                                      lambda k: round(float(row[k]) * 255)):
                    x, *more = cells
                    paths[level] = paths.get(level,
                                             "") + f"M{x} {y}h{len(more) + 1}v1h-{len(more) + 1}z"
            out += [f'<path data-level="{level}" d="{d}"/>' for level, d in paths.items()]
            out.append("</g></g>")
    path.write_text("\n".join(out) + "</g></svg>\n")


def leb128(n: int) -> bytes:
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + leb128(n >> 7)


def encode_map(rows: np.ndarray, queries: list[int], floor: int = 1) -> bytes:
    out = bytearray()
    for q, row in zip(queries, rows):
        run = 0
        for w in [*row[:q + 1].astype(float), None]:
            code = 1 if w is None else round(255 * math.sqrt(w))
            if w is None or code >= floor:
                out += bytes([0]) + leb128(run) if run else b""
                out += bytes([code]) if w is not None else b""
                run = 0
            else:
                run += 1
    return bytes(out)


def write_html(m: Maps, path: Path, floor: int = 1) -> None:
    maps = [rows for layer in m.attn for rows in layer]
    layers, heads = (v[0] if isinstance(v[0], str) else v for v in words(m))
    meta = {"v": 1, "model": "x.bin", "arch": "gpt", "tokens": m.tokens, "ids": m.token_ids,
            "n_prompt": m.n_prompt, "first_query": m.queries[0],
            "n_queries": len(m.queries), "layers": layers, "heads": heads, "reduce": m.reduce,
            "floors": [floor] * len(maps), "thumbs": {}, "stats": {}}
    out = ["<!doctype html>\n"
           "<html><head><title>x</title></head><body><script>const x = 1 < 2;</script>"]
    out += ['<script type="text/plain" '
            f'class="attn">{base64.b64encode(encode_map(r, m.queries, floor)).decode()}</script>'
            for r in maps]
    out.append(
        '<script type="application/json" '
        f'id="meta">{json.dumps(meta).replace("<", chr(92) + "u003c")}</script></body></html>\n')
    path.write_text("\n".join(out))


WRITERS = {".npz": write_npz, ".npy": write_npy, ".jsonl": write_jsonl, ".csv": write_csv,
           ".svg": write_svg, ".html": write_html}
HOLDS = {".npz": ("tokens", "token_ids", "token_bytes", "n_prompt", "layers", "heads", "queries",
                  "reduce"), ".npy": (),
         ".jsonl": ("tokens", "token_ids", "token_bytes", "n_prompt", "layers", "heads", "queries",
                    "reduce"),
         ".csv": ("tokens", "layers", "heads", "queries", "reduce"),
         ".svg": ("layers", "heads", "queries", "reduce"),
         ".html": ("tokens", "token_ids", "n_prompt", "layers", "heads", "queries", "reduce")}
STEPS = {".svg": 0.5 / 255, ".html": CODE_STEP}


def written(m: Maps, tmp_path: Path, ending: str, **more) -> Path:
    path = tmp_path / f"a{ending}"
    WRITERS[ending](m, path, **more)
    return path


# ---- formats -------------------------------------------------------------------------------------

@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("reduce", REDUCES)
def test_formats(tmp_path: Path, ending: str, reduce: str) -> None:
    """Every format gives back its weights within its step and what else it holds.

    The rest is None."""
    want = sample(reduce)
    got = attn.load(written(want, tmp_path, ending))
    assert got.attn.dtype == np.float32 and got.attn.shape == want.attn.shape
    assert got.step == pytest.approx(STEPS.get(ending, 0))
    assert np.abs(got.attn - want.attn).max() <= got.step + 1e-7 * bool(got.step)
    for name in ("tokens", "token_ids", "token_bytes", "n_prompt", "layers", "heads", "queries",
                 "reduce"):
        axis = {"layers": 0, "heads": 1}.get(name)
        # one word instead
        gone = (axis is not None and attn.REDUCED[reduce][axis]
                and ending in (".csv", ".svg", ".html"))
        assert getattr(got, name) == (getattr(want, name)
                                      if name in HOLDS[ending] and not gone else None), name


@pytest.mark.parametrize("ending", FORMATS)
def test_some_rows(tmp_path: Path, ending: str) -> None:
    """Rows 3 to 6.

    Formats that list keys end with the last key; .jsonl knows the tokens of its lines."""
    want = sample(queries=range(3, 7))
    got = attn.load(written(want, tmp_path, ending))
    T = 7 if ending in (".csv", ".jsonl") else 12
    assert got.attn.shape == (2, 3, 4, T)
    assert np.abs(got.attn - want.attn[..., :T]).max() <= got.step + 1e-7
    if ending == ".npy":
        with pytest.raises(ValueError, match="does not say which tokens"):
            got.positions
    else:
        assert got.positions.tolist() == [3, 4, 5, 6]
    if ending == ".jsonl":
        assert (got.tokens == ["", "", "", *TOKENS[3:7]] and got.token_ids is None
                and got.text is None and got.n_prompt == 7)
        # where the prompt ended is not in it
        after = attn.load(written(sample(queries=range(9, 12)), tmp_path, ending))
        assert after.n_prompt is None and attn.load(
            written(sample(queries=range(7, 9)), tmp_path, ending)).n_prompt is None
    if ending == ".csv":
        assert got.tokens == TOKENS[:7]


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_top(tmp_path: Path, ending: str) -> None:
    """Weights that were left out are 0 in the Maps and at most its step in truth.

    The step is at most each row's smallest weight and what the others leave of 1."""
    want = sample()
    got = attn.load(written(want, tmp_path, ending, top=4))
    kept = np.sort(want.attn, -1)[..., -4:]
    full = np.where(want.attn >= kept[..., :1], want.attn, 0)
    assert np.array_equal(got.attn, full)
    left = np.minimum(kept[..., 0], 1 - kept.sum(-1) + 1e-6)[..., 4:].max()
    assert (got.step == pytest.approx(left, abs=1e-6)
            and 0.01 < np.abs(got.attn - want.attn).max() <= got.step)
    high = sample("max-heads")
    high.attn = np.minimum(high.attn * 3, 1)  # rows of a maximum sum to more than 1
    assert attn.load(written(high, tmp_path, ending,
                             top=4)).step == np.sort(high.attn, -1)[..., 4:, -4].max()
    assert attn.load(written(want, tmp_path, ending, top=12)).step == 0


def test_half_and_mmap(tmp_path: Path) -> None:
    want = sample()
    half = Maps(**{**vars(want), "attn": want.attn.astype(np.float16)})
    for ending in (".npz", ".npy"):
        got = attn.load(written(half, tmp_path, ending))
        assert (got.attn.dtype == np.float32 and got.step == 2**-12
                and np.abs(got.attn - want.attn).max() <= got.step)
    path = written(want, tmp_path, ".npy")
    got = attn.load(path, mmap=True)
    assert isinstance(got.attn, np.memmap) and np.array_equal(got.attn, want.attn)
    assert isinstance(attn.load(written(half, tmp_path, ".npy"), mmap=True).attn, np.memmap)


def test_viewer_codes(tmp_path: Path) -> None:
    """Runs of more than 127 keys, rows that are one run, floors: by the documented rounding."""
    rng = np.random.default_rng(1)
    queries = np.arange(400)
    w = softmax(rng, (1, 400, 400), queries, 12)
    w[0, 300, :301] = 0
    codes = np.round(255 * np.sqrt(w[0].astype(float)))
    for floor in (1, 40):
        want = np.where(codes >= floor, (codes / 255) ** 2, 0)
        assert np.abs(attn.decode(encode_map(w[0], queries.tolist(), floor), queries + 1, 400)
                      - want).max() < 1e-7
    m = sample()
    got = attn.load(written(m, tmp_path, ".html", floor=40))
    assert (got.step == pytest.approx((39.5 / 255) ** 2)
            and CODE_STEP < np.abs(got.attn - m.attn).max() <= got.step)
    for bad in (b"\xff\0", b"\xff\xff\0\0\x01", b"\xff\0\x80", b"\xff\0\x03\xff",
                b"\xff\0\0\xff\xff", b"\xff\xff", b"\xff\xff\xff\xff", b"", b"\0\x03"):
        with pytest.raises(ValueError):
            attn.decode(bad, np.arange(1, 3), 2)


def test_save(tmp_path: Path) -> None:
    """What convert writes is the documented .npz again."""
    for ending in FORMATS:
        one = attn.load(written(sample(), tmp_path, ending))
        attn.save(one, tmp_path / "b.npz")
        two = attn.load(tmp_path / "b.npz")
        assert (np.array_equal(one.attn, two.attn)
                and vars(two) | {"attn": 0, "step": 0} == vars(one) | {"attn": 0, "step": 0})
    (tmp_path / "b.d").mkdir()
    with pytest.raises(OSError):
        attn.save(one, tmp_path / "b.d")
    assert sorted(p.name for p in tmp_path.glob("b*")) == ["b.d", "b.npz"]


# ---- hostile files -------------------------------------------------------------------------------

def refused(path: Path, match: str = "", mmap: bool = False) -> None:
    with pytest.raises(ValueError) as e:
        attn.load(path, mmap)
    check_line(str(e.value))
    assert str(e.value).startswith(f"{path}: ") and re.search(match, str(e.value)), e.value


@pytest.mark.parametrize("ending", FORMATS)
def test_truncated(tmp_path: Path, ending: str) -> None:
    """A file that is cut is an error of one line, at many lengths.

    Two cases are none: only white space is missing; or the cut is between the lines of a .jsonl, or
    of the first head in a .csv, where nothing tells that more was to come."""
    m = sample()
    m.attn = m.attn[:1, :2]
    m.layers, m.heads = [0], [1, 2]
    data = written(m, tmp_path, ending).read_bytes()
    path, every = tmp_path / f"cut{ending}", max(1, len(data) // 499)
    for size in {*range(min(200, len(data))), *range(0, len(data), every),
                 *range(max(0, len(data) - 200), len(data))}:
        path.write_bytes(data[:size])
        if ending == ".jsonl" and data[:size].endswith(b"\n"):
            assert attn.load(path).attn.shape[2] == data[:size].count(b"\n")
        elif (ending == ".csv" and data[:size].endswith(b"\n") and b"\n0,2," not in data[:size]
                  and size > 60):
            try:
                assert attn.load(path).attn.shape[:2] == (1, 1)
            except ValueError as e:
                check_line(str(e))
        elif data[:size].strip() != data.strip() or ending in (".jsonl", ".csv"):
            refused(path)


@pytest.mark.parametrize("ending", FORMATS)
def test_flipped(tmp_path: Path, ending: str) -> None:
    """Random bytes changed: the file opens or is refused in one line."""
    data, rng = written(sample(), tmp_path, ending).read_bytes(), random.Random(3)
    path, opened = tmp_path / f"flip{ending}", 0
    for _ in range(400):
        broken = bytearray(data)
        for _ in range(rng.choice((1, 1, 4))):
            broken[rng.randrange(min(len(data), rng.choice((200, len(data)))))] = rng.randrange(256)
        path.write_bytes(broken)
        try:
            opened += attn.load(path).attn.ndim == 4
        except ValueError as e:
            check_line(str(e))
    assert opened < 400


class Trap:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("trapped",)


def test_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects in arrays are refused, not made."""
    monkeypatch.chdir(tmp_path)
    trap = np.array([Trap()], object)
    np.savez(tmp_path / "a.npz", attn=sample().attn, tokens=trap)
    np.save(tmp_path / "a.npy", trap)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Trap()))
    for name in ("a.npz", "a.npy"):
        refused(tmp_path / name, "pickled Python objects")
        refused(tmp_path / name, "pickled Python objects", mmap=True)
    for name in ("b.npz", "b.npy"):
        refused(tmp_path / name)
    assert not (tmp_path / "trapped").exists()


def npy_header(shape: str, size: int = 0) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(
        117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + bytes(size)


@pytest.mark.parametrize(
    "shape", ["(1, 1, 1, 99999999999)", "(1, 1, 1, 5)", "(-2, -2, 1, 1)",
              "(99999999, 99999999, 99999999, 99999999)", "(-1, 1, 1, 1)", "(2, 2)", "()",
              "(0, 1, 1, 1)", "[1]", "(1, 1, 1, 1", "(True, 1, 1, 1)", "(" * 500, "9" * 99])
def test_npy_shapes(tmp_path: Path, shape: str) -> None:
    """Sizes are compared with the file before anything is allocated."""
    for path in (tmp_path / "a.npy", tmp_path / "a.npz"):
        if path.suffix == ".npy":
            path.write_bytes(npy_header(shape, 16))
        else:
            with zipfile.ZipFile(path, "w") as z:
                z.writestr("attn.npy", npy_header(shape, 16))
        refused(path,
                "bytes of array, want [0-9]+$" if "99999999" in shape and "," in shape else "")


def edited(path: Path, old: str, new: str) -> Path:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def test_wrong(tmp_path: Path) -> None:
    """Files of another kind, and files that break one promise each."""
    m = sample()
    for ending in FORMATS:
        for data in (b"", b"\0" * 999, b"GGUF\3\0\0\0", b"{}\n", b"[[[[" * 50000, b"\xff\xfe",
                     b"<html></html>", b"PK\3\4", "\u202e\x1b[31m".encode() * 9):
            path = tmp_path / f"x{ending}"
            path.write_bytes(data)
            refused(path)
    path = tmp_path / "x\x1b[31m.txt"
    path.write_text("x")
    with pytest.raises(ValueError, match="ending is none of") as e:
        attn.load(path)
    check_line(str(e.value))
    np.savez(tmp_path / "a.npz", other=m.attn)
    refused(tmp_path / "a.npz", "no array attn")
    for name, value, match in (("attn", m.attn[0], "shape"), ("attn", m.attn.astype(int), "int64"),
                               ("tokens", m.tokens[1:], "11 tokens, want 12"),
                               ("attn", m.attn * np.float32(np.nan), "outside 0 to 1"),
                               ("attn", -m.attn, "outside 0 to 1"),
                               ("attn", m.attn[..., ::-1], "later tokens"),
                               ("queries", [*range(11), 12], "outside the text"),
                               ("layers", [1], "2 layers of weights, want 1"),
                               ("reduce", "median", "median"), ("n_prompt", 13, "n_prompt"),
                               ("reduce", "mean", "2 layers of weights, want 1")):
        write_npz(Maps(**{**vars(m), name: value}), tmp_path / "a.npz")
        refused(tmp_path / "a.npz", match)
    for ending, old, new, match in (
        (".jsonl", '"v": 1', '"v": 2', "line 1: version 2"),
        (".jsonl", '"pos": 3', '"pos": 2', "line 4: pos 2"),
        (".jsonl", '"id"', '"ID"', "line 1: 'id'"),
        (".jsonl", '"reduce": "none"', '"reduce": "mean"', "line 1: attn has shape"),
        (".jsonl", '"layers": [0, 2]', '"layers": [0]', "attn has shape"),
        (".jsonl", '"bytes": ""', '"bytes": "0"', "line 1: "), (".jsonl", "1.0", "NaN", "outside"),
        (".jsonl", '"pos": 0', '"pos": 1e9', "line 1: pos"),
        (".csv", "layer,", "Layer,", "first line"), (".csv", "0,1,3,2", "0,1,3,1", "token differs"),
        (".csv", '0,1,11,8,</script>, the', '0,1,11,9,</script>, the', "twice"),
        (".csv", "0,1,3,2", "0,1,2,3", "row 10: query 2, key 3"),
        (".csv", "0,1,3,2", "0,4,3,2", "lack keys"), (".csv", "0,1,3,2", "mean,1,3,2", "neither"),
        (".csv", " upon", " Upon", "token differs"),
        (".svg", 'data-level="255"', 'data-level="256"', "beyond 255"),
        (".svg", '<rect width="12"', '<rect width="13"', "not one for each"),
        (".svg", 'data-head="1"', 'data-head="7"', "not one for each"),
        (".svg", 'data-layer="0"', "", "data-layer"),
        (".svg", "M0 0h1v1h-1z", "", "cells are missing"),
        (".svg", "M0 0h1v1h-1z", "M0 0l1 1z", "runs of cells"),
        (".svg", "M0 0h1v1h-1z", "M0 12h1v1h-1z", "out of bounds"),
        (".svg", "M0 0h1v1h-1z", "M0 0h1v1h-1zM1 0h1v1h-1z", "missing"),
        (".svg", "<svg", "<!DOCTYPE x [<!ENTITY a 'b'>]><svg", "entities"),
        (".html", '"v": 1', '"v": 2', "version 2"),
        (".html", '"n_queries": 12', '"n_queries": 13', "do not fit"),
        (".html", '"heads": [1', '"heads": [0, 1', "maps"),
        (".html", '"first_query": 0', '"first_query": 1', "do not fit"),
        (".html", '"reduce": "none"', '"reduce": "mean"', "of mean, want 6 of none"),
        (".html", '"floors": [1', '"floors": ["1"', "floors")):
        refused(edited(written(m, tmp_path, ending), old, new), match)
    write_npz(Maps(**{**vars(m), "attn": m.attn[:, :, :0], "queries": []}), tmp_path / "a.npz")
    refused(tmp_path / "a.npz", "has no rows")
    (tmp_path / "a.csv").write_text(",".join(attn.CSV_COLUMNS) + "\n")
    refused(tmp_path / "a.csv", "has no rows")
    path = tmp_path / "a.jsonl"
    for old, new in (('"keys": [[[0]', '"keys": [[[1]'), ('"keys": [[[0]', '"keys": [[[-1]'),
                     ('"keys": [[[0]', '"keys": [[[0.5]'), ('"keys": [[[0]', '"keys": [[["0"]')):
        refused(edited(written(m, tmp_path, ".jsonl", top=4), old, new), "line 1: ")
    lines = written(m, tmp_path, ".jsonl", top=4).read_text().splitlines()
    lines[1] = re.sub(r'"keys": \[\[\[., .\]', '"keys": [[[0, 0]', lines[1])
    path.write_text("\n".join(lines) + "\n")
    refused(path, "line 2: keys do not fit")
    lines = written(m, tmp_path, ".jsonl").read_text().splitlines()
    path.write_text(
        "\n".join([lines[0], lines[1].replace('"heads": [1, 2, 5]', '"heads": [1, 2, 6]')]) + "\n")
    refused(path, "line 2: other layers")


def command(*args: str | Path) -> subprocess.CompletedProcess[bytes]:
    return run(Path(sys.executable), ROOT / "attn.py", *args)


def test_errors(tmp_path: Path) -> None:
    """On the command line: one line on standard error, 1 for files and 2 for usage."""
    written(sample(), tmp_path, ".npz")
    (tmp_path / "bad.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:700])
    written(sample(queries=range(3, 7)), tmp_path, ".npy")
    good = tmp_path / "a.npz"
    for args in (("info", "bad.npz"), ("info", "none.npz"), ("info", "\x1b[31m.npz"),
                 ("stats", "bad.npz"), ("stats", "a.npy"), ("diff", good, "bad.npz"),
                 ("diff", good, "."), ("plot", good, "--layer", "1", "-o", "x.png"),
                 ("plot", good, "-o", "no/x.png"), ("plot", good, "-o", "x.nonesuch"),
                 ("plot", good, "--head", "-4", "-o", "x.png"), ("convert", good, "-o", "x.csv"),
                 ("convert", good, "-o", "no/x.npz"), ("info", ".")):
        done = command(*(a if isinstance(a, Path) or not i or a.startswith("-")
                         or a.isdigit() else tmp_path / a for i, a in enumerate(args)))
        stderr = done.stderr.decode()
        assert ((done.returncode, done.stdout) == (1, b"") and stderr.startswith("attn.py: ")
                and stderr.count("\n") == 1), (args, stderr)
        check_line(stderr[:-1])
    for args in ((), ("info",), ("nonesuch", good), ("plot", good), ("diff", good)):
        done = command(*args)
        assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert not list(tmp_path.glob("x*"))


# ---- numbers -------------------------------------------------------------------------------------

def test_stats() -> None:
    """Against the formulas of docs/attention.md as loops.

    1e-6 is the rounding of float32 weights, which need not sum to 1."""
    for queries in (range(12), range(4, 9), range(1)):
        m = sample(queries=queries)
        got = attn.stats(m)
        for i in range(2):
            for j in range(3):
                rows = [(q, [float(w) for w in m.attn[i, j, r]]) for r, q in enumerate(queries)]
                use = [(q, w) for q, w in rows if q > 0]
                entropy = [-sum(x * math.log(x) for x in w if x) for _, w in use]
                pairs = sum(w[k] for q, w in rows for k in range(1, q + 1)
                            if m.token_ids[k - 1] == m.token_ids[q] and k - 1 != q)
                want = {"rows": len(use), "induction": pairs / sum(map(sum, (w for _, w in rows)))}
                if use:
                    want |= {
                        name: statistics.fmean(v) for name, v in (
                            ("entropy", entropy),
                            ("entropy_rel",
                             [e / math.log(q + 1) for e, (q, _) in zip(entropy, use)]),
                            ("distance", [sum(w[k] * (q - k) for k in range(q)) for q, w in use]),
                            ("sink", [w[0] for _, w in use]),
                            ("self", [w[q] for q, w in use]),
                            ("previous", [w[q - 1] for q, w in use]),
                            ("max_weight", [max(w) for _, w in use]),
                            ("sink_rows", [w.index(max(w)) == 0 for _, w in use]))}
                for name, v in got.items():
                    assert v.shape == (2, 3) and (v[i, j] == pytest.approx(want[name], abs=1e-6)
                                                  if name in want else np.isnan(v[i, j])), name
    assert (attn.stats(sample())["induction"] > 0).all()  # TOKENS has " the" twice
    assert np.isnan(attn.stats(Maps(sample().attn))["induction"]).all()


def test_rollout() -> None:
    """Rows stay distributions; one layer by hand; order of the layers."""
    m = sample()
    r = attn.rollout(m)
    assert np.allclose(r.sum(-1), 1, atol=1e-6) and np.array_equal(r, np.tril(r))
    a = Maps(np.array([[[[1, 0], [0.5, 0.5]]], [[[1, 0], [1, 0]]]], np.float32))
    assert np.array_equal(attn.rollout(a), [[1, 0], [0.625, 0.375]])
    # 2 asks 1 after 1 asked 0
    three = np.array([[[[1, 0, 0], [1, 0, 0], [0, 0, 1]]], [[[1, 0, 0], [0, 1, 0], [0, 1, 0]]]],
                     np.float32)
    assert attn.rollout(Maps(three))[2].tolist() == [0.25, 0.25, 0.5]
    for bad in (sample("mean"), sample(queries=range(3, 7))):
        with pytest.raises(ValueError):
            attn.rollout(bad)


def by_hand(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """Cosine, Jensen-Shannon divergence and rank correlation in another way.

    The divergence is made of two Kullback-Leibler ones, the rank correlation is Pearson's of
    counted ranks."""
    x, y = ([v / sum(r) for v in r] for r in (x, y))
    cosine = sum(a * b
                 for a, b in zip(x, y)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    js = sum(a * math.log(2 * a / (a + b)) / 2 for a, b in zip(x, y)
             if a) + sum(b * math.log(2 * b / (a + b)) / 2 for a, b in zip(x, y) if b)
    rx, ry = ([sum(u < v for u in r) + sum(u == v for u in r) / 2 for v in r] for r in (x, y))
    flat = len(set(rx)) == 1, len(set(ry)) == 1
    return cosine, js, float(all(flat)) if any(flat) else statistics.correlation(rx, ry)


def test_diff_same() -> None:
    for reduce in REDUCES:
        d = attn.diff(sample(reduce), sample(reduce))
        assert (np.allclose(d.cosine, 1, rtol=0, atol=1e-15) and not d.js.any()
                and np.allclose(d.rank, 1, rtol=0, atol=1e-12))
        assert d.rows.tolist() == [[i, i] for i in range(1, 12)] and not any(d.left_out.values())


def test_diff_rows() -> None:
    """Every row of two runs of one text against Python.

    Ties, zeros and constant rows among them."""
    a, b = sample(), sample(seed=1)
    a.attn[0, 0, 5] = [0.25, 0.25, 0, 0.5] + [0] * 8
    b.attn[0, 0, 5] = [0, 0.5, 0.25, 0.25] + [0] * 8
    a.attn[0, 1, 3, :4] = b.attn[0, 1, 3, :4] = b.attn[0, 2, 3, :4] = 0.25
    a.attn[0, 0, 1], b.attn[0, 0, 1] = [1] + [0] * 11, [0, 1] + [0] * 10
    d = attn.diff(a, b)
    assert d.layers == [0, 2] and d.heads == [1, 2, 5]
    for i in range(2):
        for j in range(3):
            want = [by_hand(a.attn[i, j, q, :q + 1].tolist(), b.attn[i, j, q, :q + 1].tolist())
                    for q in range(1, 12)]
            for got, mean, w in zip((d.row_cosine, d.row_js, d.row_rank), (d.cosine, d.js, d.rank),
                                    zip(*want)):
                assert (got[i, j].tolist() == pytest.approx(w, abs=1e-12)
                        and mean[i, j] == pytest.approx(statistics.fmean(w), abs=1e-12))
    assert (d.row_cosine[0, 0, 0], d.row_js[0, 0, 0],
            d.row_rank[0, 0, 0]) == (0, pytest.approx(math.log(2)), pytest.approx(-1))
    assert d.row_rank[0, 1, 2] == 1 and d.row_rank[0, 2, 2] == 0
    assert d.token_js == pytest.approx(d.row_js.mean((0, 1)), abs=1e-15)
    want = [statistics.fmean((a.attn[i, j, q, k]) for i in range(2) for j in range(3)
                             for q in range(max(k, 1), 12)) for k in range(12)]
    assert d.received[:, 0] == pytest.approx(want, abs=1e-6)
    again = attn.diff(b, a)
    assert np.allclose(again.js, d.js,
                       atol=1e-15) and np.array_equal(again.received[:, ::-1], d.received)


def inserted(m: Maps, at: int, share: float) -> Maps:
    """The same text with a foreign token that takes `share` of every row behind it."""
    n = m.attn.shape[3] + 1
    old = [i for i in range(n) if i != at]
    w = np.zeros((*m.attn.shape[:2], n, n), np.float32)
    w[:, :, np.ix_(old, old)[0], old] = m.attn
    w[:, :, at + 1:] *= 1 - share
    w[:, :, at + 1:, at] = share
    w[:, :, at, 0] = 1
    put = lambda v, x: v[:at] + [x] + v[at:]
    return Maps(w, put(m.tokens, " new"), put(m.token_ids, 999), put(m.token_bytes, b" new"),
                m.n_prompt, m.layers, m.heads, list(range(n)), m.reduce)


def test_diff_aligned() -> None:
    """An inserted token and its share are left out, so that nothing else moved.

    Files without ids align by their words; without words either they cannot."""
    a = sample()
    b = inserted(inserted(a, 5, 0.75), 2, 0.5)
    d = attn.diff(a, b)
    assert d.left_out == {"tokens_a": 0, "tokens_b": 2, "heads_a": 0, "heads_b": 0, "rows": 0}
    assert d.columns.tolist() == [[i, i + (i >= 2) + (i >= 5)]
                                  for i in range(12)] and len(d.rows) == 11
    assert d.js.max() < 1e-6 and d.cosine.min() > 1 - 1e-6  # float32 weights
    assert attn.diff(b, a).left_out["tokens_a"] == 2
    a.token_ids = None
    assert attn.diff(a, b).columns.tolist() == d.columns.tolist()
    a.tokens = None
    with pytest.raises(ValueError, match="12 and 14 tokens"):
        attn.diff(a, b)
    changed = sample()
    changed.token_ids = [*changed.token_ids]
    changed.token_ids[4] = 77
    changed.attn[:, :, 4:, 4] = 0
    d = attn.diff(sample(), changed)  # the changed word's row and column are not compared
    assert (d.left_out["tokens_a"] == d.left_out["tokens_b"] == 1 and 4 not in d.rows
            and d.js.max() < 1e-6)
    changed.attn[0, 0, 6, :] = np.eye(12)[4]  # all weight on what is left out
    d = attn.diff(sample(), changed)
    assert (d.left_out["rows"] == 1 and np.isnan(d.row_js[0, 0, d.rows[:, 0].tolist().index(6)])
            and np.isfinite(d.js).all())


def test_diff_selections() -> None:
    """Heads pair by number, rows by position."""
    a, b = sample(), sample(queries=range(3, 7))
    b.layers, b.heads, b.attn = [2], [5, 1], np.ascontiguousarray(a.attn[1:, [2, 0], 3:7])
    d = attn.diff(a, b)
    assert (d.layers == [2] and d.heads == [1, 5] and d.rows[:, 1].tolist() == [3, 4, 5, 6]
            and not d.js.any())
    assert d.left_out["heads_a"] == 4 and d.left_out["heads_b"] == 0
    assert attn.diff(b, a).rows[:, 0].tolist() == [3, 4, 5, 6]
    b.layers = [7]
    with pytest.raises(ValueError, match="no layer"):
        attn.diff(a, b)
    with pytest.raises(ValueError, match="reduced by"):
        attn.diff(a, sample("mean-heads"))


def test_commands(tmp_path: Path) -> None:
    """info, stats, diff --csv, convert; from a pipe, too; tokens cannot reach the terminal."""
    m = sample()
    m.tokens = [*TOKENS[:5], "\x1b[31m\u202e", *TOKENS[6:]]
    one, two = written(m, tmp_path, ".npz"), tmp_path / "b.jsonl"
    write_jsonl(sample(seed=1), two)
    done = command("info", one)
    text = done.stdout.decode()
    assert (done.returncode,
            done.stderr) == (0, b"") and "\x1b" not in text and "\\x1b[31m\\u202e" in text
    assert re.search(r"^maps +2 x 3 of 12 x 12 \(float32, 3,456 bytes\)$", text,
                     re.M) and re.search(r"^heads +1-2,5$", text, re.M)
    done = command("stats", one)
    rows = [line.split() for line in done.stdout.decode().splitlines()]
    assert rows[0] == ["layer", "head",
                       *attn.stats(m)] and len(rows) == 7 and {len(r) for r in rows} == {12}
    assert [r[:2] for r in rows[1:]] == [[str(a), str(b)] for a in (0, 2) for b in (1, 2, 5)]
    assert float(rows[4][3]) == pytest.approx(attn.stats(m)["entropy"][1, 0], abs=6e-5)
    done = command("diff", one, two, "--top", "2", "--csv", tmp_path / "d.csv")
    d, text = attn.diff(attn.load(one), attn.load(two)), done.stdout.decode()
    assert (done.returncode,
            done.stderr) == (0, b"") and "\x1b" not in text and "left out: nothing" in text
    worst = np.unravel_index(d.js.argmax(), d.js.shape)
    assert re.search(rf"^ +{d.layers[worst[0]]} +{d.heads[worst[1]]} .*{d.js.max():.4f}",
                     text.split("rank\n")[1])
    assert re.search(rf"token\n +{d.rows[d.token_js.argmax(), 0]} ", text)
    with open(tmp_path / "d.csv", newline="", encoding="utf-8") as f:
        lines = list(csv.DictReader(f))
    assert len(lines) == 66 and np.allclose([float(r["js"]) for r in lines], d.row_js.ravel(),
                                            rtol=1e-8) and lines[4]["token"] == m.tokens[5]
    assert command("convert", two, "-o", tmp_path / "c.npz").returncode == 0
    assert np.array_equal(attn.load(tmp_path / "c.npz").attn, sample(seed=1).attn)
    done = run(Path(sys.executable), ROOT / "attn.py", "info", "/dev/stdin", stdin=two.read_bytes())
    assert (done.returncode, done.stderr) == (0, b"") and b"2 x 3 of 12 x 12" in done.stdout
    ascii_only = run(Path(sys.executable), ROOT / "attn.py", "info", one,
                     env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert ascii_only.returncode == 0 and b"k\\xf6nig" in ascii_only.stdout


# ---- pictures ------------------------------------------------------------------------------------

def needed(package: str) -> None:
    """Skip where a package of the recipes is not installed; under CI it must be."""
    if not importlib.util.find_spec(package):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{package} is not installed")


@pytest.mark.parametrize("queries", [range(12), range(3, 7)], ids=["square", "rows"])
def test_heatmap(tmp_path: Path, queries: range) -> None:
    """Each cell's middle has the cell's colour, later keys are white, the labels are the tokens."""
    needed("matplotlib")
    import matplotlib
    from matplotlib.image import imread

    m, path = sample(queries=queries), tmp_path / "a.png"
    ax = attn.heatmap(m, 2, 5, path)
    image = imread(path)
    for r, q in enumerate(queries):
        for k in range(12):
            x, y = ax.transData.transform((k, r))
            want = matplotlib.colormaps["viridis"](m.attn[1, 2, r, k]) if k <= q else (1, 1, 1, 1)
            assert np.abs(image[int(image.shape[0] - y), int(x)]
                          - want).max() <= 1 / 255 + 1e-6, (q, k)
    seen = [t.replace(" ", "\u00b7").replace("\n", "\u21b5") for t in TOKENS]
    assert ([t.get_text() for t in ax.get_xticklabels()] == seen
            and [t.get_text() for t in ax.get_yticklabels()] == seen[queries[0]:queries[-1] + 1])
    assert not any(t.get_parse_math() for t in ax.get_xticklabels())  # $x$ is no formula
    assert ax.get_title() == "layer 2, head 5" and len(ax.figure.axes) == 2
    done = command("plot", tmp_path / "a.png", "-o", tmp_path / "b.png")
    assert done.returncode == 1
    write_npz(m, tmp_path / "a.npz")
    assert command("plot", tmp_path / "a.npz", "--layer", "-1", "--head", "5", "-o",
                   tmp_path / "b.png").returncode == 0
    assert np.array_equal(imread(tmp_path / "b.png"), image)


def test_heatmap_long() -> None:
    """Of 300 tokens only some are labelled; the title says of what the map is a mean.

    It is drawn on axes that someone else made."""
    needed("matplotlib")
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    w = softmax(np.random.default_rng(0), (1, 1, 300, 300), np.arange(300))
    assert attn.heatmap(Maps(w, reduce="mean"), None, None, ax, vmax=0.5) is ax
    assert (40 < len(ax.get_xticklabels()) <= 80 and ax.get_xticklabels()[1].get_text() == "4"
            and ax.get_title() == "layer mean, head mean")
    assert ax.images[0].get_clim() == (0, 0.5)


def test_bertviz() -> None:
    """head_view and model_view take it, and the page has our numbers."""
    needed("bertviz")
    from bertviz import head_view, model_view

    m = sample()
    attention, tokens = attn.to_bertviz(m)
    assert len(attention) == 2 and all(tuple(a.shape) == (1, 3, 12, 12) for a in attention)
    for view in (head_view, model_view):
        page = view(attention, tokens, html_action="return", prettify_tokens=False).data
        data = json.loads(re.search(r"(?:PYTHON_PARAMS = |params = )(\{.*?\});?(?: //.*)?$", page,
                                    re.M)[1])["attention"][0]
        assert np.array_equal(np.array(data["attn"], np.float32),
                              m.attn) and data["left_text"] == attn.shown(m)
    part = attn.to_bertviz(sample(queries=range(3, 7)))[0][0]
    assert (tuple(part.shape) == (1, 3, 12, 12) and not part[0, :, :3].any()
            and not part[0, :, 7:].any() and part[0, :, 3:7].any())


def test_circuitsvis() -> None:
    needed("circuitsvis")
    from circuitsvis.attention import attention_heads, attention_patterns

    m = sample()
    given = attn.to_circuitsvis(m, 2)
    assert np.array_equal(given["attention"], m.attn[1]) and given["tokens"][8] == "\u00b7the"
    for view in (attention_heads, attention_patterns):
        page = view(**given).local_src
        assert "\u00b7the" in page or "\\u00b7the" in page


# ---- ./run ---------------------------------------------------------------------------------------

def dump(run_bin: Path, *args: str | Path, **more) -> subprocess.CompletedProcess[bytes]:
    done = run(run_bin, TALES, "-i", PROMPT, "-n", "8", "-s", "1", *args, **more)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    return done


@pytest.fixture(scope="module")
def dumps(run_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All formats of one run."""
    folder = tmp_path_factory.mktemp("dumps")
    paths = {ending: folder / f"a{ending}" for ending in FORMATS}
    dump(run_bin, *(a for p in paths.values() for a in ("--dump-attn", p)))
    return paths


@pytest.fixture(scope="module")
def full(dumps: dict[str, Path]) -> Maps:
    return attn.load(dumps[".npz"])


def test_run_maps(run_bin: Path, full: Maps) -> None:
    """The text is the run's, the rows are distributions, and nothing looks ahead.

    The numbers of layers and heads are the model's."""
    ids = json.loads(run(run_bin, TALES, "-i", PROMPT, "--tokenize", "--json").stdout)["ids"]
    T = len(full.tokens)
    assert (full.n_prompt == len(ids) and full.token_ids[:len(ids)] == ids
            and len(ids) < T <= len(ids) + 8)
    assert b"".join(full.token_bytes[:len(ids)]).decode().strip() == PROMPT
    assert b"".join(full.token_bytes[len(ids):]) == dump(run_bin).stdout.rstrip(b"\n")
    assert (full.layers == list(range(len(full.layers)))
            and full.heads == list(range(len(full.heads))) and full.queries == list(range(T)))
    assert full.reduce == "none" and full.attn.shape == (len(full.layers), len(full.heads), T, T)
    assert np.abs(full.attn.sum(-1, dtype=np.float64)
                  - 1).max() < 1e-5 and np.array_equal(full.attn, np.tril(full.attn))
    assert full.attn.std() > 0.01  # not one constant


@pytest.mark.parametrize("ending", FORMATS[1:])
def test_run_formats(dumps: dict[str, Path], full: Maps, ending: str) -> None:
    """Every file of one run has the same weights within its step, and the same other contents."""
    got = attn.load(dumps[ending])
    assert got.attn.shape == full.attn.shape and got.step == pytest.approx(STEPS.get(ending, 0))
    assert np.abs(got.attn - full.attn).max() <= got.step + 1e-7 * bool(got.step)
    for name in HOLDS[ending]:
        assert getattr(got, name) == getattr(full, name), name


def test_run_odd_text(run_bin: Path, tmp_path: Path) -> None:
    """Odd text reaches every format and comes back.

    Quotes, markup, control characters, parts of characters and a NUL."""
    prompt, paths = tmp_path / "prompt", [tmp_path / f"a{ending}" for ending in FORMATS]
    raw = ('say "x, y"\n\r\n\t</script><!-- ]]> &amp; \x1b[31m \u202e \u2028 '
           '\U0001f451 k\u00f6nig \ufffe'.encode() + b"\xff\xe4 \0 end")
    prompt.write_bytes(raw)
    done = run(run_bin, TALES, "-f", prompt, "-n", "0",
               *(a for p in paths for a in ("--dump-attn", p)))
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    whole = attn.load(paths[0])
    assert (b"".join(whole.token_bytes) == raw and "\\xFF" in "".join(whole.tokens)
            and "\x1b" in "".join(whole.tokens))
    for path in paths[1:]:
        got = attn.load(path)
        assert np.abs(got.attn - whole.attn).max() <= got.step + 1e-7 * bool(got.step), path
        # numpy's U drops NULs at the end
        assert got.tokens in (None, [t or "\0" for t in whole.tokens]), path
        assert got.token_bytes in (None, whole.token_bytes), path
    assert "\x1b" not in paths[FORMATS.index(".svg")].read_text()
    done = command("info", paths[0])
    assert done.returncode == 0 and not re.search("[\x00-\x09\x0b-\x1f\u202e]",
                                                  done.stdout.decode())


def test_run_npz_plain(dumps: dict[str, Path], full: Maps) -> None:
    """numpy.load alone; types as documented."""
    with np.load(dumps[".npz"]) as z:
        types = {name: (z[name].dtype.str.lstrip("<|"), z[name].ndim) for name in z.files}
        width = types.pop("tokens")
        reduce = types.pop("reduce")
    assert types == {"attn": ("f4", 4), "token_ids": ("i4", 1), "token_bytes": ("u1", 1),
                     "token_offsets": ("i8", 1), "n_prompt": ("i8", 0),
                     "layers": ("i4", 1), "heads": ("i4", 1), "queries": ("i4", 1)}
    assert width[0][0] == reduce[0][0] == "U" and (width[1], reduce[1]) == (1, 0)
    assert zipfile.ZipFile(dumps[".npz"]).testzip() is None


STATS = ["entropy", "entropy_rel", "distance", "sink", "self", "previous", "max_weight",
         "sink_rows", "induction"]
MASSIVE = [f"{x}_{what}" for x in "qkv" for what in ("massive", "dim")]


@pytest.mark.parametrize("flags",
                         [[], ["-i", " that that that king king"], ["--attn-queries", "generated"],
                          ["--attn-layers", "1,-1", "--attn-heads", "0-1"],
                          ["--attn-reduce", "mean"]], ids=lambda s: s[0][7:] if s else "all")
def test_run_stats(run_bin: Path, tmp_path: Path, full: Maps, flags: list[str]) -> None:
    """--attn-stats as .csv and .json against stats() of the maps.

    Both add up the same float32 weights in double, so 2e-8 is the rounding of nine digits, with
    1e-9 for values near 0."""
    names = [tmp_path / "s.csv", tmp_path / "s.json"]
    for name in names:
        dump(run_bin, "--dump-attn", tmp_path / "a.npz", "--attn-stats", name, *flags)
    maps = full if "--attn-reduce" in flags else attn.load(tmp_path / "a.npz")
    want = attn.stats(maps)
    # a token that repeats at once
    assert "-i" not in flags or any(a == b for a, b in zip(maps.token_ids, maps.token_ids[1:]))
    table = json.loads(names[1].read_text())
    assert (table["v"], Path(table["model"]).name, table["n_tokens"],
            table["n_prompt"]) == (1, "tales.bin", len(maps.tokens), maps.n_prompt)
    with open(names[0], newline="") as f:
        lines = list(csv.DictReader(f))
    assert (list(lines[0]) == ["layer", "head", "rows", *STATS, "q_massive", "k_massive",
                               "v_massive", "q_dim", "k_dim", "v_dim"]
            or list(lines[0]) == ["layer", "head", "rows", *STATS, *MASSIVE])
    assert [(r["layer"], r["head"])
            for r in table["heads"]] == [(i, j) for i in maps.layers for j in maps.heads]
    for text, row in zip(lines, table["heads"], strict=True):
        at = maps.layers.index(row["layer"]), maps.heads.index(row["head"])
        assert set(text) == set(row) and int(text["rows"]) == row["rows"] == want["rows"][at]
        for name in text:
            assert float(text[name]) == pytest.approx(row[name], rel=2e-8), name
        for name in STATS:
            assert row[name] == pytest.approx(want[name][at], rel=2e-8, abs=1e-9), (name, at)
        assert all(row[f"{x}_massive"] >= 1 and 0 <= row[f"{x}_dim"] for x in "qkv")


def test_run_stats_table(run_bin: Path, full: Maps) -> None:
    """--attn-stats - prints the text and then a line for each head."""
    done = dump(run_bin, "--attn-stats", "-")
    plain = dump(run_bin).stdout
    assert done.stdout.startswith(plain.rstrip(b"\n"))
    lines = done.stdout[len(plain):].decode().split("\n")
    rows = [line.split() for line in lines if re.match(r"\s*\d+\s+\d+\s", line)]
    assert [r[:2] for r in rows] == [[str(i), str(j)] for i in full.layers for j in full.heads]


def test_run_stats_empty(run_bin: Path, tmp_path: Path) -> None:
    """The first row alone sees one key: nothing counts."""
    for name in ("s.csv", "s.json"):
        dump(run_bin, "--attn-queries", "0-0", "--attn-stats", tmp_path / name)
    heads = json.loads((tmp_path / "s.json").read_text())["heads"]
    lines = list(csv.DictReader(io.StringIO((tmp_path / "s.csv").read_text())))
    for name in STATS[:-1]:
        assert {r[name] for r in heads} == {None} and {r[name] for r in lines} == {""}, name
    assert {r["rows"] for r in heads} == {0}


@pytest.mark.parametrize("reduce", REDUCES[1:])
@pytest.mark.parametrize("flags", [[], ["--attn-layers", "0,2-3", "--attn-heads", "1,-1",
                                        "--attn-queries", "5-20"]], ids=["all", "some"])
def test_run_reduce(run_bin: Path, tmp_path: Path, full: Maps, reduce: str,
                    flags: list[str]) -> None:
    """Against numpy on the maps themselves, in every format.

    1e-6: sums of float32 in another order; rollout multiplies more."""
    paths = [tmp_path / f"r{ending}" for ending in FORMATS]
    dump(run_bin, "--attn-reduce", reduce, *flags, *(a for p in paths for a in ("--dump-attn", p)))
    layers, heads, rows = ([0, 2, 3], [1, full.heads[-1]],
                           list(range(5, 21))) if flags else (full.layers, full.heads, full.queries)
    a = full.attn[np.ix_(layers, heads)].astype(np.float64)
    want = {"mean-heads": lambda: a.mean(1, keepdims=True),
            "max-heads": lambda: a.max(1, keepdims=True),
            "mean": lambda: a.mean((0, 1), keepdims=True),
            "rollout": lambda: attn.rollout(Maps(a))[None, None]}[reduce]()[:, :, rows]
    for path in paths:
        got = attn.load(path)
        T = got.attn.shape[3]
        assert T == (21 if flags and path.suffix in (".jsonl", ".csv")
                     else want.shape[3]) and got.attn.shape[:3] == want.shape[:3], path
        assert np.abs(got.attn - want[..., :T]).max() <= got.step + (
            1e-5 if reduce == "rollout" else 1e-6), path
        assert got.reduce in (None, reduce)
        if path.suffix in (".npz", ".jsonl"):
            assert (got.layers, got.heads, got.queries) == (layers, heads, rows)


SELECTIONS = [
    (["--attn-layers", "0"], (np.s_[:1], np.s_[:], np.s_[:])),
    (["--attn-layers", "-1,0,2-3"], ([0, 2, 3], np.s_[:], np.s_[:])),
    (["--attn-heads", "-1"], (np.s_[:], np.s_[-1:], np.s_[:])),
    (["--attn-heads", "1-2", "--attn-layers", "1"], (np.s_[1:2], np.s_[1:3], np.s_[:])),
    (["--attn-queries", "prompt"], (np.s_[:], np.s_[:], "prompt")),
    (["--attn-queries", "generated"], (np.s_[:], np.s_[:], "generated")),
    (["--attn-queries", "3-7"], (np.s_[:], np.s_[:], np.s_[3:8])),
    (["--attn-queries", "all"], (np.s_[:], np.s_[:], np.s_[:])),
]


@pytest.mark.parametrize("flags, at", SELECTIONS,
                         ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_run_selections(run_bin: Path, tmp_path: Path, full: Maps, flags: list[str],
                        at: tuple) -> None:
    """Slices of the full file, to the bit, in the exact formats; within the step in the others."""
    paths = [tmp_path / f"s{ending}" for ending in FORMATS]
    dump(run_bin, *flags, *(a for p in paths for a in ("--dump-attn", p)))
    rows = ({"prompt": np.s_[:full.n_prompt], "generated": np.s_[full.n_prompt:]}.get(at[2], at[2])
            if isinstance(at[2], str) else at[2])
    want, layers, heads = full.attn[at[0]][:, at[1]][:, :, rows], np.array(
        full.layers)[at[0]].tolist(), np.array(full.heads)[at[1]].tolist()
    queries = np.array(full.queries)[rows].tolist()
    for path in paths:
        got = attn.load(path)
        T = got.attn.shape[3]
        assert T == (queries[-1] + 1 if path.suffix in (".jsonl", ".csv")
                     else len(full.tokens)) and got.attn.shape[:3] == want.shape[:3], path
        assert np.abs(got.attn - want[..., :T]).max() <= got.step + 1e-7 * bool(got.step), path
        if path.suffix != ".npy":
            assert (got.layers, got.heads, got.queries) == (layers, heads, queries), path


def test_run_dtype(run_bin: Path, tmp_path: Path, full: Maps) -> None:
    """f16 is the nearest half, in .npz and .npy; the others stay exact."""
    names = [tmp_path / f"h{ending}" for ending in (".npz", ".npy", ".jsonl")]
    dump(run_bin, "--attn-dtype", "f16", *(a for p in names for a in ("--dump-attn", p)))
    assert np.load(names[0])["attn"].dtype == np.load(names[1]).dtype == np.float16
    for path in names[:2]:
        got = attn.load(path)
        assert np.array_equal(got.attn, full.attn.astype(np.float16)
                              .astype(np.float32)) and got.step == 2**-12
    assert np.array_equal(attn.load(names[2]).attn, full.attn)


def test_run_top(run_bin: Path, tmp_path: Path, full: Maps) -> None:
    """The K largest of each row, largest first; equal weights may go either way."""
    names = [tmp_path / "t.csv", tmp_path / "t.jsonl", tmp_path / "t.npy"]
    dump(run_bin, "--attn-top", "4", *(a for p in names for a in ("--dump-attn", p)))
    kept = np.sort(full.attn, -1)[..., -4:]
    for path in names[:2]:
        got = attn.load(path)
        assert np.array_equal(np.sort(got.attn, -1)[..., -4:],
                              kept) and (got.attn > 0).sum(-1).max() == 4
        assert (((got.attn == 0) | (got.attn == full.attn)).all()
                and np.abs(got.attn - full.attn).max() <= got.step < 0.25)
    assert np.array_equal(np.load(names[2]), full.attn)
    with open(names[1]) as f:
        for line in map(json.loads, f):
            w = np.array(line["attn"])
            assert w.shape == np.array(line["keys"]).shape == (
                *full.attn.shape[:2], min(4, line["pos"] + 1)) and (np.diff(w, axis=-1) <= 0).all()
    with open(names[0], newline="") as f:
        rows: dict[tuple, list[float]] = {}
        for r in csv.DictReader(f):
            rows.setdefault((int(r["layer"]), int(r["head"]), int(r["query"])),
                            []).append(float(r["weight"]))
    assert list(rows) == sorted(rows) and all(v == sorted(v, reverse=True) for v in rows.values())


def test_run_csv_order(dumps: dict[str, Path], full: Maps) -> None:
    with open(dumps[".csv"], newline="", encoding="utf-8") as f:
        lines = list(csv.reader(f))[1:]
    order = [tuple(map(int, r[:4])) for r in lines]
    T = len(full.tokens)
    assert (order == sorted(order)
            and len(order) == full.attn.shape[0] * full.attn.shape[1] * T * (T + 1) // 2)
    assert all(r[4] == full.tokens[int(r[2])] and r[5] == full.tokens[int(r[3])] for r in lines)


def test_run_html_meta(run_bin: Path, tmp_path: Path, dumps: dict[str, Path], full: Maps) -> None:
    """Thumbnails are the largest codes of their cells, the statistics are those of stats()."""
    text = dumps[".html"].read_text(encoding="utf-8")
    meta = json.loads(re.search(r'<script type="application/json" id="meta">(.*?)</script>', text,
                                re.S)[1])
    assert {"v", "model", "arch", "tokens", "ids", "n_prompt", "first_query", "n_queries", "layers",
            "heads", "reduce", "floors", "thumbs", "stats"} <= set(meta)
    assert meta["model"] == "tales.bin" and set(meta["floors"]) == {1}
    for rows in ("all", "50-120"):
        done = run(run_bin, TALES, "-i", PROMPT * 8, "-n", "0", "--attn-queries", rows,
                   "--dump-attn", tmp_path / "t.html")
        assert (done.returncode, done.stderr) == (0, b"")
        data = re.search(r'id="meta">(.*?)</script>',
                         (tmp_path / "t.html").read_text(encoding="utf-8"), re.S)[1]
        thumbs, maps = json.loads(data)["thumbs"], attn.load(tmp_path / "t.html").attn
        maps = np.round(255 * np.sqrt(maps)).astype(np.uint8).reshape(-1, *maps.shape[2:])
        want = np.zeros((len(maps), thumbs["rows"], thumbs["cols"]), np.uint8)
        r, c = (np.arange(n) * size // n for n, size in zip(maps.shape[1:], want.shape[1:]))
        for i, m in enumerate(maps):
            np.maximum.at(want[i], (r[:, None], c), m)
        assert thumbs["rows"] < len(r) and base64.b64decode(thumbs["data"]) == want.tobytes()
    columns, want = meta["stats"]["columns"], attn.stats(full)
    for i, row in enumerate(meta["stats"]["rows"]):
        for name in STATS:
            assert row[columns.index(name)] == pytest.approx(want[name].ravel()[i], rel=2e-5,
                                                             abs=1e-4), name
    # it needs no network
    assert not re.search(r"https?://(?!www\.w3\.org)[^\"'\s]*\.(js|css|woff)", text)


def test_run_live(run_bin: Path, full: Maps) -> None:
    """Through a pipe the lines come while the model generates.

    When the first is read more is to come than a pipe holds."""
    read, write = os.pipe()
    n = 150
    with subprocess.Popen([run_bin, TALES, "-i", PROMPT, "-n", str(n), "-s", "1", "--ignore-eos",
                           "--dump-attn", f"/dev/fd/{write}"], pass_fds=[write],
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as program:
        os.close(write)
        lines = []
        with open(read, "rb") as f:
            for raw in f:
                lines.append(json.loads(raw))
                if not lines[-1]["prompt"] and lines[-2]["prompt"]:
                    assert program.poll() is None
                    assert len(raw) * n > 4 * 65536  # else this would prove nothing
        assert program.wait(TIMEOUT) == 0 and program.stderr.read() == b""
    assert [line["pos"]
            for line in lines] == list(range(len(lines))) and len(lines) == full.n_prompt + n
    same = next((i for i, (a, b) in enumerate(zip(full.token_ids, lines)) if a != b["id"]),
                len(full.token_ids))
    assert same >= full.n_prompt
    # of the same text; live rows come one by one, those of a file in one pass, to the same bits
    for line in lines[:same]:
        pos = line["pos"]
        assert np.array_equal(np.array(line["attn"], np.float32), full.attn[:, :, pos, :pos + 1])


def test_run_flushed(run_bin: Path, full: Maps) -> None:
    """A line is out before the program goes on.

    All of the prompt's lines are there while standard output holds the program up."""
    (out, stdout), (read, write) = os.pipe(), os.pipe()
    os.write(stdout, bytes(fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, 4096)))  # full
    with subprocess.Popen([run_bin, TALES, "-i", PROMPT, "-n", "8", "-s", "1", "--attn-layers", "0",
                           "--attn-heads", "0", "--attn-top", "1", "--dump-attn",
                           f"/dev/fd/{write}"], pass_fds=[write], stdout=stdout) as program:
        os.close(stdout)
        os.close(write)
        seen = b""
        while seen.count(b"\n") < full.n_prompt and select.select([read], [], [], 10)[0]:
            seen += os.read(read, 4096)
        held = program.poll() is None
        with open(out, "rb") as f:  # now it may go on
            f.read()
        with open(read, "rb") as f:
            rest = f.read()
        assert program.wait(TIMEOUT) == 0
    assert (held and seen.count(b"\n") == full.n_prompt and len(seen) < 4096
            and (seen + rest).count(b"\n") == len(full.tokens))


def test_run_diff(run_bin: Path, tmp_path: Path, dumps: dict[str, Path], full: Maps) -> None:
    """A changed word moves what comes after it and nothing before.

    The cache's type moves hardly anything, and a file does not differ from itself."""
    d = attn.diff(full, attn.load(dumps[".jsonl"]))
    assert not d.js.any()
    other = [PROMPT.replace("king", "queen") if a == PROMPT else a for a in (PROMPT,)][0]
    done = run(run_bin, TALES, "-i", other, "-n", "0", "--dump-attn", tmp_path / "q.npz")
    assert (done.returncode, done.stderr) == (0, b"")
    queen = attn.load(tmp_path / "q.npz")
    d = attn.diff(full, queen)
    at = full.tokens.index(" king")
    before = d.rows[:, 0] < at
    assert d.left_out["tokens_a"] >= 1 and before.any() and not before.all()
    assert d.row_js[..., before].max() < 1e-6 < 1e-3 < d.row_js[..., ~before].max()
    dump(run_bin, "--kv", "f32", "--dump-attn", tmp_path / "f.npz")
    exact = attn.load(tmp_path / "f.npz")
    if exact.token_ids == full.token_ids:
        assert 0 < attn.diff(full, exact).js.max() < 1e-4


# ---- recipes -------------------------------------------------------------------------------------

RECIPES = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "recipes.md").read_text(),
                     re.M | re.S)


@pytest.mark.parametrize("code", RECIPES, ids=lambda c: re.findall(r"(?:import|from) (\w+)", c)[-1])
def test_recipes(run_bin: Path, tmp_path: Path, code: str) -> None:
    """Each block of the page runs, in ten lines, and writes the file that it names."""
    for package in re.findall(r"^(?:import|from) (\w+)", code, re.M):
        needed(package)
    assert len(code.splitlines()) <= 10
    done = run(run_bin, TALES, "-i", "Once upon a time", "-n", "20", "--dump-attn",
               tmp_path / "a.npz", "--dump-attn", tmp_path / "a.csv")
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    done = subprocess.run([sys.executable, "-W", "error::FutureWarning", "-c", code], cwd=tmp_path,
                          capture_output=True, text=True, timeout=4 * TIMEOUT,
                          env={**os.environ, "MPLBACKEND": "Agg"})
    assert done.returncode == 0, done.stderr
    made = {p.name for p in tmp_path.iterdir()} - {"a.npz", "a.csv"}
    assert (made or done.stdout) and all(name in code and (tmp_path / name).stat().st_size > 2000
                                         for name in made)


def test_four_recipes() -> None:
    assert [next(p for p in ("circuitsvis", "bertviz", "pandas", "numpy") if p in code)
            for code in RECIPES] == ["numpy", "pandas", "bertviz", "circuitsvis"]
