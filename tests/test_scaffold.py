"""`howsure new method` writes files that work as they are."""

from __future__ import annotations

import subprocess
import sys

import pytest

from howsure import UserError
from howsure.scaffold import write_method


def test_the_written_test_passes(tmp_path):
    files = write_method("my_first_score", tmp_path)
    assert [f.name for f in files] == ["my_first_score.py", "test_my_first_score.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(files[1])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [("msp", "already"), ("My-Score", "not a valid method name"), ("class", "not a valid method name")],
)
def test_bad_names(name, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write_method(name, tmp_path)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "test_mine.py").write_text("precious")
    with pytest.raises(UserError, match=r"test_mine\.py exists"):
        write_method("mine", tmp_path)
    assert not (tmp_path / "mine.py").exists()
