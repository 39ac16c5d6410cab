"""What the engine has learned about a network, kept as long as the network lives."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .fold import Fold
from .layout import Layout
from .parameters import Contents

_CACHE = 2.4e6  # bytes of activations in one layer at which larger chunks gain nothing on the CPUs measured


@dataclass
class Plan:
    """What a first pass learned about a network: valid while the same calls are made."""

    signature: tuple = ()
    layouts: list[tuple[list[Layout], ...]] = field(default_factory=list)
    """Of each output of each site all that the gradients seen so far allow; more than one where they were zero."""
    settled: bool = False
    apart: set[int] = field(default_factory=set)
    """Batch sizes at which the gradients of different samples were seen not to meet."""
    compared: bool = False
    """Whether the logits were seen not to depend on the other samples."""
    alone: bool = False
    """Whether the network sorts or routes its samples, so that each goes by itself."""
    general_meetings: set[int] = field(default_factory=set)
    """Calls in which weights meet data, by number, that take the general path: their samples lie as no rule knows."""
    unseen_meetings: set[int] = field(default_factory=set)
    """Those that took weights used unseen for data, and are left to the way of the latter."""
    ways: dict[tuple[int, int], dict[int, Layout] | None] = field(default_factory=dict)
    """Of a call on the general path, by number, and a batch size, which guess of how samples lie in its inputs held."""
    blanks: bool = False
    """Whether tensors in the form of data that hold nothing of them are no data: their samples were seen to meet."""
    folds: dict[int, Fold] | None = None
    """Batch norms to fold; None before the first pass."""
    weights: int = 0
    """Bytes of the parameters asked for."""
    outputs: float = 0.0
    """Bytes of all sites' outputs per sample."""
    channels_last: bool = True
    """Whether images go in with their channels side by side, which is faster on a CPU."""

    def settle(self, found: list[tuple[list[Layout], ...]], outputs: float) -> None:
        """Take in what a probe found: of each output of each site the layouts it allows, and their bytes per sample."""
        known = self.layouts if self.settled else found
        self.layouts = [
            tuple(_both(old, new) for old, new in zip(olds, news, strict=True))
            for olds, news in zip(known, found, strict=True)
        ]
        if not self.settled:
            self.apart.clear()
        self.settled, self.outputs = True, outputs

    def give_up_format(self, x: Tensor) -> bool:
        """Whether the network, which failed, can be spared maps whose channels are side by side; it is from now on."""
        given, self.channels_last = self.format_of(x) == torch.channels_last, False
        return given

    def give_up(self, fold: Fold) -> None:
        self.folds = {key: kept for key, kept in (self.folds or {}).items() if kept.weight is not fold.weight}

    def format_of(self, x: Tensor) -> torch.memory_format:
        last = self.channels_last and x.dim() == 4 and x.device.type == "cpu"
        return torch.channels_last if last else torch.preserve_format

    def chunk(self, n: int, device: torch.device) -> int:
        """How many of ``n`` samples to take at a time: what keeps a layer in cache, or in half a GPU's free memory."""
        if self.alone:
            return 1
        if not self.settled or not self.outputs:
            return n
        if device.type == "cuda":
            return max(1, min(n, int(_free_memory(device) / 6 / self.outputs)))
        parts = max(1, round(n * self.outputs / (_CACHE * len(self.layouts) + self.weights)))
        return -(-n // parts)


def _free_memory(device: torch.device) -> int:
    """Bytes that can be had on a GPU: free ones, and those that torch holds and does not use."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def _both(old: list[Layout], new: list[Layout]) -> list[Layout]:
    """What two probes allow; where they share nothing, as when sizes changed, what the later one does."""
    return [layout for layout in old if layout in new] or new or old


_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()


def lock_of(model: nn.Module) -> threading.RLock:
    """Held during a call: what is known of a network, and what its parameters require, is one call's at a time."""
    return _locks.setdefault(model, threading.RLock())


_plans: weakref.WeakKeyDictionary[nn.Module, dict[Any, Plan]] = weakref.WeakKeyDictionary()


def plan_for(net: Contents, x: Tensor, wanted: Mapping[str, Tensor]) -> Plan:
    """What is known of a network with inputs like ``x``, in the modes that its layers are in."""
    plans = _plans.setdefault(net.model, {})
    modes = tuple(module.training for module in net.modules.values())
    key = tuple(x.shape[1:]), x.dtype, x.device, tuple(wanted), modes
    return plans.setdefault(key, Plan(weights=sum(p.nbytes for p in wanted.values())))
