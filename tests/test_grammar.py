"""Constrained output: grammars in GBNF, their masks, and what they are not allowed to do."""
from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

import gbnf
from command import error_of, run, text_of
from conftest import CACHE

SOURCES = "llama_cpp_python-0.3.36"  # of it llama.cpp's grammars

ROUNDS = int(os.environ.get("ATTNC_GRAMMAR_TEXTS", "40"))  # texts of each grammar; 300 for all

# Each stands for something that can go wrong.
GRAMMARS = {
    "json": r'''
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
''',
    "ambiguous": 'root ::= s\ns ::= "a" s "b" | "a" s "c" | "a" s | "a" s s "d" | ""\n',
    "nullable": 'root ::= a b c "x"\na ::= "1" | b?\nb ::= c* "2" | ""\nc ::= "3"? ("4" | "5"?)\n',
    "hidden tail": 'root ::= "(" root ")" t | "x"\nt ::= u u\nu ::= ("," root)? | ""\n',
    "stars": 'root ::= ((a | b)* "!"?)+ [.]\na ::= ("x" "y"*)*\nb ::= ("x" | "z" a)?\n',
    "counts": 'root ::= ([a-c]{2} | "de"{1,3} | (x{2,})? "z"){1,4}\nx ::= "f" | "gg" {0,2} "h"\n',
    "unicode": 'root ::= [а-яё]+ ("é" | "日本" | [\\u3040-\\u30ff\\U0001F300-\\U0001F5FF])* '
               '[^é-日]?\n',
    "edges": 'root ::= ([\\x00-\\x7f\\u0800] | [\\u07ff-\\u0802] "a" | [\\uffff-\\U00010001] | '
             '[^\\x00-\\uffff])* "."\n',
    "any": 'root ::= .{3} "-" .*\n',
    "comments": '# one\nroot ::= a | # two\n  b # three\n\n\na::= ( "x"\n "y" )+ # four\r\n'
                'b ::=\n "z"',
    "last counts": 'root ::= a+\na ::= "x"\na ::= "y" | "z"\n',
    "twice": 'root ::= "ab"+? "c"{2}{0,2} ("d"*)+\n',
    "escapes": 'root ::= "\\t\\r\\n\\\\\\"\\[\\]\\-\\x41\\u00e9\\U0001F600" '
               '[\\]\\[\\-a-] [a\\-c] [-x] [^\\]]\n',
    "right": 'root ::= "a" root | "b" rest\nrest ::= "c" rest | "d" root | ""\n',
    "useless": 'root ::= "a" never | "b" (never | "c")+\nnever ::= "x" never\n',
    "deep": 'root ::= "<" (root ("," root)*)? ">"\n',
}
ALPHABET = 'abcxyz"{}[]:,.<>()!0123456789 \n\\eué日ё\U0001f600\x00\x7f'


def edit(rng: random.Random, text: str) -> str:
    """One character added, removed or changed, or two changed over."""
    at, c = rng.randrange(len(text) + 1), rng.choice(ALPHABET)
    rest = text[at + 1:]
    return rng.choice([text[:at] + c + text[at:], text[:at] + rest, text[:at] + c + rest,
                       text[:at] + text[at:][:2][::-1] + text[at + 2:]])


def ask(driver, kind: str, source: str, lines: list[str], folder: Path, *more) -> list[str]:
    path = folder / "grammar"
    path.write_bytes(source.encode())
    done = subprocess.run([driver("grammar_driver"), kind, path, *more], text=True, timeout=300,
                          input="".join(line + "\n" for line in lines), capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", GRAMMARS)
def test_verdicts(name: str, driver, tmp_path: Path) -> None:
    """Texts of the grammar, and others one edit away: the same verdict as that of a matcher that
    tries everything."""
    rng = random.Random(name)
    grammar = gbnf.parse(GRAMMARS[name])
    own: list[str] = []
    while len(own) < ROUNDS:
        text = grammar.random_text(rng)
        if text is not None and len(text) < 150:
            own.append(text)
    texts = own + [edit(rng, text) for text in own]
    verdicts = [line.split() for line in
                ask(driver, "gbnf", GRAMMARS[name], [t.encode().hex() for t in texts], tmp_path)]
    for text, (accepted, n) in zip(texts, verdicts, strict=True):
        assert grammar.matches(text) == bool(int(accepted)), text
    for text, (accepted, n) in zip(own, verdicts[:len(own)], strict=True):
        assert (accepted, int(n)) == ("1", len(text.encode())), text


@pytest.mark.parametrize("name", GRAMMARS)
def test_beginnings(name: str, driver, tmp_path: Path) -> None:
    """What is taken for the beginning of a text can be completed: random bytes that may follow lead
    to texts of the grammar."""
    grammar = gbnf.parse(GRAMMARS[name])
    walks = [bytes.fromhex(line).decode() for line in
             ask(driver, "gbnf", GRAMMARS[name], [f"walk {i}" for i in range(ROUNDS)], tmp_path)
             if line != "-"]
    assert len(walks) > ROUNDS / 4
    for text in walks:
        assert grammar.matches(text), text


@pytest.mark.parametrize("name", GRAMMARS)
def test_masks(name: str, driver, tmp_path: Path, tiny_model: Path, smollm2_path: Path) -> None:
    """At every place of a text the mask holds the tokens whose bytes may follow there, no others:
    for a vocabulary of bytes, and once for a real one."""
    rng = random.Random(name)
    grammar = gbnf.parse(GRAMMARS[name])
    texts = [t for t in (grammar.random_text(rng) for _ in range(30)) if t and len(t) < 60][:6]
    for model, n in ((tiny_model, 6), (smollm2_path, 1)):
        lines = ask(driver, "gbnf", GRAMMARS[name], [t.encode().hex() for t in texts[:n]],
                    tmp_path, model)
        for line in lines:
            accepted, _, allowed, wrong = map(int, line.split())
            assert accepted and allowed and not wrong


def llama_grammars() -> dict[str, str]:
    """The grammars that come with llama.cpp, from the source package of its Python binding, which
    is downloaded once into cache/."""
    folder = CACHE / "grammars"
    if not folder.exists():
        wheels = CACHE / "wheels"
        wheels.mkdir(parents=True, exist_ok=True)
        found = list(wheels.glob(f"{SOURCES}.tar.gz"))
        done = None if found else subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:",
             "--disable-pip-version-check", "-d", wheels, SOURCES.replace("_python-", "-python==")
             .replace("llama_", "llama-")], capture_output=True, text=True)
        if done and done.returncode:
            message = f"cannot download llama.cpp's sources: {done.stderr.strip()[-300:]}"
            pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
        partial = CACHE / "grammars.part"
        partial.mkdir(exist_ok=True)
        with tarfile.open(wheels / f"{SOURCES}.tar.gz") as archive:
            for member in archive:
                if re.fullmatch(r".*/llama\.cpp/grammars/[\w-]+\.gbnf", member.name):
                    name = Path(member.name).name
                    (partial / name).write_bytes(archive.extractfile(member).read())
        partial.rename(folder)
    return {p.name: p.read_text() for p in sorted(folder.glob("*.gbnf"))}


def test_llama_grammars_load(driver, tmp_path: Path) -> None:
    """All of them, with the same verdicts as the matcher that tries everything."""
    grammars = llama_grammars()
    assert len(grammars) >= 8
    for name, source in grammars.items():
        rng = random.Random(name)
        grammar = gbnf.parse(source)
        texts = [t for t in (grammar.random_text(rng, 20) for _ in range(300)) if t is not None]
        texts = [t for t in texts if len(t) < 400][:ROUNDS]
        texts += [edit(rng, t) for t in texts]
        lines = ask(driver, "gbnf", source, [t.encode().hex() for t in texts], tmp_path)
        assert texts, name
        for text, line in zip(texts, lines, strict=True):
            assert grammar.matches(text) == (line[0] == "1"), (name, text)


REFUSED = {
    "": "no rule root",
    "rot ::= \"a\"": "no rule root",
    "root ::= a": "rule a is used and not defined",
    "root = \"a\"": "line 1, column 6, at \"= \\x22a\\x22\": want ::=",
    "root ::= \"a": "no closing quote",
    "root ::= [a": "no closing bracket",
    "root ::= []": "is empty",
    "root ::= [z-a]": "ends before it begins",
    "root ::= \"\\q\"": "no such escape",
    "root ::= \"\\x4\"": "hexadecimal",
    "root ::= \"\\ud800\"": "no character has this number",
    "root ::= (\"a\"": "want a closing parenthesis",
    "root ::= \"a\")": "want a newline or the end",
    "root ::= * \"a\"": "nothing to repeat",
    "root ::= \"a\"{x}": "want a number of repetitions",
    "root ::= \"a\"{2,1}": "fewer than the fewest",
    "root ::= \"a\"{2": "want a closing brace",
    "root ::= \"a\"{99999999999}": "too many",
    "root ::= <think> \"a\"": "tokens in a grammar are not supported",
    "root ::= root \"a\" | \"b\"": "rule root begins with itself",
    "root ::= \"x\" a\na ::= b \"a\" | \"y\"\nb ::= \"\" c\nc ::= a?": "left recursion",
    "root ::= \"a\" root": "never comes to an end",
    "root ::= [^\\x00-\\U0010ffff]": "never comes to an end",
    "root ::= \"a\"\nx ::= \"b\" \x01": "line 2, column 11",
}


@pytest.mark.parametrize("source", REFUSED)
def test_refused(source: str, any_run: Path, tiny_model: Path) -> None:
    line = error_of(any_run, tiny_model, "-i", "a", "--grammar", source, code=2)
    assert line.startswith("--grammar: ") and REFUSED[source] in line, line



# Small texts that would be large or slow.
HOSTILE = {
    "repetitions of repetitions": 'root ::= ((((("a"{99}){99}){99}){99}){99}){99}',
    "repetitions of nothing": 'root ::= (((((""{9999}){9999}){9999}){9999}){9999}){9999}',
    "a million optional": 'root ::= "a"{0,1000000} "b"{0,1000000}',
    "parentheses": "root ::= " + "(" * 100000 + '"a"',
    "repeated repetitions": 'root ::= "a"' + "*" * 100000,
    "rules that call the next": "root ::= r0\n" + "".join(
        f"r{i} ::= r{i + 1} | r{i + 1} r{i + 1}\n" for i in range(50000)) + 'r50000 ::= "a" r0?',
    "many optional": 'root ::= ("a"? "b"?){0,200000}',
    "ambiguous": 'root ::= (x{0,300} y{0,300}){0,300}\nx ::= "a"? | "b"\ny ::= "b"? | "a" x',
    "one long circle": "root ::= r0\n" + "".join(
        f"r{i} ::= r{i + 1}\n" for i in range(99999)) + "r99999 ::= r0 | \"a\"",
    "wide sets": "root ::= [" + "".join(chr(0x4e00 + 2 * i) for i in range(10000))
                 + "]{500} .{500}",
    "too long": "root ::= \"" + "a" * 5000000 + '"',
    "all at once": 'root ::= (a{0,3000} b{0,3000}){300}\na ::= "x"? "y"?\nb ::= "x"* "y"?',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars_end(name: str, any_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    """In exit status 2, or a text, in a bounded time."""
    path = tmp_path / "g.gbnf"
    path.write_text(HOSTILE[name])
    begin = time.monotonic()
    done = run(any_run, tiny_model, "-i", "a", "-n", "3", "-s", "1", "--grammar-file", path)
    seconds = time.monotonic() - begin
    assert done.returncode in (0, 2), done.stderr
    assert (done.returncode == 0) == (done.stderr == b"")
    # the sanitizers are some ten times slower
    assert seconds < (20 if "sanitize" in str(any_run) else 2), seconds
    print(name, done.returncode, seconds, done.stderr)


def test_ends(run_bin: Path, tiny_model: Path) -> None:
    """A text ends where the grammar allows nothing more, and can end only where it allows that."""
    for seed in range(8):
        text = text_of(run_bin, tiny_model, "-i", "a", "-s", str(seed), "--grammar",
                       'root ::= [ab]{3} ("," [0-9]{2,4}){1,3} ";"')
        assert gbnf.parse('root ::= [ab]{3} ("," [0-9]{2,4}){1,3} ";"').matches(text.decode())
    assert text_of(run_bin, tiny_model, "-i", "a", "--grammar", 'root ::= ""') == b""
    assert text_of(run_bin, tiny_model, "-i", "a", "--grammar", 'root ::= "the end"',
                   "--ignore-eos") == b"the end"
    done = run(run_bin, tiny_model, "-i", "a", "--grammar", 'root ::= "xy"', "-v")
    assert done.stdout == b"xy" and b"ended by: the grammar" in done.stderr
    done = run(run_bin, tiny_model, "-i", "a", "--grammar", 'root ::= "x"+', "-v", "-n", "5",
               "--ignore-eos")
    assert done.stdout == b"xxxxx" and b"ended by: -n 5" in done.stderr


def test_end_token_is_masked(run_bin: Path, tiny_model: Path) -> None:
    """Even where it is by far the likeliest."""
    for n in (0, 1, 7):
        text = text_of(run_bin, tiny_model, "-i", "a", "-l", "1+1000", "--grammar",
                       f'root ::= "ab"{{{n},9}}')
        assert text == b"ab" * n


def test_a_vocabulary_that_lacks_characters(run_bin: Path, tmp_path: Path) -> None:
    from gguf_files import byte_level

    path = tmp_path / "m.gguf"
    path.write_bytes(byte_level().build())
    assert text_of(run_bin, path, "-i", "a", "--grammar", 'root ::= "aba"') == b"aba"
    line = error_of(run_bin, path, "-i", "a", "--grammar", 'root ::= "ac"', code=2)
    assert "no token of this model" in line


def test_flags(run_bin: Path, tiny_model: Path, tmp_path: Path) -> None:
    grammar = tmp_path / "g.gbnf"
    grammar.write_text('root ::= "yes" | "no"')
    text = text_of(run_bin, tiny_model, "-i", "a", "--grammar-file", grammar)
    assert text in (b"yes", b"no")
    line = error_of(run_bin, tiny_model, "-i", "a", "--grammar-file", grammar, "--grammar", "x",
                    code=2)
    assert line == "--grammar and --grammar-file: choose one, a text has one form"
    error_of(run_bin, tiny_model, "-i", "a", "--grammar-file", tmp_path / "none", code=1)
    grammar.write_text("root ::= x")
    line = error_of(run_bin, tiny_model, "-i", "a", "--grammar-file", grammar, code=2)
    assert line == f"{grammar}: rule x is used and not defined"


def test_in_every_mode(run_bin: Path, tiny_model: Path) -> None:
    """One object, samples, and lines of a batch: their own grammars, the flags', many at once."""
    grammar = 'root ::= [a-f]{2,4} "." | "x"'
    known = gbnf.parse(grammar)
    flags = ["-i", "a", "-s", "3", "--json", "--grammar", grammar, "-n", "9"]
    one = json.loads(text_of(run_bin, tiny_model, *flags))
    assert known.matches(one["text"]) and one["finish_reason"] == "end"
    some = [json.loads(x) for x in
            text_of(run_bin, tiny_model, *flags, "--samples", "9").splitlines()]
    assert some[0]["text"] == one["text"] and all(known.matches(x["text"]) for x in some)
    assert len({x["text"] for x in some}) > 1
    cut = json.loads(text_of(run_bin, tiny_model, *flags[:-1], "2", "--grammar",
                             'root ::= "abcdef"'))
    assert (cut["text"], cut["finish_reason"]) == ("ab", "length")

    own = {"digits": "root ::= [0-9]{3}", "letters": 'root ::= [a-z]{2} ("," [a-z]{2})*'}
    lines = [{"prompt": f"p{i}", "id": i, "n": 30, "grammar": own[name], "kind": name}
             for i in range(20) for name in own]
    lines += [{"prompt": "q", "id": "schema", "json_schema": {"enum": ["é", 12]}},
              {"prompt": "r", "id": "flag"}, {"prompt": "s", "grammar": "root ::= a"},
              {"prompt": "t", "grammar": 3}, {"prompt": "u", "json_schema": {"not": {}}},
              {"prompt": "v", "grammar": "root ::= .", "json_schema": {}}]

    def answers(*more: str) -> list[dict]:
        done = run(run_bin, tiny_model, "--jsonl", "-", "--grammar", grammar, "-s", "1", *more,
                   stdin="".join(json.dumps(x) + "\n" for x in lines).encode())
        assert done.returncode == 1
        return [json.loads(x) for x in done.stdout.splitlines()]

    out = answers("--parallel", "16")
    assert out == answers("--parallel", "1")
    for x in out[:40]:
        assert x["finish_reason"] in ("end", "length")
        assert x["finish_reason"] == "length" or gbnf.parse(own[x["kind"]]).matches(x["text"])
    assert out[40]["text"] in ('"é"', "12") and known.matches(out[41]["text"])
    assert [x["error"] for x in out[42:]] == [
        "grammar: rule a is used and not defined", "grammar: want a string",
        'json_schema: #: the keyword "not" is not supported',
        'want either "grammar" or "json_schema"']


def test_log_probabilities_are_the_models(run_bin: Path, tiny_model: Path) -> None:
    """Of all tokens, not of those that are left."""
    flags = ["-i", "a", "-s", "3", "-n", "1", "--json", "--logprobs", "258"]
    free = json.loads(text_of(run_bin, tiny_model, *flags))["logprobs"][0]["top"]
    bound = json.loads(text_of(run_bin, tiny_model, *flags, "--grammar", "root ::= [xyz]"))
    assert bound["logprobs"][0]["top"] == free and bound["text"] in "xyz"
