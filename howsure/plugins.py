"""The registries of the three kinds of plugin."""

from __future__ import annotations

from typing import Any

from .backbone import Backbone
from .data import Dataset
from .method import Method
from .registry import Registry

METHODS: Registry[Method] = Registry("method", Method, "methods")
DATASETS: Registry[Dataset] = Registry("data set", Dataset, "datasets")
BACKBONES: Registry[Backbone] = Registry("backbone", Backbone, "backbones")

REGISTRIES: dict[str, Registry[Any]] = {"methods": METHODS, "datasets": DATASETS, "backbones": BACKBONES}
