"""What an installation holds: every plugin file, and nothing but `howsure` on the top level."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("methods", "datasets", "backbones", "benchmarks")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> list[str]:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return zipfile.ZipFile(next(out.glob("*.whl"))).namelist()


def test_the_wheel_contains_every_plugin_and_suite(wheel):
    expected = {f"howsure/{d}/{f.name}" for d in FOLDERS[:3] for f in (ROOT / d).glob("*.py")}
    expected |= {f"howsure/benchmarks/suites/{f.name}" for f in (ROOT / "benchmarks" / "suites").glob("*.toml")}
    expected |= {f"howsure/{f.relative_to(ROOT / 'howsure')}" for f in (ROOT / "howsure").rglob("*.py")}
    expected.add("howsure/datasets/letters.png")
    assert expected - set(wheel) == set()


def test_nothing_but_howsure_is_on_the_top_level(wheel):
    tops = {name.partition("/")[0] for name in wheel}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"howsure"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_plugin_folders_hold_no_init_file(folder):
    assert not list((ROOT / folder).rglob("__init__.py"))
