"""SHA-256 against hashlib, and the fingerprint of a model file against its definition in
base/gguf.h, computed here from what the gguf package reads."""
from __future__ import annotations

import hashlib
import random
import struct
import subprocess
from pathlib import Path

import numpy as np
from conftest import ROOT
from gguf import GGUFReader

TALES = ROOT / "models" / "tales.bin"


def test_sha256(driver) -> None:
    """Every length around the borders of blocks, in pieces of any size."""
    exe, rng = driver("hash_driver"), random.Random(1)
    lengths = [*range(0, 70), *range(118, 132), 1000, 4096, 65537, 300001]
    for n in lengths:
        data = rng.randbytes(n)
        for piece in {1 if n < 5000 else 1000, 63, 64, 65, 4096, rng.randrange(1, 4097)}:
            done = subprocess.run([exe, str(piece)], input=data, capture_output=True, check=True)
            assert done.stdout.decode().strip() == hashlib.sha256(data).hexdigest(), (n, piece)


def fingerprint(path: Path) -> str:
    data, reader = path.read_bytes(), GGUFReader(path)
    hash_ = hashlib.sha256(data[:reader.data_offset])
    hash_.update(struct.pack("<Q", sum(t.n_bytes for t in reader.tensors)))
    for t in sorted(reader.tensors, key=lambda t: t.name.encode()):
        raw = np.ascontiguousarray(t.data).tobytes()
        n = min(64, len(raw))
        rest = len(raw) - n
        for at in (0, rest // 2, rest):
            hash_.update(raw[at:at + n])
    return hash_.hexdigest()


def test_fingerprint(driver, tiny_model: Path, smollm2_path: Path, tmp_path: Path) -> None:
    exe = driver("hash_driver")

    def ours(path: Path) -> str:
        return subprocess.run([exe, "--model", path], capture_output=True, text=True,
                              check=True).stdout.strip()

    for path in (TALES, tiny_model, smollm2_path):
        assert ours(path) == fingerprint(path)
    data = bytearray(tiny_model.read_bytes())
    data[-1] ^= 1  # of the last tensor in the file
    (tmp_path / "other").write_bytes(data)
    assert ours(tmp_path / "other") == fingerprint(tmp_path / "other") != ours(tiny_model)
