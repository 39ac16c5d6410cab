"""A generic registry, which finds plugins in a folder, in installed packages, and in files that the user names."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar, cast
from zlib import crc32

from .errors import FAULTS, UserError, unknown

T = TypeVar("T")


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be imported."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


class Registry(Mapping[str, type[T]], Generic[T]):
    """Plugin classes of one kind, by name.

    A class is a plugin if it derives from `base`, its name does not start with an underscore, and it is defined in a
    file of the package `howsure.<folder>`, in an entry point of the group `howsure.<folder>`, or in a module given to
    `add_module`. Its name is its attribute `name`, else the stem of its file, else (in a file with several plugins) the
    class's name in lower case.
    """

    def __init__(self, kind: str, base: type[T], folder: str) -> None:
        self.kind, self.base, self.group = kind, base, f"howsure.{folder}"
        self.broken: dict[str, Broken] = {}
        self._classes: dict[str, type[T]] = {}
        self._found = False

    def __getitem__(self, name: str) -> type[T]:
        self._find()
        if name in self._classes:
            return self._classes[name]
        if name in self.broken:
            raise UserError(f"{self.kind} '{name}' is broken: {self.broken[name]}")
        raise unknown(self.kind, name, self._classes)

    def __iter__(self) -> Iterator[str]:
        self._find()
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        self._find()
        return len(self._classes)

    def __contains__(self, name: object) -> bool:
        self._find()
        return name in self._classes

    def add(self, name: str, cls: type[T]) -> None:
        """Register a class. Raises UserError, naming both places, if another class already has the name."""
        self._find()
        other = self._classes.get(name)
        if other is not None and _place(other) != _place(cls):
            raise UserError(f"two {self.kind}s are called '{name}': {_place(other)} and {_place(cls)}; rename one")
        self._classes[name] = cls

    def _find(self) -> None:
        if self._found:
            return
        self._found = True
        package = importlib.import_module(self.group)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                self._try(module.name, f"{self.group}.{module.name}")
        for point in entry_points(group=self.group):
            self._try(point.name, point.value.partition(":")[0], point.value.partition(":")[2])

    def _try(self, name: str, module: str, attribute: str = "") -> None:
        try:
            imported = importlib.import_module(module)
            if attribute:
                cls = getattr(imported, attribute)
                self.add(vars(cls).get("name", name), cls)
            else:
                self.add_module(imported)
        except FAULTS as error:
            self.broken[name] = Broken(_raised_at(error, _file_of(module)), f"{type(error).__name__}: {error}")

    def add_module(self, module: ModuleType) -> list[str]:
        """Register the plugins that a module defines; returns their names."""
        found = inspect.getmembers(module, inspect.isclass)
        classes = [cast("type[T]", c) for _, c in found if self._is_plugin(c, module)]
        stem = Path(str(module.__file__)).stem
        names = [str(vars(c).get("name") or (stem if len(classes) == 1 else c.__name__.lower())) for c in classes]
        for name, cls in zip(names, classes, strict=True):
            self.add(name, cls)
        return names

    def _is_plugin(self, cls: type, module: ModuleType) -> bool:
        return issubclass(cls, self.base) and cls.__module__ == module.__name__ and not cls.__name__.startswith("_")


def import_file(path: str | Path) -> ModuleType:
    """Import a Python file as `howsure_plugins.<stem>`; its classes can be pickled if the reader imports it likewise.

    Raises:
        UserError: there is no such file, it is not a Python file, or importing it fails.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise UserError(f"{path}: no such plugin file")
    name = f"howsure_plugins.{file.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ != str(file):  # another file with the same stem
        name = f"{name}_{crc32(str(file).encode()):08x}"
        loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent))  # like a script, it may import its neighbours
    try:
        spec.loader.exec_module(module)
    except FAULTS as error:
        del sys.modules[name]
        raise UserError(f"{_raised_at(error, str(file))}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(file.parent))
    return module


def _place(cls: type) -> str:
    try:
        return f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        return f"{cls.__module__}.{cls.__qualname__}"


def _raised_at(error: BaseException, file: str | None) -> str:
    """The plugin's file and the line in it that led to the error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return f"{file}:{lines[-1]}" if lines else str(file)


def _file_of(module: str) -> str | None:
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        return module
    return spec.origin if spec else module
