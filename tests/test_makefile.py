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


def test_without_a_cross_compiler(tools: Path) -> None:
    code, said = make(tools, "arm-test")
    assert (code == 0 and "left out: arm-test" in said and "aarch64-linux-gnu-gcc" in said
            and "qemu-aarch64" in said)
    assert make(tools, "arm-test", ci=True)[0] != 0
