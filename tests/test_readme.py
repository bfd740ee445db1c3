"""The documents say what the program says: its help text, its architectures, its files."""
from __future__ import annotations

import re
import subprocess
from pathlib import Path

from gguf_files import write

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (".c", ".h", ".inc", ".py", ".sh", ".html")


def test_length() -> None:
    """The first page stays one."""
    assert len((ROOT / "README.md").read_text().split()) < 1800


def test_first_screen() -> None:
    """A story, a chat and a batch come first."""
    screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    for flag in ('-i "Once', "--chat", "--jsonl"):
        assert re.search(rf"^\$ .*\./run .*{flag}", screen, re.M), flag


def test_help(run_bin: Path) -> None:
    """docs/flags.md holds the output of --help."""
    text = subprocess.run([run_bin, "--help"], capture_output=True, text=True, check=True).stdout
    assert text.strip() in (ROOT / "docs" / "flags.md").read_text()


def test_links() -> None:
    """Every link of the documents to a file leads to one."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_architectures(run_bin: Path, tmp_path: Path) -> None:
    """The table of families names every architecture that the program knows, and no other."""
    path = write(tmp_path / "x.gguf", "nonesuch", {})
    done = subprocess.run([run_bin, path, "-i", "x"], capture_output=True, text=True)
    assert done.returncode == 3
    known = set(done.stderr.split("want one of: ")[1].strip().split(", "))
    table = (ROOT / "docs" / "families.md").read_text()
    assert known == {name for row in re.findall(r"^\| (`.*?) \|", table, re.M)
                     for name in re.findall(r"`([\w-]+)`", row)}


def test_files() -> None:
    """CONTRIBUTING.md names every source file of every room, and no file that is not there."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = sorted({p.parent for p in ROOT.glob("*/*.c") if not p.parent.name.startswith("build")}
                   - {ROOT / n for n in ("tests", "bench", "models")})
    there = {str(p.relative_to(ROOT)) for room in [ROOT, *rooms, ROOT / "exporting", ROOT / "tools"]
             for p in room.iterdir() if p.suffix in SOURCES}
    named = set()
    for room, cell in re.findall(r"^\| `?([\w/]*)`? \| (.*?) \|",
                                 page.split("## The map")[1].split("\n## ")[0], re.M):
        named |= {room + n for n in re.findall(r"`([\w.]+)`", cell)}
    assert named == there
