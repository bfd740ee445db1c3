"""Running ./run as a user would, and the shape that its errors must have."""
from __future__ import annotations

import json
import os
import subprocess
import unicodedata
from pathlib import Path

import numpy as np

TIMEOUT = 60  # catches hangs; nothing but real models takes more than a few seconds


def run(exe: Path, *args: object, stdin: bytes | int | None = None,
        env: dict[str, str] | None = None, **more) -> subprocess.CompletedProcess[bytes]:
    """Run to the end with `stdin` bytes (default: empty); output is bytes."""
    feed = {"stdin": stdin} if isinstance(stdin, int) else {"input": stdin or b""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": TIMEOUT}
    command = [a if isinstance(a, (bytes, os.PathLike)) else str(a) for a in (exe, *args)]
    return subprocess.run(command, env={**os.environ, **(env or {})}, **feed, **pipes | more)


def text_of(exe: Path, *args: object, **more) -> bytes:
    """Standard output of a run that must succeed in silence."""
    done = run(exe, *args, **more)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode(errors="replace")
    return done.stdout


def ids_of(exe: Path, model: Path, *args: object, **more) -> list[int]:
    """The tokens of a prompt."""
    return json.loads(text_of(exe, model, "--tokenize", "--json", *args, **more))["ids"]


def logits_of(exe: Path, model: Path, path: Path, *args: object,
              **more) -> tuple[bytes, np.ndarray]:
    """Standard output, and (T, vocab) of every position that was run, by way of the file `path`."""
    out = text_of(exe, model, "--logits", path, *args, **{"timeout": 10 * TIMEOUT} | more)
    return out, np.load(path)


# characters that turn the direction of writing
MOVES = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def printable(text: str) -> bool:
    """No character that a terminal acts on."""
    return not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in MOVES for c in text)


def check_line(line: str) -> None:
    """One line without control characters that says something."""
    assert line.strip(" ") == line and line and printable(line), repr(line)
    assert not line.endswith((":", ",")), repr(line)


def error_in(done: subprocess.CompletedProcess[bytes], code: int) -> str:
    """The error line of a run that must have ended with `code`.

    It must be the only line on standard error, and start with `run: `."""
    stderr = done.stderr.decode()  # names and texts from outside are escaped, so it is UTF-8
    assert done.returncode == code, (done.returncode, stderr)
    assert (stderr.startswith("run: ") and stderr.endswith("\n")
            and stderr.count("\n") == 1), repr(stderr)
    check_line(stderr[:-1])
    return stderr[len("run: "):-1]


def error_of(exe: Path, *args: object, code: int, **more) -> str:
    """The error line of a run that must exit with `code`."""
    return error_in(run(exe, *args, **more), code)
