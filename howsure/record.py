"""The record of a run, `run.json`: what it was made with, what was left out, and how each cell went."""

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
    """The record of a run before its first network; its `missing` and `broken` are the material's own."""
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
    """Where a suite's file lies, by itself and seen from the run's folder: that may be moved, or both together.

    Hashes, so that a run that is published tells no path of the machine; empty for a suite that comes with the package.
    """
    if suite.base == own_suites():
        return []
    places = [str(suite.base)]
    with suppress(ValueError):  # no way leads from one drive of Windows to another
        places.append(os.path.relpath(suite.base, folder.resolve()))
    return list(map(make_key, places))


def failures(record: dict[str, Any]) -> Iterator[str]:
    """One line for each shift whose data set broke, and for each cell that failed."""
    yield from (f"shift '{shift}': {why}" for shift, why in record.get("broken", {}).items())
    for cell in record["cells"]:
        if cell["state"] == "failed":
            yield f"{cell['method']} on {cell['backbone']} ({cell['protocol']}, seed {cell['seed']}): {cell['why']}"


def skips(record: dict[str, Any]) -> Iterator[str]:
    """One line for each method and network that do not go together."""
    skipped = [cell for cell in record["cells"] if cell["state"] == "skipped"]
    yield from dict.fromkeys(f"{cell['method']} on {cell['backbone']}: {cell['why']}" for cell in skipped)


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
