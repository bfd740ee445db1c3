"""Tokenizers in GGUF's terms.

Read are tokenizer.json, SentencePiece's tokenizer.model, GPT-2's vocab.json, llama2.c's
tokenizer.bin and nanoGPT's meta.pkl. What ./run could not reproduce exactly is refused. Of the
model only the size of its vocabulary and its special tokens are known here."""
from __future__ import annotations

import math
import pickle
import re
import struct
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterable, Iterator

import gguf

from exporting.config import MAX_VOCAB, Config, ExportError, read_json, short
from exporting.patterns import (COVERING, DIGIT, GPT2_SPLIT, LAGUNA_LINES, MERGED_LINES, NO_SPLIT,
                                PUNCTUATION, escaped)

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = (gguf.TokenType(i).value
                                                        for i in range(1, 7))
SPACE = "\u2581"  # SentencePiece's visible space


@dataclass
class Vocab:
    """A tokenizer in GGUF's terms.

    `model` is "gpt2" (byte-level BPE), "llama" (SentencePiece BPE), "gemma4" or "bert"
    (WordPiece)."""
    model: str = ""
    tokens: list[str] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)  # "llama" only
    merges: list[str] = field(default_factory=list)
    patterns: tuple[str, ...] = ()
    nfc: bool = False
    ignore_merges: bool = False
    lowercase: bool = False  # these two: "bert" only
    strip_accents: bool = False
    ids: dict[str, int] = field(default_factory=dict)  # bos, eos, unk, pad, eot, eom, sep, mask
    ends: list[int] = field(default_factory=list)  # all tokens that end a text, where several do
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    space_prefix: str = ""  # tokenizer.attnc.space_prefix (tokenizer.h); empty: SentencePiece's way
    normalized: set[int] = field(default_factory=set)  # added tokens found after the normalizers
    chat_templates: dict[str, str] = field(default_factory=dict)  # by name; "" is the usual one
    notes: list[str] = field(default_factory=list)

    def find(self, text: str) -> int | None:
        return self.tokens.index(text) if text in self.tokens else None

    def put(self, i: int, text: str, kind: int, score: float = 0.0) -> None:
        """Set token i, filling a gap before it with unused ones."""
        while len(self.tokens) <= i:
            self.tokens.append(f"[PAD{len(self.tokens)}]")
            self.types.append(UNUSED)
            self.scores.append(-1000.0)
        self.tokens[i], self.types[i], self.scores[i] = text, kind, score

    def fit(self, n_vocab: int, path: Path) -> None:
        """Pad to the model's vocabulary."""
        if len(self.tokens) > n_vocab:
            raise ExportError(f"{path}: the tokenizer has {len(self.tokens)} "
                              f"tokens, the model only {n_vocab}")
        try:
            "".join(self.tokens + self.merges).encode("utf-8")
        except UnicodeEncodeError as e:
            raise ExportError(f"{path}: a token is not valid Unicode") from e
        if len(self.tokens) < n_vocab:
            self.put(n_vocab - 1, f"[PAD{n_vocab - 1}]", UNUSED, -1000.0)


def add_tokens(v: Vocab, added: Any, path: Path) -> None:
    """Add tokenizer.json's added_tokens: special ones are CONTROL, the others match in any text.

    One that no merge makes has the score -infinity: pieces of other text never join to it."""
    for t in added or []:
        try:
            i, text, special = int(t["id"]), str(t["content"]), bool(t.get("special"))
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise ExportError(f"{path}: bad entry in added_tokens: {short(t)}") from e
        if not 0 <= i < MAX_VOCAB:
            raise ExportError(f"{path}: added token {short(text)} has id {i}")
        strips = [k for k in ("lstrip", "rstrip", "single_word") if t.get(k)]
        if strips and not special:
            raise ExportError(f"{path}: added token {short(text)} with "
                              f"{strips[0]} is not supported")
        if strips:
            v.notes.append(f"{short(text)}: Hugging Face drops spaces beside "
                           f"it ({strips[0]}); ./run keeps them")
        piece = i < len(v.tokens) and v.tokens[i] == text and v.types[i] == NORMAL
        score = -1000.0 if special else v.scores[i] if piece and v.scores[i] != -1e6 else -math.inf
        v.put(i, text, CONTROL if special else USER_DEFINED, score)
        (v.normalized.add if t.get("normalized", not special) else v.normalized.discard)(i)


def steps_of(value: Any, key: str) -> list[dict[str, Any]]:
    """The parts of a normalizer, pre_tokenizer or post_processor: null, one, or a Sequence."""
    return [] if value is None else value[key] if value.get("type") == "Sequence" else [value]


def digit_patterns(steps: list[dict[str, Any]], vocab: Iterable[str], path: Path) -> list[str]:
    """The steps after ByteLevel (Falcon's) as patterns on the text itself.

    There they see the stand-ins of bytes. Only digits can be meant, and six bytes of longer
    characters count as digits too; where no token joins one of these to anything, cutting at them
    or not makes no difference."""
    out = []
    for step in steps:
        regex = step["pattern"].get("Regex") if isinstance(step.get("pattern"), dict) else None
        if step.get("type") == "Digits":
            out.append("[0-9]" if step.get("individual_digits") else "[0-9]+")
        elif (step.get("type") == "Split" and isinstance(regex, str)
                and re.fullmatch(r"(\[0-9\])+", regex)
                and step.get("behavior") == "Isolated" and not step.get("invert")):
            out.append(regex)
        else:
            raise ExportError(f"{path}: pre_tokenizer {short(step, 120)} "
                              "after ByteLevel is not supported")
    if out and any(len(t) > 1 and set(t) & set("\u00b2\u00b3\u00b9\u00bc\u00bd\u00be")
                   for t in vocab):
        raise ExportError(f"{path}: a pre_tokenizer that cuts inside characters is not supported")
    return out


def pre_patterns(pre: Any, vocab: Iterable[str], path: Path) -> list[str]:
    """The regular expressions by which a byte-level pre_tokenizer cuts a text, in turn."""
    def refuse(what: Any) -> ExportError:
        return ExportError(f"{path}: pre_tokenizer {short(what, 120)} is not supported")

    if pre is None:
        raise ExportError(f"{path}: a BPE without a ByteLevel pre_tokenizer "
                          "or byte_fallback is not supported")
    steps = steps_of(pre, "pretokenizers")
    out: list[str] = []
    last = max((k for k, step in enumerate(steps) if step.get("type") == "ByteLevel"), default=None)
    if last is None:
        raise refuse(pre)
    after = digit_patterns(steps[last + 1:], vocab, path)
    for k, step in enumerate(steps[:last + 1]):
        kind = step.get("type")
        if kind == "ByteLevel" and k == last:
            if step.get("add_prefix_space"):
                raise ExportError(f"{path}: ByteLevel with add_prefix_space is not supported")
            out += [GPT2_SPLIT] if step.get("use_regex", True) else []
        elif kind == "Digits":
            out.append(DIGIT if step.get("individual_digits") else DIGIT + "+")
        elif kind == "Punctuation" and step.get("behavior",
                                                "Isolated") in ("Isolated", "Contiguous"):
            whole = step.get("behavior") == "Contiguous"
            out.append(PUNCTUATION if whole else PUNCTUATION.removesuffix("+"))
        elif kind == "Split" and isinstance(step.get("pattern"), dict):
            regex, text = step["pattern"].get("Regex"), step["pattern"].get("String")
            regex = re.sub(r"([^\w\s])", r"\\\1", text) if isinstance(text, str) else regex
            how = step.get("behavior"), bool(step.get("invert"))
            if not isinstance(regex, str):
                raise refuse(step)
            if how == ("MergedWithNext", False) and regex == MERGED_LINES:
                regex = LAGUNA_LINES
            elif how != ("Isolated", False) and not (how == ("Removed", True)
                                                     and escaped(regex) in COVERING):
                raise refuse(step)
            out.append(regex)
        else:
            raise refuse(step)
    return out + after or [NO_SPLIT]


def bpe_parts(tok: dict[str, Any], path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of tokenizer.json.

    Every option that would change the result is refused."""
    model = tok.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        kind = model.get("type") if isinstance(model, dict) else model
        raise ExportError(f"{path}: tokenizer model {short(kind)} is not supported (only BPE)")
    if model.get("type", "BPE") != "BPE":
        raise ExportError(f"{path}: {short(model['type'])} tokenizers are not supported (only BPE)")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ExportError(f"{path}: BPE with {key} is not supported")
    vocab, merges = model["vocab"], []
    numbers = set(vocab.values())
    fine = all(type(i) is int and 0 <= i < MAX_VOCAB for i in numbers)
    if not fine or len(numbers) != len(vocab):
        raise ExportError(f"{path}: token ids must be distinct numbers")
    for merge in model.get("merges") or []:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair,
                          list) or len(pair) != 2 or not all(isinstance(p, str) for p in pair):
            raise ExportError(f"{path}: bad merge {short(merge)}")
        merges.append((pair[0], pair[1]))
    return vocab, merges


@contextmanager
def known_json(path: Path) -> Iterator[None]:
    """Whatever goes wrong with the types and keys of a tokenizer.json is an ExportError."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as e:
        what = f"{type(e).__name__}: {short(str(e))}"
        raise ExportError(f"{path}: not a tokenizer.json as export.py knows it ({what})") from e


def bpe_vocab(tok: Any, path: Path) -> Vocab:
    """tokenizer.json with a BPE model: byte-level, or SentencePiece-like with byte fallback."""
    with known_json(path):
        return bpe_vocab_of(tok, path)


def bpe_vocab_of(tok: dict[str, Any], path: Path) -> Vocab:
    vocab, merges = bpe_parts(tok, path)
    v = Vocab(ignore_merges=bool(tok["model"].get("ignore_merges")))
    if tok["model"].get("byte_fallback"):
        spm_from_bpe(v, vocab, merges, tok, path)
    else:
        steps = steps_of(tok.get("normalizer"), "normalizers")
        if [step.get("type") for step in steps] not in ([], ["NFC"]):
            raise ExportError(f"{path}: normalizer "
                              f"{short(tok['normalizer'])} is not supported (only NFC)")
        v.model, v.nfc, v.patterns = ("gpt2", bool(steps),
                                      tuple(pre_patterns(tok.get("pre_tokenizer"), vocab, path)))
        v.merges = [" ".join(m) for m in merges]
        alphabet = byte_alphabet()
        lost = [b for b, ch in alphabet.items()
                if ch not in vocab and b not in (0xC0, 0xC1, *range(0xF5, 0x100))]
        if lost and tok["model"].get("unk_token") is not None:
            raise ExportError(f"{path}: byte {lost[0]:#x} has no token: "
                              "unknown tokens are not supported")
        if lost:
            v.notes.append(f"{len(lost)} bytes have no token, first {lost[0]:#x}")
        for text, i in vocab.items():
            v.put(i, text, NORMAL)
    add_tokens(v, tok.get("added_tokens"), path)
    template(v, tok.get("post_processor"), path)
    return v


def is_wordpiece(tok: dict[str, Any]) -> bool:
    return isinstance(tok.get("model"), dict) and tok["model"].get("type") == "WordPiece"


def wordpiece_vocab(tok: dict[str, Any], path: Path) -> Vocab:
    """BERT's: pieces as llama.cpp writes them, U+2581 before those that begin a word."""
    with known_json(path):
        model, norm, v = tok["model"], tok.get("normalizer") or {}, Vocab("bert")
        for what, want in (("continuing_subword_prefix", "##"), ("max_input_chars_per_word", 100)):
            if model.get(what, want) != want:
                raise ExportError(f"{path}: {what} {short(model[what])} is not supported")
        if norm.get("type") != "BertNormalizer" or not (
                norm.get("clean_text", True) and norm.get("handle_chinese_chars", True)):
            raise ExportError(f"{path}: normalizer {short(norm, 120)} is not supported with "
                              "WordPiece")
        if (tok.get("pre_tokenizer") or {}).get("type") != "BertPreTokenizer":
            raise ExportError(f"{path}: pre_tokenizer {short(tok.get('pre_tokenizer'))} is not "
                              "supported with WordPiece")
        v.lowercase = bool(norm.get("lowercase", True))
        strip = norm.get("strip_accents")
        v.strip_accents = v.lowercase if strip is None else bool(strip)
        special = {t["content"] for t in tok.get("added_tokens") or []}
        for text, i in model["vocab"].items():
            if type(i) is not int or not 0 <= i < MAX_VOCAB:
                raise ExportError(f"{path}: token {short(text)} has id {short(i)}")
            piece = text[2:] if text.startswith("##") else SPACE + text
            if text.removeprefix("##").startswith(SPACE):
                raise ExportError(f"{path}: token {short(text)} begins with U+2581")
            v.put(i, text if text in special else piece, NORMAL)
        add_tokens(v, tok.get("added_tokens"), path)
        for name, text in (("unk", model.get("unk_token", "[UNK]")), ("mask", "[MASK]")):
            if (i := v.find(text)) is not None:
                v.ids[name] = i
        template(v, tok.get("post_processor"), path)
        if not {"bos", "eos", "unk"} <= v.ids.keys():
            raise ExportError(f"{path}: WordPiece without [UNK], [CLS] and [SEP] is not supported")
        v.ids["sep"] = v.ids["eos"]
        return v


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    keep = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in keep]
    return {b: chr(b) for b in keep} | {b: chr(256 + i) for i, b in enumerate(rest)}


def space_prefix(tok: dict[str, Any], path: Path) -> str:
    """How a SentencePiece-like tokenizer.json marks spaces.

    The words are those of tokenizer.attnc.space_prefix (tokenizer.h)."""
    pre, found = tok.get("pre_tokenizer"), ""
    for step in steps_of(tok.get("normalizer"), "normalizers"):
        if step == {"type": "Prepend", "prepend": SPACE} and not found:
            found = "prepend alone"
        elif step == {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}:
            found = "prepend" if found.startswith("prepend") else "replace"
        else:
            raise ExportError(f"{path}: normalizer {short(step)} is not supported")
    marked = found in ("prepend", "replace")
    kind = None if pre is None else pre.get("type")
    whole = kind == "Metaspace" and pre.get("replacement") == SPACE and pre.get("split") is False
    if whole and not found:
        scheme = pre.get("prepend_scheme", "always")
        if scheme not in ("first", "always", "never"):
            raise ExportError(f"{path}: prepend_scheme {short(scheme)} is not supported")
        return str(scheme)
    if kind is not None and not (marked and kind == "Split" and
                                 pre.get("pattern") == {"String": " "}):
        raise ExportError(f"{path}: pre_tokenizer {short(pre)} is not supported with byte_fallback")
    if not marked:
        raise ExportError(f"{path}: byte_fallback without the {SPACE} convention is not supported")
    return found


def set_space_prefix(v: Vocab, tok: dict[str, Any], path: Path) -> None:
    """Take over the scheme of a tokenizer.json.

    A note says where its decoder and ./run differ about the space at the start of a text."""
    v.space_prefix = space_prefix(tok, path)
    v.add_space_prefix = v.space_prefix in ("first", "always", "prepend")
    steps = steps_of(tok.get("decoder"), "decoders")
    strips = any(s.get("type") == "Strip" and s.get("start") or
                 s.get("type") == "Metaspace" and s.get("prepend_scheme") != "never" for s in steps)
    if steps and strips != v.add_space_prefix:
        does, adds = ("takes", "none") if strips else ("does not take", "one")
        v.notes.append(f"{path}: its decoder {does} a space off the start of a text; ./run goes "
                       f"by the encoder, which adds {adds}")


def spm_conventions(v: Vocab, tok: dict[str, Any], path: Path) -> None:
    """What the tokenizer.json beside a tokenizer.model adds to it."""
    if (tok.get("model") or {}).get("byte_fallback"):
        set_space_prefix(v, tok, path)
        for i, kind in enumerate(v.types):  # tokenizers knows symbols only as added tokens
            if kind == USER_DEFINED:
                v.put(i, v.tokens[i].replace(" ", SPACE), NORMAL, v.scores[i])
    add_tokens(v, tok.get("added_tokens"), path)
    v.add_bos = False
    template(v, tok.get("post_processor"), path)


def spm_from_bpe(v: Vocab, vocab: dict[str, int], merges: list[tuple[str, str]],
                 tok: dict[str, Any], path: Path) -> None:
    """SentencePiece in tokenizer.json's words.

    Its merges become scores where they say the same: all ways to make a piece are merges, and they
    stand together in the list. Else, without a space prefix, the merge list is kept."""
    set_space_prefix(v, tok, path)
    if v.ignore_merges:
        raise ExportError(f"{path}: ignore_merges with byte_fallback is not supported")
    added = {t.get("content"): t.get("special") for t in tok.get("added_tokens") or []}
    bytes_ = {f"<0x{b:02X}>" for b in range(256)}
    if bytes_ - vocab.keys():
        raise ExportError(f"{path}: byte_fallback, but "
                          f"{len(bytes_ - vocab.keys())} byte tokens are missing")
    rank: dict[str, int] = {}  # piece -> order of its merges
    grouped, count = True, {}
    last = None
    for a, b in merges:
        if a + b not in vocab:
            raise ExportError(f"{path}: merge {short((a, b))} makes no token")
        if a + b != last:
            grouped &= a + b not in rank
            rank.setdefault(a + b, len(rank))
            last = a + b
        count[last] = count.get(last, 0) + 1
    whole = {t for t, is_special in added.items() if is_special or t not in count}
    plain = [t for t in vocab if t not in bytes_ and t not in whole]
    complete = grouped and all(sum(t[:k] in vocab and t[k:] in vocab
                                   for k in range(1, len(t))) == count.get(t, 0) for t in plain)
    v.model = "llama"
    if not complete:
        mixed = any("\n" in t and t.strip("\n") for t in plain)
        if v.add_space_prefix or mixed:
            raise ExportError(f"{path}: these merges cannot be said as SentencePiece scores; give "
                              "its tokenizer.model")
        v.model, v.merges = "gemma4", [" ".join(m) for m in merges]
    for text, i in vocab.items():
        unk = text == tok["model"].get("unk_token")
        kind = UNKNOWN if unk else BYTE if text in bytes_ else NORMAL
        v.put(i, text, kind,
              -float(rank[text]) if text in rank else -1e6 if kind == NORMAL else 0.0)
    if tok["model"].get("unk_token") in vocab:
        v.ids["unk"] = vocab[tok["model"]["unk_token"]]


def template(v: Vocab, post: Any, path: Path) -> None:
    """BOS and EOS of a single text, from the post_processor."""
    for step in steps_of(post, "processors"):
        if step.get("type") == "ByteLevel":
            continue
        if step.get("type") in ("BertProcessing", "RobertaProcessing"):
            step = {"type": "TemplateProcessing", "single": [
                {"SpecialToken": {"id": step["cls"][0]}}, {"Sequence": {}},
                {"SpecialToken": {"id": step["sep"][0]}}]}
        if step.get("type") != "TemplateProcessing":
            raise ExportError(f"{path}: post_processor {short(step.get('type'))} is not supported")
        single = step.get("single") or []
        names = [p.get("SpecialToken", {}).get("id") if "Sequence" not in p else None
                 for p in single]
        if (names.count(None) != 1 or len(names) > 3 or names.index(None) > 1
                or len(names) - names.index(None) > 2):
            raise ExportError(f"{path}: post_processor template {short(single)} is not supported")
        for key, at in (("bos", 0), ("eos", -1)):
            if names[at] is not None:
                found = v.find(names[at])
                if found is None:
                    raise ExportError(f"{path}: post_processor adds an unknown token "
                                      f"{short(names[at])}")
                v.ids[key] = found
                setattr(v, "add_" + key, True)


def protobuf(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: bytes, or an unsigned number."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = varint() if key & 7 == 2 else {1: 8, 5: 4}[key & 7]
        if at + size > len(data):
            raise IndexError
        yield key >> 3, data[at:at + size]
        at += size


def spm_vocab(path: Path) -> Vocab:
    """tokenizer.model of SentencePiece (its BPE only)."""
    v = Vocab("llama", add_bos=True, add_space_prefix=True)
    kind, charsmap, escape = 1, b"", True
    try:
        for number, value in protobuf(path.read_bytes()):
            if number == 1:
                piece = dict(protobuf(value))
                v.put(len(v.tokens), piece[1].decode("utf-8"), piece.get(3, NORMAL),
                      struct.unpack("<f", piece.get(2, b"\0\0\0\0"))[0])
            elif number == 2:
                kind = dict(protobuf(value)).get(3, 1)
            elif number == 3:
                norm = dict(protobuf(value))
                charsmap, escape = norm.get(2, b""), bool(norm.get(5, 1))
                v.add_space_prefix = bool(norm.get(3, 1))
                if norm.get(4, 1):
                    v.notes.append("SentencePiece would drop extra spaces here; ./run keeps them, "
                                   "as transformers does")
    except (IndexError, KeyError, ValueError, TypeError, struct.error) as e:
        raise ExportError(f"{path}: not a SentencePiece model") from e
    if kind != 2:
        name = {1: "Unigram", 3: "word", 4: "character"}.get(kind, kind)
        raise ExportError(f"{path}: SentencePiece {name} tokenizers are not supported (only BPE)")
    if charsmap or not escape:
        raise ExportError(f"{path}: SentencePiece normalisation other than "
                          "identity is not supported")
    if not v.tokens or any(not UNKNOWN - 1 <= t <= BYTE for t in v.types):
        raise ExportError(f"{path}: not a SentencePiece model")
    for i, kind in enumerate(v.types):
        if kind == UNKNOWN:
            v.ids["unk"] = i
        elif kind == CONTROL and v.tokens[i] in ("<s>", "<bos>", "</s>", "<eos>"):
            v.ids["bos" if v.tokens[i] in ("<s>", "<bos>") else "eos"] = i
        elif kind == USER_DEFINED:
            v.tokens[i] = v.tokens[i].replace(SPACE, " ")
    return v


def llama2c_vocab(path: Path, n_vocab: int) -> Vocab:
    """llama2.c's tokenizer.bin.

    The longest length, then of each token a score, a length and the bytes."""
    data, at, v = path.read_bytes(), 4, Vocab("llama", add_bos=True, add_space_prefix=True)
    try:
        while at < len(data):
            score, n = struct.unpack_from("<fi", data, at)
            text = data[at + 8:at + 8 + n].decode("utf-8")
            if n < 0 or at + 8 + n > len(data):
                raise ValueError
            at += 8 + n
            i = len(v.tokens)
            is_byte = re.fullmatch("<0x[0-9A-F]{2}>", text)
            kind = UNKNOWN if i == 0 else CONTROL if i < 3 else BYTE if is_byte else NORMAL
            v.put(i, text.strip("\n") if i < 3 else text.replace(" ", SPACE), kind, score)
    except (ValueError, struct.error) as e:
        raise ExportError(f"{path}: not a llama2.c tokenizer") from e
    if len(v.tokens) != n_vocab or v.tokens[1:3] != ["<s>", "</s>"]:
        raise ExportError(f"{path}: has {len(v.tokens)} tokens, want the model's {n_vocab} with "
                          "<s> and </s> as 1 and 2")
    v.ids = {"unk": 0, "bos": 1, "eos": 2}
    return v


class PlainUnpickler(pickle.Unpickler):
    """Admits what needs no class: dict, list, str, int."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("persistent object")


def char_vocab(path: Path) -> Vocab:
    """nanoGPT's meta.pkl: one token per character.

    They become SentencePiece pieces of one character, which never merge."""
    try:
        with open(path, "rb") as f:
            meta = PlainUnpickler(f).load()
        itos = meta["itos"]
        pairs = sorted(itos.items() if isinstance(itos, dict) else enumerate(itos))
        ok = all(type(i) is int and isinstance(ch, str) and len(ch) == 1 for i, ch in pairs)
    except pickle.UnpicklingError as e:
        raise ExportError(f"{path}: refused: holds more than dict, str and int ({e})") from e
    except Exception as e:  # a pickle may fail in any way
        raise ExportError(f"{path}: not a nanoGPT meta.pkl: {type(e).__name__}") from e
    chars = [ch for _, ch in pairs]
    if not ok or [i for i, _ in pairs] != list(range(len(pairs))) or len(set(chars)) != len(chars):
        raise ExportError(f"{path}: itos is not a table of single characters")
    if " " in chars and SPACE in chars:
        raise ExportError(f"{path}: a vocabulary with both a space and U+2581 is not supported")
    v = Vocab("llama")
    for i, ch in pairs:
        v.put(i, SPACE if ch == " " else ch, NORMAL)
    return v


def merges_vocab(folder: Path) -> Vocab:
    """GPT-2's vocab.json and merges.txt."""
    vocab, path = read_json(folder / "vocab.json"), folder / "merges.txt"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as e:
        raise ExportError(f"{path}: {e}") from e
    merges = [line for line in lines if line and not line.startswith("#version")]
    added = [{"id": i, "content": t, "special": True}
             for t, i in vocab.items() if t == "<|endoftext|>"]
    v = bpe_vocab({"model": {"type": "BPE", "vocab": vocab, "merges": merges},
                   "added_tokens": added,
                   "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}, folder)
    if added:
        v.ids |= {"bos": added[0]["id"], "eos": added[0]["id"]}
    return v


def read_vocab(path: Path, folder: Path | None, n_vocab: int, c: Config,
               first: str = "tokenizer.model") -> Vocab:
    """The tokenizer at `path`, a file or the folder that holds one.

    `folder` is the model's, with its special tokens."""
    names = list(dict.fromkeys((first, "tokenizer.model", "tokenizer.json", "tokenizer.bin",
                                "meta.pkl", "vocab.json")))
    if path.is_dir():
        home, here = path, [n for n in names if (path / n).is_file()]
        if not here or (here == ["vocab.json"] and not (path / "merges.txt").is_file()):
            raise ExportError(f"{path}: no tokenizer ({', '.join(names)} with merges.txt) there; "
                              "give --tokenizer PATH")
        if here[:2] == ["tokenizer.model", "tokenizer.json"] and \
                not (read_json(path / "tokenizer.json").get("model") or {}).get("byte_fallback"):
            here.pop(0)  # left over beside a byte-level tokenizer
        path = path / here[0]
    else:
        home = path.parent
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    if path.name.endswith(".model"):
        v = spm_vocab(path)
        beside = home / "tokenizer.json"
        if beside.is_file():
            with known_json(beside):
                spm_conventions(v, read_json(beside), beside)
    elif path.name in ("vocab.json", "merges.txt"):
        v = merges_vocab(home)
    elif path.name.endswith(".bin"):
        v = llama2c_vocab(path, n_vocab)
    elif path.name.endswith(".pkl"):
        v = char_vocab(path)
    else:
        tok = read_json(path)
        v = (wordpiece_vocab if is_wordpiece(tok) else bpe_vocab)(tok, path)
    if path.suffix in (".json", ".model"):
        by_template = (home / "tokenizer.json").is_file()
        special_tokens(v, home, folder or home, c, n_vocab, by_template)
    v.fit(n_vocab, path)
    return v


def known_ids(value: Any, n_vocab: int, what: str, notes: list[str]) -> list[int]:
    """A token id, a list of them or None.

    Those that the model does not have are left out with a note."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if any(type(i) is not int for i in ids):
        raise ExportError(f"{what}: got {short(value)}, want a token id or a list of them")
    known = [i for i in ids if 0 <= i < n_vocab]
    for i in ids:
        if i not in known:
            notes.append(f"{what}: {i} is left out, the model has {n_vocab} tokens")
    return known


def content_of(token: Any) -> Any:
    """A special token's text, which may stand in an object with its flags."""
    return token.get("content") if isinstance(token, dict) else token


def later_added(v: Vocab, home: Path, tc: dict[str, Any], sm: dict[str, Any], n_vocab: int,
                by_template: bool) -> None:
    """Added tokens of tokenizer_config.json and added_tokens.json that are not known by now.

    Where there is a tokenizer.json, what it says of a token goes first."""
    path, beside = home / "tokenizer_config.json", home / "added_tokens.json"
    named: set[str] = set()
    for key, value in [*sm.items(), *tc.items()]:
        if re.search("_tokens?$", key):
            texts = map(content_of, value if isinstance(value, list) else [value])
            named |= {t for t in texts if isinstance(t, str)}
    with known_json(path):
        more = [{"id": int(i), **t} for i, t in (tc.get("added_tokens_decoder") or {}).items()]
        have = {t["content"] for t in more}
        more += [{"id": i, "content": text, "special": text in named} for text, i in
                 (read_json(beside) if beside.is_file() else {}).items() if text not in have]
        where = {text: i for i, text in enumerate(v.tokens)}
        parsed = {text for text, kind in zip(v.tokens, v.types) if kind in (CONTROL, USER_DEFINED)}
        more = [t | {"id": where.get(t["content"], t["id"])} for t in more
                if not (by_template and t["content"] in parsed)]
        for t in more:
            known_ids(t["id"], n_vocab, f"added token {short(t['content'])}", v.notes)
        add_tokens(v, [t for t in more if 0 <= t["id"] < n_vocab], path)


def chat_templates(home: Path, folder: Path, tc: dict[str, Any]) -> dict[str, str]:
    """As transformers finds them: files beside the tokenizer (or else the model), or else what
    tokenizer_config.json has, a text or a list of named ones. "default" is the usual one."""
    found: dict[str, Any] = {}
    for base in (home, folder):
        usual, more = base / "chat_template.jinja", base / "additional_chat_templates"
        files = {"": usual} if usual.is_file() else {}
        files |= {path.stem: path for path in sorted(more.glob("*.jinja"))}
        for name, path in files.items() if not found else ():
            try:
                found[name] = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as e:
                raise ExportError(f"{path}: not readable as UTF-8: {e}") from e
    path, value = home / "tokenizer_config.json", tc.get("chat_template")
    if not found and isinstance(value, list):
        with known_json(path):
            found = {str(t["name"]): t["template"] for t in value}
    elif not found and value is not None:
        found = {"": value}
    if "default" in found:
        found[""] = found.pop("default")
    for name, text in found.items():
        if not isinstance(text, str):
            raise ExportError(f"{path}: chat_template: got {short(text)}, want a text")
        try:
            (name + text).encode()
        except UnicodeEncodeError as e:
            raise ExportError(f"{path}: chat_template is not valid Unicode") from e
    return found


def special_tokens(v: Vocab, home: Path, folder: Path, c: Config, n_vocab: int,
                   by_template: bool) -> None:
    """BOS, EOS and the like from tokenizer_config.json and its neighbours.

    Where several tokens end a text, v.ends has them all, and eot and eom the next two, which other
    engines know."""
    def optional(base: Path, name: str) -> dict[str, Any]:
        return read_json(base / name) if (base / name).is_file() else {}

    tc, sm = optional(home, "tokenizer_config.json"), optional(home, "special_tokens_map.json")
    gc, normalized = optional(folder, "generation_config.json"), set(v.normalized)
    later_added(v, home, tc, sm, n_vocab, by_template)
    if not by_template:
        v.normalized = normalized  # transformers cuts these out of the raw text
        if v.model == "llama" and v.add_space_prefix:  # as it converts a tokenizer.model
            hf_tokens = isinstance(tc.get("added_tokens_decoder"), dict)
            v.space_prefix = "prepend" if hf_tokens else ""
            v.space_prefix = "first" if tc.get("legacy") is False else v.space_prefix
    configured = {}
    for name in ("bos", "eos"):
        key = f"{name}_token_id"
        base = "generation_config.json" if key in gc else "config.json"
        value = gc[key] if key in gc else c.get(key)
        configured[name] = known_ids(value, n_vocab, f"{base}: {key}", v.notes)
    for name in ("bos", "eos", "unk", "pad"):
        text = content_of(tc.get(f"{name}_token", sm.get(f"{name}_token")))
        found = v.find(text) if isinstance(text, str) else None
        if found is None and text:
            v.notes.append(f"{name}_token {short(text)} is left out, the tokenizer has none")
        if found is None and configured.get(name):
            found = configured[name][0]
        # a template's own goes first
        if found is not None and not (name in v.ids and getattr(v, f"add_{name}", False)):
            v.ids[name] = found
    ends = [v.ids["eos"]] if "eos" in v.ids else []
    ends = list(dict.fromkeys(ends + configured["eos"]))
    v.ids |= dict(zip(("eos", "eot", "eom"), ends))
    v.ends = ends if len(ends) > 1 else []
    for name in ("bos", "eos"):
        if not by_template and isinstance(tc.get(f"add_{name}_token"), bool):
            setattr(v, f"add_{name}", tc[f"add_{name}_token"])
    v.add_bos &= "bos" in v.ids
    v.add_eos &= "eos" in v.ids
    v.chat_templates = chat_templates(home, folder, tc)
