"""Tokenizers against llama.cpp's own tests: files that hold a vocabulary alone, texts, and the ids
that Hugging Face made of them; and against its table of rules (src/llama-vocab.cpp)."""
from __future__ import annotations

import ast
import itertools
import json
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from test_tokenizers import (FAMILIES, FUZZ, KIMI, NAMES, TEXTS, TRINITY, differences,
                             drive, encode, reference)  # noqa: F401
from tokenizers import Regex, normalizers, pre_tokenizers

from exporting import patterns, vocab

Drive = Callable[..., list[Any]]
BOS, IGNORE_MERGES, ESCAPE = 1, 2, 8  # flags of pretokenize.h
FILES = {  # by what is refused
    None: ["bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2",
           "llama-bpe", "llama-spm", "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder"],
    "Unigram": ["nomic-bert-moe"],
    "tokenizer.ggml.pre: missing": ["aquila"],  # an old file, which llama.cpp reads with a warning
}
PRE_REFUSED = ["whitespace"]


def cases(path: Path) -> tuple[list[bytes], list[list[int]]]:
    """The texts of FILE.inp, and the ids of FILE.out, which has a line for each."""
    texts = Path(f"{path}.inp").read_bytes().removesuffix(b"\n__ggml_vocab_test__\n").split(
        b"\n__ggml_vocab_test__\n")
    ids = [[int(i) for i in line.split()] for line in Path(f"{path}.out").read_text().splitlines()]
    assert len(texts) == len(ids) >= 46
    return texts, ids


def with_key(path: Path, name: str, value: str, to: Path) -> Path:
    """A copy of a GGUF file with one more key."""
    data = path.read_bytes()
    magic, tensors, keys = data[:8], *struct.unpack("<QQ", data[8:24])
    added = (struct.pack("<Q", len(name)) + name.encode() + struct.pack("<IQ", 8, len(value))
             + value.encode())
    to.write_bytes(magic + struct.pack("<QQ", tensors, keys + 1) + added + data[24:])
    return to


def test_document() -> None:
    """docs/tokenizers.md has every name."""
    text = (Path(__file__).parent.parent / "docs" / "tokenizers.md").read_text()
    assert [n for n in NAMES + PRE_REFUSED if f"`{n}`" not in text] == []


def test_files_are_known(llama_vocab: Path) -> None:
    """A new file of llama.cpp's is noticed."""
    names = {p.name.removeprefix("ggml-vocab-").removesuffix(".gguf.inp")
             for p in llama_vocab.rglob("*.inp")}
    assert names == set(FILES[None])


@pytest.mark.parametrize("name", FILES[None])
def test_ids(drive: Drive, run_bin: Path, llama_vocab: Path, tmp_path: Path,  # noqa: F811
             name: str) -> None:
    """Every text has the ids that are expected, in the program, too."""
    path = llama_vocab / "models" / f"ggml-vocab-{name}.gguf"
    texts, want = cases(path)
    if name == "qwen35":  # its expectations lack the NFC of Qwen's tokenizer.json
        path = with_key(path, "tokenizer.attnc.normalizer", "none", tmp_path / "m.gguf")
    differences(texts, [g["ids"] for g in encode(drive, path, texts)], want)
    longest = max(range(len(texts)), key=lambda i: len(want[i]))
    done = subprocess.run([run_bin, path, "--tokenize", "--json", "-f", "-", "--keep-newline"],
                          input=texts[longest], capture_output=True, check=True)
    ids = json.loads(done.stdout)["ids"]
    assert ids[len(ids) - len(want[longest]):] == want[longest]
    assert len(ids) - len(want[longest]) == (name not in ("falcon", "gpt-2", "mpt", "qwen2",
                                                          "qwen35", "refact", "starcoder"))


def test_qwen35_in_normal_form(drive: Drive, llama_vocab: Path) -> None:  # noqa: F811
    """As transformers' Qwen3_5Tokenizer the text is brought to NFC before it is cut."""
    path = llama_vocab / "models" / "ggml-vocab-qwen35.gguf"
    texts, want = cases(path)
    nfc = [normalizers.NFC().normalize_str(t.decode()).encode() for t in texts]
    got = [g["ids"] for g in encode(drive, path, texts)]
    differences(texts, got, [g["ids"] for g in encode(drive, path, nfc)])
    same = [t == n for t, n in zip(texts, nfc)]
    assert [g == w for g, w in zip(got, want)] == same and same.count(False) == 3


@pytest.mark.parametrize("what, name", [(what, name) for what, names in FILES.items() if what
                                        for name in names])
def test_refused(drive: Drive, llama_vocab: Path, what: str, name: str) -> None:  # noqa: F811
    path = llama_vocab / "models" / f"ggml-vocab-{name}.gguf"
    message = drive([path, 0], ["a"], fail=3)
    assert what in message and message.count("\n") == 1


# ---- the table of rules --------------------------------------------------------------------------

class Rule(NamedTuple):
    flags: int
    patterns: tuple[str, ...]


STRING = r'"((?:[^"\\]|\\.)*)"'
CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"  # llama.cpp's form of
ENGLISH = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # this
GPT4O_HERE = r"((?=[\p{L}\p{M}])([^%s]))"  # and of a letter that is not upper, or lower, case
PUBLISHED = {  # patterns that are not in llama.cpp's words, or in words of its own
    r"\p{Han}+": KIMI}
ASIAN = "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff"  # U+F900 became U+8C48 in an editor
STEPS = {  # rules with other steps in the models' tokenizer.json: what stands for a pattern there
    "afmoe": {r"\p{AFMoE_digits}": TRINITY[:3], ASIAN: TRINITY[3:4]},
    "deepseek-llm": {r"\p{N}+": [r"\p{N}"]},  # Digits(individual_digits=True)
    "falcon": {"[0-9][0-9][0-9]": ["[0-9]+", "[0-9][0-9][0-9]"]},  # Digits before it
    "laguna": {r"[^\n]+|[\n]+": [r"(?:\r?\n)+(?:(?!\r?\n)[\s\S])*"]},  # Split(MergedWithNext)
}


@pytest.fixture(scope="module")
def table(llama_vocab: Path) -> dict[str, Rule]:
    """llama.cpp's rules by name: what it says of the flags, and its patterns, or those of a
    tokenizer.json that its comments quote."""
    source = (llama_vocab / "src" / "llama-vocab.cpp").read_text()
    begin = source.index("struct llm_tokenizer_bpe : llm_tokenizer {")
    switch = source[begin:source.index("std::vector<std::string> regex_exprs;", begin)]
    patterns: dict[str, tuple[str, ...]] = {}
    kinds: list[str] = []
    found: list[str] = []
    quoted: str | None = None
    for line in map(str.strip, switch.splitlines()):
        kind = re.match(r"case LLAMA_VOCAB_PRE_TYPE_(\w+):|(default):", line)
        strings = [ast.literal_eval(f'"{s}"') for s in re.findall(STRING, line)]
        if kind:
            kinds.append(kind[1] or "DEFAULT")
        elif line.startswith("//") and strings:
            quoted = strings[0]
        elif line == "break;":
            patterns |= {k: tuple(found) for k in kinds}
            kinds, found, quoted = [], [], None
        elif strings:
            found += [quoted] if quoted else strings[:1]
            quoted = None
    begin = source.index('} else if (tokenizer_pre == "default") {')
    names = source[begin:source.index("unknown pre-tokenizer type", begin)]
    rules = {}
    for part in names.split("} else")[1:]:
        kind = re.search(r"pre_type = LLAMA_VOCAB_PRE_TYPE_(\w+);", part)
        if not kind:
            continue
        flags = sum(bit for bit, text in ((BOS, "add_bos = true"), (ESCAPE, "escape_whitespaces ="),
                                          (IGNORE_MERGES, "ignore_merges = true")) if text in part)
        flags |= BOS if kind[1] == "GEMMA4" else 0  # further down, whatever the file says
        for name in re.findall(r'tokenizer_pre == "([^"]+)"', part):
            rules[name] = Rule(flags, patterns[kind[1]])
    return rules


def test_names(table: dict[str, Rule]) -> None:
    """Every name of llama.cpp's is known, or known to be refused."""
    assert sorted(table) == sorted(NAMES + PRE_REFUSED) and len(table) > 85


def test_rules(drive: Drive, table: dict[str, Rule]) -> None:  # noqa: F811
    """By every name the same flags, and patterns that cut every text as llama.cpp's patterns, or
    the ones they stand for, do in Hugging Face's engine."""
    done: set[tuple[tuple[str, ...], tuple[str, ...]]] = set()
    for name in NAMES:
        rule, (flags, theirs) = drive(["--rule", name])[0], table[name]
        assert rule["flags"] & (BOS | IGNORE_MERGES | ESCAPE) == flags, name
        steps = STEPS.get(name, {})
        want = [PUBLISHED.get(p, p).replace(CONTRACTIONS, ENGLISH) for one in theirs
                for p in steps.get(one, steps.get(one[:len(ASIAN)], [one]))]
        if name == "granite-embed-multi-97m":  # written as gpt-4o with ignore_merges
            assert GPT4O_HERE % "a-z" in want[0] and GPT4O_HERE % "A-Z" in want[0]
            want = list(table["gpt-4o"].patterns)
        key = tuple(want), tuple(rule["patterns"])
        if key in done:
            continue
        done.add(key)
        hf = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated") for p in want])
        texts = TEXTS[:-1] + FUZZ
        ends = [list(itertools.accumulate(len(piece.encode()) for piece, _ in
                                          hf.pre_tokenize_str(t))) for t in texts]
        differences(texts, drive(["--split", *rule["patterns"]], texts), ends)
    assert len(done) == 29


# ---- the names that export.py writes -------------------------------------------------------------

def exported_name(family: str) -> str:
    """What export.py makes of a tokenizer.json with this family's parts."""
    _, pre, nfc, ignore_merges = FAMILIES[family]
    tok = json.loads(reference(({}, []), pre, nfc, ignore_merges).to_str())
    cuts = tuple(vocab.pre_patterns(tok["pre_tokenizer"], [], Path("tokenizer.json")))
    return patterns.pre_name(cuts, nfc, ignore_merges)


def test_exported_names(drive: Drive) -> None:  # noqa: F811
    """A published tokenizer.json gets a name whose rule is the family's own, ignore_merges with it,
    wherever llama.cpp has one."""
    names = {family: exported_name(family) for family in FAMILIES}
    assert {f for f in names if names[f] == "default"} == {"trinity"}
    assert {names[f] for f in names} >= {name for name, _, _ in patterns.PRE_NAMES} - {"falcon"}
    for family, name in names.items():
        have, want = (drive(["--rule", n])[0] for n in (name, FAMILIES[family][0]))
        if name == "default":
            continue
        assert have["patterns"] == want["patterns"], family
        if family not in ("granite-embedding",):  # gpt-4o's pattern with ignore_merges
            assert have["flags"] & IGNORE_MERGES == want["flags"] & IGNORE_MERGES, family
    assert patterns.pre_name(("a",), False, False) == "default"


def test_name_of_falcon() -> None:
    steps = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=False),
         pre_tokenizers.Digits(individual_digits=False),
         pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")])
    tok = json.loads(reference(({}, []), steps).to_str())
    cuts = vocab.pre_patterns(tok["pre_tokenizer"], [], Path("tokenizer.json"))
    assert patterns.pre_name(tuple(cuts), False, False) == "falcon"


def test_line_breaks_in_patterns() -> None:
    """Some files hold the characters CR and LF where others hold escapes."""
    deepseek = tuple(p.replace(r"\r", "\r").replace(r"\n", "\n")
                     for name, _, cuts in patterns.PRE_NAMES if name == "deepseek-v3" for p in cuts)
    assert "\n" in deepseek[2] and patterns.pre_name(deepseek, False, False) == "deepseek-v3"


@pytest.mark.parametrize("pattern", sorted(patterns.COVERING))
def test_covering(pattern: str) -> None:
    """Removing what lies between matches drops nothing: as if the pieces were isolated."""
    split = pre_tokenizers.Split
    ways = split(Regex(pattern), "isolated"), split(Regex(pattern), "removed", invert=True)
    for text in TEXTS + FUZZ:
        one, other = ([piece for piece, _ in way.pre_tokenize_str(text)] for way in ways)
        assert one == other
