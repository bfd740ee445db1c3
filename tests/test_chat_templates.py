"""Whole chat templates, llama.cpp's collection of them, against transformers: the text, the ids,
and that nothing typed in a conversation is read as a token of the template's."""
from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
from conversations import CONVERSATIONS, TOOLS, USER
from gguf_files import write
from template_truth import NOW, TEXTS, Driver, Failure, Messages, transformers_text
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
CONTROL, USER_DEFINED = 3, 4
Render = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file without weights whose special tokens are TEXTS."""
    tokens = [*TEXTS.values(), "a"]
    return write(tmp_path_factory.mktemp("chat") / "m.gguf", "llama", {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 5, "tokenizer.ggml.token_type": [3, 3, 2, 3, 1],
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 2, "tokenizer.ggml.padding_token_id": 3})


@pytest.fixture(scope="module")
def render(driver: Any, run_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Render:
    """./run MODEL --render of a conversation, with the clock stopped."""
    folder = tmp_path_factory.mktemp("render")
    clock = {"LD_PRELOAD": str(driver("fixed_clock.so").resolve()), "FIXED_CLOCK": repr(NOW)}

    def run(path: Path, messages: Any, *flags: str, template: str | None = None, tools: Any = None,
            add_generation_prompt: bool = True, **variables: Any
            ) -> subprocess.CompletedProcess[bytes]:
        args = [str(run_bin), str(path), "--render", "--messages", str(folder / "messages.json")]
        (folder / "messages.json").write_text(json.dumps(messages, ensure_ascii=False))
        if template is not None:
            (folder / "template.jinja").write_bytes(template.encode())
            args += ["--chat-template", str(folder / "template.jinja")]
        if tools is not None:
            (folder / "tools.json").write_text(json.dumps(tools))
            args += ["--tools", str(folder / "tools.json")]
        if variables:
            args += ["--chat-template-kwargs", json.dumps(variables)]
        if not add_generation_prompt:
            args.append("--no-generation-prompt")
        return subprocess.run([*args, *flags], capture_output=True, env=os.environ | clock)

    return run


def test_every_template(render: Render, model: Path, chat_templates: dict[str, str]) -> None:
    """Byte for byte; what a template's own checks say is our message; where Python or jinja2 fail,
    we do. A template is one for transformers if it takes a question at all."""
    counts = {"text": 0, "own": 0, "other": 0}
    assert len(chat_templates) >= 70 and len(CONVERSATIONS) >= 12
    wrong = []
    for name, template in chat_templates.items():
        for title, messages, more in CONVERSATIONS:
            want = transformers_text(template, messages, **more)
            got = render(model, messages, template=template, **more)
            if not isinstance(want, Failure):
                same = got.returncode == 0 and got.stdout.decode() == want and not got.stderr
                counts["text"] += 1
            elif want.own:
                message = want.replace("\n", "\\x0a")
                source = got.args[got.args.index("--messages") + 1]
                same = (got.returncode, got.stderr.decode()) == (2, f"run: {source}: {message}\n")
                counts["own"] += 1
            else:
                same = got.returncode in (2, 3) and not got.stdout
                counts["other"] += 1
            if not same:
                wrong.append((name, title, want, got))
    assert not wrong, f"{len(wrong)} differ, the first: {wrong[0]}"
    assert counts["text"] > 1700 and counts["own"] > 40


# ---- ids -----------------------------------------------------------------------------------------

def real_tokenizer(path: Path, name: str) -> PreTrainedTokenizerFast:
    """The file's vocabulary as tests/test_tokenizers.py checks it, with its special tokens."""
    keys = {k: f.contents() for k, f in gguf.GGUFReader(path).fields.items()
            if k.startswith("tokenizer.")}
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    if name == "smollm2_path":
        merges = [tuple(m.split(" ")) for m in keys["tokenizer.ggml.merges"]]
        tok = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(tokens)}, merges=merges))
        tok.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True),
             pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    else:
        vocab = {p.replace(" ", "▁"): i for i, p in enumerate(tokens)}
        found = []
        for piece, score, t in zip(tokens, keys["tokenizer.ggml.scores"], types):
            if t == 1 or set(piece) == {" "}:
                p = piece.replace(" ", "▁")
                parts = [(vocab[p[:k]], vocab[p[k:]], p[:k], p[k:])
                         for k in range(1, len(p)) if p[:k] in vocab and p[k:] in vocab]
                found += [(0.0 if t != 1 else -score, *part) for part in sorted(parts)]
        found.sort(key=lambda m: m[0])
        tok = Tokenizer(models.BPE(vocab=vocab, merges=[m[3:] for m in found], byte_fallback=True,
                                   fuse_unk=True))
        tok.normalizer = normalizers.Replace(" ", "▁")
        tok.add_tokens([AddedToken(p, normalized=False) for p, t in zip(tokens, types)
                        if t == USER_DEFINED and " " not in p])
    tok.add_special_tokens([AddedToken(p, special=True, normalized=False)
                            for p, t in zip(tokens, types) if t == CONTROL])
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token=tokens[
        keys["tokenizer.ggml.bos_token_id"]], eos_token=tokens[keys["tokenizer.ggml.eos_token_id"]],
        chat_template=keys.get("tokenizer.chat_template"))


@pytest.mark.parametrize("name", ["smollm2_path", "gemma3_path"])
def test_ids(request: pytest.FixtureRequest, render: Render, chat_templates: dict[str, str],
             name: str) -> None:
    """Of the model's own template with every conversation, and of every template with some: those
    of apply_chat_template. No conversation has special text in it."""
    path = request.getfixturevalue(name)
    tok = real_tokenizer(path, name)
    own = None if tok.chat_template else chat_templates["google-gemma-2-2b-it"]
    cases: list[tuple[str | None, Messages, dict[str, Any]]] = [
        (own, messages, more) for _, messages, more in CONVERSATIONS]
    step = 1 if name == "smollm2_path" else 4
    cases += [(t, *CONVERSATIONS[(7 * i) % len(CONVERSATIONS)][1:])
              for i, t in enumerate(list(chat_templates.values())[::step])]
    compared = special = 0
    for template, messages, more in cases:
        try:
            text = tok.apply_chat_template(messages, chat_template=template, tokenize=False,
                                           **{"add_generation_prompt": True} | more)
        except Exception:
            continue
        if "strftime" in (template or ""):
            continue  # its clock goes
        want = tok(text, add_special_tokens=False)["input_ids"]
        got = render(path, messages, "--json", template=template, **more)
        assert got.returncode == 0, got.stderr
        assert json.loads(got.stdout) == {"text": text, "ids": want}
        compared += 1
        special += bool(set(want) & set(tok.all_special_ids))
    few = name == "gemma3_path"
    assert compared > (20 if few else 70) and special > (15 if few else 40)


# ---- nothing typed is a token --------------------------------------------------------------------

END = "<|im_end|>"


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all strings in it, and of keys of objects that a template may print."""
    if isinstance(value, str):
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) \
        if isinstance(value, list) else []
    for key, item in items:
        yield from fields(item, (*path, key))


def changed(value: Any, path: tuple[Any, ...], text: str) -> Any:
    """A copy in which the string at this path has `text` behind and before it."""
    value = copy.deepcopy(value)
    place = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = text + place[path[-1]] + text
    return value


@pytest.fixture(scope="module")
def drive(driver: Any) -> Iterator[Driver]:
    d = Driver(driver("template_driver"))
    yield d
    d.close()


def special_text(out: dict[str, Any]) -> list[str]:
    """The stretches that are read for special tokens."""
    raw, stretches, begin = out["text"].encode(), [""], 0
    for end, special in out["parts"]:
        if special:
            stretches[-1] += raw[begin:end].decode()
        elif begin < end:
            stretches.append("")
        begin = end
    assert begin == len(raw)
    return stretches


def test_every_field_is_content(drive: Driver, chat_templates: dict[str, str]) -> None:
    """A token typed in any field of a conversation, a tool or a variable is never in what is read
    for tokens, and is in the text as often as transformers has it there."""
    tried = printed = 0
    mark = "<|zz_end|>"  # which no template writes
    for template in chat_templates.values():
        for _, messages, more in CONVERSATIONS[::3] + [CONVERSATIONS[11]]:
            whole = {"messages": messages, "more": more}
            for path in fields(whole):
                now = changed(whole, path, mark)
                out = drive(template, now["messages"], **now["more"])
                tried += 1
                if "text" not in out or mark not in out["text"]:
                    continue
                printed += 1
                assert not any(mark in s for s in special_text(out)), (template[:50], path)
                assert "role" not in path or mark not in "".join(special_text(out))
    assert tried > 10000 and printed > 3000


def test_typed_tokens_are_no_tokens(render: Render, smollm2_path: Path,
                                    chat_templates: dict[str, str]) -> None:
    """<|im_end|>, a token of this model and of many templates, in all fields at once: the ids have
    it as often as with a text of that form which is no token."""
    token, other = 2, "<|im_enz|>"
    roles = {"role"}
    seen = 0
    for name, template in chat_templates.items():
        if END not in template:
            continue
        for _, messages, more in (CONVERSATIONS[1], CONVERSATIONS[12], CONVERSATIONS[18]):
            counts = []
            for text in (END, other):
                whole = {"messages": messages, "more": more}
                for path in list(fields(whole)):
                    if not roles & set(path) and path[-1] not in ("type", "id", "tool_call_id"):
                        whole = changed(whole, path, text)
                got = render(smollm2_path, whole["messages"], "--json", template=template,
                             **whole["more"])
                counts.append(json.loads(got.stdout)["ids"].count(token)
                              if got.returncode == 0 else None)
            assert counts[0] == counts[1], name
            seen += bool(counts[0])
    assert seen > 20


def test_marks_follow_bytes(drive: Driver) -> None:
    """What is done to a string keeps what was typed apart from what the template wrote."""
    typed = "<|a|> & \"b\"\n\u00e9"
    message = [{"role": "user", "content": typed}]
    for expression in [
            "c", "c + '<|t|>'", "'<|t|>' ~ c ~ '<|t|>'", "c[1:]", "c[::-1]", "c|trim", "c|upper",
            "c.replace('a', '<|t|>')", "'<|t|>x'.replace('x', c)", "c.split('a')|join('<|t|>')",
            "'<|t|>'.join([c, c])", "c|tojson", "[c, {'<|t|>': c}]|tojson(indent=1)", "[c]",
            "'%s<|t|>%r' % (c, c)", "'{}<|t|>{!r:>40}'.format(c, c)", "c|e", "c * 2", "c|indent",
            "c.center(30, '*')", "c|title", "c|list|join", "c|urlencode", "c|truncate(9, true)",
            "c.partition('|')|join", "c.splitlines()|join('<|t|>')", "c|string|safe + '<|t|>'",
            "{'k': c}|dictsort|first|last", "[c]|map('lower')|join", "c.title().swapcase()",
            "c.strip('<').zfill(20)", "c[0]", "c|first", "c|reverse", "[c, '<|t|>']|sort|join",
            "m(c)"]:
        template = ("{% set c = messages[0].content %}{% macro m(x) %}<|t|>{{ x }}{% endmacro %}"
                    "<|x|>{{ " + expression + " }}")
        out = drive(template, message)
        assert out["text"] == transformers_text(template, message), expression
        own = "".join(special_text(out))
        letters = {ch for ch in own if ch.isalnum()}
        # escapes of HTML are marked as the characters that they stand for
        assert own.startswith("<|x|>") and letters <= set("xt0lg"), (expression, own)
        assert own.count("<|t|>") == out["text"].count("<|t|>"), expression
        assert "<|a|>" not in own and "<|A|>" not in own and ">|a|<" not in own


def test_roles_may_be_parts_of_tokens(drive: Driver) -> None:
    """Templates make tokens of a role; one that is no plain word is content like all else."""
    template = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    out = drive(template, [{"role": "user", "content": "user"}])
    assert out["parts"] == [[8, True], [12, False]]
    for role in ("a|>", "a b", "<|x|>", "", "é", "x" * 65):
        out = drive(template, [{"role": role, "content": ""}])
        size = len(role.encode())
        assert out["parts"] == ([[2, True], [2 + size, False], [4 + size, True]] if size
                                else [[4, True]])


# ---- the mode ------------------------------------------------------------------------------------

def chat_file(folder: Path, **keys: Any) -> Path:
    return write(folder / "m.gguf", "llama", {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<s>", "a"],
        "tokenizer.ggml.scores": [0.0] * 2, "tokenizer.ggml.token_type": [3, 1],
        "tokenizer.ggml.bos_token_id": 0} | {k.replace("__", "."): v for k, v in keys.items()})


def test_own_templates(render: Render, tmp_path: Path) -> None:
    """The model's own; with tools the one named for them, if there is one."""
    path = chat_file(tmp_path, tokenizer__chat_template="plain{{ tools is none }}",
                     tokenizer__chat_template__tool_use="tools {{ tools|length }}{{ eos_token }}")
    assert render(path, [USER]).stdout == b"plainTrue"
    assert render(path, [USER], tools=TOOLS).stdout == b"tools 2"
    assert render(path, [USER], template="{{ bos_token }}").stdout == b"<s>"
    assert render(path, [USER], template="{{ bos_token }}", bos_token="x").stdout == b"x"
    one = chat_file(tmp_path, tokenizer__chat_template="{{ tools|length }}")
    assert render(one, [USER], tools=TOOLS).stdout == b"2"
    done = render(chat_file(tmp_path), [USER])
    assert done.returncode == 3 and done.stderr.decode().strip() == (
        f"run: {tmp_path}/m.gguf: key tokenizer.chat_template: not in the file; "
        "--chat-template FILE gives one")
    broken = chat_file(tmp_path, tokenizer__chat_template="a\n{% if %}")
    done = render(broken, [USER])
    assert done.returncode == 3 and b"m.gguf: chat template, line 2: got" in done.stderr


@pytest.mark.parametrize("messages,flags,code,text", [
    ("[]", [], 2, "messages.json: messages: the list is empty, want at least one message"),
    ("{", [], 2, "messages.json: JSON at byte 2"),
    ("", [], 2, "messages.json: JSON at byte 1"),
    ('"x"', [], 2, "messages.json: messages: want a list of objects"),
    ('[{"role": "user"}, 1]', [], 2, "messages.json: messages: got something else than an object"),
    ('[{"a": 1}]', ["--chat-template-kwargs", "[1]"], 2, "variables: want an object"),
    ('[{"a": 1}]', ["--chat-template-kwargs", "{"], 2, "--chat-template-kwargs: JSON at byte 2"),
    ('[{"a": 1}]', ["--tools", "/dev/null"], 2, "/dev/null: JSON at byte 1"),
    ('[{"a": 1}]', ["--tools", "/nowhere"], 1, "/nowhere: cannot read: No such file"),
    ('[{"a": 1}]', ["-i", "x"], 2, "--render does not take -i"),
    ('[{"a": 1}]', ["--messages", "x"], 2, "--messages: given twice"),
    ("[" * 100 + "]" * 100, [], 2, "JSON at byte"),
])
def test_bad_input(run_bin: Path, tmp_path: Path, messages: str, flags: list[str], code: int,
                   text: str) -> None:
    path = chat_file(tmp_path, tokenizer__chat_template="x")
    (tmp_path / "messages.json").write_text(messages)
    done = subprocess.run([run_bin, path, "--render", "--messages", tmp_path / "messages.json",
                           *flags], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert text in done.stderr


def test_render_reads_standard_input(run_bin: Path, tmp_path: Path) -> None:
    path = chat_file(tmp_path, tokenizer__chat_template="{{ messages[0].content }}\u00e9\n")
    done = subprocess.run([run_bin, path, "--render", "--messages", "-"], capture_output=True,
                          input=b'[{"role": "user", "content": "a\\u0000b\\n"}]')
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a\0b\n\xc3\xa9", b"")
    done = subprocess.run([run_bin, path, "--render"], capture_output=True, text=True)
    assert done.returncode == 2 and "--render needs --messages" in done.stderr
