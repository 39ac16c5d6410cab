from __future__ import annotations

import os
import platform
import subprocess
import sys
from unittest import mock

import pytest

from howsure import cli

FAULTS = """
import resource
import torch
from howsure.pages import keep_freed_memory

keep_freed_memory()
for _ in range(3):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture(autouse=True)
def undecided(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is asked to keep memory")
@pytest.mark.parametrize(("variable", "kept"), [("OTHER", True), ("MALLOC_ARENA_MAX", False)])
def test_memory_of_large_tensors_is_kept_unless_the_environment_says_how(monkeypatch, variable, kept):
    monkeypatch.setenv(variable, "8")
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert (int(run.stdout) < 100) == kept


def test_another_c_library_is_left_alone():
    with mock.patch("ctypes.CDLL", return_value=object()) as library:
        cli.keep_freed_memory()
    library.assert_called_once()


def test_the_command_line_keeps_memory():
    with mock.patch.object(cli, "keep_freed_memory") as keep, pytest.raises(SystemExit):
        cli.main(["list", "suites"])
    keep.assert_called_once()
