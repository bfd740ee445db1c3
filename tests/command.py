"""Running ./run as a user would, and the shape that its errors must have."""
from __future__ import annotations

import os
import subprocess
import unicodedata
from pathlib import Path

TIMEOUT = 60  # catches hangs; nothing here takes more than a few seconds


def run(exe: Path, *args: str | bytes | os.PathLike, stdin: bytes | int | None = None,
        env: dict[str, str] | None = None, **more) -> subprocess.CompletedProcess[bytes]:
    """Run to the end with `stdin` bytes (default: empty); output is bytes."""
    feed = {"stdin": stdin} if isinstance(stdin, int) else {"input": stdin or b""}
    if "stdout" not in more:
        more["stdout"] = subprocess.PIPE
    if "stderr" not in more:
        more["stderr"] = subprocess.PIPE
    return subprocess.run([exe, *args], env={**os.environ, **(env or {})}, timeout=TIMEOUT, **feed,
                          **more)


def text_of(exe: Path, *args: str | bytes | os.PathLike, **more) -> bytes:
    """Standard output of a run that must succeed in silence."""
    done = run(exe, *args, **more)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode(errors="replace")
    return done.stdout


# characters that turn the direction of writing
MOVES = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def printable(text: str) -> bool:
    """No character that a terminal acts on."""
    return not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in MOVES for c in text)


def check_line(line: str) -> None:
    """One line without control characters that says something."""
    assert line.strip(" ") == line and line and printable(line), repr(line)
    assert not line.endswith((":", ",")), repr(line)


def error_of(exe: Path, *args: str | bytes | os.PathLike, code: int, **more) -> str:
    """The line of a run that must fail with `code`: one line on standard error that starts with
    `run: `."""
    done = run(exe, *args, **more)
    stderr = done.stderr.decode()  # names and texts from outside are escaped, so it is UTF-8
    assert done.returncode == code, (done.returncode, stderr)
    assert (stderr.startswith("run: ") and stderr.endswith("\n")
            and stderr.count("\n") == 1), repr(stderr)
    check_line(stderr[:-1])
    return stderr[len("run: "):-1]
