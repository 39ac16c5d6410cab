"""Devices that queue their work, and scratch memory that is used again."""

from __future__ import annotations

import threading
from functools import cache

import torch
from torch import Tensor

QUEUED = {"cuda"}
"""Types of device that queue their work: whoever asks for a number waits until all work before it is done."""


def queued(device: torch.device) -> bool:
    return device.type in QUEUED


@cache
def fast_grouped(kind: str) -> bool:
    """Whether convolutions in many groups are fast on this type of device: on a CPU with AVX-512, by oneDNN."""
    return kind == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"


_scratch = threading.local()


def scratch(like: Tensor) -> Tensor:
    """Uninitialised memory in the shape and order of ``like``, valid until the next call; one buffer a thread.

    On a CPU it is the same memory each time, since fresh pages are expensive.
    """
    if queued(like.device):  # fresh memory is free there, and the backward pass runs on a thread of its own
        return torch.empty_like(like)
    kept = vars(_scratch).setdefault("kept", {})
    key = (like.dtype, like.device)
    if key not in kept or kept[key].numel() < like.numel():
        kept[key] = like.new_empty(like.numel())
    return kept[key][: like.numel()].as_strided(like.shape, torch.empty_like(like, device="meta").stride())


def free_scratch() -> None:
    vars(_scratch).pop("kept", None)
