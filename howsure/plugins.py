"""The registries of methods, data sets and backbones."""

from __future__ import annotations

from typing import Any, TypeVar

from .backbone import Backbone
from .data import Dataset
from .method import Method
from .registry import Registry

C = TypeVar("C", bound=type)

METHODS: Registry[Method] = Registry("method", Method, "methods")
DATASETS: Registry[Dataset] = Registry("data set", Dataset, "datasets")
BACKBONES: Registry[Backbone] = Registry("backbone", Backbone, "backbones")

REGISTRIES: dict[str, Registry[Any]] = {"methods": METHODS, "datasets": DATASETS, "backbones": BACKBONES}


def register(cls: C) -> C:
    """Class decorator that registers a plugin defined anywhere, such as in a notebook, under its `name`.

    Without a `name`, the class's name in lower case is used.
    """
    for registry in REGISTRIES.values():
        if issubclass(cls, registry.base):
            registry.add(str(vars(cls).get("name") or cls.__name__.lower()), cls)
            return cls
    raise TypeError(f"{cls.__name__} must derive from howsure.Method, Dataset or Backbone")
