"""Run plugins' code so that its changes to global settings do not outlast it."""

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
    """Afterwards, restore torch's and numpy's global settings, the warning filters and the current folder.

    What is printed inside goes to standard error, so that it does not mix with results.
    """
    before = [(read(), put) for read, put in _SETTINGS]
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        for (value, put), (read, _) in zip(before, _SETTINGS, strict=True):
            if read() != value:
                put(value)


def _determinism() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _current_folder() -> str | None:
    with suppress(OSError):  # it has been deleted
        return os.getcwd()
    return None


def _set_warning_filters(filters: Any) -> None:
    warnings.filters[:] = filters  # type: ignore[index]


_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, lambda device: torch.set_default_device(None if device.type == "cpu" else device)),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (_current_folder, lambda folder: os.chdir(folder or ".")),
    (lambda: [*warnings.filters], _set_warning_filters),
    (np.geterr, lambda value: np.seterr(**value)),
    (_determinism, lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1])),
)
