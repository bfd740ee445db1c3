"""Generation for programs: --json, --logprobs, --samples, --jsonl and --lines.

The truth about a line of a batch is the same prompt alone, about log-probabilities the logits that
--logits writes (numpy), about JSON Python's own reader.
"""
from __future__ import annotations

import json
import os
import random
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from command import error_of, text_of

TALES = Path(__file__).parent.parent / "models" / "tales.bin"
STARTS = ["Once upon a time", "The little dog", "One day", "In the forest there was", "Anna said"]


def stdout_of(run: Path, *args: object) -> str:
    return text_of(run, *args).decode()


def objects(text: bytes | str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def batch(run: Path, lines: list, *args: str, env: dict | None = None) -> list[dict]:
    text = "".join(json.dumps(x) + "\n" for x in lines)
    done = subprocess.run([run, TALES, "--jsonl", "-", *args], input=text, capture_output=True,
                          text=True, timeout=120, env=os.environ | (env or {}))
    assert done.returncode in (0, 1), done.stderr
    return objects(done.stdout)


def test_object(run_bin: Path) -> None:
    out = stdout_of(run_bin, TALES, "-i", STARTS[0], "-n", "12", "-s", "33", "--json")
    got = json.loads(out)
    assert got["text"] == stdout_of(run_bin, TALES, "-i", STARTS[0], "-n", "12", "-s", "33")
    assert (got["n_prompt"], got["n_generated"]) == (len(got["prompt_ids"]), 12)
    assert (got["finish_reason"], got["stop"], got["seed"]) == ("length", None, 33)
    assert got["prompt_seconds"] > 0 and got["generate_seconds"] > 0 and "bytes" not in got
    ids = json.loads(stdout_of(run_bin, TALES, "-i", STARTS[0], "--tokenize", "--json"))["ids"]
    assert got["prompt_ids"] == ids and out.endswith("}\n")


@pytest.mark.parametrize("args, reason, stop", [
    (["-n", "400", "--temp", "0", "--stop", "."], "stop", "."),
    (["-n", "-1", "-c", "20", "--ignore-eos"], "context", None),
    (["-n", "0"], "length", None)])
def test_reasons(args: list[str], reason: str, stop: object, run_bin: Path) -> None:
    got = json.loads(stdout_of(run_bin, TALES, "-i", STARTS[0], "-s", "1", *args, "--json"))
    assert (got["finish_reason"], got["stop"]) == (reason, stop)


def test_end_token(run_bin: Path) -> None:
    """The id of the end token is what ended the text; it is not in the text."""
    got = json.loads(stdout_of(run_bin, TALES, "-i", STARTS[0], "-s", "1", "--json",
                               "--logit-bias", "0+100"))
    assert (got["finish_reason"], got["stop"], got["ids"], got["text"]) == ("end", 0, [], "")


def test_seed_is_a_double(run_bin: Path) -> None:
    seeds = {json.loads(stdout_of(run_bin, TALES, "-i", "a", "-n", "0", "--json"))["seed"]
             for _ in range(5)}
    assert len(seeds) == 5 and all(0 <= s < 2**53 for s in seeds)


def test_logprobs(run_bin: Path, tmp_path: Path) -> None:
    """Log-softmax of --logits. 2e-6: a logit of about 20 in float32 has steps of 1.9e-6."""
    path = tmp_path / "l.npy"
    got = json.loads(stdout_of(run_bin, TALES, "-i", STARTS[0], "-n", "8", "-s", "3", "--json",
                               "--logprobs", "4", "--repeat-penalty", "1.5", "--logits", path))
    logits = np.load(path).astype(np.float64)
    log_p = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    log_p -= logits.max(-1, keepdims=True)
    for i, token in enumerate(got["logprobs"]):
        row = log_p[got["n_prompt"] - 1 + i]
        best = sorted(range(len(row)), key=lambda k: (-row[k], k))[:4]
        assert token["id"] == got["ids"][i]
        assert abs(token["logprob"] - row[token["id"]]) < 2e-6
        assert [t["id"] for t in token["top"]] == best
        assert max(abs(t["logprob"] - row[t["id"]]) for t in token["top"]) < 2e-6
        assert bytes(token["bytes"]).decode() == token["text"]
    assert "".join(t["text"] for t in got["logprobs"]) == got["text"]


def test_logprob_lines(run_bin: Path) -> None:
    args = ["-i", STARTS[0], "-n", "5", "-s", "3", "--logprobs", "2"]
    want = json.loads(stdout_of(run_bin, TALES, *args, "--json"))
    lines = [line.split("\t") for line in stdout_of(run_bin, TALES, *args).splitlines()]
    assert len(lines) == 5
    for i, (line, token) in enumerate(zip(lines, want["logprobs"], strict=True)):
        assert (int(line[0]), int(line[1]), line[2]) == (want["n_prompt"] + i, token["id"],
                                                         token["text"])
        numbers = [token["logprob"]] + [t["logprob"] for t in token["top"]]
        assert [float(line[k]) for k in (3, 6, 9)] == numbers


def test_samples(run_bin: Path) -> None:
    """Sample 0 is the text of the seed as given; the others are those of the seeds they name."""
    args = ["-i", STARTS[0], "-n", "20", "--json"]
    got = objects(stdout_of(run_bin, TALES, *args, "-s", "33", "--samples", "5"))
    assert [x["sample"] for x in got] == list(range(5)) and len({x["text"] for x in got}) > 1
    for x in got:
        alone = json.loads(stdout_of(run_bin, TALES, *args, "-s", str(x["seed"])))
        assert alone["ids"] == x["ids"]
    assert got[0]["seed"] == 33
    assert "--json" in error_of(run_bin, TALES, "-i", "a", "--samples", "2", code=2)


def test_lines_are_alone(run_bin: Path) -> None:
    """No line depends on its neighbours, the number at once, threads, passes or kernels' rows."""
    rng = random.Random(4)
    lines = [{"id": i, "prompt": rng.choice(STARTS) + " and then" * rng.randrange(30),
              "n": rng.randrange(1, 40), "temp": rng.choice([0, 0.7, 1.2]),
              "logprobs": rng.choice([0, 2])} for i in range(40)]
    want = batch(run_bin, lines, "-s", "5", "--parallel", "1", "-t", "1")
    assert [x["line"] for x in want] == list(range(1, 41))
    for args in (["--parallel", "7"], ["--parallel", "40", "-t", "2", "-b", "9"], []):
        assert batch(run_bin, lines, "-s", "5", *args) == want
    shuffled = batch(run_bin, lines[::-1], "-s", "5", "--parallel", "5", "--unordered")
    by_id = sorted(shuffled, key=lambda x: x["id"])
    assert [x | {"line": 0} for x in by_id] == [x | {"line": 0} for x in want]
    for x, line in list(zip(want, lines, strict=True))[:6]:
        alone = json.loads(stdout_of(run_bin, TALES, "-i", line["prompt"], "-n", str(line["n"]),
                                     "--temp", str(line["temp"]), "-s", str(x["seed"]), "--json",
                                     "--logprobs", str(line["logprobs"])))
        assert {k: x[k] for k in x if k not in ("id", "line")} == {
            k: v for k, v in alone.items() if not k.endswith("_seconds")}


def test_few_blocks(run_bin: Path) -> None:
    """Texts that need all of the context wait for blocks and get through."""
    lines = [{"prompt": "word " * 200 + str(i), "n": -1} for i in range(6)]
    want = batch(run_bin, lines, "-s", "5", "--parallel", "1", "-c", "300", "--ignore-eos")
    assert batch(run_bin, lines, "-s", "5", "-c", "300", "--ignore-eos") == want
    assert all(x["finish_reason"] == "context" for x in want)


def test_carried_keys(run_bin: Path) -> None:
    line = ('{"id": {"a": [1,  2]}, "prompt": "Once", "n": 2, '
            '"x": 1.50, "y": "\\u00e9", "text": 5}\n')
    out = subprocess.run([run_bin, TALES, "--jsonl", "-"], input=line, capture_output=True,
                         text=True, check=True).stdout
    assert '"id": {"a": [1,  2]}' in out and '"x": 1.50' in out and '"y": "\\u00e9"' in out
    assert isinstance(json.loads(out)["text"], str)


def test_members_of_a_result(run_bin: Path) -> None:
    """A line that is itself a result, even one that failed, does not bring these along: every name
    stands once."""
    (line,) = batch(run_bin, [{"prompt": "Once", "n": 2, "logprobs": 1, "x": 1}], "--timings")
    again = line | {"prompt": "A dog", "error": "an old one", "bytes": [1], "line": 7}
    for member in ("ids", "stop", "logprobs"):
        del again[member]  # which a line gives
    for flags in ([], ["--timings"]):
        out = subprocess.run([run_bin, TALES, "--jsonl", "-", "-n", "2", *flags],
                             input=json.dumps(again), capture_output=True, text=True, check=True)
        pairs = json.loads(out.stdout, object_pairs_hook=lambda p: p)
        names = [k for k, _ in pairs]
        assert len(set(names)) == len(names) and "error" not in names and "x" in names
        assert ("prompt_seconds" in names) == bool(flags) and dict(pairs)["line"] == 1


BAD = {
    "not JSON": ("nonsense", "JSON at byte"),
    "a number": ("5", "want an object or a string"),
    "no prompt": ('{"n": 5}', "prompt"),
    "two prompts": ('{"prompt": "a", "ids": [1]}', "prompt"),
    "prompt of another type": ('{"prompt": 7}', "prompt: want a string"),
    "n too large": ('{"prompt": "a", "n": 1e12}', "n: want a whole number"),
    "a large number": ('{"prompt": "a", "n": 1e300}', "to 268435456"),
    "n no integer": ('{"prompt": "a", "n": 1.5}', "n: want a whole number"),
    "temp of another type": ('{"prompt": "a", "temp": "hot"}', "temp: want a number"),
    "top_p too large": ('{"prompt": "a", "top_p": 2}', "top_p: want a number"),
    "seed below 0": ('{"prompt": "a", "seed": -1}', "seed: want"),
    "seed beyond": ('{"prompt": "a", "seed": 9223372036854775808}', "to 9223372036854775807"),
    "empty stop": ('{"prompt": "a", "stop": ""}', "stop: want"),
    "stop of numbers": ('{"prompt": "a", "stop": [1]}', "stop: want"),
    "ids out of range": ('{"ids": [1, 99999999]}', "ids: want"),
    "ids of texts": ('{"ids": ["a"]}', "ids: want"),
    "no ids": ('{"ids": []}', "empty"),
    "too long": (json.dumps({"prompt": "a b " * 900}), "prompt: got"),
    "echo of another type": ('{"prompt": "a", "echo": 1}', "echo: want"),
    "deep": ("[" * 100000, "JSON at byte"),
    "invalid UTF-8": (b'"\xff"', "JSON at byte"),
    "NUL": (b'"a\0b"', "JSON at byte"),
    "a byte order mark": (b'\xef\xbb\xbf"a"', "JSON at byte"),
    "empty": ("", "JSON at byte"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_line(name: str, any_run: Path) -> None:
    """A line's fault is told in its place; the others are the same as without it."""
    line, want = BAD[name]
    good = b'{"id": "x", "prompt": "Once", "n": 3}\n'
    bad = line if isinstance(line, bytes) else line.encode()
    args = [any_run, TALES, "--jsonl", "-", "-s", "1", "-c", "600"]
    done = subprocess.run(args, input=good + bad + b"\n" + good, capture_output=True, timeout=300)
    first, second, third = objects(done.stdout)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1
    assert want in second["error"] and second["line"] == 2 and "text" not in second
    alone = subprocess.run(args, input=good, capture_output=True, check=True, timeout=300)
    assert first == objects(alone.stdout)[0] and third | {"line": 1} == first


def test_plain_lines(run_bin: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(b"Once\r\nThe dog\n\nlast")
    out = tmp_path / "out.jsonl"
    done = subprocess.run([run_bin, TALES, "--lines", path, "-n", "2", "-s", "1", "-o", out],
                          capture_output=True)
    got = objects(out.read_text())
    assert done.returncode == 0 and done.stdout == b"" and done.stderr == b""
    assert [x["n_prompt"] for x in got][2] == 1 and len(got) == 4  # an empty line: BOS alone
    want = stdout_of(run_bin, TALES, "-i", "last", "-n", "2", "-s", str(got[3]["seed"]))
    assert got[3]["text"] == want


def test_a_conversation_of_lines(run_bin: Path) -> None:
    """One line in, its result out, the next line in: reading never waits for more."""
    p = subprocess.Popen([run_bin, TALES, "--jsonl", "-", "-n", "4", "-s", "1"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert p.stdin and p.stdout
    for start in STARTS:
        p.stdin.write(json.dumps(start) + "\n")
        p.stdin.flush()
        assert json.loads(p.stdout.readline())["n_generated"] == 4
    p.stdin.close()
    assert p.wait(timeout=60) == 0


def test_decoding_goes_on_while_reading(run_bin: Path) -> None:
    """A line that came is done although the input stays open and silent."""
    p = subprocess.Popen([run_bin, TALES, "--jsonl", "-", "-n", "200", "--ignore-eos"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert p.stdin and p.stdout
    p.stdin.write('"Once"\n"The')
    p.stdin.flush()
    begin = time.time()
    assert json.loads(p.stdout.readline())["line"] == 1 and time.time() - begin < 60
    p.stdin.write(' dog"\n')
    p.stdin.close()
    assert json.loads(p.stdout.readline())["line"] == 2 and p.wait(timeout=60) == 0


def test_head(run_bin: Path) -> None:
    lines = "".join(f'"{s}"\n' for s in STARTS * 20)
    done = subprocess.run(["bash", "-c", f"{run_bin} {TALES} --jsonl - -n 3 | head -1"],
                          input=lines, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "" and len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("args, want", [
    (["--jsonl", "-", "-i", "a"], "does not take -i"), (["--jsonl", "-", "--lines", "x"], "two"),
    (["--parallel", "3", "-i", "a"], "--parallel needs"),
    (["--jsonl", "missing.jsonl"], "missing.jsonl"),
    (["--jsonl", "-", "--dump-attn", "a.npz"], "does not take --dump-attn")])
def test_usage(args: list[str], want: str, run_bin: Path) -> None:
    done = subprocess.run([run_bin, TALES, *args], capture_output=True, text=True, input="")
    assert done.returncode in (1, 2) and want in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("flag", ["--jsonl", "--lines"])
def test_no_input(flag: str, run_bin: Path, tmp_path: Path) -> None:
    for path, want in ((tmp_path / "no", "No such file"), (tmp_path, "directory")):
        assert want in error_of(run_bin, TALES, flag, path, code=1)


def test_empty_input(run_bin: Path) -> None:
    assert batch(run_bin, []) == []


def test_full_disk(run_bin: Path) -> None:
    done = subprocess.run(f"echo '\"a\"' | {run_bin} {TALES} --jsonl - -n 2 > /dev/full",
                          shell=True, capture_output=True, text=True)
    assert done.returncode == 1 and "standard output" in done.stderr
