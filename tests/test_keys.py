"""What is stored under a class changes its name with whatever code stands behind the class."""

import sys

import pytest

from howsure.keys import source_of, sources_of
from howsure.plugins import METHODS
from howsure.registry import import_file

PLUGIN = "from formula import sign\nfrom parent import Parent\n\nclass Child(Parent):\n    pass\n"


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def write(formula="sign = 1\n", parent="class Parent:\n    pass\n", own=PLUGIN):
        for name, text in (("formula", formula), ("parent", parent), ("child", own)):
            (tmp_path / f"{name}.py").write_text(text)
        for name in ("formula", "parent", "howsure_plugins.child"):
            sys.modules.pop(name, None)
        return source_of(import_file(tmp_path / "child.py").Child)

    return write


def test_a_class_its_ancestors_and_what_they_take_from(source):
    formula, parent = "sign = -1\n", "class Parent:\n    negated = True\n"
    assert source() == source()
    assert len({source(), source(formula=formula), source(parent=parent), source(own=PLUGIN + "# edited\n")}) == 4


@pytest.mark.parametrize("name", ["imported_later", "kit_of_some.deep"])
def test_what_a_function_imports_when_it_is_called(source, tmp_path, name):
    own = f"class Child:\n    def f(self):\n        from {name} import sign\n        return sign\n"
    file = tmp_path / f"{name.replace('.', '/')}.py"
    file.parent.mkdir(exist_ok=True)
    (tmp_path / "kit_of_some").mkdir(exist_ok=True)
    (tmp_path / "kit_of_some" / "__init__.py").write_text("raise RuntimeError('a key imports nothing')\n")
    keys = []
    for text in ("sign = 1\n", "sign = 1\n", "sign = -1\n"):
        file.write_text(text)
        keys.append(source(own=own))
    assert keys[0] == keys[1] != keys[2]
    assert name not in sys.modules


OF_NO_FILE = """
class Parent:
    @staticmethod
    def sign():
        return {static}

    @classmethod
    def scale(cls):
        return {of_class}

    @property
    def needs(self):
        return {prop}


class A(Parent):
    grid = [{value}]

    def f(self, d={default}):
        return {own}
"""


def test_classes_of_no_file():
    def make(**changed):
        space = {"__name__": "nowhere"}
        exec(OF_NO_FILE.format(**{**texts, **changed}), space)
        return source_of(space["A"])

    texts = dict.fromkeys(("static", "of_class", "prop", "value", "default", "own"), "1")
    assert make() == make()
    assert len({make(), *(make(**{text: "-1"}) for text in texts)}) == 1 + len(texts)


def test_a_class_of_no_file_with_an_ancestor_of_one(source):
    source()
    parent = sys.modules["parent"].Parent
    one, two = (type("A", (parent,), {"__module__": "nowhere", "k": k}) for k in (1, 2))
    assert source_of(one) != source_of(two)


def test_two_files_of_one_name(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "twin.py").write_text(f"class {folder.upper()}:\n    pass\n")
    a, b = (import_file(tmp_path / folder / "twin.py") for folder in ("a", "b"))
    before = source_of.__wrapped__(a.A)
    (tmp_path / "a" / "twin.py").write_text("class A:\n    edited = True\n")
    assert source_of.__wrapped__(a.A) != before
    assert b.B.__name__ == "B"


def test_files_shared_by_methods_are_behind_them(monkeypatch):
    assert len(list(sources_of(METHODS["combood"]()))) == 2
    seen = []
    monkeypatch.setattr("howsure.keys.hash_file", lambda file: seen.append(str(file)) or "")
    source_of.__wrapped__(METHODS["combood"])
    assert {file.rpartition("/")[2] for file in seen} >= {"combood.py", "_neighbours.py", "_rows.py"}
