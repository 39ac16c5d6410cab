"""The generated pages say what the registry and the kept runs say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from howsure.plugins import METHODS

DOCS = Path(__file__).parent.parent / "docs"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_page_a_family_is_up_to_date():
    for path, text in script("catalogue").pages().items():
        assert path.read_text() == text, f"{path} is stale: run `python docs/catalogue.py`"


def test_every_method_stands_on_one_page():
    pages = [path.read_text() for path in (DOCS / "methods").glob("*.md")]
    for name in METHODS:
        assert sum(f"| `{name}` " in page for page in pages) == 1, name


def test_the_tables_of_the_paper_are_those_of_the_kept_runs():
    page = (DOCS / "paper.md").read_text()
    for table, text in script("paper").tables().items():
        assert f"<!-- {table} -->\n{text}\n<!-- end -->" in page, f"'{table}' is stale: run `python docs/paper.py`"
