"""Plugins' code, run so that whatever it does to the process stays its own affair."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

import numpy as np
import torch


@contextmanager
def contained() -> Iterator[None]:
    """Undo what is set in here for all of torch and numpy, of warnings and of the folder, so that no other method runs
    otherwise after it; what is printed goes to standard error, out of the way of results."""
    before = [(read(), put) for read, put in _SETTINGS]
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        for (value, put), (read, _) in zip(before, _SETTINGS, strict=True):
            if read() != value:
                put(value)


def _exactness() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _place() -> str | None:
    with suppress(OSError):  # the folder is gone
        return os.getcwd()
    return None


def _filter(filters: Any) -> None:
    warnings.filters[:] = filters  # type: ignore[index]


_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, lambda device: torch.set_default_device(None if device.type == "cpu" else device)),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (_place, lambda place: os.chdir(place or ".")),
    (lambda: [*warnings.filters], _filter),
    (np.geterr, lambda value: np.seterr(**value)),
    (_exactness, lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1])),
)
