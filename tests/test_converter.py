"""export.py against llama.cpp's own converter, of the same transformers models: the same tensors,
and through ./run the same logits, bit for bit. So a family's keys, names and order of rows are
those of other programs' files, too."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import export
import gguf
import numpy as np
import pytest

import hf_models as hf
from command import logits_of

# what the converter does not convert, or not to what llama.cpp's own graph or transformers runs
REFUSED = {"gpt2": "wants n_ctx in config.json", "gptneox": "wants rotary_pct in config.json",
           "mpt": "has no MptForCausalLM", "bloom": "takes the context for 48 tokens",
           "falcon": "takes the FFN for 4 dim wide", "phi2": "takes the FFN for 4 dim wide",
           "granitehybrid-rope": "writes no rope beside Mamba",
           "gemma4-unified": "has no Gemma4UnifiedForCausalLM"}
CASES: dict[tuple[str, str], hf.Case] = {}  # one of each class that it does convert, and
for c in hf.CASES:  # each form of Gemma 4 and Granite's hybrids
    if c.arch not in {"gpt", *REFUSED} and c.name not in REFUSED:
        CASES.setdefault((c.cls, c.name if c.arch in ("gemma4", "granitehybrid") else c.arch), c)


@pytest.fixture(scope="module")
def files(tok: dict, llama_converter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with NAME.gguf and NAME.llama.gguf of each case."""
    folder = tmp_path_factory.mktemp("models")
    for case in CASES.values():
        hf.exported(case.build(), tok, folder / f"{case.name}.gguf")
    driver = Path(__file__).with_name("llama_converter.py")
    subprocess.run([sys.executable, driver, llama_converter, *sorted(folder.glob("*.hf"))],
                   check=True, timeout=600)
    return folder


def extra_layer(reader: gguf.GGUFReader) -> str:
    """What the tensors of a layer that predicts one more token begin with; ours has none."""
    arch = reader.fields["general.architecture"].contents()
    n = reader.fields.get(f"{arch}.nextn_predict_layers")
    return f"blk.{reader.fields[f'{arch}.block_count'].contents() - 1}." if n else "none"


def tensors(reader: gguf.GGUFReader) -> dict[str, tuple[gguf.GGMLQuantizationType, bytes]]:
    return {t.name: (t.tensor_type, t.data.tobytes()) for t in reader.tensors
            if not t.name.startswith(extra_layer(reader))}


@pytest.mark.parametrize("case", CASES.values(), ids=lambda c: c.name)
def test_family(case: hf.Case, files: Path, run_bin: Path, tmp_path: Path) -> None:
    found, logits = [], []
    half = files / f"{case.name}-f16.gguf"
    assert export.main([str(files / f"{case.name}.hf"), "-o", str(half), "--dtype", "f16"]) == 0
    got, want = (tensors(gguf.GGUFReader(path))
                 for path in (half, files / f"{case.name}.llama-f16.gguf"))
    assert {n: (got[n][0], want[n][0]) for n in want if got[n] != want[n]} == {}
    for path in (files / f"{case.name}.gguf", files / f"{case.name}.llama.gguf"):
        reader = gguf.GGUFReader(path)
        assert reader.fields["general.architecture"].contents() == case.arch
        found.append(tensors(reader))
        logits.append(logits_of(run_bin, path, tmp_path / "l.npy", "-i", hf.PROMPT, "-n", 0,
                                "--exact", *(["-c", case.context] if case.context else []))[1])
    assert found[0] == found[1] and len(logits[0]) > 40
    assert np.array_equal(*logits)
