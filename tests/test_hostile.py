"""Model files that are cut, damaged, foreign or lying.

The answer is one line and the right exit status, never a crash or a hang. Most images go through
tests/hostile_driver.c, which runs thousands in one process and, under the sanitizers, sees reads
beyond a file that a map would hide; a sample goes through ./run itself."""
from __future__ import annotations

import math
import random
import os
import re
import resource
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from command import TIMEOUT, check_line, error_in, error_of, run, text_of
from conftest import ROOT
from fuzz_corpus import FAMILIES, XIELU, model
from gguf_files import (ARR, BOOL, F32, F64, I8, I32, I64, STR, U8, U32, U64, Image, Tensor,
                        byte_level, smallest, smallest_experts, text, write_tiny)

SMALLEST = smallest()

# What an error about a model file says after the file's name: the thing and what is wrong with it.
THING = (r"(key|tensor|layer|metadata|magic|version|byte order|rope|general\.architecture|"
         r"tokenizer\.ggml\.tokens)( .*)?: ")
SAID = re.compile(THING + r"(got .+, (want .+|which is (none that we know|not supported))"
                  r"|missing(, want .+|; .+| \(a vocabulary-only file\?\))|appears twice"
                  r"|the architecture [\w-]+ has no place for it|.+ are not supported yet)"
                  r"|got an empty file, want a GGUF model"
                  r"|got a negative epsilon, soft cap, clamp or ALiBi bias, want none below 0")
# That of a file in order whose numbers, or whose vocabulary, do not suit the prompt.
NOT_FINITE = re.compile(r"position \d+ \(token \d+\): the (embeddings|results of layer \d+|logits) "
                        r"are not finite \(NaN or infinity\), as with damaged weights")


def check_said(code: int, line: str, path: str | Path) -> str:
    """The whole form of an error by its exit status; returns what follows the file's name."""
    check_line(line)
    if code == 1:
        assert NOT_FINITE.fullmatch(line), line
    if code != 3:
        return line
    assert line.startswith(f"{path}: "), line
    said = line[len(f"{path}: "):]
    assert SAID.fullmatch(said), said
    return said


@pytest.fixture(scope="module", params=["plain", "sanitize"])
def many(
        request: pytest.FixtureRequest, driver,
        tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[bytes]], list[tuple[int, str]]]:
    """many(images) -> (exit status, error line without the file's name) of each."""
    exe = (driver("hostile_driver")
           if request.param == "plain" else ROOT / "build-sanitize" / "hostile_driver")
    assert exe.exists(), "make sanitize-test first"
    path = str(tmp_path_factory.mktemp("hostile") / "model.gguf")

    def check(images: list[bytes]) -> list[tuple[int, str]]:
        data = b"".join(struct.pack("<I", len(i)) + i for i in images)
        done = subprocess.run([exe, path], input=data, capture_output=True, timeout=5 * TIMEOUT)
        lines = done.stdout.decode().split("\n")
        assert done.returncode == 0, (f"image {len(lines) - 1} of {len(images)}: "
                                      f"{done.stderr.decode()[:3000]}")
        assert lines.pop() == "" and len(lines) == len(images)
        out = []
        for line in lines:
            code, said = line.split(" ", 1)
            out.append((int(code), check_said(int(code), said, path) if code != "0" else said))
        return out

    return check


def write(tmp_path: Path, image: bytes, name: str = "m.gguf") -> Path:
    path = tmp_path / name
    path.write_bytes(image)
    return path


# ---- files that work -----------------------------------------------------------------------------


def test_smallest_models_work(many, run_bin: Path, tmp_path: Path) -> None:
    """What the other tests damage is in order, under version 2 of GGUF too.

    It is small enough to be cut at every length."""
    second = SMALLEST.copy()
    second.version = 2
    assert many([SMALLEST.build(), byte_level().build(), second.build()]) == [(0, "")] * 3
    families = [model(*family).build() for family in FAMILIES]  # what fuzz_gguf.c begins with
    assert many(families) == [(0, "")] * len(families)
    assert len(SMALLEST.build()) < 3000
    assert text_of(run_bin, write(tmp_path, SMALLEST.build()), "-i", "ab", "-n", "4", "--temp", "0")


def test_alignment(many) -> None:
    """Any power of two may be the alignment; with 1 the floats lie at odd addresses."""
    images = []
    for alignment in (1, 2, 8, 64, 4096):
        m = SMALLEST.copy().set("general.alignment", U32, alignment)
        m.alignment = alignment
        for pad in range(4 if alignment == 1 else 1):
            images.append(m.copy().set("general.name", STR, "x" * pad).build())
    assert many(images) == [(0, "")] * len(images)


# ---- cut and flipped -----------------------------------------------------------------------------


def test_every_truncation(many) -> None:
    for image in (SMALLEST.build(), byte_level().build()):
        for n, (code, line) in enumerate(many([image[:n] for n in range(len(image))])):
            assert code == 3, (n, line)
            assert n == 0 or n < 4 or "truncated" in line or "items" in line, (n, line)


def test_truncations_through_run(any_run: Path, tmp_path: Path) -> None:
    image = SMALLEST.build()
    for n in range(0, len(image), 37):
        path = write(tmp_path, image[:n])
        check_said(3, error_of(any_run, path, "-i", "a", code=3), path)


def mutations(image: bytes, header: int) -> list[bytes]:
    """Damaged copies of an image, whose first `header` bytes are its header.

    Every byte of the header set to five other values, and 1,500 images with up to four random bytes
    anywhere in it."""
    rng = random.Random(1)
    out = []
    for at in range(header):
        for v in {0, 0xFF, image[at] ^ 1, image[at] ^ 0x80, (image[at] + 1) & 0xFF} - {image[at]}:
            out.append(image[:at] + bytes([v]) + image[at + 1:])
    for _ in range(1500):
        damaged = bytearray(image)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(header)] = rng.randrange(256)
        out.append(bytes(damaged))
    return out


@pytest.mark.parametrize("model", [SMALLEST, byte_level()], ids=["spm", "bpe"])
def test_flipped_bytes(many, model: Image) -> None:
    images = mutations(model.build(), len(model.header()))
    assert len(images) > 4000
    codes = [code for code, _ in many(images)]
    # 1: logits that are not finite; 2: nothing of the prompt is in the vocabulary
    assert set(codes) <= {0, 1, 2, 3}
    # most damage is seen; a token's text may be anything
    assert codes.count(3) > len(codes) / 2 and codes.count(0) > 100


def test_flipped_bytes_through_run(any_run: Path, tmp_path: Path) -> None:
    images = mutations(SMALLEST.build(), len(SMALLEST.header()))
    for image in random.Random(2).sample(images, 210):
        path = write(tmp_path, image)
        done = run(any_run, path, "-i", "ab", "-n", "2")
        assert done.returncode in (0, 1, 2, 3), done
        if done.returncode:
            check_said(done.returncode, error_in(done, done.returncode), path)
        else:
            assert done.stderr == b""


def test_flipped_weights(many) -> None:
    """NaN, infinities and huge numbers as weights are odd models, not bad files."""
    images = []
    for v in (math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45):
        for name, t in SMALLEST.tensors.items():
            m = SMALLEST.copy()
            m.tensors[name].data = struct.pack("<f", v) * (len(t.data) // 4)
            images.append(m.build())
    for code, line in many(images):
        assert code == 0 or (code == 1 and "finite" in line), line


# ---- lies ----------------------------------------------------------------------------------------


def key(name: str, kind: int, v: object) -> Image:
    return SMALLEST.copy().set(name, kind, v)


def tensor(name: str, **changes: object) -> Image:
    m = SMALLEST.copy()
    for field, v in changes.items():
        setattr(m.tensors[name], field, v)
    return m


def header(**changes: object) -> Image:
    m = SMALLEST.copy()
    for field, v in changes.items():
        setattr(m, field, v)
    return m


EXPERTS = smallest_experts()
GEMMA4, GEMMA4_EXPERTS = (model(*f) for f in FAMILIES if f[0] == "gemma4")
GPT_OSS = model(*next(f for f in FAMILIES if f[0] == "gpt-oss"))
LFM2 = model(*next(f for f in FAMILIES if f[0] == "lfm2"))
LFM2_MOE = model(*next(f for f in FAMILIES if f[0] == "lfm2moe"))
BERT, MODERN = (model(*next(f for f in FAMILIES if f[0] == name))
                for name in ("bert", "modern-bert"))
QWEN35, QWEN35_MOE, HYBRID = (model(*next(f for f in FAMILIES if f[0] == name))
                              for name in ("qwen35", "qwen35moe", "granitehybrid"))
GATED, MAMBA = (model(*next(f for f in FAMILIES if name in f[1]))
                for name in ("attention.output_gate", "mamba.layers"))
TAPS, CONV = "lfm2.shortconv.l_cache", "blk.0.shortconv.conv.weight"
DEEPSEEK, OLD_DEEPSEEK = (model(*f) for f in FAMILIES if f[0] == "deepseek2")
LATENT = model(*next(f for f in FAMILIES if f[0] == "gpt" and "attention.kv_lora_rank" in f[1]))
DENSE = {f[0]: f for f in FAMILIES if f[0] in ("apertus", "cohere2", "mistral3", "seed_oss")}


def dense(arch: str, name: str, kind: int, v: object) -> Image:
    return model(*DENSE[arch]).set(name, kind, v)


def expert(name: str, kind: int, v: object) -> Image:
    return EXPERTS.copy().set(f"llama.expert_{name}", kind, v)


def latent(name: str, kind: int, v: object) -> Image:
    return DEEPSEEK.copy().set(f"deepseek2.{name}", kind, v)


def raw_key(name: str, body: bytes) -> Image:
    m = SMALLEST.copy()
    m.keys[name] = body
    return m


Q, UP, EMBD = "blk.0.attn_q.weight", "blk.0.ffn_up.weight", "token_embd.weight"
HEADS, KV, ROPE = ("llama.attention.head_count", "llama.attention.head_count_kv",
                   "llama.rope.dimension_count")
EPS, TOKENS = "llama.attention.layer_norm_rms_epsilon", "tokenizer.ggml.tokens"

LIES: dict[str, tuple[Image | bytes, str]] = {
    # counts, lengths, numbers of the container
    "magic": (header(magic=b"GGML"), 'magic: got "GGML", want "GGUF"'),
    "magic of zeros": (header(magic=bytes(4)), r'magic: got "\x00\x00\x00\x00"'),
    "big-endian": (header(version=0x03000000), "big-endian"),
    "version 1": (header(version=1), "version: got 1, want 2 or 3"),
    "version 4": (header(version=4), "version: got 4, want 2 or 3"),
    "2^63 tensors": (header(n_tensors=2**63), "tensor count: got 9223372036854775808"),
    "2^63 keys": (header(n_keys=2**63), "metadata count: got 9223372036854775808"),
    "one tensor too many": (header(n_tensors=len(SMALLEST.tensors) + 1), "tensor"),
    "one key too many": (header(n_keys=len(SMALLEST.keys) + 1), "tensor name: got a text of"),
    "one key too few": (header(n_keys=len(SMALLEST.keys) - 1),
                        "tensor tokenizer.ggml.token_type: got"),
    "name of 2^64-1 bytes": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**64 - 1) + bytes(64),
                             "got a text of 18446744073709551615 bytes"),
    "value type 13": (raw_key("x", struct.pack("<I", 13) + bytes(8)),
                      "key x: got value type 13, want 0 to 12"),
    "array of arrays": (raw_key("x", struct.pack("<IIQ", ARR, ARR, 1) + bytes(16)),
                        "an array of arrays"),
    "array of 2^61 strings": (raw_key("x", struct.pack("<IIQ", ARR, STR, 2**61)),
                              "key x: got 2305843009213693952 items"),
    "array of 2^61 doubles": (raw_key("x", struct.pack("<IIQ", ARR, F64, 2**61)),
                              "key x: got 2305843009213693952 items"),
    "text of 2^64-8 bytes": (raw_key("x", struct.pack("<IQ", STR, 2**64 - 8)),
                             "key x: got a text of 18446744073709551608 bytes"),
    "alignment 0": (key("general.alignment", U32, 0),
                    "general.alignment: got 0, want a power of two"),
    "alignment 24": (key("general.alignment", U32, 24), "general.alignment: got 24"),
    "alignment 2^31": (key("general.alignment", U32, 2**31), "general.alignment"),
    "alignment NaN": (key("general.alignment", F32, math.nan), "general.alignment: got nan"),
    "alignment 1.5": (key("general.alignment", F32, 1.5), "general.alignment: got 1.5"),
    "alignment as text": (key("general.alignment", STR, "32"), "general.alignment"),
    # tensors
    "no dimensions": (tensor(Q, dims=[]), "attn_q.weight: got 0 dimensions, want 1 to 4"),
    "5 dimensions": (tensor(Q, dims=[4, 4, 1, 1, 1]), "got 5 dimensions"),
    "2^32-1 dimensions": (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t")
                          + struct.pack("<I", 2**32 - 1) + bytes(64), "got 4294967295 dimensions"),
    "a zero dimension": (tensor(Q, dims=[4, 0]), "got a dimension of 0"),
    "a dimension of 2^31": (tensor(Q, dims=[2**31, 4]), "got a dimension of 2147483648"),
    "a dimension of 2^64-1": (tensor(Q, dims=[4, 2**64 - 1]),
                              "got a dimension of 18446744073709551615"),
    "a product of 2^92": (tensor(Q, dims=[2**31 - 1, 2**31 - 1, 2**30]), "attn_q.weight: got"),
    "a size of 2^63": (tensor(Q, dims=[2**31 - 1, 2**30]), "attn_q.weight: got"),
    "4 dimensions of 2^31-1": (tensor(Q, dims=[2**31 - 1] * 4), "attn_q.weight: got"),
    "type 4": (tensor(Q, kind=4), "attn_q.weight: got type number 4"),
    "type 2^32-1": (tensor(Q, kind=2**32 - 1), "got type number 4294967295"),
    "a type that we cannot read": (tensor(Q, kind=26),
                                   "attn_q.weight: got type I32, which is not supported"),
    "a ternary type": (tensor(Q, dims=[256, 1], kind=34, data=bytes(54)), "attn_q.weight: got"),
    "half a block of a grid": (
        tensor(Q, dims=[128, 1], kind=22, data=bytes(82)),
        "attn_q.weight: got a width of 128, want a multiple of 256 for type IQ2_S"),
    "half a block of MXFP4": (
        tensor(Q, dims=[16, 1], kind=39, data=bytes(17)),
        "attn_q.weight: got a width of 16, want a multiple of 32 for type MXFP4"),
    "a grid's block cut off": (tensor(Q, dims=[256, 1], kind=29, data=bytes(8), offset=0),
                               "attn_q.weight: got"),
    "width 4 of blocks": (tensor(Q, kind=8),
                          "attn_q.weight: got a width of 4, want a multiple of 32 for type Q8_0"),
    "odd offset": (tensor(Q, offset=1), "attn_q.weight: got offset 1, want a multiple of 32"),
    "offset after the file": (tensor(Q, offset=1 << 20),
                               "attn_q.weight: got 64 bytes at offset 1048576"),
    "offset of 2^64-32": (tensor(Q, offset=2**64 - 32),
                          "attn_q.weight: got 64 bytes at offset 18446744073709551584"),
    "last byte missing": (SMALLEST.build()[:-1], "a truncated file?"),
    "wrong shape": (tensor(Q, dims=[4, 3]),
                    "tensor blk.0.attn_q.weight: got shape (3, 4), want (4, 4)"),
    "transposed": (tensor("blk.0.attn_k.weight", dims=[2, 4]),
                   "attn_k.weight: got shape (4, 2), want (2, 4)"),
    "three dimensions, the last 1": (tensor(Q, dims=[1, 4, 4]),
                                     "attn_q.weight: got shape (4, 4, 1), want (4, 4)"),
    "three dimensions": (tensor(Q, dims=[4, 1, 4]),
                         "attn_q.weight: got shape (4, 1, 4), want (4, 4)"),
    "a vector too long": (tensor("output_norm.weight", dims=[5], data=bytes(20)),
                          "output_norm.weight: got shape (5), want (4)"),
    "missing tensor": (SMALLEST.copy().drop(UP),
                       "tensor blk.0.ffn_up.weight: missing, want shape (4, 4)"),
    "missing norm": (SMALLEST.copy().drop("output_norm.weight"),
                     "tensor output_norm.weight: missing, want shape (4)"),
    "missing embedding": (SMALLEST.copy().drop(EMBD), "token_embd.weight: missing"),
    "extra tensor": (SMALLEST.copy().tensor("blk.0.extra.weight", 4),
                     "tensor blk.0.extra.weight: the architecture llama has no place for it"),
    "extra layer": (SMALLEST.copy().tensor("blk.1.attn_norm.weight", 4),
                    "tensor blk.1.attn_norm.weight: the architecture llama has no place"),
    "escapes in a name": (header(more_tensors=[("\x1b[31m\n\"x", Tensor([1], 0, bytes(4)))]),
                          r"tensor \x1b[31m\x0a\x22x: the architecture llama has no place"),
    "invalid UTF-8 in a name": (header(more_tensors=[(b"\xff\xfe", Tensor([1], 0, bytes(4)))]),
                                r"tensor \xff\xfe: the architecture llama has no place"),
    "a name of 1000 letters": (header(more_tensors=[("x" * 1000, Tensor([1], 0, bytes(4)))]),
                               "xxx...: the architecture llama has no place"),
    "a tensor twice": (header(more_tensors=[(Q, SMALLEST.tensors[Q])]),
                       "tensor blk.0.attn_q.weight: appears twice"),
    "a key twice": (header(more_keys=[(HEADS, SMALLEST.keys[HEADS])]),
                    "key llama.attention.head_count: appears twice"),
    "an empty header": (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "general.architecture: missing"),
    # hyperparameters
    "no architecture": (SMALLEST.copy().drop("general.architecture"),
                        "general.architecture: missing"),
    "an unknown architecture": (key("general.architecture", STR, "mamba\n2"),
                                r'got "mamba\x0a2", want one of: llama, '),
    "architecture as number": (key("general.architecture", U32, 3),
                               "general.architecture: got a value of type 4, want a text"),
    **{f"missing {name}": (SMALLEST.copy().drop(f"llama.{name}"), f"key llama.{name}: missing")
       for name in ("embedding_length", "block_count", "context_length", "feed_forward_length",
                    "attention.head_count", "attention.layer_norm_rms_epsilon")},
    "dim 0": (key("llama.embedding_length", U32, 0), "embedding_length: got 0, want 1 to"),
    "dim 2^31": (key("llama.embedding_length", U32, 2**31), "embedding_length: got 2147483648"),
    "dim 3": (key("llama.embedding_length", U32, 3),
              "token_embd.weight: got shape (7, 4), want (at most"),
    "dim -4": (key("llama.embedding_length", I32, -4), "embedding_length: got -4"),
    "dim 4.0": (key("llama.embedding_length", F32, 4),
                "embedding_length: got a value of type 6, want an integer"),
    "dim 2^40": (key("llama.embedding_length", U64, 2**40), "embedding_length: got 1099511627776"),
    "layers 0": (key("llama.block_count", U32, 0), "block_count: got 0"),
    "layers 2": (key("llama.block_count", U32, 2), "tensor blk.1.attn_norm.weight: missing"),
    "layers 4096": (key("llama.block_count", U32, 4096), "tensor blk.1.attn_norm.weight: missing"),
    "layers 2^31": (key("llama.block_count", U32, 2**31), "block_count: got 2147483648"),
    "layers 2^32-1": (key("llama.block_count", U32, 2**32 - 1), "block_count: got 4294967295"),
    "context 0": (key("llama.context_length", U32, 0), "context_length: got 0"),
    "context 2^31": (key("llama.context_length", U32, 2**31), "context_length: got 2147483648"),
    "heads 0": (key(HEADS, U32, 0), "head_count: got 0 for layer 0, want an integer from 1"),
    "heads 3": (key(HEADS, U32, 3), "missing, want an integer"),
    "heads 2^31": (key(HEADS, U32, 2**31), "head_count: got"),
    "heads 2.5": (key(HEADS, F32, 2.5), "head_count: got 2.5"),
    "heads NaN": (key(HEADS, F32, math.nan), "head_count: got NaN"),
    "heads inf": (key(HEADS, F64, math.inf), "head_count: got inf"),
    "heads as text": (key(HEADS, STR, "2"), "head_count: got"),
    "heads of 2 layers": (SMALLEST.copy().array(HEADS, U32, [2, 2]),
                          "head_count: got 2 items, want a number or an array of 1"),
    "heads of no layer": (SMALLEST.copy().array(HEADS, U32, []), "head_count: got 0 items"),
    "kv heads 0": (key(KV, U32, 0), "head_count_kv: got 0"),
    "kv heads 3": (key(KV, U32, 3), "got 2 heads over 3 key/value heads, want a multiple"),
    "rope 1": (key(ROPE, U32, 1), "rope.dimension_count: got 1"),
    "rope 0": (key(ROPE, U32, 0), "rope.dimension_count: got 0"),
    "rope 3 of 2": (key(ROPE, U32, 3), "rope.dimension_count: got 3, want 2 to 2"),
    "rope 4 of 2": (key(ROPE, U32, 4), "rope.dimension_count: got 4, want 2 to 2"),
    "odd rope": (key(ROPE, U32, 3).set("llama.attention.key_length", U32, 4)
                 .tensor(Q, 8, 4).tensor("blk.0.attn_k.weight", 4, 4),
                 "rope.dimension_count: got 3, want an even number"),
    "rope base 0": (key("llama.rope.freq_base", F32, 0), "rope: got base 0"),
    "rope base NaN": (key("llama.rope.freq_base", F32, math.nan),
                      "rope.freq_base: got nan, want a finite number"),
    "rope factor -2": (key("llama.rope.scaling.type", STR, "linear")
                       .set("llama.rope.scaling.factor", F32, -2), "factor -2"),
    "rope scaling dynamic": (key("llama.rope.scaling.type", STR, "dynamic"),
                             'rope.scaling.type: got "dynamic", want one of none, linear'),
    # replaced below
    "rope factors 0": (SMALLEST.copy().tensor("rope_freqs.weight", 1, std=0).copy(), ""),
    "key length 2^31": (key("llama.attention.key_length", U32, 2**31),
                        "key_length: got 2147483648"),
    "value length 0": (key("llama.attention.value_length", U32, 0), "value_length: got 0"),
    "ffn 0": (key("llama.feed_forward_length", U32, 0), "feed_forward_length: got 0"),
    "ffn 5": (key("llama.feed_forward_length", U32, 5),
              "ffn_down.weight: got shape (4, 4), want (4, 5)"),
    "ffn 2^31": (key("llama.feed_forward_length", U32, 2**31), "feed_forward_length: got"),
    "epsilon NaN": (key(EPS, F32, math.nan), "epsilon: got nan, want a finite number"),
    "epsilon inf": (key(EPS, F32, math.inf), "epsilon: got inf, want a finite number"),
    "epsilon -1": (key(EPS, F32, -1), "got a negative epsilon"),
    "epsilon as integer": (key(EPS, U32, 1), "epsilon: got a value of type 4, want a float"),
    "scale 1e300": (key("llama.attention.scale", F64, 1e300), "attention scale"),
    "scale NaN": (key("llama.attention.scale", F32, math.nan), "attention.scale: got NaN"),
    "soft cap -1": (key("llama.attn_logit_softcapping", F32, -1),
                    "got a negative epsilon, soft cap"),
    "window 2^31": (key("llama.attention.sliding_window", U32, 2**31),
                    "sliding_window: got 2147483648"),
    # experts
    "experts of gpt2": (byte_level().set("gpt2.expert_count", U32, 8),
                        "gpt2.expert_count: mixtures of experts in this architecture are not"),
    "8 experts": (expert("count", U32, 8), "ffn_gate_inp.weight: got shape (3, 4), want (8, 4)"),
    "no experts": (expert("count", U32, 0), "ffn_down.weight: missing, want shape (4, 4)"),
    "experts 2^31": (expert("count", U32, 2**31), "expert_count: got 2147483648, want 0 to 4096"),
    "experts 4097": (expert("count", U32, 4097), "expert_count: got 4097, want 0 to 4096"),
    "4 of 3 experts": (expert("used_count", U32, 4), "expert_used_count: got 4, want 1 to 3"),
    "0 of 3 experts": (expert("used_count", U32, 0), "expert_used_count: got 0, want 1 to 3"),
    "some of 3 experts": (EXPERTS.copy().drop("llama.expert_used_count"),
                          "expert_used_count: missing"),
    "sigmoid": (expert("gating_func", U32, 2), "expert_gating_func: got 2, want 1 (softmax)"),
    "groups": (expert("group_count", U32, 3), "expert_group_used_count: missing"),
    "groups 2^31": (expert("group_count", U32, 2**31), "expert_group_count: got 2147483648"),
    "2 groups of 3": (expert("group_count", U32, 2),
                      "expert_group_count: got 2 groups of 3 experts, want a divisor"),
    "scale infinite of experts": (expert("weights_scale", F32, math.inf),
                                  "expert_weights_scale: got inf, want a finite number"),
    "scale NaN of experts": (expert("weights_scale", F32, math.nan),
                             "expert_weights_scale: got nan, want a finite number"),
    "width 0": (expert("feed_forward_length", U32, 0), "expert_feed_forward_length: got 0"),
    "width 5": (expert("feed_forward_length", U32, 5),
                "ffn_down_exps.weight: got shape (3, 4, 4), want (3, 4, 5)"),
    "width 2^31": (expert("feed_forward_length", U32, 2**31),
                   "expert_feed_forward_length: got 2.14748e+09 for layer 0"),
    "shared width": (expert("shared_feed_forward_length", U32, 4), "ffn_up_shexp.weight: missing"),
    "a dense layer": (EXPERTS.copy().set("llama.leading_dense_block_count", U32, 1),
                      "ffn_down.weight: missing"),
    "99 dense layers": (EXPERTS.copy().set("llama.leading_dense_block_count", U32, 99),
                        "leading_dense_block_count: got 99, want 0 to 1"),
    "step 0": (EXPERTS.copy().set("llama.interleave_moe_layer_step", U32, 0),
               "interleave_moe_layer_step: got 0, want 1 to 1"),
    "2 matrices of 3": (EXPERTS.copy().tensor("blk.0.ffn_up_exps.weight", 2, 4, 4),
                        "ffn_up_exps.weight: got shape (2, 4, 4), want (3, 4, 4)"),
    "flat matrices": (EXPERTS.copy().tensor("blk.0.ffn_up_exps.weight", 12, 4),
                      "ffn_up_exps.weight: got shape (12, 4), want (3, 4, 4)"),
    "no matrices": (EXPERTS.copy().drop("blk.0.ffn_gate_exps.weight"),
                    "ffn_gate_exps.weight: missing, want shape (3, 4, 4)"),
    "half of gate and up": (EXPERTS.copy().drop("blk.0.ffn_gate_exps.weight")
                            .drop("blk.0.ffn_up_exps.weight")
                            .tensor("blk.0.ffn_gate_up_exps.weight", 3, 4, 4),
                            "ffn_gate_up_exps.weight: got shape (3, 4, 4), want (3, 8, 4)"),
    "gate twice": (EXPERTS.copy().tensor("blk.0.ffn_gate_up_exps.weight", 3, 8, 4),
                   "ffn_gate_exps.weight: the architecture llama has no place for it"),
    "biases of experts": (EXPERTS.copy().tensor("blk.0.ffn_up_exps.bias", 3, 4),
                          "ffn_up_exps.bias: the architecture llama has no place for it"),
    # numbers of one family
    "one xielu of two": (model(*DENSE["apertus"]).array("xielu.beta", F32, [0.5]),
                         "key xielu.beta: got 1 items, want a number or an array of 2"),
    "xielu NaN": (dense("apertus", "xielu.alpha_p", F32, math.nan), "xielu.alpha_p: got NaN"),
    "xielu 1e300": (dense("apertus", "xielu.alpha_n", F64, 1e300), "xielu.alpha_p, alpha_n, beta,"),
    "xielu beta -inf": (dense("apertus", "xielu.beta", F64, -math.inf), "alpha_n, beta, eps of"),
    "xielu as text": (dense("apertus", "xielu.eps", STR, "0"), "key xielu.eps: got"),
    "no xielu": (model(*DENSE["apertus"]).drop("xielu.eps"), "alpha_n, beta, eps of"),
    "a gated xielu": (model("gpt", XIELU | {"ffn.activation": "xielu"}, ""),
                      'ffn.activation: got "xielu" with a gate or experts'),
    "no window": (model("cohere2", {}, "-*ffn_norm.weight"),
                  "cohere2.attention.sliding_window: missing"),
    "temperature NaN": (dense("mistral3", "mistral3.attention.temperature_scale", F32, math.nan),
                        "temperature_scale: got nan, want a finite number"),
    "temperature without rope": (
        model("gpt", {"attention.temperature_scale": 1.0, "position": "none"}, ""),
        "gpt.attention.temperature_scale: got 1 without rope"),
    "temperature over 0": (
        dense("mistral3", "mistral3.rope.scaling.original_context_length", U32, 0),
        "original_context_length: got 0"),
    "log multiplier": (
        model("gpt", {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0,
                      "rope.scaling.yarn_log_multiplier": -1.0}, ""),
        "yarn_log_multiplier: got -1, want 0 or more"),
    "a norm of 2": (model(*DENSE["seed_oss"]).tensor("blk.1.post_attention_norm.weight", 2),
                    "blk.1.post_attention_norm.weight: got shape (2), want (4)"),
    "a norm of the sum without one": (model("gpt", {"norm.residual": True}, ""),
                                      "norm.residual: got true, want a sequential residual"),
    "a limit as text": (dense("mistral3", "mistral3.context_limit", STR, "yes"),
                        "mistral3.context_limit: got"),
    "order of norm and rope": (
        model("gpt", {"attention.qk_norm_after_rope": 2}, ""), "attention.qk_norm_after_rope: got"),
    "no sinks": (GPT_OSS.copy().drop("blk.0.attn_sinks.weight"),
                 "attn_sinks.weight: missing, want shape (2)"),
    "sinks of 3 heads": (GPT_OSS.copy().tensor("blk.0.attn_sinks.weight", 3),
                         "attn_sinks.weight: got shape (3), want (2)"),
    "a matrix of sinks": (GPT_OSS.copy().tensor("blk.0.attn_sinks.weight", 2, 1),
                          "attn_sinks.weight: got shape (2, 1), want (2)"),
    "no biases of experts": (GPT_OSS.copy().drop("blk.0.ffn_up_exps.bias"),
                             "ffn_up_exps.bias: missing, want shape (3, 4)"),
    "biases of 2 of 3": (GPT_OSS.copy().tensor("blk.0.ffn_down_exps.bias", 2, 4),
                         "ffn_down_exps.bias: got shape (2, 4), want (3, 4)"),
    "two norms": (GPT_OSS.copy().tensor("blk.0.ffn_norm.weight", 4),
                  "post_attention_norm.weight: the architecture gpt-oss has no place for it"),
    # Gemma 4
    "no factors": (GEMMA4.copy().drop("rope_freqs.weight"),
                   "rope_freqs.weight: missing, want shape (2)"),
    "factors of the other heads": (GEMMA4.copy().tensor("rope_freqs.weight", 1),
                                   "rope_freqs.weight: got shape (1), want (2)"),
    "no window of Gemma": (GEMMA4.copy().drop("gemma4.attention.sliding_window"),
                  "gemma4.attention.sliding_window: missing"),
    "windows of 3 layers": (GEMMA4.copy().array("gemma4.attention.sliding_window_pattern", BOOL,
                                                [True] * 3), "sliding_window_pattern: got 3 items"),
    "local heads of 2^31": (GEMMA4.copy().set("gemma4.attention.key_length_swa", U32, 2**31),
                            "key_length_swa: got 2147483648, want 1 to 8192"),
    "values of 3": (GEMMA4.copy().set("gemma4.attention.value_length", U32, 3),
                    "layer 1: got keys as values of 4 and 3, want one width"),
    "no local values": (GEMMA4.copy().drop("blk.0.attn_v.weight")
                        .set("gemma4.attention.value_length_swa", U32, 4),
                        "layer 0: got keys as values of 2 and 4, want one width"),
    "a scale of 2 layers": (GEMMA4.copy().tensor("blk.0.layer_output_scale.weight", 2),
                            "layer_output_scale.weight: got shape (2), want (1)"),
    "per layer 2^31": (
        GEMMA4.copy().set("gemma4.embedding_length_per_layer_input", U32, 2**31),
        "embedding_length_per_layer_input: got 2147483648, want 0 to 262144"),
    "per layer 262144": (
        GEMMA4.copy().set("gemma4.embedding_length_per_layer_input", U32, 2**18),
        "per_layer_token_embd.weight: got shape (7, 4), want (7, 524288)"),
    "per layer 0": (GEMMA4.copy().set("gemma4.embedding_length_per_layer_input", U32, 0),
                    ".weight: the architecture gemma4 has no place for it"),
    "a short table": (GEMMA4.copy().tensor("per_layer_token_embd.weight", 6, 4),
                      "per_layer_token_embd.weight: got shape (6, 4), want (7, 4)"),
    "no table": (GEMMA4.copy().drop("per_layer_token_embd.weight"),
                 "per_layer_token_embd.weight: missing"),
    "no gate of a layer": (GEMMA4.copy().drop("blk.1.inp_gate.weight"),
                           "blk.1.inp_gate.weight: missing, want shape (2, 4)"),
    "a projection across": (GEMMA4.copy().tensor("blk.1.proj.weight", 2, 4),
                            "blk.1.proj.weight: got shape (2, 4), want (4, 2)"),
    "all keys shared": (GEMMA4.copy().set("gemma4.attention.shared_kv_layers", U32, 2),
                        "shared_kv_layers: got 2, want 0 to 1"),
    "keys of another kind": (GEMMA4.copy().set("gemma4.attention.shared_kv_layers", U32, 1),
                             "layer 1: got no layer before the last 1 with its mask"),
    "keys of another number": (
        GEMMA4_EXPERTS.copy().array("gemma4.attention.head_count_kv", U32, [1, 2]),
        "layer 1: got no layer before the last 1 with its mask"),
    "no scale of the router": (GEMMA4_EXPERTS.copy().drop("blk.0.ffn_gate_inp.scale"),
                               "blk.0.ffn_gate_inp.scale: missing, want shape (4)"),
    "scales of 2 experts": (GEMMA4_EXPERTS.copy().tensor("blk.0.ffn_down_exps.scale", 2),
                            "blk.0.ffn_down_exps.scale: got shape (2), want (3)"),
    "no norm of experts": (GEMMA4_EXPERTS.copy().drop("blk.1.pre_ffw_norm_2.weight"),
                           "blk.1.pre_ffw_norm_2.weight: missing, want shape (4)"),
    "no dense beside": (GEMMA4_EXPERTS.copy().drop("blk.0.ffn_up.weight"),
                        "blk.0.ffn_up.weight: missing, want shape (4, 4)"),
    "experts unannounced": (GEMMA4_EXPERTS.copy().set("gemma4.expert_count", U32, 0),
                            ": the architecture gemma4 has no place for it"),
    "a parallel gpt beside": (
        model(*next(f for f in FAMILIES if "expert_beside_ffn" in f[1])).copy()
        .set("gpt.residual", STR, "parallel"),
        "expert_beside_ffn: got true with a parallel residual, want it sequential"),
    # latent attention
    "rank 0": (latent("attention.kv_lora_rank", U32, 0), "kv_lora_rank: got 0, want 1 to 8192"),
    "no rank": (DEEPSEEK.copy().drop("deepseek2.attention.kv_lora_rank"),
                "attention.kv_lora_rank: missing, want an integer"),
    "rank 2^31": (latent("attention.kv_lora_rank", U32, 2**31), "kv_lora_rank: got 2147483648"),
    "rank 4": (latent("attention.kv_lora_rank", U32, 4),
               "kv_lora_rank: got 4 with keys of 5 and values of 3, want 6 and 4"),
    "q rank 2^31": (latent("attention.q_lora_rank", U32, 2**31), "q_lora_rank: got 2147483648"),
    "q rank 2": (latent("attention.q_lora_rank", U32, 2), "blk.0.attn_q_a.weight: missing"),
    "q rank 0 of 3": (OLD_DEEPSEEK.copy().set("deepseek2.attention.q_lora_rank", U32, 0),
                      "blk.0.attn_q.weight: missing, want shape (6, 4)"),
    "all values rotated": (latent("attention.key_length_mla", U32, 2),
                           "rope.dimension_count: got 2, want fewer than the 2 values of a head"),
    "key length 2^31 of latents": (latent("attention.key_length_mla", U32, 2**31),
                                   "key_length_mla: got 2147483648"),
    "no value length": (DEEPSEEK.copy().drop("deepseek2.attention.value_length_mla"),
                        "value_length_mla: missing, want an integer"),
    "value length 0": (latent("attention.value_length_mla", U32, 0), "value_length_mla: got 0"),
    "windowed width": (latent("attention.key_length_swa", U32, 4),
                       "kv_lora_rank: got 3 with other widths in windowed layers"),
    "windowed rope": (LATENT.copy().set("gpt.rope.dimension_count_swa", U32, 4),
                      "kv_lora_rank: got 3 with other widths in windowed layers"),
    "3 rotated values": (latent("rope.dimension_count", U32, 3), "got 3, want an even number"),
    "shared latents": (latent("attention.shared_kv_layers", U32, 1),
                       "layer 0: got shared keys with latent attention, want its own"),
    "clamped latents": (latent("attention.clamp_kqv", F32, 1.0), "or with norms, a clamp or gates"),
    "gated latents": (LATENT.copy().set("gpt.attention.output_gate", BOOL, True),
                      "or with norms, a clamp or gates"),
    "latents without rope": (LATENT.copy().set("gpt.position", STR, "none"),
                             "kv_lora_rank: got 3 without rope"),
    "normed heads of latents": (LATENT.copy().set("gpt.attention.qk_norm", STR, "head"),
                                "kv_lora_rank: got 3 without rope, or with norms"),
    "key matrices turned": (DEEPSEEK.copy().tensor("blk.0.attn_k_b.weight", 2, 1, 3),
                            "attn_k_b.weight: got shape (2, 1, 3), want (2, 3, 1)"),
    "key matrices in two dimensions": (DEEPSEEK.copy().tensor("blk.0.attn_k_b.weight", 6, 1),
                                       "attn_k_b.weight: got shape (6, 1), want (2, 3, 1)"),
    "one value matrix": (DEEPSEEK.copy().tensor("blk.1.attn_v_b.weight", 1, 2, 3),
                         "blk.1.attn_v_b.weight: got shape (2, 3), want (2, 2, 3)"),
    "no value matrices": (DEEPSEEK.copy().drop("blk.0.attn_v_b.weight"),
                          "attn_v_b.weight: missing, want shape (2, 2, 3)"),
    "both forms": (DEEPSEEK.copy().tensor("blk.0.attn_kv_b.weight", 6, 3),
                   "blk.0.attn_k_b.weight: the architecture deepseek2 has no place for it"),
    "narrow attn_kv_b": (OLD_DEEPSEEK.copy().tensor("blk.0.attn_kv_b.weight", 6, 2),
                         "attn_kv_b.weight: got shape (6, 2), want (6, 3)"),
    "low attn_kv_b": (OLD_DEEPSEEK.copy().tensor("blk.1.attn_kv_b.weight", 5, 3),
                      "attn_kv_b.weight: got shape (5, 3), want (6, 3)"),
    "no norm of latents": (DEEPSEEK.copy().drop("blk.0.attn_kv_a_norm.weight"),
                           "attn_kv_a_norm.weight: missing, want shape (3)"),
    "groups of latents": (latent("expert_group_count", U32, 3),
                          "expert_group_count: got 3 groups of 4 experts, want a divisor"),
    "groups of one": (latent("expert_group_count", U32, 4),
                      "got 4 groups of 4 experts, want a divisor, and groups of 2"),
    "no group used": (latent("expert_group_used_count", U32, 0),
                      "expert_group_used_count: got 0, want 1 to 2"),
    "3 of 2 groups": (latent("expert_group_used_count", U32, 3),
                      "expert_group_used_count: got 3, want 1 to 2"),
    "3 experts of a group of 2": (latent("expert_used_count", U32, 3),
                                  "expert_group_used_count: got 1, want groups with 3 experts"),
    "shared experts 2^31": (latent("expert_shared_count", U32, 2**31),
                            "expert_shared_count: got 2147483648"),
    "shared experts 4096": (latent("expert_shared_count", U32, 4096),
                            "ffn_up_shexp.weight: got shape (4, 4), want (16384, 4)"),
    "no shared experts": (latent("expert_shared_count", U32, 0),
                          "_shexp.weight: the architecture deepseek2 has no place for it"),
    "gate function 4": (latent("expert_gating_func", U32, 4),
                        "expert_gating_func: got 4, want 1 (softmax) or 2 (sigmoid)"),
    # encoders
    "pooling 4": (BERT.copy().set("bert.pooling_type", U32, 4),
                  "key bert.pooling_type: got 4 (rank), want 0 to 3"),
    "pooling 5": (BERT.copy().set("bert.pooling_type", U32, 5), "pooling_type: got 5, want 0 to 4"),
    "causal bert": (BERT.copy().set("bert.attention.causal", BOOL, True),
                    "key bert.attention.causal: got true, want false"),
    "causal as a number": (BERT.copy().set("bert.attention.causal", U32, 0),
                           "bert.attention.causal: got a value of type 4"),
    "token types of another width": (BERT.copy().tensor("token_types.weight", 2, 3),
                                     "token_types.weight: got shape (2, 3), want (2, 4)"),
    "token types in three dimensions": (BERT.copy().tensor("token_types.weight", 2, 1, 4),
                                        "tensor token_types.weight: got shape (2, 1, 4)"),
    "no norm after attention": (BERT.copy().drop("blk.1.attn_output_norm.weight"),
                                "tensor blk.1.post_attention_norm.weight: missing"),
    "a norm under two names": (BERT.copy().tensor("blk.1.post_attention_norm.weight", 4),
                               "tensor blk.1.post_attention_norm.bias: missing, want shape (4)"),
    "positions of another number": (BERT.copy().tensor("position_embd.weight", 15, 4),
                                    "position_embd.weight: got shape (15, 4), want (16, 4)"),
    "no norm in layer 1": (MODERN.copy().drop("blk.1.attn_norm.weight"),
                           "tensor blk.1.attn_norm.weight: missing"),
    "a recurrent encoder": (LFM2.copy().set("lfm2.attention.causal", BOOL, False),
                            "layer 0: got a recurrent layer, want attention in an encoder"),
    # recurrent layers
    "no taps": (LFM2.copy().drop(TAPS), "key lfm2.shortconv.l_cache: missing, want an integer"),
    "1 tap": (LFM2.copy().set(TAPS, U32, 1), "shortconv.l_cache: got 1, want 2 to 256"),
    "257 taps": (LFM2.copy().set(TAPS, U32, 257), "shortconv.l_cache: got 257, want 2 to 256"),
    "taps 2^31": (LFM2.copy().set(TAPS, U32, 2**31), "shortconv.l_cache: got 2147483648"),
    "taps as text": (LFM2.copy().set(TAPS, STR, "3"), "shortconv.l_cache: got a value of type 8"),
    "4 taps of 3": (LFM2.copy().set(TAPS, U32, 4),
                    "shortconv.conv.weight: got shape (4, 3), want (4, 4)"),
    "taps transposed": (LFM2.copy().tensor(CONV, 3, 4),
                        "shortconv.conv.weight: got shape (3, 4), want (4, 3)"),
    "taps in three dimensions": (LFM2.copy().tensor(CONV, 4, 1, 3), "got shape (4, 1, 3)"),
    "no convolution": (LFM2.copy().drop(CONV), "shortconv.conv.weight: missing, want shape (4, 3)"),
    "two inputs of three": (LFM2.copy().tensor("blk.0.shortconv.in_proj.weight", 8, 4),
                            "shortconv.in_proj.weight: got shape (8, 4), want (12, 4)"),
    "no result": (LFM2.copy().drop("blk.0.shortconv.out_proj.weight"),
                  "shortconv.out_proj.weight: missing, want shape (4, 4)"),
    "attention in a convolution": (LFM2.copy().tensor("blk.0.attn_q.weight", 4, 4),
                                   "blk.0.attn_q.weight: the architecture lfm2 has no place"),
    "no attention": (LFM2.copy().array("lfm2.attention.head_count_kv", I32, [0, 0]),
                     "blk.1.shortconv.in_proj.weight: missing"),
    "kv heads -1": (LFM2.copy().array("lfm2.attention.head_count_kv", I32, [-1, 1]),
                    "head_count_kv: got -1 for layer 0"),
    "kv heads of 1 layer": (LFM2.copy().array("lfm2.attention.head_count_kv", I32, [0]),
                            "head_count_kv: got 1 items, want a number or an array of 2"),
    "two final norms": (LFM2.copy().tensor("output_norm.weight", 4),
                        "token_embd_norm.weight: the architecture lfm2 has no place for it"),
    "no final norm": (LFM2.copy().drop("token_embd_norm.weight"), "output_norm.weight: missing"),
    "no gate function": (LFM2_MOE.copy().drop("lfm2moe.expert_gating_func"),
                         "key lfm2moe.expert_gating_func: missing"),
    "gate function 3": (LFM2_MOE.copy().set("lfm2moe.expert_gating_func", U32, 3),
                        "expert_gating_func: got 3, want 1 (softmax) or 2 (sigmoid)"),
    "gate function 2^31": (LFM2_MOE.copy().set("lfm2moe.expert_gating_func", U32, 2**31),
                           "expert_gating_func: got 2147483648"),
    "no bias for the choice": (LFM2_MOE.copy().drop("blk.1.exp_probs_b.bias"),
                               "blk.1.exp_probs_b.bias: missing, want shape (3)"),
    "bias for the choice of 2": (LFM2_MOE.copy().tensor("blk.0.exp_probs_b.bias", 2),
                                 "exp_probs_b.bias: got shape (2), want (3)"),
    "dense layers of two": (LFM2_MOE.copy().set("lfm2moe.leading_dense_block_count", U32, 1),
                            "blk.0.ffn_down.weight: missing, want shape (4, 4)"),
    **{f"{name} of {value}": (QWEN35.copy().set(f"qwen35.ssm.{name}", U32, value),
                              f"ssm.{name}: got {value}, want {least} to {most}")
       for name, least, most in (("conv_kernel", 2, 256), ("time_step_rank", 1, 4096),
                                 ("group_count", 1, 4096), ("state_size", 1, 8192),
                                 ("inner_size", 1, 2**20))
       for value in (least - 1, most + 1, 2**31)},
    **{f"no {name}": (QWEN35.copy().drop(f"qwen35.ssm.{name}"), f"ssm.{name}: missing")
       for name in ("conv_kernel", "time_step_rank", "group_count", "state_size", "inner_size")},
    "states of text": (HYBRID.copy().set("granitehybrid.ssm.state_size", STR, "2"),
                       "ssm.state_size: got a value of type 8"),
    "heads that do not divide": (QWEN35.copy().set("qwen35.ssm.time_step_rank", U32, 3),
                                 "got 3 heads for 4 values and 1 key heads, want a divisor"),
    "key heads that do not divide": (QWEN35.copy().set("qwen35.ssm.group_count", U32, 4),
                                     "got 2 heads for 4 values and 4 key heads"),
    "wider states": (QWEN35.copy().set("qwen35.ssm.state_size", U32, 3),
                     "blk.0.attn_qkv.weight: got shape (8, 4), want (10, 4)"),
    "the widest states": (
        QWEN35.copy().set("qwen35.ssm.state_size", U32, 8192)
        .set("qwen35.ssm.time_step_rank", U32, 4096).set("qwen35.ssm.group_count", U32, 4096)
        .set("qwen35.ssm.inner_size", U32, 2**20),
        "blk.0.attn_qkv.weight: got shape (8, 4), want (68157440, 4)"),
    "an interval of 0": (QWEN35_MOE.copy().set("qwen35moe.full_attention_interval", U32, 0),
                         "full_attention_interval: got 0, want 1 to 4096"),
    "an interval of 2^31": (QWEN35_MOE.copy().set("qwen35moe.full_attention_interval", U32, 2**31),
                            "full_attention_interval: got 2147483648"),
    "an interval of 4": (QWEN35_MOE.copy().drop("qwen35moe.full_attention_interval"),
                         "blk.1.attn_qkv.weight: missing, want shape (8, 4)"),
    "two kinds for three layers": (
        QWEN35.copy().array("qwen35.attention.recurrent_layers", BOOL, [True, False]),
        "recurrent_layers: got 2 items, want a number or an array of 3"),
    "only extra layers": (QWEN35.copy().set("qwen35.nextn_predict_layers", U32, 3),
                          "nextn_predict_layers: got 3, want 0 to 2"),
    "extra layers 2^31": (QWEN35.copy().set("qwen35.nextn_predict_layers", U32, 2**31),
                          "nextn_predict_layers: got 2147483648"),
    "extra layers unannounced": (QWEN35.copy().drop("qwen35.nextn_predict_layers"),
                                 "blk.2.attn_q.weight: missing, want shape (8, 4)"),
    "a layer after the extra ones": (
        QWEN35.copy().tensor("blk.3.attn_norm.weight", 4),
        "blk.3.attn_norm.weight: the architecture qwen35 has no place for it"),
    "sections elsewhere": (HYBRID.copy().array("granitehybrid.rope.dimension_sections", I32, [1]),
                           "rope.dimension_sections: ropes of this kind are not supported yet"),
    "no gates of heads": (QWEN35.copy().tensor("blk.1.attn_q.weight", 4, 4),
                          "blk.1.attn_q.weight: got shape (4, 4), want (8, 4)"),
    "gates wider than values": (GATED.copy().set("gpt.attention.key_length", U32, 4),
                                "layer 1: got gates of 4 for values of 2, want one width"),
    **{f"no {name}": (QWEN35.copy().drop(f"blk.0.{name}"), f"blk.0.{name}: missing, want shape")
       for name in ("attn_qkv.weight", "attn_gate.weight", "ssm_conv1d.weight", "ssm_dt.bias",
                    "ssm_a", "ssm_alpha.weight", "ssm_beta.weight", "ssm_norm.weight",
                    "ssm_out.weight")},
    **{f"{name} of a wrong size": (QWEN35.copy().tensor(f"blk.0.{name}", *shape),
                                   f"blk.0.{name}: got shape {shape}")
       for name, shape in (("ssm_conv1d.weight", (3, 8)), ("ssm_a", (2, 2)),
                           ("ssm_dt.bias", (2, 2)), ("ssm_alpha.weight", (3, 4)),
                           ("ssm_norm.weight", (2, 2)), ("ssm_out.weight", (4, 8)))},
    "decays with a suffix": (QWEN35.copy().drop("blk.0.ssm_a").tensor("blk.0.ssm_a.weight", 2),
                             "blk.0.ssm_a: missing, want shape (2)"),
    "a convolution's bias": (QWEN35.copy().tensor("blk.0.ssm_conv1d.bias", 8),
                             "ssm_conv1d.bias: the architecture qwen35 has no place for it"),
    **{f"no {name} of Mamba": (HYBRID.copy().drop(f"blk.0.{name}"), f"blk.0.{name}: missing, want")
       for name in ("ssm_in.weight", "ssm_a", "ssm_d", "ssm_dt.bias", "ssm_norm.weight")},
    "Mamba's inputs without dt": (HYBRID.copy().tensor("blk.0.ssm_in.weight", 12, 4),
                                  "ssm_in.weight: got shape (12, 4), want (14, 4)"),
    "Mamba's decays as a vector": (HYBRID.copy().tensor("blk.0.ssm_a", 2),
                                   "blk.0.ssm_a: got shape (2), want (2, 1)"),
    "Mamba's norm by groups of 1": (HYBRID.copy().tensor("blk.0.ssm_norm.weight", 2, 2),
                                    "ssm_norm.weight: got shape (2, 2), want (1, 4)"),
    "no bias that is announced": (MAMBA.copy().drop("blk.0.ssm_conv1d.bias"),
                                  "blk.0.ssm_conv1d.bias: missing, want shape (8)"),
    "a bias unannounced": (MAMBA.copy().drop("gpt.mamba.conv_bias"),
                           "blk.0.ssm_conv1d.bias: the architecture gpt has no place for it"),
    # tokenizer
    "no tokenizer": (SMALLEST.copy().drop("tokenizer.ggml.model"), "tokenizer.ggml.model: missing"),
    "a tokenizer of rwkv": (key("tokenizer.ggml.model", STR, "rwkv"),
                            'tokenizer.ggml.model: got "rwkv" (RWKV)'),
    "no tokens": (SMALLEST.copy().drop(TOKENS), "tokenizer.ggml.tokens: missing"),
    "zero tokens": (SMALLEST.copy().array(TOKENS, STR, []), "tokenizer.ggml.tokens: got 0 items"),
    "tokens as numbers": (SMALLEST.copy().array(TOKENS, U32, [1] * 7),
                          "tokenizer.ggml.tokens: got another kind of value"),
    "tokens as one text": (key(TOKENS, STR, "a"),
                           "tokenizer.ggml.tokens: got another kind of value"),
    "more tokens than rows": (
        SMALLEST.copy().array(TOKENS, STR, ["a"] * 8).array("tokenizer.ggml.scores", F32, [0] * 8)
        .array("tokenizer.ggml.token_type", I32, [1] * 8), "got 8 tokens, want at most the 7 rows"),
    "too few scores": (SMALLEST.copy().array("tokenizer.ggml.scores", F32, [0] * 6),
                       "scores: got 6 items, want 7"),
    "too few types": (SMALLEST.copy().array("tokenizer.ggml.token_type", I32, [1] * 6),
                      "token_type: got 6 items, want 7"),
    "no scores": (SMALLEST.copy().drop("tokenizer.ggml.scores"), "scores: missing"),
    "bos 7": (key("tokenizer.ggml.bos_token_id", U32, 7),
              "bos_token_id: got 7, want less than the 7 tokens"),
    "bos 2^32-1": (key("tokenizer.ggml.bos_token_id", U32, 2**32 - 1),
                   "bos_token_id: got 4294967295"),
    "eos -1": (key("tokenizer.ggml.eos_token_id", I32, -1), "eos_token_id: got -1"),
    "eos 2^63": (key("tokenizer.ggml.eos_token_id", U64, 2**63), "eos_token_id: got"),
    "end ids": (SMALLEST.copy().array("tokenizer.ggml.eos_token_ids", I32, [2, 9]),
                "eos_token_ids: got 9"),
    "an unknown pre": (byte_level().set("tokenizer.ggml.pre", STR, "tomorrow's"),
                       "tokenizer.ggml.pre: got"),
    "no merges": (byte_level().drop("tokenizer.ggml.merges"), "merges: missing"),
    "merges of nothing": (byte_level().array("tokenizer.ggml.merges", STR, ["x y"]),
                          'merges: got "x y" at 0'),
    "merges without a space": (byte_level().array("tokenizer.ggml.merges", STR, ["ab"]),
                               'merges: got "ab"'),
    "positions too few": (byte_level().set("gpt2.context_length", U32, 17),
                          "position_embd.weight: got shape (16, 8), want (17, 8)"),
}
LIES["rope factors 0"] = (
    header(tensors={**SMALLEST.copy().tensors, "rope_freqs.weight": Tensor([1], 0, bytes(4))}),
    "rope factors: got 0, want numbers above 0")


def bytes_of(lie: Image | bytes) -> bytes:
    return lie if isinstance(lie, bytes) else lie.build()


def test_lies(many) -> None:
    got = many([bytes_of(lie) for lie, _ in LIES.values()])
    wrong = {name: (code, line) for (name, (_, want)), (code, line) in zip(LIES.items(), got)
             if code != 3 or want not in line}
    assert not wrong


@pytest.mark.parametrize("name", LIES)
def test_lies_through_run(run_bin: Path, tmp_path: Path, name: str) -> None:
    lie, want = LIES[name]
    path = write(tmp_path, bytes_of(lie))
    assert want in check_said(3, error_of(run_bin, path, "-i", "a", code=3), path)


# ---- other things than models --------------------------------------------------------------------


def test_not_a_model(any_run: Path, tmp_path: Path) -> None:
    png = b"\x89PNG\r\n\x1a\n" + bytes(50)
    assert 'magic: got "\\x89PNG", want "GGUF"' in error_of(any_run, write(tmp_path, png), "-i",
                                                            "a", code=3)
    assert 'magic: got "\\x7fELF"' in error_of(any_run, shutil.which("true"), "-i", "a", code=3)
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as z:
        z.writestr("model/data.pkl", b"x")
    assert "export.py converts PyTorch checkpoints" in error_of(any_run, tmp_path / "model.pth",
                                                                "-i", "a", code=3)
    assert "got an empty file" in error_of(any_run, write(tmp_path, b""), "-i", "a", code=3)
    assert 'magic: got "GG", want "GGUF"' in error_of(any_run, write(tmp_path, b"GG"), "-i", "a",
                                                      code=3)
    assert "got a folder, want a model file" in error_of(any_run, tmp_path, "-i", "a", code=1)
    assert "missing.gguf: cannot open: No such file" in error_of(any_run, tmp_path / "missing.gguf",
                                                                 "-i", "a", code=1)
    assert "got a pipe or device" in error_of(any_run, "/dev/null", "-i", "a", code=1)
    assert '"": cannot open' in error_of(any_run, "", "-i", "a", code=1)
    subprocess.run(["mkfifo", tmp_path / "pipe"], check=True)
    assert "got a pipe or device" in error_of(any_run, tmp_path / "pipe", "-i", "a", code=1)
    odd = tmp_path / "a\x1b[31m\nb\\"
    assert r"a\x1b[31m\x0ab\x5c: cannot open" in error_of(any_run, odd, "-i", "a", code=1)
    assert "missing.gguf: cannot open" in error_of(any_run, "--tokenize", tmp_path / "missing.gguf",
                                                   "-i", "a", code=1)
    assert "got an empty file" in error_of(any_run, "--tokenize", write(tmp_path, b""), "-i", "a",
                                           code=3)


def test_vocabulary_only(any_run: Path, tmp_path: Path) -> None:
    """--tokenize needs neither weights nor a known architecture.

    Generation says what is missing."""
    m = SMALLEST.copy().set("general.architecture", STR, "tomorrow")
    m.tensors = {}
    path = write(tmp_path, m.build())
    assert text_of(any_run, path, "--tokenize", "--json", "-i", "ab") == (
        '{"ids": [1, 3, 6], "pieces": ["<s>", "▁", "ab"], "text": ["<s>", " ", "ab"], '
        '"bytes": ["", "20", "6162"]}\n').encode()
    assert "want one of" in error_of(any_run, path, "-i", "a", code=3)
    path = write(tmp_path, m.set("general.architecture", STR, "llama").build())
    assert "a vocabulary-only file?" in error_of(any_run, path, "-i", "a", code=3)


# ---- memory and time -----------------------------------------------------------------------------


def test_a_huge_context_is_no_memory(run_bin: Path, tmp_path: Path) -> None:
    """A file may claim a context of 2^28: nothing is reserved for what is not used."""
    path = write(tmp_path, key("llama.context_length", U32, 1 << 28).build())
    limited = ["bash", "-c", 'ulimit -v 1000000; exec "$@"', "-", str(run_bin), str(path)]
    assert run(Path(limited[0]), *limited[1:], "-i", "a", "-n", "2").returncode == 0
    line = error_of(Path(limited[0]), *limited[1:], "-i", "a", "-n", "2", "-c", str(1 << 28),
                    code=4)
    assert "a smaller -c needs less" in line


# Tokenizers made to take long. The goal is 2 s for any file of 100 kB with any text of 100 kB, or a
# line that refuses them; the limit leaves room for a processor half as fast that others use, too.
SECONDS = 5
SIZE = 100_000
ODD = [chr(c) for c in range(0x4E00, 0x4E00 + 2598, 2)]  # every other one, so that none join
RANGES = "[" + "".join(ODD) + "]"
LAST = ODD[-1] * (SIZE // 3)  # in the last of the ranges
MISS = chr(ord(ODD[-1]) + 1) * (SIZE // 3)
LETTERS = "".join(random.Random(1).choices("ab", k=SIZE))
PRINTED = "".join(random.Random(2).choices([chr(c) for c in range(32, 127)], k=SIZE))


def byte_char(b: int) -> str:
    """A byte as byte-level vocabularies spell it."""
    shift = (256 if b < 33 else 256 + 33 - 127 if 127 <= b <= 160 else 256 + 67 - 173
             if b == 173 else 0)
    return chr(b + shift)


def patterns(items: list[str]) -> Image:
    """Every byte is a token, and the text is cut by these patterns."""
    return byte_tokens().array("tokenizer.attnc.pre_patterns", STR, items)


def byte_tokens(more: list[str] = [], kind: int = 1, merges: list[str] = ["a b"]) -> Image:
    tokens = [byte_char(b) for b in range(256)] + ["ab", *more]
    m = byte_level().array(TOKENS, STR, tokens).array("tokenizer.ggml.merges", STR, merges)
    m.array("tokenizer.ggml.token_type", I32, [1] * 257 + [kind] * len(more))
    return m.drop("tokenizer.ggml.eos_token_id")


def marked_tokens(pieces: list[str], kinds: list[int] | None = None) -> Image:
    """A SentencePiece vocabulary; earlier pieces join first."""
    m = SMALLEST.copy().array(TOKENS, STR, ["<unk>", "<s>", "</s>", *pieces])
    m.array("tokenizer.ggml.scores", F32, [0, 0, 0, *(-float(i) for i in range(len(pieces)))])
    return m.array("tokenizer.ggml.token_type", I32, [2, 3, 3, *(kinds or [1] * len(pieces))])


SLOW = {
    "many patterns": (patterns([""] * 9000), PRINTED[:1000]),
    "many patterns, long text": (patterns(["q"] * 6000), PRINTED),
    "many look-aheads": (patterns(["(?=q)"] * 4000), PRINTED),
    "many runs": (patterns([r"\s+"] * 4500), PRINTED),
    "ranges, counted": (patterns([RANGES + "{0,1000}x|."]), LAST),
    "ranges, repeated group": (patterns(["(?:" + RANGES + "|x){1000}y|."]), LAST),
    "ranges, negated": (patterns(["[^" + RANGES[1:] + "{0,1000}x|."] * 25), MISS),
    "ranges, twice": (
        patterns(["[^" + RANGES[1:640] + "&&[^" + RANGES[640:] + "]{0,1000}x|."] * 25), MISS),
    "nested look-aheads": (patterns(["(?=.{0,1000}" * 3 + "x" + ")" * 3 + "|."]), LAST),
    "literals": (patterns(["|".join("a" * 28 + str(i) for i in range(100))] * 20), "a" * SIZE),
    "long literals": (patterns(["|".join("a" * i + "q" for i in range(1, 85)) + "|."]), "a" * SIZE),
    "counted": (patterns(["(?:a{1000}){10}b|."]), "a" * SIZE),
    "counted in each other": (patterns([".{0,1000}.{0,1000}x|."]), LETTERS),
    "atomic": (patterns(["|".join(f"(?>a+){c}" for c in "bcdefghijklmnop") + "|."]), "a" * SIZE),
    "possessive": (patterns(["(?:ab)?+" + "?+" * 1500 + "|."]), LETTERS),
    "places to come back to": (patterns(["(?:a" + "(?:|b)" * 480 + ")*x|."]), "a" * SIZE),
    "loops in a row": (patterns(["(?:" + "a*" * 1900 + ")x|."]), "a" * SIZE),
    "word boundaries": (patterns([r"\b" * 1900 + r"\B|."]), MISS),
    "nested repetitions": (patterns(["(?:(?:a|aa)+)+b"]), "a" * SIZE),
    "a text of many parts": (
        byte_tokens(["x"], 4).array("tokenizer.attnc.pre_patterns", STR, ["(?:(?:a|aa)+)+b"]),
        ("a" * 12 + "x") * 7692),
    "parts with accents": (byte_tokens(["x"], 4).set("tokenizer.attnc.normalizer", STR, "nfc"),
                           "xe\u0301" * (SIZE // 4)),
    "one long user-defined token": (byte_tokens(["a" * 50000 + "b"], 4), "a" * SIZE),
    "the same, marked": (marked_tokens(["a", "a" * 50000 + "b"], [1, 4]), "a" * SIZE),
    "user-defined tokens": (byte_tokens(["a" * i + "b" for i in range(400)], 4), "a" * SIZE),
    "long merges": (byte_tokens(["a" * i for i in range(2, 300)], 1,
                                ["a" * i + " a" for i in range(1, 299)]), "a" * SIZE),
    "long pieces": (marked_tokens(["a" * i for i in range(1, 400)]), "a" * SIZE),
    "doubled pieces": (marked_tokens(["a" * 2**i for i in range(16)]), "a" * SIZE),
}


@pytest.mark.parametrize("name", SLOW)
def test_time_of_tokenizers(run_bin: Path, tmp_path: Path, name: str) -> None:
    """Whatever is done for a text is charged, so that it is done soon or refused."""
    image, said = SLOW[name]
    data = image.build()
    assert len(data) < 115_000 and len(said.encode()) <= SIZE
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = run(run_bin, write(tmp_path, data), "--tokenize", "-f", "-", stdin=said.encode())
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    line = done.stderr.decode()
    assert done.returncode in (0, 3) and (done.returncode == 0) == (line == ""), line
    assert line == "" or re.fullmatch(r"run: [^\n]*(takes? more than \d+ "
                                      r"steps|a shorter pattern)[^\n]*\n", line)
    assert seconds < SECONDS, (seconds, line)


def test_steps_are_counted_for_all_of_a_text(run_bin: Path, tmp_path: Path) -> None:
    """A budget for each part between user-defined tokens would have no end."""
    image = SLOW["a text of many parts"][0]
    path = write(tmp_path, image.build())
    part = "a" * 12 + "x"
    assert run(run_bin, path, "--tokenize", "-f", "-", stdin=part.encode()).returncode == 0
    line = error_of(run_bin, path, "--tokenize", "-f", "-", stdin=(part * 7692).encode(), code=3)
    assert "takes more than" in line and "on a text of 99996 bytes" in line


def peak(exe: Path, model: Path, text: bytes) -> int:
    """Bytes of memory that tokenizing a text takes, beyond those of a text of two letters."""
    def measure(said: bytes) -> int:
        child = subprocess.Popen([exe, model, "--tokenize", "-f", "-"], stdin=subprocess.PIPE,
                                 stdout=subprocess.DEVNULL)
        child.stdin.write(said)
        child.stdin.close()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        return usage.ru_maxrss * 1024
    return measure(text) - measure(b"ab")


LONG = 6_000_000
TALE = (ROOT / "tests" / "passage.txt").read_text().replace("\n", " ").encode()
CJK = "".join(map(chr, random.Random(4).choices(range(0x4E00, 0x9FA5), k=100_000))).encode()
LONG_TEXTS = {
    "one letter": b"a", "spaces": b" ", "words": TALE, "letters": LETTERS.encode(), "CJK": CJK,
    "bytes": random.Random(3).randbytes(100_000), "lines": b"\n", "accents": "e\u0301".encode(),
}
# A byte of a stretch that cannot be cut: 4 for its symbol, 4 for the rank of its pair, 4/15 in the
# tree above and 1/8 for whether it was joined: 8.4. The text itself: 1. Ids: at most 4 where no
# byte joins another, but then the stretches are short. Spaces marked as U+2581: 3.
MOST = {"spaces": 13.0}
LONG_WITH = {
    "byte-level": ["words", "bytes", "one letter", "lines"], "nfc": ["accents"],
    "one piece": ["words", "one letter", "letters"],
    "marked": ["words", "one letter", "letters", "spaces", "CJK"],
    "smollm2_path": ["words", "one letter", "letters", "spaces"],
    "gemma3_path": ["words", "one letter", "letters", "spaces", "CJK", "bytes"],
}


@pytest.mark.parametrize("vocabulary, text", [(v, t) for v in LONG_WITH for t in LONG_WITH[v]])
def test_memory_of_a_long_text(run_bin: Path, tmp_path: Path, request: pytest.FixtureRequest,
                               vocabulary: str, text: str) -> None:
    """About ten times the text, on one line, whatever the vocabulary."""
    powers = ["a" * 2**i for i in range(6)] + ["b", "ab", "abab"]
    made = {
        "byte-level": byte_tokens(),
        "one piece": byte_tokens(powers[1:6], 1, [f"{p} {p}" for p in powers[:5]] + ["a b"])
        .array("tokenizer.attnc.pre_patterns", STR, []),
        "nfc": byte_tokens().set("tokenizer.attnc.normalizer", STR, "nfc"),
        "marked": marked_tokens(["\u2581", "\u2581\u2581", *powers]),
    }
    real = vocabulary not in made
    path = (request.getfixturevalue(vocabulary)
            if real else write(tmp_path, made[vocabulary].build()))
    unit = LONG_TEXTS[text]
    used = peak(run_bin, path, (unit * (LONG // len(unit) + 1))[:LONG])
    assert used < MOST.get(text, 11.0) * LONG, used / LONG


def test_unused_keys_may_be_anything(many) -> None:
    m = SMALLEST.copy()
    m.more_keys = [("", struct.pack("<I", U8) + b"\0"),
                   (b"\xff", struct.pack("<I", F32) + b"\0\0\xc0\x7f"),
                   ("x" * 70000, struct.pack("<I", BOOL) + b"\7")]
    m.array("y", STR, ["", "\0"]).array("z", I64, []).set("w", I8, -1)
    assert many([m.build()]) == [(0, "")]


# ---- splits --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """(the whole model, its parts), written by the gguf package."""
    folder = tmp_path_factory.mktemp("split")
    whole = folder / "whole.gguf"
    write_tiny(whole)
    write_tiny(folder / "m.gguf", split_max_tensors=8)
    parts = sorted(folder.glob("m-*.gguf"))
    assert len(parts) == 3
    return whole, parts


def test_split(any_run: Path, split: tuple[Path, list[Path]]) -> None:
    whole, parts = split
    args = ["-i", "the other", "-n", "20", "--temp", "0"]
    assert text_of(any_run, parts[0], *args) == text_of(any_run, whole, *args)
    line = error_of(any_run, parts[1], *args, code=3)
    assert "split: got part 2 of 3, want the first part" in line


def test_damaged_splits(any_run: Path, split: tuple[Path, list[Path]], tmp_path: Path) -> None:
    _, parts = split

    def lay(names: dict[int, int | bytes]) -> Path:
        """A folder with parts under numbers: number -> whose bytes."""
        for old in tmp_path.glob("*.gguf"):
            old.unlink()
        for number, source in names.items():
            raw = source if isinstance(source, bytes) else parts[source - 1].read_bytes()
            (tmp_path / f"m-{number:05}-of-00003.gguf").write_bytes(raw)
        return tmp_path / "m-00001-of-00003.gguf"

    args = ["-i", "a", "-n", "1"]
    assert "m-00003-of-00003.gguf: cannot open: No such file" in error_of(
        any_run, lay({1: 1, 2: 2}), *args, code=1)
    assert "m-00002-of-00003.gguf: got an empty file" in error_of(
        any_run, lay({1: 1, 2: b"", 3: 3}), *args, code=3)
    assert "m-00002-of-00003.gguf: magic" in error_of(any_run, lay({1: 1, 2: b"PK\3\4", 3: 3}),
                                                      *args, code=3)
    assert "truncated" in error_of(any_run, lay({1: 1, 2: parts[1].read_bytes()[:-1000], 3: 3}),
                                   *args, code=3)
    assert "split.tensors.count: got 24 tensors in 3 parts, want 20" in error_of(
        any_run, lay({1: 1, 2: 2, 3: 2}), *args, code=3)
    assert "want the first part" in error_of(any_run, lay({1: 2, 2: 1, 3: 3}), *args, code=3)
    first = lay({1: 1, 2: 2, 3: 3})
    renamed = tmp_path / "renamed.gguf"
    first.rename(renamed)
    assert "want NAME-00001-of-00003.gguf" in error_of(any_run, renamed, *args, code=3)


def test_lying_splits(any_run: Path, tmp_path: Path) -> None:
    for kind, v, want in ((U32, 2**32 - 1, "split: got"), (U32, 100000, "split: got"),
                          (U32, 2, "want NAME-00001-of-00002.gguf"),
                          (STR, "2", "split.count")):
        path = write(tmp_path, key("split.count", kind, v).build())
        assert want in error_of(any_run, path, "-i", "a", code=3)
    for v in (0, 1):
        assert run(any_run, write(tmp_path, key("split.count", U32, v).build()), "-i", "a", "-n",
                   "1").returncode == 0
    path = write(tmp_path, key("split.count", U32, 2).set("split.tensors.count", I32, 99).build(),
                 "m-00001-of-00002.gguf")
    write(tmp_path, b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "m-00002-of-00002.gguf")
    assert "split.tensors.count: got 11 tensors in 2 parts, want 99" in error_of(
        any_run, path, "-i", "a", code=3)
