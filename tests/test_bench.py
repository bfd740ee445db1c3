"""bench/: what compare.py reads and computes, and that kernels_bench times every kernel.

No speed is judged."""
from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
import compare  # noqa: E402

TALES = ROOT / "models" / "tales.bin"

# Printed by the real programs, most keys of llama-bench left out.
OURS = """{"arch": "llama", "parameters": 134515008, "kernels": "avx512", "threads": 2, \
"kv": "f16", "pp": 64, "tg": 16, "depth": 0, \
"prefill_tps": 765.85, "prefill_tps_min": 765.85, "prefill_tps_max": 765.85, \
"decode_tps": 119.14, "decode_tps_min": 119.14, "decode_tps_max": 119.14}
"""
LLAMA_BENCH = """[
  {
    "build_commit": "0c1e570", "flash_attn": 1, "n_prompt": 64, "n_gen": 0, "n_depth": 0, \
"avg_ts": 279.511250,
    "samples_ns": [ 240369718, 218604620 ],
    "samples_ts": [ 266.257, 292.766 ]
  }
]
"""
IK_BEHIND = """[
  {
    "flash_attn": true, "n_prompt": 64, "n_gen": 8, "avg_ts": 172.599332, "test": "tg8@pp64",
    "samples_ns": [ 47462517 ],
    "samples_ts": [ 168.554 ]
  }
]
"""


def test_rates() -> None:
    assert compare.parse_rate("attn.c", compare.parse_work("pp64"), OURS) == 765.85
    assert compare.parse_rate("attn.c", compare.parse_work("tg16"), OURS) == 119.14
    # the first was for nothing
    assert compare.parse_rate("llama.cpp", compare.parse_work("pp64"),
                              "a warning\n" + LLAMA_BENCH) == 292.766
    assert compare.parse_rate("ik_llama.cpp", compare.parse_work("tg8@64"), IK_BEHIND) == 168.554
    for engine, text in (("llama.cpp", ""), ("llama.cpp", "[]"), ("attn.c", ""),
                         ("ik_llama.cpp", IK_BEHIND)):
        with pytest.raises(ValueError):
            compare.parse_rate(engine, compare.parse_work("tg16"), text)


def runs(work: str, *rounds: dict[tuple[str, str], float], threads: int = 2) -> list[compare.Run]:
    """Runs with these values, and a tenth of them as MiB."""
    return [{"model": "m.gguf", "threads": threads, "round": n, "work": work, "engine": e,
             "settings": s, "value": v, "mib": v / 10, "argv": ["/x/run", e],
             "reads_gb_s": 20.0 + n} for n, values in enumerate(rounds)
            for (e, s), v in values.items()]


def test_ratios() -> None:
    """A ratio is formed within a round, against the best peer; then comes the median."""
    us, a0, a1, b = ("attn.c", ""), ("A", "-fa 0"), ("A", "-fa 1"), ("B", "")
    some = runs("tg64", {us: 30, a0: 10, a1: 15, b: 12}, {us: 10, a0: 10, a1: 5, b: 4},
                {us: 33, a0: 20, a1: 2, b: 22}, {us: 99}, {a1: 1})
    speed = compare.make_row(some, "t", "tokens/s", "value", lower=False)
    assert speed.ratios == [1, 1.5, 2] and speed.reads == [20, 21, 22, 23, 24]
    assert speed.medians == {"attn.c": 31.5, "A": 12.5,
                             "B": 12} and speed.best in ("A -fa 1", "A -fa 0", "B")
    time = compare.make_row(some[:4], "t", "ms", "value", lower=True)
    assert time.ratios == [3] and time.best == "A -fa 0" and time.medians["A"] == 10
    assert [(r.title, r.unit, r.ratios)
            for r in compare.make_rows(some[:4] + runs("cold", {us: 1, b: 4}))] == [
        ("decode 64", "tokens/s", [2]), ("one token from a cold process", "ms", [0.25]),
        ("peak memory, decode 64", "MiB", [3])]
    assert compare.make_row(some[:1], "t", "ms", "value", lower=True).ratios == []  # no peer
    assert (compare.settings_to_keep("A", some[:4]) == ("-fa 1",)
            and compare.settings_to_keep("A", some[:8]) == ("-fa 1",))
    assert compare.settings_to_keep("A", runs("tg64", {a0: 10, a1: 1},
                                              {a0: 2, a1: 9})) == ("-fa 0", "-fa 1")


def test_commands() -> None:
    work = compare.parse_work("tg64@2048")
    assert (work.n_prompt, work.n_generate, work.depth) == (0, 64, 2048)
    for wrong in ("pp0", "pp5@3", "tg", "x", ""):
        with pytest.raises(Exception, match="want ppN"):
            compare.parse_work(wrong)
    command = compare.Engine("ik_llama.cpp", bench="b",
                             settings=("-rtr 1",)).command(work, "m", 2, "-rtr 1")
    assert " ".join(command) == "b -m m -t 2 -o json -rtr 1 -p 0 -n 0 -gp 2048,64 -r 1"
    assert compare.Engine("llama.cpp",
                          bench="b").command(compare.parse_work("cold"), "m", 1, "") is None


@pytest.fixture(scope="module")
def kernels_bench(driver) -> Path:
    return driver("kernels_bench")


def test_session(run_bin: Path, kernels_bench: Path, tmp_path: Path) -> None:
    """A whole session beside a peer that prints what llama-bench printed, and one that fails."""
    good, bad = tmp_path / "llama-bench", tmp_path / "bad"
    good.write_text(f"#!/bin/sh\ncat <<'END'\n{LLAMA_BENCH}END\n")
    bad.write_text("#!/bin/sh\necho no such model >&2; exit 1\n")
    for script in (good, bad):
        script.chmod(0o755)
    args = [sys.executable, ROOT / "bench" / "compare.py", TALES, "--run", run_bin, "--probe",
            kernels_bench, "--threads", "1", "--rounds", "3", "--work", "pp64,cold",
            "--llama-bench", good, "--ik-bench", bad, "--llama-args", "-fa 1", "--json"]
    done = subprocess.run(args, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert any("ik_llama.cpp" in n and "no such model" in n for n in data["notes"]) and any(
        "llama.cpp's program for the cold process (not given)" in n for n in data["notes"])
    ours = [r for r in data["runs"] if r["engine"] == "attn.c"]
    assert len(ours) == 6 and all(0 < r[k] < math.inf for r in ours
                                  for k in ("value", "mib", "reads_gb_s"))
    (tmp_path / "raw.json").write_text(done.stdout)
    table = subprocess.run([*args[:2], "--from", tmp_path / "raw.json"], capture_output=True,
                           text=True, check=True).stdout
    prefill = next(line for line in table.splitlines() if "prefill 64 |" in line).split(" | ")
    speeds = sorted(r["value"] for r in ours if r["work"] == "pp64")
    assert prefill[4:7] == [compare.figure(speeds[1]), "293", f"**{speeds[1] / 292.766:.2f}**"]
    assert str(tmp_path) not in table and str(ROOT) not in table
    both = subprocess.run([*args[:2], "--from", tmp_path / "raw.json", tmp_path / "raw.json"],
                          capture_output=True, text=True, check=True).stdout
    assert both == table  # every round twice: the same medians


def test_kernels(kernels_bench: Path) -> None:
    """Every kernel on every instruction set, the peaks and the program: finite numbers."""
    data = json.loads(subprocess.run([kernels_bench, "--json", "--quick", TALES],
                                     capture_output=True, text=True, check=True).stdout)
    names: dict[str, list[tuple[str, str]]] = {}
    for k in data["kernels"]:
        names.setdefault(k["table"], []).append((k["kernel"], k["shape"]))
        assert 0 < k["rate"] < math.inf and 0 < k["gb_s"] < math.inf, k
    # products in bytes and in the file's own type: where there are vectors for them
    vector = {"gemm_q8", "gemv"}
    pairs = {"gemm_bf16", "gemm_add_bf16", "pairs_f16"}  # where the processor multiplies these
    for table, own in names.items():
        assert len(set(own)) == len(own) and [n for n in own if n[0].split()[0] not in vector
                                              | pairs] == names["scalar"]
        assert table == "scalar" or {n.split()[0] for n, _ in own} >= vector
    kinds = {n.split()[0] for n, _ in names["scalar"]}
    assert kinds >= {"dequantize", "gemm", "gemm_add", "gemm_add_f16", "norm", "act", "mul",
                     "pack_activations", "soft_cap", "online_softmax", "exp_sum", "f32_to_f16"}
    # the types of docs/families.md
    assert sum(n.startswith("dequantize ") for n, _ in names["scalar"]) == 25
    peaks = {(p["table"], p["peak"]): p["rate"] for p in data["peaks"]}
    assert (len(peaks) == len(data["peaks"]) and ("memory", "reads, 1 thread") in peaks
            and all(0 < r < math.inf for r in peaks.values()))
    (model,) = data["models"]
    assert model["model"] == str(TALES) and {r["work"]
                                             for r in model["runs"]} == {"prefill", "decode"}
    assert all(0 < r["tps_min"] <= r["tps"] <= r["tps_max"] and 0 < r["rate"] < math.inf
               for r in model["runs"])


def test_bandwidth(kernels_bench: Path) -> None:
    got = json.loads(subprocess.run([kernels_bench, "--bandwidth", "--quick", "-t", "1"],
                                    capture_output=True, text=True, check=True).stdout)
    assert got["threads"] == 1 and 0 < got["gb_s_min"] <= got["gb_s"] <= got["gb_s_max"] < math.inf
    assert subprocess.run([kernels_bench, "--nonsense"], capture_output=True).returncode == 2
    assert subprocess.run([kernels_bench, "--quick", "nonesuch.gguf"],
                          capture_output=True).returncode == 1
