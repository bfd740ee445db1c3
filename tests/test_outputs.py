"""No result is written over a file that the run reads, and no two into one file."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from command import error_of, text_of

MODEL = Path(__file__).resolve().parent.parent / "models" / "tales.bin"
TEXTS = {"p": b"Once", "lines": b'"Once"\n', "l.gbnf": b'root ::= "x"', "l.json": b"{}",
         "talk": b'[{"role": "user", "content": "a"}]', "tools": b"[]", "form": b"a"}
LINES = ["--jsonl", "lines"]
READS = [  # flags that read files, and that may stand with them to write one
    (["-f", "p"], ["--logits", "p", "--save-session", "p", "--dump-attn", "p"]),
    (["-i", "a", "-f", "p", "-i", "b"], ["--logits", "p"]),
    (["-i", "a", "--grammar-file", "l.gbnf"], ["--save-session", "l.gbnf"]),
    (["-i", "a", "--json-schema-file", "l.json"], ["--attn-stats", "l.json"]),
    (LINES, ["-o", "lines"]),
    (["--lines", "lines"], ["-o", "lines"]),
    ([*LINES, "--score"], ["-o", "lines"]),
    ([*LINES, "--grammar-file", "l.gbnf"], ["-o", "l.gbnf"]),
    ([*LINES, "--json-schema-file", "l.json"], ["-o", "l.json"]),
    ([*LINES, "--tools", "tools", "--chat-template", "form"], ["-o", "tools", "-o", "form"]),
    ([*LINES, "--chat-template", "form", "--score"], ["-o", "form"]),
]
CASES = [(reads, *writes[i:i + 2]) for reads, writes in READS for i in range(0, len(writes), 2)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in TEXTS.items():
        (tmp_path / name).write_bytes(text)
    return tmp_path


@pytest.mark.parametrize("reads, flag, name", CASES)
def test_a_file_that_is_read(reads: list[str], flag: str, name: str, run_bin: Path,
                             folder: Path) -> None:
    """By its name, another one or a link; nothing is changed."""
    ending = {"--logits": ".npy", "--dump-attn": ".csv"}.get(flag, "")
    if ending:  # the name must have it
        reads = [name + ending if x == name else x for x in reads]
        (folder / name).rename(folder / (name + ending))
        name += ending
    text, before = (folder / name).read_bytes(), sorted(folder.iterdir())
    link = folder / f"other{Path(name).suffix}"
    link.symlink_to(name)
    reader = next(reads[i - 1] for i, x in enumerate(reads) if x == name)
    said = {"-f": "--file", "-o": "--output"}
    for path in (name, f"./{name}", folder / name, link):
        line = error_of(run_bin, MODEL, *reads, flag, path, code=2)
        assert line == (f"{said.get(flag, flag)}: got the file of {said.get(reader, reader)}, "
                        "want another")
    link.unlink()
    assert sorted(folder.iterdir()) == before and (folder / name).read_bytes() == text


def test_beside_the_output(run_bin: Path, folder: Path) -> None:
    """OUT.run may be none either."""
    (folder / "x.run").write_bytes(b'root ::= "x"')
    line = error_of(run_bin, MODEL, *LINES, "--grammar-file", "x.run", "-o", "x", code=2)
    assert "x.run is the file of --grammar-file, want another name" in line
    assert (folder / "x.run").read_bytes() == b'root ::= "x"' and not (folder / "x").exists()


def test_two_results(run_bin: Path, folder: Path) -> None:
    line = error_of(run_bin, MODEL, "-i", "a", "--logits", "a.npy", "--dump-attn", "./a.npy",
                    code=2)
    assert line == "--dump-attn and --logits: got one file for two results, want two"
    assert not (folder / "a.npy").exists()


def test_a_session_goes_back(run_bin: Path, folder: Path) -> None:
    """Into the file that it was loaded from, with what one of another name gets."""
    text_of(run_bin, MODEL, "-i", "Once", "-n", 3, "-s", 1, "--save-session", "a")
    args = [run_bin, MODEL, "--load-session", "a", "-i", " and", "-n", 5, "-s", 2]
    want = text_of(*args, "--save-session", "b")
    assert text_of(*args, "--save-session", "a") == want
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()


def test_quantize(run_bin: Path, folder: Path) -> None:
    (folder / "m").write_bytes(MODEL.read_bytes())
    line = error_of(run_bin, "m", "--quantize", "q8_0", "-o", "./m", code=2)
    assert line == "--output: got the model's own file, want another"
    assert (folder / "m").read_bytes() == MODEL.read_bytes()


def test_streams(run_bin: Path) -> None:
    """Standard input and output are no files."""
    out = text_of(run_bin, MODEL, "--jsonl", "-", "-o", "-", "-n", 1, stdin=b'"a"\n')
    assert json.loads(out)["line"] == 1
    assert text_of(run_bin, MODEL, "-f", "/dev/stdin", "-n", 1, "--attn-stats", "-", stdin=b"a")
