"""What the engine has learned about a network, kept as long as the network lives."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .layout import Layout
from .parameters import Contents

if TYPE_CHECKING:
    from .fold import Fold

_KEPT = 2**29  # bytes of gradients that a chunk may keep
_CACHE = 2.4e6  # bytes of activations in one layer beyond which larger chunks gain nothing on the CPUs measured


class Again(Exception):
    """A pass has found out what it should have known: it starts again."""

    def learn(self, plan: Plan) -> None:
        """Note what was found out."""


@dataclass
class Plan:
    """What passes learned about a network, valid while the same calls are made."""

    signature: tuple = ()
    """Of the calls made."""
    layouts: list[tuple[list[Layout], ...]] = field(default_factory=list)
    """For each output of each site all layouts that the gradients so far allow; several where they were zero."""
    settled: bool = False
    """Whether the layouts are known."""
    apart: set[int] = field(default_factory=set)
    """Batch sizes at which the gradients of different samples were seen not to meet."""
    compared: bool = False
    """Whether the logits were seen not to depend on other samples."""
    one_by_one: bool = False
    """Whether samples go through alone, since the network sorts or routes them."""
    general_meetings: set[int] = field(default_factory=set)
    """Calls in which weights meet data, by number, that take the general path, since no rule knows their layout."""
    unseen_meetings: set[int] = field(default_factory=set)
    """Calls made as if unseen, since their data turned out to be made of weights used unseen."""
    guesses: dict[tuple[int, int], dict[int, Layout] | None] = field(default_factory=dict)
    """For a call on the general path, by number, and a batch size, how samples were found to lie in its inputs."""
    blanks: bool = False
    """Whether tensors in the form of data but without their values are constants: as data, they made samples meet."""
    folds: dict[int, Fold] | None = None
    """Batch norms to fold; None before the first pass."""
    weights: int = 0
    """Bytes of the parameters asked for."""
    outputs: float = 0.0
    """Bytes of all sites' outputs per sample."""
    gradients: int = 0
    """Bytes of a sample's gradients that are kept whole: of shared and derived weights, and the largest of a call
    without a rule."""
    channels_last: bool = True
    """Whether images go in with their channels side by side, which is faster on a CPU."""

    def settle(self, found: list[tuple[list[Layout], ...]], outputs: float) -> None:
        """Take in what a probe found: for each output of each site the layouts it allows; and their bytes a sample."""
        known = self.layouts if self.settled else found
        self.layouts = [
            tuple(_both(old, new) for old, new in zip(olds, news, strict=True))
            for olds, news in zip(known, found, strict=True)
        ]
        if not self.settled:
            self.apart.clear()
        self.settled, self.outputs = True, outputs

    def give_up_format(self, x: Tensor) -> bool:
        """Feed images in the plain format from now on; whether that changes anything for ``x``."""
        given, self.channels_last = self.format_of(x) == torch.channels_last, False
        return given

    def give_up_fold(self, fold: Fold) -> None:
        self.folds = {key: kept for key, kept in (self.folds or {}).items() if kept.weight is not fold.weight}

    def format_of(self, x: Tensor) -> torch.memory_format:
        last = self.channels_last and x.dim() == 4 and x.device.type == "cpu"
        return torch.channels_last if last else torch.preserve_format

    def chunk(self, n: int, device: torch.device) -> int:
        """How many of ``n`` samples to take at a time: what keeps a layer in cache, or all in a part of GPU memory."""
        if not self.settled or not self.outputs:
            return n
        if device.type == "cuda":
            return max(1, min(n, int(_free_memory(device) / 6 / (self.outputs + self.gradients))))
        parts = max(1, round(n * self.outputs / (_CACHE * len(self.layouts) + self.weights)))
        return -(-n // max(parts, -(-n * self.gradients // _KEPT)))


def _free_memory(device: torch.device) -> int:
    """Bytes to be had on a GPU: those free, and those that torch holds but does not use."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def _both(old: list[Layout], new: list[Layout]) -> list[Layout]:
    """What two probes allow; where they share nothing, as when sizes changed, what the later one does."""
    return [layout for layout in old if layout in new] or new or old


_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()


def lock_of(model: nn.Module) -> threading.RLock:
    """Held during a call, which alone may use the network's plans and change what its parameters require."""
    return _locks.setdefault(model, threading.RLock())


_plans: weakref.WeakKeyDictionary[nn.Module, dict[Any, Plan]] = weakref.WeakKeyDictionary()


def plan_for(net: Contents, x: Tensor, wanted: Mapping[str, Tensor]) -> Plan:
    """What is known of a network with inputs like ``x``, in the modes that its layers are in."""
    plans = _plans.setdefault(net.model, {})
    modes = tuple(module.training for module in net.modules.values())
    key = tuple(x.shape[1:]), x.dtype, x.device, tuple(wanted), modes
    return plans.setdefault(key, Plan(weights=sum(p.nbytes for p in wanted.values())))
