"""The record of a run, `run.json`: versions and settings, what was left out, and the state of each cell."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .keys import make_key
from .material import Material
from .method import Method
from .suite import Suite, own_suites


def new_record(
    started: str, suite: Suite, folder: Path, methods: Mapping[str, Method], device: torch.device, material: Material
) -> dict[str, Any]:
    """The record of a run before its first network; `missing` and `broken` are shared with `material`."""
    return {
        "suite": suite.name,
        "suite_from": suite_from(suite, folder),
        "started": started,
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm", "numpy", "scikit-learn")},
        "howsure": version("howsure"),
        "python": sys.version.split()[0],
        "machine": {"platform": platform.platform(), "processor": _processor(), "threads": torch.get_num_threads()},
        "device": str(device),
        "settings": suite.model_dump(mode="json", exclude={"base"}),
        "methods": {name: repr(method) for name, method in methods.items()},
        "missing": material.missing,
        "broken": material.broken,
        "networks": [],
        "cells": [],
    }


def suite_from(suite: Suite, folder: Path) -> list[str]:
    """Where a suite's file lies: hashes of its folder's path, absolute and relative to the run's folder.

    One of them stays the same if the run's folder is moved, the other if both are moved together. Hashes, so that a
    published run reveals no paths; empty for a suite that comes with the package.
    """
    if suite.base == own_suites():
        return []
    places = [str(suite.base)]
    with suppress(ValueError):  # there is no relative path between two Windows drives
        places.append(os.path.relpath(suite.base, folder.resolve()))
    return list(map(make_key, places))


def failures(record: dict[str, Any]) -> Iterator[str]:
    """One line for each shift whose data set failed, and for each cell that failed."""
    yield from (f"shift '{shift}': {why}" for shift, why in record.get("broken", {}).items())
    for cell in record["cells"]:
        if cell["state"] == "failed":
            yield f"{cell['method']} on {cell['backbone']} ({cell['protocol']}, seed {cell['seed']}): {cell['why']}"


def skips(record: dict[str, Any]) -> Iterator[str]:
    """One line for each method that cannot score a network, saying why."""
    skipped = [cell for cell in record["cells"] if cell["state"] == "skipped"]
    yield from dict.fromkeys(f"{cell['method']} on {cell['backbone']}: {cell['why']}" for cell in skipped)


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
