"""--resume: a batch that was broken off, at any moment, ends in the file of an unbroken run."""
from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from command import error_of, run

TALES = Path(__file__).parent.parent / "models" / "tales.bin"
STARTS = ["Once upon a time", "The little dog", "One day", "In the forest there was", "Anna said"]


def make_lines(n: int, seed: int = 1) -> bytes:
    """Prompts of different lengths; each tenth line is none."""
    rng = random.Random(seed)
    lines = [{"id": f"x{i}", "prompt": rng.choice(STARTS) + " and" * rng.randrange(20),
              "n": rng.randrange(1, 40), "key": i} for i in range(n)]
    texts = [json.dumps(x) if i % 10 != 7 else "no JSON" for i, x in enumerate(lines)]
    return "".join(t + "\n" for t in texts).encode()


def batch(exe: Path, out: Path, *args: object, stdin: bytes | None = None,
          code: int = 1) -> subprocess.CompletedProcess[bytes]:
    done = run(exe, TALES, *args, "-o", out, "--parallel", "6", stdin=stdin, timeout=300)
    assert done.returncode == code, done.stderr
    return done


def in_order(data: bytes) -> list[bytes]:
    return sorted(data.splitlines(), key=lambda line: json.loads(line)["line"])


@pytest.fixture
def case(run_bin: Path, tmp_path: Path) -> tuple[Path, Path, bytes]:
    """An input of 60 lines, an output that is not there, and what belongs into it."""
    (tmp_path / "in").write_bytes(make_lines(60))
    batch(run_bin, tmp_path / "whole", "--jsonl", tmp_path / "in", "-s", "3")
    return tmp_path / "in", tmp_path / "out", (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("more", [[], ["--unordered"]], ids=["ordered", "unordered"])
@pytest.mark.parametrize("piped", [False, True], ids=["file", "pipe"])
def test_killed(more: list[str], piped: bool, run_bin: Path, tmp_path: Path) -> None:
    """kill -9 ten times, each when a few more lines are there and a moment has passed."""
    data, out, rng = make_lines(400, 2), tmp_path / "out", random.Random(5)
    (tmp_path / "in").write_bytes(data)
    batch(run_bin, tmp_path / "whole", "--jsonl", tmp_path / "in", "-s", "3")
    source = "-" if piped else tmp_path / "in"
    killed, found = 0, set()
    for _ in range(10):
        size = out.stat().st_size if out.exists() else 0
        args = [run_bin, TALES, "--jsonl", source, "-s", "3", "-o", out, "--resume", "--parallel",
                "6", *more]
        with (tmp_path / "in").open("rb") as f:
            feed = subprocess.Popen(["cat"], stdin=f, stdout=subprocess.PIPE)
            p = subprocess.Popen(args, stdin=feed.stdout, stderr=subprocess.PIPE)
            assert feed.stdout
            feed.stdout.close()
            goal = size + rng.randrange(8000)
            while p.poll() is None and (not out.exists() or out.stat().st_size < goal):
                time.sleep(0.001)
            time.sleep(rng.random() * 0.02)
            p.send_signal(signal.SIGKILL)
            assert p.wait(60) in (-9, 1)
            feed.kill()
            feed.wait()
        killed += p.returncode == -9
        found.add(out.read_bytes().count(b"\n") if out.exists() else 0)
    assert killed >= 8 and len(found) >= 5
    done = batch(run_bin, out, "--jsonl", source, "-s", "3", "--resume", *more, stdin=data)
    assert b"40 of 400 lines have failed" in done.stderr
    whole = (tmp_path / "whole").read_bytes()
    assert out.read_bytes() == whole or (more and in_order(out.read_bytes()) == in_order(whole))


@pytest.mark.parametrize("piped", [False, True], ids=["file", "pipe"])
def test_torn(piped: bool, run_bin: Path, case: tuple[Path, Path, bytes]) -> None:
    """Cut anywhere, the file is completed; whole lines are not written again."""
    source, out, whole = case
    rng, journal = random.Random(3), Path(f"{out}.run")
    batch(run_bin, out, "--jsonl", source, "-s", "3")
    ends = [i + 1 for i, c in enumerate(whole) if c == 10]
    for at in [1, ends[0] - 1, ends[0], ends[0] + 1, ends[-2], ends[-1] - 1,
               *(rng.randrange(1, len(whole)) for _ in range(4))]:
        out.write_bytes(whole[:at])
        before = out.stat().st_ino
        batch(run_bin, out, "--jsonl", "-" if piped else source, "-s", "3", "--resume",
              stdin=source.read_bytes())
        assert out.read_bytes() == whole and out.stat().st_ino == before
    out.write_bytes(whole[:ends[3]] + b'{"id": "\xff\0')
    batch(run_bin, out, "--jsonl", source, "-s", "3", "--resume")
    assert out.read_bytes() == whole
    assert json.loads(journal.read_text().splitlines()[0])["lines"] == 60


def test_finished(run_bin: Path, case: tuple[Path, Path, bytes]) -> None:
    """A finished run that is resumed changes nothing, and ends as it did."""
    source, out, whole = case
    first = batch(run_bin, out, "--jsonl", source, "-s", "3", "--resume")  # nothing is there yet
    journal = Path(f"{out}.run").read_bytes()
    again = batch(run_bin, out, "--jsonl", source, "-s", "3", "--resume")
    assert first.stderr == again.stderr and b"6 of 60 lines" in first.stderr
    assert (out.read_bytes(), Path(f"{out}.run").read_bytes()) == (whole, journal)
    good = b'"Once"\n"The dog"\n'
    for _ in range(2):
        batch(run_bin, out.with_name("good"), "--jsonl", "-", "-s", "1", "--resume", stdin=good,
              code=0)


def test_grown(run_bin: Path, case: tuple[Path, Path, bytes]) -> None:
    """Lines that were added to the input are done, and those before them are not done again."""
    source, out, whole = case
    half = b"".join(source.read_bytes().splitlines(True)[:33])
    batch(run_bin, out, "--jsonl", "-", "-s", "3", stdin=half)
    batch(run_bin, out, "--jsonl", source, "-s", "3", "--resume")
    assert out.read_bytes() == whole


def test_journal(run_bin: Path, case: tuple[Path, Path, bytes]) -> None:
    """What stands in OUT.run."""
    source, out, _ = case
    batch(run_bin, out, "--jsonl", source, "-s", "3", "--temp", "0.5", "--stop", "é", "-l", "5-inf")
    progress, about = map(json.loads, Path(f"{out}.run").read_text().splitlines())
    assert progress == {"lines": 60, "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    assert (about["--seed"], about["--temp"], about["--stop"], about["--logit-bias"],
            about["--exact"]) == (3, 0.5, ["é"], ["5-inf"], False)
    assert len(about["model"]) == 64 and not {"--threads", "--parallel", "-o"} & set(about)


def test_seed_of_the_first_run(run_bin: Path, tmp_path: Path) -> None:
    """Without -s a resumed run has the seed that was drawn when it began."""
    (tmp_path / "in").write_bytes(make_lines(12))
    out = tmp_path / "out"
    batch(run_bin, out, "--jsonl", tmp_path / "in")
    whole = out.read_bytes()
    out.write_bytes(whole[:len(whole) // 3])
    batch(run_bin, out, "--jsonl", tmp_path / "in", "--resume")
    assert out.read_bytes() == whole


def refused(exe: Path, files: list[Path], *args: object, code: int = 2, **more) -> str:
    """The error of a run that must change none of the files."""
    before = [f.read_bytes() if f.exists() else None for f in files]
    line = error_of(exe, *args, code=code, **more)
    assert [f.read_bytes() if f.exists() else None for f in files] == before
    return line


def test_refused(run_bin: Path, tiny_model: Path, case: tuple[Path, Path, bytes]) -> None:
    """Another model, flag or input: one line says which, and nothing is touched."""
    source, out, whole = case
    journal = Path(f"{out}.run")
    batch(run_bin, out, "--jsonl", source, "-s", "3")
    out.write_bytes(whole[:len(whole) // 2])
    files = [out, journal]
    base = [TALES, "--jsonl", source, "-s", "3", "-o", out, "--resume"]
    same = ["-t", "1", "-b", "7", "--parallel", "3", "-v"]  # these may change
    for more, want in {("--temp", "0.5"): "--temp: got 0.5, want 0.8",
                       ("--kv", "f32"): "--kv: got f32, want f16",
                       ("--exact",): "--exact: got true",
                       ("-n", "7"): "--predict: got 7", ("-s", "4"): "--seed: got 4, want 3",
                       ("--stop", "a"): "--stop: got", ("--unordered",): "--unordered: got true",
                       ("-l", "5+1"): "--logit-bias: got", ("-c", "300"): "--ctx-size: got 300",
                       ("--timings",): "--timings", ("--no-bos",): "--no-bos"}.items():
        assert want in refused(run_bin, files, *base, *more), more
    assert "RUN_CPU: got scalar" in refused(run_bin, files, *base, env={"RUN_CPU": "scalar"})
    assert "model: got" in refused(run_bin, files, tiny_model, *base[1:])
    lines = source.read_bytes().splitlines(True)
    plain = [TALES, "--lines", source, *base[3:]]
    assert "--jsonl: got false, want true" in refused(run_bin, files, *plain)
    for changed in (lines[1:], [b'"x"\n', *lines[1:]], [*lines[:-1], b'"x"\n'], lines[::-1],
                    lines[:40], []):
        (source.parent / "in2").write_bytes(b"".join(changed))
        for name, feed in ((source.parent / "in2", b""), ("-", b"".join(changed))):
            assert "input: " in refused(run_bin, files, TALES, "--jsonl", name, *base[3:],
                                        stdin=feed)
    batch(run_bin, out, "--jsonl", source, "-s", "3", "--resume", *same)
    assert out.read_bytes() == whole


def test_damaged(any_run: Path, run_bin: Path, case: tuple[Path, Path, bytes]) -> None:
    """A journal that is missing, cut or changed, and an output that no run has written."""
    source, out, whole = case
    journal = Path(f"{out}.run")
    batch(run_bin, out, "--jsonl", source, "-s", "3")
    good, files = journal.read_bytes(), [out, journal]
    base = [TALES, "--jsonl", source, "-s", "3", "-o", out, "--resume"]
    journal.unlink()
    assert "out.run is not there" in refused(any_run, files, *base)
    first, second = good.splitlines(True)
    large = good.replace(b'"lines":         60', b'"lines": 99999999999')
    assert large != good
    for bad in [b"", b"\0" * 500, good[:10], first, first + second[:-1], good[:-40] + b"\n",
                second + first, large, good.replace(b'"lines"', b'"lined"'), first + b"{}\n",
                first + b"[]\n", first + second.replace(b'"--seed": 3', b'"a": 3'),
                b"[" * 100000 + b"\n" + second]:
        journal.write_bytes(bad)
        assert "out.run: got a damaged file" in refused(any_run, files, *base), bad[:80]
    journal.write_bytes(good)
    lines = whole.splitlines(True)
    for bad, line in [(lines[1:], 1), ([lines[0], lines[0]], 2), ([*lines[:4], b"{}\n"], 5),
                      ([*lines[:4], b"\n", *lines[4:]], 5), ([lines[0].replace(b'1', b'99')], 1),
                      ([b'{"line": 0}\n'], 1), ([b'{"line": "a"}\n'], 1)]:
        out.write_bytes(b"".join(bad))
        assert f"line {line} of it is none" in refused(any_run, files, *base)
    out.write_bytes(whole)
    batch(any_run, out, "--jsonl", source, "-s", "3", "--resume")
    assert out.read_bytes() == whole


def test_needs_a_file(run_bin: Path, case: tuple[Path, Path, bytes]) -> None:
    source, out, _ = case
    base = [TALES, "--jsonl", source, "--resume"]
    assert "--resume needs --output" in error_of(run_bin, *base, code=2).replace("-o", "--output")
    for name in ("-", "/dev/stdout", "/dev/null"):
        assert "--resume: -o: got a stream" in error_of(run_bin, *base, "-o", name, code=2)
    assert "--resume needs" in error_of(run_bin, TALES, "-i", "a", "--resume", code=2)
    trap = source.with_name("x.run")
    shutil.copy(source, trap)
    assert "x.run is the file of --jsonl" in refused(
        run_bin, [trap], TALES, "--jsonl", trap, "-o", source.with_name("x"))
    assert not source.with_name("x").exists()
    model = source.with_name("m.run")
    shutil.copy(TALES, model)
    for more in ([], ["--score"], ["--resume"]):
        assert "m.run is the model's own file" in refused(
            run_bin, [model], model, "--jsonl", source, "-o", source.with_name("m"), *more)
    assert model.read_bytes() == TALES.read_bytes() and not source.with_name("m").exists()


def test_two_at_once(run_bin: Path, case: tuple[Path, Path, bytes]) -> None:
    """A file that a run is writing is left to it."""
    source, out, whole = case
    p = subprocess.Popen([run_bin, TALES, "--jsonl", "-", "-s", "3", "-o", out],
                         stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert p.stdin
    p.stdin.write(source.read_bytes())
    p.stdin.flush()
    while not out.exists() or not out.stat().st_size:
        time.sleep(0.01)
    for more in ([], ["--resume"]):
        assert "another run is writing" in error_of(
            run_bin, TALES, "--jsonl", source, "-s", "3", "-o", out, *more, code=2)
    p.stdin.close()
    assert p.wait(120) == 1 and out.read_bytes() == whole


def test_just_killed(run_bin: Path, case: tuple[Path, Path, bytes]) -> None:
    """A run that was killed has its lock for a moment longer, which --resume waits for."""
    source, out, whole = case
    args = [TALES, "--jsonl", source, "-s", "3", "-o", out]
    run(run_bin, *args)
    out.write_bytes(whole[:len(whole) // 2])
    with out.with_name(out.name + ".run").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        p = subprocess.Popen([run_bin, *args, "--resume"], stderr=subprocess.DEVNULL)
        time.sleep(0.5)
        assert p.poll() is None
    assert p.wait(120) == 1 and out.read_bytes() == whole


def test_many_lines_from_a_pipe(run_bin: Path, tmp_path: Path) -> None:
    """What a pipe has to be kept of is bounded; a file may lack any number of lines."""
    data = b"bad\n" * 3000
    out = tmp_path / "out"
    (tmp_path / "in").write_bytes(data)
    batch(run_bin, out, "--jsonl", tmp_path / "in", "-s", "3")
    whole = out.read_bytes()
    out.write_bytes(whole[:2000])
    args = [TALES, "--jsonl", "-", "-s", "3", "-o", out, "--resume"]
    with subprocess.Popen(["cat", tmp_path / "in"], stdout=subprocess.PIPE) as feed:
        assert feed.stdout
        assert "as a file, not a pipe" in refused(run_bin, [out], *args, stdin=feed.stdout.fileno())
    batch(run_bin, out, "--jsonl", tmp_path / "in", "-s", "3", "--resume")
    assert out.read_bytes() == whole


def test_lines_as_they_come(run_bin: Path, case: tuple[Path, Path, bytes]) -> None:
    """Lines that are written one at a time: the journal has each before its result is there."""
    source, out, whole = case
    lines, done = source.read_bytes().splitlines(True), 0
    for more in (1, 3, 1, 7, 2):
        p = subprocess.Popen([run_bin, TALES, "--jsonl", "-", "-s", "3", "-o", out, "--resume"],
                             stdin=subprocess.PIPE)
        assert p.stdin
        p.stdin.write(b"".join(lines[:done]))
        for _ in range(more):
            p.stdin.write(lines[done])
            p.stdin.flush()
            done += 1
            end = time.time() + 60
            while time.time() < end and (not out.exists() or out.read_bytes().count(b"\n") < done):
                time.sleep(0.005)
            read = json.loads(Path(f"{out}.run").read_text().splitlines()[0])
            assert read == {"lines": done,
                            "sha256": hashlib.sha256(b"".join(lines[:done])).hexdigest()}
        p.kill()
        p.wait()
    batch(run_bin, out, "--jsonl", source, "-s", "3", "--resume")
    assert out.read_bytes() == whole


def test_scores(run_bin: Path, tmp_path: Path) -> None:
    """--score is resumed too; a file of another mode is none to go on with."""
    lines = [{"id": i, "prompt": STARTS[i % 5], "completions": [" a dog", f" {i} cats"]}
             for i in range(40)]
    data = "".join(json.dumps(x) + "\n" for x in lines).encode()
    out, journal = tmp_path / "out", tmp_path / "out.run"
    (tmp_path / "in").write_bytes(data)
    base = ["--score", "--jsonl", tmp_path / "in"]
    batch(run_bin, out, *base, code=0)
    whole = out.read_bytes()
    for at in (1, 700, len(whole) - 1, len(whole)):
        out.write_bytes(whole[:at])
        batch(run_bin, out, *base, "--resume", code=0)
        assert out.read_bytes() == whole
    assert "--score: got false, want true" in refused(
        run_bin, [out, journal], TALES, *base[1:], "-o", out, "--resume")
    assert "--exact: got true" in refused(
        run_bin, [out, journal], TALES, *base, "-o", out, "--resume", "--exact")


def test_files_that_flags_name(run_bin: Path, tmp_path: Path) -> None:
    """A grammar's file counts by what is in it, not by its name."""
    (tmp_path / "a").write_text('root ::= [a-z ]+')
    shutil.copy(tmp_path / "a", tmp_path / "b")
    out, journal = tmp_path / "out", tmp_path / "out.run"
    (tmp_path / "in").write_bytes(b'"Once"\n"The dog"\n')
    base = ["--jsonl", tmp_path / "in", "-s", "1", "-n", "9"]
    batch(run_bin, out, *base, "--grammar-file", tmp_path / "a", code=0)
    batch(run_bin, out, *base, "--grammar-file", tmp_path / "b", "--resume", code=0)
    (tmp_path / "a").write_text('root ::= [a-y ]+')
    assert "--grammar-file: got " in refused(run_bin, [out, journal], TALES, *base, "-o", out,
                                             "--resume", "--grammar-file", tmp_path / "a")
