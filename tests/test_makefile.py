"""The Makefile on machines that lack something.

What is left out is named, and under CI it is a failure."""
from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import ROOT

TOOLS = ("sh", "make", "gcc", "cc", "as", "ld", "mkdir", "cut", "sed", "touch", "rm", "grep", "cat")


def make(path: Path, *targets: str, ci: bool = False) -> tuple[int, str]:
    """(exit status, what make printed) with `path` alone as the search path.

    Nothing is compiled: MAKE=true."""
    env = {k: v for k, v in os.environ.items() if k not in ("CI", "MAKEFLAGS", "MFLAGS")} | {
        "PATH": str(path)} | ({"CI": "true"} if ci else {})
    done = subprocess.run([path / "make", "--no-print-directory", "MAKE=true", "-o", "run",
                           *targets], cwd=ROOT, env=env, capture_output=True, text=True,
                          timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with what building needs and nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(shutil.which(name))
    return folder


def stub(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_without_clang(tools: Path) -> None:
    code, said = make(tools, "variants")
    assert (code == 0 and said.count("make: left out: the build with clang") == 2
            and "there is no clang" in said)
    code, said = make(tools, "variants", ci=True)
    assert code != 0 and "there is no clang" in said


def test_clang_without_openmp(tools: Path) -> None:
    """Debian's clang comes without omp.h: only the build without OpenMP is made with it."""
    stub(tools / "clang", 'for a; do [ "$a" = -fopenmp ] && exit 1; done; exec gcc "$@"')
    code, said = make(tools, "variants")
    assert (code == 0 and said.count("left out") == 1 and "the build with clang and OMP=1" in said
            and "libomp-dev" in said)
    code, said = make(tools, "variants", ci=True)
    assert code != 0 and "the build with clang and OMP=1" in said


def test_everything_is_there(tools: Path) -> None:
    stub(tools / "clang", 'exec gcc "$@"')
    for ci in (False, True):
        assert make(tools, "variants", ci=ci) == (0, "")


def test_tsan_without_clang(tools: Path) -> None:
    code, said = make(tools, "tsan")
    assert code == 0 and "left out: tsan" in said and "it needs clang with OpenMP" in said
    assert make(tools, "tsan", ci=True)[0] != 0


def test_fuzz_without_libfuzzer(tools: Path) -> None:
    """clang alone does not do: its library may be missing."""
    for there in (False, True):
        if there:
            stub(tools / "clang", 'case "$*" in *fuzzer*) exit 1; esac; exec gcc "$@"')
        code, said = make(tools, "-o", ".venv/done", "fuzz-test")
        assert code == 0 and "left out: fuzz-test (it needs clang with libFuzzer)" in said
        assert make(tools, "-o", ".venv/done", "fuzz-test", ci=True)[0] != 0


def test_without_a_cross_compiler(tools: Path) -> None:
    code, said = make(tools, "arm-test")
    assert (code == 0 and "left out: arm-test" in said and "aarch64-linux-gnu-gcc" in said
            and "qemu-aarch64" in said)
    assert make(tools, "arm-test", ci=True)[0] != 0


TEXTS = {"share/man/man1/attn.1": ["--man"],
         "share/bash-completion/completions/attn": ["--completion", "bash"],
         "share/zsh/site-functions/_attn": ["--completion", "zsh"],
         "share/fish/vendor_completions.d/attn.fish": ["--completion", "fish"]}


def test_install(run_bin: Path, tmp_path: Path) -> None:
    """Under the name attn; nothing is left when it is uninstalled."""
    prefix = tmp_path / "a b"
    attn = prefix / "bin/attn"

    def files() -> dict[str, str]:
        return {str(p.relative_to(prefix)): oct(p.stat().st_mode & 0o777)
                for p in prefix.rglob("*") if not p.is_dir()}

    def installed(target: str) -> None:
        subprocess.run(["make", "-o", "run", target, f"DESTDIR={tmp_path}", "PREFIX=/a b"],
                       cwd=ROOT, check=True, capture_output=True, timeout=60)

    installed("install")
    assert files() == {"bin/attn": "0o755"} | dict.fromkeys(TEXTS, "0o644")
    assert attn.read_bytes() == run_bin.read_bytes()
    for name, args in TEXTS.items():
        text = subprocess.run([attn, *args], capture_output=True, check=True).stdout
        assert (prefix / name).read_bytes() == text and b"attn" in text
    (prefix / "share/man/man1/other.1").touch()
    installed("uninstall")
    assert files().keys() == {"share/man/man1/other.1"}
