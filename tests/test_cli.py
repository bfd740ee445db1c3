"""The command line as a user meets it.

Flags, prompts, standard streams, exit statuses, signals, and the promise that the bytes do not
depend on threads, batches or the output's form."""
from __future__ import annotations

import itertools
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import tokenizers
from command import TIMEOUT, error_of, logits_of, printable, run, text_of
from gguf_files import I32, STR, U32, byte_level, smallest, smallest_experts, write_tiny

GREEDY = ["--temp", "0"]
VOCAB = 260


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that claims a long context, for runs that are interrupted."""
    path = tmp_path_factory.mktemp("long") / "long.gguf"
    write_tiny(path, context=1 << 20)
    return path


@pytest.fixture(scope="module")
def story(run_bin: Path, tiny_model: Path) -> bytes:
    """60 greedy tokens after "the"."""
    return text_of(run_bin, tiny_model, "-i", "the", "-n", "60", *GREEDY)


def echo(exe: Path, model: Path, *args: str | bytes, **more) -> bytes:
    """The prompt that the program understood, byte for byte."""
    return text_of(exe, model, "--echo", "-n", "0", *args, **more)


# ---- usage errors --------------------------------------------------------------------------------

USAGE = [
    ([], 'no model given; usage: run MODEL -i "Once upon a time"'),
    (["-i", "x"], "no model given; usage"),
    (["--"], "no model given; usage"),
    (["-", "-i", "x"], '"-": the model cannot be standard input, want a file'),
    (["--", "-"], '"-": the model cannot be standard input'),
    (["M", "N"], '"N": got a second model or a text without -i, want one model file'),
    (["M", "\x1b[31mred\n"], r'"\x1b[31mred\x0a": got a second model'),
    (["M", "--", "-i"], '"-i": got a second model'),
    (["M", "-i"], "-i needs an argument: TEXT"),
    (["M", "--temp"], "--temp needs an argument: T"),
    # unknown flags
    (["M", "--tmp", "1"], "--tmp: no such flag, did you mean --temp?"),
    (["M", "--temperatures", "1"], "--temperatures: no such flag, did you mean --temperature?"),
    (["M", "--top_k", "1"], "--top_k: no such flag, did you mean --top-k?"),
    (["M", "--topp=0.9"], "--topp: no such flag, did you mean --top-p?"),
    (["M", "--n-predic", "1"], "--n-predic: no such flag, did you mean --n-predict?"),
    (["M", "--ctx", "1"], "--ctx: no such flag, did you mean --ctx-size?"),
    (["M", "--promt", "1"], "--promt: no such flag, did you mean --prompt?"),
    (["M", "-n5"], "-n5: no such flag, did you mean -n?"),
    (["M", "-x"], "-x: no such flag; --help lists them"),
    (["M", "--xyzzy-quux"], "--xyzzy-quux: no such flag; --help lists them"),
    (["M", "--\x1b[31m"], r"--\x1b[31m: no such flag"),
    (["M", "--" + "x" * 5000], "no such flag"),
    # llama2.c's flags
    (["M", "-z", "tok.bin"], "-z: no such flag here: the tokenizer is in the model file"),
    (["M", "-m", "chat"], "-m: no such flag here: the model is the first argument"),
    (["M", "-y", "x"], "-y: no such flag here"),
    (["M", "-t", "0.9"], '-t: got "0.9", want a whole number from 1 to 1024 (-t is threads here; '
     'the temperature is --temp)'),
    (["M", "-t", "1.0"], '-t: got "1.0", want a whole number'),
    (["M", "-p", "0.9"],
     '-p: got "0.9", want a prompt (llama2.c\'s -p is --top-p here; -i takes any text)'),
    # numbers
    *[(["M", flag, v], f'{flag}: got "{v}", want') for flag in ("--temp", "--top-p", "-n")
      for v in ("", "x", "nan", "inf", "1e999", "0x", "1x", "-2", "1 ")],
    (["M", "-n", "1.5"], '-n: got "1.5", want a whole number from -1 to'),
    (["M", "-c", "0"], '-c: got "0", want a whole number from 1 to'),
    (["M", "-c", "-1"], '-c: got "-1"'),
    (["M", "-b", "0"], '-b: got "0"'),
    (["M", "--runs", "0"], '--runs: got "0", want a whole number from 1 to 100'),
    (["M", "-t", "0"], '-t: got "0"'),
    (["M", "-t", "99999999999"], '-t: got "99999999999"'),
    (["M", "--top-k", "-1"], '--top-k: got "-1"'),
    (["M", "--top-p", "1.01"], '--top-p: got "1.01", want a number from 0 to 1'),
    (["M", "--min-p", "-0.1"], '--min-p: got "-0.1"'),
    (["M", "--repeat-penalty", "0"], '--repeat-penalty: got "0"'),
    (["M", "--repeat-last-n", "-2"], '--repeat-last-n: got "-2"'),
    *[(["M", "-s", v], f'-s: got "{v}", want a whole number of up to 64 bits, or -1 for a '
       'random one') for v in ("", "-2", "-1 ", "-01", " 1", "1.5", "18446744073709551616", "x")],
    (["M", "--temp", "\x1b[2J"], r'--temp: got "\x1b[2J", want'),
    (["M", "--temp", "9" * 5000], "--temp: got"),
    # other values
    (["M", "--kv", "q9"], '--kv: got "q9", want f16, f32 or q8'),
    (["M", "--kv", ""], '--kv: got "", want f16, f32 or q8'),
    (["M", "--stop", ""], "--stop: got an empty text, want at least one character"),
    *[(["M", "--logit-bias", v], f'--logit-bias: got "{v}", want ID+BIAS or ID-BIAS')
      for v in ("", "5", "5+", "+1", "-1+1", "5*2", "5+x", "5+nan", "5+1x",
                "99999999999999999999+1", "a+1", "5 +1")],
    (["--completion"], "--completion needs an argument: SHELL"),
    (["--completion", "csh"], '--completion: got "csh", want bash, zsh or fish'),
    (["M", "--echo=1"], '--echo: got "1", want no value'),
    # files
    (["M", "--logits", "-"], '--logits: got "-", want a file: its header is written last'),
    *[(["M", "--logits", v], f'--logits: got "{v}", want a name ending in .npy')
      for v in ("x.txt", "x", "", ".npy", "/dev/stdout", "x.npz")],
    *[(["M", "--attn-stats", v], f'--attn-stats: got "{v}", want a name '
       'ending in .csv or .json, or - for a table') for v in ("x", "", ".csv", "/dev/stdout")],
    (["M", "--logits", "a.npy", "--logits", "b.npy"], "--logits: given twice, want one FILE.npy"),
    (["M", "--perplexity", "a", "--perplexity=b"], "--perplexity: given twice, want one FILE"),
    (["M", "--quantize", "q8_0", "-o", "a", "--output", "b"],
     "--output: given twice, want one FILE"),
    (["M", "--quantize", "q8_0", "--quantize", "q4_0", "-o", "a"],
     "--quantize: given twice, want one TYPE"),
    # flags and modes
    (["M", "--output=x"], "--output needs --jsonl, --lines or --quantize"),
    (["M", "--quantize", "q8_0"], "--quantize needs -o"),
    (["M", "--pp", "1"], "--pp needs --bench"),
    (["M", "--bench", "-p", "x"], "--bench does not take -p"),
    (["M", "--bench", "--pp", "0", "--tg", "0"], "--bench: --pp 0 and --tg 0 leave nothing to run"),
    (["M", "--attn-heads", "1"], "--attn-heads needs --dump-attn or --attn-stats"),
    (["M", "--attn-reduce", "mean", "--attn-stats", "-"], "--attn-reduce needs --dump-attn"),
    (["M", "--perplexity", "F", "--bench"], "--perplexity and --bench are two modes, choose one"),
    (["M", "--bench", "--perplexity", "F"], "--bench and --perplexity are two modes, choose one"),
    (["M", "--tokenize", "--quantize", "q8_0"],
     "--tokenize and --quantize are two modes, choose one"),
]


@pytest.mark.parametrize("args, want", USAGE,
                         ids=[" ".join(a)[:40].encode("unicode_escape").decode() for a, _ in USAGE])
def test_usage(run_bin: Path, args: list[str], want: str) -> None:
    assert want in error_of(run_bin, *args, code=2)


def test_usage_under_sanitizers(any_run: Path) -> None:
    for args, want in USAGE[::3]:
        assert want in error_of(any_run, *args, code=2)


def test_flags_are_read_in_any_order(any_run: Path, tiny_model: Path, story: bytes) -> None:
    n = len(text_of(any_run, tiny_model, "-i", "the", "-n", "6", *GREEDY))
    want = story[:n]
    for args in (["-n", "6", "--temp", "0", "-i", "the", tiny_model],
                 ["-n", "6", tiny_model, "--temp=0", "--prompt=the"],
                 ["--predict=6", "--temp=0", "-p", "the", "--", tiny_model],
                 [tiny_model, "-n", "99", "--temp", "5", "-i", "the", "-n", "6", "--temp", "0"],
                 [tiny_model, "-i", "the", "-n", "6e0", "--temp", "0.0", "--top-k", "40"]):
        assert text_of(any_run, *args) == want


# ---- prompts -------------------------------------------------------------------------------------


def test_escapes(any_run: Path, tiny_model: Path) -> None:
    for typed, want in {
        r"a\nb\tc\rd\\e\"f\'g": b"a\nb\tc\rd\\e\"f'g", r"\x41\x00\xff\xC3": b"A\0\xff\xc3",
        r"\u00e9\u20ac\u0000": "é€\0".encode(),
        r"\ud83d\ude00": "😀".encode(), r"\ud83d": rb"\ud83d", r"\ude00\ud83d": rb"\ude00\ud83d",
        r"\ud83d\u0041": rb"\ud83dA",
        "\\": b"\\", "a\\": b"a\\", r"\x": rb"\x", r"\x4": rb"\x4", r"\xg1": rb"\xg1",
        r"\u12": rb"\u12", r"\u123": rb"\u123", r"\u": rb"\u",
        r"\q\0\a": rb"\q\0\a", r"\\n": rb"\n", "\\x\x11\x12": b"\\x\x11\x12", "\\xPQ": b"\\xPQ",
        r"\xAbC": b"\xabC", "": b"",
    }.items():
        assert echo(any_run, tiny_model, "-e", "-i", typed) == want, typed
    assert echo(any_run, tiny_model, "-i", r"a\nb") == rb"a\nb"  # literal without -e


def prompt_of(exe: Path, model: Path, *args: str | Path, **more) -> bytes:
    """The bytes that were tokenized."""
    return bytes.fromhex("".join(tokens_of(exe, model, *args, **more)["bytes"]))


def test_the_last_newline(any_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    """One newline at the very end of a prompt that ends in a file or standard input is cut.

    Nothing else ever is."""
    for text in (b"", b"\n", b"\r\n", b"\r", b"\n\n", b"a", b"a\n", b"a\r\n", b"a\r", b"a\n\n",
                 b"a\r\n\r\n", b"\n a", b"a \n", b"a\n\r"):
        cut = (text.removesuffix(b"\n").removesuffix(b"\r")
               if text.endswith(b"\r\n") else text.removesuffix(b"\n"))
        (tmp_path / "f").write_bytes(text)
        for args in ([], ["-f", "-"], ["-f", tmp_path / "f"]):
            assert prompt_of(any_run, tiny_model, *args, stdin=text) == cut
            assert prompt_of(any_run, tiny_model, *args, "--keep-newline", stdin=text) == text
            assert echo(any_run, tiny_model, *args, stdin=text) == cut
            assert echo(any_run, tiny_model, *args, "--keep-newline", stdin=text) == text
        if b"\0" not in text:
            assert prompt_of(any_run, tiny_model, "-i", text) == text
        assert prompt_of(any_run, tiny_model, "-i", "b\n", "-f", tmp_path / "f") == b"b\n" + cut
        assert prompt_of(any_run, tiny_model, "-f", tmp_path / "f", "-i", "b\n") == text + b"b\n"
        assert prompt_of(any_run, tiny_model, "-f", tmp_path / "f", "-f",
                         tmp_path / "f") == text + cut
    (tmp_path / "r").write_bytes(b"a\r")
    (tmp_path / "n").write_bytes(b"\n")
    assert prompt_of(any_run, tiny_model, "-f", tmp_path / "r", "-f", tmp_path / "n") == b"a\r"


def test_the_readme_example(run_bin: Path, tiny_model: Path) -> None:
    """A prompt from echo is the same as one from -i, to the last logit."""
    script = 'echo "The capital of France is" | "$0" "$1" -n 20 -s 1'
    done = run(Path("/bin/bash"), "-c", script, run_bin, tiny_model)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == text_of(run_bin, tiny_model, "-i", "The capital of France is", "-n", "20",
                                  "-s", "1")


def test_parts_are_joined_in_order(any_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    odd = b"\0\xff\xc3\r\n\xed\xa0\x80 end"
    (tmp_path / "f").write_bytes(odd)
    (tmp_path / "empty").write_bytes(b"")
    assert echo(any_run, tiny_model, "-i", "a", "-f", tmp_path / "f", "-p", "b", "--prompt",
                "c") == b"a" + odd + b"bc"
    # read once, then at its end
    assert echo(any_run, tiny_model, "-f", "-", "-i", "a", "-f", "-",
                stdin=b"piped\0") == b"piped\0a"
    assert echo(any_run, tiny_model, "-e", "-f", tmp_path / "f", "-i", r"\n") == odd + b"\n"
    assert echo(any_run, tiny_model, "-f", tmp_path / "empty") == b""
    assert "missing: cannot read: No such file" in error_of(any_run, tiny_model, "-f",
                                                            tmp_path / "missing", code=1)
    assert "cannot read: Is a directory" in error_of(any_run, tiny_model, "-f", tmp_path, code=1)


def test_bytes_of_every_kind_pass_through(any_run: Path, tiny_model: Path) -> None:
    everything = bytes(range(256)) + bytes(reversed(range(256)))
    assert echo(any_run, tiny_model, "-c", "600",
                stdin=everything) == prompt_of(any_run, tiny_model, stdin=everything) == everything


def test_stdin_is_the_prompt_without_i(any_run: Path, tiny_model: Path, story: bytes) -> None:
    assert text_of(any_run, tiny_model, "-n", "60", *GREEDY, stdin=b"the") == story
    # starts from BOS
    assert text_of(any_run, tiny_model, "-n", "3",
                   *GREEDY) == text_of(any_run, tiny_model, "-n", "3", "-i", "", *GREEDY)


def test_stdin_is_left_alone_with_i(any_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    """A program that eats the loop's input breaks `while read`."""
    (tmp_path / "f").write_text("a")
    for args in (["-i", "a", "-n", "1"], ["-f", tmp_path / "f", "-n", "1"],
                 ["-i", "a", "--tokenize"]):
        out, into = os.pipe()
        os.write(into, b"one\ntwo\n")
        os.close(into)
        assert run(any_run, tiny_model, *args, stdin=out).returncode == 0
        assert os.read(out, 100) == b"one\ntwo\n"
        os.close(out)
    script = 'while read -r x; do "$0" "$1" -i "$x" -n 0 --echo; echo; done'
    done = subprocess.run(["bash", "-c", script, any_run, tiny_model], input=b"a\nb\nc\n",
                          capture_output=True, timeout=TIMEOUT)
    assert (done.stdout, done.stderr) == (b"a\nb\nc\n", b"")


def test_no_prompt_on_a_terminal(any_run: Path, tiny_model: Path) -> None:
    parent, child = pty.openpty()
    line = error_of(any_run, tiny_model, stdin=child, code=2)
    assert line == f'no prompt given; usage: run {tiny_model} -i "Once upon a time"'
    os.close(child)
    os.close(parent)


def test_closed_stdin(any_run: Path, tiny_model: Path) -> None:
    done = subprocess.run(["bash", "-c", '"$0" "$1" <&-', any_run, tiny_model], capture_output=True,
                          timeout=TIMEOUT)
    assert ((done.returncode, done.stdout) == (1, b"")
            and done.stderr == b"run: standard input: cannot read: Bad file descriptor\n")


def test_empty_prompts(any_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert text_of(any_run, tiny_model, "-i", "", "-n", "2", *GREEDY)
    assert ("the prompt is empty, want some text (--no-bos leaves nothing to start from)"
            in error_of(any_run, tiny_model, "-i", "", "--no-bos", code=2))
    assert text_of(any_run, tiny_model, "-i", "", "--no-bos", "--tokenize") == b""
    assert json.loads(text_of(any_run, tiny_model, "-i", "", "--no-bos", "--tokenize",
                              "--json")) == {"ids": [], "pieces": [], "text": [], "bytes": []}
    (tmp_path / "m").write_bytes(byte_level().build())
    assert "this model has no begin-of-text token" in error_of(any_run, tmp_path / "m", "-i", "",
                                                               code=2)


def test_prompts_beyond_the_context(any_run: Path, tiny_model: Path) -> None:
    """The tiny model has 256 positions and BOS takes one."""
    assert text_of(any_run, tiny_model, "-i", "a" * 255, "-n", "0") == b""
    assert error_of(any_run, tiny_model, "-i", "a" * 256, code=2) == \
        "prompt: got 257 tokens, want at most the context's 256 (the model's; -c N allows more)"
    assert text_of(any_run, tiny_model, "-i", "a" * 256, "-c", "257", "-n", "0") == b""
    assert error_of(any_run, tiny_model, "-i", "aaaa", "-c", "4",
                    code=2) == "prompt: got 5 tokens, want at most the context's 4 (-c)"
    full = text_of(any_run, tiny_model, "-i", "aaaa", "-c", "9", "--ignore-eos", *GREEDY)
    # 4 run, 1 more chosen
    assert full == text_of(any_run, tiny_model, "-i", "aaaa", "-n", "5", "--ignore-eos", *GREEDY)


def test_learned_positions_end(any_run: Path, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(byte_level(context=16).build())
    assert text_of(any_run, tmp_path / "m", "-i", "aa", "-c", "16", *GREEDY)
    assert "context: got 17 positions, want at most the 16 that the model has learned" in \
        error_of(any_run, tmp_path / "m", "-i", "aa", "-c", "17", code=2)
    assert "want at most the context's 16" in error_of(any_run, tmp_path / "m", "-i", "a" * 17,
                                                       code=2)


@pytest.mark.parametrize("letters", [b"a", b" ", b"the", b"\n", "é".encode(), b"\xff"], ids=repr)
def test_a_megabyte(run_bin: Path, tiny_model: Path, letters: bytes) -> None:
    """It is tokenised in about a second, and then too long. The limit is ten times the goal."""
    begin = time.monotonic()
    line = error_of(run_bin, tiny_model, stdin=letters * (1_000_000 // len(letters)), code=2)
    assert re.match(r"prompt: got \d{6,7} tokens, want at most the context's 256", line)
    assert time.monotonic() - begin < 10


def tokens_of(exe: Path, model: Path, *args: str | Path, **more) -> dict[str, list]:
    return json.loads(text_of(exe, model, "--tokenize", "--json", *args, **more))


def reference(model: Path) -> tokenizers.Tokenizer:
    """The byte-level tokenizer of a model in Hugging Face's library, made from the file's lists."""
    fields = gguf.GGUFReader(model).fields
    tokens, types, merges = (fields[f"tokenizer.ggml.{name}"].contents()
                             for name in ("tokens", "token_type", "merges"))
    t = tokenizers.Tokenizer(tokenizers.models.BPE({name: i for i, name in enumerate(tokens)},
                                                   [tuple(m.split(" ")) for m in merges]))
    t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = tokenizers.decoders.ByteLevel()
    t.add_special_tokens([name for name, kind in zip(tokens, types) if kind == 3])
    return t


def test_control_tokens_are_text_unless_special(any_run: Path, tiny_model: Path,
                                                tmp_path: Path) -> None:
    """--special is for -i, --special-files for files and standard input.

    The ids are those of tokenizers with and without its encode_special_tokens."""
    hf = reference(tiny_model)
    text = "<|end|>the<|bos|>a"
    hf.encode_special_tokens = True
    as_text = hf.encode(text).ids
    hf.encode_special_tokens = False
    parsed = hf.encode(text).ids
    assert len(parsed) == 4 and len(as_text) > 10
    (tmp_path / "f").write_text(text)

    def ids(*args: str | Path, **more) -> list[int]:
        got = tokens_of(any_run, tiny_model, *args, **more)["ids"]
        assert got[0] == 0
        return got[1:]

    for special, typed in (([], as_text), (["--special"], parsed), (["--special-files"], as_text),
                           (["--special", "--special-files"], parsed)):
        assert ids("-i", text, *special) == typed
        filed = parsed if "--special-files" in special else as_text
        assert ids("-f", tmp_path / "f", *special) == ids(*special, stdin=text.encode()) == filed
        assert ids("-i", text, "-f", tmp_path / "f", "-i", "<|end|>",
                   *special) == typed + filed + ids("-i", "<|end|>", *special)
    # not across the border either
    assert ids("-i", "<|e", "-f", "-", "--special", stdin=b"nd|>") == ids("-i", "<|end|>")
    assert tokens_of(any_run, tiny_model, "-i", "<|end|>", "--special", "--no-bos")["ids"] == [1]
    # one BOS
    assert tokens_of(any_run, tiny_model, "-i", "<|bos|>the", "--special")["ids"] == [0, 259]


def test_perplexity_reads_data(run_bin: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Its file holds no control tokens unless --special-files says so, and is never cut."""
    path = tmp_path / "f"
    for text in ("the<|end|>a", "the quick\n", "the quick\r\n\n"):
        path.write_bytes(text.encode())
        for flags in ([], ["--special-files"]):
            done = json.loads(text_of(run_bin, tiny_model, "--perplexity", path, "--json", *flags))
            assert done["window"] == len(tokens_of(run_bin, tiny_model, "-f", path,
                                                   "--keep-newline", *flags)["ids"])


def test_tokens_as_text_and_bytes(any_run: Path, tiny_model: Path) -> None:
    """Each token's text against tokenizers' decoder, and all bytes against the prompt."""
    hf = reference(tiny_model)
    prompt = bytes(range(256)) + "the thé 😀 \n".encode()
    got = tokens_of(any_run, tiny_model, "--keep-newline", stdin=prompt)
    assert bytes.fromhex("".join(got["bytes"])) == prompt and got["bytes"][0] == ""
    for i, piece, text, raw in list(zip(*got.values()))[1:]:
        assert piece == hf.id_to_token(i)
        want = hf.decode([i])
        assert bytes.fromhex(raw).decode("utf-8", "replace") == want
        assert text == (want if "\ufffd" not in want and "\0" not in want else f"\\x{raw.upper()}")
    assert got["text"][0] == got["pieces"][0] == "<|bos|>"


def test_tokens_on_lines(any_run: Path, tiny_model: Path) -> None:
    done = text_of(any_run, tiny_model, "--tokenize", "-i", "the\n é")
    assert done.decode().split("\n") == ['     0  "<|bos|>"', '   259  "the"', r'    12  "\x0a"',
                                         '    34  " "', r'   197  "\xc3"', r'   171  "\xa9"', ""]


# ---- standard output -----------------------------------------------------------------------------


def read_terminal(parent: int) -> bytes:
    """What was written to a terminal that is closed by now, with \\n for its \\r\\n."""
    out = b""
    try:
        while chunk := os.read(parent, 65536):
            out += chunk
    except OSError:  # Linux's end of file on a terminal
        pass
    os.close(parent)
    return out.replace(b"\r\n", b"\n")


def on_terminal(exe: Path, *args: str | os.PathLike) -> bytes:
    r"""Standard output of a run whose output is a terminal (its \r\n made \n again)."""
    parent, child = pty.openpty()
    done = run(exe, *args, stdout=child)
    os.close(child)
    assert (done.returncode, done.stderr) == (0, b"")
    return read_terminal(parent)


def test_a_final_newline_only_on_a_terminal(any_run: Path, tiny_model: Path) -> None:
    args = [tiny_model, "-n", "0", "--echo"]
    assert on_terminal(any_run, *args, "-i", "abc") == b"abc\n"
    assert on_terminal(any_run, *args, "-e", "-i", r"abc\n") == b"abc\n"
    assert on_terminal(any_run, tiny_model, "-n", "0", "-i", "abc") == b""
    assert text_of(any_run, *args, "-i", "abc") == b"abc"


def test_output_that_cannot_be_written(any_run: Path, tiny_model: Path) -> None:
    tries = ([tiny_model, "-i", "the", "-n", "5"], [tiny_model, "-i", "the", "--tokenize"],
             ["--help"], ["--man"], ["--version"], ["--completion", "zsh"],
             [tiny_model, "-i", "the", "-n", "0", "--echo"])
    for args in tries:
        with open("/dev/full", "wb") as full:
            assert error_of(any_run, *args, stdout=full,
                            code=1) == "standard output: cannot write: No space left on device"
        closed = run(Path("/bin/bash"), "-c", 'exec "$@" >&-', "-", any_run, *args)
        assert (closed.returncode,
                closed.stderr) == (1, b"run: standard output: cannot write: Bad file descriptor\n")
    with open("/dev/full", "wb") as full:  # nothing to write
        assert run(any_run, tiny_model, "-i", "the", "-n", "0", stdout=full).returncode == 0


def test_a_closed_pipe(run_bin: Path, long_model: Path) -> None:
    """`./run … | head -c 1` ends by SIGPIPE; where that is ignored, with an error."""
    script = ('"$0" "$1" -i the -c 100000 --ignore-eos {}| head -c 1 > /dev/null; echo '
              '${{PIPESTATUS[0]}}')
    done = run(Path("/bin/bash"), "-c", script.format(""), run_bin, long_model)
    assert (done.stdout, done.stderr) == (b"141\n", b"")
    done = run(Path("/bin/bash"), "-c", 'trap "" PIPE; ' + script.format(""), run_bin, long_model)
    assert (done.stdout,
            done.stderr) == (b"1\n", b"run: standard output: cannot write: Broken pipe\n")


def test_closed_stdout_does_not_become_the_logits(run_bin: Path, tiny_model: Path,
                                                  tmp_path: Path) -> None:
    """A file opened while descriptor 1 is closed would get it. A run that fails leaves none."""
    npy = tmp_path / "l.npy"
    script = '"$0" "$1" -i the {} --logits "$2" >&-'
    done = run(Path("/bin/bash"), "-c", script.format("--echo -n 3"), run_bin, tiny_model, npy)
    assert done.returncode == 1 and not os.listdir(tmp_path)
    done = run(Path("/bin/bash"), "-c", script.format("-n 0"), run_bin, tiny_model, npy)
    assert done.returncode == 0 and np.load(npy).shape == (2, VOCAB)


def test_echo(any_run: Path, tiny_model: Path, story: bytes) -> None:
    assert text_of(any_run, tiny_model, "-i", "the", "-n", "60", "--echo",
                   *GREEDY) == b"the" + story
    assert echo(any_run, tiny_model, "-i", "x" * 200) == b"x" * 200
    # what was typed, without our BOS
    for typed in ("<|end|>the", "<|bos|>the", "<|bos|><|bos|>the<|end|>", "<|bos|>", "the<|end|>"):
        for flags in ([], ["--special"], ["--special", "--no-bos"]):
            assert echo(any_run, tiny_model, "-i", typed, *flags) == typed.encode()
            assert echo(any_run, tiny_model, "--special-files", *flags,
                        stdin=typed.encode()) == typed.encode()
    cut = "é".encode()[:1]  # an incomplete character waits for what the model says
    tail = text_of(any_run, tiny_model, "-i", cut, "-n", "9", *GREEDY)
    assert text_of(any_run, tiny_model, "-i", cut, "-n", "9", "--echo", *GREEDY) == cut + tail


def test_n_0_prints_nothing(any_run: Path, tiny_model: Path) -> None:
    assert text_of(any_run, tiny_model, "-i", "the", "-n", "0") == b""


def endings(exe: Path, *args: str | Path, **more) -> tuple[bytes, str]:
    """The text of a run, and the reason that -v gives for its end."""
    done = run(exe, *args, "-v", **more)
    assert done.returncode == 0, done.stderr
    (why,) = re.findall(r"^ended by: (.+)$", done.stderr.decode(), re.M)
    return done.stdout, why


def test_why_a_text_ended(any_run: Path, tiny_model: Path) -> None:
    args = [any_run, tiny_model, "-i", "the", *GREEDY]
    assert endings(*args, "-n", "3", "--ignore-eos")[1] == "-n 3"
    assert endings(*args, "-n", "0") == (b"", "-n 0")
    assert endings(*args, "--logit-bias", "1+inf") == (b"", "end token 1, <|end|>")
    assert endings(*args, "-c", "9", "--ignore-eos")[1] == "the context of 9 tokens is full (-c)"
    assert endings(*args, "--ignore-eos")[1] == "the context of 256 tokens is full (-c)"
    # both: as many as were asked for
    assert endings(*args, "-c", "9", "-n", "8", "--ignore-eos")[1] == "-n 8"
    a = str(2 + ord("a"))
    assert endings(*args, "--logit-bias", f"{a}+inf", "--stop", "b", "--stop", "aa", "--stop",
                   "aaa") == (b"", '--stop "aa"')
    assert endings(*args, "--logit-bias", f"{a}+inf", "--stop", "aab", "-n",
                   "4") == (b"aaaa", "-n 4")


def test_a_signal_as_the_end(any_run: Path, long_model: Path) -> None:
    p = start(any_run, long_model, "-i", "the", "-c", "1000000", "-s", "1", "--ignore-eos", "-v")
    p.stdout.read(20)
    p.send_signal(signal.SIGINT)
    _, stderr = p.communicate(timeout=TIMEOUT)
    assert (p.returncode == -signal.SIGINT
            and stderr.decode().splitlines()[-1] == "ended by: signal 2, Interrupt")


def test_verbose_begins_on_a_new_line(any_run: Path, tiny_model: Path) -> None:
    """Also where standard error shows the text too.

    That is with one pipe, one file, one terminal, or a terminal at the end of a pipe."""
    a, newline = 2 + ord("a"), 2 + ord("\n")
    args = [any_run, tiny_model, "-i", "x", "-n", "2", "-v", *GREEDY]
    for token, text in ((a, b"aa\n"), (newline, b"\n\n")):
        bias = ["--logit-bias", f"{token}+inf"]
        done = run(*args, *bias, stderr=subprocess.STDOUT)
        assert done.returncode == 0 and re.search(rb"seed \d+\n" + text + rb"prompt: 2 tokens",
                                                  done.stdout), done.stdout
        apart = run(*args, *bias)
        assert (apart.stdout + b"\n" * (token == a) == text
                and re.search(rb"seed \d+\nprompt: ", apart.stderr))
        # the text through a pipe may end up there
        for both, want in ((True, text), (False, b"\n" * (token == a))):
            parent, child = pty.openpty()
            done = run(*args, *bias, stderr=child, **({"stdout": child} if both else {}))
            os.close(child)
            shown = read_terminal(parent)
            assert done.returncode == 0 and re.search(rb"seed \d+\n" + want + rb"prompt: 2 tokens",
                                                      shown), shown


def test_an_error_begins_on_a_new_line(any_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "full.csv").symlink_to("/dev/full")
    args = [any_run, tiny_model, "-i", "x", "-n", "2", *GREEDY, "--logit-bias",
            f"{2 + ord('a')}+inf", "--attn-stats", tmp_path / "full.csv"]
    done = run(*args, stderr=subprocess.STDOUT)
    assert (done.returncode, done.stdout) == (1, f"aa\nrun: {tmp_path}/full.csv: cannot write: No "
                                              "space left on device\n".encode())
    assert run(*args).stdout == b"aa" and run(*args).stderr.startswith(b"run: ")


def test_a_long_context_is_noted(any_run: Path, tiny_model: Path) -> None:
    args = [any_run, tiny_model, "-i", "the", "-n", "1", *GREEDY, "-c"]
    note = "run: -c 257 is more than the 256 tokens that the model was made for"
    assert text_of(*args, "257") == text_of(*args[:-1])
    assert note in run(*args, "257", "-v").stderr.decode().splitlines()
    assert not any(line.startswith("run:")
                   for line in run(*args, "256", "-v").stderr.decode().splitlines())
    for size, want in (("257", f"{note}\n".encode()), ("256", b"")):
        parent, child = pty.openpty()
        done = run(*args, size, stderr=child)
        os.close(child)
        assert done.returncode == 0 and read_terminal(parent) == want


def test_progress_spares_the_prompt(any_run: Path, tiny_model: Path) -> None:
    """On a terminal the line that shows how far the prompt is would wipe out the end of --echo."""
    parent, child = pty.openpty()
    done = run(any_run, tiny_model, "-i", "the quick brown fox", "-n", "0", "-b", "2", "--echo",
               stdout=child, stderr=child)
    os.close(child)
    assert done.returncode == 0 and read_terminal(parent) == b"the quick brown fox\n"


def test_verbose_is_on_stderr(any_run: Path, tiny_model: Path, story: bytes) -> None:
    done = run(any_run, tiny_model, "-i", "the", "-n", "60", "-v", "-s", "42", *GREEDY)
    assert (done.returncode, done.stdout) == (0, story)
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 5 and "llama" in lines[0] and "seed 42" in lines[1]
    assert re.match(r"prompt: 2 tokens in [\d.]+ s, [\d.]+ tokens/s",
                    lines[2]) and "generated: 60 tokens" in lines[3]


# ---- stop texts ----------------------------------------------------------------------------------


def stoppable(story: bytes) -> list[tuple[int, int]]:
    """Slices of a story that make stop texts.

    No zeros, several tokens, ending where a character may end."""
    return [(a, b) for a, b in ((0, 1), (3, 7), (10, 20), (len(story) - 6, len(story)))
            if b"\0" not in story[a:b]]


def test_stop(any_run: Path, tiny_model: Path, story: bytes) -> None:
    args = [tiny_model, "-i", "the", "-n", "60", *GREEDY]
    assert len(stoppable(story)) >= 3
    for a, b in stoppable(story):
        stop = story[a:b]
        assert text_of(any_run, *args, "--stop", stop) == story[:story.find(stop)]
        assert text_of(any_run, *args, "--stop", stop,
                       "--echo") == b"the" + story[:story.find(stop)]
        # only begun: printed after all
        assert text_of(any_run, *args, "--stop", stop + b"\x01zz") == story
    (a, b), (c, d) = stoppable(story)[1:3]
    first = min(story.find(story[a:b]), story.find(story[c:d]))
    assert text_of(any_run, *args, "--stop", story[c:d], "--stop", story[a:b], "--stop",
                   "never") == story[:first]
    inner = story[a + 1:a + 3]  # within a longer one that begins earlier but is never completed
    assert text_of(any_run, *args, "--stop", story[a:a + 3] + b"\x01", "--stop",
                   inner) == story[:story.find(inner)]
    # not looked for in the prompt
    assert text_of(any_run, *args, "--stop",
                   "the") == story[:story.find(b"the")] if b"the" in story else story


def test_stop_at_control_tokens(any_run: Path, tiny_model: Path) -> None:
    """A stop text that is or holds a control token meets the token, not its name.

    Where control tokens are printed their names are text."""
    # a <|bos|> b c: each once, as the penalty has it
    order = [2 + ord("a"), 0, 2 + ord("b"), 2 + ord("c"), 0]
    bias = [x for rank, i in enumerate(order[:4])
            for x in ("--logit-bias", f"{i}+{10000 - 1000 * rank}")]
    args = [any_run, tiny_model, "-i", "x", "-n", "4", *GREEDY, "--presence-penalty", "1e5",
            "--no-bos", *bias]
    assert text_of(*args) == b"abc" and text_of(*args, "--special") == b"a<|bos|>bc"
    for stop, hidden, shown in (
        ("<|bos|>", b"a", b"a"), ("a<|bos|>", b"", b""), ("<|bos|>b", b"a", b"a"),
        ("a<|bos|>bc", b"", b""), ("b", b"a", b"a<|"),
        ("<|bos|>c", b"abc", b"a<|bos|>bc"), ("<|bos|>bd", b"abc", b"a<|bos|>bc"),
        ("bos", b"abc", b"a<|"), (">", b"abc", b"a<|bos|"),
        ("|>b", b"abc", b"a<|bos"), ("<", b"abc", b"a"), ("a<", b"abc", b""),
        ("<|end|>", b"abc", b"a<|bos|>bc"), ("ab", b"abc", b"a<|bos|>bc")):
        assert text_of(*args, "--stop", stop) == hidden, stop
        assert text_of(*args, "--stop", stop, "--special") == shown, stop
        assert text_of(*args, "--stop", "never", "--stop", stop, "--stop",
                       "<|bos|>zz") == hidden, stop
    end = [any_run, tiny_model, "-i", "x", "-n", "50", *GREEDY, "--logit-bias", "1+inf",
           "--ignore-eos"]
    assert endings(*end)[1] == "-n 50" and endings(*end, "--stop",
                                                   "<|end|>") == (b"", '--stop "<|end|>"')
    assert b"generated: 1 tokens" in run(*end, "--stop", "<|end|>", "-v").stderr


def test_stop_obeys_escapes(any_run: Path, tiny_model: Path) -> None:
    def story(code: int, *flags: str) -> bytes:
        return text_of(any_run, tiny_model, "-i", "x", "-n", "3", *GREEDY, "--logit-bias",
                       f"{2 + code}+inf", *flags)

    for code, typed in ((10, r"\n"), (9, r"\t"), (0, r"\x00"), (255, r"\xff"), (65, r"\u0041")):
        assert story(code, "-e", "--stop", typed) == story(code, "--stop", typed, "-e") == b""
        assert story(code, "--stop", typed) == bytes([code]) * 3
        assert story(code, "-e", "--stop", typed + typed + "a") == bytes([code]) * 3
    assert story(92, "-e", "--stop",
                 r"\\") == b"" and story(92, "-e", "--stop", r"\\\\\\\\") == b"\\" * 3


# ---- end tokens, sampling ------------------------------------------------------------------------


def test_end_tokens(any_run: Path, tiny_model: Path) -> None:
    args = [tiny_model, "-i", "the", "-n", "4", *GREEDY]
    assert text_of(any_run, *args, "--logit-bias", "1+inf") == b""
    # control tokens print nothing
    assert text_of(any_run, *args, "--logit-bias", "1+inf", "--ignore-eos") == b""
    assert text_of(any_run, *args, "--logit-bias", "1+inf", "--ignore-eos",
                   "--special") == b"<|end|>" * 4


def test_logit_bias(any_run: Path, tiny_model: Path) -> None:
    a = 2 + ord("a")
    for mode in (GREEDY, ["--temp", "3"], ["--top-p", "1", "--min-p", "0", "--top-k", "0"],
                 ["--temp", "1e-30"]):
        assert text_of(any_run, tiny_model, "-i", "x", "-n", "5", *mode, "--logit-bias",
                       f"{a}+inf") == b"aaaaa"
        assert text_of(any_run, tiny_model, "-i", "x", "-n", "5", *mode, "--logit-bias",
                       f"{a}+1e30") == b"aaaaa"
    free = text_of(any_run, tiny_model, "-i", "x", "-n", "1", *GREEDY)
    assert text_of(any_run, tiny_model, "-i", "x", "-n", "1", *GREEDY, "--logit-bias",
                   f"{2 + free[0]}-inf") != free
    assert text_of(any_run, tiny_model, "-i", "x", "-n", "1", *GREEDY, "--logit-bias",
                   "259+0") == free
    for v in ("260+1", "268435456-1"):
        assert f"--logit-bias: got token {int(re.split('[+-]', v)[0])}, want 0 to 259" == error_of(
            any_run, tiny_model, "-i", "x", "--logit-bias", v, code=2)
    none = [x for i in range(VOCAB) for x in ("--logit-bias", f"{i}-inf")]
    assert "no token has a finite logit" in error_of(any_run, tiny_model, "-i", "x", "-n", "1",
                                                     *none, code=1)


def test_seeds(any_run: Path, tiny_model: Path) -> None:
    args = [tiny_model, "-i", "the", "-n", "40"]
    one = text_of(any_run, *args, "-s", "1")
    assert one == text_of(any_run, *args, "--seed=1")
    assert one != text_of(any_run, *args, "-s", "2")
    assert text_of(any_run, *args, "-s", "18446744073709551615")
    for random in ([], ["-s", "-1"], ["-s", "1", "--seed=-1"]):
        assert len({text_of(any_run, *args, *random) for _ in range(3)}) > 1
    assert text_of(any_run, *args, "-s", "-1", "-s", "1") == one
    shown = re.search(rb"seed (\d+)", run(any_run, *args, "-v").stderr)
    done = run(any_run, *args, "-v", "-s", shown[1].decode())
    assert shown[0] in done.stderr


def test_greedy(any_run: Path, tiny_model: Path, story: bytes, tmp_path: Path) -> None:
    """--temp 0 takes the largest logit.

    So do top-k 1, top-p 0, min-p 1 and a vanishing temperature."""
    args = [tiny_model, "-i", "the", "-n", "60"]
    for same in (["--top-k", "1"], ["--top-p", "0"], ["--min-p", "1"],
                 ["--temp", "1e-30", "--top-p", "1", "--min-p", "0", "--top-k", "0"]):
        assert text_of(any_run, *args, *same) == story
    path = tmp_path / "l.npy"
    assert text_of(any_run, *args, *GREEDY, "--logits", path) == story
    logits = np.load(path)
    assert logits.shape == (2 + 60 - 1,
                            VOCAB) and logits.dtype == np.float32 and np.isfinite(logits).all()
    ids = logits[1:].argmax(axis=1)  # of the last prompt token and of every token that was run
    names = json.loads(text_of(any_run, tiny_model, "--tokenize", "--json",
                               stdin=bytes(range(256))))["ids"][1:]
    piece = {i: bytes([b]) for b, i in enumerate(names)} | {0: b"", 1: b"", 258: b"th", 259: b"the"}
    assert b"".join(piece[i] for i in ids) == story


def test_penalties_change_the_text(any_run: Path, tiny_model: Path) -> None:
    """The flags arrive, and the prompt counts.

    The arithmetic of penalties is tested in test_sampler.c."""
    args = [tiny_model, "-i", "aaaa", "-n", "30", *GREEDY, "--ignore-eos"]
    plain = text_of(any_run, *args)
    for flags in (["--presence-penalty", "50"], ["--frequency-penalty", "50"],
                  ["--repeat-penalty", "1000"]):
        assert text_of(any_run, *args, *flags) != plain
        assert text_of(any_run, *args, *flags, "--repeat-last-n", "0") == plain
    never_twice = text_of(any_run, *args, "--presence-penalty", "1e6", "--repeat-last-n", "-1",
                          "--logit-bias", "258-inf", "--logit-bias", "259-inf")
    assert b"a" not in never_twice and len(set(never_twice)) == len(never_twice)


# ---- logits, and that nothing depends on the form ------------------------------------------------


PROMPT = "the quick brown fox jumps over the lazy dog and " * 4


def test_same_bytes(any_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "l.npy"
    args = ["-i", PROMPT, "-n", "30", "-s", "5", "--ignore-eos"]
    for kv in ("f16", "f32", "q8"):
        _, want = logits_of(any_run, tiny_model, path, *args, "--kv", kv)
        text = text_of(any_run, tiny_model, *args, "--kv", kv)
        assert len(want) == len(json.loads(text_of(any_run, tiny_model, "--tokenize", "--json",
                                                   "-i", PROMPT))["ids"]) + 29
        for form in (["-t", "1"], ["-t", "2"], ["-t", "3"], ["-b", "1"], ["-b", "7"], ["-b", "32"],
                     ["-b", "64"], ["-b", "65536"], ["-t", "2", "-b", "5"],
                     ["-c", "250"], ["-c", "5000"], *([["--exact"]] if kv == "f32" else [])):
            got_text, got = logits_of(any_run, tiny_model, path, *args, "--kv", kv, *form)
            assert got_text == text and got.tobytes() == want.tobytes(), (kv, form)
            assert text_of(any_run, tiny_model, *args, "--kv", kv, *form) == text, (kv, form)


def test_kv_types(run_bin: Path, tiny_model: Path, tmp_path: Path) -> None:
    """An f16 cache moves logits by about 1e-3, a q8 cache more, and neither by nothing.

    f16 has 11 bits, q8 has 8; the logits deviate by about 5."""
    path, args = tmp_path / "l.npy", ["-i", PROMPT, "-n", "0", "--exact"]
    _, half = logits_of(run_bin, tiny_model, path, *args)
    _, named = logits_of(run_bin, tiny_model, path, *args, "--kv", "f16")
    _, full = logits_of(run_bin, tiny_model, path, *args, "--kv", "f32")
    assert half.tobytes() == named.tobytes()
    assert 0 < np.abs(half - full).max() < 2e-2 * full.std()
    _, byte = logits_of(run_bin, tiny_model, path, *args, "--kv", "q8")
    assert np.abs(half - full).max() < np.abs(byte - full).max() < 16e-2 * full.std()


def test_kv_size(run_bin: Path, smollm2_path: Path) -> None:
    """30 layers of 3 heads with 64 keys and 64 values: 2 bytes each, or 1 and three scales of 4."""
    for kv, kb in (("f16", "23.0"), ("f32", "46.1"), ("q8", "12.6")):
        done = run(run_bin, smollm2_path, "-i", "x", "-n", "0", "-v", "--kv", kv)
        assert f"KV cache {kv} {kb} KB per token" in done.stderr.decode()


def test_kernel_tables(run_bin: Path, tiny_model: Path, tmp_path: Path, table: str) -> None:
    """Kernel tables differ by the order of their sums only.

    That is at most about sqrt(64) * 2^-24 relative for each of 14 products in a row, with growth
    through two layers; 1e-4 of the deviation is a hundred times that and far below any mistake."""
    path = tmp_path / "l.npy"
    _, want = logits_of(run_bin, tiny_model, path, "-i", PROMPT, "-n", "0", "--kv", "f32",
                        env={"RUN_CPU": "scalar"})
    done = run(run_bin, tiny_model, "-i", PROMPT, "-n", "0", "-v", "--kv", "f32", "--logits", path,
               env={"RUN_CPU": table})
    if done.returncode == 2 and table != "scalar":
        assert f'RUN_CPU: got "{table}", want one of: scalar' in done.stderr.decode()
        pytest.skip(f"this machine has no {table}")
    assert f"kernels {table}," in done.stderr.decode()
    assert np.abs(np.load(path) - want).max() < 1e-4 * want.std()


def test_run_cpu(any_run: Path, tiny_model: Path) -> None:
    assert 'RUN_CPU: got "sse\\x1b", want one of: scalar' in error_of(
        any_run, tiny_model, "-i", "a", env={"RUN_CPU": "sse\x1b"}, code=2)
    assert run(any_run, tiny_model, "-i", "a", "-n", "1", env={"RUN_CPU": ""}).returncode == 0


def test_omp_num_threads(run_bin: Path, tiny_model: Path, story: bytes) -> None:
    for v, threads in (("3", 3), ("2,4", 2), ("garbage", None), ("-4", None), ("", None),
                       ("99999999", None), ("0", None)):
        done = run(run_bin, tiny_model, "-i", "the", "-n", "60", *GREEDY, "-v",
                   env={"OMP_NUM_THREADS": v})
        assert (done.returncode, done.stdout) == (0, story)
        ours = [line for line in done.stderr.decode().splitlines()
                if line and not line.startswith("libgomp")]
        shown = int(re.search(r", (\d+) threads,", done.stderr.decode())[1])
        assert len(ours) == 5 and (shown == threads if threads else 1 <= shown <= os.cpu_count())
    done = run(run_bin, tiny_model, "-i", "the", "-n", "1", "-v", "-t", "2",
               env={"OMP_NUM_THREADS": "1"})
    assert b" 2 threads," in done.stderr


def test_logits_to_the_wrong_place(any_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    args = [tiny_model, "-i", "the", "-n", "1", "--logits"]
    for device in ("stdout", "full"):
        (tmp_path / f"{device}.npy").symlink_to(f"/dev/{device}")
        line = error_of(any_run, *args, tmp_path / f"{device}.npy", code=1)
        assert line.endswith(f"{device}.npy: got a pipe or device, want a "
                             "regular file (its header is written last)")
        assert run(any_run, *args, tmp_path / f"{device}.npy").stdout == b""
    (tmp_path / "folder.npy").mkdir()
    assert "got a folder, want a regular file" in error_of(any_run, *args, tmp_path / "folder.npy",
                                                           code=1)
    assert "l.npy: cannot write: No such file or directory" in error_of(
        any_run, *args, tmp_path / "no" / "l.npy", code=1)
    limited = ["-c", 'ulimit -f 1; trap "" XFSZ; exec "$@"', "-", any_run, tiny_model, "-i", PROMPT,
               "-n", "9", "--logits", tmp_path / "l.npy"]
    assert "l.npy: cannot write: File too large" in error_of(Path("/bin/bash"), *limited, code=1)


def test_a_failed_run_leaves_old_logits(any_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "l.npy"
    path.write_text("old")
    error_of(any_run, tiny_model, "-i", "a" * 300, "--logits", path, code=2)
    assert path.read_text() == "old"


# ---- signals -------------------------------------------------------------------------------------


def start(exe: Path, *args: str | os.PathLike, **more) -> subprocess.Popen[bytes]:
    return subprocess.Popen([exe, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            **{"stdin": subprocess.DEVNULL, **more})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_generating(any_run: Path, long_model: Path, tmp_path: Path,
                                 number: signal.Signals) -> None:
    """What was generated stays printed, files are whole, and the process dies by that signal."""
    path = tmp_path / "l.npy"
    p = start(any_run, long_model, "-i", "the", "-c", "1000000", "-s", "1", "--ignore-eos",
              "--logits", path)
    first = p.stdout.read(20)
    p.send_signal(number)
    rest, stderr = p.communicate(timeout=TIMEOUT)
    assert (p.returncode, stderr) == (-number, b"")
    logits = np.load(path)
    assert logits.shape[1] == VOCAB and len(logits) >= 20 // 3 and len(first + rest) >= 20
    whole = text_of(any_run, long_model, "-i", "the", "-n", "5", "-s", "1", "--ignore-eos")
    assert (first + rest).startswith(whole)


def test_signal_in_a_long_prompt(any_run: Path, long_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "l.npy"
    (tmp_path / "f").write_bytes(b"a b " * 50_000)
    p = start(any_run, long_model, "-f", tmp_path / "f", "-b", "16", "--logits", path)
    while sum(f.stat().st_size for f in tmp_path.glob(".attn.*.part")) < 100_000:
        assert p.poll() is None
        time.sleep(0.01)
    p.send_signal(signal.SIGINT)
    assert p.communicate(timeout=TIMEOUT) == (b"", b"") and p.returncode == -signal.SIGINT
    logits = np.load(path)
    assert 10 < len(logits) < 200_000 and logits.shape[1] == VOCAB and np.isfinite(logits).all()


def test_signal_while_waiting_for_stdin(any_run: Path, tiny_model: Path) -> None:
    p = start(any_run, tiny_model, stdin=subprocess.PIPE)
    p.stdin.write(b"half a prompt")
    p.stdin.flush()
    time.sleep(0.3)
    assert p.poll() is None
    p.send_signal(signal.SIGINT)
    assert p.wait(TIMEOUT) == -signal.SIGINT
    assert (p.stdout.read(), p.stderr.read()) == (b"", b"")
    for stream in (p.stdin, p.stdout, p.stderr):
        stream.close()


def test_an_ignored_signal_stays_ignored(run_bin: Path, long_model: Path) -> None:
    """As under nohup, or in the background of a script."""
    p = start(run_bin, long_model, "-i", "the", "-c", "1000000", "--ignore-eos",
              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    p.stdout.read(10)
    p.send_signal(signal.SIGINT)
    assert len(p.stdout.read(2000)) == 2000 and p.poll() is None
    p.terminate()
    p.communicate(timeout=TIMEOUT)
    assert p.returncode == -signal.SIGTERM


# ---- modes and flags -----------------------------------------------------------------------------

MODES = {"g": [], "l": ["--lines", "short"], "s": ["--score", "--lines", "short"],
         "e": ["--embed", "--lines", "short"],
         "c": ["--chat", "--chat-template", "form"],
         "r": ["--render", "--messages", "talk", "--chat-template", "form"],
         "t": ["--tokenize"], "n": ["--info"],
         "p": ["--perplexity", "text"],
         "b": ["--bench", "--pp", "2", "--tg", "1", "--runs", "1"],
         "q": ["--quantize", "f16", "-o", "out"]}
TAKES = {  # flag: the modes that take it, and a value
         "-i": ("gcte", "the"), "-f": ("gcte", "text"), "--keep-newline": ("gcte", None),
         "-e": ("gclte", None), "--special": ("gclte", None),
         "--special-files": ("glstpe", None), "--no-bos": ("glstpe", None),
         "-n": ("gcl", "2"), "--stop": ("gcl", "x"), "--ignore-eos": ("gcl", None),
         "--echo": ("gl", None), "--save-session": ("g", "s.kv"), "--load-session": ("g", "l.kv"),
         "--temp": ("gcl", "1"), "--top-k": ("gcl", "3"), "--top-p": ("gcl", "0.5"),
         "--min-p": ("gcl", "0.1"), "--repeat-penalty": ("gcl", "1.5"),
         "--presence-penalty": ("gcl", "1"), "--frequency-penalty": ("gcl", "1"),
         "--repeat-last-n": ("gcl", "3"), "--logit-bias": ("gcl", "5+1"), "-s": ("gcl", "1"),
         "-c": ("gclspe", "64"), "-b": ("gclspbe", "3"), "-t": ("gclspbqe", "1"),
         "--kv": ("gclspbe", "f32"),
         "--exact": ("gclspbe", None),
         "--dump-attn": ("ge", "a.csv"), "--attn-stats": ("ge", "b.csv"),
         "--attn-layers": ("ge", "0"),
         "--dump-routing": ("g", "r.csv"),
         "--attn-heads": ("ge", "0"), "--attn-queries": ("ge", "all"),
         "--attn-reduce": ("ge", "mean"), "--attn-dtype": ("ge", "f16"), "--attn-top": ("ge", "3"),
         "--tokenize": ("t", None), "--perplexity": ("p", "text"), "--bench": ("b", None),
         "--quantize": ("q", "f16"),
         "--pp": ("b", "3"), "--tg": ("b", "2"), "--depth": ("b", "1"), "--runs": ("b", "2"),
         "--quantize-type": ("q", "attn_v=f32"), "-o": ("lsqe", "out"),
         "--json": ("gctnrpbe", None), "--info": ("n", None),
         "--logprobs": ("gl", "2"), "--samples": ("g", "1"),
         "--jsonl": ("lse", "lines"), "--lines": ("lse", "short"), "--score": ("s", None),
         "--embed": ("e", None), "--pooling": ("e", "mean"), "--no-normalize": ("e", None),
         "--truncate": ("e", None),
         "--first-line": ("lse", "7"), "--parallel": ("ls", "2"), "--unordered": ("lse", None),
         "--timings": ("l", None), "--resume": ("lse", None),
         "--grammar": ("gcl", 'root ::= "x"'), "--grammar-file": ("gcl", "gbnf"),
         "--json-schema": ("gcl", "{}"), "--json-schema-file": ("gcl", "schema"),
         "--chat": ("cl", None), "--system": ("cls", "x"),
         "--render": ("r", None), "--messages": ("rc", "talk"), "--tools": ("rcls", "tools"),
         "--chat-template": ("rcls", "form"), "--chat-template-kwargs": ("rcls", "{}"),
         "--no-generation-prompt": ("r", None),
         "--logits": ("g", "c.npy"), "-v": ("gclspbqe", None),
         }
CHOOSE = ("--score", "--embed", "--chat", "--render", "--tokenize", "--info", "--perplexity",
          "--bench", "--quantize")
CHAT = ("--chat", "--system", "--tools", "--chat-template", "--chat-template-kwargs")
INPUTS = ("--jsonl", "--lines")  # forms of input: they choose a mode only alone
ALONE = ["--help", "--version", "--man", "--completion=bash"]  # they need no model


def test_every_mode_and_flag(run_bin: Path, tiny_model: Path, tmp_path: Path,
                             monkeypatch: pytest.MonkeyPatch) -> None:
    """Each flag of --help in each mode, under each of its names.

    The mode takes it, or refuses it by name."""
    (tmp_path / "text").write_text("the quick brown fox jumps over the lazy dog " * 3)
    (tmp_path / "lines").write_text('"the"\n')
    (tmp_path / "short").write_text("the\nfox\n")
    (tmp_path / "talk").write_text('[{"role": "user", "content": "the"}]')
    (tmp_path / "tools").write_text("[]")
    (tmp_path / "gbnf").write_text('root ::= "x"')
    (tmp_path / "schema").write_text("{}")
    (tmp_path / "form").write_text("{{ messages[0].content }}")
    (tmp_path / "experts").write_bytes(smallest_experts().build())
    monkeypatch.chdir(tmp_path)
    text_of(run_bin, tiny_model, "-i", "the", "-n", "1", "--save-session", "l.kv")
    rows = flags_of_help(run_bin)
    alone = {flag.split("=")[0] for flag in ALONE}
    assert (len(rows) == len(TAKES) + len(alone)
            and set(TAKES) | alone <= {name for names, _ in rows for name in names})
    for names, arg in rows:
        (key,) = [n for n in names if n in TAKES or n in alone]
        if key in alone:
            continue
        modes, value = TAKES[key]
        assert bool(arg) == (value is not None), names
        for mode, base in MODES.items():
            if (key in base or (mode in "lsce" and key in INPUTS)
                    or (mode == "g" and key == "--chat")):  # it takes what generation does
                continue
            more = ["-i", "the"] if mode in "gtc" and key not in ("-i", "-f") else []
            more += ["-n", "1"] if mode in "glc" and key != "-n" else []
            more += ["--dump-attn", "d.csv", "--dump-attn",
                     "d.npz"] if mode in "ge" and key.startswith("--attn") else []
            if mode == "e" and ("--attn" in key or key == "--dump-attn"):  # maps are of one text
                base, more = base[:1], [*more, "-i", "the"]
            if mode == "s" and key in CHAT:  # these are for messages
                base = [base[0], "--jsonl", "lines"]
            if mode == "l" and key in CHAT:  # with --lines these need --chat, and that a template
                more += ["--chat"] if key != "--chat" else []
                more += ["--chat-template", "form"] if key != "--chat-template" else []
            more += ["-o", f"again.{mode}"] if mode in "lse" and key == "--resume" else []
            if mode == "e" and key == "--resume":  # numbers alone do not say how far they are
                base = [base[0], "--jsonl", "lines"]
            for name in names if mode != "b" or mode not in modes else [key]:
                model = "experts" if key == "--dump-routing" else tiny_model
                args = [model, *base, *more, name, *([value] if arg else [])]
                if mode in modes:
                    done = run(run_bin, *args)
                    assert done.returncode == 0 and (done.stderr == b""
                                                     or key == "-v"), (args, done.stderr)
                    continue
                line = error_of(run_bin, *args, code=2)
                if mode == "g":
                    owners = ["--jsonl", "--lines"] if "l" in modes else []
                    owners += ["--embed"] if modes == "e" else []
                    owners += [MODES[m][0] for m in "crtnpbq" if m in modes]
                    assert (key in CHOOSE + INPUTS or line
                            == f"{name} needs {' or '.join(', '.join(owners).rsplit(', ', 1))}")
                elif mode == "l" and key in CHOOSE:
                    assert line in [f"{name} does not take {flag}" for flag in ("--lines", "-n")]
                elif key in CHOOSE:
                    assert line == f"{base[0]} and {name} are two modes, choose one"
                else:
                    assert line == f"{base[0]} does not take {name}"
    assert {p.name for p in tmp_path.iterdir()} == {
        "text", "short", "lines", "talk", "tools", "form", "gbnf", "schema", "experts", "out",
        "out.run", "r.csv",
        "again.l", "again.l.run", "again.s", "again.s.run", "again.e", "again.e.run", "a.csv",
        "b.csv",
        "c.npy", "d.csv",
        "d.npz", "s.kv", "l.kv"}


def test_larger_than_memory(run_bin: Path, tiny_model: Path, tmp_path: Path) -> None:
    """A file that is larger than the free memory runs, and one line says what to expect."""
    path = tmp_path / "big"
    path.write_bytes(tiny_model.read_bytes())
    args = ["-i", "the", "-n", "3", "--temp", "0"]
    assert run(run_bin, path, *args).stderr == b""
    os.truncate(path, 1 << 40)  # its end takes no room on the disk
    done = run(run_bin, path, *args)
    assert done.returncode == 0 and done.stdout == text_of(run_bin, tiny_model, *args)
    assert re.fullmatch(r"run: \S+/big: 1099\.5 GB are more than the [\d.]+ GB of memory that are "
                        r"free; it is read from the disk again and again\n", done.stderr.decode())


def test_two_modes(run_bin: Path) -> None:
    """Any two rows of the table that choose a mode are refused, in both orders."""
    table = (Path(__file__).resolve().parent.parent / "modes/options.c").read_text()
    rows = re.findall(r'\{"([^"]+)", (NULL|"\w+"), [A-Z |]+, OPT_MODE', table)
    modes = [[names.split()[-1], *([] if arg == "NULL" else ["x"])] for names, arg in rows]
    assert [m[0] for m in modes] == [m[0] for m in MODES.values() if m and m[0] not in INPUTS]
    for a, b in itertools.permutations(modes, 2):
        want = f"{a[0]} and {b[0]} are two modes, choose one"
        assert error_of(run_bin, "M", *a, *b, code=2) == want
    for a, b in itertools.product(modes, INPUTS):  # two of these have an input
        takes = a[0] in ("--score", "--embed", "--chat")
        line = error_of(run_bin, "M", *a, b, "missing", code=1 if takes else 2)
        assert takes or line in [f"{a[0]} does not take {b}", f"{a[0]} needs -o"]
        assert error_of(run_bin, "M", b, "missing", *a, code=1 if takes else 2) == line


def test_defaults_stand_in_the_help(run_bin: Path, long_model: Path, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """What --help shows in parentheses is what happens without the flag.

    Another value changes something."""
    (tmp_path / "text").write_text("the quick brown fox jumps over the lazy dog " * 30)
    monkeypatch.chdir(tmp_path)
    rows = re.findall(r"^  (?:-\S+, )*(-[\w-]+)(?: [A-Z]\S*)? +\S.* \((-?[a-z0-9.]+)\)$",
                      text_of(run_bin, "--help").decode(), re.M)
    shown = dict(rows)
    assert len(shown) == len(rows) == 22
    assert {"--kv": "f16", "--predict": "-1", "--pp": "512", "--runs": "5", "--attn-reduce": "none",
            # llama.cpp's (common/common.h, common_params_sampling)
            "--temp": "0.8", "--top-k": "40", "--top-p": "0.95", "--min-p": "0.05",
            "--repeat-penalty": "1", "--presence-penalty": "0", "--frequency-penalty": "0",
            "--repeat-last-n": "64"}.items() <= shown.items()
    args = [run_bin, long_model, "-i", "the", "-s", "3", "-c", "40", "--ignore-eos", "--dump-attn",
            "a.jsonl"]
    want = text_of(*args), Path("a.jsonl").read_bytes()
    of_bench = ("--pp", "--tg", "--depth", "--runs")
    for flag, value in shown.items():
        if flag not in (*of_bench, "--perplexity", "--first-line", "--pooling"):
            assert (text_of(*args, flag, value), Path("a.jsonl").read_bytes()) == want, flag
    lines = [run_bin, long_model, "--lines", "text", "-s", "3", "-n", "3"]
    want_lines = text_of(*lines)
    assert text_of(*lines, "--first-line", shown["--first-line"]) == want_lines
    assert text_of(*lines, "--first-line", "2") != want_lines
    for more in (["--temp", "2"], ["--kv", "q8"], ["-n", "5"], ["--attn-reduce", "mean"],
                 ["--attn-top", "2"], ["--top-k", "2"]):
        assert (text_of(*args, *more), Path("a.jsonl").read_bytes()) != want, more
    score = [run_bin, long_model, "--perplexity", "text"]
    assert text_of(*score) == text_of(*score, "-c",
                                      shown["--perplexity"]) != text_of(*score, "-c", "511")
    done = json.loads(text_of(run_bin, long_model, "--bench", "--json"))
    assert all(done[name] == int(shown[f"--{name}"]) for name in ("pp", "tg", "depth"))
    assert f"in {shown['--runs']} runs" in text_of(run_bin, long_model, "--bench", "--pp", "1",
                                                   "--tg", "0").decode()


def test_help_wins(any_run: Path, tiny_model: Path) -> None:
    """--help wins over errors before and after it, other modes and missing values.

    As the value of another flag it is a value."""
    for flag in ALONE:
        text = text_of(any_run, flag)
        for args in (["--nonesuch", flag], [flag, "--nonesuch"], ["M", "N", flag],
                     ["M", "--temp", "x", flag], ["-m", "M", "-cnv", flag], [flag, "-i"],
                     ["M", "--bench", "--tokenize", flag],
                     ["--perplexity", "F", "--top-k", "1", flag], ["--json", flag],
                     [flag, "--version"], ["--quantize", "q", flag]):
            assert text_of(any_run, *args) == text, args
    assert text_of(any_run, tiny_model, "-i", "--help", "--echo", "-n", "0") == b"--help"
    assert error_of(any_run, "--", "--help", code=1).startswith("--help: cannot open")


def foreign_flags() -> list[tuple[str, str]]:
    """The table of hints, from the source."""
    source = (Path(__file__).resolve().parent.parent / "modes/options.c").read_text()
    table = source.split("} elsewhere[] = {")[1].split("\n};")[0]
    rows = re.findall(r'\{((?:"(?:[^"\\]|\\.)*"\s*)+),\s*((?:"(?:[^"\\]|\\.)*"\s*)+)\}', table)
    text = [["".join(re.findall(r'"((?:[^"\\]|\\.)*)"', cell)).replace('\\"', '"') for cell in row]
            for row in rows]
    return [(flag, hint) for flags, hint in text for flag in flags.split()]


def test_flags_of_other_programs(run_bin: Path) -> None:
    """Each gets its hint, none is one of ours or there twice, and a hint names flags that exist."""
    foreign, ours = foreign_flags(), set(all_flags(run_bin))
    assert len(foreign) == len(dict(foreign)) > 100 and not ours & set(dict(foreign))
    for flag, hint in foreign:
        for args in ([flag, "x"], [f"{flag}=x"] if flag.startswith("--") else [flag]):
            assert error_of(run_bin, "M", *args, code=2) == f"{flag}: no such flag here: {hint}"
        assert set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", hint)) <= ours, hint
    for flag, want in {"-m": "the model is the first argument", "-cnv": "it is --chat",
                       "-r": "it is --stop", "--max-tokens": "it is -n", "--show": "it is --info",
                       "--reverse-prompt": "it is --stop", "-ngl": "leave it out",
                       "--num-predict": "it is -n", "--log-disable": "leave it out",
                       "-no-cnv": "leave it out", "--mlock": "leave it out", "-fa": "leave it out",
                       "--color": "leave it out", "-sys": "it is --system", "-hf": "download",
                       "--model": "first argument", "--verbose-prompt": "it is --tokenize"}.items():
        assert want in dict(foreign)[flag]
    assert "it is -n" in error_of(run_bin, "M", "--max_tokens", "3", code=2)  # as Python spells it
    assert "did you mean --top-k?" in error_of(run_bin, "M", "--top_kk", "3", code=2)


def test_names_that_llama_cpp_has_too(any_run: Path, tiny_model: Path, story: bytes) -> None:
    for args in (["--n-predict", "60", "--temperature", "0"], ["--predict=60", "--temp=0"],
                 ["-n", "60", "--temp", "0", "-l", "5+0"]):
        assert text_of(any_run, tiny_model, "-i", "the", *args) == story
    assert text_of(any_run, "--usage") == text_of(any_run, "--help")


# ---- help, man page, completion ------------------------------------------------------------------


def flags_of_help(exe: Path) -> list[tuple[list[str], str]]:
    """The names and the argument ("" for none) of each row of the table, as --help prints it."""
    rows = re.findall(r"^  (-[\w-]+(?:, -[\w-]+)*)(?: ([A-Z]\S*))? +\S",
                      text_of(exe, "--help").decode(), re.M)
    return [(names.split(", "), arg) for names, arg in rows]


def all_flags(exe: Path) -> list[str]:
    return sorted({flag for names, _ in flags_of_help(exe) for flag in names})


def test_help(any_run: Path) -> None:
    text = text_of(any_run, "--help").decode()
    assert text == text_of(any_run,
                           "-h").decode() == text_of(any_run, "--help", "--temp", "1").decode()
    assert (text.startswith("usage: run MODEL -i TEXT") and "Exit status: 0 done" in text
            and max(map(len, text.splitlines())) < 120)
    flags = all_flags(any_run)
    assert {"-i", "-f", "-n", "-c", "-t", "-b", "-s", "--temp", "--stop", "--logit-bias", "--kv",
            "--help"} <= set(flags)
    readable = [line for line in text.splitlines()
                if line.startswith("  -") and not re.match(r"  \S.{23,}? {1,}\S", line)]
    assert not readable  # every flag has a text


def test_version(any_run: Path) -> None:
    assert re.fullmatch(r"attn\.c \d+\.\d+\.\d+\n", text_of(any_run, "--version").decode())


def test_man_page(any_run: Path) -> None:
    page = text_of(any_run, "--man").decode()
    lines = page.splitlines()
    assert lines[0].startswith(".TH RUN 1 ") and page.isascii()
    sections = [line[4:] for line in lines if line.startswith(".SH ")]
    assert sections[:3] == ["NAME", "SYNOPSIS", "DESCRIPTION"] and {"EXIT STATUS", "ENVIRONMENT",
                                                                    "EXAMPLES"} <= set(sections)
    assert re.fullmatch(r"run \\- .+", lines[lines.index(".SH NAME") + 1])  # what whatis(1) reads
    for line in lines:
        assert re.match(r"\.(TH|SH|SS|TP|B|nf|fi|PP)\b",
                        line) if line.startswith((".", "'")) else line, line
    for flag in all_flags(any_run):
        assert re.search(re.escape(flag.replace("-", "\\-")) + r"(?![\w\\])", page), flag
    bare = re.sub(r"\\[-e]|\\f[BRIP]|\\&", "", page)
    # no other escapes
    assert "\\" not in bare, [line for line in bare.splitlines() if "\\" in line]
    if shutil.which("groff"):
        done = subprocess.run(["groff", "-man", "-Tascii", "-ww", "-z"], input=page.encode(),
                              capture_output=True, timeout=TIMEOUT)
        assert (done.returncode, done.stderr) == (0, b"")


def shell(name: str, script: str, *args: str) -> list[str]:
    """The lines that a script prints in a shell; where that is not installed the test skips, under
    CI it fails."""
    if not shutil.which(name):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed")
    done = subprocess.run([name, *args], input=script.encode(), capture_output=True,
                          timeout=TIMEOUT)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    return done.stdout.decode().splitlines()


def test_completion_in_bash(any_run: Path) -> None:
    script = text_of(any_run, "--completion", "bash").decode()
    for words, want in {"--te": "--temperature --temp", "'' --kv": "f16 f32 q8", "m": "",
                        "me --attn-reduce": "mean-heads mean", "'' --logits": ""}.items():
        assert shell("bash", script + f"_run run {words}; echo ${{COMPREPLY[@]}}") == [want]
    every = shell("bash", script + "_run run - m; printf '%s\\n' \"${COMPREPLY[@]}\"")
    assert set(every) == set(all_flags(any_run))
    assert shell("bash", script + "complete -p run") == ["complete -o default -F _run run"]


def test_completion_in_zsh(any_run: Path) -> None:
    """The specifications that _arguments gets: each flag's name, its text, and what its argument
    may be."""
    script = text_of(any_run, "--completion", "zsh").decode()
    stubs = "compdef() { :; }; _arguments() { print -rl -- $@; }\n"
    model, *specs = shell("zsh", stubs + script + "_run", "-f")
    assert model == "1:model:_files"
    assert {re.match(r"\*(-[\w-]+)", s)[1] for s in specs} == set(all_flags(any_run))
    assert "*--echo[print the prompt too, as it was given]" in specs
    assert ("*-o[file to write, of --quantize, --jsonl and --lines; - is standard output]"
            ":FILE:_files") in specs
    (kv,) = [s for s in specs if s.startswith("*--kv=")]
    assert kv.endswith(r" of f16\: f16, f32 or q8 (f16)]:TYPE:(f16 f32 q8)")
    form = r"\*-[\w-]+=?\[([^]\\:[]|\\.)+\](:[A-Z.=+a-z]+:(_files|\([\w -]+\)| ))?"
    assert all(re.fullmatch(form, s) for s in specs)


def test_completion_in_fish(any_run: Path, tmp_path: Path) -> None:
    script = text_of(any_run, "--completion", "fish").decode() + f"cd {tmp_path}\n"
    (tmp_path / "model.gguf").touch()

    def offers(line: str) -> list[str]:
        lines = shell("fish", script + f"complete -C 'run {line}'", "--no-config")
        return sorted(line.split("\t")[0] for line in lines)

    assert offers("--te") == ["--temp", "--temperature"] and offers("--kv ") == ["f16", "f32", "q8"]
    assert offers("m --attn-reduce=me") == ["--attn-reduce=mean", "--attn-reduce=mean-heads"]
    assert offers("m") == offers("--logits ") == ["model.gguf"] and offers("--temp ") == []
    assert set(offers("--") + offers("-")) == set(all_flags(any_run))


def test_the_name_it_is_called_by(run_bin: Path, tmp_path: Path) -> None:
    """It is in every text; where a message or a shell would have to quote it, the program says
    "run"."""
    def shows(exe: Path, name: str) -> None:
        usage = f'usage: {name} MODEL -i "Once upon a time" (--help lists the flags)'
        assert error_line(exe) == f"{name}: no model given; {usage}"
        assert text_of(exe, "--help").decode().startswith(f"usage: {name} MODEL -i TEXT")
        page = text_of(exe, "--man").decode().replace("\\-", "-")
        assert page.startswith(f".TH {name.upper()} 1 ") and f"\n{name} - run a GPT" in page
        assert f"\n.B {name} MODEL" in page and f"\n{name} model.bin -i" in page
        bash, zsh, fish = (text_of(exe, f"--completion={shell}").decode()
                           for shell in ("bash", "zsh", "fish"))
        assert bash.endswith(f"complete -o default -F _{name} {name}\n")
        assert zsh.startswith(f"#compdef {name}\n_{name}() {{")
        assert fish.startswith(f"complete -c {name} -s i ")

    def error_line(exe: Path, *args: str, **more: Path) -> str:
        done = subprocess.run([exe, *args], capture_output=True, text=True, **more)
        return done.stderr.removesuffix("\n")

    names = {"attn": "attn", "attn-0.1_b+": "attn-0.1_b+",
             "my run": "run", "a\nb": "run", "-x": "run", "$x": "run", "é": "run"}
    for name, shown in names.items():
        (tmp_path / name).symlink_to(run_bin)
        shows(tmp_path / name, shown)
    assert error_line("/a/attn", "m", executable=run_bin).startswith("attn: m: cannot open")
    assert error_line("", executable=run_bin).startswith("run: no model given")


# ---- small models --------------------------------------------------------------------------------


def test_json_pieces(any_run: Path, tmp_path: Path) -> None:
    """Pieces of any bytes make valid JSON and one printable line each."""
    odd = ["<unk>", "<s>", "</s>", "▁", "a", "\"\\\x01\n\x7f\u2028\u202e", "é"]
    m = smallest().array("tokenizer.ggml.tokens", STR, odd)
    # user-defined: matches as it stands
    m.array("tokenizer.ggml.token_type", I32, [2, 3, 3, 1, 1, 4, 1])
    (tmp_path / "m").write_bytes(m.build())
    text = "a" + odd[5] + "é" + odd[5]
    done = json.loads(text_of(any_run, tmp_path / "m", "--tokenize", "--json", stdin=text.encode()))
    shown = ["<s>", " ", "a", odd[5], "é", odd[5]]
    assert done == {"ids": [1, 3, 4, 5, 6, 5], "pieces": [odd[i] for i in (1, 3, 4, 5, 6, 5)],
                    "text": shown,
                    "bytes": ["", *(s.encode().hex() for s in shown[1:])]}
    shown = text_of(any_run, tmp_path / "m", "--tokenize", stdin=text.encode()).decode()
    assert (len(shown.split("\n")) == 7 and printable(shown.replace("\n", ""))
            and r'"\x22\x5c\x01\x0a\x7f\xe2\x80\xa8\xe2\x80\xae"' in shown)
    (tmp_path / "n").write_bytes(smallest().set("llama.context_length", U32, 1).build())
    assert text_of(any_run, tmp_path / "n", "-i", "", "-n", "5",
                   *GREEDY) == text_of(any_run, tmp_path / "n", "-i", "", "-n", "1", *GREEDY)
