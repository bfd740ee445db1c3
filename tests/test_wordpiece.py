"""BERT's tokenizer against Hugging Face tokenizers: no difference on any of the texts."""
import random

import pytest
from tokenizers import Tokenizer, decoders

import gguf_files
import test_tokenizers as t
from encoders import SPECIAL, wordpiece
from test_tokenizers import drive  # noqa: F401: a fixture

# (lower case, strip accents): None is what BertNormalizer takes where it is not said
NEWER = "\u1c8a\u0264\U00010d70\U00010d85"  # whose capitals this Python does not know
KINDS = {"uncased": (True, None), "cased": (False, None), "accents": (True, False),
         "stripped": (False, True)}


def train(lowercase, strip_accents):
    # with U+2581 in it files would not say which pieces begin words
    corpus = [x.replace("\u2581", "") for x in t.corpus()] + [" ".join(NEWER)] * 99
    tok = wordpiece(corpus, lowercase, strip_accents, vocab_size=6000, limit_alphabet=1500)
    tok.decoder = decoders.WordPiece()
    return tok


def phantom(piece):
    """A piece as llama.cpp's converter writes it."""
    return piece if piece in SPECIAL else piece[2:] if piece[:2] == "##" else "\u2581" + piece


def write(path, tok, **keys):
    pieces = [tok.id_to_token(i) for i in range(tok.get_vocab_size())]
    ids = {name: tok.token_to_id(f"[{name.upper()}]") for name in ("cls", "sep", "unk", "mask")}
    return t.write_gguf(
        path, arch="bert", model="bert", tokens=[phantom(p) for p in pieces],
        types=[t.CONTROL if p in SPECIAL else t.NORMAL for p in pieces],
        ggml__cls_token_id=ids["cls"], ggml__seperator_token_id=ids["sep"],
        ggml__unknown_token_id=ids["unk"], ggml__mask_token_id=ids["mask"],
        ggml__token_type_count=2, **keys)


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request, tmp_path_factory):
    """A tokenizer, and the same as a file."""
    lowercase, strip = KINDS[request.param]
    tok = train(lowercase, strip)
    keys = {} if lowercase else {"ggml__normalizer__lowercase": False}
    if strip is not None:
        keys["ggml__normalizer__strip_accents"] = strip
    return tok, write(tmp_path_factory.mktemp("wordpiece") / f"{request.param}.gguf", tok, **keys)


def hard_texts():
    rng = random.Random(5)
    assigned = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    return [*t.TEXTS, *("".join(map(chr, rng.choices(assigned, k=40))) for _ in range(100)),
            *(" ".join(map(chr, assigned[i:i + 256])) for i in range(0, 0x20000, 256)),
            "\u1c89 \ua7cb \U00010d50 \U00010d65 " + NEWER, "a" * 99, "a" * 100, "a" * 101,
            "é" * 100, "e\u0301" * 60, "中文字a中b", "don't [MASK] x",
            "ΑΣ ΣΑΣ İ ẞ ǅ", "x" * 5000 + " y"]


def test_same_ids(kind, drive):
    """With the tokens around the text, and without."""
    tok, path = kind
    texts = hard_texts()
    # added tokens in a text are only read where they are wanted
    plain = Tokenizer.from_str(tok.to_str())
    plain.encode_special_tokens = True
    for flags, around in ((0, False), (t.BOS | t.EOS, True)):
        want = [e.ids for e in plain.encode_batch(texts, add_special_tokens=around)]
        got = [g["ids"] for g in t.encode(drive, path, texts, flags)]
        t.differences(texts, got, want)
    texts = ["a [MASK] b", "[CLS][SEP]", "the [MASK].", "[mask]"]
    got = [g["ids"] for g in t.encode(drive, path, texts, t.SPECIAL)]
    t.differences(texts, got, [tok.encode(x, add_special_tokens=False).ids for x in texts])


def test_decoded(kind, drive):
    """Words come back with one space before each."""
    tok, path = kind
    texts = ["hello world", "playing games"]
    for text, got in zip(texts, t.encode(drive, path, texts)):
        assert bytes.fromhex(got["bytes"]).decode() == text


def test_time(kind, drive):
    """Linear in the text: words that no piece begins, that one does, and one endless word."""
    _, path = kind
    for unit in ("\u1234\u1235", "ab" * 50 + " ", "a"):
        seconds = [drive(["--time", path, 0], [unit * (n // len(unit))])[0]["second"]
                   for n in (100_000, 1_000_000)]
        assert seconds[1] < 30 * max(seconds[0], 0.005), (unit, seconds)


def test_refused(kind, drive, tmp_path):
    """Special tokens that are not there."""
    tok, _ = kind
    bad = write(tmp_path / "bad.gguf", tok, ggml__bos_token_id=60000)
    assert "bos_token_id" in drive([bad, 0], ["a"], fail=3)
    few = gguf_files.write(tmp_path / "few.gguf", "bert", {
        "tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": ["\u2581a", "b"]})
    got = t.encode(drive, few, ["ab a c", ""], t.BOS | t.EOS)
    assert [g["ids"] for g in got] == [[0, 1, 0], []]
