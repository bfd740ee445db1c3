"""The README says what the program says: its help text, its architectures, its files."""
from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_help(run_bin: Path) -> None:
    """The block of flags is the output of --help."""
    text = subprocess.run([run_bin, "--help"], capture_output=True, text=True, check=True).stdout
    assert text.strip() in README


def test_architectures(run_bin: Path, tmp_path: Path) -> None:
    """The table of families names every architecture that the program knows, and no other."""
    import gguf

    path = tmp_path / "x.gguf"
    w = gguf.GGUFWriter(str(path), "nonesuch")
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    done = subprocess.run([run_bin, path, "-i", "x"], capture_output=True, text=True)
    assert done.returncode == 3
    known = set(done.stderr.split("want one of: ")[1].strip().split(", "))
    table = README.split("## Families")[1].split("##")[0]
    assert known == {name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)}


def test_files() -> None:
    """The table of rooms names every folder that holds sources, and the text above it every file beside them."""
    part = README.split("## Files")[1]
    named = {n for n in re.findall(r"`([^`]+)`", part)}
    for path in [*ROOT.glob("*.[ch]"), *ROOT.glob("*.py")]:
        assert path.with_suffix(".c").name in named or path.name in named, path.name
    sources = (p.parent.name for p in ROOT.glob("*/*") if p.suffix in (".c", ".py"))
    for folder in {name for name in sources if not name.startswith((".", "build"))}:
        assert folder + "/" in named, folder
