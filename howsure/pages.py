"""Freed memory is kept for the next tensors: a page fresh from the system costs more than what is computed on it."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as in glibc's malloc.h
_LARGE = 2**30


def keep_freed_memory() -> None:
    """Have glibc keep what is freed: blocks of less than 1 GiB, and up to 2 GiB at the end of its heap.

    Does nothing with another C library, or where the environment already sets one of ``MALLOC_…``.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, 2 * _LARGE - 1)
