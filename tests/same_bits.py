"""The same bits before and after: this tree's ./run against that of another commit.

    .venv/bin/python tests/same_bits.py BASE [--models FILE.gguf ...] [--only WORD]

BASE is built in a temporary worktree. Some 700 commands are run with both. The models are tiny
random ones of every family (hf_models.py), written once by this tree's export.py; each type of
weights, type of cache, kernel table, dump format, reduction and mode has its commands. Compared are
the exit status, standard output, standard error and every file that a command writes, byte for
byte. It is for refactorings that must not change a bit, and no part of `make test`."""
from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import hf_models as hf
from conftest import ROOT, TABLES


TYPES = ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q4_k", "q5_1", "q5_0", "q4_1", "q4_0",
         "q5_k_m", "q4_k_m", "q4_k_s", "mxfp4")
KV = ("f16", "f32", "q8")
ENDINGS = ("npz", "npy", "jsonl", "csv", "svg", "html")
REDUCTIONS = ("none", "mean-heads", "max-heads", "mean", "rollout")
TEXT = "Once upon a time there was a cat, and the old man said: \"What's that, 12 hens?\""


@dataclass
class Command:
    """A command; OUT in an argument is the folder for its files."""
    args: list[str]
    env: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([*(f"{k}={v}" for k, v in self.env.items()), "run",
                         *map(shlex.quote, self.args)])


def build(commit: str, folder: Path) -> Path:
    """./run of the commit, built in a worktree below `folder`."""
    tree = folder / "base"
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), commit], cwd=ROOT,
                   check=True)
    subprocess.run(["make", "-j2", "run"], cwd=tree, check=True, stdout=subprocess.DEVNULL)
    return tree / "run"


def write_models(folder: Path) -> dict[str, Path]:
    """A file for each family and for each description of the architecture `gpt`.

    Two more are wide enough for every type of weights."""
    tok, out = hf.tokenizer_json(), {}
    cases = [*hf.CASES,
             hf.Case("wide", hf.L, hf.base(hidden_size=256, intermediate_size=512, head_dim=64),
                     "llama"),
             hf.Case("wide-tied", "Gemma3ForCausalLM",
                     hf.base(hidden_size=256, intermediate_size=256, head_dim=32,
                             num_hidden_layers=7, sliding_window=16, query_pre_attn_scalar=32,
                             tie_word_embeddings=True), "gemma3", offset=1.0)]
    for case in cases:
        out[case.name] = hf.exported(case.build(), tok, folder / f"{case.name}.gguf")
    for gpt in hf.GPT_CASES:
        name = f"gpt-{gpt.name}"
        out[name] = hf.exported_gpt(*gpt.build(), tok, folder / f"{name}.gguf")
    return out


def machine_tables() -> list[str]:
    """The kernel tables that this machine runs."""
    found = []
    for table in TABLES[os.uname().machine]:
        done = subprocess.run([ROOT / "run", ROOT / "models/tales.bin", "-i", "a", "-n", "0"],
                              env=os.environ | {"RUN_CPU": table}, capture_output=True)
        found += [table] if done.returncode == 0 else []
    return found


def commands(models: dict[str, Path], real: list[Path], run: Path,
             folder: Path) -> Iterator[Command]:
    tables, wide = machine_tables(), [models["wide"], models["wide-tied"]]
    tales = ROOT / "models/tales.bin"
    # every family: text, logits, maps, perplexity; exactly and not, in both kinds of batch
    for name, path in models.items():
        base = [str(path), "-i", TEXT, "-n", "12", "--temp", "0", "--ignore-eos"]
        yield Command([*base, "--logits", "OUT/l.npy", "--dump-attn", "OUT/a.npz", "--attn-stats",
                       "OUT/s.json"])
        yield Command([*base, "--exact", "--kv", "f32", "--logits", "OUT/l.npy", "-b", "7", "-t",
                       "2", "--dump-attn", "OUT/a.jsonl"])
        yield Command([str(path), "--perplexity", str(ROOT / "tests/passage.txt"), "--json", "-c",
                       "96"])
    types = []
    for path in wide:
        for kind in TYPES:
            target = folder / f"{path.stem}-{kind}.gguf"
            subprocess.run([run, path, "--quantize", kind, "-o", target], check=True)
            types.append(target)
            yield Command([str(path), "--quantize", kind, "-o", "OUT/m.gguf", "-t", "2"])
        yield Command([str(path), "--quantize", "q4_k", "--quantize-type", "attn_v=q8_0",
                       "--quantize-type", "blk.0=f16", "-o", "OUT/m.gguf"])
    for path in types:  # every type on every table, in three kinds of cache
        for i, table in enumerate(tables):
            for exact in ([], ["--exact"]):
                yield Command([str(path), "-i", TEXT * 3, "-n", "8", "-s", "3", "--kv",
                               KV[(i + len(exact)) % 3], "--logits", "OUT/l.npy", *exact],
                              {"RUN_CPU": table})
    for path in [tales, *wide, models["gemma2"], models["bloom"]]:
        for table in tables:
            for kv in KV:
                yield Command([str(path), "-i", TEXT * 5, "-n", "30", "-s", "5", "--kv", kv,
                               "--logits", "OUT/l.npy", "--dump-attn", "OUT/a.npy"],
                              {"RUN_CPU": table})
    for path in [tales, models["gemma3"]]:
        for reduce in REDUCTIONS:
            for ending in ENDINGS:
                yield Command([str(path), "-i", TEXT, "-n", "9", "-s", "2", "--attn-reduce", reduce,
                               "--dump-attn", f"OUT/a.{ending}"])
        for more in (["--attn-layers", "1,-1"], ["--attn-heads", "0,2-3"],
                     ["--attn-queries", "generated"], ["--attn-queries", "3-9"],
                     ["--attn-dtype", "f16"], ["--attn-top", "3"]):
            yield Command([str(path), "-i", TEXT, "-n", "9", "-s", "2", *more,
                           *(a for e in ENDINGS for a in ("--dump-attn", f"OUT/a.{e}")),
                           "--attn-stats", "OUT/s.csv"])
        for stats in ("OUT/s.csv", "OUT/s.json", "-"):
            yield Command([str(path), "-i", TEXT, "-n", "5", "-s", "2", "--attn-stats", stats])
    for more in (["-s", "1"], ["--temp", "1.5", "--top-k", "0"], ["--top-p", "0.5"],
                 ["--min-p", "0.3"], ["--repeat-penalty", "1.3"],
                 ["--presence-penalty", "0.5"], ["--frequency-penalty", "0.5"],
                 ["--logit-bias", "5+3"], ["--stop", "the"], ["--echo"],
                 ["--no-bos"], ["-n", "0"], ["-c", "64"], ["-b", "1"], ["-b", "5"], ["-t", "1"],
                 ["-t", "2"], ["--special"]):
        yield Command([str(tales), "-i", TEXT, "-s", "11", "-n", "60", *more])
    for path in [tales, *models.values()]:
        yield Command([str(path), "--tokenize", "--json", "-f", str(ROOT / "tests/passage.txt")])
    for path in real:
        for more in ([], ["--exact", "--kv", "f32"], ["--kv", "q8"], ["-t", "1"]):
            yield Command([str(path), "-f", str(ROOT / "tests/passage.txt"), "-n", "20", "-s", "1",
                           *more, "--logits", "OUT/l.npy"])
        yield Command([str(path), "-f", str(ROOT / "tests/passage.txt"), "-n", "0", "--dump-attn",
                       "OUT/a.npy", "--attn-layers", "0,-1"])
        yield Command([str(path), "--tokenize", "--json", "-f", str(ROOT / "README.md")])


def outcome(run: Path, command: Command, folder: Path) -> dict[str, str]:
    """What a command did: status, texts, files."""
    folder.mkdir()
    args = [a.replace("OUT", str(folder)) for a in command.args]
    done = subprocess.run([run, *args], env=os.environ | command.env, capture_output=True,
                          stdin=subprocess.DEVNULL, timeout=600)
    out = {"status": str(done.returncode), "stdout": hashlib.sha256(done.stdout).hexdigest(),
           "stderr": done.stderr.decode(errors="replace")}
    for path in sorted(folder.iterdir()):
        out[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        path.unlink()
    folder.rmdir()
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("base", metavar="BASE", help="commit to compare with")
    parser.add_argument("--models", metavar="FILE", nargs="*", type=Path, default=[],
                        help="real models too")
    parser.add_argument("--only", metavar="WORD", default="",
                        help="only commands with this word in them")
    args = parser.parse_args()
    subprocess.run(["make", "-j2", "run"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, here, n, different = build(args.base, folder), folder / "here", 0, 0
        shutil.copy(ROOT / "run", here)  # so that the tree may change meanwhile
        try:
            with (contextlib.redirect_stdout(io.StringIO()),
                      contextlib.redirect_stderr(io.StringIO())):
                models = write_models(folder)
            new = [name for name, path in models.items()
                   if subprocess.run([base, path, "-i", "a", "-n", "0"],
                                     capture_output=True).returncode]
            if new:
                print(f"not compared, because the base does not run them: {', '.join(new)}")
            models = {name: path for name, path in models.items() if name not in new}
            for command in commands(models, [p.resolve() for p in args.models], base, folder):
                if args.only not in str(command):
                    continue
                want, got = (outcome(run, command, folder / "out") for run in (base, here))
                n += 1
                if want != got:
                    different += 1
                    print(f"{command}\n    differs in "
                          f"{', '.join(k for k in want | got if want.get(k) != got.get(k))}",
                          flush=True)
                    if want["stderr"] != got["stderr"]:
                        print(f"    {want['stderr'].strip()!r}\n    {got['stderr'].strip()!r}",
                              flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(folder / "base")], cwd=ROOT,
                           check=True)
    print(f"{n} commands, {different} differ")
    return different > 0


if __name__ == "__main__":
    sys.exit(main())
