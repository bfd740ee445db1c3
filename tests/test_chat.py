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


def test_hint(run_bin: Path, smollm2_path: Path) -> None:
    """A model that ends at once on a terminal says that there is --chat."""
    t = Terminal(run_bin, smollm2_path, "-i", QUESTION, "--logit-bias", "2+100")
    t.until("--chat")
    assert t.status() == 0


def test_no_template(run_bin: Path, tiny_model: Path) -> None:
    assert "--chat-template" in error_of(run_bin, tiny_model, "--chat", "-i", "a", code=3)
