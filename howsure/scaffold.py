"""`howsure new`: a method file that works as it stands, and its test, as a starting point."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from .errors import UserError
from .plugins import METHODS

METHOD = '''"""{title}: a method plugin for howsure."""

from dataclasses import dataclass

from pydantic import PositiveFloat
from torch import Tensor

from howsure import Logits, Method, Reps


@dataclass(frozen=True)
class {cls}(Method):
    """{title}. Authors, year, arXiv:0000.00000.

    score = -max(z / T); shape [N], higher means more uncertain.
    """

    temperature: PositiveFloat = 1.0

    needs = (Logits(),)

    def score(self, reps: Reps) -> Tensor:
        return -(reps[Logits()] / self.temperature).amax(1)
'''

TEST = '''"""Tests of the method plugin {name}."""

from pathlib import Path

import pytest
import torch

from howsure import Logits, Reps
from howsure.check import check_method
from howsure.plugins import METHODS
from howsure.registry import import_file


@pytest.fixture(scope="module")
def method():
    METHODS.add_module(import_file(Path(__file__).parent / "{name}.py"))
    return METHODS["{name}"]


def test_keeps_the_contracts(method):
    assert [(contract, problem) for contract, problem in check_method("{name}", method) if problem] == []


def test_formula(method):
    reps = Reps({{Logits(): torch.tensor([[1.0, 3.0], [2.0, -4.0]])}})
    assert method().score(reps).tolist() == [-3.0, -2.0]
'''


def write_method(name: str, into: Path) -> list[Path]:
    """Write NAME.py and test_NAME.py into a folder, never over an existing file; returns their paths.

    Raises:
        UserError: the name is taken or not a valid one, a file exists, or the folder cannot be written to.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(f"'{name}' is not a valid method name; use lower-case letters, digits and underscores")
    if name in METHODS:
        raise UserError(f"there is already a method '{name}'; choose another name")
    cls = "".join(part.capitalize() for part in name.split("_"))
    texts = {f"{name}.py": METHOD, f"test_{name}.py": TEST}
    for file in texts:
        if (into / file).exists():
            raise UserError(f"{into / file} exists; move it or choose another name")
    try:
        into.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            (into / file).write_text(text.format(name=name, cls=cls, title=name.replace("_", " ").capitalize()))
    except OSError as error:
        raise UserError(f"{into}: cannot write there ({error.strerror})") from error
    return [into / file for file in texts]
