"""A batch on many machines: GNU parallel, a Slurm job array and Apache Spark cut the input and put
the parts together to the output of a single run, byte for byte, also where processes are killed."""
from __future__ import annotations

import json
import os
import random
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from command import run, text_of

ROOT = Path(__file__).resolve().parent.parent
TALES = ROOT / "models" / "tales.bin"
SAMPLED = ["-s", "3", "--temp", "0.8", "-n", "30"]
STARTS = ["Once upon a time", "The little dog", "One day", "In the forest there was", "Anna said"]
BIN = Path(sys.executable).parent


def needed(program: str) -> str:
    """A program that .ci/run installs."""
    path = shutil.which(program, path=f"{BIN}:{os.environ['PATH']}")
    if not path and os.environ.get("CI"):
        pytest.fail(f"{program} is not installed")
    return path or pytest.skip(f"needs {program}")


def make_lines(n: int, bad: bool) -> bytes:
    """Prompts of which two thirds have an id, of any type, and one of four bytes that are none."""
    rng = random.Random(n)
    ids = [lambda i: f"x{i}", lambda i: -i, lambda i: [i, None], lambda i: f"caf\xe9 {i}"]
    lines: list[bytes] = []
    for i in range(n):
        line: dict[str, object] = {"prompt": rng.choice(STARTS) + " and" * rng.randrange(20),
                                   "n": rng.randrange(1, 30), "key": i}
        if i % 3:
            line = {"id": ids[i % 4](i), **line}
        special = {4: b'"The dog"\r', 9: b'{"id":\r7,\t"prompt": "One\xe2\x80\xa8day"}'}
        wrong = {2: b"", 5: b"no JSON", 7: b'"caf\xff"', 8: b"\r", 11: b'"a\0b"',
                 13: b"\xef\xbb\xbf"}
        lines.append({**special, **(wrong if bad else {})}.get(i % 20, json.dumps(line).encode()))
    return b"\n".join(lines)  # the last one has no end


@pytest.fixture(params=[False, True], ids=["good", "bad"])
def case(request, run_bin: Path, tmp_path: Path) -> tuple[Path, bytes, int]:
    """A file, the output of a single run, and that run's exit status."""
    return make_case(run_bin, tmp_path, bad=request.param)


def make_case(exe: Path, folder: Path, bad: bool, n: int = 104) -> tuple[Path, bytes, int]:
    (folder / "in.jsonl").write_bytes(make_lines(n, bad))
    done = run(exe, TALES, "--jsonl", folder / "in.jsonl", *SAMPLED)
    assert done.returncode == bad and done.stdout.count(b"\n") == n
    return folder / "in.jsonl", done.stdout, int(bad)


# ---- the number of the first line ----------------------------------------------------------------


def test_first_line(case: tuple[Path, bytes, int], run_bin: Path) -> None:
    """Ranges of lines, one after the other, give the bytes of the whole."""
    source, whole, _ = case
    lines = [x + b"\n" for x in source.read_bytes().split(b"\n")]
    for cuts in ([0, 1, 50, 104], [0, 103, 104]):
        parts = [run(run_bin, TALES, "--jsonl", "-", "--first-line", a + 1, *SAMPLED,
                     stdin=b"".join(lines[a:b])).stdout
                 for a, b in zip(cuts, cuts[1:])]
        assert b"".join(parts) == whole


@pytest.mark.parametrize("flags", [["--score"], SAMPLED], ids=["score", "generate"])
def test_first_line_of_texts(flags: list[str], run_bin: Path) -> None:
    texts = [f"{s} and\n".encode() for s in STARTS]
    whole = text_of(run_bin, TALES, "--lines", "-", *flags, stdin=b"".join(texts))
    half = text_of(run_bin, TALES, "--lines", "-", *flags, "--first-line", 3,
                   stdin=b"".join(texts[2:]))
    assert half.splitlines() == whole.splitlines()[2:]


@pytest.mark.parametrize("more", [[], ["--unordered"]], ids=["ordered", "unordered"])
def test_first_line_resumed(more: list[str], run_bin: Path, tmp_path: Path) -> None:
    """--resume knows the lines of a part by their numbers."""
    source, whole, _ = make_case(run_bin, tmp_path, bad=True)
    lines, out = source.read_bytes().split(b"\n"), tmp_path / "out"
    want = whole.splitlines(True)[40:]
    args = [TALES, "--jsonl", "-", "-o", out, "--first-line", 41, *SAMPLED, *more, "--resume"]
    for kept in (0, 1, 20, len(want)):
        if kept:
            out.write_bytes(b"".join(want[:kept]) + b'{"torn')
        done = run(run_bin, *args, stdin=b"\n".join(lines[40:]))
        assert done.returncode == 1, done.stderr
        got = out.read_bytes().splitlines(True)
        assert got == want or (more and sorted(got) == sorted(want))
    args[6] = 40
    done = run(run_bin, *args, stdin=b"\n".join(lines[40:]))
    assert done.returncode == 2 and b"--first-line: got 40, want 41" in done.stderr
    for line in (b'{"line": 40}\n', b'{"line": 105}\n', want[0] + want[0],
                 want[0] + b'{"line": 1}\n'):
        out.write_bytes(line)
        args[6] = 41
        done = run(run_bin, *args, stdin=b"\n".join(lines[40:]))
        assert done.returncode == 2 and b"is none that the run before" in done.stderr, line


# ---- GNU parallel --------------------------------------------------------------------------------


def parallel(exe: Path, data: bytes, *more: object) -> subprocess.CompletedProcess[bytes]:
    """The command of docs/cluster.md, in pieces of 10 lines."""
    command = f"{exe} {TALES} --jsonl - --first-line $((10 * {{#}} - 9)) -t 1 {' '.join(SAMPLED)}"
    return run(Path(needed("parallel")), "--will-cite", "--pipe", "-N", 10, "--keep-order", "-j", 2,
               *more, command, stdin=data)


def test_parallel(case: tuple[Path, bytes, int], run_bin: Path) -> None:
    source, whole, status = case
    done = parallel(run_bin, source.read_bytes())
    assert done.stdout == whole
    assert bool(done.returncode) == status, done.stderr


def test_parallel_on_other_machines(run_bin: Path, tmp_path: Path) -> None:
    """--sshlogin, with a program for ssh that stays here; and a job that dies is run again.

    As sshd does, the program sets SHELL: GNU parallel runs its jobs with it, and where it is not
    set, prints nothing with status 0."""
    source, whole, _ = make_case(run_bin, tmp_path, bad=False)
    log = tmp_path / "log"
    ssh, dying = tmp_path / "ssh", tmp_path / "dying"
    ssh.write_text(f'#!/bin/bash\necho "$1" >> {tmp_path}/hosts\nshift 2\n'
                   'export SHELL=/bin/bash\nexec bash -c "$*"\n')
    dying.write_text(f"""#!/bin/bash
if [[ " $* " == *" --first-line 31 "* ]] && mkdir {tmp_path}/died; then
    {run_bin} "$@" | head -n 3
    kill -9 $$
fi
exec {run_bin} "$@"
""")
    ssh.chmod(0o755)
    dying.chmod(0o755)
    done = parallel(dying, source.read_bytes(), "--ssh", ssh, "--sshlogin", "1/node1,1/node2",
                    "--retries", 3, "--joblog", log)
    assert (done.returncode, done.stdout) == (0, whole), (done.stderr, log.read_text())
    assert (tmp_path / "died").exists()
    assert {"node1", "node2"} <= set((tmp_path / "hosts").read_text().split())


# ---- Slurm ---------------------------------------------------------------------------------------


def test_shellcheck() -> None:
    done = run(Path(needed("shellcheck")), ROOT / "tools" / "slurm.sh")
    assert (done.returncode, done.stdout) == (0, b"")


def slurm_env(exe: Path, task: int, n: int) -> dict[str, str]:
    """What Slurm says to a task of an array of n."""
    names = {"ID": task, "COUNT": n, "MIN": 0, "MAX": n - 1}
    return {f"SLURM_ARRAY_TASK_{k}": str(v) for k, v in names.items()} | {"RUN": str(exe)}


def slurm(exe: Path, task: int, n: int, source: Path, out: Path, *more: str,
          model: Path = TALES, **env: str) -> subprocess.CompletedProcess[bytes]:
    return run(ROOT / "tools" / "slurm.sh", model, source, out, *SAMPLED, *more,
               env=slurm_env(exe, task, n) | env)


@pytest.mark.parametrize("n, n_lines", [(1, 104), (4, 104), (8, 5)])
def test_slurm(n: int, n_lines: int, case: tuple[Path, bytes, int], run_bin: Path) -> None:
    """Tasks in any order, also some without lines: the last one joins."""
    source, whole, status = case
    source.write_bytes(b"\n".join(source.read_bytes().split(b"\n")[:n_lines]))
    whole = b"".join(whole.splitlines(True)[:n_lines])
    out = source.with_name("out.jsonl")
    order = random.Random(n).sample(range(n), n)
    done = []
    for task in order:
        assert not out.exists()
        done.append(slurm(run_bin, task, n, source, out).returncode)
    assert out.read_bytes() == whole and set(done) <= {0, status} and max(done) == status
    before = out.stat().st_mtime_ns
    assert slurm(run_bin, order[0], n, source, out).returncode == done[0]  # nothing is left to do
    assert out.read_bytes() == whole and out.stat().st_mtime_ns != before
    assert not list(source.parent.glob("out.jsonl.parts/joined*"))


def test_slurm_killed(run_bin: Path, tmp_path: Path) -> None:
    """A task that is killed leaves its part unfinished; submitted again it goes on from there."""
    source, whole, _ = make_case(run_bin, tmp_path, bad=False)
    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.parts" / "00001.jsonl"
    dying = tmp_path / "dying"
    dying.write_text(f'#!/bin/bash\nhead -n 7 | {run_bin} "$@"\nkill -9 $$\n')
    dying.chmod(0o755)
    assert slurm(dying, 1, 2, source, out).returncode == 137
    assert slurm(run_bin, 0, 2, source, out).returncode == 0
    assert part.read_bytes().count(b"\n") == 7 and not out.exists()
    # The last line is torn, and the first one shows whether it is made again.
    part.write_bytes(part.read_bytes()[:-9].replace(b'"key": 52', b'"old": 52'))
    assert slurm(run_bin, 1, 2, source, out).returncode == 0
    assert b'"key": 52' in whole
    assert out.read_bytes() == whole.replace(b'"key": 52', b'"old": 52')


def test_slurm_refused(run_bin: Path, tmp_path: Path) -> None:
    """Another array, other flags, another input, no array, a model that is none."""
    source, whole, _ = make_case(run_bin, tmp_path, bad=False, n=20)
    out = tmp_path / "out.jsonl"
    for task in range(2):
        assert slurm(run_bin, task, 2, source, out).returncode == 0
    before = out.stat().st_mtime_ns
    for done, want in [(slurm(run_bin, 0, 3, source, out), b"of an array of 2 tasks, got 3"),
                       (slurm(run_bin, 1, 2, source, out, "--top-k", "3"), b"--top-k: got 3"),
                       (slurm(run_bin, 3, 4, source, out, SLURM_ARRAY_TASK_MIN="3"), b"from 0 on"),
                       (slurm(run_bin, 1, 2, source, out, SLURM_ARRAY_TASK_MAX="5"), b"from 0 on"),
                       (run(ROOT / "tools" / "slurm.sh", TALES, source), b"want a model")]:
        assert done.returncode == 2 and want in done.stderr and done.stderr.count(b"\n") == 1
    missing = slurm(run_bin, 0, 1, tmp_path / "none", tmp_path / "other")
    assert missing.returncode == 2 and b"none" in missing.stderr
    source.write_bytes(source.read_bytes().replace(b"and", b"or"))
    assert b"input: " in slurm(run_bin, 1, 2, source, out).stderr
    bare = subprocess.run([ROOT / "tools" / "slurm.sh", TALES, source, out], capture_output=True)
    assert bare.returncode and b"sbatch --array" in bare.stderr
    assert out.read_bytes() == whole and out.stat().st_mtime_ns == before
    other = slurm(run_bin, 0, 2, source, tmp_path / "other", model=source)
    assert other.returncode == 3 and not (tmp_path / "other").exists()


# ---- Spark ---------------------------------------------------------------------------------------

# Small splits of the input, so that lines are numbered over many.
SPARK = ["--conf", "spark.ui.enabled=false", "--conf", "spark.sql.files.maxPartitionBytes=1500",
         "--conf", "spark.sql.files.openCostInBytes=1", "--driver-memory", "512m"]


@pytest.fixture(scope="module")
def spark_tool():
    """Runs tools/spark.py in this process, so that its jobs share a Java machine, which has two
    slots and tries a task four times: arguments -> exit status."""
    needed("java")
    pytest.importorskip("pyspark", reason="pyspark is in requirements-test.txt")
    patch = pytest.MonkeyPatch()
    patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    patch.setenv("PYSPARK_PYTHON", sys.executable)
    patch.setenv("PYSPARK_SUBMIT_ARGS", f"--master local[2,4] {' '.join(SPARK)} pyspark-shell")

    def command(*args: object) -> int:
        patch.setattr(sys, "argv", ["spark.py", *map(str, args)])
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(ROOT / "tools" / "spark.py"), run_name="__main__")
        return done.value.code

    yield command
    patch.undo()
    from pyspark import SparkContext
    if gateway := SparkContext._gateway:
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait(60)
        SparkContext._gateway = SparkContext._jvm = None


def joined(out: Path) -> bytes:
    """The parts in the order of their names."""
    assert (out / "_SUCCESS").exists()
    return b"".join(p.read_bytes() for p in sorted(out.glob("part-*")))


def program(path: Path, exe: Path, lines: str) -> Path:
    """A program that is `exe`, but for the first of these ranges of lines that it gets."""
    path.write_text(f"""#!/bin/bash
case " $* " in
{lines}
esac
exec {exe} "$@"
""")
    path.chmod(0o755)
    return path


def test_spark_killed(spark_tool, run_bin: Path, tmp_path: Path, capfd) -> None:
    """kill -9 of a run in the midst of its lines, and of one of Spark's processes."""
    source, whole, _ = make_case(run_bin, tmp_path, bad=True)
    dying = program(tmp_path / "dying", run_bin, f"""
*" --first-line 21 "*) if mkdir {tmp_path}/run; then head -n 7 | {run_bin} "$@"; kill -9 $$; fi ;;
*" --first-line 61 "*) if mkdir {tmp_path}/worker; then
    head -n 7 | {run_bin} "$@"; kill -9 $PPID; sleep 1; fi ;;
*) echo "$@" >> {tmp_path}/calls ;;""")
    assert spark_tool(TALES, source, tmp_path / "out", "--run", dying, "--lines", 20, "--",
                      *SAMPLED) == 1
    assert joined(tmp_path / "out") == whole
    assert (tmp_path / "run").exists() and (tmp_path / "worker").exists()
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 1 + 4  # one to try the flags, and the tasks that nobody killed
    assert all(" -t 1 " in call for call in calls[1:])
    n = whole.count(b'"error": ')
    assert f'spark.py: {n} lines have failed, see their "error"\n' in capfd.readouterr().err


def test_spark(spark_tool, run_bin: Path, tmp_path: Path, capfd) -> None:
    """All lines good; tasks of the size that is chosen; the folder is not written twice."""
    source, whole, _ = make_case(run_bin, tmp_path, bad=False)
    args = [TALES, source, tmp_path / "out", "--", *SAMPLED, "--unordered"]
    assert spark_tool(*args) == 0
    out = joined(tmp_path / "out")
    assert sorted(out.splitlines()) == sorted(whole.splitlines())
    assert len(list((tmp_path / "out").glob("part-*"))) == 8
    assert spark_tool(*args) == 1
    assert "out: is there already, want a new folder" in capfd.readouterr().err
    assert joined(tmp_path / "out") == out


def test_spark_scores(spark_tool, run_bin: Path, tmp_path: Path) -> None:
    """Flags choose another mode."""
    source, _, _ = make_case(run_bin, tmp_path, bad=True, n=20)
    whole = run(run_bin, TALES, "--score", "--jsonl", source).stdout
    assert spark_tool(TALES, source, tmp_path / "out", "--lines", 9, "--", "--score") == 1
    assert joined(tmp_path / "out") == whole


def test_spark_without_lines(spark_tool, tmp_path: Path, capfd) -> None:
    (tmp_path / "in").write_bytes(b"")
    assert spark_tool(TALES, tmp_path / "in", tmp_path / "out") == 0
    assert joined(tmp_path / "out") == b""
    assert spark_tool(TALES, tmp_path / "none", tmp_path / "out2") == 1
    assert "spark.py: [PATH_NOT_FOUND]" in capfd.readouterr().err


def test_spark_refused(spark_tool, run_bin: Path, tmp_path: Path, capfd) -> None:
    """What `run` refuses is refused before anything begins, with its message and exit status."""
    source, _, _ = make_case(run_bin, tmp_path, bad=False, n=5)
    for model, flags, code, want in [
            (tmp_path / "none", [], 1, "none: cannot open"), (source, [], 3, "in.jsonl: "),
            (TALES, ["--tmp", "1"], 2, "did you mean --temp?"),
            (TALES, ["-o", "x"], 2, "given twice"), (TALES, ["--lines", "x"], 2, "two inputs"),
            (TALES, ["--resume"], 2, "got a stream")]:
        assert spark_tool(model, source, tmp_path / "out", "--", *flags) == code
        err = capfd.readouterr().err
        assert err.startswith("run: ") and want in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault, want", [
    ('cat > /dev/null; echo "run: out of memory for line 12" >&2; exit 4',
     "run: out of memory for line 12 (exit status 4, 0 of 10 lines are answered)"),
    ('head -n 3 | RUN "$@"; exit 0', "run: has ended (exit status 0, 3 of 10 lines are answered)"),
    ('head -n 3 | RUN "$@"; exit 1', "(exit status 1, 3 of 10 lines are answered)"),
    ('RUN "$@"; exit 4', "(exit status 4, 10 of 10 lines are answered)"),
], ids=["memory", "fewer", "full", "end"])
def test_spark_fails(fault: str, want: str, spark_tool, run_bin: Path, tmp_path: Path,
                     capfd) -> None:
    """A run that fails fails its task, with its message; a part never lacks a line."""
    source, _, _ = make_case(run_bin, tmp_path, bad=False, n=20)
    failing = program(tmp_path / "failing", run_bin,
                      f'*" --first-line 11 "*) {fault.replace("RUN", str(run_bin))} ;;')
    assert spark_tool(TALES, source, tmp_path / "out", "--run", failing, "--lines", 10, "--",
                      *SAMPLED) == 1
    (line,) = [x for x in capfd.readouterr().err.splitlines() if x.startswith("spark.py: ")]
    assert line.endswith(want)
    assert not (tmp_path / "out" / "_SUCCESS").exists()


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What a task does, without Spark: a program -> a function of numbered lines."""
    pytest.importorskip("pyspark", reason="pyspark is in requirements-test.txt")
    tool = runpy.run_path(str(ROOT / "tools" / "spark.py"), run_name="tool")
    task = SimpleNamespace(get=lambda: SimpleNamespace(cpus=lambda: 1))
    monkeypatch.setitem(tool["Answers"].__call__.__globals__, "TaskContext", task)
    return lambda exe: tool["Answers"]([str(exe), str(TALES), *SAMPLED], None)


def test_spark_loses_its_lines(answers, run_bin: Path) -> None:
    """Where the lines end in a fault of their source, the task fails: its answers are too few."""
    def lines():
        yield 0, b'"Once"'
        yield 1, b'"The dog"'
        raise OSError("a block is lost")

    got = answers(run_bin)(lines())
    assert [json.loads(next(got))["line"] for _ in range(2)] == [1, 2]
    with pytest.raises(OSError, match="a block is lost"):
        next(got)


def test_spark_ends_its_run(answers, tmp_path: Path) -> None:
    """A task that nobody waits for leaves no process."""
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/bash\necho $$ > {tmp_path}/pid\necho '{{}}'\nexec sleep 60\n")
    slow.chmod(0o755)
    got = answers(slow)(iter([(0, b'"Once"')]))
    assert next(got) == b"{}"
    begin = time.monotonic()
    got.close()
    assert time.monotonic() - begin < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
