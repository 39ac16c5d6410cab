"""Batches divided over processes of few threads each: in passes through small networks, threads wait for each other."""

from __future__ import annotations

import io
import os
import pickle
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import suppress
from itertools import chain, islice
from multiprocessing import get_context
from threading import Thread
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from .errors import FAULTS

T = TypeVar("T")
R = TypeVar("R")
Sent = deque[tuple[T, Future[bytes] | None]]
_MOST = 8
_SHORT = 1.0  # seconds of work that are over before processes are worth it
_work: Callable[[Any], Any]


def processes(device: torch.device) -> int:
    """How many to divide over: at most eight, with an equal share of torch's threads each; 1 where forks are not safe.

    They are not for autograd beside an accelerator, and in general they are only on Linux.
    """
    if sys.platform != "linux" or device.type != "cpu" or torch.accelerator.is_available():
        return 1
    threads = torch.get_num_threads()
    return threads // -(-threads // _MOST)


def divided(work: Callable[[T], R], items: Iterable[T], n: int) -> Iterator[R]:
    """`work(item)` of each item, in order; what is left after a second is done by `n` processes, if it is enough.

    They are forks, which know what was learned until then. Tensors come back on the CPU, contiguous. If an item fails
    there, or its process is killed, it is worked on again here: an error then shows its place, and nothing is lost.
    """
    items, start = iter(items), time.monotonic()
    for item in items:
        yield work(item)
        if n > 1 and time.monotonic() - start > _SHORT:
            break
    ahead = [*islice(items, 2 * n)]
    yield from _in_processes(work, chain(ahead, items), n) if len(ahead) == 2 * n else map(work, ahead)


def _in_processes(work: Callable[[T], R], items: Iterable[T], n: int) -> Iterator[R]:
    theirs, ours = os.pipe()
    threads = max(1, torch.get_num_threads() // n)
    pool = ProcessPoolExecutor(n, get_context("fork"), _begin, (work, threads, theirs, ours))
    sent: Sent[T] = deque()
    try:
        for item in items:
            sent.append((item, _submit(pool, item)))
            if len(sent) == 2 * n:
                yield _next(work, sent, pool)
        while sent:
            yield _next(work, sent, pool)
        pool.shutdown()
    finally:
        os.close(ours)  # ends those that still work after an error or an interruption
        pool.shutdown(cancel_futures=True)
        os.close(theirs)


def _submit(pool: ProcessPoolExecutor, item: Any) -> Future[bytes] | None:
    """The future of an item; None if the processes have failed, or there is no memory for them."""
    given = packed(item)
    with warnings.catch_warnings(), suppress(RuntimeError, OSError):
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which wait meanwhile
        return pool.submit(_do, given)
    return None


def _next(work: Callable[[T], R], sent: Sent[T], pool: ProcessPoolExecutor) -> R:
    """The result of the first item sent; once the processes fail, it and all after it are worked on here."""
    item, future = sent.popleft()
    if future:
        try:
            return cast(R, unpacked(future.result()))
        except FAULTS as error:
            if isinstance(error, BrokenExecutor):
                print("howsure: a process was killed, perhaps for want of memory; one process goes on", file=sys.stderr)
            pool.shutdown(wait=False, cancel_futures=True)
            rest = [(item, None) for item, _ in sent]
            sent.clear()
            sent.extend(rest)
    return work(item)


def _begin(work: Callable[[Any], Any], threads: int, theirs: int, ours: int) -> None:
    global _work
    _work = work
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its processes
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.close(ours)
    Thread(target=_end_with_parent, args=(theirs,), daemon=True).start()


def _end_with_parent(theirs: int) -> None:
    os.read(theirs, 1)  # returns when the other end, which only the parent holds, is closed
    os._exit(1)


def _do(item: bytes) -> bytes:
    return packed(_work(unpacked(item)))


class _Pickler(pickle.Pickler):
    """Tensors by value, where torch would send a file descriptor for each."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        numbers = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return _tensor, (numbers.reshape(-1).view(torch.uint8).numpy(), numbers.dtype, tuple(numbers.shape))


def _tensor(numbers: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(numbers).view(dtype).view(shape)


def packed(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


def unpacked(value: bytes) -> Any:
    return pickle.loads(value)
