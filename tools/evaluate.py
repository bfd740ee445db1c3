"""EleutherAI's lm-evaluation-harness (pip install lm_eval) on ./run.

    python tools/evaluate.py model.gguf --tasks hellaswag,wikitext --num_fewshot 5

Flags other than those below are the harness's own; --help shows both. The model is a process that
gets the requests of a task as JSON lines, one for scores and one for texts, each started when it is
first needed: the lines run together, and prompts that begin alike run their beginning once.

What the harness's `hf` model does to a request is done here: contexts are cut from the left where
they are too long, rolling windows begin with the begin-of-text token (or the end-of-text token of a
model without one), and control tokens written in texts are control tokens, also in what
conversations say: with --apply_chat_template these are texts, which the model's template writes."""
from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from lm_eval import utils
from lm_eval._cli import HarnessCLI
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

RUN = Path(__file__).resolve().parent.parent / "run"

# Arguments of a generation in the harness's words, and members of a line.
SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
            "repetition_penalty": "repeat_penalty"}
CUT = "cut-the-text-here "  # ends a message that is to be continued; templates may drop the space
PLAIN = {"top_k": 0, "top_p": 1, "min_p": 0, "repeat_penalty": 1, "repeat_last_n": -1}


class Lines:
    """A process that answers lines of JSON in their order."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, encoding="utf-8")

    def ask(self, lines: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
        """The answers to `lines`, none of which may be an error; `what` they are is for the
        progress bar."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin and stdout

        def write() -> None:  # beside the reading: a pipe holds less than all lines
            try:
                for line in lines:
                    stdin.write(json.dumps(line) + "\n")
                stdin.flush()
            except BrokenPipeError:
                pass  # it has ended, and the reader will say so

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        answers = []
        for _ in tqdm(lines, desc=what, disable=len(lines) < 2):
            answer = stdout.readline()
            if not answer:
                raise RuntimeError(f"{self.process.args[0]}: it has ended with exit status "
                                   f"{self.process.wait()}, see its message above")
            answers.append(json.loads(answer))
        writer.join()
        for line, answer in zip(lines, answers):
            if "error" in answer:
                request = json.dumps(line, ensure_ascii=False)
                raise ValueError(f"{answer['error']}: {request[:200]}")
        return answers

    def close(self) -> None:
        """End the process. Its exit status says only what the answers have said."""
        self.process.communicate()


@register_model("run")
class Run(LM):
    """A model file in ./run, for the harness.

    `run` is the program, `flags` are some for it, such as "--exact --kv f32 -t 8"; max_length is
    its context, by default the model's, at most 4096. template_file and template_args (JSON) are
    --chat-template and --chat-template-kwargs for conversations."""

    def __init__(self, model: str, run: str = str(RUN), flags: str = "",
                 max_length: int | None = None, template_file: str | None = None,
                 template_args: str | dict[str, Any] | None = None, **unused: Any) -> None:
        super().__init__()
        info = json.loads(subprocess.run([run, model, "--info", "--json"], check=True,
                                         stdout=subprocess.PIPE).stdout)
        self.max_length = int(max_length or min(info["context"], 4096))
        self.max_gen_toks = 256
        ids = [info["metadata"].get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")]
        self.prefix = [i for i in ids if i is not None][:1]
        self.command = [run, model, "--special-files", "-c", str(self.max_length),
                        *shlex.split(flags), "--jsonl", "-"]
        self.processes: dict[str, Lines] = {}
        self.template = (Path(template_file).read_text("utf-8") if template_file
                         else info["metadata"].get("tokenizer.chat_template"))
        self.render = [run, model, "--render", "--messages", "-"]
        if template_file:
            self.render += ["--chat-template", template_file]
        if template_args:
            text = template_args if isinstance(template_args, str) else json.dumps(template_args)
            self.render += ["--chat-template-kwargs", text]

    def lines(self, *mode: str) -> Lines:
        """The process with these flags."""
        key = " ".join(mode)
        if key not in self.processes:
            self.processes[key] = Lines([*self.command, *mode])
        return self.processes[key]

    def close(self) -> None:
        while self.processes:
            self.processes.popitem()[1].close()

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """What the harness writes beside its results; a name chooses nothing, as in `hf`."""
        return self.template if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        """A name for the texts that the template makes, which the harness keeps for later runs."""
        made = json.dumps([self.template, self.render[5:], self.render[1]])
        return f"run-{hashlib.sha256(made.encode()).hexdigest()[:16]}"

    def apply_chat_template(self, chat_history: list[dict[str, str]],
                            add_generation_prompt: bool = True) -> str:
        """The text of a conversation, up to an answer or within its last message.

        As in `hf` a template that refuses it gets it again without messages of the system."""
        talk = [dict(m) for m in chat_history]
        if not add_generation_prompt:
            talk[-1]["content"] += CUT
        command = [*self.render, *([] if add_generation_prompt else ["--no-generation-prompt"])]
        done = render(command, talk)
        if done.returncode == 2:
            done = render(command, [m for m in talk if m["role"] != "system"])
        if done.returncode:
            raise ValueError(done.stderr.decode(errors="replace").strip())
        text = done.stdout.decode()
        if add_generation_prompt:
            return text
        before, tag, after = text.rpartition(CUT.strip())
        if not tag:
            raise ValueError("the chat template does not write the message that is continued")
        return before if after.startswith(" ") else before.rstrip()

    def score(self, lines: list[dict[str, Any]], what: str = "scores") -> list[dict[str, Any]]:
        return self.lines("--score").ask(lines, what)

    def encode(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """The tokens of each text, with those that the model has at its beginning."""
        different = [t for t in dict.fromkeys(texts) if t]
        answers = self.score([{"prompt": t, "completions": []} for t in different], "tokens")
        return {"": [], **{t: a["prompt_ids"] for t, a in zip(different, answers)}}

    def loglikelihood(self, requests: list[Instance],
                      disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = list(dict.fromkeys(r.args for r in requests))
        cut = self.cut(pairs)
        groups = [(context, [p[1] for p in group]) for context, group in
                  groupby((p for p in pairs if p not in cut), key=lambda p: p[0])]
        answers = self.score([{"prompt": c, "completions": after} for c, after in groups]
                             + list(cut.values()))
        names = [(c, a) for c, after in groups for a in after] + list(cut)
        scores = [(s["logprob"], s["greedy"]) for a in answers for s in a["scores"]]
        found = dict(zip(names, scores, strict=True))
        for pair, score in found.items():
            self.cache_hook.add_partial("loglikelihood", pair, score)
        return [found[r.args] for r in requests]

    def cut(self, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
        """Lines, of tokens, for pairs that are too long: their contexts are cut from the left."""
        pairs = [(c, a) for c, a in pairs
                 if len((c + a).encode(errors="replace")) >= self.max_length]
        ids = self.encode(t for c, a in pairs for t in (c.rstrip(), c + a))
        out = {}
        for c, a in pairs:
            context, after = ids[c.rstrip()], ids[c + a][len(ids[c.rstrip()]):]
            if len(context or self.prefix) + len(after) <= self.max_length + 1:
                continue
            if len(after) > self.max_length:
                raise ValueError(f"want at most {self.max_length} tokens, got {len(after)}: "
                                 f"{a[:80]!r}")
            context = (context or self.prefix)[len(after) - self.max_length - 1:]
            out[c, a] = {"ids": context, "completion": after}
        return out

    def loglikelihood_rolling(self, requests: list[Instance],
                              disable_tqdm: bool = False) -> list[float]:
        texts = [r.args[0] for r in requests]
        ids = self.encode(texts)
        windows = [[utils.make_disjoint_window(w) for w in utils.get_rolling_token_windows(
            ids[t], self.prefix[0], self.max_length, 1)] for t in texts]
        answers = iter(self.score([{"ids": a, "completion": b} for w in windows for a, b in w]))
        out = []
        for (text,), w in zip([r.args for r in requests], windows):
            out.append(sum(next(answers)["scores"][0]["logprob"] for _ in w))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), out[-1])
        return out

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        ids = self.encode(r.args[0] for r in requests)
        lines, stops = [], []
        for r in requests:
            kwargs = dict(normalize_gen_kwargs(r.args[1], self.max_gen_toks))
            n, until = kwargs.pop("max_gen_toks"), kwargs.pop("until")
            if n >= self.max_length:
                raise ValueError(f"max_gen_toks: got {n}, want less than the context's "
                                 f"{self.max_length}")
            stops.append([s for s in until if s])
            lines.append({"ids": (ids[r.args[0]] or self.prefix)[n - self.max_length:], "n": n,
                          "stop": stops[-1], **sampling(kwargs)})
        answers = self.lines().ask(lines, "texts")
        out = []
        for r, a, stop in zip(requests, answers, stops):
            text = a["text"]
            if "bytes" in a:  # as Hugging Face shows what is no UTF-8
                text = bytes(a["bytes"]).decode(errors="replace")
            out.append(postprocess_generated_text(text, stop, None))
            self.cache_hook.add_partial("generate_until", r.args, out[-1])
        return out


def render(command: list[str], talk: list[dict[str, str]]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, input=json.dumps(talk).encode(), capture_output=True)


def sampling(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Members of a line for the other arguments of a generation."""
    greedy = not kwargs.pop("do_sample")
    unknown = [k for k in kwargs if k not in SAMPLING]
    if unknown:
        raise ValueError(f"generation: {', '.join(unknown)}: there is no such thing here")
    members = PLAIN | {SAMPLING[k]: v for k, v in kwargs.items()}
    return members | {"temp": 0} if greedy else members


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], add_help=False,
                                     allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL", help="a model file for ./run")
    parser.add_argument("--run", default=str(RUN), help="the program (%(default)s)")
    parser.add_argument("--flags", help='flags for it: --flags="--exact -t 8"')
    parser.add_argument("--max_length", type=int, help="its context (the model's, at most 4096)")
    parser.add_argument("--template_file", help="a chat template other than the model's")
    parser.add_argument("--template_args", help='variables for it: \'{"enable_thinking": false}\'')
    if {"-h", "--help"} & set(sys.argv[1:]):
        parser.print_help()
        sys.argv[1:] = ["run"]  # the harness shows its own
        HarnessCLI().parse_args()
    args, rest = parser.parse_known_args()
    model_args = {k: v for k, v in vars(args).items() if v}
    sys.argv[1:] = ["run", "--model", "run", "--model_args", json.dumps(model_args), *rest]
    utils.setup_logging()
    harness = HarnessCLI()
    harness.execute(harness.parse_args())


if __name__ == "__main__":
    main()
