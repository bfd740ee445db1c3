#!/usr/bin/env python3
"""Open, compare and draw the attention files of ./run (docs/attention.md says what is in them).

    python attn.py info FILE                       what a file holds
    python attn.py stats FILE                      the statistics of every head
    python attn.py diff A B [--csv OUT] [--top N]  two runs token by token: which heads moved
    python attn.py plot FILE [--layer L] [--head H] -o OUT.png
    python attn.py convert FILE -o OUT.npz

As a module: load() gives a Maps; stats(), rollout(), diff(), heatmap(), to_bertviz() and
to_circuitsvis() take one. It needs numpy; matplotlib and torch only where something is drawn. It
does not run models and does not unpickle: what a file says wrongly is a ValueError of one line."""
from __future__ import annotations

import argparse
import base64
import csv
import difflib
import errno
import json
import math
import os
import re
import sys
import tokenize
import warnings
import xml.etree.ElementTree as ET
import zipfile
import zlib
from array import array
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Sequence


def no_package(e: ImportError) -> str:
    """One line about a package that is not there or does not load."""
    name = (e.name or "?").partition(".")[0]
    return (f"attn.py: cannot load the Python package {name} ({' '.join(str(e).split())}): "
            f"python -m pip install {name}")


try:
    import numpy as np
except ImportError as e:
    if __name__ != "__main__":
        raise
    sys.exit(no_package(e))

# The word that stands for a reduced axis (layers, heads), None where the axis is whole.
REDUCED = {"none": (None, None), "mean-heads": (None, "mean"), "max-heads": (None, "max"),
           "mean": ("mean", "mean"),
           "rollout": ("rollout", "rollout")}
MAX_TOKENS = 1 << 24  # more is no text but a broken number
# What zip, npy, JSON, CSV and XML readers raise on broken files, beyond ValueError
BROKEN = (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError,
          RuntimeError, SyntaxError, TypeError, csv.Error, tokenize.TokenError, zipfile.BadZipFile,
          zlib.error)


@dataclass
class Maps:
    """The maps of one run. What the file's format does not hold is None."""
    attn: np.ndarray  # (layers, heads, queries, T) float32; a memory-mapped file keeps its own type
    tokens: list[str] | None = None  # (T,) to show; "" where a .jsonl has no line for the token
    token_ids: list[int] | None = None  # (T,)
    token_bytes: list[bytes] | None = None  # (T,) exact bytes, empty for control tokens
    n_prompt: int | None = None
    # numbers of the model; of a reduced axis, those that went into it
    layers: list[int] | None = None
    heads: list[int] | None = None
    queries: list[int] | None = None  # (queries,) positions of the rows
    reduce: str | None = None  # a key of REDUCED
    kind: str | None = None  # "encoder": queries see later keys, too; None: they do not
    sink_mass: np.ndarray | None = None  # (layers, heads, queries) what went to learned sinks
    step: float = 0.0  # how far a weight may be from the engine's

    @property
    def positions(self) -> np.ndarray:
        """Position of each row, (queries,).

        ValueError where neither the file nor its shape says."""
        if self.queries is not None:
            return np.array(self.queries, np.int64)
        if self.attn.shape[2] != self.attn.shape[3]:
            raise ValueError("the file does not say which tokens its rows are")
        return np.arange(self.attn.shape[3])

    @property
    def n_keys(self) -> np.ndarray:
        """How many keys each row has, (queries,)."""
        return row_lengths(self.positions, self.attn.shape[3], self.kind)

    @property
    def text(self) -> Sequence[int | str] | None:
        """What tells the tokens apart, (T,): ids, else words."""
        return (self.token_ids if self.token_ids is not None else self.tokens
                if self.tokens and all(self.tokens) else None)

    def names(self, axis: int) -> list[int | str]:
        """The entries of the axis (0 layers, 1 heads): numbers of the model, or one word."""
        word, numbers = REDUCED[self.reduce or "none"][axis], (self.layers, self.heads)[axis]
        return ([word] if word else list(range(self.attn.shape[axis]))
                if numbers is None else list(numbers))

    def index(self, axis: int, name: int | None) -> int:
        """Where layer (axis 0) or head (axis 1) `name` lies.

        Negative ones count from the end, None is the first."""
        names = self.names(axis)
        if name is None or name in names:
            return 0 if name is None else names.index(name)
        if isinstance(name, int) and -len(names) <= name < 0:
            return len(names) + name
        raise ValueError(f"no {('layer', 'head')[axis]} {name}, there are {spans(names)}")

    def square(self, layer: int | None = None) -> np.ndarray:
        """(layers, heads, T, T) float32 in order of position, or (heads, T, T) of one layer.

        Rows that the file does not have are 0."""
        attn = self.attn if layer is None else self.attn[self.index(0, layer)]
        out = np.zeros((*attn.shape[:-2], attn.shape[-1], attn.shape[-1]), np.float32)
        out[..., self.positions, :] = attn
        return out


def row_lengths(positions: np.ndarray, n_tokens: int, kind: str | None) -> np.ndarray:
    return np.full_like(positions, n_tokens) if kind else positions + 1


# ---- reading -------------------------------------------------------------------------------------

def npy_size(f: Any, size: int) -> None:
    """Compare the shape in an npy header with the file's `size` bytes.

    This comes before numpy allocates anything."""
    read = (np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0)
    shape, _, dtype = read[np.lib.format.read_magic(f)[0] > 1](f)
    if dtype.hasobject:
        raise ValueError("holds pickled Python objects, which are not read")
    if size != (want := f.tell() + dtype.itemsize * math.prod(shape)):
        raise ValueError(f"got {size} bytes of array, want {want}")


def read_npy(path: Path, mmap: bool = False) -> Maps:
    with open(path, "rb") as f:
        npy_size(f, os.fstat(f.fileno()).st_size)
    attn = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    square = attn.ndim == 4 and attn.shape[2] == attn.shape[3] > 1
    # it has nothing but the weights: where the first row sees later keys, so do all
    return Maps(attn, kind="encoder" if square and np.any(attn[:, :, 0, 1:]) else None)


NPZ = {"tokens": ("U", 1), "token_ids": ("i", 1), "token_bytes": ("u", 1),
       "token_offsets": ("i", 1), "n_prompt": ("i", 0),
       "layers": ("i", 1), "heads": ("i", 1), "queries": ("i", 1), "reduce": ("U", 0),
       "kind": ("U", 0)}  # numpy's kind, axes


def read_npz(path: Path) -> Maps:
    with zipfile.ZipFile(path) as z:
        for info in z.infolist():
            with z.open(info) as f:
                npy_size(f, info.file_size)
    with np.load(path, allow_pickle=False) as z:
        a = {name: z[name] for name in z.files}
    if "attn" not in a:
        raise ValueError("no array attn in it")
    for name, (kind, ndim) in NPZ.items():
        if name in a and (a[name].dtype.kind != kind or a[name].ndim != ndim):
            raise ValueError(f"array {name} has type {a[name].dtype} and {a[name].ndim} axes")
    maps = Maps(a["attn"], sink_mass=a.get("sink_mass"), **{n: a[n].tolist()
                              for n in NPZ if n in a and n not in ("token_bytes", "token_offsets")})
    if "token_bytes" in a and "token_offsets" in a:
        raw, at = a["token_bytes"].astype(np.uint8).tobytes(), a["token_offsets"].tolist()
        if not at or at[0] != 0 or at[-1] != len(raw) or sorted(at) != at:
            raise ValueError("token_offsets do not cut token_bytes")
        maps.token_bytes = [raw[i:j] for i, j in zip(at, at[1:])]
    return maps


def numbers(value: Any, what: str) -> list[int]:
    if not isinstance(value, list) or not all(type(v) is int and v >= 0 for v in value):
        raise ValueError(f"{what} is not a list of numbers")
    return value


def left_out(smallest: np.ndarray, total: np.ndarray, reduce: str) -> np.ndarray:
    """The largest that a weight beside a row's K largest can be.

    It is no larger than those K, nor than what they leave of the row's sum of 1."""
    return np.minimum(smallest,
                      smallest if reduce == "max-heads" else np.maximum(1 - total, 0) + 1e-6)


def jsonl_line(raw: bytes, last: int) -> tuple[dict[str, Any], np.ndarray, float]:
    """One line: its fields, its weights (layers, heads, keys), and the error of --attn-top.

    The keys are pos + 1, those of an encoder as many as there are weights. The error is the largest
    that a weight which was left out can be."""
    if not raw.endswith(b"\n"):
        raise ValueError("is cut off")
    line = json.loads(raw)
    if line["v"] != 1:
        raise ValueError(f"version {line['v']}, want 1")
    pos, words = line["pos"], REDUCED[line["reduce"]]
    if [type(line[k]) for k in ("pos", "id", "token",
                                "prompt")] != [int, int, str, bool] or not last < pos < MAX_TOKENS:
        raise ValueError(f"pos {pos} is not in order, or id, token or prompt is of another type")
    line["bytes"], step = bytes.fromhex(line["bytes"]), 0.0
    weights = np.array(line.pop("attn"), np.float32)
    n_keys = pos + 1
    if line.setdefault("kind", None) and weights.ndim == 3:
        n_keys = max(n_keys, 1 + int(np.max(line["keys"], initial=-1)) if "keys" in line
                     else weights.shape[2])
    if "keys" in line:
        keys, some = np.array(line.pop("keys")), weights
        if (keys.dtype.kind != "i" or keys.shape != some.shape or not (keys >= 0).all()
                or (np.diff(np.sort(keys)) == 0).any()):
            raise ValueError("keys do not fit")
        weights = np.zeros((*some.shape[:2], n_keys), np.float32)
        np.put_along_axis(weights, keys, some, -1)
        step = float(left_out(some.min(-1), some.sum(-1),
                              line["reduce"]).max()) if some.shape[2] < n_keys else 0.0
    shape = tuple(1 if word else len(numbers(line[k], k))
                  for k, word in zip(("layers", "heads"), words))
    if weights.shape != (*shape, n_keys):
        raise ValueError(f"attn has shape {weights.shape}, want {(*shape, n_keys)}")
    return line, weights, step


def read_jsonl(path: Path) -> Maps:
    """One line per token; weights that --attn-top left out are 0."""
    rows: list[tuple[dict[str, Any], np.ndarray, float]] = []
    with open(path, "rb") as f:
        for n, raw in enumerate(f, 1):
            try:
                rows.append(jsonl_line(raw, rows[-1][0]["pos"] if rows else -1))
                if any(rows[-1][0][k] != rows[0][0][k]
                       for k in ("reduce", "layers", "heads", "kind")):
                    raise ValueError("other layers, heads or reduce than before")
            except (ValueError, *BROKEN) as e:
                raise ValueError(f"line {n}: {why(e)}") from None
    if not rows:
        raise ValueError("has no rows")
    lines, queries = [r[0] for r in rows], [r[0]["pos"] for r in rows]
    first, T = lines[0], max(queries[-1] + 1, *(r[1].shape[2] for r in rows))
    attn, tokens = np.zeros((*rows[0][1].shape[:2], len(rows), T), np.float32), [""] * T
    for i, (line, weights, _) in enumerate(rows):
        attn[:, :, i, :weights.shape[2]], tokens[line["pos"]] = weights, line["token"]
    n_prompt = next((line["pos"] for line in lines if not line["prompt"]), T)
    more = {"token_ids": [line["id"] for line in lines],
            "token_bytes": [line["bytes"] for line in lines]} if len(rows) == T else {}
    return Maps(attn, tokens, n_prompt=n_prompt if n_prompt - 1 in (-1, *queries) else None,
                layers=first["layers"], heads=first["heads"], queries=queries,
                reduce=first["reduce"], kind=first["kind"], step=max(r[2] for r in rows),
                **more)


CSV_COLUMNS = ["layer", "head", "query", "key", "query_token", "key_token", "weight"]


def axes(*found: Sequence[str]) -> dict[str, Any]:
    """layers, heads and reduce of a Maps, from the names of layers and heads in a file."""
    values = [[int(v) for v in names] if all(re.fullmatch(r"\d{1,9}", v) for v in names) else None
              for names in found]
    words = tuple(names[0] if v is None and len(names) == 1 else None
                  for names, v in zip(found, values))
    if words not in REDUCED.values() or any(v is None and not w for v, w in zip(values, words)):
        raise ValueError("its layers and heads are neither numbers nor one word")
    return {"layers": values[0], "heads": values[1],
            "reduce": {v: k for k, v in REDUCED.items()}[words]}


def read_csv(path: Path) -> Maps:
    """One line per weight.

    Every row of query q must have min(K, q + 1) keys with one K, that of an encoder min(K, T): less
    is a file cut off."""
    # indices of layer and head, query, key
    at, weights, tokens = [array("q") for _ in range(4)], array("f"), {}
    names: list[dict[str, int]] = [{}, {}]
    with open(path, "rb") as f:
        if f.seek(0, 2) and (f.seek(-1, 2), f.read())[1] != b"\n":
            raise ValueError("is cut off")
    with open(path, encoding="utf-8", newline="") as f:
        reader = csv.reader(f, strict=True)
        columns, kind = next(reader, None), None
        if columns not in (CSV_COLUMNS, [*CSV_COLUMNS, "kind"]):
            raise ValueError(f"its first line is not {','.join(CSV_COLUMNS)}")
        for n, row in enumerate(reader, 2):
            try:
                layer, head, q, k, q_token, k_token, weight, *rest = row
                query, key, kind = int(q), int(k), rest[0] if rest else None
                if len(row) != len(columns) or (kind and kind != "encoder"):
                    raise ValueError(f"{len(row)} fields, kind {kind}")
                if not (0 <= query < MAX_TOKENS and 0 <= key < MAX_TOKENS) or (
                        key > query and not kind):
                    raise ValueError(f"query {query}, key {key}")
                if (tokens.setdefault(query, q_token) != q_token
                        or tokens.setdefault(key, k_token) != k_token):
                    raise ValueError("a token differs from the rows before")
                for a, v in zip(at, (names[0].setdefault(layer, len(names[0])),
                                     names[1].setdefault(head, len(names[1])), query, key)):
                    a.append(v)
                weights.append(float(weight))
            except (ValueError, *BROKEN) as e:
                raise ValueError(f"row {n}: {why(e)}") from None
    if not weights:
        raise ValueError("has no rows")
    held, (layer, head, query, key) = axes(*map(list, names)), np.array(at, np.int64)
    queries, row = np.unique(query, return_inverse=True)
    attn = np.full((len(names[0]), len(names[1]), len(queries), max(tokens) + 1), -1, np.float32)
    attn[layer, head, row, key] = weights
    counts = (attn >= 0).sum(-1)
    if counts.sum() != len(weights):
        raise ValueError("a weight is there twice, or is not a weight")
    lengths = row_lengths(queries, attn.shape[3], kind)
    if (counts != np.minimum(counts.max(), lengths)).any():
        raise ValueError("rows lack keys: the file is cut off")
    smallest, attn = np.where(attn < 0, 2, attn).min(-1), np.maximum(attn, 0)
    step = left_out(smallest, attn.sum(-1), held["reduce"])[counts < lengths].max(initial=0)
    return Maps(attn, [tokens.get(i, "") for i in range(attn.shape[3])], queries=queries.tolist(),
                kind=kind, step=float(step), **held)


RUN = re.compile(r"M(\d{1,7}) (\d{1,7})h(\d{1,7})v1h-\d{1,7}z")  # column, row, cells


def read_svg(path: Path) -> Maps:
    """Weights are levels / 255.

    Every cell up to the row's own token is drawn, so a row's width tells its position; of an
    encoder all are, and the position of the first row is an attribute."""
    data, panels, kind, first = path.read_bytes(), [], None, 0
    if b"<!ENTITY" in data:
        raise ValueError("has entities, which are not read")
    for g in ET.fromstring(data).iterfind(".//{*}g"):
        if g.get("class") == "map":
            rect, runs = g.find(".//{*}rect"), []
            kind, first = g.get("data-kind"), int(g.get("data-first-query", 0))
            for p in g.iterfind(".//{*}path[@data-level]"):
                if RUN.sub("", p.attrib["d"]) or not 0 <= int(p.attrib["data-level"]) <= 255:
                    raise ValueError("a path is not made of runs of cells, "
                                     "or its level is beyond 255")
                runs += [(int(x), int(y), int(n), int(p.attrib["data-level"]))
                         for x, y, n in RUN.findall(p.attrib["d"])]
            panels.append((g.attrib["data-layer"], g.attrib["data-head"], int(rect.attrib["width"]),
                           int(rect.attrib["height"]), runs))
    names = [list(dict.fromkeys(panel[i] for panel in panels)) for i in range(2)]
    if (not panels or [p[:2] for p in panels] != [(l, h) for l in names[0] for h in names[1]]
            or len({p[2:4] for p in panels}) > 1):
        raise ValueError("has no maps, or not one for each layer and head")
    T, rows = panels[0][2:4]
    levels = np.full((len(panels), rows, T), -1, np.int16)
    for level, panel in zip(levels, panels):
        for x, y, n, value in panel[4]:
            level[y, x:x + n] = value
    queries = np.arange(first, first + rows) if kind else (levels[0] >= 0).sum(-1) - 1
    if ((levels >= 0) != (np.arange(T) < row_lengths(queries, T, kind)[:, None])).any():
        raise ValueError("cells are missing")
    attn = (np.maximum(levels, 0) / 255).reshape(len(names[0]), len(names[1]), rows, T)
    return Maps(attn, queries=queries.tolist(), kind=kind, step=0.5 / 255, **axes(*names))


def decode(data: bytes, lengths: np.ndarray, n_tokens: int) -> np.ndarray:
    """One map of the viewer, (queries, T) float32, from rows of these lengths.

    A byte c stands for the weight (c / 255)^2; after a byte 0 a LEB128 number says how many keys to
    skip."""
    b = np.frombuffer(data, np.uint8).astype(np.int64)
    counts = np.ones(b.size, np.int64)  # keys that each byte stands for
    zero = np.flatnonzero(b == 0)
    run, at, shift = np.zeros(zero.size, np.int64), zero + 1, 0
    going = np.ones(zero.size, bool)
    while going.any():
        if shift > 28 or at[going].max() >= b.size:
            raise ValueError("a run of its data is cut off")
        run[going] += (b[at[going]] & 127) << shift
        counts[at[going]] = 0
        going[going] = b[at[going]] >= 128
        at, shift = at + 1, shift + 7
    counts[zero] = run
    ends, row_ends = np.cumsum(counts), np.cumsum(lengths)
    if (run < 1).any() or (ends[-1] if b.size else 0) != row_ends[-1]:
        raise ValueError(f"a map has {ends[-1] if b.size else 0} weights, want {row_ends[-1]}")
    starts = ends[zero] - run
    if (np.searchsorted(row_ends, starts,
                        "right") != np.searchsorted(row_ends, ends[zero] - 1, "right")).any():
        raise ValueError("a run of its data goes past its row")
    literal = (counts == 1) & (b > 0)  # run lengths have count 0, their markers are 0
    i = ends[literal] - 1
    row = np.searchsorted(row_ends, i, "right")
    out = np.zeros((lengths.size, n_tokens), np.float32)
    out[row, i - (row_ends - lengths)[row]] = (b[literal] / 255) ** 2
    return out


def read_html(path: Path) -> Maps:
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="meta">(.*?)</script>', text, re.S)
    if not found or not text.rstrip().endswith("</html>"):
        raise ValueError("is not a viewer of ./run, or is cut off")
    meta = json.loads(found[1])
    if meta["v"] != 1:
        raise ValueError(f"version {meta['v']}, want 1")
    first, n_rows, tokens = meta["first_query"], meta["n_queries"], meta["tokens"]
    numbers([first, n_rows, meta["n_prompt"]], "first_query, n_queries, n_prompt")
    ids, floors = numbers(meta["ids"], "ids"), numbers(meta["floors"], "floors")
    if not n_rows:
        raise ValueError("has no rows")
    if first + n_rows > len(tokens) or not all(type(t) is str for t in tokens):
        raise ValueError("first_query and n_queries do not fit the tokens")
    names = [[str(v) for v in (names if isinstance(names, list) else [names])]
             for names in (meta["layers"], meta["heads"])]
    held = axes(*names)
    queries = np.arange(first, first + n_rows)
    lengths = row_lengths(queries, len(tokens), kind := meta.get("kind"))
    maps = [decode(base64.b64decode(m, validate=False), lengths, len(tokens))
            for m in re.findall(r'<script type="text/plain" class="attn">([^<]*)</script>', text)]
    shape = (len(names[0]), len(names[1]))
    if not len(maps) == len(floors) == math.prod(shape) > 0 or meta["reduce"] != held["reduce"]:
        raise ValueError(f"got {len(maps)} maps and {len(floors)} floors of {meta['reduce']}, want "
                         f"{math.prod(shape)} of {held['reduce']}")
    step = max(1 - (254.5 / 255) ** 2, ((max(floors) - 0.5) / 255) ** 2)
    return Maps(np.stack(maps).reshape(*shape, n_rows, len(tokens)), tokens, ids,
                n_prompt=meta["n_prompt"], queries=queries.tolist(), kind=kind, step=step, **held)


READERS = {".npz": read_npz, ".npy": read_npy, ".jsonl": read_jsonl, ".csv": read_csv,
           ".svg": read_svg, ".html": read_html}


def check(maps: Maps, values: bool = True) -> Maps:
    """Raise ValueError where a file breaks a promise of docs/attention.md.

    The weights themselves are checked only with `values`."""
    attn = maps.attn
    if attn.ndim == 4 and attn.shape[2] == 0:
        raise ValueError("has no rows")
    if attn.ndim != 4 or 0 in attn.shape or attn.dtype.kind != "f":
        raise ValueError(f"attn is {attn.dtype} of shape {attn.shape}, want "
                         "floats (layers, heads, queries, T)")
    if maps.reduce is not None and maps.reduce not in REDUCED:
        raise ValueError(f"reduce is {maps.reduce!r}")
    if maps.kind not in (None, "encoder"):
        raise ValueError(f"kind is {maps.kind!r}, want encoder")
    if attn.dtype == np.float16:
        maps.step = max(maps.step, 2.0**-12)
    T = attn.shape[3]
    for name in ("tokens", "token_ids", "token_bytes", "queries"):
        value, want = getattr(maps, name), attn.shape[2] if name == "queries" else T
        if value is not None and len(value) != want:
            raise ValueError(f"{len(value)} {name}, want {want}")
    for axis in range(2):
        if len(maps.names(axis)) != attn.shape[axis]:
            raise ValueError(f"{attn.shape[axis]} {('layers', 'heads')[axis]} of weights, want "
                             f"{len(maps.names(axis))}")
    sinks = maps.sink_mass
    if sinks is not None and (sinks.dtype.kind != "f" or sinks.shape != (
            len(maps.layers or ()), len(maps.heads or ()), attn.shape[2])):
        raise ValueError(f"sink_mass is {sinks.dtype} of shape {sinks.shape}, want floats "
                         "(layers, heads, queries)")
    q = maps.queries
    if q is not None and (min(q) < 0 or max(q) >= T or len(set(q)) != len(q)):
        raise ValueError("queries lie outside the text")
    if maps.n_prompt is not None and not 0 <= maps.n_prompt <= T:
        raise ValueError(f"n_prompt is {maps.n_prompt}, of {T} tokens")
    if values:
        maps.attn = attn = attn.astype(np.float32, copy=False)
        known = q is not None or attn.shape[2] == T
        later = (np.arange(T) >= maps.n_keys[:, None]
                 if known else np.zeros((attn.shape[2], T), bool))
        for layer in attn:
            if not (layer.min() >= 0 and layer.max() <= 1.01):  # NaN, too
                raise ValueError("weights outside 0 to 1")
            if layer[:, later].any():
                raise ValueError("weights on later tokens")
    return maps


def why(e: BaseException) -> str:
    """One printable line about an exception."""
    text = {MemoryError: "is too large for this memory",
            KeyError: f"{e} is missing or not known"}.get(type(e), str(e))
    return printable(" ".join(text.split()) or type(e).__name__)


def printable(text: str) -> str:
    """Characters that a terminal acts on become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
                   for c in text)


def load(path: str | os.PathLike[str], mmap: bool = False) -> Maps:
    """Open a dump by its ending (none: .jsonl).

    mmap: a .npy stays on the disk and its weights are not checked.

    ValueError with one line that names the file where it is broken, cut off or something else;
    OSError as from open()."""
    path = Path(path)
    read = READERS.get(path.suffix.lower() or ".jsonl")
    try:
        if not read:
            raise ValueError(f"its ending is none of {', '.join(READERS)}")
        if read is read_npy and mmap:
            return check(read_npy(path, True), values=False)
        return check(read(path))
    except (ValueError, OSError, *BROKEN) as e:
        # a broken zip sends its reader before the file's start
        if isinstance(e, OSError) and e.errno != errno.EINVAL:
            raise
        raise ValueError(f"{printable(str(path))}: {why(e)}") from e


def save(maps: Maps, path: str | os.PathLike[str]) -> None:
    """Write the .npz of docs/attention.md.

    Arrays that are None are left out. The file gets its name when it is complete."""
    types = {"token_ids": "i4", "n_prompt": "i8", "layers": "i4", "heads": "i4", "queries": "i4",
             "reduce": "U", "kind": "U", "tokens": "U"}
    arrays = {k: np.array(v, types[k])
              for k, v in vars(maps).items() if k in types and v is not None}
    if maps.token_bytes is not None:
        arrays["token_bytes"] = np.frombuffer(b"".join(maps.token_bytes), np.uint8)
        arrays["token_offsets"] = np.cumsum([0, *map(len, maps.token_bytes)], dtype=np.int64)
    if maps.sink_mass is not None:
        arrays["sink_mass"] = maps.sink_mass
    part = Path(f"{path}.part")
    try:
        with open(part, "wb") as f:
            np.savez(f, attn=maps.attn, **arrays)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# ---- numbers -------------------------------------------------------------------------------------

def stats(maps: Maps) -> dict[str, np.ndarray]:
    """The statistics of docs/attention.md: column -> (layers, heads) float64.

    Only those that follow from the maps. NaN where no row counts; `induction` is NaN where the file
    has no tokens. A row is taken to see all keys up to its own, that of an encoder all keys: files
    do not tell of sliding windows, in which --attn-stats counts fewer (rows, entropy_rel). Sources:
    Clark et al. 2019 (entropy), Vig and Belinkov 2019 (distance), Xiao et al. 2023 (sink), Voita et
    al. 2019 (max_weight), TransformerLens (induction)."""
    pos, T, text = maps.positions, maps.attn.shape[3], maps.text
    names = ("rows", "entropy", "entropy_rel", "distance", "sink", "self", "previous", "max_weight",
             "sink_rows", "induction")
    out = {name: np.full(maps.attn.shape[:2], np.nan) for name in names}
    use, n_keys = maps.n_keys >= 2, maps.n_keys
    q, rows = pos[use], np.arange(int(use.sum()))
    out["rows"][:] = rows.size
    if text is not None:
        code = np.unique(np.array(text), return_inverse=True)[1]
        pairs = np.zeros((pos.size, T))
        pairs[:, 1:] = (code[None, :-1] == code[pos][:, None]) & (np.arange(1, T) <= pos[:, None])
    for i, layer in enumerate(maps.attn):
        w = layer.astype(np.float64)  # (heads, queries, T)
        if text is not None:
            out["induction"][i] = (w * pairs).sum((1, 2)) / np.maximum(w.sum((1, 2)), 1e-300)
        if not rows.size:
            continue
        w = w[:, use]
        entropy = -(w * np.log(np.where(w > 0, w, 1))).sum(-1)
        out["entropy"][i] = entropy.mean(-1)
        out["entropy_rel"][i] = (entropy / np.log(n_keys[use])).mean(-1)
        out["distance"][i] = (w * np.abs(q[:, None] - np.arange(T))).sum(-1).mean(-1)
        out["sink"][i] = w[:, :, 0].mean(-1)
        out["self"][i] = w[:, rows, q].mean(-1)
        out["previous"][i] = np.where(q > 0, w[:, rows, q - 1], 0).mean(-1)
        out["max_weight"][i] = w.max(-1).mean(-1)
        out["sink_rows"][i] = (w[:, :, 0] >= w.max(-1)).mean(-1)
    return out


def rollout(maps: Maps) -> np.ndarray:
    """Attention rollout (Abnar and Zuidema 2020), (T, T) float64.

    R = A_L ... A_1 with A = (mean over heads + I) / 2."""
    if (maps.reduce not in (None, "none", "mean-heads")
            or sorted(maps.positions) != list(range(maps.attn.shape[3]))):
        raise ValueError("rollout needs every row of every layer")
    r = eye = np.eye(maps.attn.shape[3])
    for i in range(maps.attn.shape[0]):
        r = (maps.square(maps.names(0)[i]).mean(0, dtype=np.float64) + eye) / 2 @ r
    return r


@dataclass
class Diff:
    """Two runs compared. A row is a pair of aligned query tokens with at least two aligned keys."""
    layers: list[int | str]
    heads: list[int | str]
    cosine: np.ndarray  # (layers, heads) means over rows
    js: np.ndarray  # nats, 0 to ln 2
    rank: np.ndarray
    row_cosine: np.ndarray  # (layers, heads, rows); NaN where a row has no weight on aligned keys
    row_js: np.ndarray
    row_rank: np.ndarray
    rows: np.ndarray  # (rows, 2) positions in a and b
    columns: np.ndarray  # (aligned, 2) positions in a and b
    # (aligned, 2) mean weight that each aligned key gets in a and b from the rows that see it
    received: np.ndarray
    # tokens_a, tokens_b: not aligned; heads_a, heads_b: not in the other; rows: NaN ones
    left_out: dict[str, int]

    @property
    def token_js(self) -> np.ndarray:
        """(rows,) mean over the heads: how far each token's attention moved."""
        return mean(self.row_js.reshape(-1, len(self.rows)), 0)


def mean(x: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is not NaN; NaN where nothing is."""
    there = ~np.isnan(x)
    n = there.sum(axis)
    return np.where(n > 0, np.where(there, x, 0).sum(axis) / np.maximum(n, 1), np.nan)


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 0 along the last axis; equal values share the mean of theirs."""
    out = np.empty(x.shape)
    for i in np.ndindex(x.shape[:-1]):
        s = np.sort(x[i])
        out[i] = (np.searchsorted(s, x[i]) + np.searchsorted(s, x[i], "right") - 1) / 2
    return out


def cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Along the last axis; 0 where one is all 0."""
    size = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.minimum((x * y).sum(-1) / np.where(size > 0, size, 1), 1)


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rank correlation (Spearman 1904) along the last axis.

    Where all values are equal there is no order: 1 if both rows are such, 0 if one is."""
    x, y = (r - r.mean(-1, keepdims=True) for r in (ranks(x), ranks(y)))
    flat = ~x.any(-1) & ~y.any(-1)
    return np.where(flat, 1, cosine(x, y))


def jensen_shannon(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Divergence of distributions along the last axis (Lin 1991), in nats.

    H((x + y) / 2) - (H(x) + H(y)) / 2 with the entropy H."""
    hx, hy, hm = (-(p * np.log(np.where(p > 0, p, 1))).sum(-1) for p in (x, y, (x + y) / 2))
    return np.maximum(hm - (hx + hy) / 2, 0)


def align(a: Maps, b: Maps) -> np.ndarray:
    """Positions of the tokens that both texts have in the same order, (n, 2).

    Files without tokens match by position."""
    x, y, n = a.text, b.text, (a.attn.shape[3], b.attn.shape[3])
    if (a.token_ids is None) != (b.token_ids is None):
        x, y = (replace(m, token_ids=None).text for m in (a, b))
    if x is None or y is None or x == y:
        if n[0] != n[1]:
            raise ValueError(f"texts of {n[0]} and {n[1]} tokens, and no "
                             "tokens in the file to align them by")
        return np.stack([np.arange(n[0])] * 2, 1)
    blocks = difflib.SequenceMatcher(None, x, y, autojunk=False).get_matching_blocks()
    return np.array([(i + k, j + k) for i, j, size in blocks for k in range(size)],
                    np.int64).reshape(-1, 2)


def diff(a: Maps, b: Maps) -> Diff:
    """Compare the rows of two runs head by head.

    Rows are compared over the tokens that both texts have, renormalised over those."""
    if a.reduce is not None and b.reduce is not None and a.reduce != b.reduce:
        raise ValueError(f"one file is reduced by {a.reduce}, the other by {b.reduce}")
    names, at = [], []
    for axis in range(2):
        x, y = a.names(axis), b.names(axis)
        names.append(both := [v for v in x if v in y])
        at.append(([x.index(v) for v in both], [y.index(v) for v in both]))
    if a.kind != b.kind:
        raise ValueError("one file is of an encoder, the other is not")
    pairs = align(a, b)
    row_a, row_b = ({int(p): i for i, p in enumerate(m.positions)} for m in (a, b))
    rows = [(n, row_a[p], row_b[q])
            for n, (p, q) in enumerate(pairs.tolist())
            if (n or (a.kind and len(pairs) > 1)) and p in row_a and q in row_b]
    if not names[0] or not names[1] or not rows:
        raise ValueError("the files share no " + ("layer" if not names[0] else "head"
                                                  if not names[1] else "rows of the same text"))
    out = np.full((3, len(names[0]), len(names[1]), len(rows)), np.nan)
    received, seen = np.zeros((len(pairs), 2)), np.zeros((len(pairs), 1))
    for i, (n, ra, rb) in enumerate(rows):
        n = len(pairs) - 1 if a.kind else n  # the last key that both rows see
        x, y = (m.attn[:, :, r][np.ix_(at[0][side], at[1][side], pairs[:n + 1, side])]
                .astype(np.float64) for side, m, r in ((0, a, ra), (1, b, rb)))
        sx, sy = x.sum(-1, keepdims=True), y.sum(-1, keepdims=True)
        there = (sx > 0) & (sy > 0)
        x, y = x / np.where(there, sx, 1), y / np.where(there, sy, 1)
        for k, f in enumerate((cosine, jensen_shannon, spearman)):
            out[k, :, :, i] = np.where(there[..., 0], f(x, y), np.nan)
        received[:n + 1] += np.stack([np.where(there, v, 0).sum((0, 1)) for v in (x, y)], 1)
        seen[:n + 1] += there.sum()
    means = [mean(v, -1) for v in out]
    n_heads = len(names[0]) * len(names[1])
    left = {"tokens_a": a.attn.shape[3] - len(pairs), "tokens_b": b.attn.shape[3] - len(pairs),
            "heads_a": a.attn.shape[0] * a.attn.shape[1] - n_heads,
            "heads_b": b.attn.shape[0] * b.attn.shape[1] - n_heads,
            "rows": int(np.isnan(out[0]).sum())}
    return Diff(*names, *means, *out, pairs[[n for n, _, _ in rows]], pairs,
                received / np.maximum(seen, 1), left)


# ---- pictures ------------------------------------------------------------------------------------

def shown(maps: Maps) -> list[str]:
    """Tokens as one can see them, (T,).

    Spaces and newlines have the viewer's signs, control characters are escaped."""
    words = maps.tokens or [str(i) for i in range(maps.attn.shape[3])]
    return [printable(w.replace(" ", "\u00b7").replace("\n", "\u21b5")) or "?" for w in words]


def to_bertviz(maps: Maps) -> tuple[tuple[Any, ...], list[str]]:
    """(attention, tokens) for bertviz.head_view and model_view.

    Attention is a list with (1, heads, T, T) for each layer, of torch if it is installed."""
    try:
        from torch import from_numpy as tensor
    except ImportError:
        tensor = np.asarray
    return tuple(tensor(layer[None]) for layer in maps.square()), shown(maps)


def to_circuitsvis(maps: Maps, layer: int | None = None) -> dict[str, Any]:
    """Arguments of circuitsvis.attention.attention_heads and attention_patterns.

    They are tokens and attention (heads, T, T)."""
    return {"tokens": shown(maps),
            "attention": maps.square(maps.names(0)[0] if layer is None else layer)}


def heatmap(maps: Maps, layer: int | None, head: int | None, target: Any, vmax: float = 1.0) -> Any:
    """Draw one map on viridis from 0 to vmax, on axes of matplotlib or into a file.

    Returns the axes.

    Rows are queries, columns keys; later keys stay blank. Beyond 80 tokens only every so many-th is
    labelled."""
    l, h, pos, T = maps.index(0, layer), maps.index(1, head), maps.positions, maps.attn.shape[3]
    figure, ax = None, target
    if isinstance(target, (str, os.PathLike)):
        from matplotlib.figure import Figure
        width, height = (min(max(2.5 + 0.17 * n, 4.0), 16.0) for n in (T, pos.size))
        figure = Figure((width + 1, height), dpi=120, layout="constrained")
        ax = figure.add_subplot()
    image = ax.imshow(np.ma.masked_array(maps.attn[l, h], np.arange(T) >= maps.n_keys[:, None]),
                      cmap="viridis", vmin=0, vmax=vmax, interpolation="nearest",
                      aspect="auto" if pos.size != T else "equal")
    ax.figure.colorbar(image, ax=ax, label="weight")
    words = shown(maps)
    for axis, at in ((ax.xaxis, np.arange(T)), (ax.yaxis, pos)):
        every = -(-at.size // 80)
        axis.set_ticks(range(0, at.size, every), [words[i] for i in at[::every]], parse_math=False,
                       fontsize=7)
    ax.tick_params("x", rotation=90)
    ax.set(xlabel="key", ylabel="query", title=f"layer {maps.names(0)[l]}, head {maps.names(1)[h]}")
    if figure:
        with warnings.catch_warnings():
            # its font lacks some scripts; the rest of the picture is right
            warnings.filterwarnings("ignore", "Glyph")
            figure.savefig(target)
    return ax


# ---- command line --------------------------------------------------------------------------------

def spans(values: Sequence[int | str]) -> str:
    """0, 1, 2, 5 -> "0-2,5"."""
    out: list[list[Any]] = []
    for v in values:
        if out and isinstance(v, int) and out[-1][1] == v - 1:
            out[-1][1] = v
        else:
            out.append([v, v])
    return ",".join(str(i) if i == j else f"{i}-{j}" for i, j in out)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Right-aligned columns; the last may be text."""
    cells = [list(columns),
             *([f"{v:.4f}" if isinstance(v, float) else str(v) for v in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths)) for row in cells)


def info(maps: Maps, path: Path) -> str:
    L, H, Q, T = maps.attn.shape
    known = "not in this format"
    rows = [("file", f"{printable(str(path))}, {path.stat().st_size:,} bytes"),
            ("maps", f"{L} x {H} of {Q} x {T} ({maps.attn.dtype}, {maps.attn.nbytes:,} bytes)"),
            ("layers", known if maps.layers is None else spans(maps.layers)),
            ("heads", known if maps.heads is None else spans(maps.heads)),
            ("rows", known if maps.queries is None else spans(maps.queries)),
            ("reduce", maps.reduce or known),
            *([("kind", maps.kind)] if maps.kind else []),
            ("prompt", known if maps.n_prompt is None else f"{maps.n_prompt} tokens"),
            ("weights", f"within {maps.step:.2g} of the engine's" if maps.step else "exact"),
            ("text", known if maps.tokens is None else printable("".join(maps.tokens)))]
    return "\n".join(f"{name:8} {value}" for name, value in rows)


def print_diff(d: Diff, a: Maps, b: Maps, top: int) -> None:
    order = np.argsort(np.where(np.isnan(d.js), -1, -d.js), axis=None, kind="stable")
    at = [np.unravel_index(i, d.js.shape) for i in order]
    line = lambda i, j: (d.layers[i], d.heads[j], float(d.cosine[i, j]), float(d.js[i, j]),
                         float(d.rank[i, j]))
    print(f"heads that moved most, of {d.js.size} (means over {len(d.rows)} "
          "rows; js in nats, at most 0.6931)\n")
    print(table(("layer", "head", "cosine", "js", "rank"),
                [line(i, j) for i, j in at[:top or None]]))
    words = shown(a)
    moved = np.argsort(-np.nan_to_num(d.token_js), kind="stable")[:top or None]
    print("\ntokens whose rows moved most\n")
    print(table(("at", "in b", "js", "token"),
                [(*d.rows[i].tolist(), float(d.token_js[i]), words[d.rows[i, 0]]) for i in moved]))
    print(f"\nall heads: cosine {np.nanmean(d.cosine):.4f}, js {np.nanmean(d.js):.4f}, rank "
          f"{np.nanmean(d.rank):.4f}")
    left = [f"{n} {what}" for n, what in (
                (d.left_out["tokens_a"], f"of {a.attn.shape[3]} tokens of a"),
                (d.left_out["tokens_b"], f"of {b.attn.shape[3]} tokens of b"),
                (d.left_out["heads_a"], "heads of a"), (d.left_out["heads_b"], "heads of b"),
                (d.left_out["rows"], "rows without weights")) if n]
    print(f"left out: {', '.join(left) or 'nothing'}")
    if max(a.step, b.step):
        print(f"weights are within {max(a.step, b.step):.2g} of the engine's")


def write_diff(d: Diff, a: Maps, path: Path) -> None:
    """One line per head and row."""
    words = a.tokens or [""] * a.attn.shape[3]
    with open(path, "w", encoding="utf-8", newline="") as f:
        w = csv.writer(f, lineterminator="\n")
        w.writerow(("layer", "head", "query_a", "query_b", "token", "cosine", "js", "rank"))
        for i, layer in enumerate(d.layers):
            for j, head in enumerate(d.heads):
                for r, (p, q) in enumerate(d.rows.tolist()):
                    values = (d.row_cosine[i, j, r], d.row_js[i, j, r], d.row_rank[i, j, r])
                    w.writerow((layer, head, p, q, words[p],
                                *("" if np.isnan(v) else f"{v:.9g}" for v in values)))


def command(args: argparse.Namespace) -> None:
    maps = load(args.file, mmap=args.command in ("info", "plot"))
    if args.command == "info":
        print(info(maps, args.file))
    elif args.command == "stats":
        s = stats(maps)
        rows = [(layer, head, int(s["rows"][i, j]),
                 *(float(v[i, j]) for k, v in s.items() if k != "rows"))
                for i, layer in enumerate(maps.names(0)) for j, head in enumerate(maps.names(1))]
        print(table(("layer", "head", *s), rows))
    elif args.command == "diff":
        other = load(args.other)
        d = diff(maps, other)
        if args.csv:
            write_diff(d, maps, args.csv)
        print_diff(d, maps, other, args.top)
    elif args.command == "plot":
        heatmap(maps, args.layer, args.head, args.output)
    else:
        if args.output.suffix != ".npz":
            raise ValueError(f"{printable(str(args.output))}: convert writes .npz")
        save(maps, args.output)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="attn.py", description="Open, compare and draw the "
                                     "attention files of ./run.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        p = commands.add_parser(name, help=text, description=text)
        p.add_argument("file", type=Path, metavar="FILE", help=", ".join(READERS))
        return p

    add("info", "say what a file holds")
    add("stats", "print the statistics of every head")
    p = add("diff", "compare two runs token by token")
    p.add_argument("other", type=Path, metavar="OTHER", help="the second run")
    p.add_argument("--csv", type=Path, metavar="OUT", help="write every head's rows")
    p.add_argument("--top", type=int, default=10, metavar="N",
                   help="lines of the tables, 0 for all (10)")
    p = add("plot", "draw the map of one head")
    p.add_argument("--layer", type=int, metavar="L",
                   help="number of the model, -1 is the last (default: the first)")
    p.add_argument("--head", type=int, metavar="H", help="likewise")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.png")
    p = add("convert", "write a file of any format as .npz")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.npz")
    args = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    try:
        command(args)
        sys.stdout.flush()
    except ImportError as e:
        print(no_package(e), file=sys.stderr)
        return 1
    except ValueError as e:
        print(f"attn.py: {why(e)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:
        print(f"attn.py: {printable(str(e.filename or args.file))}: {e.strerror or e}",
              file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
