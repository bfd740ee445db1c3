"""Chat templates as transformers renders them, with a fixed clock, and as tests/template_driver.c
does."""
from __future__ import annotations

import datetime
import json
import subprocess
from pathlib import Path
from typing import Any

import jinja2
import transformers.utils.chat_template_utils as utils

NOW = 1717171717.25  # seconds since 1970
TEXTS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
Messages = list[dict[str, Any]]


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(NOW)


class Failure(str):
    """Why there is no text. `own`: the template's own raise_exception, with its message."""
    own: bool = False


def failure(text: str, own: bool) -> Failure:
    f = Failure(text)
    f.own = own
    return f


def transformers_text(template: str, messages: Messages, add_generation_prompt: bool = True,
                      texts: dict[str, str] = TEXTS, **more: Any) -> str | Failure:
    """What apply_chat_template does with a conversation, tools, documents and variables."""
    messages = [{k: v for k, v in m.items() if v is not None} for m in messages]
    before, utils.datetime = utils.datetime, Clock
    try:
        return utils.render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=add_generation_prompt,
            **{**texts, **more})[0][0]
    except jinja2.TemplateError as e:
        return failure(str(e), type(e) is jinja2.TemplateError)
    except Exception as e:  # whatever Python raises within a template
        return failure(f"{type(e).__name__}: {e}", False)
    finally:
        utils.datetime = before


class Driver:
    """One process that renders many."""

    def __init__(self, path: Path):
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, template: str, messages: Messages, add_generation_prompt: bool = True,
                 tools: Any = None, texts: dict[str, str] = TEXTS, **variables: Any
                 ) -> dict[str, Any]:
        """{"text", "parts"} or {"error", "code"}."""
        line = json.dumps({"template": template, "messages": messages, "tools": tools,
                           "variables": variables, "texts": texts, "now": NOW,
                           "prompt": add_generation_prompt})
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the driver ended at {template!r}"
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        assert self.process.wait(60) == 0
