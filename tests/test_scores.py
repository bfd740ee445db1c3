"""--score: log-probabilities of completions and texts.

The truth about a token's log-probability is transformers (--exact --kv f32, 1e-4 each) and what
generation says of the same token (exactly), about where a completion's tokens begin
lm-evaluation-harness itself, about its neighbours the same line alone."""
from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import hf_models as hf
from command import error_of, ids_of
from test_real import log_softmax

ROOT = Path(__file__).resolve().parent.parent
TALES = ROOT / "models" / "tales.bin"
EXACT = ["--exact", "--kv", "f32"]
WORDS = (ROOT / "tests" / "passage.txt").read_text().split()
torch.set_num_threads(1)


def score_bytes(run: Path, model: Path, lines: list, *args: str, code: int | None = 0) -> bytes:
    text = "".join(json.dumps(x) + "\n" for x in lines)
    done = subprocess.run([run, model, "--score", "--jsonl", "-", *args], input=text.encode(),
                          capture_output=True, timeout=300)
    assert code is None or done.returncode == code, done.stderr
    return done.stdout


def score(run: Path, model: Path, lines: list, *args: str,
          code: int | None = 0) -> list[dict]:
    return [json.loads(x) for x in score_bytes(run, model, lines, *args, code=code).splitlines()]


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory):
    """A random llama and transformers' model of the same weights."""
    case = hf.CASES[0]
    model = case.build()
    path = tmp_path_factory.mktemp("scores") / "random.gguf"
    return hf.exported(model, hf.tokenizer_json(), path), model.eval()


def sample_lines(n: int, seed: int = 1) -> list[dict]:
    """Lines of every form, many of which begin alike."""
    rng = random.Random(seed)
    heads = [" ".join(rng.choices(WORDS, k=k)) for k in (0, 5, 40)]
    lines = []
    for i in range(n):
        prompt = " ".join([rng.choice(heads), *rng.choices(WORDS, k=rng.randrange(1, 12))]).strip()
        after = [" " + " ".join(rng.choices(WORDS, k=rng.randrange(0, 6))) for _ in range(4)]
        lines.append({"id": i} | rng.choice([
            {"prompt": prompt, "completion": after[0]}, {"prompt": prompt, "completions": after},
            {"text": prompt}, {"ids": [rng.randrange(3, 200) for _ in range(rng.randrange(1, 70))]},
            {"ids": [5, 6, 7], "completions": [[8], [9, 10], []]},
            {"prompt": prompt, "completions": [[8], " and"]}]))
    return lines


# ---- against others ------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [[], EXACT, ["--kv", "q8", "-b", "9"]])
def test_generation(args: list[str], run_bin: Path) -> None:
    """The numbers are those of --logprobs for the tokens that were generated, to the last digit."""
    lines = [{"prompt": " ".join(WORDS[i:i + 3 * i + 1]), "n": 20, "seed": i, "logprobs": 1,
              "temp": 0 if i == 3 else 1.5} for i in range(8)]
    done = subprocess.run([run_bin, TALES, "--jsonl", "-", "--ignore-eos", *args],
                          input="".join(json.dumps(x) + "\n" for x in lines), capture_output=True,
                          text=True, check=True)
    texts = [json.loads(x) for x in done.stdout.splitlines()]
    got = score(run_bin, TALES, [{"ids": t["prompt_ids"], "completion": t["ids"]} for t in texts],
                *args)
    for t, line in zip(texts, got, strict=True):
        (s,) = line["scores"]
        assert s["token_logprobs"] == [x["logprob"] for x in t["logprobs"]]
        assert s["ids"] == t["ids"] and line["prompt_ids"] == t["prompt_ids"]
        assert s["greedy"] == all(x["id"] == x["top"][0]["id"] for x in t["logprobs"])
    assert sum(line["scores"][0]["greedy"] for line in got) == 1


def check_reference(model: torch.nn.Module, lines: list[dict]) -> int:
    """Every token of every score against transformers; returns how many there are."""
    n = 0
    for line in lines:
        assert line["n_prompt"] == len(line["prompt_ids"])
        for s in line["scores"]:
            ids = line["prompt_ids"] + s["ids"]
            with torch.no_grad():
                p = log_softmax(model(torch.tensor([ids])).logits[0].numpy())
            rows = p[len(line["prompt_ids"]) - 1:len(ids) - 1]
            want = rows[np.arange(len(s["ids"])), s["ids"]]
            assert len(s["token_logprobs"]) == s["n_tokens"] == len(want)
            assert np.abs(np.array(s["token_logprobs"]) - want).max(initial=0) < 1e-4
            assert abs(s["logprob"] - want.sum()) < 1e-4 * max(1, len(want))
            sure = [np.ptp(np.sort(r)[-2:]) > 1e-4 for r in rows]
            assert not all(sure) or s["greedy"] == all(rows.argmax(-1) == s["ids"])
            n += len(want)
    return n


def test_transformers(random_model, run_bin: Path) -> None:
    path, model = random_model
    got = score(run_bin, path, sample_lines(60), *EXACT)
    assert check_reference(model, got) > 1000
    greedy = model.generate(torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=9)[0, 3:]
    (line,) = score(run_bin, path, [{"ids": [5, 6, 7], "completions": [greedy.tolist()]}], *EXACT)
    assert line["scores"][0]["greedy"]


def test_real(smollm2_path: Path, run_bin: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name,
                                                 dtype=torch.float32).eval()
    lines = [{"prompt": "The capital of France is", "completions": [" Paris", " Rome, I think"]},
             {"text": " ".join(WORDS[:150])}]
    got = score(run_bin, smollm2_path, lines, *EXACT)
    assert check_reference(model, got) > 150
    assert [s["greedy"] for s in got[0]["scores"]] == [True, False]
    assert [s["n_bytes"] for s in got[0]["scores"]] == [6, 14]


def pairs(rng: random.Random, n: int) -> list[tuple[str, str]]:
    spaces = ["", "", " ", "  ", "\n", "\n\n", " \t", "\u00a0", "\u3000 "]
    out = []
    for _ in range(n):
        words = rng.choices([*WORDS, "naïve", "東京", "x=3;", "don't", "12345"], k=6)
        out.append((" ".join(words[:rng.randrange(1, 4)]) + rng.choice(spaces),
                    rng.choice([" ", "", "  "]) + " ".join(words[3:])))
        whole = " ".join(words)  # cut anywhere, in words too
        cut = rng.randrange(1, len(whole))
        if whole[:cut].strip():
            out.append((whole[:cut], whole[cut:]))
    return out


@pytest.mark.parametrize("fixture", ["tales", "smollm2_path", "gemma3_path"])
def test_encode_pair(fixture: str, run_bin: Path, request: pytest.FixtureRequest,
                     tmp_path: Path) -> None:
    """The boundary is where lm-evaluation-harness has it, for tokenizers with BOS and without.

    Its function gets our tokens of single texts; only that a completion is left without any
    token differs, which is an error here and an assertion there."""
    model_api = pytest.importorskip("lm_eval.api.model")
    path = TALES if fixture == "tales" else request.getfixturevalue(fixture)
    cases = pairs(random.Random(5), 12 if fixture == "tales" else 60)
    if fixture == "tales":  # it knows only some characters
        cases = [(a, b) for a, b in cases if (a + b).isascii()]
    texts = [t for a, b in cases for t in (a + b, a.rstrip())]
    ids = {t: x["prompt_ids"] for t, x in zip(texts, score(
        run_bin, path, [{"prompt": t, "completions": []} for t in texts]), strict=True)}
    harness = SimpleNamespace(tok_encode=ids.__getitem__, backend="causal")
    got = score(run_bin, path, [{"prompt": a, "completion": b} for a, b in cases], "-c", "200",
                code=None)
    own = 0
    for (a, b), line in zip(cases, got, strict=True):
        context, continuation = model_api.TemplateLM._encode_pair(harness, a, b)
        if not continuation:
            assert "no token of its own" in line["error"]
            continue
        assert (line["prompt_ids"], line["scores"][0]["ids"]) == (context, continuation), (a, b)
        own += 1
    assert own > len(cases) / 2
    # and the tokens of a single text are those of the prompt
    assert ids[texts[0]] == ids_of(run_bin, path, "-i", texts[0])


def test_white_space(run_bin: Path, tiny_model: Path) -> None:
    """What Python's rstrip() takes from a prompt's end goes to the completion, nothing else."""
    spaces = [ord(c) for c in map(chr, range(0x110000)) if c.isspace()]
    near = {chr(c + d) for c in spaces for d in (-1, 0, 1)} | {"\u200b", "\ufeff"}
    lines = [{"prompt": "q" + c, "completion": "z"} for c in sorted(near)]
    (alone,) = score(run_bin, tiny_model, [{"prompt": "q", "completions": []}])
    for line, x in zip(lines, score(run_bin, tiny_model, lines), strict=True):
        c, moved = line["prompt"][1], x["prompt_ids"] == alone["prompt_ids"]
        assert moved == c.isspace(), line
        assert x["scores"][0]["n_bytes"] == len(c.encode() * moved) + 1


# ---- a line is what it is alone ------------------------------------------------------------------


def test_lines_are_alone(run_bin: Path) -> None:
    """No line depends on its neighbours, the number at once, threads, passes or the file."""
    lines = sample_lines(60)
    want = score_bytes(run_bin, TALES, lines, "--parallel", "1", "-t", "1")
    for args in (["--parallel", "7"], ["--parallel", "50", "-t", "2", "-b", "9"], ["-b", "1"], []):
        assert score_bytes(run_bin, TALES, lines, *args) == want
    shuffled = score(run_bin, TALES, lines[::-1], "--unordered")
    by_id = sorted(shuffled, key=lambda x: x["id"])
    rows = [json.loads(x) for x in want.splitlines()]
    assert [x | {"line": 0} for x in by_id] == [x | {"line": 0} for x in rows]
    for line, x in list(zip(lines, rows, strict=True))[:8]:
        assert score(run_bin, TALES, [line])[0] | {"line": x["line"]} == x


def test_few_blocks(run_bin: Path) -> None:
    """Texts that need all of the context wait for room and get through."""
    rng = random.Random(2)
    lines = [{"ids": [rng.randrange(3, 4000) for _ in range(300)]} for _ in range(12)]
    want = score(run_bin, TALES, lines, "--parallel", "1", "-c", "300")
    assert score(run_bin, TALES, lines, "--parallel", "5", "-c", "300") == want


def test_prompts_are_run_once(run_bin: Path, tmp_path: Path) -> None:
    """64 completions of a prompt, on 4 lines, take a small part of 64 times the time of one."""
    prompt = " ".join(WORDS * 2)[:4000]
    lines = [{"prompt": prompt, "completions": [f" {w}" for w in WORDS[i:i + 16]]}
             for i in range(0, 64, 16)]

    def seconds(lines: list[dict]) -> float:
        begin = time.monotonic()
        assert all(x["n_prompt"] > 500 for x in score(run_bin, TALES, lines, "-c", "2000"))
        return time.monotonic() - begin

    one = min(seconds([{"prompt": prompt, "completion": " a"}]) for _ in range(3))
    assert min(seconds(lines) for _ in range(2)) < 20 * one


def test_memory(gemma3_path: Path, run_bin: Path, tmp_path: Path) -> None:
    """Logits of a text of 512 tokens would be 537 MB for this vocabulary; of 32 rows they are 34.

    The file itself is 253 MB, and all of it is read."""
    rng = random.Random(3)
    lines = [{"ids": [rng.randrange(3, 200000) for _ in range(512)]}]
    (tmp_path / "in").write_text(json.dumps(lines[0]) + "\n")
    code = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
            "stdout=subprocess.DEVNULL); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
    done = subprocess.run([sys.executable, "-c", code, run_bin, gemma3_path, "--score", "--jsonl",
                           tmp_path / "in", "-c", "512"], capture_output=True, text=True,
                          check=True, timeout=300)
    assert int(done.stdout) < (253 + 250) * 1000


def test_many_completions(run_bin: Path) -> None:
    """Their tokens are made when their turn comes, not all at once."""
    line = {"prompt": " ".join(WORDS)[:600], "completions": [" a"] * 3000}
    (got,) = score(run_bin, TALES, [line])
    assert len(got["scores"]) == 3000
    assert all(s == got["scores"][0] for s in got["scores"])


# ---- lines ---------------------------------------------------------------------------------------


def test_forms(run_bin: Path) -> None:
    """A text is judged from its second token on; forms of the same tokens give the same numbers."""
    text = "Once upon a time there was a dog"
    ids = ids_of(run_bin, TALES, "-i", text)
    got = score(run_bin, TALES, [text, {"text": text}, {"ids": ids},
                                 {"ids": ids[:1], "completion": ids[1:]},
                                 {"ids": ids[:1], "completions": [ids[1:]]},
                                 {"prompt": "", "completion": text}])
    for line in got:
        assert line["prompt_ids"] == ids[:1] and line["scores"] == got[0]["scores"]
        assert line["scores"][0]["ids"] == ids[1:]
        assert line["scores"][0]["n_bytes"] == len(text)
    done = subprocess.run([run_bin, TALES, "--score", "--lines", "-"], input=text + "\r\n",
                          capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == got[0]
    (bare,) = score(run_bin, TALES, [text], "--no-bos")  # its first token is not judged
    assert bare["prompt_ids"] == ids[1:2] and bare["scores"][0]["ids"] == ids[2:]


def test_nothing_to_score(run_bin: Path) -> None:
    nothing = {"logprob": 0, "token_logprobs": [], "ids": [], "n_tokens": 0, "n_bytes": 0,
               "greedy": True}
    got = score(run_bin, TALES, [{"prompt": "a", "completion": ""}, {"text": ""}, {"ids": [1]},
                                 {"ids": [1], "completions": [[], [2]]}])
    assert [x["scores"][0] for x in got] == [nothing] * 4 and got[3]["scores"][1]["n_tokens"] == 1
    (none,) = score(run_bin, TALES, [{"prompt": "a ", "completions": []}])
    assert none["scores"] == [] and none["prompt_ids"] == ids_of(run_bin, TALES, "-i", "a ")


def test_special(smollm2_path: Path, run_bin: Path) -> None:
    """Control tokens written in lines are text, unless --special-files is given."""
    line = {"prompt": "<|im_start|>user", "completion": "<|im_end|>"}
    (text,), (token,) = (score(run_bin, smollm2_path, [line], *args)
                         for args in ([], ["--special-files"]))
    assert text["scores"][0]["n_bytes"] == 10 and text["n_prompt"] > 3
    assert token["scores"][0]["ids"] == [2] and token["prompt_ids"][0] == 1
    assert token["scores"][0]["n_bytes"] == 0


def test_carried_keys(run_bin: Path, tmp_path: Path) -> None:
    line = ('{"id": {"a": [1,  2]}, "prompt": "Once", "completion": " upon", '
            '"gold": 1.50, "y": "\\u00e9", "scores": 5}\n')
    out = tmp_path / "out"
    done = subprocess.run([run_bin, TALES, "--score", "--jsonl", "-", "-o", out], input=line,
                          capture_output=True, text=True, check=True)
    text = out.read_text()
    assert done.stdout == "" and text.startswith('{"id": {"a": [1,  2]}, "line": 1, ')
    assert '"gold": 1.50' in text and '"y": "\\u00e9"' in text
    assert list(json.loads(text)) == ["id", "line", "prompt_ids", "n_prompt", "scores", "gold", "y"]
    assert isinstance(json.loads(text)["scores"], list)


def test_resume(run_bin: Path, tmp_path: Path) -> None:
    """A file that was broken off is completed; one that another mode has written is refused."""
    (tmp_path / "in").write_text("".join(json.dumps(x) + "\n" for x in sample_lines(30)))
    args = [run_bin, TALES, "--jsonl", tmp_path / "in", "-o", tmp_path / "out"]
    subprocess.run([*args, "--score"], check=True)
    whole = (tmp_path / "out").read_bytes()
    (tmp_path / "out").write_bytes(whole[:len(whole) // 3])
    assert "--score: got false, want true" in error_of(*args, "--resume", code=2)
    subprocess.run([*args, "--score", "--resume"], check=True)
    assert (tmp_path / "out").read_bytes() == whole


LONG = " ".join(WORDS)
BAD = {
    "not JSON": ("nonsense", "JSON at byte"), "a number": ("5", "want an object or a string"),
    "nothing": ("{}", "want one of"), "only a completion": ('{"completion": "a"}', "want one of"),
    "two prompts": ('{"prompt": "a", "ids": [1], "completion": "b"}', "want one of"),
    "a prompt alone": ('{"prompt": "a"}', 'want either "completion" or "completions"'),
    "two forms": ('{"prompt": "a", "completion": "b", "completions": ["c"]}', "want either"),
    "a text and more": ('{"text": "a", "completion": "b"}', "text: want it alone"),
    "text of another type": ('{"text": 5}', "text: want a string"),
    "prompt of another type": ('{"prompt": 5, "completion": "b"}', "prompt: want a string"),
    "completion of another type": ('{"prompt": "a", "completion": 5}', "completion: want a string"),
    "completions of another type": ('{"prompt": "a", "completions": "b"}', "completions: want a"),
    "a completion of another type": ('{"prompt": "a", "completions": ["b", null]}', "completion:"),
    "a text after ids": ('{"ids": [5], "completion": "b"}', "completion: want a list of token ids"),
    "no ids": ('{"ids": []}', "the text is empty"),
    "no ids before": ('{"ids": [], "completion": [3]}', "the prompt is empty"),
    "ids out of range": ('{"ids": [1, 99999999]}', "ids: want"),
    "completion's ids out of range": ('{"ids": [1], "completion": [-1]}', "completion: want whole"),
    "messages alone": ('{"messages": []}', 'want either "completion" or "completions"'),
    "a long text": (json.dumps({"text": LONG}), "text: got"),
    "a long prompt": (json.dumps({"prompt": LONG, "completion": "a"}), "completion: got"),
    "a long completion": (json.dumps({"prompt": "a", "completions": [" b", LONG, " c"]}),
                          "completions[1]: got"),
    "deep": ('{"text": ' + "[" * 100000, "JSON at byte"),
    "invalid UTF-8": (b'{"text": "\xff"}', "JSON at byte"), "empty": ("", "JSON at byte"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_line(name: str, any_run: Path) -> None:
    """A line's fault is told in its place; the others are the same as without it."""
    line, want = BAD[name]
    good = b'{"id": "x", "prompt": "Once", "completions": [" upon", " a"]}\n'
    bad = line if isinstance(line, bytes) else line.encode()
    args = [any_run, TALES, "--score", "--jsonl", "-", "-c", "100"]
    done = subprocess.run(args, input=good + bad + b"\n" + good, capture_output=True, timeout=300)
    first, second, third = (json.loads(x) for x in done.stdout.splitlines())
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1
    assert want in second["error"] and second["line"] == 2 and "scores" not in second
    alone = subprocess.run(args, input=good, capture_output=True, check=True, timeout=300)
    assert first == json.loads(alone.stdout) and third | {"line": 1} == first


def test_context(run_bin: Path) -> None:
    """The last token is not run: a text may have one token more than the context."""
    for n, code in ((65, 0), (66, 1)):
        (x,) = score(run_bin, TALES, [{"ids": [5] * n}], "-c", "64", code=code)
        assert ("scores" in x) == (code == 0)
    assert x["error"] == "text: got 66 tokens, want at most 65, one more than the context (-c)"


def test_all_forms_under_sanitizers(any_run: Path) -> None:
    for args in ([], ["--parallel", "3", "-b", "5"]):
        assert len(score(any_run, TALES, sample_lines(20), *args)) == 20


def test_a_conversation_of_lines(run_bin: Path) -> None:
    """One line in, its result out, the next line in."""
    p = subprocess.Popen([run_bin, TALES, "--score", "--jsonl", "-"], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True)
    assert p.stdin and p.stdout
    for line in sample_lines(5):
        p.stdin.write(json.dumps(line) + "\n")
        p.stdin.flush()
        assert json.loads(p.stdout.readline())["id"] == line["id"]
    p.stdin.close()
    assert p.wait(timeout=60) == 0


def test_full_disk(run_bin: Path) -> None:
    done = subprocess.run(f"echo '\"a b\"' | {run_bin} {TALES} --score --jsonl - > /dev/full",
                          shell=True, capture_output=True, text=True)
    assert done.returncode == 1 and "standard output" in done.stderr


def test_usage(run_bin: Path) -> None:
    for args, want in ((["--score"], "--score needs --jsonl or --lines"),
                       (["--score", "--jsonl", "-", "-i", "a"], "--score does not take -i"),
                       (["--lines", "-", "--score", "--temp", "1"], "--score does not take --temp"),
                       (["--score", "--jsonl", "-", "--lines", "x"], "got two inputs, want one")):
        assert want in error_of(run_bin, TALES, *args, code=2)
