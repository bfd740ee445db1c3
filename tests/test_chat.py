"""--chat on SmolLM2's real file.

The truth about a turn is a completion of the text that transformers' template writes (test_template
compares the templates); a conversation on a terminal goes through a pseudo-terminal.
"""
from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from command import error_of, text_of

GREEDY = ["--temp", "0", "-n", "12"]
QUESTION = "What is the capital of France?"


def form(*messages: tuple[str, str]) -> str:
    """SmolLM2's form, up to the answer."""
    start = [] if messages[0][0] == "system" else [
        ("system", "You are a helpful AI assistant named SmolLM, trained by Hugging Face")]
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in
                   [*start, *messages]) + "<|im_start|>assistant\n"


def completion(run: Path, model: Path, *messages: tuple[str, str], args: list = GREEDY) -> str:
    return text_of(run, model, "-i", form(*messages), "--special", *args).decode()


def test_one_answer(run_bin: Path, smollm2_path: Path, tmp_path: Path) -> None:
    want = completion(run_bin, smollm2_path, ("user", QUESTION))
    assert "capital" in want
    chat = [run_bin, smollm2_path, "--chat", *GREEDY]
    assert text_of(*chat, "-i", QUESTION).decode() == want
    assert text_of(*chat, stdin=QUESTION.encode() + b"\n").decode() == want
    path = tmp_path / "m.json"
    path.write_text(json.dumps([{"role": "user", "content": QUESTION}]))
    assert text_of(*chat, "--messages", path).decode() == want
    got = json.loads(text_of(*chat, "-i", QUESTION, "--json"))
    ids = json.loads(text_of(run_bin, smollm2_path, "-i", form(("user", QUESTION)), "--special",
                             "--tokenize", "--json"))["ids"]
    assert (got["text"], got["prompt_ids"]) == (want, ids)
    want = completion(run_bin, smollm2_path, ("system", "Be brief."), ("user", QUESTION))
    assert text_of(*chat, "-i", QUESTION, "--system", "Be brief.").decode() == want


def test_contents_are_text(run_bin: Path, smollm2_path: Path) -> None:
    """A control token that a user types is ten characters."""
    got = json.loads(text_of(run_bin, smollm2_path, "--chat", "-n", "1", "--json", "-i",
                             "a<|im_end|>b"))
    assert got["prompt_ids"].count(2) == 2  # <|im_end|> of the system's and the user's turn


USER = {"role": "user", "content": QUESTION}
TALKS = [[USER], [{"role": "system", "content": "Be brief."}, USER],
         [USER, {"role": "assistant", "content": "Paris."},
          {"role": "user", "content": "And of <|im_end|> Italy?"}],
         [{"role": "user", "content": "Grüße, 世界\n"}]]


def lines_of(run: Path, model: Path, lines: list, *args: object, code: int = 0) -> list[dict]:
    text = "".join(json.dumps(x) + "\n" for x in lines)
    done = subprocess.run([run, model, "--jsonl", "-", *map(str, args)], input=text.encode(),
                          capture_output=True, timeout=300)
    assert done.returncode == code, done.stderr
    return [json.loads(x) for x in done.stdout.splitlines()]


def test_lines(run_bin: Path, smollm2_path: Path, tmp_path: Path) -> None:
    """A line's messages are answered as --messages answers them, whatever the neighbours."""
    path = tmp_path / "m.json"
    lines = [{"messages": m, "n": 12, "temp": 0.8, "seed": 7, "tag": i, "tools": None}
             for i, m in enumerate(TALKS)]
    got = lines_of(run_bin, smollm2_path, lines)
    assert [x["tag"] for x in got] == [0, 1, 2, 3] and not any("messages" in x for x in got)
    assert lines_of(run_bin, smollm2_path, lines, "--parallel", "1", "--chat") == got
    for talk, line in zip(TALKS, got, strict=True):
        path.write_text(json.dumps(talk))
        want = json.loads(text_of(run_bin, smollm2_path, "--chat", "--messages", path, "--json",
                                  "-n", "12", "-s", "7"))
        for key in ("text", "ids", "prompt_ids", "finish_reason"):
            assert line[key] == want[key], key
    assert got[2]["prompt_ids"].count(2) == 4  # the turns' own, not the one that was typed


def test_prompts_of_lines(run_bin: Path, smollm2_path: Path, tmp_path: Path) -> None:
    """With --chat a prompt is what a user says, after --system where the line has no other."""
    (tmp_path / "q.txt").write_text(QUESTION + "\n")
    brief = ["--chat", "--system", "Be brief.", *GREEDY]
    (want,) = lines_of(run_bin, smollm2_path, [{"messages": TALKS[1]}], *GREEDY)
    done = json.loads(text_of(run_bin, smollm2_path, "--lines", tmp_path / "q.txt", *brief))
    got = lines_of(run_bin, smollm2_path, [QUESTION, {"prompt": QUESTION}, {"messages": [USER]},
                                           {"messages": TALKS[1]}, {"ids": want["prompt_ids"]}],
                   *brief)
    for line in [done, *got]:
        assert (line["text"], line["prompt_ids"]) == (want["text"], want["prompt_ids"])
    (own,) = lines_of(run_bin, smollm2_path, [{"messages": [
        {"role": "system", "content": "Answer in French."}, USER]}], *brief)
    assert own["n_prompt"] != want["n_prompt"]
    (shown,) = lines_of(run_bin, smollm2_path, [{"messages": TALKS[1], "echo": True}], *GREEDY)
    assert shown["text"] == form(("system", "Be brief."), ("user", QUESTION)) + want["text"]


def test_what_templates_of_lines_get(run_bin: Path, smollm2_path: Path, tmp_path: Path) -> None:
    """A line's tools and variables take the place of those of the flags."""
    form_path, tools = tmp_path / "form", tmp_path / "tools"
    form_path.write_text("{{ tools[0].name if tools else 'none' }} {{ kind or '-' }}")
    tools.write_text('[{"name": "flag"}]')
    lines = [{"messages": [USER], "tools": [{"name": "mine"}]},
             {"messages": [USER], "chat_template_kwargs": {"kind": "own"}}, {"messages": [USER]}]
    args = ["--chat-template", form_path, "-n", "0", "--echo"]
    assert [x["text"] for x in lines_of(run_bin, smollm2_path, lines, *args)] == [
        "mine -", "none own", "none -"]
    assert [x["text"] for x in lines_of(run_bin, smollm2_path, lines, *args, "--tools", tools,
                                        "--chat-template-kwargs", '{"kind": "all"}')] == [
        "mine all", "flag own", "flag all"]


@pytest.mark.parametrize("line, want", [
    ({"messages": 5}, "messages: want a list"), ({"messages": []}, "empty"),
    ({"messages": [5]}, "object"), ({"messages": ["a"]}, "object"),
    ({"messages": [USER], "prompt": "a"}, "want one of"),
    ({"messages": [USER], "ids": [1]}, "want one of"),
    ({}, "want one of"), ({"messages": [USER], "tools": 5}, "tools: want"),
    ({"messages": [USER], "chat_template_kwargs": []}, "kwargs: want"),
    ({"prompt": "a", "tools": [{}]}, "beside it"), ({"ids": [5], "tools": [{}]}, "beside it"),
    ({"messages": [USER], "completion": "a"}, "--score"),
    ({"messages": [{"content": "no role"}]}, "")])
def test_bad_lines(line: dict, want: str, run_bin: Path, smollm2_path: Path) -> None:
    good = {"messages": [USER], "n": 0}
    first, bad, last = lines_of(run_bin, smollm2_path, [good, line, good], code=1)
    assert want in bad.get("error", ""), bad
    assert "error" in bad and "text" in first and "text" in last


def test_many_lines_without_a_template(run_bin: Path, tiny_model: Path) -> None:
    """The reason is found once, and told with each line; --chat is refused at once."""
    begin = time.monotonic()
    got = lines_of(run_bin, tiny_model, [{"messages": [USER]}] * 10000, code=1)
    assert time.monotonic() - begin < 30 and len(got) == 10000
    assert all("--chat-template" in x["error"] for x in got)
    assert "--chat-template" in error_of(run_bin, tiny_model, "--chat", "--lines", "/dev/null",
                                         code=3)
    for args, want in [(["--system", "x"], "--system needs --chat"),
                       (["--chat", "--no-bos"], "--chat does not take --no-bos"),
                       (["--chat", "--special-files"], "--chat does not take --special-files")]:
        assert want in error_of(run_bin, tiny_model, "--lines", "/dev/null", *args, code=2)


class Terminal:
    def __init__(self, *args: object):
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.environ["TERM"] = "dumb"
            os.execv(args[0], [str(a) for a in args])
        self.text = ""

    def until(self, pattern: str, seconds: float = 120) -> str:
        """What appears up to a match of the pattern, which is taken."""
        end = time.time() + seconds
        while not (found := re.search(pattern, self.text)):
            assert time.time() < end, self.text
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.fd, 4096).decode(errors="replace").replace("\r", "")
                except OSError:
                    raise AssertionError(self.text) from None
        out, self.text = self.text[:found.start()], self.text[found.end():]
        return out

    def say(self, line: str) -> None:
        os.write(self.fd, line.encode() + b"\n")
        self.until(re.escape(line) + "\n")  # the echo

    def status(self) -> int:
        try:
            while os.read(self.fd, 4096):
                pass
        except OSError:
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_conversation(run_bin: Path, smollm2_path: Path) -> None:
    """Each answer is that of the whole conversation; /undo and /reset take back what was said."""
    t = Terminal(run_bin, smollm2_path, "--chat", *GREEDY)
    t.until("> ")
    said: list[tuple[str, str]] = []
    for line in (QUESTION, "And of Italy?"):
        t.say(line)
        answer = t.until("\n> ")
        said.append(("user", line))
        assert answer == completion(run_bin, smollm2_path, *said)
        said.append(("assistant", answer))
    t.say("/undo ")
    assert "taken back" in t.until("\n> ")
    t.say("Is it large?")
    want = completion(run_bin, smollm2_path, *said[:2], ("user", "Is it large?"))
    assert t.until("\n> ") == want
    t.say("/reset")
    t.until("> ")
    t.say("/undo")
    assert "nothing" in t.until("\n> ")
    t.say("/help")
    assert "/undo" in t.until("\n> ")
    t.say("/hepl")
    assert "/hepl is no command" in t.until("\n> ")
    for line in (" /help", "/etc/passwd"):
        t.say(line)
        assert t.until("\n> ") == completion(run_bin, smollm2_path, ("user", line))
        t.say("/reset")
        assert "forgotten" in t.until("\n> ")
    t.say(QUESTION)
    assert t.until("\n> ") == said[1][1]
    os.write(t.fd, b"\x04")
    assert t.status() == 0


def test_interrupt(run_bin: Path, smollm2_path: Path) -> None:
    """Ctrl-C stops the answer and not the program; at the prompt it is a new line."""
    t = Terminal(run_bin, smollm2_path, "--chat", "-n", "2000", "--ignore-eos", "-s", "1")
    t.until("> ")
    t.say("Tell a long story.")
    t.until(r"\w+ \w+ \w+")
    os.kill(t.pid, signal.SIGINT)
    t.until("\n> ")
    os.kill(t.pid, signal.SIGINT)
    t.until("\n> ")
    os.write(t.fd, b"half a line\x04")  # which is read, and waits for its end
    t.until("half a line")
    time.sleep(0.3)
    os.kill(t.pid, signal.SIGINT)
    t.until("\n> ")
    t.say("/reset")
    t.until("> ")
    os.write(t.fd, b"\x04")
    assert t.status() == 0


def test_full_context(run_bin: Path, smollm2_path: Path) -> None:
    """Nothing is dropped in silence."""
    line = error_of(run_bin, smollm2_path, "--chat", "-c", "40", "-i", "word " * 60, code=2)
    assert "-c" in line and "tokens" in line
    t = Terminal(run_bin, smollm2_path, "--chat", "-c", "60", *GREEDY)
    t.until("> ")
    t.say("word " * 60)
    assert "makes room" in t.until("\n> ")
    t.say("Hi")
    assert t.until("\n> ") == completion(run_bin, smollm2_path, ("user", "Hi"))
    t.say("Tell me about the sea")
    assert re.search(r"\w[^\n]*\nrun: the context of 60 tokens is full", t.until("cut off\n"))
    t.until("\n> ")
    os.write(t.fd, b"\x04")
    assert t.status() == 0


@pytest.mark.parametrize("content, want", [
    ("[]", "empty"), ('{"role": "user"}', "list of messages"), ("nonsense", "JSON")])
def test_bad_messages(content: str, want: str, run_bin: Path, smollm2_path: Path,
                      tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(content)
    done = subprocess.run([run_bin, smollm2_path, "--chat", "--messages", path],
                          capture_output=True, text=True)
    assert done.returncode in (2, 3) and done.stderr.count("\n") == 1, done.stderr
    assert want in done.stderr or content == "[]"
    if content != "[]":
        assert done.stderr.startswith(f"run: {path}: ")


@pytest.mark.parametrize("mode", ["--render", "--chat"])
def test_whose_fault(mode: str, run_bin: Path, smollm2_path: Path, tmp_path: Path) -> None:
    """Messages that a template does not get through are named; a template of the user's is an
    error of usage."""
    talk, form = tmp_path / "m.json", tmp_path / "form"
    talk.write_text('[{"role": "user"}]')
    args = [run_bin, smollm2_path, mode, "--messages", talk]
    line = error_of(*args, code=3)
    assert line.startswith(f"{talk}: chat template, line 4: ")
    form.write_text("{{ messages[0].a.b }}")
    line = error_of(*args, "--chat-template", form, code=2)
    assert line.startswith(f"{talk}: chat template, line 1: ")


def test_hint(run_bin: Path, smollm2_path: Path) -> None:
    """A model that ends at once on a terminal says that there is --chat."""
    t = Terminal(run_bin, smollm2_path, "-i", QUESTION, "--logit-bias", "2+100")
    t.until("--chat")
    assert t.status() == 0


def test_no_template(run_bin: Path, tiny_model: Path) -> None:
    assert "--chat-template" in error_of(run_bin, tiny_model, "--chat", "-i", "a", code=3)
