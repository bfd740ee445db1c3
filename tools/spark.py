"""Apache Spark (pip install pyspark, Java 17 or 21) on ./run: a file of prompts or texts to score,
spread over a cluster.

    spark-submit --master spark://host:7077 tools/spark.py model.gguf in.jsonl out -- -s 1 -n 100

What comes after -- are flags of ./run. The lines are cut into ranges, a task each; a task gives its
range to one `run --jsonl -` with as many threads as Spark gives it cores (spark.task.cpus), and
tells it the number of its first line. So the parts in the folder `out`, in the order of their
names, are the output of a single run, byte for byte. A task that dies is run again by Spark, and
nothing of its first attempt stays.

MODEL and the program must have the same paths on every machine."""
from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from itertools import accumulate, chain
from pathlib import Path

from py4j.protocol import Py4JJavaError
from pyspark import TaskContext
from pyspark.accumulators import Accumulator
from pyspark.errors import AnalysisException
from pyspark.sql import SparkSession

RUN = Path(__file__).resolve().parent.parent / "run"
MOST_LINES = 1000  # of a task: what is lost when it dies


class RunFailed(Exception):
    """What `run` says about its end."""


class Answers:
    """What a task does with its lines."""

    def __init__(self, command: list[str], n_failed: Accumulator[int]) -> None:
        self.command = command
        self.n_failed = n_failed

    def __call__(self, lines: Iterator[tuple[int, bytes]]) -> Iterator[bytes]:
        """The answers to consecutive lines, which come with their numbers from 0."""
        first = next(lines, None)
        task = TaskContext.get()
        if first is None or task is None:
            return
        n_asked = n_answered = 0
        faults: list[BaseException] = []
        says = tempfile.TemporaryFile()
        process = subprocess.Popen(
            [*self.command[:2], "-t", str(task.cpus()), *self.command[2:], "--jsonl", "-",
             "-o", "-", "--first-line", str(first[0] + 1)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=says)
        stdin, stdout = process.stdin, process.stdout
        assert stdin and stdout

        def ask() -> None:  # beside the reading: a pipe holds less than all lines
            nonlocal n_asked
            try:
                with stdin:
                    for _, line in chain([first], lines):
                        n_asked += 1
                        stdin.write(line + b"\n")
            except BrokenPipeError:
                pass  # it has ended, and its exit status says why
            except BaseException as fault:  # of the lines' source
                faults.append(fault)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        try:
            for line in stdout:
                n_answered += 1
                yield line[:-1]
        except BaseException:  # nobody wants the rest
            process.kill()
            process.wait()
            raise
        status = process.wait()
        asking.join()
        if faults:
            raise faults[0]
        says.seek(0)
        text = says.read().decode(errors="replace").strip()
        print(text, end="\n" if text else "", file=sys.stderr)  # into the executor's log
        if status not in (0, 1) or n_answered != n_asked:
            raise RunFailed(f"{text or 'run: has ended'} (exit status {status}, {n_answered} of "
                            f"{n_asked} lines are answered)")
        if failed := re.search(r"(\d+) of \d+ lines have failed", text):
            self.n_failed.add(int(failed[1]))


def exists(spark: SparkSession, name: str) -> bool:
    """Whether a file or folder is there, in any of Hadoop's file systems."""
    context = spark.sparkContext
    path = context._jvm.org.apache.hadoop.fs.Path(name)
    return path.getFileSystem(context._jsc.hadoopConfiguration()).exists(path)


def answer_all(spark: SparkSession, source: str, out: str, command: list[str],
               lines_of_task: int | None) -> int:
    """Write the answers to the lines of `source` into the folder `out`: how many have an error."""
    context = spark.sparkContext
    n_failed = context.accumulator(0)
    # As bytes: Spark's strings would replace what is not UTF-8, which `run` has something to say
    # about.
    table = spark.read.text(source, lineSep="\n")
    lines = table.select(table.value.cast("binary")).rdd.map(lambda row: bytes(row[0]))
    counts = lines.mapPartitions(lambda part: [sum(1 for _ in part)]).collect()
    starts = [0, *accumulate(counts)]
    numbered = lines.mapPartitionsWithIndex(lambda k, part: enumerate(part, starts[k]))
    slots = max(1, context.defaultParallelism // int(spark.conf.get("spark.task.cpus", "1")))
    size = lines_of_task or min(MOST_LINES, -(-starts[-1] // (4 * slots))) or 1
    ranges = numbered.repartitionAndSortWithinPartitions(max(1, -(-starts[-1] // size)),
                                                         lambda i: i // size)
    ranges.mapPartitions(Answers(command, n_failed)).saveAsTextFile(out)
    return n_failed.value


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments, and the flags of `run`."""
    own, flags = (argv[:argv.index("--")], argv[argv.index("--") + 1:]) if "--" in argv else (argv,
                                                                                              [])
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("input", help="file of JSON lines, see docs/batches.md")
    parser.add_argument("out", help="folder for the parts of the output; must not be there")
    parser.add_argument("--run", default=str(RUN), help=f"the program ({RUN})")
    parser.add_argument("--lines", type=int, metavar="N",
                        help="lines of a task (a quarter of what a slot gets, at most "
                             f"{MOST_LINES})")
    args = parser.parse_args(own)
    if args.lines is not None and args.lines < 1:
        parser.error("--lines: want at least 1")
    return args, flags


def main(argv: list[str]) -> int:
    """The exit status: that of `run`; 1 where lines or the job have failed."""
    args, flags = parse(argv)
    command = [str(Path(args.run).resolve()), str(Path(args.model).resolve()), *flags]
    # One run without a line, so that a wrong flag or model is found at once.
    tried = subprocess.run([*command, "--jsonl", "-", "-o", "-"], stdin=subprocess.DEVNULL)
    if tried.returncode:
        return tried.returncode
    spark = SparkSession.builder.appName("attn.c").getOrCreate()
    try:
        if exists(spark, args.out):
            print(f"spark.py: {args.out}: is there already, want a new folder", file=sys.stderr)
            return 1
        n_failed = answer_all(spark, args.input, args.out, command, args.lines)
        if n_failed:
            print(f'spark.py: {n_failed} lines have failed, see their "error"', file=sys.stderr)
        return 1 if n_failed else 0
    except AnalysisException as fault:
        print(f"spark.py: {str(fault).splitlines()[0]}", file=sys.stderr)
        return 1
    except Py4JJavaError as fault:
        reason = re.search(r"RunFailed: (.*)", str(fault))
        if not reason:
            raise
        print(f"spark.py: {reason[1]}", file=sys.stderr)
        return 1
    finally:
        spark.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
