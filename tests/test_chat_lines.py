"""Conversations in batches and in --score: "messages" in lines, and --chat with a form of input.

The truth about a line's tokens is transformers' apply_chat_template, about its answer the same
conversation alone (test_chat.test_lines), about a completion what generation says of it."""
from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from conversations import CONVERSATIONS

from command import error_of, ids_of, run
from gguf_files import write_tiny
from test_chat import TALKS, lines_of
from test_chat_templates import real_tokenizer

TALES = Path(__file__).resolve().parent.parent / "models" / "tales.bin"
# It knows two roles, and adds one to a number where it is told to.
FORM = ("{% for m in messages %}{% if m.role not in ['user', 'system'] %}"
        "{{ raise_exception('no role ' ~ m.role) }}{% endif %}"
        "{{ m.role ~ ': ' ~ (m.content + '\\n') }}{% if plus %}{{ plus + 1 }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'answer:\\n' }}{% endif %}")
EXACT = ["--exact", "--kv", "f32"]


@pytest.fixture
def form(tmp_path: Path) -> Path:
    (tmp_path / "form").write_text(FORM)
    return tmp_path / "form"


def user(text: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def score(exe: Path, model: Path, lines: list, *args: object, code: int = 0) -> list[dict]:
    return lines_of(exe, model, lines, "--score", *args, code=code)


# ---- against others ------------------------------------------------------------------------------


def test_ids_of_transformers(run_bin: Path, smollm2_path: Path) -> None:
    """A line's prompt is what apply_chat_template gives for it; where that fails, so does the line.
    None of these conversations has special text in it."""
    tok = real_tokenizer(smollm2_path, "smollm2_path")
    lines, wants = [], []
    for _, messages, more in CONVERSATIONS:
        if "add_generation_prompt" in more:
            continue
        variables = {k: v for k, v in more.items() if k != "tools"}
        lines.append({"messages": messages, "tools": more.get("tools"), "completions": [],
                      "chat_template_kwargs": variables or None})
        try:
            text = tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=True,
                                           **more)
            wants.append(tok(text, add_special_tokens=False)["input_ids"])
        except Exception:
            wants.append(None)
    got = score(run_bin, smollm2_path, lines, code=1)
    assert [x.get("prompt_ids") for x in got] == wants
    assert sum(w is not None for w in wants) >= 12 and None in wants
    talks = [t for t in TALKS if "<|" not in json.dumps(t)]
    for talk, x in zip(talks, lines_of(run_bin, smollm2_path,
                                       [{"messages": t, "n": 0} for t in talks]), strict=True):
        text = tok.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        assert x["prompt_ids"] == tok(text, add_special_tokens=False)["input_ids"]


def test_answers_and_their_scores(run_bin: Path, smollm2_path: Path) -> None:
    """An answer ends with the end of its turn, which is not in it; as a completion, by its text or
    its ids, it has the numbers that generation gave it."""
    talk = [{"role": "user", "content": "What is the capital of France? <|im_end|>"}]
    (made,) = lines_of(run_bin, smollm2_path, [{"messages": talk, "temp": 0, "logprobs": 0,
                                                "n": 40}])
    assert (made["finish_reason"], made["stop"]) == ("end", 2)
    assert made["text"].endswith("Paris.")
    text = made["text"]
    line = {"messages": talk, "completions": [text, made["ids"], text + "<|im_end|>"]}
    (got,) = score(run_bin, smollm2_path, [line])
    (special,) = score(run_bin, smollm2_path, [line], "--special-files")
    assert got["prompt_ids"] == special["prompt_ids"] == made["prompt_ids"]
    for s in (*got["scores"][:2], *special["scores"][:2]):
        assert s["ids"] == made["ids"] and s["greedy"]
        assert s["token_logprobs"] == [x["logprob"] for x in made["logprobs"]]
    assert special["scores"][2]["ids"] == [*made["ids"], 2] and special["scores"][2]["greedy"]
    assert 2 not in got["scores"][2]["ids"]


def test_templates_of_the_model(run_bin: Path, tmp_path: Path) -> None:
    """A model may have a template for lines with tools, and no other."""
    tools = {"tools": [{"name": "f"}]}
    both = write_tiny(tmp_path / "both.gguf", tokenizer__chat_template="plain",
                      tokenizer__chat_template__tool_use="tools {{ tools[0].name }}")
    only = write_tiny(tmp_path / "only.gguf",
                      tokenizer__chat_template__tool_use="tools {{ tools[0].name }}")
    for mode in ([], ["--score"]):
        lines = [user("a") | x | ({"completions": []} if mode else {"n": 0, "echo": True})
                 for x in ({}, tools)]
        wants = [ids_of(run_bin, both, "-i", text, "--no-bos") for text in ("plain", "tools f")]
        got = lines_of(run_bin, both, lines, *mode)
        assert [x["prompt_ids"] for x in got] == wants
        without, having = lines_of(run_bin, only, lines, *mode, code=1)
        assert "with tools" in without["error"] and having["prompt_ids"] == wants[1]


# ---- a line is what it is alone ------------------------------------------------------------------


def talks(n: int) -> list[dict]:
    """Conversations of different lengths, which begin with the same words of the system."""
    rules = {"role": "system", "content": "Tell a story. " * 30}
    return [{"id": i, "messages": [rules, {"role": "user", "content": "and then " * (i % 7) + "?"}],
             "n": 1 + 5 * i % 23, "temp": i % 3 / 2, "key": [i]} for i in range(n)]


def test_lines_are_alone(run_bin: Path, form: Path) -> None:
    """Nor does a line depend on whether its messages or the flags say what the system says."""
    lines = talks(24)
    args = ["--chat-template", form, "-s", "5"]
    want = lines_of(run_bin, TALES, lines, *args, "--parallel", "1", "-t", "1")
    for more in (["--parallel", "7"], ["--parallel", "24", "-t", "2", "-b", "9"], ["--chat"]):
        assert lines_of(run_bin, TALES, lines, *args, *more) == want
    shuffled = lines_of(run_bin, TALES, lines[::-1], *args, "--unordered")
    assert [x | {"line": 0} for x in sorted(shuffled, key=lambda x: x["id"])] == [
        x | {"line": 0} for x in want]
    said = [{**line, "prompt": line["messages"][1]["content"]} for line in lines]
    short = [{k: v for k, v in line.items() if k != "messages"} for line in said]
    system = lines[0]["messages"][0]["content"]
    assert lines_of(run_bin, TALES, short, *args, "--chat", "--system", system) == want
    alone = [lines_of(run_bin, TALES, [line], *args)[0] for line in lines[:4]]
    assert [x | {"line": i + 1} for i, x in enumerate(alone)] == want[:4]
    for line in lines:
        line["completions"] = ["Once", " upon a time", [5]]
        del line["n"], line["temp"]
    want = score(run_bin, TALES, lines, *args[:2], "--parallel", "1")
    assert score(run_bin, TALES, lines, *args[:2]) == want


def test_a_system_prompt_runs_once(run_bin: Path, form: Path) -> None:
    """32 questions after one long text of the system take a small part of 32 times one's time."""
    system = ["--system", "The dog and the cat went home. " * 120]
    args = ["--chat-template", form, "-c", "2000", "--chat", *system]

    def seconds(n: int) -> float:
        begin = time.monotonic()
        got = lines_of(run_bin, TALES, [{"prompt": f"{i}?", "n": 1} for i in range(n)], *args)
        assert len(got) == n and all(x["n_prompt"] > 800 for x in got)
        return time.monotonic() - begin

    assert min(seconds(32) for _ in range(2)) < 12 * min(seconds(1) for _ in range(3))


def test_resume(run_bin: Path, form: Path, tmp_path: Path) -> None:
    """It ends in the file of an unbroken run; what the template is given may not change."""
    lines = [*talks(12), user(5) | {"tools": 1}, "A question", {"prompt": "Another"}]
    source, out, tools = tmp_path / "in", tmp_path / "out", tmp_path / "tools"
    source.write_text("".join(json.dumps(x) + "\n" for x in lines))
    tools.write_text('[{"name": "a"}]')
    base = [TALES, "--jsonl", source, "-s", "3", "-o", out, "-n", "9"]
    chat = ["--chat", "--chat-template", form, "--system", "Be brief", "--tools", tools,
            "--chat-template-kwargs", '{"plus": 2}']
    assert run(run_bin, *base, *chat).returncode == 1
    whole = out.read_bytes()
    for at in (0, 1, 300, len(whole) // 2, len(whole) - 1, len(whole)):
        out.write_bytes(whole[:at])
        assert run(run_bin, *base, *chat, "--resume", "--parallel", "2").returncode == 1
        assert out.read_bytes() == whole
    for more, want in ((["--system", "Be long"], "--system: got"), (["--tools", form], "--tools: "),
                       (["--chat-template", tools], "--chat-template: got"),
                       (["--chat-template-kwargs", "{}"], "--chat-template-kwargs: got")):
        changed = [*chat]
        changed[changed.index(more[0]) + 1] = more[1]
        assert want in error_of(run_bin, *base, *changed, "--resume", code=2)
    assert "--chat: got false" in error_of(run_bin, *base, *chat[1:], "--resume", code=2)
    form.write_text(FORM + " ")
    assert "--chat-template: got" in error_of(run_bin, *base, *chat, "--resume", code=2)
    assert out.read_bytes() == whole


# ---- bad input -----------------------------------------------------------------------------------

BAD = {
    **{f"messages: {text}": (f'{{"messages": {text}}}', "messages: want a list")
       for text in ("null", "true", "5", "-1e9", '"a"', "{}", '{"role": "user", "content": "a"}')},
    **{f"a message: {text}": (f'{{"messages": [{text}]}}', "want only objects")
       for text in ("null", "false", "5", '"a"', "[]", '[{"role": "user"}]')},
    "no messages": ('{"messages": []}', "empty"),
    "a role that is not known": ('{"messages": [{"role": "pirate", "content": "a"}]}',
                                 "no role pirate"),
    "no role": ('{"messages": [{"content": "a"}]}', "no role"),
    "a role of another type": ('{"messages": [{"role": [1], "content": "a"}]}', "no role [1]"),
    "a number and a text": (json.dumps(user("a") | {"chat_template_kwargs": {"plus": "x"}}),
                            "line 1"),
    "no content": ('{"messages": [{"role": "user"}]}', "line 1"),
    "deep JSON": ('{"messages": ' + "[" * 100000, "JSON at byte"),
    "deep messages": ('{"messages": [{"role": "user", "content": '
                      + "[" * 5000 + "]" * 5000 + "}]}", "JSON at byte"),
    "deep tools": ('{"tools": ' + "[" * 5000, "JSON at byte"),
    "invalid UTF-8": (b'{"messages": [{"role": "user", "content": "\xff"}]}', "JSON at byte"),
    "tools": (json.dumps(user("a") | {"tools": {"a": 1}}), "tools: want a list"),
    "variables": (json.dumps(user("a") | {"chat_template_kwargs": [1]}), "kwargs: want an object"),
    "a prompt too": (json.dumps(user("a") | {"prompt": "b"}), "want one of"),
    "ids too": (json.dumps(user("a") | {"ids": [5]}), "want one of"),
    "too long": (json.dumps(user("the dog " * 2000)), "want at most"),
}


@pytest.mark.parametrize("mode", [[], ["--chat"], ["--score"]], ids=["lines", "chat", "score"])
def test_bad_lines(mode: list[str], any_run: Path, form: Path) -> None:
    """Each line's fault is told in its place; the lines between them are the same as alone."""
    good = json.dumps(user("Once <|endoftext|>") | {"completion": " upon"} if "--score" in mode
                      else user("Once <|endoftext|>") | {"n": 2, "seed": 1}).encode()
    args = [any_run, TALES, *mode, "--jsonl", "-", "--chat-template", form, "-c", "600"]
    alone = subprocess.run(args, input=good, capture_output=True, check=True, timeout=300).stdout
    lines = []
    for line, _ in BAD.values():
        raw = line if isinstance(line, bytes) else line.encode()
        if "--score" in mode:
            raw = raw.replace(b"{", b'{"completion": "a", ', 1)
        lines += [raw, good]
    done = subprocess.run(args, input=b"\n".join(lines) + b"\n", capture_output=True, timeout=300)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1, done.stderr
    got = [json.loads(x) for x in done.stdout.splitlines()]
    assert all(x | {"line": 1} == json.loads(alone) for x in got[1::2])
    for (name, (_, want)), x in zip(BAD.items(), got[::2], strict=True):
        assert want in x["error"] and x.keys() <= {"line", "error", "n", "completion"}, (name, x)


def test_many_bad_lines(any_run: Path, form: Path) -> None:
    """A template that refuses, 10,000 times."""
    n = 1000 if "sanitize" in str(any_run) else 10000
    begin = time.monotonic()
    got = lines_of(any_run, TALES, [{"messages": [{"role": "x", "content": "a"}]}] * n,
                   "--chat-template", form, code=1)
    assert time.monotonic() - begin < 60
    assert [x["error"] for x in got] == ["no role x"] * n


def test_flags(run_bin: Path, form: Path) -> None:
    """--score reads messages of --jsonl alone."""
    for flag, value in (("--system", "x"), ("--chat-template", form), ("--tools", form),
                        ("--chat-template-kwargs", "{}")):
        assert error_of(run_bin, TALES, "--score", "--lines", form, flag, value, code=2) == (
            f'{flag}: got --lines, want --jsonl with "messages"')
    line = user("Once") | {"completion": " upon"}
    (plain,) = score(run_bin, TALES, [line], "--chat-template", form)
    (more,) = score(run_bin, TALES, [line], "--chat-template", form, "--system", "Be brief")
    assert more["n_prompt"] > plain["n_prompt"]
    ids = ids_of(run_bin, TALES, "-i", "user: Once\nanswer:\n", "--no-bos")
    assert plain["prompt_ids"] == ids  # this model's texts have a BOS, this template writes none
    assert plain["scores"][0]["ids"] == ids_of(run_bin, TALES, "-i", " upon", "--no-bos")
    (bad,) = score(run_bin, TALES, [line], code=1)
    assert "--chat-template FILE gives one" in bad["error"]
    (stray,) = score(run_bin, TALES, [{"prompt": "a", "completion": "b", "tools": []}], code=1)
    assert stray["error"] == 'tools: want "messages" beside it'
