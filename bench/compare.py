#!/usr/bin/env python3
"""How fast ./run is beside llama.cpp and ik_llama.cpp: makes the table of bench/RESULTS.md.

    python bench/compare.py MODEL.gguf ... --llama-bench PATH --ik-bench PATH
                            [--llama-cli PATH] [--ik-cli PATH]

For each model and number of threads, in each round: the bandwidth of memory, then for each work one
short run of every engine, one right after the other. A ratio is ours / best peer and is formed
within a round, since a machine that is shared is faster in one minute than in the next; the table
shows the median, least and largest ratio of all rounds. The best peer is the better one of that
round in whichever of its settings (--llama-args, --ik-args) did best in it, so chance favours the
peers. Settings whose best run of two rounds is more than a tenth below that of their engine's best
are then left out.

Every engine makes an untimed warm-up run of the work and then the one that counts, with an f16
cache. ik_llama.cpp has no option for tokens in the cache: it runs them as a prompt before the timed
part (-gp). The prompt of the cold process is "a"; its time is from start to exit, the model's file
being in the page cache. Peers that are missing are named and left out. Only the standard library is
needed."""
from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Iterable

ROOT = Path(__file__).resolve().parent.parent
OURS = "attn.c"
TIMEOUT = 3600  # seconds of one run; catches hangs
# after so many rounds, settings at least so near to their engine's best one go on
TRIALS, KEEP = 2, 0.9
PYTHON_COLD = ("import sys; from llama_cpp import Llama; Llama(sys.argv[1], n_ctx=512, "
               "n_threads=int(sys.argv[2]), verbose=False)('a', max_tokens=1)")

# one run as --json prints it: model, threads, round, work, engine, settings, value, mib, argv,
# reads_gb_s
Run = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What is timed.

    A prefill (pp512), a generation (tg64), one after other tokens (tg64@2048), or a cold process
    (cold)."""
    name: str
    n_prompt: int = 0
    n_generate: int = 0
    depth: int = 0

    @property
    def cold(self) -> bool:
        return not self.n_prompt and not self.n_generate

    @property
    def title(self) -> str:
        if self.cold:
            return "one token from a cold process"
        if self.n_prompt:
            return f"prefill {self.n_prompt}"
        return f"decode {self.n_generate}" + (f" after {self.depth}" if self.depth else "")


def parse_work(name: str) -> Work:
    if name == "cold":
        return Work(name)
    match = re.fullmatch(r"pp([1-9]\d*)|tg([1-9]\d*)(?:@(\d+))?", name)
    if not match:
        raise argparse.ArgumentTypeError(f"{name!r}: want ppN, tgN, tgN@DEPTH or cold")
    return Work(name, *(int(n or 0) for n in match.groups()))


@dataclass(frozen=True)
class Engine:
    name: str
    bench: str | None = None  # paths; None: not there
    cli: str | None = None
    python: str | None = None
    settings: tuple[str, ...] = ("",)  # each tried, of the bench

    def command(self, work: Work, model: str, threads: int, settings: str) -> list[str] | None:
        """The command that times `work`, None if the engine cannot."""
        if work.cold:
            if self.name == OURS:
                return [self.bench, model, "-i", "a", "-n", "1", "-c", "512", "-t", str(threads)]
            if self.python:
                return [self.python, "-c", PYTHON_COLD, model, str(threads)]
            # no conversation; no file main.log
            more = "-no-cnv" if self.name == "llama.cpp" else "--log-disable"
            return self.cli and [self.cli, "-m", model, "-p", "a", "-n", "1", "-c", "512", "-t",
                                 str(threads), "--no-warmup", more]
        if not self.bench:
            return None
        pp, tg, depth = (str(n) for n in (work.n_prompt, work.n_generate, work.depth))
        if self.name == OURS:
            return [self.bench, model, "--bench", "--pp", pp, "--tg", tg, "--depth", depth,
                    "--runs", "1", "-t", str(threads), "--json"]
        common = [self.bench, "-m", model, "-t", str(threads), "-o", "json", *settings.split()]
        if self.name == "llama.cpp":
            return [*common, "-p", pp, "-n", tg, "-d", depth, "--no-warmup", "-r", "2"]
        if work.depth:
            return [*common, "-p", "0", "-n", "0", "-gp", f"{depth},{tg}", "-r", "1"]
        return [*common, "-p", pp, "-n", tg, "-w", "0", "-r", "2"]


def parse_rate(engine: str, work: Work, output: str) -> float:
    """Tokens a second, from what our bench or llama-bench printed.

    Of llama-bench's JSON it is the last sample."""
    data = json.loads(output[output.index("{" if engine == OURS else "["):])
    if engine == OURS:
        return float(data["prefill_tps" if work.n_prompt else "decode_tps"])
    (row,) = data
    if row["n_gen"] != work.n_generate or row["n_prompt"] not in (work.n_prompt, work.depth):
        raise ValueError(f"got a run of {row['n_prompt']} and {row['n_gen']} tokens")
    return float(row["samples_ts"][-1])


def measure(argv: list[str]) -> tuple[str, float, float]:
    """A command's standard output, seconds from start to exit, and peak memory in MiB.

    The memory is at least that of this program."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begin = time.perf_counter()
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        watch = threading.Timer(TIMEOUT, child.kill)
        watch.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except KeyboardInterrupt:
            child.kill()
            child.wait()
            raise
        finally:
            watch.cancel()
        seconds = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if child.returncode:
            lines = err.read().decode(errors="replace").strip().splitlines() or [""]
            raise RuntimeError(f"status {child.returncode}: {lines[-1]}")
        return out.read().decode(errors="replace"), seconds, usage.ru_maxrss / 1024


def probe(path: Path) -> float:
    """GB/s of reading memory with all threads, now."""
    return float(json.loads(measure([str(path), "--bandwidth"])[0])["gb_s"])


def into_page_cache(path: str) -> None:
    """Read a file to its end, so that nobody is the one who waits for the disk."""
    piece = bytearray(1 << 20)
    with open(path, "rb", buffering=0) as f:
        while f.readinto(piece):
            pass


# ---- running -------------------------------------------------------------------------------------

def run_all(args: argparse.Namespace, engines: list[Engine], runs: list[Run],
            failures: dict[str, str]) -> None:
    """Append to `runs` as they are made, so that an interrupted session keeps what it has."""
    for model in args.models:
        for threads in args.threads:
            kept = {(e.name, w): ("",) if w.cold else e.settings for e in engines
                    for w in args.work}
            done: dict[Work, list[Run]] = {w: [] for w in args.work}
            for n in range(args.rounds):
                where = {"model": Path(model).name, "threads": threads, "round": n,
                         "reads_gb_s": probe(args.probe)}
                for work in args.work:
                    into_page_cache(model)
                    # nobody is always first
                    for engine in engines[n % len(engines):] + engines[:n % len(engines)]:
                        for settings in kept[engine.name, work]:
                            argv = engine.command(work, model, threads, settings)
                            made = run_one(argv, engine, settings, work, args.verbose,
                                           failures) if argv else []
                            done[work] += [{**where, "work": work.name, **r} for r in made]
                        if n + 1 == TRIALS and not work.cold:
                            kept[engine.name, work] = settings_to_keep(engine.name, done[work])
                    runs += [r for r in done[work] if r["round"] == n]


def run_one(argv: list[str], engine: Engine, settings: str, work: Work, verbose: bool,
            failures: dict[str, str]) -> list[Run]:
    """The run as a list of one; an empty list, and a line in `failures`, if it failed."""
    label = f"{engine.name} {settings}".strip()
    try:
        output, seconds, mib = measure(argv)
        value = seconds * 1000 if work.cold else parse_rate(engine.name, work, output)
    except (RuntimeError, OSError, ValueError, KeyError) as e:
        failures.setdefault(f"{label}, {work.title}", str(e).replace("\n", " ")[:200])
        return []
    if verbose:
        print(f"{shlex.join(argv)}: {value:.2f}, {mib:.0f} MiB", file=sys.stderr)
    return [{"engine": engine.name, "settings": settings, "value": value, "mib": mib, "argv": argv}]


def settings_to_keep(engine: str, done: list[Run]) -> tuple[str, ...]:
    mine: dict[str, float] = {}
    for r in done:
        if r["engine"] == engine:
            mine[r["settings"]] = max(r["value"], mine.get(r["settings"], 0))
    return tuple(s for s, v in mine.items() if v >= KEEP * max(mine.values()))


# ---- the table -----------------------------------------------------------------------------------

@dataclass
class Row:
    model: str
    threads: int
    title: str
    unit: str
    medians: dict[str, float]  # of each engine's best setting in each round
    best: str  # the peer that was best most often
    ratios: list[float]  # ours / best peer of each round, ascending
    reads: list[float]  # GB/s in these rounds


def make_row(runs: list[Run], title: str, unit: str, key: str, lower: bool) -> Row:
    """One line of the table from all rounds of one model, number of threads and work.

    `key` is what is compared."""
    choose = min if lower else max
    each: dict[str, list[float]] = {}
    ratios, winners = [], Counter()
    for n in sorted({r["round"] for r in runs}):
        best: dict[str, Run] = {}
        for r in (r for r in runs if r["round"] == n):
            best[r["engine"]] = choose(best.get(r["engine"], r), r, key=lambda x: x[key])
        for engine, r in best.items():
            each.setdefault(engine, []).append(r[key])
        ours = best.pop(OURS, None)
        if ours and best:
            peer = choose(best.values(), key=lambda x: x[key])
            ratios.append(ours[key] / peer[key])
            winners[f"{peer['engine']} {peer['settings']}".strip()] += 1
    first = runs[0]
    return Row(first["model"], first["threads"], title, unit,
               {e: statistics.median(v) for e, v in each.items()}, winners.most_common(1)[0][0]
               if winners else "", sorted(ratios), sorted({r["reads_gb_s"] for r in runs}))


def make_rows(runs: list[Run]) -> list[Row]:
    groups: dict[tuple[str, int], dict[str, list[Run]]] = {}
    for r in runs:
        groups.setdefault((r["model"], r["threads"]), {}).setdefault(r["work"], []).append(r)
    rows = []
    for works in groups.values():
        for name, mine in works.items():
            work = parse_work(name)
            rows.append(make_row(mine, work.title, "ms" if work.cold else "tokens/s", "value",
                                 lower=work.cold))
        largest = max((parse_work(n) for n in works),
                      key=lambda w: (w.n_prompt, w.depth + w.n_generate))
        rows.append(make_row(works[largest.name], f"peak memory, {largest.title}", "MiB", "mib",
                             lower=True))
    return rows


def figure(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def spread(values: list[float]) -> str:
    low, high = figure(values[0]), figure(values[-1])
    return low if low == high else f"{low} to {high}"


def print_table(rows: list[Row]) -> str:
    engines = sorted({e for r in rows for e in r.medians} - {OURS})
    head = ["model", "threads", "work", "unit", OURS, *engines, "ours / best peer",
            "least to largest", "best peer", "reads, GB/s"]
    lines = [head, ["---"] * 4 + ["---:"] * (len(engines) + 2) + ["---"] * 3]
    for r in rows:
        lines.append([r.model.removesuffix(".gguf"), str(r.threads), r.title, r.unit,
                      *(figure(r.medians[e]) if e in r.medians else "" for e in [OURS, *engines]),
                      f"**{statistics.median(r.ratios):.2f}**" if r.ratios else "",
                      spread(r.ratios) if r.ratios else "", r.best,
                      spread(r.reads)])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def first_line(*argv: str) -> str:
    try:
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return (done.stdout.strip().splitlines() or ["unknown"])[0]


def describe_machine() -> dict[str, str]:
    """What a reader of the table needs to know of where it was made."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*: (.*)$", info, re.M)
    return {"CPU": f"{model[1] if model else os.uname().machine}, "
            f"{len(os.sched_getaffinity(0))} cores",
            "compiler": first_line(os.environ.get("CC", "cc"), "--version"),
            "commit": first_line("git", "describe", "--always", "--dirty"),
            "date": date.today().isoformat()}


def short(argv: Iterable[str]) -> str:
    """A command without the folders of this machine."""
    return shlex.join("..." if a == PYTHON_COLD else a
                      if a.startswith("-") else a.rsplit("/", 1)[-1] for a in argv)


def print_report(data: dict[str, Any]) -> str:
    runs: list[Run] = data["runs"]
    commands: dict[tuple[str, str], str] = {}
    tried: dict[str, dict[str, None]] = {}
    for r in runs:
        commands.setdefault((r["work"], r["engine"]), short(r["argv"]))
        if r["settings"]:
            tried.setdefault(r["engine"], {})[f"`{r['settings']}`"] = None
    out = [f"    {data['command']}", "", *(f"- {k}: {v}" for k, v in data["machine"].items())]
    out += [f"- settings tried of {e}: {', '.join(s)}" for e, s in tried.items()]
    out += [f"- {line}" for line in data["notes"]]
    out += ["", print_table(make_rows(runs)) if runs else "Nothing ran.", "",
            "Of ms and MiB less is better, there a ratio below 1 is good. The commands, as they "
            "were for the first model and number of threads:", ""]
    out += [f"    {engine:<16} {c}" for (_, engine), c in commands.items()]
    return "\n".join(out)


def merge(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the runs of several calls; the rounds of a later call come after those of an earlier."""
    for i, part in enumerate(parts):
        for r in part["runs"]:
            r["round"] += 1000 * i
    return {**parts[0], "runs": [r for part in parts for r in part["runs"]],
            "notes": list(dict.fromkeys(n for part in parts for n in part["notes"]))}


# ---- main ----------------------------------------------------------------------------------------

def numbers(text: str) -> list[int]:
    return [int(t) for t in text.split(",")]


def find_engines(args: argparse.Namespace) -> tuple[list[Engine], list[str]]:
    """The engines that are there, ours first, and a line for each thing that is missing."""
    notes = []

    def path(name: str, value: str | None) -> str | None:
        found = shutil.which(value) if value else None
        if not found:
            notes.append(f"left out: {name} ({f'{value}: not found' if value else 'not given'})")
        return found

    engines = [Engine(OURS, bench=str(args.run))]
    for name, bench, cli, settings in (("llama.cpp", args.llama_bench, args.llama_cli,
                                        args.llama_args),
                                       ("ik_llama.cpp", args.ik_bench, args.ik_cli, args.ik_args)):
        engines.append(Engine(name, path(f"{name}'s llama-bench", bench),
                              path(f"{name}'s program for the cold process", cli),
                              settings=tuple(settings or ["-fa 1", "-fa 0"])))
    if args.peer_python:
        there = subprocess.run([args.peer_python, "-c", "import llama_cpp"],
                               capture_output=True).returncode == 0
        engines += [Engine("llama-cpp-python", python=args.peer_python)] if there else []
        notes += [] if there else ["left out: llama-cpp-python (--peer-python cannot import it)"]
    return [e for e in engines if e.bench or e.cli or e.python], notes


def parse_args(argv: list[str]) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*", metavar="MODEL")
    p.add_argument("--run", type=Path, default=ROOT / "run", help="our program (./run)")
    p.add_argument("--probe", type=Path, default=ROOT / "build" / "kernels_bench",
                   help="reads memory (build/kernels_bench)")
    p.add_argument("--llama-bench", default="llama-bench",
                   help="llama.cpp's llama-bench (from PATH)")
    p.add_argument("--ik-bench", help="ik_llama.cpp's llama-bench")
    p.add_argument("--llama-cli", help="llama.cpp's llama-completion, for the cold process")
    p.add_argument("--ik-cli", help="ik_llama.cpp's llama-cli, for the cold process")
    p.add_argument("--peer-python", help="a Python with llama-cpp-python, for the cold process")
    p.add_argument("--llama-args", action="append", metavar="ARGS",
                   help='settings to try, repeatable ("-fa 1" and "-fa 0")')
    p.add_argument("--ik-args", action="append", metavar="ARGS",
                   help='settings to try, repeatable ("-fa 1" and "-fa 0"; "-fa 1 -rtr 1" repacks)')
    p.add_argument("--threads", type=numbers, default=[1, 2], metavar="LIST", help="1,2")
    p.add_argument("--rounds", type=int, default=5, help="5")
    p.add_argument("--work", type=lambda t: [parse_work(w) for w in t.split(",")], metavar="LIST",
                   default=[parse_work(w)
                            for w in ("pp512", "pp2048", "tg64", "tg64@2048", "cold")],
                   help="pp512,pp2048,tg64,tg64@2048,cold")
    p.add_argument("--json", action="store_true", help="print every run instead of the table")
    p.add_argument("--from", dest="source", type=Path, nargs="+", metavar="FILE", help="print the "
                   "table of what --json printed, of several files together; runs nothing")
    p.add_argument("-v", "--verbose", action="store_true", help="each run on standard error")
    args = p.parse_args(argv)
    if not args.models and not args.source:
        p.error("want a model")
    return args


def main(argv: list[str]) -> int:
    args = parse_args(argv)
    if args.source:
        print(print_report(merge([json.loads(path.read_text()) for path in args.source])))
        return 0
    for path in (args.run, args.probe, *map(Path, args.models)):
        if not path.exists():
            print(f"compare.py: {path}: not there (make; make build/kernels_bench)",
                  file=sys.stderr)
            return 1
    engines, notes = find_engines(args)
    data: dict[str, Any] = {"command": "python bench/compare.py " + short(argv),
                            "machine": describe_machine(), "notes": notes, "runs": []}
    failures: dict[str, str] = {}
    try:
        run_all(args, engines, data["runs"], failures)
    except KeyboardInterrupt:
        notes.append("interrupted: later rounds are missing")
    notes += [f"failed: {what}: {why}" for what, why in failures.items()]
    print(json.dumps(data, indent=1) if args.json else print_report(data))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
