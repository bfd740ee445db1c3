"""How the sources are built.

Includes point down and never in a circle; what only one file may know is nowhere else."""
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100  # columns of a line
# Lowest first; a file includes files of its own room and of rooms before it. The files at the top
# belong to these rooms.
ROOMS = ["base", "kernels", "text", "engine", "generate", "maps", "modes", "run"]
TOP = {"tokenizer.h": "text", "tokenizer.c": "text", "model.h": "engine", "run.c": "run"}
BESIDE = {("text", "kernels"), ("maps", "generate")}  # neither needs the other
SOURCES = {str(p.relative_to(ROOT)): p.read_text() for room in [".", *ROOMS[:-1]]
           for p in (ROOT / room).glob("*.*") if p.suffix in (".c", ".h", ".inc")}


def room(name: str) -> str:
    return TOP[name] if "/" not in name else name.split("/")[0]


def includes(name: str) -> list[str]:
    return [n for n in re.findall(r'^\s*#include "([^"]+)"', SOURCES[name], re.M) if n in SOURCES]


def test_includes_point_down() -> None:
    wrong = [(a, b) for a in SOURCES for b in includes(a)
             if ROOMS.index(room(b)) > ROOMS.index(room(a)) or (room(a), room(b)) in BESIDE]
    assert not wrong


def test_no_circle() -> None:
    """Neither of headers, nor of modules: a module is a header and the source of its name."""
    def module(name: str) -> str:
        return str(Path(name).with_suffix(""))

    needs: dict[str, set[str]] = {}
    for name in SOURCES:
        needs.setdefault(module(name), set()).update(module(n) for n in includes(name)
                                                     if module(n) != module(name))
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        assert name not in path, " > ".join([*path, name])
        if name not in done:
            for other in needs.get(name, ()):
                visit(other, [*path, name])
            done.add(name)

    for name in needs:
        visit(name, [])


def test_only_the_cache_knows_its_layout() -> None:
    words = re.compile(r"\b(KV_GROUP|layer_offset|block_at|->pool|KV_Q8|KV_F16|KV_F32|KV_AS_\w+)\b")
    found = {name for name, text in SOURCES.items() if words.search(text)}
    assert found == {"engine/cache.c", "model.h"}


def test_families_have_one_place() -> None:
    """No architecture's name stands outside the table.

    Tokenizers' names for their kinds and rules are other things, in tables of their own."""
    table = SOURCES["engine/families.c"]
    names = set(re.findall(r'\.name = "(\w+)"', table))
    assert len(names) >= 20
    own = {"text/vocab.c": r"\} models\[\] = \{\n.*?\n\};",
           "text/pretokenize.c": r"PreRule rules\[\] = \{\n.*?\n\};"}
    for name, text in SOURCES.items():
        code = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S)
        if name in own:
            code, n = re.subn(own[name], "", code, flags=re.S)
            assert n == 1, name
        if name != "engine/families.c":
            assert not names & set(re.findall(r'"(\w+)"', code)), name


def files_of(*suffixes: str) -> list[Path]:
    return [p for pattern in ("*", "*/*") for p in ROOT.glob(pattern)
            if p.suffix in suffixes and not p.parts[-2].startswith("build")]


def test_no_line_is_too_long() -> None:
    files = [*files_of(".py", ".c", ".h", ".inc"), ROOT / "Makefile"]
    long = [f"{p}:{i}" for p in files for i, line in enumerate(p.read_text().split("\n"), 1)
            if len(line.expandtabs(4)) > WIDTH]
    assert len(files) > 100 and not long


def test_only_run_ends_the_program() -> None:
    for name, text in SOURCES.items():
        code = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S)
        assert name == "run.c" or not re.search(r"\b(exit|abort)\s*\(", code), name


def test_layout() -> None:
    """Every C file but the generated tables is as `make format` leaves it."""
    generated = ("unicode_tables.h", "grids.h")
    files = [p for p in files_of(".c", ".h", ".inc") if p.name not in generated]
    done = subprocess.run(
        [Path(sys.executable).parent / "clang-format", "--dry-run", "-Werror", *files],
        capture_output=True, text=True)
    assert len(files) > 90 and done.returncode == 0, done.stderr
