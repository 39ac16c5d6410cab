"""Keys of stored results: hashes of everything they were made from, code included."""

from __future__ import annotations

import ast
import hashlib
import marshal
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from importlib.util import resolve_name
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

ROOM = Path(__file__).parent
SHOWING = {"__main__", "answer", "check", "cli", "fitted", "lead", "record", "scaffold", "tables", "timing"}
"""Modules of the engine room that no stored number depends on."""
PLUGINS = ("howsure.methods", "howsure.datasets", "howsure.backbones")
BELOW = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pillow")
INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))


def make_key(*parts: object) -> str:
    """A hash of the parts as texts, 32 hexadecimal digits."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode(errors="surrogateescape")).hexdigest()[:32]


def values_of(thing: Any) -> list[object]:
    """The class and the fields of a method or representation, all of them: its `repr` may leave some out."""
    return [type(thing).__qualname__, *((f.name, getattr(thing, f.name)) for f in fields(thing))]


@cache
def room() -> str:
    """A hash of the engine room's files and of the versions of the libraries it uses."""
    files = [*ROOM.glob("*.py"), *(ROOM / "gradients").glob("*.py")]
    return make_key(*(hash_file(f) for f in sorted(files) if f.stem not in SHOWING), *map(version, BELOW))


def _source_of(cls: Any) -> str:
    """A hash of the files behind a class: those that define it and its ancestors, and those that these import from.

    The engine room's files and installed libraries are left out. Editing one of the files invalidates what is stored
    under it. A class or an ancestor that no file defines, such as in a notebook, is hashed by its code.
    """
    found: set[str] = set()
    codes = []
    for ancestor in cls.__mro__:
        text = _text_of(ancestor.__module__)
        if not Path(text.file).is_file():
            codes.append(_code(ancestor))
        elif ancestor is cls or _is_own(text, cls.__module__):
            _follow(text, cls.__module__, found)
    return make_key(cls.__qualname__, *map(hash_file, sorted(found)), *codes)


source_of: Callable[[Any], str] = cache(_source_of)


class Text(NamedTuple):
    """Where a module's source is; `file` is "" if there is none."""

    name: str
    file: str
    package: str


def _text_of(name: str) -> Text:
    """Where a module's source is, whether it is loaded or not: what a function imports is loaded only when it runs."""
    module = sys.modules.get(name)
    if module is None:
        spec = _unloaded(name)
        return Text(name, (spec and spec.has_location and spec.origin) or "", (spec and spec.parent) or "")
    return Text(module.__name__, getattr(module, "__file__", None) or "", getattr(module, "__package__", None) or "")


def _unloaded(name: str) -> ModuleSpec | None:
    """Where a module would be loaded from; neither the module nor the packages around it are imported to find out."""
    parent, inside, _ = name.rpartition(".")
    folders = getattr(sys.modules.get(parent), "__path__", None)
    if inside and folders is None:
        folders = getattr(_unloaded(parent), "submodule_search_locations", None)
    return None if inside and folders is None else PathFinder.find_spec(name, folders)


def _follow(text: Text, home: str, found: set[str]) -> None:
    if text.file in found or not Path(text.file).is_file():
        return
    found.add(text.file)
    changed = Path(text.file).stat().st_mtime_ns
    for other in map(_text_of, _imports(text.file, changed, text.package)):
        if _is_own(other, home):
            _follow(other, home, found)


@cache
def _imports(file: str, _changed: int, package: str) -> list[str]:
    """Names of the modules that a file imports from, anywhere in it."""
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (SyntaxError, ValueError):  # no source
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            place = "." * node.level + (node.module or "")
            base = resolve_name(place, package) if node.level else place
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return found


def _is_own(text: Text, home: str) -> bool:
    """Whether a module's source may change: it is a plugin's, in the same package, or the user's own."""
    top = text.name.partition(".")[0]
    if top == "howsure":
        return text.name.startswith(PLUGINS)
    installed = text.file.startswith(INSTALLED)
    return text.file.endswith(".py") and (not installed or (top not in BELOW and top == home.split(".")[0]))


def _code(cls: type) -> str:
    """A hash of a class's own attributes, and of the code of its methods and properties."""
    parts = []
    for name, value in vars(cls).items():
        functions = _functions(value)
        parts += [f"{name} {hashlib.sha256(marshal.dumps(f.__code__)).hexdigest()} {f.__defaults__}" for f in functions]
        if not (functions or callable(value) or name.startswith(("__", "_abc_"))):
            parts.append(f"{name} {value!r}")
    return make_key(*parts)


def _functions(value: Any) -> list[FunctionType]:
    inner = (getattr(value, name, None) for name in ("__func__", "fget", "func", "__wrapped__"))
    return [f for f in (value, *inner) if isinstance(f, FunctionType)]


def sources_of(*things: Any) -> Iterator[str]:
    """Hashes of the files behind methods and representations, the representations that they need, and losses."""
    for thing in things:
        yield source_of(type(thing))
        yield from sources_of(*getattr(thing, "needs", ()))
        yield from map(source_of, map(type, thing.losses() if hasattr(thing, "losses") else ()))


def layers_of(model: Any) -> str:
    """A hash of a network's printed layers, and of the files behind those that are not torch's."""
    classes = {type(layer) for layer in model.modules() if not type(layer).__module__.startswith("torch.")}
    return make_key(model, *sorted(map(source_of, classes)))


def hash_file(file: str | Path) -> str:
    """A hash of a file's bytes."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def hash_module(module: ModuleType) -> str:
    """A hash of a module's file and of the user's files that it imports from."""
    found: set[str] = set()
    _follow(_text_of(module.__name__), module.__name__, found)
    return make_key(*map(hash_file, sorted(found)))
