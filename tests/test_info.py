"""--info against the gguf package."""
from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest

from command import error_of, text_of

TALES = Path(__file__).parent.parent / "models" / "tales.bin"


def test_against_gguf(run_bin: Path, tiny_model: Path) -> None:
    for path in (TALES, tiny_model):
        got = json.loads(text_of(run_bin, path, "--info", "--json"))
        reader = gguf.GGUFReader(path)
        assert got["arch"] == reader.fields["general.architecture"].contents()
        assert got["parameters"] == sum(int(t.n_elements) for t in reader.tensors)
        assert got["bytes"] == path.stat().st_size
        names = [t.tensor_type.name for t in reader.tensors]
        assert got["types"] == {n: names.count(n) for n in sorted(set(names), key=names.index)
                                } | {n: names.count(n) for n in names}
        keys = {k: f for k, f in reader.fields.items() if not k.startswith("GGUF.")}
        assert got["metadata"].keys() == keys.keys()
        for key, field in keys.items():
            want, value = field.contents(), got["metadata"][key]
            if isinstance(want, list) and len(want) > 16:
                assert value == {"length": len(want)}
            else:
                assert value == pytest.approx(want) if isinstance(want, float) else value == want
        assert got["vocab_size"] == len(reader.fields["tokenizer.ggml.tokens"].data)


def test_lines(run_bin: Path) -> None:
    lines = dict(line.split(maxsplit=1) for line in
                 text_of(run_bin, TALES, "--info").decode().splitlines())
    assert lines["architecture"] == "gpt" and lines["context"] == "256"


def test_unknown_architecture(any_run: Path, tmp_path: Path) -> None:
    """A file that no engine of ours runs can be looked at; a damaged one is told as ever."""
    path = tmp_path / "m.gguf"
    w = gguf.GGUFWriter(path, "brand-new")
    w.add_uint32("brand-new.block_count", 7)
    w.add_string("general.name", "a\x1b[31m\nb")
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    got = json.loads(text_of(any_run, path, "--info", "--json"))
    assert (got["arch"], got["layers"], got["parameters"]) == ("brand-new", 7, 0)
    assert "\x1b" not in text_of(any_run, path, "--info").decode()
    path.write_bytes(TALES.read_bytes()[:1000])
    error_of(any_run, path, "--info", code=3)
