"""docs/pipelines.md: every command block of the page is run as it stands, on SmolLM2's real file.

What a block prints must have the form that its checker wants, and so must what the page shows.
Texts of the model are not compared byte by byte: kernels of different instruction sets round
differently, and a choice between two likely tokens may fall otherwise, also at temperature 0.
Compared are answers that are far ahead of all others, and everything that is not the model's.
"""
from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "pipelines.md").read_text()
SETUP, *SECTIONS = re.split(r"^## ", PAGE, flags=re.M)
RECIPES = dict(section.split("\n", 1) for section in SECTIONS)
TIMEOUT = 300  # catches hangs; the slowest takes some 15 s
COUNTRIES = "France Italy Spain Japan Egypt Peru Cuba Kenya".split()
# a command in a block, and the program that must be there for it
NEEDS = {"jq ": "jq", "parallel --pipe": "parallel", "spark.py": "java"}
# what a checker gets: standard output, and the folder; None with the output that the page shows
Checker = Callable[[str, Path | None], None]
CHECKERS: dict[str, Checker] = {}


def recipe(*numbers: int) -> Callable[[Checker], Checker]:
    """The function checks the recipes of these numbers."""

    def add(check: Checker) -> Checker:
        for number in numbers:
            (title,) = [t for t in RECIPES if t.startswith(f"{number}. ")]
            CHECKERS[title] = check
        return check

    return add


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of each code block, fenced or indented."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return fenced + [("indented", line) for line in re.findall(r"^(?: {4}|\t).*", rest, re.M)]


def lines_of(out: str, n: int) -> list[str]:
    lines = out.splitlines()
    assert len(lines) == n and all(lines), out
    return lines


def objects(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@recipe(1)
def classified(out: str, folder: Path | None) -> None:
    """The labels are right: each is more than two nats ahead."""
    rows = [line.split("\t") for line in lines_of(out, 4)]
    assert [label for label, _ in rows] == ["positive", "negative", "negative", "positive"]
    if folder:
        assert [text for _, text in rows] == (folder / "reviews.txt").read_text().splitlines()


@recipe(2)
def extracted(out: str, folder: Path | None) -> None:
    rows = list(csv.reader(lines_of(out, 3), strict=True))
    assert [len(row) for row in rows] == [4] * 3
    for name, city, count, item in rows:
        assert len(name) <= 40 and len(city) <= 40 and 1 <= int(count) <= 999
        assert re.fullmatch("[a-z ]{1,40}", item)
    assert [row[0] for row in rows] == ["Maria Lopez", "Tom Becker", "Anna Rossi"]


@recipe(3)
def translated(out: str, folder: Path | None) -> None:
    pairs = [line.split(" -> ") for line in lines_of(out, 4)]
    assert all(re.search("[a-z]{2}", english) for _, english in pairs)
    if folder:
        assert [french for french, _ in pairs] == (folder / "french.txt").read_text().splitlines()


@recipe(4)
def summarised(out: str, folder: Path | None) -> None:
    """An answer may have several lines."""
    assert re.fullmatch(r"notes/museum\.txt: \w+ \w+ .*\nnotes/town/buses\.txt: \w+ \w+ .*\n", out,
                        re.S), out


@recipe(5)
def evaluated(out: str, folder: Path | None) -> None:
    table = [[cell.strip() for cell in line.split("|")] for line in lines_of(out, 4)]
    values = {row[5]: float(row[7]) for row in table[2:]}
    assert set(values) == {"acc", "acc_norm"} and table[2][1] == "quiz"
    assert all(0.5 <= v <= 1 and v * 4 == int(v * 4) for v in values.values())


@recipe(6)
def conversed(out: str, folder: Path | None) -> None:
    assert re.fullmatch("user: What is the capital of France\\?\nassistant: [^\n]*Paris.*\n"
                        "user: Name a famous museum there\\.\nassistant: \\w+ .*", out, re.S), out
    if folder:
        roles = [m["role"] for m in json.loads((folder / "talk.json").read_text())]
        assert roles == ["system", *["user", "assistant"] * 2]


@recipe(7)
def resumed(out: str, folder: Path | None) -> None:
    """However many lines the first run has written; on a fast machine that may be all."""
    assert re.fullmatch(r"(status 137\n)?\d+ facts\.jsonl\n64 facts\.jsonl\n", out), out
    if folder:
        facts = objects(folder / "facts.jsonl")
        assert [(f["line"], f["id"]) for f in facts] == [(i, i) for i in range(1, 65)]
        assert all(f["text"] and "error" not in f for f in facts)


@recipe(8, 9)
def spread(out: str, folder: Path | None) -> None:
    """In the order of the input. Capitals of large countries are far ahead of other answers."""
    (line,) = lines_of(out, 1)
    answers = dict(pair.split(": ") for pair in line.split(";"))
    assert list(answers) == COUNTRIES and all(answers.values())
    assert (answers["France"], answers["Italy"], answers["Japan"]) == ("Paris", "Rome", "Tokyo")


@recipe(10)
def voted(out: str, folder: Path | None) -> None:
    votes = [(int(n), answer) for n, answer in (line.split() for line in lines_of(out, 3))]
    assert votes == sorted(votes, key=lambda v: -v[0]) and sum(n for n, _ in votes) <= 40
    assert all(re.fullmatch(r"\d{1,3}", answer) for _, answer in votes)
    assert votes[0][1] == "8" and votes[0][0] >= 10  # 23, the next 6


@recipe(11)
def sorted_by_perplexity(out: str, folder: Path | None) -> None:
    """The three are one bit a byte apart and more."""
    bits, names = zip(*(line.split("\t") for line in lines_of(out, 3)))
    assert names == ("prose.txt", "shuffled.txt", "base64.txt")
    values = [float(b) for b in bits]
    assert values == sorted(values) and 0.5 < values[0] < 2 < values[2]


@recipe(12)
def asked(out: str, folder: Path | None) -> None:
    built, steps, lamp = lines_of(out, 3)
    assert re.fullmatch(r"When was the lighthouse built\? .*1871.*", built)
    assert re.fullmatch(r"How many steps are there\? .*212.*", steps)
    assert re.fullmatch(r"Who lit the lamp\? .*\w.*", lamp)


def test_page() -> None:
    """Twelve recipes, each with a checker, one block of commands and one of what these print."""
    assert list(RECIPES) == list(CHECKERS) and len(RECIPES) == 12
    assert [language for language, _ in blocks(SETUP)] == ["bash"]
    for title, text in RECIPES.items():
        assert [language for language, _ in blocks(text)] == ["bash", "text"], title


@pytest.mark.parametrize("title", RECIPES)
def test_shown(title: str) -> None:
    """What the page shows has the form that the recipe's output must have."""
    CHECKERS[title](blocks(RECIPES[title])[1][1], None)


@pytest.mark.parametrize("title", RECIPES)
def test_recipe(title: str, run_bin: Path, smollm2_path: Path, tmp_path: Path) -> None:
    """The block, after that of the page's beginning, in a folder that looks like the repository.

    There is nothing to make; python is the one that runs the tests."""
    commands = blocks(RECIPES[title])[0][1]
    for tool in (tool for command, tool in NEEDS.items() if command in commands):
        if not shutil.which(tool):
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{tool} is not installed")
    if "spark" in commands:
        pytest.importorskip("pyspark")
    for name, target in (("run", run_bin), ("tools", ROOT / "tools"),
                         ("SmolLM2.gguf", smollm2_path)):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "Makefile").write_text("all:\n")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
           "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    setup = blocks(SETUP)[0][1].replace("make\n", "make -s\n")
    # timeout(1) ends the whole block, not only the shell
    done = subprocess.run(["timeout", str(TIMEOUT), "bash", "-euo", "pipefail", "-c",
                           setup + commands], cwd=tmp_path, env=env, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "run: " not in done.stderr, done.stderr
    CHECKERS[title](done.stdout, tmp_path / "try")
