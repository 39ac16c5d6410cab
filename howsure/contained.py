"""Plugins' code, run so that whatever it does to the process stays its own affair."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch


@contextmanager
def contained() -> Iterator[None]:
    """Undo what is set for all of torch in here, so that no other method computes otherwise after it; what is printed
    goes to standard error, out of the way of results."""
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


_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, lambda device: torch.set_default_device(None if device.type == "cpu" else device)),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (_exactness, lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1])),
)
